//! What a provider counts while it works: plain numbers, each from the start of the process on.
//!
//! Whoever does a thing counts it here, without knowing who reads; a front end shows the numbers in
//! its own format. Counting takes no lock that is held for longer than an addition.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What was done, how often, and how long it took.
#[derive(Debug, Default)]
pub struct Tally {
    /// Workspaces that were made, setup included where it was waited for.
    pub creates: Timings,
    /// Resets that succeeded.
    pub resets: Timings,
    /// Pristine sandboxes that were not what they should have been.
    pub quarantined: AtomicU64,
    /// Execs that ended, however.
    pub execs: Timings,
    /// Execs that ended, by the word for how.
    pub outcomes: Counts,
    /// Workspaces that were removed, by the word for why.
    pub removals: Counts,
    /// Bytes that they printed.
    pub printed: AtomicU64,
    /// Bytes that they were given as stdin.
    pub given: AtomicU64,
    /// Layers that were removed because nothing used them.
    pub layers_removed: AtomicU64,
    /// Mirrors, likewise.
    pub mirrors_removed: AtomicU64,
    /// Bytes of both.
    pub bytes_freed: AtomicU64,
}

/// Counts of things of a few known kinds.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<&'static str, u64>>);

impl Counts {
    /// Counts one of this kind.
    pub fn count(&self, kind: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(kind).or_default() += 1;
    }

    /// How many there were of this kind.
    #[must_use]
    pub fn of(&self, kind: &str) -> u64 {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(kind).copied().unwrap_or(0)
    }
}

/// Upper bounds of the buckets of [`Timings`], in milliseconds: from a reset to a long command.
const BOUNDS: [u64; 18] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000,
    1_800_000, 7_200_000,
];

/// How long something took each time.
#[derive(Debug, Default)]
pub struct Timings {
    /// One for each bound, and one for what took longer than all of them.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Timings {
    /// Counts one that took so long.
    pub fn count(&self, duration: Duration) {
        let within = |bound: &u64| duration <= Duration::from_millis(*bound);
        let bucket = BOUNDS.iter().position(within).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }

    /// All that was counted so far.
    #[must_use]
    pub fn read(&self) -> Durations {
        let bounds = BOUNDS
            .iter()
            .map(|bound| Some(Duration::from_millis(*bound)));
        let counts = self
            .buckets
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        Durations {
            buckets: bounds.chain([None]).zip(counts).collect(),
            sum: Duration::from_micros(self.microseconds.load(Ordering::Relaxed)),
        }
    }
}

/// How often something took how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durations {
    /// Upper bound, none for the last, and how many took so long and longer than the bound before.
    pub buckets: Vec<(Option<Duration>, u64)>,
    /// Of all together.
    pub sum: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_that_holds_it() {
        let timings = Timings::default();
        for milliseconds in [0, 1, 3, 7_200_000, 7_200_001] {
            timings.count(Duration::from_millis(milliseconds));
        }
        let durations = timings.read();
        let filled: Vec<_> = durations
            .buckets
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(bound, count)| (bound.map(|bound| bound.as_millis()), *count))
            .collect();
        let expected = [(Some(1), 2), (Some(5), 1), (Some(7_200_000), 1), (None, 1)];
        assert_eq!(filled, expected);
        assert_eq!(durations.sum, Duration::from_millis(14_400_005));
    }

    #[test]
    fn kinds_are_counted_apart() {
        let counts = Counts::default();
        counts.count("a");
        counts.count("a");
        counts.count("b");
        assert_eq!(["a", "b", "c"].map(|kind| counts.of(kind)), [2, 1, 0]);
    }
}
