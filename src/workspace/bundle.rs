//! A repository of a workspace as a bundle, made by the workspace's own git and taken out as bytes.
//!
//! It is whole in a file without a name before anybody reads it. There are so many at once, one of each workspace.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{Workspace, WorkspaceError};
use crate::base::{Inside, Question};
use crate::git::{self, CommitId, Handed};
use crate::turns::Pass;

/// The most that a bundle may be, in bytes.
const LARGEST: u64 = 4 << 30;

/// A bundle that was taken out.
#[derive(Debug)]
pub struct Bundled {
    /// Holds it, and nothing else.
    pub file: File,
    /// Its length in bytes.
    pub size: u64,
    /// Its place among all bundles: to be let go of with the file.
    pub place: Pass,
}

const BUNDLE: &str = "make a bundle";
const LOOK: &str = "look for a branch or a tag";

impl Workspace {
    /// Takes the repository at `path` out: a branch or a tag of it, `HEAD`, or all of these if `reference` is
    /// absent, with all that it leads to and `have` does not.
    ///
    /// # Errors
    /// `Ask` where git inside does not, or there is none; `NoSuchReference`, `NoBundle`.
    pub async fn bundle(
        &self,
        path: &Path,
        (reference, have): (Option<&str>, &[CommitId]),
        place: Pass,
    ) -> Result<Bundled, WorkspaceError> {
        let sandbox = self.sandbox().await?;
        let inside = Inside::to_ask(&sandbox, path).await?;
        let wanted = match reference {
            Some(reference) => Some(full_name(&inside, reference).await?),
            None => None,
        };
        let (file, size) = self
            .take_bundle(&inside, wanted.as_deref(), have, LARGEST)
            .await?;
        let (file, handed) = read(file).await?;
        drop(handed);
        Ok(Bundled { file, size, place })
    }

    /// Has git inside make a bundle without what `have` leads to, into a file without a name.
    pub(super) async fn take_bundle(
        &self,
        inside: &Inside<'_>,
        wanted: Option<&str>,
        have: &[CommitId],
        most: u64,
    ) -> Result<(File, u64), WorkspaceError> {
        let host = WorkspaceError::host("keeping a bundle");
        let file = tempfile::tempfile_in(self.state.staging()).map_err(&host)?;
        let sink = file.try_clone().map_err(&host)?;
        let make = Question::work(BUNDLE, git::bundle_command(wanted, have));
        let state = self.state.clone();
        let room = move || {
            let full = |full| io::Error::new(io::ErrorKind::StorageFull, full);
            state.check_room().map_err(full)
        };
        let size = inside.take(make, sink, most, Box::new(room)).await?;
        Ok((file, size))
    }
}

/// The full name of a branch, else of a tag, of the repository.
pub(super) async fn full_name(
    inside: &Inside<'_>,
    reference: &str,
) -> Result<String, WorkspaceError> {
    if reference == "HEAD" {
        return Ok(reference.to_owned());
    }
    let missing = || WorkspaceError::NoSuchReference {
        path: inside.path().to_owned(),
        reference: reference.to_owned(),
    };
    for name in git::full_names(reference).ok_or_else(missing)? {
        let look = Question::new(LOOK, git::is_there_command(&name));
        let looked = inside.ask(look).await?;
        match looked.exit_code {
            0 => return Ok(name),
            1 => {}
            _ => return Err(inside.failed(LOOK, &looked).into()),
        }
    }
    Err(missing())
}

/// Reads the header of a bundle.
pub(super) async fn read(file: File) -> Result<(File, Handed), WorkspaceError> {
    let read = tokio::task::spawn_blocking(move || {
        let handed = Handed::read(&file)?;
        Ok::<_, git::NoBundle>((file, handed))
    });
    let read = read.await.map_err(std::io::Error::other);
    Ok(read.map_err(WorkspaceError::host("reading a bundle"))??)
}
