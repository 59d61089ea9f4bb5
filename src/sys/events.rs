//! What init and spawner wait for: a message of the provider's, or the end of a child.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::channel::Channel;

/// Tells of ended children of the calling process, by a descriptor instead of a signal.
#[derive(Debug)]
pub struct Events {
    ended: SignalFd,
}

/// What happened; all of it can have.
#[derive(Debug)]
pub struct Happened {
    /// There is a message to receive, or the other side is gone.
    pub message: bool,
    /// Children ended since this was asked last.
    pub child_ended: bool,
    /// Which of the others are readable, by their place.
    pub others: Vec<usize>,
}

impl Events {
    /// Blocks `SIGCHLD` and watches for it instead.
    ///
    /// # Errors
    /// Those of sigprocmask(2) and signalfd(2).
    pub fn watch() -> io::Result<Self> {
        let mut children = SigSet::empty();
        children.add(Signal::SIGCHLD);
        children.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self {
            ended: SignalFd::with_flags(&children, flags)?,
        })
    }

    /// Waits until something happened, no longer than `patience`; `others` are descriptors to wait for beside.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait<'a>(
        &self,
        channel: &Channel,
        others: impl Iterator<Item = BorrowedFd<'a>>,
        patience: Option<Duration>,
    ) -> io::Result<Happened> {
        let mut events = vec![
            PollFd::new(channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.ended.as_fd(), PollFlags::POLLIN),
        ];
        events.extend(others.map(|other| PollFd::new(other, PollFlags::POLLIN)));
        // A poll that ends a moment early would be made again and again.
        let patience = patience.map(|patience| patience + Duration::from_millis(1));
        let patience = patience.map_or(PollTimeout::NONE, |patience| {
            PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut events, patience) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let happened = |event: &PollFd<'_>| event.any().unwrap_or(true);
        let happened = Happened {
            message: happened(&events[0]),
            child_ended: happened(&events[1]),
            others: (0..events.len() - 2)
                .filter(|place| happened(&events[place + 2]))
                .collect(),
        };
        if happened.child_ended {
            while matches!(self.ended.read_signal(), Ok(Some(_))) {}
        }
        Ok(happened)
    }
}
