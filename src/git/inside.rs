//! The git commands that run inside a workspace, confined, by the workspace's own git.
//!
//! The repository there may have been touched by an agent, so the provider runs none of these
//! itself; it only says what to run, in the repository's directory. Hooks are off as a courtesy to
//! the caller who wants no surprises, not as a defence: what runs inside is contained anyway.

use std::collections::{BTreeMap, BTreeSet};

use super::reference::{CommitId, Reference, Resolved};

/// Where commits are kept that were fetched by their ids, so that nobody collects them, by those ids.
pub(super) const COMMITS: &str = "refs/derrick/commits/";

/// Settings of all these commands, over whatever the repository says.
const SETTINGS: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
    "fetch.writeCommitGraph=false",
    "protocol.file.allow=always",
    "advice.detachedHead=false",
    // What a repository is brought to is no step that somebody took in it.
    "core.logAllRefUpdates=false",
];

/// Prints what the repository has of its upstream, for [`Have::parse`].
#[must_use]
pub fn have_command() -> Vec<String> {
    let format = "--format=%(objectname) %(*objectname) %(refname)";
    let names = ["refs/remotes/origin", "refs/tags", COMMITS];
    git(&[&["for-each-ref", format], &names[..]].concat())
}

/// What a repository inside a workspace has of its upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Have {
    /// By the upstream's full names, which are bytes to git.
    refs: BTreeMap<Vec<u8>, Tip>,
    /// Commits that are there under whatever name.
    unnamed: BTreeSet<CommitId>,
}

/// Where a reference leads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tip {
    object: CommitId,
    /// Another one than `object` if that is a tag with a message of its own.
    commit: CommitId,
}

impl Have {
    /// Reads what [`have_command`] printed; other lines are passed over.
    ///
    /// The workspace may print what it likes. A wrong answer costs only itself: it gets a bundle
    /// that lacks something.
    #[must_use]
    pub fn parse(printed: &[u8]) -> Self {
        let mut have = Self::default();
        for line in printed.split(|&byte| byte == b'\n') {
            let mut parts = line.splitn(3, |&byte| byte == b' ');
            let mut id = || str::from_utf8(parts.next()?).ok()?.parse::<CommitId>().ok();
            let (object, peeled) = (id(), id());
            let (Some(object), Some(name)) = (object, parts.next()) else {
                continue;
            };
            let name = match name.strip_prefix(b"refs/remotes/origin/") {
                // A name for one of the others.
                Some(b"HEAD") => continue,
                Some(branch) => [b"refs/heads/", branch].concat(),
                None => name.to_vec(),
            };
            let commit = peeled.unwrap_or_else(|| object.clone());
            have.refs.insert(name, Tip { object, commit });
        }
        have
    }

    /// The commit that the repository says the upstream's branch or tag to be at.
    #[must_use]
    pub fn commit(&self, reference: &Reference) -> Option<&CommitId> {
        let name = match reference {
            Reference::Branch(name) => format!("refs/heads/{name}"),
            Reference::Tag(name) => format!("refs/tags/{name}"),
            Reference::Commit => return None,
        };
        self.refs.get(name.as_bytes()).map(|tip| &tip.commit)
    }

    /// Whether this commit is there under whatever name.
    pub(super) fn has_commit(&self, commit: &CommitId) -> bool {
        self.objects().any(|known| known == commit)
    }

    /// Whether this very reference is at this very object.
    pub(super) fn has(&self, name: &[u8], object: &str) -> bool {
        self.refs
            .get(name)
            .is_some_and(|tip| tip.object.as_str() == object)
    }

    /// All objects of which it is known that they are there, with all that they lead to.
    pub(super) fn objects(&self) -> impl Iterator<Item = &CommitId> {
        self.refs
            .values()
            .map(|tip| &tip.object)
            .chain(&self.unnamed)
    }
}

/// Adds commits that are there under whatever name.
impl Extend<CommitId> for Have {
    fn extend<I: IntoIterator<Item = CommitId>>(&mut self, commits: I) {
        self.unnamed.extend(commits);
    }
}

/// Commits that are there under names that are not known.
impl FromIterator<CommitId> for Have {
    fn from_iter<I: IntoIterator<Item = CommitId>>(commits: I) -> Self {
        Self {
            refs: BTreeMap::new(),
            unnamed: commits.into_iter().collect(),
        }
    }
}

/// Takes a bundle in, as `git fetch` would: branches become remote-tracking references, moved ones
/// too, and tags are set as upstream has them. Local branches and files stay as they are.
///
/// `bundle_path` is absolute, inside the workspace.
#[must_use]
pub fn fetch_command(bundle_path: &str) -> Vec<String> {
    git(&[
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-prune",
        "--no-prune-tags",
        "--no-recurse-submodules",
        "--",
        bundle_path,
        "+refs/heads/*:refs/remotes/origin/*",
        "+refs/tags/*:refs/tags/*",
        &format!("+{COMMITS}*:{COMMITS}*"),
    ])
}

/// Brings a repository that has `at`'s commit to where a fresh checkout at `at` would be; run in
/// this order, each after the one before has succeeded.
///
/// Changes to tracked files are discarded; untracked files stay, those in the way of tracked ones
/// excepted. Other local branches stay.
#[must_use]
pub fn checkout_commands(at: &Resolved) -> Vec<Vec<String>> {
    let commit = at.commit.as_str();
    // First the files: if that fails, HEAD has not moved.
    let mut commands = vec![git(&["read-tree", "--reset", "-u", commit])];
    match &at.reference {
        // Not by `git checkout`, which takes a name such as `-x` for an option.
        Reference::Branch(name) => {
            let branch = format!("refs/heads/{name}");
            commands.push(git(&["update-ref", &branch, commit]));
            commands.push(git(&["symbolic-ref", "HEAD", &branch]));
            commands.push(git(&["config", &format!("branch.{name}.remote"), "origin"]));
            commands.push(git(&["config", &format!("branch.{name}.merge"), &branch]));
        }
        Reference::Tag(_) | Reference::Commit => {
            commands.push(git(&["update-ref", "--no-deref", "HEAD", commit]));
        }
    }
    commands
}

/// Moves the branch that is checked out, and the files with it, to `commit`, if it has nothing of its own beside
/// that and no file is in the way.
#[must_use]
pub fn fast_forward_command(commit: &CommitId) -> Vec<String> {
    git(&["merge", "--quiet", "--ff-only", commit.as_str()])
}

/// Prints the commit that is checked out.
#[must_use]
pub fn head_command() -> Vec<String> {
    git(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"])
}

/// Tells the index of a checkout that was just unpacked what its files look like now, so that the
/// first `git status` does not read them all.
#[must_use]
pub fn refresh_command() -> Vec<String> {
    git(&["update-index", "-q", "--refresh"])
}

fn git(arguments: &[&str]) -> Vec<String> {
    let settings = SETTINGS.iter().flat_map(|setting| ["-c", *setting]);
    std::iter::once("git")
        .chain(settings)
        .chain(arguments.iter().copied())
        .map(str::to_owned)
        .collect()
}
