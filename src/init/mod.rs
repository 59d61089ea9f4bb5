//! PID 1 of a sandbox: assembles its world, gives up what it may do, then serves one request after another.
//!
//! Single-threaded from birth, so plain blocking code and `fork` are sound here. Must stay so: no
//! tokio, no threads. It is a fork of the spawner and never executes a file, so that nothing of the
//! host's needs to be in the sandbox and nothing in the sandbox can replace it.
//!
//! The provider trusts nothing that init says: it runs where a workspace could reach it.

pub mod exec;
pub mod files;
pub mod protocol;
mod serve;
mod tree;
pub mod unpack;
pub mod user;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::sandbox::identity::set_root;
use crate::sandbox::seccomp::Filters;
use crate::sandbox::{
    At, Enforcement, Failure, Keyring, Landlock, Restriction, SandboxSpec, Step, capabilities,
    landlock, limits, mounts, namespaces, network,
};
use crate::sys::channel::{Channel, Received};
use crate::sys::keyring;
use crate::sys::process::{OneThread, Standard, become_standard, close_all_except};
use protocol::{Birth, Go, Reply, Request};

/// The life of init, from the fork of the spawner on; its exit code.
///
/// `parent` leads to the spawner and is used until the sandbox is ready; `provider` is served after it.
#[must_use]
pub fn live(
    one: OneThread,
    spec: &SandboxSpec,
    filters: &Filters,
    parent: &Channel,
    provider: &Channel,
) -> i32 {
    let standing = match be_born(one, spec, filters, parent, provider) {
        Ok(standing) => standing,
        Err(failure) => {
            // A spawner that is gone needs no report.
            let _ = parent.send(&Birth::Failed(failure), &[]);
            return 1;
        }
    };
    // Nothing but the provider's socket stays open.
    if close_all_except(&[provider.as_fd()]).is_err() {
        return 1;
    }
    // The provider may keep a pristine sandbox for long, or be gone before it wants it.
    let Ok(Some(Received {
        message: Request::Adopt(id, hostname),
        ..
    })) = provider.receive()
    else {
        return 0;
    };
    let adopted = match confine(spec, &hostname, standing, filters) {
        Ok(enforcement) => Reply::Adopted(id, Box::new(enforcement)),
        Err(failure) => Reply::NotAdopted(id, failure),
    };
    let is_adopted = matches!(adopted, Reply::Adopted(..));
    if provider.send(&adopted, &[]).is_err() || !is_adopted {
        return 1;
    }
    serve::serve(one, provider)
}

/// All that comes before it is adopted.
fn be_born(
    one: OneThread,
    spec: &SandboxSpec,
    filters: &Filters,
    parent: &Channel,
    provider: &Channel,
) -> Result<Standing, Failure> {
    close_all_except(&[parent.as_fd(), provider.as_fd()])
        .at(Step::Process, "closing the spawner's descriptors")?;
    let keyring = leave_the_host(one, spec, parent)?;
    let rlimits = assemble(spec, parent)?;
    let standing = confine_ahead(spec, keyring, rlimits, filters)?;
    parent
        .send(&Birth::Ready, &[])
        .at(Step::Serve, "telling the spawner")?;
    Ok(standing)
}

/// Enters new namespaces of the kinds that it is not in yet, and leaves the host's keys.
fn leave_the_host(
    one: OneThread,
    spec: &SandboxSpec,
    parent: &Channel,
) -> Result<Keyring, Failure> {
    hear(parent, Step::UserNamespace)?;
    set_root()?;
    let keyring = spec
        .without
        .unless_off(Restriction::Keyring, leave_the_hosts_keys)?;
    namespaces::enter_others(one, spec.network)?;
    Ok(keyring)
}

fn leave_the_hosts_keys() -> Result<Keyring, Failure> {
    match keyring::join_new_session() {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(Keyring::Absent),
        joined => {
            joined.at(Step::Keyring, "joining a new session keyring")?;
            Ok(Keyring::Own)
        }
    }
}

/// Waits for the spawner's next word, and takes what comes with it.
fn hear(parent: &Channel, step: Step) -> Result<Vec<OwnedFd>, Failure> {
    let word = parent
        .receive::<Go>()
        .at(step, "hearing from the spawner")?
        .ok_or_else(|| Failure::new(step, "the spawner is gone"))?;
    Ok(word.descriptors)
}

/// The first part of the one order that works: what needs the host's view, then what needs
/// capabilities. Nothing but init has run in the sandbox until it is adopted.
fn assemble(spec: &SandboxSpec, parent: &Channel) -> Result<BTreeMap<String, u64>, Failure> {
    // The host's umask must not decide what modes the sandbox's directories get.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    mounts::assemble(spec, || hear(parent, Step::Overlay))?;
    stand_alone()?;
    network::prepare(spec.network)?;
    let without = &spec.without;
    let rlimits = without.unless_off(Restriction::Rlimits, limits::apply)?;
    // Nobody inside can trace init or read its memory, descriptors or program file.
    rustix::thread::set_name(c"derrick-init").at(Step::Process, "setting init's name")?;
    // Its change of ids has made it so already; a test wants the contrary.
    set_dumpable_behavior(if without.has(Restriction::NotDumpable) {
        DumpableBehavior::Dumpable
    } else {
        DumpableBehavior::NotDumpable
    })
    .at(Step::Process, "becoming non-dumpable")?;
    Ok(rlimits)
}

/// What is in force before a sandbox is adopted.
struct Standing {
    keyring: Keyring,
    rlimits: BTreeMap<String, u64>,
    no_new_privs: bool,
    landlock: Landlock,
}

/// The second part: what takes nothing away that being adopted takes. Landlock forbids mounting.
fn confine_ahead(
    spec: &SandboxSpec,
    keyring: Keyring,
    rlimits: BTreeMap<String, u64>,
    filters: &Filters,
) -> Result<Standing, Failure> {
    let without = &spec.without;
    without.unless_off(Restriction::Capabilities, capabilities::bound)?;
    without.unless_off(Restriction::NoNewPrivs, || {
        rustix::thread::set_no_new_privs(true).at(Step::Capabilities, "setting no_new_privs")
    })?;
    let no_new_privs =
        rustix::thread::no_new_privs().at(Step::Capabilities, "looking at no_new_privs")?;
    let landlock = if without.has(Restriction::Landlock) {
        let abi = crate::sys::landlock::abi();
        Landlock::Off { abi }
    } else {
        landlock::enter(spec.profile, spec.landlock)?
    };
    without.unless_off(Restriction::Seccomp, || filters.install_ahead())?;
    Ok(Standing {
        keyring,
        rlimits,
        no_new_privs,
        landlock,
    })
}

/// The last part: the hostname, which takes a capability, then the capabilities, and seccomp, which forbids
/// everything that came before.
fn confine(
    spec: &SandboxSpec,
    hostname: &str,
    standing: Standing,
    filters: &Filters,
) -> Result<Enforcement, Failure> {
    nix::unistd::sethostname(hostname).at(Step::Hostname, "setting the hostname")?;
    let without = &spec.without;
    let capabilities =
        without.unless_off(Restriction::Capabilities, capabilities::drop_all_but_kept)?;
    let seccomp_filters = without.unless_off(Restriction::Seccomp, || filters.install())?;
    Ok(Enforcement {
        namespaces: namespaces::names(spec.network).map(str::to_owned).collect(),
        ids: spec.ids.count,
        keyring: standing.keyring,
        no_new_privs: standing.no_new_privs,
        rlimits: standing.rlimits,
        profile: spec.profile,
        landlock: standing.landlock,
        seccomp_filters,
        capabilities,
        network: spec.network,
    })
}

/// Lets go of the host's standard descriptors and session.
fn stand_alone() -> Result<(), Failure> {
    let step = Step::Process;
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .at(step, "opening /dev/null of the sandbox")?;
    for number in [Standard::Input, Standard::Output, Standard::Error] {
        become_standard(null.as_fd(), number).at(step, "replacing the standard descriptors")?;
    }
    rustix::process::setsid()
        .map(drop)
        .at(step, "starting a session")
}
