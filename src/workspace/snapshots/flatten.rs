//! Flattening: layers of snapshots in a row become one, so that a chain of snapshots has no end.
//!
//! Which ones is told by the chain alone: from a certain length on, the lowest four in a row that are of the same
//! size. All that stand on the same snapshots so choose the same ones and share what was made of them, what was
//! written once is copied again each time that the chain is four times as long, and a chain of `n` snapshots
//! stands on about 3 log4(n) layers. It is done in the background after a snapshot; one that would be too deep
//! waits for it. The new layer is named by those that are in it. They stay as long as something uses them.

use std::ops::Range;
use std::sync::Arc;

use tokio::sync::Semaphore;
use uuid::Uuid;

use super::records::Snapshots;
use super::{Snapshot, SnapshotId};
use crate::base::store::{LAYER_FORMAT, LayerMeta};
use crate::base::{Digest, Layer, LayerStore, Stack};
use crate::chain;
use crate::sandbox::identity::IDS_PER_SANDBOX;
use crate::sandbox::{Access, IdMap, Merge, Merged};
use crate::state::State;
use crate::workspace::WorkspaceError;

/// Layers of snapshots that a chain may have without being flattened.
const SHORT: usize = 8;

/// Layers that become one.
const AT_ONCE: usize = 4;

/// Merges at once.
static MERGING: Semaphore = Semaphore::const_new(1);

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
    store: &LayerStore,
    mut stack: Stack,
    missing: Missing,
) -> Result<Stack, WorkspaceError> {
    if next_run(&stack.snapshots).is_none() {
        return Ok(stack);
    }
    while let Some(run) = next_run(&stack.snapshots) {
        let Some(digest) = digest_of(store, &stack, &run) else {
            break;
        };
        let layer = match (store.get(&digest), missing) {
            (Some(layer), _) => layer,
            (None, Missing::Left) => break,
            (None, Missing::Made) => make(state, store, &stack, &run, &digest).await?,
        };
        stack = stack.with_merged(&layer, run);
    }
    // Those that are in a merged one are not this one's any more.
    store
        .claimed(stack)
        .map_err(WorkspaceError::host("finding the layers of a snapshot"))
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
    let (id, stack) = (snapshot.id, snapshot.stack.clone());
    let background = state.clone();
    background.in_background(async move {
        if let Err(error) = flatten_one(&state, &snapshots, &store, id, stack).await {
            let error = chain::text(&error);
            tracing::warn!(snapshot = %id, error, "cannot flatten a chain of snapshots");
        }
    });
}

async fn flatten_one(
    state: &State,
    snapshots: &Arc<Snapshots>,
    store: &LayerStore,
    id: SnapshotId,
    stack: Stack,
) -> Result<(), WorkspaceError> {
    let flat = flatten(state, store, stack, Missing::Made).await?;
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
    let _lock = store.lock(digest).await.map_err(&host)?;
    if let Some(layer) = store.get(digest) {
        return Ok(layer);
    }
    // It is never closed.
    let _turn = MERGING.acquire().await;
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
    fn the_lowest_layers_become_one_whatever_lies_on_them() {
        assert_eq!(next_run(&[1; 7]), None);
        assert_eq!(next_run(&[1; 8]), Some(4..8));
        assert_eq!(next_run(&[1; 9]), Some(5..9));
        assert_eq!(next_run(&[1, 1, 1, 1, 1, 1, 1, 4]), Some(3..7));
        assert_eq!(next_run(&[1, 1, 1, 1, 4, 4, 4, 4]), Some(4..8));
        assert_eq!(next_run(&[1, 1, 1, 4, 4, 4, 16, 16, 16]), None);
    }
}
