//! A git server behind TLS: a certificate that signed itself, and Python's `ssl` before the plain server.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::{GitServer, Scratch, Upstream, succeed};

/// Takes a certificate with its key, the port to hand on to, and says on which port it listens.
const FRONT: &str = "
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(('127.0.0.1', 0))
print(listener.getsockname()[1], flush=True)
def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
def serve(connection):
    try:
        with context.wrap_socket(connection, server_side=True) as outer:
            with socket.create_connection(('127.0.0.1', int(sys.argv[3]))) as inner:
                threading.Thread(target=pump, args=(outer, inner), daemon=True).start()
                pump(inner, outer)
    except OSError:
        pass
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
";

/// A running server; ended at the end.
#[derive(Debug)]
pub(crate) struct TlsServer {
    pub(crate) plain: GitServer,
    front: Child,
    port: u16,
    scratch: Scratch,
}

impl TlsServer {
    /// Before this server.
    pub(crate) fn before(plain: GitServer) -> Self {
        let port = plain.port();
        Self::before_port(plain, port)
    }

    /// Before what stands before this server at a port of its own.
    pub(crate) fn before_port(plain: GitServer, inner: u16) -> Self {
        let scratch = Scratch::new();
        for name in ["own", "other"] {
            let mut openssl = Command::new("openssl");
            openssl
                .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
                .args([
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-subj",
                    "/CN=derrick-test",
                ])
                .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
                .arg(scratch.join(format!("{name}.key")))
                .arg("-out")
                .arg(scratch.join(format!("{name}.pem")));
            succeed(&mut openssl);
        }
        let mut front = Command::new("/usr/bin/python3")
            .args(["-c", FRONT])
            .arg(scratch.join("own.pem"))
            .arg(scratch.join("own.key"))
            .arg(inner.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cannot start python3; tests/run installs it");
        let mut said = String::new();
        let stdout = front.stdout.take().expect("stdout is a pipe");
        let mut stdout = BufReader::new(stdout);
        stdout.read_line(&mut said).expect("it says its port");
        let port = said.trim().parse().expect("a port");
        Self {
            plain,
            front,
            port,
            scratch,
        }
    }

    /// Makes a repository with one commit of these files on `main`.
    pub(crate) fn repository(&self, name: &str, files: &[(&str, &str)]) -> Upstream {
        let mut upstream = self.plain.repository(name, files);
        upstream.url = format!("https://127.0.0.1:{}/{name}.git", self.port);
        upstream
    }

    /// The file of the server's own certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        self.scratch.join("own.pem")
    }

    /// The file of one that it does not have.
    pub(crate) fn other_authority(&self) -> PathBuf {
        self.scratch.join("other.pem")
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.front.kill();
        let _ = self.front.wait();
    }
}
