//! What the API's objects look like, as far as the command line looks into them; the rest is kept
//! for `--json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use crate::cli::client::{AuthorArg, UpdateArg};
use crate::sys::terminal::Size;

/// What `GET /workspaces/{id}` tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Workspace {
    /// Its id.
    pub id: String,
    /// `running` or `stopped`.
    pub state: String,
    /// When it was made, in seconds since 1970.
    pub created: Number,
    /// How many execs are running.
    pub execs: u64,
    /// Digest of the layer that it started from.
    pub layer: String,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What a reset discarded and what the workspace now is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Receipt {
    /// The workspace.
    pub id: String,
    /// Digest of the layer that it is on.
    pub layer: String,
    /// What was discarded.
    pub discarded: Option<Discarded>,
    /// Wall time in microseconds.
    pub duration_us: u64,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What a reset discarded; what nobody knows is absent.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Discarded {
    /// Processes that were ended.
    pub processes: Option<u64>,
    /// Files and directories.
    pub files: Option<u64>,
    /// What these took up on disk.
    pub bytes: Option<u64>,
}

/// A workspace to be made.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Create {
    /// Its environment, on top of the config's.
    pub env: BTreeMap<String, String>,
    /// The snapshot that it starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Seconds until it is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<f64>,
    /// Seconds without a use until it is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<f64>,
}

/// What a list tells of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// What it was called.
    #[serde(default)]
    pub label: Option<String>,
    /// The workspace that it was taken of; none if it was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// When, in seconds since 1970.
    pub created: f64,
    /// What else the provider tells.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// How many more workspaces can be made now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Capacity {
    /// That number.
    pub more: u64,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// How long a workspace is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lease {
    /// When it is removed unless it is renewed, in seconds since 1970.
    pub expires: f64,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What to fetch.
#[derive(Debug, Clone, Serialize)]
pub struct Fetch {
    /// The path of the one repository that is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A branch, a tag or a commit of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// What becomes of what is checked out.
    pub update: UpdateArg,
}

/// What a fetch did to one repository.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FetchedRepository {
    /// Its path in the workspace.
    pub path: String,
    /// The reference that was followed.
    pub reference: String,
    /// Commit that it was at, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_commit: Option<String>,
    /// Commit that it is at now.
    pub new_commit: String,
    /// Commit that is checked out after an update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// Why what is checked out was not updated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_updated: Option<String>,
    /// Its submodules, and theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub submodules: Vec<FetchedSubmodule>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What a fetch did to a submodule.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FetchedSubmodule {
    /// Its path in the workspace.
    pub path: String,
    /// Commit that its repository named before, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_commit: Option<String>,
    /// Commit that its repository names now.
    pub new_commit: String,
    /// Commit that is checked out after an update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// Why its commits did not come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_fetched: Option<String>,
    /// Why what is checked out was not updated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_updated: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What to make a commit of.
#[derive(Debug, Clone, Serialize)]
pub struct Commit {
    /// The repository in the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What the commit says.
    pub message: String,
    /// Whose it is.
    pub author: AuthorArg,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
}

/// What became of a commit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Committed {
    /// The repository in the workspace.
    pub path: String,
    /// The branch that is checked out.
    pub branch: Option<String>,
    /// The commit; none where nothing was changed.
    pub commit: Option<String>,
    /// Files that it changes.
    pub files: u64,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What to push.
#[derive(Debug, Clone, Serialize)]
pub struct Push {
    /// The repository in the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A branch of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The branch of the upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// What a push did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pushed {
    /// The repository in the workspace.
    pub path: String,
    /// The branch of the upstream.
    pub branch: String,
    /// The commit that it was at; none where it was not there.
    pub old_commit: Option<String>,
    /// The commit that it is at.
    pub new_commit: String,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A command to be started.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Start {
    /// The program and its arguments; this or `cmd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// A line for the shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// Where it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Its environment, on top of the workspace's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Who it runs as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Value>,
    /// Whether it has a stdin; that of a terminal is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Stdin>,
    /// The size of its terminal, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<WireSize>,
    /// Its deadline, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// Bytes of each stream that are kept for who reads it late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_limit: Option<u64>,
}

/// A command's stdin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// There is none.
    #[default]
    None,
    /// It takes bytes.
    Open,
    /// It takes no more.
    Closed,
}

/// The size of a terminal, in the API's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WireSize {
    rows: u16,
    cols: u16,
}

impl From<Size> for WireSize {
    fn from(size: Size) -> Self {
        Self {
            rows: size.rows,
            cols: size.columns,
        }
    }
}

/// An exec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exec {
    /// Its id.
    pub id: String,
    /// `running` or `ended`.
    pub state: String,
    /// The program and its arguments; or there is `cmd`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// The line for the shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it takes input.
    pub stdin: Stdin,
    /// When it began, in seconds since 1970.
    pub started: f64,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The same as a shell reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// What it printed to stdout, or to its terminal.
    pub stdout: Printed,
    /// What it printed to stderr.
    pub stderr: Printed,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Exec {
    /// Where in the stream of both the next byte will be.
    #[must_use]
    pub fn printed(&self) -> u64 {
        self.stdout.bytes.saturating_add(self.stderr.bytes)
    }
}

/// How an exec ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// `exited`, `signaled`, `deadline`, `killed`, `reset`, `removed` or `lost`.
    pub kind: String,
    /// More about it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// How much an exec printed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Printed {
    /// All of it.
    pub bytes: u64,
    /// What of it was not kept.
    pub omitted: u64,
}

/// A stream of an exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output, or its terminal.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// Something in a directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Its name, or what of it is text.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Length in bytes.
    pub size: u64,
    /// Permission bits, as four octal digits.
    pub mode: String,
    /// Its owner, as the workspace numbers users.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was last changed, in seconds since 1970.
    pub mtime: f64,
    /// What it is a link to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Entry {
    /// The permission bits; none where the mode is no octal number.
    #[must_use]
    pub fn permissions(&self) -> u32 {
        u32::from_str_radix(&self.mode, 8).unwrap_or_default() & 0o7777
    }
}

/// What something in a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
}

impl Kind {
    /// The letter that ls(1) has for it.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::File => '-',
            Self::Directory => 'd',
            Self::Symlink => 'l',
            Self::Fifo => 'p',
            Self::Socket => 's',
            Self::BlockDevice => 'b',
            Self::CharDevice => 'c',
        }
    }
}

/// A part of a directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Page {
    /// Some of what it holds.
    pub entries: Vec<Entry>,
    /// Where the rest begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
