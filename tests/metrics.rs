//! `GET /metrics` tells what happened, and nothing that a caller made up.

mod support;

use std::collections::BTreeMap;

use serde_json::json;
use support::{Api, Derrick, Mode, mode};

/// Every series of one answer, with its value.
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn of(api: &Api) -> Self {
        let answer = api.get("/metrics").expect(200);
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert_eq!(answer.content_type(), kind);
        let text = answer.text();
        assert!(text.ends_with("\n# EOF\n"), "{text}");
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.map(|line| {
            let (series, value) = line
                .rsplit_once(' ')
                .unwrap_or_else(|| panic!("{line:?} is no sample"));
            let value = value
                .parse()
                .unwrap_or_else(|error| panic!("{line:?}: {error}"));
            (series.to_owned(), value)
        });
        let mut all = Self(BTreeMap::new());
        for (series, value) in samples {
            let twice = all.0.insert(series.clone(), value);
            assert!(twice.is_none(), "{series} twice");
        }
        all
    }

    fn get(&self, series: &str) -> f64 {
        *self
            .0
            .get(series)
            .unwrap_or_else(|| panic!("no {series} in {:#?}", self.0.keys()))
    }
}

fn request(method: &str, route: &str, status: u16) -> String {
    format!(
        "derrick_http_requests_total{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}}"
    )
}

#[test]
fn what_was_done_is_counted() {
    // Every sandbox is a workspace's.
    let mut derrick = Derrick::start(json!({ "name": "test", "pool": { "size": 0 } }));
    let before = Metrics::of(&derrick.api);
    let workspace = derrick.create();
    let other = derrick.create();
    workspace.ok("true");
    workspace.sh("exit 3").expect(3);
    workspace.cmd("exit 4").expect(422);
    workspace.sh("kill -9 $$").expect(137);
    workspace
        .sh_with(
            "exec /usr/bin/python3 -c 'import time; time.sleep(1000)'",
            &json!({ "timeout": 1 }),
        )
        .expect(124);
    workspace.write_file("/file", b"12345");
    workspace.read_file("/file");
    workspace.read_file("/file");
    workspace.reset();
    assert!(other.delete());

    let after = Metrics::of(&derrick.api);
    for (series, value) in [
        (r#"derrick_workspaces{state="running"}"#, 1.0),
        (r#"derrick_workspaces{state="stopped"}"#, 0.0),
        ("derrick_create_duration_seconds_count", 2.0),
        (r#"derrick_create_duration_seconds_bucket{le="+Inf"}"#, 2.0),
        ("derrick_reset_duration_seconds_count", 1.0),
        ("derrick_exec_duration_seconds_count", 5.0),
        (r#"derrick_exec_duration_seconds_bucket{le="1.0"}"#, 4.0),
        (r#"derrick_exec_duration_seconds_bucket{le="60.0"}"#, 5.0),
        (r#"derrick_execs_total{outcome="exited"}"#, 3.0),
        (r#"derrick_execs_total{outcome="signaled"}"#, 1.0),
        (r#"derrick_execs_total{outcome="deadline"}"#, 1.0),
        (r#"derrick_execs_total{outcome="lost"}"#, 0.0),
        ("derrick_execs_running", 0.0),
        (r#"derrick_file_bytes_total{direction="in"}"#, 5.0),
        (r#"derrick_file_bytes_total{direction="out"}"#, 10.0),
        (&request("POST", "/workspaces", 200), 2.0),
        (&request("DELETE", "/workspaces/{id}", 200), 1.0),
        (&request("POST", "/workspaces/{id}/cmd", 422), 1.0),
        (
            &request("POST", "/workspaces/{id}/cmd_with_output", 200),
            4.0,
        ),
        (
            r#"derrick_http_request_duration_seconds_count{route="/workspaces/{id}/reset",method="POST"}"#,
            1.0,
        ),
    ] {
        assert_eq!(after.get(series), value, "{series}");
    }
    let started = "derrick_sandboxes_started_total";
    assert_eq!(after.get(started) - before.get(started), 3.0);
    let longest = after.get("derrick_exec_duration_seconds_sum");
    assert!((1.0..60.0).contains(&longest), "{longest}");
    // Setup adds one at most; this config has none.
    assert_eq!(after.get("derrick_layers"), before.get("derrick_layers"));

    // What happened is counted from the start of the process on; what is there, is there.
    derrick.restart();
    let anew = Metrics::of(&derrick.api);
    assert_eq!(anew.get("derrick_create_duration_seconds_count"), 0.0);
    assert_eq!(anew.get(r#"derrick_workspaces{state="stopped"}"#), 1.0);
}

#[test]
fn what_is_enforced_is_told() {
    let derrick = Derrick::on_host();
    let metrics = Metrics::of(&derrick.api);
    let health = derrick.api.get("/health").expect(200).json();
    let (identity, ids) = match mode() {
        Mode::Root => ("ranges", "65536"),
        Mode::Subordinate => ("subordinate", "65536"),
        Mode::Single => ("single", "1"),
    };
    let landlock = &health["sandbox"]["landlock"];
    let series = format!(
        "derrick_enforcement_info{{provisioning_mode=\"ns\",identity=\"{identity}\",ids=\"{ids}\",\
         landlock=\"{}\",landlock_abi=\"{}\",seccomp_filters=\"{}\",network=\"none\"}}",
        landlock["state"].as_str().expect("a state"),
        landlock["abi"],
        health["sandbox"]["seccomp_filters"],
    );
    assert_eq!(metrics.get(&series), 1.0);
    let weaker = health["weaker"].as_array().expect("a list").len();
    assert_eq!(metrics.get("derrick_enforcement_weaker"), weaker as f64);
    let version = concat!(
        "derrick_build_info{version=\"",
        env!("CARGO_PKG_VERSION"),
        "\"}"
    );
    assert_eq!(metrics.get(version), 1.0);
}

#[test]
fn what_a_caller_makes_up_makes_no_series() {
    let derrick = Derrick::on_host();
    let api = &derrick.api;
    let probe = |n: u32| {
        let host = format!("Host: {}\r\nConnection: close\r\n\r\n", api.address());
        for line in [
            format!("GET /made-up-{n} HTTP/1.1"),
            format!("GET /workspaces/made-up-{n} HTTP/1.1"),
            format!("GET /workspaces/x/made-up-{n}?made-up-{n}=1 HTTP/1.1"),
            format!("GET /workspaces/made-up-{n}%22,evil=%22 HTTP/1.1"),
            format!("MADE-UP-{n} /workspaces HTTP/1.1"),
            format!("MADE-UP-{n} /made-up-{n} HTTP/1.1"),
            format!("POST /workspaces/made-up-{n}/cmd HTTP/1.1\r\nX-Made-Up-{n}: 1"),
        ] {
            let answer = api.raw(format!("{line}\r\n{host}").as_bytes());
            assert!(answer.starts_with("HTTP/1.1 4"), "{line}: {answer}");
        }
    };
    probe(0);
    // The first scrape makes its own series.
    Metrics::of(api);
    let before: Vec<_> = Metrics::of(api).0.into_keys().collect();
    (1..20).for_each(probe);
    let after = Metrics::of(api);
    assert_eq!(after.get(&request("GET", "-", 404)), 40.0);
    assert_eq!(after.get(&request("other", "/workspaces", 405)), 20.0);
    let after: Vec<_> = after.0.into_keys().collect();
    assert_eq!(before, after);
    let made_up = |series: &&String| series.to_ascii_lowercase().contains("made-up");
    assert_eq!(after.iter().find(made_up), None);
}

#[test]
fn bytes_of_execs_are_counted_when_they_end() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let body = json!({ "cmd": "cat; echo no >&2", "stdin": { "text": "12345" }, "wait": true });
    workspace.post("execs", &body).expect(201);
    workspace.sh("echo yes").expect(0);
    let after = Metrics::of(&derrick.api);
    let bytes = |direction: &str| {
        after.get(&format!(
            "derrick_exec_bytes_total{{direction=\"{direction}\"}}"
        ))
    };
    assert_eq!((bytes("in"), bytes("out")), (5.0, 12.0));
}
