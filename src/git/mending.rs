//! Mending: a mirror that turns out to be missing or damaged while it is used is made anew, and the use begins
//! again, once.
//!
//! What it costs is paid by uses that fail: only then is the whole mirror looked at.

use super::Mirrors;
use super::error::GitError;
use super::mirror::{Identity, Mirror, files_of};
use super::reference::CommitId;
use super::upstream::Access;
use crate::config::Repository;

/// A use of a repository's mirror, as often as it takes.
#[derive(Debug)]
pub(super) struct Mending<'a> {
    repository: &'a Repository,
    /// What the mirror has to have.
    commit: &'a CommitId,
    mirror: Mirror,
    /// Which mirror it is that is used.
    tried: Option<Identity>,
    again: Again,
}

/// Whether there may be another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Once,
    Never,
}

impl<'a> Mending<'a> {
    /// The use of the mirror of `repository`, which has `commit` in it.
    ///
    /// # Errors
    /// Where the URL is no repository's.
    pub(super) async fn of(
        mirrors: &Mirrors,
        repository: &'a Repository,
        commit: &'a CommitId,
    ) -> Result<Self, GitError> {
        let mirror = mirrors.mirror_for(repository)?;
        Ok(Self {
            repository,
            commit,
            tried: mirror.identity().await,
            mirror,
            again: Again::Once,
        })
    }

    pub(super) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// What an attempt came to; none if the mirror was made anew, and there has to be another.
    ///
    /// # Errors
    /// Those of the attempt, and why the mirror cannot be made anew.
    pub(super) async fn settle<T>(
        &mut self,
        attempt: Result<T, GitError>,
    ) -> Result<Option<T>, GitError> {
        match attempt {
            Ok(done) => Ok(Some(done)),
            Err(error) if self.heal(&error).await? => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the mirror anew if `error` came of what it is; says whether another attempt makes sense.
    async fn heal(&mut self, error: &GitError) -> Result<bool, GitError> {
        let may_be_it = matches!(error, GitError::Other { .. } | GitError::Io { .. });
        if !may_be_it || self.again == Again::Never {
            return Ok(false);
        }
        self.again = Again::Never;
        let lock = self.mirror.lock().await?;
        let files = files_of([self.commit]);
        if self.mirror.identity().await != self.tried {
            // Somebody else has made it anew, for another commit maybe.
            self.mirror
                .fill_if_needed(&lock, self.repository, &files)
                .await?;
            return Ok(true);
        }
        if !self.mirror.is_damaged().await {
            return Ok(false);
        }
        let url = &self.repository.url;
        tracing::warn!(url, %error, "the mirror is damaged, making it anew");
        let access = Access::of(self.repository).await?;
        self.mirror.rebuild(&lock, access, self.commit).await?;
        Ok(true)
    }
}
