//! Copies what a workspace wrote, as it is on disk: any depth, any names, any modes, and never a step outside.
//!
//! Owners, modes, times, extended attributes, hard links, holes and what an overlay notes (whiteouts, which
//! are devices 0:0, and attributes) are as they were. What it is copied from must stand still.

use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, fstat, ioctl_ficlone, lgetxattr, linkat, llistxattr, lsetxattr,
    mkdirat, mknodat, openat, openat2, readlinkat, renameat, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use crate::sandbox::disk::copy_sparse;
use crate::sandbox::identity::Identity;
use crate::sandbox::reader;

/// Directories that are held open on the way down; those above are found again through `..`.
const KEPT_OPEN: usize = 64;

/// Directories below each other, at most; each is some memory of the copier's.
const DEEPEST: usize = 100_000;

/// The largest list of names and the largest value of an extended attribute, xattr(7).
const LARGEST: usize = 64 * 1024;

/// Kinds of extended attributes that are copied. Others say something of the host, such as a label.
const COPIED: [&[u8]; 4] = [
    b"user.",
    b"trusted.",
    b"security.capability",
    b"system.posix_acl_",
];

/// Where, beside the copy, each file of several names has one until all are copied.
const LINKS: &CStr = c"links";

/// A directory that is to be copied, and where to.
pub(super) struct Places {
    parents: Pair,
    name: CString,
    from: OwnedFd,
}

impl Places {
    /// The directory `from`, and `tree` in the directory `into`, where neither that nor `links` is.
    pub(super) fn open(from: &Path, into: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (from.parent(), from.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let parent = openat(CWD, parent, DIRECTORY, Mode::empty())?;
        Self::open_in(parent, CString::new(name.as_bytes())?, into)
    }

    /// The same of the directory `name` in `parent`.
    pub(super) fn open_in(parent: OwnedFd, name: CString, into: &Path) -> io::Result<Self> {
        Ok(Self {
            from: openat(&parent, &name, DIRECTORY, Mode::empty())?,
            name,
            parents: Pair {
                from: parent,
                to: openat(CWD, into, DIRECTORY, Mode::empty())?,
            },
        })
    }

    /// Copies, with nothing but these from here on.
    ///
    /// Each directory is opened below the one before it without following a link, and whatever is made is
    /// named by an entry of an open directory.
    pub(super) fn copy(self, identity: Identity) -> io::Result<()> {
        let parents = self.parents;
        let into = parents.to.as_fd();
        reader::confine(identity, &[self.from.as_fd()], Some(into))?;
        let mut copy = Copy::begin(&parents.to)?;
        let status = fstat(&self.from)?;
        mkdirat(&parents.to, c"tree", Mode::RWXU)?;
        let top = Pair {
            from: self.from,
            to: openat(&parents.to, c"tree", DIRECTORY, Mode::empty())?,
        };
        copy.walk(top)?;
        set_attributes(&parents, &self.name, c"tree", &status)?;
        copy.finish(&parents.to)
    }
}

pub(super) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A directory and its copy.
pub(super) struct Pair {
    pub(super) from: OwnedFd,
    pub(super) to: OwnedFd,
}

/// A directory on the way down.
struct Level {
    name: CString,
    status: Stat,
    /// Device and inode of its copy.
    copy: (u64, u64),
    /// Where in its entries the next is read.
    position: i64,
    open: Option<(Pair, Dir)>,
}

/// Whether the filesystem shares what is in files.
#[derive(PartialEq, Eq)]
enum Clones {
    Tried,
    Refused,
}

pub(super) struct Copy {
    links: OwnedFd,
    clones: Clones,
}

impl Copy {
    /// Begins one below the directory `into`.
    pub(super) fn begin(into: &OwnedFd) -> io::Result<Self> {
        mkdirat(into, LINKS, Mode::RWXU)?;
        Ok(Self {
            links: openat(into, LINKS, DIRECTORY, Mode::empty())?,
            clones: Clones::Tried,
        })
    }

    /// Removes what was only there on the way.
    pub(super) fn finish(self, into: &OwnedFd) -> io::Result<()> {
        for entry in Dir::read_from(&self.links)? {
            let entry = entry?;
            if !is_dots(entry.file_name()) {
                unlinkat(&self.links, entry.file_name(), AtFlags::empty())?;
            }
        }
        Ok(unlinkat(into, LINKS, AtFlags::REMOVEDIR)?)
    }

    fn walk(&mut self, top: Pair) -> io::Result<()> {
        let mut levels = vec![Level::new(c"".to_owned(), top)?];
        while let Some(current) = levels.last_mut() {
            let Some((pair, entries)) = &mut current.open else {
                return Err(io::Error::other("a directory is not open"));
            };
            match entries.read() {
                Some(entry) => {
                    let entry = entry?;
                    let name = entry.file_name();
                    current.position = entry.offset();
                    if is_dots(name) {
                        continue;
                    }
                    let status = statat(&pair.from, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
                        self.copy_one(pair, name, &status)?;
                        continue;
                    }
                    mkdirat(&pair.to, name, Mode::RWXU)?;
                    let below = Pair {
                        from: open_below(&pair.from, name, DIRECTORY)?,
                        to: open_below(&pair.to, name, DIRECTORY)?,
                    };
                    let next = Level::new(name.to_owned(), below)?;
                    levels.push(next);
                    let depth = levels.len();
                    if depth > DEEPEST {
                        return Err(Errno::NAMETOOLONG.into());
                    }
                    if depth > KEPT_OPEN {
                        levels[depth - 1 - KEPT_OPEN].open = None;
                    }
                }
                None => {
                    let Some(done) = levels.pop() else { break };
                    let Some(parent) = levels.last_mut() else {
                        break;
                    };
                    if let Some((child, _)) = &done.open {
                        parent.open_from(child)?;
                    }
                    if let Some((pair, _)) = &parent.open {
                        set_attributes(pair, &done.name, &done.name, &done.status)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Copies what is no directory.
    pub(super) fn copy_one(&mut self, pair: &Pair, name: &CStr, status: &Stat) -> io::Result<()> {
        if status.st_nlink < 2 {
            return self.make(pair, name, status);
        }
        let mut key = String::new();
        let _ = write!(key, "{:x}-{:x}", status.st_dev, status.st_ino);
        match linkat(&self.links, &key, &pair.to, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => {
                self.make(pair, name, status)?;
                Ok(linkat(&pair.to, name, &self.links, &key, AtFlags::empty())?)
            }
            // As many as there may be, of which one was ours.
            Err(Errno::MLINK) => Ok(renameat(&self.links, &key, &pair.to, name)?),
            Err(error) => Err(error.into()),
        }
    }

    fn make(&mut self, pair: &Pair, name: &CStr, status: &Stat) -> io::Result<()> {
        let private = Mode::RUSR | Mode::WUSR;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => {
                let from = open_below(&pair.from, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let to = openat(&pair.to, name, flags | OFlags::CLOEXEC, private)?;
                self.copy_content(&from.into(), &to.into())?;
            }
            FileType::Symlink => {
                let target = readlinkat(&pair.from, name, Vec::new())?;
                symlinkat(target, &pair.to, name)?;
            }
            // Whiteouts among them, which whoever may make files may make.
            kind => mknodat(&pair.to, name, kind, private, status.st_rdev)?,
        }
        set_attributes(pair, name, name, status)
    }

    fn copy_content(&mut self, from: &File, to: &File) -> io::Result<()> {
        if self.clones == Clones::Tried {
            match ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC.into()),
                Err(_) => self.clones = Clones::Refused,
            }
        }
        copy_sparse(from, to)
    }
}

impl Level {
    fn new(name: CString, pair: Pair) -> io::Result<Self> {
        let copy = fstat(&pair.to)?;
        let entries = Dir::read_from(&pair.from)?;
        Ok(Self {
            name,
            status: fstat(&pair.from)?,
            copy: (copy.st_dev, copy.st_ino),
            position: 0,
            open: Some((pair, entries)),
        })
    }

    /// Opens it again from what is below it, if it was closed, and goes on where it was.
    fn open_from(&mut self, child: &Pair) -> io::Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        let pair = Pair {
            from: openat(&child.from, c"..", DIRECTORY, Mode::empty())?,
            to: openat(&child.to, c"..", DIRECTORY, Mode::empty())?,
        };
        let same = |found: Stat, expected| (found.st_dev, found.st_ino) == expected;
        let own = (self.status.st_dev, self.status.st_ino);
        if !same(fstat(&pair.from)?, own) || !same(fstat(&pair.to)?, self.copy) {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        let mut entries = Dir::read_from(&pair.from)?;
        entries.seek(self.position)?;
        self.open = Some((pair, entries));
        Ok(())
    }
}

pub(super) fn is_dots(name: &CStr) -> bool {
    name == c"." || name == c".."
}

pub(super) fn open_below(
    parent: &OwnedFd,
    name: &CStr,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(parent, name, flags, Mode::empty(), below)
}

/// Gives what is called `copy` what `name` has: owner first, as a change of that takes capabilities and
/// modes away, and times last.
pub(super) fn set_attributes(
    pair: &Pair,
    name: &CStr,
    copy: &CStr,
    status: &Stat,
) -> io::Result<()> {
    let owner = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    chownat(&pair.to, copy, Some(owner.0), Some(owner.1), flags)?;
    copy_attributes(&inside(&pair.from, name), &inside(&pair.to, copy))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(status.st_mode);
        // No link: it was made a moment ago, where nobody else makes anything.
        chmodat(&pair.to, copy, mode, AtFlags::empty())?;
    }
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(status.st_atime, status.st_atime_nsec),
        last_modification: time(status.st_mtime, status.st_mtime_nsec),
    };
    Ok(utimensat(&pair.to, copy, &times, flags)?)
}

/// A path of what has no descriptor of its own; its last part is followed by no call that is used with it.
fn inside(directory: &OwnedFd, name: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    path
}

fn copy_attributes(from: &[u8], to: &[u8]) -> io::Result<()> {
    // Most have none, or one.
    let mut list = [0_u8; 256];
    let mut long = Vec::new();
    let names = match llistxattr(from, &mut list) {
        Ok(length) => &list[..length],
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(Errno::RANGE) => {
            long.resize(LARGEST, 0);
            let length = llistxattr(from, &mut long[..])?;
            &long[..length]
        }
        Err(error) => return Err(error.into()),
    };
    let mut value = Vec::new();
    for name in names.split(|byte| *byte == 0) {
        if !COPIED.iter().any(|kind| name.starts_with(kind)) {
            continue;
        }
        value.resize(LARGEST, 0);
        let length = lgetxattr(from, name, &mut value[..])?;
        lsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

    use rustix::fs::{getxattr, setxattr};

    use super::*;

    #[test]
    fn copies_hostile_trees_as_they_are() {
        let outside = tempfile::tempdir().expect("tempdir");
        let canary = outside.path().join("canary");
        std::fs::write(&canary, "alive").expect("canary");
        let tree = outside.path().join("upper");
        std::fs::create_dir(&tree).expect("tree");
        let at = |name: &str| tree.join(name);
        symlink(&canary, at("link")).expect("link");
        symlink(outside.path(), at("links")).expect("link");
        std::fs::write(at("new\nline"), "text").expect("file");
        std::fs::hard_link(at("new\nline"), at("other")).expect("link");
        mknodat(
            CWD,
            at("deleted"),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .expect("whiteout");
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0).expect("pipe");
        let sparse = File::create(at("sparse")).expect("file");
        sparse.set_len(1 << 40).expect("a hole");
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (1 << 40) - 3).expect("data");
        let value = vec![b'v'; 2000];
        setxattr(at("sparse"), "user.overlay.x", &value, XattrFlags::empty()).expect("attribute");
        std::fs::create_dir(at("closed")).expect("directory");
        std::fs::write(at("closed/secret"), "kept").expect("file");
        std::fs::set_permissions(at("closed/secret"), PermissionsExt::from_mode(0o4000))
            .expect("mode");
        // Root alone reads it then.
        let is_root = rustix::process::geteuid().is_root();
        let mode = if is_root { 0 } else { 0o500 };
        if !is_root {
            std::fs::set_permissions(at("closed/secret"), PermissionsExt::from_mode(0o400))
                .expect("mode");
        }
        std::fs::set_permissions(at("closed"), PermissionsExt::from_mode(mode)).expect("mode");
        // Deeper than any path can name, with something behind each step down.
        let mut deep = openat(CWD, &tree, DIRECTORY, Mode::empty()).expect("open");
        for _ in 0..3000 {
            for name in ["a", "d", "z"] {
                mkdirat(&deep, name, Mode::RWXU).expect("mkdir");
            }
            deep = openat(&deep, "d", DIRECTORY, Mode::empty()).expect("open");
        }
        let times = rustix::fs::Timestamps {
            last_access: Timespec {
                tv_sec: 1,
                tv_nsec: 2,
            },
            last_modification: Timespec {
                tv_sec: 3,
                tv_nsec: 4,
            },
        };
        for name in ["other", "closed", "link"] {
            utimensat(CWD, at(name), &times, AtFlags::SYMLINK_NOFOLLOW).expect("times");
        }

        let into = outside.path().join("into");
        std::fs::create_dir(&into).expect("directory");
        let identity = match is_root {
            true => Identity::Ranges,
            false => Identity::Single,
        };
        let places = Places::open(&tree, &into).expect("they open");
        // What binds a process binds a thread, if it is all that runs there.
        let copied = std::thread::spawn(move || places.copy(identity));
        copied.join().expect("it ends").expect("copied");

        assert_eq!(
            std::fs::read_dir(&into).expect("listed").count(),
            1,
            "links are left"
        );
        let copied = |name: &str| into.join("tree").join(name);
        let status = |name: &str| std::fs::symlink_metadata(copied(name)).expect("copied");
        assert_eq!(std::fs::read_link(copied("link")).expect("a link"), canary);
        assert_eq!(std::fs::read(copied("new\nline")).expect("a file"), b"text");
        assert_eq!(status("other").ino(), status("new\nline").ino());
        assert_eq!(
            (status("other").nlink(), status("other").mtime_nsec()),
            (2, 4)
        );
        let whiteout = status("deleted");
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
        assert!(status("pipe").file_type().is_fifo());
        assert_eq!(status("sparse").len(), 1 << 40);
        assert!(status("sparse").blocks() < 1024, "holes are filled");
        let mut found = vec![0; 4096];
        let length =
            getxattr(copied("sparse"), "user.overlay.x", &mut found[..]).expect("attribute");
        assert_eq!(found[..length], value);
        // Reading a link may note that.
        for name in ["closed", "link"] {
            let times = (status(name).mtime(), status(name).mtime_nsec());
            assert_eq!(times, (3, 4), "{name}");
        }
        assert_eq!(status("closed").atime(), 1);
        assert_eq!(status("closed").mode() & 0o7777, mode);
        let secret = std::fs::symlink_metadata(copied("closed/secret")).expect("copied");
        assert_eq!(secret.mode() & 0o7777, if is_root { 0o4000 } else { 0o400 });
        let mut deep = openat(CWD, into.join("tree"), DIRECTORY, Mode::empty()).expect("open");
        for _ in 0..3000 {
            for name in ["a", "z"] {
                statat(&deep, name, AtFlags::empty()).expect("beside it");
            }
            deep = openat(&deep, "d", DIRECTORY, Mode::empty()).expect("as deep");
        }
        assert_eq!(std::fs::read_to_string(&canary).expect("canary"), "alive");
        super::super::removal::remove(&tree).expect("removed");
        super::super::removal::remove(&into).expect("removed");
    }
}
