//! Large files: what git-lfs keeps elsewhere, brought beside a repository's mirror and into checkouts.
//!
//! The provider brings them itself, with the repository's credentials; git-lfs runs nowhere on the host. What
//! says which files are some and where they are, pointers, `.gitattributes`, `.lfsconfig` and servers, may all be
//! hostile: a file's content is what its SHA-256 says, and comes from where the config allows.
//!
//! Reading order: `pointer` (which files), `endpoint` (where they are), `batch` (how a server is asked),
//! `transfer`, `store` (where they are kept), `checkout` and `filter` (how they come into a workspace),
//! `outgoing` (what a push may point to), `error`.

mod batch;
mod checkout;
mod endpoint;
mod error;
mod filter;
mod outgoing;
mod pointer;
mod store;
mod transfer;

pub use filter::settings as filter_settings;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio::io::AsyncReadExt as _;

pub use error::LfsError;
pub(super) use outgoing::{no_large_files, outgoing};

use super::Mirrors;
use super::error::GitError;
use super::http::Web;
use super::mending::Mending;
use super::mirror::{Lease, Mirror, blocking};
use super::process::Input;
use super::reference::{CommitId, Resolved};
use super::submodules::Submodule;
use super::upstream::Access;
use crate::config::Repository;
use endpoint::{Allowed, Endpoint};
use pointer::{Object, Pointer};
use store::{Held, Store, Unfit};
use transfer::Transfers;

/// Tells how many bytes may still be written to the disk of the mirrors.
#[derive(Clone)]
pub struct Room(Arc<dyn Fn() -> io::Result<u64> + Send + Sync>);

impl Room {
    /// As `tell` tells.
    pub fn told_by(tell: impl Fn() -> io::Result<u64> + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Any number.
    #[cfg(test)]
    pub(super) fn boundless() -> Self {
        Self::told_by(|| Ok(u64::MAX))
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Room")
    }
}

/// Large files of a mirror that a workspace lacks.
#[derive(Debug)]
pub struct LargeFiles {
    store: Store,
    objects: Vec<Object>,
    /// For as long as they are there.
    _lease: Option<Lease>,
}

impl LargeFiles {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Writes them to `sink` as a tar: names as below `lfs/objects`.
    ///
    /// # Errors
    /// `Io`; `sink` may hold a part of the tar then.
    pub async fn write(self, sink: File) -> Result<(), GitError> {
        blocking("write large files", move || {
            checkout::write_tar(&self.store, &self.objects, sink)
        })
        .await
    }
}

impl Mirrors {
    /// Brings the large files of `at`, which has been resolved before, and of its submodules, where the repository
    /// wants them and they are not there yet.
    ///
    /// # Errors
    /// Any [`GitError`].
    pub async fn bring_large_files(
        &self,
        repository: &Repository,
        at: &Resolved,
        submodules: &[Submodule],
    ) -> Result<(), GitError> {
        if !repository.lfs {
            return Ok(());
        }
        self.prepare().await?;
        bring(self, repository, (&at.commit, None)).await?;
        for submodule in submodules {
            let Submodule {
                repository,
                at,
                below,
                ..
            } = submodule;
            Box::pin(self.bring_large_files(repository, at, below)).await?;
        }
        Ok(())
    }

    /// Brings the large files of `at` as well, and gives those that `old` did not have: a commit whose large files
    /// the workspace got.
    ///
    /// # Errors
    /// Any [`GitError`].
    pub async fn large_files(
        &self,
        repository: &Repository,
        at: &Resolved,
        old: Option<&CommitId>,
    ) -> Result<LargeFiles, GitError> {
        let store = Store::at(directory(&self.mirror_for(repository)?));
        if !repository.lfs || old == Some(&at.commit) {
            return Ok(LargeFiles {
                store,
                objects: Vec::new(),
                _lease: None,
            });
        }
        self.prepare().await?;
        let brought = bring(self, repository, (&at.commit, old)).await?;
        let had = brought.had.into_iter().map(|pointer| pointer.object.oid);
        let mut seen: std::collections::HashSet<_> = had.collect();
        let all = brought.pointers.into_iter().map(|pointer| pointer.object);
        Ok(LargeFiles {
            store,
            objects: all
                .filter(|object| seen.insert(object.oid.clone()))
                .collect(),
            _lease: Some(brought.lease),
        })
    }
}

/// Puts the large files of a commit into a checkout of it, and has git inside know what to do with them.
/// `git_dir` is the checkout's own.
pub(super) async fn fill(
    mirror: &Mirror,
    commit: &CommitId,
    (root, git_dir): (&Path, &Path),
) -> Result<(), GitError> {
    let failed = |failure| GitError::local("check large files out", failure);
    let _lease = mirror.lease().await?;
    let pointers = pointer::list(mirror, commit).await?;
    let git = || mirror.client.local(git_dir).hiding(root);
    for (key, value) in filter::settings() {
        let set = git().args(["config", "--local", key, &value]);
        set.output().await.map_err(failed)?;
    }
    let lines = checkout::index_info(&pointers);
    let (top, store) = (root.to_owned(), Store::at(directory(mirror)));
    blocking("check large files out", move || {
        checkout::fill(&top, &store, &pointers)
    })
    .await?;
    let index = git()
        .in_work_tree(root)
        .args(["update-index", "-z", "--index-info"]);
    let index = index.input(Input::Bytes(lines));
    index.output().await.map(drop).map_err(failed)
}

/// Where a mirror has its large files.
pub(super) fn directory(mirror: &Mirror) -> PathBuf {
    mirror.path().join("lfs")
}

/// What a mirror knows of the large files of a commit.
struct Looked {
    /// The mirror's files stay where they are.
    lease: Lease,
    pointers: Vec<Pointer>,
    /// Those of the commit before, if it is known.
    had: Vec<Pointer>,
    /// What the commit names for a server of those that are missing.
    named: Option<String>,
}

impl Looked {
    async fn at(
        mirror: &Mirror,
        (commit, old): (&CommitId, Option<&CommitId>),
    ) -> Result<Self, GitError> {
        let lease = mirror.lease().await?;
        let pointers = pointer::list(mirror, commit).await?;
        let had = match old {
            Some(old) if mirror.peeled(old.as_str()).await?.is_some() => {
                pointer::list(mirror, old).await?
            }
            _ => Vec::new(),
        };
        let missing = Store::at(directory(mirror)).missing(&pointers).await?;
        let named = match missing.is_empty() {
            true => None,
            false => endpoint::named(mirror, commit).await?,
        };
        Ok(Self {
            lease,
            pointers,
            had,
            named,
        })
    }
}

/// Has the content of all large files of a commit in the mirror, and looks at which `old` had.
async fn bring(
    mirrors: &Mirrors,
    repository: &Repository,
    (commit, old): (&CommitId, Option<&CommitId>),
) -> Result<Looked, GitError> {
    let mut mending = Mending::of(mirrors, repository, commit).await?;
    let mut looked = loop {
        let looked = Looked::at(mending.mirror(), (commit, old)).await;
        if let Some(looked) = mending.settle(looked).await? {
            break looked;
        }
    };
    let named = looked.named.take();
    download(
        mirrors,
        mending.mirror(),
        repository,
        (&looked.pointers, named),
    )
    .await?;
    Ok(looked)
}

/// Brings what is missing of these, from the server that the commit named, if it did.
async fn download(
    mirrors: &Mirrors,
    mirror: &Mirror,
    repository: &Repository,
    (pointers, named): (&[Pointer], Option<String>),
) -> Result<(), GitError> {
    let store = Store::at(directory(mirror));
    if store.missing(pointers).await?.is_empty() {
        return Ok(());
    }
    let digest = mirror.extent.digest(&mirror.upstream);
    let gate = mirrors.gate(format!("{digest}.lfs"));
    let _turn = gate.lock_owned().await;
    let held = store.lock().await?;
    let wanted = store.missing(pointers).await?;
    let Some(first) = wanted.first() else {
        return Ok(());
    };
    check_sizes(mirror, pointers)?;
    check_room(&mirrors.0.room, mirror, &wanted, first)?;
    let wanted = by_directory(mirror, wanted, (&store, &held)).await?;
    let Some(first) = wanted.first() else {
        return Ok(());
    };
    let access = Access::of(repository).await?;
    let allowed = Allowed::by(repository)?;
    let endpoint = Endpoint::find(mirror, &access, (&allowed, named), "download").await?;
    let url = mirror.upstream.url();
    let Some(endpoint) = endpoint else {
        let missing = LfsError::Missing {
            url: url.to_owned(),
            path: first.shown(),
            oid: first.object.oid.to_string(),
            detail: "the directory's own lfs/objects does not have it; 'git lfs fetch --all' in it gets it"
                .to_owned(),
        };
        return Err(missing.into());
    };
    tracing::info!(url, count = wanted.len(), "bringing large files");
    let mut transfers = Transfers {
        mirror,
        access: &access,
        web: &Web::new(&access, &mirror.client).await?,
        endpoint,
        allowed: &allowed,
    };
    transfers.download(wanted, (&store, &held)).await
}

/// Refuses pointers of which one must be wrong.
fn check_sizes(mirror: &Mirror, pointers: &[Pointer]) -> Result<(), LfsError> {
    let mut sizes = std::collections::HashMap::new();
    for pointer in pointers {
        let Object { oid, size } = &pointer.object;
        if sizes.insert(oid, size).is_some_and(|other| other != size) {
            return Err(LfsError::Wrong {
                url: mirror.upstream.url().to_owned(),
                path: pointer.shown(),
                oid: oid.to_string(),
                detail: "another file of the commit says that it has another size".to_owned(),
            });
        }
    }
    Ok(())
}

fn check_room(
    room: &Room,
    mirror: &Mirror,
    wanted: &[Pointer],
    first: &Pointer,
) -> Result<(), GitError> {
    let room = (room.0)().map_err(|error| GitError::io("look for room for large files", error))?;
    let sizes = wanted.iter().map(|pointer| pointer.object.size);
    let size = sizes.fold(0, u64::saturating_add);
    if size <= room {
        return Ok(());
    }
    let too_large = LfsError::TooLarge {
        url: mirror.upstream.url().to_owned(),
        path: first.shown(),
        size,
        room,
    };
    Err(too_large.into())
}

/// Copies what a directory of this host has; what it has not.
async fn by_directory(
    mirror: &Mirror,
    wanted: Vec<Pointer>,
    (store, held): (&Store, &Held),
) -> Result<Vec<Pointer>, GitError> {
    let Some(directory) = mirror.upstream.directory() else {
        return Ok(wanted);
    };
    let io = |error| GitError::io("copy a large file", error);
    let mut lacking = Vec::new();
    for pointer in wanted {
        let (from, object) = (directory.clone(), pointer.object.clone());
        let opened = blocking("open a large file of the upstream", move || {
            Ok(open_below(&from, &object))
        });
        let Some(file) = opened.await? else {
            lacking.push(pointer);
            continue;
        };
        let mut file = tokio::fs::File::from_std(file);
        let mut part = store.part(&pointer.object, held).await?;
        part.restart().await.map_err(io)?;
        let mut buffer = vec![0; 1 << 20];
        let copied = loop {
            let count = file.read(&mut buffer).await.map_err(io)?;
            if count == 0 {
                break part.finish().await;
            }
            if let Err(unfit) = part.write(&buffer[..count]).await {
                break Err(unfit);
            }
        };
        match copied {
            Ok(()) => {}
            Err(Unfit::Io(error)) => return Err(io(error)),
            Err(Unfit::Wrong(detail)) => {
                let wrong = LfsError::Wrong {
                    url: mirror.upstream.url().to_owned(),
                    path: pointer.shown(),
                    oid: pointer.object.oid.to_string(),
                    detail,
                };
                return Err(wrong.into());
            }
        }
    }
    Ok(lacking)
}

/// An object of a directory's own, bare or not, if it is a file of the right size with no link on the way.
fn open_below(directory: &Path, object: &Object) -> Option<File> {
    let top = File::open(directory).ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    ["lfs/objects", ".git/lfs/objects"]
        .iter()
        .find_map(|place| {
            let path = Path::new(place).join(object.oid.place());
            let opened = rustix::fs::openat2(&top, path, flags, Mode::empty(), resolve);
            let file = File::from(opened.ok()?);
            let found = file.metadata().ok()?;
            (found.is_file() && found.len() == object.size).then_some(file)
        })
}
