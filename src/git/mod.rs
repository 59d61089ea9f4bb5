//! Repositories: mirrors of the provider's own, and what goes from them into a workspace.
//!
//! The provider runs git on its own mirrors and on fresh staging checkouts, never on a tree that an
//! agent has touched. What a workspace needs leaves here as bytes, a tar stream or a bundle, and is
//! taken in by git inside the workspace. Secrets stay in the memory of the provider and the
//! environments of the git processes that need them.
//!
//! Reading order: [`reference`](Reference) (what is looked at), `upstream` (where it comes from),
//! `credentials` (what a program says that opens it), `process` (how git is run), `mirror`, `mending` (what
//! is done about a damaged one), `history` (what of a mirror a workspace gets), `partial` (and without which files), `submodules`, `lfs` (large files,
//! by `http`), `checkout`, `bundle`, `inside` (what a workspace's own git is to run), `handed` (what comes out of
//! it), `push`, `error`.

mod bundle;
mod checkout;
mod credentials;
mod error;
mod handed;
mod history;
mod http;
mod inside;
mod lfs;
mod mending;
mod mirror;
mod partial;
mod process;
mod push;
mod reference;
mod submodules;
#[cfg(test)]
mod tests;
mod upstream;

use std::collections::HashMap;
use std::fs::File;
use std::io::Seek as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, OnceCell};

pub use bundle::Bundle;
pub use error::GitError;
pub use handed::{Handed, NoBundle};
pub use inside::{
    Have, author_environment, branch_command, branch_of, bundle_command, checkout_commands,
    commit_command, commit_of_command, commits_of, count_command, count_of_files, detach_command,
    fast_forward_command, fetch_command, full_names, have_command, head_command, here_environment,
    init_command, is_branch_name, is_staged_command, is_there_command, known_command,
    leads_to_command, merge_head_command, refresh_command, refresh_large_command, set_commands,
    shallow_command, stage_command,
};
pub use lfs::{LargeFiles, LfsError, Room, filter_settings};
pub use partial::NewFiles;
pub use push::{Outgoing, PushError, Pushed};
pub use reference::{CommitId, InvalidCommitId, Reference, Resolved};
pub use submodules::Submodule;

use crate::config::{History, Repository};
use crate::init::files::protocol::Owner;
use checkout::Staging;
use mending::Mending;
use mirror::{Extent, Mirror, blocking, files_of};
use process::Client;
use upstream::{Access, Upstream};

/// How long a transfer may stand still before it has failed.
const STALL: Duration = Duration::from_secs(60);

/// The first git that takes settings from its environment.
const OLDEST_GIT: (u32, u32) = (2, 31);

/// All mirrors of a provider. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mirrors(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    /// For what is on its way.
    scratch: PathBuf,
    client: Arc<Client>,
    /// One gate for each mirror that was used, so that one task writes to it at a time.
    gates: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    ready: OnceCell<()>,
    /// For large files.
    room: Room,
}

impl Mirrors {
    /// Mirrors below `dir`, which is made with mode 0700 when the first is needed, and take no large files beyond
    /// `room`. Every git has the variable `mark` in its environment.
    ///
    /// What leaves them, or is to, is below `scratch` meanwhile, which is there, on the same file system, where
    /// objects are linked and not copied. Only after a `kill -9` something is left in it.
    #[must_use]
    pub fn open(
        (dir, scratch): (PathBuf, PathBuf),
        mark: (&'static str, String),
        room: Room,
    ) -> Self {
        Self::with_stall((dir, scratch), mark, room, STALL)
    }

    fn with_stall(
        (dir, scratch): (PathBuf, PathBuf),
        mark: (&'static str, String),
        room: Room,
        stall: Duration,
    ) -> Self {
        let client = Arc::new(Client::new(dir.clone(), mark, stall));
        Self(Arc::new(Shared {
            dir,
            scratch,
            client,
            gates: Mutex::default(),
            ready: OnceCell::new(),
            room,
        }))
    }

    /// Makes the mirror equal to the upstream and finds the repository's reference in it.
    ///
    /// A whole commit id is a commit; else a branch is looked for, then a tag, then a commit by at
    /// least 7 digits. Without a reference it is the upstream's default branch. The upstream is not asked for a
    /// whole commit id that the mirror has, where nothing but what that leads to is let in.
    ///
    /// # Errors
    ///
    /// Any [`GitError`]. A mirror that was good before is still good after.
    pub async fn resolve(&self, repository: &Repository) -> Result<Resolved, GitError> {
        self.prepare().await?;
        let mirror = self.mirror_for(repository)?;
        if let Some(commit) = pinned(repository) {
            // Also says that the mirror is in use, so that nobody takes it away now.
            let _lock = mirror.lock().await?;
            let there = mirror.peeled(commit.as_str()).await?.as_ref() == Some(&commit);
            if there && !mirror.lacks(&files_of([&commit])).await? {
                return Ok(Resolved {
                    commit,
                    reference: Reference::Commit,
                });
            }
        }
        let access = Access::of(repository).await?;
        let lock = mirror.lock().await?;
        mirror
            .resolve(&lock, access, repository.reference.as_deref())
            .await
    }

    /// Looks for the submodules of `at`, which has been resolved before, and for theirs, and has each mirrored at
    /// the commit that is wanted; what `config` has of their hosts opens them. None unless the repository wants
    /// them.
    ///
    /// # Errors
    ///
    /// Any [`GitError`].
    pub async fn submodules(
        &self,
        repository: &Repository,
        at: &Resolved,
        config: &[Repository],
    ) -> Result<Vec<Submodule>, GitError> {
        if !repository.submodules {
            return Ok(Vec::new());
        }
        self.prepare().await?;
        let search = submodules::Search {
            mirrors: self,
            allowed: submodules::Allowed::by(repository)?,
            config,
            missing: submodules::Missing::Brought,
        };
        search.below(repository, &at.commit, 0, &mut 0).await
    }

    /// The submodules of `commit`, and theirs, as far as the mirrors have all that names them; no host is asked.
    /// None if they have not, or what is named is not allowed any more.
    ///
    /// # Errors
    ///
    /// Any [`GitError`].
    pub async fn known_submodules(
        &self,
        repository: &Repository,
        commit: &CommitId,
        config: &[Repository],
    ) -> Result<Option<Vec<Submodule>>, GitError> {
        if !repository.submodules {
            return Ok(Some(Vec::new()));
        }
        self.prepare().await?;
        let mirror = self.mirror_for(repository)?;
        if mirror.peeled(commit.as_str()).await?.is_none() {
            return Ok(None);
        }
        let search = submodules::Search {
            mirrors: self,
            allowed: submodules::Allowed::by(repository)?,
            config,
            missing: submodules::Missing::AnError,
        };
        match search.below(repository, commit, 0, &mut 0).await {
            Ok(known) => Ok(Some(known)),
            Err(GitError::NoSuchReference { .. } | GitError::Submodule { .. }) => Ok(None),
            // As of a mirror that is damaged.
            Err(error @ GitError::Other { .. }) => {
                tracing::debug!(url = repository.url, %error, "submodules of an earlier commit are not known");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a fresh checkout at `at`, `.git` included, to `sink` as a tar stream (GNU, with PAX
    /// records for long link targets): names relative to the repository's root, all owned by `owner`.
    ///
    /// `at` has been resolved before, and `submodules` are its own.
    ///
    /// # Errors
    ///
    /// Any [`GitError`]; `sink` may hold a part of the stream then.
    pub async fn checkout(
        &self,
        repository: &Repository,
        (at, submodules): (&Resolved, &[Submodule]),
        owner: Owner,
        sink: File,
    ) -> Result<(), GitError> {
        self.prepare().await?;
        let mut mending = Mending::of(self, repository, &at.commit).await?;
        let staging = loop {
            let scratch = &self.0.scratch;
            let made = Staging::make(mending.mirror(), repository.history, at, scratch).await;
            if let Some(staging) = mending.settle(made).await? {
                break staging;
            }
        };
        if repository.lfs {
            staging.fill_large_files(mending.mirror(), at).await?;
        }
        for submodule in submodules {
            staging.add(self, mending.mirror(), submodule).await?;
        }
        staging.stream(owner, sink).await
    }

    /// Writes a bundle of what the repository's `history` lets in beside `at`, which has been resolved before,
    /// to `sink`, an empty file, without what `have` leads to: the receiver has that. What of it the mirror does
    /// not know does not count.
    ///
    /// # Errors
    ///
    /// Any [`GitError`]; `sink` may hold a part of the bundle then.
    pub async fn bundle(
        &self,
        repository: &Repository,
        at: &Resolved,
        have: &Have,
        sink: File,
    ) -> Result<Bundle, GitError> {
        self.prepare().await?;
        let mut mending = Mending::of(self, repository, &at.commit).await?;
        loop {
            let sink = emptied(&sink).map_err(|error| GitError::io("write a bundle", error))?;
            let mirror = mending.mirror();
            let written = bundle::write(mirror, repository, at, have, sink).await;
            if let Some(bundle) = mending.settle(written).await? {
                return Ok(bundle);
            }
        }
    }

    /// Pushes commits of a workspace to the upstream, after they were checked. No branch is moved but
    /// forwards.
    ///
    /// # Errors
    /// Any [`PushError`]. Nothing was pushed then, as far as the upstream says.
    pub async fn push(
        &self,
        repository: &Repository,
        outgoing: Outgoing,
    ) -> Result<Pushed, PushError> {
        self.prepare().await?;
        let access = Access::of(repository).await?;
        let mirror = self.mirror_for(repository)?;
        push::push(&mirror, (access, repository), outgoing, &self.0.scratch).await
    }

    /// Whether all that `old` leads to is history of `new` as well, so that a checkout of `old` holds nothing
    /// that one of `new` would not.
    ///
    /// # Errors
    ///
    /// Any [`GitError`].
    pub async fn leads_to(
        &self,
        repository: &Repository,
        new: &CommitId,
        old: &CommitId,
    ) -> Result<bool, GitError> {
        self.prepare().await?;
        let mut mending = Mending::of(self, repository, new).await?;
        loop {
            let leads = {
                let mirror = mending.mirror();
                let _lock = mirror.lock_of_depth().await?;
                mirror.leads_to(new, old).await
            };
            if let Some(leads) = mending.settle(leads).await? {
                return Ok(leads);
            }
        }
    }

    /// The mirror that a repository of the config has.
    fn mirror_for(&self, repository: &Repository) -> Result<Mirror, GitError> {
        let upstream = Upstream::parse(&repository.url)?;
        Ok(self.mirror_of(&upstream, Extent::of(repository)))
    }

    /// The mirror of all that an upstream has.
    fn mirror(&self, upstream: &Upstream) -> Mirror {
        self.mirror_of(upstream, Extent::WHOLE)
    }

    fn mirror_of(&self, upstream: &Upstream, extent: Extent) -> Mirror {
        let shared = &self.0;
        Mirror::new(
            Arc::clone(&shared.client),
            shared.dir.clone(),
            (upstream.clone(), extent),
            self.gate(extent.digest(upstream)),
        )
    }

    fn gate(&self, name: String) -> Arc<AsyncMutex<()>> {
        let gates = self.0.gates.lock();
        let mut gates = gates.unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(gates.entry(name).or_default())
    }

    /// Makes the directories and looks at git's version, once.
    async fn prepare(&self) -> Result<(), GitError> {
        let shared = &self.0;
        let first = async || {
            let home = shared.client.home();
            blocking("make the directory of mirrors", move || {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(home)
            })
            .await?;
            let version = shared.client.plain().arg("version").output().await;
            let version =
                version.map_err(|failure| GitError::local("ask for git's version", failure))?;
            let found = String::from_utf8_lossy(&version).trim().to_owned();
            if parse_version(&found).is_some_and(|version| version >= OLDEST_GIT) {
                Ok(())
            } else {
                Err(GitError::TooOld { found })
            }
        };
        shared.ready.get_or_try_init(first).await.copied()
    }
}

/// The commit that a repository stays at whatever becomes of its upstream, if its reference is a whole id and no
/// other references are let in with it. How much of it a mirror of a depth has is the upstream's to say.
fn pinned(repository: &Repository) -> Option<CommitId> {
    let alone = matches!(repository.history, History::Sealed | History::None);
    let reference = repository
        .reference
        .as_deref()
        .filter(|_| alone && repository.depth.is_none());
    reference?.parse().ok()
}

/// The name of a repository's mirror, 64 hexadecimal digits; none where its URL is no repository's.
#[must_use]
pub fn mirror_of(repository: &Repository) -> Option<String> {
    let upstream = Upstream::parse(&repository.url).ok()?;
    Some(Extent::of(repository).digest(&upstream))
}

/// Gives the mirrors below `dir` to `take` that are not `wanted`, by their names, and that nobody has used
/// for ten minutes.
///
/// # Errors
/// Those of looking at them, and of `take`.
pub fn take_unwanted(
    dir: &Path,
    wanted: impl Fn(&str) -> bool,
    take: impl FnMut(&Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    mirror::take_unwanted(dir, wanted, take)
}

/// The same file, with nothing of an earlier attempt in it.
fn emptied(file: &File) -> std::io::Result<File> {
    let mut file = file.try_clone()?;
    file.set_len(0)?;
    file.rewind()?;
    Ok(file)
}

/// `git version 2.47.3` as (2, 47).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("git version ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
