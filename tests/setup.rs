//! Setup happens once for everything that determines it, and its result is what every workspace starts from.

mod support;

use std::io::Write;
use std::net::TcpListener;

use serde_json::{Value, json};
use support::{Derrick, GitServer, Launch, Mode, Workspace, fixture, mode, tarball};

/// Prints something new at each run of a setup script, so that runs can be told apart.
const NEW_RUN: &str = "cat /proc/sys/kernel/random/uuid";

fn with_script(script: &str) -> Value {
    json!({ "name": "test", "setup_script": script })
}

/// The commit that a repository of a workspace is at.
fn head(workspace: &Workspace, path: &str) -> String {
    workspace
        .ok(&format!("git -C {path} rev-parse HEAD"))
        .trim()
        .to_owned()
}

#[test]
fn ten_creates_at_once_set_up_once() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("README", "hello\n")]);
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [{ "url": upstream.url, "path": "/project" }],
        "setup_script": format!("{NEW_RUN} > /run-id"),
    }));
    let runs: Vec<String> = std::thread::scope(|scope| {
        let creates: Vec<_> = (0..10)
            .map(|_| scope.spawn(|| derrick.create().ok("cat /run-id /project/README")))
            .collect();
        creates
            .into_iter()
            .map(|create| create.join().expect("the create got its answer"))
            .collect()
    });
    assert!(runs.iter().all(|run| run == &runs[0]), "{runs:?}");
    assert_eq!(
        server.packs(),
        1,
        "the repository was cloned more than once"
    );
}

#[test]
fn the_result_is_kept_over_a_restart() {
    let mut derrick = Derrick::start(with_script(&format!("{NEW_RUN} > /run-id")));
    let run = derrick.create().ok("cat /run-id");
    derrick.restart();
    assert_eq!(derrick.create().ok("cat /run-id"), run);
}

#[test]
fn another_script_or_environment_is_another_setup() {
    let script = format!("{NEW_RUN} > /run-id");
    let configs = [
        with_script(&script),
        with_script(&format!("{script} # changed")),
        json!({ "name": "test", "setup_script": script, "env": { "A": "1" } }),
        json!({ "name": "test", "setup_script": script, "env": { "A": "2" } }),
    ];
    let mut derrick = Derrick::start(configs[0].clone());
    let mut runs = Vec::new();
    for config in &configs {
        derrick.configure(config);
        derrick.restart();
        runs.push(derrick.create().ok("cat /run-id"));
    }
    // Back to the first: its layer is still there.
    derrick.configure(&configs[0]);
    derrick.restart();
    assert_eq!(derrick.create().ok("cat /run-id"), runs[0]);
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), configs.len());
}

#[test]
fn a_failing_script_is_the_callers_error_with_its_code_and_output_and_nothing_is_kept() {
    let derrick = Derrick::start(with_script(&format!(
        "echo starting; {NEW_RUN}; echo it broke >&2; exit 7"
    )));
    let mut outputs = Vec::new();
    for _ in 0..2 {
        let problem = derrick.api.post("/workspaces", &json!({})).problem(422);
        assert_eq!(problem["exit_code"], json!(7), "{problem}");
        let output = problem["output"].as_str().unwrap_or_default().to_owned();
        assert!(output.starts_with("starting\n"), "{problem}");
        assert!(output.ends_with("it broke\n"), "{problem}");
        outputs.push(output);
    }
    assert_ne!(outputs[0], outputs[1], "the script did not run again");
    assert_eq!(derrick.api.list(), Vec::<String>::new());
}

#[test]
fn a_failing_script_fails_every_create_that_waited_for_it() {
    let derrick = Derrick::start(with_script("exit 1"));
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| derrick.api.post("/workspaces", &json!({})).problem(422));
        }
    });
}

#[test]
fn only_the_end_of_a_failing_scripts_long_output_comes_back() {
    let derrick = Derrick::start(with_script("seq 1000000; echo the end; exit 1"));
    let problem = derrick.api.post("/workspaces", &json!({})).problem(422);
    let output = problem["output"].as_str().unwrap_or_default();
    assert!(output.len() < 1 << 20, "{} bytes", output.len());
    assert!(output.ends_with("1000000\nthe end\n"), "{output}");
}

#[test]
fn the_script_runs_in_the_workdir_as_root_with_the_environment() {
    let derrick = Derrick::start(json!({
        "name": "test",
        "workdir": "/srv",
        "env": { "COLOUR": "green" },
        "setup_script": "#!/bin/bash\nset -eu\n[[ $COLOUR == green ]]\npwd > /where\nid -u >> /where\n",
    }));
    assert_eq!(derrick.create().ok("cat /where"), "/srv\n0\n");
}

#[test]
fn a_process_that_the_script_left_is_not_in_the_workspace() {
    let derrick = Derrick::start(with_script(
        "sleep 1000 > /dev/null 2>&1 & echo kept > /kept",
    ));
    let workspace = derrick.create();
    let names = workspace.ok("cat /kept /proc/[0-9]*/comm");
    assert!(names.starts_with("kept\n"), "{names}");
    assert!(!names.contains("sleep"), "{names}");
}

#[test]
fn a_branch_a_tag_a_commit_and_the_default_branch_are_checked_out() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    let first = upstream.head();
    upstream.git(&["tag", "v1"]);
    let second = upstream.commit(&[("file", "second\n")]);
    upstream.git(&["checkout", "--quiet", "-b", "feature/one"]);
    let third = upstream.commit(&[("file", "third\n")]);
    for (reference, commit) in [
        (Value::Null, &second),
        (json!("feature/one"), &third),
        (json!("v1"), &first),
        (json!(first), &first),
    ] {
        let derrick = Derrick::start(json!({
            "name": "test",
            "repositories": [{ "url": upstream.url, "path": "/project", "reference": reference }],
        }));
        let workspace = derrick.create();
        assert_eq!(&head(&workspace, "/project"), commit, "{reference}");
        assert_eq!(workspace.ok("git -C /project status --porcelain"), "");
    }
}

#[test]
fn a_repository_belongs_to_the_workspace_and_knows_its_origin_without_credentials() {
    let server = GitServer::with_token("token-of-the-test");
    let upstream = server.repository("project", &[("file", "content\n")]);
    let derrick = Launch::new(json!({
        "name": "test",
        "workdir": "/code/project",
        "repositories": [
            { "url": upstream.url, "path": "/code/project", "token_env": "GIT_TOKEN" },
        ],
    }))
    .environment("GIT_TOKEN", "token-of-the-test")
    .start();
    let workspace = derrick.create();
    assert_eq!(
        workspace.ok("git remote get-url origin").trim(),
        upstream.url
    );
    assert_eq!(workspace.ok("git rev-parse --abbrev-ref HEAD"), "main\n");
    assert_eq!(
        workspace.ok("stat -c %u:%g . .git .git/config file"),
        "0:0\n".repeat(4)
    );
    workspace.ok("git -c user.name=a -c user.email=a@b commit -q --allow-empty -m mine");
    let found = workspace.sh("grep -rl token-of-the-test /code /etc /home /root /tmp /var");
    assert_eq!(found.output, "");
    assert!(workspace.ok("git fsck --full; echo $?").ends_with("0\n"));
}

#[test]
fn repositories_belong_to_the_user_whom_commands_run_as() {
    if mode() == Mode::Single {
        return;
    }
    // By name, by number, and one that the script makes.
    let nobody = "true";
    let ada = "grep -q ^ada: /etc/passwd || echo 'ada:x:1000:1001::/:/bin/sh' >> /etc/passwd";
    for (user, ids, script) in [
        ("daemon", "1:1", nobody),
        ("4711", "4711:4711", nobody),
        ("ada", "1000:1001", ada),
    ] {
        let server = GitServer::open();
        let upstream = server.repository("project", &[("file", "first\n"), ("dir/file", "x\n")]);
        let derrick = Derrick::start(json!({
            "name": "test",
            "user": user,
            "workdir": "/code/project",
            "repositories": [{ "url": upstream.url, "path": "/code/project" }],
            // Root's git works on what is another user's, too.
            "setup_script": format!("git rev-parse HEAD && {script}"),
        }));
        let workspace = derrick.create();
        let owners = |workspace: &Workspace| {
            workspace
                .ok("find . -printf '%U:%G\\n' | sort -u")
                .trim()
                .to_owned()
        };
        assert_eq!(owners(&workspace), ids, "{user}");
        assert_eq!(workspace.ok("git status --porcelain"), "", "{user}");
        workspace.ok("echo mine > file; git -c user.name=a -c user.email=a@b commit -qam mine");

        let new = upstream.commit(&[("file", "second\n")]);
        workspace.fetch();
        assert_eq!(workspace.ok("git rev-parse origin/main").trim(), new);
        assert_eq!(owners(&workspace), ids, "{user}");

        // Brought up to date from the setup before, not cloned.
        let second = derrick.create();
        assert_eq!(head(&second, "."), new);
        assert_eq!(owners(&second), ids, "{user}");
        assert_eq!(second.ok("git status --porcelain; cat file"), "second\n");
        assert_eq!(server.packs(), 2, "{user}");
    }
}

#[test]
fn a_repository_that_the_script_gave_away_is_fetched_as_its_owner() {
    if mode() == Mode::Single {
        return;
    }
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [{ "url": upstream.url, "path": "/project" }],
        "setup_script": "chown -R 4711:4711 /project",
    }));
    let workspace = derrick.create();
    let new = upstream.commit(&[("file", "second\n")]);
    workspace.fetch();
    let as_owner = "git -c safe.directory=/project -C /project";
    assert_eq!(
        workspace
            .ok(&format!("{as_owner} rev-parse origin/main"))
            .trim(),
        new
    );
    let second = derrick.create();
    for workspace in [&workspace, &second] {
        assert_eq!(
            workspace.ok("find /project -printf '%U:%G\\n' | sort -u"),
            "4711:4711\n"
        );
    }
    assert_eq!(second.ok("cat /project/file"), "second\n");
    assert_eq!(server.packs(), 2);
}

#[test]
fn a_place_that_cannot_take_a_repository_is_named_with_the_cause() {
    let server = GitServer::open();
    // More than a pipe holds, so that the writer finds out too.
    let large = "x".repeat(1 << 20);
    let upstream = server.repository("project", &[("file", &large)]);
    let (path, cause) = match mode() {
        Mode::Root => ("/usr/bin/env", "Not a directory"),
        Mode::Subordinate | Mode::Single => ("/opt/r", "Read-only file system"),
    };
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [{ "url": upstream.url, "path": path }],
    }));
    let problem = derrick.api.post("/workspaces", &json!({})).problem(422);
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(path) && detail.contains(cause), "{problem}");
}

#[test]
fn a_workdir_that_is_made_belongs_to_the_user_whom_commands_run_as() {
    if mode() == Mode::Single {
        return;
    }
    for (workdir, owner) in [("/made/for/daemon", "1\n"), ("/tmp", "0\n")] {
        let derrick =
            Derrick::start(json!({ "name": "test", "user": "daemon", "workdir": workdir }));
        let workspace = derrick.create();
        assert_eq!(workspace.ok("touch file; stat -c %u ."), owner, "{workdir}");
    }
}

#[test]
fn a_workdir_that_cannot_be_made_fails_the_setup_by_name() {
    let derrick = Derrick::start(json!({ "name": "test", "workdir": "/etc/passwd/inside" }));
    let problem = derrick.api.post("/workspaces", &json!({})).problem(422);
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("/etc/passwd/inside"), "{problem}");
    assert!(detail.contains("Not a directory"), "{problem}");
}

#[test]
fn a_directory_is_named_in_full_in_errors_and_records() {
    let derrick = Derrick::start(json!({ "name": "test", "workdir": "/code/r/" }));
    let workspace = derrick.create();
    let path = format!("/workspaces/{}/execs", workspace.id);
    for (asked, full) in [
        (None, "/code/r"),
        (Some("./"), "/code/r"),
        (Some("/tmp/"), "/tmp"),
    ] {
        let exec = json!({ "argv": ["true"], "cwd": asked });
        let exec = derrick.api.post(&path, &exec).json();
        assert_eq!(exec["cwd"], json!(full), "{exec}");
    }
    let exec = json!({ "argv": ["true"], "cwd": "missing" });
    let problem = derrick.api.post(&path, &exec).problem(422);
    assert!(
        problem["detail"].to_string().contains("'/code/r/missing'"),
        "{problem}"
    );
    workspace.ok("rmdir /code/r");
    let problem = derrick
        .api
        .post(&path, &json!({ "argv": ["true"] }))
        .problem(422);
    assert!(
        problem["detail"].to_string().contains("'/code/r'"),
        "{problem}"
    );
}

#[test]
fn a_repository_that_moved_is_fetched_into_the_previous_setup_and_not_cloned_again() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n"), ("doomed", "x\n")]);
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [{ "url": upstream.url, "path": "/project" }],
        "setup_script": "cd /project; echo run >> /runs; echo product-of-$(cat file) >> product.o",
    }));
    let first = derrick.create();
    assert_eq!(
        first.ok("cat /runs /project/product.o"),
        "run\nproduct-of-first\n"
    );
    assert_eq!(server.packs(), 1);

    upstream.git(&["rm", "--quiet", "doomed"]);
    let commit = upstream.commit(&[("file", "second\n")]);
    let second = derrick.create();
    assert_eq!(head(&second, "/project"), commit);
    // The build products of the first setup were there when the second began.
    assert_eq!(
        second.ok("cat /runs /project/product.o"),
        "run\nrun\nproduct-of-first\nproduct-of-second\n"
    );
    assert_eq!(second.sh("test -e /project/doomed").exit_code, 1);
    assert_eq!(
        second.ok("git -C /project status --porcelain"),
        "?? product.o\n"
    );
    assert_eq!(server.packs(), 2);
    let last = server
        .requests()
        .into_iter()
        .rfind(|request| request.wants_objects());
    assert!(
        last.is_some_and(|request| request.has_commits()),
        "it was cloned again"
    );

    // Who was there before stays where it was.
    assert_eq!(first.ok("cat /project/file"), "first\n");
    first.reset();
    assert_eq!(first.ok("cat /project/file /runs"), "first\nrun\n");
}

#[test]
fn a_repository_that_did_not_move_is_not_set_up_again() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [{ "url": upstream.url, "path": "/project" }],
        "setup_script": format!("{NEW_RUN} > /run-id"),
    }));
    let run = derrick.create().ok("cat /run-id");
    assert_eq!(derrick.create().ok("cat /run-id"), run);
    assert_eq!(server.packs(), 1);
}

#[test]
fn a_commit_that_is_named_by_its_id_needs_no_upstream_any_more() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    let first = upstream.head();
    upstream.commit(&[("file", "second\n")]);
    let configured = |history: &str| {
        let repository = json!({
            "url": upstream.url, "path": "/project", "reference": first, "history": history,
        });
        Derrick::start(json!({ "name": "test", "repositories": [repository] }))
    };
    let (sealed, branch) = (configured("sealed"), configured("branch"));
    for derrick in [&sealed, &branch] {
        derrick.create();
    }
    let asked = server.requests().len();
    sealed.create();
    assert_eq!(server.requests().len(), asked);
    // What else comes with it may have moved.
    branch.create();
    assert!(server.requests().len() > asked);
    drop(server);
    let workspace = sealed.create();
    assert_eq!(workspace.ok("cat /project/file"), "first\n");
}

#[test]
fn a_setup_tells_what_it_reused_or_why_it_began_anew() {
    let server = GitServer::open();
    let moves = server.repository("moves", &[("file", "first\n")]);
    let stays = server.repository("stays", &[("file", "x\n")]);
    let (first, other) = (moves.head(), stays.head());
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [
            { "url": moves.url, "path": "/moves" },
            { "url": stays.url, "path": "/stays" },
        ],
    }));
    let setup = |workspace: &Workspace| {
        let told = workspace.describe();
        assert_eq!(told["setup"]["layer"], told["layer"], "{told}");
        told["setup"].clone()
    };
    let begun = setup(&derrick.create());
    assert_eq!(
        (&begun["reused"], &begun["anew"]),
        (&Value::Null, &json!("first"))
    );
    // The same layer has the same receipt.
    assert_eq!(setup(&derrick.create()), begun);

    let second = moves.commit(&[("file", "second\n")]);
    let workspace = derrick.create();
    let gone_on = setup(&workspace);
    assert_eq!(
        gone_on["reused"],
        json!({
            "layer": begun["layer"],
            "commits": {
                "/moves": { "old": first, "new": second, "by": "fetch" },
                "/stays": { "old": other, "new": other, "by": "nothing" },
            },
        })
    );
    assert_eq!(gone_on["anew"], Value::Null);

    moves.git(&["reset", "--quiet", "--hard", &first]);
    let back = moves.commit(&[("file", "another\n")]);
    let again = setup(&derrick.create());
    assert_eq!(
        (&again["reused"], &again["anew"]),
        (&Value::Null, &json!("not_its_history")),
        "{back}"
    );

    // On a snapshot it tells nothing, and none was needed where there is nothing to set up.
    let taken = workspace.post("snapshots", &json!({})).expect(201).json();
    let forked = derrick.api.create_with(&json!({ "snapshot": taken["id"] }));
    assert_eq!(forked.describe()["setup"], Value::Null);
    assert_eq!(Derrick::on_host().create().describe()["setup"], Value::Null);
}

#[test]
fn a_setup_tells_where_it_had_to_check_out_anew() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    let first = upstream.head();
    // No git is in there that could fetch.
    let mut config = tarball(&fixture("busybox.tar"));
    config["repositories"] = json!([{ "url": upstream.url, "path": "/project" }]);
    let derrick = Derrick::start(config);
    derrick.create();
    let second = upstream.commit(&[("file", "second\n")]);
    assert_eq!(
        derrick.create().describe()["setup"]["reused"]["commits"],
        json!({ "/project": { "old": first, "new": second, "by": "checkout" } })
    );
}

/// What was known of commits that the upstream went back from is not in what is set up after that, be it in
/// the repository or in what the script made of it.
#[test]
fn a_setup_after_the_upstream_went_back_starts_from_the_base() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    let first = upstream.head();
    let config = |history: &str| {
        json!({
            "name": "test",
            "workdir": "/project",
            "repositories": [{ "url": upstream.url, "path": "/project", "history": history }],
            "setup_script": "cat file >> /built",
        })
    };
    let commits = "git cat-file --batch-all-objects --batch-check='%(objecttype)' | grep -c commit";
    for (history, after) in [("full", "2\nsecond\nfirst\n"), ("sealed", "1\nfirst\n")] {
        upstream.commit(&[("file", "second\n")]);
        let derrick = Derrick::start(config(history));
        assert_eq!(derrick.create().ok("cat /built"), "second\n", "{history}");
        upstream.git(&["reset", "--quiet", "--hard", &first]);
        let workspace = derrick.create();
        assert_eq!(
            workspace.ok(&format!("{commits}; cat /built")),
            after,
            "{history}"
        );
        workspace.ok("test ! -e .git/FETCH_HEAD && test ! -e .git/logs");
    }
}

#[test]
fn what_is_checked_out_is_updated_as_far_as_that_is_wanted() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n"), ("other", "x\n")]);
    let first = upstream.head();
    let derrick = Derrick::start(json!({
        "name": "test",
        "workdir": "/project",
        "repositories": [{ "url": upstream.url, "path": "/project", "reference": "main" }],
    }));
    let workspace = derrick.create();
    let second = upstream.commit(&[("file", "second\n")]);
    let fetch = |wanted: Value| workspace.fetch_with(&wanted)["repositories"][0].take();

    // What is in the way stays, and is named; nothing has moved.
    workspace.ok("echo mine > file");
    let answer = fetch(json!({ "update": "fast-forward" }));
    assert_eq!(answer["new_commit"], json!(second), "{answer}");
    assert_eq!(answer["head"], json!(first), "{answer}");
    let why = answer["not_updated"].as_str().unwrap_or_default();
    assert!(why.contains("file"), "{answer}");
    assert_eq!(workspace.ok("cat file"), "mine\n");

    workspace.ok("git checkout -q file; echo kept > other");
    let answer = fetch(json!({ "update": "fast-forward", "path": "/project/" }));
    assert_eq!(
        (&answer["head"], &answer["not_updated"]),
        (&json!(second), &Value::Null)
    );
    assert_eq!(
        workspace.ok("cat file other; git branch --show-current"),
        "second\nkept\nmain\n"
    );

    // A branch with commits of its own does not move on, but can be reset.
    workspace.ok("git -c user.name=a -c user.email=a@b commit -qam mine");
    let own = head(&workspace, ".");
    let third = upstream.commit(&[("file", "third\n")]);
    let answer = fetch(json!({ "update": "fast-forward" }));
    assert_eq!(answer["head"], json!(own), "{answer}");
    assert!(answer["not_updated"].is_string(), "{answer}");
    let answer = fetch(json!({ "update": "reset" }));
    assert_eq!(
        (&answer["head"], &answer["not_updated"]),
        (&json!(third), &Value::Null)
    );
    assert_eq!(
        workspace.ok("cat file other; git status --porcelain"),
        "third\nx\n"
    );

    // Another branch, a tag, and a commit that no name leads to, each by itself.
    upstream.git(&["checkout", "-q", "-b", "side", &first]);
    let side = upstream.commit(&[("side", "x")]);
    let answer = fetch(json!({ "reference": "side" }));
    assert_eq!(answer["new_commit"], json!(side), "{answer}");
    assert_eq!(answer["old_commit"], Value::Null, "{answer}");
    assert_eq!(
        workspace.ok("git rev-parse origin/side origin/main"),
        format!("{side}\n{third}\n")
    );
    upstream.git(&["checkout", "-q", "main"]);
    upstream.git(&["tag", "v1", &second]);
    fetch(json!({ "reference": "v1", "update": "reset" }));
    assert_eq!(head(&workspace, "."), second);
    let hidden = upstream.commit(&[("file", "fourth\n")]);
    let answer = fetch(json!({ "reference": hidden, "update": "reset" }));
    assert_eq!(answer["head"], json!(hidden), "{answer}");
    assert_eq!(
        workspace.ok("git rev-parse origin/main"),
        format!("{third}\n")
    );
    assert_eq!(
        fetch(json!({ "reference": hidden }))["new_commit"],
        json!(hidden)
    );

    for (wanted, status, named) in [
        (json!({ "path": "/elsewhere" }), 422, "/project"),
        (json!({ "reference": "-x" }), 422, "reference"),
        (json!({ "reference": "nowhere" }), 422, "nowhere"),
        (json!({ "update": "merge" }), 400, "update"),
        (json!({ "branch": "main" }), 400, "branch"),
    ] {
        let refused = workspace
            .api()
            .request(
                "POST",
                &format!("/workspaces/{}/fetch", workspace.id),
                Some(&wanted),
            )
            .expect(status)
            .json();
        let detail = refused["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(named), "{refused}");
    }
}

#[test]
fn nothing_is_fetched_into_a_repository_without_history() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    upstream.commit(&[("file", "second\n")]);
    let derrick = Derrick::start(json!({
        "name": "test",
        "workdir": "/project",
        "repositories": [{ "url": upstream.url, "path": "/project", "history": "none" }],
    }));
    let workspace = derrick.create();
    assert_eq!(
        workspace.ok("git rev-list --count --all; cat file"),
        "1\nsecond\n"
    );
    upstream.commit(&[("file", "third\n")]);
    let refused = workspace
        .api()
        .request("POST", &format!("/workspaces/{}/fetch", workspace.id), None)
        .expect(422)
        .json();
    assert!(
        refused["type"]
            .as_str()
            .is_some_and(|kind| kind.ends_with("repository-unavailable"))
    );
    assert!(
        refused["detail"]
            .as_str()
            .is_some_and(|why| why.contains("/project")),
        "{refused}"
    );
    assert_eq!(
        derrick.create().ok("git rev-list --count --all; cat file"),
        "1\nthird\n"
    );
}

#[test]
fn a_fetch_brings_commits_in_and_leaves_local_work_alone() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "first\n")]);
    let old = upstream.head();
    let derrick = Derrick::start(json!({
        "name": "test",
        "workdir": "/project",
        "repositories": [{ "url": upstream.url, "path": "/project", "reference": "main" }],
    }));
    let workspace = derrick.create();
    workspace.ok("echo mine > file; echo new > untracked; git config my.setting kept");
    let new = upstream.commit(&[("file", "second\n")]);
    assert_eq!(
        workspace.fetch(),
        json!({ "repositories": [{
            "url": upstream.url,
            "path": "/project",
            "reference": "main",
            "old_commit": old,
            "new_commit": new,
        }] })
    );
    assert_eq!(workspace.ok("git rev-parse origin/main").trim(), new);
    assert_eq!(head(&workspace, "/project"), old);
    assert_eq!(
        workspace.ok("cat file untracked; git config my.setting"),
        "mine\nnew\nkept\n"
    );
    assert_eq!(workspace.ok("git show origin/main:file"), "second\n");

    let again = workspace.fetch()["repositories"].take();
    assert_eq!(again[0]["old_commit"], json!(new), "{again}");
    assert_eq!(again[0]["new_commit"], json!(new), "{again}");
}

#[test]
fn a_repository_that_cannot_be_had_is_an_error_that_names_it() {
    let server = GitServer::with_token("right");
    let upstream = server.repository("project", &[("file", "x\n")]);
    let missing = upstream.url.replace("project", "missing");
    for (url, reference, token) in [
        (&upstream.url, "main", "wrong-token"),
        (&missing, "main", "right"),
        (&upstream.url, "no-such-branch", "right"),
    ] {
        let derrick = Launch::new(json!({
            "name": "test",
            "repositories": [
                { "url": url, "path": "/project", "reference": reference, "token_env": "GIT_TOKEN" },
            ],
        }))
        .environment("GIT_TOKEN", token)
        .start();
        let answer = derrick.api.post("/workspaces", &json!({}));
        let problem = answer.problem(422);
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(url.as_str()), "{problem}");
        assert!(!problem.to_string().contains("wrong-token"), "{problem}");
        assert!(
            reference == "main" || detail.contains(reference),
            "{problem}"
        );
        assert_eq!(derrick.api.list(), Vec::<String>::new());
    }
}

#[test]
fn the_setup_phase_has_its_own_network() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("cannot listen on loopback");
    let port = listener.local_addr().expect("it is bound").port();
    let downloads = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the script connects");
        stream.write_all(b"downloaded\n").expect("the script reads");
        listener
    });
    let download = format!("cat < /dev/tcp/127.0.0.1/{port}");
    let derrick = Launch::new(json!({
        "name": "test",
        "network": "none",
        "setup": { "network": "host" },
        "setup_script": format!("{download} > /download"),
    }))
    .token("a-token-that-the-script-does-not-know")
    .start();
    let workspace = derrick.create();
    let listener = downloads.join().expect("the script came");
    assert_eq!(workspace.ok("cat /download"), "downloaded\n");
    let ran = workspace.sh(&download);
    assert_eq!(ran.exit_code, 1, "{}", ran.output);
    assert!(ran.output.contains("refused"), "{}", ran.output);
    drop(listener);
}

#[test]
fn a_setup_without_network_reaches_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("cannot listen on loopback");
    let port = listener.local_addr().expect("it is bound").port();
    let derrick = Derrick::start(with_script(&format!("cat < /dev/tcp/127.0.0.1/{port}")));
    let problem = derrick.api.post("/workspaces", &json!({})).problem(422);
    assert!(
        problem["output"]
            .as_str()
            .unwrap_or_default()
            .contains("refused"),
        "{problem}"
    );
    drop(listener);
}
