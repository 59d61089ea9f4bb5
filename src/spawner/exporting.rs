//! Writes what snapshots changed as a tar: an OCI image's layer (its specification, "Image Layer Filesystem
//! Changeset"), which any tar program reads, and `init::unpack` takes in again.
//!
//! The layers are looked through as one, as `merging` does it. What was deleted is `.wh.<name>`, a directory
//! that joins nothing of what is below has `.wh..wh..opq` in it, and one that was renamed has all that is to be
//! seen in it. Owners are those inside. What the format has no form for is found before anything is written:
//! everything is gone through twice.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, openat, readlinkat, statat,
};
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::bounds;
use super::copying::{DIRECTORY, is_dots, open_below};
use super::merging::{Found, Layers, Merged, Names, exists, is_in_any};
use super::protocol::Export;
use crate::init::files::archive::{Sink, describe_pieces, pieces};
use crate::init::unpack::{SNAPSHOT_HEAD, UnpackLimits, WHITEOUT, WHITEOUT_OPAQUE, may_travel};
use crate::sandbox::IdMap;
use crate::sandbox::identity::Identity;
use crate::sandbox::overlay::Chain;

/// Size of a tar record; headers and padding come in these.
const BLOCK: u64 = 512;
/// Bytes that a header has for a name.
const NAME: usize = 100;
/// The longest name that the kernel takes, its NUL included.
const PATH_MAX: usize = 4096;
/// Bytes of what is said of an entry besides its header.
const RECORDS_MAX: usize = 1 << 20;
/// The largest list of names and the largest value of an extended attribute, xattr(7).
const LARGEST: usize = 64 * 1024;
/// Files with several names whose first names are remembered, and bytes of those names.
const REMEMBERED: (usize, usize) = (1_000_000, 128 << 20);

/// What it may take. It writes to pipes alone.
pub(super) fn bound() -> io::Result<()> {
    bounds::of_a_reader(0)
}

/// Writes a line to `report`, empty unless there is something that cannot be exported, and then all to `tar`.
pub(super) fn export(
    chains: &[(usize, Chain)],
    export: &Export,
    identity: Identity,
    tar: OwnedFd,
    report: OwnedFd,
) -> io::Result<()> {
    let mut report = File::from(report);
    let look = |place: &mut dyn Place| -> Result<(), Refusal> {
        for ((_, chain), at) in chains.iter().zip(&export.at) {
            walk_one(chain, at, identity, place)?;
        }
        Ok(())
    };
    match look(&mut Check) {
        Ok(()) => report.write_all(b"\n")?,
        Err(Refusal::Because(name, why)) => {
            let name = name[..name.len().min(300)].escape_ascii().to_string();
            return report.write_all(format!("'{name}' {why}\n").as_bytes());
        }
        Err(Refusal::Failed(error)) => return Err(error),
    }
    drop(report);
    let mut writer = Writer {
        sink: Sink::new(tar.into(), export.compression)?,
        ids: export.layers.ids,
        seen: HashMap::new(),
        seen_bytes: 0,
    };
    writer.head(&export.head)?;
    match look(&mut writer) {
        Ok(()) => writer.sink.finish(),
        // Layers never change.
        Err(Refusal::Because(..)) => Err(io::Error::from_raw_os_error(libc::ESTALE)),
        Err(Refusal::Failed(error)) => Err(error),
    }
}

/// Why there is no archive.
enum Refusal {
    /// Of that name, for people.
    Because(Vec<u8>, &'static str),
    Failed(io::Error),
}

impl<E: Into<io::Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Where what is found goes.
trait Place {
    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), Refusal>;
    /// An empty file of that name, which says something of another one.
    fn mark(&mut self, path: &[u8]) -> Result<(), Refusal>;
}

/// Something that is there.
struct Entry<'e> {
    /// Where in the archive.
    path: &'e [u8],
    /// Where it is: its name in an open directory.
    directory: &'e OwnedFd,
    name: &'e CStr,
    status: Stat,
}

impl Entry<'_> {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.status.st_mode)
    }

    /// The attributes that a workspace may have. Links and pipes have none of these.
    fn attributes(&self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let flags = match self.kind() {
            FileType::Directory => DIRECTORY,
            FileType::RegularFile => OFlags::RDONLY | OFlags::NONBLOCK,
            _ => return Ok(Vec::new()),
        };
        let opened = open_itself(self.directory, self.name, flags)?;
        let mut names = vec![0; LARGEST];
        let length = match flistxattr(&opened, &mut names[..]) {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            listed => listed?,
        };
        let mut all = Vec::new();
        for name in names[..length].split(|byte| *byte == 0) {
            if !may_travel(name) {
                continue;
            }
            let mut value = vec![0; LARGEST];
            let length = fgetxattr(&opened, name, &mut value[..])?;
            value.truncate(length);
            all.push((name.to_vec(), value));
        }
        all.sort();
        Ok(all)
    }
}

fn open_itself(directory: &OwnedFd, name: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(if name == c"." {
        openat(directory, c".", flags | OFlags::CLOEXEC, Mode::empty())?
    } else {
        open_below(directory, name, flags)?
    })
}

/// Goes through what layers show together.
fn walk_one(
    chain: &Chain,
    at: &Path,
    identity: Identity,
    place: &mut dyn Place,
) -> Result<(), Refusal> {
    let layers = Layers::of(chain, identity)?;
    let at = at.as_os_str().as_bytes();
    let path = at.strip_prefix(b"/").unwrap_or(at);
    let root = layers.root()?;
    let Some((_, top)) = root.parts.first() else {
        return Ok(());
    };
    place.entry(&Entry {
        path,
        directory: top,
        name: c".",
        status: statat(top, c".", AtFlags::SYMLINK_NOFOLLOW)?,
    })?;
    let mut walk = Walk {
        layers: &layers,
        place,
    };
    walk.directory(&root, path, Shown::Changes)
}

/// What of a directory is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// What is other than below.
    Changes,
    /// All: what is below it was elsewhere.
    All,
}

struct Walk<'w> {
    layers: &'w Layers,
    place: &'w mut dyn Place,
}

impl Walk<'_> {
    fn directory(&mut self, here: &Merged, path: &[u8], shown: Shown) -> Result<(), Refusal> {
        let mut names = Names::default();
        while let Some(name) = names.next(here)? {
            let below = join(path, name.to_bytes());
            match self.layers.look_up(here, &name)? {
                Found::Whiteout => {
                    if shown == Shown::Changes && is_below(here, &name)? {
                        let mark = [WHITEOUT, name.to_bytes()].concat();
                        self.place.mark(&join(path, &mark))?;
                    }
                }
                Found::File(_, status) if is_socket(&status) => {
                    // Of no use without its process; what it took the place of is gone all the same.
                    if shown == Shown::Changes && is_below(here, &name)? {
                        let mark = [WHITEOUT, name.to_bytes()].concat();
                        self.place.mark(&join(path, &mark))?;
                    }
                }
                Found::File(part, status) => self.place.entry(&Entry {
                    path: &below,
                    directory: &here.parts[part].1,
                    name: &name,
                    status,
                })?,
                Found::Directory(found) => {
                    let Some((_, first)) = found.merged.parts.first() else {
                        continue;
                    };
                    self.place.entry(&Entry {
                        path: &below,
                        directory: first,
                        name: c".",
                        status: found.status,
                    })?;
                    let joins = found.merged.below.is_some();
                    let was_elsewhere = joins && found.wanted != name.to_bytes();
                    if shown == Shown::Changes
                        && (was_elsewhere || !joins)
                        && is_below(here, &name)?
                    {
                        self.place.mark(&join(&below, WHITEOUT_OPAQUE))?;
                    }
                    let shown = if was_elsewhere { Shown::All } else { shown };
                    names.close();
                    self.directory(&found.merged, &below, shown)?;
                }
            }
        }
        match &here.below {
            Some(below) if shown == Shown::All => self.all(below, &here.parts, path),
            _ => Ok(()),
        }
    }

    /// All that is in a directory but what these have a word on.
    fn all(
        &mut self,
        directory: &OwnedFd,
        but: &[(usize, OwnedFd)],
        path: &[u8],
    ) -> Result<(), Refusal> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if is_dots(name) || is_in_any(but, name)? {
                continue;
            }
            let below = join(path, name.to_bytes());
            let status = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let entry = Entry {
                path: &below,
                directory,
                name,
                status,
            };
            self.place.entry(&entry)?;
            if entry.kind() == FileType::Directory {
                let next = open_below(directory, name, DIRECTORY)?;
                self.all(&next, &[], &below)?;
            }
        }
        Ok(())
    }
}

fn is_socket(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::Socket
}

fn is_below(here: &Merged, name: &CStr) -> io::Result<bool> {
    match &here.below {
        Some(below) => exists(below, name),
        None => Ok(false),
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, b"/", name].concat()
    }
}

/// Finds what cannot be told in an archive, or not be taken in again.
struct Check;

impl Place for Check {
    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), Refusal> {
        let refuse = |why| Err(Refusal::Because(entry.path.to_vec(), why));
        let limits = UnpackLimits::default();
        let mut parts = entry.path.rsplit(|byte| *byte == b'/');
        if parts.next().is_some_and(|name| name.starts_with(WHITEOUT)) {
            return refuse("has a name that stands for a deletion in archives of layers");
        }
        if entry.path.len() + WHITEOUT_OPAQUE.len() + 1 >= PATH_MAX {
            return refuse("has a path that is too long for an archive");
        }
        if parts.count() + 2 > limits.depth {
            return refuse("lies too many directories deep for an archive");
        }
        match entry.kind() {
            FileType::CharacterDevice | FileType::BlockDevice => return refuse("is a device"),
            FileType::RegularFile if size_of(&entry.status) > limits.bytes => {
                return refuse("is larger than what can be taken in again");
            }
            _ => {}
        }
        let attributes = entry.attributes()?;
        let bytes = attributes.iter();
        let bytes: usize = bytes
            .map(|(name, value)| name.len() + value.len() + 64)
            .sum();
        if bytes > RECORDS_MAX - 3 * PATH_MAX {
            return refuse("has more extended attributes than fit into an archive");
        }
        Ok(())
    }

    fn mark(&mut self, path: &[u8]) -> Result<(), Refusal> {
        let name = path.strip_suffix(WHITEOUT_OPAQUE).unwrap_or(path);
        let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let hidden = name.strip_prefix(WHITEOUT).unwrap_or_default();
        if hidden.starts_with(WHITEOUT) {
            let why =
                "was deleted, and has a name that stands for a deletion in archives of layers";
            return Err(Refusal::Because(path.to_vec(), why));
        }
        Ok(())
    }
}

/// Writes the archive.
struct Writer {
    sink: Sink,
    ids: IdMap,
    /// First names of files with several, by device and inode.
    seen: HashMap<(u64, u64), Vec<u8>>,
    seen_bytes: usize,
}

impl Place for Writer {
    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), Refusal> {
        let mut header = self.header_of(&entry.status);
        if entry.kind() != FileType::Directory
            && let Some(first) = self.first_name(entry)
        {
            header.set_entry_type(EntryType::Link);
            let records = Records::default();
            return Ok(self.append(&mut header, records, entry.path, Some(&first))?);
        }
        let mut records = Records::default();
        records.add(b"mtime", time_of(&entry.status).as_bytes());
        for (name, value) in entry.attributes()? {
            let value = self.inside(&name, value);
            records.add(&[&b"SCHILY.xattr."[..], &name].concat(), &value);
        }
        match entry.kind() {
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                let name = if entry.path.is_empty() {
                    b"./".to_vec()
                } else {
                    [entry.path, b"/"].concat()
                };
                self.append(&mut header, records, &name, None)?;
            }
            FileType::RegularFile => self.file(&mut header, records, entry)?,
            FileType::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                let target = readlinkat(entry.directory, entry.name, Vec::new())?;
                self.append(&mut header, records, entry.path, Some(target.to_bytes()))?;
            }
            FileType::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                self.append(&mut header, records, entry.path, None)?;
            }
            // A socket, for which tar has no form.
            _ => {}
        }
        Ok(())
    }

    fn mark(&mut self, path: &[u8]) -> Result<(), Refusal> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        Ok(self.append(&mut header, Records::default(), path, None)?)
    }
}

impl Writer {
    /// What the snapshot is, before everything else: a global header, which others pass over.
    fn head(&mut self, head: &str) -> io::Result<()> {
        let mut records = Records::default();
        records.add(SNAPSHOT_HEAD, head.as_bytes());
        self.extension(EntryType::XGlobalHeader, &records.0)
    }

    fn header_of(&self, status: &Stat) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(status.st_mode & 0o7777);
        header.set_uid(self.id_inside(status.st_uid).into());
        header.set_gid(self.id_inside(status.st_gid).into());
        header.set_size(0);
        header.set_mtime(u64::try_from(status.st_mtime).unwrap_or_default());
        header
    }

    /// The id that is seen inside; the overflow id for one that is none there, as the kernel shows it.
    fn id_inside(&self, id: u32) -> u32 {
        const OVERFLOW: u32 = 65534;
        let inside = id.checked_sub(self.ids.first);
        inside.filter(|id| *id < self.ids.count).unwrap_or(OVERFLOW)
    }

    /// An attribute's value with the ids in it as inside.
    fn inside(&self, name: &[u8], mut value: Vec<u8>) -> Vec<u8> {
        const ENTRY: usize = 8;
        if name == b"security.capability" {
            // Revision 3 names the root of a user namespace, 2 means that of the one it is set in.
            if value.len() == 24 && value[3] == 3 {
                value.truncate(20);
                value[3] = 2;
            }
        } else if name.starts_with(b"system.posix_acl_") && value.len() >= 4 {
            // acl(5) as in linux/posix_acl_xattr.h: a version, then tag, permissions and id of each.
            for entry in value[4..].chunks_exact_mut(ENTRY) {
                let tag = u16::from_le_bytes([entry[0], entry[1]]);
                if matches!(tag, 0x02 | 0x08) {
                    let id = [entry[4], entry[5], entry[6], entry[7]];
                    let id = self.id_inside(u32::from_le_bytes(id));
                    entry[4..8].copy_from_slice(&id.to_le_bytes());
                }
            }
        }
        value
    }

    /// The name under which this file was written before; if it was not, it is now.
    fn first_name(&mut self, entry: &Entry<'_>) -> Option<Vec<u8>> {
        if entry.status.st_nlink < 2 {
            return None;
        }
        let identity = (entry.status.st_dev, entry.status.st_ino);
        if let Some(first) = self.seen.get(&identity) {
            return Some(first.clone());
        }
        let (most, most_bytes) = REMEMBERED;
        if self.seen.len() < most && self.seen_bytes + entry.path.len() <= most_bytes {
            self.seen_bytes += entry.path.len();
            self.seen.insert(identity, entry.path.to_vec());
        }
        None
    }

    fn file(&mut self, header: &mut Header, records: Records, entry: &Entry<'_>) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = File::from(open_itself(entry.directory, entry.name, flags)?);
        let size = size_of(&entry.status);
        let stored = u64::try_from(entry.status.st_blocks).unwrap_or_default() * BLOCK;
        if stored >= size {
            header.set_size(size);
            self.append(header, records, entry.path, None)?;
            return self.sink.append_data(&file, &[(0, size)], size);
        }
        let pieces = pieces(&file, size)?;
        let data = pieces.iter().map(|(_, length)| length).sum();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(data);
        let after = describe_pieces(header, &pieces, size);
        self.append(header, records, entry.path, None)?;
        self.sink.write_all(&after)?;
        self.sink.append_data(&file, &pieces, data)
    }

    /// Writes a header, after one for what it has no room for.
    fn append(
        &mut self,
        header: &mut Header,
        mut records: Records,
        name: &[u8],
        target: Option<&[u8]>,
    ) -> io::Result<()> {
        if let Some(target) = target {
            if target.len() > NAME {
                records.add(b"linkpath", target);
            }
            let short = target.len().min(NAME);
            header.as_old_mut().linkname[..short].copy_from_slice(&target[..short]);
        }
        if name.len() > NAME {
            records.add(b"path", name);
        }
        let short = name.len().min(NAME);
        header.as_old_mut().name[..short].copy_from_slice(&name[..short]);
        if !records.0.is_empty() {
            self.extension(EntryType::XHeader, &records.0)?;
        }
        header.set_cksum();
        self.sink.write_all(header.as_bytes())
    }

    fn extension(&mut self, kind: EntryType, records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_path("pax")?;
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.sink.write_all(header.as_bytes())?;
        self.sink.write_all(records)?;
        self.sink.pad(records.len() as u64)
    }
}

/// Records of a pax header: `LENGTH KEY=VALUE\n`, the length being that of all of it.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + " =\n".len();
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

fn size_of(status: &Stat) -> u64 {
    u64::try_from(status.st_size).unwrap_or_default()
}

/// `SECONDS[.NANOSECONDS]`, as pax has it; before 1970 the fraction counts backwards.
fn time_of(status: &Stat) -> String {
    let (seconds, nanoseconds) = (status.st_mtime, status.st_mtime_nsec);
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (seconds, nanoseconds) if seconds >= 0 => format!("{seconds}.{nanoseconds:09}"),
        (seconds, nanoseconds) => {
            format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        let mut records = Records::default();
        records.add(b"mtime", b"1");
        records.add(b"k", &[b'v'; 93]);
        records.add(b"k", &[b'v'; 94]);
        let text = String::from_utf8(records.0).expect("text");
        let lengths = text.lines().map(|line| {
            let (length, _) = line.split_once(' ').expect("a length");
            (length.parse().expect("a number"), line.len() + 1)
        });
        let lengths: Vec<(usize, usize)> = lengths.collect();
        assert_eq!(lengths, [(11, 11), (99, 99), (101, 101)]);
    }
}
