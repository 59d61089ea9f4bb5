//! An archive of a root filesystem on disk: opened once, so that what is hashed is what is unpacked.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::store::Digest;
use crate::init::unpack::{Compression, UnpackError};

/// Why an archive cannot serve as a base.
#[derive(Debug, thiserror::Error)]
pub enum TarballError {
    /// It cannot be opened or read.
    #[error("cannot read the archive {}", path.display())]
    Read {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a FIFO or a device.
    #[error("archive {} is not a regular file", path.display())]
    NotAFile {
        /// The archive.
        path: PathBuf,
    },
    /// It is not an archive that derrick can read.
    #[error("cannot use the archive {}", path.display())]
    Format {
        /// The archive.
        path: PathBuf,
        /// What it is instead.
        source: UnpackError,
    },
    /// Somebody wrote to it while it was in use.
    #[error("archive {} changed while it was being read", path.display())]
    Changed {
        /// The archive.
        path: PathBuf,
    },
}

/// An open archive whose bytes are known by their digest.
#[derive(Debug)]
pub struct Tarball {
    path: PathBuf,
    file: File,
    stamp: Stamp,
    digest: Digest,
    compression: Compression,
}

impl Tarball {
    /// Opens the archive and hashes all of it; blocks for as long as reading takes.
    ///
    /// # Errors
    ///
    /// See [`TarballError`].
    pub fn open(path: &Path) -> Result<Self, TarballError> {
        let read = |source| TarballError::Read {
            path: path.to_path_buf(),
            source,
        };
        let mut file = open(path).map_err(read)?;
        let meta = file.metadata().map_err(read)?;
        if !meta.is_file() {
            return Err(TarballError::NotAFile {
                path: path.to_path_buf(),
            });
        }
        let stamp = Stamp::of(&meta);
        let mut start = Vec::with_capacity(512);
        file.by_ref()
            .take(512)
            .read_to_end(&mut start)
            .map_err(read)?;
        let compression = Compression::detect(&start).map_err(|source| TarballError::Format {
            path: path.to_path_buf(),
            source,
        })?;
        let digest = hash(&file).map_err(read)?;
        file.rewind().map_err(read)?;
        let tarball = Self {
            path: path.to_path_buf(),
            file,
            stamp,
            digest,
            compression,
        };
        tarball.check_unchanged()?;
        Ok(tarball)
    }

    /// SHA-256 of the file as it is on disk, compressed or not.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// How it is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The descriptor that was hashed, read-only and at offset 0, for the unpacker to read.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fails if the file was written since it was opened. To be called again after unpacking, before the result is kept.
    ///
    /// # Errors
    ///
    /// [`TarballError::Changed`], or [`TarballError::Read`] if it cannot be told.
    pub fn check_unchanged(&self) -> Result<(), TarballError> {
        let meta = self.file.metadata().map_err(|source| TarballError::Read {
            path: self.path.clone(),
            source,
        })?;
        if Stamp::of(&meta) == self.stamp {
            Ok(())
        } else {
            Err(TarballError::Changed {
                path: self.path.clone(),
            })
        }
    }
}

/// SHA-256 of a file's bytes, as `sha256sum` prints it.
///
/// # Errors
///
/// When the file cannot be opened or read.
pub fn digest_file(path: &Path) -> io::Result<Digest> {
    hash(&open(path)?)
}

/// What changes when a file is written. Not its time of change: that also moves when another file takes its name.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    // A FIFO would hold up the open until somebody writes to it.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Reads by position: the offset is the unpacker's.
fn hash(file: &File) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        let got = match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(Digest::of_stream(hasher)),
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hasher.update(&buffer[..got]);
        at += got as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, "file", b"abc".as_slice())
            .unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn the_digest_is_that_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "abc").unwrap();
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_file(&path).unwrap().as_str(), known);
        assert!(digest_file(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn the_descriptor_handed_out_is_the_one_that_was_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.tar");
        fs::write(&path, tar()).unwrap();
        let tarball = Tarball::open(&path).unwrap();
        assert_eq!(tarball.compression(), Compression::Plain);
        assert_eq!(tarball.digest(), &digest_file(&path).unwrap());
        // Another file of that name is not what was hashed.
        fs::write(dir.path().join("other"), "other").unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        let mut content = Vec::new();
        tarball.file().read_to_end(&mut content).unwrap();
        assert_eq!(content, tar());
    }

    #[test]
    fn a_write_in_place_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.tar");
        fs::write(&path, tar()).unwrap();
        let tarball = Tarball::open(&path).unwrap();
        tarball.check_unchanged().unwrap();
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .set_len(1)
            .unwrap();
        assert!(matches!(
            tarball.check_unchanged(),
            Err(TarballError::Changed { .. })
        ));
    }

    #[test]
    fn what_is_no_archive_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text");
        fs::write(&text, "just text").unwrap();
        assert!(matches!(
            Tarball::open(&text),
            Err(TarballError::Format { .. })
        ));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(matches!(
            Tarball::open(&pipe),
            Err(TarballError::NotAFile { .. })
        ));
        assert!(matches!(
            Tarball::open(dir.path()),
            Err(TarballError::NotAFile { .. })
        ));
        let message = Tarball::open(&dir.path().join("missing"))
            .unwrap_err()
            .to_string();
        assert!(message.ends_with("/missing"), "{message}");
    }
}
