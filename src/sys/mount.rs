//! `mount_setattr(2)`, which rustix lacks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What to set on a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The mount alone.
    This,
    /// The mount and those below it.
    Recursive,
}

/// Restrictions that a mount can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restrict {
    /// `MOUNT_ATTR_RDONLY`.
    ReadOnly,
    /// `MOUNT_ATTR_NOSUID`.
    NoSuid,
    /// `MOUNT_ATTR_NODEV`.
    NoDev,
}

/// Mirrors `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Restricts the mount `mount` and, if a user namespace is given, shows its files under that
/// namespace's ids (an idmapped mount, kernel 5.12; only for a mount that is not attached yet).
///
/// # Errors
/// Those of mount_setattr(2); `EINVAL` where the filesystem has no idmapped mounts.
pub fn restrict(
    mount: BorrowedFd<'_>,
    restrictions: &[Restrict],
    scope: Scope,
    user_namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attributes = MountAttr::default();
    for restriction in restrictions {
        attributes.attr_set |= match restriction {
            Restrict::ReadOnly => 0x1,
            Restrict::NoSuid => 0x2,
            Restrict::NoDev => 0x4,
        };
    }
    if let Some(namespace) = user_namespace {
        attributes.attr_set |= MOUNT_ATTR_IDMAP;
        attributes.userns_fd = u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX);
    }
    let mut flags = libc::AT_EMPTY_PATH;
    if scope == Scope::Recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty C string, and the attributes are a live struct whose size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
