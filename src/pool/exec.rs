//! One command, from its start to its end: what it prints, its deadline, how it ended.
//!
//! It ends with its leader: what the leader wrote is all in its pipes by then. A background child
//! that holds a pipe open goes on; what it writes within a moment still counts, as it may well be what
//! the leader wrote through it (`> >(tee log)`), and what it writes later is read and forgotten, so that
//! it does not die of a closed pipe.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, fchmod, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::channel::watch;
use super::output::Output;
use super::{Gone, Running, Sandbox, SandboxError};
use crate::init::protocol::{Exec, Exit, Status, Usage};
use crate::sys::terminal;

/// Bytes that are read at once.
const CHUNK: usize = 64 * 1024;

/// How long what others print still counts after a command's end, as long as they hold its pipes.
const DRAIN: Duration = Duration::from_millis(200);

/// Bytes that are still read from a terminal whose command ended.
const TERMINAL_REST: usize = 1 << 20;

/// How long a background process waits that has filled a pipe which nobody reads for any use: what it
/// prints takes no time of others.
const PAUSE: Duration = Duration::from_millis(10);

/// How long a killed command may take to end, after which its sandbox is ended.
const DYING: Duration = Duration::from_secs(5);

/// One of the two things that a command prints to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Descriptor 1; everything, where the streams are merged or are a terminal.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// Whether stdout and stderr can be told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Streams {
    /// A pipe each. What comes of both is in the order in which it was seen.
    #[default]
    Apart,
    /// One pipe for both, so that it is in the order in which it was written.
    Merged,
}

/// Takes what a command prints, as it comes.
pub trait Sink: Send {
    /// Takes some bytes; while it does, no more are read.
    fn take(&mut self, stream: Stream, bytes: Vec<u8>) -> impl Future<Output = ()> + Send;
}

/// What ends a command besides itself.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// When its whole tree is killed.
    pub deadline: Option<Instant>,
    /// Cancelled by whoever wants it killed.
    pub kill: CancellationToken,
}

impl Bounds {
    /// Waits until the command is to be killed.
    pub async fn passed(&self) {
        tokio::select! {
            () = passing(self.deadline) => {}
            () = self.kill.cancelled() => {}
        }
    }
}

/// What ended a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Itself, or something else inside.
    Own,
    /// Its deadline.
    Deadline,
    /// [`Bounds::kill`].
    Killed,
}

/// A command that init was asked for, with derrick's ends of what it prints to.
#[derive(Debug)]
pub struct Started {
    /// The command.
    pub running: Running,
    kind: Kind,
    outlets: [Option<Outlet>; 2],
    flushes: mpsc::Receiver<oneshot::Sender<()>>,
    flusher: Flusher,
}

/// Sees to it that what a command has printed by now is passed on.
#[derive(Debug, Clone)]
pub struct Flusher(mpsc::Sender<oneshot::Sender<()>>);

impl Flusher {
    /// Returns when all that was in the command's pipes at the call has been passed on, or the
    /// command has ended.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        // Nobody receives, and nobody answers, once it has ended.
        if self.0.send(done).await.is_ok() {
            let _ = flushed.await;
        }
    }
}

/// Starts `exec` in `sandbox`. `given` are its stdin and its descriptors from 3 on; without a stdin
/// it reads the sandbox's `/dev/null`.
///
/// # Errors
/// `Gone`; `Unreachable` if there are no pipes to be had.
pub async fn start(
    sandbox: &Sandbox,
    exec: Exec,
    given: Vec<OwnedFd>,
    streams: Streams,
) -> Result<Started, SandboxError> {
    if exec.terminal.is_some() {
        let running = sandbox.exec(exec, &[]).await?;
        return Ok(Started::new(running, Kind::Terminal, [None, None]));
    }
    let (stdout, output) = Outlet::pipe(Stream::Stdout)?;
    let (stderr, error) = match streams {
        Streams::Apart => {
            let (stderr, error) = Outlet::pipe(Stream::Stderr)?;
            (Some(stderr), error)
        }
        Streams::Merged => (None, output.try_clone().map_err(SandboxError::Unreachable)?),
    };
    let mut given = given.iter().map(AsFd::as_fd);
    let mut descriptors: Vec<BorrowedFd<'_>> = given.next().into_iter().collect();
    descriptors.extend([output.as_fd(), error.as_fd()]);
    descriptors.extend(given);
    let running = sandbox.exec(exec, &descriptors).await?;
    Ok(Started::new(running, Kind::Pipe, [Some(stdout), stderr]))
}

impl Started {
    fn new(running: Running, kind: Kind, outlets: [Option<Outlet>; 2]) -> Self {
        let (flusher, flushes) = mpsc::channel(1);
        Self {
            running,
            kind,
            outlets,
            flushes,
            flusher: Flusher(flusher),
        }
    }

    /// What flushes it while it is passed on.
    #[must_use]
    pub fn flusher(&self) -> Flusher {
        self.flusher.clone()
    }

    /// Waits until the program runs; the master of its terminal, if it has one.
    ///
    /// # Errors
    /// `Refused` if its directory or process cannot be had, `Gone`.
    pub async fn until_running(&mut self) -> Result<Option<OwnedFd>, SandboxError> {
        let master = match (self.kind, self.running.started().await?) {
            (Kind::Pipe, None) => return Ok(None),
            (Kind::Terminal, Some(master)) if terminal::is_master(master.as_fd()) => master,
            // Init is not trusted: anything else could block whoever reads it, or be anything.
            _ => return Err(SandboxError::Gone(Gone::Lost)),
        };
        let ours = master.try_clone().map_err(SandboxError::Unreachable)?;
        self.outlets[0] = Some(Outlet::new(Stream::Stdout, ours, Kind::Terminal)?);
        Ok(Some(master))
    }

    /// Passes on what the command prints until it ended.
    ///
    /// A deadline holds whatever happens inside: if the command has not ended a while after it was
    /// killed, init does not do its work, and the whole sandbox is ended.
    ///
    /// # Errors
    /// `Refused` if it could not be started, `Gone` if the sandbox ended first; what was printed
    /// until then has been passed on all the same.
    pub async fn to_end(
        mut self,
        sandbox: &Sandbox,
        sink: &mut impl Sink,
        bounds: &Bounds,
    ) -> Result<End, SandboxError> {
        let ended = self.pass_on_until_exit(sandbox, sink, bounds).await;
        let at = Instant::now();
        for outlet in &mut self.outlets {
            if let Some(open) = outlet
                && open.pass_on_what_is_there(sink).await == Rest::None
            {
                *outlet = None;
            }
        }
        if ended.as_ref().is_ok_and(|(exit, _)| !exit.killed) {
            self.drain(sink, at + DRAIN).await;
        }
        for outlet in self.outlets.into_iter().flatten() {
            sandbox.attend(outlet.forget_the_rest());
        }
        let (exit, cause) = ended?;
        Ok(End { exit, cause, at })
    }

    /// Passes on what comes until nobody holds a pipe any more, or until then.
    async fn drain(&mut self, sink: &mut impl Sink, until: Instant) {
        loop {
            tokio::select! {
                biased;
                () = sleep_until(until) => return,
                next = read_any(&mut self.outlets) => match next {
                    Some((stream, bytes)) => sink.take(stream, bytes).await,
                    None => return,
                },
            }
        }
    }

    async fn pass_on_until_exit(
        &mut self,
        sandbox: &Sandbox,
        sink: &mut impl Sink,
        bounds: &Bounds,
    ) -> Result<(Exit, Cause), SandboxError> {
        let mut cause = Cause::Own;
        let mut dying: Option<Instant> = None;
        let mut _hurry = None;
        loop {
            let kill = tokio::select! {
                exit = self.running.exit() => return match exit {
                    Ok(exit) if exit.killed => Ok((exit, cause)),
                    Ok(exit) => Ok((exit, Cause::Own)),
                    // Held back until it was to be killed.
                    Err(SandboxError::Refused(_)) if dying.is_some() => Ok((killed(), cause)),
                    // Init could not be sure to have found every process, and ended the sandbox.
                    Err(SandboxError::Gone(Gone::Lost)) if dying.is_some() => Ok((killed(), cause)),
                    Err(error) => Err(error),
                },
                Some((stream, bytes)) = read_any(&mut self.outlets) => {
                    sink.take(stream, bytes).await;
                    None
                }
                Some(done) = self.flushes.recv() => {
                    for outlet in self.outlets.iter().flatten() {
                        outlet.pass_on_what_is_there(sink).await;
                    }
                    // Whoever asked may be gone.
                    let _ = done.send(());
                    None
                }
                () = passing(bounds.deadline), if dying.is_none() => Some(Cause::Deadline),
                () = bounds.kill.cancelled(), if dying.is_none() => Some(Cause::Killed),
                () = passing(dying) => {
                    tracing::error!("a killed command does not end; ending its sandbox");
                    if let Err(error) = sandbox.end(Gone::Lost).await {
                        tracing::error!(%error, "cannot end a sandbox");
                    }
                    return Ok((killed(), cause));
                }
            };
            if let Some(kill) = kill {
                cause = kill;
                dying = Some(Instant::now() + DYING);
                _hurry = Some(sandbox.hurry());
                // If it cannot be asked, its sandbox is gone, which is told above.
                let _ = self.running.kill().await;
            }
        }
    }
}

fn killed() -> Exit {
    Exit {
        status: Status::Signal(libc::SIGKILL),
        killed: true,
        detached: 0,
        usage: Usage::default(),
        full: false,
    }
}

async fn passing(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct End {
    /// As init tells.
    pub exit: Exit,
    /// What ended it.
    pub cause: Cause,
    /// When that was heard; what others printed still counted for a moment more.
    pub at: Instant,
}

/// Reads some; `None` where nothing will come of any. Cancel safe.
async fn read_any([first, second]: &mut [Option<Outlet>; 2]) -> Option<(Stream, Vec<u8>)> {
    loop {
        let ended = tokio::select! {
            read = read(first), if first.is_some() => match read {
                Some(read) => return Some(read),
                None => &mut *first,
            },
            read = read(second), if second.is_some() => match read {
                Some(read) => return Some(read),
                None => &mut *second,
            },
            else => return None,
        };
        *ended = None;
    }
}

/// Reads some; `None` at the end. Cancel safe.
async fn read(outlet: &Option<Outlet>) -> Option<(Stream, Vec<u8>)> {
    let open = outlet.as_ref()?;
    Some((open.stream, open.read().await?))
}

/// What may still come of an outlet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Nothing: nobody holds it any more.
    None,
    /// Whatever those write who hold it.
    Some,
}

/// Derrick's end of what a command prints to.
#[derive(Debug)]
struct Outlet {
    stream: Stream,
    source: AsyncFd<OwnedFd>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pipe,
    Terminal,
}

impl Outlet {
    /// A pipe, and the command's end of it.
    fn pipe(stream: Stream) -> Result<(Self, OwnedFd), SandboxError> {
        let (reader, writer) = pipe().map_err(SandboxError::Unreachable)?;
        Ok((Self::new(stream, reader.into(), Kind::Pipe)?, writer.into()))
    }

    fn new(stream: Stream, source: OwnedFd, kind: Kind) -> Result<Self, SandboxError> {
        let watched = (|| {
            fcntl_setfl(&source, fcntl_getfl(&source)? | OFlags::NONBLOCK)?;
            watch(source, Interest::READABLE)
        })();
        Ok(Self {
            stream,
            source: watched.map_err(SandboxError::Unreachable)?,
            kind,
        })
    }

    /// Waits until there is something; `None` at the end, which for a terminal is EIO.
    async fn read(&self) -> Option<Vec<u8>> {
        let read = self
            .source
            .async_io(Interest::READABLE, |source| Ok(read_some(source, CHUNK)?));
        read.await.ok().filter(|bytes| !bytes.is_empty())
    }

    /// Ends with the last writer.
    async fn forget_the_rest(self) {
        while let Some(forgotten) = self.read().await {
            if forgotten.len() == CHUNK {
                sleep(PAUSE).await;
            }
        }
    }

    /// By the system call itself: tokio reads only after its reactor has heard of the data, which it
    /// may not have yet.
    async fn pass_on_what_is_there(&self, sink: &mut impl Sink) -> Rest {
        let mut left = match self.kind {
            Kind::Pipe => usize::try_from(rustix::io::ioctl_fionread(&self.source).unwrap_or(0))
                .unwrap_or(usize::MAX),
            Kind::Terminal => TERMINAL_REST,
        };
        // Once more than there is something: the end shows only then.
        loop {
            let most = if left == 0 { CHUNK } else { left.min(CHUNK) };
            match read_some(self.source.get_ref(), most) {
                Ok(bytes) if bytes.is_empty() => return Rest::None,
                Ok(bytes) => {
                    let done = left == 0;
                    left = left.saturating_sub(bytes.len());
                    sink.take(self.stream, bytes).await;
                    if done {
                        return Rest::Some;
                    }
                }
                Err(Errno::AGAIN) => return Rest::Some,
                Err(_) => return Rest::None,
            }
        }
    }
}

/// A pipe that a command can open by name as well, such as `/dev/stderr`, whoever it runs as: its
/// inode is derrick's, whose ids are not known inside.
///
/// # Errors
/// Those of pipe2(2).
pub fn pipe() -> io::Result<(io::PipeReader, io::PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    fchmod(&writer, Mode::from_raw_mode(0o666))?;
    Ok((reader, writer))
}

fn read_some(source: &OwnedFd, most: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::with_capacity(most);
    rustix::io::retry_on_intr(|| {
        rustix::io::read(source, rustix::buffer::spare_capacity(&mut bytes))
    })?;
    Ok(bytes)
}

/// A command that ran without a deadline, and what it printed.
#[derive(Debug)]
pub struct Ended {
    /// stdout and stderr, interleaved as written, within the limit.
    pub output: Output,
    /// As wait(2) tells.
    pub status: Status,
}

impl Ended {
    /// As a shell would report it: the exit code, or 128 + the signal.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self.status {
            Status::Code(code) => code,
            Status::Signal(signal) => 128 + signal,
        }
    }
}

/// Runs `exec` in `sandbox` to its end, and keeps what it prints in memory.
///
/// # Errors
/// Those of `start` and `to_end`.
pub async fn run(
    sandbox: &Sandbox,
    exec: Exec,
    input: Option<OwnedFd>,
) -> Result<Ended, SandboxError> {
    let mut output = Output::default();
    let given = input.into_iter().collect();
    let started = start(sandbox, exec, given, Streams::Merged).await?;
    let end = started
        .to_end(sandbox, &mut output, &Bounds::default())
        .await?;
    Ok(Ended {
        output,
        status: end.exit.status,
    })
}

impl Sink for Output {
    async fn take(&mut self, _stream: Stream, bytes: Vec<u8>) {
        self.push(&bytes);
    }
}
