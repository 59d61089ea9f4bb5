//! One mirror: a bare repository of the provider's own, kept equal to an upstream.
//!
//! A mirror is only ever added to in place (objects first, then references), so readers need no
//! lock against a fetch. What would pull files from under them, repacking and replacing, takes the
//! mirror's lease alone. The two locks:
//!
//! - `<digest>.lock`, for writers: one at a time, across tasks and processes. The fetching git
//!   holds it too, so a provider that is killed does not hand the mirror to its successor early.
//! - the mirror's own directory, the lease: shared by readers.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::error::GitError;
use super::process::{Call, Client, Input};
use super::reference::{CommitId, Reference, Resolved};
use super::upstream::{Access, Upstream};

/// Packs in a mirror, from which on the small ones are made one.
const PACKS: usize = 50;

/// How long to wait before asking again for a lock that another process holds.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Where references' names lead: full name to object id. Names are bytes to git.
pub(super) type Refs = BTreeMap<Vec<u8>, String>;

/// For so long after its last use nobody takes a mirror away: what uses it may not say so anywhere yet.
const RECENT: Duration = Duration::from_secs(600);

/// A repository's mirror, there or not.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    pub(super) client: Arc<Client>,
    pub(super) upstream: Upstream,
    /// The directory that holds all mirrors.
    dir: PathBuf,
    digest: String,
    gate: Arc<Mutex<()>>,
}

/// The right to write to a mirror.
#[derive(Debug)]
pub(super) struct WriteLock {
    file: File,
    _gate: OwnedMutexGuard<()>,
}

/// As long as it lives, the mirror's files stay where they are.
#[derive(Debug)]
pub(super) struct Lease(#[expect(dead_code, reason = "the lock lives in the open file")] File);

/// What the upstream says it has.
struct Advertised {
    refs: Refs,
    head: Head,
}

/// What the upstream's `HEAD` is.
enum Head {
    /// A branch that exists, by its full name.
    Branch(Vec<u8>),
    /// A commit that is no branch's.
    Detached(String),
    Nowhere,
}

impl Mirror {
    pub(super) fn new(
        client: Arc<Client>,
        dir: PathBuf,
        upstream: Upstream,
        gate: Arc<Mutex<()>>,
    ) -> Self {
        let digest = upstream.digest();
        Self {
            client,
            upstream,
            dir,
            digest,
            gate,
        }
    }

    /// The bare repository.
    pub(super) fn path(&self) -> PathBuf {
        self.beside("git")
    }

    /// A git process that reads or writes the mirror itself.
    pub(super) fn git(&self) -> Call {
        self.client.local(&self.path())
    }

    /// Waits until nobody else writes.
    pub(super) async fn lock(&self) -> Result<WriteLock, GitError> {
        let gate = Arc::clone(&self.gate).lock_owned().await;
        let path = self.beside("lock");
        let file = blocking("open the mirror's lock", move || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
        })
        .await?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // Another process holds it, if only a git that is being killed. Asking again,
                // unlike a thread that blocks in flock(2), ends when this future is dropped.
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_INTERVAL).await,
                Err(TryLockError::Error(error)) => {
                    return Err(GitError::io("lock the mirror", error));
                }
            }
        }
        let (mirror, trusted) = (self.path(), self.beside("conf"));
        let directory = self.upstream.directory();
        let used = file
            .try_clone()
            .map_err(|error| GitError::io("lock the mirror", error))?;
        blocking("prepare the mirror", move || {
            used.set_modified(SystemTime::now())?;
            sweep(&mirror)?;
            directory.map_or(Ok(()), |directory| {
                std::fs::write(trusted, trusting(&directory))
            })
        })
        .await?;
        Ok(WriteLock { file, _gate: gate })
    }

    /// Keeps the mirror's files where they are.
    pub(super) async fn lease(&self) -> Result<Lease, GitError> {
        let path = self.path();
        blocking("open the mirror", move || {
            loop {
                let directory = File::open(&path)?;
                directory.lock_shared()?;
                // It may have been replaced before the lock was there.
                if is_at(&directory, &path)? {
                    return Ok(Lease(directory));
                }
            }
        })
        .await
    }

    /// Makes the mirror equal to the upstream and finds `reference` in it.
    pub(super) async fn resolve(
        &self,
        lock: &WriteLock,
        access: Access,
        reference: Option<&str>,
    ) -> Result<Resolved, GitError> {
        let (access, advertised) = self.ask(lock, access).await?;
        if advertised.refs.is_empty() && matches!(advertised.head, Head::Nowhere) {
            return Err(GitError::Empty {
                url: self.upstream.url().to_owned(),
            });
        }
        self.update(lock, &access, &advertised).await?;
        match self.find(lock, &access, &advertised, reference).await {
            Err(error @ GitError::Other { .. }) if self.is_damaged().await => {
                self.replace_damaged(lock, &access, &advertised, &error)
                    .await?;
                self.find(lock, &access, &advertised, reference).await
            }
            found => found,
        }
    }

    /// Makes the mirror equal to the upstream; the access that works, and the branches and tags there.
    pub(super) async fn refresh(
        &self,
        lock: &WriteLock,
        access: Access,
    ) -> Result<(Access, Refs), GitError> {
        let (access, advertised) = self.ask(lock, access).await?;
        self.update(lock, &access, &advertised).await?;
        Ok((access, advertised.refs))
    }

    /// Makes the mirror anew and has `commit` in it, if the upstream still gives it out.
    pub(super) async fn rebuild(
        &self,
        lock: &WriteLock,
        access: Access,
        commit: Option<&CommitId>,
    ) -> Result<(), GitError> {
        let (access, advertised) = self.ask(lock, access).await?;
        self.build(lock, &access, &advertised).await?;
        if let Some(commit) = commit {
            self.commit_or_fetch(lock, &access, commit.as_str()).await?;
        }
        Ok(())
    }

    /// Whether git finds the mirror's own files missing or broken. Reads all of it.
    pub(super) async fn is_damaged(&self) -> bool {
        // Its configuration is not fsck's concern.
        let bare = self
            .git()
            .args(["rev-parse", "--is-bare-repository"])
            .output()
            .await;
        if bare.is_ok_and(|answer| answer != b"true\n") {
            return true;
        }
        let fsck = self.git().args([
            "fsck",
            "--full",
            "--no-dangling",
            "--no-reflogs",
            "--progress",
        ]);
        fsck.output()
            .await
            .is_err_and(|failure| failure.is_an_answer())
    }

    /// Branches and tags that the mirror has.
    pub(super) async fn refs(&self) -> Result<Refs, GitError> {
        let call = self.git().args([
            "for-each-ref",
            "--format=%(objectname) %(refname)",
            "refs/heads",
            "refs/tags",
        ]);
        let list = call
            .output()
            .await
            .map_err(|failure| GitError::local("list the mirror's references", failure))?;
        Ok(lines(&list, b' ')
            .map(|(id, name)| (name.to_vec(), text(id)))
            .collect())
    }

    /// The upstream's default branch, if it has one.
    pub(super) async fn default_branch(&self) -> Option<String> {
        let call = self.git().args(["symbolic-ref", "--quiet", "HEAD"]);
        // It fails when HEAD is detached.
        let name = call.output().await.ok()?;
        let name = String::from_utf8(name).ok()?;
        name.trim_end()
            .strip_prefix("refs/heads/")
            .map(str::to_owned)
    }

    /// Asks the upstream what it has; gives the access that works, which is another one after a redirect.
    async fn ask(
        &self,
        lock: &WriteLock,
        access: Access,
    ) -> Result<(Access, Advertised), GitError> {
        let list = |access: &Access| {
            Ok::<_, GitError>(self.remote(lock, access)?.args(["ls-remote", "--symref"]))
        };
        let wanted = ["HEAD", "refs/heads/*", "refs/tags/*"];
        let failed =
            |access: &Access, failure| GitError::remote("list the references of", access, failure);

        let first = list(&access)?
            .arg("--")
            .arg(access.upstream().url())
            .args(wanted)
            .output()
            .await;
        match first {
            Err(failure) if access.has_header() && failure.says(REDIRECTS) => {
                let moved = self.follow(lock, &access).await?;
                let answer = list(&moved)?
                    .arg("--")
                    .arg(moved.upstream().url())
                    .args(wanted)
                    .output()
                    .await;
                let answer = answer.map_err(|failure| failed(&moved, failure))?;
                Ok((moved, Advertised::parse(&answer)))
            }
            Err(failure) => Err(failed(&access, failure)),
            Ok(answer) => Ok((access, Advertised::parse(&answer))),
        }
    }

    /// Finds out where the host redirects to, and whether the credentials may go there.
    ///
    /// Version 0 of git's protocol lists references in one GET; curl takes the header off that
    /// when it follows a redirect to another host, and there is no second request.
    async fn follow(&self, lock: &WriteLock, access: &Access) -> Result<Access, GitError> {
        let url = access.upstream().url();
        let probe = self
            .remote(lock, access)?
            .setting("protocol.version", "0")
            .setting("http.followRedirects", "initial")
            .args(["ls-remote", "--", url, "HEAD"]);
        let said = match probe.messages().await {
            Ok(said) => said,
            Err(failure) => failure.said().to_owned(),
        };
        let to = said
            .lines()
            .find_map(|line| line.strip_prefix("warning: redirecting to "));
        let Some(to) = to else {
            let detail = "it redirects to a place that cannot be found out".to_owned();
            return Err(GitError::Unreachable {
                url: url.to_owned(),
                detail,
            });
        };
        access.redirected(to).ok_or_else(|| GitError::Redirected {
            url: url.to_owned(),
            to: to.to_owned(),
        })
    }

    async fn update(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
    ) -> Result<(), GitError> {
        let known = match self.refs().await {
            Ok(known) if known.is_empty() || advertised.has_length_of(&known) => known,
            // Not there, not readable, or of another object format.
            _ => return self.build(lock, access, advertised).await,
        };
        if known != advertised.refs {
            match self.fetch(lock, access, &self.path()).await {
                Ok(()) => {}
                // git cannot say whose fault a bad object is, so the mirror is looked at.
                Err(error @ GitError::Other { .. }) if self.is_damaged().await => {
                    return self.replace_damaged(lock, access, advertised, &error).await;
                }
                Err(error) => return Err(error),
            }
            self.repack_if_due().await;
        }
        self.set_head(&self.path(), advertised).await
    }

    async fn replace_damaged(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
        error: &GitError,
    ) -> Result<(), GitError> {
        tracing::warn!(url = self.upstream.url(), %error, "the mirror is damaged, making it anew");
        self.build(lock, access, advertised).await
    }

    /// Makes the mirror aside and puts it into place.
    async fn build(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
    ) -> Result<(), GitError> {
        let (new, old) = (self.beside("new"), self.beside("old"));
        // What a killed provider left.
        remove(&new).await?;
        remove(&old).await?;
        let format = if advertised.id_length() == 64 {
            "sha256"
        } else {
            "sha1"
        };
        let init = self
            .client
            .plain()
            .args(["init", "--quiet", "--bare", "--template="])
            .arg(format!("--object-format={format}"))
            .arg("--")
            .arg(&new);
        init.output()
            .await
            .map_err(|failure| GitError::local("make a mirror", failure))?;
        let filled = match self.fetch(lock, access, &new).await {
            Ok(()) => self.set_head(&new, advertised).await,
            Err(error) => Err(error),
        };
        if let Err(error) = filled {
            // Not kept: a partial transfer cannot be continued.
            remove(&new).await?;
            return Err(error);
        }
        let path = self.path();
        let (from, aside) = (new, old.clone());
        blocking("put the mirror into place", move || {
            match File::open(&path) {
                Ok(present) => {
                    present.lock()?;
                    std::fs::rename(&path, &aside)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            std::fs::rename(&from, &path)
        })
        .await?;
        remove(&old).await
    }

    async fn fetch(&self, lock: &WriteLock, access: &Access, into: &Path) -> Result<(), GitError> {
        let call = self
            .remote(lock, access)?
            .in_git_dir(into)
            // Progress tells that it is alive, and ends it by SIGPIPE when the provider is gone.
            .args([
                "fetch",
                "--progress",
                "--prune",
                "--no-tags",
                "--no-recurse-submodules",
                "--",
            ])
            .arg(access.upstream().url())
            .args(["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]);
        match call.messages().await {
            // Not an error to git: it leaves those references out.
            Ok(said) if said.contains("shallow roots are not allowed") => {
                let url = access.upstream().url().to_owned();
                return Err(GitError::Shallow { url });
            }
            Ok(_) => {}
            Err(failure) => {
                // A broken transfer leaves what came so far; on a full disk that is the worst of it.
                let into = into.to_owned();
                blocking("clean up after a fetch", move || sweep(&into)).await?;
                return Err(GitError::remote("fetch", access, failure));
            }
        }
        // Fetched references are a file each, which is slow to walk in a big repository.
        let pack = self.client.local(into).args(["pack-refs", "--all"]);
        pack.output()
            .await
            .map(drop)
            .map_err(|failure| GitError::local("pack the mirror's references", failure))
    }

    /// Points the mirror's `HEAD` where the upstream's points.
    async fn set_head(&self, mirror: &Path, advertised: &Advertised) -> Result<(), GitError> {
        let git = || self.client.local(mirror);
        let set = match &advertised.head {
            Head::Branch(name) => {
                use std::os::unix::ffi::OsStrExt as _;
                git()
                    .args(["symbolic-ref", "HEAD"])
                    .arg(std::ffi::OsStr::from_bytes(name))
            }
            // A name that no branch has: there is no default then, and no old one stays.
            Head::Detached(_) | Head::Nowhere => {
                git().args(["symbolic-ref", "HEAD", "refs/derrick/none"])
            }
        };
        set.output()
            .await
            .map(drop)
            .map_err(|failure| GitError::local("set the mirror's HEAD", failure))
    }

    async fn find(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
        reference: Option<&str>,
    ) -> Result<Resolved, GitError> {
        let url = || self.upstream.url().to_owned();
        let refs = self.refs().await?;
        let Some(name) = reference else {
            return match &advertised.head {
                Head::Branch(branch) => {
                    let branch = str::from_utf8(branch)
                        .ok()
                        .and_then(|name| name.strip_prefix("refs/heads/"));
                    let branch = branch.ok_or_else(|| GitError::NoDefaultBranch { url: url() })?;
                    self.named(&refs, branch)
                        .await?
                        .ok_or_else(|| GitError::NoDefaultBranch { url: url() })
                }
                Head::Detached(id) => {
                    let commit = self.commit_or_fetch(lock, access, id).await?;
                    Ok(Resolved {
                        commit,
                        reference: Reference::Commit,
                    })
                }
                Head::Nowhere => Err(GitError::NoDefaultBranch { url: url() }),
            };
        };
        // As for git itself, a whole id is never a name.
        if let Ok(id) = name.parse::<CommitId>() {
            let commit = self.commit_or_fetch(lock, access, id.as_str()).await?;
            return Ok(Resolved {
                commit,
                reference: Reference::Commit,
            });
        }
        if let Some(resolved) = self.named(&refs, name).await? {
            return Ok(resolved);
        }
        let hexadecimal = name.len() >= 7 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hexadecimal && let Some(commit) = self.abbreviated(name).await? {
            return Ok(Resolved {
                commit,
                reference: Reference::Commit,
            });
        }
        let looked_for = if hexadecimal {
            "branch, tag or commit"
        } else {
            "branch or tag"
        };
        Err(GitError::NoSuchReference {
            url: url(),
            reference: name.to_owned(),
            looked_for,
        })
    }

    /// A branch, else a tag, of this name; the full name is taken too.
    async fn named(&self, refs: &Refs, name: &str) -> Result<Option<Resolved>, GitError> {
        let branch = name.strip_prefix("refs/heads/").unwrap_or(name);
        let tag = name.strip_prefix("refs/tags/").unwrap_or(name);
        for (full, reference) in [
            (
                format!("refs/heads/{branch}"),
                Reference::Branch(branch.to_owned()),
            ),
            (format!("refs/tags/{tag}"), Reference::Tag(tag.to_owned())),
        ] {
            if let Some(id) = refs.get(full.as_bytes()) {
                if let Some(commit) = self.peeled(id).await? {
                    return Ok(Some(Resolved { commit, reference }));
                }
                let exists = self.git().args(["cat-file", "-e", id]).output().await;
                exists.map_err(|failure| GitError::local("read the mirror", failure))?;
                return Err(GitError::NoSuchReference {
                    url: self.upstream.url().to_owned(),
                    reference: name.to_owned(),
                    looked_for: "commit behind the tag",
                });
            }
        }
        Ok(None)
    }

    /// The commit of this whole id, fetched by it if no branch or tag brought it in.
    async fn commit_or_fetch(
        &self,
        lock: &WriteLock,
        access: &Access,
        id: &str,
    ) -> Result<CommitId, GitError> {
        if let Some(commit) = self.peeled(id).await? {
            return Ok(commit);
        }
        let call = self
            .remote(lock, access)?
            .in_git_dir(&self.path())
            .args([
                "fetch",
                "--progress",
                "--no-tags",
                "--no-recurse-submodules",
                "--",
            ])
            .args([access.upstream().url(), id]);
        match call.output().await {
            Ok(_) => {}
            Err(failure) if failure.says(NOT_GIVEN_OUT) => {}
            Err(failure) => return Err(GitError::remote("fetch a commit of", access, failure)),
        }
        self.peeled(id)
            .await?
            .ok_or_else(|| GitError::NoSuchReference {
                url: self.upstream.url().to_owned(),
                reference: id.to_owned(),
                looked_for: "commit",
            })
    }

    /// The commit that an object's whole id leads to, if the mirror has it.
    pub(super) async fn peeled(&self, id: &str) -> Result<Option<CommitId>, GitError> {
        let call = self
            .git()
            .args(["rev-parse", "--verify", "--quiet"])
            .arg(format!("{id}^{{commit}}"));
        match call.output().await {
            Ok(printed) => Ok(text(&printed).trim_end().parse().ok()),
            Err(failure) if failure.is_an_answer() => Ok(None),
            Err(failure) => Err(GitError::local("look up a commit in the mirror", failure)),
        }
    }

    /// Whether `old` is `new` or one of its ancestors; a commit that is not here is neither.
    pub(super) async fn leads_to(&self, new: &CommitId, old: &CommitId) -> Result<bool, GitError> {
        if self.peeled(old.as_str()).await?.is_none() {
            return Ok(false);
        }
        let call = self
            .git()
            .args(["merge-base", "--is-ancestor", old.as_str(), new.as_str()]);
        match call.output().await {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_an_answer() => Ok(false),
            Err(failure) => Err(GitError::local("compare commits of the mirror", failure)),
        }
    }

    /// The one commit whose id starts so.
    async fn abbreviated(&self, digits: &str) -> Result<Option<CommitId>, GitError> {
        let call = self
            .git()
            .arg("rev-parse")
            .arg(format!("--disambiguate={digits}"));
        let failed = |failure| GitError::local("look up a commit in the mirror", failure);
        let mut found = None;
        for id in text(&call.output().await.map_err(failed)?).lines() {
            let kind = self
                .git()
                .args(["cat-file", "-t", id])
                .output()
                .await
                .map_err(failed)?;
            if kind.starts_with(b"commit")
                && let Some(_) = found.replace(id.parse().ok())
            {
                let reference = digits.to_owned();
                return Err(GitError::AmbiguousReference {
                    url: self.upstream.url().to_owned(),
                    reference,
                });
            }
        }
        Ok(found.flatten())
    }

    /// Makes small packs one when there are many, unless somebody reads just now.
    async fn repack_if_due(&self) {
        let path = self.path();
        let due = blocking("count the mirror's packs", move || {
            let packs = std::fs::read_dir(path.join("objects/pack"))?
                .filter_map(Result::ok)
                .filter(|entry| {
                    entry
                        .path()
                        .extension()
                        .is_some_and(|extension| extension == "pack")
                })
                .count();
            let directory = File::open(&path)?;
            Ok((packs > PACKS && directory.try_lock().is_ok()).then_some(directory))
        })
        .await;
        if let Ok(Some(_alone)) = due {
            let repack = self
                .git()
                .args(["repack", "-d", "-q", "--geometric=2"])
                .output()
                .await;
            if let Err(failure) = repack {
                // The mirror works as it is, only slower; git before 2.32 has no such option.
                tracing::debug!(
                    url = self.upstream.url(),
                    detail = failure.detail(200),
                    "not repacked"
                );
            }
        }
    }

    /// A git process that may reach the upstream, and holds the lock until it ends.
    fn remote(&self, lock: &WriteLock, access: &Access) -> Result<Call, GitError> {
        let trusted = access.upstream().directory().map(|_| self.beside("conf"));
        let held = lock
            .file
            .try_clone()
            .map_err(|error| GitError::io("prepare a fetch", error))?;
        Ok(self
            .client
            .remote(access, trusted.as_deref())
            .input(Input::Held(held)))
    }

    fn beside(&self, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", self.digest))
    }
}

impl Advertised {
    /// Reads the answer of `git ls-remote --symref`.
    fn parse(answer: &[u8]) -> Self {
        let (mut refs, mut target, mut id_of_head) = (Refs::new(), None, None);
        for (id, name) in lines(answer, b'\t') {
            match (id.strip_prefix(b"ref: "), name) {
                (Some(branch), b"HEAD") => target = Some(branch.to_vec()),
                (Some(_), _) => {}
                (None, b"HEAD") => id_of_head = Some(text(id)),
                (None, name) if name.ends_with(b"^{}") => {}
                // `*` in a pattern of ls-remote also fits deeper names, such as refs/x/refs/heads/y.
                (None, name)
                    if name.starts_with(b"refs/heads/") || name.starts_with(b"refs/tags/") =>
                {
                    refs.insert(name.to_vec(), text(id));
                }
                (None, _) => {}
            }
        }
        let target =
            target.filter(|name| name.starts_with(b"refs/heads/") && refs.contains_key(name));
        let head = match (target, id_of_head) {
            (Some(branch), _) => Head::Branch(branch),
            // Like git clone: a server that does not say which branch it is may mean one of these.
            (None, Some(id)) => {
                let same = |name: &&[u8]| refs.get(*name).is_some_and(|branch| *branch == id);
                let usual: [&[u8]; 2] = [b"refs/heads/main", b"refs/heads/master"];
                let any = refs
                    .keys()
                    .map(Vec::as_slice)
                    .filter(|name| name.starts_with(b"refs/heads/"));
                match usual.into_iter().chain(any).find(same) {
                    Some(branch) => Head::Branch(branch.to_vec()),
                    None => Head::Detached(id),
                }
            }
            (None, None) => Head::Nowhere,
        };
        Self { refs, head }
    }

    /// Digits of an object id: 40 or 64.
    fn id_length(&self) -> usize {
        match (&self.head, self.refs.values().next()) {
            (_, Some(id)) | (Head::Detached(id), None) => id.len(),
            _ => 40,
        }
    }

    fn has_length_of(&self, refs: &Refs) -> bool {
        refs.values()
            .next()
            .is_some_and(|id| id.len() == self.id_length())
    }
}

/// What git says to a redirect that it does not follow.
const REDIRECTS: &[&str] = &[
    "returned error: 301",
    "returned error: 302",
    "returned error: 303",
    "returned error: 307",
    "returned error: 308",
];

/// What git or the server says to a commit that cannot be had by its id.
const NOT_GIVEN_OUT: &[&str] = &["not our ref", "unadvertised object", "find remote ref"];

/// A git configuration that trusts one directory's owner, and nothing else.
///
/// The repository may be bare, or have its `.git` inside; git compares real paths.
fn trusting(directory: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    let real = directory
        .canonicalize()
        .unwrap_or_else(|_| directory.to_owned());
    let mut text = b"[safe]\n".to_vec();
    for path in [directory, &real]
        .into_iter()
        .flat_map(|path| [path.to_owned(), path.join(".git")])
    {
        text.extend_from_slice(b"\tdirectory = \"");
        for &byte in path.as_os_str().as_bytes() {
            match byte {
                b'"' | b'\\' => text.extend([b'\\', byte]),
                b'\n' => text.extend(b"\\n"),
                _ => text.push(byte),
            }
        }
        text.extend_from_slice(b"\"\n");
    }
    text
}

/// Lines in two parts.
fn lines(text: &[u8], separator: u8) -> impl Iterator<Item = (&[u8], &[u8])> {
    text.split(|&byte| byte == b'\n').filter_map(move |line| {
        let at = line.iter().position(|&byte| byte == separator)?;
        Some((&line[..at], &line[at + 1..]))
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_at(open: &File, path: &Path) -> io::Result<bool> {
    let (open, there) = (open.metadata()?, std::fs::metadata(path)?);
    Ok((open.dev(), open.ino()) == (there.dev(), there.ino()))
}

/// Gives the mirrors below `dir` to `take` that are not `wanted`, have not been used lately, and that nobody
/// works with; their lock files stay, for who waits for one. Whoever wants one again makes it anew.
pub(super) fn take_unwanted(
    dir: &Path,
    wanted: impl Fn(&str) -> bool,
    mut take: impl FnMut(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let is_mirror = path.extension().is_some_and(|extension| extension == "git");
        let Some(name) = name.filter(|name| is_mirror && !wanted(name)) else {
            continue;
        };
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join(format!("{name}.lock")))?;
        let used = lock.metadata()?.modified()?;
        let lately = used.elapsed().map_or(true, |since| since < RECENT);
        if lately || !locked(&lock)? {
            continue;
        }
        let lease = File::open(&path)?;
        if locked(&lease)? {
            take(&path)?;
        }
    }
    Ok(())
}

fn locked(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes what a git that was killed left: locks, which would stop the next one, and parts of packs.
///
/// For the holder of the write lock only. No branch or tag can be named `*.lock`. Parts of packs stay while
/// somebody reads: a checkout's pack begins as one.
fn sweep(mirror: &Path) -> io::Result<()> {
    let alone = File::open(mirror)
        .ok()
        .filter(|directory| directory.try_lock().is_ok());
    let mut directories = vec![(mirror.to_owned(), Within::References)];
    while let Some((directory, within)) = directories.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            if entry.file_type()?.is_dir() {
                let objects =
                    within == Within::Objects || directory == mirror && name == b"objects";
                directories.push((
                    entry.path(),
                    if objects {
                        Within::Objects
                    } else {
                        Within::References
                    },
                ));
            } else if name.ends_with(b".lock")
                || alone.is_some() && within == Within::Objects && name.starts_with(b"tmp_")
            {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

/// What part of a mirror a directory belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    References,
    Objects,
}

async fn remove(path: &Path) -> Result<(), GitError> {
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(GitError::io("remove an old mirror", error))
        }
        _ => Ok(()),
    }
}

/// File work of this module, off the runtime's threads.
pub(super) async fn blocking<T, F>(attempt: &'static str, work: F) -> Result<T, GitError>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|lost| Err(io::Error::other(lost)))
        .map_err(|error| GitError::io(attempt, error))
}
