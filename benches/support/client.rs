//! derrick's HTTP API on one connection that is kept open.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

/// Bytes of a body that are sent in one write with their header, at most.
const AT_ONCE: usize = 64 * 1024;

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    address: String,
    stream: BufReader<TcpStream>,
    request: Vec<u8>,
    line: String,
    body: Vec<u8>,
}

/// A workspace's id and the paths of its actions.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    path: String,
}

impl Client {
    /// Connects to the provider at `address`, host and port.
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("derrick takes connections");
        // A request is sent at once and whole: there is nothing to wait for.
        stream.set_nodelay(true).expect("a socket takes the option");
        Self {
            address: address.to_owned(),
            stream: BufReader::new(stream),
            request: Vec::new(),
            line: String::new(),
            body: Vec::new(),
        }
    }

    /// Makes a workspace.
    pub(crate) fn create(&mut self) -> Workspace {
        self.create_with(&json!({}))
    }

    /// Makes a workspace as `body` says.
    pub(crate) fn create_with(&mut self, body: &Value) -> Workspace {
        self.send("POST", "/workspaces", body.to_string().as_bytes());
        let answer: Value = serde_json::from_slice(&self.body).expect("the answer is JSON");
        let id = answer["id"].as_str().expect("a new workspace has an id");
        Workspace {
            path: format!("/workspaces/{id}"),
        }
    }

    /// Runs a command line to its end; it has to succeed.
    pub(crate) fn exec(&mut self, workspace: &Workspace, cmd: &str) {
        let body = json!({ "cmd": cmd }).to_string();
        self.send("POST", &format!("{}/cmd", workspace.path), body.as_bytes());
    }

    /// Runs a command line that has to succeed, and takes what it printed; how many bytes came.
    pub(crate) fn exec_with_output(&mut self, workspace: &Workspace, cmd: &str) -> usize {
        let body = json!({ "cmd": cmd }).to_string();
        let path = format!("{}/cmd_with_output", workspace.path);
        self.send("POST", &path, body.as_bytes());
        self.body.len()
    }

    /// Runs a program to its end by `POST execs`.
    pub(crate) fn run(&mut self, workspace: &Workspace, argv: &[&str]) {
        let body = json!({ "argv": argv, "wait": true }).to_string();
        self.send(
            "POST",
            &format!("{}/execs", workspace.path),
            body.as_bytes(),
        );
    }

    /// Starts a command as `body` says; the path of its exec.
    pub(crate) fn start(&mut self, workspace: &Workspace, body: &Value) -> String {
        let path = format!("{}/execs", workspace.path);
        self.send("POST", &path, body.to_string().as_bytes());
        let exec: Value = serde_json::from_slice(&self.body).expect("the answer is JSON");
        let id = exec["id"].as_str().expect("a new exec has an id");
        format!("{path}/{id}")
    }

    /// Takes what an exec prints as it prints it, to its end; how many bytes came.
    pub(crate) fn follow(&mut self, exec: &str) -> usize {
        self.send("GET", &format!("{exec}/output?follow=true"), b"");
        self.body.len()
    }

    /// Kills an exec with all its processes.
    pub(crate) fn kill(&mut self, exec: &str) {
        self.send("DELETE", exec, b"");
    }

    /// What changed, with a query behind it such as `?format=patch`; how many bytes came.
    pub(crate) fn changes(&mut self, workspace: &Workspace, query: &str) -> usize {
        self.send("GET", &format!("{}/changes{query}", workspace.path), b"");
        self.body.len()
    }

    /// Back to the state after setup.
    pub(crate) fn reset(&mut self, workspace: &Workspace) {
        self.send("POST", &format!("{}/reset", workspace.path), b"");
    }

    /// The same, with a query behind it such as `?wait=disposal`; the receipt.
    pub(crate) fn reset_with(&mut self, workspace: &Workspace, query: &str) -> Value {
        self.send("POST", &format!("{}/reset{query}", workspace.path), b"");
        serde_json::from_slice(&self.body).expect("the receipt is JSON")
    }

    /// Waits until derrick makes no sandbox and has one ready, so that what is measured next has the
    /// machine to itself.
    pub(crate) fn settle(&mut self) {
        loop {
            self.send("GET", "/metrics", b"");
            let text = String::from_utf8_lossy(&self.body);
            let level = |state: &str| {
                let name = format!("derrick_pool{{state=\"{state}\"}} ");
                let mut lines = text.lines();
                lines.find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok())
            };
            if level("making") == Some(0.0) && level("ready").is_some_and(|ready| ready >= 1.0) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Ends the workspace.
    pub(crate) fn delete(&mut self, workspace: Workspace) {
        let Workspace { path } = workspace;
        self.send("DELETE", &path, b"");
    }

    /// What derrick says of itself: nothing is done, so this is the cost of a request as such.
    pub(crate) fn health(&mut self) -> Value {
        self.send("GET", "/health", b"");
        serde_json::from_slice(&self.body).expect("the answer is JSON")
    }

    /// Gets a file or what else a query asks for; how many bytes came.
    pub(crate) fn get(&mut self, workspace: &Workspace, path: &str) -> usize {
        self.send("GET", &format!("{}/files{path}", workspace.path), b"");
        self.body.len()
    }

    /// Puts a file.
    pub(crate) fn put(&mut self, workspace: &Workspace, path: &str, content: &[u8]) {
        self.send("PUT", &format!("{}/files{path}", workspace.path), content);
    }

    /// Sends one request and reads its answer into `body`; every status but 200 and 201 ends the bench.
    fn send(&mut self, method: &str, path: &str, body: &[u8]) {
        self.request.clear();
        write!(
            self.request,
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        )
        .expect("a vector takes everything");
        // A small request goes out at once and whole; the bytes of a large one are not copied first.
        let apart = if body.len() > AT_ONCE { body } else { &[] };
        if apart.is_empty() {
            self.request.extend_from_slice(body);
        }
        for part in [&self.request, apart] {
            self.stream
                .get_mut()
                .write_all(part)
                .expect("derrick takes the request");
        }
        let status = self.read_line().to_owned();
        let mut length = None;
        let mut chunked = false;
        loop {
            let line = self.read_line();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').expect("a header has a colon");
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok();
            }
            chunked |= name.eq_ignore_ascii_case("transfer-encoding");
        }
        if chunked {
            self.read_chunks();
        } else {
            self.body.resize(length.expect("an answer has a length"), 0);
            self.stream
                .read_exact(&mut self.body)
                .expect("the answer is whole");
        }
        assert!(
            status.starts_with("HTTP/1.1 200") || status.starts_with("HTTP/1.1 201"),
            "{method} {path}: {status}: {}",
            String::from_utf8_lossy(&self.body)
        );
    }

    /// Reads a body without a length, RFC 9112, section 7.1.
    fn read_chunks(&mut self) {
        let mut read = 0;
        loop {
            let size = usize::from_str_radix(self.read_line(), 16).expect("a chunk has a size");
            if self.body.len() < read + size {
                self.body.resize(read + size, 0);
            }
            let room = &mut self.body[read..read + size];
            self.stream.read_exact(room).expect("the answer is whole");
            read += size;
            self.read_line();
            if size == 0 {
                break;
            }
        }
        self.body.truncate(read);
    }

    fn read_line(&mut self) -> &str {
        self.line.clear();
        self.stream
            .read_line(&mut self.line)
            .expect("derrick answers");
        self.line.trim_end()
    }
}
