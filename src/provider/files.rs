//! What a provisioning mode must do with the files of a workspace.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Error, OpenFile, WorkspaceId};
use crate::init::files::protocol::{FileEntry, FileKind};

pub use crate::init::files::protocol::{
    Before, Creation, Depth, Links, Page, Parents, RawPath, Rest,
};
pub use crate::init::unpack::{Compression, Summary};
pub use crate::pool::files::Content;
pub use crate::workspace::FileTarget;

/// Files of workspaces, resolved and touched inside them as a user of theirs.
///
/// A future that is dropped stops what it was doing: a `put` then has replaced nothing, of the others
/// a part may be done.
#[async_trait]
pub trait Files: Send + Sync {
    /// Opens a regular file, or lists a directory.
    async fn get(&self, id: &WorkspaceId, target: FileTarget, page: Page) -> Result<Found, Error>;
    /// Tells what is there.
    async fn stat(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        links: Links,
    ) -> Result<Entry, Error>;
    /// Puts a file with this content in the place of what is there; atomic.
    async fn put(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        creation: Creation,
        content: Content,
    ) -> Result<(Entry, Before), Error>;
    /// Changes what is there otherwise; what is there then, which is nothing after a removal.
    async fn change(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        change: Change,
    ) -> Result<Option<Entry>, Error>;
    /// A directory or file as a tar, in pieces; it ends in an error if it is not whole.
    async fn pack(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        compression: Compression,
    ) -> Result<Content, Error>;
    /// Unpacks a tar into a directory, which is made if it is not there.
    async fn unpack(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        compression: Compression,
        content: Content,
    ) -> Result<Unpacked, Error>;
}

/// A change of what is at a path.
#[derive(Debug, Clone)]
pub enum Change {
    /// It goes; of directories, an empty one, or everything below it too.
    Remove(Depth),
    /// A directory is made there.
    MakeDirectory(Creation),
    /// It gets another path, where nothing must be.
    Move(RawPath),
    /// It is copied to another path, where nothing must be.
    Copy(RawPath),
    /// It gets these permissions.
    SetMode(u32, Depth),
}

/// What was there to get.
#[derive(Debug)]
pub enum Found {
    /// A regular file.
    File(OpenFile, Entry),
    /// Entries of a directory, by name, and the name after which there are more, if there are.
    Directory(Vec<Entry>, Option<RawPath>),
}

/// One thing in a workspace's tree.
///
/// A name that is not UTF-8 is given in base64 too; the text beside it is then for people alone.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = FileEntry)]
pub struct Entry {
    /// Absolute.
    pub path: String,
    /// Standard base64 of the path, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    /// The last part of the path.
    pub name: String,
    /// Standard base64 of the name, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_base64: Option<String>,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: EntryType,
    /// Bytes.
    pub size: u64,
    /// Permissions, with setuid, setgid and sticky: four octal digits.
    pub mode: String,
    /// Its owner, as inside.
    pub uid: u32,
    /// Its group, as inside.
    pub gid: u32,
    /// When its content was changed last, seconds since 1970.
    pub mtime: f64,
    /// Where it leads, for a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Standard base64 of the target, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_base64: Option<String>,
}

/// What was unpacked, and what of it is not as the archive has it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Unpacked {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Left out: devices, pipes, and what would lie on another filesystem. Absent if there was nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<Entries>,
    /// Their owner or group has no id in the workspace: they belong to who unpacked them, without
    /// setuid and setgid. Absent if there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owners_changed: Option<Entries>,
    /// Extended attributes that were left out. Absent if there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes_left_out: Option<u64>,
}

/// Some entries of an archive.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ArchiveEntries)]
pub struct Entries {
    /// How many.
    pub count: u64,
    /// The names of the first few, shortened, as ASCII with escapes.
    pub names: Vec<String>,
}

impl Entries {
    fn some(count: u64, names: Vec<String>) -> Option<Self> {
        (count > 0).then_some(Self { count, names })
    }
}

impl From<Summary> for Unpacked {
    fn from(summary: Summary) -> Self {
        Self {
            entries: summary.entries,
            bytes: summary.bytes,
            left_out: Entries::some(summary.left_out, summary.names_left_out),
            owners_changed: Entries::some(summary.owners_squashed, summary.names_squashed),
            attributes_left_out: (summary.xattrs_dropped > 0).then_some(summary.xattrs_dropped),
        }
    }
}

/// What something in a workspace's tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EntryType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
}

impl From<FileKind> for EntryType {
    fn from(kind: FileKind) -> Self {
        match kind {
            FileKind::File => Self::File,
            FileKind::Directory => Self::Directory,
            FileKind::Symlink => Self::Symlink,
            FileKind::Fifo => Self::Fifo,
            FileKind::Socket => Self::Socket,
            FileKind::BlockDevice => Self::BlockDevice,
            FileKind::CharDevice => Self::CharDevice,
        }
    }
}

impl Entry {
    /// What was found at `path`.
    pub(super) fn at(path: &RawPath, found: &FileEntry) -> Self {
        let bytes = path.as_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/');
        let path = match end {
            Some(end) => &bytes[..=end],
            None => b"/",
        };
        Self::new(path, found)
    }

    /// What was found in the directory at `path`.
    pub(super) fn below(path: &RawPath, found: &FileEntry) -> Self {
        let directory = path.as_bytes();
        let end = directory.iter().rposition(|byte| *byte != b'/');
        let directory = end.map_or(&[][..], |end| &directory[..=end]);
        let path = [directory, b"/", found.name.as_bytes()].concat();
        Self::new(&path, found)
    }

    fn new(path: &[u8], found: &FileEntry) -> Self {
        let (path, path_base64) = text(path);
        let (name, name_base64) = text(found.name.as_bytes());
        let (target, target_base64) = match &found.target {
            Some(target) => {
                let (target, base64) = text(target.as_bytes());
                (Some(target), base64)
            }
            None => (None, None),
        };
        let (seconds, nanoseconds) = found.modified;
        Self {
            path,
            path_base64,
            name,
            name_base64,
            kind: found.kind.into(),
            size: found.size,
            mode: format!("{:04o}", found.mode),
            uid: found.uid,
            gid: found.gid,
            // A double holds the seconds of millions of years, and microseconds of ours.
            mtime: seconds as f64 + f64::from(nanoseconds) / 1e9,
            target,
            target_base64,
        }
    }
}

/// Bytes as text, and in base64 if they are not.
fn text(bytes: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (
            String::from_utf8_lossy(bytes).into_owned(),
            Some(STANDARD.encode(bytes)),
        ),
    }
}
