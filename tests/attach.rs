//! All of an exec in one WebSocket: what goes in and out, cut off and taken up again, and clients that behave badly.

mod support;

use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};
use support::{Derrick, Exec, GUARD, Workspace};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::HandshakeError;
use tokio_tungstenite::tungstenite::http::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};

/// A connection to an exec.
struct Attached {
    socket: WebSocket<TcpStream>,
    /// What the first message said of the exec.
    exec: Value,
}

/// What came last.
#[derive(Debug)]
struct Ended {
    exec: Value,
    code: u16,
}

/// Everything that an exec has printed on a connection.
#[derive(Debug, Default)]
struct Printed {
    /// Of both streams, in the order in which it came.
    both: Vec<u8>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    gaps: Vec<(u64, u64)>,
    errors: Vec<String>,
}

/// The request for a connection.
fn handshake(derrick: &Derrick, exec: &Exec, query: &str) -> Request<()> {
    let address = derrick.api.address();
    let place = format!("ws://{address}{}", exec.path(&format!("/attach{query}")));
    place.into_client_request().expect("it is a request")
}

/// Asks for a connection; the status of the refusal if there is one.
fn try_connect(derrick: &Derrick, request: Request<()>) -> Result<WebSocket<TcpStream>, u16> {
    let stream = TcpStream::connect(derrick.api.address()).expect("it listens");
    stream
        .set_read_timeout(Some(GUARD))
        .expect("it takes a timeout");
    stream
        .set_write_timeout(Some(GUARD))
        .expect("it takes a timeout");
    let config = WebSocketConfig::default()
        .max_message_size(None)
        .max_frame_size(None);
    match tokio_tungstenite::tungstenite::client::client_with_config(request, stream, Some(config))
    {
        Ok((socket, _)) => Ok(socket),
        Err(HandshakeError::Failure(Error::Http(answer))) => Err(answer.status().as_u16()),
        Err(error) => panic!("the handshake failed: {error}"),
    }
}

/// Attaches to an exec.
fn attach(derrick: &Derrick, exec: &Exec, query: &str) -> Attached {
    let socket = try_connect(derrick, handshake(derrick, exec, query));
    let mut attached = Attached {
        socket: socket.expect("it is let in"),
        exec: Value::Null,
    };
    let first = attached.told("exec");
    assert_eq!(first["id"], json!(exec.id));
    attached.exec = first;
    attached
}

impl Attached {
    /// The next message that says something.
    fn next(&mut self) -> Message {
        loop {
            match self.socket.read().expect("the connection lasts") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    /// The next message, which must be JSON with this member.
    fn told(&mut self, member: &str) -> Value {
        let message = self.next();
        let Message::Text(text) = &message else {
            panic!("no text but {message:?}");
        };
        let mut told: Value = serde_json::from_str(text).expect("it is JSON");
        assert_eq!(
            told.as_object().map(serde_json::Map::len),
            Some(1),
            "{told}"
        );
        assert!(
            told[member].is_object() || told[member].is_string(),
            "{told}"
        );
        told[member].take()
    }

    fn type_in(&mut self, bytes: &[u8]) {
        let message = [&[0], bytes].concat();
        self.socket
            .send(Message::binary(message))
            .expect("it is taken");
    }

    fn say(&mut self, message: &Value) {
        let message = Message::text(message.to_string());
        self.socket.send(message).expect("it is taken");
    }

    /// Takes one message of output or about it; the exec, if that was the end.
    fn take(&mut self, printed: &mut Printed) -> Option<Value> {
        match self.next() {
            Message::Binary(bytes) => {
                let (stream, bytes) = bytes.split_first().expect("it is not empty");
                assert!(!bytes.is_empty());
                printed.both.extend(bytes);
                match stream {
                    1 => printed.stdout.extend(bytes),
                    2 => printed.stderr.extend(bytes),
                    other => panic!("stream {other}"),
                }
            }
            Message::Text(text) => {
                let mut told: Value = serde_json::from_str(&text).expect("it is JSON");
                let number = |value: &Value| value.as_u64().expect("a number");
                if told["gap"].is_object() {
                    let gap = &told["gap"];
                    printed
                        .gaps
                        .push((number(&gap["from"]), number(&gap["to"])));
                } else if let Some(error) = told["error"].as_str() {
                    printed.errors.push(error.to_owned());
                } else {
                    assert!(told["end"].is_object(), "{told}");
                    return Some(told["end"].take());
                }
            }
            other => panic!("{other:?}"),
        }
        None
    }

    /// Reads until this was printed.
    fn until(&mut self, text: &str) -> Printed {
        let mut printed = Printed::default();
        while !String::from_utf8_lossy(&printed.both).contains(text) {
            let end = self.take(&mut printed);
            assert!(end.is_none(), "it ended, having printed {printed:?}");
        }
        printed
    }

    /// Reads to the end, which is well-formed.
    fn finish(mut self) -> (Printed, Ended) {
        let mut printed = Printed::default();
        let exec = loop {
            if let Some(exec) = self.take(&mut printed) {
                break exec;
            }
        };
        let code = self.closed();
        self.expect_end();
        (printed, Ended { exec, code })
    }

    /// Reads the close; its code.
    fn closed(&mut self) -> u16 {
        loop {
            match self.next() {
                Message::Close(Some(frame)) => return frame.code.into(),
                Message::Text(_) | Message::Binary(_) => {}
                other => panic!("no close but {other:?}"),
            }
        }
    }

    /// Closes, and waits until that is answered.
    fn leave(mut self) {
        self.socket.close(None).expect("it is taken");
        while !matches!(self.next(), Message::Close(_)) {}
        self.expect_end();
    }

    /// Waits for the end of the connection, after the closes of both.
    fn expect_end(&mut self) {
        match self.socket.read() {
            Err(Error::ConnectionClosed) => {}
            other => panic!("no end but {other:?}"),
        }
    }
}

fn open(workspace: &Workspace, cmd: &str) -> Exec {
    workspace.exec(&json!({ "cmd": cmd, "stdin": "open" }))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes of which no part is like another.
fn pattern(count: usize) -> Vec<u8> {
    let mut all: Vec<u8> = (0..=count / 8)
        .flat_map(|n| format!("{n:07}\n").into_bytes())
        .collect();
    all.truncate(count);
    all
}

// --- in and out ---

#[test]
fn all_of_an_exec_goes_through_one_connection() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = open(
        &workspace,
        "read a; echo out $a; read b; echo err $b >&2; cat; exit 3",
    );
    let mut attached = attach(&derrick, &exec, "");
    assert_eq!(attached.exec["state"], "running");
    attached.type_in(b"one\n");
    assert_eq!(text(&attached.until("\n").stdout), "out one\n");
    attached.type_in(b"two\n");
    assert_eq!(text(&attached.until("\n").stderr), "err two\n");
    attached.type_in(b"th");
    attached.type_in(b"");
    attached.type_in(b"ree");
    attached.say(&json!({ "eof": false }));
    attached.type_in(b"\n");
    attached.say(&json!({ "eof": true }));
    let (printed, ended) = attached.finish();
    assert_eq!(text(&printed.both), "three\n");
    assert_eq!(printed.errors, Vec::<String>::new());
    assert_eq!(
        ended.exec["outcome"],
        json!({ "kind": "exited", "code": 3 })
    );
    assert_eq!(ended.code, 1000);
    assert_eq!(ended.exec, exec.show());
}

#[test]
fn a_terminal_is_resized_and_interrupted_on_the_connection() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec(&json!({
        // An interrupt that a shell gets while its child ends is taken for the child's.
        "cmd": "echo ready; read l; stty size; echo waiting; exec sleep 1000",
        "tty": { "rows": 24, "cols": 80 },
    }));
    let mut attached = attach(&derrick, &exec, "");
    attached.until("ready\r\n");
    attached.say(&json!({ "resize": { "rows": 50, "cols": 132 } }));
    attached.type_in(b"\n");
    attached.until("50 132\r\nwaiting\r\n");
    attached.type_in(b"\x03");
    let (printed, ended) = attached.finish();
    assert_eq!(text(&printed.both), "^C");
    assert_eq!(ended.exec["outcome"]["name"], "SIGINT");
}

#[test]
fn a_signal_on_the_connection_goes_where_it_says() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("trap 'echo leader' USR1; (trap 'echo child' USR1; echo ready; while :; do sleep 0.01; done) & while :; do wait; done");
    let mut attached = attach(&derrick, &exec, "");
    attached.until("ready");
    attached.say(&json!({ "signal": { "signal": "USR1", "to": "group" } }));
    let mut seen = String::new();
    while !(seen.contains("leader") && seen.contains("child")) {
        let mut printed = Printed::default();
        assert!(attached.take(&mut printed).is_none());
        seen += &text(&printed.both);
    }
    attached.say(&json!({ "signal": { "signal": 9 } }));
    let (_, ended) = attached.finish();
    assert_eq!(ended.exec["outcome"]["name"], "SIGKILL");
}

#[test]
fn several_clients_watch_and_write_and_none_minds_another_that_goes() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = open(&workspace, "cat");
    let mut clients: Vec<Attached> = (0..3).map(|_| attach(&derrick, &exec, "")).collect();
    for (n, line) in ["one\n", "two\n", "three\n"].iter().enumerate() {
        clients[n].type_in(line.as_bytes());
        for client in &mut clients {
            assert_eq!(text(&client.until("\n").both), *line);
        }
    }
    // One takes its leave, one just goes.
    clients.remove(0).leave();
    drop(clients.remove(0));
    clients[0].type_in(b"four\n");
    clients[0].say(&json!({ "eof": true }));
    let (printed, ended) = clients.remove(0).finish();
    assert_eq!(text(&printed.both), "four\n");
    assert_eq!(ended.exec["exit_code"], 0);
    assert_eq!(exec.printed("stdout"), "one\ntwo\nthree\nfour\n");
}

#[test]
fn one_that_has_ended_is_shown_from_the_start_and_at_its_end() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("echo out; exit 3");
    exec.ended();
    for (query, rest) in [("", "out\n"), ("?offset=2", "t\n"), ("?offset=4", "")] {
        let attached = attach(&derrick, &exec, query);
        assert_eq!(attached.exec["state"], "ended");
        let (printed, ended) = attached.finish();
        assert_eq!(text(&printed.both), rest);
        assert_eq!((&ended.exec["exit_code"], ended.code), (&json!(3), 1000));
    }
}

// --- cut off ---

#[test]
fn who_is_cut_off_attaches_again_where_it_was() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let size = 20 << 20;
    let cmd = format!(
        "read l; (seq -f %07.0f 0 {0} | head -c {size} >&2) & seq -f %07.0f 0 {0} | head -c {size}; wait",
        size / 8
    );
    let exec = workspace.exec(&json!({ "cmd": cmd, "stdin": "open", "output_limit": "64 MiB" }));
    let mut printed = Printed::default();
    let mut connections = 0;
    exec.write(b"\n").expect(200);
    'all: loop {
        let mut attached = attach(&derrick, &exec, &format!("?offset={}", printed.both.len()));
        connections += 1;
        for _ in 0..connections * 20 {
            if attached.take(&mut printed).is_some() {
                break 'all;
            }
        }
    }
    assert!(connections > 3, "{connections} connections");
    assert_eq!(printed.gaps, []);
    for stream in [&printed.stdout, &printed.stderr] {
        assert!(*stream == pattern(size), "it read something else");
    }
    // The same order for everybody.
    assert!(
        exec.output("stream=both").body == printed.both,
        "another order"
    );
}

#[test]
fn a_gap_is_told_where_it_is() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let size = 100_000;
    let exec = workspace.exec(&json!({
        "cmd": format!("seq -f %07.0f 0 {} | head -c {size}", size / 8),
        "output_limit": 1000,
    }));
    exec.ended();
    let whole = pattern(size);
    let (printed, _) = attach(&derrick, &exec, "").finish();
    let [(from, to)] = printed.gaps[..] else {
        panic!("{:?}", printed.gaps);
    };
    assert!(printed.both == [&whole[..from as usize], &whole[to as usize..]].concat());
    let (printed, _) = attach(&derrick, &exec, &format!("?offset={}", from + 5)).finish();
    assert_eq!(printed.gaps, [(from + 5, to)]);
    assert!(printed.both == whole[to as usize..]);
}

#[test]
fn what_was_said_before_the_client_went_is_done() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkfifo /tmp/go");
    let exec = open(&workspace, "read go < /tmp/go; cat | wc -c");
    // More than fits into a pipe, while nobody reads.
    let mut attached = attach(&derrick, &exec, "");
    for _ in 0..10 {
        attached.type_in(&pattern(50_000));
    }
    attached.say(&json!({ "eof": true }));
    attached.leave();
    workspace.ok("echo go > /tmp/go");
    assert_eq!(exec.printed("stdout"), "500000\n");
}

#[test]
fn a_reset_is_the_end() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("echo there; sleep 1000");
    let mut attached = attach(&derrick, &exec, "");
    attached.until("there");
    workspace.reset();
    let (_, ended) = attached.finish();
    assert_eq!(
        (&ended.exec["outcome"]["kind"], ended.code),
        (&json!("reset"), 1000)
    );
}

#[test]
fn the_end_of_the_provider_is_told_as_an_end() {
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("echo there; sleep 1000");
    let mut attached: Vec<Attached> = (0..3).map(|_| attach(&derrick, &exec, "")).collect();
    for client in &mut attached {
        client.until("there");
    }
    let reading: Vec<_> = attached
        .into_iter()
        .map(|client| std::thread::spawn(move || client.finish().1))
        .collect();
    assert!(derrick.stop().success(), "{}", derrick.printed());
    for client in reading {
        let ended = client.join().expect("it is told the end");
        assert_eq!(
            (&ended.exec["outcome"]["kind"], ended.code),
            (&json!("lost"), 1000)
        );
    }
}

// --- what is no connection ---

#[test]
fn what_is_no_handshake_or_of_no_exec_is_refused() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("echo out");
    exec.ended();
    let problem = derrick.api.get(&exec.path("/attach")).problem(400);
    assert!(
        problem["detail"].to_string().contains("WebSocket"),
        "{problem}"
    );
    for (query, status) in [("?offset=5", 400), ("?offset=-1", 400), ("?ofset=1", 400)] {
        let request = handshake(&derrick, &exec, query);
        assert_eq!(
            try_connect(&derrick, request).err(),
            Some(status),
            "{query}"
        );
    }
    let nobody = workspace.exec_named("00000000-0000-7000-8000-000000000000");
    let request = handshake(&derrick, &nobody, "");
    assert_eq!(try_connect(&derrick, request).err(), Some(404));
}

// --- bad behaviour ---

#[test]
fn a_message_that_means_nothing_gets_an_error_and_the_connection_goes_on() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = open(&workspace, "cat");
    let mut attached = attach(&derrick, &exec, "");
    for message in [
        "",
        "x",
        "{}",
        "[]",
        "null",
        "\"eof\"",
        "{\"eof\":1}",
        "{\"eof\":null}",
        "{\"unknown\":1}",
        "{\"resize\":{}}",
        "{\"resize\":{\"rows\":0,\"cols\":1}}",
        "{\"resize\":{\"rows\":70000,\"cols\":1}}",
        "{\"resize\":{\"rows\":1,\"cols\":1}}",
        "{\"signal\":\"TERM\"}",
        "{\"signal\":{\"signal\":\"NOPE\"}}",
        "{\"signal\":{\"signal\":0}}",
        "{\"signal\":{\"signal\":1,\"to\":\"all\"}}",
        "{\"eof\":true,\"signal\":{\"signal\":9}}",
        "{\"eof\":true} x",
        "{\"stdin\":\"text\"}",
    ] {
        attached
            .socket
            .send(Message::text(message))
            .expect("it is taken");
        let error = attached.told("error");
        assert!(error.is_string(), "{message}: {error}");
    }
    for message in [&b""[..], b"\x01text", b"\x02text", b"\xfftext"] {
        attached
            .socket
            .send(Message::binary(message.to_vec()))
            .expect("it is taken");
        let error = attached.told("error");
        assert!(error.to_string().contains("byte 0"), "{message:?}: {error}");
    }
    attached.type_in(b"fine\n");
    assert_eq!(text(&attached.until("\n").both), "fine\n");
}

#[test]
fn what_cannot_be_written_gets_an_error_and_the_connection_goes_on() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("echo there; sleep 1000");
    let mut attached = attach(&derrick, &exec, "");
    attached.until("there\n");
    attached.type_in(b"x");
    assert!(attached.told("error").to_string().contains("open stdin"));
    attached.say(&json!({ "eof": true }));
    assert!(attached.told("error").to_string().contains("open stdin"));
    attached.say(&json!({ "resize": { "rows": 1, "cols": 1 } }));
    assert!(attached.told("error").to_string().contains("no terminal"));
    attached.say(&json!({ "signal": { "signal": 15 } }));
    assert_eq!(attached.finish().1.exec["outcome"]["signal"], 15);
}

#[test]
fn a_message_of_a_mebibyte_is_taken_and_a_larger_one_ends_the_connection_alone() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = open(&workspace, "cat > /dev/null; echo read");
    let mut attached = attach(&derrick, &exec, "");
    attached.type_in(&pattern((1 << 20) - 1));
    attached.type_in(b"more");
    let message = vec![0; (1 << 20) + 1];
    // It may be refused before all of it was sent.
    let _ = attached.socket.send(Message::binary(message));
    assert_eq!(attached.closed(), 1009);
    assert_eq!(exec.show()["state"], "running");
    let mut attached = attach(&derrick, &exec, "");
    attached.say(&json!({ "eof": true }));
    assert_eq!(text(&attached.finish().0.both), "read\n");
}

#[test]
fn what_is_no_websocket_message_ends_the_connection_and_says_why() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("sleep 1000");
    for (frame, code) in [
        // A client's message must be masked.
        (&b"\x81\x01x"[..], 1002),
        // An operation that does not exist.
        (b"\x83\x80\0\0\0\0", 1002),
        // A text that is none.
        (b"\x81\x81\0\0\0\0\xff", 1007),
    ] {
        let mut attached = attach(&derrick, &exec, "");
        attached
            .socket
            .get_mut()
            .write_all(frame)
            .expect("it is taken");
        assert_eq!(attached.closed(), code, "{frame:?}");
    }
    assert_eq!(exec.show()["state"], "running");
}

#[test]
fn a_signal_gets_past_what_is_not_read() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = open(&workspace, "echo there; sleep 1000");
    let mut attached = attach(&derrick, &exec, "");
    attached.until("there");
    for _ in 0..10 {
        attached.type_in(&pattern(50_000));
    }
    attached.say(&json!({ "signal": { "signal": "TERM", "to": "tree" } }));
    let (_, ended) = attached.finish();
    assert_eq!(ended.exec["exit_code"], 143);
}

#[test]
fn a_client_that_writes_much_to_what_does_not_read_takes_no_memory() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkfifo /tmp/go");
    let exec = open(&workspace, "read go < /tmp/go; wc -c");
    let mut attached = attach(&derrick, &exec, "");
    let before = memory(&derrick);
    // What a message takes beside what it says counts as well.
    let writing = std::thread::spawn(move || {
        for n in 0..30_000 {
            attached.type_in(b"x");
            if n % 30 == 0 {
                attached.type_in(&[0; 60_000]);
            }
        }
        attached.say(&json!({ "eof": true }));
        attached.finish().0
    });
    for _ in 0..20 {
        workspace.run("echo meanwhile");
    }
    let grown = memory(&derrick).saturating_sub(before);
    assert!(grown < 32 << 20, "its memory grew by {grown} bytes");
    workspace.ok("echo go > /tmp/go");
    let printed = writing.join().expect("it ends");
    assert_eq!(text(&printed.both), "60030000\n");
}

/// The provider's resident memory, in bytes.
fn memory(derrick: &Derrick) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", derrick.pid())).expect("it runs");
    let pages = statm.split(' ').nth(1).expect("a second number");
    pages.parse::<u64>().expect("a number") * 4096
}

#[test]
fn a_client_that_never_reads_holds_up_nobody_not_even_the_end() {
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec(
        &json!({ "cmd": "read l; head -c 50M /dev/zero; echo end; sleep 1000", "stdin": "open" }),
    );
    let idle: Vec<Attached> = (0..20).map(|_| attach(&derrick, &exec, "")).collect();
    let before = memory(&derrick);
    exec.write(b"\n").expect(200);
    let mut attached = attach(&derrick, &exec, "");
    let mut printed = Printed::default();
    while !printed.both.ends_with(b"end\n") {
        assert!(attached.take(&mut printed).is_none());
    }
    let grown = memory(&derrick).saturating_sub(before);
    assert!(grown < 64 << 20, "its memory grew by {grown} bytes");
    assert_eq!(workspace.run("echo fine")["output"]["stdout"], "fine\n");
    assert!(derrick.stop().success(), "{}", derrick.printed());
    drop(idle);
}
