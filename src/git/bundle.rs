//! A bundle: what a repository inside a workspace lacks, as one file that its own git takes in.
//!
//! The header is written here and not by `git bundle`, which leaves out every reference that the
//! receiver's commits reach: a branch that was moved back would never arrive. Format:
//! gitformat-bundle(5).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;

use super::error::GitError;
use super::history;
use super::inside::{COMMITS, Have};
use super::mirror::{Mirror, Refs, blocking};
use super::process::{Failure, Input};
use super::reference::{CommitId, Reference, Resolved};
use crate::config::Repository;

/// Whether there was anything to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bundle {
    /// The sink holds a bundle.
    Written,
    /// The receiver has every branch and tag as it is; nothing was written.
    NothingNew,
}

pub(super) async fn write(
    mirror: &Mirror,
    repository: &Repository,
    at: &Resolved,
    have: &Have,
    sink: File,
) -> Result<Bundle, GitError> {
    let failed =
        |failure: Failure| GitError::local(&format!("bundle {}", mirror.upstream.url()), failure);
    let lock = match mirror.extent.filter {
        Some(_) => Some(mirror.lock().await?),
        None => mirror.lock_of_depth().await?,
    };
    let _lease = mirror.lease().await?;
    let mut refs = history::references(mirror, repository.history, at).await?;
    // In the receiver it would be taken for the remote's HEAD.
    refs.remove(b"refs/heads/HEAD".as_slice());
    if at.reference == Reference::Commit && !have.has_commit(&at.commit) {
        let name = format!("{COMMITS}{}", at.commit);
        refs.insert(name.into_bytes(), at.commit.as_str().to_owned());
    }

    if refs.iter().all(|(name, id)| have.has(name, id)) {
        return Ok(Bundle::NothingNew);
    }
    let known = Known::of(mirror, have).await.map_err(failed)?;
    let mut wanted = Vec::new();
    if mirror.extent.depth.is_some() {
        let had: Vec<CommitId> = known.commits.iter().flat_map(|id| id.parse()).collect();
        let graph = mirror.graph(had.iter().chain([&at.commit])).await?;
        if !graph.connects([at.commit.clone()], had, have.ends()) {
            let url = mirror.upstream.url().to_owned();
            return Err(GitError::Unconnected { url });
        }
        // Of the others git may not even take the name.
        for end in have.ends().iter().filter(|end| graph.has(end)) {
            wanted.extend([b"--shallow ", end.as_str().as_bytes(), b"\n"].concat());
        }
    }
    let header = header(&refs, &known.commits);
    let mut range: String = refs.values().map(|id| format!("{id}\n")).collect();
    range.extend(known.objects.iter().map(|id| format!("^{id}\n")));
    if let Some(lock) = &lock {
        mirror.fill_if_needed(lock, repository, &range).await?;
    }
    wanted.extend(range.into_bytes());
    let sink = blocking("write a bundle", move || {
        let mut sink = sink;
        sink.write_all(&header)?;
        Ok(sink)
    })
    .await?;
    let pack = mirror
        .git()
        .args([
            "pack-objects",
            "--stdout",
            "--revs",
            "--delta-base-offset",
            "--progress",
        ])
        // Of a partial clone nobody knows which files it has to build on.
        .args(mirror.extent.filter.is_none().then_some("--thin"))
        .input(Input::Bytes(wanted));
    pack.output_into(sink).await.map_err(failed)?;
    Ok(Bundle::Written)
}

/// What the receiver has and the mirror knows.
#[derive(Default)]
struct Known {
    /// Commits and tags.
    objects: BTreeSet<String>,
    /// Commits alone: what a bundle can name as its prerequisites.
    commits: BTreeSet<String>,
}

impl Known {
    async fn of(mirror: &Mirror, have: &Have) -> Result<Self, Failure> {
        let asked = have
            .objects()
            .map(|id| format!("{id}\n"))
            .collect::<String>()
            .into_bytes();
        let check = mirror
            .git()
            .args(["cat-file", "--batch-check=%(objectname) %(objecttype)"]);
        let answer = check.input(Input::Bytes(asked)).output().await?;
        let mut known = Self::default();
        for line in String::from_utf8_lossy(&answer).lines() {
            // `<id> missing` for what the mirror does not have.
            match line.split_once(' ') {
                Some((id, "commit")) => {
                    known.objects.insert(id.to_owned());
                    known.commits.insert(id.to_owned());
                }
                Some((id, "tag")) => {
                    known.objects.insert(id.to_owned());
                }
                _ => {}
            }
        }
        Ok(known)
    }
}

fn header(refs: &Refs, prerequisites: &BTreeSet<String>) -> Vec<u8> {
    let sha256 = refs.values().next().is_some_and(|id| id.len() == 64);
    // Version 2 is older than any git in use, but knows SHA-1 only.
    let mut header = match sha256 {
        true => b"# v3 git bundle\n@object-format=sha256\n".to_vec(),
        false => b"# v2 git bundle\n".to_vec(),
    };
    for id in prerequisites {
        header.extend([b"-", id.as_bytes(), b" \n"].concat());
    }
    for (name, id) in refs {
        header.extend([id.as_bytes(), b" ", name, b"\n"].concat());
    }
    header.push(b'\n');
    header
}
