//! Landlock, landlock(7): a second boundary, that holds where a mount or a descriptor leaked.
//!
//! One domain for a whole sandbox, entered by init before any command. It denies mounting as such,
//! device nodes and device ioctls outside `/dev`, and signals and abstract sockets across its edge.
//! Where namespaces can be nested there is the latter alone: nothing could be mounted in them else.

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::{Failure, Landlock, Profile, Requirement, Step};
use crate::sys;

/// With ABI 1 every rename or link across directories gives `EXDEV`, which breaks git and package managers.
const LEAST: i32 = 2;

/// From this version on there are scopes.
const SCOPES: i32 = 6;

/// Enters the domain of `profile`; how much of it this kernel enforces.
///
/// # Errors
/// The failed step; also where it is required and the kernel has none, or too old a one.
pub fn enter(profile: Profile, requirement: Requirement) -> Result<Landlock, Failure> {
    let abi = sys::landlock::abi();
    match profile {
        Profile::Standard => enter_whole(abi, requirement),
        Profile::Nested if abi < SCOPES => Ok(Landlock::Off { abi }),
        Profile::Nested => match restrict_scopes() {
            Ok(RulesetStatus::FullyEnforced) => Ok(Landlock::Scopes { abi }),
            Ok(status) => Err(Failure::new(
                Step::Landlock,
                format!("landlock's scopes: {status:?}"),
            )),
            Err(error) => Err(failed(&*error)),
        },
    }
}

fn enter_whole(abi: i32, requirement: Requirement) -> Result<Landlock, Failure> {
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
    let status = restrict().map_err(|error| failed(&*error))?;
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
        (SCOPES, "scoping of signals and abstract sockets"),
    ];
    wanted
        .iter()
        .filter(|(since, _)| abi < *since)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::new(Step::Landlock, format!("landlock: {error}"))
}

fn restrict_scopes() -> Result<RulesetStatus, Box<dyn std::error::Error>> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?;
    Ok(ruleset.create()?.restrict_self()?.ruleset)
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
