//! What a provisioning mode must do about snapshots: take them, tell of them, start from them.

use async_trait::async_trait;
use serde::Serialize;
use utoipa::ToSchema;

use super::files::{Compression, Content, Unpacked};
use super::{Error, NewWorkspace, WorkspaceId};
pub use crate::init::unpack::LABEL_MAX;
pub use crate::workspace::{Fence, InvalidSnapshotId, SnapshotId, Way};

/// Snapshots of workspaces.
#[async_trait]
pub trait Snapshots: Send + Sync + 'static {
    /// Freezes what a workspace has as a snapshot; the workspace goes on.
    async fn snapshot(&self, id: &WorkspaceId, label: Option<String>) -> Result<Taken, Error>;
    /// Takes a snapshot and makes so many workspaces on it, as `asked` says: all, or none and no snapshot.
    async fn fork(
        &self,
        id: &WorkspaceId,
        count: usize,
        label: Option<String>,
        asked: NewWorkspace,
    ) -> Result<Forked, Error>;
    /// All snapshots, oldest first.
    fn snapshots(&self) -> Vec<Snapshot>;
    /// One snapshot.
    fn show_snapshot(&self, id: SnapshotId) -> Result<Snapshot, Error>;
    /// Gives a snapshot another label, or none.
    fn label_snapshot(&self, id: SnapshotId, label: Option<String>) -> Result<Snapshot, Error>;
    /// Removes a snapshot that nothing builds on.
    fn remove_snapshot(&self, id: SnapshotId) -> Result<(), Error>;
    /// All that is other in a snapshot than in the setup layer, as an archive.
    async fn export_snapshot(
        &self,
        id: SnapshotId,
        compression: Compression,
    ) -> Result<Content, Error>;
    /// Makes a snapshot of such an archive, for `owner`.
    async fn import_snapshot(
        &self,
        content: Content,
        owner: Option<String>,
    ) -> Result<Imported, Error>;
    /// Ends all that runs in a workspace at once, and keeps what it wrote until then as a snapshot.
    async fn fence(&self, id: &WorkspaceId) -> Result<Snapshot, Error>;
    /// Has that be done at a time, seconds since 1970.
    async fn fence_at(&self, id: &WorkspaceId, at: f64) -> Result<Fence, Error>;
}

/// What is told of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// What it was called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The snapshot that its workspace had started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// The workspace that it was taken of, which may be gone; absent if it was imported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceId>,
    /// The name that the workspace belonged to, if it belonged to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// When it was taken, seconds since 1970.
    pub created: f64,
    /// Digest of its layer.
    pub layer: String,
    /// Layers that a workspace on it stands on; there is a most.
    pub depth: usize,
    /// Whether its files are on disk: until then it would not outlive a power failure of the host.
    pub durable: bool,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Taken {
    /// What it is.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// `moved`: the workspace's files became it as they were, since nothing ran; `copied`: they were copied while all that runs was held.
    pub way: Way,
    /// Wall time in microseconds.
    pub duration_us: u64,
}

/// A snapshot that was imported.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ImportedSnapshot)]
pub struct Imported {
    /// What it is.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// What was unpacked for it.
    pub unpacked: Unpacked,
}

/// A snapshot, and workspaces on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Forked {
    /// What they start from.
    pub snapshot: Taken,
    /// Them.
    pub workspaces: Vec<WorkspaceId>,
}
