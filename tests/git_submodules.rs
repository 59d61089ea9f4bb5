//! Submodules on request: each comes with its repository, opened by what the config has for its host.

mod support;

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};
use support::secrets::assert_nowhere;
use support::submodules::{change, name};
use support::{Derrick, GitServer, Launch, Scratch, Upstream, git};

const TOKEN: &str = "canary-2f8c06b9e7d145a3";

fn config(upstream: &Upstream, fields: &Value) -> Launch {
    let mut repository = fields.clone();
    repository["url"] = upstream.url.clone().into();
    repository["path"] = "/project".into();
    Launch::new(json!({
        "name": "test",
        "repositories": [repository],
        "setup_script": "cp -r /project/.git /copy; env > /environment; git -C /project/libs/sub log -1 > /dev/null",
    }))
}

fn refusal(derrick: &Derrick) -> String {
    let problem = derrick.api.post("/workspaces", &json!({})).problem(422);
    problem["detail"].as_str().expect("a text").to_owned()
}

#[test]
fn submodules_come_with_their_repository_and_move_with_it() {
    let server = GitServer::with_token(TOKEN);
    let scratch = Scratch::new();
    let token = scratch.file("token", TOKEN);
    let sub = server.repository("sub", &[("file", "1\n")]);
    let top = server.repository("top", &[("file", "top\n")]);
    name(&top, &[("libs/sub", "../sub.git", &sub)]);
    let first = sub.head();
    let derrick = config(&top, &json!({ "token_file": token, "submodules": true }))
        .environment("DERRICK_LOG", "trace")
        .start();
    let workspace = derrick.create();
    assert_eq!(workspace.ok("cat /project/libs/sub/file"), "1\n");
    assert_eq!(workspace.ok("git -C /project status --porcelain"), "");
    let status = workspace.ok("git -C /project submodule status");
    assert!(
        status.starts_with(&format!(" {first} libs/sub")),
        "{status}"
    );
    let remote = workspace.ok("git -C /project/libs/sub remote get-url origin");
    assert_eq!(remote.trim(), sub.url);
    let owners = workspace.ok("stat -c %u /project /project/libs/sub/.git /project/libs/sub/file");
    assert_eq!(owners, "0\n0\n0\n");
    assert_nowhere(TOKEN, &derrick, &workspace);

    // What is not named is not there; what is named later comes with a fetch, and with the next workspace.
    let later = sub.commit(&[("file", "2\n")]);
    let known = format!("git -C /project/libs/sub cat-file -t {later}");
    assert_ne!(workspace.sh(&known).exit_code, 0);
    let top_commit = name(&top, &[("libs/sub", "../sub.git", &sub)]);
    assert_eq!(
        workspace.fetch()["repositories"][0]["new_commit"],
        top_commit
    );
    assert_eq!(workspace.ok(&known), "commit\n");
    assert_nowhere(TOKEN, &derrick, &workspace);
    let next = derrick.create();
    let setup = next.describe()["setup"].take();
    assert_eq!(
        setup["reused"]["commits"]["/project"]["by"], "fetch",
        "{setup}"
    );
    assert_eq!(next.ok("cat /project/libs/sub/file"), "2\n");
    assert_eq!(next.ok(&known), "commit\n");
    // And back.
    git(&top.work, &["reset", "--quiet", "--hard", "HEAD~1"]);
    top.git(&["commit", "--quiet", "--allow-empty", "--message=back"]);
    let back = derrick.create();
    assert_eq!(back.ok("cat /project/libs/sub/file"), "1\n");
    assert_ne!(back.sh(&known).exit_code, 0);
}

#[test]
fn a_submodule_of_another_host_is_refused_unless_the_config_allows_it() {
    let (server, other) = (GitServer::with_token(TOKEN), GitServer::open());
    let scratch = Scratch::new();
    let token = scratch.file("token", TOKEN);
    let sub = other.repository("sub", &[("file", "1\n")]);
    let top = server.repository("top", &[("file", "top\n")]);
    name(&top, &[("libs/sub", &sub.url, &sub)]);
    let fields = |allowed: Option<&str>| {
        json!({
            "token_file": token,
            "submodules": true,
            "submodule_urls": allowed.map(|allowed| [allowed]),
        })
    };
    let said = refusal(&config(&top, &fields(None)).start());
    assert!(said.contains("submodule_urls"), "{said}");
    assert_eq!(other.requests(), []);

    let host = format!("http://127.0.0.1:{}", other.port());
    let derrick = config(&top, &fields(Some(&host))).start();
    assert_eq!(derrick.create().ok("cat /project/libs/sub/file"), "1\n");
    assert!(!other.requests().is_empty());
    // A token is for one host, and that one is another.
    assert!(
        other
            .requests()
            .iter()
            .all(|request| !request.with_credentials)
    );

    // Nor does a repository name files of this host.
    let named = format!("file://{}", scratch.path().display());
    name(&top, &[("libs/sub", &named, &sub)]);
    let said = refusal(&derrick);
    assert!(said.contains("submodule_urls"), "{said}");
}

#[test]
fn the_damaged_mirror_of_a_submodule_is_mended_or_the_create_fails_as_a_whole() {
    let server = GitServer::open();
    let sub = server.repository("sub", &[("file", &"content\n".repeat(1000))]);
    let top = server.repository("top", &[("file", "top\n")]);
    name(&top, &[("libs/sub", "../sub.git", &sub)]);
    let derrick = config(&top, &json!({ "submodules": true })).start();
    derrick.create();
    let is_pack = |path: &PathBuf| path.extension().is_some_and(|name| name == "pack");
    // Of all mirrors, that of the repository too.
    let packs = || -> Vec<PathBuf> {
        let mirrors = std::fs::read_dir(derrick.state().join("mirrors")).expect("lists");
        let mirrors = mirrors.map(|mirror| mirror.expect("an entry").path().join("objects/pack"));
        let packs = mirrors.filter_map(|packs| std::fs::read_dir(packs).ok());
        let packs = packs.flatten().map(|pack| pack.expect("an entry").path());
        packs.filter(is_pack).collect()
    };
    let cut = || {
        for pack in packs() {
            std::fs::set_permissions(&pack, PermissionsExt::from_mode(0o600)).expect("its own");
            let file = File::options().write(true).open(pack).expect("its own");
            file.set_len(20).expect("its own");
        }
    };
    let remove = || {
        for pack in packs() {
            std::fs::remove_file(pack).expect("its own");
        }
    };
    let warnings = || derrick.log().matches("the mirror is damaged").count();
    for damage in [&cut as &dyn Fn(), &remove] {
        assert!(packs().len() >= 2);
        damage();
        let before = warnings();
        // Something new, so that there is no layer yet.
        change(&top, "more", &format!("{before}\n"));
        let workspace = derrick.create();
        assert_eq!(
            workspace.ok("cd /project/libs/sub && git fsck --full && wc -l < file"),
            "1000\n"
        );
        assert!(warnings() > before, "{}", derrick.log());
    }

    // Where the upstream is gone as well, nothing is made.
    let aside = sub.bare.with_extension("aside");
    std::fs::rename(&sub.bare, &aside).expect("its own");
    let layers = std::fs::read_dir(derrick.state().join("layers")).expect("lists");
    let layers = layers.count();
    remove();
    change(&top, "more", "the last\n");
    let said = refusal(&derrick);
    assert!(said.contains(&sub.url), "{said}");
    let left = std::fs::read_dir(derrick.state().join("layers")).expect("lists");
    assert_eq!(left.count(), layers);
    std::fs::rename(&aside, &sub.bare).expect("its own");
    assert_eq!(derrick.create().ok("cat /project/more"), "the last\n");
}
