//! The pool: pristine sandboxes are ready, are what they are said to be, or are put away; and what
//! workspaces are done with is disposed of without anybody waiting for it.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::XattrFlags;
use serde_json::{Value, json};
use support::{
    Derrick, Launch, Lives, Mode, Workspace, descendants, fixture, mode, namespaces, succeed,
    wait_until_empty,
};

/// How long something may take that comes by itself.
const GUARD: Duration = Duration::from_secs(60);

/// A number that derrick tells of itself.
fn metric(derrick: &Derrick, series: &str) -> u64 {
    let text = derrick.api.get("/metrics").expect(200).text();
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = values
        .next()
        .unwrap_or_else(|| panic!("no {series} in {text}"));
    value.parse().expect("a number")
}

fn ready(derrick: &Derrick) -> u64 {
    metric(derrick, "derrick_pool{state=\"ready\"}")
}

fn quarantined(derrick: &Derrick) -> u64 {
    metric(derrick, "derrick_sandboxes_quarantined_total")
}

/// Looks again and again until it is so.
fn until(is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < GUARD, "it never was");
        std::thread::yield_now();
    }
}

/// A small base with a setup layer of its own.
fn small() -> Value {
    json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "setup_script": "mkdir /made; echo by setup > /made/file; ln -s file /made/link",
    })
}

#[test]
fn one_is_ready_for_the_next_who_asks_and_none_where_the_config_wants_none() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    until(|| ready(&derrick) == 1);
    let started = metric(&derrick, "derrick_sandboxes_started_total");
    let receipt = workspace.reset();
    assert_eq!(receipt["waited_us"], json!(0), "{receipt}");
    // What was taken is made up for.
    until(|| ready(&derrick) >= 1 && metric(&derrick, "derrick_sandboxes_started_total") > started);

    let none = Derrick::start(json!({ "name": "test", "pool": { "size": 0 } }));
    let workspace = none.create();
    let receipt = workspace.reset_and_wait();
    assert!(receipt["waited_us"].as_u64() > Some(0), "{receipt}");
    assert_eq!(ready(&none), 0);
    assert!(workspace.delete());
    // The spawner, the first of them, stays; what removed files ends when it has.
    wait_until_empty(&none.state().join("trash"));
    Lives::of(&descendants(none.pid())[1..]).assert_gone();
}

#[test]
fn the_pool_keeps_to_its_memory() {
    let config = json!({ "name": "test", "pool": { "size": 100, "memory": "6MiB" } });
    let derrick = &Derrick::start(config);
    let workspaces: Vec<_> = (0..8).map(|_| derrick.create()).collect();
    std::thread::scope(|scope| {
        for workspace in &workspaces {
            scope.spawn(|| (0..5).for_each(|_| drop(workspace.reset())));
        }
    });
    until(|| metric(derrick, "derrick_pool{state=\"making\"}") == 0);
    assert!(ready(derrick) <= 3, "{}", ready(derrick));
}

#[test]
fn who_takes_from_an_empty_pool_waits_and_nobody_is_forgotten() {
    let derrick = &Derrick::start(json!({ "name": "test", "pool": { "size": 1 } }));
    let workspaces: Vec<_> = (0..12).map(|_| derrick.create()).collect();
    let receipts: Vec<Value> = std::thread::scope(|scope| {
        let resets: Vec<_> = workspaces
            .iter()
            .map(|workspace| {
                scope.spawn(|| {
                    workspace.ok("echo x > /x; (sleep 1000 > /dev/null 2>&1 &)");
                    let receipt = workspace.reset();
                    assert_eq!(
                        workspace.ok("ls /x 2> /dev/null; hostname"),
                        workspace.ok("hostname")
                    );
                    receipt
                })
            })
            .collect();
        resets
            .into_iter()
            .map(|reset| reset.join().expect("it is answered"))
            .collect()
    });
    let waited = |receipt: &&Value| receipt["waited_us"].as_u64() > Some(0);
    assert!(receipts.iter().filter(waited).count() > 0, "{receipts:?}");
    assert_eq!(metric(derrick, "derrick_pool{state=\"waiting\"}"), 0);
}

#[test]
fn one_that_died_while_it_waited_is_put_away() {
    if mode() == Mode::Subordinate {
        // Nobody but root may signal a process of a subordinate id.
        return;
    }
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    until(|| ready(&derrick) == 1);
    let used = workspace.ok("hostname");
    // Of the sandboxes' inits that which no workspace has: nothing can be started in it.
    workspace.ok("setsid -f sleep 1000 > /dev/null 2>&1");
    let inits = inits(&derrick);
    let own: Vec<_> = inits
        .iter()
        .filter(|init| descendants(**init).is_empty())
        .collect();
    let Ok([pristine]) = <[_; 1]>::try_from(own) else {
        panic!("{inits:?}");
    };
    let lives = Lives::of(&[*pristine]);
    kill(Pid::from_raw(*pristine), Signal::SIGKILL).expect("it is there");
    lives.assert_gone();
    workspace.reset();
    assert_eq!(workspace.ok("hostname"), used);
    assert_eq!(quarantined(&derrick), 1);
    // A pool that is whole again has another one.
    until(|| ready(&derrick) >= 1);
}

/// The inits of all sandboxes: what the spawner is the parent of and has a pid namespace of its own.
fn inits(derrick: &Derrick) -> Vec<i32> {
    let spawner = descendants(derrick.pid())[0];
    let children = std::fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children"));
    let children = children.expect("the spawner is there");
    children
        .split_whitespace()
        .map(|pid| pid.parse().expect("a process id"))
        .filter(|pid| namespaces(*pid).get("pid") != namespaces(spawner).get("pid"))
        .collect()
}

#[test]
fn a_reset_tells_all_that_it_discarded_once_it_is_gone() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let mut events = workspace.events(None);
    workspace.ok(
        "mkdir /dirt; cd /dirt; seq 2000 | xargs touch; ln 1 again; head -c 4M /dev/zero > zeros
         for n in $(seq 300); do sleep 1000 > /dev/null 2>&1 & done",
    );
    let receipt = workspace.reset();
    assert_eq!(receipt["discarded"], Value::Null, "{receipt}");
    let mut reset = None;
    let disposed = events.find(|event| {
        reset = reset
            .take()
            .or((event.name == "reset").then(|| event.data.clone()));
        event.name == "disposed"
    });
    let disposed = disposed.expect("it is told").data;
    assert!(reset.is_some(), "the disposal was told before the reset");
    assert_eq!(disposed["generation"], receipt["generation"], "{disposed}");
    assert_eq!(disposed["processes"], json!(300), "{disposed}");
    // And the directories that every generation has.
    let files = disposed["files"].as_u64().expect("it is counted");
    assert!((2003..2100).contains(&files), "{disposed}");
    let bytes = disposed["bytes"].as_u64().expect("it is counted");
    assert!((4 << 20..64 << 20).contains(&bytes), "{disposed}");
}

/// Fifty processes of the workspace that are never done.
fn busy(derrick: &Derrick, workspace: &Workspace) -> Vec<i32> {
    workspace.ok("mkfifo /tmp/started; exec 3<> /tmp/started
        for n in $(seq 50); do
            setsid -f sh -c 'echo > /tmp/started; while :; do :; done' > /dev/null 2>&1 3>&-
        done
        head -n 50 <&3 > /dev/null");
    let running = descendants(derrick.pid());
    let busy: Vec<_> = running
        .into_iter()
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"sh\0-c\0echo")
        })
        .collect();
    assert_eq!(busy.len(), 50);
    busy
}

#[test]
fn no_process_of_before_runs_once_a_reset_tells_what_it_discarded() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let busy = busy(&derrick, &workspace);
    let path = format!("/workspaces/{}/reset?wait=disposal", workspace.id);
    let receipt = derrick.api.request("POST", &path, None).expect(200).json();
    assert_eq!(receipt["discarded"]["processes"], json!(50), "{receipt}");
    for pid in busy {
        let there = std::fs::exists(format!("/proc/{pid}")).expect("/proc is mounted");
        assert!(!there, "{pid} is there");
    }
}

#[test]
fn no_process_of_before_that_reaches_the_hosts_network_runs_once_a_reset_is_answered() {
    let derrick = Launch::new(json!({ "name": "test", "network": "host" }))
        .token("a-token-that-the-workspace-does-not-know")
        .start();
    let workspace = derrick.create();
    let busy = busy(&derrick, &workspace);
    workspace.reset();
    for pid in busy {
        // It has been killed, and whatever it was doing is over but its end in the kernel.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let pending = status.lines().find_map(|line| {
            line.strip_prefix("SigPnd:")?
                .trim()
                .get(..)
                .map(str::to_owned)
        });
        let pending = pending.and_then(|bits| u64::from_str_radix(&bits, 16).ok());
        let is_dying = status.is_empty()
            || status.contains("State:\tZ")
            || status.contains("State:\tX")
            || pending.is_some_and(|bits| bits & (1 << (libc::SIGKILL - 1)) != 0)
            || std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty());
        assert!(is_dying, "{status}");
    }
}

#[test]
fn what_a_workspace_gets_is_compared_with_what_its_layer_shows() {
    let derrick = Derrick::start(small());
    let workspace = derrick.create();
    let verified = || {
        let path = format!("/workspaces/{}/reset?verify=full", workspace.id);
        derrick.api.request("POST", &path, None)
    };
    workspace.ok("rm -r /made; mkdir /made; echo other > /made/file; echo x > /x");
    let first = verified().expect(200).json()["verified"].take();
    assert!(first["entries"].as_u64() > Some(10), "{first}");
    workspace.ok("chmod 700 /made/file; rm /made/link");
    let again = verified().expect(200).json()["verified"].take();
    assert_eq!(again, first);
    assert_eq!(workspace.ok("cat /made/link"), "by setup\n");
    let receipt = workspace.reset();
    assert_eq!(receipt["verified"], Value::Null, "{receipt}");
    assert_eq!(quarantined(&derrick), 0);

    // Where `/tmp` is a filesystem of its own that of the layer does not show.
    workspace.ok("echo x > /tmp/x");
    let path = format!("/workspaces/{}", workspace.id);
    let wish = json!({ "limits": { "tmp": "16MiB" } });
    derrick.api.request("PATCH", &path, Some(&wish)).expect(200);
    let other = verified().expect(200).json()["verified"].take();
    assert!(
        other["entries"].as_u64() < first["entries"].as_u64(),
        "{other}"
    );
    assert_eq!(quarantined(&derrick), 0);

    // A layer that somebody changed on disk, which derrick never does.
    if mode() != Mode::Root {
        return;
    }
    let layer = workspace.describe()["layer"].clone();
    let layer = derrick
        .state()
        .join("layers")
        .join(layer.as_str().expect("a layer has a name"));
    let file = layer.join("tree/0/made/file");
    let before = std::fs::metadata(&file).expect("the layer has it");
    // An attribute, which no time tells of that is looked at.
    rustix::fs::setxattr(&file, "user.x", b"x", XattrFlags::empty()).expect("ext4 has them");
    verified().problem(500);
    rustix::fs::removexattr(&file, "user.x").expect("it is there");
    verified().expect(200);
    // Of the same length, with the same times.
    succeed(Command::new("sh").arg("-c").arg(format!(
        "echo BY SETUP > {0}; touch -d @{1}.{2:09} {0}",
        file.display(),
        std::os::unix::fs::MetadataExt::mtime(&before),
        std::os::unix::fs::MetadataExt::mtime_nsec(&before),
    )));
    workspace.ok("echo mine > /mine");
    let problem = verified().problem(500);
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("another one of its layer"), "{problem}");
    assert!(quarantined(&derrick) >= 1);
    // The workspace has what it had.
    assert_eq!(workspace.ok("cat /mine"), "mine\n");
}

#[test]
fn a_query_that_means_nothing_is_refused() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for query in [
        "wait=long",
        "wait=true",
        "verify=some",
        "verify=",
        "sure=yes",
    ] {
        let path = format!("/workspaces/{}/reset?{query}", workspace.id);
        let problem = derrick.api.request("POST", &path, None).problem(400);
        assert!(problem["detail"].is_string(), "{problem}");
    }
    assert_eq!(workspace.reset()["generation"], json!(1));
}
