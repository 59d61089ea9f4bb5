//! Talking to a running exec over a WebSocket (RFC 6455): its input, its output and its end.
//!
//! Only what has a place in the stream goes through it. Signals and sizes are requests of their own
//! (see [`Client::interrupt`]), so that they arrive also while the command takes no input and this
//! connection is full.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::connection::Upgraded;
use super::wire::{Exec, Stream};
use super::workspaces::under;
use super::{Client, Error};

/// Longest message that is taken, in bytes: an exec's description repeats its command.
const MAX_MESSAGE: usize = 16 << 20;

/// The first byte of a binary message.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// The end of the connection that says something.
#[derive(Debug)]
pub struct Speaker(SplitSink<WebSocketStream<Upgraded>, Message>);

/// The end of the connection that hears something.
#[derive(Debug)]
pub struct Listener(SplitStream<WebSocketStream<Upgraded>>);

/// What the provider says about an exec.
#[derive(Debug)]
pub enum Heard {
    /// What it is, at the beginning.
    Exec(Box<Exec>),
    /// It printed something.
    Output {
        /// Where.
        stream: Stream,
        /// What.
        bytes: Bytes,
    },
    /// A part of what it printed was not kept.
    Gap {
        /// Offset of the first byte that is missing.
        from: u64,
        /// Offset of the first byte after it that is not.
        to: u64,
    },
    /// Something that was said could not be done.
    Complaint,
    /// Input has arrived, up to this mark of [`Speaker::mark`].
    Arrived(u64),
    /// It has ended.
    End(Box<Exec>),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Text {
    Exec(Box<Exec>),
    Gap { from: u64, to: u64 },
    Error(IgnoredAny),
    End(Box<Exec>),
}

impl Client {
    /// Joins an exec; its output begins at `offset` in the stream of both.
    ///
    /// # Errors
    /// Why it cannot be joined.
    pub async fn attach(
        &self,
        workspace: &str,
        exec: &str,
        offset: u64,
    ) -> Result<(Speaker, Listener), Error> {
        let target = format!("{}/attach?offset={offset}", under(workspace, exec));
        let stream = self.upgrade(&target).await?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let socket = WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await;
        let (speaker, listener) = socket.split();
        Ok((Speaker(speaker), Listener(listener)))
    }
}

impl Speaker {
    /// Gives the exec input.
    ///
    /// # Errors
    /// [`Error::Broken`].
    pub async fn input(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.put_u8(STDIN);
        message.extend_from_slice(bytes);
        self.say(Message::Binary(message.freeze())).await
    }

    /// Ends the exec's input.
    ///
    /// # Errors
    /// [`Error::Broken`].
    pub async fn end_input(&mut self) -> Result<(), Error> {
        self.say(Message::text(r#"{"eof":true}"#)).await
    }

    /// Asks to be told when everything said before has arrived: a ping, which the provider answers
    /// in its turn.
    ///
    /// # Errors
    /// [`Error::Broken`].
    pub async fn mark(&mut self, mark: u64) -> Result<(), Error> {
        let mark = Bytes::copy_from_slice(&mark.to_be_bytes());
        self.say(Message::Ping(mark)).await
    }

    async fn say(&mut self, message: Message) -> Result<(), Error> {
        Ok(self.0.send(message).await?)
    }
}

impl Listener {
    /// What comes next.
    ///
    /// # Errors
    /// [`Error::Broken`] if the connection ends before the exec, and an answer that cannot be
    /// understood.
    pub async fn next(&mut self) -> Result<Heard, Error> {
        loop {
            let ended = || Error::Broken("it ended before the command".into());
            let message = self.0.next().await.ok_or_else(ended)??;
            match message {
                Message::Binary(mut bytes) => {
                    let stream = match bytes.first() {
                        Some(&STDOUT) => Stream::Stdout,
                        Some(&STDERR) => Stream::Stderr,
                        _ => return Err(Error::Unexpected("a message of no known stream")),
                    };
                    let bytes = bytes.split_off(1);
                    return Ok(Heard::Output { stream, bytes });
                }
                Message::Text(text) => {
                    return Ok(match serde_json::from_str(text.as_str()) {
                        Ok(Text::Exec(exec)) => Heard::Exec(exec),
                        Ok(Text::Gap { from, to }) => Heard::Gap { from, to },
                        Ok(Text::Error(_)) => Heard::Complaint,
                        Ok(Text::End(exec)) => Heard::End(exec),
                        Err(error) => return Err(Error::Unintelligible(error)),
                    });
                }
                Message::Pong(mark) => {
                    if let Ok(mark) = mark.as_ref().try_into() {
                        return Ok(Heard::Arrived(u64::from_be_bytes(mark)));
                    }
                }
                Message::Close(_) | Message::Ping(_) | Message::Frame(_) => {}
            }
        }
    }
}
