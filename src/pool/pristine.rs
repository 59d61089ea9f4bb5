//! A sandbox that nobody has used yet: it is whole, nothing runs in it, and it waits to be adopted.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::channel::AsyncChannel;
use super::sandbox::{OWN_END, Sandbox};
use super::spawner::{OwnedGroup, Spawner, SpawnerError};
use crate::init::protocol::{Reply, Request};
use crate::sandbox::{Failure, MemoryFiles, Step, Storage};
use crate::sys::channel::Peer;

/// How long init may take to give up what it may do.
const ADOPTING: Duration = Duration::from_secs(10);

/// A pristine sandbox. It ends when this is dropped.
#[derive(Debug)]
pub struct Pristine {
    spawner: Spawner,
    channel: AsyncChannel,
    init: OwnedFd,
    group: Option<OwnedGroup>,
    storage: Storage,
    memory_files: MemoryFiles,
}

impl Pristine {
    pub(super) fn new(
        spawner: Spawner,
        socket: OwnedFd,
        init: OwnedFd,
        group: Option<OwnedGroup>,
        storage: Storage,
        memory_files: MemoryFiles,
    ) -> std::io::Result<Self> {
        Ok(Self {
            spawner,
            channel: AsyncChannel::new(socket, Peer::Untrusted)?,
            init,
            group,
            storage,
            memory_files,
        })
    }

    /// Whether its init is still there.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // A pidfd is readable when its process ended, pidfd_open(2).
        let mut ended = [PollFd::new(&self.init, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut ended, Some(&at_once)), Ok(0))
    }

    /// Confines it, under this name: commands can run in it then.
    ///
    /// # Errors
    /// The step that failed; nothing of it is left then but its directories.
    pub async fn adopt(self, hostname: String) -> Result<Sandbox, SpawnerError> {
        let died = || {
            let detail = "a sandbox's init died before it was adopted";
            SpawnerError::NotCreated(Failure::new(Step::Process, detail))
        };
        // Its first and only request until it answers.
        let id = 0;
        let answer = async {
            self.channel
                .send(&Request::Adopt(id, hostname), &[])
                .await
                .ok()?;
            self.channel.receive::<Reply>().await.ok()?
        };
        let answer = tokio::time::timeout(ADOPTING, answer).await;
        match answer.ok().flatten().map(|reply| reply.message) {
            Some(Reply::Adopted(_, enforcement)) => Sandbox::new(
                self.spawner,
                self.channel,
                self.init,
                *enforcement,
                self.memory_files,
                self.group,
                self.storage,
            )
            .map_err(SpawnerError::Unreachable),
            Some(Reply::NotAdopted(_, failure)) => Err(SpawnerError::NotCreated(failure)),
            _ => Err(died()),
        }
    }

    /// Ends it, and waits until it is gone.
    ///
    /// # Errors
    /// Where the spawner cannot kill it and it does not end by itself.
    pub async fn end(self) -> Result<(), SpawnerError> {
        // Init ends when its socket does.
        self.channel.shut_down();
        let killed = self.spawner.end(self.init.as_fd()).await;
        let init = super::watch(self.init, tokio::io::Interest::READABLE)
            .map_err(SpawnerError::Unreachable)?;
        // Only a closed runtime fails.
        let ended = init.readable();
        match killed {
            Ok(()) => drop(ended.await),
            // A spawner that was started anew cannot kill what the one before it made.
            Err(error) => drop(
                tokio::time::timeout(OWN_END, ended)
                    .await
                    .map_err(|_| error)?,
            ),
        }
        Ok(())
    }
}
