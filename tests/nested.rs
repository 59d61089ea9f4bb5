//! The profile `nested`: what it lets a workspace do that `standard` does not, what it keeps, and what it
//! says of itself. That the attacks on system calls fail in it too is in `p05_system_calls`.

mod support;

use serde_json::json;
use support::{Derrick, Launch, Workspace, succeed};

fn nested() -> Derrick {
    Derrick::start(json!({ "name": "test", "profile": "nested" }))
}

/// A command fails as nothing else does, and says this.
#[track_caller]
fn refused(workspace: &Workspace, command: &str, saying: &str) {
    let ran = workspace.sh(&format!("LC_ALL=C {command}"));
    assert_ne!(ran.exit_code, 0, "{command}: {}", ran.output);
    assert!(ran.output.contains(saying), "{command}: {}", ran.output);
}

// --- what it is for ---

const BUBBLEWRAP: &str = "bwrap --unshare-user --unshare-pid --unshare-net --unshare-ipc --unshare-uts \
    --hostname inner --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib \
    --symlink usr/lib64 /lib64 --ro-bind /proc /proc --dev /dev --tmpfs /tmp --die-with-parent \
    sh -c 'hostname; id -u; echo into /tmp > /tmp/file; cat /tmp/file; cat /proc/net/dev | wc -l; echo /home*'";

#[test]
fn bubblewrap_runs() {
    let derrick = nested();
    let workspace = derrick.create();
    let printed = workspace.ok(BUBBLEWRAP);
    assert_eq!(printed, "inner\n0\ninto /tmp\n3\n/home*\n");

    let standard = Derrick::on_host();
    refused(
        &standard.create(),
        BUBBLEWRAP,
        "No permissions to create new namespace",
    );
}

#[test]
fn bubblewrap_unshares_everything_but_control_groups() {
    let derrick = nested();
    let workspace = derrick.create();
    let but = "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts";
    let bind = "--ro-bind / / --dev /dev id -u";
    assert_eq!(workspace.ok(&format!("bwrap {but} {bind}")), "0\n");
    refused(&workspace, &format!("bwrap --unshare-all {bind}"), "ENOSPC");
}

#[test]
fn every_kind_of_namespace_can_be_made_and_entered() {
    let derrick = nested();
    let workspace = derrick.create();
    let standard = Derrick::on_host();
    let plain = standard.create();
    for kind in ["--mount", "--uts", "--ipc", "--net", "--pid --fork"] {
        let command = format!("unshare --user --map-root-user {kind} id -u");
        assert_eq!(workspace.ok(&command), "0\n", "{kind}");
        refused(&plain, &command, "Operation not permitted");
    }
    refused(
        &workspace,
        "unshare --user --map-root-user --time true",
        "Operation not permitted",
    );
    // Entered by who made it.
    let entered = workspace.ok(
        "unshare --user --map-root-user --uts sh -c 'hostname inner; echo made; exec sleep 1000' > /tmp/made &
         until grep -q made /tmp/made 2> /dev/null; do :; done
         nsenter --preserve-credentials --user --uts --target $! hostname",
    );
    assert_eq!(entered, "inner\n");
    let own = "nsenter --uts=/proc/self/ns/uts true";
    refused(&plain, own, "Operation not permitted");
}

#[test]
fn a_filesystem_can_be_mounted_in_a_namespace_of_its_own_alone() {
    let derrick = nested();
    let workspace = derrick.create();
    let program =
        "mount -t tmpfs none /mnt && touch /mnt/file && ls /mnt && umount /mnt && ls /mnt";
    let inner = format!("unshare --user --map-root-user --mount sh -c '{program}'");
    assert_eq!(workspace.ok(&inner), "file\n");
    // Without one, nobody has the capability.
    refused(&workspace, "mount -t tmpfs none /mnt", "permission denied");
    assert_eq!(workspace.ok("ls -A /mnt"), "");
}

// --- what it keeps ---

/// As root of a user and a mount namespace inside.
fn as_inner_root(command: &str) -> String {
    format!("unshare --user --map-root-user --mount {command}")
}

/// Ways to what is hidden of `/proc` and `/sys`, and to write where it is read-only, all of which work on
/// what is not covered.
const UNMASKING: &[(&str, &str)] = &[
    ("umount --no-canonicalize -i /proc/kcore", "no mount point"),
    ("umount -i /sys/firmware", "not mounted"),
    ("umount -i /proc/sys", "not mounted"),
    ("umount -i --recursive /proc", "not mounted"),
    ("mount -o remount,bind,rw /proc/sys", "permission denied"),
    // Without what covers it.
    ("mount --bind /proc /mnt", "wrong fs type"),
    ("mount -t proc proc /mnt", "permission denied"),
];

#[test]
fn masks_of_proc_and_sys_stay() {
    let derrick = nested();
    let workspace = derrick.create();
    for (command, saying) in UNMASKING {
        refused(&workspace, &as_inner_root(command), saying);
    }
    // A new procfs and sysfs belong to whoever has the process and the network namespace.
    let own_processes = "unshare --user --map-root-user --mount --pid --fork --mount-proc true";
    refused(&workspace, own_processes, "Operation not permitted");
    let own_network = as_inner_root("--net mount -t sysfs sysfs /mnt");
    refused(&workspace, &own_network, "permission denied");
    // A copy of the tree keeps its covers.
    let copied = workspace.ok(&as_inner_root(
        "sh -c 'mount --rbind /proc /mnt && cat /mnt/kcore /mnt/keys /mnt/kallsyms; \
         echo 1 > /mnt/sys/kernel/core_pattern || echo kept'",
    ));
    assert!(copied.ends_with("kept\n"), "{copied}");
    assert!(copied.contains("Read-only file system"), "{copied}");
}

#[test]
fn a_procfs_of_its_own_can_be_mounted_where_nothing_is_hidden() {
    let own = "unshare --user --map-root-user --mount --pid --fork --mount-proc ls /proc/1/ns/user";
    let outside = succeed(std::process::Command::new("sh").args(["-c", own]));
    assert_eq!(outside, "/proc/1/ns/user\n");
    let derrick = Launch::new(json!({ "name": "test", "profile": "nested" }))
        .without(["hidden_paths", "read_only_paths"])
        .start();
    assert_eq!(derrick.create().ok(own), "/proc/1/ns/user\n");
}

#[test]
fn control_groups_of_others_are_not_to_be_seen() {
    let derrick = nested();
    let workspace = derrick.create();
    let mount = "mount -t cgroup2 none /mnt && ls /mnt";
    // With a namespace of its own for them it would see those of whoever is in the same group.
    refused(
        &workspace,
        &as_inner_root(&format!("unshare --cgroup sh -c '{mount}'")),
        "No space left on device",
    );
    // In the sandbox's own namespace it takes a capability that nobody has.
    refused(&workspace, &as_inner_root(mount), "permission denied");
}

#[test]
fn capabilities_are_those_of_a_namespace_alone() {
    let derrick = nested();
    let workspace = derrick.create();
    // Over the sandbox itself they are what `standard` has.
    let plain = Derrick::on_host();
    let sets = "grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/self/status";
    assert_eq!(workspace.ok(sets), plain.create().ok(sets));
    let inner = workspace.ok(&as_inner_root(sets));
    assert!(inner.contains("NoNewPrivs:\t1\nSeccomp:\t2\n"), "{inner}");
    assert!(!inner.contains("CapEff:\t0000000000000000"), "{inner}");
    for (command, saying) in [
        ("mknod /tmp/disk b 8 0", "Operation not permitted"),
        ("date --set=2020-01-01", "Operation not permitted"),
        ("nsenter --mount=/proc/1/ns/mnt true", "Permission denied"),
    ] {
        refused(&workspace, &as_inner_root(command), saying);
    }
}

#[test]
fn a_deadline_finds_processes_in_namespaces_of_their_own() {
    let derrick = nested();
    let workspace = derrick.create();
    let marker = format!("nested-{}", workspace.id);
    let command = format!(
        "unshare --user --map-root-user --pid --fork bash -c '\
         (setsid bash -c \"exec -a {marker} sleep 1000\" &)
         until grep -qz ^{marker}$ /proc/[0-9]*/cmdline; do :; done
         echo there; exec sleep 1000'"
    );
    let ran = workspace.run_with(&json!({ "cmd": command, "timeout": 5 }));
    assert_eq!(ran["outcome"]["kind"], "deadline", "{ran}");
    assert_eq!(ran["output"]["stdout"], "there\n", "{ran}");
    assert_eq!(support::process_with_argument(&marker), None);
    assert_eq!(workspace.ok("echo lives"), "lives\n");
}

// --- what it says ---

#[test]
fn what_it_gives_up_is_told() {
    let derrick = nested();
    let told = &derrick.create().describe()["enforcement"];
    let weaker = told["weaker"].to_string();
    assert!(weaker.contains("namespaces can be nested"), "{weaker}");
    assert!(weaker.contains("landlock confines no files"), "{weaker}");
    assert_eq!(told["sandbox"]["profile"], "nested");
    let landlock = &told["sandbox"]["landlock"];
    let expected = if landlock["abi"].as_i64() >= Some(6) {
        "scopes"
    } else {
        "off"
    };
    assert_eq!(landlock["state"], expected);

    let told = &Derrick::on_host().create().describe()["enforcement"];
    assert_eq!(told["sandbox"]["profile"], "standard");
    let weaker = told["weaker"].to_string();
    assert!(!weaker.contains("nested"), "{weaker}");
}

#[test]
fn a_request_cannot_ask_for_it() {
    let derrick = Derrick::on_host();
    let answer = derrick
        .api
        .post("/workspaces", &json!({ "profile": "nested" }));
    answer.problem(400);
    assert!(derrick.api.list().is_empty());
}
