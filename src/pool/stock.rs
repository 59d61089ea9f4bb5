//! A stock of things that take a while to make: how many are kept ready, of which kind, and who gets one.
//!
//! Whoever takes one that is ready has it at once; others are served in the order in which they came. What
//! is made for the stock alone waits for all of them, and until those who were served have done what they
//! wanted it for. Of each kind as many are kept as were lately wanted at once, within bounds; what nobody
//! wants any more is put away.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How often it is looked for what nobody wants any more.
const REVIEW: Duration = Duration::from_secs(5);

/// Makes what a stock has, and puts away what it has too much of.
pub trait Maker: fmt::Debug + Send + Sync + 'static {
    /// What things are told apart by.
    type Kind: fmt::Debug + Clone + PartialEq + Send + Sync;
    /// A thing.
    type Item: fmt::Debug + Send;
    /// Why one could not be made.
    type Error: fmt::Debug + std::error::Error + Send;

    /// Makes one.
    fn make(
        &self,
        kind: Self::Kind,
    ) -> impl Future<Output = Result<Self::Item, Self::Error>> + Send;

    /// Whether one that is ready can still be given to somebody.
    fn is_sound(&self, item: &Self::Item) -> bool;

    /// Puts away one that nobody wants.
    fn put_away(&self, item: Self::Item) -> impl Future<Output = ()> + Send;
}

/// How much a stock has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Of the preferred kind, ready at the least.
    pub min: usize,
    /// Of one kind, ready at the most.
    pub max: usize,
    /// Of all kinds together.
    pub total: usize,
    /// That are made at once.
    pub makers: usize,
}

/// A stock; clones share it.
pub struct Stock<M: Maker> {
    shared: Arc<Shared<M>>,
}

struct Shared<M: Maker> {
    maker: M,
    bounds: Bounds,
    shelves: Mutex<Shelves<M>>,
}

struct Shelves<M: Maker> {
    all: Vec<Shelf<M>>,
    preferred: Option<M::Kind>,
    /// How many are being made.
    making: usize,
    /// How many have one that they are busy with.
    served: usize,
    /// Counts those who had to wait.
    arrivals: u64,
    closed: bool,
}

/// What there is of one kind.
struct Shelf<M: Maker> {
    kind: M::Kind,
    ready: VecDeque<M::Item>,
    making: usize,
    waiting: VecDeque<Customer<M>>,
    /// How many are to be ready.
    target: usize,
    /// How many were taken since the last review.
    taken: usize,
}

struct Customer<M: Maker> {
    arrival: u64,
    served: oneshot::Sender<Result<M::Item, M::Error>>,
}

/// What a stock has now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Level {
    /// Ready.
    pub ready: usize,
    /// Being made.
    pub making: usize,
    /// Waited for.
    pub waiting: usize,
}

/// One from the stock.
#[derive(Debug)]
pub struct Taken<M: Maker> {
    /// It.
    pub item: M::Item,
    /// How long it had to be waited for.
    pub waited: Duration,
    /// To be dropped when what is made for the stock is in nobody's way any more.
    pub service: Service<M>,
}

/// Somebody is being served: nothing is made for the stock alone meanwhile, as that would take the processors
/// just when they are wanted.
pub struct Service<M: Maker> {
    shared: Arc<Shared<M>>,
}

impl<M: Maker> Service<M> {
    fn begin(shared: &Arc<Shared<M>>, shelves: &mut Shelves<M>) -> Self {
        shelves.served += 1;
        Self {
            shared: Arc::clone(shared),
        }
    }
}

impl<M: Maker> Drop for Service<M> {
    fn drop(&mut self) {
        let mut shelves = self.shared.lock();
        shelves.served -= 1;
        self.shared.fill(&mut shelves);
    }
}

impl<M: Maker> fmt::Debug for Service<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

impl<M: Maker> Stock<M> {
    /// An empty one.
    pub fn new(maker: M, bounds: Bounds) -> Self {
        let shared = Arc::new(Shared {
            maker,
            bounds,
            shelves: Mutex::new(Shelves {
                all: Vec::new(),
                preferred: None,
                making: 0,
                served: 0,
                arrivals: 0,
                closed: false,
            }),
        });
        tokio::spawn(review(Arc::downgrade(&shared)));
        Self { shared }
    }

    /// Keeps some of this kind ready from now on, whether they are taken or not; of the one before no more.
    pub fn prefer(&self, kind: &M::Kind) {
        let mut shelves = self.shared.lock();
        if shelves.preferred.as_ref() == Some(kind) {
            return;
        }
        shelves.preferred = Some(kind.clone());
        let min = self.shared.bounds.min;
        let shelf = shelves.of(kind);
        shelf.target = shelf.target.max(min);
        self.shared.fill(&mut shelves);
    }

    /// Takes one, that is ready or is made.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub async fn take(&self, kind: &M::Kind) -> Result<Taken<M>, M::Error> {
        let started = Instant::now();
        let (served, made) = oneshot::channel();
        let mut unsound = Vec::new();
        let at_once = {
            let mut shelves = self.shared.lock();
            let found = shelves
                .of(kind)
                .take_ready(&self.shared.maker, &mut unsound);
            if found.is_none() {
                shelves.arrivals += 1;
                let arrival = shelves.arrivals;
                let shelf = shelves.of(kind);
                shelf.target = (shelf.target * 2).max(1).min(self.shared.bounds.max);
                shelf.waiting.push_back(Customer { arrival, served });
            }
            let at_once = found.map(|item| Taken {
                item,
                waited: Duration::ZERO,
                service: Service::begin(&self.shared, &mut shelves),
            });
            self.shared.fill(&mut shelves);
            at_once
        };
        for item in unsound {
            self.shared.put_away(item);
        }
        if let Some(taken) = at_once {
            return Ok(taken);
        }
        let item = match made.await {
            Ok(made) => made?,
            // Who makes it ended without a word, which a panic does: it is made here.
            Err(_) => self.shared.maker.make(kind.clone()).await?,
        };
        Ok(Taken {
            item,
            waited: started.elapsed(),
            service: Service::begin(&self.shared, &mut self.shared.lock()),
        })
    }

    /// What there is.
    #[must_use]
    pub fn level(&self) -> Level {
        let shelves = self.shared.lock();
        let mut level = Level::default();
        for shelf in &shelves.all {
            level.ready += shelf.ready.len();
            level.making += shelf.making;
            level.waiting += shelf.waiting.len();
        }
        level
    }

    /// Puts everything away, and keeps nothing ready any more.
    pub async fn close(&self) {
        let items: Vec<_> = {
            let mut shelves = self.shared.lock();
            shelves.closed = true;
            let all = shelves.all.iter_mut();
            all.flat_map(|shelf| shelf.ready.drain(..)).collect()
        };
        for item in items {
            self.shared.maker.put_away(item).await;
        }
    }
}

impl<M: Maker> Shelves<M> {
    fn of(&mut self, kind: &M::Kind) -> &mut Shelf<M> {
        let place = self.all.iter().position(|shelf| shelf.kind == *kind);
        let place = place.unwrap_or_else(|| {
            self.all.push(Shelf {
                kind: kind.clone(),
                ready: VecDeque::new(),
                making: 0,
                waiting: VecDeque::new(),
                target: 0,
                taken: 0,
            });
            self.all.len() - 1
        });
        &mut self.all[place]
    }

    /// The kind that is to be made next: what somebody waits for, the longest first, else what there is too
    /// little of.
    fn next(&self, bounds: Bounds) -> Option<usize> {
        if self.making >= bounds.makers {
            return None;
        }
        let all = || self.all.iter().enumerate();
        let longest = all()
            .filter_map(|(place, shelf)| Some((shelf.waiting.get(shelf.making)?.arrival, place)))
            .min();
        if let Some((_, place)) = longest {
            return Some(place);
        }
        let there: usize = self.all.iter().map(|s| s.ready.len() + s.making).sum();
        if self.closed || self.served > 0 || there >= bounds.total {
            return None;
        }
        let lacking = |shelf: &Shelf<M>| {
            let coming = shelf.making.saturating_sub(shelf.waiting.len());
            shelf.target.saturating_sub(shelf.ready.len() + coming)
        };
        all()
            .filter(|(_, shelf)| lacking(shelf) > 0)
            .max_by_key(|(_, shelf)| lacking(shelf))
            .map(|(place, _)| place)
    }
}

impl<M: Maker> Shelf<M> {
    fn take_ready(&mut self, maker: &M, unsound: &mut Vec<M::Item>) -> Option<M::Item> {
        self.taken += 1;
        while let Some(item) = self.ready.pop_front() {
            if maker.is_sound(&item) {
                return Some(item);
            }
            unsound.push(item);
        }
        None
    }
}

impl<M: Maker> Shared<M> {
    fn lock(&self) -> MutexGuard<'_, Shelves<M>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has as many made as are to be, at once.
    fn fill(self: &Arc<Self>, shelves: &mut Shelves<M>) {
        while let Some(place) = shelves.next(self.bounds) {
            shelves.making += 1;
            let shelf = &mut shelves.all[place];
            shelf.making += 1;
            let (shared, kind) = (Arc::clone(self), shelf.kind.clone());
            tokio::spawn(async move {
                // Also where making it panics.
                let mut making = Making {
                    shared,
                    kind,
                    made: None,
                };
                making.made = Some(making.shared.maker.make(making.kind.clone()).await);
            });
        }
    }

    fn put_away(self: &Arc<Self>, item: M::Item) {
        let shared = Arc::clone(self);
        tokio::spawn(async move { shared.maker.put_away(item).await });
    }
}

/// One that is being made.
struct Making<M: Maker> {
    shared: Arc<Shared<M>>,
    kind: M::Kind,
    made: Option<Result<M::Item, M::Error>>,
}

impl<M: Maker> Drop for Making<M> {
    fn drop(&mut self) {
        let shared = &self.shared;
        let mut shelves = shared.lock();
        shelves.making -= 1;
        let closed = shelves.closed;
        let shelf = shelves.of(&self.kind);
        shelf.making -= 1;
        let mut made = self.made.take();
        // Who has gone meanwhile takes nothing.
        while let Some(result) = made.take() {
            match shelf.waiting.pop_front() {
                Some(customer) => made = customer.served.send(result).err(),
                None => match result {
                    Ok(item) if closed => shared.put_away(item),
                    Ok(item) => shelf.ready.push_back(item),
                    Err(error) => {
                        tracing::warn!(%error, "cannot make a pristine sandbox ahead of time");
                        // It is tried again when somebody wants one.
                        shelf.target = 0;
                    }
                },
            }
        }
        shared.fill(&mut shelves);
    }
}

/// Looks again and again how many of each kind are to be ready, for as long as there is a stock.
async fn review<M: Maker>(shared: Weak<Shared<M>>) {
    let mut times = tokio::time::interval(REVIEW);
    times.tick().await;
    loop {
        times.tick().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let surplus = {
            let mut shelves = shared.lock();
            let surplus = shelves.reduce(shared.bounds);
            // What could not be made a while ago may be to be had now.
            shared.fill(&mut shelves);
            surplus
        };
        for item in surplus {
            shared.put_away(item);
        }
    }
}

impl<M: Maker> Shelves<M> {
    /// Halves how many are to be ready of each kind, unless so many were taken since this was done last;
    /// what is too many then.
    fn reduce(&mut self, bounds: Bounds) -> Vec<M::Item> {
        let mut surplus = Vec::new();
        for shelf in &mut self.all {
            let least = match &self.preferred {
                Some(preferred) if *preferred == shelf.kind => bounds.min,
                _ => 0,
            };
            let wanted = shelf.taken.min(bounds.max);
            shelf.target = shelf.target.min(wanted.max(shelf.target / 2)).max(least);
            shelf.taken = 0;
            while shelf.ready.len() > shelf.target {
                surplus.extend(shelf.ready.pop_front());
            }
        }
        self.all
            .retain(|shelf| shelf.target > 0 || shelf.making > 0 || !shelf.waiting.is_empty());
        surplus
    }
}

impl<M: Maker> Clone for Stock<M> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<M: Maker> fmt::Debug for Stock<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stock").field(&self.level()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::sync::Semaphore;

    /// Makes numbers, one for each permit.
    #[derive(Debug, Clone)]
    struct Numbers {
        leave: Arc<Semaphore>,
        made: Arc<AtomicU64>,
        put_away: Arc<Mutex<Vec<u64>>>,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("none is made of the kind {0}")]
    struct NotMade(&'static str);

    impl Maker for Numbers {
        type Kind = &'static str;
        type Item = u64;
        type Error = NotMade;

        async fn make(&self, kind: &'static str) -> Result<u64, NotMade> {
            let number = self.made.fetch_add(1, Ordering::Relaxed);
            self.leave.acquire().await.expect("never closed").forget();
            if kind == "broken" {
                return Err(NotMade(kind));
            }
            Ok(number)
        }

        fn is_sound(&self, item: &u64) -> bool {
            *item != 1
        }

        async fn put_away(&self, item: u64) {
            self.put_away.lock().expect("nobody panics").push(item);
        }
    }

    const BOUNDS: Bounds = Bounds {
        min: 1,
        max: 4,
        total: 6,
        makers: 2,
    };

    fn numbers() -> (Numbers, Stock<Numbers>) {
        let numbers = Numbers {
            leave: Arc::new(Semaphore::new(0)),
            made: Arc::default(),
            put_away: Arc::default(),
        };
        (numbers.clone(), Stock::new(numbers, BOUNDS))
    }

    /// Lets everything go on that can, until there is so much.
    async fn until(stock: &Stock<Numbers>, level: Level) {
        while stock.level() != level {
            tokio::task::yield_now().await;
        }
    }

    fn level(ready: usize, making: usize, waiting: usize) -> Level {
        Level {
            ready,
            making,
            waiting,
        }
    }

    #[tokio::test]
    async fn who_waits_is_served_in_turn_and_before_the_stock_is() {
        let (numbers, stock) = numbers();
        stock.prefer(&"a");
        until(&stock, level(0, 1, 0)).await;
        let takers: Vec<_> = ["a", "b", "a"]
            .into_iter()
            .map(|kind| {
                let stock = stock.clone();
                tokio::spawn(async move { stock.take(&kind).await.expect("made").item })
            })
            .collect();
        // Two are made at once.
        until(&stock, level(0, 2, 3)).await;
        numbers.leave.add_permits(3);
        let mut served = Vec::new();
        for taker in takers {
            served.push(taker.await.expect("no panic"));
        }
        assert!(served[0] < served[2], "{served:?}");
        // The first ones that were made, though the stock is to have some as well.
        served.sort_unstable();
        assert_eq!(served, [0, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_are_ready_as_were_wanted_and_what_nobody_wants_is_put_away() {
        let (numbers, stock) = numbers();
        numbers.leave.add_permits(1000);
        stock.prefer(&"a");
        until(&stock, level(1, 0, 0)).await;
        let first = stock.take(&"a").await.expect("ready");
        assert_eq!((first.item, first.waited), (0, Duration::ZERO));
        drop(first);
        until(&stock, level(1, 0, 0)).await;
        // Number 1 is not sound: it is put away, and another is made.
        assert_eq!(stock.take(&"a").await.expect("made").item, 2);
        until(&stock, level(2, 0, 0)).await;
        assert_eq!(*numbers.put_away.lock().expect("nobody panics"), [1]);
        for _ in 0..3 {
            let together: Vec<_> = (0..8)
                .map(|_| {
                    let stock = stock.clone();
                    tokio::spawn(async move { stock.take(&"a").await.expect("made") })
                })
                .collect();
            for one in together {
                one.await.expect("no panic");
            }
        }
        until(&stock, level(BOUNDS.max, 0, 0)).await;
        stock.take(&"b").await.expect("made");
        until(&stock, level(BOUNDS.max + 1, 0, 0)).await;
        tokio::time::sleep(REVIEW * 6).await;
        until(&stock, level(BOUNDS.min, 0, 0)).await;
        stock.close().await;
        assert_eq!(stock.level(), Level::default());
    }

    #[tokio::test]
    async fn nothing_is_made_for_the_stock_while_somebody_is_served() {
        let (numbers, stock) = numbers();
        stock.prefer(&"a");
        numbers.leave.add_permits(1);
        until(&stock, level(1, 0, 0)).await;
        let first = stock.take(&"a").await.expect("ready");
        assert_eq!(stock.level(), Level::default());
        // Who waits is not made to wait longer.
        let second = {
            let stock = stock.clone();
            tokio::spawn(async move { stock.take(&"a").await.expect("made") })
        };
        until(&stock, level(0, 1, 1)).await;
        numbers.leave.add_permits(1);
        let second = second.await.expect("no panic");
        assert_eq!(stock.level(), Level::default());
        drop(first);
        assert_eq!(stock.level(), Level::default());
        drop(second);
        assert_eq!(stock.level(), level(0, 2, 0));
    }

    #[tokio::test]
    async fn what_cannot_be_made_is_told_to_who_waits_and_not_tried_on_and_on() {
        let (numbers, stock) = numbers();
        numbers.leave.add_permits(1000);
        stock.prefer(&"broken");
        until(&stock, Level::default()).await;
        assert_eq!(numbers.leave.available_permits(), 999);
        stock.take(&"broken").await.expect_err("none is made");
        until(&stock, Level::default()).await;
        stock.take(&"a").await.expect("made");
    }
}
