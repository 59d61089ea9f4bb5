//! Files of a sandbox: each request is done by a process inside it, `init::files`.
//!
//! Bytes go past that process wherever they can: a file is read and written here through the
//! descriptor that it passed out, an archive comes and goes over a pipe. A future that is dropped ends
//! its process, and with it what it was doing.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, Fuse};
use rustix::fs::FileType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::conversation::{Conversation, Silence};
use super::{Sandbox, SandboxError, is_full};
use crate::init::files::is_made_up;
use crate::init::files::protocol::{
    Before, FileEntry, FileFailure, FileOrder, FileReply, FileRequest, Fingerprint, Flaw, Owner,
    RawPath, Rest,
};
use crate::init::protocol::{Exec, Exit, Program, Status, Unpacked};
use crate::init::unpack::{Compression, Summary};
use crate::sys::channel::Received;

/// How long the process may say and take nothing; one that works through a tree says now and then
/// that it does. The workspace can stop it, as it can any process of its own.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take for a whole tree, whatever it says.
const WHOLE: Duration = Duration::from_secs(15 * 60);
/// How long a client may take for the next piece of an archive.
pub(super) const CLIENT: Duration = Duration::from_secs(120);
/// How long packer and unpacker may give or take no byte: they compress, and do some work at the end.
const ARCHIVE: Duration = Duration::from_secs(120);
/// Bytes that are written to a file at once, about.
const PIECE: usize = 1 << 20;
/// Bytes that a pipe to or from the sandbox holds, if the kernel lets it.
const PIPE: usize = 1 << 20;
/// Bytes of an archive that are sent at once, at most.
pub(super) const CHUNK: usize = 256 * 1024;
/// Pieces of an archive that wait for who takes them, at most.
pub(super) const WAITING: usize = 2;
/// Bytes of an unpacker's report, at most.
const LARGEST_REPORT: u64 = 64 * 1024;
/// Bytes of the names of a listing, at most: more than `init::files` ever sends.
const LARGEST_LISTING: usize = 16 << 20;

/// Bytes that come one piece after another.
pub type Content = BoxStream<'static, io::Result<Bytes>>;

/// What was there to get.
#[derive(Debug)]
pub enum Got {
    /// A regular file, open for reading.
    File(File, FileEntry),
    /// A page of a directory.
    Directory(Vec<FileEntry>, Rest),
}

/// A file that takes the place of another one when it is committed, and is nothing before.
#[derive(Debug)]
pub struct Replacement {
    conversation: Conversation,
    before: Before,
    /// For writing; empty at first.
    pub file: File,
}

/// Why something could not be done with files.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The sandbox refused to start the process for it, or ended.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The sandbox's own files or permissions are against it.
    #[error("'{}': {}", .0.path, describe(.0.flaw))]
    Failed(FileFailure),
    /// An archive cannot be unpacked.
    #[error("{message}")]
    Archive {
        /// What was wrong with which entry, as the unpacker says.
        message: String,
        /// The kernel's errno, if it refused.
        errno: Option<i32>,
    },
    /// The process for it was killed inside, or there was no memory for it.
    #[error("the process that worked on the file was killed inside the workspace")]
    Killed,
    /// It said what it never says.
    #[error("the process that worked on the file cannot be understood")]
    Garbled,
    /// It said or took nothing for so long, and was killed.
    #[error(
        "the process that works on the file inside the workspace did nothing for {0:?}, as if it were stopped, and was killed"
    )]
    Stalled(Duration),
    /// It did not come to its end in time, and was killed.
    #[error("it did not come to an end within {0:?} and was stopped")]
    Slow(Duration),
    /// Its bytes would be memory that the workspace's limit does not count: the kernel charges who writes.
    #[error(
        "the file would lie in memory, beyond the workspace's limit on that; write it elsewhere, or with a command"
    )]
    Uncharged,
    /// The bytes that were to be written did not come.
    #[error("cannot read what is to be written")]
    Content(#[source] io::Error),
    /// This host failed.
    #[error("{0}")]
    Host(&'static str, #[source] io::Error),
}

impl FileError {
    /// Whether the disk, its inodes or a quota are full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        let is_full_errno = |errno| is_full(&io::Error::from_raw_os_error(errno));
        match self {
            Self::Sandbox(error) => error.is_no_space(),
            Self::Host(_, error) | Self::Content(error) => is_full(error),
            Self::Archive { errno, .. } => errno.is_some_and(is_full_errno),
            Self::Failed(failure) => match failure.flaw {
                Flaw::Errno(errno) => is_full_errno(errno),
                Flaw::NotRegular | Flaw::TooDeep | Flaw::NoName => false,
            },
            _ => false,
        }
    }
}

impl From<Silence> for FileError {
    fn from(silence: Silence) -> Self {
        match silence {
            Silence::Sandbox(error) => Self::Sandbox(error),
            Silence::Ended(Exit {
                status: Status::Signal(_),
                ..
            }) => Self::Killed,
            // It always says something before it exits by itself.
            Silence::Ended(_) | Silence::Garbled => Self::Garbled,
        }
    }
}

fn describe(flaw: Flaw) -> String {
    match flaw {
        Flaw::Errno(errno) => io::Error::from_raw_os_error(errno).to_string(),
        Flaw::NotRegular => "not a regular file".to_owned(),
        Flaw::TooDeep => "too many directories within each other".to_owned(),
        Flaw::NoName => "the root directory, or a path that ends in '.' or '..'".to_owned(),
    }
}

impl Sandbox {
    /// Opens a regular file or lists a directory, as a `Get` asks, for `user`; root if absent.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn get_file(
        &self,
        user: Option<String>,
        request: FileRequest,
    ) -> Result<Got, FileError> {
        within(WHOLE, async {
            let mut conversation = self.converse(exec(user, request), None).await?;
            let mut entries = Vec::new();
            let mut bytes = 0;
            loop {
                let mut received = hear(&mut conversation).await?;
                match received.message {
                    FileReply::File(entry) => {
                        let file = regular(received.descriptors.pop())?;
                        conversation.finish();
                        return Ok(Got::File(file, entry));
                    }
                    FileReply::Entries(part) => {
                        bytes += part.iter().map(size_of).sum::<usize>();
                        if bytes > LARGEST_LISTING {
                            return Err(FileError::Garbled);
                        }
                        entries.extend(part);
                    }
                    FileReply::Listed(rest) => {
                        conversation.finish();
                        return Ok(Got::Directory(entries, rest));
                    }
                    other => return Err(unexpected(other)),
                }
            }
        })
        .await
    }

    /// Does a request that needs no more than one word back; what is there then, if something is.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn change_files(
        &self,
        user: Option<String>,
        request: FileRequest,
    ) -> Result<Option<FileEntry>, FileError> {
        within(WHOLE, async {
            let mut conversation = self.converse(exec(user, request), None).await?;
            let changed = match hear(&mut conversation).await?.message {
                FileReply::Entry(entry) => Some(entry),
                FileReply::Done => None,
                other => return Err(unexpected(other)),
            };
            conversation.finish();
            Ok(changed)
        })
        .await
    }

    /// Whom the files belong to that `user` makes.
    ///
    /// # Errors
    /// See [`FileError`]; a refusal if there is no such user.
    pub async fn owner_for(&self, user: &str) -> Result<Owner, FileError> {
        within(WHOLE, async {
            let exec = exec(Some(user.to_owned()), FileRequest::Owner);
            let mut conversation = self.converse(exec, None).await?;
            let owner = match hear(&mut conversation).await?.message {
                FileReply::Owner(owner) => owner,
                other => return Err(unexpected(other)),
            };
            conversation.finish();
            Ok(owner)
        })
        .await
    }

    /// The fingerprint of everything that is to be seen in it.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn fingerprint(&self) -> Result<Fingerprint, FileError> {
        within(WHOLE, async {
            let exec = exec(None, FileRequest::Fingerprint);
            let mut conversation = self.converse(exec, None).await?;
            let fingerprint = match hear(&mut conversation).await?.message {
                FileReply::Fingerprint(fingerprint) => fingerprint,
                other => return Err(unexpected(other)),
            };
            conversation.finish();
            Ok(fingerprint)
        })
        .await
    }

    /// Makes a file that takes the place of another one when it is committed, as a `Replace` asks.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn replace_file(
        &self,
        user: Option<String>,
        request: FileRequest,
    ) -> Result<Replacement, FileError> {
        within(WHOLE, async {
            let mut conversation = self.converse(exec(user, request), None).await?;
            let mut received = hear(&mut conversation).await?;
            match received.message {
                FileReply::Ready(before) => {
                    let file = regular(received.descriptors.pop())?;
                    if self.limits_memory()
                        && (self.keeps_files_in_boundless_memory() || is_in_memory(&file)?)
                    {
                        return Err(FileError::Uncharged);
                    }
                    Ok(Replacement {
                        conversation,
                        before,
                        file,
                    })
                }
                other => Err(unexpected(other)),
            }
        })
        .await
    }

    /// A directory or a file as a tar, as an `Archive` asks. It ends in an error if it is not whole.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn archive_files(
        &self,
        user: Option<String>,
        request: FileRequest,
    ) -> Result<Content, FileError> {
        let (reader, writer) = pipe_pair()?;
        let conversation = within(WHOLE, async {
            let output = Some(writer.as_fd());
            let mut conversation = self.converse(exec(user, request), output).await?;
            match hear(&mut conversation).await?.message {
                FileReply::Begun => Ok(conversation),
                other => Err(unexpected(other)),
            }
        })
        .await?;
        drop(writer);
        let reader = pipe::Receiver::from_owned_fd(reader).map_err(watching)?;
        let (sender, mut receiver) = mpsc::channel(WAITING);
        // Ends with the receiver, or with the archive.
        self.attend(carry_archive(conversation, reader, sender));
        // What goes wrong at once is told as such, and not by breaking off.
        let first = receiver.recv().await.transpose()?;
        let rest = stream::unfold(receiver, |mut receiver| async {
            let piece: Result<Bytes, FileError> = receiver.recv().await?;
            Some((piece.map_err(io::Error::other), receiver))
        });
        Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
    }

    /// Unpacks a tar into a directory, which is made if it is not there. What came before an error
    /// stays.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn unpack_files(
        &self,
        user: Option<String>,
        directory: RawPath,
        compression: Compression,
        content: Content,
    ) -> Result<Summary, FileError> {
        let (archive, to_archive) = pipe_pair()?;
        let (from_report, report) = pipe_pair()?;
        let exec = built_in(user, Program::Unpack(directory, compression));
        let descriptors = [archive.as_fd(), report.as_fd(), report.as_fd()];
        let mut unpacker = self.run_built_in(exec, &descriptors).await?;
        drop((archive, report));
        let to_archive = pipe::Sender::from_owned_fd(to_archive).map_err(watching)?;
        let from_report = pipe::Receiver::from_owned_fd(from_report).map_err(watching)?;
        let unpacking = async {
            // With the archive's pipe, which this closes, the unpacker ends.
            feed(to_archive, content).await?;
            moving(ARCHIVE, async {
                unpacker.started().await?;
                read_report(from_report).await
            })
            .await
        };
        let report = self.unless_gone(unpacking).await?;
        match serde_json::from_slice(&report) {
            Ok(Unpacked::Done(summary)) => {
                unpacker.finish();
                Ok(summary)
            }
            Ok(Unpacked::Failed { message, errno }) => Err(FileError::Archive { message, errno }),
            Err(_) => Err(moving(PATIENCE, async { Ok(unpacker.silence().await) })
                .await?
                .into()),
        }
    }
}

impl Replacement {
    /// Writes all of `content`: the next piece comes in while the last is being written.
    ///
    /// # Errors
    /// `Content` if it does not come whole, `Host` if it cannot be written.
    pub async fn write(&self, content: Content) -> Result<(), FileError> {
        let mut content = content.fuse();
        let failed = |error| FileError::Host("writing the file", error);
        let file = self.file.try_clone().map_err(failed)?;
        let mut writing = tokio::task::spawn_blocking(move || Ok(file));
        loop {
            let batch = collect(&mut content).await.map_err(FileError::Content)?;
            let mut file: File = match writing.await {
                Ok(written) => written.map_err(failed)?,
                Err(error) => return Err(failed(error.into())),
            };
            if batch.is_empty() {
                return Ok(());
            }
            writing = tokio::task::spawn_blocking(move || {
                for piece in batch {
                    file.write_all(&piece)?;
                }
                Ok(file)
            });
        }
    }

    /// Puts it in its place; what is there now, and whether something was.
    ///
    /// # Errors
    /// See [`FileError`]; nothing is replaced then.
    pub async fn commit(mut self) -> Result<(FileEntry, Before), FileError> {
        within(WHOLE, async {
            self.conversation.say(&FileOrder::Commit).await?;
            match hear(&mut self.conversation).await?.message {
                FileReply::Entry(entry) => {
                    self.conversation.finish();
                    Ok((entry, self.before))
                }
                other => Err(unexpected(other)),
            }
        })
        .await
    }
}

fn exec(user: Option<String>, request: FileRequest) -> Exec {
    built_in(user, Program::Files(request))
}

/// Paths are absolute: the program needs no directory of its own, and reads no environment.
fn built_in(user: Option<String>, program: Program) -> Exec {
    Exec {
        program,
        directory: "/".to_owned(),
        environment: Vec::new(),
        terminal: None,
        user,
        open_files: None,
    }
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, FileError>>,
) -> Result<T, FileError> {
    match timeout(limit, work).await {
        Ok(done) => done,
        Err(_passed) => Err(FileError::Slow(limit)),
    }
}

/// Something that the process inside has to do next.
async fn moving<T>(
    patience: Duration,
    next: impl Future<Output = Result<T, FileError>>,
) -> Result<T, FileError> {
    match timeout(patience, next).await {
        Ok(done) => done,
        Err(_passed) => Err(FileError::Stalled(patience)),
    }
}

/// The next word of the process, but for those that say only that it is there.
async fn hear(conversation: &mut Conversation) -> Result<Received<FileReply>, FileError> {
    loop {
        let next = async { Ok(conversation.hear().await?) };
        let received: Received<FileReply> = moving(PATIENCE, next).await?;
        if !matches!(received.message, FileReply::Working) {
            return Ok(received);
        }
    }
}

fn is_in_memory(file: &File) -> Result<bool, FileError> {
    let system = rustix::fs::fstatfs(file)
        .map_err(|error| FileError::Host("examining a file", error.into()))?;
    Ok(system.f_type == libc::TMPFS_MAGIC)
}

/// A reply that is no success, or not the one that is due.
fn unexpected(reply: FileReply) -> FileError {
    match reply {
        FileReply::Failed(failure) => FileError::Failed(failure),
        _ => FileError::Garbled,
    }
}

/// What comes out of a sandbox is not trusted, whoever says what it is: it must be a regular file, and
/// none that the kernel makes up.
fn regular(descriptor: Option<OwnedFd>) -> Result<File, FileError> {
    let descriptor = descriptor.ok_or(FileError::Garbled)?;
    let looked = rustix::fs::fstat(&descriptor)
        .and_then(|status| Ok((status.st_mode, is_made_up(descriptor.as_fd())?)));
    match looked {
        Ok((mode, false)) if FileType::from_raw_mode(mode) == FileType::RegularFile => {
            Ok(File::from(descriptor))
        }
        _ => Err(FileError::Garbled),
    }
}

fn size_of(entry: &FileEntry) -> usize {
    let target = entry.target.as_ref().map_or(0, |to| to.as_bytes().len());
    entry.name.as_bytes().len() + target + 100
}

fn watching(error: io::Error) -> FileError {
    FileError::Host("watching a pipe", error)
}

/// Reading end and writing end.
pub(super) fn pipe_pair() -> Result<(OwnedFd, OwnedFd), FileError> {
    let (reader, writer) = io::pipe().map_err(|error| FileError::Host("making a pipe", error))?;
    // One user may only have so much of larger pipes, pipe(7); the usual size works too.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
    Ok((reader.into(), writer.into()))
}

/// The next bytes, about as many as are written at once; nothing at the end.
async fn collect(content: &mut Fuse<Content>) -> io::Result<Vec<Bytes>> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while bytes < PIECE
        && let Some(piece) = content.next().await
    {
        let piece = piece?;
        bytes += piece.len();
        if !piece.is_empty() {
            batch.push(piece);
        }
    }
    Ok(batch)
}

/// Carries what is read from the pipe on, until there is no more or nobody wants it.
async fn carry_archive(
    mut conversation: Conversation,
    reader: pipe::Receiver,
    sender: mpsc::Sender<Result<Bytes, FileError>>,
) {
    let sandbox = conversation.sandbox().clone();
    let carrying = carry_to_end(&mut conversation, reader, &sender);
    let carried = tokio::select! {
        carried = sandbox.unless_gone(carrying) => carried,
        // The client is gone.
        () = sender.closed() => return,
    };
    match carried {
        Ok(()) => conversation.finish(),
        Err(error) => {
            tracing::info!(%error, "an archive is broken off");
            // Which breaks the connection off: no client takes the archive for whole.
            let _ = sender.send(Err(error)).await;
        }
    }
}

async fn carry_to_end(
    conversation: &mut Conversation,
    mut reader: pipe::Receiver,
    sender: &mpsc::Sender<Result<Bytes, FileError>>,
) -> Result<(), FileError> {
    let failed = |error| FileError::Host("reading a pipe", error);
    loop {
        let mut piece = BytesMut::with_capacity(CHUNK);
        let reading = async { reader.read_buf(&mut piece).await.map_err(failed) };
        if moving(ARCHIVE, reading).await? == 0 {
            break;
        }
        let sending = async { Ok(sender.send(Ok(piece.freeze())).await) };
        // It fails where the client is gone, which ends this anyway.
        let _ = within(CLIENT, sending).await?;
    }
    match hear(conversation).await?.message {
        FileReply::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}

/// Writes all of `content` to the unpacker, or as much as it takes before it ends.
async fn feed(mut unpacker: pipe::Sender, mut content: Content) -> Result<(), FileError> {
    while let Some(piece) = content.next().await {
        let piece = piece.map_err(FileError::Content)?;
        let writing = async { Ok(unpacker.write_all(&piece).await) };
        match moving(ARCHIVE, writing).await? {
            Ok(()) => {}
            // Its report says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(FileError::Host("writing to a pipe", error)),
        }
    }
    Ok(())
}

async fn read_report(report: pipe::Receiver) -> Result<Vec<u8>, FileError> {
    let mut read = Vec::new();
    let mut report = report.take(LARGEST_REPORT);
    match report.read_to_end(&mut read).await {
        Ok(_) => Ok(read),
        Err(error) => Err(FileError::Host("reading a pipe", error)),
    }
}
