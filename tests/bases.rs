//! Where root filesystems come from: the host's own system, a directory, an archive. None is ever written.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use support::{
    Derrick, Mode, Scratch, busybox_directory, directory, fixture, mode, succeed, tarball,
    try_create,
};

// --- the host's own system ---

#[test]
fn the_hosts_programs_are_there() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    assert_eq!(workspace.ok("/usr/bin/python3 -c 'print(6*7)'"), "42\n");
    workspace.ok("git --version && cc --version && bash --version && perl -e 1");
    workspace.ok("test -s /etc/ssl/certs/ca-certificates.crt && test -e /etc/ld.so.cache");
    workspace.ok("update-alternatives --version > /dev/null; awk 'BEGIN { exit 0 }'");
    assert_eq!(workspace.ok("id -un; id -gn; whoami"), "root\nroot\nroot\n");
}

#[test]
fn the_hosts_files_are_copied_on_write_by_root_and_read_only_to_others_who_are_told() {
    let own = fs::metadata("/usr/bin/env")
        .expect("the host has env")
        .mtime();
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    // The root itself is writable in every mode.
    workspace.ok("echo x > /new; echo x > /etc/new; mkdir -p /home/me /var/lib/new /root/new");
    let ran = workspace.sh("echo x >> /usr/bin/env; rm /usr/bin/perl");
    if mode() == Mode::Root {
        ran.expect(0);
        assert_eq!(workspace.ok("tail -c 2 /usr/bin/env"), "x\n");
        assert_eq!(workspace.sh("test -e /usr/bin/perl").exit_code, 1);
        workspace.reset();
        workspace.ok("perl -e 1 && env true");
    } else {
        assert_ne!(ran.exit_code, 0, "{}", ran.output);
        assert!(
            ran.output.contains("Read-only file system"),
            "{}",
            ran.output
        );
        let told = workspace.describe()["enforcement"].to_string();
        assert!(told.contains("read-only"), "{told}");
    }
    let now = fs::metadata("/usr/bin/env")
        .expect("the host has env")
        .mtime();
    assert_eq!(now, own);
    assert!(Path::new("/usr/bin/perl").exists());
}

#[test]
fn directories_that_the_config_includes_are_there_and_no_others() {
    let scratch = Scratch::new();
    let tool = scratch.file("toolchain/bin/tool", "#!/bin/sh\necho tool\n");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("it is the test's own");
    scratch.file("neighbour/secret", "canary");
    // The way to it is open, as it is for /usr/local or /opt.
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))
        .expect("it is the test's own");
    let derrick = Derrick::start(json!({
        "name": "test",
        "base": { "type": "host", "include": [scratch.join("toolchain")] },
    }));
    let workspace = derrick.create();
    assert_eq!(workspace.ok(&tool.to_string_lossy()), "tool\n");
    let beside = scratch.join("neighbour");
    let ran = workspace.sh(&format!("ls {}", beside.display()));
    assert_eq!(ran.exit_code, 2, "{}", ran.output);
    workspace.sh(&format!("echo x > {0}; rm {0}", tool.display()));
    let content = fs::read_to_string(&tool).expect("the host's file is there");
    assert_eq!(content, "#!/bin/sh\necho tool\n");
}

#[test]
fn private_files_of_the_host_are_hidden_whoever_owns_them() {
    if mode() != Mode::Root {
        return;
    }
    let scratch = Scratch::new();
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is the test's own");
    };
    open(scratch.path(), 0o755);
    // An owner that no sandbox has, and one that each has.
    for (owner, name) in [(100_000, "foreign"), (0, "own")] {
        for (file, mode) in [
            (scratch.file(&format!("tool/{name}"), "canary"), 0o600),
            (
                scratch.file(&format!("tool/private/{name}"), "canary"),
                0o644,
            ),
            (
                scratch.file(&format!("tool/open/deep/{name}"), "canary"),
                0o640,
            ),
            (
                scratch.file(&format!("tool/open/{name}-public"), "public"),
                0o644,
            ),
        ] {
            open(&file, mode);
            std::os::unix::fs::chown(&file, Some(owner), Some(owner)).expect("root gives away");
        }
    }
    let tool = scratch.join("tool");
    open(&tool.join("private"), 0o700);
    open(&tool.join("open"), 0o751);
    open(&tool.join("open"), 0o755);
    open(&tool.join("open/deep"), 0o775);
    let derrick = Derrick::start(json!({
        "name": "test",
        "base": { "type": "host", "include": [tool] },
    }));
    let workspace = derrick.create();
    let inside = |command: &str| workspace.ok(&format!("cd {}; {command}", tool.display()));
    assert_eq!(
        inside("find . | sort"),
        ".\n./open\n./open/deep\n./open/foreign-public\n./open/own-public\n"
    );
    assert_eq!(inside("cat open/*-public"), "publicpublic");
    // What the directories are like on the way to what is hidden.
    assert_eq!(
        inside("stat -c %a:%u . open open/deep"),
        "755:0\n755:0\n775:0\n"
    );
    inside("echo x > open/deep/foreign; echo y >> open/own-public; mkdir private");
    assert_eq!(
        fs::read_to_string(tool.join("open/deep/foreign")).expect("it is there"),
        "canary"
    );
}

// --- a directory ---

#[test]
fn a_base_whose_owner_no_sandbox_has_is_refused_with_what_to_do() {
    let scratch = Scratch::new();
    let base = if mode() == Mode::Root {
        let root = busybox_directory(&scratch);
        let directory = root.join("tmp");
        let _ = fs::create_dir(&directory);
        std::os::unix::fs::chown(&directory, Some(100_000), None).expect("root gives away");
        root
    } else {
        // Nobody but root can give a directory away, and this one is root's.
        PathBuf::from("/usr/local")
    };
    let refusal = try_create(directory(&base)).expect_err("the base was taken");
    let owner = if mode() == Mode::Root {
        "uid 100000"
    } else {
        "uid 0"
    };
    for expected in [&*base.to_string_lossy(), owner, "tarball"] {
        assert!(refusal.contains(expected), "no {expected:?} in {refusal}");
    }
}

// --- an archive ---

#[test]
fn every_compression_is_unpacked() {
    let scratch = Scratch::new();
    let plain = fs::read(fixture("busybox.tar")).expect("the fixture can be read");
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&plain).expect("memory takes everything");
        encoder.finish().expect("memory takes everything")
    };
    let xz = {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(&plain).expect("memory takes everything");
        encoder.finish().expect("memory takes everything")
    };
    let zstd = zstd::encode_all(plain.as_slice(), 1).expect("memory takes everything");
    for (name, content) in [
        ("base.tar", plain),
        ("base.tar.gz", gzip),
        ("base.tar.xz", xz),
        ("base.tar.zst", zstd),
    ] {
        let derrick = Derrick::start(tarball(&scratch.file(name, content)));
        let workspace = derrick.create();
        assert_eq!(
            workspace.ok("echo hello; ls -d /bin"),
            "hello\n/bin\n",
            "{name}"
        );
    }
}

#[test]
fn an_archive_is_unpacked_once_and_again_when_it_has_changed() {
    let scratch = Scratch::new();
    let root = busybox_directory(&scratch);
    let archive = scratch.join("base.tar");
    let pack = |version: &str| {
        fs::write(root.join("version"), version).expect("it is the test's own");
        succeed(
            Command::new("tar")
                .arg("-cf")
                .arg(&archive)
                .arg("-C")
                .arg(&root)
                .arg("."),
        );
    };
    pack("one");
    let mut derrick = Derrick::start(tarball(&archive));
    let first = derrick.create();
    let layer = first.describe()["layer"].clone();
    assert_eq!(derrick.create().describe()["layer"], layer);
    derrick.restart();
    assert_eq!(derrick.create().describe()["layer"], layer);

    pack("another");
    derrick.restart();
    let second = derrick.create();
    assert_ne!(second.describe()["layer"], layer);
    assert_eq!(second.ok("cat /version"), "another");
}

#[test]
fn a_truncated_archive_is_refused_by_name() {
    let scratch = Scratch::new();
    let whole = fs::read(fixture("busybox.tar")).expect("the fixture can be read");
    let archive = scratch.file("base.tar", &whole[..whole.len() / 2]);
    let refusal = try_create(tarball(&archive)).expect_err("half an archive was taken");
    assert!(refusal.contains("base.tar"), "{refusal}");
    assert!(refusal.contains("truncated"), "{refusal}");
}

/// Mounted for one test.
struct Mounted(PathBuf);

impl Mounted {
    fn bind(from: &Path, at: &Path) -> Self {
        support::succeed(Command::new("mount").arg("--bind").args([from, at]));
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        support::succeed(Command::new("umount").arg(&self.0));
    }
}

#[test]
fn what_lies_under_the_hosts_mounts_is_hidden() {
    if mode() != Mode::Root {
        return;
    }
    let scratch = Scratch::new();
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is the test's own");
    };
    open(scratch.path(), 0o755);
    for name in ["shown", "closed", "file"] {
        open(
            &scratch.file(&format!("tool/{name}/under"), "canary"),
            0o600,
        );
    }
    scratch.file("other/public", "public");
    scratch.file("secret/public", "public");
    open(&scratch.join("secret"), 0o700);
    let tool = scratch.join("tool");
    let _mounts = [
        // What every user may enter is shown, and nothing else.
        Mounted::bind(&scratch.join("other"), &tool.join("shown")),
        Mounted::bind(&scratch.join("secret"), &tool.join("closed")),
        Mounted::bind(&scratch.join("other/public"), &tool.join("file/under")),
    ];
    let derrick = Derrick::start(json!({
        "name": "test",
        "base": { "type": "host", "include": [tool] },
    }));
    let workspace = derrick.create();
    let inside = |command: &str| workspace.ok(&format!("cd {}; {command}", tool.display()));
    assert_eq!(
        inside("find . | sort"),
        ".\n./file\n./shown\n./shown/public\n"
    );
    // Nothing is under it either, where the way to it is another one.
    let renamed = format!(
        "cd {}/..; mv tool moved; ls -A moved/shown; ls moved",
        tool.display()
    );
    let ran = workspace.sh(&renamed);
    assert!(!ran.output.contains("under"), "{}", ran.output);
    assert_eq!(
        workspace
            .sh(&format!("grep -r canary {}", scratch.path().display()))
            .output,
        ""
    );
}
