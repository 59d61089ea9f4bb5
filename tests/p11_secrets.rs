//! P11: a secret that was given to derrick, as for fetching a repository, is never readable inside, on
//! disk, in arguments, in an environment that others see, or in logs.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;
use support::{
    Derrick, GitServer, Launch, Mode, Scratch, Upstream, Workspace, as_owner, bare, descendants,
    mode,
};

const TOKEN: &str = "canary-51e2d84b067f3a9c";

/// One that is in command lines while a test runs, and so not the one that is looked for there.
const SHOWN_TOKEN: &str = "canary-f7d90c6a2be81435";

/// The token as it is, and as a header for basic authentication has it, less the user's name.
fn forms(token: &str) -> [String; 2] {
    let encoded = BASE64.encode(format!("x:{token}"));
    [token.to_owned(), encoded[4..encoded.len() - 4].to_owned()]
}

/// A pattern that matches the text and not itself.
fn pattern(text: &str) -> String {
    format!("[{}]{}", &text[..1], &text[1..])
}

/// A provider with a private repository, in `/project`; its token comes from the environment.
fn private(server: &GitServer, token: &str) -> (Upstream, Derrick) {
    let upstream = server.repository("private", &[("file", "x\n")]);
    let derrick = Launch::new(json!({
        "name": "test",
        "repositories": [{ "url": upstream.url, "path": "/project", "token_env": "SECRET_TOKEN" }],
        "setup_script": "cp -r /project/.git /copy; env > /environment",
    }))
    .environment("SECRET_TOKEN", token)
    .start();
    (upstream, derrick)
}

/// Has derrick use the token in every way that it has.
fn use_token(upstream: &Upstream, derrick: &Derrick) -> Workspace {
    let workspace = derrick.create();
    upstream.commit(&[("file", "y\n")]);
    workspace.fetch();
    derrick.create();
    workspace
}

// I-08: a token that is kept in the checkout
#[test]
fn finding_the_token_in_the_checkout_or_on_disk() {
    let server = GitServer::with_token(SHOWN_TOKEN);
    let (upstream, derrick) = private(&server, SHOWN_TOKEN);
    // git clone -c keeps what it was given, and a URL with a token in it stays as it is.
    let scratch = Scratch::new();
    let header = format!("http.extraHeader=Authorization: Bearer {SHOWN_TOKEN}");
    let clone = format!(
        "cd {} && GIT_CONFIG_GLOBAL=/dev/null git clone -q -c '{header}' {} naive && grep -c {SHOWN_TOKEN} naive/.git/config",
        scratch.path().display(),
        upstream.url
    );
    assert_eq!(bare::sh(&clone), "1\n");

    let workspace = use_token(&upstream, &derrick);
    for form in forms(SHOWN_TOKEN) {
        let inside = workspace.sh(&format!(
            "grep -rle '{0}' /project /copy /environment /etc /home /root /srv /tmp /var /run /dev/shm 2> /dev/null
             git -C /project config --list --show-origin | grep -e '{0}'",
            pattern(&form)
        ));
        assert_eq!(inside.output, "", "{form} is inside");
        let on_disk = as_owner("grep")
            .args(["-rlaF", "-e", &form])
            .arg(derrick.state())
            .output()
            .expect("cannot start grep");
        assert_eq!(String::from_utf8_lossy(&on_disk.stdout), "", "{form}");
        assert_eq!(on_disk.status.code(), Some(1), "{on_disk:?}");
    }
    assert_eq!(
        workspace.ok("git -C /project remote get-url origin").trim(),
        upstream.url
    );
}

// I-09: a token in the arguments of a process, which every user of the host may read
#[test]
fn reading_the_token_in_command_lines() {
    let server = GitServer::with_token(TOKEN);
    let exposed = || {
        let requests = server.requests();
        requests
            .iter()
            .flat_map(|request| request.exposed.clone())
            .collect::<Vec<_>>()
    };
    let (upstream, derrick) = private(&server, TOKEN);
    use_token(&upstream, &derrick);
    let naive = exposed();
    assert_eq!(naive, Vec::<String>::new());
    // git with -c has it there for as long as it runs.
    let header = format!("http.extraHeader=Authorization: Bearer {TOKEN}");
    let line = format!(
        "GIT_CONFIG_GLOBAL=/dev/null git -c '{header}' ls-remote -q {}",
        upstream.url
    );
    bare::sh(&line);
    assert_ne!(exposed(), Vec::<String>::new());
}

// I-09: a token in an environment, read by way of /proc
#[test]
fn reading_the_token_in_environments() {
    // Whatever a provider with a token in its environment starts, has it.
    let naive = "import os, subprocess
child = subprocess.Popen(['sleep', '1000'], env={'SECRET_TOKEN': 'canary'})
while 'sleep' not in open(f'/proc/{child.pid}/comm').read():
    pass
print('canary' in open(f'/proc/{child.pid}/environ').read())
child.kill()
child.wait()
";
    assert_eq!(bare::python(naive), "True\n");

    let server = GitServer::with_token(TOKEN);
    let (upstream, derrick) = private(&server, TOKEN);
    let workspace = use_token(&upstream, &derrick);
    workspace.start("exec sleep 1000");
    for form in forms(TOKEN) {
        let inside = workspace.sh(&format!(
            "set | grep -e '{0}'; cat /environment | grep -e '{0}'
             cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' '\\n' | grep -e '{0}'",
            pattern(&form)
        ));
        assert_eq!(inside.output, "", "{form} is inside");
    }
    if mode() == Mode::Root {
        let below = descendants(derrick.pid());
        assert!(below.len() >= 3, "{below:?}");
        for pid in below {
            let has = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let has = String::from_utf8_lossy(&has);
            assert!(!has.contains(TOKEN), "process {pid}");
            // The spawner and every init have nothing but where programs are.
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let variables = has.split_terminator('\0').count();
            let only_path = variables == 0 || (variables == 1 && has.starts_with("PATH="));
            assert!(!name.starts_with("derrick") || only_path, "{name}: {has}");
        }
    }
}

// I-09: whatever else is in the provider's environment
#[test]
fn reading_the_providers_environment() {
    let derrick = Launch::new(json!({ "name": "test" }))
        .environment("AWS_SECRET_ACCESS_KEY", "canary-in-the-environment")
        .environment("LD_LIBRARY_PATH", "/canary")
        .start();
    let own = fs::read(format!("/proc/{}/environ", derrick.pid())).expect("it runs");
    assert!(String::from_utf8_lossy(&own).contains("canary-in-the-environment"));

    let workspace = derrick.create();
    let printed = workspace.ok("env; cat /proc/1/environ 2> /dev/null; true");
    assert!(!printed.contains("canary"), "{printed}");
    let names: BTreeSet<&str> = printed
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    let expected = BTreeSet::from([
        "HOME", "HOSTNAME", "LANG", "LC_ALL", "LOGNAME", "OLDPWD", "PATH", "PWD", "SHELL", "SHLVL",
        "TERM", "TMPDIR", "TZ", "USER", "_",
    ]);
    let unexpected: Vec<_> = names.difference(&expected).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

// P11: a token in logs, errors and what the API tells
#[test]
fn reading_the_token_in_logs_and_errors() {
    let server = GitServer::with_token(TOKEN);
    let (upstream, derrick) = private(&server, TOKEN);
    let workspace = use_token(&upstream, &derrick);
    let mut said = vec![
        workspace.describe().to_string(),
        derrick.api.get("/health").text(),
        derrick.api.get("/metrics").text(),
        derrick.printed(),
    ];
    drop(derrick);
    // A server that says back what it was sent, and a token that is wrong.
    let wrong = format!("wrong-{TOKEN}");
    for url in [&upstream.url, &upstream.url.replace("private", "missing")] {
        let derrick = Launch::new(json!({
            "name": "test",
            "repositories": [{ "url": url, "path": "/project", "token_env": "SECRET_TOKEN" }],
        }))
        .environment("SECRET_TOKEN", &wrong)
        .environment("DERRICK_LOG", "trace")
        .start();
        said.push(
            derrick
                .api
                .post("/workspaces", &json!({}))
                .problem(422)
                .to_string(),
        );
        said.push(derrick.printed());
    }
    let encoded = BASE64.encode(format!("x:{wrong}"));
    for said in said {
        for form in [TOKEN, &forms(TOKEN)[1], &encoded[4..encoded.len() - 4]] {
            assert!(!said.contains(form), "{form} is in {said}");
        }
    }
}

// P11: a token in a file that the workspace would see
#[test]
fn giving_a_token_in_a_file_that_the_workspace_sees() {
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("its own");
    let file = scratch.file("given/token", format!("{TOKEN}\n"));
    let closed = scratch.file("token", format!("{TOKEN}\n"));
    for file in [&file, &closed] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("its own");
    }
    let config = |file: &std::path::Path| {
        json!({
            "name": "test",
            "base": { "type": "host", "include": [scratch.join("given")] },
            "repositories": [{ "url": "https://git.invalid/x", "path": "/x", "token_file": file }],
        })
    };
    let said = Launch::new(config(&file))
        .try_start()
        .expect_err("it starts");
    assert!(said.contains("token_file"), "{said}");
    assert!(!said.contains(TOKEN), "{said}");
    // One beside it, which no workspace sees, is taken.
    Launch::new(config(&closed)).start();
}
