//! What changed in a workspace since setup, told by a child of the spawner out of its layers.
//!
//! What runs is held meanwhile, so that the answer is of one moment; it is whole in a file without a name before
//! anybody reads it, so no slow reader has anything wait. There are only so many of these files, and owners get
//! them in turn.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::one::Workspace;
use super::record::{Record, writable};
use super::{WorkspaceError, WorkspaceId, Workspaces};
use crate::base::LayerStore;
use crate::init::files::protocol::RawPath;
use crate::pool::{Gone, Sandbox, SpawnerError};
use crate::sandbox::{Access, Lower, Merge, Merged, Storage};
use crate::spawner::changes::outcome_of;
use crate::spawner::changes::protocol::{Answer, Checkout, Form, Inquiry};
use crate::turns::{Gate, Pass};

/// How long processes that are held may take to come to a stop.
const SETTLING: Duration = Duration::from_secs(5);

/// Answers that there are at once: about to be written, or until somebody has read them.
static ANSWERS: LazyLock<Gate> = LazyLock::new(|| Gate::new(16));

/// Bundles that there are at once, or that git inside makes, which may take its time: to be read or pushed.
static BUNDLES: LazyLock<Gate> = LazyLock::new(|| Gate::new(16));

/// Of the answers, those that are being written.
static WRITING: LazyLock<Gate> = LazyLock::new(|| Gate::new(4));

/// Bytes that an [`Answer`] takes at most.
const LONGEST_ANSWER: u32 = 4096;

/// What was told.
#[derive(Debug)]
pub struct Telling {
    /// Holds the content, as long as the answer says.
    pub file: File,
    /// What came of it.
    pub answer: Answer,
    /// Its place among all answers: to be let go of with the file.
    pub place: Pass,
}

impl Workspaces {
    /// Waits for a place for an answer about a workspace.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn place_for_answer(&self, id: &WorkspaceId) -> Result<Pass, WorkspaceError> {
        let owner = self.get(id)?.owner();
        Ok(ANSWERS.enter(owner.as_deref()).await)
    }

    /// Waits for a turn to have git inside make a bundle, of which a workspace has one at a time, and for a place
    /// for it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn place_for_bundle(
        &self,
        id: &WorkspaceId,
    ) -> Result<(OwnedMutexGuard<()>, Pass), WorkspaceError> {
        let workspace = self.get(id)?;
        let turn = Arc::clone(&workspace.handing_out).lock_owned().await;
        let place = BUNDLES.enter(workspace.owner().as_deref()).await;
        Ok((turn, place))
    }

    /// Tells what changed in a workspace since setup, within a path: within its repository if none is given and
    /// the form is of one, or everywhere.
    ///
    /// # Errors
    /// `NotFound`, `SeveralRepositories`, `Restless`, and those of the host.
    pub async fn tell_changes(
        &self,
        id: &WorkspaceId,
        within: Option<RawPath>,
        form: Form,
        place: Pass,
    ) -> Result<Telling, WorkspaceError> {
        let workspace = self.get(id)?;
        let store = self.store();
        workspace.tell_changes(store, within, form, place).await
    }
}

impl Workspace {
    async fn tell_changes(
        &self,
        store: &LayerStore,
        within: Option<RawPath>,
        form: Form,
        place: Pass,
    ) -> Result<Telling, WorkspaceError> {
        let host = WorkspaceError::host("keeping what changed");
        let mut lifecycle = self.lifecycle.lock().await;
        lifecycle.check_open()?;
        // Once it can be used, and before anything is held.
        let _turn = WRITING.enter(self.owner().as_deref()).await;
        // There may be less than there was before so many waited.
        self.state
            .check_room()
            .map_err(|full| host(io::Error::new(io::ErrorKind::StorageFull, full)))?;
        let is_apart = self.record().storage != Storage::Directory && self.fenced().is_none();
        if is_apart && self.current().is_none() {
            // Only a sandbox shows what is on a filesystem of its own.
            if let Some(dying) = self.set_current(None) {
                dying.end(Gone::Lost).await?;
            }
            self.start_here(&mut lifecycle).await?;
        }
        let record = self.record();
        let sandbox = self.current();
        // Held until the answer is there, its layers stay.
        let _layers = store
            .claimed(record.stack.clone())
            .map_err(WorkspaceError::host("finding the layers of a workspace"))?;
        let within = match within {
            Some(within) => within,
            None => default_path(&record, form)?,
        };
        let inquiry = Inquiry {
            apart: is_apart,
            ..self.inquiry(&record, within, form)
        };
        let file = tempfile::tempfile_in(self.state.staging()).map_err(&host)?;
        let told = self.ask(sandbox.as_ref(), inquiry, &file).await;
        drop(lifecycle);
        let answer = match told {
            Ok(()) => None,
            Err(error) => Some(beyond(error)?),
        };
        let read = tokio::task::spawn_blocking(move || {
            let answer = answer.map_or_else(|| read_answer(&file), Ok)?;
            Ok(Telling {
                file,
                answer,
                place,
            })
        });
        read.await.map_err(io::Error::other).flatten().map_err(host)
    }

    async fn ask(
        &self,
        sandbox: Option<&Sandbox>,
        inquiry: Inquiry,
        file: &File,
    ) -> Result<(), WorkspaceError> {
        let Some(sandbox) = sandbox else {
            return Ok(self.state.spawner().tell(inquiry, file).await?);
        };
        sandbox.hold_for_long().await?;
        let told = async {
            if !sandbox.until_still(SETTLING).await? {
                return Err(WorkspaceError::Restless);
            }
            // What a signal stopped may have itself go on; where there is nothing, nothing is started.
            let is_surely_still = sandbox.is_frozen() || sandbox.count_processes().await? == 0;
            let inquiry = Inquiry {
                consistent: is_surely_still,
                ..inquiry
            };
            Ok(sandbox.tell(inquiry, file).await?)
        };
        let told = told.await;
        sandbox.release().await;
        told
    }

    /// The layers on top of setup's, and its own upper, if there is one.
    fn inquiry(&self, record: &Record, within: RawPath, form: Form) -> Inquiry {
        let upper = writable(&self.directory, record.generation).join("upper");
        let snapshots = record.stack.snapshots.len();
        let mut places = Vec::new();
        let mut overlays = Vec::new();
        for (number, overlay) in record.stack.overlays.iter().enumerate() {
            if overlay.access != Access::Writable {
                continue;
            }
            let (above, below) = overlay.lowers.split_at(snapshots.min(overlay.lowers.len()));
            let own = Lower {
                path: upper.join(number.to_string()),
                first_id: record.ids.first,
            };
            // One that is fenced has none.
            let own = own.path.is_dir().then_some(own);
            overlays.push(Merged {
                number,
                layers: own.into_iter().chain(above.iter().cloned()).collect(),
                below: below.to_vec(),
            });
            places.push(overlay.at.clone());
        }
        let commits = record.stack.commits.iter();
        Inquiry {
            layers: Merge {
                ids: record.ids,
                overlays,
                into: PathBuf::new(),
            },
            places,
            apart: false,
            repositories: commits
                .map(|(path, commit)| Checkout {
                    path: path.as_os_str().as_encoded_bytes().into(),
                    commit: commit.as_str().to_owned(),
                })
                .collect(),
            consistent: true,
            within,
            form,
        }
    }
}

/// What is told of where nobody says it.
fn default_path(record: &Record, form: Form) -> Result<RawPath, WorkspaceError> {
    let mut repositories = record.stack.commits.keys();
    let path = match (form, repositories.next(), repositories.next()) {
        (Form::List, ..) | (_, None, _) => Path::new("/"),
        (_, Some(one), None) => one,
        (_, Some(_), Some(_)) => return Err(WorkspaceError::SeveralRepositories),
    };
    Ok(path.as_os_str().as_encoded_bytes().into())
}

/// What is answered where the process that was to do it reached a limit.
fn beyond(error: WorkspaceError) -> Result<Answer, WorkspaceError> {
    let outcome = match &error {
        WorkspaceError::Spawner(SpawnerError::Failed(failure)) => outcome_of(failure.errno),
        _ => None,
    };
    let Some(outcome) = outcome else {
        return Err(error);
    };
    Ok(Answer {
        outcome,
        length: 0,
        left_out: 0,
    })
}

/// What stands behind the content.
fn read_answer(file: &File) -> io::Result<Answer> {
    let end = file.metadata()?.len();
    let mut length = [0; 4];
    let at = end.checked_sub(4).ok_or(io::ErrorKind::UnexpectedEof)?;
    file.read_exact_at(&mut length, at)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST_ANSWER {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length as usize];
    let at = at.checked_sub(length.into());
    file.read_exact_at(&mut text, at.ok_or(io::ErrorKind::UnexpectedEof)?)?;
    Ok(serde_json::from_slice(&text)?)
}
