//! How repositories come into a sandbox: as a checkout to unpack, or as a bundle for its own git.

use std::path::Path;

use super::SetupError;
use super::build::{Build, OUTPUT_END, pipe_for_archive, run_in};
use crate::config::Repository;
use crate::git::{self, Bundle, Have, Mirrors, Resolved};
use crate::init::files::protocol::{Creation, FileRequest, Parents};
use crate::init::protocol::Program;
use crate::init::unpack::Compression;
use crate::pool::Sandbox;
use crate::pool::exec::Ended;

/// A repository and what its reference is at.
#[derive(Debug, Clone)]
pub(super) struct Checkout {
    pub(super) repository: Repository,
    pub(super) at: Resolved,
}

impl Checkout {
    /// Brings the checkout of a setup before this one to the new commit; `false` if there is no git
    /// inside to do it, or the setup script made something else of the repository.
    pub(super) async fn update(
        &self,
        mirrors: &Mirrors,
        build: &Build,
    ) -> Result<bool, SetupError> {
        match take_in(mirrors, build.sandbox(), &self.repository).await {
            Ok(()) => {}
            Err(SetupError::GitInside { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        for command in git::checkout_commands(&self.at) {
            let program = Program::Arguments(command);
            let ended = run_in(build.sandbox(), program, &self.repository.path, &[]).await?;
            if ended.exit_code() != 0 {
                return Ok(false);
            }
        }
        Ok(true)
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

    /// Unpacks a fresh checkout. `staging` is a directory for what is on its way.
    pub(super) async fn unpack(
        &self,
        mirrors: &Mirrors,
        build: &Build,
        staging: &Path,
    ) -> Result<(), SetupError> {
        let path = &self.repository.path;
        let (reader, writer) =
            pipe_for_archive().map_err(SetupError::host("making a pipe for a checkout"))?;
        let (written, unpacked) = tokio::join!(
            mirrors.checkout(&self.repository, &self.at, staging, writer),
            build.unpack(reader, Compression::Plain, path),
        );
        // Each side fails when the other does: a full disk is the unpacker's to tell, else the
        // archive was cut short because git failed.
        match (written, unpacked) {
            (_, Err(error)) if error.is_no_space() => return Err(error),
            (Err(error), _) => return Err(error.into()),
            (Ok(()), Err(error)) => return Err(error),
            (Ok(()), Ok(_)) => {}
        }
        // Only saves time later: a base without git is none the worse.
        let refresh = Program::Arguments(git::refresh_command());
        run_in(build.sandbox(), refresh, path, &[]).await?;
        Ok(())
    }
}

/// Brings what `repository`'s mirror has, and the sandbox lacks, into the sandbox's checkout as
/// remote-tracking references, by the sandbox's own git.
///
/// # Errors
/// `GitInside` where git in the sandbox fails or there is none.
pub(crate) async fn take_in(
    mirrors: &Mirrors,
    sandbox: &Sandbox,
    repository: &Repository,
) -> Result<(), SetupError> {
    let at = &repository.path;
    let refused = |ended: Ended| SetupError::GitInside {
        path: at.clone(),
        output: ended.output.end(OUTPUT_END),
    };
    let known = run_in(sandbox, Program::Arguments(git::have_command()), at, &[]).await?;
    if known.exit_code() != 0 {
        return Err(refused(known));
    }
    let have = Have::parse(&known.output.into_bytes());
    let path = format!("/tmp/.derrick-{}.bundle", uuid::Uuid::now_v7());
    let creation = Creation {
        mode: None,
        parents: Parents::Make,
    };
    let request = FileRequest::Replace(path.as_bytes().into(), creation);
    let bundle = sandbox.replace_file(None, request).await?;
    let sink = bundle
        .file
        .try_clone()
        .map_err(SetupError::host("writing a bundle"))?;
    let written = mirrors.bundle(repository, &have, sink).await;
    match written {
        Ok(Bundle::Written) => drop(bundle.commit().await?),
        // The file that was to hold it has no name yet, and never was.
        Ok(Bundle::NothingNew) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let fetch = Program::Arguments(git::fetch_command(&path));
    let fetched = run_in(sandbox, fetch, at, &[]).await;
    let remove = Program::Arguments(vec!["rm".into(), "-f".into(), path]);
    run_in(sandbox, remove, Path::new("/"), &[]).await?;
    let fetched = fetched?;
    if fetched.exit_code() == 0 {
        Ok(())
    } else {
        Err(refused(fetched))
    }
}
