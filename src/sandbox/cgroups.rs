//! Control groups, cgroups(7): which version has which controller, and where derrick makes groups.
//!
//! Hosts have version 1, version 2, both with the controllers spread over them, or none. The
//! layout is read from texts of the kernel, so that each kind can be tested anywhere.

mod group;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;
use serde::{Deserialize, Serialize};

use super::identity::is_root_of_the_host;
use super::{Limits, Requests};
pub use group::{Change, Counters, Group, Hits, LEAST_CPUS, Pressure, Pressures, Stall, Throttle};

/// A controller that limits need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Controller {
    /// Memory, the page cache and the kernel's own for it included.
    Memory,
    /// Processes and threads.
    Pids,
    /// Time on processors.
    Cpu,
}

impl Controller {
    /// All that derrick uses.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    /// As the kernel calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }
}

/// A version of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// A hierarchy for each controller; for root alone.
    V1,
    /// One hierarchy; parts of it can be given to ordinary users.
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// A group below which those of sandboxes are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Of its hierarchy.
    pub version: Version,
    /// Its directory.
    pub directory: PathBuf,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Root of the host.
    Root,
    /// Anybody else.
    User,
}

impl Caller {
    /// The user who runs the calling process.
    #[must_use]
    pub fn this() -> Self {
        if is_root_of_the_host() {
            Self::Root
        } else {
            Self::User
        }
    }
}

/// Where the hierarchies are mounted, and where in them the calling process is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Version 1: for each controller, the directory of the calling process's own group.
    v1: BTreeMap<String, PathBuf>,
    v2: Option<Unified>,
}

/// The hierarchy of version 2.
#[derive(Debug, PartialEq, Eq)]
struct Unified {
    /// Its topmost group that is to be seen.
    top: PathBuf,
    /// The calling process's own.
    own: PathBuf,
}

impl Layout {
    /// That of the calling process.
    #[must_use]
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::of(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }

    /// Reads `/proc/self/mountinfo` and `/proc/self/cgroup`.
    #[must_use]
    pub fn of(mountinfo: &str, groups: &str) -> Self {
        let mut layout = Self::default();
        for mount in mountinfo.lines().filter_map(Mount::parse) {
            match mount.kind {
                "cgroup2" if layout.v2.is_none() => {
                    layout.v2 = Some(Unified {
                        own: mount.own(groups, ""),
                        top: mount.at,
                    });
                }
                "cgroup" => {
                    for controller in mount.options.split(',').filter(|it| is_controller(it)) {
                        let own = || mount.own(groups, controller);
                        layout.v1.entry(controller.to_owned()).or_insert_with(own);
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// Which versions there are, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match (self.v1.is_empty(), self.v2.is_some()) {
            (true, false) => "none",
            (false, false) => "v1",
            (true, true) => "v2",
            (false, true) => "hybrid",
        }
    }

    /// The group of version 2 below which `caller` makes others: root at the top, as container
    /// runtimes do, since a group that has processes cannot pass controllers on; anybody else in the
    /// part that was given to them.
    #[must_use]
    pub fn unified(&self, caller: Caller) -> Option<&Path> {
        let unified = self.v2.as_ref()?;
        Some(match caller {
            Caller::Root => &unified.top,
            Caller::User => &unified.own,
        })
    }

    /// Where groups with `controller` are made. `offers` gives the controllers of a group of version
    /// 2, `usable` says whether a group can be made below one.
    pub fn place(
        &self,
        controller: Controller,
        caller: Caller,
        offers: impl Fn(&Path) -> String,
        usable: impl Fn(&Path) -> bool,
    ) -> Option<Place> {
        let name = controller.name();
        let unified = self.unified(caller);
        if let Some(directory) = unified
            && offers(directory).split_whitespace().any(|it| it == name)
        {
            return usable(directory).then(|| Place {
                version: Version::V2,
                directory: directory.to_owned(),
            });
        }
        // Version 1 has no safe delegation: it is for root alone.
        let directory = self.v1.get(name).filter(|_| caller == Caller::Root)?;
        usable(directory).then(|| Place {
            version: Version::V1,
            directory: directory.clone(),
        })
    }
}

/// The controllers that a group of version 2 has for those below it.
#[must_use]
pub fn offers(directory: &Path) -> String {
    fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default()
}

/// Whether the calling process may make groups below one, and move processes there.
#[must_use]
pub fn usable(directory: &Path) -> bool {
    let writable = |path: &Path| nix::unistd::eaccess(path, AccessFlags::W_OK).is_ok();
    writable(directory) && writable(&directory.join("cgroup.procs"))
}

/// Where the provider's sandboxes get their groups.
#[derive(Debug, Clone, Default)]
pub struct Hierarchies {
    /// For each controller that can be used, the group below which all of this provider's are made.
    places: BTreeMap<Controller, Place>,
    /// That of version 2, where there is a freezer, whatever else there is.
    unified: Option<PathBuf>,
    /// Why others cannot, where that is known.
    reason: Option<String>,
}

/// Something that may be asked for, and that not every host can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The ceiling for memory.
    MemoryLimit,
    /// The ceiling for time on processors.
    CpuLimit,
    /// The ceiling for processes.
    PidsLimit,
    /// The ceiling for open files.
    OpenFilesLimit,
    /// The ceiling for what is written.
    DiskLimit,
    /// Memory that is to be there.
    MemoryRequest,
    /// Time on processors that is to be there.
    CpuRequest,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MemoryLimit => "limit on memory",
            Self::CpuLimit => "limit on cpus",
            Self::PidsLimit => "limit on pids",
            Self::OpenFilesLimit => "limit on open_files",
            Self::DiskLimit => "limit on disk",
            Self::MemoryRequest => "request for memory",
            Self::CpuRequest => "request for cpus",
        })
    }
}

/// A limit that this host does not enforce, or a request that it cannot meet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {wish} cannot be enforced on this host: {reason}")]
pub struct Unenforceable {
    /// Which one.
    pub wish: Wish,
    /// What is missing.
    pub reason: String,
}

impl Hierarchies {
    /// Those of the calling process, which is the provider, with a group `name` in each that is the
    /// provider's; none is made yet.
    ///
    /// The provider moves into a group of its own for that where it is not at the top: a group that has
    /// processes passes no controllers on, cgroups(7). So this comes before the spawner is started.
    #[must_use]
    pub fn find(name: &str) -> Self {
        let (layout, caller) = (Layout::here(), Caller::this());
        let mut places = BTreeMap::new();
        for controller in Controller::ALL {
            if let Some(mut place) = layout.place(controller, caller, offers, usable) {
                place.directory.push(name);
                places.insert(controller, place);
            }
        }
        let unified = layout.unified(caller).filter(|group| usable(group));
        let mut found = Self {
            places,
            unified: unified.map(|group| group.join(name)),
            reason: None,
        };
        let uses_unified = found
            .places
            .values()
            .any(|place| place.version == Version::V2);
        // The root of the hierarchy alone has no type; that of a container is none.
        let divided = layout
            .unified(caller)
            .filter(|group| uses_unified && group.join("cgroup.type").exists());
        if let Some(own) = divided
            && let Err(error) = step_aside(own)
        {
            found.places.clear();
            found.unified = None;
            found.reason = Some(format!(
                "derrick's own group {} cannot be divided: {error}",
                own.display()
            ));
        }
        found
    }

    /// The groups of all sandboxes together: what is to be removed when the provider is gone.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        let mut all: Vec<_> = self
            .places
            .values()
            .map(|place| place.directory.clone())
            .chain(self.unified.clone())
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// Whether all of these limits can be enforced, and these requests be met.
    ///
    /// # Errors
    /// The first one that cannot.
    pub fn check(&self, limits: &Limits, requests: &Requests) -> Result<(), Unenforceable> {
        super::limits::check(limits)?;
        let (memory, cpu, pids) = (Controller::Memory, Controller::Cpu, Controller::Pids);
        let wanted = [
            (Wish::MemoryLimit, memory, limits.memory.is_some()),
            (Wish::CpuLimit, cpu, limits.cpus.is_some()),
            (Wish::PidsLimit, pids, limits.pids.is_some()),
            (Wish::MemoryRequest, memory, requests.memory.is_some()),
            (Wish::CpuRequest, cpu, requests.cpus.is_some()),
        ];
        for (wish, controller, asked) in wanted {
            if asked && !self.places.contains_key(&controller) {
                let name = controller.name();
                let missing =
                    || format!("it has no cgroup controller '{name}' that derrick may use");
                let reason = self.reason.clone().unwrap_or_else(missing);
                let reason = format!("{reason}; see 'derrick check'");
                return Err(Unenforceable { wish, reason });
            }
        }
        if let Some(asked) = requests.memory
            && let Some(there) = memory_of_host()
            && asked > there
        {
            return Err(Unenforceable {
                wish: Wish::MemoryRequest,
                reason: format!("it has {there} bytes of memory"),
            });
        }
        if let Some(asked) = requests.cpus {
            let processors = std::thread::available_parallelism().map_or(usize::MAX, Into::into);
            if asked > processors as f64 {
                return Err(Unenforceable {
                    wish: Wish::CpuRequest,
                    reason: format!("derrick has {processors} processors there"),
                });
            }
        }
        Ok(())
    }

    /// The group of one sandbox, which is made with it; `None` where it needs none.
    ///
    /// # Errors
    /// The first limit that cannot be enforced.
    pub fn group(
        &self,
        name: &str,
        limits: &Limits,
        requests: &Requests,
    ) -> Result<Option<Group>, Unenforceable> {
        self.check(limits, requests)?;
        let unified = self.unified.as_deref();
        Ok(Group::new(&self.places, unified, name, limits, requests))
    }

    /// What of `limits` and `requests` this host enforces, and why it does not enforce the rest.
    #[must_use]
    pub fn enforceable(
        &self,
        limits: &Limits,
        requests: &Requests,
    ) -> (Limits, Requests, Vec<Unenforceable>) {
        let (mut limits, mut requests) = (*limits, *requests);
        let mut missing = Vec::new();
        while let Err(unenforceable) = self.check(&limits, &requests) {
            match unenforceable.wish {
                Wish::MemoryLimit => limits.memory = None,
                Wish::CpuLimit => limits.cpus = None,
                Wish::PidsLimit => limits.pids = None,
                Wish::OpenFilesLimit => limits.open_files = None,
                Wish::DiskLimit => limits.disk = None,
                Wish::MemoryRequest => requests.memory = None,
                Wish::CpuRequest => requests.cpus = None,
            }
            missing.push(unenforceable);
        }
        (limits, requests, missing)
    }
}

/// Bytes of memory that this host has, proc_meminfo(5).
fn memory_of_host() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes: u64 = line?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

/// Moves the calling process into a group below its own, `own`, and has that pass its controllers on.
fn step_aside(own: &Path) -> io::Result<()> {
    let leaf = own.join("derrick-provider");
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(leaf.join("cgroup.procs"), "0")?;
    group::pass_on(own, &Controller::ALL.map(Controller::name)).inspect_err(|_| {
        // Back where it was; what cannot be undone harms nobody.
        let _ = fs::write(own.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&leaf);
    })
}

/// Removes the groups of a provider that is gone, and those of its sandboxes, none of which has a
/// process any more.
///
/// # Errors
/// The first one of rmdir(2); the others are removed all the same.
pub fn remove_all(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    let mut removed = Ok(());
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            removed = removed.and(group::remove(&entry.path()));
        }
    }
    removed.and(group::remove(directory))
}

fn is_controller(option: &str) -> bool {
    const CONTROLLERS: [&str; 14] = [
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
        "rdma",
    ];
    CONTROLLERS.contains(&option)
}

/// The type of the filesystem that `path`, absolute, is on.
#[must_use]
pub fn filesystem_of(mountinfo: &str, path: &Path) -> Option<String> {
    mountinfo
        .lines()
        .filter_map(Mount::parse)
        .filter(|mount| path.starts_with(&mount.at))
        // Of several mounts at one place the last one is on top.
        .max_by_key(|mount| mount.at.components().count())
        .map(|mount| mount.kind.to_owned())
}

/// A line of mountinfo, proc_pid_mountinfo(5).
struct Mount<'l> {
    root: PathBuf,
    at: PathBuf,
    kind: &'l str,
    /// The options of the filesystem, not those of the mount.
    options: &'l str,
}

impl<'l> Mount<'l> {
    /// The directory of the group that `groups`, proc_pid_cgroup(5), names for `controller`.
    fn own(&self, groups: &str, controller: &str) -> PathBuf {
        let own = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let named = controllers.split(',').any(|it| it == controller);
            named.then_some(path)
        });
        let own = Path::new(own.unwrap_or("/"));
        // In a container the mount may show only the part below some group.
        let below = own.strip_prefix(&self.root).unwrap_or(Path::new(""));
        if below.as_os_str().is_empty() {
            self.at.clone()
        } else {
            self.at.join(below)
        }
    }

    fn parse(line: &'l str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut filesystem = filesystem.split(' ');
        Some(Self {
            root: unescape(mount.next()?),
            at: unescape(mount.next()?),
            kind: filesystem.next()?,
            options: filesystem.nth(1)?,
        })
    }
}

/// Space, tab, newline and backslash stand there in octal, as `\040`.
fn unescape(text: &str) -> PathBuf {
    let plain = [
        (r"\040", " "),
        (r"\011", "\t"),
        (r"\012", "\n"),
        (r"\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (escape, plain)| {
        text.replace(escape, plain)
    });
    PathBuf::from(plain)
}

/// What hosts of each kind say, for tests.
#[cfg(test)]
pub(super) mod examples {
    /// Version 1 alone.
    pub(in crate::sandbox) const V1: &str = "\
25 30 0:23 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
26 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
27 25 0:25 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
28 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:10 - cgroup cgroup rw,memory
29 25 0:27 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
";
    /// Version 2 alone.
    pub(in crate::sandbox) const V2: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
";
    /// What a hybrid host has besides version 1.
    pub(in crate::sandbox) const UNIFIED: &str =
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    /// The group of a process in a session of an ordinary user.
    pub(in crate::sandbox) const SESSION: &str =
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice\n";
}

#[cfg(test)]
mod tests {
    use super::examples::{SESSION, UNIFIED, V1, V2};
    use super::*;

    #[test]
    fn each_layout_is_told_from_mountinfo() {
        let hybrid = format!("{V1}{UNIFIED}");
        let named_only = "26 25 0:24 / /x rw - cgroup cgroup rw,xattr,name=systemd\n";
        let cases = [
            ("", "", "none", None),
            (named_only, "1:name=systemd:/\n", "none", None),
            (V1, "3:memory:/a\n", "v1", None),
            (V2, "0::/\n", "v2", Some("/sys/fs/cgroup")),
            (
                V2,
                SESSION,
                "v2",
                Some("/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice"),
            ),
            (
                &hybrid,
                "3:memory:/a\n0::/b\n",
                "hybrid",
                Some("/sys/fs/cgroup/unified/b"),
            ),
        ];
        for (mountinfo, groups, kind, v2) in cases {
            let layout = Layout::of(mountinfo, groups);
            assert_eq!(layout.kind(), kind);
            assert_eq!(layout.unified(Caller::User), v2.map(Path::new));
        }
        let controllers: Vec<_> = Layout::of(V1, "").v1.into_keys().collect();
        assert_eq!(controllers, ["cpu", "cpuacct", "memory", "pids"]);
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_understood() {
        let part = r"30 22 0:26 /docker/abc /with\040space rw - cgroup2 cgroup rw";
        let layout = Layout::of(part, "0::/docker/abc/own\n");
        assert_eq!(
            layout.unified(Caller::User),
            Some(Path::new("/with space/own"))
        );
    }

    #[test]
    fn the_filesystem_of_a_path_is_that_of_its_innermost_mount() {
        let mounts = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
23 22 0:5 / /var/lib rw - xfs /dev/vdb rw
24 22 0:6 / /tmp rw - tmpfs tmpfs rw
25 22 0:7 / /tmp rw - overlay overlay rw
";
        for (path, expected) in [
            ("/var/lib/derrick", "xfs"),
            ("/var/library", "ext4"),
            ("/tmp/x", "overlay"),
        ] {
            let found = filesystem_of(mounts, Path::new(path));
            assert_eq!(found.as_deref(), Some(expected), "{path}");
        }
    }
}
