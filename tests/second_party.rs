//! Attackers that others wrote, inside: flatpak's try-syscall, stress-ng, trinity and cepheus.
//!
//! They know nothing of derrick. What they report is judged where it is about confinement; what they
//! break is judged from outside: nothing of the host, of other workspaces or of a layer may change, and
//! the provider serves. Their own sandbox is theirs to break.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use serde_json::{Value, json};
use support::{Derrick, Exec, Mode, Scratch, Workspace, digest_of_tree, fixture, mode};

/// A provider, a workspace for an attacker, and everything that the attacker may not touch.
struct Attacked {
    derrick: Derrick,
    workspace: Workspace,
    programs: PathBuf,
    canaries: Canaries,
}

/// What is compared before and after.
struct Canaries {
    layers: String,
    host: BTreeMap<String, String>,
    /// When the host was started, by its clock.
    clock: Duration,
    /// A file that whoever runs derrick can change.
    file: PathBuf,
    _directory: Scratch,
    /// A process that whoever runs derrick can end.
    process: Child,
    log: Option<File>,
    other: Workspace,
    sleeping: Exec,
}

const TEXT: &str = "of the host\n";

impl Attacked {
    fn new() -> Self {
        let programs = fixture("second-party/bin/try-syscall");
        let programs = programs
            .ancestors()
            .nth(2)
            .expect("it is in bin")
            .to_owned();
        let cepheus = fixture("cepheus/key");
        let cepheus = cepheus.parent().expect("it is a file of it");
        let derrick = Derrick::start(json!({
            "name": "test",
            "base": { "type": "host", "include": [programs, cepheus] },
            "setup_script": "echo setup > /setup",
        }));
        let other = derrick.create();
        other.ok("echo kept > /kept");
        let canaries = Canaries::new(&derrick, other);
        let workspace = derrick
            .api
            .create_limited(&json!({ "memory": 3_u64 << 30, "pids": 4000 }));
        Self {
            derrick,
            workspace,
            programs,
            canaries,
        }
    }

    /// Runs a command line inside, in a directory of its own, with the programs at hand; how it ended.
    ///
    /// A sandbox can be broken from inside, so neither its outcome nor its output is sure.
    fn run(&self, user: &str, cmd: &str) -> Value {
        let programs = self.programs.display();
        let env = json!({
            "LD_LIBRARY_PATH": format!("{programs}/lib"),
            "PATH": format!("{programs}/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        });
        let cmd = format!("mkdir -p /tmp/at && chmod 777 /tmp/at && cd /tmp/at && {cmd}");
        self.workspace.run_with(
            &json!({ "cmd": cmd, "env": env, "user": user, "timeout": 60, "streams": "merged" }),
        )
    }

    fn assert_untouched(&mut self) {
        let now = Canaries::host();
        assert_eq!(now, self.canaries.host);
        let clock = Canaries::clock();
        assert!(
            clock.abs_diff(self.canaries.clock) < Duration::from_secs(60),
            "the host's clock was set"
        );
        let content = fs::read_to_string(&self.canaries.file).expect("the file is there");
        assert_eq!(content, TEXT);
        let metadata = fs::metadata(&self.canaries.file).expect("the file is there");
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        let process = self.canaries.process.try_wait().expect("it is ours");
        assert_eq!(process, None, "a process of the host was ended");
        let complaints = self.canaries.complaints();
        assert_eq!(complaints, Vec::<String>::new());

        let layers = digest_of_tree(&self.derrick.state().join("layers"));
        assert_eq!(layers, self.canaries.layers);
        self.derrick.api.get("/health").expect(200);
        assert_eq!(self.canaries.other.ok("cat /kept /setup"), "kept\nsetup\n");
        let sleeping = self.canaries.sleeping.show();
        assert_eq!(sleeping["state"], "running", "{sleeping}");
        // And its own is as new again.
        self.workspace.reset();
        assert_eq!(self.workspace.ok("cat /setup; ls /tmp"), "setup\n");
    }
}

impl Canaries {
    fn new(derrick: &Derrick, other: Workspace) -> Self {
        let directory = Scratch::new();
        let file = directory.file("canary", TEXT);
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&file, closed).expect("it is the test's own");
        let process = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .spawn()
            .expect("cannot start sleep");
        Self {
            layers: digest_of_tree(&derrick.state().join("layers")),
            host: Self::host(),
            clock: Self::clock(),
            file,
            _directory: directory,
            process,
            log: kernel_log(),
            sleeping: other.exec(&json!({ "argv": ["sleep", "1000"] })),
            other,
        }
    }

    fn host() -> BTreeMap<String, String> {
        let sysctls = "
            fs/file-max fs/protected_hardlinks fs/protected_symlinks fs/suid_dumpable
            kernel/core_pattern kernel/domainname kernel/hostname kernel/modprobe kernel/msgmax kernel/panic
            kernel/pid_max kernel/printk kernel/randomize_va_space kernel/sem kernel/shmmax kernel/sysrq
            kernel/threads-max kernel/unprivileged_bpf_disabled kernel/yama/ptrace_scope
            net/core/somaxconn net/ipv4/ip_forward net/ipv4/ip_local_port_range net/ipv4/ping_group_range
            user/max_user_namespaces vm/max_map_count vm/overcommit_memory vm/swappiness";
        let sysctls = sysctls
            .split_whitespace()
            .map(|name| format!("/proc/sys/{name}"));
        let others = [
            "/proc/swaps",
            "/proc/self/mountinfo",
            "/proc/sysvipc/msg",
            "/proc/sysvipc/sem",
            "/sys/devices/system/cpu/online",
            "/sys/power/state",
        ];
        // What a kernel does not have, or does not show to this user, it does not get meanwhile either.
        let read = |path: String| {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| error.kind().to_string());
            (path, text)
        };
        let mut found: BTreeMap<_, _> =
            sysctls.chain(others.map(str::to_owned)).map(read).collect();
        let names = |path: &str, field: usize| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let names = text.lines().filter_map(|line| {
                let name = line.split_whitespace().nth(field)?;
                Some(format!("{name} "))
            });
            (path.to_owned(), names.collect::<String>())
        };
        // Devices without their counters; keys without those that the kernel keeps for each user, and without
        // session keyrings: the sandboxes of a single id have theirs as that user.
        found.extend([names("/proc/net/dev", 0), names("/proc/modules", 0)]);
        let keys = fs::read_to_string("/proc/keys").unwrap_or_default();
        let keys = keys
            .lines()
            .filter(|line| !line.contains(" _uid") && !line.contains(" _ses"));
        let keys = keys.filter_map(|line| line.split_whitespace().next());
        found.insert("/proc/keys".to_owned(), keys.collect::<Vec<_>>().join(" "));
        found
    }

    fn clock() -> Duration {
        let uptime = fs::read_to_string("/proc/uptime").expect("/proc is mounted");
        let uptime = uptime
            .split_once(' ')
            .and_then(|(uptime, _)| uptime.parse().ok());
        let uptime = Duration::from_secs_f64(uptime.expect("a number of seconds"));
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("it is after 1970");
        now.checked_sub(uptime)
            .expect("the host was started after 1970")
    }

    /// What the kernel warned of since the last look, as far as this user may read it.
    fn complaints(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let Some(log) = &mut self.log else {
            return found;
        };
        let mut record = [0; 8192];
        loop {
            match log.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    let signs = [
                        "WARNING: ",
                        "BUG: ",
                        "Oops: ",
                        "general protection",
                        "blocked for",
                    ];
                    if signs.iter().any(|sign| text.contains(sign)) {
                        found.push(text.into_owned());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return found,
                // EPIPE: what was not read in time was overwritten.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => panic!("cannot read the kernel's log: {error}"),
            }
        }
    }
}

impl Drop for Canaries {
    fn drop(&mut self) {
        // If it has ended, the test has failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The kernel's log from now on.
fn kernel_log() -> Option<File> {
    let open = File::options()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open("/dev/kmsg");
    match open {
        Ok(mut log) => {
            log.seek(SeekFrom::End(0)).expect("it has an end");
            Some(log)
        }
        Err(error) => {
            assert_ne!(
                mode(),
                Mode::Root,
                "root may read the kernel's log: {error}"
            );
            None
        }
    }
}

#[test]
fn flatpaks_try_syscall_gets_the_errors_that_are_promised() {
    let mut attacked = Attacked::new();
    // It passes arguments that no call can take, and exits with the errno: whoever gets one of those is
    // past the filter.
    for (call, outside, inside) in [
        ("clone3", Errno::EFAULT, Errno::ENOSYS),
        ("ioctl TIOCSTI", Errno::EBADF, Errno::EPERM),
        ("ioctl TIOCSTI CVE-2019-10063", Errno::EBADF, Errno::EPERM),
        ("ioctl TIOCLINUX", Errno::EBADF, Errno::EPERM),
        // What workspaces need goes through.
        ("ioctl TIOCNOTTY", Errno::EBADF, Errno::EBADF),
        ("chmod", Errno::EFAULT, Errno::EFAULT),
        ("listen", Errno::EBADF, Errno::EBADF),
        ("prctl", Errno::EFAULT, Errno::EFAULT),
    ] {
        let output = Command::new(attacked.programs.join("bin/try-syscall"))
            .arg(call)
            .output()
            .expect("cannot start try-syscall");
        assert_eq!(output.status.code(), Some(outside as i32), "{call} outside");
        let ended = attacked.run("root", &format!("exec try-syscall '{call}'"));
        assert_eq!(ended["exit_code"], inside as i32, "{call} inside: {ended}");
    }
    attacked.assert_untouched();
}

/// Stressors that are bombs by intent: what bounds those are limits, which not every mode has.
const BOMBS: &[&str] = &["bigheap", "brk", "hdd", "oom-pipe", "resources", "stack"];

#[test]
fn stress_ng_breaks_no_more_than_its_sandbox() {
    let mut attacked = Attacked::new();
    let listed = attacked.run("root", "stress-ng --class os?");
    let listed = text_of(&listed);
    let (_, listed) = listed.split_once("stressors: ").expect("it lists a class");
    let all: Vec<_> = listed
        .split_whitespace()
        .filter(|name| !BOMBS.contains(name))
        .collect();
    assert!(all.len() > 100, "{all:?}");
    let of_its_own = [
        "seccomp", "landlock", "clone", "unshare", "ptrace", "key", "io-uring",
    ];
    for stressors in std::iter::once(&of_its_own[..]).chain(all.chunks(28)) {
        let words: Vec<_> = stressors.iter().map(|name| format!("--{name} 1")).collect();
        let cmd = format!("exec stress-ng {} --timeout 1s", words.join(" "));
        let ended = attacked.run("root", &cmd);
        let printed = text_of(&ended);
        assert!(printed.contains("dispatching hogs"), "{ended}");
        if stressors == of_its_own {
            assert!(printed.contains("add_key failed, errno=1"), "{printed}");
            let refused = "io-uring not supported by the kernel";
            assert!(printed.contains(refused), "{printed}");
        }
        attacked.assert_untouched();
    }
}

#[test]
fn trinitys_random_calls_break_no_more_than_their_sandbox() {
    let mut attacked = Attacked::new();
    // It asks for descriptors of these kinds until it gets them, and never would.
    let trinity = "trinity -a 64 -q -l off -C 2 --disable-fds=sockets --disable-fds=perf";
    let (user, cmd) = match mode() {
        // As root it counts down from ten first.
        Mode::Single => ("root", format!("timeout -s INT 22 {trinity} --dangerous")),
        Mode::Root | Mode::Subordinate => ("nobody", format!("timeout -s INT 10 {trinity}")),
    };
    let counted = |printed: &str| {
        let (_, rest) = printed.rsplit_once("] Ran ")?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    // One of its calls may end what counts them, or all of its sandbox.
    let calls = (0..5).find_map(|_| {
        let ended = attacked.run(user, &cmd);
        attacked.assert_untouched();
        counted(&text_of(&ended))
    });
    let calls = calls.expect("it counts to the end once in five times");
    assert!(calls > 100, "{calls} calls");
}

#[test]
fn cepheus_confirms_no_escape() {
    let mut attacked = Attacked::new();
    let cepheus = fixture("cepheus/key");
    let cepheus = cepheus.parent().expect("it is a file of it");
    let script = find(cepheus, "cepheus-enum.sh");
    let python = cepheus.join("bin/python");
    let (script, python) = (script.display(), python.display());
    let look = format!(
        "sh {script} > posture.json 2> /dev/null; {python} -m cepheus analyze posture.json"
    );
    // It looks at the host for comparison; there it only reads, and nothing is tried.
    let directory = Scratch::new();
    support::succeed(
        Command::new("sh")
            .args(["-c", &format!("{look} --format json --output result.json")])
            .current_dir(directory.path()),
    );
    let outside = fs::read(directory.join("result.json")).expect("it was written");
    let outside = serde_json::from_slice::<Value>(&outside).expect("it is JSON");

    // It tries what it suspects by `docker exec -- ID …`; what it is to try it in is where it runs itself.
    let docker = "mkdir bin; printf '#!/bin/sh\\nshift 3\\nexec \"$@\"\\n' > bin/docker; chmod +x bin/docker; PATH=$PWD/bin:$PATH";
    let ended = attacked.run(
        "root",
        &format!("{docker}; {look} -c this -r docker --show-potential --format json --output result.json; cat result.json > /result"),
    );
    let inside = attacked.workspace.read_file("/result");
    let inside =
        serde_json::from_slice::<Value>(&inside).unwrap_or_else(|error| panic!("{error}: {ended}"));
    let chains = |of: &Value| of["chains"].as_array().expect("a list").clone();
    if mode() == Mode::Root {
        let (outside, inside) = (chains(&outside), chains(&inside));
        assert!(outside.len() > inside.len(), "{outside:#?}");
    }
    for chain in chains(&inside) {
        // Bugs of container runtimes and kernels, which it suspects by version and never tries.
        assert_eq!(chain["confirmation"], "unverifiable", "{chain:#}");
    }
    attacked.assert_untouched();
}

fn find(directory: &Path, name: &str) -> PathBuf {
    let found = support::succeed(Command::new("find").arg(directory).args(["-name", name]));
    PathBuf::from(found.lines().next().expect("it is there"))
}

fn text_of(ended: &Value) -> String {
    ended["output"]["stdout"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}
