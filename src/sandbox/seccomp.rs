//! The system calls that a sandbox reaches, seccomp(2): the default profile.
//!
//! Everything that is not listed gives `ENOSYS`, so that what a later kernel adds is off and programs
//! fall back; what is known to be dangerous gives `EPERM`, so that programs say what happened. Among
//! filters that all answer with an errno, the newest filter's is taken. seccompiler has one answer
//! for each filter and kills a process of a foreign architecture; hence a filter for each errno.
//!
//! The filter by number is a search over runs of numbers instead, written here: when a filter is
//! installed the kernel walks it once for each number there is (`seccomp_cache_prepare`), which for
//! the list that seccompiler makes, one comparison after another, takes most of a millisecond.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::{Failure, Step};

/// A system call's name and number.
type Named = (&'static str, c_long);

macro_rules! named {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), libc::$name)),*] };
}

/// Calls that are let through, whatever their arguments; `ARGUMENT_RULES` takes some back.
#[rustfmt::skip]
const ALLOWED: &[Named] = named![
    SYS_getrlimit, SYS_renameat, SYS_setrlimit, SYS_sync_file_range,
    SYS_accept, SYS_accept4, SYS_adjtimex, SYS_bind, SYS_brk, SYS_capget, SYS_capset, SYS_chdir,
    SYS_chroot, SYS_clock_adjtime, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep,
    SYS_clone, SYS_close, SYS_close_range, SYS_connect, SYS_copy_file_range, SYS_dup, SYS_dup3,
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd2,
    SYS_execve, SYS_execveat, SYS_exit, SYS_exit_group, SYS_faccessat, SYS_faccessat2,
    SYS_fadvise64, SYS_fallocate, SYS_fanotify_mark, SYS_fchdir, SYS_fchmod, SYS_fchmodat,
    SYS_fchown, SYS_fchownat, SYS_fcntl, SYS_fdatasync, SYS_fgetxattr, SYS_flistxattr,
    SYS_flock, SYS_fremovexattr, SYS_fsetxattr, SYS_fstat, SYS_fstatfs, SYS_fsync,
    SYS_ftruncate, SYS_futex, SYS_futex_waitv, SYS_get_robust_list, SYS_getcpu, SYS_getcwd,
    SYS_getdents64, SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getgroups, SYS_getitimer,
    SYS_getpeername, SYS_getpgid, SYS_getpid, SYS_getppid, SYS_getpriority, SYS_getrandom,
    SYS_getresgid, SYS_getresuid, SYS_getrusage, SYS_getsid, SYS_getsockname, SYS_getsockopt,
    SYS_gettid, SYS_gettimeofday, SYS_getuid, SYS_getxattr, SYS_inotify_add_watch,
    SYS_inotify_init1, SYS_inotify_rm_watch, SYS_io_cancel, SYS_io_destroy, SYS_io_getevents,
    SYS_io_setup, SYS_io_submit, SYS_ioctl, SYS_ioprio_get, SYS_ioprio_set, SYS_kill,
    SYS_landlock_add_rule, SYS_landlock_create_ruleset, SYS_landlock_restrict_self,
    SYS_lgetxattr, SYS_linkat, SYS_listen, SYS_listxattr, SYS_llistxattr, SYS_lremovexattr,
    SYS_lseek, SYS_lsetxattr, SYS_madvise, SYS_membarrier, SYS_memfd_create, SYS_memfd_secret,
    SYS_mincore, SYS_mkdirat, SYS_mknodat, SYS_mlock, SYS_mlock2, SYS_mlockall, SYS_mmap,
    SYS_mprotect, SYS_mq_getsetattr, SYS_mq_notify, SYS_mq_open, SYS_mq_timedreceive,
    SYS_mq_timedsend, SYS_mq_unlink, SYS_mremap, SYS_mseal, SYS_msgctl, SYS_msgget, SYS_msgrcv,
    SYS_msgsnd, SYS_msync, SYS_munlock, SYS_munlockall, SYS_munmap, SYS_name_to_handle_at,
    SYS_nanosleep, SYS_newfstatat, SYS_openat, SYS_openat2, SYS_personality, SYS_pidfd_open,
    SYS_pidfd_send_signal, SYS_pipe2, SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect,
    SYS_ppoll, SYS_prctl, SYS_pread64, SYS_preadv, SYS_preadv2, SYS_prlimit64,
    SYS_process_madvise, SYS_process_mrelease, SYS_process_vm_readv, SYS_process_vm_writev,
    SYS_pselect6, SYS_ptrace, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readahead,
    SYS_readlinkat, SYS_readv, SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg, SYS_remap_file_pages,
    SYS_removexattr, SYS_renameat2, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction,
    SYS_rt_sigpending, SYS_rt_sigprocmask, SYS_rt_sigqueueinfo, SYS_rt_sigreturn,
    SYS_rt_sigsuspend, SYS_rt_sigtimedwait, SYS_rt_tgsigqueueinfo, SYS_sched_get_priority_max,
    SYS_sched_get_priority_min, SYS_sched_getaffinity, SYS_sched_getattr, SYS_sched_getparam,
    SYS_sched_getscheduler, SYS_sched_rr_get_interval, SYS_sched_setaffinity, SYS_sched_setattr,
    SYS_sched_setparam, SYS_sched_setscheduler, SYS_sched_yield, SYS_seccomp, SYS_semctl,
    SYS_semget, SYS_semop, SYS_semtimedop, SYS_sendfile, SYS_sendmmsg, SYS_sendmsg, SYS_sendto,
    SYS_set_robust_list, SYS_set_tid_address, SYS_setfsgid, SYS_setfsuid, SYS_setgid,
    SYS_setgroups, SYS_setitimer, SYS_setpgid, SYS_setpriority, SYS_setregid, SYS_setresgid,
    SYS_setresuid, SYS_setreuid, SYS_setsid, SYS_setsockopt, SYS_setuid, SYS_setxattr,
    SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_shmget, SYS_shutdown, SYS_sigaltstack, SYS_signalfd4,
    SYS_socket, SYS_socketpair, SYS_splice, SYS_statfs, SYS_statx, SYS_symlinkat, SYS_sync,
    SYS_syncfs, SYS_sysinfo, SYS_tee, SYS_tgkill, SYS_timer_create, SYS_timer_delete,
    SYS_timer_getoverrun, SYS_timer_gettime, SYS_timer_settime, SYS_timerfd_create,
    SYS_timerfd_gettime, SYS_timerfd_settime, SYS_times, SYS_tkill, SYS_truncate, SYS_umask,
    SYS_uname, SYS_unlinkat, SYS_unshare, SYS_utimensat, SYS_vmsplice, SYS_wait4, SYS_waitid,
    SYS_write, SYS_writev,
];

/// Likewise, on this architecture alone.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_HERE: &[Named] = named![
    SYS_access, SYS_alarm, SYS_arch_prctl, SYS_chmod, SYS_chown, SYS_creat, SYS_dup2,
    SYS_epoll_create, SYS_epoll_wait, SYS_eventfd, SYS_fork, SYS_futimesat, SYS_get_thread_area,
    SYS_getdents, SYS_getpgrp, SYS_inotify_init, SYS_lchown, SYS_link, SYS_lstat,
    SYS_mkdir, SYS_mknod, SYS_modify_ldt, SYS_open, SYS_pause, SYS_pipe, SYS_poll, SYS_readlink,
    SYS_rename, SYS_rmdir, SYS_select, SYS_set_thread_area,
    SYS_signalfd, SYS_stat, SYS_symlink, SYS_time, SYS_unlink, SYS_utime,
    SYS_utimes, SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[Named] = &[];

/// Likewise, newer than the libc crate; these numbers are the same on every architecture.
const ALLOWED_BY_NUMBER: &[Named] = &[
    ("SYS_cachestat", 451),
    ("SYS_fchmodat2", 452),
    ("SYS_map_shadow_stack", 453),
    ("SYS_futex_wake", 454),
    ("SYS_futex_wait", 455),
    ("SYS_futex_requeue", 456),
    ("SYS_statmount", 457),
    ("SYS_listmount", 458),
    ("SYS_setxattrat", 463),
    ("SYS_getxattrat", 464),
    ("SYS_listxattrat", 465),
    ("SYS_removexattrat", 466),
];

/// Calls that give `EPERM`: mounts and namespaces, keys, modules, clocks, other processes'
/// descriptors, and interfaces that kernel exploits begin with.
#[rustfmt::skip]
const FORBIDDEN: &[Named] = named![
    SYS_acct, SYS_add_key, SYS_bpf, SYS_clock_settime, SYS_delete_module, SYS_fanotify_init,
    SYS_finit_module, SYS_fsconfig, SYS_fsmount, SYS_fsopen, SYS_fspick, SYS_get_mempolicy,
    SYS_init_module, SYS_kcmp, SYS_kexec_file_load, SYS_kexec_load, SYS_keyctl,
    SYS_lookup_dcookie, SYS_mbind, SYS_migrate_pages, SYS_mount, SYS_mount_setattr,
    SYS_move_mount, SYS_move_pages, SYS_nfsservctl, SYS_open_by_handle_at, SYS_open_tree,
    SYS_perf_event_open, SYS_pidfd_getfd, SYS_pivot_root, SYS_quotactl, SYS_quotactl_fd,
    SYS_reboot, SYS_request_key, SYS_set_mempolicy, SYS_set_mempolicy_home_node,
    SYS_setdomainname, SYS_sethostname, SYS_setns, SYS_settimeofday, SYS_swapoff, SYS_swapon,
    SYS_syslog, SYS_umount2, SYS_userfaultfd, SYS_vhangup,
];

/// Likewise, on this architecture alone.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const FORBIDDEN_HERE: &[Named] = named![
    SYS__sysctl, SYS_ioperm, SYS_iopl, SYS_sysfs, SYS_uselib, SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_HERE: &[Named] = &[];

/// Likewise, newer than the libc crate.
const FORBIDDEN_BY_NUMBER: &[Named] = &[("SYS_open_tree_attr", 467)];

/// `CLONE_NEW*` of clone(2), one bit each; the time namespace's is for unshare(2) alone, where clone
/// has the exit signal.
const NAMESPACE_FLAGS: &[u64] = &[
    0x0002_0000,
    0x0200_0000,
    0x0400_0000,
    0x0800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
];
const CLONE_NEWTIME: u64 = 0x80;
/// Makes a sibling instead of a child: it would not be below the leader of its exec.
const CLONE_PARENT: u64 = 0x8000;

/// Socket families that are let through: unix, IPv4, IPv6 and netlink.
const FAMILIES: &[u64] = &[
    libc::AF_UNIX as u64,
    libc::AF_INET as u64,
    libc::AF_INET6 as u64,
    libc::AF_NETLINK as u64,
];

/// Protocols of IPv4 and IPv6 sockets that are let through: the default, ICMP, TCP, UDP, ICMPv6.
const PROTOCOLS: &[u64] = &[0, 1, 6, 17, 58];

/// Types of IPv4 and IPv6 sockets that reach SCTP or DCCP through the default protocol.
const TYPES: &[u64] = &[
    libc::SOCK_RDM as u64,
    libc::SOCK_SEQPACKET as u64,
    libc::SOCK_DCCP as u64,
];

/// Execution domains that programs ask for, and the question which one it is.
const PERSONALITIES: &[u64] = &[0x0, 0x8, 0x2_0000, 0x2_0008, 0x4_0000, 0xffff_ffff];

/// The compiled profile: built once, installed in each sandbox.
#[derive(Debug, Clone)]
pub struct Profile {
    programs: Vec<BpfProgram>,
}

impl Profile {
    /// Compiles the default profile.
    ///
    /// # Errors
    /// A failure if it cannot be compiled for this architecture.
    pub fn compile() -> Result<Self, Failure> {
        let compile = || -> Result<Vec<BpfProgram>, seccompiler::Error> {
            Ok(vec![
                program_by_number(&runs()),
                program(not_permitted()?, SeccompAction::Allow, errno(libc::EPERM))?,
                program(families()?, SeccompAction::Allow, errno(libc::EAFNOSUPPORT))?,
                program(
                    protocols()?,
                    SeccompAction::Allow,
                    errno(libc::EPROTONOSUPPORT),
                )?,
            ])
        };
        match compile() {
            Ok(programs) => Ok(Self { programs }),
            Err(error) => Err(Failure::new(
                Step::Seccomp,
                format!("compiling the profile: {error}"),
            )),
        }
    }

    /// Binds the calling process and all that it starts; how many filters there are.
    ///
    /// # Errors
    /// The failed step.
    pub fn install(&self) -> Result<u32, Failure> {
        for program in &self.programs {
            seccompiler::apply_filter(program).map_err(|error| {
                Failure::new(Step::Seccomp, format!("installing a filter: {error}"))
            })?;
        }
        Ok(u32::try_from(self.programs.len()).unwrap_or(u32::MAX))
    }
}

/// What is answered to the system calls from `first` on, up to the next run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: u32,
    answer: SeccompAnswer,
}

/// A filter's return value, seccomp(2).
type SeccompAnswer = u32;

const ALLOW: SeccompAnswer = libc::SECCOMP_RET_ALLOW;
const NO_SUCH_CALL: SeccompAnswer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
const NOT_PERMITTED: SeccompAnswer = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();

/// Every number there can be, in runs of one answer. x32's numbers have bit 30 and fall in the last.
fn runs() -> Vec<Run> {
    let answers = [
        (ALLOW, [ALLOWED, ALLOWED_HERE, ALLOWED_BY_NUMBER]),
        (
            NOT_PERMITTED,
            [FORBIDDEN, FORBIDDEN_HERE, FORBIDDEN_BY_NUMBER],
        ),
    ];
    let listed: BTreeMap<u32, SeccompAnswer> = answers
        .iter()
        .flat_map(|(answer, tables)| {
            let numbers = tables.concat().into_iter().map(|(_, number)| number);
            numbers.filter_map(|number| Some((u32::try_from(number).ok()?, *answer)))
        })
        .collect();
    let mut runs = vec![Run {
        first: 0,
        answer: NO_SUCH_CALL,
    }];
    let mut add = |first, answer| match runs.last_mut() {
        Some(last) if last.answer == answer => {}
        Some(last) if last.first == first => last.answer = answer,
        _ => runs.push(Run { first, answer }),
    };
    let mut next = 0;
    for (number, answer) in listed {
        if number > next {
            add(next, NO_SUCH_CALL);
        }
        add(number, answer);
        next = number + 1;
    }
    add(next, NO_SUCH_CALL);
    runs
}

/// `AUDIT_ARCH_*` of `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Where `struct seccomp_data` of `linux/seccomp.h` has the number and the architecture.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

fn program_by_number(runs: &[Run]) -> BpfProgram {
    let mut program = vec![
        load(ARCHITECTURE_AT),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER_AT),
    ];
    search(runs, &mut program);
    program
}

/// Appends a binary search for the run that the loaded number is in.
fn search(runs: &[Run], program: &mut BpfProgram) {
    let (below, from) = runs.split_at(runs.len() / 2);
    let Some(middle) = from.first() else { return };
    if below.is_empty() {
        program.push(answer(middle.answer));
        return;
    }
    // A conditional jump reaches 255 instructions, an unconditional one any: "from `middle` on" is
    // one instruction away, and itself jumps over what is below.
    program.push(jump(libc::BPF_JGE, middle.first, 0, 1));
    let over = program.len();
    program.push(jump(libc::BPF_JA, 0, 0, 0));
    search(below, program);
    program[over].k = u32::try_from(program.len() - over - 1).unwrap_or(u32::MAX);
    search(from, program);
}

fn load(at: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0)
}

fn jump(condition: u32, operand: u32, met: u8, not_met: u8) -> sock_filter {
    instruction(
        libc::BPF_JMP | condition | libc::BPF_K,
        operand,
        met,
        not_met,
    )
}

fn answer(answer: SeccompAnswer) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, answer, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    // Operation codes have 16 bits.
    let code = u16::try_from(code).unwrap_or(u16::MAX);
    sock_filter { code, jt, jf, k }
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, otherwise, matched, architecture)?.try_into()?)
}

fn errno(number: libc::c_int) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

/// Allowed calls with arguments that are forbidden.
fn not_permitted() -> Result<Rules, seccompiler::Error> {
    let mut rules = Rules::new();
    let namespaces = |flags: &[u64]| {
        flags
            .iter()
            .map(|flag| rule(&[has_bit(0, *flag)?]))
            .collect::<Result<Vec<_>, _>>()
    };
    rules.insert(
        libc::SYS_clone,
        namespaces(&[NAMESPACE_FLAGS, &[CLONE_PARENT]].concat())?,
    );
    rules.insert(
        libc::SYS_unshare,
        namespaces(&[NAMESPACE_FLAGS, &[CLONE_NEWTIME]].concat())?,
    );
    // The kernel looks at the low 32 bits of a request alone: so does the filter.
    rules.insert(
        libc::SYS_ioctl,
        vec![
            rule(&[low_is(1, SeccompCmpOp::Eq, libc::TIOCSTI)?])?,
            rule(&[low_is(1, SeccompCmpOp::Eq, TIOCLINUX)?])?,
        ],
    );
    rules.insert(
        libc::SYS_personality,
        vec![rule(&none_of(0, PERSONALITIES)?)?],
    );
    // The leader of an exec adopts the orphans of its tree, so that a deadline finds them all.
    let subreaper = low_is(0, SeccompCmpOp::Eq, libc::PR_SET_CHILD_SUBREAPER as u64)?;
    let off = condition(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prctl, vec![rule(&[subreaper, off])?]);
    // Init has the ids of root inside, which alone would let its limits be changed.
    let init = low_is(0, SeccompCmpOp::Eq, 1_u64)?;
    rules.insert(libc::SYS_prlimit64, vec![rule(&[init])?]);
    Ok(rules)
}

/// `TIOCLINUX` of ioctl_console(2), which the libc crate has for some targets only.
const TIOCLINUX: u64 = 0x541c;

fn families() -> Result<Rules, seccompiler::Error> {
    let unlisted = rule(&none_of(0, FAMILIES)?)?;
    Ok([
        (libc::SYS_socket, vec![unlisted.clone()]),
        (libc::SYS_socketpair, vec![unlisted]),
    ]
    .into())
}

fn protocols() -> Result<Rules, seccompiler::Error> {
    let mut rules = Vec::new();
    for family in [libc::AF_INET as u64, libc::AF_INET6 as u64] {
        let is_family = || low_is(0, SeccompCmpOp::Eq, family);
        let mut unlisted = none_of(2, PROTOCOLS)?;
        unlisted.push(is_family()?);
        rules.push(rule(&unlisted)?);
        for kind in TYPES {
            let is_kind = condition(
                1,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::MaskedEq(0xf),
                *kind,
            )?;
            rules.push(rule(&[is_family()?, is_kind])?);
        }
    }
    // Of netlink, routes alone: neither netfilter nor IPsec.
    let netlink = low_is(0, SeccompCmpOp::Eq, libc::AF_NETLINK as u64)?;
    let other = low_is(2, SeccompCmpOp::Ne, libc::NETLINK_ROUTE as u64)?;
    rules.push(rule(&[netlink, other])?);
    Ok([(libc::SYS_socket, rules)].into())
}

fn rule(conditions: &[SeccompCondition]) -> Result<SeccompRule, seccompiler::Error> {
    Ok(SeccompRule::new(conditions.to_vec())?)
}

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::Error> {
    Ok(SeccompCondition::new(argument, length, operator, value)?)
}

fn low_is(
    argument: u8,
    operator: SeccompCmpOp,
    value: impl Into<u64>,
) -> Result<SeccompCondition, seccompiler::Error> {
    condition(argument, SeccompCmpArgLen::Dword, operator, value.into())
}

fn has_bit(argument: u8, bit: u64) -> Result<SeccompCondition, seccompiler::Error> {
    condition(
        argument,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(bit),
        bit,
    )
}

fn none_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompCondition>, seccompiler::Error> {
    values
        .iter()
        .map(|value| low_is(argument, SeccompCmpOp::Ne, *value))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_call_is_listed_twice_or_both_allowed_and_forbidden() {
        let all = [
            ALLOWED,
            ALLOWED_HERE,
            ALLOWED_BY_NUMBER,
            FORBIDDEN,
            FORBIDDEN_HERE,
            FORBIDDEN_BY_NUMBER,
        ]
        .concat();
        let names: BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
        let numbers: BTreeSet<_> = all.iter().map(|(_, number)| number).collect();
        assert_eq!((names.len(), numbers.len()), (all.len(), all.len()));
    }

    #[test]
    fn clone3_and_io_uring_are_answered_as_if_the_kernel_had_none() {
        let listed: BTreeSet<_> = [ALLOWED, ALLOWED_HERE, FORBIDDEN, FORBIDDEN_HERE]
            .concat()
            .into_iter()
            .map(|(_, n)| n)
            .collect();
        for number in [
            libc::SYS_clone3,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
        ] {
            assert!(!listed.contains(&number), "{number}");
        }
    }

    #[test]
    fn each_number_gets_the_answer_of_its_table() {
        let program = program_by_number(&runs());
        let numbers = |tables: [&[Named]; 3]| -> BTreeSet<c_long> {
            tables.concat().into_iter().map(|(_, n)| n).collect()
        };
        let allowed = numbers([ALLOWED, ALLOWED_HERE, ALLOWED_BY_NUMBER]);
        let forbidden = numbers([FORBIDDEN, FORBIDDEN_HERE, FORBIDDEN_BY_NUMBER]);
        let x32 = (1 << 30)..(1 << 30) + 600;
        let last = u32::MAX - 600..=u32::MAX;
        for number in (0..2000).chain(x32).chain(last) {
            let listed = c_long::from(number);
            let expected = match (allowed.contains(&listed), forbidden.contains(&listed)) {
                (true, _) => ALLOW,
                (_, true) => NOT_PERMITTED,
                _ => NO_SUCH_CALL,
            };
            assert_eq!(run(&program, ARCHITECTURE, number), expected, "{number}");
        }
        let foreign = run(&program, ARCHITECTURE + 1, 0);
        assert_eq!(foreign, libc::SECCOMP_RET_KILL_PROCESS);
    }

    /// Does what the kernel does with the instructions that are used here.
    fn run(program: &[sock_filter], architecture: u32, number: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let branch = |met: bool| usize::from(if met { jt } else { jf });
            match code {
                0x20 if k == 0 => loaded = number,
                0x20 if k == 4 => loaded = architecture,
                0x15 => at += branch(loaded == k),
                0x35 => at += branch(loaded >= k),
                0x05 => at += k as usize,
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_profile_compiles() {
        assert_eq!(Profile::compile().expect("compiles").programs.len(), 4);
    }
}
