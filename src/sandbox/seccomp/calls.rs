//! The system calls that a sandbox reaches or is refused, as data, with their numbers on each architecture.

use syscalls::{aarch64, x86_64};

/// An architecture that there are filters for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Architecture {
    /// That of this program.
    pub(super) fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }
}

/// A system call: its name, and its number on each architecture that has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    #[cfg(test)]
    pub(super) name: &'static str,
    x86_64: i32,
    aarch64: Option<i32>,
}

impl Call {
    pub(super) fn number(self, architecture: Architecture) -> Option<u32> {
        let number = match architecture {
            Architecture::X86_64 => Some(self.x86_64),
            Architecture::Aarch64 => self.aarch64,
        };
        number.map(i32::cast_unsigned)
    }
}

/// The number of one call that both architectures have, as seccompiler has it.
macro_rules! number {
    ($name:ident, $architecture:expr) => {
        match $architecture {
            $crate::sandbox::seccomp::calls::Architecture::X86_64 => {
                syscalls::x86_64::Sysno::$name as i64
            }
            $crate::sandbox::seccomp::calls::Architecture::Aarch64 => {
                syscalls::aarch64::Sysno::$name as i64
            }
        }
    };
}
pub(super) use number;

/// Calls that both architectures have: another name does not compile.
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        &[$(Call {
            #[cfg(test)]
            name: stringify!($name),
            x86_64: x86_64::Sysno::$name as i32,
            aarch64: Some(aarch64::Sysno::$name as i32),
        }),*]
    };
}

/// Calls of older kernels, which later architectures were made without.
macro_rules! x86_64_alone {
    ($($name:ident),* $(,)?) => {
        &[$(Call {
            #[cfg(test)]
            name: stringify!($name),
            x86_64: x86_64::Sysno::$name as i32,
            aarch64: None,
        }),*]
    };
}

/// Calls that are let through, except for the arguments that the rules of `arguments` take back.
#[rustfmt::skip]
pub(super) const ALLOWED: &[Call] = both![
    accept, accept4, adjtimex, bind, brk, cachestat, capget, capset, chdir, chroot, clock_adjtime,
    clock_getres, clock_gettime, clock_nanosleep, clone, close, close_range, connect,
    copy_file_range, dup, dup3, epoll_create1, epoll_ctl, epoll_pwait, epoll_pwait2, eventfd2,
    execve, execveat, exit, exit_group, faccessat, faccessat2, fadvise64, fallocate, fanotify_mark,
    fchdir, fchmod, fchmodat, fchmodat2, fchown, fchownat, fcntl, fdatasync, fgetxattr, flistxattr,
    flock, fremovexattr, fsetxattr, fstat, fstatfs, fsync, ftruncate, futex, futex_requeue,
    futex_wait, futex_waitv, futex_wake, get_robust_list, getcpu, getcwd, getdents64, getegid,
    geteuid, getgid, getgroups, getitimer, getpeername, getpgid, getpid, getppid, getpriority,
    getrandom, getresgid, getresuid, getrlimit, getrusage, getsid, getsockname, getsockopt, gettid,
    gettimeofday, getuid, getxattr, getxattrat, inotify_add_watch, inotify_init1, inotify_rm_watch,
    io_cancel, io_destroy, io_getevents, io_setup, io_submit, ioctl, ioprio_get, ioprio_set, kill,
    landlock_add_rule, landlock_create_ruleset, landlock_restrict_self, lgetxattr, linkat, listen,
    listmount, listxattr, listxattrat, llistxattr, lremovexattr, lseek, lsetxattr, madvise,
    map_shadow_stack, membarrier, memfd_create, memfd_secret, mincore, mkdirat, mknodat, mlock,
    mlock2, mlockall, mmap, mprotect, mq_getsetattr, mq_notify, mq_open, mq_timedreceive,
    mq_timedsend, mq_unlink, mremap, mseal, msgctl, msgget, msgrcv, msgsnd, msync, munlock,
    munlockall, munmap, name_to_handle_at, nanosleep, openat, openat2, personality,
    pidfd_open, pidfd_send_signal, pipe2, pkey_alloc, pkey_free, pkey_mprotect, ppoll, prctl,
    pread64, preadv, preadv2, prlimit64, process_madvise, process_mrelease, process_vm_readv,
    process_vm_writev, pselect6, ptrace, pwrite64, pwritev, pwritev2, read, readahead, readlinkat,
    readv, recvfrom, recvmmsg, recvmsg, remap_file_pages, removexattr, removexattrat, renameat,
    renameat2, restart_syscall, rseq, rt_sigaction, rt_sigpending, rt_sigprocmask, rt_sigqueueinfo,
    rt_sigreturn, rt_sigsuspend, rt_sigtimedwait, rt_tgsigqueueinfo, sched_get_priority_max,
    sched_get_priority_min, sched_getaffinity, sched_getattr, sched_getparam, sched_getscheduler,
    sched_rr_get_interval, sched_setaffinity, sched_setattr, sched_setparam, sched_setscheduler,
    sched_yield, seccomp, semctl, semget, semop, semtimedop, sendfile, sendmmsg, sendmsg, sendto,
    set_robust_list, set_tid_address, setfsgid, setfsuid, setgid, setgroups, setitimer, setpgid,
    setpriority, setregid, setresgid, setresuid, setreuid, setrlimit, setsid, setsockopt, setuid,
    setxattr, setxattrat, shmat, shmctl, shmdt, shmget, shutdown, sigaltstack, signalfd4, socket,
    socketpair, splice, statfs, statmount, statx, symlinkat, sync, sync_file_range, syncfs, sysinfo,
    tee, tgkill, timer_create, timer_delete, timer_getoverrun, timer_gettime, timer_settime,
    timerfd_create, timerfd_gettime, timerfd_settime, times, tkill, truncate, umask, uname,
    unlinkat, unshare, utimensat, vmsplice, wait4, waitid, write, writev,
];

/// Likewise, a call that the crate has under another name for each architecture.
pub(super) const ALLOWED_UNDER_TWO_NAMES: &[Call] = &[Call {
    #[cfg(test)]
    name: "newfstatat",
    x86_64: x86_64::Sysno::newfstatat as i32,
    aarch64: Some(aarch64::Sysno::fstatat as i32),
}];

/// Likewise.
#[rustfmt::skip]
pub(super) const ALLOWED_ON_X86_64: &[Call] = x86_64_alone![
    access, alarm, arch_prctl, chmod, chown, creat, dup2, epoll_create, epoll_wait, eventfd, fork,
    futimesat, get_thread_area, getdents, getpgrp, inotify_init, lchown, link, lstat, mkdir, mknod,
    modify_ldt, open, pause, pipe, poll, readlink, rename, rmdir, select, set_thread_area, signalfd,
    stat, symlink, time, unlink, uretprobe, utime, utimes, vfork,
];

/// All that is let through where something is only read: files of open directories, memory, and an end; `sendfile`
/// is how a file gets into an archive. Except for the arguments that the rules of `arguments` take back.
#[rustfmt::skip]
pub(super) const READING: &[Call] = both![
    brk, clock_gettime, close, dup, exit, exit_group, fcntl, fgetxattr, flistxattr, fstat, futex,
    getdents64, getpid, getrandom, gettid, lseek, madvise, mmap, mprotect, mremap, munmap, openat,
    openat2, pread64, read, readlinkat, readv, restart_syscall, rt_sigaction, rt_sigprocmask,
    rt_sigreturn, sched_yield, sendfile, sigaltstack, statx, tgkill, write, writev,
];

/// Likewise, what making a copy takes besides.
#[rustfmt::skip]
pub(super) const COPYING: &[Call] = both![
    copy_file_range, fchmodat, fchownat, fremovexattr, fsetxattr, ftruncate, ioctl, lgetxattr,
    linkat, llistxattr, lsetxattr, mkdirat, mknodat, pwrite64, renameat, renameat2, symlinkat,
    unlinkat, utimensat,
];

/// Calls that give `EPERM`: keys, modules, clocks, other processes' descriptors, and interfaces that
/// kernel exploits begin with.
#[rustfmt::skip]
pub(super) const FORBIDDEN: &[Call] = both![
    acct, add_key, bpf, clock_settime, delete_module, fanotify_init, finit_module, get_mempolicy,
    init_module, kcmp, kexec_file_load, kexec_load, keyctl, lookup_dcookie, mbind, migrate_pages,
    move_pages, nfsservctl, open_by_handle_at, perf_event_open, pidfd_getfd, quotactl, quotactl_fd,
    reboot, request_key, set_mempolicy, set_mempolicy_home_node, settimeofday, swapoff, swapon,
    syslog, userfaultfd, vhangup,
];

/// Likewise.
#[rustfmt::skip]
pub(super) const FORBIDDEN_ON_X86_64: &[Call] = x86_64_alone![
    _sysctl, ioperm, iopl, sysfs, uselib, ustat,
];

/// Calls that give `EPERM`, except where namespaces can be nested: mounts, and what belongs to namespaces.
#[rustfmt::skip]
pub(super) const FOR_NAMESPACES: &[Call] = both![
    fsconfig, fsmount, fsopen, fspick, mount, mount_setattr, move_mount, open_tree, open_tree_attr,
    pivot_root, setdomainname, sethostname, setns, umount2,
];
