//! Fences: at an instant all that runs in a workspace stops, what it wrote until then becomes a snapshot, and
//! nothing is started in it any more.
//!
//! What is written later exists nowhere: the processes are gone before the files are the snapshot's. A fence
//! for a time to come is in the workspace's record, so that it holds whatever becomes of derrick: from that
//! time on nothing is started, and the next start fences what it finds.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;

use super::events::Event;
use super::one::Workspace;
use super::record::writable;
use super::snapshots::{Snapshot, SnapshotId, Then, write_out};
use super::{Shared, WorkspaceError, WorkspaceId, Workspaces};
use crate::chain;
use crate::clock;
use crate::pool::Gone;
use crate::sandbox::Storage;

/// The longest that is waited without a look at the clock, which may be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// After how long one that failed is tried again, at first; each time it is twice as long.
const RETRY: Duration = Duration::from_millis(500);

/// A fence for a time to come.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Fence {
    /// When, seconds since 1970.
    pub at: f64,
    /// The snapshot that it will be.
    pub snapshot: SnapshotId,
}

impl Workspace {
    /// Refuses what is not to be done once it is fenced, or its time has come.
    ///
    /// # Errors
    /// `Fenced`.
    pub(super) fn check_fence(&self) -> Result<(), WorkspaceError> {
        let record = self.lock_record();
        match (record.fenced, record.fence) {
            (Some(snapshot), _) => Err(WorkspaceError::Fenced(snapshot)),
            (None, Some(fence)) if fence.at <= clock::precise() => {
                Err(WorkspaceError::Fenced(fence.snapshot))
            }
            _ => Ok(()),
        }
    }

    /// The snapshot that it became, if it is fenced.
    #[must_use]
    pub fn fenced(&self) -> Option<SnapshotId> {
        self.lock_record().fenced
    }

    /// The fence that is to come, if one is.
    #[must_use]
    pub fn fence(&self) -> Option<Fence> {
        self.lock_record().fence
    }
}

impl Workspaces {
    /// Fences a workspace now. One that is fenced has been before: the answer is the same.
    ///
    /// # Errors
    /// `NotFound`, `TooDeep`, and those of the host.
    pub async fn fence(&self, id: &WorkspaceId) -> Result<Arc<Snapshot>, WorkspaceError> {
        let workspace = self.get(id)?;
        self.fence_if(&workspace, None).await
    }

    /// Notes that a workspace is to be fenced at a time, seconds since 1970, in the place of another such time.
    ///
    /// # Errors
    /// `NotFound`, `Fenced`, and those of writing its record.
    pub async fn fence_at(&self, id: &WorkspaceId, at: f64) -> Result<Fence, WorkspaceError> {
        let workspace = self.get(id)?;
        let lifecycle = workspace.lifecycle.lock().await;
        lifecycle.check_open()?;
        workspace.check_fence()?;
        let snapshot = workspace.fence().map(|fence| fence.snapshot);
        let fence = Fence {
            at,
            snapshot: snapshot.unwrap_or_else(SnapshotId::generate),
        };
        workspace.change_record(|record| record.fence = Some(fence))?;
        drop(lifecycle);
        self.watch(&workspace, fence);
        Ok(fence)
    }

    /// Fences it when that time has come, unless another one is noted by then; whoever waited for the time
    /// that was noted before waits no more.
    pub(super) fn watch(&self, workspace: &Arc<Workspace>, fence: Fence) {
        let watching = watch(
            Arc::downgrade(&self.shared),
            Arc::downgrade(workspace),
            fence,
        );
        // Ends with the workspace; what it was to do is in the record.
        let watcher = AbortOnDropHandle::new(tokio::spawn(watching));
        let place = workspace.watcher.lock();
        *place.unwrap_or_else(PoisonError::into_inner) = Some(watcher);
    }

    /// Fences it, if `noted` is what its record says, where that is given.
    async fn fence_if(
        &self,
        workspace: &Workspace,
        noted: Option<Fence>,
    ) -> Result<Arc<Snapshot>, WorkspaceError> {
        // Before the lock, which somebody may hold for a while: this is the instant.
        let held = match workspace.current() {
            Some(sandbox) => sandbox.hold().await.is_ok().then_some(sandbox),
            None => None,
        };
        let fenced = self.fence_held(workspace, noted).await;
        match (&fenced, held) {
            (Ok(_), _) | (_, None) => {}
            // What was to be fenced at a time that has come does not go on past it.
            (Err(error), Some(sandbox))
                if noted.is_some() && !matches!(error, WorkspaceError::Moved) =>
            {
                // With it, what is in memory would go; it stays held until a fence is taken.
                if !matches!(sandbox.storage(), Storage::Memory(_)) {
                    sandbox.end(Gone::Frozen).await?;
                }
            }
            (Err(_), Some(sandbox)) => sandbox.release().await,
        }
        fenced
    }

    async fn fence_held(
        &self,
        workspace: &Workspace,
        noted: Option<Fence>,
    ) -> Result<Arc<Snapshot>, WorkspaceError> {
        if workspace.fenced().is_none() {
            let (snapshots, store) = (self.snapshots(), self.store());
            workspace.make_room(snapshots, store, Then::End).await?;
        }
        let mut lifecycle = workspace.lifecycle.lock().await;
        lifecycle.check_open()?;
        let record = workspace.record();
        if let Some(id) = record.fenced {
            // Its record may be what could not be written.
            return match (self.snapshots().get(id), record.frozen) {
                (Some(snapshot), _) => Ok(snapshot),
                (None, Some(frozen)) => {
                    let added = self.snapshots().add(frozen.snapshot);
                    let added =
                        added.map_err(WorkspaceError::host("writing a snapshot's record"))?;
                    workspace.change_record(|record| record.frozen = None)?;
                    workspace.discard(&writable(&workspace.directory, frozen.generation));
                    write_out(self.state(), self.snapshots(), id);
                    workspace.events().tell(Event::Fenced { snapshot: id });
                    Ok(added)
                }
                (None, None) => Err(WorkspaceError::NoSnapshot(id)),
            };
        }
        if noted.is_some() && record.fence != noted {
            return Err(WorkspaceError::Moved);
        }
        let id = record.fence.map(|fence| fence.snapshot);
        let taken = workspace.freeze(
            &mut lifecycle,
            self.snapshots(),
            self.store(),
            id.unwrap_or_else(SnapshotId::generate),
            None,
            Then::End,
        );
        Ok(taken.await?.snapshot)
    }
}

/// Fences the workspace when the time has come, and again until that is done, as long as that fence is the
/// one that is noted.
async fn watch(shared: Weak<Shared>, workspace: Weak<Workspace>, fence: Fence) {
    let is_noted = || {
        workspace.upgrade().is_some_and(|workspace| {
            let record = workspace.lock_record();
            // Or its processes are gone, and it is the snapshot that could not be noted.
            let is_half = record.frozen.is_some() && record.fenced == Some(fence.snapshot);
            record.fence == Some(fence) || is_half
        })
    };
    loop {
        let left = fence.at - clock::precise();
        if left <= 0.0 {
            break;
        }
        let left = Duration::try_from_secs_f64(left).unwrap_or(LONGEST_SLEEP);
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
        if !is_noted() {
            return;
        }
    }
    let mut pause = RETRY;
    loop {
        let (Some(shared), Some(workspace)) = (shared.upgrade(), workspace.upgrade()) else {
            return;
        };
        let id = workspace.id().clone();
        // Beside: whoever drops this does not leave it half.
        let fencing = tokio::spawn(async move {
            let this = Workspaces { shared };
            this.fence_if(&workspace, Some(fence)).await.map(drop)
        });
        match fencing.await {
            Ok(Ok(()) | Err(WorkspaceError::Moved)) => return,
            Ok(Err(error)) => {
                let error = chain::text(&error);
                tracing::error!(workspace = %id, error, "cannot fence a workspace; nothing is started in it, and it is tried again");
            }
            Err(error) => {
                tracing::error!(workspace = %id, %error, "cannot fence a workspace; nothing is started in it, and it is tried again");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_SLEEP);
        if !is_noted() {
            return;
        }
    }
}
