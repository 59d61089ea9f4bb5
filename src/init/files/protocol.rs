//! What the provider and a process for files inside a sandbox say to each other.
//!
//! The request comes with the exec; what follows goes over the socket that is the process's stdin.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::init::unpack::Compression;

/// A name or a path as the kernel has it: bytes without a NUL.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawPath(Vec<u8>);

/// One thing to be done with files; every path is absolute.
#[derive(Debug, Serialize, Deserialize)]
pub enum FileRequest {
    /// Open a regular file for reading: `File`, with its descriptor. Or list a directory, if a page of
    /// one is asked for: `Entries`, as often as it takes, then `Listed`.
    Get(RawPath, Option<Page>),
    /// Tell what is there: `Entry`.
    Stat(RawPath, Links),
    /// Make a file that takes the place of what is there: `Ready`, with a descriptor to write to; the
    /// provider then says `Commit`, or ends; `Entry`.
    Replace(RawPath, Creation),
    /// Remove what is there: `Done`.
    Remove(RawPath, Depth),
    /// Make a directory: `Entry`.
    MakeDirectory(RawPath, Creation),
    /// Give another path to what is there, which nothing must have: `Entry`.
    Move(RawPath, RawPath),
    /// Copy what is there to another path, which nothing must have: `Entry`.
    Copy(RawPath, RawPath),
    /// Set permissions: `Entry`.
    ChangeMode(RawPath, u32, Depth),
    /// Write a tar to stdout: `Begun`, and `Done` once all of it is written.
    Archive(RawPath, Compression),
    /// Tell whom what is made belongs to: `Owner`.
    Owner,
    /// Look at everything that is to be seen: `Fingerprint`.
    Fingerprint,
}

/// Which entries of a directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Page {
    /// Only names after this one.
    pub after: Option<RawPath>,
    /// How many at most.
    pub limit: usize,
}

/// Whether a link at the end of a path stands for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Links {
    /// It stands for what it leads to.
    Follow,
    /// It stands for itself.
    Keep,
}

/// How something new is made.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Creation {
    /// Its permissions; those of what it replaces, or else the usual ones, if absent.
    pub mode: Option<u32>,
    /// What is done where its parent is missing.
    pub parents: Parents,
}

/// What is done about missing directories on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parents {
    /// They are made.
    Make,
    /// It is an error.
    Expect,
}

/// How far down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Depth {
    /// The one alone; of directories, an empty one.
    One,
    /// Everything below it too.
    Tree,
}

/// Said by the provider.
#[derive(Debug, Serialize, Deserialize)]
pub enum FileOrder {
    /// Put the file in its place.
    Commit,
}

/// Said by the process.
#[derive(Debug, Serialize, Deserialize)]
pub enum FileReply {
    /// The regular file is open; comes with its descriptor.
    File(FileEntry),
    /// A part of a directory, by name.
    Entries(Vec<FileEntry>),
    /// That was all of the page; whether there is more after it.
    Listed(Rest),
    /// What is there now.
    Entry(FileEntry),
    /// The new file is there to be written to; comes with its descriptor.
    Ready(Before),
    /// What was asked for is there, and bytes of it come.
    Begun,
    /// It goes on, and takes longer. Said now and then by what works through a tree.
    Working,
    /// The ids of the process.
    Owner(Owner),
    /// Of everything that is to be seen.
    Fingerprint(Fingerprint),
    /// It is done.
    Done,
    /// It cannot be done.
    Failed(FileFailure),
}

/// Whether a directory has entries after a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rest {
    /// It has.
    More,
    /// It has not.
    Nothing,
}

/// What is there before something is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Before {
    /// A file, which will be replaced.
    File,
    /// Nothing.
    Nothing,
}

/// One thing in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name; the last part of the path that was asked for.
    pub name: RawPath,
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permissions, with setuid, setgid and sticky.
    pub mode: u32,
    /// Its owner, as inside.
    pub uid: u32,
    /// Its group, as inside.
    pub gid: u32,
    /// When it was changed last: seconds since 1970, and nanoseconds after that.
    pub modified: (i64, u32),
    /// Where it leads, for a link.
    pub target: Option<RawPath>,
}

/// What tells one tree from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Of all entries together, in hexadecimal digits.
    pub digest: String,
    /// How many there are.
    pub entries: u64,
}

/// Whom something belongs to, as inside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// What something in a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
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

/// Why something cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFailure {
    /// Why.
    pub flaw: Flaw,
    /// With what.
    pub path: RawPath,
}

impl FileFailure {
    /// Whether permissions are against it.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.flaw == Flaw::Errno(libc::EACCES)
    }
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flaw {
    /// The kernel's errno.
    Errno(i32),
    /// It is a pipe, a socket, a device, or one that the kernel makes up, as in `/proc`.
    NotRegular,
    /// Directories lie deeper within each other than is worked on.
    TooDeep,
    /// It is the root directory, or a path that ends in `.` or `..`.
    NoName,
}

impl RawPath {
    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As text, if it is UTF-8.
    #[must_use]
    pub fn to_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl From<Vec<u8>> for RawPath {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for RawPath {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

/// For people: one line, not too long, and nothing in it that steers a terminal.
impl fmt::Display for RawPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 300;
        let text = String::from_utf8_lossy(&self.0);
        let mut characters = text.chars();
        for c in characters.by_ref().take(SHOWN) {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        match characters.next() {
            Some(_) => f.write_str("…"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for RawPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Text where it is UTF-8, so that a trace can be read.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written<'a> {
    Text(Cow<'a, str>),
    Bytes { base64: Cow<'a, str> },
}

impl Serialize for RawPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.to_str() {
            Some(text) => Written::Text(text.into()),
            None => Written::Bytes {
                base64: STANDARD.encode(&self.0).into(),
            },
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Text(text) => Ok(Self(text.into_owned().into_bytes())),
            Written::Bytes { base64 } => STANDARD
                .decode(base64.as_bytes())
                .map(Self)
                .map_err(de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_the_way_and_text_stays_text() {
        for (bytes, json) in [
            (&b"/a b\n"[..], r#""/a b\n""#),
            (b"/\xff", r#"{"base64":"L/8="}"#),
            (b"", r#""""#),
        ] {
            let path = RawPath::from(bytes);
            let written = serde_json::to_string(&path).expect("json");
            assert_eq!(written, json);
            assert_eq!(serde_json::from_str::<RawPath>(&written).expect(json), path);
        }
    }

    #[test]
    fn a_name_in_a_message_steers_no_terminal() {
        let hostile = RawPath::from(&b"/a\x1b[2J\n\xff"[..]);
        assert_eq!(hostile.to_string(), "/a\\u{1b}[2J\\n\u{fffd}");
        let long = RawPath::from(vec![b'x'; 1000]);
        assert_eq!(long.to_string().chars().count(), 301);
    }
}
