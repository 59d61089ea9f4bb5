//! New upstream commits for a workspace's repositories.
//!
//! The provider updates its mirror with its credentials; what is new goes in as a bundle, which the
//! workspace's own git takes in, confined. The provider runs no git on a tree that an agent touched.

use std::path::PathBuf;

use super::{Workspace, WorkspaceError};
use crate::base::{SetupError, Setups, take_in};
use crate::config::Repository;
use crate::git::CommitId;

/// What happened to one repository.
#[derive(Debug)]
pub struct FetchedRepository {
    /// Its URL, without credentials.
    pub url: String,
    /// Its path in the workspace.
    pub path: PathBuf,
    /// What is followed.
    pub reference: String,
    /// What the workspace had.
    pub old_commit: CommitId,
    /// What it has now.
    pub new_commit: CommitId,
}

impl Workspace {
    /// Brings new commits of `repositories` in as remote-tracking references; local branches,
    /// changes and the index stay as they are.
    ///
    /// # Errors
    /// Where an upstream cannot be had, or git inside fails or is not there; the repositories
    /// before that one are fetched then.
    pub async fn fetch(
        &self,
        setups: &Setups,
        repositories: &[Repository],
    ) -> Result<Vec<FetchedRepository>, WorkspaceError> {
        let mut fetched = Vec::new();
        let generation = self.record().generation;
        for repository in repositories {
            let resolved = setups
                .mirrors()
                .resolve(repository)
                .await
                .map_err(SetupError::from)?;
            let sandbox = self.sandbox().await?;
            take_in(setups.mirrors(), &sandbox, repository, &resolved).await?;
            let new_commit = resolved.commit;
            let old_commit = self.set_commit(generation, &repository.path, &new_commit)?;
            fetched.push(FetchedRepository {
                url: repository.url.clone(),
                path: repository.path.clone(),
                reference: resolved.reference.to_string(),
                old_commit,
                new_commit,
            });
        }
        Ok(fetched)
    }
}
