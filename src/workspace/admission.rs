//! Who may be made now: places for workspaces, and memory for them. Who has to wait is let in in order.
//!
//! A create takes a place, which counts until the workspace is among the others, or is not made after all.
//! Nobody gets past those who wait: while there are any, who does not want to wait is refused.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytesize::ByteSize;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::memory::Memory;
use super::{Shared, Workspace, WorkspaceError, WorkspaceId, promised};

/// Requests that wait at once.
const MOST_WAITING: usize = 1024;

/// How often the first one that waits looks whether there is memory: nothing tells when there is.
const LOOK: Duration = Duration::from_millis(200);

/// What a workspace is taken to need at once, in bytes: its init, a shell and what they read.
pub(super) const LEAST: u64 = 16 << 20;

/// What there is too little of for another workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shortage {
    /// Places: there are as many workspaces as the config allows.
    Places {
        /// How many that is.
        most: u32,
    },
    /// Memory that is free.
    Memory {
        /// What is available, less what is promised to those that are being made.
        available: ByteSize,
        /// What it would take.
        needed: ByteSize,
        /// What is to be left.
        floor: ByteSize,
    },
    /// Memory, which is short already, so that all wait for it.
    Pressure {
        /// What is available.
        available: ByteSize,
    },
    /// Memory that is not promised.
    Promised {
        /// What the requests of the workspaces come to.
        promised: ByteSize,
        /// What this one requests.
        requested: ByteSize,
        /// What can be promised.
        most: ByteSize,
    },
    /// Those before it.
    Turn,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Places { most } => write!(
                f,
                "there are {most} workspaces, which is as many as the config's max_workspaces allows"
            ),
            Self::Memory {
                available,
                needed,
                floor,
            } => write!(
                f,
                "{} of memory are available, of which {} are to be left and a workspace takes {}",
                available.display().iec(),
                floor.display().iec(),
                needed.display().iec()
            ),
            Self::Pressure { available } => write!(
                f,
                "what runs on the host waits for memory, of which {} are available",
                available.display().iec()
            ),
            Self::Promised {
                promised,
                requested,
                most,
            } => write!(
                f,
                "the workspaces' requests for memory come to {}, and this one's {} would make more than the {} \
                 that there are to give",
                promised.display().iec(),
                requested.display().iec(),
                most.display().iec()
            ),
            Self::Turn => write!(f, "others wait for a place"),
        }
    }
}

/// Who is being made, and who waits for that.
#[derive(Debug, Default)]
pub(super) struct Admission(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    /// How many are being made, and what memory they are to have.
    coming: usize,
    coming_memory: u64,
    /// What of that is requested.
    coming_promised: u64,
    next: u64,
    waiting: VecDeque<Waiter>,
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    requested: u64,
    place: oneshot::Sender<Place>,
}

/// A place for a workspace that is being made.
#[derive(Debug)]
pub(super) struct Place {
    /// None once it is given back.
    shared: Option<Arc<Shared>>,
    requested: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(shared) = self.give_back() {
            admit(&shared);
        }
    }
}

impl Place {
    fn give_back(&mut self) -> Option<Arc<Shared>> {
        let shared = self.shared.take()?;
        {
            let mut queue = shared.admission.lock();
            queue.coming -= 1;
            queue.coming_memory -= self.requested.max(LEAST);
            queue.coming_promised -= self.requested;
        }
        Some(shared)
    }
}

/// Takes its number out of the queue when its request goes away.
struct Turn<'s> {
    shared: &'s Arc<Shared>,
    number: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let number = self.number;
        let waiting = &mut self.shared.admission.lock().waiting;
        waiting.retain(|waiter| waiter.number != number);
    }
}

impl Admission {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are being made, and how many requests wait.
    pub(super) fn counts(&self) -> (usize, usize) {
        let queue = self.lock();
        (queue.coming, queue.waiting.len())
    }

    /// Memory for those that are being made, in bytes.
    pub(super) fn coming_memory(&self) -> u64 {
        self.lock().coming_memory
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.waiting.clear();
    }
}

/// A place for a workspace that requests so much memory, waited for in order for so long.
pub(super) async fn enter(
    shared: &Arc<Shared>,
    requested: u64,
    patience: Duration,
) -> Result<Place, WorkspaceError> {
    let memory = Memory::of_host();
    let most = memory.total.saturating_sub(shared.memory_floor(&memory));
    if requested > most {
        return Err(WorkspaceError::Unfit {
            object: "requests",
            field: "memory".into(),
            reason: format!(
                "is more than the {} that this host has to give",
                ByteSize::b(most).display().iec()
            ),
        });
    }
    let (mut coming, turn) = {
        let all = shared.lock();
        let mut queue = shared.admission.lock();
        if queue.closed {
            return Err(WorkspaceError::Moved);
        }
        let shortage = match shortage(shared, &queue, &all, &memory, requested) {
            None if queue.waiting.is_empty() => {
                return Ok(queue.place(shared, requested));
            }
            None => Shortage::Turn,
            Some(shortage) => shortage,
        };
        if patience.is_zero() || queue.waiting.len() >= MOST_WAITING {
            let waiting = queue.waiting.len();
            return Err(WorkspaceError::Full { shortage, waiting });
        }
        let (place, coming) = oneshot::channel();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back(Waiter {
            number,
            requested,
            place,
        });
        (coming, Turn { shared, number })
    };
    let waited = timeout(patience, async {
        let mut looks = interval_at(Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                place = &mut coming => return place,
                _ = looks.tick() => {
                    let first = shared.admission.lock().waiting.front().map(|first| first.number);
                    if first == Some(turn.number) {
                        admit(shared);
                    }
                }
            }
        }
    })
    .await;
    drop(turn);
    match waited {
        Ok(Ok(place)) => Ok(place),
        // The provider is ending.
        Ok(Err(_)) => Err(WorkspaceError::Moved),
        Err(_) => {
            // It may have come just now.
            coming.close();
            if let Ok(place) = coming.try_recv() {
                return Ok(place);
            }
            let all = shared.lock();
            let queue = shared.admission.lock();
            let memory = Memory::of_host();
            let found = shortage(shared, &queue, &all, &memory, requested);
            Err(WorkspaceError::Full {
                shortage: found.unwrap_or(Shortage::Turn),
                waiting: queue.waiting.len(),
            })
        }
    }
}

/// Lets in whoever can be, in order.
pub(super) fn admit(shared: &Arc<Shared>) {
    loop {
        if shared.admission.lock().waiting.is_empty() {
            return;
        }
        let memory = Memory::of_host();
        let (place, waiter) = {
            let all = shared.lock();
            let mut queue = shared.admission.lock();
            let Some(first) = queue.waiting.front() else {
                return;
            };
            let requested = first.requested;
            if shortage(shared, &queue, &all, &memory, requested).is_some() {
                return;
            }
            let Some(waiter) = queue.waiting.pop_front() else {
                return;
            };
            (queue.place(shared, requested), waiter)
        };
        if let Err(mut place) = waiter.place.send(place) {
            // Its request has just gone away; the next one is looked at here.
            place.give_back();
        }
    }
}

impl Queue {
    fn place(&mut self, shared: &Arc<Shared>, requested: u64) -> Place {
        self.coming += 1;
        self.coming_memory += requested.max(LEAST);
        self.coming_promised += requested;
        Place {
            shared: Some(Arc::clone(shared)),
            requested,
        }
    }
}

/// What there is too little of, if there is, for one more beside `there` and those that are coming.
fn shortage(
    shared: &Shared,
    queue: &Queue,
    all: &BTreeMap<WorkspaceId, Arc<Workspace>>,
    memory: &Memory,
    requested: u64,
) -> Option<Shortage> {
    let count = all.len() + queue.coming;
    if let Some(most) = shared.config.max_workspaces
        && count >= usize::try_from(most).unwrap_or(usize::MAX)
    {
        return Some(Shortage::Places { most });
    }
    let floor = shared.memory_floor(memory);
    if requested > 0 {
        let promised = promised(all.values()) + queue.coming_promised;
        let most = memory.total.saturating_sub(floor);
        if promised.saturating_add(requested) > most {
            return Some(Shortage::Promised {
                promised: ByteSize::b(promised),
                requested: ByteSize::b(requested),
                most: ByteSize::b(most),
            });
        }
    }
    memory.shortage(floor, queue.coming_memory, requested.max(LEAST))
}
