//! Cycles of everything that a harness does with workspaces: create, run, dirty, reset, run, delete; many at once.
//!
//! Which kind of dirt a cycle makes depends on its number alone, so that a run of some hundred has every kind.

use std::io::Write;
use std::net::TcpStream;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use super::{Api, Derrick, Launch, Mode, Workspace, fixture, mode};

/// How many clients work at once.
pub(crate) const CLIENTS: usize = 16;

/// What clients say who they are with: of a connection that is closed at once the kernel tells no user.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// What setup makes, as a workspace shows it.
const MADE: &str = "made by setup\n";

/// How to start the provider whose workspaces are worked with.
pub(crate) fn launch() -> Launch {
    Launch::new(json!({
        "name": "cycles",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "setup_script": "mkdir -p /layer/d; echo made by setup > /layer/d/file; rm /bin/ed",
        "limits": { "shm": "2MiB" },
        // A small one is soon back at what is kept for ever.
        "pool": { "size": 2 },
    }))
    .token(TOKEN)
}

/// Files, processes that nobody is the parent of any more, memory, sockets. Ends when all of it is there.
const DIRT: &str = r#"
mkdir /dirty; n=0; while [ $n -lt 300 ]; do echo $n > /dirty/$n; n=$((n + 1)); done
rm -r /layer; echo changed > /etc/passwd; ln -s /proc/self /link; mkfifo /pipe; chmod 0 /dirty; mkdir -p /a/b/c
quiet() { "$@" < /dev/null > /dev/null 2>&1; }
n=0; while [ $n -lt 8 ]; do quiet sleep 1000 & n=$((n + 1)); done
quiet setsid sh -c 'sleep 1000 & sleep 1000' &
quiet sh -c 'setsid sh -c "trap : TERM INT HUP; sleep 1000 & wait" & exit' &
quiet nc -l -p 4000 &
cat /dev/zero > /dev/shm/full 2> /dev/null && exit 1
exit 0
"#;

/// What differs from the state after setup: nothing. Prints what setup made.
const PRISTINE: &str = r#"
test ! -e /dirty && test ! -e /link && test ! -e /put && test ! -e /a || exit 11
test -z "$(ls -A /dev/shm)" || exit 12
test "$(ls /proc | grep -c '^[0-9]')" -le 5 || { ps; exit 13; }
test ! -e /bin/ed && grep -q ^root: /etc/passwd || exit 14
cat /layer/d/file
"#;

/// Does the cycles of these numbers, [`CLIENTS`] at once.
pub(crate) fn run(derrick: &Derrick, numbers: Range<u64>) {
    let next = AtomicU64::new(numbers.start);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                // Connections of its own, which are closed with it.
                let api = derrick.api.with_token(Some(TOKEN));
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        return;
                    }
                    cycle(&api, number);
                }
            });
        }
    });
}

fn cycle(api: &Api, number: u64) {
    let workspace = create(api, number);
    pristine(&workspace);
    dirty(&workspace, number);
    if abandons(number) {
        // By a client that does not wait for it: it is done all the same, before or after the next.
        abandon(api, &format!("/workspaces/{}/reset", workspace.id));
    }
    if number % 4 != 3 {
        let receipt = workspace.reset();
        assert_eq!(receipt["upper_entries"], 0, "{receipt}");
        until_pristine(&workspace, number);
        if number % 4 == 1 && !abandons(number) {
            dirty(&workspace, number);
        }
    }
    assert!(workspace.delete());
    assert!(!workspace.delete());
}

/// Whether a reset of this cycle is not waited for.
fn abandons(number: u64) -> bool {
    number % 7 == 3
}

fn create(api: &Api, number: u64) -> Workspace {
    match number % 8 {
        // In control groups, where there are any.
        2 | 5 => api.create_limited(&json!({ "memory": 256 << 20, "pids": 200 })),
        // On an image and a loop device.
        6 if mode() == Mode::Root => api.create_with(&json!({ "limits": { "disk": 64 << 20 } })),
        7 => api.create_with(&json!({ "limits": { "tmp": 1 << 20 }, "env": { "A": "b" } })),
        _ => api.create(),
    }
}

fn pristine(workspace: &Workspace) {
    assert_eq!(workspace.ok(PRISTINE), MADE);
}

/// Where a reset that nobody waited for may come in between, the command that it ends is run again.
fn until_pristine(workspace: &Workspace, number: u64) {
    if !abandons(number) {
        return pristine(workspace);
    }
    for _ in 0..3 {
        let answer = workspace.post("cmd_with_output", &json!({ "cmd": PRISTINE }));
        if answer.status == 200 {
            assert_eq!(answer.json()["output"], MADE, "{}", answer.text());
            return;
        }
        answer.expect(409);
    }
    panic!("one reset ended three commands");
}

fn dirty(workspace: &Workspace, number: u64) {
    let ran = workspace.sh(DIRT);
    assert_eq!(ran.exit_code, 0, "{}", ran.output);
    match number % 6 {
        0 => {
            let open = workspace.exec(&json!({ "cmd": "cat", "stdin": "open" }));
            open.write(b"some").expect(200);
            let running = workspace.exec_sh("echo begun; exec sleep 1000");
            running.until_printed("begun");
            // Readers that go away, one in the middle and one before there is anything.
            drop(running.follow("stream=stdout"));
            drop(workspace.events(None));
        }
        1 => {
            workspace
                .post("sessions", &json!({ "name": "s" }))
                .expect(201);
            let run = json!({ "cmd": "cd /tmp; sleep 1000 &" });
            workspace.post("sessions/s/run", &run).expect(200);
        }
        2 => {
            workspace
                .on_file("PUT", "/put", "", &[b'x'; 1 << 20])
                .expect(201);
            drop(
                workspace
                    .api()
                    .open(&format!("{}?archive=tar", workspace.file("/bin")), &[]),
            );
        }
        3 => {
            workspace.exec(&json!({ "cmd": "sleep 1000", "tty": { "rows": 24, "cols": 80 } }));
            // The second time in a cycle it is known.
            let key = format!("key-{number}");
            let ran = workspace.exec_with_key(&key, &json!({ "cmd": "true", "wait": true }));
            assert!(ran.status < 300, "{}", ran.text());
        }
        4 => {
            let flood = workspace.exec_sh("cat /dev/zero");
            flood.follow("stream=stdout").some();
            assert_eq!(flood.kill()["outcome"]["kind"], "killed");
            workspace
                .sh_with("sleep 1000 & sleep 1000", &json!({ "timeout": 1 }))
                .expect(124);
        }
        _ => {
            // A command whose client goes away, and one that cannot start.
            workspace.exec(&json!({ "cmd": "sleep 1000", "stdin": "open" }));
            workspace.post("execs", &json!({ "argv": ["/nothing"] }));
            workspace
                .post("cmd", &json!({ "cmd": "exit 3" }))
                .expect(422);
        }
    }
}

/// Sends a request and closes the connection at once.
fn abandon(api: &Api, path: &str) {
    let mut stream = TcpStream::connect(api.address()).expect("derrick listens");
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 0\r\n\r\n",
        api.address()
    );
    stream
        .write_all(request.as_bytes())
        .expect("it takes a request");
}
