//! What a provisioning mode must do to have a workspace's commits leave it.

use std::path::PathBuf;

use async_trait::async_trait;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Error, OpenFile, WorkspaceId};
use crate::turns::Pass;

pub use crate::workspace::commit::Message;

/// Commits of workspaces: made, and taken out.
#[async_trait]
pub trait HandOut: Send + Sync {
    /// Makes a commit of all that is changed in a repository of a workspace and not ignored.
    async fn commit(
        &self,
        id: &WorkspaceId,
        path: Option<PathBuf>,
        message: Message,
    ) -> Result<Committed, Error>;
    /// Takes a repository of a workspace out as a bundle: a branch or a tag of it, `HEAD`, or all of these.
    async fn bundle(
        &self,
        id: &WorkspaceId,
        path: Option<PathBuf>,
        reference: Option<String>,
    ) -> Result<Bundled, Error>;
    /// Pushes commits of a workspace to its upstream, where the config allows it.
    async fn push(&self, id: &WorkspaceId, wish: PushWish) -> Result<Pushed, Error>;
}

/// What is to be pushed.
#[derive(Debug, Clone, Default)]
pub struct PushWish {
    /// The path of the repository that is meant; the config's only one if absent.
    pub path: Option<PathBuf>,
    /// A branch of it; what is checked out if absent, or `HEAD`.
    pub branch: Option<String>,
    /// The branch of the upstream; of the same name if absent.
    pub to: Option<String>,
}

/// What a push did.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Pushed {
    /// The upstream's URL, without credentials.
    pub url: String,
    /// The repository's path in the workspace.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// The branch of the upstream.
    pub branch: String,
    /// The commit that it was at; null where it was not there.
    pub old_commit: Option<String>,
    /// The commit that it is at.
    pub new_commit: String,
    /// Commits that the workspace has made on top of what it got of the upstream.
    pub commits: u64,
}

/// What became of a commit. All of it is as the workspace's own git says.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Committed {
    /// The repository's path in the workspace.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// The branch that is checked out, where one is.
    pub branch: Option<String>,
    /// The commit; null where nothing was changed.
    pub commit: Option<String>,
    /// The commit before it; null in a repository that had none.
    pub parent: Option<String>,
    /// Files that it changes.
    pub files: u64,
}

/// A bundle that was taken out.
#[derive(Debug)]
pub struct Bundled {
    /// The bundle.
    pub content: OpenFile,
    /// Its place among all bundles: to be let go of with the content.
    pub place: Pass,
}
