//! Snapshots: what a workspace wrote, frozen as a layer that others start from.
//!
//! Where nothing runs in the workspace its upper itself becomes the layer, by one rename, and the workspace
//! goes on in a new sandbox on top of it: that takes as long for one file as for a million. Where something
//! runs, it is held, the upper is copied, and it goes on. A fence does not go on: what runs is ended, and
//! what it wrote until then is the snapshot.

mod archive;
mod flatten;
mod records;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

pub use records::{InvalidSnapshotId, Snapshot, SnapshotId, StartingPoint};
pub(crate) use records::{Removal, Snapshots};

use super::events::Event;
use super::execs::After;
use super::one::{AccessTo, Lifecycle, Workspace};
use super::record::{Frozen, Record, writable};
use super::{Asked, WorkspaceError, WorkspaceId, Workspaces};
use crate::base::store::{LAYER_FORMAT, LayerMeta};
use crate::base::{Digest, Layer, LayerStore, Stack};
use crate::chain;
use crate::pool::{Gone, Sandbox};
use crate::sandbox::Storage;
use crate::sandbox::overlay::MAX_LOWERS;
use crate::state::State;
use flatten::{Missing, flatten, flatten_beside, flatten_later};
use records::boot;

/// How long it is waited for whoever holds a sandbox in which nothing runs, such as a request that tells
/// of it.
const OTHERS: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(1);

/// How long processes that are held may take to come to a stop.
const SETTLING: Duration = Duration::from_secs(5);

/// How a snapshot came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The workspace's files became it as they were, in a time that does not depend on them.
    Moved,
    /// They were copied, while all that runs was held.
    Copied,
}

/// A snapshot that was taken.
#[derive(Debug)]
pub struct Taken {
    /// What it is.
    pub snapshot: Arc<Snapshot>,
    /// How it came about.
    pub way: Way,
    /// How long it took.
    pub duration: Duration,
}

/// What becomes of the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    GoOn,
    /// It is fenced.
    End,
}

impl Then {
    /// How many layers there may be below the one to come, and one more.
    fn most_below(self) -> usize {
        match self {
            // One is left for a fence.
            Self::GoOn => MAX_LOWERS - 1,
            Self::End => MAX_LOWERS,
        }
    }
}

impl Workspace {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// `TooDeep`, `Fenced`, `Restless`, and those of the host; the workspace is as it was then.
    pub(super) async fn snapshot(
        &self,
        snapshots: &Arc<Snapshots>,
        store: &LayerStore,
        label: Option<String>,
    ) -> Result<Taken, WorkspaceError> {
        let mut lifecycle = self.lock_with_room(snapshots, store).await?;
        let id = SnapshotId::generate();
        self.freeze(&mut lifecycle, snapshots, store, id, label, Then::GoOn)
            .await
    }

    /// Takes a snapshot of what a command has left that ran in `sandbox`, unless that has ended with it.
    ///
    /// # Errors
    /// `Moved`, and those of [`snapshot`](Self::snapshot).
    pub(super) async fn snapshot_after(
        &self,
        snapshots: &Arc<Snapshots>,
        store: &LayerStore,
        sandbox: Sandbox,
    ) -> Result<Taken, WorkspaceError> {
        // A reset waits for the command's end with the lock held, and would be waited for.
        let mut lifecycle = tokio::select! {
            lifecycle = self.lock_with_room(snapshots, store) => lifecycle?,
            () = sandbox.until_gone() => return Err(WorkspaceError::Moved),
        };
        if sandbox.gone().is_some() {
            return Err(WorkspaceError::Moved);
        }
        // Whoever holds it keeps the files from being moved.
        drop(sandbox);
        let id = SnapshotId::generate();
        self.freeze(&mut lifecycle, snapshots, store, id, None, Then::GoOn)
            .await
    }

    /// Its lock, taken while there is room for one more layer.
    ///
    /// # Errors
    /// `Moved`, `Fenced`, and those of [`make_room`](Self::make_room).
    async fn lock_with_room(
        &self,
        snapshots: &Arc<Snapshots>,
        store: &LayerStore,
    ) -> Result<tokio::sync::MutexGuard<'_, Lifecycle>, WorkspaceError> {
        loop {
            self.make_room(snapshots, store, Then::GoOn).await?;
            let lifecycle = self.lifecycle.lock().await;
            lifecycle.check_open()?;
            self.check_fence()?;
            // Others may have taken what there was.
            match self.check_room(snapshots, store, Then::GoOn).await {
                Err(WorkspaceError::TooDeep(_)) => {}
                room => return room.map(|()| lifecycle),
            }
        }
    }

    /// Sees that there is room for one more layer on what it stands on. Where layers have to become one for
    /// that, it takes as long as they are large, and other owners may be before it: so its lock is not held.
    ///
    /// # Errors
    /// `TooDeep`, and those of the host.
    pub(super) async fn make_room(
        &self,
        snapshots: &Arc<Snapshots>,
        store: &LayerStore,
        then: Then,
    ) -> Result<(), WorkspaceError> {
        match self.check_room(snapshots, store, then).await {
            Err(WorkspaceError::TooDeep(_)) => {}
            room => return room,
        }
        let Record { stack, owner, .. } = self.record();
        let flat = flatten_beside(&self.state, snapshots, store, stack, owner).await?;
        if flat.deepest() < then.most_below() {
            Ok(())
        } else {
            Err(WorkspaceError::TooDeep(flat.deepest()))
        }
    }

    /// Whether there is room for one more layer, without anything being merged.
    ///
    /// # Errors
    /// `TooDeep`, and those of the host.
    async fn check_room(
        &self,
        snapshots: &Snapshots,
        store: &LayerStore,
        then: Then,
    ) -> Result<(), WorkspaceError> {
        if self.lock_record().stack.deepest() < then.most_below() {
            return Ok(());
        }
        let room = self.room_for_one_more(snapshots, store, then).await;
        room.map(drop)
    }

    /// What it stands on, flattened as far as it has been, with room for one more layer.
    ///
    /// # Errors
    /// `TooDeep`, and those of the host.
    async fn room_for_one_more(
        &self,
        snapshots: &Snapshots,
        store: &LayerStore,
        then: Then,
    ) -> Result<Stack, WorkspaceError> {
        let Record { stack, owner, .. } = self.record();
        let missing = Missing::Left;
        let stack = flatten(&self.state, snapshots, store, stack, owner, missing).await?;
        if stack.deepest() < then.most_below() {
            Ok(stack)
        } else {
            Err(WorkspaceError::TooDeep(stack.deepest()))
        }
    }

    pub(super) async fn freeze(
        &self,
        lifecycle: &mut Lifecycle,
        snapshots: &Arc<Snapshots>,
        store: &LayerStore,
        id: SnapshotId,
        label: Option<String>,
        then: Then,
    ) -> Result<Taken, WorkspaceError> {
        let started = Instant::now();
        let apart = self.reach_files(lifecycle, then).await?;
        let before = self.record();
        let under = self.room_for_one_more(snapshots, store, then).await?;
        let shape = self.state.spawner().identity().shape();
        let on = under.top().and_then(|top| store.digest_of(top));
        let meta = LayerMeta {
            parent: Some(on.unwrap_or_else(|| under.digest.clone())),
            ..meta(&before, id, shape.clone())
        };
        let layer = store.place(&id.layer(), meta);
        let stack = under.with_snapshot(&layer, before.ids.first);
        let snapshot = Snapshot {
            id,
            label,
            parent: snapshots.of_layer(&before.stack.digest),
            workspace: Some(self.id().clone()),
            owner: before.owner.clone(),
            created: crate::clock::precise(),
            env: before.env.clone(),
            stack,
            shape,
            unwritten: Some(boot()),
        };
        let busy = match (apart, then) {
            (None, Then::GoOn) => self.busy().await,
            (apart, _) => apart,
        };
        let (way, snapshot) = match (busy, then) {
            (Some(sandbox), Then::GoOn) => {
                let _layer = self
                    .copy(&sandbox, &before, snapshots, store, layer)
                    .await?;
                let snapshot = snapshots.add(snapshot);
                let snapshot = snapshot.map_err(noting)?;
                (Way::Copied, snapshot)
            }
            (Some(sandbox), Then::End) => {
                let ended = self.copy_and_end(&sandbox, &before, snapshots, store, layer, snapshot);
                (Way::Copied, ended.await?)
            }
            (None, _) => {
                // One that died by itself is started again when it is needed.
                let goes_on = then == Then::GoOn && self.current().is_some();
                if let Some(sandbox) = self.set_current(None) {
                    if then == Then::End {
                        // At once; what kills it may have to wait for its turn.
                        let _ = sandbox.hold().await;
                    }
                    sandbox.end(Gone::Frozen).await?;
                    if then == Then::End {
                        // What ended with it is told first. Else nothing ran, and a command that has this
                        // done after its end waits for it.
                        self.execs().settle().await;
                    }
                }
                let snapshot = self.move_files(&before, snapshots, store, layer, snapshot, then)?;
                if goes_on {
                    let started = self.start_here(lifecycle).await;
                    // Its files are safe: the next command tries again, and says why if that fails.
                    if let Err(error) = started {
                        tracing::warn!(workspace = %self.id(), %error, "cannot start a workspace on its snapshot");
                    }
                }
                (Way::Moved, snapshot)
            }
        };
        write_out(&self.state, snapshots, id);
        flatten_later(&self.state, snapshots, store, &snapshot);
        let duration = started.elapsed();
        self.events().tell(match then {
            Then::GoOn => Event::Snapshotted { snapshot: id, way },
            Then::End => Event::Fenced { snapshot: id },
        });
        Ok(Taken {
            snapshot,
            way,
            duration,
        })
    }

    /// The sandbox through which alone is reached what the workspace wrote, where that is on a filesystem of its
    /// own; started if there is none. Nobody starts anything in one that was started for a fence.
    async fn reach_files(
        &self,
        lifecycle: &mut Lifecycle,
        then: Then,
    ) -> Result<Option<Sandbox>, WorkspaceError> {
        if self.record().storage == Storage::Directory {
            return Ok(None);
        }
        if let Some(sandbox) = self.current() {
            return Ok(Some(sandbox));
        }
        // An image must not be mounted twice.
        if let Some(dying) = self.set_current(None) {
            dying.end(Gone::Lost).await?;
        }
        let sandbox = self.start_here(lifecycle).await?;
        if then == Then::End {
            self.give_access(AccessTo::Lookers);
        }
        Ok(Some(sandbox))
    }

    /// The present sandbox, if something runs in it or somebody is about to start something there. Else
    /// nobody can until another one takes its place.
    async fn busy(&self) -> Option<Sandbox> {
        self.give_access(AccessTo::Lookers);
        let sandbox = self.current()?;
        if self.is_idle(&sandbox).await || sandbox.gone().is_some() {
            return None;
        }
        self.give_access(AccessTo::All);
        Some(sandbox)
    }

    /// Whether nothing runs in `sandbox`, and nobody is about to start anything there: whoever could
    /// holds it.
    async fn is_idle(&self, sandbox: &Sandbox) -> bool {
        let until = Instant::now() + OTHERS;
        loop {
            // The workspace, and whoever asks.
            let own = 2 + self.sessions().ended_in(sandbox);
            if self.execs().running() > 0 || sandbox.is_paused() {
                return false;
            }
            if sandbox.holders() <= own {
                return matches!(sandbox.count_processes().await, Ok(0));
            }
            if Instant::now() > until {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Copies what was written so far, while all that runs is held. Nothing is a part of the layer's
    /// directory that is not whole.
    async fn copy(
        &self,
        sandbox: &Sandbox,
        before: &Record,
        snapshots: &Snapshots,
        store: &LayerStore,
        layer: Layer,
    ) -> Result<Layer, WorkspaceError> {
        // Before anything is held, but by a fence.
        let _turn = snapshots.copying.enter(before.owner.as_deref()).await;
        let aside = self.state.staging().join(Uuid::now_v7().to_string());
        std::fs::create_dir(&aside)
            .map_err(WorkspaceError::host("making a directory for a copy"))?;
        let upper = writable(&self.directory, before.generation).join("upper");
        let copied = async {
            sandbox.hold_for_long().await?;
            let copied = async {
                if !sandbox.until_still(SETTLING).await? {
                    return Err(WorkspaceError::Restless);
                }
                match before.storage {
                    Storage::Directory => self.state.spawner().copy(upper, aside.clone()).await?,
                    Storage::Image(_) | Storage::Memory(_) => {
                        sandbox.copy_out(aside.clone()).await?;
                    }
                }
                Ok(())
            };
            let copied = copied.await;
            sandbox.release().await;
            copied
        };
        let kept = copied.await.and_then(|()| {
            let tree = aside.join("tree");
            store
                .take_in(layer, &tree)
                .map_err(WorkspaceError::host("keeping a snapshot"))
        });
        self.state.discard_or_say(&aside);
        kept
    }

    /// Copies what was written so far on a filesystem of the workspace's own, and ends all that runs.
    ///
    /// The layer is whole before the record says that the workspace is on it, and only then is anything ended:
    /// whatever fails before that, what is in memory is still there. From then on as in
    /// [`move_files`](Self::move_files).
    async fn copy_and_end(
        &self,
        sandbox: &Sandbox,
        before: &Record,
        snapshots: &Snapshots,
        store: &LayerStore,
        layer: Layer,
        snapshot: Snapshot,
    ) -> Result<Arc<Snapshot>, WorkspaceError> {
        // Beyond the copy, which lets go of what it held.
        sandbox.hold_for_long().await?;
        let copied = self.copy(sandbox, before, snapshots, store, layer).await;
        let noted = match copied {
            Ok(_layer) => self.note_frozen(before, &snapshot, Then::End),
            Err(error) => Err(error),
        };
        if let Err(error) = noted {
            sandbox.release().await;
            return Err(error);
        }
        self.set_current(None);
        sandbox.end(Gone::Frozen).await?;
        self.execs().settle().await;
        self.note_taken(before, snapshots, snapshot)
    }

    /// Has the files of the workspace, in which nothing runs, become the layer.
    ///
    /// Whenever derrick is killed, the workspace has its files and the snapshot is whole or not there:
    /// 1. before the record is written, nothing has happened;
    /// 2. from then on the record, which keeps the layer from being collected, says that the workspace is on
    ///    it, and what is to become of it:
    ///    the next start does what is left of this, see [`finish`];
    /// 3. after the rename the files are the layer's, of which the store knows once its meta is there;
    /// 4. with its own record the snapshot is acknowledged; the workspace's then forgets what was to be done.
    fn move_files(
        &self,
        before: &Record,
        snapshots: &Snapshots,
        store: &LayerStore,
        layer: Layer,
        snapshot: Snapshot,
        then: Then,
    ) -> Result<Arc<Snapshot>, WorkspaceError> {
        self.note_frozen(before, &snapshot, then)?;
        let upper = writable(&self.directory, before.generation).join("upper");
        if let Err(error) = store.take_in(layer, &upper) {
            // Nothing was moved.
            self.change_record(|record| {
                record.home.clone_from(&before.home);
                record.stack = before.stack.clone();
                record.generation = before.generation;
                record.storage = before.storage;
                record.frozen = None;
                record.fenced = before.fenced;
                record.fence = before.fence;
            })?;
            return Err(WorkspaceError::host("keeping a snapshot")(error));
        }
        self.note_taken(before, snapshots, snapshot)
    }

    /// Has the record say that the workspace is on the snapshot's layer.
    fn note_frozen(
        &self,
        before: &Record,
        snapshot: &Snapshot,
        then: Then,
    ) -> Result<(), WorkspaceError> {
        let (storage, next) = (self.next_storage(), before.generation + 1);
        self.change_record(|record| {
            record.home = Some(before.home().clone());
            record.stack = snapshot.stack.clone();
            record.generation = next;
            record.storage = storage;
            record.frozen = Some(Frozen {
                generation: before.generation,
                snapshot: snapshot.clone(),
            });
            if then == Then::End {
                record.fenced = Some(snapshot.id);
                record.fence = None;
            }
        })
    }

    /// Acknowledges a snapshot whose layer the workspace is on, and discards what is left of the generation
    /// that it was.
    fn note_taken(
        &self,
        before: &Record,
        snapshots: &Snapshots,
        snapshot: Snapshot,
    ) -> Result<Arc<Snapshot>, WorkspaceError> {
        let added = snapshots.add(snapshot).map_err(noting)?;
        self.change_record(|record| {
            record.frozen = None;
            // With its layers claimed.
            record.stack = added.stack.clone();
        })?;
        self.discard(&writable(&self.directory, before.generation));
        Ok(added)
    }
}

fn noting(error: std::io::Error) -> WorkspaceError {
    WorkspaceError::host("writing a snapshot's record")(error)
}

/// What is written down of the layer of a snapshot of the workspace of this record.
fn meta(record: &Record, id: SnapshotId, shape: String) -> LayerMeta {
    LayerMeta {
        format: LAYER_FORMAT,
        first_id: Some(record.ids.first),
        shape,
        parent: None,
        lineage: None,
        commits: Vec::new(),
        mirrors: Vec::new(),
        created: crate::clock::seconds(),
        description: format!("snapshot {id} of workspace {}", record.id),
        output: None,
        setup: None,
        bytes: None,
        by_record: true,
    }
}

/// Does what is left of a snapshot that `record` says was being taken of the workspace in `directory`.
pub(super) fn finish(
    directory: &Path,
    record: &mut Record,
    snapshots: &Snapshots,
    store: &LayerStore,
    shape: &str,
) -> std::io::Result<()> {
    let Some(Frozen {
        generation,
        snapshot,
    }) = record.frozen.clone()
    else {
        return Ok(());
    };
    let meta = meta(record, snapshot.id, shape.to_owned());
    let layer = store.place(&snapshot.id.layer(), meta);
    store.take_in(layer, &writable(directory, generation).join("upper"))?;
    if snapshots.get(snapshot.id).is_none() {
        snapshots.add(snapshot)?;
    }
    record.frozen = None;
    record.write(directory)
}

/// Has the files of a snapshot written to disk, in the background, and notes that in its record.
pub(super) fn write_out(state: &State, snapshots: &Arc<Snapshots>, id: SnapshotId) {
    let snapshots = Arc::clone(snapshots);
    let layers = state.path("layers");
    state.in_background(async move {
        let written = tokio::task::spawn_blocking(move || {
            rustix::fs::syncfs(std::fs::File::open(layers)?)?;
            snapshots.change(id, |snapshot| snapshot.unwritten = None)
        });
        match written.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(snapshot = %id, %error, "cannot write a snapshot out");
            }
            Err(error) => tracing::warn!(snapshot = %id, %error, "cannot write a snapshot out"),
        }
    });
}

impl Workspaces {
    /// Has those be written out that were taken before derrick was started, and not written out by then.
    pub(super) fn write_out_all(&self) {
        for snapshot in self.snapshots().list() {
            if snapshot.unwritten.is_some() {
                write_out(self.state(), self.snapshots(), snapshot.id);
            }
        }
    }

    /// Takes a snapshot of a workspace.
    ///
    /// # Errors
    /// `NotFound`, and those of taking a snapshot.
    pub async fn snapshot(
        &self,
        id: &WorkspaceId,
        label: Option<String>,
    ) -> Result<Taken, WorkspaceError> {
        let workspace = self.get(id)?;
        workspace
            .snapshot(self.snapshots(), self.store(), label)
            .await
    }

    /// What takes a snapshot of a workspace after the end of a command in it.
    #[must_use]
    pub fn keep_after(&self, workspace: &Arc<Workspace>) -> After {
        let (this, workspace) = (self.clone(), Arc::downgrade(workspace));
        After::new(async move |sandbox| {
            let Some(workspace) = workspace.upgrade() else {
                return Err(WorkspaceError::Moved.to_string());
            };
            let taken = workspace.snapshot_after(this.snapshots(), this.store(), sandbox);
            let taken = taken.await.map_err(|error| chain::text(&error))?;
            Ok(taken.snapshot.id)
        })
    }

    /// The snapshot that a workspace is on, if it is on one.
    #[must_use]
    pub fn snapshot_under(&self, workspace: &Workspace) -> Option<SnapshotId> {
        self.snapshots().of_layer(&workspace.layer())
    }

    /// All snapshots, oldest first.
    #[must_use]
    pub fn all_snapshots(&self) -> Vec<Arc<Snapshot>> {
        self.snapshots().list()
    }

    /// One of them.
    ///
    /// # Errors
    /// `NoSnapshot`.
    pub fn snapshot_of(&self, id: SnapshotId) -> Result<Arc<Snapshot>, WorkspaceError> {
        let found = self.snapshots().get(id);
        found.ok_or(WorkspaceError::NoSnapshot(id))
    }

    /// One that a workspace can start from here.
    ///
    /// # Errors
    /// `NoSnapshot`, `OtherShape`.
    pub fn snapshot_for(&self, id: SnapshotId) -> Result<StartingPoint, WorkspaceError> {
        let snapshot = self.snapshots().starting_point(id);
        let snapshot = snapshot.ok_or(WorkspaceError::NoSnapshot(id))?;
        if snapshot.shape == self.state().spawner().identity().shape() {
            Ok(snapshot)
        } else {
            Err(WorkspaceError::OtherShape(id))
        }
    }

    /// Gives one another label, or none.
    ///
    /// # Errors
    /// `NoSnapshot`, and those of writing its record.
    pub fn label_snapshot(
        &self,
        id: SnapshotId,
        label: Option<String>,
    ) -> Result<Arc<Snapshot>, WorkspaceError> {
        let changed = self
            .snapshots()
            .change(id, |snapshot| snapshot.label = label);
        changed
            .map_err(noting)?
            .ok_or(WorkspaceError::NoSnapshot(id))
    }

    /// Removes one.
    ///
    /// # Errors
    /// `NoSnapshot`, and `SnapshotInUse` while something builds on it.
    pub fn remove_snapshot(&self, id: SnapshotId) -> Result<(), WorkspaceError> {
        let store = self.store();
        let builds = |stack: &crate::base::Stack, layer: &Digest| {
            let mut layers = stack.paths().filter_map(|path| store.digest_of(path));
            // Where it was flattened it is still what somebody started from.
            stack.digest == *layer || layers.any(|other| other == *layer)
        };
        let removed = self.snapshots().remove(id, |layer, others| {
            let workspaces = self.lock();
            let user = workspaces.values().find(|workspace| {
                let record = workspace.record();
                builds(&record.stack, layer) || builds(record.home(), layer)
            });
            if let Some(workspace) = user {
                return Some(format!("workspace {}", workspace.id()));
            }
            let other = others
                .values()
                .find(|other| other.id != id && builds(&other.stack, layer));
            other.map(|other| format!("snapshot {}", other.id))
        });
        match removed.map_err(WorkspaceError::host("removing a snapshot's record"))? {
            Removal::Done => {}
            Removal::None => return Err(WorkspaceError::NoSnapshot(id)),
            Removal::Used(user) => return Err(WorkspaceError::SnapshotInUse { id, user }),
        }
        // Its layer is nobody's now.
        self.shared.look_at_layers();
        Ok(())
    }

    /// Takes a snapshot of a workspace and starts `count` workspaces on it: all of them, or none and no
    /// snapshot either.
    ///
    /// # Errors
    /// Those of taking it and of making a workspace.
    pub async fn fork(
        &self,
        id: &WorkspaceId,
        count: usize,
        label: Option<String>,
        asked: impl Fn(SnapshotId) -> Asked,
    ) -> Result<(Taken, Vec<WorkspaceId>), WorkspaceError> {
        let taken = self.snapshot(id, label).await?;
        let snapshot = taken.snapshot.id;
        let mut making = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (this, asked) = (self.clone(), asked(snapshot));
            making.spawn(async move { this.create(asked).await });
        }
        let mut made = Vec::new();
        let mut failed = None;
        while let Some(one) = making.join_next().await {
            match one {
                Ok(Ok(workspace)) => made.push(workspace.id().clone()),
                Ok(Err(error)) => failed = Some(error),
                Err(error) => {
                    failed = Some(WorkspaceError::host("making a workspace")(error.into()));
                }
            }
        }
        let Some(error) = failed else {
            made.sort();
            return Ok((taken, made));
        };
        for id in made {
            if let Err(error) = self.remove(&id).await {
                tracing::warn!(workspace = %id, %error, "cannot remove a workspace of a fork that failed");
            }
        }
        match self.remove_snapshot(snapshot) {
            // Its layer is what the workspace is on now, which needs no record of it.
            Err(WorkspaceError::SnapshotInUse { .. }) => {
                let forgotten = self.snapshots().remove(snapshot, |_, _| None);
                if let Err(error) = forgotten {
                    tracing::warn!(%snapshot, %error, "cannot forget a snapshot");
                }
            }
            Err(error) => tracing::warn!(%snapshot, %error, "cannot remove a snapshot"),
            Ok(()) => {}
        }
        Err(error)
    }
}
