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

use super::error::GitError;
use super::mirror::{Mirror, Refs, blocking};
use super::process::Call;
use super::reference::{Reference, Resolved, is_ref_name};
use crate::init::files::protocol::Owner;

/// A checkout on the host's disk; dropping it removes it.
#[derive(Debug)]
pub(super) struct Staging {
    dir: PathBuf,
}

impl Staging {
    /// Checks `at` out below `scratch`.
    pub(super) async fn make(
        mirror: &Mirror,
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
        // The files stay where they are until all are linked or read.
        let _lease = mirror.lease().await?;
        let refs = mirror.refs().await?;
        let default = mirror.default_branch().await;

        let staging = Self::create(scratch).await?;
        staging.init(mirror, at).await?;
        staging.fill(mirror, packed_refs(&refs, at)).await?;
        staging.configure(mirror, at).await?;
        if let Some(default) =
            default.filter(|name| refs.contains_key(format!("refs/heads/{name}").as_bytes()))
        {
            let to = format!("refs/remotes/origin/{default}");
            staging
                .run(mirror, &["symbolic-ref", "refs/remotes/origin/HEAD", &to])
                .await?;
        }
        if !matches!(at.reference, Reference::Branch(_)) {
            staging
                .run(
                    mirror,
                    &["update-ref", "--no-deref", "HEAD", at.commit.as_str()],
                )
                .await?;
        }
        let files = staging.git(mirror).in_work_tree(&staging.dir);
        let files = files.args(["read-tree", "-v", "--reset", "-u", at.commit.as_str()]);
        files
            .output()
            .await
            .map_err(|failure| failed(mirror, failure))?;
        Ok(staging)
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

    /// Gives the repository its objects and references, and the empty places that scripts expect.
    async fn fill(&self, mirror: &Mirror, packed_refs: Vec<u8>) -> Result<(), GitError> {
        let (git, objects) = (self.git_dir(), mirror.path().join("objects"));
        blocking("fill a checkout", move || {
            link_objects(&objects, &git.join("objects"))?;
            std::fs::write(git.join("packed-refs"), packed_refs)?;
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

    async fn configure(&self, mirror: &Mirror, at: &Resolved) -> Result<(), GitError> {
        let mut settings = vec![
            ("core.logallrefupdates".to_owned(), "true".to_owned()),
            (
                "remote.origin.url".to_owned(),
                mirror.upstream.url().to_owned(),
            ),
            (
                "remote.origin.fetch".to_owned(),
                "+refs/heads/*:refs/remotes/origin/*".to_owned(),
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
                // The branch as it was resolved, even if the mirror has moved on since.
                let resolved =
                    matches!(&at.reference, Reference::Branch(name) if name.as_bytes() == branch);
                let id = if resolved { commit } else { id };
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

/// Links all objects of `from` into `to`, copying where the file system is another one.
///
/// Only what is complete: a pack has its index last, and temporary files have other names.
fn link_objects(from: &Path, to: &Path) -> io::Result<()> {
    for directory in std::fs::read_dir(from)? {
        let directory = directory?;
        let name = directory.file_name();
        let loose = name.len() == 2 && name.as_bytes().iter().all(u8::is_ascii_hexdigit);
        if name != "pack" && !loose {
            continue;
        }
        let target = to.join(&name);
        std::fs::create_dir_all(&target)?;
        for file in std::fs::read_dir(directory.path())? {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default();
            let extension = path.extension().unwrap_or_default();
            if loose && name.as_bytes().iter().all(u8::is_ascii_hexdigit) {
                link(&path, &target.join(name))?;
            } else if !loose && extension == "idx" && name.as_bytes().starts_with(b"pack-") {
                // What a power cut leaves of a file that was not written out yet.
                if path.metadata()?.len() == 0 {
                    return Err(io::Error::other("a pack of the mirror is empty"));
                }
                for extension in ["pack", "rev", "idx"] {
                    let part = path.with_extension(extension);
                    let name = part.file_name().unwrap_or_default();
                    match link(&part, &target.join(name)) {
                        Err(error)
                            if extension == "rev" && error.kind() == io::ErrorKind::NotFound => {}
                        linked => linked?,
                    }
                }
            }
        }
    }
    Ok(())
}

fn link(from: &Path, to: &Path) -> io::Result<()> {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
    match std::fs::hard_link(from, to) {
        Err(error)
            if matches!(
                error.kind(),
                CrossesDevices | PermissionDenied | TooManyLinks | Unsupported
            ) =>
        {
            std::fs::copy(from, to).map(drop)
        }
        linked => linked,
    }
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
