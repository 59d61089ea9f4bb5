//! Large files of commits that are to be pushed: the upstream must have what they point to.
//!
//! The commits may be anything. What they point to is looked for in the mirror, which has it from the upstream,
//! and else with the upstream's own server of large files; nothing is sent there. Where something is missing,
//! nothing is pushed: whoever checks such a commit out would find a pointer.

use std::collections::HashMap;

use super::super::error::GitError;
use super::super::http::Web;
use super::super::mirror::{Mirror, blocking};
use super::super::process::Call;
use super::super::push::PushError;
use super::super::reference::CommitId;
use super::super::upstream::Access;
use super::batch::{self, Said};
use super::endpoint::{Allowed, Endpoint};
use super::pointer::{self, Pointer};
use super::store::Store;
use super::transfer::Transfers;
use crate::config::Repository;

/// Large files that the server is asked about for one push, at the most.
const MOST: usize = 1000;

/// The most of those that are missing that an error names.
const NAMED: usize = 5;

/// Whether the upstream has what the commits that lead to `tip`, and to no base, point to. `git` sees them.
pub(in crate::git) async fn check_outgoing(
    (mirror, git): (&Mirror, impl Fn() -> Call),
    (access, repository): (&Access, &Repository),
    (tip, bases): (&CommitId, &[CommitId]),
) -> Result<(), PushError> {
    let named = named_blobs(&git, tip, bases).await?;
    let blobs: Vec<&str> = named.keys().map(String::as_str).collect();
    let known = pointer::read_blobs(&git, &blobs).await?;
    let pointers = known.into_iter().map(|(blob, object)| Pointer {
        path: named.get(&blob).cloned().unwrap_or_default().into(),
        object,
        blob,
        executable: false,
    });
    let pointers: Vec<Pointer> = pointers.collect();
    let store = Store::at(super::directory(mirror));
    let unknown = store.missing(&pointers).await?;
    let missing = missing_upstream(mirror, (access, repository), unknown, bases).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let mut paths: Vec<String> = missing.iter().map(named_for_people).collect();
    paths.sort();
    let more = match paths.len().checked_sub(NAMED) {
        Some(more @ 1..) => format!(" and {more} others"),
        _ => String::new(),
    };
    paths.truncate(NAMED);
    Err(PushError::Unfit(format!(
        "the upstream does not have the large files that {}{more} point to, and derrick pushes none; put them \
         there first, or commit the content itself",
        paths.join(", ")
    )))
}

fn named_for_people(pointer: &Pointer) -> String {
    let path: String = pointer.shown().chars().take(200).collect();
    format!("{path:?} ({})", pointer.object.oid)
}

/// Small objects of these commits, with a path that each has.
async fn named_blobs(
    git: impl Fn() -> Call,
    tip: &CommitId,
    bases: &[CommitId],
) -> Result<HashMap<String, String>, GitError> {
    let list = git()
        .args(["rev-list", "--objects"])
        .arg(format!("--filter=blob:limit={}", pointer::LARGEST + 1))
        .arg(tip.as_str())
        .args(bases.iter().map(|base| format!("^{base}")))
        .arg("--");
    let list = list.output().await;
    let list = list.map_err(|failure| GitError::local("look for large files", failure))?;
    let list = String::from_utf8_lossy(&list);
    let named = list.lines().filter_map(|line| line.split_once(' '));
    Ok(named
        .map(|(blob, path)| (blob.to_owned(), path.to_owned()))
        .collect())
}

/// Those that the upstream does not have.
async fn missing_upstream(
    mirror: &Mirror,
    (access, repository): (&Access, &Repository),
    unknown: Vec<Pointer>,
    bases: &[CommitId],
) -> Result<Vec<Pointer>, PushError> {
    let Some(base) = bases.first().filter(|_| !unknown.is_empty()) else {
        return Ok(unknown);
    };
    let mut unknown = unknown;
    if let Some(directory) = mirror.upstream.directory() {
        unknown = blocking("look for large files of the upstream", move || {
            let lacks = |one: &Pointer| super::open_below(&directory, &one.object).is_none();
            Ok(unknown.into_iter().filter(lacks).collect())
        })
        .await?;
    }
    if unknown.len() > MOST {
        return Err(PushError::Unfit(format!(
            "they point to {} large files of which it is not known whether the upstream has them; at most {MOST} \
             are asked for",
            unknown.len()
        )));
    }
    let allowed = Allowed::by(repository)?;
    // What the agent's own commits name is not asked.
    let endpoint = Endpoint::find(mirror, access, (&allowed, base), "download").await?;
    let Some(endpoint) = endpoint.filter(|_| !unknown.is_empty()) else {
        return Ok(unknown);
    };
    let transfers = Transfers {
        url: mirror.upstream.url(),
        web: &Web::new(access, &mirror.client).await?,
        endpoint: &endpoint,
        allowed: &allowed,
    };
    let mut missing = Vec::new();
    for chunk in unknown.chunks(batch::AT_ONCE) {
        let said = transfers.ask("download", chunk).await?;
        let has = |one: &&Pointer| match said.get(&one.object.oid) {
            Some(Said::Actions(actions)) => actions.contains_key("download"),
            Some(Said::Error(..)) | None => false,
        };
        missing.extend(chunk.iter().filter(|one| !has(one)).cloned());
    }
    Ok(missing)
}
