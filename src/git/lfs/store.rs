//! The large files of a mirror: `lfs` in its directory, laid out as git-lfs has it in a repository.
//!
//! An object gets its name when its size and its SHA-256 were found right, and is never written again; what is
//! not whole yet lies in `incomplete` under the same name, to be gone on with. One task of one process writes; a
//! part is locked as well, since what a task had begun to write goes on when the task is dropped.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
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
    /// Locked until nobody has it open any more.
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
            let mut file = open_part(&opened)?;
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
        if wrong.is_none() {
            self.file.sync_data().await?;
        }
        let (path, whole, locked) = (self.path, self.whole, self.file);
        let named = tokio::task::spawn_blocking(move || {
            // Until here it is nobody else's.
            let _locked = locked;
            if let Some(wrong) = wrong {
                std::fs::remove_file(&path)?;
                return Err(Unfit::Wrong(wrong));
            }
            // The file of a checkout is a link to it, with these permissions.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
            if let Some(parent) = whole.parent() {
                std::fs::create_dir_all(parent)?;
            }
            Ok(std::fs::rename(&path, &whole)?)
        });
        named.await.map_err(io::Error::other)?
    }
}

/// Opens a part, or makes it, once all that was begun to be done with it is over.
fn open_part(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        file.lock()?;
        // It may have got its name, or have been removed, before the lock was there.
        let there = unless_gone(path.symlink_metadata())?;
        let opened = file.metadata()?;
        if there.is_some_and(|there| (there.dev(), there.ino()) == (opened.dev(), opened.ino())) {
            return Ok(file);
        }
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
            // Whoever looks for pointers removes what it made meanwhile.
            let Some(found) = unless_gone(entry.metadata())? else {
                continue;
            };
            if found.modified()?.elapsed().is_ok_and(|since| since > KEPT) {
                unless_gone(match is_list {
                    true => std::fs::remove_dir_all(entry.path()),
                    false => std::fs::remove_file(entry.path()),
                })?;
            }
        }
    }
    Ok(())
}

/// What became of what is there; none if it is not there any more.
fn unless_gone<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
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

    #[tokio::test]
    async fn a_part_is_nobody_else_s_as_long_as_it_is_written_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::at(directory.path().to_owned());
        let object = Object {
            oid: Oid::parse(&"a".repeat(64)).expect("one"),
            size: 5,
        };
        let held = store.lock().await.expect("nobody has it");
        let part = store.part(&object, &held).await.expect("opens");
        // As a write that was begun has it.
        let written = part.file.try_clone().await.expect("it is open");
        let mut written = written.into_std().await;
        let path = part.path.clone();
        drop(part);
        let other = File::open(&path).expect("it is there");
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        std::io::Write::write_all(&mut written, b"hel").expect("it is open");
        drop(written);
        let next = store.part(&object, &held).await.expect("opens");
        assert_eq!(next.length, 3);
    }
}
