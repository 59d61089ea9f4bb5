//! What provider and spawner say to each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sandbox::cgroups::Group;
use crate::sandbox::identity::Identity;
use crate::sandbox::{Enforcement, Failure, SandboxSpec};

/// The spawner's first message.
#[derive(Debug, Serialize, Deserialize)]
pub enum Hello {
    /// It serves, and gives sandboxes ids in this way.
    Ready(Identity),
    /// It cannot make sandboxes on this host.
    Failed(Failure),
}

/// The provider's name for one request; the reply carries it.
pub type RequestId = u64;

/// Asked by the provider.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Make a sandbox.
    Create(RequestId, Box<SandboxSpec>),
    /// Make control groups and move the sandbox there whose init this comes with a pidfd of.
    Enclose(RequestId, Box<Group>),
    /// Kill the sandbox whose init this comes with a pidfd of.
    End(RequestId),
    /// Remove a directory with all that is in it, whoever owns it.
    Remove(RequestId, PathBuf),
}

/// Answered by the spawner; not in the order of the requests.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Comes with the provider's end of the socket to init, and a pidfd of init.
    Created(RequestId, Enforcement),
    /// The directory is gone, or the sandbox is dying, or in its groups.
    Done(RequestId),
    /// It could not be done.
    Failed(RequestId, Failure),
}

impl Reply {
    /// To a request that asks for nothing back.
    #[must_use]
    pub fn to(id: RequestId, done: Result<(), Failure>) -> Self {
        match done {
            Ok(()) => Self::Done(id),
            Err(failure) => Self::Failed(id, failure),
        }
    }

    /// The request that this answers.
    #[must_use]
    pub fn request(&self) -> RequestId {
        match self {
            Self::Created(id, _) | Self::Done(id) | Self::Failed(id, _) => *id,
        }
    }
}
