//! Disk images: a new ext4 filesystem in a file, for each sandbox whose disk is bounded.
//!
//! mkfs.ext4(8) makes the first of each capacity; the others are copies of that, holes and all.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::process::Command;
use uuid::Uuid;

use crate::sandbox::Capacity;
use crate::sandbox::disk::{self, copy_sparse};
use crate::sys::loop_device;

/// Bytes of a block, and of what the filesystem keeps of each file.
const BLOCK: u64 = 4096;
const INODE: u64 = 256;

/// Bytes for what the filesystem keeps besides, on top of a hundredth of all, and what it holds back: a
/// fiftieth, at most so much.
const SPARE: u64 = 1 << 20;
const MOST_HELD_BACK: u64 = 16 << 20;

/// How long an image may still be in use by a sandbox that has ended.
const RELEASE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);

/// How many first images are kept: those of the capacities that were asked for last.
const KEPT: usize = 8;

/// The images that this process has made: the first of each capacity.
#[derive(Debug)]
pub(super) struct Images {
    directory: PathBuf,
    /// The latest last. Without a name: they are gone when they are forgotten.
    made: Mutex<Vec<(Capacity, Arc<File>)>>,
}

impl Images {
    /// Makes the first ones in `directory`.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            made: Mutex::default(),
        }
    }

    /// Makes an image at `path`. One that is there is waited for instead, until no device has it.
    ///
    /// # Errors
    /// Those of mkfs.ext4, and of writing the files; `EBUSY` if it is in use for long.
    pub(super) async fn make(&self, path: &Path, capacity: Capacity) -> io::Result<()> {
        if path.try_exists()? {
            return until_released(path).await;
        }
        let first = self.first(capacity).await?;
        let path = path.to_owned();
        let copied = tokio::task::spawn_blocking(move || copy(&first, &path)).await;
        copied.map_err(io::Error::other)?
    }

    async fn first(&self, capacity: Capacity) -> io::Result<Arc<File>> {
        if let Some(first) = self.kept(capacity) {
            return Ok(first);
        }
        // Without the lock, as it may take a while: what two make at once is one too many, and no harm.
        let path = self.directory.join(Uuid::now_v7().to_string());
        let made = make_filesystem(&path, capacity).await;
        let opened = made.and_then(|()| File::open(&path));
        std::fs::remove_file(&path)?;
        let first = Arc::new(opened?);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= KEPT {
            made.remove(0);
        }
        made.push((capacity, Arc::clone(&first)));
        Ok(first)
    }

    fn kept(&self, capacity: Capacity) -> Option<Arc<File>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let place = made.iter().position(|(other, _)| *other == capacity)?;
        let found = made.remove(place);
        let first = Arc::clone(&found.1);
        made.push(found);
        Some(first)
    }
}

/// A device has an image for a moment longer than its sandbox lives: what is dirty is written first. Waited
/// for here and not in the spawner, for which others wait.
async fn until_released(image: &Path) -> io::Result<()> {
    let image = File::open(image)?;
    let patience = Instant::now() + RELEASE;
    while loop_device::is_attached(image.as_fd())? {
        if Instant::now() > patience {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn copy(from: &File, to: &Path) -> io::Result<()> {
    // Under its name only when it is whole: one that is there is taken.
    let unfinished = to.with_extension("new");
    let file = new_file(&unfinished)?;
    copy_sparse(from, &file)?;
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
    let inodes = capacity.inodes.unwrap_or_else(|| disk::inodes_of(bytes));
    // Those that the filesystem keeps for itself.
    let inodes = inodes + 16;
    let all = bytes + inodes * INODE;
    let all = all + all / 100 + (all / 50).min(MOST_HELD_BACK) + SPARE;
    (all.next_multiple_of(BLOCK), inodes)
}
