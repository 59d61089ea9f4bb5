//! One living sandbox, as the provider holds it: requests to its init, and its end.

mod pause;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{self, oneshot};
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};

use super::channel::{AsyncChannel, watch};
use super::is_full;
use super::spawner::{OwnedGroup, Spawner, SpawnerError};
use crate::init::protocol::{
    Attempt, Exec, Exit, Refusal, Reply, Request, RequestId, Room, Target,
};
use crate::sandbox::cgroups::{Counters, Group, Hits, Throttle};
use crate::sandbox::{Capacity, Enforcement, MemoryFiles, Network, Storage};
use crate::spawner::changes::protocol::Inquiry;
use crate::sys::channel::Received;

pub use pause::Brake;

/// How long a sandbox may take to end by itself where it cannot be killed.
pub(super) const OWN_END: Duration = Duration::from_secs(10);

/// How long init may take to kill all processes.
const KILLING: Duration = Duration::from_millis(500);

/// How long it may take them to be gone then, before the spawner sees to it.
const ENDING: Duration = Duration::from_secs(2);

/// How long init may take to stop all processes.
const HOLD_PATIENCE: Duration = Duration::from_secs(2);

/// How long init may take to say how full its filesystem is.
const ROOM_PATIENCE: Duration = Duration::from_secs(1);

/// How much is attended to beside, at most: each holds a descriptor of the provider's, of which other
/// sandboxes need some as well.
const MOST_ATTENDED: usize = 256;

/// Why a sandbox did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Its init refused, for a reason inside.
    #[error("{} failed inside: {}", .0.attempt, io::Error::from_raw_os_error(.0.errno))]
    Refused(Refusal),
    /// It ended.
    #[error("the sandbox is gone: {0}")]
    Gone(Gone),
    /// Its socket failed.
    #[error("the sandbox cannot be reached")]
    Unreachable(#[source] io::Error),
}

/// Why a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// Its workspace was reset.
    Reset,
    /// Its workspace was removed, or its work was done.
    Removed,
    /// The provider is ending.
    Shutdown,
    /// Its limit on memory was reached.
    OutOfMemory,
    /// Its files became a snapshot.
    Frozen,
    /// Nobody asked for it: its init died or said what no init says.
    Lost,
}

/// A living sandbox; clones share it. With the last one it ends.
#[derive(Debug, Clone)]
pub struct Sandbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    spawner: Spawner,
    connection: Arc<Connection>,
    init: AsyncFd<OwnedFd>,
    enforcement: Enforcement,
    storage: Storage,
    memory_files: MemoryFiles,
    next: AtomicU64,
    reader: tokio::task::JoinHandle<()>,
    attended: Mutex<Attended>,
    /// How many want all processes to stand still.
    holds: tokio::sync::Mutex<u32>,
    paused: AtomicBool,
    /// Whether it is the kernel that holds them; changed with `holds` locked.
    frozen: AtomicBool,
    alarm: Mutex<Option<AbortHandle>>,
}

/// What is done beside, the oldest first.
#[derive(Debug, Default)]
struct Attended {
    tasks: JoinSet<()>,
    order: VecDeque<AbortHandle>,
}

#[derive(Debug)]
struct Connection {
    channel: AsyncChannel,
    /// `None` once the sandbox ended.
    waiting: Mutex<Option<HashMap<RequestId, Waiter>>>,
    /// Why nothing is asked of it any more, once that is so.
    gone: sync::watch::Sender<Option<Gone>>,
    /// Who waits for its end.
    ending: Mutex<Option<Awaited>>,
    group: Mutex<Option<OwnedGroup>>,
    /// Whether memory that it uses was taken before there was a limit on that.
    uncounted: AtomicBool,
    /// How many want the limit on processors lifted.
    hurried: Mutex<usize>,
}

/// What init says when it is to end.
#[derive(Debug)]
struct Awaited {
    killed: Option<oneshot::Sender<Room>>,
    ended: oneshot::Sender<u64>,
}

/// A sandbox of which nothing is asked any more, on its way out. It ends when this is dropped.
#[derive(Debug)]
pub struct Ending {
    sandbox: Sandbox,
    stage: Stage,
    /// Once it is being killed.
    hurry: Option<Hurry>,
}

#[derive(Debug)]
enum Stage {
    /// Nobody has killed its processes.
    Left(oneshot::Receiver<Room>, oneshot::Receiver<u64>),
    /// Its init has.
    Killed(Room, oneshot::Receiver<u64>),
    /// Somebody else does, or init was killed with them: nothing is told.
    Untold,
}

/// What there was of a sandbox when it was ended, as its init said.
#[derive(Debug, Clone, Copy, Default)]
pub struct Left {
    /// Processes, init apart.
    pub processes: Option<u64>,
    /// How full the filesystem was that it wrote to.
    pub room: Option<Room>,
}

#[derive(Debug)]
enum Waiter {
    Reply(oneshot::Sender<Received<Reply>>),
    /// An exec that was started.
    Exit(oneshot::Sender<Exit>),
    /// An exec that was not yet: its first reply, then its exit.
    Exec(oneshot::Sender<Received<Reply>>, oneshot::Sender<Exit>),
}

/// A command in a sandbox, from the moment that its init was asked for it.
#[derive(Debug)]
pub struct Running {
    sandbox: Sandbox,
    id: RequestId,
    first_reply: Option<oneshot::Receiver<Received<Reply>>>,
    exit: oneshot::Receiver<Exit>,
}

/// Signals a command.
#[derive(Debug, Clone)]
pub struct Signaller {
    sandbox: Sandbox,
    id: RequestId,
}

impl SandboxError {
    /// Whether the disk, its inodes or a quota are full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Refused(refusal) => is_full(&io::Error::from_raw_os_error(refusal.errno)),
            Self::Gone(_) => false,
            Self::Unreachable(error) => is_full(error),
        }
    }
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "its workspace was reset",
            Self::Removed => "its workspace was removed",
            Self::Shutdown => "derrick is ending",
            Self::OutOfMemory => "it reached its limit on memory",
            Self::Frozen => "its workspace was fenced, or its files became a snapshot",
            Self::Lost => "its init died or was taken over",
        })
    }
}

impl Sandbox {
    pub(super) fn new(
        spawner: Spawner,
        channel: AsyncChannel,
        init: OwnedFd,
        enforcement: Enforcement,
        memory_files: MemoryFiles,
        group: Option<OwnedGroup>,
        storage: Storage,
    ) -> io::Result<Self> {
        let alarm = group
            .as_ref()
            .map_or(Ok(None), |group| group.memory_alarm())?;
        let connection = Arc::new(Connection {
            channel,
            ending: Mutex::default(),
            waiting: Mutex::new(Some(HashMap::new())),
            gone: sync::watch::Sender::default(),
            group: Mutex::new(group),
            uncounted: AtomicBool::new(false),
            hurried: Mutex::default(),
        });
        let init = watch(init, Interest::READABLE)?;
        // Aborted with the last handle, which closes the socket, on which init ends.
        let reader = tokio::spawn(Arc::clone(&connection).read());
        let alarm = alarm
            .map(|alarm| watch(alarm, Interest::READABLE))
            .transpose()?;
        let shared = Arc::new_cyclic(|shared: &Weak<Shared>| Shared {
            spawner,
            connection,
            init,
            enforcement,
            storage,
            memory_files,
            next: AtomicU64::new(1),
            reader,
            attended: Mutex::default(),
            holds: tokio::sync::Mutex::default(),
            paused: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            alarm: Mutex::new(alarm.map(|alarm| listen(alarm, shared.clone()))),
        });
        Ok(Self { shared })
    }

    /// What the kernel enforces on it.
    #[must_use]
    pub fn enforcement(&self) -> &Enforcement {
        &self.shared.enforcement
    }

    /// Lifts its limit on processors until this is dropped: init has its share of it, and what it is
    /// waited for must not take as long as those take who use it up.
    pub(super) fn hurry(&self) -> Hurry {
        let connection = Arc::clone(&self.shared.connection);
        connection.count_hurried(|count| count + 1);
        Hurry(connection)
    }

    /// What the kernel counts of all its processes together, where it is limited.
    #[must_use]
    pub fn counters(&self) -> Option<Counters> {
        let group = self.shared.connection.group();
        group.as_ref().map(|group| group.counters())
    }

    /// How often it met a limit so far.
    #[must_use]
    pub fn hits(&self) -> Hits {
        self.shared.connection.hits()
    }

    /// Whether there is a ceiling for its memory.
    #[must_use]
    pub fn limits_memory(&self) -> bool {
        let group = self.shared.connection.group();
        group.as_ref().is_some_and(|group| group.limits_memory())
    }

    /// Whether what is put into its files is memory that no limit bounds: one on disk does.
    #[must_use]
    pub fn keeps_files_in_boundless_memory(&self) -> bool {
        matches!(
            self.storage(),
            Storage::Memory(Capacity { bytes: None, .. })
        )
    }

    /// Whether the ceiling for its memory leaves out what it used when it was given one.
    #[must_use]
    pub fn has_uncounted_memory(&self) -> bool {
        self.limits_memory() && self.shared.connection.uncounted.load(Ordering::Relaxed)
    }

    /// The name of its control groups, if it has some.
    #[must_use]
    pub fn group_name(&self) -> Option<String> {
        let group = self.shared.connection.group();
        group.as_ref().and_then(|group| group.name())
    }

    /// The sizes of its filesystems in memory, from its start on.
    #[must_use]
    pub fn memory_files(&self) -> MemoryFiles {
        self.shared.memory_files
    }

    /// Changes its control groups to what is asked for `after` this, of the same name where it has some.
    /// For one caller at a time.
    ///
    /// # Errors
    /// `Failed`, with `EBUSY` where less memory than it uses is asked for; it is as it was then.
    pub async fn regroup(&self, after: Option<Group>) -> Result<(), SpawnerError> {
        let Shared {
            spawner,
            connection,
            ..
        } = &*self.shared;
        let before = connection.group().as_deref().cloned();
        let Some(change) = Group::change(before.as_ref(), after) else {
            return Ok(());
        };
        // Taking memory away takes the kernel time.
        let set = async |group: Group| match spawn_blocking(move || group.make()).await {
            Ok(made) => made.map_err(SpawnerError::Failed),
            Err(error) => Err(SpawnerError::Unreachable(error.into())),
        };
        // What was not limited before is lifted again.
        let undone = Group::change(change.kept.as_ref(), before);
        let undone = undone.and_then(|undone| undone.kept);
        let undo = async || {
            if let Some(undone) = undone.clone()
                && let Err(error) = set(undone).await
            {
                tracing::warn!(%error, "cannot set limits back to what they were");
            }
        };
        if let Some(kept) = change.kept
            && let Err(error) = set(kept).await
        {
            undo().await;
            return Err(error);
        }
        if let Some(fresh) = change.fresh {
            let enclosed = self.enclose(&fresh).await;
            let enclosed =
                enclosed.and_then(|()| self.listen_to(&fresh).map_err(SpawnerError::Unreachable));
            if let Err(error) = enclosed {
                // Whoever is in it already stays there, without limits; it goes with them.
                if let Some(lifted) = Group::change(Some(&fresh), None) {
                    let _ = set(lifted.whole).await;
                }
                drop(spawner.own(fresh));
                undo().await;
                return Err(error);
            }
            if fresh.counts_memory() {
                connection.uncounted.store(true, Ordering::Relaxed);
            }
        }
        match &mut *connection.group() {
            Some(group) => group.become_changed(change.whole),
            none => *none = Some(spawner.own(change.whole)),
        }
        // Whoever is in a hurry just now has set the old limit, or lifted the new one.
        connection.count_hurried(|count| count);
        Ok(())
    }

    /// Has all its processes be in `group`. They are stopped meanwhile: whoever forks could get away.
    async fn enclose(&self, group: &Group) -> Result<(), SpawnerError> {
        let _hurry = self.hurry();
        let held = self.hold().await;
        held.map_err(|error| SpawnerError::Unreachable(io::Error::other(error)))?;
        let init = self.shared.init.as_fd();
        let enclosed = self.shared.spawner.enclose(group.clone(), init).await;
        self.release().await;
        enclosed
    }

    /// Ends it when the memory of `group`, which it was moved to, runs out.
    fn listen_to(&self, group: &Group) -> io::Result<()> {
        if let Some(alarm) = group.memory_alarm()? {
            let alarm = watch(alarm, Interest::READABLE)?;
            let listening = listen(alarm, Arc::downgrade(&self.shared));
            let mut present = self
                .shared
                .alarm
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(before) = present.replace(listening) {
                before.abort();
            }
        }
        Ok(())
    }

    /// What it writes to.
    #[must_use]
    pub fn storage(&self) -> Storage {
        self.shared.storage
    }

    /// How full the filesystem is that it alone writes to, if it has one; as its init says, `None` if
    /// that does not answer.
    pub async fn own_room(&self) -> Option<Room> {
        if !self.storage().is_bounded() {
            return None;
        }
        let asked = tokio::time::timeout(ROOM_PATIENCE, self.ask(Request::Room)).await;
        match asked.ok()?.ok()?.message {
            Reply::Room(_, room) => Some(room),
            other => {
                self.not_done(other);
                None
            }
        }
    }

    /// Whether this is another handle of the same one.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// How many hold it: whoever does may start something in it.
    #[must_use]
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.shared)
    }

    /// Waits until nothing is asked of it any more, whether or not its processes were killed.
    pub async fn until_gone(&self) {
        let mut gone = self.shared.connection.gone.subscribe();
        // It fails only without the sender, which is there as long as this is.
        let _ = gone.wait_for(Option::is_some).await;
    }

    /// What comes of `work` in it, unless it is gone before that is done.
    pub(super) async fn unless_gone<T, E: From<SandboxError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            biased;
            () = self.until_gone() => Err(self.ended().into()),
            done = work => done,
        }
    }

    /// Why nothing is asked of it any more, if that is so.
    #[must_use]
    pub fn gone(&self) -> Option<Gone> {
        *self.shared.connection.gone.borrow()
    }

    /// Copies what it has written to `tree` in `into`, where its files are in no directory. They must stand
    /// still.
    ///
    /// # Errors
    /// The step that failed; part of it may be there.
    pub async fn copy_out(&self, into: PathBuf) -> Result<(), SpawnerError> {
        let init = self.shared.init.as_fd();
        self.shared.spawner.copy_out(init, into).await
    }

    /// Has what changed in its workspace be written to `spool`. Its files must stand still.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn tell(&self, inquiry: Inquiry, spool: &File) -> Result<(), SpawnerError> {
        let init = self.shared.init.as_fd();
        let spawner = &self.shared.spawner;
        spawner.tell_of(Some(init), inquiry, spool).await
    }

    /// Asks for a command. `descriptors` are stdout and stderr, or stdin, stdout and stderr.
    ///
    /// # Errors
    /// `Gone`; `Refused` for one that is too large for any program.
    pub async fn exec(
        &self,
        exec: Exec,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Running, SandboxError> {
        let (first, first_reply) = oneshot::channel();
        let (exited, exit) = oneshot::channel();
        let id = self.expect(Waiter::Exec(first, exited))?;
        let sent = self.send(&Request::Exec(id, exec), descriptors).await;
        match sent {
            Err(SandboxError::Unreachable(error)) if error.raw_os_error() == Some(libc::E2BIG) => {
                self.shared.connection.forget(id);
                return Err(SandboxError::Refused(Refusal {
                    attempt: Attempt::Start,
                    errno: libc::E2BIG,
                }));
            }
            sent => sent?,
        }
        let sandbox = self.clone();
        Ok(Running {
            sandbox,
            id,
            first_reply: Some(first_reply),
            exit,
        })
    }

    /// How many processes are in it, init apart; as its init says.
    ///
    /// # Errors
    /// `Gone`.
    pub async fn count_processes(&self) -> Result<u64, SandboxError> {
        let reply = self.ask(Request::Count).await?;
        match reply.message {
            Reply::Counted(_, count) => Ok(count),
            other => Err(self.not_done(other)),
        }
    }

    /// Ends it, and waits until no process of it is left.
    ///
    /// # Errors
    /// Where the spawner cannot kill it and it does not end by itself.
    pub async fn end(&self, reason: Gone) -> Result<(), SpawnerError> {
        self.kill(reason).await?.finish().await.map(drop)
    }

    /// Kills all its processes at a stroke: none runs any more when this returns.
    ///
    /// # Errors
    /// Where the spawner cannot kill it and it does not end by itself.
    pub async fn kill(&self, reason: Gone) -> Result<Ending, SpawnerError> {
        let mut ending = self.leave(reason);
        ending.kill().await?;
        Ok(ending)
    }

    /// Asks nothing of it any more: whoever waits for something in it is told that it is gone. Its processes
    /// run until they are killed.
    #[must_use]
    pub fn leave(&self, reason: Gone) -> Ending {
        let awaited = self.shared.connection.leave(reason);
        Ending {
            sandbox: self.clone(),
            stage: awaited.map_or(Stage::Untold, |(killed, ended)| Stage::Left(killed, ended)),
            hurry: None,
        }
    }

    /// Whether nothing that its processes reach is reached by others as well.
    #[must_use]
    pub fn is_shut_off(&self) -> bool {
        self.shared.enforcement.network == Network::None
    }

    async fn end_by_force(&self) -> Result<(), SpawnerError> {
        self.shared.connection.channel.shut_down();
        let killed = self.shared.spawner.end(self.shared.init.as_fd()).await;
        match killed {
            Ok(()) => self.wait_for_end().await,
            // A spawner that was started anew cannot kill what the one before it made.
            Err(error) => tokio::time::timeout(OWN_END, self.wait_for_end())
                .await
                .map_err(|_| error)?,
        }
        Ok(())
    }

    /// Does `work` beside, for as long as it has a handle at most. Where there is too much of it, the
    /// oldest is dropped.
    pub(super) fn attend(&self, work: impl Future<Output = ()> + Send + 'static) {
        let attended = self.shared.attended.lock();
        let mut attended = attended.unwrap_or_else(PoisonError::into_inner);
        while attended.tasks.try_join_next().is_some() {}
        attended.order.retain(|task| !task.is_finished());
        if attended.order.len() >= MOST_ATTENDED
            && let Some(oldest) = attended.order.pop_front()
        {
            oldest.abort();
        }
        let task = attended.tasks.spawn(work);
        attended.order.push_back(task);
    }

    /// Waits until init, and with it every process, is gone.
    async fn wait_for_end(&self) {
        // A pidfd is readable when its process ended, pidfd_open(2). Only a closed runtime fails.
        let _ = self.shared.init.readable().await;
    }

    async fn ask(
        &self,
        request: impl FnOnce(RequestId) -> Request,
    ) -> Result<Received<Reply>, SandboxError> {
        let (sender, reply) = oneshot::channel();
        let id = self.expect(Waiter::Reply(sender))?;
        // Also where nobody waits any more.
        let _forgetting = Forgetting(&self.shared.connection, id);
        self.send(&request(id), &[]).await?;
        reply.await.map_err(|_| self.ended())
    }

    fn expect(&self, waiter: Waiter) -> Result<RequestId, SandboxError> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self
            .shared
            .connection
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match waiting.as_mut() {
            Some(waiting) => {
                waiting.insert(id, waiter);
                Ok(id)
            }
            None => {
                drop(waiting);
                Err(self.ended())
            }
        }
    }

    async fn send(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), SandboxError> {
        match self
            .shared
            .connection
            .channel
            .send(request, descriptors)
            .await
        {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(self.ended()),
            Err(error) => Err(SandboxError::Unreachable(error)),
        }
    }

    fn ended(&self) -> SandboxError {
        SandboxError::Gone(self.gone().unwrap_or(Gone::Lost))
    }

    /// A reply that is no success.
    fn not_done(&self, reply: Reply) -> SandboxError {
        match reply {
            Reply::Refused(_, refusal) => SandboxError::Refused(refusal),
            _ => {
                self.shared.connection.die(Gone::Lost);
                SandboxError::Gone(Gone::Lost)
            }
        }
    }
}

impl Ending {
    /// Kills all its processes at a stroke, unless that was done: none runs any more when this returns.
    ///
    /// Its init does, which counts them. Where it does not in a moment, in case it was taken over, the
    /// spawner kills init, and the kernel then all others.
    ///
    /// # Errors
    /// Where the spawner cannot kill it and it does not end by itself.
    pub async fn kill(&mut self) -> Result<(), SpawnerError> {
        self.hurry.get_or_insert_with(|| self.sandbox.hurry());
        let by_init = match std::mem::replace(&mut self.stage, Stage::Untold) {
            Stage::Left(killed, ended) => {
                let shared = &self.sandbox.shared;
                let id = shared.next.fetch_add(1, Ordering::Relaxed);
                // Where it cannot be asked, nothing is answered.
                let _ = shared.connection.channel.send(&Request::End(id), &[]).await;
                match tokio::time::timeout(KILLING, killed).await {
                    Ok(Ok(room)) => Some((room, ended)),
                    _ => None,
                }
            }
            Stage::Killed(room, ended) => Some((room, ended)),
            Stage::Untold => None,
        };
        match by_init {
            Some((room, ended)) => self.stage = Stage::Killed(room, ended),
            None => self.sandbox.end_by_force().await?,
        }
        Ok(())
    }

    /// Waits until no process is left; what there was.
    ///
    /// # Errors
    /// Those of [`kill`](Self::kill).
    pub async fn finish(mut self) -> Result<Left, SpawnerError> {
        self.kill().await?;
        let Stage::Killed(room, ended) = self.stage else {
            return Ok(Left::default());
        };
        let own_end = async {
            let processes = ended.await.ok();
            self.sandbox.wait_for_end().await;
            processes
        };
        let processes = match tokio::time::timeout(ENDING, own_end).await {
            Ok(processes) => processes,
            Err(_) => {
                self.sandbox.end_by_force().await?;
                None
            }
        };
        Ok(Left {
            processes,
            room: Some(room),
        })
    }
}

/// Has a request be forgotten when this is dropped.
struct Forgetting<'c>(&'c Connection, RequestId);

impl Drop for Forgetting<'_> {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}

/// For as long as a sandbox's limit on processors is to be lifted.
#[derive(Debug)]
pub(super) struct Hurry(Arc<Connection>);

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.count_hurried(|count| count - 1);
    }
}

fn listen(alarm: AsyncFd<OwnedFd>, sandbox: Weak<Shared>) -> AbortHandle {
    tokio::spawn(end_at(alarm, sandbox)).abort_handle()
}

/// Ends a sandbox when its memory runs out, where the kernel kills one process of it alone: what is
/// left would be neither whole nor told.
async fn end_at(alarm: AsyncFd<OwnedFd>, sandbox: Weak<Shared>) {
    let _ = alarm.readable().await;
    if let Some(shared) = sandbox.upgrade()
        && let Err(error) = (Sandbox { shared }).end(Gone::OutOfMemory).await
    {
        tracing::error!(%error, "cannot end a sandbox whose memory ran out");
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.reader.abort();
        let alarm = self.alarm.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(alarm) = alarm {
            alarm.abort();
        }
    }
}

impl Connection {
    async fn read(self: Arc<Self>) {
        // An init that says what no init says has been taken over: it is as good as gone.
        while let Ok(Some(reply)) = self.channel.receive::<Reply>().await {
            self.deliver(reply);
        }
        self.die(Gone::Lost);
    }

    fn deliver(&self, reply: Received<Reply>) {
        if let Reply::Killed(..) | Reply::Ended(..) = reply.message {
            return self.deliver_end(&reply.message);
        }
        let mut guard = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = guard.as_mut() else {
            return;
        };
        let id = reply.message.request();
        // A send fails only where nobody waits any more.
        match (waiting.remove(&id), &reply.message) {
            (Some(Waiter::Exec(first, exit)), Reply::Started(_)) => {
                waiting.insert(id, Waiter::Exit(exit));
                let _ = first.send(reply);
            }
            (Some(Waiter::Exec(first, _) | Waiter::Reply(first)), _) => {
                let _ = first.send(reply);
            }
            (Some(Waiter::Exit(exited)), Reply::Exited(_, exit)) => {
                let _ = exited.send(*exit);
            }
            (Some(waiter @ Waiter::Exit(_)), _) => {
                waiting.insert(id, waiter);
            }
            (None, _) => {}
        }
    }

    fn deliver_end(&self, reply: &Reply) {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        // A send fails only where nobody waits any more.
        match reply {
            Reply::Killed(_, room) => {
                let killed = ending.as_mut().and_then(|awaited| awaited.killed.take());
                let _ = killed.map(|killed| killed.send(*room));
            }
            Reply::Ended(_, count) => {
                let _ = ending.take().map(|awaited| awaited.ended.send(*count));
            }
            _ => {}
        }
    }

    /// Has nothing more be asked, since it is to end; what init says then, for whoever asks first.
    fn leave(&self, reason: Gone) -> Option<(oneshot::Receiver<Room>, oneshot::Receiver<u64>)> {
        if !self.set_gone(reason) {
            return None;
        }
        let (killed, was_killed) = oneshot::channel();
        let (ended, has_ended) = oneshot::channel();
        *self.ending.lock().unwrap_or_else(PoisonError::into_inner) = Some(Awaited {
            killed: Some(killed),
            ended,
        });
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Some((was_killed, has_ended))
    }

    /// Tells that it is gone; `false` if that was told before.
    fn set_gone(&self, reason: Gone) -> bool {
        self.gone.send_if_modified(|gone| {
            let is_first = gone.is_none();
            gone.get_or_insert(reason);
            is_first
        })
    }

    fn count_hurried(&self, count: impl FnOnce(usize) -> usize) {
        let mut hurried = self.hurried.lock().unwrap_or_else(PoisonError::into_inner);
        *hurried = count(*hurried);
        let Some(group) = &*self.group() else { return };
        let throttle = match *hurried {
            0 => Throttle::InForce,
            _ => Throttle::Lifted,
        };
        if let Err(error) = group.throttle(throttle) {
            tracing::warn!(%error, "cannot change a sandbox's limit on processors");
        }
    }

    fn group(&self) -> MutexGuard<'_, Option<OwnedGroup>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hits(&self) -> Hits {
        let group = self.group();
        group
            .as_ref()
            .map_or_else(Hits::default, |group| group.hits())
    }

    /// Nobody waits for an answer to this request any more.
    fn forget(&self, id: RequestId) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = waiting.as_mut() {
            waiting.remove(&id);
        }
    }

    /// Ends the conversation, on which init ends, and with it all that runs inside: nothing lives on
    /// that was said to be gone.
    fn die(&self, reason: Gone) {
        let ran_out = || self.hits().oom_kills.is_some_and(|kills| kills > 0);
        let reason = match reason {
            // The kernel killed init with all others: nobody asked for it, and it is no loss.
            Gone::Lost if ran_out() => Gone::OutOfMemory,
            reason => reason,
        };
        self.set_gone(reason);
        self.channel.shut_down();
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.ending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

impl Running {
    /// Kills its whole process tree, if it runs yet; its exit comes all the same.
    ///
    /// # Errors
    /// `Gone`.
    pub async fn kill(&self) -> Result<(), SandboxError> {
        self.sandbox.send(&Request::Kill(self.id), &[]).await
    }

    /// What signals it, for whoever does not wait for its end.
    #[must_use]
    pub fn signaller(&self) -> Signaller {
        Signaller {
            sandbox: self.sandbox.clone(),
            id: self.id,
        }
    }

    /// Waits until its program runs; the master of its terminal, if it was given one. Cancel safe.
    ///
    /// # Errors
    /// `Refused` if its directory or process cannot be had, `Gone`.
    pub async fn started(&mut self) -> Result<Option<OwnedFd>, SandboxError> {
        let Some(first_reply) = self.first_reply.as_mut() else {
            return Ok(None);
        };
        let reply = first_reply.await;
        self.first_reply = None;
        let mut reply = reply.map_err(|_| self.sandbox.ended())?;
        match reply.message {
            Reply::Started(_) => Ok(reply.descriptors.pop()),
            other => Err(self.sandbox.not_done(other)),
        }
    }

    /// Waits for its end. Cancel safe.
    ///
    /// # Errors
    /// Those of `started`; `Gone` if the sandbox ended first.
    pub async fn exit(&mut self) -> Result<Exit, SandboxError> {
        self.started().await?;
        (&mut self.exit).await.map_err(|_| self.sandbox.ended())
    }
}

impl Signaller {
    /// Sends a signal, by its number, if the command runs yet.
    ///
    /// # Errors
    /// `Gone`.
    pub async fn signal(&self, signal: i32, target: Target) -> Result<(), SandboxError> {
        let request = Request::Signal(self.id, signal, target);
        self.sandbox.send(&request, &[]).await
    }
}
