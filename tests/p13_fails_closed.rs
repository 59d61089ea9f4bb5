//! P13: what a sandbox must have and cannot get, no workspace starts without; `derrick check` says which
//! layer it is and how to fix it; and a workspace tells the layers that it has.
//!
//! A kernel that lacks something is played by a filter of system calls around derrick, which answers to one
//! of them as that kernel would.

mod support;

use std::process::Command;

use libc::{c_int, c_long};
use serde_json::json;
use support::{Derrick, Launch, Scratch, binary};

/// Executes the rest of its arguments where a system call whose first argument has one of the bits of a
/// mask, or any if that is 0, gives an errno.
const REFUSE: &str = "import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
number, mask, errno = map(int, sys.argv[1:4])
code = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16),
        (0x45, 0, 1, mask) if mask else (0x05, 0, 0, 0),
        (0x06, 0, 0, 0x00050000 | errno), (0x06, 0, 0, 0x7fff0000)]
filter = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *each) for each in code))
program = struct.pack('HxxxxxxQ', len(code), ctypes.addressof(filter))
assert libc.prctl(38, 1, 0, 0, 0) == 0, 'no_new_privs'
assert libc.prctl(22, 2, ctypes.create_string_buffer(program)) == 0, 'a filter'
os.execv(sys.argv[4], sys.argv[4:])
";

/// A layer that a kernel lacks.
struct Missing {
    call: c_long,
    flags: c_int,
    errno: c_int,
    /// What derrick says when it is to serve.
    said: &'static str,
    /// The line of `derrick check`.
    fact: &'static str,
}

const MISSING: &[Missing] = &[
    Missing {
        call: libc::SYS_clone,
        flags: libc::CLONE_NEWUSER,
        errno: libc::ENOSPC,
        said: "creating a user namespace; see 'derrick check'",
        fact: "user_namespaces",
    },
    Missing {
        call: libc::SYS_unshare,
        flags: libc::CLONE_NEWNS,
        errno: libc::EINVAL,
        said: "mount namespace",
        fact: "namespaces",
    },
    Missing {
        call: libc::SYS_clone,
        flags: libc::CLONE_NEWPID,
        errno: libc::EINVAL,
        said: "creating the pid namespace; see 'derrick check'",
        fact: "namespaces",
    },
    Missing {
        call: libc::SYS_unshare,
        flags: libc::CLONE_NEWNET,
        errno: libc::EINVAL,
        said: "creating the net namespace; see 'derrick check'",
        fact: "namespaces",
    },
    Missing {
        call: libc::SYS_unshare,
        flags: libc::CLONE_NEWIPC,
        errno: libc::EINVAL,
        said: "creating the ipc namespace; see 'derrick check'",
        fact: "namespaces",
    },
    Missing {
        call: libc::SYS_unshare,
        flags: libc::CLONE_NEWUTS,
        errno: libc::EINVAL,
        said: "creating the uts namespace; see 'derrick check'",
        fact: "namespaces",
    },
    Missing {
        call: libc::SYS_unshare,
        flags: libc::CLONE_NEWCGROUP,
        errno: libc::EINVAL,
        said: "creating the cgroup namespace; see 'derrick check'",
        fact: "namespaces",
    },
    Missing {
        call: libc::SYS_seccomp,
        flags: 0,
        errno: libc::ENOSYS,
        said: "installing a filter",
        fact: "seccomp",
    },
    Missing {
        call: libc::SYS_landlock_create_ruleset,
        flags: 0,
        errno: libc::ENOSYS,
        said: "landlock ABI 2 is required and this kernel has none; enable landlock",
        fact: "landlock",
    },
];

impl Missing {
    /// What a program is started through.
    fn kernel(&self) -> Vec<String> {
        let mut words = vec!["/usr/bin/python3".into(), "-c".into(), REFUSE.into()];
        words.extend([self.call, self.flags.into(), self.errno.into()].map(|n| n.to_string()));
        words
    }
}

fn config() -> serde_json::Value {
    json!({ "name": "test" })
}

#[test]
fn a_kernel_that_lacks_a_layer_gets_no_workspace() {
    for missing in MISSING {
        let started = Launch::new(config()).through(missing.kernel()).try_start();
        let said = started.expect_err(missing.said);
        assert!(said.contains(missing.said), "{}: {said}", missing.said);
    }
    // What plays such a kernel is in nobody's way else: io_uring_setup(2).
    let other = Missing {
        call: libc::SYS_io_uring_setup,
        flags: 0,
        errno: libc::ENOSYS,
        said: "",
        fact: "",
    };
    let derrick = Launch::new(config()).through(other.kernel()).start();
    assert_eq!(derrick.create().ok("echo runs"), "runs\n");
}

#[test]
fn check_says_which_layer_is_missing_and_how_to_get_it() {
    let scratch = Scratch::new();
    for missing in MISSING {
        let kernel = missing.kernel();
        let checked = Command::new(&kernel[0])
            .args(&kernel[1..])
            .arg(binary())
            .args(["check", "--state-dir"])
            .arg(scratch.join("state"))
            .output()
            .expect("derrick check starts");
        let printed = String::from_utf8_lossy(&checked.stdout);
        assert_eq!(
            checked.status.code(),
            Some(1),
            "{}: {printed}",
            missing.said
        );
        let mut lines = printed.lines();
        let found = lines.find(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("MISSING") && words.next() == Some(missing.fact)
        });
        assert!(found.is_some(), "{}: {printed}", missing.said);
        // What it means and the fix are below it.
        let words = |line: &str| line.split_whitespace().next().map(str::to_owned);
        assert_eq!(
            lines.next().and_then(words).as_deref(),
            Some("so"),
            "{printed}"
        );
        assert_eq!(
            lines.next().and_then(words).as_deref(),
            Some("fix"),
            "{printed}"
        );
        assert!(printed.contains("ns does not work here: see what is MISSING"));
    }
}

#[test]
fn landlock_can_be_missing_where_the_config_says_so_and_then_it_is_told() {
    let missing = MISSING.last().expect("it is in the table");
    let derrick = Launch::new(json!({ "name": "test", "best_effort": ["landlock"] }))
        .through(missing.kernel())
        .start();
    let told = derrick.create().describe();
    let weaker = told["enforcement"]["weaker"].to_string();
    assert!(
        weaker.contains("landlock is off: this kernel has none"),
        "{weaker}"
    );
    let expected = json!({ "state": "off", "abi": 0 });
    assert_eq!(told["enforcement"]["sandbox"]["landlock"], expected);
}

#[test]
fn a_workspace_tells_the_layers_that_it_has() {
    let derrick = Derrick::on_host();
    let told = derrick.create().describe();
    let sandbox = &told["enforcement"]["sandbox"];
    let kinds = ["user", "mnt", "pid", "ipc", "uts", "cgroup", "net"];
    assert_eq!(sandbox["namespaces"], json!(kinds));
    assert_eq!(sandbox["seccomp_filters"], 4);
    assert_eq!(sandbox["profile"], "standard");
    assert_eq!(sandbox["no_new_privs"], true);
    assert_eq!(sandbox["keyring"], "own");
    assert_eq!(sandbox["network"], "none");
    assert_eq!(sandbox["rlimits"]["core"], 1);
    assert_eq!(sandbox["capabilities"].as_array().map(Vec::len), Some(13));
    let landlock = &sandbox["landlock"];
    let state = landlock["state"].as_str().expect("a word");
    match landlock["abi"].as_i64().expect("a version") {
        6.. => assert_eq!(state, "full"),
        _ => assert_eq!(state, "partial"),
    }
    let health = derrick.api.get("/health").expect(200).json();
    assert_eq!(&health["sandbox"], sandbox);
}

#[test]
fn a_restriction_that_a_test_turned_off_is_told_everywhere() {
    let derrick = Derrick::without(["seccomp", "landlock"]);
    let workspace = derrick.create();
    let expected = "DERRICK_TEST_WITHOUT turns off [\"landlock\",\"seccomp\"]";
    let health = derrick.api.get("/health").expect(200).json();
    let description = workspace.describe();
    for weaker in [&health["weaker"], &description["enforcement"]["weaker"]] {
        let weaker = weaker.as_array().expect("a list");
        assert!(weaker.contains(&json!(expected)), "{weaker:?}");
    }
    assert_eq!(health["sandbox"]["seccomp_filters"], 0);
    assert_eq!(health["sandbox"]["landlock"]["state"], "off");
    let printed = derrick.printed();
    assert!(printed.contains(expected), "{printed}");
}

#[test]
fn a_restriction_that_there_is_not_cannot_be_turned_off() {
    let launch = Launch::new(config()).without(["seccomp", "everything"]);
    let said = launch.try_start().expect_err("it starts");
    let expected = "DERRICK_TEST_WITHOUT: unknown variant `everything`";
    assert!(said.contains(expected), "{said}");
}
