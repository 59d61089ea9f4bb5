//! Capabilities, capabilities(7): what root inside keeps, over its own user namespace alone.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

use super::{At, Failure, Step};

/// What installing packages, changing owners and serving low ports needs; Docker's default set
/// without `CAP_NET_RAW`. Nothing here reaches mounts, networks, modules or other processes' memory.
const KEPT: &[Capability] = &[
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

/// Sees to it that the calling process gets back no other capability once it has dropped it.
///
/// # Errors
/// The failed step.
pub fn bound() -> Result<(), Failure> {
    // The kernel can know capabilities that the caps crate does not: walk them by number.
    for number in 0..=last_capability() {
        if !KEPT.iter().any(|capability| capability.index() == number) {
            drop_from_bounding(number).at(
                Step::Capabilities,
                format_args!("dropping capability {number}"),
            )?;
        }
    }
    Ok(())
}

/// Drops every other capability of the calling process, for good, as it was bound before; the names of what is
/// kept.
///
/// # Errors
/// The failed step.
pub fn drop_all_but_kept() -> Result<Vec<String>, Failure> {
    let kept: CapsHashSet = KEPT.iter().copied().collect();
    let set = |which, value: &CapsHashSet| {
        caps::set(None, which, value).map_err(io::Error::other).at(
            Step::Capabilities,
            format_args!("setting the {which:?} set"),
        )
    };
    caps::clear(None, CapSet::Ambient)
        .map_err(io::Error::other)
        .at(Step::Capabilities, "clearing the ambient set")?;
    set(CapSet::Inheritable, &CapsHashSet::new())?;
    set(CapSet::Effective, &kept)?;
    set(CapSet::Permitted, &kept)?;
    Ok(KEPT.iter().map(ToString::to_string).collect())
}

/// Drops all capabilities of the calling process, and sees to it that neither it nor what it starts gets one back,
/// as root or by a file.
///
/// # Errors
/// The failed step.
pub fn drop_all() -> Result<(), Failure> {
    drop_all_but(&[])
}

/// As [`drop_all`], but for those of `kept` that the process has. What it starts has none.
///
/// # Errors
/// The failed step.
pub(super) fn drop_all_but(kept: &[Capability]) -> Result<(), Failure> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        for number in 0..=last_capability() {
            drop_from_bounding(number).at(
                Step::Capabilities,
                format_args!("dropping capability {number}"),
            )?;
        }
    }
    let held = caps::read(None, CapSet::Permitted).map_err(io::Error::other);
    let held = held.at(Step::Capabilities, "reading the permitted set")?;
    let kept = kept.iter().copied().filter(|one| held.contains(one));
    let kept: CapsHashSet = kept.collect();
    for which in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, which).map_err(io::Error::other).at(
            Step::Capabilities,
            format_args!("clearing the {which:?} set"),
        )?;
    }
    for which in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, which, &kept).map_err(io::Error::other).at(
            Step::Capabilities,
            format_args!("setting the {which:?} set"),
        )?;
    }
    Ok(())
}

fn last_capability() -> u8 {
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(63)
}

fn drop_from_bounding(number: u8) -> io::Result<()> {
    let set = rustix::thread::CapabilitySet::from_bits_retain(1 << number);
    match rustix::thread::remove_capability_from_bounding_set(set) {
        // A number that this kernel does not know.
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
