//! A layer that hides paths of the host's directories: a whiteout for each, and the directories on the
//! way to them.
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
    for path in hidden {
        // The innermost one: it is mounted over the others.
        let part = directories
            .iter()
            .enumerate()
            .filter_map(|(number, top)| Some((number, top, path.strip_prefix(top).ok()?)))
            .max_by_key(|(_, top, _)| top.components().count());
        let Some((number, top, below)) = part else {
            continue;
        };
        match hide(top, below, &tree.join(number.to_string()), &mut made) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    // Last, since every entry that is made in a directory changes its time.
    made.iter()
        .try_for_each(|(path, status)| set_times(path, status))
}

fn hide(
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
