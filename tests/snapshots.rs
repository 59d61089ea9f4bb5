//! A snapshot is what the workspace was, exactly, for good; whatever is done to the workspace, to others that
//! start from it, and to derrick.

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use support::trees::{CHANGES, busybox, files};
use support::{Answer, Derrick, Launch, Mode, Workspace, entries, mode, succeed, wait_until_gone};

/// Takes one, which has to be possible.
fn snapshot(workspace: &Workspace) -> Value {
    workspace.post("snapshots", &json!({})).expect(201).json()
}

fn id(snapshot: &Value) -> &str {
    snapshot["id"].as_str().expect("an id")
}

/// A workspace that starts from it.
fn start_from(workspace: &Workspace, snapshot: &Value) -> Workspace {
    workspace
        .api
        .create_with(&json!({ "snapshot": id(snapshot) }))
}

fn remove(workspace: &Workspace, snapshot: &Value) -> Answer {
    workspace
        .api
        .delete(&format!("/snapshots/{}", id(snapshot)))
}

fn listed(answer: &Answer) -> Vec<String> {
    let snapshots = answer.json()["snapshots"].as_array().cloned();
    let snapshots = snapshots.unwrap_or_else(|| panic!("{}", answer.text()));
    snapshots.iter().map(|one| id(one).to_owned()).collect()
}

/// Counts the processes that `keep_busy` starts.
const SLEEPERS: &str = "cat /proc/[0-9]*/comm 2> /dev/null | grep -c ^sleep; true";

#[test]
fn a_snapshot_is_what_the_workspace_was_moved_or_copied() {
    let derrick = Derrick::start(busybox());
    for (running, way) in [(false, "moved"), (true, "copied")] {
        let workspace = derrick.create();
        workspace.ok(CHANGES);
        if mode() == Mode::Root {
            // Redirected, where the kernel does that.
            workspace
                .ok("mv chain moved; mkdir chain; cp -a /etc /new; mv /etc /old-etc; mv /new /etc");
        }
        if mode() != Mode::Single {
            workspace.ok("chown 5:6 src/two; chown -h 7:8 src/dangling");
        }
        if running {
            workspace.keep_busy();
        }
        let before = files(&workspace);
        let taken = snapshot(&workspace);
        assert_eq!(taken["way"], way, "{taken}");
        assert_eq!(taken["workspace"], workspace.id.as_str());
        // It goes on, and has lost nothing.
        assert_eq!(files(&workspace), before, "{way}");
        let running_after = workspace.ok(SLEEPERS);
        assert_eq!(running_after != "0\n", running, "{running_after}");
        workspace.ok("rm -rf src; echo later > /later");

        let other = start_from(&workspace, &taken);
        assert_eq!(files(&other), before, "{way}");
        assert_eq!(other.ok(SLEEPERS), "0\n");
        // What it is changed to is nobody else's.
        other.ok("echo other > src/two; rm -r moved old 2> /dev/null; echo x > /other");
        let third = start_from(&workspace, &taken);
        assert_eq!(files(&third), before, "{way}");
        other.reset();
        assert_eq!(
            files(&other),
            before,
            "a reset returns to what it was made from"
        );
        assert_eq!(other.describe()["snapshot"], taken["id"]);
        workspace.reset();
        assert_eq!(
            workspace.ok("cat src/one; ls /later /project/chain 2>&1 | wc -l"),
            "one\n2\n"
        );
    }
}

#[test]
fn what_was_deleted_stays_deleted_through_a_chain_of_snapshots() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    let mut taken = Vec::new();
    for step in [
        "rm -r src",
        "mkdir src; echo new > src/new",
        "rm -r src/new old; echo no directory > old",
        "rm old; mkdir old; echo last > old/last",
    ] {
        workspace.ok(step);
        taken.push((snapshot(&workspace), files(&workspace)));
    }
    let tree: Vec<_> = taken.iter().map(|(one, _)| one["parent"].clone()).collect();
    let expected: Vec<_> = std::iter::once(Value::Null)
        .chain(taken.iter().map(|(one, _)| one["id"].clone()))
        .take(4)
        .collect();
    assert_eq!(tree, expected);
    for (one, files_then) in &taken {
        assert_eq!(&files(&start_from(&workspace, one)), files_then, "{one}");
    }
    // Any step can be returned to, from any other.
    for (one, files_then) in taken.iter().rev() {
        let receipt = workspace
            .post("reset", &json!({ "to": id(one) }))
            .expect(200)
            .json();
        assert_eq!(receipt["layer"], one["layer"], "{receipt}");
        assert_eq!(&files(&workspace), files_then, "{one}");
        workspace.ok("echo x > /scratch");
    }
    workspace.reset();
    assert_eq!(
        workspace.ok("cat src/one old/y; ls / | grep -c scratch; true"),
        "one\ny\n0\n"
    );
}

#[test]
fn a_snapshot_takes_the_same_time_for_many_files_as_for_one() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("echo one > one");
    println!("moved one file: {} us", snapshot(&workspace)["duration_us"]);
    workspace.ok("mkdir many; cd many; seq 20000 | xargs touch; dd if=/dev/zero of=big bs=1M count=64 2> /dev/null");
    let taken = snapshot(&workspace);
    // Order and state, never a time: what is moved is not looked at.
    assert_eq!(taken["way"], "moved", "{taken}");
    assert_eq!(workspace.ok("ls many | wc -l"), "20001\n");
    println!("moved 20,001 files: {} us", taken["duration_us"]);
    workspace.keep_busy();
    workspace.ok("cp -r many more");
    let copied = snapshot(&workspace);
    println!("copied 20,001 files, 64 MiB: {} us", copied["duration_us"]);
    assert_eq!(
        start_from(&workspace, &copied).ok("ls more | wc -l"),
        "20001\n"
    );
}

#[test]
fn an_exec_leaves_a_snapshot_that_any_step_can_be_returned_to() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    let mut steps = Vec::new();
    for step in 0..4 {
        let cmd = format!("echo {step} >> steps; exit {step}");
        let ended = workspace.run_with(&json!({ "cmd": cmd, "snapshot": "after" }));
        assert_eq!(ended["exit_code"], step, "{ended}");
        assert!(ended["snapshot"].is_string(), "{ended}");
        steps.push(ended["snapshot"].clone());
    }
    let killed = workspace.run_with(&json!({
        "cmd": "echo lost >> steps; sleep 1000", "snapshot": "after", "timeout": 0.5,
    }));
    assert_eq!(killed["outcome"]["kind"], "deadline", "{killed}");
    assert!(killed["snapshot"].is_string(), "{killed}");
    workspace
        .post("reset", &json!({ "to": steps[1] }))
        .expect(200);
    assert_eq!(workspace.ok("cat steps"), "0\n1\n");
    workspace
        .post("reset", &json!({ "to": killed["snapshot"] }))
        .expect(200);
    assert_eq!(workspace.ok("cat steps"), "0\n1\n2\n3\nlost\n");
    let shown = workspace.exec_of(&killed).show();
    assert_eq!(shown["snapshot"], killed["snapshot"]);
}

#[test]
fn a_fork_gives_as_many_as_were_asked_for_or_none() {
    let mut config = busybox();
    config["max_workspaces"] = json!(5);
    let derrick = Derrick::start(config);
    let workspace = derrick
        .api
        .create_with(&json!({ "env": { "COLOUR": "blue" } }));
    workspace.ok("echo mine > /mine; sleep 1000 > /dev/null 2>&1 &");
    let forked = workspace.post(
        "fork",
        &json!({ "count": 3, "label": "tries", "env": { "N": "1" } }),
    );
    let forked = forked.expect(201).json();
    assert_eq!(forked["snapshot"]["label"], "tries", "{forked}");
    let ids = forked["workspaces"].as_array().expect("workspaces").clone();
    assert_eq!(ids.len(), 3, "{forked}");
    for one in &ids {
        let one = derrick.api.workspace(one["id"].as_str().expect("an id"));
        assert_eq!(
            one.ok("cat /mine; echo $COLOUR $N; cat /proc/[0-9]*/comm 2> /dev/null | grep -c ^sleep; true"),
            "mine\nblue 1\n0\n"
        );
        one.ok("echo own > /mine");
    }
    assert_eq!(workspace.ok("cat /mine"), "mine\n");

    let before: BTreeSet<_> = derrick.api.list().into_iter().collect();
    let snapshots = listed(&derrick.api.get("/snapshots").expect(200));
    workspace.post("fork", &json!({ "count": 2 })).problem(429);
    let after: BTreeSet<_> = derrick.api.list().into_iter().collect();
    assert_eq!(after, before);
    assert_eq!(
        listed(&derrick.api.get("/snapshots").expect(200)),
        snapshots
    );
    workspace.post("fork", &json!({ "count": 0 })).problem(400);
}

#[test]
fn a_snapshot_is_kept_while_something_builds_on_it_and_the_answer_names_what() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("echo 1 > /1");
    let first = snapshot(&workspace);
    workspace.ok("echo 2 > /2");
    let second = snapshot(&workspace);
    let in_use = |snapshot: &Value, user: &str| {
        let problem = remove(&workspace, snapshot).problem(409);
        assert_eq!(
            problem["type"], "urn:derrick:problem:snapshot-in-use",
            "{problem}"
        );
        let detail = problem["detail"].as_str().expect("a text");
        assert!(detail.contains(user), "no {user} in {detail}");
    };
    in_use(&second, &workspace.id);
    workspace.reset();
    in_use(&first, id(&second));
    let other = start_from(&workspace, &second);
    in_use(&second, &other.id);
    assert!(other.delete());
    remove(&workspace, &second).expect(200);
    remove(&workspace, &second).problem(404);
    remove(&workspace, &first).expect(200);
    assert_eq!(
        listed(&derrick.api.get("/snapshots").expect(200)),
        Vec::<String>::new()
    );
    workspace
        .api
        .post("/workspaces", &json!({ "snapshot": id(&first) }))
        .problem(404);
    workspace
        .post("reset", &json!({ "to": id(&first) }))
        .problem(404);
    // What nobody finds again goes by itself.
    for gone in [&first, &second] {
        let layer = gone["layer"].as_str().expect("a digest");
        wait_until_gone(&derrick.state().join("layers").join(layer));
    }
}

#[test]
fn snapshots_are_there_after_a_restart_and_after_a_crash() {
    let mut derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("echo 1 > /1");
    let moved = snapshot(&workspace);
    workspace.ok("echo 2 > /2; sleep 1000 > /dev/null 2>&1 &");
    let copied = snapshot(&workspace);
    let label = json!({ "label": "kept" });
    let path = format!("/snapshots/{}", id(&moved));
    let headers = [("content-type", "application/json")];
    let changed = derrick
        .api
        .send("PATCH", &path, &headers, label.to_string().as_bytes());
    assert_eq!(changed.expect(200).json()["label"], "kept");
    derrick.kill9();
    derrick.start_again();
    let workspace = derrick.api.workspace(&workspace.id);
    assert_eq!(
        listed(&workspace.get("snapshots")),
        [id(&moved), id(&copied)]
    );
    assert_eq!(derrick.api.get(&path).expect(200).json()["label"], "kept");
    assert_eq!(workspace.ok("cat /1 /2"), "1\n2\n");
    assert_eq!(
        start_from(&workspace, &moved).ok("cat /1; ls / | grep -c 2; true"),
        "1\n0\n"
    );
    assert_eq!(start_from(&workspace, &copied).ok("cat /1 /2"), "1\n2\n");
    workspace.reset();
    assert_eq!(workspace.ok("ls / | grep -c '^[12]$'; true"), "0\n");
}

#[test]
fn what_was_not_written_out_is_after_a_restart_and_forgotten_after_a_power_failure() {
    let mut derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    let [kept, lost] = ["kept", "lost"].map(|name| {
        workspace.ok(&format!("echo {name} > /{name}"));
        snapshot(&workspace)
    });
    let durable = |derrick: &Derrick, snapshot: &Value| {
        let shown = derrick.api.get(&format!("/snapshots/{}", id(snapshot)));
        (shown.status == 200).then(|| shown.json()["durable"] == true)
    };
    until_so(|| durable(&derrick, &kept) == Some(true) && durable(&derrick, &lost) == Some(true));
    derrick.kill9();
    // As if it had been killed while they were written out, the one now and the other before a power failure.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot's id");
    for (snapshot, boot) in [(&kept, boot.trim()), (&lost, "another")] {
        let path = derrick
            .state()
            .join(format!("snapshots/{}.json", id(snapshot)));
        let record = std::fs::read_to_string(&path).expect("a record");
        let mut record: Value = serde_json::from_str(&record).expect("JSON");
        assert_eq!(record["unwritten"], Value::Null, "{record}");
        record["unwritten"] = json!(boot);
        std::fs::write(&path, record.to_string()).expect("written");
    }
    derrick.start_again();
    assert_eq!(durable(&derrick, &lost), None);
    until_so(|| durable(&derrick, &kept) == Some(true));
    let workspace = derrick.api.workspace(&workspace.id);
    assert_eq!(start_from(&workspace, &kept).ok("cat /kept"), "kept\n");
}

fn until_so(is_so: impl Fn() -> bool) {
    while !is_so() {
        std::thread::yield_now();
    }
}

#[test]
fn a_body_may_be_left_out() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    for (action, status) in [("snapshots", 201), ("fork", 201), ("fence", 200)] {
        let path = format!("/workspaces/{}/{action}", workspace.id);
        derrick.api.send("POST", &path, &[], b"").expect(status);
    }
}

#[test]
fn hostile_files_are_copied_and_lead_nowhere() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let marker = derrick.state().join("snapshots/planted.json");
    workspace
        .python(&format!(
            r#"
import os
os.chdir("/tmp")
os.symlink("{state}", "links")
os.symlink("/proc/self/root", "tree")
os.symlink("{marker}", "record")
open(b"new\nline \xff", "w").close()
os.mkfifo("pipe")
os.setxattr("pipe".replace("pipe", "/tmp"), "user.planted", b"x" * 4000)
fd = os.open("big", os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, 1 << 42)
os.pwrite(fd, b"end", (1 << 42) - 3)
os.mkdir("closed"); open("closed/in", "w").write("in"); os.chmod("closed", 0)
deep = os.open(".", os.O_DIRECTORY)
for n in range(3000):
    os.mkdir("d", dir_fd=deep)
    open(f"/proc/self/fd/{{deep}}/f", "w").close()
    deep = os.open("d", os.O_DIRECTORY, dir_fd=deep)
"#,
            state = derrick.state().display(),
            marker = marker.display(),
        ))
        .expect(0);
    workspace.keep_busy();
    let taken = snapshot(&workspace);
    assert_eq!(taken["way"], "copied", "{taken}");
    assert!(!marker.exists());
    let other = start_from(&workspace, &taken);
    let found = other.python(
        r#"
import os
os.chdir("/tmp")
print(os.readlink("tree"), os.stat("big").st_size == 1 << 42, os.stat("big").st_blocks < 100)
print(os.pread(os.open("big", os.O_RDONLY), 3, (1 << 42) - 3), open("closed/in").read())
print(sorted(os.listdir(b"."))[-4:-1], len(os.getxattr("/tmp", "user.planted")))
deep, depth = os.open(".", os.O_DIRECTORY), 0
while "d" in os.listdir(deep):
    deep, depth = os.open("d", os.O_DIRECTORY, dir_fd=deep), depth + 1
print(depth)
"#,
    );
    let found = found.expect(0);
    assert_eq!(
        found,
        "/proc/self/root True True\nb'end' in\n[b'pipe', b'record', b'started'] 4000\n3000\n"
    );
}

#[test]
fn what_is_in_memory_or_on_a_disk_of_its_own_is_copied() {
    let mut configs = vec![json!({ "name": "test", "storage": "memory" })];
    if mode() == Mode::Root {
        configs.push(json!({ "name": "test", "limits": { "disk": "64MiB" } }));
    }
    for config in configs {
        let derrick = Derrick::start(config.clone());
        let workspace = derrick.create();
        workspace.ok("mkdir /work; echo one > /work/one; ln /work/one /work/twin; rm /etc/profile");
        let idle = snapshot(&workspace);
        assert_eq!(idle["way"], "copied", "{config} {idle}");
        workspace.keep_busy();
        let ran =
            workspace.run_with(&json!({ "cmd": "echo two > /work/two", "snapshot": "after" }));
        assert!(ran["snapshot"].is_string(), "{ran}");
        workspace.ok("rm -r /work; echo later > /later");
        // It goes on as it was.
        assert_ne!(workspace.ok(SLEEPERS), "0\n");
        let seen = "ls /work /etc/profile /later 2> /dev/null; [ /work/one -ef /work/twin ] && echo twins; true";
        let other = start_from(&workspace, &idle);
        assert_eq!(other.ok(seen), "/work:\none\ntwin\ntwins\n");
        other.ok("echo more > /work/more");
        let forked = other.post("fork", &json!({})).expect(201).json();
        let forked = forked["workspaces"][0]["id"]
            .as_str()
            .expect("an id")
            .to_owned();
        let forked = derrick.api.workspace(&forked);
        assert_eq!(forked.ok(seen), "/work:\nmore\none\ntwin\ntwins\n");
        other
            .post("reset", &json!({ "to": ran["snapshot"] }))
            .expect(200);
        assert_eq!(other.ok(seen), "/work:\none\ntwin\ntwo\ntwins\n");
        let fenced = workspace.post("fence", &json!({})).expect(200).json();
        let described = workspace.describe();
        assert_eq!(described["state"], "fenced", "{described}");
        assert_eq!(described["snapshot"], fenced["snapshot"], "{described}");
        workspace
            .post("execs", &json!({ "cmd": "true" }))
            .problem(409);
        workspace
            .post("reset", &json!({ "to": fenced["snapshot"] }))
            .expect(200);
        assert_eq!(workspace.ok(seen), "/later\n");
        workspace.reset();
        assert_eq!(workspace.ok(seen), "/etc/profile\n");
    }
}

#[test]
fn an_image_is_copied_where_nothing_runs_on_it_any_more() {
    if mode() != Mode::Root {
        // An ordinary user has none.
        return;
    }
    let mut derrick = Derrick::start(json!({ "name": "test", "limits": { "disk": "64MiB" } }));
    let workspace = derrick.create();
    workspace.ok("echo one > /one");
    derrick.restart();
    let workspace = derrick.api.workspace(&workspace.id);
    let stopped = snapshot(&workspace);
    assert_eq!(start_from(&workspace, &stopped).ok("cat /one"), "one\n");
    workspace.ok("echo two > /two");
    derrick.restart();
    let workspace = derrick.api.workspace(&workspace.id);
    let fenced = workspace.post("fence", &json!({})).expect(200).json();
    let graded = derrick
        .api
        .create_with(&json!({ "snapshot": fenced["snapshot"] }));
    assert_eq!(graded.ok("cat /one /two"), "one\ntwo\n");
}

#[test]
fn a_snapshot_that_the_disk_does_not_take_leaves_nothing() {
    let disk = std::env::var_os("DERRICK_SMALL_DISK")
        .expect("DERRICK_SMALL_DISK names no small filesystem; tests/run as root makes one");
    let state = Path::new(&disk).join("snapshots");
    for (storage, megabytes) in [("memory", 70), ("disk", 40)] {
        let derrick = Launch::new(json!({ "name": "test", "storage": storage }))
            .state(&state)
            .arguments(["--min-free", "0"])
            .start();
        let workspace = derrick.create();
        // More than there is, or than is left beside it: no room for a copy.
        workspace.ok(&format!(
            "echo small > /small; head -c {megabytes}M /dev/urandom > /big"
        ));
        workspace.keep_busy();
        let other = derrick.create();
        other.ok("head -c 10M /dev/urandom > /big");
        let room = || rustix::fs::statvfs(&state).expect("a filesystem").f_bfree;
        let layers = || entries(&state.join("layers"));
        let (room_before, before) = (room(), layers());
        let refused = workspace.post("snapshots", &json!({})).problem(507);
        assert!(refused.to_string().contains("space"), "{refused}");
        let listed = workspace.api.get("/snapshots").expect(200).json();
        assert_eq!(listed, json!({ "snapshots": [] }));
        assert_eq!(layers(), before);
        // What there is of the copy goes in the background.
        while room() < room_before - 1024 {
            std::thread::yield_now();
        }
        // It goes on, and has lost nothing.
        assert_ne!(workspace.ok(SLEEPERS), "0\n");
        let bytes = workspace.ok("stat -c %s /big; rm /big");
        assert_eq!(bytes, format!("{}\n", megabytes << 20));
        let taken = snapshot(&workspace);
        assert_eq!(taken["way"], "copied", "{taken}");
        assert!(other.delete());
        assert_eq!(start_from(&workspace, &taken).ok("cat /small"), "small\n");
        drop(derrick);
        succeed(support::as_owner("rm").arg("-rf").arg(&state));
    }
}

/// One of a hundred changes, each other than the one before it.
fn step(number: usize) -> String {
    format!(
        r#"
        n={number}; cd /project
        echo $n > step; mkdir -p d$((n%7))/s$((n%5)); echo $n > d$((n%7))/s$((n%5))/f$n
        touch -d @$((n*1000)) d$((n%7))/s$((n%5))
        case $((n%12)) in
        0) rm -rf d$((n/12%7));;
        1) rm -rf src; mkdir src; echo $n > src/new;;
        2) mv d$((n%7)) moved$((n%11));;
        3) rm -f twin; ln step twin; chmod 640 twin;;
        4) rm -rf old; echo file > old;;
        5) rm -rf old; mkdir old; echo last > old/last;;
        6) mkdir -p d$((n%3)); mv moved* d$((n%3))/; true;;
        7) mv src src2; mv src2 src; echo $n > src/after;;
        8) rm -rf d$((n%7))/s*; mkdir -p d$((n%7))/s$((n%5)); echo n > d$((n%7))/s$((n%5))/again;;
        9) mkfifo d$((n%7))/pipe$n; ln -s /nowhere d$((n%7))/link$n;;
        10) d=d$((n%7)); mkdir -p x/y; rm -rf x/y/$d; mv $d x/y/; mv x/y/$d z$n; rm -f step; rm -rf z$((n-24));;
        11) rm -rf moved* x; cp -a /etc new; mv /etc old-etc; mv new /etc; rm -rf old-etc;;
        esac
        "#
    )
}

/// What is to be seen, however many layers show it.
fn tree(workspace: &Workspace) -> String {
    workspace.ok("
        cd /
        find . -xdev -mindepth 1 ! -path './proc*' ! -path './sys*' ! -path './dev*' -type d \
            -exec stat -c '%n %a %u:%g %Y' {} + | sort
        find . -xdev -mindepth 1 ! -path './proc*' ! -path './sys*' ! -path './dev*' ! -type d \
            -exec stat -c '%n %F %a %u:%g %s %Y %N' {} + | sort
        find . -xdev -type f -exec md5sum {} + | sort
        [ project/step -ef project/twin ] && echo twins
        true
    ")
}

#[test]
fn a_chain_of_snapshots_has_no_end_and_each_is_what_it_was() {
    const STEPS: usize = 120;
    let mut derrick = Derrick::start(busybox());
    let mut workspace = derrick.create();
    let mut taken = Vec::new();
    let mut deepest = 0;
    for number in 1..=STEPS {
        workspace.ok(&step(number));
        if mode() != Mode::Single {
            workspace.ok(&format!(
                "chown {number}:{} /project/step 2> /dev/null; true",
                number + 1
            ));
        }
        let snapshot = snapshot(&workspace);
        let seen = tree(&workspace);
        deepest = deepest.max(snapshot["depth"].as_u64().expect("a number"));
        workspace
            .post("reset", &json!({ "to": id(&snapshot) }))
            .expect(200);
        // In whatever layers it is by now.
        assert_eq!(tree(&workspace), seen, "after step {number}");
        taken.push((snapshot, seen));
        if number % 50 == 0 {
            // Some layers are being made just now, as likely as not.
            derrick.kill9();
            derrick.start_again();
            workspace = derrick.api.workspace(&workspace.id);
        }
    }
    assert!(deepest <= 32, "{deepest}");
    println!("the deepest of {STEPS} stood on {deepest} layers");
    for (snapshot, seen) in taken.iter().rev().step_by(7) {
        workspace
            .post("reset", &json!({ "to": id(snapshot) }))
            .expect(200);
        assert_eq!(&tree(&workspace), seen, "{snapshot}");
    }
    let last = &taken[STEPS - 1].0;
    let shown = derrick.api.get(&format!("/snapshots/{}", id(last)));
    let shown = shown.expect(200).json();
    // It is the same one, whatever it stands on.
    assert_eq!(shown["layer"], last["layer"]);
    assert!(
        shown["depth"].as_u64().expect("a number") < STEPS as u64 / 3,
        "{shown}"
    );
}

#[test]
fn layers_that_cannot_be_merged_are_not_tried_again_after_each_snapshot() {
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    // Deeper than is merged. Each step takes as long as it is deep, so it is put together of parts.
    let made = workspace.python(
        r#"
import os
last = None
for part in range(21):
    os.mkdir("/tmp/top")
    at = os.open("/tmp/top", os.O_DIRECTORY)
    for n in range(500):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    if last is None:
        os.rename("/tmp/top", "/tmp/tree")
    else:
        os.rename("/tmp/top", "d", dst_dir_fd=last)
    last = at
"#,
    );
    made.expect(0);
    let failed = "cannot flatten a chain of snapshots";
    let mut taken = 0;
    let refused = loop {
        let answer = workspace.post("snapshots", &json!({}));
        if answer.status != 201 {
            break answer;
        }
        taken += 1;
        // The first merge is over before more are asked for.
        while taken == 8 && !derrick.log().contains(failed) {
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
    };
    let problem = refused.problem(409);
    assert_eq!(problem["type"], "urn:derrick:problem:too-deep", "{problem}");
    assert!(taken > 20, "{taken}");
    // One is left for a fence.
    workspace.post("fence", &json!({})).expect(200);
    assert!(derrick.stop().success());
    let log = derrick.log();
    assert_eq!(log.matches(failed).count(), 1, "{log}");
}

#[test]
fn what_was_merged_goes_when_nothing_names_it_and_nobody_loses_a_file_by_that() {
    const STEPS: usize = 12;
    let mut derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    let layers = |derrick: &Derrick| entries(&derrick.state().join("layers"));
    let before = layers(&derrick);
    let mut taken = Vec::new();
    for number in 0..STEPS {
        workspace.ok(&format!("echo {number} > /file{number}"));
        taken.push(snapshot(&workspace));
    }
    let last = taken.pop().expect("there are some");
    let all = |workspace: &Workspace| {
        assert_eq!(workspace.ok("ls -d /file* | wc -l"), format!("{STEPS}\n"));
    };
    // On the layers of then, or already on others.
    let other = start_from(&workspace, &last);
    workspace.reset();
    for one in taken.iter().rev() {
        remove(&workspace, one);
    }
    all(&other);
    let receipt = other.post("reset?verify=full", &json!({})).expect(200);
    assert!(receipt.json()["verified"].is_object(), "{}", receipt.text());
    all(&other);
    assert!(other.delete());
    derrick.restart();
    let other = derrick.api.create_with(&json!({ "snapshot": id(&last) }));
    all(&other);
    assert!(other.delete());
    taken.push(last);
    for one in taken.iter().rev() {
        let path = format!("/snapshots/{}", id(one));
        // Some went before.
        let answer = derrick.api.delete(&path);
        assert!([200, 404].contains(&answer.status), "{}", answer.text());
    }
    for layer in layers(&derrick) {
        if !before.contains(&layer) {
            wait_until_gone(&derrick.state().join("layers").join(layer));
        }
    }
}

#[test]
fn a_token_reaches_its_own_snapshots_alone() {
    const ADMIN: &str = "0123456789abcdef0123456789abcdef";
    const A: &str = "5f3a9c1e7b2d8046a1c4e6f8091b3d57";
    const B: &str = "c8e1f4a79b3056d2e7185a9c4f60b2d3";
    let derrick = Launch::new(busybox())
        .token(&format!(
            "{ADMIN}\n{A} name=a scope=own\n{B} name=b scope=own\n"
        ))
        .start();
    let (a, b) = (
        derrick.api.with_token(Some(A)),
        derrick.api.with_token(Some(B)),
    );
    let own = a.create();
    own.ok("echo secret > /secret");
    let taken = snapshot(&own);
    assert_eq!(taken["owner"], "a");
    let path = format!("/snapshots/{}", id(&taken));
    let other = b.create();
    let patch = |api: &support::Api| {
        api.send(
            "PATCH",
            &path,
            &[("content-type", "application/json")],
            b"{\"label\":\"x\"}",
        )
    };
    for answer in [
        b.get(&path),
        b.delete(&path),
        patch(&b),
        b.post("/workspaces", &json!({ "snapshot": id(&taken) })),
        other.post("reset", &json!({ "to": id(&taken) })),
    ] {
        let problem = answer.problem(404);
        assert_eq!(
            problem["type"], "urn:derrick:problem:no-such-snapshot",
            "{problem}"
        );
    }
    for action in ["snapshots", "fork", "fence", "pause", "resume"] {
        b.workspace(&own.id).post(action, &json!({})).problem(404);
    }
    b.get(&format!("/workspaces/{}/snapshots", own.id))
        .problem(404);
    assert_eq!(
        listed(&b.get("/snapshots").expect(200)),
        Vec::<String>::new()
    );
    assert_eq!(listed(&a.get("/snapshots").expect(200)), [id(&taken)]);
    assert_eq!(
        listed(&derrick.api.get("/snapshots").expect(200)),
        [id(&taken)]
    );
    patch(&a).expect(200);
    let forked = own.post("fork", &json!({})).expect(201).json();
    let forked = forked["workspaces"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    assert_eq!(a.workspace(&forked).ok("cat /secret"), "secret\n");
    b.get(&format!("/workspaces/{forked}")).problem(404);
}
