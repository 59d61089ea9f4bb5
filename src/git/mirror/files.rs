//! The files of mirrors: which are left over, which nobody wants any more, and what git may trust.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use super::super::error::GitError;

/// For so long after its last use nobody takes a mirror away: what uses it may not say so anywhere yet.
const RECENT: Duration = Duration::from_secs(600);

/// A git configuration that trusts one directory's owner, and nothing else.
///
/// The repository may be bare, or have its `.git` inside; git compares real paths.
pub(super) fn trusting(directory: &Path) -> Vec<u8> {
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

pub(super) fn is_at(open: &File, path: &Path) -> io::Result<bool> {
    let (open, there) = (open.metadata()?, std::fs::metadata(path)?);
    Ok((open.dev(), open.ino()) == (there.dev(), there.ino()))
}

/// Gives the mirrors below `dir` to `take` that are not `wanted`, have not been used lately, and that nobody
/// works with; their lock files stay, for who waits for one. Whoever wants one again makes it anew. Of a mirror
/// that is wanted and there, what is left of making it anew goes as well.
pub(in crate::git) fn take_unwanted(
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
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else {
            continue;
        };
        let used = match path.extension().and_then(|extension| extension.to_str()) {
            Some("git") if !wanted(name) => None,
            Some("new") if !wanted(name) => None,
            // Each step of a transfer writes to it.
            Some("new") if path.with_extension("git").exists() => {
                Some(path.symlink_metadata()?.modified()?)
            }
            _ => continue,
        };
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join(format!("{name}.lock")))?;
        let used = used.map_or_else(|| lock.metadata()?.modified(), Ok)?;
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
pub(super) fn sweep(mirror: &Path) -> io::Result<()> {
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
                if directory == mirror && name == b"lfs" {
                    continue;
                }
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

pub(super) async fn remove(path: &Path) -> Result<(), GitError> {
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(GitError::io("remove an old mirror", error))
        }
        _ => Ok(()),
    }
}

/// File work of this module, off the runtime's threads.
pub(in crate::git) async fn blocking<T, F>(attempt: &'static str, work: F) -> Result<T, GitError>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|lost| Err(io::Error::other(lost)))
        .map_err(|error| GitError::io(attempt, error))
}
