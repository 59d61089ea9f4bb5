//! An exec in the foreground: its output here, this process's stdin there, and ctrl-c for it.
//!
//! The connection may break at any moment. Output goes on at the byte where it stopped, because its
//! offset is known. Input cannot: what of it was under way may or may not have arrived. At a
//! terminal a person sees that; from a pipe, a command could take a part for the whole, so it is
//! killed instead.

use std::cell::Cell;
use std::future::pending;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::remote::NoReader;
use super::terminal::{self, LeavingKeys, RawTerminal, Typed, usable_size};
use crate::client::{Client, Error, Exec, Heard, Listener, Speaker, Stdin, Stream};
use crate::pool::output::Output;

/// How long a provider that went away may take to come back.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait before the first and the later attempts to reach it again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A connection that lasted so long is no failed attempt.
const LASTED: Duration = Duration::from_secs(5);
/// How long a signal may take to be delivered.
const DELIVERY: Duration = Duration::from_secs(10);
/// Size of the pieces in which stdin is read, in bytes.
const PIECE: usize = 32 * 1024;
/// Pieces that wait for the other side, in either direction.
const WAITING: usize = 8;

/// An exec and what is to be done with it.
pub(super) struct Foreground<'a> {
    pub(super) client: &'a Client,
    pub(super) workspace: &'a str,
    pub(super) exec: &'a Exec,
    /// Offset of the first byte of output that is wanted.
    pub(super) begin: u64,
    /// Its stdin, if it has one.
    pub(super) input: Option<Keyboard>,
    pub(super) printer: &'a mut Printer,
    pub(super) signals: Signals,
    pub(super) hangup: Hangup,
}

/// What becomes of the exec when this process is told to end, or nobody reads its output any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hangup {
    /// It is killed: it was started for this process.
    Kill,
    /// It goes on.
    Leave,
}

/// How the foreground was left.
#[derive(Debug)]
pub(super) enum Left {
    /// The exec has ended.
    Ended(Box<Exec>),
    /// It has ended, and what it printed could not be read whole.
    Torn(Box<Exec>),
    /// It goes on without this process.
    Detached,
}

impl Foreground<'_> {
    /// Stays until the exec's end or until the user leaves.
    pub(super) async fn stay(self) -> anyhow::Result<Left> {
        let minding = Minding {
            client: self.client,
            workspace: self.workspace,
            exec: self.exec,
            hangup: self.hangup,
        };
        let mut talk = Talk {
            input: self.input,
            offset: self.begin,
            sent: Cell::new(0),
            arrived: Cell::new(0),
            refused: Cell::new(false),
            torn: false,
            printer: self.printer,
            minding: &minding,
        };
        tokio::select! {
            left = talk.go_on() => left,
            left = minding.mind(self.signals) => left,
        }
    }
}

/// Signals that this process gets. They are listened for before there is an exec, so that none is
/// missed.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    resized: Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            resized: signal(SignalKind::window_change())?,
        })
    }

    /// Waits until this process is told to end; the exit code for that.
    pub(super) async fn told_to_end(&mut self) -> ExitCode {
        let signal = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
        };
        super::remote::ended_by(signal)
    }
}

/// What is done about signals, over connections of its own.
struct Minding<'a> {
    client: &'a Client,
    workspace: &'a str,
    exec: &'a Exec,
    hangup: Hangup,
}

impl Minding<'_> {
    async fn mind(&self, mut signals: Signals) -> anyhow::Result<Left> {
        let mut interrupts = 0;
        loop {
            tokio::select! {
                _ = signals.interrupt.recv() => {
                    interrupts += 1;
                    match interrupts {
                        1 => self.try_to("interrupt", self.client.interrupt(self.workspace, self.id())).await,
                        2 => self.try_to("kill", self.client.kill(self.workspace, self.id())).await,
                        _ => bail!("given up; exec {} may still be running", self.id()),
                    }
                }
                _ = signals.terminate.recv() => if let Some(left) = self.hang_up().await? { return Ok(left) },
                _ = signals.hangup.recv() => if let Some(left) = self.hang_up().await? { return Ok(left) },
                _ = signals.resized.recv() => {
                    if self.exec.tty && let Some(size) = usable_size() {
                        self.try_to("resize", self.client.resize(self.workspace, self.id(), size)).await;
                    }
                }
            }
        }
    }

    /// Does what is to be done when nobody is there any more.
    async fn hang_up(&self) -> anyhow::Result<Option<Left>> {
        match self.hangup {
            Hangup::Leave => Ok(Some(Left::Detached)),
            Hangup::Kill => self.kill().await.map(|exec| Some(Left::Ended(exec))),
        }
    }

    async fn kill(&self) -> anyhow::Result<Box<Exec>> {
        let killed = self.client.kill(self.workspace, self.id());
        let exec = timeout(DELIVERY, killed)
            .await
            .context("derrick does not answer")
            .and_then(|killed| Ok(killed?))
            .with_context(|| format!("killing exec {}, which may still be running", self.id()))?;
        Ok(Box::new(exec))
    }

    /// Does it, and says so if that fails, unless the exec has just ended.
    async fn try_to<T>(&self, what: &str, doing: impl Future<Output = Result<T, Error>>) {
        match timeout(DELIVERY, doing).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.is("exec-ended") => {}
            Ok(Err(error)) => note(&format!("cannot {what} the exec: {:#}", anyhow!(error))),
            Err(_) => note(&format!("cannot {what} the exec: derrick does not answer")),
        }
    }

    fn id(&self) -> &str {
        &self.exec.id
    }
}

/// The stream of input and output, over as many connections as it takes.
struct Talk<'a> {
    input: Option<Keyboard>,
    offset: u64,
    /// Bytes of input given to a connection, and those that are known to have arrived.
    sent: Cell<u64>,
    arrived: Cell<u64>,
    /// The exec takes no more input.
    refused: Cell<bool>,
    /// Some of the output was not kept until it could be read.
    torn: bool,
    printer: &'a mut Printer,
    minding: &'a Minding<'a>,
}

/// Why a conversation over one connection ended too early.
enum Cut {
    /// The connection did.
    Connection(Error),
    /// Nobody reads our output any more.
    Reader,
    Failed(anyhow::Error),
}

impl From<Error> for Cut {
    fn from(error: Error) -> Self {
        if error.is_passing() {
            Self::Connection(error)
        } else {
            Self::Failed(error.into())
        }
    }
}

impl Talk<'_> {
    async fn go_on(&mut self) -> anyhow::Result<Left> {
        let mut waiting = Waiting::default();
        loop {
            let begun = Instant::now();
            let offset = self.offset;
            let error = match self.converse().await {
                Ok(left) => return Ok(left),
                Err(Cut::Reader) => match self.minding.hang_up().await? {
                    Some(left) => return Ok(left),
                    None => pending().await,
                },
                Err(Cut::Failed(error)) => return Err(error),
                Err(Cut::Connection(error)) => error,
            };
            if self.offset > offset || begun.elapsed() > LASTED {
                waiting = Waiting::default();
            }
            waiting.wait(error).await.with_context(|| {
                format!("given up; exec {} may still be running", self.minding.id())
            })?;
        }
    }

    async fn converse(&mut self) -> Result<Left, Cut> {
        let Minding {
            client, workspace, ..
        } = self.minding;
        let (mut speaker, mut listener) = client
            .attach(workspace, self.minding.id(), self.offset)
            .await?;
        if let Heard::Exec(exec) = listener.next().await? {
            self.check_input(&exec).await?;
        } else {
            return Err(Error::Unexpected("it does not begin with the exec").into());
        }
        let mut hearing = Hearing {
            listener: &mut listener,
            offset: &mut self.offset,
            torn: &mut self.torn,
            printer: self.printer,
            arrived: &self.arrived,
            refused: &self.refused,
        };
        let listening = hearing.listen();
        let speaking = speak(&mut speaker, &mut self.input, &self.sent, &self.refused);
        tokio::select! {
            // What was heard is told before what could not be said.
            biased;
            left = listening => left,
            left = speaking => left,
        }
    }

    /// Sees to it that no input is missing in the middle.
    async fn check_input(&mut self, exec: &Exec) -> Result<(), Cut> {
        let lost = self.sent.get() > self.arrived.get();
        if exec.stdin != Stdin::Open || exec.outcome.is_some() {
            self.input = None;
            return Ok(());
        }
        if lost && !exec.tty && self.input.is_some() {
            self.minding.kill().await.map_err(Cut::Failed)?;
            return Err(Cut::Failed(anyhow!(
                "the connection broke with input under way; what of it arrived cannot be told, so the command was killed"
            )));
        }
        self.arrived.set(self.sent.get());
        Ok(())
    }
}

/// Attempts to reach a provider again.
#[derive(Default)]
pub(super) struct Waiting {
    since: Option<Instant>,
    pause: Duration,
}

impl Waiting {
    /// Whether there was something to wait for.
    pub(super) fn has_begun(&self) -> bool {
        self.since.is_some()
    }

    /// Waits for the next attempt, or gives the error back if there were enough.
    pub(super) async fn wait(&mut self, error: Error) -> Result<(), Error> {
        let (first, longest) = PAUSES;
        match self.since {
            None => {
                self.since = Some(Instant::now());
                self.pause = first;
            }
            Some(since) if since.elapsed() > PATIENCE => return Err(error),
            Some(_) => {
                // Only where it does not work at once, there is something to say.
                if self.pause == first {
                    note("the connection broke; trying to reach derrick again");
                }
                self.pause = (self.pause * 2).min(longest);
            }
        }
        sleep(self.pause).await;
        Ok(())
    }
}

/// What is done about what is heard.
struct Hearing<'a> {
    listener: &'a mut Listener,
    offset: &'a mut u64,
    torn: &'a mut bool,
    printer: &'a mut Printer,
    arrived: &'a Cell<u64>,
    refused: &'a Cell<bool>,
}

impl Hearing<'_> {
    /// Prints what the exec prints, until its end.
    async fn listen(&mut self) -> Result<Left, Cut> {
        loop {
            match self.listener.next().await? {
                Heard::Output { stream, bytes } => {
                    let length = bytes.len() as u64;
                    let printed = self.printer.print(stream, bytes).await;
                    printed.map_err(|NoReader| Cut::Reader)?;
                    *self.offset += length;
                }
                Heard::Gap { from, to } => {
                    note_gap(from, to);
                    *self.torn = true;
                    *self.offset = to;
                }
                // Only input is said here, so it is about that. A command that reads no more of it
                // is nothing to be told of, as in a pipe.
                Heard::Complaint => self.refused.set(true),
                Heard::Arrived(mark) => self.arrived.set(mark),
                Heard::Exec(_) => {}
                Heard::End(exec) if *self.torn => return Ok(Left::Torn(exec)),
                Heard::End(exec) => return Ok(Left::Ended(exec)),
            }
        }
    }
}

/// Passes on what is typed or piped in; then leaves the word to the exec.
async fn speak(
    speaker: &mut Speaker,
    input: &mut Option<Keyboard>,
    sent: &Cell<u64>,
    refused: &Cell<bool>,
) -> Result<Left, Cut> {
    while let Some(keyboard) = input {
        let typed = keyboard.next().await;
        if refused.get() {
            break;
        }
        match typed {
            Some(Typed::Keys(bytes)) => say(speaker, &bytes, sent).await?,
            Some(Typed::Leave(bytes)) => {
                say(speaker, &bytes, sent).await?;
                return Ok(Left::Detached);
            }
            None => {
                speaker.end_input().await?;
                break;
            }
        }
    }
    pending().await
}

async fn say(speaker: &mut Speaker, bytes: &[u8], sent: &Cell<u64>) -> Result<(), Error> {
    if bytes.is_empty() {
        return Ok(());
    }
    sent.set(sent.get() + bytes.len() as u64);
    speaker.input(bytes).await?;
    speaker.mark(sent.get()).await
}

/// This process's stdin, read on a thread of its own.
pub(super) struct Keyboard {
    pieces: mpsc::Receiver<Vec<u8>>,
    keys: Option<LeavingKeys>,
    // Dropped last of all: then the terminal is itself again.
    _raw: Option<RawTerminal>,
}

impl Keyboard {
    /// Passes on every byte.
    pub(super) fn piped() -> Self {
        Self {
            pieces: read_stdin(),
            keys: None,
            _raw: None,
        }
    }

    /// Passes on every key as it is pressed, but for those that leave.
    pub(super) fn raw() -> io::Result<Self> {
        let raw = RawTerminal::enter()?;
        Ok(Self {
            pieces: read_stdin(),
            keys: Some(LeavingKeys::default()),
            _raw: Some(raw),
        })
    }

    /// What was typed next; `None` at its end, also when asked again.
    async fn next(&mut self) -> Option<Typed> {
        let piece = self.pieces.recv().await?;
        Some(match &mut self.keys {
            Some(keys) => keys.look(&piece),
            None => Typed::Keys(piece),
        })
    }
}

/// The thread is never joined: it ends with its input, which may be never.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut piece = vec![0; PIECE];
        loop {
            match stdin.read(&mut piece) {
                Ok(read @ 1..) if sender.blocking_send(piece[..read].to_vec()).is_ok() => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    receiver
}

/// Where an exec's output goes.
pub(super) enum Printer {
    /// To this process's own, written on a thread, because nobody knows when they take it.
    Own {
        pieces: mpsc::Sender<(Stream, Bytes)>,
        thread: JoinHandle<()>,
    },
    /// Into memory, as much of it as was asked for.
    Kept { stdout: Output, stderr: Output },
}

impl Printer {
    /// To this process's stdout and stderr.
    pub(super) fn own() -> Self {
        let (pieces, mut receiver) = mpsc::channel::<(Stream, Bytes)>(WAITING);
        let thread = std::thread::spawn(move || {
            while let Some((stream, bytes)) = receiver.blocking_recv() {
                let printed = match stream {
                    Stream::Stdout => write(io::stdout().lock(), &bytes),
                    Stream::Stderr => write(io::stderr().lock(), &bytes),
                };
                if printed.is_err() {
                    return;
                }
            }
        });
        Self::Own { pieces, thread }
    }

    /// At most `limit` bytes of each stream, from both ends.
    pub(super) fn kept(limit: usize) -> Self {
        Self::Kept {
            stdout: Output::limited(limit),
            stderr: Output::limited(limit),
        }
    }

    /// Prints a piece, when there is room for it.
    pub(super) async fn print(&mut self, stream: Stream, bytes: Bytes) -> Result<(), NoReader> {
        match self {
            Self::Own { pieces, .. } => pieces.send((stream, bytes)).await.map_err(|_| NoReader),
            Self::Kept { stdout, stderr } => {
                match stream {
                    Stream::Stdout => stdout.push(&bytes),
                    Stream::Stderr => stderr.push(&bytes),
                }
                Ok(())
            }
        }
    }

    /// Waits until everything is written; gives what was kept instead.
    pub(super) async fn finish(self) -> Kept {
        match self {
            Self::Own { pieces, thread } => {
                drop(pieces);
                // It does not panic, and if it did, there would be nothing to be done.
                let _ = tokio::task::spawn_blocking(move || thread.join()).await;
                Kept::default()
            }
            Self::Kept { stdout, stderr } => {
                let text =
                    |output: Output| String::from_utf8_lossy(&output.into_bytes()).into_owned();
                Kept {
                    stdout: text(stdout),
                    stderr: text(stderr),
                }
            }
        }
    }
}

/// Output that was kept, as text.
#[derive(Debug, Default, serde::Serialize)]
pub(super) struct Kept {
    stdout: String,
    stderr: String,
}

fn write(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Says that output is missing.
pub(super) fn note_gap(from: u64, to: u64) {
    note(&format!(
        "{} bytes of its output were not kept",
        to.saturating_sub(from)
    ));
}

/// A line of derrick's own beside an exec's output.
pub(super) fn note(text: &str) {
    let _ = write!(
        io::stderr().lock(),
        "derrick: {text}{}",
        terminal::line_end()
    );
}
