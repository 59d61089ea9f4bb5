//! Resource limits that every process of a sandbox inherits, setrlimit(2).

use std::collections::BTreeMap;
use std::fs;
use std::io;

use nix::sys::resource::{Resource, getrlimit};

use super::{At, Failure, Step};
use crate::sys::process::lower_limit;

const MIB: u64 = 1 << 20;

/// Each limit, soft and hard alike; the host's own hard limit wins where it is lower.
const LIMITS: &[(Resource, u64)] = &[
    // Not 0, which a piped core_pattern ignores: 1 makes the kernel drop the dump (fs/coredump.c).
    (Resource::RLIMIT_CORE, 1),
    // Finite, so that loops over all possible descriptors end.
    (Resource::RLIMIT_NOFILE, 65_536),
    (Resource::RLIMIT_MEMLOCK, 64 * MIB),
    (Resource::RLIMIT_MSGQUEUE, MIB),
    (Resource::RLIMIT_SIGPENDING, 16_384),
    (Resource::RLIMIT_RTPRIO, 0),
    (Resource::RLIMIT_NICE, 0),
];

/// Lowers the limits of the calling process; what is in force then, by the names of prlimit(1).
///
/// # Errors
/// The failed step.
pub fn apply() -> Result<BTreeMap<String, u64>, Failure> {
    let lower = |(resource, limit): &(Resource, u64)| {
        lower_limit(*resource, *limit)?;
        let (_, hard) = getrlimit(*resource)?;
        io::Result::Ok((name_of(*resource), hard))
    };
    LIMITS
        .iter()
        .map(|limit| lower(limit).at(Step::Limits, format_args!("lowering {:?}", limit.0)))
        .collect()
}

fn name_of(resource: Resource) -> String {
    let name = format!("{resource:?}").to_lowercase();
    name.trim_start_matches("rlimit_").to_owned()
}

/// Makes the calling process and what it starts the kernel's first choice when memory is short.
///
/// While it is still the user who runs derrick: with other ids it may not write to this file.
///
/// # Errors
/// The failed step.
pub fn offer_to_oom_killer() -> Result<(), Failure> {
    fs::write("/proc/self/oom_score_adj", "500").at(Step::Limits, "raising oom_score_adj")
}
