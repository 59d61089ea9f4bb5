//! `tests/leftovers`, which `tests/run` runs each suite by, names what a suite leaves of the host.

mod support;

use std::fs;
use std::process::{Command, Output};

use support::{Mode, Scratch, mode, source};

/// What tests/leftovers says of a suite that is these lines of a shell.
fn said_of(directory: &Scratch, suite: &str) -> (Output, String) {
    let report = directory.join("left");
    fs::create_dir_all(directory.join("tmp")).expect("it is the test's own");
    let output = Command::new(source().join("tests/leftovers"))
        .arg(&report)
        .arg(directory.path())
        .args(["bash", "-c", suite])
        // It is the test's own that stays, and does so for ever.
        .env("DERRICK_TEST_PATIENCE", "1")
        .output()
        .expect("cannot start tests/leftovers");
    (output, fs::read_to_string(report).expect("it says"))
}

#[test]
fn what_a_suite_leaves_is_named_and_its_processes_are_ended() {
    let directory = Scratch::new();
    let (output, said) = said_of(&directory, "true");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said, "");

    let mut suite = format!(
        "cd {}
        mkfifo ready
        # Neither a parent that is gone nor a session of its own hides it.
        (setsid sh -c 'echo > ready; exec sleep 4711' &)
        read line < ready
        touch tmp/file
        mkdir under",
        directory.path().display()
    );
    let mut expected = vec![
        "running: sleep 4711".to_owned(),
        format!("left file {}/tmp/file", directory.path().display()),
    ];
    if mode() == Mode::Root {
        suite += "; mount -t tmpfs left under; touch kept; unshare --net=kept true";
        for place in ["under", "kept"] {
            expected.push(format!("{}/{place} ", directory.path().display()));
        }
    }
    // These have no owner, so they count only where nobody else runs a derrick; see its head.
    suite += "; ipcmk --queue > queue; touch /dev/shm/left-by-$$; echo /dev/shm/left-by-$$ > shm; exit 3";
    let (output, said) = said_of(&directory, &suite);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let alone = !String::from_utf8_lossy(&output.stdout).contains("another derrick");
    let read = |name: &str| fs::read_to_string(directory.join(name)).expect("the suite wrote it");
    let queue = read("queue");
    let queue = queue.rsplit(": ").next().expect("a number").trim();
    let shm = read("shm");
    if alone {
        expected.push(format!("left ipc object msg {queue} "));
        expected.push(format!("left file {shm}").trim().to_owned());
    }
    tidy(&directory, queue, shm.trim());
    for what in &expected {
        assert!(
            said.lines().any(|line| format!("{line} ").contains(what)),
            "nothing of {what} in\n{said}"
        );
    }
    assert_eq!(support::process_with_argument("4711"), None);
}

fn tidy(directory: &Scratch, queue: &str, shm: &str) {
    fs::remove_file(shm).expect("the suite made it");
    support::succeed(Command::new("ipcrm").args(["--queue-id", queue]));
    if mode() == Mode::Root {
        for place in ["under", "kept"] {
            support::succeed(Command::new("umount").arg(directory.join(place)));
        }
    }
}
