//! A child of the spawner's at work on what a workspace wrote, which may be made to break it: it has what it holds
//! open, and no other way to anything.
//!
//! It keeps its user, who may own files of the host's, so landlock has it read below its own directories alone, and
//! write, if it makes a copy, below one. It knows no owners, modes and attributes, so who copies could change those by
//! a path. The filter of system calls holds also where the kernel has no landlock. Who only reads has an empty root
//! besides, a network of its own, and mounts that are read-only, but for that of a workspace's own files where they
//! are in memory or on an image.

use std::os::fd::BorrowedFd;

use caps::Capability;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};

use super::identity::Identity;
use super::seccomp::{Filters, Work};
use super::{At, Failure, Step, capabilities};

/// Binds the calling thread, and so a process of one, for good. Below the directories `readable` it may read, and
/// below `copies`, if it makes some, change what is there. It may go on with what is open.
///
/// # Errors
/// The failed step. That landlock is missing is none.
pub fn confine(
    identity: Identity,
    readable: &[BorrowedFd<'_>],
    copies: Option<BorrowedFd<'_>>,
) -> Result<(), Failure> {
    let work = match copies {
        None => Work::Reading,
        Some(_) => Work::Copying,
    };
    capabilities::drop_all_but(&kept(identity, work))?;
    rustix::thread::set_no_new_privs(true).at(Step::Capabilities, "setting no_new_privs")?;
    restrict_files(readable, copies)
        .map_err(|error| Failure::new(Step::Landlock, format!("landlock: {error}")))?;
    let filters = Filters::of_work(work, std::process::id())?;
    filters.install_ahead()?;
    filters.install().map(drop)
}

/// What the work takes: files have owners and modes of the workspace's, which a copy has as well.
fn kept(identity: Identity, work: Work) -> Vec<Capability> {
    let mut kept = vec![Capability::CAP_DAC_READ_SEARCH];
    if work == Work::Copying {
        kept.extend([
            Capability::CAP_CHOWN,
            Capability::CAP_DAC_OVERRIDE,
            Capability::CAP_FOWNER,
            Capability::CAP_FSETID,
            Capability::CAP_SETFCAP,
        ]);
    }
    // The marks of an overlay are `trusted.*` attributes there, of which the kernel tells the host's administrator
    // alone, xattr(7). All else that this is good for takes system calls that are refused.
    if identity == Identity::Ranges {
        kept.push(Capability::CAP_SYS_ADMIN);
    }
    kept
}

fn restrict_files(
    readable: &[BorrowedFd<'_>],
    copies: Option<BorrowedFd<'_>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let all = AccessFs::from_all(ABI::V5);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Whiteouts are character devices.
    let change = all & !(AccessFs::Execute | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    for directory in readable {
        ruleset = ruleset.add_rule(PathBeneath::new(directory, read))?;
    }
    if let Some(copies) = copies {
        ruleset = ruleset.add_rule(PathBeneath::new(copies, change))?;
    }
    ruleset.restrict_self()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::io::{self, Read, Write};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;

    use caps::{CapSet, CapsHashSet};
    use rustix::fs::{
        AtFlags, Dir, MemfdFlags, Mode, OFlags, chmodat, memfd_create, mkdirat, openat, readlinkat,
        statat, unlinkat,
    };
    use rustix::io::Errno;
    use rustix::process::{
        Pid, PidfdFlags, Resource, getrlimit, pidfd_open, setrlimit, test_kill_process,
    };

    use super::*;

    /// What somebody tries who has broken it, on the directory that it reads.
    type Attempt = (&'static str, Box<dyn Fn(&OwnedFd) -> io::Result<()> + Send>);

    fn attempts(scratch: &Path) -> Vec<Attempt> {
        let secret = scratch.join("secret");
        let limit = getrlimit(Resource::Nofile);
        let open = |flags: OFlags, name: &'static str| {
            move |held: &OwnedFd| {
                let mode = Mode::RUSR | Mode::WUSR;
                done(openat(held, name, flags | OFlags::CLOEXEC, mode))
            }
        };
        vec![
            (
                "reading a file of the host's",
                Box::new(move |_| done(File::open(&secret))),
            ),
            (
                "reading what is above",
                Box::new(open(OFlags::RDONLY, "../secret")),
            ),
            (
                "listing what is above",
                Box::new(open(OFlags::RDONLY | OFlags::DIRECTORY, "..")),
            ),
            (
                "writing to what is read",
                Box::new(open(OFlags::WRONLY, "file")),
            ),
            (
                "cutting what is read short",
                Box::new(open(OFlags::RDONLY | OFlags::TRUNC, "other")),
            ),
            (
                "making a file",
                Box::new(open(OFlags::WRONLY | OFlags::CREATE, "new")),
            ),
            (
                "making a directory",
                Box::new(|held| done(mkdirat(held, "made", Mode::RWXU))),
            ),
            (
                "removing a file",
                Box::new(|held| done(unlinkat(held, "removed", AtFlags::empty()))),
            ),
            (
                "changing a mode",
                Box::new(|held| done(chmodat(held, "file", Mode::RWXU, AtFlags::empty()))),
            ),
            (
                "a socket of the network",
                Box::new(|_| done(std::net::UdpSocket::bind("127.0.0.1:0"))),
            ),
            (
                "a pair of sockets",
                Box::new(|_| done(UnixDatagram::pair())),
            ),
            (
                "a thread",
                Box::new(|_| {
                    let thread = std::thread::Builder::new().spawn(|| ())?;
                    thread.join().map_err(|_| io::Error::other("it panicked"))
                }),
            ),
            (
                "a program",
                Box::new(|_| done(std::process::Command::new("true").status())),
            ),
            ("a signal", Box::new(|_| done(test_kill_process(own())))),
            (
                "a handle of a process",
                Box::new(|_| done(pidfd_open(own(), PidfdFlags::empty()))),
            ),
            (
                "a file in memory",
                Box::new(|_| done(memfd_create("new", MemfdFlags::CLOEXEC))),
            ),
            (
                "another limit",
                Box::new(move |_| done(setrlimit(Resource::Nofile, limit))),
            ),
        ]
    }

    fn done<T, E: Into<io::Error>>(result: Result<T, E>) -> io::Result<()> {
        result.map(drop).map_err(Into::into)
    }

    fn own() -> Pid {
        rustix::process::getpid()
    }

    #[test]
    fn who_reads_what_a_workspace_wrote_reaches_what_it_holds_and_nothing_else() {
        is_confined_to(Work::Reading);
    }

    #[test]
    fn who_copies_what_a_workspace_wrote_reaches_what_it_holds_and_nothing_else() {
        is_confined_to(Work::Copying);
    }

    fn is_confined_to(work: Work) {
        let is_root = rustix::process::geteuid().is_root();
        let scratch = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| scratch.path().join(name);
        for name in ["held/below", "copies"] {
            fs::create_dir_all(at(name)).expect("a directory");
        }
        let files = ["secret", "held/file", "held/other", "held/removed"];
        for name in files.iter().chain(&["held/below/file"]) {
            fs::write(at(name), "content").expect("a file");
        }
        std::os::unix::fs::symlink("../secret", at("held/link")).expect("a link");
        // Of whichever owner and mode, where derrick is root.
        if is_root {
            for name in ["held/below/file", "held/below"] {
                fs::set_permissions(at(name), Permissions::from_mode(0o0)).expect("chmod");
                std::os::unix::fs::chown(at(name), Some(12_345), Some(12_345)).expect("chown");
            }
        }
        let identity = match is_root {
            true => Identity::Ranges,
            false => Identity::Single,
        };
        let held = OwnedFd::from(File::open(at("held")).expect("a directory"));
        let copies = OwnedFd::from(File::open(at("copies")).expect("a directory"));
        let mut answer = File::create(at("answer")).expect("a file");
        let mut all = attempts(scratch.path());
        // A mode is that of a copy there, and landlock knows none.
        all.retain(|(what, _)| work == Work::Reading || *what != "changing a mode");
        for (what, attempt) in &all {
            attempt(&held).unwrap_or_else(|error| panic!("{what}, free: {error}"));
        }
        for name in ["held/other", "held/removed"] {
            fs::write(at(name), "content").expect("a file");
        }
        fs::remove_dir(at("held/made")).expect("it was made");
        fs::remove_file(at("held/new")).expect("it was made");

        // What binds a process binds a thread, if it is all that runs there. What fails in it is said outside.
        let bound = std::thread::spawn(move || {
            let into = (work == Work::Copying).then(|| copies.as_fd());
            confine(identity, &[held.as_fd()], into)?;
            let came = all.iter().map(|(what, attempt)| {
                let error = attempt(&held).err();
                (*what, error.and_then(|error| error.raw_os_error()))
            });
            let came: Vec<_> = came.collect();
            let mut its_own = || -> io::Result<_> {
                let below = openat(&held, "below", OFlags::RDONLY, Mode::empty())?;
                statat(&below, "file", AtFlags::SYMLINK_NOFOLLOW)?;
                readlinkat(&held, "link", Vec::new())?;
                Dir::read_from(&held)?.try_for_each(|entry| entry.map(drop))?;
                let file = openat(&below, "file", OFlags::RDONLY, Mode::empty())?;
                let mut content = String::new();
                File::from(file).read_to_string(&mut content)?;
                answer.write_all(content.as_bytes())?;
                let flags = OFlags::WRONLY | OFlags::CREATE;
                let copy = openat(&copies, "copy", flags, Mode::RUSR);
                Ok((content, copy.map(drop)))
            };
            let its_own = its_own();
            let held = caps::read(None, CapSet::Permitted).map_err(io::Error::other);
            Ok::<_, Failure>((came, its_own, held))
        });
        let (came, its_own, held) = bound.join().expect("it ends").expect("it is bound");
        for (what, errno) in came {
            let refused = matches!(errno, Some(libc::EACCES | libc::EPERM));
            assert!(refused, "{what}: {errno:?}");
        }
        let expected = match work {
            Work::Reading => Err(Errno::ACCESS),
            Work::Copying => Ok(()),
        };
        let its_own = its_own.expect("its work is done");
        assert_eq!(its_own, ("content".to_owned(), expected));
        // To look at them is refused as well.
        assert!(held.is_err(), "{held:?}");
        for name in files.iter().chain(&["answer"]) {
            let left = fs::read_to_string(at(name));
            assert_eq!(left.expect("it is there"), "content", "{name}");
        }
    }

    #[test]
    fn of_capabilities_those_are_kept_that_the_work_takes() {
        let held = || caps::read(None, CapSet::Permitted).expect("they are told");
        let before = held();
        let every = [Identity::Ranges, Identity::Subordinate, Identity::Single];
        let each =
            every.map(|identity| [Work::Reading, Work::Copying].map(|work| (identity, work)));
        for (identity, work) in each.into_iter().flatten() {
            let kept = kept(identity, work);
            let expected: CapsHashSet = kept.iter().copied().collect();
            let after = std::thread::spawn(move || {
                capabilities::drop_all_but(&kept).expect("they are dropped");
                [CapSet::Permitted, CapSet::Effective, CapSet::Inheritable]
                    .map(|set| caps::read(None, set).expect("they are told"))
            });
            let [permitted, effective, inheritable] = after.join().expect("it ends");
            assert_eq!(permitted, &expected & &before, "{identity:?}");
            assert_eq!(effective, permitted, "{identity:?}");
            assert!(inheritable.is_empty(), "{identity:?}");
        }
    }
}
