//! All of an exec in one WebSocket: what it prints, what it reads, signals, its terminal's size.
//!
//! Output is read from the log, not from the exec, so any number of clients may watch, each at its
//! own pace, and one that was cut off goes on at its offset.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Extension, FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_tungstenite::tungstenite;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::connection::Connection;
use super::execs::{ExecPath, SignalRequest, SizeField};
use super::grant::Caller;
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

/// Bytes that a message of input takes in memory besides what it says, at most.
const INPUT: usize = 128;

/// How long a client may take to close when it was told to.
const LINGER: Duration = Duration::from_secs(5);

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
    caller: Caller,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, Problem> {
    let exec = app.exec(&path)?;
    let follow = Follow::open(exec, View::Both, query.offset, Until::End).await?;
    let upgrade = upgrade
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE);
    let tasks = app.upgraded.clone();
    Ok(upgrade.on_upgrade(move |socket| {
        tasks.track_future(async move {
            tokio::select! {
                () = converse(socket, follow, app, connection) => {}
                // The answer that the guard watches over was the upgrade.
                () = caller.revoked() => {}
            }
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

/// What is sent besides output.
enum Answer {
    Message(Message),
    /// Ends the connection: the client said what nobody can go on from.
    Close(u16, &'static str),
}

/// What the exec is to read, with its share of what may wait.
struct Input {
    /// `None` is the end.
    bytes: Option<Bytes>,
    _share: OwnedSemaphorePermit,
}

/// Where a client's input waits for the exec.
struct Inputs {
    queue: mpsc::UnboundedSender<Input>,
    room: Arc<Semaphore>,
}

impl Inputs {
    /// Waits until there is room.
    async fn add(&self, bytes: Option<&[u8]>) {
        let size = bytes.map_or(0, <[u8]>::len) + INPUT;
        let share = u32::try_from(size).unwrap_or(u32::MAX);
        if let Ok(share) = Arc::clone(&self.room).acquire_many_owned(share).await {
            // A copy: the message itself is a part of a larger buffer. Whoever takes it lives until
            // this is dropped.
            let _ = self.queue.send(Input {
                bytes: bytes.map(Bytes::copy_from_slice),
                _share: share,
            });
        }
    }
}

/// Why nothing more is received.
enum Silence {
    /// The client is gone, or has said that it goes.
    Gone,
    /// It was told to go.
    Refused,
}

async fn converse(socket: WebSocket, follow: Follow, app: Arc<App>, connection: Connection) {
    let exec = Arc::clone(&follow.exec);
    let (mut sink, mut source) = socket.split();
    let (answers, answered) = mpsc::channel(ANSWERS);
    let (queue, input) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(MAX_MESSAGE + INPUT));
    let inputs = Inputs { queue, room };
    // Beside everything else, so that a signal gets past what the exec does not read; and to its
    // end, as what was received is not lost with its client.
    let feeding = feed(Arc::clone(&exec), input, answers.clone());
    app.upgraded.spawn(async move {
        feeding.await;
        // Its share of the connections, as it holds memory.
        drop(connection);
    });
    let first = Told::Exec(Box::new(exec.record()));
    if sink.send(first.into()).await.is_err() {
        return;
    }
    let ended = tokio::select! {
        () = send(sink, follow, answered) => true,
        silence = receive(&mut source, &exec, answers, inputs) => match silence {
            Silence::Gone => false,
            Silence::Refused => true,
        },
    };
    if ended {
        // Until the client has read it and closes: what it sent meanwhile would break the connection
        // off under the last message.
        let closed = async { while let Some(Ok(_)) = source.next().await {} };
        let _ = tokio::time::timeout(LINGER, closed).await;
    }
}

/// Sends output and answers until the exec has ended or the client is gone.
async fn send(
    mut sink: SplitSink<WebSocket, Message>,
    follow: Follow,
    mut answers: mpsc::Receiver<Answer>,
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
                        return close(sink, Some(end), close_code::NORMAL, "the exec has ended").await;
                    }
                    Err(error) => {
                        tracing::error!(%error, "reading output");
                        let told = Told::Error("reading the output failed".to_owned());
                        return close(sink, Some(told), close_code::ERROR, "derrick failed").await;
                    }
                };
                next = Box::pin(follow.next());
                message
            }
            Some(answer) = answers.recv() => match answer {
                Answer::Message(message) => Some(message),
                Answer::Close(code, reason) => return close(sink, None, code, reason).await,
            },
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
    last: Option<Told>,
    code: u16,
    reason: &'static str,
) {
    let reason = Utf8Bytes::from_static(reason);
    let frame = Message::Close(Some(CloseFrame { code, reason }));
    // A client that is gone has nothing to be told.
    if let Some(last) = last {
        let _ = sink.send(last.into()).await;
    }
    let _ = sink.send(frame).await;
}

/// Does what the client says until it is gone.
async fn receive(
    source: &mut SplitStream<WebSocket>,
    exec: &Exec,
    answers: mpsc::Sender<Answer>,
    inputs: Inputs,
) -> Silence {
    loop {
        let done = match source.next().await {
            Some(Ok(Message::Binary(bytes))) => match bytes.split_first() {
                Some((&STDIN, bytes)) => {
                    inputs.add(Some(bytes)).await;
                    Ok(())
                }
                _ => Err(invalid(
                    "a binary message of a client's begins with the byte 0",
                )),
            },
            Some(Ok(Message::Text(text))) => obey(exec, &text, &inputs).await,
            // The answer to a close is sent with the next look.
            Some(Ok(Message::Close(_) | Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Err(error)) => {
                let Some((code, reason)) = fault(error) else {
                    return Silence::Gone;
                };
                let _ = answers.send(Answer::Close(code, reason)).await;
                // Until that is sent, or the client is gone.
                answers.closed().await;
                return Silence::Refused;
            }
            None => return Silence::Gone,
        };
        if let Err(problem) = done
            && answers.send(problem.into()).await.is_err()
        {
            return Silence::Gone;
        }
    }
}

/// How a connection is closed on which something came that no message can follow, RFC 6455,
/// section 7.4.1; none where it is broken.
fn fault(error: axum::Error) -> Option<(u16, &'static str)> {
    let error = error.into_inner().downcast::<tungstenite::Error>().ok()?;
    match *error {
        tungstenite::Error::Capacity(_) => Some((close_code::SIZE, "a message is over 1 MiB")),
        tungstenite::Error::Utf8(_) => Some((close_code::INVALID, "a text is no UTF-8")),
        tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => None,
        tungstenite::Error::Protocol(_) => Some((close_code::PROTOCOL, "this is no WebSocket")),
        _ => None,
    }
}

/// Gives the exec what it is to read, as fast as it does.
async fn feed(
    exec: Arc<Exec>,
    mut inputs: mpsc::UnboundedReceiver<Input>,
    answers: mpsc::Sender<Answer>,
) {
    while let Some(input) = inputs.recv().await {
        let done = match &input.bytes {
            Some(bytes) => exec.write(bytes).await,
            None => exec.close_stdin().await,
        };
        if let Err(error) = done {
            // Where the client is gone, the rest is refused as well.
            let _ = answers.send(Problem::from(error).into()).await;
        }
    }
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Self {
        Self::Message(Told::Error(problem.detail().to_owned()).into())
    }
}

async fn obey(exec: &Exec, text: &str, inputs: &Inputs) -> Result<(), Problem> {
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
        Asked::Eof(true) => inputs.add(None).await,
        Asked::Eof(false) => {}
    }
    Ok(())
}

fn invalid(detail: &str) -> Problem {
    Problem::new(Kind::InvalidRequest, detail)
}
