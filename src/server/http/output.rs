//! What an exec printed: as bytes, or as Server-Sent Events that can be resumed.
//!
//! Files are read on a thread for that, a batch at a time, so a client that reads slowly holds one
//! batch in memory and a flood is never more than its log.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{Stream as Pieces, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::execs::{ExecPath, cannot_read};
use super::problem::{Kind, Problem, Problems, of};
use super::routes::{Octets, Parameters, tag};
use crate::provider::log::{Piece, Reader, View};
use crate::provider::{Exec, ExecState, Stream};

const OUTPUT_OFFSET: HeaderName = HeaderName::from_static("derrick-output-offset");
const OMITTED: HeaderName = HeaderName::from_static("derrick-omitted");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Bytes that are read at once, about.
const BATCH: usize = 256 * 1024;

/// How often a stream of events says that it lives.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default().routes(routes!(output))
}

/// Which stream of an exec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ViewField {
    /// What it printed to stdout; to both, where they are merged or a terminal.
    Stdout,
    /// What it printed to stderr.
    Stderr,
    /// Both, in the order in which they came.
    #[default]
    Both,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct OutputQuery {
    /// Which stream.
    #[serde(default)]
    #[param(required = false, inline)]
    stream: ViewField,
    /// Where in that stream to begin, in bytes.
    #[serde(default)]
    #[param(required = false)]
    offset: u64,
    /// Whether to go on until the exec has ended.
    #[serde(default)]
    #[param(required = false)]
    follow: bool,
}

/// Sends what an exec printed, from an offset on.
///
/// As bytes, or, with `Accept: text/event-stream`, as events: `stdout` and `stderr` with
/// `{"offset", "text"}`, or `{"offset", "base64"}` for what is no UTF-8; `gap` with `{"from", "to"}`
/// for what is not kept; `end` with the exec once that has ended. The id of an event is the offset after it, so
/// `Last-Event-ID` resumes.
///
/// Where a part is not kept, the bytes go on after it, and the header `derrick-omitted` says which
/// part. If that part is lost only while they are sent, the connection is broken off: what came is
/// whole up to there.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/execs/{exec}/output",
    operation_id = "exec_output",
    tag = tag::EXECS,
    params(ExecPath, OutputQuery),
    responses(
        (status = 200, description = "What it printed.", content(
            (Octets = "application/octet-stream"),
            (String = "text/event-stream"),
        ), headers(
            ("derrick-output-offset" = u64, description = "Where in the stream the first byte is."),
            ("derrick-omitted" = Option<String>, description = "Offsets between which nothing is kept, as FROM-TO."),
        )),
        Problems<{ of(&[Kind::InvalidRequest, Kind::NoSuchWorkspace, Kind::NoSuchExec]) }>,
    )
)]
async fn output(
    State(app): State<Arc<App>>,
    path: ExecPath,
    Parameters(query): Parameters<OutputQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let exec = app.exec(&path)?;
    let view = match query.stream {
        ViewField::Stdout => View::One(Stream::Stdout),
        ViewField::Stderr => View::One(Stream::Stderr),
        ViewField::Both => View::Both,
    };
    let events = accepts_events(&headers);
    let offset = match headers.get(LAST_EVENT_ID).filter(|_| events) {
        None => query.offset,
        Some(id) => id
            .to_str()
            .ok()
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| {
                let detail = "the header Last-Event-ID is no id of an event of this exec's output";
                Problem::new(Kind::InvalidRequest, detail)
            })?,
    };
    let until = if query.follow { Until::End } else { Until::Now };
    if events {
        let follow = Follow::open(exec, view, offset, until).await?;
        return Ok(send_events(follow));
    }
    send_bytes(Follow::open(exec, view, offset, until).await?).await
}

/// Whether the client asked for events rather than bytes.
pub(super) fn accepts_events(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|kind| kind.split(';').next().unwrap_or_default().trim() == "text/event-stream")
}

/// How far output is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// To the exec's end.
    End,
    /// To what is there when the request comes.
    Now,
}

/// Reads an exec's output, and waits for more.
pub(super) struct Follow {
    pub(super) exec: Arc<Exec>,
    reader: Reader,
    changed: watch::Receiver<()>,
    /// Where in the view it stops.
    stop: u64,
    batch: VecDeque<Piece>,
}

impl Follow {
    /// Opens it at `offset`, which must be within what there is, or may come.
    pub(super) async fn open(
        exec: Arc<Exec>,
        view: View,
        offset: u64,
        until: Until,
    ) -> Result<Self, Problem> {
        let of = Arc::clone(&exec);
        let log = tokio::task::spawn_blocking(move || of.log()).await;
        let log = log.map_err(io::Error::other).and_then(|log| log);
        let log = log.map_err(|error| cannot_read(&error))?;
        let changed = log.watch();
        let size = log.size(view);
        if offset > size {
            let detail = format!("the offset {offset} is beyond the {size} bytes that there are");
            return Err(Problem::new(Kind::InvalidRequest, detail).with("size", size));
        }
        Ok(Self {
            exec,
            reader: Reader::new(log, view, offset),
            changed,
            stop: match until {
                Until::End => u64::MAX,
                Until::Now => size,
            },
            batch: VecDeque::new(),
        })
    }

    /// The next piece, waited for; `End` when there is no more. Cancel safe but for a batch that is
    /// being read.
    pub(super) async fn next(mut self) -> (Self, io::Result<Piece>) {
        loop {
            if let Some(piece) = self.batch.pop_front() {
                return (self, Ok(piece));
            }
            if self.reader.offset() >= self.stop {
                return (self, Ok(Piece::End));
            }
            self.changed.mark_unchanged();
            let read = tokio::task::spawn_blocking(move || {
                let read = self.read_batch();
                (self, read)
            });
            match read.await {
                Ok((this, Ok(()))) => self = this,
                Ok((this, Err(error))) => return (this, Err(error)),
                // The runtime is ending: so does this.
                Err(_) => return std::future::pending().await,
            }
            if matches!(self.batch.front(), Some(Piece::Pending)) {
                self.batch.clear();
                // The log tells of its end before it is dropped.
                let _ = self.changed.changed().await;
            }
        }
    }

    fn read_batch(&mut self) -> io::Result<()> {
        let mut size = 0;
        while size < BATCH {
            match self.reader.next_piece()? {
                Piece::Pending if size > 0 => break,
                piece @ (Piece::Pending | Piece::End) => {
                    self.batch.push_back(piece);
                    break;
                }
                Piece::Bytes {
                    stream,
                    offset,
                    mut bytes,
                } => {
                    let room = self.stop.saturating_sub(offset);
                    bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
                    size += bytes.len().max(1);
                    if !bytes.is_empty() {
                        self.batch.push_back(Piece::Bytes {
                            stream,
                            offset,
                            bytes,
                        });
                    }
                }
                gap @ Piece::Gap { .. } => {
                    size += 1;
                    self.batch.push_back(gap);
                }
            }
            if self.reader.offset() >= self.stop {
                break;
            }
        }
        Ok(())
    }
}

async fn send_bytes(follow: Follow) -> Result<Response, Problem> {
    let announced = {
        let mut ahead = follow.reader.fork();
        let found = tokio::task::spawn_blocking(move || ahead.first_gap()).await;
        let found = found.map_err(io::Error::other).and_then(|gap| gap);
        found.map_err(|error| cannot_read(&error))?
    };
    let mut offset = follow.reader.offset();
    let mut headers = HeaderMap::new();
    if let Some((from, to)) = announced {
        if from == offset {
            offset = to;
        }
        if let Ok(value) = HeaderValue::try_from(format!("{from}-{to}")) {
            headers.insert(OMITTED, value);
        }
    }
    headers.insert(OUTPUT_OFFSET, offset.into());
    let octets = HeaderValue::from_static("application/octet-stream");
    headers.insert(CONTENT_TYPE, octets);
    let pieces = stream::try_unfold(follow, move |mut follow| async move {
        loop {
            let (next, piece) = follow.next().await;
            follow = next;
            match piece? {
                Piece::Bytes { bytes, .. } => return Ok(Some((Bytes::from(bytes), follow))),
                Piece::Gap { from, to } if announced == Some((from, to)) => {}
                Piece::Gap { from, .. } => {
                    let what = format!("the output at {from} is not kept any more");
                    return Err(io::Error::other(what));
                }
                Piece::Pending => {}
                Piece::End => return Ok(None),
            }
        }
    });
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// The data of an event with output.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    Text(String),
    Base64(String),
}

#[derive(Serialize)]
struct Printed {
    offset: u64,
    #[serde(flatten)]
    content: Content,
}

#[derive(Serialize)]
struct Omitted {
    from: u64,
    to: u64,
}

/// The start of a character whose rest has not come yet.
struct Held {
    stream: Stream,
    offset: u64,
    bytes: Vec<u8>,
}

fn send_events(follow: Follow) -> Response {
    let sse = Sse::new(events(follow)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    sse.into_response()
}

struct Sending {
    follow: Option<Follow>,
    held: Option<Held>,
    ready: VecDeque<Event>,
}

fn events(follow: Follow) -> impl Pieces<Item = Result<Event, Infallible>> + Send {
    let sending = Sending {
        follow: Some(follow),
        held: None,
        ready: VecDeque::new(),
    };
    stream::unfold(sending, |mut sending| async move {
        loop {
            if let Some(event) = sending.ready.pop_front() {
                return Some((Ok(event), sending));
            }
            let (follow, piece) = sending.follow.take()?.next().await;
            if follow.stop == u64::MAX && matches!(piece, Ok(Piece::End)) {
                // The log ends a moment before the exec does.
                follow.exec.until_end().await;
            }
            let last = sending.take(&follow.exec, piece);
            if !last {
                sending.follow = Some(follow);
            }
        }
    })
}

impl Sending {
    /// Makes events of a piece; whether it was the last.
    fn take(&mut self, exec: &Exec, piece: io::Result<Piece>) -> bool {
        match piece {
            Ok(Piece::Bytes {
                stream,
                offset,
                bytes,
            }) => {
                self.print(stream, offset, bytes);
                false
            }
            Ok(Piece::Gap { from, to }) => {
                self.release();
                self.push("gap", to, &Omitted { from, to });
                false
            }
            Ok(Piece::Pending) => false,
            Ok(Piece::End) => {
                self.release();
                let record = exec.record();
                // Who did not ask to follow may have all there is of an exec that runs on.
                if record.state == ExecState::Ended {
                    let end = Event::default().event("end").json_data(record);
                    self.ready.extend(end.ok());
                }
                true
            }
            Err(error) => {
                tracing::error!(%error, "reading output");
                true
            }
        }
    }

    fn print(&mut self, stream: Stream, mut offset: u64, mut bytes: Vec<u8>) {
        if let Some(held) = self.held.take_if(|held| held.stream == stream) {
            offset = held.offset;
            bytes = [held.bytes, bytes].concat();
        }
        self.release();
        let (valid, rest) = match std::str::from_utf8(&bytes) {
            Ok(_) => (bytes.len(), 0),
            // The start of a character at the very end.
            Err(error) if error.error_len().is_none() => {
                (error.valid_up_to(), bytes.len() - error.valid_up_to())
            }
            Err(_) => (0, 0),
        };
        let end = offset + bytes.len() as u64 - rest as u64;
        let held = bytes.split_off(bytes.len() - rest);
        if !bytes.is_empty() {
            let content = if valid == bytes.len() {
                Content::Text(super::execs::lossy(bytes))
            } else {
                Content::Base64(STANDARD.encode(bytes))
            };
            self.push(name_of(stream), end, &Printed { offset, content });
        }
        if !held.is_empty() {
            self.held = Some(Held {
                stream,
                offset: end,
                bytes: held,
            });
        }
    }

    /// Sends what was held, as it will not become a character.
    fn release(&mut self) {
        if let Some(held) = self.held.take() {
            let end = held.offset + held.bytes.len() as u64;
            let printed = Printed {
                offset: held.offset,
                content: Content::Base64(STANDARD.encode(held.bytes)),
            };
            self.push(name_of(held.stream), end, &printed);
        }
    }

    fn push(&mut self, name: &str, id: u64, data: &impl Serialize) {
        let event = Event::default().event(name).id(id.to_string());
        self.ready.extend(event.json_data(data).ok());
    }
}

fn name_of(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}
