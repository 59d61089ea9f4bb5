//! Sessions: a shell keeps its state, and how a command in it ended is told truly, in every shell.

mod support;

use serde_json::{Value, json};
use support::{Derrick, Launch, Workspace, fixture};

/// A session of a workspace.
struct Session<'a> {
    workspace: &'a Workspace,
    name: &'static str,
}

impl Session<'_> {
    fn run_with(&self, cmd: &str, fields: &Value) -> Value {
        let mut body = fields.clone();
        body["cmd"] = json!(cmd);
        let action = format!("sessions/{}/run", self.name);
        self.workspace.post(&action, &body).expect(200).json()
    }

    fn run(&self, cmd: &str) -> Value {
        self.run_with(cmd, &json!({}))
    }

    /// Runs a command that exits with 0; what it printed.
    fn ok(&self, cmd: &str) -> String {
        let ran = self.run(cmd);
        assert_eq!(
            ran["outcome"],
            json!({"kind": "exited", "code": 0}),
            "{cmd}: {ran}"
        );
        assert_eq!(ran["session"], "idle", "{ran}");
        ran["stdout"].as_str().expect("text").to_owned()
    }

    fn state(&self) -> Value {
        let path = format!("/workspaces/{}/sessions/{}", self.workspace.id, self.name);
        self.workspace.api.get(&path).expect(200).json()["state"].clone()
    }
}

fn session<'a>(workspace: &'a Workspace, name: &'static str, shell: &str) -> Session<'a> {
    let started = workspace
        .post("sessions", &json!({ "name": name }))
        .expect(201)
        .json();
    assert_eq!(started["shell"], shell, "{started}");
    assert_eq!(started["state"], "idle", "{started}");
    Session { workspace, name }
}

/// A workspace with bash, and one with busybox's shell alone.
fn both(test: impl Fn(&Workspace, &str)) {
    let host = Derrick::on_host();
    test(&host.create(), "bash");
    let busybox = Derrick::start(json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
    }));
    test(&busybox.create(), "sh");
}

#[test]
fn a_session_keeps_its_directory_environment_functions_and_jobs() {
    both(|workspace, shell| {
        let session = session(workspace, "main", shell);
        session.ok(
            "cd /tmp; A=1; export B='two words'; f() { echo \"f $1 $A\"; }; alias x='echo aliased'",
        );
        assert_eq!(
            session.ok("pwd; f 2; sh -c 'echo $B'"),
            "/tmp\nf 2 1\ntwo words\n"
        );
        assert_eq!(session.ok("x"), "aliased\n");
        session.ok("mkfifo hold; { cat hold > /dev/null; echo done > job; } & job=$!");
        session.ok("kill -0 $job");
        session.ok("echo > hold; wait $job");
        assert_eq!(session.ok("cat job"), "done\n");
        let ran = session.run("cd /etc; echo out; echo err >&2; (exit 7)");
        assert_eq!(ran["outcome"], json!({"kind": "exited", "code": 7}));
        assert_eq!(
            (&ran["stdout"], &ran["cwd"]),
            (&json!("out\n"), &json!("/etc"))
        );
        assert!(
            ran["stderr"].as_str().expect("text").ends_with("err\n"),
            "{ran}"
        );
        assert_eq!(
            session.ok("echo \"it's $? \\\"quoted\\\"\n  and\" 'two lines'"),
            "it's 7 \"quoted\"\n  and two lines\n"
        );
    });
}

#[test]
fn no_prompt_and_no_terminal_type_gets_into_the_output() {
    both(|workspace, shell| {
        let env = json!({"PS1": "evil> ", "PS2": "more> ", "TERM": "xterm-256color", "PROMPT_COMMAND": "echo prompted"});
        workspace
            .post("sessions", &json!({"name": "s", "env": env}))
            .expect(201);
        let session = Session {
            workspace,
            name: "s",
        };
        assert_eq!(
            session.ok("PS1='$ '; PS2='> '; TERM=dumb; echo hello!"),
            "hello!\n"
        );
        let ran = session.run("printf 'no newline'; printf x >&2");
        assert_eq!(
            (&ran["stdout"], &ran["stderr"]),
            (&json!("no newline"), &json!("x")),
            "{shell}"
        );
    });
}

#[test]
fn a_syntax_error_is_told_from_a_failure_and_the_session_lives_on() {
    both(|workspace, shell| {
        let session = session(workspace, "main", shell);
        for flaw in ["if", "echo 'open", "for do", "a ( b", "echo before\n}"] {
            let ran = session.run(flaw);
            assert_eq!(
                ran["outcome"]["kind"], "syntax_error",
                "{shell}: {flaw}: {ran}"
            );
            assert_ne!(ran["stderr"], "", "{ran}");
        }
        for (cmd, code) in [
            ("(exit 2)", 2),
            ("false", 1),
            ("grep -q x /nope", 2),
            ("no-such-program", 127),
        ] {
            let ran = session.run(cmd);
            assert_eq!(
                ran["outcome"],
                json!({"kind": "exited", "code": code}),
                "{shell}: {cmd}"
            );
        }
        assert_eq!(session.ok("echo alive"), "alive\n");
    });
}

#[test]
fn a_command_that_reads_gets_the_end_at_once() {
    both(|workspace, shell| {
        let session = session(workspace, "main", shell);
        assert_eq!(
            session.ok("cat; read line || echo nothing to read"),
            "nothing to read\n"
        );
        assert_eq!(
            session.ok("echo piped | { read line; echo \"$line\"; }"),
            "piped\n"
        );
    });
}

#[test]
fn a_deadline_interrupts_the_command_and_keeps_the_session() {
    both(|workspace, shell| {
        let session = session(workspace, "main", shell);
        session.ok("X=kept; sleep 1000 & job=$!");
        let ignoring = "sh -c 'trap \"\" INT TERM; echo deaf; while :; do sleep 1000; done'";
        for endless in [
            "echo begun; sleep 1000; echo after",
            "echo begun; for i in 1 2 3; do sleep 1000; done; echo after",
            &format!("echo begun; {ignoring}"),
        ] {
            let ran = session.run_with(endless, &json!({"timeout": 0.3}));
            assert_eq!(
                ran["outcome"]["kind"], "deadline",
                "{shell}: {endless}: {ran}"
            );
            assert_eq!(ran["exit_code"], 124);
            assert_eq!(ran["session"], "idle", "{shell}: {endless}: {ran}");
            let stdout = ran["stdout"].as_str().expect("text");
            assert!(
                stdout.starts_with("begun\n") && !stdout.contains("after"),
                "{ran}"
            );
        }
        assert_eq!(session.ok("echo $X"), "kept\n");

        let ran = session.run_with("echo begun; while :; do :; done", &json!({"timeout": 0.3}));
        assert_eq!(ran["outcome"]["kind"], "deadline", "{shell}: {ran}");
        assert_eq!(ran["stdout"], "begun\n");
        match ran["session"].as_str() {
            Some("idle") => assert_eq!(session.ok("echo $X"), "kept\n"),
            // An interrupt that meets busybox's shell in malloc leaves it waiting for a lock of its own
            // for ever; it is then killed, and that is told.
            Some("ended") if shell == "sh" => assert_eq!(session.state(), "ended"),
            _ => panic!("{shell}: {ran}"),
        }
    });
}

#[test]
fn a_deadline_that_the_shell_does_not_survive_says_so() {
    both(|workspace, shell| {
        let session = session(workspace, "main", shell);
        let ran = session.run_with("trap '' INT; while :; do :; done", &json!({"timeout": 0.2}));
        assert_eq!(ran["outcome"]["kind"], "deadline", "{shell}: {ran}");
        assert_eq!(ran["session"], "ended", "{shell}: {ran}");
        let problem = workspace
            .post("sessions/main/run", &json!({"cmd": "true"}))
            .problem(409);
        assert_eq!(problem["type"], "urn:derrick:problem:session-ended");
    });
}

#[test]
fn an_interrupt_ends_the_command_and_not_the_session() {
    both(|workspace, shell| {
        let session = session(workspace, "main", shell);
        workspace.ok("rm -f /tmp/ready; mkfifo /tmp/ready");
        let path = format!("/workspaces/{}/sessions/main/run", workspace.id);
        let running = workspace.api.start(
            &path,
            json!({"cmd": "X=1; sh -c 'echo > /tmp/ready; exec sleep 1000'"}),
        );
        workspace.ok("cat /tmp/ready");
        let busy = workspace
            .post("sessions/main/run", &json!({"cmd": "true"}))
            .problem(409);
        assert_eq!(busy["type"], "urn:derrick:problem:session-busy");
        assert_eq!(session.state(), "busy");
        workspace
            .post("sessions/main/interrupt", &json!({}))
            .expect(200);
        let ran = running.answer().expect(200).json();
        assert_eq!(
            ran["outcome"],
            json!({"kind": "interrupted"}),
            "{shell}: {ran}"
        );
        assert_eq!(session.ok("echo $X"), "1\n");
        // Nothing runs: nothing is interrupted.
        workspace
            .post("sessions/main/interrupt", &json!({}))
            .expect(200);
        assert_eq!(session.ok("echo alive"), "alive\n");
    });
}

#[test]
fn what_ends_the_shell_is_reported_as_what_it_is() {
    both(|workspace, shell| {
        for (cmd, outcome) in [
            (
                "echo bye; exit 9",
                json!({"kind": "session_ended", "code": 9}),
            ),
            (
                "echo bye; kill -9 $$",
                json!({"kind": "session_ended", "code": 137}),
            ),
            ("echo bye; exec sleep 1000", json!({"kind": "replaced"})),
        ] {
            let session = session(workspace, "main", shell);
            let ran = session.run(cmd);
            assert_eq!(ran["outcome"], outcome, "{shell}: {cmd}");
            assert_eq!(
                (&ran["stdout"], &ran["session"]),
                (&json!("bye\n"), &json!("ended"))
            );
            assert_eq!(session.state(), "ended");
            // The next of its name takes its place.
        }
    });
}

#[test]
fn what_ends_the_session_from_without_is_told_for_what_it_is() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let ends: [(&str, &dyn Fn()); 3] = [
        ("killed", &|| {
            let path = format!("/workspaces/{}/sessions/main", workspace.id);
            derrick.api.delete(&path).expect(200);
        }),
        ("reset", &|| drop(workspace.reset())),
        ("removed", &|| assert!(workspace.delete())),
    ];
    for (kind, end) in ends {
        session(&workspace, "main", "bash");
        workspace.ok("rm -f /tmp/ready; mkfifo /tmp/ready");
        let path = format!("/workspaces/{}/sessions/main/run", workspace.id);
        let line = json!({ "cmd": "echo > /tmp/ready; sleep 1000" });
        let running = derrick.api.start(&path, line);
        workspace.ok("cat /tmp/ready");
        end();
        let ran = running.answer().expect(200).json();
        assert_eq!(ran["outcome"], json!({ "kind": kind }), "{ran}");
        assert_eq!(
            (&ran["exit_code"], &ran["session"]),
            (&json!(137), &json!("ended"))
        );
    }
}

#[test]
fn the_end_is_told_whatever_a_command_prints_or_closes() {
    both(|workspace, shell| {
        let session = session(workspace, "main", shell);
        session.run("exec 3>&- 4>&- 5>&- 2>&-");
        assert_eq!(session.ok("echo alive"), "alive\n");
        assert_eq!(session.ok("printf '1 0 forged\\0'"), "1 0 forged\0");
        assert_eq!(
            session.ok("printf() { echo mine; }; alias command=false; echo x"),
            "x\n"
        );
        let ran = session.run("head -c 5000000 /dev/zero | tr '\\0' x; echo end");
        let stdout = ran["stdout"].as_str().expect("text");
        assert!(
            stdout.ends_with("xend\n") && stdout.contains("bytes omitted"),
            "{}",
            stdout.len()
        );
    });
}

#[test]
fn sessions_are_apart_and_end_with_their_processes() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let (one, other) = (
        session(&workspace, "one", "bash"),
        session(&workspace, "other", "bash"),
    );
    one.ok("X=1; cd /tmp; sleep 1000 & echo $! > /tmp/pid");
    assert_eq!(other.ok("echo \"$X\"; pwd"), "\n/\n");
    let problem = workspace
        .post("sessions", &json!({"name": "one"}))
        .problem(409);
    assert_eq!(problem["type"], "urn:derrick:problem:session-exists");
    let sessions = format!("/workspaces/{}/sessions", workspace.id);
    let listed = workspace.api.get(&sessions).expect(200).json();
    let names: Vec<_> = listed["sessions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|s| s["name"].clone())
        .collect();
    assert_eq!(names, ["one", "other"]);
    let path = format!("{sessions}/one");
    assert_eq!(workspace.api.delete(&path).expect(200).json(), json!(true));
    assert_eq!(workspace.api.delete(&path).expect(200).json(), json!(false));
    workspace.api.get(&path).problem(404);
    workspace.ok("! kill -0 $(cat /tmp/pid)");
    workspace.reset();
    assert_eq!(other.state(), "ended");
}

#[test]
fn a_session_begins_where_and_as_it_was_asked() {
    let derrick = Launch::new(json!({"name": "test", "env": {"FROM_CONFIG": "1"}})).start();
    let workspace = derrick.create();
    let body = json!({"name": "s.1_-", "cwd": "/usr", "env": {"MINE": "2"}, "user": 0});
    workspace.post("sessions", &body).expect(201);
    let ran = workspace.post(
        "sessions/s.1_-/run",
        &json!({"cmd": "pwd; echo $FROM_CONFIG $MINE; id -u"}),
    );
    assert_eq!(ran.expect(200).json()["stdout"], "/usr\n1 2\n0\n");
    for (body, field) in [
        (json!({}), "name"),
        (json!({"name": ""}), "name"),
        (json!({"name": "a/b"}), "name"),
        (json!({"name": "."}), "name"),
        (json!({"name": ".."}), "name"),
        (json!({"name": "x", "user": ""}), "user"),
        (json!({"name": "x", "nmae": 1}), "nmae"),
        (json!({"name": "x", "cwd": "/no/such"}), "/no/such"),
        (
            json!({"name": "x", "user": "nobody-of-that-name"}),
            "nobody-of-that-name",
        ),
    ] {
        let answer = workspace.post("sessions", &body);
        let status = answer.status;
        let is_of_the_workspace = ["/no/such", "nobody-of-that-name"].contains(&field);
        let expected = if is_of_the_workspace { 422 } else { 400 };
        assert_eq!(status, expected, "{body}: {}", answer.text());
        let problem = answer.problem(status);
        assert!(
            problem["detail"].as_str().expect("text").contains(field),
            "{body}: {problem}"
        );
    }
    for body in [
        json!({}),
        json!({"cmd": "true", "timeout": 0}),
        json!({"cmd": "a\u{0}b"}),
    ] {
        let answer = workspace.post("sessions/s.1_-/run", &body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
    }
    for name in ["none", "%ff"] {
        let path = format!("sessions/{name}/run");
        let problem = workspace.post(&path, &json!({"cmd": "true"})).problem(404);
        assert_eq!(problem["type"], "urn:derrick:problem:no-such-session");
    }
}

#[test]
fn sessions_that_ended_take_nobodys_place() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for number in 0..105 {
        let name = format!("s{number}");
        workspace
            .post("sessions", &json!({ "name": name }))
            .expect(201);
        let ran = workspace.post(&format!("sessions/{name}/run"), &json!({ "cmd": "exit 0" }));
        assert_eq!(ran.expect(200).json()["session"], "ended");
    }
    for number in 0..100 {
        let name = format!("t{number}");
        workspace
            .post("sessions", &json!({ "name": name }))
            .expect(201);
    }
    workspace
        .post("sessions", &json!({ "name": "one-more" }))
        .problem(429);
}

#[test]
fn an_alias_does_not_come_between_a_command_and_its_outcome() {
    both(|workspace, shell| {
        let session = session(workspace, "s", shell);
        session.ok("alias eval=false; alias exit=false; alias printf=false; alias command=false");
        assert_eq!(session.ok("echo runs"), "runs\n");
        let ran = session.run("(\\exit 7)");
        assert_eq!(ran["outcome"], json!({"kind": "exited", "code": 7}));
        assert_eq!(session.ok("echo $?"), "7\n");
    });
}
