//! The state directory: what is where on disk, who may use it, and what is swept at start.
//!
//! Processes share it: one that serves, which holds `lock`, and any number of `derrick run`. What a
//! process makes on its way to something whole is in a directory of its own below `run`, locked while
//! the process lives; whoever starts next throws away those whose lock is free.

mod images;
mod marked;

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use rustix::fs::IFlags;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::config;
use crate::pool::{Gone, Sandbox, Spawner, SpawnerError};
use crate::sandbox::cgroups::{self, Group, Hierarchies, Unenforceable, Wish};
use crate::sandbox::disk;
use crate::sandbox::{Limits, Requests, Storage, Writable};
pub use crate::spawner::protocol::Removed;
use crate::tally::Tally;
use crate::turns::Gate;
use images::Images;

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A call failed.
    #[error("cannot use state directory {path}: {attempt}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Others could reach into it.
    #[error("state directory {path} must belong to the user who runs derrick and to nobody else; run: chown {uid} {path} && chmod 700 {path}", path = .path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Who runs derrick.
        uid: u32,
    },
    /// Another derrick serves from it.
    #[error("state directory {} is in use by another derrick; stop that one or choose another --state-dir", .0.display())]
    InUse(PathBuf),
    /// The spawner did not start.
    #[error(transparent)]
    Spawner(#[from] SpawnerError),
}

/// What a process uses the state directory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It serves the workspaces on disk; one process at a time.
    Serve,
    /// It makes workspaces that are gone when it ends.
    Throwaway,
}

/// How much of the state directory's filesystem stays free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floor(pub Option<ByteSize>);

impl Floor {
    const LARGEST: u64 = 1 << 30;

    /// In bytes, on a filesystem of `size` bytes: what was asked for, else a fiftieth, at most 1 GiB.
    fn of(self, size: u64) -> u64 {
        self.0
            .map_or_else(|| (size / 50).min(Self::LARGEST), |floor| floor.as_u64())
    }
}

/// Room on the state directory's filesystem, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// What there is.
    pub free: u64,
    /// What is to stay free.
    pub floor: u64,
}

impl Disk {
    /// What may still be written.
    #[must_use]
    pub fn room(self) -> u64 {
        self.free.saturating_sub(self.floor)
    }
}

/// Why nothing new is written.
#[derive(Debug, thiserror::Error)]
pub enum NoRoom {
    /// There is less than the floor.
    #[error(
        "the filesystem of {} has {} left, of which derrick keeps {}; remove workspaces or files of it, or lower \
         --min-free",
        root.display(),
        free.display().iec(),
        floor.display().iec()
    )]
    Low {
        /// The state directory.
        root: PathBuf,
        /// What there is.
        free: ByteSize,
        /// What there has to be.
        floor: ByteSize,
    },
    /// It does not say.
    #[error("asking how full the state directory is")]
    Unknown(#[source] io::Error),
}

/// An open state directory. Clones share it.
#[derive(Debug, Clone)]
pub struct State {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    usage: Use,
    root: PathBuf,
    instance: PathBuf,
    hierarchies: Hierarchies,
    groups: AtomicU64,
    images: Images,
    floor: Floor,
    spawner: Spawner,
    tally: Arc<Tally>,
    discards: mpsc::UnboundedSender<Discard>,
    /// What is done beside: the ends of sandboxes that nobody wants any more, for one.
    endings: TaskTracker,
    _locks: Vec<File>,
}

enum Discard {
    Remove(Remove),
    /// Answered when all that came before is gone.
    Flush(oneshot::Sender<()>),
}

/// A directory in the trash.
struct Remove {
    path: PathBuf,
    /// Whose files these were.
    owner: Option<String>,
    done: Option<oneshot::Sender<Removed>>,
}

impl State {
    /// Opens the directory, makes what is missing in it, starts the spawner and throws away what
    /// processes that are gone left unfinished.
    ///
    /// # Errors
    /// Where the directory cannot be used, or the spawner not be started.
    pub async fn open(root: &Path, usage: Use, floor: Floor) -> Result<Self, StateError> {
        let failed = |attempt| {
            let path = root.to_owned();
            move |source| StateError::Io {
                path,
                attempt,
                source,
            }
        };
        make_private(root).map_err(failed("making it"))?;
        let root = root.canonicalize().map_err(failed("finding it"))?;
        check_private(&root)?;
        for name in ["layers", "mirrors", "workspaces", "trash", "run", "empty"] {
            make_private(&root.join(name)).map_err(failed("making a directory in it"))?;
        }
        spread(&root.join("workspaces"));
        // Nobody sweeps while this process makes its own directory.
        let starting = lock_patiently(&root.join("run.lock"))
            .await
            .map_err(failed("locking it"))?
            .ok_or_else(|| StateError::InUse(root.clone()))?;
        let mut serving = None;
        if usage == Use::Serve {
            // The spawner of a provider that was killed holds it until its sandboxes are gone.
            let lock = lock_patiently(&root.join("lock"))
                .await
                .map_err(failed("locking it"))?;
            serving = Some(lock.ok_or_else(|| StateError::InUse(root.clone()))?);
        }
        let name = Uuid::now_v7().to_string();
        let instance = root.join("run").join(&name);
        make_private(&instance).map_err(failed("making a directory in it"))?;
        let own = lock(&instance.join("lock")).map_err(failed("locking a directory in it"))?;
        let own = own.ok_or_else(|| StateError::InUse(root.clone()))?;
        for name in ["scratch", "staging", "workspaces", "images"] {
            make_private(&instance.join(name)).map_err(failed("making a directory in it"))?;
        }
        spread(&instance.join("staging"));
        let images = Images::new(instance.join("images"));
        let hierarchies = Hierarchies::find(&format!("derrick-{name}"));
        note_groups(&instance, &hierarchies).map_err(failed("noting its control groups"))?;
        let spawner_lock = serving
            .as_ref()
            .unwrap_or(&own)
            .try_clone()
            .map_err(failed("locking it"))?;
        let spawner = Spawner::start(instance.join("scratch"), spawner_lock).await?;
        let (discards, queue) = mpsc::unbounded_channel();
        tokio::spawn(remove_in_turn(spawner.clone(), queue));
        let state = Self {
            shared: Arc::new(Shared {
                usage,
                root,
                instance,
                hierarchies,
                groups: AtomicU64::new(1),
                images,
                floor,
                spawner,
                tally: Arc::default(),
                discards,
                endings: TaskTracker::new(),
                _locks: serving.into_iter().chain([own]).collect(),
            }),
        };
        state.sweep().await.map_err(failed("sweeping it"))?;
        drop(starting);
        Ok(state)
    }

    /// Whether its filesystem still has the room that nothing new is written into.
    ///
    /// # Errors
    /// When it has less, or cannot be asked.
    pub fn check_room(&self) -> Result<(), NoRoom> {
        let Disk { free, floor } = self.disk().map_err(NoRoom::Unknown)?;
        if free >= floor {
            return Ok(());
        }
        Err(NoRoom::Low {
            root: self.shared.root.clone(),
            free: ByteSize::b(free),
            floor: ByteSize::b(floor),
        })
    }

    /// How full its filesystem is.
    ///
    /// # Errors
    /// Those of statvfs(3).
    pub fn disk(&self) -> io::Result<Disk> {
        let status = rustix::fs::statvfs(&self.shared.root)?;
        let size = status.f_blocks.saturating_mul(status.f_frsize);
        Ok(Disk {
            free: status.f_bavail.saturating_mul(status.f_frsize),
            floor: self.shared.floor.of(size),
        })
    }

    /// The spawner that works on it.
    #[must_use]
    pub fn spawner(&self) -> &Spawner {
        &self.shared.spawner
    }

    /// The control groups of a sandbox with these limits and requests, if they need any; of that `name`,
    /// or of a new one.
    ///
    /// # Errors
    /// The first limit that this host does not enforce.
    pub fn group(
        &self,
        name: Option<String>,
        limits: &Limits,
        requests: &Requests,
    ) -> Result<Option<Group>, Unenforceable> {
        let new = || self.shared.groups.fetch_add(1, Ordering::Relaxed);
        let name = name.unwrap_or_else(|| new().to_string());
        self.shared.hierarchies.group(&name, limits, requests)
    }

    /// Whether this host enforces all of these limits, and can meet these requests.
    ///
    /// # Errors
    /// The first one that it does not enforce.
    pub fn check(
        &self,
        limits: &Limits,
        requests: &Requests,
        storage: config::Storage,
    ) -> Result<(), Unenforceable> {
        self.shared.hierarchies.check(limits, requests)?;
        self.check_disk(limits, storage)
    }

    /// What of `limits` and `requests` this host enforces, and why it does not enforce the rest.
    #[must_use]
    pub fn enforceable(
        &self,
        limits: &Limits,
        requests: &Requests,
        storage: config::Storage,
    ) -> (Limits, Requests, Vec<Unenforceable>) {
        let (mut kept, requests, mut missing) =
            self.shared.hierarchies.enforceable(limits, requests);
        if let Err(unenforceable) = self.check_disk(&kept, storage) {
            (kept.disk, kept.inodes) = (None, None);
            missing.push(unenforceable);
        }
        (kept, requests, missing)
    }

    /// Whether a sandbox can have a disk of its own, if it is to.
    fn check_disk(&self, limits: &Limits, storage: config::Storage) -> Result<(), Unenforceable> {
        if storage != config::Storage::Disk || limits.disk.is_none() {
            return Ok(());
        }
        let identity = self.spawner().identity();
        match disk::image_obstacle(identity) {
            Some(reason) => Err(Unenforceable {
                wish: Wish::DiskLimit,
                reason,
            }),
            None => Ok(()),
        }
    }

    /// What this process counts while it works on it.
    #[must_use]
    pub fn tally(&self) -> &Arc<Tally> {
        &self.shared.tally
    }

    /// A directory of it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.shared.root.join(name)
    }

    /// Where workspaces are kept, for the given use.
    #[must_use]
    pub fn workspaces(&self, usage: Use) -> PathBuf {
        match usage {
            Use::Serve => self.path("workspaces"),
            Use::Throwaway => self.shared.instance.join("workspaces"),
        }
    }

    /// A variable for the environment of what runs on the host for this process, so that the next one can end it.
    #[must_use]
    pub fn mark(&self) -> (&'static str, String) {
        (MARK, name_of(&self.shared.instance))
    }

    /// Where this process makes what is not whole yet.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.shared.instance.join("staging")
    }

    /// Makes a directory that nobody else may look into.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn make_directory(&self, directory: &Path) -> io::Result<()> {
        make_private(directory)
    }

    /// Makes `directory` for a sandbox to write to in this way; what an earlier sandbox wrote there stays.
    ///
    /// # Errors
    /// Those of making it, and of making its filesystem.
    pub async fn make_writable(
        &self,
        directory: PathBuf,
        storage: Storage,
    ) -> io::Result<Writable> {
        make_private(&directory)?;
        match storage {
            Storage::Directory => make_private(&directory.join("upper"))?,
            Storage::Image(capacity) => {
                let image = directory.join(disk::IMAGE);
                self.shared.images.make(&image, capacity).await?;
            }
            Storage::Memory(_) => {}
        }
        Ok(Writable { directory, storage })
    }

    /// Takes `path` out of the way at once and removes it in the background, which goes on after a
    /// restart; no error if it is not there.
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn discard(&self, path: &Path) -> io::Result<()> {
        self.discard_of(None, path)
    }

    /// The same with files of a workspace of this owner: removals of different owners take turns.
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn discard_of(&self, owner: Option<&str>, path: &Path) -> io::Result<()> {
        if let Some(path) = self.take_away(path)? {
            self.queue(Discard::Remove(Remove {
                path,
                owner: owner.map(str::to_owned),
                done: None,
            }));
        }
        Ok(())
    }

    /// The same for what is of no more use to anybody: where it cannot be done, the log says so, and the next
    /// start does it.
    pub fn discard_or_say(&self, path: &Path) {
        if let Err(error) = self.discard(path) {
            tracing::warn!(%error, path = %path.display(), "cannot discard files; the next start tries again");
        }
    }

    /// As `discard_of`, and waits until it is removed; what that was, if it was there and is gone.
    ///
    /// # Errors
    /// Those of rename(2).
    pub async fn remove(&self, owner: Option<&str>, path: &Path) -> io::Result<Option<Removed>> {
        let Some(path) = self.take_away(path)? else {
            return Ok(None);
        };
        let (done, removed) = oneshot::channel();
        self.queue(Discard::Remove(Remove {
            path,
            owner: owner.map(str::to_owned),
            done: Some(done),
        }));
        // Whoever removes has said why it could not.
        Ok(removed.await.ok())
    }

    /// Renames `path` into the trash.
    fn take_away(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let place = self.path("trash").join(Uuid::now_v7().to_string());
        match std::fs::rename(path, &place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok(Some(place)),
        }
    }

    /// Does `work` beside; [`Self::close`] waits for it.
    pub fn in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.shared.endings.spawn(work);
    }

    /// Removes in the background what others left in the trash.
    fn empty_trash(&self) -> io::Result<()> {
        // A throw-away process does not wait for what others left.
        if self.shared.usage == Use::Throwaway {
            return Ok(());
        }
        for entry in std::fs::read_dir(self.path("trash"))? {
            self.queue(Discard::Remove(Remove {
                path: entry?.path(),
                owner: None,
                done: None,
            }));
        }
        Ok(())
    }

    /// Waits until everything that was discarded so far is gone.
    pub async fn flush(&self) {
        let (sender, done) = oneshot::channel();
        self.queue(Discard::Flush(sender));
        // The queue ends with this state: then nothing is left to wait for.
        let _ = done.await;
    }

    /// Ends a sandbox that nobody wants any more; [`Self::close`] waits for it.
    pub fn end_in_background(&self, sandbox: Sandbox) {
        // Without a runtime it ends with its socket.
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        self.shared.endings.spawn(async move {
            if let Err(error) = sandbox.end(Gone::Removed).await {
                tracing::warn!(%error, "cannot end a sandbox that nobody wants any more");
            }
        });
    }

    /// Removes what belongs to this process alone, at its end.
    pub async fn close(&self) {
        let instance = &self.shared.instance;
        // What still writes to a directory keeps it from being removed.
        self.shared.endings.close();
        self.shared.endings.wait().await;
        let removed = async {
            for name in ["staging", "workspaces"] {
                self.discard(&instance.join(name))?;
            }
            self.flush().await;
            // A spawner knows only those that it made itself, and it may not be the first one.
            remove_groups(instance)?;
            // Not by the spawner, for which the scratch directory is busy with its mounts.
            std::fs::remove_dir_all(instance)
        };
        if let Err(error) = removed.await {
            tracing::warn!(%error, "cannot remove this process's directory; the next start does");
        }
    }

    fn queue(&self, discard: Discard) {
        // Fails only when the runtime ends; the next start finds the trash.
        let _ = self.shared.discards.send(discard);
    }

    async fn sweep(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.path("run"))? {
            let path = entry?.path();
            if path == self.shared.instance {
                continue;
            }
            let swept = match lock(&path.join("lock")) {
                Ok(Some(_free)) => match end_the_dying(&path).await {
                    Ok(()) => self.discard(&path),
                    Err(error) => {
                        tracing::warn!(%error, path = %path.display(), "cannot remove old control groups; the next start tries again");
                        Ok(())
                    }
                },
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            // A process that ends discards its own meanwhile.
            if let Err(error) = swept
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        self.empty_trash()
    }
}

/// Directories that are removed at once, a third of them kept for other owners than one: it is mostly the disk
/// that is waited for, all the more where each block that becomes free is discarded on it.
const REMOVALS: usize = 12;

/// Begins removals in the order in which they were asked for, those of different owners in turn.
async fn remove_in_turn(spawner: Spawner, mut queue: mpsc::UnboundedReceiver<Discard>) {
    let gate = Gate::new(REMOVALS);
    let mut removals = JoinSet::new();
    while let Some(discard) = queue.recv().await {
        match discard {
            Discard::Remove(Remove { path, owner, done }) => {
                while removals.try_join_next().is_some() {}
                let (turn, spawner) = (gate.enter(owner.as_deref()), spawner.clone());
                removals.spawn(async move {
                    let _pass = turn.await;
                    remove_one(spawner, path, done).await;
                });
            }
            Discard::Flush(sender) => {
                while removals.join_next().await.is_some() {}
                let _ = sender.send(());
            }
        }
    }
    while removals.join_next().await.is_some() {}
}

async fn remove_one(spawner: Spawner, path: PathBuf, done: Option<oneshot::Sender<Removed>>) {
    match spawner.remove(path).await {
        Ok(removed) => {
            // Whoever asked may be gone.
            let _ = done.map(|done| done.send(removed));
        }
        Err(error) => {
            tracing::warn!(%error, "cannot remove a discarded directory; the next start tries again");
        }
    }
}

/// How long the sandboxes of a process that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(5);

/// In the directory of each process: where the control groups of its sandboxes are.
const GROUPS: &str = "groups.json";

/// Notes where this process makes control groups, for whoever sweeps if it cannot remove them itself.
/// The name of the variable that [`State::mark`] tells.
const MARK: &str = "DERRICK_RUN";

fn name_of(instance: &Path) -> String {
    let name = instance.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Ends what a process that is gone left behind: programs that it had run on the host, and control groups.
async fn end_the_dying(instance: &Path) -> io::Result<()> {
    let killed = marked::kill(MARK, &name_of(instance))?;
    if killed > 0 {
        tracing::info!(
            killed,
            "ended programs that a provider had run that was killed"
        );
    }
    remove_groups_of_the_dying(instance).await
}

fn note_groups(instance: &Path, hierarchies: &Hierarchies) -> io::Result<()> {
    let directories = serde_json::to_vec(&hierarchies.directories())?;
    std::fs::write(instance.join(GROUPS), directories)
}

/// Removes the control groups of a process that is gone.
fn remove_groups(instance: &Path) -> io::Result<()> {
    let noted = match std::fs::read(instance.join(GROUPS)) {
        Ok(noted) => noted,
        // It was killed before it could make any.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // One that was cut off says that nothing was made yet.
    let directories: Vec<PathBuf> = serde_json::from_slice(&noted).unwrap_or_default();
    directories
        .iter()
        .try_for_each(|directory| cgroups::remove_all(directory))
}

/// The same where its sandboxes may have been killed with it just now: a group is busy until they are gone.
async fn remove_groups_of_the_dying(instance: &Path) -> io::Result<()> {
    let (mut pause, end) = (Duration::from_millis(5), Instant::now() + DYING);
    loop {
        match remove_groups(instance) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {}
            removed => return removed,
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// Has ext4 put each directory that is made in this one, with all below it, into another part of the disk, as
/// `chattr +T` does. What is made and removed all the time would else share a table of inodes, which is looked
/// through for one that was not freed in the last minutes where there is no journal: at a hundred sandboxes a
/// second half of all that making one takes.
fn spread(directory: &Path) {
    // Other filesystems do not know it.
    let _ = std::fs::File::open(directory).map(|open| {
        let flags = rustix::fs::ioctl_getflags(&open)?;
        rustix::fs::ioctl_setflags(&open, flags | IFlags::TOPDIR)
    });
}

/// When what is written must be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Once the kernel finds time: it survives the end of any process, not that of the host.
    Soon,
    /// At once.
    Now,
}

/// Replaces the file at `path`, whole or not at all, by way of one called `.new` besides.
///
/// # Errors
/// Those of writing it.
pub fn replace_file(path: &Path, content: &[u8], written: Written) -> io::Result<()> {
    let temporary = beside(path);
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    if written == Written::Now {
        file.sync_all()?;
    }
    drop(file);
    std::fs::rename(temporary, path)
}

/// Removes what a replacement of the file at `path` left that was cut short.
///
/// # Errors
/// Those of removing it.
pub fn forget_half(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(beside(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    temporary.into()
}

fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn check_private(path: &Path) -> Result<(), StateError> {
    let uid = rustix::process::geteuid().as_raw();
    match std::fs::metadata(path) {
        Ok(status) if status.uid() == uid && status.mode() & 0o077 == 0 => Ok(()),
        Ok(_) => Err(StateError::Exposed {
            path: path.to_owned(),
            uid,
        }),
        Err(source) => Err(StateError::Io {
            path: path.to_owned(),
            attempt: "examining it",
            source,
        }),
    }
}

/// How often a lock that another process holds is tried again.
const LOCK_TRIES: u32 = 250;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The lock, or `None` if another process still holds it after a while.
async fn lock_patiently(path: &Path) -> io::Result<Option<File>> {
    for _ in 0..LOCK_TRIES {
        if let Some(lock) = lock(path)? {
            return Ok(Some(lock));
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    Ok(None)
}

/// The lock, or `None` if another process holds it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
