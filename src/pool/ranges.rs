//! Ranges of ids: each sandbox of root has one of its own, on the whole host.
//!
//! A range is taken by locking a file of its number below `/run`, shared by every derrick of this
//! host whatever its state directory. The spawner has the lock as well while a sandbox has processes, so a
//! range is not free before the last of them is gone, however the provider ends.
//!
//! A range that this process gave back is taken again before a new one is: what the spawner keeps for the ids
//! of one, user namespaces for its maps, need not be made again.

use std::collections::{HashSet, VecDeque};
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sandbox::IdMap;
use crate::sandbox::identity::{Identity, RANGES};

/// Where the ranges of root's derricks are locked.
const LOCKS: &str = "/run/derrick/ranges";

/// How many ranges nobody has, and how many there are; `None` where sandboxes share the user's ids.
///
/// Told from the kernel's list of locks, proc_locks(5): to try a lock would keep somebody else from it.
///
/// # Errors
/// Those of reading that list and the directory of the lock files.
pub fn free(identity: Identity) -> io::Result<Option<(u64, u64)>> {
    if identity != Identity::Ranges {
        return Ok(None);
    }
    let total = u64::from(RANGES);
    let directory = Path::new(LOCKS);
    let device = match std::fs::metadata(directory) {
        Ok(status) => status.dev(),
        // Nobody has had any yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some((total, total))),
        Err(error) => return Err(error),
    };
    let locked = locked(&std::fs::read_to_string("/proc/locks")?, device);
    let mut taken = 0;
    for entry in std::fs::read_dir(directory)? {
        taken += u64::from(locked.contains(&entry?.ino()));
    }
    Ok(Some((total.saturating_sub(taken), total)))
}

/// The inodes of a device that somebody has locked with flock(2).
fn locked(locks: &str, device: u64) -> HashSet<u64> {
    let device = format!(
        "{:02x}:{:02x}:",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    let inode = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        words.find(|word| *word == "FLOCK")?;
        words.find_map(|word| word.strip_prefix(&device)?.parse().ok())
    };
    locks.lines().filter_map(inode).collect()
}

/// Ranges that this process had, the one given back first foremost.
static RETURNED: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());

fn returned() -> MutexGuard<'static, VecDeque<u32>> {
    RETURNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ids that one sandbox after another may use; taken until this is dropped.
#[derive(Debug)]
pub struct Range {
    number: u32,
    ids: IdMap,
    lock: Option<File>,
}

impl Range {
    /// Takes any range that is free.
    ///
    /// # Errors
    /// Those of the lock files; `StorageFull` when all are taken.
    pub fn take_any(identity: Identity) -> io::Result<Self> {
        if identity != Identity::Ranges {
            return Ok(Self {
                number: 0,
                ids: identity.map(0),
                lock: None,
            });
        }
        let count = returned().len();
        for _ in 0..count {
            let Some(number) = returned().pop_front() else {
                break;
            };
            if let Some(range) = Self::try_take(identity, number)? {
                return Ok(range);
            }
            // The spawner has not heard of the end of its last process yet, or another derrick took it.
            returned().push_back(number);
        }
        // Somewhere, so that derricks that do not know of each other's files on disk seldom meet.
        let start = u32::from_ne_bytes(std::array::from_fn(|byte| {
            uuid::Uuid::now_v7().as_bytes()[12 + byte]
        }));
        for offset in 0..RANGES {
            let number = (start % RANGES + offset) % RANGES;
            if let Some(range) = Self::try_take(identity, number)? {
                return Ok(range);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("all {RANGES} id ranges of this host are in use"),
        ))
    }

    /// Takes the range that a workspace's files were written with.
    ///
    /// # Errors
    /// Those of the lock files; `ResourceBusy` when another sandbox of this host has it.
    pub fn take(identity: Identity, number: u32) -> io::Result<Self> {
        if identity != Identity::Ranges {
            return Self::take_any(identity);
        }
        Self::try_take(identity, number)?.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("id range {number} is in use by another derrick of this host; try again when it is free"),
            )
        })
    }

    /// What keeps it taken, for who makes a sandbox with it.
    #[must_use]
    pub fn lock(&self) -> Option<BorrowedFd<'_>> {
        self.lock.as_ref().map(AsFd::as_fd)
    }

    /// Its number, for the workspace's record.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its ids.
    #[must_use]
    pub fn ids(&self) -> IdMap {
        self.ids
    }

    /// The same range with root inside being the user who runs derrick, for a base whose files are
    /// that user's; only where ids are subordinate.
    #[must_use]
    pub fn owned_by_caller(mut self) -> Self {
        self.ids.first = 0;
        self
    }

    fn try_take(identity: Identity, number: u32) -> io::Result<Option<Self>> {
        let directory = Path::new(LOCKS);
        std::fs::create_dir_all(directory)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join(number.to_string()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self {
                number,
                ids: identity.map(number),
                lock: Some(file),
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            // Before anybody finds its number.
            drop(lock);
            returned().push_back(self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_told_apart_by_kind_and_device() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1a:1 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 7 00:1a:2 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 8 00:1a:3 0 EOF\n\
            3: FLOCK  ADVISORY  READ 7 fe:01:4 0 EOF\n";
        let device = rustix::fs::makedev(0, 0x1a);
        assert_eq!(locked(locks, device), HashSet::from([2, 3]));
    }
}
