//! Submodules inside a sandbox, brought to the commits that their repository names.
//!
//! Each is a repository of its own in a tree that an agent may have touched: where it is to be there may be a
//! link, a file or any other repository by now. So the sandbox's own git does all of it, as whom the repository
//! belongs to, in the directory that is there and in none above it. What it cannot do is an answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::SetupError;
use super::asking::visible;
use super::build::OUTPUT_END;
use super::repositories::{Inside, take_in};
use crate::git::{self, CommitId, Mirrors, Resolved, Submodule};
use crate::init::files::protocol::{FileKind, FileRequest, Flaw, Links, Page};
use crate::pool::SandboxError;
use crate::pool::files::{FileError, Got};

/// What becomes of what is checked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Update {
    /// Nothing: branches, files and the index stay as they are.
    #[default]
    None,
    /// The branch that is checked out moves to the new commit, if that follows on all of its own and no changed
    /// file is in the way.
    FastForward,
    /// The new commit is checked out, as in a fresh workspace; changes of tracked files are lost.
    Reset,
}

/// What happened to one submodule.
#[derive(Debug)]
pub struct FetchedSubmodule {
    /// Its URL, without credentials.
    pub url: String,
    /// Its path in the workspace.
    pub path: PathBuf,
    /// The commit that its repository named before, if it named one.
    pub old_commit: Option<CommitId>,
    /// The one that its repository names now.
    pub new_commit: CommitId,
    /// What is checked out after an update, as the workspace says.
    pub head: Option<CommitId>,
    /// Why its commits are not there.
    pub not_fetched: Option<String>,
    /// Why what is checked out was not updated.
    pub not_updated: Option<String>,
}

/// The most that is told of why something was not done, in bytes.
const TOLD: usize = 2048;

/// Brings submodules to their commits.
#[derive(Debug)]
pub(crate) struct Bringing<'a> {
    pub(crate) mirrors: &'a Mirrors,
    pub(crate) update: Update,
    /// What was named before, by where it is in the workspace.
    pub(crate) before: BTreeMap<&'a Path, &'a Submodule>,
    /// The commits that came last with their large files, likewise: what was named may not have come.
    pub(crate) brought: BTreeMap<PathBuf, CommitId>,
}

/// What became of the repository that some belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Above {
    /// It is as it is to be.
    Right,
    /// It has its commits, and something else is checked out.
    Elsewhere,
    /// Its commits are not there.
    Lacking,
    /// It is not there, and nobody wanted it.
    Absent,
}

/// What is where a submodule is to be.
enum Place {
    Repository,
    /// Nothing, or an empty directory.
    Empty,
    /// Something else.
    Taken(String),
}

impl Bringing<'_> {
    /// Brings those of the repository of `parent`, of which `above` became, and those below them.
    pub(crate) async fn below(
        &self,
        parent: &Inside<'_>,
        above: Above,
        submodules: &[Submodule],
    ) -> Result<Vec<FetchedSubmodule>, SetupError> {
        let mut all = Vec::new();
        for submodule in submodules {
            let place = &submodule.repository().path;
            let inside = parent.submodule(place);
            let before = self.before.get(place.as_path());
            let mut one = FetchedSubmodule {
                url: submodule.repository().url.clone(),
                path: place.clone(),
                old_commit: before.map(|before| before.at().commit.clone()),
                new_commit: submodule.at().commit.clone(),
                head: None,
                not_fetched: None,
                not_updated: None,
            };
            let became = self.one(parent, &inside, above, submodule, &mut one);
            let became = match became.await.map_err(blamed_inside) {
                Ok(became) => became,
                Err(Ok(why)) => {
                    one.not_fetched = Some(end(&why));
                    Above::Lacking
                }
                Err(Err(error)) => return Err(error),
            };
            if became == Above::Absent {
                continue;
            }
            all.push(one);
            all.extend(Box::pin(self.below(&inside, became, submodule.below())).await?);
        }
        Ok(all)
    }

    /// Brings one, and says what became of it.
    async fn one(
        &self,
        parent: &Inside<'_>,
        inside: &Inside<'_>,
        above: Above,
        submodule: &Submodule,
        one: &mut FetchedSubmodule,
    ) -> Result<Above, SetupError> {
        if matches!(above, Above::Lacking | Above::Absent) {
            one.not_fetched = Some("what it belongs to was not fetched".to_owned());
            return Ok(Above::Lacking);
        }
        let made = match look(parent, submodule).await? {
            Place::Repository => false,
            Place::Taken(why) => {
                one.not_fetched = Some(why);
                return Ok(Above::Lacking);
            }
            Place::Empty if self.update == Update::None => return Ok(Above::Absent),
            Place::Empty if above == Above::Elsewhere => {
                one.not_updated = Some(ELSEWHERE.to_owned());
                return Ok(Above::Lacking);
            }
            Place::Empty => {
                if let Some(why) = make(parent, inside, submodule).await? {
                    one.not_fetched = Some(why);
                    return Ok(Above::Lacking);
                }
                true
            }
        };
        let head = inside.head().await?;
        let (repository, at) = (submodule.repository(), submodule.at());
        let brought = self.brought.get(&repository.path);
        let candidates = [
            head.as_ref(),
            one.old_commit.as_ref(),
            Some(&one.new_commit),
            brought,
        ];
        let known = inside.known(candidates.into_iter().flatten()).await?;
        // What is there in its place now may be another repository.
        let brought = brought.filter(|commit| !made && known.contains(commit));
        let taken = take_in(self.mirrors, inside, repository, at, (known, brought)).await;
        if let Err(error) = taken {
            if made {
                // Why it did not come says more.
                drop(unmake(inside).await);
            }
            return Err(error);
        }
        if self.update == Update::None {
            return Ok(Above::Right);
        }
        let not_updated = match above {
            Above::Right => self.check_out(inside, head, at, one).await,
            _ => Ok(Some(ELSEWHERE.to_owned())),
        };
        // What it has it has, though it may not be able to check it out.
        let not_updated = match not_updated.map_err(blamed_inside) {
            Ok(not_updated) => not_updated,
            Err(Ok(why)) => Some(why),
            Err(Err(error)) => return Err(error),
        };
        one.head = inside.head_if_told().await?;
        one.not_updated = not_updated.as_deref().map(end);
        Ok(match one.not_updated {
            None => Above::Right,
            Some(_) => Above::Elsewhere,
        })
    }

    /// Checks out what came, as far as that is wanted; why not.
    async fn check_out(
        &self,
        inside: &Inside<'_>,
        head: Option<CommitId>,
        at: &Resolved,
        one: &FetchedSubmodule,
    ) -> Result<Option<String>, SetupError> {
        match self.update {
            Update::None => Ok(None),
            Update::Reset => inside.run_all(git::checkout_commands(at)).await,
            Update::FastForward => forward(inside, head, one).await,
        }
    }
}

/// What is told of an error that the sandbox's own git, files or processes are to blame for; any other error.
fn blamed_inside(error: SetupError) -> Result<String, SetupError> {
    match error {
        SetupError::GitInside { output, .. } => Ok(output),
        SetupError::File(error) => told(error),
        // Where it is to run is not there, or nobody's to enter.
        error @ SetupError::Sandbox(SandboxError::Refused(_)) => Ok(error.to_string()),
        error => Err(error),
    }
}

const ELSEWHERE: &str = "what it belongs to was not updated";

/// Checks the new commit out if nothing is lost by it; why not.
async fn forward(
    inside: &Inside<'_>,
    head: Option<CommitId>,
    one: &FetchedSubmodule,
) -> Result<Option<String>, SetupError> {
    let new = &one.new_commit;
    if let Some(head) = head.filter(|head| one.old_commit.as_ref() != Some(head)) {
        if inside.succeeds(git::leads_to_command(&head, new)).await? {
            // It is there, and what was made on it.
            return Ok(None);
        }
        if !inside.succeeds(git::leads_to_command(new, &head)).await? {
            let own = format!("{head}, which is checked out, is not among what {new} follows on");
            return Ok(Some(own));
        }
    }
    inside.run_all(vec![git::detach_command(new)]).await
}

/// Looks at what is where a submodule is to be, link by link.
async fn look(parent: &Inside<'_>, submodule: &Submodule) -> Result<Place, SetupError> {
    let mut at = parent.path().to_owned();
    for part in submodule.path().components() {
        at.push(part);
        match kind(parent, &at).await? {
            Seen::Kind(FileKind::Directory) => {}
            Seen::Nothing => return Ok(Place::Empty),
            Seen::Kind(_) => {
                return Ok(Place::Taken(format!("{} is no directory", at.display())));
            }
            Seen::Error(why) => return Ok(Place::Taken(why)),
        }
    }
    match kind(parent, &at.join(".git")).await? {
        Seen::Kind(_) => return Ok(Place::Repository),
        Seen::Nothing => {}
        Seen::Error(why) => return Ok(Place::Taken(why)),
    }
    let first = Page {
        after: None,
        limit: 1,
    };
    let request = FileRequest::Get(at.as_os_str().as_encoded_bytes().into(), Some(first));
    let user = Some(parent.owner().to_owned());
    match parent
        .wait_for(parent.sandbox().get_file(user, request))
        .await?
    {
        Ok(Got::Directory(entries, _)) if entries.is_empty() => Ok(Place::Empty),
        Ok(_) => {
            let taken = format!("{} has other files and is no repository", at.display());
            Ok(Place::Taken(taken))
        }
        Err(error) => Ok(Place::Taken(told(error)?)),
    }
}

/// What the sandbox says of a path.
enum Seen {
    Kind(FileKind),
    Nothing,
    Error(String),
}

async fn kind(inside: &Inside<'_>, path: &Path) -> Result<Seen, SetupError> {
    let request = FileRequest::Stat(path.as_os_str().as_encoded_bytes().into(), Links::Keep);
    let user = Some(inside.owner().to_owned());
    let found = inside.sandbox().change_files(user, request);
    match inside.wait_for(found).await? {
        Ok(Some(entry)) => Ok(Seen::Kind(entry.kind)),
        Ok(None) => Err(FileError::Garbled.into()),
        Err(FileError::Failed(failure)) if failure.flaw == Flaw::Errno(libc::ENOENT) => {
            Ok(Seen::Nothing)
        }
        Err(error) => Ok(Seen::Error(told(error)?)),
    }
}

/// What is told of an error that the sandbox's own files or processes are to blame for.
fn told(error: FileError) -> Result<String, SetupError> {
    match error {
        FileError::Sandbox(_) | FileError::Host(..) => Err(error.into()),
        error => Ok(end(&error.to_string())),
    }
}

/// Makes an empty repository where a submodule is to be, known to the one that it belongs to; why not.
async fn make(
    parent: &Inside<'_>,
    inside: &Inside<'_>,
    submodule: &Submodule,
) -> Result<Option<String>, SetupError> {
    let place = inside.path().to_string_lossy();
    // In no repository: that of the parent is not meant.
    let init = git::init_command(&place, &submodule.at().commit);
    let ended = inside.run_outside(init).await?;
    if ended.exit_code() != 0 {
        return Ok(Some(end(&ended.output.end(OUTPUT_END))));
    }
    let url = submodule.repository().url.as_str();
    let filters = git::filter_settings();
    let mut own = vec![
        ("remote.origin.url".to_owned(), url),
        (
            "remote.origin.fetch".to_owned(),
            "+refs/heads/*:refs/remotes/origin/*",
        ),
    ];
    if submodule.repository().lfs {
        let filters = filters.iter();
        own.extend(filters.map(|(key, value)| ((*key).to_owned(), value.as_str())));
    }
    let field = |field: &str| format!("submodule.{}.{field}", submodule.name());
    let of_parent = [(field("active"), "true"), (field("url"), url)];
    let mut failed = inside.run_all(git::set_commands(&own)).await?;
    if failed.is_none() {
        failed = parent.run_all(git::set_commands(&of_parent)).await?;
    }
    if failed.is_some() {
        unmake(inside).await?;
    }
    Ok(failed.as_deref().map(end))
}

/// Removes the repository that was made.
async fn unmake(inside: &Inside<'_>) -> Result<(), SetupError> {
    let git = inside.path().join(".git").to_string_lossy().into_owned();
    inside.clear(Some(inside.owner()), &git).await
}

/// The end of what was said.
fn end(said: &str) -> String {
    let said = visible(said);
    let start = (said.len().saturating_sub(TOLD)..=said.len())
        .find(|&at| said.is_char_boundary(at))
        .unwrap_or_default();
    match &said[start..] {
        "" => "git inside said nothing".to_owned(),
        said => said.to_owned(),
    }
}

/// The commits that these name, and those below them, by where they are in the workspace.
pub(crate) fn commits_of(submodules: &[Submodule]) -> BTreeMap<PathBuf, CommitId> {
    let named = Submodule::by_place(submodules).into_iter();
    named
        .map(|(place, submodule)| (place.to_owned(), submodule.at().commit.clone()))
        .collect()
}

/// Submodules of a repository now, and of the commit that a setup before this one checked out.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) now: Vec<Submodule>,
    /// None where nobody knows.
    pub(super) before: Option<Vec<Submodule>>,
}

impl Moved {
    /// Whether each that was there has its place, its name and its URL still.
    pub(super) fn are_kept(&self) -> bool {
        let now = Submodule::by_place(&self.now);
        let is_kept = |(place, before): (&Path, &Submodule)| {
            now.get(place).is_some_and(|now| {
                now.name() == before.name() && now.repository().url == before.repository().url
            })
        };
        self.before
            .as_ref()
            .is_some_and(|before| Submodule::by_place(before).into_iter().all(is_kept))
    }

    /// Whether what a setup did with those before may be there beside those now: all is kept, and of each, what
    /// is named now follows on what was named before.
    pub(super) async fn may_follow(&self, mirrors: &Mirrors) -> Result<bool, SetupError> {
        if !self.are_kept() {
            return Ok(false);
        }
        let now = Submodule::by_place(&self.now);
        for (place, before) in Submodule::by_place(self.before.as_deref().unwrap_or_default()) {
            let Some(now) = now.get(place) else {
                return Ok(false);
            };
            let (new, old) = (&now.at().commit, &before.at().commit);
            if new != old && !mirrors.leads_to(now.repository(), new, old).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
