//! Removal of a file or of a whole tree, while others may be changing it.
//!
//! Every removal names one entry of an open directory, and each directory is opened below the one before
//! it without following a link: what a name is swapped for meanwhile is at worst removed itself, as one
//! entry, and never followed.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, fchmod, fstat, openat2, unlinkat};
use rustix::io::Errno;

use super::Provider;
use super::place::{At, Slot};
use super::protocol::{Depth, FileFailure};
use super::walk::next_name;

/// Directories that are held open from the top of a tree on; then only the nearest few are.
const OPEN_FROM_TOP: usize = 200;
/// Those nearest few.
const OPEN_NEAR: usize = 8;
/// Entries between two looks at whether the provider is there.
const BETWEEN_CHECKS: usize = 64;
/// How often a directory may turn out not to be empty after all.
const PATIENCE: usize = 1000;

/// Removes what is at `path`; a link itself and not what it leads to.
pub(super) fn remove(path: &[u8], depth: Depth, provider: &Provider) -> Result<(), FileFailure> {
    let slot = Slot::find(path)?;
    let name = CString::new(&*slot.name)
        .map_err(|_| Errno::INVAL)
        .at(path)?;
    match unlinkat(&slot.directory, &name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        removed => return removed.at(path),
    }
    match unlinkat(&slot.directory, &name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) if depth == Depth::Tree => {
            remove_tree(slot.directory.as_fd(), &name, path, provider)
        }
        removed => removed.at(path),
    }
}

/// One directory on the way down.
struct Level {
    name: CString,
    device: u64,
    inode: u64,
    /// Itself and what is still to be looked at in it, unless it is held open no longer.
    open: Option<Open>,
}

struct Open {
    directory: OwnedFd,
    entries: Dir,
}

/// Removes the directory `name` of `parent` and everything below it, of any depth.
pub(super) fn remove_tree(
    parent: BorrowedFd<'_>,
    name: &CStr,
    path: &[u8],
    provider: &Provider,
) -> Result<(), FileFailure> {
    let mut levels = vec![enter(parent, name).at(path)?];
    let mut seen = 0_usize;
    let mut patience = PATIENCE;
    while let Some(current) = levels.last_mut() {
        let open = current.open.as_mut().ok_or(Errno::STALE).at(path)?;
        let Some(name) = next_name(&mut open.entries).at(path)? else {
            let Some(done) = levels.pop() else { break };
            let left = match levels.last_mut() {
                None => unlinkat(parent, &done.name, AtFlags::REMOVEDIR),
                Some(above) => leave(&done, above).at(&path_of(path, &levels, &done.name))?,
            };
            match left {
                Ok(()) | Err(Errno::NOENT) => {}
                // Somebody puts new files into it.
                Err(Errno::NOTEMPTY | Errno::EXIST) if patience > 0 => {
                    patience -= 1;
                    let above = levels.last().and_then(|level| level.open.as_ref());
                    let above = above.map_or(parent, |open| open.directory.as_fd());
                    levels.push(enter(above, &done.name).at(path)?);
                }
                Err(errno) => return Err(errno).at(&path_of(path, &levels, &done.name)),
            }
            continue;
        };
        seen += 1;
        if seen.is_multiple_of(BETWEEN_CHECKS) {
            provider.check().at(path)?;
        }
        match remove_entry(open.directory.as_fd(), &name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => match enter(open.directory.as_fd(), &name) {
                Ok(next) => {
                    levels.push(next);
                    close_far(&mut levels);
                }
                Err(Errno::NOENT) => {}
                // It is no directory any more: the next look at this one finds what it is.
                Err(Errno::NOTDIR | Errno::LOOP) if patience > 0 => patience -= 1,
                Err(errno) => return Err(errno).at(&path_of(path, &levels, &name)),
            },
            Err(errno) => return Err(errno).at(&path_of(path, &levels, &name)),
        }
    }
    Ok(())
}

/// Removes one entry, a directory only if it is empty.
fn remove_entry(directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let remove = || match unlinkat(directory, name, AtFlags::empty()) {
        // Most directories are empty, or soon will be.
        Err(Errno::ISDIR) => unlinkat(directory, name, AtFlags::REMOVEDIR),
        removed => removed,
    };
    match remove() {
        // Entries can be removed only from a directory that its owner may write to.
        Err(Errno::ACCESS) if fchmod(directory, Mode::RWXU).is_ok() => remove(),
        removed => removed,
    }
}

/// Opens a directory without following a link or leaving its filesystem.
fn enter(parent: BorrowedFd<'_>, name: &CStr) -> Result<Level, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let open = || openat2(parent, name, flags, Mode::empty(), below);
    let directory = match open() {
        // A mode without read or search permission, where the user has no privilege over modes.
        Err(Errno::ACCESS) => {
            let place = openat2(parent, name, flags | OFlags::PATH, Mode::empty(), below)?;
            rustix::fs::chmod(format!("/proc/self/fd/{}", place.as_raw_fd()), Mode::RWXU)?;
            open()?
        }
        // A mount point, as rmdir(2) has it.
        Err(Errno::XDEV) => return Err(Errno::BUSY),
        opened => opened?,
    };
    let status = fstat(&directory)?;
    Ok(Level {
        name: name.to_owned(),
        device: status.st_dev,
        inode: status.st_ino,
        open: Some(Open::new(directory)?),
    })
}

impl Open {
    fn new(directory: OwnedFd) -> Result<Self, Errno> {
        let entries = Dir::read_from(&directory)?;
        Ok(Self { directory, entries })
    }
}

/// Closes what is neither near the top nor near the end: any depth takes so many descriptors.
fn close_far(levels: &mut [Level]) {
    if let Some(far) = levels.len().checked_sub(OPEN_NEAR + 1)
        && far >= OPEN_FROM_TOP
    {
        levels[far].open = None;
    }
}

/// Removes `done`, which is empty, from `above`, which is opened again if it is not open.
fn leave(done: &Level, above: &mut Level) -> Result<Result<(), Errno>, Errno> {
    let open = match &mut above.open {
        Some(open) => open,
        closed => {
            let below = done.open.as_ref().ok_or(Errno::STALE)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            let parent = openat2(&below.directory, c"..", flags, Mode::empty(), resolve)?;
            let status = fstat(&parent)?;
            // It was moved somewhere else meanwhile: that is no place to remove anything from.
            if (status.st_dev, status.st_ino) != (above.device, above.inode) {
                return Err(Errno::STALE);
            }
            closed.insert(Open::new(parent)?)
        }
    };
    Ok(unlinkat(&open.directory, &done.name, AtFlags::REMOVEDIR))
}

/// The path of an entry of the last level, as long as a message needs it.
fn path_of(path: &[u8], levels: &[Level], name: &CStr) -> Vec<u8> {
    let mut full = path.to_vec();
    let below = levels.iter().skip(1).map(|level| level.name.as_c_str());
    for part in below.chain([name]) {
        if full.len() > 4096 {
            break;
        }
        full.push(b'/');
        full.extend_from_slice(part.to_bytes());
    }
    full
}
