//! What a sandbox starts from: overlays with their layers.

use std::collections::BTreeMap;
use std::io;
use std::ops;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::claim::Claims;
use super::{Digest, Layer};
use crate::git::CommitId;
use crate::pool::ranges::Range;
use crate::sandbox::identity::Identity;
use crate::sandbox::{Access, Lower, Overlay};

/// The overlays of a workspace, ready to be mounted, and what is known of what they show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Names everything that determined it.
    pub digest: Digest,
    /// As a sandbox's spec has them.
    pub overlays: Vec<Overlay>,
    /// Whose ids the files are written with.
    pub owner: Owner,
    /// Commits that setup checked out, by path.
    pub commits: BTreeMap<PathBuf, CommitId>,
    /// Layers on top of the base.
    pub depth: usize,
    /// Of each layer on top that is of snapshots, the uppermost first: how many snapshots are in it.
    #[serde(default)]
    pub snapshots: Vec<u64>,
    /// Digest of what the snapshots stand on, where there are any.
    #[serde(default)]
    pub foundation: Option<Digest>,
    /// Keeps its layers where they are, until it is recorded; what was recorded is kept for that.
    #[serde(skip)]
    pub(super) claims: Claims,
}

/// Who root inside is on disk, where ids are subordinate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// An id of the sandbox's own.
    Sandbox,
    /// The user who runs derrick: the base is a directory of that user's.
    Caller,
}

impl Stack {
    /// Every directory that it shows.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let lowers = self.overlays.iter().flat_map(|overlay| &overlay.lowers);
        lowers.map(|lower| lower.path.as_path())
    }

    /// Directories below what is written to, where there are the most.
    #[must_use]
    pub fn deepest(&self) -> usize {
        let writable = self
            .overlays
            .iter()
            .filter(|overlay| overlay.access == Access::Writable);
        writable
            .map(|overlay| overlay.lowers.len())
            .max()
            .unwrap_or(0)
    }

    /// Ids for a sandbox on this stack.
    ///
    /// # Errors
    /// Those of `Range::take_any`.
    pub fn take_range(&self, identity: Identity) -> io::Result<Range> {
        Range::take_any(identity).map(|range| self.fit(range))
    }

    /// The ids that a sandbox on this stack had before.
    ///
    /// # Errors
    /// Those of `Range::take`.
    pub fn retake_range(&self, identity: Identity, number: u32) -> io::Result<Range> {
        Range::take(identity, number).map(|range| self.fit(range))
    }

    fn fit(&self, range: Range) -> Range {
        match self.owner {
            Owner::Sandbox => range,
            Owner::Caller => range.owned_by_caller(),
        }
    }

    /// The stack with the layer of a snapshot on top of it.
    #[must_use]
    pub fn with_snapshot(&self, layer: &Layer, first_id: u32) -> Self {
        let mut stack = self.with_layer(layer, first_id);
        if stack.snapshots.is_empty() {
            stack.foundation = Some(self.digest.clone());
        }
        stack.snapshots.insert(0, 1);
        stack
    }

    /// The same stack with `layer` in the place of those that were merged into it.
    #[must_use]
    pub fn with_merged(&self, layer: &Layer, merged: ops::Range<usize>) -> Self {
        let mut stack = self.clone();
        stack.depth = (stack.depth + 1).saturating_sub(merged.len());
        let snapshots = stack.snapshots[merged.clone()].iter().sum();
        stack.snapshots.splice(merged.clone(), [snapshots]);
        if let Some(claim) = layer.claim() {
            stack.claims.add(Arc::clone(claim));
        }
        for (number, overlay) in stack.overlays.iter_mut().enumerate() {
            if overlay.access == Access::Writable {
                let lower = Lower {
                    path: layer.part(number),
                    first_id: layer.meta().first_id.unwrap_or(0),
                };
                overlay.lowers.splice(merged.clone(), [lower]);
            }
        }
        stack
    }

    /// The uppermost directory of what is written to.
    #[must_use]
    pub fn top(&self) -> Option<&Path> {
        let mut overlays = self.overlays.iter();
        let written = overlays.find(|overlay| overlay.access == Access::Writable)?;
        Some(&written.lowers.first()?.path)
    }

    /// The stack with `layer`, written by the sandbox whose root was `first_id`, on top of it.
    #[must_use]
    pub fn with_layer(&self, layer: &Layer, first_id: u32) -> Self {
        let mut stack = self.clone();
        stack.digest = layer.digest().clone();
        stack.depth += 1;
        if let Some(claim) = layer.claim() {
            stack.claims.add(Arc::clone(claim));
        }
        for (number, overlay) in stack.overlays.iter_mut().enumerate() {
            if overlay.access == Access::Writable {
                overlay.lowers.insert(
                    0,
                    Lower {
                        path: layer.part(number),
                        first_id,
                    },
                );
            }
        }
        stack
    }
}
