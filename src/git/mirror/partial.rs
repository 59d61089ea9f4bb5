//! A mirror without files: those of the commits that somebody wanted come by their ids, others stay with the
//! upstream.
//!
//! To git it is a partial clone: what its packs lead to and is not there is promised by the upstream. git would
//! fetch such a thing when it needs it; here it never does, so that nothing is asked for but what derrick asks for.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _};

use super::super::error::GitError;
use super::super::process::{Call, Input};
use super::super::reference::CommitId;
use super::super::upstream::Access;
use super::find::NOT_GIVEN_OUT;
use super::steps::Portions;
use super::{Mirror, REMOTE, WriteLock, blocking, swept};
use crate::config::{Filter, Repository};

/// What makes a repository one that the upstream has more of, as `git clone` sets it.
pub(in crate::git) fn settings(filter: Filter) -> [(&'static str, String); 3] {
    [
        ("core.repositoryformatversion", "1".to_owned()),
        ("remote.origin.promisor", "true".to_owned()),
        ("remote.origin.partialclonefilter", filter.to_string()),
    ]
}

/// The files of these commits, for git's `rev-list --stdin`.
pub(in crate::git) fn files_of<'a>(commits: impl IntoIterator<Item = &'a CommitId>) -> String {
    let trees = commits
        .into_iter()
        .map(|commit| format!("{commit}^{{tree}}\n"));
    trees.collect()
}

impl Mirror {
    /// Has all that these lines for git's `rev-list --stdin` lead to.
    pub(in crate::git) async fn fill(
        &self,
        lock: &WriteLock,
        access: &Access,
        wanted: &str,
    ) -> Result<(), GitError> {
        let missing = self.missing(wanted).await?;
        self.bring_missing(lock, access, wanted, missing).await
    }

    async fn bring_missing(
        &self,
        lock: &WriteLock,
        access: &Access,
        wanted: &str,
        mut missing: Vec<String>,
    ) -> Result<(), GitError> {
        while !missing.is_empty() {
            let mut portions = Portions::of(self.upstream.url(), &missing);
            while let Some(ids) = portions.next() {
                portions.after(self.fetch_objects(lock, access, ids).await)?;
            }
            let left = self.missing(wanted).await?;
            if left.len() >= missing.len() {
                let url = self.upstream.url().to_owned();
                return Err(GitError::NotByTheirIds { url });
            }
            missing = left;
            if missing.is_empty() {
                self.repack_if_due().await;
            }
        }
        Ok(())
    }

    /// The same for who has not asked the upstream for anything so far, and need not where all is there.
    pub(in crate::git) async fn fill_if_needed(
        &self,
        lock: &WriteLock,
        repository: &Repository,
        wanted: &str,
    ) -> Result<(), GitError> {
        let missing = self.missing(wanted).await?;
        if missing.is_empty() {
            return Ok(());
        }
        // What it redirects to is found out by asking.
        let (access, _) = self.ask(lock, Access::of(repository).await?).await?;
        self.bring_missing(lock, &access, wanted, missing).await
    }

    /// Whether something is missing of what these lines lead to.
    pub(in crate::git) async fn lacks(&self, wanted: &str) -> Result<bool, GitError> {
        Ok(!self.missing(wanted).await?.is_empty())
    }

    async fn missing(&self, wanted: &str) -> Result<Vec<String>, GitError> {
        if self.extent.filter.is_none() {
            return Ok(Vec::new());
        }
        const LOOK: &str = "look for missing files in the mirror";
        let objects = [
            "--objects",
            "--no-object-names",
            "--missing=print",
            "--stdin",
        ];
        let walk = self.git().arg("rev-list").args(objects);
        let list = walk.input(Input::Bytes(wanted.as_bytes().to_vec()));
        let list = self.list(list, LOOK).await?;
        blocking(LOOK, move || {
            let mut missing = Vec::new();
            for line in list.lines() {
                let line = line?;
                missing.extend(line.strip_prefix('?').map(str::to_owned));
            }
            Ok(missing)
        })
        .await
    }

    /// Fetches objects by their ids, and nothing that they lead to.
    async fn fetch_objects(
        &self,
        lock: &WriteLock,
        access: &Access,
        ids: &[String],
    ) -> Result<(), GitError> {
        let list: String = ids.iter().map(|id| format!("{id}\n")).collect();
        let (into, held) = (self.path(), lock.held()?);
        let call = self
            .fetching(lock, access, &into)?
            .setting("fetch.negotiationAlgorithm", "noop")
            .args(["--filter=blob:none", "--no-write-fetch-head"])
            .args(["--stdin", "--", REMOTE])
            .input(Input::Bytes(list.into_bytes()));
        // It prints nothing there, and so holds the lock.
        match call.output_into(held).await {
            Ok(()) => Ok(()),
            Err(failure) if failure.says(NOT_GIVEN_OUT) => Err(GitError::NotByTheirIds {
                url: access.upstream().url().to_owned(),
            }),
            Err(failure) => Err(swept(&into, access, failure).await),
        }
    }

    /// What git prints, of which there may be more than is kept elsewhere.
    pub(in crate::git) async fn list(
        &self,
        call: Call,
        attempt: &'static str,
    ) -> Result<BufReader<File>, GitError> {
        let (sink, list) = self.scratch(attempt).await?;
        call.output_into(sink)
            .await
            .map_err(|failure| GitError::local(attempt, failure))?;
        blocking(attempt, move || {
            let mut list = list;
            list.rewind()?;
            Ok(BufReader::new(list))
        })
        .await
    }

    /// A file without a name, for what git prints, twice.
    pub(in crate::git) async fn scratch(
        &self,
        attempt: &'static str,
    ) -> Result<(File, File), GitError> {
        let dir = self.dir.clone();
        blocking(attempt, move || {
            let file = tempfile::tempfile_in(dir)?;
            Ok((file.try_clone()?, file))
        })
        .await
    }
}
