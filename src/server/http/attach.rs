//! All of an exec in one WebSocket: what it prints, what it reads, signals, its terminal's size.
//!
//! Output is read from the log, not from the exec, so any number of clients may watch, each at its
//! own pace, and one that was cut off goes on at its offset.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Extension, FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::connection::Connection;
use super::execs::{ExecPath, SignalRequest, SizeField};
use super::output::{Follow, Until};
use super::problem::{Kind, Problem, Problems, of};
use super::routes::{Parameters, tag};
use crate::provider::log::{Piece, View};
use crate::provider::{Exec, ExecRecord, Stream};

/// First bytes of a binary message: what it is.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// Largest message that a client may send, in bytes.
const MAX_MESSAGE: usize = 1 << 20;

/// How often a silent client is asked whether it lives.
const PING: Duration = Duration::from_secs(30);

/// Answers to a client's messages that may wait to be sent.
const ANSWERS: usize = 16;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default().routes(routes!(attach))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AttachQuery {
    /// Where to begin, in bytes of both streams.
    #[serde(default)]
    #[param(required = false)]
    offset: u64,
}

/// A request to go on as a WebSocket.
struct Upgrade(WebSocketUpgrade);

impl FromRequestParts<Arc<App>> for Upgrade {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let upgrade = WebSocketUpgrade::from_request_parts(parts, app).await;
        upgrade.map(Self).map_err(|error| {
            let detail = format!("this route is a WebSocket: {}", error.body_text());
            Problem::new(Kind::InvalidRequest, detail)
        })
    }
}

/// Attaches to an exec: a WebSocket with all that goes in and out.
///
/// A binary message is one byte, 0 for stdin, 1 for stdout, 2 for stderr, and then what was read or
/// written. A text message is a JSON object with one member. From the client: `resize` with `rows`
/// and `cols`, `signal` with `signal` and `to`, `eof` with `true`. From derrick: `exec` first, `gap`
/// with `from` and `to` where output is not kept, `error` for a message that could not be done, and
/// `end` with the exec last. Whoever watches does not disturb the exec by going away.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/execs/{exec}/attach",
    operation_id = "attach_exec",
    tags = [tag::EXECS, "stream"],
    params(ExecPath, AttachQuery),
    responses(
        (status = 101, description = "It goes on as a WebSocket."),
        Problems<{ of(&[Kind::InvalidRequest, Kind::NoSuchWorkspace, Kind::NoSuchExec]) }>,
    )
)]
async fn attach(
    State(app): State<Arc<App>>,
    path: ExecPath,
    Parameters(query): Parameters<AttachQuery>,
    Extension(connection): Extension<Connection>,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, Problem> {
    let exec = app.exec(&path)?;
    let follow = Follow::open(exec, View::Both, query.offset, Until::End).await?;
    let tasks = app.upgraded.clone();
    let upgrade = upgrade
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE);
    Ok(upgrade.on_upgrade(move |socket| {
        tasks.track_future(async move {
            converse(socket, follow).await;
            // Its share of the connections, until here.
            drop(connection);
        })
    }))
}

/// A text message of derrick's.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    Exec(Box<ExecRecord>),
    Gap { from: u64, to: u64 },
    Error(String),
    End(Box<ExecRecord>),
}

impl From<Told> for Message {
    fn from(told: Told) -> Self {
        Self::Text(serde_json::to_string(&told).unwrap_or_default().into())
    }
}

/// A text message of a client's.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Asked {
    Resize(SizeField),
    Signal(SignalRequest),
    Eof(bool),
}

async fn converse(socket: WebSocket, follow: Follow) {
    let exec = Arc::clone(&follow.exec);
    let (mut sink, source) = socket.split();
    let (answers, answered) = mpsc::channel(ANSWERS);
    let first = Told::Exec(Box::new(exec.record()));
    if sink.send(first.into()).await.is_err() {
        return;
    }
    tokio::select! {
        () = send(sink, follow, answered) => {}
        () = receive(source, &exec, answers) => {}
    }
}

/// Sends output and answers until the exec has ended or the client is gone.
async fn send(
    mut sink: SplitSink<WebSocket, Message>,
    follow: Follow,
    mut answers: mpsc::Receiver<Message>,
) {
    let mut pings = tokio::time::interval(PING);
    pings.reset();
    let mut next = Box::pin(follow.next());
    loop {
        let message = tokio::select! {
            (follow, piece) = &mut next => {
                let exec = Arc::clone(&follow.exec);
                let message = match piece {
                    Ok(Piece::Bytes { stream, bytes, .. }) => Some(printed(stream, &bytes)),
                    Ok(Piece::Gap { from, to }) => Some(Told::Gap { from, to }.into()),
                    Ok(Piece::Pending) => None,
                    Ok(Piece::End) => {
                        let end = Told::End(Box::new(exec.until_end().await));
                        return close(sink, end.into(), close_code::NORMAL, "the exec has ended").await;
                    }
                    Err(error) => {
                        tracing::error!(%error, "reading output");
                        let told = Told::Error("reading the output failed".to_owned());
                        return close(sink, told.into(), close_code::ERROR, "derrick failed").await;
                    }
                };
                next = Box::pin(follow.next());
                message
            }
            Some(answer) = answers.recv() => Some(answer),
            _ = pings.tick() => Some(Message::Ping(Vec::new().into())),
        };
        if let Some(message) = message
            && sink.send(message).await.is_err()
        {
            return;
        }
    }
}

fn printed(stream: Stream, bytes: &[u8]) -> Message {
    let first = match stream {
        Stream::Stdout => STDOUT,
        Stream::Stderr => STDERR,
    };
    Message::Binary([&[first], bytes].concat().into())
}

async fn close(
    mut sink: SplitSink<WebSocket, Message>,
    last: Message,
    code: u16,
    reason: &'static str,
) {
    let reason = Utf8Bytes::from_static(reason);
    let frame = Message::Close(Some(CloseFrame { code, reason }));
    // A client that is gone has nothing to be told.
    let _ = sink.send(last).await;
    let _ = sink.send(frame).await;
}

/// Does what the client says until it is gone.
async fn receive(mut source: SplitStream<WebSocket>, exec: &Exec, answers: mpsc::Sender<Message>) {
    while let Some(Ok(message)) = source.next().await {
        let done = match message {
            Message::Binary(bytes) => match bytes.split_first() {
                Some((&STDIN, bytes)) => exec.write(bytes).await.map_err(Problem::from),
                _ => Err(invalid(
                    "a binary message of a client's begins with the byte 0",
                )),
            },
            Message::Text(text) => obey(exec, &text).await,
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => Ok(()),
        };
        if let Err(problem) = done {
            let told = Told::Error(problem.detail().to_owned());
            if answers.send(told.into()).await.is_err() {
                return;
            }
        }
    }
}

async fn obey(exec: &Exec, text: &str) -> Result<(), Problem> {
    let asked: Asked = serde_json::from_str(text).map_err(|error| {
        invalid(&format!(
            "the message is not one that this route takes: {error}"
        ))
    })?;
    match asked {
        Asked::Resize(size) => exec.resize(size.checked()?).await?,
        Asked::Signal(signal) => {
            let (signal, target) = signal.checked()?;
            exec.signal(signal, target).await?;
        }
        Asked::Eof(true) => exec.close_stdin().await?,
        Asked::Eof(false) => {}
    }
    Ok(())
}

fn invalid(detail: &str) -> Problem {
    Problem::new(Kind::InvalidRequest, detail)
}
