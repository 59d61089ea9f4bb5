//! Files over the API: every path leads to the workspace's own files, and whatever is there, no request
//! hangs, none grows without bound and none does half of what it says.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Answer, Derrick, GUARD, Mode, Workspace, descendants, mode, problem};

fn get(workspace: &Workspace, path: &str) -> Answer {
    workspace.on_file("GET", path, "", b"")
}

fn put(workspace: &Workspace, path: &str, content: &[u8]) -> Answer {
    workspace.on_file("PUT", path, "", content)
}

fn change(workspace: &Workspace, path: &str, body: &Value) -> Answer {
    workspace.on_file("POST", path, "", body.to_string().as_bytes())
}

/// The names that a listing has, in its order.
fn names(listing: &Value) -> Vec<String> {
    let entries = listing["entries"].as_array().expect("a list");
    let name = |entry: &Value| entry["name"].as_str().expect("a name").to_owned();
    entries.iter().map(name).collect()
}

#[test]
fn a_file_is_put_read_described_and_removed() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let made = put(&workspace, "/new/directory/file", b"content").expect(201);
    let entry = made.json();
    for (field, value) in [
        ("path", json!("/new/directory/file")),
        ("name", json!("file")),
        ("type", json!("file")),
        ("size", json!(7)),
        ("mode", json!("0644")),
        ("uid", json!(0)),
        ("gid", json!(0)),
    ] {
        assert_eq!(entry[field], value, "{entry}");
    }
    put(&workspace, "/new/directory/file", b"longer content").expect(200);
    let read = get(&workspace, "/new/directory/file").expect(200);
    assert_eq!(read.body, b"longer content");
    assert_eq!(read.headers["derrick-file-mode"], "0644");
    assert_eq!(read.headers["derrick-file-uid"], "0");
    assert_eq!(read.headers["content-length"], "14");
    let part = [("range", "bytes=7-9")];
    let target = workspace.file("/new/directory/file");
    let read = workspace.api().send("GET", &target, &part, b"").expect(206);
    assert_eq!(
        (read.text().as_str(), &read.headers["content-range"]),
        ("con", &"bytes 7-9/14".parse().unwrap())
    );
    let head = workspace.on_file("HEAD", "/new/directory/file", "", b"");
    assert_eq!(head.expect(200).headers["content-length"], "14");
    assert_eq!(workspace.ok("cat /new/directory/file"), "longer content");

    let gone = workspace.on_file("DELETE", "/new/directory/file", "", b"");
    assert_eq!(gone.expect(200).json(), json!({}));
    problem(
        get(&workspace, "/new/directory/file"),
        404,
        "no-such-file",
        "/new/directory/file",
    );
    let again = workspace.on_file("DELETE", "/new/directory/file", "", b"");
    problem(again, 404, "no-such-file", "/new/directory/file");
    let parent = workspace.on_file("PUT", "/nowhere/file", "?parents=false", b"");
    problem(parent, 404, "no-such-file", "/nowhere/file");
    workspace.ok("test ! -e /nowhere");
}

#[test]
fn what_is_replaced_keeps_its_mode_and_owner() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("echo old > /file; chmod 4751 /file; ln -s file /link; ln -s nothing /dangling");
    if mode() != Mode::Single {
        workspace.ok("chown 7:8 /file; chmod 4751 /file");
    }
    put(&workspace, "/link", b"new").expect(200);
    let expected = match mode() {
        Mode::Single => "0 0 4751 new",
        _ => "7 8 4751 new",
    };
    assert_eq!(
        workspace.ok("stat -c '%u %g %a' /file | tr '\\n' ' '; cat /file"),
        expected
    );
    let asked = workspace
        .on_file("PUT", "/file", "?mode=0600", b"newer")
        .expect(200);
    assert_eq!(asked.json()["mode"], "0600");
    put(&workspace, "/dangling", b"made").expect(201);
    assert_eq!(
        workspace.ok("cat /nothing; readlink /dangling /link"),
        "madenothing\nfile\n"
    );
    let made = workspace
        .on_file("PUT", "/mode", "?mode=1777", b"")
        .expect(201);
    assert_eq!(made.json()["mode"], "1777");
    assert_eq!(workspace.ok("ls -A / | grep -c derrick || true"), "0\n");
}

#[test]
fn a_directory_is_listed_by_name_a_page_at_a_time() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkdir /d /empty; cd /d; touch c a b; mkdir e; ln -s nowhere d");
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let page = workspace.on_file("GET", "/d", &format!("?limit=2{after}"), b"");
        let page = page.expect(200).json();
        seen.extend(names(&page));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
        // Neither what goes nor what comes before is seen twice or hides what was there.
        workspace.ok("rm -f /d/b; touch /d/0");
    }
    assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    let listing = get(&workspace, "/d").expect(200).json();
    assert_eq!(listing["entries"][3]["type"], "symlink");
    assert_eq!(listing["entries"][3]["target"], "nowhere");
    assert_eq!(listing["entries"][3]["path"], "/d/d");
    assert_eq!(
        get(&workspace, "/empty").expect(200).json(),
        json!({ "entries": [] })
    );
    let root = get(&workspace, "/").expect(200).json();
    assert!(names(&root).contains(&"proc".to_owned()), "{root}");
    assert_eq!(
        root["entries"][0]["path"],
        format!("/{}", root["entries"][0]["name"].as_str().unwrap())
    );
}

#[test]
fn a_directory_of_a_hundred_thousand_is_listed_in_small_pages() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkdir /many && cd /many && seq -f %06.0f 100000 | xargs touch");
    let before = resident(derrick.pid());
    let page = workspace
        .on_file("GET", "/many", "?limit=10000", b"")
        .expect(200)
        .json();
    assert_eq!(names(&page).len(), 10_000);
    assert_eq!(names(&page)[9_999], "010000");
    let grown = resident(derrick.pid()).saturating_sub(before);
    assert!(grown < 64 << 10, "the provider grew by {grown} KiB");
    let deleted = workspace.on_file("DELETE", "/many", "", b"");
    problem(deleted, 409, "directory-not-empty", "/many");
    workspace
        .on_file("DELETE", "/many", "?recursive=true", b"")
        .expect(200);
    workspace.ok("test ! -e /many");
}

/// KiB of memory that a process has.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("a line");
    line.split_whitespace()
        .nth(1)
        .and_then(|size| size.parse().ok())
        .expect("a number")
}

#[test]
fn directories_are_made_moved_copied_and_closed() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let made = change(&workspace, "/a/b", &json!({ "mkdir": { "mode": "0711" } }));
    assert_eq!(made.expect(200).json()["mode"], "0711");
    change(&workspace, "/a/b", &json!({ "mkdir": {} })).expect(200);
    let there = change(
        &workspace,
        "/a/b",
        &json!({ "mkdir": { "parents": false } }),
    );
    problem(there, 409, "exists", "/a/b");
    let nowhere = change(
        &workspace,
        "/x/y",
        &json!({ "mkdir": { "parents": false } }),
    );
    problem(nowhere, 404, "no-such-file", "/x/y");
    workspace.ok("cd /a/b; echo 1 > f; ln -s f l; mkfifo p; mkdir s; echo 2 > s/g; chmod 600 f; touch -d @5 f");
    let copied = change(&workspace, "/a", &json!({ "copy": { "to": "/c" } }));
    assert_eq!(copied.expect(200).json()["path"], "/c");
    assert_eq!(
        workspace
            .ok("cd /c/b; cat f s/g; readlink l; stat -c '%F %a %Y' f p . | head -1; test -p p"),
        "1\n2\nf\nregular file 600 5\n"
    );
    let onto = change(&workspace, "/a", &json!({ "copy": { "to": "/c" } }));
    problem(onto, 409, "exists", "/c");
    let into_itself = change(
        &workspace,
        "/a",
        &json!({ "copy": { "to": "/a/b/inside" } }),
    );
    problem(into_itself, 422, "not-possible", "/a");
    // The root directory goes nowhere, and nothing of it is copied before that is noticed.
    let root = workspace.api().raw(
        format!(
            "POST /workspaces/{}/files/%2e HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: 24\r\n\r\n{{\"copy\":{{\"to\":\"/root2\"}}}}",
            workspace.id,
            derrick.api.address()
        )
        .as_bytes(),
    );
    assert!(root.starts_with("HTTP/1.1 422"), "{root}");
    assert_eq!(
        workspace.ok("ls -A /a/b | wc -l; ls -A / | grep -c derrick || true"),
        "4\n0\n"
    );
    let moved = change(&workspace, "/c/b/f", &json!({ "move": { "to": "/f" } }));
    assert_eq!(moved.expect(200).json()["size"], 2);
    let onto = change(&workspace, "/f", &json!({ "move": { "to": "/a" } }));
    problem(onto, 409, "exists", "/a");
    let gone = change(&workspace, "/c/b/f", &json!({ "move": { "to": "/g" } }));
    problem(gone, 404, "no-such-file", "/c/b/f");
    // From another filesystem, where the kernel cannot rename.
    workspace.ok("mkdir /dev/shm/t; echo 3 > /dev/shm/t/h");
    change(&workspace, "/dev/shm/t", &json!({ "move": { "to": "/t" } })).expect(200);
    assert_eq!(workspace.ok("cat /t/h; test ! -e /dev/shm/t"), "3\n");

    change(
        &workspace,
        "/a",
        &json!({ "chmod": { "mode": "0700", "recursive": true } }),
    )
    .expect(200);
    assert_eq!(
        workspace.ok("find /a ! -type l ! -perm 700; stat -c %a /a/b/s/g"),
        "700\n"
    );
    workspace
        .on_file("DELETE", "/", "?recursive=true", b"")
        .problem(405);
    for path in ["/usr/..", "/a/."] {
        // Not as a client would send it, which resolves these itself.
        let path = path.replace('.', "%2e");
        let answer = derrick.api.raw(
            format!(
                "DELETE /workspaces/{}/files{path}?recursive=true HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                workspace.id,
                derrick.api.address()
            )
            .as_bytes(),
        );
        assert!(answer.starts_with("HTTP/1.1 422"), "{answer}");
    }
    workspace.ok("test -e /usr/bin/env");
}

#[test]
fn a_directory_of_the_base_is_moved_whatever_the_mode() {
    let derrick = Derrick::start(json!({
        "name": "files", "setup_script": "mkdir -p /srv/d/e && echo 1 > /srv/d/e/f",
    }));
    let workspace = derrick.create();
    change(&workspace, "/srv/d", &json!({ "move": { "to": "/srv/m" } })).expect(200);
    assert_eq!(workspace.ok("cat /srv/m/e/f; ls /srv"), "1\nm\n");
}

#[test]
fn a_change_is_one_of_four_and_its_refusal_names_them() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for body in [
        "{}",
        r#"{"mkdir":{},"move":{"to":"/x"}}"#,
        r#""mkdir""#,
        r#"{"mkdir":null}"#,
    ] {
        let refused = workspace.on_file("POST", "/other", "", body.as_bytes());
        problem(
            refused,
            400,
            "invalid-request",
            "mkdir, move, copy and chmod",
        );
    }
    get(&workspace, "/other").problem(404);
}

#[test]
fn files_are_touched_as_the_user_who_was_asked_for() {
    let derrick = Derrick::start(json!({
        "name": "files",
        "setup_script": "echo 'ada:x:1000:1000::/home/ada:/bin/sh' >> /etc/passwd; mkdir -m 777 /open
                         echo secret > /closed; chmod 600 /closed; echo theirs > /open/theirs",
    }));
    let workspace = derrick.create();
    let as_ada =
        |method: &str, path: &str, body: &[u8]| workspace.on_file(method, path, "?user=ada", body);
    if mode() == Mode::Single {
        let problem = as_ada("GET", "/closed", b"").problem(422);
        let detail =
            "user 'ada' (uid 1000) cannot be used: only uid 0 is mapped in this identity mode";
        assert_eq!(problem["detail"], detail);
        return;
    }
    problem(
        as_ada("GET", "/closed", b""),
        403,
        "permission-denied",
        "/closed",
    );
    problem(
        as_ada("PUT", "/new", b"x"),
        403,
        "permission-denied",
        "/new",
    );
    // Its directory would let it be replaced, but it is not hers to write.
    problem(
        as_ada("PUT", "/open/theirs", b"x"),
        403,
        "permission-denied",
        "/open/theirs",
    );
    let made = as_ada("PUT", "/open/mine", b"x").expect(201).json();
    assert_eq!((&made["uid"], &made["gid"]), (&json!(1000), &json!(1000)));
    workspace
        .on_file("PUT", "/open/numbered", "?user=4711", b"x")
        .expect(201);
    assert_eq!(workspace.ok("stat -c %u /open/numbered"), "4711\n");
    problem(
        as_ada("DELETE", "/closed", b""),
        403,
        "permission-denied",
        "/closed",
    );
    let archive = workspace.on_file("GET", "/closed", "?archive=tar&user=ada", b"");
    problem(archive, 403, "permission-denied", "/closed");
    let unknown = workspace
        .on_file("GET", "/open", "?user=eve", b"")
        .problem(422);
    assert_eq!(unknown["detail"], "there is no user 'eve' in the workspace");
    for odd in ["?user=", "?user=a%3Ab", "?user=99999", "?user=-1"] {
        workspace.on_file("GET", "/open", odd, b"").problem(422);
    }
}

#[test]
fn a_tree_goes_out_and_comes_back_the_same() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok(
        "mkdir -p /t/sub/empty; cd /t; head -c 300000 /dev/urandom > random; echo 1 > a; ln a hard
         ln -s ../x//./y link; ln -s $(printf %0200d 1) longlink; mkfifo pipe; chmod 4711 a; chmod 1777 sub
         mkdir -p $(printf 'd%.0s' $(seq 120))/$(printf 'e%.0s' $(seq 120)); echo 2 > d*/e*/deep
         truncate -s 5000000 sparse; printf x | dd of=sparse bs=1 seek=2500000 conv=notrunc 2> /dev/null
         /usr/bin/python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/t/socket\")'
         touch -d @1000000000 a sub random",
    );
    let print = "find . ! -type s ! -type p -printf '%P %y %m %U %G %s %l %n\\n' | grep -v '^ ' | sed 's/\\( d [0-9]* [0-9]* [0-9]*\\) .*/\\1/' | sort";
    let expected = workspace.ok(&format!("cd /t; {print}; cat random sparse | cksum"));
    for format in ["tar", "tar.gz", "tar.zst"] {
        let archive = workspace
            .on_file("GET", "/t", &format!("?archive={format}"), b"")
            .expect(200);
        let query = format!("?archive={format}");
        let done = workspace
            .on_file("PUT", "/back/again", &query, &archive.body)
            .expect(200)
            .json();
        assert!(done["entries"].as_u64().expect("a number") > 9, "{done}");
        let left_out = json!({ "count": 1, "names": ["pipe"] });
        assert_eq!(done["left_out"], left_out);
        let found = workspace.ok(&format!(
            "cd /back/again; {print}; cat random sparse | cksum"
        ));
        assert_eq!(found, expected, "{format}");
        assert_eq!(
            workspace.ok("cd /back/again; stat -c %Y a random; test a -ef hard"),
            "1000000000\n1000000000\n"
        );
        assert_eq!(
            workspace.ok("test $(stat -c %b /back/again/sparse) -lt 100 && echo sparse"),
            "sparse\n"
        );
        workspace
            .on_file("DELETE", "/back", "?recursive=true", b"")
            .expect(200);
    }
    // What other programs make of it, and theirs of ours.
    let archive = workspace
        .on_file("GET", "/t", "?archive=tar.gz", b"")
        .expect(200);
    put(&workspace, "/out.tar.gz", &archive.body).expect(201);
    workspace.ok("mkdir /gnu && tar -xpzf /out.tar.gz -C /gnu");
    assert_eq!(
        workspace.ok(&format!("cd /gnu; {print}; cat random sparse | cksum")),
        expected
    );
    let one = workspace
        .on_file("GET", "/t/a", "?archive=tar", b"")
        .expect(200);
    put(&workspace, "/one.tar", &one.body).expect(201);
    assert_eq!(workspace.ok("tar -tf /one.tar"), "a\n");
}

#[test]
fn what_an_archive_does_not_bring_is_told() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.python("
import tarfile
with tarfile.open('/odd.tar', 'w') as tar:
    for name, kind, uid in [('disk', tarfile.BLKTYPE, 0), ('pipe', tarfile.FIFOTYPE, 0), ('theirs', tarfile.REGTYPE, 99999999), ('ours', tarfile.REGTYPE, 0)]:
        info = tarfile.TarInfo(name)
        info.type, info.uid = kind, uid
        tar.addfile(info)
").expect(0);
    let archive = get(&workspace, "/odd.tar").expect(200).body;
    let done = workspace
        .on_file("PUT", "/dest", "?archive=tar", &archive)
        .expect(200)
        .json();
    assert_eq!(
        done,
        json!({
            "entries": 2,
            "bytes": 0,
            "left_out": { "count": 2, "names": ["disk", "pipe"] },
            "owners_changed": { "count": 1, "names": ["theirs"] },
        })
    );
    assert_eq!(
        workspace.ok("cd /dest; stat -c '%n %u' *"),
        "ours 0\ntheirs 0\n"
    );
    // What cannot be both is refused, and nothing is done.
    for query in ["?archive=tar&mode=0600", "?archive=tar&parents=false"] {
        problem(
            workspace.on_file("PUT", "/other", query, &archive),
            400,
            "invalid-request",
            "",
        );
    }
    problem(
        workspace.on_file("GET", "/dest", "?stat=true&archive=tar", b""),
        400,
        "invalid-request",
        "",
    );
    get(&workspace, "/other").problem(404);
}

#[test]
fn a_tree_deeper_than_any_path_is_removed() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let program = "
import os
os.mkdir('/deep'); os.chdir('/deep')
for n in range(5000):
    os.mkdir('d'); os.chdir('d')
open('end', 'w')
os.mkdir('/deep/closed', 0); os.mkdir('/deep/new\\nline')
";
    workspace.python(program).expect(0);
    // An archive of it breaks off, and does not look whole.
    let mut stream = ask(
        &derrick,
        &format!("GET {}?archive=tar", workspace.file("/deep")),
        0,
    );
    let mut archive = Vec::new();
    stream.read_to_end(&mut archive).expect("it ends");
    assert!(!archive.ends_with(b"0\r\n\r\n"));
    workspace
        .on_file("DELETE", "/deep", "?recursive=true", b"")
        .expect(200);
    workspace.ok("test ! -e /deep");
}

#[test]
fn a_client_that_goes_away_leaves_the_old_file_and_nothing_else() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    put(&workspace, "/d/file", b"old").expect(201);
    let mut stream = ask(
        &derrick,
        &format!("PUT {}", workspace.file("/d/file")),
        100_000_000,
    );
    stream.write_all(&[b'x'; 5_000_000]).expect("derrick reads");
    wait_until(|| workers(&derrick) > 0);
    drop(stream);
    wait_until(|| workers(&derrick) == 0);
    assert_eq!(get(&workspace, "/d/file").expect(200).body, b"old");
    assert_eq!(workspace.ok("ls -A /d"), "file\n");
}

#[test]
fn a_client_that_goes_away_ends_the_archive_it_asked_for() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkdir /d; truncate -s 100M /d/a; head -c 100000000 /dev/urandom > /d/b");
    let mut stream = ask(
        &derrick,
        &format!("GET {}?archive=tar", workspace.file("/d")),
        0,
    );
    stream.read_exact(&mut [0; 1000]).expect("derrick answers");
    assert!(workers(&derrick) > 0);
    drop(stream);
    wait_until(|| workers(&derrick) == 0);
}

#[test]
fn a_process_for_files_that_is_killed_or_stopped_inside_fails_its_request_alone() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok("mkdir /d; head -c 200000000 /dev/urandom > /d/b");
    for signal in ["KILL", "STOP"] {
        let mut stream = ask(
            &derrick,
            &format!("GET {}?archive=tar", workspace.file("/d")),
            0,
        );
        stream.read_exact(&mut [0; 1000]).expect("derrick answers");
        assert!(workers(&derrick) > 0);
        // The shell that sends the signal, and nothing else, is spared.
        workspace.ok(&format!("kill -{signal} -1 || true"));
        if signal == "KILL" {
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).expect("the connection ends");
            assert!(rest.len() < 200_000_000, "it looked whole");
            assert!(!rest.ends_with(b"0\r\n\r\n"));
        }
        drop(stream);
        wait_until(|| workers(&derrick) == 0);
    }
    put(&workspace, "/still", b"works").expect(201);
}

#[test]
fn a_request_whose_process_is_stopped_inside_is_answered_and_not_held_for_ever() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let mut stream = ask(&derrick, &format!("PUT {}", workspace.file("/f")), 2);
    stream.write_all(b"a").expect("derrick reads");
    wait_until(|| workers(&derrick) == 1);
    workspace.ok("kill -STOP -1 || true");
    stream.write_all(b"b").expect("derrick reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("derrick answers");
    assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
    assert!(answer.contains("did nothing for 30s"), "{answer}");
    wait_until(|| workers(&derrick) == 0);
    workspace.on_file("GET", "/f", "", b"").problem(404);
}

/// Sends the head of a request, whose body of so many bytes the caller may send or not.
fn ask(derrick: &Derrick, request: &str, body: usize) -> TcpStream {
    let address = derrick.api.address();
    let mut stream = TcpStream::connect(address).expect("derrick listens");
    stream
        .set_read_timeout(Some(GUARD))
        .expect("a socket takes a timeout");
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/octet-stream\r\nContent-Length: {body}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("derrick reads");
    stream
}

/// Processes below the provider that work on files.
fn workers(derrick: &Derrick) -> usize {
    let name = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let processes = descendants(derrick.pid()).into_iter();
    processes
        .filter(|pid| name(*pid) == "derrick-files\n")
        .count()
}

/// Waits for something that no descriptor tells of.
fn wait_until(condition: impl Fn() -> bool) {
    let until = Instant::now() + GUARD;
    while !condition() {
        assert!(Instant::now() < until, "it does not come about");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
