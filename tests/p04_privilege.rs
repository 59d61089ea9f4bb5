//! P4: a workspace never holds a capability over the host and never gains a privilege.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use nix::unistd::geteuid;
use serde_json::json;
use support::{
    Derrick, Mode, Scratch, Workspace, binary, mode, on_the_host, program, results,
    seen_from_the_host, succeed, uid_map,
};

/// What a command's `/proc/self/status` says.
fn status_in(workspace: &Workspace) -> BTreeMap<String, String> {
    workspace
        .ok("cat /proc/self/status")
        .lines()
        .filter_map(|line| line.split_once(":\t"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// What the calls of a program, written with `attempt` of [`program`], come to.
fn come_to(derrick: &Derrick, calls: &str) -> BTreeMap<String, String> {
    let program = program(&[]) + calls;
    results(&derrick.create().python(&program).expect(0))
}

/// One call of `calls`, by its name.
#[track_caller]
fn comes_to<const N: usize>(without: [&str; N], calls: &str, name: &str, expected: &str) {
    let come = come_to(&Derrick::without(without), calls);
    assert_eq!(come[name], expected, "without {without:?}: {come:?}");
}

//
#[test]
fn making_a_user_namespace() {
    let number = libc::SYS_unshare;
    let calls = format!("attempt('user', {number}, [{}])\n", libc::CLONE_NEWUSER);
    comes_to(["seccomp", "user_namespaces"], &calls, "user", "ok");
    // Either is enough.
    comes_to(["seccomp"], &calls, "user", "ENOSPC");
    comes_to(["user_namespaces"], &calls, "user", "EPERM");
    comes_to([], &calls, "user", "EPERM");
    let limit = Derrick::on_host()
        .create()
        .ok("cat /proc/sys/user/max_user_namespaces");
    assert_eq!(limit, "0\n");
}

//
#[test]
fn entering_the_namespaces_of_init() {
    let calls = format!(
        "try:
    init = os.open('/proc/1/ns/mnt', os.O_RDONLY)
    attempt('init', {0}, [init, 0])
except OSError as error:
    print('init', 'open-' + errno.errorcode[error.errno])
attempt('own', {0}, [uts, 0])
",
        libc::SYS_setns
    );
    // Root of the namespaces itself may.
    let open = ["not_dumpable", "seccomp", "capabilities"];
    comes_to(open, &calls, "init", "ok");
    comes_to(["seccomp", "capabilities"], &calls, "own", "ok");
    // Each of the three is enough, and init's cannot even be opened.
    comes_to(["not_dumpable", "capabilities"], &calls, "init", "EPERM");
    comes_to(["not_dumpable", "seccomp"], &calls, "init", "EPERM");
    comes_to(["seccomp", "capabilities"], &calls, "init", "open-EACCES");
    let come = come_to(&Derrick::on_host(), &calls);
    assert_eq!((&*come["init"], &*come["own"]), ("open-EACCES", "EPERM"));
}

/// Who a setuid program is that somebody other than its owner executes.
fn effective_user_of_a_setuid_program(derrick: &Derrick) -> String {
    let workspace = derrick.create();
    workspace.ok("cp /usr/bin/id /srv/id && chown 0:0 /srv/id && chmod 4755 /srv/id");
    let ran = workspace.run_with(&json!({ "argv": ["/srv/id", "-u"], "user": "nobody" }));
    ran["output"]["stdout"].as_str().expect("text").to_owned()
}

//
#[test]
fn running_a_setuid_program() {
    if mode() == Mode::Single {
        // There is nobody else whose program it could be: `user` takes root alone.
        let derrick = Derrick::on_host();
        let exec = json!({ "argv": ["id"], "user": "nobody" });
        let asked = derrick.create().post("execs", &exec);
        asked.problem(422);
        return;
    }
    let open = ["nosuid", "no_new_privs", "landlock", "seccomp"];
    let who = effective_user_of_a_setuid_program(&Derrick::without(open));
    assert_eq!(who, "0\n", "nothing stands in its way");
    // Each is enough: the mount, and what landlock and seccomp need as well.
    let mount = Derrick::without(["no_new_privs", "landlock", "seccomp"]);
    let process = Derrick::without(["nosuid", "landlock", "seccomp"]);
    for derrick in [mount, process, Derrick::on_host()] {
        assert_eq!(effective_user_of_a_setuid_program(&derrick), "65534\n");
    }
}

#[test]
fn every_program_is_filtered_and_gains_nothing_by_execve() {
    let status = status_in(&Derrick::on_host().create());
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!(status["Seccomp"], "2");
    let open = Derrick::without(["no_new_privs", "landlock", "seccomp"]);
    let status = status_in(&open.create());
    assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("0", "0"));
}

/// What root inside keeps, by number, in capabilities(7)'s order.
const CAPABILITIES: [(u32, &str); 13] = [
    (0, "chown"),
    (1, "dac_override"),
    (3, "fowner"),
    (4, "fsetid"),
    (5, "kill"),
    (6, "setgid"),
    (7, "setuid"),
    (8, "setpcap"),
    (10, "net_bind_service"),
    (18, "sys_chroot"),
    (27, "mknod"),
    (29, "audit_write"),
    (31, "setfcap"),
];

//
#[test]
fn using_a_capability_that_was_not_listed() {
    let listed: u64 = CAPABILITIES.iter().map(|(number, _)| 1 << number).sum();
    let held = |status: &BTreeMap<String, String>, set: &str| {
        u64::from_str_radix(&status[set], 16).expect("a set is a number")
    };
    let open = status_in(&Derrick::without(["capabilities"]).create());
    assert_ne!(held(&open, "CapEff") & !listed, 0, "{open:?}");
    let derrick = Derrick::on_host();
    let status = status_in(&derrick.create());
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let held = held(&status, set);
        assert_eq!(held, listed, "{set} is {held:#x}, the list is {listed:#x}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(held(&status, set), 0, "{set}");
    }
    // A raw socket takes one that is not listed: over the sandbox's own network.
    let raw = "attempt('raw', 41 if os.uname().machine == 'x86_64' else 198, [2, 3, 1])\n";
    comes_to(["capabilities"], raw, "raw", "ok");
    comes_to([], raw, "raw", "EPERM");
    // And none can be had back.
    let again = "import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
header = ctypes.create_string_buffer((0x20080522).to_bytes(4, 'little') + bytes(4))
everything = ctypes.create_string_buffer(b'\\xff' * 8 + bytes(4) + b'\\xff' * 8 + bytes(4))
print(libc.capset(header, everything), errno.errorcode[ctypes.get_errno()])
";
    assert_eq!(derrick.create().python(again).expect(0), "-1 EPERM\n");
}

//
#[test]
fn using_a_group_of_whoever_started_derrick() {
    let scratch = Scratch::new();
    let groups = "grep Groups: /proc/self/status";
    if mode() == Mode::Root {
        // A group of the host's, which derrick has and root inside must not.
        let started = ["--groups", "4,24,1234", "--"];
        let outside = succeed(
            Command::new("setpriv")
                .args(started)
                .args(["sh", "-c", groups]),
        );
        assert_eq!(outside.trim_end(), "Groups:\t4 24 1234");
        let state = scratch.join("state");
        let inside = succeed(
            Command::new("setpriv")
                .args(started)
                .arg(binary())
                .args(["run", "--state-dir"])
                .arg(state)
                .args(["--", "sh", "-c", groups]),
        );
        assert_eq!(inside.trim_end().trim_end_matches('\t'), "Groups:");
        return;
    }
    let inside = Derrick::on_host().create().ok(groups);
    let inside: Vec<&str> = inside.split_whitespace().skip(1).collect();
    match mode() {
        Mode::Root | Mode::Subordinate => assert!(inside.is_empty(), "{inside:?}"),
        // The kernel lets nobody leave a group with one id: those of the user stay, the one that is
        // mapped as 0, others without a number.
        Mode::Single => {
            let known = |id: &&str| ["0", "65534"].contains(id);
            assert!(inside.iter().all(known), "{inside:?}");
        }
    }
}

#[test]
fn being_somebody_of_the_host() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let map = uid_map(seen_from_the_host(&workspace));
    let [(inside, outside, count)] = map[..] else {
        panic!("the id map has more than one line: {map:?}");
    };
    assert_eq!(inside, 0, "{map:?}");
    let accounts = fs::read_to_string("/etc/passwd").expect("the host has accounts");
    let is_account = |id: u32| {
        accounts
            .lines()
            .any(|line| line.split(':').nth(2) == Some(&id.to_string()))
    };
    match mode() {
        Mode::Root => {
            assert_eq!(count, 65_536, "{map:?}");
            assert!(outside >= 0x7000_0000, "{map:?}");
            assert!(!(outside..outside + count).any(is_account), "{map:?}");
        }
        Mode::Subordinate => {
            assert_eq!(count, 65_536, "{map:?}");
            assert_ne!(outside, geteuid().as_raw(), "{map:?}");
            assert!(!(outside..outside + count).any(is_account), "{map:?}");
        }
        // There is no other id to be had; GET /workspaces/{id} says so.
        Mode::Single => {
            assert_eq!((outside, count), (geteuid().as_raw(), 1));
            let weaker = workspace.describe()["enforcement"]["weaker"].to_string();
            assert!(weaker.contains("root inside is the user"), "{weaker}");
        }
    }
}

#[test]
fn being_somebody_of_another_workspace() {
    let derrick = Derrick::on_host();
    let workspaces = [derrick.create(), derrick.create()];
    let maps = workspaces
        .each_ref()
        .map(|it| uid_map(seen_from_the_host(it))[0]);
    let apart = maps[0].1.abs_diff(maps[1].1) >= maps[0].2;
    assert_eq!(apart, mode() == Mode::Root, "{maps:?}");
    if !apart {
        // An ordinary user has one range or one id to give, and the answer says so.
        let weaker = workspaces[0].describe()["enforcement"]["weaker"].to_string();
        let shared = ["ids are shared", "there is no other id"];
        assert!(shared.iter().any(|it| weaker.contains(it)), "{weaker}");
    }
}

/// Reads the clock's state by adjtimex(2), sets what is set already, and a time that there is not.
const CLOCK: &str = "import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def say(name, result):
    print(name, errno.errorcode[ctypes.get_errno()] if result < 0 else 'ok')
state = ctypes.create_string_buffer(208)
say('read', libc.adjtimex(state))
state[0:4] = (0x10).to_bytes(4, 'little')
say('adjust', libc.adjtimex(state))
clock_settime = ctypes.c_long(227 if os.uname().machine == 'x86_64' else 112)
say('set', libc.syscall(clock_settime, ctypes.c_long(0), (ctypes.c_long * 2)(0, -1)))
";

// B-21
#[test]
fn setting_the_clock() {
    if mode() == Mode::Root {
        let outside = succeed(Command::new("/usr/bin/python3").args(["-c", CLOCK]));
        assert_eq!(outside, "read ok\nadjust ok\nset EINVAL\n");
    }
    // There is one clock, and no capability of a sandbox's is one over it.
    let open = Derrick::without(["seccomp", "capabilities"]);
    let inside = open.create().python(CLOCK).expect(0);
    assert_eq!(inside, "read ok\nadjust EPERM\nset EINVAL\n");
    let inside = Derrick::on_host().create().python(CLOCK).expect(0);
    assert_eq!(inside, "read ok\nadjust EPERM\nset EPERM\n");
}

/// Tries to be served before others, and what is left of it.
const PRIORITY: &str = "import errno, os
def say(name, act):
    try:
        act()
        print(name, 'ok')
    except OSError as error:
        print(name, errno.errorcode[error.errno])
say('realtime', lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
say('nice', lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
def spare():
    with open('/proc/self/oom_score_adj', 'w') as file:
        file.write('-1000')
say('oom', spare)
";

// B-22
#[test]
fn going_before_other_processes() {
    if mode() == Mode::Root {
        let outside = on_the_host(PRIORITY, false);
        // The last takes a capability over resources, which not every root has.
        assert!(outside.starts_with("realtime ok\nnice ok\n"), "{outside}");
    }
    let derrick = Derrick::on_host();
    let inside = derrick.create().python(PRIORITY).expect(0);
    assert_eq!(inside, "realtime EPERM\nnice EACCES\noom EACCES\n");
}

// B-22
#[test]
fn outliving_the_provider_when_memory_is_short() {
    let score = |derrick: &Derrick| -> i32 {
        let printed = derrick.create().ok("cat /proc/self/oom_score_adj");
        printed.trim().parse().expect("it is a number")
    };
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("the host has it");
    let own: i32 = own.trim().parse().expect("it is a number");
    assert_eq!(score(&Derrick::without(["oom_score"])), own);
    assert!(score(&Derrick::on_host()) >= 500);
}
