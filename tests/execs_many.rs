//! Execs in numbers: started once however often they are asked for, told of in order, kept within bounds, a thousand at a time.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use serde_json::{Value, json};
use support::{Derrick, Event, Exec, Workspace};

// --- once ---

#[test]
fn a_repeated_request_is_answered_with_the_exec_that_the_first_one_started() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let body = json!({ "cmd": "echo ran | tee -a /tmp/runs", "wait": true });
    let first = workspace.exec_with_key("a-key", &body).expect(201);
    let place = first.headers["location"].clone();
    let again = workspace.exec_with_key("a-key", &body).expect(200);
    assert_eq!(again.headers["location"], place);
    assert_eq!(again.json(), first.json());
    assert_eq!(first.json()["output"]["stdout"], "ran\n");
    assert_eq!(
        derrick
            .api
            .get(place.to_str().expect("it is text"))
            .expect(200)
            .json()["id"],
        first.json()["id"]
    );
    // Another key, no key, another workspace: another exec.
    workspace.exec_with_key("another-key", &body).expect(201);
    workspace.run_with(&body);
    assert_eq!(workspace.ok("cat /tmp/runs"), "ran\nran\nran\n");
    derrick.create().exec_with_key("a-key", &body).expect(201);
}

#[test]
fn of_fifty_requests_with_one_key_at_once_one_is_started() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let body = json!({ "cmd": "echo ran | tee -a /tmp/runs", "wait": true });
    let mut answers = in_parallel(50, |_| workspace.exec_with_key("a-key", &body));
    answers.sort_by_key(|answer| answer.status);
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [vec![200; 49], vec![201]].concat());
    let all: BTreeSet<String> = answers
        .iter()
        .map(|answer| answer.json().to_string())
        .collect();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(workspace.ok("cat /tmp/runs"), "ran\n");
}

#[test]
fn a_key_of_another_request_is_refused() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_of(
        &workspace
            .exec_with_key("k", &json!({ "cmd": "true" }))
            .expect(201)
            .json(),
    );
    exec.ended();
    for body in [
        json!({ "cmd": "false" }),
        json!({ "cmd": "true", "wait": true }),
    ] {
        let problem = workspace.exec_with_key("k", &body).problem(422);
        assert_eq!(
            problem["type"],
            "urn:derrick:problem:idempotency-key-reused"
        );
    }
    assert_eq!(workspace.execs().len(), 1);
}

#[test]
fn a_key_that_is_none_is_refused() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let path = format!("/workspaces/{}/execs", workspace.id);
    let send = |keys: &[&str]| {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(keys.iter().map(|key| ("idempotency-key", *key)));
        derrick
            .api
            .send("POST", &path, &headers, br#"{"cmd":"true"}"#)
    };
    for keys in [
        &[""][..],
        &[&"k".repeat(256)],
        &["k\u{e9}"],
        &["k", "k"],
        &["a key"],
        &["a\tkey"],
    ] {
        let problem = send(keys).problem(400);
        assert!(
            problem["detail"].to_string().contains("Idempotency-Key"),
            "{problem}"
        );
    }
    send(&[&"k".repeat(255)]).expect(201);
    assert_eq!(workspace.execs().len(), 1);
}

#[test]
fn a_key_holds_across_a_restart_and_a_crash_right_after_the_answer() {
    for crash in [false, true] {
        let mut derrick = Derrick::on_host();
        let workspace = derrick.create();
        let ended = json!({ "cmd": "echo ran >> /tmp/runs; echo printed", "wait": true });
        let running = json!({ "cmd": "echo ran >> /tmp/runs; echo > /tmp/there; sleep 1000" });
        let before = workspace.exec_with_key("ended", &ended).expect(201).json();
        workspace.ok("mkfifo /tmp/there");
        let lost = workspace
            .exec_with_key("running", &running)
            .expect(201)
            .json();
        workspace.ok("cat /tmp/there");
        match crash {
            true => derrick.kill9(),
            false => assert!(derrick.stop().success()),
        }
        derrick.start_again();
        let workspace = derrick.api.workspace(&workspace.id);
        assert_eq!(
            workspace.exec_with_key("ended", &ended).expect(200).json(),
            before
        );
        let after = workspace
            .exec_with_key("running", &running)
            .expect(200)
            .json();
        assert_eq!(
            (&after["id"], &after["outcome"]["kind"]),
            (&lost["id"], &json!("lost"))
        );
        workspace.exec_with_key("ended", &running).problem(422);
        assert_eq!(workspace.ok("cat /tmp/runs"), "ran\nran\n");
    }
}

#[test]
fn a_request_that_was_refused_frees_its_key() {
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    let body = json!({ "cmd": "pwd", "cwd": "/srv/later", "wait": true });
    let nobody = json!({ "cmd": "true", "user": "nobody-of-that-name" });
    for _ in 0..2 {
        workspace.exec_with_key("k", &body).problem(422);
        workspace.exec_with_key("k", &nobody).problem(422);
    }
    for answer in in_parallel(10, |_| workspace.exec_with_key("k", &body)) {
        answer.problem(422);
    }
    assert_eq!(workspace.execs(), Vec::<Value>::new());
    workspace.ok("mkdir -p /srv/later");
    derrick.kill9();
    derrick.start_again();
    let workspace = derrick.api.workspace(&workspace.id);
    assert_eq!(
        workspace.execs().len(),
        1,
        "the one that made the directory"
    );
    let ended = workspace.exec_with_key("k", &body).expect(201).json();
    assert_eq!(ended["output"]["stdout"], "/srv/later\n");
}

// --- events ---

/// Names of events, with the exec that they are about.
fn names(events: &[Event]) -> Vec<(String, Value)> {
    let name = |event: &Event| (event.name.clone(), event.data["id"].clone());
    events.iter().map(name).collect()
}

#[test]
fn what_happens_to_a_workspace_is_told_in_order_to_its_end() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let events = workspace.events(None);
    let quick = workspace.exec(&json!({ "argv": ["sh", "-c", "exit 3"] }));
    quick.ended();
    let long = workspace.exec_sh("sleep 1000");
    workspace.reset();
    let last = workspace.exec_sh("sleep 1000");
    assert!(workspace.delete());
    // What a reset discarded is gone at some time after it.
    let events: Vec<Event> = events.filter(|event| event.name != "disposed").collect();
    let expected = [
        ("exec_started", json!(quick.id)),
        ("exec_ended", json!(quick.id)),
        ("exec_started", json!(long.id)),
        ("exec_ended", json!(long.id)),
        ("reset", Value::Null),
        ("exec_started", json!(last.id)),
        ("exec_ended", json!(last.id)),
        ("removed", Value::Null),
    ];
    assert_eq!(
        names(&events),
        expected.map(|(name, id)| (name.to_owned(), id))
    );
    let outcome = |place: usize| events[place].data["outcome"]["kind"].clone();
    assert_eq!(
        (outcome(1), outcome(6)),
        (json!("exited"), json!("removed"))
    );
    let times: Vec<f64> = events
        .iter()
        .map(|event| event.data["time"].as_f64().expect("a time"))
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    let ids: BTreeSet<&str> = events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids.len(), events.len());
}

#[test]
fn who_listens_goes_on_after_the_event_that_came_last() {
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    let mut events = workspace.events(None);
    workspace.run("true");
    let first = events.next().expect("it started");
    drop(events);
    let other = workspace.exec_sh("true");
    other.ended();
    let next: Vec<Event> = workspace.events(Some(&first.id)).take(3).collect();
    let names: Vec<&str> = next.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["exec_ended", "exec_started", "exec_ended"]);
    assert_eq!(next[1].data["id"], json!(other.id));
    let problem = derrick.api.send(
        "GET",
        &format!("/workspaces/{}/events", workspace.id),
        &[("last-event-id", "what")],
        b"",
    );
    assert!(
        problem.problem(400)["detail"]
            .to_string()
            .contains("Last-Event-ID")
    );
    // Events are of one life of the provider; it says so.
    derrick.restart();
    let workspace = derrick.api.workspace(&workspace.id);
    let mut events = workspace.events(Some(&first.id));
    assert_eq!(events.next().expect("one").name, "missed");
    workspace.run("true");
    assert_eq!(events.next().expect("another").name, "exec_started");
}

// --- bounds ---

/// Calls `work` with 0, 1, .., from several threads.
fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = 25.min(count);
    let mut results: Vec<(usize, T)> = std::thread::scope(|scope| {
        let work = &work;
        let start = |thread: usize| {
            scope.spawn(move || {
                (thread..count)
                    .step_by(threads)
                    .map(|n| (n, work(n)))
                    .collect::<Vec<_>>()
            })
        };
        let running: Vec<_> = (0..threads).map(start).collect();
        let end = |thread: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
            thread.join().expect("no request fails")
        };
        running.into_iter().flat_map(end).collect()
    });
    results.sort_by_key(|(n, _)| *n);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Where a workspace's execs are kept.
fn directory(derrick: &Derrick, workspace: &Workspace) -> PathBuf {
    derrick
        .state()
        .join("workspaces")
        .join(&workspace.id)
        .join("execs")
}

/// Names of the execs that have a log.
fn logs(derrick: &Derrick, workspace: &Workspace) -> BTreeSet<String> {
    let entries = fs::read_dir(directory(derrick, workspace)).expect("it is there");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: BTreeSet<String> = names
        .map(|name| name.into_string().expect("it is text"))
        .collect();
    names.remove("journal");
    names
}

#[test]
fn the_last_thousand_that_ended_are_kept_and_nothing_of_those_before() {
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    let running = workspace.exec_sh("echo running; sleep 1000");
    let mut events = workspace.events(None);
    let request = json!({ "argv": ["echo", "oldest"] });
    let oldest = workspace.exec_with_key("oldest", &request).expect(201);
    let oldest = workspace.exec_of(&oldest.json());
    oldest.ended();
    let first_event = events.next().expect("it started");
    drop(events);
    in_parallel(1600, |n| {
        workspace.run_with(&json!({ "argv": ["echo", n.to_string()] }));
    });
    // The last one to end may still be forgetting others; what ends now comes after it.
    let last = workspace.exec_of(&workspace.run("echo last"));
    let execs = workspace.execs();
    let ids: BTreeSet<String> = execs
        .iter()
        .map(|exec| exec["id"].as_str().expect("an id").to_owned())
        .collect();
    assert_eq!(ids.len(), 1001, "a thousand and the one that runs");
    assert!(ids.contains(&running.id) && ids.contains(&last.id) && !ids.contains(&oldest.id));
    derrick.api.get(&oldest.path("")).problem(404);
    derrick.api.get(&oldest.path("/output")).problem(404);
    // What its key started is forgotten, and not that it started something.
    let problem = workspace.exec_with_key("oldest", &request).problem(410);
    assert_eq!(problem["type"], "urn:derrick:problem:exec-forgotten");
    for exec in [&execs[1], &execs[500], &execs[1000]] {
        let asked = exec["argv"][1]
            .as_str()
            .or(Some("last"))
            .expect("an argument");
        assert_eq!(
            workspace.exec_of(exec).printed("stdout"),
            format!("{asked}\n")
        );
    }
    // Two lines each, and as many again at most before it is written anew.
    let journal = fs::read(directory(&derrick, &workspace).join("journal")).expect("it is there");
    let lines = journal.iter().filter(|byte| **byte == b'\n').count();
    assert!(lines <= 3100, "the journal has {lines} lines");
    // Those who listen are told that they missed something.
    let mut events = workspace.events(Some(&first_event.id));
    assert_eq!(events.next().expect("one").name, "missed");
    assert_eq!(events.by_ref().take(1000).count(), 1000);
    drop(events);

    derrick.restart();
    let workspace = derrick.api.workspace(&workspace.id);
    workspace.exec_with_key("oldest", &request).problem(410);
    let after: BTreeSet<String> = workspace
        .execs()
        .iter()
        .map(|exec| exec["id"].as_str().expect("an id").to_owned())
        .collect();
    // The one that ran has ended with the provider, and is the oldest by now.
    let mut expected = ids;
    expected.remove(&running.id);
    assert_eq!(after, expected);
    assert_eq!(logs(&derrick, &workspace), after);
}

#[test]
fn output_that_is_kept_is_bounded_over_all_execs() {
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    let execs: Vec<Exec> = (0..3)
        .map(|_| {
            let body = json!({ "cmd": "head -c 200M /dev/zero", "output_limit": "1 GiB" });
            let exec = workspace.exec(&body);
            assert_eq!(exec.ended()["truncated"], false);
            exec
        })
        .collect();
    workspace.run("true");
    derrick.api.get(&execs[0].path("")).problem(404);
    let kept: Vec<Value> = workspace
        .execs()
        .iter()
        .map(|exec| exec["stdout"]["bytes"].clone())
        .collect();
    assert_eq!(kept, [json!(200 << 20), json!(200 << 20), json!(0)]);
    // What is removed beside other work is gone after a restart at the latest.
    derrick.restart();
    let expected = BTreeSet::from([execs[1].id.clone(), execs[2].id.clone()]);
    assert_eq!(logs(&derrick, &workspace), expected);
}

// --- a thousand ---

#[test]
fn a_thousand_execs_and_five_hundred_idle_connections_hold_nobody_up() {
    let derrick = Derrick::on_host();
    let workspaces = in_parallel(20, |_| derrick.create());
    let execs = in_parallel(1000, |n| {
        workspaces[n % workspaces.len()].exec(&json!({ "argv": ["cat"], "stdin": "open" }))
    });
    let running: usize = workspaces
        .iter()
        .map(|workspace| workspace.describe()["execs"].as_u64().expect("a number") as usize)
        .sum();
    assert_eq!(running, 1000);
    // Half of a request line, half of a header, half of a body.
    let address = derrick.api.address();
    let idle: Vec<TcpStream> = (0..500)
        .map(|n| {
            let mut stream = TcpStream::connect(address).expect("it listens");
            let whole = format!(
                "POST /workspaces HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
            );
            let part = [10, whole.len() / 2, whole.len() - 1][n % 3];
            stream.write_all(&whole.as_bytes()[..part]).expect("it is taken");
            stream
        })
        .collect();
    let fresh = derrick.create();
    assert_eq!(fresh.run("echo fine")["output"]["stdout"], "fine\n");
    assert_eq!(workspaces[0].run("echo fine")["output"]["stdout"], "fine\n");
    in_parallel(1000, |n| {
        let text = format!("{n}\n");
        execs[n].write_last(text.as_bytes()).expect(200);
        assert_eq!(execs[n].printed("stdout"), text);
        assert_eq!(execs[n].ended()["exit_code"], 0);
    });
    drop(idle);
}

#[test]
fn a_thousand_requests_that_wait_and_five_hundred_half_open_connections_hold_nobody_up() {
    let derrick = Derrick::on_host();
    let address = derrick.api.address();
    let connect = || TcpStream::connect(address).expect("it listens");
    let workspaces = in_parallel(100, |_| derrick.create());
    let listening: Vec<_> = workspaces.iter().map(|it| it.events(None)).collect();
    // Each wants its own connection for as long as its command runs.
    let waiting = in_parallel(1000, |n| {
        let body = json!({ "argv": ["cat"], "stdin": "open", "wait": true }).to_string();
        let mut stream = connect();
        let request = format!(
            "POST /workspaces/{}/execs HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            workspaces[n % workspaces.len()].id,
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("it is taken");
        stream
    });
    for events in listening {
        let started = events.take(10).filter(|event| event.name == "exec_started");
        assert_eq!(started.count(), 10);
    }
    let mut half_open: Vec<TcpStream> = (0..500)
        .map(|_| {
            let mut stream = connect();
            stream.write_all(b"GET /health HT").expect("it is taken");
            stream
        })
        .collect();
    let fresh = derrick.create();
    assert_eq!(fresh.run("echo fine")["output"]["stdout"], "fine\n");
    // The newest of them are there still.
    let mut last = half_open.pop().expect("one");
    let rest = format!("TP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    last.write_all(rest.as_bytes()).expect("it is taken");
    assert!(read(last).starts_with("HTTP/1.1 200 "));
    in_parallel(workspaces.len(), |n| {
        for exec in workspaces[n].execs() {
            workspaces[n]
                .exec_of(&exec)
                .write_last(b"done\n")
                .expect(200);
        }
    });
    for stream in waiting {
        let answer = read(stream);
        assert!(
            answer.starts_with("HTTP/1.1 201 ") && answer.contains(r#""stdout":"done\n""#),
            "{answer}"
        );
    }
}

/// All that comes from it.
fn read(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it is text");
    text
}
