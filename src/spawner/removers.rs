//! Processes that remove directories: a few beside each other, since it is the disk that each waits for,
//! and each for one directory after another, since making a process costs as much as an empty one.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::protocol::{Removed, RequestId};
use super::{let_go_of_all_but, removal};
use crate::sandbox::{At, Failure, Step};
use crate::sys::channel::{Channel, Peer, Received};
use crate::sys::process::{Child, OneThread, fork_child};

/// How many there are at the most: as many as the provider asks for at once.
const MOST: usize = 12;
/// How long one waits for another directory.
const IDLE: Duration = Duration::from_secs(1);

/// All of them, and what waits for one.
#[derive(Debug, Default)]
pub(super) struct Removers {
    all: Vec<Remover>,
    waiting: VecDeque<(RequestId, PathBuf)>,
}

#[derive(Debug)]
struct Remover {
    /// Until it is reaped.
    process: Option<Child>,
    channel: Channel,
    /// The request that it works for.
    busy: Option<RequestId>,
}

/// Said by one.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// The directory is gone.
    Done(Removed),
    /// Part of it may be left, because of this errno.
    Failed(i32),
    /// It has had nothing to do for a while, and ends if that stays so.
    Idle,
}

/// A request that was worked on, and what became of it.
pub(super) type Answer = (RequestId, Result<Removed, Failure>);

impl Removers {
    /// Has a directory removed, at once or in its turn.
    ///
    /// # Errors
    /// Where there is no process for it, and none that would come to it.
    pub(super) fn remove(
        &mut self,
        one: OneThread,
        id: RequestId,
        path: PathBuf,
    ) -> Result<(), Failure> {
        self.waiting.push_back((id, path));
        match self.hand_out(one) {
            Some(failure) if self.all.is_empty() => {
                self.waiting.retain(|(waiting, _)| *waiting != id);
                Err(failure)
            }
            _ => Ok(()),
        }
    }

    /// What to listen to.
    pub(super) fn channels(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.all.iter().map(|remover| remover.channel.as_fd())
    }

    /// Takes what the remover at this place among [`Self::channels`] says. The places of others may be
    /// other ones then, but for those before it.
    pub(super) fn hear(&mut self, one: OneThread, place: usize) -> Vec<Answer> {
        let answer = self.take_word(place);
        let failure = self.hand_out(one);
        // Where no process is left, and none can be made, nobody would come for what waits.
        let given_up = failure.filter(|_| self.all.is_empty()).map(|failure| {
            let waiting = std::mem::take(&mut self.waiting);
            let answer = move |(id, _)| (id, Err(failure.clone()));
            waiting.into_iter().map(answer)
        });
        answer
            .into_iter()
            .chain(given_up.into_iter().flatten())
            .collect()
    }

    fn take_word(&mut self, place: usize) -> Option<Answer> {
        let remover = &mut self.all[place];
        let word = remover.channel.receive::<Word>();
        let answer = match word.ok().flatten().map(|word| word.message) {
            Some(Word::Idle) if remover.busy.is_some() => return None,
            Some(Word::Idle) => {
                self.all.swap_remove(place);
                return None;
            }
            Some(Word::Done(removed)) => Ok(removed),
            Some(Word::Failed(errno)) => Err(failed(errno)),
            // Somebody killed it, which is no errno.
            None => {
                let busy = self.all.swap_remove(place).busy;
                return busy.map(|id| (id, Err(failed(0))));
            }
        };
        Some((remover.busy.take()?, answer))
    }

    /// The processes.
    pub(super) fn processes(&self) -> impl Iterator<Item = Child> {
        self.all.iter().filter_map(|remover| remover.process)
    }

    /// Takes note that a process was reaped, whose id may be another's from here on.
    pub(super) fn reaped(&mut self, pid: i32) {
        for remover in &mut self.all {
            remover.process = remover.process.filter(|process| process.id() != pid);
        }
    }

    /// Gives what waits to those that are free, and to new ones as long as there may be more; why there
    /// could not be.
    fn hand_out(&mut self, one: OneThread) -> Option<Failure> {
        while !self.waiting.is_empty() {
            let free = self.all.iter().position(|remover| remover.busy.is_none());
            let place = match free {
                Some(place) => place,
                None if self.all.len() == MOST => return None,
                None => match Remover::start(one) {
                    Ok(remover) => {
                        self.all.push(remover);
                        self.all.len() - 1
                    }
                    Err(failure) => return Some(failure),
                },
            };
            let remover = &mut self.all[place];
            if let Some((id, path)) = self.waiting.pop_front() {
                remover.busy = Some(id);
                // One that is gone is heard of.
                let _ = remover.channel.send(&path, &[]);
            }
        }
        None
    }
}

impl Remover {
    fn start(one: OneThread) -> Result<Self, Failure> {
        let step = Step::Process;
        let (channel, theirs) =
            Channel::pair(Peer::Trusted).at(step, "making a socket for a remover")?;
        let process = fork_child(one, || match let_go_of_all_but(&[theirs.as_fd()]) {
            Ok(()) => serve(&theirs),
            Err(_) => 1,
        })
        .at(step, "forking to remove a directory")?;
        Ok(Self {
            process: Some(process),
            channel,
            busy: None,
        })
    }
}

/// The life of one: until the spawner closes its socket.
fn serve(spawner: &Channel) -> i32 {
    // Told apart from the spawner where processes are looked at. It is only a name.
    let _ = rustix::thread::set_name(c"derrick-remover");
    // Background work: what runs in workspaces goes first.
    let _ = rustix::process::nice(10);
    loop {
        if !is_readable(spawner) && spawner.send(&Word::Idle, &[]).is_err() {
            return 0;
        }
        let Ok(Some(Received { message: path, .. })) = spawner.receive::<PathBuf>() else {
            return 0;
        };
        let word = match removal::remove(&path) {
            Ok(removed) => Word::Done(removed),
            Err(error) => Word::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        if spawner.send(&word, &[]).is_err() {
            return 0;
        }
    }
}

/// Whether there is something to receive within a while.
fn is_readable(channel: &Channel) -> bool {
    let mut event = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(IDLE).unwrap_or(PollTimeout::MAX);
    matches!(poll(&mut event, timeout), Ok(1..))
}

fn failed(errno: i32) -> Failure {
    Failure {
        step: Step::Process,
        errno,
        detail: "removing a directory".into(),
    }
}
