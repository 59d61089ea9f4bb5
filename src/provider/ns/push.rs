//! Commits of workspaces of the `ns` mode.

use std::path::{Component, PathBuf};

use async_trait::async_trait;

use super::repositories::meant;
use super::{NsProvider, check_path, error_of, to_its_end};
use crate::config::Repository;
use crate::provider::push::{Bundled, Committed, HandOut, Message, PushWish, Pushed};
use crate::provider::{Error, OpenFile, WorkspaceId};
use crate::workspace::commit;

#[async_trait]
impl HandOut for NsProvider {
    async fn commit(
        &self,
        id: &WorkspaceId,
        path: Option<PathBuf>,
        message: Message,
    ) -> Result<Committed, Error> {
        let workspace = self.get(id)?;
        self.check_room()?;
        let path = place(&self.config.repositories, path)?;
        let committed = to_its_end(async move {
            let committed = workspace.commit(&path, &message).await;
            committed.map_err(|error| error_of(error, &path.to_string_lossy()))
        });
        Ok(committed.await?.into())
    }

    async fn bundle(
        &self,
        id: &WorkspaceId,
        path: Option<PathBuf>,
        reference: Option<String>,
    ) -> Result<Bundled, Error> {
        // Not to its end: who goes away waits no more, and what was begun is killed.
        let turn = self.workspaces.place_for_bundle(id).await;
        let (_turn, place_for_it) = turn.map_err(|error| error_of(error, ""))?;
        let workspace = self.get(id)?;
        self.check_room()?;
        let path = place(&self.config.repositories, path)?;
        let mut configured = self.config.repositories.iter();
        let is_partial = configured.any(|one| one.path == path && one.is_partial());
        // Of what follows on these nothing stayed with the upstream.
        let have = match is_partial {
            true => workspace.bases(&path),
            false => Vec::new(),
        };
        let bundled = workspace
            .bundle(&path, (reference.as_deref(), &have), place_for_it)
            .await;
        let bundled = bundled.map_err(|error| error_of(error, &path.to_string_lossy()))?;
        Ok(Bundled {
            content: OpenFile {
                file: bundled.file,
                size: bundled.size,
            },
            place: bundled.place,
        })
    }

    async fn push(&self, id: &WorkspaceId, wish: PushWish) -> Result<Pushed, Error> {
        let workspace = self.get(id)?;
        self.check_room()?;
        let repository = meant(&self.config.repositories, wish.path.as_deref())?.clone();
        // Until it is on its way, who goes away waits no more.
        let turn = self.workspaces.place_for_bundle(id).await;
        let turn = turn.map_err(|error| error_of(error, ""))?;
        let (from, to) = (wish.branch.as_deref(), wish.to.as_deref());
        let outgoing = workspace.take_commits(&repository, from, to).await;
        let outgoing =
            outgoing.map_err(|error| error_of(error, &repository.path.to_string_lossy()))?;
        let branch = outgoing.branch.clone();
        let (url, path) = (repository.url.clone(), repository.path.clone());
        let this = self.clone();
        let pushed = to_its_end(async move {
            let setups = this.workspaces.setups();
            let pushed = workspace.push(setups, &repository, outgoing).await;
            drop(turn);
            pushed.map_err(|error| error_of(error, ""))
        })
        .await?;
        Ok(Pushed {
            url,
            path,
            branch,
            old_commit: pushed.old.map(String::from),
            new_commit: pushed.new.into(),
            commits: pushed.commits,
        })
    }
}

/// The path of a repository in the workspace, the config's or another: the config's only one where none is named.
fn place(repositories: &[Repository], path: Option<PathBuf>) -> Result<PathBuf, Error> {
    let Some(path) = path else {
        return Ok(meant(repositories, None)?.path.clone());
    };
    check_path(&path.to_string_lossy())?;
    let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(is_plain) {
        return Err(Error::Invalid(
            "the field path: it is no absolute path without '..'".to_owned(),
        ));
    }
    Ok(path)
}

impl From<commit::Committed> for Committed {
    fn from(committed: commit::Committed) -> Self {
        Self {
            path: committed.path,
            branch: committed.branch,
            commit: committed.commit.map(String::from),
            parent: committed.parent.map(String::from),
            files: committed.files,
        }
    }
}
