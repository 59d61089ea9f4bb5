//! A temporary directory that can be removed whatever a sandbox left in it.
//!
//! For an ordinary user the files of a workspace belong to subordinate ids, and overlayfs leaves a
//! directory of mode 000 behind. The user namespace that owns those ids may remove both.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Mode, mode, succeed};

/// A directory of the test's own, removed with everything in it at the end.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes an empty one below `TMPDIR`.
    pub(crate) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// Makes an empty one below `directory`.
    pub(crate) fn below(directory: &Path) -> Self {
        let path = tempfile::Builder::new()
            .prefix("derrick-test-")
            .tempdir_in(directory)
            .expect("cannot make a temporary directory")
            .keep();
        Self { path }
    }

    /// Makes an empty one below `/tmp`, to which every user of the host has a way.
    pub(crate) fn in_the_open() -> Self {
        let path = tempfile::Builder::new()
            .prefix("derrick-test-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in("/tmp")
            .expect("cannot make a directory below /tmp")
            .keep();
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file into it and returns the file's path.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        let parent = path.parent().expect("a file in a directory has a parent");
        std::fs::create_dir_all(parent).expect("cannot make a directory in the scratch directory");
        std::fs::write(&path, content)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut remove = as_owner("rm");
        remove.args(["-rf", "--"]).arg(&self.path);
        if std::thread::panicking() {
            // One failure is enough to read; a second panic would abort the process.
            let _ = remove.output();
        } else {
            succeed(&mut remove);
        }
    }
}

/// A command that has power over every file that a sandbox of this user can make.
pub(crate) fn as_owner(program: &str) -> Command {
    let mut unshare = Command::new("unshare");
    match mode() {
        Mode::Root => return Command::new(program),
        Mode::Subordinate => unshare.args(["--map-root-user", "--map-auto"]),
        Mode::Single => unshare.arg("--map-root-user"),
    };
    unshare.arg("--").arg(program);
    unshare
}
