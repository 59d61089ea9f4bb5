//! The API against the real provider: errors that tell whose fault it was, files that stay inside, clients who are let in.
//!
//! The front end's own checks, each header and each field, are tested beside its code.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use serde_json::json;
use support::{Derrick, GUARD, Launch, Mode, Scratch, mode};

const TOKEN: &str = "correct.horse.battery.staple.0123456789";

// --- errors ---

#[test]
fn errors_are_problem_details_with_a_request_id_of_their_own() {
    let derrick = Derrick::on_host();
    let (api, nobody) = (&derrick.api, "00000000-0000-7000-8000-000000000000");
    let workspace = derrick.create();
    let problems = [
        (404, api.get("/nowhere")),
        (404, api.get(&format!("/workspaces/{nobody}"))),
        (404, api.get("/workspaces/..%2f..%2fetc")),
        (
            404,
            api.post(
                &format!("/workspaces/{nobody}/cmd"),
                &json!({ "cmd": "true" }),
            ),
        ),
        (405, api.request("PUT", "/workspaces", Some(&json!({})))),
        (400, workspace.post("cmd", &json!({}))),
        (400, workspace.post("cmd", &json!({ "cmd": 1 }))),
        (
            400,
            workspace.post("cmd", &json!({ "cmd": "true\u{0}false" })),
        ),
        (
            400,
            workspace.post("cmd", &json!({ "cmd": "true", "comand": "x" })),
        ),
        (
            400,
            workspace.post("cmd", &json!({ "cmd": "true", "env": { "A=B": "x" } })),
        ),
        (
            400,
            workspace.post("write_file", &json!({ "path": "/x", "content": "!" })),
        ),
        (
            400,
            workspace.post("read_file", &json!({ "path": "/x\u{0}" })),
        ),
        (400, api.post("/workspaces", &json!({ "env": ["A"] }))),
    ];
    let mut ids = BTreeSet::new();
    for (status, answer) in problems {
        let problem = answer.problem(status);
        assert_eq!(problem["status"], json!(status), "{problem}");
        ids.insert(problem["request_id"].to_string());
    }
    assert_eq!(ids.len(), 13, "a request id came twice");
    // None of it did anything.
    assert_eq!(api.list(), [workspace.id.as_str()]);
    assert_eq!(workspace.sh("test -e /x").exit_code, 1);
}

#[test]
fn a_body_beyond_the_limit_is_refused_before_it_is_sent() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let answer = derrick.api.raw(
        format!(
            "POST /workspaces/{}/write_file HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            workspace.id,
            derrick.api.address(),
            200 << 20
        )
        .as_bytes(),
    );
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

// --- files ---

#[test]
fn a_file_of_many_megabytes_comes_back_as_it_went() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let content: Vec<u8> = (0..60_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    workspace.write_file("/big", &content);
    assert_eq!(
        workspace.ok("stat -c %s /big").trim(),
        content.len().to_string()
    );
    assert!(
        workspace.read_file("/big") == content,
        "the file changed on its way"
    );
}

#[test]
fn what_is_no_regular_file_is_refused_and_never_waited_for() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.ok(
        "mkdir /dir; mkfifo /fifo; ln -s loop /loop; echo x > /closed; chmod 0 /closed; touch /empty
         /usr/bin/python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/socket\")'",
    );
    for (path, statuses) in [
        ("/missing", &[404][..]),
        ("/missing/file", &[404]),
        ("/empty/file", &[404, 422]),
        ("/dir", &[422]),
        ("/fifo", &[422]),
        ("/socket", &[422]),
        ("/loop", &[422, 404]),
        ("/dev/zero", &[422, 403]),
        ("/dev/tty", &[422, 403]),
        ("/proc/1/mem", &[422, 403]),
        ("/proc/kmsg", &[422, 403]),
        ("", &[400, 404, 422]),
    ] {
        let answer = workspace.post("read_file", &json!({ "path": path }));
        let status = answer.status;
        assert!(
            statuses.contains(&status),
            "{path}: {status} {}",
            answer.text()
        );
        let problem = answer.problem(status);
        assert!(
            problem["detail"]
                .as_str()
                .unwrap_or_default()
                .contains(path),
            "{problem}"
        );
    }
    assert_eq!(workspace.read_file("/empty"), b"");
    for path in [
        "/dir",
        "/fifo",
        "/dev/null",
        "/proc/self/comm",
        "/sys/x",
        "/empty/file",
    ] {
        let body = json!({ "path": path, "content": "eHh4" });
        let answer = workspace.post("write_file", &body);
        assert!(
            (400..500).contains(&answer.status),
            "{path}: {}",
            answer.text()
        );
    }
    assert_eq!(workspace.ok("stat -c %F /dir /fifo"), "directory\nfifo\n");
}

#[test]
fn links_that_were_planted_lead_to_the_workspaces_own_files() {
    let host = Scratch::new();
    let secret = host.file("secret", "canary");
    let secret = secret.to_str().expect("a scratch path is text");
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let up = "../".repeat(30);
    workspace.ok(&format!(
        "ln -s {secret} /absolute; ln -s {up}{} /relative; ln -s {} /way
         ln -s /proc/1/root /root-of-init; ln -s /proc/self/fd /fds; ln -s /etc/passwd /inside",
        &secret[1..],
        host.path().display(),
    ));
    for path in [
        "/absolute",
        "/relative",
        "/way/secret",
        &format!("{up}{secret}"),
        secret,
    ] {
        let answer = workspace.post("read_file", &json!({ "path": path }));
        assert!(answer.status >= 400, "{path} was read");
        assert!(!answer.text().contains("canary"), "{path}");
    }
    for path in [
        "/way/new",
        "/root-of-init/way/new",
        &format!("{}/new", host.path().display()),
    ] {
        let body = json!({ "path": path, "content": "eHh4" });
        // It may succeed: in the workspace.
        workspace.post("write_file", &body);
        assert!(!host.join("new").exists(), "{path} was written on the host");
    }
    let accounts = workspace.read_file("/inside");
    assert_eq!(accounts, workspace.ok("cat /etc/passwd").as_bytes());
    workspace.write_file("/absolute", b"replaced");
    assert_eq!(fs::read_to_string(secret).expect("it is there"), "canary");
}

#[test]
fn a_written_file_is_there_whole_or_not_at_all() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace.write_file("/file", b"old");
    workspace.ok("chmod 750 /file");
    // Flawed only at its end: what came before must not have replaced anything.
    let flawed = "QUJD".repeat(1 << 18) + "!";
    let body = json!({ "path": "/file", "content": flawed });
    workspace.post("write_file", &body).problem(400);
    assert_eq!(workspace.read_file("/file"), b"old");
    assert_eq!(workspace.ok("ls -A / | grep -c file"), "1\n");
    workspace.write_file("/file", b"new");
    assert_eq!(workspace.ok("cat /file"), "new");
}

#[test]
fn names_with_every_awkward_byte_are_names() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for name in [
        "/a b",
        "/a\nb",
        "/-rf",
        "/*",
        "/$(touch x)",
        "/é\u{1f600}",
        "/..\\x",
        "/%2e%2e",
    ] {
        workspace.write_file(name, name.as_bytes());
        assert_eq!(workspace.read_file(name), name.as_bytes());
    }
    workspace
        .post(
            "write_file",
            &json!({ "path": format!("/{}", "x".repeat(300)), "content": "" }),
        )
        .problem(422);
}

#[test]
fn files_and_commands_of_many_clients_do_not_mix() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let workspace = &workspace;
            scope.spawn(move || {
                for round in 0..5 {
                    let content = format!("{n} {round}").repeat(10_000);
                    workspace.write_file(&format!("/file-{n}"), content.as_bytes());
                    assert_eq!(workspace.ok(&format!("cat /file-{n}")), content);
                    let read = workspace.read_file(&format!("/file-{n}"));
                    assert_eq!(read, content.as_bytes());
                }
            });
        }
    });
}

// --- what GET tells ---

#[test]
fn a_workspace_tells_its_state_its_layer_and_what_is_enforced_on_it() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let told = workspace.describe();
    assert_eq!(told["id"], json!(workspace.id), "{told}");
    assert_eq!(told["state"], json!("running"), "{told}");
    assert_eq!(told["execs"], json!(0), "{told}");
    assert!(
        told["layer"]
            .as_str()
            .is_some_and(|layer| layer.len() >= 32),
        "{told}"
    );
    assert!(told["created"].as_u64() > Some(1_700_000_000), "{told}");
    let enforcement = &told["enforcement"]["sandbox"];
    let ids = if mode() == Mode::Single { 1 } else { 65_536 };
    assert_eq!(enforcement["ids"], json!(ids), "{told}");
    assert_eq!(enforcement["network"], json!("none"), "{told}");
    for field in ["landlock", "seccomp_filters", "capabilities"] {
        assert!(!enforcement[field].is_null(), "no {field} in {told}");
    }
    let kinds = ["user", "mnt", "pid", "ipc", "uts", "cgroup", "net"];
    assert_eq!(enforcement["namespaces"], json!(kinds), "{told}");
    // As a command finds them.
    for kind in kinds {
        let inside = workspace.ok(&format!("readlink /proc/self/ns/{kind}"));
        let outside =
            std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("/proc is mounted");
        assert_ne!(inside.trim(), outside.to_string_lossy(), "{kind}");
    }
    let set = workspace.ok("sed -n 's/NoNewPrivs:\\t//p' /proc/self/status");
    assert_eq!(
        enforcement["no_new_privs"],
        json!(set.trim() == "1"),
        "{told}"
    );
    assert_eq!(enforcement["no_new_privs"], json!(true), "{told}");
    let files = workspace.ok("ulimit -Hn");
    assert_eq!(
        enforcement["rlimits"]["nofile"].to_string(),
        files.trim(),
        "{told}"
    );
    assert_eq!(enforcement["rlimits"]["core"], json!(1), "{told}");
    assert_eq!(enforcement["keyring"], json!("own"), "{told}");

    workspace.ok("mkfifo /tmp/started /tmp/go");
    let command = workspace.start("echo > /tmp/started; read line < /tmp/go");
    workspace.ok("read line < /tmp/started");
    assert_eq!(workspace.describe()["execs"], json!(1));
    workspace.ok("echo > /tmp/go");
    command.answer().expect(200);
}

// --- who is let in ---

#[test]
fn a_web_page_is_not_let_in() {
    let derrick = Derrick::on_host();
    let address = derrick.api.address();
    for (header, status) in [
        (format!("Host: {address}"), 200),
        ("Host: evil.example".to_owned(), 421),
        (
            format!("Host: {address}\r\nOrigin: https://evil.example"),
            403,
        ),
        (format!("Host: {address}\r\nOrigin: null"), 403),
    ] {
        let request = format!("GET /workspaces HTTP/1.1\r\n{header}\r\nConnection: close\r\n\r\n");
        let answer = derrick.api.raw(request.as_bytes());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{header}: {answer}"
        );
        assert!(
            !answer.to_ascii_lowercase().contains("access-control-allow"),
            "{answer}"
        );
    }
    // A form needs no preflight, so its types are refused.
    let body = "{}";
    let request = format!(
        "POST /workspaces HTTP/1.1\r\nHost: {address}\r\nContent-Type: text/plain\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = derrick.api.raw(request.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 415 "), "{answer}");
    assert_eq!(derrick.api.list(), Vec::<String>::new());
}

#[test]
fn with_a_token_nobody_is_let_in_without_it() {
    let derrick = Launch::new(json!({ "name": "test" })).token(TOKEN).start();
    derrick.create().ok("true");
    for token in [None, Some("wrong"), Some(&TOKEN[1..]), Some("")] {
        let stranger = derrick.api.with_token(token);
        for path in ["/workspaces", "/health", "/nowhere"] {
            stranger.get(path).problem(401);
        }
    }
    assert!(!derrick.printed().contains(TOKEN));
    let line = fs::read(format!("/proc/{}/cmdline", derrick.pid())).expect("it runs");
    assert!(!String::from_utf8_lossy(&line).contains(TOKEN));
}

#[test]
fn without_a_token_no_other_user_of_the_host_is_let_in() {
    let derrick = Derrick::on_host();
    let url = format!("http://{}/workspaces", derrick.api.address());
    let ask = |mut command: Command| {
        let output = command
            .args(["curl", "--silent", "--noproxy", "*", "--max-time", "60"])
            .args(["--output", "/dev/null", "--write-out", "%{http_code}", &url])
            .stdin(Stdio::null())
            .output()
            .expect("cannot start another user's client");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(ask(Command::new("env")), "200");
    let mut stranger = Command::new("setpriv");
    match mode() {
        Mode::Root => stranger.args(["--reuid=65534", "--regid=65534", "--clear-groups"]),
        Mode::Subordinate => {
            stranger = Command::new("unshare");
            stranger.args(["--map-root-user", "--map-auto", "--", "setpriv"]);
            stranger.args(["--reuid=1000", "--regid=1000", "--clear-groups"])
        }
        // This user can be nobody else; that another one is refused is what the other modes show.
        Mode::Single => return,
    };
    assert_eq!(ask(stranger), "403");
}

#[test]
fn a_unix_socket_is_served_and_is_its_users_own() {
    let scratch = Scratch::new();
    let path = scratch.join("api.sock");
    let mut provider = Command::new(support::binary())
        .arg("--listen")
        .arg(format!("unix:{}", path.display()))
        .arg("--state-dir")
        .arg(scratch.join("state"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("cannot start derrick");
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(provider.stdout.take().expect("it is a pipe"));
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("derrick says where it listens");
    assert_eq!(line, format!("listening on unix:{}\n", path.display()));
    let mode = fs::metadata(&path)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let mut stream = UnixStream::connect(&path).expect("derrick listens");
    stream
        .set_read_timeout(Some(GUARD))
        .expect("a socket takes a timeout");
    stream
        .write_all(b"GET /workspaces HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("derrick reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("derrick answers");
    assert!(answer.ends_with("{\"workspaces\":[]}"), "{answer}");

    let pid = nix::unistd::Pid::from_raw(provider.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    assert!(provider.wait().expect("it ends").success());
    assert!(!path.exists(), "the socket is still there");
}

#[test]
fn a_workspace_with_the_hosts_network_cannot_use_the_api() {
    let config = json!({ "name": "test", "network": "host" });
    if mode() == Mode::Single {
        // Root inside is the provider's own user: only a token tells them apart.
        let scratch = Scratch::new();
        let file = scratch.file("config.json", config.to_string());
        let output = Command::new(support::binary())
            .args(["--listen", "127.0.0.1:0", "--workspace-config-path"])
            .arg(&file)
            .arg("--state-dir")
            .arg(scratch.join("state"))
            .output()
            .expect("cannot start derrick");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("token"), "{said}");
        return;
    }
    let derrick = Derrick::start(config);
    let workspace = derrick.create();
    let program = format!(
        "import urllib.error, urllib.request
try:
    print(urllib.request.urlopen('http://{}/workspaces').status)
except urllib.error.HTTPError as error:
    print(error.code)
",
        derrick.api.address()
    );
    assert_eq!(workspace.python(&program).expect(0), "403\n");
}

#[test]
fn with_a_token_a_workspace_with_the_hosts_network_cannot_use_the_api_either() {
    let derrick = Launch::new(json!({ "name": "test", "network": "host" }))
        .token(TOKEN)
        .start();
    let workspace = derrick.create();
    let ran = workspace.sh(&format!(
        "exec 3<> /dev/tcp/{}
         printf 'GET /workspaces HTTP/1.1\\r\\nHost: {}\\r\\nConnection: close\\r\\n\\r\\n' >&3
         head -n 1 <&3",
        derrick.api.address().replace(':', "/"),
        derrick.api.address(),
    ));
    assert!(ran.output.starts_with("HTTP/1.1 401 "), "{}", ran.output);
    // The token is in a file of the provider's that is not there.
    let found = workspace.sh(&format!("grep -rl {TOKEN} /etc /home /root /tmp /var /run"));
    assert_eq!(found.output, "");
}

#[test]
fn what_the_hosts_network_costs_is_told() {
    let derrick = support::Launch::new(json!({ "name": "test", "network": "host" }))
        .token("0123456789abcdef0123456789abcdef")
        .start();
    let workspace = derrick.create();
    let told = workspace.describe();
    let weaker = told["enforcement"]["weaker"].to_string();
    assert!(weaker.contains("/sys is empty"), "{told}");
    assert_eq!(workspace.ok("ls /sys"), "");
    let kinds = told["enforcement"]["sandbox"]["namespaces"].to_string();
    assert!(!kinds.contains("net"), "{told}");
}
