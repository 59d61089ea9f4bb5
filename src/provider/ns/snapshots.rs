//! Snapshots of workspaces of the `ns` mode.

use async_trait::async_trait;

use super::{NsProvider, check_environment, error_of, to_its_end};
use crate::provider::snapshots::{Forked, Snapshot, Snapshots, Taken};
use crate::provider::{Error, NewWorkspace};
use crate::workspace::{self, Fence, SnapshotId, WorkspaceError, WorkspaceId};

#[async_trait]
impl Snapshots for NsProvider {
    async fn snapshot(&self, id: &WorkspaceId, label: Option<String>) -> Result<Taken, Error> {
        self.check_room()?;
        let (this, id) = (self.clone(), id.clone());
        to_its_end(async move {
            let taken = this.workspaces.snapshot(&id, label).await;
            Ok(told_taken(&taken.map_err(plain)?))
        })
        .await
    }

    async fn fork(
        &self,
        id: &WorkspaceId,
        count: usize,
        label: Option<String>,
        asked: NewWorkspace,
    ) -> Result<Forked, Error> {
        check_environment(&asked.env)?;
        self.check_room()?;
        let (this, id) = (self.clone(), id.clone());
        to_its_end(async move {
            let forked = this
                .workspaces
                .fork(&id, count, label, |snapshot| NewWorkspace {
                    env: asked.env.clone(),
                    limits: asked.limits,
                    requests: asked.requests,
                    latitude: asked.latitude,
                    owner: asked.owner.clone(),
                    snapshot: Some(snapshot),
                    ..NewWorkspace::default()
                });
            let (taken, workspaces) = forked.await.map_err(plain)?;
            Ok(Forked {
                snapshot: told_taken(&taken),
                workspaces,
            })
        })
        .await
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        let all = self.workspaces.all_snapshots();
        all.iter().map(|snapshot| told(snapshot)).collect()
    }

    fn show_snapshot(&self, id: SnapshotId) -> Result<Snapshot, Error> {
        let found = self.workspaces.snapshot_of(id);
        Ok(told(&*found.map_err(plain)?))
    }

    fn label_snapshot(&self, id: SnapshotId, label: Option<String>) -> Result<Snapshot, Error> {
        let changed = self.workspaces.label_snapshot(id, label);
        Ok(told(&*changed.map_err(plain)?))
    }

    fn remove_snapshot(&self, id: SnapshotId) -> Result<(), Error> {
        self.workspaces.remove_snapshot(id).map_err(plain)
    }

    async fn fence(&self, id: &WorkspaceId) -> Result<Snapshot, Error> {
        let (this, id) = (self.clone(), id.clone());
        to_its_end(async move {
            let fenced = this.workspaces.fence(&id).await;
            Ok(told(&*fenced.map_err(plain)?))
        })
        .await
    }

    async fn fence_at(&self, id: &WorkspaceId, at: f64) -> Result<Fence, Error> {
        let (this, id) = (self.clone(), id.clone());
        to_its_end(async move { this.workspaces.fence_at(&id, at).await.map_err(plain) }).await
    }
}

fn plain(error: WorkspaceError) -> Error {
    error_of(error, "")
}

fn told(snapshot: &workspace::Snapshot) -> Snapshot {
    Snapshot {
        id: snapshot.id,
        label: snapshot.label.clone(),
        parent: snapshot.parent,
        workspace: snapshot.workspace.clone(),
        owner: snapshot.owner.clone(),
        created: snapshot.created,
        layer: snapshot.stack.digest.to_string(),
        depth: snapshot.stack.deepest(),
        durable: snapshot.unwritten.is_none(),
    }
}

fn told_taken(taken: &workspace::Taken) -> Taken {
    Taken {
        snapshot: told(&taken.snapshot),
        way: taken.way,
        duration_us: u64::try_from(taken.duration.as_micros()).unwrap_or(u64::MAX),
    }
}
