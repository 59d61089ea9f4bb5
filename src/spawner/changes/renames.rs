//! Files that have another path: those below a renamed directory, and those that are new with the content of one
//! that is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;

use rustix::fs::FileType;
use sha2::{Digest, Sha256};

use super::Stop;
use super::names::name_of;
use super::walk::{Seen, Visit, Walk};

/// With more files that are new, or gone, none is looked for among the others.
const MOST: usize = 100_000;

/// The same with more bytes in all their paths.
const MOST_PATHS: usize = 32 << 20;

/// The content of larger files is not looked at.
const LARGEST: u64 = 256 << 20;

/// Of so much content at most it is looked whether it is the same; files of the other sizes were never called
/// something else.
const MOST_CONTENT: u64 = 2 << 30;

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
        let new = others.iter().map(|(_, size)| *size);
        let sizes = comparable(new, files.deleted.values().map(|gone| gone.size));
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
        for (path, old) in pairs(hashes.new, hashes.old) {
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

/// The sizes of files that are looked at, of those of files that are new and of files that are gone: such as there
/// are among both, small ones first.
fn comparable(new: impl Iterator<Item = u64>, gone: impl Iterator<Item = u64>) -> HashSet<u64> {
    let mut counts: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for size in new {
        counts.entry(size).or_default().0 += 1;
    }
    for size in gone {
        counts.entry(size).or_default().1 += 1;
    }
    let mut left = MOST_CONTENT;
    let mut sizes = HashSet::new();
    for (size, (new, gone)) in counts {
        if !(1..=LARGEST).contains(&size) || new == 0 || gone == 0 {
            continue;
        }
        if let Some(rest) = left.checked_sub(size.saturating_mul(new + gone)) {
            left = rest;
            sizes.insert(size);
        }
    }
    sizes
}

type Hash = [u8; 32];

/// Files that are gone, by content and name.
type ByContent = HashMap<(Hash, Vec<u8>), BTreeSet<Vec<u8>>>;

/// Which of the files that are new was which one that is gone: one of the same name if there is one.
fn pairs(new: BTreeMap<Vec<u8>, Hash>, mut gone: ByContent) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    let mut others = Vec::new();
    for (path, hash) in new {
        let namesakes = gone.get_mut(&(hash, name_of(&path).to_vec()));
        match namesakes.and_then(BTreeSet::pop_first) {
            Some(old) => pairs.push((path, old)),
            None => others.push((path, hash)),
        }
    }
    let mut left: HashMap<Hash, BTreeSet<Vec<u8>>> = HashMap::new();
    for ((hash, _), paths) in gone {
        left.entry(hash).or_default().extend(paths);
    }
    for (path, hash) in others {
        let same = left.get_mut(&hash);
        if let Some(old) = same.and_then(BTreeSet::pop_first) {
            pairs.push((path, old));
        }
    }
    pairs
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
    /// Bytes of all these paths.
    length: usize,
    too_many: bool,
}

impl Visit for Files {
    fn see(&mut self, seen: &Seen<'_>) -> Result<(), Stop> {
        if self.too_many || !is_of_interest(seen) {
            return Ok(());
        }
        let origin = seen.origin.as_ref().map_or(0, |(path, _)| path.len());
        self.length += seen.path.len() + origin;
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
        if self.added.len().max(self.deleted.len()) > MOST || self.length > MOST_PATHS {
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
    new: BTreeMap<Vec<u8>, Hash>,
    old: ByContent,
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
                    let content = (hash.finalize().into(), name_of(seen.path).to_vec());
                    let paths = self.old.entry(content).or_default();
                    paths.insert(seen.path.to_vec());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_content_is_looked_at_and_no_more() {
        let chosen = |new: &[u64], gone: &[u64]| {
            let sizes = comparable(new.iter().copied(), gone.iter().copied());
            sizes.into_iter().collect::<BTreeSet<_>>()
        };
        let large = vec![200 << 20; 5000];
        assert_eq!(
            chosen(&[0, 5, 7, LARGEST + 1], &[0, 5, 9, LARGEST + 1]),
            BTreeSet::from([5])
        );
        assert_eq!(chosen(&large, &[200 << 20]), BTreeSet::new());
        // One size does not keep others from being looked at.
        let all = [&large[..], &[3, LARGEST]].concat();
        assert_eq!(
            chosen(&all, &[3, 200 << 20, LARGEST]),
            BTreeSet::from([3, LARGEST])
        );
    }

    #[test]
    fn of_the_same_content_namesakes_are_pairs_and_the_rest_in_order() {
        let path = |path: &str| path.as_bytes().to_vec();
        let new = [
            ("a", [1; 32]),
            ("b/x", [1; 32]),
            ("c", [2; 32]),
            ("d", [1; 32]),
        ];
        let new = new.map(|(name, hash)| (path(name), hash));
        let mut gone = ByContent::new();
        for old in ["p", "q", "z/x"] {
            let content = ([1; 32], name_of(old.as_bytes()).to_vec());
            gone.entry(content).or_default().insert(path(old));
        }
        let expected = [("b/x", "z/x"), ("a", "p"), ("d", "q")];
        let expected = expected.map(|(new, old)| (path(new), path(old)));
        assert_eq!(pairs(BTreeMap::from(new), gone), expected);
    }
}
