//! Files of workspaces in the `ns` mode, and what the API calls it when they refuse.

use std::io::{self, Read};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;

use super::{NsProvider, Workspace, check_text, error_of, to_its_end, user_error_of};
use crate::chain;
use crate::init::files::protocol::{FileFailure, FileRequest, Flaw};
use crate::init::protocol::{Attempt, Refusal};
use crate::init::user;
use crate::pool::SandboxError;
use crate::pool::files::{FileError, Got};
use crate::provider::files::{
    Before, Change, Compression, Content, Creation, Entry, FileTarget, Files, Found, Links, Page,
    Parents, RawPath, Rest, Unpacked,
};
use crate::provider::{Error, FileContent, FilePath, OpenFile, WorkspaceId};
use crate::workspace::WorkspaceError;

/// `PATH_MAX` of the kernel.
const MAX_PATH: usize = 4096;
/// Bytes after which it is looked once more whether the host's disk has room.
const LOOK: usize = 32 << 20;
/// Bytes that are read at once from what is written by `write_file`.
const PIECE: usize = 1 << 20;

#[async_trait]
impl Files for NsProvider {
    async fn get(&self, id: &WorkspaceId, target: FileTarget, page: Page) -> Result<Found, Error> {
        let workspace = self.ready(id, &target).await?;
        let path = target.path.clone();
        let explain = self.explain(&target);
        match workspace
            .get_file(target, Some(page))
            .await
            .map_err(explain)?
        {
            Got::File(file, entry) => {
                let size = size_of(&file)?;
                Ok(Found::File(
                    OpenFile { file, size },
                    Entry::at(&path, &entry),
                ))
            }
            Got::Directory(entries, rest) => {
                let next = match rest {
                    Rest::More => entries.last().map(|last| last.name.clone()),
                    Rest::Nothing => None,
                };
                let entries = entries.into_iter();
                let entries = entries.map(|entry| Entry::below(&path, &entry)).collect();
                Ok(Found::Directory(entries, next))
            }
        }
    }

    async fn stat(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        links: Links,
    ) -> Result<Entry, Error> {
        let request = FileRequest::Stat(target.path.clone(), links);
        let path = target.path.clone();
        let there = self.change_files(id, target, request, path).await?;
        there.ok_or_else(|| Error::Host("a file is there, and nothing is said of it".into()))
    }

    async fn put(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        creation: Creation,
        content: Content,
    ) -> Result<(Entry, Before), Error> {
        let workspace = self.ready(id, &target).await?;
        self.check_room()?;
        let path = target.path.clone();
        let explain = self.explain(&target);
        let content = self.within_room(content);
        let replaced = workspace.replace_file(target, creation, content).await;
        let (entry, before) = replaced.map_err(explain)?;
        Ok((Entry::at(&path, &entry), before))
    }

    async fn change(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        change: Change,
    ) -> Result<Option<Entry>, Error> {
        let path = target.path.clone();
        let (request, path) = match change {
            Change::Remove(depth) => (FileRequest::Remove(path.clone(), depth), path),
            Change::MakeDirectory(creation) => {
                (FileRequest::MakeDirectory(path.clone(), creation), path)
            }
            Change::Move(to) => (FileRequest::Move(path, to.clone()), to),
            Change::Copy(to) => (FileRequest::Copy(path, to.clone()), to),
            Change::SetMode(mode, depth) => {
                (FileRequest::ChangeMode(path.clone(), mode, depth), path)
            }
        };
        check_raw_path(&path)?;
        if !matches!(request, FileRequest::Remove(..)) {
            self.check_room()?;
        }
        self.change_files(id, target, request, path).await
    }

    async fn pack(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        compression: Compression,
    ) -> Result<Content, Error> {
        let workspace = self.ready(id, &target).await?;
        let explain = self.explain(&target);
        workspace
            .archive_files(target, compression)
            .await
            .map_err(explain)
    }

    async fn unpack(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        compression: Compression,
        content: Content,
    ) -> Result<Unpacked, Error> {
        let workspace = self.ready(id, &target).await?;
        self.check_room()?;
        let explain = self.explain(&target);
        let content = self.within_room(content);
        let unpacked = workspace.unpack_files(target, compression, content).await;
        Ok(unpacked.map_err(explain)?.into())
    }
}

impl NsProvider {
    /// The workspace, with a sandbox: that is started to its end even if nobody waits for it.
    async fn ready(
        &self,
        id: &WorkspaceId,
        target: &FileTarget,
    ) -> Result<std::sync::Arc<Workspace>, Error> {
        check_raw_path(&target.path)?;
        if let Some(asked) = &target.user {
            user::check(asked).map_err(|flaw| Error::Invalid(format!("the user {flaw}")))?;
        }
        let workspace = self.get(id)?;
        let starting = std::sync::Arc::clone(&workspace);
        if workspace.current().is_none() {
            to_its_end(async move {
                starting
                    .sandbox()
                    .await
                    .map_err(|error| error_of(error, ""))?;
                Ok(())
            })
            .await?;
        }
        Ok(workspace)
    }

    /// `content`, which ends in an error where the host's disk has no room for more of it.
    pub(super) fn within_room(&self, content: Content) -> Content {
        let state = self.state.clone();
        let mut unlooked = 0;
        let checked = content.map(move |piece| {
            let piece = piece?;
            unlooked += piece.len();
            if unlooked >= LOOK {
                unlooked = 0;
                let low = |error| io::Error::new(io::ErrorKind::StorageFull, error);
                state.check_room().map_err(low)?;
            }
            Ok(piece)
        });
        checked.boxed()
    }

    async fn change_files(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        request: FileRequest,
        path: RawPath,
    ) -> Result<Option<Entry>, Error> {
        let workspace = self.ready(id, &target).await?;
        let explain = self.explain(&target);
        let changed = workspace.change_files(target.user, request).await;
        let entry = changed.map_err(explain)?;
        Ok(entry.map(|entry| Entry::at(&path, &entry)))
    }

    /// What the API calls an error of a request for `target`.
    fn explain(&self, target: &FileTarget) -> impl FnOnce(WorkspaceError) -> Error + use<> {
        let user = target.user.clone();
        let user = user.unwrap_or_else(|| self.config.user.clone());
        move |error| match error {
            WorkspaceError::File(FileError::Sandbox(SandboxError::Refused(
                refusal @ Refusal {
                    attempt: Attempt::User(uid),
                    ..
                },
            ))) => user_error_of(&refusal, uid, &user),
            other => error_of(other, "/"),
        }
    }

    pub(super) async fn replace_by(
        &self,
        id: &WorkspaceId,
        target: FilePath,
        content: FileContent,
    ) -> Result<(), Error> {
        let creation = Creation {
            mode: None,
            parents: Parents::Make,
        };
        let target = self.target(id, &target)?;
        self.put(id, target, creation, pieces(content)).await?;
        Ok(())
    }

    pub(super) async fn open_regular(
        &self,
        id: &WorkspaceId,
        source: FilePath,
    ) -> Result<OpenFile, Error> {
        let target = self.target(id, &source)?;
        let workspace = self.ready(id, &target).await?;
        let explain = self.explain(&target);
        match workspace.get_file(target, None).await.map_err(explain)? {
            Got::File(file, _) => {
                let size = size_of(&file)?;
                Ok(OpenFile { file, size })
            }
            Got::Directory(..) => Err(Error::NotAFile(format!("'{}' is a directory", source.path))),
        }
    }

    fn target(&self, id: &WorkspaceId, named: &FilePath) -> Result<FileTarget, Error> {
        let working_dir = named.working_dir.as_deref();
        check_text("the path", &named.path)?;
        check_text("the path", working_dir.unwrap_or_default())?;
        if named.path.is_empty() {
            return Err(Error::Invalid("the path is empty".into()));
        }
        let path = self.get(id)?.path_inside(working_dir, &named.path);
        Ok(FileTarget { path, user: None })
    }
}

fn size_of(file: &std::fs::File) -> Result<u64, Error> {
    match file.metadata() {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) => Err(Error::Host(error.to_string())),
    }
}

fn check_raw_path(path: &RawPath) -> Result<(), Error> {
    let bytes = path.as_bytes();
    if bytes.contains(&0) {
        return Err(Error::Invalid("the path has a NUL in it".into()));
    }
    if bytes.len() >= MAX_PATH {
        return Err(Error::Invalid(format!(
            "the path has {} bytes; at most {MAX_PATH} fit",
            bytes.len()
        )));
    }
    if !bytes.starts_with(b"/") {
        return Err(Error::Invalid(format!("the path '{path}' is not absolute")));
    }
    Ok(())
}

/// What `content` reads, a piece at a time, read on blocking threads.
fn pieces(content: FileContent) -> Content {
    let read = |content: Option<FileContent>| async move {
        let mut content = content?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::new();
            let read = content.by_ref().take(PIECE as u64).read_to_end(&mut piece);
            read.map(|_| (piece, content))
        });
        match reading.await.map_err(io::Error::from).flatten() {
            Ok((piece, _)) if piece.is_empty() => None,
            Ok((piece, content)) => Some((Ok(Bytes::from(piece)), Some(content))),
            Err(error) => Some((Err(error), None)),
        }
    };
    stream::unfold(Some(content), read).boxed()
}

/// What the API calls it.
pub(super) fn file_error_of(error: FileError) -> Error {
    match error {
        FileError::Sandbox(error) => super::sandbox_error_of(&error, "/"),
        FileError::Failed(failure) => failure_of(&failure),
        FileError::Archive { message, errno } => {
            // Said inside, of names that may say anything.
            let message = RawPath::from(message.into_bytes()).to_string();
            match errno {
                Some(errno) => errno_of(errno, message),
                None => Error::Invalid(message),
            }
        }
        FileError::Killed | FileError::Stalled(_) => Error::Conflict(error.to_string()),
        FileError::Uncharged => Error::Invalid(error.to_string()),
        FileError::Slow(_) => Error::Invalid(error.to_string()),
        FileError::Garbled | FileError::Content(_) | FileError::Host(..) => {
            Error::Host(chain::text(&error))
        }
    }
}

fn failure_of(failure: &FileFailure) -> Error {
    let path = &failure.path;
    match failure.flaw {
        Flaw::NotRegular => Error::NotRegular(format!(
            "'{path}' is a pipe, a socket, a device or a file that the kernel makes up"
        )),
        Flaw::TooDeep => {
            Error::Invalid(format!("'{path}' lies too many directories deep for this"))
        }
        Flaw::NoName => Error::Invalid(format!(
            "'{path}' is the root directory, or ends in '.' or '..'"
        )),
        Flaw::Errno(errno) => {
            let text = match errno {
                libc::ENOENT => format!("there is no '{path}' in the workspace"),
                libc::EISDIR => format!("'{path}' is a directory"),
                libc::ENOTDIR => format!("'{path}', or a part of it, is no directory"),
                libc::ENOTEMPTY => format!("the directory '{path}' is not empty"),
                libc::EEXIST => format!("'{path}' is there already"),
                libc::EAGAIN => format!("'{path}' is held by a lease of a process inside"),
                libc::ESTALE => format!("'{path}' was moved meanwhile"),
                errno => format!("'{path}': {}", io::Error::from_raw_os_error(errno)),
            };
            errno_of(errno, text)
        }
    }
}

fn errno_of(errno: i32, text: String) -> Error {
    match errno {
        libc::ENOENT => Error::NoSuchFile(text),
        libc::EACCES | libc::EPERM | libc::EROFS => Error::Forbidden(text),
        libc::EISDIR => Error::NotAFile(text),
        libc::ENOTDIR => Error::NotADirectory(text),
        libc::ENOTEMPTY => Error::NotEmpty(text),
        libc::EEXIST => Error::Exists(text),
        libc::ENOSPC | libc::EDQUOT => Error::NoSpace(text),
        libc::EAGAIN | libc::ESTALE | libc::ECANCELED => Error::Conflict(text),
        libc::EIO => Error::Host(text),
        _ => Error::Invalid(text),
    }
}
