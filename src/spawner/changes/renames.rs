//! Files that have another path: those below a renamed directory, and those that are new with the content of one
//! that is gone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use rustix::fs::FileType;
use sha2::{Digest, Sha256};

use super::Stop;
use super::names::name_of;
use super::walk::{Seen, Visit, Walk};

/// With more files that are new, or gone, none is looked for among the others.
const MOST: usize = 100_000;

/// The content of larger files is not looked at.
const LARGEST: u64 = 256 << 20;

/// Which files were called something else.
#[derive(Default)]
pub(super) struct Renames {
    /// What each was.
    old: HashMap<Vec<u8>, Old>,
    /// All that they were called.
    gone: HashSet<Vec<u8>>,
}

/// What a file was that has another path.
pub(super) struct Old {
    pub(super) path: Vec<u8>,
    /// Its type and permissions.
    pub(super) mode: u32,
}

impl Renames {
    /// Looks for them among all that changed.
    pub(super) fn find(walk: &Walk<'_>) -> Result<Self, Stop> {
        let mut files = Files::default();
        walk.show(&mut files)?;
        let mut renames = Self::default();
        if files.too_many {
            return Ok(renames);
        }
        let mut others = Vec::new();
        for added in files.added {
            let origin = added
                .origin
                .and_then(|origin| files.deleted.remove_entry(&origin));
            match origin {
                Some((path, gone)) => renames.add(added.path, path, gone.mode),
                None => others.push((added.path, added.size)),
            }
        }
        let usable = |size: &u64| (1..=LARGEST).contains(size);
        let new: HashSet<u64> = others.iter().map(|(_, size)| *size).collect();
        let sizes: HashSet<u64> = files.deleted.values().map(|gone| gone.size).collect();
        let sizes: HashSet<u64> = sizes.intersection(&new).copied().filter(usable).collect();
        if sizes.is_empty() {
            return Ok(renames);
        }
        let others = others.into_iter().filter(|(_, size)| sizes.contains(size));
        let mut hashes = Hashes {
            added: others.map(|(path, _)| path).collect(),
            deleted: files.deleted,
            sizes,
            new: BTreeMap::new(),
            old: HashMap::new(),
        };
        walk.show(&mut hashes)?;
        for (path, hash) in hashes.new {
            let Some(paths) = hashes.old.get_mut(&hash) else {
                continue;
            };
            let namesake = paths.iter().position(|old| name_of(old) == name_of(&path));
            if paths.is_empty() {
                continue;
            }
            let old = paths.remove(namesake.unwrap_or(0));
            let mode = hashes.deleted.get(&old).map_or(0, |gone| gone.mode);
            renames.add(path, old, mode);
        }
        Ok(renames)
    }

    fn add(&mut self, path: Vec<u8>, old: Vec<u8>, mode: u32) {
        self.gone.insert(old.clone());
        self.old.insert(path, Old { path: old, mode });
    }

    /// What a file was, if it was called something else.
    pub(super) fn old(&self, path: &[u8]) -> Option<&Old> {
        self.old.get(path)
    }

    /// Whether a file that is gone is there under another path.
    pub(super) fn is_elsewhere(&self, path: &[u8]) -> bool {
        self.gone.contains(path)
    }
}

/// A file that is new here.
struct Added {
    path: Vec<u8>,
    size: u64,
    origin: Option<Vec<u8>>,
}

/// A file that is gone.
struct Gone {
    size: u64,
    mode: u32,
}

#[derive(Default)]
struct Files {
    added: Vec<Added>,
    deleted: HashMap<Vec<u8>, Gone>,
    too_many: bool,
}

impl Visit for Files {
    fn see(&mut self, seen: &Seen<'_>) -> Result<(), Stop> {
        if self.too_many || !is_of_interest(seen) {
            return Ok(());
        }
        match (&seen.old, &seen.new) {
            (None, Some(new)) => self.added.push(Added {
                path: seen.path.to_vec(),
                size: new.size(),
                origin: seen
                    .origin
                    .as_ref()
                    .filter(|(_, origin)| origin.is(FileType::RegularFile))
                    .map(|(path, _)| path.clone()),
            }),
            (Some(old), None) => {
                let gone = Gone {
                    size: old.size(),
                    mode: old.status.st_mode,
                };
                self.deleted.insert(seen.path.to_vec(), gone);
            }
            _ => {}
        }
        if self.added.len().max(self.deleted.len()) > MOST {
            *self = Self {
                too_many: true,
                ..Self::default()
            };
        }
        Ok(())
    }
}

struct Hashes {
    added: HashSet<Vec<u8>>,
    deleted: HashMap<Vec<u8>, Gone>,
    sizes: HashSet<u64>,
    /// In the order of paths, so that the same changes give the same pairs.
    new: BTreeMap<Vec<u8>, [u8; 32]>,
    old: HashMap<[u8; 32], Vec<Vec<u8>>>,
}

impl Visit for Hashes {
    fn see(&mut self, seen: &Seen<'_>) -> Result<(), Stop> {
        if !is_of_interest(seen) {
            return Ok(());
        }
        match (&seen.old, &seen.new) {
            (None, Some(new)) if self.added.contains(seen.path) && new.is_readable()? => {
                let mut hash = Sha256::new();
                io::copy(&mut new.open()?, &mut HashWriter(&mut hash))?;
                self.new.insert(seen.path.to_vec(), hash.finalize().into());
            }
            (Some(old), None) => {
                let gone = self.deleted.get(seen.path);
                if gone.is_some_and(|gone| self.sizes.contains(&gone.size)) && old.is_readable()? {
                    let mut hash = Sha256::new();
                    io::copy(&mut old.open()?, &mut HashWriter(&mut hash))?;
                    let paths = self.old.entry(hash.finalize().into()).or_default();
                    paths.push(seen.path.to_vec());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Takes what it hashes as a file would.
pub(super) struct HashWriter<'a, D>(pub(super) &'a mut D);

impl<D: Digest> io::Write for HashWriter<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A regular file on one side alone, none of git's own. What became ignored was deleted as far as others are
/// concerned.
fn is_of_interest(seen: &Seen<'_>) -> bool {
    let ((Some(one), None) | (None, Some(one))) = (&seen.old, &seen.new) else {
        return false;
    };
    seen.git.is_none() && !seen.ignored && one.is(FileType::RegularFile)
}
