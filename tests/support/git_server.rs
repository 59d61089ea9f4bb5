//! A git server on loopback: git's own `http-backend` behind a token, and repositories to serve.
//!
//! The HTTP side is small on purpose: one thread per connection, one request per connection. It
//! hands the body on as it came (compressed bodies included) and keeps a list of what was asked,
//! so that a test can tell a clone from a fetch and a cached setup from a second one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::acceptor::Acceptor;
use super::secrets::{command_lines_with, environments_with};
use super::{GUARD, Scratch, succeed};

/// A running server; ended with all its repositories at the end.
#[derive(Debug)]
pub(crate) struct GitServer {
    shared: Arc<Shared>,
    acceptor: Acceptor,
    arrivals: Mutex<mpsc::Receiver<()>>,
}

/// A request that the server has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GitRequest {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    /// Whether it came with the token.
    pub(crate) authorized: bool,
    /// Whether it came with any credentials.
    pub(crate) with_credentials: bool,
    /// The body, still compressed if the client compressed it.
    pub(crate) body: Vec<u8>,
    /// Command lines on this host that held the token while the client waited; anybody can read those.
    pub(crate) exposed: Vec<String>,
    /// Names of processes with the token in their environment meanwhile.
    pub(crate) holders: Vec<String>,
}

/// A repository as its developers see it: a work tree whose commits are pushed to the server.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// The developers' work tree.
    pub(crate) work: PathBuf,
    /// For a config: without credentials.
    pub(crate) url: String,
    /// What the server serves.
    pub(crate) bare: PathBuf,
}

#[derive(Debug)]
struct Shared {
    root: Scratch,
    token: Option<String>,
    requests: Mutex<Vec<GitRequest>>,
    arrival: mpsc::Sender<()>,
}

impl GitServer {
    /// Serves to whoever sends `token`, as a bearer token or as the password of basic authentication.
    pub(crate) fn with_token(token: &str) -> Self {
        Self::start(Some(token.to_owned()))
    }

    /// Serves to everybody.
    pub(crate) fn open() -> Self {
        Self::start(None)
    }

    fn start(token: Option<String>) -> Self {
        let (arrival, arrivals) = mpsc::channel();
        let shared = Arc::new(Shared {
            root: Scratch::new(),
            token,
            requests: Mutex::default(),
            arrival,
        });
        let serving = Arc::clone(&shared);
        let acceptor = Acceptor::start(Acceptor::listen().0, move |stream| {
            // A client that goes away in the middle is its own problem.
            let _ = serve(&stream, &serving);
        });
        Self {
            shared,
            acceptor,
            arrivals: Mutex::new(arrivals),
        }
    }

    /// Makes a repository with one commit of these files on `main`.
    pub(crate) fn repository(&self, name: &str, files: &[(&str, &str)]) -> Upstream {
        let url = format!("http://{}/{name}.git", self.acceptor.address());
        repository_below(self.shared.root.path(), name, files, |_| url)
    }

    /// Where it listens on loopback.
    pub(crate) fn port(&self) -> u16 {
        self.acceptor.address().port()
    }

    /// Everything that was asked so far.
    pub(crate) fn requests(&self) -> Vec<GitRequest> {
        self.shared
            .requests
            .lock()
            .expect("no connection panicked")
            .clone()
    }

    /// Waits until somebody has asked for something since the server was started or since the last wait.
    pub(crate) fn wait_for_request(&self) {
        self.arrivals
            .lock()
            .expect("no waiter panicked")
            .recv_timeout(GUARD)
            .expect("nobody asked the git server");
    }

    /// How often a client asked for objects: once for a clone and once for each fetch that found news.
    pub(crate) fn packs(&self) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.wants_objects())
            .count()
    }
}

impl GitRequest {
    /// Whether it asks for objects; protocol 2 lists references with the same method and path.
    pub(crate) fn wants_objects(&self) -> bool {
        self.authorized
            && self.method == "POST"
            && self.target.ends_with("/git-upload-pack")
            && !contains(&self.plain_body(), b"command=ls-refs")
    }

    /// Whether it names commits that the client has, as a fetch does and a clone cannot.
    pub(crate) fn has_commits(&self) -> bool {
        contains(&self.plain_body(), b"have ")
    }

    fn plain_body(&self) -> Vec<u8> {
        if !self.body.starts_with(&[0x1f, 0x8b]) {
            return self.body.clone();
        }
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(self.body.as_slice())
            .read_to_end(&mut plain)
            .expect("the client compressed the body badly");
        plain
    }
}

impl Upstream {
    /// Writes the files, commits them on the current branch and pushes; returns the commit.
    pub(crate) fn commit(&self, files: &[(&str, &str)]) -> String {
        for (name, content) in files {
            let path = self.work.join(name);
            let parent = path.parent().expect("a file has a parent");
            std::fs::create_dir_all(parent).expect("cannot make a directory in the work tree");
            std::fs::write(&path, content).expect("cannot write into the work tree");
        }
        git(&self.work, &["add", "--all"]);
        git(
            &self.work,
            &["commit", "--quiet", "--allow-empty", "--message=change"],
        );
        self.push();
        self.head()
    }

    /// Runs git in the work tree, for what `commit` cannot say, and pushes all branches and tags.
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        let output = git(&self.work, arguments);
        self.push();
        output
    }

    /// The commit that the work tree is at.
    pub(crate) fn head(&self) -> String {
        git(&self.work, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// Lets those push that have the server's token.
    pub(crate) fn receive(&self) {
        git(&self.bare, &["config", "http.receivepack", "true"]);
    }

    fn push(&self) {
        let bare = self.bare.to_str().expect("a scratch path is text");
        git(&self.work, &["push", "--quiet", "--force", "--all", bare]);
        git(&self.work, &["push", "--quiet", "--force", "--tags", bare]);
    }
}

/// Makes `served/<name>.git` below `root`, with one commit of these files on `main`; `url` says where it is to be
/// had.
pub(super) fn repository_below(
    root: &Path,
    name: &str,
    files: &[(&str, &str)],
    url: impl FnOnce(&Path) -> String,
) -> Upstream {
    let bare = root.join(format!("served/{name}.git"));
    let work = root.join(format!("work/{name}"));
    for directory in [&bare, &work] {
        std::fs::create_dir_all(directory).expect("cannot make a repository's directory");
    }
    git(
        &bare,
        &["init", "--quiet", "--bare", "--initial-branch=main"],
    );
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    let upstream = Upstream {
        url: url(&bare),
        work,
        bare,
    };
    upstream.commit(files);
    upstream
}

/// Runs git on the host in `directory`, free of the caller's settings.
pub(crate) fn git(directory: &Path, arguments: &[&str]) -> String {
    succeed(
        Command::new("git")
            .current_dir(directory)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_AUTHOR_NAME", "Ada")
            .env("GIT_AUTHOR_EMAIL", "ada@example.org")
            .env("GIT_COMMITTER_NAME", "Ada")
            .env("GIT_COMMITTER_EMAIL", "ada@example.org")
            .args(arguments),
    )
}

/// The head of a request, header names in lower case.
struct Head {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(GUARD))?;
    let mut reader = BufReader::new(stream);
    let Some(head) = read_head(&mut reader)? else {
        return Ok(());
    };
    if head.header("expect").is_some() {
        (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let body = read_body(&mut reader, &head)?;
    let authorized = is_authorized(shared.token.as_deref(), head.header("authorization"));
    let token = shared.token.as_deref();
    let request = GitRequest {
        method: head.method.clone(),
        target: head.target.clone(),
        authorized,
        with_credentials: head.header("authorization").is_some(),
        body: body.clone(),
        exposed: token.map(command_lines_with).unwrap_or_default(),
        holders: token.map(environments_with).unwrap_or_default(),
    };
    shared
        .requests
        .lock()
        .expect("no connection panicked")
        .push(request);
    // The server may be ending.
    let _ = shared.arrival.send(());
    let answer = if authorized {
        http_backend(&head, &body, &shared.root.join("served"))?
    } else {
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\n\
          Content-Length: 0\r\nConnection: close\r\n\r\n"
            .to_vec()
    };
    (&*stream).write_all(&answer)
}

fn read_head(reader: &mut impl BufRead) -> std::io::Result<Option<Head>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Some(Head {
        method,
        target,
        headers,
    }))
}

/// The body by its length or in chunks; see RFC 9112, 6 and 7.1.
fn read_body(reader: &mut impl BufRead, head: &Head) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if head.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            reader.by_ref().take(size).read_to_end(&mut body)?;
            reader.read_line(&mut String::new())?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length = head
        .header("content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    reader.take(length).read_to_end(&mut body)?;
    Ok(body)
}

fn is_authorized(token: Option<&str>, header: Option<&str>) -> bool {
    let Some(token) = token else {
        return true;
    };
    match header.and_then(|header| header.split_once(' ')) {
        Some(("Bearer", sent)) => sent == token,
        Some(("Basic", sent)) => BASE64
            .decode(sent)
            .ok()
            .and_then(|pair| String::from_utf8(pair).ok())
            .and_then(|pair| Some(pair.split_once(':')?.1 == token))
            .unwrap_or(false),
        _ => false,
    }
}

/// One request through git-http-backend(1), which is a CGI program; see RFC 3875.
fn http_backend(head: &Head, body: &[u8], root: &Path) -> std::io::Result<Vec<u8>> {
    let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", &head.method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_LENGTH", body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    for (header, variable) in [
        ("content-type", "CONTENT_TYPE"),
        ("content-encoding", "HTTP_CONTENT_ENCODING"),
        ("git-protocol", "HTTP_GIT_PROTOCOL"),
    ] {
        if let Some(value) = head.header(header) {
            command.env(variable, value);
        }
    }
    let mut backend = command.spawn()?;
    let mut stdin = backend.stdin.take().expect("stdin is a pipe");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(body));
        backend.wait_with_output()
    })?
    .stdout;
    let end = find(&output, b"\r\n\r\n").ok_or_else(|| std::io::Error::other("no CGI header"))?;
    let header = String::from_utf8_lossy(&output[..end]).into_owned();
    let content = &output[end + 4..];
    let (status, fields): (Vec<&str>, Vec<&str>) = header
        .lines()
        .partition(|line| line.starts_with("Status: "));
    let status = status
        .first()
        .map_or("200 OK", |line| &line["Status: ".len()..]);
    let mut answer = format!(
        "HTTP/1.1 {status}\r\n{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        fields.join("\r\n"),
        content.len()
    )
    .into_bytes();
    answer.extend_from_slice(content);
    Ok(answer)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    find(haystack, needle).is_some()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
