//! A directory on disk that is removed whatever a sandbox left in it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `TMPFS_MAGIC` of `linux/magic.h`.
const TMPFS: i64 = 0x0102_1994;

/// A directory of the bench's own; removed with everything in it at the end.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes an empty one below `DERRICK_BENCH_DIR`, or below `/var/tmp`, which is on a disk where
    /// `/tmp` often is not. In memory, uppers would be made and removed at another speed.
    pub(crate) fn new() -> Self {
        let parent = std::env::var_os("DERRICK_BENCH_DIR")
            .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let filesystem = rustix::fs::statfs(&parent).expect("the directory for benches is there");
        assert!(
            filesystem.f_type != TMPFS,
            "{} is in memory; set DERRICK_BENCH_DIR to a directory on a disk",
            parent.display()
        );
        let path = tempfile::Builder::new()
            .prefix("derrick-bench-")
            .tempdir_in(parent)
            .expect("a temporary directory can be made")
            .keep();
        // A container of another user namespace has to reach its root filesystem.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))
            .expect("the directory is the bench's own");
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is in it may belong to ids that only a user namespace of this user has power over.
        let ways: [&[&str]; 3] = [
            &["rm"],
            &["unshare", "--map-root-user", "--map-auto", "rm"],
            &["unshare", "--map-root-user", "rm"],
        ];
        let removed = ways.iter().any(|way| {
            Command::new(way[0])
                .args(&way[1..])
                .args(["-rf", "--"])
                .arg(&self.path)
                .output()
                .is_ok_and(|output| output.status.success())
        });
        if !removed {
            eprintln!("cannot remove {}", self.path.display());
        }
    }
}
