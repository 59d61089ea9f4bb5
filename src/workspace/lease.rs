//! How long a workspace is kept: for a time to live, while it is used, or while a connection holds it.
//!
//! One task, the keeper, knows when each lease may run out and sleeps until the first of these moments.
//! It looks at a lease when it is told to and when its moment has come; what was used meanwhile gets a
//! later one. So whoever uses a workspace tells the keeper nothing, but for the first use after a pause.

use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use utoipa::ToSchema;

use super::events::Event;
use super::limits::Latitude;
use super::one::Workspace;
use super::{Shared, WorkspaceError, WorkspaceId};
use crate::config::WorkspaceConfig;

/// When a workspace that could not be removed is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// How long a workspace is to be kept; the config says it where this does not.
#[derive(Debug, Default)]
pub struct LeaseAsked {
    /// From now, and from each renewal on.
    pub ttl: Option<Duration>,
    /// After the last use.
    pub idle_timeout: Option<Duration>,
    /// Cancelled when the connection ends that it is to end with.
    pub tie: Option<CancellationToken>,
}

/// How long a workspace is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// Seconds from the last renewal until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<f64>,
    /// When that is, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<f64>,
    /// Seconds without a request for it and without an exec until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<f64>,
    /// Whether it ends with the connection that it was made on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tied: bool,
}

/// Why a workspace is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Somebody asked for that.
    Asked,
    /// Its time to live was over.
    Expired,
    /// Nobody had used it for its idle time-out.
    Idle,
    /// The connection ended that it was made on.
    Disconnected,
}

impl Why {
    /// The word for each.
    pub const WORDS: [&'static str; 4] = ["asked", "expired", "idle", "disconnected"];

    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::WORDS[self as usize]
    }
}

impl LeaseAsked {
    /// With what the config says where nothing is asked for.
    pub(super) fn within(
        self,
        config: &WorkspaceConfig,
        latitude: Latitude,
    ) -> Result<Self, WorkspaceError> {
        let within = |field, asked: Option<Duration>, most: Option<f64>| {
            let most = most.map(span);
            check(field, asked, most, latitude)?;
            Ok::<_, WorkspaceError>(asked.or(most))
        };
        Ok(Self {
            ttl: within("ttl", self.ttl, config.ttl)?,
            idle_timeout: within("idle_timeout", self.idle_timeout, config.idle_timeout)?,
            tie: self.tie,
        })
    }
}

/// Refuses what goes beyond the config, where that must not be.
fn check(
    field: &'static str,
    asked: Option<Duration>,
    most: Option<Duration>,
    latitude: Latitude,
) -> Result<(), WorkspaceError> {
    match (asked, most) {
        (Some(asked), Some(most)) if latitude == Latitude::Config && asked > most => {
            Err(WorkspaceError::TooLong { field, most })
        }
        _ => Ok(()),
    }
}

/// A number of seconds that was checked when it was read.
fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

impl Lease {
    /// One that begins now.
    pub(super) fn begin(asked: &LeaseAsked) -> Self {
        let seconds = |span: Option<Duration>| span.map(|span| span.as_secs_f64());
        Self {
            ttl: seconds(asked.ttl),
            expires: None,
            idle_timeout: seconds(asked.idle_timeout),
            tied: asked.tie.is_some(),
        }
        .renewed()
    }

    /// The same from now on.
    fn renewed(self) -> Self {
        Self {
            expires: self.ttl.map(|ttl| crate::clock::precise() + ttl),
            ..self
        }
    }

    /// Why it has run out while no provider was there, if it has.
    pub(super) fn ran_out(&self) -> Option<Why> {
        if self.tied {
            return Some(Why::Disconnected);
        }
        let over = self
            .expires
            .is_some_and(|expires| expires <= crate::clock::precise());
        over.then_some(Why::Expired)
    }
}

/// A workspace is in use until this is dropped.
#[derive(Debug)]
pub struct InUse(Arc<Tenure>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// What the keeper looks at of one workspace.
#[derive(Debug)]
pub(super) struct Tenure {
    id: WorkspaceId,
    state: Mutex<State>,
    keeper: OnceLock<mpsc::UnboundedSender<WorkspaceId>>,
    tie: OnceLock<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct State {
    expires: Option<Instant>,
    idle_timeout: Option<Duration>,
    users: usize,
    /// When the last of them went.
    idle_since: Instant,
    disconnected: bool,
    /// When the keeper looks next without being told to.
    looks: Option<Instant>,
    /// It has run out: the workspace is being removed.
    over: Option<Why>,
}

/// What becomes of a workspace.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is kept until then, at least.
    Keep(Option<Instant>),
    End(Why),
}

impl State {
    fn judge(&mut self, now: Instant) -> Verdict {
        let passed = |moment: Option<Instant>| moment.is_some_and(|moment| moment <= now);
        let idle = self.idle_end();
        self.over = self.over.or_else(|| {
            if self.disconnected {
                Some(Why::Disconnected)
            } else if passed(self.expires) {
                Some(Why::Expired)
            } else {
                passed(idle).then_some(Why::Idle)
            }
        });
        match self.over {
            Some(why) => Verdict::End(why),
            None => {
                self.looks = self.expires.into_iter().chain(idle).min();
                Verdict::Keep(self.looks)
            }
        }
    }

    /// When it will have been idle for too long, if nobody uses it now or from now on.
    fn idle_end(&self) -> Option<Instant> {
        let end = self.idle_since.checked_add(self.idle_timeout?);
        end.filter(|_| self.users == 0)
    }
}

impl Tenure {
    pub(super) fn new(id: &WorkspaceId, lease: &Lease) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            expires: lease.expires.and_then(|at| from_clock(now, at)),
            idle_timeout: lease.idle_timeout.map(span),
            users: 0,
            idle_since: now,
            disconnected: false,
            looks: None,
            over: None,
        };
        Arc::new(Self {
            id: id.clone(),
            state: Mutex::new(state),
            keeper: OnceLock::new(),
            tie: OnceLock::new(),
        })
    }

    /// Has the keeper look after it, from now on, and after the connection that it is tied to.
    pub(super) fn begin(
        self: &Arc<Self>,
        keeper: mpsc::UnboundedSender<WorkspaceId>,
        tie: Option<CancellationToken>,
    ) {
        let _ = self.keeper.set(keeper);
        if let Some(connection) = tie {
            let this = Arc::downgrade(self);
            let ending = tokio::spawn(async move {
                connection.cancelled().await;
                if let Some(this) = this.upgrade() {
                    this.lock().disconnected = true;
                    this.tell_keeper();
                }
            });
            let _ = self.tie.set(AbortOnDropHandle::new(ending));
        }
        let watched = {
            let state = self.lock();
            state.expires.is_some() || state.idle_timeout.is_some()
        };
        if watched {
            self.tell_keeper();
        }
    }

    fn begin_use(self: &Arc<Self>) -> InUse {
        self.lock().users += 1;
        InUse(Arc::clone(self))
    }

    fn let_go(&self) {
        let unwatched = {
            let mut state = self.lock();
            state.users -= 1;
            state.idle_since = Instant::now();
            let end = state.idle_end();
            end.is_some_and(|end| state.looks.is_none_or(|looks| looks > end))
        };
        if unwatched {
            self.tell_keeper();
        }
    }

    fn tell_keeper(&self) {
        if let Some(keeper) = self.keeper.get() {
            // Nobody listens when the provider ends.
            let _ = keeper.send(self.id.clone());
        }
    }

    fn judge(&self) -> Verdict {
        self.lock().judge(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The moment at which the clock will say `at`, in seconds since 1970; none where that is never.
fn from_clock(now: Instant, at: f64) -> Option<Instant> {
    let left = (at - crate::clock::precise()).max(0.0);
    now.checked_add(span(left))
}

impl Workspace {
    /// How long it is kept.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.lock_record().lease
    }

    /// Counts as a use of it until what this gives is dropped.
    #[must_use]
    pub fn begin_use(&self) -> InUse {
        self.tenure.begin_use()
    }

    /// Has its time to live begin anew, with another length if one is given.
    ///
    /// # Errors
    /// `Endless`, `TooLong`, and `Moved` where it has run out.
    pub fn renew(
        &self,
        ttl: Option<Duration>,
        latitude: Latitude,
    ) -> Result<Lease, WorkspaceError> {
        check("ttl", ttl, self.config.ttl.map(span), latitude)?;
        let lease = self.try_change_record(|record| {
            let ttl = ttl.map(|ttl| ttl.as_secs_f64()).or(record.lease.ttl);
            record.lease.ttl = Some(ttl.ok_or(WorkspaceError::Endless)?);
            record.lease = record.lease.renewed();
            match self.tenure.lock().over {
                Some(_) => Err(WorkspaceError::Moved),
                None => Ok(record.lease),
            }
        })?;
        {
            let mut state = self.tenure.lock();
            if state.over.is_some() {
                return Err(WorkspaceError::Moved);
            }
            let now = Instant::now();
            state.expires = lease.expires.and_then(|at| from_clock(now, at));
        }
        self.tenure.tell_keeper();
        self.events().tell(Event::Renewed {
            expires: lease.expires.unwrap_or_default(),
        });
        Ok(lease)
    }
}

/// When the keeper looks at which workspace.
#[derive(Debug, Default)]
struct Moments {
    sorted: BTreeSet<(Instant, WorkspaceId)>,
    of: HashMap<WorkspaceId, Instant>,
}

impl Moments {
    fn set(&mut self, id: WorkspaceId, moment: Option<Instant>) {
        let before = match moment {
            Some(moment) => self.of.insert(id.clone(), moment),
            None => self.of.remove(&id),
        };
        if let Some(before) = before {
            self.sorted.remove(&(before, id.clone()));
        }
        if let Some(moment) = moment {
            self.sorted.insert((moment, id));
        }
    }

    fn first(&self) -> Option<Instant> {
        self.sorted.first().map(|(moment, _)| *moment)
    }

    /// The first one, if its moment has come.
    fn pop(&mut self, now: Instant) -> Option<WorkspaceId> {
        let (moment, id) = self.sorted.first()?;
        if *moment > now {
            return None;
        }
        let id = id.clone();
        self.set(id.clone(), None);
        Some(id)
    }
}

/// Removes the workspaces whose leases have run out, until `workspaces` are gone.
pub(super) async fn keep(workspaces: Weak<Shared>, mut told: mpsc::UnboundedReceiver<WorkspaceId>) {
    let mut moments = Moments::default();
    let mut removals = JoinSet::new();
    loop {
        let first = moments.first();
        let moment = async {
            match first {
                Some(moment) => sleep_until(moment).await,
                None => pending().await,
            }
        };
        let id = tokio::select! {
            id = told.recv() => id,
            Some(ended) = removals.join_next(), if !removals.is_empty() => {
                if let Ok(Err(id)) = ended {
                    moments.set(id, Some(Instant::now() + AGAIN));
                }
                continue;
            }
            () = moment => match moments.pop(Instant::now()) {
                None => continue,
                id => id,
            },
        };
        let (Some(id), Some(shared)) = (id, workspaces.upgrade()) else {
            return;
        };
        let workspace = shared.lock().get(&id).cloned();
        match workspace.map(|workspace| workspace.tenure.judge()) {
            None => moments.set(id, None),
            Some(Verdict::Keep(moment)) => moments.set(id, moment),
            Some(Verdict::End(why)) => {
                moments.set(id.clone(), None);
                removals.spawn(async move { remove(&shared, id, why).await });
            }
        }
    }
}

/// The id again if it could not be removed.
async fn remove(shared: &Arc<Shared>, id: WorkspaceId, why: Why) -> Result<(), WorkspaceId> {
    match shared.remove(&id, why).await {
        // Somebody else did, and has told it.
        Ok(false) => Ok(()),
        Ok(true) => {
            tracing::info!(workspace = %id, why = why.word(), "removed a workspace");
            Ok(())
        }
        Err(error) => {
            let error = crate::chain::text(&error);
            tracing::error!(workspace = %id, why = why.word(), error, "cannot remove a workspace; trying again soon");
            Err(id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn state(now: Instant, expires: Option<u32>, idle_timeout: Option<u32>) -> State {
        State {
            expires: expires.map(|seconds| now + seconds * SECOND),
            idle_timeout: idle_timeout.map(|seconds| seconds * SECOND),
            users: 0,
            idle_since: now,
            disconnected: false,
            looks: None,
            over: None,
        }
    }

    #[test]
    fn the_first_of_its_ends_counts() {
        let now = Instant::now();
        let at = |seconds: u32| now + seconds * SECOND;
        for (expires, idle, looked_at, verdict) in [
            (None, None, 1_000_000, Verdict::Keep(None)),
            (Some(5), None, 4, Verdict::Keep(Some(at(5)))),
            (Some(5), None, 5, Verdict::End(Why::Expired)),
            (Some(5), Some(3), 2, Verdict::Keep(Some(at(3)))),
            (Some(5), Some(3), 3, Verdict::End(Why::Idle)),
            (Some(5), Some(9), 9, Verdict::End(Why::Expired)),
        ] {
            let mut state = state(now, expires, idle);
            assert_eq!(state.judge(at(looked_at)), verdict, "{state:?}");
        }
        let mut tied = state(now, Some(5), Some(3));
        tied.disconnected = true;
        assert_eq!(tied.judge(now), Verdict::End(Why::Disconnected));
        // It stays at that, whatever happens next.
        tied.disconnected = false;
        assert_eq!(tied.judge(now), Verdict::End(Why::Disconnected));
    }

    #[test]
    fn nobody_waits_for_the_end_of_what_is_used() {
        let now = Instant::now();
        let mut state = state(now, None, Some(3));
        state.users = 1;
        assert_eq!(state.judge(now + 10 * SECOND), Verdict::Keep(None));
        state.users = 0;
        state.idle_since = now + 9 * SECOND;
        let end = Verdict::Keep(Some(now + 12 * SECOND));
        assert_eq!(state.judge(now + 10 * SECOND), end);
    }

    #[tokio::test]
    async fn the_keeper_hears_of_the_end_of_a_use_only_if_it_would_not_look_in_time() {
        let lease = Lease {
            idle_timeout: Some(1e6),
            ..Lease::default()
        };
        let tenure = Tenure::new(&WorkspaceId::generate(), &lease);
        let (keeper, mut told) = mpsc::unbounded_channel();
        tenure.begin(keeper, None);
        told.try_recv().expect("it is to be watched");
        let (first, second) = (tenure.begin_use(), tenure.begin_use());
        assert_eq!(tenure.judge(), Verdict::Keep(None));
        drop(first);
        told.try_recv().expect_err("somebody uses it");
        drop(second);
        told.try_recv().expect("nobody does any more");
        let Verdict::Keep(Some(looks)) = tenure.judge() else {
            panic!("it is idle");
        };
        drop(tenure.begin_use());
        told.try_recv()
            .expect_err("it looks before the later moment");
        let later = tenure.judge();
        assert!(matches!(later, Verdict::Keep(Some(later)) if later > looks));
    }

    #[test]
    fn each_workspace_has_one_moment() {
        let now = Instant::now();
        let ids: Vec<_> = (0..3).map(|_| WorkspaceId::generate()).collect();
        let mut moments = Moments::default();
        for (id, seconds) in ids.iter().zip([3, 1, 2]) {
            moments.set(id.clone(), Some(now + seconds * SECOND));
        }
        moments.set(ids[1].clone(), Some(now + 5 * SECOND));
        moments.set(ids[0].clone(), None);
        assert_eq!(moments.first(), Some(now + 2 * SECOND));
        assert_eq!(moments.pop(now + SECOND), None);
        assert_eq!(moments.pop(now + 9 * SECOND), Some(ids[2].clone()));
        assert_eq!(moments.pop(now + 9 * SECOND), Some(ids[1].clone()));
        assert_eq!(moments.pop(now + 9 * SECOND), None);
        assert_eq!((moments.sorted.len(), moments.of.len()), (0, 0));
    }

    #[test]
    fn what_ran_out_is_known_after_a_restart() {
        let now = crate::clock::precise();
        for (expires, tied, why) in [
            (None, false, None),
            (Some(now + 100.0), false, None),
            (Some(now - 1.0), false, Some(Why::Expired)),
            (None, true, Some(Why::Disconnected)),
        ] {
            let lease = Lease {
                expires,
                tied,
                ..Lease::default()
            };
            assert_eq!(lease.ran_out(), why);
        }
    }
}
