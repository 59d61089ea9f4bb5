//! Removes what a workspace left: any depth, any names, any modes, and never a step outside.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fchmod, openat, openat2, renameat,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::protocol::Removed;

/// Directories that are held open on the way down; deeper ones are moved up first.
const MAX_DEPTH: usize = 128;

/// Removes `root` and everything in it; no error if it is not there.
///
/// Each directory is opened below the one before it without following a link, and every removal
/// names one entry of an open directory: what a hostile tree is swapped for changes nothing outside.
/// A directory that is too deep is renamed into `root` and removed from there, so that neither the
/// depth of a tree nor the length of a path counts.
pub(super) fn remove(root: &Path) -> io::Result<Removed> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match openat(CWD, root, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(Removed::default()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            gone(unlinkat(CWD, root, AtFlags::empty()))?;
            return Ok(Removed::default());
        }
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0;
    let mut removed = Removed::default();
    // What is moved up may come behind the point to which `top` had been read.
    while has_entries(&top)? {
        empty(&top, &mut moved, &mut removed)?;
    }
    gone(unlinkat(CWD, root, AtFlags::REMOVEDIR))?;
    Ok(removed)
}

/// Another process may be removing the same tree: what is gone already is no error.
fn gone(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// One directory on the way down and what is still to be looked at in it.
struct Level {
    directory: OwnedFd,
    entries: Dir,
    name: CString,
}

fn empty(top: &OwnedFd, moved: &mut u64, removed: &mut Removed) -> io::Result<()> {
    let mut levels = vec![level(top, c".")?];
    while let Some(current) = levels.last_mut() {
        match current.entries.read() {
            Some(entry) => {
                let name = entry?.file_name().to_owned();
                if name.as_c_str() == c"." || name.as_c_str() == c".." {
                    continue;
                }
                let bytes = bytes_of_last_name(&current.directory, &name);
                match unlinkat(&current.directory, &name, AtFlags::empty()) {
                    Ok(()) => {
                        removed.files += 1;
                        removed.bytes += bytes;
                        continue;
                    }
                    Err(Errno::NOENT) => continue,
                    Err(Errno::ISDIR | Errno::PERM) => {}
                    Err(error) => return Err(error.into()),
                }
                // Most directories are empty, or soon will be.
                if unlinkat(&current.directory, &name, AtFlags::REMOVEDIR).is_ok() {
                    removed.files += 1;
                    removed.bytes += bytes;
                    continue;
                }
                if levels.len() < MAX_DEPTH {
                    let current = &levels[levels.len() - 1];
                    let next = level(&current.directory, &name)?;
                    levels.push(next);
                } else {
                    *moved += 1;
                    let current = &levels[levels.len() - 1];
                    renameat(
                        &current.directory,
                        &name,
                        top,
                        format!(".derrick-moved-{moved}"),
                    )?;
                }
            }
            None => {
                let done = levels.pop().map(|level| level.name);
                if let (Some(name), Some(parent)) = (done, levels.last()) {
                    removed.files += 1;
                    gone(unlinkat(&parent.directory, &name, AtFlags::REMOVEDIR))?;
                }
            }
        }
    }
    Ok(())
}

/// What is taken up on disk by what has this one name, or no other than this any more.
fn bytes_of_last_name(directory: &OwnedFd, name: &std::ffi::CStr) -> u64 {
    let status = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    status.map_or(0, |status| {
        let is_last =
            status.st_nlink == 1 || FileType::from_raw_mode(status.st_mode) == FileType::Directory;
        if is_last {
            u64::try_from(status.st_blocks).unwrap_or(0) * 512
        } else {
            0
        }
    })
}

fn level(parent: &OwnedFd, name: &std::ffi::CStr) -> io::Result<Level> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let open = || openat2(parent, name, flags, Mode::empty(), below);
    let directory = match open() {
        // A mode without read or search permission, where removal has no privilege over modes.
        Err(Errno::ACCESS) => {
            let place = openat2(parent, name, flags | OFlags::PATH, Mode::empty(), below)?;
            let path = format!("/proc/self/fd/{}", place.as_raw_fd());
            rustix::fs::chmod(path, Mode::RWXU)?;
            open()?
        }
        other => other?,
    };
    // Entries can be removed only from a directory that its owner may write to.
    let _ = fchmod(&directory, Mode::RWXU);
    let entries = Dir::read_from(&directory)?;
    Ok(Level {
        directory,
        entries,
        name: name.to_owned(),
    })
}

fn has_entries(directory: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_hostile_trees_and_nothing_beside_them() {
        let outside = tempfile::tempdir().expect("tempdir");
        let canary = outside.path().join("canary");
        std::fs::write(&canary, "alive").expect("canary");
        let tree = outside.path().join("tree");
        std::fs::create_dir(&tree).expect("tree");
        std::os::unix::fs::symlink(outside.path(), tree.join("link")).expect("link");
        std::fs::write(tree.join("new\nline"), "").expect("file");
        let closed = tree.join("closed");
        std::fs::create_dir(&closed).expect("directory");
        std::fs::write(closed.join("file"), "").expect("file");
        rustix::fs::chmod(&closed, Mode::empty()).expect("chmod");
        // Deeper than any path can name.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut deep = openat(CWD, &tree, flags, Mode::empty()).expect("open");
        for _ in 0..5000 {
            rustix::fs::mkdirat(&deep, "d", Mode::RWXU).expect("mkdir");
            deep = openat(&deep, "d", flags, Mode::empty()).expect("open");
        }
        let removed = remove(&tree).expect("removed");
        // The directories, three of them beside the deep ones, the files and the link.
        assert_eq!(removed.files, 5000 + 1 + 2 + 1);
        assert!(!tree.exists());
        assert_eq!(std::fs::read_to_string(&canary).expect("canary"), "alive");
        remove(&tree).expect("what is gone already is no error");
    }
}
