//! A workspace's commits, taken out to be pushed to their upstream by the provider.

use std::path::Path;

use super::bundle::{full_name, read};
use super::commit::{branch, id_of};
use super::events::Event;
use super::{Workspace, WorkspaceError};
use crate::base::{Inside, Question, Setups};
use crate::config::{History, Repository};
use crate::git::{self, CommitId, Outgoing, Pushed};

/// The most that the commits of a push may be, in bytes.
const LARGEST: u64 = 512 << 20;

impl Workspace {
    /// Takes the commits of a branch, or of what is checked out, out: what follows on the commits of the upstream
    /// that the workspace got.
    ///
    /// # Errors
    /// `NotAllowed` where the config does not allow the name, `Ask` where git inside does not, or there is none;
    /// `NoSuchReference`, `NoBundle`, `Push`.
    pub async fn take_commits(
        &self,
        repository: &Repository,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<Outgoing, WorkspaceError> {
        let path = &repository.path;
        if repository.push.is_empty() || to.is_some_and(|to| !self.may_push(repository, to)) {
            return Err(not_allowed(repository, to));
        }
        if repository.history == History::None {
            let reason = "the config has the repository without its history".to_owned();
            return Err(git::PushError::Unfit(reason).into());
        }
        let bases = self.bases(path);
        let sandbox = self.sandbox().await?;
        let inside = Inside::to_ask(&sandbox, path).await?;
        let from = from.unwrap_or("HEAD");
        let name = full_name(&inside, from).await?;
        let no_branch = || WorkspaceError::NoSuchReference {
            path: path.clone(),
            reference: from.to_owned(),
        };
        let own = match name.strip_prefix("refs/heads/") {
            Some(own) => Some(own.to_owned()),
            None if name == "HEAD" => branch(&inside).await?,
            None => return Err(no_branch()),
        };
        let to = match to.map(str::to_owned).or(own) {
            Some(to) if self.may_push(repository, &to) => to,
            to => return Err(not_allowed(repository, to.as_deref())),
        };
        const LOOK: &str = "tell which commit that is";
        let tip = Question::new(LOOK, git::commit_of_command(&name));
        let tip = inside.ask(tip).await?;
        let tip = match tip.exit_code {
            0 => id_of(&tip.printed).ok_or_else(|| inside.odd(LOOK))?,
            // A branch that has no commit so far.
            1 => return Err(no_branch()),
            _ => return Err(inside.failed(LOOK, &tip).into()),
        };
        let bundle = if bases.contains(&tip) {
            None
        } else {
            let taken = self
                .take_bundle(&inside, Some(&name), &bases, LARGEST)
                .await?;
            Some(read(taken.0).await?)
        };
        Ok(Outgoing {
            name,
            tip,
            bases,
            bundle,
            branch: to,
            owner: self.owner(),
        })
    }

    /// Commits of the upstream of the repository at `path` that the workspace started from, or got last.
    #[must_use]
    pub fn bases(&self, path: &Path) -> Vec<CommitId> {
        let record = self.record();
        let first = record.stack.commits.get(path).cloned();
        let latest = record.commits.get(path).cloned();
        let latest = latest.filter(|latest| first.as_ref() != Some(latest));
        first.into_iter().chain(latest).collect()
    }

    /// Pushes what was taken out.
    ///
    /// # Errors
    /// `Push`.
    pub async fn push(
        &self,
        setups: &Setups,
        repository: &Repository,
        outgoing: Outgoing,
    ) -> Result<Pushed, WorkspaceError> {
        let branch = outgoing.branch.clone();
        let pushed = setups.mirrors().push(repository, outgoing).await?;
        self.events().tell(Event::Pushed {
            path: repository.path.to_string_lossy().into_owned(),
            branch,
            new_commit: pushed.new.clone().into(),
        });
        Ok(pushed)
    }

    fn may_push(&self, repository: &Repository, to: &str) -> bool {
        git::is_branch_name(to) && repository.allows_push(self.id().as_str(), to)
    }
}

fn not_allowed(repository: &Repository, to: Option<&str>) -> WorkspaceError {
    WorkspaceError::PushNotAllowed {
        path: repository.path.clone(),
        to: to.map(str::to_owned),
        allowed: repository.push.clone(),
    }
}
