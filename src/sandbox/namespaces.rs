//! The namespaces of a sandbox, namespaces(7): which there are, and how its first process enters them.
//!
//! That process is the spawner's own child and PID 1 at once: one clone(2) makes its user and its pid
//! namespace. All others it makes itself, which takes as long as mounting the overlays and is done meanwhile.

use std::io;

use rustix::thread::UnshareFlags;

use super::identity::{CREATING_USER, acting_as_range};
use super::{At, Failure, IdMap, Network, Step};
use crate::sys::process::{Child, OneThread, fork_into, unshare};

/// The kinds that a sandbox has to itself besides its user namespace, and the kernel's name for each.
const KINDS: &[(UnshareFlags, &str)] = &[
    (UnshareFlags::NEWNS, "mnt"),
    (UnshareFlags::NEWPID, "pid"),
    (UnshareFlags::NEWIPC, "ipc"),
    (UnshareFlags::NEWUTS, "uts"),
    (UnshareFlags::NEWCGROUP, "cgroup"),
    (UnshareFlags::NEWNET, "net"),
];

fn kinds(network: Network) -> impl Iterator<Item = (UnshareFlags, &'static str)> {
    let shared = match network {
        Network::None => UnshareFlags::empty(),
        Network::Host => UnshareFlags::NEWNET,
    };
    let own = move |(flag, _): &(UnshareFlags, &str)| !shared.contains(*flag);
    KINDS.iter().copied().filter(own)
}

/// The kernel's names for those that a sandbox with this network has to itself.
pub fn names(network: Network) -> impl Iterator<Item = &'static str> {
    std::iter::once("user").chain(kinds(network).map(|(_, name)| name))
}

/// Runs `body` in a child that is PID 1 of a new pid namespace, in a new user namespace without maps; both are
/// charged to the ids of `map`.
///
/// # Errors
/// The failed step.
pub fn fork_first(
    one: OneThread,
    map: IdMap,
    body: impl FnOnce() -> i32,
) -> Result<Child, Failure> {
    let both = UnshareFlags::NEWUSER | UnshareFlags::NEWPID;
    let forked = acting_as_range(map, || {
        fork_into(one, both, body).map_err(|error| {
            // Which of the two it was, only one of them alone tells.
            let alone = fork_into(one, UnshareFlags::NEWUSER, || 0).and_then(Child::wait);
            (error, alone.is_ok())
        })
    })?;
    match forked {
        Ok(child) => Ok(child),
        Err((error, true)) => {
            let attempt = creating("pid", &error);
            Err(error).at(Step::Namespaces, attempt)
        }
        Err((error, false)) => Err(error).at(Step::UserNamespace, CREATING_USER),
    }
}

/// Enters new ones of all other kinds.
///
/// # Errors
/// The failed step.
pub fn enter_others(one: OneThread, network: Network) -> Result<(), Failure> {
    let others = || kinds(network).filter(|(flag, _)| *flag != UnshareFlags::NEWPID);
    let all = others().fold(UnshareFlags::empty(), |all, (flag, _)| all | flag);
    let Err(error) = unshare(one, all) else {
        return Ok(());
    };
    // As above. Nothing is lost: this process ends.
    let culprit = others().find(|(flag, _)| unshare(one, *flag).is_err());
    let attempt = match culprit {
        Some((_, name)) => creating(name, &error),
        None => "creating the namespaces; see 'derrick check'".to_owned(),
    };
    Err(error).at(Step::Namespaces, attempt)
}

/// What was attempted when `error` came.
fn creating(name: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        // Of a limit on namespaces, namespaces(7).
        Some(libc::ENOSPC) => format!(
            "creating the {name} namespace, of which user.max_{name}_namespaces allows no more; see \
             'derrick check'"
        ),
        _ => format!("creating the {name} namespace; see 'derrick check'"),
    }
}
