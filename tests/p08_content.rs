//! P8: no content of a workspace, be it names, links, archives, accounts or output, makes derrick touch the host
//! outside of that workspace, and none keeps it waiting.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::accounts::{ADA, provider, refusal};
use support::{
    Answer, Derrick, Mode, Scratch, Workspace, bare, binary, busybox_and, entry, mode, problem,
    succeed, tarball, try_create,
};

fn get(workspace: &Workspace, path: &str) -> Answer {
    workspace.on_file("GET", path, "", b"")
}

fn put(workspace: &Workspace, path: &str, content: &[u8]) -> Answer {
    workspace.on_file("PUT", path, "", content)
}

fn stat(workspace: &Workspace, path: &str) -> Value {
    let answer = workspace.on_file("GET", path, "?stat=true&follow=false", b"");
    answer.expect(200).json()
}

fn change(workspace: &Workspace, path: &str, body: &Value) -> Answer {
    workspace.on_file("POST", path, "", body.to_string().as_bytes())
}

// --- links ---

// G-01: reading and writing through links that lead to the host
#[test]
fn following_links_to_the_hosts_files() {
    let host = Scratch::new();
    let secret = host.file("secret", "canary");
    let secret = secret.to_str().expect("a scratch path is text");
    // To whoever opens it on the host, such a link gives the host's file.
    let planted = host.join("planted");
    std::os::unix::fs::symlink(secret, &planted).expect("a link");
    assert_eq!(
        std::fs::read_to_string(&planted).expect("followed"),
        "canary"
    );

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let up = "../".repeat(40);
    workspace.ok(&format!(
        "ln -s {secret} /absolute; ln -s {up}{secret} /relative; ln -s {} /way; ln -s /proc/1/root /init
         ln -s /proc/self/fd /fds; ln -s /proc/self/cwd /cwd; mkdir /tree; ln -s {secret} /tree/link",
        host.path().display(),
    ));
    for path in [
        "/absolute",
        "/relative",
        "/way/secret",
        "/init/way/secret",
        secret,
    ] {
        let answer = get(&workspace, path);
        assert!(
            (400..500).contains(&answer.status),
            "{path}: {}",
            answer.text()
        );
        assert!(!answer.text().contains("canary"), "{path}");
    }
    // Through a descriptor, which is no path.
    problem(get(&workspace, "/fds/0"), 422, "not-possible", "/fds/0");
    for path in ["/way/new", "/absolute", "/init/way/new", "/cwd/x"] {
        // It may succeed, in the workspace.
        put(&workspace, path, b"written");
        workspace.on_file("PUT", path, "?archive=tar", &[0; 1024]);
    }
    assert!(!host.join("new").exists());
    let tree = workspace
        .on_file("GET", "/tree", "?archive=tar", b"")
        .expect(200);
    assert!(!tree.text().contains("canary"));
    workspace
        .on_file("DELETE", "/tree", "?recursive=true", b"")
        .expect(200);
    workspace
        .on_file("DELETE", "/way", "?recursive=true", b"")
        .expect(200);
    assert_eq!(std::fs::read_to_string(secret).expect("there"), "canary");
}

// G-01: the same by read_file and write_file
#[test]
fn following_links_by_read_file_and_write_file() {
    let host = Scratch::new();
    let secret = host.file("secret", "canary");
    let secret = secret.to_str().expect("a scratch path is text");
    // Joined to the workspace's directory and opened there, each would lead to the host's file.
    let naive = Scratch::new();
    std::os::unix::fs::symlink(host.path(), naive.join("way")).expect("a link");
    let joined = fs::read_to_string(naive.path().join("way/secret"));
    assert_eq!(joined.expect("followed"), "canary");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let up = "../".repeat(30);
    workspace.ok(&format!(
        "ln -s {secret} /absolute; ln -s {up}{} /relative; ln -s {} /way
         ln -s /proc/1/root /root-of-init; ln -s /proc/self/fd /fds; ln -s /etc/passwd /inside",
        &secret[1..],
        host.path().display(),
    ));
    for path in [
        "/absolute",
        "/relative",
        "/way/secret",
        &format!("{up}{secret}"),
        secret,
    ] {
        let answer = workspace.post("read_file", &json!({ "path": path }));
        assert!(answer.status >= 400, "{path} was read");
        assert!(!answer.text().contains("canary"), "{path}");
    }
    for path in [
        "/way/new",
        "/root-of-init/way/new",
        &format!("{}/new", host.path().display()),
    ] {
        let body = json!({ "path": path, "content": "eHh4" });
        // It may succeed: in the workspace.
        workspace.post("write_file", &body);
        assert!(!host.join("new").exists(), "{path} was written on the host");
    }
    let accounts = workspace.read_file("/inside");
    assert_eq!(accounts, workspace.ok("cat /etc/passwd").as_bytes());
    workspace.write_file("/absolute", b"replaced");
    assert_eq!(fs::read_to_string(secret).expect("it is there"), "canary");
}

// G-02: a file that is swapped for a link between the look and the touch
#[test]
fn swapping_a_file_for_a_link_while_it_is_read() {
    let host = Scratch::new();
    let secret = host.file("secret", "canary");
    // Who looks first and opens then opens something else.
    let file = host.file("file", "mine");
    let looked = fs::symlink_metadata(&file).expect("it is there").is_file();
    fs::remove_file(&file).expect("it is there");
    std::os::unix::fs::symlink(&secret, &file).expect("a link");
    assert!(looked);
    assert_eq!(fs::read_to_string(&file).expect("followed"), "canary");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let swap = format!(
        "
import os
os.mkfifo('/race.fifo')
targets = ['{}', '/proc/1/mem', '/dev/zero', '/race.fifo']
while not os.path.exists('/stop'):
    for target in targets:
        open('/race.new', 'w').write('mine')
        os.rename('/race.new', '/race')
        os.symlink(target, '/race.link')
        os.rename('/race.link', '/race')
",
        secret.display()
    );
    workspace.write_file("/swap.py", swap.as_bytes());
    let swapping = workspace.exec_sh("exec /usr/bin/python3 /swap.py");
    workspace.ok("until test -e /race; do :; done");
    let mut read = 0;
    while read < 20 {
        let answer = get(&workspace, "/race");
        assert!(answer.status < 500, "{}", answer.text());
        if answer.status == 200 {
            // Nothing, where it was just being written.
            assert!(
                ["mine", ""].contains(&answer.text().as_str()),
                "{}",
                answer.text()
            );
            read += 1;
        }
        let answer = put(&workspace, "/race", b"mine");
        assert!(answer.status < 500, "{}", answer.text());
    }
    workspace.ok("touch /stop");
    swapping.ended();
    assert_eq!(fs::read_to_string(&secret).expect("there"), "canary");
}

// G-02: a directory that is swapped for a link while its tree is removed, read and closed
#[test]
fn swapping_a_directory_for_a_link_while_it_is_removed() {
    let naive = Scratch::new();
    naive.file("keep/precious", "x");
    std::os::unix::fs::symlink(naive.join("keep"), naive.join("tree")).expect("a link");
    // What was a directory a moment ago is a link when a removal by name goes into it.
    for file in fs::read_dir(naive.join("tree")).expect("followed") {
        fs::remove_file(file.expect("listed").path()).expect("removed");
    }
    assert!(!naive.join("keep/precious").exists());

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkdir /keep; for n in $(seq 200); do echo $n > /keep/$n; done");
    let swap = "
import os, sys
while not os.path.exists('/stop'):
    try:
        os.rename('/tree/x', '/tree/y'); os.symlink('/keep', '/tree/x')
        os.unlink('/tree/x'); os.rename('/tree/y', '/tree/x')
    except OSError: pass
    try: os.mkdir('/tree/x')
    except OSError: pass
";
    workspace.write_file("/swap.py", swap.as_bytes());
    workspace.ok("mkdir -p /tree/x; (/usr/bin/python3 /swap.py > /dev/null 2>&1 &)");
    for _ in 0..50 {
        workspace
            .ok("mkdir -p /tree/x 2> /dev/null; touch /tree/x/a /tree/x/b 2> /dev/null || true");
        let answer = workspace.on_file("DELETE", "/tree", "?recursive=true", b"");
        assert!(answer.status < 500, "{}", answer.text());
        let answer = workspace.on_file("GET", "/tree", "?archive=tar", b"");
        assert!(answer.status < 500, "{}", answer.text());
        let mode = json!({ "chmod": { "mode": "0755", "recursive": true } });
        let answer = change(&workspace, "/tree", &mode);
        assert!(answer.status < 500, "{}", answer.text());
    }
    workspace.ok("touch /stop");
    // What the shell put there through the link is its own doing.
    assert_eq!(workspace.ok("ls /keep | grep -vc '[ab]'"), "200\n");
    assert_eq!(
        workspace.ok("find /keep -name '[0-9]*' -perm 755 | wc -l"),
        "0\n"
    );
}

// --- what is no file ---

// G-03: pipes, sockets, devices and files of /proc in the place of files
#[test]
fn reading_what_is_no_regular_file() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkfifo /fifo; ln -s /fifo /to-fifo; mkdir /dir
         /usr/bin/python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/socket\")'");
    // Who opens a pipe the ordinary way waits for its other end.
    assert_eq!(workspace.sh("timeout 1 cat /fifo").exit_code, 124);
    assert_eq!(
        workspace.sh("timeout 1 sh -c 'echo x > /fifo'").exit_code,
        124
    );
    for path in [
        "/fifo",
        "/to-fifo",
        "/socket",
        "/dev/zero",
        "/dev/null",
        "/dev/tty",
        "/proc/kmsg",
        "/proc/1/mem",
        "/proc/self/status",
        "/proc",
        "/sys",
    ] {
        for answer in [
            get(&workspace, path),
            workspace.on_file("GET", path, "?archive=tar", b""),
        ] {
            problem(answer, 422, "not-regular", path);
        }
        let written = put(&workspace, path, b"x");
        let word = written.json()["type"].as_str().expect("a type").to_owned();
        assert!(written.status == 422, "{path}: {}", written.text());
        assert!(
            word.ends_with("not-regular") || word.ends_with("not-a-file"),
            "{path}: {word}"
        );
    }
    problem(
        put(&workspace, "/proc/sys/kernel/new", b"x"),
        422,
        "not-regular",
        "/proc/sys/kernel/new",
    );
    problem(put(&workspace, "/dir", b"x"), 422, "not-a-file", "/dir");
    problem(
        get(&workspace, "/etc/passwd/x"),
        422,
        "not-a-directory",
        "/etc/passwd/x",
    );
    for (path, kind) in [
        ("/fifo", "fifo"),
        ("/socket", "socket"),
        ("/dev/null", "char_device"),
        ("/to-fifo", "symlink"),
        ("/dir", "directory"),
    ] {
        assert_eq!(stat(&workspace, path)["type"], kind, "{path}");
    }
    assert_eq!(stat(&workspace, "/to-fifo")["target"], "/fifo");
    let followed = workspace.on_file("GET", "/to-fifo", "?stat=true", b"");
    assert_eq!(followed.expect(200).json()["type"], "fifo");
    assert_eq!(
        workspace.ok("stat -c %F /fifo /dev/null"),
        "fifo\ncharacter special file\n"
    );
}

// G-03: the same by read_file and write_file
#[test]
fn reading_what_is_no_regular_file_by_read_file() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok(
        "mkdir /dir; mkfifo /fifo; ln -s loop /loop; echo x > /closed; chmod 0 /closed; touch /empty
         /usr/bin/python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/socket\")'",
    );
    for (path, statuses) in [
        ("/missing", &[404][..]),
        ("/missing/file", &[404]),
        ("/empty/file", &[404, 422]),
        ("/dir", &[422]),
        ("/fifo", &[422]),
        ("/socket", &[422]),
        ("/loop", &[422, 404]),
        ("/dev/zero", &[422, 403]),
        ("/dev/tty", &[422, 403]),
        ("/proc/1/mem", &[422, 403]),
        ("/proc/kmsg", &[422, 403]),
        ("", &[400, 404, 422]),
    ] {
        let answer = workspace.post("read_file", &json!({ "path": path }));
        let status = answer.status;
        assert!(
            statuses.contains(&status),
            "{path}: {status} {}",
            answer.text()
        );
        let problem = answer.problem(status);
        assert!(
            problem["detail"]
                .as_str()
                .unwrap_or_default()
                .contains(path),
            "{problem}"
        );
    }
    assert_eq!(workspace.read_file("/empty"), b"");
    for path in [
        "/dir",
        "/fifo",
        "/dev/null",
        "/proc/self/comm",
        "/sys/x",
        "/empty/file",
    ] {
        let body = json!({ "path": path, "content": "eHh4" });
        let answer = workspace.post("write_file", &body);
        assert!(
            (400..500).contains(&answer.status),
            "{path}: {}",
            answer.text()
        );
    }
    assert_eq!(workspace.ok("stat -c %F /dir /fifo"), "directory\nfifo\n");
}

// G-04: a file of a terabyte that takes no room
#[test]
fn reading_a_sparse_terabyte() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok(
        "mkdir /d && printf start > /d/huge && truncate -s 1T /d/huge && printf end >> /d/huge",
    );
    // As such it is more than anybody can take.
    assert_eq!(workspace.ok("stat -c %s /d/huge"), "1099511627779\n");
    let end = [("range", "bytes=-5")];
    let read = workspace
        .api()
        .send("GET", &workspace.file("/d/huge"), &end, b"");
    assert_eq!(read.expect(206).body, b"\0\0end");
    let archive = workspace
        .on_file("GET", "/d", "?archive=tar", b"")
        .expect(200);
    assert!(archive.body.len() < 1 << 20, "{} bytes", archive.body.len());
    change(
        &workspace,
        "/d/huge",
        &json!({ "copy": { "to": "/d/copy" } }),
    )
    .expect(200);
    assert_eq!(
        workspace.ok("stat -c %s /d/copy; tail -c 3 /d/copy; head -c 5 /d/copy"),
        "1099511627779\nendstart"
    );
    assert_eq!(
        workspace.ok("test $(stat -c %b /d/copy) -lt 1000 && echo small"),
        "small\n"
    );
    // Unpacked it is as long as an archive may make a file, or longer: the unpacker says so.
    let unpacked = workspace
        .on_file("PUT", "/e", "?archive=tar", &archive.body)
        .problem(422);
    assert!(
        unpacked["detail"]
            .as_str()
            .expect("a text")
            .contains("limit"),
        "{unpacked}"
    );
}

// G-04: a file that grows while it is read
#[test]
fn reading_a_file_that_grows() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace
        .ok("(while :; do head -c 100000 /dev/zero; done > /grows) & echo $! > /pid; sleep 0.2");
    let read = get(&workspace, "/grows").expect(200);
    assert_eq!(read.headers["content-length"], read.body.len().to_string());
    workspace
        .on_file("GET", "/grows", "?archive=tar.zst", b"")
        .expect(200);
    workspace.ok("kill $(cat /pid)");
}

/// Leaves a word wherever it is loaded.
const TRAP: &str = "#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void spring(void) {
    char name[64];
    snprintf(name, sizeof name, \"%s/sprung.%d\", PLACE, getpid());
    close(open(name, O_CREAT | O_WRONLY, 0666));
}
";

// G-05: libraries of the workspace's, for whatever works on its files to load
#[test]
fn planting_libraries_for_derrick_to_load() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.write_file("/trap.c", TRAP.as_bytes());
    workspace.ok("mkdir -m 777 /sprung
        cc -shared -fPIC -DPLACE='\"/sprung\"' -o /trap.so /trap.c
        echo 'hosts: trap
passwd: trap files' > /etc/nsswitch.conf; cp /trap.so /etc/libnss_trap.so.2
        echo /trap.so > /etc/ld.so.preload");
    let sprung = |workspace: &Workspace| {
        // With the shell's own words alone, which load nothing.
        let names = workspace
            .on_file("GET", "/sprung", "", b"")
            .expect(200)
            .json();
        names["entries"].as_array().expect("a list").len()
    };
    let before = sprung(&workspace);
    // A program of the workspace's own loads it.
    workspace.ok("/bin/true");
    let loaded = sprung(&workspace);
    assert!(loaded > before, "the trap does not work");

    workspace.write_file("/file", b"content");
    assert_eq!(workspace.read_file("/file"), b"content");
    workspace
        .on_file("GET", "/etc", "?archive=tar.gz", b"")
        .expect(200);
    let archive = get(&workspace, "/file").expect(200);
    assert_eq!(archive.body, b"content");
    if mode() != Mode::Single {
        workspace
            .on_file("GET", "/file", "?user=daemon", b"")
            .expect(200);
    }
    workspace.on_file("DELETE", "/file", "", b"").expect(200);
    assert_eq!(sprung(&workspace), loaded);
}

// --- archives ---

// G-06: an archive with names and links that lead out of where it is unpacked
#[test]
fn uploading_an_archive_that_leads_out() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let program = "
import io, tarfile
def archive(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar:
        for name, kind, link, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
F, L, H = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
open('/up.tar', 'wb').write(archive(('../escaped', F, '', b'x')))
open('/link.tar', 'wb').write(archive(('l', L, '/etc', b''), ('l/escaped', F, '', b'x')))
open('/hard.tar', 'wb').write(archive(('h', H, '/etc/passwd', b'')))
";
    workspace.python(program).expect(0);
    // Python's own, unfiltered, follows the link out.
    workspace.ok("mkdir /naive && cd /naive && /usr/bin/python3 -c \"
import tarfile
tar = tarfile.open('/link.tar')
tar.extraction_filter = lambda member, path: member
tar.extractall('.')\" && test -e /etc/escaped && rm /etc/escaped");
    for name in ["/up.tar", "/link.tar", "/hard.tar"] {
        let archive = get(&workspace, name).expect(200).body;
        let answer = workspace.on_file("PUT", "/dest", "?archive=tar", &archive);
        assert!(
            answer.status == 200 || (400..500).contains(&answer.status),
            "{name}: {}",
            answer.text()
        );
        workspace
            .ok("test ! -e /escaped && test ! -e /etc/escaped && test ! /dest/h -ef /etc/passwd");
    }
    for (query, body, word) in [
        ("?archive=tar", &b"no archive at all"[..], "not-possible"),
        ("?archive=tar.gz", b"no archive at all", "not-possible"),
        ("?archive=tar.zst", b"", "not-possible"),
    ] {
        let problem = workspace.on_file("PUT", "/dest", query, body).problem(422);
        assert_eq!(problem["type"], format!("urn:derrick:problem:{word}"));
    }
    problem(
        workspace.on_file("PUT", "/etc/passwd", "?archive=tar", &[0; 1024]),
        422,
        "not-a-directory",
        "",
    );
    workspace
        .on_file("PUT", "/proc", "?archive=tar", &[0; 1024])
        .problem(422);
}

// G-07: a tree whose links lead out and whose pipes never end, to be taken home as an archive
#[test]
fn downloading_an_archive_of_links_and_pipes() {
    let host = Scratch::new();
    let secret = host.file("secret", "canary").display().to_string();
    // Who follows links packs what they lead to, and who opens a pipe waits.
    let naive = format!(
        "cd {0} && mkdir tree && ln -s {secret} tree/link && tar -ch tree | grep -ac canary
         mkfifo tree/pipe; timeout 1 cat tree/pipe; echo $?",
        host.path().display()
    );
    assert_eq!(bare::sh(&naive), "1\n124\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok(&format!(
        "mkdir /tree; cd /tree; ln -s {secret} host; ln -s /etc/passwd own; mkfifo pipe; ln -s pipe to-pipe; ln -s / all
         /usr/bin/python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/tree/socket\")'"
    ));
    let archive = workspace
        .on_file("GET", "/tree", "?archive=tar", b"")
        .expect(200);
    let mut entries = Vec::new();
    for entry in tar::Archive::new(archive.body.as_slice())
        .entries()
        .expect("a tar")
    {
        let entry = entry.expect("an entry");
        assert_eq!(entry.size(), 0);
        let name = entry.path().expect("a name").display().to_string();
        entries.push((name, entry.header().entry_type().is_symlink()));
    }
    entries.sort();
    let links: Vec<&str> = entries
        .iter()
        .filter(|(_, link)| *link)
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(links, ["all", "host", "own", "to-pipe"], "{entries:?}");
}

// G-07: the same tree, copied to the host by derrick cp
#[test]
fn copying_links_setuid_files_and_pipes_to_the_host() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let evil = "mkdir -p evil/sub && cd evil && echo x > tool && chmod 4755 tool
         ln -s /etc/passwd absolute; ln -s ../../.. sub/up; ln -s tool fine; mkfifo fifo";
    workspace.ok(&format!("cd / && {evil}"));
    let home = Scratch::new();
    // tar(1) brings all of it.
    let naive = format!(
        "cd {} && mkdir from to && (cd from && {evil}) && tar -C from -c evil | tar -C to -xp
         readlink to/evil/absolute to/evil/sub/up; stat -c %a to/evil/tool; rm -r from to",
        home.path().display()
    );
    assert_eq!(bare::sh(&naive), "/etc/passwd\n../../..\n4755\n");

    let output = Command::new(binary())
        .args([
            "cp",
            "--server",
            &format!("http://{}", derrick.api.address()),
        ])
        .args([&format!("{}:/evil", workspace.id), "."])
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .expect("cannot start derrick");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("3 entries left out"), "{said}");
    let names = |directory: &Path| {
        let entries = fs::read_dir(directory).expect("it can be listed");
        let mut names: Vec<_> = entries
            .map(|entry| {
                entry
                    .expect("listed")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    };
    let copy = home.join("evil");
    assert_eq!(names(&copy), ["fine", "sub", "tool"]);
    assert_eq!(names(&copy.join("sub")), Vec::<String>::new());
    let tool = fs::metadata(copy.join("tool")).expect("it is there");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&tool) & 0o7777, 0o755);
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(&tool),
        nix::unistd::geteuid().as_raw()
    );
}

// --- names ---

// G-08: names of any bytes
#[test]
fn names_that_are_more_than_names() {
    // A name that is put into a command line is no name.
    let naive = Scratch::new();
    let name = "x;touch made";
    bare::sh(&format!(
        "cd {} && cat {name} 2> /dev/null; true",
        naive.path().display()
    ));
    assert!(naive.join("made").exists());

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let odd: [&[u8]; 8] = [
        b"\xff\xfe",
        b"a\nb",
        b"-rf",
        b"..x",
        b"a b?#%",
        b"\\",
        b"\x01",
        &[b'x'; 255],
    ];
    for name in odd {
        let path = [b"/odd/", name].concat();
        let target = workspace.file(&path);
        workspace
            .api()
            .send(
                "PUT",
                &target,
                &[("content-type", "application/octet-stream")],
                name,
            )
            .expect(201);
        assert_eq!(workspace.api().get(&target).expect(200).body, name);
    }
    assert_eq!(
        workspace.ok("ls /odd | wc -l; ls -b /odd | head -1"),
        "8\n\\001\n"
    );
    let listing = get(&workspace, "/odd").expect(200).json();
    let entry = listing["entries"]
        .as_array()
        .expect("a list")
        .last()
        .expect("an entry");
    assert_eq!(entry["name_base64"], "//4=", "{entry}");
    assert_eq!(entry["path_base64"], "L29kZC///g==", "{entry}");
    let moved = json!({ "move": { "to_base64": "L29kZC//" } });
    let target = workspace.file(b"/odd/\xff\xfe");
    let json = [("content-type", "application/json")];
    let answer = workspace
        .api()
        .send("POST", &target, &json, moved.to_string().as_bytes());
    assert_eq!(answer.expect(200).json()["name_base64"], "/w==");
    let archive = workspace
        .on_file("GET", "/odd", "?archive=tar", b"")
        .expect(200);
    workspace
        .on_file("PUT", "/again", "?archive=tar", &archive.body)
        .expect(200);
    workspace.ok("diff -r /odd /again");
    let long = format!("/{}", "x".repeat(256));
    problem(get(&workspace, &long), 422, "not-possible", "xxx");
}

// G-08: the same by read_file and write_file
#[test]
fn names_that_are_more_than_names_by_read_file() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for name in [
        "/a b",
        "/a\nb",
        "/-rf",
        "/*",
        "/$(touch x)",
        "/é\u{1f600}",
        "/..\\x",
        "/%2e%2e",
    ] {
        workspace.write_file(name, name.as_bytes());
        assert_eq!(workspace.read_file(name), name.as_bytes());
    }
    workspace
        .post(
            "write_file",
            &json!({ "path": format!("/{}", "x".repeat(300)), "content": "" }),
        )
        .problem(422);
}

// G-09: writing to the memory of processes, to devices and to the kernel's files
#[test]
fn writing_to_memory_devices_and_kernel_files() {
    // Who writes to whatever the path names writes there.
    let naive = Scratch::new();
    std::os::unix::fs::symlink("/proc/self/comm", naive.join("file")).expect("a link");
    fs::write(naive.join("file"), "changed").expect("followed");
    assert_eq!(
        fs::read_to_string("/proc/self/comm").expect("there"),
        "changed\n"
    );

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("ln -s /proc/self/mem /memory; ln -s /dev /devices");
    for path in [
        "/proc/1/mem",
        "/proc/self/mem",
        "/proc/self/comm",
        "/proc/self/oom_score_adj",
        "/proc/sys/net/ipv4/ip_forward",
        "/memory",
        "/dev/null",
        "/dev/pts/ptmx",
        "/devices/zero",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/new",
        "/proc/new",
    ] {
        for answer in [
            put(&workspace, path, b"x"),
            workspace.post("write_file", &json!({ "path": path, "content": "eA==" })),
            workspace.on_file("PUT", path, "?archive=tar", &[0; 1024]),
            change(&workspace, path, &json!({ "chmod": { "mode": "0777" } })),
            workspace.on_file("DELETE", path, "?recursive=true", b""),
        ] {
            let may_change = path == "/memory";
            assert!(
                (400..500).contains(&answer.status) || may_change,
                "{path}: {} {}",
                answer.status,
                answer.text()
            );
        }
    }
    assert_eq!(
        workspace.ok("stat -c '%F %a' /dev/null"),
        "character special file 666\n"
    );
}

// G-10: archives that become a thousand times as large
#[test]
fn uploading_compressed_bombs() {
    // Whoever unpacks it gets thousands of times what he got.
    let scratch = Scratch::new();
    let make = format!(
        "cd {} && truncate -s 2G zeros && tar -c zeros | zstd -q > bomb.tar.zst && zstd -dcq bomb.tar.zst | wc -c",
        scratch.path().display()
    );
    let plain: u64 = bare::sh(&make).trim().parse().expect("a number");
    let bomb = fs::read(scratch.join("bomb.tar.zst")).expect("it was made");
    assert!(
        plain > 1000 * bomb.len() as u64,
        "{} became {plain}",
        bomb.len()
    );

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let answer = workspace.on_file("PUT", "/dest", "?archive=tar.zst", &bomb);
    let problem = answer.problem(422);
    let detail = problem["detail"].as_str().expect("a text");
    assert!(detail.contains("limit"), "{detail}");
    // It stopped long before its end.
    let kept: u64 = workspace
        .ok("du -sk /dest 2> /dev/null | cut -f1")
        .trim()
        .parse()
        .unwrap_or(0);
    assert!(kept < 2 << 20, "{kept} KiB");
}

// --- bases ---

// H-01: an archive for a base whose entries lead out of it, directly, by links and by links of links
#[test]
fn a_base_archive_that_leads_out() {
    use tar::EntryType::{Link, Regular, Symlink};
    let out = Scratch::new();
    let target = out.join("escaped");
    let (out, target) = (out.path().to_string_lossy(), target.to_string_lossy());
    let up = "../".repeat(12);
    let canary = "canary";
    let attacks: [(&str, Vec<Vec<u8>>); 5] = [
        (
            "dots",
            vec![entry(Regular, &format!("{up}{}", &target[1..]), "", b"x")],
        ),
        ("absolute", vec![entry(Regular, &target, "", b"x")]),
        (
            "through a link",
            vec![
                entry(Symlink, "way", &out, b""),
                entry(Regular, "way/escaped", "", b"x"),
            ],
        ),
        (
            "through a relative link",
            vec![
                entry(Symlink, "way", &format!("{up}{}", &out[1..]), b""),
                entry(Regular, "way/escaped", "", b"x"),
            ],
        ),
        (
            "hard link out",
            vec![
                entry(Link, "stolen", &format!("{up}etc/hostname"), b""),
                entry(Regular, "stolen", "", canary.as_bytes()),
            ],
        ),
    ];
    let host_name = fs::read("/etc/hostname").ok();
    // Python's own, unfiltered, takes the second of them out; as tar(1) does with -P.
    let naive = Scratch::new();
    let archive = naive.file("naive.tar", [attacks[1].1.concat(), vec![0; 1024]].concat());
    succeed(Command::new("tar").arg("-xPf").arg(archive));
    fs::remove_file(&*target).expect("it was made outside");

    for (attack, entries) in attacks {
        let scratch = Scratch::new();
        let archive = busybox_and(&entries);
        // Refused, or contained: either way nothing is outside.
        if let Err(refusal) = try_create(tarball(&scratch.file("hostile.tar", archive))) {
            assert!(refusal.contains("hostile.tar"), "{attack}: {refusal}");
        }
        assert!(!Path::new(&*target).exists(), "{attack} escaped");
        assert_eq!(fs::read("/etc/hostname").ok(), host_name, "{attack}");
    }
}

// H-02: names that other tools take for whiteouts
#[test]
fn whiteouts_in_a_base_archive() {
    use tar::EntryType::Regular;
    let scratch = Scratch::new();
    let entries = [".wh.bin", "bin/.wh..wh..opq", "etc/.wh.passwd", ".wh..."]
        .map(|name| entry(Regular, name, "", b""));
    let archive = scratch.file("whiteouts.tar", busybox_and(&entries));
    let (_derrick, workspace) = try_create(tarball(&archive)).expect("the names are names");
    assert_eq!(
        workspace.ok("ls -d /bin/sh /.wh.bin /bin/.wh..wh..opq /etc/.wh.passwd"),
        "/.wh.bin\n/bin/.wh..wh..opq\n/bin/sh\n/etc/.wh.passwd\n"
    );
}

/// pax(1): a record for the entry that follows.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let length = rest.len() + 2;
    assert!((10..100).contains(&length), "the length has two digits");
    format!("{length}{rest}")
}

// H-05: device nodes, setuid files and capabilities in a base
#[test]
fn devices_and_privileges_in_a_base_archive() {
    let scratch = Scratch::new();
    let mut disk = tar::Header::new_ustar();
    disk.set_path("disk").expect("the name is short");
    disk.set_entry_type(tar::EntryType::Block);
    disk.set_device_major(8).expect("ustar has devices");
    disk.set_device_minor(0).expect("ustar has devices");
    disk.set_size(0);
    disk.set_mode(0o666);
    disk.set_mtime(0);
    disk.set_uid(0);
    disk.set_gid(0);
    disk.set_cksum();
    let mut setuid = tar::Header::new_ustar();
    setuid.set_path("setuid").expect("the name is short");
    setuid.set_size(0);
    setuid.set_mode(0o6755);
    setuid.set_mtime(0);
    setuid.set_uid(0);
    setuid.set_gid(0);
    setuid.set_cksum();
    // All capabilities, for whoever executes it: vfs_cap_data of revision 2, base64 having no NUL in it.
    let capable = record("SCHILY.xattr.security.capability", "\u{1}\u{1}\u{1}\u{2}");
    let archive = busybox_and(&[
        disk.as_bytes().to_vec(),
        setuid.as_bytes().to_vec(),
        entry(tar::EntryType::XHeader, "pax", "", capable.as_bytes()),
        entry(tar::EntryType::Regular, "capable", "", b""),
    ]);
    let archive = scratch.file("odd.tar", archive);
    if mode() == Mode::Root {
        // As the host's root, tar(1) makes all of it.
        let naive = scratch.join("naive");
        fs::create_dir(&naive).expect("it is the test's own");
        succeed(
            Command::new("tar")
                .arg("-xpf")
                .arg(&archive)
                .arg("-C")
                .arg(&naive),
        );
        let made = bare::sh(&format!(
            "stat -c '%F %a' {0}/disk {0}/setuid",
            naive.display()
        ));
        assert_eq!(made, "block special file 666\nregular empty file 6755\n");
    }
    let (_derrick, workspace) = try_create(tarball(&archive)).expect("odd, and no more");
    workspace.ok("test ! -e /disk");
    // The bit is there, as package managers want it, and counts for nothing: see P4.
    assert_eq!(workspace.ok("stat -c %a /setuid"), "6755\n");
    let flags = workspace.ok("awk '$5 == \"/\" { print $6 }' /proc/self/mountinfo");
    assert!(flags.contains("nosuid"), "{flags}");
    let attributes = Scratch::new();
    drop(attributes);
}

// attributes that steer an overlay, smuggled in by an archive
#[test]
fn steering_an_overlay_by_attributes_of_an_archive() {
    // Where such an attribute lies on a layer, what is below is hidden.
    let naive = Scratch::new();
    naive.file("below/etc/given", "given");
    fs::create_dir_all(naive.join("above/etc")).expect("its own");
    fs::create_dir_all(naive.join("merged")).expect("its own");
    let line = format!(
        "cd {} && setfattr -n user.overlay.opaque -v y above/etc
         mount -t overlay -o userxattr,lowerdir=above:below none merged && ls merged/etc",
        naive.path().display()
    );
    let mut bare = bare::namespaces(&["mount"]);
    assert_eq!(succeed(bare.args(["sh", "-c", &line])), "");

    let scratch = Scratch::new();
    let attributes = record("SCHILY.xattr.trusted.overlay.opaque", "y")
        + &record("SCHILY.xattr.user.overlay.opaque", "y")
        + &record("SCHILY.xattr.user.overlay.redirect", "/bin")
        + &record("SCHILY.xattr.user.kept", "y");
    // Onto a directory that the layer below it, the skeleton, has things in.
    let archive = busybox_and(&[
        entry(tar::EntryType::XHeader, "pax", "", attributes.as_bytes()),
        entry(tar::EntryType::Directory, "etc/", "", b""),
    ]);
    let archive = scratch.file("steering.tar", archive);
    let plain = scratch.file("plain.tar", busybox_and(&[]));
    let names = |archive: &Path| {
        let (_derrick, workspace) = try_create(tarball(archive)).expect("it is a base");
        workspace.ok("ls -A /etc; ls /")
    };
    let expected = names(&plain);
    assert!(expected.contains("hosts"), "{expected}");
    assert_eq!(names(&archive), expected);
}

// --- accounts ---

// a user whose number wraps round to that of root
#[test]
fn a_uid_that_wraps_round_to_root() {
    // To whoever reads it as C does, it is root's.
    let naive = "import ctypes; print(ctypes.c_uint32(ctypes.CDLL(None).strtoul(b'4294967296', None, 10)).value)";
    assert_eq!(bare::python(naive), "0\n");
    let derrick = provider("eve", "echo 'eve:x:4294967296:0::/:/bin/sh' >> /etc/passwd");
    assert_eq!(
        refusal(&derrick),
        "the uid or gid of user 'eve' in the workspace's /etc/passwd is no number below 65536"
    );
}

// a list of users that is a pipe
#[test]
fn a_passwd_that_is_a_pipe() {
    // Who opens it the ordinary way waits for a writer that never comes.
    let attack = "rm /etc/passwd && mkfifo /etc/passwd\n\
                  timeout 1 cat /etc/passwd; test $? = 124";
    let detail = "user 'ada' cannot be looked up: the workspace's /etc/passwd or /etc/group is no regular file";
    assert_eq!(refusal(&provider("ada", attack)), detail);
}

// a list of users of a terabyte
#[test]
fn a_passwd_of_a_terabyte() {
    let attack = format!("{ADA}truncate --size 1T /etc/passwd");
    let detail =
        "user 'ada' cannot be looked up: the workspace's /etc/passwd or /etc/group is over 1 MiB";
    assert_eq!(refusal(&provider("ada", &attack)), detail);
}

// --- what leaves a workspace as text ---

// I-12: names and output that write to the terminal of whoever looks at them
#[test]
fn writing_to_the_terminal_of_whoever_lists_files() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let name = "\u{1b}]0;owned\u{7}\u{9b}31m\nline";
    workspace.ok("mkdir /evil");
    workspace.write_file(&format!("/evil/{name}"), b"x");
    // ls(1) into a pipe gives it as it is.
    assert!(workspace.ok("ls /evil").contains('\u{1b}'));
    let client = |arguments: &[&str]| {
        let output = Command::new(binary())
            .arg(arguments[0])
            .args(["--server", &format!("http://{}", derrick.api.address())])
            .args(&arguments[1..])
            .stdin(Stdio::null())
            .output()
            .expect("cannot start derrick");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let place = format!("{}:/evil", workspace.id);
    let missing = format!("{place}/{name}/none");
    for said in [
        client(&["ls", &place]),
        client(&["ls", "-q", &place]),
        client(&["ls", "--json", &place]),
        client(&["ls", &missing]),
    ] {
        assert!(said.contains("owned"), "{said:?}");
        assert!(!said.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{said:?}");
    }
    // In the log of the provider it is text as well.
    workspace.on_file("GET", &format!("/evil/{name}/none"), "", b"");
    assert!(!derrick.printed().contains(['\u{1b}', '\u{7}']));
}

/// Config files as derrick's own are, and those of programs that it uses.
const CONFIGS: &[&str] = &[
    "derrick.json",
    "config.json",
    ".derrick/config.json",
    ".config/derrick/config.json",
];

// I-11: a config of derrick's in the workspace
#[test]
fn leaving_a_config_for_derrick() {
    let scratch = Scratch::new();
    let mark = scratch.join("mark").display().to_string();
    let evil = json!({
        "name": "evil", "network": "host",
        "setup_script": format!("touch {mark}"),
        "base": { "type": "host", "include": [scratch.path()] },
    })
    .to_string();
    let mut derrick = Derrick::start(json!({ "name": "test", "workdir": "/code" }));
    let workspace = derrick.create();
    for place in ["/code", "/root", "/etc", "/"] {
        for name in CONFIGS {
            workspace.write_file(&format!("{place}/{name}"), evil.as_bytes());
        }
    }
    derrick.restart();
    let workspace = derrick.api.workspace(&workspace.id);
    for workspace in [&workspace, &derrick.create()] {
        assert_eq!(workspace.ok("tail -n +2 /proc/net/route; pwd"), "/code\n");
        let named = workspace.ok("hostname");
        assert!(named.contains("test"), "{named}");
    }
    assert!(!Path::new(&mark).exists());
}
