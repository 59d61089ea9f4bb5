//! Large files of commits that are to be pushed: derrick pushes none, so they point to none of their own.
//!
//! A pointer is as good as a key: whoever fetches a commit with it has the provider bring the content. So it is of
//! no account whether the upstream has what a new one points to; nobody is asked, and nobody can find out by it.

use super::super::error::GitError;
use super::super::process::Call;
use super::super::reference::CommitId;
use super::pointer::{self, Pointer};

/// The most pointers that an error names.
const NAMED: usize = 5;

/// The pointers in commits that lead to `tip`, and to no base, and in no tree of a base; `git` sees them.
pub(in crate::git) async fn outgoing(
    git: impl Fn() -> Call,
    (tip, bases): (&CommitId, &[CommitId]),
) -> Result<Vec<Pointer>, GitError> {
    let list = git()
        .args(["rev-list", "--objects"])
        .arg(format!("--filter=blob:limit={}", pointer::LARGEST + 1))
        .arg(tip.as_str())
        .args(bases.iter().map(|base| format!("^{base}")))
        .arg("--");
    let list = list.output().await;
    let list = list.map_err(|failure| GitError::local("look for large files", failure))?;
    let list = String::from_utf8_lossy(&list);
    let named: Vec<(&str, &str)> = list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let blobs: Vec<&str> = named.iter().map(|(blob, _)| *blob).collect();
    let known = pointer::read_blobs(&git, &blobs).await?;
    let pointers = named.into_iter().filter_map(|(blob, path)| {
        Some(Pointer {
            object: known.get(blob)?.clone(),
            path: path.into(),
            blob: blob.to_owned(),
            executable: false,
        })
    });
    Ok(pointers.collect())
}

/// Why commits with these are not pushed, for people.
pub(in crate::git) fn no_large_files(pointers: &[Pointer]) -> String {
    let named = pointers.iter().take(NAMED).map(|pointer| {
        let path: String = pointer.shown().chars().take(200).collect();
        format!("{path:?} ({})", pointer.object.oid)
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let more = match pointers.len().checked_sub(NAMED) {
        Some(more @ 1..) => format!(" and {more} others"),
        _ => String::new(),
    };
    format!(
        "{named}{more} point to large files that the workspace was not given, and derrick pushes none; commit the \
         content itself, or push these by other means"
    )
}
