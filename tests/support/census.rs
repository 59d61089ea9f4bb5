//! How much of everything a provider has: processes, mounts, namespaces, groups, descriptors, files, memory.
//!
//! Counts of kinds and no names, so that two moments with other workspaces between them compare.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::host::{
    cgroup_tree, descendants, is_remover, is_zombie, mounts_below, namespaces, open_files, wait_for,
};
use super::{Derrick, GUARD, as_owner, wait_until_empty};

/// Kinds of namespaces that a sandbox has some of its own of.
const KINDS: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// What there is at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Census {
    /// What has to come back to what it was, by what it is.
    pub(crate) counts: BTreeMap<String, u64>,
    /// Bytes of memory that belong to the provider alone, and to its spawner.
    pub(crate) provider_memory: u64,
    pub(crate) spawner_memory: u64,
    /// Namespaces, processes and mounts that the kernel keeps for everybody on this host, as far as the caller may
    /// know: what no process has any more is seen there alone.
    pub(crate) kernel: BTreeMap<String, u64>,
}

impl Census {
    pub(crate) fn of(derrick: &Derrick) -> Self {
        let provider = derrick.pid();
        let state = derrick.state();
        let below = descendants(provider);
        let spawner = below[0];
        let zombies = below.iter().filter(|pid| is_zombie(**pid)).count();
        let mut counts = BTreeMap::new();
        let mut count = |what: &str, number: usize| {
            counts.insert(what.to_owned(), number as u64);
        };
        count("processes below the provider", below.len());
        count("dead processes that nobody took the end of", zombies);
        count("mounts of the host's", mounts_below(&state).len());
        count("mounts of the spawner's", lines(spawner, "mountinfo"));
        count("threads of the spawner's", entries_of(spawner, "task"));
        for (kind, number) in all_namespaces(provider, &below) {
            count(&format!("{kind} namespaces"), number);
        }
        for (name, pid) in [("provider", provider), ("spawner", spawner)] {
            for (kind, number) in descriptors(pid) {
                count(&format!("descriptors of the {name}'s: {kind}"), number);
            }
        }
        count("control groups", groups_of(&state).len());
        count("loop devices", loop_devices(&state).len());
        let (files, bytes) = disk(&state);
        count("files in the state directory", files);
        counts.insert("bytes of them on disk".into(), bytes);
        for place in ["workspaces", "layers", "trash", "run"] {
            let number = fs::read_dir(state.join(place)).map_or(0, Iterator::count);
            counts.insert(format!("entries of {place}"), number as u64);
        }
        Self {
            counts,
            provider_memory: anonymous_memory(provider),
            spawner_memory: anonymous_memory(spawner),
            kernel: kernel_objects(),
        }
    }

    /// What there is when nothing is being done any more: the same twice, with an empty trash and with as much
    /// in the pool as is kept ready for ever.
    pub(crate) fn settled(derrick: &Derrick) -> Self {
        let mut last: Option<Self> = None;
        loop {
            wait_until_idle(derrick);
            let now = Self::of(derrick);
            if last.is_some_and(|last| last.counts == now.counts) {
                return now;
            }
            last = Some(now);
        }
    }

    /// Fails the test unless there comes to be as much as this; what there is then.
    pub(crate) fn again(&self, derrick: &Derrick) -> Self {
        let until = Instant::now() + GUARD;
        loop {
            wait_until_idle(derrick);
            let now = Self::of(derrick);
            if now.counts == self.counts {
                return now;
            }
            assert!(Instant::now() < until, "{}", self.difference(&now));
        }
    }

    /// A line for each count that is another one `now`.
    pub(crate) fn difference(&self, now: &Self) -> String {
        let names: BTreeSet<_> = self.counts.keys().chain(now.counts.keys()).collect();
        let of = |census: &Self, name: &String| census.counts.get(name).copied().unwrap_or(0);
        let lines = names
            .into_iter()
            .map(|name| (name, of(self, name), of(now, name)))
            .filter(|(_, before, after)| before != after);
        lines
            .map(|(name, before, after)| format!("{name}: {before}, then {after}\n"))
            .collect()
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, number) in self.counts.iter().chain(&self.kernel) {
            writeln!(f, "{number:>12}  {name}")?;
        }
        writeln!(f, "{:>12}  bytes of the provider's", self.provider_memory)?;
        write!(f, "{:>12}  bytes of the spawner's", self.spawner_memory)
    }
}

/// Waits until the provider's own work is done: one sandbox is ready, none is made, the trash is empty.
fn wait_until_idle(derrick: &Derrick) {
    // The kind that stays ready is that of the last one: without limits.
    assert!(derrick.create().delete());
    let until = Instant::now() + GUARD;
    let state = derrick.state();
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .expect("cannot make an inotify instance");
    for run in super::entries(&state.join("run")) {
        // What is put away leaves it.
        let staging = state.join("run").join(run).join("staging");
        let _ = inotify::add_watch(&changes, &staging, WatchFlags::MOVED_FROM);
    }
    loop {
        let metrics = derrick.api.get("/metrics").expect(200).text();
        let value = |state: &str| {
            let name = format!("derrick_pool{{state=\"{state}\"}} ");
            let mut lines = metrics.lines();
            let value = lines.find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok());
            value.unwrap_or_else(|| panic!("no {name} in {metrics}"))
        };
        let counts = ["ready", "making", "waiting"].map(value);
        let limited = groups_of(&state).iter().any(|group| {
            let parent = group.parent().and_then(Path::file_name);
            parent.is_some_and(|name| name.to_string_lossy().starts_with("derrick-"))
        });
        // They end when they have had nothing to do for a while.
        let removers = descendants(derrick.pid()).into_iter().any(is_remover);
        let is_idle = counts == [1.0, 0.0, 0.0] && !limited && !removers;
        if is_idle && loop_devices(&state).is_empty() {
            break;
        }
        assert!(Instant::now() < until, "{counts:?}, limited: {limited}");
        // Looked at again now and then: one that is being made for the pool moves nothing.
        wait_for(changes.as_fd(), Duration::from_millis(200));
        while rustix::io::read(&changes, &mut [0; 4096]).is_ok() {}
    }
    wait_until_empty(&state.join("trash"));
}

fn lines(pid: i32, file: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"));
    text.unwrap_or_else(|error| panic!("{file} of process {pid}: {error}"))
        .lines()
        .count()
}

fn entries_of(pid: i32, directory: &str) -> usize {
    let entries = fs::read_dir(format!("/proc/{pid}/{directory}"));
    entries.map_or(0, Iterator::count)
}

/// How many namespaces of each kind these live in, with those that provider and spawner hold by a descriptor.
/// The spawner keeps user namespaces for the next sandboxes of the same ids, up to a bound: those do not count.
fn all_namespaces(provider: i32, below: &[i32]) -> BTreeMap<&'static str, usize> {
    let mut names = BTreeSet::new();
    for pid in below.iter().chain([&provider]) {
        names.extend(namespaces(*pid).into_values());
    }
    for pid in [provider, below[0]] {
        let held = open_files(pid).into_iter();
        let held = held.map(|file| file.to_string_lossy().into_owned());
        names.extend(held.filter(|name| !name.starts_with("user:[")));
    }
    let of_kind = |kind: &str| {
        let start = format!("{kind}:[");
        names.iter().filter(|name| name.starts_with(&start)).count()
    };
    KINDS.map(|kind| (kind, of_kind(kind))).into()
}

/// How many descriptors a process has, by what they lead to.
fn descriptors(pid: i32) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for file in open_files(pid) {
        let name = file.to_string_lossy();
        let kind = match name.split_once(":[") {
            Some(("user", _)) => continue,
            Some((kind, _)) => kind,
            // The number of a range is another one each time.
            None if name.starts_with("/run/derrick/ranges/") => "a range of ids",
            None => &*name,
        };
        *counts.entry(kind.to_owned()).or_default() += 1;
    }
    counts
}

/// Control groups of the providers that have a directory in this state, wherever they are.
pub(crate) fn groups_of(state: &Path) -> Vec<PathBuf> {
    let names: Vec<_> = super::entries(&state.join("run"))
        .into_iter()
        .map(|run| format!("derrick-{run}"))
        .collect();
    groups_named(&names)
}

/// Control groups of these names, and those below them.
pub(crate) fn groups_named(names: &[String]) -> Vec<PathBuf> {
    let mut groups = cgroup_tree();
    groups.retain(|path| {
        let mut parts = path.iter();
        parts.any(|part| names.iter().any(|name| part == &**name))
    });
    groups
}

/// The files below this state that loop devices have.
pub(crate) fn loop_devices(state: &Path) -> Vec<String> {
    let state = state.to_str().expect("a scratch path is text");
    let devices = fs::read_dir("/sys/block").expect("/sys is mounted");
    devices
        .filter_map(|device| fs::read_to_string(device.ok()?.path().join("loop/backing_file")).ok())
        .filter(|file| file.contains(state))
        .collect()
}

/// How many files are below the state, and the bytes that they take. Layers are never changed: how many there are
/// is enough. A directory stays as large as it was when it had the most entries.
fn disk(state: &Path) -> (usize, u64) {
    let mut find = as_owner("find");
    find.arg(state)
        .args(["-path", "*/layers/*/*", "-prune", "-o"]);
    find.args(["-type", "d", "-printf", "0\n", "-o", "-printf", "%b\n"]);
    let output = find.output().expect("find is there");
    // A name that is removed meanwhile is a failure of find's, and another look's to count right.
    let text = String::from_utf8_lossy(&output.stdout);
    let blocks = text.lines().map(|blocks| blocks.parse().unwrap_or(0));
    let blocks: Vec<u64> = blocks.collect();
    (blocks.len(), blocks.iter().sum::<u64>() * 512)
}

/// Bytes of memory that a process has written to: what it shares with files does not grow by a leak.
fn anonymous_memory(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .unwrap_or_else(|error| panic!("the memory of process {pid}: {error}"));
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or_else(|| panic!("no Anonymous in {text}")) * 1024
}

/// What slabinfo(5) has of namespaces; nothing for whoever may not read it.
fn kernel_objects() -> BTreeMap<String, u64> {
    let slabs = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let wanted = |name: &str| name.ends_with("_namespace") || name == "mnt_cache";
    slabs
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let name = fields.next().filter(|name| wanted(name))?;
            let active = fields.next()?.parse().ok()?;
            Some((format!("{name} in the kernel"), active))
        })
        .collect()
}
