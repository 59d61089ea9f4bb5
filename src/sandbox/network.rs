//! The network of a sandbox.

use super::{At, Failure, Network, Step};
use crate::sys;

/// Prepares the network namespace that the calling process is in.
///
/// # Errors
/// The failed step.
pub fn prepare(network: Network) -> Result<(), Failure> {
    match network {
        Network::None => sys::net::bring_loopback_up().at(Step::Network, "bringing loopback up"),
        Network::Host => Ok(()),
    }
}
