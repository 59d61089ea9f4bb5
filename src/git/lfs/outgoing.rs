//! Large files of commits that are to be pushed: the upstream must have what they point to.
//!
//! The commits may be anything. What they point to is looked for in the mirror, which has it from the upstream,
//! and else with the upstream's own server of large files; nothing is sent there. Where something is missing,
//! nothing is pushed: whoever checks such a commit out would find a pointer.

use std::collections::HashMap;
use std::time::Duration;

use super::super::error::GitError;
use super::super::http::Web;
use super::super::mirror::{Mirror, blocking};
use super::super::process::Call;
use super::super::push::PushError;
use super::super::reference::CommitId;
use super::super::upstream::Access;
use super::batch::{self, Said};
use super::endpoint::{self, Allowed, Endpoint};
use super::pointer::{self, Pointer};
use super::store::Store;
use super::transfer::Transfers;
use crate::config::Repository;

/// Large files that the server is asked about for one push, at the most.
const MOST: usize = 1000;

/// The most of those that are missing that an error names.
const NAMED: usize = 5;

/// How long the upstream's server may take to say what it has.
const ASKING: Duration = Duration::from_secs(300);

/// What the commits that lead to `tip`, and to no base, point to and the mirror does not have. `git` sees them.
pub(in crate::git) async fn unknown_outgoing(
    (mirror, git): (&Mirror, impl Fn() -> Call),
    (tip, bases): (&CommitId, &[CommitId]),
) -> Result<Vec<Pointer>, GitError> {
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
    store.missing(&pointers).await
}

/// Whether the upstream has these, which commits that follow on `bases` point to.
pub(in crate::git) async fn check_outgoing(
    mirror: &Mirror,
    (access, repository): (&Access, &Repository),
    unknown: Vec<Pointer>,
    bases: &[CommitId],
) -> Result<(), PushError> {
    let look = missing_upstream(mirror, (access, repository), unknown, bases);
    let looked = tokio::time::timeout(ASKING, look).await;
    // The server is to blame, and not the commits.
    let missing = looked.unwrap_or_else(|_| {
        let late = GitError::Transfer {
            url: mirror.upstream.url().to_owned(),
            detail: format!(
                "its server of large files did not say within {} s what it has",
                ASKING.as_secs()
            ),
        };
        Err(late.into())
    })?;
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
    let named = endpoint::named(mirror, base).await?;
    let endpoint = Endpoint::find(mirror, access, (&allowed, named), "download").await?;
    let Some(endpoint) = endpoint.filter(|_| !unknown.is_empty()) else {
        return Ok(unknown);
    };
    let mut transfers = Transfers {
        mirror,
        access,
        web: &Web::new(access, &mirror.client).await?,
        endpoint,
        allowed: &allowed,
    };
    let mut missing = Vec::new();
    for chunk in unknown.chunks(batch::AT_ONCE) {
        let said = transfers.ask("download", chunk).await?;
        for one in chunk {
            match said.get(&one.object.oid) {
                Some(Said::Actions(actions)) if actions.contains_key("download") => {}
                Some(Said::Actions(_) | Said::Error(404 | 410, _)) | None => {
                    missing.push(one.clone());
                }
                // It may have it.
                Some(Said::Error(code, message)) => {
                    let what = named_for_people(one);
                    return Err(transfers
                        .odd(&format!("{code} {message} for {what}"))
                        .into());
                }
            }
        }
    }
    Ok(missing)
}
