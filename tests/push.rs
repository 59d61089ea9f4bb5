//! A workspace's commits on their way out: a commit of what was changed, a bundle, a push to the upstream.
//!
//! The workspace's own git makes them, and may be anything.

mod support;

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use support::{
    Answer, Derrick, GUARD, GitServer, Launch, Mode, Scratch, Upstream, Workspace, as_owner, bare,
    binary, fixture, git, mode, problem, succeed, tarball, wait_for,
};

/// A provider with one repository, in `/project`, on a base of the host's programs.
fn with_project(server: &GitServer) -> (Upstream, Derrick) {
    let upstream = server.repository("project", &[("file", "first\n"), ("old", "x\n")]);
    let derrick = Derrick::start(json!({
        "name": "test",
        "workdir": "/project",
        "repositories": [{ "url": upstream.url, "path": "/project", "reference": "main" }],
    }));
    (upstream, derrick)
}

/// One without git, and with `/project` in it.
fn without_git(server: &GitServer) -> (Upstream, Derrick) {
    let upstream = server.repository("project", &[("file", "first\n")]);
    let mut config = tarball(&fixture("busybox.tar"));
    config["repositories"] = json!([{ "url": upstream.url, "path": "/project" }]);
    (upstream, Derrick::start(config))
}

/// What a commit is asked for with.
fn order(message: &str) -> Value {
    json!({
        "message": message,
        "author": { "name": "Grace", "email": "grace@example.org" },
        "date": "2026-01-31T12:00:00+01:00",
    })
}

fn commit(workspace: &Workspace, message: &str) -> Value {
    workspace.post("commit", &order(message)).expect(200).json()
}

fn bundle(workspace: &Workspace, query: &str) -> Answer {
    workspace
        .api()
        .get(&format!("/workspaces/{}/bundle{query}", workspace.id))
}

/// Puts a script in the place of the workspace's git.
fn replace_git(workspace: &Workspace, script: &str) {
    workspace.write_file("/bin/git", format!("#!/bin/sh\n{script}\n").as_bytes());
    workspace.ok("chmod 755 /bin/git");
}

#[test]
fn a_commit_has_all_that_was_changed_and_is_whose_it_is_said_to_be() {
    let server = GitServer::open();
    let (upstream, derrick) = with_project(&server);
    let workspace = derrick.create();
    let base = upstream.head();
    workspace.ok(
        "echo second > file; rm old; mkdir -p deep/er; echo new > deep/er/untracked
         echo staged > staged; git add staged; echo '*.log' > .gitignore; echo no > a.log
         printf 'a\\0b' > binary; ln -s file link; chmod +x file",
    );
    let made = commit(&workspace, "  \nMend it\n\n# not a comment\n");
    let id = made["commit"].as_str().expect("an id").to_owned();
    assert_eq!(
        made,
        json!({
            "path": "/project", "branch": "main", "commit": id, "parent": base, "files": 7,
        })
    );
    assert_eq!(
        workspace.ok("git log -1 --format='%H|%P|%an|%ae|%at|%cn|%ce|%ct|%B'"),
        format!(
            "{id}|{base}|Grace|grace@example.org|1769857200|Grace|grace@example.org|1769857200|\
             Mend it\n\n# not a comment\n\n"
        )
    );
    assert_eq!(
        workspace.ok("git show --format= --name-status HEAD; git status --porcelain --ignored"),
        "A\t.gitignore\nA\tbinary\nA\tdeep/er/untracked\nM\tfile\nA\tlink\nD\told\nA\tstaged\n!! a.log\n"
    );

    let again = commit(&workspace, "again");
    assert_eq!(
        again,
        json!({
            "path": "/project", "branch": "main", "commit": null, "parent": id, "files": 0,
        })
    );
    assert_eq!(workspace.ok("git rev-parse HEAD").trim(), id);
}

#[test]
fn a_commit_ends_a_merge_and_begins_a_repository() {
    let server = GitServer::open();
    let (_upstream, derrick) = with_project(&server);
    let workspace = derrick.create();
    workspace.ok("git config user.name x; git config user.email x@x
         git checkout -q -b side; echo side > file; git commit -qam side
         git checkout -q main; echo main > file; git commit -qam main
         git merge side > /dev/null; echo both > file");
    let made = commit(&workspace, "both");
    assert_eq!(made["files"], json!(1), "{made}");
    assert_eq!(
        workspace
            .ok("git log -1 --format=%P | wc -w; git rev-parse --verify -q MERGE_HEAD; echo $?"),
        "2\n1\n"
    );
    // Another repository, without a commit so far; and no branch.
    workspace.ok("git init -q -b first /other && echo x > /other/x");
    let mut wanted = order("first");
    wanted["path"] = json!("/other");
    let made = workspace.post("commit", &wanted).expect(200).json();
    assert_eq!(
        (&made["parent"], &made["files"]),
        (&Value::Null, &json!(1)),
        "{made}"
    );
    assert_eq!(made["branch"], json!("first"), "{made}");
    workspace.ok("cd /other && git checkout -q --detach && echo y > x");
    let made = workspace.post("commit", &wanted).expect(200).json();
    assert_eq!(made["branch"], Value::Null, "{made}");
    assert_eq!(workspace.ok("git -C /other rev-list --count HEAD"), "2\n");
}

#[test]
fn no_hook_no_signature_and_no_editor_is_in_the_way_of_a_commit() {
    let server = GitServer::open();
    let (_upstream, derrick) = with_project(&server);
    let workspace = derrick.create();
    workspace.ok(
        "cat > /hook <<'END'\n#!/bin/sh\necho \"$0\" >> /ran\nexit 1\nEND
         chmod 755 /hook
         for hook in pre-commit prepare-commit-msg commit-msg post-commit reference-transaction; do
             ln -s /hook .git/hooks/$hook
         done
         git config core.hooksPath /project/.git/hooks; git config core.fsmonitor /hook
         git config commit.gpgSign true; git config gpg.program /hook; git config core.editor /hook
         git config commit.template /hook; git config commit.cleanup scissors
         git config core.pager /hook; git config diff.external /hook
         echo x > file",
    );
    // It would have been.
    let refused = workspace.sh("git -c user.name=x -c user.email=x@x commit -qam x; rm /ran");
    assert_eq!(refused.exit_code, 0, "{}", refused.output);
    let made = commit(&workspace, "past them");
    assert_eq!(made["files"], json!(1), "{made}");
    workspace.ok("test ! -e /ran");
    assert!(!workspace.ok("git cat-file commit HEAD").contains("gpgsig"));
}

#[test]
fn a_commit_belongs_to_the_owner_of_its_repository() {
    if mode() == Mode::Single {
        // There is nobody else.
        return;
    }
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    let derrick = Derrick::start(json!({
        "name": "test",
        "user": "daemon",
        "repositories": [{ "url": upstream.url, "path": "/project" }],
    }));
    let workspace = derrick.create();
    workspace.ok("echo x > /project/x");
    let made = commit(&workspace, "mine");
    assert_eq!(made["files"], json!(1), "{made}");
    assert_eq!(workspace.ok("find /project ! -user daemon"), "");
}

#[test]
fn what_cannot_be_committed_or_bundled_is_said() {
    let server = GitServer::open();
    let (_upstream, derrick) = with_project(&server);
    let workspace = derrick.create();
    for (change, status, named) in [
        (json!({ "message": " \n" }), 400, "message"),
        (json!({ "message": "a\0" }), 400, "message"),
        (
            json!({ "author": { "name": "a\nb", "email": "a@b" } }),
            400,
            "author.name",
        ),
        (
            json!({ "author": { "name": "a", "email": "<a@b>" } }),
            400,
            "author.email",
        ),
        (json!({ "author": { "name": "a" } }), 400, "email"),
        (json!({ "date": "yesterday" }), 400, "date"),
        (json!({ "amend": true }), 400, "amend"),
        (json!({ "path": "relative" }), 422, "path"),
        (json!({ "path": "/project/../etc" }), 422, "path"),
        (json!({ "path": "/nowhere" }), 422, "/nowhere"),
        (json!({ "path": "/etc" }), 422, "/etc"),
    ] {
        let mut wanted = order("m");
        for (field, value) in change.as_object().expect("an object") {
            wanted[field] = value.clone();
        }
        let refused = workspace.post("commit", &wanted).problem(status);
        let detail = refused["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(named), "{refused}");
    }
    for (query, status, named) in [
        ("?path=relative", 422, "path"),
        ("?path=/etc", 422, "/etc"),
        ("?reference=nowhere", 422, "nowhere"),
        ("?reference=-x", 422, "-x"),
        ("?reference=--all", 422, "--all"),
        ("?reference=main..main", 422, "main..main"),
        ("?branch=main", 400, "branch"),
    ] {
        let refused = bundle(&workspace, query).problem(status);
        let detail = refused["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(named), "{refused}");
    }
    let derrick = Derrick::on_host();
    let refused = derrick.create().post("commit", &order("m")).problem(422);
    assert!(
        refused["detail"]
            .as_str()
            .is_some_and(|why| why.contains("path")),
        "{refused}"
    );
}

#[test]
fn a_bundle_is_the_repository_as_it_is_and_git_takes_it() {
    let server = GitServer::open();
    let (upstream, derrick) = with_project(&server);
    let workspace = derrick.create();
    workspace.ok("git config user.name x; git config user.email x@x
         git checkout -q -b side; echo side > side; git add side; git commit -qm side; git tag v1
         git checkout -q main; echo mine > file; git commit -qam mine; echo not committed > file");
    let all = bundle(&workspace, "").expect(200);
    assert_eq!(all.content_type(), "application/x-git-bundle");
    assert_eq!(
        all.headers["content-length"].to_str().ok(),
        Some(all.body.len().to_string().as_str())
    );
    let scratch = Scratch::new();
    let file = scratch.file("all", &all.body);
    let file = file.to_str().expect("it is text");
    git(scratch.path(), &["clone", "-q", file, "clone"]);
    let clone = scratch.join("clone");
    let ids = "git rev-parse main side v1";
    let cloned = git(&clone, &["rev-parse", "HEAD", "origin/side", "v1"]);
    assert_eq!(cloned, workspace.ok(ids));
    assert_eq!(git(&clone, &["show", "HEAD:file"]), "mine\n");
    git(&clone, &["fsck", "--strict"]);
    git(
        &clone,
        &["merge-base", "--is-ancestor", &upstream.head(), "HEAD"],
    );

    for (reference, listed) in [
        ("side", "refs/heads/side"),
        ("refs/heads/main", "refs/heads/main"),
        ("v1", "refs/tags/v1"),
        ("HEAD", "HEAD"),
    ] {
        let one = bundle(&workspace, &format!("?path=/project&reference={reference}")).expect(200);
        let file = scratch.file("one", &one.body);
        let file = file.to_str().expect("it is text");
        let heads = git(&clone, &["bundle", "list-heads", file]);
        let names: Vec<_> = heads
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        assert_eq!(names, [listed]);
    }
}

#[test]
fn without_a_git_inside_there_is_neither() {
    let server = GitServer::open();
    let (_upstream, derrick) = without_git(&server);
    let workspace = derrick.create();
    problem(
        workspace.post("commit", &order("m")),
        422,
        "not-possible",
        "git",
    );
    problem(bundle(&workspace, ""), 422, "not-possible", "git");
}

#[test]
fn a_git_that_is_none_is_found_out_and_ended() {
    let server = GitServer::open();
    let (_upstream, derrick) = without_git(&server);
    let workspace = derrick.create();
    let id = "0123456789abcdef0123456789abcdef01234567";
    let rev_parse = format!("case \"$*\" in *rev-parse*) echo {id}; exit;; esac");
    for (script, bundled) in [
        // It says yes to everything and does nothing,
        ("exit 0".to_owned(), "is no bundle"),
        // claims to have committed what was there before,
        (rev_parse.clone(), "is no bundle"),
        // prints what ends terminals,
        ("printf '\\033[2J\\0\\377'".to_owned(), "is no bundle"),
        ("echo '# v2 git bundle'".to_owned(), "is no bundle"),
        (
            format!(
                "printf '# v2 git bundle\\n{id} refs/heads/main\\n\\nPACK\\0\\0\\0\\002\\377\\377\\377\\377'"
            ),
            "claims more",
        ),
        // fails,
        (
            "printf '\\033[2Jwhy\\n' >&2; exit 3".to_owned(),
            "\u{fffd}[2Jwhy",
        ),
        ("kill -9 $$".to_owned(), "137"),
        // lacks what it needs itself, which is another thing than no git,
        ("no-such-program".to_owned(), "no-such-program"),
        // or never stops.
        (
            "case \"$*\" in *bundle*) exit 1;; esac; exec yes".to_owned(),
            "exit code 1",
        ),
    ] {
        replace_git(&workspace, &script);
        let refused = workspace.post("commit", &order("m")).problem(422);
        assert_eq!(
            refused["type"], "urn:derrick:problem:git-failed",
            "{script}: {refused}"
        );
        problem(bundle(&workspace, ""), 422, "git-failed", bundled);
    }
    replace_git(&workspace, "printf '\\033[2Jwhy\\n' >&2; exit 3");
    let refused = workspace.post("fetch", &json!({})).problem(422);
    let detail = refused["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("\u{fffd}[2Jwhy"), "{refused}");
    assert!(!detail.contains('\u{1b}'), "{refused}");
    // It says nothing for ever.
    replace_git(&workspace, "exec sleep 100000");
    problem(
        workspace.post("commit", &order("m")),
        422,
        "git-failed",
        "30 s",
    );
    workspace.ok("! ps | grep '[s]leep 100000'");
}

#[test]
fn who_hangs_up_ends_the_git_that_worked_for_them() {
    let server = GitServer::open();
    let (_upstream, derrick) = without_git(&server);
    let workspace = derrick.create();
    workspace.ok("mkfifo /tmp/started");
    replace_git(&workspace, "echo $$ > /tmp/started; exec sleep 100000");
    let mut stream = TcpStream::connect(derrick.api.address()).expect("it listens");
    let request = format!(
        "GET /workspaces/{}/bundle HTTP/1.1\r\nHost: {}\r\n\r\n",
        workspace.id,
        derrick.api.address()
    );
    stream.write_all(request.as_bytes()).expect("it is sent");
    let pid = workspace.ok("read pid < /tmp/started; echo $pid");
    workspace.ok(&format!("kill -0 {}", pid.trim()));
    stream.shutdown(Shutdown::Both).expect("it can be closed");
    drop(stream);
    workspace.ok(&format!(
        "while kill -0 {} 2> /dev/null; do sleep 0.1; done",
        pid.trim()
    ));
}

/// A provider that may push to the upstream by this URL, as `token` allows.
fn that_pushes(url: &str, token: Option<&str>) -> Derrick {
    let mut repository = json!({
        "url": url, "path": "/project", "reference": "main",
        "push": ["agents/{id}/*", "work", "shared-*"],
    });
    if token.is_some() {
        repository["token_env"] = json!("GIT_TOKEN");
    }
    let config = json!({ "name": "test", "workdir": "/project", "repositories": [repository] });
    Launch::new(config)
        .environment("GIT_TOKEN", token.unwrap_or_default())
        .start()
}

fn push(workspace: &Workspace, wanted: &Value) -> Value {
    workspace.post("push", wanted).expect(200).json()
}

/// Where the upstream's branch is, if it is there.
fn at(upstream: &Upstream, branch: &str) -> Option<String> {
    let format = "--format=%(objectname)";
    let there = git(
        &upstream.bare,
        &["for-each-ref", format, &format!("refs/heads/{branch}")],
    );
    there.lines().next().map(str::to_owned)
}

const TOKEN: &str = "canary-0b5e1c77d2f94a63";

#[test]
fn commits_go_to_a_branch_that_the_config_allows_and_to_no_other() {
    let server = GitServer::with_token(TOKEN);
    for by_http in [true, false] {
        let upstream = server.repository(&format!("p{by_http}"), &[("file", "first\n")]);
        upstream.receive();
        let bare = upstream.bare.to_str().expect("it is text");
        let (url, token) = match by_http {
            true => (upstream.url.as_str(), Some(TOKEN)),
            false => (bare, None),
        };
        let derrick = that_pushes(url, token);
        let workspace = derrick.create();
        let base = upstream.head();
        let to = format!("agents/{}/fix", workspace.id);

        // Nothing new so far: the branch is made where the workspace began.
        let made = push(&workspace, &json!({ "to": to }));
        assert_eq!(
            made,
            json!({
                "url": url, "path": "/project", "branch": to,
                "old_commit": null, "new_commit": base, "commits": 0,
            })
        );
        workspace.ok("echo mine > file");
        let first = commit(&workspace, "first")["commit"].take();
        let made = push(&workspace, &json!({ "branch": "main", "to": to }));
        assert_eq!(made["old_commit"], json!(base), "{made}");
        assert_eq!(made["new_commit"], first, "{made}");
        assert_eq!(made["commits"], json!(1), "{made}");
        assert_eq!(at(&upstream, &to).map(Value::from), Some(first.clone()));
        let again = push(&workspace, &json!({ "to": to }));
        assert_eq!(
            (&again["old_commit"], &again["new_commit"]),
            (&first, &first)
        );
        assert_eq!(
            git(&upstream.bare, &["show", &format!("{to}:file")]),
            "mine\n"
        );

        // By its own name, with a merge of what came since.
        let news = upstream.commit(&[("other", "news\n")]);
        workspace.fetch();
        workspace.ok("git config user.name x; git config user.email x@x
             git checkout -q -b work; git merge -q origin/main 2> /dev/null");
        let made = push(&workspace, &json!({}));
        assert_eq!(made["branch"], json!("work"), "{made}");
        let merged = at(&upstream, "work").expect("it is there");
        git(
            &upstream.bare,
            &["merge-base", "--is-ancestor", &news, &merged],
        );

        for (wanted, status, named) in [
            (json!({ "to": "main" }), 403, "\"main\""),
            (json!({ "to": "agents/another/fix" }), 403, "agents/{id}/*"),
            (json!({ "to": format!("{to}/deeper") }), 403, "push"),
            (json!({ "to": "refs/heads/work" }), 403, "push"),
            (json!({ "to": "shared-a:refs/heads/main" }), 403, "push"),
            (json!({ "to": "shared-..a" }), 403, "push"),
            (json!({ "to": "" }), 403, "push"),
            (json!({ "branch": "main" }), 403, "\"main\""),
            (json!({ "branch": "nowhere", "to": "work" }), 422, "nowhere"),
            (json!({ "branch": "-x", "to": "work" }), 422, "-x"),
            (json!({ "path": "/elsewhere" }), 422, "/project"),
            (json!({ "force": true }), 400, "force"),
        ] {
            let refused = workspace.post("push", &wanted).problem(status);
            let detail = refused["detail"].as_str().unwrap_or_default();
            assert!(detail.contains(named), "{wanted}: {refused}");
        }
        workspace.ok("git checkout -q --detach");
        let refused = workspace.post("push", &json!({})).problem(403);
        assert!(
            refused["detail"]
                .as_str()
                .is_some_and(|why| why.contains("field to"))
        );
        assert_eq!(at(&upstream, "main"), Some(news), "nobody pushed there");

        // The token is nowhere.
        let pattern = format!("[{}]{}", &TOKEN[..1], &TOKEN[1..]);
        workspace.ok(&format!("! grep -rs '{pattern}' /project /tmp /etc /root"));
        let state = derrick.state();
        // Other tests look for it in command lines.
        let found = as_owner("grep")
            .args(["-rla", "-e", &pattern])
            .arg(&state)
            .output();
        let found = found.expect("cannot start grep");
        assert_eq!(found.status.code(), Some(1), "{found:?}");
        assert!(!derrick.printed().contains(TOKEN));
        // Nor is anything left of what was looked at.
        assert_eq!(quarantines(&derrick), "");
    }
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.exposed.is_empty())
    );
}

/// What is left of repositories in which commits were looked at.
fn quarantines(derrick: &Derrick) -> String {
    let found = as_owner("find")
        .arg(derrick.state().join("run"))
        .args(["-name", "push-*"])
        .output();
    String::from_utf8_lossy(&found.expect("cannot start find").stdout).into_owned()
}

#[test]
fn nothing_is_pushed_that_the_config_does_not_speak_of_or_that_has_no_history() {
    let server = GitServer::open();
    let (upstream, derrick) = with_project(&server);
    let workspace = derrick.create();
    let refused = workspace.post("push", &json!({ "to": "x" })).problem(403);
    assert_eq!(refused["type"], "urn:derrick:problem:push-not-allowed");
    let detail = refused["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains("push") && detail.contains("/project"),
        "{refused}"
    );
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [
            { "url": upstream.url, "path": "/project", "history": "none", "push": ["**"] },
        ],
    }));
    let workspace = derrick.create();
    problem(
        workspace.post("push", &json!({ "to": "x" })),
        422,
        "commits-refused",
        "history",
    );
}

#[test]
fn what_the_upstream_refuses_is_told_in_its_words() {
    let server = GitServer::with_token(TOKEN);
    let upstream = server.repository("project", &[("file", "first\n")]);
    let derrick = that_pushes(&upstream.url, Some(TOKEN));
    let workspace = derrick.create();
    workspace.ok("echo mine > file");
    commit(&workspace, "mine");
    // It lets nobody push.
    let refused = workspace
        .post("push", &json!({ "to": "work" }))
        .problem(422);
    assert_eq!(
        refused["type"], "urn:derrick:problem:repository-unavailable",
        "{refused}"
    );
    upstream.receive();

    let hook = upstream.bare.join("hooks/pre-receive");
    std::fs::create_dir_all(hook.parent().expect("a directory")).expect("it can be made");
    let script = format!("#!/bin/sh\nprintf 'not \\033[31mon a friday {TOKEN}\\n' >&2\nexit 1\n");
    std::fs::write(&hook, script).expect("it can be written");
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("it can be changed");
    let refused = workspace
        .post("push", &json!({ "to": "work" }))
        .problem(409);
    assert_eq!(refused["type"], "urn:derrick:problem:push-refused");
    let detail = refused["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("on a friday"), "{refused}");
    assert!(detail.contains("pre-receive hook declined"), "{refused}");
    assert!(
        !detail.contains(TOKEN) && !detail.contains('\u{1b}'),
        "{refused}"
    );
    assert_eq!(at(&upstream, "work"), None);
    std::fs::remove_file(&hook).expect("it is there");

    // Somebody else has pushed there meanwhile: nothing of theirs is lost.
    push(&workspace, &json!({ "to": "work" }));
    upstream.git(&["checkout", "-q", "-b", "work"]);
    let theirs = upstream.commit(&[("file", "theirs\n")]);
    assert_eq!(at(&upstream, "work"), Some(theirs.clone()));
    workspace.ok("echo more > file");
    commit(&workspace, "more");
    let refused = workspace
        .post("push", &json!({ "to": "work" }))
        .problem(409);
    let detail = refused["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("non-fast-forward"), "{refused}");
    assert_eq!(at(&upstream, "work"), Some(theirs));
    assert_eq!(quarantines(&derrick), "");
}

#[test]
fn what_the_workspace_says_of_its_remotes_takes_a_push_nowhere_else() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    upstream.receive();
    let other = server.repository("other", &[("file", "first\n")]);
    other.receive();
    let derrick = that_pushes(&upstream.url, None);
    let workspace = derrick.create();
    workspace.ok(&format!(
        "echo mine > file
         git config remote.origin.url {0}; git config remote.origin.pushurl {0}
         git config url.{0}.insteadOf {1}; git config url.{0}.pushInsteadOf {1}
         git config core.sshCommand 'touch /ran'; git config credential.helper '!touch /ran'
         git config core.alternateRefsCommand 'touch /ran'; git config pack.packObjectsHook 'touch /ran'
         printf '#!/bin/sh\\ntouch /ran\\n' > .git/hooks/pre-push; chmod +x .git/hooks/pre-push",
        other.url, upstream.url
    ));
    commit(&workspace, "mine");
    let made = push(&workspace, &json!({ "to": "work" }));
    assert_eq!(
        at(&upstream, "work").map(Value::from),
        Some(made["new_commit"].clone())
    );
    assert_eq!(at(&other, "work"), None);
    workspace.ok("test ! -e /ran");
}

#[test]
fn the_command_line_commits_bundles_and_pushes() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    upstream.receive();
    let derrick = that_pushes(&upstream.url, None);
    let workspace = derrick.create();
    let url = format!("http://{}", derrick.api.address());
    let run = |words: &[&str]| {
        let output = Command::new(binary())
            .arg(words[0])
            .args(["--server", &url])
            .args(&words[1..])
            .arg(&workspace.id)
            .output()
            .expect("cannot start derrick");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), output.stdout, said)
    };
    workspace.ok("echo mine > file");
    let words = [
        "commit",
        "-m",
        "-mend it",
        "--author",
        "Ada <ada@example.org>",
    ];
    let (code, printed, said) = run(&words);
    assert_eq!(code, Some(0), "{said}");
    let id = workspace.ok("git rev-parse HEAD");
    let short: String = id.chars().take(11).collect();
    let line = String::from_utf8_lossy(&printed).into_owned();
    assert!(
        line.starts_with("/project main: ") && line.contains(&short),
        "{line}"
    );
    assert!(line.ends_with("(1 file)\n"), "{line}");
    assert_eq!(
        workspace.ok("git log -1 --format='%an %s'"),
        "Ada -mend it\n"
    );
    let (code, printed, _) = run(&words);
    assert_eq!(
        (code, printed.as_slice()),
        (Some(0), &b"/project: nothing to commit\n"[..])
    );

    let (code, printed, said) = run(&["bundle", "--reference", "main"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(printed.starts_with(b"# v"), "{said}");
    let (code, printed, said) = run(&["push", "--to", "work"]);
    assert_eq!(code, Some(0), "{said}");
    let line = String::from_utf8_lossy(&printed).into_owned();
    assert!(
        line.starts_with("/project work: nothing -> ") && line.contains(&short),
        "{line}"
    );
    let (code, _, said) = run(&["push", "--branch", "main"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("push"), "{said}");
    let (code, _, said) = run(&["commit", "-m", "x", "--author", "nobody"]);
    assert_eq!(code, Some(2), "{said}");
}

#[test]
fn hooks_of_another_users_repository_do_not_run_as_this_one() {
    if mode() != Mode::Root {
        // Only root can make one.
        return;
    }
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    let bare = upstream.bare.to_str().expect("it is text");
    let derrick = that_pushes(bare, None);
    let workspace = derrick.create();
    bare::sh(&format!(
        "printf '#!/bin/sh\\ntouch {bare}/ran\\n' > {bare}/hooks/pre-receive
         chmod 755 {bare}/hooks/pre-receive; chown -R daemon: {bare}"
    ));
    problem(
        workspace.post("push", &json!({ "to": "work" })),
        422,
        "commits-refused",
        "another user",
    );
    assert!(!upstream.bare.join("ran").exists());
    bare::sh(&format!("chown -R root: {bare}"));
    push(&workspace, &json!({ "to": "work" }));
    assert!(upstream.bare.join("ran").exists(), "it would have run");
}

/// Has the workspace's git hand out a bundle of the test's making, and say that it leads to `tip`.
fn hand_out(workspace: &Workspace, bundle: &[u8], tip: &str) {
    workspace.write_file("/tmp/bundle", bundle);
    replace_git(
        workspace,
        &format!(
            "case \"$*\" in
             *bundle*) exec cat /tmp/bundle;;
             *symbolic-ref*) exit 1;;
             *rev-parse*) echo {tip};;
             esac"
        ),
    );
}

/// A repository of the attacker's, in which any object can be made.
struct Forge {
    scratch: Scratch,
    base: String,
}

impl Forge {
    fn of(upstream: &Upstream) -> Self {
        let scratch = Scratch::new();
        let bare = upstream.bare.to_str().expect("it is text");
        git(scratch.path(), &["clone", "-q", bare, "forge"]);
        let base = upstream.head();
        Self { scratch, base }
    }

    /// Runs a shell there; what it printed, less the end of the line.
    fn sh(&self, line: &str) -> String {
        let line = format!(
            "set -e; cd {}/forge; base={}
             export GIT_AUTHOR_NAME=x GIT_AUTHOR_EMAIL=x@x GIT_COMMITTER_NAME=x GIT_COMMITTER_EMAIL=x@x
             export GIT_CONFIG_GLOBAL=/dev/null
             raw() {{ printf %s \"$1\" | sed 's/../\\\\x&/g'; }}
             tree() {{ printf \"$1 $2\\0$(raw $3)\" | git hash-object -t tree -w --literally --stdin; }}
             commit() {{ git commit-tree -m x -p $base $1; }}
             {line}",
            self.scratch.path().display(),
            self.base
        );
        bare::sh(&line).trim().to_owned()
    }

    /// A bundle of `tip`, which needs what the workspace started from.
    fn bundle(&self, tip: &str) -> Vec<u8> {
        self.bundle_with(
            &format!("-{}\n{tip} HEAD\n", self.base),
            &format!("{tip}\n^{}", self.base),
        )
    }

    /// A bundle with these lines as its header, and the objects that these lead to.
    fn bundle_with(&self, header: &str, objects: &str) -> Vec<u8> {
        self.scratch
            .file("header", format!("# v2 git bundle\n{header}\n"));
        self.scratch.file("objects", format!("{objects}\n"));
        self.sh("{ cat ../header; git pack-objects -q --stdout --revs < ../objects; } > ../bundle");
        std::fs::read(self.scratch.join("bundle")).expect("it was made")
    }

    /// Whether a git that looks at nothing takes it.
    fn is_taken_by_a_git_that_does_not_look(&self, bundle: &[u8]) -> bool {
        let bare = self.scratch.join("naive");
        git(
            self.scratch.path(),
            &["clone", "-q", "--bare", "forge", "naive"],
        );
        self.scratch.file("tried", bundle);
        let taken = Command::new("git")
            .current_dir(&bare)
            .args([
                "-c",
                "fetch.fsckObjects=false",
                "fetch",
                "-q",
                "../tried",
                "HEAD:refs/heads/taken",
            ])
            .status();
        std::fs::remove_dir_all(&bare).expect("it is there");
        taken.expect("cannot start git").success()
    }
}

#[test]
fn a_bundle_that_is_not_what_it_should_be_is_not_passed_on() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    upstream.receive();
    let mut config = tarball(&fixture("busybox.tar"));
    config["repositories"] = json!([
        { "url": upstream.url, "path": "/project", "push": ["agents/*"] },
    ]);
    let derrick = Derrick::start(config);
    let workspace = derrick.create();
    let forge = Forge::of(&upstream);
    let refused = |bundle: &[u8], tip: &str, kind: &str, named: &str| {
        hand_out(&workspace, bundle, tip);
        let answer = workspace.post("push", &json!({ "to": "agents/x" }));
        problem(answer, 422, kind, named);
        assert_eq!(at(&upstream, "agents/x"), None, "{named}");
        assert_eq!(quarantines(&derrick), "", "{named}");
    };

    let blob = forge.sh("echo hostile | git hash-object -w --stdin");
    let good = forge.sh(&format!("commit $(tree 100644 file {blob})"));
    let bundle = forge.bundle(&good);
    // It is none, or claims to be larger than it is.
    refused(b"#!/bin/sh\n", &good, "git-failed", "no bundle");
    let mut claims = bundle.clone();
    let pack = claims
        .windows(4)
        .position(|bytes| bytes == b"PACK")
        .expect("it has one");
    claims[pack + 8..pack + 12].fill(0xff);
    refused(&claims, &good, "git-failed", "claims");
    // It is broken, or cut off.
    let mut broken = bundle.clone();
    let middle = pack + (broken.len() - pack) / 2;
    broken[middle] ^= 0xff;
    refused(&broken, &good, "commits-refused", "objects");
    let longer = [bundle.as_slice(), &[0; 1000]].concat();
    refused(&longer, &good, "commits-refused", "junk");
    refused(
        &bundle[..bundle.len() - 30],
        &good,
        "commits-refused",
        "objects",
    );
    // It is of something else than was said, or by another name.
    let other = forge.sh(&format!(
        "git commit-tree -m other -p $base $(tree 100644 file {blob})"
    ));
    refused(&bundle, &other, "commits-refused", "something else");
    let needs = format!("-{}\n", forge.base);
    let objects = format!("{good}\n^{}", forge.base);
    for odd in ["refs/heads/main", "refs/../../x", "--upload-pack=x"] {
        let bundle = forge.bundle_with(&format!("{needs}{good} {odd}\n"), &objects);
        refused(&bundle, &good, "commits-refused", "something else");
    }
    let two = forge.bundle_with(
        &format!("{needs}{good} HEAD\n{good} refs/heads/x\n"),
        &objects,
    );
    refused(&two, &good, "commits-refused", "something else");
    // It needs what the upstream does not have, says so or does not.
    let second = forge.sh(&format!("base={good}; commit $(tree 100644 more {blob})"));
    let objects = format!("{second}\n^{good}");
    let needy = forge.bundle_with(&format!("-{good}\n{second} HEAD\n"), &objects);
    refused(&needy, &second, "commits-refused", "does not have");
    // Hundreds of thousands of times.
    let needs = format!("-{}\n", forge.base).repeat(300_000);
    let needy = forge.bundle_with(&format!("{needs}-{good}\n{second} HEAD\n"), &objects);
    refused(&needy, &second, "commits-refused", "does not have");
    let silent = forge.bundle_with(&format!("{second} HEAD\n"), &objects);
    refused(&silent, &second, "commits-refused", "objects");
    // It is small, and its commits are not.
    let long = forge.sh(&format!(
        "tree=$(tree 100644 file {blob})
         for n in $(seq 70); do
           base=$(head -c 4000000 /dev/zero | tr '\\0' a | git commit-tree -F - -p $base $tree)
         done; echo $base"
    ));
    let small = forge.bundle(&long);
    assert!(small.len() < 4 << 20, "{}", small.len());
    refused(&small, &long, "commits-refused", "without their files");
    // It has no history in common with the upstream, or is no commit.
    let alone = forge.sh(&format!(
        "git commit-tree -m alone $(tree 100644 file {blob})"
    ));
    refused(
        &forge.bundle(&alone),
        &alone,
        "commits-refused",
        "do not follow on",
    );
    let tag = forge.sh(&format!("git tag -a -m x v1 {good}; git rev-parse v1"));
    refused(&forge.bundle(&tag), &tag, "commits-refused", "no commit");

    // What would run or escape where it is checked out.
    for (what, tree) in [
        ("hasDotgit", format!("tree 40000 .git $(tree 100755 hooks {blob})")),
        ("hasDotgit", format!("tree 40000 .GIT $(tree 100755 hooks {blob})")),
        ("hasDotdot", format!("tree 40000 .. $(tree 100644 x {blob})")),
        ("fullPathname", format!("tree 100644 a/../../x {blob}")),
        (
            "gitmodulesUrl",
            "tree 100644 .gitmodules $(printf '[submodule \"x\"]\npath = x\nurl = --upload-pack=x\n' |
                 git hash-object -w --stdin)"
                .to_owned(),
        ),
        (
            "gitmodulesName",
            "tree 100644 .gitmodules $(printf '[submodule \"../../x\"]\npath = x\nurl = https://h/x\n' |
                 git hash-object -w --stdin)"
                .to_owned(),
        ),
        ("gitmodulesSymlink", format!("tree 120000 .gitmodules {blob}")),
    ] {
        let tip = forge.sh(&format!("commit $({tree})"));
        let bundle = forge.bundle(&tip);
        assert!(forge.is_taken_by_a_git_that_does_not_look(&bundle), "{what}");
        refused(&bundle, &tip, "commits-refused", what);
    }
    let tip = forge.sh(
        "printf \"tree $(git rev-parse HEAD^{tree})\\nparent $base\\n\\nx\\n\" | git hash-object -t commit -w --literally --stdin",
    );
    refused(
        &forge.bundle(&tip),
        &tip,
        "commits-refused",
        "missingAuthor",
    );
    // A small delta that makes a gigabyte.
    forge.scratch.file("bomb.py", BOMB);
    forge.sh(&format!(
        "python3 ../bomb.py {} {good} ../bundle",
        forge.base
    ));
    let bomb = std::fs::read(forge.scratch.join("bundle")).expect("it was made");
    assert!(bomb.len() < 1 << 20, "{} bytes", bomb.len());
    refused(&bomb, &good, "commits-refused", "allocate");

    // It has no end.
    replace_git(
        &workspace,
        &format!(
            "case \"$*\" in *bundle*) exec cat /dev/zero;; *rev-parse*) echo {good};; *) exit 1;; esac"
        ),
    );
    let answer = workspace.post("push", &json!({ "to": "agents/x" }));
    problem(answer, 422, "git-failed", "536870912 bytes");
    // All this time what is right would have passed.
    hand_out(&workspace, &forge.bundle(&good), &good);
    push(&workspace, &json!({ "to": "agents/x" }));
    assert_eq!(at(&upstream, "agents/x"), Some(good));
}

#[test]
fn what_is_sealed_does_not_come_back_by_way_of_a_push() {
    let server = GitServer::open();
    // Nothing that packs well.
    let answer: String = (1..2000_u64)
        .map(|line| format!("{:x}\n", line.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    let upstream = server.repository("project", &[("file", "oldest\n")]);
    let base = upstream.commit(&[("file", "newer\n")]);
    let later = upstream.commit(&[("answer", &answer)]);
    upstream.receive();
    let mut config = tarball(&fixture("busybox.tar"));
    config["repositories"] = json!([
        { "url": upstream.url, "path": "/project", "reference": base, "push": ["agents/*"] },
    ]);
    let derrick = Derrick::start(config);
    let workspace = derrick.create();
    let mut forge = Forge::of(&upstream);
    forge.base = base.clone();

    let sealed = forge.sh("git rev-parse main:answer");
    let old = forge.sh("git rev-parse $base^:file");
    let file = forge.sh("git rev-parse $base:file");
    let alike =
        forge.sh("{ git cat-file blob main:answer; echo more; } | git hash-object -w --stdin");
    let tree = |entries: &[(&str, &str)]| {
        let lines: String = entries
            .iter()
            .map(|(name, blob)| format!("100644 blob {blob}\\t{name}\\n"))
            .collect();
        forge.sh(&format!("commit $(printf '{lines}' | git mktree)"))
    };
    // An object of a later commit by its id; the later commit as a parent; an object that git is to complete the
    // pack with, because another one is told as a difference from it.
    let named = tree(&[("file", &file), ("found", &sealed)]);
    let parent = forge.sh("git commit-tree -m x -p main $base^{tree}");
    let told = tree(&[("answer", &alike), ("file", &file), ("other", &sealed)]);
    for (tip, foreign) in [(&named, &sealed), (&parent, &later), (&told, &sealed)] {
        forge.scratch.file(
            "header",
            format!("# v2 git bundle\n-{base}\n{tip} HEAD\n\n"),
        );
        forge.sh(&format!(
            "{{ cat ../header
               {{ echo -{later}; git rev-list --objects {tip} ^{later} | grep -v {sealed}; }} |
                 git pack-objects -q --stdout
             }} > ../bundle"
        ));
        let bundle = fs::read(forge.scratch.join("bundle")).expect("it was made");
        assert!(
            bundle.len() < answer.len() / 10,
            "{} bytes are not without the answer",
            bundle.len()
        );
        assert!(forge.is_taken_by_a_git_that_does_not_look(&bundle), "{tip}");
        hand_out(&workspace, &bundle, tip);
        let refused = workspace.post("push", &json!({ "to": "agents/x" }));
        problem(refused, 422, "commits-refused", foreign);
        assert_eq!(at(&upstream, "agents/x"), None);
    }
    // What the workspace has had all the time is another matter, also where it hands it out no more.
    let back = tree(&[("file", &old)]);
    let bundle = forge.bundle_with(
        &format!("-{base}\n{back} HEAD\n"),
        &format!("{back}\n^{base}\n^{base}^"),
    );
    hand_out(&workspace, &bundle, &back);
    push(&workspace, &json!({ "to": "agents/x" }));
    assert_eq!(at(&upstream, "agents/x"), Some(back));
}

/// Writes a bundle of a blob of 64 KiB and of one that is a gigabyte of it, by copies.
const BOMB: &str = r"
import hashlib, struct, sys, zlib
base, tip, path = sys.argv[1:]
content = b'x' * 65536
name = hashlib.sha1(b'blob %d\0' % len(content) + content).digest()
def number(value):
    out = bytearray()
    while value > 0x7f:
        out.append(0x80 | value & 0x7f)
        value >>= 7
    return bytes(out) + bytes([value])
def head(kind, size):
    first, size = kind << 4 | size & 15, size >> 4
    return bytes([first | (0x80 if size else 0)]) + (number(size) if size else b'')
copies = 16384
# 0x80 copies 64 KiB from the start.
delta = number(len(content)) + number(copies * 65536) + b'\x80' * copies
pack = b'PACK' + struct.pack('>II', 2, 2)
pack += head(3, len(content)) + zlib.compress(content)
pack += head(7, len(delta)) + name + zlib.compress(delta)
pack += hashlib.sha1(pack).digest()
header = '# v2 git bundle\n-%s\n%s HEAD\n\n' % (base, tip)
open(path, 'wb').write(header.encode() + pack)
";

#[test]
fn a_workspace_and_its_forks_push_what_follows_on_setup_whatever_was_fetched_before_a_snapshot() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    let derrick = that_pushes(upstream.bare.to_str().expect("it is text"), None);
    let workspace = derrick.create();
    upstream.commit(&[("file", "second\n")]);
    workspace.fetch();
    workspace.ok("echo mine > mine");
    commit(&workspace, "on the first");
    let taken = workspace.post("snapshots", &json!({})).expect(201).json();
    let tip = workspace.ok("git rev-parse HEAD");
    push(&workspace, &json!({ "to": "shared-one" }));
    let fork = derrick
        .api
        .post("/workspaces", &json!({ "snapshot": taken["id"] }))
        .expect(200)
        .json();
    let fork = derrick.api.workspace(fork["id"].as_str().expect("an id"));
    push(&fork, &json!({ "to": "shared-two" }));
    for branch in ["shared-one", "shared-two"] {
        assert_eq!(at(&upstream, branch).as_deref(), Some(tip.trim()));
    }
}

#[test]
fn a_workspace_whose_git_hangs_takes_no_place_of_others() {
    let server = GitServer::open();
    let (_upstream, derrick) = without_git(&server);
    let [hanging, other] = [derrick.create(), derrick.create()];
    hanging.ok("mkfifo /tmp/started");
    replace_git(&hanging, "echo $$ > /tmp/started; exec sleep 100000");
    let request = format!(
        "GET /workspaces/{}/bundle HTTP/1.1\r\nHost: {}\r\n\r\n",
        hanging.id,
        derrick.api.address()
    );
    // More than there are places.
    let waiting: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(derrick.api.address()).expect("it listens");
            stream.write_all(request.as_bytes()).expect("it is sent");
            stream
        })
        .collect();
    hanging.ok("read pid < /tmp/started");
    replace_git(&other, "exit 0");
    problem(bundle(&other, ""), 422, "git-failed", "is no bundle");
    let changes = other.api().get(&other.path("changes"));
    changes.expect(200);
    drop(waiting);
}

/// Has the upstream keep a push waiting; the pipe into which it writes the id of what waits.
fn that_keeps_waiting(upstream: &Upstream) -> PathBuf {
    let started = upstream.bare.join("started");
    succeed(Command::new("mkfifo").arg(&started));
    let hook = upstream.bare.join("hooks/pre-receive");
    let script = format!(
        "#!/bin/sh\necho $$ > {}\nexec sleep 100000\n",
        started.display()
    );
    fs::write(&hook, script).expect("its own");
    fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).expect("its own");
    started
}

#[test]
fn nothing_of_a_push_outlives_derrick_or_its_next_start() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    let started = that_keeps_waiting(&upstream);
    let mut derrick = that_pushes(upstream.bare.to_str().expect("it is text"), None);
    for is_killed in [false, true] {
        let workspace = derrick.create();
        let body = json!({ "to": "work" }).to_string();
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            workspace.path("push"),
            derrick.api.address(),
            body.len()
        );
        let mut pushing = TcpStream::connect(derrick.api.address()).expect("it listens");
        pushing.write_all(request.as_bytes()).expect("it is sent");
        let pid = fs::read_to_string(&started).expect("the hook writes");
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().expect("a number"));
        let waits = pidfd_open(pid.expect("one"), PidfdFlags::empty()).expect("it waits");
        let has_ended = |limit| wait_for(waits.as_fd(), limit);
        if is_killed {
            derrick.kill9();
            assert!(
                !has_ended(Duration::ZERO),
                "it ends by itself: nothing is shown"
            );
            derrick.start_again();
        } else {
            derrick.restart();
        }
        assert!(has_ended(GUARD), "what pushes outlived derrick");
    }
}

#[test]
fn a_repository_of_longer_ids_is_committed_to_and_pushed_from() {
    let scratch = Scratch::new();
    let (bare, work) = (scratch.join("bare"), scratch.join("work"));
    let (bare, work) = (bare.to_str().expect("text"), work.to_str().expect("text"));
    let long = "--object-format=sha256";
    git(
        scratch.path(),
        &["init", "-q", long, "--bare", "-b", "main", bare],
    );
    git(scratch.path(), &["init", "-q", long, "-b", "main", work]);
    let work = Path::new(work);
    fs::write(work.join("file"), "first\n").expect("it is written");
    git(work, &["add", "file"]);
    git(work, &["commit", "-q", "-m", "first"]);
    git(work, &["push", "-q", bare, "main"]);
    let derrick = that_pushes(bare, None);
    let workspace = derrick.create();
    workspace.ok("echo mine > file");
    let made = commit(&workspace, "mine")["commit"].take();
    let id = made.as_str().expect("an id");
    assert_eq!(id.len(), 64, "{id}");
    let pushed = push(&workspace, &json!({ "to": "work" }));
    assert_eq!(pushed["new_commit"], made, "{pushed}");
    let there = git(Path::new(bare), &["rev-parse", "refs/heads/work"]);
    assert_eq!(there.trim(), id);
}

#[test]
fn what_comes_in_and_goes_out_is_told_to_who_listens() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    upstream.receive();
    let derrick = that_pushes(&upstream.url, None);
    let workspace = derrick.create();
    let events = workspace.events(None);
    let old = upstream.head();
    // Nothing came in.
    workspace.fetch();
    let new = upstream.commit(&[("more", "x\n")]);
    workspace.fetch();
    workspace.ok("echo mine > file");
    let made = commit(&workspace, "mine")["commit"].take();
    commit(&workspace, "nothing");
    push(&workspace, &json!({ "to": "work" }));
    let told = events
        .filter(|event| !event.name.starts_with("exec_"))
        .take(3);
    let told: Vec<(String, Value)> = told
        .map(|mut event| {
            let data = &mut event.data;
            data.as_object_mut().expect("an object").remove("time");
            (event.name, event.data)
        })
        .collect();
    let expected = [
        (
            "fetched",
            json!({ "path": "/project", "old_commit": old, "new_commit": new }),
        ),
        ("committed", json!({ "path": "/project", "commit": made })),
        (
            "pushed",
            json!({ "path": "/project", "branch": "work", "new_commit": made }),
        ),
    ];
    assert_eq!(told, expected.map(|(name, data)| (name.to_owned(), data)));
}

#[test]
fn no_submodule_comes_from_elsewhere_by_way_of_a_push() {
    let server = GitServer::open();
    let sub = server.repository("sub", &[("file", "1\n")]);
    let private = server.repository("private", &[("secret", "canary\n")]);
    let upstream = server.repository("project", &[("file", "first\n")]);
    upstream.receive();
    let add = ["submodule", "--quiet", "add", "../sub.git", "sub"];
    let local = ["-c", "protocol.file.allow=always"];
    git(
        &upstream.work,
        &[
            "remote",
            "add",
            "origin",
            upstream.bare.to_str().expect("text"),
        ],
    );
    git(&upstream.work, &[&local[..], &add].concat());
    upstream.commit(&[]);
    let later = sub.commit(&[("file", "2\n")]);
    let derrick = Launch::new(json!({
        "name": "test",
        "workdir": "/project",
        "repositories": [{
            "url": upstream.url, "path": "/project", "reference": "main", "submodules": true, "push": ["work"],
        }],
    }))
    .start();
    let workspace = derrick.create();
    let stranger = private.head();
    let name = "git config --file .gitmodules submodule.p.path p
                git config --file .gitmodules submodule.p.url ../private.git; git add .gitmodules";
    let place =
        |id: &str, path: &str| format!("git update-index --add --cacheinfo 160000,{id},{path}");
    for (changed, why) in [
        (format!("{name}; {}", place(&stranger, "p")), ".gitmodules"),
        (place(&later, "sub"), "sub"),
        (place(&stranger, "p"), "p"),
        // A commit of its own can be asked for by its id, whatever follows on it.
        (
            format!("{name}; git commit -qm x; git revert --no-edit HEAD; touch y; git add y"),
            ".gitmodules",
        ),
    ] {
        workspace.ok(&format!(
            "git reset -q --hard origin/main
             export GIT_AUTHOR_NAME=x GIT_AUTHOR_EMAIL=x@x GIT_COMMITTER_NAME=x GIT_COMMITTER_EMAIL=x@x
             {changed}; git commit -qm changed"
        ));
        let refused = workspace.post("push", &json!({ "to": "work" }));
        problem(
            refused,
            422,
            "commits-refused",
            &format!("they change {why},"),
        );
        assert_eq!(at(&upstream, "work"), None);
    }
    // It is as before; what is beside it may change.
    workspace.ok("git reset -q --hard origin/main; echo mine > file");
    let made = commit(&workspace, "mine")["commit"].take();
    push(&workspace, &json!({ "to": "work" }));
    assert_eq!(json!(at(&upstream, "work")), made);
}
