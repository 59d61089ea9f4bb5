//! What provider and spawner say to each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::changes::protocol::Inquiry;
use crate::init::unpack::Compression;
use crate::sandbox::cgroups::Group;
use crate::sandbox::identity::Identity;
use crate::sandbox::{Failure, Merge, SandboxSpec};

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
    /// Make a sandbox, up to where it waits to be adopted. Comes with the lock on its ids, where they have one.
    Create(RequestId, Box<SandboxSpec>),
    /// Make control groups and move the sandbox there whose init this comes with a pidfd of.
    Enclose(RequestId, Box<Group>),
    /// Kill the sandbox whose init this comes with a pidfd of.
    End(RequestId),
    /// Copy a directory with all that is in it, whoever owns it, to `tree` in another one. Nothing may
    /// change it meanwhile.
    Copy(RequestId, PathBuf, PathBuf),
    /// Copy what the sandbox has written whose init this comes with a pidfd of, and whose files are in no
    /// directory, to `tree` in one. Nothing may change it meanwhile.
    CopyOut(RequestId, PathBuf),
    /// Make one layer of several.
    Merge(RequestId, Box<Merge>),
    /// Tell what changed in a workspace: written to the file that this comes with.
    Tell(RequestId, Box<Inquiry>),
    /// Write what layers changed as an archive. Comes with where it goes, and where a line goes before it: why
    /// there can be none, or nothing.
    Export(RequestId, Box<Export>),
    /// Remove a directory with all that is in it, whoever owns it.
    Remove(RequestId, PathBuf),
}

/// What is to be written as an archive.
#[derive(Debug, Serialize, Deserialize)]
pub struct Export {
    /// Of each overlay: the layers, and what they lie on. Nothing is made of it.
    pub layers: Merge,
    /// Where each overlay is inside.
    pub at: Vec<PathBuf>,
    /// What is said before everything else.
    pub head: String,
    /// How it is compressed.
    pub compression: Compression,
}

/// Answered by the spawner; not in the order of the requests.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Comes with the provider's end of the socket to init, and a pidfd of init.
    Created(RequestId),
    /// The directory is gone, with all this.
    Removed(RequestId, Removed),
    /// The sandbox is dying, or in its groups; or the copy, the layer, the answer or the archive is made.
    Done(RequestId),
    /// It could not be done.
    Failed(RequestId, Failure),
}

/// What a workspace had written to a directory that was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Files, directories, links and whatever else has a name.
    pub files: u64,
    /// What the files took up on disk; that of one with several names once, with the last of them.
    pub bytes: u64,
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
            Self::Created(id) | Self::Removed(id, _) | Self::Done(id) | Self::Failed(id, _) => *id,
        }
    }
}
