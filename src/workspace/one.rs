//! One workspace and its changes of sandbox.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::WorkspaceError;
use super::events::{Event, Events};
use super::execs::{self, Execs, Novelty, Order};
use super::lease::{Lease, LeaseAsked, Tenure, Why};
use super::limits::{InForce, Latitude};
use super::pool::{self, Discarded, Disposal, Kind, Pool, Ready, Serving};
use super::record::{Record, writable};
use super::sessions::Sessions;
use super::snapshots::{Snapshot, SnapshotId};
use crate::base::{Confinement, Digest, Stack, environment};
use crate::config::{self, WorkspaceConfig};
use crate::git::CommitId;
use crate::init::files::protocol::Fingerprint;
use crate::init::protocol::{Exec, Program};
use crate::pool::ranges::Range;
use crate::pool::{Gone, Sandbox};
use crate::sandbox::{Capacity, IdMap, Limits, Requests, Storage};
use crate::state::State;
use crate::sys::terminal::Size;
use crate::workspace::WorkspaceId;

/// One workspace.
#[derive(Debug)]
pub struct Workspace {
    id: WorkspaceId,
    pub(super) config: Arc<WorkspaceConfig>,
    pub(super) state: State,
    pub(super) pool: Pool,
    pub(super) directory: PathBuf,
    pub(super) record: Mutex<Record>,
    /// Held while the sandbox is changed.
    pub(super) lifecycle: tokio::sync::Mutex<Lifecycle>,
    current: Mutex<Current>,
    execs: Arc<Execs>,
    sessions: Sessions,
    /// Held while git inside makes a bundle.
    pub(super) handing_out: Arc<tokio::sync::Mutex<()>>,
    events: Arc<Events>,
    pub(super) tenure: Arc<Tenure>,
    /// Fences it when the time comes that its record names.
    pub(super) watcher: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// Its present sandbox.
#[derive(Debug, Default)]
struct Current {
    sandbox: Option<Sandbox>,
    access: AccessTo,
}

/// Who gets the present sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum AccessTo {
    /// Everybody.
    #[default]
    All,
    /// Whoever looks at it or ends it; whoever would start something there waits for the change that is
    /// under way.
    Lookers,
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
    /// How long it is kept.
    pub lease: LeaseAsked,
    /// How long it may wait for a place.
    pub wait: Duration,
    /// The snapshot that it starts from; the state right after setup if absent.
    pub snapshot: Option<SnapshotId>,
}

/// How closely it is looked at a pristine sandbox before a workspace gets it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verify {
    /// That its upper is empty, and init alone.
    #[default]
    Usual,
    /// Also that everything that is to be seen in it, contents included, is what another one of its layer
    /// shows.
    Full,
}

/// What a reset did.
#[derive(Debug)]
pub struct Reset {
    /// Counts the resets of the workspace.
    pub generation: u64,
    /// Digest of the layer that the workspace is on.
    pub layer: Digest,
    /// Entries in its upper.
    pub upper_entries: u64,
    /// How long a pristine sandbox was waited for, or leave to dispose of the old one.
    pub waited: Duration,
    /// How long all of it took.
    pub duration: Duration,
    /// Of all that is to be seen in the workspace, if that was looked at.
    pub verified: Option<Fingerprint>,
    /// What was discarded, once it is gone; dropped where nobody knows.
    pub discarded: oneshot::Receiver<Discarded>,
    /// Dropped when the answer is on its way: what is discarded is killed from then on. A crowd that dies takes
    /// all processors, and the answer would wait for them.
    pub reprieve: oneshot::Sender<()>,
}

/// A sandbox that is the workspace's, and not yet its present one.
#[derive(Debug)]
struct Adopted {
    sandbox: Sandbox,
    range: Range,
    directory: PathBuf,
    upper_entries: u64,
}

impl Adopted {
    /// Ends it, unused.
    fn abandon(self, state: &State) {
        state.end_in_background(self.sandbox);
        state.discard_or_say(&self.directory);
    }
}

/// What a change of sandbox did.
#[derive(Debug)]
pub(super) struct Swapped {
    pub(super) generation: u64,
    pub(super) upper_entries: u64,
    pub(super) waited: Duration,
    pub(super) verified: Option<Fingerprint>,
    pub(super) discarded: oneshot::Receiver<Discarded>,
    pub(super) reprieve: oneshot::Sender<()>,
}

impl Workspace {
    pub(super) async fn create(
        config: &Arc<WorkspaceConfig>,
        state: &State,
        pool: &Pool,
        parent: &Path,
        stack: Stack,
        asked: Asked,
    ) -> Result<(Self, Serving), WorkspaceError> {
        let id = WorkspaceId::generate();
        let record = Record {
            id: id.clone(),
            created: crate::clock::seconds(),
            env: asked.env,
            limits: asked.limits,
            requests: asked.requests,
            owner: asked.owner,
            lease: Lease::begin(&asked.lease),
            commits: stack.commits.clone(),
            brought: BTreeMap::new(),
            stack,
            home: None,
            frozen: None,
            fence: None,
            fenced: None,
            // Those of the sandbox that it gets.
            range: 0,
            ids: IdMap { first: 0, count: 0 },
            generation: 0,
            storage: Storage::Directory,
        };
        let workspace = Self::new(config, state, pool, parent.join(id.as_str()), record)
            .map_err(WorkspaceError::host("looking for execs"))?;
        match workspace.first_start().await {
            Ok(service) => Ok((workspace, service)),
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
        pool: &Pool,
        directory: PathBuf,
        record: Record,
    ) -> io::Result<Self> {
        let range = record
            .stack
            .retake_range(state.spawner().identity(), record.range);
        let mut workspace = Self::new(config, state, pool, directory, record)?;
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
        pool: &Pool,
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
            tenure: Tenure::new(&record.id, &record.lease),
            id: record.id.clone(),
            config: Arc::clone(config),
            state: state.clone(),
            pool: pool.clone(),
            directory,
            record: Mutex::new(record),
            lifecycle: tokio::sync::Mutex::new(Lifecycle {
                range: None,
                closed: false,
            }),
            current: Mutex::default(),
            watcher: Mutex::default(),
            execs: Arc::new(execs),
            sessions: Sessions::default(),
            handing_out: Arc::default(),
            events,
        })
    }

    /// The record is written last: before it is there, nothing was acknowledged.
    async fn first_start(&self) -> Result<Serving, WorkspaceError> {
        let kind = self.kind(&self.record().stack);
        let fresh = self.pool.take(&kind).await?;
        let mut lifecycle = self.lifecycle.lock().await;
        self.state
            .make_directory(&self.directory)
            .map_err(WorkspaceError::host("making a workspace's directory"))?;
        let (adopted, service) = match self.adopt(fresh.ready, None).await {
            Err(error) => {
                self.quarantine(&error);
                drop(fresh.service);
                let fresh = self.pool.take(&kind).await?;
                (self.adopt(fresh.ready, None).await?, fresh.service)
            }
            Ok(adopted) => (adopted, fresh.service),
        };
        self.begin(&mut lifecycle, &kind, 0, adopted)?;
        self.record()
            .write(&self.directory)
            .map_err(WorkspaceError::host("writing a workspace's record"))?;
        Ok(service)
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
        let current = self.lock_current().sandbox.clone();
        current.filter(|sandbox| sandbox.gone().is_none())
    }

    /// The same for who starts something in it.
    fn current_for_all(&self) -> Option<Sandbox> {
        let current = self.lock_current();
        let sandbox = match current.access {
            AccessTo::All => current.sandbox.clone(),
            AccessTo::Lookers => None,
        };
        sandbox.filter(|sandbox| sandbox.gone().is_none())
    }

    /// Has these get its present sandbox; all get another one that it gets.
    pub(super) fn give_access(&self, access: AccessTo) {
        self.lock_current().access = access;
    }

    fn lock_current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its sandbox; started on its files if it has none.
    ///
    /// # Errors
    /// `Paused`, `Fenced`; where it cannot be started, or the workspace was removed.
    pub async fn sandbox(&self) -> Result<Sandbox, WorkspaceError> {
        self.check_running()?;
        if let Some(sandbox) = self.current_for_all() {
            return Ok(sandbox);
        }
        let mut lifecycle = self.lifecycle.lock().await;
        lifecycle.check_open()?;
        self.check_running()?;
        // Whoever changed it is done, or was dropped.
        self.give_access(AccessTo::All);
        if let Some(sandbox) = self.current() {
            return Ok(sandbox);
        }
        // A sandbox that died by itself may still be dying: its files must not be mounted twice.
        if let Some(dying) = self.set_current(None) {
            dying.end(Gone::Lost).await?;
        }
        self.start_here(&mut lifecycle).await
    }

    /// Starts it on the files that there are.
    pub(super) async fn start_here(
        &self,
        lifecycle: &mut Lifecycle,
    ) -> Result<Sandbox, WorkspaceError> {
        let storage = self.record().storage;
        if matches!(storage, Storage::Memory(_)) {
            return self.start_anew(lifecycle).await;
        }
        let (generation, range) = self.ids(lifecycle)?;
        let sandbox = self.start_sandbox(generation, storage, range).await?;
        self.set_current(Some(sandbox.clone()));
        Ok(sandbox)
    }

    /// Starts it in the state right after setup, since its files in memory ended with the sandbox before.
    async fn start_anew(&self, lifecycle: &mut Lifecycle) -> Result<Sandbox, WorkspaceError> {
        let stack = self.record().home().clone();
        self.swap(lifecycle, &stack, Gone::Lost, Verify::Usual)
            .await?;
        self.events.tell(Event::Reset {
            layer: stack.digest.to_string(),
        });
        self.current().ok_or(WorkspaceError::Moved)
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

    /// Returns to exactly the state that it started from, after setup or a snapshot, or to `to`: it gets a
    /// pristine sandbox with an upper of its own. What ran in the old one reaches nobody when this returns; it is
    /// killed, and its files are disposed of, in the background.
    ///
    /// # Errors
    /// Where there is no pristine sandbox to be had. The workspace is as it was then; where its disk is full, its
    /// processes and files may be gone.
    pub async fn reset(
        &self,
        to: Option<&Snapshot>,
        verify: Verify,
    ) -> Result<Reset, WorkspaceError> {
        let started = Instant::now();
        let mut lifecycle = self.lifecycle.lock().await;
        lifecycle.check_open()?;
        let stack = match to {
            Some(snapshot) => snapshot.stack.clone(),
            None => self.record().home().clone(),
        };
        let swapped = self
            .swap(&mut lifecycle, &stack, Gone::Reset, verify)
            .await?;
        self.events.tell(Event::Reset {
            layer: stack.digest.to_string(),
        });
        let duration = started.elapsed();
        self.state.tally().resets.count(duration);
        Ok(Reset {
            generation: swapped.generation,
            layer: stack.digest,
            upper_entries: swapped.upper_entries,
            waited: swapped.waited,
            duration,
            verified: swapped.verified,
            discarded: swapped.discarded,
            reprieve: swapped.reprieve,
        })
    }

    /// Replaces its sandbox by a pristine one on `stack`, from which it starts from then on.
    ///
    /// What ended with the old one has been told when this returns.
    pub(super) async fn swap(
        &self,
        lifecycle: &mut Lifecycle,
        stack: &Stack,
        reason: Gone,
        verify: Verify,
    ) -> Result<Swapped, WorkspaceError> {
        let kind = self.kind(stack);
        // Before leave is taken, since it may take some itself.
        let expected = match verify {
            Verify::Usual => None,
            Verify::Full => Some(self.pool.fingerprint(&kind).await?),
        };
        let owner = self.owner();
        // Who waits for it holds no new sandbox meanwhile. But to compare all that is to be seen may take long,
        // and nobody's turn is to wait for that.
        let mut leave = match verify {
            Verify::Usual => Some(self.pool.leave(owner.as_deref()).await),
            Verify::Full => None,
        };
        let old = self.record();
        let old_files = writable(&self.directory, old.generation);
        let mut ending = None;
        let fresh = match self.pool.take(&kind).await {
            // Where the old files leave no room for a new sandbox beside them, they go first.
            Err(error) if error.is_no_space() => {
                self.end_current(reason).await?;
                self.discard(&old_files);
                self.state.flush().await;
                self.pool.take(&kind).await?
            }
            taken => taken?,
        };
        let mut waited = fresh.waited;
        // A comparison of everything may take long: others want sandboxes meanwhile.
        let mut service = (verify == Verify::Usual).then_some(fresh.service);
        let adopted = match self.adopt(fresh.ready, expected.as_ref()).await {
            Err(error) => {
                self.quarantine(&error);
                drop(service.take());
                let fresh = self.pool.take(&kind).await?;
                waited += fresh.waited;
                self.adopt(fresh.ready, expected.as_ref()).await?
            }
            Ok(adopted) => adopted,
        };
        let leave = match leave.take() {
            Some(leave) => leave,
            None => self.pool.leave(owner.as_deref()).await,
        };
        waited += leave.waited;
        if let Some(old) = self.set_current(None) {
            let mut left = old.leave(reason);
            // What is shut off reaches nothing of the new sandbox's, and nobody outside: it is killed by those
            // who dispose of it, and not waited for, however much runs there.
            if !old.is_shut_off()
                && let Err(error) = left.kill().await
            {
                adopted.abandon(&self.state);
                return Err(error.into());
            }
            ending = Some(left);
        }
        let upper_entries = adopted.upper_entries;
        self.execs.settle().await;
        let generation = old.generation + 1;
        let range = match self.begin(lifecycle, &kind, generation, adopted) {
            Ok(range) => range,
            Err(error) => {
                // Its files must not be mounted again beside what is left of it.
                if let Some(ending) = ending {
                    ending.finish().await?;
                }
                return Err(error);
            }
        };
        // The record on disk is as true as before, but the layers that it names would be kept for it.
        if old.stack.digest != stack.digest
            && let Err(error) = self.change_record(|_| ())
        {
            tracing::warn!(workspace = %self.id, %error, "the layers of a former state are kept until the record is written");
        }
        let disposal = Disposal {
            ending,
            range,
            storage: old.storage,
            directory: old_files,
            leave,
        };
        let (reprieve, over) = oneshot::channel();
        Ok(Swapped {
            generation,
            upper_entries,
            waited,
            verified: expected,
            discarded: self.dispose(disposal, generation, over, service),
            reprieve,
        })
    }

    /// Disposes of what it is done with in the background, once `over` has nobody any more who could send, and
    /// tells what that was. Until then the pool makes nothing for itself either.
    fn dispose(
        &self,
        disposal: Disposal,
        generation: u64,
        over: oneshot::Receiver<()>,
        service: Option<Serving>,
    ) -> oneshot::Receiver<Discarded> {
        let (done, discarded) = oneshot::channel();
        let (pool, events) = (self.pool.clone(), Arc::clone(&self.events));
        self.state.in_background(async move {
            // Nothing is ever sent.
            let _ = over.await;
            drop(service);
            let all = pool.dispose(disposal).await;
            events.tell(Event::Disposed {
                generation,
                discarded: all,
            });
            // Whoever asked may be gone.
            let _ = done.send(all);
        });
        discarded
    }

    /// Counts a sandbox out that was not what it should have been.
    fn quarantine(&self, error: &WorkspaceError) {
        tracing::error!(
            workspace = %self.id,
            error = crate::chain::text(error),
            "a pristine sandbox cannot be used; taking another"
        );
        let quarantined = &self.state.tally().quarantined;
        quarantined.fetch_add(1, Ordering::Relaxed);
    }

    /// Confines a pristine sandbox under the workspace's name, and sees that it is what it is said to be.
    async fn adopt(
        &self,
        ready: Ready,
        expected: Option<&Fingerprint>,
    ) -> Result<Adopted, WorkspaceError> {
        let Ready {
            sandbox,
            range,
            directory,
        } = ready;
        let adopted = async {
            let sandbox = sandbox.adopt(self.hostname()).await?;
            let upper_entries = match sandbox.storage() {
                Storage::Directory => count_upper(&directory)
                    .map_err(WorkspaceError::host("counting what a new sandbox has"))?,
                // A filesystem that was made for it, and is to be seen inside alone.
                Storage::Image(_) | Storage::Memory(_) => 0,
            };
            if upper_entries > 0 {
                return Err(WorkspaceError::NotPristine(upper_entries));
            }
            if let Some(expected) = expected {
                let found = sandbox.fingerprint().await?;
                if found != *expected {
                    return Err(WorkspaceError::NotAsOthers {
                        found: found.entries,
                        expected: expected.entries,
                    });
                }
            }
            Ok((sandbox, upper_entries))
        };
        match adopted.await {
            Ok((sandbox, upper_entries)) => Ok(Adopted {
                sandbox,
                range,
                directory,
                upper_entries,
            }),
            Err(error) => {
                self.discard(&directory);
                Err(error)
            }
        }
    }

    /// Begins a generation in the state right after setup, in a sandbox of this kind; the range of the one
    /// before it. The rename is the change: a crash leaves the workspace in the one or the other.
    fn begin(
        &self,
        lifecycle: &mut Lifecycle,
        kind: &Kind,
        generation: u64,
        adopted: Adopted,
    ) -> Result<Option<Range>, WorkspaceError> {
        std::fs::rename(&adopted.directory, writable(&self.directory, generation))
            .map_err(WorkspaceError::host("moving a sandbox's files"))?;
        {
            let mut record = self.lock_record();
            *record = record.clone().begun(generation, kind.begin(&adopted.range));
        }
        self.set_current(Some(adopted.sandbox));
        Ok(lifecycle.range.replace(adopted.range))
    }

    /// Ends it for good; `false` if somebody else did meanwhile.
    pub(super) async fn remove(&self, why: Why) -> Result<bool, WorkspaceError> {
        let mut lifecycle = self.lifecycle.lock().await;
        if lifecycle.closed {
            return Ok(false);
        }
        self.end_current(Gone::Removed).await?;
        self.execs.close().await;
        self.state
            .discard_of(self.owner().as_deref(), &self.directory)
            .map_err(WorkspaceError::host("discarding a workspace"))?;
        lifecycle.closed = true;
        lifecycle.range = None;
        self.events.tell(Event::Removed { why });
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

    /// Ends the present sandbox.
    async fn end_current(&self, reason: Gone) -> Result<(), WorkspaceError> {
        match self.set_current(None) {
            Some(sandbox) => Ok(sandbox.end(reason).await?),
            None => Ok(()),
        }
    }

    /// Its generation, and its ids, which are taken again if they are not held.
    fn ids<'l>(&self, lifecycle: &'l mut Lifecycle) -> Result<(u64, &'l Range), WorkspaceError> {
        let record = self.record();
        let range = match lifecycle.range.take() {
            Some(range) => range,
            None => record
                .stack
                .retake_range(self.state.spawner().identity(), record.range)
                .map_err(WorkspaceError::host("taking the ids of a workspace"))?,
        };
        let range = lifecycle.range.insert(range);
        if range.ids() != record.ids {
            let changed = "this host gave derrick other ids when the workspace was made; its files cannot be used with these";
            return Err(WorkspaceError::host("taking the ids of a workspace")(
                io::Error::other(changed),
            ));
        }
        Ok((record.generation, range))
    }

    /// What its next generation is kept on.
    pub(super) fn next_storage(&self) -> Storage {
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

    /// What pristine sandboxes have to be for it, on `stack`.
    pub(super) fn kind(&self, stack: &Stack) -> Kind {
        let InForce {
            limits, requests, ..
        } = self.limits();
        Kind {
            stack: stack.clone(),
            limits,
            requests,
            storage: self.next_storage(),
        }
    }

    /// Starts a sandbox on the files of a generation.
    async fn start_sandbox(
        &self,
        generation: u64,
        storage: Storage,
        range: &Range,
    ) -> Result<Sandbox, WorkspaceError> {
        let files = writable(&self.directory, generation);
        let kind = Kind {
            storage,
            ..self.kind(&self.record().stack)
        };
        let confinement = Confinement::of(&self.config);
        let spec = pool::spec(&self.state, confinement, &kind, files, range.ids()).await?;
        let started = self.state.spawner().create(spec, range).await?;
        Ok(started.adopt(self.hostname()).await?)
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

    pub(super) fn set_current(&self, sandbox: Option<Sandbox>) -> Option<Sandbox> {
        let access = AccessTo::All;
        std::mem::replace(&mut *self.lock_current(), Current { sandbox, access }).sandbox
    }

    pub(super) fn record(&self) -> Record {
        self.lock_record().clone()
    }

    pub(super) fn lock_record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes its record, on disk first. Others may change other parts of it meanwhile.
    pub(super) fn change_record(
        &self,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), WorkspaceError> {
        self.try_change_record(|record| {
            change(record);
            Ok(())
        })
    }

    /// The same, unless `change` refuses to; what it gives.
    pub(super) fn try_change_record<T>(
        &self,
        change: impl FnOnce(&mut Record) -> Result<T, WorkspaceError>,
    ) -> Result<T, WorkspaceError> {
        let mut record = self.lock_record();
        let mut changed = record.clone();
        let given = change(&mut changed)?;
        changed
            .write(&self.directory)
            .map_err(|error| match error.kind() {
                // It was removed just now.
                io::ErrorKind::NotFound => WorkspaceError::Moved,
                _ => WorkspaceError::host("writing a workspace's record")(error),
            })?;
        *record = changed;
        Ok(given)
    }

    /// Notes a commit that was brought into the files of `generation`; what it replaces.
    pub(super) fn set_commit(
        &self,
        generation: u64,
        path: &Path,
        commit: &CommitId,
    ) -> Result<CommitId, WorkspaceError> {
        self.try_change_record(|record| {
            if record.generation != generation {
                return Err(WorkspaceError::Moved);
            }
            let before = record.commits.insert(path.to_owned(), commit.clone());
            Ok(before.unwrap_or_else(|| commit.clone()))
        })
    }

    /// Notes submodules that were brought with their large files into the files of `generation`, by their paths.
    pub(super) fn set_brought(
        &self,
        generation: u64,
        brought: BTreeMap<PathBuf, CommitId>,
    ) -> Result<(), WorkspaceError> {
        if brought.is_empty() {
            return Ok(());
        }
        self.try_change_record(|record| {
            if record.generation != generation {
                return Err(WorkspaceError::Moved);
            }
            record.brought.extend(brought);
            Ok(())
        })
    }

    pub(super) fn discard(&self, path: &Path) {
        if let Err(error) = self.state.discard_of(self.owner().as_deref(), path) {
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
