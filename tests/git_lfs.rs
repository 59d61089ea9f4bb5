//! Large files on request: brought by the provider, there in a workspace whatever its image has, and no way in for
//! a hostile server.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::lfs_server::{ATTRIBUTES, Behaviour, LfsServer, pointer};
use support::secrets::assert_nowhere;
use support::{Derrick, GitServer, Launch, Scratch, SshServer, TlsServer, Upstream, git};

const TOKEN: &str = "canary-9b41d7c2e8f05a36";

/// One that no test has in the environment of anything.
const TOKEN_OF_SSH: &str = "canary-e60f3b9ad8c2714f";

fn config(upstream: &Upstream, fields: &Value) -> Launch {
    let mut repository = fields.clone();
    repository["url"] = upstream.url.clone().into();
    repository["path"] = "/project".into();
    repository["lfs"] = true.into();
    Launch::new(json!({
        "name": "test",
        "repositories": [repository],
        "setup_script": "cp -r /project/.git /copy; env > /environment",
    }))
}

fn refusal(derrick: &Derrick) -> String {
    let problem = derrick.api.post("/workspaces", &json!({})).problem(422);
    problem["detail"].as_str().expect("a text").to_owned()
}

/// Bytes that nothing makes smaller and no text has.
fn content(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// The SHA-256 of a file inside.
fn digest(workspace: &support::Workspace, path: &str) -> String {
    workspace.ok(&format!("sha256sum < {path}"))[..64].to_owned()
}

#[test]
fn large_files_are_in_the_workspace_and_cost_the_network_once() {
    let server = LfsServer::before(GitServer::with_token(TOKEN), Some(TOKEN));
    let scratch = Scratch::new();
    let token = scratch.file("token", TOKEN);
    let big = content(1, 300_000);
    let upstream = server.repository("project", &[("small", "1\n")]);
    let text = server.keep(&big);
    upstream.commit(&[
        ("a b/ü.bin", &text),
        ("text.bin", "no pointer\n"),
        ("pointer", &text),
    ]);
    let derrick = config(&upstream, &json!({ "token_file": token }))
        .environment("DERRICK_LOG", "trace")
        .start();
    let workspace = derrick.create();
    assert_eq!(workspace.sh("command -v git-lfs").output, "");
    let (oid, _) = pointer(&big);
    assert_eq!(digest(&workspace, "'/project/a b/ü.bin'"), oid);
    // What no attribute says to be one is none, and what is no pointer stays what it is.
    assert_eq!(workspace.ok("cat /project/pointer"), text);
    assert_eq!(workspace.ok("cat /project/text.bin"), "no pointer\n");
    let object = format!(
        "/project/.git/lfs/objects/{}/{}/{oid}",
        &oid[..2],
        &oid[2..4]
    );
    assert_eq!(digest(&workspace, &object), oid);
    assert_eq!(workspace.ok(&format!("stat -c %h {object}")), "1\n");
    assert_eq!(
        workspace.ok("git -C /project rev-list --objects --all | wc -l"),
        workspace.ok("git -C /copy rev-list --objects --all | wc -l")
    );
    assert_nowhere(TOKEN, &derrick, &workspace);

    let asked = server.requests();
    let batches: Vec<_> = asked
        .iter()
        .filter(|request| request.method == "POST")
        .collect();
    assert_eq!((batches.len(), asked.len()), (1, 2), "{asked:?}");
    assert!(
        batches[0]
            .target
            .ends_with("/project.git/info/lfs/objects/batch")
    );
    for request in &asked {
        assert!(request.authorization.is_some(), "it is the same host");
        assert_eq!(request.exposed, Vec::<String>::new());
        let names = ["git", "git-remote-http", "derrick"];
        assert!(
            request
                .holders
                .iter()
                .all(|name| names.contains(&name.as_str())),
            "{asked:?}"
        );
    }
    // Another setup of the same commit, another workspace: nothing is asked.
    let other = derrick.create();
    assert_eq!(digest(&other, "'/project/a b/ü.bin'"), oid);
    upstream.commit(&[("small", "2\n")]);
    let next = derrick.create();
    assert_eq!(next.ok("cat /project/small"), "2\n");
    assert_eq!(digest(&next, "'/project/a b/ü.bin'"), oid);
    assert_eq!(server.requests().len(), asked.len());
}

#[test]
fn a_partial_clone_has_the_large_files_of_its_commit() {
    let server = LfsServer::before(GitServer::open(), None);
    let upstream = server.repository("project", &[(".gitattributes", ATTRIBUTES)]);
    git(
        &upstream.bare,
        &["config", "uploadpack.allowFilter", "true"],
    );
    let states: Vec<_> = (1..=3).map(|seed| content(seed, 100_000)).collect();
    for state in &states[..2] {
        upstream.commit(&[("large.bin", &server.keep(state)), ("file", "x\n")]);
    }
    let derrick = config(&upstream, &json!({ "filter": "blob:none" })).start();
    let workspace = derrick.create();
    let large = "/project/large.bin";
    assert_eq!(digest(&workspace, large), pointer(&states[1]).0);
    workspace.ok("cd /project && git fsck && test -z \"$(git status --porcelain)\"");
    // The pointer before it stayed with the upstream, and what it points to as well.
    let old = workspace.sh("git -C /project show HEAD~1:large.bin");
    assert_eq!(old.exit_code, 128, "{}", old.output);
    assert_eq!(server.requests().len(), 2);
    upstream.commit(&[("large.bin", &server.keep(&states[2]))]);
    let fetched = workspace.fetch_with(&json!({ "update": "fast-forward" }));
    assert_eq!(
        fetched["repositories"][0]["head"],
        upstream.head(),
        "{fetched}"
    );
    assert_eq!(digest(&workspace, large), pointer(&states[2]).0);
    workspace.ok("cd /project && git fsck && test -z \"$(git status --porcelain)\"");
}

#[test]
fn git_inside_knows_large_files_without_git_lfs() {
    let server = LfsServer::before(GitServer::open(), None);
    let (one, two) = (content(1, 200_000), content(2, 100_000));
    let upstream = server.repository("project", &[("small", "1\n")]);
    upstream.commit(&[
        ("one.bin", &server.keep(&one)),
        ("run.bin", &server.keep(&two)),
    ]);
    git(&upstream.work, &["update-index", "--chmod=+x", "run.bin"]);
    git(&upstream.work, &["commit", "--quiet", "--message=x"]);
    upstream.git(&["checkout", "--quiet", "."]);
    let derrick = config(&upstream, &json!({})).start();
    let workspace = derrick.create();
    let status = || workspace.ok("git -C /project status --porcelain");
    assert_eq!(status(), "");
    assert_eq!(
        workspace.ok("stat -c %a /project/run.bin /project/one.bin"),
        "755\n644\n"
    );
    // A repository as git itself has it: checking out, staging, and what it says of changes.
    workspace.ok("cd /project && rm one.bin run.bin && git checkout --quiet .");
    assert_eq!(status(), "");
    assert_eq!(digest(&workspace, "/project/one.bin"), pointer(&one).0);
    assert_eq!(digest(&workspace, "/project/run.bin"), pointer(&two).0);
    let changes = |query: &str| {
        let answer = derrick
            .api
            .get(&workspace.path(&format!("changes?{query}")));
        answer.expect(200)
    };
    let listed = changes("path=/project").text();
    assert!(!listed.contains("one.bin"), "{listed}");
    workspace.ok("cd /project && printf changed > one.bin");
    assert_eq!(status(), " M one.bin\n");
    workspace.ok("cd /project && git stash --quiet");
    assert_eq!(digest(&workspace, "/project/one.bin"), pointer(&one).0);
    workspace.ok("cd /project && git stash pop --quiet");
    assert_eq!(workspace.ok("cat /project/one.bin"), "changed");
    let listed = changes("path=/project").text();
    assert!(listed.contains("one.bin"), "{listed}");

    // A commit has pointers, also of a new file; empty ones are what they are.
    workspace
        .ok("cd /project && printf new > new.bin && : > empty.bin && cp one.bin './a b;$(id).bin'");
    let committed = workspace.post(
        "commit",
        &json!({
            "path": "/project", "message": "m", "author": { "name": "Ada", "email": "ada@example.org" },
        }),
    );
    let committed = committed.expect(200).json();
    assert_eq!(committed["files"], 4, "{committed}");
    assert_eq!(status(), "");
    for (file, content) in [
        ("one.bin", "changed"),
        ("new.bin", "new"),
        ("a b;$(id).bin", "changed"),
    ] {
        let shown = workspace.ok(&format!("git -C /project show 'HEAD:{file}'"));
        assert_eq!(shown, pointer(content.as_bytes()).1, "{file}");
    }
    assert_eq!(workspace.ok("git -C /project show HEAD:empty.bin"), "");
    workspace.ok("cd /project && git checkout --quiet HEAD~1 && git checkout --quiet -");
    assert_eq!(
        workspace.ok("cat /project/one.bin /project/new.bin"),
        "changednew"
    );
    assert_eq!(status(), "");
    workspace.ok("cd /project && git checkout --quiet HEAD~1");
    assert_eq!(digest(&workspace, "/project/one.bin"), pointer(&one).0);
    // A pointer to what is not here stays one, and is no change.
    let (_, elsewhere) = pointer(b"nowhere");
    workspace.ok(&format!(
        "cd /project && printf '{elsewhere}' > far.bin && git add far.bin"
    ));
    assert_eq!(workspace.ok("git -C /project show :far.bin"), elsewhere);
    workspace.ok("cd /project && rm far.bin && git checkout --quiet far.bin");
    assert_eq!(workspace.ok("cat /project/far.bin"), elsewhere);
    assert_eq!(workspace.ok("ls /project/.git/lfs/tmp"), "");
}

#[test]
fn a_fetch_and_a_later_setup_bring_what_new_commits_want_and_nothing_else() {
    let server = LfsServer::before(GitServer::open(), None);
    let (one, two, three) = (content(1, 50_000), content(2, 60_000), content(3, 70_000));
    let upstream = server.repository("project", &[("small", "1\n")]);
    upstream.commit(&[("one.bin", &server.keep(&one))]);
    git(&upstream.work, &["checkout", "--quiet", "-b", "other"]);
    upstream.commit(&[("three.bin", &server.keep(&three))]);
    upstream.git(&["checkout", "--quiet", "main"]);
    let derrick = config(&upstream, &json!({ "reference": "main" })).start();
    let workspace = derrick.create();
    let objects = |workspace: &support::Workspace| {
        workspace.ok("cd /project/.git/lfs/objects && find . -type f | cut -d/ -f4 | sort")
    };
    let names = |contents: &[&[u8]]| {
        let mut names: Vec<_> = contents.iter().map(|one| pointer(one).0 + "\n").collect();
        names.sort();
        names.concat()
    };
    // Sealed: nothing of another branch.
    assert_eq!(objects(&workspace), names(&[&one]));
    let commit = upstream.commit(&[
        ("two.bin", &server.keep(&two)),
        ("again.bin", &server.keep(&one)),
    ]);
    let fetched = workspace.fetch_with(&json!({ "update": "reset" }));
    let fetched = &fetched["repositories"][0];
    assert_eq!(
        (&fetched["new_commit"], &fetched["not_updated"]),
        (&json!(commit), &Value::Null)
    );
    assert_eq!(digest(&workspace, "/project/two.bin"), pointer(&two).0);
    assert_eq!(digest(&workspace, "/project/again.bin"), pointer(&one).0);
    assert_eq!(objects(&workspace), names(&[&one, &two]));
    assert_eq!(workspace.ok("git -C /project status --porcelain"), "");
    let owners = "stat -c %u /project /project/.git/lfs/objects/*/*/* /project/*.bin | sort -u";
    assert_eq!(workspace.ok(owners).lines().count(), 1);

    let next = derrick.create();
    assert!(!next.describe()["setup"]["reused"].is_null());
    assert_eq!(digest(&next, "/project/two.bin"), pointer(&two).0);
    assert_eq!(next.ok("git -C /project status --porcelain"), "");
    assert_eq!(objects(&next), names(&[&one, &two]));
    let downloads = server.requests();
    assert_eq!(
        downloads
            .iter()
            .filter(|request| request.method == "GET")
            .count(),
        2
    );
}

/// Has a repository name a commit of a submodule.
fn name(top: &Upstream, commit: &str) {
    let list = "[submodule \"libs/sub\"]\n\tpath = libs/sub\n\turl = ../sub.git\n";
    std::fs::write(top.work.join(".gitmodules"), list).expect("its own");
    let entry = format!("160000,{commit},libs/sub");
    git(&top.work, &["update-index", "--add", "--cacheinfo", &entry]);
    git(&top.work, &["add", ".gitmodules"]);
    top.git(&["commit", "--quiet", "--message=submodule"]);
}

#[test]
fn submodules_bring_their_large_files() {
    let server = LfsServer::before(GitServer::open(), None);
    let (one, two) = (content(1, 50_000), content(2, 60_000));
    let sub = server.repository("sub", &[("small", "1\n")]);
    sub.commit(&[("one.bin", &server.keep(&one))]);
    let top = server.repository("top", &[("small", "1\n")]);
    top.commit(&[("two.bin", &server.keep(&two))]);
    name(&top, &sub.head());
    let derrick = config(&top, &json!({ "submodules": true })).start();
    let workspace = derrick.create();
    assert_eq!(digest(&workspace, "/project/two.bin"), pointer(&two).0);
    assert_eq!(
        digest(&workspace, "/project/libs/sub/one.bin"),
        pointer(&one).0
    );
    assert_eq!(workspace.ok("git -C /project status --porcelain"), "");
    assert_eq!(
        workspace.ok("git -C /project/libs/sub status --porcelain"),
        ""
    );
}

#[test]
fn a_fetch_brings_a_submodule_s_large_files_also_of_a_commit_that_is_there_as_history() {
    let server = LfsServer::before(GitServer::open(), None);
    let (one, two, three) = (content(1, 50_000), content(2, 60_000), content(3, 70_000));
    let sub = server.repository("sub", &[("small", "1\n")]);
    let first = sub.commit(&[("big.bin", &server.keep(&one))]);
    let second = sub.commit(&[("big.bin", &server.keep(&two))]);
    let top = server.repository("top", &[("small", "1\n")]);
    name(&top, &second);
    let derrick = config(&top, &json!({ "submodules": true })).start();
    let workspace = derrick.create();
    let big = || digest(&workspace, "/project/libs/sub/big.bin");
    assert_eq!(big(), pointer(&two).0);
    workspace.ok(&format!("git -C /project/libs/sub cat-file -e {first}"));
    let third = sub.commit(&[("big.bin", &server.keep(&three))]);
    for (commit, content) in [(&first, &one), (&third, &three), (&second, &two)] {
        name(&top, commit);
        let fetched = workspace.fetch_with(&json!({ "update": "reset" }));
        let fetched = &fetched["repositories"][0]["submodules"][0];
        assert_eq!(
            (&fetched["head"], &fetched["not_updated"]),
            (&json!(commit), &Value::Null)
        );
        assert_eq!(big(), pointer(content).0);
        assert_eq!(
            workspace.ok("git -C /project/libs/sub status --porcelain"),
            ""
        );
    }
}

#[test]
fn a_submodule_that_could_not_be_fetched_gets_its_large_files_by_a_later_fetch() {
    let server = LfsServer::before(GitServer::open(), None);
    let (one, two) = (content(1, 50_000), content(2, 60_000));
    let sub = server.repository("sub", &[("small", "1\n")]);
    let first = sub.commit(&[("big.bin", &server.keep(&one))]);
    let second = sub.commit(&[("big.bin", &server.keep(&two))]);
    let top = server.repository("top", &[("small", "1\n")]);
    name(&top, &second);
    let derrick = config(&top, &json!({ "submodules": true })).start();
    let workspace = derrick.create();
    // It is there as history, and its large files cannot come.
    name(&top, &first);
    let objects = "/project/libs/sub/.git/lfs/objects";
    workspace.ok(&format!("mv {objects} /aside; echo x > {objects}"));
    let fetch = |update: &str| {
        let mut fetched = workspace.fetch_with(&json!({ "update": update }));
        fetched["repositories"][0]["submodules"][0].take()
    };
    for _ in 0..2 {
        let fetched = fetch("none");
        assert!(fetched["not_fetched"].is_string(), "{fetched}");
    }
    workspace.ok(&format!("rm {objects}; mv /aside {objects}"));
    let fetched = fetch("reset");
    assert_eq!(
        (&fetched["not_fetched"], &fetched["not_updated"]),
        (&Value::Null, &Value::Null)
    );
    let big = digest(&workspace, "/project/libs/sub/big.bin");
    assert_eq!(big, pointer(&one).0);
}

#[test]
fn a_transfer_that_is_cut_is_gone_on_with() {
    let server = LfsServer::before(GitServer::open(), None);
    let big = content(1, 1_000_000);
    let upstream = server.repository("project", &[("small", "1\n")]);
    upstream.commit(&[("one.bin", &server.keep(&big))]);
    server.behave(Behaviour::Cut(300_000));
    let derrick = config(&upstream, &json!({})).start();
    assert_eq!(
        digest(&derrick.create(), "/project/one.bin"),
        pointer(&big).0
    );
    let ranges: Vec<_> = server
        .requests()
        .into_iter()
        .filter(|request| request.method == "GET")
        .collect();
    let ranges: Vec<_> = ranges.into_iter().map(|request| request.range).collect();
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    assert!(
        ranges[0].is_none() && ranges[1..].iter().all(Option::is_some),
        "{ranges:?}"
    );

    // One that never gets further is given up, and gone on with at the next try.
    let next = content(2, 1_000_000);
    upstream.commit(&[("one.bin", &server.keep(&next))]);
    server.behave(Behaviour::CutWithoutRanges(300_000));
    let said = refusal(&derrick);
    assert!(
        said.contains("broke off") && said.contains(&pointer(&next).0),
        "{said}"
    );
    server.behave(Behaviour::Good);
    let before = server.requests().len();
    assert_eq!(
        digest(&derrick.create(), "/project/one.bin"),
        pointer(&next).0
    );
    let asked = server.requests()[before..].to_vec();
    assert_eq!(
        asked
            .last()
            .and_then(|request| request.range.clone())
            .as_deref(),
        Some("bytes=300000-")
    );

    // Parts that are none are not believed.
    let last = content(3, 1_000_000);
    upstream.commit(&[("one.bin", &server.keep(&last))]);
    server.behave(Behaviour::WrongParts);
    assert!(refusal(&derrick).contains("broke off"));
    server.behave(Behaviour::Good);
    assert_eq!(
        digest(&derrick.create(), "/project/one.bin"),
        pointer(&last).0
    );
}

#[test]
fn a_server_that_lies_or_fails_is_said_so_and_nothing_of_it_comes_in() {
    let server = LfsServer::before(GitServer::with_token(TOKEN), Some(TOKEN));
    let other = LfsServer::alone();
    let scratch = Scratch::new();
    let token = scratch.file("token", TOKEN);
    let big = content(1, 200_000);
    let upstream = server.repository("project", &[("small", "1\n")]);
    let text = server.keep(&big);
    other.keep(&big);
    upstream.commit(&[("dir/one.bin", &text)]);
    let derrick = config(&upstream, &json!({ "token_file": token }))
        .environment("DERRICK_LOG", "trace")
        .start();
    let oid = pointer(&big).0;
    for (behaviour, says) in [
        (
            Behaviour::Wrong,
            vec!["dir/one.bin", &oid, "its SHA-256 is"],
        ),
        (
            Behaviour::Endless,
            vec!["dir/one.bin", &oid, "more than 200000 bytes"],
        ),
        (Behaviour::Short, vec!["broke off", &oid]),
        (
            Behaviour::Missing,
            vec!["dir/one.bin", &oid, "404 no such object"],
        ),
        (
            Behaviour::NoServer,
            vec!["no server of them", "/project.git/info/lfs"],
        ),
        (Behaviour::Garbage, vec!["no answer of a batch"]),
        (
            Behaviour::Links(other.origin()),
            vec!["the link to a large file", "lfs_urls"],
        ),
        (
            Behaviour::Redirects(other.origin()),
            vec!["the link to a large file", "lfs_urls"],
        ),
        (
            Behaviour::Moved(other.origin()),
            vec!["the server of large files", "lfs_urls"],
        ),
        (
            Behaviour::Links("file:///etc/passwd?x=".to_owned()),
            vec!["lfs_urls"],
        ),
        (
            Behaviour::Links(server.origin().replace("//", "//user:pw@")),
            vec!["lfs_urls"],
        ),
    ] {
        server.behave(behaviour.clone());
        let said = refusal(&derrick);
        for part in says {
            assert!(said.contains(part), "{behaviour:?}: {said}");
        }
        assert!(!said.contains(TOKEN) && !said.contains("signed"), "{said}");
    }
    assert!(other.requests().is_empty(), "{:?}", other.requests());
    // Where the config allows it, the other host gets what is for it and no more.
    let allowed = json!({ "token_file": token, "lfs_urls": [other.origin()] });
    for behaviour in [
        Behaviour::Links(other.origin()),
        Behaviour::Redirects(other.origin()),
    ] {
        server.behave(behaviour.clone());
        let before = other.requests().len();
        let derrick = config(&upstream, &allowed).start();
        assert_eq!(digest(&derrick.create(), "/project/dir/one.bin"), oid);
        let asked = other.requests()[before..].to_vec();
        assert_eq!(asked.len(), 1);
        assert!(asked[0].authorization.is_none(), "{asked:?}");
        let ticket =
            matches!(behaviour, Behaviour::Links(_)).then(|| "ticket-of-a-link".to_owned());
        assert_eq!(asked[0].ticket, ticket);
    }
    // What is not there is named, and not the repository's own host.
    let nobody = "http://127.0.0.1:1";
    server.behave(Behaviour::Links(nobody.to_owned()));
    let allowed = json!({ "token_file": token, "lfs_urls": [nobody] });
    let said = refusal(&config(&upstream, &allowed).start());
    let unreached = format!("cannot reach the host of {nobody}:");
    assert!(
        said.contains(&unreached) && !said.contains("signed"),
        "{said}"
    );
    // Without the token, and with another one.
    server.behave(Behaviour::Good);
    let open = LfsServer::before(GitServer::open(), Some(TOKEN));
    let hidden = open.repository("project", &[("small", "1\n")]);
    hidden.commit(&[("one.bin", &open.keep(&big))]);
    let wrong = scratch.file("wrong", "canary-of-another");
    for fields in [json!({}), json!({ "token_file": wrong })] {
        let derrick = config(&hidden, &fields).start();
        let said = refusal(&derrick);
        assert!(said.contains("refused the credentials"), "{said}");
        assert!(
            !format!("{said}{}", derrick.printed()).contains("canary"),
            "{said}"
        );
    }
}

#[test]
fn a_repository_names_another_server_only_where_the_config_allows_it() {
    let server = LfsServer::before(GitServer::with_token(TOKEN), Some(TOKEN));
    let other = LfsServer::alone();
    let scratch = Scratch::new();
    let token = scratch.file("token", TOKEN);
    let big = content(1, 20_000);
    let upstream = server.repository("project", &[("small", "1\n")]);
    let text = other.keep(&big);
    let settings = |url: &str| {
        format!(
            "[core]\n\tfsmonitor = touch /tmp/run\n[include]\n\tpath = /etc/passwd\n[lfs]\n\turl = {url}\n"
        )
    };
    let named = settings(&format!("{}/a/info/lfs", other.origin()));
    upstream.commit(&[("one.bin", &text), (".lfsconfig", &named)]);
    let derrick = config(&upstream, &json!({ "token_file": token })).start();
    let said = refusal(&derrick);
    assert!(
        said.contains(".lfsconfig") && said.contains("lfs_urls"),
        "{said}"
    );
    assert!(other.requests().is_empty());
    let allowed = json!({ "token_file": token, "lfs_urls": [format!("{}/a", other.origin())] });
    let derrick = config(&upstream, &allowed).start();
    // Links lead beside what is allowed.
    assert!(refusal(&derrick).contains("the link to a large file"));
    let allowed = json!({ "token_file": token, "lfs_urls": [other.origin()] });
    let derrick = config(&upstream, &allowed).start();
    assert_eq!(
        digest(&derrick.create(), "/project/one.bin"),
        pointer(&big).0
    );
    assert!(
        other
            .requests()
            .iter()
            .all(|request| request.authorization.is_none())
    );
    for url in [
        "file:///etc",
        "ssh://git@h/x",
        "https://user:canary@h/",
        "::",
        "",
    ] {
        upstream.commit(&[
            (".lfsconfig", &settings(url)),
            ("one.bin", &server.keep(format!("for {url}").as_bytes())),
        ]);
        let said = refusal(&derrick);
        assert!(
            said.contains(".lfsconfig") && !said.contains("canary"),
            "{url}: {said}"
        );
    }
    upstream.commit(&[(".lfsconfig", "[lfs\n")]);
    assert!(refusal(&derrick).contains(".lfsconfig"));
}

#[test]
fn many_large_files_are_asked_for_a_hundred_at_a_time() {
    let server = LfsServer::before(GitServer::open(), None);
    let upstream = server.repository("project", &[("small", "1\n")]);
    let files: Vec<_> = (0..1000)
        .map(|number| {
            (
                format!("dir{}/{number}.bin", number % 7),
                server.keep(format!("content of {number}").as_bytes()),
            )
        })
        .collect();
    let files: Vec<_> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    upstream.commit(&files);
    let derrick = config(&upstream, &json!({})).start();
    let workspace = derrick.create();
    assert_eq!(workspace.ok("cat /project/dir4/298.bin"), "content of 298");
    assert_eq!(
        workspace
            .ok(
                "cat /project/*/*.bin | grep -c version; git -C /project status --porcelain | wc -l"
            )
            .trim(),
        "0\n0"
    );
    let asked = server.requests();
    let batches: Vec<_> = asked
        .iter()
        .filter(|request| request.method == "POST")
        .map(|request| request.objects)
        .collect();
    assert_eq!(batches, [100; 10]);
    assert_eq!(asked.len(), 1010);
}

#[test]
fn a_directory_of_this_host_has_its_own() {
    let scratch = Scratch::new();
    let work = scratch.join("upstream");
    std::fs::create_dir(&work).expect("its own");
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    let (one, two) = (content(1, 30_000), content(2, 40_000));
    let put = |content: &[u8]| {
        let (oid, text) = pointer(content);
        let place = work.join(format!(".git/lfs/objects/{}/{}", &oid[..2], &oid[2..4]));
        std::fs::create_dir_all(&place).expect("its own");
        std::fs::write(place.join(&oid), content).expect("its own");
        (place.join(oid), text)
    };
    let commit = |text: &str| {
        std::fs::write(work.join("one.bin"), text).expect("its own");
        std::fs::write(work.join(".gitattributes"), ATTRIBUTES).expect("its own");
        git(&work, &["add", "--all"]);
        git(&work, &["commit", "--quiet", "--message=m"]);
    };
    commit(&put(&one).1);
    let upstream = |path: &Path| json!({ "url": path, "path": "/project", "lfs": true });
    let derrick = Launch::new(json!({ "name": "test", "repositories": [upstream(&work)] })).start();
    assert_eq!(
        digest(&derrick.create(), "/project/one.bin"),
        pointer(&one).0
    );
    // A link, and what is not there.
    let (place, text) = put(&two);
    let elsewhere = scratch.file("elsewhere", "");
    std::fs::write(&elsewhere, &two).expect("its own");
    std::fs::remove_file(&place).expect("its own");
    std::os::unix::fs::symlink(&elsewhere, &place).expect("its own");
    commit(&text);
    assert!(refusal(&derrick).contains("git lfs fetch --all"));
    std::fs::remove_file(&place).expect("its own");
    std::fs::write(&place, content(3, 40_000)).expect("its own");
    assert!(refusal(&derrick).contains("its SHA-256 is"));
    std::fs::write(&place, &two).expect("its own");
    assert_eq!(
        digest(&derrick.create(), "/project/one.bin"),
        pointer(&two).0
    );
}

#[test]
fn an_authority_of_the_repository_s_own_counts_for_large_files_too() {
    let lfs = LfsServer::before(GitServer::open(), None);
    let plain = GitServer::open();
    let server = TlsServer::before_port(plain, lfs.port());
    let big = content(1, 20_000);
    let mut upstream = lfs.repository("project", &[("small", "1\n")]);
    upstream.commit(&[("one.bin", &lfs.keep(&big))]);
    upstream.url = server
        .repository("unused", &[])
        .url
        .replace("unused", "project");
    // Links lead to the plain server.
    let fields = |authority: &Path| json!({ "ca_file": authority, "lfs_urls": [lfs.origin()] });
    let derrick = config(&upstream, &fields(&server.authority())).start();
    assert_eq!(
        digest(&derrick.create(), "/project/one.bin"),
        pointer(&big).0
    );
    let derrick = config(&upstream, &fields(&server.other_authority())).start();
    assert!(refusal(&derrick).contains("cannot verify the host"));
}

#[test]
fn a_push_points_to_no_large_file_that_the_workspace_was_not_given() {
    let server = LfsServer::before(GitServer::open(), None);
    let (one, there) = (content(1, 50_000), content(2, 60_000));
    let upstream = server.repository("project", &[("small", "1\n")]);
    upstream.commit(&[("one.bin", &server.keep(&one))]);
    upstream.receive();
    server.keep(&there);
    let derrick = config(&upstream, &json!({ "push": ["work"] })).start();
    let workspace = derrick.create();
    let commit = |command: &str| {
        workspace.ok(&format!(
            "cd /project && {command} && git add --all
             git -c user.name=Ada -c user.email=ada@example.org commit --quiet --message=m"
        ));
    };
    let pushed = || workspace.post("push", &json!({ "to": "work" }));
    // What is the workspace's own already may move, be changed back, and go.
    commit("mv one.bin moved.bin");
    commit("mv moved.bin one.bin");
    assert_eq!(pushed().expect(200).json()["commits"], 2);
    let last = git(&upstream.bare, &["rev-parse", "work"]);
    let asked = server.requests().len();
    let refused = |named: &[&str]| {
        let detail = pushed().problem(422)["detail"].to_string();
        for part in named {
            assert!(detail.contains(part), "{detail}");
        }
    };
    commit("mkdir d && printf new > d/new.bin");
    let made_inside = pointer(b"new").0;
    refused(&["d/new.bin", &made_inside, "was not given"]);
    // Also where a later commit has it no more.
    commit("rm d/new.bin");
    refused(&["d/new.bin"]);
    // The same for what the upstream has: whoever knows its name would have it by a fetch, or know that it is there.
    workspace.ok("cd /project && git reset --quiet --hard origin/main");
    commit(&format!("printf '{}' > there.bin", pointer(&there).1));
    refused(&["there.bin", "was not given"]);
    assert_eq!(git(&upstream.bare, &["rev-parse", "work"]), last);
    let later = server.requests().split_off(asked);
    let of_large_files = later
        .iter()
        .filter(|request| request.target.contains("/info/lfs"));
    assert_eq!(of_large_files.count(), 0);
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.method != "PUT")
    );
}

#[test]
fn an_ssh_host_says_where_large_files_are_and_what_opens_them() {
    let server = SshServer::start();
    let objects = LfsServer::token_alone(TOKEN_OF_SSH);
    let big = content(1, 40_000);
    let upstream = server.repository("project", &[(".gitattributes", ATTRIBUTES)]);
    let path = upstream.bare.display().to_string();
    upstream.commit(&[("one.bin", &objects.keep(&big))]);
    let opens = support::lfs_server::basic(TOKEN_OF_SSH);
    server.add_program(
        "git-lfs-authenticate",
        &format!(
            r#"[ "$1" = '{path}' ] && [ "$2" = download ] || exit 1
               echo '{{"href":"{}/x/info/lfs","header":{{"Authorization":"{opens}"}},"expires_in":60}}'"#,
            objects.origin()
        ),
    );
    let fields = |urls: Option<String>| {
        json!({
            "ssh_key_file": server.key(), "known_hosts_file": server.known_hosts(),
            "lfs_urls": urls.map(|url| [url]),
        })
    };
    let derrick = config(&upstream, &fields(None)).start();
    let said = refusal(&derrick);
    assert!(
        said.contains("what the ssh host says") && said.contains("lfs_urls"),
        "{said}"
    );
    assert!(objects.requests().is_empty());
    let derrick = config(&upstream, &fields(Some(objects.origin())))
        .environment("DERRICK_LOG", "trace")
        .start();
    let workspace = derrick.create();
    assert_eq!(digest(&workspace, "/project/one.bin"), pointer(&big).0);
    assert_nowhere(TOKEN_OF_SSH, &derrick, &workspace);
    let batch = &objects.requests()[0];
    assert!(batch.target == "/x/info/lfs/objects/batch" && batch.authorization.is_some());
    assert_eq!((&batch.exposed, batch.holders.len()), (&Vec::new(), 0));
    // What opens the server is for the server, and not for links.
    assert!(objects.requests()[1].authorization.is_none());

    // What the ssh host said has come to its end: it is asked once more.
    let next = content(2, 40_000);
    upstream.commit(&[("one.bin", &objects.keep(&next))]);
    let scratch = Scratch::new();
    let (asked, over) = (scratch.join("asked"), support::lfs_server::basic("over"));
    server.add_program(
        "git-lfs-authenticate",
        &format!(
            r#"if mkdir '{}' 2>/dev/null; then opens='{over}'; else opens='{opens}'; fi
               echo '{{"href":"{}/x/info/lfs","header":{{"Authorization":"'"$opens"'"}},"expires_in":60}}'"#,
            asked.display(),
            objects.origin()
        ),
    );
    let before = objects.requests().len();
    assert_eq!(
        digest(&derrick.create(), "/project/one.bin"),
        pointer(&next).0
    );
    let methods: Vec<_> = objects.requests()[before..]
        .iter()
        .map(|request| request.method.clone())
        .collect();
    assert_eq!(methods, ["POST", "POST", "GET"]);

    // Where it says for how long it is true, nobody waits for a refusal.
    let last = content(3, 40_000);
    upstream.commit(&[("one.bin", &objects.keep(&last))]);
    let asked = scratch.join("asked-again");
    server.add_program(
        "git-lfs-authenticate",
        &format!(
            r#"if mkdir '{}' 2>/dev/null; then opens='{over}' in=1; else opens='{opens}' in=60; fi
               echo '{{"href":"{}/x/info/lfs","header":{{"Authorization":"'"$opens"'"}},"expires_in":'$in'}}'"#,
            asked.display(),
            objects.origin()
        ),
    );
    let before = objects.requests().len();
    assert_eq!(
        digest(&derrick.create(), "/project/one.bin"),
        pointer(&last).0
    );
    let requests = &objects.requests()[before..];
    let methods = requests.iter().map(|request| request.method.as_str());
    assert_eq!(methods.collect::<Vec<_>>(), ["POST", "GET"]);
}

#[test]
fn what_would_leave_no_room_is_not_begun() {
    let server = LfsServer::before(GitServer::open(), None);
    let upstream = server.repository("project", &[("small", "1\n")]);
    let text = server.keep(b"content");
    let vast = text.replace("size 7", &format!("size {}", 1_u64 << 60));
    upstream.commit(&[("dir/one.bin", &vast)]);
    let derrick = config(&upstream, &json!({})).start();
    let problem = derrick.api.post("/workspaces", &json!({})).problem(507);
    let detail = problem["detail"].as_str().expect("a text");
    for part in [
        "no room",
        "dir/one.bin",
        "1152921504606846976",
        "--min-free",
    ] {
        assert!(detail.contains(part), "{detail}");
    }
    // Two sizes of one content: one must be wrong.
    upstream.commit(&[
        ("dir/one.bin", &text),
        ("two.bin", &text.replace("size 7", "size 8")),
    ]);
    assert!(refusal(&derrick).contains("another size"));
    assert!(server.requests().is_empty(), "{:?}", server.requests());
}
