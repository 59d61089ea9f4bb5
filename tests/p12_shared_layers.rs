//! P12: a workspace cannot change what another workspace starts from, and its own files are nobody else's
//! at the same time.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::{
    Derrick, Launch, Scratch, Workspace, as_owner, bare, busybox_directory, directory, fixture,
    snapshot, succeed,
};

/// A small base with a cache that setup filled.
fn with_cache() -> Value {
    json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "setup_script": "mkdir -p /cache/pip && echo good > /cache/pip/wheel && echo good > /etc/from-setup",
    })
}

/// Digests of every file of every layer on disk, with owners, modes and times.
fn layers(derrick: &Derrick) -> String {
    let print = "find . ! -name '.lock*' -printf '%p %m %U %G %s %T@ %l\\n' | sort
                 find . -type f ! -name '.lock*' -exec md5sum {} + | sort";
    let output = as_owner("bash")
        .args(["-c", print])
        .current_dir(derrick.state().join("layers"))
        .output();
    let output = output.expect("cannot start bash");
    let all = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(all.lines().count() > 10, "{all}");
    all
}

// C-08: poisoning a cache that all share
#[test]
fn poisoning_a_shared_cache() {
    // A directory that is mounted into both, to be written by both, is one.
    let scratch = Scratch::new();
    scratch.file("cache/wheel", "good");
    let poison = format!(
        "mount --bind {} /mnt && echo evil > /mnt/wheel",
        scratch.join("cache").display()
    );
    let mut naive = bare::namespaces(&["mount"]);
    succeed(naive.args(["sh", "-c", &poison]));
    let wheel = fs::read_to_string(scratch.join("cache/wheel"));
    assert_eq!(wheel.expect("it is there"), "evil\n");

    let derrick = Derrick::start(with_cache());
    let (evil, other) = (derrick.create(), derrick.create());
    let before = layers(&derrick);
    evil.ok("echo evil > /cache/pip/wheel; echo evil > /cache/pip/new; rm /etc/from-setup; ln -s /x /etc/from-setup");
    for workspace in [&other, &derrick.create()] {
        assert_eq!(
            workspace.ok("cat /cache/pip/* /etc/from-setup"),
            "good\ngood\n"
        );
    }
    evil.reset();
    assert_eq!(evil.ok("cat /cache/pip/* /etc/from-setup"), "good\ngood\n");
    assert_eq!(layers(&derrick), before);
}

/// Ways to write to a file other than writing to it; a file of a layer is copied before each.
const WRITES: &str = "
import ctypes, fcntl, mmap, os
path = '/bin/busybox' if os.path.exists('/bin/busybox') else 'FILE'
libc = ctypes.CDLL(None, use_errno=True)
readable = os.open(path, os.O_RDONLY)
# CVE-2022-0847: a pipe whose buffers may be merged into, with a page of the file in it.
reader, writer = os.pipe()
size = fcntl.fcntl(writer, 1032)
os.write(writer, b'x' * size)
os.read(reader, size)
offset = ctypes.c_longlong(1)
spliced = libc.splice(readable, ctypes.byref(offset), writer, None, 1, 0)
os.write(writer, b'evil')
# CVE-2016-5195 and its kin: a private mapping that is written to, and forgotten.
mapped = mmap.mmap(readable, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
mapped[0:4] = b'evil'
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise(ctypes.addressof(ctypes.c_char.from_buffer(mapped)), 4096, 4)
# A descriptor that was opened for reading, opened once more for writing.
for number in (readable,):
    try:
        again = os.open(f'/proc/self/fd/{number}', os.O_RDWR)
        os.pwrite(again, b'evil', 4)
    except OSError as error:
        print(error.errno)
print(spliced)
";

// C-09: changing the pages of a file that all workspaces read, without writing to it
#[test]
fn changing_the_page_cache_of_a_shared_layer() {
    // In one and the same file, a writer through /proc changes what every reader sees.
    let scratch = Scratch::new();
    let file = scratch.file("shared", vec![b'x'; 5000]);
    bare::python(
        &WRITES
            .replace("/bin/busybox", "/nonexistent")
            .replace("FILE", &file.to_string_lossy()),
    );
    assert_eq!(&fs::read(&file).expect("it is there")[..8], b"xxxxevil");

    let derrick = Derrick::on_host();
    let (evil, other) = (derrick.create(), derrick.create());
    let look = "md5sum /usr/bin/env /usr/bin/python3 /etc/ld.so.cache | cut -c1-32";
    let before = bare::sh(look);
    let host = |workspace: &Workspace| workspace.ok(look);
    assert_eq!(host(&evil), before);
    for path in ["/usr/bin/env", "/etc/ld.so.cache"] {
        let ran = evil.python(
            &WRITES
                .replace("/bin/busybox", "/nonexistent")
                .replace("FILE", path),
        );
        assert!(ran.output.ends_with("1\n"), "{}", ran.output);
    }
    assert_eq!(bare::sh(look), before);
    assert_eq!(host(&other), before);
    evil.reset();
    assert_eq!(host(&evil), before);
}

// H-04: changing a base directory from inside
#[test]
fn changing_the_base() {
    let scratch = Scratch::new();
    let root = busybox_directory(&scratch);
    fs::create_dir_all(root.join("etc")).expect("it is the test's own");
    fs::write(root.join("etc/given"), "given\n").expect("it is the test's own");
    // Through a mount without an overlay all of it would be changed.
    let naive = format!(
        "mount --bind {} /mnt && echo evil > /mnt/etc/given && touch /mnt/etc/given",
        root.display()
    );
    let mut bare = bare::namespaces(&["mount"]);
    succeed(bare.args(["sh", "-c", &naive]));
    let given = || fs::read_to_string(root.join("etc/given")).expect("it is there");
    assert_eq!(given(), "evil\n");
    fs::write(root.join("etc/given"), "given\n").expect("it is the test's own");

    let before = snapshot(&root);
    let derrick = Derrick::start(directory(&root));
    let workspace = derrick.create();
    workspace.ok("cat /etc/given");
    workspace.ok("rm /etc/given; echo new > /etc/given; echo x > /new; chmod 700 /bin; mkdir /a");
    workspace.ok("mv /etc /moved; ln -s moved /etc; chmod 0 /moved/given");
    workspace.sh("rm -rf /bin /moved");
    workspace.reset();
    assert_eq!(workspace.ok("cat /etc/given"), "given\n");
    drop(derrick);
    assert_eq!(snapshot(&root), before);
}

// H-04: changing a layer of the store from inside
#[test]
fn changing_a_layer() {
    let derrick = Derrick::start(with_cache());
    let workspace = derrick.create();
    let before = layers(&derrick);
    for attack in [
        "chmod -R 777 /cache /etc /bin; chown -R 0:0 /cache; touch -d @0 /cache/pip/wheel",
        "echo evil >> /bin/busybox; truncate -s 0 /cache/pip/wheel; ln /cache/pip/wheel /hard; echo evil >> /hard",
        "mv /cache /moved; mkdir /cache; mv /moved/pip /cache; rm -rf /moved /etc",
        "rm -rf /bin /cache /lib /usr 2> /dev/null; true",
    ] {
        workspace.sh(attack);
        workspace.reset();
    }
    assert_eq!(layers(&derrick), before);
    assert_eq!(derrick.create().ok("cat /cache/pip/wheel"), "good\n");
    // Nobody but the provider's own user has a way to it from outside, and nobody inside sees the store.
    let store = derrick.state().join("layers");
    let mode = fs::metadata(&store)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    let ran = workspace.sh(&format!("ls {}", store.display()));
    assert_ne!(ran.exit_code, 0);
}

// C-11: a state directory that somebody else made first, or may write to
#[test]
fn preparing_the_state_directory_for_derrick() {
    let start = |state: &Path| {
        Launch::new(json!({ "name": "test" }))
            .state(state)
            .try_start()
    };
    let scratch = Scratch::in_the_open();
    // To who only sees that it is there, an open directory is as good as any.
    let open = scratch.join("open");
    fs::create_dir_all(&open).expect("no error where it is there already");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("its own");
    let refused = start(&open).expect_err("it starts");
    assert!(refused.contains("to nobody else"), "{refused}");
    // Also by way of a link.
    symlink(&open, scratch.join("link")).expect("its own");
    let refused = start(&scratch.join("link")).expect_err("it starts");
    assert!(refused.contains("to nobody else"), "{refused}");
    assert_eq!(fs::read_dir(&open).expect("it is there").count(), 0);
    // One that it makes itself is closed, whatever the umask.
    let state = scratch.join("state");
    let derrick = start(&state).expect("it starts");
    let mode = |path: &Path| {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode(&state), 0o700);
    for part in ["layers", "workspaces", "run", "trash"] {
        assert_eq!(mode(&state.join(part)), 0o700, "{part}");
    }
    drop(derrick);
}

// C-11: temporary files of predictable names
#[test]
fn waiting_for_temporary_files() {
    // Where there is no directory for them, whoever makes one fails.
    let nowhere = "/nonexistent/place";
    let naive = format!("TMPDIR={nowhere} mktemp 2> /dev/null || echo failed");
    assert_eq!(bare::sh(&naive), "failed\n");
    let derrick = Launch::new(with_cache())
        .environment("TMPDIR", nowhere)
        .start();
    let workspace = derrick.create();
    workspace.write_file("/file", b"x");
    assert_eq!(workspace.read_file("/file"), b"x");
    workspace
        .on_file("GET", "/etc", "?archive=tar.gz", b"")
        .expect(200);
    workspace.reset();
    assert!(workspace.delete());
}

// the files of a workspace mounted twice at a time
#[test]
fn serving_the_same_workspaces_twice() {
    // The kernel lets it pass, and says that what comes of it is undefined.
    let scratch = Scratch::new();
    for name in ["lower", "upper", "work", "other", "one", "two"] {
        fs::create_dir(scratch.join(name)).expect("its own");
    }
    let twice = format!(
        "cd {} && mount -t overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work none one
         mount -t overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=other none two
         echo x > one/file; cat two/file",
        scratch.path().display()
    );
    let mut naive = bare::namespaces(&["mount"]);
    assert_eq!(succeed(naive.args(["sh", "-c", &twice])), "x\n");

    let derrick = Derrick::on_host();
    let output = Command::new(support::binary())
        .args(["--listen", "127.0.0.1:0", "--state-dir"])
        .arg(derrick.state())
        .output()
        .expect("cannot start derrick");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&*derrick.state().to_string_lossy()), "{said}");
}

// an overlay that is read-only without a word
#[test]
fn an_overlay_that_the_kernel_makes_read_only() {
    let scratch = Scratch::new();
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(scratch.join(name)).expect("its own");
    }
    // A work directory with more in it than the kernel clears away.
    let block = "mkdir -p work/a/b/c/d";
    let naive = format!(
        "cd {} && (cd work && {block}) && mount -t overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work none merged
         echo $?; (: > merged/file) 2>&1 | grep -o 'Read-only.*'",
        scratch.path().display()
    );
    let mut bare = bare::namespaces(&["mount"]);
    assert_eq!(
        succeed(bare.args(["sh", "-c", &naive])),
        "0\nRead-only file system\n"
    );

    let mut derrick = Derrick::on_host();
    let id = derrick.create().id;
    derrick.stop();
    let of_workspace = derrick.state().join("workspaces").join(&id);
    let line = format!(
        "cd {} && for w in */work/0; do (cd $w && {block}); done",
        of_workspace.display()
    );
    succeed(as_owner("bash").args(["-c", &line]));
    derrick.start_again();
    let workspace = derrick.api.workspace(&id);
    // It starts with a work directory of its own making, or not at all.
    workspace.ok("echo x > /file");
    let flags = workspace.ok("awk '$5 == \"/\" { print $NF }' /proc/self/mountinfo");
    assert!(flags.starts_with("rw,"), "{flags}");
}
