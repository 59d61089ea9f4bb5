//! What a sandbox's uppers are kept on, and with it how much the sandbox can write.
//!
//! A plain directory bounds nothing. An image is an ext4 filesystem in a file, on a loop device: for
//! root, whose files it holds as any disk does. A tmpfs is there for everybody, in memory, and ends
//! with its sandbox. The kernel refuses what does not fit, with `ENOSPC`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::identity::Identity;
use super::overlay::{clone_tree, new_filesystem};
use super::{At, Capacity, Failure, Step, Storage, Writable};
use crate::sys::loop_device::{self, LoopDevice};

/// The name of the image in its directory.
pub const IMAGE: &str = "image";

/// Opens what a sandbox writes to, as a mount that is attached nowhere yet.
///
/// # Errors
/// The failed step.
pub fn open(writable: &Writable, identity: Identity) -> Result<OwnedFd, Failure> {
    match writable.storage {
        Storage::Directory => {
            clone_tree(&writable.directory).at(Step::Upper, "opening the writable directory")
        }
        Storage::Image(_) => mount_image(&writable.directory.join(IMAGE)),
        Storage::Memory(capacity) => mount_memory(capacity, identity),
    }
}

/// Mounts an image, which must not be mounted twice.
fn mount_image(path: &Path) -> Result<OwnedFd, Failure> {
    let step = Step::Upper;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let image = rustix::fs::open(path, flags, Mode::empty()).at(step, "opening the disk image")?;
    if loop_device::is_attached(image.as_fd()).at(step, "looking for the disk image's device")? {
        return Err(Errno::BUSY).at(step, "mounting the disk image, which is mounted already");
    }
    let device =
        LoopDevice::attach(image.as_fd()).at(step, "attaching the disk image to a loop device")?;
    let mounted = (|| {
        let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", device.path())?;
        fsconfig_set_string(&context, "errors", "remount-ro")?;
        // What is freed is given back to the disk below.
        fsconfig_set_flag(&context, "discard")?;
        fsconfig_set_flag(&context, "noinit_itable")?;
        fsconfig_create(&context)?;
        fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
        )
    })();
    mounted.at(step, "mounting the disk image")
}

fn mount_memory(capacity: Capacity, identity: Identity) -> Result<OwnedFd, Failure> {
    let step = Step::Upper;
    let inodes = capacity.inodes.or_else(|| capacity.bytes.map(inodes_of));
    let numbers = [("size", capacity.bytes), ("nr_inodes", inodes)];
    let numbers = numbers.map(|(name, number)| number.map(|number| (name, number.to_string())));
    let mut options = vec![("mode", "0755")];
    options.extend(
        numbers
            .iter()
            .flatten()
            .map(|(name, number)| (*name, number.as_str())),
    );
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount =
        new_filesystem("tmpfs", &options, attributes).at(step, "making a filesystem in memory")?;
    if identity != Identity::Ranges {
        // What an overlay of an ordinary user's notes; without it, some removals would fail later.
        rustix::fs::fsetxattr(&openable(&mount)?, "user.derrick", b"", XattrFlags::empty()).at(
            step,
            "keeping files in memory, which for an ordinary user needs Linux 6.6",
        )?;
    }
    Ok(mount)
}

/// The root directory of a mount, open for more than its path.
fn openable(mount: &OwnedFd) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(mount, ".", flags, Mode::empty())
        .at(Step::Upper, "opening a filesystem in memory")
}

/// How many files and directories go with a disk of so many bytes where nobody says it. Source trees and
/// packages have small files.
#[must_use]
pub fn inodes_of(bytes: u64) -> u64 {
    (bytes / 8192).max(1024)
}

/// The program that makes images, wherever the host has it.
#[must_use]
pub fn mkfs() -> Option<PathBuf> {
    let places = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"];
    let programs = places
        .iter()
        .map(|place| Path::new(place).join("mkfs.ext4"));
    programs.into_iter().find(|program| program.is_file())
}

/// Why an image cannot be used here, if it cannot; in the words of an answer to a person.
#[must_use]
pub fn image_obstacle(identity: Identity) -> Option<String> {
    if identity != Identity::Ranges {
        return Some(
            "a disk image is mounted by root alone; as an ordinary user keep the files in memory, with \"storage\": \
             \"memory\""
                .to_owned(),
        );
    }
    if mkfs().is_none() {
        return Some("mkfs.ext4 is missing; run: apt-get install e2fsprogs".to_owned());
    }
    match File::options()
        .read(true)
        .write(true)
        .open(loop_device::CONTROL)
    {
        Ok(_) => None,
        Err(error) => Some(format!(
            "{} cannot be opened ({error}); run: modprobe loop",
            loop_device::CONTROL
        )),
    }
}

/// Copies at most `left` bytes from one place to the same one in another file; how many, none at the end.
fn copy_piece(from: &File, to: &File, at: u64, left: usize) -> io::Result<usize> {
    let mut piece = vec![0; left.min(256 * 1024)];
    let length = from.read_at(&mut piece, at)?;
    to.write_all_at(&piece[..length], at)?;
    Ok(length)
}

/// Copies a file and its holes.
///
/// # Errors
/// Those of the calls on either file.
pub fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    use rustix::fs::{SeekFrom, copy_file_range, seek};
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut position = 0;
    while position < length {
        let start = match seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        let (mut read, mut written) = (start, start);
        while read < end {
            let left = usize::try_from(end - read).unwrap_or(usize::MAX);
            let copied = match copy_file_range(from, Some(&mut read), to, Some(&mut written), left)
            {
                // From another filesystem, such as one in memory.
                Err(Errno::XDEV) => {
                    let length = copy_piece(from, to, read, left)?;
                    read += length as u64;
                    written = read;
                    length
                }
                copied => copied?,
            };
            if copied == 0 {
                break;
            }
        }
        position = end;
    }
    Ok(())
}
