//! Execs: started, listed, looked at, signalled, written to, ended; their output is in `output`, and
//! all of it in one connection in `attach`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{HeaderMap, HeaderName, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytesize::ByteSize;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::body::{self, Whole};
use super::commands::{MAX_TIMEOUT, SANDBOX};
use super::problem::{BODY, Kind, Problem, Problems, of};
use super::routes::{
    Id, Nothing, Octets, Parameters, Part, checked_env, optional_without_nul, part_of, tag,
    without_nul,
};
use crate::provider::log::{self, View};
use crate::provider::{
    AfterEnd, Asked, Command, Error, Exec, ExecError, ExecId, ExecRecord, ExecState, Input, Key,
    MOST_OUTPUT, Novelty, Size, StdinState, Stream, Streams, Target, WorkspaceId,
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Most of each stream that the answer to a request which waits repeats, in bytes.
const MAX_ANSWERED: u64 = 1 << 20;

/// Longest that a request for an exec waits for its end, in seconds.
const MAX_WAIT: f64 = 3600.0;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list, start))
        .routes(routes!(show, end))
        .routes(routes!(write_stdin))
        .routes(routes!(signal))
        .routes(routes!(resize))
}

/// The `{id}` and the `{exec}` of the route. What cannot be an id names nothing: 404.
#[derive(IntoParams)]
#[into_params(names("id", "exec"), parameter_in = Path)]
pub(super) struct ExecPath(
    /// The workspace.
    #[param(value_type = WorkspaceId)]
    pub(super) WorkspaceId,
    /// The exec.
    #[param(value_type = ExecId)]
    pub(super) ExecId,
);

impl FromRequestParts<Arc<App>> for ExecPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Id(id) = Id::from_request_parts(parts, app).await?;
        let text = part_of(&parts.uri, Part::Of);
        let exec = text.parse().map_err(|_| {
            let shown: String = text.chars().take(63).collect();
            Problem::from(Error::NoSuchExec(format!("there is no exec {shown:?}")))
        })?;
        Ok(Self(id, exec))
    }
}

impl App {
    pub(super) fn exec(&self, ExecPath(id, exec): &ExecPath) -> Result<Arc<Exec>, Problem> {
        Ok(self.provider.exec(id, *exec)?)
    }
}

impl From<ExecError> for Problem {
    fn from(error: ExecError) -> Self {
        Error::from(error).into()
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only execs in this state.
    state: Option<ExecState>,
}

#[derive(Serialize, ToSchema)]
struct Execs {
    execs: Vec<ExecRecord>,
}

/// Lists the execs of a workspace, oldest first.
///
/// Of those that ended the last 1000 are kept, with at most 512 MiB of output.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/execs",
    operation_id = "list_execs",
    tag = tag::EXECS,
    params(Id, ListQuery),
    responses(
        (status = 200, description = "Those that are known.", body = Execs),
        Problems<{ of(&[Kind::InvalidRequest, Kind::NoSuchWorkspace]) }>,
    )
)]
async fn list(
    State(app): State<Arc<App>>,
    Id(id): Id,
    Parameters(query): Parameters<ListQuery>,
) -> Result<Json<Execs>, Problem> {
    let mut execs = app.provider.execs(&id)?;
    execs.retain(|exec| query.state.is_none_or(|state| state == exec.state));
    Ok(Json(Execs { execs }))
}

/// What an exec reads.
#[derive(Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = r#"expected "none", "open", {"text": "…"} or {"base64": "…"}"#
)]
enum StdinField {
    Word(StdinWord),
    Text(StdinText),
    Base64(StdinBase64),
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum StdinWord {
    /// Nothing.
    None,
    /// What is written to it by further requests.
    Open,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct StdinText {
    /// This text, and then the end.
    text: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct StdinBase64 {
    /// These bytes in standard base64, and then the end.
    #[schema(format = Byte)]
    base64: String,
}

/// A user of the workspace.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected the name of a user as a text, or a number"
)]
pub(super) enum UserField {
    /// By name; or by number, as text.
    Name(String),
    /// By number.
    Number(i64),
}

impl PartialSchema for UserField {
    fn schema() -> RefOr<Schema> {
        let name = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("By name; or by number, as text."))
            .min_length(Some(1));
        let number = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .description(Some("By number."))
            .minimum(Some(0))
            .maximum(Some(65535));
        let either = OneOfBuilder::new().item(name).item(number);
        either.description(Some("A user of the workspace.")).into()
    }
}

impl ToSchema for UserField {}

impl UserField {
    pub(super) fn checked(self) -> Result<String, Problem> {
        match self {
            Self::Name(name) if name.is_empty() => {
                let detail = "the field user is empty";
                Err(Problem::new(Kind::InvalidRequest, detail))
            }
            Self::Name(name) => without_nul("user", name),
            Self::Number(number) => Ok(number.to_string()),
        }
    }
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(super) struct SizeField {
    /// Lines.
    #[schema(minimum = 1, maximum = 65535)]
    rows: u16,
    /// Characters in a line.
    #[schema(minimum = 1, maximum = 65535)]
    cols: u16,
}

impl SizeField {
    pub(super) fn checked(self) -> Result<Size, Problem> {
        if self.rows == 0 || self.cols == 0 {
            let detail = "a terminal has at least one row and one column";
            return Err(Problem::new(Kind::InvalidRequest, detail));
        }
        Ok(Size {
            rows: self.rows,
            columns: self.cols,
        })
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct StartRequest {
    /// A program, looked up in `PATH`, and its arguments; no shell. This or `cmd`.
    #[schema(min_items = 1)]
    argv: Option<Vec<String>>,
    /// A command line for `bash -c`, or `sh -c` where the base has no bash. This or `argv`.
    cmd: Option<String>,
    /// Relative to the config's `workdir` if not absolute; `workdir` itself if absent.
    cwd: Option<String>,
    /// On top of the config's and the workspace's environment.
    env: Option<BTreeMap<String, String>>,
    /// Looked up inside; the config's if absent.
    user: Option<UserField>,
    /// What it reads; nothing if absent.
    stdin: Option<StdinField>,
    /// Gives it a terminal of this size; its stdin is open then, and `none` is refused.
    tty: Option<SizeField>,
    /// Whether stdout and stderr are told apart; merged, they are in the order in which they were written.
    #[serde(default)]
    streams: Streams,
    /// Seconds until its whole process tree is killed; more than 0.
    #[schema(exclusive_minimum = 0.0)]
    timeout: Option<f64>,
    /// How much is kept of each stream, half from its start and half from its end: bytes, or a text such as `"10 MiB"`; at most 1 GiB.
    output_limit: Option<SizeText>,
    /// Whether the answer waits for the end.
    #[serde(default)]
    wait: bool,
    /// When a snapshot of the workspace is taken, whose id the exec has then.
    snapshot: Option<SnapshotField>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum SnapshotField {
    /// After its end, before that is told.
    After,
}

/// A size.
#[derive(Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected bytes as a number from 0 to 1073741824, or a text such as \"10 MiB\""
)]
enum SizeText {
    /// In bytes.
    Bytes(u64),
    /// With a unit, such as `10 MiB`.
    Text(String),
}

impl SizeText {
    fn bytes(self) -> Result<u64, Problem> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Text(text) => text
                .parse()
                .map(|size: ByteSize| size.as_u64())
                .map_err(|_| {
                    let shown: String = text.chars().take(40).collect();
                    let detail =
                        format!("the field output_limit: {shown:?} is no size; '10 MiB' is");
                    Problem::new(Kind::InvalidRequest, detail)
                }),
        }
    }
}

impl StartRequest {
    /// `body` is what it came in.
    fn checked(self, key: Option<Key>, body: Whole) -> Result<Command, Problem> {
        let invalid = |detail: String| Problem::new(Kind::InvalidRequest, detail);
        let asked = match (self.argv, self.cmd) {
            (Some(argv), None) if !argv.is_empty() => {
                let argv = argv.into_iter().map(|text| without_nul("argv", text));
                Asked::Argv(argv.collect::<Result<_, _>>()?)
            }
            (None, Some(cmd)) => Asked::Cmd(without_nul("cmd", cmd)?),
            (Some(_), None) => return Err(invalid("the field argv is empty".into())),
            (Some(_), Some(_)) | (None, None) => {
                return Err(invalid(
                    "there must be one of the fields argv and cmd".into(),
                ));
            }
        };
        let input = match (self.stdin, &self.tty) {
            (Some(StdinField::Word(StdinWord::None)), Some(_)) => {
                return Err(invalid(
                    "the field stdin: a terminal's is open; leave it out, or give text or base64 that ends".into(),
                ));
            }
            (None | Some(StdinField::Word(StdinWord::None)), _) => Input::Nothing,
            (Some(StdinField::Word(StdinWord::Open)), _) => Input::Open,
            (Some(StdinField::Text(StdinText { text })), _) => {
                Input::Bytes(body.keep(text.into_bytes()))
            }
            (Some(StdinField::Base64(StdinBase64 { base64 })), _) => {
                let bytes = STANDARD.decode(base64).map_err(|error| {
                    invalid(format!("the field stdin.base64 is not base64: {error}"))
                })?;
                Input::Bytes(body.keep(bytes))
            }
        };
        let output_limit = self.output_limit.map(SizeText::bytes).transpose()?;
        if output_limit.is_some_and(|bytes| bytes > MOST_OUTPUT) {
            return Err(invalid("the field output_limit is over 1 GiB".into()));
        }
        Ok(Command {
            working_dir: optional_without_nul("cwd", self.cwd)?,
            env: checked_env(self.env)?,
            user: self.user.map(UserField::checked).transpose()?,
            terminal: self.tty.map(SizeField::checked).transpose()?,
            input,
            streams: self.streams,
            timeout: self
                .timeout
                .map(|timeout| duration("timeout", timeout))
                .transpose()?,
            output_limit,
            key,
            after: match self.snapshot {
                Some(SnapshotField::After) => AfterEnd::Snapshot,
                None => AfterEnd::Nothing,
            },
            ..Command::new(asked)
        })
    }
}

/// Seconds, more than 0; what is longer than 136 years is as good as that.
pub(super) fn duration(field: &str, seconds: f64) -> Result<Duration, Problem> {
    if seconds > 0.0 {
        Ok(Duration::from_secs_f64(seconds.min(MAX_TIMEOUT as f64)))
    } else {
        let detail = format!("the field {field} must be more than 0 seconds");
        Err(Problem::new(Kind::InvalidRequest, detail))
    }
}

/// How long the parameter `wait` has a request wait.
pub(super) fn waiting(seconds: f64) -> Result<Duration, Problem> {
    if (0.0..=MAX_WAIT).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        let detail = "the parameter wait must be from 0 to 3600 seconds";
        Err(Problem::new(Kind::InvalidRequest, detail))
    }
}

/// The client's name for the request, with a digest of `body`.
fn key(headers: &HeaderMap, body: &[u8]) -> Result<Option<Key>, Problem> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let name = match (given.next(), given.next()) {
        (None, _) => return Ok(None),
        (Some(name), None) => name.to_str().ok(),
        (Some(_), Some(_)) => None,
    };
    match name {
        Some(name)
            if (1..=255).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Ok(Some(Key {
                name: name.to_owned(),
                request: STANDARD.encode(Sha256::digest(body)),
            }))
        }
        _ => {
            let detail =
                "the header Idempotency-Key must come once, with 1 to 255 visible ASCII characters";
            Err(Problem::new(Kind::InvalidRequest, detail))
        }
    }
}

/// An exec, and what it printed, if the request waited for that.
#[derive(Serialize, ToSchema)]
struct StartedExec {
    #[serde(flatten)]
    exec: ExecRecord,
    /// There if the request waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Output>,
}

/// What an exec printed, as text; bytes that are no UTF-8 become U+FFFD. At most 1 MiB of each, from
/// its start and its end, with a line of derrick's in between; the exec's `output` has it all.
#[derive(Serialize, ToSchema)]
struct Output {
    /// All of it, where the streams are merged or are a terminal.
    stdout: String,
    stderr: String,
}

/// Starts a command in a workspace.
///
/// Answers as soon as it runs, or, with `wait`, when it has ended. It runs on if the client goes
/// away. With an `Idempotency-Key` the same request can be repeated: it is never started twice.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/execs",
    operation_id = "start_exec",
    tag = tag::EXECS,
    params(Id, ("Idempotency-Key" = Option<String>, Header, description = "The client's name for this request, 1 to 255 visible ASCII characters.")),
    request_body = StartRequest,
    responses(
        (status = 201, description = "It was started.", body = StartedExec, headers(("location" = String, description = "The exec's own path."))),
        (status = 200, description = "An earlier request with this key has started it.", body = StartedExec, headers(("location" = String, description = "The exec's own path."))),
        Problems<{ BODY | SANDBOX | of(&[Kind::KeyReused, Kind::ExecForgotten, Kind::TooMany, Kind::TooDeep]) }>,
    )
)]
async fn start(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let body = app.collect(request, body::MAX_BODY).await?;
    let request: StartRequest = body::parse(&body.bytes)?;
    let key = key(&headers, &body.bytes)?;
    let wait = request.wait;
    let command = request.checked(key, body)?;
    let (exec, novelty) = app.provider.start(&id, command).await?;
    let started = if wait {
        until_end(&exec).await?
    } else {
        StartedExec {
            exec: exec.record(),
            output: None,
        }
    };
    let status = match novelty {
        Novelty::Started => StatusCode::CREATED,
        Novelty::Repeated => StatusCode::OK,
    };
    let place = format!("/workspaces/{id}/execs/{}", exec.id());
    let place = HeaderValue::try_from(place)
        .map_err(|_| Problem::new(Kind::Internal, "a path cannot be a header"))?;
    Ok((status, [(LOCATION, place)], Json(started)).into_response())
}

async fn until_end(exec: &Arc<Exec>) -> Result<StartedExec, Problem> {
    let record = exec.until_end().await;
    let exec = Arc::clone(exec);
    let read = tokio::task::spawn_blocking(move || {
        let log = exec.log()?;
        let text = |stream| log::read_ends(&log, View::One(stream), 0, MAX_ANSWERED).map(lossy);
        std::io::Result::Ok(Output {
            stdout: text(Stream::Stdout)?,
            stderr: text(Stream::Stderr)?,
        })
    });
    let output = read
        .await
        .map_err(std::io::Error::other)
        .and_then(|output| output);
    let output = output.map_err(|error| cannot_read(&error))?;
    Ok(StartedExec {
        exec: record,
        output: Some(output),
    })
}

/// For output that is on disk and cannot be read.
pub(super) fn cannot_read(error: &std::io::Error) -> Problem {
    Problem::new(Kind::Internal, format!("reading the output: {error}"))
}

/// Output as text; bytes that are no UTF-8 become U+FFFD.
pub(super) fn lossy(output: Vec<u8>) -> String {
    // Copied only where something has to be replaced.
    String::from_utf8(output)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ShowQuery {
    /// Waits for the end at most so many seconds; 0 to 3600.
    #[param(minimum = 0.0, maximum = 3600.0)]
    wait: Option<f64>,
}

/// Shows an exec.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/execs/{exec}",
    operation_id = "show_exec",
    tag = tag::EXECS,
    params(ExecPath, ShowQuery),
    responses(
        (status = 200, description = "What is known of it.", body = ExecRecord),
        Problems<{ of(&[Kind::InvalidRequest, Kind::NoSuchWorkspace, Kind::NoSuchExec]) }>,
    )
)]
async fn show(
    State(app): State<Arc<App>>,
    path: ExecPath,
    Parameters(query): Parameters<ShowQuery>,
) -> Result<Json<ExecRecord>, Problem> {
    let exec = app.exec(&path)?;
    if let Some(wait) = query.wait {
        // The record says whether it has ended by then.
        let _ = tokio::time::timeout(waiting(wait)?, exec.until_end()).await;
    }
    Ok(Json(exec.record()))
}

/// Ends an exec: kills its whole process tree, and answers when that is gone.
///
/// One that has ended stays as it is; its output is kept.
#[utoipa::path(
    delete,
    path = "/workspaces/{id}/execs/{exec}",
    operation_id = "end_exec",
    tag = tag::EXECS,
    params(ExecPath),
    responses(
        (status = 200, description = "How it ended.", body = ExecRecord),
        Problems<{ of(&[Kind::NoSuchWorkspace, Kind::NoSuchExec]) }>,
    )
)]
async fn end(State(app): State<Arc<App>>, path: ExecPath) -> Result<Json<ExecRecord>, Problem> {
    Ok(Json(app.exec(&path)?.kill().await))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct StdinQuery {
    /// Whether this is the end of what it reads.
    #[serde(default)]
    #[param(required = false)]
    eof: bool,
}

/// How much of a body an exec's stdin took.
#[derive(Serialize, ToSchema)]
struct Accepted {
    /// Bytes that are in its pipe or terminal.
    accepted: u64,
    /// Whether more can be written.
    open: bool,
}

/// Writes to an exec's stdin.
///
/// The body is passed on as it comes. The answer comes when all of it is in the exec's pipe or
/// terminal, which has the room of what the exec reads.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/execs/{exec}/stdin",
    operation_id = "write_exec_stdin",
    tag = tag::EXECS,
    params(ExecPath, StdinQuery),
    request_body(content = Option<Octets>, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "All of it was taken.", body = Accepted),
        Problems<{ of(&[Kind::InvalidRequest, Kind::NoSuchWorkspace, Kind::NoSuchExec, Kind::StdinClosed]) }>,
    )
)]
async fn write_stdin(
    State(app): State<Arc<App>>,
    path: ExecPath,
    Parameters(query): Parameters<StdinQuery>,
    request: Request,
) -> Result<Json<Accepted>, Problem> {
    let exec = app.exec(&path)?;
    let refused = |error: ExecError, accepted: u64| Problem::from(error).with("accepted", accepted);
    let mut accepted = 0;
    // Where nothing can be written, nothing is waited for.
    exec.write(&[]).await.map_err(|error| refused(error, 0))?;
    let mut pieces = request.into_body().into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| {
            let detail = "the body ended before it was complete";
            Problem::new(Kind::InvalidRequest, detail).with("accepted", accepted)
        })?;
        let written = exec.write_counting(&piece, &mut accepted).await;
        written.map_err(|error| refused(error, accepted))?;
    }
    if query.eof {
        let closed = exec.close_stdin().await;
        closed.map_err(|error| refused(error, accepted))?;
    }
    Ok(Json(Accepted {
        accepted,
        open: exec.record().stdin == StdinState::Open,
    }))
}

/// A signal, by name or number.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "expected the name or the number of a signal, such as \"TERM\" or 15"
)]
enum SignalField {
    /// With or without `SIG`, in any case.
    Name(String),
    /// 1 to 31.
    Number(i32),
}

impl PartialSchema for SignalField {
    fn schema() -> RefOr<Schema> {
        let name = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("With or without `SIG`, in any case."));
        let number = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(31));
        let either = OneOfBuilder::new().item(name).item(number);
        either
            .description(Some("A signal, by name or number."))
            .into()
    }
}

impl ToSchema for SignalField {}

/// Which processes get a signal.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum TargetField {
    /// The process that the exec started as.
    #[default]
    Leader,
    /// The process group that it leads.
    Group,
    /// It and everything below it.
    Tree,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(super) struct SignalRequest {
    /// Which.
    signal: SignalField,
    /// To which processes.
    #[serde(default)]
    to: TargetField,
}

impl SignalRequest {
    pub(super) fn checked(self) -> Result<(i32, Target), Problem> {
        let (shown, signal) = match self.signal {
            SignalField::Number(number) => (
                number.to_string(),
                nix::sys::signal::Signal::try_from(number).ok(),
            ),
            SignalField::Name(name) => {
                let upper = name.to_ascii_uppercase();
                let full = match upper.strip_prefix("SIG") {
                    Some(_) => upper,
                    None => format!("SIG{upper}"),
                };
                let signal = full.parse().ok().or_else(|| {
                    let number = name.parse::<i32>().ok()?;
                    nix::sys::signal::Signal::try_from(number).ok()
                });
                (name, signal)
            }
        };
        let signal = signal.ok_or_else(|| {
            let shown: String = shown.chars().take(40).collect();
            let detail = format!(
                "the field signal: there is no signal {shown:?}; a name such as TERM or a number from 1 to 31 is"
            );
            Problem::new(Kind::InvalidRequest, detail)
        })?;
        let target = match self.to {
            TargetField::Leader => Target::Leader,
            TargetField::Group => Target::Group,
            TargetField::Tree => Target::Tree,
        };
        Ok((signal as i32, target))
    }
}

/// Sends a signal to an exec.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/execs/{exec}/signal",
    operation_id = "signal_exec",
    tag = tag::EXECS,
    params(ExecPath),
    request_body = SignalRequest,
    responses(
        (status = 200, description = "It was sent, if the exec had not ended by then.", body = Nothing),
        Problems<{ BODY | SANDBOX | of(&[Kind::NoSuchExec, Kind::ExecEnded]) }>,
    )
)]
async fn signal(
    State(app): State<Arc<App>>,
    path: ExecPath,
    request: Request,
) -> Result<Json<Nothing>, Problem> {
    let exec = app.exec(&path)?;
    let body = app.collect(request, body::MAX_BODY).await?;
    let (signal, target) = body::parse::<SignalRequest>(&body.bytes)?.checked()?;
    exec.signal(signal, target).await?;
    Ok(Json(Nothing {}))
}

/// Gives an exec's terminal another size.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/execs/{exec}/resize",
    operation_id = "resize_exec",
    tag = tag::EXECS,
    params(ExecPath),
    request_body = SizeField,
    responses(
        (status = 200, description = "It has that size.", body = Nothing),
        Problems<{ BODY | of(&[Kind::NoSuchWorkspace, Kind::NoSuchExec, Kind::ExecEnded, Kind::NoTerminal]) }>,
    )
)]
async fn resize(
    State(app): State<Arc<App>>,
    path: ExecPath,
    request: Request,
) -> Result<Json<Nothing>, Problem> {
    let exec = app.exec(&path)?;
    let body = app.collect(request, body::MAX_BODY).await?;
    let size = body::parse::<SizeField>(&body.bytes)?.checked()?;
    exec.resize(size).await?;
    Ok(Json(Nothing {}))
}
