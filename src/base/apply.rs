//! Snapshots that come as archives: unpacked in a sandbox on what they stand on, and kept as a layer.
//!
//! The archive is a stranger's. It is read by the unpacker alone, inside, as that of a base is; whatever is wrong
//! with it leaves no layer.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::build::{About, Build, Confinement};
use super::setup::Setups;
use super::{Digest, Layer, SetupError, Stack};
use crate::init::unpack::{Applied, SnapshotHead, Summary};
use crate::sandbox::Network;
use crate::state::{NoRoom, State};

/// How long the disk is not looked at while an archive is unpacked onto it.
const LOOK: Duration = Duration::from_millis(200);

/// What came of an archive.
#[derive(Debug)]
pub enum Imported {
    /// It is a layer now.
    Layer {
        /// That layer.
        layer: Box<Layer>,
        /// What the archive says of the snapshot.
        head: Box<SnapshotHead>,
        /// What was unpacked.
        summary: Summary,
    },
    /// It stands on something else.
    OtherBase(Box<SnapshotHead>),
}

impl Setups {
    /// Takes in `archive`, a file at its start, of a snapshot that stands on `stack`, as the layer `digest`.
    ///
    /// # Errors
    /// Where the archive is not what it should be, or the host fails; nothing is kept then.
    pub async fn import(
        &self,
        archive: OwnedFd,
        stack: &Stack,
        digest: &Digest,
    ) -> Result<Imported, SetupError> {
        let confinement = Confinement {
            network: Network::None,
            ..Confinement::of(self.config())
        };
        let build = Build::start(self.state(), stack, confinement).await?;
        let applied = tokio::select! {
            applied = build.apply(archive, stack, &stack.digest) => applied,
            full = until_full(self.state()) => Err(SetupError::NoSpace(full.to_string())),
        };
        let (head, summary) = match applied {
            Ok(Applied::Done(head, summary)) => (head, summary),
            Ok(Applied::OtherBase(head)) => {
                build.abandon().await;
                return Ok(Imported::OtherBase(head));
            }
            Err(error) => {
                build.abandon().await;
                return Err(error);
            }
        };
        let about = About {
            parent: Some(stack.digest.clone()),
            description: "a snapshot that was imported".to_owned(),
            by_record: true,
            ..About::default()
        };
        let layer = build.freeze(self.store(), digest, about).await?;
        Ok(Imported::Layer {
            layer: Box::new(layer),
            head,
            summary,
        })
    }
}

/// Waits until the disk has no more room than is to be left. An archive may be small, and what is in it not.
async fn until_full(state: &State) -> NoRoom {
    loop {
        if let Err(full) = state.check_room() {
            return full;
        }
        tokio::time::sleep(LOOK).await;
    }
}
