//! One command run to its end: its output, its deadline, its outcome.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::unix::pipe::Receiver;

use super::output::Output;
use super::{Gone, Running, Sandbox, SandboxError};
use crate::init::protocol::{Exec, Exit, Status};

/// Bytes that are read from a pipe at once.
const CHUNK: usize = 64 * 1024;

/// How a command ended, and what it printed.
#[derive(Debug)]
pub struct Ended {
    /// stdout and stderr, interleaved as written, within the limit.
    pub output: Output,
    /// As wait(2) tells.
    pub status: Status,
    /// Whether its deadline ended it.
    pub deadline: bool,
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

/// How long a killed command may take to end, after which its sandbox is ended.
const DYING: Duration = Duration::from_secs(5);

/// Runs `exec` in `sandbox`, with one pipe for stdout and stderr, so that their order is kept.
/// `input` is its stdin; without one it reads nothing.
///
/// It ends with its leader: what the leader wrote is all in the pipe by then. A background child
/// that holds the pipe open goes on, and what it writes is read and forgotten, so that it does not
/// die of a closed pipe.
///
/// A deadline holds whatever happens inside: if the command has not ended a while after it was
/// killed, init does not do its work, and the whole sandbox is ended.
///
/// # Errors
/// `Refused` if it cannot be started, `Gone` if the sandbox ended first.
pub async fn run(
    sandbox: &Sandbox,
    exec: Exec,
    input: Option<OwnedFd>,
    timeout: Option<Duration>,
) -> Result<Ended, SandboxError> {
    let (reader, writer) = io::pipe().map_err(SandboxError::Unreachable)?;
    let mut descriptors: Vec<BorrowedFd<'_>> = input.iter().map(AsFd::as_fd).collect();
    descriptors.extend([writer.as_fd(), writer.as_fd()]);
    let mut running = sandbox.exec(exec, &descriptors).await?;
    drop((writer, input));
    let pipe = Receiver::from_owned_fd(reader.into()).map_err(SandboxError::Unreachable)?;
    let mut output = Output::default();
    let exit = match timeout {
        None => read_until_exit(&mut running, &pipe, &mut output).await?,
        Some(timeout) => {
            let reading = read_until_exit(&mut running, &pipe, &mut output);
            match tokio::time::timeout(timeout, reading).await {
                Ok(exit) => exit?,
                Err(_passed) => end_by_deadline(sandbox, &mut running, &pipe, &mut output).await?,
            }
        }
    };
    let left = rustix::io::ioctl_fionread(&pipe).unwrap_or(0);
    if read_what_is_there(&pipe, left, &mut output) == PipeState::Open {
        tokio::spawn(forget(pipe));
    }
    Ok(Ended {
        output,
        status: exit.status,
        deadline: exit.killed,
    })
}

async fn read_until_exit(
    running: &mut Running,
    pipe: &Receiver,
    output: &mut Output,
) -> Result<Exit, SandboxError> {
    let mut open = true;
    loop {
        tokio::select! {
            exit = running.exit() => return exit,
            state = read_some(pipe, output), if open => open = state == PipeState::Open,
        }
    }
}

async fn end_by_deadline(
    sandbox: &Sandbox,
    running: &mut Running,
    pipe: &Receiver,
    output: &mut Output,
) -> Result<Exit, SandboxError> {
    let killed = Exit {
        status: Status::Signal(libc::SIGKILL),
        killed: true,
    };
    let ending = async {
        running.kill().await?;
        read_until_exit(running, pipe, output).await
    };
    match tokio::time::timeout(DYING, ending).await {
        // Init could not be sure to have found every process, and ended the sandbox.
        Ok(Err(SandboxError::Gone(Gone::Lost))) => {}
        Ok(exit) => return exit,
        Err(_passed) => tracing::error!("a killed command does not end; ending its sandbox"),
    }
    if let Err(error) = sandbox.end(Gone::Lost).await {
        tracing::error!(%error, "cannot end a sandbox");
    }
    Ok(killed)
}

#[derive(Debug, PartialEq, Eq)]
enum PipeState {
    Open,
    Ended,
}

/// Waits until there is something to read, and reads some of it.
async fn read_some(pipe: &Receiver, output: &mut Output) -> PipeState {
    let mut chunk = vec![0; CHUNK];
    if pipe.readable().await.is_err() {
        return PipeState::Ended;
    }
    match pipe.try_read(&mut chunk) {
        Ok(0) => PipeState::Ended,
        Ok(read) => {
            output.push(&chunk[..read]);
            PipeState::Open
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => PipeState::Open,
        Err(_) => PipeState::Ended,
    }
}

/// Reads up to `most` bytes that are there already.
///
/// By the system call itself: tokio reads only after its reactor has heard of the data, which at
/// the end of a command it may not have yet.
fn read_what_is_there(pipe: &Receiver, most: u64, output: &mut Output) -> PipeState {
    let mut chunk = vec![0; CHUNK];
    let mut left = usize::try_from(most).unwrap_or(usize::MAX);
    while left > 0 {
        let room = left.min(CHUNK);
        match rustix::io::read(pipe, &mut chunk[..room]) {
            Ok(0) => return PipeState::Ended,
            Ok(read) => {
                output.push(&chunk[..read]);
                left -= read;
            }
            Err(Errno::INTR) => {}
            Err(_) => return PipeState::Open,
        }
    }
    PipeState::Open
}

/// Reads and throws away until the last writer is gone, with the sandbox at the latest.
async fn forget(pipe: Receiver) {
    while read_some(&pipe, &mut Output::nothing()).await == PipeState::Open {}
}
