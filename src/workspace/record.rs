//! What is on disk of a workspace: enough to start it again on its files, whatever base and
//! repositories the config has by then.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::WorkspaceId;
use super::fence::Fence;
use super::lease::Lease;
use super::snapshots::{Snapshot, SnapshotId};
use crate::base::Stack;
use crate::git::CommitId;
use crate::sandbox::{IdMap, Limits, Requests, Storage};
use crate::state::{Written, forget_half, replace_file};

/// The record of one workspace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// The workspace.
    pub(super) id: WorkspaceId,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// Its own environment, on top of the config's.
    pub(super) env: BTreeMap<String, String>,
    /// What it may use.
    #[serde(default)]
    pub(super) limits: Limits,
    /// What it is to get.
    #[serde(default)]
    pub(super) requests: Requests,
    /// The name of the token that it was made with.
    #[serde(default)]
    pub(super) owner: Option<String>,
    /// How long it is kept.
    #[serde(default)]
    pub(super) lease: Lease,
    /// What it starts from, and, if `home` does not say otherwise, returns to.
    pub(super) stack: Stack,
    /// What it returns to, where that is something else.
    #[serde(default)]
    pub(super) home: Option<Stack>,
    /// A snapshot of it that is being taken by moving its files.
    #[serde(default)]
    pub(super) frozen: Option<Frozen>,
    /// When it is to be fenced.
    #[serde(default)]
    pub(super) fence: Option<Fence>,
    /// What it became when it was fenced.
    #[serde(default)]
    pub(super) fenced: Option<SnapshotId>,
    /// The number of the id range that its files are written with.
    pub(super) range: u32,
    /// The ids of that range.
    pub(super) ids: IdMap,
    /// Counts its resets; names the directory that it writes to.
    pub(super) generation: u64,
    /// What that directory has in it.
    #[serde(default)]
    pub(super) storage: Storage,
    /// The commit of each repository that its remote-tracking references are known to have.
    pub(super) commits: BTreeMap<PathBuf, CommitId>,
    /// The commit of each submodule that a fetch brought last with its large files, by its path. Others are as the
    /// setup left them.
    #[serde(default)]
    pub(super) brought: BTreeMap<PathBuf, CommitId>,
}

/// A snapshot on its way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Frozen {
    /// Whose upper is its layer.
    pub(super) generation: u64,
    /// What it will be.
    pub(super) snapshot: Snapshot,
}

/// What a generation began with. It is written to the directory that is then renamed to be the generation's:
/// with that name there, the workspace is in it, whatever its record says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Beginning {
    /// What it starts from.
    pub(super) stack: Stack,
    /// The number of the id range that its files are written with.
    pub(super) range: u32,
    /// The ids of that range.
    pub(super) ids: IdMap,
    /// What its directory has in it.
    pub(super) storage: Storage,
}

const NAME: &str = "record.json";
const BEGINNING: &str = "beginning.json";
const GENERATION: &str = "generation-";

impl Record {
    /// Writes it to the workspace's `directory`, whole or not at all.
    ///
    /// Not synced: what the kernel has survives the end of any process.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let record = serde_json::to_vec_pretty(self)?;
        replace_file(&directory.join(NAME), &record, Written::Soon)
    }

    /// Removes what a write that was cut short left in the workspace's `directory`.
    pub(super) fn forget_half(directory: &Path) -> io::Result<()> {
        forget_half(&directory.join(NAME))
    }

    pub(super) fn read(directory: &Path) -> io::Result<Self> {
        let record: Self = serde_json::from_slice(&fs::read(directory.join(NAME))?)?;
        match latest_generation(directory)? {
            Some(generation) if generation > record.generation => {
                let begun = fs::read(writable(directory, generation).join(BEGINNING))?;
                Ok(record.begun(generation, serde_json::from_slice(&begun)?))
            }
            _ => Ok(record),
        }
    }

    /// What it returns to.
    #[must_use]
    pub(super) fn home(&self) -> &Stack {
        self.home.as_ref().unwrap_or(&self.stack)
    }

    /// The record in a generation that has just begun.
    #[must_use]
    pub(super) fn begun(self, generation: u64, beginning: Beginning) -> Self {
        let home = self.home().clone();
        Self {
            home: (home != beginning.stack).then_some(home),
            frozen: None,
            fence: None,
            fenced: None,
            commits: beginning.stack.commits.clone(),
            brought: BTreeMap::new(),
            stack: beginning.stack,
            range: beginning.range,
            ids: beginning.ids,
            storage: beginning.storage,
            generation,
            ..self
        }
    }
}

impl Beginning {
    /// Writes it to the directory that the generation is to have.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        fs::write(directory.join(BEGINNING), serde_json::to_vec_pretty(self)?)
    }
}

/// The directory that a workspace writes to in its `generation`.
pub(super) fn writable(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("{GENERATION}{generation}"))
}

fn latest_generation(directory: &Path) -> io::Result<Option<u64>> {
    let mut latest = None;
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(GENERATION));
        latest = latest.max(number.and_then(|number| number.parse().ok()));
    }
    Ok(latest)
}
