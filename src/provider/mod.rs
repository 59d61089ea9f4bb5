//! What a provisioning mode must do, in the words of the API; and the modes.
//!
//! A front end knows only this: it can send these calls and has no other way in.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

pub use crate::workspace::WorkspaceId;

pub mod ns;

/// A provisioning mode.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Makes a workspace on the setup layer, setting up first if no layer is there yet.
    ///
    /// `env` is the workspace's own environment, on top of the config's.
    async fn create(&self, env: BTreeMap<String, String>) -> Result<WorkspaceId, Error>;
    /// All workspaces, oldest first.
    fn list(&self) -> Vec<WorkspaceId>;
    /// State, layer, enforcement and execs of one workspace.
    fn describe(&self, id: &WorkspaceId) -> Result<Description, Error>;
    /// Ends a workspace; `false` if there was none. Its files are disposed of in the background.
    async fn remove(&self, id: &WorkspaceId) -> Result<bool, Error>;
    /// Runs one command to its end.
    async fn run(&self, id: &WorkspaceId, command: Command) -> Result<Finished, Error>;
    /// Replaces the file at `target` by `content`, making parent directories; atomic.
    async fn write_file(
        &self,
        id: &WorkspaceId,
        target: FilePath,
        content: FileContent,
    ) -> Result<(), Error>;
    /// Opens the regular file at `source` for reading.
    async fn read_file(&self, id: &WorkspaceId, source: FilePath) -> Result<OpenFile, Error>;
    /// Returns the workspace to exactly the state after setup.
    async fn reset(&self, id: &WorkspaceId) -> Result<Receipt, Error>;
    /// Brings new upstream commits into the workspace's repositories as remote-tracking references.
    async fn fetch(&self, id: &WorkspaceId) -> Result<Vec<Fetched>, Error>;
    /// What this provider enforces on this host, for `/health`.
    fn enforcement(&self) -> serde_json::Value;
    /// Ends every sandbox and waits for it; workspaces stay on disk.
    async fn shutdown(&self);
}

/// The bytes for a `write_file`, read on a blocking thread.
pub type FileContent = Box<dyn std::io::Read + Send>;

/// A path in a workspace as the caller gave it; resolved inside, never on the host.
#[derive(Debug, Clone)]
pub struct FilePath {
    /// The file; relative to `working_dir` if not absolute.
    pub path: String,
    /// Relative to the config's `workdir` if not absolute; `workdir` itself if absent.
    pub working_dir: Option<String>,
}

/// An opened regular file of a workspace.
#[derive(Debug)]
pub struct OpenFile {
    /// At offset 0, read-only.
    pub file: std::fs::File,
    /// Size in bytes when it was opened; no more than that is to be sent.
    pub size: u64,
}

/// A command line for the workspace's shell.
#[derive(Debug, Clone)]
pub struct Command {
    /// Given to `bash -c` where the base has bash, else to `sh -c`.
    pub cmd: String,
    /// Relative to the config's `workdir` if not absolute; `workdir` itself if absent.
    pub working_dir: Option<String>,
    /// On top of the config's and the workspace's environment.
    pub env: BTreeMap<String, String>,
    /// When it passes, the command's whole process tree is killed.
    pub timeout: Option<Duration>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// It exited by itself.
    Exited {
        /// 0 to 255.
        code: i32,
    },
    /// A signal ended it that derrick did not send.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// Its timeout passed and derrick killed its process tree.
    Deadline,
}

impl Outcome {
    /// As a shell would report it: the exit code, 128 + signal, or 124 for a deadline.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Exited { code } => *code,
            Self::Signaled { signal } => 128 + signal,
            Self::Deadline => 124,
        }
    }
}

/// A command that ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// stdout and stderr, interleaved as written; the first and last part if there was too much.
    pub output: Vec<u8>,
    /// Bytes left out of the middle of `output`; 0 if it is whole.
    pub omitted: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// What `GET /workspaces/{id}` tells.
#[derive(Debug, Clone, Serialize)]
pub struct Description {
    /// The workspace.
    pub id: WorkspaceId,
    /// `running`, or `stopped` when its processes are gone (after a restart of the provider); the next command starts it again on its files.
    pub state: State,
    /// Why it is stopped, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_detail: Option<String>,
    /// Digest of the setup layer that it started from.
    pub layer: String,
    /// The end of what the setup script printed, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_output: Option<String>,
    /// When it was made, seconds since 1970.
    pub created: u64,
    /// Execs under way.
    pub execs: usize,
    /// What is enforced on it; what is weaker here than asked, and why.
    pub enforcement: serde_json::Value,
}

/// Whether a workspace has a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has one.
    Running,
    /// It has none; files are there.
    Stopped,
}

/// What a reset discarded and what the workspace now is.
#[derive(Debug, Clone, Serialize)]
pub struct Receipt {
    /// The workspace.
    pub id: WorkspaceId,
    /// Digest of the layer that it is on.
    pub layer: String,
    /// Entries in its upper; 0.
    pub upper_entries: u64,
    /// Processes that were killed, init not counted.
    pub processes_killed: u64,
    /// Wall time in microseconds.
    pub duration_us: u64,
}

/// What a fetch did to one repository.
#[derive(Debug, Clone, Serialize)]
pub struct Fetched {
    /// Its URL, without credentials.
    pub url: String,
    /// Its path in the workspace.
    pub path: PathBuf,
    /// The reference that was followed.
    pub reference: String,
    /// Commit that the workspace's remote-tracking reference was at.
    pub old_commit: String,
    /// Commit that it is at now.
    pub new_commit: String,
}

/// Why a call could not be done. Front ends turn the kind into a status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such workspace.
    #[error("there is no workspace {0}")]
    NoSuchWorkspace(String),
    /// There is no such file, or a part of its path is missing.
    #[error("{0}")]
    NoSuchFile(String),
    /// The caller asked for something that cannot be: a directory read as a file, a missing working directory, a NUL in a path.
    #[error("{0}")]
    Invalid(String),
    /// The workspace's own permissions forbid it.
    #[error("{0}")]
    Forbidden(String),
    /// Something else happened to the workspace meanwhile: it was reset or removed.
    #[error("{0}")]
    Conflict(String),
    /// The setup script failed; nothing was cached.
    #[error("the setup script ended with exit code {exit_code}")]
    SetupFailed {
        /// As a shell would report it.
        exit_code: i32,
        /// The end of what it printed.
        output: String,
    },
    /// A repository could not be brought in: refused credentials, no such reference, host not reachable.
    #[error("{0}")]
    Repository(String),
    /// The disk, its inodes or the workspace's quota are full.
    #[error("{0}")]
    NoSpace(String),
    /// derrick or the host failed.
    #[error("{0}")]
    Host(String),
}
