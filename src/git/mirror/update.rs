//! How a mirror becomes equal to its upstream: by a fetch into it, or made anew aside.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::super::error::GitError;
use super::super::upstream::Access;
use super::ask::{Advertised, Head};
use super::files::remove;
use super::{Mirror, REMOTE, WriteLock, blocking, partial, swept};

/// Packs in a mirror, from which on the small ones are made one.
const PACKS: usize = 50;

impl Mirror {
    pub(super) async fn update(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
    ) -> Result<(), GitError> {
        let known = match self.refs().await {
            Ok(known) if known.is_empty() || advertised.has_length_of(&known) => known,
            Err(error) if self.identity().await.is_some() => {
                return self.replace_damaged(lock, access, advertised, &error).await;
            }
            // Not there, or of another object format.
            _ => return self.build(lock, access, advertised).await,
        };
        if known != advertised.refs {
            match self.bring(lock, access, advertised, &self.path()).await {
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

    pub(super) async fn replace_damaged(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
        error: &GitError,
    ) -> Result<(), GitError> {
        tracing::warn!(url = self.upstream.url(), %error, "the mirror is damaged, making it anew");
        match self.extent.depth {
            Some(depth) => {
                self.reach_anew(lock, access, advertised, (None, depth))
                    .await
            }
            None => self.build(lock, access, advertised).await,
        }
    }

    /// Makes the mirror aside and puts it into place.
    pub(super) async fn build(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
    ) -> Result<(), GitError> {
        let (new, old) = (self.beside("new"), self.beside("old"));
        // What a killed provider left.
        remove(&old).await?;
        let format = advertised.format();
        if self.is_begun(&new, format).await? {
            tracing::info!(
                url = self.upstream.url(),
                "going on with a transfer that broke off"
            );
        } else {
            remove(&new).await?;
            self.init(&new, format).await?;
        }
        let filled = match self.bring(lock, access, advertised, &new).await {
            Ok(()) => self.set_head(&new, advertised).await,
            Err(error) => Err(error),
        };
        if let Err(error) = filled {
            if self.is_worth_keeping(&new, &error).await {
                return Err(error.with_the_rest_kept());
            }
            remove(&new).await?;
            return Err(error);
        }
        self.put_into_place(new, old).await
    }

    /// Whether the next attempt can go on with what has come into `new`.
    async fn is_worth_keeping(&self, new: &Path, error: &GitError) -> bool {
        // Where git does not say, the next attempt looks.
        error.is_broken_off()
            && self
                .refs_in(new)
                .await
                .map_or(true, |refs| !refs.is_empty())
    }

    pub(super) async fn init(&self, new: &Path, format: &str) -> Result<(), GitError> {
        let init = self.client.init_bare(new, format);
        let failed = |failure| GitError::local("make a mirror", failure);
        init.output().await.map_err(failed)?;
        for (key, value) in self.extent.filter.into_iter().flat_map(partial::settings) {
            let set = ["config", "--local", "--replace-all", key, value.as_str()];
            let set = self.client.local(new).args(set);
            set.output().await.map_err(failed)?;
        }
        Ok(())
    }

    pub(super) async fn put_into_place(&self, new: PathBuf, old: PathBuf) -> Result<(), GitError> {
        let path = self.path();
        let (from, aside) = (new, old.clone());
        blocking("put the mirror into place", move || {
            match File::open(&path) {
                Ok(present) => {
                    present.lock()?;
                    keep_large_files(&path, &from)?;
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

    /// Fetches all branches and tags at once, of which a mirror can have the names.
    pub(super) async fn fetch(
        &self,
        lock: &WriteLock,
        access: &Access,
        advertised: &Advertised,
        into: &Path,
    ) -> Result<(), GitError> {
        let unfit = advertised.unfit.iter();
        let unfit = unfit.map(|name| OsString::from_vec([b"^", name.as_slice()].concat()));
        if !advertised.unfit.is_empty() {
            let (url, count) = (self.upstream.url(), advertised.unfit.len());
            tracing::warn!(
                url,
                count,
                "references whose names are too long are left out"
            );
        }
        let call = self
            .fetching(lock, access, into)?
            .args(["--prune", "--", REMOTE])
            .args(["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"])
            .args(unfit);
        match call.messages().await {
            // Not an error to git: it leaves those references out.
            Ok(said) if said.contains("shallow roots are not allowed") => {
                let url = access.upstream().url().to_owned();
                return Err(GitError::Shallow { url });
            }
            Ok(said) if said.contains("filtering not recognized by server") => {
                let url = access.upstream().url();
                tracing::warn!(url, "the upstream knows no filter and gives out all files");
            }
            Ok(_) => {}
            Err(failure) => return Err(swept(into, access, failure).await),
        }
        // Fetched references are a file each, which is slow to walk in a big repository.
        let pack = self.client.local(into).args(["pack-refs", "--all"]);
        pack.output()
            .await
            .map(drop)
            .map_err(|failure| GitError::local("pack the mirror's references", failure))
    }

    /// Points the mirror's `HEAD` where the upstream's points.
    pub(super) async fn set_head(
        &self,
        mirror: &Path,
        advertised: &Advertised,
    ) -> Result<(), GitError> {
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

    /// Makes small packs one when there are many, unless somebody reads just now.
    pub(super) async fn repack_if_due(&self) {
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
            // By size git would take packs of what may be missing for others.
            let how = match self.extent.filter {
                None => "--geometric=2",
                Some(_) => "-a",
            };
            let repack = self.git().args(["repack", "-d", "-q", how]).output().await;
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
}

/// Large files are what their names say, whatever became of the rest of a mirror.
fn keep_large_files(old: &Path, new: &Path) -> io::Result<()> {
    match std::fs::rename(old.join("lfs"), new.join("lfs")) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}
