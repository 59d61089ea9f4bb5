//! Counts what a directory takes up on disk: any depth, any names, as many links as there may be, in little
//! memory.
//!
//! One directory is open at a time, and each above it is kept as a few numbers. It is found again through
//! `..`, and is taken for what it was only if it is that. No link is followed.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Bits of a sum that are less than a byte.
const FRACTION: u32 = 32;

/// Bytes on disk of all that is in a directory, as far as it may be looked at.
///
/// Each name of a file counts an equal part of it: all of them together count it once, and none needs to be
/// remembered. A file that has names elsewhere counts by those that are here.
pub(super) fn bytes_of(directory: &Path) -> u64 {
    let Ok(status) = statat(CWD, directory, AtFlags::SYMLINK_NOFOLLOW) else {
        return 0;
    };
    let mut sum = Sum::default();
    sum.add(&status);
    if is_directory(&status)
        && let Ok(top) = openat(CWD, directory, DIRECTORY, Mode::empty())
        && let Err(error) = add_all(top, &mut sum)
    {
        tracing::debug!(directory = %directory.display(), %error, "not all of it was counted");
    }
    sum.bytes()
}

/// A directory above the one that is open.
struct Above {
    /// Device and inode.
    identity: (u64, u64),
    /// Where in its entries the next is read.
    position: i64,
}

/// Adds all that is in a directory. An error is one of finding the way back up.
fn add_all(top: OwnedFd, sum: &mut Sum) -> io::Result<()> {
    let mut above: Vec<Above> = Vec::new();
    let mut entries = Dir::new(top)?;
    loop {
        let Some(entry) = entries.read() else {
            let Some(parent) = above.pop() else {
                return Ok(());
            };
            let directory = openat(entries.fd()?, c"..", DIRECTORY, Mode::empty())?;
            if identity(&fstat(&directory)?) != parent.identity {
                return Err(io::Error::from_raw_os_error(libc::ESTALE));
            }
            entries = Dir::new(directory)?;
            entries.seek(parent.position)?;
            continue;
        };
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(status) = statat(entries.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        sum.add(&status);
        if !is_directory(&status) {
            continue;
        }
        let Ok(below) = openat(entries.fd()?, name, DIRECTORY, Mode::empty()) else {
            continue;
        };
        let own = identity(&fstat(entries.fd()?)?);
        // In one that cannot be searched there is nothing to count, and no way back.
        let back = statat(&below, c"..", AtFlags::SYMLINK_NOFOLLOW);
        if back.is_ok_and(|back| identity(&back) == own) {
            above.push(Above {
                identity: own,
                position: entry.offset(),
            });
            entries = Dir::new(below)?;
        }
    }
}

fn is_directory(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::Directory
}

fn identity(status: &Stat) -> (u64, u64) {
    (status.st_dev, status.st_ino)
}

/// Bytes, of which files of several names add parts.
#[derive(Default)]
struct Sum(u128);

impl Sum {
    fn add(&mut self, status: &Stat) {
        let bytes = u128::try_from(status.st_blocks).unwrap_or(0) * 512;
        let names = if is_directory(status) {
            1
        } else {
            u128::from(status.st_nlink).max(1)
        };
        self.0 += (bytes << FRACTION) / names;
    }

    /// To the nearest: what was lost of the parts is less than half a byte.
    fn bytes(&self) -> u64 {
        let half = 1 << (FRACTION - 1);
        u64::try_from((self.0 + half) >> FRACTION).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use rustix::fs::mkdirat;

    use super::*;

    fn blocks_of(path: &Path) -> u64 {
        fs::symlink_metadata(path).unwrap().blocks() * 512
    }

    #[test]
    fn a_file_of_several_names_counts_once() {
        let scratch = tempfile::tempdir().unwrap();
        let [here, elsewhere] = ["here", "elsewhere"].map(|name| scratch.path().join(name));
        fs::create_dir_all(here.join("below")).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        let file = here.join("file");
        fs::write(&file, vec![1; 100_000]).unwrap();
        let directories = || blocks_of(&here) + blocks_of(&here.join("below"));
        assert!(blocks_of(&file) >= 100_000);
        assert_eq!(bytes_of(&here), directories() + blocks_of(&file));
        // No power of two, in two directories.
        for number in 1..7000 {
            let place = ["", "below"][number % 2];
            fs::hard_link(&file, here.join(place).join(format!("{number}"))).unwrap();
        }
        assert_eq!(bytes_of(&here), directories() + blocks_of(&file));
        fs::hard_link(&file, elsewhere.join("file")).unwrap();
        let part = blocks_of(&file) / 7001;
        let all = directories() + blocks_of(&file);
        assert!(bytes_of(&here).abs_diff(all - part) <= 1);
        assert_eq!(bytes_of(&scratch.path().join("none")), 0);
        let elsewhere_part = bytes_of(&elsewhere) - blocks_of(&elsewhere);
        assert!(elsewhere_part.abs_diff(part) <= 1);
    }

    #[test]
    fn no_depth_and_no_link_leads_astray() {
        let scratch = tempfile::tempdir().unwrap();
        let [tree, outside] = ["tree", "outside"].map(|name| scratch.path().join(name));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("large"), vec![1; 10_000_000]).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        symlink(outside.join("large"), tree.join("file")).unwrap();
        let closed = tree.join("closed");
        fs::create_dir(&closed).unwrap();
        fs::write(closed.join("file"), "").unwrap();
        // May be read and not searched, but by root.
        fs::set_permissions(&closed, PermissionsExt::from_mode(0o400)).unwrap();
        // Deeper than any path can name, with something behind each step down.
        let down = "d".repeat(200);
        let mut deep = openat(CWD, &tree, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..300 {
            for name in ["a", &down, "z"] {
                mkdirat(&deep, name, Mode::RWXU).unwrap();
            }
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(&deep, "zz", flags, Mode::RUSR).unwrap();
            rustix::io::write(&file, &[1; 5000]).unwrap();
            deep = openat(&deep, &down, DIRECTORY, Mode::empty()).unwrap();
        }
        let mut expected = ["", "link", "file", "closed", "closed/file"]
            .iter()
            .filter_map(|name| fs::symlink_metadata(tree.join(name)).ok())
            .map(|status| status.blocks() * 512)
            .sum::<u64>();
        let mut deep = openat(CWD, &tree, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..300 {
            for name in ["a", &down, "z", "zz"] {
                let status = statat(&deep, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
                expected += u64::try_from(status.st_blocks).unwrap() * 512;
            }
            deep = openat(&deep, &down, DIRECTORY, Mode::empty()).unwrap();
        }
        assert!(expected >= 300 * 5000);
        assert_eq!(bytes_of(&tree), expected);
        fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    }
}
