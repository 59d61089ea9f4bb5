//! Why there is no stack, told apart for who asked for it.

use std::io;
use std::path::PathBuf;

use super::host::BaseError;
use super::tarball::TarballError;
use crate::git::GitError;
use crate::pool::files::FileError;
use crate::pool::{SandboxError, SpawnerError, is_full};

/// Why there is no stack.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The setup script failed; nothing was kept.
    #[error("the setup script ended with exit code {exit_code}")]
    Script {
        /// As a shell would report it.
        exit_code: i32,
        /// The end of what it printed.
        output: String,
    },
    /// A repository could not be brought in.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A command of git inside the sandbox failed.
    #[error("git in the sandbox could not take in {path}: {output}", path = .path.display())]
    GitInside {
        /// Where the repository is in the workspace.
        path: PathBuf,
        /// What git said.
        output: String,
    },
    /// The repository is there without its history.
    #[error("nothing can be fetched into {path}: the config has it with history \"none\"", path = .path.display())]
    NoHistory {
        /// Where the repository is in the workspace.
        path: PathBuf,
    },
    /// A checkout cannot be put in its place.
    #[error("cannot put the repository at {path}: {reason}", path = .path.display())]
    Checkout {
        /// Where it was to be in the workspace.
        path: PathBuf,
        /// What was wrong there.
        reason: String,
    },
    /// The working directory cannot be made.
    #[error("cannot make the workdir {path}: {output}", path = .path.display())]
    Workdir {
        /// As the config has it.
        path: PathBuf,
        /// What `mkdir` said.
        output: String,
    },
    /// The archive of the base is not what it should be.
    #[error("cannot unpack the base: {0}")]
    Archive(String),
    /// The archive of a snapshot is not what it should be.
    #[error("cannot take the snapshot in: {0}")]
    Snapshot(String),
    /// The base cannot be used.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The archive of the base cannot be used.
    #[error(transparent)]
    Tarball(#[from] TarballError),
    /// The disk, or its inodes, are full.
    #[error("no space left: {0}")]
    NoSpace(String),
    /// The sandbox that was to make a layer failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A file of that sandbox could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It could not be started.
    #[error(transparent)]
    Spawner(#[from] SpawnerError),
    /// The host failed.
    #[error("{attempt}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl SetupError {
    /// Whether the disk, its inodes or a quota are full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace(_) => true,
            Self::Git(error) => error.is_no_space(),
            Self::Spawner(error) => error.is_no_space(),
            Self::Sandbox(error) => error.is_no_space(),
            Self::File(error) => error.is_no_space(),
            Self::Host { source, .. } => is_full(source),
            _ => false,
        }
    }

    /// Turns an error of the host's into one that says what was attempted.
    pub(super) fn host(attempt: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Host { attempt, source }
    }
}
