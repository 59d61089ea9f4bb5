//! Keeps a layer where it is while somebody uses it, and notes when that was.
//!
//! `layers/<digest>/used` is locked, shared, by every process that has put the layer into a stack which
//! nothing on disk tells of yet; the time of its last change is that of the layer's last use. Who collects
//! layers locks it alone, and only then looks for what on disk tells of the layer: so between being found
//! and being recorded a layer does not go.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::runtime::RuntimeFlavor;

/// In a layer's directory: what is locked.
pub(super) const USED: &str = "used";

/// How often, and how long, a lock is tried that a collector has while it looks.
const TRIES: u32 = 2000;
const PAUSE: Duration = Duration::from_millis(1);

/// Seconds for which a use is not noted again.
const NOTED: u64 = 60;

/// A layer is not collected until this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    file: File,
    /// When its last use was noted, in seconds since 1970.
    noted: AtomicU64,
}

impl Claim {
    /// That of the layer in the directory `layer`; none if it is gone.
    ///
    /// Waits for a collector that looks at it just now, which takes milliseconds; what else the runtime has
    /// to do goes on meanwhile.
    pub(super) fn take(layer: &Path) -> io::Result<Option<Self>> {
        let path = layer.join(USED);
        for _ in 0..TRIES {
            let file = match open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            match flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) if is_at(&file, &path)? => {
                    return Ok(Some(Self {
                        file,
                        noted: AtomicU64::new(0),
                    }));
                }
                // It was collected just now.
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => pause(),
                Err(error) => return Err(error.into()),
            }
        }
        let stuck = "somebody who collects layers has locked it and does not go on";
        Err(io::Error::new(io::ErrorKind::TimedOut, stuck))
    }

    /// Whether the layer in that directory is still the one that this is of.
    pub(super) fn is_of(&self, layer: &Path) -> bool {
        is_at(&self.file, &layer.join(USED)).unwrap_or(false)
    }

    /// Notes that the layer is used now.
    pub(super) fn note(&self) {
        let now = crate::clock::seconds();
        if now.saturating_sub(self.noted.load(Ordering::Relaxed)) < NOTED {
            return;
        }
        match self.file.set_modified(SystemTime::now()) {
            Ok(()) => self.noted.store(now, Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, "cannot note that a layer is used"),
        }
    }
}

/// Notes that the layer in the directory `layer` is used now, by others.
pub(super) fn note(layer: &Path) {
    let noted = open(&layer.join(USED)).and_then(|file| file.set_modified(SystemTime::now()));
    match noted {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "cannot note that a layer is used");
        }
        _ => {}
    }
}

/// A layer that nobody claims, for who may collect it.
#[derive(Debug)]
pub(super) struct Alone {
    _file: File,
}

impl Alone {
    /// That of the layer in the directory `layer`; none if somebody claims it, or it is gone.
    pub(super) fn take(layer: &Path) -> io::Result<Option<Self>> {
        let path = layer.join(USED);
        let file = match open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, &path)? => Ok(Some(Self { _file: file })),
            Ok(()) | Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The claims of all layers of a stack. Which they are is no part of what the stack is.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims(Vec<Arc<Claim>>);

impl Claims {
    pub(super) fn add(&mut self, claim: Arc<Claim>) {
        self.0.push(claim);
    }
}

impl FromIterator<Arc<Claim>> for Claims {
    fn from_iter<I: IntoIterator<Item = Arc<Claim>>>(claims: I) -> Self {
        Self(claims.into_iter().collect())
    }
}

impl PartialEq for Claims {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Claims {}

/// Waits for a moment. A worker of the runtime leaves what it would do next to others.
fn pause() {
    let wait = || std::thread::sleep(PAUSE);
    let runtime = tokio::runtime::Handle::try_current();
    match runtime.map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
        _ => wait(),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Whether `path` still names the open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_layer_and_who_collects_it_keep_each_other_out() {
        let scratch = tempfile::tempdir().unwrap();
        let layer = scratch.path().join("layer");
        fs::create_dir(&layer).unwrap();
        let claimed = Claim::take(&layer).unwrap().expect("it is there");
        let also = Claim::take(&layer)
            .unwrap()
            .expect("any number may claim it");
        assert!(Alone::take(&layer).unwrap().is_none());
        drop(claimed);
        assert!(Alone::take(&layer).unwrap().is_none());
        assert!(also.is_of(&layer));
        drop(also);
        let alone = Alone::take(&layer).unwrap().expect("nobody claims it");
        // Whoever comes now waits, and finds that it is gone.
        std::thread::scope(|scope| {
            let comer = scope.spawn(|| Claim::take(&layer).unwrap());
            fs::rename(&layer, scratch.path().join("trash")).unwrap();
            drop(alone);
            assert!(comer.join().unwrap().is_none());
        });
        assert!(Alone::take(&layer).unwrap().is_none());
    }

    #[test]
    fn a_use_is_noted() {
        let scratch = tempfile::tempdir().unwrap();
        let used = scratch.path().join(USED);
        let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let file = File::create(&used).unwrap();
        file.set_modified(old).unwrap();
        let claimed = Claim::take(scratch.path()).unwrap().unwrap();
        let noted = || fs::metadata(&used).unwrap().modified().unwrap();
        assert_eq!(noted(), old, "to claim is no use");
        claimed.note();
        assert!(noted() > old);
        file.set_modified(old).unwrap();
        claimed.note();
        assert_eq!(noted(), old, "noted twice within a minute");
    }
}
