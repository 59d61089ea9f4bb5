//! What installing packages needs: foreign owners, setuid files, other users, renames, links, capabilities.
//!
//! As root and with subordinate ids these work, on every base; with a single id there is nobody to
//! give a file to, and the answer of the API says so before anybody tries.

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::{Derrick, Mode, Scratch, Workspace, fixture, mode, succeed};

fn debian() -> Derrick {
    Derrick::start(json!({
        "name": "debian",
        "base": { "type": "tarball", "path": fixture("debian.tar.zst") },
    }))
}

/// Checks a workspace on a base of each kind, whose name it is told.
fn on_every_base(check: impl Fn(&str, &Workspace)) {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    std::fs::create_dir(&root).expect("it is the test's own");
    // An ordinary user can make no devices, and needs none.
    succeed(
        Command::new("tar")
            .args(["--exclude=./dev/*", "-xf"])
            .arg(fixture("debian.tar.zst"))
            .arg("-C")
            .arg(&root),
    );
    for (name, base) in [
        ("host", json!("host")),
        ("directory", json!({ "type": "directory", "path": root })),
        (
            "tarball",
            json!({ "type": "tarball", "path": fixture("debian.tar.zst") }),
        ),
    ] {
        let derrick = Derrick::start(json!({ "name": "test", "base": base }));
        check(name, &derrick.create());
    }
}

/// What of the enforcement tells how many ids there are inside.
fn ids(workspace: &Workspace) -> Value {
    workspace.describe()["enforcement"]["sandbox"]["ids"].clone()
}

/// A Debian package, as dpkg-deb(1) would make it, but with owners that the caller need not be.
///
/// deb(5): an `ar` archive of the format's version, the control files and the data.
fn package(files: &[(&str, u64, u32, &[u8])]) -> Vec<u8> {
    let control = "Package: derrick-test\nVersion: 1.0\nArchitecture: all\n\
        Maintainer: Ada <ada@example.org>\nDescription: files of several owners\n";
    let members: [(&str, Vec<u8>); 3] = [
        ("debian-binary", b"2.0\n".to_vec()),
        (
            "control.tar",
            archive(&[("./control", 0, 0o644, control.as_bytes())]),
        ),
        ("data.tar", archive(files)),
    ];
    let mut deb = b"!<arch>\n".to_vec();
    for (name, content) in members {
        let size = content.len();
        deb.extend(
            format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n",
                0, 0, 0, 100_644
            )
            .bytes(),
        );
        deb.extend(content);
        if size % 2 == 1 {
            deb.push(b'\n');
        }
    }
    deb
}

/// A tar archive of files as (name, owner, mode, content).
fn archive(files: &[(&str, u64, u32, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, owner, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_mode(*mode);
        archive
            .append_data(&mut header, name, *content)
            .expect("memory takes everything");
    }
    archive.into_inner().expect("memory takes everything")
}

#[test]
fn dpkg_installs_files_of_other_owners_and_setuid_ones() {
    let derrick = debian();
    let workspace = derrick.create();
    let deb = package(&[
        ("./usr/games/score", 2, 0o644, b"0\n"),
        ("./usr/bin/as-daemon", 1, 0o4755, b"#!/bin/sh\nid -u\n"),
    ]);
    workspace.write_file("/tmp/test.deb", &deb);
    let ran = workspace.sh("dpkg --install /tmp/test.deb");
    if mode() == Mode::Single {
        assert_ne!(ran.exit_code, 0, "{}", ran.output);
        assert!(ran.output.contains("Invalid argument"), "{}", ran.output);
        assert_eq!(ids(&workspace), json!(1));
        return;
    }
    ran.expect(0);
    assert_eq!(
        workspace.ok("stat -c '%u:%g %a' /usr/games/score /usr/bin/as-daemon"),
        "2:2 644\n1:1 4755\n"
    );
    assert!(
        workspace
            .ok("dpkg --verify derrick-test; dpkg --list")
            .contains("derrick-test")
    );
    workspace.ok("dpkg --purge derrick-test");
    assert_eq!(workspace.sh("test -e /usr/bin/as-daemon").exit_code, 1);
}

#[test]
fn files_can_be_given_to_any_user() {
    on_every_base(|base, workspace| {
        let ran = workspace
            .sh("touch /tmp/f && chown 1234:65534 /tmp/f && stat -c %u:%g /tmp/f /etc/passwd");
        if mode() == Mode::Single {
            assert_ne!(ran.exit_code, 0, "{base}: {}", ran.output);
            assert!(ran.output.contains("Invalid argument"), "{}", ran.output);
            assert_eq!(ids(workspace), json!(1), "{base}");
            return;
        }
        assert_eq!(ran.expect(0), "1234:65534\n0:0\n", "{base}");
        // One that a layer holds as well.
        assert_eq!(
            workspace.ok("chown nobody /etc/passwd && stat -c %U /etc/passwd"),
            "nobody\n",
            "{base}"
        );
        assert_eq!(ids(workspace), json!(65_536), "{base}");
    });
}

#[test]
fn owners_and_modes_of_the_archive_are_those_inside() {
    let derrick = debian();
    let printed = derrick
        .create()
        .ok("stat -c '%U:%G %a' / /usr/bin/su /var/mail /etc/passwd");
    // Who has one id has no group to give: a bit that would act for that group goes with it.
    let mail = if mode() == Mode::Single {
        "root:root 775"
    } else {
        "root:mail 2775"
    };
    assert_eq!(
        printed,
        format!("root:root 755\nroot:root 4755\n{mail}\nroot:root 644\n")
    );
}

#[test]
fn root_can_become_another_user_who_may_then_do_less() {
    on_every_base(|base, workspace| {
        let ran = workspace.sh("su nobody -s /bin/sh -c 'id -un; touch /etc/x' 2>&1");
        if mode() == Mode::Single {
            assert_ne!(ran.exit_code, 0, "{base}: {}", ran.output);
            assert_eq!(ids(workspace), json!(1), "{base}");
            return;
        }
        assert!(ran.output.starts_with("nobody\n"), "{base}: {}", ran.output);
        assert!(
            ran.output.contains("Permission denied"),
            "{base}: {}",
            ran.output
        );
    });
}

#[test]
fn a_directory_of_a_layer_can_be_renamed_where_root_mounted_it() {
    let derrick = debian();
    let workspace = derrick.create();
    let rename = "perl -e 'rename(\"/usr/share/misc\", \"/usr/share/other\") or print \"$!\\n\"'";
    let printed = workspace.ok(rename);
    if mode() == Mode::Root {
        assert_eq!(printed, "");
    } else {
        // As in every overlay that was mounted in a user namespace; mv copies then.
        assert_eq!(printed, "Invalid cross-device link\n");
        workspace.ok("mv /usr/share/misc /usr/share/other");
    }
    assert_eq!(workspace.sh("test -e /usr/share/misc").exit_code, 1);
    workspace.ok("test -d /usr/share/other");
    workspace.reset();
    workspace.ok("test -d /usr/share/misc");
    assert_eq!(workspace.sh("test -e /usr/share/other").exit_code, 1);
}

#[test]
fn hard_links_to_new_files_and_to_files_of_a_layer_work() {
    on_every_base(|base, workspace| {
        let printed = workspace.ok(
            "ln /etc/profile /etc/profile.hard && echo '# more' >> /etc/profile.hard
             tail -n 1 /etc/profile; stat -c %h /etc/profile /etc/profile.hard
             echo a > /tmp/a; ln /tmp/a /srv/b; stat -c %h /srv/b",
        );
        assert_eq!(printed, "# more\n2\n2\n2\n", "{base}");
        // What is the host's, its root alone can have a copy of.
        let ran = workspace.sh("ln /usr/bin/env /usr/bin/env.hard");
        if base == "host" && mode() != Mode::Root {
            assert!(
                ran.output.contains("Read-only file system"),
                "{}",
                ran.output
            );
        } else {
            ran.expect(0);
        }
    });
}

#[test]
fn capabilities_can_be_put_on_files() {
    let derrick = Derrick::on_host();
    let printed = derrick.create().ok("cp /bin/true /tmp/server
         setcap cap_net_bind_service+ep /tmp/server && getcap /tmp/server");
    assert_eq!(printed, "/tmp/server cap_net_bind_service=ep\n");
}

#[test]
fn a_script_that_setup_ran_leaves_its_owners_in_the_layer() {
    let derrick = Derrick::start(json!({
        "name": "owners",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "setup_script": "mkdir -p /srv/www && touch /srv/www/page && (chown -R 33:33 /srv/www || true)",
    }));
    let (first, second) = (derrick.create(), derrick.create());
    let owner = if mode() == Mode::Single {
        "0:0"
    } else {
        "33:33"
    };
    for workspace in [&first, &second] {
        assert_eq!(
            workspace.ok("stat -c %u:%g /srv/www /srv/www/page"),
            format!("{owner}\n{owner}\n")
        );
        workspace.ok("echo x >> /srv/www/page; touch /srv/www/new; mv /srv/www/page /srv/www/old");
        workspace.reset();
        assert_eq!(workspace.ok("ls /srv/www; cat /srv/www/page"), "page\n");
    }
}
