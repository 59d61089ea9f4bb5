//! A fence: nothing that is written later exists, and nothing that ran goes on.

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::{Api, Derrick, Lives, Mode, Workspace, descendants, mode, process_with_argument};

/// Configs by which what workspaces write is on filesystems of their own.
fn apart() -> Vec<Value> {
    let mut configs = vec![json!({ "name": "test", "storage": "memory" })];
    if mode() == Mode::Root {
        configs.push(json!({ "name": "test", "limits": { "disk": "64MiB" } }));
    }
    configs
}

/// Starts daemons that no signal to their leader's group or session reaches, which count all the time.
fn start_daemons(workspace: &Workspace) -> Lives {
    let marker = format!("daemon-of-{}", workspace.id);
    // Double forks, sessions of their own, ignored signals, a write for each step.
    workspace.ok(&format!(
        "mkdir /count
         for n in 1 2 3; do
             setsid -f bash -c 'trap \"\" TERM HUP INT; (exec -a {marker}-'$n' bash -c \"while :; do echo >> /count/'$n'; done\") &' > /dev/null 2>&1
         done
         for n in 1 2 3; do until [ -s /count/$n ]; do :; done; done"
    ));
    let pids: Vec<_> = (1..=3)
        .map(|n| process_with_argument(&format!("{marker}-{n}")).expect("it runs"))
        .collect();
    Lives::of(&pids)
}

fn sizes(workspace: &Workspace) -> Vec<u64> {
    let sizes = workspace.ok("stat -c %s /count/1 /count/2 /count/3");
    sizes
        .lines()
        .map(|size| size.parse().expect("a number"))
        .collect()
}

fn start_from(api: &Api, snapshot: &Value) -> Workspace {
    api.create_with(&json!({ "snapshot": snapshot }))
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("it is after 1970").as_secs_f64()
}

/// Waits until it is told.
fn until_fenced(workspace: &Workspace, events: support::Events) -> Value {
    let mut names = Vec::new();
    for event in events {
        if event.name == "fenced" {
            return event.data["snapshot"].clone();
        }
        names.push(event.name);
    }
    panic!("{} was never fenced: {names:?}", workspace.id);
}

#[test]
fn nothing_is_written_after_a_fence_and_no_daemon_lives_on() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let daemons = start_daemons(&workspace);
    let exec = workspace.exec_sh("echo up; sleep 1000");
    exec.until_printed("up");
    let at_least = sizes(&workspace);
    let fenced = workspace.post("fence", &json!({})).expect(200).json();
    assert_eq!(fenced["state"], "fenced", "{fenced}");
    daemons.assert_gone();
    assert_eq!(exec.outcome(), json!({ "kind": "killed" }));

    let graded = start_from(&derrick.api, &fenced["snapshot"]);
    let held = sizes(&graded);
    for (before, after) in at_least.iter().zip(&held) {
        assert!(before <= after, "{at_least:?} {held:?}");
    }
    // Nobody counts on, neither there nor in another one.
    assert_eq!(sizes(&graded), held);
    assert_eq!(sizes(&start_from(&derrick.api, &fenced["snapshot"])), held);
    let found = graded.ok("grep -lz ^daemon-of /proc/[0-9]*/cmdline 2> /dev/null | wc -l");
    assert_eq!(found, "0\n");
}

#[test]
fn a_fenced_workspace_runs_nothing_until_it_is_reset() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("echo work > /work");
    let fenced = workspace.post("fence", &json!({})).expect(200).json();
    let described = workspace.describe();
    assert_eq!(described["state"], "fenced", "{described}");
    assert_eq!(described["snapshot"], fenced["snapshot"], "{described}");
    // Once more is no other fence.
    let again = workspace.post("fence", &json!({})).expect(200).json();
    assert_eq!(again["snapshot"], fenced["snapshot"], "{again}");
    for answer in [
        workspace.post("execs", &json!({ "cmd": "true" })),
        workspace.post("cmd_with_output", &json!({ "cmd": "true" })),
        workspace.post("read_file", &json!({ "path": "/work" })),
        workspace.post("sessions", &json!({ "name": "shell" })),
        workspace.post("snapshots", &json!({})),
        workspace.post("fork", &json!({})),
        workspace.post("pause", &json!({})),
    ] {
        let problem = answer.problem(409);
        assert_eq!(problem["type"], "urn:derrick:problem:fenced", "{problem}");
    }
    workspace.reset();
    assert_eq!(
        workspace.ok("ls /work 2>&1; echo on"),
        "ls: cannot access '/work': No such file or directory\non\n"
    );
    workspace
        .post("reset", &json!({ "to": fenced["snapshot"] }))
        .expect(200);
    assert_eq!(workspace.ok("cat /work"), "work\n");
}

#[test]
fn a_fence_for_a_time_comes_then_and_a_reset_cancels_it() {
    let derrick = Derrick::on_host();
    let (workspace, other) = (derrick.create(), derrick.create());
    let daemons = start_daemons(&workspace);
    let events = workspace.events(None);
    let at = now().ceil() + 1.0;
    let scheduled = workspace
        .post("fence", &json!({ "at": at }))
        .expect(202)
        .json();
    assert_eq!(scheduled["state"], "scheduled", "{scheduled}");
    assert_eq!(workspace.describe()["fence_at"], json!(at));
    other.post("fence", &json!({ "at": at })).expect(202);
    other.reset();
    assert_eq!(other.describe()["fence_at"], Value::Null);
    let snapshot = until_fenced(&workspace, events);
    assert!(now() >= at);
    assert_eq!(snapshot, scheduled["snapshot"]);
    daemons.assert_gone();
    assert!(
        sizes(&start_from(&derrick.api, &snapshot))
            .iter()
            .all(|size| *size > 0)
    );
    assert_eq!(other.ok("echo on"), "on\n");
    for (at, status) in [
        (json!("2020-01-01T00:00:00Z"), 200),
        (json!("9999-01-01T00:00:00Z"), 202),
        (json!("9998-12-31T23:00:00-01:00"), 202),
        (json!("1999-01-01T00:00:00+02:30"), 200),
        (json!("soon"), 400),
        (json!(-1), 400),
        (json!(true), 400),
    ] {
        other.reset();
        other.post("fence", &json!({ "at": at })).expect(status);
    }
}

#[test]
fn a_fence_holds_whatever_becomes_of_derrick() {
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("echo work > /work");
    let late = derrick.create();
    late.ok("echo late > /work");
    let at = now().ceil();
    let scheduled = workspace
        .post("fence", &json!({ "at": at }))
        .expect(202)
        .json();
    let far = now().ceil() + 1000.0;
    late.post("fence", &json!({ "at": far })).expect(202);
    let lives = Lives::of(&descendants(derrick.pid()));
    derrick.kill9();
    lives.assert_gone();
    while now() < at {
        std::thread::yield_now();
    }
    derrick.start_again();
    let workspace = derrick.api.workspace(&workspace.id);
    // Its time has come: whether or not that was done yet, nothing runs any more.
    workspace
        .post("execs", &json!({ "cmd": "echo later > /work" }))
        .problem(409);
    let fenced = workspace.post("fence", &json!({})).expect(200).json();
    assert_eq!(fenced["snapshot"], scheduled["snapshot"]);
    assert_eq!(
        start_from(&derrick.api, &fenced["snapshot"]).ok("cat /work"),
        "work\n"
    );
    derrick.restart();
    let workspace = derrick.api.workspace(&workspace.id);
    assert_eq!(workspace.describe()["state"], "fenced");
    let late = derrick.api.workspace(&late.id);
    assert_eq!(late.describe()["fence_at"], json!(far));
    assert_eq!(late.ok("cat /work"), "late\n");
}

#[test]
fn a_fence_that_cannot_be_taken_is_tried_again() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let daemons = start_daemons(&workspace);
    let events = workspace.events(None);
    // No record can be written there.
    let snapshots = derrick.state().join("snapshots");
    let away = derrick.state().join("snapshots-away");
    std::fs::rename(&snapshots, &away).expect("moved");
    let at = now() + 0.5;
    let scheduled = workspace.post("fence", &json!({ "at": at }));
    let scheduled = scheduled.expect(202).json();
    // Whatever became of it, nothing runs.
    daemons.assert_gone();
    workspace
        .post("execs", &json!({ "cmd": "true" }))
        .problem(409);
    std::fs::rename(&away, &snapshots).expect("moved back");
    let snapshot = until_fenced(&workspace, events);
    assert_eq!(snapshot, scheduled["snapshot"]);
    let held = sizes(&start_from(&derrick.api, &snapshot));
    assert!(held.iter().all(|size| *size > 0), "{held:?}");
}

#[test]
fn a_paused_workspace_can_be_fenced_and_snapshotted() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let daemons = start_daemons(&workspace);
    workspace.post("pause", &json!({})).expect(200);
    let taken = workspace.post("snapshots", &json!({})).expect(201).json();
    assert_eq!(taken["way"], "copied", "{taken}");
    assert_eq!(workspace.describe()["state"], "paused");
    let fenced = workspace.post("fence", &json!({})).expect(200).json();
    daemons.assert_gone();
    // It stood still in between.
    let [paused, fenced] =
        [&taken["id"], &fenced["snapshot"]].map(|id| sizes(&start_from(&derrick.api, id)));
    assert_eq!(paused, fenced);
}

#[test]
fn what_is_in_memory_or_on_an_image_is_fenced_as_well() {
    for config in apart() {
        let mut derrick = Derrick::start(config);
        let workspace = derrick.create();
        let daemons = start_daemons(&workspace);
        let events = workspace.events(None);
        let at = now() + 0.5;
        let scheduled = workspace.post("fence", &json!({ "at": at }));
        let scheduled = scheduled.expect(202).json();
        let snapshot = until_fenced(&workspace, events);
        assert_eq!(snapshot, scheduled["snapshot"]);
        daemons.assert_gone();
        workspace
            .post("execs", &json!({ "cmd": "true" }))
            .problem(409);
        let held = sizes(&start_from(&derrick.api, &snapshot));
        assert!(held.iter().all(|size| *size > 0), "{held:?}");
        assert_eq!(sizes(&start_from(&derrick.api, &snapshot)), held);
        derrick.restart();
        let workspace = derrick.api.workspace(&workspace.id);
        assert_eq!(workspace.describe()["state"], "fenced");
        assert_eq!(sizes(&start_from(&derrick.api, &snapshot)), held);
        workspace
            .post("reset", &json!({ "to": snapshot }))
            .expect(200);
        assert_eq!(sizes(&workspace), held);
        workspace.ok("rm /count/1");
        workspace.reset();
        workspace.ok("test ! -e /count");
    }
}

#[test]
fn what_is_in_memory_stays_until_the_fence_that_failed_is_taken() {
    for config in apart() {
        let derrick = Derrick::start(config);
        let workspace = derrick.create();
        let daemons = start_daemons(&workspace);
        let events = workspace.events(None);
        // Nothing can be copied there.
        let run = derrick.state().join("run");
        let own = std::fs::read_dir(&run).expect("it runs").next();
        let staging = own.expect("one").expect("an entry").path().join("staging");
        let away = staging.with_extension("away");
        std::fs::rename(&staging, &away).expect("moved");
        let refused = workspace.post("fence", &json!({}));
        assert_eq!(refused.status, 500, "{}", refused.text());
        // One that is for now is refused, and the workspace goes on.
        let before = sizes(&workspace);
        while sizes(&workspace) <= before {}
        let at = now() + 0.5;
        let scheduled = workspace.post("fence", &json!({ "at": at }));
        let scheduled = scheduled.expect(202).json();
        while now() < at + 0.5 {
            std::thread::yield_now();
        }
        workspace
            .post("execs", &json!({ "cmd": "true" }))
            .problem(409);
        std::fs::rename(&away, &staging).expect("moved back");
        let snapshot = until_fenced(&workspace, events);
        assert_eq!(snapshot, scheduled["snapshot"]);
        daemons.assert_gone();
        let held = sizes(&start_from(&derrick.api, &snapshot));
        assert!(
            held.iter()
                .zip(&before)
                .all(|(held, before)| held >= before),
            "{held:?} {before:?}"
        );
    }
}
