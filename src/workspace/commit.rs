//! A commit of all that was changed in a repository of a workspace, made by the workspace's own git.
//!
//! For agents that make none. What the answer says is what git inside said, which may be anything.

use std::path::{Path, PathBuf};

use super::events::Event;
use super::{Workspace, WorkspaceError};
use crate::base::{AskError, Inside, Question};
use crate::git::{self, CommitId};

/// What a commit is to say.
#[derive(Debug, Clone)]
pub struct Message {
    /// Of the commit.
    pub text: String,
    /// Whose it is.
    pub name: String,
    /// Likewise.
    pub email: String,
    /// When it was made, in seconds since 1970; now if absent.
    pub date: Option<u64>,
}

/// What became of it.
#[derive(Debug)]
pub struct Committed {
    /// The repository, in the workspace.
    pub path: PathBuf,
    /// The branch that is checked out, if one is.
    pub branch: Option<String>,
    /// The commit; none where nothing was changed.
    pub commit: Option<CommitId>,
    /// What was checked out before; none in a repository without commits.
    pub parent: Option<CommitId>,
    /// Files that the commit changes.
    pub files: u64,
}

const COMMIT: &str = "make a commit";
const COMPARE: &str = "compare commits";

impl Workspace {
    /// Makes a commit of all that is changed in the repository at `path` and not ignored.
    ///
    /// # Errors
    /// `Ask` where git inside does not, or there is none.
    pub async fn commit(
        &self,
        path: &Path,
        message: &Message,
    ) -> Result<Committed, WorkspaceError> {
        let sandbox = self.sandbox().await?;
        let inside = Inside::to_ask(&sandbox, path).await?;
        let parent = head(&inside).await?;
        let stage = Question::work("take all changes into its index", git::stage_command());
        inside.demand(stage).await?;
        let branch = branch(&inside).await?;
        let committed = |commit, files| Committed {
            path: path.to_owned(),
            branch: branch.clone(),
            commit,
            parent: parent.clone(),
            files,
        };
        if let Some(parent) = &parent
            && is_staged(&inside, parent).await?
        {
            return Ok(committed(None, 0));
        }
        let environment = git::author_environment(&message.name, &message.email, message.date);
        let commit = Question::work(COMMIT, git::commit_command(&message.text));
        inside.demand(commit.in_environment(environment)).await?;
        let made = head(&inside)
            .await?
            .filter(|made| parent.as_ref() != Some(made));
        let made = made.ok_or_else(|| inside.odd(COMMIT))?;
        let count = Question::work(COMPARE, git::count_command(parent.as_ref(), &made));
        let files = git::count_of_files(&inside.demand(count).await?);
        let files = files.ok_or_else(|| inside.odd(COMPARE))?;
        self.events().tell(Event::Committed {
            path: path.to_string_lossy().into_owned(),
            commit: made.clone().into(),
        });
        Ok(committed(Some(made), files))
    }
}

/// The commit that is checked out, if the repository has one.
async fn head(inside: &Inside<'_>) -> Result<Option<CommitId>, AskError> {
    const LOOK: &str = "tell which commit is checked out";
    let answered = inside.ask(Question::new(LOOK, git::head_command())).await?;
    match answered.exit_code {
        0 => match id_of(&answered.printed) {
            Some(id) => Ok(Some(id)),
            None => Err(inside.odd(LOOK)),
        },
        1 => Ok(None),
        _ => Err(inside.failed(LOOK, &answered)),
    }
}

/// The branch that is checked out, if one is.
pub(super) async fn branch(inside: &Inside<'_>) -> Result<Option<String>, AskError> {
    const LOOK: &str = "tell which branch is checked out";
    let answered = inside
        .ask(Question::new(LOOK, git::branch_command()))
        .await?;
    match answered.exit_code {
        0 => Ok(git::branch_of(&answered.printed)),
        1 => Ok(None),
        _ => Err(inside.failed(LOOK, &answered)),
    }
}

/// Whether there is nothing to commit: the index is as the commit, and no other one is being merged.
async fn is_staged(inside: &Inside<'_>, head: &CommitId) -> Result<bool, AskError> {
    let answered = inside
        .ask(Question::work(COMPARE, git::is_staged_command(head)))
        .await?;
    match answered.exit_code {
        0 => {}
        1 => return Ok(false),
        _ => return Err(inside.failed(COMPARE, &answered)),
    }
    let merging = Question::new("tell what is being merged", git::merge_head_command());
    Ok(inside.ask(merging).await?.exit_code != 0)
}

/// The id that was printed on a line of its own.
pub(super) fn id_of(printed: &[u8]) -> Option<CommitId> {
    str::from_utf8(printed).ok()?.trim_end().parse().ok()
}
