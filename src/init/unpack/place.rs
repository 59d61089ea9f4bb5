//! Puts members of an archive on disk, below one directory and nowhere else.
//!
//! Names are never joined to paths: the parent of each entry is opened by the kernel relative to
//! the destination, as if that were the root (`RESOLVE_IN_ROOT`, openat2(2), Linux 5.6), and the
//! entry is made in that descriptor without following a link. So links in an archive work as
//! they will in the sandbox, and lead nowhere else.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT,
    Uid, XattrFlags,
};
use rustix::io::Errno;

use super::archive::{Archive, Content, Kind, Member, Time};
use super::removal;
use super::{
    Summary, Terms, UnpackError, UnpackLimits, WHITEOUT, WHITEOUT_OPAQUE, escape, may_travel,
};

/// The longest name the kernel takes, its NUL included (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// Room for the names of directories whose modes must wait for the end.
const WAITING_NAMES: usize = 64 << 20;
/// Inside the destination only: no way out by `..` or links, no `/proc` magic, no other mount.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// The owner may do everything: what a directory needs while entries are placed in it.
const OWNER_ALL: u32 = 0o700;
const SETUID_SETGID: u32 = 0o6000;
/// What owner, group and others may do.
const PERMISSIONS: u32 = 0o777;
/// The mode of directories that an archive does not name.
const UNNAMED_DIRECTORY: u32 = 0o755;
/// Names of entries left out that are remembered.
const NAMES_KEPT: usize = 8;

/// The destination and what is to be remembered between entries.
#[derive(Debug)]
pub(super) struct Placer<'a> {
    dest: OwnedFd,
    /// Filesystems below it that belong to it, by their names from there.
    roots: Vec<(Vec<u8>, OwnedFd)>,
    /// The directory whose entry was the last one.
    latest: Option<(Vec<u8>, Member)>,
    limits: &'a UnpackLimits,
    terms: Terms,
    summary: Summary,
    directories: u64,
    /// The directory of the latest entry: archives list siblings together.
    parent: Option<Parent>,
    /// Hashes of the names of directories whose times the archive gave: entries made in them must not change those.
    dated: HashSet<u64>,
    hasher: RandomState,
    /// Modes that would lock out the unpacker, set at the end; by name.
    waiting: BTreeMap<Vec<u8>, u32>,
    waiting_names: usize,
    buffer: Vec<u8>,
}

/// An open directory.
#[derive(Debug)]
struct Parent {
    path: Vec<u8>,
    fd: OwnedFd,
    /// What its time must be again when it is left.
    time: Option<Time>,
}

/// Why an entry could not be placed.
enum Fault {
    Refused(&'static str),
    Failed(&'static str, Errno),
    /// It lies at or below another mount.
    UnderMount,
    /// The terms have no place for it.
    LeftOut,
    Whole(UnpackError),
}

impl From<UnpackError> for Fault {
    fn from(e: UnpackError) -> Self {
        Self::Whole(e)
    }
}

/// Names what was tried.
trait Trying<T> {
    fn trying(self, action: &'static str) -> Result<T, Fault>;
    /// For what [`openat2`] answers: tells apart that another mount is in the way. From other
    /// calls EXDEV means something else, such as a restriction of this process, and is an error.
    fn inside(self, action: &'static str) -> Result<T, Fault>;
}

impl<T> Trying<T> for Result<T, Errno> {
    fn trying(self, action: &'static str) -> Result<T, Fault> {
        self.map_err(|e| Fault::Failed(action, e))
    }

    fn inside(self, action: &'static str) -> Result<T, Fault> {
        self.map_err(|e| match e {
            Errno::XDEV => Fault::UnderMount,
            e => Fault::Failed(action, e),
        })
    }
}

impl<'a> Placer<'a> {
    pub(super) fn new(
        dest: &Path,
        limits: &'a UnpackLimits,
        terms: Terms,
    ) -> Result<Self, UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dest = fs::open(dest, flags, Mode::empty()).map_err(|e| UnpackError::Destination {
            path: escape(dest.as_os_str().as_encoded_bytes()),
            source: e.into(),
        })?;
        Ok(Self {
            dest,
            roots: Vec::new(),
            latest: None,
            limits,
            terms,
            summary: Summary::default(),
            directories: 0,
            parent: None,
            dated: HashSet::new(),
            hasher: RandomState::new(),
            waiting: BTreeMap::new(),
            waiting_names: 0,
            buffer: vec![0; 128 << 10],
        })
    }

    /// Has a filesystem that is mounted below the destination belong to it.
    pub(super) fn add_root(&mut self, path: &Path) -> Result<(), UnpackError> {
        let name = path.as_os_str().as_encoded_bytes();
        let name = name.strip_prefix(b"/").unwrap_or(name);
        if name.is_empty() {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = fs::open(path, flags, Mode::empty()).map_err(|e| UnpackError::Destination {
            path: escape(name),
            source: e.into(),
        })?;
        self.roots.push((name.to_vec(), root));
        Ok(())
    }

    /// Opens something below the destination, in the filesystem that it is in.
    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let below = self.roots.iter().filter_map(|(name, root)| {
            let rest = path.strip_prefix(name.as_slice())?;
            let rest = match rest.split_first() {
                None => rest,
                Some((b'/', rest)) => rest,
                Some(_) => return None,
            };
            Some((root, rest))
        });
        let (root, rest) = below
            .min_by_key(|(_, rest)| rest.len())
            .unwrap_or((&self.dest, path));
        openat2(root.as_fd(), or_dot(rest), flags, self.terms)
    }

    fn is_root(&self, path: &[u8]) -> bool {
        path.is_empty() || self.roots.iter().any(|(name, _)| name == path)
    }

    /// Makes one entry; its data, if any, comes from `archive`.
    pub(super) fn place(
        &mut self,
        member: &Member,
        archive: &mut Archive<'_>,
    ) -> Result<(), UnpackError> {
        match self.try_place(member, archive) {
            Ok(()) => Ok(()),
            Err(Fault::UnderMount) => {
                self.summary.under_mounts_skipped += 1;
                self.leave_out(member);
                Ok(())
            }
            Err(Fault::LeftOut) => {
                self.leave_out(member);
                Ok(())
            }
            Err(fault) => Err(fault.of(&member.path)),
        }
    }

    fn leave_out(&mut self, member: &Member) {
        self.summary.left_out += 1;
        note(&mut self.summary.names_left_out, member);
    }

    /// Sets what had to wait, and tells what was done.
    pub(super) fn finish(mut self) -> Result<Summary, UnpackError> {
        self.leave_parent();
        // Backwards, so that a directory is locked after those below it.
        for (path, mode) in std::mem::take(&mut self.waiting).into_iter().rev() {
            self.set_waiting(&path, mode)
                .map_err(|fault| fault.of(&path))?;
        }
        Ok(self.summary)
    }

    fn try_place(&mut self, member: &Member, archive: &mut Archive<'_>) -> Result<(), Fault> {
        let path = normalise(&member.path, self.limits)?;
        let latest = self.latest.take();
        let parts = split(&path).filter(|_| !self.is_root(&path));
        let Some((parent, name)) = parts else {
            return match member.kind {
                Kind::Directory => self.place_root(member, &path),
                _ => Err(Fault::Refused(
                    "only a directory can stand for the whole archive",
                )),
            };
        };
        match (self.terms, &member.kind) {
            (Terms::Snapshot, Kind::Device) => return Err(Fault::Refused("it is a device")),
            (Terms::Snapshot, _) => {
                check_attributes(member)?;
                let mut above = parent.split(|byte| *byte == b'/');
                if above.any(|part| part.starts_with(WHITEOUT)) {
                    return Err(Fault::Refused("it lies in what stands for a deletion"));
                }
                if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                    check_whiteout(member, hidden)?;
                    self.count_entry()?;
                    return if name == WHITEOUT_OPAQUE {
                        self.make_opaque(parent, latest)
                    } else {
                        self.place_whiteout(parent, hidden)
                    };
                }
            }
            (_, Kind::Device | Kind::Fifo) => return Err(Fault::LeftOut),
            _ => {}
        }
        self.count_entry()?;
        self.enter_parent(parent)?;
        match &member.kind {
            Kind::Directory => self.place_directory(member, &path, name)?,
            Kind::File(content) => {
                self.forget(&path);
                self.place_file(member, name, content, archive)?;
            }
            Kind::Symlink { target } => {
                self.forget(&path);
                self.place_symlink(member, name, target)?;
            }
            Kind::HardLink { target } => self.place_hard_link(&path, name, target)?,
            Kind::Fifo => {
                self.forget(&path);
                self.place_fifo(member, name)?;
            }
            Kind::Device => {}
        }
        Ok(())
    }

    /// An entry for the destination itself, as `./` of most archives, or for another root.
    fn place_root(&mut self, member: &Member, path: &[u8]) -> Result<(), Fault> {
        self.leave_parent();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = self.open(path, flags).inside("open the destination")?;
        self.dress_directory(member, path, root.as_fd())
    }

    /// Deletes what is there, if something is.
    fn place_whiteout(&mut self, parent: &[u8], hidden: &[u8]) -> Result<(), Fault> {
        self.leave_parent();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match self.open(parent, flags) {
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e).inside("open the parent directory"),
            Ok(_) => {}
        }
        self.enter_parent(parent)?;
        match removal::remove(current(&self.parent)?, hidden) {
            Ok(()) => Ok(()),
            Err(Errno::BUSY | Errno::XDEV) => Err(Fault::UnderMount),
            Err(e) => Err(Fault::Failed("delete what is there", e)),
        }
    }

    /// Has a directory join nothing of what was there: it is removed and made anew.
    fn make_opaque(&mut self, path: &[u8], latest: Option<(Vec<u8>, Member)>) -> Result<(), Fault> {
        let Some((_, member)) = latest.filter(|(latest, _)| latest == path) else {
            return Err(Fault::Refused(
                "it does not come right after the directory that it is in",
            ));
        };
        let Some((above, name)) = split(path) else {
            return Err(Fault::Refused("it would hide all there is"));
        };
        self.enter_parent(above)?;
        removal::remove(current(&self.parent)?, name).trying("delete what is there")?;
        self.place_directory(&member, path, name)
    }

    fn place_fifo(&mut self, member: &Member, name: &[u8]) -> Result<(), Fault> {
        let private = Mode::RUSR | Mode::WUSR;
        self.make(name, "make the pipe", |parent| {
            fs::mknodat(parent, name, FileType::Fifo, private, 0)
        })?;
        let parent = current(&self.parent)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let squashed = own(&mut self.summary, self.terms, member, |uid, gid| {
            fs::chownat(parent, name, uid, gid, flags)
        })?;
        // No link: it was made just now, where nobody else makes anything.
        let mode = mode_of(member, squashed, self.terms);
        fs::chmodat(parent, name, mode, AtFlags::empty()).trying("set the mode")?;
        self.summary.xattrs_dropped += member.xattrs.len() as u64;
        fs::utimensat(parent, name, &times(member.mtime), flags).trying("set the time")
    }

    fn place_directory(&mut self, member: &Member, path: &[u8], name: &[u8]) -> Result<(), Fault> {
        let made = loop {
            let parent = current(&self.parent)?;
            match fs::mkdirat(parent, name, Mode::from_raw_mode(OWNER_ALL)) {
                Ok(()) => break true,
                Err(Errno::EXIST) => {}
                Err(e) => return Err(Fault::Failed("make the directory", e)),
            }
            let kind = kind_of(parent, name)?;
            match kind {
                FileType::Directory => break false,
                // As under merged /usr: the link stays, and what it leads to is somebody else's entry.
                FileType::Symlink
                    if self.terms != Terms::Snapshot && self.leads_to_directory(path) =>
                {
                    return Ok(());
                }
                _ => {
                    fs::unlinkat(parent, name, AtFlags::empty()).trying("replace what is there")?
                }
            }
        };
        if made {
            self.count_directory()?;
        }
        let parent = current(&self.parent)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // By openat2, which tells a mount point apart: that keeps its own mode.
        let fd = openat2(parent, name, flags, self.terms).inside("open the directory")?;
        self.dress_directory(member, path, fd.as_fd())?;
        if self.terms == Terms::Snapshot {
            self.latest = Some((path.to_vec(), member.clone()));
        }
        Ok(())
    }

    fn place_file(
        &mut self,
        member: &Member,
        name: &[u8],
        content: &Content,
        archive: &mut Archive<'_>,
    ) -> Result<(), Fault> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = self.make(name, "create the file", |parent| {
            fs::openat(parent, name, flags, mode)
        })?;
        let file = File::from(fd);
        self.write(&file, content, archive)?;
        // After the data: writing and chown both clear setuid and capabilities.
        let squashed = own(&mut self.summary, self.terms, member, |uid, gid| {
            fs::fchown(&file, uid, gid)
        })?;
        fs::fchmod(&file, mode_of(member, squashed, self.terms)).trying("set the mode")?;
        self.attribute(member, file.as_fd());
        fs::futimens(&file, &times(member.mtime)).trying("set the time")
    }

    fn write(
        &mut self,
        file: &File,
        content: &Content,
        archive: &mut Archive<'_>,
    ) -> Result<(), Fault> {
        let mut written = 0;
        for segment in content.segments.iter().filter(|segment| segment.length > 0) {
            let mut at = segment.offset;
            let end = at + segment.length;
            written = end;
            while at < end {
                let room = usize::try_from(end - at)
                    .unwrap_or(usize::MAX)
                    .min(self.buffer.len());
                let got = archive.read_data(&mut self.buffer[..room])?;
                file.write_all_at(&self.buffer[..got], at)
                    .map_err(|e| failed("write the file", &e))?;
                at += got as u64;
            }
            self.summary.bytes += segment.length;
        }
        if written < content.size {
            // A hole at the end.
            fs::ftruncate(file, content.size).trying("set the size")?;
        }
        Ok(())
    }

    fn place_symlink(&mut self, member: &Member, name: &[u8], target: &[u8]) -> Result<(), Fault> {
        let target = checked_target(target)?;
        if matches!(self.terms, Terms::Host { .. }) && !self.leads_inside(target) {
            return Err(Fault::LeftOut);
        }
        self.make(name, "make the symbolic link", |parent| {
            fs::symlinkat(target, parent, name)
        })?;
        let parent = current(&self.parent)?;
        own(&mut self.summary, self.terms, member, |uid, gid| {
            fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        })?;
        self.summary.xattrs_dropped += member.xattrs.len() as u64;
        fs::utimensat(
            parent,
            name,
            &times(member.mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .trying("set the time")
    }

    /// The link is to the name itself, also where that is a symbolic link.
    fn place_hard_link(&mut self, path: &[u8], name: &[u8], target: &[u8]) -> Result<(), Fault> {
        let target = normalise(checked_target(target)?, self.limits)?;
        let Some((target_parent, target_name)) = split(&target) else {
            return Err(Fault::Refused("its target is a directory"));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let from = self.open(target_parent, flags);
        // To a FIFO or a device of this archive, most likely; its directory may be missing as well.
        let may_be_left_out = self.summary.left_out > 0;
        let from = match from {
            Err(Errno::NOENT) if may_be_left_out => return Err(Fault::LeftOut),
            Err(Errno::XDEV) if self.terms == Terms::Snapshot => {
                return Err(Fault::Refused("its target lies below another mount"));
            }
            from => from.inside("find the target of the hard link")?,
        };
        if matches!(self.terms, Terms::Host { .. }) {
            // A symbolic link would lead elsewhere from another place; others were left out.
            let found = fs::statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW);
            if !found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file()) {
                return Err(Fault::LeftOut);
            }
        }
        let parent = current(&self.parent)?;
        match fs::linkat(&from, target_name, parent, name, AtFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) if may_be_left_out => return Err(Fault::LeftOut),
            Err(Errno::XDEV) if self.terms == Terms::Snapshot => {
                return Err(Fault::Refused("its target lies below another mount"));
            }
            Err(e) => return Err(e).trying("make the hard link"),
        }
        // Replacing a name of the very file would remove the file.
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let there = fs::statat(parent, name, nofollow).trying("look at what is there")?;
        let target =
            fs::statat(&from, target_name, nofollow).trying("find the target of the hard link")?;
        if (there.st_dev, there.st_ino) == (target.st_dev, target.st_ino) {
            return Ok(());
        }
        self.forget(path);
        self.make(name, "make the hard link", |parent| {
            fs::linkat(&from, target_name, parent, name, AtFlags::empty())
        })
    }

    /// Makes something that must not be there yet; removes what is, unless that is a directory with something in it.
    fn make<T>(
        &mut self,
        name: &[u8],
        action: &'static str,
        create: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Fault> {
        let parent = current(&self.parent)?;
        match create(parent) {
            Err(Errno::EXIST) => {}
            made => return made.trying(action),
        }
        match fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) => match fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
            {
                Ok(()) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) if self.terms == Terms::Snapshot => {
                    // As an image's layer means it.
                    removal::remove(parent, name).trying("replace what is there")?;
                }
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    return Err(Fault::Refused(
                        "it would replace a directory that is not empty",
                    ));
                }
                // A mount point.
                Err(Errno::BUSY) => return Err(Fault::UnderMount),
                Err(e) => return Err(Fault::Failed("replace what is there", e)),
            },
            Err(Errno::BUSY) => return Err(Fault::UnderMount),
            Err(e) => return Err(Fault::Failed("replace what is there", e)),
        }
        create(parent).trying(action)
    }

    /// Owner, mode, attributes and time of a directory.
    fn dress_directory(
        &mut self,
        member: &Member,
        path: &[u8],
        fd: BorrowedFd<'_>,
    ) -> Result<(), Fault> {
        let squashed = own(&mut self.summary, self.terms, member, |uid, gid| {
            fs::fchown(fd, uid, gid)
        })?;
        let mode = mode_of(member, squashed, self.terms);
        self.forget(path);
        let bits = mode.as_raw_mode();
        // Whoever copies a directory out wants to be able to remove it.
        if bits & OWNER_ALL != OWNER_ALL && is_literal(self.terms) {
            self.wait(path, bits)?;
        }
        fs::fchmod(fd, mode | Mode::RWXU).trying("set the mode")?;
        self.attribute(member, fd);
        fs::futimens(fd, &times(member.mtime)).trying("set the time")?;
        self.dated.insert(self.hasher.hash_one(path));
        Ok(())
    }

    /// Sets the attributes that an archive may bring. Not every filesystem takes them: that is counted.
    fn attribute(&mut self, member: &Member, fd: BorrowedFd<'_>) {
        if self.terms == Terms::Snapshot {
            self.clear_attributes(member, fd);
        }
        for (name, value) in &member.xattrs {
            if !is_literal(self.terms)
                || !(may_be_set(name) || self.terms == Terms::Snapshot && may_travel(name))
                || fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()).is_err()
            {
                self.summary.xattrs_dropped += 1;
            }
        }
    }

    /// Removes attributes that a snapshot does not have: those of a directory that was there, and lists of who may
    /// what that new files get from the directory that they are in.
    fn clear_attributes(&mut self, member: &Member, fd: BorrowedFd<'_>) {
        let Ok(length) = fs::flistxattr(fd, &mut self.buffer[..]) else {
            return;
        };
        for name in self.buffer[..length].split(|byte| *byte == 0) {
            let is_wanted = member.xattrs.iter().any(|(wanted, _)| wanted == name);
            if may_travel(name) && !is_wanted && fs::fremovexattr(fd, name).is_err() {
                self.summary.xattrs_dropped += 1;
            }
        }
    }

    /// Makes `path` the current parent, creating it if need be.
    fn enter_parent(&mut self, path: &[u8]) -> Result<(), Fault> {
        if self
            .parent
            .as_ref()
            .is_some_and(|parent| parent.path == path)
        {
            return Ok(());
        }
        self.leave_parent();
        let fd = self.open_or_make(path)?;
        // That may have entered directories above.
        self.leave_parent();
        let time = if self.dated.contains(&self.hasher.hash_one(path)) {
            let stat = fs::fstat(&fd).trying("look at the parent directory")?;
            Some(Time {
                seconds: stat.st_mtime as i64,
                nanoseconds: stat.st_mtime_nsec as u32,
            })
        } else {
            None
        };
        self.parent = Some(Parent {
            path: path.to_vec(),
            fd,
            time,
        });
        Ok(())
    }

    fn leave_parent(&mut self) {
        if let Some(Parent {
            fd,
            time: Some(time),
            ..
        }) = self.parent.take()
        {
            // It could be set before; a time is no reason to fail.
            let _ = fs::futimens(&fd, &times(time));
        }
    }

    /// Opens a directory below the destination; missing ones on the way are made, as tar does.
    fn open_or_make(&mut self, path: &[u8]) -> Result<OwnedFd, Fault> {
        const OPEN: &str = "open the parent directory";
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match self.open(path, flags) {
            Err(Errno::NOENT) => {}
            opened => return opened.inside(OPEN),
        }
        let ends = (0..path.len())
            .filter(|&at| path[at] == b'/')
            .chain([path.len()]);
        for here in ends.map(|end| &path[..end]) {
            let there = OFlags::PATH | OFlags::CLOEXEC;
            match self.open(here, there) {
                Ok(_) => continue,
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e).inside(OPEN),
            }
            let Some((above, name)) = split(here) else {
                return Err(Errno::NOENT).trying(OPEN);
            };
            // That exists, so this goes no deeper.
            self.enter_parent(above)?;
            self.count_entry()?;
            self.count_directory()?;
            // Fails on a dangling link, as it should.
            let mode = match self.terms {
                Terms::Sandbox | Terms::Snapshot => UNNAMED_DIRECTORY,
                Terms::Host { umask } => UNNAMED_DIRECTORY & !umask | OWNER_ALL,
            };
            fs::mkdirat(current(&self.parent)?, name, Mode::from_raw_mode(mode))
                .trying("make the parent directory")?;
            let made = self.open(here, flags).inside(OPEN)?;
            // Whatever the umask is.
            fs::fchmod(&made, Mode::from_raw_mode(mode))
                .trying("set the mode of the parent directory")?;
        }
        self.open(path, flags).inside(OPEN)
    }

    /// Whether a symbolic link in the current parent leads to something below the destination,
    /// whatever other links there are: up first, never above the destination, then only down. A
    /// `..` after a name could go up from wherever that name leads to.
    fn leads_inside(&self, target: &[u8]) -> bool {
        let depth = match &self.parent {
            Some(parent) if !parent.path.is_empty() => parent.path.split(|&b| b == b'/').count(),
            _ => 0,
        };
        let mut parts = target
            .split(|&b| b == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .skip_while({
                let mut up = 0;
                move |part| {
                    up += 1;
                    *part == b".." && up <= depth
                }
            });
        !target.starts_with(b"/") && parts.all(|part| part != b"..")
    }

    fn leads_to_directory(&self, path: &[u8]) -> bool {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let found = self.open(path, flags);
        // Onto another mount, as from /var/run to /run, counts: that is a directory to everybody else.
        matches!(found, Ok(_) | Err(Errno::XDEV))
    }

    fn wait(&mut self, path: &[u8], mode: u32) -> Result<(), Fault> {
        self.waiting_names += path.len() + 1;
        if self.waiting_names > WAITING_NAMES {
            let what = "bytes of names of directories closed to their owner";
            return Err(Fault::Whole(UnpackError::TooMuch {
                what,
                limit: WAITING_NAMES as u64,
            }));
        }
        self.waiting.insert(path.to_vec(), mode);
        Ok(())
    }

    /// An entry takes the place of an earlier one.
    fn forget(&mut self, path: &[u8]) {
        if self.waiting.remove(path).is_some() {
            self.waiting_names -= path.len() + 1;
        }
    }

    fn set_waiting(&self, path: &[u8], mode: u32) -> Result<(), Fault> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = self.open(path, flags).inside("open the directory")?;
        fs::fchmod(&fd, Mode::from_raw_mode(mode)).trying("set the mode")
    }

    fn count_entry(&mut self) -> Result<(), Fault> {
        self.summary.entries += 1;
        within(self.summary.entries, self.limits.entries, "entries")
    }

    fn count_directory(&mut self) -> Result<(), Fault> {
        self.directories += 1;
        within(self.directories, self.limits.directories, "directories")
    }
}

impl Fault {
    fn of(self, path: &[u8]) -> UnpackError {
        let entry = escape(path);
        match self {
            Self::Refused(reason) => UnpackError::Refused { entry, reason },
            Self::Failed(action, e) => UnpackError::Failed {
                entry,
                action,
                source: e.into(),
            },
            Self::UnderMount => UnpackError::Refused {
                entry,
                reason: "it lies below another mount",
            },
            Self::LeftOut => UnpackError::Refused {
                entry,
                reason: "it has no place here",
            },
            Self::Whole(e) => e,
        }
    }
}

/// Keeps the name, if it is one of the first.
fn note(names: &mut Vec<String>, member: &Member) {
    if names.len() < NAMES_KEPT {
        names.push(escape(&member.path));
    }
}

/// Gives the entry to its owner; tells whether that owner has no id here.
fn own(
    summary: &mut Summary,
    terms: Terms,
    member: &Member,
    chown: impl Fn(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
) -> Result<bool, Fault> {
    if !is_literal(terms) {
        return Ok(true);
    }
    match chown(
        Some(Uid::from_raw(member.uid)),
        Some(Gid::from_raw(member.gid)),
    ) {
        Ok(()) => Ok(false),
        // EINVAL: no such id in this user namespace. EPERM: not ours to give.
        Err(Errno::INVAL | Errno::PERM) => {
            summary.owners_squashed += 1;
            note(&mut summary.names_squashed, member);
            Ok(true)
        }
        Err(e) => Err(Fault::Failed("set the owner", e)),
    }
}

/// The directory of the entry at hand.
fn current(parent: &Option<Parent>) -> Result<BorrowedFd<'_>, Fault> {
    parent
        .as_ref()
        .map(|parent| parent.fd.as_fd())
        .ok_or(Fault::Refused("it has no parent directory"))
}

/// The attributes that an archive may bring.
///
/// Not `trusted.*` and `user.overlay.*`: to overlayfs they are commands. Not the rest of
/// `security.*` and `system.*`: labels and ACLs name ids and policies of the system that made the archive.
pub(super) fn may_be_set(name: &[u8]) -> bool {
    name == b"security.capability"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Whether owners, modes and attributes are what the archive says.
fn is_literal(terms: Terms) -> bool {
    match terms {
        Terms::Sandbox | Terms::Snapshot => true,
        Terms::Host { .. } => false,
    }
}

/// Refuses attributes that no snapshot has.
fn check_attributes(member: &Member) -> Result<(), Fault> {
    if member.xattrs.iter().all(|(name, _)| may_travel(name)) {
        return Ok(());
    }
    Err(Fault::Refused(
        "it has an extended attribute that no workspace can set",
    ))
}

/// Refuses what is no deletion, though its name says so.
fn check_whiteout(member: &Member, hidden: &[u8]) -> Result<(), Fault> {
    if !matches!(&member.kind, Kind::File(content) if content.size == 0) {
        return Err(Fault::Refused(
            "its name stands for a deletion, and it is no empty file",
        ));
    }
    let is_opaque = hidden == &WHITEOUT_OPAQUE[WHITEOUT.len()..];
    if !is_opaque && (hidden.starts_with(WHITEOUT) || matches!(hidden, b"" | b"." | b"..")) {
        return Err(Fault::Refused(
            "its name stands for no deletion that there is",
        ));
    }
    Ok(())
}

/// The name relative to the destination, without empty and `.` components.
fn normalise(name: &[u8], limits: &UnpackLimits) -> Result<Vec<u8>, Fault> {
    if name.len() >= PATH_MAX {
        return Err(Fault::Refused("its name is too long"));
    }
    if name.is_empty() {
        return Err(Fault::Refused("it has no name"));
    }
    if name.contains(&0) {
        return Err(Fault::Refused("there is a NUL in its name"));
    }
    let mut path = Vec::with_capacity(name.len());
    let mut depth = 0;
    for part in name
        .split(|&b| b == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
    {
        if part == b".." {
            return Err(Fault::Refused("there is a '..' in its name"));
        }
        depth += 1;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if depth > limits.depth {
        let limit = limits.depth as u64;
        return Err(Fault::Whole(UnpackError::TooMuch {
            what: "directories within each other",
            limit,
        }));
    }
    Ok(path)
}

/// Parent and last component; `None` for the destination itself.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None => Some((b"", path)),
    }
}

fn or_dot(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

fn checked_target(target: &[u8]) -> Result<&[u8], Fault> {
    if target.is_empty() {
        return Err(Fault::Refused("it is a link without a target"));
    }
    if target.len() >= PATH_MAX {
        return Err(Fault::Refused("its target is too long"));
    }
    if target.contains(&0) {
        return Err(Fault::Refused("there is a NUL in its target"));
    }
    Ok(target)
}

/// Opens below `root`, as [`INSIDE`] says; on the host through no link at all.
fn openat2(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    terms: Terms,
) -> Result<OwnedFd, Errno> {
    let resolve = match terms {
        Terms::Sandbox => INSIDE,
        Terms::Snapshot | Terms::Host { .. } => INSIDE.union(ResolveFlags::NO_SYMLINKS),
    };
    loop {
        match fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // A rename or a mount somewhere on the host while the kernel was walking.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}

fn kind_of(parent: BorrowedFd<'_>, name: &[u8]) -> Result<FileType, Fault> {
    let stat =
        fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).trying("look at what is there")?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// The mode; setuid and setgid mean an owner, and go when that one could not be set.
fn mode_of(member: &Member, squashed: bool, terms: Terms) -> Mode {
    let bits = match terms {
        Terms::Host { umask } => member.mode & PERMISSIONS & !umask,
        Terms::Sandbox | Terms::Snapshot if squashed => member.mode & !SETUID_SETGID,
        Terms::Sandbox | Terms::Snapshot => member.mode,
    };
    Mode::from_raw_mode(bits)
}

fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanoseconds.into(),
        },
    }
}

fn within(count: u64, limit: u64, what: &'static str) -> Result<(), Fault> {
    if count > limit {
        Err(Fault::Whole(UnpackError::TooMuch { what, limit }))
    } else {
        Ok(())
    }
}

fn failed(action: &'static str, e: &io::Error) -> Fault {
    Fault::Failed(action, Errno::from_io_error(e).unwrap_or(Errno::IO))
}
