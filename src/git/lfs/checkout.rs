//! Large files in a checkout: their content in the work tree, and beside the objects of git for what comes later.
//!
//! The checkout is one that no agent has touched. Its files are links to the mirror's objects where they can be;
//! only bytes leave it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use tar::{Builder, EntryType, Header};

use super::pointer::{Object, Pointer};
use super::store::Store;

/// Puts the content of these files into the work tree and `.git/lfs` of the checkout at `root`.
pub(super) fn fill(root: &Path, store: &Store, pointers: &[Pointer]) -> io::Result<()> {
    let lfs = root.join(".git/lfs");
    std::fs::create_dir_all(lfs.join("tmp"))?;
    let top = File::open(root)?;
    for pointer in pointers {
        let object = store.object(&pointer.object.oid);
        let kept = lfs.join("objects").join(pointer.object.oid.place());
        if let Some(parent) = kept.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if kept.symlink_metadata().is_err() {
            link(&object, &kept)?;
        }
        let odd = || io::Error::other(format!("{:?} is no file of the checkout", pointer.path));
        let (parent, name) = (pointer.path.parent(), pointer.path.file_name());
        let (parent, name) = parent.zip(name).ok_or_else(odd)?;
        let parent = match parent.as_os_str().is_empty() {
            true => top.as_fd().try_clone_to_owned()?,
            false => below(&top, parent)?,
        };
        let found = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(odd());
        }
        rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
        let linked = match pointer.executable {
            // The permissions would be the object's as well.
            true => Err(rustix::io::Errno::XDEV),
            false => rustix::fs::linkat(rustix::fs::CWD, &object, &parent, name, AtFlags::empty()),
        };
        if linked.is_err() {
            let mode = if pointer.executable { 0o755 } else { 0o644 };
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let copy = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(mode))?;
            io::copy(&mut File::open(&object)?, &mut File::from(copy))?;
        }
    }
    Ok(())
}

/// A directory of the checkout, with no link on the way.
fn below(top: &File, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(
        top,
        path,
        flags,
        Mode::empty(),
        resolve,
    )?)
}

fn link(object: &Path, to: &Path) -> io::Result<()> {
    match std::fs::hard_link(object, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            std::fs::copy(object, to).map(drop)
        }
        linked => linked,
    }
}

/// What `git update-index -z --index-info` reads, so that git looks at the files of these pointers, of which it
/// saw others, before it says that they are changed.
pub(super) fn index_info(pointers: &[Pointer]) -> Vec<u8> {
    let mut lines = Vec::new();
    for pointer in pointers {
        let mode = if pointer.executable {
            "100755"
        } else {
            "100644"
        };
        lines.extend(format!("{mode} {} 0\t", pointer.blob).as_bytes());
        lines.extend(pointer.path.as_os_str().as_bytes());
        lines.push(0);
    }
    lines
}

/// Writes objects as a tar, by their places below a directory of objects.
pub(super) fn write_tar(store: &Store, objects: &[Object], sink: File) -> io::Result<()> {
    let mut tar = Builder::new(io::BufWriter::with_capacity(256 * 1024, sink));
    for object in objects {
        let file = File::open(store.object(&object.oid))?;
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(object.size);
        let content = io::Read::take(file, object.size);
        tar.append_data(&mut header, object.oid.place(), content)?;
    }
    io::Write::flush(&mut tar.into_inner()?)
}
