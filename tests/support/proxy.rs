//! An http proxy on loopback: it hands requests on, opens tunnels (CONNECT), and wants a password if it is told
//! to; RFC 9110, 9.3.6 and RFC 9112, 3.2.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::GUARD;
use super::acceptor::Acceptor;
use super::secrets::{command_lines_with, environments_with};

/// A running proxy; ended at the end.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    acceptor: Acceptor,
}

/// What it was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// `CONNECT host:port` or `GET http://host:port/…`.
    pub(crate) what: String,
    /// Whether it came with the password, where one is wanted.
    pub(crate) allowed: bool,
    /// Whether it came with what is for the host behind it.
    pub(crate) with_credentials: bool,
    /// Command lines that held the password meanwhile.
    pub(crate) exposed: Vec<String>,
    /// Names of processes with it in their environment.
    pub(crate) holders: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    /// User and password with a colon between them.
    wanted: Option<String>,
    asked: Mutex<Vec<Asked>>,
}

impl Proxy {
    /// For everybody, or for whoever has this user and password, with a colon between them.
    pub(crate) fn start(wanted: Option<&str>) -> Self {
        let shared = Arc::new(Shared {
            wanted: wanted.map(str::to_owned),
            asked: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let acceptor = Acceptor::start(Acceptor::listen().0, move |stream| {
            // A client that goes away in the middle is its own problem.
            let _ = serve(&stream, &serving);
        });
        Self { shared, acceptor }
    }

    /// Without credentials.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.acceptor.address())
    }

    /// With these.
    pub(crate) fn url_with(&self, credentials: &str) -> String {
        format!("http://{credentials}@{}", self.acceptor.address())
    }

    /// Everything that it was asked for so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared
            .asked
            .lock()
            .expect("no connection panicked")
            .clone()
    }
}

fn serve(client: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    client.set_read_timeout(Some(GUARD))?;
    let mut reader = BufReader::new(client);
    // A refused client asks again on the same connection.
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let allowed = shared.wanted.as_ref().is_none_or(|wanted| {
            let right = format!("Proxy-Authorization: Basic {}", BASE64.encode(wanted));
            head.contains(&right)
        });
        let words: Vec<&str> = head
            .first()
            .map_or(Vec::new(), |line| line.split(' ').collect());
        let [method, target, version] = words[..] else {
            return Err(std::io::Error::other("no request"));
        };
        let password = shared
            .wanted
            .as_deref()
            .and_then(|wanted| wanted.split_once(':'));
        let shown = |look: fn(&str) -> Vec<String>| password.map(|(_, it)| look(it));
        let asked = Asked {
            what: format!("{method} {target}"),
            allowed,
            with_credentials: head.iter().any(|line| line.starts_with("Authorization:")),
            exposed: shown(command_lines_with).unwrap_or_default(),
            holders: shown(environments_with).unwrap_or_default(),
        };
        shared
            .asked
            .lock()
            .expect("no connection panicked")
            .push(asked);
        if !allowed {
            (&*client).write_all(
                b"HTTP/1.1 407 Who are you?\r\nProxy-Authenticate: Basic realm=\"proxy\"\r\n\
                  Content-Length: 0\r\n\r\n",
            )?;
            continue;
        }
        let origin = if method == "CONNECT" {
            let origin = TcpStream::connect(target)?;
            (&*client).write_all(b"HTTP/1.1 200 Go on\r\n\r\n")?;
            origin
        } else {
            let rest = target.strip_prefix("http://").unwrap_or_default();
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let mut origin = TcpStream::connect(host)?;
            write!(origin, "{method} /{path} {version}\r\n")?;
            for line in head
                .iter()
                .skip(1)
                .filter(|line| !line.starts_with("Proxy-"))
            {
                write!(origin, "{line}\r\n")?;
            }
            origin.write_all(b"\r\n")?;
            origin
        };
        return splice(reader, client, &origin);
    }
}

/// Hands bytes on in both directions until the origin has ended.
fn splice(
    mut reader: BufReader<&TcpStream>,
    client: &TcpStream,
    origin: &TcpStream,
) -> std::io::Result<()> {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                if (&*origin).write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = origin.shutdown(Shutdown::Write);
        });
        let copied = std::io::copy(&mut &*origin, &mut &*client);
        let _ = client.shutdown(Shutdown::Both);
        copied.map(drop)
    })
}
