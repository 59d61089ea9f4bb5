//! Turns: who waits for something that there is too little of gets it in turn, one of each owner after the
//! other, and those of one owner in the order in which they came.
//!
//! So an owner that asks for much waits for itself. An owner is the name of a token; all who have none are
//! one. What somebody has for long does not all become one owner's either: a gate keeps some for others.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// The name of an owner, if it has one.
type Owner = Option<Arc<str>>;

/// What is waited with, by owner.
#[derive(Debug)]
pub struct Turns<T> {
    /// Owners of whom somebody waits, the one whose turn is next first.
    owners: VecDeque<Line<T>>,
    next: u64,
}

/// Those of one owner.
#[derive(Debug)]
struct Line<T> {
    owner: Owner,
    waiting: VecDeque<(u64, T)>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            owners: VecDeque::new(),
            next: 0,
        }
    }
}

impl<T> Turns<T> {
    /// Has one more wait; its number. An owner of whom nobody waited has its turn after all others.
    pub fn push(&mut self, owner: Option<&str>, item: T) -> u64 {
        let number = self.next;
        self.next += 1;
        let place = self.place_of(owner).unwrap_or_else(|| {
            self.owners.push_back(Line {
                owner: owner.map(Arc::from),
                waiting: VecDeque::new(),
            });
            self.owners.len() - 1
        });
        self.owners[place].waiting.push_back((number, item));
        number
    }

    /// Whose turn is next, with the number.
    #[must_use]
    pub fn first(&self) -> Option<(u64, &T)> {
        let (number, item) = self.owners.front()?.waiting.front()?;
        Some((*number, item))
    }

    /// Takes that one; its owner has the next turn after all others.
    pub fn pop(&mut self) -> Option<T> {
        self.pop_of(|_| true).map(|(_, item)| item)
    }

    /// Takes the next one of an owner who may have a turn; its owner has the next turn after all others.
    fn pop_of(&mut self, may: impl Fn(&Owner) -> bool) -> Option<(Owner, T)> {
        let place = self.owners.iter().position(|line| may(&line.owner))?;
        let mut line = self.owners.remove(place)?;
        let (_, first) = line.waiting.pop_front()?;
        let owner = line.owner.clone();
        if !line.waiting.is_empty() {
            self.owners.push_back(line);
        }
        Some((owner, first))
    }

    /// Takes out one that waits no more. The turns of others stay.
    pub fn remove(&mut self, number: u64) {
        for line in &mut self.owners {
            line.waiting.retain(|(waiting, _)| *waiting != number);
        }
        self.owners.retain(|line| !line.waiting.is_empty());
    }

    /// Takes out all.
    pub fn clear(&mut self) {
        self.owners.clear();
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owners.iter().map(|line| line.waiting.len()).sum()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// How many wait of this owner.
    #[must_use]
    pub fn len_of(&self, owner: Option<&str>) -> usize {
        let place = self.place_of(owner);
        place.map_or(0, |place| self.owners[place].waiting.len())
    }

    fn place_of(&self, owner: Option<&str>) -> Option<usize> {
        let is_its = |line: &Line<T>| line.owner.as_deref() == owner;
        self.owners.iter().position(is_its)
    }
}

/// Lets so many in at once; who waits is let in in turn. Of what is free there is always some left for another
/// owner: nobody gets more than twice what is then left, and so two thirds of all if alone. Clones are the same
/// gate.
#[derive(Clone)]
pub struct Gate(Arc<Mutex<Inside>>);

/// Of those who wait none may be let in.
struct Inside {
    free: usize,
    /// How many each owner has, of those who have some.
    held: HashMap<Owner, usize>,
    waiting: Turns<oneshot::Sender<Pass>>,
}

impl Inside {
    /// Whether one more may be let in of this owner, who has that many.
    fn may_enter(free: usize, held: usize) -> bool {
        free.checked_sub(1)
            .is_some_and(|left| held == 0 || held < 2 * left)
    }

    /// Notes that one more of this owner is let in.
    fn let_in(&mut self, owner: Owner) {
        self.free -= 1;
        *self.held.entry(owner).or_default() += 1;
    }

    /// Notes that one of this owner is out.
    fn let_out(&mut self, owner: Owner) {
        self.free += 1;
        if let Entry::Occupied(mut held) = self.held.entry(owner) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }

    /// The next of those who wait that may be let in.
    fn next(&mut self) -> Option<(Owner, oneshot::Sender<Pass>)> {
        let (free, held) = (self.free, &self.held);
        let count = |owner: &Owner| held.get(owner).copied().unwrap_or(0);
        self.waiting
            .pop_of(|owner| Self::may_enter(free, count(owner)))
    }
}

/// One that was let in; the next one is when this is dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Option<Gate>,
    owner: Owner,
    waited: Duration,
}

impl Pass {
    /// How long it was waited for.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl Gate {
    /// One that lets `count` in.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new(Inside {
            free: count,
            held: HashMap::new(),
            waiting: Turns::default(),
        })))
    }

    /// Waits to be let in, in the turn that this call gets.
    pub fn enter(&self, owner: Option<&str>) -> impl Future<Output = Pass> + Send + use<> {
        let owner: Owner = owner.map(Arc::from);
        let entered = {
            let mut inside = self.lock();
            let held = inside.held.get(&owner).copied().unwrap_or(0);
            if Inside::may_enter(inside.free, held) {
                inside.let_in(owner.clone());
                Ok(self.pass(owner))
            } else {
                let (let_in, waiting) = oneshot::channel();
                inside.waiting.push(owner.as_deref(), let_in);
                Err(waiting)
            }
        };
        let began = Instant::now();
        async move {
            let waiting = match entered {
                Ok(pass) => return pass,
                Err(waiting) => waiting,
            };
            let pass = waiting.await;
            let waited = began.elapsed();
            match pass {
                Ok(mut pass) => {
                    pass.waited = waited;
                    pass
                }
                // Where the gate is gone there is nothing to wait for.
                Err(_) => Pass {
                    gate: None,
                    owner: None,
                    waited,
                },
            }
        }
    }

    fn pass(&self, owner: Owner) -> Pass {
        Pass {
            gate: Some(self.clone()),
            owner,
            waited: Duration::ZERO,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inside = self.lock();
        f.debug_struct("Gate")
            .field("free", &inside.free)
            .field("waiting", &inside.waiting.len())
            .finish()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Some(gate) = self.gate.take() else {
            return;
        };
        let mut inside = gate.lock();
        inside.let_out(self.owner.take());
        while let Some((owner, next)) = inside.next() {
            inside.let_in(owner.clone());
            if let Err(mut unwanted) = next.send(gate.pass(owner)) {
                // Nobody waits there any more. Let out here, where the lock is held.
                unwanted.gate = None;
                inside.let_out(unwanted.owner.take());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Those who wait, by the letter of their owner, in the order in which their turns come.
    fn order(mut turns: Turns<&'static str>) -> String {
        std::iter::from_fn(|| turns.pop()).collect()
    }

    fn lined_up(all: &[&'static str]) -> Turns<&'static str> {
        let mut turns = Turns::default();
        for name in all {
            turns.push(Some(&name[..1]), *name);
        }
        turns
    }

    #[test]
    fn owners_take_turns_and_each_ones_own_keep_their_order() {
        for (all, expected) in [
            (&["a1", "a2", "a3"][..], "a1a2a3"),
            (&["a1", "a2", "a3", "b1"], "a1b1a2a3"),
            (&["a1", "a2", "b1", "c1", "b2"], "a1b1c1a2b2"),
            (&[], ""),
        ] {
            assert_eq!(order(lined_up(all)), expected, "{all:?}");
        }
        let mut turns = Turns::default();
        turns.push(None, "-");
        turns.push(Some("a"), "a");
        turns.push(None, "=");
        assert_eq!((turns.len_of(None), turns.len_of(Some("a"))), (2, 1));
        assert_eq!(turns.len_of(Some("b")), 0);
        assert_eq!(order(turns), "-a=");
    }

    #[test]
    fn who_comes_later_waits_for_one_of_each_other_owner_at_most() {
        let mut turns = lined_up(&["a1", "a2", "a3", "b1", "b2", "b3"]);
        assert_eq!(turns.pop(), Some("a1"));
        turns.push(Some("c"), "c1");
        assert_eq!(order(turns), "b1a2c1b2a3b3");
    }

    #[test]
    fn who_goes_away_changes_no_other_ones_turn() {
        let mut turns = lined_up(&["a1", "b1", "a2"]);
        let (first, _) = turns.first().expect("somebody waits");
        turns.remove(first);
        assert_eq!(turns.first().map(|(_, name)| *name), Some("a2"));
        assert_eq!(turns.len(), 2);
        assert_eq!(order(turns), "a2b1");
        let mut turns = lined_up(&["a1", "b1"]);
        turns.remove(0);
        turns.remove(7);
        assert_eq!(order(turns), "b1");
    }

    #[tokio::test]
    async fn a_gate_lets_owners_in_in_turn() {
        let gate = Gate::new(3);
        let (first, second) = (gate.enter(Some("a")).await, gate.enter(Some("a")).await);
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        for name in ["a3", "a4", "b1"] {
            let (entering, told) = (gate.enter(Some(&name[..1])), told.clone());
            tokio::spawn(async move {
                let pass = entering.await;
                let _ = told.send((name, pass));
            });
        }
        drop(told);
        drop(first);
        let mut order = Vec::new();
        while let Some((name, pass)) = heard.recv().await {
            order.push(name);
            drop(pass);
        }
        // What is kept for others is there for b at once.
        assert_eq!(order, ["b1", "a3", "a4"]);
        drop(second);
        assert!(format!("{gate:?}").contains("free: 3"), "{gate:?}");
    }

    #[tokio::test]
    async fn no_owner_has_all_that_a_gate_lets_in_and_alone_it_has_two_thirds() {
        let gate = Gate::new(12);
        let enter = |owner: &str| {
            let mut entering = Box::pin(gate.enter(Some(owner)));
            let now = entering.as_mut().now_or_never();
            now.ok_or(entering)
        };
        let mut a: Vec<_> = (0..8).map(|_| enter("a").ok().expect("at once")).collect();
        let ninth = enter("a").expect_err("the others' are kept");
        // The first of an owner gets in as long as there is one, others while enough is left.
        let b: Vec<_> = (0..2).map(|_| enter("b").ok().expect("at once")).collect();
        let third = enter("b").expect_err("twice what is left");
        let c = enter("c").ok().expect("the first one");
        let (d, e) = (enter("d").ok().expect("the last one"), enter("e"));
        let e = e.expect_err("none is left");
        // One that is out lets in whom it may: the first of another owner before the third and the ninth.
        drop(a.pop());
        let e = e.await;
        drop((c, d, e));
        let third = third.await;
        drop((b, third));
        a.push(ninth.await);
        drop(a);
        assert!(format!("{gate:?}").contains("free: 12"), "{gate:?}");
        assert!(gate.lock().held.is_empty());
    }

    #[tokio::test]
    async fn a_pass_that_nobody_takes_is_the_next_ones() {
        let gate = Gate::new(1);
        let pass = gate.enter(None).await;
        let (gone, waiting) = (gate.enter(None), gate.enter(None));
        drop(gone);
        drop(pass);
        drop(waiting.await);
        // One that is given and not taken either.
        let pass = gate.enter(None).await;
        let given = gate.enter(None);
        drop(pass);
        drop(given);
        drop(gate.enter(None).await);
        assert!(format!("{gate:?}").contains("free: 1"), "{gate:?}");
    }
}
