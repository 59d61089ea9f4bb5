//! Attacks where there is no defence: on the bare host, in throw-away namespaces of a test's own, or
//! against a naive implementation. An attack that fails in a workspace proves nothing if it fails here.

use std::process::Command;

use super::succeed;

/// What the programs of attackers begin with: `attempt` prints whether something worked, or its errno.
pub(crate) const ATTEMPT: &str = "
import ctypes, errno, os, signal, socket, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = libc.ptrace.restype = ctypes.c_long
def call(function, *arguments):
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = function(*plain)
    if result == -1:
        raise OSError(ctypes.get_errno(), 'refused')
    return result
def attempt(what, action):
    try:
        action()
        print(what, 'worked', flush=True)
    except OSError as error:
        print(what, errno.errorcode[error.errno], flush=True)
";

/// Makes a process that is its maker's sibling; prints `made`, or the errno.
pub(crate) const CLONE_PARENT: &str = "import ctypes, errno, os, platform
libc = ctypes.CDLL(None, use_errno=True)
number = {'x86_64': 56, 'aarch64': 220}[platform.machine()]
child = libc.syscall(number, 0x8000 | 17, 0, 0, 0, 0)
if child == 0:
    os._exit(0)
print('made' if child > 0 else errno.errorcode[ctypes.get_errno()])";

/// A command of root of new namespaces of these kinds, by the names of unshare(1); with `pid` it is their
/// first process and has a `/proc` of its own.
pub(crate) fn namespaces(kinds: &[&str]) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user"]);
    for kind in kinds {
        unshare.arg(format!("--{kind}"));
        if *kind == "pid" {
            unshare.args(["--fork", "--kill-child", "--mount-proc"]);
        }
    }
    unshare.arg("--");
    unshare
}

/// Runs a Python program on the bare host, as root of new namespaces of these kinds; what it printed.
pub(crate) fn python_in(kinds: &[&str], program: &str) -> String {
    succeed(namespaces(kinds).args(["/usr/bin/python3", "-c", program]))
}

/// Runs a Python program on the bare host, as the user whom the tests run as; what it printed.
pub(crate) fn python(program: &str) -> String {
    succeed(Command::new("/usr/bin/python3").args(["-c", program]))
}

/// Runs a command line on the bare host, as the user whom the tests run as; what it printed.
pub(crate) fn sh(line: &str) -> String {
    succeed(Command::new("bash").args(["-c", line]))
}
