//! The wire, byte by byte: the front end on real sockets, over a provider that only echoes.
//!
//! Commands of the fake provider name the outcome they want; nothing runs.

mod files;

use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::body::Uploads;
use super::connection::Owner;
use super::metrics::Metrics;
use super::{App, HttpOptions, Listener, Tokens, serve_as};
use crate::provider::changes::{Form, ShowChanges, ToldChanges};
use crate::provider::files::{Compression, Content, RawPath};
use crate::provider::push::{Bundled, Committed, HandOut, Message, PushWish, Pushed};
use crate::provider::snapshots::{Fence, Forked, Imported, Snapshot, SnapshotId, Snapshots, Taken};
use crate::provider::{
    Asked, Bounds, Capacity, Collected, Command, Description, Error, Events, Exec, ExecId,
    ExecRecord, FetchWish, Fetched, Figures, FileContent, FilePath, Finished, Kept, Latitude,
    Lease, Level, Limits, LimitsChange, Mode, NewWorkspace, Novelty, OpenFile, Outcome, Provider,
    Ran, Receipt, Requests, ResetWish, Session, SessionRecord, State, WorkspaceId,
};
use crate::tally::Timings;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// One workspace, `w`, and what was asked of it.
#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<String>>,
    /// Whom the workspace belongs to: who created it last.
    owner: Mutex<Option<String>>,
    written: Mutex<Vec<u8>>,
    started: Notify,
    dropped: Arc<Notify>,
}

impl Fake {
    fn call(&self, id: &WorkspaceId, call: String) -> Result<(), Error> {
        self.calls.lock().unwrap().push(call);
        if id.as_str() == "w" {
            Ok(())
        } else {
            Err(Error::NoSuchWorkspace(id.to_string()))
        }
    }
}

#[async_trait]
impl Provider for Fake {
    async fn create(&self, asked: NewWorkspace) -> Result<WorkspaceId, Error> {
        if asked.env.contains_key("FAIL") {
            return Err(Error::SetupFailed {
                exit_code: 7,
                output: "no such package".to_owned(),
            });
        }
        self.calls
            .lock()
            .unwrap()
            .push(format!("create {:?}", asked.env));
        *self.owner.lock().unwrap() = asked.owner;
        Ok("w".parse().unwrap())
    }

    fn list(&self) -> Vec<WorkspaceId> {
        vec!["w".parse().unwrap()]
    }

    fn owner(&self, id: &WorkspaceId) -> Result<Option<String>, Error> {
        match id.as_str() {
            "w" => Ok(self.owner.lock().unwrap().clone()),
            _ => Err(Error::NoSuchWorkspace(id.to_string())),
        }
    }

    async fn describe(&self, id: &WorkspaceId) -> Result<Description, Error> {
        self.call(id, "describe".to_owned())?;
        Ok(Description {
            id: id.clone(),
            state: State::Running,
            state_detail: None,
            paused_by: None,
            owner: None,
            layer: "l".to_owned(),
            snapshot: None,
            fence_at: None,
            setup_output: None,
            setup: None,
            created: 5,
            execs: 0,
            limits: Limits::default(),
            requests: Requests::default(),
            pending: Vec::new(),
            lease: Lease::default(),
            usage: None,
            enforcement: json!({"landlock": "full"}),
        })
    }

    async fn remove(&self, id: &WorkspaceId) -> Result<bool, Error> {
        Ok(self.call(id, "remove".to_owned()).is_ok())
    }

    async fn renew(
        &self,
        id: &WorkspaceId,
        ttl: Option<Duration>,
        latitude: Latitude,
    ) -> Result<Lease, Error> {
        self.call(id, format!("renew {ttl:?} {latitude:?}"))?;
        Ok(Lease::default())
    }

    async fn start(
        &self,
        id: &WorkspaceId,
        command: Command,
    ) -> Result<(Arc<Exec>, Novelty), Error> {
        self.call(id, format!("{command:?}"))?;
        Err(Error::Host("a fake has no execs".to_owned()))
    }

    fn execs(&self, id: &WorkspaceId) -> Result<Vec<ExecRecord>, Error> {
        self.call(id, "execs".to_owned())?;
        Ok(Vec::new())
    }

    fn exec(&self, id: &WorkspaceId, exec: ExecId) -> Result<Arc<Exec>, Error> {
        self.call(id, "exec".to_owned())?;
        Err(Error::NoSuchExec(exec.to_string()))
    }

    async fn start_session(
        &self,
        id: &WorkspaceId,
        name: String,
        command: Command,
    ) -> Result<SessionRecord, Error> {
        self.call(id, format!("{name} {command:?}"))?;
        Err(Error::Host("a fake has no sessions".to_owned()))
    }

    fn sessions(&self, id: &WorkspaceId) -> Result<Vec<SessionRecord>, Error> {
        self.call(id, "sessions".to_owned())?;
        Ok(Vec::new())
    }

    fn session(&self, id: &WorkspaceId, name: &str) -> Result<Arc<Session>, Error> {
        self.call(id, "session".to_owned())?;
        Err(Error::NoSuchSession(name.to_owned()))
    }

    async fn run_in_session(
        &self,
        id: &WorkspaceId,
        name: &str,
        line: String,
        timeout: Option<Duration>,
    ) -> Result<Ran, Error> {
        self.call(id, format!("run {line} {timeout:?}"))?;
        Err(Error::NoSuchSession(name.to_owned()))
    }

    async fn remove_session(&self, id: &WorkspaceId, name: &str) -> Result<bool, Error> {
        self.call(id, format!("remove {name}"))?;
        Ok(false)
    }

    fn events(&self, id: &WorkspaceId) -> Result<Arc<Events>, Error> {
        self.call(id, "events".to_owned())?;
        Ok(Arc::new(Events::default()))
    }

    async fn run(&self, id: &WorkspaceId, command: Command) -> Result<Finished, Error> {
        self.call(id, format!("{command:?}"))?;
        let finished = |output: &[u8], outcome| Finished {
            output: output.to_owned(),
            omitted: 0,
            outcome,
        };
        let Asked::Cmd(line) = command.asked else {
            panic!("only lines are run");
        };
        Ok(match line.as_str() {
            "exit 3" => finished(b"oh\n", Outcome::Exited { code: 3 }),
            "segfault" => finished(b"", Outcome::signaled(11)),
            "sleep" => finished(b"so far", Outcome::Deadline),
            "binary" => finished(b"a\xff\x00b", Outcome::Exited { code: 0 }),
            "flood" => Finished {
                omitted: 12345,
                ..finished(b"start end", Outcome::Exited { code: 0 })
            },
            "host" => return Err(Error::Host("cannot start sandbox: EMFILE".to_owned())),
            "panic" => panic!("a secret of the provider"),
            "wait" => {
                struct OnDrop(Arc<Notify>);
                impl Drop for OnDrop {
                    fn drop(&mut self) {
                        self.0.notify_one();
                    }
                }
                let _dropped = OnDrop(Arc::clone(&self.dropped));
                self.started.notify_one();
                std::future::pending().await
            }
            _ => finished(b"hello\n", Outcome::Exited { code: 0 }),
        })
    }

    async fn write_file(
        &self,
        id: &WorkspaceId,
        target: FilePath,
        mut content: FileContent,
    ) -> Result<(), Error> {
        self.call(id, format!("{target:?}"))?;
        let mut bytes = Vec::new();
        content
            .read_to_end(&mut bytes)
            .map_err(|error| Error::Host(format!("cannot write: {error}")))?;
        *self.written.lock().unwrap() = bytes;
        Ok(())
    }

    async fn read_file(&self, id: &WorkspaceId, source: FilePath) -> Result<OpenFile, Error> {
        self.call(id, format!("{source:?}"))?;
        if source.path == "none" {
            return Err(Error::NoSuchFile("there is no file none".to_owned()));
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"line\n\x00\xff and what came later")
            .unwrap();
        file.rewind().unwrap();
        Ok(OpenFile { file, size: 7 })
    }

    async fn reset(&self, id: &WorkspaceId, _: ResetWish) -> Result<Receipt, Error> {
        self.call(id, "reset".to_owned())?;
        Ok(Receipt {
            id: id.clone(),
            layer: "l".to_owned(),
            generation: 1,
            upper_entries: 0,
            processes_surviving: 0,
            discarded: None,
            verified: None,
            waited_us: 0,
            duration_us: 900,
        })
    }

    async fn change_limits(
        &self,
        id: &WorkspaceId,
        change: LimitsChange,
    ) -> Result<Description, Error> {
        self.call(id, format!("change {change:?}"))?;
        self.describe(id).await
    }

    async fn pause(&self, id: &WorkspaceId) -> Result<Description, Error> {
        self.call(id, "pause".to_owned())?;
        self.describe(id).await
    }

    async fn resume(&self, id: &WorkspaceId) -> Result<Description, Error> {
        self.call(id, "resume".to_owned())?;
        self.describe(id).await
    }

    async fn fetch(&self, id: &WorkspaceId, _wish: FetchWish) -> Result<Vec<Fetched>, Error> {
        self.call(id, "fetch".to_owned())?;
        Ok(vec![Fetched {
            url: "https://git.example/r".to_owned(),
            path: PathBuf::from("/r"),
            reference: "main".to_owned(),
            old_commit: Some("a".to_owned()),
            new_commit: "b".to_owned(),
            head: None,
            not_updated: None,
            submodules: Vec::new(),
        }])
    }

    async fn capacity(&self) -> Result<Capacity, Error> {
        Err(Error::Host("a fake has no host".to_owned()))
    }

    async fn layers(&self) -> Result<Vec<Kept>, Error> {
        Err(Error::Host("a fake has no host".to_owned()))
    }

    async fn collect(&self, _bounds: Bounds, _mode: Mode) -> Result<Collected, Error> {
        Err(Error::Host("a fake has no host".to_owned()))
    }

    fn figures(&self) -> Figures {
        let none = Timings::default().read();
        Figures {
            running: 1,
            stopped: 0,
            waiting: 0,
            execs: 0,
            outcomes: vec![("exited", 2)],
            removals: vec![("asked", 1)],
            exec_durations: none.clone(),
            exec_bytes: (5, 0),
            create_durations: none.clone(),
            reset_durations: none,
            sandboxes: 3,
            quarantined: 0,
            pool: Level::default(),
            layers: None,
            layer_bytes: None,
            collected: (0, 0, 0),
            enforcement: vec![("identity", "full \"or\nnot\"".to_owned())],
            weaker: 0,
        }
    }

    fn enforcement(&self) -> Value {
        json!({"identity": "full", "missing": []})
    }

    async fn shutdown(&self) {}
}

#[async_trait]
impl ShowChanges for Fake {
    async fn changes(
        &self,
        id: &WorkspaceId,
        _within: Option<RawPath>,
        _form: Form,
    ) -> Result<ToldChanges, Error> {
        self.call(id, "changes".to_owned())?;
        Err(Error::Invalid("a fake has no changes".to_owned()))
    }
}

#[async_trait]
impl HandOut for Fake {
    async fn commit(
        &self,
        id: &WorkspaceId,
        path: Option<PathBuf>,
        message: Message,
    ) -> Result<Committed, Error> {
        self.call(id, format!("commit {message:?}"))?;
        Ok(Committed {
            path: path.unwrap_or_else(|| PathBuf::from("/r")),
            branch: Some("main".to_owned()),
            commit: None,
            parent: Some("a".to_owned()),
            files: 0,
        })
    }

    async fn bundle(
        &self,
        id: &WorkspaceId,
        _path: Option<PathBuf>,
        _reference: Option<String>,
    ) -> Result<Bundled, Error> {
        self.call(id, "bundle".to_owned())?;
        Err(Error::Invalid("a fake has no bundle".to_owned()))
    }

    async fn push(&self, id: &WorkspaceId, _wish: PushWish) -> Result<Pushed, Error> {
        self.call(id, "push".to_owned())?;
        Err(Error::PushNotAllowed("a fake allows no push".to_owned()))
    }
}

#[async_trait]
impl Snapshots for Fake {
    async fn snapshot(&self, id: &WorkspaceId, _label: Option<String>) -> Result<Taken, Error> {
        self.call(id, "snapshot".to_owned())?;
        Err(Error::Invalid("a fake has no snapshots".to_owned()))
    }

    async fn fork(
        &self,
        id: &WorkspaceId,
        _count: usize,
        _label: Option<String>,
        _asked: NewWorkspace,
    ) -> Result<Forked, Error> {
        self.call(id, "fork".to_owned())?;
        Err(Error::Invalid("a fake has no snapshots".to_owned()))
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        Vec::new()
    }

    fn show_snapshot(&self, id: SnapshotId) -> Result<Snapshot, Error> {
        Err(Error::NoSuchSnapshot(id.to_string()))
    }

    fn label_snapshot(&self, id: SnapshotId, _label: Option<String>) -> Result<Snapshot, Error> {
        Err(Error::NoSuchSnapshot(id.to_string()))
    }

    fn remove_snapshot(&self, id: SnapshotId) -> Result<(), Error> {
        Err(Error::NoSuchSnapshot(id.to_string()))
    }

    async fn export_snapshot(
        &self,
        id: SnapshotId,
        _compression: Compression,
    ) -> Result<Content, Error> {
        Err(Error::NoSuchSnapshot(id.to_string()))
    }

    async fn import_snapshot(
        &self,
        _content: Content,
        _owner: Option<String>,
    ) -> Result<Imported, Error> {
        Err(Error::Invalid("a fake has no snapshots".to_owned()))
    }

    async fn fence(&self, id: &WorkspaceId) -> Result<Snapshot, Error> {
        self.call(id, "fence".to_owned())?;
        Err(Error::Invalid("a fake has no snapshots".to_owned()))
    }

    async fn fence_at(&self, id: &WorkspaceId, _at: f64) -> Result<Fence, Error> {
        self.call(id, "fence at".to_owned())?;
        Err(Error::Invalid("a fake has no snapshots".to_owned()))
    }
}

/// What handlers share, over the fake provider.
pub(super) fn app() -> Arc<App> {
    Arc::new(App {
        provider: Arc::new(Fake::default()),
        options: Arc::new(HttpOptions::default()),
        uploads: Uploads::new(),
        upgraded: TaskTracker::new(),
        metrics: Metrics::new(),
    })
}

/// A front end that serves until it is stopped.
struct Server {
    address: Option<SocketAddr>,
    fake: Arc<Fake>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<std::io::Result<()>>,
}

impl Server {
    fn on(listener: Listener, owner: Owner, options: HttpOptions) -> Self {
        let address = listener.address();
        let fake = Arc::new(Fake::default());
        let provider = Arc::clone(&fake) as Arc<dyn Provider>;
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let served = tokio::spawn(serve_as(owner, listener, provider, options, shutdown));
        Self {
            address,
            fake,
            stop,
            served,
        }
    }

    fn with(options: HttpOptions) -> Self {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        Self::on(listener, Owner::of_this_process(), options)
    }

    fn start() -> Self {
        Self::with(HttpOptions::default())
    }

    fn with_token() -> Self {
        Self::with(HttpOptions {
            tokens: Some(tokens()),
            ..HttpOptions::default()
        })
    }

    fn port(&self) -> u16 {
        self.address.unwrap().port()
    }

    fn host(&self) -> String {
        format!("Host: 127.0.0.1:{}", self.port())
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address.unwrap()).await.unwrap()
    }

    /// Sends `head` (request line and further headers) with this server's `Host` and `body`.
    async fn send(&self, head: &str, body: &[u8]) -> Reply {
        let host = self.host();
        exchange(self.connect().await, &format!("{head}\r\n{host}"), body).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(&format!("GET {path} HTTP/1.1"), b"").await
    }

    async fn post(&self, path: &str, body: &str) -> Reply {
        let head = format!("POST {path} HTTP/1.1\r\nContent-Type: application/json");
        self.send(&head, body.as_bytes()).await
    }

    fn calls(&self) -> Vec<String> {
        self.fake.calls.lock().unwrap().clone()
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no header: {:?}", String::from_utf8_lossy(bytes)));
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        };
        Self {
            status: status.parse().unwrap(),
            headers: lines.map(header).collect(),
            body: bytes[end + 4..].to_owned(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} twice");
        value
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body, which must be exactly this JSON, with the type of JSON.
    fn is_json(&self, status: u16, body: &str) {
        assert_eq!((self.status, self.text()), (status, body));
        assert_eq!(self.header("content-type"), Some("application/json"));
        self.has_an_id();
    }

    fn has_an_id(&self) -> String {
        let id = self.header("x-request-id").unwrap().to_owned();
        uuid::Uuid::parse_str(&id).unwrap();
        id
    }

    /// The problem, which must be of this status and type and have every member.
    fn problem(&self, status: u16, word: &str) -> Value {
        let text = self.text();
        assert_eq!(self.status, status, "{text}");
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        let problem: Value = serde_json::from_str(text).unwrap();
        assert_eq!(problem["type"], format!("urn:derrick:problem:{word}"));
        assert_eq!(problem["status"], status);
        assert_eq!(problem["request_id"], self.has_an_id());
        assert!(!problem["title"].as_str().unwrap().is_empty());
        let detail = problem["detail"].as_str().unwrap();
        assert!(!detail.is_empty() && !detail.ends_with('.'), "{detail}");
        let cors = |name: &str| name.starts_with("access-control");
        assert!(!self.headers.iter().any(|(name, _)| cors(name)));
        problem
    }

    /// The problem's detail, which must contain each of `parts`.
    fn detail(&self, status: u16, word: &str, parts: &[&str]) {
        let problem = self.problem(status, word);
        let detail = problem["detail"].as_str().unwrap();
        for part in parts {
            assert!(detail.contains(part), "{part:?} in {detail:?}");
        }
    }
}

/// One request on a connection of its own; `head` has no length and no blank line.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    head: &str,
    body: &[u8],
) -> Reply {
    let mut request = format!("{head}\r\nConnection: close\r\n").into_bytes();
    if !body.is_empty() {
        request.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
    }
    request.extend(b"\r\n");
    request.extend(body);
    stream.write_all(&request).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    Reply::parse(&reply)
}

fn tokens() -> Arc<Tokens> {
    tokens_in(TOKEN)
}

fn tokens_in(text: &str) -> Arc<Tokens> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Arc::new(Tokens::from_file(file.path()).unwrap())
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

// The wire format.

#[tokio::test]
async fn health_says_healthy_and_what_is_enforced() {
    let server = Server::start();
    let body = r#"{"healthy":true,"identity":"full","missing":[]}"#;
    server.get("/health").await.is_json(200, body);
}

#[tokio::test]
async fn workspaces_are_created_listed_described_and_removed() {
    let server = Server::start();
    for (body, call) in [
        ("{}", "create {}"),
        (r#"{"env":null}"#, "create {}"),
        (r#"{"env":{"A":"b"}}"#, r#"create {"A": "b"}"#),
    ] {
        server
            .post("/workspaces", body)
            .await
            .is_json(200, r#"{"id":"w"}"#);
        assert_eq!(server.calls().pop().unwrap(), call);
    }
    let list = r#"{"workspaces":[{"id":"w"}]}"#;
    server.get("/workspaces").await.is_json(200, list);
    let description = r#"{"id":"w","state":"running","layer":"l","created":5,"execs":0,"limits":{},"enforcement":{"landlock":"full"}}"#;
    server.get("/workspaces/w").await.is_json(200, description);
    for (id, answer) in [("w", "true"), ("x", "false"), ("Not%20an%20id", "false")] {
        let head = format!("DELETE /workspaces/{id} HTTP/1.1");
        server.send(&head, b"").await.is_json(200, answer);
    }
}

#[tokio::test]
async fn cmd_answers_null_or_tells_how_the_command_failed() {
    let server = Server::start();
    let url = "/workspaces/w/cmd";
    let done = server.post(url, r#"{"cmd":"true"}"#).await;
    done.is_json(200, "null");
    assert_eq!(done.header("derrick-outcome"), Some("exited"));

    for (cmd, code, outcome, output, detail) in [
        (
            "exit 3",
            3,
            "exited",
            "oh\n",
            "workspace w ended with exit code 3",
        ),
        (
            "segfault",
            139,
            "signaled",
            "",
            "workspace w was ended by signal 11",
        ),
        (
            "sleep",
            124,
            "deadline",
            "so far",
            "the deadline of 2 s passed",
        ),
    ] {
        let body = json!({"cmd": cmd, "timeout": 2}).to_string();
        let reply = server.post(url, &body).await;
        reply.detail(422, "command-failed", &[detail]);
        let problem = reply.problem(422, "command-failed");
        assert_eq!(problem["exit_code"], code);
        assert_eq!(problem["outcome"], outcome);
        assert_eq!(problem["output"], output);
        assert_eq!(reply.header("derrick-outcome"), Some(outcome));
    }
}

#[tokio::test]
async fn cmd_with_output_answers_output_and_exit_code_whatever_the_outcome() {
    let server = Server::start();
    let deadline = r#"{"output":"so far\nderrick: the deadline of 2 s passed; the command and everything it started was killed\n","exit_code":124}"#;
    for (cmd, outcome, omitted, body) in [
        ("x", "exited", None, r#"{"output":"hello\n","exit_code":0}"#),
        (
            "exit 3",
            "exited",
            None,
            r#"{"output":"oh\n","exit_code":3}"#,
        ),
        (
            "segfault",
            "signaled",
            None,
            r#"{"output":"","exit_code":139}"#,
        ),
        ("sleep", "deadline", None, deadline),
        (
            "binary",
            "exited",
            None,
            "{\"output\":\"a\u{fffd}\\u0000b\",\"exit_code\":0}",
        ),
        (
            "flood",
            "exited",
            Some("12345"),
            r#"{"output":"start end","exit_code":0}"#,
        ),
    ] {
        let request = json!({"cmd": cmd, "timeout": 2}).to_string();
        let reply = server.post("/workspaces/w/cmd_with_output", &request).await;
        reply.is_json(200, body);
        assert_eq!(reply.header("derrick-outcome"), Some(outcome), "{cmd}");
        assert_eq!(reply.header("derrick-omitted-bytes"), omitted, "{cmd}");
    }
}

#[tokio::test]
async fn every_field_of_a_command_arrives() {
    let server = Server::start();
    let body = r#"{"cmd":"a","working_dir":"/d","env":{"K":"v"},"timeout":90}"#;
    server.post("/workspaces/w/cmd", body).await;
    let body = r#"{"cmd":"a","working_dir":null,"env":null,"timeout":null}"#;
    server.post("/workspaces/w/cmd", body).await;
    let body = r#"{"cmd":"a","timeout":0}"#;
    server.post("/workspaces/w/cmd", body).await;
    let plain = || Command::new(Asked::Cmd("a".to_owned()));
    let none = format!("{:?}", plain());
    let all = Command {
        working_dir: Some("/d".to_owned()),
        env: BTreeMap::from([("K".to_owned(), "v".to_owned())]),
        timeout: Some(Duration::from_secs(90)),
        ..plain()
    };
    let all = format!("{all:?}");
    assert_eq!(server.calls(), [all, none.clone(), none]);
}

#[tokio::test]
async fn files_are_written_from_base64_and_read_as_bytes() {
    let server = Server::start();
    let url = "/workspaces/w/write_file";
    let bytes: Vec<u8> = (0..=255).cycle().take(300_001).collect();
    let plain = base64(&bytes);
    // A slash may be escaped in JSON, and then the text is not in the body as such.
    let escaped = plain.replace('/', "\\/");
    for content in [plain.clone(), escaped, plain + "\\n  "] {
        server.fake.written.lock().unwrap().clear();
        let body = format!(r#"{{"path":"f","content":"{content}"}}"#);
        let reply = server.post(url, &body).await;
        reply.is_json(200, r#"{"success":true}"#);
        assert_eq!(*server.fake.written.lock().unwrap(), bytes);
    }
    let path = r#"FilePath { path: "f", working_dir: None }"#;
    assert_eq!(server.calls().pop().unwrap(), path);

    let reply = server
        .post("/workspaces/w/read_file", r#"{"path":"f"}"#)
        .await;
    assert_eq!(
        (reply.status, &reply.body[..]),
        (200, &b"line\n\x00\xff"[..])
    );
    let octets = Some("application/octet-stream");
    assert_eq!(reply.header("content-type"), octets);
    assert_eq!(reply.header("content-length"), Some("7"));
}

#[tokio::test]
async fn reset_and_fetch_need_no_body() {
    let server = Server::start();
    let receipt = r#"{"id":"w","layer":"l","generation":1,"upper_entries":0,"processes_surviving":0,"discarded":null,"verified":null,"waited_us":0,"duration_us":900}"#;
    let fetched = r#"{"repositories":[{"url":"https://git.example/r","path":"/r","reference":"main","old_commit":"a","new_commit":"b"}]}"#;
    for (call, answer) in [("reset", receipt), ("fetch", fetched)] {
        let url = format!("/workspaces/w/{call}");
        let head = format!("POST {url} HTTP/1.1");
        server.send(&head, b"").await.is_json(200, answer);
        server.post(&url, "{}").await.is_json(200, answer);
        let refused = server.post(&url, r#"{"hard":true}"#).await;
        refused.detail(400, "invalid-request", &["hard"]);
        let refused = server.send(&head, b"{}").await;
        refused.problem(415, "unsupported-media-type");
    }
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let server = Server::start();
    let mut stream = server.connect().await;
    let request = format!("GET /workspaces HTTP/1.1\r\n{}\r\n\r\n", server.host());
    for _ in 0..3 {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"}]}") {
            seen.push(stream.read_u8().await.unwrap());
        }
        assert_eq!(Reply::parse(&seen).status, 200);
    }
}

// Problems.

#[tokio::test]
async fn what_does_not_exist_is_named() {
    let server = Server::start();
    let body = r#"{"cmd":"x"}"#;
    let missing = server.post("/workspaces/gone/cmd", body).await;
    missing.detail(404, "no-such-workspace", &["there is no workspace gone"]);
    for id in ["UPPER", "a%2Fb", "..%2f", "%ff", &"a".repeat(64)] {
        let reply = server.get(&format!("/workspaces/{id}")).await;
        reply.problem(404, "no-such-workspace");
    }
    let none = server
        .post("/workspaces/w/read_file", r#"{"path":"none"}"#)
        .await;
    none.detail(404, "no-such-file", &["there is no file none"]);
    let route = server.get("/containers/json").await;
    route.detail(404, "no-such-route", &["/containers/json"]);
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let server = Server::start();
    let reply = server.send("PUT /workspaces HTTP/1.1", b"").await;
    reply.detail(405, "method-not-allowed", &["/workspaces", "PUT"]);
    let allow = reply.header("allow").unwrap();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    let reply = server.get("/workspaces/w/reset").await;
    reply.problem(405, "method-not-allowed");
    assert_eq!(reply.header("allow"), Some("POST"));
}

#[tokio::test]
async fn a_body_that_is_not_as_asked_is_told_where() {
    let server = Server::start();
    for (url, body, parts) in [
        ("cmd", "{\"cmd\":\n  oops}", &["line 2 column 3"][..]),
        ("cmd", "", &["EOF", "line 1"]),
        ("cmd", "{\"cmd\":\"a\"} {}", &["trailing", "column 13"]),
        ("cmd", "{}", &["missing field `cmd`"]),
        ("cmd", r#" ["a",null,null,null]"#, &["expected an object"]),
        (
            "cmd",
            r#"{"cmd":5}"#,
            &["field cmd:", "expected a string", "column 8"],
        ),
        (
            "cmd",
            r#"{"cmd":"a","env":{"K":1}}"#,
            &["field env.K:", "expected a string"],
        ),
        (
            "cmd",
            r#"{"cmd":"a","timeout":1.5}"#,
            &["field timeout:", "u64"],
        ),
        ("cmd", r#"{"cmd":"a","timeout":-1}"#, &["field timeout:"]),
        (
            "cmd",
            r#"{"cmd":"a","shell":"sh"}"#,
            &[
                "unknown field `shell`",
                "`cmd`",
                "`working_dir`",
                "`env`",
                "`timeout`",
            ],
        ),
        ("cmd", r#"{"cmd":"a\u0000b"}"#, &["field cmd", "NUL"]),
        (
            "cmd",
            r#"{"cmd":"a","working_dir":"\u0000"}"#,
            &["working_dir", "NUL"],
        ),
        ("cmd", r#"{"cmd":"a","env":{"A=B":"c"}}"#, &["env", "A=B"]),
        (
            "cmd",
            r#"{"cmd":"a","env":{"":"c"}}"#,
            &["env", "empty name"],
        ),
        (
            "cmd",
            r#"{"cmd":"a","env":{"A":"\u0000"}}"#,
            &["env", "value"],
        ),
        (
            "write_file",
            r#"{"path":"a\u0000","content":""}"#,
            &["path", "NUL"],
        ),
        (
            "write_file",
            r#"{"path":"a","content":"QUJD!"}"#,
            &["content", "'!'", "offset 4"],
        ),
        (
            "write_file",
            r#"{"path":"a","content":"QUJ"}"#,
            &["content", "offset 3"],
        ),
        (
            "read_file",
            r#"{"path":"a","mode":1}"#,
            &["`mode`", "`path`", "`working_dir`"],
        ),
    ] {
        let reply = server.post(&format!("/workspaces/w/{url}"), body).await;
        reply.detail(400, "invalid-request", parts);
    }
    let unknown = server.post("/workspaces", r#"{"image":"debian"}"#).await;
    unknown.detail(400, "invalid-request", &["`image`", "`env`"]);
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let deep = server
        .post("/workspaces", &format!(r#"{{"env":{deep}}}"#))
        .await;
    deep.problem(400, "invalid-request");
    assert!(server.fake.written.lock().unwrap().is_empty());
}

#[tokio::test]
async fn errors_of_the_provider_are_told_and_panics_are_not() {
    let server = Server::start();
    let setup = server.post("/workspaces", r#"{"env":{"FAIL":"1"}}"#).await;
    let problem = setup.problem(422, "setup-failed");
    assert_eq!(problem["exit_code"], 7);
    assert_eq!(problem["output"], "no such package");

    let url = "/workspaces/w/cmd";
    let host = server.post(url, r#"{"cmd":"host"}"#).await;
    host.detail(500, "internal", &["cannot start sandbox: EMFILE"]);
    let panic = server.post(url, r#"{"cmd":"panic"}"#).await;
    panic.problem(500, "internal");
    assert!(!panic.text().contains("secret"));
    server.get("/health").await.has_an_id();
}

#[tokio::test]
async fn the_requests_id_is_never_the_clients() {
    let server = Server::start();
    let head = "GET /nowhere HTTP/1.1\r\nX-Request-Id: 00000000-0000-0000-0000-000000000000";
    let reply = server.send(head, b"").await;
    reply.problem(404, "no-such-route");
    assert!(!reply.has_an_id().starts_with("00000000-"));
}

// Checks.

#[tokio::test]
async fn a_rebound_name_is_refused_on_every_route() {
    let server = Server::start();
    let port = server.port();
    let evil = format!("evil.example:{port}");
    for route in [
        "GET /health",
        "GET /docs",
        "GET /openapi.json",
        "POST /workspaces",
        "PUT /nowhere",
        "OPTIONS /workspaces",
    ] {
        for hosts in [
            format!("\r\nHost: {evil}"),
            "\r\nHost: localhost".to_owned(),
            "\r\nHost: ".to_owned(),
            format!("\r\nHost: localhost:{port}\r\nHost: {evil}"),
            String::new(),
        ] {
            let head = format!("{route} HTTP/1.1{hosts}");
            let reply = exchange(server.connect().await, &head, b"").await;
            reply.problem(421, "host-refused");
        }
    }
    let absolute = format!("GET http://{evil}/health HTTP/1.1");
    let reply = server.send(&absolute, b"").await;
    reply.problem(421, "host-refused");
    assert!(server.calls().is_empty());
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        let head = format!("GET /health HTTP/1.1\r\nHost: {host}:{port}");
        let reply = exchange(server.connect().await, &head, b"").await;
        assert_eq!(reply.status, 200, "{host}");
    }
}

#[tokio::test]
async fn a_web_page_is_refused_unless_the_operator_lists_it() {
    let server = Server::with(HttpOptions {
        allowed_origins: vec!["https://ui.example".to_owned()],
        tokens: Some(tokens()),
        ..HttpOptions::default()
    });
    let port = server.port();
    for origin in [
        "https://evil.example",
        "null",
        &format!("http://localhost:{port}"),
        "https://ui.example.evil.example",
        "https://ui.example\r\nOrigin: https://evil.example",
    ] {
        for route in [
            "GET /health",
            "GET /docs",
            "GET /openapi.json",
            "OPTIONS /workspaces",
            "POST /workspaces/w/reset",
        ] {
            let head = format!("{route} HTTP/1.1\r\nOrigin: {origin}");
            let reply = server.send(&head, b"").await;
            reply.problem(403, "origin-refused");
        }
    }
    // What a WebSocket handshake of a page looks like.
    let upgrade = "GET /workspaces/w HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Origin: https://evil.example";
    server
        .send(upgrade, b"")
        .await
        .problem(403, "origin-refused");
    assert!(server.calls().is_empty());
    // A listed one needs the token, as everybody does.
    let listed = "GET /health HTTP/1.1\r\nOrigin: https://ui.example";
    let reply = server.send(listed, b"").await;
    assert_eq!(reply.status, 401);
    let listed = format!("{listed}\r\nAuthorization: Bearer {TOKEN}");
    assert_eq!(server.send(&listed, b"").await.status, 200);
}

#[tokio::test]
async fn what_another_sites_page_loads_without_an_origin_is_refused() {
    let server = Server::with(HttpOptions {
        allowed_origins: vec!["https://ui.example".to_owned()],
        tokens: Some(tokens()),
        ..HttpOptions::default()
    });
    for route in ["/health", "/docs", "/openapi.json", "/workspaces/w"] {
        // A picture, a frame, a link; `same-site` is another port of the same host.
        for site in [
            "cross-site",
            "same-site",
            "none\r\nSec-Fetch-Site: cross-site",
            "?",
        ] {
            let head = format!("GET {route} HTTP/1.1\r\nSec-Fetch-Site: {site}");
            server.send(&head, b"").await.problem(403, "origin-refused");
        }
        // A person typed the address; the page that came asks for more.
        for site in [
            "none",
            "same-origin",
            "cross-site\r\nOrigin: https://ui.example",
        ] {
            let head = format!(
                "GET {route} HTTP/1.1\r\nSec-Fetch-Site: {site}\r\nAuthorization: Bearer {TOKEN}"
            );
            assert_eq!(server.send(&head, b"").await.status, 200, "{route} {site}");
        }
    }
}

#[tokio::test]
async fn only_the_page_of_the_document_is_shown_as_a_page() {
    let server = Server::start();
    let page = server.get("/docs").await;
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'sha256-"),
        "{policy}"
    );
    for word in [
        "http://",
        "https://",
        " src=",
        "fetch(",
        "innerHTML",
        "@import",
        "url(",
    ] {
        assert!(!page.text().contains(word), "{word}");
    }
    // Whatever the document says, it ends no element; what it says is what /openapi.json says.
    let start = page.text().split_once("id=\"document\">").unwrap().1;
    let embedded: Value = serde_json::from_str(start.split_once("</script>").unwrap().0).unwrap();
    let document = server.get("/openapi.json").await;
    assert_eq!(
        embedded,
        serde_json::from_slice::<Value>(&document.body).unwrap()
    );

    let file = server
        .post("/workspaces/w/read_file", r#"{"path":"page.html"}"#)
        .await;
    for reply in [&page, &document, &file, &server.get("/nowhere").await] {
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    }
    for reply in [&document, &file, &server.get("/nowhere").await] {
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.ends_with("sandbox"), "{policy}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_declared_as_plain_json_is_refused() {
    let server = Server::start();
    for header in [
        "",
        "\r\nContent-Type: text/plain",
        "\r\nContent-Type: application/x-www-form-urlencoded",
        "\r\nContent-Type: multipart/form-data; boundary=x",
        "\r\nContent-Type: application/json\r\nContent-Encoding: gzip",
    ] {
        for body in ["{}", ""] {
            let head = format!("POST /workspaces HTTP/1.1{header}");
            let reply = server.send(&head, body.as_bytes()).await;
            assert!(!reply.text().contains("octet-stream"), "{}", reply.text());
            reply.problem(415, "unsupported-media-type");
        }
    }
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn without_the_token_no_route_answers() {
    let server = Server::with_token();
    for header in [
        "",
        "\r\nAuthorization: Bearer wrong",
        "\r\nAuthorization: Basic dXNlcjpwYXNz",
        &format!("\r\nAuthorization: Bearer {}", &TOKEN[1..]),
        &format!("\r\nAuthorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}"),
    ] {
        for route in [
            "GET /health",
            "GET /docs",
            "GET /openapi.json",
            "GET /metrics",
            "GET /nowhere",
            "PUT /health",
            "POST /workspaces",
        ] {
            let head = format!("{route} HTTP/1.1{header}");
            let reply = server.send(&head, b"").await;
            reply.problem(401, "unauthorized");
            let challenge = reply.header("www-authenticate").unwrap();
            assert!(challenge.starts_with("Bearer realm="), "{challenge}");
            assert!(!reply.text().contains(&TOKEN[1..]));
            // Who only asks again and again, and never reads, keeps no place.
            assert_eq!(reply.header("connection"), Some("close"));
        }
    }
    let query = format!("GET /health?access_token={TOKEN} HTTP/1.1");
    server.send(&query, b"").await.problem(401, "unauthorized");
    let head = format!("GET /health HTTP/1.1\r\nAuthorization: Bearer {TOKEN}");
    assert_eq!(server.send(&head, b"").await.status, 200);
}

/// The token of each scope, over a workspace that `maker` made, unless somebody else did since.
const SCOPED: [(&str, &str); 3] = [
    ("00112233445566778899aabbccddee01", "name=maker scope=own"),
    ("00112233445566778899aabbccddee02", "name=other scope=own"),
    ("00112233445566778899aabbccddee03", "scope=x,y"),
];

fn with_scopes() -> Server {
    let lines = SCOPED.map(|(token, rest)| format!("{token} {rest}\n"));
    let server = Server::with(HttpOptions {
        tokens: Some(tokens_in(&format!("{TOKEN}\n{}", lines.concat()))),
        ..HttpOptions::default()
    });
    *server.fake.owner.lock().unwrap() = Some("maker".to_owned());
    server
}

#[tokio::test]
async fn beyond_its_scope_a_workspace_is_on_every_route_as_one_that_is_not_there() {
    let server = with_scopes();
    let [(maker, _), (other, _), (listed, _)] = SCOPED;
    let routes = super::documents::routes_with_a_workspace();
    assert!(routes.len() > 20, "{routes:?}");
    let with = |token: &str, kind: &str| {
        format!(" HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}")
    };
    for (method, path) in routes {
        // Of what it takes, of what it does not, and nothing.
        for (kind, body) in [
            ("application/json", r#"{"cmd":"true","path":"f"}"#),
            ("application/json", "{"),
            ("application/octet-stream", "x"),
            ("application/json", ""),
        ] {
            let ask = async |token: &str, id: &str| {
                let path = path.replace("{id}", id);
                let head = format!("{method} {path}{}", with(token, kind));
                let reply = server.send(&head, body.as_bytes()).await;
                // Whatever names the request or the workspace.
                let told = match serde_json::from_slice::<Value>(&reply.body) {
                    Ok(mut told) if told.is_object() => {
                        told["request_id"].take();
                        told.to_string()
                    }
                    _ => String::from_utf8_lossy(&reply.body).into_owned(),
                };
                (reply.status, told.replace(&format!(" {id}\""), " ID\""))
            };
            for token in [other, listed] {
                let there = ask(token, "w").await;
                let nowhere = ask(token, "v").await;
                assert_eq!(there, nowhere, "{method} {path} {body}");
                let removed = there == (200, "false".to_owned());
                let refused = there.0 == 415 || there.0 == 404 && there.1.contains("no-such-w");
                assert!(removed || refused, "{method} {path} {body}: {there:?}");
            }
            assert!(server.calls().is_empty(), "{method} {path} {body}");
            if path.ends_with("/events") {
                // Its answer has no end.
                continue;
            }
            let own = ask(maker, "w").await;
            assert!(!own.1.contains("no-such-workspace"), "{method} {path}");
            server.fake.calls.lock().unwrap().clear();
        }
    }
}

#[tokio::test]
async fn a_token_lists_makes_and_measures_what_it_is_good_for() {
    let server = with_scopes();
    let everything = (TOKEN, "");
    let [maker, other, listed] = SCOPED;
    let head = |line: &str, token: &str| {
        format!(
            "{line} HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json"
        )
    };
    for ((token, _), ids, makes, measures) in [
        (everything, r#"[{"id":"w"}]"#, 200, 200),
        (maker, r#"[{"id":"w"}]"#, 200, 403),
        (other, "[]", 200, 403),
        (listed, "[]", 403, 403),
    ] {
        *server.fake.owner.lock().unwrap() = Some("maker".to_owned());
        let list = format!(r#"{{"workspaces":{ids}}}"#);
        let reply = server.send(&head("GET /workspaces", token), b"").await;
        reply.is_json(200, &list);
        let reply = server.send(&head("GET /metrics", token), b"").await;
        assert_eq!(reply.status, measures, "{token}");
        for route in ["GET /health", "GET /docs", "GET /openapi.json"] {
            let reply = server.send(&head(route, token), b"").await;
            assert_eq!(reply.status, 200, "{route} {token}");
        }
        let reply = server.send(&head("POST /workspaces", token), b"{}").await;
        assert_eq!(reply.status, makes, "{token}");
        if makes == 403 {
            reply.problem(403, "beyond-scope");
        }
    }
    // What was made is its maker's.
    let create = head("POST /workspaces", other.0);
    server
        .send(&create, b"{}")
        .await
        .is_json(200, r#"{"id":"w"}"#);
    for ((token, _), status) in [(other, 200), (maker, 404), (everything, 200)] {
        let reply = server.send(&head("GET /workspaces/w", token), b"").await;
        assert_eq!(reply.status, status, "{token}");
    }
}

#[tokio::test]
async fn what_a_listed_page_may_do_is_told_to_it_alone() {
    let server = Server::with(HttpOptions {
        allowed_origins: vec!["https://ui.example".to_owned()],
        tokens: Some(tokens()),
        ..HttpOptions::default()
    });
    let ask = |method: &str| {
        format!(
            "OPTIONS /workspaces HTTP/1.1\r\nOrigin: https://ui.example\r\n\
             Access-Control-Request-Method: {method}"
        )
    };
    for method in ["POST", "DELETE"] {
        let reply = server.send(&ask(method), b"").await;
        assert_eq!((reply.status, reply.text()), (204, ""));
        let origin = reply.header("access-control-allow-origin");
        assert_eq!(origin, Some("https://ui.example"));
        assert_eq!(reply.header("vary"), Some("origin"));
        let methods = reply.header("access-control-allow-methods").unwrap();
        assert!(methods.contains(method), "{methods}");
        let headers = reply.header("access-control-allow-headers").unwrap();
        for name in ["authorization", "content-type", "idempotency-key"] {
            assert!(headers.contains(name), "{headers}");
        }
        assert_eq!(reply.header("access-control-allow-credentials"), None);
    }
    // Errors are for its eyes too, made by a handler or before one.
    let bearer = format!("\r\nAuthorization: Bearer {TOKEN}");
    for (rest, path, status) in [
        (bearer.as_str(), "/health", 200),
        (bearer.as_str(), "/workspaces/x", 404),
        (bearer.as_str(), "/nowhere", 404),
        ("", "/health", 401),
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nOrigin: https://ui.example{rest}");
        let reply = server.send(&head, b"").await;
        assert_eq!(reply.status, status);
        let origin = reply.header("access-control-allow-origin");
        assert_eq!(origin, Some("https://ui.example"), "{path}");
        let shown = reply.header("access-control-expose-headers").unwrap();
        assert!(shown.contains("derrick-outcome"), "{shown}");
    }
    // No page asks here; an OPTIONS of anybody else's is a method that no route has.
    let plain = format!("OPTIONS /workspaces HTTP/1.1{bearer}");
    let reply = server.send(&plain, b"").await;
    reply.problem(405, "method-not-allowed");
    assert_eq!(reply.header("vary"), Some("origin"));
    // A name that was rebound is refused first, and another origin before it is asked who it is.
    let rebound = format!("{}\r\nHost: evil.example", ask("POST"));
    let reply = exchange(server.connect().await, &rebound, b"").await;
    assert_eq!(reply.status, 421);
    let other = ask("POST").replace("https://ui", "https://evil");
    server
        .send(&other, b"")
        .await
        .problem(403, "origin-refused");
}

#[tokio::test]
async fn origins_are_listed_with_a_token_only() {
    let options = HttpOptions {
        allowed_origins: vec!["https://ui.example".to_owned()],
        ..HttpOptions::default()
    };
    let server = Server::with(options);
    let error = server.served.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn what_is_done_with_a_token_breaks_off_when_that_is_revoked() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{TOKEN}\n{} name=a", SCOPED[0].0)).unwrap();
    let tokens = Arc::new(Tokens::from_file(file.path()).unwrap());
    let server = Server::with(HttpOptions {
        tokens: Some(Arc::clone(&tokens)),
        ..HttpOptions::default()
    });
    let head = |route: &str| {
        format!(
            "{route} HTTP/1.1\r\n{}\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Type: application/json\r\n",
            server.host()
        )
    };
    let mut events = server.connect().await;
    let request = format!("{}\r\n", head("GET /workspaces/w/events"));
    events.write_all(request.as_bytes()).await.unwrap();
    let mut begun = [0; 1024];
    let length = events.read(&mut begun).await.unwrap();
    assert!(begun[..length].starts_with(b"HTTP/1.1 200 "));
    let mut command = server.connect().await;
    let request = format!(
        "{}Content-Length: 14\r\n\r\n{{\"cmd\":\"wait\"}}",
        head("POST /workspaces/w/cmd")
    );
    command.write_all(request.as_bytes()).await.unwrap();
    server.fake.started.notified().await;

    // What is neither gone nor changed goes on.
    std::fs::write(file.path(), format!("{} name=b\n{TOKEN}\n", SCOPED[0].0)).unwrap();
    assert_eq!(tokens.reread().unwrap().revoked, 1);
    let asked = format!("GET /health HTTP/1.1\r\nAuthorization: Bearer {TOKEN}");
    assert_eq!(server.send(&asked, b"").await.status, 200);
    std::fs::write(file.path(), SCOPED[0].0).unwrap();
    assert_eq!(tokens.reread().unwrap().revoked, 2);
    server.fake.dropped.notified().await;
    let mut rest = Vec::new();
    // Either way it ends: the test would hang otherwise.
    let _ = events.read_to_end(&mut rest).await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it must not look whole");
    let mut reply = [0; 4096];
    let length = command.read(&mut reply).await.unwrap();
    Reply::parse(&reply[..length]).problem(401, "unauthorized");
}

#[tokio::test]
async fn with_a_token_it_serves_beyond_loopback() {
    let options = HttpOptions {
        tokens: Some(tokens()),
        ..HttpOptions::default()
    };
    let listener = Listener::tcp("0.0.0.0:0".parse().unwrap(), &options).unwrap();
    let server = Server::on(listener, Owner::somebody_else(), options);
    let port = server.port();
    let head =
        format!("GET /health HTTP/1.1\r\nHost: localhost:{port}\r\nAuthorization: Bearer {TOKEN}");
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert_eq!(exchange(stream, &head, b"").await.status, 200);
}

#[tokio::test]
async fn options_that_lost_their_token_do_not_serve_beyond_loopback() {
    let with_token = HttpOptions {
        tokens: Some(tokens()),
        ..HttpOptions::default()
    };
    let listener = Listener::tcp("0.0.0.0:0".parse().unwrap(), &with_token).unwrap();
    let server = Server::on(listener, Owner::of_this_process(), HttpOptions::default());
    let error = server.served.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

/// Both address families: the peer's own user is let in by the answer of the kernel.
#[tokio::test]
async fn the_providers_own_user_is_served_without_a_token() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let options = HttpOptions::default();
        let listener = Listener::tcp(address.parse().unwrap(), &options).unwrap();
        let server = Server::on(listener, Owner::of_this_process(), options);
        let stream = server.connect().await;
        let head = format!("GET /health HTTP/1.1\r\nHost: localhost:{}", server.port());
        assert_eq!(exchange(stream, &head, b"").await.status, 200, "{address}");
    }
}

/// As root another user is made for it; root itself would be served everywhere. As an ordinary
/// user the server takes itself for somebody else's, so that this user is a foreign one.
#[tokio::test]
async fn another_user_of_the_host_is_not_served_without_a_token() {
    let root = rustix::process::geteuid().is_root();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let options = HttpOptions::default();
        let listener = Listener::tcp(address.parse().unwrap(), &options).unwrap();
        let owner = if root {
            Owner::of_this_process()
        } else {
            Owner::somebody_else()
        };
        let server = Server::on(listener, owner, options);
        let port = server.port();
        for route in ["GET /health", "POST /workspaces/w/reset"] {
            let head = format!("{route} HTTP/1.1\r\nHost: localhost:{port}");
            let (reply, uid) = if root {
                (as_nobody(server.address.unwrap(), &head).await, 65534)
            } else {
                let own = rustix::process::geteuid().as_raw();
                (exchange(server.connect().await, &head, b"").await, own)
            };
            reply.detail(403, "peer-refused", &[&format!("of uid {uid};")]);
            assert_eq!(reply.header("connection"), Some("close"));
        }
        assert!(server.calls().is_empty());
    }
}

/// The request from a process of another user; needs root.
async fn as_nobody(address: SocketAddr, head: &str) -> Reply {
    let (ip, port) = (address.ip(), address.port());
    let script = format!(
        r#"exec 3<>/dev/tcp/{ip}/{port}; printf '%s\r\nConnection: close\r\n\r\n' "$1" >&3; cat <&3"#
    );
    let output = tokio::process::Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "bash",
            "-c",
        ])
        .args([&script, "bash", head])
        .current_dir("/")
        .output()
        .await
        .expect("setpriv (package util-linux) starts");
    assert!(output.status.success(), "{output:?}");
    Reply::parse(&output.stdout)
}

#[tokio::test]
async fn a_unix_socket_serves_its_user_whatever_the_host_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    let server = Server::on(
        Listener::unix(&path).unwrap(),
        Owner::of_this_process(),
        HttpOptions::default(),
    );
    let head = |host: &str| format!("GET /health HTTP/1.1{host}");
    for host in ["", "\r\nHost: ", "\r\nHost: anything"] {
        let reply = over_unix(&path, &head(host)).await;
        assert_eq!(reply.status, 200, "{host:?}");
    }
    let page = over_unix(&path, &head("\r\nOrigin: https://evil.example")).await;
    page.problem(403, "origin-refused");

    server.stop.send(()).unwrap();
    server.served.await.unwrap().unwrap();
    assert!(!path.exists(), "the socket goes with the server");
}

#[tokio::test]
async fn a_unix_sockets_peer_is_judged_by_its_token_or_else_by_its_uid() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    let start = |tokens| {
        let listener = Listener::unix(&path).unwrap();
        let options = HttpOptions {
            tokens,
            ..HttpOptions::default()
        };
        Server::on(listener, Owner::somebody_else(), options)
    };
    let server = start(Some(tokens()));
    let head = format!("GET /health HTTP/1.1\r\nAuthorization: Bearer {TOKEN}");
    assert_eq!(over_unix(&path, &head).await.status, 200);
    // Root is served by everybody's server, but even root needs the token where there is one.
    let bare = over_unix(&path, "GET /health HTTP/1.1").await;
    bare.problem(401, "unauthorized");
    server.stop.send(()).unwrap();
    server.served.await.unwrap().unwrap();

    let _server = start(None);
    let reply = over_unix(&path, "GET /health HTTP/1.1").await;
    if rustix::process::geteuid().is_root() {
        assert_eq!(reply.status, 200);
    } else {
        reply.problem(403, "peer-refused");
    }
}

async fn over_unix(path: &Path, head: &str) -> Reply {
    exchange(UnixStream::connect(path).await.unwrap(), head, b"").await
}

// Limits.

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_the_refusal_arrives() {
    let server = Server::start();
    let large = format!(
        r#"{{"path":"f","content":"{}"}}"#,
        "A".repeat(101 * 1024 * 1024)
    );
    // The client sends all of it before it reads the answer.
    let reply = server.post("/workspaces/w/write_file", &large).await;
    reply.detail(413, "body-too-large", &["104857600"]);
    let command = &large[..9 * 1024 * 1024];
    let reply = server.post("/workspaces/w/cmd", command).await;
    reply.detail(413, "body-too-large", &["8388608"]);
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn a_body_without_a_length_is_counted() {
    let server = Server::start();
    let mut stream = server.connect().await;
    let head = format!(
        "POST /workspaces/w/cmd HTTP/1.1\r\n{}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        server.host()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = [b"100000\r\n", vec![b' '; 0x10_0000].as_slice(), b"\r\n"].concat();
    for _ in 0..9 {
        stream.write_all(&chunk).await.unwrap();
    }
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    Reply::parse(&reply).problem(413, "body-too-large");
}

#[tokio::test]
async fn a_file_of_the_largest_size_arrives() {
    let server = Server::start();
    let frame = r#"{"path":"f","content":""}"#.len();
    let content = "A".repeat((100 * 1024 * 1024 - frame) / 4 * 4);
    let body = format!(r#"{{"path":"f","content":"{content}"}}"#);
    let reply = server.post("/workspaces/w/write_file", &body).await;
    reply.is_json(200, r#"{"success":true}"#);
    let written = server.fake.written.lock().unwrap().len();
    assert_eq!(written, content.len() / 4 * 3);
}

#[tokio::test]
async fn a_client_that_sends_its_header_slowly_is_hung_up_on() {
    let server = Server::with(HttpOptions {
        read_timeout: Duration::from_millis(50),
        ..HttpOptions::default()
    });
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET /health HTTP/1.1\r\nX-")
        .await
        .unwrap();
    // Ends only when the server closes: the test would hang otherwise.
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply).await;
    assert!(!reply.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_sends_its_body_slowly_is_told() {
    let server = Server::with(HttpOptions {
        read_timeout: Duration::from_millis(50),
        ..HttpOptions::default()
    });
    let mut stream = server.connect().await;
    let head = format!(
        "POST /workspaces HTTP/1.1\r\n{}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{",
        server.host()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = [0; 4096];
    let length = stream.read(&mut reply).await.unwrap();
    Reply::parse(&reply[..length]).problem(408, "request-timeout");
}

#[tokio::test]
async fn a_header_without_bound_is_refused() {
    let server = Server::start();
    let head = format!("GET /health HTTP/1.1\r\nX-Long: {}", "a".repeat(128 * 1024));
    assert_eq!(server.send(&head, b"").await.status, 431);
    let head = format!("GET /health HTTP/1.1{}", "\r\nX-Many: a".repeat(200));
    assert_eq!(server.send(&head, b"").await.status, 431);
}

#[tokio::test]
async fn requests_beyond_the_bound_wait_for_their_turn() {
    let server = Server::with(HttpOptions {
        max_connections: 1,
        ..HttpOptions::default()
    });
    // One that has asked for nothing has no turn.
    let _silent = server.connect().await;
    let mut first = server.connect().await;
    let head = format!(
        "POST /workspaces/w/cmd HTTP/1.1\r\n{}\r\nContent-Type: application/json\r\n\
         Content-Length: 14\r\n\r\n{{\"cmd\":\"wait\"}}",
        server.host()
    );
    first.write_all(head.as_bytes()).await.unwrap();
    server.fake.started.notified().await;
    let head = format!("GET /health HTTP/1.1\r\n{}", server.host());
    let mut second = tokio::spawn({
        let stream = server.connect().await;
        async move { exchange(stream, &head, b"").await }
    });
    let waited = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
    assert!(waited.is_err(), "the first one has the only turn");
    drop(first);
    assert_eq!(second.await.unwrap().status, 200);
}

#[tokio::test]
async fn of_connections_that_ask_for_nothing_the_oldest_makes_room() {
    let server = Server::with(HttpOptions {
        max_connections: 1,
        max_waiting: 2,
        ..HttpOptions::default()
    });
    let mut halves = Vec::new();
    for _ in 0..3 {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /health HT").await.unwrap();
        halves.push(stream);
    }
    let mut nothing = Vec::new();
    // A reset, where the server had not read what was sent.
    let _ = halves[0].read_to_end(&mut nothing).await;
    assert!(nothing.is_empty());
    for mut stream in halves.drain(1..) {
        let rest = format!("TP/1.1\r\n{}\r\nConnection: close\r\n\r\n", server.host());
        stream.write_all(rest.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.unwrap();
        assert_eq!(Reply::parse(&reply).status, 200);
    }
}

// Life.

#[tokio::test]
async fn a_client_that_goes_away_takes_its_call_with_it() {
    let server = Server::start();
    let mut stream = server.connect().await;
    let body = r#"{"cmd":"wait"}"#;
    let request = format!(
        "POST /workspaces/w/cmd HTTP/1.1\r\n{}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        server.host(),
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    server.fake.started.notified().await;
    drop(stream);
    server.fake.dropped.notified().await;
    // It is counted right after that.
    let series =
        r#"derrick_http_requests_dropped_total{route="/workspaces/{id}/cmd",method="POST"} 1"#;
    let counted = async { while !server.get("/metrics").await.text().contains(series) {} };
    tokio::time::timeout(Duration::from_secs(60), counted)
        .await
        .expect("it was counted");
}

#[tokio::test]
async fn a_value_of_a_metric_ends_no_line_and_no_quotes() {
    let server = Server::start();
    let metrics = server.get("/metrics").await;
    let line = r#"derrick_enforcement_info{identity="full \"or\nnot\""} 1"#;
    assert!(
        metrics.text().lines().any(|found| found == line),
        "{}",
        metrics.text()
    );
}

#[tokio::test]
async fn the_end_waits_for_requests_only_so_long() {
    let server = Server::with(HttpOptions {
        drain: Duration::from_millis(50),
        ..HttpOptions::default()
    });
    let address = server.address.unwrap();
    let head = format!(
        "POST /workspaces/w/cmd HTTP/1.1\r\n{}\r\nContent-Type: application/json\r\n\
         Content-Length: 14\r\n\r\n{{\"cmd\":\"wait\"}}",
        server.host()
    );
    let mut stream = server.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    server.fake.started.notified().await;
    server.stop.send(()).unwrap();
    server.served.await.unwrap().unwrap();
    server.fake.dropped.notified().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let server = Server::with(HttpOptions {
        drain: Duration::from_secs(600),
        ..HttpOptions::default()
    });
    let mut idle = server.connect().await;
    let request = format!("GET /workspaces/w/x HTTP/1.1\r\n{}\r\n\r\n", server.host());
    idle.write_all(request.as_bytes()).await.unwrap();
    // Its answer shows that the connection is served.
    idle.read_u8().await.unwrap();
    let stopped = std::time::Instant::now();
    server.stop.send(()).unwrap();
    server.served.await.unwrap().unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(3));
}
