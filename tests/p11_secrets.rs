//! P11: a secret that was given to derrick, as for fetching a repository, is never readable inside, on
//! disk, in arguments, in an environment that others see, or in logs.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use support::secrets::{assert_nowhere, forms};
use support::{
    Derrick, GitServer, Launch, Mode, Scratch, SshServer, Upstream, Workspace, bare, descendants,
    mode,
};

const TOKEN: &str = "canary-51e2d84b067f3a9c";

/// One that is in command lines while a test runs, and so not the one that is looked for there.
const SHOWN_TOKEN: &str = "canary-f7d90c6a2be81435";

/// One that is in no command line while a test runs, unless derrick puts it there.
const HELD_TOKEN: &str = "canary-08e6d3b5f12c7a49";

/// A pattern that matches the text and not itself.
fn pattern(text: &str) -> String {
    format!("[{}]{}", &text[..1], &text[1..])
}

/// A provider with a private repository, in `/project`; its token comes from the environment.
fn private(server: &GitServer, token: &str) -> (Upstream, Derrick) {
    let upstream = server.repository("private", &[("file", "x\n")]);
    upstream.receive();
    let derrick = Launch::new(json!({
        "name": "test",
        "repositories": [{
            "url": upstream.url, "path": "/project", "token_env": "SECRET_TOKEN", "push": ["work"],
        }],
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
    workspace.ok("echo z > /project/mine");
    let author = json!({ "name": "x", "email": "x@x" });
    let commit = json!({ "message": "mine", "author": author });
    workspace.post("commit", &commit).expect(200);
    workspace.post("push", &json!({ "to": "work" })).expect(200);
    workspace
}

/// While it was in use, processes of git's had it in their environment, and of others `also`.
fn assert_held_by_git_alone(server: &GitServer, also: &[&str]) {
    let requests = server.requests();
    let mut holders: BTreeSet<&str> = BTreeSet::new();
    for request in &requests {
        assert_eq!(request.exposed, Vec::<String>::new());
        holders.extend(request.holders.iter().map(String::as_str));
    }
    let git = ["git", "git-remote-http"];
    assert!(holders.contains(git[1]), "{holders:?}");
    let others = holders
        .iter()
        .filter(|name| !git.contains(*name) && !also.contains(*name));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<&&str>::new());
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
    assert_nowhere(SHOWN_TOKEN, &derrick, &workspace);
    assert_eq!(
        workspace.ok("git -C /project remote get-url origin").trim(),
        upstream.url
    );
}

// I-09: a token in the arguments of a process, which every user of the host may read
#[test]
fn reading_the_token_in_command_lines() {
    // The same test may run as another user.
    let token = &format!("{TOKEN}{}", std::process::id());
    let server = GitServer::with_token(token);
    let exposed = || {
        let requests = server.requests();
        requests
            .iter()
            .flat_map(|request| request.exposed.clone())
            .collect::<Vec<_>>()
    };
    let (upstream, derrick) = private(&server, token);
    use_token(&upstream, &derrick);
    assert_eq!(exposed(), Vec::<String>::new());
    // git with -c has it there for as long as it runs.
    let header = format!("http.extraHeader=Authorization: Bearer {token}");
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

    let server = GitServer::with_token(HELD_TOKEN);
    let (upstream, derrick) = private(&server, HELD_TOKEN);
    let workspace = use_token(&upstream, &derrick);
    workspace.start("exec sleep 1000");
    for form in forms(HELD_TOKEN) {
        let inside = workspace.sh(&format!(
            "set | grep -e '{0}'; cat /environment | grep -e '{0}'
             cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' '\\n' | grep -e '{0}'",
            pattern(&form)
        ));
        assert_eq!(inside.output, "", "{form} is inside");
    }
    assert_held_by_git_alone(&server, &["derrick"]);
    if mode() == Mode::Root {
        let below = descendants(derrick.pid());
        assert!(below.len() >= 3, "{below:?}");
        for pid in below {
            let has = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let has = String::from_utf8_lossy(&has);
            assert!(!has.contains(HELD_TOKEN), "process {pid}");
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
    for said in said {
        for form in forms(TOKEN).into_iter().chain(forms(&wrong)) {
            assert!(!said.contains(&form), "{form} is in {said}");
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

/// Has derrick use credentials of this kind; `None` if they are in a file.
fn with_credentials(
    server: &GitServer,
    fields: Value,
    variable: Option<&str>,
) -> (Derrick, Workspace) {
    let upstream = server.repository("private", &[("file", "x\n")]);
    let mut repository = fields;
    repository["url"] = upstream.url.clone().into();
    repository["path"] = "/project".into();
    repository["push"] = json!(["work"]);
    upstream.receive();
    let launch = Launch::new(json!({
        "name": "test",
        "repositories": [repository],
        "setup_script": "cp -r /project/.git /copy; env > /environment",
    }))
    .environment("DERRICK_LOG", "trace");
    let derrick = match variable {
        Some(value) => launch.environment("SECRET_PASSWORD", value).start(),
        None => launch.start(),
    };
    let workspace = use_token(&upstream, &derrick);
    workspace.start("exec sleep 1000");
    (derrick, workspace)
}

// P11: a password, wherever it comes from
#[test]
fn reading_a_password() {
    for (number, kind) in ["password_env", "password_file", "credential_command"]
        .into_iter()
        .enumerate()
    {
        // Tests of other kinds run on this host at the same time.
        let password = format!("canary-9b27e6{number}d41c05f8a3");
        let server = GitServer::with_token(&password);
        let scratch = Scratch::new();
        let file = scratch.file("password", format!("{password}\n"));
        let answer = format!(
            "echo username=ada; echo \"password=$(cat {})\"",
            file.display()
        );
        let script = scratch.file("helper", answer);
        let (fields, variable) = match kind {
            "password_env" => (
                json!({ "username": "ada", "password_env": "SECRET_PASSWORD" }),
                Some(password.as_str()),
            ),
            "password_file" => (json!({ "username": "ada", "password_file": file }), None),
            _ => (json!({ "credential_command": ["/bin/sh", script] }), None),
        };
        let (derrick, workspace) = with_credentials(&server, fields, variable);
        assert_nowhere(&password, &derrick, &workspace);
        let also: &[&str] = variable.map_or(&[], |_| &["derrick"]);
        assert_held_by_git_alone(&server, also);
        assert_eq!(workspace.ok("cat /project/file"), "x\n");
    }
}

// P11: the private key that ssh is given
#[test]
fn reading_an_ssh_key() {
    let server = SshServer::start();
    let upstream = server.repository("private", &[("file", "x\n")]);
    let canary = server.canary();
    let derrick = Launch::new(json!({
        "name": "test",
        "repositories": [{
            "url": upstream.url,
            "path": "/project",
            "ssh_key_file": server.key(),
            "known_hosts_file": server.known_hosts(),
            "push": ["work"],
        }],
        "setup_script": "cp -r /project/.git /copy; env > /environment",
    }))
    .environment("DERRICK_LOG", "trace")
    .start();
    let workspace = use_token(&upstream, &derrick);
    workspace.start("exec sleep 1000");
    assert_nowhere(&canary, &derrick, &workspace);
    let shown = server.shown();
    assert!(shown.connections >= 4, "{shown:?}");
    assert_eq!(shown.processes, Vec::<String>::new());
    // The search would find it.
    let found = bare::sh(&format!("grep -c '{canary}' {}", server.key().display()));
    assert_eq!(found, "1\n");
    // Nor does the workspace learn where it is.
    let named = workspace.sh(&format!(
        "grep -rl '{}' /project /copy",
        server.key().display()
    ));
    assert_eq!(named.output, "");
}
