//! The process that creates sandboxes and removes their files: derrick, executed once more at start.
//!
//! The provider has threads and secrets; this process has neither, so it may fork and what it forks
//! holds nothing that is worth stealing. Single-threaded: it does its own part of each sandbox's birth at
//! once and attends the next one while a child is about its part. It ends when the provider's end of
//! its socket closes.

mod bounds;
pub mod changes;
mod copying;
mod exporting;
mod merging;
pub mod protocol;
mod removal;
mod removers;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open};
use rustix::thread::UnshareFlags;

use crate::init;
use crate::init::protocol::{Birth, Go};
use crate::sandbox::cgroups::{self, Group};
use crate::sandbox::identity::{self, Identity};
use crate::sandbox::overlay::{self, Scratch};
use crate::sandbox::seccomp::Filters;
use crate::sandbox::{
    At, Failure, Merge, Profile, Restriction, SandboxSpec, Step, Storage, limits, namespaces,
    reader,
};
use crate::sys::channel::{Channel, Peer, Received};
use crate::sys::events::Events;
use crate::sys::process::{
    Child, OneThread, Standard, become_standard, close_all_except, fork_child, id_behind,
    take_standard_input, unshare,
};
use changes::protocol::Inquiry;
use copying::{DIRECTORY, Places};
use protocol::{Export, Hello, Reply, Request, RequestId};
use removers::Removers;

/// The name under which derrick executes itself to become the spawner.
pub const NAME: &str = "derrick-spawner";

/// Serves the provider at the other end of descriptor 0; the exit code. The working directory is an
/// empty directory of the provider's.
#[must_use]
pub fn main() -> i32 {
    let Some(socket) = take_standard_input() else {
        return 1;
    };
    let provider = Channel::from_socket(socket, Peer::Trusted);
    match Spawner::start() {
        Ok(mut spawner) => {
            let hello = Hello::Ready(spawner.identity);
            if provider.send(&hello, &[]).is_err() {
                return 0;
            }
            let code = spawner.serve(&provider);
            spawner.end_everything();
            code
        }
        Err(failure) => {
            // The provider says it; if it is gone, nobody asks.
            let _ = provider.send(&Hello::Failed(failure), &[]);
            1
        }
    }
}

/// How much less a copy gets of the processors than others do, nice(2).
const NICE: i32 = 5;

struct Spawner {
    one: OneThread,
    identity: Identity,
    scratch: Scratch,
    /// Of each profile.
    standard: Filters,
    nested: Filters,
    /// Sandboxes on their way.
    births: Vec<Attended>,
    removers: Removers,
    /// Copies, merges, archives and lists of changes under way, by the child that does each.
    children: HashMap<i32, (RequestId, Child)>,
    /// The living inits, by process id.
    inits: HashMap<i32, Living>,
    /// The provider's own control groups, in which those of its sandboxes are; it removes these while
    /// it lives.
    group_parents: BTreeSet<PathBuf>,
}

/// A sandbox that was made, or is on its way.
struct Living {
    /// A pidfd of init.
    init: OwnedFd,
    /// The lock on its ids: its last process is gone when init is reaped, which waits for all others,
    /// pid_namespaces(7).
    _ids: Option<OwnedFd>,
    /// What it writes to, once that is mounted, where it is no directory of the provider's and so is found nowhere
    /// else.
    written: Option<OwnedFd>,
}

/// A sandbox on its way.
struct Attended {
    id: RequestId,
    /// Its init, until that is reaped.
    init: Option<Child>,
    channel: Channel,
    provider_end: OwnedFd,
}

impl Spawner {
    fn start() -> Result<Self, Failure> {
        let one = OneThread::check().at(Step::Process, "counting the spawner's threads")?;
        let _ = rustix::thread::set_name(c"derrick-spawner");
        let identity = identity::become_root(one)?;
        unshare(one, UnshareFlags::NEWNS)
            .at(Step::Namespaces, "creating the spawner's mount namespace")?;
        Ok(Self {
            one,
            identity,
            scratch: Scratch::enter()?,
            standard: Filters::compile(Profile::Standard)?,
            nested: Filters::compile(Profile::Nested)?,
            births: Vec::new(),
            removers: Removers::default(),
            children: HashMap::new(),
            inits: HashMap::new(),
            group_parents: BTreeSet::new(),
        })
    }

    /// Serves until the provider is gone.
    fn serve(&mut self, provider: &Channel) -> i32 {
        let Ok(events) = Events::watch() else {
            return 1;
        };
        loop {
            let births = self.births.iter().map(|birth| birth.channel.as_fd());
            let Ok(happened) = events.wait(provider, births.chain(self.removers.channels()), None)
            else {
                return 1;
            };
            let births = self.births.len();
            // From the last one on, so that the places of the others stay.
            for place in happened.others.into_iter().rev() {
                let heard = match place.checked_sub(births) {
                    Some(remover) => self.hear_remover(provider, remover),
                    None => self.attend(provider, place),
                };
                if heard.is_err() {
                    return 0;
                }
            }
            if happened.child_ended && self.reap(provider).is_err() {
                return 0;
            }
            if happened.message {
                match provider.receive::<Request>() {
                    Ok(Some(received)) => {
                        if self.answer(provider, received).is_err() {
                            return 0;
                        }
                    }
                    Ok(None) => return 0,
                    Err(_) => return 1,
                }
            }
        }
    }

    fn answer(&mut self, provider: &Channel, received: Received<Request>) -> io::Result<()> {
        let mut descriptors = received.descriptors.into_iter();
        // What takes long is answered when it is done.
        let (id, begun) = match received.message {
            Request::Create(id, spec) => (id, self.begin(id, &spec, descriptors.next())),
            Request::Enclose(id, group) => {
                let enclosed = self.enclose(&group, descriptors.next().as_ref());
                return provider.send(&Reply::to(id, enclosed), &[]);
            }
            // The provider itself may not signal a subordinate id's process; the spawner may.
            Request::End(id) => {
                let killed = descriptors.try_for_each(|init| {
                    match rustix::process::pidfd_send_signal(init, rustix::process::Signal::KILL) {
                        // One that is gone already needs no signal.
                        Err(Errno::SRCH) => Ok(()),
                        sent => sent.at(Step::Process, "killing a sandbox"),
                    }
                });
                return provider.send(&Reply::to(id, killed), &[]);
            }
            Request::Copy(id, from, into) => {
                let identity = self.identity;
                let copy = || Places::open(&from, &into)?.copy(identity);
                (id, self.begin_child(id, "copying a directory", &[], copy))
            }
            Request::CopyOut(id, into) => {
                let init = descriptors.next();
                (id, self.begin_copy_out(id, init.as_ref(), &into))
            }
            Request::Merge(id, merge) => (id, self.begin_merge(id, &merge)),
            Request::Tell(id, inquiry) => (id, self.begin_telling(id, &inquiry, descriptors)),
            Request::Export(id, export) => (id, self.begin_export(id, &export, descriptors)),
            Request::Remove(id, path) => (id, self.removers.remove(self.one, id, path)),
        };
        match begun {
            Ok(()) => Ok(()),
            Err(failure) => provider.send(&Reply::Failed(id, failure), &[]),
        }
    }

    fn hear_remover(&mut self, provider: &Channel, place: usize) -> io::Result<()> {
        let answers = self.removers.hear(self.one, place);
        answers.into_iter().try_for_each(|(id, removed)| {
            let reply = match removed {
                Ok(removed) => Reply::Removed(id, removed),
                Err(failure) => Reply::Failed(id, failure),
            };
            provider.send(&reply, &[])
        })
    }

    /// Has a child do what takes long, with nothing of the spawner's but the descriptors in `keep`. The request is
    /// answered when the child ends.
    fn begin_child(
        &mut self,
        id: RequestId,
        doing: &str,
        keep: &[BorrowedFd<'_>],
        work: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), Failure> {
        let child = fork_child(self.one, || {
            // Told apart from the spawner where processes are looked at. It is only a name.
            let _ = rustix::thread::set_name(c"derrick-reader");
            // What runs in sandboxes that nobody holds goes first.
            let _ = rustix::process::nice(NICE);
            match let_go_of_all_but(keep).and_then(|()| work()) {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            }
        });
        let child = child.at(Step::Process, format_args!("forking for {doing}"))?;
        self.children.insert(child.id(), (id, child));
        Ok(())
    }

    /// Has a child copy what a sandbox has written that is in no directory.
    fn begin_copy_out(
        &mut self,
        id: RequestId,
        init: Option<&OwnedFd>,
        into: &Path,
    ) -> Result<(), Failure> {
        let written = rustix::fs::openat(self.written(init)?, c".", DIRECTORY, Mode::empty());
        let written = written.at(Step::Upper, "opening what a sandbox wrote")?;
        let identity = self.identity;
        let copy = || Places::open_in(written.try_clone()?, c"upper".into(), into)?.copy(identity);
        self.begin_child(id, "copying what a sandbox wrote", &[written.as_fd()], copy)
    }

    /// What a sandbox has written that is in no directory of the provider's.
    fn written(&self, init: Option<&OwnedFd>) -> Result<&OwnedFd, Failure> {
        let step = Step::Upper;
        let init = init.ok_or_else(|| Failure::new(step, "no sandbox was named"))?;
        let pid = id_behind(init.as_fd()).at(step, "finding init's process id")?;
        let living = self.inits.get(&pid);
        let written = living.and_then(|living| living.written.as_ref());
        // A spawner before this one may have made it, and had it.
        written.ok_or_else(|| Failure::new(step, "what the sandbox wrote is out of reach"))
    }

    /// Lets go of what a sandbox has written. The last one to do so waits until an image is written out and
    /// its device free: that is a child.
    fn release(&self, written: OwnedFd) {
        let Ok((waits, ends)) = io::pipe() else {
            return;
        };
        // Where there is none, the spawner is the last one.
        let _ = fork_child(self.one, || {
            let _ = let_go_of_all_but(&[written.as_fd(), waits.as_fd()]);
            // Until the spawner has let go.
            let _ = io::Read::read(&mut &waits, &mut [0]);
            0
        });
        drop(written);
        drop(ends);
    }

    /// Has a child merge layers, which are opened here, where their mounts are at home.
    fn begin_merge(&mut self, id: RequestId, merge: &Merge) -> Result<(), Failure> {
        let identity = self.identity;
        let opened = overlay::open_chains(self.one, &mut self.scratch, merge, identity)?;
        let layers: Vec<_> = opened.iter().flat_map(|(_, chain)| chain.all()).collect();
        self.begin_child(id, "merging layers", &layers, || {
            merging::merge(&opened, &merge.into, identity)
        })
    }

    /// Has a child write what changed in a workspace to a file.
    fn begin_telling(
        &mut self,
        id: RequestId,
        inquiry: &Inquiry,
        mut descriptors: impl Iterator<Item = OwnedFd>,
    ) -> Result<(), Failure> {
        let step = Step::Upper;
        let spool = descriptors.next();
        let spool = spool.ok_or_else(|| Failure::new(step, "there is no file for the answer"))?;
        let (one, identity) = (self.one, self.identity);
        let mut opened = overlay::open_chains(one, &mut self.scratch, &inquiry.layers, identity)?;
        if inquiry.apart {
            let written = self.written(descriptors.next().as_ref())?;
            for (number, chain) in &mut opened {
                let upper = format!("upper/{number}");
                let upper = rustix::fs::openat(written, upper, DIRECTORY, Mode::empty());
                let upper = upper.at(step, "opening what a sandbox wrote")?;
                chain.layers.insert(0, upper);
            }
        }
        let layers: Vec<_> = opened.iter().flat_map(|(_, chain)| chain.all()).collect();
        let keep = [&layers[..], &[spool.as_fd()]].concat();
        self.begin_child(id, "telling what changed", &keep, || {
            hide_everything(one)?;
            changes::bound()?;
            reader::confine(identity, &layers, None)?;
            changes::answer(&opened, inquiry, identity, spool.try_clone()?.into())
        })
    }

    /// Has a child write layers as an archive.
    fn begin_export(
        &mut self,
        id: RequestId,
        export: &Export,
        mut descriptors: impl Iterator<Item = OwnedFd>,
    ) -> Result<(), Failure> {
        let (Some(tar), Some(report)) = (descriptors.next(), descriptors.next()) else {
            return Err(Failure::new(Step::Process, "an archive has no place to go"));
        };
        let (one, identity) = (self.one, self.identity);
        let opened = overlay::open_chains(one, &mut self.scratch, &export.layers, identity)?;
        let layers: Vec<_> = opened.iter().flat_map(|(_, chain)| chain.all()).collect();
        let keep = [&layers[..], &[tar.as_fd(), report.as_fd()]].concat();
        self.begin_child(id, "writing an archive", &keep, || {
            hide_everything(one)?;
            exporting::bound()?;
            reader::confine(identity, &layers, None)?;
            exporting::export(
                &opened,
                export,
                identity,
                tar.try_clone()?,
                report.try_clone()?,
            )
        })
    }

    /// Makes control groups, and moves all processes of a sandbox there.
    fn enclose(&mut self, group: &Group, init: Option<&OwnedFd>) -> Result<(), Failure> {
        let step = Step::Limits;
        let init = init.ok_or_else(|| Failure::new(step, "no sandbox was named"))?;
        let pid = id_behind(init.as_fd()).at(step, "finding init's process id")?;
        // One that ended and was reaped has no id any more, or a spawner before this one made it.
        if !self.inits.contains_key(&pid) {
            return Err(Failure::new(step, "the sandbox is gone"));
        }
        self.group_parents
            .extend(group.parents().map(Path::to_owned));
        group.make()?;
        group.enclose(pid)
    }

    /// Kills every sandbox and removal, and waits until they are gone. Inits end by themselves with
    /// the provider; one that was taken over would not.
    fn end_everything(&mut self) {
        // Whoever is on its way waits for a word that does not come.
        self.births.clear();
        for living in self.inits.values() {
            // One that is gone already needs no signal.
            let kill = rustix::process::Signal::KILL;
            let _ = rustix::process::pidfd_send_signal(&living.init, kill);
        }
        for remover in self.removers.processes() {
            remover.kill();
        }
        for (_, child) in self.children.values() {
            child.kill();
        }
        while !matches!(
            rustix::process::wait(WaitOptions::empty()),
            Err(Errno::CHILD)
        ) {}
        for parent in &self.group_parents {
            // What is left is removed by the next start.
            let _ = cgroups::remove_all(parent);
        }
    }

    /// Forks a sandbox's init, which is attended to from then on, and does the spawner's part of its birth.
    fn begin(
        &mut self,
        id: RequestId,
        spec: &SandboxSpec,
        ids: Option<OwnedFd>,
    ) -> Result<(), Failure> {
        if let Some(group) = &spec.group {
            self.group_parents
                .extend(group.parents().map(Path::to_owned));
            group.make()?;
        }
        let (provider_end, init_end) =
            Channel::pair(Peer::Untrusted).at(Step::Process, "making init's socket")?;
        let (channel, theirs) =
            Channel::pair(Peer::Untrusted).at(Step::Process, "making a socket for the birth")?;
        let filters = match spec.profile {
            Profile::Standard => &self.standard,
            Profile::Nested => &self.nested,
        };
        let one = self.one;
        let init = namespaces::fork_first(one, spec.ids, || {
            init::live(one, spec, filters, &theirs, &init_end)
        })?;
        // Only the child's copies stay, or its end would never show.
        drop((theirs, init_end));
        let done = self
            .keep(init, ids)
            .and_then(|()| self.map_and_mount(spec, init, &channel));
        match done {
            Ok(()) => {
                self.births.push(Attended {
                    id,
                    init: Some(init),
                    channel,
                    provider_end: provider_end.into_socket(),
                });
                Ok(())
            }
            Err(failure) => {
                init.kill();
                Err(failure)
            }
        }
    }

    /// Keeps what is needed until init is reaped.
    fn keep(&mut self, init: Child, ids: Option<OwnedFd>) -> Result<(), Failure> {
        let pidfd = Pid::from_raw(init.id())
            .ok_or(Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .at(Step::Process, "opening a pidfd of init")?;
        let living = Living {
            init: pidfd,
            _ids: ids,
            written: None,
        };
        self.inits.insert(init.id(), living);
        Ok(())
    }

    /// The spawner's part: maps, then overlays.
    fn map_and_mount(
        &mut self,
        spec: &SandboxSpec,
        init: Child,
        channel: &Channel,
    ) -> Result<(), Failure> {
        // Before it makes its own cgroup namespace, whose root the group is then.
        if let Some(group) = &spec.group {
            group.add(init)?;
        }
        // Its own ids may not write to that file.
        spec.without
            .unless_off(Restriction::OomScore, || limits::offer_to_oom_killer(init))?;
        identity::write_maps(init, 0, spec.ids)?;
        let namespace = identity::namespace_of(init)?;
        // It makes its other namespaces while the overlays are mounted here.
        tell(channel, &Go::Mapped, &[])?;
        let (overlays, written) =
            overlay::mount_all(self.one, &mut self.scratch, spec, self.identity, &namespace)?;
        if spec.writable.storage != Storage::Directory
            && let Some(living) = self.inits.get_mut(&init.id())
        {
            living.written = Some(written);
        }
        let descriptors: Vec<_> = overlays.iter().map(AsFd::as_fd).collect();
        tell(channel, &Go::Mounted, &descriptors)
    }

    /// Hears of the birth at this place among all whether its sandbox is there.
    fn attend(&mut self, provider: &Channel, place: usize) -> io::Result<()> {
        let birth = self.births.swap_remove(place);
        let born = hear(&birth.channel).and_then(|word| match word {
            Birth::Ready => Ok(()),
            Birth::Failed(failure) => Err(failure),
        });
        let living = birth.init.and_then(|init| self.inits.get(&init.id()));
        match (born, living) {
            (Ok(()), Some(living)) => provider.send(
                &Reply::Created(birth.id),
                &[birth.provider_end.as_fd(), living.init.as_fd()],
            ),
            (born, _) => {
                if let Some(init) = birth.init {
                    init.kill();
                }
                let failure = born.err().unwrap_or_else(died);
                provider.send(&Reply::Failed(birth.id, failure), &[])
            }
        }
    }

    /// Takes the end of every child: copies are reported.
    fn reap(&mut self, provider: &Channel) -> io::Result<()> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get();
                    if let Some(written) = self.inits.remove(&pid).and_then(|init| init.written) {
                        self.release(written);
                    }
                    self.removers.reaped(pid);
                    for birth in &mut self.births {
                        // Its id may be another's from here on.
                        birth.init = birth.init.filter(|init| init.id() != pid);
                    }
                    if let Some((id, _)) = self.children.remove(&pid) {
                        let copied = match status.exit_status() {
                            Some(0) => Ok(()),
                            errno => Err(Failure {
                                step: Step::Upper,
                                errno: errno.unwrap_or_else(|| {
                                    changes::errno_of_death(status.terminating_signal())
                                }),
                                detail: "reading what workspaces wrote".into(),
                            }),
                        };
                        provider.send(&Reply::to(id, copied), &[])?;
                    }
                }
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(_) => {}
            }
        }
    }
}

/// Has a child of the spawner's let go of everything that it has from it: the socket, which is descriptor 0,
/// so that its end shows when the spawner is gone; the lock, which is 1, so that it does not outlive the last
/// sandbox; and all that is not in `keep`.
fn let_go_of_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    become_standard(null.as_fd(), Standard::Input)?;
    become_standard(null.as_fd(), Standard::Output)?;
    drop(null);
    close_all_except(keep)
}

/// Has a child of the spawner's no network and an empty filesystem as its root: it has what it holds open.
fn hide_everything(one: OneThread) -> io::Result<()> {
    unshare(
        one,
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC,
    )?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let nothing = overlay::new_filesystem("tmpfs", &[("size", "4k")], attributes)?;
    Ok(overlay::enter(&nothing)?)
}

/// Sends init its next word. One that is not there to take it has said why, and that is the cause.
fn tell(birth: &Channel, word: &Go, descriptors: &[BorrowedFd<'_>]) -> Result<(), Failure> {
    let Err(error) = birth.send(word, descriptors) else {
        return Ok(());
    };
    // After any other error it may be waiting for that word.
    let is_gone = matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET));
    if is_gone && let Birth::Failed(cause) = hear(birth)? {
        return Err(cause);
    }
    Err(error).at(Step::Process, "telling a sandbox's init to go on")
}

fn hear(birth: &Channel) -> Result<Birth, Failure> {
    birth
        .receive()
        .at(Step::Process, "hearing from a sandbox's init")?
        .map(|received| received.message)
        .ok_or_else(died)
}

fn died() -> Failure {
    Failure::new(Step::Process, "a sandbox's init died on its way")
}
