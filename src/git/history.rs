//! How much of a repository's history enters a workspace: which references, and with them which objects.

use std::path::Path;

use super::error::GitError;
use super::mirror::{Mirror, Refs};
use super::process::{Failure, Input};
use super::reference::{CommitId, Reference, Resolved};
use crate::config::History;

/// The references of the mirror, by their upstream's names, that go with `at`. Of the branch or tag that `at`
/// was found by it is what it was then, even if the mirror has moved on since.
pub(super) async fn references(
    mirror: &Mirror,
    history: History,
    at: &Resolved,
) -> Result<Refs, GitError> {
    let all = mirror.refs().await?;
    let mut chosen = match history {
        History::Full => all.clone(),
        History::Branch => branch_with_tags(mirror, &all, at).await?,
        History::Sealed | History::None => Refs::new(),
    };
    match &at.reference {
        Reference::Branch(name) => {
            let branch = format!("refs/heads/{name}").into_bytes();
            chosen.insert(branch, at.commit.as_str().to_owned());
        }
        Reference::Tag(name) => {
            let tag = format!("refs/tags/{name}").into_bytes();
            if let Some(id) = all.get(&tag)
                && mirror.peeled(id).await?.as_ref() == Some(&at.commit)
            {
                chosen.insert(tag, id.clone());
            }
        }
        Reference::Commit => {}
    }
    Ok(chosen)
}

/// The branch that was asked for, else the default one, and the tags that its commits have.
async fn branch_with_tags(mirror: &Mirror, all: &Refs, at: &Resolved) -> Result<Refs, GitError> {
    let (branch, tip) = match &at.reference {
        Reference::Branch(name) => (name.clone(), at.commit.as_str().to_owned()),
        Reference::Tag(_) | Reference::Commit => {
            let Some(name) = mirror.default_branch().await else {
                return Ok(Refs::new());
            };
            let Some(tip) = all.get(format!("refs/heads/{name}").as_bytes()) else {
                return Ok(Refs::new());
            };
            (name, tip.clone())
        }
    };
    let merged = mirror.git().args([
        "for-each-ref",
        "--format=%(refname)",
        &format!("--merged={tip}"),
        "refs/tags",
    ]);
    let merged = merged
        .output()
        .await
        .map_err(|failure| GitError::local("list the tags of a branch", failure))?;
    let tags = merged
        .split(|&byte| byte == b'\n')
        .filter_map(|name| Some((name.to_vec(), all.get(name)?.clone())));
    let branch = (format!("refs/heads/{branch}").into_bytes(), tip);
    Ok(tags.chain([branch]).collect())
}

/// The commits whose parents stay outside, where the mirror is of a depth. For the holder of the write lock.
pub(super) async fn boundary(
    mirror: &Mirror,
    history: History,
    at: &Resolved,
) -> Result<Vec<CommitId>, GitError> {
    match mirror.extent.depth {
        Some(depth) if history != History::None => {
            let graph = mirror.graph([&at.commit]).await?;
            Ok(graph.boundary(&at.commit, depth))
        }
        _ => Ok(Vec::new()),
    }
}

/// Writes one pack of what `wanted` leads to, behind `boundary` not, and of nothing else, with its index, as
/// `<prefix>-<id>.pack`.
pub(super) async fn pack(
    mirror: &Mirror,
    wanted: impl Iterator<Item = &str>,
    boundary: &[CommitId],
    prefix: &Path,
) -> Result<(), Failure> {
    let mut list = Vec::new();
    for id in boundary {
        list.extend([b"--shallow ", id.as_str().as_bytes(), b"\n"].concat());
    }
    for id in wanted {
        list.extend([id.as_bytes(), b"\n"].concat());
    }
    // Progress tells that it is alive.
    let pack = mirror
        .git()
        .setting("core.fsync", "none")
        .args([
            "pack-objects",
            "--revs",
            "--delta-base-offset",
            "--progress",
        ])
        .arg(prefix)
        .input(Input::Bytes(list));
    pack.output().await.map(drop)
}
