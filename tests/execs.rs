//! Execs: how each ended is told truly, its end is the end of its whole tree, and it is started once.

mod support;

use serde_json::{Value, json};
use support::{Derrick, Exec, Mode, STOPS_WITH_ITS_CHILD, Workspace, mode, python};

// --- outcomes ---

#[test]
fn how_a_command_ended_is_told_truly() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exited = |code: i32| json!({ "kind": "exited", "code": code });
    let signaled =
        |signal: i32, name: &str| json!({ "kind": "signaled", "signal": signal, "name": name });
    for (cmd, outcome, exit_code) in [
        ("true", exited(0), 0),
        ("exit 42", exited(42), 42),
        ("exit 255", exited(255), 255),
        // Codes that stand for something else where derrick tells them are the command's own here.
        ("exit 124", exited(124), 124),
        ("exit 125", exited(125), 125),
        ("exit 137", exited(137), 137),
        ("kill -TERM $$; sleep 1000", signaled(15, "SIGTERM"), 143),
        ("kill -KILL $$; sleep 1000", signaled(9, "SIGKILL"), 137),
        ("kill -SEGV $$; sleep 1000", signaled(11, "SIGSEGV"), 139),
        (
            "kill -RTMIN+2 $$; sleep 1000",
            signaled(36, "SIGRTMIN+2"),
            164,
        ),
    ] {
        let ended = workspace.run_with(&json!({ "cmd": cmd, "timeout": 100 }));
        assert_eq!(ended["outcome"], outcome, "{cmd}: {ended}");
        assert_eq!(ended["exit_code"], json!(exit_code), "{cmd}: {ended}");
        assert_eq!(ended["detached"], 0, "{cmd}: {ended}");
        assert_eq!(ended["cmd"], json!(cmd), "{ended}");
    }
}

#[test]
fn what_cannot_be_executed_ends_as_in_a_shell_and_says_why() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("cd /tmp; echo true > script; touch file; mkdir dir
        printf '#!/no/such/interpreter\\n' > orphan; chmod +x script orphan");
    let long = "x".repeat(5000);
    for (name, code, why) in [
        ("no-such-program", 127, "No such file"),
        ("/tmp/no-such-program", 127, "No such file"),
        ("", 127, "No such file"),
        ("/tmp/orphan", 127, "No such file"),
        ("/tmp/dir", 126, "Permission denied"),
        ("/tmp/file", 126, "Permission denied"),
        // It has no line that says which program runs it; a shell would, and no shell was asked for.
        ("/tmp/script", 126, "Exec format error"),
        (&long, 126, "File name too long"),
    ] {
        let ended = workspace.run_with(&json!({ "argv": [name, "argument"] }));
        let outcome = json!({ "kind": "exited", "code": code });
        assert_eq!(ended["outcome"], outcome, "{name}: {ended}");
        let said = ended["output"]["stderr"].as_str().expect("it is text");
        assert!(said.contains(why) && said.contains(name), "{name}: {said}");
        assert_eq!(ended["output"]["stdout"], "", "{name}");
    }
}

#[test]
fn an_argument_that_the_kernel_does_not_take_is_an_outcome() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let long = "x".repeat(128 << 10);
    for body in [
        json!({ "argv": ["echo", long] }),
        json!({ "cmd": "echo", "env": { "LONG": long } }),
    ] {
        let ended = workspace.run_with(&body);
        assert_eq!(ended["exit_code"], 126, "{}", ended["outcome"]);
        let said = ended["output"]["stderr"].as_str().expect("it is text");
        assert!(said.contains("Argument list too long"), "{said}");
    }
}

#[test]
fn a_mebibyte_of_arguments_arrives() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let arguments: Vec<String> = (0..16_384).map(|n| format!("{n:063}")).collect();
    let mut argv = vec!["printf".to_owned(), "%s\\n".to_owned()];
    argv.extend_from_slice(&arguments);
    let exec = workspace.exec(&json!({ "argv": argv }));
    assert!(exec.printed("stdout") == arguments.join("\n") + "\n");
    let told = exec.show();
    assert_eq!(told["command_cut"], true);
    assert!(told.to_string().len() < 16 << 10, "the whole is repeated");
}

#[test]
fn a_command_too_large_for_any_sandbox_is_refused_and_ends_none() {
    let derrick = Derrick::on_host();
    // Both are as large as a request may be, and come to more than goes into one message to init.
    let env: serde_json::Map<_, _> = (0..690_000).map(|n| (n.to_string(), json!(""))).collect();
    let workspace = derrick.api.create_with(&json!({ "env": env }));
    let argv = vec!["x".repeat(100 << 10); 80];
    let problem = workspace
        .post("execs", &json!({ "argv": argv }))
        .problem(422);
    let detail = problem["detail"].to_string();
    assert!(detail.contains("Argument list too long"), "{problem}");
    assert_eq!(workspace.describe()["state"], "running");
    assert_eq!(workspace.execs(), Vec::<Value>::new());
}

#[test]
fn a_deadline_is_no_exit_and_what_was_printed_until_then_is_there() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let ended = workspace.run_with(&json!({
        "cmd": "echo before; trap '' TERM; sleep 1000; echo after",
        "timeout": 1.5,
    }));
    assert_eq!(ended["outcome"], json!({ "kind": "deadline" }), "{ended}");
    assert_eq!(ended["exit_code"], 124);
    assert_eq!(ended["output"]["stdout"], "before\n");
}

#[test]
fn a_deadline_that_is_too_short_for_anything_is_still_a_deadline() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for timeout in [1e-9, 1e-300] {
        let ended = workspace.run_with(&json!({ "cmd": "sleep 1000", "timeout": timeout }));
        assert_eq!(ended["outcome"], json!({ "kind": "deadline" }), "{ended}");
    }
    assert_eq!(workspace.run("echo fine")["output"]["stdout"], "fine\n");
}

#[test]
fn a_deadline_beyond_all_time_is_none() {
    let derrick = Derrick::on_host();
    let ended = derrick
        .create()
        .run_with(&json!({ "cmd": "true", "timeout": 1e300 }));
    assert_eq!(ended["exit_code"], 0, "{ended}");
}

#[test]
fn a_kill_is_told_as_such_and_told_again_the_same_way() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("echo before; sleep 1000");
    let waiting = exec.start_waiting();
    exec.until_printed("before");
    let killed = exec.kill();
    assert_eq!(killed["outcome"], json!({ "kind": "killed" }), "{killed}");
    assert_eq!(killed["exit_code"], 137);
    assert_eq!(exec.kill(), killed);
    assert_eq!(exec.show(), killed);
    assert_eq!(
        waiting.answer().expect(200).json()["outcome"]["kind"],
        "killed"
    );
    assert_eq!(exec.printed("both"), "before\n");
}

#[test]
fn one_that_ended_stays_as_it_is_when_it_is_killed() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("exit 3");
    assert_eq!(exec.outcome(), json!({ "kind": "exited", "code": 3 }));
    assert_eq!(
        exec.kill()["outcome"],
        json!({ "kind": "exited", "code": 3 })
    );
}

#[test]
fn a_reset_ends_execs_and_says_so_to_whoever_waits() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("echo before; sleep 1000");
    let answer = workspace.start_exec(json!({ "cmd": "echo before; sleep 1000", "wait": true }));
    let told = exec.follow_events("", None);
    for told in workspace.execs() {
        workspace.exec_of(&told).until_printed("before");
    }
    workspace.reset();
    let last = told.last().expect("there is an end");
    assert_eq!(
        (last.name.as_str(), &last.data["outcome"]),
        ("end", &json!({ "kind": "reset" }))
    );
    assert_eq!(exec.ended()["exit_code"], 137);
    // The other request may have been the later one; then it ran on the new sandbox.
    let mut all = workspace.execs();
    all.retain(|other| other["id"] != json!(exec.id));
    for other in all {
        workspace.exec_of(&other).kill();
    }
    let other = answer.answer().expect(201).json();
    assert!(["reset", "killed"].contains(&other["outcome"]["kind"].as_str().expect("a kind")));
    // What it printed survives the reset, and new ones run.
    assert_eq!(exec.printed("stdout"), "before\n");
    assert_eq!(workspace.run("echo fine")["output"]["stdout"], "fine\n");
}

#[test]
fn a_removal_ends_execs_and_says_so_to_whoever_waits() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("echo before; sleep 1000");
    let told = exec.follow_events("", None);
    let bytes = exec.follow("stream=stdout");
    exec.until_printed("before");
    assert!(workspace.delete());
    let last = told.last().expect("there is an end");
    let removed = json!({ "kind": "removed" });
    assert_eq!(
        (last.name.as_str(), &last.data["outcome"]),
        ("end", &removed)
    );
    assert_eq!(
        std::io::read_to_string(bytes).expect("it ends well"),
        "before\n"
    );
    derrick.api.get(&exec.path("")).problem(404);
}

#[test]
fn what_a_command_used_is_told() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let python =
        |program: &str| workspace.run_with(&json!({ "argv": ["/usr/bin/python3", "-c", program] }));
    let idle = python("pass");
    // Of what its leader waited for, too.
    let busy = python(
        "import os, time
if os.fork() == 0:
    filled = b'x' * (300 << 20)
    while time.process_time() < 0.5: pass
    os._exit(0)
os.wait()",
    );
    let number = |of: &Value, what: &str| {
        let found = of.pointer(what).and_then(Value::as_f64);
        found.unwrap_or_else(|| panic!("no {what} in {of}"))
    };
    let cpu = |of: &Value| number(of, "/cpu/user") + number(of, "/cpu/system");
    assert!(
        cpu(&busy) >= 0.5 && cpu(&busy) > cpu(&idle),
        "{busy} {idle}"
    );
    assert!(number(&busy, "/wall") >= 0.5, "{busy}");
    let peak = |of: &Value| number(of, "/peak_memory");
    assert!(peak(&busy) > f64::from(300 << 20), "{busy}");
    assert!((1e6..f64::from(300 << 20)).contains(&peak(&idle)), "{idle}");
    for one in [&idle, &busy] {
        assert!(number(one, "/ended") >= number(one, "/started"), "{one}");
    }
    assert!(
        number(&busy, "/started") >= number(&idle, "/ended"),
        "{idle} {busy}"
    );
}

#[test]
fn processes_that_it_left_running_are_counted() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for (cmd, left) in [
        ("true", 0),
        ("sleep 1000 & sleep 1000 &", 2),
        // The second one is known only below the first.
        (
            "setsid -f sh -c 'sleep 1000 & echo > /tmp/there; wait' & cat /tmp/there; wait",
            2,
        ),
        ("sleep 0.01 & wait", 0),
    ] {
        workspace.ok("rm -f /tmp/there; mkfifo /tmp/there");
        let ended = workspace.run(cmd);
        assert_eq!(ended["detached"], left, "{cmd}: {ended}");
    }
}

#[test]
fn thousands_of_processes_that_are_left_behind_hold_nobody_up() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let other = workspace.exec(&json!({ "cmd": "read line; echo $line", "stdin": "open" }));
    let program = "import os, signal
for _ in range(1500):
    if os.fork() == 0:
        signal.pause()";
    let ended = workspace.run_with(&json!({ "argv": ["/usr/bin/python3", "-c", program] }));
    assert_eq!(ended["detached"], 1500, "{ended}");
    other.write(b"still here\n").expect(200);
    assert_eq!(other.printed("stdout"), "still here\n");
}

// --- the whole tree ---

/// Starts a program that says `there` as soon as all of it holds the lock that `is_free` asks for.
fn stubborn(workspace: &Workspace, body: &Value) -> Exec {
    let exec = workspace.exec(body);
    exec.until_printed("there");
    assert!(!is_free(workspace), "nobody holds the lock");
    exec
}

/// Whether nobody holds the lock any more: processes that share it are gone then.
fn is_free(workspace: &Workspace) -> bool {
    workspace.sh("flock --nonblock /tmp/lock true").exit_code == 0
}

/// Processes in every way to outlive a signal to a process, a group or a session.
const STUBBORN: &str = "import fcntl, os, signal, sys, time
lock = open('/tmp/lock', 'w')
fcntl.flock(lock, fcntl.LOCK_SH)
os.chmod('/tmp/lock', 0o666)
reader, writer = os.pipe()
def stay():
    os.write(writer, b'x')
    while True: signal.pause()
def ignore():
    for number in range(1, 65):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33): signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    ignore(); stay()
if os.fork() == 0:
    os.setsid(); ignore(); stay()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid(); ignore(); stay()
    os._exit(0)
if os.fork() == 0:
    os.write(writer, b'x')
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(1)
if os.fork() == 0:
    # Shown as ended from here on, while its other thread runs.
    import ctypes, platform, threading
    threading.Thread(target=stay).start()
    ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)
count = 0
while count < 5: count += len(os.read(reader, 5))
print('there', flush=True)
";

#[test]
fn a_kill_ends_whatever_would_outlive_a_signal() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let program = format!("{STUBBORN}\nos.wait()\nsignal.pause()");
    let exec = stubborn(&workspace, &python(&program));
    assert_eq!(exec.kill()["outcome"]["kind"], "killed");
    assert!(is_free(&workspace), "something outlived the kill");
    assert_eq!(exec.printed("stdout"), "there\n");
}

#[test]
fn a_kill_ends_a_tree_whose_leader_is_stopped() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let program = format!("{STUBBORN}\nos.kill(os.getpid(), signal.SIGSTOP)");
    let exec = stubborn(&workspace, &python(&program));
    assert_eq!(exec.kill()["outcome"]["kind"], "killed");
    assert!(is_free(&workspace), "something outlived the kill");
}

#[test]
fn a_deadline_ends_whatever_would_outlive_a_signal() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let program = format!("{STUBBORN}\nignore()\nstay()");
    let mut body = python(&program);
    body["timeout"] = json!(10);
    let exec = stubborn(&workspace, &body);
    assert_eq!(exec.outcome(), json!({ "kind": "deadline" }));
    assert!(is_free(&workspace), "something outlived the deadline");
}

#[test]
fn a_kill_ends_processes_of_another_user() {
    if mode() == Mode::Single {
        return;
    }
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("touch /tmp/lock; chmod 666 /tmp/lock");
    let program = format!("{STUBBORN}\nignore()\nstay()").replace("os.chmod", "#");
    let mut body = python(&program);
    body["user"] = json!(1);
    let exec = stubborn(&workspace, &body);
    assert_eq!(exec.kill()["outcome"]["kind"], "killed");
    assert!(is_free(&workspace), "something outlived the kill");
}

#[test]
fn a_kill_of_a_fork_bomb_leaves_the_workspaces_other_execs_alone() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let other = workspace.exec(&json!({ "cmd": "read line; echo $line", "stdin": "open" }));
    // Of two kinds: one that fills the process table, and one whose processes leave a child and end.
    for bomb in [
        "while True:
    try: os.fork()
    except OSError: pass",
        "for _ in range(20): os.fork()
while True:
    try:
        if os.fork(): os._exit(0)
        os.setsid()
    except OSError: pass",
    ] {
        // The other mode's processes of this user count as well where there is no other user.
        let program = format!(
            "import fcntl, os, resource, sys
lock = open('/tmp/lock', 'w')
fcntl.flock(lock, fcntl.LOCK_SH)
if os.fork():
    print('there', flush=True)
    while True: os.wait()
most = len([name for name in os.listdir('/proc') if name.isdigit()]) + 200
resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
{bomb}"
        );
        let exec = stubborn(&workspace, &python(&program));
        assert_eq!(exec.kill()["outcome"]["kind"], "killed", "{bomb}");
        assert!(is_free(&workspace), "something outlived the kill: {bomb}");
    }
    other.write(b"still here\n").expect(200);
    assert_eq!(other.printed("stdout"), "still here\n");
}

#[test]
fn a_deadline_of_what_forks_too_fast_to_be_followed_leaves_others_alone() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let other = workspace.exec(&json!({ "cmd": "read line; echo $line", "stdin": "open" }));
    // Stopped by itself, and not to be woken by what stops and wakes all others.
    let paused = workspace.exec(&python(
        "import os, signal
os.write(1, b'there')
os.kill(os.getpid(), signal.SIGSTOP)
os.write(1, b' awake')",
    ));
    paused.until_printed("there");
    // Stops itself when it sees its child stopped, as su(1) does, and is to go on with it.
    let parent = workspace.exec(&python(STOPS_WITH_ITS_CHILD));
    parent.until_printed("there");
    // Sixteen chains, of which each process lives for as long as it takes to fork.
    let program = "import fcntl, os, signal
lock = open('/tmp/lock', 'w')
fcntl.flock(lock, fcntl.LOCK_SH)
print('there', flush=True)
if os.fork():
    while True:
        try: os.wait()
        except ChildProcessError: signal.pause()
for _ in range(4): os.fork()
while True:
    if os.fork(): os._exit(0)";
    let mut body = python(program);
    body["timeout"] = json!(1);
    let exec = workspace.exec(&body);
    assert_eq!(exec.outcome(), json!({ "kind": "deadline" }));
    assert!(is_free(&workspace), "something outlived the deadline");
    assert_eq!(paused.show()["state"], "running");
    assert_eq!(paused.output("stream=stdout").body, b"there");
    other.write(b"still here\n").expect(200);
    assert_eq!(other.printed("stdout"), "still here\n");
    parent
        .signal(&json!({ "signal": "SIGUSR1", "to": "tree" }))
        .expect(200);
    assert_eq!(parent.printed("stdout"), "there ended");
    paused.signal(&json!({ "signal": "SIGCONT" })).expect(200);
    assert_eq!(paused.printed("stdout"), "there awake");
}

#[test]
fn what_a_killed_tree_used_is_told() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    // The one that does it all is not waited for by its parent.
    let program = "import os, time
if os.fork() == 0:
    x = bytearray(100 << 20)
    while time.process_time() < 0.2: pass
    print('used', flush=True)
while True: time.sleep(1000)";
    let exec = workspace.exec(&python(program));
    exec.until_printed("used");
    let ended = exec.kill();
    let used = ["user", "system"].map(|mode| ended["cpu"][mode].as_f64().expect("a number"));
    assert!(used.iter().sum::<f64>() >= 0.2, "{ended}");
    assert!(ended["peak_memory"].as_u64() >= Some(100 << 20), "{ended}");
}

#[test]
fn what_is_printed_through_a_child_that_is_about_to_end_is_there() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for _ in 0..5 {
        let ended = workspace.run("exec > >(tee /tmp/log) 2> >(cat >&2); echo out; echo err >&2");
        assert_eq!(ended["output"]["stdout"], "out\n", "{ended}");
        assert_eq!(ended["output"]["stderr"], "err\n", "{ended}");
        assert_eq!(workspace.sh("echo through > >(cat)").output, "through\n");
    }
}

#[test]
fn the_leaders_end_is_the_execs_and_its_children_go_on_printing() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkfifo /tmp/go /tmp/done");
    // What it prints after its cue is far more than fits into a pipe.
    let ended = workspace.run(
        "(read line < /tmp/go
          head -c 50000000 /dev/zero && head -c 50000000 /dev/zero >&2 && echo alive > /tmp/done
          sleep 1000) &
         echo mine",
    );
    assert_eq!(ended["outcome"], json!({ "kind": "exited", "code": 0 }));
    assert_eq!(ended["detached"], 1);
    assert_eq!(workspace.ok("echo > /tmp/go; cat /tmp/done"), "alive\n");
    let exec = workspace.exec_of(&ended);
    assert_eq!(exec.printed("both"), "mine\n");
    assert_eq!(exec.show()["stdout"]["bytes"], 5);
}

// --- the user ---

#[test]
fn an_exec_runs_as_the_user_that_is_asked_for() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let cmd = "id -u; umask 022; echo > /tmp/of-$(id -u); stat -c %u:%g /tmp/of-$(id -u)";
    let of_root = workspace.run_with(&json!({ "cmd": cmd, "user": "root" }));
    assert_eq!(of_root["output"]["stdout"], "0\n0:0\n");
    assert_eq!(of_root["user"], "root");
    for user in [json!("daemon"), json!("1"), json!(1)] {
        let body = json!({ "cmd": cmd, "user": user, "wait": true });
        let answer = workspace.post("execs", &body);
        if mode() == Mode::Single {
            let problem = answer.problem(422);
            assert!(problem["detail"].to_string().contains("uid 1"), "{problem}");
            continue;
        }
        let ended = answer.expect(201).json();
        assert_eq!(ended["output"]["stdout"], "1\n1:1\n", "{user}");
        let shown = user
            .as_str()
            .map_or_else(|| user.to_string(), str::to_owned);
        assert_eq!(ended["user"], json!(shown));
    }
}

#[test]
fn a_user_that_cannot_be_had_is_refused_and_leaves_no_exec() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for user in [
        json!("nobody-of-that-name"),
        json!(65536),
        json!(u32::MAX),
        json!("-1"),
    ] {
        let problem = workspace
            .post("execs", &json!({ "cmd": "true", "user": user }))
            .problem(422);
        assert_eq!(
            problem["type"], "urn:derrick:problem:not-possible",
            "{user}"
        );
    }
    assert_eq!(workspace.execs(), Vec::<Value>::new());
}

#[test]
fn many_deadlines_at_once_end_their_own_and_nothing_else() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let other = workspace.exec(&json!({"argv": ["sleep", "1000"]}));
    let doomed: Vec<_> = (0..400)
        .map(|_| workspace.exec(&json!({"argv": ["cat"], "stdin": "open", "timeout": 2})))
        .collect();
    for exec in &doomed {
        assert_eq!(exec.ended()["outcome"]["kind"], "deadline");
    }
    assert_eq!(other.show()["state"], "running");
}
