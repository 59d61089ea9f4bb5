//! What a mirror has: branches, tags and commits, by the names that people give them.

use std::path::Path;

use super::super::error::GitError;
use super::super::process::Input;
use super::super::reference::{CommitId, Reference, Resolved};
use super::super::upstream::Access;
use super::ask::{Advertised, Head};
use super::{Mirror, REMOTE, Refs, WriteLock, answer, files_of, lines, text};

/// What git or the server says to a commit that cannot be had by its id.
pub(super) const NOT_GIVEN_OUT: &[&str] =
    &["not our ref", "unadvertised object", "find remote ref"];

impl Mirror {
    /// Branches and tags that the mirror has.
    pub(in crate::git) async fn refs(&self) -> Result<Refs, GitError> {
        self.refs_in(&self.path()).await
    }

    /// The same of a mirror that may be in the making.
    pub(super) async fn refs_in(&self, mirror: &Path) -> Result<Refs, GitError> {
        let call = self.client.local(mirror).args([
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
    pub(in crate::git) async fn default_branch(&self) -> Option<String> {
        let call = self.git().args(["symbolic-ref", "--quiet", "HEAD"]);
        // It fails when HEAD is detached.
        let name = call.output().await.ok()?;
        let name = String::from_utf8(name).ok()?;
        name.trim_end()
            .strip_prefix("refs/heads/")
            .map(str::to_owned)
    }

    /// Finds a reference, and has all files of its commit.
    pub(super) async fn find_whole(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
        reference: Option<&str>,
    ) -> Result<Resolved, GitError> {
        let found = self.find(lock, access, advertised, reference).await?;
        self.fill(lock, access, &files_of([&found.commit])).await?;
        Ok(found)
    }

    async fn find(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
        reference: Option<&str>,
    ) -> Result<Resolved, GitError> {
        let url = || self.upstream.url().to_owned();
        let mut refs = self.refs().await?;
        if self.extent.depth.is_some() {
            // Others stay as they were when they were asked for.
            refs.retain(|name, id| advertised.refs.get(name) == Some(id));
        }
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
            if self.peeled(id.as_str()).await?.is_none() {
                // What has come here once would come again unnoticed, and what it is to lead to would not.
                self.look_at_tips(&refs).await?;
            }
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

    /// Fails where a reference of the mirror leads to what is not there.
    async fn look_at_tips(&self, refs: &Refs) -> Result<(), GitError> {
        let asked: String = refs.values().map(|id| format!("{id}\n")).collect();
        let call = self.git().args(["cat-file", "--batch-check"]);
        let answer = call.input(Input::Bytes(asked.into_bytes())).output().await;
        let failed = |failure| GitError::local("look up the mirror's references", failure);
        let answer = text(&answer.map_err(failed)?);
        let missing = answer.lines().find(|line| line.ends_with(" missing"));
        missing.map_or(Ok(()), |line| {
            Err(GitError::Other {
                attempt: "look up the mirror's references".to_owned(),
                detail: line.to_owned(),
            })
        })
    }

    /// A branch, else a tag, of this name; the full name is taken too.
    async fn named(&self, refs: &Refs, name: &str) -> Result<Option<Resolved>, GitError> {
        for (full, reference) in Reference::meant_by(name) {
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
    pub(super) async fn commit_or_fetch(
        &self,
        lock: &WriteLock,
        access: &Access,
        id: &str,
    ) -> Result<CommitId, GitError> {
        if let Some(commit) = self.peeled(id).await?
            && self.has_enough_of(&commit).await?
        {
            return Ok(commit);
        }
        let depth = self.extent.depth.map(|depth| format!("--depth={depth}"));
        let call = self
            .fetching(lock, access, &self.path())?
            .args(depth)
            .args(["--", REMOTE, id]);
        match call.output().await {
            Ok(_) => {}
            Err(failure) if failure.says(NOT_GIVEN_OUT) => {}
            Err(failure) => return Err(GitError::remote("fetch a commit of", access, failure)),
        }
        if self.extent.depth.is_some() {
            self.tidy_shallow().await?;
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
    pub(in crate::git) async fn peeled(&self, id: &str) -> Result<Option<CommitId>, GitError> {
        let call = self
            .git()
            .args(["rev-parse", "--verify", "--quiet"])
            .arg(format!("{id}^{{commit}}"));
        let printed = answer(call, "look up a commit in the mirror").await?;
        Ok(printed.and_then(|printed| text(&printed).trim_end().parse().ok()))
    }

    /// Whether `old` is `new` or one of its ancestors; a commit that is not here is neither.
    pub(in crate::git) async fn leads_to(
        &self,
        new: &CommitId,
        old: &CommitId,
    ) -> Result<bool, GitError> {
        if self.peeled(old.as_str()).await?.is_none() {
            return Ok(false);
        }
        let call = self
            .git()
            .args(["merge-base", "--is-ancestor", old.as_str(), new.as_str()]);
        let leads = answer(call, "compare commits of the mirror").await?;
        Ok(leads.is_some())
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
}
