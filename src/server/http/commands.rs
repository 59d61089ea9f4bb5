//! Commands and files as bosun-ai/derrick has them: its wire format, kept byte for byte.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::body::{self, Base64File};
use super::execs::lossy;
use super::files::FILES;
use super::metrics::{Counted, Direction};
use super::problem::{BODY, Kind, Problem, Problems, of};
use super::routes::{Id, Null, Octets, checked_env, optional_without_nul, tag, without_nul};
use crate::provider::{Asked, Command, FilePath, Finished, Outcome, WorkspaceId};

const OUTCOME: HeaderName = HeaderName::from_static("derrick-outcome");
const OMITTED_BYTES: HeaderName = HeaderName::from_static("derrick-omitted-bytes");

/// Most of a failed command's output that its problem repeats, in bytes.
const MAX_TAIL: usize = 64 * 1024;

/// Size of the pieces in which a file is sent, in bytes.
const PIECE: usize = 64 * 1024;

/// Longest deadline that is kept; a longer one, 136 years, is as good as this one.
pub(super) const MAX_TIMEOUT: u64 = u32::MAX as u64;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(cmd))
        .routes(routes!(cmd_with_output))
        .routes(routes!(write_file))
        .routes(routes!(read_file))
}

/// What anything that needs the workspace's sandbox may be refused for.
pub(super) const SANDBOX: u64 = of(&[
    Kind::NoSuchWorkspace,
    Kind::PermissionDenied,
    Kind::Conflict,
    Kind::Paused,
    Kind::Fenced,
    Kind::NotPossible,
    Kind::NoSpace,
    Kind::LimitUnenforceable,
]);

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct CommandRequest {
    /// A command line for `bash -c`, or `sh -c` where the base has no bash.
    cmd: String,
    /// Relative to the config's `workdir` if not absolute; `workdir` itself if absent.
    working_dir: Option<String>,
    /// On top of the config's and the workspace's environment.
    env: Option<BTreeMap<String, String>>,
    /// Seconds; 0 is none, as for timeout(1), which runs the command in bosun-ai/derrick.
    #[schema(maximum = 18446744073709551615_u64)]
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

/// What is said of a command whose workspace ran out of memory.
const OUT_OF_MEMORY: &str = "the limit on memory was reached; everything that ran was killed";

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

/// Runs a command to its end; one that fails is a problem.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/cmd",
    operation_id = "cmd",
    tag = tag::COMMANDS,
    params(Id),
    request_body = CommandRequest,
    responses(
        (
            status = 200,
            description = "It ended with exit code 0.",
            body = inline(Null),
            headers(("derrick-outcome" = String, description = "`exited`.")),
        ),
        Problems<{ BODY | SANDBOX | of(&[Kind::CommandFailed, Kind::TooMany]) }>,
    )
)]
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
        Outcome::Signaled { signal, .. } => {
            format!("the command in workspace {id} was ended by signal {signal}")
        }
        Outcome::Deadline => format!("in workspace {id} {}", ran.deadline()),
        Outcome::Oom => format!("in workspace {id} {OUT_OF_MEMORY}"),
        Outcome::PidsLimit { code } => format!(
            "the command in workspace {id} was refused processes at the workspace's limit and ended with exit code {code}"
        ),
        Outcome::DiskQuota { code } => format!(
            "the command in workspace {id} ended with exit code {code}, and the workspace's disk is full to its limit"
        ),
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

#[derive(Serialize, ToSchema)]
struct CommandOutput {
    /// stdout and stderr, interleaved as written; bytes that are no UTF-8 become U+FFFD.
    output: String,
    /// As a shell reports it: 128 + signal, 124 for a deadline.
    exit_code: i32,
}

/// Runs a command to its end, and answers what it printed and its exit code, whatever that is.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/cmd_with_output",
    operation_id = "cmd_with_output",
    tag = tag::COMMANDS,
    params(Id),
    request_body = CommandRequest,
    responses(
        (
            status = 200,
            description = "It ended.",
            body = CommandOutput,
            headers(
                ("derrick-outcome" = String, description = "How it ended: `exited`, `signaled`, `deadline`, `oom`, `pids_limit`, `disk_quota` or `killed`."),
                ("derrick-omitted-bytes" = u64, description = "Bytes left out of the middle of the output, if any are."),
            ),
        ),
        Problems<{ BODY | SANDBOX | of(&[Kind::TooMany]) }>,
    )
)]
async fn cmd_with_output(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Response, Problem> {
    let mut ran = run(&app, &id, request).await?;
    let mut output = lossy(std::mem::take(&mut ran.finished.output));
    let why = match ran.finished.outcome {
        Outcome::Deadline => Some(ran.deadline()),
        Outcome::Oom => Some(OUT_OF_MEMORY.to_owned()),
        _ => None,
    };
    if let Some(why) = why {
        if !output.is_empty() && !output.ends_with('\n') {
            output.push('\n');
        }
        output.push_str(&format!("derrick: {why}\n"));
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

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct WriteFileRequest<'a> {
    /// Relative to `working_dir` if not absolute.
    #[schema(min_length = 1)]
    path: String,
    /// Relative to the config's `workdir` if not absolute; `workdir` itself if absent.
    working_dir: Option<String>,
    /// Standard base64 of the file.
    #[schema(value_type = String, format = Byte)]
    #[serde(borrow)]
    content: Cow<'a, str>,
}

#[derive(Serialize, ToSchema)]
struct Written {
    /// True.
    success: bool,
}

/// Replaces a file, whole or not at all, making its directories.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/write_file",
    operation_id = "write_file",
    tag = tag::COMMANDS,
    params(Id),
    request_body = WriteFileRequest,
    responses(
        (status = 200, description = "It is there.", body = Written),
        Problems<{ BODY | FILES | of(&[Kind::NotAFile]) }>,
    )
)]
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
    let content = Counted {
        content,
        app: Arc::clone(&app),
    };
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

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct ReadFileRequest {
    /// Relative to `working_dir` if not absolute.
    #[schema(min_length = 1)]
    path: String,
    /// Relative to the config's `workdir` if not absolute; `workdir` itself if absent.
    working_dir: Option<String>,
}

/// Answers the bytes of a regular file.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/read_file",
    operation_id = "read_file",
    tag = tag::COMMANDS,
    params(Id),
    request_body = ReadFileRequest,
    responses(
        (status = 200, description = "Its bytes.", body = inline(Octets), content_type = "application/octet-stream"),
        Problems<{ BODY | FILES | of(&[Kind::NotAFile]) }>,
    )
)]
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
    let pieces = ReaderStream::with_capacity(file, PIECE)
        .inspect_ok(move |piece| app.metrics.moved(Direction::Out, piece.len() as u64));
    let content = Body::from_stream(pieces);
    let octets = HeaderValue::from_static("application/octet-stream");
    let headers = [(CONTENT_TYPE, octets), (CONTENT_LENGTH, opened.size.into())];
    Ok((headers, content).into_response())
}

fn checked_path(path: String, working_dir: Option<String>) -> Result<FilePath, Problem> {
    Ok(FilePath {
        path: without_nul("path", path)?,
        working_dir: optional_without_nul("working_dir", working_dir)?,
    })
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
