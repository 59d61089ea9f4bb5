//! `derrick run` and `derrick check`: what a person or a script gets from the command line.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::{Lives, Mode, Scratch, binary, fixture, mode, on_terminal, quoted};

/// `derrick run` with a state directory of the test's own.
fn derrick_run(scratch: &Scratch) -> Command {
    let mut command = Command::new(binary());
    command
        .arg("run")
        .arg("--state-dir")
        .arg(scratch.join("state"));
    command
}

/// Runs a command in a throw-away workspace, with this stdin.
fn run(scratch: &Scratch, arguments: &[&str], stdin: &[u8]) -> Output {
    let mut child = derrick_run(scratch)
        .arg("--")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cannot start derrick");
    let mut input = child.stdin.take().expect("stdin is a pipe");
    std::thread::scope(|scope| {
        // A command that reads nothing may end first.
        scope.spawn(move || input.write_all(stdin));
        child.wait_with_output().expect("derrick ends")
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_exit_code_is_the_commands_own() {
    let scratch = Scratch::new();
    for (arguments, code) in [
        (&["true"][..], 0),
        (&["false"], 1),
        (&["sh", "-c", "exit 42"], 42),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
    ] {
        let output = run(&scratch, arguments, b"");
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
    }
}

#[test]
fn arguments_reach_the_program_as_they_were_given() {
    let scratch = Scratch::new();
    let awkward = ["a b", "", "$HOME", "*", "'\"", "-n", "--", "é\n"];
    let mut arguments = vec!["printf", "<%s>"];
    arguments.extend(awkward);
    let output = run(&scratch, &arguments, b"");
    let expected: String = awkward.map(|word| format!("<{word}>")).concat();
    assert_eq!(text(&output.stdout), expected, "{output:?}");
}

#[test]
fn every_byte_passes_through_stdin_and_stdout_and_stderr_is_apart() {
    let scratch = Scratch::new();
    let bytes: Vec<u8> = (0..5_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let output = run(&scratch, &["sh", "-c", "cat; echo done >&2"], &bytes);
    assert!(output.status.success());
    assert!(
        output.stdout == bytes,
        "{} bytes of {} came back",
        output.stdout.len(),
        bytes.len()
    );
    assert_eq!(text(&output.stderr), "done\n");
}

#[test]
fn a_command_opens_its_streams_by_name_whoever_it_is() {
    let users: &[&str] = match mode() {
        Mode::Single => &["root"],
        Mode::Root | Mode::Subordinate => &["root", "daemon"],
    };
    for user in users {
        let scratch = Scratch::new();
        let config = scratch.file(
            "config.json",
            json!({ "name": "test", "user": user }).to_string(),
        );
        let mut child = derrick_run(&scratch)
            .arg("-w")
            .arg(config)
            .args(["--", "sh", "-c"])
            .arg("cat /dev/stdin > /dev/stdout; echo err > /dev/stderr")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot start derrick");
        let mut input = child.stdin.take().expect("stdin is a pipe");
        input.write_all(b"in\n").expect("it is read");
        drop(input);
        let output = child.wait_with_output().expect("derrick ends");
        assert_eq!(text(&output.stderr), "err\n", "{user}");
        assert_eq!(text(&output.stdout), "in\n", "{user}");
    }
}

#[test]
fn without_input_a_command_reads_its_end() {
    let scratch = Scratch::new();
    let output = derrick_run(&scratch)
        .args(["--", "cat"])
        .stdin(Stdio::null())
        .output()
        .expect("cannot start derrick");
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(0), String::new())
    );
}

#[test]
fn without_a_terminal_there_is_none() {
    let scratch = Scratch::new();
    let output = run(&scratch, &["sh", "-c", "tty; test -t 1 || echo none"], b"");
    assert_eq!(text(&output.stdout), "not a tty\nnone\n");
}

#[test]
fn on_a_terminal_the_command_has_one_of_the_workspaces_own() {
    let scratch = Scratch::new();
    let mut command = derrick_run(&scratch);
    command.args([
        "--",
        "sh",
        "-c",
        "test -t 0 && test -t 1 && test -t 2 && tty && stty size && echo $TERM && echo ready
         read line && echo \"heard $line\" && ls -1 /dev/pts && ps -o tty= -p $$",
    ]);
    let line = format!("stty rows 33 columns 101; {}", quoted(&command));
    let printed = on_terminal(line.as_ref(), b"hello\r").replace('\r', "");
    for expected in [
        "/dev/pts/0\n",
        "33 101\n",
        "xterm-256color\n",
        "heard hello\n",
        "0\nptmx\n",
        "pts/0\n",
    ] {
        assert!(printed.contains(expected), "no {expected:?} in {printed}");
    }
}

#[test]
fn a_users_terminal_is_the_users_own() {
    if mode() == Mode::Single {
        return;
    }
    let scratch = Scratch::new();
    let config = scratch.file("config.json", r#"{ "name": "test", "user": "4711" }"#);
    let mut command = derrick_run(&scratch);
    command.arg("-w").arg(config).args([
        "--",
        "sh",
        "-c",
        "echo \"named $(stat -c %u $(tty))\" > $(tty); echo ready",
    ]);
    let printed = on_terminal(quoted(&command).as_ref(), b"");
    assert!(printed.contains("named 4711"), "{printed}");
}

#[test]
fn ctrl_c_on_the_terminal_is_the_commands_and_the_terminal_is_itself_again() {
    let scratch = Scratch::new();
    let mut command = derrick_run(&scratch);
    command.args([
        "--",
        "sh",
        "-c",
        "trap 'echo interrupted; exit 5' INT; echo ready; while :; do read line; done",
    ]);
    let line = format!(
        "before=$(stty -g); {}; echo \"code $?\"; test \"$before\" = \"$(stty -g)\" && echo restored",
        quoted(&command)
    );
    let printed = on_terminal(line.as_ref(), b"\x03");
    for expected in ["interrupted", "code 5", "restored"] {
        assert!(printed.contains(expected), "no {expected:?} in {printed}");
    }
}

#[test]
fn a_config_is_set_up_and_used() {
    let scratch = Scratch::new();
    let config = scratch.file(
        "config.json",
        json!({
            "name": "test",
            "base": { "type": "tarball", "path": fixture("busybox.tar") },
            "setup_script": "echo from-setup > /srv-file",
            "env": { "COLOUR": "green" },
        })
        .to_string(),
    );
    let output = derrick_run(&scratch)
        .arg("-w")
        .arg(&config)
        .args([
            "--",
            "sh",
            "-c",
            "cat /srv-file; echo $COLOUR; echo x > /new",
        ])
        .output()
        .expect("cannot start derrick");
    assert_eq!(text(&output.stdout), "from-setup\ngreen\n", "{output:?}");
}

#[test]
fn a_failure_of_derrick_is_not_taken_for_one_of_the_command() {
    let scratch = Scratch::new();
    let config = |name: &str, text: &str| scratch.file(name, text);
    for (config, expected) in [
        (scratch.join("missing.json"), "missing.json"),
        (config("brace.json", "{"), "brace.json:1"),
        (
            config("typo.json", r#"{ "name": "test", "bse": "host" }"#),
            "base",
        ),
        (
            config(
                "setup.json",
                r#"{ "name": "test", "setup_script": "echo it broke; exit 3" }"#,
            ),
            "exit code 3",
        ),
    ] {
        let output = derrick_run(&scratch)
            .arg("-w")
            .arg(&config)
            .args(["--", "true"])
            .output()
            .expect("cannot start derrick");
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let said = text(&output.stderr);
        assert!(said.contains(expected), "no {expected:?} in {said}");
        assert_eq!(text(&output.stdout), "");
    }
}

#[test]
fn a_kind_of_namespace_that_cannot_be_had_is_named_with_the_errno() {
    for kind in ["net", "ipc", "uts", "cgroup", "pid", "mnt", "user"] {
        let scratch = Scratch::new();
        // In a user namespace whose own limit is none, as on a host that forbids them.
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "sh", "-c"])
            .arg("echo 0 > /proc/sys/user/max_$1_namespaces && shift && exec \"$@\"")
            .args(["sh", kind])
            .arg(binary())
            .args(["run", "--state-dir"])
            .arg(scratch.join("state"))
            .args(["--", "true"])
            .output()
            .expect("cannot start unshare");
        assert_eq!(output.status.code(), Some(125), "{kind}: {output:?}");
        let said = text(&output.stderr);
        let named = match kind {
            "mnt" => "mount namespace",
            "user" => "user namespace",
            _ => &format!("creating the {kind} namespace"),
        };
        assert!(said.contains(named), "no {named:?} in {said}");
        assert!(said.contains("No space left on device"), "{kind}: {said}");
    }
}

#[test]
fn a_log_filter_that_is_none_is_named() {
    let scratch = Scratch::new();
    for (filter, told) in [
        ("derrick=loud", true),
        ("derrick=error", false),
        ("", false),
    ] {
        let output = derrick_run(&scratch)
            .args(["--", "true"])
            .env("DERRICK_LOG", filter)
            .stdin(Stdio::null())
            .output()
            .expect("cannot start derrick");
        assert!(output.status.success(), "{output:?}");
        let said = text(&output.stderr);
        assert_eq!(said.contains("DERRICK_LOG"), told, "{filter}: {said}");
    }
}

#[test]
fn nothing_is_left_of_a_throw_away_workspace() {
    let scratch = Scratch::new();
    let output = run(
        &scratch,
        &["sh", "-c", "mkdir -p /a/b; chmod 0 /a; (sleep 1000 &)"],
        b"",
    );
    assert!(output.status.success(), "{output:?}");
    // Nobody is left who could empty them later.
    for directory in ["workspaces", "trash"] {
        let left: Vec<_> = fs::read_dir(scratch.join("state").join(directory))
            .into_iter()
            .flatten()
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert_eq!(support::mounts_below(scratch.path()), Vec::<String>::new());
}

#[test]
fn ending_derrick_run_in_any_way_ends_the_command() {
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGKILL,
    ] {
        let scratch = Scratch::new();
        let mut child = derrick_run(&scratch)
            .args([
                "--",
                "sh",
                "-c",
                "(setsid sleep 1000 &); echo ready; exec sleep 1000",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("cannot start derrick");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("the command prints");
        assert_eq!(line, "ready\n");
        let pid = child.id().cast_signed();
        let lives = Lives::below(pid);
        assert!(lives.count() >= 3, "{} processes", lives.count());
        kill(Pid::from_raw(pid), signal).expect("it runs");
        let status = child.wait().expect("it ends");
        assert!(!status.success(), "{signal}: {status}");
        lives.assert_gone();
    }
}

#[test]
fn derrick_run_shares_the_state_directory_with_a_provider() {
    let scratch = Scratch::new();
    let derrick = support::Launch::new(json!({ "name": "test" }))
        .state(&scratch.join("state"))
        .start();
    let workspace = derrick.create();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let scratch = &scratch;
            scope.spawn(move || {
                let output = run(scratch, &["echo", &n.to_string()], b"");
                assert_eq!(text(&output.stdout), format!("{n}\n"), "{output:?}");
            });
        }
    });
    assert_eq!(workspace.ok("echo still here"), "still here\n");
    assert_eq!(derrick.api.list(), [workspace.id.as_str()]);
}

// --- check ---

fn check(arguments: &[&str]) -> Output {
    let scratch = Scratch::new();
    Command::new(binary())
        .arg("check")
        .arg("--state-dir")
        .arg(scratch.path())
        .args(arguments)
        .output()
        .expect("cannot start derrick")
}

#[test]
fn check_says_that_ns_works_here_and_in_which_mode() {
    let output = check(&[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = text(&output.stdout);
    let last = printed.lines().last().unwrap_or_default();
    assert!(last.starts_with("ns works here"), "{printed}");
    let expected = match mode() {
        Mode::Root => "as root ranges",
        Mode::Subordinate => "with subordinate ids",
        Mode::Single => "with a single id",
    };
    assert!(last.contains(expected), "{printed}");
    if mode() == Mode::Single {
        assert!(
            printed.contains("subuid"),
            "no fix for the missing ids in\n{printed}"
        );
    }
}

#[test]
fn check_tells_a_program_the_same() {
    let output = check(&["--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(report["ns_works"], json!(true), "{report}");
    let expected = match mode() {
        Mode::Root => "ranges",
        Mode::Subordinate => "subordinate",
        Mode::Single => "single",
    };
    assert_eq!(report["identity"], json!(expected), "{report}");
    for fact in report["facts"].as_array().expect("there are facts") {
        if fact["state"] != json!("ok") {
            assert!(
                fact["effect"].as_str().is_some_and(|text| !text.is_empty()),
                "{fact}"
            );
        }
    }
}

#[test]
fn check_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let status = Command::new(binary())
        .arg("check")
        .arg("--state-dir")
        .arg(scratch.join("not-there-yet"))
        .stdout(Stdio::null())
        .status()
        .expect("cannot start derrick");
    assert!(status.success());
    let left: Vec<_> = fs::read_dir(scratch.path()).expect("it is there").collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(support::mounts_below(scratch.path()), Vec::<String>::new());
}

#[test]
fn check_says_what_is_missing_where_no_user_namespace_can_be_had() {
    let scratch = Scratch::new();
    // In a user namespace whose own limit is none, as on a host that forbids them.
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c"])
        .arg("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"")
        .arg("sh")
        .arg(binary())
        .arg("check")
        .arg("--state-dir")
        .arg(scratch.path())
        .output()
        .expect("cannot start unshare");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = text(&output.stdout);
    assert!(printed.contains("MISSING"), "{printed}");
    assert!(printed.contains("max_user_namespaces"), "{printed}");
    assert!(printed.contains("ns does not work here"), "{printed}");
}

#[test]
fn modes_that_do_not_exist_are_refused_with_those_that_do() {
    for (option, value, exists) in [("-p", "docker", "ns"), ("-s", "nats", "http")] {
        let output = Command::new(binary())
            .args([option, value])
            .output()
            .expect("cannot start derrick");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = text(&output.stderr);
        assert!(
            said.contains(value) && said.contains(&format!("those that do: {exists}")),
            "{said}"
        );
    }
}

#[test]
fn the_shipped_schema_is_what_derrick_prints() {
    let output = Command::new(binary())
        .arg("schema")
        .output()
        .expect("cannot start derrick");
    let shipped = fs::read_to_string(support::source().join("config.schema.json"))
        .expect("the schema is shipped");
    assert_eq!(text(&output.stdout), shipped);
}
