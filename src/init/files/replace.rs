//! A new file that takes a place at once, whole or not at all.
//!
//! Until then it has no name, where the filesystem has files without names (`O_TMPFILE`; overlayfs from
//! 6.3 on): however this process ends, nothing of it is left.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, accessat, fchmod,
    fchown, linkat, openat, readlinkat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use super::Provider;
use super::place::{At, Slot, exists, flaw, make_directories, open_path};
use super::protocol::{Before, Creation, FileFailure, FileReply, Flaw, Links, Parents};

/// Links that are followed one after another, at most; as the kernel does.
const MAX_LINKS: usize = 40;
/// What a new file may be used for, and by whom.
const FILE_MODE: u32 = 0o644;
const SETUID_SETGID: u32 = 0o6000;
/// Until it is in its place.
const OWNERS_ALONE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Makes a file for what the provider writes, and puts it in the place of what is at `path` when the
/// provider says so.
pub(super) fn replace(
    path: &[u8],
    creation: Creation,
    provider: &Provider,
) -> Result<(), FileFailure> {
    if creation.parents == Parents::Make
        && let Some(slash) = path.iter().rposition(|byte| *byte == b'/')
    {
        make_directories(&path[..slash])?;
    }
    let (slot, before) = find_target(path)?;
    let fresh = Fresh::make(&slot).at(path)?;
    let replaces = match before {
        Some(_) => Before::File,
        None => Before::Nothing,
    };
    provider
        .tell(&FileReply::Ready(replaces), &[fresh.file.as_fd()])
        .at(path)?;
    if provider.hear().is_none() {
        return Err(Errno::CANCELED).at(path);
    }
    let dressed = match &before {
        Some(before) => fresh.dress_as(before, creation.mode),
        None => {
            let mode = Mode::from_raw_mode(creation.mode.unwrap_or(FILE_MODE));
            fchmod(&fresh.file, mode)
        }
    };
    dressed.and_then(|()| fresh.put_over()).at(path)
}

/// What a write to `path` would write to, links followed, even if it is not there yet.
fn find_target(path: &[u8]) -> Result<(Slot, Option<Stat>), FileFailure> {
    // The kernel takes such a path for a directory's.
    if path.ends_with(b"/") {
        return Err(Errno::ISDIR).at(path);
    }
    let mut slot = Slot::find(path)?;
    for _ in 0..MAX_LINKS {
        let status = match statat(&slot.directory, &*slot.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(Errno::NOENT) => return Ok((slot, None)),
            Err(errno) => return Err(errno).at(path),
        };
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => {
                check_writable(&slot).at(path)?;
                return Ok((slot, Some(status)));
            }
            FileType::Directory => return Err(Errno::ISDIR).at(path),
            FileType::Symlink => {}
            _ => return Err(flaw(Flaw::NotRegular, path)),
        }
        // The kernel's own opinion of the link, which may be none of ours to follow.
        match open_path(slot.directory.as_fd(), &slot.name, Links::Follow) {
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).at(path),
        }
        let link = readlinkat(&slot.directory, &*slot.name, Vec::new()).at(path)?;
        slot = Slot::find_from(slot.directory.as_fd(), link.as_bytes(), path)?;
    }
    Err(Errno::LOOP).at(path)
}

/// A file that the user may not write to is not replaced, though its directory would let it be.
fn check_writable(slot: &Slot) -> Result<(), Errno> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // Real and effective user are the same one here.
    accessat(
        &slot.directory,
        &*slot.name,
        Access::WRITE_OK,
        AtFlags::empty(),
    )
}

/// A file that is in no directory yet, or under a name of its own.
pub(super) struct Fresh<'a> {
    pub(super) file: OwnedFd,
    slot: &'a Slot,
    /// Its name for now, if it has to have one; removed at the end if it still has.
    temporary: Option<String>,
}

impl<'a> Fresh<'a> {
    /// Makes one for `slot`.
    pub(super) fn make(slot: &'a Slot) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match openat(&slot.directory, c".", flags, OWNERS_ALONE) {
            Ok(file) => Ok(Self {
                file,
                slot,
                temporary: None,
            }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => Self::named(slot),
            Err(errno) => Err(errno),
        }
    }

    /// Makes one that has a name for now, where the filesystem has no other.
    fn named(slot: &'a Slot) -> Result<Self, Errno> {
        let name = temporary_name();
        let exclusive = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | exclusive;
        let file = openat(&slot.directory, &*name, flags, OWNERS_ALONE)?;
        Ok(Self {
            file,
            slot,
            temporary: Some(name),
        })
    }

    /// Gives it the owner and mode of what it replaces.
    fn dress_as(&self, before: &Stat, mode: Option<u32>) -> Result<(), Errno> {
        let mode = mode.unwrap_or(before.st_mode & 0o7777);
        let kept = give(&self.file, before.st_uid, before.st_gid)?;
        let mode = if kept { mode } else { mode & !SETUID_SETGID };
        fchmod(&self.file, Mode::from_raw_mode(mode))
    }

    /// Puts it where nothing must be.
    pub(super) fn put_new(mut self) -> Result<(), Errno> {
        match self.temporary.take() {
            None => self.link(&self.slot.name),
            Some(name) => {
                let put = move_new(self.slot, name.as_bytes(), self.slot);
                if put.is_err() {
                    self.temporary = Some(name);
                }
                put
            }
        }
    }

    /// Puts it in the place of what is there.
    fn put_over(mut self) -> Result<(), Errno> {
        let slot = self.slot;
        if self.temporary.is_none() {
            match self.link(&slot.name) {
                Err(Errno::EXIST) => {}
                put => return put,
            }
            let name = temporary_name();
            self.link(name.as_bytes())?;
            self.temporary = Some(name);
        }
        let Some(name) = &self.temporary else {
            return Err(Errno::NOENT);
        };
        renameat(&slot.directory, &**name, &slot.directory, &*slot.name)?;
        self.temporary = None;
        Ok(())
    }

    /// Gives the nameless file a name.
    fn link(&self, name: &[u8]) -> Result<(), Errno> {
        // By its descriptor itself, AT_EMPTY_PATH, only privileged processes may, open(2).
        let own_path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        linkat(
            CWD,
            &*own_path,
            &self.slot.directory,
            &*name,
            AtFlags::SYMLINK_FOLLOW,
        )
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            // The workspace may have removed it itself.
            let _ = unlinkat(&self.slot.directory, &**name, AtFlags::empty());
        }
    }
}

/// A name that nobody has.
pub(super) fn temporary_name() -> String {
    format!(".derrick-{}.tmp", uuid::Uuid::now_v7())
}

/// Gives a file to an owner; whether it is that owner's now. One that the sandbox has no id for, or
/// that the user may not give to, leaves it the user's.
pub(super) fn give(file: &OwnedFd, uid: u32, gid: u32) -> Result<bool, Errno> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    match fchown(file, Some(user), Some(group)) {
        Ok(()) => return Ok(true),
        Err(Errno::INVAL | Errno::PERM | Errno::OVERFLOW) => {}
        Err(errno) => return Err(errno),
    }
    match fchown(file, None, Some(group)) {
        Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::OVERFLOW) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Renames `name` of `from`'s directory into the slot `to`, where nothing must be.
pub(super) fn move_new(from: &Slot, name: &[u8], to: &Slot) -> Result<(), Errno> {
    let renamed = renameat_with(
        &from.directory,
        name,
        &to.directory,
        &*to.name,
        RenameFlags::NOREPLACE,
    );
    match renamed {
        // A filesystem that cannot do both at once.
        Err(Errno::INVAL) if !exists(to)? => {
            renameat(&from.directory, name, &to.directory, &*to.name)
        }
        renamed => renamed,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn with_a_name_for_now_or_without_it_takes_its_place_or_leaves_nothing() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("file");
        let slot = Slot::find(path.as_os_str().as_bytes()).expect("there");
        let entries = || fs::read_dir(directory.path()).expect("there").count();
        for has_name in [false, true] {
            let make = || match has_name {
                false => Fresh::make(&slot),
                true => Fresh::named(&slot),
            };
            drop(make().expect("made"));
            assert_eq!(entries(), 0);
            make().expect("made").put_new().expect("put");
            let put_again = make().expect("made").put_new();
            assert_eq!(put_again, Err(Errno::EXIST));
            fs::write(&path, "old").expect("written");
            make().expect("made").put_over().expect("put");
            assert_eq!(fs::read(&path).expect("there"), b"");
            assert_eq!(entries(), 1);
            fs::remove_file(&path).expect("there");
        }
    }
}
