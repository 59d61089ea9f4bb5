//! What happens to a workspace, told to whoever listens, and kept for a while for who comes back.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

use super::Discarded;
use super::execs::{ExecId, ExecRecord};
use super::lease::Why;
use super::snapshots::{SnapshotId, Way};

/// Events that are kept.
const KEPT: usize = 1000;

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// A command runs.
    ExecStarted(Box<ExecRecord>),
    /// A command ended.
    ExecEnded(Box<ExecRecord>),
    /// A limit ended a command or made it fail; the event of its end comes next.
    LimitHit {
        /// The field of `limits`.
        limit: &'static str,
        /// The command.
        exec: ExecId,
    },
    /// The workspace is in the state right after setup again.
    Reset {
        /// Digest of the layer that it is on.
        layer: String,
    },
    /// What a reset discarded is gone.
    Disposed {
        /// The generation that began then.
        generation: u64,
        /// What that was.
        #[serde(flatten)]
        discarded: Discarded,
    },
    /// A snapshot of it was taken.
    Snapshotted {
        /// Which.
        snapshot: SnapshotId,
        /// How it came about.
        way: Way,
    },
    /// Its processes have ended, and nothing is started any more until it is reset.
    Fenced {
        /// What it wrote until then.
        snapshot: SnapshotId,
    },
    /// Its processes stand still.
    Paused,
    /// They go on.
    Resumed,
    /// New commits of a repository came in.
    Fetched {
        /// The repository's path in the workspace.
        path: String,
        /// What the workspace had of what was asked for, if it had any.
        old_commit: Option<String>,
        /// What it has now.
        new_commit: String,
    },
    /// A commit of all that was changed in a repository was made by request.
    Committed {
        /// The repository's path in the workspace.
        path: String,
        /// The commit.
        commit: String,
    },
    /// Commits of a repository went to its upstream.
    Pushed {
        /// The repository's path in the workspace.
        path: String,
        /// The upstream's branch.
        branch: String,
        /// Where that is now.
        new_commit: String,
    },
    /// Its time to live began anew.
    Renewed {
        /// When it ends, in seconds since 1970.
        expires: f64,
    },
    /// The workspace is no more; nothing comes after this.
    Removed {
        /// Why.
        why: Why,
    },
}

/// Where an event is in its row: which row, as there is a new one with each start of the provider,
/// and the number in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventId {
    row: u64,
    number: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.row, self.number)
    }
}

impl FromStr for EventId {
    type Err = InvalidEventId;

    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        let (row, number) = text.split_once('-').ok_or(InvalidEventId)?;
        Ok(Self {
            row: u64::from_str_radix(row, 16).map_err(|_| InvalidEventId)?,
            number: number.parse().map_err(|_| InvalidEventId)?,
        })
    }
}

/// The text is no event id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event id is what the 'id' of an earlier event was")]
pub struct InvalidEventId;

/// An event, with when and where.
#[derive(Debug, Clone)]
pub struct Told {
    /// Its id.
    pub id: EventId,
    /// Seconds since 1970.
    pub time: f64,
    /// What happened.
    pub event: Event,
}

/// What is told to somebody who asks for what came after some event.
#[derive(Debug, Clone)]
pub enum Next {
    /// The one after it.
    Event(Told),
    /// Some that are not kept any more; the one before the oldest that is.
    Missed(EventId),
    /// None so far.
    Pending,
    /// None any more.
    End,
}

/// The events of one workspace.
#[derive(Debug)]
pub struct Events {
    row: u64,
    kept: Mutex<Kept>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Told>,
    /// The number of the next one; the first is 1.
    next: u64,
    closed: bool,
}

impl Default for Events {
    fn default() -> Self {
        let id = uuid::Uuid::now_v7().as_u64_pair().0;
        Self {
            row: id,
            kept: Mutex::new(Kept {
                events: VecDeque::new(),
                next: 1,
                closed: false,
            }),
            changed: watch::Sender::new(()),
        }
    }
}

impl Events {
    /// Tells an event.
    pub fn tell(&self, event: Event) {
        {
            let mut kept = self.kept();
            let id = EventId {
                row: self.row,
                number: kept.next,
            };
            kept.next += 1;
            if kept.events.len() == KEPT {
                kept.events.pop_front();
            }
            kept.events.push_back(Told {
                id,
                time: crate::clock::precise(),
                event,
            });
        }
        self.changed.send_replace(());
    }

    /// Tells no more.
    pub fn close(&self) {
        self.kept().closed = true;
        self.changed.send_replace(());
    }

    /// Tells when there is another one, or will be none.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The latest one, or what stands for it before the first.
    #[must_use]
    pub fn latest(&self) -> EventId {
        EventId {
            row: self.row,
            number: self.kept().next - 1,
        }
    }

    /// What stands before the first one.
    #[must_use]
    pub fn beginning(&self) -> EventId {
        EventId {
            row: self.row,
            number: 0,
        }
    }

    /// What came after `id`.
    #[must_use]
    pub fn after(&self, id: EventId) -> Next {
        let kept = self.kept();
        let first = kept.events.front().map_or(kept.next, |told| told.id.number);
        if id.row != self.row || id.number >= kept.next || id.number + 1 < first {
            return Next::Missed(EventId {
                row: self.row,
                number: first - 1,
            });
        }
        let index = usize::try_from(id.number + 1 - first).unwrap_or(usize::MAX);
        match kept.events.get(index) {
            Some(told) => Next::Event(told.clone()),
            None if kept.closed => Next::End,
            None => Next::Pending,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_goes_on_or_is_told_that_something_was_missed() {
        let events = Events::default();
        let start = events.latest();
        assert!(matches!(events.after(start), Next::Pending));
        for _ in 0..KEPT + 10 {
            events.tell(Event::Removed { why: Why::Asked });
        }
        let Next::Missed(first) = events.after(start) else {
            panic!("ten are gone");
        };
        let mut at = first;
        let mut count = 0;
        while let Next::Event(told) = events.after(at) {
            at = told.id.to_string().parse().expect("its own spelling");
            count += 1;
        }
        assert_eq!((count, at), (KEPT, events.latest()));
        let other = Events::default();
        assert!(matches!(other.after(at), Next::Missed(_)));
        for number in [at.number + 1, u64::MAX] {
            let never_told = EventId { number, ..at };
            assert!(matches!(events.after(never_told), Next::Missed(_)));
        }
        for bad in ["", "-", "x-1", "1", "1-", "1-x", "1-99999999999999999999"] {
            assert!(bad.parse::<EventId>().is_err(), "{bad:?}");
        }
    }
}
