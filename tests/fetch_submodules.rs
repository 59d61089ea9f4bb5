//! Submodules move with their repository: by a fetch into a workspace, and in setups that go on from others.

mod support;

use serde_json::{Value, json};
use support::submodules::{change, name};
use support::{Derrick, GitServer, Launch, Mode, Upstream, Workspace, git, mode};

/// What is in a later commit, and must not be known before.
const LATER: &str = "canary-of-a-later-commit";

/// A repository with a submodule that has one of its own, each with one file.
struct Family {
    server: GitServer,
    top: Upstream,
    sub: Upstream,
    deep: Upstream,
}

impl Family {
    fn new() -> Self {
        let server = GitServer::open();
        let deep = server.repository("deep", &[("file", "deep 1\n")]);
        let sub = server.repository("sub", &[("file", "sub 1\n"), ("other", "x\n")]);
        let top = server.repository("top", &[("file", "top 1\n")]);
        name(&sub, &[("in/deep", "../deep.git", &deep)]);
        name(&top, &[("libs/sub", "../sub.git", &sub)]);
        Self {
            server,
            top,
            sub,
            deep,
        }
    }

    /// A later commit of each, named by the one above.
    fn move_on(&self, number: u32) {
        change(&self.deep, "file", &format!("deep {number}\n"));
        change(&self.sub, "file", &format!("sub {number}\n"));
        name(&self.sub, &[("in/deep", "../deep.git", &self.deep)]);
        change(&self.top, "file", &format!("top {number}\n"));
        name(&self.top, &[("libs/sub", "../sub.git", &self.sub)]);
    }

    fn config(&self, fields: &Value) -> Value {
        let mut repository = fields.clone();
        repository["url"] = self.top.url.clone().into();
        repository["path"] = "/project".into();
        repository["submodules"] = true.into();
        json!({ "name": "test", "workdir": "/project", "repositories": [repository] })
    }

    fn start(&self) -> Derrick {
        Derrick::start(self.config(&json!({})))
    }
}

const FILES: &str = "cat file libs/sub/file libs/sub/in/deep/file";

/// Fetches; what is said of the submodules.
fn fetch(workspace: &Workspace, update: &str) -> Value {
    let mut fetched = workspace.fetch_with(&json!({ "update": update }));
    fetched["repositories"][0]["submodules"].take()
}

fn head(workspace: &Workspace, path: &str) -> String {
    let head = workspace.ok(&format!("git -C {path} rev-parse HEAD"));
    head.trim().to_owned()
}

fn has(workspace: &Workspace, path: &str, commit: &str) -> bool {
    let known = format!("git -C {path} cat-file -e {commit}");
    workspace.sh(&known).exit_code == 0
}

/// All that the objects of all repositories of a workspace say.
fn objects(workspace: &Workspace) -> String {
    let read = "git --git-dir={} cat-file --batch --batch-all-objects";
    workspace.ok(&format!("find /project -name .git -exec {read} ';'"))
}

#[test]
fn commits_come_without_an_update_and_files_with_one() {
    let family = Family::new();
    let (old, old_deep) = (family.sub.head(), family.deep.head());
    let derrick = family.start();
    let workspace = derrick.create();
    family.move_on(2);
    let (new, new_deep) = (family.sub.head(), family.deep.head());
    // What is not named is later.
    change(&family.sub, "file", LATER);
    change(&family.deep, "file", LATER);
    let told = |head: bool| {
        let one = |path: &str, of: &Upstream, old: &str, new: &str| {
            let mut one = json!({
                "url": of.url, "path": path, "old_commit": old, "new_commit": new,
            });
            if head {
                one["head"] = new.into();
            }
            one
        };
        json!([
            one("/project/libs/sub", &family.sub, &old, &new),
            one(
                "/project/libs/sub/in/deep",
                &family.deep,
                &old_deep,
                &new_deep
            ),
        ])
    };
    assert_eq!(fetch(&workspace, "none"), told(false));
    assert_eq!(workspace.ok(FILES), "top 1\nsub 1\ndeep 1\n");
    assert_eq!(head(&workspace, "libs/sub"), old);
    for (path, commit) in [("libs/sub", &new), ("libs/sub/in/deep", &new_deep)] {
        assert!(has(&workspace, path, commit), "{path}");
    }
    let again = fetch(&workspace, "fast-forward");
    assert_eq!(again[0]["head"], json!(new), "{again}");
    assert_eq!(again[1]["head"], json!(new_deep), "{again}");
    assert_eq!(workspace.ok(FILES), "top 2\nsub 2\ndeep 2\n");
    assert_eq!(workspace.ok("git status --porcelain"), "");
    let status = workspace.ok("git submodule status --recursive");
    assert!(status.lines().all(|line| line.starts_with(' ')), "{status}");
    workspace
        .ok("git submodule foreach -q --recursive 'git fsck --full && ! git symbolic-ref -q HEAD'");
    assert!(!objects(&workspace).contains(LATER));

    // All at once, by a reset of another.
    let other = derrick.create();
    let news = family.top.head();
    family.move_on(3);
    assert_eq!(head(&other, "."), news);
    other.ok("echo mine > libs/sub/file; rm libs/sub/in/deep/file; echo kept > libs/sub/untracked");
    let fetched = fetch(&other, "reset");
    assert_eq!(fetched[0]["head"], json!(family.sub.head()), "{fetched}");
    assert_eq!(fetched[1]["head"], json!(family.deep.head()), "{fetched}");
    assert_eq!(other.ok(FILES), "top 3\nsub 3\ndeep 3\n");
    assert_eq!(other.ok("cat libs/sub/untracked"), "kept\n");
    // It is there already.
    let again = fetch(&other, "reset");
    assert_eq!(again[0]["old_commit"], again[0]["new_commit"], "{again}");
    assert_eq!(again[0]["not_fetched"], Value::Null, "{again}");
}

#[test]
fn a_fast_forward_loses_no_work_in_a_submodule_and_says_why() {
    let family = Family::new();
    let derrick = family.start();
    let commit = "git -c user.name=a -c user.email=a@b commit -qam mine";
    let (changed, own, ahead) = (derrick.create(), derrick.create(), derrick.create());
    let old = family.sub.head();
    changed.ok("echo mine > libs/sub/file; echo kept > libs/sub/other");
    own.ok(&format!(
        "cd libs/sub && git checkout -qb work && echo mine > other && {commit}"
    ));
    let work = head(&own, "libs/sub");
    family.move_on(2);
    let new = family.sub.head();

    let fetched = fetch(&changed, "fast-forward");
    let why = fetched[0]["not_updated"].as_str().unwrap_or_default();
    assert!(why.contains("file"), "{fetched}");
    assert_eq!(fetched[0]["head"], json!(old), "{fetched}");
    // What belongs to one that was not updated waits for it.
    let why = fetched[1]["not_updated"].as_str().unwrap_or_default();
    assert!(why.contains("belongs to"), "{fetched}");
    assert_eq!(changed.ok(FILES), "top 2\nmine\ndeep 1\n");
    // What is not in the way is no hindrance, and stays.
    changed.ok("git -C libs/sub checkout -q file");
    let fetched = fetch(&changed, "fast-forward");
    assert_eq!(fetched[0]["head"], json!(new), "{fetched}");
    assert_eq!(changed.ok("cat libs/sub/other"), "kept\n");
    assert_eq!(changed.ok(FILES), "top 2\nsub 2\ndeep 2\n");

    let fetched = fetch(&own, "fast-forward");
    let why = fetched[0]["not_updated"].as_str().unwrap_or_default();
    assert!(why.contains(&work), "{fetched}");
    assert_eq!(head(&own, "libs/sub"), work);
    let fetched = fetch(&own, "reset");
    assert_eq!(fetched[0]["not_updated"], Value::Null, "{fetched}");
    assert_eq!(own.ok(FILES), "top 2\nsub 2\ndeep 2\n");
    assert_eq!(own.ok("git -C libs/sub rev-parse work").trim(), work);

    // Work on what is named now is no hindrance.
    fetch(&ahead, "fast-forward");
    ahead.ok(&format!("cd libs/sub && echo mine > other && {commit}"));
    let mine = head(&ahead, "libs/sub");
    let fetched = fetch(&ahead, "fast-forward");
    assert_eq!(fetched[0]["not_updated"], Value::Null, "{fetched}");
    assert_eq!(fetched[0]["head"], json!(mine), "{fetched}");

    // Where the repository itself is not updated, its submodules only get their commits.
    family.move_on(3);
    ahead.ok("echo mine > file");
    let fetched = fetch(&ahead, "fast-forward");
    let why = fetched[0]["not_updated"].as_str().unwrap_or_default();
    assert!(why.contains("belongs to"), "{fetched}");
    assert!(has(&ahead, "libs/sub", &family.sub.head()));
}

#[test]
fn a_submodule_that_is_new_is_made_and_one_that_is_gone_stays() {
    let family = Family::new();
    let user = match mode() {
        Mode::Single => "root",
        Mode::Root | Mode::Subordinate => "daemon",
    };
    let mut config = family.config(&json!({}));
    config["user"] = user.into();
    let derrick = Derrick::start(config);
    let workspace = derrick.create();
    let new = family.server.repository("new", &[("file", "new 1\n")]);
    name(&new, &[("in/deep", "../deep.git", &family.deep)]);
    let first = new.head();
    change(&new, "file", LATER);
    git(&new.work, &["checkout", "-q", &first]);
    name(&family.top, &[("a b/new", "../new.git", &new)]);

    // Without an update nothing is made.
    assert_eq!(fetch(&workspace, "none"), Value::Null);
    workspace.ok("test ! -e 'a b'");
    for update in ["fast-forward", "reset"] {
        let fetched = fetch(&workspace, update);
        assert_eq!(fetched[0]["path"], json!("/project/a b/new"), "{fetched}");
        assert_eq!(fetched[0]["head"], json!(first), "{update}: {fetched}");
        assert_eq!(fetched[1]["head"], json!(family.deep.head()), "{fetched}");
        assert_eq!(
            workspace.ok("cat 'a b/new/file' 'a b/new/in/deep/file'"),
            "new 1\ndeep 1\n"
        );
    }
    let id = if user == "root" { "0" } else { "1" };
    let owners = workspace.ok("find 'a b' .git/config -printf '%U\\n' | sort -u");
    assert_eq!(owners.trim(), id);
    let status = workspace.ok("git submodule status --recursive");
    assert_eq!(status.lines().count(), 2, "{status}");
    assert!(status.lines().all(|line| line.starts_with(' ')), "{status}");
    assert_eq!(
        workspace
            .ok("git -C 'a b/new' remote get-url origin")
            .trim(),
        new.url
    );
    assert_eq!(
        workspace.ok("git config submodule.'a b/new'.url").trim(),
        new.url
    );
    workspace
        .ok("cd 'a b/new' && git fsck --full && test ! -e .git/FETCH_HEAD && test ! -e .git/logs");
    assert!(!objects(&workspace).contains(LATER));
    // Which is not in the commit any more, and may have somebody's work.
    assert_eq!(
        workspace.ok("cat libs/sub/file libs/sub/in/deep/file"),
        "sub 1\ndeep 1\n"
    );
}

#[test]
fn more_history_comes_where_the_config_has_more_of_it() {
    for (history, side_comes) in [("branch", false), ("full", true)] {
        let family = Family::new();
        let derrick = Derrick::start(family.config(&json!({ "history": history })));
        let workspace = derrick.create();
        family.move_on(2);
        let named = family.sub.head();
        let later = change(&family.sub, "other", LATER);
        family.sub.git(&["checkout", "-q", "-b", "side"]);
        let side = change(&family.sub, "other", "side\n");
        // The mirror has them by the next fetch for a commit that it lacks.
        let fetched = fetch(&workspace, "fast-forward");
        assert_eq!(fetched[0]["head"], json!(named), "{history}: {fetched}");
        assert!(has(&workspace, "libs/sub", &later), "{history}");
        assert_eq!(has(&workspace, "libs/sub", &side), side_comes, "{history}");
        assert_eq!(workspace.ok(FILES), "top 2\nsub 2\ndeep 2\n", "{history}");
    }
}

#[test]
fn what_is_where_a_submodule_was_is_told_and_left_alone() {
    let family = Family::new();
    let derrick = family.start();
    let foreign =
        "mkdir /foreign && cd /foreign && git init -q -b main . && echo own > own && git add own &&
        git -c user.name=a -c user.email=a@b commit -qm own";
    let mut number = 1;
    for (attack, names) in [
        ("ln -s /foreign libs/sub", "no directory"),
        ("rmdir libs; ln -s / libs", "no directory"),
        ("echo x > libs/sub", "no directory"),
        ("mkdir libs/sub && echo x > libs/sub/own", "no repository"),
        ("mkdir -p libs/sub/.git", "not a git repository"),
        (
            "mkdir libs/sub && echo 'gitdir: /nowhere' > libs/sub/.git",
            "not a git repository",
        ),
        ("mkdir libs/sub && mkfifo libs/sub/.git", ""),
        (
            "mkdir libs/sub && ln -s loop libs/sub/.git && ln -s .git libs/sub/loop",
            "",
        ),
    ] {
        let workspace = derrick.create();
        workspace.ok(foreign);
        let whole = workspace.ok("git rev-parse HEAD; git -C /foreign rev-parse HEAD");
        workspace.ok(&format!("rm -rf libs/sub; {attack}"));
        for update in ["none", "fast-forward", "reset"] {
            number += 1;
            family.move_on(number);
            let mut fetched = workspace.fetch_with(&json!({ "update": update }));
            let fetched = fetched["repositories"][0].take();
            // What git itself replaces by a place for it is made anew.
            let replaced = update != "none" && fetched["submodules"][0]["head"].is_string();
            if !replaced {
                let why = fetched["submodules"][0]["not_fetched"].as_str();
                let why = why.unwrap_or_else(|| panic!("{attack}, {update}: {fetched}"));
                assert!(why.contains(names), "{attack}: {why}");
                let below = &fetched["submodules"][1];
                assert!(below["not_fetched"].is_string(), "{attack}: {fetched}");
            }
            // Not the one above it, either.
            if update == "none" {
                let now = workspace.ok("git rev-parse HEAD; git -C /foreign rev-parse HEAD");
                assert_eq!(now, whole, "{attack}");
            }
        }
        let foreign =
            "git -C /foreign status --porcelain; git -C /foreign for-each-ref; cat /foreign/own";
        let foreign = workspace.ok(foreign);
        assert_eq!(foreign.lines().count(), 2, "{attack}: {foreign}");
        workspace.ok("test ! -e /foreign/file && test ! -e /file && test ! -e /sub");
        let files = workspace.ok("cat file");
        assert_eq!(files, format!("top {number}\n"), "{attack}");
    }
}

#[test]
fn a_repository_of_the_agents_own_runs_nothing_of_its_own_for_a_fetch() {
    let family = Family::new();
    let derrick = family.start();
    let workspace = derrick.create();
    workspace.ok(
        "cd libs/sub && git config core.fsmonitor 'touch /ran; false' && git config core.worktree / &&
         git config core.hooksPath .git/hooks && git config alias.fetch '!touch /ran' &&
         git config gpg.program 'touch /ran' && git config core.alternateRefsCommand 'touch /ran' &&
         for hook in post-checkout reference-transaction post-index-change post-merge pre-auto-gc; do
             printf '#!/bin/sh\\ntouch /ran\\n' > .git/hooks/$hook; chmod +x .git/hooks/$hook
         done",
    );
    family.move_on(2);
    for update in ["none", "fast-forward", "reset"] {
        let fetched = fetch(&workspace, update);
        assert_eq!(
            fetched[0]["not_fetched"],
            Value::Null,
            "{update}: {fetched}"
        );
        assert_eq!(
            fetched[0]["not_updated"],
            Value::Null,
            "{update}: {fetched}"
        );
    }
    assert_eq!(workspace.ok(FILES), "top 2\nsub 2\ndeep 2\n");
    workspace.ok("test ! -e /ran && test ! -e /other");
}

#[test]
fn a_setup_goes_on_with_submodules_that_moved_on() {
    let family = Family::new();
    let mut config = family.config(&json!({}));
    config["setup_script"] = "echo run >> /runs; cat libs/sub/in/deep/file >> /built".into();
    let derrick = Derrick::start(config);
    let first = derrick.create().describe();
    family.move_on(2);
    let new = family.server.repository("new", &[("file", "new 1\n")]);
    name(
        &family.top,
        &[
            ("libs/sub", "../sub.git", &family.sub),
            ("new", "../new.git", &new),
        ],
    );
    change(&family.sub, "file", LATER);
    let workspace = derrick.create();
    let setup = workspace.describe()["setup"].take();
    assert_eq!(setup["reused"]["layer"], first["layer"], "{setup}");
    assert_eq!(
        setup["reused"]["commits"]["/project"]["by"], "fetch",
        "{setup}"
    );
    assert_eq!(workspace.ok(FILES), "top 2\nsub 2\ndeep 2\n");
    assert_eq!(
        workspace.ok("cat new/file /runs /built"),
        "new 1\nrun\nrun\ndeep 1\ndeep 2\n"
    );
    assert_eq!(workspace.ok("git status --porcelain"), "");
    let status = workspace.ok("git submodule status --recursive");
    assert_eq!(status.lines().count(), 3, "{status}");
    assert!(status.lines().all(|line| line.starts_with(' ')), "{status}");
    assert!(!objects(&workspace).contains(LATER));
}

#[test]
fn a_setup_starts_from_the_base_where_a_submodule_went_back_or_elsewhere() {
    for (history, anew) in [("sealed", json!("submodules")), ("full", Value::Null)] {
        let family = Family::new();
        let mut config = family.config(&json!({ "history": history }));
        config["setup_script"] = "echo run >> /runs".into();
        let derrick = Derrick::start(config);
        let old = family.deep.head();
        change(&family.deep, "file", LATER);
        change(&family.sub, "other", "y\n");
        name(&family.sub, &[("in/deep", "../deep.git", &family.deep)]);
        name(&family.top, &[("libs/sub", "../sub.git", &family.sub)]);
        assert!(objects(&derrick.create()).contains(LATER));

        // The one below went back, in a later commit of those above.
        git(&family.deep.work, &["checkout", "-q", &old]);
        name(&family.sub, &[("in/deep", "../deep.git", &family.deep)]);
        name(&family.top, &[("libs/sub", "../sub.git", &family.sub)]);
        let workspace = derrick.create();
        let setup = workspace.describe()["setup"].take();
        assert_eq!(setup["anew"], anew, "{history}: {setup}");
        assert_eq!(workspace.ok(FILES), "top 1\nsub 1\ndeep 1\n", "{history}");
        assert_eq!(objects(&workspace).contains(LATER), history == "full");

        // Another place, and another URL; nothing of what was there stays.
        let other = family.server.repository("other", &[("file", "other\n")]);
        for (submodules, files) in [
            (vec![("moved", "../sub.git", &family.sub)], "moved/file"),
            (vec![("moved", "../other.git", &other)], "moved/file"),
            (vec![], "file"),
        ] {
            let (place, url) = submodules.first().map_or(("", ""), |one| (one.0, one.1));
            name(&family.top, &submodules);
            let workspace = derrick.create();
            let setup = workspace.describe()["setup"].take();
            assert_eq!(setup["anew"], anew, "{history}, {place} {url}: {setup}");
            let there = workspace.ok(&format!("cat {files}; ls -A"));
            assert!(!there.contains("libs"), "{there}");
            assert_eq!(there.contains("other"), url.contains("other"), "{there}");
            assert_eq!(there.contains("moved"), !place.is_empty(), "{there}");
        }
    }
}

#[test]
fn the_command_line_tells_of_submodules() {
    let family = Family::new();
    let derrick = Launch::new(family.config(&json!({}))).start();
    let workspace = derrick.create();
    family.move_on(2);
    workspace.ok("rm -rf libs/sub/in/deep && echo x > libs/sub/in/deep");
    let run = |update: &str| {
        let output = std::process::Command::new(support::binary())
            .args([
                "fetch",
                "--server",
                derrick.api.address(),
                "--update",
                update,
            ])
            .arg(&workspace.id)
            .output()
            .expect("it starts");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), printed)
    };
    let (code, printed) = run("none");
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((code, lines.len()), (Some(1), 3), "{printed}");
    let sub = &family.sub.head()[..12];
    assert!(lines[1].starts_with("  /project/libs/sub: "), "{printed}");
    assert!(lines[1].contains(sub), "{printed}");
    let told = "not fetched: /project/libs/sub/in/deep is no directory";
    assert!(lines[2].contains(told), "{printed}");
    workspace.ok("rm libs/sub/in/deep");
    let (code, printed) = run("reset");
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(printed.matches("checked out").count(), 3, "{printed}");
}
