//! Pseudo-terminals of the calling process's own `/dev/pts`, pty(7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::pty::Winsize;

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A new pseudo-terminal: master and slave.
///
/// The slave is got from the master by `TIOCGPTPEER` and not by a path, which something else could
/// have been mounted on.
///
/// # Errors
/// Those of opening `/dev/pts/ptmx` and of the requests on it.
pub fn open(size: Size) -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let peer_flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the request takes flags and gives a new descriptor.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, peer_flags) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    resize(rustix::fd::AsFd::as_fd(&master), size)?;
    Ok((master, slave))
}

/// Whether a descriptor is the master of a pseudo-terminal, pts(4).
#[must_use]
pub fn is_master(descriptor: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(descriptor).is_ok_and(|status| {
        rustix::fs::FileType::from_raw_mode(status.st_mode) == rustix::fs::FileType::CharacterDevice
            && status.st_rdev == rustix::fs::makedev(5, 2)
    })
}

/// Sets the size of the terminal behind `master`.
///
/// # Errors
/// Those of the `TIOCSWINSZ` request.
pub fn resize(master: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request reads a live `winsize`.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes `slave` the controlling terminal of the calling process, a session leader without one.
///
/// # Errors
/// Those of the `TIOCSCTTY` request.
pub fn take_control(slave: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes a plain number: do not steal.
    let result = unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_master_is_told_from_everything_else() {
        // Of the host's own, whose /dev/pts/ptmx is not for everybody.
        let pair = nix::pty::openpty(None, None).expect("there is /dev/ptmx");
        let (master, slave) = (pair.master, pair.slave);
        let null = std::fs::File::open("/dev/null").expect("it is there");
        let (reader, _writer) = std::io::pipe().expect("a pipe");
        assert!(is_master(master.as_fd()));
        for other in [slave.as_fd(), null.as_fd(), reader.as_fd()] {
            assert!(!is_master(other), "{other:?}");
        }
    }
}
