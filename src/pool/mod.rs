//! Sandboxes to be had: the provider's side of the spawner and of each init.
//!
//! Asynchronous, with every wait on an event. A sandbox is made on request; its end is waited for.

mod channel;
mod conversation;
pub mod exec;
pub mod export;
pub mod files;
pub mod output;
mod pristine;
pub mod ranges;
mod sandbox;
mod spawner;
pub mod stock;

pub use channel::watch;
pub use pristine::Pristine;
pub use sandbox::{Brake, Ending, Gone, Left, Running, Sandbox, SandboxError, Signaller};
pub use spawner::{Spawner, SpawnerError};

/// Whether an error says that the disk, its inodes or a quota are full.
#[must_use]
pub fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}
