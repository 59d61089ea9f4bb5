//! The records of snapshots: one file each, written last. A snapshot is there when its record is.
//!
//! ```text
//! snapshots/<id>.json   what it is, and the stack that a workspace on it starts from
//! ```
//!
//! A snapshot outlives any end of derrick at once. What it holds is written out in the background; until that
//! is done the record names the boot of the host, and one of another boot is forgotten at the start: the power
//! failed in between, and nobody knows what of its files is there.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io::{self, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::flatten::Merges;
use crate::base::{Digest, LayerStore, Stack};
use crate::state::Use;
use crate::turns::Gate;
use crate::workspace::WorkspaceId;

/// Names one snapshot.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
pub struct SnapshotId(uuid::Uuid);

impl SnapshotId {
    /// A new id; later ones sort after earlier ones.
    #[must_use]
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7())
    }

    /// The name of its layer in the store.
    #[must_use]
    pub fn layer(self) -> Digest {
        Digest::of(["snapshot", &self.to_string()])
    }
}

impl FromStr for SnapshotId {
    type Err = InvalidSnapshotId;

    /// The canonical form only: lower case, with hyphens.
    fn from_str(text: &str) -> Result<Self, InvalidSnapshotId> {
        match uuid::Uuid::try_parse(text) {
            Ok(id) if id.to_string() == text => Ok(Self(id)),
            _ => Err(InvalidSnapshotId),
        }
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = InvalidSnapshotId;

    fn try_from(text: String) -> Result<Self, InvalidSnapshotId> {
        text.parse()
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is no snapshot id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a snapshot id is a UUID in lower case, with hyphens")]
pub struct InvalidSnapshotId;

/// A snapshot, as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// What somebody called it.
    #[serde(default)]
    pub label: Option<String>,
    /// The one that its workspace was on.
    #[serde(default)]
    pub parent: Option<SnapshotId>,
    /// The workspace that it was taken of, which may be gone; none if it was imported.
    #[serde(default)]
    pub workspace: Option<WorkspaceId>,
    /// The name that the workspace belonged to.
    #[serde(default)]
    pub owner: Option<String>,
    /// When it was taken, seconds since 1970.
    pub created: f64,
    /// The environment of the workspace.
    pub env: BTreeMap<String, String>,
    /// What a workspace on it starts from: its layer, and all below.
    pub stack: Stack,
    /// The way in which ids are given that its files were written under.
    pub shape: String,
    /// The boot of the host during which it was taken, until its files are written out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unwritten: Option<String>,
}

impl Snapshot {
    /// With its layers claimed: whoever has it, or its stack, keeps them, also where the record changes.
    fn claimed(self, store: &LayerStore) -> io::Result<Self> {
        let stack = store.claimed(self.stack)?;
        Ok(Self { stack, ..self })
    }
}

/// All snapshots of a state directory.
#[derive(Debug)]
pub(crate) struct Snapshots {
    directory: PathBuf,
    store: LayerStore,
    all: Mutex<BTreeMap<SnapshotId, Arc<Snapshot>>>,
    /// How many workspaces are being started from each; changed for one more with `all` locked.
    starting: Mutex<BTreeMap<SnapshotId, usize>>,
    /// Held by the one who changes a record, which may wait for the disk; taken before `all`.
    changing: Mutex<()>,
    /// Those who copy what a workspace wrote, or unpack what is imported.
    pub(super) copying: Gate,
    /// Archives on their way out, each until its client has it.
    pub(super) exporting: Gate,
    pub(super) merges: Merges,
}

/// Copies at once, of one owner two: each holds a workspace, and all of them share one disk.
const COPIES: usize = 3;

/// Archives on their way out at once, of one owner five at the most: each is a process, and remembers names.
const EXPORTS: usize = 8;

/// A snapshot that a workspace is being started from: it is not removed meanwhile.
#[derive(Debug)]
pub struct StartingPoint {
    snapshot: Arc<Snapshot>,
    snapshots: Arc<Snapshots>,
}

impl Deref for StartingPoint {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.snapshot
    }
}

impl Drop for StartingPoint {
    fn drop(&mut self) {
        let mut starting = self.snapshots.lock_starting();
        if let Entry::Occupied(mut count) = starting.entry(self.snapshot.id) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Snapshots {
    /// Those that are in `directory`, which is made if it is not there; whoever serves throws away what is
    /// of no use.
    ///
    /// # Errors
    /// Those of reading it.
    pub(crate) fn open(directory: PathBuf, usage: Use, store: &LayerStore) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let Some(id) = id_of(&path) else {
                // Not whole when its writer ended.
                if usage == Use::Serve && path.extension().is_some_and(|end| end == "new") {
                    std::fs::remove_file(&path)?;
                }
                continue;
            };
            match read(&path).and_then(|snapshot| snapshot.claimed(store)) {
                Ok(snapshot) if snapshot.unwritten.as_ref().is_some_and(|at| *at != boot()) => {
                    if usage == Use::Serve {
                        tracing::error!(snapshot = %id, "forgetting a snapshot that was not written out when the host went down");
                        std::fs::remove_file(&path)?;
                    }
                }
                Ok(snapshot) => {
                    all.insert(id, Arc::new(snapshot));
                }
                Err(error) => {
                    tracing::error!(snapshot = %id, %error, "leaving out a snapshot that cannot be read");
                }
            }
        }
        Ok(Self {
            directory,
            store: store.clone(),
            all: Mutex::new(all),
            starting: Mutex::default(),
            changing: Mutex::default(),
            copying: Gate::new(COPIES),
            exporting: Gate::new(EXPORTS),
            merges: Merges::default(),
        })
    }

    /// Adds one whose layer is there; from then on it is acknowledged.
    ///
    /// # Errors
    /// Those of writing its record.
    pub(crate) fn add(&self, snapshot: Snapshot) -> io::Result<Arc<Snapshot>> {
        let snapshot = snapshot.claimed(&self.store)?;
        let mut all = self.lock();
        self.prepare(&snapshot)?;
        self.reveal(snapshot.id)?;
        let snapshot = Arc::new(snapshot);
        all.insert(snapshot.id, Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// Changes a record; `None` if there is none. That of a durable snapshot is on disk when this returns,
    /// and nobody who looks at one waits for that.
    ///
    /// # Errors
    /// Those of writing it. It is as it was then; where the disk alone does not say that it has it, it is as it is
    /// to be.
    pub(crate) fn change(
        &self,
        id: SnapshotId,
        change: impl FnOnce(&mut Snapshot),
    ) -> io::Result<Option<Arc<Snapshot>>> {
        let sync = |directory: &Path| std::fs::File::open(directory)?.sync_all();
        self.change_and(id, change, sync)
    }

    /// The same, with what has a directory be on disk.
    fn change_and(
        &self,
        id: SnapshotId,
        change: impl FnOnce(&mut Snapshot),
        sync: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<Option<Arc<Snapshot>>> {
        let changing = self.changing.lock();
        let _changing = changing.unwrap_or_else(PoisonError::into_inner);
        let Some(before) = self.get(id) else {
            return Ok(None);
        };
        let mut changed = Snapshot::clone(&before);
        change(&mut changed);
        let changed = changed.claimed(&self.store)?;
        self.prepare(&changed)?;
        let changed = Arc::new(changed);
        {
            let mut all = self.lock();
            // It may have been removed meanwhile.
            let Some(place) = all.get_mut(&id) else {
                std::fs::remove_file(self.prepared(id))?;
                return Ok(None);
            };
            self.reveal(id)?;
            *place = Arc::clone(&changed);
        }
        if changed.unwritten.is_none() {
            sync(&self.directory)?;
        }
        Ok(Some(changed))
    }

    /// The one of that id, to start a workspace from.
    pub(crate) fn starting_point(self: &Arc<Self>, id: SnapshotId) -> Option<StartingPoint> {
        let all = self.lock();
        let snapshot = Arc::clone(all.get(&id)?);
        *self.lock_starting().entry(id).or_default() += 1;
        Some(StartingPoint {
            snapshot,
            snapshots: Arc::clone(self),
        })
    }

    /// The one of that id.
    pub(crate) fn get(&self, id: SnapshotId) -> Option<Arc<Snapshot>> {
        self.lock().get(&id).cloned()
    }

    /// The one whose layer this is, if it is one's.
    pub(crate) fn of_layer(&self, layer: &Digest) -> Option<SnapshotId> {
        let all = self.lock();
        let mut all = all.values();
        all.find(|snapshot| snapshot.stack.digest == *layer)
            .map(|snapshot| snapshot.id)
    }

    /// All of them, oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<Snapshot>> {
        self.lock().values().cloned().collect()
    }

    /// Removes one unless `user` names somebody who builds on it, or a workspace is being started from it.
    ///
    /// # Errors
    /// Those of removing its record.
    pub(crate) fn remove(
        &self,
        id: SnapshotId,
        user: impl FnOnce(&Digest, &BTreeMap<SnapshotId, Arc<Snapshot>>) -> Option<String>,
    ) -> io::Result<Removal> {
        let mut all = self.lock();
        if !all.contains_key(&id) {
            return Ok(Removal::None);
        }
        if self.lock_starting().contains_key(&id) {
            let user = "a workspace that is being made".to_owned();
            return Ok(Removal::Used(user));
        }
        if let Some(user) = user(&id.layer(), &all) {
            return Ok(Removal::Used(user));
        }
        std::fs::remove_file(self.path(id))?;
        all.remove(&id);
        Ok(Removal::Done)
    }

    fn path(&self, id: SnapshotId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    fn prepared(&self, id: SnapshotId) -> PathBuf {
        self.path(id).with_extension("new")
    }

    /// Writes a record under another name; to disk, if the snapshot is durable.
    fn prepare(&self, snapshot: &Snapshot) -> io::Result<()> {
        let mut file = std::fs::File::create(self.prepared(snapshot.id))?;
        file.write_all(&serde_json::to_vec_pretty(snapshot)?)?;
        if snapshot.unwritten.is_none() {
            file.sync_all()?;
        }
        Ok(())
    }

    /// Has the record that was prepared be the record, whole or not at all.
    fn reveal(&self, id: SnapshotId) -> io::Result<()> {
        std::fs::rename(self.prepared(id), self.path(id))
    }

    fn lock_starting(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, usize>> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, Arc<Snapshot>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of removing a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is gone.
    Done,
    /// There was none.
    None,
    /// Somebody builds on it.
    Used(String),
}

fn id_of(path: &Path) -> Option<SnapshotId> {
    let is_record = path.extension().is_some_and(|end| end == "json");
    is_record.then(|| path.file_stem()?.to_str()?.parse().ok())?
}

fn read(path: &Path) -> io::Result<Snapshot> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// The boot of this host, random(4).
pub(crate) fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_is_in_memory_what_it_is_on_disk_whatever_fails() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let store = LayerStore::open(scratch.path().join("layers"), |_| Ok(())).expect("a store");
        let open = || Snapshots::open(scratch.path().join("snapshots"), Use::Serve, &store);
        let snapshots = open().expect("opened");
        let id = SnapshotId::generate();
        let snapshot = json!({
            "id": id,
            "label": "before",
            "workspace": WorkspaceId::generate(),
            "created": 1.0,
            "env": {},
            "stack": {
                "digest": id.layer(),
                "overlays": [],
                "owner": "sandbox",
                "commits": {},
                "depth": 1,
            },
            "shape": "ranges",
        });
        let snapshot = serde_json::from_value(snapshot).expect("a snapshot");
        snapshots.add(snapshot).expect("added");
        let label = |snapshots: &Snapshots| snapshots.get(id).and_then(|it| it.label.clone());
        let relabel = |label: &'static str, synced: io::Result<()>| {
            let change = |snapshot: &mut Snapshot| snapshot.label = Some(label.to_owned());
            snapshots.change_and(id, change, |_| synced)
        };
        relabel("after", Ok(())).expect("changed");
        assert_eq!(label(&snapshots).as_deref(), Some("after"));
        let failed = relabel("late", Err(io::ErrorKind::StorageFull.into()));
        assert!(failed.is_err());
        assert_eq!(label(&snapshots), label(&open().expect("opened again")));
    }
}
