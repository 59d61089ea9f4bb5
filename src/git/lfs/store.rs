//! The large files of a mirror: `lfs` in its directory, laid out as git-lfs has it in a repository.
//!
//! An object gets its name when its size and its SHA-256 were found right, and is never written again; what is
//! not whole yet lies in `incomplete` under the same name, to be gone on with. One task of one process writes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use super::super::error::GitError;
use super::super::mirror::blocking;
use super::pointer::{Object, Oid, Pointer};

/// How long to wait before asking again for a lock that another process holds.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// For so long a part of an object is kept that nobody goes on with.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The large files of one mirror.
#[derive(Debug, Clone)]
pub(super) struct Store(PathBuf);

/// The right to write to it.
#[derive(Debug)]
pub(super) struct Held(#[expect(dead_code, reason = "the lock lives in the open file")] File);

/// An object on its way.
#[derive(Debug)]
pub(super) struct Part {
    object: Object,
    path: PathBuf,
    whole: PathBuf,
    file: tokio::fs::File,
    hash: Sha256,
    /// Bytes that are there.
    pub(super) length: u64,
}

/// Why bytes are not the object's.
#[derive(Debug)]
pub(super) enum Unfit {
    Wrong(String),
    Io(io::Error),
}

impl From<io::Error> for Unfit {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Store {
    pub(super) fn at(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Where an object is, if it is there.
    pub(super) fn object(&self, oid: &Oid) -> PathBuf {
        self.0.join("objects").join(oid.place())
    }

    /// The first pointer to each object that is not here.
    pub(super) async fn missing(&self, pointers: &[Pointer]) -> Result<Vec<Pointer>, GitError> {
        let (store, pointers) = (self.clone(), pointers.to_vec());
        blocking("look at the large files that are there", move || {
            let mut seen = std::collections::HashSet::new();
            let lacks = |pointer: &Pointer| {
                seen.insert(pointer.object.oid.clone()) && !store.has(&pointer.object)
            };
            Ok(pointers.into_iter().filter(lacks).collect())
        })
        .await
    }

    fn has(&self, object: &Object) -> bool {
        let found = self.object(&object.oid).symlink_metadata();
        found.is_ok_and(|found| found.is_file() && found.len() == object.size)
    }

    /// Waits until nobody else writes, and removes parts that nobody went on with.
    pub(super) async fn lock(&self) -> Result<Held, GitError> {
        let directory = self.0.clone();
        let file = blocking("open the lock of large files", move || {
            std::fs::create_dir_all(directory.join("incomplete"))?;
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(directory.join("held"))
        })
        .await?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // Asking again, unlike a thread that blocks in flock(2), ends when this future is dropped.
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_INTERVAL).await,
                Err(TryLockError::Error(error)) => {
                    return Err(GitError::io("lock the large files", error));
                }
            }
        }
        let directory = self.0.clone();
        blocking("remove old parts of large files", move || sweep(&directory)).await?;
        Ok(Held(file))
    }

    /// What is there of an object, to be gone on with.
    pub(super) async fn part(&self, object: &Object, _held: &Held) -> Result<Part, GitError> {
        let (path, whole) = (
            self.0.join("incomplete").join(object.oid.as_str()),
            self.object(&object.oid),
        );
        let (opened, most) = (path.clone(), object.size);
        let (file, hash, length) = blocking("open a large file", move || {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(opened)?;
            let mut hash = Sha256::new();
            let mut length = 0;
            if file.metadata()?.len() > most {
                file.set_len(0)?;
            }
            let mut buffer = vec![0; 256 * 1024];
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                hash.update(&buffer[..count]);
                length += count as u64;
            }
            Ok((file, hash, length))
        })
        .await?;
        Ok(Part {
            object: object.clone(),
            path,
            whole,
            file: tokio::fs::File::from_std(file),
            hash,
            length,
        })
    }
}

impl Part {
    /// Adds what came; never more than the object has.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Unfit> {
        let size = self.object.size;
        if bytes.len() as u64 > size - self.length {
            self.restart().await?;
            return Err(Unfit::Wrong(format!("it is more than {size} bytes")));
        }
        self.file.write_all(bytes).await?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Throws away what is there.
    pub(super) async fn restart(&mut self) -> io::Result<()> {
        use tokio::io::AsyncSeekExt as _;
        // What a write that broke off had begun is over before.
        let _ = self.file.flush().await;
        self.file.set_len(0).await?;
        self.file.seek(io::SeekFrom::Start(0)).await?;
        self.hash = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// Has all that was written on its way to the disk, so that it can be gone on with.
    pub(super) async fn keep(&mut self) -> io::Result<()> {
        self.file.flush().await
    }

    pub(super) fn is_whole(&self) -> bool {
        self.length == self.object.size
    }

    /// Gives it its name, if it is what the name says; else it is gone.
    pub(super) async fn finish(mut self) -> Result<(), Unfit> {
        self.file.flush().await?;
        let digest = self.hash.finalize();
        let found: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let wrong = if self.length != self.object.size {
            Some(format!(
                "it has {} bytes and not {}",
                self.length, self.object.size
            ))
        } else if found != self.object.oid.as_str() {
            Some(format!("its SHA-256 is {found}"))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            tokio::fs::remove_file(&self.path).await?;
            return Err(Unfit::Wrong(wrong));
        }
        self.file.sync_data().await?;
        let (path, whole) = (self.path, self.whole);
        let named = tokio::task::spawn_blocking(move || {
            // The file of a checkout is a link to it, with these permissions.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
            if let Some(parent) = whole.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::rename(&path, &whole)
        });
        Ok(named.await.map_err(io::Error::other)??)
    }
}

/// Removes what was left on its way: parts that are old, and temporary directories as old.
fn sweep(directory: &Path) -> io::Result<()> {
    for place in [directory.to_owned(), directory.join("incomplete")] {
        for entry in std::fs::read_dir(&place)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_list = name.as_encoded_bytes().starts_with(b"list-");
            if !is_list && place == directory {
                continue;
            }
            let used = entry.metadata()?.modified()?;
            if used.elapsed().is_ok_and(|since| since > KEPT) {
                match is_list {
                    true => std::fs::remove_dir_all(entry.path())?,
                    false => std::fs::remove_file(entry.path())?,
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_gets_its_name_when_it_is_right_and_is_gone_on_with_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::at(directory.path().to_owned());
        let oid = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let object = Object {
            oid: Oid::parse(oid).expect("one"),
            size: 5,
        };
        let held = store.lock().await.expect("nobody has it");
        let mut part = store.part(&object, &held).await.expect("opens");
        part.write(b"hel").await.expect("it fits");
        part.keep().await.expect("it is kept");
        drop(part);
        let mut part = store.part(&object, &held).await.expect("opens");
        assert_eq!(part.length, 3);
        assert!(matches!(part.write(b"lo!").await, Err(Unfit::Wrong(_))));
        assert_eq!(part.length, 0);
        part.write(b"help!").await.expect("it fits");
        assert!(part.is_whole() && !store.has(&object));
        assert!(matches!(part.finish().await, Err(Unfit::Wrong(_))));
        assert!(!store.has(&object));
        let mut part = store.part(&object, &held).await.expect("opens");
        assert_eq!(part.length, 0);
        part.write(b"hello").await.expect("it fits");
        part.finish().await.expect("it is right");
        assert!(store.has(&object));
        let found = std::fs::read(store.object(&object.oid)).expect("it is there");
        assert_eq!(found, b"hello");
    }
}
