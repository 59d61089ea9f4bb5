//! The commands that talk to a running provider: what a person or a script gets from them.
//!
//! Where the other side has to break off, to lie or to be hostile, a scripted server stands in for it.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::{
    Derrick, GUARD, Launch, Scratch, Scripted, Workspace, binary, on_terminal, quoted, typing,
};

/// An id as derrick makes them.
const ID: &str = "01a1fd93-a44a-7353-8f39-6e6e6431758f";
const EXEC: &str = "01a1fd93-a5cb-735c-a2f0-00e645c95bdc";

/// A command of the client's for the provider at `server`.
fn client(server: &str, arguments: &[&str]) -> Command {
    let (name, rest) = arguments.split_first().expect("a command has a name");
    let mut command = Command::new(binary());
    command.arg(name).args(["--server", server]).args(rest);
    command.stdin(Stdio::null());
    command
}

fn url(derrick: &Derrick) -> String {
    format!("http://{}", derrick.api.address())
}

/// Runs a command of the client's to its end.
fn run(server: &str, arguments: &[&str]) -> Output {
    client(server, arguments)
        .output()
        .expect("cannot start derrick")
}

/// Runs it with this stdin.
fn run_with(server: &str, arguments: &[&str], stdin: &[u8]) -> Output {
    let mut child = start(client(server, arguments).stdin(Stdio::piped()));
    let mut input = child.stdin.take().expect("stdin is a pipe");
    std::thread::scope(|scope| {
        // A command that reads nothing may end first.
        scope.spawn(move || input.write_all(stdin));
        child.wait_with_output().expect("derrick ends")
    })
}

fn start(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cannot start derrick")
}

/// What it printed; fails the test unless it succeeded.
#[track_caller]
fn ok(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    text(&output.stdout)
}

/// What it said; fails the test unless it ended with this code and printed nothing.
#[track_caller]
fn refused(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    text(&output.stderr)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn random(length: u32) -> Vec<u8> {
    (0..length)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// The exec's outcome, when it has ended.
fn outcome(derrick: &Derrick, workspace: &Workspace, exec: &str) -> Value {
    let path = format!("/workspaces/{}/execs/{exec}?wait=60", workspace.id);
    derrick.api.get(&path).expect(200).json()["outcome"].clone()
}

/// The id of the only exec that runs in the workspace.
fn running(derrick: &Derrick, workspace: &Workspace) -> String {
    let path = format!("/workspaces/{}/execs?state=running", workspace.id);
    let list = derrick.api.get(&path).expect(200).json();
    let execs = list["execs"].as_array().expect("a list");
    assert_eq!(execs.len(), 1, "{list}");
    execs[0]["id"].as_str().expect("a text").to_owned()
}

// --- exec ---

#[test]
fn the_exit_code_is_the_commands_own() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for (arguments, code) in [
        (&["--", "true"][..], 0),
        (&["--", "sh", "-c", "exit 42"], 42),
        (&["--cmd", "exit 43"], 43),
        (&["--cmd", "kill -TERM $$"], 143),
        (&["--", "no-such-program"], 127),
        (&["--timeout", "0.2", "--", "sleep", "1000"], 124),
        (&["--cwd", "/no/such/directory", "--", "true"], 125),
        (&["-u", "nobody-of-that-name", "--", "true"], 125),
    ] {
        let arguments = [&["exec", &workspace.id], arguments].concat();
        let output = run(&url(&derrick), &arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
    }
}

#[test]
fn every_byte_passes_through_and_stdout_and_stderr_are_apart() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let bytes = random(5 << 20);
    let line = "tee /copy; cat /copy >&2";
    let output = run_with(
        &url(&derrick),
        &["exec", "-i", &workspace.id, "--cmd", line],
        &bytes,
    );
    assert_eq!(output.status.code(), Some(0));
    for (name, stream) in [("stdout", output.stdout), ("stderr", output.stderr)] {
        assert!(
            stream == bytes,
            "{} bytes of {} came back on {name}",
            stream.len(),
            bytes.len()
        );
    }
}

#[test]
fn a_command_reads_stdin_only_with_i() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for (option, expected) in [("-i", "hello"), ("--json", "")] {
        let arguments = ["exec", option, &workspace.id, "--", "cat"];
        let printed = ok(&run_with(&url(&derrick), &arguments, b"hello"));
        let printed = match serde_json::from_str::<Value>(&printed) {
            Ok(object) => object["output"]["stdout"].as_str().map(str::to_owned),
            Err(_) => Some(printed),
        };
        assert_eq!(printed.as_deref(), Some(expected));
    }
    // It takes no more than it reads, and nobody is told of the rest.
    let arguments = ["exec", "-i", &workspace.id, "--", "head", "-c", "3"];
    let output = run_with(&url(&derrick), &arguments, &random(5 << 20));
    assert_eq!(output.stdout, random(3));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn words_environment_and_directory_reach_the_command_as_they_were_given() {
    let derrick = Derrick::on_host();
    let server = url(&derrick);
    let id = ok(&run(&server, &["create", "-e", "COLOUR=green"]));
    let id = id.trim_end();
    let awkward = ["a b", "", "$HOME", "*", "'\"", "-n", "--", "é\n"];
    let arguments = [&["exec", id, "--", "printf", "<%s>"], &awkward[..]].concat();
    let expected: String = awkward.map(|word| format!("<{word}>")).concat();
    assert_eq!(ok(&run(&server, &arguments)), expected);
    let line = "echo $COLOUR $SIZE; pwd; id -u";
    let arguments = [
        "exec", "-e", "SIZE=a=b", "--cwd", "/usr", "-u", "0", id, "--cmd", line,
    ];
    assert_eq!(ok(&run(&server, &arguments)), "green a=b\n/usr\n0\n");
}

#[test]
fn what_the_exit_code_does_not_say_is_said() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let arguments = ["exec", &workspace.id, "--cmd", "echo ready; sleep 1000"];
    let by_deadline = run(
        &url(&derrick),
        &[
            "exec",
            "--timeout",
            "0.2",
            &workspace.id,
            "--",
            "sleep",
            "1000",
        ],
    );
    let said = refused(&by_deadline, 124);
    assert_eq!(said, "derrick: its deadline passed, and it was killed\n");

    let mut by_reset = start(&mut client(&url(&derrick), &arguments));
    let _stdout = wait_until_ready(&mut by_reset);
    workspace.reset();
    let output = by_reset.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(137));
    assert_eq!(text(&output.stderr), "derrick: its workspace was reset\n");
}

/// Waits for the line `ready` of a command.
fn wait_until_ready(child: &mut Child) -> BufReader<ChildStdout> {
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("the command prints");
    assert_eq!(line, "ready\n");
    stdout
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it runs");
}

#[test]
fn ctrl_c_interrupts_the_command_and_a_second_one_kills_it() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let line = "trap 'echo interrupted' INT; echo ready; while :; do sleep 1000 & wait; done";
    let arguments = ["exec", &workspace.id, "--cmd", line];
    let mut child = start(&mut client(&url(&derrick), &arguments));
    let mut stdout = wait_until_ready(&mut child);
    let exec = running(&derrick, &workspace);
    send(&child, Signal::SIGINT);
    let mut line = String::new();
    stdout.read_line(&mut line).expect("the command prints");
    assert_eq!(line, "interrupted\n");
    send(&child, Signal::SIGINT);
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(137));
    assert_eq!(outcome(&derrick, &workspace, &exec)["kind"], "killed");
}

#[test]
fn the_command_ends_with_its_client_and_with_the_reader_of_its_output() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let line = "echo ready; trap '' TERM HUP PIPE; while :; do echo y; done";
    let arguments = ["exec", &workspace.id, "--cmd", line];
    for signal in [Some(Signal::SIGTERM), Some(Signal::SIGHUP), None] {
        let mut child = start(&mut client(&url(&derrick), &arguments));
        let mut stdout = wait_until_ready(&mut child);
        let exec = running(&derrick, &workspace);
        match signal {
            Some(signal) => {
                send(&child, signal);
                std::io::copy(&mut stdout, &mut std::io::sink()).expect("it prints");
            }
            None => drop(stdout),
        }
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), Some(137), "{signal:?}");
        assert_eq!(outcome(&derrick, &workspace, &exec)["kind"], "killed");
    }
}

#[test]
fn a_slow_reader_gets_every_byte_or_is_told_that_it_does_not() {
    const PRINTED: usize = 60 << 20;
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for (options, code) in [(&[][..], 0), (&["--output-limit", "1MiB"], 125)] {
        let line = format!("head -c {PRINTED} /dev/zero");
        let arguments = [&["exec"], options, &[&workspace.id, "--cmd", &line]].concat();
        let mut events = workspace.events(None);
        let child = start(&mut client(&url(&derrick), &arguments));
        // The command has ended before the first byte is read: nothing waited for the reader.
        assert!(events.any(|event| event.name == "exec_ended"));
        let output = child.wait_with_output().expect("it ends");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(
            output.stdout.len() == PRINTED,
            code == 0,
            "{}",
            output.stdout.len()
        );
        assert_eq!(
            said.contains("bytes of its output were not kept"),
            code != 0,
            "{said}"
        );
    }
}

#[test]
fn a_workspaces_limits_are_kept_to_and_told_of() {
    let derrick = Derrick::on_host();
    let limits = json!({ "limits": { "output": "1MiB" } });
    let workspace = derrick.api.create_with(&limits);
    // Nobody asked for more: what derrick asks for by itself is what there is.
    let line = ["--cmd", "head -c 3000 /dev/zero"];
    let output = run(
        &url(&derrick),
        &[&["exec", &workspace.id], &line[..]].concat(),
    );
    assert_eq!(output.stdout.len(), 3000, "{output:?}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let asked = ["exec", "--output-limit", "2MiB", &workspace.id];
    let said = refused(&run(&url(&derrick), &[&asked, &line[..]].concat()), 125);
    assert!(said.contains("the workspace's limit on output"), "{said}");
    let limits = |changes: &[&str]| {
        run(
            &url(&derrick),
            &[&["limits", &workspace.id], changes].concat(),
        )
    };
    let shown = ok(&limits(&["execs=3", "shm=1MiB", "output=none"]));
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(rows.contains(&vec!["execs", "3", "-", "-"]), "{shown}");
    assert!(
        rows.contains(&vec!["shm", "1.0", "MiB", "-", "-"]),
        "{shown}"
    );
    assert!(!shown.contains("output"), "{shown}");
    let said = text(&limits(&[]).stderr);
    assert!(
        said.contains("shm holds as shown from the next reset on"),
        "{said}"
    );
    let told: Value = serde_json::from_str(&ok(&limits(&["--json"]))).expect("it is JSON");
    assert_eq!(told["limits"], json!({ "execs": 3, "shm": 1 << 20 }));
    let said = refused(&limits(&["execs=0"]), 1);
    assert!(said.contains("limits.execs"), "{said}");
    let said = refused(&limits(&["request.memory=8MiB", "pids"]), 2);
    assert!(said.contains("NAME=VALUE"), "{said}");
}

#[test]
fn json_is_one_object_with_the_outcome_and_the_output() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let line = "printf 'a\\033[2Jb'; head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 3";
    let arguments = ["exec", "--json", &workspace.id, "--cmd", line];
    let output = run(&url(&derrick), &arguments);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(!output.stdout.contains(&0x1b));
    let object: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(object["outcome"], json!({ "kind": "exited", "code": 3 }));
    assert_eq!(object["exit_code"], json!(3));
    assert_eq!(object["cmd"], json!(line));
    assert_eq!(object["output"]["stdout"], json!("a\u{1b}[2Jb"));
    let stderr = object["output"]["stderr"].as_str().expect("a text");
    assert!(stderr.contains("bytes omitted"), "{} bytes", stderr.len());
    assert!(stderr.len() < (1 << 20) + 100, "{} bytes", stderr.len());
}

#[test]
fn a_detached_command_goes_on_and_its_output_can_be_had_later() {
    let derrick = Derrick::on_host();
    let server = url(&derrick);
    let workspace = derrick.create();
    let line = "echo out; echo err >&2; until test -e /go; do sleep 0.01; done; echo late";
    let exec = ok(&run(&server, &["exec", "-d", &workspace.id, "--cmd", line]));
    let exec = exec.trim_end();
    assert_eq!(running(&derrick, &workspace), exec);

    let mut follow = start(&mut client(&server, &["logs", "-f", &workspace.id, exec]));
    let mut stdout = BufReader::new(follow.stdout.take().expect("stdout is a pipe"));
    let mut printed = String::new();
    stdout.read_line(&mut printed).expect("it prints");
    assert_eq!(printed, "out\n");
    workspace.ok("touch /go");
    stdout.read_to_string(&mut printed).expect("it prints");
    assert_eq!(printed, "out\nlate\n");
    let output = follow.wait_with_output().expect("it ends");
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(0), "err\n".to_owned())
    );

    // Any part of an id that fits one exec alone will do.
    let end = &exec[exec.len() - 12..];
    for (options, expected) in [
        (&[][..], "out\nlate\n"),
        (&["--stream", "stdout"], "out\nlate\n"),
        (&["--stream", "stderr"], "err\n"),
    ] {
        let arguments = [&["logs"], options, &[&workspace.id, end]].concat();
        assert_eq!(ok(&run(&server, &arguments)), expected);
    }
    let attached = run(&server, &["attach", "--from-start", &workspace.id, end]);
    assert_eq!(ok(&attached), "out\nlate\n");
}

#[test]
fn a_command_that_goes_on_can_be_joined_and_left() {
    let derrick = Derrick::on_host();
    let server = url(&derrick);
    let workspace = derrick.create();
    let mut command = client(
        &server,
        &[
            "exec",
            "-it",
            &workspace.id,
            "--cmd",
            "tty; echo ready; read line; echo \"heard $line\"; read end; exit 5",
        ],
    );
    let printed = on_terminal(quoted(&command).as_ref(), b"\x10\x11");
    let exec = running(&derrick, &workspace);
    assert!(
        printed.contains(&format!("exec {exec} goes on")),
        "{printed}"
    );

    // Told to end, it leaves as well, and the exec goes on. Without a terminal it only watches.
    let arguments = ["attach", "--from-start", &workspace.id, &exec];
    let mut attached = start(&mut client(&server, &arguments));
    let mut stdout = BufReader::new(attached.stdout.take().expect("stdout is a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("it prints");
    assert_eq!(line, "/dev/pts/0\r\n");
    send(&attached, Signal::SIGTERM);
    assert_eq!(attached.wait().expect("it ends").code(), Some(0));

    command = client(&server, &arguments);
    let line = format!("{}; echo \"code $?\"", quoted(&command));
    let printed = typing(line.as_ref(), &[("ready", b"hello\r"), ("heard", b"\r")]);
    for expected in ["heard hello", "code 5"] {
        assert!(printed.contains(expected), "no {expected:?} in {printed}");
    }
}

#[test]
fn on_a_terminal_the_command_has_one_of_the_workspaces_own() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let line = "trap 'echo interrupted' INT; test -t 0 && test -t 1 && test -t 2 && stty size && echo $TERM && echo ready
                read line; read line; echo \"heard $line\"; read end";
    let command = client(
        &url(&derrick),
        &["exec", "-it", &workspace.id, "--cmd", line],
    );
    let line = format!(
        "stty rows 33 columns 101; before=$(stty -g); {}; echo \"code $?\"; test \"$before\" = \"$(stty -g)\" && echo restored",
        quoted(&command)
    );
    // ctrl-c is the command's, and ctrl-p alone is a key like any other.
    let keys: [(_, &[u8]); 2] = [("ready", b"\x03\rhello \x10!\r"), ("heard", b"\r")];
    let printed = typing(line.as_ref(), &keys).replace('\r', "");
    for expected in [
        "33 101\n",
        "xterm-256color\n",
        "interrupted\n",
        "heard hello \u{10}!\n",
        "code 0\n",
        "restored\n",
    ] {
        assert!(printed.contains(expected), "no {expected:?} in {printed}");
    }
}

#[test]
fn a_new_size_of_the_terminal_is_the_commands_too() {
    let derrick = Derrick::on_host();
    let server = url(&derrick);
    let workspace = derrick.create();
    let line = "until test \"$(stty size)\" = '44 132'; do sleep 0.01; done; echo resized; echo ready; read line";
    let command = client(&server, &["exec", "-it", &workspace.id, "--cmd", line]);
    let list = client(&server, &["ls", "-q", &workspace.id]);
    let line = format!(
        "stty rows 33 columns 101
         (until test -n \"$({})\"; do :; done; stty rows 44 columns 132 < /dev/tty) &
         {}",
        quoted(&list),
        quoted(&command)
    );
    let printed = on_terminal(line.as_ref(), b"\r").replace('\r', "");
    assert!(printed.contains("resized\n"), "{printed}");
}

#[test]
fn without_a_terminal_none_is_promised() {
    let server = "http://127.0.0.1:1";
    let said = refused(&run(server, &["exec", "-it", "x", "--", "sh"]), 125);
    assert!(said.contains("stdin is no terminal"), "{said}");
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let line = "test -t 1 && stty size <&1; until test -e /go; do sleep 0.01; done";
    let arguments = ["exec", "-t", &workspace.id, "--cmd", line];
    let mut child = start(&mut client(&url(&derrick), &arguments));
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    let mut printed = String::new();
    stdout.read_line(&mut printed).expect("it prints");
    assert_eq!(printed, "24 80\r\n");
    workspace.ok("touch /go");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

// --- create, ls, reset, rm ---

#[test]
fn workspaces_are_made_listed_reset_and_removed() {
    let derrick = Derrick::on_host();
    let server = url(&derrick);
    let first = ok(&run(&server, &["create"]));
    let first = first.trim_end();
    let second: Value = serde_json::from_str(&ok(&run(&server, &["create", "--json"]))).unwrap();
    let second = second["id"].as_str().expect("a text");
    assert_eq!(
        ok(&run(&server, &["ls", "-q"])),
        format!("{first}\n{second}\n")
    );
    let table = ok(&run(&server, &["ls"]));
    let rows: Vec<_> = table.lines().collect();
    assert_eq!(rows.len(), 3, "{table}");
    assert!(
        rows[1].starts_with(first) && rows[1].contains("running"),
        "{table}"
    );
    let list: Value = serde_json::from_str(&ok(&run(&server, &["ls", "--json"]))).unwrap();
    assert_eq!(list["workspaces"][1]["id"], json!(second));

    let end = &first[first.len() - 12..];
    ok(&run(&server, &["exec", end, "--cmd", "echo x > /new"]));
    let execs = ok(&run(&server, &["ls", end]));
    assert!(
        execs.contains("exited 0") && execs.contains("echo x > /new"),
        "{execs}"
    );
    let receipt = ok(&run(&server, &["reset", end]));
    assert!(
        receipt.starts_with(&format!("{first} is on layer")),
        "{receipt}"
    );
    let receipt: Value =
        serde_json::from_str(&ok(&run(&server, &["reset", "--json", end]))).unwrap();
    assert_eq!(receipt["id"], json!(first));
    let output = run(&server, &["exec", end, "--", "test", "-e", "/new"]);
    assert_eq!(output.status.code(), Some(1));

    // One that is not there keeps the others from nothing.
    let output = run(&server, &["rm", first, "no-such", second]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), format!("{first}\n{second}\n"));
    assert!(text(&output.stderr).contains("'no-such'"), "{output:?}");
    assert_eq!(derrick.api.list(), Vec::<String>::new());
}

#[test]
fn a_part_of_an_id_that_fits_several_names_them() {
    let derrick = Derrick::on_host();
    let ids = [derrick.create().id, derrick.create().id];
    // Ids begin with the time.
    let said = refused(&run(&url(&derrick), &["rm", &ids[0][..4]]), 1);
    assert!(ids.iter().all(|id| said.contains(id)), "{said}");
    assert_eq!(derrick.api.list(), ids);
}

#[test]
fn a_token_is_shown_and_a_provider_that_wants_one_refuses_those_without() {
    let scratch = Scratch::new();
    let token = "0123456789abcdef0123456789abcdef";
    // The provider's own file will do: the first token in it counts.
    let text = format!("# mine\n{token} name=me scope=own\nfedcba9876543210fedcba9876543210\n");
    let file = scratch.file("token", &text);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let derrick = Launch::new(json!({ "name": "test" })).token(&text).start();
    let server = url(&derrick);
    let said = refused(&run(&server, &["ls", "-q"]), 1);
    assert!(said.contains("Bearer"), "{said}");
    let with_file = |arguments: &[&str]| {
        let mut command = client(&server, arguments);
        command.env("DERRICK_TOKEN_FILE", &file);
        command.output().expect("cannot start derrick")
    };
    let id = ok(&with_file(&["create"]));
    assert_eq!(
        ok(&with_file(&["exec", id.trim_end(), "--", "echo", "x"])),
        "x\n"
    );
    assert_eq!(ok(&with_file(&["ls", "-q"])), id);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let said = refused(&with_file(&["ls"]), 125);
    assert!(said.contains("mode 0600"), "{said}");
}

#[test]
fn a_provider_that_is_not_there_is_a_failure_that_says_where_it_should_be() {
    let server = "http://127.0.0.1:1";
    for arguments in [
        &["ls"][..],
        &["create"],
        &["rm", ID],
        &["exec", ID, "--", "true"],
        &["logs", ID, EXEC],
        &["attach", ID, EXEC],
        &["cp", "01a:/x", "x"],
    ] {
        let said = refused(&run(server, arguments), 125);
        assert!(
            said.contains(server) && said.contains("DERRICK_SERVER"),
            "{arguments:?}: {said}"
        );
    }
}

/// A provider on a Unix socket, so that it can be found again after its end.
struct OnSocket {
    child: Child,
    _stdout: BufReader<ChildStdout>,
}

impl OnSocket {
    fn start(scratch: &Scratch) -> Self {
        let mut command = Command::new(binary());
        command
            .arg("--listen")
            .arg(format!("unix:{}", scratch.join("api").display()))
            .arg("--state-dir")
            .arg(scratch.join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("cannot start derrick");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("it prints");
        assert!(line.starts_with("listening on unix:"), "{line:?}");
        Self {
            child,
            _stdout: stdout,
        }
    }

    fn end(mut self, signal: Signal) {
        send(&self.child, signal);
        self.child.wait().expect("it ends");
    }
}

#[test]
fn a_command_that_its_provider_lost_is_told_from_one_that_ended() {
    let scratch = Scratch::new();
    let server = format!("unix:{}", scratch.join("api").display());
    let provider = OnSocket::start(&scratch);
    let id = ok(&run(&server, &["create"]));
    let arguments = ["exec", id.trim_end(), "--cmd", "echo ready; sleep 1000"];
    let mut child = start(&mut client(&server, &arguments));
    let _stdout = wait_until_ready(&mut child);
    provider.end(Signal::SIGKILL);
    let provider = OnSocket::start(&scratch);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(
        text(&output.stderr).contains("derrick lost it"),
        "{output:?}"
    );
    provider.end(Signal::SIGTERM);
}

// --- a provider that breaks off ---

/// An exec as the API tells it.
fn told(fields: &Value) -> Value {
    let mut exec = json!({
        "id": EXEC, "state": "running", "cmd": "x", "cwd": "/", "tty": false, "streams": "apart",
        "stdin": "none", "started": 1.5, "truncated": false, "detached": 0,
        "stdout": { "bytes": 0, "omitted": 0 }, "stderr": { "bytes": 0, "omitted": 0 },
    });
    for (name, value) in fields.as_object().expect("an object") {
        exec[name] = value.clone();
    }
    exec
}

fn ended(code: u8) -> Value {
    let outcome = json!({ "kind": "exited", "code": code });
    told(&json!({ "state": "ended", "outcome": outcome, "exit_code": code }))
}

fn said(name: &str, value: &Value) -> Message {
    Message::text(json!({ name: value }).to_string())
}

fn printed(stream: u8, bytes: &[u8]) -> Message {
    Message::binary([&[stream], bytes].concat())
}

/// A body that ends before its end, but not before what there is of it was sent.
fn broken(begin: &'static str) -> Response {
    let pieces = futures_util::stream::unfold(Some(begin), async |begin| {
        if let Some(begin) = begin {
            return Some((Ok(Bytes::from_static(begin.as_bytes())), None));
        }
        // What waits to be sent is sent meanwhile.
        tokio::task::yield_now().await;
        Some((
            Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe)),
            None,
        ))
    });
    Body::from_stream(pieces).into_response()
}

/// A server with one exec, whose connections are held by `converse`: it gets the socket, the number
/// of the connection and the offset that was asked for.
fn with_exec<W: Future<Output = ()> + Send + 'static>(
    exec: Value,
    converse: impl Fn(WebSocket, usize, u64) -> W + Clone + Send + Sync + 'static,
) -> Router {
    let connections = Arc::new(Mutex::new(0));
    let attach = async move |Query(query): Query<Value>, upgrade: WebSocketUpgrade| {
        let offset = query["offset"].as_str().and_then(|text| text.parse().ok());
        let offset = offset.expect("an offset");
        let number = {
            let mut connections = connections.lock().expect("nobody panicked");
            *connections += 1;
            *connections
        };
        upgrade.on_upgrade(move |socket| converse(socket, number, offset))
    };
    let path = format!("/workspaces/{ID}/execs");
    Router::new()
        .route(&path, post(async move || axum::Json(exec)))
        .route(&format!("{path}/{EXEC}/attach"), get(attach))
}

#[test]
fn after_a_broken_connection_output_goes_on_at_its_byte() {
    let server = Scripted::serve(with_exec(
        told(&json!({})),
        async |mut socket, number, offset| {
            let messages = match (number, offset) {
                (1, 0) => vec![printed(1, b"abc"), printed(2, b"de")],
                (2, 5) => vec![
                    printed(1, b"f"),
                    said("gap", &json!({ "from": 6, "to": 100 })),
                ],
                // Nothing new, as often as it likes.
                (3 | 4, 100) => vec![],
                (5, 100) => vec![printed(1, b"\xff\0\n"), said("end", &ended(9))],
                other => panic!("{other:?}"),
            };
            socket.send(said("exec", &told(&json!({})))).await.unwrap();
            for message in messages {
                socket.send(message).await.unwrap();
            }
        },
    ));
    let output = run(server.url(), &["exec", ID, "--cmd", "x"]);
    // It ended with 9, and what was printed is not what it printed.
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!(output.stdout, b"abcf\xff\0\n");
    let said = text(&output.stderr);
    assert!(said.starts_with("de"), "{said}");
    assert!(
        said.contains("94 bytes of its output were not kept"),
        "{said}"
    );
}

#[test]
fn a_command_whose_start_was_not_confirmed_starts_once() {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    let start = async move |headers: HeaderMap, body: String| {
        let key = headers["idempotency-key"].to_str().unwrap().to_owned();
        let mut seen = seen.lock().unwrap();
        seen.push((key, body));
        match seen.len() {
            1 => broken("{\"id\":"),
            _ => axum::Json(told(&json!({}))).into_response(),
        }
    };
    let path = format!("/workspaces/{ID}/execs");
    let server = Scripted::serve(Router::new().route(&path, post(start)));
    let arguments = [
        "exec",
        "-d",
        "-u",
        "7",
        "--timeout",
        "9",
        ID,
        "--",
        "a",
        "b",
    ];
    assert_eq!(ok(&run(server.url(), &arguments)), format!("{EXEC}\n"));
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0], requests[1]);
    let body: Value = serde_json::from_str(&requests[0].1).unwrap();
    assert_eq!(
        body,
        json!({ "argv": ["a", "b"], "user": 7, "timeout": 9.0, "stdin": "none" })
    );
}

#[test]
fn input_that_has_arrived_survives_a_broken_connection() {
    let exec = told(&json!({ "stdin": "open" }));
    let (joined, connections) = mpsc::channel();
    let server = Scripted::serve(with_exec(exec.clone(), move |mut socket, number, _| {
        let (exec, joined) = (exec.clone(), joined.clone());
        async move {
            socket.send(said("exec", &exec)).await.unwrap();
            joined.send(number).unwrap();
            let mut heard = Vec::new();
            while let Some(Ok(message)) = socket.recv().await {
                match message {
                    Message::Binary(bytes) => heard.push(text(&bytes)),
                    Message::Text(message) => heard.push(message.to_string()),
                    // Answered with the next message, and then the connection is gone.
                    Message::Ping(_) if number == 1 => {
                        socket.send(printed(1, b".")).await.unwrap();
                        return;
                    }
                    _ => {}
                }
                if heard.last().is_some_and(|last| last == "{\"eof\":true}") {
                    let heard = heard.join(" ");
                    socket.send(printed(1, heard.as_bytes())).await.unwrap();
                    socket.send(said("end", &ended(0))).await.unwrap();
                    return;
                }
            }
        }
    }));
    let mut child =
        start(client(server.url(), &["exec", "-i", ID, "--", "x"]).stdin(Stdio::piped()));
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    stdin.write_all(b"first").unwrap();
    // Nothing may be under way when the connection breaks.
    assert_eq!([next(&connections), next(&connections)], [1, 2]);
    stdin.write_all(b"second").unwrap();
    drop(stdin);
    let printed = ok(&child.wait_with_output().expect("it ends"));
    assert_eq!(printed, ".\0second {\"eof\":true}");
}

#[test]
fn a_command_whose_input_was_cut_in_the_middle_is_killed() {
    let exec = told(&json!({ "stdin": "open" }));
    let (killed, kills) = mpsc::channel();
    let talking = exec.clone();
    let routes = with_exec(exec, move |mut socket, _, _| {
        let exec = talking.clone();
        async move {
            socket.send(said("exec", &exec)).await.unwrap();
            // Nobody knows what became of this.
            while !matches!(socket.recv().await, Some(Ok(Message::Binary(_))) | None) {}
        }
    });
    let kill = async move || {
        killed.send(()).unwrap();
        axum::Json(told(
            &json!({ "state": "ended", "outcome": { "kind": "killed" }, "exit_code": 137 }),
        ))
    };
    let path = format!("/workspaces/{ID}/execs/{EXEC}");
    let server = Scripted::serve(routes.route(&path, axum::routing::delete(kill)));
    let output = run_with(server.url(), &["exec", "-i", ID, "--", "x"], b"hello");
    let said = refused(&output, 125);
    assert!(said.contains("input under way"), "{said}");
    assert!(kills.try_recv().is_ok());
}

#[test]
fn following_a_log_goes_on_at_its_byte_too() {
    let output = async |Query(query): Query<Value>| {
        assert_eq!(
            (&query["stream"], &query["follow"]),
            (&json!("both"), &json!("true"))
        );
        let kind = [("content-type", "text/event-stream")];
        match query["offset"].as_str().expect("an offset") {
            "0" => (
                kind,
                broken(
                    "event: stdout\nid: 2\ndata: {\"offset\":0,\"text\":\"a\\n\"}\n\nevent: std",
                ),
            ),
            "2" => {
                let end = ended(0);
                let body = format!(
                    "event: gap\ndata: {{\"from\":2,\"to\":7}}\n\nevent: stderr\nid: 9\ndata: {{\"offset\":7,\"base64\":\"/wA=\"}}\n\nevent: end\ndata: {end}\n\n"
                );
                (kind, body.into_response())
            }
            other => panic!("{other}"),
        }
    };
    let path = format!("/workspaces/{ID}/execs/{EXEC}/output");
    let server = Scripted::serve(Router::new().route(&path, get(output)));
    let output = run(server.url(), &["logs", "-f", ID, EXEC]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"a\n");
    let expected = b"derrick: 5 bytes of its output were not kept\n\xff\0";
    assert_eq!(output.stderr, expected, "{output:?}");
}

// --- a workspace that wants to be more than text ---

#[test]
fn names_and_errors_reach_a_terminal_as_text_only() {
    let evil = "a\u{1b}]0;owned\u{7}\n\u{9b}31m\u{202e}txt";
    let entry = json!({
        "path": "/x", "name": evil, "type": "symlink", "size": 5, "mode": "0644", "uid": 1,
        "gid": 2, "mtime": 1.5, "target": evil,
    });
    let directory = json!({
        "path": "/", "name": "", "type": "directory", "size": 0, "mode": "0755", "uid": 0, "gid": 0, "mtime": 0,
    });
    let files = async move |Query(query): Query<Value>| {
        let page = |entries: Value, next: Option<&str>| json!({ "entries": entries, "next": next });
        axum::Json(match (query["stat"].as_str(), query["after"].as_str()) {
            (Some("true"), _) => directory,
            (_, None) => page(json!([entry]), Some("cursor &=\u{e9}")),
            (_, Some("cursor &=\u{e9}")) => page(json!([entry]), None),
            other => panic!("{other:?}"),
        })
    };
    let problem = async move || {
        let body =
            json!({ "type": "urn:derrick:problem:no-such-file", "detail": format!("no {evil}") });
        (StatusCode::NOT_FOUND, axum::Json(body))
    };
    let exec = told(&json!({ "cmd": evil }));
    let execs = async move || axum::Json(json!({ "execs": [exec] }));
    let at = format!("/workspaces/{ID}");
    let server = Scripted::serve(
        Router::new()
            .route(&format!("{at}/files/"), get(files))
            .route(&format!("{at}/files/none"), get(problem))
            .route(&format!("{at}/execs"), get(execs)),
    );
    let inside = |path: &str| format!("{ID}:{path}");
    let shown = r"a\u{1b}]0;owned\u{7}\n\u{9b}31m\u{202e}txt";
    let list = ok(&run(server.url(), &["ls", &inside("/")]));
    let line = format!("lrw-r--r--  1  2  5  1970-01-01T00:00:01Z  {shown} -> {shown}\n");
    assert_eq!(list, line.repeat(2));
    assert_eq!(
        ok(&run(server.url(), &["ls", "-q", &inside("/")])),
        format!("{shown}\n").repeat(2)
    );
    let said = refused(&run(server.url(), &["ls", &inside("/none")]), 1);
    assert_eq!(said, format!("derrick: no {shown}\n"));
    assert!(ok(&run(server.url(), &["ls", ID])).contains(shown));
    for what in [inside("/"), ID.to_owned()] {
        let list = ok(&run(server.url(), &["ls", "--json", &what]));
        assert!(
            !list.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']),
            "{list:?}"
        );
        let list: Value = serde_json::from_str(&list).expect("it is JSON");
        let name = match list["entries"][0]["name"].as_str() {
            Some(name) => name,
            None => list["execs"][0]["cmd"].as_str().expect("a text"),
        };
        assert_eq!(name, evil);
    }
}

// --- cp ---

/// One header and its content, as told, sound or not.
fn member(kind: u8, name: &str, link: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    let fields = header.as_old_mut();
    fields.name[..name.len()].copy_from_slice(name.as_bytes());
    fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
    fields.linkflag = [kind];
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

/// A workspace with one directory, `/evil`, that comes as this archive.
fn with_archive(archive: Vec<u8>) -> Scripted {
    let files = async move |Query(query): Query<Value>| {
        if query["stat"] == json!("true") {
            let directory = json!({
                "path": "/evil", "name": "evil", "type": "directory", "size": 0, "mode": "7777",
                "uid": 0, "gid": 0, "mtime": 0,
            });
            return axum::Json(directory).into_response();
        }
        assert_eq!(query["archive"], json!("tar"));
        archive.clone().into_response()
    };
    let path = format!("/workspaces/{ID}/files/evil");
    Scripted::serve(Router::new().route(&path, get(files)))
}

/// A directory with something beside it that nobody may touch.
struct Home {
    scratch: Scratch,
}

impl Home {
    fn new() -> Self {
        let scratch = Scratch::new();
        scratch.file("outside/secret", "secret");
        fs::create_dir(scratch.join("home")).unwrap();
        Self { scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join("home").join(name)
    }

    /// Copies `/evil` here.
    fn take(&self, server: &Scripted) -> Output {
        let mut command = client(server.url(), &["cp", &format!("{ID}:/evil"), "."]);
        command.current_dir(self.scratch.join("home"));
        let output = command.output().expect("cannot start derrick");
        let secret = self.scratch.join("outside");
        assert_eq!(names(&secret), ["secret"]);
        assert_eq!(fs::read(secret.join("secret")).unwrap(), b"secret");
        output
    }
}

/// The names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it can be listed");
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_hostile_archive_places_nothing_outside_and_leaves_nothing_behind() {
    let root = || member(b'5', "./", "", 0o755, b"");
    for (members, expected) in [
        (
            vec![root(), member(b'0', "./../outside/new", "", 0o644, b"x")],
            "'..'",
        ),
        (
            vec![
                member(b'5', "./a", "", 0o755, b""),
                member(b'2', "./link", "a", 0o777, b""),
                member(b'0', "./link/new", "", 0o644, b"x"),
            ],
            "./link/new",
        ),
        (
            vec![member(b'0', "./file", "", 0o644, b"x"), vec![1; 512]],
            "damaged",
        ),
        (
            vec![member(b'L', "././@LongLink", "", 0o644, &[b'a'; 5000])],
            "./@LongLink",
        ),
    ] {
        let server = with_archive(archive(&members));
        let home = Home::new();
        let said = refused(&home.take(&server), 125);
        assert!(
            said.contains(expected) || expected.contains("Long"),
            "{expected}: {said}"
        );
        assert_eq!(names(&home.path("")), Vec::<String>::new());
    }
    // One that ends in the middle is not taken for the whole.
    let mut cut = archive(&[root(), member(b'0', "./file", "", 0o644, &[b'x'; 5000])]);
    cut.truncate(2000);
    let home = Home::new();
    let said = refused(&home.take(&with_archive(cut)), 125);
    assert!(said.contains("truncated"), "{said}");
    assert_eq!(names(&home.path("")), Vec::<String>::new());
}

#[test]
fn of_a_hostile_archive_only_harmless_things_are_kept_and_the_rest_is_named() {
    let server = with_archive(archive(&[
        member(b'5', "./", "", 0o7777, b""),
        member(b'0', "./tool", "", 0o6755, b"#!/bin/sh"),
        member(b'5', "./sub", "", 0o755, b""),
        member(b'2', "./sub/inside", "../tool", 0o777, b""),
        member(b'2', "./passwd", "/etc/passwd", 0o777, b""),
        member(b'2', "./up", "../../outside", 0o777, b""),
        member(b'0', "./up/secret", "", 0o644, b"overwritten"),
        member(b'3', "./null", "", 0o666, b""),
        member(b'6', "./\x1b[2Jpipe", "", 0o666, b""),
    ]));
    let home = Home::new();
    let output = home.take(&server);
    let said = refused(&output, 1);
    assert!(
        said.contains("4 entries left out: ./passwd, ./up, ./null, ./\\x1b[2Jpipe"),
        "{said}"
    );
    let copy = home.path("evil");
    assert_eq!(names(&copy), ["sub", "tool", "up"]);
    // What should have gone through the link is beside it.
    assert_eq!(fs::read(copy.join("up/secret")).unwrap(), b"overwritten");
    assert!(fs::symlink_metadata(copy.join("up")).unwrap().is_dir());
    let tool = fs::metadata(copy.join("tool")).unwrap();
    assert_eq!(tool.mode() & 0o7777, 0o755);
    assert_eq!(tool.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::read(copy.join("sub/inside")).unwrap(), b"#!/bin/sh");
}

#[test]
fn what_was_there_before_is_merged_with_and_no_link_of_it_is_followed() {
    let server = with_archive(archive(&[
        member(b'5', "./", "", 0o755, b""),
        member(b'5', "./kept", "", 0o755, b""),
        member(b'0', "./kept/new", "", 0o644, b"new"),
        member(b'0', "./secret", "", 0o644, b"mine"),
    ]));
    let home = Home::new();
    home.scratch.file("home/evil/kept/old", "old");
    let outside = home.scratch.join("outside");
    symlink(outside.join("secret"), home.path("evil/secret")).unwrap();
    ok(&home.take(&server));
    assert_eq!(names(&home.path("evil/kept")), ["new", "old"]);
    assert_eq!(fs::read(home.path("evil/secret")).unwrap(), b"mine");

    fs::remove_dir_all(home.path("evil/kept")).unwrap();
    symlink(&outside, home.path("evil/kept")).unwrap();
    let said = refused(&home.take(&server), 125);
    assert!(said.contains("is in the way"), "{said}");
    fs::remove_dir_all(home.path("evil")).unwrap();
    symlink(&outside, home.path("evil")).unwrap();
    let said = refused(&home.take(&server), 125);
    assert!(said.contains("is in the way"), "{said}");
    assert_eq!(names(&home.path("")), ["evil"]);
}

#[test]
fn half_a_file_does_not_take_the_place_of_a_whole_one() {
    let files = async |request: Request| {
        if request.uri().query() == Some("stat=true") {
            let file = json!({
                "path": "/x", "name": "x", "type": "file", "size": 9, "mode": "0644", "uid": 0, "gid": 0, "mtime": 0,
            });
            return axum::Json(file).into_response();
        }
        broken("half")
    };
    let path = format!("/workspaces/{ID}/files/x");
    let server = Scripted::serve(Router::new().route(&path, get(files)));
    let scratch = Scratch::new();
    let file = scratch.file("x", "whole");
    let target = file.to_str().expect("a text");
    let said = refused(
        &run(server.url(), &["cp", &format!("{ID}:/x"), target]),
        125,
    );
    assert!(said.contains("connection to derrick broke"), "{said}");
    assert_eq!(fs::read(&file).unwrap(), b"whole");
    assert_eq!(names(scratch.path()), ["x"]);
}

#[test]
fn copying_that_is_interrupted_leaves_nothing_behind() {
    let begun = archive(&[member(b'0', "./file", "", 0o644, &[b'x'; 5000])]);
    let begun = Bytes::from(begun).slice(..2000);
    let (sent, waiting) = mpsc::channel();
    let files = async move |Query(query): Query<Value>| {
        if query["stat"] == json!("true") {
            let directory = json!({
                "path": "/evil", "name": "evil", "type": "directory", "size": 0, "mode": "0755",
                "uid": 0, "gid": 0, "mtime": 0,
            });
            return axum::Json(directory).into_response();
        }
        let pieces = futures_util::stream::unfold(Some(begun.clone()), move |begun| {
            let sent = sent.clone();
            async move {
                match begun {
                    Some(begun) => Some((Ok::<_, std::io::Error>(begun), None)),
                    None => {
                        sent.send(()).unwrap();
                        std::future::pending().await
                    }
                }
            }
        });
        Body::from_stream(pieces).into_response()
    };
    let path = format!("/workspaces/{ID}/files/evil");
    let server = Scripted::serve(Router::new().route(&path, get(files)));
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let home = Home::new();
        let mut command = client(server.url(), &["cp", &format!("{ID}:/evil"), "."]);
        command.current_dir(home.path(""));
        let child = start(&mut command);
        next(&waiting);
        send(&child, signal);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(refused(&output, code), "");
        assert_eq!(names(&home.path("")), Vec::<String>::new());
    }
}

/// A request to a scripted workspace.
struct Got {
    method: String,
    query: String,
    /// None if it broke off.
    body: Option<Vec<u8>>,
}

/// Tells of a request when it is over, in whatever way.
struct Telling {
    got: Option<Got>,
    to: mpsc::Sender<Got>,
}

impl Drop for Telling {
    fn drop(&mut self) {
        let _ = self.to.send(self.got.take().expect("it is told once"));
    }
}

/// A workspace without any file, that takes whatever it gets.
fn taking() -> (Scripted, mpsc::Receiver<Got>) {
    let (taken, got) = mpsc::channel();
    let files = async move |request: Request| {
        let query = request.uri().query().unwrap_or_default().to_owned();
        if query == "stat=true" {
            let problem = json!({ "type": "urn:derrick:problem:no-such-file", "detail": "none" });
            return (StatusCode::NOT_FOUND, axum::Json(problem)).into_response();
        }
        let mut telling = Telling {
            got: Some(Got {
                method: request.method().to_string(),
                query,
                body: None,
            }),
            to: taken,
        };
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await;
        telling.got.as_mut().expect("it is there").body = body.ok().map(|body| body.to_vec());
        axum::Json(json!({ "entries": 7, "bytes": 1 })).into_response()
    };
    let path = format!("/workspaces/{ID}/files/{{*path}}");
    let server = Scripted::serve(Router::new().route(&path, axum::routing::any(files)));
    (server, got)
}

/// What comes next; fails the test if nothing does.
#[track_caller]
fn next<T>(coming: &mpsc::Receiver<T>) -> T {
    coming.recv_timeout(GUARD).expect("nothing came")
}

#[test]
fn a_directory_goes_in_as_one_archive_with_its_modes_and_links() {
    let scratch = Scratch::new();
    let root = scratch.join("tree");
    let long = "n".repeat(200);
    scratch.file(&format!("tree/sub/{long}"), "content");
    fs::set_permissions(
        root.join("sub").join(&long),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o750)).unwrap();
    symlink("/etc/passwd", root.join("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let (server, got) = taking();
    let arguments = [
        "cp",
        "--json",
        root.to_str().unwrap(),
        &format!("{ID}:/new"),
    ];
    let output = run(server.url(), &arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(
        text(&output.stderr),
        "derrick: 1 entries left out: socket\n"
    );
    assert_eq!(
        text(&output.stdout),
        "{\"bytes\":7,\"entries\":7,\"left_out\":1}\n"
    );

    let made = next(&got);
    let body: Value = serde_json::from_slice(&made.body.expect("it is whole")).unwrap();
    assert_eq!(made.method, "POST");
    assert_eq!(
        body,
        json!({ "mkdir": { "mode": "0750", "parents": true } })
    );
    let Got {
        method,
        query,
        body,
    } = next(&got);
    assert_eq!((method.as_str(), query.as_str()), ("PUT", "archive=tar"));
    let mut found = Vec::new();
    let mut archive = tar::Archive::new(std::io::Cursor::new(body.expect("it is whole")));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        let mode = header.mode().unwrap();
        let link = entry
            .link_name()
            .unwrap()
            .map(|link| link.display().to_string());
        let name = entry.path().unwrap().display().to_string();
        found.push((name, mode, link.unwrap_or(content)));
    }
    found.sort();
    let expected = [
        ("link".to_owned(), 0o777, "/etc/passwd".to_owned()),
        (
            "sub".to_owned(),
            fs::metadata(root.join("sub")).unwrap().mode() & 0o7777,
            String::new(),
        ),
        (format!("sub/{long}"), 0o640, "content".to_owned()),
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_cannot_be_read_to_its_end_is_not_sent_as_if_it_were_whole() {
    let (server, got) = taking();
    let inside = format!("{ID}:/new");
    // The kernel lets it be opened and not be read.
    let said = refused(&run(server.url(), &["cp", "/proc/self/mem", &inside]), 125);
    assert!(said.contains("Input/output error"), "{said}");
    // The request may have been broken off before it was one.
    drop(server);
    assert!(got.iter().all(|got| got.body.is_none()));

    // Nor is what was to come after an interrupt.
    let (server, got) = taking();
    let mut child = start(client(server.url(), &["cp", "-", &inside]).stdin(Stdio::piped()));
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    // More than waits anywhere, so that the copying is under way.
    stdin.write_all(&[b'x'; 16 << 20]).unwrap();
    send(&child, Signal::SIGINT);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(refused(&output, 130), "");
    let sent = next(&got);
    assert_eq!((sent.method.as_str(), sent.body), ("PUT", None));
    drop(stdin);
}

/// Copies, and fails the test unless all was copied without a word.
#[track_caller]
fn copy(derrick: &Derrick, source: impl AsRef<str>, destination: impl AsRef<str>) {
    let arguments = ["cp", source.as_ref(), destination.as_ref()];
    let output = run(&url(derrick), &arguments);
    assert_eq!(ok(&output), "");
    assert_eq!(text(&output.stderr), "");
}

/// What is below a directory: name, mode, and content or target of each.
fn tree(root: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut unlisted = vec![String::new()];
    while let Some(directory) = unlisted.pop() {
        for name in names(&root.join(&directory)) {
            let relative = format!("{directory}{name}");
            let path = root.join(&relative);
            let there = fs::symlink_metadata(&path).unwrap();
            let content = if there.is_dir() {
                unlisted.push(format!("{relative}/"));
                Vec::new()
            } else if there.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            found.push((relative, there.mode() & 0o7777, content));
        }
    }
    found.sort();
    found
}

#[test]
fn a_file_goes_in_and_out_with_its_bytes_and_its_mode() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let scratch = Scratch::new();
    let bytes = random(20 << 20);
    let file = scratch.file("file", &bytes);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o751)).unwrap();
    let inside = |path: &str| format!("{}:{path}", workspace.id);
    let here = |name: &str| scratch.join(name).display().to_string();
    fs::create_dir(scratch.join("dir")).unwrap();
    workspace.ok("mkdir /there");
    for (source, between, destination, landed) in [
        // To a name of its own; parents are made.
        ("file", "/new/dir/name", "copy", "copy"),
        // Into what is there already, under its name.
        ("file", "/there", "dir", "dir/file"),
    ] {
        copy(&derrick, here(source), inside(between));
        let from = match between {
            "/there" => "/there/file",
            name => name,
        };
        let mode = workspace.ok(&format!("stat -c %a,%s {from}"));
        assert_eq!(mode, format!("751,{}\n", bytes.len()));
        copy(&derrick, inside(from), here(destination));
        let landed = scratch.join(landed);
        assert!(fs::read(&landed).unwrap() == bytes);
        assert_eq!(fs::metadata(&landed).unwrap().mode() & 0o7777, 0o751);
    }
    // A file of the same name is replaced.
    let small = scratch.file("small", "small");
    copy(&derrick, small.display().to_string(), inside("/there/file"));
    copy(&derrick, inside("/there/file"), here("copy"));
    assert_eq!(fs::read(scratch.join("copy")).unwrap(), b"small");
    // A pipe is none to be replaced.
    copy(&derrick, inside("/there/file"), "/dev/null");
}

#[test]
fn a_file_goes_through_pipes_and_a_directory_comes_as_an_archive() {
    let derrick = Derrick::on_host();
    let server = url(&derrick);
    let workspace = derrick.create();
    let inside = |path: &str| format!("{}:{path}", workspace.id);
    let bytes = random(5 << 20);
    let output = run_with(&server, &["cp", "-", &inside("/dir/odd name\n%?#")], &bytes);
    assert_eq!(ok(&output), "");
    let output = run(&server, &["cp", &inside("/dir/odd name\n%?#"), "-"]);
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
    let output = run(&server, &["cp", &inside("/dir"), "-"]);
    let mut archive = tar::Archive::new(output.stdout.as_slice());
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert!(
        names.iter().any(|name| name.ends_with("odd name\n%?#")),
        "{names:?}"
    );
    let said = refused(&run_with(&server, &["cp", "-", &inside("/dir")], b"x"), 125);
    assert!(said.contains("is a directory"), "{said}");
}

#[test]
fn a_directory_goes_in_and_out_as_it_is() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let scratch = Scratch::new();
    let root = scratch.join("tree");
    scratch.file("tree/sub/deeper/file", "content");
    scratch.file("tree/run.sh", "#!/bin/sh");
    scratch.file(&format!("tree/{}", "n".repeat(250)), "long");
    scratch.file("tree/odd \u{1b}\n\u{e9}", "odd");
    fs::create_dir(root.join("empty")).unwrap();
    symlink("../run.sh", root.join("sub/link")).unwrap();
    for (name, mode) in [
        ("run.sh", 0o755),
        ("sub/deeper/file", 0o600),
        ("empty", 0o700),
    ] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let original = tree(&root);
    let inside = |path: &str| format!("{}:{path}", workspace.id);
    let here = |name: &str| scratch.join(name).display().to_string();

    // To a new name, and from there to a new name here.
    copy(&derrick, here("tree"), inside("/new"));
    assert_eq!(
        workspace.ok("cat /new/sub/link; stat -c %a /new/empty"),
        "#!/bin/sh700\n"
    );
    copy(&derrick, inside("/new"), here("copy"));
    assert_eq!(tree(&scratch.join("copy")), original);
    // Into a directory that is there.
    workspace.ok("mkdir /there");
    copy(&derrick, here("tree"), inside("/there"));
    assert_eq!(workspace.ok("cat /there/tree/run.sh"), "#!/bin/sh");
    fs::create_dir(scratch.join("there")).unwrap();
    copy(&derrick, inside("/there/tree/"), here("there"));
    assert_eq!(tree(&scratch.join("there/tree")), original);
    // What is in it, over what is there.
    workspace.ok("echo changed > /new/run.sh; rm -r /new/sub");
    copy(&derrick, inside("/new/."), here("copy"));
    let run = scratch.join("copy/run.sh");
    assert_eq!(fs::read(run).unwrap(), b"changed\n");
    assert!(scratch.join("copy/sub/deeper/file").exists());
    copy(&derrick, format!("{}/.", here("tree")), inside("/new"));
    assert_eq!(
        workspace.ok("cat /new/run.sh /new/sub/deeper/file"),
        "#!/bin/shcontent"
    );
}

#[test]
fn what_cannot_be_copied_is_said_and_changes_nothing() {
    let derrick = Derrick::on_host();
    let server = url(&derrick);
    let workspace = derrick.create();
    workspace.ok("mkdir /dir; touch /dir/x; echo x > /file; mkfifo /fifo");
    let scratch = Scratch::new();
    scratch.file("dir/x", "x");
    scratch.file("file", "mine");
    let inside = |path: &str| format!("{}:{path}", workspace.id);
    let here = |name: &str| scratch.join(name).display().to_string();
    for (source, destination, code, expected) in [
        (inside("/none"), here("new"), 1, "/none"),
        (
            inside("/fifo"),
            here("new"),
            125,
            "neither a file nor a directory",
        ),
        (inside("/dir"), here("file"), 125, "in the way"),
        (
            inside("/file"),
            here("no/such/directory"),
            125,
            "No such file",
        ),
        (here("none"), inside("/new"), 125, "No such file"),
        (here("dir"), inside("/file"), 125, "in the way"),
        (here("file"), inside("/file/x"), 1, "/file"),
        (here("file"), "0000:/x".to_owned(), 1, "0000"),
    ] {
        let output = run(&server, &["cp", &source, &destination]);
        let said = refused(&output, code);
        assert!(said.contains(expected), "{source} {destination}: {said}");
    }
    assert_eq!(names(scratch.path()), ["dir", "file"]);
    assert_eq!(fs::read(scratch.join("file")).unwrap(), b"mine");
    assert_eq!(workspace.ok("cat /file"), "x\n");
}

#[test]
fn files_are_listed_with_what_they_are() {
    let derrick = Derrick::on_host();
    let server = url(&derrick);
    let workspace = derrick.create();
    workspace.ok("mkdir /dir && cd /dir && printf abc > file && chmod 640 file && ln -s file link && mkdir sub");
    let inside = |path: &str| format!("{}:{path}", workspace.id);
    assert_eq!(
        ok(&run(&server, &["ls", "-q", &inside("/dir")])),
        "file\nlink\nsub\n"
    );
    let list = ok(&run(&server, &["ls", &inside("/dir")]));
    let lines: Vec<_> = list.lines().collect();
    assert!(
        lines[0].starts_with("-rw-r-----") && lines[0].ends_with("file"),
        "{list}"
    );
    assert!(
        lines[1].starts_with('l') && lines[1].ends_with("link -> file"),
        "{list}"
    );
    assert!(lines[2].starts_with('d'), "{list}");
    let one: Value =
        serde_json::from_str(&ok(&run(&server, &["ls", "--json", &inside("/dir/file")]))).unwrap();
    assert_eq!(one["entries"][0]["size"], json!(3));
    // More than fit in one answer.
    workspace.ok("mkdir /many && cd /many && seq -w 1 2500 | xargs touch");
    let many = ok(&run(&server, &["ls", "-q", &inside("/many")]));
    assert_eq!(many.lines().count(), 2500);
    let said = refused(&run(&server, &["ls", &inside("/none")]), 1);
    assert!(said.contains("/none"), "{said}");
}

#[test]
fn snapshots_are_listed_labelled_started_from_and_forgotten() {
    let derrick = Derrick::on_host();
    let server = url(&derrick);
    let say = |arguments: &[&str]| ok(&run(&server, arguments)).trim_end().to_owned();
    let workspace = say(&["create"]);
    say(&["exec", &workspace, "--cmd", "echo one > /tmp/file"]);
    let taken = say(&["snapshot", "--label", "first \u{1b}[1m", &workspace]);
    assert_eq!(say(&["snapshots", "-q"]), taken);
    let list = say(&["snapshots", &workspace]);
    assert!(
        list.contains(&taken) && list.contains("first") && !list.contains('\u{1b}'),
        "{list}"
    );
    let shown: Value = serde_json::from_str(&say(&["show", "--json", &taken])).expect("JSON");
    assert_eq!(shown["workspace"], workspace.as_str(), "{shown}");
    assert!(say(&["show", &taken]).contains("depth"));
    assert_eq!(say(&["label", &taken, "second"]), "");
    let end = &taken[taken.len() - 8..];
    let other = say(&["create", "--snapshot", end]);
    assert_eq!(say(&["exec", &other, "--cmd", "cat /tmp/file"]), "one");
    say(&["exec", &other, "--cmd", "echo two > /tmp/file"]);
    say(&["reset", "--to", &taken, &other]);
    assert_eq!(say(&["exec", &other, "--cmd", "cat /tmp/file"]), "one");
    // Both build on it.
    let refused = run(&server, &["forget", &taken]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    say(&["rm", &workspace, &other]);
    assert_eq!(say(&["label", &taken]), "");
    let shown: Value = serde_json::from_str(&say(&["show", "--json", &taken])).expect("JSON");
    assert_eq!(shown["label"], Value::Null, "{shown}");
    // Out of it and in again.
    let scratch = Scratch::new();
    let file = scratch.join("archive").display().to_string();
    assert_eq!(say(&["export", "--zstd", &taken, &file]), "");
    let imported = say(&["import", &file]);
    let other = say(&["create", "--snapshot", &imported]);
    assert_eq!(say(&["exec", &other, "--cmd", "cat /tmp/file"]), "one");
    let printed = run(&server, &["export", &taken]);
    assert!(printed.stdout.starts_with(b"pax"), "{printed:?}");
    say(&["rm", &other]);
    assert_eq!(say(&["forget", &imported]), imported);
    assert_eq!(say(&["forget", &taken]), taken);
    assert_eq!(say(&["snapshots", "-q"]), "");
    // What cannot be written in whole is not there.
    let refused = run(&server, &["export", &taken, &file]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
}
