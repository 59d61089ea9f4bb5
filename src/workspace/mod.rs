//! A workspace: what the user holds. An id, its sandbox, its execs and its files.
//!
//! It outlives its sandboxes: a reset gives it a new one, a restart of the provider leaves it without
//! until the next command. One change of sandbox at a time; commands and files go beside each other.

mod admission;
pub mod bundle;
mod capacity;
mod changes;
pub mod commit;
mod events;
pub mod execs;
mod fence;
pub mod fetch;
mod files;
mod id;
mod lease;
mod limits;
mod memory;
mod one;
mod pause;
mod pool;
mod push;
mod record;
pub mod sessions;
mod snapshots;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

pub use crate::pool::stock::Level;
pub use admission::Shortage;
pub use capacity::{Basis, DiskRoom, Headroom, MemoryRoom, Places, RangeRoom};
pub use changes::Telling;
pub use events::{Event, EventId, Events, InvalidEventId, Next, Told};
pub use execs::{Exec, ExecError, ExecId, ExecRecord, Outcome};
pub use fence::Fence;
pub use files::FileTarget;
pub use id::{InvalidId, WorkspaceId};
pub use lease::{InUse, Lease, LeaseAsked, Why};
pub use limits::{InForce, Latitude, LimitsChange, Patch};
pub use one::{Asked, Launch, Reset, Verify, Workspace};
pub use pool::{Discarded, Serving};
pub use snapshots::{InvalidSnapshotId, Snapshot, SnapshotId, StartingPoint, Taken, Way};

use crate::base::collector::Collector;
use crate::base::{self, AskError, SetupError, Setups, collect};
use crate::config::WorkspaceConfig;
use crate::git::{NoBundle, PushError};
use crate::pool::files::FileError;
use crate::pool::{SandboxError, SpawnerError, is_full};
use crate::sandbox::cgroups::Unenforceable;
use crate::state::{State, Use};
use admission::{Admission, Place};
use memory::Memory;
use pool::Pool;
use record::Record;
use sessions::SessionError;
use snapshots::Snapshots;

/// Why something could not be done with a workspace.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// There is none of that id.
    #[error("there is no workspace {0}")]
    NotFound(WorkspaceId),
    /// A patch is relative to one of them.
    #[error("the workspace has several repositories: name the path of one")]
    SeveralRepositories,
    /// Its own git did not do what it was asked for.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// Its own git made something else than a bundle.
    #[error(transparent)]
    NoBundle(#[from] NoBundle),
    /// A repository of it has no branch and no tag of this name.
    #[error("the repository at {path} has no branch and no tag {reference:?}", path = .path.display())]
    NoSuchReference {
        /// In the workspace.
        path: PathBuf,
        /// As it was asked for.
        reference: String,
    },
    /// Its commits were not pushed.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The config does not allow them to be.
    #[error("{}", not_allowed(path, to.as_deref(), allowed))]
    PushNotAllowed {
        /// In the workspace.
        path: PathBuf,
        /// The branch that was meant, if one was.
        to: Option<String>,
        /// What the config allows.
        allowed: Vec<String>,
    },
    /// Setup failed.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Its sandbox could not be started.
    #[error(transparent)]
    Spawner(#[from] SpawnerError),
    /// Its sandbox refused, or ended.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A command could not be started, or something not be done to it.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// Something could not be done with a session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Something could not be done with its files.
    #[error(transparent)]
    File(#[from] FileError),
    /// A limit is not enforced on this host.
    #[error(transparent)]
    Unenforceable(#[from] Unenforceable),
    /// A limit or a request cannot be beside the others.
    #[error("{object}.{field}: {reason}")]
    Unfit {
        /// `limits` or `requests`.
        object: &'static str,
        /// The field of it.
        field: Cow<'static, str>,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// It uses more memory than it is to be limited to.
    #[error("the workspace uses more memory just now; its limits are as they were")]
    MemoryInUse,
    /// Its processes could not all be moved to where they are limited.
    #[error("the workspace starts processes too fast to be limited; its limits are as they were")]
    ForksTooFast,
    /// There are as many as there may be.
    #[error("{shortage}{}", waiting_too(*waiting))]
    Full {
        /// What there is too little of.
        shortage: Shortage,
        /// Requests that wait.
        waiting: usize,
    },
    /// A sandbox that nobody has used yet has something in its upper.
    #[error("a sandbox that nobody has used had {0} entries in its upper; it was put away")]
    NotPristine(u64),
    /// A sandbox shows other files than another one on the same layer.
    #[error(
        "a new sandbox shows {found} files and directories, and not the same ones as another one of its layer, which \
             shows {expected}; it was put away"
    )]
    NotAsOthers {
        /// Entries of its tree.
        found: u64,
        /// Those of the other's.
        expected: u64,
    },
    /// It is to be kept for longer than the config has it.
    #[error("{field} goes beyond the config's {} s, which takes a token for everything", most.as_secs_f64())]
    TooLong {
        /// `ttl` or `idle_timeout`.
        field: &'static str,
        /// The config's.
        most: Duration,
    },
    /// It has no time to live that could be renewed.
    #[error("the workspace has no time to live; give it one with the field ttl")]
    Endless,
    /// Its processes stand still, and nothing is started in it.
    #[error("the workspace is paused; resume it first")]
    Paused,
    /// It is fenced, or its time has come.
    #[error(
        "the workspace is fenced: what was written until then is snapshot {0}; reset it, or start another one on that"
    )]
    Fenced(SnapshotId),
    /// There is no such snapshot.
    #[error("there is no snapshot {0}")]
    NoSnapshot(SnapshotId),
    /// Somebody builds on it.
    #[error("snapshot {id} is in use: {user} builds on it")]
    SnapshotInUse {
        /// The snapshot.
        id: SnapshotId,
        /// Who, for people.
        user: String,
    },
    /// It was taken where ids are given in another way.
    #[error(
        "snapshot {0} was taken while this host gave derrick other ids; its files cannot be used with these"
    )]
    OtherShape(SnapshotId),
    /// It cannot be told in an archive.
    #[error("snapshot {id} cannot be exported: {why}")]
    Unexportable {
        /// The snapshot.
        id: SnapshotId,
        /// What in it, and why.
        why: String,
    },
    /// An archive stands on another setup layer.
    #[error(
        "the snapshot stands on setup layer {wanted}, which is not here: workspaces start from {present}; serve the config that it was made with"
    )]
    OtherBase {
        /// That layer.
        wanted: String,
        /// The one that there is.
        present: base::Digest,
    },
    /// There is no room for one more layer.
    #[error(
        "the workspace stands on {0} layers, as many as derrick lets it; start from an earlier snapshot"
    )]
    TooDeep(usize),
    /// Something does not stop.
    #[error(
        "a process of the workspace does not stop: it is in a system call that does not end; nothing was snapshotted"
    )]
    Restless,
    /// It was reset, removed or stopped meanwhile.
    #[error("the workspace was reset or removed meanwhile, or the provider is ending")]
    Moved,
    /// The host failed.
    #[error("{attempt}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl WorkspaceError {
    /// Whether the disk, its inodes or a quota are full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Setup(error) => error.is_no_space(),
            Self::Ask(error) => error.is_no_space(),
            Self::Push(error) => matches!(error, PushError::Git(error) if error.is_no_space()),
            Self::NoBundle(NoBundle::Io(error)) => is_full(error),
            Self::Spawner(error) => error.is_no_space(),
            Self::Sandbox(error) => error.is_no_space(),
            Self::Exec(error) => error.is_no_space(),
            Self::File(error) => error.is_no_space(),
            Self::Host { source, .. } => is_full(source),
            Self::NotFound(_)
            | Self::NoBundle(NoBundle::Odd(_))
            | Self::NoSuchReference { .. }
            | Self::PushNotAllowed { .. }
            | Self::Session(_)
            | Self::Unenforceable(_)
            | Self::Unfit { .. }
            | Self::MemoryInUse
            | Self::ForksTooFast
            | Self::Full { .. }
            | Self::NotPristine(_)
            | Self::NotAsOthers { .. }
            | Self::TooLong { .. }
            | Self::Endless
            | Self::Paused
            | Self::Fenced(_)
            | Self::NoSnapshot(_)
            | Self::SnapshotInUse { .. }
            | Self::OtherShape(_)
            | Self::Unexportable { .. }
            | Self::OtherBase { .. }
            | Self::TooDeep(_)
            | Self::Restless
            | Self::SeveralRepositories
            | Self::Moved => false,
        }
    }

    fn host(attempt: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Host { attempt, source }
    }
}

fn not_allowed(path: &Path, to: Option<&str>, allowed: &[String]) -> String {
    let member = format!(
        "the member push of the config's repository at {}",
        path.display()
    );
    match (to, allowed) {
        (_, []) => format!("nothing may be pushed: {member} would allow it, as in [\"agents/*\"]"),
        (Some(to), allowed) => format!(
            "nothing may be pushed to {to:?}: {member} allows {}",
            allowed.join(", ")
        ),
        (None, _) => {
            "no branch is checked out: name one of the upstream with the field to".to_owned()
        }
    }
}

fn waiting_too(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => "; another request waits".to_owned(),
        count => format!("; {count} other requests wait"),
    }
}

/// All workspaces of one config. Clones share them.
#[derive(Debug, Clone)]
pub struct Workspaces {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Arc<WorkspaceConfig>,
    state: State,
    setups: Setups,
    pool: Pool,
    snapshots: Arc<Snapshots>,
    directory: PathBuf,
    usage: Use,
    all: Mutex<BTreeMap<WorkspaceId, Arc<Workspace>>>,
    /// Told of workspaces whose leases are to be looked at.
    to_keeper: mpsc::UnboundedSender<WorkspaceId>,
    keeper: OnceLock<AbortOnDropHandle<()>>,
    admission: Admission,
    /// Where a provider serves.
    collector: OnceLock<Collector>,
    /// Set when the provider is ending: nothing is started from then on.
    closed: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<WorkspaceId, Arc<Workspace>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes which layers are the present config's, for who collects those that are nobody's.
    fn note_present(&self, stack: Option<&base::Stack>) {
        if self.usage != Use::Serve {
            return;
        }
        match self.setups.note_present(stack) {
            Ok(true) => self.look_at_layers(),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot note which layers are in use"),
        }
    }

    /// Has it seen to that nothing is in the layer store that is not to be kept.
    fn look_at_layers(&self) {
        if let Some(collector) = self.collector.get() {
            collector.look();
        }
    }

    /// How much of the host's memory is to stay free, in bytes.
    fn memory_floor(&self, memory: &Memory) -> u64 {
        memory.floor(self.config.min_free_memory)
    }

    /// Ends a workspace and discards its files; `false` if there is none.
    async fn remove(self: &Arc<Self>, id: &WorkspaceId, why: Why) -> Result<bool, WorkspaceError> {
        let Some(workspace) = self.lock().get(id).cloned() else {
            return Ok(false);
        };
        let removed = workspace.remove(why).await?;
        self.lock().remove(id);
        admission::admit(self);
        self.look_at_layers();
        if removed {
            self.state.tally().removals.count(why.word());
        }
        Ok(removed)
    }
}

/// What the requests for memory of these come to, in bytes.
fn promised<'w>(workspaces: impl Iterator<Item = &'w Arc<Workspace>>) -> u64 {
    let requests = workspaces.filter_map(|one| one.lock_record().requests.memory);
    requests.fold(0, u64::saturating_add)
}

/// A workspace that was made.
#[derive(Debug)]
pub struct Made {
    /// It.
    pub workspace: Arc<Workspace>,
    /// Dropped when the answer is on its way: what the pool lacks now is made from then on.
    pub service: Serving,
}

/// What is asked for with a workspace that has a place.
#[derive(Debug)]
pub struct Admitted {
    asked: Asked,
    place: Place,
}

impl Workspaces {
    /// Resolves the config's base and finds the workspaces that are on disk, without sandboxes.
    ///
    /// # Errors
    /// Where the base cannot be used, or the state directory not be read.
    pub async fn open(
        config: Arc<WorkspaceConfig>,
        state: State,
        usage: Use,
    ) -> Result<Self, WorkspaceError> {
        let setups = Setups::open(Arc::clone(&config), &state).await?;
        let directory = state.workspaces(usage);
        let pool = Pool::new(&config, &state);
        let snapshots = Snapshots::open(state.path("snapshots"), usage, setups.store())
            .map_err(WorkspaceError::host("finding the snapshots on disk"))?;
        let disk = Disk {
            config: &config,
            state: &state,
            pool: &pool,
            snapshots: &snapshots,
            store: setups.store(),
        };
        let all = find(&directory, &disk)
            .map_err(WorkspaceError::host("finding the workspaces on disk"))?;
        let (to_keeper, told) = mpsc::unbounded_channel();
        for workspace in all.values() {
            workspace.tenure.begin(to_keeper.clone(), None);
        }
        let bounds = collect::Bounds::of(&config);
        let shared = Shared {
            collector: OnceLock::new(),
            config,
            state,
            setups,
            pool,
            snapshots: Arc::new(snapshots),
            directory,
            usage,
            all: Mutex::new(all),
            to_keeper,
            keeper: OnceLock::new(),
            admission: Admission::default(),
            closed: AtomicBool::new(false),
        };
        let shared = Arc::new(shared);
        shared.note_present(None);
        // Not before it is known what this config starts from.
        if usage == Use::Serve {
            let _ = shared
                .collector
                .set(Collector::start(&shared.state, bounds));
        }
        let keeper = tokio::spawn(lease::keep(Arc::downgrade(&shared), told));
        let _ = shared.keeper.set(AbortOnDropHandle::new(keeper));
        let this = Self { shared };
        for workspace in this.lock().values() {
            if let Some(fence) = workspace.fence() {
                this.watch(workspace, fence);
            }
        }
        if usage == Use::Serve {
            this.write_out_all();
        }
        Ok(this)
    }

    fn snapshots(&self) -> &Arc<Snapshots> {
        &self.shared.snapshots
    }

    fn store(&self) -> &base::LayerStore {
        self.shared.setups.store()
    }

    fn state(&self) -> &State {
        &self.shared.state
    }

    /// What they start from.
    #[must_use]
    pub fn setups(&self) -> &Setups {
        &self.shared.setups
    }

    /// Makes a workspace, as [`admit`](Self::admit) and [`make`](Self::make) do.
    ///
    /// # Errors
    /// Those of the two.
    pub async fn create(&self, asked: Asked) -> Result<Arc<Workspace>, WorkspaceError> {
        let admitted = self.admit(asked).await?;
        Ok(self.make(admitted).await?.workspace)
    }

    /// Looks whether there can be such a workspace, and gets it a place, which it waits for as long as
    /// `asked` says. Whoever drops this waits no more.
    ///
    /// # Errors
    /// Where there cannot be one, or is no place.
    pub async fn admit(&self, mut asked: Asked) -> Result<Admitted, WorkspaceError> {
        let shared = &self.shared;
        if shared.closed.load(Ordering::Relaxed) {
            return Err(WorkspaceError::Moved);
        }
        let usual = (base::limits(&shared.config), base::requests(&shared.config));
        asked.limits = asked.limits.or(usual.0);
        asked.requests = asked.requests.or(usual.1);
        asked.latitude.check(
            &shared.config,
            (&usual.0, &usual.1),
            (&asked.limits, &asked.requests),
        )?;
        // What is thrown away with its command is kept for as long as that takes.
        if shared.usage == Use::Serve {
            asked.lease = asked.lease.within(&shared.config, asked.latitude)?;
        }
        // Before setup, which may take long.
        limits::check(
            &shared.config,
            &shared.state,
            &asked.limits,
            &asked.requests,
        )?;
        let requested = asked.requests.memory.unwrap_or(0);
        let owner = asked.owner.as_deref();
        let place = admission::enter(shared, owner, requested, asked.wait).await?;
        Ok(Admitted { asked, place })
    }

    /// Makes a workspace that has a place, setting up first if no layer is there yet.
    ///
    /// # Errors
    /// Where setup fails or the sandbox cannot be started; nothing is left of it then.
    pub async fn make(&self, admitted: Admitted) -> Result<Made, WorkspaceError> {
        let started = Instant::now();
        let shared = &self.shared;
        let Admitted { mut asked, place } = admitted;
        let tie = asked.lease.tie.clone();
        // Held until the workspace is found by whoever would remove it.
        let snapshot = asked.snapshot.map(|id| self.snapshot_for(id)).transpose()?;
        let stack = match &snapshot {
            Some(snapshot) => {
                let given = std::mem::replace(&mut asked.env, snapshot.env.clone());
                asked.env.extend(given);
                snapshot.stack.clone()
            }
            None => {
                let stack = shared.setups.stack().await?;
                shared.note_present(Some(&stack));
                stack
            }
        };
        let usual = (base::limits(&shared.config), base::requests(&shared.config));
        let is_usual = snapshot.is_none() && (asked.limits, asked.requests) == usual;
        let workspace = Workspace::create(
            &shared.config,
            &shared.state,
            &shared.pool,
            &shared.directory,
            stack,
            asked,
        );
        let (workspace, service) = workspace.await?;
        let workspace = Arc::new(workspace);
        if is_usual {
            shared
                .pool
                .prefer(&workspace.kind(&workspace.record().stack));
        }
        place.fill(&workspace);
        workspace.tenure.begin(shared.to_keeper.clone(), tie);
        shared.state.tally().creates.count(started.elapsed());
        Ok(Made { workspace, service })
    }

    /// What is in the pool.
    #[must_use]
    pub fn pool(&self) -> Level {
        self.shared.pool.level()
    }

    /// The workspace of that id.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, id: &WorkspaceId) -> Result<Arc<Workspace>, WorkspaceError> {
        self.lock()
            .get(id)
            .cloned()
            .ok_or_else(|| WorkspaceError::NotFound(id.clone()))
    }

    /// All ids, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<WorkspaceId> {
        self.lock().keys().cloned().collect()
    }

    /// How many creates wait for a place.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.admission.waiting()
    }

    /// Ends a workspace and discards its files; `false` if there is none.
    ///
    /// # Errors
    /// Where its sandbox cannot be ended or its files not be discarded.
    pub async fn remove(&self, id: &WorkspaceId) -> Result<bool, WorkspaceError> {
        self.shared.remove(id, Why::Asked).await
    }

    /// Ends every sandbox and waits for it; the workspaces stay on disk but for those that end with a
    /// connection, and none starts again.
    pub async fn shutdown(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.shared.admission.close();
        let all: Vec<_> = self.lock().values().cloned().collect();
        let mut stopping = JoinSet::new();
        for workspace in all {
            stopping.spawn(async move {
                if workspace.lease().tied
                    && let Err(error) = workspace.remove(Why::Disconnected).await
                {
                    let error = crate::chain::text(&error);
                    tracing::warn!(workspace = %workspace.id(), error, "cannot remove a workspace; the next start does");
                }
                workspace.close().await;
            });
        }
        while stopping.join_next().await.is_some() {}
        self.shared.pool.close().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<WorkspaceId, Arc<Workspace>>> {
        self.shared.lock()
    }
}

/// What workspaces are found with.
struct Disk<'d> {
    config: &'d Arc<WorkspaceConfig>,
    state: &'d State,
    pool: &'d Pool,
    snapshots: &'d Snapshots,
    store: &'d base::LayerStore,
}

impl Disk<'_> {
    fn find_one(&self, path: &Path, mut record: Record) -> std::io::Result<Workspace> {
        // Before anything is discarded: files that were to become a snapshot's are in another generation.
        let shape = self.state.spawner().identity().shape();
        snapshots::finish(path, &mut record, self.snapshots, self.store, &shape)?;
        discard_other_generations(path, &record, self.state)?;
        Record::forget_half(path)?;
        // What is gone is told by who starts it.
        let claimed = |stack: base::Stack| self.store.claimed(stack.clone()).unwrap_or(stack);
        record.home = record.home.map(claimed);
        record.stack = claimed(record.stack);
        Workspace::stopped(self.config, self.state, self.pool, path.to_owned(), record)
    }
}

/// The workspaces on disk. One without a record was never acknowledged: it is discarded.
fn find(
    directory: &Path,
    disk: &Disk<'_>,
) -> std::io::Result<BTreeMap<WorkspaceId, Arc<Workspace>>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        match Record::read(&path) {
            Ok(record) => {
                if let Some(why) = record.lease.ran_out() {
                    tracing::info!(workspace = %record.id, why = why.word(), "removing a workspace");
                    disk.state.discard(&path)?;
                    disk.state.tally().removals.count(why.word());
                    continue;
                }
                let found = disk.find_one(&path, record);
                match found {
                    Ok(workspace) => {
                        all.insert(workspace.id().clone(), Arc::new(workspace));
                    }
                    // Likewise: what is wrong with one must not keep the others from being served.
                    Err(error) => {
                        tracing::error!(path = %path.display(), %error, "leaving out a workspace that cannot be read")
                    }
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                disk.state.discard(&path)?
            }
            // A record that this version cannot read is somebody's work: it is left alone.
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "leaving out a workspace whose record cannot be read")
            }
        }
    }
    Ok(all)
}

/// Discards what resets that were cut short left beside the files of a workspace.
fn discard_other_generations(
    directory: &Path,
    record: &Record,
    state: &State,
) -> std::io::Result<()> {
    let current = record::writable(directory, record.generation);
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let is_execs = path
            .file_name()
            .is_some_and(|name| name == execs::DIRECTORY);
        if path.is_dir() && path != current && !is_execs {
            state.discard(&path)?;
        }
    }
    Ok(())
}
