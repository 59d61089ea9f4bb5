//! Repositories over ssh, with a real sshd: a key of the config's, the agent, and hosts that are not trusted.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::{Derrick, Launch, Scratch, SshServer, Upstream, bare, succeed};

/// A config with this repository in `/project`, and further fields of it.
fn config(upstream: &Upstream, fields: &Value) -> Launch {
    let mut repository = fields.clone();
    repository["url"] = upstream.url.clone().into();
    repository["path"] = "/project".into();
    Launch::new(json!({ "name": "test", "repositories": [repository] }))
}

/// What derrick says to a create that fails.
fn refusal(derrick: &Derrick) -> String {
    let problem = derrick.api.post("/workspaces", &json!({})).problem(422);
    problem["detail"].as_str().expect("a text").to_owned()
}

/// An ssh agent with one key; ended at the end.
struct Agent {
    scratch: Scratch,
    pid: i32,
}

impl Agent {
    fn with(key: &Path) -> Self {
        let scratch = Scratch::new();
        let socket = scratch.join("agent");
        // It answers when its parent ends.
        let said = succeed(Command::new("ssh-agent").arg("-a").arg(&socket));
        let pid = said
            .split_once("SSH_AGENT_PID=")
            .and_then(|(_, rest)| rest.split_once(';')?.0.parse().ok())
            .expect("it says its number");
        let agent = Self { scratch, pid };
        let mut add = Command::new("ssh-add");
        succeed(add.arg("-q").arg(key).env("SSH_AUTH_SOCK", agent.socket()));
        agent
    }

    fn socket(&self) -> PathBuf {
        self.scratch.join("agent")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).expect("it runs");
    }
}

#[test]
fn a_key_file_opens_a_repository_and_later_commits() {
    let server = SshServer::start();
    let upstream = server.repository("project", &[("file", "1\n")]);
    let derrick = config(
        &upstream,
        &json!({ "ssh_key_file": server.key(), "known_hosts_file": server.known_hosts() }),
    )
    .start();
    let workspace = derrick.create();
    assert_eq!(workspace.ok("cat /project/file"), "1\n");
    let remote = workspace.ok("git -C /project remote get-url origin");
    assert_eq!(remote.trim(), upstream.url);
    let commit = upstream.commit(&[("file", "2\n")]);
    assert_eq!(workspace.fetch()["repositories"][0]["new_commit"], commit);
    assert_eq!(derrick.create().ok("cat /project/file"), "2\n");
    // Nobody who is trusted was added to.
    let trusted = fs::read_to_string(server.known_hosts()).expect("it is there");
    assert_eq!(trusted.lines().count(), 1);
}

#[test]
fn the_agent_is_asked_where_no_key_is_named_and_not_beside_one() {
    let server = SshServer::start();
    let upstream = server.repository("project", &[("file", "1\n")]);
    let agent = Agent::with(&server.key());
    let socket = agent.socket().to_string_lossy().into_owned();
    let hosts = server.known_hosts();
    let by_agent = config(&upstream, &json!({ "known_hosts_file": hosts }))
        .environment("SSH_AUTH_SOCK", &socket)
        .start();
    assert_eq!(by_agent.create().ok("cat /project/file"), "1\n");
    let by_key = config(
        &upstream,
        &json!({ "ssh_key_file": server.other_key(), "known_hosts_file": hosts }),
    )
    .environment("SSH_AUTH_SOCK", &socket)
    .start();
    let said = refusal(&by_key);
    assert!(said.contains("refused the credentials"), "{said}");
}

#[test]
fn a_host_that_is_not_known_or_has_another_key_gets_nothing() {
    let server = SshServer::start();
    let upstream = server.repository("project", &[("file", "1\n")]);
    for hosts in [server.no_hosts(), server.wrong_hosts()] {
        let derrick = config(
            &upstream,
            &json!({ "ssh_key_file": server.key(), "known_hosts_file": hosts }),
        )
        .start();
        let said = refusal(&derrick);
        assert!(said.contains("cannot verify the host"), "{said}");
        assert!(!said.contains(&*hosts.to_string_lossy()), "{said}");
    }
}

#[test]
fn what_is_wrong_with_a_key_is_said() {
    let server = SshServer::start();
    let upstream = server.repository("project", &[("file", "1\n")]);
    let scratch = Scratch::new();
    let garbage = scratch.file("garbage", "no key\n");
    let key = scratch.join("key");
    fs::copy(server.key(), &key).expect("copies");
    for file in [&garbage, &key] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("its own");
    }
    let with = |key: &Path| {
        let hosts = server.known_hosts();
        let fields = json!({ "ssh_key_file": key, "known_hosts_file": hosts });
        config(&upstream, &fields)
    };
    let said = refusal(&with(&garbage).start());
    assert!(said.contains("ssh cannot use the key"), "{said}");
    assert!(!said.contains("garbage"), "{said}");

    let derrick = with(&key).start();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("its own");
    let said = refusal(&derrick);
    assert!(said.contains("its mode is 644"), "{said}");
    fs::remove_file(&key).expect("its own");
    let said = refusal(&derrick);
    assert!(said.contains("No such file"), "{said}");
    drop(derrick);
    let said = with(&key).try_start().expect_err("it starts");
    assert!(
        said.contains("ssh_key_file: names a file that cannot be read"),
        "{said}"
    );
    // ssh itself finds nothing wrong with the server.
    let direct = format!(
        "GIT_SSH_COMMAND='ssh -F none -i {} -o UserKnownHostsFile={}' git ls-remote {}",
        server.key().display(),
        server.known_hosts().display(),
        upstream.url
    );
    assert!(bare::sh(&direct).contains("refs/heads/main"));
}
