//! Connections that have not said what they want: until the header of a request is whole, also
//! between two requests.
//!
//! One whose request waits for a slot is here as well, behind those that have said nothing.
//!
//! They hold no slot of those that are served, or a client that connects and says nothing would keep
//! everybody else out. There is room for so many: whoever comes then takes the place of the one that
//! has waited longest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// Where they wait.
#[derive(Debug)]
pub(super) struct Entrance {
    room: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// The one that has waited longest is the first.
    places: BTreeMap<u64, CancellationToken>,
}

/// A connection, as the entrance knows it.
#[derive(Debug)]
pub(super) struct Guest {
    entrance: Arc<Entrance>,
    /// None while a request of it is served.
    place: Mutex<Option<u64>>,
    shown_out: CancellationToken,
}

/// A connection's turn to be served, until this is dropped; then it waits at the entrance again.
#[derive(Debug)]
pub(super) struct Turn {
    guest: Weak<Guest>,
    _slot: OwnedSemaphorePermit,
}

impl Entrance {
    pub(super) fn new(room: usize) -> Arc<Self> {
        Arc::new(Self {
            room: room.max(1),
            waiting: Mutex::default(),
        })
    }

    /// Lets a connection in.
    pub(super) fn admit(self: &Arc<Self>) -> Arc<Guest> {
        let guest = Guest {
            entrance: Arc::clone(self),
            place: Mutex::new(None),
            shown_out: CancellationToken::new(),
        };
        guest.wait();
        Arc::new(guest)
    }
}

impl Guest {
    fn wait(&self) {
        let mut waiting = lock(&self.entrance.waiting);
        if waiting.places.len() >= self.entrance.room
            && let Some((_, longest)) = waiting.places.pop_first()
        {
            longest.cancel();
        }
        let place = waiting.next;
        waiting.next += 1;
        waiting.places.insert(place, self.shown_out.clone());
        *lock(&self.place) = Some(place);
    }

    /// Gives up its place for one behind all others, unless it was shown out.
    pub(super) fn wait_anew(&self) {
        if self.leave() {
            self.wait();
        }
    }

    /// Its place is free for others; whether it still had one.
    fn leave(&self) -> bool {
        let mut waiting = lock(&self.entrance.waiting);
        let place = lock(&self.place).take();
        place.is_some_and(|place| waiting.places.remove(&place).is_some())
    }

    /// Begins its turn with this slot; none if it was shown out before.
    pub(super) fn begin(self: &Arc<Self>, slot: OwnedSemaphorePermit) -> Option<Turn> {
        self.leave().then(|| Turn {
            guest: Arc::downgrade(self),
            _slot: slot,
        })
    }

    /// Waits until it has to go because others came.
    pub(super) async fn shown_out(&self) {
        self.shown_out.cancelled().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // A connection that has ended, or that others went on with, comes back no more.
        if let Some(guest) = self.guest.upgrade() {
            guest.wait();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn who_has_waited_longest_makes_room_for_who_comes() {
        let entrance = Entrance::new(2);
        let guests: Vec<_> = (0..3).map(|_| entrance.admit()).collect();
        let out = |n: usize| guests[n].shown_out.is_cancelled();
        assert_eq!([out(0), out(1), out(2)], [true, false, false]);
        assert!(!guests[0].leave() && guests[1].leave());
        let _fourth = entrance.admit();
        assert!(!out(2));
    }

    #[test]
    fn who_is_served_is_not_shown_out_and_waits_anew_after_that() {
        let entrance = Entrance::new(1);
        let slots = Arc::new(Semaphore::new(1));
        let served = entrance.admit();
        let slot = Arc::clone(&slots).try_acquire_owned().unwrap();
        let turn = served.begin(slot).unwrap();
        let other = entrance.admit();
        assert!(!served.shown_out.is_cancelled() && !other.shown_out.is_cancelled());
        assert_eq!(slots.available_permits(), 0);
        drop(turn);
        assert_eq!(slots.available_permits(), 1);
        assert!(other.shown_out.is_cancelled());
    }
}
