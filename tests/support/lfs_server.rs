//! A server of large files before a git server, at one port: git-lfs's batch API, objects with ranges, and ways to
//! misbehave.
//!
//! What is no request of git-lfs goes on to the git server as it is. One request per connection.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::acceptor::Acceptor;
use super::secrets::{command_lines_with, environments_with};
use super::{GUARD, GitServer, Upstream};

/// A running server; ended at the end.
#[derive(Debug)]
pub(crate) struct LfsServer {
    pub(crate) git: Option<GitServer>,
    shared: Arc<Shared>,
    address: SocketAddr,
    _acceptor: Acceptor,
}

/// What it does otherwise than a good one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Good,
    /// Each answer with an object has so many bytes at most, and then the connection is cut.
    Cut(usize),
    /// The same, and what is asked for from the middle comes from the start.
    CutWithoutRanges(usize),
    /// Other bytes, as many.
    Wrong,
    /// More bytes, without end.
    Endless,
    /// Less bytes, as if they were all.
    Short,
    /// It has none.
    Missing,
    /// It gives none, whether it has it or not.
    Unwilling,
    /// It knows nothing of large files.
    NoServer,
    /// No answer to a batch.
    Garbage,
    /// Links to objects lead to this origin.
    Links(String),
    /// Links are answered with a redirect to this origin.
    Redirects(String),
    /// The batch is answered with a redirect to this origin.
    Moved(String),
    /// Parts that are not what was asked for.
    WrongParts,
}

/// A request that it has got.
#[derive(Debug, Clone)]
pub(crate) struct LfsRequest {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) authorization: Option<String>,
    /// What a link of its own wants with it.
    pub(crate) ticket: Option<String>,
    pub(crate) range: Option<String>,
    /// Objects that a batch asked for.
    pub(crate) objects: usize,
    /// Command lines that showed the token meanwhile, and names of processes whose environment did.
    pub(crate) exposed: Vec<String>,
    pub(crate) holders: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    git: Option<u16>,
    token: Option<String>,
    address: SocketAddr,
    objects: Mutex<HashMap<String, Vec<u8>>>,
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<LfsRequest>>,
}

/// The name of an object, and the pointer to it.
pub(crate) fn pointer(content: &[u8]) -> (String, String) {
    let digest = Sha256::digest(content);
    let oid: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let version = "version https://git-lfs.github.com/spec/v1";
    let text = format!("{version}\noid sha256:{oid}\nsize {}\n", content.len());
    (oid, text)
}

impl LfsServer {
    /// Before this server; large files are for whoever sends `token`, if there is one.
    pub(crate) fn before(git: GitServer, token: Option<&str>) -> Self {
        Self::start(Some(git), token)
    }

    /// Without one.
    pub(crate) fn alone() -> Self {
        Self::start(None, None)
    }

    /// Without one, for whoever sends `token`.
    pub(crate) fn token_alone(token: &str) -> Self {
        Self::start(None, Some(token))
    }

    fn start(git: Option<GitServer>, token: Option<&str>) -> Self {
        let (listener, address) = Acceptor::listen();
        let shared = Arc::new(Shared {
            git: git.as_ref().map(GitServer::port),
            token: token.map(str::to_owned),
            address,
            objects: Mutex::default(),
            behaviour: Mutex::new(Behaviour::Good),
            requests: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let acceptor = Acceptor::start(listener, move |stream| {
            // A client that goes away in the middle is its own problem.
            let _ = serve(&stream, &serving);
        });
        Self {
            git,
            shared,
            address,
            _acceptor: acceptor,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a repository with one commit of these files on `main`, and `*.bin` kept elsewhere.
    pub(crate) fn repository(&self, name: &str, files: &[(&str, &str)]) -> Upstream {
        let git = self.git.as_ref().expect("it stands before one");
        let mut upstream = git.repository(name, files);
        upstream.url = format!("{}/{name}.git", self.origin());
        upstream.commit(&[(".gitattributes", ATTRIBUTES)]);
        upstream
    }

    /// Keeps an object; gives the pointer to it.
    pub(crate) fn keep(&self, content: &[u8]) -> String {
        let (oid, text) = pointer(content);
        let mut objects = self.shared.objects.lock().expect("no connection panicked");
        objects.insert(oid, content.to_vec());
        text
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self
            .shared
            .behaviour
            .lock()
            .expect("no connection panicked") = behaviour;
    }

    /// What was asked so far, but for what went to the git server.
    pub(crate) fn requests(&self) -> Vec<LfsRequest> {
        let requests = self.shared.requests.lock();
        requests.expect("no connection panicked").clone()
    }
}

/// What an `Authorization` header says that has the token.
pub(crate) fn basic(token: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("ada:{token}")))
}

/// What git-lfs writes for `git lfs track '*.bin'`.
pub(crate) const ATTRIBUTES: &str = "*.bin filter=lfs diff=lfs merge=lfs -text\n";

/// A request's first line and headers, as they came and taken apart.
struct Head {
    raw: Vec<u8>,
    method: String,
    target: String,
    headers: HashMap<String, String>,
}

fn read_head(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Head>> {
    let mut raw = Vec::new();
    loop {
        let count = reader.read_until(b'\n', &mut raw)?;
        if count == 0 || raw.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let text = String::from_utf8_lossy(&raw).into_owned();
    let mut lines = text.lines();
    let mut words = lines
        .next()
        .unwrap_or_default()
        .split(' ')
        .map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    Ok(Some(Head {
        method,
        target,
        headers: headers.collect(),
        raw,
    }))
}

fn serve(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(GUARD))?;
    let mut reader = BufReader::new(stream);
    let Some(head) = read_head(&mut reader)? else {
        return Ok(());
    };
    // Through a proxy the whole URL is asked for.
    let path = head
        .target
        .strip_prefix("http://")
        .map_or(head.target.as_str(), |rest| {
            rest.find('/').map_or("/", |at| &rest[at..])
        });
    let is_own = path.contains("/info/lfs/") || path.starts_with("/lfs-objects/");
    if let (false, Some(git)) = (is_own, shared.git) {
        return pass_on(stream, &mut reader, &head, git);
    }
    let length = head.headers.get("content-length");
    let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let token = shared.token.as_deref();
    let header = |name: &str| head.headers.get(name).cloned();
    let request = LfsRequest {
        method: head.method.clone(),
        target: path.to_owned(),
        authorization: header("authorization"),
        ticket: header("x-ticket"),
        range: header("range"),
        objects: asked["objects"].as_array().map_or(0, Vec::len),
        exposed: token.map(command_lines_with).unwrap_or_default(),
        holders: token.map(environments_with).unwrap_or_default(),
    };
    let requests = shared.requests.lock();
    requests.expect("no connection panicked").push(request);
    let behaviour = shared
        .behaviour
        .lock()
        .expect("no connection panicked")
        .clone();
    match (path.strip_prefix("/lfs-objects/"), head.method.as_str()) {
        (Some(oid), _) => object(stream, shared, &behaviour, (oid, &head)),
        (None, _) => batch(stream, shared, &behaviour, (&head, &asked)),
    }
}

/// Hands what came and comes to the git server, and what that answers back.
fn pass_on(
    stream: &TcpStream,
    reader: &mut BufReader<&TcpStream>,
    head: &Head,
    port: u16,
) -> std::io::Result<()> {
    let git = TcpStream::connect(("127.0.0.1", port))?;
    (&git).write_all(&head.raw)?;
    (&git).write_all(reader.buffer())?;
    let (client, to_git) = (stream.try_clone()?, git.try_clone()?);
    let pump = std::thread::spawn(move || std::io::copy(&mut &client, &mut &to_git));
    std::io::copy(&mut &git, &mut &*stream)?;
    stream.shutdown(std::net::Shutdown::Both)?;
    let _ = git.shutdown(std::net::Shutdown::Both);
    let _ = pump.join();
    Ok(())
}

fn answer(mut stream: &TcpStream, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

fn batch(
    stream: &TcpStream,
    shared: &Shared,
    behaviour: &Behaviour,
    (head, asked): (&Head, &Value),
) -> std::io::Result<()> {
    if let Behaviour::Moved(to) = behaviour {
        let location = format!("Location: {to}{}\r\n", head.target);
        return answer(stream, "307 Moved", &location, b"");
    }
    if *behaviour == Behaviour::NoServer {
        return answer(stream, "404 Not Found", "", b"");
    }
    if !is_authorized(shared, head) {
        let sent = head
            .headers
            .get("authorization")
            .cloned()
            .unwrap_or_default();
        let said = json!({ "message": format!("no: {sent}") }).to_string();
        return answer(stream, "401 Unauthorized", "", said.as_bytes());
    }
    if *behaviour == Behaviour::Garbage {
        return answer(stream, "200 OK", "", b"<html>");
    }
    let own = format!("http://{}", shared.address);
    let origin = match behaviour {
        Behaviour::Links(to) => to,
        _ => &own,
    };
    let objects = shared.objects.lock().expect("no connection panicked");
    let told = asked["objects"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| {
            let oid = one["oid"].as_str().unwrap_or_default();
            if *behaviour == Behaviour::Unwilling {
                return json!({ "oid": oid, "size": one["size"],
                "error": { "code": 403, "message": "not now" } });
            }
            let there = objects.contains_key(oid) && *behaviour != Behaviour::Missing;
            if !there {
                return json!({ "oid": oid, "size": one["size"],
                "error": { "code": 404, "message": "no such object" } });
            }
            let link = json!({ "href": format!("{origin}/lfs-objects/{oid}?signed=x"),
            "header": { "X-Ticket": "ticket-of-a-link" } });

            json!({ "oid": oid, "size": one["size"], "actions": { "download": link } })
        });
    let said = json!({ "transfer": "basic", "objects": told.collect::<Vec<_>>() }).to_string();
    drop(objects);
    let kind = "Content-Type: application/vnd.git-lfs+json\r\n";
    answer(stream, "200 OK", kind, said.as_bytes())
}

fn object(
    mut stream: &TcpStream,
    shared: &Shared,
    behaviour: &Behaviour,
    (oid, head): (&str, &Head),
) -> std::io::Result<()> {
    let oid = oid.split('?').next().unwrap_or_default();
    if let Behaviour::Redirects(to) = behaviour {
        let location = format!("Location: {to}/lfs-objects/{oid}\r\n");
        return answer(stream, "302 Found", &location, b"");
    }
    let content = shared
        .objects
        .lock()
        .expect("no connection panicked")
        .get(oid)
        .cloned();
    let Some(mut content) = content else {
        return answer(stream, "404 Not Found", "", b"");
    };
    let whole = content.len();
    let from = head.headers.get("range");
    let from = from.and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    });
    let from: usize = from.filter(|from| *from < whole).unwrap_or(0);
    let part = |from: usize| format!("Content-Range: bytes {from}-{}/{whole}\r\n", whole - 1);
    let cut = |most: usize, status: &str, headers: &str, content: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
            content.len()
        );
        (&*stream).write_all(head.as_bytes())?;
        (&*stream).write_all(&content[..most.min(content.len())])
    };
    match behaviour {
        Behaviour::Cut(most) if from > 0 => {
            cut(*most, "206 Partial Content", &part(from), &content[from..])
        }
        Behaviour::Cut(most) | Behaviour::CutWithoutRanges(most) => {
            cut(*most, "200 OK", "", &content)
        }
        Behaviour::WrongParts if from > 0 => {
            answer(stream, "206 Partial Content", &part(0), &content)
        }
        Behaviour::WrongParts => cut(whole / 2, "200 OK", "", &content),
        Behaviour::Wrong => {
            content.reverse();
            content[0] ^= 1;
            answer(stream, "200 OK", "", &content)
        }
        Behaviour::Short => answer(stream, "200 OK", "", &content[..whole / 2]),
        Behaviour::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            loop {
                stream.write_all(b"1000\r\n")?;
                stream.write_all(&[7; 0x1000])?;
                stream.write_all(b"\r\n")?;
            }
        }
        _ if from > 0 => answer(stream, "206 Partial Content", &part(from), &content[from..]),
        _ => answer(stream, "200 OK", "", &content),
    }
}

fn is_authorized(shared: &Shared, head: &Head) -> bool {
    let Some(token) = &shared.token else {
        return true;
    };
    let sent = head.headers.get("authorization");
    let sent = sent.and_then(|sent| sent.strip_prefix("Basic "));
    let sent = sent.and_then(|sent| BASE64.decode(sent).ok());
    sent.is_some_and(|sent| sent.ends_with(format!(":{token}").as_bytes()))
}
