//! A program of the host's at work on what a workspace handed out, which may be made to break it: it has a few
//! directories, no network and no privilege.
//!
//! derrick executes itself under [`NAME`], gives up what the program is not to have, and becomes the program. It
//! keeps its user, and needs no namespaces, so that it is the same for root and for an ordinary user.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::AccessFlags;
use seccompiler::{SeccompAction, SeccompFilter, TargetArch};

use super::seccomp::Filters;
use super::{At, Failure, Profile, Step, capabilities};
use crate::sys::process::lower_limit;

/// The name under which derrick executes itself to become such a program.
pub const NAME: &str = "derrick-confined";

/// The exit code where it could not.
pub const FAILED: i32 = 125;

/// Where programs of the host and their libraries are, beside those of the program itself.
const PROGRAMS: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/nix/store",
    "/gnu/store",
];

/// Devices that any program may read and write.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/urandom"];

/// What a program is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Files and directories that it reads.
    pub readable: Vec<PathBuf>,
    /// Directories in which it does what it wants.
    pub writable: Vec<PathBuf>,
    /// How many bytes of memory of its own it may have, files that it maps apart.
    pub memory: Option<u64>,
    /// How many seconds of a processor; it is killed then.
    pub processor: Option<u64>,
}

const READ: &str = "--read=";
const WRITE: &str = "--write=";
const MEMORY: &str = "--memory=";
const PROCESSOR: &str = "--processor=";

impl Confinement {
    /// The arguments of [`NAME`] that say so; the program and its own come next.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let said = |option: &str, value: &OsStr| {
            let mut argument = OsString::from(option);
            argument.push(value);
            argument
        };
        let read = self
            .readable
            .iter()
            .map(|path| said(READ, path.as_os_str()));
        let write = self
            .writable
            .iter()
            .map(|path| said(WRITE, path.as_os_str()));
        let number =
            |option, most: Option<u64>| most.map(|most| said(option, most.to_string().as_ref()));
        read.chain(write)
            .chain(number(MEMORY, self.memory))
            .chain(number(PROCESSOR, self.processor))
            .chain(["--".into()])
            .collect()
    }

    /// Reads what `arguments` wrote; what it is, and the program with its arguments.
    fn parse(arguments: impl Iterator<Item = OsString>) -> Option<(Self, Vec<OsString>)> {
        let mut confinement = Self::default();
        let mut arguments = arguments;
        loop {
            let argument = arguments.next()?;
            let bytes = argument.as_bytes();
            let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
            if bytes == b"--" {
                return Some((confinement, arguments.collect()));
            } else if let Some(read) = bytes.strip_prefix(READ.as_bytes()) {
                confinement.readable.push(path(read));
            } else if let Some(write) = bytes.strip_prefix(WRITE.as_bytes()) {
                confinement.writable.push(path(write));
            } else if let Some(most) = argument.to_str()?.strip_prefix(MEMORY) {
                confinement.memory = Some(most.parse().ok()?);
            } else {
                let most = argument.to_str()?.strip_prefix(PROCESSOR)?;
                confinement.processor = Some(most.parse().ok()?);
            }
        }
    }

    /// Binds the calling process and all that it starts, for `program`.
    fn enter(&self, program: &OsStr) -> Result<(), Failure> {
        if let Some(most) = self.memory {
            lower_limit(Resource::RLIMIT_DATA, most).at(Step::Limits, "bounding memory")?;
        }
        if let Some(most) = self.processor {
            // The soft limit comes first: its signal says what it was.
            setrlimit(Resource::RLIMIT_CPU, most, most + 5)
                .at(Step::Limits, "bounding the time of a processor")?;
        }
        capabilities::drop_all()?;
        rustix::thread::set_no_new_privs(true).at(Step::Capabilities, "setting no_new_privs")?;
        self.restrict_files(program)
            .map_err(|error| Failure::new(Step::Landlock, format!("landlock: {error}")))?;
        let filters = Filters::compile(Profile::Standard)?;
        filters.install_ahead()?;
        without_sockets()
            .map_err(|error| Failure::new(Step::Seccomp, format!("refusing sockets: {error}")))?;
        filters.install().map(drop)
    }

    /// As far as this kernel's landlock goes; not at all is an error, as the user's own rights would be left.
    fn restrict_files(&self, program: &OsStr) -> Result<(), Box<dyn std::error::Error>> {
        let all = AccessFs::from_all(ABI::V5);
        let read: BitFlags<AccessFs> = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
        let own = all & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
        let programs = PROGRAMS
            .iter()
            .map(PathBuf::from)
            .chain(installed_at(program));
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
            .scope(Scope::AbstractUnixSocket | Scope::Signal)?
            .create()?
            .add_rules(path_beneath_rules(programs, read))?
            .add_rules(path_beneath_rules(&self.readable, read))?
            .add_rules(path_beneath_rules(&self.writable, own))?
            .add_rules(path_beneath_rules(
                DEVICES,
                AccessFs::ReadFile | AccessFs::WriteFile,
            ))?
            .restrict_self()?;
        match status.ruleset {
            RulesetStatus::NotEnforced => {
                Err("this kernel has none (lsm=landlock,… on its command line)".into())
            }
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        }
    }
}

/// Where a program that `PATH` finds has what belongs to it: its own directory, and those of libraries beside that.
fn installed_at(program: &OsStr) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |candidate: &PathBuf| {
        candidate.is_file() && nix::unistd::access(candidate, AccessFlags::X_OK).is_ok()
    };
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(is_program);
    let Some(directory) =
        found.and_then(|found| Some(found.canonicalize().ok()?.parent()?.to_owned()))
    else {
        return Vec::new();
    };
    let beside = ["lib", "lib32", "lib64", "libexec", "share"];
    let beside = beside.map(|name| directory.with_file_name(name));
    beside.into_iter().chain([directory]).collect()
}

fn without_sockets() -> Result<(), Box<dyn std::error::Error>> {
    let calls = [
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_io_uring_setup,
    ];
    let rules: BTreeMap<i64, _> = calls.map(|call| (call, Vec::new())).into();
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}

/// Becomes what the arguments say; returns only where that fails, the exit code.
#[must_use]
pub fn main() -> i32 {
    let fail = |what: &dyn std::fmt::Display| {
        eprintln!("{NAME}: {what}");
        FAILED
    };
    let Some((confinement, program)) = Confinement::parse(std::env::args_os().skip(1)) else {
        return fail(&"it is for derrick itself, which says what it is to become");
    };
    let [program, arguments @ ..] = program.as_slice() else {
        return fail(&"there is no program");
    };
    if let Err(failure) = confinement.enter(program) {
        return fail(&failure);
    }
    fail(&Command::new(program).args(arguments).exec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let confinement = Confinement {
            readable: vec!["/a b".into(), "/--write=/c".into()],
            writable: vec!["/d".into()],
            memory: Some(1 << 30),
            processor: Some(60),
        };
        let said = confinement
            .arguments()
            .into_iter()
            .chain(["git".into(), "--read=/".into()]);
        let (understood, program) = Confinement::parse(said).expect("it is right");
        assert_eq!(understood, confinement);
        assert_eq!(program, ["git", "--read=/"]);
        for wrong in [&["git"][..], &["--read=/a"], &["--memory=x", "--"]] {
            let said = wrong.iter().map(OsString::from);
            assert_eq!(Confinement::parse(said), None, "{wrong:?}");
        }
    }
}
