//! What happens in a workspace reaches neither the host nor another workspace.
//!
//! An attack that fails inside proves nothing if it fails everywhere: where it is cheap, the same
//! program runs on the bare host first, in namespaces of its own, and has to get further there.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use nix::unistd::geteuid;
use serde_json::json;
use support::{
    Attempt, Derrick, Host, Mode, Scratch, assert_refused, mode, on_the_host, program, results,
    seen_from_the_host, sockets, succeed, uid_map,
};

// --- system calls ---

#[test]
fn nothing_can_be_mounted_or_unmounted() {
    assert_refused(&attempts! {
        SYS_mount("b'none', b'/tmp', b'tmpfs', 0, 0") => EPERM, Any;
        SYS_umount2("b'/nonexistent', 0") => EPERM, Any;
        SYS_pivot_root("b'/tmp', b'/tmp'") => EPERM, Any;
        SYS_fsopen("b'tmpfs', 0") => EPERM, Any;
        SYS_fsconfig("-1, 0, 0, 0, 0") => EPERM, Any;
        SYS_fsmount("-1, 0, 0") => EPERM, Any;
        SYS_fspick("-1, b'/tmp', 0") => EPERM, Any;
        SYS_open_tree("-100, b'/', 1") => EPERM, Any;
        SYS_move_mount("-1, b'', -1, b'', 0") => EPERM, Any;
        SYS_mount_setattr("-1, b'', 0, 0, 0") => EPERM, Any;
    });
}

#[test]
fn no_namespace_can_be_made_or_entered() {
    let base = attempts! {
        SYS_setns("uts, 0") => EPERM, Any;
        // Only its own flags argument shows what it would do, and no filter reads that: it is not there.
        SYS_clone3("0, 0") => ENOSYS, Any;
    };
    assert_refused(&base);
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

#[test]
fn the_user_namespace_itself_allows_no_further_one() {
    let derrick = Derrick::on_host();
    let limit = derrick
        .create()
        .ok("cat /proc/sys/user/max_user_namespaces");
    assert_eq!(limit, "0\n");
}

#[test]
fn kernel_keys_are_out_of_reach() {
    assert_refused(&attempts! {
        SYS_keyctl("0, -3, 0") => EPERM, Any;
        SYS_add_key("b'user', b'derrick-test', b'x', 1, -1") => EPERM, Any;
        SYS_request_key("b'user', b'derrick-test', 0, 0") => EPERM, Any;
    });
}

#[test]
fn interfaces_that_kernel_exploits_begin_with_are_refused() {
    assert_refused(&attempts! {
        SYS_bpf("0, 0, 0") => EPERM, Root;
        SYS_perf_event_open("0, 0, -1, -1, 0") => EPERM, Any;
        SYS_userfaultfd("1") => EPERM, Any;
        SYS_io_uring_setup("1, 0") => ENOSYS, Any;
        SYS_io_uring_enter("-1, 0, 0, 0, 0") => ENOSYS, Any;
        SYS_pidfd_getfd("-1, 0, 0") => EPERM, Any;
        SYS_kcmp("os.getpid(), os.getpid(), 0, 0, 0") => EPERM, Any;
        SYS_open_by_handle_at("-1, 0, 0") => EPERM, Root;
        SYS_fanotify_init("-1, 0") => EPERM, Root;
        SYS_personality("0x400000") => EPERM, Any;
    });
}

#[test]
fn the_host_cannot_be_administered() {
    assert_refused(&attempts! {
        SYS_init_module("0, 0, 0") => EPERM, Root;
        SYS_finit_module("-1, 0, 0") => EPERM, Root;
        SYS_delete_module("0, 0") => EPERM, Root;
        SYS_kexec_load("0, 99, 0, 0") => EPERM, Root;
        SYS_reboot("0, 0, 0, 0") => EPERM, Root;
        SYS_swapon("0, 0") => EPERM, Root;
        SYS_swapoff("0") => EPERM, Root;
        SYS_acct("1") => EPERM, Root;
        SYS_syslog("-1, 0, 0") => EPERM, Root;
        SYS_sethostname("0, -1") => EPERM, Any;
        SYS_setdomainname("0, -1") => EPERM, Any;
        SYS_clock_settime("-1, 0") => EPERM, Any;
        SYS_settimeofday("1, 0") => EPERM, Any;
        SYS_quotactl("-1, 0, 0, 0") => EPERM, Any;
        SYS_vhangup("") => EPERM, Untried;
    });
}

#[test]
fn a_call_that_no_kernel_has_yet_is_answered_as_by_a_kernel_without_it() {
    let derrick = Derrick::on_host();
    let attempts = [Attempt {
        name: "future".into(),
        number: 1000,
        arguments: String::new(),
        inside: "ENOSYS",
        host: Host::Untried,
    }];
    let printed = derrick.create().python(&program(&attempts)).expect(0);
    assert_eq!(printed, "future ENOSYS\n");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_other_ways_into_an_x86_kernel_are_closed() {
    let source = "int main(void) {
        long result;
        /* getpid(2) of the 32-bit table. */
        __asm__ volatile (\"int $0x80\" : \"=a\"(result) : \"a\"(20) : \"memory\");
        return result > 0 ? 0 : 1;
    }";
    let scratch = Scratch::new();
    let file = scratch.file("int80.c", source);
    let binary = scratch.join("int80");
    succeed(Command::new("cc").arg("-o").arg(&binary).arg(file));
    succeed(&mut Command::new(&binary));

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.write_file("/tmp/int80", &fs::read(&binary).expect("cc made it"));
    let ran = workspace.sh("chmod +x /tmp/int80; /tmp/int80");
    assert_eq!(
        ran.exit_code,
        128 + i64::from(libc::SIGSYS),
        "{}",
        ran.output
    );

    // getpid(2) of the x32 table.
    let x32 = [Attempt {
        name: "x32".into(),
        number: 0x4000_0000 + libc::SYS_getpid,
        arguments: String::new(),
        inside: "ENOSYS",
        host: Host::Untried,
    }];
    assert_eq!(workspace.python(&program(&x32)).expect(0), "x32 ENOSYS\n");
}

// --- sockets ---

#[test]
fn socket_families_but_the_four_are_not_there() {
    let kinds = [
        ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
        ("alg", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ("rds", libc::AF_RDS, libc::SOCK_SEQPACKET, 0),
        ("tipc", libc::AF_TIPC, libc::SOCK_STREAM, 0),
        ("can", libc::AF_CAN, libc::SOCK_RAW, 1),
        ("bluetooth", libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
        ("rxrpc", libc::AF_RXRPC, libc::SOCK_DGRAM, libc::AF_INET),
        ("xdp", libc::AF_XDP, libc::SOCK_RAW, 0),
        ("key", libc::AF_KEY, libc::SOCK_RAW, 2),
        ("smc", 43, libc::SOCK_STREAM, 0),
        ("qipcrtr", 42, libc::SOCK_DGRAM, 0),
        ("kcm", 41, libc::SOCK_DGRAM, 0),
    ];
    let program = sockets(&kinds);
    let host = results(&on_the_host(&program, mode() != Mode::Root));
    assert_eq!(host["packet"], "ok", "the bare host has packet sockets");

    let derrick = Derrick::on_host();
    let inside = results(&derrick.create().python(&program).expect(0));
    for (name, ..) in kinds {
        assert_eq!(inside[name], "EAFNOSUPPORT", "{name}");
    }
}

#[test]
fn protocols_but_the_usual_ones_are_not_there() {
    let kinds = [
        ("sctp", libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        ("sctp-seqpacket", libc::AF_INET6, libc::SOCK_SEQPACKET, 0),
        ("mptcp", libc::AF_INET, libc::SOCK_STREAM, 262),
        ("udplite", libc::AF_INET, libc::SOCK_DGRAM, 136),
        ("l2tp", libc::AF_INET, libc::SOCK_DGRAM, 115),
        ("xfrm", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_XFRM),
        (
            "netfilter",
            libc::AF_NETLINK,
            libc::SOCK_RAW,
            libc::NETLINK_NETFILTER,
        ),
        ("sock-diag", libc::AF_NETLINK, libc::SOCK_RAW, 4),
    ];
    let program = sockets(&kinds);
    let host = results(&on_the_host(&program, mode() != Mode::Root));
    assert_eq!(
        host["sock-diag"], "ok",
        "the bare host has socket diagnostics"
    );

    let derrick = Derrick::on_host();
    let inside = results(&derrick.create().python(&program).expect(0));
    for (name, ..) in kinds {
        assert_eq!(inside[name], "EPROTONOSUPPORT", "{name}");
    }
}

#[test]
fn ordinary_sockets_work_and_raw_ones_need_a_capability_that_nobody_has() {
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
        ("raw", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
    ];
    let derrick = Derrick::on_host();
    let inside = results(&derrick.create().python(&sockets(&kinds)).expect(0));
    let expected = kinds.map(|(name, ..)| {
        let result = if name == "raw" { "EPERM" } else { "ok" };
        (name.to_owned(), result.to_owned())
    });
    assert_eq!(inside, BTreeMap::from(expected));
}

#[test]
fn input_cannot_be_pushed_into_a_terminal() {
    // The kernel looks at the low 32 bits of the request alone.
    let program = "import ctypes, errno, fcntl, os, pty
libc = ctypes.CDLL(None, use_errno=True)
master, slave = pty.openpty()
for request in (0x5412, 0x541c, 0x7ff00005412):
    result = libc.syscall(ctypes.c_long(16 if os.uname().machine == 'x86_64' else 29),
                          ctypes.c_long(slave), ctypes.c_ulong(request), b'x')
    print(result, errno.errorcode.get(ctypes.get_errno()))
";
    let derrick = Derrick::on_host();
    let printed = derrick.create().python(program).expect(0);
    assert_eq!(printed, "-1 EPERM\n".repeat(3));
}

// --- identity ---

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

fn status_of_a_command() -> BTreeMap<String, String> {
    let derrick = Derrick::on_host();
    derrick
        .create()
        .ok("cat /proc/self/status")
        .lines()
        .filter_map(|line| line.split_once(":\t"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn capabilities_are_the_listed_ones_and_can_only_become_fewer() {
    let status = status_of_a_command();
    let listed: u64 = CAPABILITIES.iter().map(|(number, _)| 1 << number).sum();
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let held = u64::from_str_radix(&status[set], 16).expect("a set is a number");
        assert_eq!(held, listed, "{set} is {held:#x}, the list is {listed:#x}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status[set].trim_matches('0'), "", "{set}");
    }
}

#[test]
fn no_program_can_gain_privileges_and_every_one_is_filtered() {
    let status = status_of_a_command();
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!(status["Seccomp"], "2");
}

#[test]
fn root_inside_is_nobody_of_the_host() {
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
        Mode::Single => assert_eq!((outside, count), (geteuid().as_raw(), 1)),
    }
}

#[test]
fn two_workspaces_of_root_share_no_id() {
    let derrick = Derrick::on_host();
    let maps = [derrick.create(), derrick.create()].map(|it| uid_map(seen_from_the_host(&it))[0]);
    let apart = maps[0].1.abs_diff(maps[1].1) >= maps[0].2;
    // An ordinary user has one range or one id to give, and the answer of the API says so.
    assert_eq!(apart, mode() == Mode::Root, "{maps:?}");
}

// --- limits that every command inherits ---

#[test]
fn the_kernel_kills_a_workspace_before_the_provider() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let score: i32 = workspace
        .ok("cat /proc/self/oom_score_adj")
        .trim()
        .parse()
        .expect("it is a number");
    assert!(score >= 500, "{score}");
    let ran = workspace.sh("echo -1000 > /proc/self/oom_score_adj");
    assert_ne!(ran.exit_code, 0, "{}", ran.output);
}

// --- what must keep working ---

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
