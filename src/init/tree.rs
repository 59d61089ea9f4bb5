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
            let mut processes = Scan::take()?.living_below([leader]);
            if target == Target::Descendants {
                processes.remove(&leader);
            }
            processes.into_iter().for_each(|pid| send(pid, signal));
        }
    }
    Ok(())
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

/// Scans in a row that find nothing new, after which nothing is taken to be there, where none of them
/// was whole: a process can live shorter than one scan, and be followed by its child.
const CLEAN_SCANS: u32 = 40;
/// How long it is tried to stop the processes of a tree alone.
const ALONE: Duration = Duration::from_millis(200);
/// How long a tree may take to be killed then.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was below each leader when it was killed, what had ended and was not reaped included.
pub(super) type Killed = BTreeMap<i32, BTreeSet<i32>>;

/// Kills `leaders` and everything below them, however fast it forks.
///
/// A leader is its tree's child subreaper, so every process of the tree stays below it while it
/// lives. All are stopped, since what is stopped cannot fork; then all but the leaders are killed
/// until none is left to find; the leaders go last.
///
/// # Errors
/// `TimedOut` if something keeps it from being done, and those of reading `/proc`: then processes of
/// the trees may be left, and only the end of the whole sandbox ends them.
pub(super) fn kill_trees(leaders: &BTreeSet<i32>) -> io::Result<Killed> {
    match stop(leaders, Instant::now() + ALONE) {
        Ok(()) => kill_stopped(leaders, || {}),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => kill_among_all(leaders),
        Err(error) => Err(error),
    }
}

/// Stops the processes of the trees, one after the other, until no new one shows. A fork that is under
/// way when its process is stopped is begun anew, fork(2): its child has shown by then or never does.
fn stop(leaders: &BTreeSet<i32>, until: Instant) -> io::Result<()> {
    let mut stopped = BTreeSet::new();
    until_clean(until, |scan| {
        let mut found = scan.living_below(leaders.iter().copied());
        found.retain(|pid| stopped.insert(*pid));
        found.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
        found.is_empty()
    })
}

/// Kills what `stop` cannot catch up with: stops all processes of the sandbox at a stroke, and has
/// those go on that are of no tree. The kernel lets no fork slip past a signal to all of them: one that
/// is under way is begun anew, kill(2), fork(2). What shows of it to others is that they were stopped
/// for a moment.
fn kill_among_all(leaders: &BTreeSet<i32>) -> io::Result<Killed> {
    // What somebody has stopped stays so.
    let stopped_before = Scan::take()?;
    let killed = kill_stopped(leaders, || send(ALL, Signal::SIGSTOP));
    // Children first: a shell that goes on before its job would find that stopped.
    for (pid, process) in Scan::take()?.processes.into_iter().rev() {
        let before = stopped_before.processes.get(&pid);
        if process.alive && !before.is_some_and(|before| before.stopped) {
            send(pid, Signal::SIGCONT);
        }
    }
    killed
}

/// To kill(2), every process that the caller may signal, itself and PID 1 apart.
const ALL: i32 = -1;

/// Kills what is below the leaders until none is left to find, then the leaders. `stop` is called
/// first, and again after each look that finds some.
fn kill_stopped(leaders: &BTreeSet<i32>, stop: impl Fn()) -> io::Result<Killed> {
    let mut killed = Killed::new();
    stop();
    until_clean(Instant::now() + PATIENCE, |scan| {
        for leader in leaders {
            let below = scan.below([*leader]);
            killed.entry(*leader).or_default().extend(below);
        }
        let found = scan.living_below(leaders.iter().copied());
        let mut below = found.difference(leaders).peekable();
        let is_clean = below.peek().is_none();
        if !is_clean {
            stop();
        }
        below.for_each(|pid| send(*pid, Signal::SIGKILL));
        is_clean
    })?;
    leaders.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
    Ok(killed)
}

/// Repeats scans until `is_clean` was true of a whole one, or often enough in a row.
fn until_clean(until: Instant, mut is_clean: impl FnMut(&Scan) -> bool) -> io::Result<()> {
    let mut clean = 0;
    while clean < CLEAN_SCANS {
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let scan = Scan::take()?;
        clean = match (is_clean(&scan), scan.whole) {
            (true, true) => return Ok(()),
            (true, false) => clean + 1,
            (false, _) => 0,
        };
    }
    Ok(())
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
    let end_of_name = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[end_of_name + 1..]).ok()?;
    let mut fields = rest.split_whitespace();
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
