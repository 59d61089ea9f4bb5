//! New upstream commits for a workspace's repositories.
//!
//! The provider updates its mirror with its credentials; what is new goes in as a bundle, which the
//! workspace's own git takes in, confined. The provider runs no git on a tree that an agent touched.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::events::Event;
use super::{Workspace, WorkspaceError};
pub use crate::base::Update;
use crate::base::{
    Above, Bringing, FetchedSubmodule, Inside, Patience, SetupError, Setups, commits_of, take_in,
};
use crate::config::Repository;
use crate::git::{self, CommitId, Submodule};

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
    /// Its submodules, and theirs.
    pub submodules: Vec<FetchedSubmodule>,
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
        let patience = Patience::new();
        for one in wanted {
            let one = self.fetch_one(setups, one, update, &patience).await?;
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
        patience: &Patience,
    ) -> Result<FetchedRepository, WorkspaceError> {
        let repository = &wanted.repository;
        let mirrors = setups.mirrors();
        let resolved = mirrors
            .resolve(repository)
            .await
            .map_err(SetupError::from)?;
        // All that comes is there before anything goes in.
        let submodules = setups.submodules(repository, &resolved).await?;
        mirrors
            .bring_large_files(repository, &resolved, &submodules)
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
        let inside = Inside::of(&sandbox, &repository.path, patience).await?;
        let had = (known.iter().cloned().collect(), known.as_ref());
        let told = take_in(mirrors, &inside, repository, &resolved, had).await?;
        let new_commit = resolved.commit.clone();
        let old_commit = if wanted.configured {
            Some(self.set_commit(generation, &repository.path, &new_commit)?)
        } else {
            told
        };
        let commands = match update {
            Update::None => Vec::new(),
            Update::FastForward => vec![git::fast_forward_command(&new_commit)],
            Update::Reset => git::checkout_commands(&resolved),
        };
        let not_updated = match inside.run_all(commands).await {
            // The commits are there by now.
            Err(SetupError::GitInside { output, .. }) => Some(output),
            ended => ended?,
        };
        let head = match update {
            Update::None => None,
            Update::FastForward | Update::Reset => inside.head_if_told().await?,
        };
        let before = match old_commit.as_ref().or(known.as_ref()) {
            Some(before) if repository.submodules => {
                setups.known_submodules(repository, before).await?
            }
            _ => Vec::new(),
        };
        let bringing = Bringing {
            mirrors,
            update,
            before: Submodule::by_place(&before),
            brought: self.brought(setups, repository).await?,
        };
        let above = match not_updated {
            None => Above::Right,
            Some(_) => Above::Elsewhere,
        };
        let submodules = bringing.below(&inside, above, &submodules).await?;
        if repository.lfs {
            let brought = submodules.iter().filter(|one| one.not_fetched.is_none());
            let brought = brought.map(|one| (one.path.clone(), one.new_commit.clone()));
            self.set_brought(generation, brought.collect())?;
        }
        Ok(FetchedRepository {
            url: repository.url.clone(),
            path: repository.path.clone(),
            reference: resolved.reference.to_string(),
            old_commit,
            new_commit,
            head,
            not_updated,
            submodules,
        })
    }

    /// The commits of submodules that came last with their large files, by where they are, if there are such files.
    async fn brought(
        &self,
        setups: &Setups,
        repository: &Repository,
    ) -> Result<BTreeMap<PathBuf, CommitId>, SetupError> {
        if !repository.lfs || !repository.submodules {
            return Ok(BTreeMap::new());
        }
        let (first, later) = {
            let record = self.record();
            let first = record.stack.commits.get(&repository.path).cloned();
            (first, record.brought.clone())
        };
        let mut brought = match first {
            Some(first) => commits_of(&setups.known_submodules(repository, &first).await?),
            None => BTreeMap::new(),
        };
        brought.extend(later);
        Ok(brought)
    }
}
