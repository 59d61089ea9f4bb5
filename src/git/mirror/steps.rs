//! A transfer in steps, each of which stays, from an upstream that never gives out the whole in one piece.
//!
//! git's protocol cannot go on with a pack that was cut short. So the last commit of each reference comes
//! first, and then more and more of what is before them: larger steps as long as they come whole, smaller ones
//! when one breaks. A mirror in the making says by git's own file `shallow` how far it has come.

use std::io;
use std::path::Path;

use super::super::error::GitError;
use super::super::process::Input;
use super::super::reference::is_ref_name;
use super::super::upstream::Access;
use super::ask::{Advertised, Head};
use super::files::sweep;
use super::{Mirror, REMOTE, WriteLock, answer, blocking, swept};

/// Steps in a row that bring nothing, after which the upstream is given up.
const FAILURES: usize = 4;

/// The most steps of one transfer, whatever the upstream says.
const STEPS: usize = 10_000;

/// How many times larger the next step is.
const GROWTH: usize = 4;

/// The largest step: more than any history has.
const LARGEST: usize = 1 << 30;

/// Commits of each reference that the first step asks for.
const FIRST: usize = 16;

/// How large the next step is.
struct Stride<'a> {
    url: &'a str,
    next: usize,
    /// The last one that came.
    came: usize,
    /// One that broke; a little more with each that comes, since not all are alike.
    broke: usize,
    failures: usize,
    steps: usize,
}

impl<'a> Stride<'a> {
    fn of(url: &'a str, next: usize) -> Self {
        Self {
            url,
            next,
            came: 1,
            broke: usize::MAX,
            failures: 0,
            steps: 0,
        }
    }

    /// Takes note of what became of a step; its error if there is to be no other.
    fn after(&mut self, step: Result<(), GitError>) -> Result<(), GitError> {
        self.steps += 1;
        match step {
            Ok(()) if self.steps >= STEPS => Err(GitError::Transfer {
                url: self.url.to_owned(),
                detail: format!("it was not at its end after {STEPS} steps"),
            }),
            Ok(()) => {
                self.failures = 0;
                self.came = self.next;
                self.broke = self.broke.saturating_add(self.broke / 8 + 1);
                let most = (self.broke / 2).clamp(1, LARGEST);
                self.next = self.next.saturating_mul(GROWTH).min(most);
                Ok(())
            }
            Err(error) => {
                self.failures += 1;
                self.broke = self.next;
                self.next = self.came.min(self.next / GROWTH).max(1);
                let again = error.is_broken_off() && self.failures < FAILURES && self.steps < STEPS;
                if again { Ok(()) } else { Err(error) }
            }
        }
    }
}

/// All of something that comes at once or, where that breaks off, fewer at a time.
pub(super) struct Portions<'a, T> {
    stride: Stride<'a>,
    left: &'a [T],
}

impl<'a, T> Portions<'a, T> {
    pub(super) fn of(url: &'a str, all: &'a [T]) -> Self {
        Self {
            stride: Stride::of(url, all.len().max(1)),
            left: all,
        }
    }

    /// What is to come next.
    pub(super) fn next(&self) -> Option<&'a [T]> {
        let count = self.stride.next.min(self.left.len());
        (count > 0).then(|| &self.left[..count])
    }

    /// Takes note of what became of it; its error if there is to be no other attempt.
    pub(super) fn after(&mut self, step: Result<(), GitError>) -> Result<(), GitError> {
        if step.is_ok() {
            self.left = &self.left[self.stride.next.min(self.left.len())..];
        }
        self.stride.after(step)
    }
}

impl Mirror {
    /// Brings the mirror in `into` what the upstream has: all at once or, where that breaks off, in steps. Where
    /// it fails, what has come stays.
    pub(super) async fn bring(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
        into: &Path,
    ) -> Result<(), GitError> {
        let begun = is_shallow(into).await?;
        if !begun {
            match self.fetch(lock, access, advertised, into).await {
                Err(error) if error.is_broken_off() => {
                    let url = self.upstream.url();
                    tracing::info!(url, %error, "going on in steps");
                }
                done => return done,
            }
        }
        let known = self.refs_in(into).await?;
        let (depth, left): (&[&str], _) = if begun || known.is_empty() {
            // Asked for once more, what moved would lose all that is before it.
            let missing = |name: &&str| !known.contains_key(name.as_bytes());
            (&["--depth=1"], names(advertised).filter(missing).collect())
        } else {
            // Readers of a mirror that is whole must not find parts of it gone.
            let moved =
                |name: &&str| advertised.refs.get(name.as_bytes()) != known.get(name.as_bytes());
            (&[], names(advertised).filter(moved).collect())
        };
        self.references_by_and_by(lock, access, (into, depth), left)
            .await?;
        self.deepen(lock, access, advertised, into).await?;
        self.fetch(lock, access, advertised, into).await
    }

    /// Fetches all these references at once, or fewer at a time.
    async fn references_by_and_by(
        &self,
        lock: &WriteLock,
        access: &Access,
        (into, options): (&Path, &[&str]),
        left: Vec<&str>,
    ) -> Result<(), GitError> {
        let mut portions = Portions::of(self.upstream.url(), &left);
        while let Some(names) = portions.next() {
            let step = self.fetch_some(lock, access, (into, options), names);
            portions.after(step.await)?;
        }
        Ok(())
    }

    /// Fetches what is before the first commits that are there, until nothing is missing.
    async fn deepen(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
        into: &Path,
    ) -> Result<(), GitError> {
        let known = self.refs_in(into).await?;
        let there = |name: &&str| known.contains_key(name.as_bytes());
        let names: Vec<&str> = names(advertised).filter(there).collect();
        let mut stride = Stride::of(self.upstream.url(), FIRST);
        loop {
            let before = shallow(into).await?;
            if before.is_empty() {
                return Ok(());
            }
            let option = format!("--deepen={}", stride.next);
            let mut step = self
                .fetch_some(lock, access, (into, &[option.as_str()]), &names)
                .await;
            if step.is_ok() && shallow(into).await? == before {
                step = Err(GitError::Other {
                    attempt: format!("fetch {} in steps", self.upstream.url()),
                    detail: "it gives out nothing that is before its last commits: it is a shallow \
                             clone, or its branches moved meanwhile and the next attempt starts anew"
                        .to_owned(),
                });
            }
            stride.after(step)?;
        }
    }

    /// Fetches references by their names.
    pub(super) async fn fetch_some(
        &self,
        lock: &WriteLock,
        access: &Access,
        (into, options): (&Path, &[&str]),
        names: &[&str],
    ) -> Result<(), GitError> {
        let list: String = names
            .iter()
            .map(|name| format!("+{name}:{name}\n"))
            .collect();
        let held = lock.held()?;
        let call = self
            .fetching(lock, access, into)?
            .args(options)
            .args(["--stdin", "--", REMOTE])
            .input(Input::Bytes(list.into_bytes()));
        // It prints nothing there, and so holds the lock.
        match call.output_into(held).await {
            Ok(()) => Ok(()),
            Err(failure) => Err(swept(into, access, failure).await),
        }
    }

    /// Whether a transfer into `new` was begun that can be gone on with.
    pub(super) async fn is_begun(&self, new: &Path, format: &str) -> Result<bool, GitError> {
        const LOOK: &str = "look at what has come of a mirror";
        let at = new.to_owned();
        let there = blocking(LOOK, move || {
            if !at.join("HEAD").exists() {
                return Ok(false);
            }
            sweep(&at).map(|()| true)
        });
        if !there.await? {
            return Ok(false);
        }
        if self.format_of(new).await?.as_deref() != Some(format) {
            return Ok(false);
        }
        let git = || self.client.local(new);
        let first = git().args(["for-each-ref", "--count=1", "refs/heads", "refs/tags"]);
        if answer(first, LOOK)
            .await?
            .is_none_or(|refs| refs.is_empty())
        {
            return Ok(false);
        }
        let sound = git().args(["fsck", "--connectivity-only", "--no-dangling", "--progress"]);
        Ok(answer(sound, LOOK).await?.is_some())
    }
}

/// The names of all references that can be asked for one by one, the default branch first.
fn names(advertised: &Advertised) -> impl Iterator<Item = &str> {
    let default = match &advertised.head {
        Head::Branch(name) => Some(name),
        Head::Detached(_) | Head::Nowhere => None,
    };
    let others = advertised
        .refs
        .keys()
        .filter(move |name| Some(*name) != default);
    let all = default.into_iter().chain(others);
    all.filter_map(|name| str::from_utf8(name).ok())
        .filter(|name| is_ref_name(name))
}

/// What git notes of the commits whose parents are missing; nothing where it is all there.
pub(super) async fn shallow(mirror: &Path) -> Result<Vec<u8>, GitError> {
    let path = mirror.join("shallow");
    blocking("read where a mirror ends", move || {
        match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read,
        }
    })
    .await
}

async fn is_shallow(mirror: &Path) -> Result<bool, GitError> {
    Ok(!shallow(mirror).await?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_while_they_come_and_shrink_when_they_break() {
        let broke = || {
            Err(GitError::Transfer {
                url: String::new(),
                detail: String::new(),
            })
        };
        let mut stride = Stride::of("", 16);
        let mut sizes = vec![stride.next];
        for step in [Ok(()), broke(), Ok(()), Ok(()), broke(), broke(), broke()] {
            stride.after(step).expect("goes on");
            sizes.push(stride.next);
        }
        assert_eq!(sizes, [16, 64, 16, 36, 41, 10, 2, 1]);
        assert!(stride.after(broke()).is_err());
        // What waiting does not mend.
        let other = GitError::TooOld {
            found: String::new(),
        };
        assert!(Stride::of("", 1).after(Err(other)).is_err());
    }

    #[test]
    fn steps_that_all_come_are_no_more_than_there_may_be() {
        let mut stride = Stride::of("", 16);
        let come = (1..).take_while(|_| stride.after(Ok(())).is_ok()).last();
        assert_eq!(come, Some(STEPS - 1));
    }
}
