//! The host's settings that explain why a user namespace or its ids were refused.
//!
//! Nothing here decides whether something works: trying does. All of it is text that was read
//! once, so that the explanations can be tested without a host of each kind.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::identity::IDS_PER_SANDBOX;
use super::{on_path, read};

/// Major and minor of a kernel release such as `6.1.0-13-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Settings that forbid user namespaces or weaken them.
#[derive(Debug, Default)]
pub(super) struct UserNamespaces {
    /// The namespaces of which `user.max_*_namespaces` allows none.
    forbidden: Vec<&'static str>,
    /// This is no root, and `kernel.unprivileged_userns_clone` is 0 (Debian's and Arch's patch).
    unprivileged_off: bool,
    /// This is no root, and `kernel.apparmor_restrict_unprivileged_userns` is not 0 (Ubuntu 23.10 and later).
    apparmor: bool,
    /// This program, for an AppArmor profile.
    program: PathBuf,
}

impl UserNamespaces {
    pub(super) fn read() -> Self {
        const KINDS: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
        let setting = |name: &str| read(Path::new("/proc/sys").join(name)).trim().to_owned();
        let is_zero = |kind: &&str| setting(&format!("user/max_{kind}_namespaces")) == "0";
        let restricts = |name: &str, values: fn(&str) -> bool| {
            !rustix::process::geteuid().is_root() && values(&setting(name))
        };
        Self {
            forbidden: KINDS.into_iter().filter(is_zero).collect(),
            unprivileged_off: restricts("kernel/unprivileged_userns_clone", |value| value == "0"),
            apparmor: restricts("kernel/apparmor_restrict_unprivileged_userns", |value| {
                !["", "0"].contains(&value)
            }),
            program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/derrick")),
        }
    }

    /// What probably refused a namespace with `errno`, and the fix.
    pub(super) fn explain(&self, errno: i32) -> (Option<String>, Option<String>) {
        let both = |cause: &str, fix: &str| (Some(cause.to_owned()), Some(fix.to_owned()));
        match errno {
            libc::ENOSPC | libc::EUSERS => match self.forbidden.first() {
                Some(kind) => {
                    let setting = format!("user.max_{kind}_namespaces");
                    both(
                        &format!("{setting} is 0"),
                        &format!("sysctl -w {setting}=15000"),
                    )
                }
                None => both(
                    "too many namespaces are there, or nested",
                    "end what made them, or raise the limits that 'sysctl user' lists",
                ),
            },
            libc::EPERM | libc::EACCES if self.unprivileged_off => both(
                "kernel.unprivileged_userns_clone is 0",
                "sysctl -w kernel.unprivileged_userns_clone=1",
            ),
            libc::EPERM | libc::EACCES if self.apparmor => both(
                "kernel.apparmor_restrict_unprivileged_userns is on",
                &self.apparmor_fix(),
            ),
            libc::EPERM | libc::EACCES => both(
                "a chroot, the seccomp filter or security module of a container, or SELinux forbids it",
                "run derrick on the host and in no chroot, or in a container that allows it (docker: \
                 --security-opt seccomp=unconfined --security-opt apparmor=unconfined)",
            ),
            libc::EINVAL | libc::ENOSYS => both(
                "this kernel has none",
                "boot a kernel with CONFIG_USER_NS and CONFIG_NAMESPACES",
            ),
            _ => (None, None),
        }
    }

    fn apparmor_fix(&self) -> String {
        let program = self.program.display();
        format!(
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\n\
             or, for derrick alone, write /etc/apparmor.d/derrick:\n\
             abi <abi/4.0>,\n\
             include <tunables/global>\n\
             profile derrick \"{program}\" flags=(unconfined) {{\n  userns,\n}}\n\
             and load it: apparmor_parser -r /etc/apparmor.d/derrick"
        )
    }
}

/// What the host lends an ordinary user: subordinate ids, and the programs that map them.
#[derive(Debug)]
pub(super) struct Lending {
    user: String,
    /// The longest run of ids for the user, from `/etc/subuid` and `/etc/subgid`.
    uids: u32,
    gids: u32,
    /// Where ids start that neither table gives to anybody.
    free: u32,
    helpers: [(&'static str, Helper); 2],
}

/// Whether a program may map ids that are not its user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Helper {
    Privileged,
    Unprivileged,
    Missing,
}

impl Lending {
    pub(super) fn read() -> Self {
        let uid = rustix::process::getuid().as_raw();
        let name = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
            .ok()
            .flatten()
            .map(|user| user.name);
        let (uids, gids) = (read("/etc/subuid"), read("/etc/subgid"));
        let run = |table| longest_run(table, uid, name.as_deref());
        Self {
            uids: run(&uids),
            gids: run(&gids),
            free: first_free(&uids).max(first_free(&gids)),
            helpers: ["newuidmap", "newgidmap"].map(|program| (program, helper(program))),
            user: name.unwrap_or_else(|| uid.to_string()),
        }
    }

    /// What is missing for 65,536 ids in a sandbox, and the fix.
    pub(super) fn explain(&self) -> (String, Option<String>) {
        let user = &self.user;
        for (program, helper) in self.helpers {
            match helper {
                Helper::Missing => {
                    let fix = "apt-get install uidmap".to_owned();
                    return (format!("{program} is not on PATH"), Some(fix));
                }
                Helper::Unprivileged => {
                    let found =
                        format!("{program} is neither set-user-ID root nor has file capabilities");
                    return (found, Some("apt-get install --reinstall uidmap".to_owned()));
                }
                Helper::Privileged => {}
            }
        }
        for (file, ids) in [("/etc/subuid", self.uids), ("/etc/subgid", self.gids)] {
            if ids < IDS_PER_SANDBOX {
                let found =
                    format!("{file} gives {user} {ids} ids in a row, not {IDS_PER_SANDBOX}");
                let range = format!(
                    "{}-{}",
                    self.free,
                    self.free.saturating_add(IDS_PER_SANDBOX - 1)
                );
                let fix = format!("usermod --add-subuids {range} --add-subgids {range} {user}");
                return (found, Some(fix));
            }
        }
        let found =
            "newuidmap or newgidmap refused, though everything for them is there".to_owned();
        let fix = "see that their filesystem is not mounted nosuid, and that derrick runs without no_new_privs";
        (found, Some(fix.to_owned()))
    }
}

/// The longest run of ids that a table as in subuid(5) gives to a user.
fn longest_run(table: &str, uid: u32, name: Option<&str>) -> u32 {
    let uid = uid.to_string();
    runs(table)
        .filter(|run| run.owner == uid || Some(run.owner) == name)
        .map(|run| run.count)
        .max()
        .unwrap_or(0)
}

/// The first id after all that the table gives away, and after those that systems give to accounts.
fn first_free(table: &str) -> u32 {
    let ends = runs(table).map(|run| run.first.saturating_add(run.count));
    ends.fold(100_000, u32::max)
}

/// A line of a table as in subuid(5).
struct Run<'l> {
    owner: &'l str,
    first: u32,
    count: u32,
}

fn runs(table: &str) -> impl Iterator<Item = Run<'_>> {
    table.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        Some(Run {
            owner: fields.next()?,
            first: fields.next()?.parse().ok()?,
            count: fields.next()?.parse().ok()?,
        })
    })
}

fn helper(program: &str) -> Helper {
    let Some(file) = on_path(program) else {
        return Helper::Missing;
    };
    let set_user_id = fs::metadata(&file)
        .is_ok_and(|metadata| metadata.uid() == 0 && metadata.mode() & 0o4000 != 0);
    let mut no_room: [u8; 0] = [];
    // With no room the kernel tells the size alone.
    let capabilities = rustix::fs::getxattr(&file, "security.capability", &mut no_room[..])
        .is_ok_and(|size| size > 0);
    if set_user_id || capabilities {
        Helper::Privileged
    } else {
        Helper::Unprivileged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_any_release() {
        let cases = [
            ("6.18.44-fc-v509", Some((6, 18))),
            ("6.1.0-13-amd64", Some((6, 1))),
            ("5.15.167.4-microsoft-standard-WSL2", Some((5, 15))),
            ("7.0", Some((7, 0))),
            ("6.1-rc3", Some((6, 1))),
            ("", None),
            ("linux", None),
        ];
        for (release, expected) in cases {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn the_longest_run_of_ids_is_found_by_name_or_number() {
        let table = "alice:100000:65536\n# a comment\n\nalice:300000:10\n1001:400000:70000\nbob:1\nbob:x:9\n eve:1:5 \n";
        let cases = [
            (1000, Some("alice"), 65_536),
            (1001, None, 70_000),
            (1001, Some("carol"), 70_000),
            (1002, Some("bob"), 0),
            (1003, Some("eve"), 5),
            (100, None, 0),
        ];
        for (uid, name, expected) in cases {
            assert_eq!(longest_run(table, uid, name), expected, "{uid} {name:?}");
        }
    }

    #[test]
    fn a_free_range_follows_all_that_are_given_away() {
        let cases = [
            ("", 100_000),
            ("a:1000:10", 100_000),
            ("a:100000:65536\nb:165536:65536\n", 231_072),
            ("a:4294967290:65536", u32::MAX),
        ];
        for (table, expected) in cases {
            assert_eq!(first_free(table), expected, "{table}");
        }
    }

    #[test]
    fn what_is_missing_for_subordinate_ids_is_named_with_its_fix() {
        let usermod = "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 alice";
        let cases = [
            (
                65_536,
                65_536,
                Helper::Missing,
                "newuidmap is not on PATH",
                "apt-get install uidmap",
            ),
            (
                65_536,
                65_536,
                Helper::Unprivileged,
                "newuidmap is neither set-user-ID root nor has file capabilities",
                "apt-get install --reinstall uidmap",
            ),
            (
                0,
                65_536,
                Helper::Privileged,
                "/etc/subuid gives alice 0 ids in a row, not 65536",
                usermod,
            ),
            (
                65_536,
                1000,
                Helper::Privileged,
                "/etc/subgid gives alice 1000 ids in a row, not 65536",
                usermod,
            ),
            (
                65_536,
                65_536,
                Helper::Privileged,
                "newuidmap or newgidmap refused, though everything for them is there",
                "see that their filesystem is not mounted nosuid, and that derrick runs without no_new_privs",
            ),
        ];
        for (uids, gids, helper, found, fix) in cases {
            let lending = Lending {
                user: "alice".to_owned(),
                uids,
                gids,
                free: 100_000,
                helpers: [("newuidmap", helper), ("newgidmap", Helper::Privileged)],
            };
            assert_eq!(lending.explain(), (found.to_owned(), Some(fix.to_owned())));
        }
    }

    #[test]
    fn a_refused_user_namespace_is_explained_with_its_fix() {
        let none = UserNamespaces::default;
        let container =
            "a chroot, the seccomp filter or security module of a container, or SELinux forbids it";
        let elsewhere = "run derrick on the host and in no chroot, or in a container that allows it (docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined)";
        let cases = [
            (
                UserNamespaces {
                    forbidden: vec!["user"],
                    ..none()
                },
                libc::ENOSPC,
                "user.max_user_namespaces is 0",
                "sysctl -w user.max_user_namespaces=15000",
            ),
            (
                UserNamespaces {
                    unprivileged_off: true,
                    ..none()
                },
                libc::EPERM,
                "kernel.unprivileged_userns_clone is 0",
                "sysctl -w kernel.unprivileged_userns_clone=1",
            ),
            (
                UserNamespaces {
                    forbidden: vec!["net", "uts"],
                    ..none()
                },
                libc::ENOSPC,
                "user.max_net_namespaces is 0",
                "sysctl -w user.max_net_namespaces=15000",
            ),
            (
                none(),
                libc::ENOSPC,
                "too many namespaces are there, or nested",
                "end what made them, or raise the limits that 'sysctl user' lists",
            ),
            // A setting that has nothing to do with the errno is not blamed.
            (
                UserNamespaces {
                    forbidden: vec!["net"],
                    ..none()
                },
                libc::EPERM,
                container,
                elsewhere,
            ),
            (none(), libc::EPERM, container, elsewhere),
            (
                none(),
                libc::EINVAL,
                "this kernel has none",
                "boot a kernel with CONFIG_USER_NS and CONFIG_NAMESPACES",
            ),
        ];
        for (settings, errno, cause, fix) in cases {
            let expected = (Some(cause.to_owned()), Some(fix.to_owned()));
            assert_eq!(settings.explain(errno), expected);
        }
        assert_eq!(none().explain(libc::EIO), (None, None));
    }

    #[test]
    fn apparmor_is_fixed_by_a_sysctl_or_a_profile_for_this_program() {
        let settings = UserNamespaces {
            apparmor: true,
            program: PathBuf::from("/opt/bin/derrick"),
            ..UserNamespaces::default()
        };
        let (cause, fix) = settings.explain(libc::EPERM);
        assert_eq!(
            cause.as_deref(),
            Some("kernel.apparmor_restrict_unprivileged_userns is on")
        );
        assert_eq!(
            fix.unwrap().lines().collect::<Vec<_>>(),
            [
                "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
                "or, for derrick alone, write /etc/apparmor.d/derrick:",
                "abi <abi/4.0>,",
                "include <tunables/global>",
                "profile derrick \"/opt/bin/derrick\" flags=(unconfined) {",
                "  userns,",
                "}",
                "and load it: apparmor_parser -r /etc/apparmor.d/derrick",
            ]
        );
    }
}
