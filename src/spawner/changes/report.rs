//! What a list of changes says of each.

use rustix::fs::FileType;
use serde::Serialize;
use utoipa::ToSchema;

use super::Stop;
use super::content::Object;
use super::names::told;
use super::renames::Renames;
use super::sensitive;
use super::walk::{Seen, Walk};

/// What changed in a workspace since setup.
#[derive(Debug, Serialize, ToSchema)]
pub struct Changes {
    /// Whether it is surely all of one moment: nothing ran in the workspace, or the kernel's freezer held it. Where
    /// there is none it is stopped by a signal, and a process can have itself go on.
    pub consistent: bool,
    /// The repositories that setup checked out.
    pub repositories: Vec<Repository>,
    /// What changed, by path.
    pub changes: Vec<Entry>,
    /// What changed and is ignored, by the rules that setup's checkout has: by path.
    pub ignored: Vec<Entry>,
    /// Git directories in which something changed. Nothing in them is listed by itself.
    pub git: Vec<GitDirectory>,
    /// Directories in which more changed, which is not told: it is too deep for a path, or there are too many
    /// names. What is in one of the latter is told where its path is asked about.
    pub too_deep: Vec<Place>,
}

/// A repository that setup checked out.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChangesRepository)]
pub struct Repository {
    /// Absolute.
    pub path: String,
    /// What was checked out.
    pub commit: String,
}

/// A path in the workspace.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChangesPlace)]
pub struct Place {
    /// Absolute.
    pub path: String,
    /// Standard base64 of the path, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
}

impl Place {
    pub(super) fn new(path: &[u8]) -> Self {
        let (path, path_base64) = told(path);
        Self { path, path_base64 }
    }
}

/// One thing that changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Change)]
pub struct Entry {
    /// Where it is, or was.
    #[serde(flatten)]
    pub place: Place,
    /// What happened to it.
    pub change: Kind,
    /// Where a renamed file was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Place>,
    /// The path of the repository that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// What it was after setup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Side>,
    /// What it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Side>,
    /// Of a file: whether it is, or was, anything but text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<bool>,
    /// Why to look at it before it is used: what runs it by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensitive: Option<String>,
}

/// What happened to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ChangeKind)]
pub enum Kind {
    /// It is new.
    Added,
    /// It is gone.
    Deleted,
    /// Its content is another.
    Modified,
    /// It has another path, and maybe another content.
    Renamed,
    /// Its permissions are others.
    Mode,
    /// It belongs to another.
    Owner,
    /// It is something else, such as a link in the place of a file.
    Type,
}

/// What something is, or was.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChangeSide)]
pub struct Side {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Type,
    /// Permissions, with setuid, setgid and sticky: four octal digits.
    pub mode: String,
    /// Its owner, as inside.
    pub uid: u32,
    /// Its group, as inside.
    pub gid: u32,
    /// Of a file: bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Where it leads, for a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Standard base64 of the target, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_base64: Option<String>,
}

/// What something in a workspace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ChangeType)]
pub enum Type {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, a socket or a device.
    Other,
}

/// A git directory in which something changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChangedGitDirectory)]
pub struct GitDirectory {
    /// Where it is: a directory `.git`, or a file or link of that name.
    #[serde(flatten)]
    pub place: Place,
    /// Whether it is that of a repository that setup checked out.
    pub known: bool,
    /// Files in it that are new.
    pub added: u64,
    /// Files in it that are other than they were.
    pub modified: u64,
    /// Files in it that are gone.
    pub deleted: u64,
    /// Of these, new or other ones that git runs, or that say what it runs; a hundred at most, and those that
    /// git reads where they are before others.
    pub sensitive: Vec<SensitiveFile>,
    /// How many more of them there are.
    pub sensitive_left_out: u64,
}

/// A file of git's own to look at.
#[derive(Debug, Serialize, ToSchema)]
pub struct SensitiveFile {
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// What runs it.
    pub reason: String,
}

impl Kind {
    /// What happened, if something did. It may have been called something else all the same.
    pub(super) fn of(seen: &Seen<'_>) -> Result<Option<Self>, Stop> {
        Ok(match (&seen.old, &seen.new) {
            (None, Some(_)) => Some(Self::Added),
            (Some(_), None) => Some(Self::Deleted),
            (Some(old), Some(new)) if old.kind() != new.kind() => Some(Self::Type),
            (Some(old), Some(new)) if !old.is_same(new)? => Some(Self::Modified),
            (Some(old), Some(new)) if old.mode() != new.mode() => Some(Self::Mode),
            (Some(old), Some(new)) => {
                let owner = |object: &Object<'_>| (object.status.st_uid, object.status.st_gid);
                (owner(old) != owner(new)).then_some(Self::Owner)
            }
            (None, None) => None,
        })
    }
}

impl Entry {
    /// What is told of something, if it changed.
    pub(super) fn of(
        walk: &Walk<'_>,
        renames: &Renames,
        seen: &Seen<'_>,
        repository: Option<String>,
    ) -> Result<Option<Self>, Stop> {
        let Some(mut kind) = Kind::of(seen)? else {
            return Ok(None);
        };
        if kind == Kind::Deleted && renames.is_elsewhere(seen.path) {
            return Ok(None);
        }
        let from = renames.old(seen.path).map(|old| old.path.as_slice());
        let from = from.filter(|_| kind == Kind::Added);
        let mut old = seen.old;
        if let Some(from) = from {
            kind = Kind::Renamed;
            let origin = seen.origin.as_ref();
            old = origin.filter(|(path, _)| path == from).map(|(_, old)| *old);
        }
        let mut binary = None;
        for side in [old, seen.new].into_iter().flatten() {
            if side.is(FileType::RegularFile) {
                binary = Some(binary == Some(true) || side.is_binary()?);
            }
        }
        Ok(Some(Self {
            place: Place::new(seen.path),
            change: kind,
            from: from.map(Place::new),
            repository,
            old: old.map(|old| Side::of(walk, &old)).transpose()?,
            new: seen.new.map(|new| Side::of(walk, &new)).transpose()?,
            binary,
            sensitive: seen
                .new
                .and_then(|new| sensitive::reason(seen.path, &new))
                .map(str::to_owned),
        }))
    }
}

impl Side {
    fn of(walk: &Walk<'_>, object: &Object<'_>) -> Result<Self, Stop> {
        let kind = match object.kind() {
            FileType::RegularFile => Type::File,
            FileType::Directory => Type::Directory,
            FileType::Symlink => Type::Symlink,
            _ => Type::Other,
        };
        let target = match kind {
            Type::Symlink => Some(told(&object.target()?)),
            _ => None,
        };
        let (target, target_base64) = target.unzip();
        Ok(Self {
            kind,
            mode: format!("{:04o}", object.mode()),
            uid: object.status.st_uid.saturating_sub(walk.ids.first),
            gid: object.status.st_gid.saturating_sub(walk.ids.first),
            size: (kind == Type::File).then(|| object.size()),
            target,
            target_base64: target_base64.flatten(),
        })
    }
}
