//! What can be seen of derrick on the host: processes, mounts, namespaces, descriptors, cgroups.
//!
//! Tests run side by side, so nothing here counts what the whole host has: every look is at the
//! descendants of one provider or at paths of one state directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{GUARD, Workspace, as_owner, succeed};

/// Every process that descends from one process, held so that their end can be waited for.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    processes: Vec<(i32, String, OwnedFd)>,
    cgroups: BTreeSet<PathBuf>,
    // Held open: the kernel gives the number of a namespace that is gone to the next one.
    namespaces: Vec<(String, File)>,
}

impl Lives {
    /// Of what runs now below `provider`, the provider itself not counted.
    pub(crate) fn below(provider: i32) -> Self {
        let mut lives = Self::of(&descendants(provider));
        let shared = namespaces(provider);
        lives
            .namespaces
            .retain(|(name, _)| !shared.values().any(|other| other == name));
        let shared = cgroups(provider);
        lives.cgroups.retain(|cgroup| !shared.contains(cgroup));
        lives
    }

    /// Of these processes, as far as they still run.
    pub(crate) fn of(processes: &[i32]) -> Self {
        let mut lives = Self::default();
        for pid in processes {
            let handle =
                Pid::from_raw(*pid).and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok());
            if let Some(handle) = handle {
                lives.processes.push((*pid, command_line(*pid), handle));
                lives.cgroups.extend(cgroups(*pid));
                lives
                    .namespaces
                    .extend(["pid", "net"].into_iter().filter_map(|kind| {
                        let handle = File::open(format!("/proc/{pid}/ns/{kind}")).ok()?;
                        Some((namespaces(*pid).remove(kind)?, handle))
                    }));
            }
        }
        lives
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.processes.len()
    }

    /// Waits until all have ended; fails the test if one outlives the guard.
    pub(crate) fn assert_gone(&self) {
        let deadline = Instant::now() + GUARD;
        for (pid, command, handle) in &self.processes {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                wait_for(handle.as_fd(), left),
                "process {pid} ({command}) is still there"
            );
        }
    }

    /// Fails the test if a process still lives in a namespace that they had to themselves.
    pub(crate) fn assert_namespaces_gone(&self) {
        for (namespace, _) in &self.namespaces {
            let holders = holders(namespace);
            assert!(holders.is_empty(), "{namespace} is held by {holders:?}");
        }
    }

    /// The cgroups they were in that the provider itself was not.
    pub(crate) fn cgroups(&self) -> &BTreeSet<PathBuf> {
        &self.cgroups
    }
}

/// Waits until there is something to read, which for a pidfd is the end of its process; whether it
/// came in time.
pub(crate) fn wait_for(descriptor: BorrowedFd<'_>, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).expect("the limit is short");
    let mut events = [PollFd::new(&descriptor, PollFlags::IN)];
    loop {
        match poll(&mut events, Some(&limit)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("cannot wait: {error}"),
        }
    }
}

/// The names in a directory.
pub(crate) fn entries(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", directory.display()))
        .map(|entry| {
            let name = entry.expect("it can be listed").file_name();
            name.to_string_lossy().into_owned()
        })
        .collect()
}

/// Waits until a directory has no entry; fails the test if it has one for longer than the guard.
pub(crate) fn wait_until_empty(directory: &Path) {
    wait_for_removals(directory, || {
        let mut left = fs::read_dir(directory).expect("the directory is there");
        left.next().map(|entry| format!("{entry:?}"))
    });
}

/// Waits until a file or directory is gone, likewise.
pub(crate) fn wait_until_gone(path: &Path) {
    let directory = path.parent().expect("it is in a directory");
    wait_for_removals(directory, || {
        path.exists().then(|| path.display().to_string())
    });
}

/// Waits until nothing is left of what is removed from a directory.
fn wait_for_removals(directory: &Path, left: impl Fn() -> Option<String>) {
    let changes = inotify::init(CreateFlags::CLOEXEC).expect("cannot make an inotify instance");
    inotify::add_watch(
        &changes,
        directory,
        WatchFlags::DELETE | WatchFlags::MOVED_FROM,
    )
    .unwrap_or_else(|error| panic!("cannot watch {}: {error}", directory.display()));
    let deadline = Instant::now() + GUARD;
    let mut buffer = [0; 4096];
    // Looked at only once watched, so that no removal falls in between.
    while let Some(left) = left() {
        let time = deadline.saturating_duration_since(Instant::now());
        assert!(
            wait_for(changes.as_fd(), time),
            "{left} is still there after {GUARD:?}"
        );
        rustix::io::read(&changes, &mut buffer).expect("there is an event to read");
    }
}

/// Processes whose chain of parents leads to `ancestor`, in no particular order.
pub(crate) fn descendants(ancestor: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in processes() {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut to_visit = vec![ancestor];
    while let Some(pid) = to_visit.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            found.push(*child);
            to_visit.push(*child);
        }
    }
    found
}

/// The process, seen from the host, that has `marker` among its arguments.
pub(crate) fn process_with_argument(marker: &str) -> Option<i32> {
    processes().into_iter().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .unwrap_or_default()
            .split(|byte| *byte == 0)
            .any(|argument| argument == marker.as_bytes())
    })
}

/// Lines of this mount namespace's mount table that mention a path below `directory`.
pub(crate) fn mounts_below(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().expect("a scratch path is text");
    fs::read_to_string("/proc/self/mountinfo")
        .expect("/proc is mounted")
        .lines()
        .filter(|line| line.contains(directory))
        .map(str::to_owned)
        .collect()
}

/// A digest of all that is below a directory: names, kinds, owners, modes, times of change, attributes and
/// content.
pub(crate) fn digest_of_tree(directory: &Path) -> String {
    let archive = "set -e
        tar --create --sort=name --numeric-owner --xattrs --xattrs-include='*' --pax-option=delete=atime \
            --directory=\"$1\" . | sha256sum";
    let mut digest = as_owner("sh");
    succeed(digest.args(["-c", archive, "sh"]).arg(directory))
}

/// What the descriptors of a process lead to.
pub(crate) fn open_files(pid: i32) -> Vec<PathBuf> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap_or_else(|error| panic!("cannot list the descriptors of process {pid}: {error}"))
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .collect()
}

/// Whether a process removes files for the spawner; it ends when it has had nothing to do for a while.
pub(crate) fn is_remover(pid: i32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name == "derrick-remover\n")
}

/// Namespaces of a process by kind, as `net:[4026531840]`; without those that may not be seen.
pub(crate) fn namespaces(pid: i32) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/ns")) else {
        return BTreeMap::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = fs::read_link(entry.path()).ok()?;
            Some((
                entry.file_name().into_string().ok()?,
                name.to_str()?.to_owned(),
            ))
        })
        .collect()
}

/// Processes that live in the namespace `name`, as `net:[4026531840]`.
pub(crate) fn holders(name: &str) -> Vec<i32> {
    processes()
        .into_iter()
        // A zombie lives nowhere; the host's first process collects orphans when it pleases.
        .filter(|pid| state(*pid) != Some('Z'))
        .filter(|pid| namespaces(*pid).values().any(|other| other == name))
        .collect()
}

/// The user id map of a process as (inside, outside, count).
pub(crate) fn uid_map(pid: i32) -> Vec<(u32, u32, u32)> {
    fs::read_to_string(format!("/proc/{pid}/uid_map"))
        .unwrap_or_else(|error| panic!("cannot read the id map of process {pid}: {error}"))
        .lines()
        .map(|line| {
            let numbers: Vec<u32> = line
                .split_whitespace()
                .map(|number| number.parse().expect("an id map is made of numbers"))
                .collect();
            (numbers[0], numbers[1], numbers[2])
        })
        .collect()
}

/// Which of the cgroup directories are there.
pub(crate) fn cgroup_directories(cgroups: &BTreeSet<PathBuf>) -> Vec<&PathBuf> {
    cgroups.iter().filter(|path| path.is_dir()).collect()
}

/// Every control group of this host, of whichever version.
pub(crate) fn cgroup_tree() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut to_visit = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = to_visit.pop() {
        // Others' groups come and go meanwhile.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                to_visit.push(entry.path());
            }
        }
    }
    found
}

/// Processes whose parent this is.
pub(crate) fn children(parent_of_them: i32) -> Vec<i32> {
    let mut all = processes();
    all.retain(|pid| parent(*pid) == Some(parent_of_them));
    all
}

/// Whether a process has ended and nobody has taken its end yet.
pub(crate) fn is_zombie(pid: i32) -> bool {
    state(pid) == Some('Z')
}

fn processes() -> Vec<i32> {
    fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

fn state(pid: i32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// Fields of proc_pid_stat(5) from the state on; the name before it may hold spaces and parentheses.
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    Some(after_name.split_whitespace().map(str::to_owned).collect())
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Directories below /sys/fs/cgroup that stand for the cgroups of a process, whatever the version.
fn cgroups(pid: i32) -> BTreeSet<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            // At the top is what no group was made for, and what has ended and was not reaped.
            let path = fields
                .next()?
                .strip_prefix('/')
                .filter(|path| !path.is_empty())?;
            let hierarchies: &[&str] = match controllers {
                "" => &["", "unified"],
                controllers => &[controllers.trim_start_matches("name=")],
            };
            hierarchies
                .iter()
                .map(|hierarchy| Path::new("/sys/fs/cgroup").join(hierarchy).join(path))
                .find(|directory| directory.is_dir())
        })
        .collect()
}

/// A process inside that waits until it is let go, and what the host calls it.
pub(crate) fn seen_from_the_host(workspace: &Workspace) -> i32 {
    let marker = format!("seen-{}", workspace.id);
    workspace.ok(&format!(
        "(exec -a {marker} sleep 1000) > /dev/null 2>&1 &
         until grep -qz '^{marker}$' /proc/[0-9]*/cmdline; do :; done"
    ));
    process_with_argument(&marker).expect("the process is seen from the host")
}
