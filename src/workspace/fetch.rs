//! New upstream commits for a workspace's repositories.
//!
//! The provider updates its mirror with its credentials; what is new goes in as a bundle, which the
//! workspace's own git takes in, confined. The provider runs no git on a tree that an agent touched.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::events::Event;
use super::{Workspace, WorkspaceError};
use crate::base::{SetupError, Setups, take_in};
use crate::config::Repository;
use crate::git::{self, CommitId};

/// What becomes of what is checked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Update {
    /// Nothing: branches, files and the index stay as they are.
    #[default]
    None,
    /// The branch that is checked out moves to the new commit, if that follows on all of its own and no changed
    /// file is in the way.
    FastForward,
    /// The new commit is checked out, as in a fresh workspace; changes of tracked files are lost.
    Reset,
}

/// What to fetch.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// At the reference that is wanted.
    pub repository: Repository,
    /// Whether that is the config's own reference.
    pub configured: bool,
}

/// What happened to one repository.
#[derive(Debug)]
pub struct FetchedRepository {
    /// Its URL, without credentials.
    pub url: String,
    /// Its path in the workspace.
    pub path: PathBuf,
    /// What is followed.
    pub reference: String,
    /// What the workspace had of it; of what is not the config's own reference as the workspace said, if it
    /// knew it.
    pub old_commit: Option<CommitId>,
    /// What it has now.
    pub new_commit: CommitId,
    /// What is checked out after an update, as the workspace says.
    pub head: Option<CommitId>,
    /// Why what is checked out was not updated, in the words of git inside.
    pub not_updated: Option<String>,
}

impl Workspace {
    /// Brings new commits of repositories in as remote-tracking references, and then updates what is checked
    /// out as far as that is wanted.
    ///
    /// # Errors
    /// Where an upstream cannot be had, or git inside fails or is not there; the repositories
    /// before that one are fetched then.
    pub async fn fetch(
        &self,
        setups: &Setups,
        wanted: &[Wanted],
        update: Update,
    ) -> Result<Vec<FetchedRepository>, WorkspaceError> {
        let mut fetched = Vec::new();
        for one in wanted {
            let one = self.fetch_one(setups, one, update).await?;
            if one.old_commit.as_ref() != Some(&one.new_commit) {
                self.events().tell(Event::Fetched {
                    path: one.path.to_string_lossy().into_owned(),
                    old_commit: one.old_commit.clone().map(String::from),
                    new_commit: one.new_commit.clone().into(),
                });
            }
            fetched.push(one);
        }
        Ok(fetched)
    }

    async fn fetch_one(
        &self,
        setups: &Setups,
        wanted: &Wanted,
        update: Update,
    ) -> Result<FetchedRepository, WorkspaceError> {
        let repository = &wanted.repository;
        let resolved = setups
            .mirrors()
            .resolve(repository)
            .await
            .map_err(SetupError::from)?;
        let (generation, known) = {
            let record = self.record();
            (
                record.generation,
                record.commits.get(&repository.path).cloned(),
            )
        };
        let sandbox = self.sandbox().await?;
        let (inside, told) = take_in(
            setups.mirrors(),
            &sandbox,
            repository,
            &resolved,
            known.as_ref(),
        )
        .await?;
        let new_commit = resolved.commit.clone();
        let old_commit = if wanted.configured {
            Some(self.set_commit(generation, &repository.path, &new_commit)?)
        } else {
            told
        };
        let not_updated = match update {
            Update::None => None,
            Update::FastForward => {
                let command = git::fast_forward_command(&new_commit);
                inside.run_all(vec![command]).await?
            }
            Update::Reset => inside.run_all(git::checkout_commands(&resolved)).await?,
        };
        let head = match update {
            Update::None => None,
            Update::FastForward | Update::Reset => inside.head().await?,
        };
        Ok(FetchedRepository {
            url: repository.url.clone(),
            path: repository.path.clone(),
            reference: resolved.reference.to_string(),
            old_commit,
            new_commit,
            head,
            not_updated,
        })
    }
}
