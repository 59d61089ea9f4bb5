//! Control groups, cgroups(7): which version has which controller, and whether derrick may use it.
//!
//! Hosts have version 1, version 2, both with the controllers spread over them, or none. The
//! layout is read from texts of the kernel, so that each kind can be tested anywhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Fact;

/// The controllers that limits need.
const WANTED: [&str; 3] = ["memory", "pids", "cpu"];

/// Where the hierarchies are mounted, and where in version 2's the calling process is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Version 1: the mount of each controller.
    v1: BTreeMap<String, PathBuf>,
    /// Version 2: the directory of the calling process's own group.
    v2: Option<PathBuf>,
}

impl Layout {
    /// Reads `/proc/self/mountinfo` and `/proc/self/cgroup`.
    pub(super) fn of(mountinfo: &str, groups: &str) -> Self {
        let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
        let mut layout = Self::default();
        for mount in mountinfo.lines().filter_map(Mount::parse) {
            match mount.kind {
                "cgroup2" if layout.v2.is_none() => {
                    let own = Path::new(own.unwrap_or("/"));
                    // In a container the mount may show only the part below some group.
                    let below = own.strip_prefix(&mount.root).unwrap_or(Path::new(""));
                    layout.v2 = Some(mount.at.join(below));
                }
                "cgroup" => {
                    for option in mount
                        .options
                        .split(',')
                        .filter(|option| is_controller(option))
                    {
                        layout
                            .v1
                            .entry(option.to_owned())
                            .or_insert_with(|| mount.at.clone());
                    }
                }
                _ => {}
            }
        }
        layout
    }

    fn kind(&self) -> &'static str {
        match (self.v1.is_empty(), self.v2.is_some()) {
            (true, false) => "none",
            (false, false) => "v1",
            (true, true) => "v2",
            (false, true) => "hybrid",
        }
    }

    /// `offers` gives the controllers of a version 2 group, `usable` says whether a group can be made there.
    pub(super) fn fact(
        &self,
        root: bool,
        offers: impl Fn(&Path) -> String,
        usable: impl Fn(&Path) -> bool,
    ) -> Fact {
        let offered = self.v2.as_deref().map(offers).unwrap_or_default();
        let v2 = self.v2.as_deref().filter(|directory| usable(directory));
        let place = |controller: &str| {
            if offered.split_whitespace().any(|offer| offer == controller) {
                return v2.map(|_| "v2");
            }
            // Version 1 has no safe delegation: it is for root alone.
            let mount = self.v1.get(controller).filter(|_| root)?;
            usable(mount).then_some("v1")
        };
        let (mut have, mut lack) = (Vec::new(), Vec::new());
        for controller in WANTED {
            match place(controller) {
                Some(version) => have.push(format!("{controller} on {version}")),
                None => lack.push(controller),
            }
        }
        let found = if have.is_empty() {
            self.kind().to_owned()
        } else {
            format!("{}: {}", self.kind(), have.join(", "))
        };
        if lack.is_empty() {
            return Fact::ok("cgroups", found);
        }
        let lack = lack.join(", ");
        Fact::weaker(
            "cgroups",
            format!("{found}; {lack} cannot be used"),
            format!("the kernel does not account or limit {lack} per sandbox"),
        )
        .fix(self.fix(root, v2.is_some()))
    }

    fn fix(&self, root: bool, delegated: bool) -> Option<String> {
        let fix = match (self.kind(), root) {
            ("none", _) => "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            ("v1" | "hybrid", false) => {
                "boot with systemd.unified_cgroup_hierarchy=1: only version 2 can be given to an ordinary user"
            }
            ("v2", false) if delegated => {
                "write /etc/systemd/system/user@.service.d/delegate.conf:\n\
                 [Service]\n\
                 Delegate=cpu memory pids\n\
                 and then: systemctl daemon-reload, and log in again"
            }
            ("v2", false) => {
                "start derrick with: systemd-run --user --scope --property=Delegate=yes derrick"
            }
            _ => {
                "run derrick where /sys/fs/cgroup is not mounted read-only (docker: --privileged --cgroupns=host)"
            }
        };
        Some(fix.to_owned())
    }
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
pub(super) fn filesystem_of(mountinfo: &str, path: &Path) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::probe::State;

    const V1: &str = "\
25 30 0:23 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
26 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
27 25 0:25 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
28 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:10 - cgroup cgroup rw,memory
29 25 0:27 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
";
    const V2: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
";
    const UNIFIED: &str = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const SESSION: &str = "0::/user.slice/user-1000.slice/user@1000.service/app.slice\n";

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
            assert_eq!(layout.v2.as_deref(), v2.map(Path::new));
        }
        let controllers: Vec<_> = Layout::of(V1, "").v1.into_keys().collect();
        assert_eq!(controllers, ["cpu", "cpuacct", "memory", "pids"]);
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_understood() {
        let part = r"30 22 0:26 /docker/abc /with\040space rw - cgroup2 cgroup rw";
        let layout = Layout::of(part, "0::/docker/abc/own\n");
        assert_eq!(layout.v2.as_deref(), Some(Path::new("/with space/own")));
    }

    #[test]
    fn controllers_count_where_they_are_and_can_be_used() {
        let hybrid = format!("{V1}{UNIFIED}");
        let all = "cpuset cpu io memory hugetlb pids";
        let unlimited = "the kernel does not account or limit";
        let cases = [
            (
                V2,
                "0::/",
                true,
                all,
                true,
                State::Ok,
                "v2: memory on v2, pids on v2, cpu on v2".to_owned(),
                String::new(),
            ),
            (
                V1,
                "",
                true,
                "",
                true,
                State::Ok,
                "v1: memory on v1, pids on v1, cpu on v1".to_owned(),
                String::new(),
            ),
            (
                &hybrid,
                "0::/",
                true,
                "hugetlb",
                true,
                State::Ok,
                "hybrid: memory on v1, pids on v1, cpu on v1".to_owned(),
                String::new(),
            ),
            (
                &hybrid,
                "0::/",
                false,
                "hugetlb",
                true,
                State::Weaker,
                "hybrid; memory, pids, cpu cannot be used".to_owned(),
                format!("{unlimited} memory, pids, cpu per sandbox"),
            ),
            (
                V2,
                SESSION,
                false,
                "memory pids",
                true,
                State::Weaker,
                "v2: memory on v2, pids on v2; cpu cannot be used".to_owned(),
                format!("{unlimited} cpu per sandbox"),
            ),
            (
                V2,
                SESSION,
                false,
                all,
                false,
                State::Weaker,
                "v2; memory, pids, cpu cannot be used".to_owned(),
                format!("{unlimited} memory, pids, cpu per sandbox"),
            ),
            (
                "",
                "",
                true,
                "",
                true,
                State::Weaker,
                "none; memory, pids, cpu cannot be used".to_owned(),
                format!("{unlimited} memory, pids, cpu per sandbox"),
            ),
        ];
        for (mountinfo, groups, root, offered, usable, state, found, effect) in cases {
            let fact = Layout::of(mountinfo, groups).fact(root, |_| offered.to_owned(), |_| usable);
            assert_eq!(
                (fact.state, fact.found, fact.effect),
                (state, found, effect)
            );
        }
    }

    #[test]
    fn each_lack_has_its_own_fix() {
        let hybrid = format!("{V1}{UNIFIED}");
        let cases = [
            (
                "",
                true,
                "",
                true,
                "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            ),
            (
                V1,
                false,
                "",
                true,
                "boot with systemd.unified_cgroup_hierarchy=1: only version 2 can be given to an ordinary user",
            ),
            (
                &hybrid,
                false,
                "",
                true,
                "boot with systemd.unified_cgroup_hierarchy=1: only version 2 can be given to an ordinary user",
            ),
            (
                V2,
                false,
                "memory pids",
                true,
                "write /etc/systemd/system/user@.service.d/delegate.conf:\n[Service]\nDelegate=cpu memory pids\nand then: systemctl daemon-reload, and log in again",
            ),
            (
                V2,
                false,
                "memory pids cpu",
                false,
                "start derrick with: systemd-run --user --scope --property=Delegate=yes derrick",
            ),
            (
                V2,
                true,
                "memory pids cpu",
                false,
                "run derrick where /sys/fs/cgroup is not mounted read-only (docker: --privileged --cgroupns=host)",
            ),
        ];
        for (mountinfo, root, offered, usable, fix) in cases {
            let fact =
                Layout::of(mountinfo, SESSION).fact(root, |_| offered.to_owned(), |_| usable);
            assert_eq!(fact.fix.as_deref(), Some(fix));
        }
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
