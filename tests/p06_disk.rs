//! P6, for what a workspace writes: a limit on its disk that is accepted is enforced, on an image and in
//! memory; one that cannot be enforced is refused; and the host's own disk keeps some room.

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::{Derrick, Launch, Mode, mode};

const DISK: u64 = 32 << 20;
const INODES: u64 = 500;

/// Writes twice as much as `DISK`.
const FILL: &str = "head -c 64M /dev/zero > /fill";

/// Makes more files than `INODES`.
const MANY: &str = "mkdir /many && cd /many && seq 2000 | xargs touch";

/// A provider for each storage that this user can have bounded: for root any, for others memory, where
/// the kernel is one of 6.6 or later.
fn bounded() -> Vec<Derrick> {
    let limits = json!({ "disk": DISK, "inodes": INODES });
    let storages: &[&str] = match mode() {
        Mode::Root => &["disk", "memory"],
        _ if attributes_in_memory() => &["memory"],
        _ => &[],
    };
    let start =
        |storage| Derrick::start(json!({ "name": "test", "storage": storage, "limits": limits }));
    storages.iter().map(|storage| start(*storage)).collect()
}

/// Whether this kernel is one of 6.6 or later.
fn attributes_in_memory() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("it is there");
    let mut numbers = release
        .split(['.', '-'])
        .map(|number| number.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 6)
}

#[test]
fn memory_of_a_kernel_that_cannot_hold_it_is_refused_by_name() {
    let derrick = Derrick::start(json!({ "name": "test", "storage": "memory" }));
    if mode() == Mode::Root || attributes_in_memory() {
        derrick.create().ok("touch /file");
        return;
    }
    let answer = derrick.api.post("/workspaces", &json!({}));
    let status = answer.status;
    let problem = answer.problem(status);
    assert!(status >= 500, "{problem}");
    assert!(
        problem["detail"].to_string().contains("Linux 6.6"),
        "{problem}"
    );
}

fn is_out_of_space(ended: &Value) {
    assert_eq!(ended["outcome"]["kind"], "disk_quota", "{ended}");
    assert_eq!(ended["exit_code"], ended["outcome"]["code"]);
    let printed = ended["output"]["stderr"].as_str().expect("text");
    assert!(printed.contains("No space left on device"), "{printed}");
}

/// The files below `directory` that some loop device is attached to.
fn attached_below(directory: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").expect("it is there");
    devices
        .filter_map(|device| fs::read_to_string(device.ok()?.path().join("loop/backing_file")).ok())
        .filter(|file| Path::new(file).starts_with(directory))
        .collect()
}

// D-04: disk fill.
#[test]
fn a_filled_disk_is_the_workspaces_own_and_told_for_what_it_is() {
    let free = Derrick::on_host();
    assert_eq!(free.create().run(FILL)["outcome"]["kind"], "exited");
    for derrick in bounded() {
        let (workspace, other) = (derrick.create(), derrick.create());
        let mut events = workspace.events(None);
        workspace.ok("echo kept > /kept");
        is_out_of_space(&workspace.run(FILL));
        let hit = events
            .find(|event| event.name == "limit_hit")
            .expect("it is told");
        assert_eq!(hit.data["limit"], "disk");
        // What it wrote and what it may write are in the description.
        let described = workspace.describe();
        assert_eq!(described["limits"]["disk"], DISK);
        let used = described["usage"]["disk"].as_u64().expect("a number");
        assert!(used > DISK - (2 << 20) && used < DISK + (4 << 20), "{used}");
        // Its files are what they were, and room can be made.
        assert_eq!(workspace.ok("cat /kept"), "kept\n");
        workspace
            .on_file("PUT", "/more", "", &vec![0; 4 << 20])
            .problem(507);
        workspace.ok("rm /fill && head -c 8M /dev/zero > /fits");
        // A failure while there is room has nothing to do with the disk.
        assert_eq!(workspace.run("exit 3")["outcome"]["kind"], "exited");
        other.ok("head -c 8M /dev/zero > /fits");
    }
}

// D-05: inode fill.
#[test]
fn files_without_number_end_at_the_limit() {
    let free = Derrick::on_host();
    free.create().ok(MANY);
    for derrick in bounded() {
        let (workspace, other) = (derrick.create(), derrick.create());
        is_out_of_space(&workspace.run(MANY));
        let made = workspace.ok("ls /many | wc -l");
        let made: u64 = made.trim().parse().expect("a number");
        assert!(made <= INODES + 1024, "{made} files");
        other.ok("touch /file");
        workspace.reset();
        workspace.ok("test ! -e /many && touch /file");
    }
}

#[test]
fn a_disk_of_its_own_is_there_after_a_restart_unless_it_is_memory() {
    for mut derrick in bounded() {
        let workspace = derrick.create();
        workspace
            .ok("echo kept > /kept; chown 5 /kept 2>/dev/null; mkdir /usr/new 2>/dev/null; true");
        derrick.kill9();
        derrick.start_again();
        let workspace = derrick.api.workspace(&workspace.id);
        let described = workspace.describe();
        assert_eq!(described["state"], "stopped");
        let detail = described["state_detail"].as_str().expect("text");
        let in_memory = detail.contains("in memory");
        let mut events = workspace.events(None);
        let ran = workspace.sh("cat /kept");
        if in_memory {
            assert_ne!(ran.exit_code, 0, "{}", ran.output);
            // It is told as what it is: the state right after setup.
            assert!(events.any(|event| event.name == "reset"));
        } else {
            assert_eq!(ran.expect(0), "kept\n");
        }
        is_out_of_space(&workspace.run(FILL));
    }
}

#[test]
fn an_image_is_attached_as_long_as_its_sandbox_lives_and_takes_what_is_written() {
    if mode() != Mode::Root {
        return;
    }
    let limits = json!({ "disk": "40GiB" });
    // Every sandbox is a workspace's.
    let config = json!({ "name": "test", "limits": limits, "pool": { "size": 0 } });
    let mut derrick = Derrick::start(config);
    let workspace = derrick.create();
    let state = derrick.state();
    assert_eq!(attached_below(&state).len(), 1);
    let image = attached_below(&state).remove(0);
    let taken = || {
        let status = fs::metadata(image.trim()).expect("the image is there");
        std::os::unix::fs::MetadataExt::blocks(&status) * 512
    };
    // Nobody inside is told where it is.
    assert_eq!(
        workspace.ok("cat /sys/block/*/loop/backing_file 2> /dev/null; true"),
        ""
    );
    // Not what it may become.
    assert!(taken() < 64 << 20, "{}", taken());
    workspace.ok("head -c 32M /dev/urandom > /file");
    // It is let go of with the sandbox, and mounted once more for the files on it.
    derrick.kill9();
    derrick.start_again();
    let workspace = derrick.api.workspace(&workspace.id);
    assert_eq!(attached_below(&state), Vec::<String>::new());
    assert!(taken() > 32 << 20, "{}", taken());
    workspace.ok("test -s /file");
    assert_eq!(attached_below(&state).len(), 1);
    workspace.reset_and_wait();
    workspace.ok("test ! -e /file");
    assert_eq!(attached_below(&state).len(), 1);
    assert!(workspace.delete());
    // What is dirty is written first, by whoever lets go of it last.
    while !attached_below(&state).is_empty() {
        std::thread::yield_now();
    }
}

#[test]
fn images_of_ever_new_sizes_leave_nothing() {
    if mode() != Mode::Root {
        return;
    }
    let derrick = Derrick::on_host();
    let run = derrick.state().join("run");
    let instance = fs::read_dir(run).expect("it is there").next();
    let images = instance
        .expect("a provider runs")
        .expect("it is there")
        .path()
        .join("images");
    let workspace = derrick.create();
    for size in (64..84).map(|mebibytes: u64| mebibytes << 20) {
        let body = json!({ "limits": { "disk": size } });
        let path = format!("/workspaces/{}", workspace.id);
        derrick.api.request("PATCH", &path, Some(&body)).expect(200);
        workspace.reset();
        let used = workspace.describe()["usage"]["disk"]
            .as_u64()
            .expect("a number");
        assert!(used < size);
        workspace.ok("touch /file");
        assert_eq!(fs::read_dir(&images).expect("it is there").count(), 0);
    }
    // Files on a disk that the config bounds can be bounded by themselves.
    let inodes = json!({ "limits": { "inodes": 100 } });
    let path = format!("/workspaces/{}", workspace.id);
    derrick
        .api
        .request("PATCH", &path, Some(&inodes))
        .expect(200);
}

// D-05: names, links and attributes without number, which take memory and no block
#[test]
fn what_takes_no_block_is_bounded_as_well() {
    for storage in ["disk", "memory"] {
        if (storage == "disk" && mode() != Mode::Root)
            || (mode() != Mode::Root && !attributes_in_memory())
        {
            continue;
        }
        let limits = json!({ "disk": "1MiB" });
        let config = json!({ "name": "test", "storage": storage, "limits": limits });
        let derrick = Derrick::start(config);
        let workspace = derrick.create();
        is_out_of_space(&workspace.run(
            "mkdir /links && cd /links && for n in $(seq 5000); do ln -s target $n || exit 1; done",
        ));
    }
}

// D-03: memory by way of files that are kept there
#[test]
fn files_that_are_put_into_memory_are_bounded() {
    if mode() != Mode::Root {
        return;
    }
    let limits = json!({ "memory": "64MiB", "disk": DISK });
    let bounded = Derrick::start(json!({ "name": "test", "storage": "memory", "limits": limits }));
    let workspace = bounded.create();
    workspace
        .on_file("PUT", "/fits", "", &vec![1; 8 << 20])
        .expect(201);
    workspace
        .on_file("PUT", "/more", "", &vec![1; 64 << 20])
        .problem(507);
    // Where no disk bounds them they would be nobody's memory.
    let limits = json!({ "memory": "64MiB" });
    let boundless =
        Derrick::start(json!({ "name": "test", "storage": "memory", "limits": limits }));
    let workspace = boundless.create();
    workspace.on_file("PUT", "/file", "", b"x").problem(422);
    assert_eq!(
        workspace.run("head -c 300M /dev/zero > /file")["outcome"]["kind"],
        "oom"
    );
}

#[test]
fn a_disk_that_cannot_be_bounded_is_refused_or_left_out_and_told() {
    let limits = json!({ "disk": DISK });
    if mode() == Mode::Root {
        // Its device is not looked for where there is a root directory without /dev: nothing to refuse.
        return;
    }
    let derrick = Derrick::on_host();
    let problem = derrick
        .api
        .post("/workspaces", &json!({ "limits": limits }))
        .problem(422);
    assert_eq!(problem["type"], "urn:derrick:problem:limit-unenforceable");
    let detail = problem["detail"].as_str().expect("text");
    assert!(
        detail.contains("the limit on disk") && detail.contains("\"storage\": \"memory\""),
        "{detail}"
    );
    assert_eq!(derrick.api.list(), Vec::<String>::new());

    let derrick =
        Derrick::start(json!({ "name": "test", "limits": limits, "best_effort": ["limits"] }));
    let workspace = derrick.create();
    let described = workspace.describe();
    assert_eq!(described["limits"]["disk"], Value::Null);
    let weaker = described["enforcement"]["weaker"].to_string();
    assert!(weaker.contains("the limit on disk"), "{weaker}");
    workspace.ok(FILL);
}

#[test]
fn limits_that_no_disk_can_have_are_refused_by_name() {
    let derrick = Derrick::on_host();
    for (limits, named) in [
        (json!({ "disk": 0 }), "disk"),
        (json!({ "disk": "1KiB" }), "disk"),
        (json!({ "disk": u64::MAX }), "disk"),
        (json!({ "disk": "-1" }), "disk"),
        (json!({ "inodes": 1000 }), "inodes"),
        (json!({ "disk": "1GiB", "inodes": 1 }), "inodes"),
    ] {
        let answer = derrick
            .api
            .post("/workspaces", &json!({ "limits": limits }));
        let status = answer.status;
        let problem = answer.problem(status);
        assert!((400..500).contains(&status), "{limits}: {problem}");
        assert!(
            problem["detail"].to_string().contains(named),
            "{limits}: {problem}"
        );
    }
    derrick.create().ok("true");
}

// D-04: disk fill, of the host's own disk.
#[test]
fn nothing_new_is_written_into_the_last_room_of_the_host() {
    let config = json!({ "name": "test" });
    let scratch = support::Scratch::new();
    let state = scratch.join("state");
    let derrick = Launch::new(config.clone()).state(&state).start();
    let id = derrick.create().id;
    drop(derrick);
    // More than any disk has.
    let derrick = Launch::new(config)
        .state(&state)
        .arguments(["--min-free", "1000TiB"])
        .start();
    let workspace = derrick.api.workspace(&id);
    let refused = [
        derrick.api.post("/workspaces", &json!({})),
        workspace.post("execs", &json!({ "cmd": "true" })),
        workspace.post("cmd", &json!({ "cmd": "true" })),
        workspace.post("sessions", &json!({ "name": "s" })),
        workspace.post("write_file", &json!({ "path": "/f", "content": "" })),
        workspace.on_file("PUT", "/f", "", b"x"),
        workspace.on_file("PUT", "/d", "archive=tar", b""),
    ];
    for answer in refused {
        let problem = answer.problem(507);
        assert!(
            problem["detail"].to_string().contains("--min-free"),
            "{problem}"
        );
    }
    // What makes room, and what only looks, goes on.
    derrick.api.get("/health").expect(200);
    workspace.on_file("GET", "/etc/passwd", "", b"").expect(200);
    workspace
        .on_file("DELETE", "/etc/passwd", "", b"")
        .expect(200);
    workspace.reset();
    assert!(workspace.delete());
}

#[test]
fn the_floor_is_checked_as_it_is_typed() {
    let output = std::process::Command::new(support::binary())
        .args(["--min-free", "much"])
        .output()
        .expect("cannot start derrick");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--min-free"), "{said}");
}
