//! How repositories come into a sandbox: as a checkout to unpack, or as a bundle for its own git.
//!
//! A repository belongs to whom commands run as, and git inside always runs as its owner: git refuses
//! repositories of others, and what root would write there, their owner could not change.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::net::unix::pipe;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::SetupError;
use super::asking::{ANSWERING, WORKING, visible};
use super::build::{Build, OUTPUT_END, exec_as, pipe_for_archive, run_as, run_in};
use super::patience::{Patience, TooLong, Wait};
use super::submodules::{Above, Bringing, Moved, Update, commits_of};
use crate::config::{History, Repository, WorkspaceConfig};
use crate::git::{self, Bundle, CommitId, GitError, Have, Mirrors, Resolved, Submodule};
use crate::init::files::protocol::{Creation, FileRequest, Links, Owner, Parents};
use crate::init::protocol::{Attempt, Program, Refusal};
use crate::init::unpack::Compression;
use crate::pool::exec::{self, Bounds, Cause, Ended, Streams};
use crate::pool::files::FileError;
use crate::pool::output::Output;
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

    /// Its submodules, brought to the mirrors, and those of `old`, which a setup before this one checked out.
    pub(super) async fn submodules(
        &self,
        mirrors: &Mirrors,
        old: Option<&CommitId>,
        config: &[Repository],
    ) -> Result<Moved, SetupError> {
        let repository = &self.repository;
        let now = mirrors.submodules(repository, &self.at, config).await?;
        let before = match old {
            Some(old) => mirrors.known_submodules(repository, old, config).await?,
            None => None,
        };
        Ok(Moved { now, before })
    }

    /// Brings the checkout of a setup before this one to the new commit, with its submodules; `false` if there is
    /// no git inside to do it, no history to add to, a submodule is not where it was, or the setup script made
    /// something else of the repository.
    pub(super) async fn update(
        &self,
        mirrors: &Mirrors,
        build: &Build,
        old: &CommitId,
        submodules: &Moved,
    ) -> Result<bool, SetupError> {
        if !submodules.are_kept() {
            return Ok(false);
        }
        match self.try_to_update(mirrors, build, old, submodules).await {
            Err(
                SetupError::GitInside { .. }
                | SetupError::NoHistory { .. }
                | SetupError::Git(GitError::Unconnected { .. }),
            ) => Ok(false),
            updated => updated,
        }
    }

    async fn try_to_update(
        &self,
        mirrors: &Mirrors,
        build: &Build,
        old: &CommitId,
        submodules: &Moved,
    ) -> Result<bool, SetupError> {
        let repository = &self.repository;
        let inside = Inside::of(build.sandbox(), &repository.path, &Patience::new()).await?;
        let known = (vec![old.clone()], Some(old));
        take_in(mirrors, &inside, repository, &self.at, known).await?;
        let commands = git::checkout_commands(&self.at);
        if inside.run_all(commands).await?.is_some() {
            return Ok(false);
        }
        let before = submodules.before.as_deref().unwrap_or_default();
        let bringing = Bringing {
            mirrors,
            update: Update::Reset,
            before: Submodule::by_place(before),
            // A setup that lacked any of it would not have come to its end.
            brought: commits_of(before),
        };
        let brought = bringing.below(&inside, Above::Right, &submodules.now);
        let brought = brought.await?;
        Ok(brought
            .iter()
            .all(|one| one.not_fetched.is_none() && one.not_updated.is_none()))
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

    /// Unpacks a fresh checkout, with its submodules, which then belongs to `owner`.
    pub(super) async fn unpack(
        &self,
        mirrors: &Mirrors,
        build: &Build,
        (owner, submodules): (Owner, &[Submodule]),
    ) -> Result<(), SetupError> {
        let path = &self.repository.path;
        let (reader, writer) =
            pipe_for_archive().map_err(SetupError::host("making a pipe for a checkout"))?;
        let (written, unpacked) = tokio::join!(
            mirrors.checkout(&self.repository, (&self.at, submodules), owner, writer),
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
            reason: visible(&ended.output.end(OUTPUT_END)),
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

/// What a command line does, for people: a program, and of git what it is to do.
fn named(command: &[String]) -> String {
    let Some((program, arguments)) = command.split_first() else {
        return String::new();
    };
    // Its settings come first, each with a word before it.
    let mut pairs = arguments.chunks(2);
    match pairs.find(|pair| pair[0] != "-c") {
        Some(pair) if program == "git" => format!("{program} {}", pair[0]),
        _ => program.clone(),
    }
}

/// The repository of a sandbox, on which git runs as its owner.
#[derive(Debug)]
pub(crate) struct Inside<'a> {
    sandbox: &'a Sandbox,
    path: &'a Path,
    owner: String,
    /// On top of that of every command.
    environment: BTreeMap<String, String>,
    patience: Patience,
}

impl<'a> Inside<'a> {
    /// The repository at `path`, for as long as there is `patience` with what is asked of it.
    ///
    /// # Errors
    /// `GitInside` where there is nothing.
    pub(crate) async fn of(
        sandbox: &'a Sandbox,
        path: &'a Path,
        patience: &Patience,
    ) -> Result<Self, SetupError> {
        let mut inside = Self {
            sandbox,
            path,
            owner: String::new(),
            environment: BTreeMap::new(),
            patience: patience.clone(),
        };
        inside.owner = inside.find_owner().await?;
        Ok(inside)
    }

    /// The number of the user to whom it belongs, whoever made it so.
    async fn find_owner(&self) -> Result<String, SetupError> {
        let path = self.path.as_os_str().as_encoded_bytes().into();
        let request = FileRequest::Stat(path, Links::Follow);
        match self
            .wait_for(self.sandbox.change_files(None, request))
            .await?
        {
            Ok(Some(entry)) => Ok(entry.uid.to_string()),
            Ok(None) => Err(FileError::Garbled.into()),
            Err(error @ FileError::Failed(_)) => Err(SetupError::GitInside {
                path: self.path.to_owned(),
                output: error.to_string(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// A submodule of it at `path`, which belongs to the same user, whoever made what is there.
    pub(super) fn submodule<'b>(&'b self, path: &'b Path) -> Inside<'b> {
        Inside {
            sandbox: self.sandbox,
            path,
            owner: self.owner.clone(),
            environment: git::here_environment(),
            patience: self.patience.clone(),
        }
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

    /// On top of the environment of every command.
    pub(super) fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Runs one of git's commands to its end, for as long as it may take: it may wait for what never comes, as
    /// where its config is a pipe.
    ///
    /// # Errors
    /// `GitInside` where it takes longer.
    async fn run(&self, command: Vec<String>) -> Result<Ended, SetupError> {
        self.run_for(command, WORKING).await
    }

    /// The same for what is to be answered at once.
    async fn look(&self, command: Vec<String>) -> Result<Ended, SetupError> {
        self.run_for(command, ANSWERING).await
    }

    async fn run_for(&self, command: Vec<String>, limit: Duration) -> Result<Ended, SetupError> {
        let (who, env) = (Some(self.owner.as_str()), [&self.environment]);
        let wait = self.patience.wait(limit);
        self.run_within_time(who, (command, self.path), &env, wait)
            .await
    }

    /// Runs a command that is not of the repository, in the root directory, as its owner.
    pub(super) async fn run_outside(&self, command: Vec<String>) -> Result<Ended, SetupError> {
        let (who, wait) = (Some(self.owner.as_str()), self.patience.wait(WORKING));
        self.run_within_time(who, (command, Path::new("/")), &[], wait)
            .await
    }

    /// Removes what is at `path` in the sandbox, as `user`, root if absent, also where no time is left.
    pub(super) async fn clear(&self, user: Option<&str>, path: &str) -> Result<(), SetupError> {
        let remove = ["rm", "-rf", "--", path].map(str::to_owned).to_vec();
        let wait = Ok(self.patience.wait_for_clearing(WORKING));
        self.run_within_time(user, (remove, Path::new("/")), &[], wait)
            .await
            .map(drop)
    }

    /// Runs a command as `user`, root if absent, in a directory, and kills it where it takes too long: a workspace
    /// may have put anything in the place of any program.
    async fn run_within_time(
        &self,
        user: Option<&str>,
        (command, directory): (Vec<String>, &Path),
        env: &[&BTreeMap<String, String>],
        wait: Result<Wait<'_>, TooLong>,
    ) -> Result<Ended, SetupError> {
        let name = named(&command);
        let wait = wait.map_err(|why| self.too_long(&name, &why))?;
        let exec = exec_as(user, Program::Arguments(command), directory, env);
        let bounds = Bounds {
            deadline: Some(wait.deadline()),
            kill: CancellationToken::new(),
        };
        let mut output = Output::default();
        let started = exec::start(self.sandbox, exec, Vec::new(), Streams::Merged).await?;
        let end = started.to_end(self.sandbox, &mut output, &bounds).await?;
        if end.cause == Cause::Deadline {
            return Err(self.too_long(&name, &wait.too_long()));
        }
        let status = end.exit.status;
        Ok(Ended { output, status })
    }

    /// Waits for what the sandbox does with files, which has limits of its own, for as long as there is patience.
    pub(super) async fn wait_for<T>(
        &self,
        files: impl Future<Output = T>,
    ) -> Result<T, SetupError> {
        let too_long = |why| self.too_long("work on files", &why);
        let wait = self.patience.wait(Duration::MAX).map_err(too_long)?;
        let done = tokio::time::timeout_at(wait.deadline(), files).await;
        done.map_err(|_| too_long(wait.too_long()))
    }

    fn too_long(&self, what: &str, why: &TooLong) -> SetupError {
        SetupError::GitInside {
            path: self.path.to_owned(),
            output: format!("{what}: {why}"),
        }
    }

    /// Whether one of git's commands succeeds.
    pub(super) async fn succeeds(&self, command: Vec<String>) -> Result<bool, SetupError> {
        Ok(self.run(command).await?.exit_code() == 0)
    }

    /// Which of these commits it says that it has.
    pub(super) async fn known<'c>(
        &self,
        commits: impl Iterator<Item = &'c CommitId>,
    ) -> Result<Vec<CommitId>, SetupError> {
        let commits: Vec<_> = commits.collect();
        let ended = self.look(git::known_command(&commits)).await?;
        Ok(git::commits_of(&ended.output.into_bytes()))
    }

    /// Runs commands as long as they succeed; what the first one said that did not.
    pub(crate) async fn run_all(
        &self,
        commands: Vec<Vec<String>>,
    ) -> Result<Option<String>, SetupError> {
        for command in commands {
            let ended = self.run(command).await?;
            if ended.exit_code() != 0 {
                return Ok(Some(visible(&ended.output.end(OUTPUT_END))));
            }
        }
        Ok(None)
    }

    /// The commit that git says is checked out; none where it says nothing in time.
    pub(crate) async fn head_if_told(&self) -> Result<Option<CommitId>, SetupError> {
        match self.head().await {
            Err(SetupError::GitInside { .. }) => Ok(None),
            told => told,
        }
    }

    /// The commit that git says is checked out.
    pub(super) async fn head(&self) -> Result<Option<CommitId>, SetupError> {
        let ended = self.look(git::head_command()).await?;
        let printed = String::from_utf8_lossy(&ended.output.into_bytes())
            .trim()
            .parse();
        Ok(printed.ok())
    }
}

/// Brings what the history of `repository` lets in beside `resolved`, and the sandbox lacks, into the sandbox's
/// checkout as remote-tracking references, by the sandbox's own git. That `known` are there is known without
/// asking, and `brought` is a commit whose large files were brought before: git inside may have others as mere
/// history. Gives what the checkout had of the reference, as it said itself.
///
/// # Errors
/// `GitInside` where git in the sandbox fails or there is none, `NoHistory` where there is nothing to add to.
pub(crate) async fn take_in(
    mirrors: &Mirrors,
    inside: &Inside<'_>,
    repository: &Repository,
    resolved: &Resolved,
    (known, brought): (Vec<CommitId>, Option<&CommitId>),
) -> Result<Option<CommitId>, SetupError> {
    let (at, sandbox) = (&repository.path, inside.sandbox());
    if repository.history == History::None {
        return Err(SetupError::NoHistory { path: at.clone() });
    }
    let refused = |ended: Ended| SetupError::GitInside {
        path: at.clone(),
        output: visible(&ended.output.end(OUTPUT_END)),
    };
    let told = inside.look(git::have_command()).await?;
    if told.exit_code() != 0 {
        return Err(refused(told));
    }
    let mut have = Have::parse(&told.output.into_bytes());
    if repository.depth.is_some() {
        let listed = inside.look(git::shallow_command()).await?;
        if listed.exit_code() == 0 {
            have.ends_at(&listed.output.into_bytes());
        }
    }
    let before = have.commit(&resolved.reference).cloned();
    let large = mirrors.large_files(repository, resolved, brought).await?;
    if !large.is_empty() {
        put(inside, "lfs/objects", |sink| large.write(sink)).await?;
    }
    if let Some(files) = mirrors.new_files(repository, resolved, brought).await? {
        put(inside, "objects/pack", |sink| files.write(sink)).await?;
    }
    have.extend(known);
    let path = format!("/tmp/.derrick-{}.bundle", uuid::Uuid::now_v7());
    let creation = Creation {
        // Root writes it, since the owner of the repository may have no right to in /tmp; the owner's git
        // reads it.
        mode: Some(0o644),
        parents: Parents::Make,
    };
    let request = FileRequest::Replace(path.as_bytes().into(), creation);
    let bundle = inside
        .wait_for(sandbox.replace_file(None, request))
        .await??;
    let sink = bundle
        .file
        .try_clone()
        .map_err(SetupError::host("writing a bundle"))?;
    let written = mirrors.bundle(repository, resolved, &have, sink).await;
    match written {
        Ok(Bundle::Written) => drop(inside.wait_for(bundle.commit()).await??),
        // The file that was to hold it has no name yet, and never was.
        Ok(Bundle::NothingNew) => return Ok(before),
        Err(error) => return Err(error.into()),
    }
    let fetched = inside.run(git::fetch_command(&path)).await;
    // The repository's own note of where it came from leads nowhere; where it is, is its owner's to say.
    let note = at.join(".git/FETCH_HEAD").to_string_lossy().into_owned();
    let mut cleared = Ok(());
    for (user, leftover) in [(None, &path), (Some(inside.owner()), &note)] {
        cleared = cleared.and(inside.clear(user, leftover).await);
    }
    let fetched = fetched?;
    cleared?;
    if fetched.exit_code() == 0 {
        Ok(before)
    } else {
        Err(refused(fetched))
    }
}

/// Unpacks what `write` writes below a directory of a repository's own, as whom the repository belongs to.
async fn put<W: Future<Output = Result<(), GitError>>>(
    inside: &Inside<'_>,
    place: &str,
    write: impl FnOnce(File) -> W,
) -> Result<(), SetupError> {
    let host = SetupError::host("making a pipe for files of a repository");
    let (reader, writer) = pipe_for_archive().map_err(&host)?;
    let content = pipe::Receiver::from_owned_fd(reader).map_err(&host)?;
    let content = ReaderStream::with_capacity(content, 256 * 1024).boxed();
    let directory = inside.path.join(".git").join(place);
    let directory = directory.as_os_str().as_encoded_bytes().into();
    let owner = Some(inside.owner.clone());
    let sandbox = inside.sandbox;
    let unpacked = sandbox.unpack_files(owner, directory, Compression::Plain, content);
    let both = async { tokio::join!(write(writer), unpacked) };
    match inside.wait_for(both).await? {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_too_long_has_a_name() {
        for (command, name) in [
            (git::fetch_command("/tmp/x"), "git fetch"),
            (git::head_command(), "git rev-parse"),
            (git::refresh_large_command(), "git update-index"),
            (git::shallow_command(), "cat"),
            (Vec::new(), ""),
        ] {
            assert_eq!(named(&command), name, "{command:?}");
        }
    }
}
