//! A paused workspace stands still: nothing in it runs, nothing is started in it, until it is resumed.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{
    Derrick, Lives, STOPS_WITH_ITS_CHILD, Workspace, cgroup_directories, descendants, enforced,
    python,
};

/// Limits for which a workspace needs no control group, and some for which it needs one.
fn without_and_with_a_group() -> [Value; 2] {
    [json!({}), json!({ "pids": 200 })]
}

/// Has a workspace with these limits pause; what holds its processes then, which is what it has to be.
fn pause(workspace: &Workspace, limits: &Value) -> String {
    let paused = workspace.post("pause", &json!({})).expect(200).json();
    let has_freezer = fs::read_to_string("/proc/self/mountinfo")
        .expect("mountinfo")
        .contains(" - cgroup2 ");
    let has_group = limits.get("pids").is_some();
    let expected = if has_group && has_freezer {
        "freezer"
    } else {
        "signals"
    };
    assert_eq!(paused["state"], "paused", "{paused}");
    assert_eq!(paused["paused_by"], expected, "{paused}");
    expected.to_owned()
}

/// The letters of the states of all threads in sandboxes of the provider, those of inits apart, as the
/// host sees them.
fn states(derrick: &Derrick) -> Vec<char> {
    let mut states = Vec::new();
    for pid in descendants(derrick.pid()) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let ids: Vec<_> = inside.unwrap_or_default().split_whitespace().collect();
        if ids.len() < 2 || ids.last() == Some(&"1") {
            continue;
        }
        for thread in fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
        {
            let stat = fs::read_to_string(thread.expect("a thread").path().join("stat"));
            let stat = stat.unwrap_or_default();
            let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            states.extend(rest.trim_start().chars().next());
        }
    }
    states
}

/// A daemon in a session of its own, and a tree of busy shells that fork all the time.
fn keep_busy(workspace: &Workspace, marker: &str) {
    workspace.ok("mkfifo /tmp/started");
    workspace.exec_sh(&format!(
        "setsid -f bash -c 'exec -a {marker} sleep 1000' > /dev/null 2>&1
         (while :; do (:); done) &
         echo > /tmp/started; while :; do echo >> /tmp/count; done"
    ));
    workspace.ok(&format!(
        "read line < /tmp/started; until grep -qz {marker} /proc/[0-9]*/cmdline && [ -s /tmp/count ]; do :; done"
    ));
}

#[test]
fn nothing_runs_in_a_paused_workspace_and_all_goes_on_after_it() {
    for limits in without_and_with_a_group() {
        let derrick = Derrick::on_host();
        let Some(workspace) = enforced(&derrick, &limits) else {
            continue;
        };
        let marker = format!("daemon-of-{}", workspace.id);
        keep_busy(&workspace, &marker);
        let running = states(&derrick);
        assert!(running.contains(&'R'), "{running:?}");
        let mut events = workspace.events(None);

        let brake = pause(&workspace, &limits);
        assert_eq!(workspace.describe()["paused_by"], brake);
        let still = states(&derrick);
        assert!(still.len() >= 3, "{still:?}");
        // What is frozen shows as asleep.
        let stopped = if brake == "freezer" { "StTZD" } else { "tTZD" };
        let is_stopped = still.iter().all(|state| stopped.contains(*state));
        assert!(is_stopped, "{still:?}");
        assert_eq!(states(&derrick), still);
        // Again is no error.
        workspace.post("pause", &json!({})).expect(200);

        let resumed = workspace.post("resume", &json!({})).expect(200).json();
        assert_eq!(resumed["state"], "running", "{resumed}");
        assert!(resumed["paused_by"].is_null(), "{resumed}");
        // It counts on.
        workspace.ok("size() { stat -c %s /tmp/count; }; before=$(size); until [ \"$(size)\" -gt $before ]; do :; done");
        workspace.post("resume", &json!({})).expect(200);
        let told: Vec<_> = std::iter::from_fn(|| events.next())
            .map(|event| event.name)
            .filter(|name| !name.starts_with("exec"))
            .take(2)
            .collect();
        assert_eq!(told, ["paused", "resumed"]);
    }
}

/// Time that processes of sandboxes had on processors, those of inits apart, in ticks.
fn worked(derrick: &Derrick) -> u64 {
    let mut ticks = 0;
    for pid in descendants(derrick.pid()) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let ids: Vec<_> = inside.unwrap_or_default().split_whitespace().collect();
        if ids.len() < 2 || ids.last() == Some(&"1") {
            continue;
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        // The 14th and 15th of all.
        let times = rest.split_whitespace().skip(11).take(2);
        ticks += times
            .filter_map(|time| time.parse::<u64>().ok())
            .sum::<u64>();
    }
    ticks
}

/// Processes that have each other go on, and fork, all the time.
const WAKERS: &str = "
import os, signal
for number in range(6):
    if os.fork() == 0:
        while True:
            try:
                os.kill(-1, signal.SIGCONT)
            except ProcessLookupError:
                pass
            if number == 0:
                if os.fork() == 0:
                    os._exit(0)
                os.wait()
print('up', flush=True)
signal.pause()
";

/// Pauses it up to so often; whether something ran on then once.
fn runs_on(derrick: &Derrick, workspace: &Workspace, limits: &Value, rounds: usize) -> bool {
    (0..rounds).any(|_| {
        pause(workspace, limits);
        let before = worked(derrick);
        for _ in 0..30 {
            assert_eq!(workspace.describe()["state"], "paused");
        }
        let after = worked(derrick);
        workspace.post("resume", &json!({})).expect(200);
        after > before
    })
}

#[test]
fn processes_that_have_each_other_go_on_get_past_a_signal_and_not_past_the_freezer() {
    let [without, with] = without_and_with_a_group();
    let wake = |derrick: &Derrick, limits: &Value| {
        let workspace = enforced(derrick, limits)?;
        let wakers = workspace.exec(&json!({ "argv": ["/usr/bin/python3", "-c", WAKERS] }));
        wakers.until_printed("up");
        Some(workspace)
    };
    // One of them has to run while init sends its signal.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if processors > 1 {
        let derrick = Derrick::on_host();
        let workspace = wake(&derrick, &without).expect("no limit");
        assert!(runs_on(&derrick, &workspace, &without, 200));
        // They are killed all the same.
        workspace.reset();
    }
    let derrick = Derrick::on_host();
    if let Some(workspace) = wake(&derrick, &with) {
        if pause(&workspace, &with) == "freezer" {
            workspace.post("resume", &json!({})).expect(200);
            assert!(!runs_on(&derrick, &workspace, &with, 10));
        }
        workspace.reset();
        assert_eq!(workspace.ok("echo on"), "on\n");
    }
}

#[test]
fn a_frozen_workspace_is_snapshotted_limited_and_fenced_and_has_its_commands_killed() {
    let derrick = Derrick::on_host();
    let limits = json!({ "pids": 200 });
    let Some(workspace) = enforced(&derrick, &limits) else {
        return;
    };
    keep_busy(&workspace, "daemon");
    let shell = workspace.exec_sh("echo up; sleep 500 & wait");
    shell.until_printed("up");
    let timed = workspace.exec(&json!({ "cmd": "setsid sleep 1000 & sleep 1000", "timeout": 1.5 }));
    let killed = workspace.exec_sh("sleep 1000 | sleep 1000");
    let brake = pause(&workspace, &limits);
    assert_eq!(timed.outcome(), json!({ "kind": "deadline" }));
    assert_eq!(killed.kill()["outcome"], json!({ "kind": "killed" }));
    shell.signal(&json!({ "signal": "CONT" })).expect(200);
    let count = |workspace: &Workspace| workspace.ok("stat -c %s /tmp/count");
    let taken = workspace.post("snapshots", &json!({})).expect(201).json();
    assert_eq!(taken["way"], "copied", "{taken}");
    let again = workspace.post("snapshots", &json!({})).expect(201).json();
    let [one, other] = [&taken, &again].map(|snapshot| {
        let asked = json!({ "snapshot": snapshot["id"] });
        count(&derrick.api.create_with(&asked))
    });
    assert_eq!(one, other);
    let path = format!("/workspaces/{}", workspace.id);
    let change = json!({ "limits": { "memory": 256 << 20, "pids": 150 } });
    let changed = derrick.api.request("PATCH", &path, Some(&change));
    assert_eq!(changed.status, 200, "{}", changed.text());
    assert_eq!(workspace.describe()["paused_by"], brake);
    workspace.post("resume", &json!({})).expect(200);
    workspace.ok(&format!(
        "until [ \"$(stat -c %s /tmp/count)\" -gt {} ]; do :; done",
        one.trim()
    ));
    workspace.ok("! ps -eo args= | grep '^sleep 1000$'");
    pause(&workspace, &limits);
    let fenced = workspace.post("fence", &json!({})).expect(200).json();
    assert_eq!(workspace.describe()["state"], "fenced", "{fenced}");
    assert!(workspace.delete());
}

#[test]
fn nothing_of_a_frozen_workspace_outlives_derrick() {
    for with_spawner in [false, true] {
        let mut derrick = Derrick::on_host();
        let limits = json!({ "pids": 200 });
        let Some(workspace) = enforced(&derrick, &limits) else {
            return;
        };
        workspace.keep_busy();
        let lives = Lives::below(derrick.pid());
        pause(&workspace, &limits);
        let frozen = Lives::below(derrick.pid());
        if with_spawner {
            derrick.kill_with_spawner();
        } else {
            derrick.kill9();
        }
        lives.assert_gone();
        derrick.start_again();
        for lives in [lives, frozen] {
            let left = cgroup_directories(lives.cgroups());
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

#[test]
fn what_is_asked_of_a_paused_workspace_is_refused_and_says_why() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.write_file("/tmp/file", b"text");
    workspace
        .post("sessions", &json!({ "name": "shell" }))
        .expect(201);
    workspace.post("pause", &json!({})).expect(200);
    let refused = [
        workspace.post("execs", &json!({ "cmd": "true" })),
        workspace.post("cmd_with_output", &json!({ "cmd": "true" })),
        workspace.post("read_file", &json!({ "path": "/tmp/file" })),
        workspace.on_file("GET", "/tmp/file", "", b""),
        workspace.on_file("PUT", "/tmp/other", "", b"x"),
        workspace.post("sessions", &json!({ "name": "other" })),
        workspace.post("sessions/shell/run", &json!({ "cmd": "true" })),
    ];
    for answer in refused {
        let problem = answer.problem(409);
        assert_eq!(problem["type"], "urn:derrick:problem:paused", "{problem}");
    }
    workspace.post("resume", &json!({})).expect(200);
    assert_eq!(workspace.ok("ls /tmp"), "file\n");
    let ran = workspace.post("sessions/shell/run", &json!({ "cmd": "echo on" }));
    assert_eq!(ran.expect(200).json()["stdout"], "on\n");
}

#[test]
fn a_deadline_and_a_kill_end_a_command_of_a_paused_workspace() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let other = workspace.exec_sh("trap '' HUP TERM; echo up; sleep 1000 & wait");
    other.until_printed("up");
    let timed = workspace.exec(&json!({ "cmd": "setsid sleep 1000 & sleep 1000", "timeout": 1.5 }));
    let killed = workspace.exec_sh("sleep 1000 | sleep 1000");
    workspace.post("pause", &json!({})).expect(200);
    assert_eq!(timed.outcome(), json!({ "kind": "deadline" }));
    assert_eq!(killed.kill()["outcome"], json!({ "kind": "killed" }));
    assert_eq!(workspace.describe()["state"], "paused");
    assert_eq!(other.show()["state"], "running");
    // A signal to go on is for when all do.
    other
        .signal(&json!({ "signal": "CONT", "to": "tree" }))
        .expect(200);
    assert_eq!(workspace.describe()["state"], "paused");
    workspace.post("resume", &json!({})).expect(200);
    assert_eq!(workspace.ok("ps -eo args= | grep -c '^sleep 1000$'"), "1\n");
    assert_eq!(other.kill()["outcome"], json!({ "kind": "killed" }));
}

#[test]
fn a_paused_workspace_can_be_reset_and_removed() {
    for limits in without_and_with_a_group() {
        let derrick = Derrick::on_host();
        let Some(workspace) = enforced(&derrick, &limits) else {
            continue;
        };
        workspace.keep_busy();
        pause(&workspace, &limits);
        let receipt = workspace.reset();
        assert_eq!(receipt["upper_entries"], 0, "{receipt}");
        assert_eq!(workspace.describe()["state"], "running");
        assert_eq!(workspace.ok("ls /tmp; echo on"), "on\n");
        pause(&workspace, &limits);
        assert!(workspace.delete());
    }
}

#[test]
fn what_was_stopped_before_a_pause_stays_so_after_it() {
    for limits in without_and_with_a_group() {
        let derrick = Derrick::on_host();
        let Some(workspace) = enforced(&derrick, &limits) else {
            continue;
        };
        let state = "ps -o state= -p $(cat /tmp/pid)";
        workspace.ok("sleep 1000 > /dev/null 2>&1 & echo $! > /tmp/pid; kill -STOP $!");
        workspace.ok(&format!("until [ \"$({state})\" = T ]; do :; done"));
        pause(&workspace, &limits);
        workspace.post("resume", &json!({})).expect(200);
        assert_eq!(workspace.ok(state), "T\n");
    }
}

#[test]
fn what_stops_itself_because_of_a_pause_goes_on_after_the_last_of_several() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let parent = workspace.exec(&python(STOPS_WITH_ITS_CHILD));
    parent.until_printed("there");
    for _ in 0..10 {
        pause(&workspace, &json!({}));
        workspace.post("resume", &json!({})).expect(200);
        // What is asked right after it is answered, whatever is still being looked after.
        assert_eq!(workspace.ok("echo here"), "here\n");
    }
    parent
        .signal(&json!({ "signal": "SIGUSR1", "to": "tree" }))
        .expect(200);
    assert_eq!(parent.printed("stdout"), "there ended");
}

#[test]
fn what_a_client_stops_right_after_a_pause_stays_so_after_the_next() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let sleeper = workspace.exec(&json!({
        "cmd": "echo $$ > /tmp/pid; echo there; exec sleep 1000",
    }));
    sleeper.until_printed("there");
    let state = "ps -o state= -p $(cat /tmp/pid)";
    for _ in 0..2 {
        pause(&workspace, &json!({}));
        workspace.post("resume", &json!({})).expect(200);
        sleeper
            .signal(&json!({ "signal": "STOP", "to": "leader" }))
            .expect(200);
        workspace.ok(&format!("until [ \"$({state})\" = T ]; do :; done"));
    }
    pause(&workspace, &json!({}));
    workspace.post("resume", &json!({})).expect(200);
    assert_eq!(workspace.ok(state), "T\n");
}
