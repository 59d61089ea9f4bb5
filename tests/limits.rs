//! Limits on memory, processes and processors: enforced by the kernel, told for what they are, refused
//! where this host cannot enforce them, and gone with their sandbox.

mod support;

use serde_json::{Value, json};
use support::{Derrick, Lives, Mode, Workspace, cgroup_directories, mode};

const MEMORY: u64 = 64 << 20;
const PIDS: u64 = 30;

/// Takes much more memory than `MEMORY`.
const GREEDY: &str = "python3 -c 'x = bytearray(300 << 20); print(len(x))'";

/// Starts twice as many processes as `PIDS`, all alive at once; fails at the first that is refused.
const BRANCHING: &str = "import os, signal
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
    for child in children: os.kill(child, 9)";

fn limited() -> Value {
    json!({ "name": "test", "limits": { "memory": MEMORY, "pids": PIDS, "cpus": 0.2 } })
}

/// A workspace with these limits, where this host enforces them. Where it does not, which it never
/// may for root, they are refused, and there is nothing more to see.
fn enforced(derrick: &Derrick, limits: &Value) -> Option<Workspace> {
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

fn python(program: &str) -> Value {
    json!({ "argv": ["/usr/bin/python3", "-c", program] })
}

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

#[test]
fn a_workspace_at_its_limit_on_processes_is_no_failure_of_derricks() {
    let derrick = Derrick::on_host();
    let Some(workspace) = enforced(&derrick, &json!({ "pids": 1 })) else {
        return;
    };
    let only = workspace.exec(&json!({ "argv": ["sleep", "1000"] }));
    workspace
        .post("execs", &json!({ "argv": ["true"] }))
        .problem(409);
    workspace
        .on_file("GET", "/etc/passwd", "", b"")
        .problem(409);
    workspace
        .post("sessions", &json!({ "name": "s" }))
        .problem(409);
    assert_eq!(only.kill()["outcome"]["kind"], "killed");
    workspace.ok("exec true");
}

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

#[test]
fn limits_of_the_config_hold_and_those_of_a_workspace_come_before_them() {
    if mode() != Mode::Root {
        let derrick = Derrick::start(limited());
        let answer = derrick.api.post("/workspaces", &json!({}));
        assert!([200, 422].contains(&answer.status), "{}", answer.text());
        return;
    }
    let mut derrick = Derrick::start(limited());
    let of_config = derrick.create();
    let own = derrick
        .api
        .create_with(&json!({ "limits": { "memory": "512MiB", "cpus": 1 } }));
    let limits = |workspace: &Workspace| workspace.describe()["limits"].clone();
    let expected = [
        json!({ "memory": MEMORY, "pids": PIDS, "cpus": 0.2 }),
        json!({ "memory": 512 << 20, "pids": PIDS, "cpus": 1.0 }),
    ];
    assert_eq!([limits(&of_config), limits(&own)], expected);
    own.ok(GREEDY);
    own.reset();
    own.ok(GREEDY);
    derrick.restart();
    let own = derrick.api.workspace(&own.id);
    assert_eq!(limits(&own), expected[1]);
    own.ok(GREEDY);
    let of_config = derrick.api.workspace(&of_config.id);
    assert_eq!(of_config.sh(GREEDY).exit_code, 137);
    for (limits, named) in [
        (json!({ "memory": 1 }), "limits.memory"),
        (json!({ "memory": "much" }), "limits.memory"),
        (json!({ "cpus": 0 }), "limits.cpus"),
        (json!({ "cpus": -1.5 }), "limits.cpus"),
        (json!({ "pids": 0 }), "limits.pids"),
        (json!({ "pids": 1e30 }), "limits.pids"),
        (json!({ "disk": "1KB" }), "limits.disk"),
        (json!({ "mem": 1 }), "mem"),
        (json!(7), "limits"),
    ] {
        let answer = derrick
            .api
            .post("/workspaces", &json!({ "limits": limits }));
        let problem = answer.problem(400);
        let detail = problem["detail"].as_str().expect("text");
        assert!(detail.contains(named), "{limits}: {detail}");
    }
}

#[test]
fn what_cannot_be_enforced_is_reported_where_that_was_asked_for() {
    let mut config = limited();
    config["best_effort"] = json!(["limits"]);
    let derrick = Derrick::start(config);
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

#[test]
fn no_control_group_outlives_its_sandbox() {
    let mut derrick = Derrick::start(limited());
    if derrick.api.post("/workspaces", &json!({})).status == 422 {
        assert_ne!(mode(), Mode::Root);
        return;
    }
    let first = derrick.create();
    let groups = |derrick: &Derrick| Lives::below(derrick.pid()).cgroups().clone();
    let before_reset = groups(&derrick);
    assert!(!before_reset.is_empty());
    first.reset();
    let after_reset = groups(&derrick);
    let old: Vec<_> = before_reset.difference(&after_reset).cloned().collect();
    assert!(!old.is_empty());
    for workspace in derrick.api.list() {
        assert!(derrick.api.workspace(&workspace).delete());
    }
    for gone in [&old.into_iter().collect(), &after_reset] {
        assert_eq!(cgroup_directories(gone), Vec::<&std::path::PathBuf>::new());
    }

    for crash in [false, true] {
        derrick.create();
        let lives = Lives::below(derrick.pid());
        if crash {
            derrick.kill9();
        } else {
            derrick.stop();
        }
        lives.assert_gone();
        derrick.start_again();
        let left = cgroup_directories(lives.cgroups());
        assert!(left.is_empty(), "{left:?}");
    }

    // Nobody is left to remove them but the next start.
    derrick.create();
    let lives = Lives::below(derrick.pid());
    assert!(!cgroup_directories(lives.cgroups()).is_empty());
    derrick.kill_with_spawner();
    lives.assert_gone();
    assert!(!cgroup_directories(lives.cgroups()).is_empty());
    derrick.start_again();
    let left = cgroup_directories(lives.cgroups());
    assert!(left.is_empty(), "{left:?}");
}

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

#[test]
fn a_kill_does_not_wait_for_its_share_of_a_processor() {
    let derrick = Derrick::on_host();
    let Some(workspace) = enforced(&derrick, &json!({ "cpus": 0.1 })) else {
        return;
    };
    let other = workspace.exec_sh("sleep 1000");
    let busy =
        workspace.exec_sh("for n in $(seq 30); do while :; do :; done & done; echo there; wait");
    busy.until_printed("there");
    let idle = workspace.exec_sh("sleep 1000");
    assert_eq!(idle.kill()["outcome"]["kind"], "killed");
    assert_eq!(busy.kill()["outcome"]["kind"], "killed");
    assert_eq!(other.show()["state"], "running");
    let throttled = || workspace.describe()["usage"]["throttled"].as_f64();
    let before = throttled();
    workspace.run_with(&python(
        "import time\nwhile time.process_time() < 0.2: pass",
    ));
    assert!(throttled() > before, "the limit is not in force again");
}
