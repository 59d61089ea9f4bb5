//! What a provisioning mode must do, in the words of the API; and the modes.
//!
//! A front end knows only this: it can send these calls and has no other way in.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use utoipa::ToSchema;

pub use crate::base::SetupReceipt;
pub use crate::base::collect::{Bounds, Collected, Kept, Mode};
pub use crate::config::{Limits as LimitsAsked, MOST_OUTPUT, Requests as RequestsAsked};
use crate::init::protocol::Room;
pub use crate::init::protocol::Target;
pub use crate::pool::exec::{Stream, Streams};
use crate::sandbox;
use crate::sandbox::cgroups::{self, Counters};
pub use crate::sys::terminal::Size;
pub use crate::tally::Durations;
pub use crate::workspace::Asked as NewWorkspace;
pub use crate::workspace::execs::log;
pub use crate::workspace::execs::{
    Asked, ExecState, Input, InvalidExecId, Key, Novelty, StdinState,
};
pub use crate::workspace::fetch::Update;
pub use crate::workspace::sessions::{
    Ran, Session, SessionRecord, check_name as check_session_name,
};
pub use crate::workspace::{
    Discarded, Event, EventId, Events, Exec, ExecError, ExecId, ExecRecord, Headroom, InUse,
    InvalidEventId, Latitude, Lease, LeaseAsked, Level, LimitsChange, Next, Outcome, Patch, Told,
    Verify, WorkspaceId,
};

pub mod changes;
pub mod files;
pub mod ns;
pub mod push;
pub mod snapshots;

/// A provisioning mode.
#[async_trait]
pub trait Provider:
    changes::ShowChanges + files::Files + push::HandOut + snapshots::Snapshots + Send + Sync + 'static
{
    /// Makes a workspace on the setup layer, setting up first if no layer is there yet.
    ///
    /// What `asked` says comes on top of the config.
    async fn create(&self, asked: NewWorkspace) -> Result<WorkspaceId, Error>;
    /// All workspaces, oldest first.
    fn list(&self) -> Vec<WorkspaceId>;
    /// The name that a workspace belongs to, if it belongs to one.
    fn owner(&self, id: &WorkspaceId) -> Result<Option<String>, Error>;
    /// State, layer, enforcement and execs of one workspace.
    async fn describe(&self, id: &WorkspaceId) -> Result<Description, Error>;
    /// Ends a workspace; `false` if there was none. Its files are disposed of in the background.
    async fn remove(&self, id: &WorkspaceId) -> Result<bool, Error>;
    /// Has the time to live of a workspace begin anew, with another length if one is given.
    async fn renew(
        &self,
        id: &WorkspaceId,
        ttl: Option<Duration>,
        latitude: Latitude,
    ) -> Result<Lease, Error>;
    /// Counts as a use of a workspace until what this gives is dropped; nothing where there is none.
    fn begin_use(&self, _id: &WorkspaceId) -> Option<InUse> {
        None
    }
    /// Starts one command, unless its key says that it was started before; answers when it runs.
    async fn start(
        &self,
        id: &WorkspaceId,
        command: Command,
    ) -> Result<(Arc<Exec>, Novelty), Error>;
    /// The commands that a workspace knows, oldest first.
    fn execs(&self, id: &WorkspaceId) -> Result<Vec<ExecRecord>, Error>;
    /// One command of a workspace.
    fn exec(&self, id: &WorkspaceId, exec: ExecId) -> Result<Arc<Exec>, Error>;
    /// Starts a session; of the command, where, as whom and with what environment counts.
    async fn start_session(
        &self,
        id: &WorkspaceId,
        name: String,
        command: Command,
    ) -> Result<SessionRecord, Error>;
    /// The sessions of a workspace, by name.
    fn sessions(&self, id: &WorkspaceId) -> Result<Vec<SessionRecord>, Error>;
    /// One session of a workspace.
    fn session(&self, id: &WorkspaceId, name: &str) -> Result<Arc<Session>, Error>;
    /// Runs a command line in a session, to its end.
    async fn run_in_session(
        &self,
        id: &WorkspaceId,
        name: &str,
        line: String,
        timeout: Option<Duration>,
    ) -> Result<Ran, Error>;
    /// Ends a session; `false` if there was none.
    async fn remove_session(&self, id: &WorkspaceId, name: &str) -> Result<bool, Error>;
    /// What happens to a workspace.
    fn events(&self, id: &WorkspaceId) -> Result<Arc<Events>, Error>;
    /// Runs one command to its end, and answers with what it printed to stdout and stderr.
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
    /// Returns the workspace to exactly the state that it started from, or to that of a snapshot.
    async fn reset(&self, id: &WorkspaceId, wish: ResetWish) -> Result<Receipt, Error>;
    /// Changes what the workspace may use and is to get, also of what runs.
    async fn change_limits(
        &self,
        id: &WorkspaceId,
        change: LimitsChange,
    ) -> Result<Description, Error>;
    /// Stops all processes of the workspace, and has nothing started in it, until it is resumed.
    async fn pause(&self, id: &WorkspaceId) -> Result<Description, Error>;
    /// Has the processes of a paused workspace go on.
    async fn resume(&self, id: &WorkspaceId) -> Result<Description, Error>;
    /// Brings new upstream commits into the workspace's repositories as remote-tracking references, and updates
    /// what is checked out as far as that is wanted.
    async fn fetch(&self, id: &WorkspaceId, wish: FetchWish) -> Result<Vec<Fetched>, Error>;
    /// What this provider enforces on this host, for `/health`.
    fn enforcement(&self) -> serde_json::Value;
    /// How many more workspaces can be made now.
    async fn capacity(&self) -> Result<Capacity, Error>;
    /// What is in the layer store, and who uses it; what was used last comes first.
    async fn layers(&self) -> Result<Vec<Kept>, Error>;
    /// Removes layers and mirrors that nothing uses, or tells which would go.
    async fn collect(&self, bounds: Bounds, mode: Mode) -> Result<Collected, Error>;
    /// What it counts, for `/metrics`; reads a directory, so not for where that must not block.
    fn figures(&self) -> Figures;
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

/// A command to start.
#[derive(Debug)]
pub struct Command {
    /// A line for bash where the base has bash, else for sh; or a program and its arguments.
    pub asked: Asked,
    /// Relative to the config's `workdir` if not absolute; `workdir` itself if absent.
    pub working_dir: Option<String>,
    /// On top of the config's and the workspace's environment.
    pub env: BTreeMap<String, String>,
    /// The name or number of a user of the workspace; the config's if absent.
    pub user: Option<String>,
    /// The size of its terminal, if it is to have one.
    pub terminal: Option<Size>,
    /// What it reads.
    pub input: Input,
    /// Whether stdout and stderr are told apart.
    pub streams: Streams,
    /// When it passes, the command's whole process tree is killed.
    pub timeout: Option<Duration>,
    /// Bytes that are kept of each stream; as many as is usual if absent.
    pub output_limit: Option<u64>,
    /// What keeps it from being started a second time.
    pub key: Option<Key>,
    /// What is done after its end.
    pub after: AfterEnd,
}

/// What is done after the end of a command, before that is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterEnd {
    /// Nothing.
    Nothing,
    /// A snapshot of the workspace is taken.
    Snapshot,
}

impl Command {
    /// A command that reads nothing, in `workdir`, as the config's user, until it ends by itself.
    #[must_use]
    pub fn new(asked: Asked) -> Self {
        Self {
            asked,
            working_dir: None,
            env: BTreeMap::new(),
            user: None,
            terminal: None,
            input: Input::Nothing,
            streams: Streams::Apart,
            timeout: None,
            output_limit: None,
            key: None,
            after: AfterEnd::Nothing,
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
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Description {
    /// The workspace.
    pub id: WorkspaceId,
    /// `running`; `paused` while its processes stand still; `fenced` once it was, until it is reset; or `stopped` when they are gone (after a restart of the provider): the next command starts it again on its files.
    pub state: State,
    /// Why it is stopped, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_detail: Option<String>,
    /// What holds its processes, where it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<Brake>,
    /// The name of the token that it was made with, if that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Digest of the layer that it is on: of setup, or of a snapshot.
    pub layer: String,
    /// The snapshot that it is on, if it is on one; what it became, where it is fenced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<snapshots::SnapshotId>,
    /// When it is to be fenced, seconds since 1970, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence_at: Option<f64>,
    /// The end of what the setup script printed, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_output: Option<String>,
    /// What the setup built on whose layer it is on, if it is on one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup: Option<SetupReceipt>,
    /// When it was made, seconds since 1970.
    pub created: u64,
    /// Execs under way.
    pub execs: usize,
    /// What it may use; nothing in it where that is not limited.
    pub limits: Limits,
    /// What it is to get where others want it as well.
    #[serde(skip_serializing_if = "Requests::is_none")]
    pub requests: Requests,
    /// Limits that were changed and hold as they are told from the next start of its processes on only, as after a reset: sizes of `/dev/shm` and `/tmp`, `disk` and `inodes` from the next reset, and `memory` where it was not limited before, which leaves out what was in use then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub pending: Vec<&'static str>,
    /// How long it is kept.
    #[serde(flatten)]
    pub lease: Lease,
    /// What they use now, as far as the kernel counts that; absent where nothing is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What is enforced on it; what is weaker here than asked, and why.
    #[schema(value_type = Object)]
    pub enforcement: serde_json::Value,
}

/// Whether a workspace has a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has one.
    Running,
    /// It has one whose processes stand still.
    Paused,
    /// It has none, and gets none before it is reset.
    Fenced,
    /// It has none; files are there.
    Stopped,
}

/// What holds the processes of a paused workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Brake {
    /// The freezer of its control group: nobody inside notices it, or can have anything go on.
    Freezer,
    /// SIGSTOP, sent to all of them at once: it shows to their parents, and what sends SIGCONT at just that moment may have others go on.
    Signals,
}

/// What a workspace may use; what is absent is not limited.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
#[schema(as = LimitsInForce)]
pub struct Limits {
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processors' worth of time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Processes and threads at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Open files of each process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    /// Bytes of files in `/dev/shm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm: Option<u64>,
    /// Bytes of files in `/tmp`, which is in memory then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmp: Option<u64>,
    /// Bytes that are kept of each stream of a command, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<u64>,
    /// Commands and sessions at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execs: Option<u32>,
    /// Bytes that the workspace may write and keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Files and directories that it may make and keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
}

impl From<sandbox::Limits> for Limits {
    fn from(limits: sandbox::Limits) -> Self {
        let sandbox::Limits {
            memory,
            cpus,
            pids,
            open_files,
            shm,
            tmp,
            output,
            execs,
            disk,
            inodes,
        } = limits;
        Self {
            memory,
            cpus,
            pids,
            open_files,
            shm,
            tmp,
            output,
            execs,
            disk,
            inodes,
        }
    }
}

/// What a workspace is to get where others want it as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
#[schema(as = RequestsInForce)]
pub struct Requests {
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processors' worth of time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
}

impl Requests {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl From<sandbox::Requests> for Requests {
    fn from(requests: sandbox::Requests) -> Self {
        let sandbox::Requests { memory, cpus } = requests;
        Self { memory, cpus }
    }
}

/// What the processes of a workspace use, all together, since their sandbox was started.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct Usage {
    /// Bytes of memory now, the page cache included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Bytes of memory at its peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// Processes and threads now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Times that the kernel refused one because of the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_refused: Option<u64>,
    /// Time on processors, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Time that was waited for because of the limit, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<f64>,
    /// Bytes that are written on a disk of the workspace's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Files and directories on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// Periods, of 100 ms each, in which something waited because of the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_periods: Option<u64>,
    /// How short memory, processors and input and output were, where the kernel measures it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressures>,
}

/// How many more workspaces can be made now.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Capacity {
    /// What there is room for.
    #[serde(flatten)]
    pub room: Headroom,
    /// How short the host is of what its processes want, as far as the kernel tells.
    pub pressure: Pressures,
}

/// How short memory, processors and input and output were: pressure stall information.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Pressures {
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Pressure>,
    /// Processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Pressure>,
    /// Input and output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Pressure>,
}

/// How short one of them was.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Pressure {
    /// While some waited for it.
    pub some: Stall,
    /// While all waited for it that could have worked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<Stall>,
}

/// Time that was waited.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Stall {
    /// Percent of the last ten seconds.
    pub avg10: f64,
    /// In all, in seconds.
    pub total: f64,
}

impl From<cgroups::Pressures> for Pressures {
    fn from(pressures: cgroups::Pressures) -> Self {
        let stall = |stall: cgroups::Stall| Stall {
            avg10: stall.avg10,
            total: stall.total.as_secs_f64(),
        };
        let one = |pressure: cgroups::Pressure| Pressure {
            some: stall(pressure.some),
            full: pressure.full.map(stall),
        };
        Self {
            memory: pressures.memory.map(one),
            cpu: pressures.cpu.map(one),
            io: pressures.io.map(one),
        }
    }
}

impl Pressures {
    /// Those of the host.
    #[must_use]
    pub fn of_host() -> Self {
        let read = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/pressure/{name}"));
            cgroups::Pressure::parse(&text.unwrap_or_default())
        };
        let pressures = cgroups::Pressures {
            memory: read("memory"),
            cpu: read("cpu"),
            io: read("io"),
        };
        pressures.into()
    }
}

impl Usage {
    /// From what the kernel counts, and how full the workspace's own disk is, where it has one.
    #[must_use]
    pub fn new(counters: Option<Counters>, room: Option<Room>) -> Option<Self> {
        if counters.is_none() && room.is_none() {
            return None;
        }
        let counters = counters.unwrap_or_default();
        Some(Self {
            memory: counters.memory,
            peak_memory: counters.peak_memory,
            // Init is not the workspace's.
            pids: counters.pids.map(|count| count.saturating_sub(1)),
            pids_refused: counters.pids_refused,
            cpu: counters.cpu.map(|time| time.as_secs_f64()),
            throttled: counters.throttled.map(|time| time.as_secs_f64()),
            throttled_periods: counters.throttled_periods,
            pressure: (counters.pressure != cgroups::Pressures::default())
                .then(|| counters.pressure.into()),
            disk: room.map(|room| room.bytes),
            inodes: room.map(|room| room.inodes),
        })
    }
}

/// What a reset discarded and what the workspace now is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Receipt {
    /// The workspace.
    pub id: WorkspaceId,
    /// Digest of the layer that it is on.
    pub layer: String,
    /// Counts the resets of the workspace.
    pub generation: u64,
    /// Entries in its upper; 0.
    pub upper_entries: u64,
    /// Processes of before that run in it; 0.
    pub processes_surviving: u64,
    /// What was discarded, if that was waited for; the event `disposed` tells it in any case.
    pub discarded: Option<Discarded>,
    /// What was compared, contents included, if that was asked for.
    pub verified: Option<Verified>,
    /// Of the wall time, what it waited for a pristine sandbox, or for others to be disposed of, in
    /// microseconds.
    pub waited_us: u64,
    /// Wall time in microseconds, the disposal not included.
    pub duration_us: u64,
}

/// What a workspace was found to show: the same as another sandbox on its layer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Verified {
    /// Files, directories, links and whatever else has a name.
    pub entries: u64,
    /// A digest of all of them.
    pub digest: String,
}

/// What is asked of a reset besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResetWish {
    /// Whether it is to wait until what was discarded is gone.
    pub wait_for_disposal: bool,
    /// How closely it is to look at what the workspace gets.
    pub verify: Verify,
    /// The snapshot to go to; what it was made in if absent.
    pub to: Option<snapshots::SnapshotId>,
}

/// What is wanted of a fetch.
#[derive(Debug, Clone, Default)]
pub struct FetchWish {
    /// The path of the one repository that is meant; all if absent.
    pub path: Option<PathBuf>,
    /// What to fetch of it; what the config says if absent.
    pub reference: Option<String>,
    /// What becomes of what is checked out.
    pub update: Update,
}

/// What a fetch did to one repository.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Fetched {
    /// Its URL, without credentials.
    pub url: String,
    /// Its path in the workspace.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// The reference that was followed.
    pub reference: String,
    /// Commit that the workspace's remote-tracking reference was at. Of what is not the config's own reference
    /// it is what the workspace says, and absent where that knew none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_commit: Option<String>,
    /// Commit that it is at now.
    pub new_commit: String,
    /// After an update: commit that is checked out, as the workspace says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// Why what is checked out was not updated, in the words of the workspace's own git.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_updated: Option<String>,
    /// Its submodules, and theirs, each after the one that it belongs to; absent where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub submodules: Vec<FetchedSubmodule>,
}

/// What a fetch did to a submodule that the new commit names.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FetchedSubmodule {
    /// Its URL, without credentials.
    pub url: String,
    /// Its path in the workspace.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Commit that its repository named before, where that is known and it named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_commit: Option<String>,
    /// Commit that its repository names now.
    pub new_commit: String,
    /// After an update: commit that is checked out, as the workspace says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// Why its commits are not in the workspace; nothing of it was changed then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_fetched: Option<String>,
    /// Why what is checked out was not updated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_updated: Option<String>,
}

/// What a provider counts. What is counted over time begins with the process.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Workspaces that have a sandbox now.
    pub running: usize,
    /// Workspaces that have none.
    pub stopped: usize,
    /// Creates that wait for a place.
    pub waiting: usize,
    /// Execs under way.
    pub execs: usize,
    /// Execs that ended, by the word of each [`Outcome`].
    pub outcomes: Vec<(&'static str, u64)>,
    /// Workspaces that were removed, by the word for why.
    pub removals: Vec<(&'static str, u64)>,
    /// How long execs took.
    pub exec_durations: Durations,
    /// Bytes that they printed, and that they were given as stdin.
    pub exec_bytes: (u64, u64),
    /// How long workspaces took to be made.
    pub create_durations: Durations,
    /// How long resets took.
    pub reset_durations: Durations,
    /// Sandboxes that were started, those that made layers and those in the pool included.
    pub sandboxes: u64,
    /// Pristine sandboxes that were not what they should have been.
    pub quarantined: u64,
    /// What is in the pool.
    pub pool: Level,
    /// Layers on disk; none where they cannot be listed.
    pub layers: Option<usize>,
    /// What they take up, as far as it was counted; none where they cannot be listed.
    pub layer_bytes: Option<u64>,
    /// Layers and mirrors that were removed because nothing used them, and the bytes of both.
    pub collected: (u64, u64, u64),
    /// What is enforced on sandboxes, by short names.
    pub enforcement: Vec<(&'static str, String)>,
    /// How many things are weaker on this host than asked.
    pub weaker: usize,
}

/// Why a call could not be done. Front ends turn the kind into a status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such workspace.
    #[error("there is no workspace {0}")]
    NoSuchWorkspace(String),
    /// There is no such exec.
    #[error("{0}")]
    NoSuchExec(String),
    /// There is no such session.
    #[error("{0}")]
    NoSuchSession(String),
    /// There is a session of that name.
    #[error("{0}")]
    SessionExists(String),
    /// A command runs in the session.
    #[error("{0}")]
    SessionBusy(String),
    /// The session has ended.
    #[error("{0}")]
    SessionEnded(String),
    /// There are as many as there may be.
    #[error("{0}")]
    TooMany(String),
    /// More of a command's output is to be kept than may be.
    #[error("{text}")]
    TooMuchOutput {
        /// How much may be, in bytes.
        most: u64,
        /// For people.
        text: String,
    },
    /// The exec has ended.
    #[error("{0}")]
    ExecEnded(String),
    /// The exec has no terminal.
    #[error("{0}")]
    NoTerminal(String),
    /// The exec's stdin takes nothing more.
    #[error("{0}")]
    StdinClosed(String),
    /// What an idempotency key started was forgotten.
    #[error("{0}")]
    ExecForgotten(String),
    /// An idempotency key was used for another request.
    #[error("{0}")]
    KeyReused(String),
    /// There is no such file, or a part of its path is missing.
    #[error("{0}")]
    NoSuchFile(String),
    /// The caller asked for something that cannot be: a missing working directory, a NUL in a path.
    #[error("{0}")]
    Invalid(String),
    /// The file is a directory.
    #[error("{0}")]
    NotAFile(String),
    /// The file, or a part of its path, is no directory.
    #[error("{0}")]
    NotADirectory(String),
    /// The file is a pipe, a socket, a device, or one that the kernel makes up.
    #[error("{0}")]
    NotRegular(String),
    /// The directory is not empty.
    #[error("{0}")]
    NotEmpty(String),
    /// Something is there already.
    #[error("{0}")]
    Exists(String),
    /// The workspace's own permissions forbid it.
    #[error("{0}")]
    Forbidden(String),
    /// Something else happened to the workspace meanwhile: it was reset or removed.
    #[error("{0}")]
    Conflict(String),
    /// The workspace is paused.
    #[error("{0}")]
    Paused(String),
    /// The workspace is fenced.
    #[error("{0}")]
    Fenced(String),
    /// There is no such snapshot.
    #[error("{0}")]
    NoSuchSnapshot(String),
    /// Something builds on the snapshot.
    #[error("{0}")]
    SnapshotInUse(String),
    /// There is no room for one more snapshot on those below it.
    #[error("{0}")]
    TooDeep(String),
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
    /// Git in the workspace did not do what it was asked for.
    #[error("{0}")]
    GitFailed(String),
    /// The config does not allow that push.
    #[error("{0}")]
    PushNotAllowed(String),
    /// The workspace's commits are none that are passed on.
    #[error("{0}")]
    CommitsRefused(String),
    /// The upstream refused them.
    #[error("{0}")]
    PushRefused(String),
    /// A limit that was asked for is not enforced on this host.
    #[error("{0}")]
    LimitUnenforceable(String),
    /// The disk, its inodes or the workspace's quota are full.
    #[error("{0}")]
    NoSpace(String),
    /// derrick or the host failed.
    #[error("{0}")]
    Host(String),
}
