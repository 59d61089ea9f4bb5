//! What a sandbox sees besides its overlays: `/proc`, `/sys`, `/dev`, and what covers parts of them.
//!
//! All filesystems are made before the host's root is left, as descriptors; they are attached after
//! it, each at a directory that is opened without following any link, so that a base with a
//! symbolic link for `/dev` redirects nothing. A new root without what it needs is refused.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, MoveMountFlags, mount_bind, mount_change, move_mount,
};

use super::overlay::{clone_tree, enter, new_filesystem};
use super::{At, Failure, MemoryFiles, Network, Profile, Restriction, SandboxSpec, Step};
use crate::sys::mount::{Restrict, Scope, restrict};

/// Device nodes that a sandbox has, with their major and minor numbers.
const DEVICES: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links in `/dev` that programs expect.
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Parts of `/proc` that nothing inside may write to.
const READ_ONLY: &[&str] = &[
    "/proc/sys",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sysrq-trigger",
];

/// Parts of `/proc` and `/sys` that tell of the host, or reach it.
const HIDDEN: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/cmdline",
    "/proc/diskstats",
    "/proc/fs/ext4",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/bpf",
    "/sys/fs/cgroup",
    "/sys/fs/ext4",
    "/sys/fs/fuse",
    "/sys/fs/pstore",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
    "/sys/module",
];

/// Files that fit into the smallest filesystem in memory.
const LEAST_INODES: u64 = 64;

/// The filesystems of one sandbox, made and not yet attached.
struct Prepared {
    proc: OwnedFd,
    sys: OwnedFd,
    dev: OwnedFd,
    pts: OwnedFd,
    shm: OwnedFd,
    tmp: Option<OwnedFd>,
    mqueue: OwnedFd,
    devices: Vec<OwnedFd>,
    resolver: Option<OwnedFd>,
}

/// Makes the overlays of `spec` the calling process's whole world; it is PID 1 of new namespaces of
/// every kind. `overlays` waits for them, in the order of the spec.
///
/// # Errors
/// The failed step.
pub fn assemble(
    spec: &SandboxSpec,
    overlays: impl FnOnce() -> Result<Vec<OwnedFd>, Failure>,
) -> Result<(), Failure> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .at(Step::Mounts, "making mounts private")?;
    // Needs the host's /proc and /dev in view: the kernel gives a new procfs only to who sees a whole one.
    let prepared = prepare(spec)?;
    let overlays = overlays()?;
    let (Some(root), true) = (overlays.first(), overlays.len() == spec.overlays.len()) else {
        return Err(Failure::new(Step::Overlay, "an overlay is missing"));
    };
    enter(root)?;
    for (mount, overlay) in overlays.iter().zip(&spec.overlays).skip(1) {
        attach_inside(mount, &overlay.at)?;
    }
    attach_all(&prepared)?;
    // The last moment that /proc/sys can be written to.
    spec.without.unless_off(Restriction::UserNamespaces, || {
        forbid_namespaces(spec.profile)
    })?;
    spec.without
        .unless_off(Restriction::ReadOnlyPaths, protect)?;
    spec.without.unless_off(Restriction::HiddenPaths, hide)
}

fn prepare(spec: &SandboxSpec) -> Result<Prepared, Failure> {
    let nothing_special = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let make = |kind: &str, options: &[(&str, &str)], attributes| {
        new_filesystem(kind, options, attributes).at(Step::Mounts, format_args!("making {kind}"))
    };
    let sys_attributes = nothing_special | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mut pts_options = vec![("ptmxmode", "0666"), ("mode", "0620"), ("max", "1024")];
    // The group `tty`, where the sandbox has more than one id.
    if spec.ids.count > 5 {
        pts_options.push(("gid", "5"));
    }
    let of_everyone = |size: Option<u64>| {
        let sizes = size.map(sizes).unwrap_or_default();
        let mut options = vec![("mode", "1777")];
        options.extend(sizes.iter().map(|(name, value)| (*name, value.as_str())));
        make(
            "tmpfs",
            &options,
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
        )
    };
    let MemoryFiles { shm, tmp } = spec.memory_files;
    Ok(Prepared {
        proc: make("proc", &[], nothing_special)?,
        sys: match spec.network {
            Network::None => make("sysfs", &[], sys_attributes)?,
            // A sysfs shows the network namespace that it was made in: only the owner of that makes one.
            Network::Host => make("tmpfs", &[("mode", "0555"), ("size", "4k")], sys_attributes)?,
        },
        dev: make(
            "tmpfs",
            &[("mode", "0755"), ("size", "1m"), ("nr_inodes", "256")],
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )?,
        pts: make(
            "devpts",
            &pts_options,
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )?,
        shm: of_everyone(shm)?,
        tmp: tmp.map(|size| of_everyone(Some(size))).transpose()?,
        mqueue: make("mqueue", &[], nothing_special)?,
        devices: DEVICES.iter().map(open_device).collect::<Result<_, _>>()?,
        resolver: match spec.network {
            Network::None => None,
            Network::Host => open_resolver()?,
        },
    })
}

/// The options of a tmpfs of `size` bytes, tmpfs(5): an inode for each page that it may have, since one
/// takes memory that is not counted as content.
fn sizes(size: u64) -> Vec<(&'static str, String)> {
    let inodes = (size / 4096).max(LEAST_INODES);
    vec![
        ("size", size.to_string()),
        ("nr_inodes", inodes.to_string()),
    ]
}

/// The host's own device node, checked to be that device.
fn open_device(&(name, major, minor): &(&str, u32, u32)) -> Result<OwnedFd, Failure> {
    let path = Path::new("/dev").join(name);
    let attempt = format!("opening the host's /dev/{name}");
    let node = clone_tree(&path).at(Step::Mounts, &attempt)?;
    let status = rustix::fs::fstat(&node).at(Step::Mounts, &attempt)?;
    let is_device = FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
        && status.st_rdev == rustix::fs::makedev(major, minor);
    if is_device {
        Ok(node)
    } else {
        Err(Failure::new(
            Step::Mounts,
            format!("{attempt}: it is not device {major}:{minor}"),
        ))
    }
}

/// The host's name resolver settings, for a sandbox that shares its network; read-only.
fn open_resolver() -> Result<Option<OwnedFd>, Failure> {
    let attempt = "opening the host's /etc/resolv.conf";
    match clone_tree(Path::new("/etc/resolv.conf")) {
        Ok(file) => {
            let restrictions = [Restrict::ReadOnly, Restrict::NoSuid, Restrict::NoDev];
            restrict(file.as_fd(), &restrictions, Scope::This, None).at(Step::Mounts, attempt)?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at(Step::Mounts, attempt),
    }
}

fn attach_all(prepared: &Prepared) -> Result<(), Failure> {
    attach_inside(&prepared.proc, Path::new("/proc"))?;
    attach_inside(&prepared.sys, Path::new("/sys"))?;
    attach_inside(&prepared.dev, Path::new("/dev"))?;
    attach_inside(&prepared.pts, Path::new("/dev/pts"))?;
    attach_inside(&prepared.shm, Path::new("/dev/shm"))?;
    attach_inside(&prepared.mqueue, Path::new("/dev/mqueue"))?;
    if let Some(tmp) = &prepared.tmp {
        attach_inside(tmp, Path::new("/tmp"))?;
    }
    for ((name, ..), device) in DEVICES.iter().zip(&prepared.devices) {
        attach_file(device, &Path::new("/dev").join(name))?;
    }
    for (target, link) in DEVICE_LINKS {
        rustix::fs::symlink(*target, *link).at(Step::Mounts, format_args!("linking {link}"))?;
    }
    if let Some(resolver) = &prepared.resolver {
        // A workspace that made something else of it goes without: nothing is confined by this.
        let _ = attach_file(resolver, Path::new("/etc/resolv.conf"));
    }
    Ok(())
}

/// Attaches `mount` at the directory `path`, made if it is missing; links are refused.
fn attach_inside(mount: &OwnedFd, path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let target = open_target(path, OFlags::DIRECTORY)
        .or_else(|errno| match errno {
            Errno::NOENT => rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))
                .and_then(|()| open_target(path, OFlags::DIRECTORY)),
            other => Err(other),
        })
        .at(
            Step::Mounts,
            format_args!("opening {shown} of the base, which must be a directory and no link"),
        )?;
    attach_at(mount, &target).at(Step::Mounts, format_args!("mounting {shown}"))
}

/// Attaches `mount` over the file `path`, made if it is missing; a link of that name is replaced.
fn attach_file(mount: &OwnedFd, path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let make = || {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat2(
            CWD,
            path,
            flags,
            Mode::from_raw_mode(0o644),
            ResolveFlags::NO_SYMLINKS,
        )
        .and_then(|_| open_target(path, OFlags::empty()))
    };
    let target = open_target(path, OFlags::empty())
        .or_else(|errno| match errno {
            Errno::NOENT => make(),
            Errno::LOOP => rustix::fs::unlink(path).and_then(|()| make()),
            other => Err(other),
        })
        .at(Step::Mounts, format_args!("opening {shown} of the base"))?;
    attach_at(mount, &target).at(Step::Mounts, format_args!("mounting {shown}"))
}

fn open_target(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat2(
        CWD,
        path,
        flags | OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )
}

fn attach_at(mount: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    move_mount(
        mount,
        "",
        target,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// No process of this user namespace can ever make another one, whatever it may call.
///
/// Where they can be nested, none can make a control group namespace: with one it could mount the groups
/// that it is in, and where these are derrick's own, see those of others.
fn forbid_namespaces(profile: Profile) -> Result<(), Failure> {
    let limit = match profile {
        Profile::Standard => "max_user_namespaces",
        Profile::Nested => "max_cgroup_namespaces",
    };
    std::fs::write(Path::new("/proc/sys/user").join(limit), "0")
        .at(Step::Limits, format_args!("writing {limit} of the sandbox"))
}

fn protect() -> Result<(), Failure> {
    for path in READ_ONLY {
        let tree = match clone_tree(Path::new(path)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            cloned => cloned.at(Step::Mounts, format_args!("opening {path}"))?,
        };
        restrict(tree.as_fd(), &[Restrict::ReadOnly], Scope::This, None)
            .at(Step::Mounts, format_args!("making {path} read-only"))?;
        open_target(Path::new(path), OFlags::empty())
            .and_then(|target| attach_at(&tree, &target))
            .at(Step::Mounts, format_args!("covering {path}"))?;
    }
    Ok(())
}

/// By mount(2) and not by way of a descriptor: that takes five more calls, for thirty paths of the kernel's own,
/// of which none is a link.
fn hide() -> Result<(), Failure> {
    let mut covered_directory = None;
    for path in HIDDEN {
        let covered = match mount_bind("/dev/null", *path) {
            // Not there; a file does not cover a directory.
            Err(Errno::NOENT) => continue,
            Err(Errno::NOTDIR) => match covered_directory {
                // One filesystem for all, as each takes time to make and to end.
                Some(first) => mount_bind(first, *path).map_err(io::Error::from),
                None => {
                    covered_directory = Some(*path);
                    cover_directory(path)
                }
            },
            covered => covered.map_err(io::Error::from),
        };
        covered.at(Step::Mounts, format_args!("covering {path}"))?;
    }
    Ok(())
}

/// Attaches an empty directory there that nothing can be written to.
fn cover_directory(path: &str) -> io::Result<()> {
    let cover = new_filesystem(
        "tmpfs",
        &[("mode", "0555"), ("size", "4k")],
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    let target = open_target(Path::new(path), OFlags::empty())?;
    Ok(attach_at(&cover, &target)?)
}
