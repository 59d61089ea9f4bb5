//! Kernel keyrings, keyctl(2).

use std::io;

/// `KEYCTL_JOIN_SESSION_KEYRING` of keyctl(2).
const JOIN_SESSION_KEYRING: libc::c_long = 1;

/// Gives the calling process a new, empty session keyring, so that it holds no key of its parents.
///
/// # Errors
/// Those of keyctl(2); `ENOSYS` on a kernel without keyrings, where there is nothing to leave.
pub fn join_new_session() -> io::Result<()> {
    // SAFETY: this operation takes one pointer, and null asks for an anonymous keyring.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
