//! System calls that are attempted: each in a process of its own, on the bare host and in a workspace.
//!
//! A call that fails inside proves nothing if it fails everywhere: the same program runs on the bare host
//! first, as root of namespaces of its own, and has to get further there.

use std::collections::BTreeMap;
use std::process::Command;

use libc::c_long;

use super::{Derrick, Mode, mode, succeed};

/// A system call with arguments, in Python, that get further than a filter.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) name: String,
    pub(crate) number: c_long,
    pub(crate) arguments: String,
    /// What it gives inside.
    pub(crate) inside: &'static str,
    /// On which bare host it has to give something else.
    pub(crate) host: Host,
}

/// Where an attempt gets further than inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// Every one: root of a new user namespace may try.
    Any,
    /// The kernel asks for capabilities over the host itself.
    Root,
    /// None that can be relied on, or none that could be tried without harm.
    Untried,
}

/// A table of attempts: `SYS_mount("…") => EPERM, Any;` for each.
#[macro_export]
macro_rules! attempts {
    ($($number:ident ( $arguments:literal ) => $inside:ident, $host:ident;)*) => {
        [$($crate::support::Attempt {
            name: stringify!($number).into(),
            number: libc::$number,
            arguments: $arguments.into(),
            inside: stringify!($inside),
            host: $crate::support::Host::$host,
        }),*]
    };
}

/// Makes each call in a process of its own and prints what came of it: `ok`, an errno, or a signal.
pub(crate) fn program(attempts: &[Attempt]) -> String {
    let calls: String = attempts
        .iter()
        .map(|attempt| {
            format!(
                "attempt('{}', {}, [{}])\n",
                attempt.name, attempt.number, attempt.arguments
            )
        })
        .collect();
    format!(
        "import ctypes, errno, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, arguments):
    plain = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *plain)
    return 'ok' if result != -1 else errno.errorcode[ctypes.get_errno()]
def attempt(name, number, arguments):
    sys.stdout.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        result = call(number, arguments)
        # A call that made a process comes back in it as well.
        if os.getppid() in (parent, 0):
            print(name, result, flush=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        print(name, signal.Signals(os.WTERMSIG(status)).name, flush=True)
uts = os.open('/proc/self/ns/uts', os.O_RDONLY)
{calls}"
    )
}

/// Runs the program on the bare host, where its effects end with its own namespaces.
pub(crate) fn on_the_host(program: &str, user_namespace: bool) -> String {
    let mut unshare = Command::new("unshare");
    if user_namespace {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--fork"])
        .args(["/usr/bin/python3", "-c", program]);
    succeed(&mut unshare)
}

/// What a program printed of each attempt.
pub(crate) fn results(printed: &str) -> BTreeMap<String, String> {
    printed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, result)| (name.to_owned(), result.to_owned()))
        .collect()
}

/// Each attempt gets further on the bare host, and gives what its table says in a workspace.
pub(crate) fn assert_refused(attempts: &[Attempt]) {
    let root = mode() == Mode::Root;
    let program = program(attempts);
    let host = results(&on_the_host(&program, !root));
    for attempt in attempts {
        let outside = host.get(&attempt.name).map(String::as_str);
        if attempt.host == Host::Any || (attempt.host == Host::Root && root) {
            assert_ne!(
                outside,
                Some(attempt.inside),
                "{} on the bare host",
                attempt.name
            );
            assert!(outside.is_some(), "{} on the bare host", attempt.name);
        }
    }
    assert_refused_in(&Derrick::on_host(), attempts);
}

/// Each gives what its table says in a workspace of this provider.
pub(crate) fn assert_refused_in(derrick: &Derrick, attempts: &[Attempt]) {
    let inside = results(&derrick.create().python(&program(attempts)).expect(0));
    for attempt in attempts {
        let result = inside.get(&attempt.name).map(String::as_str);
        assert_eq!(result, Some(attempt.inside), "{}", attempt.name);
    }
}

/// Opens each kind of socket and prints what came of it.
pub(crate) fn sockets(kinds: &[(&str, i32, i32, i32)]) -> String {
    let calls: String = kinds
        .iter()
        .map(|(name, family, kind, protocol)| {
            format!(
                "attempt('{name}', {}, [{family}, {kind}, {protocol}])\n",
                libc::SYS_socket
            )
        })
        .collect();
    program(&[]) + &calls
}
