//! Attempts to take more than a limit allows, and workspaces that have limits.

use serde_json::{Value, json};

use super::{Derrick, Mode, Workspace, mode};

/// A limit on memory.
pub(crate) const MEMORY: u64 = 64 << 20;
/// A limit on processes.
pub(crate) const PIDS: u64 = 30;

/// Takes much more memory than `MEMORY`.
pub(crate) const GREEDY: &str = "python3 -c 'x = bytearray(300 << 20); print(len(x))'";

/// Starts twice as many processes as `PIDS`, all alive at once; fails at the first that is refused.
pub(crate) const BRANCHING: &str = "import os, signal
children = []
try:
    for _ in range(60):
        child = os.fork()
        if child == 0: signal.pause()
        children.append(child)
    print('all')
except OSError as error:
    print(error.errno, len(children) < 30)
    raise SystemExit(7)
finally:
    for child in children: os.kill(child, 9)
    for child in children: os.waitpid(child, 0)";

/// A workspace with these limits, where this host enforces them. Where it does not, which it never
/// may for root, they are refused, and there is nothing more to see.
pub(crate) fn enforced(derrick: &Derrick, limits: &Value) -> Option<Workspace> {
    let there = derrick.api.list();
    let answer = derrick
        .api
        .post("/workspaces", &json!({ "limits": limits }));
    if answer.status == 200 {
        let id = answer.json()["id"].as_str().expect("an id").to_owned();
        return Some(derrick.api.workspace(&id));
    }
    assert_ne!(mode(), Mode::Root, "{}", answer.text());
    let problem = answer.problem(422);
    assert_eq!(problem["type"], "urn:derrick:problem:limit-unenforceable");
    let detail = problem["detail"].as_str().expect("text");
    let named = limits.as_object().expect("an object").keys();
    assert!(
        named
            .clone()
            .any(|limit| detail.contains(&format!("the limit on {limit}"))),
        "{detail}"
    );
    assert_eq!(derrick.api.list(), there);
    None
}

/// A Python program that stops itself when it sees its child stopped, as su(1) does. Its tree ends by SIGUSR1.
pub(crate) const STOPS_WITH_ITS_CHILD: &str = "import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
child = os.fork()
if child == 0:
    signal.sigwait({signal.SIGUSR1})
    os._exit(0)
os.write(1, b'there')
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status): break
    os.kill(os.getpid(), signal.SIGSTOP)
os.write(1, b' ended')";

/// An exec of a Python program.
pub(crate) fn python(program: &str) -> Value {
    json!({ "argv": ["/usr/bin/python3", "-c", program] })
}
