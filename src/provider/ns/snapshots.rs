//! Snapshots of workspaces of the `ns` mode.

use std::fs::File;
use std::io;

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use super::{NsProvider, check_environment, error_of, to_its_end};
use crate::provider::files::{Compression, Content};
use crate::provider::snapshots::{Forked, Imported, Snapshot, Snapshots, Taken};
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

    async fn export_snapshot(
        &self,
        id: SnapshotId,
        compression: Compression,
    ) -> Result<Content, Error> {
        let archive = self.workspaces.export_snapshot(id, compression).await;
        archive.map_err(plain)
    }

    async fn import_snapshot(
        &self,
        content: Content,
        owner: Option<String>,
    ) -> Result<Imported, Error> {
        self.check_room()?;
        // Whole, before anything is made of it.
        let archive = self.keep_aside(self.within_room(content)).await?;
        let this = self.clone();
        to_its_end(async move {
            let imported = this.workspaces.import_snapshot(archive, owner).await;
            let (snapshot, summary) = imported.map_err(plain)?;
            Ok(Imported {
                snapshot: told(&snapshot),
                unpacked: summary.into(),
            })
        })
        .await
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

impl NsProvider {
    /// Writes all of it to a file that has no name, and is only read from then on.
    async fn keep_aside(&self, mut content: Content) -> Result<File, Error> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::NoSpace(format!("there is no room for the archive: {error}"))
            }
            _ => Error::Host(format!("cannot keep the archive: {error}")),
        };
        let path = self.state.staging().join(Uuid::now_v7().to_string());
        let opened = File::create_new(&path).and_then(|file| Ok((file, File::open(&path)?)));
        let removed = std::fs::remove_file(&path);
        let (file, archive) = opened.map_err(failed)?;
        removed.map_err(failed)?;
        let mut file = tokio::fs::File::from_std(file);
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(failed)?;
            file.write_all(&piece).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        Ok(archive)
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
