//! Flattening: layers of snapshots in a row become one, so that a chain of snapshots has no end.
//!
//! Which ones is told by the chain alone: from a certain length on, the lowest four in a row that are of the same
//! size. All that stand on the same snapshots so choose the same ones and share what was made of them, what was
//! written once is copied again each time that the chain is four times as long, and a chain of `n` snapshots
//! stands on about 3 log4(n) layers. It is done in the background after a snapshot, for owners in turn; one that
//! would be too deep waits for it, with its workspace free for others. What cannot be merged is left alone for a
//! while. The new layer is named by those that are in it. They stay as long as something uses them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Snapshot;
use super::records::Snapshots;
use crate::base::store::{LAYER_FORMAT, LayerMeta};
use crate::base::{Digest, Layer, LayerStore, Stack};
use crate::chain;
use crate::sandbox::identity::IDS_PER_SANDBOX;
use crate::sandbox::{Access, IdMap, Merge, Merged};
use crate::state::State;
use crate::turns::Gate;
use crate::workspace::WorkspaceError;

/// Layers of snapshots that a chain may have without being flattened.
const SHORT: usize = 8;

/// Layers that become one.
const AT_ONCE: usize = 4;

/// Merges at once, of which one owner has two at the most.
const MERGES: usize = 3;

/// For how long layers that could not be merged are not tried again, at first and at most; each time it is twice
/// as long.
const REST: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(3600)];

/// The merges of all chains.
#[derive(Debug)]
pub(super) struct Merges {
    turns: Gate,
    /// Those that failed, by what the layer would be called.
    failed: Mutex<HashMap<Digest, Rest>>,
}

/// How long it is not tried again.
#[derive(Debug, Clone, Copy)]
struct Rest {
    until: Instant,
    length: Duration,
}

impl Default for Merges {
    fn default() -> Self {
        Self {
            turns: Gate::new(MERGES),
            failed: Mutex::default(),
        }
    }
}

impl Merges {
    /// Whether that layer is not to be made at the moment.
    fn rests(&self, digest: &Digest, now: Instant) -> bool {
        let failed = self.lock();
        failed.get(digest).is_some_and(|rest| now < rest.until)
    }

    /// Notes whether that layer could be made.
    fn note(&self, digest: &Digest, made: bool, now: Instant) {
        let mut failed = self.lock();
        let before = failed.remove(digest);
        if made {
            return;
        }
        let [first, longest] = REST;
        let length = before.map_or(first, |rest| (rest.length * 2).min(longest));
        // Nobody came back for those.
        failed.retain(|_, rest| now < rest.until + longest);
        let until = now + length;
        failed.insert(digest.clone(), Rest { until, length });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Rest>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of a chain's layers become one, if some do: `sizes` says of each, the uppermost first, how many
/// snapshots are in it.
fn next_run(sizes: &[u64]) -> Option<Range<usize>> {
    if sizes.len() < SHORT {
        return None;
    }
    let mut runs = sizes.windows(AT_ONCE).enumerate();
    let (first, _) = runs.rfind(|(_, run)| run.iter().all(|size| size == &run[0]))?;
    Some(first..first + AT_ONCE)
}

/// Whether layers are merged that were not before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Made,
    Left,
}

/// The stack with as few layers as there may be; the same to whoever is in it.
///
/// # Errors
/// Where a layer cannot be made.
pub(super) async fn flatten(
    state: &State,
    snapshots: &Snapshots,
    store: &LayerStore,
    mut stack: Stack,
    owner: Option<String>,
    missing: Missing,
) -> Result<Stack, WorkspaceError> {
    if next_run(&stack.snapshots).is_none() {
        return Ok(stack);
    }
    let host = WorkspaceError::host("merging layers");
    while let Some(run) = next_run(&stack.snapshots) {
        let Some(digest) = digest_of(store, &stack, &run) else {
            break;
        };
        let layer = match (store.get(&digest), missing) {
            (None, Missing::Made) => {
                let _lock = store.lock(&digest).await.map_err(&host)?;
                let _turn = snapshots.merges.turns.enter(owner.as_deref()).await;
                // Somebody else may have tried meanwhile.
                match store.get(&digest) {
                    None if snapshots.merges.rests(&digest, Instant::now()) => None,
                    None => {
                        let made = make(state, store, &stack, &run, &digest).await;
                        let is_made = made.is_ok();
                        snapshots.merges.note(&digest, is_made, Instant::now());
                        Some(made?)
                    }
                    made => made,
                }
            }
            (made, _) => made,
        };
        let Some(layer) = layer else { break };
        stack = stack.with_merged(&layer, run);
    }
    // Those that are in a merged one are not this one's any more.
    store
        .claimed(stack)
        .map_err(WorkspaceError::host("finding the layers of a snapshot"))
}

/// The same, making what is missing, also where nobody waits for it any more.
///
/// # Errors
/// Where a layer cannot be made.
pub(super) async fn flatten_beside(
    state: &State,
    snapshots: &Arc<Snapshots>,
    store: &LayerStore,
    stack: Stack,
    owner: Option<String>,
) -> Result<Stack, WorkspaceError> {
    let (state, snapshots, store) = (state.clone(), Arc::clone(snapshots), store.clone());
    let flat = tokio::spawn(async move {
        flatten(&state, &snapshots, &store, stack, owner, Missing::Made).await
    });
    let failed =
        |error: tokio::task::JoinError| WorkspaceError::host("merging layers")(error.into());
    flat.await.map_err(failed)?
}

/// Flattens the stack of a snapshot in the background, if it is deep.
pub(super) fn flatten_later(
    state: &State,
    snapshots: &Arc<Snapshots>,
    store: &LayerStore,
    snapshot: &Snapshot,
) {
    if next_run(&snapshot.stack.snapshots).is_none() {
        return;
    }
    let (state, store, snapshots) = (state.clone(), store.clone(), Arc::clone(snapshots));
    let snapshot = snapshot.clone();
    let background = state.clone();
    background.in_background(async move {
        let id = snapshot.id;
        if let Err(error) = flatten_one(&state, &snapshots, &store, snapshot).await {
            let error = chain::text(&error);
            tracing::warn!(snapshot = %id, error, "cannot flatten a chain of snapshots");
        }
    });
}

async fn flatten_one(
    state: &State,
    snapshots: &Arc<Snapshots>,
    store: &LayerStore,
    snapshot: Snapshot,
) -> Result<(), WorkspaceError> {
    let Snapshot {
        id, stack, owner, ..
    } = snapshot;
    let flat = flatten(state, snapshots, store, stack, owner, Missing::Made).await?;
    let snapshots = Arc::clone(snapshots);
    let noted =
        tokio::task::spawn_blocking(move || snapshots.change(id, |snapshot| snapshot.stack = flat));
    let noted = noted.await.map_err(std::io::Error::other);
    noted
        .flatten()
        .map_err(WorkspaceError::host("writing a snapshot's record"))?;
    Ok(())
}

/// What names the layer of all of these.
fn digest_of(store: &LayerStore, stack: &Stack, run: &Range<usize>) -> Option<Digest> {
    let mut overlays = stack.overlays.iter();
    let overlay = overlays.find(|overlay| overlay.access == Access::Writable)?;
    let layers = overlay.lowers.get(run.clone())?.iter();
    let digests = layers.map(|lower| Some(store.digest_of(&lower.path)?.to_string()));
    let digests: Option<Vec<_>> = digests.collect();
    Some(Digest::of([vec!["merged".to_owned()], digests?].concat()))
}

async fn make(
    state: &State,
    store: &LayerStore,
    stack: &Stack,
    run: &Range<usize>,
    digest: &Digest,
) -> Result<Layer, WorkspaceError> {
    let host = WorkspaceError::host("merging layers");
    let aside = state.staging().join(Uuid::now_v7().to_string());
    state.make_directory(&aside).map_err(&host)?;
    let writable = stack.overlays.iter().enumerate();
    let writable = writable.filter(|(_, overlay)| overlay.access == Access::Writable);
    let overlays: Vec<_> = writable
        .map(|(number, overlay)| Merged {
            number,
            layers: overlay.lowers[run.clone()].to_vec(),
            below: overlay.lowers[run.end..].to_vec(),
        })
        .collect();
    let Some(top) = overlays.first().and_then(|overlay| overlay.layers.first()) else {
        return Err(host(std::io::ErrorKind::InvalidInput.into()));
    };
    let first = top.first_id;
    let meta = LayerMeta {
        format: LAYER_FORMAT,
        first_id: Some(first),
        shape: state.spawner().identity().shape(),
        // What it lies on.
        parent: overlays[0]
            .below
            .first()
            .and_then(|lower| store.digest_of(&lower.path)),
        lineage: None,
        commits: Vec::new(),
        mirrors: Vec::new(),
        created: crate::clock::seconds(),
        description: format!(
            "{} snapshots in one",
            stack.snapshots[run.clone()].iter().sum::<u64>()
        ),
        output: None,
        setup: None,
        bytes: None,
        by_record: true,
    };
    let merge = Merge {
        ids: IdMap {
            first,
            count: IDS_PER_SANDBOX,
        },
        overlays,
        into: aside.clone(),
    };
    let made = async {
        state.spawner().merge(merge).await?;
        let (store, digest, tree) = (store.clone(), digest.clone(), aside.join("tree"));
        let committed = tokio::task::spawn_blocking(move || store.commit(&digest, &tree, meta));
        let committed = committed.await.map_err(std::io::Error::other);
        committed.flatten().map_err(&host)
    };
    let made = made.await;
    state.discard_or_say(&aside);
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_grows_with_the_logarithm_of_its_snapshots() {
        let mut sizes: Vec<u64> = Vec::new();
        let (mut deepest, mut copied) = (0, 0);
        for _ in 0..10_000 {
            sizes.insert(0, 1);
            while let Some(run) = next_run(&sizes) {
                let sum = sizes[run.clone()].iter().sum();
                copied += sum;
                sizes.splice(run, [sum]);
            }
            deepest = deepest.max(sizes.len());
        }
        assert_eq!(sizes.iter().sum::<u64>(), 10_000);
        assert!(deepest <= 22, "{deepest}");
        assert!(copied < 10_000 * 8, "{copied}");
    }

    #[test]
    fn what_cannot_be_merged_is_tried_again_later_and_later() {
        let merges = Merges::default();
        let (one, other) = (Digest::of(["one"]), Digest::of(["other"]));
        let mut now = Instant::now();
        assert!(!merges.rests(&one, now));
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            merges.note(&one, false, now);
            let minutes = Duration::from_secs(60) * minutes;
            assert!(merges.rests(&one, now + minutes - Duration::from_millis(1)));
            assert!(!merges.rests(&other, now));
            now += minutes;
            assert!(!merges.rests(&one, now));
        }
        merges.note(&one, true, now);
        merges.note(&one, false, now);
        assert!(!merges.rests(&one, now + Duration::from_secs(60)));
        // What nobody comes back for is forgotten.
        merges.note(&other, false, now + Duration::from_secs(3600 * 2));
        assert_eq!(merges.lock().len(), 1);
    }

    #[test]
    fn the_lowest_layers_become_one_whatever_lies_on_them() {
        assert_eq!(next_run(&[1; 7]), None);
        assert_eq!(next_run(&[1; 8]), Some(4..8));
        assert_eq!(next_run(&[1; 9]), Some(5..9));
        assert_eq!(next_run(&[1, 1, 1, 1, 1, 1, 1, 4]), Some(3..7));
        assert_eq!(next_run(&[1, 1, 1, 1, 4, 4, 4, 4]), Some(4..8));
        assert_eq!(next_run(&[1, 1, 1, 4, 4, 4, 16, 16, 16]), None);
    }
}
