//! What changed since setup is told whole, whatever the workspace did to its git; and git makes the same of a fresh
//! clone with the patch.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use support::{
    Answer, Derrick, GitServer, Launch, Mode, Scratch, Upstream, Workspace, enforced, fixture, git,
    mode, succeed,
};

/// What is in a tree, as git keeps it: content, or where a link leads; and whether it is a program or a link.
type Tree = BTreeMap<Vec<u8>, (Vec<u8>, &'static str)>;

/// Files of the repository that most tests change.
const FILES: [(&str, &str); 9] = [
    ("README", "hello\nsecond line\nthird line\n"),
    (".gitignore", "*.log\nbuild/\n"),
    ("src/one.c", "int one;\n"),
    ("src/two.c", "int two;\n"),
    ("src/deep/three.c", "int three;\n"),
    ("gone", "to be deleted\n"),
    ("script", "#!/bin/sh\necho script\n"),
    ("to-link", "a file\n"),
    ("to-directory", "a file\n"),
];

fn with_repository(upstream: &Upstream) -> Value {
    json!({
        "name": "test",
        "repositories": [{ "url": upstream.url, "path": "/project" }],
        "workdir": "/project",
    })
}

fn changes(workspace: &Workspace, query: &str) -> Answer {
    workspace
        .api
        .get(&format!("/workspaces/{}/changes{query}", workspace.id))
}

fn list(workspace: &Workspace) -> Value {
    let answer = changes(workspace, "").expect(200);
    assert_eq!(answer.content_type(), "application/json");
    answer.json()
}

/// What happened to each path below `/project`.
fn kinds<'a>(list: &'a Value, which: &str) -> BTreeMap<&'a str, &'a str> {
    let entries = list[which].as_array().expect("a list").iter();
    entries
        .filter_map(|entry| {
            let path = entry["path"].as_str()?.strip_prefix("/project/")?;
            Some((path, entry["change"].as_str()?))
        })
        .collect()
}

fn patch(workspace: &Workspace, query: &str) -> Vec<u8> {
    let answer = changes(workspace, &format!("?format=patch{query}")).expect(200);
    assert_eq!(answer.content_type(), "text/x-diff");
    answer.body
}

/// A fresh clone of the commit that the workspace started from, with the patch.
fn patched(upstream: &Upstream, commit: &str, patch: &[u8]) -> Tree {
    let scratch = Scratch::new();
    let clone = scratch.join("clone");
    let work = upstream.work.display().to_string();
    fs::create_dir_all(&clone).expect("a directory");
    git(&clone, &["clone", "--quiet", &work, "."]);
    git(&clone, &["checkout", "--quiet", "--detach", commit]);
    let file = scratch.join("patch");
    fs::write(&file, patch).expect("the patch is written");
    git(
        &clone,
        &["apply", "--allow-empty", &file.display().to_string()],
    );
    tree(&clone)
}

fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("a directory can be listed") {
            let path = entry.expect("an entry").path();
            let status = fs::symlink_metadata(&path).expect("it is there");
            let name = path
                .strip_prefix(root)
                .expect("it is below")
                .as_os_str()
                .as_bytes();
            if name == b".git" {
                continue;
            }
            let name = name.to_vec();
            if status.is_dir() {
                waiting.push(path);
            } else if status.is_symlink() {
                let target = fs::read_link(&path).expect("a link");
                found.insert(name, (target.as_os_str().as_bytes().to_vec(), "link"));
            } else {
                let is_program = status.permissions().mode() & 0o100 != 0;
                let kind = if is_program { "program" } else { "file" };
                found.insert(name, (fs::read(&path).expect("a file"), kind));
            }
        }
    }
    found
}

/// What the workspace has at `/project`, but for what is in directories of git.
fn tree_inside(workspace: &Workspace) -> Tree {
    let answer = workspace
        .on_file("GET", "/project", "?archive=tar", b"")
        .expect(200);
    unpacked(&answer.body)
}

fn unpacked(bytes: &[u8]) -> Tree {
    let mut found = Tree::new();
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let name = entry.path_bytes().to_vec();
        let name = name.strip_prefix(b"./").unwrap_or(&name).to_vec();
        if name.split(|byte| *byte == b'/').any(|part| part == b".git") {
            continue;
        }
        let mode = entry.header().mode().expect("a mode");
        match entry.header().entry_type() {
            tar::EntryType::Regular => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("its content");
                let kind = if mode & 0o100 == 0 { "file" } else { "program" };
                found.insert(name, (content, kind));
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name_bytes().expect("a target").to_vec();
                found.insert(name, (target, "link"));
            }
            tar::EntryType::Link => {
                let other = entry.link_name_bytes().expect("a name").to_vec();
                let other = other.strip_prefix(b"./").unwrap_or(&other).to_vec();
                let same = found.get(&other).expect("it came before").clone();
                found.insert(name, same);
            }
            _ => {}
        }
    }
    found
}

/// Changes of every kind.
const CHANGES: &str = r#"
    cd /project
    sed -i 's/second/another/' README
    rm gone
    mv src/two.c src/moved.c
    chmod +x src/one.c
    rm to-link; ln -s /etc/passwd to-link
    rm to-directory; mkdir to-directory; echo inside > to-directory/file
    head -c 70000 /dev/urandom > binary
    printf 'no newline' > end
    : > empty
    mkdir -p 'odd names'
    cd 'odd names'
    echo a > 'new
line'; echo b > "$(printf 'bytes\377\376')"; echo c > -rf; echo d > 'quo"te\'; echo e > "$(printf 'tab\t')"
    echo f > ' lead'; echo g > '...'
    ln -- -rf hard
"#;

#[test]
fn a_patch_makes_of_a_fresh_clone_what_the_workspace_has() {
    let server = GitServer::open();
    let upstream = server.repository("project", &FILES);
    let commit = upstream.head();
    let derrick = Derrick::start(with_repository(&upstream));
    let workspace = derrick.create();
    assert_eq!(kinds(&list(&workspace), "changes"), BTreeMap::new());
    assert_eq!(patch(&workspace, ""), b"");
    workspace.ok(CHANGES);
    if mode() == Mode::Root {
        // By the overlay's own record; copied file by file where the kernel keeps none.
        workspace.ok("cd /project; mv src/deep src/elsewhere; echo more >> src/elsewhere/three.c");
    } else {
        workspace.ok("cd /project; mv src/deep src/elsewhere");
    }
    let told = list(&workspace);
    let kinds = kinds(&told, "changes");
    for (path, kind) in [
        ("README", "modified"),
        ("gone", "deleted"),
        ("src/moved.c", "renamed"),
        ("src/elsewhere/three.c", "renamed"),
        ("src/one.c", "mode"),
        ("to-link", "type"),
        ("to-directory/file", "added"),
        ("binary", "added"),
        ("odd names/new\nline", "added"),
        ("odd names/hard", "added"),
    ] {
        assert_eq!(kinds.get(path), Some(&kind), "{path}: {told:#}");
    }
    for path in ["src/two.c", "src/deep/three.c", "script", ".gitignore"] {
        assert_eq!(kinds.get(path), None, "{path}: {told:#}");
    }
    assert_eq!(told["consistent"], true);
    assert_eq!(
        told["repositories"],
        json!([{ "path": "/project", "commit": commit }])
    );
    let expected = tree_inside(&workspace);
    assert_eq!(
        patched(&upstream, &commit, &patch(&workspace, "")),
        expected
    );
    let text = patch(&workspace, "&binary=false");
    let mut without = expected.clone();
    without.remove(&b"binary"[..]).expect("it was there");
    assert_eq!(patched(&upstream, &commit, &text), without);
    assert!(String::from_utf8_lossy(&text).contains("# left out: binary: it is binary"));

    let answer = changes(&workspace, "?format=tar").expect(200);
    assert_eq!(answer.content_type(), "application/x-tar");
    let mut changed = expected;
    for same in [&b"script"[..], b".gitignore"] {
        changed.remove(same).expect("it was there");
    }
    assert_eq!(unpacked(&answer.body), changed);

    let at = |path: &str, side: &str| {
        let route = format!(
            "/workspaces/{}/changes/project/{path}?side={side}",
            workspace.id
        );
        workspace.api.get(&route)
    };
    assert_eq!(at("README", "old").expect(200).text(), FILES[0].1);
    assert_eq!(
        at("README", "new").expect(200).text(),
        "hello\nanother line\nthird line\n"
    );
    assert_eq!(at("to-link", "new").expect(200).text(), "/etc/passwd");
    assert_eq!(at("gone", "old").expect(200).text(), "to be deleted\n");
    at("gone", "new").problem(404);
    at("to-directory", "new").problem(422);
    at("a/../b", "new").problem(400);
}

/// What is done to hide a change of `README` and a new file `hidden`, and whether git inside then shows nothing.
const HIDING: [(&str, bool, &str); 10] = [
    ("nothing", false, ""),
    ("committed", true, "git add -A; git commit -qm done"),
    ("committed on another branch", true, "git checkout -qb other; git add -A; git commit -qm done"),
    ("marked as unchanged", true, "
        git update-index --assume-unchanged README; echo hidden >> .git/info/exclude
    "),
    ("skipped", true, "git update-index --skip-worktree README; echo '*' >> .git/info/exclude"),
    ("filtered", true, "
        echo '* filter=hide' > .git/info/attributes
        git config filter.hide.clean 'touch /tmp/ran; git show HEAD:README'; git config core.fsmonitor 'touch /tmp/ran'
        git config diff.external 'touch /tmp/ran'; echo '*' >> .git/info/exclude
        printf '#!/bin/sh\\ntouch /tmp/ran' > .git/hooks/post-index-change; chmod +x .git/hooks/post-index-change; git add README
    "),
    ("another worktree", true, "git worktree add -q /tmp/other; git config core.worktree /tmp/other"),
    ("another repository", true, "rm -rf .git; git init -q; git add -A; git commit -qm all"),
    ("no repository", false, "rm -rf .git"),
    ("no index", false, "rm .git/index; mv .git /tmp/away; echo 'gitdir: /tmp/away' > .git"),
];

// P9: nothing of a workspace's git hides a change or is run for telling it
#[test]
fn no_state_of_git_hides_a_change_or_is_acted_upon() {
    let server = GitServer::open();
    let upstream = server.repository("project", &FILES);
    let commit = upstream.head();
    let derrick = Derrick::start(with_repository(&upstream));
    let workspace = derrick.create();
    for (way, hides, script) in HIDING {
        workspace.ok("git config --global user.name a; git config --global user.email a@b");
        workspace.ok(&format!(
            "echo changed >> README; echo new > hidden\n{script}\nrm -f /tmp/ran"
        ));
        if hides {
            let shown = workspace
                .sh("git status --porcelain README hidden 2> /dev/null")
                .output;
            assert_eq!(shown, "", "{way}: it does not hide anything");
            workspace.ok("rm -f /tmp/ran");
        }
        let told = list(&workspace);
        let kinds = kinds(&told, "changes");
        assert_eq!(kinds.get("README"), Some(&"modified"), "{way}: {told:#}");
        assert_eq!(kinds.get("hidden"), Some(&"added"), "{way}: {told:#}");
        let made = patched(&upstream, &commit, &patch(&workspace, ""));
        assert_eq!(made, tree_inside(&workspace), "{way}");
        assert_eq!(
            workspace.sh("ls /tmp/ran").exit_code,
            2,
            "{way}: something of it ran"
        );
        if way == "filtered" {
            let named = told["git"].to_string();
            for name in [
                ".git/hooks/post-index-change",
                ".git/config",
                ".git/info/attributes",
            ] {
                assert!(
                    named.contains(&format!("/project/{name}")),
                    "{name} in {named}"
                );
            }
        }
        workspace.reset();
    }
}

#[test]
fn ignored_files_are_told_apart_by_the_rules_of_the_commit() {
    let server = GitServer::open();
    let upstream = server.repository("project", &FILES);
    let mut config = with_repository(&upstream);
    config["setup_script"] = json!("mkdir build; echo made > build/made");
    let derrick = Derrick::start(config);
    let workspace = derrick.create();
    workspace.ok("
        echo '*' > .gitignore; echo '*' > src/.gitignore
        echo log > a.log; echo more >> build/made; echo new > build/new; echo new > new
        git init -q nested; echo file > nested/file
    ");
    let told = list(&workspace);
    let ignored = kinds(&told, "ignored");
    let expected = [
        ("a.log", "added"),
        ("build/made", "modified"),
        ("build/new", "added"),
    ];
    assert_eq!(ignored, BTreeMap::from(expected), "{told:#}");
    let changed = kinds(&told, "changes");
    let expected = [
        (".gitignore", "modified"),
        ("nested", "added"),
        ("nested/file", "added"),
        ("new", "added"),
        ("src/.gitignore", "added"),
    ];
    assert_eq!(changed, BTreeMap::from(expected), "{told:#}");
    let git = told["git"].as_array().expect("a list");
    let nested = git.iter().find(|one| one["path"] == "/project/nested/.git");
    assert_eq!(nested.expect("it is told")["known"], false, "{told:#}");
    let made = patched(&upstream, &upstream.head(), &patch(&workspace, ""));
    assert!(made.contains_key(&b"nested/file"[..]) && !made.contains_key(&b"a.log"[..]));
    let all = String::from_utf8_lossy(&patch(&workspace, "&ignored=true")).into_owned();
    assert!(all.contains("a.log") && all.contains("build/made"), "{all}");
}

// P9: files that something runs by itself are named as such
#[test]
fn what_runs_by_itself_elsewhere_is_marked() {
    let server = GitServer::open();
    let upstream = server.repository("project", &FILES);
    let derrick = Derrick::start(with_repository(&upstream));
    let workspace = derrick.create();
    workspace.ok("
        mkdir -p .github/workflows .vscode .claude sub
        for name in .envrc .github/workflows/x.yml .vscode/tasks.json .claude/settings.json sub/package.json
        do echo > $name; done
        echo > plain; echo > .git/hooks/pre-push
    ");
    let told = list(&workspace);
    let marked: Vec<_> = told["changes"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|entry| entry["sensitive"].is_string())
        .filter_map(|entry| entry["path"].as_str()?.strip_prefix("/project/"))
        .collect();
    assert_eq!(
        marked,
        [
            ".claude/settings.json",
            ".envrc",
            ".github/workflows/x.yml",
            ".vscode/tasks.json",
            "sub/package.json",
        ],
        "{told:#}"
    );
    assert!(
        told["git"]
            .to_string()
            .contains("/project/.git/hooks/pre-push"),
        "{told:#}"
    );
}

/// A small base without any repository.
fn busybox() -> Value {
    json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "workdir": "/project",
        "setup_script": "echo one > one; echo two > two; mkdir -p old/deep; echo y > old/deep/y",
    })
}

#[test]
fn no_kind_of_file_is_opened_followed_or_waited_for() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("
        ln -s /etc/passwd link; ln -s / root; mkfifo pipe; ln one hard
        truncate -s 1024G sparse; echo end >> sparse
        n=0; while [ $n -lt 300 ]; do n=$((n + 1)); mkdir ddddddddddddddd && cd -P ddddddddddddddd || break; done
        echo far > far
        rm -r /project/old; chmod 4755 /project/two
    ");
    let told = list(&workspace);
    let entries = kinds(&told, "changes");
    for (path, kind) in [
        ("link", "added"),
        ("root", "added"),
        ("pipe", "added"),
        ("hard", "added"),
        ("sparse", "added"),
        ("old/deep/y", "deleted"),
        ("two", "mode"),
    ] {
        assert_eq!(entries.get(path), Some(&kind), "{path}: {told:#}");
    }
    assert!(!entries.contains_key("one"), "only its links are more");
    let too_deep = told["too_deep"].as_array().expect("a list");
    assert_eq!(too_deep.len(), 1, "{told:#}");
    let two = told["changes"].as_array().expect("a list").iter();
    let two = two
        .clone()
        .find(|entry| entry["path"] == "/project/two")
        .expect("it is told");
    assert_eq!(
        (&two["old"]["mode"], &two["new"]["mode"]),
        (&json!("0644"), &json!("4755"))
    );
    assert!(two["sensitive"].is_string(), "{two}");

    let answer = changes(&workspace, "?format=patch&path=/project").expect(200);
    let left_out = answer.headers.get("derrick-left-out").expect("a count");
    assert_eq!(left_out, "3", "{}", answer.text());
    for line in ["# left out: pipe: ", "# left out: sparse: ", "+++ b/link"] {
        assert!(answer.text().contains(line), "{line}: {}", answer.text());
    }
    assert!(!answer.text().contains("root:x:0"), "a link was followed");
    let part = changes(&workspace, "?path=/project/old").expect(200).json();
    let part: Vec<_> = kinds(&part, "changes").into_keys().collect();
    assert_eq!(part, ["old", "old/deep", "old/deep/y"]);
    for (query, status) in [
        ("?path=project", 400),
        ("?path=/a/../b", 400),
        ("?format=zip", 400),
        ("?path=/none", 200),
    ] {
        assert_eq!(changes(&workspace, query).status, status, "{query}");
    }
}

#[test]
fn changes_are_told_of_what_runs_and_what_is_stopped_and_through_snapshots() {
    let mut derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("echo more >> one; rm two; echo new > new");
    let expected = [("new", "added"), ("one", "modified"), ("two", "deleted")];
    let expected = BTreeMap::from(expected);
    let told = |workspace: &Workspace| {
        let told = list(workspace);
        let kinds: BTreeMap<_, _> = kinds(&told, "changes")
            .into_iter()
            .map(|(path, kind)| (path.to_owned(), kind.to_owned()))
            .collect();
        kinds
    };
    let is_as_expected = |workspace: &Workspace, when: &str| {
        let told = told(workspace);
        let told: BTreeMap<_, _> = told.iter().map(|(path, kind)| (&**path, &**kind)).collect();
        assert_eq!(told, expected, "{when}");
    };
    is_as_expected(&workspace, "idle");
    workspace.keep_busy();
    let sleepers = "cat /proc/[0-9]*/stat 2> /dev/null | grep -c '(sleep) [SR]'; true";
    let before = workspace.ok(sleepers);
    assert_ne!(before, "0\n");
    is_as_expected(&workspace, "running");
    assert_eq!(workspace.ok(sleepers), before, "what was held goes on");
    workspace.post("pause", &json!({})).expect(200);
    is_as_expected(&workspace, "paused");
    workspace.post("resume", &json!({})).expect(200);
    let taken = workspace.post("snapshots", &json!({})).expect(201).json();
    is_as_expected(&workspace, "on a snapshot");
    let other = derrick.api.create_with(&json!({ "snapshot": taken["id"] }));
    is_as_expected(&other, "started from a snapshot");
    other.ok("echo more >> one; mkdir old/deep/z; rm -r old");
    other.post("fence", &json!({})).expect(200);
    assert_eq!(
        told(&other).get("old/deep/y").map(String::as_str),
        Some("deleted"),
        "fenced"
    );
    derrick.kill9();
    derrick.start_again();
    let workspace = derrick.api.workspace(&workspace.id);
    is_as_expected(&workspace, "after a restart");
    workspace.reset();
    // The snapshot is not what it returns to.
    assert_eq!(told(&workspace), BTreeMap::new(), "after a reset");
}

#[test]
fn changes_in_memory_and_on_a_disk_of_their_own_are_told_as_well() {
    let mut storages = vec![json!({ "storage": "memory" })];
    if mode() == Mode::Root {
        storages.push(json!({ "limits": { "disk": "64MiB" } }));
    }
    for storage in storages {
        let mut config = busybox();
        for (name, value) in storage.as_object().expect("fields") {
            config[name] = value.clone();
        }
        let derrick = Derrick::start(config);
        let workspace = derrick.create();
        for _ in 0..2 {
            workspace.ok("echo more >> one; rm two; echo new > new");
            let told = list(&workspace);
            let expected = [("new", "added"), ("one", "modified"), ("two", "deleted")];
            assert_eq!(
                kinds(&told, "changes"),
                BTreeMap::from(expected),
                "{storage}"
            );
            workspace.reset();
            assert_eq!(
                kinds(&list(&workspace), "changes"),
                BTreeMap::new(),
                "{storage}"
            );
        }
        assert!(workspace.delete());
    }
}

#[test]
fn of_several_repositories_a_patch_is_of_one() {
    let server = GitServer::open();
    let one = server.repository("one", &[("a", "a\n")]);
    let two = server.repository("two", &[("b", "b\n")]);
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [{ "url": one.url, "path": "/one" }, { "url": two.url, "path": "/two" }],
    }));
    let workspace = derrick.create();
    workspace.ok("echo more >> /one/a; echo more >> /two/b; echo x > /elsewhere");
    changes(&workspace, "?format=patch").problem(422);
    let of_two = changes(&workspace, "?format=patch&path=/two").expect(200);
    assert!(of_two.text().contains("--- a/b\n"), "{}", of_two.text());
    let made = patched(&two, &two.head(), &of_two.body);
    assert_eq!(made[&b"b"[..]].0, b"b\nmore\n");
    let told = list(&workspace);
    let entries = told["changes"].as_array().expect("a list");
    let repository = |path: &str| {
        let entry = entries.iter().find(|entry| entry["path"] == path);
        entry.unwrap_or_else(|| panic!("no {path} in {told:#}"))["repository"].clone()
    };
    assert_eq!(repository("/one/a"), "/one");
    assert_eq!(repository("/two/b"), "/two");
    assert_eq!(repository("/elsewhere"), Value::Null);
}

#[test]
fn a_tar_makes_no_program_run_as_whoever_unpacks_it() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("chmod 6755 one; mkdir shared; chmod 3777 shared");
    let answer = changes(&workspace, "?format=tar&path=/project").expect(200);
    let mut archive = tar::Archive::new(&answer.body[..]);
    let modes: BTreeMap<_, _> = archive
        .entries()
        .expect("a tar")
        .map(|entry| {
            let entry = entry.expect("an entry");
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.trim_end_matches('/').to_owned();
            (name, entry.header().mode().expect("a mode"))
        })
        .collect();
    assert_eq!(modes["one"], 0o755, "{modes:?}");
    assert_eq!(modes["shared"], 0o1777, "{modes:?}");
    // The list has them all the same.
    let told = list(&workspace);
    let mut entries = told["changes"].as_array().expect("a list").iter();
    let one = entries.find(|entry| entry["path"] == "/project/one");
    assert_eq!(one.expect("it is told")["new"]["mode"], "6755", "{told:#}");
}

// A deleted file of 200 MiB, and thousands of that size: a terabyte to look at.
#[test]
fn files_of_the_size_of_one_that_is_gone_keep_no_list_from_being_told() {
    let mut config = busybox();
    config["setup_script"] = json!("truncate -s 200M big; echo text > small; echo gone > gone");
    let derrick = Derrick::start(config);
    let workspace = derrick.create();
    workspace.ok("rm big; seq 5000 | xargs truncate -s 200M; mv small renamed");
    let told = list(&workspace);
    let kinds = kinds(&told, "changes");
    assert_eq!(kinds.get("big"), Some(&"deleted"));
    assert_eq!(kinds.get("5000"), Some(&"added"));
    // What can be looked at is.
    assert_eq!(kinds.get("renamed"), Some(&"renamed"));
    assert_eq!(kinds.len(), 5002);
}

#[test]
fn what_is_sparse_takes_no_room_on_the_disk_in_an_answer() {
    let disk = std::env::var_os("DERRICK_SMALL_DISK")
        .expect("DERRICK_SMALL_DISK names no small filesystem; tests/run as root makes one");
    let state = Path::new(&disk).join("changes");
    let derrick = Launch::new(busybox())
        .state(&state)
        .arguments(["--min-free", "0"])
        .start();
    let workspace = derrick.create();
    workspace.ok("truncate -s 100M sparse; echo end >> sparse; echo file > file");
    let size = (100 << 20) + 4;
    let route = format!("/workspaces/{}/changes/project/sparse", workspace.id);
    let answer = workspace.api.get(&route).expect(200);
    assert_eq!(answer.body.len(), size);
    assert!(answer.body.ends_with(b"\0end\n"));
    let answer = changes(&workspace, "?format=tar&path=/project").expect(200);
    let tree = unpacked(&answer.body);
    let (sparse, _) = &tree[&b"sparse"[..]];
    assert_eq!(sparse.len(), size);
    assert!(sparse.ends_with(b"\0end\n") && sparse.iter().filter(|byte| **byte != 0).count() == 4);
    assert_eq!(tree[&b"file"[..]].0, b"file\n");
    // What is none does not fit.
    workspace.ok("head -c 41943040 /dev/urandom > random");
    let refused = changes(&workspace, "?format=tar&path=/project").problem(507);
    assert!(refused.to_string().contains("space"), "{refused}");
    workspace.ok("rm random");
    changes(&workspace, "").expect(200);
    assert!(workspace.delete());
    drop(derrick);
    succeed(support::as_owner("rm").arg("-rf").arg(&state));
}

#[test]
fn an_answer_is_said_to_be_of_one_moment_only_where_nothing_can_run_meanwhile() {
    let has_freezer = fs::read_to_string("/proc/self/mountinfo")
        .expect("mountinfo")
        .contains(" - cgroup2 ");
    // Limits for which a workspace needs no control group, and some for which it needs one.
    for limits in [json!({}), json!({ "pids": 200 })] {
        let derrick = Derrick::start(busybox());
        let Some(workspace) = enforced(&derrick, &limits) else {
            continue;
        };
        assert_eq!(list(&workspace)["consistent"], true, "nothing runs");
        workspace.keep_busy();
        let is_frozen = has_freezer && limits.get("pids").is_some();
        assert_eq!(list(&workspace)["consistent"], is_frozen, "{limits}");
        // It is thawed, by whatever it was held.
        assert_eq!(workspace.ok("echo on"), "on\n");
        assert_eq!(list(&workspace)["consistent"], is_frozen, "{limits}");
    }
}
