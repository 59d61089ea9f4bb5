//! Ranges of ids: each sandbox of root has one of its own, on the whole host.
//!
//! A range is taken by locking a file of its number below `/run`, shared by every derrick of this
//! host whatever its state directory; the lock ends with the process that holds it.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use crate::sandbox::IdMap;
use crate::sandbox::identity::{Identity, RANGES};

/// Where the ranges of root's derricks are locked.
const LOCKS: &str = "/run/derrick/ranges";

/// Ids that one sandbox after another may use; taken until this is dropped.
#[derive(Debug)]
pub struct Range {
    number: u32,
    ids: IdMap,
    _lock: Option<File>,
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
                _lock: None,
            });
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
    pub fn owned_by_caller(self) -> Self {
        Self {
            ids: IdMap {
                first: 0,
                count: self.ids.count,
            },
            ..self
        }
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
                _lock: Some(file),
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}
