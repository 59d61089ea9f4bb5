//! One mirror: a bare repository of the provider's own, kept equal to an upstream.
//!
//! A mirror is only ever added to in place (objects first, then references), so readers need no
//! lock against a fetch. What would pull files from under them, repacking and replacing, takes the
//! mirror's lease alone. The two locks:
//!
//! - `<digest>.lock`, for writers: one at a time, across tasks and processes. The fetching git
//!   holds it too, so a provider that is killed does not hand the mirror to its successor early.
//! - the mirror's own directory, the lease: shared by readers.
//!
//! Who needs both takes the lock first: its holder may wait for the end of all leases.

mod ask;
mod files;
mod find;
mod partial;
mod steps;
mod thin;
mod update;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::error::GitError;
use super::process::{Call, Client, Failure, Input};
use super::reference::{CommitId, Resolved};
use super::upstream::{Access, Upstream};
use crate::config::{Filter, Repository};
use ask::Head;
pub(super) use files::{blocking, take_unwanted};
use files::{is_at, sweep, trusting};
pub(super) use partial::{files_of, settings as partial_settings};
pub(super) use thin::ids;

/// How long to wait before asking again for a lock that another process holds.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// What git calls the upstream in a mirror and in a checkout.
pub(super) const REMOTE: &str = "origin";

/// How much of its upstream a mirror has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Of how many commits, if not of all.
    pub(super) depth: Option<NonZeroU32>,
    /// Without which files, those excepted that somebody wanted.
    pub(super) filter: Option<Filter>,
}

impl Extent {
    /// All that the upstream has.
    pub(super) const WHOLE: Self = Self {
        depth: None,
        filter: None,
    };

    /// What a repository of the config asks for.
    pub(super) fn of(repository: &Repository) -> Self {
        Self {
            depth: repository.depth,
            filter: repository.filter,
        }
    }

    /// Where a mirror of it is, by its upstream's digest.
    pub(super) fn digest(self, upstream: &Upstream) -> String {
        let depth = self.depth.map(|depth| format!("depth={depth}"));
        let filter = self.filter.map(|filter| format!("filter={filter}"));
        let parts: Vec<_> = depth.into_iter().chain(filter).collect();
        match parts.is_empty() {
            true => upstream.digest(),
            false => upstream.digest_for(&parts.join(" ")),
        }
    }
}

/// Where references' names lead: full name to object id. Names are bytes to git.
pub(super) type Refs = BTreeMap<Vec<u8>, String>;

/// A repository's mirror, there or not.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    pub(super) client: Arc<Client>,
    pub(super) upstream: Upstream,
    pub(super) extent: Extent,
    /// The directory that holds all mirrors.
    dir: PathBuf,
    digest: String,
    gate: Arc<Mutex<()>>,
}

/// The right to write to a mirror.
#[derive(Debug)]
pub(super) struct WriteLock {
    file: File,
    _gate: OwnedMutexGuard<()>,
}

/// As long as it lives, the mirror's files stay where they are.
#[derive(Debug)]
pub(super) struct Lease(#[expect(dead_code, reason = "the lock lives in the open file")] File);

impl WriteLock {
    /// For a process that is to hold the lock as well.
    fn held(&self) -> Result<File, GitError> {
        self.file
            .try_clone()
            .map_err(|error| GitError::io("prepare a fetch", error))
    }
}

/// Which directory is at a mirror's place: another one once the mirror was made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Mirror {
    pub(super) fn new(
        client: Arc<Client>,
        dir: PathBuf,
        (upstream, extent): (Upstream, Extent),
        gate: Arc<Mutex<()>>,
    ) -> Self {
        Self {
            client,
            digest: extent.digest(&upstream),
            upstream,
            extent,
            dir,
            gate,
        }
    }

    /// The bare repository.
    pub(super) fn path(&self) -> PathBuf {
        self.beside("git")
    }

    /// Which directory it is; none where there is none.
    pub(super) async fn identity(&self) -> Option<Identity> {
        let metadata = tokio::fs::metadata(self.path()).await.ok()?;
        Some(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// A git process that reads or writes the mirror itself.
    pub(super) fn git(&self) -> Call {
        self.client.local(&self.path())
    }

    /// Waits until nobody else writes.
    pub(super) async fn lock(&self) -> Result<WriteLock, GitError> {
        let gate = Arc::clone(&self.gate).lock_owned().await;
        let path = self.beside("lock");
        let file = blocking("open the mirror's lock", move || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
        })
        .await?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // Another process holds it, if only a git that is being killed. Asking again,
                // unlike a thread that blocks in flock(2), ends when this future is dropped.
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_INTERVAL).await,
                Err(TryLockError::Error(error)) => {
                    return Err(GitError::io("lock the mirror", error));
                }
            }
        }
        let (mirror, trusted) = (self.path(), self.beside("conf"));
        let directory = self.upstream.directory();
        let used = file
            .try_clone()
            .map_err(|error| GitError::io("lock the mirror", error))?;
        blocking("prepare the mirror", move || {
            used.set_modified(SystemTime::now())?;
            sweep(&mirror)?;
            directory.map_or(Ok(()), |directory| {
                std::fs::write(trusted, trusting(&directory))
            })
        })
        .await?;
        Ok(WriteLock { file, _gate: gate })
    }

    /// Keeps the mirror's files where they are.
    pub(super) async fn lease(&self) -> Result<Lease, GitError> {
        let path = self.path();
        blocking("open the mirror", move || {
            loop {
                let directory = File::open(&path)?;
                directory.lock_shared()?;
                // It may have been replaced before the lock was there.
                if is_at(&directory, &path)? {
                    return Ok(Lease(directory));
                }
            }
        })
        .await
    }

    /// The write lock of a mirror of a depth: while git fetches, its history may seem to end elsewhere.
    pub(super) async fn lock_of_depth(&self) -> Result<Option<WriteLock>, GitError> {
        match self.extent.depth {
            Some(_) => self.lock().await.map(Some),
            None => Ok(None),
        }
    }

    /// For who takes objects and their history out of the mirror.
    pub(super) async fn hold(&self) -> Result<(Option<WriteLock>, Lease), GitError> {
        let lock = self.lock_of_depth().await?;
        Ok((lock, self.lease().await?))
    }

    /// Makes the mirror equal to the upstream and finds `reference` in it.
    pub(super) async fn resolve(
        &self,
        lock: &WriteLock,
        access: Access,
        reference: Option<&str>,
    ) -> Result<Resolved, GitError> {
        let (access, advertised) = self.ask(lock, access).await?;
        if advertised.refs.is_empty() && matches!(advertised.head, Head::Nowhere) {
            return Err(GitError::Empty {
                url: self.upstream.url().to_owned(),
            });
        }
        match self.extent.depth {
            Some(depth) => {
                self.reach(lock, &access, &advertised, (reference, depth))
                    .await?;
            }
            None => self.update(lock, &access, &advertised).await?,
        }
        match self.find_whole(lock, &access, &advertised, reference).await {
            Err(error @ GitError::Other { .. }) if self.is_damaged().await => {
                self.replace_damaged(lock, &access, &advertised, &error)
                    .await?;
                if let Some(depth) = self.extent.depth {
                    self.reach(lock, &access, &advertised, (reference, depth))
                        .await?;
                }
                self.find_whole(lock, &access, &advertised, reference).await
            }
            found => found,
        }
    }

    /// Makes the mirror equal to the upstream, or one of a depth so in `branch` alone, with these commits as far as
    /// the upstream gives them out; the access that works, and the branches and tags there.
    pub(super) async fn refresh(
        &self,
        lock: &WriteLock,
        access: Access,
        (branch, commits): (&str, &[CommitId]),
    ) -> Result<(Access, Refs), GitError> {
        let (access, advertised) = self.ask(lock, access).await?;
        match self.extent.depth {
            Some(depth) => {
                self.reach_branch(lock, &access, &advertised, (branch, depth))
                    .await?;
                self.reach_commits(lock, &access, commits).await?;
            }
            None => self.update(lock, &access, &advertised).await?,
        }
        Ok((access, advertised.refs))
    }

    /// Makes the mirror anew and has `commit` in it, if the upstream still gives it out.
    pub(super) async fn rebuild(
        &self,
        lock: &WriteLock,
        access: Access,
        commit: &CommitId,
    ) -> Result<(), GitError> {
        let (access, advertised) = self.ask(lock, access).await?;
        match self.extent.depth {
            Some(depth) => {
                self.reach_anew(lock, &access, &advertised, (Some(commit), depth))
                    .await?;
            }
            None => self.build(lock, &access, &advertised).await?,
        }
        let commit = self.commit_or_fetch(lock, &access, commit.as_str()).await?;
        self.fill(lock, &access, &files_of([&commit])).await
    }

    /// Whether git finds the mirror's own files missing or broken. Reads all of it.
    pub(super) async fn is_damaged(&self) -> bool {
        // Its configuration is not fsck's concern.
        let bare = self
            .git()
            .args(["rev-parse", "--is-bare-repository"])
            .output()
            .await;
        if bare.is_ok_and(|answer| answer != b"true\n") {
            return true;
        }
        let fsck = self.git().args([
            "fsck",
            "--full",
            "--no-dangling",
            "--no-reflogs",
            "--progress",
        ]);
        fsck.output()
            .await
            .is_err_and(|failure| failure.is_an_answer())
    }

    /// A git process that may reach the upstream, and holds the lock until it ends.
    fn remote(&self, lock: &WriteLock, access: &Access) -> Result<Call, GitError> {
        let trusted = access.upstream().directory().map(|_| self.beside("conf"));
        Ok(self
            .client
            .remote(access, trusted.as_deref())
            .input(Input::Held(lock.held()?)))
    }

    /// A fetch from the upstream, [`REMOTE`]; its options, `--`, that and what is wanted come after it. Progress
    /// tells that it is alive, and ends it by SIGPIPE when the provider is gone.
    fn fetching(&self, lock: &WriteLock, access: &Access, into: &Path) -> Result<Call, GitError> {
        let filter = self
            .extent
            .filter
            .map(|filter| format!("--filter={filter}"));
        let call = self
            .remote(lock, access)?
            .in_git_dir(into)
            .setting(&format!("remote.{REMOTE}.url"), access.upstream().url())
            // From git 2.48 on it would make a reference of that.
            .setting(&format!("remote.{REMOTE}.followRemoteHEAD"), "never");
        let fetch = [
            "fetch",
            "--progress",
            "--no-tags",
            "--no-recurse-submodules",
        ];
        Ok(call.args(fetch).args(filter))
    }

    fn beside(&self, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", self.digest))
    }
}

/// Why a fetch failed. What a broken transfer left goes: on a full disk that is the worst of it.
async fn swept(into: &Path, access: &Access, failure: Failure) -> GitError {
    let into = into.to_owned();
    match blocking("clean up after a fetch", move || sweep(&into)).await {
        Ok(()) => GitError::remote("fetch", access, failure),
        Err(error) => error,
    }
}

/// What git printed; none where it ended with a no of its own. What kept it from answering is an error.
async fn answer(call: Call, attempt: &str) -> Result<Option<Vec<u8>>, GitError> {
    match call.output().await {
        Ok(printed) => Ok(Some(printed)),
        Err(failure) if failure.is_an_answer() => Ok(None),
        Err(failure) => Err(GitError::local(attempt, failure)),
    }
}

/// Lines in two parts.
fn lines(text: &[u8], separator: u8) -> impl Iterator<Item = (&[u8], &[u8])> {
    text.split(|&byte| byte == b'\n').filter_map(move |line| {
        let at = line.iter().position(|&byte| byte == separator)?;
        Some((&line[..at], &line[at + 1..]))
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
