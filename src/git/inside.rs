//! The git commands that run inside a workspace, confined, by the workspace's own git.
//!
//! The repository there may have been touched by an agent, so the provider runs none of these
//! itself; it only says what to run, in the repository's directory. Hooks are off as a courtesy to
//! the caller who wants no surprises, not as a defence: what runs inside is contained anyway.

use std::collections::{BTreeMap, BTreeSet};

use super::reference::{CommitId, Reference, Resolved, fits_a_file, is_ref_name};
use crate::shown::is_shown;

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

/// Prints git's own list of the commits whose parents are not there; fails where it has none.
#[must_use]
pub fn shallow_command() -> Vec<String> {
    ["cat", "--", ".git/shallow"].map(str::to_owned).to_vec()
}

/// What a repository inside a workspace has of its upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Have {
    /// By the upstream's full names, which are bytes to git.
    refs: BTreeMap<Vec<u8>, Tip>,
    /// Commits that are there under whatever name.
    unnamed: BTreeSet<CommitId>,
    /// Commits whose parents are not there.
    ends: BTreeSet<CommitId>,
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

    /// Takes note of what [`shallow_command`] printed: where the history that is there ends.
    pub fn ends_at(&mut self, printed: &[u8]) {
        self.ends = super::mirror::ids(printed);
    }

    /// The commits whose parents are not there.
    pub(super) fn ends(&self) -> &BTreeSet<CommitId> {
        &self.ends
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
            unnamed: commits.into_iter().collect(),
            ..Self::default()
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

/// Checks `commit` out as no branch's, if no file that was changed, or that git does not know, is in the way.
#[must_use]
pub fn detach_command(commit: &CommitId) -> Vec<String> {
    let commit = commit.as_str();
    let keeping = "--no-overwrite-ignore";
    git(&["checkout", "--quiet", "--detach", keeping, commit, "--"])
}

/// Ends with 0 if `old` is `new` or one of its ancestors.
#[must_use]
pub fn leads_to_command(new: &CommitId, old: &CommitId) -> Vec<String> {
    let old = old.as_str();
    git(&["merge-base", "--is-ancestor", old, new.as_str()])
}

/// Prints those of the commits that are there, for [`commits_of`].
#[must_use]
pub fn known_command(commits: &[&CommitId]) -> Vec<String> {
    let commits = commits.iter().map(|commit| commit.as_str());
    let command = ["rev-list", "--no-walk", "--ignore-missing"];
    git(&command.into_iter().chain(commits).collect::<Vec<_>>())
}

/// Reads lines of commits; others are passed over.
#[must_use]
pub fn commits_of(printed: &[u8]) -> Vec<CommitId> {
    let lines = printed.split(|&byte| byte == b'\n');
    let lines = lines.filter_map(|line| str::from_utf8(line).ok()?.parse().ok());
    lines.collect()
}

/// The environment in which git takes the directory that it runs in for the work tree of a repository, and looks
/// for none above it: where a submodule is to be, there may be none.
#[must_use]
pub fn here_environment() -> BTreeMap<String, String> {
    let here = [("GIT_DIR", ".git"), ("GIT_WORK_TREE", ".")];
    here.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// Makes an empty repository at `path`, for commits such as `commit`.
#[must_use]
pub fn init_command(path: &str, commit: &CommitId) -> Vec<String> {
    let mut arguments = vec!["-c", "init.defaultBranch=main", "init"];
    arguments.extend(["--quiet", "--template="]);
    if commit.as_str().len() == 64 {
        arguments.push("--object-format=sha256");
    }
    arguments.extend(["--", path]);
    git(&arguments)
}

/// Sets settings of a repository, whatever they were.
#[must_use]
pub fn set_commands(settings: &[(String, &str)]) -> Vec<Vec<String>> {
    let set =
        |(key, value): &(String, &str)| git(&["config", "--local", "--replace-all", key, value]);
    settings.iter().map(set).collect()
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

/// The same where large files are there as well, of which git is to believe that they are what the index says: it
/// would else read each, by several processes.
#[must_use]
pub fn refresh_large_command() -> Vec<String> {
    let clean = "filter.lfs.clean=exec git cat-file blob :0:%f";
    git(&["-c", clean, "update-index", "-q", "--refresh"])
}

/// Puts all changes into the index, but for what is ignored.
#[must_use]
pub fn stage_command() -> Vec<String> {
    git(&["add", "--all"])
}

/// Ends with 0 if the index is as the commit that is checked out, and with 1 if not.
#[must_use]
pub fn is_staged_command(head: &CommitId) -> Vec<String> {
    git(&[
        "diff-index",
        "--cached",
        "--quiet",
        "--no-ext-diff",
        head.as_str(),
        "--",
    ])
}

/// Prints the commit that is being merged, if there is one.
#[must_use]
pub fn merge_head_command() -> Vec<String> {
    git(&["rev-parse", "--verify", "--quiet", "MERGE_HEAD^{commit}"])
}

/// Makes a commit of the index, by nobody's programs: whose it is, the environment says.
#[must_use]
pub fn commit_command(message: &str) -> Vec<String> {
    git(&[
        "-c",
        "core.editor=true",
        "-c",
        "i18n.commitEncoding=utf-8",
        "commit",
        "--quiet",
        "--no-verify",
        "--no-gpg-sign",
        "--no-status",
        "--cleanup=whitespace",
        &format!("--message={message}"),
    ])
}

/// The environment that says who makes a commit, and when, in seconds since 1970; now if absent.
#[must_use]
pub fn author_environment(name: &str, email: &str, date: Option<u64>) -> Vec<(String, String)> {
    let date = date.map(|date| format!("@{date} +0000"));
    made_by(name, email, date.as_deref())
}

/// The variables of git that say who makes a commit, and when, in git's raw format; now if absent.
pub(super) fn made_by(name: &str, email: &str, date: Option<&str>) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for role in ["AUTHOR", "COMMITTER"] {
        let fields = [("NAME", Some(name)), ("EMAIL", Some(email)), ("DATE", date)];
        for (field, value) in fields {
            let value = value.map(|value| (format!("GIT_{role}_{field}"), value.to_owned()));
            variables.extend(value);
        }
    }
    variables
}

/// Prints how many files differ between two commits, or are in the first one, for [`count_of_files`].
#[must_use]
pub fn count_command(old: Option<&CommitId>, new: &CommitId) -> Vec<String> {
    let mut arguments = vec![
        "diff-tree",
        "--shortstat",
        "--no-renames",
        "--no-ext-diff",
        "--no-textconv",
        "--no-commit-id",
        "-r",
    ];
    match old {
        Some(old) => arguments.extend([old.as_str(), new.as_str()]),
        None => arguments.extend(["--root", new.as_str()]),
    }
    git(&arguments)
}

/// Reads what [`count_command`] printed.
#[must_use]
pub fn count_of_files(printed: &[u8]) -> Option<u64> {
    let printed = str::from_utf8(printed).ok()?.trim();
    if printed.is_empty() {
        return Some(0);
    }
    let (count, rest) = printed.split_once(' ')?;
    let is_count = rest.starts_with("file changed") || rest.starts_with("files changed");
    is_count.then(|| count.parse().ok())?
}

/// Prints the commit that a name of [`full_names`], or `HEAD`, leads to.
#[must_use]
pub fn commit_of_command(name: &str) -> Vec<String> {
    git(&[
        "rev-parse",
        "--verify",
        "--quiet",
        &format!("{name}^{{commit}}"),
    ])
}

/// Whether git takes this as the name of a branch, without `refs/heads/`, and a person sees which one it is.
#[must_use]
pub fn is_branch_name(name: &str) -> bool {
    let is_short = name.len() <= 255 && fits_a_file(name.as_bytes());
    is_ref_name(name) && name != "HEAD" && is_short && name.chars().all(is_shown)
}

/// Prints the full name of the branch that is checked out; fails where that is none.
#[must_use]
pub fn branch_command() -> Vec<String> {
    git(&["symbolic-ref", "--quiet", "HEAD"])
}

/// Reads what [`branch_command`] printed, as a branch's name.
#[must_use]
pub fn branch_of(printed: &[u8]) -> Option<String> {
    let printed = str::from_utf8(printed).ok()?;
    let name = printed
        .strip_suffix('\n')
        .unwrap_or(printed)
        .strip_prefix("refs/heads/")?;
    is_ref_name(name).then(|| name.to_owned())
}

/// Ends with 0 if there is a reference of this full name, and with 1 if not.
#[must_use]
pub fn is_there_command(full_name: &str) -> Vec<String> {
    git(&["show-ref", "--verify", "--quiet", "--", full_name])
}

/// The full names of a branch and of a tag that may be meant, in this order; none where `name` can be neither's.
#[must_use]
pub fn full_names(name: &str) -> Option<[String; 2]> {
    let meant = Reference::meant_by(name);
    let fit = meant
        .iter()
        .all(|(_, short)| is_ref_name(&short.to_string()));
    fit.then(|| meant.map(|(full, _)| full))
}

/// Writes a bundle of what `wanted` leads to, without what `have` does, to its standard output: a full name of
/// [`full_names`] or `HEAD`; if absent, all branches, all tags and `HEAD`.
#[must_use]
pub fn bundle_command(wanted: Option<&str>, have: &[CommitId]) -> Vec<String> {
    let mut arguments = vec!["bundle", "create", "-"];
    match wanted {
        Some(name) => arguments.push(name),
        None => arguments.extend(["HEAD", "--branches", "--tags"]),
    }
    if !have.is_empty() {
        arguments.push("--not");
        arguments.extend(have.iter().map(CommitId::as_str));
    }
    git(&arguments)
}

fn git(arguments: &[&str]) -> Vec<String> {
    let settings = SETTINGS.iter().flat_map(|setting| ["-c", *setting]);
    std::iter::once("git")
        .chain(settings)
        .chain(arguments.iter().copied())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_inside_printed_is_taken_for_no_more_than_it_is() {
        for (printed, count) in [
            ("", Some(0)),
            (" 1 file changed, 1 insertion(+)\n", Some(1)),
            (" 12 files changed\n", Some(12)),
            ("many files changed", None),
            ("3 wishes", None),
            ("-3 files changed", None),
        ] {
            assert_eq!(count_of_files(printed.as_bytes()), count, "{printed:?}");
        }
        for (printed, branch) in [
            ("refs/heads/main\n", Some("main")),
            ("refs/heads/a/b", Some("a/b")),
            ("refs/heads/a\nb\n", None),
            ("refs/heads/\n", None),
            ("refs/tags/v1\n", None),
            ("main\n", None),
        ] {
            assert_eq!(
                branch_of(printed.as_bytes()).as_deref(),
                branch,
                "{printed:?}"
            );
        }
    }

    #[test]
    fn a_branch_s_name_shows_and_has_room_for_a_lock() {
        for name in ["main", "a/b", "ü", "-x", &"x".repeat(250)] {
            assert!(is_branch_name(name), "{name:?}");
        }
        for name in [
            "HEAD",
            "a..b",
            "x\u{202e}ab",
            "x\u{2028}y",
            "x\u{85}y",
            &"x".repeat(251),
            &"x/".repeat(200),
        ] {
            assert!(!is_branch_name(name), "{name:?}");
        }
    }

    #[test]
    fn a_name_is_a_branch_s_or_a_tag_s_and_never_an_option_or_an_expression() {
        for (name, full) in [
            ("v1", ["refs/heads/v1", "refs/tags/v1"]),
            (
                "refs/heads/v1",
                ["refs/heads/v1", "refs/tags/refs/heads/v1"],
            ),
            ("refs/tags/v1", ["refs/heads/refs/tags/v1", "refs/tags/v1"]),
            ("-x", ["refs/heads/-x", "refs/tags/-x"]),
        ] {
            assert_eq!(full_names(name), Some(full.map(str::to_owned)), "{name:?}");
        }
        for name in ["v1..v2", "^v1", "v1\nv2", "v1~1", ""] {
            assert_eq!(full_names(name), None, "{name:?}");
        }
    }
}
