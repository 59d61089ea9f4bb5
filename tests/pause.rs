//! A paused workspace stands still: nothing in it runs, nothing is started in it, until it is resumed.

mod support;

use std::fs;

use serde_json::json;
use support::{Derrick, Workspace, descendants};

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
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let marker = format!("daemon-of-{}", workspace.id);
    keep_busy(&workspace, &marker);
    let running = states(&derrick);
    assert!(running.contains(&'R'), "{running:?}");
    let mut events = workspace.events(None);

    let paused = workspace.post("pause", &json!({})).expect(200).json();
    assert_eq!(paused["state"], "paused", "{paused}");
    assert_eq!(workspace.describe()["state"], "paused");
    let still = states(&derrick);
    assert!(still.len() >= 3, "{still:?}");
    let stopped = still.iter().all(|state| "TtZD".contains(*state));
    assert!(stopped, "{still:?}");
    assert_eq!(states(&derrick), still);
    // Again is no error.
    workspace.post("pause", &json!({})).expect(200);

    let resumed = workspace.post("resume", &json!({})).expect(200).json();
    assert_eq!(resumed["state"], "running", "{resumed}");
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
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.keep_busy();
    workspace.post("pause", &json!({})).expect(200);
    let receipt = workspace.reset();
    assert_eq!(receipt["upper_entries"], 0, "{receipt}");
    assert_eq!(workspace.describe()["state"], "running");
    assert_eq!(workspace.ok("ls /tmp; echo on"), "on\n");
    workspace.post("pause", &json!({})).expect(200);
    assert!(workspace.delete());
}

#[test]
fn what_was_stopped_before_a_pause_stays_so_after_it() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let state = "ps -o state= -p $(cat /tmp/pid)";
    workspace.ok("sleep 1000 > /dev/null 2>&1 & echo $! > /tmp/pid; kill -STOP $!");
    workspace.ok(&format!("until [ \"$({state})\" = T ]; do :; done"));
    workspace.post("pause", &json!({})).expect(200);
    workspace.post("resume", &json!({})).expect(200);
    assert_eq!(workspace.ok(state), "T\n");
}
