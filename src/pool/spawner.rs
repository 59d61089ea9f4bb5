//! The provider's side of the spawner: starts it, asks it, starts it anew if it died.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::channel::AsyncChannel;
use super::is_full;
use super::pristine::Pristine;
use super::ranges::Range;
use crate::sandbox::cgroups::Group;
use crate::sandbox::identity::Identity;
use crate::sandbox::{Failure, Merge, SandboxSpec, Step, Without};
use crate::spawner::NAME;
use crate::spawner::changes::protocol::Inquiry;
use crate::spawner::protocol::{Export, Hello, Removed, Reply, Request, RequestId};
use crate::sys::channel::{Channel, Peer, Received};

/// How many spawners, and processes of theirs, are killed over one removal: it may be what kills them.
const REMOVAL_LIVES: u32 = 8;

/// Why the spawner did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SpawnerError {
    /// A step failed in it.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// A sandbox could not be started.
    #[error("cannot start sandbox")]
    NotCreated(#[source] Failure),
    /// It could not be started or reached.
    #[error("the spawner cannot be reached")]
    Unreachable(#[source] io::Error),
    /// It died before it answered.
    #[error("the spawner died")]
    Died,
}

/// A handle to the spawner; clones share it.
#[derive(Debug, Clone)]
pub struct Spawner {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    scratch: PathBuf,
    lock: File,
    identity: Identity,
    without: Without,
    next: AtomicU64,
    created: AtomicU64,
    /// Groups of sandboxes that are gone, which the kernel did not let be removed yet.
    groups: Mutex<Vec<Group>>,
    connection: tokio::sync::Mutex<Arc<Connection>>,
}

type Waiting = HashMap<RequestId, oneshot::Sender<Received<Reply>>>;

/// The control groups of a sandbox; they are removed with it.
#[derive(Debug)]
pub(super) struct OwnedGroup {
    group: Group,
    spawner: Spawner,
}

impl OwnedGroup {
    /// It has become this, with the same directories and maybe others.
    pub(super) fn become_changed(&mut self, group: Group) {
        self.group = group;
    }
}

impl Deref for OwnedGroup {
    type Target = Group;

    fn deref(&self) -> &Group {
        &self.group
    }
}

impl Drop for OwnedGroup {
    fn drop(&mut self) {
        self.spawner.remove_group(&self.group);
    }
}

impl Shared {
    fn lock_groups(&self) -> MutexGuard<'_, Vec<Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// After how long a group that was busy is tried again, at first and at most; each time it is twice as long.
const BUSY: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// Removes those that the kernel did not let be removed, until none is left.
async fn remove_busy_groups(shared: Weak<Shared>) {
    let [mut pause, longest] = BUSY;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut groups = shared.lock_groups();
        groups.retain(|group| group.remove().is_err());
        if groups.is_empty() {
            return;
        }
    }
}

/// One life of the spawner.
#[derive(Debug)]
struct Connection {
    channel: AsyncChannel,
    /// `None` once it died.
    waiting: Mutex<Option<Waiting>>,
}

impl Spawner {
    /// Starts the spawner. `scratch` is an empty directory of the provider's; `lock` is a lock that
    /// is to hold until the spawner has ended, and with it every sandbox.
    ///
    /// # Errors
    /// The step that failed, where this host does not let it make sandboxes.
    pub async fn start(scratch: PathBuf, lock: File) -> Result<Self, SpawnerError> {
        let without = Without::asked()?;
        if let Some(weaker) = without.weaker() {
            tracing::error!("{weaker}: no sandbox of this provider confines anything");
        }
        let (connection, identity) = Connection::open(&scratch, &lock).await?;
        let shared = Shared {
            scratch,
            lock,
            identity,
            without,
            next: AtomicU64::new(1),
            created: AtomicU64::new(0),
            groups: Mutex::default(),
            connection: tokio::sync::Mutex::new(connection),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// How sandboxes get their ids.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// What a test has turned off in all of them.
    #[must_use]
    pub fn without(&self) -> &Without {
        &self.shared.without
    }

    /// Sandboxes that it made so far, those that made layers included.
    #[must_use]
    pub fn created(&self) -> u64 {
        self.shared.created.load(Ordering::Relaxed)
    }

    /// Makes a sandbox that waits to be adopted, with the ids of `range`, which is taken until its last process
    /// is gone.
    ///
    /// # Errors
    /// The step that failed; nothing of the sandbox is left then but its directories.
    pub async fn create(&self, spec: SandboxSpec, range: &Range) -> Result<Pristine, SpawnerError> {
        let group = spec.group.clone().map(|group| self.own(group));
        let storage = spec.writable.storage;
        let memory_files = spec.memory_files;
        let mut reply = self
            .ask(
                |id| Request::Create(id, Box::new(spec)),
                range.lock().as_slice(),
            )
            .await?;
        let init = reply.descriptors.pop();
        let socket = reply.descriptors.pop();
        match (reply.message, socket, init) {
            (Reply::Created(_), Some(socket), Some(init)) => {
                self.shared.created.fetch_add(1, Ordering::Relaxed);
                Pristine::new(self.clone(), socket, init, group, storage, memory_files)
                    .map_err(SpawnerError::Unreachable)
            }
            (Reply::Failed(_, failure), ..) => Err(SpawnerError::NotCreated(failure)),
            _ => Err(SpawnerError::Died),
        }
    }

    /// Makes `group` and moves the sandbox of `init`, a pidfd, there.
    pub(super) async fn enclose(
        &self,
        group: Group,
        init: BorrowedFd<'_>,
    ) -> Result<(), SpawnerError> {
        done(
            self.ask(|id| Request::Enclose(id, Box::new(group)), &[init])
                .await?,
        )
    }

    /// Kills the sandbox of `init`, a pidfd.
    pub(super) async fn end(&self, init: BorrowedFd<'_>) -> Result<(), SpawnerError> {
        done(self.ask(Request::End, &[init]).await?)
    }

    /// Removes `path`, a directory of the provider's, with all that is in it, whoever owns it; what that
    /// was.
    ///
    /// # Errors
    /// The step that failed; part of it may be left.
    pub async fn remove(&self, path: PathBuf) -> Result<Removed, SpawnerError> {
        let mut lives = REMOVAL_LIVES;
        loop {
            let asked = self.ask(|id| Request::Remove(id, path.clone()), &[]).await;
            lives -= 1;
            match asked.map(|reply| reply.message) {
                Ok(Reply::Removed(_, removed)) => return Ok(removed),
                // It was killed: the next one goes on from there.
                Err(SpawnerError::Died) | Ok(Reply::Failed(_, Failure { errno: 0, .. }))
                    if lives > 0 => {}
                Ok(Reply::Failed(_, failure)) => return Err(failure.into()),
                Ok(Reply::Created(_) | Reply::Done(_)) => return Err(SpawnerError::Died),
                Err(error) => return Err(error),
            }
        }
    }

    /// Copies `from`, a directory of the provider's, with all that is in it, whoever owns it, to `tree` in
    /// `into`. Nothing may change it meanwhile.
    ///
    /// # Errors
    /// The step that failed; part of it may be there.
    pub async fn copy(&self, from: PathBuf, into: PathBuf) -> Result<(), SpawnerError> {
        done(self.ask(|id| Request::Copy(id, from, into), &[]).await?)
    }

    /// Copies what a sandbox has written, whose files are in no directory, to `tree` in `into`; of the
    /// sandbox `init` is a pidfd of init. Nothing may change it meanwhile.
    ///
    /// # Errors
    /// The step that failed; part of it may be there.
    pub(super) async fn copy_out(
        &self,
        init: BorrowedFd<'_>,
        into: PathBuf,
    ) -> Result<(), SpawnerError> {
        done(self.ask(|id| Request::CopyOut(id, into), &[init]).await?)
    }

    /// Makes one layer of several.
    ///
    /// # Errors
    /// The step that failed; part of it may be there.
    pub async fn merge(&self, merge: Merge) -> Result<(), SpawnerError> {
        let merge = Box::new(merge);
        done(self.ask(|id| Request::Merge(id, merge), &[]).await?)
    }

    /// Has what changed in a workspace be written to `spool`; `init` is a pidfd of init of its sandbox, if it has
    /// one.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) async fn tell_of(
        &self,
        init: Option<BorrowedFd<'_>>,
        inquiry: Inquiry,
        spool: &File,
    ) -> Result<(), SpawnerError> {
        let inquiry = Box::new(inquiry);
        let descriptors: Vec<_> = [spool.as_fd()].into_iter().chain(init).collect();
        done(
            self.ask(|id| Request::Tell(id, inquiry), &descriptors)
                .await?,
        )
    }

    /// Has what changed in a workspace without a sandbox be written to `spool`.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn tell(&self, inquiry: Inquiry, spool: &File) -> Result<(), SpawnerError> {
        self.tell_of(None, inquiry, spool).await
    }

    /// Writes layers as an archive to the first of `writers`; to the second goes a line before that: why there can
    /// be none, or nothing.
    ///
    /// # Errors
    /// The step that failed; the archive is not whole then.
    pub(super) async fn export(
        &self,
        export: Export,
        writers: [OwnedFd; 2],
    ) -> Result<(), SpawnerError> {
        let descriptors = writers.each_ref().map(AsFd::as_fd);
        let export = Box::new(export);
        done(
            self.ask(|id| Request::Export(id, export), &descriptors)
                .await?,
        )
    }

    /// Removes `group` when the sandbox's last handle is gone.
    pub(super) fn own(&self, group: Group) -> OwnedGroup {
        OwnedGroup {
            group,
            spawner: self.clone(),
        }
    }

    fn remove_group(&self, group: &Group) {
        let mut groups = self.shared.lock_groups();
        let is_first = groups.is_empty();
        groups.push(group.clone());
        groups.retain(|group| group.remove().is_err());
        // One whose last process is just ending is busy for a moment more. Without a runtime the provider ends.
        if is_first
            && !groups.is_empty()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(remove_busy_groups(Arc::downgrade(&self.shared)));
        }
    }

    async fn ask(
        &self,
        request: impl FnOnce(RequestId) -> Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Received<Reply>, SpawnerError> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let request = request(id);
        loop {
            let connection = self.connection().await?;
            let Some(answer) = connection.expect(id) else {
                continue;
            };
            match connection.channel.send(&request, descriptors).await {
                Ok(()) => return answer.await.map_err(|_| SpawnerError::Died),
                // It died, and that has not been noticed yet: it took nothing of this.
                Err(error) if is_end(&error) => connection.die(),
                Err(error) => return Err(SpawnerError::Unreachable(error)),
            }
        }
    }

    /// The living spawner; a new one if the last one died.
    async fn connection(&self) -> Result<Arc<Connection>, SpawnerError> {
        let mut current = self.shared.connection.lock().await;
        if current.is_dead() {
            tracing::error!("the spawner died; starting it anew");
            let (connection, _) = Connection::open(&self.shared.scratch, &self.shared.lock).await?;
            *current = connection;
        }
        Ok(Arc::clone(&current))
    }
}

/// Whether nobody is at the other end any more.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

fn done(reply: Received<Reply>) -> Result<(), SpawnerError> {
    match reply.message {
        Reply::Done(_) => Ok(()),
        Reply::Failed(_, failure) => Err(failure.into()),
        Reply::Created(_) | Reply::Removed(..) => Err(SpawnerError::Died),
    }
}

impl SpawnerError {
    /// Whether the disk, its inodes or a quota are full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            // A limit on namespaces has the same errno, and is no matter of the disk.
            Self::Failed(failure) | Self::NotCreated(failure) => {
                !matches!(failure.step, Step::UserNamespace | Step::Namespaces)
                    && is_full(&io::Error::from_raw_os_error(failure.errno))
            }
            Self::Unreachable(_) | Self::Died => false,
        }
    }
}

impl Connection {
    async fn open(scratch: &Path, lock: &File) -> Result<(Arc<Self>, Identity), SpawnerError> {
        let (socket, mut child) = launch(scratch, lock).map_err(SpawnerError::Unreachable)?;
        let channel =
            AsyncChannel::new(socket, Peer::Trusted).map_err(SpawnerError::Unreachable)?;
        let connection = Arc::new(Self {
            channel,
            waiting: Mutex::new(Some(Waiting::new())),
        });
        // Reaped when it ends, which is when the provider's end of the socket closes.
        let reaped = Arc::downgrade(&connection);
        std::thread::Builder::new()
            .name("spawner-reaper".into())
            .spawn(move || {
                let ended = child.wait();
                // What it was just forking may hold its end of the socket for a while longer.
                if let Some(connection) = reaped.upgrade() {
                    connection.channel.shut_down();
                }
                ended
            })
            .map_err(SpawnerError::Unreachable)?;
        let hello = connection
            .channel
            .receive::<Hello>()
            .await
            .map_err(SpawnerError::Unreachable)?;
        let identity = match hello.ok_or(SpawnerError::Died)?.message {
            Hello::Ready(identity) => identity,
            Hello::Failed(failure) => return Err(failure.into()),
        };
        // Ends with the spawner's life.
        let reader = Arc::clone(&connection);
        tokio::spawn(async move {
            while let Ok(Some(reply)) = reader.channel.receive::<Reply>().await {
                reader.deliver(reply);
            }
            reader.die();
        });
        Ok((connection, identity))
    }

    fn expect(&self, id: RequestId) -> Option<oneshot::Receiver<Received<Reply>>> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.as_mut()?.insert(id, sender);
        Some(receiver)
    }

    fn deliver(&self, reply: Received<Reply>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waiter = waiting
            .as_mut()
            .and_then(|waiting| waiting.remove(&reply.message.request()));
        if let Some(waiter) = waiter {
            // Who asked may have gone; a sandbox that nobody takes ends with its socket.
            let _ = waiter.send(reply);
        }
    }

    fn die(&self) {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    fn is_dead(&self) -> bool {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
    }
}

/// Executes derrick as the spawner; the provider's end of its socket, and the process.
///
/// From a sealed copy in memory: what runs in each sandbox as init has no file that could be
/// written to. With an empty environment: what the provider's holds is nobody's business there. The
/// lock takes the place of its stdout, which it does not use.
fn launch(scratch: &Path, lock: &File) -> io::Result<(OwnedFd, Child)> {
    let (ours, theirs) = Channel::pair(Peer::Trusted)?;
    let program = sealed_copy_of_this_program()?;
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&program)
    );
    let child = Command::new(path)
        .arg0(NAME)
        .env_clear()
        // newuidmap and newgidmap are looked up there.
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .stdin(Stdio::from(theirs.into_socket()))
        .stdout(Stdio::from(lock.try_clone()?))
        // Not named in its arguments: those of init, which everyone inside reads, are the same.
        .current_dir(scratch)
        .spawn()?;
    Ok((ours.into_socket(), child))
}

/// How often a copy is tried to be sealed. The kernel refuses that after a while in which something, be it the
/// kernel as it looks for memory that it could have back, holds pages of it.
const SEALINGS: u32 = 20;

fn sealed_copy_of_this_program() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // A kernel before 6.3 does not know the flag, and lets every memfd be executed.
    let memfd =
        memfd_create(NAME, flags | MemfdFlags::EXEC).or_else(|_| memfd_create(NAME, flags))?;
    let mut copy = File::from(memfd);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    let mut sealed = Err(Errno::BUSY);
    for _ in 0..SEALINGS {
        sealed = fcntl_add_seals(copy.as_fd(), seals);
        if sealed != Err(Errno::BUSY) {
            break;
        }
    }
    sealed?;
    Ok(copy.into())
}
