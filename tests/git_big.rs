//! A big repository is had from its upstream once; what comes later costs what changed, not what is there.

mod support;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use support::{Derrick, GitServer, as_owner, succeed};

const FILES: u64 = 100_000;
const COMMITS: u64 = 20_000;

/// What git-fast-import(1) makes a branch of [`FILES`] files with [`COMMITS`] further commits of.
fn history() -> String {
    let mut stream = String::new();
    let mut commit = |parent: Option<&str>, changes: &dyn Fn(&mut String)| {
        let who = "committer Ada <ada@example.org> 1700000000 +0000\ndata 7\nchange\n";
        write!(stream, "commit refs/heads/main\n{who}").expect("it is text");
        if let Some(parent) = parent {
            writeln!(stream, "from {parent}").expect("it is text");
        }
        changes(&mut stream);
        stream.push('\n');
    };
    let file = |number: u64, content: u64, stream: &mut String| {
        let content = format!("content {content} of {number}\n");
        let (directory, length) = (number % 1000, content.len());
        write!(
            stream,
            "M 100644 inline d{directory}/f{number}\ndata {length}\n{content}"
        )
        .expect("it is text");
    };
    commit(Some("refs/heads/main^0"), &|stream| {
        (0..FILES).for_each(|number| file(number, 0, stream));
    });
    for number in 1..=COMMITS {
        commit(None, &|stream| file(number, number, stream));
    }
    stream
}

/// Puts commits on a repository's `main`.
fn import(bare: &Path, stream: &str) {
    let mut importing = Command::new("git")
        .args(["fast-import", "--quiet"])
        .current_dir(bare)
        .stdin(Stdio::piped())
        .spawn()
        .expect("git is there");
    let mut input = importing.stdin.take().expect("it is a pipe");
    input.write_all(stream.as_bytes()).expect("git reads");
    drop(input);
    let ended = importing.wait().expect("it is a child");
    assert!(ended.success(), "git fast-import failed");
}

/// KiB on disk.
fn room(directory: &Path) -> u64 {
    let printed = succeed(as_owner("du").arg("-sk").arg(directory));
    let size = printed.split_whitespace().next();
    size.and_then(|size| size.parse().ok()).expect("du says it")
}

#[test]
fn a_big_repository_is_had_once_and_then_costs_what_changed() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    import(&upstream.bare, &history());
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [{ "url": upstream.url, "path": "/project" }],
        "setup_script": "echo run >> /runs",
    }));
    let first = derrick.create();
    let look = "cd /project; git rev-list --count HEAD; git ls-files | wc -l; git status --porcelain; cat /runs";
    assert_eq!(
        first.ok(look),
        format!("{}\n{}\nrun\n", COMMITS + 2, FILES + 1)
    );
    let (packs, before) = (server.packs(), room(&derrick.state()));
    assert_eq!(packs, 1);

    let second = derrick.create();
    assert_eq!(
        second.ok("cat /project/d999/f99999"),
        "content 0 of 99999\n"
    );
    assert_eq!(
        server.packs(),
        packs,
        "the second workspace took objects from the upstream"
    );
    let with_second = room(&derrick.state());
    assert!(
        with_second < before + 1024,
        "the second workspace took {} KiB",
        with_second - before
    );

    import(
        &upstream.bare,
        "commit refs/heads/main\ncommitter Ada <ada@example.org> 1700000000 +0000\ndata 5\nlast\n\
         from refs/heads/main^0\nM 100644 inline file\ndata 7\nsecond\n\n",
    );
    let third = derrick.create();
    assert_eq!(
        third.ok(&format!("cat /project/file; {look}")),
        format!("second\n{}\n{}\nrun\nrun\n", COMMITS + 3, FILES + 1)
    );
    // Its index is new, and a few objects. Not a second copy of files or objects.
    let with_third = room(&derrick.state());
    assert!(
        with_third < with_second + before / 10,
        "one commit took {} KiB, all of it {before}",
        with_third - with_second
    );
    // 100,000 entries in it: an answer that is as long as the change.
    third.ok("echo mine > /project/d7/f7; rm /project/d8/f8");
    let changes = third.api.get(&third.path("changes")).expect(200).json();
    let changed: Vec<_> = changes["changes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|change| (change["path"].clone(), change["kind"].clone()))
        .collect();
    assert_eq!(changed.len(), 2, "{changes}");
}
