//! Loop devices, loop(4): a file as a block device.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use linux_raw_sys::loop_device::{
    LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LOOP_CONFIGURE, LOOP_CTL_GET_FREE, LOOP_GET_STATUS64,
    loop_config, loop_info64,
};

/// What gives devices that are free.
pub const CONTROL: &str = "/dev/loop-control";

/// How often another process may be quicker with a device that was free.
const TRIES: u32 = 64;

/// A device that a file is attached to. It is detached with the last that has it open, such as a mount.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _file: File,
}

impl LoopDevice {
    /// Attaches `image`, open for reading and writing, to a device that is free. Its blocks are read and
    /// written around the page cache where its filesystem does that: they would be in it twice.
    ///
    /// # Errors
    /// Those of opening the devices and of the requests on them.
    pub fn attach(image: BorrowedFd<'_>) -> io::Result<Self> {
        let control = File::options().read(true).write(true).open(CONTROL)?;
        // SAFETY: all-zero bytes are a valid value of this plain struct of the kernel's.
        let mut config: loop_config = unsafe { std::mem::zeroed() };
        config.fd = image.as_raw_fd().cast_unsigned();
        config.block_size = 4096;
        config.info.lo_flags = LO_FLAGS_AUTOCLEAR as u32 | LO_FLAGS_DIRECT_IO as u32;
        for _ in 0..TRIES {
            // SAFETY: the request takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), request(LOOP_CTL_GET_FREE)) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let file = File::options().read(true).write(true).open(&path)?;
            // SAFETY: the request reads a `loop_config`, which lives as long as the call.
            let result = unsafe {
                libc::ioctl(file.as_raw_fd(), request(LOOP_CONFIGURE), &raw const config)
            };
            if result == 0 {
                return Ok(Self { path, _file: file });
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(error);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// The device, for mount(2).
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// Whether a file is attached to some device.
///
/// # Errors
/// Those of reading `/sys/block` and of fstat(2).
pub fn is_attached(image: BorrowedFd<'_>) -> io::Result<bool> {
    let status = rustix::fs::fstat(image)?;
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        // There while something is attached.
        if !entry.path().join("loop/backing_file").exists() {
            continue;
        }
        let device = match File::open(PathBuf::from("/dev").join(entry.file_name())) {
            // It was detached meanwhile, or is gone.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO)) => {
                continue;
            }
            opened => opened?,
        };
        // SAFETY: all-zero bytes are a valid value of this plain struct of the kernel's.
        let mut info: loop_info64 = unsafe { std::mem::zeroed() };
        // SAFETY: the request fills a `loop_info64`, which lives as long as the call.
        let result = unsafe {
            libc::ioctl(
                device.as_fd().as_raw_fd(),
                request(LOOP_GET_STATUS64),
                &raw mut info,
            )
        };
        if result == 0 && info.lo_inode == status.st_ino && info.lo_device == encode(status.st_dev)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// As the kernel tells device numbers there, `huge_encode_dev`.
fn encode(device: u64) -> u64 {
    let (major, minor) = (
        u64::from(rustix::fs::major(device)),
        u64::from(rustix::fs::minor(device)),
    );
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The type that ioctl(2) wants for a request differs between C libraries.
fn request(number: u32) -> libc::Ioctl {
    number as libc::Ioctl
}
