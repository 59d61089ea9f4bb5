//! The layer store: what is in use stays, whoever uses it and whoever collects; what is not, goes.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::{Derrick, Launch, binary, fixture, wait_until_empty};

/// A small base with a setup of its own.
fn with_setup(script: &str) -> Value {
    json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "setup_script": script,
    })
}

fn derrick(words: &[&str], state: &Path) -> Output {
    let mut command = Command::new(binary());
    command.arg(words[0]).arg("--state-dir").arg(state);
    command.args(&words[1..]).output().expect("it starts")
}

fn json_of(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// The digests of the layers, each with who uses it.
fn layers(state: &Path) -> Vec<(String, Vec<String>)> {
    let told = json_of(&derrick(&["layers", "--json"], state));
    let layers = told["layers"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let one = |layer: &Value| {
        assert!(layer["bytes"].as_u64().is_some(), "{layer}");
        assert!(layer["used"].as_u64() >= layer["created"].as_u64());
        let users = layer["used_by"].as_array().expect("a list");
        (text(&layer["digest"]), users.iter().map(text).collect())
    };
    layers.iter().map(one).collect()
}

fn users_of(state: &Path, digest: &str) -> Vec<String> {
    let all = layers(state);
    let found = all.into_iter().find(|(layer, _)| layer == digest);
    found.unwrap_or_else(|| panic!("no layer {digest}")).1
}

/// What was removed.
fn gc(state: &Path, words: &[&str]) -> Vec<String> {
    let words: Vec<_> = ["gc", "--json"]
        .into_iter()
        .chain(words.iter().copied())
        .collect();
    let told = json_of(&derrick(&words, state));
    let removed = told["removed"].as_array().expect("a list");
    let text = |digest: &Value| digest.as_str().expect("a text").to_owned();
    removed.iter().map(text).collect()
}

fn path_of(state: &Path, digest: &str) -> PathBuf {
    state.join("layers").join(digest)
}

fn layer_of(workspace: &support::Workspace) -> String {
    let told = workspace.describe();
    told["layer"].as_str().expect("a text").to_owned()
}

#[test]
fn what_is_used_stays_and_what_is_not_goes() {
    let mut provider = Derrick::start(with_setup("echo one > /one"));
    let state = provider.state();
    let first = provider.create();
    let one = layer_of(&first);
    let users = users_of(&state, &one);
    assert!(users.contains(&"config".to_owned()), "{users:?}");
    assert!(
        users.contains(&format!("workspace {}", first.id)),
        "{users:?}"
    );
    assert!(users.contains(&"process".to_owned()), "{users:?}");
    assert_eq!(gc(&state, &[]), Vec::<String>::new());

    // Of another config by then, and stopped: its record alone says that it is used.
    provider.stop();
    provider.configure(&with_setup("echo two > /two"));
    provider.start_again();
    let second = provider.create();
    let two = layer_of(&second);
    assert_ne!(one, two);
    assert_eq!(users_of(&state, &one), [format!("workspace {}", first.id)]);
    assert_eq!(gc(&state, &[]), Vec::<String>::new());
    let first = provider.api.workspace(&first.id);
    assert_eq!(first.ok("cat /one"), "one\n");

    assert!(first.delete());
    let left = |provider: &Derrick| layers(&provider.state()).len();
    let before = left(&provider);
    assert_eq!(gc(&state, &["--dry-run"]), [one.as_str()]);
    assert!(path_of(&state, &one).exists());
    assert_eq!(gc(&state, &["--max-age", "1h"]), Vec::<String>::new());
    assert_eq!(gc(&state, &["--max-size", "1TB"]), Vec::<String>::new());
    assert_eq!(gc(&state, &["--max-size", "0"]), [one.as_str()]);
    assert!(!path_of(&state, &one).exists());
    assert_eq!(left(&provider), before - 1);
    wait_until_empty(&state.join("trash"));

    // What was kept is whole, and nothing is set up anew.
    assert_eq!(second.ok("cat /two"), "two\n");
    provider.restart();
    let third = provider.create();
    assert_eq!(third.ok("cat /two"), "two\n");
    assert_eq!(provider.printed().matches("setting up").count(), 2);

    // Nor when nobody runs: the config that was served last is to be served again.
    assert!(third.delete());
    assert!(provider.api.workspace(&second.id).delete());
    provider.stop();
    assert_eq!(gc(&state, &[]), Vec::<String>::new());
    assert_eq!(users_of(&state, &two), ["config"]);
    provider.start_again();
    assert_eq!(gc(&state, &[]), Vec::<String>::new());
    provider.create();
    assert_eq!(provider.printed().matches("setting up").count(), 2);
}

#[test]
fn of_what_is_not_used_the_oldest_goes() {
    let mut provider = Derrick::start(with_setup("echo one > /one"));
    let state = provider.state();
    let mut made = Vec::new();
    for name in ["one", "two", "three"] {
        provider.stop();
        provider.configure(&with_setup(&format!("echo {name} > /{name}")));
        provider.start_again();
        let workspace = provider.create();
        made.push(layer_of(&workspace));
        assert!(workspace.delete());
    }
    let [one, two, three] = made.try_into().expect("three");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    let used = path_of(&state, &two).join("used");
    let file = std::fs::File::options().write(true).open(used);
    let file = file.expect("it is noted");
    file.set_modified(long_ago).expect("the test's own");
    // Not before it was made, whatever the file says.
    assert_eq!(gc(&state, &["--max-age", "1h"]), Vec::<String>::new());
    let meta = path_of(&state, &two).join("meta.json");
    let text = std::fs::read(&meta).expect("it is there");
    let mut changed: Value = serde_json::from_slice(&text).expect("JSON");
    changed["created"] = json!(1);
    std::fs::write(&meta, changed.to_string()).expect("the test's own");
    assert_eq!(gc(&state, &["--max-age", "1h"]), [two.as_str()]);
    assert_eq!(gc(&state, &[]), [one.as_str()]);
    let users = users_of(&state, &three);
    assert!(users.contains(&"config".to_owned()), "{users:?}");
}

#[test]
fn nobody_loses_a_layer_between_finding_and_recording_it() {
    let provider = Derrick::start(with_setup("echo served > /served"));
    let state = provider.state();
    let served = provider.create();
    // Configs whose layers nothing names but who runs just now.
    let scratch = support::Scratch::new();
    let config = scratch.file("config.json", with_setup("echo it > /it").to_string());
    let state = state.as_path();
    std::thread::scope(|scope| {
        let runs = || {
            scope.spawn(|| {
                for _ in 0..6 {
                    let mut command = Command::new(binary());
                    command.args(["run", "-w"]).arg(&config);
                    command.arg("--state-dir").arg(state);
                    let output = command
                        .args(["--", "cat", "/it"])
                        .output()
                        .expect("it starts");
                    let said = String::from_utf8_lossy(&output.stderr);
                    assert_eq!(output.stdout, b"it\n", "{said}");
                }
            })
        };
        let running = [runs(), runs(), runs()];
        let mut removed = 0;
        // One that fails ends too.
        while !running.iter().all(|one| one.is_finished()) {
            removed += gc(state, &[]).len();
        }
        removed += gc(state, &[]).len();
        assert!(removed > 0, "there was nothing to lose");
    });
    assert_eq!(served.ok("cat /served"), "served\n");
}

#[test]
fn two_providers_do_not_share_a_state_directory() {
    let first = Derrick::start(with_setup("true"));
    let said = Launch::new(with_setup("true"))
        .state(&first.state())
        .try_start()
        .expect_err("the first one serves it");
    assert!(said.contains("in use by another derrick"), "{said}");
    first.create();
}

#[test]
fn what_is_no_state_directory_is_left_alone() {
    let scratch = support::Scratch::new();
    for word in ["gc", "layers"] {
        let output = derrick(&[word], scratch.path());
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("is no state directory"), "{said}");
    }
    assert_eq!(support::entries(scratch.path()), Vec::<String>::new());
}
