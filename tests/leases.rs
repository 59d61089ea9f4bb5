//! How long a workspace is kept: a time to live that is renewed, an end after a while without use, and an
//! end with the connection that it was made on; each told, and across a restart.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::{Api, Derrick, Events, GUARD, Launch, Scratch, Workspace, binary, fixture};

/// A small base that starts fast.
fn busybox() -> Value {
    json!({ "name": "test", "base": { "type": "tarball", "path": fixture("busybox.tar") } })
}

/// The names of all events to the end, and why the workspace was removed.
fn to_the_end(events: Events) -> (Vec<String>, Value) {
    let all: Vec<_> = events.collect();
    let last = all.last().expect("there is one");
    assert_eq!(last.name, "removed", "{all:?}");
    let why = last.data["why"].clone();
    (all.into_iter().map(|event| event.name).collect(), why)
}

fn gone(workspace: &Workspace) {
    let path = format!("/workspaces/{}", workspace.id);
    workspace.api().get(&path).problem(404);
    assert!(!workspace.delete());
}

/// How often a workspace was removed for this reason.
fn removals(api: &Api, why: &str) -> u64 {
    let series = format!("derrick_workspaces_removed_total{{why=\"{why}\"}} ");
    let text = api.get("/metrics").expect(200).text();
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    let value = value.expect("the series is there");
    value.parse().expect("a number")
}

fn until(condition: impl Fn() -> bool) {
    let guard = Instant::now() + GUARD;
    while !condition() {
        assert!(Instant::now() < guard, "it does not come about");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn a_time_to_live_ends_a_workspace_unless_it_is_renewed() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.api.create_with(&json!({ "ttl": 1000 }));
    let told = workspace.describe();
    assert_eq!(told["ttl"], 1000.0, "{told}");
    let expires = told["expires"].as_f64().expect("it ends");
    let created = told["created"].as_f64().expect("it began");
    assert!(expires >= created + 1000.0, "{told}");

    let renewed = workspace.post("renew", &json!({})).expect(200).json();
    assert_eq!(renewed["ttl"], 1000.0, "{renewed}");
    assert!(renewed["expires"].as_f64() > Some(expires), "{renewed}");
    assert_eq!(workspace.describe()["expires"], renewed["expires"]);
    let longer = workspace
        .post("renew", &json!({ "ttl": 2000 }))
        .expect(200)
        .json();
    assert_eq!(longer["ttl"], 2000.0, "{longer}");

    let events = workspace.events(None);
    let running = workspace.start_exec(json!({ "cmd": "sleep 1000", "wait": true }));
    let mut events = events.inspect(|event| assert_ne!(event.name, "removed"));
    assert!(events.any(|event| event.name == "exec_started"));
    let events = workspace.events(None);
    let other = derrick.create();
    workspace
        .post("renew", &json!({ "ttl": 0.001 }))
        .expect(200);
    let (names, why) = to_the_end(events);
    assert_eq!(names, ["renewed", "exec_ended", "removed"]);
    assert_eq!(why, "expired");
    let ended = running.answer().expect(201).json();
    assert_eq!(ended["outcome"]["kind"], "removed", "{ended}");
    gone(&workspace);
    assert_eq!(removals(&derrick.api, "expired"), 1);
    // Another one that has no end has none.
    assert_eq!(other.describe().get("expires"), None);
    let problem = other.post("renew", &json!({})).problem(422);
    assert!(problem["detail"].to_string().contains("ttl"), "{problem}");
    let events = other.events(None);
    assert!(other.delete());
    assert_eq!(to_the_end(events).1, "asked");
}

#[test]
fn what_a_lease_cannot_be_is_refused() {
    let derrick = Derrick::start(busybox());
    for (fields, named) in [
        (json!({ "ttl": 0 }), "ttl"),
        (json!({ "ttl": -1 }), "ttl"),
        (json!({ "ttl": "10m" }), "ttl"),
        (json!({ "idle_timeout": 0 }), "idle_timeout"),
        (json!({ "tied": "yes" }), "tied"),
        (json!({ "tied": null }), "tied"),
    ] {
        let problem = derrick.api.post("/workspaces", &fields).problem(400);
        let detail = problem["detail"].as_str().expect("a text");
        assert!(detail.contains(named), "{fields}: {detail}");
    }
    assert_eq!(derrick.api.list(), Vec::<String>::new());
    let workspace = derrick.api.create_with(&json!({ "ttl": 1e300 }));
    for body in [json!({ "ttl": 0 }), json!({ "ttl": 1, "for": 2 })] {
        workspace.post("renew", &body).problem(400);
    }
    workspace.ok("true");
}

#[test]
fn the_config_is_for_whoever_asks_for_nothing_and_no_token_with_a_scope_gets_more() {
    const ALL: &str = "0123456789abcdef0123456789abcdef";
    const OWN: &str = "00112233445566778899aabbccddee01";
    const OTHER: &str = "00112233445566778899aabbccddee02";
    let mut config = busybox();
    config["ttl"] = json!(3600);
    config["idle_timeout"] = json!(600.5);
    let derrick = Launch::new(config)
        .token(&format!(
            "{ALL}\n{OWN} name=a scope=own\n{OTHER} name=b scope=own\n"
        ))
        .start();
    let own = derrick.api.with_token(Some(OWN));
    let other = derrick.api.with_token(Some(OTHER));
    let workspace = own.create();
    let told = workspace.describe();
    let of = |told: &Value| (told["ttl"].clone(), told["idle_timeout"].clone());
    assert_eq!(of(&told), (json!(3600.0), json!(600.5)), "{told}");

    for (fields, named) in [
        (json!({ "ttl": 3601 }), "ttl"),
        (json!({ "idle_timeout": 601 }), "idle_timeout"),
    ] {
        let problem = own.post("/workspaces", &fields).problem(422);
        assert!(problem["detail"].to_string().contains(named), "{problem}");
        let more = derrick.api.create_with(&fields);
        assert!(more.delete());
    }
    let less = own.create_with(&json!({ "ttl": 60, "idle_timeout": 5 }));
    assert_eq!(of(&less.describe()), (json!(60.0), json!(5.0)));
    less.post("renew", &json!({ "ttl": 3600 })).expect(200);
    less.post("renew", &json!({ "ttl": 3601 })).problem(422);

    // Nobody renews another's, or sees that it is there.
    let strange = other.workspace(&workspace.id);
    let of_strange = strange.post("renew", &json!({ "ttl": 60 })).problem(404);
    let none = other.workspace("01a1fd93-a44a-7353-8f39-6e6e6431758f");
    let of_none = none.post("renew", &json!({ "ttl": 60 })).problem(404);
    assert_eq!(of_strange["type"], of_none["type"]);
    assert_eq!(workspace.describe()["expires"], told["expires"]);
}

#[test]
fn a_restart_keeps_leases_and_removes_what_has_run_out_meanwhile() {
    for crash in [false, true] {
        let mut derrick = Derrick::start(busybox());
        let kept = derrick.api.create_with(&json!({ "ttl": 1000 }));
        let over = derrick.api.create_with(&json!({ "ttl": 1000 }));
        let (tied, _events) = derrick.api.create_tied(&json!({}));
        assert_eq!(tied.describe()["tied"], true);
        let told = kept.describe();
        if crash {
            derrick.kill9();
        } else {
            assert!(derrick.stop().success());
        }
        let directory = derrick.state().join("workspaces").join(&over.id);
        let record = directory.join("record.json");
        let text = std::fs::read(&record).expect("it is there");
        let mut changed: Value = serde_json::from_slice(&text).expect("JSON");
        assert!(changed["lease"]["expires"].is_number(), "{changed}");
        changed["lease"]["expires"] = json!(1.0);
        std::fs::write(&record, changed.to_string()).expect("it can be written");
        derrick.start_again();
        assert_eq!(derrick.api.list(), [kept.id.as_str()]);
        assert!(!directory.exists());
        let kept = derrick.api.workspace(&kept.id);
        assert_eq!(kept.describe()["expires"], told["expires"]);
        // And it still has an end.
        let events = kept.events(None);
        kept.post("renew", &json!({ "ttl": 0.001 })).expect(200);
        assert_eq!(to_the_end(events).1, "expired");
    }
}

#[test]
fn what_nobody_uses_is_removed_and_what_is_used_is_not() {
    let derrick = Derrick::start(busybox());
    let (workspace, events) = derrick.api.create_tied(&json!({ "idle_timeout": 0.1 }));
    let (names, why) = to_the_end(events);
    assert_eq!(names, ["removed"]);
    assert_eq!(why, "idle");
    gone(&workspace);

    // An exec that takes longer than that, and that nobody waits for.
    let (workspace, events) = derrick.api.create_tied(&json!({ "idle_timeout": 2 }));
    workspace.exec_sh("sleep 5");
    let all: Vec<_> = events.collect();
    let names: Vec<_> = all.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["exec_started", "exec_ended", "removed"]);
    assert_eq!(all[1].data["outcome"]["kind"], "exited", "{all:?}");
    assert_eq!(all[2].data["why"], "idle");

    // A request that takes longer; the shell that lives on is no use.
    let (workspace, events) = derrick.api.create_tied(&json!({ "idle_timeout": 2 }));
    workspace
        .post("sessions", &json!({ "name": "s" }))
        .expect(201);
    let ran = workspace.post("sessions/s/run", &json!({ "cmd": "sleep 5; echo slept" }));
    assert_eq!(ran.expect(200).json()["stdout"], "slept\n");
    let (names, why) = to_the_end(events);
    assert_eq!(names, ["exec_started", "exec_ended", "removed"]);
    assert_eq!(why, "idle");
    assert_eq!(removals(&derrick.api, "idle"), 3);
}

#[test]
fn to_look_at_a_workspace_is_no_use_of_it() {
    let derrick = Derrick::start(busybox());
    let (workspace, events) = derrick.api.create_tied(&json!({ "idle_timeout": 1 }));
    let watching = workspace.events(None);
    let path = format!("/workspaces/{}", workspace.id);
    // All the time until it is gone, which would else be never.
    while derrick.api.get(&path).status == 200 {
        derrick.api.list();
    }
    assert_eq!(to_the_end(events).1, "idle");
    assert_eq!(to_the_end(watching).1, "idle");
}

#[test]
fn a_tied_workspace_ends_with_its_connection() {
    let derrick = Derrick::start(busybox());
    let (workspace, held) = derrick
        .api
        .create_tied(&json!({ "env": { "COLOUR": "blue" } }));
    assert_eq!(workspace.ok("echo $COLOUR"), "blue\n");
    // Other connections come and go.
    drop(workspace.events(None));
    assert_eq!(workspace.ok("echo $COLOUR"), "blue\n");
    let mut events = workspace.events(None);
    let running = workspace.start("sleep 1000");
    assert_eq!(events.next().expect("it starts").name, "exec_started");
    drop(held);
    assert_eq!(to_the_end(events).1, "disconnected");
    running.answer().problem(409);
    gone(&workspace);
    assert_eq!(removals(&derrick.api, "disconnected"), 1);

    // Removed by somebody, it ends the answer.
    let (workspace, held) = derrick.api.create_tied(&json!({}));
    assert!(workspace.delete());
    assert_eq!(to_the_end(held).1, "asked");
    assert_eq!(removals(&derrick.api, "disconnected"), 1);
}

#[test]
fn a_client_that_goes_away_before_its_workspace_is_there_leaves_none() {
    let mut config = busybox();
    config["setup_script"] = json!("sleep 2");
    let derrick = Derrick::start(config);
    let body = "{\"tied\":true}";
    let request = format!(
        "POST /workspaces HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        derrick.api.address(),
        body.len()
    );
    let mut stream = TcpStream::connect(derrick.api.address()).expect("it listens");
    stream.write_all(request.as_bytes()).expect("it reads");
    until(|| derrick.printed().contains("setting up"));
    drop(stream);
    until(|| removals(&derrick.api, "disconnected") == 1);
    assert_eq!(derrick.api.list(), Vec::<String>::new());
}

#[test]
fn the_command_line_renews_and_holds() {
    let scratch = Scratch::new();
    let config = scratch.file("config.json", busybox().to_string());
    let socket = scratch.join("socket");
    let server = format!("unix:{}", socket.display());
    let mut provider = Command::new(binary())
        .args(["--listen", &server, "-w"])
        .arg(config)
        .arg("--state-dir")
        .arg(scratch.join("state"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("cannot start derrick");
    let mut lines = BufReader::new(provider.stdout.take().expect("a pipe")).lines();
    let line = lines.next().expect("it listens").expect("a text");
    assert!(line.starts_with("listening on unix:"), "{line}");
    let client = |words: &[&str]| {
        let mut command = Command::new(binary());
        command.arg(words[0]).args(["--server", &server]);
        command.args(&words[1..]);
        command
    };
    let run = |words: &[&str]| {
        let output = client(words).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    };
    let id = run(&["create", "--ttl", "1000", "--idle-timeout", "500"]);
    let id = id.trim_end();
    let told: Value = serde_json::from_str(&run(&["renew", "--json", "--ttl", "2000", id]))
        .expect("one JSON object");
    assert_eq!(
        (&told["ttl"], &told["idle_timeout"]),
        (&json!(2000.0), &json!(500.0))
    );
    assert!(run(&["renew", id]).contains(" ends at 20"));
    run(&["rm", id]);

    let mut holder = client(&["create", "--tied"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut printed = BufReader::new(holder.stdout.take().expect("a pipe")).lines();
    let id = printed.next().expect("a line").expect("a text");
    let mut waiting = client(&["exec", &id, "--cmd", "echo there; sleep 1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut told = BufReader::new(waiting.stdout.take().expect("a pipe")).lines();
    assert_eq!(told.next().expect("a line").expect("a text"), "there");
    kill(Pid::from_raw(holder.id().cast_signed()), Signal::SIGKILL).expect("it runs");
    holder.wait().expect("it ends");
    assert_eq!(waiting.wait().expect("it ends").code(), Some(137));

    let mut holder = client(&["create", "--tied"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut printed = BufReader::new(holder.stdout.take().expect("a pipe")).lines();
    let id = printed.next().expect("a line").expect("a text");
    run(&["rm", &id]);
    assert!(holder.wait().expect("it ends").success());
    let pid = Pid::from_raw(provider.id().cast_signed());
    kill(pid, Signal::SIGTERM).expect("it runs");
    assert!(provider.wait().expect("it ends").success());
}
