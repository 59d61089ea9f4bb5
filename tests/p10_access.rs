//! P10: The API serves only token holders on loopback or the owner's socket; web pages and workspaces are refused.
//!
//! Each test is an attack, first where nothing keeps it from working, then as derrick answers it. The
//! front end's own checks, each header and each field, are tested beside its code; what an exec's
//! parameters may be (the rest of F-11) in `execs_input.rs` and `execs.rs`, a repository's token and foreign
//! hosts (F-14) in `src/git/tests/http.rs`, and everything that the document allows (F-15) in `openapi.rs`.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use support::{Api, Derrick, GUARD, Launch, Mode, Scratch, Workspace, binary, descendants, mode};

const TOKEN: &str = "correct.horse.battery.staple.0123456789";
const OTHER: &str = "00112233445566778899aabbccddeeff";
const THIRD: &str = "fedcba9876543210fedcba9876543210";

fn config() -> Value {
    json!({ "name": "test" })
}

/// Sends a request as it is and gives the head of its answer; what comes behind that is not waited for.
fn ask(api: &Api, head: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(api.address()).expect("derrick listens");
    stream
        .set_read_timeout(Some(GUARD))
        .expect("a socket takes a timeout");
    let mut request = format!("{head}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend(body);
    stream.write_all(&request).expect("derrick reads");
    head_from(stream)
}

fn head_from(stream: impl Read) -> String {
    let mut head = String::new();
    for line in BufReader::new(stream).lines() {
        let line = line.expect("derrick answers");
        if line.is_empty() {
            break;
        }
        head.push_str(&line.to_ascii_lowercase());
        head.push('\n');
    }
    head
}

/// The status of an answer.
fn status(head: &str) -> u16 {
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no status in {head:?}"))
}

/// Every route of the document, with `workspace` for its id.
fn routes(api: &Api, workspace: &str) -> Vec<(String, String)> {
    let document = api.get("/openapi.json").expect(200).json();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        let path = path.replace("{id}", workspace).replace(['{', '}'], "");
        for method in item.as_object().expect("methods").keys() {
            found.push((method.to_uppercase(), path.clone()));
        }
    }
    assert!(found.len() > 30, "{found:?}");
    found
}

/// A command of another user of this host; none where the caller can be nobody else, which the other
/// modes make up for.
fn stranger(program: &[&str]) -> Option<Command> {
    let mut command = match mode() {
        Mode::Root => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
            command
        }
        Mode::Subordinate => {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--map-auto", "--", "setpriv"]);
            command.args(["--reuid=1000", "--regid=1000", "--clear-groups"]);
            command
        }
        Mode::Single => return None,
    };
    command.arg("--").args(program).current_dir("/");
    Some(command)
}

fn stdout(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A directory that everybody can look into.
struct Open(Scratch);

impl Open {
    fn new() -> Self {
        let open = |path: &Path| {
            fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("it is ours");
        };
        let scratch = Scratch::below(Path::new("/tmp"));
        open(scratch.path());
        Self(scratch)
    }
}

/// A provider with arguments that `Launch` has no word for.
struct Serving {
    provider: Child,
    /// Behind `listening on `.
    place: String,
    _stdout: BufReader<std::process::ChildStdout>,
    _state: Scratch,
}

impl Serving {
    fn start(program: &[&str], arguments: &[&str]) -> Self {
        let state = Scratch::new();
        let binary = binary();
        let mut words = program
            .iter()
            .map(std::ffi::OsStr::new)
            .chain([binary.as_os_str()]);
        let mut provider = Command::new(words.next().expect("the program itself"))
            .args(words)
            .arg("--state-dir")
            .arg(state.join("state"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("cannot start derrick");
        let mut stdout = BufReader::new(provider.stdout.take().expect("it is a pipe"));
        let mut line = String::new();
        stdout
            .read_line(&mut line)
            .expect("derrick says where it listens");
        let place = line.trim_end().strip_prefix("listening on ");
        Self {
            place: place
                .unwrap_or_else(|| panic!("derrick's first line is {line:?}"))
                .to_owned(),
            provider,
            _stdout: stdout,
            _state: state,
        }
    }

    fn api(&self, token: Option<&str>) -> Api {
        let address = self
            .place
            .strip_prefix("http://")
            .expect("it is an address");
        Api::new(&address.replace("0.0.0.0", "127.0.0.1"), token)
    }

    fn end(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.provider.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
        assert!(self.provider.wait().expect("it ends").success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.provider.kill();
            let _ = self.provider.wait();
        }
    }
}

/// What derrick says when it does not start with these arguments.
fn refused_start(arguments: &[&str]) -> String {
    let state = Scratch::new();
    let output: Output = Command::new(binary())
        .arg("--state-dir")
        .arg(state.join("state"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("cannot start derrick");
    assert!(!output.status.success(), "{arguments:?}: it served");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn token_file(scratch: &Scratch, text: &str, mode: u32) -> String {
    let path = scratch.file("token", text);
    fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("it is ours");
    path.to_str().expect("it is text").to_owned()
}

// --- web pages ---

// F-01: a page asks by a name of its own that leads here
#[test]
fn dns_rebinding() {
    let line = |host: &str| format!("GET /workspaces HTTP/1.1\r\nHost: {host}");
    let named = Launch::new(config())
        .arguments(["--allow-host", "evil.example"])
        .start();
    let answer = ask(&named.api, &line("evil.example"), b"");
    assert_eq!(status(&answer), 200, "a name that is served is served");

    let derrick = Derrick::on_host();
    let api = &derrick.api;
    let port = api.address().rsplit_once(':').expect("a port").1;
    assert_eq!(status(&ask(api, &line(api.address()), b"")), 200);
    let workspace = derrick.create();
    for (method, path) in routes(api, &workspace.id) {
        for host in [
            "evil.example",
            &format!("evil.example:{port}"),
            "localhost",
            "",
        ] {
            let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}");
            let answer = ask(api, &head, b"");
            assert_eq!(status(&answer), 421, "{method} {path} {host:?}");
        }
    }
    assert_eq!(api.list(), [workspace.id.as_str()]);
}

// F-02: a page has a browser send what needs no preflight
#[test]
fn cross_site_request_forgery() {
    let derrick = Derrick::on_host();
    let api = &derrick.api;
    let post = |headers: &str| {
        let host = api.address();
        let head = format!("POST /workspaces HTTP/1.1\r\nHost: {host}{headers}");
        status(&ask(api, &head, b"{}"))
    };
    assert_eq!(post("\r\nContent-Type: application/json"), 200);
    assert_eq!(api.list().len(), 1, "from derrick's own user it is made");
    // What a page's form and its script send without asking first.
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ] {
        assert_eq!(post(&format!("\r\nContent-Type: {kind}")), 415, "{kind}");
    }
    assert_eq!(post(""), 415);
    let workspace = api.list().remove(0);
    for (method, path) in routes(api, &workspace) {
        for page in [
            "Origin: https://evil.example",
            "Origin: null",
            &format!("Origin: http://{}", api.address()),
            // A picture, a frame, a link: those have no Origin.
            "Sec-Fetch-Site: cross-site",
            "Sec-Fetch-Site: same-site",
        ] {
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{page}",
                api.address()
            );
            assert_eq!(status(&ask(api, &head, b"")), 403, "{method} {path} {page}");
        }
    }
    assert_eq!(api.list(), [workspace]);
}

// F-03: a page opens what no same-origin rule keeps it from
#[test]
fn a_websocket_and_an_event_stream_from_a_page() {
    let derrick = Launch::new(config())
        .token(TOKEN)
        .arguments(["--allow-origin", "https://ui.example"])
        .start();
    let api = &derrick.api;
    let workspace = derrick.create();
    let exec = workspace.exec_sh("sleep 1000");
    let ask_for = |path: &str, headers: &str| {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=={headers}",
            api.address()
        );
        status(&ask(api, &head, b""))
    };
    let bearer = format!("\r\nAuthorization: Bearer {TOKEN}");
    let attach = exec.path("/attach");
    let events = format!("/workspaces/{}/events", workspace.id);
    for (path, let_in) in [(&attach, 101), (&events, 200)] {
        for (headers, answer) in [
            (bearer.clone(), let_in),
            (format!("{bearer}\r\nOrigin: https://ui.example"), let_in),
            (format!("{bearer}\r\nOrigin: https://evil.example"), 403),
            (format!("{bearer}\r\nOrigin: null"), 403),
            (format!("{bearer}\r\nSec-Fetch-Site: cross-site"), 403),
            (String::new(), 401),
            // A page cannot have a browser send the token with a WebSocket, and there is no other way.
            ("\r\nOrigin: https://ui.example".to_owned(), 401),
            (format!("\r\nSec-WebSocket-Protocol: bearer, {TOKEN}"), 401),
            (format!("\r\nCookie: token={TOKEN}"), 401),
        ] {
            assert_eq!(ask_for(path, &headers), answer, "{path} {headers}");
        }
        for query in ["token", "access_token", "authorization"] {
            let path = format!("{path}?{query}={TOKEN}");
            assert_eq!(ask_for(&path, ""), 401, "{path}");
        }
    }
}

// F-10: a page asks whether it may read the answers
#[test]
fn reading_across_origins() {
    let page = "https://ui.example";
    let get = |api: &Api, origin: &str, path: &str| {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {TOKEN}\r\nOrigin: {origin}",
            api.address()
        );
        ask(api, &head, b"")
    };
    let preflight = |api: &Api, origin: &str| {
        let head = format!(
            "OPTIONS /workspaces HTTP/1.1\r\nHost: {}\r\nOrigin: {origin}\r\n\
             Access-Control-Request-Method: POST\r\n\
             Access-Control-Request-Headers: authorization, content-type\r\n\
             Access-Control-Request-Private-Network: true",
            api.address()
        );
        ask(api, &head, b"")
    };
    let listed = Launch::new(config())
        .token(TOKEN)
        .arguments(["--allow-origin", page])
        .start();
    let answer = preflight(&listed.api, page);
    assert_eq!(status(&answer), 204, "{answer}");
    for line in [
        "access-control-allow-origin: https://ui.example\n",
        "access-control-allow-headers: authorization, content-type,",
        "access-control-allow-methods: get, head, post,",
        "vary: origin\n",
    ] {
        assert!(answer.contains(line), "{answer}");
    }
    for (path, code) in [("/workspaces", 200), ("/workspaces/none", 404)] {
        let answer = get(&listed.api, page, path);
        assert_eq!(status(&answer), code, "{answer}");
        let line = "access-control-allow-origin: https://ui.example\n";
        assert!(answer.contains(line), "{answer}");
    }

    // Of another origin, and of any where none is listed.
    let derrick = Launch::new(config()).token(TOKEN).start();
    let workspace = derrick.create();
    for (api, origin) in [
        (&listed.api, "https://evil.example"),
        (&listed.api, "https://ui.example.evil.example"),
        (&listed.api, "http://ui.example"),
        (&listed.api, "https://ui.example:8443"),
        (&derrick.api, page),
    ] {
        for answer in [preflight(api, origin), get(api, origin, "/workspaces")] {
            assert_eq!(status(&answer), 403, "{answer}");
            assert!(!answer.contains("access-control"), "{answer}");
        }
    }
    for (method, path) in routes(&derrick.api, &workspace.id) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {TOKEN}",
            derrick.api.address()
        );
        let answer = ask(&derrick.api, &head, b"");
        assert!(
            !answer.contains("access-control"),
            "{method} {path}: {answer}"
        );
    }
    // Everybody's pages are never let in, and none without a token.
    for arguments in [["--allow-origin", "*"], ["--allow-origin", "null"]] {
        assert!(refused_start(&arguments).contains("write an origin as a browser does"));
    }
    let said = refused_start(&["--allow-origin", page]);
    assert!(said.contains("needs a --token-file"), "{said}");
}

// --- who is at the other end ---

// F-04: loopback is every user's
#[test]
fn another_user_of_the_host_on_loopback() {
    let derrick = Derrick::on_host();
    let with_token = Launch::new(config()).token(TOKEN).start();
    let url = |derrick: &Derrick| format!("http://{}/workspaces", derrick.api.address());
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let curl = |url: &str, headers: &[&str]| {
        let mut words = vec!["curl", "--silent", "--noproxy", "*", "--max-time", "60"];
        words.extend(["--output", "/dev/null", "--write-out", "%{http_code}"]);
        headers
            .iter()
            .for_each(|header| words.extend(["-H", header]));
        words.push(url);
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let as_owner = |words: Vec<String>| stdout(Command::new("env").args(words));
    let as_stranger = |words: Vec<String>| {
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        stranger(&words).map(|mut command| stdout(&mut command))
    };
    assert_eq!(as_owner(curl(&url(&derrick), &[])), "200");
    let Some(answer) = as_stranger(curl(&url(&with_token), &[&bearer])) else {
        return;
    };
    assert_eq!(answer, "200", "who has the token is let in");
    let answer = as_stranger(curl(&url(&derrick), &[]));
    assert_eq!(answer.as_deref(), Some("403"));
    // No token that was not asked for helps.
    let answer = as_stranger(curl(&url(&derrick), &[&bearer]));
    assert_eq!(answer.as_deref(), Some("403"));
    let answer = as_stranger(curl(&url(&with_token), &[]));
    assert_eq!(answer.as_deref(), Some("401"));
}

// F-04: no token, a wrong one, two
#[test]
fn a_client_without_a_token() {
    let derrick = Launch::new(config()).token(TOKEN).start();
    let workspace = derrick.create();
    workspace.ok("true");
    for (method, path) in routes(&derrick.api, &workspace.id) {
        for authorization in [
            "",
            "\r\nAuthorization: Bearer wrong",
            "\r\nAuthorization: Bearer ",
            &format!("\r\nAuthorization: Bearer {}", &TOKEN[1..]),
            &format!("\r\nAuthorization: Bearer {TOKEN}0"),
            &format!("\r\nAuthorization: Basic {TOKEN}"),
            &format!("\r\nAuthorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}"),
        ] {
            let host = derrick.api.address();
            let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}{authorization}");
            let answer = ask(&derrick.api, &head, b"");
            assert_eq!(status(&answer), 401, "{method} {path} {authorization}");
            assert!(answer.contains("connection: close\n"), "{answer}");
        }
    }
    for path in ["/nowhere", "/"] {
        derrick.api.with_token(None).get(path).problem(401);
    }
    assert_eq!(derrick.api.list(), [workspace.id.as_str()]);
}

// F-04: a token that is no secret, and no token where everybody can ask
#[test]
fn a_token_that_is_guessed_and_an_address_for_everybody() {
    let scratch = Scratch::new();
    let everywhere = ["--listen", "0.0.0.0:0", "--token-file"];
    let start = |file: &str| Serving::start(&[], &[&everywhere[..], &[file]].concat());
    let derrick = start(&token_file(&scratch, TOKEN, 0o600));
    derrick.api(Some(TOKEN)).get("/workspaces").expect(200);
    derrick.api(None).get("/workspaces").problem(401);
    derrick.end();

    let said = refused_start(&everywhere[..2]);
    assert!(said.contains("without a token"), "{said}");
    for (text, why) in [
        ("", "no token in it"),
        ("secret", "128 bits"),
        ("0123456789abcdef0123456789abcde", "128 bits"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "not random"),
        (
            &format!("{TOKEN}\n{TOKEN} name=again"),
            "same token as line 1",
        ),
    ] {
        let file = token_file(&scratch, text, 0o600);
        let said = refused_start(&[&everywhere[..], &[&file]].concat());
        assert!(said.contains(why), "{text:?}: {said}");
        assert!(text.is_empty() || !said.contains(text), "{said}");
    }
}

// F-04: a token is used beyond its scope
#[test]
fn the_workspace_of_another_token() {
    let mut derrick = Launch::new(config())
        .token(&format!(
            "{TOKEN}\n{OTHER} name=a scope=own\n{THIRD} name=b scope=own\n"
        ))
        .start();
    let api_of = |derrick: &Derrick, token: &str| derrick.api.with_token(Some(token));
    let first = api_of(&derrick, OTHER).create();
    let second = api_of(&derrick, THIRD).create();
    let nobodys = derrick.create();
    first.ok("echo secret > /secret");
    let all = [&first, &second, &nobodys].map(|workspace| workspace.id.clone());
    let others = ["00000000-0000-7000-8000-000000000000".to_owned()];

    // Also after a restart: it is in the workspace's record.
    for _ in 0..2 {
        let everything = derrick.api.clone();
        let intruder = api_of(&derrick, THIRD);
        assert_eq!(everything.list(), all);
        let read = |api: &Api| {
            let body = json!({ "path": "/secret" });
            api.post(&format!("/workspaces/{}/read_file", first.id), &body)
        };
        assert_eq!(read(&everything).expect(200).text(), "secret\n");
        assert_eq!(intruder.list(), [second.id.as_str()]);
        // Nothing tells what is there from what is not.
        for id in [&first.id, &nobodys.id, &others[0]] {
            for (method, path) in routes(&everything, id) {
                if !path.contains(id.as_str()) {
                    continue;
                }
                let head = format!(
                    "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
                     Authorization: Bearer {THIRD}",
                    intruder.address()
                );
                let removes = method == "DELETE" && path.ends_with(id.as_str());
                let answer = status(&ask(&intruder, &head, b"{}"));
                assert_eq!(answer, if removes { 200 } else { 404 }, "{method} {path}");
            }
            let removed = intruder.delete(&format!("/workspaces/{id}")).expect(200);
            assert_eq!(removed.json(), json!(false));
        }
        let problem = read(&intruder).problem(404);
        assert_eq!(problem["type"], "urn:derrick:problem:no-such-workspace");
        let metrics = intruder.get("/metrics").problem(403);
        assert_eq!(metrics["type"], "urn:derrick:problem:beyond-scope");
        for path in ["/health", "/openapi.json", "/docs"] {
            let told = intruder.get(path).expect(200).text();
            assert!(!all.iter().any(|id| told.contains(id)), "{path}: {told}");
        }
        assert_eq!(everything.list(), all, "nothing was removed");
        derrick.restart();
    }
    let mine = api_of(&derrick, OTHER);
    assert_eq!(mine.list(), [first.id.as_str()]);
    let told = mine.get(&format!("/workspaces/{}", first.id)).expect(200);
    assert_eq!(told.json()["owner"], "a");
    // The file of those who know the id already.
    let text = format!("{TOKEN}\n{THIRD} scope={}\n", first.id);
    derrick.replace_tokens(&text);
    let listed = api_of(&derrick, THIRD);
    wait_until(|| listed.list() == [first.id.as_str()]);
    assert_eq!(listed.workspace(&first.id).ok("cat /secret"), "secret\n");
    let problem = listed.post("/workspaces", &json!({})).problem(403);
    assert_eq!(problem["type"], "urn:derrick:problem:beyond-scope");
    listed
        .get(&format!("/workspaces/{}", second.id))
        .problem(404);
    // Which is whose is in the log, by name.
    assert!(
        derrick.printed().contains("token=\"a\""),
        "{}",
        derrick.printed()
    );
}

// F-04: a token that is used to raise what the config limits
#[test]
fn limits_above_those_of_the_config() {
    let derrick = Launch::new(json!({
        "name": "test",
        "limits": { "open_files": 1000, "execs": 5 },
    }))
    .token(&format!("{TOKEN}\n{OTHER} name=a scope=own\n"))
    .start();
    let holder = derrick.api.with_token(Some(OTHER));
    let attacks = [
        json!({ "limits": { "open_files": 2000 } }),
        json!({ "limits": { "execs": 50 } }),
        json!({ "requests": { "memory": "64MiB" } }),
    ];
    let lifted = [
        json!({ "limits": { "execs": null } }),
        json!({ "limits": null }),
    ];
    let workspace = holder.create();
    let path = format!("/workspaces/{}", workspace.id);
    for body in &attacks {
        let problem = holder.post("/workspaces", body).problem(422);
        assert!(
            problem["detail"].to_string().contains("beyond the config"),
            "{problem}"
        );
    }
    for body in attacks.iter().chain(&lifted) {
        holder.request("PATCH", &path, Some(body)).problem(422);
    }
    // Less is its own business, and so is what the config does not limit; the operator may do all.
    let less = json!({ "limits": { "execs": 2, "output": "1MiB" } });
    holder.request("PATCH", &path, Some(&less)).expect(200);
    derrick
        .api
        .request("PATCH", &path, Some(&attacks[1]))
        .expect(200);
    derrick
        .api
        .request("PATCH", &path, Some(&lifted[1]))
        .expect(200);
    // What was raised for it stays, and other fields can be changed.
    holder
        .request(
            "PATCH",
            &path,
            Some(&json!({ "limits": { "output": "2MiB" } })),
        )
        .expect(200);
}

/// Asks again and again until it is so.
fn wait_until(is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < GUARD, "it never was");
    }
}

// F-04: a token is used beyond its end
#[test]
fn a_token_that_was_revoked() {
    let derrick = Launch::new(config())
        .token(&format!("{TOKEN}\n{OTHER} name=a scope=own\n"))
        .start();
    let holder = derrick.api.with_token(Some(OTHER));
    let workspace = holder.create();
    let exec = workspace.exec_sh("echo begun; sleep 1000");
    let stream = |path: &str, headers: &str, token: &str| {
        let mut stream = TcpStream::connect(holder.address()).expect("it listens");
        stream
            .set_read_timeout(Some(GUARD))
            .expect("a socket takes a timeout");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}{headers}\r\n\r\n",
            holder.address()
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut begun = [0; 9];
        stream.read_exact(&mut begun).expect("it answers");
        stream
    };
    let upgrade = "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==";
    let events = format!("/workspaces/{}/events", workspace.id);
    let streams = [
        stream(&events, "", OTHER),
        stream(&exec.path("/output?follow=true"), "", OTHER),
        stream(&exec.path("/attach"), upgrade, OTHER),
    ];
    let waiting = workspace.start("echo there > /there; sleep 1000");
    wait_until(|| {
        derrick
            .api
            .workspace(&workspace.id)
            .sh("cat /there")
            .exit_code
            == 0
    });
    let mut kept = stream(&events, "", TOKEN);

    derrick.replace_tokens(&format!("{TOKEN}\n"));
    for mut stream in streams {
        let mut rest = Vec::new();
        // Either way it ends; whole it must not look.
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.ends_with(b"0\r\n\r\n"));
    }
    assert_eq!(waiting.answer().status, 401);
    holder.get("/workspaces").problem(401);
    // What began with another one goes on, and so does the exec.
    let mine = derrick.api.workspace(&workspace.id);
    assert_eq!(mine.exec_named(&exec.id).show()["state"], "running");
    let mut more = [0; 1];
    mine.exec_named(&exec.id).kill();
    kept.read_exact(&mut more).expect("it goes on");

    // A file that cannot be used, by its mode or its text, changes nothing; a good one adds.
    derrick.replace_tokens("half a tok");
    wait_until(|| derrick.printed().contains("the tokens stay as they were"));
    derrick.api.get("/workspaces").expect(200);
    derrick.replace_tokens(&format!("{TOKEN}\n{THIRD} name=a scope=own\n"));
    let heir = derrick.api.with_token(Some(THIRD));
    wait_until(|| heir.get("/workspaces").status == 200);
    assert_eq!(heir.list(), [workspace.id.as_str()], "the name owns it");
    derrick
        .api
        .with_token(Some(OTHER))
        .get("/workspaces")
        .problem(401);
}

// F-05: the token is read where it is kept
#[test]
fn a_token_file_that_others_can_read() {
    let open = Open::new();
    let file = token_file(&open.0, TOKEN, 0o644);
    if let Some(mut command) = stranger(&["cat", &file]) {
        assert_eq!(stdout(&mut command), TOKEN);
    }
    let loopback = ["--listen", "127.0.0.1:0", "--token-file", &file];
    for mode in [0o644, 0o640, 0o604, 0o660, 0o602] {
        fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("it is ours");
        let said = refused_start(&loopback);
        assert!(said.contains(&format!("its mode is {mode:04o}")), "{said}");
        assert!(said.contains(&format!("chmod 600 {file}")), "{said}");
        assert!(!said.contains(TOKEN), "{said}");
    }
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("it is ours");
    if let Some(mut command) = stranger(&["cat", &file]) {
        assert_eq!(stdout(&mut command), "");
    }
    Serving::start(&[], &loopback).end();
}

/// Whether the command line or the environment of one of these processes has the token in it.
fn is_shown_by(processes: &[i32], token: &str) -> bool {
    let has = |pid: &i32, file: &str| {
        // What ended meanwhile shows nothing.
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&text).contains(token)
    };
    processes
        .iter()
        .any(|pid| has(pid, "cmdline") || has(pid, "environ"))
}

// F-05: the token is read where it leaked to
#[test]
fn a_token_in_arguments_environments_logs_and_errors() {
    for in_environment in [false, true] {
        let mut careless = Command::new("sh");
        careless
            .args(["-c", "read end", "sh"])
            .stdin(Stdio::piped());
        if in_environment {
            careless.env("API_TOKEN", TOKEN);
        } else {
            careless.arg(TOKEN);
        }
        let mut careless = careless.spawn().expect("there is a shell");
        let pid = careless.id().cast_signed();
        wait_until(|| is_shown_by(&[pid], TOKEN));
        drop(careless.stdin.take());
        careless.wait().expect("it ends");
    }

    let derrick = Launch::new(config())
        .token(&format!("{TOKEN}\n{OTHER} name=a scope=own\n"))
        .environment("DERRICK_LOG", "trace")
        .start();
    let workspace = derrick.api.with_token(Some(OTHER)).create();
    workspace.exec_sh("sleep 1000");
    derrick.replace_tokens(&format!(
        "{TOKEN}\n{OTHER} name=a scope=own\n{THIRD} nonsense\n"
    ));
    wait_until(|| derrick.printed().contains("the tokens stay as they were"));
    let mut answers =
        vec![workspace.ok("env; cat /proc/*/environ /proc/*/cmdline 2> /dev/null; :")];
    for (token, path) in [
        (&TOKEN[1..], "/workspaces"),
        (THIRD, "/workspaces"),
        (TOKEN, "/nowhere"),
        (OTHER, "/metrics"),
        (OTHER, "/workspaces/nowhere"),
    ] {
        let answer = derrick.api.with_token(Some(token)).get(path);
        assert!(answer.status >= 400, "{path}");
        answers.push(format!("{:?} {}", answer.headers, answer.text()));
    }
    let mut processes = descendants(derrick.pid());
    assert!(processes.len() >= 3, "spawner, init and a command");
    processes.push(derrick.pid());
    // All but the start, which any part of them would have.
    for token in [&TOKEN[1..], &OTHER[1..], &THIRD[1..]] {
        assert!(!is_shown_by(&processes, token));
        assert!(!derrick.printed().contains(token), "{}", derrick.printed());
        for answer in &answers {
            assert!(!answer.contains(token), "{answer}");
        }
    }
    assert!(derrick.printed().contains("line 3: behind the token"));
}

/// What connecting to a Unix socket and asking gives: a status, or the name of an errno.
const CONNECT: &str = r"
import errno, socket, sys
client = socket.socket(socket.AF_UNIX)
try:
    client.connect(sys.argv[1])
    client.sendall(b'GET /workspaces HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
    print(client.makefile().readline().split()[1])
except OSError as error:
    print(errno.errorcode[error.errno])
";

fn mode_of(path: &Path) -> u32 {
    let found = fs::metadata(path).expect("it is there");
    found.permissions().mode() & 0o7777
}

// F-06: somebody else connects, or puts another socket there
#[test]
fn another_user_at_the_unix_socket() {
    let open = Open::new();
    let ask_at = |path: &Path| {
        let path = path.to_str().expect("it is text");
        let words = ["/usr/bin/python3", "-c", CONNECT, path];
        let own = stdout(Command::new(words[0]).args(&words[1..]));
        let strangers = stranger(&words).map(|mut command| stdout(&mut command));
        (own, strangers)
    };
    let answered = |own: &str, strangers: &str| {
        let strangers = (mode() != Mode::Single).then(|| format!("{strangers}\n"));
        (format!("{own}\n"), strangers)
    };

    let bare = open.0.join("bare.sock");
    let listener = UnixListener::bind(&bare).expect("the directory is ours");
    fs::set_permissions(&bare, PermissionsExt::from_mode(0o666)).expect("it is ours");
    let clients = if mode() == Mode::Single { 1 } else { 2 };
    let server = std::thread::spawn(move || {
        for _ in 0..clients {
            let (mut stream, _) = listener.accept().expect("somebody comes");
            head_from(&stream);
            stream
                .write_all(b"HTTP/1.1 299 Anybody\r\n\r\n")
                .expect("it reads");
        }
    });
    assert_eq!(ask_at(&bare), answered("299", "299"));
    server.join().expect("it served all");

    let path = open.0.join("api.sock");
    let listen = format!("unix:{}", path.display());
    let derrick = Serving::start(&[], &["--listen", &listen]);
    assert_eq!(derrick.place, listen);
    assert_eq!(mode_of(&path), 0o600);
    assert_eq!(ask_at(&path), answered("200", "EACCES"));
    // The mode is not all that keeps them away.
    fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).expect("it is ours");
    assert_eq!(ask_at(&path), answered("200", "403"));
    derrick.end();
    assert!(!path.exists(), "the socket is still there");

    // Where others can put a socket of theirs in its place, none is.
    fs::set_permissions(open.0.path(), PermissionsExt::from_mode(0o777)).expect("it is ours");
    let moved = open.0.join("theirs.sock");
    if let Some(mut command) = stranger(&["mv", bare.to_str().unwrap(), moved.to_str().unwrap()]) {
        stdout(&mut command);
        assert!(moved.exists() && !bare.exists(), "they can");
    }
    let said = refused_start(&["--listen", &listen]);
    assert!(said.contains("make it mode 0700"), "{said}");
}

// --- from the workspace ---

/// What asking for the workspaces gives: a status, or the name of an errno.
const LIST: &str = r"
import errno, sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen('http://%s/workspaces' % sys.argv[1]).status)
except urllib.error.HTTPError as error:
    print(error.code)
except urllib.error.URLError as error:
    print(errno.errorcode[error.reason.errno])
";

fn python(workspace: &Workspace, program: &str, argument: &str) -> String {
    let body = json!({ "argv": ["/usr/bin/python3", "-c", program, argument], "wait": true });
    let ended = workspace.post("execs", &body).expect(201).json();
    let printed = ended["output"]["stdout"].as_str();
    printed.unwrap_or_else(|| panic!("{ended}")).to_owned()
}

// F-08: the workspace asks over the network
#[test]
fn the_api_asked_from_a_workspace() {
    let with_network = json!({ "name": "test", "network": "host" });
    let on_host = |address: &str| {
        let mut python = Command::new("/usr/bin/python3");
        stdout(python.args(["-c", LIST, address]).env("no_proxy", "*"))
    };
    let derrick = Derrick::on_host();
    let address = derrick.api.address();
    assert_eq!(on_host(address), "200\n", "on the host it is let in");
    // Nobody listens on a loopback of its own.
    let printed = python(&derrick.create(), LIST, address);
    assert_eq!(printed, "ECONNREFUSED\n");

    if mode() == Mode::Single {
        // Root inside is the provider's own user: only a token tells them apart.
        let scratch = Scratch::new();
        let file = scratch.file("config.json", with_network.to_string());
        let file = file.to_str().expect("it is text");
        let said = refused_start(&["--listen", "127.0.0.1:0", "-w", file]);
        assert!(said.contains("give a --token-file"), "{said}");
    } else {
        let derrick = Derrick::start(with_network.clone());
        let printed = python(&derrick.create(), LIST, derrick.api.address());
        assert_eq!(printed, "403\n", "it gets there, and is nobody's");
    }
    let derrick = Launch::new(with_network).token(TOKEN).start();
    let workspace = derrick.create();
    let printed = python(&workspace, LIST, derrick.api.address());
    assert_eq!(printed, "401\n");
    // The token is in a file of the provider's that is not there.
    let found = workspace.sh(&format!("grep -rl {TOKEN} /etc /home /root /tmp /var /run"));
    assert_eq!(found.output, "");
}

// F-08: the workspace asks over the socket
#[test]
fn the_unix_socket_asked_from_a_workspace() {
    let open = Open::new();
    let path = open.0.join("api.sock");
    let listen = format!("unix:{}", path.display());
    let path = path.to_str().expect("it is text");
    let serving = Serving::start(&[], &["--listen", &listen]);
    let derrick = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        stdout(command.args(arguments).env("DERRICK_SERVER", &listen))
    };
    let on_host = stdout(Command::new("/usr/bin/python3").args(["-c", CONNECT, path]));
    assert_eq!(on_host, "200\n");
    let id = derrick(&["create"]);
    let words = [
        "exec",
        id.trim_end(),
        "--",
        "/usr/bin/python3",
        "-c",
        CONNECT,
        path,
    ];
    assert_eq!(derrick(&words), "ENOENT\n");
    derrick(&["rm", id.trim_end()]);
    serving.end();
}

// --- what a request may be ---

// F-07: an id leads out of the directory of workspaces
#[test]
fn path_tricks_in_ids() {
    let derrick = Derrick::on_host();
    let api = &derrick.api;
    let workspace = derrick.create();
    // A sibling of the workspaces' directory, which joining text to that would reach.
    let workspaces = derrick.state().join("workspaces");
    let canary = derrick.state().join("canary");
    fs::create_dir(&canary).expect("the state directory is ours");
    fs::copy(
        workspaces.join(&workspace.id).join("record.json"),
        canary.join("record.json"),
    )
    .expect("a record is a file");
    assert!(workspaces.join("../canary/record.json").exists());

    let long = "a".repeat(64);
    for id in [
        "..%2fcanary",
        "%2e%2e%2fcanary",
        "..%5ccanary",
        "..",
        ".",
        "%2e%2e",
        "%252e%252e%252fcanary",
        &format!("{}%00", workspace.id),
        &format!("{}%2f..%2f{0}", workspace.id),
        &format!(".%2f{}", workspace.id),
        &format!("{}%20", workspace.id),
        &workspace.id.to_uppercase(),
        "%c0%ae%c0%ae%2fcanary",
        "%ff",
        "",
        &long,
    ] {
        for (method, path) in routes(api, id) {
            if !path.starts_with(&format!("/workspaces/{id}")) || id.is_empty() && path.len() < 13 {
                continue;
            }
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json",
                api.address()
            );
            let answer = status(&ask(api, &head, b"{}"));
            let removes = method == "DELETE" && path == format!("/workspaces/{id}");
            let expected: &[u16] = if removes { &[200, 404] } else { &[404] };
            assert!(expected.contains(&answer), "{method} {path}: {answer}");
        }
    }
    assert!(canary.join("record.json").exists());
    assert_eq!(api.list(), [workspace.id.as_str()]);
    workspace.ok("true");
}

// F-09: memory is filled with a body
#[test]
fn a_body_without_an_end() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let head = |action: &str| {
        format!(
            "POST /workspaces/{}/{action} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n",
            workspace.id,
            derrick.api.address()
        )
    };
    // Up to its limit one is taken.
    let large = format!("{{\"cmd\":\"true\"{}}}", " ".repeat(7 << 20));
    let answer = ask(&derrick.api, head("cmd").trim_end(), large.as_bytes());
    assert_eq!(status(&answer), 200);
    // Beyond that it is refused before it is sent,
    for (action, size) in [("cmd", 9 << 20), ("write_file", 200 << 20)] {
        let announced = format!("{}Content-Length: {size}\r\n\r\n", head(action));
        let answer = derrick.api.raw(announced.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
    // or, where it does not say how long it is, while it is.
    let mut stream = TcpStream::connect(derrick.api.address()).expect("it listens");
    stream
        .set_read_timeout(Some(GUARD))
        .expect("a socket takes a timeout");
    let head = format!("{}Transfer-Encoding: chunked\r\n\r\n", head("cmd"));
    stream.write_all(head.as_bytes()).expect("it reads");
    let piece = [b"100000\r\n", vec![b' '; 1 << 20].as_slice(), b"\r\n"].concat();
    // A client that goes on all the same is read for a while, so that it comes to see the answer.
    for _ in 0..9 {
        stream.write_all(&piece).expect("it reads");
    }
    let answer = head_from(&stream);
    assert_eq!(status(&answer), 413);
    assert!(answer.contains("connection: close\n"), "{answer}");
    derrick.api.get("/health").expect(200);
}

// F-09: the parser's stack is filled
#[test]
fn json_that_is_nested_without_an_end() {
    let depth = 1_000_000;
    let nested = "[".repeat(depth);
    let bare = "import json, sys\ntry: json.loads(sys.stdin.read())\nexcept RecursionError: print('too deep')";
    let mut parser = Command::new("/usr/bin/python3")
        .args(["-c", bare])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("there is Python");
    let mut stdin = parser.stdin.take().expect("it is a pipe");
    stdin.write_all(nested.as_bytes()).expect("it reads");
    drop(stdin);
    let printed = parser.wait_with_output().expect("it ends").stdout;
    assert_eq!(String::from_utf8_lossy(&printed), "too deep\n");

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let objects = r#"{"a":"#.repeat(depth);
    for body in [
        nested.clone(),
        objects.clone(),
        format!(r#"{{"env":{nested}"#),
        format!(r#"{{"env":{objects}"#),
        format!(r#"{{"env":{{"A":{nested}"#),
        format!(r#"{{"cmd":"true","nested":{nested}"#),
        format!(r#"{{"argv":{nested}"#),
        format!(r#"{{"argv":["true"],"stdin":{objects}"#),
        format!(r#"{{"argv":["true"],"tty":{objects}"#),
    ] {
        for path in [
            "/workspaces",
            &format!("/workspaces/{}/execs", workspace.id),
        ] {
            let headers = [("content-type", "application/json")];
            let answer = derrick.api.send("POST", path, &headers, body.as_bytes());
            answer.problem(400);
        }
    }
    workspace.ok("true");
}

// F-09: memory is filled with headers
#[test]
fn headers_without_an_end() {
    let derrick = Derrick::on_host();
    let ask_with = |headers: &str| {
        let host = derrick.api.address();
        let head = format!("GET /health HTTP/1.1\r\nHost: {host}{headers}");
        status(&ask(&derrick.api, &head, b""))
    };
    let many = |count| "\r\nX-Many: a".repeat(count);
    let long = |length| format!("\r\nX-Long: {}", "a".repeat(length));
    assert_eq!([ask_with(&many(90)), ask_with(&long(60 << 10))], [200, 200]);
    assert_eq!(
        [ask_with(&many(110)), ask_with(&long(70 << 10))],
        [431, 431]
    );
}

// F-09: memory is filled with what is unpacked
#[test]
fn a_body_that_unpacks_to_more() {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let plain = format!("{{\"cmd\":\"true\"{}}}", " ".repeat(100 << 20));
    packer.write_all(plain.as_bytes()).expect("it packs");
    let packed = packer.finish().expect("it packs");
    let mut unpacked = Vec::new();
    let size = flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked);
    assert!(packed.len() < 200 << 10 && size.expect("it unpacks") > 100 << 20);

    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for encoding in ["gzip", "deflate", "br", "zstd", "gzip, identity"] {
        let headers = [
            ("content-type", "application/json"),
            ("content-encoding", encoding),
        ];
        let path = format!("/workspaces/{}/cmd", workspace.id);
        derrick
            .api
            .send("POST", &path, &headers, &packed)
            .problem(415);
    }
    // Nor is it tried without being told.
    let headers = [("content-type", "application/json")];
    let path = format!("/workspaces/{}/cmd", workspace.id);
    derrick
        .api
        .send("POST", &path, &headers, &packed)
        .problem(400);
}

// F-09: all connections are taken
#[test]
fn connections_that_never_say_what_they_want() {
    // 256 descriptors: 64 requests at once, and room for 16 that have not sent one.
    let derrick = Serving::start(
        &["prlimit", "--nofile=256:256"],
        &["--listen", "127.0.0.1:0"],
    );
    let api = derrick.api(None);
    let mut half_open: Vec<TcpStream> = (0..400)
        .map(|_| {
            let mut stream = TcpStream::connect(api.address()).expect("it listens");
            stream
                .set_read_timeout(Some(GUARD))
                .expect("a socket takes a timeout");
            // It may have been dropped already.
            let _ = stream.write_all(b"GET /health HT");
            stream
        })
        .collect();
    // One that says it all is served, though these are more than there are descriptors,
    api.get("/health").expect(200);
    // as is the last of them: it was slow, and that is no offence.
    let mut last = half_open.pop().expect("one");
    let rest = format!("TP/1.1\r\nHost: {}\r\n\r\n", api.address());
    last.write_all(rest.as_bytes()).expect("it is there still");
    assert_eq!(status(&head_from(last)), 200);
    // The first ones had to go.
    for mut stream in half_open.drain(..100) {
        let mut nothing = Vec::new();
        let _ = stream.read_to_end(&mut nothing);
        assert!(nothing.is_empty());
    }
    drop(half_open);
    derrick.end();
}

// F-11: a command's environment reaches what derrick itself runs
#[test]
fn ld_preload_in_the_environment_of_a_command() {
    // The loader says so on stderr wherever it is told to load what is not there.
    let preload =
        json!({ "LD_PRELOAD": "/evil.so", "LD_AUDIT": "/evil.so", "BASH_ENV": "/evil.sh" });
    let derrick = Launch::new(json!({ "name": "test", "env": preload })).start();
    let workspace = derrick.api.create_with(&json!({ "env": preload }));
    let body = json!({ "argv": ["/usr/bin/env"], "env": preload, "wait": true });
    let ended = workspace.post("execs", &body).expect(201).json();
    let said = ended["output"]["stderr"].as_str().expect("it is text");
    assert!(
        said.contains("/evil.so"),
        "the command itself is told: {ended}"
    );

    // Neither what derrick runs inside for files, nor init, nor the spawner, nor derrick is.
    let file = workspace.file("/tmp/file");
    let octets = [("content-type", "application/octet-stream")];
    let headers = derrick.api.send("PUT", &file, &octets, b"text").expect(201);
    assert!(!headers.text().contains("evil"), "{}", headers.text());
    assert_eq!(derrick.api.get(&file).expect(200).text(), "text");
    workspace.reset();
    let exec =
        workspace.exec(&json!({ "argv": ["/usr/bin/python3", "-c", "input()"], "stdin": "open" }));
    let has = |pid: &i32| {
        let text = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&text).contains("evil")
    };
    let commands = |processes: Vec<i32>| processes.into_iter().filter(has).collect::<Vec<_>>();
    // An ordinary user may not look at a process with a subordinate id.
    let seen = usize::from(mode() != Mode::Subordinate);
    wait_until(|| commands(descendants(derrick.pid())).len() >= seen);
    let mut processes = descendants(derrick.pid());
    processes.push(derrick.pid());
    let told = commands(processes);
    assert_eq!(told.len(), seen, "more than the command has it: {told:?}");
    exec.kill();
    assert!(!derrick.printed().contains("evil"), "{}", derrick.printed());
}

// F-12: a request names a path of the host's
#[test]
fn host_paths_through_the_api() {
    let host = Scratch::new();
    let directory = host.join("given");
    host.file("given/canary", "canary");
    let secret = host.file("secret", "canary");
    let directory = directory.to_str().expect("it is text");
    // The operator's config may give one.
    let given = json!({ "name": "test", "base": { "type": "host", "include": [directory] } });
    let derrick = Derrick::start(given);
    let workspace = derrick.create();
    let canary = format!("{directory}/canary");
    assert_eq!(workspace.ok(&format!("cat {canary}")), "canary");

    // A request may not, whatever it calls it.
    let secret = secret.to_str().expect("it is text");
    let mount = json!([{ "source": host.path(), "target": "/mnt", "host_path": host.path() }]);
    for field in ["mounts", "binds", "volumes", "include", "devices"] {
        let mut body = json!({});
        body[field] = mount.clone();
        derrick.api.post("/workspaces", &body).problem(400);
        body["cmd"] = json!("true");
        workspace.post("execs", &body).problem(400);
        workspace.post("cmd", &body).problem(400);
    }
    for body in [
        json!({ "base": { "type": "directory", "path": host.path() } }),
        json!({ "base": { "type": "host", "include": [host.path()] } }),
        json!({ "repositories": [{ "url": host.path(), "path": "/code" }] }),
        json!({ "setup_script": "true" }),
        json!({ "network": "host" }),
        json!({ "workdir": "/" }),
    ] {
        derrick.api.post("/workspaces", &body).problem(400);
    }
    let stdin = json!({ "cmd": "cat", "stdin": { "file": secret } });
    workspace.post("execs", &stdin).problem(400);
    // A path names a file of the workspace's.
    workspace
        .post("read_file", &json!({ "path": secret }))
        .problem(404);
    derrick.api.get(&workspace.file(secret)).problem(404);
    assert_eq!(workspace.sh(&format!("cat {secret}")).exit_code, 1);
}

// F-13: a workspace is removed under what is being done in it
#[test]
fn removal_against_everything_else() {
    // Every sandbox is a workspace's.
    let mut derrick = Derrick::start(json!({ "name": "test", "pool": { "size": 0 } }));
    let api = &derrick.api;
    // What each request is answered when nothing is in its way.
    let asks: &[(&str, &str, Value, u16)] = &[
        ("POST", "execs", json!({ "cmd": "echo x; sleep 1000" }), 201),
        ("POST", "cmd_with_output", json!({ "cmd": "true" }), 200),
        (
            "POST",
            "write_file",
            json!({ "path": "/f", "content": "eHh4" }),
            200,
        ),
        ("POST", "read_file", json!({ "path": "/etc/passwd" }), 200),
        ("GET", "files/etc", Value::Null, 200),
        ("POST", "reset", json!({}), 200),
        ("POST", "fetch", json!({}), 200),
        ("GET", "execs", Value::Null, 200),
    ];
    let ask_for = |id: &str, (method, action, body, _): &(&str, &str, Value, u16)| {
        let path = format!("/workspaces/{id}/{action}");
        api.request(method, &path, (!body.is_null()).then_some(body))
    };
    let quiet = derrick.create();
    for ask in asks {
        let answer = ask_for(&quiet.id, ask);
        assert_eq!(answer.status, ask.3, "{}: {}", ask.1, answer.text());
    }
    assert!(quiet.delete());

    for _ in 0..6 {
        let workspace = derrick.create();
        let barrier = std::sync::Barrier::new(asks.len() + 2);
        let removed: Vec<bool> = std::thread::scope(|scope| {
            for ask in asks {
                let (barrier, id) = (&barrier, &workspace.id);
                scope.spawn(move || {
                    barrier.wait();
                    // Until it is gone.
                    loop {
                        let answer = ask_for(id, ask);
                        match answer.status {
                            404 => break,
                            409 => {}
                            done => assert_eq!(done, ask.3, "{}: {}", ask.1, answer.text()),
                        }
                    }
                });
            }
            let removers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        workspace.delete()
                    })
                })
                .collect();
            removers
                .into_iter()
                .map(|remover| remover.join().expect("it is answered"))
                .collect()
        });
        assert!(removed.contains(&true), "{removed:?}");
        api.get(&format!("/workspaces/{}", workspace.id))
            .problem(404);
    }
    assert_eq!(api.list(), Vec::<String>::new());
    // Nothing of them is left but, for a while, who removes their files; and nothing panicked.
    wait_until(|| descendants(derrick.pid()).len() == 1);
    let left = fs::read_dir(derrick.state().join("workspaces")).expect("it is ours");
    assert_eq!(left.count(), 0);
    assert!(!derrick.printed().contains("panicked"));
    derrick.restart();
    assert_eq!(derrick.api.list(), Vec::<String>::new());
}
