//! The version of landlock's interface, which the landlock crate keeps to itself.

/// `LANDLOCK_CREATE_RULESET_VERSION` of landlock_create_ruleset(2).
const VERSION: libc::c_ulong = 1;

/// The ABI version that the running kernel has; 0 if it has none or it is not enabled.
#[must_use]
pub fn abi() -> i32 {
    // SAFETY: with this flag the call takes no attributes: a null pointer and size 0.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    i32::try_from(result).unwrap_or(0).max(0)
}
