//! Disk images: a new ext4 filesystem in a file, for each sandbox whose disk is bounded.
//!
//! mkfs.ext4(8) makes the first of each capacity; the others are copies of that, holes and all.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::sync::Mutex;

use crate::sandbox::Capacity;
use crate::sandbox::disk::{self, copy_sparse};

/// Bytes of a disk for each file that it can hold where nobody says how many. Source trees and packages
/// have small files.
const BYTES_FOR_EACH_INODE: u64 = 8 * 1024;
const LEAST_INODES: u64 = 1024;

/// Bytes of a block, and of what the filesystem keeps of each file.
const BLOCK: u64 = 4096;
const INODE: u64 = 256;

/// Bytes for what the filesystem keeps besides, on top of a hundredth of all.
const SPARE: u64 = 1 << 20;

/// The images that this process has made: the first of each capacity.
#[derive(Debug)]
pub(super) struct Images {
    directory: PathBuf,
    made: Mutex<HashMap<Capacity, PathBuf>>,
}

impl Images {
    /// Keeps the first ones in `directory`.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            made: Mutex::default(),
        }
    }

    /// Makes an image at `path`, unless there is one.
    ///
    /// # Errors
    /// Those of mkfs.ext4, and of writing the files.
    pub(super) async fn make(&self, path: &Path, capacity: Capacity) -> io::Result<()> {
        if path.try_exists()? {
            return Ok(());
        }
        let first = self.first(capacity).await?;
        let path = path.to_owned();
        let copied = tokio::task::spawn_blocking(move || copy(&first, &path)).await;
        copied.map_err(io::Error::other)?
    }

    async fn first(&self, capacity: Capacity) -> io::Result<PathBuf> {
        let mut made = self.made.lock().await;
        if let Some(path) = made.get(&capacity) {
            return Ok(path.clone());
        }
        let path = self.directory.join(made.len().to_string());
        make_filesystem(&path, capacity).await?;
        made.insert(capacity, path.clone());
        Ok(path)
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    // Under its name only when it is whole: one that is there is taken.
    let unfinished = to.with_extension("new");
    let file = new_file(&unfinished)?;
    copy_sparse(&File::open(from)?, &file)?;
    std::fs::rename(unfinished, to)
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

async fn make_filesystem(path: &Path, capacity: Capacity) -> io::Result<()> {
    let (bytes, inodes) = measure(capacity);
    new_file(path)?.set_len(bytes)?;
    let mkfs = disk::mkfs().ok_or_else(|| io::Error::other("mkfs.ext4 is missing"))?;
    let made = Command::new(&mkfs)
        .args(["-q", "-F", "-m", "0", "-b", "4096"])
        // Nothing that is written here has to outlive a power failure: no journal.
        .args(["-O", "^has_journal,^resize_inode"])
        .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
        .args(["-I", &INODE.to_string(), "-N", &inodes.to_string()])
        .arg(path)
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr);
    Err(io::Error::other(format!(
        "{} failed: {}",
        mkfs.display(),
        said.trim()
    )))
}

/// How large the image is and how many files it holds, so that what it can take is no less than
/// `capacity`.
fn measure(capacity: Capacity) -> (u64, u64) {
    let bytes = capacity.bytes.unwrap_or(0);
    let inodes = capacity
        .inodes
        .unwrap_or(bytes / BYTES_FOR_EACH_INODE)
        .max(LEAST_INODES);
    // Those that the filesystem keeps for itself.
    let inodes = inodes + 16;
    let all = bytes + inodes * INODE;
    let all = all + all / 100 + SPARE;
    (all.next_multiple_of(BLOCK), inodes)
}
