//! Landlock, landlock(7): a second boundary, that holds where a mount or a descriptor leaked.
//!
//! One domain for a whole sandbox, entered by init before any command. It denies mounting as such,
//! device nodes and device ioctls outside `/dev`, and signals and abstract sockets across its edge.

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::{Failure, Landlock, Requirement, Step};
use crate::sys;

/// With ABI 1 every rename or link across directories gives `EXDEV`, which breaks git and package managers.
const LEAST: i32 = 2;

/// Enters the domain; how much of it this kernel enforces.
///
/// # Errors
/// The failed step; also where it is required and the kernel has none, or too old a one.
pub fn enter(requirement: Requirement) -> Result<Landlock, Failure> {
    let abi = sys::landlock::abi();
    if abi < LEAST {
        let found = if abi == 0 {
            "none".to_owned()
        } else {
            format!("ABI {abi}")
        };
        return match requirement {
            Requirement::Required => Err(Failure::new(
                Step::Landlock,
                format!(
                    "landlock ABI {LEAST} is required and this kernel has {found}; enable landlock \
                     (lsm=landlock,… on the kernel's command line) or list it in best_effort"
                ),
            )),
            Requirement::BestEffort => Ok(Landlock::Off { abi }),
        };
    }
    let status =
        restrict().map_err(|error| Failure::new(Step::Landlock, format!("landlock: {error}")))?;
    match status {
        RulesetStatus::FullyEnforced => Ok(Landlock::Full { abi }),
        RulesetStatus::PartiallyEnforced => Ok(Landlock::Partial {
            abi,
            missing: missing(abi),
        }),
        RulesetStatus::NotEnforced => Err(Failure::new(
            Step::Landlock,
            "the kernel took the landlock rules and enforces none",
        )),
    }
}

fn missing(abi: i32) -> Vec<String> {
    let wanted = [
        (3, "truncation"),
        (5, "device ioctls"),
        (6, "scoping of signals and abstract sockets"),
    ];
    wanted
        .iter()
        .filter(|(since, _)| abi < *since)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

fn restrict() -> Result<RulesetStatus, Box<dyn std::error::Error>> {
    let all = AccessFs::from_all(ABI::V5);
    let beneath_root: BitFlags<AccessFs> =
        all & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, beneath_root))?
        .add_rule(PathBeneath::new(
            PathFd::new("/dev")?,
            beneath_root | AccessFs::IoctlDev,
        ))?
        .restrict_self()?;
    Ok(status.ruleset)
}
