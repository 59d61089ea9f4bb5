//! One workspace and its changes of sandbox.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::WorkspaceError;
use super::events::{Event, Events};
use super::execs::{self, Execs, Novelty, Order};
use super::limits::{InForce, Latitude};
use super::record::{Record, writable};
use super::sessions::Sessions;
use crate::base::{Confinement, Digest, Stack, environment};
use crate::config::{self, WorkspaceConfig};
use crate::git::CommitId;
use crate::init::protocol::{Exec, Program};
use crate::pool::ranges::Range;
use crate::pool::{Gone, Sandbox};
use crate::sandbox::{Capacity, IdMap, Limits, Requests, SandboxSpec, Storage};
use crate::state::State;
use crate::sys::terminal::Size;
use crate::workspace::WorkspaceId;

/// How long a reset waits for init to count what it is about to end.
const COUNT_PATIENCE: Duration = Duration::from_millis(200);

/// One workspace.
#[derive(Debug)]
pub struct Workspace {
    id: WorkspaceId,
    pub(super) config: Arc<WorkspaceConfig>,
    pub(super) state: State,
    pub(super) directory: PathBuf,
    pub(super) record: Mutex<Record>,
    /// Held while the sandbox is changed.
    pub(super) lifecycle: tokio::sync::Mutex<Lifecycle>,
    current: Mutex<Option<Sandbox>>,
    execs: Arc<Execs>,
    sessions: Sessions,
    events: Arc<Events>,
}

#[derive(Debug)]
pub(super) struct Lifecycle {
    /// Held as long as there are files that were written with it.
    range: Option<Range>,
    /// Removed, or the provider is ending: no sandbox is started any more.
    closed: bool,
}

impl Lifecycle {
    pub(super) fn check_open(&self) -> Result<(), WorkspaceError> {
        if self.closed {
            Err(WorkspaceError::Moved)
        } else {
            Ok(())
        }
    }
}

/// A command to run: what, where, with what on top of the workspace's environment.
#[derive(Debug)]
pub struct Launch {
    /// What.
    pub program: Program,
    /// Relative to the config's `workdir` if not absolute; `workdir` itself if absent.
    pub directory: Option<String>,
    /// On top of the config's and the workspace's environment.
    pub env: BTreeMap<String, String>,
    /// The name or number of a user of the workspace; the config's if absent.
    pub user: Option<String>,
    /// The size of its terminal, if it is to have one.
    pub terminal: Option<Size>,
}

/// What is asked for with a workspace.
#[derive(Debug, Default)]
pub struct Asked {
    /// Its own environment, on top of the config's.
    pub env: BTreeMap<String, String>,
    /// What it may use; the config's where it says nothing.
    pub limits: Limits,
    /// What it is to get; likewise.
    pub requests: Requests,
    /// How far these may go.
    pub latitude: Latitude,
    /// The name that it belongs to, if it belongs to one.
    pub owner: Option<String>,
}

/// What a reset did.
#[derive(Debug)]
pub struct Reset {
    /// Digest of the layer that the workspace is on.
    pub layer: Digest,
    /// Entries in its upper.
    pub upper_entries: u64,
    /// Processes that were ended, init not counted.
    pub processes_killed: u64,
    /// How long it took.
    pub duration: Duration,
}

impl Workspace {
    pub(super) async fn create(
        config: &Arc<WorkspaceConfig>,
        state: &State,
        parent: &Path,
        stack: Stack,
        asked: Asked,
    ) -> Result<Self, WorkspaceError> {
        let id = WorkspaceId::generate();
        let range = stack
            .take_range(state.spawner().identity())
            .map_err(WorkspaceError::host("taking ids for a workspace"))?;
        let record = Record {
            id: id.clone(),
            created: crate::clock::seconds(),
            env: asked.env,
            limits: asked.limits,
            requests: asked.requests,
            owner: asked.owner,
            commits: stack.commits.clone(),
            stack,
            range: range.number(),
            ids: range.ids(),
            generation: 0,
            storage: Storage::Directory,
        };
        let workspace = Self::new(config, state, parent.join(id.as_str()), record)
            .map_err(WorkspaceError::host("looking for execs"))?;
        let storage = workspace.next_storage();
        workspace.lock_record().storage = storage;
        match workspace.first_start(range).await {
            Ok(()) => Ok(workspace),
            Err(error) => {
                workspace.discard(&workspace.directory);
                Err(error)
            }
        }
    }

    /// A workspace that is on disk and has no sandbox. Its ids are taken if they are free; else it
    /// waits for them until it is used.
    pub(super) fn stopped(
        config: &Arc<WorkspaceConfig>,
        state: &State,
        directory: PathBuf,
        record: Record,
    ) -> io::Result<Self> {
        let range = record
            .stack
            .retake_range(state.spawner().identity(), record.range);
        let mut workspace = Self::new(config, state, directory, record)?;
        match range {
            Ok(range) => workspace.lifecycle.get_mut().range = Some(range),
            Err(error) => {
                tracing::warn!(workspace = %workspace.id, %error, "its ids are not free now");
            }
        }
        Ok(workspace)
    }

    fn new(
        config: &Arc<WorkspaceConfig>,
        state: &State,
        directory: PathBuf,
        record: Record,
    ) -> io::Result<Self> {
        let events = Arc::new(Events::default());
        let execs = Execs::open(
            &directory.join(execs::DIRECTORY),
            Arc::clone(&events),
            Arc::clone(state.tally()),
        )?;
        Ok(Self {
            id: record.id.clone(),
            config: Arc::clone(config),
            state: state.clone(),
            directory,
            record: Mutex::new(record),
            lifecycle: tokio::sync::Mutex::new(Lifecycle {
                range: None,
                closed: false,
            }),
            current: Mutex::new(None),
            execs: Arc::new(execs),
            sessions: Sessions::default(),
            events,
        })
    }

    /// The record is written last: before it is there, nothing was acknowledged.
    async fn first_start(&self, range: Range) -> Result<(), WorkspaceError> {
        let storage = self.record().storage;
        let sandbox = self.start_sandbox(0, storage, range.ids()).await?;
        self.record()
            .write(&self.directory)
            .map_err(WorkspaceError::host("writing a workspace's record"))?;
        self.lifecycle.lock().await.range = Some(range);
        self.set_current(Some(sandbox));
        Ok(())
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &WorkspaceId {
        &self.id
    }

    /// When it was made, seconds since 1970.
    #[must_use]
    pub fn created(&self) -> u64 {
        self.record().created
    }

    /// The name that it belongs to, if it belongs to one.
    #[must_use]
    pub fn owner(&self) -> Option<String> {
        self.lock_record().owner.clone()
    }

    /// What there is of it while it has no sandbox, for people.
    #[must_use]
    pub fn what_is_left(&self) -> &'static str {
        match self.record().storage {
            Storage::Directory | Storage::Image(_) => {
                "its processes are gone; its files are there, and the next command starts it on them"
            }
            Storage::Memory(_) => {
                "its processes are gone, and so are its files, which were in memory; the next command starts it in \
                 the state right after setup"
            }
        }
    }

    /// Digest of the layer that it starts from.
    #[must_use]
    pub fn layer(&self) -> Digest {
        self.record().stack.digest
    }

    /// Its execs.
    #[must_use]
    pub fn execs(&self) -> &Arc<Execs> {
        &self.execs
    }

    /// Its sessions.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// What happens to it.
    #[must_use]
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Its living sandbox, if it has one.
    #[must_use]
    pub fn current(&self) -> Option<Sandbox> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone().filter(|sandbox| sandbox.gone().is_none())
    }

    /// Its sandbox; started on its files if it has none.
    ///
    /// # Errors
    /// Where it cannot be started, or the workspace was removed.
    pub async fn sandbox(&self) -> Result<Sandbox, WorkspaceError> {
        if let Some(sandbox) = self.current() {
            return Ok(sandbox);
        }
        let mut lifecycle = self.lifecycle.lock().await;
        lifecycle.check_open()?;
        if let Some(sandbox) = self.current() {
            return Ok(sandbox);
        }
        // A sandbox that died by itself may still be dying: its files must not be mounted twice.
        if let Some(dying) = self.set_current(None) {
            dying.end(Gone::Lost).await?;
        }
        let (generation, ids) = self.ids(&mut lifecycle)?;
        let storage = self.record().storage;
        if matches!(storage, Storage::Memory(_)) {
            return self.start_anew(generation, ids).await;
        }
        let sandbox = self.start_sandbox(generation, storage, ids).await?;
        self.set_current(Some(sandbox.clone()));
        Ok(sandbox)
    }

    /// Starts it in the state right after setup, since its files in memory ended with the sandbox before.
    async fn start_anew(&self, generation: u64, ids: IdMap) -> Result<Sandbox, WorkspaceError> {
        let storage = self.next_storage();
        let sandbox = self.start_sandbox(generation + 1, storage, ids).await?;
        self.note_generation(generation + 1, storage)?;
        self.discard(&writable(&self.directory, generation));
        self.set_current(Some(sandbox.clone()));
        self.events.tell(Event::Reset {
            layer: self.layer().to_string(),
            processes_killed: 0,
        });
        Ok(sandbox)
    }

    /// Starts a command, unless its key says that it was started before.
    ///
    /// # Errors
    /// Where there is no sandbox for it, or it cannot be started.
    pub async fn start(
        &self,
        launch: Launch,
        order: Order,
    ) -> Result<(Arc<execs::Exec>, Novelty), WorkspaceError> {
        let command = self.exec(launch);
        let limits = self.limits().limits;
        let bounds = execs::Bounds {
            at_once: limits.execs,
            output: limits.output,
        };
        self.execs
            .start(order, bounds, command, self.sandbox())
            .await
    }

    /// The exec that `launch` asks for in this workspace.
    #[must_use]
    pub fn exec(&self, launch: Launch) -> Exec {
        let user = self.user_inside(launch.user);
        Exec {
            program: launch.program,
            directory: self.directory_inside(launch.directory.as_deref()),
            environment: environment(&[&self.config.env, &self.record().env, &launch.env]),
            terminal: launch.terminal,
            user: Some(user),
            open_files: self.limits().limits.open_files,
        }
    }

    /// Returns to exactly the state after setup: a new sandbox on a new upper. The old one's
    /// processes are gone when this returns; its files are removed in the background.
    ///
    /// # Errors
    /// Where the new sandbox cannot be started. The workspace is as it was then, unless its disk is
    /// full: then its files are gone.
    pub async fn reset(&self) -> Result<Reset, WorkspaceError> {
        let started = Instant::now();
        let mut lifecycle = self.lifecycle.lock().await;
        lifecycle.check_open()?;
        let (generation, ids) = self.ids(&mut lifecycle)?;
        let next = generation + 1;
        let storage = self.next_storage();
        // Left by a reset that was cut short.
        self.discard(&writable(&self.directory, next));
        // Beside each other: both take a while, and what is counted is what is about to end.
        let (processes_killed, started_sandbox) = tokio::join!(
            self.count_processes(),
            self.start_sandbox(next, storage, ids)
        );
        let sandbox = match started_sandbox {
            Ok(sandbox) => sandbox,
            // Where the old files leave no room for a new sandbox beside them, they go first.
            Err(error) if error.is_no_space() => {
                self.end_current(Gone::Reset).await?;
                self.discard(&writable(&self.directory, next));
                self.discard(&writable(&self.directory, generation));
                self.state.flush().await;
                self.start_sandbox(next, storage, ids).await?
            }
            Err(error) => {
                self.discard(&writable(&self.directory, next));
                return Err(error);
            }
        };
        let upper_entries = match storage {
            Storage::Directory => count_upper(&writable(&self.directory, next))
                .map_err(WorkspaceError::host("counting what a reset left"))?,
            // A filesystem that was made for it, and is to be seen inside alone.
            Storage::Image(_) | Storage::Memory(_) => 0,
        };
        self.end_current(Gone::Reset).await?;
        // What ended with the old sandbox is told before the reset, and that before what is next.
        self.execs.settle().await;
        self.note_generation(next, storage)?;
        self.set_current(Some(sandbox));
        self.discard(&writable(&self.directory, generation));
        self.events.tell(Event::Reset {
            layer: self.layer().to_string(),
            processes_killed,
        });
        let duration = started.elapsed();
        self.state.tally().resets.count(duration);
        Ok(Reset {
            layer: self.layer(),
            upper_entries,
            processes_killed,
            duration,
        })
    }

    /// Ends it for good; `false` if somebody else did meanwhile.
    pub(super) async fn remove(&self) -> Result<bool, WorkspaceError> {
        let mut lifecycle = self.lifecycle.lock().await;
        if lifecycle.closed {
            return Ok(false);
        }
        self.end_current(Gone::Removed).await?;
        self.execs.close().await;
        self.state
            .discard(&self.directory)
            .map_err(WorkspaceError::host("discarding a workspace"))?;
        lifecycle.closed = true;
        lifecycle.range = None;
        self.events.tell(Event::Removed);
        self.events.close();
        Ok(true)
    }

    /// Ends its sandbox, since the provider is ending; its files stay.
    pub(super) async fn close(&self) {
        let mut lifecycle = self.lifecycle.lock().await;
        lifecycle.closed = true;
        if let Err(error) = self.end_current(Gone::Shutdown).await {
            tracing::warn!(workspace = %self.id, %error, "cannot end a sandbox");
        }
        self.execs.close().await;
        self.events.close();
    }

    /// How many processes the present sandbox has; 0 if its init does not say.
    async fn count_processes(&self) -> u64 {
        let Some(sandbox) = self.current() else {
            return 0;
        };
        let count = tokio::time::timeout(COUNT_PATIENCE, sandbox.count_processes()).await;
        count.ok().and_then(Result::ok).unwrap_or(0)
    }

    /// Ends the present sandbox.
    async fn end_current(&self, reason: Gone) -> Result<(), WorkspaceError> {
        match self.set_current(None) {
            Some(sandbox) => Ok(sandbox.end(reason).await?),
            None => Ok(()),
        }
    }

    /// Its generation, and its ids, which are taken again if they are not held.
    fn ids(&self, lifecycle: &mut Lifecycle) -> Result<(u64, IdMap), WorkspaceError> {
        let record = self.record();
        let range = match lifecycle.range.take() {
            Some(range) => range,
            None => record
                .stack
                .retake_range(self.state.spawner().identity(), record.range)
                .map_err(WorkspaceError::host("taking the ids of a workspace"))?,
        };
        let ids = range.ids();
        lifecycle.range = Some(range);
        if ids != record.ids {
            let changed = "this host gave derrick other ids when the workspace was made; its files cannot be used with these";
            return Err(WorkspaceError::host("taking the ids of a workspace")(
                io::Error::other(changed),
            ));
        }
        Ok((record.generation, ids))
    }

    /// What its next generation is kept on.
    fn next_storage(&self) -> Storage {
        let limits = self.limits().limits;
        let capacity = Capacity {
            bytes: limits.disk,
            inodes: limits.inodes,
        };
        match self.config.storage {
            config::Storage::Memory => Storage::Memory(capacity),
            config::Storage::Disk if limits.disk.is_some() => Storage::Image(capacity),
            config::Storage::Disk => Storage::Directory,
        }
    }

    /// Notes that its files are those of a generation that begins in the state right after setup.
    fn note_generation(&self, generation: u64, storage: Storage) -> Result<(), WorkspaceError> {
        let mut record = self.lock_record();
        let mut changed = record.clone();
        changed.generation = generation;
        changed.storage = storage;
        changed.commits = changed.stack.commits.clone();
        changed
            .write(&self.directory)
            .map_err(WorkspaceError::host("writing a workspace's record"))?;
        *record = changed;
        Ok(())
    }

    async fn start_sandbox(
        &self,
        generation: u64,
        storage: Storage,
        ids: IdMap,
    ) -> Result<Sandbox, WorkspaceError> {
        let files = writable(&self.directory, generation);
        let files = self
            .state
            .make_writable(files, storage)
            .await
            .map_err(WorkspaceError::host("making a directory for a sandbox"))?;
        let InForce {
            limits, requests, ..
        } = self.limits();
        let confinement = Confinement::of(&self.config);
        let spec = SandboxSpec {
            ids,
            overlays: self.record().stack.overlays,
            writable: files,
            network: confinement.network,
            profile: confinement.profile,
            hostname: self.hostname(),
            landlock: confinement.landlock,
            group: self.state.group(None, &limits, &requests)?,
            memory_files: (&limits).into(),
            without: self.state.spawner().without().clone(),
        };
        Ok(self.state.spawner().create(spec).await?)
    }

    /// The config's name as far as hostname(7) lets it, and the end of the id, which differs most.
    fn hostname(&self) -> String {
        let id = self.id.as_str();
        let end = &id[id.len().saturating_sub(8)..];
        let name: String = self
            .config
            .name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '-'
                }
            })
            .take(50)
            .collect();
        let name = name.trim_matches('-');
        if name.is_empty() {
            end.to_owned()
        } else {
            format!("{name}-{end}")
        }
    }

    /// The user that is meant where `user` is asked for.
    pub(super) fn user_inside(&self, user: Option<String>) -> String {
        user.unwrap_or_else(|| self.config.user.clone())
    }

    /// The absolute path of `working_dir`.
    #[must_use]
    pub fn directory_inside(&self, working_dir: Option<&str>) -> String {
        let directory = self.config.workdir.join(working_dir.unwrap_or(""));
        // By its components, so that nothing joined leaves no slash at the end.
        let directory: PathBuf = directory.components().collect();
        directory.to_string_lossy().into_owned()
    }

    fn set_current(&self, sandbox: Option<Sandbox>) -> Option<Sandbox> {
        std::mem::replace(
            &mut *self.current.lock().unwrap_or_else(PoisonError::into_inner),
            sandbox,
        )
    }

    pub(super) fn record(&self) -> Record {
        self.lock_record().clone()
    }

    pub(super) fn lock_record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a commit that was brought into the files of `generation`; what it replaces.
    pub(super) fn set_commit(
        &self,
        generation: u64,
        path: &Path,
        commit: &CommitId,
    ) -> Result<CommitId, WorkspaceError> {
        let mut record = self.lock_record();
        if record.generation != generation {
            return Err(WorkspaceError::Moved);
        }
        let mut changed = record.clone();
        let before = changed.commits.insert(path.to_owned(), commit.clone());
        changed
            .write(&self.directory)
            .map_err(WorkspaceError::host("writing a workspace's record"))?;
        *record = changed;
        Ok(before.unwrap_or_else(|| commit.clone()))
    }

    fn discard(&self, path: &Path) {
        if let Err(error) = self.state.discard(path) {
            tracing::warn!(workspace = %self.id, %error, "cannot discard files; the next start tries again");
        }
    }
}

/// Entries at the top of every overlay's upper: what a sandbox has that its layers have not.
fn count_upper(files: &Path) -> io::Result<u64> {
    let mut count = 0;
    for upper in std::fs::read_dir(files.join("upper"))? {
        count += std::fs::read_dir(upper?.path())?.count() as u64;
    }
    Ok(count)
}
