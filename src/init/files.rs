//! Files of the workspace, worked on inside it: a process forked from init for each request.
//!
//! It is confined as any command is and acts as the user who was asked for, so every link resolves in
//! the workspace, and whatever it meets, a pipe, a tree without end, costs that process alone: init
//! goes on, and the provider kills it like any exec. What it opens is passed out as a descriptor, and
//! the provider gets no path.
//!
//! What is opened is a regular file or a directory, whatever a link says: pipes, sockets, devices and
//! the files of `/proc` and `/sys` are refused. Each is looked at through a handle that cannot be
//! swapped for something else, `O_PATH`, before it is opened.

pub(crate) mod archive;
mod copy;
mod fingerprint;
mod list;
mod place;
pub mod protocol;
mod remove;
mod replace;
mod walk;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::sys::channel::{Channel, Peer};
pub use place::is_made_up;
use place::{At, Place};
use protocol::{
    Depth, FileEntry, FileFailure, FileOrder, FileReply, FileRequest, Flaw, Links, Owner, RawPath,
};

/// Opens the regular file at `path` for reading.
///
/// # Errors
/// Those of openat2(2); `EISDIR` for a directory, `EINVAL` for anything else that is no regular file.
pub fn open_for_reading(path: &str) -> Result<OwnedFd, Errno> {
    Place::find(path.as_bytes(), Links::Follow)
        .and_then(|place| place.open_file(OFlags::RDONLY))
        .map_err(|failure| errno_of(&failure))
}

fn errno_of(failure: &FileFailure) -> Errno {
    match failure.flaw {
        Flaw::Errno(errno) => Errno::from_raw_os_error(errno),
        Flaw::NotRegular | Flaw::TooDeep | Flaw::NoName => Errno::INVAL,
    }
}

/// Makes the directory that an archive is to be unpacked in, and those that lead to it.
///
/// # Errors
/// Those of mkdir(2); `EINVAL` where the kernel makes the files up.
pub(super) fn make_destination(path: &RawPath) -> Result<(), Errno> {
    place::make_directories(path.as_bytes())
        .and_then(|()| Place::find(path.as_bytes(), Links::Follow))
        .map(drop)
        .map_err(|failure| errno_of(&failure))
}

/// Does one request and tells the provider, which is at the other end of stdin; the exit code.
pub(super) fn serve(request: &FileRequest) -> i32 {
    // Told apart from init where processes are looked at. It is only a name.
    let _ = rustix::thread::set_name(c"derrick-files");
    let Ok(provider) = Provider::on_standard_input() else {
        return 1;
    };
    let last = answer(request, &provider).unwrap_or_else(FileReply::Failed);
    match provider.tell(&last, &[]) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// What is left to tell at the end.
fn answer(request: &FileRequest, provider: &Provider) -> Result<FileReply, FileFailure> {
    match request {
        FileRequest::Get(path, page) => {
            let place = Place::find(path.as_bytes(), Links::Follow)?;
            if let Some(page) = page
                && place.is_directory()
            {
                return list::list(&place, page, provider);
            }
            let file = place.open_file(OFlags::RDONLY)?;
            let entry = place.entry()?;
            provider
                .tell(&FileReply::File(entry), &[file.as_fd()])
                .at(path.as_bytes())?;
            Ok(FileReply::Done)
        }
        FileRequest::Stat(path, links) => entry_at(path, *links),
        FileRequest::Replace(path, creation) => {
            replace::replace(path.as_bytes(), *creation, provider)?;
            entry_at(path, Links::Follow)
        }
        FileRequest::Remove(path, depth) => {
            remove::remove(path.as_bytes(), *depth, provider)?;
            Ok(FileReply::Done)
        }
        FileRequest::MakeDirectory(path, creation) => {
            place::make_directory(path.as_bytes(), *creation)?;
            entry_at(path, Links::Follow)
        }
        FileRequest::Move(from, to) => {
            copy::relocate(from.as_bytes(), to.as_bytes(), provider)?;
            entry_at(to, Links::Keep)
        }
        FileRequest::Copy(from, to) => {
            copy::copy(from.as_bytes(), to.as_bytes(), provider)?;
            entry_at(to, Links::Keep)
        }
        FileRequest::ChangeMode(path, mode, depth) => {
            let place = Place::find(path.as_bytes(), Links::Follow)?;
            if *depth == Depth::Tree && place.is_directory() {
                walk::walk(&place, &mut walk::ModeSetter(*mode), provider)?;
            }
            place.set_mode(*mode)?;
            entry_at(path, Links::Follow)
        }
        FileRequest::Archive(path, compression) => {
            archive::write(path.as_bytes(), *compression, provider)?;
            Ok(FileReply::Done)
        }
        FileRequest::Fingerprint => Ok(FileReply::Fingerprint(fingerprint::take(provider)?)),
        FileRequest::Owner => Ok(FileReply::Owner(Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        })),
    }
}

fn entry_at(path: &RawPath, links: Links) -> Result<FileReply, FileFailure> {
    let entry: FileEntry = Place::find(path.as_bytes(), links)?.entry()?;
    Ok(FileReply::Entry(entry))
}

/// How long the provider is told nothing while work goes on: it takes a longer silence for the end.
const SILENT: Duration = Duration::from_secs(5);

/// The provider, as the process for files sees it.
struct Provider {
    channel: Channel,
    /// When it was told something last; none where bytes that come tell it that work goes on, and it
    /// listens only after them.
    told: Cell<Option<Instant>>,
}

impl Provider {
    fn on_standard_input() -> io::Result<Self> {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self {
            channel: Channel::from_socket(socket, Peer::Trusted),
            told: Cell::new(Some(Instant::now())),
        })
    }

    fn tell(&self, reply: &FileReply, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        self.told.set(match reply {
            FileReply::Begun => None,
            _ => Some(Instant::now()),
        });
        self.channel
            .send(reply, descriptors)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// Waits for the provider's word; `None` if it, or who asked it, went away.
    fn hear(&self) -> Option<FileOrder> {
        let received = self.channel.receive::<FileOrder>().ok().flatten()?;
        Some(received.message)
    }

    /// Whether it still wants what is being done. While work is under way it says nothing: all there
    /// can be to hear is its end. It is told now and then that work goes on.
    fn check(&self) -> Result<(), Errno> {
        let mut event = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
        match poll(&mut event, PollTimeout::ZERO) {
            Ok(0) => match self.told.get() {
                Some(told) if told.elapsed() > SILENT => self.tell(&FileReply::Working, &[]),
                _ => Ok(()),
            },
            _ => Err(Errno::CANCELED),
        }
    }
}
