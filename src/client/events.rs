//! The output of an exec as server-sent events (the WHATWG's HTML standard, section 9.2), which tell
//! the streams apart and say where in them each piece is.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use hyper::header::ACCEPT;
use hyper::{Method, Request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;

use super::connection::{Answer, empty};
use super::wire::{Exec, Stream};
use super::workspaces::under;
use super::{Client, Error};
use crate::cli::client::{OneStream, Until};

/// Longest line that is taken, in bytes: an exec's description repeats its command.
const MAX_LINE: usize = 16 << 20;

/// Output as it comes.
pub struct Events {
    lines: BoxStream<'static, Result<String, Error>>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The exec printed something.
    Output {
        /// Where.
        stream: Stream,
        /// What.
        bytes: Bytes,
        /// Offset of what comes after it.
        next: u64,
    },
    /// A part of what it printed was not kept.
    Gap {
        /// Offset of the first byte that is missing.
        from: u64,
        /// Offset of the first byte after it that is not.
        to: u64,
    },
    /// It has ended.
    End(Box<Exec>),
}

/// An event as it stands in the stream.
#[derive(Default)]
struct Raw {
    name: String,
    id: String,
    data: String,
}

impl Client {
    /// What an exec printed to one stream or both, from `offset` on.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub async fn output(
        &self,
        workspace: &str,
        exec: &str,
        stream: Option<OneStream>,
        offset: u64,
        until: Until,
    ) -> Result<Events, Error> {
        let stream = match stream {
            None => "both",
            Some(OneStream::Stdout) => "stdout",
            Some(OneStream::Stderr) => "stderr",
        };
        let follow = until == Until::Ended;
        let target = format!(
            "{}/output?stream={stream}&offset={offset}&follow={follow}",
            under(workspace, exec)
        );
        let request = Request::builder()
            .method(Method::GET)
            .header(ACCEPT, "text/event-stream");
        let answer = self.send(request, &target, empty()).await?;
        Ok(Events {
            lines: lines(answer),
        })
    }
}

/// The lines of an answer, as they come.
pub(super) fn lines(answer: Answer) -> BoxStream<'static, Result<String, Error>> {
    let reader = StreamReader::new(answer.stream().map_err(io::Error::other));
    let codec = LinesCodec::new_with_max_length(MAX_LINE);
    let lines = FramedRead::new(reader, codec).map_err(|error| match error {
        LinesCodecError::MaxLineLengthExceeded => Error::Unexpected("a line is too long"),
        LinesCodecError::Io(error) => Error::Broken(error.into()),
    });
    lines.boxed()
}

impl Events {
    /// What comes next; `None` after the last one.
    ///
    /// # Errors
    /// [`Error::Broken`], and an answer that cannot be understood.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        let mut raw = Raw::default();
        while let Some(line) = self.lines.next().await {
            let line = line?;
            if !line.is_empty() {
                raw.add(&line)?;
                continue;
            }
            let complete = std::mem::take(&mut raw);
            if let Some(event) = complete.event()? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

impl Raw {
    fn add(&mut self, line: &str) -> Result<(), Error> {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "id" => value.clone_into(&mut self.id),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                if self.data.len() > MAX_LINE {
                    return Err(Error::Unexpected("an event is too long"));
                }
            }
            // A comment, which keeps the connection alive, or something newer than this client.
            _ => {}
        }
        Ok(())
    }

    fn event(self) -> Result<Option<Event>, Error> {
        let stream = match self.name.as_str() {
            "stdout" => Stream::Stdout,
            "stderr" => Stream::Stderr,
            "gap" => {
                let Gap { from, to } = parse(&self.data)?;
                return Ok(Some(Event::Gap { from, to }));
            }
            "end" => return Ok(Some(Event::End(parse(&self.data)?))),
            _ => return Ok(None),
        };
        let bytes = match parse(&self.data)? {
            Piece::Text { text } => text.into_bytes(),
            Piece::Base64 { base64 } => BASE64
                .decode(base64)
                .map_err(|_| Error::Unexpected("output in it is no base64"))?,
        };
        let next = self
            .id
            .parse()
            .map_err(|_| Error::Unexpected("output in it has no offset"))?;
        Ok(Some(Event::Output {
            stream,
            bytes: bytes.into(),
            next,
        }))
    }
}

#[derive(Deserialize)]
struct Gap {
    from: u64,
    to: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Piece {
    Text { text: String },
    Base64 { base64: String },
}

fn parse<T: DeserializeOwned>(data: &str) -> Result<T, Error> {
    serde_json::from_str(data).map_err(Error::Unintelligible)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(text: &'static str) -> Vec<String> {
        let reader = FramedRead::new(text.as_bytes(), LinesCodec::new());
        let lines = reader.map_err(|_| Error::Unexpected("")).boxed();
        let mut events = Events { lines };
        let mut found = Vec::new();
        while let Some(event) = events.next().await.unwrap() {
            found.push(match event {
                Event::Output {
                    stream,
                    bytes,
                    next,
                } => format!("{stream:?} {} {next}", bytes.escape_ascii()),
                other => format!("{other:?}"),
            });
        }
        found
    }

    #[tokio::test]
    async fn events_are_pieces_of_output_and_gaps() {
        let found = all(concat!(
            ": hello\n\n",
            "event: stdout\nid: 3\ndata: {\"offset\":0,\"text\":\"a\\nb\"}\n\n",
            "event: of-a-later-version\ndata: {}\n\n",
            "event:stderr\r\nid:5\r\ndata:{\"offset\":3,\"base64\":\"/wA=\"}\r\n\r\n",
            "event: gap\ndata: {\"from\":5,\"to\":9}\n\n",
            // Cut off, so not an event.
            "event: stdout\nid: 12\ndata: {\"offset\":9,\"text\":\"abc\"}\n",
        ))
        .await;
        assert_eq!(
            found,
            [
                r"Stdout a\nb 3",
                r"Stderr \xff\x00 5",
                "Gap { from: 5, to: 9 }"
            ]
        );
    }
}
