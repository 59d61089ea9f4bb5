//! Who a sandbox is: user namespaces and the maps of their ids, user_namespaces(7).
//!
//! The spawner of an ordinary user first moves into a user namespace of its own, in which it is
//! root over the ids that the host lends that user. From there on it does just what root's spawner
//! does: write the maps of each sandbox, mount overlays, remove what any inside id owns.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;

use rustix::thread::{Gid, Uid, UnshareFlags};
use serde::{Deserialize, Serialize};

use super::{At, Failure, IdMap, Step};
use crate::sys::process::{Child, OneThread, close_all_except, fork_child, fork_into, unshare};

/// Ids in one sandbox, where the host gives more than one.
pub const IDS_PER_SANDBOX: u32 = 65_536;
/// First id of the ranges that sandboxes of root get: above those of systemd-nspawn, below systemd's foreign ones.
pub const FIRST_RANGE: u32 = 0x7000_0000;
/// Ranges there are.
pub const RANGES: u32 = 0xffe;

/// How sandboxes get their ids on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// derrick is root: each sandbox has a range of 65,536 ids that no account uses.
    Ranges,
    /// derrick is an ordinary user with subordinate ids: 65,536 ids, shared by this user's sandboxes.
    Subordinate,
    /// derrick is an ordinary user without: root inside is the user, and there is no other id.
    Single,
}

impl Identity {
    /// The map of range `number`, or the one map there is.
    ///
    /// With subordinate ids, root inside is the first of them and not the user: what leaks out of a
    /// sandbox then still meets the permissions of a stranger.
    #[must_use]
    pub fn map(self, number: u32) -> IdMap {
        match self {
            Self::Ranges => IdMap {
                first: FIRST_RANGE + number * IDS_PER_SANDBOX,
                count: IDS_PER_SANDBOX,
            },
            Self::Subordinate => IdMap {
                first: 1,
                count: IDS_PER_SANDBOX,
            },
            Self::Single => IdMap { first: 0, count: 1 },
        }
    }

    /// Whether a file of these host ids has an owner in a sandbox, in which root is the user who runs
    /// derrick, if `owned_by_caller`, or else the first of the sandbox's ids.
    #[must_use]
    pub fn has_owner(self, uid: u32, gid: u32, owned_by_caller: bool) -> bool {
        let own = Own {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        match self {
            // A directory of the host's is shown with its ids as they are.
            Self::Ranges => uid < IDS_PER_SANDBOX && gid < IDS_PER_SANDBOX,
            Self::Single => (uid, gid) == (own.uid, own.gid),
            Self::Subordinate => subordinate_ids(own.uid).is_some_and(|lent| {
                let has = |id: u32, own: u32, first: u32| {
                    owned_by_caller && id == own || (first..first + IDS_PER_SANDBOX).contains(&id)
                };
                has(uid, own.uid, lent.uid) && has(gid, own.gid, lent.gid)
            }),
        }
    }

    /// Its name in what is kept of files: these fit sandboxes with the same.
    #[must_use]
    pub fn shape(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// What it gives, for people.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Ranges => "65,536 ids of each sandbox's own",
            Self::Subordinate => "65,536 subordinate ids, shared by this user's sandboxes",
            Self::Single => "one id, the user's own",
        }
    }

    /// What it lacks beside root's ranges, for people.
    #[must_use]
    pub fn weaker(self) -> Option<&'static str> {
        match self {
            Self::Ranges => None,
            Self::Subordinate => Some(
                "ids are shared by this user's sandboxes, and renaming a directory that comes from a layer gives EXDEV, \
                 since derrick does not run as root",
            ),
            Self::Single => Some(
                "root inside is the user who runs derrick and there is no other id: chown, other users and package \
                 managers do not work; subordinate ids give more, see 'derrick check'",
            ),
        }
    }
}

/// Subordinate ids that the host lends to the calling user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subordinate {
    uid: u32,
    gid: u32,
}

/// The ids of the user who runs derrick.
#[derive(Debug, Clone, Copy)]
struct Own {
    uid: u32,
    gid: u32,
}

/// Finds out what the host gives, and makes the calling process root over it.
///
/// # Errors
/// The failed step, where not even a user namespace with one id can be had.
pub fn become_root(one: OneThread) -> Result<Identity, Failure> {
    // Before any namespace: in one without maps every id reads as the overflow id.
    let own = Own {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    };
    if is_root_of_the_host() {
        return Ok(Identity::Ranges);
    }
    if let Some(subordinate) = subordinate_ids(own.uid)
        && enter_with_subordinate_ids(one, own, subordinate)?
    {
        return Ok(Identity::Subordinate);
    }
    enter_with_own_id(one, own)?;
    Ok(Identity::Single)
}

/// Whether the calling process is root, and that of the host and not of some user namespace.
#[must_use]
pub fn is_root_of_the_host() -> bool {
    let maps_every_id = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::getuid().is_root()
        && fs::read_to_string("/proc/self/uid_map").is_ok_and(maps_every_id)
}

/// The first run of at least 65,536 subordinate uids and gids of `uid`, subuid(5).
#[must_use]
pub fn subordinate_ids(uid: u32) -> Option<Subordinate> {
    let name = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
        .ok()
        .flatten()
        .map_or_else(String::new, |user| user.name);
    let of = |file| {
        let text = fs::read_to_string(file).ok()?;
        first_run(&text, uid, &name)
    };
    Some(Subordinate {
        uid: of("/etc/subuid")?,
        gid: of("/etc/subgid")?,
    })
}

fn first_run(text: &str, uid: u32, name: &str) -> Option<u32> {
    let uid = uid.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        let ours = owner == uid || (!name.is_empty() && owner == name);
        (ours && count >= IDS_PER_SANDBOX).then_some(first)
    })
}

/// Exit codes of the helper that asks the set-uid programs.
const REFUSED: i32 = 1;
const HALF_REFUSED: i32 = 2;

/// Moves the calling process into a user namespace with its own id as 0 and the subordinate ones
/// from 1 on; `false` if the set-uid helpers that the host's administrator must provide refuse.
fn enter_with_subordinate_ids(one: OneThread, own: Own, ids: Subordinate) -> Result<bool, Failure> {
    let (wait, go) = io::pipe().at(Step::Process, "making a pipe")?;
    let parent = std::process::id().to_string();
    // Forked before the namespace is left: the helpers must run in the one that lends the ids.
    let helper = fork_child(one, || {
        // So that the end of the spawner shows.
        if close_all_except(&[wait.as_fd()]).is_err()
            || io::Read::read_exact(&mut &wait, &mut [0]).is_err()
        {
            return REFUSED;
        }
        let map = |program: &str, user: u32, first: u32| {
            let count = IDS_PER_SANDBOX.to_string();
            Command::new(program)
                .args([&parent, "0", &user.to_string(), "1"])
                .args(["1", &first.to_string(), &count])
                .status()
                .is_ok_and(|status| status.success())
        };
        match (
            map("newuidmap", own.uid, ids.uid),
            map("newgidmap", own.gid, ids.gid),
        ) {
            (true, true) => 0,
            (false, false) => REFUSED,
            _ => HALF_REFUSED,
        }
    })
    .at(Step::Process, "forking the id map helper")?;
    if let Err(failure) = unshare_user(one) {
        helper.kill();
        helper
            .wait()
            .at(Step::Process, "waiting for the id map helper")?;
        return Err(failure);
    }
    (&go)
        .write_all(&[1])
        .at(Step::Process, "waking the id map helper")?;
    match helper
        .wait()
        .at(Step::Process, "waiting for the id map helper")?
    {
        0 => set_root().map(|()| true),
        HALF_REFUSED => Err(Failure::new(
            Step::UserNamespace,
            "only one of newuidmap and newgidmap did its work; /etc/subuid and /etc/subgid must both \
             have a range of this user's, see 'derrick check'",
        )),
        _ => Ok(false),
    }
}

fn enter_with_own_id(one: OneThread, own: Own) -> Result<(), Failure> {
    // After a refusal of the helpers this process is already in a namespace without maps.
    if fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !map.trim().is_empty()) {
        unshare_user(one)?;
    }
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).at(
            Step::UserNamespace,
            format_args!("writing {file}; see 'derrick check'"),
        )
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("0 {} 1", own.uid))?;
    write("gid_map", format!("0 {} 1", own.gid))?;
    set_root()
}

/// Does `body` as `map.first`, with all of root's capabilities, where that is an id of a range: what the user
/// namespace that it creates uses up, inotify instances for one, is then charged to that id and not to the
/// host's root.
///
/// # Errors
/// The failed step.
pub fn acting_as_range<T>(map: IdMap, body: impl FnOnce() -> T) -> Result<T, Failure> {
    if map.first < FIRST_RANGE {
        return Ok(body());
    }
    let step = Step::UserNamespace;
    let act_as = |user| rustix::thread::set_thread_res_uid(None, user, None);
    act_as(Uid::from_raw(map.first)).at(step, "acting as a range's first id")?;
    // Leaving id 0 emptied the effective set; the permitted one is as it was.
    let raised = caps::read(None, caps::CapSet::Permitted)
        .and_then(|all| caps::set(None, caps::CapSet::Effective, &all))
        .map_err(io::Error::other)
        .at(step, "keeping capabilities as a range's first id");
    let done = raised.map(|()| body());
    // With id 0 the effective set is as it was as well.
    act_as(Uid::ROOT).at(step, "acting as root again")?;
    done
}

/// What is attempted where a user namespace is made.
pub(super) const CREATING_USER: &str = "creating a user namespace; see 'derrick check'";

/// Leaves the calling process's user namespace for a new one without maps.
///
/// # Errors
/// The failed step.
pub fn unshare_user(one: OneThread) -> Result<(), Failure> {
    unshare(one, UnshareFlags::NEWUSER).at(Step::UserNamespace, CREATING_USER)
}

/// Makes the calling process root of its user namespace, with no other group.
///
/// # Errors
/// The failed step.
pub fn set_root() -> Result<(), Failure> {
    let step = Step::UserNamespace;
    // Where setgroups(2) is denied, with a single id, the groups of the user stay, unmapped.
    match rustix::thread::set_thread_groups(&[]) {
        Ok(()) | Err(rustix::io::Errno::PERM) => {}
        other => other.at(step, "leaving all groups")?,
    }
    let (group, user) = (Gid::ROOT, Uid::ROOT);
    rustix::thread::set_thread_res_gid(group, group, group).at(step, "becoming group 0")?;
    rustix::thread::set_thread_res_uid(user, user, user).at(step, "becoming user 0")
}

/// Writes the id maps of `child`, which is in a new user namespace.
///
/// # Errors
/// The failed step.
pub fn write_maps(child: Child, inside: u32, map: IdMap) -> Result<(), Failure> {
    let IdMap { first, count } = map;
    // The kernel wants each line within one line of the map above it: the spawner's own has the
    // user's id apart from the subordinate ones.
    let line = match (first, count) {
        (0, 2..) => format!("{inside} 0 1\n{} 1 {}", inside + 1, count - 1),
        _ => format!("{inside} {first} {count}"),
    };
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", child.id()), &line).at(
            Step::UserNamespace,
            format_args!("writing {file} of a sandbox"),
        )?;
    }
    Ok(())
}

/// The user namespace that `child` is in.
///
/// # Errors
/// The failed step.
pub fn namespace_of(child: Child) -> Result<OwnedFd, Failure> {
    fs::File::open(format!("/proc/{}/ns/user", child.id()))
        .map(OwnedFd::from)
        .at(
            Step::UserNamespace,
            "opening the user namespace of a sandbox",
        )
}

/// User namespaces with no process in them, made for their maps and kept for the next sandbox of the
/// same ids: one takes a fork's time to make.
#[derive(Debug, Default)]
pub struct Maps {
    made: HashMap<(u32, IdMap), OwnedFd>,
}

impl Maps {
    /// Those that are kept; each holds a descriptor.
    const MOST: usize = 512;

    /// The namespace in which id `inside` is `map.first` and so on.
    ///
    /// # Errors
    /// The failed step.
    pub fn namespace(
        &mut self,
        one: OneThread,
        inside: u32,
        map: IdMap,
    ) -> Result<BorrowedFd<'_>, Failure> {
        // Whose turn it is to go is not worth knowing: all are made again in a few milliseconds.
        if self.made.len() >= Self::MOST && !self.made.contains_key(&(inside, map)) {
            self.made.clear();
        }
        let namespace: &OwnedFd = match self.made.entry((inside, map)) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(make_namespace(one, inside, map)?),
        };
        Ok(namespace.as_fd())
    }
}

/// A user namespace, with no process in it, in which id `inside` is `map.first` and so on.
///
/// # Errors
/// The failed step.
pub fn make_namespace(one: OneThread, inside: u32, map: IdMap) -> Result<OwnedFd, Failure> {
    let (wait, _alive) = io::pipe().at(Step::Process, "making a pipe")?;
    let child = fork_into(one, UnshareFlags::NEWUSER, || {
        // Others must see the end of the spawner, should that be killed just now, and so must this process.
        if close_all_except(&[wait.as_fd()]).is_ok() {
            // Until it is killed: the namespace lives as long as this process or a descriptor.
            let _ = io::Read::read(&mut &wait, &mut [0]);
        }
        1
    })
    .at(Step::UserNamespace, CREATING_USER)?;
    let namespace = write_maps(child, inside, map).and_then(|()| namespace_of(child));
    child.kill();
    child
        .wait()
        .at(Step::Process, "waiting for an id map helper")?;
    namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_first_run_that_is_long_enough_by_name_or_number() {
        let table = "alice:100000:65536\n# x\n1001:300000:1000\n1001:400000:70000\nbob:1:2";
        for (uid, name, expected) in [
            (1000, "alice", Some(100_000)),
            (1001, "carol", Some(400_000)),
            (1002, "bob", None),
            (1003, "", None),
        ] {
            assert_eq!(first_run(table, uid, name), expected, "{name}");
        }
    }

    #[test]
    fn ranges_end_below_the_foreign_ids_of_systemd() {
        let last = Identity::Ranges.map(RANGES - 1);
        assert_eq!(last.first + last.count, 0x7ffe_0000);
    }
}
