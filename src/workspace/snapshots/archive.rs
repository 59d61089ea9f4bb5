//! Snapshots as archives: out of one provider, and into another one that has the same setup layer.
//!
//! What goes out is all that is other than in the setup layer, whatever number of layers that is in; what comes
//! in becomes one layer on it. The archive says which setup layer that is, and is taken in on no other one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::records::boot;
use super::{Snapshot, SnapshotId, noting, write_out};
use crate::base::{Digest, Imported, SetupError, Stack};
use crate::git::CommitId;
use crate::init::unpack::{Compression, SNAPSHOT_FORMAT, SnapshotHead, Summary};
use crate::pool::export::ExportError;
use crate::pool::files::Content;
use crate::sandbox::identity::IDS_PER_SANDBOX;
use crate::sandbox::{Access, IdMap, Merge, Merged};
use crate::spawner::protocol::Export;
use crate::workspace::{WorkspaceError, Workspaces};

/// Bytes that an archive says before everything else, at most.
const HEAD_MAX: usize = 900 << 10;

impl Workspaces {
    /// The archive of a snapshot.
    ///
    /// # Errors
    /// `NoSnapshot`, `OtherShape`, `Unexportable`, and those of the host.
    pub async fn export_snapshot(
        &self,
        id: SnapshotId,
        compression: Compression,
    ) -> Result<Content, WorkspaceError> {
        let snapshot = self.snapshot_of(id)?;
        if snapshot.shape != self.state().spawner().identity().shape() {
            return Err(WorkspaceError::OtherShape(id));
        }
        let unexportable = |why| WorkspaceError::Unexportable { id, why };
        let Some(base) = self.foundation(&snapshot.stack) else {
            let why = "it is not known what it stands on".to_owned();
            return Err(unexportable(why));
        };
        let commits = snapshot.stack.commits.iter();
        let head = SnapshotHead {
            format: SNAPSHOT_FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            base: base.to_string(),
            id: id.to_string(),
            created: snapshot.created,
            label: snapshot.label.clone(),
            env: snapshot.env.clone(),
            commits: commits
                .map(|(path, commit)| (path.display().to_string(), commit.as_str().to_owned()))
                .collect(),
        };
        let head = serde_json::to_string(&head).map_err(|error| noting(error.into()))?;
        if head.len() > HEAD_MAX {
            return Err(unexportable("its environment is too long".to_owned()));
        }
        let (overlays, at) = changed(&snapshot.stack);
        let Some(top) = overlays.first().and_then(|overlay| overlay.layers.first()) else {
            return Err(unexportable("it has no layer of its own".to_owned()));
        };
        let export = Export {
            layers: Merge {
                ids: IdMap {
                    first: top.first_id,
                    count: IDS_PER_SANDBOX,
                },
                overlays,
                into: PathBuf::new(),
            },
            at,
            head,
            compression,
        };
        let turn = self
            .snapshots()
            .exporting
            .enter(snapshot.owner.as_deref())
            .await;
        // Its layers and the turn are kept until the last byte is out.
        let archive = self.state().spawner().archive_of(export, (snapshot, turn));
        archive.await.map_err(|error| match error {
            ExportError::Impossible(why) => unexportable(why),
            ExportError::Spawner(error) => error.into(),
            ExportError::Host(attempt, source) => WorkspaceError::Host { attempt, source },
            slow @ ExportError::Slow(_) => WorkspaceError::Host {
                attempt: "writing an archive",
                source: io::Error::other(slow),
            },
        })
    }

    /// Digest of what the snapshots of a stack stand on.
    fn foundation(&self, stack: &Stack) -> Option<Digest> {
        // Those of before it was noted stand on a layer.
        stack.foundation.clone().or_else(|| {
            let (overlays, _) = changed(stack);
            let below = overlays.first()?.below.first()?;
            self.store().digest_of(&below.path)
        })
    }

    /// Makes a snapshot of an archive, a file that is only read.
    ///
    /// # Errors
    /// `OtherBase` where it stands on a setup layer that is not here; where it is not what it should be; and those
    /// of the host. Nothing is left of it then.
    pub async fn import_snapshot(
        &self,
        mut archive: File,
        owner: Option<String>,
    ) -> Result<(Arc<Snapshot>, Summary), WorkspaceError> {
        let shared = &self.shared;
        let id = SnapshotId::generate();
        let mut stack = shared.setups.stack().await?;
        shared.note_present(Some(&stack));
        let present = stack.digest.clone();
        let _turn = self.snapshots().copying.enter(owner.as_deref()).await;
        let host = WorkspaceError::host("reading an archive");
        loop {
            archive.rewind().map_err(&host)?;
            let opened = archive.try_clone().map(OwnedFd::from).map_err(&host)?;
            match shared.setups.import(opened, &stack, &id.layer()).await? {
                Imported::Layer {
                    layer,
                    head,
                    summary,
                } => {
                    // Inside, it was checked as well; but that was inside.
                    if let Some(flaw) = head.flaw() {
                        shared.look_at_layers();
                        return Err(SetupError::Snapshot(flaw.to_owned()).into());
                    }
                    let first_id = layer.meta().first_id.unwrap_or(0);
                    let mut on_it = stack.with_snapshot(&layer, first_id);
                    on_it.commits = commits(&stack, &head);
                    let snapshot = Snapshot {
                        id,
                        label: head.label,
                        parent: None,
                        workspace: None,
                        owner,
                        created: crate::clock::precise(),
                        env: head.env,
                        stack: on_it,
                        shape: self.state().spawner().identity().shape(),
                        unwritten: Some(boot()),
                    };
                    let added = self.snapshots().add(snapshot).map_err(|error| {
                        shared.look_at_layers();
                        noting(error)
                    })?;
                    write_out(self.state(), self.snapshots(), id);
                    return Ok((added, summary));
                }
                Imported::OtherBase(head) => {
                    let wanted = head.base.parse::<Digest>().ok();
                    let other = wanted.and_then(|wanted| shared.setups.earlier_stack(&wanted));
                    stack = match other {
                        Some(other) if stack.digest == present && other.digest != present => {
                            self.store().claimed(other).map_err(&host)?
                        }
                        _ => {
                            return Err(WorkspaceError::OtherBase {
                                wanted: head.base.chars().take(64).collect(),
                                present,
                            });
                        }
                    };
                }
            }
        }
    }
}

/// Of each overlay that is written to, the layers of snapshots and what is below; and where it is.
fn changed(stack: &Stack) -> (Vec<Merged>, Vec<PathBuf>) {
    let own = stack.snapshots.len();
    let overlays = stack.overlays.iter().enumerate();
    overlays
        .filter(|(_, overlay)| overlay.access == Access::Writable)
        .map(|(number, overlay)| {
            let (layers, below) = overlay.lowers.split_at(own.min(overlay.lowers.len()));
            let merged = Merged {
                number,
                layers: layers.to_vec(),
                below: below.to_vec(),
            };
            (merged, overlay.at.clone())
        })
        .unzip()
}

/// Those of the setup, with what the archive says of the same paths.
fn commits(stack: &Stack, head: &SnapshotHead) -> BTreeMap<PathBuf, CommitId> {
    let mut commits = stack.commits.clone();
    for (path, commit) in &mut commits {
        let said = head.commits.get(&path.display().to_string());
        if let Some(said) = said.and_then(|said| said.parse().ok()) {
            *commit = said;
        }
    }
    commits
}
