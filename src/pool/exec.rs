//! One command, from its start to its end: what it prints, its deadline, how it ended.
//!
//! It ends with its leader: what the leader wrote is all in its pipes by then. A background child
//! that holds a pipe open goes on, and what it writes is read and forgotten, so that it does not die
//! of a closed pipe.

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
    ) -> Result<(Exit, Cause), SandboxError> {
        let ended = self.pass_on_until_exit(sandbox, sink, bounds).await;
        for outlet in self.outlets.into_iter().flatten() {
            outlet.finish(sandbox, sink).await;
        }
        ended
    }

    async fn pass_on_until_exit(
        &mut self,
        sandbox: &Sandbox,
        sink: &mut impl Sink,
        bounds: &Bounds,
    ) -> Result<(Exit, Cause), SandboxError> {
        let mut cause = Cause::Own;
        let mut dying: Option<Instant> = None;
        loop {
            let [first, second] = &mut self.outlets;
            let kill = tokio::select! {
                exit = self.running.exit() => return match exit {
                    Ok(exit) if exit.killed => Ok((exit, cause)),
                    Ok(exit) => Ok((exit, Cause::Own)),
                    // Init could not be sure to have found every process, and ended the sandbox.
                    Err(SandboxError::Gone(Gone::Lost)) if dying.is_some() => Ok((killed(), cause)),
                    Err(error) => Err(error),
                },
                (stream, bytes) = read(first) => {
                    sink.take(stream, bytes).await;
                    None
                }
                (stream, bytes) = read(second) => {
                    sink.take(stream, bytes).await;
                    None
                }
                Some(done) = self.flushes.recv() => {
                    for outlet in [first, second].into_iter().flatten() {
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
    }
}

async fn passing(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Reads some; waits for ever where there is nothing to come. Cancel safe.
async fn read(outlet: &mut Option<Outlet>) -> (Stream, Vec<u8>) {
    let Some(open) = outlet else {
        return pending().await;
    };
    let stream = open.stream;
    match open.read().await {
        Some(bytes) => (stream, bytes),
        None => {
            *outlet = None;
            pending().await
        }
    }
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

    /// Passes on what is there already, and forgets what may still come.
    async fn finish(self, sandbox: &Sandbox, sink: &mut impl Sink) {
        self.pass_on_what_is_there(sink).await;
        match read_some(self.source.get_ref(), CHUNK) {
            Ok(bytes) if bytes.is_empty() => {}
            // Somebody holds it yet.
            Ok(_) | Err(Errno::AGAIN) => sandbox.attend(self.forget_the_rest()),
            Err(_) => {}
        }
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
    async fn pass_on_what_is_there(&self, sink: &mut impl Sink) {
        let mut left = match self.kind {
            Kind::Pipe => usize::try_from(rustix::io::ioctl_fionread(&self.source).unwrap_or(0))
                .unwrap_or(usize::MAX),
            Kind::Terminal => TERMINAL_REST,
        };
        while left > 0 {
            match read_some(self.source.get_ref(), left.min(CHUNK)) {
                Ok(bytes) if bytes.is_empty() => return,
                Ok(bytes) => {
                    left = left.saturating_sub(bytes.len());
                    sink.take(self.stream, bytes).await;
                }
                Err(_) => return,
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
    let (exit, _own) = started
        .to_end(sandbox, &mut output, &Bounds::default())
        .await?;
    Ok(Ended {
        output,
        status: exit.status,
    })
}

impl Sink for Output {
    async fn take(&mut self, _stream: Stream, bytes: Vec<u8>) {
        self.push(&bytes);
    }
}
