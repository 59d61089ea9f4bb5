//! Submodules, of well-meaning repositories and of hostile ones.

use super::*;

/// Has `of` name the commit of `sub` at `path`, by this URL, without committing.
pub(super) fn name(of: &Git, path: &str, url: &str, commit: &str) {
    let file = of.path().join(".gitmodules");
    let before = std::fs::read_to_string(&file).unwrap_or_default();
    let named = format!("{before}[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n");
    std::fs::write(file, named).expect("writes");
    let entry = format!("160000,{commit},{path}");
    of.run(&["update-index", "--add", "--cacheinfo", &entry]);
    of.run(&["add", ".gitmodules"]);
}

pub(super) fn commit_index(of: &Git, message: &str) -> String {
    of.run(&["commit", "-q", "-m", message]);
    of.run(&["rev-parse", "HEAD"]).trim().to_owned()
}

fn with_submodules(url: &str, allowed: Option<&[&str]>) -> Repository {
    let fields = serde_json::json!({
        "url": url, "path": "/r", "submodules": true, "submodule_urls": allowed,
    });
    serde_json::from_value(fields).expect("a repository")
}

impl Setting {
    pub(super) async fn with_all(
        &self,
        repository: &Repository,
        config: &[Repository],
    ) -> Result<Git, GitError> {
        let at = self.mirrors.resolve(repository).await?;
        let submodules = self.mirrors.submodules(repository, &at, config).await?;
        Ok(self.unpack(repository, (&at, &submodules)).await)
    }
}

#[tokio::test]
async fn submodules_come_at_the_commit_that_is_named_and_without_its_future() {
    let setting = Setting::new();
    let (top, sub, deep) = (Git::new(), Git::new(), Git::new());
    deep.write("file", "deep\n");
    let in_the_deep = deep.commit("deep");
    sub.write("file", "sub\n");
    sub.commit("sub");
    name(&sub, "in/the/deep", &deep.url(), &in_the_deep);
    let wanted = commit_index(&sub, "with a submodule");
    sub.write("file", "later\n");
    let later = sub.commit("later");
    top.write("file", "top\n");
    top.commit("top");
    name(&top, "a b/sub", &sub.url(), &wanted);
    commit_index(&top, "with a submodule");

    let parents: Vec<String> = [&sub, &deep].map(Git::url).into();
    let allowed: Vec<&str> = parents.iter().map(String::as_str).collect();
    let repository = with_submodules(&top.url(), Some(&allowed));
    let inside = setting
        .with_all(&repository, &[])
        .await
        .expect("is allowed");
    assert_sound(&inside);
    let status = inside.run(&["submodule", "status", "--recursive"]);
    let lines: Vec<&str> = status
        .lines()
        .map(|line| line.split(" (").next().unwrap_or(line))
        .collect();
    assert_eq!(
        lines,
        [
            format!(" {wanted} a b/sub"),
            format!(" {in_the_deep} a b/sub/in/the/deep")
        ]
    );
    for (path, content) in [
        ("a b/sub/file", "sub\n"),
        ("a b/sub/in/the/deep/file", "deep\n"),
    ] {
        let read = std::fs::read_to_string(inside.path().join(path)).expect("is there");
        assert_eq!(read, content);
    }
    assert_eq!(
        bytes_below(inside.path(), later.as_bytes()),
        Vec::<PathBuf>::new()
    );
    // Which is in the mirror.
    let known = setting.mirror_of(&super::repository(&sub.url(), None));
    assert!(known.exists());

    // Unless they are wanted their places are empty.
    let without = setting.fresh(&super::repository(&top.url(), None)).await;
    assert_eq!(
        std::fs::read_dir(without.path().join("a b/sub"))
            .expect("lists")
            .count(),
        0
    );
}

#[tokio::test]
async fn a_submodule_from_elsewhere_is_refused() {
    let setting = Setting::new();
    let (top, secret) = (Git::new(), Git::new());
    secret.write("file", "canary-of-the-host");
    let commit = secret.commit("secret");
    name(&top, "sub", &secret.url(), &commit);
    commit_index(&top, "first");
    let elsewhere = setting.scratch();
    let elsewhere = elsewhere.to_str().expect("UTF-8");
    for allowed in [None, Some(&[][..]), Some(&[elsewhere][..])] {
        let error = setting
            .with_all(&with_submodules(&top.url(), allowed), &[])
            .await;
        let error = error.err().expect("is refused");
        assert!(matches!(error, GitError::Submodule { .. }), "{error}");
    }
    // What is refused is not even looked at.
    assert!(!setting.mirror_of(&repository(&secret.url(), None)).exists());
    let url = secret.url();
    let allowed = with_submodules(&top.url(), Some(&[url.as_str()]));
    setting.with_all(&allowed, &[]).await.expect("is allowed");
}

#[tokio::test]
async fn a_list_of_submodules_reads_no_file_of_the_host() {
    let setting = Setting::new();
    let (top, sub) = (Git::new(), Git::new());
    let commit = sub.commit("sub");
    let included = setting.dir.path().join("included");
    let listed = format!("[submodule \"sub\"]\n\tpath = sub\n\turl = {}\n", sub.url());
    std::fs::write(&included, listed).expect("writes");
    top.write(
        ".gitmodules",
        &format!("[include]\n\tpath = {}\n", included.display()),
    );
    top.run(&[
        "update-index",
        "--add",
        "--cacheinfo",
        &format!("160000,{commit},sub"),
    ]);
    top.run(&["add", ".gitmodules"]);
    commit_index(&top, "first");
    // git reads it there unless it is told not to.
    let read = top.run(&["config", "--blob=HEAD:.gitmodules", "--includes", "--list"]);
    assert!(read.contains("submodule.sub.url"), "{read}");

    let url = sub.url();
    let repository = with_submodules(&top.url(), Some(&[url.as_str()]));
    let inside = setting
        .with_all(&repository, &[])
        .await
        .expect("is allowed");
    assert_eq!(
        std::fs::read_dir(inside.path().join("sub"))
            .expect("lists")
            .count(),
        0
    );
}

#[tokio::test]
async fn hostile_lists_of_submodules_are_refused() {
    let setting = Setting::new();
    let sub = Git::new();
    let commit = sub.commit("sub");
    let url = sub.url();
    let one = |name: &str, path: &str| {
        format!("[submodule \"{name}\"]\n\tpath = {path}\n\turl = {url}\n")
    };
    let many = (0..300).map(|number| one(&number.to_string(), &format!("s{number}")));
    for (list, refused_by_git) in [
        // When it is fetched.
        (one("../../hooks", "sub"), true),
        (one("s", "../outside"), false),
        (one("s", ".git/hooks"), false),
        (one("s", "/etc"), false),
        ("not a config [".to_owned(), false),
        (many.collect(), false),
        (format!("[x]\n\ty = {}\n", "z".repeat(2 << 20)), false),
    ] {
        let top = Git::new();
        top.write(".gitmodules", &list);
        top.commit("list");
        let allowed = with_submodules(&top.url(), Some(&[url.as_str()]));
        let error = setting.with_all(&allowed, &[]).await;
        let start = &list[..list.len().min(60)];
        let error = error.err().unwrap_or_else(|| panic!("{start:?} is taken"));
        let right = match refused_by_git {
            true => matches!(error, GitError::Malformed { .. }),
            false => matches!(error, GitError::Submodule { .. }),
        };
        assert!(right, "{start:?}: {error}");
    }

    // A link where a submodule is said to be, which leads out.
    let top = Git::new();
    symlink("/etc", top.path().join("link")).expect("a link");
    top.run(&["add", "--all"]);
    top.write(".gitmodules", &(one("s", "link") + &one("t", "link/sub")));
    top.commit("first");
    let allowed = with_submodules(&top.url(), Some(&[url.as_str()]));
    let inside = setting.with_all(&allowed, &[]).await.expect("has none");
    assert!(inside.path().join("link").is_symlink());

    // A tree that has the link and the submodule at once.
    let blob = top.run_with_input(&["hash-object", "-w", "--stdin"], b"/etc");
    let below = top.run_with_input(
        &["mktree", "--missing"],
        format!("160000 commit {commit}\tsub\n").as_bytes(),
    );
    let list = top.run(&["rev-parse", "HEAD:.gitmodules"]);
    let mut tree = Vec::new();
    for (mode, id, name) in [
        ("100644", &list, ".gitmodules"),
        ("120000", &blob, "link"),
        ("40000", &below, "link"),
    ] {
        tree.extend(format!("{mode} {name}\0").into_bytes());
        let id = id.trim();
        tree.extend(
            (0..20).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).expect("digits")),
        );
    }
    let tree = top.run_with_input(
        &["hash-object", "--literally", "-t", "tree", "-w", "--stdin"],
        &tree,
    );
    let commit = top.run(&["commit-tree", "-m", "both", tree.trim()]);
    top.run(&["update-ref", "refs/heads/main", commit.trim()]);
    let error = setting
        .with_all(&allowed, &[])
        .await
        .err()
        .expect("is refused");
    let right = matches!(
        error,
        GitError::Submodule { .. } | GitError::Malformed { .. } | GitError::Other { .. }
    );
    assert!(right, "{error}");
}

#[tokio::test]
async fn submodules_are_not_followed_for_ever() {
    let setting = Setting::new();
    let top = Git::new();
    let mut commit = top.commit("0");
    let url = top.url();
    for depth in 1..=9 {
        let _ = std::fs::remove_file(top.path().join(".gitmodules"));
        name(&top, "self", &url, &commit);
        commit = commit_index(&top, &depth.to_string());
        let allowed = with_submodules(&url, Some(&[url.as_str()]));
        let taken = setting.with_all(&allowed, &[]).await;
        assert_eq!(taken.is_ok(), depth <= 8, "{depth}: {:?}", taken.err());
    }
}

/// The packs of a mirror.
fn packs(of: &Path) -> Vec<PathBuf> {
    let packs = std::fs::read_dir(of.join("objects/pack")).expect("lists");
    let packs = packs.map(|pack| pack.expect("an entry").path());
    let packs: Vec<_> = packs
        .filter(|path| path.extension().is_some_and(|name| name == "pack"))
        .collect();
    assert!(!packs.is_empty());
    packs
}

/// A way in which a disk or a person damages a mirror.
type Damage = (&'static str, fn(&Path));

const DAMAGES: &[Damage] = &[
    ("all of it", |mirror| {
        std::fs::remove_dir_all(mirror).expect("removes");
    }),
    ("its packs", |mirror| {
        for pack in packs(mirror) {
            std::fs::remove_file(pack).expect("removes");
        }
    }),
    ("its packs and what finds in them", |mirror| {
        std::fs::remove_dir_all(mirror.join("objects/pack")).expect("removes");
    }),
    ("the end of its packs", |mirror| {
        for pack in packs(mirror) {
            std::fs::set_permissions(&pack, PermissionsExt::from_mode(0o644)).expect("sets");
            let file = File::options().write(true).open(pack).expect("opens");
            let length = file.metadata().expect("is there").len();
            file.set_len(length / 2).expect("cuts");
        }
    }),
];

#[tokio::test]
async fn the_damaged_mirror_of_a_submodule_is_made_anew() {
    let setting = Setting::new();
    let (top, sub, deep) = (Git::new(), Git::new(), Git::new());
    deep.write("file", &"deep\n".repeat(1000));
    let in_the_deep = deep.commit("deep");
    sub.write("file", &"sub\n".repeat(1000));
    sub.commit("sub");
    name(&sub, "deep", &deep.url(), &in_the_deep);
    let wanted = commit_index(&sub, "with a submodule");
    name(&top, "sub", &sub.url(), &wanted);
    commit_index(&top, "with a submodule");
    let urls = [sub.url(), deep.url()];
    let repository = with_submodules(&top.url(), Some(&[&urls[0], &urls[1]]));
    let sound = |inside: &Git| {
        for (place, content) in [(".", ""), ("sub", "sub\n"), ("sub/deep", "deep\n")] {
            assert_eq!(inside.run(&["-C", place, "status", "--porcelain"]), "");
            inside.run(&["-C", place, "fsck", "--full", "--strict"]);
            let file = inside.path().join(place).join("file");
            assert!(std::fs::read_to_string(file).unwrap_or_default() == content.repeat(1000));
        }
    };
    let head = |of: &Git| -> CommitId {
        let head = of.run(&["rev-parse", "HEAD"]);
        head.trim().parse().expect("an id")
    };

    sound(
        &setting
            .with_all(&repository, &[])
            .await
            .expect("is allowed"),
    );
    for (what, damage) in DAMAGES {
        for upstream in [&top, &sub, &deep] {
            let mirror = setting.mirror_of(&super::repository(&upstream.url(), None));
            // Before it is looked at …
            damage(&mirror);
            let inside = setting.with_all(&repository, &[]).await;
            sound(&inside.unwrap_or_else(|error| panic!("without {what}: {error}")));
            // … and between that and the checkout.
            let at = setting.resolve(&repository).await;
            let all = setting.mirrors.submodules(&repository, &at, &[]).await;
            damage(&mirror);
            sound(
                &setting
                    .unpack(&repository, (&at, &all.expect("finds")))
                    .await,
            );
            // For what has nothing of it, too.
            damage(&mirror);
            let own = super::repository(&upstream.url(), None);
            let own_at = Resolved {
                commit: head(upstream),
                reference: Reference::Commit,
            };
            let sink = tempfile::NamedTempFile::new().expect("a file");
            let file = sink.reopen().expect("a descriptor");
            let written = setting
                .mirrors
                .bundle(&own, &own_at, &Have::default(), file)
                .await;
            assert_eq!(written.expect("bundles"), Bundle::Written);
            let inside = Git::new();
            inside.run_argv(&fetch_command(sink.path().to_str().expect("UTF-8")));
            inside.run(&["fsck", "--full", "--strict"]);
            inside.run(&["cat-file", "-e", own_at.commit.as_str()]);
        }
    }
}

#[tokio::test]
async fn what_cannot_be_mended_is_said_and_leaves_nothing_half_done() {
    for (what, damage) in DAMAGES {
        let setting = Setting::new();
        let (top, sub) = (Git::new(), Git::new());
        sub.write("file", &"sub\n".repeat(1000));
        let wanted = sub.commit("sub");
        name(&top, "sub", &sub.url(), &wanted);
        commit_index(&top, "with a submodule");
        let url = sub.url();
        let repository = with_submodules(&top.url(), Some(&[&url]));
        let at = setting.resolve(&repository).await;
        let all = setting.mirrors.submodules(&repository, &at, &[]).await;
        let all = all.expect("finds");
        damage(&setting.mirror_of(&super::repository(&url, None)));
        let aside = sub.path().with_extension("aside");
        std::fs::rename(sub.path(), &aside).expect("moves");

        let sink = tempfile::tempfile().expect("a file");
        let scratch = setting.scratch();
        let checkout = setting.mirrors.checkout(
            &repository,
            (&at, &all),
            Owner::default(),
            sink.try_clone().expect("a descriptor"),
        );
        let error = checkout.await.expect_err(what);
        let named = matches!(&error, GitError::NoSuchRepository { url: gone } if *gone == url);
        assert!(named, "without {what}: {error}");
        assert_eq!(sink.metadata().expect("is there").len(), 0, "{what}");
        assert_eq!(
            std::fs::read_dir(&scratch).expect("lists").count(),
            0,
            "{what}"
        );
        // All is well again when the upstream is there again.
        std::fs::rename(&aside, sub.path()).expect("moves");
        assert_sound(&setting.with_all(&repository, &[]).await.expect("mends"));
    }
}
