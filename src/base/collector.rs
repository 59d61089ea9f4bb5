//! Rids the layer store of what nobody finds again, and keeps it within the config's bounds, while a provider
//! serves from it.
//!
//! One task looks at the store: when it is told that a layer was made or may be used no more, and once a
//! minute, since layers get old and other processes make and use them too. It rests after each look, so
//! that it takes little of the host however often it is told to.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::collect::{Bounds, Mode, collect, remove_forgotten};
use crate::state::State;

/// How long nothing is looked at if nobody tells to.
const INTERVAL: Duration = Duration::from_secs(60);
/// The same while somebody holds what is to go: sandboxes in the pool do, for some seconds.
const INTERVAL_HELD: Duration = Duration::from_secs(5);
/// How long it rests at the least, and how many times as long as a look took.
const REST: Duration = Duration::from_millis(500);
const REST_FOR_LOOK: u32 = 20;

/// Collects until it is dropped.
#[derive(Debug)]
pub struct Collector {
    looks: mpsc::Sender<()>,
    _task: AbortOnDropHandle<()>,
}

impl Collector {
    /// Begins, with a look at once.
    #[must_use]
    pub fn start(state: &State, bounds: Option<Bounds>) -> Self {
        let (looks, told) = mpsc::channel(1);
        let task = tokio::spawn(keep(state.clone(), bounds, told));
        Self {
            looks,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Has it look soon: a layer was made, or somebody uses one no more.
    pub fn look(&self) {
        // Where it was told to and has not begun, this look is the same one.
        let _ = self.looks.try_send(());
    }
}

async fn keep(state: State, bounds: Option<Bounds>, mut told: mpsc::Receiver<()>) {
    loop {
        let started = Instant::now();
        let collecting = state.clone();
        let collected = tokio::task::spawn_blocking(move || {
            let held = remove_forgotten(&collecting)?;
            if let Some(bounds) = bounds {
                collect(&collecting, bounds, Mode::Remove)?;
            }
            Ok::<_, std::io::Error>(held)
        });
        let mut interval = INTERVAL;
        match collected.await {
            Ok(Ok(0)) => {}
            Ok(Ok(_)) => interval = INTERVAL_HELD,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot collect layers; trying again soon");
            }
            Err(error) => tracing::error!(%error, "collecting layers failed"),
        }
        let rest = REST.max(started.elapsed() * REST_FOR_LOOK);
        tokio::time::sleep(rest).await;
        // Whoever tells ends with the one that this task is of.
        if let Ok(None) = tokio::time::timeout(interval, told.recv()).await {
            return;
        }
    }
}
