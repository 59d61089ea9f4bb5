//! What execs print: kept in order and within bounds, read from any offset by anybody, there after a crash.

mod support;

use std::fs;
use std::io::Read;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use support::{Derrick, Event, Exec, Mode, Opened, Workspace, mode};

// --- what is there ---

#[test]
fn stdout_and_stderr_are_apart_and_together() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let ended = workspace.run("echo out; echo err >&2");
    assert_eq!(
        ended["output"],
        json!({ "stdout": "out\n", "stderr": "err\n" })
    );
    assert_eq!(ended["stdout"], json!({ "bytes": 4, "omitted": 0 }));
    assert_eq!(ended["stderr"], json!({ "bytes": 4, "omitted": 0 }));
    assert_eq!(ended["truncated"], false);
    let exec = workspace.exec_of(&ended);
    assert_eq!(exec.printed("stdout"), "out\n");
    assert_eq!(exec.printed("stderr"), "err\n");
    let both = exec.printed("both");
    assert!(
        ["out\nerr\n", "err\nout\n"].contains(&both.as_str()),
        "{both}"
    );
}

#[test]
fn merged_streams_are_in_the_order_in_which_they_were_written() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec(&json!({
        "cmd": "for n in $(seq 500); do echo out $n; echo err $n >&2; done",
        "streams": "merged",
    }));
    let expected: String = (1..=500).map(|n| format!("out {n}\nerr {n}\n")).collect();
    assert_eq!(exec.printed("both"), expected);
    assert_eq!(exec.printed("stdout"), expected);
    assert_eq!(exec.printed("stderr"), "");
}

#[test]
fn a_command_can_open_its_streams_by_name_whoever_it_is() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let users: &[&str] = match mode() {
        Mode::Single => &["root"],
        _ => &["root", "daemon"],
    };
    for user in users {
        let ended = workspace.run_with(&json!({
            "cmd": "cat /dev/stdin | tee /dev/stderr; echo more > /dev/stdout",
            "stdin": { "text": "given\n" },
            "user": user,
        }));
        let both = json!({ "stdout": "given\nmore\n", "stderr": "given\n" });
        assert_eq!(ended["output"], both, "{user}: {ended}");
    }
}

#[test]
fn everything_that_a_command_printed_before_it_ended_is_there_when_it_has() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let lines: String = (0..3000).map(|n| format!("line {n}\n")).collect();
    for _ in 0..30 {
        let ended = workspace
            .run("n=0; while [ $n -lt 3000 ]; do echo line $n; n=$((n+1)); done | tee /dev/stderr");
        assert!(
            ended["output"]["stdout"] == json!(lines),
            "stdout is not whole"
        );
        assert!(
            ended["output"]["stderr"] == json!(lines),
            "stderr is not whole"
        );
    }
}

#[test]
fn an_offset_counts_the_bytes_of_the_stream_that_is_asked_for() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    // Each part waits for its cue, so that the order is known.
    let exec = workspace.exec(&json!({
        "cmd": "printf aaaa; read l; printf EEEE >&2; read l; printf bbbb; read l; printf FFFF >&2; read l",
        "stdin": "open",
    }));
    for part in ["aaaa", "EEEE", "bbbb", "FFFF"] {
        exec.until_printed(part);
        exec.write(b"\n").expect(200);
    }
    assert_eq!(exec.ended()["exit_code"], 0);
    for (stream, whole) in [
        ("both", "aaaaEEEEbbbbFFFF"),
        ("stdout", "aaaabbbb"),
        ("stderr", "EEEEFFFF"),
    ] {
        for offset in 0..=whole.len() {
            for follow in [true, false] {
                let answer =
                    exec.output(&format!("stream={stream}&offset={offset}&follow={follow}"));
                assert_eq!(answer.text(), whole[offset..], "{stream} {offset}");
                assert_eq!(answer.headers["derrick-output-offset"], offset.to_string());
                assert!(!answer.headers.contains_key("derrick-omitted"));
            }
        }
        let beyond = format!("/output?stream={stream}&offset={}", whole.len() + 1);
        let problem = derrick.api.get(&exec.path(&beyond)).problem(400);
        assert_eq!(problem["size"], whole.len(), "{problem}");
    }
}

#[test]
fn a_query_that_means_nothing_is_refused_and_named() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("true");
    for (query, named) in [
        ("stream=stdin", "stream"),
        ("offset=-1", "offset"),
        ("offset=1.5", "offset"),
        ("offset=99999999999999999999", "offset"),
        ("follow=yes", "follow"),
        ("folow=true", "folow"),
        ("stream=stdout&stream=stderr", "stream"),
    ] {
        let problem = derrick
            .api
            .get(&exec.path(&format!("/output?{query}")))
            .problem(400);
        assert!(
            problem["detail"].to_string().contains(named),
            "{query}: {problem}"
        );
    }
}

// --- following ---

#[test]
fn several_clients_follow_the_same_output_each_at_its_own_pace() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace
        .exec(&json!({ "cmd": "read l; seq 200000; read l; seq 200000", "stdin": "open" }));
    let early = exec.follow("stream=stdout");
    exec.write(b"\n").expect(200);
    exec.until_printed("\n200000\n");
    let middle = exec.follow("stream=stdout");
    // One comes and goes again, which disturbs nobody.
    drop(exec.follow("stream=both").some());
    exec.write(b"\n").expect(200);
    assert_eq!(exec.ended()["exit_code"], 0);
    let late = exec.follow("stream=stdout");
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    for client in [early, middle, late] {
        let read = std::io::read_to_string(client).expect("it is whole");
        assert!(read == expected.repeat(2), "it read something else");
    }
}

/// The bytes that `/tmp/pattern.py` prints; no part of it is like another of the same length.
fn pattern(bytes: usize) -> Vec<u8> {
    let mut printed: Vec<u8> = (0..=bytes / 8)
        .flat_map(|n| format!("{n:07}\n").into_bytes())
        .collect();
    printed.truncate(bytes);
    printed
}

/// A command line that prints `pattern`.
fn print_pattern(bytes: usize) -> String {
    format!("seq -f %07.0f 0 {} | head -c {bytes}", bytes / 8)
}

#[test]
fn who_is_cut_off_goes_on_byte_for_byte_in_the_middle_of_a_flood() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let size = 40 << 20;
    let exec = workspace.exec(&json!({
        "cmd": format!("read l; {}", print_pattern(size)),
        "stdin": "open",
        "output_limit": "64 MiB",
    }));
    let mut read = Vec::new();
    let mut connections = 0;
    exec.write(b"\n").expect(200);
    while read.len() < size {
        let mut client = exec.follow(&format!("stream=stdout&offset={}", read.len()));
        connections += 1;
        // A little and then far more, and what lies in the socket by then is lost.
        for _ in 0..connections * 10 {
            read.extend(client.some());
        }
    }
    assert!(read == pattern(size), "it read something else");
    assert!(connections > 3);
    assert_eq!(exec.ended()["truncated"], false);
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_and_gets_all_of_it_later() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let size = 30 << 20;
    let exec = workspace.exec(&json!({
        "cmd": format!("read l; {}", print_pattern(size)),
        "stdin": "open",
        "output_limit": "64 MiB",
    }));
    let idle = exec.follow("stream=stdout");
    let idle_events = exec.follow_events("stream=stdout", None);
    exec.write(b"\n").expect(200);
    assert_eq!(exec.ended()["exit_code"], 0);
    let mut late = Vec::new();
    let mut idle = idle;
    idle.read_to_end(&mut late).expect("it is whole");
    assert!(late == pattern(size), "it read something else");
    let (bytes, last) = assembled(idle_events, 0);
    assert!(bytes == pattern(size), "the events were something else");
    assert_eq!(last["outcome"]["kind"], "exited");
}

#[test]
fn what_is_there_now_is_answered_without_waiting() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec_sh("echo there; sleep 1000");
    exec.until_printed("there");
    assert_eq!(exec.output("").text(), "there\n");
    let path = exec.path("/output");
    let events = || {
        let accept = [("accept", "text/event-stream")];
        let told = derrick.api.send("GET", &path, &accept, b"");
        told.expect(200).text()
    };
    let text = events();
    assert!(text.contains("\"text\":\"there\\n\""), "{text}");
    assert!(!text.contains("event: end"), "{text}");
    // An end is told of when there is one.
    exec.kill();
    let text = events();
    let (output, end) = text.split_once("event: end\n").expect("there is an end");
    assert!(output.contains("\"text\":\"there\\n\""), "{text}");
    assert!(end.contains("\"state\":\"ended\""), "{text}");
}

// --- events ---

/// The bytes that events of one stream tell of, checked for their order, and the exec of the last.
fn assembled(events: impl Iterator<Item = Event>, from: u64) -> (Vec<u8>, Value) {
    let mut bytes = Vec::new();
    let mut offset = from;
    for event in events {
        if event.name == "end" {
            return (bytes, event.data);
        }
        assert_eq!(event.data["offset"], offset, "{event:?}");
        let part = bytes_of(&event);
        assert!(!part.is_empty(), "{event:?}");
        offset += part.len() as u64;
        assert_eq!(event.id, offset.to_string());
        bytes.extend(part);
    }
    panic!("the events ended without an end");
}

fn bytes_of(event: &Event) -> Vec<u8> {
    match (event.data["text"].as_str(), event.data["base64"].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(text)) => BASE64.decode(text).expect("it is base64"),
        _ => panic!("{event:?}"),
    }
}

#[test]
fn an_events_id_is_where_to_go_on() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let size = 1 << 20;
    let exec = workspace.exec_sh(&print_pattern(size));
    exec.ended();
    let ids: Vec<String> = exec.follow_events("", None).map(|event| event.id).collect();
    assert!(ids.len() > 4, "{ids:?}");
    for id in &ids[..ids.len() - 1] {
        let from: usize = id.parse().expect("a number");
        let (bytes, last) = assembled(exec.follow_events("", Some(id)), from as u64);
        assert!(bytes == pattern(size)[from..], "it went on elsewhere");
        assert_eq!(last["id"], json!(exec.id));
    }
    let headers = [("accept", "text/event-stream"), ("last-event-id", "x")];
    let path = exec.path("/output");
    let problem = derrick.api.send("GET", &path, &headers, b"").problem(400);
    assert!(
        problem["detail"].to_string().contains("Last-Event-ID"),
        "{problem}"
    );
}

#[test]
fn characters_that_are_cut_where_pieces_end_are_put_together() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    // No power of two is a multiple of three.
    let text = "あ".repeat(300_000);
    let exec = workspace.exec(&json!({
        "argv": ["/usr/bin/python3", "-c", "import os; os.write(1, b'x'); print('あ' * 300000, end='')"],
        "env": { "PYTHONIOENCODING": "utf-8" },
    }));
    exec.ended();
    let events: Vec<Event> = exec.follow_events("stream=stdout", None).collect();
    for event in &events[..events.len() - 1] {
        assert!(event.data["text"].is_string(), "{}", event.data);
    }
    let (bytes, _) = assembled(events.into_iter(), 0);
    assert!(
        bytes == format!("x{text}").into_bytes(),
        "it is something else"
    );
}

#[test]
fn a_character_that_comes_in_two_parts_is_one_event() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = workspace.exec(&json!({ "argv": ["cat"], "stdin": "open" }));
    let mut events = exec.follow_events("", None);
    exec.write(b"a\xf0\x9f").expect(200);
    let first = events.next().expect("one");
    assert_eq!(
        (first.data, first.id.as_str()),
        (json!({ "offset": 0, "text": "a" }), "1")
    );
    exec.write_last(b"\x98\x80").expect(200);
    let second = events.next().expect("another");
    assert_eq!(second.data, json!({ "offset": 1, "text": "\u{1f600}" }));
    assert_eq!(second.id, "5");
}

#[test]
fn what_is_no_text_comes_as_base64() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    // The last one is the start of a character that never comes.
    let exec = workspace.exec_sh("head -c 200000 /dev/urandom | tee /tmp/copy; printf 'a\\303'");
    exec.ended();
    let mut expected = workspace.read_file("/tmp/copy");
    expected.extend(b"a\xc3");
    let events: Vec<Event> = exec.follow_events("stream=stdout", None).collect();
    let (bytes, _) = assembled(events.into_iter(), 0);
    assert!(bytes == expected, "it is something else");
    let only_start = workspace.exec_sh("printf 'a\\303'");
    only_start.ended();
    let data: Vec<Value> = only_start
        .follow_events("", None)
        .map(|event| event.data)
        .collect();
    assert_eq!(data[0], json!({ "offset": 0, "text": "a" }));
    assert_eq!(data[1], json!({ "offset": 1, "base64": "ww==" }));
}

// --- what is not kept ---

/// An exec that has printed a hundred thousand bytes, of which its log has a thousand or little more.
fn flooded(workspace: &Workspace) -> Exec {
    let exec = workspace.exec(&json!({
        "cmd": format!("{}; echo little >&2", print_pattern(100_000)),
        "output_limit": 1000,
    }));
    let ended = exec.ended();
    assert_eq!(ended["stdout"]["bytes"], 100_000);
    assert_eq!(ended["stderr"], json!({ "bytes": 7, "omitted": 0 }));
    assert_eq!(ended["truncated"], true);
    let kept = 100_000 - ended["stdout"]["omitted"].as_u64().expect("a number");
    assert!((1000..=2000).contains(&kept), "{kept} bytes are kept");
    exec
}

#[test]
fn a_gap_is_told_in_the_headers_of_bytes() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = flooded(&workspace);
    let whole = pattern(100_000);
    let answer = exec.output("stream=stdout");
    let omitted = answer.headers["derrick-omitted"]
        .to_str()
        .expect("it is text")
        .to_owned();
    let (from, to) = omitted.split_once('-').expect("FROM-TO");
    let (from, to): (usize, usize) = (from.parse().expect("a number"), to.parse().expect("one"));
    assert_eq!(
        to - from,
        exec.show()["stdout"]["omitted"].as_u64().expect("one") as usize
    );
    assert!(answer.body == [&whole[..from], &whole[to..]].concat());
    assert_eq!(answer.headers["derrick-output-offset"], "0");
    for within in [from, from + 1, to - 1] {
        let answer = exec.output(&format!("stream=stdout&offset={within}"));
        assert_eq!(answer.headers["derrick-output-offset"], to.to_string());
        assert_eq!(answer.headers["derrick-omitted"], format!("{within}-{to}"));
        assert!(answer.body == whole[to..]);
    }
    let answer = exec.output(&format!("stream=stdout&offset={to}"));
    assert!(!answer.headers.contains_key("derrick-omitted"));
    assert!(answer.body == whole[to..]);
}

#[test]
fn a_gap_is_told_among_the_events() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let exec = flooded(&workspace);
    let whole = pattern(100_000);
    let mut seen = Vec::new();
    let mut gaps = Vec::new();
    for event in exec.follow_events("stream=stdout", None) {
        match event.name.as_str() {
            "stdout" => seen.extend(bytes_of(&event)),
            "gap" => {
                let place = |name: &str| event.data[name].as_u64().expect("a number") as usize;
                assert_eq!(event.id, place("to").to_string());
                assert_eq!(seen, whole[..place("from")]);
                seen.extend(&whole[place("from")..place("to")]);
                gaps.push((place("from"), place("to")));
            }
            name => assert_eq!(name, "end"),
        }
    }
    assert!(seen == whole, "something is in the wrong place");
    assert_eq!(gaps.len(), 1);
    // A client that was cut off in the gap hears of the rest of it.
    let (from, to) = gaps[0];
    let mut events = exec.follow_events("stream=stdout", Some(&(from + 7).to_string()));
    let first = events.next().expect("one");
    assert_eq!(
        (first.name.as_str(), first.data),
        ("gap", json!({ "from": from + 7, "to": to }))
    );
}

#[test]
fn the_answer_of_one_that_is_waited_for_says_where_something_is_missing() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let ended = workspace.run(&print_pattern(5 << 20));
    assert_eq!(ended["truncated"], false);
    let stdout = ended["output"]["stdout"].as_str().expect("it is text");
    assert!(stdout.len() < 2 << 20, "{} bytes", stdout.len());
    let whole = String::from_utf8(pattern(5 << 20)).expect("it is text");
    let (start, rest) = stdout.split_once("\n[derrick: ").expect("it says so");
    let (count, end) = rest
        .split_once(" bytes omitted]\n")
        .expect("it says how much");
    let count: usize = count.parse().expect("a number");
    assert_eq!(start.len() + count + end.len(), whole.len());
    assert!(whole.starts_with(start) && whole.ends_with(end));
    assert!(workspace.exec_of(&ended).printed("stdout") == whole);
}

#[test]
fn nothing_is_kept_of_one_whose_limit_is_nothing_and_all_is_counted() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for limit in [json!(0), json!(1), json!("2 B")] {
        let ended =
            workspace.run_with(&json!({ "cmd": print_pattern(1 << 20), "output_limit": limit }));
        assert_eq!(ended["stdout"]["bytes"], 1 << 20, "{limit}");
        let kept = (1 << 20) - ended["stdout"]["omitted"].as_u64().expect("a number");
        assert!(kept <= 4, "{kept} bytes are kept of {limit}");
    }
}

#[test]
fn who_reads_too_slowly_for_what_is_kept_is_cut_off_and_misses_nothing_unknowingly() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let size = 60 << 20;
    let exec = workspace.exec(&json!({
        "cmd": format!("read l; {}", print_pattern(size)),
        "stdin": "open",
        "output_limit": "4 MiB",
    }));
    let mut bytes = exec.follow("stream=stdout");
    let events = exec.follow_events("stream=stdout", None);
    exec.write(b"\n").expect(200);
    exec.ended();
    let whole = pattern(size);
    let mut seen = Vec::new();
    let broken = bytes.read_to_end(&mut seen);
    assert!(broken.is_err(), "it looks whole after {} bytes", seen.len());
    assert!(whole.starts_with(&seen), "it missed something unknowingly");
    let rest = exec.output(&format!("stream=stdout&offset={}", seen.len()));
    let from: usize = rest.headers["derrick-output-offset"]
        .to_str()
        .expect("text")
        .parse()
        .expect("a number");
    assert!(
        from > seen.len(),
        "nothing is missing after {from}: {broken:?}"
    );
    assert!(
        rest.body == whole[from..],
        "{} from {from}",
        rest.body.len()
    );
    let mut at = 0;
    for event in events {
        match event.name.as_str() {
            "stdout" => {
                let part = bytes_of(&event);
                assert!(
                    whole[at..].starts_with(&part),
                    "it missed something unknowingly"
                );
                at += part.len();
            }
            "gap" => at = event.data["to"].as_u64().expect("a number") as usize,
            name => assert_eq!(name, "end"),
        }
    }
    assert_eq!(at, size);
}

// --- floods ---

/// A line of /proc/<pid>/status, in bytes.
fn memory(derrick: &Derrick, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", derrick.pid())).expect("it runs");
    let value = status
        .lines()
        .find_map(|found| found.strip_prefix(line)?.strip_prefix(':'));
    let kib = value
        .expect("the line is there")
        .trim()
        .trim_end_matches(" kB");
    kib.parse::<u64>().expect("a number") * 1024
}

/// Bytes of all files below a directory.
fn disk(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).expect("it can be listed");
    entries
        .map(|entry| entry.expect("an entry"))
        .map(|entry| match entry.file_type().expect("a type").is_dir() {
            true => disk(&entry.path()),
            false => entry.metadata().expect("it is there").len(),
        })
        .sum()
}

#[test]
fn a_flood_takes_neither_memory_nor_disk() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.run("echo warm");
    let before = memory(&derrick, "VmRSS");
    // Of lines, and of one line; with clients that read nothing of it.
    let floods = ["yes | head -c 1G", "head -c 1G /dev/zero"].map(|cmd| {
        let cmd = format!("read l; {cmd}");
        workspace.exec(&json!({ "cmd": cmd, "stdin": "open", "output_limit": "8 MiB" }))
    });
    let _idle: Vec<Opened> = floods.iter().map(|exec| exec.follow("")).collect();
    let _idle: Vec<_> = floods
        .iter()
        .map(|exec| exec.follow_events("", None))
        .collect();
    for exec in &floods {
        exec.write(b"\n").expect(200);
    }
    for exec in &floods {
        let ended = exec.ended();
        assert_eq!(ended["stdout"]["bytes"], 1_u64 << 30, "{ended}");
        assert_eq!(ended["truncated"], true);
    }
    let grown = memory(&derrick, "VmHWM").saturating_sub(before);
    assert!(grown < 64 << 20, "its memory grew by {grown} bytes");
    let kept = disk(
        &derrick
            .state()
            .join("workspaces")
            .join(&workspace.id)
            .join("execs"),
    );
    assert!(kept < 20 << 20, "{kept} bytes are on disk");
}

#[test]
fn children_that_were_left_behind_and_flood_do_not_hold_others_up() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let ended = workspace.run("for n in $(seq 30); do yes & done");
    assert_eq!(ended["detached"], 30);
    for n in 0..20 {
        assert_eq!(
            workspace.run(&format!("echo {n}"))["output"]["stdout"],
            format!("{n}\n")
        );
    }
}

// --- restarts ---

/// Everything that is told of an exec.
fn told(exec: &Exec) -> (Value, [Vec<u8>; 3]) {
    let output = |stream: &str| {
        let answer = exec.output(&format!("stream={stream}"));
        let omitted = answer.headers.get("derrick-omitted").cloned();
        [
            answer.body,
            omitted.map_or_else(Vec::new, |gap| gap.as_bytes().to_vec()),
        ]
        .concat()
    };
    (exec.show(), ["both", "stdout", "stderr"].map(output))
}

#[test]
fn what_ended_is_told_the_same_after_a_restart() {
    for crash in [false, true] {
        let mut derrick = Derrick::on_host();
        let workspace = derrick.create();
        let bodies = [
            json!({ "cmd": "exit 7" }),
            json!({ "cmd": "kill -9 $$" }),
            json!({ "argv": ["no-such-program"] }),
            json!({ "cmd": "for n in $(seq 2000); do echo out $n; echo err $n >&2; done" }),
            json!({ "cmd": "head -c 300000 /dev/urandom; sleep 1000 &", "streams": "merged" }),
            json!({ "cmd": print_pattern(100_000), "output_limit": 1000 }),
            json!({ "cmd": print_pattern(100_000), "output_limit": 0 }),
            json!({ "cmd": "sleep 1000", "timeout": 0.5 }),
        ];
        let execs: Vec<Exec> = bodies.iter().map(|body| workspace.exec(body)).collect();
        execs.iter().for_each(|exec| drop(exec.ended()));
        let before: Vec<_> = execs.iter().map(told).collect();
        let list = workspace.execs();
        match crash {
            true => derrick.kill9(),
            false => assert!(derrick.stop().success()),
        }
        derrick.start_again();
        let workspace = derrick.api.workspace(&workspace.id);
        assert_eq!(workspace.execs(), list);
        for (exec, before) in execs.iter().zip(before) {
            let after = told(&workspace.exec_named(&exec.id));
            assert_eq!(after.0, before.0);
            assert!(after.1 == before.1, "another output of {}", after.0);
        }
    }
}

#[test]
fn what_ran_when_the_provider_ended_is_lost_and_what_it_printed_is_not() {
    for crash in [false, true] {
        let mut derrick = Derrick::on_host();
        let workspace = derrick.create();
        let exec = workspace.exec_sh("echo out; echo err >&2; sleep 1000");
        exec.until_printed("out");
        exec.until_printed("err");
        // This one has been answered and nothing else.
        let silent = workspace.exec(&json!({ "argv": ["sleep", "1000"] }));
        match crash {
            true => derrick.kill9(),
            false => assert!(derrick.stop().success()),
        }
        derrick.start_again();
        let workspace = derrick.api.workspace(&workspace.id);
        let ids: Vec<Value> = workspace
            .execs()
            .iter()
            .map(|exec| exec["id"].clone())
            .collect();
        assert_eq!(ids, [json!(exec.id), json!(silent.id)]);
        let after: Vec<Value> = workspace.execs();
        for told in &after {
            assert_eq!(told["outcome"]["kind"], "lost", "{told}");
            assert!(told["outcome"]["detail"].is_string(), "{told}");
            assert_eq!(told["exit_code"], 125, "{told}");
        }
        let exec = workspace.exec_named(&exec.id);
        assert_eq!(exec.printed("stdout"), "out\n");
        assert_eq!(exec.printed("stderr"), "err\n");
        assert_eq!(exec.printed("both").len(), 8);
        // When it was lost does not change with the next restart.
        derrick.restart();
        assert_eq!(derrick.api.workspace(&workspace.id).execs(), after);
    }
}

#[test]
fn a_crash_in_the_middle_of_a_flood_leaves_a_prefix_of_it() {
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    let size = 400 << 20;
    let exec = workspace.exec(&json!({ "cmd": print_pattern(size), "output_limit": "1 GiB" }));
    let mut read = Vec::new();
    let mut client = exec.follow("stream=stdout");
    while read.len() < 4 << 20 {
        read.extend(client.some());
    }
    derrick.kill9();
    derrick.start_again();
    let exec = derrick.api.workspace(&workspace.id).exec_named(&exec.id);
    let told = exec.show();
    assert_eq!(told["outcome"]["kind"], "lost", "{told}");
    let after = exec.output("stream=stdout").body;
    assert_eq!(told["stdout"]["bytes"], after.len());
    assert!(after.len() >= read.len(), "something that was read is gone");
    assert!(after == pattern(after.len()), "it is something else");
}
