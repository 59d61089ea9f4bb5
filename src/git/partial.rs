//! Partial clones in workspaces: without files of old commits, as the config's filter says, and with all of the
//! commit that is checked out.
//!
//! Which files are there is up to the filter and that commit alone, and not to what the mirror has brought for
//! others. Commits that come later come with all of their files: git takes in no bundle that lacks some.

use std::fs::File;
use std::io::{self, Seek as _};
use std::path::Path;

use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::Mirrors;
use super::error::GitError;
use super::mending::Mending;
use super::mirror::{Mirror, blocking, files_of};
use super::process::{Call, Input};
use super::reference::{CommitId, Resolved};
use crate::config::{Filter, Repository};

/// Writes one pack, with its index, below the directory `packs`: of what `wanted` leads to, without the files that
/// `filter` leaves out, but for those of `at`. `ends` is a file as git's `shallow`: what is behind it stays outside.
pub(super) async fn pack(
    mirror: &Mirror,
    filter: Filter,
    (wanted, at): (impl Iterator<Item = &str>, &CommitId),
    ends: Option<&Path>,
    packs: &Path,
) -> Result<(), GitError> {
    let wanted: String = wanted.map(|id| format!("{id}\n")).collect();
    let list = |filter: &str| {
        let list = list(mirror).arg(filter).input(lines(&wanted));
        match ends {
            Some(ends) => list.with_shallow(ends),
            None => list,
        }
    };
    // Of commits and directories none may be missing, and no file of the commit.
    let mut lists = vec![list("--filter=blob:none"), list_of_files(mirror, at, None)];
    if filter != Filter::All {
        let others = list(&format!("--filter={filter}"));
        lists.push(others.arg("--missing=allow-any"));
    }
    write(mirror, lists, packs).await
}

/// Files that a partial clone in a workspace lacks.
#[derive(Debug)]
pub struct NewFiles {
    /// A pack of them.
    packs: TempDir,
}

impl NewFiles {
    /// Writes them to `sink` as a tar: names as below `objects/pack`.
    ///
    /// # Errors
    /// `Io`; `sink` may hold a part of the tar then.
    pub async fn write(self, sink: File) -> Result<(), GitError> {
        blocking("write new files", move || {
            write_tar(self.packs.path(), sink)
        })
        .await
    }
}

impl Mirrors {
    /// The files of `at`, which has been resolved before, that `old` did not have, a commit whose files the
    /// workspace got; none where it has them, or lacks none.
    ///
    /// # Errors
    /// Any [`GitError`].
    pub async fn new_files(
        &self,
        repository: &Repository,
        at: &Resolved,
        old: Option<&CommitId>,
    ) -> Result<Option<NewFiles>, GitError> {
        if !repository.is_partial() || old == Some(&at.commit) {
            return Ok(None);
        }
        self.prepare().await?;
        let mut mending = Mending::of(self, repository, &at.commit).await?;
        loop {
            let packed = pack_new(mending.mirror(), (&at.commit, old), &self.0.scratch).await;
            if let Some(packs) = mending.settle(packed).await? {
                return Ok(Some(NewFiles { packs }));
            }
        }
    }
}

async fn pack_new(
    mirror: &Mirror,
    (commit, old): (&CommitId, Option<&CommitId>),
    scratch: &Path,
) -> Result<TempDir, GitError> {
    let _lease = mirror.lease().await?;
    let old = match old {
        Some(old) => mirror.peeled(old.as_str()).await?,
        None => None,
    };
    let scratch = scratch.to_owned();
    let packs = blocking(LIST, move || tempfile::tempdir_in(scratch)).await?;
    let list = list_of_files(mirror, commit, old.as_ref());
    write(mirror, vec![list], packs.path()).await?;
    Ok(packs)
}

const LIST: &str = "list what a workspace is to have";

fn list(mirror: &Mirror) -> Call {
    let objects = ["rev-list", "--objects", "--no-object-names", "--stdin"];
    mirror.git().args(objects)
}

/// Lists the files and directories of a commit, which are all there, those that `old` has as well excepted.
fn list_of_files(mirror: &Mirror, commit: &CommitId, old: Option<&CommitId>) -> Call {
    let not = old.map(|old| format!("^{}", files_of([old])));
    let wanted = files_of([commit]) + not.as_deref().unwrap_or_default();
    list(mirror).input(lines(&wanted))
}

fn lines(text: &str) -> Input {
    Input::Bytes(text.as_bytes().to_vec())
}

/// Writes one pack of all objects that these calls list. What they lead to and is not there, git takes for promised.
async fn write(mirror: &Mirror, lists: Vec<Call>, packs: &Path) -> Result<(), GitError> {
    let failed = |failure| GitError::local(LIST, failure);
    let (sink, list) = mirror.scratch(LIST).await?;
    for call in lists {
        // Each goes on where the one before ended.
        let sink = sink
            .try_clone()
            .map_err(|error| GitError::io(LIST, error))?;
        call.output_into(sink).await.map_err(failed)?;
    }
    (&list)
        .rewind()
        .map_err(|error| GitError::io(LIST, error))?;
    // Progress tells that it is alive.
    let pack = mirror
        .git()
        .setting("core.fsync", "none")
        .args(["pack-objects", "--delta-base-offset", "--progress"])
        .arg(packs.join("pack"))
        .input(Input::Held(list));
    let id = pack.output().await.map_err(failed)?;
    let promised = format!("pack-{}.promisor", String::from_utf8_lossy(&id).trim());
    let promised = packs.join(promised);
    blocking("mark a pack", move || std::fs::write(promised, [])).await
}

/// Writes the files of a directory, as git has those of packs.
fn write_tar(packs: &Path, sink: File) -> io::Result<()> {
    let mut tar = Builder::new(io::BufWriter::with_capacity(256 * 1024, sink));
    for entry in std::fs::read_dir(packs)? {
        let path = entry?.path();
        let name = path.strip_prefix(packs).map_err(io::Error::other)?;
        let file = File::open(&path)?;
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o444);
        header.set_size(file.metadata()?.len());
        tar.append_data(&mut header, name, file)?;
    }
    io::Write::flush(&mut tar.into_inner()?)
}
