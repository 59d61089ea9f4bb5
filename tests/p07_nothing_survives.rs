//! P7: when a command times out, a workspace is deleted or derrick is killed, nothing that it started
//! survives, and the next start leaves no residue.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use support::{
    Derrick, GitServer, Launch, Lives, Scratch, Workspace, as_owner, bare, binary,
    cgroup_directories, entries, fixture, mounts_below, process_with_argument, succeed,
    wait_until_empty,
};

/// Processes inside that have `name` among their arguments, as their statuses say.
fn still_running(workspace: &Workspace, name: &str) -> String {
    workspace.ok(&format!(
        "for process in /proc/[0-9]*; do
            tr '\\0' '\\n' < $process/cmdline 2> /dev/null | grep -qxF '{name}' \
                && grep -E '^(Name|State|PPid)' $process/status
        done; true"
    ))
}

// --- a deadline ---

/// A command line that leaves a process of this name in each way that outlives a signal to a process or to
/// its group; all say that they are there first.
fn stubborn(name: &str) -> String {
    format!(
        "d=$(mktemp -d); mkfifo $d/ready; exec 3<> $d/ready
        say() {{ echo \"$1\" > $d/ready; }}
        (trap '' TERM HUP INT; say ignores; exec -a {name} sleep 1000) &
        setsid bash -c \"echo session > $d/ready; exec -a {name} sleep 1000\" &
        (setsid -f bash -c \"echo daemon > $d/ready; exec -a {name} sleep 1000\" &) &
        bash -c \"echo stopped > $d/ready; exec -a {name} bash -c 'kill -STOP \\$\\$'\" &
        for n in 1 2 3 4; do read who <&3; echo \"$who\"; done | sort
        rm -r $d; echo all there
        wait"
    )
}

// D-10: setsid, a double fork, a stop and ignored signals against a deadline
#[test]
fn outliving_a_deadline_in_another_session_or_deaf_to_signals() {
    // What ends a command's process group, and be it with SIGKILL, does not end this one.
    let name = format!("outliver-{}", std::process::id());
    let mut leader = Command::new("setsid")
        .args(["bash", "-c", &stubborn(&name)])
        .stdout(Stdio::piped())
        .spawn()
        .expect("cannot start bash");
    let stdout = BufReader::new(leader.stdout.take().expect("stdout is a pipe"));
    let mut said = stdout.lines().map_while(Result::ok);
    assert!(said.any(|line| line == "all there"));
    let group = Pid::from_raw(leader.id().cast_signed());
    nix::sys::signal::killpg(group, Signal::SIGKILL).expect("it runs");
    leader.wait().expect("it ends");
    let mut survivors = 0;
    while let Some(pid) = process_with_argument(&name) {
        let survivor = Lives::of(&[pid]);
        // One of the killed may still be on its way out.
        if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
            survivors += survivor.count();
            survivor.assert_gone();
        }
    }
    assert!(survivors >= 2, "{survivors} outlived their group");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let ran = workspace.sh_with(&stubborn("outliver"), &json!({ "timeout": 4 }));
    assert_eq!(ran.exit_code, 124, "{}", ran.output);
    assert!(
        ran.output
            .starts_with("daemon\nignores\nsession\nstopped\nall there\n"),
        "{}",
        ran.output
    );
    assert!(ran.output.contains("deadline"), "{}", ran.output);
    assert_eq!(still_running(&workspace, "outliver"), "");
}

/// Processes that each live just long enough to leave a child behind.
const RUNNER: &str = "import os
import sys
sys.stdout.flush()
while True:
    if os.fork():
        os._exit(0)
    os.setsid()
";

// D-10: forking faster than a list of processes can be read
#[test]
fn outliving_a_deadline_by_forking_as_fast_as_possible() {
    // Killing what a list names misses one, now and then.
    let naive = format!(
        "import os, signal
RUNNER = {RUNNER:?}
def others():
    found = []
    for name in os.listdir('/proc'):
        try:
            if name.isdigit() and name != '1' and open(f'/proc/{{name}}/stat').read().rsplit(')')[1].split()[0] != 'Z':
                found.append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for attempt in range(200):
    if os.fork() == 0:
        exec(RUNNER)
    while not others():
        pass
    for pid in others():
        try: os.kill(pid, 9)
        except ProcessLookupError: pass
    if others():
        print('missed one')
        break
"
    );
    let printed = bare::python_in(&["pid", "mount"], &naive);
    assert_eq!(printed, "missed one\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.write_file("/tmp/runner.py", RUNNER.as_bytes());
    let ran = workspace.sh_with(
        "/usr/bin/python3 /tmp/runner.py & sleep 1000",
        &json!({ "timeout": 1 }),
    );
    assert_eq!(ran.exit_code, 124, "{}", ran.output);
    assert_eq!(still_running(&workspace, "/tmp/runner.py"), "");
}

// D-10: a process that looks like a zombie while its other thread runs
#[test]
fn outliving_a_deadline_in_the_second_thread_of_a_dead_first_one() {
    // It holds the lock for as long as it lives.
    let hidden = |place: &str| {
        format!(
            "import ctypes, fcntl, platform, threading, time
held = open('{place}/held', 'w')
fcntl.flock(held, fcntl.LOCK_EX)
threading.Thread(target=time.sleep, args=(1000,)).start()
ctypes.CDLL(None).syscall({{'x86_64': 60, 'aarch64': 93}}[platform.machine()], 0)
"
        )
    };
    // To whoever passes zombies over it is not there, and it runs.
    let scratch = Scratch::new();
    let place = scratch.path().display().to_string();
    let naive = format!(
        "import fcntl, subprocess
hidden = subprocess.Popen(['/usr/bin/python3', '-c', {:?}])
while open(f'/proc/{{hidden.pid}}/stat').read().rsplit(')')[1].split()[0] != 'Z':
    assert hidden.poll() is None
try:
    fcntl.flock(open('{place}/held'), fcntl.LOCK_EX | fcntl.LOCK_NB)
    print('it has ended')
except BlockingIOError:
    print('a zombie that runs')
hidden.kill()
hidden.wait()
",
        hidden(&place)
    );
    assert_eq!(bare::python(&naive), "a zombie that runs\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.write_file("/tmp/hidden.py", hidden("/tmp").as_bytes());
    let there = [3, 30].into_iter().any(|timeout| {
        let ran = workspace.sh_with(
            "/usr/bin/python3 /tmp/hidden.py &
             while flock -n /tmp/held true; do :; done; echo there; sleep 1000",
            &json!({ "timeout": timeout }),
        );
        assert_eq!(ran.exit_code, 124, "{}", ran.output);
        workspace.ok("flock -n /tmp/held true");
        // A slow machine may take longer to come that far.
        ran.output.starts_with("there\n")
    });
    assert!(there, "the process was never there to be found");
}

// D-10: a process that is made beside the leader of its exec, where no deadline looks for it
#[test]
fn outliving_a_deadline_as_a_sibling_of_its_leader() {
    assert_eq!(bare::python(bare::CLONE_PARENT), "made\n");
    let undefended = Derrick::without(["seccomp"]);
    let made = undefended.create().python(bare::CLONE_PARENT).expect(0);
    assert_eq!(made, "made\n");
    let derrick = Derrick::on_host();
    assert_eq!(
        derrick.create().python(bare::CLONE_PARENT).expect(0),
        "EPERM\n"
    );
}

// D-10: stopping everything, whoever watches the deadline included
#[test]
fn stopping_the_deadline_itself() {
    // A supervisor beside the command, as timeout(1) is one, is stopped with everything else.
    let naive = "import os, signal, subprocess
watcher = subprocess.Popen(['timeout', '1', 'sleep', '1000'])
attacker = subprocess.Popen(['bash', '-c', 'while :; do kill -STOP -1; done'])
status = os.waitpid(watcher.pid, os.WUNTRACED)[1]
print('stopped' if os.WIFSTOPPED(status) else status)
";
    assert_eq!(bare::python_in(&["pid", "mount"], naive), "stopped\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    // It waits for its cue, or it would stop the command that starts it.
    workspace.ok("mkfifo /tmp/go");
    workspace.ok(
        "(setsid bash -c 'read line < /tmp/go; while :; do kill -STOP -1; done' > /dev/null 2>&1 &)",
    );
    workspace.sh_with("echo > /tmp/go", &json!({ "timeout": 1 }));
    for _ in 0..3 {
        // Now and then a command is quicker than what stops it; it never takes longer than its time.
        let ran = workspace.sh_with("sleep 1000", &json!({ "timeout": 1 }));
        assert_eq!(ran.exit_code, 124, "{}", ran.output);
    }
    workspace.reset();
    assert_eq!(workspace.ok("echo free"), "free\n");
}

// D-11: a daemon that holds the command's output open
#[test]
fn holding_the_output_open_so_that_a_command_never_ends() {
    // Who reads to the end waits for the daemon.
    let naive = "import subprocess
command = subprocess.Popen(['bash', '-c', 'sleep 1000 & echo $!'], stdout=subprocess.PIPE, start_new_session=True)
try:
    command.communicate(timeout=1)
    print('it ended')
except subprocess.TimeoutExpired:
    print('it hangs')
import os, signal
os.killpg(command.pid, signal.SIGKILL)
";
    assert_eq!(bare::python(naive), "it hangs\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    // The answer takes longer than the client's patience if it waits for the child.
    assert_eq!(workspace.ok("sleep 1000 & echo done"), "done\n");
    let told = workspace.run("sleep 1000 & echo done");
    assert_eq!(told["detached"], json!(1), "{told}");
}

/// Leaves twenty processes that nobody waits for, and ends.
const ORPHANS: &str = "import os
for n in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
";

// D-12: zombies that nobody reaps
#[test]
fn leaving_zombies() {
    // A first process that is no init keeps them all.
    let naive = format!(
        "import os
if os.fork() == 0:
    exec({ORPHANS:?})
    os._exit(0)
def zombies():
    count = 0
    for name in filter(str.isdigit, os.listdir('/proc')):
        try:
            count += open(f'/proc/{{name}}/stat').read().rsplit(')')[1].split()[0] == 'Z'
        except (FileNotFoundError, ProcessLookupError):
            pass
    return count
while zombies() < 20:
    pass
print('kept')
"
    );
    assert_eq!(bare::python_in(&["pid", "mount"], &naive), "kept\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.python(ORPHANS).expect(0);
    workspace.ok("while grep -qE '^[0-9]+ \\(.*\\) Z ' /proc/[0-9]*/stat 2> /dev/null; do :; done");
}

// P7: outliving the deletion of the workspace
#[test]
fn outliving_the_workspace() {
    let derrick = Derrick::on_host();
    let (doomed, other) = (derrick.create(), derrick.create());
    let name = format!("outliver-of-{}", doomed.id);
    doomed.start(&stubborn(&name));
    // In brackets, so that what looks for them is none of them.
    let count = format!("grep -lzx '[o]{}' /proc/[0-9]*/cmdline | wc -l", &name[1..]);
    doomed.ok(&format!("until [ $({count}) = 4 ]; do :; done"));
    other.keep_busy();
    let all = Lives::below(derrick.pid());
    let outliver = process_with_argument(&name).expect("the process is seen from the host");
    let lives = Lives::of(&[outliver]);
    assert!(doomed.delete());
    lives.assert_gone();
    lives.assert_namespaces_gone();
    assert_eq!(process_with_argument(&name), None);
    assert!(all.count() > lives.count());
    assert_eq!(other.ok("echo on"), "on\n");
}

// --- an end of derrick ---

/// Starts something on the host that is to outlive whoever started it, kills that one, and sees that it does.
fn survives_on_the_bare_host() {
    let naive = "import os, signal, subprocess
parent = subprocess.Popen(['bash', '-c', 'setsid sleep 1000 > /dev/null & echo $!; wait'], stdout=subprocess.PIPE)
child = int(parent.stdout.readline())
parent.kill()
parent.wait()
os.kill(child, 0)
print('survived')
os.kill(child, signal.SIGKILL)
";
    assert_eq!(bare::python(naive), "survived\n");
}

// D-13: kill -9 of the provider in the middle of a run
#[test]
fn outliving_a_provider_that_is_killed() {
    survives_on_the_bare_host();
    let mut derrick = Derrick::on_host();
    for _ in 0..3 {
        derrick.create().keep_busy();
    }
    let lives = Lives::below(derrick.pid());
    derrick.kill9();
    lives.assert_gone();
    lives.assert_namespaces_gone();
    assert_eq!(mounts_below(&derrick.state()), Vec::<String>::new());
    derrick.start_again();
    let left = cgroup_directories(lives.cgroups());
    assert!(left.is_empty(), "{left:?}");
}

// D-13: kill -9 of the provider and of the process that made the sandboxes
#[test]
fn outliving_a_provider_that_is_killed_with_its_spawner() {
    survives_on_the_bare_host();
    let mut derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.keep_busy();
    // Nobody inside can keep init from noticing: it is stopped by nobody there.
    workspace.sh("kill -STOP 1; kill -KILL 1");
    let lives = Lives::below(derrick.pid());
    derrick.kill_with_spawner();
    lives.assert_gone();
    lives.assert_namespaces_gone();
    assert_eq!(mounts_below(&derrick.state()), Vec::<String>::new());
    derrick.start_again();
    assert_eq!(derrick.api.workspace(&workspace.id).ok("echo on"), "on\n");
}

// --- crashes half-way ---

// D-14: a crash in the middle of setup
#[test]
fn killing_the_provider_in_the_middle_of_setup() {
    // The script says that it has begun by asking the git server, which is the only way out of it.
    let server = GitServer::open();
    let address = server.repository("x", &[]).url;
    let port = address
        .rsplit(':')
        .next()
        .and_then(|rest| rest.split('/').next());
    let port = port.expect("the address has a port");
    let began = format!("wget -q -O /dev/null http://127.0.0.1:{port}/began");
    let script = |end: &str| {
        json!({
            "name": "test",
            "base": { "type": "tarball", "path": fixture("busybox.tar") },
            "setup": { "network": "host" },
            "setup_script": format!("echo half > /half; {began}; {end} echo whole >> /half"),
        })
    };
    let mut derrick = Launch::new(script("mkfifo /f; read line < /f;"))
        .token("a-token-that-the-script-does-not-know")
        .start();
    let create = derrick.api.start("/workspaces", json!({}));
    server.wait_for_request();
    // The half is there, and would be for whoever takes it as it is.
    let half = as_owner("find")
        .arg(derrick.state().join("run"))
        .args(["-name", "half"])
        .output()
        .expect("cannot start find");
    assert_eq!(half.stdout.iter().filter(|&&byte| byte == b'\n').count(), 1);
    let lives = Lives::below(derrick.pid());
    derrick.kill9();
    assert!(create.outcome().is_err(), "a killed provider answered");
    lives.assert_gone();

    derrick.configure(&script(""));
    derrick.start_again();
    assert_eq!(derrick.create().ok("cat /half"), "half\nwhole\n");
}

/// A provider with this config and state directory that is still on its way, and what it says.
fn starting(config: &Path, state: &Path) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new(binary())
        .args(["--listen", "127.0.0.1:0", "-w"])
        .arg(config)
        .arg("--state-dir")
        .arg(state)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cannot start derrick");
    let log = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
    (child, log.lines().map_while(Result::ok))
}

// D-14: a crash in the middle of unpacking a base
#[test]
fn killing_the_provider_in_the_middle_of_unpacking() {
    let scratch = Scratch::new();
    let whole = fs::read(fixture("busybox.tar")).expect("the fixture can be read");
    let many = {
        let sink = zstd::Encoder::new(Vec::new(), 1).expect("memory takes everything");
        let mut archive = tar::Builder::new(sink);
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        for number in 0..60_000 {
            archive
                .append_data(&mut header, format!("many/{number}"), std::io::empty())
                .expect("memory takes everything");
        }
        let sink = archive.into_inner().expect("memory takes everything");
        sink.finish().expect("memory takes everything")
    };
    let config = |name: &str| {
        let base = json!({ "type": "tarball", "path": scratch.join(name) });
        json!({ "name": "test", "base": base }).to_string()
    };
    scratch.file("many.tar.zst", many);
    let file = scratch.file("config.json", config("many.tar.zst"));

    // Unpacked where it is to be used, half of it stays.
    let naive = scratch.join("naive");
    fs::create_dir(&naive).expect("it is the test's own");
    let mut tar = Command::new("tar")
        .args(["-x", "-C"])
        .arg(&naive)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("cannot start tar");
    let mut input = tar.stdin.take().expect("stdin is a pipe");
    input
        .write_all(&whole[..whole.len() / 2])
        .expect("tar reads");
    while fs::read_dir(&naive).expect("it is there").next().is_none() {}
    tar.kill().expect("tar runs");
    tar.wait().expect("tar ends");
    assert!(naive.read_dir().expect("it is there").next().is_some());

    let state = scratch.join("state");
    let (mut child, mut log) = starting(&file, &state);
    assert!(log.any(|line| line.contains("unpacking a tarball")));
    let lives = Lives::below(child.id().cast_signed());
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    lives.assert_gone();
    let many = || {
        let found = as_owner("find")
            .arg(state.join("layers"))
            .args(["-name", "many*"])
            .output()
            .expect("cannot start find");
        String::from_utf8_lossy(&found.stdout).into_owned()
    };
    assert_eq!(many(), "", "half a layer is among the whole ones");

    let derrick = Launch::new(json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
    }))
    .state(&state)
    .start();
    derrick.create().ok("test ! -e /many");
    wait_until_empty(&state.join("trash"));
    assert_eq!(many(), "");
    // What the dead one was making is gone; its successor's own directory is there.
    assert_eq!(entries(&state.join("run")).len(), 1);
}

// D-14: a crash right after a deletion
#[test]
fn bringing_a_deleted_workspace_back_with_a_crash() {
    let mut derrick = Derrick::on_host();
    let (kept, deleted) = (derrick.create(), derrick.create());
    assert!(deleted.delete());
    derrick.kill9();
    derrick.start_again();
    assert_eq!(derrick.api.list(), [kept.id.as_str()]);
}

// D-14: a crash in the middle of removing a big tree
#[test]
fn leaving_files_behind_with_a_crash() {
    let mut derrick = Derrick::start(json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
    }));
    let workspace = derrick.create();
    workspace.ok("mkdir /big && cd /big && for d in $(seq 100); do
            mkdir $d && (cd $d && seq 200 | xargs touch && chmod 0 . )
        done");
    assert!(workspace.delete());
    derrick.kill9();
    derrick.start_again();
    wait_until_empty(&derrick.state().join("trash"));
    let workspaces = entries(&derrick.state().join("workspaces"));
    assert_eq!(workspaces, Vec::<String>::new());
}

// D-15: a tree that is made to be removed wrongly: deep, closed, oddly named, full of links
#[test]
fn a_tree_that_resists_or_misleads_its_removal() {
    let host = Scratch::new();
    let canary = host.file("precious/canary", "canary");
    let precious = host.join("precious").display().to_string();
    let make = |root: &str| {
        format!(
            "import os
os.makedirs('{root}/odd'); os.chdir('{root}/odd')
for name in ('-rf', 'a\\nb', '*', ' ', 'x' * 255):
    os.mkdir(name)
open(b'\\xff', 'w').close()
os.symlink('{precious}', 'link')
os.symlink('/etc', 'etc')
os.symlink('..', 'up')
os.mkdir('closed', 0)
for depth in range(3000):
    os.mkdir('d'); os.chdir('d')
"
        )
    };
    // Removal by name follows the link, and does not get to the end of the tree.
    let naive_root = host.join("naive").display().to_string();
    let naive = format!(
        "{}
def remove(path):
    if os.path.isdir(path):
        for name in os.listdir(path):
            remove(os.path.join(path, name))
    elif os.path.exists(path):
        os.remove(path)
remove('{naive_root}/odd/link')
print('canary', os.path.exists('{precious}/canary'))
os.unlink('{naive_root}/odd/up'); os.unlink('{naive_root}/odd/etc')
try:
    remove('{naive_root}')
except (OSError, RecursionError) as error:
    print('not removed')
",
        make(&naive_root)
    );
    assert_eq!(bare::python(&naive), "canary False\nnot removed\n");
    host.file("precious/canary", "canary");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.python(&make("")).expect(0);
    workspace.reset();
    workspace.python(&make("")).expect(0);
    assert!(workspace.delete());
    wait_until_empty(&derrick.state().join("trash"));
    assert_eq!(fs::read_to_string(canary).expect("it is there"), "canary");
    assert!(Path::new("/etc/passwd").exists());
}

/// Leaves something in every place where the next one could find it.
const LEAVE: &str = "
echo residue > /dev/shm/residue; echo residue > /tmp/residue
ipcmk --shmem 4096 --queue --semaphore 1 > /dev/null
/usr/bin/python3 - <<'END'
import ctypes
ctypes.CDLL(None).mq_open(b'/residue', 0o100 | 2, 0o600, None)
END
(exec -a residue-process sleep 1000 > /dev/null 2>&1 &)
(exec -a residue-socket /usr/bin/python3 -c '
import socket, signal
server = socket.socket(socket.AF_UNIX); server.bind(chr(0) + \"residue\"); server.listen(); signal.pause()' > /dev/null 2>&1 &)
until grep -q residue /proc/net/unix; do :; done
";

/// Says where it finds something of `LEAVE`.
const FIND: &str = "
ls /dev/shm/residue /tmp/residue /dev/mqueue/residue 2> /dev/null
tail -qn +2 /proc/sysvipc/shm /proc/sysvipc/msg /proc/sysvipc/sem | sed 's/.*/sysv/'
grep -lz '^residue-' /proc/[0-9]*/cmdline | sed 's/.*/process/'
grep -o residue /proc/net/unix
true";

// C-13: residue of the workspace before
#[test]
fn finding_what_the_workspace_before_left() {
    // In one set of namespaces, as a pool of reused sandboxes would have it, it finds all of it.
    let find = FIND.replace("/dev/mqueue", "/tmp/mqueue");
    let line = format!(
        "mount -t tmpfs none /dev/shm; mount -t tmpfs none /tmp
         mkdir /tmp/mqueue; mount -t mqueue none /tmp/mqueue\n{LEAVE}\n{find}"
    );
    let mut one = bare::namespaces(&["pid", "mount", "ipc", "net"]);
    let found = succeed(one.args(["bash", "-c", &line]));
    let found = found.replace("/tmp/mqueue", "/dev/mqueue");
    let places = |found: &str| {
        let places: BTreeSet<_> = found.lines().map(str::to_owned).collect();
        places
    };
    assert_eq!(
        places(&found),
        [
            "/dev/mqueue/residue",
            "/dev/shm/residue",
            "/tmp/residue",
            "sysv",
            "process",
            "residue"
        ]
        .map(str::to_owned)
        .into()
    );

    let derrick = Derrick::on_host();
    let first = derrick.create();
    first.ok(LEAVE);
    assert_eq!(places(&first.ok(FIND)), places(&found));
    first.reset();
    assert_eq!(first.ok(FIND), "", "after a reset");
    first.ok(LEAVE);
    assert!(first.delete());
    assert_eq!(derrick.create().ok(FIND), "", "in the next workspace");
}
