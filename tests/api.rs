//! The API against the real provider: errors that tell whose fault it was, files that stay inside.
//!
//! The front end's own checks, each header and each field, are tested beside its code; who is let in, in
//! `p10_access.rs`.

mod support;

use std::collections::BTreeSet;

use serde_json::json;
use support::{Derrick, Mode, mode};

// --- errors ---

#[test]
fn errors_are_problem_details_with_a_request_id_of_their_own() {
    let derrick = Derrick::on_host();
    let (api, nobody) = (&derrick.api, "00000000-0000-7000-8000-000000000000");
    let workspace = derrick.create();
    let problems = [
        (404, api.get("/nowhere")),
        (404, api.get(&format!("/workspaces/{nobody}"))),
        (404, api.get("/workspaces/..%2f..%2fetc")),
        (
            404,
            api.post(
                &format!("/workspaces/{nobody}/cmd"),
                &json!({ "cmd": "true" }),
            ),
        ),
        (405, api.request("PUT", "/workspaces", Some(&json!({})))),
        (400, workspace.post("cmd", &json!({}))),
        (400, workspace.post("cmd", &json!({ "cmd": 1 }))),
        (
            400,
            workspace.post("cmd", &json!({ "cmd": "true\u{0}false" })),
        ),
        (
            400,
            workspace.post("cmd", &json!({ "cmd": "true", "comand": "x" })),
        ),
        (
            400,
            workspace.post("cmd", &json!({ "cmd": "true", "env": { "A=B": "x" } })),
        ),
        (
            400,
            workspace.post("write_file", &json!({ "path": "/x", "content": "!" })),
        ),
        (
            400,
            workspace.post("read_file", &json!({ "path": "/x\u{0}" })),
        ),
        (400, api.post("/workspaces", &json!({ "env": ["A"] }))),
    ];
    let mut ids = BTreeSet::new();
    for (status, answer) in problems {
        let problem = answer.problem(status);
        assert_eq!(problem["status"], json!(status), "{problem}");
        ids.insert(problem["request_id"].to_string());
    }
    assert_eq!(ids.len(), 13, "a request id came twice");
    // None of it did anything.
    assert_eq!(api.list(), [workspace.id.as_str()]);
    assert_eq!(workspace.sh("test -e /x").exit_code, 1);
}

// --- files ---

#[test]
fn a_file_of_many_megabytes_comes_back_as_it_went() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let content: Vec<u8> = (0..60_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    workspace.write_file("/big", &content);
    assert_eq!(
        workspace.ok("stat -c %s /big").trim(),
        content.len().to_string()
    );
    assert!(
        workspace.read_file("/big") == content,
        "the file changed on its way"
    );
}

#[test]
fn a_written_file_is_there_whole_or_not_at_all() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.write_file("/file", b"old");
    workspace.ok("chmod 750 /file");
    // Flawed only at its end: what came before must not have replaced anything.
    let flawed = "QUJD".repeat(1 << 18) + "!";
    let body = json!({ "path": "/file", "content": flawed });
    workspace.post("write_file", &body).problem(400);
    assert_eq!(workspace.read_file("/file"), b"old");
    assert_eq!(workspace.ok("ls -A / | grep -c file"), "1\n");
    workspace.write_file("/file", b"new");
    assert_eq!(workspace.ok("cat /file"), "new");
}

#[test]
fn files_and_commands_of_many_clients_do_not_mix() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let workspace = &workspace;
            scope.spawn(move || {
                for round in 0..5 {
                    let content = format!("{n} {round}").repeat(10_000);
                    workspace.write_file(&format!("/file-{n}"), content.as_bytes());
                    assert_eq!(workspace.ok(&format!("cat /file-{n}")), content);
                    let read = workspace.read_file(&format!("/file-{n}"));
                    assert_eq!(read, content.as_bytes());
                }
            });
        }
    });
}

// --- what GET tells ---

#[test]
fn a_workspace_tells_its_state_its_layer_and_what_is_enforced_on_it() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let told = workspace.describe();
    assert_eq!(told["id"], json!(workspace.id), "{told}");
    assert_eq!(told["state"], json!("running"), "{told}");
    assert_eq!(told["execs"], json!(0), "{told}");
    assert!(
        told["layer"]
            .as_str()
            .is_some_and(|layer| layer.len() >= 32),
        "{told}"
    );
    assert!(told["created"].as_u64() > Some(1_700_000_000), "{told}");
    let enforcement = &told["enforcement"]["sandbox"];
    let ids = if mode() == Mode::Single { 1 } else { 65_536 };
    assert_eq!(enforcement["ids"], json!(ids), "{told}");
    assert_eq!(enforcement["network"], json!("none"), "{told}");
    for field in ["landlock", "seccomp_filters", "capabilities"] {
        assert!(!enforcement[field].is_null(), "no {field} in {told}");
    }
    let kinds = ["user", "mnt", "pid", "ipc", "uts", "cgroup", "net"];
    assert_eq!(enforcement["namespaces"], json!(kinds), "{told}");
    // As a command finds them.
    for kind in kinds {
        let inside = workspace.ok(&format!("readlink /proc/self/ns/{kind}"));
        let outside =
            std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("/proc is mounted");
        assert_ne!(inside.trim(), outside.to_string_lossy(), "{kind}");
    }
    let set = workspace.ok("sed -n 's/NoNewPrivs:\\t//p' /proc/self/status");
    assert_eq!(
        enforcement["no_new_privs"],
        json!(set.trim() == "1"),
        "{told}"
    );
    assert_eq!(enforcement["no_new_privs"], json!(true), "{told}");
    let files = workspace.ok("ulimit -Hn");
    assert_eq!(
        enforcement["rlimits"]["nofile"].to_string(),
        files.trim(),
        "{told}"
    );
    assert_eq!(enforcement["rlimits"]["core"], json!(1), "{told}");
    assert_eq!(enforcement["keyring"], json!("own"), "{told}");

    workspace.ok("mkfifo /tmp/started /tmp/go");
    let command = workspace.start("echo > /tmp/started; read line < /tmp/go");
    workspace.ok("read line < /tmp/started");
    assert_eq!(workspace.describe()["execs"], json!(1));
    workspace.ok("echo > /tmp/go");
    command.answer().expect(200);
}

#[test]
fn what_the_hosts_network_costs_is_told() {
    let derrick = support::Launch::new(json!({ "name": "test", "network": "host" }))
        .token("0123456789abcdef0123456789abcdef")
        .start();
    let workspace = derrick.create();
    let told = workspace.describe();
    let weaker = told["enforcement"]["weaker"].to_string();
    assert!(weaker.contains("/sys is empty"), "{told}");
    assert_eq!(workspace.ok("ls /sys"), "");
    let kinds = told["enforcement"]["sandbox"]["namespaces"].to_string();
    assert!(!kinds.contains("net"), "{told}");
}
