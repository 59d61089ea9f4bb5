//! Walks what was written beside what was there, and shows each difference in the order of names.
//!
//! Of a directory that is in its place only the names in the layers that were written are looked at. One that
//! was moved, replaced or removed is walked on both sides: it is part of the change.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType, Mode, Stat, fstat, openat, statat};
use rustix::io::Errno;

use super::content::Object;
use super::names::{below, is_git, join};
use super::protocol::{Checkout, Inquiry};
use super::rules::{Rules, tracked};
use super::{Overlaid, Stop, check_time};
use crate::sandbox::IdMap;
use crate::spawner::copying::{DIRECTORY, is_dots, open_below};
use crate::spawner::merging::{Directory, Found, Merged, is_in_any, open_directory};

/// `PATH_MAX` without its NUL: what is deeper has no path that anybody could use.
const LONGEST_PATH: usize = 4095;

/// Bytes of the names of a directory and of those on the way to it, at most.
const MOST_NAMES: usize = 128 << 20;

/// Bytes that each of them takes besides, about.
const PER_NAME: usize = 64;

/// Walks the overlays of a workspace, as often as it is asked to.
pub(super) struct Walk<'a> {
    overlays: &'a [Overlaid<'a>],
    repositories: &'a [Checkout],
    /// A path without a slash at its end.
    pub(super) within: Vec<u8>,
    pub(super) ids: IdMap,
    /// When it is to be done.
    until: Instant,
    /// What the index of each repository names, once somebody asked.
    tracked: RefCell<HashMap<usize, Option<HashSet<Vec<u8>>>>>,
}

/// A difference, or something that might be one: the same name on both sides. Where both are there, both are
/// directories or neither is.
pub(super) struct Seen<'a> {
    /// Absolute.
    pub(super) path: &'a [u8],
    pub(super) old: Option<Object<'a>>,
    pub(super) new: Option<Object<'a>>,
    /// What it was called that is new here, and what that was, where a directory above was renamed.
    pub(super) origin: Option<(Vec<u8>, Object<'a>)>,
    /// The repository that it is in.
    pub(super) repository: Option<usize>,
    /// The length of the path of the git directory that it is in, or is.
    pub(super) git: Option<usize>,
    pub(super) ignored: bool,
}

/// Told of what a walk finds.
pub(super) trait Visit {
    fn see(&mut self, seen: &Seen<'_>) -> Result<(), Stop>;

    /// There is more in this directory, too deep for a path.
    fn too_deep(&mut self, _path: &[u8]) -> Result<(), Stop> {
        Ok(())
    }

    /// There are more names in this directory than there is room for: none is shown.
    fn overfull(&mut self, path: &[u8]) -> Result<(), Stop> {
        self.too_deep(path)
    }
}

/// A directory on the way down.
struct Level {
    path: Vec<u8>,
    /// What is there now.
    new: Option<Merged>,
    /// What was there.
    old: Option<OwnedFd>,
    relation: Relation,
    names: std::vec::IntoIter<CString>,
    /// Bytes that the names take.
    length: usize,
    place: Place,
}

/// How the directory below the layers is related to the one that was there.
enum Relation {
    /// It is that one.
    Same,
    /// It is none, or one that had this path.
    Moved(Option<Vec<u8>>),
}

/// What is to be known of everything in a directory.
#[derive(Clone, Default)]
struct Place {
    repository: Option<usize>,
    git: Option<usize>,
    rules: Option<Rc<Rules>>,
    ignored: bool,
}

/// What is there now.
enum New {
    /// In this directory: a part of the parent, or what is below it.
    Other(Stat, Part),
    Directory(Directory),
}

#[derive(Clone, Copy)]
enum Part {
    Layer(usize),
    Below,
}

/// A directory and what it is called there.
pub(super) type InDirectory = (OwnedFd, CString, Stat);

impl<'a> Walk<'a> {
    pub(super) fn new(overlays: &'a [Overlaid<'a>], inquiry: &'a Inquiry, until: Instant) -> Self {
        Self {
            overlays,
            repositories: &inquiry.repositories,
            within: trimmed(inquiry.within.as_bytes()),
            ids: inquiry.layers.ids,
            until,
            tracked: RefCell::default(),
        }
    }

    /// Shows everything that may be a difference.
    pub(super) fn show(&self, visitor: &mut impl Visit) -> Result<(), Stop> {
        for overlay in self.overlays {
            self.show_one(overlay, visitor)?;
        }
        Ok(())
    }

    fn show_one(&self, overlay: &Overlaid<'_>, visitor: &mut impl Visit) -> Result<(), Stop> {
        let path = trimmed(overlay.place.as_os_str().as_bytes());
        if !self.leads_somewhere(&path) {
            return Ok(());
        }
        let root = overlay.layers.root()?;
        let old = root.below.as_ref().map(OwnedFd::try_clone).transpose()?;
        let place = self.place_of_root(&path, old.as_ref())?;
        let mut top = Level {
            path,
            new: Some(root),
            old,
            relation: Relation::Same,
            names: Vec::new().into_iter(),
            length: 0,
            place,
        };
        let mut room = MOST_NAMES;
        if !self.read_names(&mut top, room)? {
            return visitor.overfull(match &*top.path {
                [] => &b"/"[..],
                path => path,
            });
        }
        room -= top.length;
        let mut levels = vec![top];
        while let Some(level) = levels.last_mut() {
            check_time(self.until)?;
            let Some(name) = level.names.next() else {
                room += level.length;
                levels.pop();
                continue;
            };
            let path = join(&level.path, name.to_bytes());
            if !self.leads_somewhere(&path) {
                continue;
            }
            let Some(mut next) = self.show_name(overlay, level, &name, path, visitor)? else {
                continue;
            };
            if !self.read_names(&mut next, room)? {
                visitor.overfull(&next.path)?;
            } else if next.path.len() + 2 <= LONGEST_PATH {
                room -= next.length;
                levels.push(next);
            } else if next.names.len() > 0 {
                visitor.too_deep(&next.path)?;
            }
        }
        Ok(())
    }

    /// Reads the names in a directory that are to be looked at: one alone where what is asked about is below it.
    /// `false` if there is no room for them.
    fn read_names(&self, level: &mut Level, room: usize) -> Result<bool, Stop> {
        let wanted = match below(&self.within, &level.path) {
            None | Some([]) => None,
            Some(rest) => {
                let first = rest.split(|byte| *byte == b'/').next();
                first.map(c_string).transpose()?
            }
        };
        let mut directories = Vec::new();
        if let Some(new) = &level.new {
            directories.extend(new.parts.iter().map(|(_, part)| part));
        }
        if matches!(level.relation, Relation::Moved(_)) {
            let moved = level.new.as_ref().and_then(|new| new.below.as_ref());
            directories.extend(moved.into_iter().chain(&level.old));
        }
        let Some((names, length)) = names_of(&directories, wanted.as_deref(), room)? else {
            return Ok(false);
        };
        level.names = names.into_iter().collect::<Vec<_>>().into_iter();
        level.length = length;
        Ok(true)
    }

    /// Shows what there is of a name; the directory to go on in, if it is one, without its names.
    fn show_name(
        &self,
        overlay: &Overlaid<'_>,
        level: &Level,
        name: &CStr,
        path: Vec<u8>,
        visitor: &mut impl Visit,
    ) -> Result<Option<Level>, Stop> {
        let old = match &level.old {
            Some(old) => look(old, name)?.map(|status| Object::new(old, name, status)),
            None => None,
        };
        let new = find(overlay, level.new.as_ref(), name)?;
        let is_new_directory = matches!(new, Some(New::Directory(_)));
        let is_old_directory = old.is_some_and(|old| old.is(FileType::Directory));
        let is_directory = is_new_directory || is_old_directory;
        let place = self.place(level, name, &path, is_directory)?;
        // Whichever directory it is in that is the first to have it.
        let parent = level.new.as_ref();
        let now = match (&new, parent) {
            (Some(New::Other(status, part)), Some(parent)) => {
                let directory = match part {
                    Part::Layer(part) => parent.parts.get(*part).map(|(_, part)| part),
                    Part::Below => parent.below.as_ref(),
                };
                directory.map(|directory| Object::new(directory, name, *status))
            }
            (Some(New::Directory(found)), Some(parent)) => {
                let first = found.merged.parts.first();
                let part = first.and_then(|(layer, _)| {
                    let mut parts = parent.parts.iter();
                    parts.find(|(own, _)| own == layer)
                });
                let directory = part.map(|(_, part)| part).or(parent.below.as_ref());
                // Only its status is looked at.
                directory.map(|directory| Object::new(directory, name, found.status))
            }
            _ => None,
        };
        let origin = match (&level.relation, parent.and_then(|new| new.below.as_ref())) {
            (Relation::Moved(Some(from)), Some(moved)) if !is_new_directory => look(moved, name)?
                .map(|status| {
                    (
                        join(from, name.to_bytes()),
                        Object::new(moved, name, status),
                    )
                }),
            _ => None,
        };
        if below(&path, &self.within).is_some() {
            let ignored = place.ignored && !(old.is_some() && self.is_tracked(&place, &path));
            let seen = |old, new, origin| Seen {
                path: &path,
                old,
                new,
                origin,
                repository: place.repository,
                git: place.git,
                ignored,
            };
            if is_new_directory == is_old_directory || old.is_none() || now.is_none() {
                visitor.see(&seen(old, now, origin))?;
            } else {
                visitor.see(&seen(old, None, None))?;
                visitor.see(&seen(None, now, origin))?;
            }
        }
        if !is_directory {
            return Ok(None);
        }
        let opened = match &level.old {
            Some(old) if is_old_directory => Some(open_below(old, name, DIRECTORY)?),
            _ => None,
        };
        let (merged, relation) = match new {
            Some(New::Directory(found)) => {
                let relation = relation(level, &found, opened.as_ref(), overlay, &path)?;
                if matches!(relation, Relation::Same) && found.merged.parts.is_empty() {
                    return Ok(None);
                }
                (Some(found.merged), relation)
            }
            _ => (None, Relation::Moved(None)),
        };
        let place = match &opened {
            Some(opened) => self.place_inside(place, opened, &path)?,
            None => place,
        };
        Ok(Some(Level {
            path,
            new: merged,
            old: opened,
            relation,
            names: Vec::new().into_iter(),
            length: 0,
            place,
        }))
    }

    /// Whether a path is within what is asked about, or leads there.
    fn leads_somewhere(&self, path: &[u8]) -> bool {
        below(path, &self.within).is_some() || below(&self.within, path).is_some()
    }

    /// What is known of the root of an overlay, which may be within a repository's directory.
    fn place_of_root(&self, path: &[u8], old: Option<&OwnedFd>) -> io::Result<Place> {
        let place = Place {
            repository: self.repository_at(path),
            ..Place::default()
        };
        match old {
            Some(old) => self.place_inside(place, old, path),
            None => Ok(place),
        }
    }

    fn repository_at(&self, path: &[u8]) -> Option<usize> {
        let mut repositories = self.repositories.iter();
        repositories.position(|one| trimmed(one.path.as_bytes()) == path)
    }

    /// What is known of a name in a directory.
    fn place(
        &self,
        level: &Level,
        name: &CStr,
        path: &[u8],
        is_directory: bool,
    ) -> io::Result<Place> {
        let mut place = level.place.clone();
        if let Some(repository) = self.repository_at(path) {
            return Ok(Place {
                repository: Some(repository),
                ..Place::default()
            });
        }
        if place.git.is_none() && is_git(name.to_bytes()) {
            place.git = Some(path.len());
        }
        let rules = place.rules.as_ref();
        place.ignored |= rules.is_some_and(|rules| rules.ignore(path, is_directory));
        Ok(place)
    }

    /// What is known of everything in a directory that setup left.
    fn place_inside(&self, mut place: Place, old: &OwnedFd, path: &[u8]) -> io::Result<Place> {
        let Some(repository) = place.repository else {
            return Ok(place);
        };
        if trimmed(self.repositories[repository].path.as_bytes()) == path {
            place.rules = Rules::of_repository(old, path)?;
        }
        if place.git.is_none() {
            place.rules = Rules::within(place.rules, old, path)?;
        }
        Ok(place)
    }

    /// Whether the commit that was checked out has it; so too where that cannot be told.
    fn is_tracked(&self, place: &Place, path: &[u8]) -> bool {
        let Some(number) = place.repository else {
            return true;
        };
        let root = trimmed(self.repositories[number].path.as_bytes());
        let mut known = self.tracked.borrow_mut();
        let known = known.entry(number).or_insert_with(|| {
            let git = join(&root, b".git");
            let git = self.open_old(&git).ok().flatten()?;
            tracked(&git)
        });
        let relative = below(path, &root).unwrap_or_default();
        known.as_ref().is_none_or(|known| known.contains(relative))
    }

    /// The overlay that a path is in, and the path there.
    fn overlay_of<'p>(&self, path: &'p [u8]) -> Option<(&'a Overlaid<'a>, &'p [u8])> {
        let all = self.overlays.iter().filter_map(|overlay| {
            let place = trimmed(overlay.place.as_os_str().as_bytes());
            Some((place.len(), overlay, below(path, &place)?))
        });
        let (_, overlay, rest) = all.max_by_key(|(length, ..)| *length)?;
        Some((overlay, rest))
    }

    /// A directory as setup left it.
    fn open_old(&self, path: &[u8]) -> io::Result<Option<OwnedFd>> {
        let Some((overlay, rest)) = self.overlay_of(path) else {
            return Ok(None);
        };
        let Some(root) = overlay.layers.root()?.below else {
            return Ok(None);
        };
        match rest {
            [] => Ok(Some(root)),
            rest => open_directory(&root, rest),
        }
    }

    /// What setup left at the path that is asked about.
    pub(super) fn find_old(&self) -> Result<Option<InDirectory>, Stop> {
        let (parent, name) = split(&self.within);
        let Some(parent) = self.open_old(parent)? else {
            return Ok(None);
        };
        let name = c_string(name)?;
        let status = look(&parent, &name)?;
        Ok(status.map(|status| (parent, name, status)))
    }

    /// What is at the path that is asked about.
    pub(super) fn find_new(&self) -> Result<Option<InDirectory>, Stop> {
        let Some((overlay, rest)) = self.overlay_of(&self.within) else {
            return Ok(None);
        };
        let mut at = overlay.layers.root()?;
        let mut names = rest.split(|byte| *byte == b'/').peekable();
        while let Some(name) = names.next() {
            let name = match name {
                b"" => c".".to_owned(),
                name => c_string(name)?,
            };
            match find(overlay, Some(&at), &name)? {
                Some(New::Directory(found)) if names.peek().is_some() => at = found.merged,
                Some(New::Directory(found)) => {
                    let parts = at.parts.into_iter().map(|(_, part)| part);
                    let directory = parts.chain(at.below).next();
                    return Ok(directory.map(|directory| (directory, name, found.status)));
                }
                Some(New::Other(status, part)) if names.peek().is_none() => {
                    let directory = match part {
                        Part::Layer(part) => Some(at.parts.swap_remove(part).1),
                        Part::Below => at.below,
                    };
                    return Ok(directory.map(|directory| (directory, name, status)));
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// A path without a slash at its end: nothing for the root.
pub(super) fn trimmed(path: &[u8]) -> Vec<u8> {
    let length = path.iter().rposition(|byte| *byte != b'/');
    path[..length.map_or(0, |last| last + 1)].to_vec()
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (path, b"."),
    }
}

fn c_string(name: &[u8]) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// All names in some directories, or the one that is wanted, if one of them has it; and the bytes that they take.
/// Nothing if that is more than there is room for.
fn names_of(
    directories: &[&OwnedFd],
    wanted: Option<&CStr>,
    room: usize,
) -> io::Result<Option<(BTreeSet<CString>, usize)>> {
    let mut names = BTreeSet::new();
    let mut length = 0;
    for directory in directories {
        if let Some(wanted) = wanted {
            if look(directory, wanted)?.is_some() {
                names.insert(wanted.to_owned());
            }
            continue;
        }
        // Another open file: this one's place may be somebody's.
        let directory = openat(directory, c".", DIRECTORY, Mode::empty())?;
        for entry in Dir::new(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if !is_dots(name) && names.insert(name.to_owned()) {
                length += name.count_bytes() + PER_NAME;
                if length > room {
                    return Ok(None);
                }
            }
        }
    }
    Ok(Some((names, length)))
}

fn look(directory: &OwnedFd, name: &CStr) -> io::Result<Option<Stat>> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(status) => Ok(Some(status)),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a directory has of a name.
fn find(overlay: &Overlaid<'_>, parent: Option<&Merged>, name: &CStr) -> io::Result<Option<New>> {
    let Some(parent) = parent else {
        return Ok(None);
    };
    if is_in_any(&parent.parts, name)? {
        return Ok(match overlay.layers.look_up(parent, name)? {
            Found::Whiteout => None,
            Found::File(part, status) => Some(New::Other(status, Part::Layer(part))),
            Found::Directory(found) => Some(New::Directory(found)),
        });
    }
    let Some(below) = &parent.below else {
        return Ok(None);
    };
    let Some(status) = look(below, name)? else {
        return Ok(None);
    };
    if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
        return Ok(Some(New::Other(status, Part::Below)));
    }
    let merged = Merged {
        parts: Vec::new(),
        below: Some(open_below(below, name, DIRECTORY)?),
    };
    Ok(Some(New::Directory(Directory {
        merged,
        status,
        wanted: name.to_bytes().to_vec(),
    })))
}

/// How what is below a directory in `parent` is related to what was there.
fn relation(
    parent: &Level,
    found: &Directory,
    old: Option<&OwnedFd>,
    overlay: &Overlaid<'_>,
    path: &[u8],
) -> io::Result<Relation> {
    let Some(moved) = &found.merged.below else {
        return Ok(Relation::Moved(None));
    };
    if let Some(old) = old {
        let (one, other) = (fstat(moved)?, fstat(old)?);
        if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino) {
            return Ok(Relation::Same);
        }
    }
    let from = match (&parent.relation, found.wanted.strip_prefix(b"/")) {
        (_, Some(wanted)) => {
            let place = trimmed(overlay.place.as_os_str().as_bytes());
            Some(join(&place, wanted))
        }
        (Relation::Same, None) => Some(join(&parent.path, &found.wanted)),
        (Relation::Moved(from), None) => {
            let from = from.as_deref();
            from.map(|from| join(from, &found.wanted))
        }
    };
    Ok(Relation::Moved(from.filter(|from| from != path)))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, create_dir, write};

    use super::*;

    #[test]
    fn names_that_there_is_no_room_for_hide_none_that_is_asked_about() {
        let scratch = tempfile::tempdir().expect("a directory");
        let open = |directory: &str, names: &[&str]| {
            let path = scratch.path().join(directory);
            create_dir(&path).expect("a directory");
            for name in names {
                write(path.join(name), "").expect("a file");
            }
            OwnedFd::from(File::open(path).expect("it opens"))
        };
        let (one, two) = (open("one", &["a", "b"]), open("two", &["b", "c"]));
        let both = [&one, &two];
        let each = 1 + PER_NAME;
        let names = |wanted: Option<&CStr>, room| {
            let names = names_of(&both, wanted, room).expect("they can be read")?;
            let (names, length) = names;
            let names = names.iter().map(|name| name.to_str().expect("text"));
            Some((names.collect::<String>(), length))
        };
        assert_eq!(names(None, 3 * each), Some(("abc".to_owned(), 3 * each)));
        assert_eq!(names(None, 3 * each - 1), None);
        assert_eq!(names(Some(c"c"), 0), Some(("c".to_owned(), 0)));
        assert_eq!(names(Some(c"d"), 0), Some((String::new(), 0)));
    }
}
