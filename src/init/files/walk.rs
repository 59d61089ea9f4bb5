//! A walk over everything below a directory that follows no link and is not led astray by what changes.
//!
//! Each entry is held by a handle before it is looked at, and a directory is entered through that
//! handle: what its name is given to meanwhile does not matter.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::Dir;
use rustix::io::Errno;

use super::Provider;
use super::place::{At, Place, flaw};
use super::protocol::{FileFailure, Flaw};

/// Directories within each other, at most: each takes two descriptors.
const DEEPEST: usize = 1000;
/// Entries between two looks at whether the provider is there.
const BETWEEN_CHECKS: usize = 64;

/// What is done on the way.
pub(super) trait Visitor {
    /// Comes to something; for a directory, before what is in it. `below` is its path from the start.
    fn visit(&mut self, place: &Place, below: &[u8]) -> Result<(), FileFailure>;
    /// Leaves a directory, after what is in it.
    fn leave(&mut self, place: &Place) -> Result<(), FileFailure>;
    /// Whether a directory that may not be listed is passed over.
    fn passes_over_closed(&self) -> bool {
        false
    }
    /// Whether it goes into the directory of this path.
    fn enters(&self, _below: &[u8]) -> bool {
        true
    }
}

struct Level {
    directory: OwnedFd,
    entries: Dir,
    /// What is left at the end; none for the start, which is the caller's.
    place: Option<Place>,
    /// How much of the path below leads here.
    length: usize,
}

/// Visits everything below `start`, in the order of the kernel. Directories on filesystems that the
/// kernel makes up are visited, and left without being entered.
pub(super) fn walk(
    start: &Place,
    visitor: &mut impl Visitor,
    provider: &Provider,
) -> Result<(), FileFailure> {
    let mut below: Vec<u8> = Vec::new();
    let mut levels = vec![enter(start, None, 0)?];
    let mut seen = 0_usize;
    while let Some(level) = levels.last_mut() {
        below.truncate(level.length);
        let Some(name) = next_name(&mut level.entries).at(&full(start, &below))? else {
            if let Some(place) = levels.pop().and_then(|level| level.place) {
                visitor.leave(&place)?;
            }
            continue;
        };
        seen += 1;
        if seen.is_multiple_of(BETWEEN_CHECKS) {
            provider.check().at(start.path())?;
        }
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend_from_slice(name.as_bytes());
        let path = full(start, &below);
        let place = match Place::entry_of(level.directory.as_fd(), &name, &path) {
            Ok(place) => place,
            // It was removed meanwhile.
            Err(failure) if failure.flaw == Flaw::Errno(Errno::NOENT.raw_os_error()) => continue,
            Err(failure) => return Err(failure),
        };
        visitor.visit(&place, &below)?;
        if !place.is_directory() {
            continue;
        }
        if !visitor.enters(&below) || place.is_made_up()? {
            visitor.leave(&place)?;
            continue;
        }
        if levels.len() == DEEPEST {
            return Err(flaw(Flaw::TooDeep, &path));
        }
        let next = match enter(&place, None, below.len()) {
            Err(failure) if failure.is_denied() && visitor.passes_over_closed() => {
                visitor.leave(&place)?;
                continue;
            }
            entered => entered?,
        };
        levels.push(Level {
            place: Some(place),
            ..next
        });
    }
    Ok(())
}

fn enter(directory: &Place, place: Option<Place>, length: usize) -> Result<Level, FileFailure> {
    let opened = directory.open_directory()?;
    let entries = Dir::read_from(&opened).at(directory.path())?;
    Ok(Level {
        directory: opened,
        entries,
        place,
        length,
    })
}

/// The next name that is not of the directory itself or its parent.
pub(super) fn next_name(entries: &mut Dir) -> Result<Option<CString>, Errno> {
    loop {
        match entries.read() {
            None => return Ok(None),
            Some(entry) => {
                let entry = entry?;
                let name = entry.file_name();
                if name != c"." && name != c".." {
                    return Ok(Some(name.to_owned()));
                }
            }
        }
    }
}

fn full(start: &Place, below: &[u8]) -> Vec<u8> {
    let parent = start.path();
    let parent = parent.strip_suffix(b"/").unwrap_or(parent);
    [parent, b"/", below].concat()
}

/// Sets the permissions of everything but links, of directories after what is in them: they may close
/// them to the one who sets them.
pub(super) struct ModeSetter(pub(super) u32);

impl Visitor for ModeSetter {
    fn visit(&mut self, place: &Place, _below: &[u8]) -> Result<(), FileFailure> {
        let is_link = place.file_type() == rustix::fs::FileType::Symlink;
        if is_link || place.is_directory() {
            return Ok(());
        }
        place.set_mode(self.0)
    }

    fn leave(&mut self, place: &Place) -> Result<(), FileFailure> {
        place.set_mode(self.0)
    }
}
