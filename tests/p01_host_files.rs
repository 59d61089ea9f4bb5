//! P1: code in a workspace cannot read or write a file of the host that was not given to it.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::json;
use support::{
    Derrick, Launch, Mode, Scratch, Workspace, as_owner, bare, busybox_and, busybox_directory,
    descendants, directory, entry, mode, mounts_below, open_files, succeed, tarball, try_create,
};

/// Attempts of a Python program in a workspace, a line for each.
fn attempts(workspace: &Workspace, program: &str) -> String {
    workspace
        .python(&format!("{}{program}", bare::ATTEMPT))
        .expect(0)
}

/// The init of the only sandbox of a provider, seen from the host.
fn init(derrick: &Derrick) -> i32 {
    let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    descendants(derrick.pid())
        .into_iter()
        .find(|pid| name(pid) == "derrick-init\n")
        .expect("there is an init")
}

// --- by name ---

// P1: opening what the host has by the names that it has there
#[test]
fn reading_the_hosts_files_by_name() {
    let canary = Scratch::new();
    let secret = canary.file("secret", "canary");
    let secret = secret.to_str().expect("a scratch path is text");
    // Namespaces alone keep nothing away.
    let naive = bare::python_in(
        &["mount", "pid", "net"],
        &format!("print(open('{secret}').read())"),
    );
    assert_eq!(naive, "canary\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for path in [
        secret,
        derrick.state().to_str().expect("a scratch path is text"),
        "/etc/derrick",
        "/etc/sudoers",
        "/etc/ssh",
        "/etc/machine-id",
        "/boot",
        "/run/docker.sock",
        "/root/.ssh",
        "/lost+found",
    ] {
        let ran = workspace.sh(&format!("stat '{path}'"));
        assert_eq!(ran.exit_code, 1, "{path}: {}", ran.output);
        assert!(
            ran.output.contains("No such file"),
            "{path}: {}",
            ran.output
        );
    }
    // These are the workspace's own, and empty.
    let own = "/home /root /run /srv /mnt /media /tmp /var/log /var/cache /var/tmp";
    assert_eq!(workspace.ok(&format!("find {own} ! -type d")), "");
    let homes = workspace.ok("ls -A /home");
    for home in fs::read_dir("/home").expect("the host has /home") {
        let home = home.expect("it can be listed").file_name();
        assert!(!homes.contains(home.to_str().unwrap_or("?")), "{homes}");
    }
}

// P1: reading the host's accounts and their passwords
#[test]
fn reading_the_hosts_accounts() {
    let derrick = Derrick::on_host();
    let inside = derrick
        .create()
        .ok("cat /etc/passwd /etc/shadow /etc/group /etc/subuid 2> /dev/null; true");
    let host = fs::read_to_string("/etc/passwd").expect("the host has accounts");
    let people = host.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid: u32 = fields.nth(1)?.parse().ok()?;
        (1000..65_534).contains(&uid).then_some(name)
    });
    for name in people {
        assert!(!inside.contains(name), "{name} is in\n{inside}");
    }
    // No password either: whatever /etc/shadow says, it is not a hash.
    assert!(
        !inside.contains("$6$") && !inside.contains("$y$"),
        "{inside}"
    );
}

// --- past what was mounted ---

/// Takes a cover off a file of `/proc`, and makes `/proc/sys` writable.
const UNMASK: &str = "
attempt('umount', lambda: call(libc.umount2, b'/proc/cmdline', 2))
attempt('remount', lambda: call(libc.mount, b'none', b'/proc/sys', None, 0x1020, None))
";

// unmounting the covers of /proc, and mounting what is read-only anew
#[test]
fn unmasking_proc() {
    let all = ["capabilities", "landlock", "seccomp"];
    let undefended = Derrick::without(all);
    let workspace = undefended.create();
    assert_eq!(workspace.ok("head -c 1 /proc/cmdline"), "");
    assert_eq!(
        attempts(&workspace, UNMASK),
        "umount worked\nremount worked\n"
    );
    assert_eq!(workspace.ok("head -c 1 /proc/cmdline | wc -c"), "1\n");

    // Each of the three is enough.
    for two in [[all[0], all[1]], [all[0], all[2]], [all[1], all[2]]] {
        let derrick = Derrick::without(two);
        let tried = attempts(&derrick.create(), UNMASK);
        assert_eq!(tried, "umount EPERM\nremount EPERM\n", "without {two:?}");
    }
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    assert_eq!(
        attempts(&workspace, UNMASK),
        "umount EPERM\nremount EPERM\n"
    );
}

/// The old way out of a chroot(2): a working directory that is outside of a new root.
fn break_out(canary: &str) -> String {
    format!(
        "import os
def break_out():
    os.makedirs('/tmp/pit', exist_ok=True)
    os.chdir('/')
    os.chroot('/tmp/pit')
    for _ in range(64):
        os.chdir('..')
    os.chroot('.')
    return os.path.exists('{canary}')
"
    )
}

// leaving a chroot
#[test]
fn breaking_out_of_the_root() {
    let scratch = Scratch::new();
    let canary = scratch.file("canary", "canary").display().to_string();
    let jail = scratch.join("jail").display().to_string();
    // A judge that has only chroot(2).
    let naive = format!(
        "{}
os.makedirs('{jail}/tmp')
os.chroot('{jail}')
os.chdir('/')
print(os.path.exists('{canary}'), break_out())
",
        break_out(&canary)
    );
    assert_eq!(bare::python_in(&["mount"], &naive), "False True\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let program = format!(
        "{}print(break_out())\nprint(sorted(os.listdir('/')) == before)",
        break_out(&canary)
    );
    let program = format!("import os\nbefore = sorted(os.listdir('/'))\n{program}");
    // It gets to the top, which is the sandbox's own.
    assert_eq!(workspace.python(&program).expect(0), "False\nTrue\n");
}

// --- places for mounts ---

// A-08: /dev, /proc or /sys of a base directory that is a link to a place of the host's
#[test]
fn a_base_directory_whose_mountpoint_is_a_link() {
    for name in ["dev", "proc", "sys"] {
        let scratch = Scratch::new();
        let root = busybox_directory(&scratch);
        let elsewhere = scratch.join("elsewhere");
        fs::create_dir(&elsewhere).expect("it is the test's own");
        let _ = fs::remove_dir_all(root.join(name));
        symlink(&elsewhere, root.join(name)).expect("it is the test's own");
        let touched = || fs::read_dir(&elsewhere).expect("it is there").count();
        // Who makes mountpoints by name makes them elsewhere.
        fs::create_dir_all(root.join(name).join("shm")).expect("the link is followed");
        assert_eq!(touched(), 1);
        fs::remove_dir(elsewhere.join("shm")).expect("it was made there");

        let refusal = try_create(directory(&root)).expect_err("the base was taken");
        assert!(refusal.contains(&format!("/{name}")), "{refusal}");
        assert_eq!(touched(), 0, "{name}");
    }
}

// the same links in an archive
#[test]
fn an_archive_whose_mountpoint_is_a_link() {
    for name in ["dev", "proc", "sys", "etc", "tmp", "run"] {
        let scratch = Scratch::new();
        let elsewhere = scratch.join("elsewhere");
        fs::create_dir(&elsewhere).expect("it is the test's own");
        let elsewhere_text = elsewhere.to_string_lossy();
        let link = entry(tar::EntryType::Symlink, name, &elsewhere_text, b"");
        let archive = scratch.file("hostile.tar", busybox_and(&[link]));
        // Refused, or contained: either way nothing is outside.
        match try_create(tarball(&archive)) {
            Ok((_derrick, workspace)) => {
                workspace.ok("test -c /dev/null && test -d /proc/1 && test -d /sys");
            }
            Err(refusal) => assert!(refusal.contains("hostile.tar"), "{name}: {refusal}"),
        }
        let touched = fs::read_dir(&elsewhere).expect("it is there").count();
        assert_eq!(touched, 0, "{name}");
    }
}

// a link that the workspace itself put on the way to a mountpoint, before it is started again
#[test]
fn a_workspace_that_replaces_a_mountpoint_by_a_link() {
    let scratch = Scratch::new();
    let tool = scratch.join("given/tool");
    let elsewhere = scratch.join("elsewhere");
    for path in [&tool, &elsewhere.join("tool")] {
        fs::create_dir_all(path).expect("it is the test's own");
    }
    for path in [scratch.path(), tool.parent().expect("it has one"), &tool] {
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(path, open).expect("it is the test's own");
    }
    let mut derrick = Derrick::start(json!({
        "name": "test",
        "base": { "type": "host", "include": [tool] },
    }));
    let workspace = derrick.create();
    let given = tool.parent().expect("it has one").display().to_string();
    let ran = workspace.sh(&format!(
        "mv {given} {given}.moved && ln -s {} {given}",
        elsewhere.display()
    ));
    if mode() != Mode::Root {
        // A directory of a layer is not renamed, and one with a mount in it neither copied nor removed.
        assert!(
            ran.output.contains("Device or resource busy"),
            "{}",
            ran.output
        );
        return;
    }
    ran.expect(0);
    derrick.restart();
    let workspace = derrick.api.workspace(&workspace.id);
    let refused = workspace.cmd("true");
    let status = refused.status;
    let problem = refused.problem(status);
    let detail = problem["detail"].as_str().expect("a text");
    assert!(detail.contains(&given), "{problem}");
    let below = |path: &Path| fs::read_dir(path).expect("it is there").count();
    assert_eq!((below(&elsewhere), below(&elsewhere.join("tool"))), (1, 0));
    // What the workspace did to itself, a reset undoes.
    workspace.reset();
    workspace.ok(&format!("test -d {given}/tool && test ! -L {given}"));
}

// A-08: /etc as a link, below which a file is mounted
#[test]
fn a_base_directory_whose_etc_is_a_link() {
    let scratch = Scratch::new();
    let root = busybox_directory(&scratch);
    let elsewhere = scratch.join("elsewhere");
    fs::create_dir(&elsewhere).expect("it is the test's own");
    let _ = fs::remove_dir_all(root.join("etc"));
    symlink(&elsewhere, root.join("etc")).expect("it is the test's own");
    let mut config = directory(&root);
    config["network"] = json!("host");
    let derrick = Launch::new(config)
        .token("a-token-that-the-workspace-does-not-know")
        .start();
    // It may be refused; that it does not reach the link's target is what counts.
    let answer = derrick.api.post("/workspaces", &json!({}));
    assert!(
        answer.status < 500 || answer.text().contains("/etc"),
        "{}",
        answer.text()
    );
    let touched = fs::read_dir(&elsewhere).expect("it is there").count();
    assert_eq!(touched, 0);
}

/// What a device is, as stat(1) says it.
const NULL: &str = "character special file 1:3\n";

// a /dev/null of the base's own, over which nothing would be hidden
#[test]
fn a_base_whose_dev_null_is_another_file() {
    let scratch = Scratch::new();
    let root = busybox_directory(&scratch);
    fs::create_dir_all(root.join("dev/pts")).expect("it is the test's own");
    let _ = fs::remove_file(root.join("dev/null"));
    fs::write(root.join("dev/null"), "evil").expect("it is the test's own");
    symlink("/etc/passwd", root.join("dev/pts/0")).expect("it is the test's own");
    symlink("/etc/passwd", root.join("dev/pts/ptmx")).expect("it is the test's own");
    // Who covers a file with the base's /dev/null shows what the base says.
    let naive = format!(
        "mount --bind {}/dev/null /proc/cmdline && cat /proc/cmdline",
        root.display()
    );
    let mut bare = bare::namespaces(&["mount", "pid"]);
    assert_eq!(succeed(bare.args(["sh", "-c", &naive])), "evil");

    let derrick = Derrick::start(directory(&root));
    let workspace = derrick.create();
    for path in ["/dev/null", "/proc/cmdline"] {
        let kind = workspace.ok(&format!("stat -c '%F %t:%T' {path}"));
        assert_eq!(kind, NULL, "{path}");
    }
    let on_terminal = json!({ "cmd": "tty", "tty": { "rows": 24, "cols": 80 } });
    let ran = workspace.run_with(&on_terminal);
    assert_eq!(ran["output"]["stdout"], "/dev/pts/0\r\n", "{ran}");
}

// a /dev/null that a running workspace puts something else in the place of
#[test]
fn swapping_dev_null_under_a_running_init() {
    let swap = "rm /dev/null; mv /dev/null /dev/x; mv /dev /x; ln -sf /etc/passwd /dev/null
                stat -c '%F %t:%T' /dev/null";
    // In a /dev of plain files it is gone at once.
    let naive = format!(
        "mount -t tmpfs none /mnt && mkdir /mnt/dev && : > /mnt/dev/null && cd /mnt && {}",
        "rm /mnt/dev/null && ln -s /etc/passwd /mnt/dev/null && stat -c %F /mnt/dev/null"
    );
    let mut bare = bare::namespaces(&["mount"]);
    assert_eq!(succeed(bare.args(["sh", "-c", &naive])), "symbolic link\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let tried = workspace.ok(swap);
    assert_eq!(
        tried.matches("Device or resource busy").count(),
        4,
        "{tried}"
    );
    assert!(tried.ends_with(NULL), "{tried}");
    // What init opens for the next command is what it was.
    assert_eq!(workspace.ok("wc -c < /proc/self/fd/0"), "0\n");
}

// a /proc of the base's own, to take what a provider writes there
#[test]
fn a_base_with_a_proc_of_its_own() {
    let scratch = Scratch::new();
    let root = busybox_directory(&scratch);
    let canary = scratch.file("canary", "canary");
    let fakes = [
        "proc/sys/user/max_user_namespaces",
        "proc/self/oom_score_adj",
        "proc/self/uid_map",
        "proc/self/attr/current",
        "proc/1/oom_score_adj",
    ];
    for fake in fakes {
        let fake = root.join(fake);
        fs::create_dir_all(fake.parent().expect("it has one")).expect("it is the test's own");
        symlink(&canary, &fake).expect("it is the test's own");
    }
    let content = || fs::read_to_string(&canary).expect("it is there");
    // Who writes there by name writes to what the link names.
    fs::write(root.join(fakes[0]), "0").expect("the link is followed");
    assert_eq!(content(), "0");
    fs::write(&canary, "canary").expect("it is the test's own");

    let derrick = Derrick::start(directory(&root));
    let workspace = derrick.create();
    assert_eq!(workspace.ok("stat -f -c %T /proc"), "proc\n");
    assert_eq!(
        workspace.ok("cat /proc/sys/user/max_user_namespaces"),
        "0\n"
    );
    assert_eq!(content(), "canary");
}

// --- descriptors ---

/// Looks for a file through every descriptor and working directory that a process has.
fn look_through_descriptors(canary: &str) -> String {
    format!(
        "
import os
found = False
for number in os.listdir('/proc/self/fd'):
    for way in (f'/proc/self/fd/{{number}}', '/proc/self/cwd'):
        for up in ('', '/..', '/../../../../../../../..'):
            if os.path.exists(f'{{way}}{{up}}{canary}'):
                found = True
print('found' if found else 'not found')
"
    )
}

// a descriptor of a directory outside that was left open
#[test]
fn finding_a_descriptor_that_leads_outside() {
    let scratch = Scratch::new();
    let canary = scratch.file("canary", "canary").display().to_string();
    let jail = scratch.join("jail").display().to_string();
    let look = look_through_descriptors(&canary);
    // One that was left open shows the whole host.
    let naive = format!(
        "import os
outside = os.open('/', os.O_PATH)
os.makedirs('{jail}/proc')
import subprocess
subprocess.run(['mount', '--rbind', '/proc', '{jail}/proc'], check=True)
os.chroot('{jail}')
os.chdir('/')
print(os.path.exists('{canary}'))
{look}"
    );
    assert_eq!(bare::python_in(&["mount"], &naive), "False\nfound\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    assert_eq!(workspace.python(&look).expect(0), "not found\n");
    let listing = workspace.ok("ls -l /proc/self/fd");
    let descriptors: Vec<(&str, &str)> = listing
        .lines()
        .filter_map(|line| line.split_once(" -> "))
        .map(|(left, target)| (left.rsplit(' ').next().unwrap_or_default(), target))
        .collect();
    // The last is the directory that ls reads.
    let numbers: Vec<&str> = descriptors.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, ["0", "1", "2", "3"], "{listing}");
    assert!(descriptors[3].1.ends_with("/fd"), "{listing}");
    for (_, target) in &descriptors[..3] {
        assert!(
            *target == "/dev/null" || target.starts_with("pipe:"),
            "{listing}"
        );
    }
    // Of init's own, only the host's root sees what they are.
    if mode() == Mode::Root {
        for file in open_files(init(&derrick)) {
            let file = file.to_string_lossy();
            let harmless = ["socket:", "pipe:", "anon_inode:"];
            assert!(
                file == "/dev/null" || harmless.iter().any(|kind| file.starts_with(kind)),
                "{file}"
            );
        }
    }
}

// a working directory that is a descriptor of init's, as CVE-2024-21626 had it
#[test]
fn starting_a_command_in_a_descriptor_of_inits() {
    let scratch = Scratch::new();
    let canary = scratch.file("canary", "canary").display().to_string();
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let places = (0..32)
        .flat_map(|number| {
            [
                format!("/proc/self/fd/{number}"),
                format!("/proc/1/fd/{number}"),
            ]
        })
        .chain(
            [
                "/proc/1/cwd",
                "/proc/1/root",
                "/proc/self/cwd",
                "/proc/self/root",
            ]
            .map(Into::into),
        );
    for place in places {
        let body = json!({
            "cmd": format!("/bin/pwd; ls -d ../../../../../..{canary} .{canary} /proc/self/cwd{canary}"),
            "working_dir": place,
        });
        let answer = workspace.post("cmd_with_output", &body);
        if answer.status == 200 {
            let output = answer.json()["output"].to_string();
            assert!(output.starts_with("\"/"), "{place}: {output}");
            assert_eq!(
                output.matches("No such file").count(),
                3,
                "{place}: {output}"
            );
        } else {
            let status = answer.status;
            assert!((400..500).contains(&status), "{place}: {}", answer.text());
        }
    }
}

/// Writes to the program that a process runs, by way of `/proc`, as CVE-2019-5736 did.
const OVERWRITE: &str = "
def overwrite(pid, gone=lambda: None):
    program = os.open(f'/proc/{pid}/exe', os.O_PATH)
    gone()
    os.write(os.open(f'/proc/self/fd/{program}', os.O_WRONLY), b'evil')
";

// writing to derrick's program by way of init's /proc/1/exe
#[test]
fn overwriting_the_program_that_init_runs() {
    let scratch = Scratch::new();
    let copy = scratch.join("program").display().to_string();
    fs::copy("/usr/bin/sleep", &copy).expect("it can be copied");
    let naive = format!(
        "{}{OVERWRITE}
process = subprocess.Popen(['{copy}', '1000'])
def end():
    process.kill()
    process.wait()
attempt('overwriting', lambda: overwrite(process.pid, end))
",
        bare::ATTEMPT
    );
    assert_eq!(bare::python(&naive), "overwriting worked\n");
    assert!(fs::read(&copy).expect("it is there").starts_with(b"evil"));

    let program = || fs::read(support::binary()).expect("it is there");
    let before = program();
    let attack = format!("{OVERWRITE}attempt('overwriting', lambda: overwrite(1))\n");
    // Where init can be looked into, its program is seen; it is a sealed copy in memory that nobody writes to.
    let exposed = Derrick::without(["not_dumpable"]);
    let workspace = exposed.create();
    let look = "attempt('reading', lambda: open('/proc/1/exe', 'rb').read(1))\n";
    let tried = attempts(&workspace, &format!("{look}{attack}"));
    assert_eq!(tried, "reading worked\noverwriting ETXTBSY\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let tried = attempts(&workspace, &format!("{look}{attack}"));
    assert_eq!(tried, "reading EACCES\noverwriting EACCES\n");
    assert!(program() == before, "the program was changed");
    if mode() == Mode::Root {
        let runs = fs::read_link(format!("/proc/{}/exe", init(&derrick))).expect("it runs");
        let runs = runs.to_string_lossy();
        assert!(runs.starts_with("/memfd:derrick"), "{runs}");
    }
}

// --- mounts ---

// mounts that travel between the host and a sandbox
#[test]
fn mounting_through_shared_propagation() {
    // In a copy of a mount namespace that shares its mounts, a mount appears on both sides.
    let naive = "mount --make-rshared /; d=$(mktemp -d)
        unshare --mount --propagation unchanged mount -t tmpfs travels $d
        grep -c travels /proc/self/mountinfo; umount $d; rmdir $d";
    let mut bare = bare::namespaces(&["mount"]);
    assert_eq!(succeed(bare.args(["sh", "-c", naive])), "1\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let shared =
        workspace.ok("grep -E ' (shared|master|propagate_from):' /proc/self/mountinfo; true");
    assert_eq!(shared, "");
    assert_eq!(mounts_below(&derrick.state()), Vec::<String>::new());
}

// the host's paths in the mount tables
#[test]
fn reading_the_hosts_paths_in_mount_tables() {
    let scratch = Scratch::new();
    for name in ["one", "two", "merged"] {
        fs::create_dir(scratch.join(name)).expect("it is the test's own");
    }
    let naive = format!(
        "cd {} && mount -t overlay -o lowerdir=$PWD/one:$PWD/two none merged && grep overlay /proc/self/mountinfo",
        scratch.path().display()
    );
    let mut bare = bare::namespaces(&["mount"]);
    let table = succeed(bare.args(["sh", "-c", &naive]));
    let shown = format!("lowerdir={}/one", scratch.path().display());
    assert!(table.contains(&shown), "{table}");

    let derrick = Derrick::on_host();
    let table = derrick
        .create()
        .ok("cat /proc/self/mountinfo /proc/mounts /proc/self/mountstats");
    let state = derrick.state();
    for part in state.iter().skip(1).filter_map(|part| part.to_str()) {
        let common = ["tmp", "var", "home", "state", "lib"].contains(&part);
        assert!(common || !table.contains(part), "{part} is in\n{table}");
    }
    let root = table
        .lines()
        .find(|line| line.contains(" / / "))
        .expect("there is a root");
    assert!(root.contains("nosuid") && root.contains("nodev"), "{root}");
}

// --- the kernel's files ---

/// Knobs of the sandbox's own namespaces, which their root may turn where nothing keeps it from it.
const OWN_KNOBS: &[&str] = &[
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/user/max_user_namespaces",
];

/// Knobs of the host.
const HOST_KNOBS: &[&str] = &[
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/drop_caches",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/power/state",
];

/// Opens each for writing, and writes nothing.
fn open_all<'a>(paths: impl IntoIterator<Item = &'a &'a str>) -> String {
    paths
        .into_iter()
        .map(|path| {
            format!("attempt('{path}', lambda: os.close(os.open('{path}', os.O_WRONLY)))\n")
        })
        .collect()
}

// writing to the kernel's knobs
#[test]
fn writing_to_kernel_knobs() {
    let is_there = |path: &&&str| Path::new(path).exists();
    let host: Vec<&str> = HOST_KNOBS.iter().filter(is_there).copied().collect();
    if mode() == Mode::Root {
        // On the host, root may.
        let tried = bare::python(&format!("{}{}", bare::ATTEMPT, open_all(&host)));
        assert!(tried.contains("core_pattern worked"), "{tried}");
    }
    let undefended = Derrick::without(["capabilities", "read_only_paths"]);
    let tried = attempts(&undefended.create(), &open_all(OWN_KNOBS));
    assert_eq!(tried.matches("worked").count(), OWN_KNOBS.len(), "{tried}");
    // Each of the two is enough.
    let capable = Derrick::without(["capabilities"]);
    let tried = attempts(&capable.create(), &open_all(OWN_KNOBS));
    assert_eq!(tried.matches("EROFS").count(), OWN_KNOBS.len(), "{tried}");
    let writable = Derrick::without(["read_only_paths"]);
    let tried = attempts(&writable.create(), &open_all(OWN_KNOBS));
    assert_eq!(tried.matches("EACCES").count(), OWN_KNOBS.len(), "{tried}");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let tried = attempts(&workspace, &open_all(OWN_KNOBS));
    assert_eq!(tried.matches("EACCES").count(), OWN_KNOBS.len(), "{tried}");
    let ran = workspace.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    assert!(
        ran.output.contains("Read-only file system"),
        "{}",
        ran.output
    );
    let tried = attempts(&workspace, &open_all(&host));
    for line in tried.lines() {
        let refused = ["EROFS", "EACCES"]
            .iter()
            .any(|errno| line.ends_with(errno));
        assert!(refused, "{tried}");
    }
    let ran = workspace.sh("mkdir /sys/x");
    assert_eq!(ran.exit_code, 1, "{}", ran.output);
}

// reading what /proc and /sys tell of the host
#[test]
fn reading_what_proc_and_sys_tell_of_the_host() {
    let paths = [
        "/proc/cmdline",
        "/proc/interrupts",
        "/proc/kallsyms",
        "/proc/kcore",
        "/proc/key-users",
        "/proc/keys",
        "/proc/kmsg",
        "/proc/kpagecount",
        "/proc/modules",
        "/proc/timer_list",
        "/sys/firmware",
        "/sys/fs/cgroup",
        "/sys/kernel/debug",
        "/sys/kernel/security",
        "/sys/module",
    ];
    let told = |workspace: &Workspace| -> Vec<&str> {
        let said = |path: &&str| {
            let look = format!(
                "if test -d {path}; then ls -A {path}; else timeout 5 head -c 100 {path}; fi 2> /dev/null"
            );
            !workspace.sh(&look).output.is_empty()
        };
        paths.iter().copied().filter(said).collect()
    };
    let undefended = Derrick::without(["hidden_paths"]);
    let open = told(&undefended.create());
    for path in [
        "/proc/cmdline",
        "/proc/interrupts",
        "/proc/key-users",
        "/sys/module",
    ] {
        assert!(open.contains(&path), "{open:?}");
    }
    let derrick = Derrick::on_host();
    assert_eq!(told(&derrick.create()), Vec::<&str>::new());
}

// a control group's release_agent, by mounting the hierarchy
#[test]
fn mounting_a_control_group_hierarchy() {
    let mount =
        "attempt('cgroup2', lambda: call(libc.mount, b'none', b'/mnt', b'cgroup2', 0, None))\n";
    let undefended = Derrick::without(["capabilities", "landlock", "seccomp"]);
    assert_eq!(attempts(&undefended.create(), mount), "cgroup2 worked\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    assert_eq!(attempts(&workspace, mount), "cgroup2 EPERM\n");
    let mounted = workspace.ok("grep -E ' - cgroup2? ' /proc/self/mountinfo; find / -xdev -name release_agent; ls -A /sys/fs/cgroup");
    assert_eq!(mounted, "");
    // And which group it is in, it does not see.
    let groups = workspace.ok("cut -d: -f3 /proc/self/cgroup | sort -u");
    assert_eq!(groups, "/\n");
}

// device nodes, the host's and those of a base
#[test]
fn opening_devices() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let present: BTreeSet<String> = workspace
        .ok("for f in /dev/* /dev/shm/* /dev/mqueue/*; do { test -c $f || test -b $f; } && ! test -L $f && echo $f; done; true")
        .lines()
        .map(str::to_owned)
        .collect();
    let expected = ["null", "zero", "full", "random", "urandom", "tty"];
    assert_eq!(present, expected.map(|name| format!("/dev/{name}")).into());
    assert_eq!(
        workspace.ok(
            "echo x > /dev/null; head -c 2 /dev/zero | od -An -tx1; head -c 9 /dev/urandom | wc -c"
        ),
        " 00 00\n9\n"
    );
    // Everything else is mounted so that no node counts, but for /dev, where none can be made, its
    // terminals, and what is covered with /dev/null.
    let open = workspace.ok(
        "awk '$6 !~ /nodev/ && $5 !~ \"^/dev(/|$)\" && $4 != \"/null\" { print $5 }' /proc/self/mountinfo",
    );
    assert_eq!(open, "");
    let make = "attempt('block', lambda: os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0)))
attempt('dev', lambda: os.mknod('/dev/kmsg', 0o20600, os.makedev(1, 11)))
";
    let tried = attempts(&workspace, make);
    for line in tried.lines() {
        let refused = ["EPERM", "EACCES"]
            .iter()
            .any(|errno| line.ends_with(errno));
        assert!(refused, "{tried}");
    }
    assert_eq!(tried.lines().count(), 2, "{tried}");
    if mode() != Mode::Root {
        // Only the host's root can put one into a base.
        return;
    }
    let scratch = Scratch::new();
    let root = busybox_directory(&scratch);
    let node = root.join("zero");
    succeed(Command::new("mknod").arg(&node).args(["c", "1", "5"]));
    let open = |derrick: &Derrick| derrick.create().sh("head -c 2 /zero | wc -c").output;
    let undefended = Launch::new(directory(&root)).without(["nodev"]).start();
    assert_eq!(open(&undefended), "2\n");
    drop(undefended);
    let refused = open(&Derrick::start(directory(&root)));
    assert!(refused.contains("Permission denied"), "{refused}");
}

// a setuid file that a workspace leaves for a user of the host
#[test]
fn running_a_setuid_file_of_a_workspace_on_the_host() {
    let place = Scratch::in_the_open();
    let state = place.join("state");
    let derrick = Launch::new(json!({ "name": "test" })).state(&state).start();
    let workspace = derrick.create();
    workspace.ok("cp /usr/bin/id /trap && chmod 6755 /trap");
    let found = as_owner("find")
        .arg(state.join("workspaces"))
        .args(["-name", "trap", "-perm", "-6000", "-printf", "%p %U"])
        .output()
        .expect("cannot start find");
    let found = String::from_utf8(found.stdout).expect("a scratch path is text");
    let (trap, owner) = found.split_once(' ').expect("there is one");
    // Its owner is no one of the host's; where there is one id alone, it is the user.
    let copy = place.join("trap");
    succeed(as_owner("cp").args(["-p", trap]).arg(&copy));
    let owner_outside = fs::metadata(&copy).expect("it is there").uid();
    let user = nix::unistd::geteuid().as_raw();
    match mode() {
        Mode::Root => assert!(owner_outside >= 0x7000_0000, "{owner_outside}"),
        Mode::Subordinate => assert_ne!(owner_outside, user),
        Mode::Single => assert_eq!(owner_outside, user),
    }
    // Where there is a way to such a file, a stranger runs it as its owner; to the workspace there is none.
    let stranger = |program: &str| {
        let mut command = match mode() {
            Mode::Root => Command::new("setpriv"),
            Mode::Subordinate => as_owner("setpriv"),
            // This user can be nobody else; the other modes show that nobody else has a way.
            Mode::Single => return None,
        };
        command.args(["--reuid=1234", "--regid=1234", "--clear-groups"]);
        // setpriv itself keeps its capabilities up to the next program.
        let output = command.args(["sh", "-c", "exec $0", program]).output();
        Some(output.expect("cannot start setpriv"))
    };
    if let Some(ran) = stranger(copy.to_str().expect("text")) {
        let printed = String::from_utf8_lossy(&ran.stdout);
        assert!(printed.contains(&format!("euid={owner}")), "{printed}");
    }
    if let Some(ran) = stranger(trap) {
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(said.contains("Permission denied"), "{said}");
    }
    let open = fs::metadata(&state).expect("it is there").permissions();
    assert_eq!(open.mode() & 0o777, 0o700);
}

/// Raises the limit on core files and crashes; says what limits there were and whether a core was dumped.
const CRASH: &str = "
import os, resource
os.chdir('/tmp')
print(resource.getrlimit(resource.RLIMIT_CORE))
try:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
except ValueError:
    print('not raised')
if os.fork() == 0:
    os.abort()
print(os.WCOREDUMP(os.wait()[1]))
";

// a crash that has the kernel start the host's handler of core dumps, as root
#[test]
fn crashing_to_start_the_hosts_core_handler() {
    let undefended = Derrick::without(["rlimits"]);
    let printed = undefended.create().python(CRASH).expect(0);
    assert!(printed.ends_with("True\n"), "{printed}");
    // Not 0, which a core_pattern with a pipe ignores.
    let derrick = Derrick::on_host();
    let printed = derrick.create().python(CRASH).expect(0);
    assert_eq!(printed, "(1, 1)\nnot raised\nFalse\n");
}
