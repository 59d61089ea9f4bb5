//! Commands: what they print comes back as written, how they end is told truly, and a deadline ends all of them.

mod support;

use serde_json::json;
use support::{Derrick, Workspace, fixture};

#[test]
fn stdout_and_stderr_come_interleaved_as_written() {
    let derrick = Derrick::on_host();
    let printed = derrick
        .create()
        .ok("for n in $(seq 500); do echo out $n; echo err $n >&2; done");
    let expected: String = (1..=500).map(|n| format!("out {n}\nerr {n}\n")).collect();
    assert_eq!(printed, expected);
}

#[test]
fn exit_codes_are_the_commands_own() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("touch /tmp/not-executable");
    for (cmd, exit_code) in [
        ("true", 0),
        ("false", 1),
        ("exit 42", 42),
        ("exit 255", 255),
        // A code that derrick itself uses for a deadline is still the command's own.
        ("exit 124", 124),
        ("no-such-program", 127),
        ("/tmp/not-executable", 126),
    ] {
        let ran = workspace.sh(cmd);
        assert_eq!(ran.exit_code, exit_code, "{cmd}: {}", ran.output);
        assert!(!ran.output.contains("deadline"), "{cmd}: {}", ran.output);
    }
}

#[test]
fn a_command_that_kills_itself_was_killed_by_that_signal_and_not_by_a_deadline() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for (signal, exit_code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139), ("ALRM", 142)] {
        let ran = workspace.sh_with(
            &format!("echo before; kill -{signal} $$; echo after"),
            &json!({ "timeout": 60 }),
        );
        assert_eq!(ran.exit_code, exit_code, "{signal}");
        assert_eq!(ran.output, "before\n", "{signal}");
    }
}

#[test]
fn a_background_child_outlives_its_command() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkfifo /tmp/go /tmp/done");
    workspace.ok("(read line < /tmp/go; echo \"heard $line\" > /tmp/done) > /dev/null 2>&1 &");
    assert_eq!(
        workspace.ok("echo you > /tmp/go; cat /tmp/done"),
        "heard you\n"
    );
}

#[test]
fn a_deadline_of_one_command_leaves_the_others_alone() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkfifo /tmp/started /tmp/go");
    let other = workspace.start("echo > /tmp/started; read line < /tmp/go; echo \"heard $line\"");
    workspace.ok("read line < /tmp/started");
    let ran = workspace.sh_with("sleep 1000", &json!({ "timeout": 1 }));
    assert_eq!(ran.exit_code, 124, "{}", ran.output);
    workspace.ok("echo you > /tmp/go");
    assert_eq!(
        other.answer().expect(200).json(),
        json!({ "output": "heard you\n", "exit_code": 0 })
    );
}

#[test]
fn a_command_that_ends_in_time_is_not_touched_by_its_deadline() {
    let derrick = Derrick::on_host();
    let ran = derrick
        .create()
        .sh_with("echo quick", &json!({ "timeout": 100 }));
    assert_eq!(ran.expect(0), "quick\n");
}

#[test]
fn a_timeout_of_nonsense_is_the_callers_error() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for timeout in [json!(-1), json!("soon"), json!(1.5)] {
        let body = json!({ "cmd": "true", "timeout": timeout });
        let problem = workspace.post("cmd_with_output", &body).problem(400);
        assert!(problem.to_string().contains("timeout"), "{problem}");
    }
}

#[test]
fn commands_of_one_workspace_run_at_the_same_time() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("cd /tmp; for n in $(seq 10); do mkfifo arrived.$n go.$n; done");
    let commands: Vec<_> = (1..=10)
        .map(|n| {
            workspace.start(&format!(
                "cd /tmp; echo > arrived.{n}; read line < go.{n}; echo {n}"
            ))
        })
        .collect();
    // Nobody goes before everybody has arrived.
    workspace.ok("cd /tmp; for n in $(seq 10); do read line < arrived.$n; done");
    workspace.ok("cd /tmp; for n in $(seq 10); do echo > go.$n; done");
    for (n, command) in (1..=10).zip(commands) {
        assert_eq!(
            command.answer().expect(200).json()["output"],
            json!(format!("{n}\n"))
        );
    }
}

#[test]
fn commands_of_several_workspaces_run_at_the_same_time() {
    let derrick = Derrick::on_host();
    let workspaces: Vec<Workspace> = (0..5).map(|_| derrick.create()).collect();
    let commands: Vec<_> = workspaces
        .iter()
        .map(|workspace| {
            workspace.ok("mkfifo /tmp/arrived /tmp/go");
            workspace.start("echo > /tmp/arrived; read line < /tmp/go; echo $line")
        })
        .collect();
    for workspace in &workspaces {
        workspace.ok("read line < /tmp/arrived");
    }
    for workspace in &workspaces {
        workspace.ok("echo on > /tmp/go");
    }
    for command in commands {
        assert_eq!(command.answer().expect(200).json()["output"], json!("on\n"));
    }
}

#[test]
fn a_flood_of_output_is_bounded_and_the_answer_says_where_it_was_cut() {
    let derrick = Derrick::on_host();
    let printed = derrick
        .create()
        .ok("echo first; head -c 20971520 /dev/zero | tr '\\0' x; echo; echo last");
    assert!(
        printed.len() < 20 << 20,
        "{} bytes came back",
        printed.len()
    );
    assert!(printed.starts_with("first\nxxx"));
    assert!(printed.ends_with("xxx\nlast\n"));
    let middle = printed.replace('x', "");
    assert!(middle.contains("omitted"), "the cut says {middle:?}");
}

#[test]
fn output_that_is_not_text_comes_back_as_text_that_says_so() {
    let derrick = Derrick::on_host();
    assert_eq!(
        derrick.create().ok("printf 'a\\377b\\000c'"),
        "a\u{fffd}b\0c"
    );
}

#[test]
fn a_base_with_bash_gets_bash_and_one_without_gets_sh() {
    let host = Derrick::on_host();
    assert_eq!(
        host.create().ok("[[ -n $BASH_VERSION ]] && echo bash"),
        "bash\n"
    );
    let busybox = Derrick::start(json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
    }));
    assert_eq!(busybox.create().ok("echo ${BASH_VERSION:-sh}"), "sh\n");
}

#[test]
fn a_missing_working_dir_is_the_callers_error_and_is_named() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("touch /tmp/file");
    for missing in ["/no/such/directory", "no-such-directory", "/tmp/file"] {
        let body = json!({ "cmd": "pwd", "working_dir": missing });
        let answer = workspace.post("cmd_with_output", &body);
        let status = answer.status;
        let problem = answer.problem(status);
        assert!((400..500).contains(&status), "{problem}");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(missing), "{problem}");
    }
}

#[test]
fn stdin_is_empty() {
    let derrick = Derrick::on_host();
    assert_eq!(derrick.create().ok("cat; echo end"), "end\n");
}

#[test]
fn words_with_every_awkward_byte_reach_the_command_unchanged() {
    let derrick = Derrick::on_host();
    let awkward = "a 'b' \"c\" $d `e` \\f\n\tg; h & i | j > k é \u{1f600}";
    let ran = derrick.create().sh_with(
        "printf %s \"$AWKWARD\"",
        &json!({ "env": { "AWKWARD": awkward } }),
    );
    assert_eq!(ran.expect(0), awkward);
}

#[test]
fn a_script_of_a_mebibyte_is_run_as_a_short_one_is() {
    for derrick in [
        Derrick::on_host(),
        Derrick::start(json!({
            "name": "busybox",
            "base": { "type": "tarball", "path": fixture("busybox.tar") },
        })),
    ] {
        let workspace = derrick.create();
        let script = |comment: usize| {
            let line = "# a line that only takes room\n";
            let comment = line.repeat(comment / line.len());
            format!(
                "echo \"$0 $#\"\n{comment}read line || echo \"no input\"\nls /proc/self/fd | tr '\\n' ' '\nset -e\nfalse\necho after"
            )
        };
        let short = workspace.sh(&script(0));
        assert_eq!(short.exit_code, 1, "{}", short.output);
        for size in [128 << 10, 1 << 20] {
            assert_eq!(workspace.sh(&script(size)), short);
        }
        let filler = ":\n".repeat(1 << 19);
        assert_eq!(workspace.sh(&format!("{filler}exit 42")).exit_code, 42);
        assert_eq!(workspace.sh(&format!("{filler}if")).exit_code, 2);
        let killed = workspace.sh(&format!("{filler}kill -TERM $$"));
        assert_eq!(killed.exit_code, 143);
        let body =
            json!({ "cmd": format!("{filler}cat"), "stdin": { "text": "read" }, "wait": true });
        let ran = workspace.post("execs", &body).expect(201).json();
        assert_eq!(ran["output"]["stdout"], "read");
        let terminal = json!({ "cmd": format!("{filler}tty > /dev/null && echo yes"), "tty": { "rows": 24, "cols": 80 }, "wait": true });
        let ran = workspace.post("execs", &terminal).expect(201).json();
        assert_eq!(ran["output"]["stdout"], "yes\r\n");
        assert_eq!(
            workspace.cmd(&format!("{filler}true")).expect(200).text(),
            "null"
        );
    }
}
