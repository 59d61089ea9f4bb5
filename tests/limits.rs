//! Limits on memory, processes and processors: enforced by the kernel, told for what they are, refused
//! where this host cannot enforce them, and gone with their sandbox.

mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::{
    Answer, BRANCHING, Derrick, GREEDY, Lives, MEMORY, Mode, PIDS, Workspace, cgroup_directories,
    descendants, enforced, entries, groups_named, is_remover, mode, python,
};

fn limited() -> Value {
    json!({
        "name": "test",
        "limits": { "memory": MEMORY, "pids": PIDS, "cpus": 0.2 },
        // Every sandbox is a workspace's.
        "pool": { "size": 0 },
    })
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

/// Asks for other limits, as a merge patch.
fn patch(workspace: &Workspace, change: &Value) -> Answer {
    let path = format!("/workspaces/{}", workspace.id);
    workspace.api().request("PATCH", &path, Some(change))
}

/// What the workspace is after it got other limits; nothing where this host enforces none, which it
/// never may for root.
fn changed(workspace: &Workspace, change: &Value) -> Option<Value> {
    let answer = patch(workspace, change);
    if answer.status == 422 && mode() != Mode::Root {
        let problem = answer.problem(422);
        assert_eq!(problem["type"], "urn:derrick:problem:limit-unenforceable");
        return None;
    }
    Some(answer.expect(200).json())
}

#[test]
fn limits_change_for_what_runs_and_stay_changed() {
    let mut derrick = Derrick::on_host();
    let Some(workspace) = enforced(&derrick, &json!({ "pids": PIDS, "memory": MEMORY })) else {
        return;
    };
    // Started under the first limits, and at work under each of the others.
    let worker = workspace.exec(&json!({ "argv": ["sh", "-c", "while read line; do eval \"$line\"; done"], "stdin": "open" }));
    let mut done = 0;
    let mut work = |line: &str| {
        done += 1;
        let line = format!("{line}; echo \"<$?\" {done}\">\"\n");
        worker.write(line.as_bytes()).expect(200);
        worker.until_printed(&format!(" {done}>"));
        let printed = worker.output("stream=stdout").text();
        let code = printed
            .rsplit_once('<')
            .and_then(|(_, code)| code.split_once(' '));
        code.expect("it says so").0.to_owned()
    };
    workspace.write_file("/branching", BRANCHING.as_bytes());
    let branching = "python3 /branching";
    assert_eq!(work(branching), "7");
    let told = changed(&workspace, &json!({ "limits": { "pids": 100 } })).expect("enforced");
    assert_eq!(told["limits"], json!({ "memory": MEMORY, "pids": 100 }));
    assert_eq!(told.get("pending"), None, "{told}");
    assert_eq!(work(branching), "0");
    changed(
        &workspace,
        &json!({ "limits": { "pids": 20, "memory": "600MiB" } }),
    );
    assert_eq!(work(branching), "7");
    assert_eq!(work(GREEDY), "0");
    let told = changed(&workspace, &json!({ "limits": { "pids": null } })).expect("enforced");
    assert_eq!(told["limits"], json!({ "memory": 600 << 20 }));
    assert_eq!(work(branching), "0");
    assert_eq!(worker.show()["state"], "running");
    changed(
        &workspace,
        &json!({ "limits": { "memory": MEMORY }, "requests": { "cpus": 0.5 } }),
    );
    assert_eq!(workspace.run(GREEDY)["outcome"]["kind"], "oom");
    // What is enforced after a reset and a restart is what was asked for last.
    let expected = (json!({ "memory": MEMORY }), json!({ "cpus": 0.5 }));
    let of = |told: Value| (told["limits"].clone(), told["requests"].clone());
    workspace.reset();
    assert_eq!(of(workspace.describe()), expected);
    assert_eq!(workspace.run(GREEDY)["outcome"]["kind"], "oom");
    derrick.restart();
    let workspace = derrick.api.workspace(&workspace.id);
    assert_eq!(of(workspace.describe()), expected);
    assert_eq!(workspace.run(GREEDY)["outcome"]["kind"], "oom");
    let told = changed(&workspace, &json!({ "limits": null, "requests": null })).expect("enforced");
    assert_eq!(of(told), (json!({}), Value::Null));
    workspace.ok(GREEDY);
    assert!(workspace.delete());
}

/// Processes that each live for one fork, for a while.
const CHAIN: &str = "import os, time
end = time.monotonic() + 60
while time.monotonic() < end:
    if os.fork(): os._exit(0)";

/// A process whose id is never the same for long, until it is told to fork as much as it can.
const RUNNER: &str = "import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    open('/runs', 'w').close()
    while not os.path.exists('/go'):
        if os.fork(): os._exit(0)
    count = 0
    try:
        for _ in range(200):
            if os.fork() == 0:
                signal.pause()
            count += 1
    except OSError:
        pass
    with open('/count.new', 'w') as file: file.write(str(count))
    os.rename('/count.new', '/count')
signal.pause()";

#[test]
fn nobody_runs_away_from_the_first_limits() {
    let derrick = Derrick::on_host();
    for _ in 0..5 {
        let workspace = derrick.create();
        workspace.exec(&python(RUNNER));
        workspace.ok("until test -e /runs; do :; done");
        let limits = json!({ "limits": { "pids": PIDS } });
        if changed(&workspace, &limits).is_none() {
            return;
        }
        let count = workspace.ok("touch /go; until test -e /count; do :; done; cat /count");
        let count: u64 = count.parse().expect("a number");
        assert!(count < PIDS, "{count} at once");
        assert!(workspace.delete());
    }
}

#[test]
fn a_workspace_that_runs_gets_its_first_limits() {
    let derrick = Derrick::start(json!({ "name": "test", "pool": { "size": 0 } }));
    let workspace = derrick.create();
    let worker = workspace
        .exec(&json!({ "argv": ["python3", "-i", "-c", "import os, signal"], "stdin": "open" }));
    workspace
        .exec_sh("for n in $(seq 20); do sleep 1000 & done; echo there; wait")
        .until_printed("there");
    let chains: Vec<_> = (0..3).map(|_| workspace.exec(&python(CHAIN))).collect();
    let Some(told) = changed(
        &workspace,
        &json!({ "limits": { "pids": PIDS + 10, "memory": MEMORY, "cpus": 0.9 } }),
    ) else {
        return;
    };
    // What it uses already is not counted.
    assert_eq!(told["pending"], json!(["memory"]), "{told}");
    let provider = derrick.pid();
    let of_sandbox = || {
        let mut below = descendants(provider);
        // The spawner is the first.
        below.remove(0);
        below.retain(|pid| !is_remover(*pid));
        below
    };
    // Who is ending is in no group, and has no memory that a command line could be in.
    let lives = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
    };
    let outside = || {
        let all = of_sandbox().into_iter().filter_map(|pid| {
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            Some((pid, groups))
        });
        let outside = all.filter(|(pid, groups)| !groups.contains("/derrick-") && lives(pid));
        outside.collect::<Vec<_>>()
    };
    for _ in 0..20 {
        assert_eq!(outside(), []);
    }
    let usage = workspace.describe()["usage"].clone();
    assert!(usage["pids"].as_u64() >= Some(21), "{usage}");
    for chain in chains {
        chain.kill();
    }
    // What ran before meets them.
    worker
        .write(b"\nfor n in range(60):\n    if os.fork() == 0: signal.pause()\n\n")
        .expect(200);
    worker.write_last(b"").expect(200);
    let ended = worker.ended();
    assert!(
        worker.printed("stderr").contains("BlockingIOError"),
        "{ended}"
    );
    assert_eq!(workspace.run(GREEDY)["outcome"]["kind"], "oom");
    assert_eq!(workspace.describe().get("pending"), None);
    assert_eq!(workspace.run(GREEDY)["outcome"]["kind"], "oom");
    assert!(workspace.delete());
}

#[test]
fn less_memory_than_is_in_use_is_refused_or_ends_what_runs_and_that_is_told() {
    let derrick = Derrick::on_host();
    let Some(workspace) = enforced(&derrick, &json!({ "memory": "300MiB" })) else {
        return;
    };
    let holder = workspace.exec(&python(
        "import time\nx = bytearray(100 << 20)\nprint('there', flush=True)\ntime.sleep(1000)",
    ));
    holder.until_printed("there");
    let less = json!({ "limits": { "memory": MEMORY, "pids": 50 } });
    let answer = patch(&workspace, &less);
    if std::path::Path::new("/sys/fs/cgroup/memory").is_dir() {
        let detail = answer.problem(409)["detail"].to_string();
        assert!(detail.contains("uses more memory"), "{detail}");
        assert_eq!(
            workspace.describe()["limits"],
            json!({ "memory": 300 << 20 })
        );
        assert_eq!(holder.show()["state"], "running");
        holder.kill();
        patch(&workspace, &less).expect(200);
    } else {
        answer.expect(200);
        assert_eq!(holder.ended()["outcome"]["kind"], "oom");
    }
    assert_eq!(workspace.run(GREEDY)["outcome"]["kind"], "oom");
}

#[test]
fn what_needs_no_control_group_changes_for_what_starts() {
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    let limits =
        json!({ "open_files": 100, "execs": 1, "output": 1000, "shm": "1MiB", "tmp": "1MiB" });
    let told = patch(&workspace, &json!({ "limits": limits }))
        .expect(200)
        .json();
    assert_eq!(told["pending"], json!(["shm", "tmp"]), "{told}");
    assert_eq!(told["limits"]["open_files"], 100, "{told}");
    assert_eq!(workspace.ok("ulimit -n"), "100\n");
    let only = workspace.exec_sh("sleep 1000");
    workspace.cmd("true").problem(429);
    only.kill();
    workspace
        .post("execs", &json!({ "cmd": "true", "output_limit": 1001 }))
        .problem(422);
    let sizes = "for it in /dev/shm /tmp; do stat -f -c '%T %b' $it; done";
    let pending = workspace.ok(sizes);
    assert!(!pending.contains("tmpfs 256"), "{pending}");
    workspace.reset();
    assert_eq!(workspace.describe().get("pending"), None);
    assert_eq!(workspace.ok(sizes), "tmpfs 256\ntmpfs 256\n");
    derrick.restart();
    let workspace = derrick.api.workspace(&workspace.id);
    assert_eq!(workspace.ok(sizes), "tmpfs 256\ntmpfs 256\n");
    // Changed while nothing runs, too.
    derrick.restart();
    let workspace = derrick.api.workspace(&workspace.id);
    let told = patch(
        &workspace,
        &json!({ "limits": { "shm": "2MiB", "tmp": null } }),
    )
    .expect(200)
    .json();
    assert_eq!(told["state"], "stopped", "{told}");
    assert_eq!(told.get("pending"), None, "{told}");
    assert!(workspace.ok(sizes).starts_with("tmpfs 512\noverlay"));
}

#[test]
fn another_disk_comes_with_the_next_reset() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let Some(told) = changed(&workspace, &json!({ "limits": { "disk": "32MiB" } })) else {
        return;
    };
    assert_eq!(told["pending"], json!(["disk"]), "{told}");
    let fill = "head -c 64M /dev/zero > /file";
    workspace.ok(fill);
    workspace.reset();
    assert_eq!(workspace.describe().get("pending"), None);
    let full = workspace.run(fill);
    let said = full["output"]["stderr"].as_str().expect("text");
    assert!(said.contains("No space left"), "{full}");
    let told = changed(&workspace, &json!({ "limits": { "disk": null } })).expect("enforced");
    assert_eq!(told["pending"], json!(["disk"]), "{told}");
    workspace.reset();
    workspace.ok(fill);
}

#[test]
fn what_cannot_be_changed_is_refused_whole() {
    let derrick = Derrick::on_host();
    let workspace = derrick
        .api
        .create_with(&json!({ "limits": { "open_files": 100 } }));
    for (change, status, named) in [
        (
            json!({ "limits": { "pids": 0, "open_files": 50 } }),
            400,
            "limits.pids",
        ),
        (json!({ "limits": { "memory": "much" } }), 400, "limits"),
        (json!({ "limits": { "mem": null } }), 400, "mem"),
        (json!({ "limits": 7 }), 400, "limits"),
        (
            json!({ "limits": { "inodes": 1000 } }),
            422,
            "limits.inodes",
        ),
        (json!({ "requests": { "cpus": -1 } }), 400, "requests.cpus"),
        (json!({ "memory": 1 }), 400, "memory"),
        (json!([]), 400, ""),
        (
            json!({ "limits": { "open_files": 50, "memory": "8MiB" }, "requests": { "memory": "9MiB" } }),
            422,
            "requests.memory",
        ),
        (
            json!({ "limits": { "open_files": u32::MAX } }),
            422,
            "the limit on open_files",
        ),
    ] {
        let problem = patch(&workspace, &change).problem(status);
        let detail = problem["detail"].as_str().expect("text");
        assert!(detail.contains(named), "{change}: {detail}");
    }
    let told = patch(&workspace, &json!({})).expect(200).json();
    assert_eq!(told["limits"], json!({ "open_files": 100 }));
    assert!(workspace.delete());
    patch(&workspace, &json!({})).problem(404);
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
    first.reset_and_wait();
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
fn the_control_groups_of_a_spawner_that_died_go_with_the_provider() {
    let mut derrick = Derrick::start(json!({ "name": "test", "pool": { "size": 0 } }));
    let Some(limited) = enforced(&derrick, &json!({ "pids": PIDS })) else {
        return;
    };
    let lives = Lives::below(derrick.pid());
    let runs = entries(&derrick.state().join("run"));
    let provider = format!("derrick-{}", runs[0]);
    assert!(limited.delete());
    let spawner = Pid::from_raw(descendants(derrick.pid())[0]);
    kill(spawner, Signal::SIGKILL).expect("it runs");
    lives.assert_gone();
    assert!(!groups_named(std::slice::from_ref(&provider)).is_empty());
    // The spawner that comes then makes no groups. It may be found dead only when it is asked for something.
    let api = &derrick.api;
    while api.post("/workspaces", &json!({})).status == 500 {}
    assert!(derrick.stop().success());
    assert_eq!(groups_named(&[provider]), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_kill_does_not_wait_for_its_share_of_a_processor() {
    let derrick = Derrick::on_host();
    let Some(workspace) = enforced(&derrick, &json!({ "cpus": 0.1 })) else {
        return;
    };
    let other = workspace.exec_sh("sleep 1000");
    let busy =
        workspace.exec_sh("for n in $(seq 12); do while :; do :; done & done; echo there; wait");
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
