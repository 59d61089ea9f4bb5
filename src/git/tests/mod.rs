//! What `git` promises, with the real git on repositories that these tests make.
//!
//! The prefix `upstream` is for what somebody else owns, `inside` for what ends up in a workspace.

mod http;
mod partial;
mod push;
mod steps;
mod submodules;
mod thin;
mod upstreams;

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use upstreams::{Git, bytes_below};

/// Mirrors, a scratch directory and a place for what comes out.
struct Setting {
    dir: TempDir,
    mirrors: Mirrors,
}

fn open(dir: &Path) -> Mirrors {
    let places = (dir.join("mirrors"), dir.join("scratch"));
    Mirrors::open(places, ("OF_A_TEST", String::new()), Room::boundless())
}

impl Setting {
    fn new() -> Self {
        let dir = TempDir::with_prefix("host-path-canary-").expect("a directory");
        std::fs::create_dir(dir.path().join("scratch")).expect("a directory");
        let mirrors = open(dir.path());
        Self { dir, mirrors }
    }

    /// The same mirrors, as another process has them.
    fn another(&self) -> Mirrors {
        open(self.dir.path())
    }

    fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    fn mirror_of(&self, repository: &Repository) -> PathBuf {
        let digest = super::mirror_of(repository).expect("a URL");
        self.dir.path().join(format!("mirrors/{digest}.git"))
    }

    async fn resolve(&self, repository: &Repository) -> Resolved {
        self.mirrors.resolve(repository).await.expect("resolves")
    }

    /// Unpacks a checkout, as a workspace would.
    async fn checkout(&self, repository: &Repository, at: &Resolved) -> Git {
        self.unpack(repository, (at, &[])).await
    }

    async fn unpack(&self, repository: &Repository, what: (&Resolved, &[Submodule])) -> Git {
        let mut stream = tempfile::tempfile().expect("a file");
        let sink = stream.try_clone().expect("a descriptor");
        self.mirrors
            .checkout(repository, what, Owner::default(), sink)
            .await
            .expect("checks out");
        stream.rewind().expect("seeks");
        let inside = Git::somewhere();
        let mut archive = tar::Archive::new(stream);
        archive.set_preserve_permissions(true);
        for entry in archive.entries().expect("an archive") {
            let mut entry = entry.expect("an entry");
            assert_eq!(
                (entry.header().uid().ok(), entry.header().gid().ok()),
                (Some(0), Some(0))
            );
            assert!(entry.unpack_in(inside.path()).expect("unpacks"));
        }
        let left: Vec<_> = std::fs::read_dir(self.scratch()).expect("lists").collect();
        assert!(left.is_empty(), "left in scratch: {left:?}");
        inside
    }

    async fn fresh(&self, repository: &Repository) -> Git {
        let at = self.resolve(repository).await;
        self.checkout(repository, &at).await
    }

    /// Brings into `inside` what the upstream has, as a workspace's fetch would.
    async fn fetch(&self, repository: &Repository, inside: &Git) -> Bundle {
        let at = self.resolve(repository).await;
        self.bring(repository, &at, inside).await.expect("bundles")
    }

    /// The same of a commit that is known.
    async fn bring(
        &self,
        repository: &Repository,
        at: &Resolved,
        inside: &Git,
    ) -> Result<Bundle, GitError> {
        let mut have = Have::parse(&inside.run_argv(&have_command()));
        have.ends_at(&std::fs::read(inside.path().join(".git/shallow")).unwrap_or_default());
        let path = inside.path().join(".git/bundle");
        let sink = File::create(&path).expect("a file");
        let bundle = self.mirrors.bundle(repository, at, &have, sink).await?;
        if bundle == Bundle::Written {
            inside.run_argv(&fetch_command(path.to_str().expect("UTF-8")));
        }
        std::fs::remove_file(path).expect("removes");
        Ok(bundle)
    }
}

/// A repository with all of its history, as `git clone` has it.
fn repository(url: &str, reference: Option<&str>) -> Repository {
    with_history("full", url, reference)
}

fn with_history(history: &str, url: &str, reference: Option<&str>) -> Repository {
    let fields = serde_json::json!({
        "url": url,
        "path": "/r",
        "reference": reference,
        "history": history,
    });
    serde_json::from_value(fields).expect("a repository")
}

/// The subjects of all commits of which there is a trace, those that nothing leads to included.
fn commits(of: &Git) -> Vec<String> {
    let objects = of.run(&[
        "cat-file",
        "--batch-all-objects",
        "--batch-check=%(objecttype) %(objectname)",
    ]);
    let mut subjects: Vec<String> = objects
        .lines()
        .filter_map(|line| line.strip_prefix("commit "))
        .map(|id| {
            of.run(&["show", "--no-patch", "--format=%s", id])
                .trim()
                .to_owned()
        })
        .collect();
    subjects.sort();
    subjects
}

fn names(of: &Git) -> Vec<String> {
    let names = of.run(&["for-each-ref", "--format=%(refname)"]);
    names.lines().map(str::to_owned).collect()
}

/// References and settings that a clone has, in git's own words.
fn looks(of: &Git) -> [String; 3] {
    let mut settings: Vec<String> = of
        .run(&["config", "--local", "--list"])
        .lines()
        .map(str::to_owned)
        .collect();
    settings.sort();
    [
        of.run(&[
            "for-each-ref",
            "--format=%(refname) %(objectname) %(symref)",
        ]),
        settings.join("\n"),
        // Not there when HEAD is detached.
        of.attempt(&["symbolic-ref", "HEAD"]).1,
    ]
}

fn assert_sound(inside: &Git) {
    assert_eq!(inside.run(&["status", "--porcelain"]), "");
    inside.run(&["fsck", "--full", "--strict"]);
    inside.run(&["log", "--all", "--stat"]);
}

/// A repository full of what breaks careless tools.
fn odd_upstream() -> Git {
    let upstream = Git::new();
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    for (name, content) in [
        ("a b", "1"),
        ("-x", "2"),
        ("new\nline", "3"),
        ("back\\slash", "4"),
        ("ümlaut", "5"),
        ("hooks/post-checkout", "#!/bin/sh\ntouch executed"),
        ("crlf", "a\r\nb\r\n"),
        (&long, "6"),
        (".gitattributes", "* filter=evil diff=evil\n"),
        (
            ".gitmodules",
            "[submodule \"s\"]\n\tpath = s\n\turl = ./../s\n",
        ),
    ] {
        upstream.write(name, content);
    }
    upstream.write("run.sh", "#!/bin/sh\n");
    std::fs::set_permissions(
        upstream.path().join("run.sh"),
        PermissionsExt::from_mode(0o755),
    )
    .expect("sets");
    for (name, target) in [
        ("l1", "/etc/passwd"),
        ("l2", "./a//b/"),
        ("l3", "../../up"),
        ("l4", &format!("{}//x", "long".repeat(40))),
        ("l5", "new\nline"),
    ] {
        symlink(target, upstream.path().join(name)).expect("a link");
    }
    upstream.commit("first");
    upstream.run(&["tag", "light"]);
    upstream.run(&["tag", "-a", "-m", "t", "annotated"]);
    upstream.run(&["update-ref", "refs/heads/-x", "HEAD"]);
    upstream.run(&["update-ref", "refs/heads/feature/q\"uote", "HEAD"]);
    upstream
}

#[tokio::test]
async fn a_checkout_is_what_git_clone_makes() {
    let setting = Setting::new();
    let upstream = odd_upstream();
    for url in [upstream.url(), format!("file://{}", upstream.url())] {
        for (reference, clone) in [
            (None, &["clone"][..]),
            (Some("main"), &["clone"]),
            (Some("-x"), &["clone", "--branch=-x"]),
            (
                Some("feature/q\"uote"),
                &["clone", "--branch=feature/q\"uote"],
            ),
            (Some("refs/heads/main"), &["clone"]),
            (Some("light"), &["clone", "--branch=light"]),
            (Some("annotated"), &["clone", "--branch=annotated"]),
        ] {
            let repository = repository(&url, reference);
            let at = setting.resolve(&repository).await;
            let inside = setting.checkout(&repository, &at).await;
            assert_sound(&inside);
            let cloned = Git::somewhere();
            cloned.run(&[clone, &["-q", &url, "."]].concat());
            assert_eq!(looks(&inside), looks(&cloned), "{reference:?}");
            assert_eq!(inside.files(), cloned.files(), "{reference:?}");
            assert_eq!(
                inside.run(&["rev-parse", "HEAD"]).trim(),
                at.commit.as_str()
            );
        }
    }
}

/// Past and future of a task: what was fixed later is on its branch, on others, under tags, and in objects
/// that nothing leads to any more.
fn upstream_with_a_future() -> (Git, String) {
    let upstream = Git::new();
    upstream.write("file", "0\n");
    upstream.commit("past");
    upstream.run(&["tag", "v0"]);
    upstream.write("file", "1\n");
    let task = upstream.commit("task");
    upstream.run(&["tag", "-a", "-m", "t", "v1"]);
    upstream.run(&["branch", "release"]);
    upstream.write("file", "fixed\n");
    upstream.commit("future");
    upstream.run(&["tag", "v2"]);
    upstream.run(&["checkout", "-q", "-b", "side", &task]);
    upstream.write("file", "fixed otherwise\n");
    upstream.commit("elsewhere");
    upstream.run(&["tag", "-a", "-m", "t", "v1-side"]);
    upstream.run(&["checkout", "-q", "main"]);
    (upstream, task)
}

#[tokio::test]
async fn what_lies_in_the_future_of_a_checkout_is_not_in_it() {
    let setting = Setting::new();
    let (upstream, task) = upstream_with_a_future();
    // The mirror knows all of it, and what the upstream dropped since.
    upstream.run(&["checkout", "-q", "-b", "gone", &task]);
    upstream.write("file", "fixed and dropped\n");
    upstream.commit("dropped");
    setting.resolve(&repository(&upstream.url(), None)).await;
    upstream.run(&["checkout", "-q", "main"]);
    upstream.run(&["branch", "-q", "-D", "gone"]);

    let full = setting
        .fresh(&repository(&upstream.url(), Some("release")))
        .await;
    assert_eq!(commits(&full), ["elsewhere", "future", "past", "task"]);

    for (reference, names_there) in [
        (
            "release",
            &["refs/heads/release", "refs/remotes/origin/release"][..],
        ),
        ("v1", &["refs/tags/v1"]),
        (&task, &[]),
    ] {
        let sealed = with_history("sealed", &upstream.url(), Some(reference));
        let inside = setting.fresh(&sealed).await;
        assert_sound(&inside);
        assert_eq!(commits(&inside), ["past", "task"], "{reference}");
        assert_eq!(names(&inside), names_there, "{reference}");
        assert_eq!(inside.run(&["rev-parse", "HEAD"]).trim(), task);
        let later = upstream.run(&["rev-parse", "v2"]);
        assert_eq!(
            bytes_below(&inside.path().join(".git"), later.trim().as_bytes()),
            Vec::<PathBuf>::new()
        );
    }

    let branch = setting
        .fresh(&with_history("branch", &upstream.url(), Some("v1")))
        .await;
    assert_sound(&branch);
    assert_eq!(commits(&branch), ["future", "past", "task"]);
    let of_main = [
        "refs/remotes/origin/HEAD",
        "refs/remotes/origin/main",
        "refs/tags/v0",
        "refs/tags/v1",
        "refs/tags/v2",
    ];
    assert_eq!(names(&branch), of_main);
    assert_eq!(branch.run(&["rev-parse", "HEAD"]).trim(), task);
}

#[tokio::test]
async fn a_repository_without_history_is_its_files_in_one_commit() {
    let setting = Setting::new();
    let (upstream, _) = upstream_with_a_future();
    for reference in ["release", "v1"] {
        let repository = with_history("none", &upstream.url(), Some(reference));
        let inside = setting.fresh(&repository).await;
        assert_sound(&inside);
        assert_eq!(commits(&inside), ["Files without their history"]);
        assert_eq!(inside.run(&["show", "HEAD:file"]), "1\n");
        assert_eq!(
            inside
                .run(&["rev-list", "--parents", "HEAD"])
                .split(' ')
                .count(),
            1
        );
        assert_eq!(
            inside.attempt(&["symbolic-ref", "HEAD"]).0,
            reference == "release"
        );
        let again = setting.fresh(&repository).await;
        assert_eq!(
            inside.run(&["rev-parse", "HEAD"]),
            again.run(&["rev-parse", "HEAD"])
        );
    }
}

#[tokio::test]
async fn a_sealed_checkout_is_fetched_what_it_follows_and_nothing_else() {
    let setting = Setting::new();
    let (upstream, task) = upstream_with_a_future();
    let sealed = with_history("sealed", &upstream.url(), Some("release"));
    let inside = setting.fresh(&sealed).await;
    assert_eq!(setting.fetch(&sealed, &inside).await, Bundle::NothingNew);
    upstream.run(&["checkout", "-q", "release"]);
    upstream.write("other", "x");
    let next = upstream.commit("next");
    assert_eq!(setting.fetch(&sealed, &inside).await, Bundle::Written);
    assert_eq!(commits(&inside), ["next", "past", "task"]);
    assert_eq!(inside.run(&["rev-parse", "origin/release"]).trim(), next);
    assert!(!inside.path().join(".git/logs").exists());

    let id = |text: &str| text.parse::<CommitId>().expect("an id");
    let leads = async |new: &str, old: &str| {
        let mirrors = &setting.mirrors;
        mirrors
            .leads_to(&sealed, &id(new), &id(old))
            .await
            .expect("compares")
    };
    assert!(leads(&next, &task).await && leads(&next, &next).await);
    assert!(!leads(&task, &next).await);
    assert!(!leads(&task, &"0".repeat(40)).await);
}

#[tokio::test]
async fn nothing_of_the_host_and_nothing_of_git_beyond_a_clone_is_in_a_checkout() {
    let setting = Setting::new();
    let upstream = odd_upstream();
    let inside = setting.fresh(&repository(&upstream.url(), None)).await;
    let canary = setting.dir.path().to_str().expect("UTF-8");
    assert_eq!(
        bytes_below(inside.path(), canary.as_bytes()),
        Vec::<PathBuf>::new()
    );
    for absent in [
        "logs",
        "FETCH_HEAD",
        "ORIG_HEAD",
        "objects/info/alternates",
        "modules",
    ] {
        assert!(
            !inside.path().join(".git").join(absent).exists(),
            "{absent}"
        );
    }
    assert_eq!(
        std::fs::read_dir(inside.path().join(".git/hooks"))
            .expect("lists")
            .count(),
        0
    );
    // A clone shares no file with the mirror: what an agent writes stays with the agent.
    let packs = std::fs::read_dir(inside.path().join(".git/objects/pack")).expect("lists");
    for pack in packs {
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(
            pack.expect("an entry")
                .metadata()
                .expect("is there")
                .nlink(),
            1
        );
    }
}

#[tokio::test]
async fn nothing_that_a_repository_brings_is_executed() {
    let setting = Setting::new();
    let upstream = odd_upstream();
    let witness = setting.dir.path().join("executed");
    let touch = format!("touch '{}'", witness.display());
    // A submodule whose URL would run a program.
    upstream.write(
        ".gitmodules",
        &format!("[submodule \"s\"]\n\tpath = s\n\turl = ext::{touch}\n"),
    );
    let head = upstream.run(&["rev-parse", "HEAD"]);
    upstream.run(&[
        "update-index",
        "--add",
        "--cacheinfo",
        &format!("160000,{},s", head.trim()),
    ]);
    upstream.run(&["add", ".gitmodules"]);
    upstream.run(&["commit", "-q", "--no-verify", "-m", "hostile"]);
    let hooks = upstream.path().join(".git/hooks");
    std::fs::create_dir_all(&hooks).expect("a directory");
    for hook in [
        "post-checkout",
        "reference-transaction",
        "post-upload-pack",
        "pre-upload-pack",
        "post-index-change",
    ] {
        std::fs::write(hooks.join(hook), format!("#!/bin/sh\n{touch}\n")).expect("writes");
        std::fs::set_permissions(hooks.join(hook), PermissionsExt::from_mode(0o755)).expect("sets");
    }
    for key in [
        "filter.evil.smudge",
        "filter.evil.process",
        "uploadpack.packObjectsHook",
        "core.fsmonitor",
        "core.sshCommand",
    ] {
        upstream.run(&["config", key, &touch]);
    }

    let repository = repository(&upstream.url(), None);
    setting.fresh(&repository).await;
    // By plumbing, or the upstream's own git would run what is set up here.
    let more = upstream.run(&["commit-tree", "-p", "HEAD", "-m", "more", "HEAD^{tree}"]);
    std::fs::write(upstream.path().join(".git/refs/heads/main"), more).expect("writes");
    let inside = setting.fresh(&repository).await;
    setting.fetch(&repository, &inside).await;
    assert!(!witness.exists());
    // The witness works: the upstream's owner, who trusts the settings, does run them.
    upstream.attempt(&["status"]);
    assert!(witness.exists());
    assert!(inside.path().join("s").is_dir());
}

#[tokio::test]
async fn a_tree_that_holds_a_git_directory_is_refused() {
    let setting = Setting::new();
    let upstream = Git::new();
    upstream.write("x", "[core]\n\tfsmonitor = touch executed\n");
    let blob = upstream.run(&["hash-object", "-w", "x"]);
    let mut tree = format!("100644 blob {}\tconfig\n", blob.trim());
    for directory in ["", ".git"] {
        let id = upstream.run_with_input(&["mktree"], tree.as_bytes());
        if directory.is_empty() {
            tree = format!("040000 tree {}\t.git\n", id.trim());
        } else {
            let commit = upstream.run(&["commit-tree", "-m", "hostile", id.trim()]);
            upstream.run(&["update-ref", "refs/heads/main", commit.trim()]);
        }
    }
    let error = setting
        .mirrors
        .resolve(&repository(&upstream.url(), None))
        .await
        .expect_err("refuses");
    assert!(matches!(error, GitError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn references_are_found_branch_before_tag_before_commit() {
    let setting = Setting::new();
    let upstream = Git::new();
    let first = upstream.commit("first");
    upstream.run(&["tag", "both"]);
    upstream.run(&["tag", "-a", "-m", "t", "annotated"]);
    upstream.run(&["tag", "-a", "-m", "t", "nested", "annotated"]);
    upstream.run(&[
        "tag",
        "-a",
        "-m",
        "t",
        "blob",
        &upstream.run_with_input(&["hash-object", "-w", "--stdin"], b"x")[..40],
    ]);
    let second = upstream.commit("second");
    upstream.run(&["branch", "both"]);
    upstream.run(&["branch", &first[..9]]);
    // Advertised, but neither a branch nor a tag.
    upstream.run(&["checkout", "-q", "--detach"]);
    let pull = upstream.commit("pull request");
    upstream.run(&["update-ref", "refs/pull/1/head", "HEAD"]);
    upstream.run(&["checkout", "-q", "main"]);

    let branch = |name: &str| Reference::Branch(name.to_owned());
    let tag = |name: &str| Reference::Tag(name.to_owned());
    for (name, commit, reference) in [
        (None, &second, branch("main")),
        (Some("main"), &second, branch("main")),
        (Some("both"), &second, branch("both")),
        (Some("refs/tags/both"), &first, tag("both")),
        (Some("annotated"), &first, tag("annotated")),
        (Some("nested"), &first, tag("nested")),
        (Some(&first[..9]), &second, branch(&first[..9])),
        (Some(&first[..8]), &first, Reference::Commit),
        (Some(&second[..7]), &second, Reference::Commit),
        (Some(first.as_str()), &first, Reference::Commit),
        (Some(&first.to_uppercase()), &first, Reference::Commit),
        (Some(&pull), &pull, Reference::Commit),
    ] {
        let repository = repository(&upstream.url(), name);
        let at = setting.resolve(&repository).await;
        assert_eq!(
            (at.commit.as_str(), &at.reference),
            (commit.as_str(), &reference),
            "{name:?}"
        );
        assert_sound(&setting.checkout(&repository, &at).await);
    }
    for name in [
        "absent",
        "--upload-pack=x",
        "main~1",
        "HEAD",
        "both^{}",
        &first[..6],
        "blob",
        "@",
        "a b",
        "",
        &"0".repeat(40),
        "0000000",
    ] {
        let error = setting
            .mirrors
            .resolve(&repository(&upstream.url(), Some(name)))
            .await
            .expect_err(name);
        assert!(
            matches!(error, GitError::NoSuchReference { .. }),
            "{name}: {error}"
        );
        assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
    }
}

#[tokio::test]
async fn an_update_follows_whatever_the_upstream_does() {
    let setting = Setting::new();
    let upstream = Git::new();
    upstream.commit("first");
    upstream.run(&["branch", "gone"]);
    upstream.run(&["branch", "a"]);
    upstream.run(&["tag", "moves"]);
    let default = repository(&upstream.url(), None);
    let at = setting.resolve(&default).await;
    assert_eq!(setting.resolve(&default).await, at, "nothing changed");

    // Rewritten, moved, deleted, in each other's way, and another default branch.
    upstream.run(&["branch", "-D", "gone", "a"]);
    upstream.run(&["branch", "a/b"]);
    upstream.run(&[
        "commit",
        "-q",
        "--amend",
        "--allow-empty",
        "-m",
        "rewritten",
    ]);
    upstream.run(&["tag", "-f", "moves"]);
    upstream.run(&["checkout", "-q", "-b", "trunk"]);
    let trunk = upstream.commit("on trunk");

    let now = setting.resolve(&default).await;
    assert_eq!(now.reference, Reference::Branch("trunk".into()));
    assert_eq!(now.commit.as_str(), trunk);
    let inside = setting.checkout(&default, &now).await;
    let cloned = Git::somewhere();
    cloned.run(&["clone", "-q", &upstream.url(), "."]);
    assert_eq!(looks(&inside), looks(&cloned));
    // What was resolved before can still be checked out, on the branch as it was.
    let before = setting.checkout(&default, &at).await;
    assert_sound(&before);
    assert_eq!(
        before.run(&["rev-parse", "HEAD"]).trim(),
        at.commit.as_str()
    );
    assert_eq!(
        before
            .run(&["rev-parse", "refs/remotes/origin/main"])
            .trim(),
        at.commit.as_str()
    );
}

#[tokio::test]
async fn repositories_without_commits_or_without_a_default_branch_are_said_so() {
    let setting = Setting::new();
    let upstream = Git::new();
    let default = repository(&upstream.url(), None);
    let error = setting
        .mirrors
        .resolve(&default)
        .await
        .expect_err("is empty");
    assert!(matches!(error, GitError::Empty { .. }), "{error}");

    let commit = upstream.commit("first");
    upstream.run(&["branch", "-m", "main", "other"]);
    upstream.run(&["symbolic-ref", "HEAD", "refs/heads/unborn"]);
    let error = setting
        .mirrors
        .resolve(&default)
        .await
        .expect_err("has no default branch");
    assert!(matches!(error, GitError::NoDefaultBranch { .. }), "{error}");
    assert_eq!(
        setting
            .resolve(&repository(&upstream.url(), Some("other")))
            .await
            .commit
            .as_str(),
        commit
    );

    // A detached HEAD that is no branch's: the commit itself.
    upstream.run(&["checkout", "-q", "--detach", "other"]);
    let detached = upstream.commit("detached");
    let at = setting.resolve(&default).await;
    assert_eq!(
        (at.commit.as_str(), &at.reference),
        (detached.as_str(), &Reference::Commit)
    );
    let inside = setting.checkout(&default, &at).await;
    assert_sound(&inside);
    let cloned = Git::somewhere();
    cloned.run(&["clone", "-q", &upstream.url(), "."]);
    assert_eq!(looks(&inside), looks(&cloned));
}

#[tokio::test]
async fn a_shallow_clone_is_refused_by_name() {
    let setting = Setting::new();
    let (upstream, shallow) = (Git::new(), Git::somewhere());
    upstream.commit("first");
    upstream.commit("second");
    shallow.run(&[
        "clone",
        "-q",
        "--depth=1",
        &format!("file://{}", upstream.url()),
        ".",
    ]);
    let repository = repository(&shallow.url(), None);
    let error = setting
        .mirrors
        .resolve(&repository)
        .await
        .expect_err("is refused");
    assert!(matches!(error, GitError::Shallow { .. }), "{error}");
    shallow.run(&["fetch", "-q", "--unshallow"]);
    assert_sound(&setting.fresh(&repository).await);
}

#[tokio::test]
async fn repositories_named_by_sha256_work() {
    let setting = Setting::new();
    let upstream = Git::with_format("sha256");
    upstream.commit("first");
    let repository = repository(&upstream.url(), None);
    let inside = setting.fresh(&repository).await;
    assert_sound(&inside);
    let second = upstream.commit("second");
    assert_eq!(setting.resolve(&repository).await.commit.as_str(), second);
    assert_eq!(setting.fetch(&repository, &inside).await, Bundle::Written);
    assert_eq!(inside.run(&["rev-parse", "origin/main"]).trim(), second);
}

#[tokio::test]
async fn a_repository_that_became_another_is_mirrored_anew() {
    let setting = Setting::new();
    let upstream = Git::new();
    upstream.commit("first");
    let repository = repository(&upstream.url(), None);
    setting.resolve(&repository).await;
    std::fs::remove_dir_all(upstream.path().join(".git")).expect("removes");
    upstream.run(&["init", "-q", "-b", "main", "--object-format=sha256", "."]);
    let commit = upstream.commit("of another kind");
    assert_eq!(setting.resolve(&repository).await.commit.as_str(), commit);
}

#[tokio::test]
async fn many_at_once_share_one_mirror() {
    let setting = Setting::new();
    let upstream = Git::new();
    let commit = upstream.commit("first");
    let repository = repository(&upstream.url(), None);
    // Another process sees the first one's locks only, as these do each other's.
    let other = setting.another();
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let mirrors = if number % 2 == 0 {
                setting.mirrors.clone()
            } else {
                other.clone()
            };
            let repository = repository.clone();
            tokio::spawn(async move {
                let at = mirrors.resolve(&repository).await.expect("resolves");
                let sink = tempfile::tempfile().expect("a file");
                mirrors
                    .checkout(&repository, (&at, &[]), Owner::default(), sink)
                    .await
                    .expect("checks out");
                at.commit
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.expect("ends").as_str(), commit);
    }
}

#[tokio::test]
async fn a_damaged_mirror_is_made_anew() {
    let setting = Setting::new();
    let upstream = Git::new();
    upstream.write("file", &"content\n".repeat(1000));
    upstream.commit("first");
    let repository = repository(&upstream.url(), None);
    let mirror = setting.mirror_of(&repository);
    let empty_packs = || {
        for pack in std::fs::read_dir(mirror.join("objects/pack")).expect("lists") {
            let pack = pack.expect("an entry").path();
            std::fs::set_permissions(&pack, PermissionsExt::from_mode(0o644)).expect("sets");
            File::create(&pack).expect("empties");
        }
    };
    let damages: [&dyn Fn(); 5] = [
        &|| drop(std::fs::remove_dir_all(mirror.join("objects"))),
        &|| drop(File::create(mirror.join("HEAD")).expect("empties")),
        &|| drop(File::create(mirror.join("config")).expect("empties")),
        &|| drop(std::fs::remove_dir_all(&mirror)),
        &empty_packs,
    ];
    for (number, damage) in damages.iter().enumerate() {
        let at = setting.resolve(&repository).await;
        // Between resolving and checking out …
        damage();
        assert_sound(&setting.checkout(&repository, &at).await);
        // … and before new commits come.
        damage();
        let commit = upstream.commit("another");
        let at = setting.resolve(&repository).await;
        assert_eq!(at.commit.as_str(), commit, "damage {number}");
        assert_sound(&setting.checkout(&repository, &at).await);
    }
}

#[tokio::test]
async fn what_a_killed_provider_left_stops_nobody() {
    let setting = Setting::new();
    let upstream = Git::new();
    upstream.commit("first");
    let repository = repository(&upstream.url(), None);
    let mirror = setting.mirror_of(&repository);
    // A mirror that was being made.
    std::fs::create_dir_all(mirror.with_extension("new").join("objects")).expect("a directory");
    setting.resolve(&repository).await;
    // A fetch that was under way.
    for lock in [
        "packed-refs.lock",
        "HEAD.lock",
        "config.lock",
        "refs/heads/main.lock",
    ] {
        std::fs::write(mirror.join(lock), "").expect("writes");
    }
    let part = mirror.join("objects/pack/tmp_pack_x");
    std::fs::write(&part, "part").expect("writes");
    // It may be that of a checkout which is just being made.
    let reader = File::open(&mirror).expect("it opens");
    reader.lock_shared().expect("nobody has it alone");
    let commit = upstream.commit("second");
    assert_eq!(setting.resolve(&repository).await.commit.as_str(), commit);
    assert!(part.exists());
    drop(reader);
    setting.resolve(&repository).await;
    assert!(!part.exists());
    assert!(!mirror.with_extension("new").exists());
}

#[tokio::test]
async fn many_small_packs_become_few() {
    let setting = Setting::new();
    let upstream = Git::new();
    upstream.commit("first");
    let repository = repository(&upstream.url(), None);
    setting.resolve(&repository).await;
    let packs = setting.mirror_of(&repository).join("objects/pack");
    // Packs of one object each, as small fetches leave them.
    for number in 0..=50 {
        let id = upstream.run_with_input(
            &["hash-object", "-w", "--stdin"],
            number.to_string().as_bytes(),
        );
        upstream.run_with_input(
            &[
                "pack-objects",
                "-q",
                packs.join("pack").to_str().expect("UTF-8"),
            ],
            id.as_bytes(),
        );
    }
    let commit = upstream.commit("second");
    assert_eq!(setting.resolve(&repository).await.commit.as_str(), commit);
    let left = std::fs::read_dir(&packs)
        .expect("lists")
        .filter_map(Result::ok);
    let left = left
        .filter(|entry| entry.path().extension().is_some_and(|name| name == "pack"))
        .count();
    assert!(left < 10, "{left} packs");
    assert_sound(&setting.fresh(&repository).await);
}

#[tokio::test]
async fn a_fetch_brings_everything_new_and_touches_nothing_local() {
    let setting = Setting::new();
    let upstream = Git::new();
    upstream.write("file", "1\n");
    let first = upstream.commit("first");
    upstream.run(&["tag", "-a", "-m", "t", "annotated"]);
    upstream.run(&["tag", "moves"]);
    let second = upstream.commit("second");
    upstream.run(&["branch", "goes-back"]);
    let repository = repository(&upstream.url(), None);
    let inside = setting.fresh(&repository).await;
    assert_eq!(
        setting.fetch(&repository, &inside).await,
        Bundle::NothingNew
    );

    inside.write("file", "changed by the agent\n");
    inside.write("untracked", "x");
    inside.run(&["checkout", "-q", "-b", "agent"]);
    inside.run(&["config", "fetch.prune", "true"]);
    inside.run(&["tag", "local-tag"]);
    upstream.write("file", "2\n");
    let third = upstream.commit("third");
    upstream.run(&["update-ref", "refs/heads/goes-back", &first]);
    upstream.run(&["update-ref", "refs/heads/HEAD", &first]);
    upstream.run(&["tag", "-f", "moves"]);
    upstream.run(&["tag", "new-tag", &first]);
    let at = setting.resolve(&repository).await;
    assert_eq!(at.commit.as_str(), third);
    assert_eq!(setting.fetch(&repository, &inside).await, Bundle::Written);

    for (name, commit) in [
        ("origin/main", &third),
        ("refs/remotes/origin/HEAD", &third),
        ("origin/goes-back", &first),
        ("refs/tags/moves", &third),
        ("refs/tags/new-tag", &first),
        ("refs/tags/local-tag", &second),
        ("main", &second),
        ("agent", &second),
        ("HEAD", &second),
    ] {
        assert_eq!(
            inside
                .run(&["rev-parse", &format!("{name}^{{commit}}")])
                .trim(),
            commit,
            "{name}"
        );
    }
    assert_eq!(
        inside.run(&["status", "--porcelain"]),
        " M file\n?? untracked\n"
    );
    inside.run(&["fsck", "--full"]);
    assert_eq!(
        setting.fetch(&repository, &inside).await,
        Bundle::NothingNew
    );

    // References alone, no object.
    upstream.run(&["update-ref", "refs/heads/goes-back", &second]);
    upstream.run(&["update-ref", "refs/heads/fresh", &first]);
    setting.resolve(&repository).await;
    assert_eq!(setting.fetch(&repository, &inside).await, Bundle::Written);
    assert_eq!(
        inside.run(&["rev-parse", "origin/goes-back"]).trim(),
        second
    );
    assert_eq!(inside.run(&["rev-parse", "origin/fresh"]).trim(), first);
}

#[tokio::test]
async fn a_bundle_for_unknown_or_no_commits_holds_everything() {
    let setting = Setting::new();
    let upstream = Git::new();
    let commit = upstream.commit("first");
    let repository = repository(&upstream.url(), None);
    let at = setting.resolve(&repository).await;
    let inside = Git::new();
    let unknown = inside.commit("of the agent's own");
    for have in [
        Have::default(),
        Have::from_iter([unknown.parse().expect("an id")]),
    ] {
        let path = inside.path().join(".git/bundle");
        let sink = File::create(&path).expect("a file");
        let bundle = setting
            .mirrors
            .bundle(&repository, &at, &have, sink)
            .await
            .expect("bundles");
        assert_eq!(bundle, Bundle::Written);
        inside.run(&["bundle", "verify", "-q", path.to_str().expect("UTF-8")]);
    }
    inside.run_argv(&fetch_command(
        inside.path().join(".git/bundle").to_str().expect("UTF-8"),
    ));
    assert_eq!(inside.run(&["rev-parse", "origin/main"]).trim(), commit);
    assert_eq!(
        Have::parse(b"\xff\n--x\n\n0123\n0123  refs/tags/x\n"),
        Have::default()
    );
}

#[tokio::test]
async fn a_name_that_no_mirror_can_have_keeps_nobody_from_the_others() {
    let setting = Setting::new();
    let upstream = Git::new();
    upstream.write("file", "1\n");
    let first = upstream.commit("first");
    // As where the upstream has no file for each; in its packed file git itself looks at no length.
    let long = format!("refs/heads/{}", "x".repeat(251));
    let packed = format!("# pack-refs with: peeled fully-peeled sorted \n{first} {long}\n");
    std::fs::write(upstream.path().join(".git/packed-refs"), packed).expect("writes");
    let fits = format!("refs/heads/{}", "y".repeat(250));
    upstream.run(&["update-ref", &fits, &first]);
    let all = repository(&upstream.url(), None);
    let inside = setting.fresh(&all).await;
    assert_sound(&inside);
    upstream.write("file", "2\n");
    let second = upstream.commit("second");
    setting.fetch(&all, &inside).await;
    assert_eq!(inside.run(&["rev-parse", "origin/main"]).trim(), second);
    let names = names(&inside);
    assert!(names.iter().any(|name| name.ends_with("yyy")), "{names:?}");
    assert!(!names.iter().any(|name| name.ends_with("xxx")), "{names:?}");
}

#[tokio::test]
async fn an_old_checkout_can_be_brought_to_where_a_new_one_would_be() {
    let setting = Setting::new();
    let upstream = Git::new();
    for name in ["file", "removed", "directory/x"] {
        upstream.write(name, "1\n");
    }
    upstream.commit("first");
    let old = repository(&upstream.url(), None);
    let inside = setting.fresh(&old).await;
    // What a setup script may have done.
    inside.write("file", "changed\n");
    inside.write("built", "x");
    inside.write("arrives", "in the way");

    upstream.run(&["rm", "-q", "-r", "removed", "directory"]);
    upstream.write("arrives", "2\n");
    upstream.write("directory", "now a file");
    upstream.commit("second");
    upstream.run(&["update-ref", "refs/heads/-x", "HEAD"]);
    upstream.run(&["tag", "v1"]);
    for name in ["main", "-x", "v1", "main"] {
        let repository = repository(&upstream.url(), Some(name));
        let at = setting.resolve(&repository).await;
        setting.fetch(&repository, &inside).await;
        for command in checkout_commands(&at) {
            inside.run_argv(&command);
        }
        inside.run_argv(&refresh_command());
        let fresh = setting.checkout(&repository, &at).await;
        assert_eq!(
            inside.run(&["status", "--porcelain", "--branch"]),
            format!(
                "{}?? built\n",
                fresh.run(&["status", "--porcelain", "--branch"])
            )
        );
        assert_eq!(
            inside.attempt(&["symbolic-ref", "HEAD"]),
            fresh.attempt(&["symbolic-ref", "HEAD"])
        );
        assert_eq!(
            inside.run(&["rev-parse", "HEAD"]),
            fresh.run(&["rev-parse", "HEAD"])
        );
    }
}

#[tokio::test]
async fn another_users_repository_is_trusted_when_it_is_configured_and_only_that_one() {
    let setting = Setting::new();
    let (upstream, neighbour) = (Git::new(), Git::new());
    for git in [&upstream, &neighbour] {
        git.commit("first");
        // Only root can give a directory away; for others this is a plain repository.
        if nix::unistd::geteuid().is_root() {
            for path in [git.path().to_owned(), git.path().join(".git")] {
                std::os::unix::fs::chown(path, Some(12345), Some(12345))
                    .expect("changes the owner");
            }
        }
    }
    let repository = repository(&upstream.url(), None);
    setting.resolve(&repository).await;
    let trusted = std::fs::read_to_string(setting.mirror_of(&repository).with_extension("conf"))
        .expect("reads");
    assert!(trusted.contains(&upstream.url()));
    assert!(
        !trusted.contains(&neighbour.url()) && !trusted.contains('*'),
        "{trusted}"
    );
}

#[tokio::test]
async fn what_is_not_a_repository_is_said_so() {
    let setting = Setting::new();
    let nothing = setting.dir.path().join("nothing");
    let directory = setting.scratch();
    for path in [nothing, directory] {
        let error = setting
            .mirrors
            .resolve(&repository(path.to_str().expect("UTF-8"), None))
            .await
            .expect_err("is none");
        assert!(
            matches!(error, GitError::NoSuchRepository { .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_checkout() {
    let setting = Setting::new();
    let upstream = Git::new();
    // More than a pipe holds.
    upstream.write("large", &"0123456789abcdef".repeat(20_000));
    upstream.commit("first");
    let repository = repository(&upstream.url(), None);
    let at = setting.resolve(&repository).await;
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let sink = File::from(std::os::fd::OwnedFd::from(writer));
    let error = setting
        .mirrors
        .checkout(&repository, (&at, &[]), Owner::default(), sink)
        .await
        .expect_err("is refused");
    assert!(matches!(error, GitError::Io { .. }), "{error}");
    assert_eq!(
        std::fs::read_dir(setting.scratch()).expect("lists").count(),
        0
    );
}

#[test]
fn versions_of_git_are_compared_as_numbers() {
    assert_eq!(parse_version("git version 2.47.3"), Some((2, 47)));
    assert_eq!(
        parse_version("git version 2.50.1 (Apple Git-155)"),
        Some((2, 50))
    );
    assert_eq!(parse_version("git version 3.0"), Some((3, 0)));
    assert_eq!(parse_version("hg 1.2"), None);
    assert!(parse_version("git version 2.9.5") < Some(OLDEST_GIT));
}
