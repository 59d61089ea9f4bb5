//! Files of the workspace, opened inside it, so that every link resolves there.
//!
//! The provider gets descriptors and no paths. What may be opened is a regular file, whatever a link
//! says: pipes, sockets, devices and the files of `/proc` and `/sys` are refused.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, fchmod, fchown, fstat,
    open, openat, openat2, readlink, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::protocol::RequestId;

/// Links that are followed one after another, at most; as the kernel does.
const MAX_LINKS: usize = 40;

/// Opens the regular file at `path` for reading.
///
/// # Errors
/// Those of openat2(2); `EISDIR` for a directory, `EINVAL` for anything else that is no regular file.
pub fn open_for_reading(path: &str) -> Result<OwnedFd, Errno> {
    let (place, _) = open_regular(Path::new(path))?;
    reopen(&place, OFlags::RDONLY)
}

/// Files that are being written, to replace others.
#[derive(Debug, Default)]
pub struct Replacements {
    pending: HashMap<RequestId, Replacement>,
}

#[derive(Debug)]
struct Replacement {
    directory: OwnedFd,
    temporary: String,
    name: PathBuf,
    file: OwnedFd,
    before: Option<Stat>,
}

impl Replacements {
    /// Creates the file that is to replace the one at `path`, and the directories that lead to it.
    ///
    /// # Errors
    /// Those of openat2(2) and mkdir(2), and those of `open_for_reading` for what is there.
    pub fn create(&mut self, id: RequestId, path: &str) -> Result<OwnedFd, Errno> {
        make_parents(Path::new(path))?;
        let (target, before) = find_target(PathBuf::from(path))?;
        let parent = target.parent().ok_or(Errno::ISDIR)?;
        let name = PathBuf::from(target.file_name().ok_or(Errno::ISDIR)?);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat2(
            CWD,
            parent,
            flags,
            Mode::empty(),
            ResolveFlags::NO_MAGICLINKS,
        )?;
        refuse_kernel_files(directory.as_fd())?;
        let temporary = format!(".derrick-{}.tmp", uuid::Uuid::now_v7());
        let file = openat(
            &directory,
            temporary.as_str(),
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )?;
        let handed_out = file.try_clone().map_err(|_| Errno::MFILE)?;
        self.pending.insert(
            id,
            Replacement {
                directory,
                temporary,
                name,
                file,
                before,
            },
        );
        Ok(handed_out)
    }

    /// Puts the file in its place, with the mode and owner of what it replaces.
    ///
    /// # Errors
    /// Those of renameat(2); the file is dropped then.
    pub fn commit(&mut self, id: RequestId) -> Result<(), Errno> {
        let replacement = self.pending.remove(&id).ok_or(Errno::INVAL)?;
        let finish = || {
            if let Some(before) = &replacement.before {
                let owner = (Uid::from_raw(before.st_uid), Gid::from_raw(before.st_gid));
                // An owner that the sandbox has no id for cannot be given; root inside keeps it.
                match fchown(&replacement.file, Some(owner.0), Some(owner.1)) {
                    Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::OVERFLOW) => {}
                    other => other?,
                }
            }
            let mode = replacement
                .before
                .as_ref()
                .map_or(0o644, |before| before.st_mode & 0o7777);
            fchmod(&replacement.file, Mode::from_raw_mode(mode))?;
            renameat(
                &replacement.directory,
                replacement.temporary.as_str(),
                &replacement.directory,
                &replacement.name,
            )
        };
        let finished = finish();
        if finished.is_err() {
            remove(&replacement);
        }
        finished
    }

    /// Drops the file.
    ///
    /// # Errors
    /// `EINVAL` if there is none.
    pub fn abort(&mut self, id: RequestId) -> Result<(), Errno> {
        let replacement = self.pending.remove(&id).ok_or(Errno::INVAL)?;
        remove(&replacement);
        Ok(())
    }
}

fn remove(replacement: &Replacement) {
    // The workspace may have removed it itself.
    let _ = unlinkat(
        &replacement.directory,
        replacement.temporary.as_str(),
        AtFlags::empty(),
    );
}

fn open_regular(path: &Path) -> Result<(OwnedFd, Stat), Errno> {
    let place = openat2(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )?;
    let status = fstat(&place)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::INVAL),
    }
    refuse_kernel_files(place.as_fd())?;
    Ok((place, status))
}

/// Files of `/proc`, `/sys` and the like pass for regular ones and do things when read or written.
fn refuse_kernel_files(place: std::os::fd::BorrowedFd<'_>) -> Result<(), Errno> {
    const MADE_UP: &[u32] = &[
        0x0000_9fa0, // proc
        0x6265_6572, // sysfs
        0x0000_1cd1, // devpts
        0x1980_0202, // mqueue
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
    ];
    let kind = rustix::fs::fstatfs(place)?.f_type;
    // The field's type differs by architecture; the magic numbers have 32 bits.
    if MADE_UP.contains(&(kind as u32)) {
        Err(Errno::INVAL)
    } else {
        Ok(())
    }
}

fn reopen(place: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    open(
        format!("/proc/self/fd/{}", place.as_raw_fd()),
        flags,
        Mode::empty(),
    )
}

fn make_parents(path: &Path) -> Result<(), Errno> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    std::fs::create_dir_all(parent)
        .map_err(|error| Errno::from_raw_os_error(error.raw_os_error().unwrap_or(libc::ENOTDIR)))
}

/// What a write to `path` would write to, links followed, even if it is not there yet.
fn find_target(path: PathBuf) -> Result<(PathBuf, Option<Stat>), Errno> {
    let mut target = path;
    for _ in 0..MAX_LINKS {
        match open_regular(&target) {
            Ok((place, status)) => {
                let real = readlink(format!("/proc/self/fd/{}", place.as_raw_fd()), Vec::new())?;
                return Ok((
                    PathBuf::from(OsStr::from_bytes(real.as_bytes())),
                    Some(status),
                ));
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        let is_link = statat(CWD, &target, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Symlink);
        if !is_link {
            return Ok((target, None));
        }
        let link = readlink(&target, Vec::new())?;
        let parent = target.parent().ok_or(Errno::ISDIR)?;
        target = parent.join(OsStr::from_bytes(link.as_bytes()));
    }
    Err(Errno::LOOP)
}
