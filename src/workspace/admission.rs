//! Who may be made now: places for workspaces, and memory for them. Who has to wait is let in in turn: one of
//! each owner, and those of one owner in order.
//!
//! A create takes a place, which counts until the workspace is among the others, or is not made after all.
//! Nobody gets past those who wait: while there are any, who does not want to wait is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytesize::ByteSize;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::memory::Memory;
use super::{Shared, Workspace, WorkspaceError, WorkspaceId, promised};
use crate::turns::Turns;

/// Requests that wait at once: of all whose tokens have no name, and of each name.
const MOST_WAITING: usize = 1024;
const MOST_WAITING_OF_NAME: usize = 256;

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
    /// Room to wait: so many of its owner's do already.
    Waiting {
        /// How many may.
        most: usize,
    },
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
            Self::Waiting { most } => write!(
                f,
                "{most} creates of this owner wait for a place, which is as many as may"
            ),
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
    waiting: Turns<Waiter>,
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
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
        shared.admission.lock().forget(self.requested);
        Some(shared)
    }

    /// Becomes that of `workspace`, which is among all from then on: at no moment both count, or none.
    pub(super) fn fill(mut self, workspace: &Arc<Workspace>) {
        let Some(shared) = self.shared.take() else {
            return;
        };
        {
            let mut all = shared.lock();
            all.insert(workspace.id().clone(), Arc::clone(workspace));
            shared.admission.lock().forget(self.requested);
        }
        // What it was taken to need may be more than it does.
        admit(&shared);
    }
}

/// Takes its number out of the queue when its request goes away.
struct Turn<'s> {
    shared: &'s Arc<Shared>,
    number: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.admission.lock().waiting.remove(self.number);
    }
}

impl Admission {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Those that are being made.
    pub(super) fn coming(&self) -> Coming {
        let queue = self.lock();
        Coming {
            count: queue.coming,
            memory: queue.coming_memory,
            promised: queue.coming_promised,
        }
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.waiting.clear();
    }
}

/// Workspaces that are being made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coming {
    pub(super) count: usize,
    /// For all of them, in bytes.
    pub(super) memory: u64,
    /// What of that is requested.
    pub(super) promised: u64,
}

/// A place for a workspace of this owner that requests so much memory, waited for in turn for so long.
pub(super) async fn enter(
    shared: &Arc<Shared>,
    owner: Option<&str>,
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
        let waiting = queue.waiting.len();
        if patience.is_zero() {
            return Err(WorkspaceError::Full { shortage, waiting });
        }
        let most = owner.map_or(MOST_WAITING, |_| MOST_WAITING_OF_NAME);
        if queue.waiting.len_of(owner) >= most {
            let shortage = Shortage::Waiting { most };
            return Err(WorkspaceError::Full { shortage, waiting });
        }
        let (place, coming) = oneshot::channel();
        let number = queue.waiting.push(owner, Waiter { requested, place });
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
                    let first = shared.admission.lock().waiting.first().map(|(number, _)| number);
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

/// Lets in whoever can be, in turn.
pub(super) fn admit(shared: &Arc<Shared>) {
    loop {
        if shared.admission.lock().waiting.is_empty() {
            return;
        }
        let memory = Memory::of_host();
        let (place, waiter) = {
            let all = shared.lock();
            let mut queue = shared.admission.lock();
            let Some((_, first)) = queue.waiting.first() else {
                return;
            };
            let requested = first.requested;
            if shortage(shared, &queue, &all, &memory, requested).is_some() {
                return;
            }
            let Some(waiter) = queue.waiting.pop() else {
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
    /// Counts a place out.
    fn forget(&mut self, requested: u64) {
        self.coming -= 1;
        self.coming_memory -= requested.max(LEAST);
        self.coming_promised -= requested;
    }

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
