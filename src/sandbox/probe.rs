//! What this host allows: found by trying, with the very code that makes sandboxes.
//!
//! Each trial is a forked child that goes as far as it can and answers over a pipe, so nothing that
//! it enters, mounts or gives up stays with the caller. The caller must have one thread. What a
//! kernel's version or a setting would suggest is only read to explain a trial that failed.

mod cgroups;
mod settings;

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::thread::UnshareFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cgroups::{Caller, Layout, filesystem_of, offers, usable};
use super::identity::{self, Identity};
use super::overlay::{self, Scratch};
use super::seccomp::Filters;
use super::{
    Access, At, Capacity, Failure, Lower, MemoryFiles, Network, Overlay, Profile, Requirement,
    SandboxSpec, Step, Storage, Writable, disk, landlock, namespaces,
};
use crate::sys;
use crate::sys::channel::{Channel, Peer};
use crate::sys::process::{OneThread, Standard, become_standard, fork_child, unshare};
use settings::{Lending, UserNamespaces};

/// The oldest kernel that derrick is tested on.
const OLDEST_TESTED: (u32, u32) = (6, 1);

/// What root's provider cannot make or remove sandboxes without.
const NEEDED: &[Capability] = &[
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_ADMIN,
];

/// What was found on this host.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How sandboxes would get their ids; `None` where not even one id can be had.
    pub identity: Option<Identity>,
    /// One for each thing that derrick depends on, in the order in which a sandbox needs them.
    pub facts: Vec<Fact>,
}

/// One thing that derrick depends on.
#[derive(Debug, Clone, Serialize)]
pub struct Fact {
    /// A stable name, such as `user_namespaces`.
    pub name: &'static str,
    /// How good it is.
    pub state: State,
    /// What is there, for people.
    pub found: String,
    /// What that means for workspaces; empty where it takes nothing away.
    pub effect: String,
    /// The command or the line of a file that makes it better, where there is one.
    pub fix: Option<String>,
}

/// How good a fact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As good as derrick can use it.
    Ok,
    /// `ns` works, with less than could be had.
    Weaker,
    /// `ns` does not work without it.
    Missing,
}

impl Report {
    /// Whether sandboxes can be made here.
    #[must_use]
    pub fn ns_works(&self) -> bool {
        self.facts.iter().all(|fact| fact.state != State::Missing)
    }
}

impl Fact {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Ok,
            found: found.into(),
            effect: String::new(),
            fix: None,
        }
    }

    fn weaker(name: &'static str, found: impl Into<String>, effect: impl Into<String>) -> Self {
        Self {
            state: State::Weaker,
            effect: effect.into(),
            ..Self::ok(name, found)
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, effect: impl Into<String>) -> Self {
        Self {
            state: State::Missing,
            effect: effect.into(),
            ..Self::ok(name, found)
        }
    }

    fn fix(self, fix: impl Into<Option<String>>) -> Self {
        Self {
            fix: fix.into(),
            ..self
        }
    }
}

/// Tries everything; `state_dir` is where the provider would keep its state, and need not exist.
///
/// To be called while the process has one thread: a fork of several is refused and would show up
/// here as everything missing. Makes one directory in or beside `state_dir` and removes it again.
#[must_use]
pub fn probe(state_dir: &Path) -> Report {
    let place = Place::make(state_dir);
    let settings = UserNamespaces::read();
    let lending = Lending::read();
    let identity = attempt(identity::become_root);
    let identity_or_single = identity.as_ref().copied().unwrap_or(Identity::Single);
    let facts = vec![
        kernel(),
        user(identity_or_single),
        user_namespaces(identity.as_ref(), &settings),
        subordinate_ids(identity.as_ref().ok().copied(), &lending),
        all_namespaces(&settings),
        state_directory(&place, state_dir),
        overlayfs(place.as_ref().ok(), identity_or_single),
        idmapped_mounts(place.as_ref().ok(), identity_or_single),
        memory_storage(),
        disk_image(identity_or_single),
        seccomp(),
        landlock_domain(),
        control_groups(),
        git(),
    ];
    Report {
        identity: identity.ok(),
        facts,
    }
}

fn kernel() -> Fact {
    let release = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let shared = "sandboxes share this kernel: its patches are part of what protects the host";
    if settings::version(&release).is_some_and(|version| version >= OLDEST_TESTED) {
        return Fact::ok("kernel", release);
    }
    let (major, minor) = OLDEST_TESTED;
    Fact::weaker(
        "kernel",
        format!("{release}, older than {major}.{minor}"),
        format!("derrick is not tested on it; {shared}"),
    )
    .fix(format!("boot a kernel of {major}.{minor} or later"))
}

/// Who runs derrick, and with which capabilities.
fn user(identity: Identity) -> Fact {
    let uid = rustix::process::geteuid();
    if !uid.is_root() {
        return Fact::ok(
            "user",
            format!("uid {}, which needs no capabilities", uid.as_raw()),
        );
    }
    if identity != Identity::Ranges {
        return Fact::weaker(
            "user",
            "root of a user namespace, not of the host",
            "derrick works as for an ordinary user",
        );
    }
    // Read, never inferred from the uid: root of a container or a virtual machine may lack some.
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    let lacking: Vec<String> = NEEDED
        .iter()
        .filter(|capability| !effective.contains(capability))
        .map(ToString::to_string)
        .collect();
    if lacking.is_empty() {
        return Fact::ok("user", "root, with the capabilities that are needed");
    }
    let lacking = lacking.join(", ");
    Fact::missing(
        "user",
        format!("root without {lacking}"),
        "root's way of making sandboxes needs them",
    )
    .fix(format!(
        "give {lacking} to derrick, or run it as an ordinary user"
    ))
}

fn user_namespaces(identity: Result<&Identity, &Failure>, settings: &UserNamespaces) -> Fact {
    if let Err(failure) = identity {
        return no_user_namespaces(failure, settings);
    }
    let made = attempt(|one| {
        identity::become_root(one)?;
        identity::unshare_user(one)
    });
    // Apart from making one, because there the kernel's answer is that of a helper process.
    let mapped = made.and_then(|()| {
        attempt(|one| {
            let identity = identity::become_root(one)?;
            identity::make_namespace(one, 0, identity.map(0)).map(drop)
        })
    });
    match mapped {
        Ok(()) => Fact::ok("user_namespaces", "can be made and mapped"),
        Err(failure) => no_user_namespaces(&failure, settings),
    }
}

fn no_user_namespaces(failure: &Failure, settings: &UserNamespaces) -> Fact {
    let (cause, fix) = settings.explain(failure.errno);
    let cause = cause.map_or_else(String::new, |cause| format!("; {cause}"));
    Fact::missing(
        "user_namespaces",
        format!("{}{cause}", said(failure)),
        "no sandbox can be made",
    )
    .fix(fix)
}

fn subordinate_ids(identity: Option<Identity>, lending: &Lending) -> Fact {
    const NAME: &str = "subordinate_ids";
    const EFFECT: &str = "one id inside: chown, other users and package managers do not work";
    match identity {
        None => Fact::weaker(
            NAME,
            "not tried: there is no user namespace to map them in",
            EFFECT,
        ),
        Some(Identity::Ranges) => Fact::ok(
            NAME,
            "not needed: root gives each sandbox a range of its own",
        ),
        Some(Identity::Subordinate) => Fact::ok(NAME, "65,536 or more, and newuidmap maps them"),
        Some(Identity::Single) => {
            let (found, fix) = lending.explain();
            Fact::weaker(NAME, found, EFFECT).fix(fix)
        }
    }
}

/// All namespaces of a sandbox at once, and the filesystems that only their owner can make.
fn all_namespaces(settings: &UserNamespaces) -> Fact {
    match attempt(try_namespaces) {
        Ok(()) => Fact::ok(
            "namespaces",
            "mount, pid, network, ipc, uts and cgroup, with /proc, /sys and /dev of their own",
        ),
        Err(failure) => {
            let fix = if failure.step == Step::Mounts {
                Some(
                    "run derrick on the host, or in a container with its /proc and /sys not masked \
                     (docker: --security-opt systempaths=unconfined; podman: --security-opt unmask=ALL)"
                        .to_owned(),
                )
            } else {
                settings.explain(failure.errno).1
            };
            Fact::missing("namespaces", said(&failure), "no sandbox can be made").fix(fix)
        }
    }
}

fn try_namespaces(one: OneThread) -> Result<(), Failure> {
    let identity = identity::become_root(one)?;
    unshare(one, UnshareFlags::NEWNS).at(Step::Namespaces, "creating a mount namespace")?;
    let (ours, theirs) = Channel::pair(Peer::Trusted).at(Step::Process, "making a socket")?;
    let map = identity.map(0);
    let child = namespaces::fork_first(one, map, || {
        let result = enter_namespaces(one, &theirs);
        // If nobody hears it, nobody asks.
        let _ = theirs.send(&result, &[]);
        0
    })?;
    drop(theirs);
    let result = identity::write_maps(child, 0, map).and_then(|()| {
        ours.send(&(), &[])
            .at(Step::Process, "telling the child of its maps")?;
        hear(&ours)
    });
    child.kill();
    child.wait().at(Step::Process, "waiting for the child")?;
    result
}

/// What a sandbox's first process does before it mounts anything, see `init`.
fn enter_namespaces(one: OneThread, parent: &Channel) -> Result<(), Failure> {
    parent
        .receive::<()>()
        .at(Step::Process, "hearing from the parent")?;
    identity::set_root()?;
    namespaces::enter_others(one, Network::None)?;
    for kind in ["proc", "sysfs", "tmpfs", "devpts", "mqueue"] {
        let none = rustix::mount::MountAttrFlags::empty();
        overlay::new_filesystem(kind, &[], none).at(
            Step::Mounts,
            format_args!("making {kind} in the namespaces of a sandbox"),
        )?;
    }
    Ok(())
}

fn hear<T: DeserializeOwned>(channel: &Channel) -> Result<T, Failure> {
    let received = channel
        .receive::<Result<T, Failure>>()
        .at(Step::Process, "hearing from the child")?
        .ok_or_else(|| Failure::new(Step::Process, "the child died on its way"))?;
    received.message
}

/// A directory of the probe's own on the filesystem of the state directory, removed in the end.
#[derive(Debug)]
struct Place {
    directory: PathBuf,
}

impl Place {
    fn make(state_dir: &Path) -> Result<Self, (PathBuf, io::Error)> {
        let parent = existing_ancestor(state_dir);
        nix::unistd::mkdtemp(&parent.join(".derrick-check-XXXXXX"))
            .map(|directory| Self { directory })
            .map_err(|error| (parent, error.into()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The trials removed what they made; if one was killed, its empty directories may stay.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn existing_ancestor(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|ancestor| ancestor.is_dir());
    there.unwrap_or(Path::new("/")).to_owned()
}

fn state_directory(place: &Result<Place, (PathBuf, io::Error)>, state_dir: &Path) -> Fact {
    const NAME: &str = "state_dir";
    let shown = state_dir.display();
    match place {
        Err((parent, error)) => Fact::missing(
            NAME,
            format!(
                "{shown} cannot be used: writing to {}: {error}",
                parent.display()
            ),
            "layers and workspaces have no place",
        )
        .fix("name another one with --state-dir".to_owned()),
        Ok(place) => {
            let kind = filesystem_of(&read("/proc/self/mountinfo"), &place.directory);
            let kind = kind.map_or_else(String::new, |kind| format!(" on {kind}"));
            Fact::ok(NAME, format!("{shown}{kind}"))
        }
    }
}

fn overlayfs(place: Option<&Place>, identity: Identity) -> Fact {
    const NAME: &str = "overlayfs";
    let Some(place) = place else {
        return untried(NAME);
    };
    let ids = identity.map(0);
    match attempt(|one| try_overlay(one, place, ids.first)) {
        Ok(Renaming::Works) => Fact::ok(NAME, "redirect_dir=on: every operation works"),
        Ok(Renaming::CrossDevice) => Fact::ok(
            NAME,
            "userxattr: all but renaming a directory that comes from a layer (EXDEV), as without root everywhere",
        ),
        Err(failure) => no_overlay(NAME, &failure, "load the module: modprobe overlay"),
    }
}

fn no_overlay(name: &'static str, failure: &Failure, otherwise: &str) -> Fact {
    const EFFECT: &str = "no sandbox can be made";
    if failure.step != Step::Overlay {
        return Fact::missing(name, format!("not reached: {}", said(failure)), EFFECT);
    }
    Fact::missing(name, said(failure), EFFECT).fix(format!(
        "put the state directory on ext4, xfs or btrfs with --state-dir; {otherwise}"
    ))
}

/// How a directory of a lower can be renamed in an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Renaming {
    Works,
    CrossDevice,
}

/// Mounts an overlay on a lower whose files belong to `first_id`, and works in it.
fn try_overlay(one: OneThread, place: &Place, first_id: u32) -> Result<Renaming, Failure> {
    let identity = identity::become_root(one)?;
    let result = mount_and_work(one, place, identity, first_id);
    // Here, where the ids that own what was written are mapped, and it can be removed.
    for name in ["lower", "writable"] {
        remove_tree(&place.directory.join(name))?;
    }
    result
}

fn mount_and_work(
    one: OneThread,
    place: &Place,
    identity: Identity,
    first_id: u32,
) -> Result<Renaming, Failure> {
    let at = |name: &str| place.directory.join(name);
    for name in [
        "lower",
        "lower/directory",
        "lower/gone",
        "writable",
        "scratch",
    ] {
        match fs::create_dir(at(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.at(Step::Upper, format_args!("making {}", at(name).display()))?,
        }
    }
    unshare(one, UnshareFlags::NEWNS).at(Step::Namespaces, "creating a mount namespace")?;
    rustix::process::chdir(at("scratch")).at(Step::Mounts, "entering the scratch directory")?;
    let mut scratch = Scratch::enter()?;
    let spec = SandboxSpec {
        ids: identity.map(0),
        overlays: vec![Overlay {
            at: PathBuf::from("/"),
            lowers: vec![Lower {
                path: at("lower"),
                first_id,
            }],
            access: Access::Writable,
        }],
        writable: Writable {
            directory: at("writable"),
            storage: Storage::Directory,
        },
        network: Network::None,
        profile: Profile::Standard,
        landlock: Requirement::BestEffort,
        group: None,
        memory_files: MemoryFiles::default(),
        without: super::Without::default(),
    };
    let namespace = identity::make_namespace(one, 0, spec.ids)?;
    let (overlays, _) = overlay::mount_all(one, &mut scratch, &spec, identity, &namespace)?;
    // Through an idmapped lower the probe is an id that owns nothing; the mount is what counts.
    if first_id != spec.ids.first {
        return Ok(Renaming::Works);
    }
    work_in(overlays[0].as_fd())
}

fn work_in(root: std::os::fd::BorrowedFd<'_>) -> Result<Renaming, Failure> {
    let step = Step::Overlay;
    rustix::fs::openat(
        root,
        "new",
        OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::RUSR,
    )
    .at(step, "creating a file in an overlay")?;
    rustix::fs::unlinkat(root, "gone", AtFlags::REMOVEDIR)
        .at(step, "deleting from a lower of an overlay")?;
    match rustix::fs::renameat(root, "directory", root, "renamed") {
        Err(rustix::io::Errno::XDEV) => Ok(Renaming::CrossDevice),
        renamed => renamed
            .at(step, "renaming a directory of an overlay")
            .map(|()| Renaming::Works),
    }
}

fn remove_tree(path: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.at(Step::Upper, format_args!("removing {}", path.display())),
    }
}

/// An overlay whose lower is shown under other ids than it has on disk.
fn idmapped_mounts(place: Option<&Place>, identity: Identity) -> Fact {
    const NAME: &str = "idmapped_mounts";
    if identity != Identity::Ranges {
        return Fact::ok(NAME, "not needed: this user's sandboxes share their ids");
    }
    let Some(place) = place else {
        return untried(NAME);
    };
    match attempt(|one| try_overlay(one, place, 0)) {
        Ok(_) => Fact::ok(NAME, "layers are shared between the ids of all sandboxes"),
        Err(failure) => no_overlay(NAME, &failure, "boot a kernel of 5.19 or later"),
    }
}

/// What a workspace writes, in memory.
fn memory_storage() -> Fact {
    const NAME: &str = "memory_storage";
    match attempt(try_memory) {
        Ok(()) => Fact::ok(NAME, "a limit on disk can be kept in memory"),
        Err(failure) => Fact::weaker(
            NAME,
            said(&failure),
            "no workspace can have \"storage\": \"memory\"",
        )
        .fix("boot a kernel of 6.6 or later".to_owned()),
    }
}

fn try_memory(one: OneThread) -> Result<(), Failure> {
    let identity = identity::become_root(one)?;
    unshare(one, UnshareFlags::NEWNS).at(Step::Namespaces, "creating a mount namespace")?;
    let capacity = Capacity {
        bytes: Some(1 << 20),
        inodes: None,
    };
    let writable = Writable {
        directory: PathBuf::new(),
        storage: Storage::Memory(capacity),
    };
    disk::open(&writable, identity).map(drop)
}

/// What a workspace writes, on a disk of its own.
fn disk_image(identity: Identity) -> Fact {
    const NAME: &str = "disk_image";
    const EFFECT: &str = "a limit on disk cannot be kept on the disk";
    match disk::image_obstacle(identity) {
        Some(obstacle) => Fact::weaker(NAME, obstacle, EFFECT),
        None => Fact::ok(NAME, "a limit on disk can be kept on the disk"),
    }
}

fn seccomp() -> Fact {
    let installed = attempt(|_| {
        let filters = Filters::compile(Profile::Standard)?;
        filters.install_ahead()?;
        filters.install()
    });
    match installed {
        Ok(filters) => Fact::ok("seccomp", format!("{filters} filters were installed")),
        Err(failure) => Fact::missing("seccomp", said(&failure), "no sandbox can be made")
            .fix("boot a kernel with CONFIG_SECCOMP_FILTER".to_owned()),
    }
}

fn landlock_domain() -> Fact {
    const NAME: &str = "landlock";
    let abi = sys::landlock::abi();
    match attempt(|_| landlock::enter(Profile::Standard, Requirement::Required)) {
        Ok(enforced) => match enforced.weaker() {
            None => Fact::ok(NAME, format!("ABI {abi}")),
            Some(weaker) => Fact::weaker(
                NAME,
                weaker,
                "the second boundary has gaps; namespaces and seccomp hold without it",
            )
            .fix("boot a kernel of 6.12 or later".to_owned()),
        },
        Err(failure) => {
            let listed = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
            let fix = if abi == 0 && !listed.is_empty() {
                format!("boot with lsm=landlock,{}, or write", listed.trim())
            } else {
                "boot a kernel of 6.2 or later with lsm=landlock,… on its command line, or write"
                    .to_owned()
            };
            Fact::missing(
                NAME,
                said(&failure),
                "sandboxes start only where the config does without it",
            )
            .fix(format!(
                "{fix} \"best_effort\": [\"landlock\"] in the config"
            ))
        }
    }
}

fn control_groups() -> Fact {
    let (layout, caller) = (Layout::here(), Caller::this());
    cgroups::fact(&layout, caller, offers, usable)
}

fn git() -> Fact {
    match on_path("git") {
        Some(program) => Fact::ok("git", program.display().to_string()),
        None => Fact::weaker(
            "git",
            "not on PATH",
            "configs with repositories do not work",
        )
        .fix("apt-get install git".to_owned()),
    }
}

/// The first executable file of that name on `PATH`.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| {
            fs::metadata(file)
                .is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
        })
}

fn untried(name: &'static str) -> Fact {
    Fact::missing(
        name,
        "not tried: the state directory cannot be used",
        "no sandbox can be made",
    )
}

/// A failure without the words that are for who asked for a sandbox.
fn said(failure: &Failure) -> String {
    let text = failure.to_string();
    let text = text.strip_prefix("cannot start sandbox: ").unwrap_or(&text);
    text.replace("; see 'derrick check'", "")
}

/// The text of a small file of the kernel's or the host's; empty where there is none.
fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Runs `body` in a child of its own and brings its answer back.
fn attempt<T: Serialize + DeserializeOwned>(
    body: impl FnOnce(OneThread) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let one = OneThread::check().at(Step::Process, "counting the threads of this process")?;
    let (mut answer, tell) = io::pipe().at(Step::Process, "making a pipe")?;
    let child = fork_child(one, || {
        silence();
        let text = serde_json::to_vec(&body(one)).unwrap_or_default();
        i32::from((&tell).write_all(&text).is_err())
    })
    .at(Step::Process, "forking a child to try something in")?;
    drop(tell);
    let mut text = Vec::new();
    let heard = answer
        .read_to_end(&mut text)
        .at(Step::Process, "hearing from the child");
    let code = child.wait().at(Step::Process, "waiting for the child")?;
    heard?;
    serde_json::from_slice(&text).unwrap_or_else(|_| {
        let detail =
            format!("the child that tried it ended with code {code} before it could answer");
        Err(Failure::new(Step::Process, detail))
    })
}

/// Programs such as `newuidmap` explain themselves on stderr; the report does it in their place.
fn silence() {
    if let Ok(null) = fs::File::options().write(true).open("/dev/null") {
        // If it fails, there is a line too much.
        let _ = become_standard(null.as_fd(), Standard::Error);
    }
}
