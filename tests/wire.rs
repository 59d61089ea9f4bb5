//! The wire format of bosun-ai/derrick: its clients work unchanged.
//!
//! The requests and the answers are those of that project's own integration test, in its order.

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use support::{Derrick, GitServer};

#[test]
fn a_client_of_bosun_ai_derrick_works_unchanged() {
    let server = GitServer::open();
    let upstream = server.repository(
        "swiftide-ask",
        &[("Cargo.toml", "[package]\nname = \"swiftide-ask\"\n")],
    );
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [{
            "name": "swiftide-ask",
            "url": upstream.url,
            "path": "/code/swiftide-ask",
            "reference": "main",
        }],
        "setup_script": "#!/bin/bash\n\necho \"Hello World\" > /tmp/hello.txt\n",
    }));
    let api = &derrick.api;

    let list = api.get("/workspaces").expect(200).json();
    assert_eq!(list, json!({ "workspaces": [] }));

    let workspace = api.create_with(&json!({ "env": {} }));
    let list = api.get("/workspaces").expect(200).json();
    assert_eq!(list, json!({ "workspaces": [{ "id": workspace.id }] }));

    let answer = workspace.post("cmd_with_output", &json!({ "cmd": "echo hello" }));
    assert_eq!(
        answer.expect(200).json(),
        json!({ "output": "hello\n", "exit_code": 0 })
    );
    assert!(
        workspace
            .ok("ls ./code/swiftide-ask")
            .contains("Cargo.toml")
    );
    assert!(
        workspace
            .ok("cd ./code/swiftide-ask && ls")
            .contains("Cargo.toml")
    );
    assert_eq!(workspace.ok("echo hello\necho world"), "hello\nworld\n");
    assert_eq!(workspace.ok("cat /tmp/hello.txt"), "Hello World\n");
    let ran = workspace.sh_with("echo $HELLO", &json!({ "env": { "HELLO": "WORLD" } }));
    assert_eq!(ran.expect(0), "WORLD\n");
    assert_eq!(
        workspace.ok("cat <<-\"EOF\" > /tmp/hello.txt\nhello\nworld\nEOF\ncat /tmp/hello.txt\n"),
        "hello\nworld\n"
    );
    let missing = workspace.sh("ls /nonexistent/directory").expect(2);
    assert!(missing.contains("No such file or directory"), "{missing}");

    // Ruby's encode64 ends its lines, the last included, with a newline.
    let content = format!("{}\n", BASE64.encode("Hello, world!"));
    let body = json!({ "path": "/tmp/test.txt", "content": content });
    let answer = workspace.post("write_file", &body).expect(200).json();
    assert_eq!(answer, json!({ "success": true }));
    assert_eq!(workspace.read_file("/tmp/test.txt"), b"Hello, world!");
}

#[test]
fn cmd_answers_null_and_a_failing_command_is_an_error() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    assert_eq!(workspace.cmd("true").expect(200).json(), Value::Null);

    // What a command does is the caller's affair, never a failure of derrick.
    let problem = workspace.cmd("echo it broke; exit 3").problem(422);
    assert_eq!(problem["exit_code"], json!(3), "{problem}");
    assert!(
        problem["output"]
            .as_str()
            .unwrap_or_default()
            .contains("it broke"),
        "{problem}"
    );
}

#[test]
fn commands_start_in_the_workdir_or_where_the_request_says() {
    let derrick = Derrick::start(json!({
        "name": "test",
        "workdir": "/srv/project",
        "setup_script": "mkdir -p /srv/project/src",
    }));
    let workspace = derrick.create();
    assert_eq!(workspace.ok("pwd"), "/srv/project\n");
    let ran = workspace.sh_with("pwd", &json!({ "working_dir": "src" }));
    assert_eq!(ran.expect(0), "/srv/project/src\n");
    let ran = workspace.sh_with("pwd", &json!({ "working_dir": "/usr" }));
    assert_eq!(ran.expect(0), "/usr\n");
}

#[test]
fn the_request_the_workspace_and_the_config_give_environment_in_that_order() {
    let derrick = Derrick::start(json!({
        "name": "test",
        "env": { "A": "config", "B": "config", "C": "config" },
    }));
    let workspace = derrick
        .api
        .create_with(&json!({ "env": { "B": "workspace", "C": "workspace" } }));
    let ran = workspace.sh_with("echo $A $B $C", &json!({ "env": { "C": "request" } }));
    assert_eq!(ran.expect(0), "config workspace request\n");
    assert_eq!(
        workspace.ok("echo $A $B $C"),
        "config workspace workspace\n"
    );
}

#[test]
fn every_byte_survives_a_round_trip_through_a_file() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let content: Vec<u8> = (0..=255_u8).cycle().take(100_000).collect();
    workspace.write_file("/new/directory/file", &content);
    assert_eq!(workspace.read_file("/new/directory/file"), content);
    assert_eq!(workspace.ok("wc -c < /new/directory/file").trim(), "100000");

    workspace.write_file("/new/directory/file", b"");
    assert_eq!(workspace.read_file("/new/directory/file"), b"");
}

#[test]
fn relative_paths_start_in_the_working_dir() {
    let derrick = Derrick::start(json!({ "name": "test", "workdir": "/tmp" }));
    let workspace = derrick.create();
    workspace.write_file("a", b"in the workdir");
    let body = json!({ "path": "b", "working_dir": "/srv", "content": BASE64.encode("in srv") });
    workspace.post("write_file", &body).expect(200);
    assert_eq!(workspace.ok("cat /tmp/a /srv/b"), "in the workdirin srv");
    let answer = workspace.post("read_file", &json!({ "path": "b", "working_dir": "/srv" }));
    assert_eq!(answer.expect(200).body, b"in srv");
}

#[test]
fn deleting_answers_true_once_and_then_false() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    assert!(workspace.delete());
    assert!(!workspace.delete());
    assert_eq!(derrick.api.list(), Vec::<String>::new());
    workspace
        .post("cmd_with_output", &json!({ "cmd": "true" }))
        .problem(404);
}

#[test]
fn health_says_that_it_is_healthy() {
    let derrick = Derrick::on_host();
    let health = derrick.api.get("/health").expect(200).json();
    assert_eq!(health["healthy"], json!(true), "{health}");
}
