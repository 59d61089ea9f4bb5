//! A client of derrick's HTTP API, as a harness would write one: JSON in, JSON out.
//!
//! It knows the wire format and nothing of derrick's code, so a change of the format breaks a test.

mod execs;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use ureq::http::{Request, header::HeaderMap};

use super::GUARD;
pub(crate) use execs::{Event, Events, Exec, Opened};

/// The API of one provider.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    /// Host and port.
    address: String,
    token: Option<String>,
    agent: ureq::Agent,
}

/// What the server answered, whatever the status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// A workspace at a provider.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    pub(crate) id: String,
    pub(crate) api: Api,
}

/// What `cmd_with_output` answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) output: String,
    pub(crate) exit_code: i64,
}

/// A request under way; may be dropped, whatever becomes of it.
#[derive(Debug)]
pub(crate) struct Pending(JoinHandle<Result<Answer, ureq::Error>>);

impl Pending {
    /// Waits for the answer; fails the test if there is none.
    pub(crate) fn answer(self) -> Answer {
        self.outcome()
            .unwrap_or_else(|error| panic!("there was no answer: {error}"))
    }

    /// Waits for the answer or for the connection to break off.
    pub(crate) fn outcome(self) -> Result<Answer, ureq::Error> {
        self.0.join().expect("a request does not panic")
    }
}

impl Api {
    /// A client of the server at `address`, host and port, that sends `token` if there is one.
    pub(crate) fn new(address: &str, token: Option<&str>) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(GUARD))
            // A proxy of the test's environment has no business between two loopback sockets.
            .proxy(None)
            .build()
            .new_agent();
        Self {
            address: address.to_owned(),
            token: token.map(str::to_owned),
            agent,
        }
    }

    /// Host and port of the server.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The same server, spoken to with another token or none.
    pub(crate) fn with_token(&self, token: Option<&str>) -> Self {
        Self::new(&self.address, token)
    }

    /// Sends a request; `body` goes out as JSON.
    pub(crate) fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.try_request(method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path} got no answer: {error}"))
    }

    fn try_request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ureq::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut response = match (method, body) {
            (_, Some(body)) => {
                let body = serde_json::to_vec(body).expect("a JSON value can be written");
                request = request.header("content-type", "application/json");
                self.agent.run(request.body(body)?)?
            }
            ("POST" | "PUT", None) => self.agent.run(request.body(Vec::new())?)?,
            (_, None) => self.agent.run(request.body(())?)?,
        };
        let body = response
            .body_mut()
            .with_config()
            .limit(512 << 20)
            .read_to_vec()?;
        Ok(Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body,
        })
    }

    /// Sends a request in the background.
    pub(crate) fn start(&self, path: &str, body: Value) -> Pending {
        let (api, path) = (self.clone(), path.to_owned());
        Pending(std::thread::spawn(move || {
            api.try_request("POST", &path, Some(&body))
        }))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, Some(body))
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.request("DELETE", path, None)
    }

    /// Sends the bytes as they are and returns whatever comes back until the server closes.
    ///
    /// For requests that a well-behaved client cannot send.
    pub(crate) fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("cannot connect to derrick");
        stream
            .set_read_timeout(Some(GUARD))
            .expect("a socket takes a timeout");
        stream.write_all(request).expect("cannot send the request");
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .expect("the server neither answered nor closed");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Makes a workspace.
    pub(crate) fn create(&self) -> Workspace {
        self.create_with(&json!({}))
    }

    /// Makes a workspace from the given body.
    pub(crate) fn create_with(&self, body: &Value) -> Workspace {
        let answer = self.post("/workspaces", body).expect(200).json();
        let id = answer["id"]
            .as_str()
            .unwrap_or_else(|| panic!("no id in {answer}"));
        self.workspace(id)
    }

    /// Makes a workspace with these limits where the host enforces them, else without.
    pub(crate) fn create_limited(&self, limits: &Value) -> Workspace {
        let answer = self.post("/workspaces", &json!({ "limits": limits }));
        if answer.status == 200 {
            let id = answer.json()["id"].as_str().expect("an id").to_owned();
            return self.workspace(&id);
        }
        let problem = answer.problem(422);
        assert_eq!(problem["type"], "urn:derrick:problem:limit-unenforceable");
        self.create()
    }

    /// A workspace that is there already.
    pub(crate) fn workspace(&self, id: &str) -> Workspace {
        Workspace {
            id: id.to_owned(),
            api: self.clone(),
        }
    }

    /// The ids of all workspaces.
    pub(crate) fn list(&self) -> Vec<String> {
        let answer = self.get("/workspaces").expect(200).json();
        answer["workspaces"]
            .as_array()
            .unwrap_or_else(|| panic!("no workspaces in {answer}"))
            .iter()
            .map(|workspace| {
                workspace["id"]
                    .as_str()
                    .expect("a listed workspace has an id")
                    .to_owned()
            })
            .collect()
    }
}

impl Answer {
    /// Fails the test unless the status is this.
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "the server said {}", self.text());
        self
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in the answer {}", self.text()))
    }

    pub(crate) fn content_type(&self) -> &str {
        self.headers
            .get("content-type")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The problem details of RFC 9457; fails the test unless it is one with this status.
    pub(crate) fn problem(self, status: u16) -> Value {
        let answer = self.expect(status);
        assert_eq!(
            answer.content_type(),
            "application/problem+json",
            "{}",
            answer.text()
        );
        let problem = answer.json();
        for field in ["type", "title", "detail", "request_id"] {
            assert!(problem[field].is_string(), "no {field} in {problem}");
        }
        problem
    }
}

impl Workspace {
    pub(crate) fn path(&self, action: &str) -> String {
        format!("/workspaces/{}/{action}", self.id)
    }

    /// The API that it is at.
    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    /// Where a file of it is in the API; `path` is absolute, and every byte but letters and slashes is
    /// sent percent-encoded.
    pub(crate) fn file(&self, path: impl AsRef<[u8]>) -> String {
        let mut sent = self.path("files");
        for byte in path.as_ref() {
            match byte {
                b'/' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => sent.push(char::from(*byte)),
                other => sent.push_str(&format!("%{other:02X}")),
            }
        }
        sent
    }

    /// Asks for something of the file at an absolute path; `query` begins with its `?`.
    pub(crate) fn on_file(&self, method: &str, path: &str, query: &str, body: &[u8]) -> Answer {
        let kind = match method {
            "POST" => "application/json",
            _ => "application/octet-stream",
        };
        let target = format!("{}{query}", self.file(path));
        self.api
            .send(method, &target, &[("content-type", kind)], body)
    }

    /// Asks for one of the workspace's actions by name.
    pub(crate) fn post(&self, action: &str, body: &Value) -> Answer {
        self.api.post(&self.path(action), body)
    }

    /// Runs a command line to its end.
    pub(crate) fn sh(&self, cmd: &str) -> Ran {
        self.sh_with(cmd, &json!({}))
    }

    /// Runs a command line with further fields of the request: `env`, `working_dir`, `timeout`.
    pub(crate) fn sh_with(&self, cmd: &str, fields: &Value) -> Ran {
        let mut body = fields.clone();
        body["cmd"] = json!(cmd);
        let answer = self.post("cmd_with_output", &body).expect(200).json();
        Ran {
            output: answer["output"]
                .as_str()
                .unwrap_or_else(|| panic!("no output in {answer}"))
                .to_owned(),
            exit_code: answer["exit_code"]
                .as_i64()
                .unwrap_or_else(|| panic!("no exit_code in {answer}")),
        }
    }

    /// Runs a command line that has to succeed, and returns what it printed.
    pub(crate) fn ok(&self, cmd: &str) -> String {
        let ran = self.sh(cmd);
        assert_eq!(ran.exit_code, 0, "{cmd}\n{}", ran.output);
        ran.output
    }

    /// Runs a command line in the background.
    pub(crate) fn start(&self, cmd: &str) -> Pending {
        self.api
            .start(&self.path("cmd_with_output"), json!({ "cmd": cmd }))
    }

    /// Runs a Python program, which needs no quoting, with the base's own interpreter.
    pub(crate) fn python(&self, program: &str) -> Ran {
        self.sh(&format!(
            "/usr/bin/python3 - <<'END OF PROGRAM'\n{program}\nEND OF PROGRAM\n"
        ))
    }

    /// Starts processes of every kind: in the foreground of a command, in the background, in a session of its own.
    pub(crate) fn keep_busy(&self) {
        self.ok("mkfifo /tmp/started");
        self.start("(sleep 1000 &); setsid -f sleep 1000; echo > /tmp/started; exec sleep 1000");
        self.ok("read line < /tmp/started");
    }

    /// Runs a command line that prints nothing back: `null`, or a failure.
    pub(crate) fn cmd(&self, cmd: &str) -> Answer {
        self.post("cmd", &json!({ "cmd": cmd }))
    }

    pub(crate) fn write_file(&self, path: &str, content: &[u8]) {
        let body = json!({ "path": path, "content": BASE64.encode(content) });
        let answer = self.post("write_file", &body).expect(200).json();
        assert_eq!(answer, json!({ "success": true }));
    }

    pub(crate) fn read_file(&self, path: &str) -> Vec<u8> {
        let answer = self.post("read_file", &json!({ "path": path })).expect(200);
        assert_eq!(answer.content_type(), "application/octet-stream");
        answer.body
    }

    /// Back to the state after setup; returns the receipt.
    pub(crate) fn reset(&self) -> Value {
        self.api
            .request("POST", &self.path("reset"), None)
            .expect(200)
            .json()
    }

    /// The same, and waits until what was discarded is gone.
    pub(crate) fn reset_and_wait(&self) -> Value {
        self.api
            .request("POST", &self.path("reset?wait=disposal"), None)
            .expect(200)
            .json()
    }

    /// Brings upstream's new commits in; returns what changed.
    pub(crate) fn fetch_with(&self, wanted: &Value) -> Value {
        self.api
            .request("POST", &self.path("fetch"), Some(wanted))
            .expect(200)
            .json()
    }

    pub(crate) fn fetch(&self) -> Value {
        self.api
            .request("POST", &self.path("fetch"), None)
            .expect(200)
            .json()
    }

    pub(crate) fn describe(&self) -> Value {
        self.api
            .get(&format!("/workspaces/{}", self.id))
            .expect(200)
            .json()
    }

    /// Ends the workspace; whether there was one.
    pub(crate) fn delete(&self) -> bool {
        let answer = self
            .api
            .delete(&format!("/workspaces/{}", self.id))
            .expect(200)
            .json();
        answer
            .as_bool()
            .unwrap_or_else(|| panic!("{answer} is neither true nor false"))
    }
}

impl Ran {
    /// Fails the test unless the command ended with this code.
    pub(crate) fn expect(self, exit_code: i64) -> String {
        assert_eq!(self.exit_code, exit_code, "{}", self.output);
        self.output
    }
}

/// Asserts the problem, and that it names the file.
pub(crate) fn problem(answer: Answer, status: u16, word: &str, path: &str) {
    let problem = answer.problem(status);
    assert_eq!(problem["type"], format!("urn:derrick:problem:{word}"));
    let detail = problem["detail"].as_str().expect("a text");
    assert!(detail.contains(path), "no {path} in {detail}");
}
