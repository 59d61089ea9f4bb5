//! Unpacks a tar archive below one directory, on the assumption that a hostile hand wrote it.
//!
//! Mostly it runs inside a sandbox, so the kernel already keeps it from the host. It is strict all the
//! same: what it writes becomes a layer that later steps trust. On the host it is stricter still: see
//! [`Terms::Host`]. Every name is resolved by the
//! kernel relative to the destination (`RESOLVE_IN_ROOT`), nothing is replaced that is not named,
//! control attributes of overlayfs, devices and FIFOs never get through, and the first error ends it.
//!
//! Must stay single-threaded, without tokio, `/proc`, name service or locale; memory does not grow
//! with the size of the archive, but for eight bytes a directory.
//!
//! Whiteouts (`.wh.*`) are ordinary names, but in a snapshot that is taken in ([`Terms::Snapshot`]): only there
//! the format gives them a meaning.

mod archive;
mod place;
mod removal;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use archive::{Archive, Member};
use place::Placer;

/// Size of a tar record; headers and padding come in these.
const BLOCK: usize = 512;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// A bare tar.
    Plain,
    /// gzip, of one or more members (RFC 1952).
    Gzip,
    /// zstd, of one or more frames (RFC 8878), with a window of at most 128 MiB.
    Zstd,
    /// xz, of one or more streams.
    Xz,
}

impl Compression {
    /// Tells the compression from the first 512 bytes of an archive, or fewer if it has not as many.
    ///
    /// # Errors
    ///
    /// [`UnpackError::UnsupportedCompression`] for a known format that derrick does not read,
    /// [`UnpackError::NotAnArchive`] for anything else.
    pub fn detect(start: &[u8]) -> Result<Self, UnpackError> {
        const SUPPORTED: [(&[u8], Compression); 3] = [
            (&[0x1f, 0x8b], Compression::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
        ];
        const UNSUPPORTED: [(&[u8], &str); 6] = [
            (b"BZh", "bzip2"),
            (b"LZIP", "lzip"),
            (&[0x04, 0x22, 0x4d, 0x18], "lz4"),
            (&[0x1f, 0x9d], "compress"),
            (&[0x5d, 0, 0], "lzma"),
            (b"PK\x03\x04", "zip"),
        ];
        // A header comes first: the name of a file may well begin like a compressed stream.
        if start.len() >= BLOCK && archive::starts_like_tar(&start[..BLOCK]) {
            return Ok(Self::Plain);
        }
        if let Some((_, found)) = SUPPORTED.iter().find(|(magic, _)| start.starts_with(magic)) {
            return Ok(*found);
        }
        // zstd may begin with a skippable frame; pzstd always does.
        if matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) {
            return Ok(Self::Zstd);
        }
        match UNSUPPORTED
            .iter()
            .find(|(magic, _)| start.starts_with(magic))
        {
            Some((_, name)) => Err(UnpackError::UnsupportedCompression(name)),
            None => Err(UnpackError::NotAnArchive),
        }
    }

    /// Tells the compression of a stream; gives the stream back with nothing lost.
    ///
    /// # Errors
    ///
    /// As [`Compression::detect`], and [`UnpackError::Read`].
    pub fn sniff<R: Read>(mut archive: R) -> Result<(Self, impl Read), UnpackError> {
        let mut start = Vec::with_capacity(BLOCK);
        archive
            .by_ref()
            .take(BLOCK as u64)
            .read_to_end(&mut start)
            .map_err(UnpackError::Read)?;
        let found = Self::detect(&start)?;
        Ok((found, io::Cursor::new(start).chain(archive)))
    }
}

/// What an archive may cost at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackLimits {
    /// Bytes of the archive once decompressed; no file in it may be longer either, holes included.
    pub bytes: u64,
    /// Files, directories and links, parent directories made on the way included.
    pub entries: u64,
    /// Directories, of those entries.
    pub directories: u64,
    /// Components of a name.
    pub depth: usize,
    /// Decompressed bytes for each compressed one.
    pub ratio: u64,
    /// Decompressed bytes from which on `ratio` counts: small archives of zeros are harmless.
    pub ratio_from: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 20_000_000,
            directories: 4_000_000,
            depth: 1024,
            ratio: 200,
            ratio_from: 1 << 30,
        }
    }
}

/// What becomes of what an archive says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terms {
    /// It is taken to the letter as far as possible: the destination is in a sandbox.
    Sandbox,
    /// It is what a snapshot changed, as `spawner::exporting` writes it: whiteouts are what is deleted, pipes are
    /// made, and no link is followed on the way to an entry. What no workspace could have made is refused.
    Snapshot,
    /// It is what a user takes home from a stranger: names, contents, times, and the modes less
    /// setuid, setgid, sticky and `umask`, directories always open to their owner. Everything
    /// belongs to the user. Links that lead out of the destination are left out,
    /// also by way of other links. The destination must be new, so that nothing is there before.
    Host {
        /// Permission bits that nothing gets.
        umask: u32,
    },
}

/// The key of the global pax header that says what a snapshot is.
pub const SNAPSHOT_HEAD: &[u8] = b"DERRICK.snapshot";

/// Characters of what a snapshot is called.
pub const LABEL_MAX: usize = 200;

/// The format of archives of snapshots that is written, and read.
pub const SNAPSHOT_FORMAT: u32 = 1;

/// How the name of an entry begins that stands for a deletion.
pub const WHITEOUT: &[u8] = b".wh.";

/// The entry that stands for the deletion of all that was in its directory.
pub const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// What the archive of a snapshot says of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// Of the archive.
    pub format: u32,
    /// The derrick that wrote it.
    pub version: String,
    /// Digest of the setup layer that it stands on.
    pub base: String,
    /// The snapshot's id, where it was taken.
    pub id: String,
    /// When it was taken, seconds since 1970.
    pub created: f64,
    /// What it was called.
    #[serde(default)]
    pub label: Option<String>,
    /// The environment of its workspace.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The commits that its workspace had taken in, by path.
    #[serde(default)]
    pub commits: BTreeMap<String, String>,
}

impl SnapshotHead {
    /// What is wrong with what it says, if something is.
    #[must_use]
    pub fn flaw(&self) -> Option<&'static str> {
        let is_name = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
        let label = self.label.as_deref().unwrap_or_default();
        if label.chars().count() > LABEL_MAX {
            return Some("its label is too long");
        }
        let mut env = self.env.iter();
        if !env.all(|(name, value)| is_name(name) && !value.contains('\0')) {
            return Some("its environment has what none can have");
        }
        None
    }
}

/// What came of an archive of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Applied {
    /// All of it is there.
    Done(Box<SnapshotHead>, Summary),
    /// Nothing: it stands on another setup layer.
    OtherBase(Box<SnapshotHead>),
}

/// Extended attributes that go with a snapshot: those that a workspace may set, and that mean the same to the
/// overlay of another one.
#[must_use]
pub fn may_travel(name: &[u8]) -> bool {
    place::may_be_set(name)
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

/// What was unpacked, and what of it could not be done to the letter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Entries placed, parent directories made on the way included.
    pub entries: u64,
    /// Bytes written to files.
    pub bytes: u64,
    /// Entries whose owner has no id here; they belong to the caller and lost setuid and setgid.
    pub owners_squashed: u64,
    /// The names of the first of those, escaped.
    pub names_squashed: Vec<String>,
    /// Extended attributes that were left out, or that the filesystem refused.
    pub xattrs_dropped: u64,
    /// Entries at or below another mount, left out: they would have been hidden anyway.
    pub under_mounts_skipped: u64,
    /// All entries left out: these, devices and FIFOs, and what [`Terms::Host`] has no place for.
    pub left_out: u64,
    /// The names of the first of those, escaped.
    pub names_left_out: Vec<String>,
}

/// Why an archive could not be unpacked. Part of it may be on disk.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Neither a tar nor anything that could hold one.
    #[error("not a tar archive, plain or compressed")]
    NotAnArchive,
    /// A known format that derrick does not read.
    #[error("{0} compression is not supported; use gzip, zstd or xz")]
    UnsupportedCompression(&'static str),
    /// It ends in the middle.
    #[error("archive is truncated: it ends after {offset} bytes (decompressed)")]
    Truncated {
        /// Where, in bytes of the decompressed archive.
        offset: u64,
    },
    /// It contradicts its format.
    #[error("archive is damaged at byte {offset} (decompressed): {reason}")]
    Corrupt {
        /// Where, in bytes of the decompressed archive.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// Reading the archive failed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The destination is not a directory that can be opened.
    #[error("cannot open the destination {path}")]
    Destination {
        /// The destination, escaped.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It does not say of which snapshot it is.
    #[error("not an archive of a snapshot: it does not begin with what derrick says of one")]
    NoSnapshot,
    /// What it says of its snapshot cannot be.
    #[error("what the archive says of its snapshot cannot be: {0}")]
    BadHead(&'static str),
    /// Another derrick wrote it.
    #[error("the archive has format {0}; this derrick reads {SNAPSHOT_FORMAT}")]
    OtherFormat(u32),
    /// It exceeds one of [`UnpackLimits`].
    #[error("archive exceeds the limit of {limit} {what}")]
    TooMuch {
        /// The unit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// An entry is what no archive should hold.
    #[error("refused entry '{entry}': {reason}")]
    Refused {
        /// Its name, escaped and shortened.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A call for an entry failed.
    #[error("cannot {action} for entry '{entry}'")]
    Failed {
        /// Its name, escaped and shortened.
        entry: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed, with its errno.
        source: io::Error,
    },
}

/// Unpacks `archive` below the existing directory `dest`.
///
/// Owners, modes, times, hard links, holes, `user.*` attributes and file capabilities are kept.
/// Files and links already there are replaced by entries of the same name; a directory entry
/// keeps a link to a directory; links in the way are followed, but never out of `dest`.
///
/// # Errors
///
/// The first thing that is wrong with the archive or the destination; see [`UnpackError`].
pub fn unpack(
    archive: impl Read,
    compression: Compression,
    dest: &Path,
    limits: &UnpackLimits,
) -> Result<Summary, UnpackError> {
    let placer = Placer::new(dest, limits, Terms::Sandbox)?;
    let mut archive = Archive::new(archive, compression, limits)?;
    let first = archive.next_member()?;
    place_all(archive, first, placer)
}

/// Unpacks an archive of a snapshot on top of what is there, if that is what it stands on: the setup layer of
/// the digest `base`. `roots` are the filesystems that it may change, `/` among them.
///
/// # Errors
///
/// As [`unpack`]; also where it is no archive of a snapshot.
pub fn unpack_snapshot(
    archive: impl Read,
    roots: &[&Path],
    base: &str,
    limits: &UnpackLimits,
) -> Result<Applied, UnpackError> {
    let (compression, archive) = Compression::sniff(archive)?;
    let mut archive = Archive::new(archive, compression, limits)?;
    let first = archive.next_member()?;
    let head = archive.snapshot_head().ok_or(UnpackError::NoSnapshot)?;
    let head: SnapshotHead = serde_json::from_slice(head).map_err(|_| UnpackError::NoSnapshot)?;
    if head.format != SNAPSHOT_FORMAT {
        return Err(UnpackError::OtherFormat(head.format));
    }
    if let Some(flaw) = head.flaw() {
        return Err(UnpackError::BadHead(flaw));
    }
    let head = Box::new(head);
    if head.base != base {
        return Ok(Applied::OtherBase(head));
    }
    let mut placer = Placer::new(Path::new("/"), limits, Terms::Snapshot)?;
    for root in roots {
        placer.add_root(root)?;
    }
    let summary = place_all(archive, first, placer)?;
    Ok(Applied::Done(head, summary))
}

/// Unpacks a plain `archive` of a stranger below the existing, empty directory `dest` of the host, on
/// the terms of [`Terms::Host`].
///
/// # Errors
///
/// As [`unpack`].
pub fn unpack_on_host(
    archive: impl Read,
    dest: &Path,
    umask: u32,
    limits: &UnpackLimits,
) -> Result<Summary, UnpackError> {
    let placer = Placer::new(dest, limits, Terms::Host { umask })?;
    let mut archive = Archive::new(archive, Compression::Plain, limits)?;
    let first = archive.next_member()?;
    place_all(archive, first, placer)
}

fn place_all(
    mut archive: Archive<'_>,
    first: Option<Member>,
    mut placer: Placer<'_>,
) -> Result<Summary, UnpackError> {
    let mut next = first;
    while let Some(member) = next {
        placer.place(&member, &mut archive)?;
        next = archive.next_member()?;
    }
    placer.finish()
}

/// A name as it may stand in a message: one line, ASCII, not too long.
fn escape(name: &[u8]) -> String {
    const SHOWN: usize = 200;
    let shown = name[..name.len().min(SHOWN)].escape_ascii();
    if name.len() > SHOWN {
        format!("{shown}...")
    } else {
        shown.to_string()
    }
}

#[cfg(test)]
mod tests;
