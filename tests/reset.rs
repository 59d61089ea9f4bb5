//! A reset gives the state right after setup, byte for byte, whatever was done meanwhile.

mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::{Derrick, Lives, Workspace, fixture, process_with_argument};

/// A small base, so that every file of it can be looked at, with something of each kind from setup.
fn busybox() -> Value {
    json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "env": { "COLOUR": "green" },
        "workdir": "/project",
        "setup_script": "
            mkdir -p /project/src /project/empty
            echo one > /project/src/one
            ln /project/src/one /project/src/hard
            ln -s src/one /project/soft
            mkfifo /project/fifo
            chmod 1777 /project/empty
            chmod 0400 /project/src/one
            echo kept > /tmp/from-setup
        ",
    })
}

/// Everything that a command can see of its world and that a reset has to bring back.
fn state(workspace: &Workspace) -> String {
    workspace.ok("
        cd /
        # The root directory's own times are those of the new upper, those of /dev of the new mount.
        find . -xdev -mindepth 1 ! -path './proc*' ! -path './sys*' ! -path './dev*' \
            -exec stat -c '%n %F %a %u:%g %s %Y %N' {} + | sort
        find . -xdev -type f -exec md5sum {} + | sort
        find /tmp /dev /dev/shm /run | sort
        stat -c '%a %u:%g' / /tmp /dev/shm
        env | grep -v ^_= | sort
        hostname
        umask; ulimit -a
        while read -r _ where kind flags _; do echo \"$where $kind ${flags%%,*}\"; done < /proc/mounts | sort
        cat /proc/net/tcp /proc/net/unix | wc -l
        cut -d: -f1 /proc/net/dev
        cat /proc/sysvipc/*
        grep -E '^(Uid|Gid|Groups|Cap|Seccomp|NoNewPrivs)' /proc/self/status
        for process in /proc/[0-9]*/comm; do read -r name < $process; echo $name; done
    ")
}

#[test]
fn a_reset_gives_the_state_right_after_setup_byte_for_byte() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    let before = state(&workspace);
    assert!(before.contains("/project/src/one"), "{before}");

    let wreck = [
        "chmod 600 src/one; echo two >> src/one; touch -d @0 src/hard",
        "rm soft; ln -s /etc soft; mkdir new; echo new > new/new",
        "mv src gone; rm -r empty fifo",
        "echo x > /tmp/from-setup; echo x > /tmp/other; echo x > /dev/shm/other; echo x > /run/x",
        "chown 0:0 / ; chmod 700 /; chmod 700 /tmp",
        "hostname other; umask 077; ulimit -n 64; cd /tmp; export COLOUR=red",
        "(nc -l -p 8080 > /dev/null 2>&1 &) ; (sleep 1000 &)",
        "rm -rf /bin /etc /usr /lib /project 2> /dev/null",
    ];
    for cmd in wreck {
        workspace.sh(cmd);
    }
    let ran = workspace.post(
        "cmd_with_output",
        &json!({ "cmd": "true", "working_dir": "/" }),
    );
    assert_ne!(
        ran.json()["exit_code"],
        json!(0),
        "the workspace survived the loss of its programs"
    );

    workspace.reset();
    let after = state(&workspace);
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let changed: Vec<_> = lines(&after)
        .symmetric_difference(&lines(&before))
        .cloned()
        .collect();
    assert_eq!(changed, Vec::<String>::new());
    assert_eq!(after, before, "the order changed");
}

#[test]
fn deletions_and_renames_of_what_setup_made_are_undone() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("rm src/hard soft; mv src/one src/two; rmdir empty; mkdir src/hard");
    workspace.reset();
    assert_eq!(workspace.ok("cat soft src/hard"), "one\none\n");
    assert_eq!(workspace.ok("ls src"), "hard\none\n");
}

#[test]
fn the_id_stays_and_the_receipt_tells_what_was_discarded() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let layer = workspace.describe()["layer"].clone();
    workspace.ok(
        "head -c 1M /dev/zero > /file; sleep 1000 > /dev/null 2>&1 & sleep 1000 > /dev/null 2>&1 &",
    );
    let receipt = workspace.reset_and_wait();
    assert_eq!(receipt["id"], json!(workspace.id), "{receipt}");
    assert_eq!(receipt["layer"], layer, "{receipt}");
    assert_eq!(receipt["generation"], json!(1), "{receipt}");
    assert_eq!(receipt["upper_entries"], json!(0), "{receipt}");
    assert_eq!(receipt["processes_surviving"], json!(0), "{receipt}");
    assert!(receipt["duration_us"].as_u64() > Some(0), "{receipt}");
    let discarded = &receipt["discarded"];
    assert_eq!(discarded["processes"], json!(2), "{receipt}");
    assert!(discarded["files"].as_u64() >= Some(1), "{receipt}");
    assert!(discarded["bytes"].as_u64() >= Some(1 << 20), "{receipt}");
    assert_eq!(derrick.api.list(), [workspace.id.as_str()]);

    let receipt = workspace.reset();
    assert_eq!(receipt["discarded"], Value::Null, "{receipt}");
    let receipt = workspace.reset_and_wait();
    assert_eq!(receipt["generation"], json!(3), "{receipt}");
    assert_eq!(receipt["discarded"]["processes"], json!(0), "{receipt}");
}

#[test]
fn an_exec_that_was_to_leave_a_snapshot_ends_before_the_reset_that_ends_it() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    let events = workspace.events(None);
    let exec = workspace.exec(&json!({ "cmd": "sleep 1000", "snapshot": "after" }));
    workspace.reset();
    let events: Vec<_> = events.take(3).collect();
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["exec_started", "exec_ended", "reset"]);
    let ended = &events[1].data;
    assert_eq!(ended["id"], json!(exec.id), "{ended}");
    assert_eq!(ended["outcome"]["kind"], "reset", "{ended}");
    assert_eq!(ended["snapshot"], Value::Null, "{ended}");
    let log = derrick.log();
    assert!(!log.contains("do not end with their sandbox"), "{log}");
    assert_eq!(
        derrick.api.get("/snapshots").expect(200).json()["snapshots"],
        json!([])
    );
}

#[test]
fn no_process_survives_a_reset() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let marker = format!("survivor-of-{}", workspace.id);
    workspace.ok(&format!(
        "mkfifo /tmp/there
         setsid -f bash -c 'trap \"\" TERM; echo > /tmp/there; exec -a {marker} sleep 1000' > /dev/null 2>&1
         read line < /tmp/there
         until grep -qz '^{marker}' /proc/[0-9]*/cmdline; do :; done"
    ));
    let survivor = process_with_argument(&marker).expect("the process is seen from the host");
    let lives = Lives::of(&[survivor]);
    workspace.reset();
    lives.assert_gone();
    let found = workspace.ok(&format!("grep -lz '^{marker}' /proc/[0-9]*/cmdline; true"));
    assert_eq!(found, "");
}

#[test]
fn a_command_that_a_reset_ends_is_told_so() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkfifo /tmp/started");
    let command = workspace.start("echo > /tmp/started; sleep 1000");
    workspace.ok("read line < /tmp/started");
    workspace.reset();
    let problem = command.answer().problem(409);
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("reset"), "{problem}");
    assert_eq!(workspace.ok("echo on"), "on\n");
}

#[test]
fn a_command_that_a_delete_ends_is_told_so() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkfifo /tmp/started");
    let command = workspace.start("echo > /tmp/started; sleep 1000");
    workspace.ok("read line < /tmp/started");
    assert!(workspace.delete());
    command.answer().problem(409);
}

#[test]
fn a_workspace_can_be_reset_as_often_as_one_likes() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    for n in 0..20 {
        workspace.ok(&format!(
            "test ! -e /tmp/residue && echo {n} > /tmp/residue && rm -r src"
        ));
        workspace.reset();
    }
    assert_eq!(workspace.ok("ls /tmp"), "from-setup\n");
}

#[test]
fn the_environment_given_at_creation_survives_a_reset() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick
        .api
        .create_with(&json!({ "env": { "COLOUR": "blue" } }));
    assert_eq!(workspace.ok("echo $COLOUR"), "blue\n");
    workspace.reset();
    assert_eq!(workspace.ok("echo $COLOUR; pwd"), "blue\n/project\n");
}

#[test]
fn ten_workspaces_at_once_do_not_see_each_other() {
    let derrick = Derrick::start(busybox());
    let derrick = &derrick;
    std::thread::scope(|scope| {
        for n in 0..10 {
            scope.spawn(move || {
                let workspace = derrick.create();
                let write = format!(
                    "test ! -e /own && echo {n} | tee /own /tmp/own /dev/shm/own src/hard > /dev/null
                     (exec sleep 10{n}0 > /dev/null 2>&1 &)"
                );
                // Until the background process has become `sleep`.
                let look = "cat /own /tmp/own /dev/shm/own src/hard; found=; while [ -z \"$found\" ]; do \
                     found=$(for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline | grep '^sleep'; done); \
                     done; echo \"$found\"";
                workspace.ok(&write);
                let expected = format!("{n}\n{n}\n{n}\n{n}\nsleep 10{n}0 \n");
                assert_eq!(workspace.ok(look), expected);
                workspace.reset();
                assert_eq!(workspace.ok("ls /own 2>&1; cat src/hard; ls /dev/shm"), format!("ls: /own: No such file or directory\none\n"));
                workspace.ok(&write);
                assert!(workspace.delete());
            });
        }
    });
    assert_eq!(derrick.api.list(), Vec::<String>::new());
}

#[test]
fn resetting_one_workspace_leaves_the_others_alone() {
    let derrick = Derrick::on_host();
    let (one, other) = (derrick.create(), derrick.create());
    other.ok("echo mine > /tmp/mine; mkfifo /tmp/started /tmp/go");
    let command = other.start("echo > /tmp/started; read line < /tmp/go; echo $line");
    other.ok("read line < /tmp/started");
    one.ok("echo x > /tmp/x");
    one.reset();
    assert_eq!(other.ok("cat /tmp/mine; echo on > /tmp/go"), "mine\n");
    assert_eq!(command.answer().expect(200).json()["output"], json!("on\n"));
}

#[test]
fn resetting_a_workspace_that_is_not_there_is_the_callers_error() {
    let derrick = Derrick::on_host();
    let nobody = derrick
        .api
        .workspace("00000000-0000-7000-8000-000000000000");
    nobody.post("reset", &json!({})).problem(404);
}
