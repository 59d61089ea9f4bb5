//! P5: a workspace reaches only the listed system calls and socket families; what a kernel adds is off until
//! it is listed.
//!
//! What the filters answer to every number and argument is tested beside them, `sandbox::seccomp`; here are the
//! attacks, on the kernel there is, in both profiles. Each gets further on the bare host, or where the defence
//! was turned off. A call that would be refused there too is made with arguments that the kernel looks at only
//! after it, so that another errno shows how far it got.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde_json::json;
use support::{
    Attempt, Derrick, Host, Launch, Mode, Scratch, assert_refused, assert_refused_in, bare, mode,
    on_the_host, program, results, sockets, succeed,
};

fn nested() -> Derrick {
    Derrick::start(json!({ "name": "test", "profile": "nested" }))
}

/// In both profiles, and on the bare host not.
fn refused_everywhere(attempts: &[Attempt]) {
    assert_refused(attempts);
    assert_refused_in(&nested(), attempts);
}

/// Runs calls that are written with `attempt` of [`program`].
fn come_to(derrick: &Derrick, calls: &str) -> BTreeMap<String, String> {
    let program = program(&[]) + calls;
    results(&derrick.create().python(&program).expect(0))
}

// --- mounts and namespaces: table A ---

//
#[test]
fn mounting_a_filesystem() {
    let calls = format!(
        "attempt('mount', {}, [b'none', b'/tmp', b'tmpfs', 0, 0])\n",
        libc::SYS_mount
    );
    let mounting = |derrick: &Derrick| come_to(derrick, &calls)["mount"].clone();
    let open = Derrick::without(["seccomp", "landlock", "capabilities"]);
    assert_eq!(mounting(&open), "ok");
    // Each of the three is enough.
    for closed in [
        Derrick::without(["seccomp", "landlock"]),
        Derrick::without(["seccomp", "capabilities"]),
        Derrick::without(["landlock", "capabilities"]),
        Derrick::on_host(),
        // Who made no namespace inside has no capability.
        nested(),
    ] {
        assert_eq!(mounting(&closed), "EPERM");
    }
}

//
#[test]
fn unmounting_and_changing_the_root() {
    assert_refused(&attempts! {
        SYS_umount2("b'/nonexistent', 0") => EPERM, Any;
        SYS_pivot_root("b'/tmp', b'/tmp'") => EPERM, Any;
    });
}

//
#[test]
fn mounting_by_the_new_calls() {
    assert_refused(&attempts! {
        SYS_fsopen("b'tmpfs', 0") => EPERM, Any;
        SYS_fsconfig("-1, 0, 0, 0, 0") => EPERM, Any;
        SYS_fsmount("-1, 0, 0") => EPERM, Any;
        SYS_fspick("-1, b'/tmp', 0") => EPERM, Any;
        SYS_open_tree("-100, b'/', 1") => EPERM, Any;
        SYS_move_mount("-1, b'', -1, b'', 0") => EPERM, Any;
        SYS_mount_setattr("-1, b'', 0, 0, 0") => EPERM, Any;
    });
    // open_tree_attr(2), of Linux 6.15.
    assert_refused(&[Attempt {
        name: "open_tree_attr".into(),
        number: 467,
        arguments: "-1, b'', 0, 0, 0".into(),
        inside: "EPERM",
        host: Host::Any,
    }]);
}

// P5: namespaces of every kind, by either call.
#[test]
fn making_namespaces() {
    let kinds = [
        ("user", libc::CLONE_NEWUSER),
        ("mnt", libc::CLONE_NEWNS),
        ("pid", libc::CLONE_NEWPID),
        ("net", libc::CLONE_NEWNET),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ];
    for (call, number, signal) in [
        ("unshare", libc::SYS_unshare, 0),
        ("clone", libc::SYS_clone, libc::SIGCHLD),
    ] {
        let attempts = kinds.map(|(kind, flag)| Attempt {
            name: format!("{call}-{kind}"),
            number,
            arguments: format!("{}, 0, 0, 0, 0", flag | signal),
            inside: "EPERM",
            host: Host::Any,
        });
        assert_refused(&attempts);
    }
}

//
#[test]
fn making_namespaces_by_clone3() {
    // Only its own flags argument shows what it would do, and no filter reads that: it is not there.
    refused_everywhere(&attempts! {
        SYS_clone3("0, 0") => ENOSYS, Any;
    });
}

//
#[test]
fn opening_files_by_handle() {
    refused_everywhere(&attempts! {
        SYS_open_by_handle_at("-1, 0, 0") => EPERM, Root;
    });
}

/// As a process with a terminal of its own, which the kernel lets push input into that (6.1, and where
/// `dev.tty.legacy_tiocsti` is set), or else says `EIO`.
const PUSH: &str = "import ctypes, errno, fcntl, os, pty
libc = ctypes.CDLL(None, use_errno=True)
master, slave = pty.openpty()
if os.fork():
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
os.setsid()
fcntl.ioctl(slave, 0x540e, 0)
for request in (0x5412, 0x541c, 0x7ff00005412, -0x7ffffffffffabe4):
    result = libc.syscall(ctypes.c_long(16 if os.uname().machine == 'x86_64' else 29),
                          ctypes.c_long(slave), ctypes.c_ulong(request), b'x')
    print('ok' if result == 0 else errno.errorcode[ctypes.get_errno()], flush=True)
";

//
#[test]
fn pushing_input_into_a_terminal() {
    let outside = succeed(Command::new("/usr/bin/python3").args(["-c", PUSH]));
    assert!(!outside.contains("EPERM"), "{outside}");
    for derrick in [Derrick::on_host(), nested()] {
        let inside = derrick.create().python(PUSH).expect(0);
        assert_eq!(inside, "EPERM\n".repeat(4));
    }
}

/// With a session keyring that has a key, as whoever starts derrick may have one, executes its arguments.
const WITH_A_KEY: &str = "import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
keyctl, add_key = (250, 248) if os.uname().machine == 'x86_64' else (219, 217)
assert libc.syscall(ctypes.c_long(keyctl), ctypes.c_long(1), b'derrick-test') > 0
assert libc.syscall(ctypes.c_long(add_key), b'user', b'canary', b'secret', ctypes.c_long(6), ctypes.c_long(-3)) > 0
os.execv(sys.argv[1], sys.argv[1:])
";

/// Searches the session keyring for it.
const SEARCH: &str = "import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
keyctl = ctypes.c_long(250 if os.uname().machine == 'x86_64' else 219)
found = libc.syscall(keyctl, ctypes.c_long(10), ctypes.c_long(-3), b'user', b'canary', ctypes.c_long(0))
print('found' if found > 0 else errno.errorcode[ctypes.get_errno()])
";

//
#[test]
fn finding_a_key_of_whoever_started_derrick() {
    let through = || {
        ["/usr/bin/python3", "-c", WITH_A_KEY]
            .map(str::to_owned)
            .to_vec()
    };
    let search = |launch: Launch| {
        let derrick = launch.through(through()).start();
        derrick.create().python(SEARCH).expect(0)
    };
    let launch = || Launch::new(json!({ "name": "test" }));
    assert_eq!(search(launch().without(["seccomp", "keyring"])), "found\n");
    // Either is enough.
    assert_eq!(search(launch().without(["seccomp"])), "ENOKEY\n");
    assert_eq!(search(launch().without(["keyring"])), "EPERM\n");
    assert_eq!(search(launch()), "EPERM\n");
}

// --- the kernel's interfaces: table B ---

// B-01
#[test]
fn io_uring() {
    refused_everywhere(&attempts! {
        SYS_io_uring_setup("1, 0") => ENOSYS, Any;
        SYS_io_uring_enter("-1, 0, 0, 0, 0") => ENOSYS, Any;
        SYS_io_uring_register("-1, 0, 0, 0") => ENOSYS, Any;
    });
}

/// Each kind of socket is refused inside, in both profiles. The second of each pair has a type that no
/// kernel has, which the kernel looks at before it looks for the family: so it shows how far the call gets
/// whether or not this kernel has the family.
#[track_caller]
fn sockets_refused(kinds: &[(&str, i32, i32, i32)], inside: &str) {
    const NO_TYPE: i32 = 15;
    let doubled: Vec<(String, i32, i32, i32)> = kinds
        .iter()
        .flat_map(|(name, family, kind, protocol)| {
            let real = ((*name).to_owned(), *family, *kind, *protocol);
            let typeless = (format!("{name}-typeless"), *family, NO_TYPE, *protocol);
            [real, typeless]
        })
        .collect();
    let borrowed: Vec<_> = doubled
        .iter()
        .map(|(name, family, kind, protocol)| (name.as_str(), *family, *kind, *protocol))
        .collect();
    let program = sockets(&borrowed);
    let host = results(&on_the_host(&program, mode() != Mode::Root));
    for (name, ..) in kinds {
        assert_eq!(
            host[&format!("{name}-typeless")],
            "EINVAL",
            "{name} on the host"
        );
    }
    for derrick in [Derrick::on_host(), nested()] {
        let came = results(&derrick.create().python(&program).expect(0));
        for (name, ..) in &borrowed {
            assert_eq!(came[*name], inside, "{name}");
        }
    }
}

// B-02
#[test]
fn sockets_of_the_crypto_api() {
    let kinds = [("alg", libc::AF_ALG, libc::SOCK_SEQPACKET, 0)];
    sockets_refused(&kinds, "EAFNOSUPPORT");
}

// B-03
#[test]
fn configuring_ipsec() {
    let xfrm = libc::NETLINK_XFRM;
    sockets_refused(
        &[("xfrm", libc::AF_NETLINK, libc::SOCK_RAW, xfrm)],
        "EPROTONOSUPPORT",
    );
    sockets_refused(&[("key", libc::AF_KEY, libc::SOCK_RAW, 2)], "EAFNOSUPPORT");
}

// B-04
#[test]
fn sockets_of_rxrpc() {
    let kinds = [("rxrpc", libc::AF_RXRPC, libc::SOCK_DGRAM, libc::AF_INET)];
    sockets_refused(&kinds, "EAFNOSUPPORT");
}

// B-05
#[test]
fn sockets_of_families_that_few_use() {
    let kinds = [
        ("rds", libc::AF_RDS, libc::SOCK_SEQPACKET, 0),
        ("tipc", libc::AF_TIPC, libc::SOCK_STREAM, 0),
        ("can", libc::AF_CAN, libc::SOCK_RAW, 1),
        ("bluetooth", libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
        ("smc", 43, libc::SOCK_STREAM, 0),
        ("qipcrtr", 42, libc::SOCK_DGRAM, 0),
        ("kcm", 41, libc::SOCK_DGRAM, 0),
    ];
    sockets_refused(&kinds, "EAFNOSUPPORT");
}

// B-06
#[test]
fn protocols_that_few_use() {
    let kinds = [
        ("sctp", libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        ("dccp", libc::AF_INET, libc::SOCK_DCCP, libc::IPPROTO_DCCP),
        ("mptcp", libc::AF_INET, libc::SOCK_STREAM, 262),
        ("udplite", libc::AF_INET, libc::SOCK_DGRAM, 136),
        ("l2tp", libc::AF_INET6, libc::SOCK_DGRAM, 115),
    ];
    sockets_refused(&kinds, "EPROTONOSUPPORT");
    // Without its number, by the only type that leads to it.
    let program = sockets(&[("sctp", libc::AF_INET6, libc::SOCK_SEQPACKET, 0)]);
    let inside = results(&Derrick::on_host().create().python(&program).expect(0));
    assert_eq!(inside["sctp"], "EPROTONOSUPPORT");
}

// B-07
#[test]
fn configuring_packet_filters() {
    let kinds = [
        (
            "netfilter",
            libc::AF_NETLINK,
            libc::SOCK_RAW,
            libc::NETLINK_NETFILTER,
        ),
        ("sock-diag", libc::AF_NETLINK, libc::SOCK_RAW, 4),
    ];
    sockets_refused(&kinds, "EPROTONOSUPPORT");
    // As root of a network namespace, by setsockopt(2), with a length that the kernel finds too short
    // only after it looked at who asks.
    let replace = "import errno, socket
try:
    socket.socket().setsockopt(0, 64, b'x')
except OSError as error:
    print(errno.errorcode[error.errno])
";
    let outside = on_the_host(replace, mode() != Mode::Root);
    assert_ne!(outside, "EPERM\n");
    let derrick = nested();
    let workspace = derrick.create();
    workspace.write_file("/tmp/replace.py", replace.as_bytes());
    let inner = "unshare --user --map-root-user --net /usr/bin/python3 /tmp/replace.py";
    assert_eq!(workspace.ok(inner), "EPERM\n");
    // In `standard` there is nobody whom the kernel would let, where it has packet filters at all.
    let plain = Derrick::on_host().create().python(replace).expect(0);
    assert!(["EPERM\n", "ENOPROTOOPT\n"].contains(&&*plain), "{plain}");
}

/// Asks for a queueing discipline on loopback, over netlink.
const TRAFFIC_CONTROL: &str = "tc qdisc add dev lo root pfifo";

// B-08
#[test]
fn traffic_control() {
    let own = "unshare --user --map-root-user --net";
    succeed(Command::new("sh").args(["-c", &format!("{own} {TRAFFIC_CONTROL}")]));
    let ran = Derrick::on_host().create().sh(TRAFFIC_CONTROL);
    assert!(
        ran.output.contains("Operation not permitted"),
        "{}",
        ran.output
    );
    // `nested` gives this up, for a network namespace that is made inside alone, and says so.
    let derrick = nested();
    let workspace = derrick.create();
    let ran = workspace.sh(TRAFFIC_CONTROL);
    assert!(
        ran.output.contains("Operation not permitted"),
        "{}",
        ran.output
    );
    workspace.ok(&format!("{own} {TRAFFIC_CONTROL}"));
    let weaker = workspace.describe()["enforcement"]["weaker"].to_string();
    assert!(weaker.contains("traffic control"), "{weaker}");
}

// B-09
#[test]
fn sockets_that_see_packets() {
    let kinds = [
        ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
        ("xdp", libc::AF_XDP, libc::SOCK_RAW, 0),
    ];
    sockets_refused(&kinds, "EAFNOSUPPORT");
    // A raw one takes a capability; what the kernel takes for a packet socket is refused by its type.
    const SOCK_PACKET: i32 = 10;
    let program = sockets(&[
        ("raw", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        ("old-packet", libc::AF_INET, SOCK_PACKET, 0),
    ]);
    let host = results(&on_the_host(&program, mode() != Mode::Root));
    assert_eq!((&*host["raw"], &*host["old-packet"]), ("ok", "ok"));
    for derrick in [Derrick::on_host(), nested()] {
        let inside = results(&derrick.create().python(&program).expect(0));
        let came = (&*inside["raw"], &*inside["old-packet"]);
        assert_eq!(came, ("EPERM", "EPROTONOSUPPORT"));
    }
}

// B-10
#[test]
fn sockets_to_the_hypervisor() {
    let kinds = [("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0)];
    sockets_refused(&kinds, "EAFNOSUPPORT");
}

// B-11, B-12, B-13
#[test]
fn bpf_perf_events_and_userfaultfd() {
    refused_everywhere(&attempts! {
        SYS_bpf("0, 0, 0") => EPERM, Root;
        SYS_perf_event_open("0, 0, -1, -1, 0") => EPERM, Any;
        SYS_userfaultfd("1") => EPERM, Any;
    });
}

// B-14
#[test]
fn kernel_keys() {
    refused_everywhere(&attempts! {
        SYS_keyctl("0, -3, 0") => EPERM, Any;
        SYS_add_key("b'user', b'derrick-test', b'x', 1, -1") => EPERM, Any;
        SYS_request_key("b'user', b'derrick-test', 0, 0") => EPERM, Any;
    });
}

// B-15
#[test]
fn administering_the_host() {
    refused_everywhere(&attempts! {
        SYS_init_module("0, 0, 0") => EPERM, Root;
        SYS_finit_module("-1, 0, 0") => EPERM, Root;
        SYS_delete_module("0, 0") => EPERM, Root;
        SYS_kexec_load("0, 99, 0, 0") => EPERM, Root;
        SYS_reboot("0, 0, 0, 0") => EPERM, Root;
        SYS_swapon("0, 0") => EPERM, Root;
        SYS_swapoff("0") => EPERM, Root;
        SYS_acct("1") => EPERM, Root;
        SYS_syslog("-1, 0, 0") => EPERM, Root;
        SYS_clock_settime("-1, 0") => EPERM, Any;
        SYS_settimeofday("1, 0") => EPERM, Any;
        SYS_quotactl("-1, 0, 0, 0") => EPERM, Any;
    });
    // Its own name, which `nested` lets root of a namespace of its own change.
    assert_refused(&attempts! {
        SYS_sethostname("0, -1") => EPERM, Any;
        SYS_setdomainname("0, -1") => EPERM, Any;
    });
}

// B-16
#[cfg(target_arch = "x86_64")]
#[test]
fn the_system_calls_of_i386() {
    let source = "int main(void) {
        long result;
        /* getpid(2) of the 32-bit table. */
        __asm__ volatile (\"int $0x80\" : \"=a\"(result) : \"a\"(20) : \"memory\");
        return result > 0 ? 0 : 1;
    }";
    let scratch = Scratch::new();
    let file = scratch.file("int80.c", source);
    let compiled = scratch.join("int80");
    succeed(Command::new("cc").arg("-o").arg(&compiled).arg(file));
    succeed(&mut Command::new(&compiled));
    for derrick in [Derrick::on_host(), nested()] {
        let workspace = derrick.create();
        workspace.write_file("/tmp/int80", &fs::read(&compiled).expect("cc made it"));
        let ran = workspace.sh("chmod +x /tmp/int80; /tmp/int80");
        let killed = 128 + i64::from(libc::SIGSYS);
        assert_eq!(ran.exit_code, killed, "{}", ran.output);
    }
}

// B-17
#[cfg(target_arch = "x86_64")]
#[test]
fn the_system_calls_of_x32() {
    // getpid(2) of the x32 table, which some kernels do not have either.
    refused_everywhere(&[Attempt {
        name: "x32".into(),
        number: 0x4000_0000 + libc::SYS_getpid,
        arguments: String::new(),
        inside: "ENOSYS",
        host: Host::Untried,
    }]);
}

// B-18
#[test]
fn reaching_into_other_processes() {
    refused_everywhere(&attempts! {
        SYS_pidfd_getfd("-1, 0, 0") => EPERM, Any;
        SYS_kcmp("os.getpid(), os.getpid(), 0, 0, 0") => EPERM, Any;
    });
}

// B-19
#[test]
fn calls_that_nobody_needs() {
    refused_everywhere(&attempts! {
        SYS_fanotify_init("-1, 0") => EPERM, Root;
        SYS_vhangup("") => EPERM, Untried;
        SYS_lookup_dcookie("0, 0, 0") => EPERM, Untried;
        SYS_nfsservctl("0, 0, 0") => EPERM, Untried;
    });
}

// B-20
#[test]
fn making_memory_executable_by_personality() {
    refused_everywhere(&attempts! {
        SYS_personality("0x400000") => EPERM, Any;
    });
}

// B-23
#[test]
fn a_bug_behind_an_allowed_call_is_up_to_the_kernels_patches_which_check_tells() {
    let scratch = Scratch::new();
    let checked = Command::new(support::binary())
        .args(["check", "--state-dir"])
        .arg(scratch.join("state"))
        .output()
        .expect("derrick check starts");
    let printed = String::from_utf8_lossy(&checked.stdout);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the host has one");
    assert!(printed.contains(release.trim()), "{printed}");
}

// B-24
#[test]
fn a_call_that_no_kernel_has_yet() {
    refused_everywhere(&[Attempt {
        name: "future".into(),
        number: 1000,
        arguments: String::new(),
        inside: "ENOSYS",
        host: Host::Untried,
    }]);
}

#[test]
fn making_a_process_beside_its_parent() {
    // A sibling of the leader of an exec would not be found by that exec's deadline.
    let outside = succeed(Command::new("/usr/bin/python3").args(["-c", bare::CLONE_PARENT]));
    assert_eq!(outside, "made\n");
    for derrick in [Derrick::on_host(), nested()] {
        assert_eq!(
            derrick.create().python(bare::CLONE_PARENT).expect(0),
            "EPERM\n"
        );
    }
}

// --- what must keep working ---

#[test]
fn ordinary_sockets_work() {
    let kinds = [
        ("tcp", libc::AF_INET, libc::SOCK_STREAM, 0),
        ("udp", libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        ("tcp6", libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP),
        ("unix", libc::AF_UNIX, libc::SOCK_SEQPACKET, 0),
        (
            "route",
            libc::AF_NETLINK,
            libc::SOCK_RAW,
            libc::NETLINK_ROUTE,
        ),
    ];
    let derrick = Derrick::on_host();
    let inside = results(&derrick.create().python(&sockets(&kinds)).expect(0));
    let expected = kinds.map(|(name, ..)| (name.to_owned(), "ok".to_owned()));
    assert_eq!(inside, BTreeMap::from(expected));
}

#[test]
fn what_developers_do_all_day_works() {
    let derrick = Derrick::start(json!({ "name": "test", "workdir": "/srv" }));
    let workspace = derrick.create();
    workspace.write_file(
        "/srv/hello.c",
        b"#include <stdio.h>\nint main(void) { puts(\"hello\"); }\n",
    );
    workspace.write_file("/srv/Makefile", b"hello: hello.c\n\tcc -o $@ $<\n");
    assert!(workspace.ok("make && ./hello").ends_with("hello\n"));
    workspace
        .ok("git init -q . && git add -A && git -c user.name=a -c user.email=a@b commit -qm first");
    let program = "import multiprocessing, os, pty, threading
with multiprocessing.Pool(2) as pool:
    print(sum(pool.map(abs, range(-10, 10))))
threads = [threading.Thread(target=print, args=('thread',)) for _ in range(2)]
for thread in threads:
    thread.start()
    thread.join()
pty.openpty()
";
    workspace.write_file("/srv/all.py", program.as_bytes());
    assert_eq!(
        workspace.ok("/usr/bin/python3 all.py"),
        "100\nthread\nthread\n"
    );
}

#[test]
fn a_child_can_be_traced_by_its_own_parent() {
    let program = "import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if child == 0:
    libc.ptrace(0, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(7)
print(os.WIFSTOPPED(os.waitpid(child, 0)[1]))
libc.ptrace(17, child, None, None)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
";
    let derrick = Derrick::on_host();
    assert_eq!(derrick.create().python(program).expect(0), "True\n7\n");
}
