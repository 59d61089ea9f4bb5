//! P9: derrick runs no git, shell or interpreter on the host over what a workspace wrote.
//!
//! Each attack leaves something in a checkout that git, run there on the host, would execute or follow.
//! It does so on the host first, then derrick does all that it does with checkouts.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::json;
use support::{
    Derrick, GUARD, GitServer, Launch, Mode, Scratch, bare, binary, descendants, fixture, git,
    mode, submodules,
};

/// Programs that stand before the host's own in derrick's `PATH`, and write down that they were called.
struct Watched {
    scratch: Scratch,
}

impl Watched {
    fn new() -> Self {
        let scratch = Scratch::new();
        let log = scratch.file("log", "");
        for name in [
            "git", "sh", "bash", "dash", "env", "python3", "perl", "tar", "ssh", "less", "gpg",
        ] {
            let script = format!(
                "#!/bin/sh\necho \"{name} $*\" >> {}\nPATH=/usr/local/bin:/usr/bin:/bin exec {name} \"$@\"\n",
                log.display()
            );
            let path = scratch.file(&format!("bin/{name}"), script);
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its own");
        }
        Self { scratch }
    }

    /// For `PATH`.
    fn path(&self) -> String {
        let own = std::env::var("PATH").expect("there is a PATH");
        format!("{}:{own}", self.scratch.join("bin").display())
    }

    /// What was called since the last look.
    fn calls(&self) -> Vec<String> {
        let log = self.scratch.join("log");
        let text = fs::read_to_string(&log).expect("it is there");
        fs::write(&log, "").expect("it is there");
        text.lines().map(str::to_owned).collect()
    }
}

/// Something that a hostile checkout names, and that nobody may touch or read out.
struct Bait {
    scratch: Scratch,
}

impl Bait {
    fn new() -> Self {
        Self {
            scratch: Scratch::new(),
        }
    }

    /// A file that is there when something was executed on the host.
    fn mark(&self) -> PathBuf {
        self.scratch.join("mark")
    }

    /// A directory with a repository and a file whose names and contents say `canary`.
    fn secret(&self) -> PathBuf {
        let secret = self.scratch.join("secret");
        if !secret.exists() {
            self.scratch.file("secret/canary-file", "canary-content");
            git(&secret, &["init", "--quiet", "--initial-branch=main"]);
            git(&secret, &["add", "--all"]);
            git(&secret, &["commit", "--quiet", "--message=canary-message"]);
        }
        secret
    }
}

/// Poisons a checkout with this script, of which `$MARK` and `$SECRET` are the bait. What `naive` then
/// prints there on the host gives the bait away or makes the mark; nothing that derrick does, does.
fn attack(poison: &str, naive: &str) {
    let bait = Bait::new();
    let (mark, secret) = (bait.mark(), bait.secret());
    let poison = poison
        .replace("$MARK", &mark.to_string_lossy())
        .replace("$SECRET", &secret.to_string_lossy());
    let found = |printed: &str| printed.contains("canary");

    let checkout = bait.scratch.join("checkout");
    let on_the_host = format!(
        "export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null
         export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
         git init -q --bare -b main {0}.git
         git init -q -b main {0} && cd {0} && echo x > file && git add file && git commit -qm first
         git remote add origin {0}.git && git push -q origin main && git fetch -q
         {{ {poison}\n}} > /dev/null 2>&1
         {{ {naive}\n}} < /dev/null 2>&1; true",
        checkout.display()
    );
    let printed = bare::sh(&on_the_host);
    assert!(
        mark.exists() || found(&printed),
        "it does no harm: {printed}"
    );
    let _ = fs::remove_file(&mark);

    let watched = Watched::new();
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "x\n")]);
    let mut derrick = Launch::new(json!({
        "name": "test",
        "workdir": "/project",
        "repositories": [{ "url": upstream.url, "path": "/project", "push": ["**"] }],
    }))
    .environment("PATH", &watched.path())
    .start();
    let id = {
        let workspace = derrick.create();
        workspace.sh(&poison);
        workspace.id
    };
    upstream.commit(&[("file", "y\n")]);
    // What came before concerned the upstream, and no workspace.
    let before = watched.calls();
    assert!(
        before.iter().any(|call| call.starts_with("git ")),
        "{before:?}"
    );
    let mut said = String::new();
    for round in 0..2 {
        let workspace = derrick.api.workspace(&id);
        // It may fail, in the workspace.
        said += &workspace.post("fetch", &json!({})).text();
        said += &workspace.describe().to_string();
        said += &workspace
            .on_file("GET", "/project", "?archive=tar", b"")
            .text();
        said += &workspace.on_file("GET", "/project", "", b"").text();
        workspace.write_file("/project/written", b"x");
        for query in ["", "?format=patch", "?format=tar"] {
            said += &workspace
                .api
                .get(&workspace.path(&format!("changes{query}")))
                .text();
        }
        said += &workspace
            .api
            .get(&workspace.path("changes/project/file"))
            .text();
        let author = json!({ "name": "a", "email": "a@b" });
        let commit = json!({ "message": "message", "author": author });
        said += &workspace.post("commit", &commit).text();
        said += &workspace.api.get(&workspace.path("bundle")).text();
        said += &workspace
            .post("push", &json!({ "to": "handed-out" }))
            .text();
        said += &derrick.create().describe().to_string();
        if round == 0 {
            derrick.restart();
        }
    }
    derrick.api.workspace(&id).reset();
    assert!(!mark.exists(), "something of the workspace's was executed");
    // The archive has what the poison itself says.
    let said = said.replace(&poison, "");
    let names_alone = said.replace(&*secret.to_string_lossy(), "");
    assert!(!names_alone.contains("canary-"), "{said}");
    only_on_its_own(&watched.calls(), &derrick);
}

/// The same of a submodule's checkout, in workspaces that fetch submodules, by each way of bringing them up to date.
fn attack_by_a_submodule(poison: &str, naive: &str) {
    let bait = Bait::new();
    let (mark, secret) = (bait.mark(), bait.secret());
    let poison = poison
        .replace("$MARK", &mark.to_string_lossy())
        .replace("$SECRET", &secret.to_string_lossy());

    let server = GitServer::open();
    let inner = server.repository("inner", &[("file", "x\n")]);
    let upstream = server.repository("project", &[("own", "x\n")]);
    let named = [("libs/m", "../inner.git", &inner)];
    submodules::name(&upstream, &named);
    let on_the_host = format!(
        "export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null
         export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
         git clone -q --recurse-submodules {} {1} && cd {1}/libs/m
         {{ {poison}\n}} > /dev/null 2>&1
         {{ {naive}\n}} < /dev/null 2>&1; true",
        upstream.url,
        bait.scratch.join("checkout").display()
    );
    let printed = bare::sh(&on_the_host);
    assert!(
        mark.exists() || printed.contains("canary"),
        "it does no harm: {printed}"
    );
    let _ = fs::remove_file(&mark);

    let watched = Watched::new();
    let mut derrick = Launch::new(json!({
        "name": "test",
        "workdir": "/project",
        "repositories": [{
            "url": upstream.url, "path": "/project", "submodules": true, "push": ["**"],
        }],
    }))
    .environment("PATH", &watched.path())
    .start();
    let id = {
        let workspace = derrick.create();
        workspace.sh(&format!("cd libs/m\n{poison}"));
        workspace.id
    };
    let before = watched.calls();
    assert!(
        before.iter().any(|call| call.starts_with("git ")),
        "{before:?}"
    );
    let mut said = String::new();
    for (number, update) in ["none", "fast-forward", "reset"].into_iter().enumerate() {
        submodules::change(&inner, "file", &format!("{number}\n"));
        submodules::name(&upstream, &named);
        let workspace = derrick.api.workspace(&id);
        let fetched = workspace.post("fetch", &json!({ "update": update }));
        // What became of the submodule it tells; that may be that it could not be brought.
        let fetched = fetched.text();
        assert!(fetched.contains("/project/libs/m"), "{fetched}");
        said += &fetched;
        for query in ["", "?format=patch", "?format=tar"] {
            let changes = workspace.path(&format!("changes{query}"));
            said += &workspace.api.get(&changes).text();
        }
        said += &workspace.api.get(&workspace.path("bundle")).text();
        said += &workspace
            .post("push", &json!({ "to": "handed-out" }))
            .text();
        // A setup goes on from the last one.
        said += &derrick.create().describe().to_string();
        derrick.restart();
    }
    derrick.api.workspace(&id).reset();
    assert!(!mark.exists(), "something of the workspace's was executed");
    let said = said.replace(&poison, "");
    let names_alone = said.replace(&*secret.to_string_lossy(), "");
    assert!(!names_alone.contains("canary-"), "{said}");
    only_on_its_own(&watched.calls(), &derrick);
}

/// Of all that derrick called, nothing was but git, on repositories of derrick's own: mirrors, and the empty
/// ones that take in what is to be pushed.
fn only_on_its_own(calls: &[String], derrick: &Derrick) {
    let mirrors = derrick.state().join("mirrors").canonicalize();
    let mirrors = mirrors.expect("it is there").display().to_string();
    let workspaces = derrick.state().join("workspaces").display().to_string();
    let runs = derrick.state().join("run").canonicalize();
    let runs = runs.expect("it is there").display().to_string();
    for call in calls {
        let is_push = call.contains(&format!("{runs}/")) && call.contains("/staging/push-");
        let own = call.starts_with(&format!("git --git-dir={mirrors}/"))
            || is_push && call.starts_with("git init --quiet --bare --template= ")
            || is_push && call.starts_with(&format!("git --git-dir={runs}/"))
            || call.starts_with("git ls-remote")
            || call.starts_with("git version")
            || call.starts_with("git --version");
        assert!(own && !call.contains(&workspaces), "{call}");
        assert!(!call.contains("/project "), "{call}");
    }
}

// I-01: a program for core.fsmonitor
#[test]
fn a_monitor_of_files_in_the_config() {
    attack(
        "git config core.fsmonitor 'touch $MARK; false'",
        "git status",
    );
}

// I-02: filters by .gitattributes
#[test]
fn filters_in_the_attributes() {
    attack(
        "git config filter.evil.clean 'touch $MARK; cat'
         git config filter.evil.smudge 'touch $MARK; cat'
         git config filter.evil.process 'touch $MARK'
         echo '* filter=evil' > .gitattributes; echo more >> file",
        "git status; git add .",
    );
}

// I-03: hooks, also those that git status runs
#[test]
fn hooks_in_the_checkout() {
    attack(
        "for hook in post-index-change reference-transaction post-checkout post-merge pre-auto-gc post-receive; do
             printf '#!/bin/sh\\ntouch $MARK\\n' > .git/hooks/$hook; chmod +x .git/hooks/$hook
         done; touch -d @0 file",
        "git status; git fetch",
    );
}

// I-04: programs for transport, credentials, signatures, pages and differences
#[test]
fn programs_in_the_config() {
    attack(
        "git config core.sshCommand 'touch $MARK'; git config remote.origin.uploadpack 'touch $MARK; git-upload-pack'
         git config credential.helper '!touch $MARK'; git config gpg.program 'touch $MARK'
         git config diff.external 'touch $MARK'; git config core.pager 'touch $MARK'
         git config core.askPass 'touch $MARK'; git config core.editor 'touch $MARK'
         git config core.gitProxy 'touch $MARK'; git config alias.fetch '!touch $MARK'
         git config uploadpack.packObjectsHook 'touch $MARK'",
        "git fetch; echo z > file; git diff",
    );
}

// I-04: a remote that is a program
#[test]
fn a_remote_that_is_a_program() {
    attack(
        "git config protocol.ext.allow always; git remote set-url origin 'ext::touch $MARK'",
        "git fetch",
    );
}

// I-05: a work tree elsewhere
#[test]
fn a_work_tree_elsewhere() {
    attack("git config core.worktree $SECRET", "git status");
}

// I-05: a repository of another place, embedded or named by a file
#[test]
fn a_git_file_that_names_another_repository() {
    attack("rm -rf .git; echo 'gitdir: $SECRET/.git' > .git", "git log");
}

// I-07: objects of another repository, by alternates
#[test]
fn alternates_that_name_another_repository() {
    attack(
        "echo $SECRET/.git/objects > .git/objects/info/alternates
         git update-ref refs/heads/stolen $(cat $SECRET/.git/refs/heads/main) ",
        "git log stolen",
    );
}

// I-07: a .git that is a link
#[test]
fn a_git_directory_that_is_a_link() {
    attack("rm -rf .git; ln -s $SECRET/.git .git", "git log");
}

// I-06: submodules that a clone brings along, and what a repository has git run at a clone
#[test]
fn submodules_of_a_repository() {
    let server = GitServer::open();
    let inner = server.repository("inner", &[("file", "x\n")]);
    let modules = format!("[submodule \"m\"]\n\tpath = m\n\turl = {}\n", inner.url);
    let upstream = server.repository(
        "project",
        &[
            (".gitmodules", &modules),
            (".gitattributes", "* filter=evil\n"),
            ("hooks/post-checkout", "#!/bin/sh\ntouch /evil\n"),
        ],
    );
    let commit = inner.head();
    upstream.git(&[
        "update-index",
        "--add",
        "--cacheinfo",
        &format!("160000,{commit},m"),
    ]);
    upstream.git(&["commit", "--quiet", "--message=module"]);
    let asked = || {
        let requests = server.requests();
        requests
            .iter()
            .filter(|request| request.target.starts_with("/inner.git"))
            .count()
    };
    // A recursive clone goes wherever the repository says.
    let scratch = Scratch::new();
    let before = asked();
    let clone = format!(
        "cd {} && GIT_CONFIG_GLOBAL=/dev/null git clone -q --recurse-submodules {} clone 2>&1; true",
        scratch.path().display(),
        upstream.url
    );
    bare::sh(&clone);
    assert!(asked() > before, "the submodule was not asked for");

    let before = asked();
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [{ "url": upstream.url, "path": "/project" }],
    }));
    let workspace = derrick.create();
    upstream.commit(&[("more", "x\n")]);
    workspace.fetch();
    derrick.create();
    assert_eq!(asked(), before, "somebody asked for the submodule");
    assert_eq!(
        workspace.ok("ls -A /project/m; ls -d /evil 2> /dev/null; true"),
        ""
    );
    assert!(!Path::new("/evil").exists());
}

// I-06: programs in a submodule's own config, attributes and hooks
#[test]
fn programs_in_the_config_of_a_submodule() {
    attack_by_a_submodule(
        "git config core.fsmonitor 'touch $MARK; false'; git config core.sshCommand 'touch $MARK'
         git config filter.evil.clean 'touch $MARK; cat'; git config filter.evil.smudge 'touch $MARK; cat'
         echo '* filter=evil' > .gitattributes; git config core.hooksPath hooks; mkdir -p hooks
         for hook in post-index-change reference-transaction post-checkout post-merge pre-auto-gc; do
             printf '#!/bin/sh\ntouch $MARK\n' > hooks/$hook; chmod +x hooks/$hook
         done
         git config uploadpack.packObjectsHook 'touch $MARK'; git config alias.fetch '!touch $MARK'
         git config credential.helper '!touch $MARK'; git config core.gitProxy 'touch $MARK'
         git config protocol.ext.allow always; git remote set-url origin 'ext::touch $MARK'",
        "git status; git fetch",
    );
}

// I-06: what the repository above says of a submodule: a program that brings it up to date
#[test]
fn a_program_that_updates_a_submodule() {
    attack_by_a_submodule(
        "cd ../.. && git config submodule.libs/m.update '!touch $MARK;:'
         git config submodule.libs/m.url 'ext::touch $MARK'; git config protocol.ext.allow always",
        "git -C libs/m commit -q --allow-empty -m own; git submodule update",
    );
}

// I-06, I-07: a submodule's git directory that is a link, or is named by a file
#[test]
fn a_git_directory_of_a_submodule_that_is_elsewhere() {
    for poison in [
        "rm -rf .git; ln -s $SECRET/.git .git",
        "rm -rf .git; echo 'gitdir: $SECRET/.git' > .git",
    ] {
        attack_by_a_submodule(poison, "git log");
    }
}

// I-06, I-07: a submodule with another repository's objects, work tree and parent
#[test]
fn a_submodule_that_borrows_from_another_repository() {
    attack_by_a_submodule(
        "git_dir=$(git rev-parse --absolute-git-dir)
         echo $SECRET/.git/objects > $git_dir/objects/info/alternates
         git update-ref refs/heads/stolen $(cat $SECRET/.git/refs/heads/main)",
        "git log stolen",
    );
    attack_by_a_submodule("git config core.worktree $SECRET", "git status");
    attack_by_a_submodule("cd .. && rm -rf m && ln -s $SECRET m", "git -C m log");
}

// I-10: files that a program on the host trusts later
#[test]
fn files_that_a_program_on_the_host_trusts_later() {
    let scratch = Scratch::new();
    let home = scratch.join("home");
    fs::create_dir(&home).expect("its own");
    let names = [
        ".envrc",
        ".vscode/tasks.json",
        ".claude/settings.json",
        "Makefile",
        ".git/hooks/pre-commit",
    ];
    // Where a checkout of the host's is mounted into a sandbox, they are there at once.
    let mount = format!(
        "mount --bind {} /mnt && mkdir /mnt/.vscode && echo evil > /mnt/.vscode/tasks.json",
        home.display()
    );
    let mut naive = bare::namespaces(&["mount"]);
    support::succeed(naive.args(["sh", "-c", &mount]));
    assert!(home.join(".vscode/tasks.json").exists());
    fs::remove_dir_all(home.join(".vscode")).expect("it was made");

    // What the config includes is one's own copy, and the upstream's checkout is never the host's.
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("its own");
    let derrick = Derrick::start(json!({
        "name": "test",
        "base": { "type": "host", "include": [home] },
    }));
    let workspace = derrick.create();
    for name in names {
        let path = home.join(name);
        let directory = path.parent().expect("it has one").display().to_string();
        workspace.sh(&format!(
            "mkdir -p {directory}; echo evil > {}",
            path.display()
        ));
    }
    workspace.reset();
    drop(derrick);
    assert_eq!(fs::read_dir(&home).expect("it is there").count(), 0);
}

/// What a program on the host can do with this user's rights, less what `confined` takes.
fn reach(program: &mut Command, scratch: &Scratch, script: &str) -> String {
    let script = script.replace("DIR", scratch.path().to_str().expect("text"));
    let output = program
        .args(["sh", "-c", &format!("{{ {script}; }} 2>&1")])
        .output();
    String::from_utf8_lossy(&output.expect("it starts").stdout).into_owned()
}

// I-07: a bundle that breaks the git which takes it in
#[test]
fn the_git_that_takes_in_what_was_handed_out_has_its_quarantine_and_nothing_else() {
    let scratch = Scratch::new();
    for directory in ["mirror", "quarantine", "elsewhere"] {
        fs::create_dir(scratch.join(directory)).expect("a directory");
        scratch.file(&format!("{directory}/file"), "canary\n");
    }
    let broken = |script: &str| {
        // As `git` is started by a push.
        let mut program = Command::new(binary());
        program
            .arg0("derrick-confined")
            .arg(format!("--read={}", scratch.join("mirror").display()))
            .arg(format!("--write={}", scratch.join("quarantine").display()))
            .args(["--read=/proc", "--memory=268435456", "--"]);
        reach(&mut program, &scratch, script)
    };
    for (script, refused) in [
        ("cat DIR/elsewhere/file && echo done", "Permission denied"),
        (
            "cat /etc/passwd > /dev/null && echo done",
            "Permission denied",
        ),
        ("ls DIR && echo done", "Permission denied"),
        (
            "echo x > DIR/elsewhere/new && echo done",
            "Permission denied",
        ),
        ("echo x > DIR/mirror/new && echo done", "Permission denied"),
        (
            "ln -f DIR/elsewhere/file DIR/elsewhere/link && echo done",
            "ermi",
        ),
        (
            "echo x > /tmp/.derrick-p09-$$ && rm /tmp/.derrick-p09-$$ && echo done",
            "Permission denied",
        ),
        (
            "python3 -c 'import socket; socket.socket()' && echo done",
            "Operation not permitted",
        ),
        (
            "unshare --user true && echo done",
            "Operation not permitted",
        ),
        (
            "python3 -c 'b\"x\" * (1 << 29)' && echo done",
            "MemoryError",
        ),
    ] {
        let free = reach(&mut Command::new("env"), &scratch, script);
        assert!(free.ends_with("done\n"), "{script}: {free}");
        let said = broken(script);
        assert!(
            said.contains(refused) && !said.contains("done"),
            "{script}: {said}"
        );
    }
    let said =
        broken("cat DIR/mirror/file && echo x > DIR/quarantine/new && cat DIR/quarantine/file");
    assert_eq!(said, "canary\ncanary\n");
    let standing =
        broken("grep -E '^(CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status");
    let standing: Vec<_> = standing.split_whitespace().collect();
    let none = "0000000000000000";
    let bound = if mode() == Mode::Root {
        none
    } else {
        standing[3]
    };
    assert_eq!(
        standing,
        [
            "CapEff:",
            none,
            "CapBnd:",
            bound,
            "CapAmb:",
            none,
            "NoNewPrivs:",
            "1",
            "Seccomp:",
            "2"
        ]
    );
}

/// What the kernel says of a process, by the names that it has for it.
fn status_of(pid: i32) -> BTreeMap<String, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let lines = status.lines().filter_map(|line| line.split_once(":\t"));
    let lines = lines.map(|(name, value)| (name.to_owned(), value.to_owned()));
    lines.collect()
}

/// The same of one by which the spawner has something read that a workspace wrote, once both its filters are there.
/// There is one until `ended` says that there is none any more.
fn status_of_reader(derrick: &Derrick, ended: impl Fn() -> bool) -> BTreeMap<String, String> {
    let filters = |status: &BTreeMap<String, String>| -> u32 {
        let number = status.get("Seccomp_filters");
        number.map_or(0, |number| number.parse().expect("a number"))
    };
    let bound = filters(&status_of(derrick.pid())) + 2;
    let until = Instant::now() + GUARD;
    loop {
        let over = ended();
        let all = descendants(derrick.pid()).into_iter().map(status_of);
        let mut readers = all.filter(|status| status.get("Name").is_some_and(|it| it == READER));
        if let Some(status) = readers.find(|status| filters(status) >= bound) {
            return status;
        }
        assert!(!over && Instant::now() < until, "nobody was seen who reads");
    }
}

/// What such a process is called.
const READER: &str = "derrick-reader";

#[test]
fn what_reads_files_of_a_workspace_can_do_nothing_else() {
    let derrick = Derrick::start(json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
    }));
    let workspace = derrick.create();
    // Much to do, as each is in a patch; and more than fits into a pipe and what is behind it.
    workspace.ok("for n in 1 2 3 4; do truncate -s 250M /large-$n; done");
    workspace.ok("head -c 33554432 /dev/urandom > /random");
    let path = format!("/workspaces/{}/changes?format=patch", workspace.id);
    let api = derrick.api.clone();
    let asked = std::thread::spawn(move || api.get(&path));
    let of_changes = status_of_reader(&derrick, || asked.is_finished());
    asked.join().expect("it ends").expect(200);

    let taken = workspace.post("snapshots", &json!({})).expect(201).json();
    let taken = taken["id"].as_str().expect("an id");
    let mut stream = TcpStream::connect(derrick.api.address()).expect("it listens");
    let address = derrick.api.address();
    write!(
        stream,
        "GET /snapshots/{taken}/export HTTP/1.1\r\nhost: {address}\r\n\r\n"
    )
    .expect("it listens");
    // Nobody takes the answer, so it goes on until this is dropped.
    stream.read_exact(&mut [0; 12]).expect("an answer");
    let of_export = status_of_reader(&derrick, || false);

    let capabilities = match mode() {
        // CAP_DAC_READ_SEARCH, and CAP_SYS_ADMIN for an overlay's marks.
        Mode::Root => "0000000000200004",
        _ => "0000000000000004",
    };
    for status in [of_changes, of_export] {
        let of = |name: &str| status[name].as_str();
        assert_eq!(of("CapEff"), capabilities);
        assert_eq!(of("CapPrm"), capabilities);
        for set in ["CapInh", "CapBnd", "CapAmb"] {
            assert_eq!(of(set), "0000000000000000", "{set}");
        }
        assert_eq!(of("NoNewPrivs"), "1");
    }
}
