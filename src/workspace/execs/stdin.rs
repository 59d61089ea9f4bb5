//! Derrick's end of an exec's stdin: a pipe or a terminal, written to by one client at a time.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::pipe::Sender;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::pool::exec::pipe;

/// What a terminal takes for the end of its input where a line begins, unless its program changed that,
/// termios(3). Within a line it only sends what there is of it.
const END_OF_FILE: u8 = 4;

/// What an exec reads.
#[derive(Debug)]
pub enum Input {
    /// Nothing.
    Nothing,
    /// This, and then the end. It may come with what is to be held until it was written.
    Bytes(Bytes),
    /// What clients write to it.
    Open,
}

/// Why nothing can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdinClosed {
    /// The exec has ended.
    Ended,
    /// It closed its stdin.
    ByReader,
    /// A client closed it.
    ByRequest,
    /// The exec was not started with an open one.
    NeverOpen,
}

impl fmt::Display for StdinClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ended => "it has ended",
            Self::ByReader => "it closed its stdin",
            Self::ByRequest => "its stdin was closed by a request",
            Self::NeverOpen => "it was not started with an open stdin",
        })
    }
}

#[derive(Debug)]
pub(super) struct Stdin {
    end: Mutex<End>,
    closed: AtomicBool,
    /// Bytes that were written.
    given: AtomicU64,
    ended: CancellationToken,
}

#[derive(Debug)]
enum End {
    Pipe(Sender),
    Terminal(AsyncFd<OwnedFd>, Line),
    Closed(StdinClosed),
}

/// Where a terminal's input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// At the beginning of one.
    Begins,
    /// Within one.
    Goes,
}

impl Line {
    /// Where it is after these bytes.
    fn after(self, bytes: &[u8]) -> Self {
        match bytes.last() {
            None => self,
            Some(b'\n' | b'\r' | &END_OF_FILE) => Self::Begins,
            Some(_) => Self::Goes,
        }
    }
}

impl Default for Stdin {
    fn default() -> Self {
        Self {
            end: Mutex::new(End::Closed(StdinClosed::NeverOpen)),
            closed: AtomicBool::new(false),
            given: AtomicU64::new(0),
            ended: CancellationToken::new(),
        }
    }
}

impl Stdin {
    /// What the exec is to be given as its stdin, if that is not nothing.
    pub(super) async fn open(&self, input: &Input) -> io::Result<Option<OwnedFd>> {
        if matches!(input, Input::Nothing) {
            return Ok(None);
        }
        let (reader, writer) = pipe()?;
        let sender = Sender::from_owned_fd(writer.into())?;
        *self.end.lock().await = End::Pipe(sender);
        Ok(Some(reader.into()))
    }

    /// Takes the exec's terminal to write to.
    pub(super) async fn set_terminal(&self, terminal: &OwnedFd) -> io::Result<()> {
        let terminal = crate::pool::watch(terminal.try_clone()?, Interest::WRITABLE)?;
        *self.end.lock().await = End::Terminal(terminal, Line::Begins);
        Ok(())
    }

    /// Writes what came with the request, and closes.
    pub(super) async fn feed(&self, input: Input) {
        if let Input::Bytes(bytes) = input
            && self.write(&bytes, &mut 0).await.is_ok()
        {
            // A reader that has closed it by now has had what it wanted.
            let _ = self.close().await;
        }
    }

    /// Returns when all is in the pipe or the terminal; `taken` grows by what is, also if that is
    /// not all.
    pub(super) async fn write(&self, bytes: &[u8], taken: &mut u64) -> Result<(), StdinClosed> {
        let mut end = self.end.lock().await;
        let before = *taken;
        let written = tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(StdinClosed::Ended),
            written = end.write(bytes, taken) => written,
        };
        self.given.fetch_add(*taken - before, Ordering::Relaxed);
        if let Err(closed) = written {
            *end = End::Closed(closed);
            self.closed.store(true, Ordering::Relaxed);
        }
        written
    }

    /// Bytes in the pipe that have not been read.
    pub(super) async fn unread(&self) -> u64 {
        match &*self.end.lock().await {
            End::Pipe(pipe) => rustix::io::ioctl_fionread(pipe).unwrap_or(0),
            End::Terminal(..) | End::Closed(_) => 0,
        }
    }

    /// Ends it; a terminal is told, and stays open.
    pub(super) async fn close(&self) -> Result<(), StdinClosed> {
        let keys = match &*self.end.lock().await {
            End::Terminal(_, Line::Begins) => &[END_OF_FILE][..],
            End::Terminal(_, Line::Goes) => &[END_OF_FILE, END_OF_FILE],
            End::Pipe(_) | End::Closed(_) => &[],
        };
        if !keys.is_empty() {
            return self.write(keys, &mut 0).await;
        }
        let mut end = self.end.lock().await;
        match &*end {
            End::Closed(closed) => Err(*closed),
            _ => {
                *end = End::Closed(StdinClosed::ByRequest);
                self.closed.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// The exec has ended: whoever writes is told, and nothing is held open.
    pub(super) fn end(&self) {
        self.ended.cancel();
        // If somebody writes just now, they are told, and close it.
        if let Ok(mut end) = self.end.try_lock() {
            *end = End::Closed(StdinClosed::Ended);
        }
    }

    /// Bytes that were written so far.
    pub(super) fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// Waits for `end`.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

impl End {
    async fn write(&mut self, mut bytes: &[u8], taken: &mut u64) -> Result<(), StdinClosed> {
        if let Self::Closed(closed) = self {
            return Err(*closed);
        }
        while !bytes.is_empty() {
            let written = match self {
                Self::Closed(closed) => return Err(*closed),
                Self::Pipe(pipe) => pipe.write(bytes).await,
                Self::Terminal(terminal, _) => {
                    let write = |terminal: &OwnedFd| Ok(rustix::io::write(terminal, bytes)?);
                    terminal.async_io(Interest::WRITABLE, write).await
                }
            };
            let written = written.map_err(|_| StdinClosed::ByReader)?;
            if let Self::Terminal(_, line) = self {
                *line = line.after(&bytes[..written]);
            }
            *taken += written as u64;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}
