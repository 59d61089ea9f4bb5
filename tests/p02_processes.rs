//! P2: code in a workspace cannot see, signal, trace or talk to processes of the host or of other
//! workspaces, and its own first process is out of its reach.

mod support;

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use support::{Derrick, Launch, Mode, Scratch, Workspace, bare, mode, seen_from_the_host};

/// Attempts of a Python program in a workspace, a line for each.
fn attempts(workspace: &Workspace, program: &str) -> String {
    workspace
        .python(&format!("{}{program}", bare::ATTEMPT))
        .expect(0)
}

/// A process of the user who runs the tests, which works in a directory; ended with this.
struct Bystander(Child);

impl Bystander {
    fn start(directory: &Scratch) -> Self {
        let child = Command::new("sleep")
            .arg("1000")
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("cannot start sleep"))
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().expect("it is a child").is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.0.kill().expect("it is a child");
        self.0.wait().expect("it is a child");
    }
}

// --- other processes ---

// C-01: listing the processes of the host and of other workspaces
#[test]
fn seeing_other_processes() {
    let scratch = Scratch::new();
    let bystander = Bystander::start(&scratch);
    let naive = format!(
        "import os; print(os.path.exists('/proc/{}'))",
        bystander.0.id()
    );
    assert_eq!(bare::python_in(&["mount", "net"], &naive), "True\n");

    let derrick = Derrick::on_host();
    let (one, other) = (derrick.create(), derrick.create());
    seen_from_the_host(&one);
    let seen =
        other.ok("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo; ls -d /proc/[0-9]* | wc -l");
    assert!(!seen.contains("seen-"), "{seen}");
    assert!(!seen.contains("cargo"), "{seen}");
    let count: u32 = seen
        .lines()
        .last()
        .and_then(|line| line.trim().parse().ok())
        .expect("wc counts");
    assert!(count < 10, "{seen}");
}

// C-01: signalling the processes of the host and of other workspaces
#[test]
fn killing_other_processes() {
    let scratch = Scratch::new();
    let mut bystander = Bystander::start(&scratch);
    let naive = format!("import os; os.kill({}, 9)", bystander.0.id());
    bare::python_in(&["mount", "net"], &naive);
    bystander.0.wait().expect("it was killed");
    assert!(!bystander.lives());

    let mut bystander = Bystander::start(&scratch);
    let derrick = Derrick::on_host();
    let (wild, quiet) = (derrick.create(), derrick.create());
    let other = seen_from_the_host(&quiet);
    let by_number = format!(
        "for pid in ({}, {other}, {}):\n    attempt('kill', lambda: os.kill(pid, 9))\n",
        bystander.0.id(),
        derrick.pid()
    );
    assert_eq!(attempts(&wild, &by_number), "kill ESRCH\n".repeat(3));
    wild.sh("/usr/bin/python3 -c 'import os; os.kill(-1, 9)'");
    assert_eq!(wild.ok("echo on"), "on\n");
    assert!(bystander.lives());
    let state = fs::read_to_string(format!("/proc/{other}/stat"));
    assert!(state.is_ok(), "a process of another workspace was killed");
}

// C-02: the files, roots and directories of other processes, by way of /proc
#[test]
fn reaching_other_processes_files_through_proc() {
    let scratch = Scratch::new();
    scratch.file("canary", "canary");
    let bystander = Bystander::start(&scratch);
    let look = "
import os
found = set()
for pid in filter(str.isdigit, os.listdir('/proc')):
    for way in ('cwd', 'root', 'fd/0', 'fd/1', 'fd/2', 'fd/3', 'fd/4', 'fd/5'):
        for end in ('/canary', 'PATH/canary'):
            if os.path.exists(f'/proc/{pid}/{way}{end}'):
                found.add(way)
print(sorted(found))
"
    .replace("PATH", &scratch.path().to_string_lossy());
    let naive = bare::python(&look);
    assert!(naive.contains("'cwd'"), "{naive}");

    let derrick = Derrick::on_host();
    let (one, other) = (derrick.create(), derrick.create());
    one.ok("mkdir /there; touch /there/canary; (cd /there; sleep 1000 > /dev/null 2>&1 &)");
    assert_eq!(other.python(&look).expect(0), "[]\n");
    drop(bystander);
}

// P2: reading and changing the host's name
#[test]
fn reading_and_changing_the_hosts_name() {
    let name = || fs::read_to_string("/proc/sys/kernel/hostname").expect("the host has a name");
    let host = name();
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let inside = workspace.ok("hostname");
    assert_ne!(inside, host);
    assert!(
        inside.contains("test"),
        "{inside} does not tell the config's name"
    );
    assert_ne!(workspace.sh("hostname other").exit_code, 0);
    assert_eq!(name(), host);
}

// --- PID 1 ---

/// Every way into the first process that the kernel opens to one of the same user.
const LOOK: &str = "
for name in ('exe', 'root', 'cwd', 'ns/mnt'):
    attempt(name, lambda: os.readlink(f'/proc/1/{name}'))
for name in ('environ', 'mem', 'maps', 'auxv'):
    attempt(name, lambda: os.close(os.open(f'/proc/1/{name}', os.O_RDONLY)))
attempt('fd', lambda: os.listdir('/proc/1/fd'))
attempt('ptrace', lambda: call(libc.ptrace, 0x4206, 1, None, None))
attempt('limits', lambda: __import__('resource').prlimit(1, 7, (3, 3)))
";

// looking into and tracing the first process
#[test]
fn looking_into_the_first_process() {
    let undefended = Derrick::without(["not_dumpable"]);
    let tried = attempts(&undefended.create(), LOOK);
    for way in [
        "exe", "root", "cwd", "environ", "maps", "mem", "fd", "ptrace",
    ] {
        assert!(tried.contains(&format!("{way} worked\n")), "{tried}");
    }

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let tried = attempts(&workspace, LOOK);
    for line in tried.lines() {
        assert!(
            line.ends_with("EACCES") || line.ends_with("EPERM"),
            "{tried}"
        );
    }
    assert_eq!(tried.lines().count(), 11, "{tried}");
    assert_eq!(workspace.ok("echo lives"), "lives\n");
}

// ending and stopping the first process
#[test]
fn killing_the_first_process() {
    let naive = "import os, signal
child = os.fork()
if child == 0:
    signal.pause()
os.kill(child, signal.SIGKILL)
print(os.WTERMSIG(os.waitpid(child, 0)[1]))
";
    assert_eq!(bare::python(naive), "9\n");
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let signals = "import os
for number in list(range(1, 32)) + [34, 64]:
    os.kill(1, number)
";
    workspace.python(signals).expect(0);
    assert_eq!(workspace.ok("echo lives"), "lives\n");
    assert_eq!(workspace.describe()["state"], json!("running"));
}

// taking from the first process what it needs
#[test]
fn starving_the_first_process_through_its_limits() {
    // A process of the same user and with the same capabilities gives way.
    let naive = "import os, resource, signal
child = os.fork()
if child == 0:
    signal.pause()
resource.prlimit(child, resource.RLIMIT_NOFILE, (3, 3))
print('starved')
os.kill(child, 9)
os.wait()
";
    assert_eq!(bare::python_in(&["pid", "mount"], naive), "starved\n");
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let ran =
        workspace.sh("prlimit --pid 1 --nofile=3:3; prlimit --pid $$ --nofile=64:64 && echo own");
    assert!(
        ran.output.contains("Operation not permitted"),
        "{}",
        ran.output
    );
    assert!(ran.output.ends_with("own\n"), "{}", ran.output);
}

/// Until /stop is there: goes at every process that came from init and is no program of the workspace's yet, and
/// counts; /caught is there when it has met twenty.
const RACE: &str = "
def is_new(pid):
    try:
        # One that is just ending, or becoming a program, has a name yet and no memory with arguments in it.
        return all(open(f'/proc/{pid}/{file}').read().startswith('derrick') for file in ('comm', 'cmdline'))
    except OSError:
        return False
def trace(pid):
    # In a process of its own, with whose end what it traces goes on.
    child = os.fork()
    if child == 0:
        try:
            call(libc.ptrace, 0x4206, pid, None, None)
            os._exit(is_new(pid))
        except OSError:
            os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        raise OSError(errno.EPERM, 'refused')
tried = won = 0
while not os.path.exists('/stop'):
    for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
        if pid in (1, os.getpid()) or not is_new(pid):
            continue
        tried += 1
        if tried == 20:
            open('/caught', 'w').close()
        for way in (lambda: os.listdir(f'/proc/{pid}/fd'), lambda: os.close(os.open(f'/proc/{pid}/mem', os.O_RDWR)),
                    lambda: os.readlink(f'/proc/{pid}/exe'), lambda: TRACE(pid)):
            try:
                way()
                # What has become a program of the workspace's by now is its own.
                won += is_new(pid)
            except OSError:
                pass
open('/result', 'w').write(f'{tried >= 20} {won}')
";

/// Runs many commands and requests for files past the race; what came of it.
fn raced(derrick: &Derrick, trace: &str) -> String {
    let workspace = derrick.create();
    let race = format!("{}{RACE}", bare::ATTEMPT).replace("TRACE", trace);
    workspace.write_file("/race.py", race.as_bytes());
    let race = workspace.exec_sh("exec /usr/bin/python3 /race.py");
    for _ in 0..1000 {
        if workspace.sh("test -e /caught").exit_code == 0 {
            break;
        }
        workspace.write_file("/file", b"x");
        assert_eq!(workspace.read_file("/file"), b"x");
    }
    workspace.ok("touch /stop");
    race.ended();
    String::from_utf8(workspace.read_file("/result")).expect("it is text")
}

// attacking what enters a running workspace for a command or a file, before it is a program of its own
#[test]
fn attacking_what_comes_into_a_running_workspace() {
    let won = raced(&Derrick::without(["not_dumpable"]), "trace");
    assert!(won.starts_with("True ") && won != "True 0", "{won}");
    assert_eq!(raced(&Derrick::on_host(), "trace"), "True 0");
}

/// Takes a socket from a process and sends a descriptor of its own through it.
const STEAL: &str = "
def steal(pid):
    process = os.pidfd_open(pid)
    for number in range(64):
        try:
            stolen = call(libc.syscall, 438, process, number, 0)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            continue
        try:
            theirs = socket.socket(fileno=stolen)
            socket.send_fds(theirs, [b'smuggled'], [1])
            return
        except OSError:
            pass
    raise OSError(errno.EBADF, 'no socket')
";

// C-06: smuggling descriptors to the provider through init's socket
#[test]
fn stealing_the_socket_between_init_and_the_provider() {
    let naive = format!(
        "{}{STEAL}
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
parent = os.getpid()
child = os.fork()
if child == 0:
    ours.close()
    theirs.close()
    steal(parent)
    os._exit(0)
os.wait()
# The first of the two is the one that was taken.
message, descriptors, _, _ = socket.recv_fds(theirs, 100, 1)
print(message.decode(), len(descriptors))
",
        bare::ATTEMPT
    );
    let naive = bare::python_in(&["pid", "mount"], &naive);
    assert_eq!(naive, "smuggled 1\n");

    // Seccomp keeps the call away, and without it the process that it would be made on.
    let steal = format!("{STEAL}attempt('stealing', lambda: steal(1))\n");
    let without = Derrick::without(["seccomp"]);
    assert_eq!(attempts(&without.create(), &steal), "stealing EPERM\n");
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    assert_eq!(attempts(&workspace, &steal), "stealing EPERM\n");
    assert_eq!(workspace.ok("echo on"), "on\n");
}

// --- what processes share ---

// C-03: System V IPC and POSIX message queues
#[test]
fn meeting_in_system_v_ipc_and_message_queues() {
    let naive = "id=$(ipcmk --shmem 4096 | grep -o '[0-9]*$')
        unshare --user --map-root-user --mount --pid --fork grep -c \" $id \" /proc/sysvipc/shm
        ipcrm --shmem-id $id";
    assert_eq!(bare::sh(naive), "1\n");

    let derrick = Derrick::on_host();
    let (one, other) = (derrick.create(), derrick.create());
    one.ok("ipcmk --shmem 4096 --queue --semaphore 1");
    one.ok("/usr/bin/python3 -c 'import ctypes; ctypes.CDLL(None).mq_open(b\"/queue\", 0o100 | 2, 0o600, None)'");
    let count = "cat /proc/sysvipc/shm /proc/sysvipc/msg /proc/sysvipc/sem | wc -l; ls /dev/mqueue";
    assert_eq!(one.ok(count), "6\nqueue\n");
    assert_eq!(other.ok(count), "3\n");
}

/// Connects to an abstract socket.
fn connect(name: &str) -> String {
    format!("attempt('connect', lambda: socket.socket(socket.AF_UNIX).connect('\\0{name}'))\n")
}

// C-04: abstract sockets of the host
#[test]
fn connecting_to_abstract_sockets() {
    let name = format!("derrick-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("the name is short");
    let _listener = UnixListener::bind_addr(&address).expect("cannot bind an abstract socket");
    let naive = format!("{}{}", bare::ATTEMPT, connect(&name));
    let naive = bare::python_in(&["mount", "pid"], &naive);
    assert_eq!(naive, "connect worked\n");

    // A network of its own has abstract names of its own, whatever landlock says.
    let derrick = Derrick::without(["landlock"]);
    assert_eq!(
        attempts(&derrick.create(), &connect(&name)),
        "connect ECONNREFUSED\n"
    );
    let derrick = Derrick::on_host();
    let tried = attempts(&derrick.create(), &connect(&name));
    assert!(
        ["connect ECONNREFUSED\n", "connect EPERM\n"].contains(&tried.as_str()),
        "{tried}"
    );
}

// C-04: the same with the host's network, where landlock alone scopes them
#[test]
fn connecting_to_abstract_sockets_over_the_hosts_network() {
    let name = format!("derrick-test-host-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("the name is short");
    let _listener = UnixListener::bind_addr(&address).expect("cannot bind an abstract socket");
    let launch = || {
        Launch::new(json!({ "name": "test", "network": "host" }))
            .token("a-token-that-the-workspace-does-not-know")
    };
    let undefended = launch().without(["landlock"]).start();
    let tried = attempts(&undefended.create(), &connect(&name));
    assert_eq!(tried, "connect worked\n");

    let derrick = launch().start();
    let workspace = derrick.create();
    let tried = attempts(&workspace, &connect(&name));
    let told = workspace.describe()["enforcement"]["weaker"].to_string();
    if told.contains("scoping of signals and abstract sockets") {
        // A kernel before 6.12 cannot, and the answer says so.
        assert_eq!(tried, "connect worked\n");
    } else {
        assert_eq!(tried, "connect EPERM\n");
    }
}

// C-05: sockets that have a name in the file system
#[test]
fn connecting_to_sockets_by_their_path() {
    let scratch = Scratch::new();
    let path = scratch.join("socket");
    let _listener = UnixListener::bind(&path).expect("cannot bind a socket");
    UnixStream::connect(&path).expect("the host reaches it");
    let path = path.display();
    let connect =
        format!("attempt('connect', lambda: socket.socket(socket.AF_UNIX).connect('{path}'))\n");
    let naive = bare::python_in(
        &["mount", "pid", "net"],
        &format!("{}{connect}", bare::ATTEMPT),
    );
    assert_eq!(naive, "connect worked\n");

    for network in ["none", "host"] {
        let derrick = Launch::new(json!({ "name": "test", "network": network }))
            .token("a-token-that-the-workspace-does-not-know")
            .start();
        let workspace = derrick.create();
        assert_eq!(attempts(&workspace, &connect), "connect ENOENT\n");
        // Nor is there any other.
        let sockets =
            workspace.ok("find / -path /proc -prune -o -type s -print 2> /dev/null; true");
        assert_eq!(sockets, "", "{network}");
    }
}

// C-07: locks on files that all workspaces start from
#[test]
fn locking_files_that_others_start_from() {
    let scratch = Scratch::new();
    let shared = scratch.file("shared", "x").display().to_string();
    // Seen through mounts of one and the same file, they share its locks.
    let naive = format!(
        "exec 3< {shared}; flock -n 3
         unshare --user --map-root-user --mount sh -c 'mount --bind {shared} /etc/hostname
             exec 4< /etc/hostname; flock -n 4 && echo free || echo held'"
    );
    assert_eq!(bare::sh(&naive), "held\n");

    let derrick = Derrick::start(json!({ "name": "test", "setup_script": "echo x > /from-setup" }));
    let (one, other) = (derrick.create(), derrick.create());
    // An ordinary user's /usr with mounts of the host's below it is shown as it is, and so are its locks.
    let own = other.ok("stat -f -c %T /usr") == "overlayfs\n";
    for file in ["/from-setup", "/etc/passwd", "/usr/bin/env"] {
        let held = one.exec_sh(&format!(
            "exec 3< {file}; flock -n 3 && echo held; exec sleep 1000"
        ));
        held.until_printed("held");
        let ran = other.sh(&format!(
            "exec 3< {file}; flock -n 3 && echo free || echo held"
        ));
        let expected = if own || !file.starts_with("/usr/") {
            "free\n"
        } else {
            "held\n"
        };
        assert_eq!(ran.output, expected, "{file}");
        held.kill();
    }
}

/// Makes inotify instances until there are no more, says so, and holds them.
const HOARD: &str = "
held = []
try:
    while True:
        held.append(call(libc.inotify_init1, 0))
except OSError as error:
    print('full', errno.errorcode[error.errno], flush=True)
";

// P2: using up what the kernel counts for each user, such as inotify instances
#[test]
fn using_up_inotify_instances() {
    // Another process of the same user gets none then.
    let naive = format!(
        "{}
open('/proc/sys/user/max_inotify_instances', 'w').write('4')
{HOARD}
if os.fork() == 0:
    attempt('other', lambda: call(libc.inotify_init1, 0))
    os._exit(0)
os.wait()
",
        bare::ATTEMPT
    );
    let naive = bare::python_in(&["pid", "mount"], &naive);
    assert_eq!(naive, "full EMFILE\nother EMFILE\n");
    if mode() != Mode::Root {
        // All of an ordinary user's workspaces, and the user, share one budget.
        return;
    }
    let derrick = Derrick::on_host();
    let (one, other) = (derrick.create(), derrick.create());
    let program = format!("{}{HOARD}signal.pause()\n", bare::ATTEMPT);
    one.write_file("/hoard.py", program.as_bytes());
    let hoard = one.exec_sh("exec /usr/bin/python3 /hoard.py");
    hoard.until_printed("full EMFILE");
    let one_more = "attempt('one', lambda: call(libc.inotify_init1, 0))\n";
    assert_eq!(attempts(&one, one_more), "one EMFILE\n");
    assert_eq!(attempts(&other, one_more), "one worked\n");
    let host = bare::python(&format!("{}{one_more}", bare::ATTEMPT));
    assert_eq!(host, "one worked\n");
}
