//! Things in the workspace's tree, held by a handle, and the way to them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, getxattr, listxattr, mkdirat,
    open, openat, openat2, readlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

use super::protocol::{Creation, FileEntry, FileFailure, FileKind, Flaw, Links, Parents, RawPath};

/// Bytes of a path that a failure names.
const NAMED: usize = 4096;
/// What a new directory may be used for, and by whom.
const DIRECTORY_MODE: u32 = 0o755;

/// Names what a call was about.
pub(super) trait At<T> {
    fn at(self, path: &[u8]) -> Result<T, FileFailure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, path: &[u8]) -> Result<T, FileFailure> {
        self.map_err(|errno| flaw(Flaw::Errno(errno.raw_os_error()), path))
    }
}

pub(super) fn flaw(flaw: Flaw, path: &[u8]) -> FileFailure {
    FileFailure {
        flaw,
        path: RawPath::from(&path[..path.len().min(NAMED)]),
    }
}

/// The name of an extended attribute, and its value where that may be read.
pub(super) type Attribute = (Vec<u8>, Option<Vec<u8>>);

/// Something in the tree. Its handle stays with it whatever its name is given to meanwhile.
#[derive(Debug)]
pub(super) struct Place {
    handle: OwnedFd,
    status: Stat,
    /// How it was asked for, for messages and its name.
    path: Vec<u8>,
}

impl Place {
    /// What is at an absolute path.
    pub(super) fn find(path: &[u8], links: Links) -> Result<Self, FileFailure> {
        let handle = open_path(CWD, path, links).at(path)?;
        let place = Self::new(handle, path)?;
        refuse_kernel_files(place.handle.as_fd(), path)?;
        Ok(place)
    }

    /// What `name` is in `directory`, itself if it is a link.
    pub(super) fn entry_of(
        directory: BorrowedFd<'_>,
        name: impl Arg,
        path: &[u8],
    ) -> Result<Self, FileFailure> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = openat(directory, name, flags, Mode::empty()).at(path)?;
        Self::new(handle, path)
    }

    fn new(handle: OwnedFd, path: &[u8]) -> Result<Self, FileFailure> {
        let status = fstat(&handle).at(path)?;
        Ok(Self {
            handle,
            status,
            path: path.to_vec(),
        })
    }

    pub(super) fn status(&self) -> &Stat {
        &self.status
    }

    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    pub(super) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.status.st_mode)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Opens it, if it is a regular file.
    pub(super) fn open_file(&self, flags: OFlags) -> Result<OwnedFd, FileFailure> {
        match self.file_type() {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR).at(&self.path),
            _ => return Err(flaw(Flaw::NotRegular, &self.path)),
        }
        // Not to wait for whoever holds a lease on it, fcntl(2).
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        open(self.own_path(), flags, Mode::empty()).at(&self.path)
    }

    /// Opens it to be listed, if it is a directory.
    pub(super) fn open_directory(&self) -> Result<OwnedFd, FileFailure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.handle, c".", flags, Mode::empty()).at(&self.path)
    }

    /// Whether it is on a filesystem that the kernel makes up, such as `/proc`.
    pub(super) fn is_made_up(&self) -> Result<bool, FileFailure> {
        is_made_up(self.handle.as_fd()).at(&self.path)
    }

    pub(super) fn set_mode(&self, mode: u32) -> Result<(), FileFailure> {
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::chmod(self.own_path(), mode).at(&self.path)
    }

    /// Where it leads, if it is a link.
    pub(super) fn target(&self) -> Result<Option<Vec<u8>>, FileFailure> {
        if self.file_type() != FileType::Symlink {
            return Ok(None);
        }
        let target = readlinkat(&self.handle, c"", Vec::new()).at(&self.path)?;
        Ok(Some(target.into_bytes()))
    }

    /// The names of its extended attributes that are to be seen, sorted, and the value of each that may be
    /// read. `room` is as large as the kernel lets names and a value be.
    pub(super) fn attributes(&self, room: &mut [u8]) -> Result<Vec<Attribute>, FileFailure> {
        let path = self.own_path();
        let length = match listxattr(&path, &mut *room) {
            Err(Errno::OPNOTSUPP) => 0,
            listed => listed.at(&self.path)?,
        };
        let names = room[..length].split(|byte| *byte == 0);
        let names = names.filter(|name| !name.is_empty()).map(<[u8]>::to_vec);
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        let attribute = |name: Vec<u8>| {
            let value = match getxattr(&path, &*name, &mut *room) {
                Err(Errno::PERM | Errno::ACCESS | Errno::NODATA) => None,
                got => Some(room[..got.at(&self.path)?].to_vec()),
            };
            Ok((name, value))
        };
        names.into_iter().map(attribute).collect()
    }

    pub(super) fn entry(&self) -> Result<FileEntry, FileFailure> {
        let status = &self.status;
        Ok(FileEntry {
            name: RawPath::from(last_part(&self.path)),
            kind: kind(self.file_type()),
            size: u64::try_from(status.st_size).unwrap_or_default(),
            mode: status.st_mode & 0o7777,
            uid: status.st_uid,
            gid: status.st_gid,
            modified: modified(status),
            target: self.target()?.map(RawPath::from),
        })
    }

    /// A path that leads to what the handle holds and to nothing else.
    fn own_path(&self) -> String {
        format!("/proc/self/fd/{}", self.handle.as_raw_fd())
    }
}

/// A directory and a name in it, where something is or may be made.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) directory: OwnedFd,
    pub(super) name: Vec<u8>,
}

impl Slot {
    /// The slot that an absolute path names; its directory must be there.
    pub(super) fn find(path: &[u8]) -> Result<Self, FileFailure> {
        Self::find_from(CWD, path, path)
    }

    /// The same from `base` on, for a path that came out of the link at `asked`.
    pub(super) fn find_from(
        base: BorrowedFd<'_>,
        path: &[u8],
        asked: &[u8],
    ) -> Result<Self, FileFailure> {
        let (parent, name) = split(path).ok_or_else(|| flaw(Flaw::NoName, asked))?;
        let parent = if parent.is_empty() { b"." } else { parent };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_MAGICLINKS;
        let directory = openat2(base, parent, flags, Mode::empty(), resolve).at(asked)?;
        refuse_kernel_files(directory.as_fd(), asked)?;
        Ok(Self {
            directory,
            name: name.to_vec(),
        })
    }
}

pub(super) fn open_path(base: BorrowedFd<'_>, path: &[u8], links: Links) -> Result<OwnedFd, Errno> {
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    if links == Links::Keep {
        flags |= OFlags::NOFOLLOW;
    }
    openat2(
        base,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )
}

/// Files of `/proc`, `/sys` and the like pass for regular ones and do things when read or written.
fn refuse_kernel_files(place: BorrowedFd<'_>, path: &[u8]) -> Result<(), FileFailure> {
    if is_made_up(place).at(path)? {
        Err(flaw(Flaw::NotRegular, path))
    } else {
        Ok(())
    }
}

/// Whether it is on a filesystem that the kernel makes up.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_made_up(place: BorrowedFd<'_>) -> Result<bool, Errno> {
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
    Ok(MADE_UP.contains(&(kind as u32)))
}

/// Makes the directory at an absolute path.
pub(super) fn make_directory(path: &[u8], creation: Creation) -> Result<(), FileFailure> {
    if creation.parents == Parents::Make
        && let Some((parent, _)) = split(path)
    {
        make_directories(parent)?;
    }
    let slot = Slot::find(path)?;
    let mode = creation.mode.unwrap_or(DIRECTORY_MODE);
    match mkdirat(&slot.directory, &*slot.name, Mode::from_raw_mode(mode)) {
        Ok(()) => {}
        // As mkdir -p: what is wanted is there.
        Err(Errno::EXIST) if creation.parents == Parents::Make => {
            let there = Place::find(path, Links::Follow)?;
            return if there.is_directory() {
                Ok(())
            } else {
                Err(Errno::EXIST).at(path)
            };
        }
        Err(errno) => return Err(errno).at(path),
    }
    match creation.mode {
        // Whatever the umask is.
        Some(mode) => Place::entry_of(slot.directory.as_fd(), &*slot.name, path)?.set_mode(mode),
        None => Ok(()),
    }
}

/// Makes every directory of an absolute path that is not there yet.
pub(super) fn make_directories(path: &[u8]) -> Result<(), FileFailure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let mut current = openat2(CWD, c"/", flags, Mode::empty(), resolve).at(path)?;
    if openat2(
        &current,
        or_dot(path),
        flags,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )
    .is_ok()
    {
        return Ok(());
    }
    for part in path
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
    {
        let next = || openat2(&current, part, flags, Mode::empty(), resolve);
        let opened = match next() {
            Err(Errno::NOENT) => {
                refuse_kernel_files(current.as_fd(), path)?;
                match mkdirat(&current, part, Mode::from_raw_mode(DIRECTORY_MODE)) {
                    // By somebody else meanwhile, or it is a link that leads nowhere.
                    Ok(()) | Err(Errno::EXIST) => next(),
                    Err(errno) => Err(errno),
                }
            }
            opened => opened,
        };
        current = opened.at(path)?;
    }
    Ok(())
}

fn or_dot(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

/// Parent and last part; `None` for what has no name of its own.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let start = path[..end]
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |slash| slash + 1);
    let name = &path[start..end];
    (name != b"." && name != b"..").then_some((&path[..start], name))
}

/// The last part of a path, however it looks.
pub(super) fn last_part(path: &[u8]) -> &[u8] {
    let mut parts = path.split(|byte| *byte == b'/');
    parts.rfind(|part| !part.is_empty()).unwrap_or(b"/")
}

pub(super) fn modified(status: &Stat) -> (i64, u32) {
    let nanoseconds = u32::try_from(status.st_mtime_nsec).unwrap_or_default();
    (status.st_mtime, nanoseconds)
}

pub(super) fn kind(file_type: FileType) -> FileKind {
    match file_type {
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::RegularFile | FileType::Unknown => FileKind::File,
    }
}

/// Whether something is there; links count as themselves.
pub(super) fn exists(slot: &Slot) -> Result<bool, Errno> {
    match rustix::fs::statat(&slot.directory, &*slot.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_where_its_name_begins() {
        for (path, expected) in [
            (&b"/a"[..], Some((&b"/"[..], &b"a"[..]))),
            (b"/a/b//", Some((b"/a/", b"b"))),
            (b"a", Some((b"", b"a"))),
            (b"//x\xff", Some((b"//", b"x\xff"))),
            (b"/...", Some((b"/", b"..."))),
            (b"/", None),
            (b"", None),
            (b"/a/..", None),
            (b"/a/./", None),
        ] {
            assert_eq!(split(path), expected, "{}", path.escape_ascii());
        }
    }
}
