//! P6: a limit that is accepted is enforced; one that cannot be enforced is refused.
//!
//! Each test is an attack of one row of the threat model. It works in a workspace without the limit, with
//! a bound of its own there, and fails with the limit, for the reason that the kernel gives.

mod support;

use serde_json::{Value, json};
use support::{
    BRANCHING, Derrick, GREEDY, Lives, MEMORY, Mode, PIDS, Workspace, cgroup_directories,
    descendants, enforced, mode, python, wait_until_empty,
};

/// What the program printed, which has to succeed.
fn printed(workspace: &Workspace, program: &str) -> String {
    let ended = workspace.run_with(&python(program));
    assert_eq!(ended["exit_code"], 0, "{ended}");
    let printed = ended["output"]["stdout"].as_str().expect("text");
    printed.trim_end().to_owned()
}

fn limited(derrick: &Derrick, limits: &Value) -> Workspace {
    derrick.api.create_with(&json!({ "limits": limits }))
}

/// Fills the directory `at` with one file until it has 8 MiB, or there is no room.
fn filling(at: &str) -> String {
    format!(
        "import errno
size = 0
with open('{at}/filling', 'wb', buffering=0) as file:
    try:
        while size < 8 << 20: size += file.write(bytes(1 << 16))
    except OSError as error: print(errno.errorcode[error.errno], end=' ')
print(size)"
    )
}

/// Makes 3000 empty files in the directory `at`, or as many as there is room for.
fn littering(at: &str) -> String {
    format!(
        "import errno
count = 0
try:
    for count in range(3000): open(f'{at}/{{count}}', 'w').close()
except OSError as error: print(errno.errorcode[error.errno], end=' ')
print(count < 300)"
    )
}

// D-06
#[test]
fn a_descriptor_flood_meets_a_limit_that_cannot_be_raised() {
    let flood = "import errno, os, resource
count = 0
try:
    while count < 500: os.dup(1); count += 1
except OSError as error: print(errno.errorcode[error.errno], end=' ')
print(count < 64)
try: resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))
except ValueError as refused: print(refused)";
    let derrick = Derrick::on_host();
    assert_eq!(printed(&derrick.create(), flood), "False");
    let workspace = limited(&derrick, &json!({ "open_files": 64 }));
    let refused = "EMFILE True\nnot allowed to raise maximum limit";
    assert_eq!(printed(&workspace, flood), refused);
    let told = workspace.describe();
    assert_eq!(told["limits"]["open_files"], 64, "{told}");
    assert_eq!(told["enforcement"]["sandbox"]["rlimits"]["nofile"], 64);
    // Those of init are its own: it starts as many commands as before.
    let running: Vec<_> = (0..80)
        .map(|_| workspace.exec(&json!({ "argv": ["sleep", "1000"], "stdin": "open" })))
        .collect();
    assert_eq!(
        workspace
            .execs()
            .iter()
            .filter(|it| it["state"] == "running")
            .count(),
        80
    );
    assert_eq!(running[79].kill()["outcome"]["kind"], "killed");
}

// D-03
#[test]
fn what_is_written_to_dev_shm_meets_its_size() {
    let derrick = Derrick::on_host();
    let whole = (8 << 20).to_string();
    assert_eq!(printed(&derrick.create(), &filling("/dev/shm")), whole);
    let workspace = limited(&derrick, &json!({ "shm": "2MiB" }));
    let full = format!("ENOSPC {}", 2 << 20);
    assert_eq!(printed(&workspace, &filling("/dev/shm")), full);
    // Through the API as well, where the bytes are the provider's to write.
    workspace.ok("rm /dev/shm/filling");
    let put = |size| workspace.on_file("PUT", "/dev/shm/put", "", &vec![1; size]);
    put(1 << 20).expect(201);
    put(3 << 20).problem(507);
    assert_eq!(workspace.ok("stat -c %s /dev/shm/put"), "1048576\n");
}

// D-05
#[test]
fn empty_files_in_dev_shm_meet_a_limit_on_inodes() {
    let derrick = Derrick::on_host();
    assert_eq!(printed(&derrick.create(), &littering("/dev/shm")), "False");
    let workspace = limited(&derrick, &json!({ "shm": "512KiB", "tmp": "512KiB" }));
    for at in ["/dev/shm", "/tmp"] {
        assert_eq!(printed(&workspace, &littering(at)), "ENOSPC True", "{at}");
    }
}

// D-03, D-04
#[test]
fn what_is_written_to_tmp_meets_its_size_and_is_gone_with_the_sandbox() {
    let mut derrick = Derrick::on_host();
    let whole = (8 << 20).to_string();
    let free = derrick.create();
    assert_eq!(printed(&free, &filling("/tmp")), whole);
    let workspace = limited(&derrick, &json!({ "tmp": "2MiB" }));
    let full = format!("ENOSPC {}", 2 << 20);
    let is_empty = || assert_eq!(workspace.ok("ls -A /tmp; stat -c %a /tmp"), "1777\n");
    is_empty();
    assert_eq!(printed(&workspace, &filling("/tmp")), full);
    workspace.ok("echo kept > /file; rm /tmp/filling");
    workspace
        .on_file("PUT", "/tmp/put", "", b"content")
        .expect(201);
    assert_eq!(workspace.ok("cat /tmp/put"), "content");
    workspace.reset();
    is_empty();
    workspace.ok("echo kept > /file; echo gone > /tmp/file");
    derrick.restart();
    let workspace = derrick.api.workspace(&workspace.id);
    assert_eq!(workspace.ok("ls -A /tmp; cat /file"), "kept\n");
    assert_eq!(printed(&workspace, &filling("/tmp")), full);
    // Where there is no such limit, it is a part of the files, as ever.
    let free = derrick.api.workspace(&free.id);
    assert_eq!(free.ok("ls /tmp"), "filling\n");
}

// D-07, D-08
#[test]
fn an_output_flood_is_kept_up_to_the_limit_and_counted() {
    let flood = "head -c 20000000 /dev/zero | tr '\\0' x";
    let derrick = Derrick::on_host();
    let kept = |workspace: &Workspace, body: &Value| {
        let ended = workspace.run_with(body);
        assert_eq!(ended["stdout"]["bytes"], 20_000_000, "{ended}");
        20_000_000 - ended["stdout"]["omitted"].as_u64().expect("a number")
    };
    let more = json!({ "cmd": flood, "output_limit": "30MB" });
    assert_eq!(kept(&derrick.create(), &more), 20_000_000);
    let workspace = limited(&derrick, &json!({ "output": "1MiB" }));
    // By segments of an eighth, of which the oldest goes when the others are enough.
    let most = (1 << 20) / 8 * 9;
    assert!(kept(&workspace, &json!({ "cmd": flood })) <= most);
    assert!(kept(&workspace, &json!({ "cmd": flood, "output_limit": 1000 })) <= 1125);
    let problem = workspace.post("execs", &more).problem(422);
    assert_eq!(problem["most"], 1 << 20, "{problem}");
    let detail = problem["detail"].as_str().expect("text");
    assert!(
        detail.contains("the workspace's limit on output"),
        "{detail}"
    );
    // What a session and the old routes print is output as well.
    assert!(workspace.ok(flood).len() < (1 << 20) / 8 * 9 + 1000);
}

// D-17
#[test]
fn execs_beyond_those_at_once_are_refused() {
    let derrick = Derrick::on_host();
    let workspace = limited(&derrick, &json!({ "execs": 3 }));
    let sleep = json!({ "argv": ["sleep", "1000"] });
    let running: Vec<_> = (0..2).map(|_| workspace.exec(&sleep)).collect();
    let keyed = workspace.exec_with_key("third", &sleep).expect(201).json();
    let refused = |answer: support::Answer| {
        assert_eq!(answer.headers["retry-after"], "1");
        let problem = answer.problem(429);
        assert_eq!(problem["type"], "urn:derrick:problem:too-many");
        let detail = problem["detail"].as_str().expect("text");
        assert!(detail.contains("limit on execs"), "{detail}");
    };
    refused(workspace.post("execs", &sleep));
    refused(workspace.cmd("true"));
    refused(workspace.post("cmd_with_output", &json!({ "cmd": "true" })));
    refused(workspace.post("sessions", &json!({ "name": "s" })));
    // Nothing is started by this.
    let again = workspace.exec_with_key("third", &sleep).expect(200).json();
    assert_eq!(again["id"], keyed["id"]);
    // Files are no execs, and other workspaces have their own.
    workspace.on_file("GET", "/etc/passwd", "", b"").expect(200);
    derrick.create().ok("true");
    running[0].kill();
    workspace.ok("true");
    // All at once, as many as fit start.
    let at_once: Vec<_> = (0..10)
        .map(|_| workspace.start_exec(sleep.clone()))
        .collect();
    let statuses: Vec<_> = at_once.into_iter().map(|it| it.answer().status).collect();
    assert_eq!(
        statuses.iter().filter(|it| **it == 201).count(),
        1,
        "{statuses:?}"
    );
    assert_eq!(
        statuses.iter().filter(|it| **it == 429).count(),
        9,
        "{statuses:?}"
    );
}

// D-17
#[test]
fn workspaces_beyond_those_at_once_are_refused() {
    let mut derrick = Derrick::start(json!({ "name": "test", "max_workspaces": 3 }));
    let first = derrick.create();
    let at_once: Vec<_> = (0..6)
        .map(|_| derrick.api.start("/workspaces", json!({})))
        .collect();
    let statuses: Vec<_> = at_once.into_iter().map(|it| it.answer().status).collect();
    assert_eq!(
        statuses.iter().filter(|it| **it == 200).count(),
        2,
        "{statuses:?}"
    );
    let refused = |derrick: &Derrick| {
        let answer = derrick.api.post("/workspaces", &json!({}));
        assert_eq!(answer.headers["retry-after"], "1");
        let problem = answer.problem(429);
        assert_eq!(problem["type"], "urn:derrick:problem:too-many");
        assert_eq!(derrick.api.list().len(), 3);
    };
    refused(&derrick);
    assert!(first.delete());
    derrick.create();
    refused(&derrick);
    // Those that are stopped are there as well.
    derrick.restart();
    refused(&derrick);
    derrick.configure(&json!({ "name": "test" }));
    derrick.restart();
    derrick.create();
}

// D-18
#[test]
fn what_the_host_cannot_give_is_refused_by_name() {
    let derrick = Derrick::on_host();
    for (asked, status, named) in [
        (
            json!({ "limits": { "open_files": u32::MAX } }),
            422,
            "the limit on open_files cannot be enforced",
        ),
        (
            json!({ "limits": { "open_files": 0 } }),
            400,
            "limits.open_files",
        ),
        (json!({ "limits": { "shm": 0 } }), 400, "limits.shm"),
        (json!({ "limits": { "tmp": -1 } }), 400, "limits.tmp"),
        (
            json!({ "limits": { "output": "2GiB" } }),
            400,
            "limits.output",
        ),
        (json!({ "limits": { "execs": 0 } }), 400, "limits.execs"),
        (json!({ "requests": { "cpus": 0 } }), 400, "requests.cpus"),
        (
            json!({ "requests": { "memory": 0 } }),
            400,
            "requests.memory",
        ),
        (json!({ "requests": { "pids": 1 } }), 400, "pids"),
        (
            json!({ "requests": { "memory": "1GiB" }, "limits": { "memory": "1GB" } }),
            422,
            "requests.memory: 1073741824 is above limits.memory, 1000000000",
        ),
        (
            json!({ "requests": { "cpus": 2 }, "limits": { "cpus": 1.5 } }),
            422,
            "requests.cpus: 2 is above limits.cpus, 1.5",
        ),
        (
            json!({ "requests": { "cpus": 1e6 } }),
            422,
            "the request for cpus cannot be enforced",
        ),
        (
            json!({ "requests": { "memory": "1000TB" } }),
            422,
            "the request for memory cannot be enforced",
        ),
    ] {
        let problem = derrick.api.post("/workspaces", &asked).problem(status);
        let detail = problem["detail"].as_str().expect("text");
        assert!(detail.contains(named), "{asked}: {detail}");
    }
    assert_eq!(derrick.api.list(), [""; 0]);
    // Above the config's own ceiling, too.
    let config = json!({ "name": "test", "limits": { "cpus": 0.5 }, "best_effort": ["limits"] });
    let derrick = Derrick::start(config);
    let answer = derrick
        .api
        .post("/workspaces", &json!({ "requests": { "cpus": 0.6 } }));
    assert!(
        answer.problem(422)["detail"]
            .to_string()
            .contains("requests.cpus")
    );
    // As best effort it is left out, and said so.
    let workspace = limited(&derrick, &json!({ "open_files": u32::MAX }));
    let told = workspace.describe();
    assert_eq!(told["limits"].get("open_files"), None, "{told}");
    let weaker = told["enforcement"]["weaker"].to_string();
    assert!(
        weaker.contains("the limit on open_files cannot be enforced"),
        "{told}"
    );
}

// D-09, D-02
#[test]
fn requests_reach_the_kernel() {
    let derrick = Derrick::on_host();
    let requests = json!({ "memory": "32MiB", "cpus": 0.5 });
    let answer = derrick
        .api
        .post("/workspaces", &json!({ "requests": requests }));
    if answer.status == 422 && mode() != Mode::Root {
        let problem = answer.problem(422);
        assert_eq!(problem["type"], "urn:derrick:problem:limit-unenforceable");
        return;
    }
    let id = answer.expect(200).json()["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let workspace = derrick.api.workspace(&id);
    let told = workspace.describe();
    assert_eq!(
        told["requests"],
        json!({ "memory": 32 << 20, "cpus": 0.5 }),
        "{told}"
    );
    assert_eq!(told["limits"], json!({}), "{told}");
    let lives = Lives::below(derrick.pid());
    let set = |names: [&str; 2], expected: [&str; 2]| {
        lives.cgroups().iter().any(|group| {
            names.iter().zip(expected).any(|(name, expected)| {
                let text = std::fs::read_to_string(group.join(name));
                text.is_ok_and(|text| text.trim_end() == expected)
            })
        })
    };
    let memory = (32 << 20).to_string();
    assert!(set(
        ["memory.low", "memory.soft_limit_in_bytes"],
        [&memory, &memory]
    ));
    // As kubernetes converts half a processor.
    assert!(set(["cpu.weight", "cpu.shares"], ["20", "512"]));
    workspace.ok("true");
    workspace.reset();
    workspace.ok("true");
}

// D-02
#[test]
fn memory_that_runs_out_ends_everything_and_is_told_for_what_it_is() {
    let derrick = Derrick::on_host();
    let free = derrick.create();
    assert_eq!(free.ok(GREEDY), format!("{}\n", 300 << 20));
    let Some(workspace) = enforced(&derrick, &json!({ "memory": MEMORY })) else {
        return;
    };
    workspace.ok("echo kept > /file");
    let other = workspace.exec_sh("sleep 1000");
    for greedy in [
        GREEDY.to_owned(),
        // A leader that is not greedy itself does not outlive it.
        format!("{GREEDY}; sleep 1000"),
        format!("({GREEDY} &) ; sleep 1000"),
        // What is in no process's memory counts as well.
        "head -c 300M /dev/zero > /dev/shm/file; sleep 1000".to_owned(),
    ] {
        let ended = workspace.run(&greedy);
        assert_eq!(
            ended["outcome"],
            json!({ "kind": "oom" }),
            "{greedy}: {ended}"
        );
        assert_eq!(ended["exit_code"], 137);
        assert_eq!(workspace.ok("cat /file"), "kept\n");
    }
    assert_eq!(other.outcome(), json!({ "kind": "oom" }));
    // Nobody else was touched.
    assert_eq!(free.ok("echo here"), "here\n");
    let ran = workspace.sh(GREEDY);
    assert_eq!(ran.exit_code, 137);
    assert!(ran.output.contains("limit on memory"), "{}", ran.output);
    // A command that kills itself is not out of memory.
    let ended = workspace.run("kill -9 $$");
    assert_eq!(ended["outcome"]["kind"], "signaled", "{ended}");
}

// D-03
#[test]
fn what_is_put_into_memory_does_not_go_past_the_limit() {
    let derrick = Derrick::on_host();
    let free = derrick.create();
    let put = |workspace: &Workspace, path: &str| workspace.on_file("PUT", path, "", b"content");
    put(&free, "/dev/shm/file").expect(201);
    let Some(workspace) = enforced(&derrick, &json!({ "memory": MEMORY })) else {
        return;
    };
    workspace.ok("ln -s /dev/shm /tmp/link");
    for path in ["/dev/shm/file", "/tmp/link/file"] {
        let problem = put(&workspace, path).problem(422);
        let detail = problem["detail"].as_str().expect("text");
        assert!(detail.contains("limit"), "{detail}");
    }
    put(&workspace, "/tmp/file").expect(201);
    assert_eq!(workspace.ok("ls /dev/shm"), "");
}

// D-01
#[test]
fn processes_beyond_the_limit_are_refused_and_that_is_told() {
    let derrick = Derrick::on_host();
    let free = derrick.create();
    let ended = free.run_with(&python(BRANCHING));
    assert_eq!(ended["output"]["stdout"], "all\n", "{ended}");
    let Some(workspace) = enforced(&derrick, &json!({ "pids": PIDS })) else {
        return;
    };
    let events = workspace.events(None);
    let ended = workspace.run_with(&python(BRANCHING));
    let eagain = format!("{} True\n", libc::EAGAIN);
    assert_eq!(ended["output"]["stdout"], eagain, "{ended}");
    assert_eq!(ended["outcome"], json!({ "kind": "pids_limit", "code": 7 }));
    assert_eq!(ended["exit_code"], 7);
    // Failing for another reason is failing for another reason, also after that.
    let ended = workspace.run("exit 7");
    assert_eq!(ended["outcome"], json!({ "kind": "exited", "code": 7 }));
    let told: Vec<_> = events.take(3).collect();
    let names: Vec<&str> = told.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["exec_started", "limit_hit", "exec_ended"]);
    assert_eq!(told[1].data["limit"], "pids");
    assert_eq!(told[1].data["exec"], told[2].data["id"]);
    let usage = &workspace.describe()["usage"];
    assert!(usage["pids_refused"].as_u64() >= Some(1), "{usage}");
}

// D-01
#[test]
fn a_fork_bomb_stays_within_its_workspace() {
    let derrick = Derrick::on_host();
    let Some(workspace) = enforced(&derrick, &json!({ "pids": PIDS })) else {
        return;
    };
    let other = derrick.create();
    let bomb = "b() { b | b & }; b; while :; do :; done";
    let ended = workspace.run_with(&json!({ "cmd": bomb, "timeout": 2 }));
    assert_eq!(ended["outcome"]["kind"], "deadline", "{ended}");
    assert_eq!(other.ok("echo here"), "here\n");
    let lives = Lives::below(derrick.pid());
    assert!(lives.count() < 2 * usize::try_from(PIDS).expect("small"));
    assert!(workspace.delete());
}

// D-09
#[test]
fn a_busy_loop_gets_no_more_than_its_share() {
    let derrick = Derrick::on_host();
    let Some(workspace) = enforced(&derrick, &json!({ "cpus": 0.2 })) else {
        return;
    };
    let throttled = || {
        workspace.describe()["usage"]["throttled"]
            .as_f64()
            .expect("a number")
    };
    assert_eq!(derrick.create().describe().get("usage"), None);
    let before = throttled();
    let burn = "import time
while time.process_time() < 0.2: pass";
    let ended = workspace.run_with(&python(burn));
    assert_eq!(ended["outcome"], json!({ "kind": "exited", "code": 0 }));
    // A fifth of a second's work takes several periods, in each of which it waits.
    assert!(throttled() > before, "{before}");
}

// D-18
#[test]
fn what_cannot_be_enforced_is_reported_where_that_was_asked_for() {
    let derrick = Derrick::start(json!({
        "name": "test",
        "limits": { "memory": MEMORY, "pids": PIDS, "cpus": 0.2 },
        "best_effort": ["limits"],
    }));
    let workspace = derrick.create();
    let told = workspace.describe();
    let missing = ["memory", "cpus", "pids"].map(|limit| told["limits"].get(limit).is_none());
    let weaker = told["enforcement"]["weaker"].to_string();
    for (limit, missing) in ["memory", "cpus", "pids"].into_iter().zip(missing) {
        let reported = weaker.contains(&format!("the limit on {limit} cannot be enforced"));
        assert_eq!(reported, missing, "{told}");
    }
    if mode() == Mode::Root {
        assert_eq!(missing, [false; 3], "{told}");
    }
    assert_eq!(workspace.ok("echo works"), "works\n");
}

/// Ways to take 100 MiB of memory, or as much as the kernel gives a user of pipes and sockets; each says
/// so when it has it.
const MEMORY_BOMBS: [(&str, &str); 7] = [
    ("heap", "x = bytearray(100 << 20)"),
    (
        "shared mapping",
        "import mmap
x = mmap.mmap(-1, 100 << 20)
for at in range(0, 100 << 20, 4096): x[at] = 1",
    ),
    (
        "tmpfs",
        "with open('/dev/shm/x', 'wb') as file:
    for _ in range(100): file.write(bytes(1 << 20))
import os; os.unlink('/dev/shm/x')",
    ),
    (
        "memfd",
        "import os
x = os.memfd_create('x')
for _ in range(100): os.write(x, bytes(1 << 20))",
    ),
    (
        "System V",
        "import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
x = libc.shmget(0, 100 << 20, 0o1600)
at = libc.shmat(x, None, 0)
ctypes.memset(at, 1, 100 << 20)
libc.shmctl(x, 0, None)",
    ),
    (
        "pipes",
        "import os
x = [os.pipe() for _ in range(900)]
for _, end in x:
    os.set_blocking(end, False)
    try:
        while os.write(end, bytes(4096)): pass
    except BlockingIOError: pass",
    ),
    (
        "sockets",
        "import socket
x = [socket.socketpair() for _ in range(600)]
for end, _ in x:
    end.setblocking(False)
    try:
        while end.send(bytes(32768)): pass
    except BlockingIOError: pass",
    ),
];

// D-02, D-03
#[test]
fn memory_of_every_kind_is_counted() {
    let derrick = Derrick::on_host();
    let free = derrick.create();
    for (name, bomb) in MEMORY_BOMBS {
        let ended = free.run_with(&python(&format!("{bomb}\nprint('got it')")));
        assert_eq!(ended["output"]["stdout"], "got it\n", "{name}: {ended}");
    }
    let Some(workspace) = enforced(&derrick, &json!({ "memory": "32MiB" })) else {
        return;
    };
    for (name, bomb) in MEMORY_BOMBS {
        let ended = workspace.run_with(&python(&format!("{bomb}\nprint('got it')")));
        assert_eq!(
            ended["outcome"],
            json!({ "kind": "oom" }),
            "{name}: {ended}"
        );
        assert_eq!(ended["output"]["stdout"], "", "{name}: {ended}");
    }
    free.ok("true");
}

// D-16
#[test]
fn terminals_timers_and_locked_memory_have_an_end() {
    let terminals = "import errno, os
count = 0
held = []
try:
    for count in range(1100): held.append(os.openpty())
except OSError as error: print(errno.errorcode[error.errno], end=' ')
print(count)";
    let timers = "import ctypes
libc = ctypes.CDLL(None)
timer = ctypes.c_void_p()
count = 0
while count < 20000 and libc.timer_create(0, None, ctypes.byref(timer)) == 0: count += 1
print(count < 20000)";
    let locked = "import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
x = mmap.mmap(-1, 80 << 20)
at = ctypes.addressof(ctypes.c_char.from_buffer(x))
print(libc.mlock(ctypes.c_void_p(at), 80 << 20), ctypes.get_errno())";
    // The host has more terminals than a workspace: it gets them.
    let host = std::process::Command::new("python3")
        .args(["-c", terminals])
        .output()
        .expect("python3 can be started");
    assert_eq!(String::from_utf8_lossy(&host.stdout), "1099\n", "{host:?}");
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    assert_eq!(printed(&workspace, terminals), "ENOSPC 1024");
    assert_eq!(printed(&workspace, timers), "True");
    let enomem = format!("-1 {}", libc::ENOMEM);
    assert_eq!(printed(&workspace, locked), enomem);
    // Each workspace has its own.
    assert_eq!(printed(&derrick.create(), "import os; os.openpty()"), "");
}

/// 100,000 files, a directory as deep, descriptors and output: what needs no other process.
const FILLING_BOMBS: [(&str, &str); 4] = [
    (
        "files",
        "for n in range(100000): open(f'/many-{n}', 'w').close()",
    ),
    (
        "depth",
        "import os
for n in range(100000): os.mkdir('d'); os.chdir('d')",
    ),
    (
        "descriptors",
        "import os
held = []
while True: held.append(os.dup(1))",
    ),
    ("output", "while True: print('x' * 10000)"),
];

// D-01, D-02, D-06, D-07, D-09
#[test]
fn a_neighbours_bombs_leave_others_alone_and_nothing_behind() {
    // Every sandbox is a workspace's.
    let pool = json!({ "size": 0 });
    let config = json!({ "name": "test", "best_effort": ["limits"], "pool": pool });
    let derrick = Derrick::start(config);
    let other = derrick.create();
    let limits = json!({
        "memory": "256MiB", "cpus": 1, "pids": 300,
        "open_files": 1000, "output": "1MiB", "execs": 10, "shm": "16MiB",
    });
    let workspace = limited(&derrick, &limits);
    let told = workspace.describe();
    let is_limited = |name: &str| told["limits"].get(name).is_some();
    if mode() == Mode::Root {
        assert!(
            is_limited("memory") && is_limited("pids") && is_limited("cpus"),
            "{told}"
        );
    }
    // All but the spawner, which is the first.
    let lives = || Lives::of(&descendants(derrick.pid())[1..]);
    let groups = || Lives::below(derrick.pid()).cgroups().clone();
    let (lives_first, groups_first) = (lives(), groups());
    // Others are served from before the first to after the last has ended.
    let beside = |bombs: Vec<support::Exec>| {
        let ended = |bomb: &support::Exec| bomb.show()["state"] == "ended";
        loop {
            derrick.api.get("/health").expect(200);
            other.ok("true");
            if bombs.iter().all(ended) {
                return;
            }
        }
    };
    let start = |program: &str| {
        let mut body = python(program);
        body["timeout"] = json!(20);
        workspace.exec(&body)
    };
    beside(FILLING_BOMBS.map(|(_, program)| start(program)).into());
    // Without a limit these are bombs for this host.
    if is_limited("pids") && is_limited("cpus") {
        let bombs = [
            // Last the one after which nothing can be started any more.
            "for n in $(seq 64); do while :; do :; done & done; wait",
            "b() { b | b & }; while :; do b; done",
        ];
        let bombs = bombs.map(|bomb| workspace.exec(&json!({ "cmd": bomb, "timeout": 5 })));
        beside(bombs.into());
    }
    if is_limited("memory") {
        let bombs = MEMORY_BOMBS.map(|(_, bomb)| {
            start(&format!(
                "held = []\nwhile True:\n    exec({bomb:?})\n    held.append(x)"
            ))
        });
        beside(bombs.to_vec());
        let ends = bombs.map(|bomb| bomb.outcome()["kind"].clone());
        assert!(ends.contains(&json!("oom")), "{ends:?}");
    }
    let (lives_last, groups_last) = (lives(), groups());
    assert!(workspace.delete());
    assert!(other.delete());
    lives_first.assert_gone();
    lives_last.assert_gone();
    for groups in [&groups_first, &groups_last] {
        let left = cgroup_directories(groups);
        assert!(left.is_empty(), "{left:?}");
    }
    wait_until_empty(&derrick.state().join("workspaces"));
    wait_until_empty(&derrick.state().join("trash"));
}
