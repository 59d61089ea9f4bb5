//! The routes: each parses, calls the provider and replies.
//!
//! The first eight are bosun-ai/derrick's, in its wire format.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::App;
use super::body::{self, Base64File, Bounds};
use super::guard::guard;
use super::observe::observe;
use super::problem::{Kind, Problem};
use crate::provider::{
    Asked, Command, Description, Error, Fetched, FilePath, Finished, Outcome, Receipt, WorkspaceId,
};

const OUTCOME: HeaderName = HeaderName::from_static("derrick-outcome");
const OMITTED_BYTES: HeaderName = HeaderName::from_static("derrick-omitted-bytes");

/// Most of a failed command's output that its problem repeats, in bytes.
const MAX_TAIL: usize = 64 * 1024;

/// Size of the pieces in which a file is sent, in bytes.
const PIECE: usize = 64 * 1024;

/// Longest deadline that is kept; a longer one, 136 years, is as good as this one.
const MAX_TIMEOUT: u64 = u32::MAX as u64;

/// All routes, with the layers that each request passes.
pub(super) fn table(app: Arc<App>) -> Router {
    let one = "/workspaces/{id}";
    let under = |name: &str| format!("{one}/{name}");
    Router::new()
        .route("/health", get(health))
        .route("/workspaces", get(list).post(create))
        .route(one, get(describe).delete(remove))
        .route(&under("cmd"), post(cmd))
        .route(&under("cmd_with_output"), post(cmd_with_output))
        .route(&under("write_file"), post(write_file))
        .route(&under("read_file"), post(read_file))
        .route(&under("reset"), post(reset))
        .route(&under("fetch"), post(fetch))
        .fallback(no_such_route)
        .method_not_allowed_fallback(method_not_allowed)
        // The last one is the outermost.
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard))
        .layer(middleware::from_fn(observe))
        .with_state(app)
}

#[derive(Serialize)]
struct Health {
    healthy: bool,
    #[serde(flatten)]
    enforcement: Map<String, Value>,
}

async fn health(State(app): State<Arc<App>>) -> Json<Health> {
    let mut enforcement = match app.provider.enforcement() {
        Value::Object(fields) => fields,
        other => Map::from_iter([("enforcement".to_owned(), other)]),
    };
    enforcement.remove("healthy");
    Json(Health {
        healthy: true,
        enforcement,
    })
}

#[derive(Serialize)]
struct Workspace {
    id: WorkspaceId,
}

#[derive(Serialize)]
struct Workspaces {
    workspaces: Vec<Workspace>,
}

async fn list(State(app): State<Arc<App>>) -> Json<Workspaces> {
    let ids = app.provider.list();
    let workspaces = ids.into_iter().map(|id| Workspace { id }).collect();
    Json(Workspaces { workspaces })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct CreateRequest {
    env: Option<BTreeMap<String, String>>,
}

async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Json<Workspace>, Problem> {
    let body = app.collect(request, body::MAX_BODY).await?;
    let request: CreateRequest = body::parse(&body.bytes)?;
    let env = checked_env(request.env)?;
    let id = app.provider.create(env).await?;
    Ok(Json(Workspace { id }))
}

async fn describe(State(app): State<Arc<App>>, Id(id): Id) -> Result<Json<Description>, Problem> {
    Ok(Json(app.provider.describe(&id)?))
}

/// Not [`Id`]: text that names no workspace is `false` too, as it is for bosun-ai/derrick.
async fn remove(State(app): State<Arc<App>>, params: RawPathParams) -> Result<Json<bool>, Problem> {
    match id_text(&params).parse() {
        Ok(id) => Ok(Json(app.provider.remove(&id).await?)),
        Err(_) => Ok(Json(false)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct CommandRequest {
    cmd: String,
    working_dir: Option<String>,
    env: Option<BTreeMap<String, String>>,
    /// Seconds; 0 is none, as for timeout(1), which runs the command in bosun-ai/derrick.
    timeout: Option<u64>,
}

impl CommandRequest {
    fn checked(self) -> Result<Command, Problem> {
        let asked = Asked::Cmd(without_nul("cmd", self.cmd)?);
        Ok(Command {
            working_dir: optional_without_nul("working_dir", self.working_dir)?,
            env: checked_env(self.env)?,
            timeout: self
                .timeout
                .filter(|seconds| *seconds > 0)
                .map(|seconds| Duration::from_secs(seconds.min(MAX_TIMEOUT))),
            ..Command::new(asked)
        })
    }
}

/// A command that ended, and the timeout that it had.
struct Ran {
    finished: Finished,
    timeout: Option<Duration>,
}

async fn run(app: &App, id: &WorkspaceId, request: Request) -> Result<Ran, Problem> {
    let body = app.collect(request, body::MAX_BODY).await?;
    let request: CommandRequest = body::parse(&body.bytes)?;
    // The command may run for hours; its request's memory is not for that long.
    drop(body);
    let command = request.checked()?;
    let timeout = command.timeout;
    let finished = app.provider.run(id, command).await?;
    Ok(Ran { finished, timeout })
}

impl Ran {
    /// Says that it was the deadline.
    fn deadline(&self) -> String {
        let deadline = match self.timeout {
            Some(timeout) => format!("the deadline of {} s", timeout.as_secs()),
            None => "the deadline".to_owned(),
        };
        format!("{deadline} passed; the command and everything it started was killed")
    }

    fn outcome(&self) -> HeaderValue {
        HeaderValue::from_static(self.finished.outcome.word())
    }

    fn omitted(&self) -> Option<HeaderValue> {
        (self.finished.omitted > 0).then(|| self.finished.omitted.into())
    }
}

async fn cmd(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Response, Problem> {
    let ran = run(&app, &id, request).await?;
    let exit_code = ran.finished.outcome.exit_code();
    let detail = match &ran.finished.outcome {
        Outcome::Exited { code: 0 } => {
            return Ok(([(OUTCOME, ran.outcome())], Json(())).into_response());
        }
        Outcome::Exited { code } => {
            format!("the command in workspace {id} ended with exit code {code}")
        }
        Outcome::Signaled { signal } => {
            format!("the command in workspace {id} was ended by signal {signal}")
        }
        Outcome::Deadline => format!("in workspace {id} {}", ran.deadline()),
        Outcome::Killed => format!("the command in workspace {id} was killed by a request"),
        Outcome::Reset | Outcome::Removed | Outcome::Lost { .. } => {
            format!("the command in workspace {id} was ended with its sandbox")
        }
    };
    let outcome = ran.outcome();
    let mut problem = Problem::new(Kind::CommandFailed, detail)
        .with("exit_code", exit_code)
        .with("outcome", outcome.to_str().unwrap_or_default())
        .with("output", tail(&ran.finished.output))
        .with_header(OUTCOME, outcome);
    if let Some(omitted) = ran.omitted() {
        problem = problem.with_header(OMITTED_BYTES, omitted);
    }
    Err(problem)
}

#[derive(Serialize)]
struct CommandOutput {
    output: String,
    exit_code: i32,
}

async fn cmd_with_output(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Response, Problem> {
    let mut ran = run(&app, &id, request).await?;
    let mut output = lossy(std::mem::take(&mut ran.finished.output));
    if ran.finished.outcome == Outcome::Deadline {
        if !output.is_empty() && !output.ends_with('\n') {
            output.push('\n');
        }
        output.push_str(&format!("derrick: {}\n", ran.deadline()));
    }
    let answer = CommandOutput {
        output,
        exit_code: ran.finished.outcome.exit_code(),
    };
    let mut response = ([(OUTCOME, ran.outcome())], Json(answer)).into_response();
    if let Some(omitted) = ran.omitted() {
        response.headers_mut().insert(OMITTED_BYTES, omitted);
    }
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct WriteFileRequest<'a> {
    path: String,
    working_dir: Option<String>,
    /// Standard base64.
    #[serde(borrow)]
    content: Cow<'a, str>,
}

#[derive(Serialize)]
struct Written {
    success: bool,
}

async fn write_file(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Json<Written>, Problem> {
    let whole = app.collect(request, body::MAX_UPLOAD).await?;
    let request: WriteFileRequest<'_> = body::parse(&whole.bytes)?;
    let target = checked_path(request.path, request.working_dir)?;
    let content = Base64File::new(&whole.bytes, request.content).keeping(whole);
    let flaw = content.flaw();
    let written = app
        .provider
        .write_file(&id, target, Box::new(content))
        .await;
    // The provider only knows that reading failed, and replaced nothing; the fault is the caller's.
    match (flaw.get(), written) {
        (Some(flaw), _) => Err(Problem::new(
            Kind::InvalidRequest,
            format!("the field content is not base64: {flaw}"),
        )),
        (None, written) => {
            written?;
            Ok(Json(Written { success: true }))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct ReadFileRequest {
    path: String,
    working_dir: Option<String>,
}

async fn read_file(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Response, Problem> {
    let body = app.collect(request, body::MAX_BODY).await?;
    let request: ReadFileRequest = body::parse(&body.bytes)?;
    let source = checked_path(request.path, request.working_dir)?;
    let opened = app.provider.read_file(&id, source).await?;
    // A file that shrinks meanwhile breaks the connection off: no client takes it for whole.
    let file = tokio::fs::File::from_std(opened.file).take(opened.size);
    let content = Body::from_stream(ReaderStream::with_capacity(file, PIECE));
    let octets = HeaderValue::from_static("application/octet-stream");
    let headers = [(CONTENT_TYPE, octets), (CONTENT_LENGTH, opened.size.into())];
    Ok((headers, content).into_response())
}

async fn reset(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Json<Receipt>, Problem> {
    app.collect_nothing(request).await?;
    Ok(Json(app.provider.reset(&id).await?))
}

#[derive(Serialize)]
struct Fetch {
    repositories: Vec<Fetched>,
}

async fn fetch(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Json<Fetch>, Problem> {
    app.collect_nothing(request).await?;
    let repositories = app.provider.fetch(&id).await?;
    Ok(Json(Fetch { repositories }))
}

async fn no_such_route(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(200).collect();
    Problem::new(Kind::NoSuchRoute, format!("there is no route {path:?}"))
}

async fn method_not_allowed(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(200).collect();
    let detail = format!("the route {path:?} does not have {}", request.method());
    Problem::new(Kind::MethodNotAllowed, detail)
}

/// A body of a route that takes no parameters: nothing, or an object without fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Nothing {}

impl App {
    async fn collect(&self, request: Request, size: usize) -> Result<body::Whole, Problem> {
        body::collect(request, &self.uploads, self.bounds(size)).await
    }

    async fn collect_nothing(&self, request: Request) -> Result<(), Problem> {
        let bounds = self.bounds(body::MAX_BODY);
        let body = body::collect_any(request, &self.uploads, bounds).await?;
        if !body.bytes.is_empty() {
            let Nothing {} = body::parse(&body.bytes)?;
        }
        Ok(())
    }

    fn bounds(&self, size: usize) -> Bounds {
        Bounds {
            size,
            patience: self.options.read_timeout,
        }
    }
}

/// The `{id}` of the route. What cannot be an id names no workspace: 404.
struct Id(WorkspaceId);

impl FromRequestParts<Arc<App>> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let none = |id: &str| Problem::from(Error::NoSuchWorkspace(id.to_owned()));
        let params = RawPathParams::from_request_parts(parts, app)
            .await
            .map_err(|_| none("of that name"))?;
        let text = id_text(&params);
        text.parse().map(Self).map_err(|_| {
            let shown: String = text.chars().take(63).collect();
            none(&format!("{shown:?}"))
        })
    }
}

fn id_text(params: &RawPathParams) -> &str {
    let mut params = params.iter();
    params
        .find_map(|(name, value)| (name == "id").then_some(value))
        .unwrap_or_default()
}

fn checked_path(path: String, working_dir: Option<String>) -> Result<FilePath, Problem> {
    Ok(FilePath {
        path: without_nul("path", path)?,
        working_dir: optional_without_nul("working_dir", working_dir)?,
    })
}

/// What execve(2) could not pass on is refused by name. Values are never repeated.
fn checked_env(env: Option<BTreeMap<String, String>>) -> Result<BTreeMap<String, String>, Problem> {
    let env = env.unwrap_or_default();
    for (name, value) in &env {
        let flaw = if name.is_empty() {
            "has an empty name"
        } else if name.contains(['=', '\0']) {
            "has a '=' or NUL in its name"
        } else if value.contains('\0') {
            "has a NUL in its value"
        } else {
            continue;
        };
        let detail = format!("the field env: the variable {name:?} {flaw}");
        return Err(Problem::new(Kind::InvalidRequest, detail));
    }
    Ok(env)
}

fn without_nul(field: &str, text: String) -> Result<String, Problem> {
    if text.contains('\0') {
        let detail = format!("the field {field} has a NUL");
        Err(Problem::new(Kind::InvalidRequest, detail))
    } else {
        Ok(text)
    }
}

fn optional_without_nul(field: &str, text: Option<String>) -> Result<Option<String>, Problem> {
    text.map(|text| without_nul(field, text)).transpose()
}

/// Output as text; bytes that are no UTF-8 become U+FFFD.
fn lossy(output: Vec<u8>) -> String {
    // Copied only where something has to be replaced.
    String::from_utf8(output)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The end of `output` as text of at most [`MAX_TAIL`] bytes.
fn tail(output: &[u8]) -> String {
    let start = output.len().saturating_sub(MAX_TAIL);
    let text = String::from_utf8_lossy(&output[start..]);
    // A replaced byte takes three.
    let mut start = text.len().saturating_sub(MAX_TAIL);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_end_and_within_its_bound() {
        assert_eq!(tail(b"short"), "short");
        let long = [vec![b'a'; MAX_TAIL], b"end".to_vec()].concat();
        let found = tail(&long);
        assert_eq!(found.len(), MAX_TAIL);
        assert!(found.ends_with("aend"));
        let binary = tail(&vec![0xff; MAX_TAIL]);
        assert!(binary.len() <= MAX_TAIL && binary.len() > MAX_TAIL - 3);
    }
}
