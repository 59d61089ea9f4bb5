//! Merges layers that lie on each other into one that shows the same.
//!
//! What an overlay of them would find is looked up as the kernel does it (`ovl_lookup` of fs/overlayfs/namei.c):
//! the first of the layers that has a name decides, directories of that name in the layers below join it until
//! one is opaque, and a directory that was renamed says under which name those below have it. What is below all
//! of them is mounted as an overlay of its own, so that the kernel itself tells what is there: a whiteout is
//! kept where there is something that it hides, a directory is opaque where there is one that it does not join.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags, fgetxattr,
    fremovexattr, fsetxattr, mkdirat, mknodat, openat, openat2, statat,
};
use rustix::io::Errno;

use super::bounds::allow_open_files;
use super::copying::{Copy, DIRECTORY, Pair, is_dots, open_below, set_attributes};
use crate::sandbox::identity::Identity;
use crate::sandbox::overlay::Chain;
use crate::sandbox::reader;

/// Directories below each other, at most.
const DEEPEST: usize = 10_000;

/// Directories that are held open on the way down, and among those above them one in so many: the others are
/// looked up again from there when their turn comes. A step up would not do, as what a directory joins in another
/// layer may have been renamed, and be in another place.
const KEPT_OPEN: usize = 64;
const LANDMARK: usize = 256;

/// The longest value of an attribute that is looked at.
const LARGEST: usize = 64 * 1024;

/// Merges the layers of each of these overlays, by its number, to `tree/<number>` in the directory `into`.
pub(super) fn merge(chains: &[(usize, Chain)], into: &Path, identity: Identity) -> io::Result<()> {
    allow_open_files()?;
    let into = openat(CWD, into, DIRECTORY, Mode::empty())?;
    let layers: Vec<_> = chains.iter().flat_map(|(_, chain)| chain.all()).collect();
    reader::confine(identity, &layers, Some(into.as_fd()))?;
    mkdirat(&into, c"tree", Mode::RWXU)?;
    let tree = openat(&into, c"tree", DIRECTORY, Mode::empty())?;
    for (number, chain) in chains {
        let name = CString::new(number.to_string())?;
        mkdirat(&tree, &name, Mode::RWXU)?;
        let copy = openat(&tree, &name, DIRECTORY, Mode::empty())?;
        let mut merge = Merge {
            layers: Layers::of(chain, identity)?,
            copy: Copy::begin(&into)?,
        };
        merge.walk(copy)?;
        merge.copy.finish(&into)?;
    }
    Ok(())
}

/// What an overlay calls the attributes in which it notes things.
struct Marks {
    opaque: &'static CStr,
    redirect: &'static CStr,
}

impl Marks {
    fn of(identity: Identity) -> Self {
        if identity == Identity::Ranges {
            Self {
                opaque: c"trusted.overlay.opaque",
                redirect: c"trusted.overlay.redirect",
            }
        } else {
            Self {
                opaque: c"user.overlay.opaque",
                redirect: c"user.overlay.redirect",
            }
        }
    }
}

struct Merge {
    layers: Layers,
    copy: Copy,
}

/// What is looked up in.
pub(super) struct Layers {
    /// The roots of the layers, the uppermost first.
    layers: Vec<OwnedFd>,
    /// The root of what is below them.
    below: OwnedFd,
    marks: Marks,
}

/// A directory of the layers together.
pub(super) struct Merged {
    /// Where it is, by the number of the layer, the uppermost first.
    pub(super) parts: Vec<(usize, OwnedFd)>,
    /// The directory below all layers that it joins, if it joins one.
    pub(super) below: Option<OwnedFd>,
}

/// A directory on the way down.
struct Level {
    /// Always that of the last one, and of the root.
    open: Option<Open>,
    names: Names,
    /// What it is called, and its attributes, which are set when it is filled.
    name: CString,
    status: Stat,
    marks: Marked,
}

/// A directory and its copy.
struct Open {
    directory: Merged,
    copy: OwnedFd,
}

/// What is to be noted of a directory.
struct Marked {
    opaque: bool,
    redirect: Option<Vec<u8>>,
}

/// What there is of a name.
pub(super) enum Found {
    /// It was deleted.
    Whiteout,
    /// No directory: in this part of the directory that it is in.
    File(usize, Stat),
    Directory(Directory),
}

pub(super) struct Directory {
    pub(super) merged: Merged,
    pub(super) status: Stat,
    /// The name under which it was looked for below, or its path there from the root.
    pub(super) wanted: Vec<u8>,
}

/// What is looked for, and how far.
struct Lookup {
    /// A name, or a path from the root.
    wanted: Vec<u8>,
    is_directory: bool,
    /// Nothing below is part of it.
    stop: bool,
}

/// What there is of a name in one layer.
enum One {
    Nothing,
    Whiteout,
    File(Stat),
    Directory(OwnedFd),
}

impl Merge {
    fn walk(&mut self, copy: OwnedFd) -> io::Result<()> {
        let root = self.layers.root()?;
        let top = root.parts[0].1.try_clone()?;
        let status = statat(&top, c".", AtFlags::SYMLINK_NOFOLLOW)?;
        let pair = Pair {
            from: top,
            to: copy.try_clone()?,
        };
        let mut levels = vec![Level {
            open: Some(Open {
                directory: root,
                copy,
            }),
            names: Names::default(),
            name: c".".to_owned(),
            status,
            marks: Marked {
                opaque: false,
                redirect: None,
            },
        }];
        loop {
            let depth = levels.len();
            let Some(level) = levels.last_mut() else {
                break;
            };
            let Some(open) = &level.open else {
                return Err(Errno::BADF.into());
            };
            let directory = &open.directory;
            let Some(name) = level.names.next(directory)? else {
                if let Some(done) = levels.pop()
                    && !levels.is_empty()
                {
                    self.open_again(&mut levels)?;
                    self.close(&levels[levels.len() - 1], &done)?;
                }
                continue;
            };
            match self.layers.look_up(directory, &name)? {
                Found::Whiteout => {
                    if let Some(below) = &directory.below
                        && exists(below, &name)?
                    {
                        mknodat(
                            &open.copy,
                            &name,
                            FileType::CharacterDevice,
                            Mode::empty(),
                            0,
                        )?;
                    }
                }
                Found::File(part, status) => {
                    let pair = Pair {
                        from: directory.parts[part].1.try_clone()?,
                        to: open.copy.try_clone()?,
                    };
                    self.copy.copy_one(&pair, &name, &status)?;
                }
                Found::Directory(found) => {
                    level.names.close();
                    if depth >= DEEPEST {
                        return Err(Errno::NAMETOOLONG.into());
                    }
                    let next = open_level(open, name, found)?;
                    levels.push(next);
                    let place = depth.saturating_sub(KEPT_OPEN);
                    if place % LANDMARK != 0 {
                        levels[place].open = None;
                    }
                }
            }
        }
        set_attributes(&pair, c".", c".", &status)
    }

    /// Opens the last one again, if it was closed, and those before it as far as they are kept open.
    fn open_again(&self, levels: &mut [Level]) -> io::Result<()> {
        // The root is always open.
        let from = levels.iter().rposition(|level| level.open.is_some());
        let from = from.ok_or(Errno::BADF)?;
        let kept = levels.len().saturating_sub(KEPT_OPEN);
        let mut before: Option<Open> = None;
        for place in from + 1..levels.len() {
            let above = levels[place - 1].open.as_ref().or(before.as_ref());
            let Open { directory, copy } = above.ok_or(Errno::BADF)?;
            let level = &levels[place];
            let stale = || io::Error::from(Errno::STALE);
            let Found::Directory(found) = self.layers.look_up(directory, &level.name)? else {
                return Err(stale());
            };
            let same = |a: &Stat, b: &Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
            if !same(&found.status, &level.status) {
                return Err(stale());
            }
            let open = Open {
                copy: open_below(copy, &level.name, DIRECTORY)?,
                directory: found.merged,
            };
            if place >= kept {
                levels[place].open = Some(open);
            } else {
                before = Some(open);
            }
        }
        Ok(())
    }

    /// Gives a directory that is filled what it has.
    fn close(&self, parent: &Level, done: &Level) -> io::Result<()> {
        let (Some(above), Some(own)) = (&parent.open, &done.open) else {
            return Err(Errno::BADF.into());
        };
        let Some((_, first)) = above.directory.parts.iter().find(|(layer, _)| {
            let first = own.directory.parts.first();
            first.is_some_and(|(own, _)| own == layer)
        }) else {
            return Err(io::Error::other(
                "a directory is in a layer where its parent is not",
            ));
        };
        let pair = Pair {
            from: first.try_clone()?,
            to: above.copy.try_clone()?,
        };
        set_attributes(&pair, &done.name, &done.name, &done.status)?;
        let opaque = done.marks.opaque.then_some(&b"y"[..]);
        let marks = &self.layers.marks;
        mark(&own.copy, marks.opaque, opaque)?;
        mark(&own.copy, marks.redirect, done.marks.redirect.as_deref())?;
        // To set a mark changes no time that is shown but that of the change.
        Ok(())
    }
}

impl Layers {
    /// Those of an overlay.
    pub(super) fn of(chain: &Chain, identity: Identity) -> io::Result<Self> {
        let layers = chain.layers.iter();
        let layers = layers.map(|layer| openat(layer, c".", DIRECTORY, Mode::empty()));
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
            below: openat(&chain.below, c".", DIRECTORY, Mode::empty())?,
            marks: Marks::of(identity),
        })
    }

    /// The root directory of all.
    pub(super) fn root(&self) -> io::Result<Merged> {
        let parts = self.layers.iter().map(OwnedFd::try_clone);
        let parts: Vec<OwnedFd> = parts.collect::<io::Result<_>>()?;
        Ok(Merged {
            parts: parts.into_iter().enumerate().collect(),
            below: Some(self.below.try_clone()?),
        })
    }

    /// What a directory has of a name that one of its parts has.
    pub(super) fn look_up(&self, parent: &Merged, name: &CStr) -> io::Result<Found> {
        let mut lookup = Lookup {
            wanted: name.to_bytes().to_vec(),
            is_directory: false,
            stop: false,
        };
        let mut parts: Vec<(usize, OwnedFd)> = Vec::new();
        let mut relative = parent.parts.iter().enumerate();
        let mut next = 0;
        while !lookup.stop {
            let (place, layer, base) = if lookup.wanted.starts_with(b"/") {
                // Whatever the parent is part of.
                let Some(root) = self.layers.get(next) else {
                    break;
                };
                (None, next, root)
            } else {
                let Some((place, (layer, base))) = relative.next() else {
                    break;
                };
                (Some(place), *layer, base)
            };
            next = layer + 1;
            match (self.look_up_in(base, &mut lookup)?, place) {
                (One::Whiteout, _) if parts.is_empty() => return Ok(Found::Whiteout),
                (One::File(status), Some(place)) => return Ok(Found::File(place, status)),
                (One::Directory(part), _) => parts.push((layer, part)),
                (One::File(_), None) | (One::Nothing | One::Whiteout, _) => {}
            }
        }
        let Some((_, first)) = parts.first() else {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        };
        let status = rustix::fs::fstat(first)?;
        let below = match (lookup.stop, &parent.below) {
            (true, _) => None,
            (false, _) if lookup.wanted.starts_with(b"/") => {
                open_directory(&self.below, &lookup.wanted[1..])?
            }
            (false, Some(below)) => open_directory(below, &lookup.wanted)?,
            (false, None) => None,
        };
        Ok(Found::Directory(Directory {
            merged: Merged { parts, below },
            status,
            wanted: lookup.wanted,
        }))
    }

    /// As `ovl_lookup_layer`: what is wanted in one layer, below `base`, which is its root for a path.
    fn look_up_in(&self, base: &OwnedFd, lookup: &mut Lookup) -> io::Result<One> {
        if !lookup.wanted.starts_with(b"/") {
            let name = lookup.wanted.clone();
            return self.look_up_one(base, lookup, &name, 0, b"");
        }
        // Counted from the end, since what is before it can change.
        let mut left = lookup.wanted.len() - 1;
        let mut at = base.try_clone()?;
        loop {
            let start = lookup.wanted.len() - left;
            let rest = &lookup.wanted[start..];
            let length = rest.iter().position(|byte| *byte == b'/');
            let (name, after) = rest.split_at(length.unwrap_or(rest.len()));
            let (name, after) = (name.to_vec(), after.to_vec());
            match self.look_up_one(&at, lookup, &name, start, &after)? {
                One::Directory(next) if !after.is_empty() => at = next,
                found => return Ok(found),
            }
            left = left.saturating_sub(name.len() + 1);
        }
    }

    /// As `ovl_lookup_single`: one name, which is what is wanted without the `before` bytes before it and
    /// what is `after` it.
    fn look_up_one(
        &self,
        base: &OwnedFd,
        lookup: &mut Lookup,
        name: &[u8],
        before: usize,
        after: &[u8],
    ) -> io::Result<One> {
        let name = CString::new(name)?;
        let is_last = after.is_empty();
        let status = match statat(base, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(One::Nothing),
            Err(error) => return Err(error.into()),
        };
        let kind = FileType::from_raw_mode(status.st_mode);
        if kind == FileType::CharacterDevice && status.st_rdev == 0 {
            lookup.stop = true;
            return Ok(One::Whiteout);
        }
        if kind != FileType::Directory {
            lookup.stop = true;
            let counts = is_last && !lookup.is_directory;
            return Ok(if counts {
                One::File(status)
            } else {
                One::Nothing
            });
        }
        let directory = open_below(base, &name, DIRECTORY)?;
        lookup.is_directory |= is_last;
        if attribute(&directory, self.marks.opaque)?.as_deref() == Some(b"y") {
            lookup.stop = true;
            return Ok(One::Directory(directory));
        }
        if let Some(redirect) = attribute(&directory, self.marks.redirect)? {
            if redirect.starts_with(b"/") {
                lookup.stop = false;
                lookup.wanted = redirect;
            } else {
                lookup.wanted.truncate(before);
                lookup.wanted.extend(redirect);
            }
            lookup.wanted.extend(after);
        }
        Ok(One::Directory(directory))
    }
}

/// Makes the copy of a directory that was found in `parent`.
fn open_level(parent: &Open, name: CString, found: Directory) -> io::Result<Level> {
    mkdirat(&parent.copy, &name, Mode::RWXU)?;
    let copy = open_below(&parent.copy, &name, DIRECTORY)?;
    let marks = Marked {
        opaque: found.merged.below.is_none(),
        redirect: (found.merged.below.is_some() && found.wanted != name.to_bytes())
            .then_some(found.wanted),
    };
    Ok(Level {
        open: Some(Open {
            directory: found.merged,
            copy,
        }),
        names: Names::default(),
        name,
        status: found.status,
        marks,
    })
}

/// The names that any part of a directory has, each of them once, as they are read.
#[derive(Default)]
pub(super) struct Names {
    /// The part that is being read.
    part: usize,
    /// Where in its entries the next is read.
    position: i64,
    entries: Option<Dir>,
}

impl Names {
    pub(super) fn next(&mut self, directory: &Merged) -> io::Result<Option<CString>> {
        while let Some((_, part)) = directory.parts.get(self.part) {
            let entries = match self.entries.take() {
                Some(entries) => entries,
                None => {
                    let mut entries = Dir::read_from(part)?;
                    entries.seek(self.position)?;
                    entries
                }
            };
            let Some(entry) = self.entries.insert(entries).read() else {
                *self = Self {
                    part: self.part + 1,
                    ..Self::default()
                };
                continue;
            };
            let entry = entry?;
            self.position = entry.offset();
            let name = entry.file_name();
            if !is_dots(name) && !is_in_any(&directory.parts[..self.part], name)? {
                return Ok(Some(name.to_owned()));
            }
        }
        Ok(None)
    }

    /// Holds nothing open until the next is read.
    pub(super) fn close(&mut self) {
        self.entries = None;
    }
}

pub(super) fn is_in_any(parts: &[(usize, OwnedFd)], name: &CStr) -> io::Result<bool> {
    for (_, part) in parts {
        if exists(part, name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn exists(directory: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The directory of that path below another one, if there is one.
pub(super) fn open_directory(base: &OwnedFd, path: &[u8]) -> io::Result<Option<OwnedFd>> {
    let path = std::ffi::OsStr::from_bytes(path);
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(
        base,
        path,
        DIRECTORY | OFlags::NOFOLLOW,
        Mode::empty(),
        below,
    ) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn attribute(directory: &OwnedFd, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 256];
    loop {
        match fgetxattr(directory, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(Errno::RANGE) if value.len() < LARGEST => value.resize(LARGEST, 0),
            Err(error) => return Err(error.into()),
        }
    }
}

fn mark(directory: &OwnedFd, name: &CStr, value: Option<&[u8]>) -> io::Result<()> {
    match value {
        Some(value) => Ok(fsetxattr(directory, name, value, XattrFlags::empty())?),
        None => match fremovexattr(directory, name) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, getrlimit};

    use super::*;

    /// Says that this is the process of a test that has few descriptors.
    const FEW: &str = "DERRICK_TEST_FEW_DESCRIPTORS";

    /// Directories `d` below each other, each with a file of that name.
    fn chain(top: &OwnedFd, depth: usize, file: &str) {
        let mut at = top.try_clone().expect("a descriptor");
        for _ in 0..depth {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            openat(&at, file, flags, Mode::RUSR).expect("a file");
            mkdirat(&at, "d", Mode::RWXU).expect("a directory");
            at = openat(&at, "d", DIRECTORY, Mode::empty()).expect("a directory");
        }
    }

    #[test]
    fn a_tree_of_any_depth_takes_few_descriptors_also_where_it_was_renamed() {
        const DEPTH: usize = 1500;
        if std::env::var_os(FEW).is_none() {
            // The limit is of a process, and this one runs other tests as well.
            let again = format!(
                "{}::a_tree_of_any_depth_takes_few_descriptors_also_where_it_was_renamed",
                module_path!()
            );
            let (_, name) = again.split_once("::").expect("it is in a crate");
            let status = std::process::Command::new("sh")
                .args(["-c", r#"ulimit -S -n 2048 && exec "$0" --exact "$1""#])
                .arg(std::env::current_exe().expect("this program"))
                .arg(name)
                .env(FEW, "1")
                .status();
            assert!(status.expect("it starts").success());
            return;
        }
        let scratch = tempfile::tempdir().expect("tempdir");
        let make = |name: &str| {
            let path = scratch.path().join(name);
            std::fs::create_dir_all(&path).expect("a directory");
            openat(CWD, &path, DIRECTORY, Mode::empty()).expect("a directory")
        };
        let marks = Marks::of(Identity::Single);
        let whiteout = |at: &OwnedFd, name: &str| {
            mknodat(at, name, FileType::CharacterDevice, Mode::empty(), 0).expect("a whiteout");
        };
        // In the uppermost what the others call `d` is called `moved`.
        let layers = ["0", "1", "2", "3"].map(make);
        let moved = make("0/moved");
        chain(&moved, DEPTH, "f0");
        mark(&moved, marks.redirect, Some(b"/d")).expect("a mark");
        whiteout(&layers[0], "d");
        for (number, layer) in layers.iter().enumerate().skip(1) {
            chain(layer, DEPTH, &format!("f{number}"));
        }
        let below = make("below");
        chain(&below, DEPTH, "old");
        let into = make("into");
        let mut merge = Merge {
            layers: Layers {
                layers: layers.into(),
                below,
                marks,
            },
            copy: Copy::begin(&into).expect("it begins"),
        };

        assert_eq!(getrlimit(Resource::Nofile).current, Some(2048));
        merge.walk(make("into/tree")).expect("merged");

        let tree = make("into/tree");
        let names = |at: &OwnedFd| {
            let entries = Dir::read_from(at).expect("read");
            let names = entries.map(|entry| entry.expect("read").file_name().to_owned());
            let mut names: Vec<_> = names.filter(|name| !is_dots(name)).collect();
            names.sort();
            names
        };
        assert_eq!(
            names(&tree),
            [c"d", c"f1", c"f2", c"f3", c"moved"].map(CStr::to_owned)
        );
        let mut at = openat(&tree, "moved", DIRECTORY, Mode::empty()).expect("it was moved");
        let redirect = attribute(&at, merge.layers.marks.redirect).expect("an attribute");
        assert_eq!(redirect.as_deref(), Some(&b"/d"[..]));
        // Those of `d` are one level further down.
        for level in 1..DEPTH {
            let expected = [c"d", c"f0", c"f1", c"f2", c"f3"].map(CStr::to_owned);
            assert_eq!(names(&at), expected, "at level {level}");
            at = openat(&at, "d", DIRECTORY, Mode::empty()).expect("as deep");
        }
        drop((merge, tree, into, moved));
        super::super::removal::remove(&scratch.path().join("into")).expect("removed");
        for name in ["0", "1", "2", "3", "below"] {
            super::super::removal::remove(&scratch.path().join(name)).expect("removed");
        }
    }

    #[test]
    fn each_name_of_any_part_is_told_once() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let mut parts = Vec::new();
        let mut expected = Vec::new();
        // The uppermost first, each with some that those above it have, and one with nothing.
        for (part, numbers) in [0..900, 500..500, 300..1400, 0..2000]
            .into_iter()
            .enumerate()
        {
            let path = scratch.path().join(part.to_string());
            std::fs::create_dir(&path).expect("a part");
            for number in numbers {
                std::fs::write(path.join(number.to_string()), "").expect("a file");
                expected.push(CString::new(number.to_string()).expect("a name"));
            }
            let opened = openat(CWD, &path, DIRECTORY, Mode::empty()).expect("open");
            parts.push((part, opened));
        }
        expected.sort();
        expected.dedup();
        let directory = Merged { parts, below: None };
        let mut names = Names::default();
        let mut found = Vec::new();
        while let Some(name) = names.next(&directory).expect("read") {
            found.push(name);
            if found.len() % 3 == 0 {
                names.close();
            }
        }
        found.sort();
        assert_eq!(found, expected);
    }
}
