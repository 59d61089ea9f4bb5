//! Whatever workspaces go through, their provider and its spawner end up as they began, and so do the
//! layers and the state directory.
//!
//! What a whole suite leaves of the host is `tests/leftovers`' to find.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use support::{
    Api, Derrick, GUARD, Launch, Lives, Workspace, as_owner, cgroup_directories, descendants,
    digest_of_tree, fixture, groups_of, namespaces, open_files, succeed, wait_until_empty,
};

/// What must not change, one line for each thing.
#[derive(Debug, Clone, PartialEq)]
struct Picture(BTreeSet<String>);

impl Picture {
    fn of(derrick: &Derrick) -> Self {
        let below = descendants(derrick.pid());
        let spawner = below[0];
        let mut lines = BTreeSet::new();
        for (name, pid) in [("provider", derrick.pid()), ("spawner", spawner)] {
            lines.extend(process(pid).map(|line| format!("{name}: {line}")));
        }
        lines.insert(format!("spawner: {} threads", threads(spawner)));
        lines.insert(format!("{} processes below it", below.len() - 1));
        let groups = groups_of(&derrick.state());
        lines.extend(groups.iter().map(|group| group.display().to_string()));
        lines.extend(names_below(&derrick.state()));
        let layers = digest_of_tree(&derrick.state().join("layers"));
        lines.insert(format!("layers {layers}"));
        Self(lines)
    }

    /// The picture when it is the same twice: connections that clients let go are closed behind the last
    /// answer.
    fn settled(derrick: &Derrick) -> Self {
        let mut last = Self::of(derrick);
        loop {
            let now = Self::of(derrick);
            if now == last {
                return now;
            }
            last = now;
        }
    }

    /// Fails the test unless there comes to be what this shows.
    fn assert_again(&self, derrick: &Derrick) {
        let until = Instant::now() + GUARD;
        loop {
            let now = Self::of(derrick);
            if now == *self {
                return;
            }
            let gone: Vec<_> = self.0.difference(&now.0).collect();
            let new: Vec<_> = now.0.difference(&self.0).collect();
            assert!(Instant::now() < until, "gone: {gone:#?}\nnew: {new:#?}");
        }
    }
}

/// What is seen of a process on its host.
fn process(pid: i32) -> impl Iterator<Item = String> {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/{pid}/{name}"))
            .unwrap_or_else(|error| panic!("{name} of process {pid}: {error}"))
    };
    let mut descriptors: BTreeMap<String, usize> = BTreeMap::new();
    for file in open_files(pid) {
        let name = file.to_string_lossy().into_owned();
        // Of pipes and sockets the numbers are new each time; the spawner keeps user namespaces for the
        // next sandboxes of the same ids, up to a bound.
        let name = match name.split_once(":[") {
            Some(("user", _)) => continue,
            Some((kind, _)) => kind.to_owned(),
            None => name,
        };
        *descriptors.entry(name).or_default() += 1;
    }
    let kept = ["Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Umask"];
    let status = read("status");
    let status = status
        .lines()
        .filter(|line| line.starts_with("Cap") || kept.iter().any(|name| line.starts_with(name)));
    let status: Vec<_> = status.map(str::to_owned).collect();
    let text = [read("mountinfo"), read("cgroup"), read("limits")].concat();
    let descriptors = descriptors.into_iter();
    descriptors
        .map(|(name, count)| format!("{count} × {name}"))
        .chain(namespaces(pid).into_values())
        .chain(status)
        .chain(text.lines().map(str::to_owned).collect::<Vec<_>>())
}

fn kept_namespaces(pid: i32) -> usize {
    let user = |file: &PathBuf| file.to_string_lossy().starts_with("user:[");
    open_files(pid).iter().filter(|file| user(file)).count()
}

fn threads(pid: i32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    tasks.count()
}

fn names_below(state: &Path) -> BTreeSet<String> {
    let listed = succeed(as_owner("find").arg(state).args([
        "-path",
        "*/layers/*/*",
        "-prune",
        "-o",
        "-printf",
        "%y %P\n",
    ]));
    listed.lines().map(str::to_owned).collect()
}

/// Everything that a workspace can be asked for, well and badly; each leaves the workspace for the next.
fn use_it(workspace: &Workspace) {
    commands(workspace);
    execs(workspace);
    sessions(workspace);
    files(workspace);
    refused(workspace);
    let upper = "echo x > /etc/new; rm -r /bin/vi; mkdir -p /a/b; mkfifo /pipe; ln -s /etc /link";
    workspace.ok(upper);
    workspace.reset();
    workspace.ok("test ! -e /etc/new");
}

fn commands(workspace: &Workspace) {
    workspace.ok("echo x > /file; (sleep 1000 > /dev/null 2>&1 &)");
    assert_eq!(workspace.sh("exit 3").exit_code, 3);
    assert_eq!(workspace.sh("kill -9 $$").exit_code, 137);
    let ran = workspace.sh_with("sleep 1000 & sleep 1000", &json!({ "timeout": 1 }));
    assert_eq!(ran.exit_code, 124);
    workspace.cmd("true").expect(200);
    workspace.write_file("/written", b"x");
    assert_eq!(workspace.read_file("/written"), b"x");
}

fn execs(workspace: &Workspace) {
    let reading = workspace.exec(&json!({ "cmd": "cat", "stdin": "open" }));
    reading.write(b"some").expect(200);
    reading.write_last(b"more").expect(200);
    assert_eq!(reading.ended()["outcome"]["kind"], "exited");
    let terminal =
        workspace.exec(&json!({ "cmd": "sleep 1000", "tty": { "rows": 24, "cols": 80 } }));
    terminal.signal(&json!({ "signal": "TERM" })).expect(200);
    assert_eq!(terminal.outcome()["kind"], "signaled");
    let killed = workspace.exec_sh("echo begun; setsid sleep 1000 & exec sleep 1000");
    killed.until_printed("begun");
    // A reader that goes away in the middle.
    drop(killed.follow("stream=stdout"));
    drop(workspace.events(None));
    assert_eq!(killed.kill()["outcome"]["kind"], "killed");
    // What prints without end is cut.
    let flood = workspace.run_with(&json!({ "cmd": "head -c 30000000 /dev/zero" }));
    assert_eq!(flood["truncated"], true);
    workspace
        .exec_with_key("a-key", &json!({ "cmd": "true", "wait": true }))
        .expect(201);
}

fn sessions(workspace: &Workspace) {
    workspace
        .post("sessions", &json!({ "name": "s" }))
        .expect(201);
    let run = |body: Value| workspace.post("sessions/s/run", &body).expect(200).json();
    assert_eq!(
        run(json!({ "cmd": "cd /tmp; sleep 1000 &" }))["outcome"]["code"],
        0
    );
    let late = run(json!({ "cmd": "sleep 1000", "timeout": 0.2 }));
    assert_eq!(late["outcome"]["kind"], "deadline");
    run(json!({ "cmd": "exit 4" }));
    workspace
        .post("sessions", &json!({ "name": "t" }))
        .expect(201);
    let left = format!("/workspaces/{}/sessions/t", workspace.id);
    workspace.api().delete(&left).expect(200);
}

fn files(workspace: &Workspace) {
    let body = |method: &str, path: &str, query: &str, body: &[u8]| {
        workspace.on_file(method, path, query, body)
    };
    body("PUT", "/d/file", "", &[b'x'; 1 << 20]).expect(201);
    body("GET", "/d/file", "", b"").expect(200);
    body("GET", "/d", "", b"").expect(200);
    body("POST", "/d/file", "", br#"{"copy":{"to":"/d/copy"}}"#).expect(200);
    workspace.ok("head -c 50000000 /dev/zero > /d/large");
    body("POST", "/d/copy", "", br#"{"move":{"to":"/d/moved"}}"#).expect(200);
    body("POST", "/d/moved", "", br#"{"chmod":{"mode":"0600"}}"#).expect(200);
    // One that goes away in the middle.
    drop(
        workspace
            .api()
            .open(&format!("{}?archive=tar", workspace.file("/d")), &[]),
    );
    body("DELETE", "/d/large", "", b"").expect(200);
    for format in ["tar", "tar.gz", "tar.zst"] {
        let query = format!("?archive={format}");
        let archive = body("GET", "/d", &query, b"").expect(200).body;
        body("PUT", "/unpacked", &query, &archive).expect(200);
        // Half of one.
        let answer = body("PUT", "/broken", &query, &archive[..archive.len() / 2]);
        assert!(answer.status >= 400, "{}", answer.text());
    }
    body("DELETE", "/unpacked", "?recursive=true", b"").expect(200);
}

fn refused(workspace: &Workspace) {
    for (method, path) in [
        ("GET", "/nothing"),
        ("GET", "/proc/1/environ"),
        ("GET", "/dev/zero"),
        ("DELETE", "/etc"),
        ("PUT", "/proc/file"),
    ] {
        let answer = workspace.on_file(method, path, "", b"");
        assert!(answer.status >= 400, "{method} {path}: {}", answer.text());
    }
    for body in [
        json!({}),
        json!({ "cmd": 1 }),
        json!({ "argv": [] }),
        json!({ "argv": ["/nothing"] }),
        json!({ "cmd": "true", "user": "nobody-of-that-name" }),
        json!({ "cmd": "true", "cwd": "/nothing" }),
    ] {
        // Whether it never starts or starts and fails, nothing may stay.
        workspace.post("execs", &body);
    }
    workspace.post("sessions/none/run", &json!({ "cmd": "true" }));
    workspace
        .api()
        .post("/workspaces", &json!({ "env": { "A=B": "x" } }))
        .problem(400);
    workspace
        .api()
        .workspace("01900000-0000-7000-8000-000000000000")
        .cmd("true")
        .problem(404);
    // Bytes that are no request, and one that stops in the middle.
    workspace.api().raw(b"nonsense\r\n\r\n");
}

#[test]
fn provider_spawner_layers_and_state_end_up_as_they_began() {
    let derrick = Launch::new(json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "setup_script": "echo setup > /setup; rm /bin/ed; mkdir -p /layer/d; ln -s d /layer/link",
        // Every sandbox is a workspace's.
        "pool": { "size": 0 },
    }))
    .start();
    let round = || {
        let limits = json!({ "memory": 256 << 20, "pids": 100 });
        // Connections of its own, which are closed with it.
        let api = Api::new(derrick.api.address(), None);
        let workspaces = [
            api.create_limited(&limits),
            api.create_limited(&limits),
            api.create(),
        ];
        std::thread::scope(|scope| {
            for workspace in &workspaces {
                scope.spawn(|| use_it(workspace));
            }
        });
        let lives = Lives::below(derrick.pid());
        for workspace in &workspaces {
            // One is deleted while it is busy.
            workspace.exec_sh("sleep 1000");
            assert!(workspace.delete());
        }
        wait_until_empty(&derrick.state().join("trash"));
        // The first is the spawner, which stays.
        Lives::of(&descendants(derrick.pid())[1..]).assert_gone();
        let left = cgroup_directories(lives.cgroups());
        assert!(left.is_empty(), "{left:?}");
    };
    // What the first workspaces bring into being for good, such as the layer, is not left behind.
    round();
    let before = Picture::settled(&derrick);
    assert!(before.0.contains("spawner: 1 threads"), "{before:#?}");
    assert!(before.0.contains("0 processes below it"), "{before:#?}");
    for _ in 0..2 {
        round();
    }
    before.assert_again(&derrick);
    let spawner = descendants(derrick.pid())[0];
    assert!(kept_namespaces(spawner) <= 128);
    // What is not as it was is seen.
    let layers = derrick.state().join("layers");
    succeed(as_owner("chmod").arg("u+s").arg(&layers));
    let changed = Picture::of(&derrick);
    assert_eq!(changed.0.difference(&before.0).count(), 1, "{changed:#?}");
    let there = derrick.create();
    let changed = Picture::of(&derrick);
    assert!(changed.0.difference(&before.0).count() > 3, "{changed:#?}");
    assert!(there.delete());
    assert_eq!(derrick.api.list(), Vec::<String>::new());
}
