//! Making and preparing processes.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::unistd::{ForkResult, Pid, fork};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// A process that the caller forked and has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child(Pid);

impl Child {
    /// Its process id as the caller's pid namespace has it.
    #[must_use]
    pub fn id(self) -> i32 {
        self.0.as_raw()
    }

    /// Waits for its end; its exit code, or 128 + the signal that ended it.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub fn wait(self) -> io::Result<i32> {
        let pid = rustix::process::Pid::from_raw(self.0.as_raw());
        let ended = rustix::io::retry_on_intr(|| {
            rustix::process::waitpid(pid, rustix::process::WaitOptions::empty())
        })?;
        let status = ended.map(|(_, status)| status);
        Ok(
            match status.map(|status| (status.exit_status(), status.terminating_signal())) {
                Some((Some(code), _)) => code,
                Some((_, Some(signal))) => 128 + signal,
                _ => return Err(io::Error::other("the child neither exited nor was killed")),
            },
        )
    }

    /// Kills it; an end that came first is no error.
    pub fn kill(self) {
        // Not reaped yet, so the id is still this child's.
        let _ = nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGKILL);
    }
}

/// The process id behind a pidfd as the caller sees it, proc_pid_fdinfo(5).
///
/// # Errors
/// `NotFound` where it has ended and was reaped, and those of reading `/proc`.
pub fn id_behind(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    id.filter(|id| *id > 0)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A child that ended and was reaped.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// The process id that it had.
    pub id: i32,
    /// The exit code, or the signal that ended it.
    pub status: Result<i32, i32>,
    /// What it and those of its descendants that were waited for used.
    pub usage: libc::rusage,
}

/// Reaps one child that ended, whichever it is; `None` if none has, or there is none.
///
/// # Errors
/// Those of wait4(2).
pub fn reap_any() -> io::Result<Option<Ended>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to memory of ours that lives for the call.
    let id = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
    if id < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ECHILD) => Ok(None),
            _ => Err(error),
        };
    }
    if id == 0 {
        return Ok(None);
    }
    let status = if libc::WIFSIGNALED(status) {
        Err(libc::WTERMSIG(status))
    } else {
        Ok(libc::WEXITSTATUS(status))
    };
    // SAFETY: zeroed at first, which is a value of it, and written by the call.
    let usage = unsafe { usage.assume_init() };
    Ok(Some(Ended { id, status, usage }))
}

/// Whether the calling process has no child, nor one that ended and was not reaped.
#[must_use]
pub fn has_no_child() -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::All, look), Err(Errno::CHILD))
}

/// Proof that the calling process had one thread, which it must keep to: `fork` is sound only there,
/// because another thread could hold a lock, of the allocator for one, that nobody would ever release
/// in the child.
#[derive(Debug, Clone, Copy)]
pub struct OneThread(());

impl OneThread {
    /// Counts the threads of the calling process.
    ///
    /// # Errors
    /// `Other` if there are several; those of stat(2) where `/proc` is not mounted.
    pub fn check() -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        // A directory has a link for its name, one for `.` and one for each directory in it.
        match std::fs::metadata("/proc/self/task")?.nlink() {
            3 => Ok(Self(())),
            links => Err(io::Error::other(format!(
                "this process has {} threads",
                links - 2
            ))),
        }
    }
}

/// Runs `body` in a forked child, which exits with what it returns.
///
/// # Errors
/// Those of fork(2).
pub fn fork_child(_proof: OneThread, body: impl FnOnce() -> i32) -> io::Result<Child> {
    // SAFETY: `OneThread` vouches for the single thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Child(child)),
        ForkResult::Child => {
            // A panic must not unwind into the parent's frames: this process has none of its own.
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            exit_now(code)
        }
    }
}

/// As [`fork_child`], with the child the first process of new namespaces of these kinds, clone(2).
///
/// # Errors
/// Those of clone(2).
pub fn fork_into(
    _proof: OneThread,
    namespaces: rustix::thread::UnshareFlags,
    body: impl FnOnce() -> i32,
) -> io::Result<Child> {
    let flags = libc::c_long::from(namespaces.bits()) | libc::c_long::from(libc::SIGCHLD);
    // SAFETY: with no stack, and no flag but those of namespaces, it is fork(2) to the memory of both, and
    // `OneThread` vouches for the single thread. What the C library's fork does besides is to note the
    // child's thread id, for locks of threads, of which there are none; its own forks note theirs.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    match i32::try_from(pid) {
        Ok(0) => {
            // As in `fork_child`.
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            exit_now(code)
        }
        Ok(child @ 1..) => Ok(Child(Pid::from_raw(child))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the calling process without running any handler of the program that it was forked from.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes any code and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor of the calling process but 0, 1, 2 and those in `keep`.
///
/// For a forked child that is to hold nothing of its parent's. Objects of the parent that own other
/// descriptors must not be used by the child afterwards, and are not: a child ends by `exit_now`,
/// which drops nothing.
///
/// # Errors
/// Those of close_range(2).
pub fn close_all_except(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep
        .iter()
        .filter_map(|descriptor| u32::try_from(descriptor.as_raw_fd()).ok())
        .filter(|number| *number > 2)
        .collect();
    kept.sort_unstable();
    let mut first = 3;
    for number in kept {
        if first < number {
            close_range(first, number - 1, 0)?;
        }
        first = number + 1;
    }
    close_range(first, u32::MAX, 0)
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// Those of close_range(2).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Above what a command is given by number.
const HIGH: i32 = 64;

/// The same open file under a number that `place_from_three` does not take.
///
/// # Errors
/// Those of fcntl(2).
pub fn out_of_the_way(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(descriptor, HIGH)?)
}

/// Makes `descriptors` the calling process's 3 and those after it, not close-on-exec; at most
/// [`MOST_PLACED`]. What had these numbers is closed.
///
/// For a forked child, as [`close_all_except`].
///
/// # Errors
/// Those of fcntl(2) and dup2(2); `InvalidInput` for too many.
pub fn place_from_three(descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.len() > MOST_PLACED {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let high = descriptors
        .iter()
        .map(|descriptor| out_of_the_way(*descriptor))
        .collect::<io::Result<Vec<_>>>()?;
    for (target, descriptor) in (3..).zip(&high) {
        // SAFETY: what had the number is used by nobody, as the caller sees to.
        let result = unsafe { libc::dup2(descriptor.as_raw_fd(), target) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Descriptors that a command can be given besides the standard ones.
pub const MOST_PLACED: usize = 8;

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: plain numbers. What is closed is used by nobody, as `close_all_except` asks.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes `source` the calling process's standard descriptor `number`, not close-on-exec.
///
/// # Errors
/// Those of dup3(2).
pub fn become_standard(source: BorrowedFd<'_>, number: Standard) -> io::Result<()> {
    let target = number as libc::c_int;
    if source.as_raw_fd() == target {
        rustix::io::fcntl_setfd(source, rustix::io::FdFlags::empty())?;
        return Ok(());
    }
    // SAFETY: 0, 1 and 2 are owned by no object of this crate; what they referred to is closed by the kernel.
    let result = unsafe { libc::dup2(source.as_raw_fd(), target) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The three standard descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    /// 0.
    Input = 0,
    /// 1.
    Output = 1,
    /// 2.
    Error = 2,
}

/// Takes descriptor 0, where the parent process put a socket; `None` if it was taken before.
#[must_use]
pub fn take_standard_input() -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    use std::sync::atomic::{AtomicBool, Ordering};
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the flag sees to it that there is one owner.
    Some(unsafe { OwnedFd::from_raw_fd(0) })
}

/// Leaves the namespaces that `flags` name for new ones, unshare(2).
///
/// # Errors
/// Those of unshare(2).
pub fn unshare(_proof: OneThread, flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: unsafe for `CLONE_FILES` alone, which would let threads see different descriptors; there is one.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// Replaces the calling program; returns only an error.
///
/// # Errors
/// Those of execve(2).
pub fn execute(
    program: &CStr,
    arguments: &[std::ffi::CString],
    environment: &[std::ffi::CString],
) -> io::Error {
    match nix::unistd::execve(program, arguments, environment) {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}

/// Makes `signal`'s dispositions and the signal mask those of a fresh program.
pub fn reset_signals() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: the default disposition runs no code of ours; EINVAL for SIGKILL and SIGSTOP is harmless.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let none = nix::sys::signal::SigSet::empty();
    // Fails only for an invalid `how`.
    let _ =
        nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&none), None);
}

/// Sets a soft and hard limit, never above the hard limit that is there.
///
/// # Errors
/// Those of setrlimit(2).
pub fn lower_limit(resource: nix::sys::resource::Resource, wanted: u64) -> io::Result<()> {
    let (_, hard) = nix::sys::resource::getrlimit(resource)?;
    let limit = wanted.min(hard);
    nix::sys::resource::setrlimit(resource, limit, limit)?;
    Ok(())
}
