//! Less than a whole repository at a time: transfers in steps, and workspaces with the last commits alone.

mod support;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Derrick, GitServer, Narrow, Upstream, Workspace, git};

/// Some thousand bytes of which no two are alike.
fn noise(state: &mut u64) -> String {
    let words = (0..500).map(|_| {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        format!("{:08x}", *state >> 32)
    });
    words.collect()
}

fn commits(upstream: &Upstream, count: usize) {
    let mut state = u64::try_from(count).expect("it is small");
    for _ in 0..count {
        upstream.commit(&[("file", &noise(&mut state))]);
    }
}

fn with(fields: &Value) -> Value {
    let mut repository = fields.clone();
    repository["path"] = "/project".into();
    json!({ "name": "test", "workdir": "/project", "repositories": [repository] })
}

#[test]
fn a_create_goes_on_after_a_kill_from_what_came_before_it() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    commits(&upstream, 50);
    let narrow = Narrow::before(server.port());
    let config = with(&json!({ "url": narrow.url(&upstream.url) }));
    narrow.lets_through(usize::MAX, usize::MAX);
    let look = "git rev-list --count HEAD; git fsck --strict; git status --porcelain";
    assert_eq!(Derrick::start(config.clone()).create().ok(look), "51\n");
    let whole = narrow.sent();

    // The whole is cut, the last commit is too small to count, the next sixteen come, and what is after that
    // does not.
    narrow.lets_through(whole / 2, 2);
    let mut derrick = Derrick::start(config.clone());
    let create = derrick.api.start("/workspaces", json!({}));
    let held = narrow.held();
    derrick.kill9();
    drop(create);
    let _ = held.shutdown(std::net::Shutdown::Both);
    narrow.lets_through(whole, usize::MAX);
    derrick.start_again();
    assert_eq!(derrick.create().ok(look), "51\n");
    let again = narrow.sent();
    assert!(again < whole * 9 / 10, "{again} of {whole} came again");

    // Nothing but half of it at once.
    narrow.lets_through(whole / 2, usize::MAX);
    assert_eq!(Derrick::start(config.clone()).create().ok(look), "51\n");

    // Nothing at all, and then all.
    narrow.lets_through(300, usize::MAX);
    let derrick = Derrick::start(config);
    let refused = derrick.api.post("/workspaces", &json!({})).problem(422);
    let detail = refused["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains("cannot reach") || detail.contains("broke off"),
        "{refused}"
    );
    narrow.lets_through(usize::MAX, usize::MAX);
    assert_eq!(derrick.create().ok(look), "51\n");
}

fn count(workspace: &Workspace) -> String {
    workspace.ok("git rev-list --count HEAD").trim().to_owned()
}

/// Changes two files and has them committed on `parent`; the order, and what was made.
fn changed_and_committed(workspace: &Workspace, parent: &str) -> (Value, Value) {
    workspace.ok("echo mine > other; echo new > new");
    let changes = workspace
        .api()
        .get(&workspace.path("changes"))
        .expect(200)
        .json();
    assert_eq!(
        changes["changes"].as_array().map(Vec::len),
        Some(2),
        "{changes}"
    );
    let order =
        json!({ "message": "mine", "author": { "name": "Grace", "email": "g@example.org" } });
    let made = workspace.post("commit", &order).expect(200).json();
    assert_eq!(made["parent"], parent);
    (order, made)
}

#[test]
fn a_workspace_of_a_depth_is_fetched_committed_bundled_and_pushed() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n"), ("other", "x\n")]);
    upstream.receive();
    commits(&upstream, 20);
    let narrow = Narrow::before(server.port());
    let derrick = Derrick::start(with(&json!({
        "url": narrow.url(&upstream.url), "depth": 2, "push": ["work"],
    })));
    narrow.lets_through(usize::MAX, usize::MAX);
    let workspace = derrick.create();
    let first = upstream.head();
    let thin = narrow.sent();
    assert_eq!(count(&workspace), "2");
    workspace
        .ok("git fsck --strict && git log -p > /dev/null && test -z \"$(git status --porcelain)\"");
    assert_eq!(
        workspace.ok("git rev-parse --is-shallow-repository"),
        "true\n"
    );

    // Changes, a commit, a bundle and a push.
    let (order, made) = changed_and_committed(&workspace, &first);
    let bundle = workspace.api().get(&workspace.path("bundle")).expect(200);
    assert!(bundle.body.starts_with(b"# v2 git bundle"));
    let pushed = workspace
        .post("push", &json!({ "to": "work" }))
        .expect(200)
        .json();
    assert_eq!(
        (&pushed["new_commit"], &pushed["commits"]),
        (&made["commit"], &json!(1)),
        "{pushed}"
    );
    let there = git(&upstream.bare, &["rev-list", "--count", "work"]);
    assert_eq!(there, "22\n");
    git(&upstream.bare, &["fsck", "--strict"]);
    // Once more to the same branch, which the mirror did not have.
    workspace.ok("echo more > new");
    workspace.post("commit", &order).expect(200);
    let again = workspace
        .post("push", &json!({ "to": "work" }))
        .expect(200)
        .json();
    assert_eq!(again["old_commit"], made["commit"], "{again}");
    assert_eq!(again["commits"], 2, "{again}");

    // New commits, more than the depth.
    commits(&upstream, 5);
    let fetched = workspace.fetch();
    let fetched = &fetched["repositories"][0];
    assert_eq!(
        (&fetched["old_commit"], &fetched["new_commit"]),
        (&json!(first), &json!(upstream.head()))
    );
    assert_eq!(workspace.ok("git rev-list --count origin/main"), "7\n");
    workspace.ok("git fsck --strict; git merge-base origin/main HEAD");

    // The next setup goes on from the last one, and one from nothing has the depth.
    let next = derrick.create();
    assert_eq!(next.ok("git rev-parse HEAD").trim(), upstream.head());
    assert_eq!(count(&next), "7");
    assert_eq!(next.describe()["setup"]["anew"], Value::Null);
    upstream.git(&["reset", "--quiet", "--hard", "HEAD~3"]);
    upstream.commit(&[("file", "rewritten\n")]);
    let rewritten = derrick.create();
    assert_eq!(count(&rewritten), "2");
    assert_eq!(rewritten.describe()["setup"]["anew"], "not_its_history");
    assert_eq!(rewritten.ok("git fsck --strict; cat file"), "rewritten\n");

    // Less came than is there.
    narrow.lets_through(usize::MAX, usize::MAX);
    let plain = Derrick::start(with(&json!({ "url": narrow.url(&upstream.url) })));
    assert_eq!(count(&plain.create()), "24");
    assert!(thin * 3 < narrow.sent(), "{thin} of {}", narrow.sent());
}

/// Puts a branch of so many commits on the server.
fn long_branch(upstream: &Upstream, name: &str, count: usize) {
    let mut stream = String::new();
    for number in 0..count {
        write!(
            stream,
            "commit refs/heads/{name}\ncommitter Ada <ada@example.org> 1700000000 +0000\ndata 4\nmore\n\
             M 100644 inline file\ndata 5\n{number:05}\n"
        )
        .expect("it is text");
    }
    let mut importing = Command::new("git")
        .args(["fast-import", "--quiet"])
        .current_dir(&upstream.bare)
        .stdin(Stdio::piped())
        .spawn()
        .expect("git is there");
    let mut input = importing.stdin.take().expect("it is a pipe");
    input.write_all(stream.as_bytes()).expect("git reads");
    drop(input);
    assert!(importing.wait().expect("it is a child").success());
}

#[test]
fn what_does_not_connect_is_answered_so_and_a_new_workspace_has_it() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    long_branch(&upstream, "long", 2200);
    let derrick = Derrick::start(with(&json!({
        "url": upstream.url, "depth": 1, "reference": "long",
    })));
    let workspace = derrick.create();
    // Rewritten below of what is there: nobody looks as deep as it would take to know.
    let below = git(&upstream.bare, &["rev-parse", "long~3"]);
    let tree = git(&upstream.bare, &["rev-parse", "main^{tree}"]);
    let arguments = [
        "commit-tree",
        "-p",
        below.trim(),
        "-m",
        "rewritten",
        tree.trim(),
    ];
    let rewritten = git(&upstream.bare, &arguments);
    git(
        &upstream.bare,
        &["update-ref", "refs/heads/long", rewritten.trim()],
    );
    let refused = workspace.post("fetch", &json!({})).problem(422);
    let detail = refused["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("make a new workspace"), "{refused}");
    assert_eq!(
        workspace.ok("git fsck --strict; git log --format=%s"),
        "more\n"
    );
    let next = derrick.create();
    assert_eq!(
        next.ok("git log --format=%s; git fsck; cat file"),
        "rewritten\nfirst\n"
    );
    assert_eq!(next.describe()["setup"]["anew"], "not_its_history");
}

fn fields(fetched: &Value) -> (String, String) {
    let one = &fetched["repositories"][0];
    let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
    (text("head"), text("not_updated"))
}

const MISSING: &str = "git rev-list --objects --missing=print --all HEAD | grep -c '^?'";

#[test]
fn a_partial_clone_is_fetched_committed_bundled_and_pushed() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n"), ("other", "x\n")]);
    upstream.receive();
    git(
        &upstream.bare,
        &["config", "uploadpack.allowFilter", "true"],
    );
    commits(&upstream, 20);
    // Of a branch whose files nobody wanted.
    upstream.git(&["switch", "--quiet", "--create", "side"]);
    upstream.commit(&[("other", "of the side\n"), ("file", "of the side\n")]);
    upstream.git(&["switch", "--quiet", "main"]);
    let narrow = Narrow::before(server.port());
    narrow.lets_through(usize::MAX, usize::MAX);
    let fields_of = |history: &str| {
        with(&json!({
            "url": narrow.url(&upstream.url), "filter": "blob:none", "push": ["work"], "history": history,
        }))
    };
    let derrick = Derrick::start(fields_of("full"));
    let workspace = derrick.create();
    let first = upstream.head();
    let partial = narrow.sent();
    workspace.ok(
        "git fsck --strict && git log --all --name-only && test -z \"$(git status --porcelain)\"",
    );
    assert_eq!(workspace.ok(MISSING), "21\n");
    let old = workspace.sh("git show HEAD~5:file");
    assert_eq!(old.exit_code, 128, "{}", old.output);
    // A second one costs no network.
    let packs = server.packs();
    assert_eq!(derrick.create().ok(MISSING), "21\n");
    assert_eq!(server.packs(), packs);

    // Changes, a commit, a bundle and a push.
    let (order, made) = changed_and_committed(&workspace, &first);
    // What follows on the upstream's: the rest is not there.
    let bundle = workspace.api().get(&workspace.path("bundle")).expect(200);
    let file = upstream.bare.join("a.bundle");
    std::fs::write(&file, &bundle.body).expect("writes");
    let file = file.to_str().expect("a path is text");
    git(&upstream.work, &["fetch", "--quiet", file, "main:theirs"]);
    let theirs = git(&upstream.work, &["rev-parse", "theirs"]);
    assert_eq!(made["commit"], theirs.trim());
    git(&upstream.work, &["branch", "--quiet", "-D", "theirs"]);
    let pushed = workspace
        .post("push", &json!({ "to": "work" }))
        .expect(200)
        .json();
    assert_eq!(
        (&pushed["new_commit"], &pushed["commits"]),
        (&made["commit"], &json!(1)),
        "{pushed}"
    );
    git(&upstream.bare, &["fsck", "--strict"]);

    // New commits come with their files, and others at request.
    workspace.ok("git reset --quiet --hard HEAD~1");
    commits(&upstream, 3);
    let was = upstream.git(&["show", "main~9:file"]);
    let last = upstream.commit(&[("file", &was)]);
    let fetched = workspace.fetch_with(&json!({ "update": "fast-forward" }));
    assert_eq!(fields(&fetched), (last.clone(), String::new()), "{fetched}");
    let look = format!(
        "git fsck --strict; git log -p {first}.. > /dev/null && git status --porcelain; cat file"
    );
    assert_eq!(workspace.ok(&look), was);
    let older = git(&upstream.bare, &["rev-parse", "main~12"]);
    for reference in ["side", older.trim()] {
        let wish = json!({ "reference": reference, "update": "reset" });
        let fetched = workspace.fetch_with(&wish);
        assert_eq!(fields(&fetched).1, "", "{fetched}");
        assert_eq!(
            workspace.ok("git status --porcelain; git fsck --strict"),
            ""
        );
        let content = git(&upstream.bare, &["show", &format!("{reference}:file")]);
        assert_eq!(workspace.ok("cat file"), content);
    }
    // On what came last, with a file that nobody else's branch has so.
    workspace.ok(&format!(
        "git checkout --quiet -B mine {last}; echo mine > other; echo mine > file"
    ));
    let made = workspace.post("commit", &order).expect(200).json();
    let wish = json!({ "branch": "mine", "to": "work" });
    let refused = workspace.post("push", &wish).problem(409);
    assert!(
        refused["detail"]
            .as_str()
            .unwrap_or_default()
            .contains("rejected"),
        "{refused}"
    );
    git(&upstream.bare, &["branch", "--quiet", "-D", "work"]);
    let pushed = workspace.post("push", &wish).expect(200).json();
    assert_eq!(pushed["new_commit"], made["commit"], "{pushed}");
    git(&upstream.bare, &["fsck", "--strict"]);

    // The next setup goes on from the last one, and a sealed one has its own.
    let next = derrick.create();
    assert_eq!(
        next.ok("git rev-parse HEAD; git status --porcelain; git fsck"),
        format!("{last}\n")
    );
    assert_eq!(next.describe()["setup"]["anew"], Value::Null);
    let sealed = Derrick::start(fields_of("sealed"));
    let names = "git fsck --strict; git branch --all --format '%(refname)'";
    assert_eq!(
        sealed.create().ok(names),
        "refs/heads/main\nrefs/remotes/origin/HEAD\nrefs/remotes/origin/main\n"
    );
    let none = Derrick::start(fields_of("none"));
    assert_eq!(none.create().sh(MISSING).output, "0\n");

    // Less came than is there.
    narrow.lets_through(usize::MAX, usize::MAX);
    Derrick::start(with(
        &json!({ "url": narrow.url(&upstream.url), "history": "full" }),
    ))
    .create();
    assert!(
        partial * 3 < narrow.sent(),
        "{partial} of {}",
        narrow.sent()
    );
}
