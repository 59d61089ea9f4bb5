//! Built-in programs of init's: one that does its work, and one that is talked to meanwhile, over a
//! socket that is its stdin.
//!
//! They run in the sandbox like any command, and like any command they can be stopped or killed from
//! there: who waits for one sets a limit. Dropped before its end, it is ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::channel::AsyncChannel;
use super::{Running, Sandbox, SandboxError};
use crate::init::protocol::{Exec, Exit};
use crate::sys::channel::{Channel, Peer, Received};

/// How long it may take to end by itself once nobody talks to it any more.
const GRACE: Duration = Duration::from_secs(2);
/// How long it may take to end once it was killed.
const DYING: Duration = Duration::from_secs(5);

/// A built-in program that is ended when this is dropped, unless it was let finish.
#[derive(Debug)]
pub(super) struct BuiltIn {
    sandbox: Sandbox,
    /// Until it is let finish.
    running: Option<Running>,
}

/// One that is talked to.
#[derive(Debug)]
pub(super) struct Conversation {
    // Closed first, on which the program ends.
    channel: AsyncChannel,
    program: BuiltIn,
}

/// Why there is nothing more to be heard.
#[derive(Debug)]
pub(super) enum Silence {
    /// Its sandbox refused to start it, or ended.
    Sandbox(SandboxError),
    /// It ended before it had said everything: killed from inside, or out of memory.
    Ended(Exit),
    /// It said what it never says.
    Garbled,
}

impl Sandbox {
    /// Starts `exec`, a built-in program, with these descriptors for stdin, stdout and stderr.
    ///
    /// # Errors
    /// `Gone`.
    pub(super) async fn run_built_in(
        &self,
        exec: Exec,
        descriptors: &[BorrowedFd<'_>; 3],
    ) -> Result<BuiltIn, SandboxError> {
        let running = self.exec(exec, descriptors).await?;
        Ok(BuiltIn {
            sandbox: self.clone(),
            running: Some(running),
        })
    }

    /// Starts `exec`, a built-in program that talks, with its stdout if it writes there.
    ///
    /// # Errors
    /// `Gone`; `Unreachable` where this process has no descriptors left.
    pub(super) async fn converse(
        &self,
        exec: Exec,
        output: Option<BorrowedFd<'_>>,
    ) -> Result<Conversation, SandboxError> {
        let (ours, theirs) = Channel::pair(Peer::Untrusted).map_err(SandboxError::Unreachable)?;
        let channel = AsyncChannel::new(ours.into_socket(), Peer::Untrusted)
            .map_err(SandboxError::Unreachable)?;
        let socket = theirs.as_fd();
        let descriptors = [socket, output.unwrap_or(socket), socket];
        let program = self.run_built_in(exec, &descriptors).await?;
        Ok(Conversation { channel, program })
    }
}

impl Conversation {
    /// The next word. Cancel safe.
    ///
    /// # Errors
    /// See [`Silence`].
    pub(super) async fn hear<M: DeserializeOwned>(&mut self) -> Result<Received<M>, Silence> {
        let hearing = async { Ok::<_, SandboxError>(self.channel.receive::<M>().await) };
        // It may go on in a sandbox that is gone: nobody is to take what it does there for done.
        match self.program.sandbox.unless_gone(hearing).await {
            Ok(Ok(Some(received))) => Ok(received),
            // Its end of the socket is closed: it has ended, or was never started.
            Ok(Ok(None)) => Err(self.program.silence().await),
            Ok(Err(_)) => Err(Silence::Garbled),
            Err(gone) => Err(Silence::Sandbox(gone)),
        }
    }

    /// Says something to it. What is said to one that has ended is lost.
    ///
    /// # Errors
    /// `Garbled` where it does not take what it is sent.
    pub(super) async fn say<M: Serialize>(&self, message: &M) -> Result<(), Silence> {
        match self.channel.send(message, &[]).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Silence::Garbled),
            _ => Ok(()),
        }
    }

    /// Where it runs.
    pub(super) fn sandbox(&self) -> &Sandbox {
        &self.program.sandbox
    }

    /// It has said its last word, and ends by itself.
    pub(super) fn finish(self) {
        self.program.finish();
    }
}

impl BuiltIn {
    /// Waits until it runs. Cancel safe.
    ///
    /// # Errors
    /// `Refused` if its user or process cannot be had, `Gone`.
    pub(super) async fn started(&mut self) -> Result<(), SandboxError> {
        match &mut self.running {
            Some(running) => running.started().await.map(drop),
            None => Ok(()),
        }
    }

    /// Waits for its end, after which it says no more.
    pub(super) async fn silence(&mut self) -> Silence {
        let Some(running) = &mut self.running else {
            return Silence::Garbled;
        };
        let exit = running.exit().await;
        self.running = None;
        match exit {
            Ok(exit) => Silence::Ended(exit),
            Err(error) => Silence::Sandbox(error),
        }
    }

    /// It has done its work, and ends by itself.
    pub(super) fn finish(mut self) {
        self.running = None;
    }
}

impl Drop for BuiltIn {
    fn drop(&mut self) {
        // Without a runtime derrick is ending, and the sandbox with it.
        if let Some(running) = self.running.take()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            self.sandbox.attend(end(running));
        }
    }
}

/// Sees to the end of a program whose work nobody wants any more.
async fn end(mut running: Running) {
    if tokio::time::timeout(GRACE, running.exit()).await.is_ok() {
        return;
    }
    let killing = async {
        running.kill().await?;
        running.exit().await
    };
    match tokio::time::timeout(DYING, killing).await {
        Ok(Ok(_) | Err(SandboxError::Gone(_))) => {}
        other => tracing::error!(?other, "a built-in program of a sandbox does not end"),
    }
}
