//! What execs are given: stdin, signals, a terminal; and what no request may ask for.

mod support;

use serde_json::{Value, json};
use support::{Derrick, Exec, Workspace};

// --- stdin ---

/// An exec that reads what clients write.
fn reading(workspace: &Workspace, cmd: &str) -> Exec {
    workspace.exec(&json!({ "cmd": cmd, "stdin": "open" }))
}

/// Bytes of which no part is like another.
fn bytes(count: usize) -> Vec<u8> {
    let mut all: Vec<u8> = (0..=count / 8)
        .flat_map(|n| format!("{n:07}\n").into_bytes())
        .collect();
    all.truncate(count);
    all
}

#[test]
fn fifty_mebibytes_go_through_stdin_unchanged() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let sent = bytes(50 << 20);
    let exec = reading(&workspace, "tee /tmp/copy | sha256sum; wc -c < /tmp/copy");
    let answer = exec.write_last(&sent).expect(200).json();
    assert_eq!(answer, json!({ "accepted": 50 << 20, "open": false }));
    let expected = {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut sum = Command::new("sha256sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sha256sum can be started");
        sum.stdin
            .take()
            .expect("a pipe")
            .write_all(&sent)
            .expect("it reads");
        String::from_utf8(sum.wait_with_output().expect("it ends").stdout).expect("it is text")
    };
    assert_eq!(exec.printed("stdout"), format!("{expected}{}\n", 50 << 20));
}

#[test]
fn what_comes_with_the_request_is_all_that_is_read() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let text = "é\n".repeat(100_000);
    for (stdin, expected) in [
        (json!({ "text": text }), text.as_str()),
        (json!({ "base64": "aGVsbG8=" }), "hello"),
        (json!({ "text": "" }), ""),
        (json!("none"), ""),
    ] {
        let body = json!({ "argv": ["cat"], "stdin": stdin });
        let exec = workspace.exec(&body);
        assert!(exec.printed("stdout") == expected, "another text");
        assert_eq!(exec.show()["stdin"], "none");
        let problem = exec.write(b"more").problem(409);
        assert_eq!(problem["type"], "urn:derrick:problem:stdin-closed");
    }
}

#[test]
fn what_does_not_read_what_came_with_the_request_ends_all_the_same() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let text = "x".repeat(1 << 20);
    let ended = workspace.run_with(&json!({ "cmd": "exit 5", "stdin": { "text": text } }));
    assert_eq!(ended["exit_code"], 5);
}

#[test]
fn stdin_stays_open_between_writers_and_ends_when_it_is_closed() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = reading(
        &workspace,
        "read a; echo got $a; read b; echo got $b; cat; echo end",
    );
    assert_eq!(exec.show()["stdin"], "open");
    for part in ["one\n", "two\n"] {
        let answer = exec.write(part.as_bytes()).expect(200).json();
        assert_eq!(answer, json!({ "accepted": 4, "open": true }));
        exec.until_printed(&format!("got {part}"));
    }
    assert_eq!(exec.show()["state"], "running");
    let answer = exec.write_last(b"").expect(200).json();
    assert_eq!(answer, json!({ "accepted": 0, "open": false }));
    assert_eq!(exec.printed("stdout"), "got one\ngot two\nend\n");
    assert_eq!(exec.show()["stdin"], "closed");
}

#[test]
fn what_was_closed_takes_no_more_and_is_told_as_closed() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = reading(&workspace, "cat; echo end; sleep 1000");
    exec.write_last(b"").expect(200);
    exec.until_printed("end");
    assert_eq!(exec.show()["stdin"], "closed");
    for answer in [exec.write(b"more"), exec.write(b""), exec.write_last(b"")] {
        let problem = answer.problem(409);
        assert_eq!(problem["type"], "urn:derrick:problem:stdin-closed");
        assert!(
            problem["detail"]
                .to_string()
                .contains("closed by a request"),
            "{problem}"
        );
    }
}

#[test]
fn a_writer_is_told_how_much_was_taken_by_a_reader_that_closed() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = reading(
        &workspace,
        "head -c 100000 > /dev/null; exec <&-; echo closed; sleep 1000",
    );
    let problem = exec.write(&bytes(1 << 20)).problem(409);
    assert!(
        problem["detail"]
            .to_string()
            .contains("it closed its stdin"),
        "{problem}"
    );
    let accepted = problem["accepted"].as_u64().expect("a number");
    // What head read, and what was in the pipe by then.
    assert!(
        (100_000..=100_000 + (1 << 17)).contains(&accepted),
        "{accepted}"
    );
    exec.until_printed("closed");
    assert_eq!(exec.show()["stdin"], "closed");
    assert_eq!(exec.write(b"x").problem(409)["accepted"], 0);
}

#[test]
fn a_writer_is_answered_when_the_exec_ends_that_does_not_read() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = reading(&workspace, "echo there; sleep 1000");
    let writer = exec.start_writing(bytes(10 << 20));
    exec.until_printed("there");
    assert_eq!(exec.kill()["outcome"]["kind"], "killed");
    let problem = writer.answer().problem(409);
    let accepted = problem["accepted"].as_u64().expect("a number");
    assert!(accepted <= 1 << 20, "{accepted} bytes were taken by nobody");
}

#[test]
fn an_exec_without_an_open_stdin_takes_nothing() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("cat; echo end; sleep 1000");
    exec.until_printed("end");
    let problem = exec.write(b"x").problem(409);
    assert!(
        problem["detail"]
            .to_string()
            .contains("not started with an open stdin"),
        "{problem}"
    );
    exec.kill();
    assert_eq!(
        exec.write(b"x").problem(409)["type"],
        "urn:derrick:problem:stdin-closed"
    );
}

#[test]
fn an_answer_that_comes_before_the_body_was_read_ends_its_connection() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("true");
    for unread in [exec.write(&bytes(1 << 20)), exec.write(b"x")] {
        assert_eq!(unread.headers["connection"], "close");
        unread.problem(409);
    }
    let read = workspace.post("execs", &json!({ "cmd": 1 }));
    assert!(!read.headers.contains_key("connection"));
    read.problem(400);
}

#[test]
fn a_client_that_goes_away_while_it_writes_disturbs_nobody() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = reading(&workspace, "cat");
    let address = derrick.api.address();
    // Ten bytes are announced, and five come.
    {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(address).expect("it listens");
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/octet-stream\r\nContent-Length: 10\r\n\r\n",
            exec.path("/stdin")
        );
        stream.write_all(head.as_bytes()).expect("it is taken");
        stream.write_all(b"five\n").expect("it is taken");
        exec.until_printed("five\n");
    }
    exec.write_last(b"and more\n").expect(200);
    assert_eq!(exec.printed("stdout"), "five\nand more\n");
}

// --- signals ---

/// A leader, a child in its group and one in a session of its own; each says when SIGUSR1 came.
/// (It waits for it with the signal blocked: a handler could run between a look and a `pause`.)
const FAMILY: &str = "import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def serve(name):
    os.write(1, f'{name} ready\\n'.encode())
    while True:
        signal.sigwait([signal.SIGUSR1])
        os.write(1, f'{name} heard\\n'.encode())
if os.fork() == 0: serve('child')
if os.fork() == 0:
    os.setsid()
    serve('stranger')
serve('leader')
";

/// Waits until an exec has printed each of these lines so many times, and nothing else `heard`.
fn until_heard(exec: &Exec, expected: [usize; 3]) {
    let names = ["leader", "child", "stranger"];
    let mut seen = String::new();
    let mut output = exec.follow("stream=stdout");
    let count = |seen: &str| names.map(|name| seen.matches(&format!("{name} heard")).count());
    while count(&seen) != expected {
        let more = output.some();
        assert!(!more.is_empty(), "it ended after {seen}");
        seen.push_str(&String::from_utf8_lossy(&more));
    }
}

#[test]
fn a_signal_goes_to_the_leader_its_group_or_its_tree() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec(&json!({ "argv": ["/usr/bin/python3", "-c", FAMILY] }));
    for name in ["leader", "child", "stranger"] {
        exec.until_printed(&format!("{name} ready"));
    }
    exec.signal(&json!({ "signal": "USR1" })).expect(200);
    until_heard(&exec, [1, 0, 0]);
    exec.signal(&json!({ "signal": "USR1", "to": "leader" }))
        .expect(200);
    until_heard(&exec, [2, 0, 0]);
    exec.signal(&json!({ "signal": "USR1", "to": "group" }))
        .expect(200);
    until_heard(&exec, [3, 1, 0]);
    exec.signal(&json!({ "signal": "USR1", "to": "tree" }))
        .expect(200);
    until_heard(&exec, [4, 2, 1]);
    exec.kill();
    let heard = exec.printed("stdout").matches("heard").count();
    assert_eq!(heard, 7, "some heard what was not for them");
}

#[test]
fn a_signal_is_told_by_name_or_number_and_ends_what_it_ends() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for (signal, number, name) in [
        (json!("TERM"), 15, "SIGTERM"),
        (json!("SIGTERM"), 15, "SIGTERM"),
        (json!("sigint"), 2, "SIGINT"),
        (json!(9), 9, "SIGKILL"),
        (json!("1"), 1, "SIGHUP"),
    ] {
        let exec = workspace.exec(&json!({ "argv": ["sleep", "1000"] }));
        assert_eq!(
            exec.signal(&json!({ "signal": signal })).expect(200).json(),
            json!({})
        );
        let outcome = json!({ "kind": "signaled", "signal": number, "name": name });
        assert_eq!(exec.outcome(), outcome);
        let problem = exec.signal(&json!({ "signal": signal })).problem(409);
        assert_eq!(problem["type"], "urn:derrick:problem:exec-ended");
    }
}

#[test]
fn a_stopped_exec_runs_again_when_it_is_told_to() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = reading(&workspace, "echo there; read line; echo $line");
    exec.until_printed("there");
    exec.signal(&json!({ "signal": "STOP", "to": "tree" }))
        .expect(200);
    exec.write(b"again\n").expect(200);
    exec.signal(&json!({ "signal": "CONT", "to": "tree" }))
        .expect(200);
    assert_eq!(exec.printed("stdout"), "there\nagain\n");
}

#[test]
fn what_is_no_signal_is_refused_and_named() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("sleep 1000");
    for (body, named) in [
        (json!({ "signal": "NOPE" }), "signal"),
        (json!({ "signal": "" }), "signal"),
        (json!({ "signal": 0 }), "signal"),
        (json!({ "signal": 65 }), "signal"),
        (json!({ "signal": -9 }), "signal"),
        (json!({ "signal": 1.5 }), "signal"),
        (json!({ "signal": null }), "signal"),
        (json!({ "signal": "SIGSIGTERM" }), "signal"),
        (json!({ "signal": "TERM\u{0}" }), "signal"),
        (json!({}), "signal"),
        (json!({ "signal": "TERM", "to": "everybody" }), "to"),
        (json!({ "signal": "TERM", "too": "leader" }), "too"),
        (json!(["TERM"]), "object"),
    ] {
        let problem = exec.signal(&body).problem(400);
        assert!(
            problem["detail"].to_string().contains(named),
            "{body}: {problem}"
        );
    }
    assert_eq!(exec.show()["state"], "running");
}

// --- a terminal ---

/// An exec with a terminal of 24 rows and 80 columns.
fn at_terminal(workspace: &Workspace, cmd: &str) -> Exec {
    workspace.exec(&json!({ "cmd": cmd, "tty": { "rows": 24, "cols": 80 } }))
}

#[test]
fn a_terminal_is_one_and_echoes_what_is_typed() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = at_terminal(
        &workspace,
        "test -t 0 && test -t 1 && test -t 2 && tty && stty size; read line; echo \"heard $line\"; echo err >&2",
    );
    let told = exec.show();
    assert_eq!(
        (&told["tty"], &told["streams"]),
        (&json!(true), &json!("merged"))
    );
    assert_eq!(told["stdin"], "open");
    exec.until_printed("24 80");
    exec.write(b"hello\n").expect(200);
    let printed = exec.printed("both");
    assert!(printed.starts_with("/dev/pts/"), "{printed:?}");
    assert!(
        printed.ends_with("24 80\r\nhello\r\nheard hello\r\nerr\r\n"),
        "{printed:?}"
    );
    assert_eq!(exec.printed("stdout"), printed);
    assert_eq!(exec.printed("stderr"), "");
}

#[test]
fn ctrl_c_typed_interrupts_what_runs_in_the_foreground() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = at_terminal(&workspace, "echo ready; exec sleep 1000");
    exec.until_printed("ready");
    exec.write(b"\x03").expect(200);
    let outcome = json!({ "kind": "signaled", "signal": 2, "name": "SIGINT" });
    assert_eq!(exec.outcome(), outcome);
    assert_eq!(exec.printed("both"), "ready\r\n^C");
}

#[test]
fn ctrl_d_typed_ends_the_input_and_so_does_the_end_of_stdin() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for typed in [true, false] {
        let exec = at_terminal(
            &workspace,
            "stty -echo; echo ready; cat; echo end; read line",
        );
        exec.until_printed("ready");
        exec.write(b"line\n").expect(200);
        exec.until_printed("line");
        let answer = match typed {
            true => exec.write(b"\x04"),
            false => exec.write_last(b""),
        };
        // The terminal itself stays open.
        assert_eq!(answer.expect(200).json()["open"], true);
        exec.until_printed("end");
        exec.write(b"\n").expect(200);
        assert_eq!(exec.printed("both"), "ready\r\nline\r\nend\r\n");
    }
}

#[test]
fn input_of_a_terminal_that_ends_within_a_line_ends_all_the_same() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let command = |stdin: Value| json!({ "cmd": "cat; echo end", "tty": { "rows": 24, "cols": 80 }, "stdin": stdin });
    for text in ["hi", "hi\n", ""] {
        let mut body = command(json!({ "text": text }));
        body["wait"] = json!(true);
        let ended = workspace.exec_of(&workspace.post("execs", &body).expect(201).json());
        assert_eq!(
            ended.ended()["outcome"],
            json!({ "kind": "exited", "code": 0 })
        );
        let printed = ended.printed("both");
        assert!(
            printed.ends_with("end\r\n") && printed.contains(text.trim_end()),
            "{printed:?}"
        );
    }
    let exec = at_terminal(&workspace, "stty -echo; echo ready; cat; echo end");
    exec.until_printed("ready");
    exec.write(b"within").expect(200);
    exec.write_last(b"").expect(200);
    assert_eq!(exec.printed("both"), "ready\r\nwithinend\r\n");
    // It has one, and cannot be without input.
    let problem = workspace
        .post("execs", &command(json!("none")))
        .problem(400);
    assert!(problem["detail"].to_string().contains("stdin"), "{problem}");
}

#[test]
fn another_size_is_seen_inside() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let program = "import os, signal
def tell(*_): os.write(1, '{} {}\\n'.format(*os.get_terminal_size()).encode())
signal.signal(signal.SIGWINCH, tell)
os.write(1, b'ready\\n')
while True: signal.pause()";
    let exec = workspace.exec(&json!({
        "argv": ["/usr/bin/python3", "-c", program],
        "tty": { "rows": 24, "cols": 80 },
    }));
    exec.until_printed("ready");
    assert_eq!(
        exec.resize(&json!({ "rows": 50, "cols": 132 }))
            .expect(200)
            .json(),
        json!({})
    );
    exec.until_printed("132 50");
    for (body, named) in [
        (json!({ "rows": 0, "cols": 80 }), "row"),
        (json!({ "rows": 24, "cols": 0 }), "column"),
        (json!({ "rows": 65536, "cols": 80 }), "rows"),
        (json!({ "rows": -1, "cols": 80 }), "rows"),
        (json!({ "rows": "24", "cols": 80 }), "rows"),
        (json!({ "rows": 24 }), "cols"),
        (json!({ "rows": 24, "cols": 80, "colour": 1 }), "colour"),
    ] {
        let problem = exec.resize(&body).problem(400);
        assert!(
            problem["detail"].to_string().contains(named),
            "{body}: {problem}"
        );
    }
    exec.kill();
    let problem = exec
        .resize(&json!({ "rows": 50, "cols": 132 }))
        .problem(409);
    assert_eq!(problem["type"], "urn:derrick:problem:exec-ended");
}

#[test]
fn an_exec_without_a_terminal_has_no_size() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("sleep 1000");
    let problem = exec
        .resize(&json!({ "rows": 50, "cols": 132 }))
        .problem(409);
    assert_eq!(problem["type"], "urn:derrick:problem:no-terminal");
}

#[test]
fn a_background_child_of_a_terminal_is_hung_up_with_its_leader() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkfifo /tmp/up /tmp/gone");
    let exec = at_terminal(
        &workspace,
        "(trap 'echo hung up > /tmp/gone; exit' HUP; echo > /tmp/up; while :; do sleep 0.01; done) & cat /tmp/up; echo end",
    );
    assert_eq!(exec.outcome(), json!({ "kind": "exited", "code": 0 }));
    assert_eq!(workspace.ok("cat /tmp/gone"), "hung up\n");
    let printed = exec.printed("both");
    assert!(printed.contains("end\r\n"), "{printed:?}");
}

// --- what no request may ask for ---

#[test]
fn every_field_that_means_nothing_is_refused_and_named() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let huge = "1".repeat(400);
    let cases = [
        (r#"{}"#, "argv and cmd"),
        (r#"{"argv":["true"],"cmd":"true"}"#, "argv and cmd"),
        (r#"{"argv":[]}"#, "argv"),
        (r#"{"argv":"true"}"#, "argv"),
        (r#"{"argv":["true",1]}"#, "argv[1]"),
        (r#"{"argv":["a\u0000b"]}"#, "argv"),
        (r#"{"cmd":["true"]}"#, "cmd"),
        (r#"{"cmd":"a\u0000b"}"#, "cmd"),
        (r#"{"cmd":"true","cwd":1}"#, "cwd"),
        (r#"{"cmd":"true","cwd":"/a\u0000b"}"#, "cwd"),
        (r#"{"cmd":"true","env":["A"]}"#, "env"),
        (r#"{"cmd":"true","env":{"A":1}}"#, "env.A"),
        (r#"{"cmd":"true","env":{"":"x"}}"#, "env"),
        (r#"{"cmd":"true","env":{"A=B":"x"}}"#, "A=B"),
        (r#"{"cmd":"true","env":{"A\u0000":"x"}}"#, "env"),
        (r#"{"cmd":"true","env":{"A":"x\u0000"}}"#, "env"),
        (r#"{"cmd":"true","user":""}"#, "user"),
        (r#"{"cmd":"true","user":1.5}"#, "user"),
        (r#"{"cmd":"true","user":"a\u0000b"}"#, "user"),
        (r#"{"cmd":"true","stdin":"closed"}"#, "stdin"),
        (r#"{"cmd":"true","stdin":{"text":1}}"#, "stdin"),
        (r#"{"cmd":"true","stdin":{"base64":"!"}}"#, "stdin"),
        (
            r#"{"cmd":"true","stdin":{"text":"a","base64":"YQ=="}}"#,
            "stdin",
        ),
        (r#"{"cmd":"true","stdin":{"file":"/etc/passwd"}}"#, "stdin"),
        (r#"{"cmd":"true","stdin":{}}"#, r#"expected \"none\""#),
        (r#"{"cmd":"true","stdin":5}"#, r#"{\"text\": \"…\"}"#),
        (r#"{"cmd":"true","stdin":"text"}"#, r#"{\"base64\": \"…\"}"#),
        (r#"{"cmd":"true","tty":true}"#, "tty"),
        (r#"{"cmd":"true","tty":{"rows":24}}"#, "tty"),
        (r#"{"cmd":"true","tty":{"rows":0,"cols":80}}"#, "row"),
        (
            r#"{"cmd":"true","tty":{"rows":99999,"cols":80}}"#,
            "tty.rows",
        ),
        (r#"{"cmd":"true","streams":"both"}"#, "streams"),
        (r#"{"cmd":"true","timeout":0}"#, "timeout"),
        (r#"{"cmd":"true","timeout":0.0}"#, "timeout"),
        (r#"{"cmd":"true","timeout":-0.0}"#, "timeout"),
        (r#"{"cmd":"true","timeout":-5}"#, "timeout"),
        (r#"{"cmd":"true","timeout":"NaN"}"#, "timeout"),
        (r#"{"cmd":"true","timeout":"5"}"#, "timeout"),
        (r#"{"cmd":"true","timeout":NaN}"#, "JSON"),
        (r#"{"cmd":"true","timeout":1e999}"#, "number"),
        (
            r#"{"cmd":"true","output_limit":-1}"#,
            "from 0 to 1073741824",
        ),
        (r#"{"cmd":"true","output_limit":1e30}"#, "output_limit"),
        (r#"{"cmd":"true","output_limit":"much"}"#, "output_limit"),
        (r#"{"cmd":"true","output_limit":"2 GiB"}"#, "output_limit"),
        (r#"{"cmd":"true","output_limit":"-1 MiB"}"#, "output_limit"),
        (
            r#"{"cmd":"true","output_limit":"999999999999 PiB"}"#,
            "output_limit",
        ),
        (
            r#"{"cmd":"true","output_limit":18446744073709551615}"#,
            "output_limit",
        ),
        (
            r#"{"cmd":"true","output_limit":18446744073709551616}"#,
            "output_limit",
        ),
        (r#"{"cmd":"true","wait":"yes"}"#, "wait"),
        (r#"{"cmd":"true","wait":1}"#, "wait"),
        (r#"{"cmd":"true","working_dir":"/"}"#, "working_dir"),
        (r#"{"cmd":"true","cmd":"false"}"#, "cmd"),
        (r#"["true"]"#, "object"),
        (r#""true""#, "object"),
        (r#"null"#, "object"),
        (r#"{"cmd":"true""#, "JSON"),
        (r#""#, "JSON"),
    ];
    let post = |body: &str| {
        let headers = [("content-type", "application/json")];
        let path = format!("/workspaces/{}/execs", workspace.id);
        derrick.api.send("POST", &path, &headers, body.as_bytes())
    };
    for (body, named) in cases {
        let problem = post(body).problem(400);
        assert!(
            problem["detail"].to_string().contains(named),
            "{body}: {problem}"
        );
    }
    let cut = post(r#"{"cmd":"tr"#).problem(400)["detail"].to_string();
    assert!(!cut.contains('?'), "{cut}");
    // What no workspace has is no user, as a number and as a text.
    for user in [
        json!(-1),
        json!("-1"),
        json!(65536),
        json!("65536"),
        json!(1_u64 << 32),
    ] {
        let body = json!({ "cmd": "true", "user": user });
        workspace.post("execs", &body).problem(422);
    }
    let problem = post(&format!(r#"{{"cmd":"true","timeout":{huge}e{huge}}}"#)).problem(400);
    assert!(
        problem["detail"].to_string().contains("number"),
        "{problem}"
    );
    assert_eq!(workspace.execs(), Vec::<Value>::new());
}

#[test]
fn a_working_directory_that_cannot_be_entered_is_refused_and_leaves_no_exec() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("touch /tmp/file; ln -s loop /tmp/loop");
    let before = workspace.execs().len();
    let long = format!("/{}", "x/".repeat(5000));
    for cwd in [
        "/no/such/directory",
        "relative",
        "/tmp/file",
        "/tmp/loop",
        &long,
    ] {
        let problem = workspace
            .post("execs", &json!({ "cmd": "true", "cwd": cwd }))
            .problem(422);
        let start: String = cwd.chars().take(20).collect();
        let detail = problem["detail"].to_string();
        assert!(
            detail.contains(&start) || detail.contains("the path"),
            "{problem}"
        );
    }
    assert_eq!(workspace.execs().len(), before);
}

#[test]
fn what_can_be_no_exec_is_not_there() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("true");
    let other = derrick.create();
    let (upper, braced) = (exec.id.to_uppercase(), format!("%7B{}%7D", exec.id));
    for id in [
        "x",
        "..",
        "..%2f..%2fetc",
        "%00",
        "%ff",
        &upper,
        &braced,
        "00000000-0000-7000-8000-000000000000",
    ] {
        let named = workspace.exec_named(id);
        for answer in [
            derrick.api.get(&named.path("")),
            derrick.api.get(&named.path("/output")),
            derrick.api.delete(&named.path("")),
            named.signal(&json!({ "signal": 9 })),
            named.resize(&json!({ "rows": 1, "cols": 1 })),
            named.write(b"x"),
        ] {
            let problem = answer.problem(404);
            let kind = problem["type"].as_str().expect("it is text");
            assert!(
                ["no-such-exec", "no-such-route"]
                    .iter()
                    .any(|word| kind.ends_with(word)),
                "{problem}"
            );
        }
    }
    let problem = derrick
        .api
        .get(&workspace.exec_named("%ff").path(""))
        .problem(404);
    assert_eq!(problem["type"], "urn:derrick:problem:no-such-exec");
    // One workspace's execs are not another's.
    derrick
        .api
        .get(&other.exec_named(&exec.id).path(""))
        .problem(404);
}

#[test]
fn a_wait_is_as_long_as_it_says_and_no_nonsense() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("sleep 1000");
    for wait in ["0", "0.01"] {
        let told = derrick
            .api
            .get(&exec.path(&format!("?wait={wait}")))
            .expect(200)
            .json();
        assert_eq!(told["state"], "running");
        assert_eq!(told.get("outcome"), None);
    }
    for wait in ["-1", "NaN", "inf", "3601", "soon", "", "1e300"] {
        let problem = derrick
            .api
            .get(&exec.path(&format!("?wait={wait}")))
            .problem(400);
        assert!(
            problem["detail"].to_string().contains("wait"),
            "{wait}: {problem}"
        );
    }
}

#[test]
fn the_list_is_oldest_first_and_can_be_of_those_that_run() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let ended = workspace.exec_sh("true");
    ended.ended();
    let running = workspace.exec_sh("sleep 1000");
    let ids = |query: &str| -> Vec<String> {
        let list = workspace.get(&format!("execs{query}")).expect(200).json();
        let list = list["execs"].as_array().expect("a list").clone();
        list.iter()
            .map(|exec| exec["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    assert_eq!(ids(""), [ended.id.as_str(), running.id.as_str()]);
    assert_eq!(ids("?state=running"), [running.id.as_str()]);
    assert_eq!(ids("?state=ended"), [ended.id.as_str()]);
    workspace.get("execs?state=dead").problem(400);
    workspace.get("execs?limit=1").problem(400);
}
