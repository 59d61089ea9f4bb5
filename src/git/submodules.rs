//! Submodules: the repositories that a commit names, looked for in the mirror and mirrored in their turn.
//!
//! What names them, `.gitmodules` and the tree, is whoever's who commits to the repository, and hostile: a URL
//! leads where the config allows and nowhere else, with credentials of the config that are for that host; a
//! path is one of the tree and leads out of nothing; there are only so many, so deep. git's own `submodule`
//! command runs nowhere: it would take its settings from the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};

use super::Mirrors;
use super::error::GitError;
use super::mending::Mending;
use super::mirror::Mirror;
use super::process::{Call, Input};
use super::reference::{CommitId, Reference, Resolved};
use super::upstream::Upstream;
use crate::config::Repository;

/// Submodules of submodules, at the most.
pub(super) const DEPTH: usize = 8;

/// Of one repository, at all depths.
pub(super) const COUNT: usize = 256;

/// The most that `.gitmodules` may have, in bytes.
const LARGEST_LIST: u64 = 1 << 20;

/// A submodule whose mirror has the commit that is wanted.
#[derive(Debug, Clone)]
pub struct Submodule {
    /// As if the config had it.
    pub(super) repository: Repository,
    pub(super) at: Resolved,
    pub(super) name: String,
    /// Below the repository that it belongs to.
    pub(super) path: PathBuf,
    pub(super) below: Vec<Self>,
}

impl Submodule {
    /// As if the config had it; its path is where it is in the workspace.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The commit that is named.
    #[must_use]
    pub fn at(&self) -> &Resolved {
        &self.at
    }

    /// Its name in the repository that it belongs to.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path in the repository that it belongs to: parts that lead down, and nothing else.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its own submodules.
    #[must_use]
    pub fn below(&self) -> &[Self] {
        &self.below
    }

    /// These and those below them, by where they are in the workspace.
    #[must_use]
    pub fn by_place(all: &[Self]) -> BTreeMap<&Path, &Self> {
        let own = all.iter().map(|one| (one.repository.path.as_path(), one));
        let below = all.iter().flat_map(|one| Self::by_place(&one.below));
        own.chain(below).collect()
    }

    /// The names of the mirrors of these, and of those below them.
    #[must_use]
    pub fn mirrors(all: &[Self]) -> Vec<String> {
        let own = all
            .iter()
            .filter_map(|one| super::mirror_of(&one.repository));
        let below = all.iter().flat_map(|one| Self::mirrors(&one.below));
        own.chain(below).collect()
    }
}

/// What a commit says of one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// As it stands there.
    pub(super) url: String,
    pub(super) commit: CommitId,
}

/// Where submodules of a repository of the config may come from, at all depths.
#[derive(Debug)]
pub(super) struct Allowed<'c> {
    top: Upstream,
    prefixes: Option<&'c [String]>,
}

impl<'c> Allowed<'c> {
    pub(super) fn by(repository: &'c Repository) -> Result<Self, GitError> {
        Ok(Self {
            top: Upstream::parse(&repository.url)?,
            prefixes: repository.submodule_urls.as_deref(),
        })
    }

    fn allows(&self, upstream: &Upstream) -> bool {
        let Some(prefixes) = self.prefixes else {
            // Files of this host are nobody's to name but the config's.
            return upstream.place().is_some() && upstream.place() == self.top.place();
        };
        prefixes.iter().any(|prefix| {
            let rest = upstream.url().strip_prefix(prefix.as_str());
            rest.is_some_and(|rest| {
                rest.is_empty() || rest.starts_with('/') || prefix.ends_with(['/', ':'])
            })
        })
    }
}

/// A search for all submodules of one repository.
#[derive(Debug)]
pub(super) struct Search<'c> {
    pub(super) mirrors: &'c Mirrors,
    pub(super) allowed: Allowed<'c>,
    pub(super) config: &'c [Repository],
    pub(super) missing: Missing,
}

/// What is done about a commit that its mirror does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Its host is asked for it.
    Brought,
    /// Nothing.
    AnError,
}

/// How many hosts are asked at once.
const AT_ONCE: usize = 4;

impl Search<'_> {
    /// Those of a commit that the mirror of `parent` has, `depth` below the top. `count` is how many there are.
    pub(super) async fn below(
        &self,
        parent: &Repository,
        commit: &CommitId,
        depth: usize,
        count: &mut usize,
    ) -> Result<Vec<Submodule>, GitError> {
        let upstream = Upstream::parse(&parent.url)?;
        let all = self.list(parent, commit).await?;
        let mut named = Vec::new();
        for listed in all {
            *count += 1;
            if depth >= DEPTH || *count > COUNT {
                let reason =
                    format!("there are more than {COUNT}, or more than {DEPTH} in each other");
                return Err(refused(&upstream, &listed.path, reason));
            }
            let own = url_of(&listed, &upstream, &self.allowed)?;
            let repository = self.as_configured(parent, &own, &listed);
            named.push((listed, own, repository));
        }
        let brought: Vec<_> = named
            .iter()
            .map(|(listed, own, repository)| self.bring(repository, own, &listed.commit).boxed())
            .collect();
        // In their order, so that of several errors it is always the first one's.
        let mut brought = stream::iter(brought).buffered(AT_ONCE);
        while brought.try_next().await?.is_some() {}
        drop(brought);
        let mut found = Vec::new();
        for (listed, _, repository) in named {
            let below = self.below(&repository, &listed.commit, depth + 1, count);
            found.push(Submodule {
                below: Box::pin(below).await?,
                at: Resolved {
                    commit: listed.commit,
                    reference: Reference::Commit,
                },
                repository,
                name: listed.name,
                path: listed.path,
            });
        }
        Ok(found)
    }

    /// What the commit names. Where nothing is brought, a damaged mirror stays as it is.
    async fn list(&self, parent: &Repository, commit: &CommitId) -> Result<Vec<Listed>, GitError> {
        let mut mending = Mending::of(self.mirrors, parent, commit).await?;
        loop {
            let all = list(mending.mirror(), commit).await;
            if self.missing == Missing::AnError {
                return all;
            }
            if let Some(all) = mending.settle(all).await? {
                return Ok(all);
            }
        }
    }

    /// The submodule as the config would have it: opened by what the first repository of the same host is.
    fn as_configured(&self, parent: &Repository, own: &Upstream, listed: &Listed) -> Repository {
        let same = |other: &&Repository| {
            let place = Upstream::parse(&other.url)
                .ok()
                .and_then(|other| other.place());
            place.is_some() && place == own.place()
        };
        let opened_by = std::iter::once(parent).chain(self.config).find(same);
        parent.submodule(own.url(), &listed.path, listed.commit.as_str(), opened_by)
    }

    /// Has the commit in the submodule's mirror; asks its host only where it is not there yet, and may be.
    async fn bring(
        &self,
        repository: &Repository,
        own: &Upstream,
        commit: &CommitId,
    ) -> Result<(), GitError> {
        let mirror = self.mirrors.mirror(own);
        let found = match self.missing {
            Missing::AnError => mirror.peeled(commit.as_str()).await?,
            Missing::Brought => {
                let known = {
                    // Also says that the mirror is in use, so that nobody takes it away now.
                    let _lock = mirror.lock().await?;
                    mirror.peeled(commit.as_str()).await?
                };
                match known {
                    None => Some(self.mirrors.resolve(repository).await?.commit),
                    known => known,
                }
            }
        };
        if found.as_ref() == Some(commit) {
            return Ok(());
        }
        Err(GitError::NoSuchReference {
            url: own.url().to_owned(),
            reference: commit.as_str().to_owned(),
            looked_for: "commit",
        })
    }
}

/// The URL of a submodule of `parent`, in full, if it may be used.
pub(super) fn url_of(
    listed: &Listed,
    parent: &Upstream,
    allowed: &Allowed<'_>,
) -> Result<Upstream, GitError> {
    let url = &listed.url;
    let refuse = |reason: &str| Err(refused(parent, &listed.path, reason.to_owned()));
    if url.len() > 4096 || url.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\')
    {
        return refuse("its URL has characters that no URL has, or too many");
    }
    let whole = if url.starts_with("./") || url.starts_with("../") {
        match relative(parent.url(), url) {
            Some(whole) => whole,
            None => return refuse("its URL leads above the host of its repository"),
        }
    } else {
        url.clone()
    };
    let path = whole
        .split_once("://")
        .map_or(whole.as_str(), |(_, rest)| rest);
    let hidden = path.to_ascii_lowercase();
    if path
        .split(['/', ':'])
        .any(|part| part == ".." || part == ".")
        || ["%2e", "%2f", "%5c"]
            .iter()
            .any(|code| hidden.contains(code))
        || path.contains(['?', '#'])
    {
        return refuse("its URL has \"..\", a code for a dot or a slash, a query or a fragment");
    }
    let upstream = Upstream::parse(&whole)?;
    if allowed.allows(&upstream) {
        Ok(upstream)
    } else {
        Err(refused(
            parent,
            &listed.path,
            format!("its URL {whole} is not allowed; submodule_urls names what is"),
        ))
    }
}

/// As git-submodule(1) has it: steps of `./` and `../` from the URL of the repository on.
fn relative(parent: &str, relative: &str) -> Option<String> {
    let parent = parent.trim_end_matches('/');
    let (fixed, path) = match parent.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/')?;
            parent.split_at(scheme.len() + "://".len() + end)
        }
        None if parent.starts_with('/') => ("", parent),
        None => parent.split_at(parent.find(':')? + 1),
    };
    let mut parts: Vec<&str> = path.split('/').collect();
    let rooted = path.starts_with('/');
    let mut rest = relative;
    loop {
        if let Some(more) = rest.strip_prefix("../") {
            parts.pop()?;
            // What is left of a path from the root on is the root at least.
            if rooted && parts.is_empty() {
                return None;
            }
            rest = more;
        } else if let Some(more) = rest.strip_prefix("./") {
            rest = more;
        } else {
            break;
        }
    }
    parts.extend(rest.split('/'));
    Some(format!("{fixed}{}", parts.join("/")))
}

/// The submodules of a commit that the mirror has.
pub(super) async fn list(mirror: &Mirror, commit: &CommitId) -> Result<Vec<Listed>, GitError> {
    let failed = |failure| GitError::local("list submodules", failure);
    let url = mirror.upstream.url();
    let tree = |paths: Vec<PathBuf>| {
        let call = mirror
            .git()
            .args(["ls-tree", "-z", "-l", "--full-tree", commit.as_str(), "--"]);
        call.args(paths)
    };
    let found = tree(vec![PathBuf::from(".gitmodules")]).output().await;
    let found = entries(&found.map_err(failed)?);
    let Some(file) = found.get(Path::new(".gitmodules")) else {
        return Ok(Vec::new());
    };
    let refuse = |reason: &str| {
        Err(refused(
            &mirror.upstream,
            Path::new(".gitmodules"),
            reason.to_owned(),
        ))
    };
    if !file.mode.starts_with("100") {
        return refuse("it is no file");
    }
    if file.size.is_some_and(|size| size > LARGEST_LIST) {
        return refuse("it is larger than 1 MiB");
    }
    let content = mirror.git().args(["cat-file", "blob", &file.id]).output();
    let content = content.await.map_err(failed)?;
    // Without includes: they could name files of the host.
    let settings = mirror
        .git()
        .args(["config", "--no-includes", "--file", "-", "-z", "--list"])
        .input(Input::Bytes(content));
    let settings = match settings.output().await {
        Ok(settings) => settings,
        Err(failure) if failure.is_an_answer() => return refuse("git cannot read it"),
        Err(failure) => return Err(failed(failure)),
    };
    let named = parse(&settings).map_err(|(what, reason)| GitError::Submodule {
        url: url.to_owned(),
        submodule: what,
        reason,
    })?;
    if named.len() > COUNT {
        return refuse("it names more than 256 submodules");
    }
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let paths = named.iter().map(|one| one.path.clone()).collect();
    let found = entries(&tree(paths).output().await.map_err(failed)?);
    // As for git, what has a name and no place in the tree is none.
    let listed = named.into_iter().filter_map(|one| {
        let entry = found.get(&one.path)?;
        (entry.mode == "160000").then_some(())?;
        Some(Listed {
            commit: entry.id.parse().ok()?,
            name: one.name,
            path: one.path,
            url: one.url,
        })
    });
    Ok(listed.collect())
}

/// The first thing by which commits that lead to `tip`, and to no base, have a submodule come from elsewhere or at
/// another commit than those of the bases do, for people; `git` sees them. Whoever fetches such a commit would have
/// the provider bring it, with credentials that the commits' author has not.
pub(super) async fn moved_by(
    git: impl Fn() -> Call,
    tip: &CommitId,
    bases: &[CommitId],
) -> Result<Option<String>, GitError> {
    let failed = |failure| GitError::local("look for submodules", failure);
    let not = bases.iter().map(|base| format!("^{base}"));
    let commits = git().args(["rev-list", tip.as_str()]).args(not).arg("--");
    let commits = commits.output().await.map_err(failed)?;
    // Each against each of its parents; of what both have alike, one of the bases says what it is.
    let raw = [
        "diff-tree",
        "--stdin",
        "-r",
        "-m",
        "--root",
        "-z",
        "--raw",
        "--no-abbrev",
    ];
    let raw = git()
        .args(raw)
        .args(["--no-renames", "--no-commit-id", "--diff-filter=AMT"])
        .input(Input::Bytes(commits));
    let raw = raw.output().await.map_err(failed)?;
    let changed: Vec<(String, String)> = changed(&raw);
    if changed.is_empty() {
        return Ok(None);
    }
    let mut known = BTreeSet::new();
    for base in bases {
        let tree = git().args(["ls-tree", "-r", "-z", "-l", "--full-tree", base.as_str()]);
        let tree = tree.output().await.map_err(failed)?;
        let of_submodules = entries(&tree)
            .into_iter()
            .filter(|(path, entry)| is_of_submodules(&entry.mode, &path.to_string_lossy()));
        known.extend(of_submodules.map(|(_, entry)| entry.id));
    }
    let moved = changed.into_iter().find(|(id, _)| !known.contains(id));
    Ok(moved.map(|(_, path)| path.escape_debug().to_string()))
}

/// Whether an entry of a tree says where submodules come from, or is one.
fn is_of_submodules(mode: &str, path: &str) -> bool {
    mode == "160000" || path == ".gitmodules"
}

/// What is of submodules in what `git diff-tree -z --raw` printed: new ids, and where.
fn changed(raw: &[u8]) -> Vec<(String, String)> {
    let raw = String::from_utf8_lossy(raw);
    let mut parts = raw.split('\0');
    let mut changed = Vec::new();
    while let (Some(what), Some(path)) = (parts.next(), parts.next()) {
        // `:<old mode> <new mode> <old id> <new id> <status>`
        let mut words = what.split(' ').skip(1);
        if let (Some(mode), Some(id)) = (words.next(), words.nth(1))
            && is_of_submodules(mode, path)
        {
            changed.push((id.to_owned(), path.to_owned()));
        }
    }
    changed
}

/// An entry of a tree.
struct Entry {
    mode: String,
    id: String,
    size: Option<u64>,
}

/// Reads what `git ls-tree -z -l` printed: mode, kind, id, size, a tab and the path.
fn entries(printed: &[u8]) -> BTreeMap<PathBuf, Entry> {
    let printed = String::from_utf8_lossy(printed);
    let entry = |line: &str| {
        let (what, path) = line.split_once('\t')?;
        let mut words = what.split_ascii_whitespace();
        let (mode, _, id) = (words.next()?, words.next()?, words.next()?);
        let entry = Entry {
            mode: mode.to_owned(),
            id: id.to_owned(),
            size: words.next().and_then(|size| size.parse().ok()),
        };
        Some((PathBuf::from(path), entry))
    };
    printed.split('\0').filter_map(entry).collect()
}

/// What `.gitmodules` says of one.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    name: String,
    path: PathBuf,
    url: String,
}

/// Reads what `git config -z --list` printed: a key, a line's end and the value. Errors with the name or path and
/// what is wrong with it.
fn parse(settings: &[u8]) -> Result<Vec<Named>, (String, String)> {
    #[derive(Default)]
    struct Fields<'s> {
        path: Option<&'s str>,
        url: Option<&'s str>,
        update: Option<&'s str>,
    }
    let wrong =
        |what: &str, reason: &str| Err((what.escape_debug().to_string(), reason.to_owned()));
    let Ok(settings) = str::from_utf8(settings) else {
        return wrong(".gitmodules", "it is not UTF-8");
    };
    let mut all: BTreeMap<&str, Fields<'_>> = BTreeMap::new();
    for setting in settings.split_terminator('\0') {
        let Some((key, value)) = setting.split_once('\n') else {
            continue;
        };
        let Some((name, field)) = key
            .strip_prefix("submodule.")
            .and_then(|rest| rest.rsplit_once('.'))
        else {
            continue;
        };
        let fields = all.entry(name).or_default();
        match field {
            "path" => fields.path = Some(value),
            "url" => fields.url = Some(value),
            "update" => fields.update = Some(value),
            _ => {}
        }
    }
    let mut named = Vec::new();
    for (name, fields) in all {
        let (Some(path), Some(url)) = (fields.path, fields.url) else {
            continue;
        };
        if fields.update == Some("none") {
            continue;
        }
        if !is_plain(name, |part| part != "..") {
            return wrong(name, "its name leads out of where names are");
        }
        let git =
            |part: &str| part.eq_ignore_ascii_case(".git") || part.eq_ignore_ascii_case("git~1");
        if path.starts_with([':', '/'])
            || !is_plain(path, |part| !["", ".", ".."].contains(&part) && !git(part))
        {
            return wrong(
                path,
                "its path leads out of the repository, or into what is git's",
            );
        }
        let path = PathBuf::from(path);
        if named.iter().any(|other: &Named| other.path == path) {
            return wrong(name, "its path is another's as well");
        }
        named.push(Named {
            name: name.to_owned(),
            path,
            url: url.to_owned(),
        });
    }
    Ok(named)
}

/// Whether a name has no odd characters, is of a sensible length, and each of its parts is right.
fn is_plain(name: &str, right: impl Fn(&str) -> bool) -> bool {
    !name.is_empty()
        && name.len() <= 1024
        && !name.contains(char::is_control)
        && name.split(['/', '\\']).all(right)
}

/// That the submodule at `path` of the repository `of` is not taken, and why.
pub(super) fn refused(of: &Upstream, path: &Path, reason: String) -> GitError {
    GitError::Submodule {
        url: of.url().to_owned(),
        submodule: path.to_string_lossy().escape_debug().to_string(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_followed_as_git_follows_them_and_not_above_the_host() {
        for (parent, url, whole) in [
            ("https://h/a/b.git", "../c.git", Some("https://h/a/c.git")),
            ("https://h/a/b.git/", "../../c", Some("https://h/c")),
            ("https://h/a/b", "./c", Some("https://h/a/b/c")),
            ("https://h/a/b", "../../../c", None),
            ("https://h", "../c", None),
            ("git@h:a/b", "../c", Some("git@h:a/c")),
            ("git@h:b", "../c", Some("git@h:c")),
            ("git@h:b", "../../c", None),
            ("ssh://git@h:22/b", "../c", Some("ssh://git@h:22/c")),
            ("/srv/git/a", "../b", Some("/srv/git/b")),
            ("/a", "../../b", None),
        ] {
            assert_eq!(relative(parent, url).as_deref(), whole, "{parent} {url}");
        }
    }

    #[test]
    fn a_url_leads_where_the_config_allows() {
        let check = |top: &str, prefixes: Option<&[&str]>, url: &str| {
            let fields =
                serde_json::json!({ "url": top, "path": "/r", "submodule_urls": prefixes });
            let repository: Repository = serde_json::from_value(fields).expect("a repository");
            let listed = Listed {
                name: "s".to_owned(),
                path: "s".into(),
                url: url.to_owned(),
                commit: "0".repeat(40).parse().expect("an id"),
            };
            let parent = Upstream::parse(top).expect("a URL");
            let allowed = Allowed::by(&repository).expect("a URL");
            url_of(&listed, &parent, &allowed).map(|upstream| upstream.url().to_owned())
        };
        for (top, prefixes, url) in [
            ("https://h/a/b", None, "../c"),
            ("https://h/a/b", None, "https://H:443/x"),
            ("git@h:a/b", None, "ssh://git@h/c"),
            (
                "https://h/a/b",
                Some(&["https://other/x"][..]),
                "https://other/x/c.git",
            ),
            (
                "https://h/a/b",
                Some(&["https://other/x/"]),
                "https://other/x/c.git",
            ),
            ("https://h/a/b", Some(&["git@other:"]), "git@other:c"),
            ("/srv/a", Some(&["/srv"]), "../c"),
        ] {
            let taken = check(top, prefixes, url);
            assert!(taken.is_ok(), "{top} {prefixes:?} {url}: {taken:?}");
        }
        for (top, prefixes, url) in [
            ("https://h/a/b", None, "http://h/c"),
            ("https://h/a/b", None, "https://h.evil/c"),
            ("https://h/a/b", None, "https://h:8443/c"),
            ("https://h/a/b", None, "https://user:canary@h/c"),
            ("https://h/a/b", None, "ext::sh -c true"),
            ("https://h/a/b", None, "ext::sh%20-c"),
            ("https://h/a/b", None, "/etc"),
            ("https://h/a/b", None, "file:///etc"),
            ("https://h/a/b", None, "-oProxyCommand=x:y"),
            ("https://h/a/b", None, ""),
            ("git@h:a/b", None, "eve@h:c"),
            ("/srv/a", None, "/srv/b"),
            ("/srv/a", None, "../b"),
            ("/srv/a", Some(&["/srv"][..]), "../../root/b"),
            ("/srv/a", Some(&["/srv"]), "/srv/../root"),
            ("/srv/a", Some(&["/srv"]), "/srvother"),
            ("https://h/a/b", Some(&[]), "../c"),
            ("https://h/a/b", Some(&["https://h/a"]), "../../x"),
            (
                "https://h/a/b",
                Some(&["https://h/a"]),
                "https://h/a/%2E./x",
            ),
            (
                "https://h/a/b",
                Some(&["https://h/a"]),
                "https://h/a/..%2fx",
            ),
            ("https://h/a/b", Some(&["https://h"]), "https://h.evil/a"),
            ("https://h/a/b", Some(&["https://h"]), "https://h@evil/a"),
            ("https://h/a/b", None, "../c?x"),
            ("https://h/a/b", None, "../c\n"),
        ] {
            let taken = check(top, prefixes, url);
            assert!(taken.is_err(), "{top} {prefixes:?} {url}: {taken:?}");
        }
    }

    #[test]
    fn names_and_paths_lead_out_of_nothing() {
        let read = |name: &str, path: &str| {
            parse(format!("submodule.{name}.path\n{path}\0submodule.{name}.url\nu\0").as_bytes())
        };
        for (name, path) in [
            ("s", "s"),
            ("a.b/c", "a b/c"),
            ("s", "sub.git/x"),
            ("-x", "-x"),
        ] {
            let one = Named {
                name: name.to_owned(),
                path: path.into(),
                url: "u".to_owned(),
            };
            assert_eq!(read(name, path), Ok(vec![one]));
        }
        for (name, path) in [
            ("../x", "s"),
            ("a/../../x", "s"),
            ("a\\..\\x", "s"),
            ("s", "../x"),
            ("s", "a/../../x"),
            ("s", "/etc"),
            ("s", ""),
            ("s", "."),
            ("s", "a//b"),
            ("s", ".git/hooks"),
            ("s", "a/.GIT"),
            ("s", "git~1"),
            ("s", ":(glob)**"),
            ("s", "a\tb"),
        ] {
            assert!(read(name, path).is_err(), "{name:?} {path:?}");
        }
        let twice =
            "submodule.a.path\ns\0submodule.a.url\nu\0submodule.b.path\ns\0submodule.b.url\nu\0";
        assert!(parse(twice.as_bytes()).is_err());
        let partly =
            "submodule.a.path\ns\0submodule.b.url\nu\0core.fsmonitor\nx\0submodule.a.url\0";
        assert_eq!(parse(partly.as_bytes()), Ok(Vec::new()));
    }
}
