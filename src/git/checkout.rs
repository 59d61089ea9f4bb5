//! A checkout: a repository as `git clone` would have made it, as a stream of bytes.
//!
//! It is made in a staging directory that no agent has touched and that is gone afterwards; only
//! bytes leave it. Nothing in it tells where it was made: no alternates, no reflog, no path of the
//! host, and as its remote the configured URL.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::Mirrors;
use super::error::GitError;
use super::history;
use super::lfs;
use super::mending::Mending;
use super::mirror::{Mirror, Refs, blocking, partial_settings};
use super::partial;
use super::process::Call;
use super::reference::{CommitId, Reference, Resolved, is_ref_name};
use super::submodules::{self, Submodule};
use crate::config::History;
use crate::init::files::protocol::Owner;

/// Who made the commit of a repository that has no history.
const AUTHOR: (&str, &str) = ("derrick", "derrick@localhost");

/// A checkout on the host's disk; dropping it removes it.
#[derive(Debug)]
pub(super) struct Staging {
    dir: PathBuf,
}

impl Staging {
    /// Checks `at` out below `scratch`.
    pub(super) async fn make(
        mirror: &Mirror,
        history: History,
        at: &Resolved,
        scratch: &Path,
    ) -> Result<Self, GitError> {
        if let Reference::Branch(name) = &at.reference
            && !is_ref_name(name)
        {
            let (url, reference) = (mirror.upstream.url().to_owned(), name.clone());
            return Err(GitError::NoSuchReference {
                url,
                reference,
                looked_for: "branch",
            });
        }
        let staging = Self::create(scratch).await?;
        staging.place().make(mirror, history, at).await?;
        Ok(staging)
    }

    /// Adds a submodule of the repository of `mirror`, and those below it, each with a git directory of its own.
    pub(super) async fn add(
        &self,
        mirrors: &Mirrors,
        mirror: &Mirror,
        submodule: &Submodule,
    ) -> Result<(), GitError> {
        self.place().add(mirrors, mirror, submodule).await
    }

    /// Puts the content of large files into the checkout, which is of `at`.
    pub(super) async fn fill_large_files(
        &self,
        mirror: &Mirror,
        at: &Resolved,
    ) -> Result<(), GitError> {
        self.place().fill_large_files(mirror, at).await
    }

    fn place(&self) -> Place {
        Place {
            dir: self.dir.clone(),
        }
    }

    /// Writes the checkout, as that of `owner`, as a tar stream and removes it.
    pub(super) async fn stream(self, owner: Owner, sink: File) -> Result<(), GitError> {
        // The staging moves into the work, so it outlives it even if nobody waits any more.
        blocking("write a checkout", move || {
            write_tar(&self.dir, owner, sink)
        })
        .await
    }

    async fn create(scratch: &Path) -> Result<Self, GitError> {
        let dir = scratch.join(format!("checkout-{}", uuid::Uuid::now_v7()));
        let staging = Self { dir: dir.clone() };
        blocking("make a directory for a checkout", move || {
            std::fs::DirBuilder::new().mode(0o700).create(dir)
        })
        .await?;
        Ok(staging)
    }
}

/// A directory for one repository, of a checkout or of a submodule in it.
#[derive(Debug)]
struct Place {
    dir: PathBuf,
}

impl Place {
    async fn make(&self, mirror: &Mirror, history: History, at: &Resolved) -> Result<(), GitError> {
        // The mirror's files stay where they are until all are read.
        let (lock, lease) = mirror.hold().await?;
        self.init(mirror, at).await?;
        if history == History::None {
            self.without_history(mirror, at).await?;
        } else {
            self.with_history(mirror, history, at).await?;
        }
        drop((lock, lease));
        let files = self.git(mirror).in_work_tree(&self.dir);
        let files = files.args(["read-tree", "-v", "--reset", "-u", "HEAD"]);
        files
            .output()
            .await
            .map(drop)
            .map_err(|failure| failed(mirror, failure))
    }

    async fn add(
        &self,
        mirrors: &Mirrors,
        mirror: &Mirror,
        submodule: &Submodule,
    ) -> Result<(), GitError> {
        let Submodule {
            repository,
            at,
            name,
            path,
            below,
        } = submodule;
        let (root, wanted) = (self.dir.clone(), path.clone());
        let empty = blocking("look at the place of a submodule", move || {
            empty_directory(&root, &wanted)
        });
        if !empty.await? {
            let reason = "its place is no empty directory of the checkout".to_owned();
            return Err(submodules::refused(&mirror.upstream, path, reason));
        }
        let place = Self {
            dir: self.dir.join(path),
        };
        let mut mending = Mending::of(mirrors, repository, &at.commit).await?;
        loop {
            let made = place.make(mending.mirror(), repository.history, at).await;
            if mending.settle(made).await?.is_some() {
                break;
            }
            place.empty().await?;
        }
        if repository.lfs {
            place.fill_large_files(mending.mirror(), at).await?;
        }
        // What makes it one that git's own command goes on with.
        for (field, value) in [("active", "true"), ("url", repository.url.as_str())] {
            let key = format!("submodule.{name}.{field}");
            self.run(mirror, &["config", "--local", "--add", &key, value])
                .await?;
        }
        for submodule in below {
            Box::pin(place.add(mirrors, mending.mirror(), submodule)).await?;
        }
        Ok(())
    }

    /// Removes what an attempt left.
    async fn empty(&self) -> Result<(), GitError> {
        let dir = self.dir.clone();
        blocking("make a directory for a submodule", move || {
            std::fs::remove_dir_all(&dir)?;
            std::fs::create_dir(&dir)
        })
        .await
    }

    async fn fill_large_files(&self, mirror: &Mirror, at: &Resolved) -> Result<(), GitError> {
        lfs::fill(mirror, &at.commit, (&self.dir, &self.git_dir())).await
    }

    async fn with_history(
        &self,
        mirror: &Mirror,
        history: History,
        at: &Resolved,
    ) -> Result<(), GitError> {
        let refs = history::references(mirror, history, at).await?;
        let wanted = refs.values().map(String::as_str);
        let wanted = wanted.chain([at.commit.as_str()]);
        let boundary = history::boundary(mirror, history, at).await?;
        self.furnish(&boundary).await?;
        match mirror.extent.filter {
            None => self.fill(mirror, wanted, &boundary).await?,
            Some(filter) => {
                let packs = self.git_dir().join("objects/pack");
                let ends = self.git_dir().join("shallow");
                let ends = (!boundary.is_empty()).then_some(ends.as_path());
                partial::pack(mirror, filter, (wanted, &at.commit), ends, &packs).await?;
                for (key, value) in partial_settings(filter) {
                    self.run(mirror, &["config", "--local", "--replace-all", key, &value])
                        .await?;
                }
            }
        }
        let (git, packed) = (self.git_dir(), packed_refs(&refs, at));
        blocking("write a checkout's references", move || {
            std::fs::write(git.join("packed-refs"), packed)
        })
        .await?;
        self.configure(mirror, history, at).await?;
        let default = mirror.default_branch().await;
        if let Some(default) =
            default.filter(|name| refs.contains_key(format!("refs/heads/{name}").as_bytes()))
        {
            let to = format!("refs/remotes/origin/{default}");
            self.run(mirror, &["symbolic-ref", "refs/remotes/origin/HEAD", &to])
                .await?;
        }
        match at.reference {
            Reference::Branch(_) => Ok(()),
            Reference::Tag(_) | Reference::Commit => self.detach(mirror, at.commit.as_str()).await,
        }
    }

    /// Makes the files of `at` the whole repository: one commit without parents, the same one each time.
    async fn without_history(&self, mirror: &Mirror, at: &Resolved) -> Result<(), GitError> {
        let tree = format!("{}^{{tree}}", at.commit);
        let tree = mirror.git().args(["rev-parse", "--verify", &tree]);
        let tree = tree
            .output()
            .await
            .map_err(|failure| failed(mirror, failure))?;
        let tree = String::from_utf8_lossy(&tree).trim().to_owned();
        self.fill(mirror, std::iter::once(tree.as_str()), &[])
            .await?;
        self.furnish(&[]).await?;
        let date = mirror
            .git()
            .args(["show", "--no-patch", "--format=@%ct +0000"])
            .arg(at.commit.as_str());
        let date = date
            .output()
            .await
            .map_err(|failure| failed(mirror, failure))?;
        let date = String::from_utf8_lossy(&date).trim().to_owned();
        let commit = self.git(mirror).by_author(AUTHOR, &date).args([
            "commit-tree",
            "-m",
            "Files without their history",
            &tree,
        ]);
        let commit = commit
            .output()
            .await
            .map_err(|failure| failed(mirror, failure))?;
        let commit = String::from_utf8_lossy(&commit).trim().to_owned();
        match &at.reference {
            Reference::Branch(name) => {
                let branch = format!("refs/heads/{name}");
                self.run(mirror, &["update-ref", &branch, &commit]).await
            }
            Reference::Tag(_) | Reference::Commit => self.detach(mirror, &commit).await,
        }
    }

    async fn detach(&self, mirror: &Mirror, commit: &str) -> Result<(), GitError> {
        self.run(mirror, &["update-ref", "--no-deref", "HEAD", commit])
            .await
    }

    async fn init(&self, mirror: &Mirror, at: &Resolved) -> Result<(), GitError> {
        let format = if at.commit.as_str().len() == 64 {
            "sha256"
        } else {
            "sha1"
        };
        let branch = match &at.reference {
            Reference::Branch(name) => name,
            // Replaced by a detached HEAD later.
            Reference::Tag(_) | Reference::Commit => "main",
        };
        let init = mirror
            .client
            .plain()
            .args(["init", "--quiet", "--template="])
            .arg(format!("--object-format={format}"))
            .arg(format!("--initial-branch={branch}"))
            .arg("--")
            .arg(&self.dir);
        init.output()
            .await
            .map(drop)
            .map_err(|failure| failed(mirror, failure))
    }

    /// Gives the repository what `wanted` leads to.
    async fn fill(
        &self,
        mirror: &Mirror,
        wanted: impl Iterator<Item = &str>,
        boundary: &[CommitId],
    ) -> Result<(), GitError> {
        let prefix = self.git_dir().join("objects/pack/pack");
        history::pack(mirror, wanted, boundary, &prefix)
            .await
            .map_err(|failure| failed(mirror, failure))
    }

    /// Notes where the history ends, and makes the empty places that scripts expect.
    async fn furnish(&self, boundary: &[CommitId]) -> Result<(), GitError> {
        let git = self.git_dir();
        let shallow: String = boundary.iter().map(|id| format!("{id}\n")).collect();
        blocking("fill a checkout", move || {
            if !shallow.is_empty() {
                std::fs::write(git.join("shallow"), shallow)?;
            }
            for place in ["info", "hooks"] {
                match std::fs::create_dir(git.join(place)) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
            std::fs::write(git.join("info/exclude"), [])
        })
        .await
    }

    async fn configure(
        &self,
        mirror: &Mirror,
        history: History,
        at: &Resolved,
    ) -> Result<(), GitError> {
        let followed = match &at.reference {
            Reference::Branch(name) if history != History::Full => name,
            _ => "*",
        };
        let mut settings = vec![
            ("core.logallrefupdates".to_owned(), "true".to_owned()),
            (
                "remote.origin.url".to_owned(),
                mirror.upstream.url().to_owned(),
            ),
            (
                "remote.origin.fetch".to_owned(),
                format!("+refs/heads/{followed}:refs/remotes/origin/{followed}"),
            ),
        ];
        if let Reference::Branch(name) = &at.reference {
            settings.push((format!("branch.{name}.remote"), "origin".to_owned()));
            settings.push((format!("branch.{name}.merge"), format!("refs/heads/{name}")));
        }
        for (key, value) in settings {
            self.run(mirror, &["config", "--local", "--add", &key, &value])
                .await?;
        }
        Ok(())
    }

    async fn run(&self, mirror: &Mirror, arguments: &[&str]) -> Result<(), GitError> {
        let call = self.git(mirror).args(arguments);
        call.output()
            .await
            .map(drop)
            .map_err(|failure| failed(mirror, failure))
    }

    fn git(&self, mirror: &Mirror) -> Call {
        // It lives for a moment only: no need to force it to the disk.
        mirror
            .client
            .local(&self.git_dir())
            .setting("core.fsync", "none")
    }

    fn git_dir(&self) -> PathBuf {
        self.dir.join(".git")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A git that was just killed may add one more file behind the removal's back.
        for _ in 0..3 {
            match std::fs::remove_dir_all(&self.dir) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "cannot remove a checkout's staging directory");
                    return;
                }
                _ => return,
            }
        }
    }
}

/// Whether `path` below `root` is an empty directory, with no link on the way.
fn empty_directory(root: &Path, path: &Path) -> io::Result<bool> {
    let mut at = root.to_owned();
    for part in path.components() {
        let std::path::Component::Normal(part) = part else {
            return Ok(false);
        };
        at.push(part);
        match at.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(std::fs::read_dir(at)?.next().is_none())
}

fn failed(mirror: &Mirror, failure: super::process::Failure) -> GitError {
    GitError::local(&format!("check out {}", mirror.upstream.url()), failure)
}

/// The references of a fresh clone, in the format of git's `packed-refs` file (gitrepository-layout(5)).
fn packed_refs(refs: &Refs, at: &Resolved) -> Vec<u8> {
    let mut cloned = Refs::new();
    let commit = at.commit.as_str();
    for (name, id) in refs {
        match name.strip_prefix(b"refs/heads/") {
            // Would be taken for the remote's HEAD.
            Some(b"HEAD") => {}
            Some(branch) => {
                cloned.insert([b"refs/remotes/origin/", branch].concat(), id.to_owned());
            }
            None => {
                cloned.insert(name.clone(), id.clone());
            }
        }
    }
    if let Reference::Branch(name) = &at.reference {
        cloned.insert(format!("refs/heads/{name}").into_bytes(), commit.to_owned());
    }
    let mut file = b"# pack-refs with: sorted \n".to_vec();
    for (name, id) in cloned {
        file.extend([id.as_bytes(), b" ", &name, b"\n"].concat());
    }
    file
}

/// Writes everything below `root`: names relative to it, owned by `owner`, modes as with umask 022.
fn write_tar(root: &Path, owner: Owner, sink: File) -> io::Result<()> {
    let mut tar = Builder::new(BufWriter::with_capacity(256 * 1024, sink));
    // A directory that is there already keeps its owner and mode, unless it must become somebody's.
    if owner != Owner::default() {
        let mut header = header_of(owner, &root.symlink_metadata()?);
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, ".", io::empty())?;
    }
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path.strip_prefix(root).map_err(io::Error::other)?;
            let metadata = path.symlink_metadata()?;
            let kind = metadata.file_type();
            let mut header = header_of(owner, &metadata);
            if kind.is_dir() {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                header.set_size(0);
                tar.append_data(&mut header, name, io::empty())?;
                directories.push(path);
            } else if kind.is_symlink() {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                append_symlink(&mut tar, &mut header, name, &std::fs::read_link(&path)?)?;
            } else if kind.is_file() {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(as_with_umask_022(metadata.mode()));
                header.set_size(metadata.len());
                let file = OpenOptions::new()
                    .read(true)
                    .custom_flags(nix::libc::O_NOFOLLOW)
                    .open(&path)?;
                tar.append_data(&mut header, name, file.take(metadata.len()))?;
            } else {
                return Err(io::Error::other(format!(
                    "{} is of a kind that git does not make",
                    name.display()
                )));
            }
        }
    }
    tar.into_inner()?.flush()
}

fn header_of(owner: Owner, metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_uid(owner.uid.into());
    header.set_gid(owner.gid.into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or_default());
    header
}

/// The crate's own way to add a link tidies its target (`a//b`, `./a`), and the checkout would be dirty.
fn append_symlink<W: io::Write>(
    tar: &mut Builder<W>,
    header: &mut Header,
    name: &Path,
    target: &Path,
) -> io::Result<()> {
    let bytes = target.as_os_str().as_bytes();
    if header.set_link_name_literal(bytes).is_err() {
        tar.append_pax_extensions([("linkpath", bytes)])?;
    }
    tar.append_data(header, name, io::empty())
}

/// git makes files with 0666, 0777, and 0444 for objects; the provider's own umask does not count.
fn as_with_umask_022(mode: u32) -> u32 {
    match (mode & 0o200 != 0, mode & 0o100 != 0) {
        (true, true) => 0o755,
        (true, false) => 0o644,
        (false, _) => 0o444,
    }
}
