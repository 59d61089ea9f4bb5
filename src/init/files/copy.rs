//! Copies and moves. What is made appears at its new path at once, and whole; nothing there is replaced.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, UTIME_OMIT, Uid,
    chmodat, chownat, copy_file_range, fchmod, ftruncate, futimens, mkdirat, mknodat, openat, seek,
    symlinkat, utimensat,
};
use rustix::io::Errno;

use super::Provider;
use super::place::{At, Place, Slot, exists, last_part};
use super::protocol::{Depth, FileFailure, Links};
use super::remove;
use super::replace::{Fresh, give, move_new, temporary_name};
use super::walk::{Visitor, walk};

/// Bytes that are copied between two looks at whether the provider is there.
const BETWEEN_CHECKS: u64 = 64 << 20;
/// Bytes that are copied at once where the kernel does not copy by itself.
const CHUNK: usize = 256 * 1024;
const SETUID_SETGID: u32 = 0o6000;

/// Gives another path to what is at `from`; between filesystems, and for directories of layers that the
/// kernel does not rename, by a copy.
pub(super) fn relocate(from: &[u8], to: &[u8], provider: &Provider) -> Result<(), FileFailure> {
    let source = Slot::find(from)?;
    let target = Slot::find(to)?;
    // Told apart here: rename(2) does not say which of both is meant.
    if !exists(&source).at(from)? {
        return Err(Errno::NOENT).at(from);
    }
    match move_new(&source, &source.name, &target) {
        Err(Errno::XDEV) => {
            copy(from, to, provider)?;
            remove::remove(from, Depth::Tree, provider)
        }
        moved => moved.at(to),
    }
}

/// Copies what is at `from`, a link as a link, with its mode and time, and its owner where the user
/// may give it.
pub(super) fn copy(from: &[u8], to: &[u8], provider: &Provider) -> Result<(), FileFailure> {
    let source = Place::find(from, Links::Keep)?;
    let slot = Slot::find(to)?;
    if exists(&slot).at(to)? {
        return Err(Errno::EXIST).at(to);
    }
    match source.file_type() {
        FileType::RegularFile => {
            let fresh = Fresh::make(&slot).at(to)?;
            copy_content(&source, &fresh.file, provider)?;
            dress(&fresh.file, source.status()).at(to)?;
            fresh.put_new().at(to)
        }
        FileType::Directory if is_in(&slot, &source).at(to)? => Err(Errno::INVAL).at(from),
        FileType::Directory => copy_tree(&source, &slot, to, provider),
        _ => copy_special(&source, slot.directory.as_fd(), &slot.name),
    }
}

/// Whether the slot is in a directory or somewhere below it: who copies that never comes to an end.
fn is_in(slot: &Slot, directory: &Place) -> Result<bool, Errno> {
    let identity = |status: &Stat| (status.st_dev, status.st_ino);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut current = openat(&slot.directory, c".", flags, Mode::empty())?;
    let mut here = identity(&rustix::fs::fstat(&current)?);
    while here != identity(directory.status()) {
        current = openat(&current, c"..", flags, Mode::empty())?;
        let above = identity(&rustix::fs::fstat(&current)?);
        // The root directory is its own parent.
        if above == here {
            return Ok(false);
        }
        here = above;
    }
    Ok(true)
}

fn copy_tree(
    source: &Place,
    slot: &Slot,
    to: &[u8],
    provider: &Provider,
) -> Result<(), FileFailure> {
    let name = CString::new(temporary_name())
        .map_err(|_| Errno::INVAL)
        .at(to)?;
    mkdirat(&slot.directory, &name, Mode::RWXU).at(to)?;
    let filled = (|| {
        let top = open_made(slot.directory.as_fd(), name.as_bytes()).at(to)?;
        let made = rustix::fs::fstat(&top).at(to)?;
        let mut copier = Copier {
            provider,
            made: (made.st_dev, made.st_ino),
            directories: vec![top],
        };
        walk(source, &mut copier, provider)?;
        copier.leave(source)?;
        move_new(slot, name.as_bytes(), slot).at(to)
    })();
    if filled.is_err() {
        // What failed is told; a remainder would be a second fault, with the same cause.
        let _ = remove::remove_tree(slot.directory.as_fd(), &name, to, provider);
    }
    filled
}

/// Copies everything that it visits into the directory it has made last.
struct Copier<'a> {
    provider: &'a Provider,
    /// The top of the copy, which must not be copied into itself: it may have been moved meanwhile.
    made: (u64, u64),
    directories: Vec<OwnedFd>,
}

impl Visitor for Copier<'_> {
    fn visit(&mut self, place: &Place, _below: &[u8]) -> Result<(), FileFailure> {
        let path = place.path();
        let name = last_part(path);
        let into = self
            .directories
            .last()
            .ok_or(Errno::NOENT)
            .at(path)?
            .as_fd();
        match place.file_type() {
            FileType::RegularFile => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = openat(into, name, flags, Mode::RUSR | Mode::WUSR).at(path)?;
                copy_content(place, &file, self.provider)?;
                dress(&file, place.status()).at(path)
            }
            FileType::Directory => {
                let status = place.status();
                if (status.st_dev, status.st_ino) == self.made {
                    return Err(Errno::INVAL).at(path);
                }
                mkdirat(into, name, Mode::RWXU).at(path)?;
                let made = open_made(into, name).at(path)?;
                self.directories.push(made);
                Ok(())
            }
            _ => copy_special(place, into, name),
        }
    }

    fn leave(&mut self, place: &Place) -> Result<(), FileFailure> {
        match self.directories.pop() {
            Some(made) => dress(&made, place.status()).at(place.path()),
            None => Ok(()),
        }
    }
}

fn open_made(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Copies a link, a pipe, a socket or a device, none of which has content of its own.
fn copy_special(place: &Place, into: BorrowedFd<'_>, name: &[u8]) -> Result<(), FileFailure> {
    let path = place.path();
    let status = place.status();
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    if let Some(target) = place.target()? {
        symlinkat(&*target, into, name).at(path)?;
    } else {
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(into, name, place.file_type(), mode, status.st_rdev).at(path)?;
        // Follows links, but this was made just now, exclusively.
        let mode = Mode::from_raw_mode(status.st_mode & 0o777);
        chmodat(into, name, mode, AtFlags::empty()).at(path)?;
    }
    let owner = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    match chownat(into, name, Some(owner.0), Some(owner.1), nofollow) {
        Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::OVERFLOW) => {}
        Err(errno) => return Err(errno).at(path),
    }
    utimensat(into, name, &times(status), nofollow).at(path)
}

/// Copies what a regular file has now, holes as holes.
fn copy_content(place: &Place, to: &OwnedFd, provider: &Provider) -> Result<(), FileFailure> {
    let from = place.open_file(OFlags::RDONLY)?;
    let size = u64::try_from(place.status().st_size).unwrap_or_default();
    let copied = (|| {
        let mut at = 0;
        while at < size {
            let start = match seek(&from, SeekFrom::Data(at)) {
                Ok(start) => start.min(size),
                // The rest is a hole.
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno),
            };
            let end = seek(&from, SeekFrom::Hole(start))?.min(size);
            copy_range(&from, to, start, end, provider)?;
            at = end.max(start + 1);
        }
        ftruncate(to, size)
    })();
    copied.at(place.path())
}

fn copy_range(
    from: &OwnedFd,
    to: &OwnedFd,
    start: u64,
    end: u64,
    provider: &Provider,
) -> Result<(), Errno> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        provider.check()?;
        let most = usize::try_from((end - read_at).min(BETWEEN_CHECKS)).unwrap_or(CHUNK);
        match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), most) {
            // It is shorter by now.
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return copy_by_hand(from, to, read_at, end, provider);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn copy_by_hand(
    from: &OwnedFd,
    to: &OwnedFd,
    start: u64,
    end: u64,
    provider: &Provider,
) -> Result<(), Errno> {
    use std::os::unix::fs::FileExt;
    let clone = |descriptor: &OwnedFd| {
        let clone = descriptor.try_clone();
        clone.map(File::from).map_err(|_| Errno::MFILE)
    };
    let (from, to) = (clone(from)?, clone(to)?);
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut chunk = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        provider.check()?;
        let most = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let read = from.read_at(&mut chunk[..most], at).map_err(errno)?;
        if read == 0 {
            return Ok(());
        }
        to.write_all_at(&chunk[..read], at).map_err(errno)?;
        at += read as u64;
    }
    Ok(())
}

/// Gives a copy the owner, mode and time of what it was made from.
fn dress(copy: &OwnedFd, from: &Stat) -> Result<(), Errno> {
    let kept = give(copy, from.st_uid, from.st_gid)?;
    let mode = from.st_mode & 0o7777;
    let mode = if kept { mode } else { mode & !SETUID_SETGID };
    fchmod(copy, Mode::from_raw_mode(mode))?;
    futimens(copy, &times(from))
}

fn times(status: &Stat) -> Timestamps {
    let (seconds, nanoseconds) = super::place::modified(status);
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.into(),
        },
    }
}
