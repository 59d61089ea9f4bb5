//! Resource limits that every process of a sandbox inherits, setrlimit(2).

use std::collections::BTreeMap;
use std::fs;
use std::io;

use nix::sys::resource::{Resource, getrlimit};

use super::cgroups::{Unenforceable, Wish};
use super::{At, Failure, Limits, Step};
use crate::sys::process::{Child, lower_limit};

const MIB: u64 = 1 << 20;

/// Open files of a process of a command, where nothing else is asked for. Finite, so that loops over all
/// possible descriptors end.
const OPEN_FILES: u32 = 65_536;

/// Each limit, soft and hard alike; the host's own hard limit wins where it is lower.
const LIMITS: &[(Resource, u64)] = &[
    // Not 0, which a piped core_pattern ignores: 1 makes the kernel drop the dump (fs/coredump.c).
    (Resource::RLIMIT_CORE, 1),
    (Resource::RLIMIT_MEMLOCK, 64 * MIB),
    (Resource::RLIMIT_MSGQUEUE, MIB),
    (Resource::RLIMIT_SIGPENDING, 16_384),
    (Resource::RLIMIT_RTPRIO, 0),
    (Resource::RLIMIT_NICE, 0),
];

/// Lowers the limits of the calling process, which is init; what is in force for commands then, by the
/// names of prlimit(1).
///
/// The limit on open files is each command's own, [`limit_open_files`]: init needs some for all of them.
///
/// # Errors
/// The failed step.
pub fn apply() -> Result<BTreeMap<String, u64>, Failure> {
    let lower = |(resource, limit): &(Resource, u64)| {
        lower_limit(*resource, *limit)?;
        let (_, hard) = getrlimit(*resource)?;
        io::Result::Ok((name_of(*resource), hard))
    };
    let mut all: BTreeMap<_, _> = LIMITS
        .iter()
        .map(|limit| lower(limit).at(Step::Limits, format_args!("lowering {:?}", limit.0)))
        .collect::<Result<_, _>>()?;
    let files = open_files_of_host().at(Step::Limits, "looking at the limit on open files")?;
    let files = files.min(OPEN_FILES.into());
    all.insert(name_of(Resource::RLIMIT_NOFILE), files);
    Ok(all)
}

/// Lowers the limit on open files of the calling process, soft and hard alike, to what a command may
/// have.
///
/// # Errors
/// Those of setrlimit(2).
pub fn limit_open_files(asked: Option<u32>) -> io::Result<()> {
    let limit = asked.unwrap_or(OPEN_FILES);
    lower_limit(Resource::RLIMIT_NOFILE, limit.into())
}

/// Whether commands can be given as many open files as is asked for.
///
/// # Errors
/// Where this host gives derrick itself less.
pub fn check(limits: &Limits) -> Result<(), Unenforceable> {
    // A host that does not say is not known to give less.
    let most = open_files_of_host().unwrap_or(u64::MAX);
    match limits.open_files {
        Some(asked) if u64::from(asked) > most => Err(Unenforceable {
            wish: Wish::OpenFilesLimit,
            reason: format!("derrick itself may have {most} (ulimit -Hn)"),
        }),
        _ => Ok(()),
    }
}

fn open_files_of_host() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.1)
}

fn name_of(resource: Resource) -> String {
    let name = format!("{resource:?}").to_lowercase();
    name.trim_start_matches("rlimit_").to_owned()
}

/// Makes `child` and what it starts the kernel's first choice when memory is short.
///
/// # Errors
/// The failed step.
pub fn offer_to_oom_killer(child: Child) -> Result<(), Failure> {
    fs::write(format!("/proc/{}/oom_score_adj", child.id()), "500")
        .at(Step::Limits, "raising oom_score_adj")
}
