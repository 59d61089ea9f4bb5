//! The execs of a workspace: started once, watched to their end, kept with their output.
//!
//! Each runs in a task of its own, so no client can disturb it by going away. What clients do to it
//! (signals, stdin, a request to kill it) goes past that task, straight to init or the pipe; how it
//! ended is decided there alone.

mod journal;
pub mod log;
mod record;
mod stdin;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use journal::Key;
pub use record::{
    Asked, Cpu, ExecId, ExecRecord, ExecState, InvalidExecId, Outcome, Stdin as StdinState,
};
pub use stdin::{Input, StdinClosed};

use super::events::{Event, Events};
use super::lease::InUse;
use super::snapshots::SnapshotId;
use crate::init::protocol::{self, Target};
use crate::pool::exec::{self, Flusher, Sink, Stream, Streams};
use crate::pool::{Sandbox, SandboxError, Signaller, is_full};
use crate::sys::terminal::{self, Size};
use crate::tally::Tally;
use journal::{Entry, Journal, Line};
use log::{Log, Writer};
use stdin::Stdin;

/// Where a workspace keeps its execs, below its own directory.
pub(super) const DIRECTORY: &str = "execs";

/// Bytes that are kept of each stream, if the request does not say.
pub const OUTPUT_LIMIT: u64 = 10 << 20;

/// Execs that ended and are kept; the oldest are forgotten.
const KEPT: usize = 1000;

/// Keys of execs that were forgotten, which start nothing for as long as they are known; the oldest are
/// forgotten as well.
const KEPT_KEYS: usize = 100_000;

/// Bytes of output of execs that ended that are kept; the oldest are forgotten.
const KEPT_OUTPUT: u64 = 512 << 20;

/// How long a request waits for its command to be executed; then it is told that it runs.
const STARTING: Duration = Duration::from_secs(5);

/// How long the end of a workspace waits for its execs to be noted.
const NOTING: Duration = Duration::from_secs(5);

/// A command to start, besides what init is told.
#[derive(Debug)]
pub struct Order {
    /// What it reads.
    pub input: Input,
    /// Whether stdout and stderr are told apart.
    pub streams: Streams,
    /// When it is killed.
    pub timeout: Option<Duration>,
    /// Bytes that are kept of each stream; as many as is usual if absent.
    pub output_limit: Option<u64>,
    /// What keeps it from being started a second time.
    pub key: Option<Key>,
    /// Its descriptors from 3 on; only for one with an open stdin.
    pub further: Vec<OwnedFd>,
    /// Keeps its workspace from being idle until it has ended.
    pub in_use: Option<InUse>,
    /// What is done after its end, before that is told.
    pub after: Option<After>,
}

/// Keeps what a command left behind as a snapshot, given the sandbox that it ran in.
pub struct After(Box<dyn FnOnce(Sandbox) -> BoxFuture<'static, Kept> + Send>);

/// The snapshot, or why there is none.
pub type Kept = Result<SnapshotId, String>;

impl After {
    /// Does that by `keep`.
    pub fn new<F>(keep: impl FnOnce(Sandbox) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Kept> + Send + 'static,
    {
        Self(Box::new(|sandbox| Box::pin(keep(sandbox))))
    }
}

impl std::fmt::Debug for After {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("After")
    }
}

/// What the commands of a workspace may take up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds {
    /// How many run at once.
    pub at_once: Option<u32>,
    /// Bytes that are kept of each stream.
    pub output: Option<u64>,
}

impl Bounds {
    /// How much is kept of each stream of a command for which `asked` is asked.
    fn kept(&self, asked: Option<u64>) -> Result<u64, ExecError> {
        match (asked, self.output) {
            (Some(asked), Some(most)) if asked > most => {
                Err(ExecError::TooMuchOutput { asked, most })
            }
            (Some(asked), _) => Ok(asked),
            (None, most) => Ok(most.map_or(OUTPUT_LIMIT, |most| most.min(OUTPUT_LIMIT))),
        }
    }
}

/// Why an exec was not started, or something not done to it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ExecError {
    /// There is none of that id.
    #[error(
        "there is no exec {0}; it may have been forgotten, of those that ended the last {KEPT} are kept"
    )]
    NotFound(ExecId),
    /// The key was used for another request.
    #[error("the idempotency key '{0}' was used for another request")]
    OtherRequest(String),
    /// The key was used for an exec that is forgotten.
    #[error(
        "what the idempotency key '{0}' started has ended and was forgotten; it is not started again"
    )]
    Forgotten(String),
    /// As many run as may at once.
    #[error("{0} commands run, which is as many as the workspace's limit on execs allows at once")]
    TooMany(u32),
    /// More of its output is to be kept than may be.
    #[error("output_limit is {asked}, above the workspace's limit on output, {most}")]
    TooMuchOutput {
        /// How much, in bytes.
        asked: u64,
        /// How much may be.
        most: u64,
    },
    /// It has ended.
    #[error("the exec {0} has ended")]
    Ended(ExecId),
    /// It has no terminal.
    #[error("the exec {0} has no terminal")]
    NoTerminal(ExecId),
    /// Its stdin takes nothing more.
    #[error("the exec {0} reads no more: {1}")]
    StdinClosed(ExecId, StdinClosed),
    /// Its sandbox refused, or ended.
    #[error(transparent)]
    Sandbox(Arc<SandboxError>),
    /// The request that this one repeats could not be started.
    #[error("the request that had this idempotency key first could not be started")]
    NotStarted,
    /// The workspace was removed meanwhile, or the provider is ending.
    #[error("the workspace was removed meanwhile, or the provider is ending")]
    Closed,
    /// The host failed.
    #[error("{0}: {1}")]
    Host(&'static str, Arc<io::Error>),
}

impl ExecError {
    /// Whether the disk, its inodes or a quota are full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Sandbox(error) => error.is_no_space(),
            Self::Host(_, error) => is_full(error),
            _ => false,
        }
    }
}

impl From<SandboxError> for ExecError {
    fn from(error: SandboxError) -> Self {
        Self::Sandbox(Arc::new(error))
    }
}

/// The execs of one workspace.
#[derive(Debug)]
pub struct Execs {
    directory: PathBuf,
    journal: Journal,
    events: Arc<Events>,
    tally: Arc<Tally>,
    table: Mutex<Table>,
    tasks: TaskTracker,
    /// Bytes of output of execs that ended.
    kept_output: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    all: BTreeMap<ExecId, Arc<Exec>>,
    keys: HashMap<String, ExecId>,
    forgotten: ForgottenKeys,
}

/// Keys of execs that were forgotten.
#[derive(Debug, Default)]
struct ForgottenKeys {
    all: HashSet<Arc<str>>,
    /// The same, the oldest first.
    order: VecDeque<Arc<str>>,
}

/// One exec.
#[derive(Debug)]
pub struct Exec {
    id: ExecId,
    key: Option<Key>,
    record: Mutex<ExecRecord>,
    log: Mutex<Option<Arc<Log>>>,
    log_directory: PathBuf,
    phase: watch::Sender<Phase>,
    /// Somebody was told that it was started, although that was not known.
    told: AtomicBool,
    kill: CancellationToken,
    stdin: Stdin,
    signalled: Notify,
    /// Until it has ended.
    live: Mutex<Option<Live>>,
    /// It has ended, and the snapshot of what it left is not taken yet.
    keeping: AtomicBool,
}

/// What reaches an exec that runs.
#[derive(Debug)]
struct Live {
    signaller: Signaller,
    flusher: Flusher,
    terminal: Option<OwnedFd>,
}

#[derive(Debug, Clone)]
enum Phase {
    Starting,
    /// It could not be started; that is being noted.
    Withdrawn,
    /// It could not be started.
    Refused(ExecError),
    Running,
    Ended,
}

/// Whether a request started its exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    /// It did.
    Started,
    /// An earlier request with the same key did.
    Repeated,
}

impl Execs {
    /// The execs of a workspace that keeps them in `directory`. What ran when the provider ended is
    /// lost.
    ///
    /// # Errors
    /// Those of reading the directory.
    pub fn open(directory: &Path, events: Arc<Events>, tally: Arc<Tally>) -> io::Result<Self> {
        let (journal, found) = Journal::open(directory)?;
        let mut table = Table::default();
        found
            .forgotten
            .into_iter()
            .for_each(|key| table.forgotten.add(&key));
        let mut output = 0;
        let mut lost = Vec::new();
        for (id, mut entry) in found.entries {
            let log_directory = directory.join(id.to_string());
            if entry.exec.state == ExecState::Running {
                let log = Log::open(log_directory.clone(), Default::default())?;
                let outcome = Outcome::Lost {
                    detail: "derrick ended while it ran".to_owned(),
                };
                let wall = crate::clock::precise() - entry.exec.started;
                // Clocks are set back, and disks break.
                let wall = Duration::try_from_secs_f64(wall).unwrap_or_default();
                entry.exec.end(outcome, wall, None);
                entry
                    .exec
                    .count(log.counts(Stream::Stdout), log.counts(Stream::Stderr));
                lost.push(Line::Exec(Box::new(entry.clone())));
            }
            if let Some(key) = &entry.key {
                table.keys.insert(key.name.clone(), id);
            }
            output += entry.exec.stdout.kept() + entry.exec.stderr.kept();
            table
                .all
                .insert(id, Arc::new(Exec::ended(entry, log_directory)));
        }
        // When they were lost is told the same from now on.
        if let Err(error) = journal.append_all(&lost) {
            tracing::warn!(%error, "cannot note which execs were lost");
        }
        let execs = Self {
            directory: directory.to_owned(),
            journal,
            events,
            tally,
            table: Mutex::new(table),
            tasks: TaskTracker::new(),
            kept_output: AtomicU64::new(output),
        };
        // The journal still has those that were forgotten lately.
        execs.forget_oldest();
        execs.forget_unknown()?;
        Ok(execs)
    }

    /// Starts a command, unless its key says that it was started before; returns when it runs, or
    /// might as well.
    ///
    /// # Errors
    /// Where it cannot be started; there is no exec then, and its key is free.
    pub async fn start<E: From<ExecError>>(
        self: &Arc<Self>,
        order: Order,
        bounds: Bounds,
        command: protocol::Exec,
        sandbox: impl Future<Output = Result<Sandbox, E>>,
    ) -> Result<(Arc<Exec>, Novelty), E> {
        let exec = match self.reserve(&order, bounds, &command)? {
            (exec, Novelty::Repeated) => {
                exec.until_running().await?;
                return Ok((exec, Novelty::Repeated));
            }
            (exec, Novelty::Started) => exec,
        };
        match exec.key {
            // Before anything is started: what is not on disk could be started a second time.
            Some(_) => {
                self.note(&exec).await;
                self.launch(&exec, order, command, sandbox).await?;
            }
            // Before it is answered: what was answered is known after a crash.
            None => {
                tokio::join!(
                    self.note(&exec),
                    self.launch(&exec, order, command, sandbox)
                )
                .1?
            }
        }
        Ok((exec, Novelty::Started))
    }

    /// Starts what is reserved; returns when it runs, or might as well.
    async fn launch<E: From<ExecError>>(
        self: &Arc<Self>,
        exec: &Arc<Exec>,
        order: Order,
        command: protocol::Exec,
        sandbox: impl Future<Output = Result<Sandbox, E>>,
    ) -> Result<(), E> {
        let sandbox = match sandbox.await {
            Ok(_) if self.tasks.is_closed() => Err(ExecError::Closed.into()),
            other => other,
        };
        let sandbox = match sandbox {
            Ok(sandbox) => sandbox,
            Err(error) => {
                self.drop_reserved(exec, ExecError::NotStarted).await;
                return Err(error);
            }
        };
        let driver = Driver {
            execs: Arc::clone(self),
            exec: Arc::clone(exec),
            sandbox,
            bounds: exec::Bounds {
                deadline: order
                    .timeout
                    .map(|timeout| tokio::time::Instant::now() + timeout),
                kill: exec.kill.clone(),
            },
            started: Instant::now(),
        };
        self.tasks.spawn(driver.drive(order, command));
        Ok(exec.until_running().await?)
    }

    fn reserve(
        &self,
        order: &Order,
        bounds: Bounds,
        command: &protocol::Exec,
    ) -> Result<(Arc<Exec>, Novelty), ExecError> {
        let mut table = self.table();
        if let Some(key) = &order.key
            && table.forgotten.all.contains(&*key.name)
        {
            return Err(ExecError::Forgotten(key.name.clone()));
        }
        if let Some(key) = &order.key
            && let Some(earlier) = table.keys.get(&key.name).and_then(|id| table.all.get(id))
        {
            return match &earlier.key {
                Some(same) if same == key => Ok((Arc::clone(earlier), Novelty::Repeated)),
                _ => Err(ExecError::OtherRequest(key.name.clone())),
            };
        }
        let kept = bounds.kept(order.output_limit)?;
        if let Some(most) = bounds.at_once
            && table.running() >= usize::try_from(most).unwrap_or(usize::MAX)
        {
            return Err(ExecError::TooMany(most));
        }
        let exec = Arc::new(Exec::new(order, command, kept, &self.directory));
        table.all.insert(exec.id, Arc::clone(&exec));
        if let Some(key) = &order.key {
            table.keys.insert(key.name.clone(), exec.id);
        }
        Ok((exec, Novelty::Started))
    }

    /// The exec of that id.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, id: ExecId) -> Result<Arc<Exec>, ExecError> {
        let table = self.table();
        let found = table.all.get(&id).cloned();
        found.ok_or(ExecError::NotFound(id))
    }

    /// All that are known, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<ExecRecord> {
        let all: Vec<_> = self.table().all.values().cloned().collect();
        all.iter().map(|exec| exec.record()).collect()
    }

    /// How many run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.table().running()
    }

    /// Waits until the ends of all that ran are noted and told; their sandbox must have ended.
    pub async fn settle(&self) {
        let all: Vec<_> = self.table().all.values().cloned().collect();
        // From when it is known to run until its end was told; `live` goes earlier.
        let ran = all.into_iter().filter(|exec| {
            matches!(*exec.phase.borrow(), Phase::Running) || exec.lock_live().is_some()
        });
        let ends = async {
            for exec in ran {
                exec.until_end().await;
            }
        };
        if tokio::time::timeout(NOTING, ends).await.is_err() {
            tracing::warn!("execs do not end with their sandbox");
        }
    }

    /// Takes no more, and waits until all have ended, which their sandbox must have.
    pub async fn close(&self) {
        self.tasks.close();
        if tokio::time::timeout(NOTING, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("execs do not end with their sandbox");
        }
    }

    /// Counts what an exec that ended left in its log; whether there is something to forget.
    fn is_over_bounds(&self, log: &Log) -> bool {
        let added = log.counts(Stream::Stdout).kept() + log.counts(Stream::Stderr).kept();
        let output = self.kept_output.fetch_add(added, Ordering::Relaxed) + added;
        output > KEPT_OUTPUT || self.table().all.len() > KEPT
    }

    /// Forgets the oldest of those that ended, where there are too many or they are too large.
    fn forget_oldest(&self) {
        let mut forgotten = Vec::new();
        {
            let mut table = self.table();
            let mut count = 0;
            let mut output = 0;
            for exec in table.all.values().rev() {
                let record = exec.lock_record();
                if record.state == ExecState::Running {
                    continue;
                }
                count += 1;
                let own = record.stdout.kept() + record.stderr.kept();
                output += own;
                if count > KEPT || (output > KEPT_OUTPUT && count > 1) {
                    forgotten.push(Arc::clone(exec));
                    self.kept_output.fetch_sub(own, Ordering::Relaxed);
                }
            }
            for exec in &forgotten {
                table.drop_exec(exec);
                if let Some(key) = &exec.key {
                    table.forgotten.add(&key.name);
                }
            }
        }
        let keys = forgotten.iter().filter_map(|exec| exec.key.as_ref());
        let lines: Vec<_> = keys
            .map(|key| Line::Forgotten {
                forgotten: key.name.clone(),
            })
            .collect();
        if let Err(error) = self.journal.append_all(&lines) {
            tracing::warn!(%error, "cannot note the keys of execs that are forgotten");
        }
        for exec in forgotten {
            remove_directory(&exec.log_directory);
        }
    }

    /// Removes the logs of execs that the journal does not have.
    fn forget_unknown(&self) -> io::Result<()> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let table = self.table();
        for entry in entries {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.parse::<ExecId>().ok());
            if id.is_some_and(|id| !table.all.contains_key(&id)) {
                remove_directory(&self.directory.join(name));
            }
        }
        Ok(())
    }

    async fn note(self: &Arc<Self>, exec: &Arc<Exec>) {
        let (this, exec) = (Arc::clone(self), Arc::clone(exec));
        let count = self.table().lines();
        let kept = move || {
            let (all, forgotten) = {
                let table = this.table();
                let all: Vec<_> = table.all.values().cloned().collect();
                (all, table.forgotten.order.clone())
            };
            let keys = forgotten.iter().map(|key| Line::Forgotten {
                forgotten: key.to_string(),
            });
            let execs = all.iter().map(|exec| Line::Exec(Box::new(exec.entry())));
            keys.chain(execs).collect()
        };
        self.journal.append(move || exec.entry(), kept, count).await;
    }

    /// Forgets an exec that never ran; why is told to those who repeat its request.
    async fn drop_reserved(self: &Arc<Self>, exec: &Arc<Exec>, error: ExecError) {
        // For whoever has found it meanwhile.
        let outcome = Outcome::Lost {
            detail: crate::chain::text(&error),
        };
        exec.lock_record().end(outcome, Duration::ZERO, None);
        if let Ok(log) = exec.log() {
            log.close();
        }
        self.table().drop_exec(exec);
        exec.phase.send_replace(Phase::Withdrawn);
        // Before it is answered: its key must be free after a crash.
        self.note(exec).await;
        exec.phase.send_replace(Phase::Refused(error));
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn running(&self) -> usize {
        let running = |exec: &&Arc<Exec>| exec.lock_record().state == ExecState::Running;
        self.all.values().filter(running).count()
    }

    /// How many there are of what the journal has a line for at least.
    fn lines(&self) -> usize {
        self.all.len() + self.forgotten.order.len()
    }

    fn drop_exec(&mut self, exec: &Exec) {
        self.all.remove(&exec.id);
        if let Some(key) = &exec.key {
            self.keys.remove(&key.name);
        }
    }
}

impl ForgottenKeys {
    fn add(&mut self, key: &str) {
        let key: Arc<str> = key.into();
        if self.all.insert(Arc::clone(&key)) {
            self.order.push_back(key);
        }
        if self.order.len() > KEPT_KEYS
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
    }
}

fn remove_directory(path: &Path) {
    match std::fs::remove_dir_all(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, path = %path.display(), "cannot remove old output"),
    }
}

impl Exec {
    fn new(order: &Order, command: &protocol::Exec, kept: u64, parent: &Path) -> Self {
        let id = ExecId::generate();
        let log_directory = parent.join(id.to_string());
        let (asked, command_cut) = Asked::of(&command.program).shortened();
        let tty = command.terminal.is_some();
        let stdin = match order.input {
            Input::Open => StdinState::Open,
            _ if tty => StdinState::Open,
            Input::Nothing | Input::Bytes(_) => StdinState::None,
        };
        let record = ExecRecord {
            id,
            state: ExecState::Running,
            asked,
            command_cut,
            cwd: command.directory.clone(),
            user: command.user.clone(),
            tty,
            streams: if tty { Streams::Merged } else { order.streams },
            stdin,
            started: crate::clock::precise(),
            ended: None,
            outcome: None,
            exit_code: None,
            wall: None,
            cpu: None,
            peak_memory: None,
            stdout: log::Counts::default(),
            stderr: log::Counts::default(),
            truncated: false,
            detached: 0,
            snapshot: None,
            snapshot_failed: None,
        };
        let log = Log::new(log_directory.clone(), kept);
        Self {
            id,
            key: order.key.clone(),
            record: Mutex::new(record),
            log: Mutex::new(Some(Arc::new(log))),
            log_directory,
            phase: watch::Sender::new(Phase::Starting),
            told: AtomicBool::new(false),
            kill: CancellationToken::new(),
            stdin: Stdin::default(),
            signalled: Notify::new(),
            live: Mutex::new(None),
            keeping: AtomicBool::new(false),
        }
    }

    fn ended(entry: Entry, log_directory: PathBuf) -> Self {
        Self {
            id: entry.exec.id,
            key: entry.key,
            record: Mutex::new(entry.exec),
            log: Mutex::new(None),
            log_directory,
            phase: watch::Sender::new(Phase::Ended),
            told: AtomicBool::new(true),
            kill: CancellationToken::new(),
            stdin: Stdin::default(),
            signalled: Notify::new(),
            live: Mutex::new(None),
            keeping: AtomicBool::new(false),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> ExecId {
        self.id
    }

    /// What is told of it now.
    #[must_use]
    pub fn record(&self) -> ExecRecord {
        let mut record = self.lock_record().clone();
        // Who is told of its end is told of the snapshot with it.
        if self.keeping.load(Ordering::SeqCst) {
            record.forget_end();
        }
        if record.state == ExecState::Running {
            let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(log) = &*log {
                record.count(log.counts(Stream::Stdout), log.counts(Stream::Stderr));
            }
            if record.stdin == StdinState::Open && self.stdin.is_closed() {
                record.stdin = StdinState::Closed;
            }
        }
        record
    }

    /// Its output. Blocking, for one that ended.
    ///
    /// # Errors
    /// Those of reading its directory.
    pub fn log(&self) -> io::Result<Arc<Log>> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        match &*log {
            Some(log) => Ok(Arc::clone(log)),
            None => {
                let counts = {
                    let record = self.lock_record();
                    [record.stdout, record.stderr]
                };
                let opened = Arc::new(Log::open(self.log_directory.clone(), counts)?);
                *log = Some(Arc::clone(&opened));
                Ok(opened)
            }
        }
    }

    /// Waits for its end.
    pub async fn until_end(&self) -> ExecRecord {
        let mut phase = self.phase.subscribe();
        // The sender is in `self`.
        let _ = phase
            .wait_for(|phase| matches!(phase, Phase::Ended | Phase::Refused(_)))
            .await;
        self.record()
    }

    /// Waits until it runs, has ended, or has not been executed for a while.
    async fn until_running(&self) -> Result<(), ExecError> {
        let mut phase = self.phase.subscribe();
        let past_start =
            phase.wait_for(|phase| !matches!(phase, Phase::Starting | Phase::Withdrawn));
        match tokio::time::timeout(STARTING, past_start).await {
            Ok(Ok(phase)) => match &*phase {
                Phase::Refused(error) => Err(error.clone()),
                _ => Ok(()),
            },
            _ => {
                self.told.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Kills its whole process tree, and waits for its end.
    pub async fn kill(&self) -> ExecRecord {
        self.kill.cancel();
        self.until_end().await
    }

    /// Signals it.
    ///
    /// # Errors
    /// `Ended`, `Sandbox`.
    pub async fn signal(&self, signal: i32, target: Target) -> Result<(), ExecError> {
        let signaller = || self.lock_live().as_ref().map(|live| live.signaller.clone());
        let mut found = signaller();
        if found.is_none() {
            self.until_running().await?;
            found = signaller();
        }
        match found {
            Some(signaller) => {
                signaller.signal(signal, target).await?;
                self.signalled.notify_one();
                Ok(())
            }
            None => Err(ExecError::Ended(self.id)),
        }
    }

    /// Waits until it is signalled; returns at once if it was since the last call. For one waiter.
    pub(super) async fn until_signalled(&self) {
        self.signalled.notified().await;
    }

    /// Returns when all that it has printed by now is in its log.
    pub(super) async fn flush(&self) {
        let flusher = self.lock_live().as_ref().map(|live| live.flusher.clone());
        if let Some(flusher) = flusher {
            flusher.flush().await;
        }
    }

    /// Bytes in its stdin that it has not read.
    pub(super) async fn unread(&self) -> u64 {
        self.stdin.unread().await
    }

    /// Gives its terminal another size.
    ///
    /// # Errors
    /// `NoTerminal`, `Ended`, `Host`.
    pub async fn resize(&self, size: Size) -> Result<(), ExecError> {
        if !self.lock_record().tty {
            return Err(ExecError::NoTerminal(self.id));
        }
        self.until_running().await?;
        let live = self.lock_live();
        match live.as_ref().and_then(|live| live.terminal.as_ref()) {
            Some(terminal) => terminal::resize(terminal.as_fd(), size)
                .map_err(|error| ExecError::Host("resizing a terminal", Arc::new(error))),
            None => Err(ExecError::Ended(self.id)),
        }
    }

    /// Writes to its stdin; returns when all is in the pipe or the terminal.
    ///
    /// # Errors
    /// `StdinClosed`.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), ExecError> {
        self.write_counting(bytes, &mut 0).await
    }

    /// Writes to its stdin; returns when all is in the pipe or the terminal. `taken` grows by what
    /// is, also if that is not all.
    ///
    /// # Errors
    /// `StdinClosed`.
    pub async fn write_counting(&self, bytes: &[u8], taken: &mut u64) -> Result<(), ExecError> {
        let write = async {
            self.check_open_stdin()?;
            self.until_running().await?;
            let written = self.stdin.write(bytes, taken).await;
            written.map_err(|closed| ExecError::StdinClosed(self.id, closed))
        };
        self.unless_ended(write).await
    }

    /// Ends its stdin; to a terminal, the character for it is sent.
    ///
    /// # Errors
    /// `StdinClosed`.
    pub async fn close_stdin(&self) -> Result<(), ExecError> {
        let close = async {
            self.check_open_stdin()?;
            self.until_running().await?;
            let closed = self.stdin.close().await;
            closed.map_err(|closed| ExecError::StdinClosed(self.id, closed))
        };
        self.unless_ended(close).await
    }

    fn check_open_stdin(&self) -> Result<(), ExecError> {
        match self.lock_record().stdin {
            StdinState::None => Err(ExecError::StdinClosed(self.id, StdinClosed::NeverOpen)),
            StdinState::Open | StdinState::Closed => Ok(()),
        }
    }

    async fn unless_ended(
        &self,
        work: impl Future<Output = Result<(), ExecError>>,
    ) -> Result<(), ExecError> {
        tokio::select! {
            biased;
            done = work => done,
            _ = self.until_end() => Err(ExecError::StdinClosed(self.id, StdinClosed::Ended)),
        }
    }

    fn entry(&self) -> Entry {
        Entry {
            exec: self.lock_record().clone(),
            key: self.key.clone(),
            never_ran: matches!(*self.phase.borrow(), Phase::Withdrawn | Phase::Refused(_)),
        }
    }

    fn lock_live(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_record(&self) -> MutexGuard<'_, ExecRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches one exec from its start to its end.
struct Driver {
    execs: Arc<Execs>,
    exec: Arc<Exec>,
    sandbox: Sandbox,
    bounds: exec::Bounds,
    started: Instant,
}

impl Driver {
    async fn drive(self, mut order: Order, command: protocol::Exec) {
        let _in_use = order.in_use.take();
        let after = order.after.take();
        let log = {
            let log = self.exec.log.lock().unwrap_or_else(PoisonError::into_inner);
            log.clone()
        };
        let Some(log) = log else { return };
        let mut sink = LogSink(Some(Writer::new(Arc::clone(&log))));
        let before = self.sandbox.hits();
        let ended = self.run(order, command, &mut sink).await;
        drop(sink);
        self.exec.lock_live().take();
        self.exec.stdin.end();
        let mut at = tokio::time::Instant::now();
        let (outcome, exit) = match ended {
            Ok(end) => {
                at = end.at;
                let after = self.sandbox.hits();
                let mut outcome = Outcome::of_exit(&end.exit, end.cause).at_limits(&before, &after);
                if end.exit.full && self.sandbox.storage().is_bounded() {
                    outcome = outcome.on_full_disk();
                }
                (outcome, Some(end.exit))
            }
            Err(error @ SandboxError::Refused(_)) if !self.exec.told.load(Ordering::Relaxed) => {
                return self.execs.drop_reserved(&self.exec, error.into()).await;
            }
            Err(error) => (Outcome::of_error(&error), None),
        };
        let limit = match outcome {
            Outcome::Oom => Some("memory"),
            Outcome::PidsLimit { .. } => Some("pids"),
            Outcome::DiskQuota { .. } => Some("disk"),
            _ => None,
        };
        if let Some(limit) = limit {
            let exec = self.exec.id();
            self.execs.events.tell(Event::LimitHit { limit, exec });
        }
        let wall = at.into_std().duration_since(self.started);
        self.execs.tally.outcomes.count(outcome.word());
        self.execs.tally.execs.count(wall);
        if after.is_some() {
            self.exec.keeping.store(true, Ordering::SeqCst);
            // What is known of it if derrick ends in between.
            let cut_off = "derrick ended before it was taken".to_owned();
            self.exec.lock_record().snapshot_failed = Some(cut_off);
        }
        {
            let mut record = self.exec.lock_record();
            record.end(outcome, wall, exit.as_ref());
            record.count(log.counts(Stream::Stdout), log.counts(Stream::Stderr));
            let printed = record.stdout.bytes + record.stderr.bytes;
            let tally = &self.execs.tally;
            tally.printed.fetch_add(printed, Ordering::Relaxed);
            tally
                .given
                .fetch_add(self.exec.stdin.given(), Ordering::Relaxed);
        }
        log.close();
        self.execs.note(&self.exec).await;
        // Whoever holds the sandbox counts as one who may start something there.
        let Self {
            execs,
            exec,
            sandbox,
            ..
        } = self;
        if let Some(After(keep)) = after {
            let kept = keep(sandbox).await;
            {
                let mut record = exec.lock_record();
                match kept {
                    Ok(snapshot) => {
                        record.snapshot = Some(snapshot);
                        record.snapshot_failed = None;
                    }
                    Err(reason) => record.snapshot_failed = Some(reason),
                }
            }
            exec.keeping.store(false, Ordering::SeqCst);
            execs.note(&exec).await;
        }
        execs.events.tell(Event::ExecEnded(Box::new(exec.record())));
        exec.phase.send_replace(Phase::Ended);
        if execs.is_over_bounds(&log) {
            let _ = tokio::task::spawn_blocking(move || execs.forget_oldest()).await;
        }
    }

    async fn run(
        &self,
        order: Order,
        command: protocol::Exec,
        sink: &mut LogSink,
    ) -> Result<exec::End, SandboxError> {
        let given = match command.terminal {
            Some(_) => None,
            None => self
                .exec
                .stdin
                .open(&order.input)
                .await
                .map_err(SandboxError::Unreachable)?,
        };
        let given = given.into_iter().chain(order.further).collect();
        let mut started = exec::start(&self.sandbox, command, given, order.streams).await?;
        *self.exec.lock_live() = Some(Live {
            signaller: started.running.signaller(),
            flusher: started.flusher(),
            terminal: None,
        });
        tokio::select! {
            terminal = started.until_running() => {
                let terminal = self.take_terminal(terminal).await;
                if matches!(terminal, Err(SandboxError::Unreachable(_))) {
                    // What runs is not watched: its end would not be known.
                    let _ = started.running.kill().await;
                }
                let terminal = terminal?;
                if let Some(live) = &mut *self.exec.lock_live() {
                    live.terminal = terminal;
                }
                self.exec.phase.send_replace(Phase::Running);
                self.execs.events.tell(Event::ExecStarted(Box::new(self.exec.record())));
            }
            // What did not start by then is killed below.
            () = self.bounds.passed() => {}
        }
        let fed = async {
            tokio::select! {
                () = self.exec.stdin.feed(order.input) => {}
                () = self.exec.stdin.ended() => {}
            }
        };
        let ending = async {
            let ended = started.to_end(&self.sandbox, sink, &self.bounds).await;
            self.exec.stdin.end();
            ended
        };
        tokio::join!(fed, ending).1
    }

    /// Has its stdin be written to its terminal, if it has one.
    async fn take_terminal(
        &self,
        terminal: Result<Option<OwnedFd>, SandboxError>,
    ) -> Result<Option<OwnedFd>, SandboxError> {
        let terminal = terminal?;
        if let Some(terminal) = &terminal {
            let taken = self.exec.stdin.set_terminal(terminal).await;
            taken.map_err(SandboxError::Unreachable)?;
        }
        Ok(terminal)
    }
}

/// Writes output to a log, on a thread where that may block.
struct LogSink(Option<Writer>);

impl Sink for LogSink {
    async fn take(&mut self, stream: Stream, bytes: Vec<u8>) {
        let Some(mut writer) = self.0.take() else {
            return;
        };
        let written = tokio::task::spawn_blocking(move || {
            writer.append(stream, &bytes);
            writer
        });
        match written.await {
            Ok(writer) => self.0 = Some(writer),
            Err(error) => tracing::error!(%error, "writing output failed"),
        }
    }
}
