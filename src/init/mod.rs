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

use rustix::process::{DumpableBehavior, PidfdFlags, pidfd_open, set_dumpable_behavior};
use rustix::thread::UnshareFlags;

use crate::sandbox::identity::{act_as_range, set_root, unshare_user};
use crate::sandbox::seccomp::Filters;
use crate::sandbox::{
    At, Enforcement, Failure, Keyring, Landlock, Network, Restriction, SandboxSpec, Step,
    capabilities, landlock, limits, mounts, network,
};
use crate::sys::channel::{Channel, Received};
use crate::sys::keyring;
use crate::sys::process::{
    OneThread, Standard, become_standard, close_all_except, fork_child, unshare,
};
use protocol::{Birth, Go, Reply, Request};

/// The life of a sandbox's first process, from the fork of the spawner on; its exit code.
///
/// `parent` leads to the spawner and is used until the sandbox is ready; `provider` is served after it.
#[must_use]
pub fn be_born(
    one: OneThread,
    spec: &SandboxSpec,
    filters: &Filters,
    parent: &Channel,
    provider: &Channel,
) -> i32 {
    let outcome = close_all_except(&[parent.as_fd(), provider.as_fd()])
        .at(Step::Process, "closing the spawner's descriptors")
        .and_then(|()| leave_the_host(one, spec, parent))
        .and_then(|keyring| {
            // The pid namespace is that of children: the first of them is PID 1.
            fork_child(one, || live(one, spec, keyring, filters, parent, provider))
                .at(Step::Process, "forking init")
        });
    match outcome {
        Ok(_) => 0,
        Err(failure) => report(parent, failure),
    }
}

/// Enters new namespaces of every kind, and leaves the host's keys.
fn leave_the_host(
    one: OneThread,
    spec: &SandboxSpec,
    parent: &Channel,
) -> Result<Keyring, Failure> {
    spec.without
        .unless_off(Restriction::OomScore, limits::offer_to_oom_killer)?;
    act_as_range(spec.ids)?;
    unshare_user(one)?;
    let step = Step::UserNamespace;
    parent
        .send(&Birth::Unshared, &[])
        .at(step, "telling the spawner")?;
    hear(parent, step)?;
    set_root()?;
    let keyring = spec
        .without
        .unless_off(Restriction::Keyring, leave_the_hosts_keys)?;
    enter_namespaces(one, spec.network)?;
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

/// The kinds of namespaces that a sandbox has to itself besides its user namespace, and the kernel's
/// name for each.
const NAMESPACES: &[(UnshareFlags, &str)] = &[
    (UnshareFlags::NEWNS, "mnt"),
    (UnshareFlags::NEWPID, "pid"),
    (UnshareFlags::NEWIPC, "ipc"),
    (UnshareFlags::NEWUTS, "uts"),
    (UnshareFlags::NEWCGROUP, "cgroup"),
    (UnshareFlags::NEWNET, "net"),
];

fn namespaces(network: Network) -> impl Iterator<Item = (UnshareFlags, &'static str)> {
    let shared = match network {
        Network::None => UnshareFlags::empty(),
        Network::Host => UnshareFlags::NEWNET,
    };
    let own = move |(flag, _): &(UnshareFlags, &str)| !shared.contains(*flag);
    NAMESPACES.iter().copied().filter(own)
}

fn enter_namespaces(one: OneThread, network: Network) -> Result<(), Failure> {
    let all = namespaces(network).fold(UnshareFlags::empty(), |all, (flag, _)| all | flag);
    let Err(error) = unshare(one, all) else {
        return Ok(());
    };
    // Which kind it was, only one at a time tells. Nothing is lost: this process ends.
    let culprit = namespaces(network).find(|(flag, _)| unshare(one, *flag).is_err());
    let attempt = match (culprit, error.raw_os_error()) {
        // Of a limit on namespaces, namespaces(7).
        (Some((_, name)), Some(libc::ENOSPC)) => format!(
            "creating the {name} namespace, of which user.max_{name}_namespaces allows no more; see \
             'derrick check'"
        ),
        (Some((_, name)), _) => format!("creating the {name} namespace; see 'derrick check'"),
        (None, _) => "creating the namespaces; see 'derrick check'".to_owned(),
    };
    Err(error).at(Step::Namespaces, attempt)
}

/// Waits for the spawner's next word, and takes what comes with it.
fn hear(parent: &Channel, step: Step) -> Result<Vec<OwnedFd>, Failure> {
    let word = parent
        .receive::<Go>()
        .at(step, "hearing from the spawner")?
        .ok_or_else(|| Failure::new(step, "the spawner is gone"))?;
    Ok(word.descriptors)
}

fn live(
    one: OneThread,
    spec: &SandboxSpec,
    keyring: Keyring,
    filters: &Filters,
    parent: &Channel,
    provider: &Channel,
) -> i32 {
    let born = assemble(spec, parent).and_then(|rlimits| {
        let myself = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .at(Step::Serve, "opening a pidfd of init")?;
        parent
            .send(&Birth::Ready, &[myself.as_fd()])
            .at(Step::Serve, "telling the spawner")?;
        Ok(rlimits)
    });
    let rlimits = match born {
        Ok(rlimits) => rlimits,
        Err(failure) => return report(parent, failure),
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
    let adopted = match confine(spec, &hostname, keyring, rlimits, filters) {
        Ok(enforcement) => Reply::Adopted(id, Box::new(enforcement)),
        Err(failure) => Reply::NotAdopted(id, failure),
    };
    let is_adopted = matches!(adopted, Reply::Adopted(..));
    if provider.send(&adopted, &[]).is_err() || !is_adopted {
        return 1;
    }
    serve::serve(one, provider)
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

/// The second part: the hostname, which takes a capability, then the capabilities, then landlock, which
/// forbids mounting, and seccomp, which forbids everything that came before.
fn confine(
    spec: &SandboxSpec,
    hostname: &str,
    keyring: Keyring,
    rlimits: BTreeMap<String, u64>,
    filters: &Filters,
) -> Result<Enforcement, Failure> {
    nix::unistd::sethostname(hostname).at(Step::Hostname, "setting the hostname")?;
    let without = &spec.without;
    let capabilities =
        without.unless_off(Restriction::Capabilities, capabilities::drop_all_but_kept)?;
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
    let seccomp_filters = without.unless_off(Restriction::Seccomp, || filters.install())?;
    Ok(Enforcement {
        namespaces: std::iter::once("user")
            .chain(namespaces(spec.network).map(|(_, name)| name))
            .map(str::to_owned)
            .collect(),
        ids: spec.ids.count,
        keyring,
        no_new_privs,
        rlimits,
        profile: spec.profile,
        landlock,
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

fn report(parent: &Channel, failure: Failure) -> i32 {
    // A spawner that is gone needs no report.
    let _ = parent.send(&Birth::Failed(failure), &[]);
    1
}
