//! What a provisioning mode must tell of the changes of a workspace.

use async_trait::async_trait;

use super::files::RawPath;
use super::{Error, OpenFile, WorkspaceId};
use crate::turns::Pass;

pub use crate::spawner::changes::Changes;
pub use crate::spawner::changes::protocol::{Binaries, Form, Ignored};

/// Changes of workspaces since setup.
#[async_trait]
pub trait ShowChanges: Send + Sync {
    /// Tells what changed within a path, or within the workspace's repository if none is given and the form is of
    /// one, or what a file is or was.
    async fn changes(
        &self,
        id: &WorkspaceId,
        within: Option<RawPath>,
        form: Form,
    ) -> Result<ToldChanges, Error>;
}

/// What was told.
#[derive(Debug)]
pub struct ToldChanges {
    /// The list, the patch, the tar or the file.
    pub content: OpenFile,
    /// Changes that are not in it, as the form has no place for them or they are too large.
    pub left_out: u64,
    /// Its place among all answers: to be let go of with the content.
    pub place: Pass,
}
