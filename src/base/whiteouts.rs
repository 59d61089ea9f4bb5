//! A layer that hides paths of the host's directories: a whiteout for each, and the directories on the
//! way to them. Where one directory is mounted in another, nothing of the other one is under it: that
//! would be seen as soon as the way to it is renamed.
//!
//! Written by the provider, as root, and not by removing the paths inside: the kernel removes, renames
//! and copies up nothing whose owner is no id of the sandbox, and such files lie anywhere.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lgetxattr, llistxattr,
    lsetxattr, makedev, mknodat, utimensat,
};

/// Bytes of an extended attribute or of the list of them, at most: the kernel's own limit.
const LARGEST_ATTRIBUTE: usize = 64 * 1024;

/// Writes the parts of the layer below `tree`, which is there: part n hides what of `hidden` is below
/// the nth of `directories`; blocks.
///
/// # Errors
/// Those of the system calls for files. What of `hidden` is gone meanwhile is passed over.
pub(super) fn write(tree: &Path, directories: &[PathBuf], hidden: &[PathBuf]) -> io::Result<()> {
    let mut made = Vec::new();
    for (number, directory) in directories.iter().enumerate() {
        make_like(directory, &tree.join(number.to_string()), &mut made)?;
    }
    for path in nested(directories) {
        let around = directories.iter().filter(|top| *top != path);
        if let Some((top, below)) = innermost(around, path) {
            let part = part_of(tree, directories, top);
            make_way(top, below, &part, &mut made)?;
            let copy = part.join(below);
            make_like(path, &copy, &mut made)?;
            lsetxattr(&copy, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
        }
    }
    for path in hidden {
        let Some((top, below)) = innermost(directories.iter(), path) else {
            continue;
        };
        match hide(top, below, &part_of(tree, directories, top), &mut made) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    // Last, since every entry that is made in a directory changes its time.
    made.iter()
        .try_for_each(|(path, status)| set_times(path, status))
}

/// Those of `directories` that are below another one, but for the root, which has nothing of the host's.
pub(super) fn nested(directories: &[PathBuf]) -> Vec<&PathBuf> {
    let shown = || directories.iter().filter(|top| *top != Path::new("/"));
    let is_nested = |path: &&PathBuf| shown().any(|top| top != *path && path.starts_with(top));
    shown().filter(is_nested).collect()
}

/// The directory that `path` is in, and where: of several the one that is mounted over the others.
fn innermost<'d, 'p>(
    directories: impl Iterator<Item = &'d PathBuf>,
    path: &'p Path,
) -> Option<(&'d Path, &'p Path)> {
    directories
        .filter_map(|top| Some((top.as_path(), path.strip_prefix(top).ok()?)))
        .max_by_key(|(top, _)| top.components().count())
}

fn part_of(tree: &Path, directories: &[PathBuf], top: &Path) -> PathBuf {
    let number = directories.iter().position(|directory| directory == top);
    tree.join(number.unwrap_or_default().to_string())
}

fn make_way(
    top: &Path,
    below: &Path,
    part: &Path,
    made: &mut Vec<(PathBuf, Metadata)>,
) -> io::Result<()> {
    let parent = below.parent().unwrap_or(Path::new(""));
    let (mut original, mut copy) = (top.to_owned(), part.to_owned());
    for name in parent {
        original.push(name);
        copy.push(name);
        make_like(&original, &copy, made)?;
    }
    Ok(())
}

fn hide(
    top: &Path,
    below: &Path,
    part: &Path,
    made: &mut Vec<(PathBuf, Metadata)>,
) -> io::Result<()> {
    make_way(top, below, part, made)?;
    // The device number of a whiteout, which is no device: see overlayfs in the kernel's documentation.
    let whiteout = makedev(0, 0);
    let kind = FileType::CharacterDevice;
    Ok(mknodat(
        CWD,
        part.join(below),
        kind,
        Mode::empty(),
        whiteout,
    )?)
}

/// Makes `copy` a directory like `original`, unless it is there already: merged directories look like
/// the topmost one.
fn make_like(original: &Path, copy: &Path, made: &mut Vec<(PathBuf, Metadata)>) -> io::Result<()> {
    let status = fs::symlink_metadata(original)?;
    match fs::create_dir(copy) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        created => created?,
    }
    lchown(copy, Some(status.uid()), Some(status.gid()))?;
    copy_access_lists(original, copy)?;
    // After chown(2), which clears setgid.
    fs::set_permissions(copy, status.permissions())?;
    made.push((copy.to_owned(), status));
    Ok(())
}

/// Access control lists, acl(5): they decide who may enter.
fn copy_access_lists(original: &Path, copy: &Path) -> io::Result<()> {
    let mut names = vec![0; LARGEST_ATTRIBUTE];
    let length = match llistxattr(original, &mut names) {
        // A filesystem without attributes.
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let lists = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"system.posix_acl_"));
    for name in lists {
        let mut value = vec![0; LARGEST_ATTRIBUTE];
        let length = lgetxattr(original, name, &mut value)?;
        lsetxattr(copy, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn set_times(path: &Path, status: &Metadata) -> io::Result<()> {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time(status.atime(), status.atime_nsec()),
        last_modification: time(status.mtime(), status.mtime_nsec()),
    };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
