//! A mirror that has a part of its upstream's history: of each reference that was asked for the last commits,
//! and what came after them.
//!
//! It has a directory of its own for each depth, beside the whole one. git's file `shallow` in it names the
//! commits whose parents are missing. git also writes commits there whose parents came another time; those are
//! taken out again, so that what is there is connected.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::BufRead as _;
use std::num::NonZeroU32;
use std::path::Path;

use super::super::error::GitError;
use super::super::process::Input;
use super::super::reference::{CommitId, Reference, is_ref_name};
use super::super::upstream::Access;
use super::ask::{Advertised, Head};
use super::files::remove;
use super::steps::shallow;
use super::{Mirror, WriteLock, answer, blocking, text};

/// Depths at which new commits are looked for that connect what is new with what is there. Where a branch was
/// rewritten they never do.
const DEPTHS: [u32; 4] = [32, 128, 512, 2048];

/// Commits of a mirror and what they follow on, as far as that is there.
#[derive(Debug, Default)]
pub(in crate::git) struct Graph {
    parents: BTreeMap<CommitId, Vec<CommitId>>,
    /// Commits whose parents are missing.
    ends: BTreeSet<CommitId>,
}

impl Graph {
    /// How many steps each commit is from `from`, no more than `most`; nothing is looked for behind `walls`.
    fn distances(
        &self,
        from: impl IntoIterator<Item = CommitId>,
        most: u32,
        walls: &BTreeSet<CommitId>,
    ) -> BTreeMap<CommitId, u32> {
        let mut found = BTreeMap::new();
        let mut left: VecDeque<_> = from.into_iter().map(|commit| (commit, 0)).collect();
        while let Some((commit, steps)) = left.pop_front() {
            if found.contains_key(&commit) {
                continue;
            }
            if steps < most && !walls.contains(&commit) {
                let parents = self.parents.get(&commit).into_iter().flatten();
                left.extend(parents.map(|parent| (parent.clone(), steps + 1)));
            }
            found.insert(commit, steps);
        }
        found
    }

    /// Whether the commit is there.
    pub(in crate::git) fn has(&self, commit: &CommitId) -> bool {
        self.parents.contains_key(commit)
    }

    /// Where a history of `depth` commits of `commit` ends: those whose parents are not a part of it.
    pub(in crate::git) fn boundary(&self, commit: &CommitId, depth: NonZeroU32) -> Vec<CommitId> {
        let most = depth.get() - 1;
        let within = self.distances([commit.clone()], most, &BTreeSet::new());
        let has_parents = |commit: &CommitId| {
            let parents = self.parents.get(commit);
            self.ends.contains(commit) || parents.is_some_and(|parents| !parents.is_empty())
        };
        within
            .into_iter()
            .filter(|(commit, steps)| match *steps == most {
                true => has_parents(commit),
                false => self.ends.contains(commit),
            })
            .map(|(commit, _)| commit)
            .collect()
    }

    /// Whether something is missing in a history of `depth` commits of `commit`.
    fn falls_short(&self, commit: &CommitId, depth: NonZeroU32) -> bool {
        let most = depth.get() - 1;
        let within = self.distances([commit.clone()], most, &BTreeSet::new());
        within
            .iter()
            .any(|(commit, steps)| *steps < most && self.ends.contains(commit))
    }

    /// Whether who has `had`, and nothing behind `walls`, has all parents of what `new` adds to it.
    pub(in crate::git) fn connects(
        &self,
        new: impl IntoIterator<Item = CommitId>,
        had: impl IntoIterator<Item = CommitId>,
        walls: &BTreeSet<CommitId>,
    ) -> bool {
        let had = self.distances(had, u32::MAX, walls);
        let stops = had.keys().cloned().collect();
        let reached = self.distances(new, u32::MAX, &stops);
        let mut added = reached.keys().filter(|commit| !had.contains_key(commit));
        !added.any(|commit| self.ends.contains(commit))
    }
}

impl Mirror {
    /// Has what `reference` leads to in a mirror of `depth`.
    pub(super) async fn reach(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
        (reference, depth): (Option<&str>, NonZeroU32),
    ) -> Result<(), GitError> {
        let name = wanted(advertised, reference);
        self.reach_or_begin(lock, access, (advertised, name), depth)
            .await
    }

    /// Has what the upstream's reference of this full name leads to, if there is one, in a mirror that is made anew
    /// where it is missing, of another format or damaged.
    async fn reach_or_begin(
        &self,
        lock: &WriteLock,
        access: &Access,
        (advertised, name): (&Advertised, Option<&str>),
        depth: NonZeroU32,
    ) -> Result<(), GitError> {
        if self.format_of(&self.path()).await?.as_deref() != Some(advertised.format()) {
            self.begin_thin(advertised).await?;
        }
        if let Some(name) = name {
            let reach = || self.reach_name(lock, access, (advertised, name), depth);
            match reach().await {
                Err(error @ GitError::Other { .. }) if self.is_damaged().await => {
                    self.replace_damaged(lock, access, advertised, &error)
                        .await?;
                    reach().await?;
                }
                reached => reached?,
            }
        }
        self.set_head(&self.path(), advertised).await
    }

    /// Has what the upstream's reference of this full name leads to, connected with what was there of it.
    async fn reach_name(
        &self,
        lock: &WriteLock,
        access: &Access,
        (advertised, name): (&Advertised, &str),
        depth: NonZeroU32,
    ) -> Result<(), GitError> {
        let known = self.refs().await?;
        let old = known.get(name.as_bytes());
        let new = advertised.refs.get(name.as_bytes());
        if old == new
            && let Some(commit) = self.peeled_or_none(old).await?
            && !self.graph([&commit]).await?.falls_short(&commit, depth)
        {
            return Ok(());
        }
        let before = self.peeled_or_none(old).await?;
        let further = DEPTHS.into_iter().filter(|further| *further > depth.get());
        for depth in std::iter::once(depth.get()).chain(further) {
            let option = format!("--depth={depth}");
            let into = self.path();
            self.fetch_some(lock, access, (&into, &[option.as_str()]), &[name])
                .await?;
            self.tidy_shallow().await?;
            let now = self.refs().await?;
            let now = self.peeled_or_none(now.get(name.as_bytes())).await?;
            let (Some(before), Some(now)) = (&before, &now) else {
                break;
            };
            let graph = self.graph([now, before]).await?;
            if graph.connects([now.clone()], [before.clone()], &BTreeSet::new()) {
                break;
            }
        }
        self.repack_if_due().await;
        Ok(())
    }

    /// Makes the mirror anew and has `commit` in it.
    pub(super) async fn reach_anew(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
        (commit, depth): (Option<&CommitId>, NonZeroU32),
    ) -> Result<(), GitError> {
        self.begin_thin(advertised).await?;
        let same = |(_, id): &(_, &String)| commit.is_some_and(|commit| commit.as_str() == *id);
        let name = advertised.refs.iter().find(same).map(|(name, _)| name);
        // What is no commit of a branch's is asked for by its id.
        if let Some(name) = name.and_then(|name| str::from_utf8(name).ok())
            && is_ref_name(name)
        {
            self.reach_name(lock, access, (advertised, name), depth)
                .await?;
        }
        self.set_head(&self.path(), advertised).await
    }

    /// Has the upstream's branch, if it has one of this name.
    pub(super) async fn reach_branch(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
        (branch, depth): (&str, NonZeroU32),
    ) -> Result<(), GitError> {
        let name = format!("refs/heads/{branch}");
        let there = advertised.refs.contains_key(name.as_bytes()) && is_ref_name(&name);
        let name = there.then_some(name.as_str());
        self.reach_or_begin(lock, access, (advertised, name), depth)
            .await
    }

    /// Has these commits, those that the upstream does not give out excepted.
    pub(super) async fn reach_commits(
        &self,
        lock: &WriteLock,
        access: &Access,
        commits: &[CommitId],
    ) -> Result<(), GitError> {
        for commit in commits {
            if self.peeled(commit.as_str()).await?.is_some() {
                continue;
            }
            match self.commit_or_fetch(lock, access, commit.as_str()).await {
                Ok(_) | Err(GitError::NoSuchReference { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the commit is there with as much of its history as the mirror has of each.
    pub(super) async fn has_enough_of(&self, commit: &CommitId) -> Result<bool, GitError> {
        match self.extent.depth {
            Some(depth) => Ok(!self.graph([commit]).await?.falls_short(commit, depth)),
            None => Ok(true),
        }
    }

    /// What these commits lead to, as far as it is there. For the holder of the write lock: while git fetches,
    /// more may seem to be missing.
    pub(in crate::git) async fn graph(
        &self,
        from: impl IntoIterator<Item = &CommitId>,
    ) -> Result<Graph, GitError> {
        let from: String = from.into_iter().map(|id| format!("{id}\n")).collect();
        const LIST: &str = "list the mirror's commits";
        let call = self
            .git()
            .args(["rev-list", "--parents", "--stdin"])
            .input(Input::Bytes(from.into_bytes()));
        let list = self.list(call, LIST).await?;
        let ends = self.ends().await?;
        blocking(LIST, move || {
            let mut parents = BTreeMap::new();
            for line in list.lines() {
                let line = line?;
                let mut ids = line.split(' ').filter_map(|id| id.parse().ok());
                if let Some(commit) = ids.next() {
                    parents.insert(commit, ids.collect());
                }
            }
            Ok(Graph { parents, ends })
        })
        .await
    }

    /// The commits that git takes for those whose parents are missing.
    async fn ends(&self) -> Result<BTreeSet<CommitId>, GitError> {
        Ok(ids(&shallow(&self.path()).await?))
    }

    /// Leaves in git's file `shallow` only commits whose parents are missing.
    pub(super) async fn tidy_shallow(&self) -> Result<(), GitError> {
        let noted = self.ends().await?;
        let asked: String = noted.iter().map(|id| format!("{id}\n")).collect();
        let read = self
            .git()
            .args(["cat-file", "--batch"])
            .input(Input::Bytes(asked.into_bytes()));
        let failed = |failure| GitError::local("look at where the mirror ends", failure);
        let parents = parents(&read.output().await.map_err(failed)?);
        let asked: BTreeSet<&CommitId> = parents.values().flatten().collect();
        let asked: String = asked.iter().map(|id| format!("{id}\n")).collect();
        let check = self
            .git()
            .args(["cat-file", "--batch-check=%(objectname) %(objecttype)"])
            .input(Input::Bytes(asked.into_bytes()));
        let present = check.output().await.map_err(failed)?;
        let present: BTreeSet<CommitId> = String::from_utf8_lossy(&present)
            .lines()
            .filter_map(|line| line.strip_suffix(" commit")?.parse().ok())
            .collect();
        let ends: BTreeSet<&CommitId> = parents
            .iter()
            .filter(|(_, parents)| !parents.iter().all(|parent| present.contains(parent)))
            .map(|(commit, _)| commit)
            .collect();
        if ends.iter().copied().eq(&noted) {
            return Ok(());
        }
        let list: String = ends.iter().map(|id| format!("{id}\n")).collect();
        let path = self.path().join("shallow");
        blocking("note where the mirror ends", move || {
            // Removed by the next one who writes, if this one is killed.
            let aside = path.with_extension("derrick.lock");
            std::fs::write(&aside, &list)?;
            std::fs::rename(&aside, &path)?;
            // To git a file without a line says that something is missing.
            match list.as_str() {
                "" => std::fs::remove_file(path),
                _ => Ok(()),
            }
        })
        .await
    }

    /// The name of the format of the objects of `mirror`, this one or one in the making, if git finds one there.
    pub(super) async fn format_of(&self, mirror: &Path) -> Result<Option<String>, GitError> {
        let call = self.client.local(mirror);
        let call = call.args(["rev-parse", "--show-object-format"]);
        let printed = answer(call, "look at a mirror's format").await?;
        Ok(printed.map(|printed| text(&printed).trim().to_owned()))
    }

    async fn begin_thin(&self, advertised: &Advertised) -> Result<(), GitError> {
        let (new, old) = (self.beside("new"), self.beside("old"));
        remove(&old).await?;
        remove(&new).await?;
        self.init(&new, advertised.format()).await?;
        self.put_into_place(new, old).await
    }

    async fn peeled_or_none(&self, id: Option<&String>) -> Result<Option<CommitId>, GitError> {
        match id {
            Some(id) => self.peeled(id).await,
            None => Ok(None),
        }
    }
}

/// The upstream's full name of a branch or tag that is meant; none where a commit is, or nothing is found.
fn wanted<'a>(advertised: &'a Advertised, reference: Option<&str>) -> Option<&'a str> {
    let full = match (reference, &advertised.head) {
        (None, Head::Branch(name)) => name.clone(),
        (None, Head::Detached(_) | Head::Nowhere) => return None,
        (Some(name), _) if name.parse::<CommitId>().is_ok() => return None,
        (Some(name), _) => {
            let names = Reference::meant_by(name).map(|(full, _)| full.into_bytes());
            let mut names = names.into_iter();
            names.find(|name| advertised.refs.contains_key(name))?
        }
    };
    let (name, _) = advertised.refs.get_key_value(&full)?;
    let name = str::from_utf8(name).ok()?;
    is_ref_name(name).then_some(name)
}

/// The commits that a file `shallow` names, git's or a workspace's.
pub(in crate::git) fn ids(shallow: &[u8]) -> BTreeSet<CommitId> {
    let lines = shallow.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| str::from_utf8(line).ok()?.trim().parse().ok())
        .collect()
}

/// The commits that `git cat-file --batch` printed, and their parents. What is no commit is left out.
fn parents(printed: &[u8]) -> BTreeMap<CommitId, Vec<CommitId>> {
    let mut found = BTreeMap::new();
    let mut rest = printed;
    while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
        let head = String::from_utf8_lossy(&rest[..end]);
        rest = &rest[end + 1..];
        let mut words = head.split(' ');
        // `<id> missing` has nothing that follows.
        let (Some(id), Some(kind), Some(Ok(size))) = (
            words.next(),
            words.next(),
            words.next().map(str::parse::<usize>),
        ) else {
            continue;
        };
        let content = &rest[..size.min(rest.len())];
        if let (Ok(id), "commit") = (id.parse(), kind) {
            let head = content.split(|&byte| byte == b'\n');
            let head = head.take_while(|line| !line.is_empty());
            let parents = head.filter_map(|line| {
                let id = str::from_utf8(line.strip_prefix(b"parent ")?).ok()?;
                id.parse().ok()
            });
            found.insert(id, parents.collect());
        }
        rest = rest.get(size + 1..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::process::Client;
    use super::super::super::upstream::Upstream;
    use super::super::Extent;
    use super::*;

    fn id(name: char) -> CommitId {
        let name = format!("{:x}", u32::from(name));
        format!("{name:0>40}").parse().expect("an id")
    }

    /// `ab ba`: a follows on b, and b on a.
    fn graph(commits: &str, ends: &str) -> Graph {
        let mut graph = Graph::default();
        for commit in commits.split(' ') {
            let mut ids = commit.chars().map(id);
            graph
                .parents
                .insert(ids.next().expect("a commit"), ids.collect());
        }
        graph.ends = ends.chars().map(id).collect();
        graph
    }

    #[tokio::test]
    async fn a_mirror_of_which_git_says_nothing_is_not_taken_for_none() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let upstream = Upstream::parse("https://git.example/r").expect("a URL");
        let mark = ("OF_A_TEST", String::new());
        let stall = std::time::Duration::from_millis(20);
        let client = Arc::new(Client::new(dir.path().to_owned(), mark, stall));
        let of = (upstream, Extent::WHOLE);
        let mirror = Mirror::new(client, dir.path().to_owned(), of, Arc::default());
        let path = mirror.path();
        assert!(matches!(mirror.format_of(&path).await, Ok(None)));
        std::fs::create_dir(&path).expect("a directory");
        assert!(matches!(mirror.format_of(&path).await, Ok(None)));
        // Nobody writes there, so git waits until it is ended.
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&path.join("HEAD"), mode).expect("a pipe");
        for part in ["objects", "refs"] {
            std::fs::create_dir(path.join(part)).expect("a directory");
        }
        let asked = mirror.format_of(&path).await;
        assert!(matches!(asked, Err(GitError::Other { .. })), "{asked:?}");
        let asked = mirror.is_begun(&path, "sha1").await;
        assert!(matches!(asked, Err(GitError::Other { .. })), "{asked:?}");
    }

    #[test]
    fn a_history_ends_where_its_depth_does() {
        // a is a merge of b and c; c is a merge, too, and has d from below b as well.
        let all = graph("abc bd ced df ef f", "");
        for (depth, boundary) in [(1, "a"), (2, "bc"), (3, "de"), (4, ""), (9, "")] {
            let depth = NonZeroU32::new(depth).expect("a depth");
            let expected: Vec<_> = boundary.chars().map(id).collect();
            assert_eq!(all.boundary(&id('a'), depth), expected, "{depth}");
            assert!(!all.falls_short(&id('a'), depth));
        }
        // d's parents are missing.
        let thin = graph("abc bd ced d ef f", "d");
        let three = NonZeroU32::new(3).expect("a depth");
        let four = NonZeroU32::new(4).expect("a depth");
        assert_eq!(thin.boundary(&id('a'), three), [id('d'), id('e')]);
        assert!(!thin.falls_short(&id('a'), three));
        assert_eq!(thin.boundary(&id('a'), four), [id('d')]);
        assert!(thin.falls_short(&id('a'), four));
    }

    #[test]
    fn what_is_new_connects_where_no_parent_is_missing() {
        let thin = graph("ab bc cd d xy y", "dy");
        let connects = |new, had, walls: &str| {
            let walls = walls.chars().map(id).collect();
            thin.connects([id(new)], [id(had)], &walls)
        };
        assert!(connects('a', 'c', ""));
        assert!(connects('a', 'd', "d"));
        assert!(connects('b', 'a', ""));
        assert!(!connects('x', 'a', ""));
        // Who has a and nothing behind it lacks what is before b.
        assert!(!connects('b', 'a', "a"));
    }

    #[test]
    fn what_git_prints_of_odd_objects_is_no_commit() {
        let (a, b) = (id('a'), id('b'));
        let commit = format!("tree {b}\nparent {b}\nauthor x\n\nparent {a}\n");
        let printed = format!(
            "{b} missing\n{b} blob 8\nparent {a}\n\n{a} commit {}\n{commit}\n{b} commit 99\nparent ",
            commit.len()
        );
        let found = parents(printed.as_bytes());
        assert_eq!(found.get(&a), Some(&vec![b.clone()]));
        assert_eq!(found.get(&b).map(Vec::len), Some(0));
        assert_eq!(parents(b"x\n\n1 2 3\n"), BTreeMap::new());
        assert_eq!(ids(format!("{a}\nx\n-- \n{b}").as_bytes()).len(), 2);
    }
}
