//! Repositories for tests, made with the git that is installed and nobody's configuration.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A directory of its own, and git in it.
pub(super) struct Git(TempDir);

impl Git {
    /// A repository without commits, on branch `main`.
    pub(super) fn new() -> Self {
        Self::with_format("sha1")
    }

    pub(super) fn with_format(format: &str) -> Self {
        let git = Self::somewhere();
        git.run(&[
            "init",
            "-q",
            "-b",
            "main",
            &format!("--object-format={format}"),
            ".",
        ]);
        git
    }

    /// An empty directory.
    pub(super) fn somewhere() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn url(&self) -> String {
        self.path().to_str().expect("UTF-8").to_owned()
    }

    pub(super) fn write(&self, name: &str, content: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, content).expect("writes");
    }

    /// Commits all there is and gives the commit's id.
    pub(super) fn commit(&self, message: &str) -> String {
        self.run(&["-c", "core.autocrlf=false", "add", "--all"]);
        self.run(&["commit", "-q", "--allow-empty", "-m", message]);
        self.run(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    pub(super) fn run(&self, arguments: &[&str]) -> String {
        let (succeeded, output, errors) = self.start("git", arguments, b"");
        assert!(succeeded, "git {arguments:?}: {errors}");
        output
    }

    /// Whether it succeeded, and its output.
    pub(super) fn attempt(&self, arguments: &[&str]) -> (bool, String) {
        let (succeeded, output, _) = self.start("git", arguments, b"");
        (succeeded, output)
    }

    pub(super) fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> String {
        let (succeeded, output, errors) = self.start("git", arguments, input);
        assert!(succeeded, "git {arguments:?}: {errors}");
        output
    }

    /// Runs a whole command line.
    pub(super) fn run_argv(&self, argv: &[String]) -> Vec<u8> {
        let (succeeded, output, errors) = self.start(&argv[0], &argv[1..], b"");
        assert!(succeeded, "{argv:?}: {errors}");
        output.into_bytes()
    }

    /// Names, kinds, modes and contents of all files but git's own.
    pub(super) fn files(&self) -> Vec<(PathBuf, u32, Vec<u8>)> {
        use std::os::unix::fs::MetadataExt as _;
        let mut files = Vec::new();
        let git = self.path().join(".git");
        walk(self.path(), &mut |path| {
            if path.starts_with(&git) {
                return;
            }
            let metadata = path.symlink_metadata().expect("is there");
            let content = match metadata.file_type() {
                kind if kind.is_symlink() => std::fs::read_link(path)
                    .expect("reads")
                    .into_os_string()
                    .into_encoded_bytes(),
                kind if kind.is_file() => std::fs::read(path).expect("reads"),
                _ => Vec::new(),
            };
            let name = path.strip_prefix(self.path()).expect("is below");
            files.push((name.to_owned(), metadata.mode(), content));
        });
        files.sort();
        files
    }

    fn start<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: &[S],
        input: &[u8],
    ) -> (bool, String, String) {
        // But for a clone, which brings what it checks out, what is promised stays where it is.
        let is_clone = arguments
            .first()
            .is_some_and(|first| first.as_ref() == "clone");
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").expect("a PATH"))
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TEMPLATE_DIR", "")
            .envs([
                ("GIT_AUTHOR_NAME", "A"),
                ("GIT_AUTHOR_EMAIL", "a@example.org"),
            ])
            .envs([
                ("GIT_COMMITTER_NAME", "C"),
                ("GIT_COMMITTER_EMAIL", "c@example.org"),
            ])
            .envs((!is_clone).then_some(("GIT_NO_LAZY_FETCH", "1")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("git is installed");
        // What reads nothing may have ended.
        let _ = child.stdin.take().expect("a pipe").write_all(input);
        let output = child.wait_with_output().expect("ends");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }
}

/// Files below `root` that contain `needle`, or are named so.
pub(super) fn bytes_below(root: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let contains = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let mut found = Vec::new();
    walk(root, &mut |path| {
        let metadata = path.symlink_metadata().expect("is there");
        let below = path
            .strip_prefix(root)
            .expect("is below")
            .as_os_str()
            .as_encoded_bytes();
        if contains(below) || metadata.is_file() && contains(&std::fs::read(path).expect("reads")) {
            found.push(path.to_owned());
        }
    });
    found
}

fn walk(directory: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(directory).expect("lists") {
        let path = entry.expect("an entry").path();
        visit(&path);
        if path.symlink_metadata().expect("is there").is_dir() {
            walk(&path, visit);
        }
    }
}
