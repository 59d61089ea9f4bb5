//! Commits of a workspace on their way to its upstream: checked in a repository of their own, then pushed.
//!
//! They come as a bundle that the workspace's own git made, which may be anything. It is never used where it
//! could do harm: its header is read here, its pack is taken in by `git index-pack --strict` in a quarantine,
//! an empty repository that borrows the mirror's objects and is gone afterwards. Every object is looked at as
//! git's fsck does, warnings are errors, and what one leads to must be there. No reference and no configuration
//! comes with it, and the mirror itself gets nothing of it but by way of the upstream.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use super::error::GitError;
use super::handed::Handed;
use super::lfs;
use super::mirror::{Mirror, blocking, files_of};
use super::process::{Call, Failure, Input};
use super::reference::CommitId;
use super::submodules;
use super::upstream::Access;
use crate::config::Repository;
use crate::sandbox::confined::Confinement;
use crate::turns::Gate;

/// The most objects that a push may bring.
const MOST_OBJECTS: u64 = 500_000;

/// The most memory that git may take at once, as for an object that a small delta makes large; what is larger
/// as it is comes in pieces.
const LARGEST_OBJECT: &str = "256m";

/// The most that the commits of a push may have without their files, in bytes. A small pack can make them any
/// size, and git keeps them all where it looks whether one follows on another, also when it pushes.
const LARGEST_COMMITS: u64 = 256 << 20;

/// The most memory of its own that git may have while it looks at what was handed out.
const MOST_MEMORY: u64 = 1 << 30;

/// The most time of a processor that each step of looking at it may have, in seconds.
const MOST_PROCESSOR: u64 = 60;

/// Pushes whose objects are looked at at once, two of one owner's: small ones can be made to need memory and time.
pub(super) static LOOKING: LazyLock<Gate> = LazyLock::new(|| Gate::new(3));

/// How long looking at all objects may take.
const CHECKING: Duration = Duration::from_secs(300);

/// How long an upstream may take for a push.
const PUSHING: Duration = Duration::from_secs(600);

/// The most of what git said that an error repeats, in bytes.
const DETAIL: usize = 1024;

/// What is to be pushed.
#[derive(Debug)]
pub struct Outgoing {
    /// The full name that leads to it in the workspace, or `HEAD`.
    pub name: String,
    /// The commit, as the workspace says.
    pub tip: CommitId,
    /// Commits of the upstream that the workspace started from, or got last: the tip must follow on one.
    pub bases: Vec<CommitId>,
    /// What the mirror lacks of it, with its header; none where the workspace made no commit.
    pub bundle: Option<(File, Handed)>,
    /// The upstream's branch, without `refs/heads/`.
    pub branch: String,
    /// The workspace's owner, among whom there are turns.
    pub owner: Option<String>,
}

/// What a push did.
#[derive(Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Where the upstream's branch was before, if it was there.
    pub old: Option<CommitId>,
    /// Where it is.
    pub new: CommitId,
    /// Commits that follow on what the workspace started from.
    pub commits: u64,
}

/// Why commits were not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// What the workspace handed out is not passed on.
    #[error("the commits are not passed on: {0}")]
    Unfit(String),
    /// The upstream did not take them.
    #[error("{url} refused {branch:?}: {detail}")]
    Refused {
        /// The repository.
        url: String,
        /// The branch of it.
        branch: String,
        /// What it said.
        detail: String,
    },
    /// Something else failed.
    #[error(transparent)]
    Git(#[from] GitError),
}

pub(super) async fn push(
    mirror: &Mirror,
    (access, repository): (Access, &Repository),
    outgoing: Outgoing,
    scratch: &Path,
) -> Result<Pushed, PushError> {
    check_owner(mirror).await?;
    let lock = mirror.lock().await?;
    let (access, there) = mirror
        .refresh(&lock, access, (&outgoing.branch, &outgoing.bases))
        .await?;
    let mut bases = Vec::new();
    for base in outgoing.bases {
        if mirror.peeled(base.as_str()).await?.as_ref() == Some(&base) {
            bases.push(base);
        }
    }
    mirror.fill(&lock, &access, &files_of(&bases)).await?;
    // The mirror's files stay where they are until all is pushed.
    let _lease = mirror.lease().await?;
    let quarantine = Quarantine::make(mirror, &outgoing.tip, scratch).await?;
    drop(lock);
    let place = LOOKING.enter(outgoing.owner.as_deref()).await;
    let mut own = HashSet::new();
    if let Some((bundle, handed)) = outgoing.bundle {
        let said = [(outgoing.name.into_bytes(), outgoing.tip.clone())];
        if handed.references != said {
            let reason = "git in the workspace made a bundle of something else than it said";
            return Err(PushError::Unfit(reason.to_owned()));
        }
        own = quarantine.take_in(mirror, bundle, &handed).await?;
    }
    let commits = quarantine.check(mirror, &outgoing.tip, &bases, own).await?;
    if repository.submodules {
        let git = || quarantine.git(mirror).allocating(LARGEST_OBJECT);
        let moved = submodules::moved_by(git, &outgoing.tip, &bases);
        let moved = tokio::time::timeout(CHECKING, moved).await;
        if let Some(path) = moved.map_err(|_| too_long("look for submodules"))?? {
            return Err(PushError::Unfit(format!(
                "they change {path}, and with that where a submodule comes from or which commit of it; whoever \
                 fetches them would have derrick bring that"
            )));
        }
    }
    if repository.lfs {
        let git = || quarantine.git(mirror).allocating(LARGEST_OBJECT);
        let look = lfs::outgoing(git, (&outgoing.tip, &bases));
        let looked = tokio::time::timeout(CHECKING, look).await;
        let mut pointers = looked.map_err(|_| too_long("look for large files"))??;
        let blobs = pointers.iter().map(|pointer| pointer.blob.clone());
        let unknown = quarantine.unknown(mirror, &bases, blobs.collect()).await?;
        pointers.retain(|pointer| unknown.contains(&pointer.blob));
        if !pointers.is_empty() {
            return Err(PushError::Unfit(lfs::no_large_files(&pointers)));
        }
    }
    drop(place);
    let name = format!("refs/heads/{}", outgoing.branch);
    let old = there.get(name.as_bytes()).and_then(|id| id.parse().ok());
    if old.as_ref() != Some(&outgoing.tip) {
        let call = quarantine
            .remote(mirror, &access)
            .args(["push", "--no-verify", "--no-follow-tags", "--no-signed"])
            .args(["--recurse-submodules=no", "--progress", "--"])
            .arg(access.upstream().url())
            .arg(format!("{}:{name}", outgoing.tip));
        match tokio::time::timeout(PUSHING, call.output()).await {
            Ok(Ok(_)) => {}
            Ok(Err(failure)) => return Err(refused(&access, outgoing.branch, failure)),
            // It may have taken them, and not said so.
            Err(_) => {
                return Err(PushError::Refused {
                    url: access.upstream().url().to_owned(),
                    branch: outgoing.branch,
                    detail: format!("it did not come to an end within {} s", PUSHING.as_secs()),
                });
            }
        }
    }
    Ok(Pushed {
        old,
        new: outgoing.tip,
        commits,
    })
}

/// Has git take large objects in pieces, and compare them with nothing.
fn sparing(call: Call) -> Call {
    call.setting("core.bigFileThreshold", "64m")
        .setting("pack.threads", "1")
        .setting("pack.windowMemory", LARGEST_OBJECT)
}

/// What git says where the upstream has the last word.
const REFUSED: &[&str] = &["! [rejected]", "! [remote rejected]"];

fn refused(access: &Access, branch: String, failure: Failure) -> PushError {
    if !failure.says(REFUSED) {
        return GitError::remote("push to", access, failure).into();
    }
    PushError::Refused {
        url: access.upstream().url().to_owned(),
        branch,
        detail: words(failure.said()),
    }
}

/// What the upstream said, and what became of the branch, in one line; of much the end.
fn words(said: &str) -> String {
    let lines = said.lines().map(str::trim);
    let lines: Vec<_> = lines
        .filter(|line| line.starts_with("remote:") || line.starts_with("! ["))
        .filter(|line| line.trim_end() != "remote:")
        .collect();
    let text = lines.join("; ");
    let from =
        (text.len().saturating_sub(DETAIL)..=text.len()).find(|&at| text.is_char_boundary(at));
    text[from.unwrap_or_default()..].to_owned()
}

/// Refuses a directory of another user's: its hooks, which are whoever's it is, would run as this one.
async fn check_owner(mirror: &Mirror) -> Result<(), PushError> {
    let Some(directory) = mirror.upstream.directory() else {
        return Ok(());
    };
    let owner = blocking("look at the upstream", move || {
        Ok(std::fs::metadata(directory)?.uid())
    })
    .await?;
    if owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(PushError::Unfit(format!(
        "{} belongs to another user than the one that derrick runs as, and its hooks would run as that",
        mirror.upstream.url()
    )))
}

/// A bare repository in which nothing is but what a workspace handed out; dropping it removes it.
#[derive(Debug)]
struct Quarantine(PathBuf);

impl Quarantine {
    async fn make(mirror: &Mirror, tip: &CommitId, scratch: &Path) -> Result<Self, GitError> {
        let quarantine = Self(scratch.join(format!("push-{}", uuid::Uuid::now_v7())));
        let format = match tip.as_str().len() {
            64 => "sha256",
            _ => "sha1",
        };
        let directory = quarantine.0.clone();
        blocking("make a quarantine", move || {
            std::fs::DirBuilder::new().mode(0o700).create(directory)
        })
        .await?;
        let init = mirror.client.init_bare(&quarantine.0, format);
        init.output()
            .await
            .map_err(|failure| GitError::local("make a quarantine", failure))?;
        let info = quarantine.0.join("objects/info");
        let mut alternates = mirror
            .path()
            .join("objects")
            .into_os_string()
            .into_encoded_bytes();
        alternates.push(b'\n');
        // Where what it borrows ends.
        let (shallow, own) = (mirror.path().join("shallow"), quarantine.0.join("shallow"));
        blocking("make a quarantine", move || {
            match std::fs::copy(shallow, own) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            std::fs::create_dir_all(&info)?;
            std::fs::write(info.join("alternates"), alternates)
        })
        .await?;
        Ok(quarantine)
    }

    /// Confined to it: what the workspace handed out may be made to break git.
    fn git(&self, mirror: &Mirror) -> Call {
        let confinement = Confinement {
            readable: vec![mirror.path(), mirror.client.home()],
            writable: vec![self.0.clone()],
            memory: Some(MOST_MEMORY),
            processor: Some(MOST_PROCESSOR),
        };
        let git = mirror.client.local(&self.0).hiding(&self.0);
        git.confined(confinement)
    }

    /// Without the file that trusts a `file` upstream's owner: its hooks run. Without a bound on what is allocated
    /// as well, which would be one for them too.
    fn remote(&self, mirror: &Mirror, access: &Access) -> Call {
        sparing(mirror.client.remote(access, None))
            .in_git_dir(&self.0)
            .hiding(&self.0)
            .setting("advice.pushUpdateRejected", "false")
            .setting("push.negotiate", "false")
    }

    /// Takes the objects of a bundle in, if it is what was asked for and all of them are as they should be; their
    /// ids.
    async fn take_in(
        &self,
        mirror: &Mirror,
        bundle: File,
        handed: &Handed,
    ) -> Result<HashSet<String>, PushError> {
        if handed.objects > MOST_OBJECTS {
            return Err(PushError::Unfit(format!(
                "they are {} objects; at most {MOST_OBJECTS} are",
                handed.objects
            )));
        }
        self.look_at_prerequisites(mirror, handed).await?;
        let pack = handed.pack;
        let (bundle, size) = blocking("read a bundle", move || {
            let mut bundle = bundle;
            bundle.seek(SeekFrom::Start(pack))?;
            let size = bundle.metadata()?.len().saturating_sub(pack);
            Ok((bundle, size))
        })
        .await?;
        let index = sparing(self.git(mirror))
            .allocating(LARGEST_OBJECT)
            .args(["index-pack", "--stdin", "--fix-thin", "--strict"])
            .input(Input::Held(bundle));
        self.within_time(index, "take in their objects").await?;
        self.objects_before(mirror, size).await
    }

    /// The ids of the objects that a pack of `size` bytes had when it came. What git completed it with, out of the
    /// mirror, was put where its checksum had been.
    async fn objects_before(
        &self,
        mirror: &Mirror,
        size: u64,
    ) -> Result<HashSet<String>, PushError> {
        let packs = self.0.join("objects/pack");
        let index = blocking("look at what was taken in", move || {
            let mut entries = std::fs::read_dir(packs)?;
            let index = entries.find_map(|entry| {
                let path = entry.ok()?.path();
                (path.extension()? == "idx").then_some(path)
            });
            index.map(File::open).transpose()
        });
        let Some(index) = index.await? else {
            return Ok(HashSet::new());
        };
        let list = self.git(mirror).arg("show-index").input(Input::Held(index));
        let list = self.within_time(list, "list their objects").await?;
        let list = String::from_utf8_lossy(&list);
        let own = list.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let (offset, id) = (words.next()?.parse::<u64>().ok()?, words.next()?);
            let checksum = id.len() as u64 / 2;
            (offset + checksum < size).then(|| id.to_owned())
        });
        Ok(own.collect())
    }

    /// Whether the upstream has all that a bundle wants its taker to have. Asked all at once: there may be
    /// hundreds of thousands.
    async fn look_at_prerequisites(
        &self,
        mirror: &Mirror,
        handed: &Handed,
    ) -> Result<(), PushError> {
        let asked: String = handed
            .prerequisites
            .iter()
            .map(|needed| format!("{needed}\n"))
            .collect();
        let kinds = mirror
            .git()
            .args([
                "cat-file",
                "--buffer",
                "--batch-check=%(objectname) %(objecttype)",
            ])
            .input(Input::Bytes(asked.into_bytes()));
        let kinds = self.within_time(kinds, "find what they follow on").await?;
        let kinds = String::from_utf8_lossy(&kinds);
        // `<id> missing` for what the mirror does not have.
        match kinds.lines().find(|line| !line.ends_with(" commit")) {
            None => Ok(()),
            Some(line) => Err(PushError::Unfit(format!(
                "they follow on {}, which the upstream does not have",
                line.split(' ').next().unwrap_or_default()
            ))),
        }
    }

    /// Commits that the tip leads to and no base does: how many, if they are not too large.
    async fn count(
        &self,
        mirror: &Mirror,
        tip: &CommitId,
        not: &[String],
    ) -> Result<u64, PushError> {
        let list = self
            .git(mirror)
            .allocating(LARGEST_OBJECT)
            .args(["rev-list", tip.as_str()])
            .args(not)
            .arg("--");
        let list = self.within_time(list, "list them").await?;
        let sizes = self
            .git(mirror)
            .allocating(LARGEST_OBJECT)
            .args(["cat-file", "--buffer", "--batch-check=%(objectsize)"])
            .input(Input::Bytes(list));
        let sizes = self.within_time(sizes, "look at their sizes").await?;
        let sizes = String::from_utf8_lossy(&sizes);
        let (mut count, mut total) = (0, 0_u64);
        for size in sizes.lines() {
            let size: Result<u64, _> = size.parse();
            let size = size.map_err(|_| PushError::Unfit("they cannot be counted".to_owned()))?;
            count += 1;
            total = total.saturating_add(size);
        }
        if total > LARGEST_COMMITS {
            return Err(PushError::Unfit(format!(
                "the commits themselves, without their files, have {total} bytes; at most {LARGEST_COMMITS} are"
            )));
        }
        Ok(count)
    }

    /// Whether the tip is there with all that it leads to, each object the workspace's `own` or one that a base
    /// leads to, and follows on a base; how many commits it adds.
    async fn check(
        &self,
        mirror: &Mirror,
        tip: &CommitId,
        bases: &[CommitId],
        own: HashSet<String>,
    ) -> Result<u64, PushError> {
        let kind = self.git(mirror).args(["cat-file", "-t", tip.as_str()]);
        if !matches!(kind.output().await, Ok(kind) if kind == b"commit\n") {
            return Err(PushError::Unfit(format!("{tip} is no commit of theirs")));
        }
        let not: Vec<String> = bases.iter().map(|base| format!("^{base}")).collect();
        // Before any git that keeps whole commits.
        let count = self.count(mirror, tip, &not).await?;
        let mut follows = false;
        for base in bases {
            let leads = ["merge-base", "--is-ancestor", base.as_str(), tip.as_str()];
            let leads = self.git(mirror).allocating(LARGEST_OBJECT).args(leads);
            match tokio::time::timeout(CHECKING, leads.output()).await {
                Ok(Ok(_)) => follows = true,
                Ok(Err(failure)) if failure.is_an_answer() => {}
                Ok(Err(failure)) => return Err(unable(COMPARE, failure)),
                Err(_) => return Err(too_long(COMPARE)),
            }
        }
        if !follows {
            return Err(PushError::Unfit(
                "they do not follow on the commit that the workspace started from".to_owned(),
            ));
        }
        let walk = self
            .git(mirror)
            .allocating(LARGEST_OBJECT)
            .args(["rev-list", "--objects", "--no-object-names", tip.as_str()])
            .args(&not)
            .arg("--");
        let reached = self
            .within_time(walk, "look at all that they lead to")
            .await?;
        let reached = String::from_utf8_lossy(&reached);
        let foreign = reached.lines().filter(|id| !own.contains(*id));
        let foreign: Vec<String> = foreign.map(str::to_owned).collect();
        match self.unknown(mirror, bases, foreign).await?.first() {
            None => Ok(count),
            Some(id) => Err(PushError::Unfit(format!(
                "they lead to {id}, which the workspace was not given and did not hand out"
            ))),
        }
    }

    /// Those of these that no base leads to. An old state of a file that is there again is one of them; an object
    /// that the mirror has beside them is none: the workspace had not got it, and would by way of the upstream.
    async fn unknown(
        &self,
        mirror: &Mirror,
        bases: &[CommitId],
        wanted: Vec<String>,
    ) -> Result<Vec<String>, PushError> {
        if wanted.is_empty() {
            return Ok(wanted);
        }
        // The mirror's own may say something else while git fetches.
        let walk = mirror
            .git()
            .with_shallow(&self.0.join("shallow"))
            .args(["rev-list", "--objects", "--no-object-names"])
            // As where files of old commits stayed with the upstream.
            .args(mirror.extent.filter.map(|_| "--missing=print"))
            .args(bases.iter().map(CommitId::as_str))
            .arg("--");
        let list = mirror.list(walk, "list what is there");
        let list = tokio::time::timeout(CHECKING, list).await;
        let list = list.map_err(|_| too_long(COMPARE))??;
        let unknown = blocking("read a list", move || {
            let mut unknown: HashSet<String> = wanted.iter().cloned().collect();
            for id in list.lines() {
                unknown.remove(id?.trim_start_matches('?'));
            }
            Ok(wanted
                .into_iter()
                .filter(|id| unknown.contains(id))
                .collect())
        });
        Ok(unknown.await?)
    }

    /// Runs git over what the workspace handed out.
    async fn within_time(&self, call: Call, attempt: &str) -> Result<Vec<u8>, PushError> {
        let is_confined = call.is_confined();
        match tokio::time::timeout(CHECKING, call.output()).await {
            Ok(Ok(printed)) => Ok(printed),
            Ok(Err(failure)) if failure.is_an_answer() => Err(PushError::Unfit(format!(
                "git could not {attempt}: {}",
                failure.detail(DETAIL)
            ))),
            Ok(Err(failure)) if is_confined => Err(unable(attempt, failure)),
            Ok(Err(failure)) => Err(GitError::local(attempt, failure).into()),
            Err(_) => Err(too_long(attempt)),
        }
    }
}

const COMPARE: &str = "compare them with what is there";

/// What kept a git from its end that is confined: mostly the bounds that it has, since what was handed out says how
/// much it needs.
fn unable(attempt: &str, failure: Failure) -> PushError {
    if failure.is_out_of_time() {
        return PushError::Unfit(format!(
            "git could not {attempt} within {MOST_PROCESSOR} s of a processor"
        ));
    }
    if failure.is_in_want() {
        return PushError::Unfit(format!(
            "git could not {attempt} with {MOST_MEMORY} bytes of memory, or with what this host has: {}",
            failure.detail(DETAIL)
        ));
    }
    GitError::local(attempt, failure).into()
}

fn too_long(attempt: &str) -> PushError {
    PushError::Unfit(format!(
        "git could not {attempt} within {} s",
        CHECKING.as_secs()
    ))
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.0.display(), "cannot remove a quarantine");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_upstream_said_is_passed_on_and_progress_is_not() {
        let said = "Writing objects: 100% (3/3), done.\nremote: no        \nremote: \nTo https://h/r\n \
                    ! [remote rejected] 0123 -> a (pre-receive hook declined)\nerror: failed to push";
        assert_eq!(
            words(said),
            "remote: no; ! [remote rejected] 0123 -> a (pre-receive hook declined)"
        );
        assert_eq!(
            words(&format!("remote: {}", "ü".repeat(2000))).len(),
            DETAIL
        );
    }
}
