//! How repositories come into a sandbox: as a checkout to unpack, or as a bundle for its own git.
//!
//! A repository belongs to whom commands run as, and git inside always runs as its owner: git refuses
//! repositories of others, and what root would write there, their owner could not change.

use std::path::Path;

use futures_util::StreamExt as _;
use tokio::net::unix::pipe;
use tokio_util::io::ReaderStream;

use super::SetupError;
use super::build::{Build, OUTPUT_END, pipe_for_archive, run_as, run_in};
use crate::config::{History, Repository, WorkspaceConfig};
use crate::git::{self, Bundle, CommitId, Have, LargeFiles, Mirrors, Resolved, Submodule};
use crate::init::files::protocol::{Creation, FileRequest, Links, Owner, Parents};
use crate::init::protocol::{Attempt, Program, Refusal};
use crate::init::unpack::Compression;
use crate::pool::exec::Ended;
use crate::pool::files::FileError;
use crate::pool::{Sandbox, SandboxError};

/// A repository and what its reference is at.
#[derive(Debug, Clone)]
pub(super) struct Checkout {
    pub(super) repository: Repository,
    pub(super) at: Resolved,
}

impl Checkout {
    /// Whether what a setup did with commit `old` may be there beside the new one: not where the upstream
    /// went back from it, and what is later than the new commit is to stay outside.
    pub(super) async fn may_follow(
        &self,
        mirrors: &Mirrors,
        old: &CommitId,
    ) -> Result<bool, SetupError> {
        let repository = &self.repository;
        Ok(repository.history == History::Full
            || mirrors.leads_to(repository, &self.at.commit, old).await?)
    }

    /// Whether it moved on from `old` with submodules whose later commits are to stay outside, and which nobody
    /// compares.
    pub(super) fn is_incomparable(&self, old: &CommitId) -> bool {
        let repository = &self.repository;
        repository.submodules && repository.history != History::Full && *old != self.at.commit
    }

    /// Brings the checkout of a setup before this one to the new commit; `false` if there is no git
    /// inside to do it, no history to add to, there may be submodules, or the setup script made something else
    /// of the repository.
    pub(super) async fn update(
        &self,
        mirrors: &Mirrors,
        build: &Build,
        old: &CommitId,
    ) -> Result<bool, SetupError> {
        if self.repository.submodules {
            return Ok(false);
        }
        let sandbox = build.sandbox();
        let taken = take_in(mirrors, sandbox, &self.repository, &self.at, Some(old)).await;
        let inside = match taken {
            Ok((inside, _)) => inside,
            Err(SetupError::GitInside { .. } | SetupError::NoHistory { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let commands = git::checkout_commands(&self.at);
        Ok(inside.run_all(commands).await?.is_none())
    }

    /// Removes what a setup before this one left at its path.
    pub(super) async fn clear(&self, build: &Build) -> Result<(), SetupError> {
        let path = self.repository.path.to_string_lossy().into_owned();
        let remove = ["rm".to_owned(), "-rf".to_owned(), "--".to_owned(), path];
        // What it could not remove, unpacking says.
        run_in(
            build.sandbox(),
            Program::Arguments(remove.to_vec()),
            Path::new("/"),
            &[],
        )
        .await?;
        Ok(())
    }

    /// Unpacks a fresh checkout, with its submodules, which then belongs to `owner`. `staging` is a directory for
    /// what is on its way.
    pub(super) async fn unpack(
        &self,
        mirrors: &Mirrors,
        build: &Build,
        (owner, submodules): (Owner, &[Submodule]),
        staging: &Path,
    ) -> Result<(), SetupError> {
        let path = &self.repository.path;
        let (reader, writer) =
            pipe_for_archive().map_err(SetupError::host("making a pipe for a checkout"))?;
        let (written, unpacked) = tokio::join!(
            mirrors.checkout(
                &self.repository,
                (&self.at, submodules),
                owner,
                staging,
                writer
            ),
            build.unpack(reader, Compression::Plain, path),
        );
        // Each side fails when the other does: that nobody read on is the unpacker's to explain, and
        // that the archive was cut short is git's.
        let unpacked = unpacked.map_err(|error| match error {
            SetupError::Archive(reason) => SetupError::Checkout {
                path: path.clone(),
                reason,
            },
            other => other,
        });
        match (written, unpacked) {
            (Err(error), Err(cause)) if error.is_broken_pipe() => return Err(cause),
            (_, Err(error)) if error.is_no_space() => return Err(error),
            (Err(error), _) => return Err(error.into()),
            (Ok(()), Err(error)) => return Err(error),
            (Ok(()), Ok(_)) => {}
        }
        // Only saves time later: a base without git is none the worse.
        let refresh = match self.repository.lfs {
            true => git::refresh_large_command(),
            false => git::refresh_command(),
        };
        let refresh = Program::Arguments(refresh);
        let owner = owner.uid.to_string();
        run_as(Some(&owner), build.sandbox(), refresh, path, &[]).await?;
        Ok(())
    }

    /// Gives the checkout to `owner`, with the sandbox's own `chown`.
    pub(super) async fn give_to(&self, build: &Build, owner: Owner) -> Result<(), SetupError> {
        let path = &self.repository.path;
        let command = [
            "chown",
            "-hR",
            "--",
            &format!("{}:{}", owner.uid, owner.gid),
            &path.to_string_lossy(),
        ];
        let chown = Program::Arguments(command.map(str::to_owned).to_vec());
        let ended = run_in(build.sandbox(), chown, Path::new("/"), &[]).await?;
        if ended.exit_code() == 0 {
            return Ok(());
        }
        Err(SetupError::Checkout {
            path: path.clone(),
            reason: ended.output.end(OUTPUT_END).trim().to_owned(),
        })
    }
}

/// The names of the mirrors of a config's repositories.
pub(super) fn mirrors(config: &WorkspaceConfig) -> Vec<String> {
    let all = config.repositories.iter();
    all.filter_map(git::mirror_of).collect()
}

/// Whom the files of `user` belong to in a sandbox, if there is such a user by now.
pub(super) async fn owner_for(build: &Build, user: &str) -> Result<Option<Owner>, SetupError> {
    match build.sandbox().owner_for(user).await {
        Ok(owner) => Ok(Some(owner)),
        Err(FileError::Sandbox(SandboxError::Refused(Refusal {
            attempt: Attempt::User(_),
            ..
        }))) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The number of the user to whom the repository at `path` belongs, whoever made it so.
async fn owner_of(sandbox: &Sandbox, path: &Path) -> Result<String, SetupError> {
    let request = FileRequest::Stat(path.as_os_str().as_encoded_bytes().into(), Links::Follow);
    match sandbox.change_files(None, request).await {
        Ok(Some(entry)) => Ok(entry.uid.to_string()),
        Ok(None) => Err(FileError::Garbled.into()),
        Err(error @ FileError::Failed(_)) => Err(SetupError::GitInside {
            path: path.to_owned(),
            output: error.to_string(),
        }),
        Err(error) => Err(error.into()),
    }
}

/// The repository of a sandbox, on which git runs as its owner.
pub(crate) struct Inside<'a> {
    sandbox: &'a Sandbox,
    path: &'a Path,
    owner: String,
}

impl<'a> Inside<'a> {
    /// The repository at `path`.
    ///
    /// # Errors
    /// `GitInside` where there is nothing.
    pub(crate) async fn of(sandbox: &'a Sandbox, path: &'a Path) -> Result<Self, SetupError> {
        let owner = owner_of(sandbox, path).await?;
        Ok(Self {
            sandbox,
            path,
            owner,
        })
    }

    pub(super) fn sandbox(&self) -> &'a Sandbox {
        self.sandbox
    }

    /// Where it is in the workspace.
    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    /// Runs one of git's commands to its end.
    async fn run(&self, command: Vec<String>) -> Result<Ended, SetupError> {
        let program = Program::Arguments(command);
        run_as(Some(&self.owner), self.sandbox, program, self.path, &[]).await
    }

    /// Runs commands as long as they succeed; what the first one said that did not.
    pub(crate) async fn run_all(
        &self,
        commands: Vec<Vec<String>>,
    ) -> Result<Option<String>, SetupError> {
        for command in commands {
            let ended = self.run(command).await?;
            if ended.exit_code() != 0 {
                return Ok(Some(ended.output.end(OUTPUT_END).trim().to_owned()));
            }
        }
        Ok(None)
    }

    /// The commit that git says is checked out.
    pub(crate) async fn head(&self) -> Result<Option<CommitId>, SetupError> {
        let ended = self.run(git::head_command()).await?;
        let printed = String::from_utf8_lossy(&ended.output.into_bytes())
            .trim()
            .parse();
        Ok(printed.ok())
    }
}

/// Brings what the history of `repository` lets in beside `resolved`, and the sandbox lacks, into the sandbox's
/// checkout as remote-tracking references, by the sandbox's own git. That `known` is there is known without
/// asking. Gives the checkout, and what that had of the reference, as it said itself.
///
/// # Errors
/// `GitInside` where git in the sandbox fails or there is none, `NoHistory` where there is nothing to add to.
pub(crate) async fn take_in<'a>(
    mirrors: &Mirrors,
    sandbox: &'a Sandbox,
    repository: &'a Repository,
    resolved: &Resolved,
    known: Option<&CommitId>,
) -> Result<(Inside<'a>, Option<CommitId>), SetupError> {
    let at = &repository.path;
    if repository.history == History::None {
        return Err(SetupError::NoHistory { path: at.clone() });
    }
    let refused = |ended: Ended| SetupError::GitInside {
        path: at.clone(),
        output: ended.output.end(OUTPUT_END),
    };
    let inside = Inside::of(sandbox, at).await?;
    let told = inside.run(git::have_command()).await?;
    if told.exit_code() != 0 {
        return Err(refused(told));
    }
    let mut have = Have::parse(&told.output.into_bytes());
    have.extend(known.cloned());
    let before = have.commit(&resolved.reference).cloned();
    let large = mirrors.large_files(repository, resolved, known).await?;
    put_large_files(&inside, large).await?;
    let path = format!("/tmp/.derrick-{}.bundle", uuid::Uuid::now_v7());
    let creation = Creation {
        // Root writes it, since the owner of the repository may have no right to in /tmp; the owner's git
        // reads it.
        mode: Some(0o644),
        parents: Parents::Make,
    };
    let request = FileRequest::Replace(path.as_bytes().into(), creation);
    let bundle = sandbox.replace_file(None, request).await?;
    let sink = bundle
        .file
        .try_clone()
        .map_err(SetupError::host("writing a bundle"))?;
    let written = mirrors.bundle(repository, resolved, &have, sink).await;
    match written {
        Ok(Bundle::Written) => drop(bundle.commit().await?),
        // The file that was to hold it has no name yet, and never was.
        Ok(Bundle::NothingNew) => return Ok((inside, before)),
        Err(error) => return Err(error.into()),
    }
    let fetched = inside.run(git::fetch_command(&path)).await;
    // The repository's own note of where it came from leads nowhere.
    let note = at.join(".git/FETCH_HEAD").to_string_lossy().into_owned();
    let remove = ["rm", "-f", "--", &path, &note].map(str::to_owned);
    let remove = Program::Arguments(remove.to_vec());
    run_in(sandbox, remove, Path::new("/"), &[]).await?;
    let fetched = fetched?;
    if fetched.exit_code() == 0 {
        Ok((inside, before))
    } else {
        Err(refused(fetched))
    }
}

/// Puts large files where git inside finds them when it checks them out, as whom the repository belongs to.
async fn put_large_files(inside: &Inside<'_>, large: LargeFiles) -> Result<(), SetupError> {
    if large.is_empty() {
        return Ok(());
    }
    let host = SetupError::host("making a pipe for large files");
    let (reader, writer) = pipe_for_archive().map_err(&host)?;
    let content = pipe::Receiver::from_owned_fd(reader).map_err(&host)?;
    let content = ReaderStream::with_capacity(content, 256 * 1024).boxed();
    let directory = inside.path.join(".git/lfs/objects");
    let directory = directory.as_os_str().as_encoded_bytes().into();
    let owner = Some(inside.owner.clone());
    let (written, unpacked) = tokio::join!(
        large.write(writer),
        inside
            .sandbox
            .unpack_files(owner, directory, Compression::Plain, content),
    );
    match (written, unpacked) {
        // The unpacker says why it read no further: what the workspace has there is its own.
        (_, Err(error @ (FileError::Archive { .. } | FileError::Failed(_))))
            if !error.is_no_space() =>
        {
            Err(SetupError::GitInside {
                path: inside.path.to_owned(),
                output: error.to_string(),
            })
        }
        (_, Err(error)) => Err(error.into()),
        (Err(error), Ok(_)) => Err(error.into()),
        (Ok(()), Ok(_)) => Ok(()),
    }
}
