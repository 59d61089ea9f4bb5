//! Removes what an entry of an archive takes the place of, by entries of open directories and following no link.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

/// Removes `name` from `parent`, a directory with all that is in it; nothing where there is nothing.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    // An empty one needs not to be looked into.
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        removed => return removed,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    // What is removed while a directory is read may hide what is behind it: until there is nothing more.
    loop {
        let mut found = false;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                found = true;
                remove(std::os::fd::AsFd::as_fd(&directory), name.to_bytes())?;
            }
        }
        if !found {
            return unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_tree_goes_and_what_its_links_lead_to_stays() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| scratch.path().join(name);
        std::fs::create_dir_all(at("outside/kept")).expect("directories");
        std::fs::create_dir_all(at("tree/a/b/c")).expect("directories");
        for number in 0..2000 {
            std::fs::write(at(&format!("tree/a/{number}")), "x").expect("a file");
        }
        std::os::unix::fs::symlink(at("outside"), at("tree/link")).expect("a link");
        let root = std::fs::File::open(scratch.path()).expect("open");
        for name in ["tree", "tree", "nothing"] {
            remove(root.as_fd(), name.as_bytes()).expect(name);
        }
        assert!(!at("tree").exists() && at("outside/kept").exists());
    }
}
