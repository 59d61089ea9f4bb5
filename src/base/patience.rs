//! How long a workspace may take for all that one request asks of it.
//!
//! Whatever is asked of a workspace has a limit of its own. Where a request asks for much, as a fetch of hundreds of
//! submodules, a workspace that takes nearly as long each time would hold it for days; so all together have one as
//! well. Only the time in which the workspace is waited for counts: what the provider does itself is bounded
//! elsewhere.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a workspace may take for all that is asked for.
const WHOLE: Duration = Duration::from_secs(30 * 60);

/// How long what clears up after something may take at least, whatever is left.
const CLEARING: Duration = Duration::from_secs(30);

/// What is left of that time. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Patience(Arc<Mutex<Duration>>);

/// Something that is waited for; its time counts until this is dropped.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    patience: &'a Patience,
    began: Instant,
    limit: Duration,
    /// Whether less was left than it might have taken by itself.
    is_last: bool,
}

/// Why something is waited for no longer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TooLong {
    /// It took longer than it may by itself.
    Itself(Duration),
    /// It took what was left of all the time.
    Whole,
    /// Nothing was left when it was to begin.
    Before,
}

impl Patience {
    /// With all of the time.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(WHOLE)))
    }

    /// Begins to wait for something that may take `limit`.
    pub(super) fn wait(&self, limit: Duration) -> Result<Wait<'_>, TooLong> {
        let left = *self.lock();
        match left.is_zero() {
            true => Err(TooLong::Before),
            false => Ok(self.wait_with(limit, left)),
        }
    }

    /// Begins to wait for what clears up after something that was begun. Some time there always is for that, which
    /// is little in all, as nothing else is begun when there is no other left.
    pub(super) fn wait_for_clearing(&self, limit: Duration) -> Wait<'_> {
        let left = *self.lock();
        self.wait_with(limit, left.max(CLEARING))
    }

    fn wait_with(&self, limit: Duration, left: Duration) -> Wait<'_> {
        Wait {
            patience: self,
            began: Instant::now(),
            limit: limit.min(left),
            is_last: left < limit,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait<'_> {
    /// When it has to be over.
    pub(super) fn deadline(&self) -> Instant {
        self.began + self.limit
    }

    /// What is said where it is not.
    pub(super) fn too_long(&self) -> TooLong {
        match self.is_last {
            true => TooLong::Whole,
            false => TooLong::Itself(self.limit),
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut left = self.patience.lock();
        *left = left.saturating_sub(self.began.elapsed());
    }
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = WHOLE.as_secs();
        match self {
            Self::Itself(limit) => {
                write!(f, "it took more than {} s and was killed", limit.as_secs())
            }
            Self::Whole => write!(
                f,
                "it was killed when the workspace had taken {whole} s for all that it was asked for"
            ),
            Self::Before => write!(
                f,
                "it was not begun, as the workspace had taken {whole} s for what it was asked for before"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Waits for something that takes `time`, for as long as it may.
    async fn take(patience: &Patience, limit: Duration, time: Duration) -> Result<(), TooLong> {
        let wait = patience.wait(limit)?;
        let taken = tokio::time::timeout_at(wait.deadline(), tokio::time::sleep(time)).await;
        taken.map_err(|_| wait.too_long())
    }

    #[tokio::test(start_paused = true)]
    async fn a_workspace_has_one_time_for_all_that_it_is_asked_for() {
        let patience = Patience::new();
        let same = patience.clone();
        assert_eq!(take(&patience, MINUTE, MINUTE / 2).await, Ok(()));
        let taken = take(&same, MINUTE, MINUTE * 2).await;
        assert_eq!(taken, Err(TooLong::Itself(MINUTE)));
        // What is done meanwhile elsewhere does not count.
        tokio::time::advance(WHOLE).await;
        assert_eq!(take(&patience, WHOLE, WHOLE - 2 * MINUTE).await, Ok(()));
        assert_eq!(take(&same, MINUTE, MINUTE * 2).await, Err(TooLong::Whole));
        assert_eq!(take(&patience, MINUTE, MINUTE).await, Err(TooLong::Before));
        assert!(same.wait_for_clearing(MINUTE).deadline() > Instant::now());
        assert_eq!(take(&Patience::new(), MINUTE, MINUTE / 2).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn hundreds_that_each_take_nearly_too_long_come_to_an_end() {
        let patience = Patience::new();
        let mut refused = 0;
        for _ in 0..256 {
            let taken = take(&patience, MINUTE * 10, MINUTE * 9).await;
            refused += u32::from(taken.is_err());
        }
        assert_eq!(refused, 253);
    }
}
