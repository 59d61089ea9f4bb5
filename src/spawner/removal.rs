//! Removes what a workspace left: any depth, any names, any modes, and never a step outside.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fchmod, openat, openat2, renameat,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::protocol::Removed;

/// Directories that are held open on the way down; deeper ones are moved up first.
const MAX_DEPTH: usize = 128;

/// What is too deep is called in `root`, with a number.
const MOVED: &str = ".derrick-moved-";

/// Removes `root` and everything in it; no error if it is not there.
///
/// Each directory is opened below the one before it without following a link, and every removal
/// names one entry of an open directory: what a hostile tree is swapped for changes nothing outside.
/// A directory that is too deep is renamed into `root` and removed from there, so that neither the
/// depth of a tree nor the length of a path counts.
///
/// What is told is what a workspace wrote, below `upper/<part>/`, and not the directories that derrick made
/// for that.
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
    loop {
        empty(&top, &mut moved, &mut removed)?;
        match unlinkat(CWD, root, AtFlags::REMOVEDIR) {
            // What is moved up may come behind the point to which `top` had been read.
            Err(Errno::NOTEMPTY) => {}
            other => return gone(other).map(|()| removed),
        }
    }
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
    entries: Dir,
    name: CString,
}

impl Level {
    fn directory(&self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.entries.fd()?)
    }

    /// Removes an entry of it.
    fn remove(&self, name: &CStr, flags: AtFlags) -> io::Result<rustix::io::Result<()>> {
        let directory = self.directory()?;
        Ok(match unlinkat(directory, name, flags) {
            // Entries can be removed only from a directory that its owner may write to, where removal has no
            // privilege over modes.
            Err(Errno::ACCESS) if fchmod(directory, Mode::RWXU).is_ok() => {
                unlinkat(directory, name, flags)
            }
            other => other,
        })
    }
}

fn empty(top: &OwnedFd, moved: &mut u64, removed: &mut Removed) -> io::Result<()> {
    let mut levels = vec![level(top.as_fd(), c".")?];
    while let Some(current) = levels.last_mut() {
        match current.entries.read() {
            Some(entry) => {
                let entry = entry?;
                let name = entry.file_name().to_owned();
                if name.as_c_str() == c"." || name.as_c_str() == c".." {
                    continue;
                }
                let written = is_written(&levels, &name);
                let current = &levels[levels.len() - 1];
                // Some filesystems do not say what an entry is.
                if entry.file_type() != FileType::Directory {
                    let bytes = bytes_of_last_name(current.directory()?, &name);
                    match current.remove(&name, AtFlags::empty())? {
                        Ok(()) => {
                            removed.files += u64::from(written);
                            removed.bytes += if written { bytes } else { 0 };
                            continue;
                        }
                        Err(Errno::NOENT) => continue,
                        Err(Errno::ISDIR | Errno::PERM) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                // Most directories are empty, or soon will be.
                match current.remove(&name, AtFlags::REMOVEDIR)? {
                    Ok(()) => {
                        removed.files += u64::from(written);
                        continue;
                    }
                    Err(Errno::NOENT) => continue,
                    Err(_) => {}
                }
                if levels.len() < MAX_DEPTH {
                    let next = level(current.directory()?, &name)?;
                    levels.push(next);
                } else {
                    *moved += 1;
                    let place = format!("{MOVED}{moved}");
                    renameat(current.directory()?, &name, top, place)?;
                }
            }
            None => {
                let done = levels.pop().map(|level| level.name);
                if let (Some(name), Some(parent)) = (done, levels.last()) {
                    removed.files += u64::from(is_written(&levels, &name));
                    gone(parent.remove(&name, AtFlags::REMOVEDIR)?)?;
                }
            }
        }
    }
    Ok(())
}

/// Whether `name`, in the last one of these directories, was written by a workspace.
fn is_written(levels: &[Level], name: &CStr) -> bool {
    let was_moved = |name: &CStr| name.to_bytes().starts_with(MOVED.as_bytes());
    match levels {
        [] => false,
        [_] => was_moved(name),
        [_, first, rest @ ..] => {
            was_moved(&first.name) || (first.name.as_c_str() == c"upper" && !rest.is_empty())
        }
    }
}

/// What is taken up on disk by what has this one name, or no other than this any more.
fn bytes_of_last_name(directory: BorrowedFd<'_>, name: &CStr) -> u64 {
    let status = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    status.map_or(0, |status| {
        if status.st_nlink == 1 {
            u64::try_from(status.st_blocks).unwrap_or(0) * 512
        } else {
            0
        }
    })
}

fn level(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<Level> {
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
    Ok(Level {
        entries: Dir::new(directory)?,
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn removes_hostile_trees_and_nothing_beside_them() {
        let outside = tempfile::tempdir().expect("tempdir");
        let canary = outside.path().join("canary");
        std::fs::write(&canary, "alive").expect("canary");
        let root = outside.path().join("generation-0");
        let tree = root.join("upper/0");
        std::fs::create_dir_all(&tree).expect("tree");
        std::fs::create_dir_all(root.join("work/0/work")).expect("work");
        std::fs::write(root.join("beginning.json"), "{}").expect("derrick's own");
        std::os::unix::fs::symlink(outside.path(), tree.join("link")).expect("link");
        std::fs::write(tree.join("new\nline"), "").expect("file");
        let closed = tree.join("closed");
        std::fs::create_dir(&closed).expect("directory");
        std::fs::write(closed.join("file"), "text").expect("file");
        // A link that leads far has a block of its own.
        let bytes = [closed.join("file"), tree.join("link")].map(|path| {
            let status = std::fs::symlink_metadata(path).expect("it is there");
            status.blocks() * 512
        });
        rustix::fs::chmod(&closed, Mode::empty()).expect("chmod");
        // Deeper than any path can name.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut deep = openat(CWD, &tree, flags, Mode::empty()).expect("open");
        for _ in 0..5000 {
            rustix::fs::mkdirat(&deep, "d", Mode::RWXU).expect("mkdir");
            deep = openat(&deep, "d", flags, Mode::empty()).expect("open");
        }
        let removed = remove(&root).expect("removed");
        // The directories, three of them beside the deep ones, the files and the link.
        assert_eq!(removed.files, 5000 + 1 + 2 + 1);
        // Directories are none.
        assert_eq!(removed.bytes, bytes.iter().sum::<u64>());
        assert!(!root.exists());
        assert_eq!(std::fs::read_to_string(&canary).expect("canary"), "alive");
        remove(&root).expect("what is gone already is no error");
    }
}
