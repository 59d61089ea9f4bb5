//! A page of a directory, by name, in memory that does not grow with the directory.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::fs::Dir;
use rustix::io::Errno;

use super::Provider;
use super::place::{At, Place};
use super::protocol::{FileEntry, FileFailure, FileReply, Flaw, Page, RawPath, Rest};

/// Entries that are read from the directory between two looks at whether the provider is there.
const BETWEEN_CHECKS: usize = 4096;
/// Bytes of names and targets in one message, about; each entry adds up to a few hundred.
const MESSAGE: usize = 16 * 1024;
/// Bytes of all paths and targets of a page, at most; a page that has more ends early.
const PAGE: usize = 4 << 20;

/// Tells the page, but for its end.
pub(super) fn list(
    place: &Place,
    page: &Page,
    provider: &Provider,
) -> Result<FileReply, FileFailure> {
    let path = place.path();
    let directory = place.open_directory()?;
    let names = first_names(&directory, page, provider).at(path)?;
    let more = names.len() > page.limit;
    let mut waiting = Vec::new();
    let mut waiting_bytes = 0;
    let mut bytes = 0;
    for name in names.into_iter().take(page.limit) {
        let own_path = [path, b"/", name.as_bytes()].concat();
        let found = Place::entry_of(directory.as_fd(), &name, &own_path).and_then(|it| it.entry());
        let entry = match found {
            Ok(entry) => entry,
            // It was removed meanwhile.
            Err(failure) if failure.flaw == Flaw::Errno(Errno::NOENT.raw_os_error()) => continue,
            Err(failure) => return Err(failure),
        };
        // The provider tells each entry's whole path.
        let size = size_of(&entry) + path.len();
        if bytes + size > PAGE {
            tell(waiting, provider).at(path)?;
            return Ok(FileReply::Listed(Rest::More));
        }
        bytes += size;
        waiting_bytes += size;
        waiting.push(entry);
        if waiting_bytes > MESSAGE {
            tell(std::mem::take(&mut waiting), provider).at(path)?;
            waiting_bytes = 0;
        }
    }
    tell(waiting, provider).at(path)?;
    Ok(FileReply::Listed(if more {
        Rest::More
    } else {
        Rest::Nothing
    }))
}

fn tell(entries: Vec<FileEntry>, provider: &Provider) -> Result<(), Errno> {
    if entries.is_empty() {
        return Ok(());
    }
    provider.tell(&FileReply::Entries(entries), &[])
}

fn size_of(entry: &FileEntry) -> usize {
    let target = entry.target.as_ref().map_or(0, |to| to.as_bytes().len());
    entry.name.as_bytes().len() + target + 150
}

/// The names of the page and one more, if there is one.
///
/// Every name is looked at for every page, and only as many are kept: the order of the kernel is not
/// the same from one reading to the next, and this one is.
fn first_names(
    directory: &std::os::fd::OwnedFd,
    page: &Page,
    provider: &Provider,
) -> Result<BTreeSet<CString>, Errno> {
    let mut names: BTreeSet<CString> = BTreeSet::new();
    let after = page.after.as_ref().map(RawPath::as_bytes);
    for (number, entry) in Dir::read_from(directory)?.enumerate() {
        if number % BETWEEN_CHECKS == 0 {
            provider.check()?;
        }
        let entry = entry?;
        let name = entry.file_name();
        let is_wanted = name != c"."
            && name != c".."
            && after.is_none_or(|after| name.to_bytes() > after)
            && (names.len() <= page.limit
                || names.last().is_some_and(|last| name < last.as_c_str()));
        if is_wanted {
            names.insert(name.to_owned());
            if names.len() > page.limit + 1 {
                names.pop_last();
            }
        }
    }
    Ok(names)
}
