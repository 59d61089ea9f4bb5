//! The layer store: what is in use stays, whoever uses it and whoever collects; what is not, goes.

mod support;

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Answer, Derrick, GUARD, GitServer, Launch, binary, fixture, wait_until_empty};

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

/// What was removed.
fn removed(answer: Answer) -> Vec<String> {
    let told = answer.expect(200).json();
    let removed = told["removed"].as_array().expect("a list");
    let text = |digest: &Value| digest.as_str().expect("a text").to_owned();
    removed.iter().map(text).collect()
}

/// Has a layer be one that was made and used so many seconds ago.
fn age(state: &Path, digest: &str, seconds: u64) {
    let then = std::time::SystemTime::now() - Duration::from_secs(seconds);
    let used = path_of(state, digest).join("used");
    let file = File::options().write(true).open(used);
    let file = file.expect("it is noted");
    file.set_modified(then).expect("the test's own");
    let meta = path_of(state, digest).join("meta.json");
    let text = std::fs::read(&meta).expect("it is there");
    let mut changed: Value = serde_json::from_slice(&text).expect("JSON");
    let made = then.duration_since(std::time::UNIX_EPOCH).expect("later");
    changed["created"] = json!(made.as_secs());
    std::fs::write(&meta, changed.to_string()).expect("the test's own");
}

fn until_gone(path: &Path) {
    let guard = Instant::now() + GUARD;
    while path.exists() {
        assert!(Instant::now() < guard, "{} is there", path.display());
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn counted(provider: &Derrick, series: &str) -> f64 {
    let text = provider.api.get("/metrics").expect(200).text();
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = line.unwrap_or_else(|| panic!("no {series} in {text}"));
    value.parse().expect("a number")
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

    // Of another config by then, and stopped: its record says that it is used, and the provider, which read that.
    provider.stop();
    provider.configure(&with_setup("echo two > /two"));
    provider.start_again();
    let second = provider.create();
    let two = layer_of(&second);
    assert_ne!(one, two);
    let by_record = format!("workspace {}", first.id);
    assert_eq!(users_of(&state, &one), [&by_record, "process"]);
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
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    let used = path_of(&state, &two).join("used");
    let file = File::options().write(true).open(used);
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
        let mut gone = 0;
        // One that fails ends too.
        while !running.iter().all(|one| one.is_finished()) {
            gone += gc(state, &[]).len();
            gone += removed(provider.api.post("/gc", &json!({}))).len();
            let workspace = provider.create();
            assert_eq!(workspace.ok("cat /served"), "served\n");
            assert!(workspace.delete());
        }
        gone += gc(state, &[]).len();
        assert!(gone > 0, "there was nothing to lose");
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

/// Three layers that nothing uses, of a mebibyte each, the oldest first; nothing serves them.
fn three_unused(provider: &mut Derrick) -> [String; 3] {
    let state = provider.state();
    let mut made = Vec::new();
    for name in ["one", "two", "three"] {
        provider.stop();
        let fill = format!("dd if=/dev/urandom of=/{name} bs=1024 count=1024");
        provider.configure(&with_setup(&fill));
        provider.start_again();
        let workspace = provider.create();
        made.push(layer_of(&workspace));
        assert!(workspace.delete());
    }
    provider.stop();
    let made: [String; 3] = made.try_into().expect("three");
    for (digest, hours) in made.iter().zip([30, 20, 10]) {
        age(&state, digest, hours * 3600);
    }
    made
}

fn total(state: &Path) -> u64 {
    let told = json_of(&derrick(&["layers", "--json"], state));
    let layers = told["layers"].as_array().expect("a list");
    layers
        .iter()
        .map(|layer| layer["bytes"].as_u64().expect("a size"))
        .sum()
}

#[test]
fn a_bound_of_size_keeps_what_is_used_and_the_newest() {
    let mut provider = Derrick::start(with_setup("true"));
    let state = provider.state();
    let [one, two, three] = three_unused(&mut provider);
    // Room for one more like them, if two of them go.
    let bound = total(&state) - (1 << 19);
    let mut config = with_setup("dd if=/dev/urandom of=/four bs=1024 count=1024");
    config["layers"] = json!({ "max_size": bound });
    provider.configure(&config);
    provider.start_again();
    until_gone(&path_of(&state, &one));
    let workspace = provider.create();
    until_gone(&path_of(&state, &two));
    assert!(total(&state) <= bound);
    assert!(path_of(&state, &three).exists());
    assert_eq!(workspace.ok("wc -c </four"), "1048576\n");
    assert!(path_of(&state, &layer_of(&workspace)).exists());
    let layers = counted(&provider, "derrick_collected_total{what=\"layer\"}");
    assert!(layers >= 2.0, "{layers}");
    assert!(counted(&provider, "derrick_collected_bytes_total") > f64::from(2 << 20));
    assert_eq!(
        counted(&provider, "derrick_layers_bytes"),
        total(&state) as f64
    );
}

#[test]
fn a_bound_of_age_counts_from_the_last_use_and_a_snapshot_has_none() {
    let mut provider = Derrick::start(with_setup("true"));
    let state = provider.state();
    let [one, two, three] = three_unused(&mut provider);
    let mut config = with_setup("echo four > /four");
    config["layers"] = json!({ "max_age": 15 * 3600 });
    provider.configure(&config);
    provider.start_again();
    until_gone(&path_of(&state, &one));
    until_gone(&path_of(&state, &two));
    let workspace = provider.create();
    let kept = layer_of(&workspace);
    let snapshot = workspace.api().post(
        &format!("/workspaces/{}/snapshots", workspace.id),
        &json!({}),
    );
    let snapshot = snapshot.expect(201).json();
    let of_snapshot = layer_of(&workspace);
    assert_ne!(kept, of_snapshot, "{snapshot}");
    assert!(workspace.delete());
    for digest in [&kept, &of_snapshot, &three] {
        age(&state, digest, 100 * 3600);
    }
    // Each removal of a workspace has it look.
    let guard = Instant::now() + GUARD;
    while path_of(&state, &three).exists() {
        assert!(Instant::now() < guard, "it does not look");
        assert!(provider.create().delete());
    }
    for digest in [&kept, &of_snapshot] {
        assert!(path_of(&state, digest).exists(), "{digest}");
        let used = path_of(&state, digest).join("used");
        let noted = std::fs::metadata(used).expect("it is there").modified();
        // What is used was used when it was looked at.
        let since = noted.expect("a time").elapsed().unwrap_or_default();
        assert!(since < Duration::from_secs(3600), "{since:?}");
    }
}

#[test]
fn the_store_is_for_operators() {
    const ALL: &str = "0123456789abcdef0123456789abcdef";
    const OWN: &str = "00112233445566778899aabbccddee01";
    let provider = Launch::new(with_setup("echo it > /it"))
        .token(&format!("{ALL}\n{OWN} name=a scope=own\n"))
        .start();
    let workspace = provider.create();
    let layer = layer_of(&workspace);
    let own = provider.api.with_token(Some(OWN));
    for refused in [own.get("/layers"), own.post("/gc", &json!({}))] {
        let problem = refused.problem(403);
        assert_eq!(problem["type"], "urn:derrick:problem:beyond-scope");
    }
    provider
        .api
        .post("/gc", &json!({ "max_age": -1 }))
        .problem(400);
    assert_eq!(
        removed(provider.api.post("/gc", &json!({ "max_size": 0 }))),
        Vec::<String>::new()
    );
    // The command line asks for the same.
    let scratch = support::Scratch::new();
    let token = scratch.file("token", ALL);
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("its owner");
    let ask = |words: &[&str]| {
        let mut command = Command::new(binary());
        command.args(words).arg("--server");
        command.arg(format!("http://{}", provider.api.address()));
        command.arg("--token-file").arg(&token);
        json_of(&command.output().expect("it starts"))
    };
    let listed = ask(&["layers", "--json"]);
    assert_eq!(listed, provider.api.get("/layers").expect(200).json());
    let listed = listed["layers"].as_array().expect("a list").clone();
    assert!(listed.iter().any(|one| one["digest"] == layer.as_str()));
    let told = ask(&["gc", "--json", "--dry-run"]);
    assert_eq!(told["removed"], json!([]), "{told}");
}

#[test]
fn a_mirror_goes_with_the_last_layer_that_is_made_of_it() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("README", "text\n")]);
    let with_repository = json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "repositories": [{ "url": upstream.url, "path": "/code/project" }],
    });
    let mut provider = Derrick::start(with_repository);
    let state = provider.state();
    let workspace = provider.create();
    let mirrors = || {
        let all = support::entries(&state.join("mirrors"));
        let mut mirrors = all.iter().filter(|name| name.ends_with(".git"));
        let first = mirrors.next().map(|name| state.join("mirrors").join(name));
        assert!(mirrors.next().is_none(), "{all:?}");
        first
    };
    let mirror = mirrors().expect("there is one");
    let collect = |provider: &Derrick| {
        let answer = provider.api.post("/gc", &json!({}));
        answer.expect(200).json()["mirrors"].clone()
    };
    // One that was used just now may be on its way to a layer.
    let forget = || {
        let lock = File::options()
            .write(true)
            .open(mirror.with_extension("lock"));
        let then = std::time::SystemTime::now() - Duration::from_secs(3600);
        lock.and_then(|lock| lock.set_modified(then))
            .expect("the test's own");
    };
    forget();
    assert_eq!(collect(&provider), 0, "the config has it");
    provider.stop();
    provider.configure(&with_setup("true"));
    provider.start_again();
    provider.create();
    assert_eq!(collect(&provider), 0, "a workspace's layer has it");
    let workspace = provider.api.workspace(&workspace.id);
    assert_eq!(workspace.ok("cat /code/project/README"), "text\n");
    assert!(workspace.delete());
    let lock = File::open(&mirror).expect("it is there");
    lock.lock_shared().expect("nobody has it");
    assert_eq!(collect(&provider), 0, "somebody reads it");
    assert!(mirror.exists());
    drop(lock);
    assert_eq!(collect(&provider), 1);
    assert_eq!(mirrors(), None);
    wait_until_empty(&state.join("trash"));
}
