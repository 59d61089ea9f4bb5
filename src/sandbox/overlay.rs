//! Overlay filesystems, Documentation/filesystems/overlayfs.rst: a sandbox's copy-on-write root.
//!
//! Mounted by the spawner and not by the sandbox, so that root's overlays record renamed directories
//! in `trusted.*` attributes, which nothing inside can forge. Layers are named by short paths of a
//! scratch filesystem: what a sandbox reads in its mountinfo then tells nothing of the host, and the
//! 255 bytes that fsconfig(2) takes are enough for `MAX_LOWERS`.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, fchdir};

use super::identity::{Identity, Maps};
use super::{
    Access, At, Failure, IdMap, Lower, Merge, Overlay, Restriction, SandboxSpec, Step, Without,
    disk,
};
use crate::sys::mount::{Restrict, Scope, restrict};
use crate::sys::process::OneThread;

/// Lower directories that one overlay can have; the host's or base's two included.
pub const MAX_LOWERS: usize = 32;

/// Where, below the scratch filesystem, the new root is attached before it is entered.
pub const NEW_ROOT: &str = "root";
/// Where, below the scratch filesystem, the layers of one sandbox are attached while its overlays are mounted.
const STAGE: &str = "stage";
const UPPERS: &str = "u";
const EMPTY: &str = "empty";

/// The spawner's scratch filesystem: a tmpfs in its own mount namespace, its working directory. And
/// what else stays from one sandbox to the next.
#[derive(Debug)]
pub struct Scratch {
    root: OwnedFd,
    maps: Maps,
}

impl Scratch {
    /// Mounts it over the calling process's working directory and goes there; the process must be in
    /// a mount namespace of its own, from which nothing returns to the host.
    ///
    /// # Errors
    /// The failed step.
    pub fn enter() -> Result<Self, Failure> {
        let step = Step::Mounts;
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .at(step, "making the spawner's mounts private")?;
        let tmpfs = new_filesystem(
            "tmpfs",
            &[("mode", "0755"), ("size", "1m")],
            MountAttrFlags::empty(),
        )
        .at(step, "making the scratch filesystem")?;
        attach(&tmpfs, Path::new(".")).at(step, "mounting the scratch filesystem")?;
        fchdir(&tmpfs).at(step, "entering the scratch filesystem")?;
        for name in [NEW_ROOT, STAGE] {
            make_directory(Path::new(name))?;
        }
        let stage = Path::new(STAGE);
        for name in [UPPERS, EMPTY] {
            make_directory(&stage.join(name))?;
        }
        for number in 0..MAX_LOWERS {
            make_directory(&stage.join(number.to_string()))?;
        }
        Ok(Self {
            root: tmpfs,
            maps: Maps::default(),
        })
    }

    /// Runs `body` with a mount of its own as the working directory, for all that it attaches: one
    /// call then detaches everything. Each detaching makes the kernel wait for a grace period of RCU.
    fn on_stage<T>(
        &mut self,
        body: impl FnOnce(&mut Maps) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let step = Step::Overlay;
        let stage = clone_tree(Path::new(STAGE)).at(step, "opening the stage")?;
        attach(&stage, Path::new(STAGE)).at(step, "attaching the stage")?;
        let result = fchdir(&stage)
            .at(step, "entering the stage")
            .and_then(|()| body(&mut self.maps));
        let left = fchdir(&self.root).at(step, "leaving the stage");
        // Attached a moment ago; what could fail is only that it is gone already.
        let _ = unmount(STAGE, UnmountFlags::DETACH);
        left.and(result)
    }
}

fn make_directory(path: &Path) -> Result<(), Failure> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).at(
        Step::Mounts,
        format_args!("making {} in the scratch filesystem", path.display()),
    )
}

/// Makes the directories that the overlays of `spec` write to, below `uppers`, owned by root inside.
///
/// What was written to an upper before stays. A work directory is always a new one: an overlay that
/// is not synced marks its own, and none takes a marked one again.
fn prepare_uppers(spec: &SandboxSpec) -> Result<(), Failure> {
    let uppers = Path::new(UPPERS);
    match std::fs::remove_dir_all(uppers.join("work")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        removed => removed.at(Step::Upper, "removing the overlays' old work directories")?,
    }
    for kind in ["upper", "work"] {
        let parent = uppers.join(kind);
        make_if_missing(&parent).at(Step::Upper, format_args!("making {kind}"))?;
        for (number, overlay) in spec.overlays.iter().enumerate() {
            if overlay.access == Access::ReadOnly {
                continue;
            }
            let path = parent.join(number.to_string());
            if make_if_missing(&path).at(Step::Upper, format_args!("making {kind}/{number}"))? {
                let owner = spec.ids.first;
                std::os::unix::fs::lchown(&path, Some(owner), Some(owner)).at(
                    Step::Upper,
                    format_args!("giving {kind}/{number} to the sandbox"),
                )?;
            }
        }
    }
    Ok(())
}

/// Whether the directory had to be made.
fn make_if_missing(path: &Path) -> rustix::io::Result<bool> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Err(rustix::io::Errno::EXIST) => Ok(false),
        made => made.map(|()| true),
    }
}

/// Mounts every overlay of `spec`, attached nowhere yet, in the order of the spec; and the filesystem that they
/// write to.
///
/// # Errors
/// The failed step.
pub fn mount_all(
    one: OneThread,
    scratch: &mut Scratch,
    spec: &SandboxSpec,
    identity: Identity,
    namespace: &OwnedFd,
) -> Result<(Vec<OwnedFd>, OwnedFd), Failure> {
    scratch.on_stage(|maps| {
        let uppers = disk::open(&spec.writable, identity)?;
        attach(&uppers, Path::new(UPPERS)).at(Step::Overlay, "attaching the writable directory")?;
        prepare_uppers(spec)?;
        let mut mounting = Mounting {
            one,
            ids: spec.ids,
            identity,
            namespace,
            maps,
            attributes: attributes(&spec.without),
        };
        let overlays = spec.overlays.iter().enumerate();
        let mounted =
            overlays.map(|(number, overlay)| mount_or_show(&mut mounting, number, overlay));
        Ok((mounted.collect::<Result<_, _>>()?, uppers))
    })
}

/// Lowers of an overlay by themselves, and what is below them.
#[derive(Debug)]
pub struct Chain {
    /// The uppermost first, with the owners that a sandbox sees.
    pub layers: Vec<OwnedFd>,
    /// An overlay of what is below.
    pub below: OwnedFd,
}

impl Chain {
    /// Every mount of it.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let all = self.layers.iter().chain([&self.below]);
        all.map(AsFd::as_fd)
    }
}

/// Opens the layers of each of these overlays, each by itself; attached nowhere, and nothing can be written.
///
/// # Errors
/// The failed step.
pub fn open_chains(
    one: OneThread,
    scratch: &mut Scratch,
    merge: &Merge,
    identity: Identity,
) -> Result<Vec<(usize, Chain)>, Failure> {
    scratch.on_stage(|maps| {
        let namespace = if identity == Identity::Ranges {
            let base = maps.namespace(one, 0, merge.ids)?;
            base.try_clone_to_owned()
        } else {
            // No layer is another's.
            std::fs::File::open("/proc/self/ns/user").map(OwnedFd::from)
        };
        let namespace = namespace.at(Step::Overlay, "keeping a user namespace")?;
        let mut mounting = Mounting {
            one,
            ids: merge.ids,
            identity,
            namespace: &namespace,
            maps,
            attributes: attributes(&Without::default()),
        };
        let chains = merge.overlays.iter().map(|overlay| -> Result<_, Failure> {
            let layers = overlay.layers.iter();
            let layers = layers.map(|lower| open_lower(&mut mounting, lower));
            let layers = layers.collect::<Result<Vec<_>, _>>()?;
            let below = Overlay {
                at: "layers to be merged".into(),
                lowers: overlay.below.clone(),
                access: Access::ReadOnly,
            };
            let below = mount_one(&mut mounting, overlay.number, &below)?;
            Ok((overlay.number, Chain { layers, below }))
        });
        chains.collect()
    })
}

/// What all overlays of one sandbox share.
struct Mounting<'a> {
    one: OneThread,
    ids: IdMap,
    identity: Identity,
    namespace: &'a OwnedFd,
    maps: &'a mut Maps,
    attributes: MountAttrFlags,
}

/// On an overlay no setuid bit and no device node counts.
fn attributes(without: &Without) -> MountAttrFlags {
    let mut all = MountAttrFlags::empty();
    all.set(
        MountAttrFlags::MOUNT_ATTR_NOSUID,
        !without.has(Restriction::Nosuid),
    );
    all.set(
        MountAttrFlags::MOUNT_ATTR_NODEV,
        !without.has(Restriction::Nodev),
    );
    all
}

/// Mounts an overlay; or shows a host directory with mounts of its own below it, which an ordinary user's copy of
/// the mount namespace holds locked together, as it is, mounts and all.
fn mount_or_show(
    mounting: &mut Mounting<'_>,
    number: usize,
    overlay: &Overlay,
) -> Result<OwnedFd, Failure> {
    let mounted = mount_one(mounting, number, overlay);
    match (mounted, only_lower(overlay)) {
        (Err(failure), Some(lower))
            if failure.errno == libc::EINVAL && mounting.identity != Identity::Ranges =>
        {
            bind_read_only(&lower.path).at(
                Step::Overlay,
                format_args!("showing {}", overlay.at.display()),
            )
        }
        (mounted, _) => mounted,
    }
}

/// What alone is to be seen where it is shown without an overlay.
fn only_lower(overlay: &Overlay) -> Option<&Lower> {
    match (overlay.access, overlay.lowers.as_slice()) {
        (Access::ReadOnly, [lower]) => Some(lower),
        _ => None,
    }
}

/// Mounts an overlay, which shows all its lowers.
fn mount_one(
    mounting: &mut Mounting<'_>,
    number: usize,
    overlay: &Overlay,
) -> Result<OwnedFd, Failure> {
    if overlay.lowers.len() > MAX_LOWERS {
        let count = overlay.lowers.len();
        return Err(Failure::new(
            Step::Overlay,
            format!("{count} layers are more than {MAX_LOWERS}"),
        ));
    }
    attach_lowers(mounting, &overlay.lowers)?;
    create(mounting, number, overlay)
}

/// Attaches each lower below its number, on top of what the overlay before left there.
fn attach_lowers(mounting: &mut Mounting<'_>, lowers: &[Lower]) -> Result<(), Failure> {
    for (number, lower) in lowers.iter().enumerate() {
        let tree = open_lower(mounting, lower)?;
        let path = lower.path.display();
        attach(&tree, Path::new(&number.to_string()))
            .at(Step::Overlay, format_args!("attaching {path}"))?;
    }
    Ok(())
}

/// Opens a lower, through an idmapped mount where its files are another range's.
fn open_lower(mounting: &mut Mounting<'_>, lower: &Lower) -> Result<OwnedFd, Failure> {
    let path = lower.path.display();
    let tree = clone_tree(&lower.path).at(Step::Overlay, format_args!("opening {path}"))?;
    let mapped = mounting.identity == Identity::Ranges && lower.first_id != mounting.ids.first;
    let namespace = match (mapped, lower.first_id) {
        (false, _) => None,
        (true, 0) => Some(mounting.namespace.as_fd()),
        (true, first) => Some(mounting.maps.namespace(mounting.one, first, mounting.ids)?),
    };
    restrict(
        tree.as_fd(),
        &[Restrict::ReadOnly, Restrict::NoSuid, Restrict::NoDev],
        Scope::This,
        namespace,
    )
    .at(
        Step::Overlay,
        format_args!("idmapping {path} (its filesystem must support idmapped mounts)"),
    )?;
    Ok(tree)
}

fn create(mounting: &Mounting<'_>, number: usize, overlay: &Overlay) -> Result<OwnedFd, Failure> {
    let attempt = format!("mounting the overlay for {}", overlay.at.display());
    let mut lowers: Vec<String> = (0..overlay.lowers.len())
        .map(|lower| lower.to_string())
        .collect();
    let mut options = vec![
        ("metacopy", "off".to_owned()),
        ("index", "off".to_owned()),
        ("xino", "off".to_owned()),
    ];
    match overlay.access {
        Access::Writable => {
            options.push(("upperdir", format!("{UPPERS}/upper/{number}")));
            options.push(("workdir", format!("{UPPERS}/work/{number}")));
        }
        // Without an upper the kernel wants two lowers.
        Access::ReadOnly => lowers.push(EMPTY.to_owned()),
    }
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).at(Step::Overlay, &attempt)?;
    let filled = (|| {
        fsconfig_set_string(&context, "source", "derrick")?;
        fsconfig_set_string(&context, "lowerdir", lowers.join(":"))?;
        for (name, value) in &options {
            fsconfig_set_string(&context, *name, value.as_str())?;
        }
        if overlay.access == Access::Writable {
            // Without it the end of a sandbox waits until everything that anybody wrote to the upper's
            // filesystem is on disk (ovl_sync_fs), and so does every fsync(2) inside. What has to
            // survive a power failure is synced when it becomes a layer.
            fsconfig_set_flag(&context, "volatile")?;
        }
        if mounting.identity == Identity::Ranges {
            // Renaming a directory that comes from a layer works; the record is a trusted attribute.
            fsconfig_set_string(&context, "redirect_dir", "on")?;
        } else {
            fsconfig_set_flag(&context, "userxattr")?;
        }
        fsconfig_create(&context)
    })();
    filled.at(Step::Overlay, format_args!("{attempt}{}", Said(&context)))?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, mounting.attributes)
        .at(Step::Overlay, &attempt)?;
    // The kernel falls back to read-only where it cannot use the upper, and says so nowhere else.
    let status = rustix::fs::fstatvfs(&mount).at(Step::Overlay, &attempt)?;
    let read_only = status
        .f_flag
        .contains(rustix::fs::StatVfsMountFlags::RDONLY);
    match overlay.access {
        Access::Writable if read_only && (status.f_bavail == 0 || status.f_favail == 0) => {
            Err(rustix::io::Errno::NOSPC).at(Step::Overlay, &attempt)
        }
        Access::Writable if read_only => Err(Failure::new(
            Step::Overlay,
            format!(
                "{attempt}: the kernel mounted it read-only; the filesystem of the state directory cannot \
                 hold an overlay's upper"
            ),
        )),
        _ => Ok(mount),
    }
}

/// What the kernel wrote about a filesystem to its context, fsopen(2); printed behind what was attempted.
struct Said<'a>(&'a OwnedFd);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 256];
        match rustix::io::read(self.0, &mut text) {
            Ok(length @ 1..) => write!(f, ": {}", String::from_utf8_lossy(&text[..length]).trim()),
            _ => Ok(()),
        }
    }
}

fn bind_read_only(path: &Path) -> std::io::Result<OwnedFd> {
    let tree = open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE,
    )?;
    restrict(
        tree.as_fd(),
        &[Restrict::ReadOnly, Restrict::NoSuid, Restrict::NoDev],
        Scope::Recursive,
        None,
    )?;
    Ok(tree)
}

/// A filesystem of its own, attached nowhere yet.
///
/// # Errors
/// Those of fsopen(2), fsconfig(2) and fsmount(2).
pub fn new_filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> std::io::Result<OwnedFd> {
    let filesystem = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        fsconfig_set_string(&filesystem, *name, *value)?;
    }
    fsconfig_create(&filesystem)?;
    Ok(fsmount(
        &filesystem,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// A copy of the mount at `path`, or of the part below it, attached nowhere yet.
///
/// # Errors
/// Those of open_tree(2).
pub fn clone_tree(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, path, flags)?)
}

/// Attaches `mount` at `path`, which is the caller's own and holds no links of a workspace.
///
/// # Errors
/// Those of move_mount(2).
pub fn attach(mount: &OwnedFd, path: &Path) -> std::io::Result<()> {
    move_mount(
        mount,
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Attaches `root` at the scratch filesystem's place for it, in the caller's own mount namespace,
/// makes it the caller's root and leaves the host's behind.
///
/// # Errors
/// The failed step.
pub fn enter(root: &OwnedFd) -> Result<(), Failure> {
    let step = Step::Pivot;
    // A copy of the caller's working directory came along into this mount namespace.
    attach(root, Path::new(NEW_ROOT)).at(step, "attaching the new root")?;
    let new_root = rustix::fs::open(
        NEW_ROOT,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(step, "opening the new root")?;
    fchdir(&new_root).at(step, "entering the new root")?;
    // The old root ends up on top of the new one, from where it is detached: no directory is needed for it.
    rustix::process::pivot_root(".", ".").at(step, "changing the root")?;
    unmount(".", UnmountFlags::DETACH).at(step, "detaching the host's root")?;
    chdir("/").at(step, "entering the root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown_alone_that_others_lie_on_or_below() {
        let overlay = |access, lowers: &[&str]| Overlay {
            at: "usr".into(),
            lowers: lowers
                .iter()
                .map(|path| Lower {
                    path: path.into(),
                    first_id: 0,
                })
                .collect(),
            access,
        };
        let alone = |overlay: &Overlay| only_lower(overlay).map(|lower| lower.path.clone());
        let one = overlay(Access::ReadOnly, &["/usr"]);
        assert_eq!(alone(&one), Some("/usr".into()));
        let two = overlay(Access::ReadOnly, &["/layer", "/usr"]);
        assert_eq!(alone(&two), None);
        let written = overlay(Access::Writable, &["/usr"]);
        assert_eq!(alone(&written), None);
    }
}
