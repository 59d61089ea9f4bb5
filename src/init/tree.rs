//! Process trees of the sandbox, read from its own `/proc`, proc_pid_stat(5).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::protocol::Target;

/// A process that is alive, or dead and not reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    parent: i32,
    alive: bool,
    stopped: bool,
}

/// The processes of the sandbox as they were found, one after the other.
#[derive(Debug)]
struct Scan {
    processes: BTreeMap<i32, Process>,
    /// Whether none can have been overlooked, nor one's place in its tree.
    whole: bool,
}

/// How many processes are alive, init apart.
pub(super) fn count() -> io::Result<u64> {
    let processes = Scan::take()?.processes;
    let alive = processes
        .iter()
        .filter(|(pid, process)| **pid != 1 && process.alive)
        .count();
    Ok(u64::try_from(alive).unwrap_or(u64::MAX))
}

/// Whether `leader` has not ended yet.
pub(super) fn is_alive(leader: i32) -> io::Result<bool> {
    let stat = match fs::read(format!("/proc/{leader}/stat")) {
        Ok(stat) => stat,
        Err(error) if is_gone(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(parse(&stat).is_some_and(|process| process.alive))
}

/// Sends `signal` to what of the exec of `leader` is alive and meant.
///
/// # Errors
/// Those of reading `/proc`.
pub(super) fn signal(leader: i32, signal: Signal, target: Target) -> io::Result<()> {
    match target {
        Target::Leader => send(leader, signal),
        // It leads a session, and with it a group of its own.
        Target::Group => send(-leader, signal),
        Target::Tree | Target::Descendants => {
            let processes = below(leader, target)?;
            processes.into_iter().for_each(|pid| send(pid, signal));
        }
    }
    Ok(())
}

/// What is alive of the tree of `leader` and meant.
fn below(leader: i32, target: Target) -> io::Result<BTreeSet<i32>> {
    let mut processes = Scan::take()?.living_below([leader]);
    if target == Target::Descendants {
        processes.remove(&leader);
    }
    Ok(processes)
}

/// What a signal to `target` reaches, at the most: who is in a group is not looked at, it is a part of the tree.
fn meant(leader: i32, target: Target) -> io::Result<BTreeSet<i32>> {
    match target {
        Target::Leader => Ok(BTreeSet::from([leader])),
        Target::Group | Target::Tree | Target::Descendants => below(leader, target),
    }
}

/// The children of init: the leaders of its execs, and orphans.
///
/// A leader is its tree's child subreaper: what it leaves when it ends becomes a child of init, and
/// nothing else does.
pub(super) fn children() -> io::Result<BTreeSet<i32>> {
    match fs::read_to_string("/proc/1/task/1/children") {
        Ok(list) => Ok(list
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect()),
        // A kernel without CONFIG_PROC_CHILDREN.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let processes = Scan::take()?.processes;
            let children = processes.iter().filter(|(_, process)| process.parent == 1);
            Ok(children.map(|(pid, _)| *pid).collect())
        }
        Err(error) => Err(error),
    }
}

/// How many processes are alive among `roots` and below them.
pub(super) fn count_below(roots: impl Iterator<Item = i32>) -> io::Result<u64> {
    let mut roots = roots.peekable();
    if roots.peek().is_none() {
        return Ok(0);
    }
    let found = Scan::take()?.living_below(roots);
    Ok(u64::try_from(found.len()).unwrap_or(u64::MAX))
}

/// How long it is tried to stop the processes of a tree alone.
const ALONE: Duration = Duration::from_millis(200);
/// How long a tree may take to be killed in all.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was below each leader when it was killed, what had ended and was not reaped included.
pub(super) type Killed = BTreeMap<i32, BTreeSet<i32>>;

/// Kills `leaders` and everything below them, however fast it forks.
///
/// A leader is its tree's child subreaper, so every process of the tree stays below it while it
/// lives. All are stopped, since what is stopped cannot fork; then all but the leaders are killed; the
/// leaders go last.
///
/// # Errors
/// `TimedOut` if something keeps it from being done, and those of reading `/proc`: then processes of
/// the trees may be left, and only the end of the whole sandbox ends them.
pub(super) fn kill_trees(leaders: &BTreeSet<i32>) -> io::Result<Killed> {
    let until = Instant::now() + PATIENCE;
    let one_by_one =
        |fresh: &BTreeSet<i32>| fresh.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
    match stop(leaders, Instant::now() + ALONE, one_by_one) {
        Ok(trees) => kill_stopped(leaders, trees, until),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => kill_among_all(leaders, until),
        Err(error) => Err(error),
    }
}

/// Kills what cannot be caught up with one by one: stops all processes of the sandbox at a stroke, and
/// has those go on that are of no tree. The kernel lets no fork slip past a signal to all of them: one
/// that is under way is begun anew, kill(2), fork(2). What shows of it to others is that they were
/// stopped for a moment.
fn kill_among_all(leaders: &BTreeSet<i32>, until: Instant) -> io::Result<Killed> {
    let held = hold_all(None)?;
    let killed =
        stop(leaders, until, |_| stop_all()).and_then(|trees| kill_stopped(leaders, trees, until));
    let mut released = release_all(&held)?;
    while let Some(late) = released {
        std::thread::sleep(late.until_next());
        released = late.look()?;
    }
    killed
}

/// Kills all processes of the sandbox at a stroke: none runs any more, and there is no new one.
pub(super) fn kill_all() {
    send(ALL, Signal::SIGKILL);
}

/// All processes of the sandbox, stopped.
pub(super) struct Held {
    /// What somebody had stopped before, and is to stay so.
    stopped: BTreeSet<i32>,
    since: Instant,
}

/// Processes that go on after a stop. Some, such as su(1), stop themselves when they see their child
/// stopped: these are looked for a few times.
pub(super) struct Released {
    pids: BTreeSet<i32>,
    looks: u32,
    next: Instant,
}

/// Stops all processes of the sandbox at a stroke: from then on there is no new one. `released` are those
/// that were stopped before by this.
pub(super) fn hold_all(released: Option<&Released>) -> io::Result<Held> {
    let before = Scan::take()?.processes.into_iter();
    let ours = |pid: &i32| matches!(released, Some(released) if released.pids.contains(pid));
    let stopped = before.filter(|(pid, process)| process.stopped && !ours(pid));
    let stopped = stopped.map(|(pid, _)| pid).collect();
    stop_all();
    Ok(Held {
        stopped,
        since: Instant::now(),
    })
}

/// Sends all processes of the sandbox the signal to stop, at a stroke.
pub(super) fn stop_all() {
    send(ALL, Signal::SIGSTOP);
}

impl Held {
    /// Has what is meant of the tree of `leader` go on with all others, also if somebody had stopped it.
    ///
    /// # Errors
    /// Those of reading `/proc`.
    pub(super) fn let_go_on(&mut self, leader: i32, target: Target) -> io::Result<()> {
        let target = meant(leader, target)?;
        self.stopped.retain(|pid| !target.contains(pid));
        Ok(())
    }

    /// How many threads go on: a signal to stop waits for the end of the system call that they are in,
    /// such as a long write.
    ///
    /// One that waits for a child of vfork(2) does so until that goes on. It shows as one that waits for the
    /// kernel, as in a write; that child is stopped, and has the same memory as its parent.
    ///
    /// # Errors
    /// Those of reading `/proc`.
    pub(super) fn unsettled(&self) -> io::Result<u64> {
        let processes = Scan::take()?.processes;
        let borrowers = |parent: i32| {
            let children = processes.iter();
            let children = children.filter(|(_, child)| child.parent == parent && child.stopped);
            let memory = memory_of(parent);
            let same = |(pid, _): &(&i32, &Process)| memory.is_some() && memory_of(**pid) == memory;
            u64::try_from(children.filter(same).count()).unwrap_or(0)
        };
        let mut count = 0;
        for pid in processes.keys().filter(|pid| **pid != 1) {
            let mut waiting: u64 = 0;
            // One that ended meanwhile has none.
            for thread in fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
            {
                let stat = fs::read(thread?.path().join("stat")).unwrap_or_default();
                match state(&stat) {
                    None | Some(b'T' | b't' | b'Z' | b'X' | b'x') => {}
                    Some(b'D') => waiting += 1,
                    Some(_) => count += 1,
                }
            }
            // Each of them has one that waits for it.
            if waiting > 0 && self.since.elapsed() > WAITING {
                waiting = waiting.saturating_sub(borrowers(*pid));
            }
            count += waiting;
        }
        Ok(count)
    }
}

/// How large each part of a process's memory is, proc_pid_statm(5): the same for two that share it.
///
/// Also for two that do not, if one wants it so: a child that it forked, and stopped, is then taken for one that
/// borrows its memory, and a thread of it that writes for one that waits. What that reaches is a copy that has a
/// part of that one write, which its own process had begun before: what is written to the files later is in no
/// copy, and what ends the processes waits for nobody. To be sure takes kcmp(2), which seccomp refuses in here, or
/// the freezer, which knows.
fn memory_of(pid: i32) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/statm")).ok()
}

/// How long a thread that waits for the kernel is taken for one that writes, whatever else it may be.
const WAITING: Duration = Duration::from_millis(500);

/// Has them go on, but for what somebody had stopped before.
pub(super) fn release_all(held: &Held) -> io::Result<Option<Released>> {
    let ours = |pid: &i32| *pid != 1 && !held.stopped.contains(pid);
    let mut pids = BTreeSet::new();
    // Children first: what goes on before its child would find that stopped.
    for pid in Scan::take()?.deepest_first().into_iter().filter(ours) {
        send(pid, Signal::SIGCONT);
        pids.insert(pid);
    }
    Ok((!pids.is_empty()).then(|| Released {
        pids,
        looks: LATE_LOOKS,
        next: Instant::now() + LATE_LOOK,
    }))
}

impl Released {
    /// How long it is until the next look.
    pub(super) fn until_next(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Leaves what is meant of the tree of `leader` alone from now on: somebody stops it.
    ///
    /// # Errors
    /// Those of reading `/proc`.
    pub(super) fn leave(&mut self, leader: i32, target: Target) -> io::Result<()> {
        let target = meant(leader, target)?;
        self.pids.retain(|pid| !target.contains(pid));
        Ok(())
    }

    /// Has those go on that stopped themselves meanwhile. `None` after the last look.
    ///
    /// # Errors
    /// Those of reading `/proc`.
    pub(super) fn look(mut self) -> io::Result<Option<Self>> {
        let scan = Scan::take()?;
        let stopped = |pid: &i32| scan.processes.get(pid).is_some_and(|it| it.stopped);
        for pid in scan.deepest_first() {
            if self.pids.contains(&pid) && stopped(&pid) {
                send(pid, Signal::SIGCONT);
            }
        }
        self.looks -= 1;
        self.next = Instant::now() + LATE_LOOK;
        Ok((self.looks > 0).then_some(self))
    }
}

/// To kill(2), every process that the caller may signal, itself and PID 1 apart.
const ALL: i32 = -1;
/// How often, and after how long each time, it is looked for what stopped itself because of a stop.
const LATE_LOOKS: u32 = 5;
const LATE_LOOK: Duration = Duration::from_millis(20);

/// Stops the processes of the trees with `stop`, which is told the new ones, until a look that
/// overlooked nobody finds no new one. A fork that is under way when its process is stopped is begun
/// anew, fork(2): its child has shown by then or never does.
fn stop(
    leaders: &BTreeSet<i32>,
    until: Instant,
    stop: impl Fn(&BTreeSet<i32>),
) -> io::Result<Killed> {
    let mut stopped = BTreeSet::new();
    loop {
        let scan = Scan::take()?;
        let mut fresh = scan.living_below(leaders.iter().copied());
        fresh.retain(|pid| !stopped.contains(pid));
        if fresh.is_empty() && scan.whole {
            let tree = |leader: &i32| (*leader, scan.below([*leader]));
            return Ok(leaders.iter().map(tree).collect());
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stop(&fresh);
        stopped.append(&mut fresh);
    }
}

/// Kills the trees, which are stopped: first all but the leaders, which keep whatever has no parent any
/// more below them, and in which nobody else can take the place of one that is dead.
fn kill_stopped(leaders: &BTreeSet<i32>, trees: Killed, until: Instant) -> io::Result<Killed> {
    let mut left: BTreeSet<i32> = trees.values().flatten().copied().collect();
    loop {
        left.retain(|pid| !leaders.contains(pid));
        left.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
        let scan = Scan::take()?;
        left.retain(|pid| scan.processes.get(pid).is_some_and(|process| process.alive));
        // Somebody else may have woken one of them.
        left.append(&mut scan.living_below(leaders.iter().copied()));
        if left.is_subset(leaders) {
            break;
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    leaders.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
    Ok(trees)
}

fn send(pid: i32, signal: Signal) {
    // What is gone already needs no signal.
    let _ = kill(Pid::from_raw(pid), signal);
}

impl Scan {
    fn take() -> io::Result<Self> {
        let before = latest_pid();
        let mut processes = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // One that ended meanwhile has no file any more.
            if let Ok(stat) = fs::read(format!("/proc/{pid}/stat"))
                && let Some(process) = parse(&stat)
            {
                processes.insert(pid, process);
            }
        }
        // Without a fork, every process that is left was there all the time, and so was found; and
        // where no parent has vanished, each was found in its place. Only init has no parent inside.
        let whole = before.is_some()
            && before == latest_pid()
            && processes
                .iter()
                .all(|(pid, process)| *pid == 1 || processes.contains_key(&process.parent));
        Ok(Self { processes, whole })
    }

    /// `roots` and their descendants that are alive.
    fn living_below(&self, roots: impl IntoIterator<Item = i32>) -> BTreeSet<i32> {
        let mut found = self.below(roots);
        let alive = |pid: &i32| self.processes.get(pid).is_some_and(|process| process.alive);
        found.retain(alive);
        found
    }

    /// All that are alive, each before its parent.
    fn deepest_first(&self) -> Vec<i32> {
        let depth = |pid: &i32| {
            let mut above = *pid;
            // What was read one after the other may lead in a circle.
            (0..self.processes.len())
                .take_while(|_| match self.processes.get(&above) {
                    Some(process) => {
                        above = process.parent;
                        true
                    }
                    None => false,
                })
                .count()
        };
        let mut alive: Vec<i32> = self.processes.keys().copied().collect();
        alive.retain(|pid| self.processes.get(pid).is_some_and(|process| process.alive));
        alive.sort_by_cached_key(|pid| std::cmp::Reverse(depth(pid)));
        alive
    }

    /// `roots` and their descendants, alive or not.
    fn below(&self, roots: impl IntoIterator<Item = i32>) -> BTreeSet<i32> {
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for (pid, process) in &self.processes {
            children.entry(process.parent).or_default().push(*pid);
        }
        let mut found = BTreeSet::new();
        let mut waiting: Vec<i32> = roots.into_iter().collect();
        while let Some(pid) = waiting.pop() {
            if found.insert(pid) {
                waiting.extend(children.get(&pid).into_iter().flatten());
            }
        }
        found
    }
}

/// The last process id that was given away in this pid namespace, whoever lives: the fifth field of
/// proc_loadavg(5). Ids are given in a row, by nothing else than forks.
fn latest_pid() -> Option<i32> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next_back()?.parse().ok()
}

fn is_gone(error: &io::Error) -> bool {
    let gone = [libc::ENOENT, libc::ESRCH];
    error
        .raw_os_error()
        .is_some_and(|errno| gone.contains(&errno))
}

/// The name in the second field is the process's own choice, parentheses included: what counts
/// begins after the last one. A process whose first thread ended is shown as a zombie while others
/// of its threads run.
fn parse(stat: &[u8]) -> Option<Process> {
    let mut fields = fields(stat)?;
    let state = fields.next()?;
    let ended = matches!(state, "Z" | "X" | "x");
    let parent = fields.next()?.parse().ok()?;
    // The 20th field of all.
    let threads: u32 = fields.nth(15)?.parse().ok()?;
    Some(Process {
        parent,
        alive: !ended || threads > 1,
        stopped: state == "T",
    })
}

/// Those from the third on.
fn fields(stat: &[u8]) -> Option<std::str::SplitWhitespace<'_>> {
    let end_of_name = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[end_of_name + 1..]).ok()?;
    Some(rest.split_whitespace())
}

/// The letter of the state that a thread is in.
fn state(stat: &[u8]) -> Option<u8> {
    fields(stat)?.next()?.bytes().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_name_nor_an_ended_first_thread_hides_a_process() {
        let rest = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0";
        for (start, threads, expected) in [
            (
                &b"7 (sh) S 3"[..],
                1,
                Some(Process {
                    parent: 3,
                    alive: true,
                    stopped: false,
                }),
            ),
            (
                b"7 (a) R 1 (b) Z 9",
                1,
                Some(Process {
                    parent: 9,
                    alive: false,
                    stopped: false,
                }),
            ),
            (
                b"7 (a) Z 9",
                2,
                Some(Process {
                    parent: 9,
                    alive: true,
                    stopped: false,
                }),
            ),
            (
                b"7 (\xff\n) T 4",
                1,
                Some(Process {
                    parent: 4,
                    alive: true,
                    stopped: true,
                }),
            ),
            (b"7 (sh", 1, None),
        ] {
            let stat = [start, format!(" {rest} {threads} 0").as_bytes()].concat();
            assert_eq!(parse(&stat), expected);
        }
    }
}
