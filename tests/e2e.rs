//! The main job on real input: a private repository, a setup that builds real things, ten agents at once.
//!
//! One story in four acts: setup, work, news from upstream, teardown. Through all of it the access
//! token stays with the provider.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;
use support::{
    Derrick, GitServer, Launch, Lives, Scratch, Upstream, Workspace, as_owner, mounts_below,
    succeed, wait_until_empty,
};

const TOKEN: &str = "canary-7f3a9c51e2d84b06";
const AGENTS: usize = 10;

/// A Python service that needs a wheel, with tests.
fn service(server: &GitServer) -> Upstream {
    server.repository(
        "service",
        &[
            ("service/__init__.py", ""),
            (
                "service/welcome.py",
                "from greeter import greet\n\ndef welcome(name):\n    return greet(name) + '!'\n",
            ),
            ("tests/__init__.py", ""),
            (
                "tests/test_welcome.py",
                "import unittest\nfrom service.welcome import welcome\n\n\
                 class Welcome(unittest.TestCase):\n    def test_greets(self):\n        \
                 self.assertEqual(welcome('Ada'), 'hello, Ada!')\n",
            ),
            (".gitignore", "__pycache__/\n"),
        ],
    )
}

/// A C project with a library, a program and tests.
fn counter(server: &GitServer) -> Upstream {
    server.repository(
        "counter",
        &[
            ("count.h", "int count_words(const char *text);\n"),
            (
                "count.c",
                "#include <ctype.h>\n#include \"count.h\"\n\nint count_words(const char *text) {\n    \
                 int words = 0, inside = 0;\n    for (; *text; text++) {\n        \
                 if (isspace((unsigned char)*text)) inside = 0;\n        \
                 else if (!inside) { inside = 1; words++; }\n    }\n    return words;\n}\n",
            ),
            (
                "test.c",
                "#include <assert.h>\n#include \"count.h\"\n\nint main(void) {\n    \
                 assert(count_words(\"\") == 0);\n    assert(count_words(\" one  two \") == 2);\n    \
                 return 0;\n}\n",
            ),
            (
                "Makefile",
                "libcount.a: count.o\n\tar rcs $@ $^\n\ntest: test.o libcount.a\n\t$(CC) -o $@ $^\n\n\
                 check: test\n\t./test && echo passed\n",
            ),
            (".gitignore", "*.o\n*.a\ntest\n"),
        ],
    )
}

/// A wheel on disk, as a package index would give it; see PEP 427.
fn wheel(directory: &Scratch) -> PathBuf {
    let program = "import sys, zipfile
with zipfile.ZipFile(sys.argv[1], 'w') as wheel:
    info = 'greeter-1.0.dist-info/'
    wheel.writestr('greeter/__init__.py', 'def greet(name):\\n    return \"hello, \" + name\\n')
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: greeter\\nVersion: 1.0\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', ''.join(f'{name},,\\n' for name in wheel.namelist()) + info + 'RECORD,,\\n')
";
    let wheels = directory.join("wheels");
    fs::create_dir(&wheels).expect("it is the test's own");
    succeed(
        Command::new("/usr/bin/python3")
            .args(["-c", program])
            .arg(wheels.join("greeter-1.0-py3-none-any.whl")),
    );
    wheels
}

fn tests_pass(workspace: &Workspace) -> bool {
    let python = workspace.sh("cd /code/service && /venv/bin/python -m unittest");
    let c = workspace.sh("make -s -C /code/counter check");
    assert!(
        python.exit_code != 0 || python.output.contains("OK"),
        "{}",
        python.output
    );
    assert!(
        c.exit_code != 0 || c.output.contains("passed"),
        "{}",
        c.output
    );
    python.exit_code == 0 && c.exit_code == 0
}

fn is_clean(workspace: &Workspace) -> bool {
    workspace
        .ok("for r in service counter; do git -C /code/$r status --porcelain; done")
        .is_empty()
}

#[test]
fn ten_agents_work_on_a_private_repository_at_once() {
    let server = GitServer::with_token(TOKEN);
    let (service, counter) = (service(&server), counter(&server));
    let scratch = Scratch::new();
    let wheels = wheel(&scratch);
    let token_file = scratch.file("git-token", format!("{TOKEN}\n"));
    fs::set_permissions(
        &token_file,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .expect("it is the test's own");
    let derrick = Launch::new(json!({
        "name": "service",
        "base": { "type": "host", "include": [wheels] },
        "repositories": [
            { "url": service.url, "path": "/code/service", "reference": "main", "token_env": "SERVICE_TOKEN" },
            { "url": counter.url, "path": "/code/counter", "token_file": token_file },
        ],
        "workdir": "/code/service",
        "env": {
            "GIT_AUTHOR_NAME": "agent",
            "GIT_AUTHOR_EMAIL": "agent@example.org",
            "GIT_COMMITTER_NAME": "agent",
            "GIT_COMMITTER_EMAIL": "agent@example.org",
        },
        "setup_script": format!(
            "set -e
             /usr/bin/python3 -m venv /venv
             /venv/bin/pip install --quiet --no-index --find-links '{}' greeter
             make -C /code/counter test",
            wheels.display()
        ),
    }))
    .environment("SERVICE_TOKEN", TOKEN)
    .start();

    let workspaces = all_at_once(|_| derrick.create());
    assert_eq!(
        server.packs(),
        2,
        "each repository is cloned once for all workspaces"
    );
    assert_eq!(derrick.api.list().len(), AGENTS);

    all_at_once(|n| assert!(tests_pass(&workspaces[n])));
    for _ in 0..3 {
        // Everybody's damage is done before anybody looks: it stays one's own.
        all_at_once(|n| damage(&workspaces[n], n));
        all_at_once(|n| start_over(&workspaces[n], n));
    }

    let service_news = service.commit(&[(
        "tests/test_news.py",
        "import unittest\nfrom service.welcome import welcome\n\n\
             class News(unittest.TestCase):\n    def test_news(self):\n        \
             self.assertEqual(welcome('Bob'), 'hello, Bob!')\n",
    )]);
    let counter_old = counter.head();
    all_at_once(|n| follow(&workspaces[n], &service_news, &counter_old));

    keeps_the_token_to_itself(&derrick, &server, &workspaces[0]);

    // A workspace made now has the news from the start, and what setup built before.
    let newcomer = derrick.create();
    assert_eq!(newcomer.ok("git rev-parse HEAD").trim(), service_news);
    assert!(tests_pass(&newcomer));

    let lives = Lives::below(derrick.pid());
    all_at_once(|n| assert!(workspaces[n].delete()));
    assert!(newcomer.delete());
    assert_eq!(derrick.api.list(), Vec::<String>::new());
    wait_until_empty(&derrick.state().join("trash"));
    assert_eq!(mounts_below(&derrick.state()), Vec::<String>::new());
    drop(derrick);
    lives.assert_gone();
}

/// Does the same as every agent, all at the same time, and returns what came of it.
fn all_at_once<T: Send>(agent: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let agent = &agent;
        let threads: Vec<_> = (0..AGENTS).map(|n| scope.spawn(move || agent(n))).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}

/// An agent breaks things in its own way.
fn damage(workspace: &Workspace, n: usize) {
    if n.is_multiple_of(2) {
        workspace.write_file(
            "service/welcome.py",
            b"def welcome(name):\n    return 'bye'\n",
        );
    } else {
        workspace.ok("sed -i 's/words++/words--/' /code/counter/count.c");
    }
    workspace.ok(&format!(
        "echo {n} > /tmp/agent; git config user.name agent-{n}; rm -rf /venv/include
         sleep 1000 > /dev/null 2>&1 &"
    ));
}

/// It sees its tests fail, resets, and sees them pass.
fn start_over(workspace: &Workspace, n: usize) {
    assert!(!tests_pass(workspace), "agent {n} broke nothing");
    assert!(!is_clean(workspace));
    assert_eq!(workspace.ok("cat /tmp/agent"), format!("{n}\n"));
    let receipt = workspace.reset_and_wait();
    assert_eq!(receipt["upper_entries"], json!(0), "{receipt}");
    let processes = &receipt["discarded"]["processes"];
    assert_eq!(*processes, json!(1), "{receipt}");
    assert!(is_clean(workspace));
    assert!(tests_pass(workspace));
    assert_eq!(workspace.sh("test -e /tmp/agent").exit_code, 1);
    assert_eq!(workspace.sh("git config user.name").output, "");
}

/// An agent with local changes takes upstream's news over.
fn follow(workspace: &Workspace, service_news: &str, counter_old: &str) {
    workspace.ok("echo note > NOTES; git add NOTES; git commit -qm note");
    workspace.ok("echo more >> NOTES");
    let fetched = workspace.fetch()["repositories"].take();
    assert_eq!(fetched[0]["path"], json!("/code/service"), "{fetched}");
    assert_eq!(fetched[0]["new_commit"], json!(service_news), "{fetched}");
    assert_eq!(fetched[1]["old_commit"], json!(counter_old), "{fetched}");
    assert_eq!(fetched[1]["new_commit"], json!(counter_old), "{fetched}");
    assert_eq!(
        workspace.ok("cat NOTES; ls tests/*.py"),
        "note\nmore\ntests/__init__.py\ntests/test_welcome.py\n"
    );
    workspace.ok("git stash -q; git merge -q -m merge origin/main; git stash pop -q");
    let printed = workspace.ok("/venv/bin/python -m unittest");
    assert!(printed.contains("Ran 2 tests"), "{printed}");
    assert_eq!(workspace.ok("cat NOTES"), "note\nmore\n");
}

/// The token is in the provider's memory, in its environment and in the operator's file, and nowhere else.
fn keeps_the_token_to_itself(derrick: &Derrick, server: &GitServer, workspace: &Workspace) {
    for request in server.requests() {
        assert_eq!(
            request.exposed,
            Vec::<String>::new(),
            "an argument of a process held it"
        );
    }
    let encoded = BASE64.encode(format!("x:{TOKEN}"));
    // Without the user's name at its start and what depends on it.
    let encoded = &encoded[4..encoded.len() - 4];
    for needle in [TOKEN, encoded] {
        // In brackets, so that the command line that looks for it does not hold it.
        let pattern = format!("[{}]{}", &needle[..1], &needle[1..]);
        let inside = workspace.sh(&format!(
            "grep -rle '{pattern}' /code /venv /etc /home /root /srv /tmp /var /run /dev/shm 2> /dev/null
             set | grep -e '{pattern}'
             cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' '\\n' | grep -e '{pattern}'",
        ));
        assert_eq!(inside.output, "", "{needle} is inside");
        assert!(!derrick.printed().contains(needle));
        assert!(!workspace.describe().to_string().contains(needle));
        let on_disk = as_owner("grep")
            .args(["-rlaF", "-e", needle])
            .arg(derrick.state())
            .output()
            .expect("cannot start grep");
        assert_eq!(String::from_utf8_lossy(&on_disk.stdout), "", "{needle}");
        assert_eq!(on_disk.status.code(), Some(1), "{on_disk:?}");
    }
    for pid in support::descendants(derrick.pid()) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&line).contains(TOKEN),
            "process {pid}"
        );
    }
    let own = fs::read(format!("/proc/{}/cmdline", derrick.pid())).expect("it runs");
    assert!(!String::from_utf8_lossy(&own).contains(TOKEN));
}
