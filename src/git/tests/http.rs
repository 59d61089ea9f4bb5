//! Over http: credentials, redirects, and connections that break, against git's own server program.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;

/// The user's secret. It must be found nowhere but in the header that it is sent in.
const TOKEN: &str = "token-canary-7f3a";

/// `x-access-token:` and the token, as the header has it.
const BASIC: &str = "eC1hY2Nlc3MtdG9rZW46dG9rZW4tY2FuYXJ5LTdmM2E=";

/// `ada:` and the token, as a header has it.
const BASIC_OF_ADA: &str = "YWRhOnRva2VuLWNhbmFyeS03ZjNh";

/// What the server saw.
#[derive(Debug)]
enum Seen {
    Request {
        path: String,
        authorization: Option<String>,
        in_arguments: bool,
    },
    /// The client of `/stall/` closed its connection.
    Closed,
}

/// A server on loopback; the first part of a path says how it behaves.
pub(super) struct Server {
    origin: String,
    seen: mpsc::Receiver<Seen>,
    pub(super) narrow: Arc<Narrow>,
}

/// What `/narrow/` lets through.
#[derive(Debug)]
pub(super) struct Narrow {
    /// Of each answer with objects, in bytes.
    pub(super) most: AtomicUsize,
    /// How many more answers with objects.
    pub(super) answers: AtomicUsize,
    /// What it has sent in such answers.
    pub(super) sent: AtomicUsize,
    /// What `/lying/` says beside the truth of where a history ends.
    pub(super) lies: std::sync::Mutex<Vec<u8>>,
}

impl Narrow {
    fn lies(&self, answer: &[u8]) -> Vec<u8> {
        let section = b"0011shallow-info\n";
        let at = answer
            .windows(section.len())
            .position(|window| window == section);
        let Some(at) = at else {
            return answer.to_vec();
        };
        let (before, after) = answer.split_at(at + section.len());
        let lies = self.lies.lock().expect("nobody panicked");
        [before, lies.as_slice(), after].concat()
    }

    /// How much of an answer is sent.
    fn lets_through(&self, answer: &[u8]) -> usize {
        if !answer.windows(8).any(|window| window == b"packfile") {
            return answer.len();
        }
        let left = self
            .answers
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        let sent = match left {
            Ok(_) => answer.len().min(self.most.load(Ordering::SeqCst)),
            Err(_) => 0,
        };
        self.sent.fetch_add(sent, Ordering::SeqCst);
        sent
    }
}

impl Server {
    /// Serves the repositories below `root`; `/elsewhere/` redirects to the server `other`.
    pub(super) fn start(root: &Path, other: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let origin = format!("http://{}", listener.local_addr().expect("an address"));
        let (sender, seen) = mpsc::channel();
        let (root, other) = (root.to_owned(), other.to_owned());
        let narrow = Arc::new(Narrow {
            most: AtomicUsize::new(usize::MAX),
            answers: AtomicUsize::new(usize::MAX),
            sent: AtomicUsize::new(0),
            lies: std::sync::Mutex::default(),
        });
        let bounds = Arc::clone(&narrow);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (root, other, sender) = (root.clone(), other.clone(), sender.clone());
                let narrow = Arc::clone(&bounds);
                std::thread::spawn(move || {
                    serve(
                        connection.expect("a connection"),
                        (&root, &narrow),
                        &other,
                        &sender,
                    )
                });
            }
        });
        Self {
            origin,
            seen,
            narrow,
        }
    }

    pub(super) fn repository(&self, path: &str, token: Option<&Path>) -> Repository {
        self.opened_by(path, &serde_json::json!({ "token_file": token }))
    }

    fn opened_by(&self, path: &str, credentials: &serde_json::Value) -> Repository {
        let mut fields = credentials.clone();
        fields["url"] = format!("{}/{path}", self.origin).into();
        fields["path"] = "/r".into();
        serde_json::from_value(fields).expect("a repository")
    }

    fn requests(&self) -> Vec<(String, Option<String>)> {
        let request = |seen| match seen {
            Seen::Request {
                path,
                authorization,
                in_arguments,
            } => {
                assert!(!in_arguments, "the token is in a process's arguments");
                (path, authorization)
            }
            Seen::Closed => panic!("nothing stalls here"),
        };
        self.seen.try_iter().map(request).collect()
    }
}

fn serve(
    mut connection: TcpStream,
    (root, narrow): (&Path, &Narrow),
    other: &str,
    seen: &mpsc::Sender<Seen>,
) {
    let mut reader = BufReader::new(connection.try_clone().expect("a descriptor"));
    let mut line = String::new();
    let mut headers = HashMap::new();
    reader.read_line(&mut line).expect("a request");
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return;
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![
        0;
        headers
            .get("content-length")
            .map_or(0, |length| length.parse().expect("a number"))
    ];
    reader.read_exact(&mut body).expect("a body");

    let authorization = headers.get("authorization").cloned();
    let request = Seen::Request {
        path: target.clone(),
        authorization: authorization.clone(),
        in_arguments: token_in_arguments(),
    };
    // The test may have ended.
    let _ = seen.send(request);
    let (behaviour, path) = target[1..].split_once('/').unwrap_or_default();
    let wanted = match behaviour {
        "password" => format!("Basic {BASIC_OF_ADA}"),
        "bearer" => format!("Bearer {TOKEN}"),
        _ => format!("Basic {BASIC}"),
    };
    let allowed = authorization.is_some_and(|value| value == wanted);
    let redirect = |to: &str| format!("301 Moved\r\nLocation: {to}/open/{path}\r\n").into_bytes();
    if behaviour == "generous" {
        body = without_depth(&body);
        let length = body.len().to_string();
        headers.insert("content-length".to_owned(), length);
    }
    if behaviour == "old" {
        headers.remove("git-protocol");
    }
    let lie = |answer: Vec<u8>| match behaviour {
        "lying" => narrow.lies(&answer),
        _ => answer,
    };
    let answer = match behaviour {
        "moved" => redirect("").to_vec(),
        "elsewhere" => redirect(other),
        "stall" => {
            let _ = reader.read(&mut [0]);
            let _ = seen.send(Seen::Closed);
            return;
        }
        "private" | "password" | "bearer" if !allowed => {
            let echo = headers.get("authorization").cloned().unwrap_or_default();
            format!("401 No\r\nWWW-Authenticate: Basic realm=\"{echo}\"\r\nContent-Type: text/plain\r\n\r\nno: {echo}").into_bytes()
        }
        "forbidden" => b"403 No\r\n".to_vec(),
        _ => lie(backend(root, &method, path, &headers, &body)),
    };
    let split = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map_or(answer.len(), |at| at + 4);
    let (head, content) = answer.split_at(split);
    let head = String::from_utf8_lossy(head).trim_end().to_owned();
    let sent = if behaviour == "cut" && method == "POST" {
        content.len() / 2
    } else if behaviour == "narrow" {
        narrow.lets_through(content)
    } else {
        content.len()
    };
    let _ = write!(
        connection,
        "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.len()
    );
    let _ = connection.write_all(&content[..sent]);
}

/// The same request, for all there is.
fn without_depth(body: &[u8]) -> Vec<u8> {
    let word = b"deepen ";
    let at = body.windows(word.len()).position(|window| window == word);
    let Some(start) = at.map(|at| at - 4) else {
        return body.to_vec();
    };
    let length = str::from_utf8(&body[start..start + 4]).expect("a length");
    let length = usize::from_str_radix(length, 16).expect("a length");
    [&body[..start], &body[start + length..]].concat()
}

/// git-http-backend(1), by CGI.
fn backend(
    root: &Path,
    method: &str,
    target: &str,
    headers: &HashMap<String, String>,
    body: &[u8],
) -> Vec<u8> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let header = |name| headers.get(name).map_or("", String::as_str);
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .envs([
            ("PATH_INFO", format!("/{path}").as_str()),
            ("QUERY_STRING", query),
            ("REQUEST_METHOD", method),
        ])
        .envs([
            ("CONTENT_TYPE", header("content-type")),
            ("HTTP_CONTENT_ENCODING", header("content-encoding")),
        ])
        .envs([
            ("CONTENT_LENGTH", header("content-length")),
            ("GIT_PROTOCOL", header("git-protocol")),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("git is installed");
    let _ = child.stdin.take().expect("a pipe").write_all(body);
    let answer = child.wait_with_output().expect("ends").stdout;
    match answer.strip_prefix(b"Status: ") {
        Some(answer) => answer.to_vec(),
        None => [b"200 OK\r\n", answer.as_slice()].concat(),
    }
}

/// While a request is answered, git waits with its arguments on display.
fn token_in_arguments() -> bool {
    let processes = std::fs::read_dir("/proc")
        .expect("lists")
        .filter_map(Result::ok);
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .any(|line| {
            [TOKEN, BASIC, BASIC_OF_ADA]
                .iter()
                .any(|secret| line.contains(secret))
        })
}

/// An upstream, its server and the token's file.
struct Hosted {
    setting: Setting,
    upstreams: TempDir,
    upstream: Git,
    server: Server,
    other: Server,
    token: PathBuf,
    secrets: TempDir,
}

impl Hosted {
    fn new() -> Self {
        let (upstreams, secrets, upstream) = (
            TempDir::new().expect("a directory"),
            TempDir::new().expect("a directory"),
            Git::new(),
        );
        upstream.write(
            "file",
            &"content that does not compress to nothing 0123456789\n".repeat(500),
        );
        upstream.commit("first");
        let token = secrets.path().join("token");
        std::fs::write(&token, format!("{TOKEN}\n")).expect("writes");
        let other = Server::start(upstreams.path(), "");
        let server = Server::start(upstreams.path(), &other.origin);
        let hosted = Self {
            setting: Setting::new(),
            upstreams,
            upstream,
            server,
            other,
            token,
            secrets,
        };
        hosted.publish();
        hosted
    }

    fn publish(&self) {
        self.publish_as("r.git", &self.upstream);
    }

    fn publish_as(&self, name: &str, upstream: &Git) {
        let bare = self.upstreams.path().join(name);
        if !bare.exists() {
            upstream.run(&[
                "init",
                "-q",
                "--bare",
                "-b",
                "main",
                bare.to_str().expect("UTF-8"),
            ]);
        }
        upstream.run(&["push", "-q", bare.to_str().expect("UTF-8"), "main"]);
    }

    async fn failure(&self, path: &str, token: Option<&Path>) -> GitError {
        let error = self
            .setting
            .mirrors
            .resolve(&self.server.repository(path, token))
            .await
            .expect_err(path);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(TOKEN) && !shown.contains(BASIC), "{shown}");
        error
    }
}

#[tokio::test]
async fn a_token_opens_a_repository_and_is_found_nowhere() {
    let hosted = Hosted::new();
    let repository = hosted
        .server
        .repository("private/r.git", Some(&hosted.token));
    let inside = hosted.setting.fresh(&repository).await;
    assert_sound(&inside);
    assert_eq!(
        inside.run(&["config", "remote.origin.url"]).trim(),
        repository.url
    );
    hosted.upstream.write("file", "2");
    let second = hosted.upstream.commit("second");
    hosted.publish();
    assert_eq!(
        hosted.setting.resolve(&repository).await.commit.as_str(),
        second
    );
    assert_eq!(
        hosted.setting.fetch(&repository, &inside).await,
        Bundle::Written
    );

    let requests = hosted.server.requests();
    assert!(requests.len() >= 4, "{requests:?}");
    for needle in [TOKEN, BASIC, &BASIC[20..]] {
        for place in [hosted.setting.dir.path(), inside.path()] {
            assert_eq!(bytes_below(place, needle.as_bytes()), Vec::<PathBuf>::new());
        }
    }
    // The search would find it.
    assert_eq!(
        bytes_below(hosted.secrets.path(), TOKEN.as_bytes()),
        [hosted.token.as_path()].map(Path::to_owned)
    );
}

#[tokio::test]
async fn submodules_are_opened_by_what_is_for_their_host_and_by_nothing_else() {
    let hosted = Hosted::new();
    let sub = Git::new();
    let commit = sub.commit("sub");
    hosted.publish_as("sub.git", &sub);
    let (server, other) = (&hosted.server, &hosted.other);
    let top = &hosted.upstream;
    submodules::name(top, "same", "../sub.git", &commit);
    let elsewhere = format!("{}/open/sub.git", other.origin);
    submodules::name(top, "other", &elsewhere, &commit);
    submodules::commit_index(top, "submodules");
    hosted.publish();
    let fields = serde_json::json!({
        "token_file": hosted.token,
        "submodules": true,
        "submodule_urls": [server.origin, other.origin],
    });
    let repository = server.opened_by("private/r.git", &fields);
    let of_other = other.repository("open/r.git", Some(&hosted.token));
    for (config, sent_there) in [(&[][..], false), (&[of_other], true)] {
        let setting = Setting::new();
        setting
            .with_all(&repository, config)
            .await
            .expect("is allowed");
        let asked = server.requests();
        let of_sub = |(path, _): &&(String, _)| path.starts_with("/private/sub.git");
        assert!(asked.iter().filter(of_sub).count() > 0, "{asked:?}");
        assert!(asked.iter().all(|(_, sent)| sent.is_some()), "{asked:?}");
        let there = other.requests();
        assert!(!there.is_empty());
        let right = there.iter().all(|(_, sent)| sent.is_some() == sent_there);
        assert!(right, "{there:?}");
    }
}

/// A helper of a shell's words. Not a script in a file: while another test forks, that is busy.
fn helper(script: &str) -> serde_json::Value {
    serde_json::json!({ "credential_command": ["/bin/sh", "-c", script, "helper"] })
}

#[tokio::test]
async fn a_password_and_what_a_program_says_open_a_repository_and_are_found_nowhere() {
    let hosted = Hosted::new();
    let token = hosted.token.display();
    let password = format!("echo username=ada; echo \"password=$(cat '{token}')\"");
    let bearer = format!("echo authtype=Bearer; echo \"credential=$(cat '{token}')\"");
    for (path, credentials) in [
        (
            "password/r.git",
            serde_json::json!({ "username": "ada", "password_file": hosted.token }),
        ),
        ("password/r.git", helper(&password)),
        ("bearer/r.git", helper(&bearer)),
    ] {
        let setting = Setting::new();
        let repository = hosted.server.opened_by(path, &credentials);
        let inside = setting.fresh(&repository).await;
        assert_sound(&inside);
        let requests = hosted.server.requests();
        assert!(requests.len() >= 2, "{requests:?}");
        assert!(
            requests.iter().all(|(_, sent)| sent.is_some()),
            "{requests:?}"
        );
        for needle in [TOKEN, BASIC_OF_ADA] {
            for place in [setting.dir.path(), inside.path()] {
                let found = bytes_below(place, needle.as_bytes());
                assert_eq!(found, Vec::<PathBuf>::new());
            }
        }
    }
}

#[tokio::test]
async fn credentials_of_every_kind_stay_on_their_own_host() {
    let hosted = Hosted::new();
    let says = format!("echo username=ada; echo password={TOKEN}");
    for credentials in [
        serde_json::json!({ "username": "ada", "password_file": hosted.token }),
        helper(&says.replace(TOKEN, "token-canary-7f3\"\"a")),
    ] {
        let elsewhere = hosted.server.opened_by("elsewhere/r.git", &credentials);
        let error = hosted.setting.mirrors.resolve(&elsewhere).await;
        let error = error.expect_err("is not followed");
        assert!(matches!(error, GitError::Redirected { .. }), "{error}");
        assert!(
            hosted
                .server
                .requests()
                .iter()
                .all(|(_, sent)| sent.is_some())
        );
        // Not even to see what is there.
        assert_eq!(hosted.other.requests(), []);
    }
}

#[tokio::test]
async fn a_program_that_says_nothing_or_the_wrong_thing_is_told_apart() {
    let hosted = Hosted::new();
    let failure = async |script: &str| {
        let repository = hosted.server.opened_by("password/r.git", &helper(script));
        let error = hosted.setting.mirrors.resolve(&repository).await;
        let error = error.expect_err(script);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("canary"), "{shown}");
        error
    };
    for script in ["true", "echo canary; echo canary >&2; exit 1", "yes canary"] {
        let error = failure(script).await;
        assert!(
            matches!(error, GitError::CredentialCommand { .. }),
            "{error}"
        );
    }
    // Nobody was asked with nothing.
    assert_eq!(hosted.server.requests(), []);
    let error = failure("echo username=ada; echo password=canary-wrong").await;
    assert!(
        matches!(error, GitError::CredentialsRefused { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let hosted = Hosted::new();
    let wrong = hosted.secrets.path().join("wrong");
    std::fs::write(&wrong, format!("{TOKEN}-wrong")).expect("writes");
    let error = hosted.failure("private/r.git", Some(&wrong)).await;
    assert!(
        matches!(error, GitError::CredentialsRefused { .. }),
        "{error}"
    );
    let error = hosted.failure("forbidden/r.git", Some(&hosted.token)).await;
    assert!(
        matches!(error, GitError::CredentialsRefused { .. }),
        "{error}"
    );
    let error = hosted.failure("private/r.git", None).await;
    assert!(
        matches!(error, GitError::CredentialsMissing { .. }),
        "{error}"
    );
    let error = hosted
        .failure("private/absent.git", Some(&hosted.token))
        .await;
    assert!(
        matches!(error, GitError::NoSuchRepository { .. }),
        "{error}"
    );
    let error = hosted
        .failure("private/r.git", Some(&hosted.secrets.path().join("absent")))
        .await;
    assert!(matches!(error, GitError::Credentials(_)), "{error}");
    // A refusal leaves no mirror, not even a part of one.
    let left = std::fs::read_dir(hosted.setting.dir.path().join("mirrors"))
        .expect("lists")
        .filter_map(Result::ok);
    let left: Vec<_> = left
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|name| name != "lock"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_token_follows_a_redirect_only_on_its_own_host() {
    let hosted = Hosted::new();
    for token in [Some(hosted.token.as_path()), None] {
        hosted
            .setting
            .resolve(&hosted.server.repository("moved/r.git", token))
            .await;
    }
    let open = hosted.server.requests();
    assert!(
        open.iter()
            .any(|(path, token)| path.starts_with("/open/") && token.is_some()),
        "{open:?}"
    );

    let error = hosted.failure("elsewhere/r.git", Some(&hosted.token)).await;
    let GitError::Redirected { to, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(to, format!("{}/open/r.git", hosted.other.origin));
    assert_eq!(hosted.other.requests(), []);
    // Without a token there is nothing to lose.
    hosted
        .setting
        .resolve(&hosted.server.repository("elsewhere/r.git", None))
        .await;
    let there = hosted.other.requests();
    assert!(!there.is_empty());
    assert!(there.iter().all(|(_, token)| token.is_none()), "{there:?}");
}

#[tokio::test]
async fn connections_that_fail_are_told_apart() {
    let hosted = Hosted::new();
    let error = hosted.failure("cut/r.git", Some(&hosted.token)).await;
    assert!(matches!(error, GitError::Transfer { .. }), "{error}");
    let dir = hosted.setting.dir.path().join("impatient");
    let impatient = Mirrors::with_stall(
        (dir.clone(), dir),
        ("OF_A_TEST", String::new()),
        Room::boundless(),
        Duration::from_secs(1),
    );
    let stalling = hosted.server.repository("stall/r.git", Some(&hosted.token));
    let error = impatient
        .resolve(&stalling)
        .await
        .expect_err("nothing comes");
    assert!(matches!(error, GitError::Transfer { .. }), "{error}");

    // Bound and not listened on: nobody else gets the port, and it refuses.
    let closed = tokio::net::TcpSocket::new_v4().expect("a socket");
    closed
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("binds");
    let address = closed.local_addr().expect("an address");
    let repository = repository(&format!("http://{address}/r.git"), None);
    let error = hosted
        .setting
        .mirrors
        .resolve(&repository)
        .await
        .expect_err("nobody listens");
    assert!(matches!(error, GitError::Unreachable { .. }), "{error}");
    // The same directory serves the next one.
    hosted
        .setting
        .resolve(&hosted.server.repository("open/r.git", None))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn git_is_killed_with_the_future_that_waits_for_it() {
    let hosted = Hosted::new();
    let Hosted {
        setting, server, ..
    } = &hosted;
    let repository = server.repository("stall/r.git", None);
    let mirrors = setting.another();
    let task = tokio::spawn(async move { mirrors.resolve(&repository).await });
    // The worker's thread is needed while the server's channel is waited for.
    tokio::task::block_in_place(|| {
        assert!(matches!(server.seen.recv(), Ok(Seen::Request { .. })));
        task.abort();
        // Left alone, git would give up after this time.
        let closed = server.seen.recv_timeout(STALL / 2);
        assert!(
            matches!(closed, Ok(Seen::Closed)),
            "git's connection is still open"
        );
    });
    assert!(task.await.expect_err("was aborted").is_cancelled());
}
