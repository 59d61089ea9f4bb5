//! Execs, their output and the events of a workspace, as a client of the API sees them.

use std::io::{BufRead, BufReader, Read};

use serde_json::{Value, json};
use ureq::http::{Request, header::HeaderMap};

use super::{Answer, Api, Pending, Workspace};

/// An exec of a workspace.
#[derive(Debug, Clone)]
pub(crate) struct Exec {
    pub(crate) id: String,
    path: String,
    api: Api,
}

/// An answer that is read as it comes; dropped, its connection is cut off.
pub(crate) struct Opened {
    pub(crate) headers: HeaderMap,
    reader: Box<dyn Read + Send>,
}

/// Server-Sent Events, as they come.
pub(crate) struct Events(BufReader<Opened>);

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) data: Value,
}

impl Api {
    /// Sends a request with these headers and, as its body, these bytes.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.try_send(method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path} got no answer: {error}"))
    }

    /// Likewise; the error where the connection breaks off.
    pub(crate) fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, ureq::Error> {
        let request = self.with_headers(method, path, headers);
        let mut response = match method {
            "GET" | "HEAD" | "DELETE" => self.agent.run(request.body(())?)?,
            _ => self.agent.run(request.body(body)?)?,
        };
        let body = response.body_mut().with_config().limit(512 << 20);
        let body = body.read_to_vec()?;
        Ok(Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body,
        })
    }

    /// Asks for something that is read as it comes.
    pub(crate) fn open(&self, path: &str, headers: &[(&str, &str)]) -> Opened {
        self.try_open(path, headers)
            .unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Likewise; the error where the connection breaks off.
    pub(crate) fn try_open(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Opened, ureq::Error> {
        let request = self.with_headers("GET", path, headers).body(());
        let request = request.expect("the request is one");
        Ok(Opened::new(path, Ok(self.agent.run(request)?)))
    }

    /// Makes a workspace from the given body that ends when what this gives is dropped: its events.
    pub(crate) fn create_tied(&self, body: &Value) -> (Workspace, Events) {
        let mut body = body.clone();
        body["tied"] = json!(true);
        let headers = [("content-type", "application/json")];
        let request = self.with_headers("POST", "/workspaces", &headers);
        let request = request.body(body.to_string()).expect("the request is one");
        let opened = Opened::new("/workspaces", self.agent.run(request));
        let mut events = Events(BufReader::new(opened));
        let created = events.next().expect("it tells that it was made");
        assert_eq!(created.name, "created", "{created:?}");
        let id = created.data["id"].as_str().expect("it has an id");
        (self.workspace(id), events)
    }

    fn with_headers(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> ureq::http::request::Builder {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }
}

impl Workspace {
    /// Starts an exec, which has to be possible.
    pub(crate) fn exec(&self, body: &Value) -> Exec {
        let started = self.post("execs", body).expect(201).json();
        self.exec_of(&started)
    }

    /// Starts an exec of a command line.
    pub(crate) fn exec_sh(&self, cmd: &str) -> Exec {
        self.exec(&json!({ "cmd": cmd }))
    }

    /// Asks for an exec in the background.
    pub(crate) fn start_exec(&self, body: Value) -> Pending {
        self.api.start(&self.path("execs"), body)
    }

    /// Runs a command line to its end as an exec; the exec and its output.
    pub(crate) fn run(&self, cmd: &str) -> Value {
        self.run_with(&json!({ "cmd": cmd }))
    }

    /// Runs an exec to its end; the exec and its output.
    pub(crate) fn run_with(&self, body: &Value) -> Value {
        let mut body = body.clone();
        body["wait"] = json!(true);
        let ended = self.post("execs", &body).expect(201).json();
        assert_eq!(ended["state"], "ended", "{ended}");
        ended
    }

    /// Starts an exec with an idempotency key, or does not.
    pub(crate) fn exec_with_key(&self, key: &str, body: &Value) -> Answer {
        let headers = [
            ("content-type", "application/json"),
            ("idempotency-key", key),
        ];
        let body = body.to_string();
        self.api
            .send("POST", &self.path("execs"), &headers, body.as_bytes())
    }

    /// The exec that is told of.
    pub(crate) fn exec_of(&self, told: &Value) -> Exec {
        let id = told["id"].as_str();
        self.exec_named(id.unwrap_or_else(|| panic!("no id in {told}")))
    }

    /// The exec of that id.
    pub(crate) fn exec_named(&self, id: &str) -> Exec {
        Exec {
            id: id.to_owned(),
            path: self.path(&format!("execs/{id}")),
            api: self.api.clone(),
        }
    }

    /// All execs that are told of.
    pub(crate) fn execs(&self) -> Vec<Value> {
        let list = self.api.get(&self.path("execs")).expect(200).json();
        list["execs"].as_array().expect("a list").clone()
    }

    /// Asks for something of the workspace's by name.
    pub(crate) fn get(&self, what: &str) -> Answer {
        self.api.get(&self.path(what))
    }

    /// What happens to it from now on, or after that event.
    pub(crate) fn events(&self, after: Option<&str>) -> Events {
        let after = after.map(|id| ("last-event-id", id));
        let headers: Vec<_> = after.into_iter().collect();
        let opened = self.api.open(&self.path("events"), &headers);
        Events(BufReader::new(opened))
    }
}

impl Exec {
    /// Its place in the API.
    pub(crate) fn path(&self, of_it: &str) -> String {
        format!("{}{of_it}", self.path)
    }

    /// What is told of it now.
    pub(crate) fn show(&self) -> Value {
        self.api.get(&self.path).expect(200).json()
    }

    /// Waits for its end; how it is told.
    pub(crate) fn ended(&self) -> Value {
        let ended = self.api.get(&self.path("?wait=100")).expect(200).json();
        assert_eq!(ended["state"], "ended", "{ended}");
        ended
    }

    /// Waits for its end; its outcome.
    pub(crate) fn outcome(&self) -> Value {
        self.ended()["outcome"].clone()
    }

    /// Waits for its end in the background.
    pub(crate) fn start_waiting(&self) -> Pending {
        let (api, path) = (self.api.clone(), self.path("?wait=100"));
        Pending(std::thread::spawn(move || {
            api.try_request("GET", &path, None)
        }))
    }

    /// Kills it; how it is told then.
    pub(crate) fn kill(&self) -> Value {
        let ended = self.api.delete(&self.path).expect(200).json();
        assert_eq!(ended["state"], "ended", "{ended}");
        ended
    }

    /// Output by the words of a query, as bytes.
    pub(crate) fn output(&self, query: &str) -> Answer {
        let answer = self.api.get(&self.path(&format!("/output?{query}")));
        let answer = answer.expect(200);
        assert_eq!(answer.content_type(), "application/octet-stream");
        answer
    }

    /// One of its streams, to its end.
    pub(crate) fn printed(&self, stream: &str) -> String {
        let query = format!("stream={stream}&follow=true");
        String::from_utf8(self.output(&query).body).expect("it is text")
    }

    /// Output by the words of a query, as it comes.
    pub(crate) fn follow(&self, query: &str) -> Opened {
        let path = self.path(&format!("/output?follow=true&{query}"));
        self.api.open(&path, &[])
    }

    /// Output by the words of a query, as events, after the one of this id.
    pub(crate) fn follow_events(&self, query: &str, after: Option<&str>) -> Events {
        let path = self.path(&format!("/output?follow=true&{query}"));
        let mut headers = vec![("accept", "text/event-stream")];
        headers.extend(after.map(|id| ("last-event-id", id)));
        Events(BufReader::new(self.api.open(&path, &headers)))
    }

    /// Waits until it has printed this.
    pub(crate) fn until_printed(&self, text: &str) {
        let mut seen = Vec::new();
        let mut output = self.follow("");
        while !String::from_utf8_lossy(&seen).contains(text) {
            let more = output.some();
            let seen_all = String::from_utf8_lossy(&seen);
            assert!(!more.is_empty(), "it ended, having printed {seen_all:?}");
            seen.extend(more);
        }
    }

    /// Writes to its stdin.
    pub(crate) fn write(&self, bytes: &[u8]) -> Answer {
        self.stdin("", bytes)
    }

    /// Writes to its stdin, and closes it.
    pub(crate) fn write_last(&self, bytes: &[u8]) -> Answer {
        self.stdin("?eof=true", bytes)
    }

    fn stdin(&self, query: &str, bytes: &[u8]) -> Answer {
        let headers = [("content-type", "application/octet-stream")];
        let path = self.path(&format!("/stdin{query}"));
        self.api.send("POST", &path, &headers, bytes)
    }

    /// Writes to its stdin in the background.
    pub(crate) fn start_writing(&self, bytes: Vec<u8>) -> Pending {
        let (api, path) = (self.api.clone(), self.path("/stdin"));
        Pending(std::thread::spawn(move || {
            let headers = [("content-type", "application/octet-stream")];
            api.try_send("POST", &path, &headers, &bytes)
        }))
    }

    /// Signals it.
    pub(crate) fn signal(&self, body: &Value) -> Answer {
        self.api.post(&self.path("/signal"), body)
    }

    /// Gives its terminal another size.
    pub(crate) fn resize(&self, body: &Value) -> Answer {
        self.api.post(&self.path("/resize"), body)
    }
}

impl Opened {
    fn new(path: &str, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Self {
        let response = response.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(response.status(), 200, "{path}");
        let headers = response.headers().clone();
        let reader = Box::new(response.into_body().into_reader());
        Self { headers, reader }
    }

    /// What comes next; nothing at the end.
    pub(crate) fn some(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 64 * 1024];
        let count = self.read(&mut bytes).expect("the connection lasts");
        bytes.truncate(count);
        bytes
    }

    /// The text of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Read for Opened {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl Iterator for Events {
    type Item = Event;

    /// Waits for the next one; none when the server has closed.
    fn next(&mut self) -> Option<Event> {
        let mut event = Event {
            name: String::new(),
            id: String::new(),
            data: Value::Null,
        };
        loop {
            let mut line = String::new();
            let count = self.0.read_line(&mut line).expect("the connection lasts");
            if count == 0 {
                return None;
            }
            let line = line.strip_suffix('\n').unwrap_or(&line);
            match line.split_once(':') {
                None if line.is_empty() && !event.name.is_empty() => return Some(event),
                // The end of a comment, which says that the connection lives.
                None => assert_eq!(line, ""),
                Some(("event", name)) => event.name = name.trim_start().to_owned(),
                Some(("id", id)) => event.id = id.trim_start().to_owned(),
                Some(("data", data)) => {
                    event.data = serde_json::from_str(data).expect("the data is JSON");
                }
                Some((field, _)) => assert_eq!(field, "", "an unknown field"),
            }
        }
    }
}
