//! Init's loop: one request or one ended child at a time, until the provider is gone.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::protocol::{
    Attempt, Exit, Refusal, Reply, Request, RequestId, Room, Status, Target, Usage,
};
use super::{exec, tree};
use crate::sys::channel::{Channel, Received};
use crate::sys::events::Events;
use crate::sys::process::{OneThread, has_no_child, reap_any};

/// How long a tree that is to be killed waits for others that are, if messages keep coming.
const GATHERING: Duration = Duration::from_millis(20);

/// Signals by which somebody stops a process.
const STOPS: [Signal; 4] = [
    Signal::SIGSTOP,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// An exec that has not ended.
#[derive(Debug)]
struct Running {
    request: RequestId,
    /// What was killed with it, if it was killed.
    killed: Option<BTreeSet<i32>>,
    /// Until it is known whether its program runs.
    starting: Option<exec::Starting>,
}

struct Init<'a> {
    one: OneThread,
    provider: &'a Channel,
    execs: HashMap<i32, Running>,
    /// Leaders of the execs that are to be killed.
    doomed: BTreeSet<i32>,
    /// When the first of them was.
    doomed_since: Option<Instant>,
    /// Children that execs left when they ended.
    orphans: BTreeSet<i32>,
    /// All processes, while they are to stand still.
    held: Option<tree::Held>,
    /// Those that go on again, while it is looked whether they do.
    released: Option<tree::Released>,
    /// While the kernel holds them: nothing is started either.
    suspended: bool,
    /// Execs that are to be started then.
    deferred: Vec<Received<Request>>,
    /// The request for the end, once all processes were killed.
    ending: Option<RequestId>,
    /// How many of them have been reaped.
    ended: u64,
}

/// Serves until the provider's end of the socket closes; the exit of PID 1 then ends all others.
pub(super) fn serve(one: OneThread, provider: &Channel) -> i32 {
    let Ok(events) = Events::watch() else {
        return 1;
    };
    let mut init = Init {
        one,
        provider,
        execs: HashMap::new(),
        doomed: BTreeSet::new(),
        doomed_since: None,
        orphans: BTreeSet::new(),
        held: None,
        released: None,
        suspended: false,
        deferred: Vec::new(),
        ending: None,
        ended: 0,
    };
    loop {
        let news = init
            .execs
            .values()
            .filter_map(|running| running.starting.as_ref());
        let news = news.map(exec::Starting::news);
        let patience = init.released.as_ref().map(tree::Released::until_next);
        let Ok(happened) = events.wait(provider, news, patience) else {
            return 1;
        };
        if init.look_again().is_err() {
            return 0;
        }
        if !happened.others.is_empty() && init.tell_news().is_err() {
            return 0;
        }
        if happened.child_ended && init.reap().and_then(|()| init.hold_on()).is_err() {
            return 0;
        }
        if happened.message {
            match provider.receive::<Request>() {
                Ok(Some(received)) => {
                    if init.answer(received).is_err() {
                        return 0;
                    }
                }
                Ok(None) => return 0,
                Err(_) => return 1,
            }
        }
        if init.is_last() {
            // Whoever asked may be gone.
            let _ = init.tell_end();
            return 0;
        }
        if init.is_time_to_kill() && init.kill_doomed().is_err() {
            return 0;
        }
    }
}

impl Init<'_> {
    fn tell(&self, reply: &Reply, descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        self.provider.send(reply, descriptors)
    }

    fn answer(&mut self, received: Received<Request>) -> std::io::Result<()> {
        // Nothing is done any more once all were killed, whatever was on its way.
        if self.ending.is_some() {
            return Ok(());
        }
        let is_still = self.held.is_some() || self.suspended;
        if is_still && matches!(received.message, Request::Exec(..)) {
            self.deferred.push(received);
            return Ok(());
        }
        match received.message {
            Request::Exec(id, order) => match exec::start(self.one, &order, received.descriptors) {
                Ok(starting) => {
                    let pid = starting.leader.id();
                    let starting = Some(starting);
                    self.execs.insert(
                        pid,
                        Running {
                            request: id,
                            killed: None,
                            starting,
                        },
                    );
                    Ok(())
                }
                Err(refusal) => self.tell(&Reply::Refused(id, refusal), &[]),
            },
            Request::Kill(id) => self.doom(id),
            Request::Signal(id, number, target) => {
                self.signal(id, number, target)?;
                self.hold_on()
            }
            Request::Hold(id) => {
                if self.held.is_none() {
                    self.held = Some(tree::hold_all(self.released.take().as_ref())?);
                }
                self.tell(&Reply::Held(id), &[])
            }
            Request::Suspend(id) => {
                self.suspended = true;
                self.tell(&Reply::Held(id), &[])
            }
            Request::Release => {
                self.suspended = false;
                if let Some(held) = self.held.take() {
                    self.released = tree::release_all(&held)?;
                }
                let deferred = std::mem::take(&mut self.deferred);
                deferred
                    .into_iter()
                    .try_for_each(|order| self.answer(order))
            }
            Request::Unsettled(id) => {
                let count = self.held.as_ref().map_or(Ok(0), tree::Held::unsettled)?;
                self.tell(&Reply::Counted(id, count), &[])
            }
            Request::Count(id) => self.tell(&Reply::Counted(id, tree::count()?), &[]),
            Request::Room(id) => self.tell(&Reply::Room(id, Room::here()?), &[]),
            Request::End(id) => {
                self.ending = Some(id);
                let room = Room::here()?;
                tree::kill_all();
                self.tell(&Reply::Killed(id, room), &[])
            }
            Request::Adopt(..) => Err(std::io::ErrorKind::InvalidData.into()),
        }
    }

    /// Whether all others were killed and reaped.
    fn is_last(&self) -> bool {
        self.ending.is_some() && has_no_child()
    }

    fn tell_end(&self) -> std::io::Result<()> {
        match self.ending {
            Some(id) => self.tell(&Reply::Ended(id, self.ended), &[]),
            None => Ok(()),
        }
    }

    /// Has the tree of an exec killed, together with those of the requests that wait already.
    fn doom(&mut self, id: RequestId) -> std::io::Result<()> {
        let is_it =
            |order: &Received<Request>| matches!(order.message, Request::Exec(it, _) if it == id);
        if let Some(place) = self.deferred.iter().position(is_it) {
            self.deferred.remove(place);
            let refusal = Refusal {
                attempt: Attempt::Start,
                errno: libc::ECANCELED,
            };
            return self.tell(&Reply::Refused(id, refusal), &[]);
        }
        let mut execs = self.execs.iter();
        // One that is not there ended before, and was reported before.
        if let Some((leader, _)) = execs.find(|(_, running)| running.request == id) {
            self.doomed.insert(*leader);
            self.doomed_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// Whether there is something to kill, and nothing that it should wait for.
    fn is_time_to_kill(&self) -> bool {
        let waited = self
            .doomed_since
            .is_some_and(|since| since.elapsed() > GATHERING);
        !self.doomed.is_empty() && (waited || !is_readable(self.provider.as_fd()))
    }

    /// Kills the trees. An error ends init, and with it the whole sandbox: that is sure.
    fn kill_doomed(&mut self) -> std::io::Result<()> {
        self.doomed_since = None;
        let mut leaders = std::mem::take(&mut self.doomed);
        for leader in leaders.clone() {
            // It may have ended meanwhile.
            if !self.execs.contains_key(&leader) || !tree::is_alive(leader)? {
                leaders.remove(&leader);
            }
        }
        if leaders.is_empty() {
            return Ok(());
        }
        for (leader, tree) in tree::kill_trees(&leaders)? {
            if let Some(running) = self.execs.get_mut(&leader) {
                running.killed = Some(tree);
            }
        }
        self.hold_on()
    }

    /// Stops all processes again while they are to stand still: the kernel has those go on whose process
    /// group is left without a parent that could, setpgid(2).
    fn hold_on(&self) -> std::io::Result<()> {
        if self.held.is_some() {
            tree::stop_all();
        }
        Ok(())
    }

    /// Has those go on that stopped themselves because of a stop, if it is time to look for them.
    fn look_again(&mut self) -> std::io::Result<()> {
        let is_time = |released: &mut tree::Released| released.until_next().is_zero();
        if let Some(released) = self.released.take_if(is_time) {
            self.released = released.look()?;
        }
        Ok(())
    }

    /// Signals an exec. What is no signal is sent to nobody.
    fn signal(&mut self, id: RequestId, number: i32, target: Target) -> std::io::Result<()> {
        let mut execs = self.execs.iter();
        let leader = execs.find(|(_, running)| running.request == id);
        match (leader, Signal::try_from(number), &mut self.held) {
            // What is to go on does when all do.
            (Some((leader, _)), Ok(Signal::SIGCONT), Some(held)) => held.let_go_on(*leader, target),
            (Some((leader, _)), Ok(signal), _) => {
                if let Some(released) = &mut self.released
                    && STOPS.contains(&signal)
                {
                    released.leave(*leader, target)?;
                }
                tree::signal(*leader, signal, target)
            }
            _ => Ok(()),
        }
    }

    /// Tells of every starting exec of which there is news.
    fn tell_news(&mut self) -> std::io::Result<()> {
        let mut started: Vec<i32> = Vec::new();
        for (pid, running) in &self.execs {
            let news = running.starting.as_ref().map(exec::Starting::news);
            if news.is_some_and(is_readable) {
                started.push(*pid);
            }
        }
        started
            .into_iter()
            .try_for_each(|pid| self.tell_news_of(pid))
    }

    fn tell_news_of(&mut self, pid: i32) -> std::io::Result<()> {
        let Some(running) = self.execs.get_mut(&pid) else {
            return Ok(());
        };
        let Some(mut starting) = running.starting.take() else {
            return Ok(());
        };
        let request = running.request;
        match starting.hear() {
            Ok(()) => {
                let terminal: Vec<_> = starting.terminal.iter().map(AsFd::as_fd).collect();
                self.tell(&Reply::Started(request), &terminal)
            }
            Err(refusal) => {
                // Its end, which comes, is no exec's.
                self.execs.remove(&pid);
                self.tell(&Reply::Refused(request, refusal), &[])
            }
        }
    }

    /// Takes the end of every child that ended, orphans of others included.
    fn reap(&mut self) -> std::io::Result<()> {
        let mut all = Vec::new();
        while let Some(ended) = reap_any()? {
            all.push(ended);
        }
        if self.ending.is_some() {
            self.ended += all.len() as u64;
            return Ok(());
        }
        for ended in &all {
            // It has ended: whatever news there was is there.
            self.tell_news_of(ended.id)?;
            self.doomed.remove(&ended.id);
            if let Some(running) = self.execs.remove(&ended.id) {
                let mut usage = usage_of(&ended.usage);
                // What ended below it came to init before it ended, and so was reaped with it.
                if let Some(tree) = &running.killed {
                    let others = all.iter().filter(|other| tree.contains(&other.id));
                    for other in others.filter(|other| other.id != ended.id) {
                        usage.add(&usage_of(&other.usage));
                    }
                }
                let exit = Exit {
                    status: ended.status.map_or_else(Status::Signal, Status::Code),
                    killed: running.killed.is_some(),
                    detached: self.take_orphans()?,
                    usage,
                    full: Room::here().is_ok_and(|room| room.is_full()),
                };
                self.tell(&Reply::Exited(running.request, exit), &[])?;
            }
        }
        Ok(())
    }

    /// How many processes the exec left that ended just now.
    fn take_orphans(&mut self) -> std::io::Result<u64> {
        let mut orphans = tree::children()?;
        orphans.retain(|pid| !self.execs.contains_key(pid));
        let before = std::mem::replace(&mut self.orphans, orphans);
        tree::count_below(self.orphans.difference(&before).copied())
    }
}

fn usage_of(usage: &libc::rusage) -> Usage {
    let duration = |time: libc::timeval| {
        let whole = u64::try_from(time.tv_sec).unwrap_or(0);
        let rest = u64::try_from(time.tv_usec).unwrap_or(0);
        Duration::from_secs(whole) + Duration::from_micros(rest)
    };
    Usage {
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        // Told in KiB, getrusage(2).
        peak_memory: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    }
}

fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    let mut event = [PollFd::new(descriptor, PollFlags::POLLIN)];
    matches!(poll(&mut event, PollTimeout::ZERO), Ok(1..))
}
