//! The profiles as data, and what their compiled filters answer, on both architectures.

use std::collections::BTreeSet;

use super::machine::{Event, answer_of};
use super::*;

const ARCHITECTURES: [Architecture; 2] = [Architecture::X86_64, Architecture::Aarch64];
const PROFILES: [Profile; 2] = [Profile::Standard, Profile::Nested];

const NO_FAMILY: SeccompAnswer = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT.cast_unsigned();
const NO_PROTOCOL: SeccompAnswer = libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT.cast_unsigned();

fn native() -> Architecture {
    Architecture::native().expect("there are filters for it")
}

// --- the data ---

/// Every name and number that is listed for an architecture, from all tables.
fn listed(architecture: Architecture) -> Vec<(&'static str, u32)> {
    answers(Profile::Standard)
        .into_iter()
        .flat_map(|(_, calls)| calls)
        .filter_map(|call| Some((call.name, call.number(architecture)?)))
        .collect()
}

/// The number by the table of the syscalls crate, looked up by name and at run time.
fn known(architecture: Architecture, name: &str) -> Option<u32> {
    let name = match (architecture, name) {
        (Architecture::Aarch64, "newfstatat") => "fstatat",
        _ => name,
    };
    let id = match architecture {
        Architecture::X86_64 => name
            .parse::<syscalls::x86_64::Sysno>()
            .ok()
            .map(|it| it.id()),
        Architecture::Aarch64 => name
            .parse::<syscalls::aarch64::Sysno>()
            .ok()
            .map(|it| it.id()),
    };
    id.map(i32::cast_unsigned)
}

#[test]
fn every_name_is_that_of_a_call_on_each_architecture_or_on_none_but_x86_64() {
    for (_, calls) in answers(Profile::Standard)
        .iter()
        .chain(Work::Copying.answers())
    {
        for call in *calls {
            for architecture in ARCHITECTURES {
                let number = call.number(architecture);
                assert_eq!(number, known(architecture, call.name), "{}", call.name);
            }
        }
    }
}

#[test]
fn the_numbers_are_those_of_the_c_library() {
    let by_libc = [
        ("clone", libc::SYS_clone),
        ("execve", libc::SYS_execve),
        ("ioctl", libc::SYS_ioctl),
        ("landlock_restrict_self", libc::SYS_landlock_restrict_self),
        ("mount", libc::SYS_mount),
        ("openat2", libc::SYS_openat2),
        ("socket", libc::SYS_socket),
        ("unshare", libc::SYS_unshare),
    ];
    let listed = listed(native());
    for (name, number) in by_libc {
        let number = u32::try_from(number).expect("numbers are small");
        assert!(listed.contains(&(name, number)), "{name} is not {number}");
    }
}

#[test]
fn no_call_is_listed_twice_or_both_allowed_and_forbidden() {
    for architecture in ARCHITECTURES {
        let listed = listed(architecture);
        let names: BTreeSet<_> = listed.iter().map(|(name, _)| name).collect();
        let numbers: BTreeSet<_> = listed.iter().map(|(_, number)| number).collect();
        let counts = (names.len(), numbers.len());
        assert_eq!(counts, (listed.len(), listed.len()), "{architecture:?}");
    }
}

#[test]
fn arguments_are_looked_at_of_allowed_calls_alone() {
    for architecture in ARCHITECTURES {
        for profile in PROFILES {
            let allowed: BTreeSet<i64> = answers(profile)
                .into_iter()
                .filter(|(answer, _)| *answer == ALLOW)
                .flat_map(|(_, calls)| calls)
                .filter_map(|call| call.number(architecture).map(i64::from))
                .collect();
            for (errno, rules) in arguments::rules(profile, architecture).expect("rules") {
                for number in rules.keys() {
                    assert!(allowed.contains(number), "{number} for errno {errno}");
                }
            }
        }
    }
}

// --- the filters ---

/// Compiled filters, and the calls that they are asked about.
struct Asked {
    profile: Profile,
    architecture: Architecture,
    filters: Filters,
}

impl Asked {
    fn new(profile: Profile, architecture: Architecture) -> Self {
        let filters = Filters::compile_for(profile, architecture).expect("it compiles");
        Self {
            profile,
            architecture,
            filters,
        }
    }

    /// Each profile on each architecture.
    fn all() -> impl Iterator<Item = Self> {
        let of = |profile| ARCHITECTURES.map(|architecture| Self::new(profile, architecture));
        PROFILES.into_iter().flat_map(of)
    }

    /// The answer to what makes a namespace.
    fn of_namespaces(&self) -> SeccompAnswer {
        match self.profile {
            Profile::Standard => NOT_PERMITTED,
            Profile::Nested => ALLOW,
        }
    }

    fn number(&self, number: u32, arguments: &[u64]) -> SeccompAnswer {
        let event = Event::new(self.architecture, number, arguments);
        answer_of(&self.filters.programs, &event)
    }

    fn call(&self, name: &str, arguments: &[u64]) -> SeccompAnswer {
        let number = known(self.architecture, name);
        let number = number.unwrap_or_else(|| panic!("{name} on {:?}", self.architecture));
        self.number(number, arguments)
    }

    #[track_caller]
    fn expect(&self, name: &str, arguments: &[u64], expected: SeccompAnswer) {
        let answer = self.call(name, arguments);
        let case = (self.profile, self.architecture);
        assert_eq!(answer, expected, "{name} {arguments:#x?} {case:?}");
    }
}

/// Calls whose number decides, with what each profile answers: names as in the manual.
const BY_NUMBER: &[(&str, SeccompAnswer, SeccompAnswer)] = &[
    ("read", ALLOW, ALLOW),
    ("execve", ALLOW, ALLOW),
    ("ptrace", ALLOW, ALLOW),
    ("chroot", ALLOW, ALLOW),
    ("landlock_restrict_self", ALLOW, ALLOW),
    ("seccomp", ALLOW, ALLOW),
    // Its flags are behind a pointer: programs are to fall back to clone.
    ("clone3", NO_SUCH_CALL, NO_SUCH_CALL),
    ("io_uring_setup", NO_SUCH_CALL, NO_SUCH_CALL),
    ("io_uring_enter", NO_SUCH_CALL, NO_SUCH_CALL),
    ("io_uring_register", NO_SUCH_CALL, NO_SUCH_CALL),
    ("add_key", NOT_PERMITTED, NOT_PERMITTED),
    ("keyctl", NOT_PERMITTED, NOT_PERMITTED),
    ("request_key", NOT_PERMITTED, NOT_PERMITTED),
    ("bpf", NOT_PERMITTED, NOT_PERMITTED),
    ("perf_event_open", NOT_PERMITTED, NOT_PERMITTED),
    ("userfaultfd", NOT_PERMITTED, NOT_PERMITTED),
    ("open_by_handle_at", NOT_PERMITTED, NOT_PERMITTED),
    ("fanotify_init", NOT_PERMITTED, NOT_PERMITTED),
    ("pidfd_getfd", NOT_PERMITTED, NOT_PERMITTED),
    ("kcmp", NOT_PERMITTED, NOT_PERMITTED),
    ("init_module", NOT_PERMITTED, NOT_PERMITTED),
    ("finit_module", NOT_PERMITTED, NOT_PERMITTED),
    ("delete_module", NOT_PERMITTED, NOT_PERMITTED),
    ("kexec_load", NOT_PERMITTED, NOT_PERMITTED),
    ("kexec_file_load", NOT_PERMITTED, NOT_PERMITTED),
    ("reboot", NOT_PERMITTED, NOT_PERMITTED),
    ("swapon", NOT_PERMITTED, NOT_PERMITTED),
    ("swapoff", NOT_PERMITTED, NOT_PERMITTED),
    ("acct", NOT_PERMITTED, NOT_PERMITTED),
    ("syslog", NOT_PERMITTED, NOT_PERMITTED),
    ("quotactl", NOT_PERMITTED, NOT_PERMITTED),
    ("quotactl_fd", NOT_PERMITTED, NOT_PERMITTED),
    ("clock_settime", NOT_PERMITTED, NOT_PERMITTED),
    ("settimeofday", NOT_PERMITTED, NOT_PERMITTED),
    ("vhangup", NOT_PERMITTED, NOT_PERMITTED),
    ("lookup_dcookie", NOT_PERMITTED, NOT_PERMITTED),
    ("nfsservctl", NOT_PERMITTED, NOT_PERMITTED),
    ("mbind", NOT_PERMITTED, NOT_PERMITTED),
    ("move_pages", NOT_PERMITTED, NOT_PERMITTED),
    ("migrate_pages", NOT_PERMITTED, NOT_PERMITTED),
    ("set_mempolicy", NOT_PERMITTED, NOT_PERMITTED),
    ("mount", NOT_PERMITTED, ALLOW),
    ("umount2", NOT_PERMITTED, ALLOW),
    ("pivot_root", NOT_PERMITTED, ALLOW),
    ("setns", NOT_PERMITTED, ALLOW),
    ("open_tree", NOT_PERMITTED, ALLOW),
    ("open_tree_attr", NOT_PERMITTED, ALLOW),
    ("move_mount", NOT_PERMITTED, ALLOW),
    ("mount_setattr", NOT_PERMITTED, ALLOW),
    ("fsopen", NOT_PERMITTED, ALLOW),
    ("fsconfig", NOT_PERMITTED, ALLOW),
    ("fsmount", NOT_PERMITTED, ALLOW),
    ("fspick", NOT_PERMITTED, ALLOW),
    ("sethostname", NOT_PERMITTED, ALLOW),
    ("setdomainname", NOT_PERMITTED, ALLOW),
];

#[test]
fn known_calls_get_their_answers() {
    for asked in Asked::all() {
        for (name, standard, nested) in BY_NUMBER {
            let expected = match asked.profile {
                Profile::Standard => *standard,
                Profile::Nested => *nested,
            };
            asked.expect(name, &[], expected);
            asked.expect(name, &[u64::MAX; 6], expected);
        }
    }
    // Calls that one architecture alone has.
    for profile in PROFILES {
        let asked = Asked::new(profile, Architecture::X86_64);
        for (name, expected) in [
            ("fork", ALLOW),
            ("vfork", ALLOW),
            ("open", ALLOW),
            ("iopl", NOT_PERMITTED),
            ("ioperm", NOT_PERMITTED),
            ("uselib", NOT_PERMITTED),
            ("_sysctl", NOT_PERMITTED),
            ("sysfs", NOT_PERMITTED),
            ("ustat", NOT_PERMITTED),
            ("create_module", NO_SUCH_CALL),
        ] {
            asked.expect(name, &[], expected);
        }
    }
}

#[test]
fn what_is_not_listed_is_not_there() {
    for asked in Asked::all() {
        let listed: BTreeSet<u32> = listed(asked.architecture)
            .into_iter()
            .map(|(_, number)| number)
            .collect();
        // Calls that no kernel has yet, and all that can be said in 32 bits where it could matter.
        let low = 0..2000;
        let signs = (1 << 31) - 600..(1 << 31) + 2000;
        let last = u32::MAX - 2000..=u32::MAX;
        for number in low.chain(signs).chain(last) {
            if !listed.contains(&number) {
                assert_eq!(asked.number(number, &[]), NO_SUCH_CALL, "{number}");
            }
        }
    }
}

#[test]
fn the_calls_of_x32_are_not_there() {
    const X32: u32 = 0x4000_0000;
    for profile in PROFILES {
        let asked = Asked::new(profile, Architecture::X86_64);
        for number in (0..2000).map(|number| number | X32) {
            assert_eq!(asked.number(number, &[]), NO_SUCH_CALL, "{number:#x}");
        }
    }
}

#[test]
fn a_process_that_calls_as_on_another_architecture_is_killed() {
    // i386, ARM, big-endian MIPS, and the architecture that the filters are not for.
    const OTHERS: [u32; 5] = [0x4000_0003, 0x4000_0028, 0x8, 0xc000_003e, 0xc000_00b7];
    for asked in Asked::all() {
        for architecture in OTHERS {
            if architecture == audit_number(asked.architecture) {
                continue;
            }
            // socketcall(2) of i386, ptrace(2) of both, and any other.
            for number in [102, 101, 117, 0, 20, 1000] {
                let event = Event {
                    architecture,
                    number,
                    arguments: [0; 6],
                };
                let answer = answer_of(&asked.filters.programs, &event);
                assert_eq!(answer, libc::SECCOMP_RET_KILL_PROCESS, "{architecture:#x}");
            }
        }
    }
}

/// Bits that make a namespace, clone(2) and unshare(2).
const NAMESPACES: &[(&str, u64)] = &[
    ("mount", 0x0002_0000),
    ("cgroup", 0x0200_0000),
    ("uts", 0x0400_0000),
    ("ipc", 0x0800_0000),
    ("user", 0x1000_0000),
    ("pid", 0x2000_0000),
    ("net", 0x4000_0000),
];
const NEWTIME: u64 = 0x80;

/// What programs make processes and threads with.
const PROCESSES: &[(&str, u64)] = &[
    ("fork", 17),
    ("vfork", 0x4111),
    ("fork of the C library", 0x0120_0011),
    ("posix_spawn", 0x4100),
    ("a thread", 0x003d_0f00),
    ("a thread of musl", 0x007d_0f00),
    ("all that is shared but the parent", 0x0000_0f00),
    ("io", 0x8000_0000 | 17),
    ("another exit signal", 0x7f),
];

#[test]
fn clone_makes_processes_and_threads_and_namespaces_where_they_can_be_nested() {
    const HIGH_BITS: u64 = 0xdead_beef_0000_0000;
    const PARENT: u64 = 0x8000;
    for asked in Asked::all() {
        let of_namespaces = asked.of_namespaces();
        for (what, flags) in PROCESSES {
            asked.expect("clone", &[*flags], ALLOW);
            // The kernel looks at the low half.
            asked.expect("clone", &[flags | HIGH_BITS], ALLOW);
            // A sibling would not be below the leader of its exec.
            asked.expect("clone", &[flags | PARENT], NOT_PERMITTED);
            for (kind, bit) in NAMESPACES {
                for flags in [*bit, flags | bit, flags | bit | HIGH_BITS] {
                    let answer = asked.call("clone", &[flags]);
                    assert_eq!(answer, of_namespaces, "{what} with a {kind} namespace");
                }
            }
            let all = NAMESPACES.iter().fold(*flags, |all, (_, bit)| all | bit);
            asked.expect("clone", &[all], of_namespaces);
        }
        // Every bit there is, alone.
        for bit in (0..64).map(|shift| 1_u64 << shift) {
            let expected = match NAMESPACES.iter().any(|(_, flag)| *flag == bit) {
                true => of_namespaces,
                false if bit == PARENT => NOT_PERMITTED,
                false => ALLOW,
            };
            asked.expect("clone", &[bit], expected);
        }
    }
}

#[test]
fn unshare_lets_go_of_what_is_shared_and_makes_namespaces_where_they_can_be_nested() {
    for asked in Asked::all() {
        for bit in (0..64).map(|shift| 1_u64 << shift) {
            let expected = match NAMESPACES.iter().any(|(_, flag)| *flag == bit) {
                true => asked.of_namespaces(),
                false if bit == NEWTIME => NOT_PERMITTED,
                false => ALLOW,
            };
            asked.expect("unshare", &[bit], expected);
            asked.expect("unshare", &[bit | NEWTIME], NOT_PERMITTED);
            // CLONE_FILES, CLONE_FS and CLONE_SYSVSEM beside it.
            asked.expect("unshare", &[bit | 0x0004_0600], expected);
        }
    }
}

/// Socket families by the numbers of `linux/socket.h`: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK.
const FAMILIES: [u64; 4] = [1, 2, 10, 16];
/// `AF_MAX` of today's kernels; `AF_MCTP` is the last one.
const FAMILY_MAX: u64 = 46;

#[test]
fn socket_families_but_the_four_are_not_there() {
    let more = [255, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
    for asked in Asked::all() {
        for family in (0..FAMILY_MAX + 20).chain(more) {
            let listed = FAMILIES.contains(&family);
            let expected = if listed { ALLOW } else { NO_FAMILY };
            for kind in [1, 2] {
                // The kernel takes an int: what is in the high half is not looked at.
                for family in [family, family | 0x7_0000_0000] {
                    asked.expect("socket", &[family, kind, 0], expected);
                    asked.expect("socketpair", &[family, kind, 0], expected);
                }
            }
        }
    }
}

#[test]
fn protocols_but_the_usual_ones_are_not_there() {
    const CLOEXEC_AND_NONBLOCK: u64 = 0o2_004_000;
    // The default, ICMP, TCP, UDP, ICMPv6.
    const OF_THE_INTERNET: [u64; 5] = [0, 1, 6, 17, 58];
    // Stream, datagram, raw; all else leads to SCTP, DCCP or packet sockets.
    const TYPES: [u64; 3] = [1, 2, 3];
    for asked in Asked::all() {
        for family in [2, 10] {
            for protocol in (0..300).chain([0xffff_ffff]) {
                let listed = OF_THE_INTERNET.contains(&protocol);
                for kind in 0..16 {
                    let allowed = listed && ![4, 5, 6, 10].contains(&kind);
                    let expected = if allowed { ALLOW } else { NO_PROTOCOL };
                    let flagged = kind | CLOEXEC_AND_NONBLOCK;
                    asked.expect("socket", &[family, kind, protocol], expected);
                    asked.expect("socket", &[family, flagged, protocol], expected);
                    assert!(expected == NO_PROTOCOL || listed);
                }
            }
            for kind in TYPES {
                asked.expect("socket", &[family, kind | 0x5_0000_0000, 0], ALLOW);
            }
        }
        // Of netlink, routes (0) alone.
        for protocol in 0..40 {
            let expected = if protocol == 0 { ALLOW } else { NO_PROTOCOL };
            asked.expect("socket", &[16, 3, protocol], expected);
        }
        // AF_UNIX has one.
        asked.expect("socket", &[1, 5, 0], ALLOW);
    }
}

/// Calls with arguments that are refused, and the same calls with others, in both profiles.
const BY_ARGUMENTS: &[(&str, &[u64], SeccompAnswer)] = &[
    // TIOCSTI and TIOCLINUX, with whatever is in the half that the kernel does not look at.
    ("ioctl", &[0, 0x5412], NOT_PERMITTED),
    ("ioctl", &[0, 0xffff_ffff_0000_5412], NOT_PERMITTED),
    ("ioctl", &[0, 0x1_0000_5412], NOT_PERMITTED),
    ("ioctl", &[0, 0x541c], NOT_PERMITTED),
    ("ioctl", &[0, 0x8000_0000_0000_541c], NOT_PERMITTED),
    // TCGETS, TIOCGWINSZ, FIONREAD, SIOCGIFCONF.
    ("ioctl", &[0, 0x5401], ALLOW),
    ("ioctl", &[0, 0x5413], ALLOW),
    ("ioctl", &[0, 0x541b], ALLOW),
    ("ioctl", &[0, 0x8912], ALLOW),
    // PER_LINUX, PER_LINUX32, UNAME26, ADDR_NO_RANDOMIZE, and the question.
    ("personality", &[0], ALLOW),
    ("personality", &[8], ALLOW),
    ("personality", &[0x2_0000], ALLOW),
    ("personality", &[0x2_0008], ALLOW),
    ("personality", &[0x4_0000], ALLOW),
    ("personality", &[0xffff_ffff], ALLOW),
    ("personality", &[u64::MAX], ALLOW),
    // READ_IMPLIES_EXEC, MMAP_PAGE_ZERO, ADDR_COMPAT_LAYOUT, and mixtures.
    ("personality", &[0x40_0000], NOT_PERMITTED),
    ("personality", &[0x10_0000], NOT_PERMITTED),
    ("personality", &[0x20_0000], NOT_PERMITTED),
    ("personality", &[0x44_0000], NOT_PERMITTED),
    ("personality", &[0x1_0040_0000], NOT_PERMITTED),
    // PR_SET_CHILD_SUBREAPER, off and on; PR_SET_NAME, PR_SET_SECCOMP, PR_SET_DUMPABLE.
    ("prctl", &[36, 0], NOT_PERMITTED),
    ("prctl", &[0x1_0000_0024, 0], NOT_PERMITTED),
    ("prctl", &[36, 1], ALLOW),
    // What the kernel takes for on.
    ("prctl", &[36, 0x1_0000_0000], ALLOW),
    ("prctl", &[15, 0], ALLOW),
    ("prctl", &[22, 2], ALLOW),
    ("prctl", &[4, 0], ALLOW),
    // Init, oneself, another.
    ("prlimit64", &[1, 7], NOT_PERMITTED),
    ("prlimit64", &[0xff_0000_0001, 7], NOT_PERMITTED),
    ("prlimit64", &[0, 7], ALLOW),
    ("prlimit64", &[2, 7], ALLOW),
];

#[test]
fn arguments_that_are_refused_are_refused_in_both_profiles() {
    for asked in Asked::all() {
        for (name, arguments, expected) in BY_ARGUMENTS {
            asked.expect(name, arguments, *expected);
        }
    }
}

#[test]
fn rules_of_packet_filters_cannot_be_replaced_by_root_of_a_network_namespace() {
    for asked in Asked::all() {
        let expected = match asked.profile {
            // Nobody has the capability.
            Profile::Standard => ALLOW,
            Profile::Nested => NOT_PERMITTED,
        };
        for level in [0, 41] {
            for option in [64, 65] {
                for call in ["setsockopt", "getsockopt"] {
                    asked.expect(call, &[3, level, option], expected);
                    asked.expect(call, &[3, level | 0x9_0000_0000, option], expected);
                }
            }
            // IP_TOS and IPV6_ADDRFORM; SO_ORIGINAL_DST.
            asked.expect("setsockopt", &[3, level, 1], ALLOW);
            asked.expect("getsockopt", &[3, level, 80], ALLOW);
        }
        // Those of ARP, bridges and virtual servers have the level of version 4.
        for option in [66, 96, 97, 128, 129, 1152] {
            asked.expect("setsockopt", &[3, 0, option], expected);
        }
        // IPV6_RECVTCLASS and IPV6_FREEBIND.
        for option in [66, 78] {
            asked.expect("setsockopt", &[3, 41, option], ALLOW);
        }
        asked.expect("setsockopt", &[3, 1, 64], ALLOW);
    }
}

/// Calls by arguments of a process with this id that reads what a workspace wrote.
const OWN: u32 = 4711;
const BY_ARGUMENTS_OF_A_READER: &[(&str, &[u64], SeccompAnswer)] = &[
    // Memory to write to, and to run.
    ("mmap", &[0, 4096, 3], ALLOW),
    ("mmap", &[0, 4096, 5], NOT_PERMITTED),
    ("mprotect", &[0, 4096, 1], ALLOW),
    ("mprotect", &[0, 4096, 7], NOT_PERMITTED),
    // F_DUPFD_CLOEXEC, F_GETFD, F_GETFL; F_SETFL, F_SETOWN, F_SETSIG, F_SETLEASE, F_SETPIPE_SZ, F_NOTIFY.
    ("fcntl", &[3, 1030], ALLOW),
    ("fcntl", &[3, 1], ALLOW),
    ("fcntl", &[3, 3], ALLOW),
    ("fcntl", &[3, 4], NOT_PERMITTED),
    ("fcntl", &[3, 8], NOT_PERMITTED),
    ("fcntl", &[3, 10], NOT_PERMITTED),
    ("fcntl", &[3, 1024], NOT_PERMITTED),
    ("fcntl", &[3, 1031], NOT_PERMITTED),
    ("fcntl", &[3, 1026], NOT_PERMITTED),
    // MADV_DONTNEED; MADV_HWPOISON, MADV_SOFT_OFFLINE.
    ("madvise", &[0, 4096, 4], ALLOW),
    ("madvise", &[0, 4096, 100], NOT_PERMITTED),
    ("madvise", &[0, 4096, 101], NOT_PERMITTED),
    // Itself, another, all.
    ("tgkill", &[4711, 4711, 6], ALLOW),
    ("tgkill", &[1, 1, 9], NOT_PERMITTED),
    ("tgkill", &[0xffff_ffff, 1, 9], NOT_PERMITTED),
];

#[test]
fn who_reads_what_a_workspace_wrote_calls_what_that_takes_and_nothing_else() {
    let both = [Work::Reading, Work::Copying];
    let all = both.map(|work| ARCHITECTURES.map(|architecture| (work, architecture)));
    for (work, architecture) in all.into_iter().flatten() {
        let filters = Filters::of_work_for(work, OWN, architecture).expect("it compiles");
        let ask = |number, arguments: &[u64]| {
            answer_of(
                &filters.programs,
                &Event::new(architecture, number, arguments),
            )
        };
        let calls = work.answers().iter().flat_map(|(_, calls)| calls.iter());
        let listed: BTreeSet<u32> = calls.filter_map(|call| call.number(architecture)).collect();
        let last = u32::MAX - 2000..=u32::MAX;
        // x32's among them.
        for number in (0..2000).chain(0x4000_0000..0x4000_07d0).chain(last) {
            if !listed.contains(&number) {
                assert_eq!(ask(number, &[]), NOT_PERMITTED, "{number}");
            }
        }
        let number = |name| known(architecture, name).unwrap_or_else(|| panic!("{name}"));
        for name in [
            "socket",
            "execve",
            "execveat",
            "clone",
            "clone3",
            "unshare",
            "setns",
            "mount",
            "open_tree",
            "move_mount",
            "ptrace",
            "process_vm_writev",
            "pidfd_open",
            "pidfd_getfd",
            "kill",
            "io_uring_setup",
            "keyctl",
            "add_key",
            "bpf",
            "userfaultfd",
            "perf_event_open",
            "open_by_handle_at",
            "memfd_create",
            "truncate",
            "fchmod",
            "fchdir",
            "chroot",
            "setuid",
            "capset",
            "prctl",
            "seccomp",
            "prlimit64",
        ] {
            assert_eq!(ask(number(name), &[]), NOT_PERMITTED, "{name}");
        }
        for (name, arguments, expected) in BY_ARGUMENTS_OF_A_READER {
            let answer = ask(number(name), arguments);
            assert_eq!(answer, *expected, "{name} {arguments:?} {architecture:?}");
        }
        let expected = match work {
            Work::Reading => NOT_PERMITTED,
            Work::Copying => ALLOW,
        };
        for name in ["unlinkat", "mkdirat", "fsetxattr", "fchownat"] {
            assert_eq!(ask(number(name), &[]), expected, "{name} {work:?}");
        }
        // FICLONE; TIOCSTI.
        let ioctl = number("ioctl");
        assert_eq!(ask(ioctl, &[3, 0x4004_9409]), expected, "{work:?}");
        assert_eq!(ask(ioctl, &[3, 0x5412]), NOT_PERMITTED, "{work:?}");
        let foreign = Event {
            architecture: 0x4000_0003,
            number: 3,
            arguments: [0; 6],
        };
        let answer = answer_of(&filters.programs, &foreign);
        assert_eq!(answer, libc::SECCOMP_RET_KILL_PROCESS);
    }
}

#[test]
fn among_answers_that_are_as_strict_the_newest_counts() {
    let program = |code| vec![answer(code)];
    let event = Event::new(native(), 0, &[]);
    let newest_last = [
        program(NOT_PERMITTED),
        program(ALLOW),
        program(NO_SUCH_CALL),
    ];
    assert_eq!(answer_of(&newest_last, &event), NO_SUCH_CALL);
    let strictest = libc::SECCOMP_RET_KILL_PROCESS;
    let killed = [program(strictest), program(libc::SECCOMP_RET_KILL_THREAD)];
    assert_eq!(answer_of(&killed, &event), strictest);
}
