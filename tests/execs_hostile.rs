//! Execs against those who mean harm: code inside, clients outside, and broken disks.

mod support;

use std::fs;
use std::io::{Read as _, copy, sink};

use serde_json::json;
use support::{Derrick, open_files};

// --- from inside ---

#[test]
fn background_processes_of_one_workspace_do_not_take_all_descriptors_of_the_provider() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let before = open_files(derrick.pid()).len();
    for _ in 0..160 {
        // Each holds a stdout and a stderr.
        workspace.run("sleep 1000 &");
    }
    let held = open_files(derrick.pid()).len() - before;
    assert!((200..300).contains(&held), "{held} descriptors are held");
    assert_eq!(derrick.create().ok("echo here"), "here\n");
}

// --- from outside ---

#[test]
fn who_follows_an_exec_is_let_go_when_its_workspace_is_removed() {
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    // More than the connection holds, and in more than one segment.
    let exec = workspace.exec(&json!({
        "cmd": "head -c 60M /dev/zero; echo done >&2; sleep 1000",
        "output_limit": "100 MiB",
    }));
    let mut other = exec.follow("stream=stderr");
    assert_eq!(other.some(), b"done\n");
    let mut follower = exec.follow("stream=stdout");
    follower.read_exact(&mut [0; 1000]).expect("some output");
    assert!(workspace.delete());
    // It comes to an end, whether with all of it or broken off.
    let _ = copy(&mut follower, &mut sink());
    derrick.restart();
}

#[test]
fn a_name_of_a_user_that_is_none_is_not_kept() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.run("true");
    let body = json!({ "cmd": "true", "user": "x".repeat(1 << 20) });
    let problem = workspace.post("execs", &body).problem(422);
    assert!(problem.to_string().len() < 1000, "{problem}");
    let directory = derrick.state().join("workspaces").join(&workspace.id);
    let journal = fs::metadata(directory.join("execs/journal")).expect("there is one");
    assert!(journal.len() < 100_000, "{} bytes", journal.len());
}

// --- broken disks ---

#[test]
fn what_a_broken_disk_left_of_one_workspace_keeps_no_other_from_being_served() {
    type Break = fn(&str) -> String;
    let breaks: &[(&str, Break)] = &[
        ("started", |text| {
            text.replace("\"started\":", "\"started\":-1e300,\"x\":")
        }),
        ("omitted", |text| {
            text.replace("\"omitted\":0", "\"omitted\":18446744073709551615")
        }),
        ("bytes", |text| {
            text.replace("\"bytes\":", "\"bytes\":18446744073709551615,\"x\":")
        }),
        ("endless line", |text| "x".repeat(3 << 20) + text),
    ];
    for (what, break_it) in breaks {
        let mut derrick = Derrick::on_host();
        let broken = derrick.create();
        let running = broken.exec_sh("echo out; sleep 1000");
        running.until_printed("out");
        let whole = derrick.create();
        let kept = whole.exec_of(&whole.run("echo kept"));
        derrick.kill9();
        let directory = derrick.state().join("workspaces").join(&broken.id);
        let journal = directory.join("execs/journal");
        let text = fs::read_to_string(&journal).expect("it is text");
        fs::write(&journal, break_it(&text)).expect("written");
        derrick.start_again();
        let whole = derrick.api.workspace(&whole.id);
        assert_eq!(
            whole.exec_named(&kept.id).printed("stdout"),
            "kept\n",
            "{what}"
        );
        let broken = derrick.api.workspace(&broken.id);
        broken.execs();
        assert_eq!(broken.ok("echo on"), "on\n", "{what}");
    }
}

#[test]
fn a_segment_that_cannot_be_true_is_no_error_of_the_provider() {
    let varint = [&[0xff_u8; 9][..], &[1]].concat();
    let record = b"\x00\x05hello";
    for (name, content) in [
        ("stdout-18446744073709551615-0", record.to_vec()),
        ("stdout-1-0", record.repeat(100)),
        ("stdout-0-0", [&varint[..], &varint, b"abc"].concat()),
        ("stdout-0-0", [&varint[..], b"\x01a"].concat().repeat(3)),
        ("stdout-0-0", vec![0; 100_000]),
    ] {
        let mut derrick = Derrick::on_host();
        let workspace = derrick.create();
        let ended = workspace.exec_of(&workspace.run("echo out"));
        let running = workspace.exec_sh("echo out; sleep 1000");
        running.until_printed("out");
        derrick.kill9();
        let execs = derrick
            .state()
            .join("workspaces")
            .join(&workspace.id)
            .join("execs");
        for exec in [&ended, &running] {
            fs::write(execs.join(&exec.id).join(name), &content).expect("written");
        }
        derrick.start_again();
        let workspace = derrick.api.workspace(&workspace.id);
        for exec in [&ended, &running] {
            let exec = workspace.exec_named(&exec.id);
            assert_eq!(exec.show()["state"], "ended", "{name}");
            for event in exec.follow_events("", None) {
                assert!(
                    ["stdout", "gap", "end"].contains(&&*event.name),
                    "{name}: {event:?}"
                );
            }
        }
    }
}
