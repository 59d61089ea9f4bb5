//! Repositories of a depth: what a workspace gets, what comes to it later, and mirrors that several share.

use super::http::Server;
use super::*;

fn of_depth(depth: u32, url: &str, reference: Option<&str>) -> Repository {
    let fields = serde_json::json!({
        "url": url,
        "path": "/r",
        "reference": reference,
        "depth": depth,
    });
    serde_json::from_value(fields).expect("a repository")
}

/// Commits `1` to `count` of one file on the current branch.
fn commits_on(upstream: &Git, range: std::ops::RangeInclusive<u32>) -> String {
    let mut last = String::new();
    for number in range {
        upstream.write("file", &number.to_string());
        last = upstream.commit(&number.to_string());
    }
    last
}

/// Twelve commits on `main`, with a side branch that was merged.
fn upstream_with_a_merge() -> Git {
    let upstream = Git::new();
    commits_on(&upstream, 1..=4);
    upstream.run(&["switch", "-q", "-c", "side"]);
    for number in 0..3 {
        upstream.write("side", &number.to_string());
        upstream.commit(&format!("side {number}"));
    }
    upstream.run(&["switch", "-q", "main"]);
    commits_on(&upstream, 5..=6);
    upstream.run(&["merge", "-q", "--no-edit", "side"]);
    commits_on(&upstream, 7..=10);
    upstream
}

fn shallow(of: &Git, path: &str) -> Vec<String> {
    let text = std::fs::read_to_string(of.path().join(path)).unwrap_or_default();
    let mut ids: Vec<_> = text.lines().map(str::to_owned).collect();
    ids.sort();
    ids
}

fn count(of: &Git, what: &str) -> usize {
    let printed = of.run(&["rev-list", "--count", what]);
    printed.trim().parse().expect("a number")
}

fn log(of: &Git) -> Vec<String> {
    let subjects = of.run(&["log", "--format=%s"]);
    subjects.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_workspace_of_a_depth_has_what_a_clone_of_it_has_and_works() {
    let setting = Setting::new();
    let upstream = upstream_with_a_merge();
    upstream.run(&["tag", "-m", "words", "v1", "main~2"]);
    let secret = upstream.run(&["rev-parse", "main~7"]);
    for (depth, reference) in [
        (1, None),
        (2, Some("side")),
        (3, Some("v1")),
        (5, None),
        (6, None),
        (7, None),
        (200, None),
    ] {
        let repository = of_depth(depth, &upstream.url(), reference);
        let inside = setting.fresh(&repository).await;
        assert_sound(&inside);
        let clone = Git::somewhere();
        let url = format!("file://{}", upstream.url());
        let (depth, branch) = (depth.to_string(), reference.unwrap_or("main"));
        clone.run(&[
            "clone", "-q", "--depth", &depth, "--branch", branch, &url, "c",
        ]);
        assert_eq!(
            shallow(&inside, ".git/shallow"),
            shallow(&clone, "c/.git/shallow"),
            "{depth} of {branch}"
        );
        let same = clone.run(&["-C", "c", "rev-list", "HEAD"]);
        assert_eq!(inside.run(&["rev-list", "HEAD"]), same);
        // What nothing leads to is not there either.
        assert_eq!(commits(&inside).len(), same.lines().count());
        if depth != "200" {
            assert!(!inside.attempt(&["cat-file", "-e", secret.trim()]).0);
        }
        inside.write("mine", "x");
        inside.commit("mine");
        assert_eq!(count(&inside, "HEAD"), same.lines().count() + 1);
        inside.run(&["fsck", "--strict"]);
    }
}

#[tokio::test]
async fn without_history_a_depth_says_what_is_had_of_the_upstream() {
    let setting = Setting::new();
    let upstream = upstream_with_a_merge();
    let repository = Repository {
        history: crate::config::History::None,
        ..of_depth(1, &upstream.url(), None)
    };
    let inside = setting.fresh(&repository).await;
    assert_sound(&inside);
    assert!(shallow(&inside, ".git/shallow").is_empty());
    assert_eq!(count(&inside, "HEAD"), 1);
    let mirror = setting.mirror_of(&repository);
    assert_eq!(count_in(&upstream, &mirror, "main"), 1);
}

fn count_in(git: &Git, mirror: &Path, what: &str) -> usize {
    let mirror = mirror.to_str().expect("UTF-8");
    let printed = git.run(&["--git-dir", mirror, "rev-list", "--count", what]);
    printed.trim().parse().expect("a number")
}

#[tokio::test]
async fn references_of_one_depth_share_a_mirror_and_cut_nothing_off_each_other() {
    let setting = Setting::new();
    let upstream = upstream_with_a_merge();
    let url = upstream.url();
    let middle = upstream.run(&["rev-parse", "main~3"]).trim().to_owned();
    let wanted = [None, Some("side"), Some(middle.as_str())];
    let mut seen = Vec::new();
    // Each twice, so that each comes after each.
    for _ in 0..2 {
        for reference in wanted {
            let inside = setting.fresh(&of_depth(4, &url, reference)).await;
            assert_sound(&inside);
            seen.push((reference, log(&inside)));
        }
    }
    for (reference, log) in &seen {
        let name = reference.unwrap_or("main");
        let clone = Git::somewhere();
        clone.run(&["init", "-q", "."]);
        let url = format!("file://{url}");
        clone.run(&["fetch", "-q", "--depth=4", &url, name]);
        clone.run(&["reset", "-q", "--hard", "FETCH_HEAD"]);
        assert_eq!(*log, self::log(&clone), "{name}");
    }
    let mirror = setting.mirror_of(&of_depth(4, &url, None));
    for other in [of_depth(5, &url, None), repository(&url, None)] {
        assert_ne!(setting.mirror_of(&other), mirror);
    }
    let plain = Upstream::parse(&url).expect("a URL").digest();
    assert_eq!(
        super::super::mirror_of(&repository(&url, None)),
        Some(plain)
    );
    // The mirror has less than all.
    assert!(count_in(&upstream, &mirror, "main") < count(&upstream, "main"));
    // A branch that went is not found any more, and one that is found is what the upstream has.
    upstream.run(&["branch", "-q", "-D", "side"]);
    let gone = setting
        .mirrors
        .resolve(&of_depth(4, &url, Some("side")))
        .await;
    assert!(
        matches!(gone, Err(GitError::NoSuchReference { .. })),
        "{gone:?}"
    );
    upstream.run(&["branch", "-q", "side", "main~4"]);
    let again = setting.resolve(&of_depth(4, &url, Some("side"))).await;
    assert_eq!(
        again.commit.as_str(),
        upstream.run(&["rev-parse", "side"]).trim()
    );
}

#[tokio::test]
async fn new_commits_come_connected_to_what_is_there() {
    let setting = Setting::new();
    let upstream = Git::new();
    commits_on(&upstream, 1..=5);
    let repository = of_depth(1, &upstream.url(), None);
    let inside = setting.fresh(&repository).await;
    let first = setting.resolve(&repository).await;
    assert_eq!(log(&inside), ["5"]);
    // More than the depth, and one more.
    for (range, known) in [(6..=45, 41), (46..=46, 42)] {
        let last = commits_on(&upstream, range);
        assert_eq!(setting.fetch(&repository, &inside).await, Bundle::Written);
        assert_eq!(inside.run(&["rev-parse", "origin/main"]).trim(), last);
        assert_eq!(count(&inside, "origin/main"), known);
        inside.run(&["merge", "-q", "--ff-only", "origin/main"]);
        assert_sound(&inside);
    }
    assert_eq!(
        setting.fetch(&repository, &inside).await,
        Bundle::NothingNew
    );
    // What a workspace says of itself costs nobody else anything.
    let ends = inside.path().join(".git/shallow");
    let odd = format!("{}\n{}\nx\n", "1".repeat(64), "2".repeat(40));
    let odd = [odd.into_bytes(), std::fs::read(&ends).expect("reads")].concat();
    commits_on(&upstream, 47..=47);
    let at = setting.resolve(&repository).await;
    let head = inside.run(&["rev-parse", "HEAD"]);
    let mut have = Have::from_iter([head.trim().parse().expect("an id")]);
    have.ends_at(&odd);
    let sink = tempfile::tempfile().expect("a file");
    let written = setting.mirrors.bundle(&repository, &at, &have, sink).await;
    assert!(matches!(written, Ok(Bundle::Written)), "{written:?}");
    let now = setting.resolve(&repository).await;
    let leads = setting
        .mirrors
        .leads_to(&repository, &now.commit, &first.commit);
    assert!(leads.await.expect("answers"));
    // A fresh one has its depth and no more.
    assert_eq!(log(&setting.fresh(&repository).await), ["47"]);
    assert!(
        setting
            .fresh(&repository)
            .await
            .path()
            .join(".git/shallow")
            .exists()
    );
}

#[tokio::test]
async fn what_does_not_connect_is_said_so_and_a_new_workspace_has_it() {
    let setting = Setting::new();
    let upstream = Git::new();
    // Deeper than anybody looks for what connects.
    let mut stream = String::new();
    for number in 0..2200 {
        let who = "committer A <a@example.org> 1700000000 +0000\ndata";
        let (text, length) = (number.to_string(), number.to_string().len());
        stream.push_str(&format!(
            "commit refs/heads/main\n{who} {length}\n{text}\nM 100644 inline file\ndata {length}\n{text}\n"
        ));
    }
    upstream.run_with_input(&["fast-import", "--quiet"], stream.as_bytes());
    upstream.run(&["reset", "-q", "--hard"]);
    let repository = of_depth(2, &upstream.url(), None);
    let inside = setting.fresh(&repository).await;
    let old = setting.resolve(&repository).await;
    // Rewritten from below of what is there.
    upstream.run(&["reset", "-q", "--hard", "HEAD~4"]);
    commits_on(&upstream, 9990..=9999);
    let at = setting.resolve(&repository).await;
    let refused = setting.bring(&repository, &at, &inside).await;
    assert!(
        matches!(refused, Err(GitError::Unconnected { .. })),
        "{refused:?}"
    );
    assert_sound(&inside);
    let leads = setting
        .mirrors
        .leads_to(&repository, &at.commit, &old.commit);
    assert!(!leads.await.expect("answers"));
    assert_eq!(log(&setting.fresh(&repository).await), ["9999", "9998"]);

    // A merge of what lies below of what a workspace has: all that it lacks, or nothing.
    let inside = setting.fresh(&repository).await;
    upstream.run(&["switch", "-q", "-c", "old", "main~8"]);
    upstream.write("old", "x");
    upstream.commit("old");
    upstream.run(&["switch", "-q", "main"]);
    upstream.run(&["merge", "-q", "--no-edit", "old"]);
    let at = setting.resolve(&repository).await;
    match setting.bring(&repository, &at, &inside).await {
        Ok(_) => {
            inside.run(&["merge", "-q", "--ff-only", "origin/main"]);
            assert_sound(&inside);
        }
        Err(error) => assert!(matches!(error, GitError::Unconnected { .. }), "{error}"),
    }
    // Amended, where the one before it is there.
    let inside = setting.fresh(&repository).await;
    upstream.run(&["reset", "-q", "--hard", "HEAD~1"]);
    let before = setting.fresh(&repository).await;
    upstream.run(&["commit", "-q", "--amend", "-m", "amended"]);
    setting.fetch(&repository, &before).await;
    before.run(&["fsck", "--strict"]);
    assert_eq!(
        before.run(&["log", "-1", "--format=%s", "origin/main"]),
        "amended\n"
    );
    drop(inside);
}

#[tokio::test]
async fn mirrors_of_a_depth_are_made_anew_where_they_are_damaged() {
    let setting = Setting::new();
    let upstream = upstream_with_a_merge();
    let repository = of_depth(3, &upstream.url(), None);
    let mirror = setting.mirror_of(&repository);
    let empty_packs = || {
        for pack in std::fs::read_dir(mirror.join("objects/pack")).expect("lists") {
            let pack = pack.expect("an entry").path();
            std::fs::set_permissions(&pack, PermissionsExt::from_mode(0o644)).expect("sets");
            File::create(&pack).expect("empties");
        }
    };
    let damages: [&dyn Fn(); 4] = [
        &|| drop(std::fs::remove_dir_all(&mirror)),
        &empty_packs,
        &|| drop(File::create(mirror.join("config")).expect("empties")),
        &|| drop(std::fs::remove_file(mirror.join("shallow"))),
    ];
    for (number, damage) in damages.iter().enumerate() {
        let at = setting.resolve(&repository).await;
        damage();
        let inside = setting.checkout(&repository, &at).await;
        assert_sound(&inside);
        damage();
        commits_on(&upstream, 20..=21);
        let inside = setting.fresh(&repository).await;
        assert_sound(&inside);
        assert_eq!(count(&inside, "HEAD"), 3, "damage {number}");
    }
}

#[tokio::test]
async fn a_mirror_of_a_depth_is_made_anew_while_others_want_to_read_it() {
    let setting = Setting::new();
    let upstream = upstream_with_a_merge();
    let repository = of_depth(3, &upstream.url(), None);
    let at = setting.resolve(&repository).await;
    let mirror = setting.mirrors.mirror_for(&repository).expect("a URL");
    let lock = mirror.lock().await.expect("locks");
    let anew = async {
        let access = Access::of(&repository).await.expect("no credentials");
        let made = mirror.rebuild(&lock, access, &at.commit).await;
        made.expect("makes it anew");
        drop(lock);
    };
    let checkouts = (0..3).map(|_| {
        let sink = tempfile::tempfile().expect("a file");
        let what = (&at, [].as_slice());
        let mirrors = &setting.mirrors;
        mirrors.checkout(&repository, what, Owner::default(), sink)
    });
    let have = Have::from_iter([at.commit.clone()]);
    let sink = tempfile::tempfile().expect("a file");
    let bundle = setting.mirrors.bundle(&repository, &at, &have, sink);
    // They begin to wait first.
    let all = async { tokio::join!(futures_util::future::join_all(checkouts), bundle, anew) };
    let ended = tokio::time::timeout(std::time::Duration::from_secs(120), all).await;
    let (checkouts, bundle, ()) = ended.expect("comes to an end");
    for checkout in checkouts {
        checkout.expect("checks out");
    }
    assert_eq!(bundle.expect("bundles"), Bundle::Written);
}

#[tokio::test]
async fn what_a_fetch_notes_before_it_is_tidied_cuts_no_history_off() {
    let setting = Setting::new();
    let upstream = upstream_with_a_merge();
    let repository = of_depth(4, &upstream.url(), None);
    let at = setting.resolve(&repository).await;
    let old: CommitId = upstream
        .run(&["rev-parse", "main~2"])
        .trim()
        .parse()
        .expect("an id");
    let mirror = setting.mirrors.mirror_for(&repository).expect("a URL");
    let shallow = mirror.path().join("shallow");
    let tidy = std::fs::read(&shallow).expect("reads");
    let lock = mirror.lock().await.expect("locks");
    std::fs::write(&shallow, format!("{}\n", at.commit)).expect("writes");
    assert!(!mirror.leads_to(&at.commit, &old).await.expect("answers"));
    let fetch = async {
        // As long as who does not wait takes to answer, and longer.
        for _ in 0..20 {
            mirror.refs().await.expect("lists");
        }
        std::fs::write(&shallow, tidy).expect("writes");
        drop(lock);
    };
    let leads = setting.mirrors.leads_to(&repository, &at.commit, &old);
    let (leads, ()) = tokio::join!(leads, fetch);
    assert!(leads.expect("answers"));
}

#[tokio::test]
async fn a_push_makes_a_mirror_of_a_depth_anew_with_what_the_workspace_started_from() {
    let setting = Setting::new();
    let upstream = upstream_with_a_merge();
    let repository = of_depth(3, &upstream.url(), None);
    let at = setting.resolve(&repository).await;
    let mirror = setting.mirrors.mirror_for(&repository).expect("a URL");
    let gone = "1".repeat(40).parse().expect("an id");
    let bases = [at.commit.clone(), gone];
    let damages: [&dyn Fn(); 2] = [
        &|| std::fs::remove_dir_all(mirror.path()).expect("removes"),
        &|| drop(File::create(mirror.path().join("HEAD")).expect("empties")),
    ];
    for damage in damages {
        for branch in ["main", "a-new-one"] {
            damage();
            let lock = mirror.lock().await.expect("locks");
            let access = Access::of(&repository).await.expect("no credentials");
            let fresh = mirror.refresh(&lock, access, (branch, &bases)).await;
            fresh.expect("makes it anew");
            let found = mirror.peeled(at.commit.as_str()).await.expect("answers");
            assert_eq!(found.as_ref(), Some(&at.commit), "{branch}");
        }
    }
}

#[tokio::test]
async fn a_shallow_upstream_and_one_of_sha256_can_be_of_a_depth() {
    let setting = Setting::new();
    let upstream = upstream_with_a_merge();
    let clone = Git::somewhere();
    let url = format!("file://{}", upstream.url());
    clone.run(&["clone", "-q", "--depth=3", &url, "."]);
    for (depth, commits) in [(2, 2), (3, 3), (5, 3)] {
        let inside = setting.fresh(&of_depth(depth, &clone.url(), None)).await;
        assert_sound(&inside);
        assert_eq!(count(&inside, "HEAD"), commits);
    }
    let upstream = Git::with_format("sha256");
    commits_on(&upstream, 1..=4);
    let inside = setting.fresh(&of_depth(2, &upstream.url(), None)).await;
    assert_sound(&inside);
    assert_eq!(log(&inside), ["4", "3"]);
}

#[tokio::test]
async fn a_server_that_lies_about_where_a_history_ends_gets_nobody_anything_else() {
    let upstreams = TempDir::new().expect("a directory");
    let server = Server::start(upstreams.path(), "");
    let upstream = upstream_with_a_merge();
    let bare = upstreams.path().join("r.git");
    let bare = bare.to_str().expect("UTF-8");
    upstream.run(&["clone", "-q", "--bare", ".", bare]);
    let repository = Repository {
        depth: std::num::NonZeroU32::new(3),
        ..server.repository("lying/r.git", None)
    };
    let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
    let id = |what: &str| upstream.run(&["rev-parse", what]).trim().to_owned();
    let (tip, below) = (id("main"), id("main~6"));
    for lies in [
        // Commits that are not there, the tip, one in the middle, a tree, one far below; and no id at all.
        line(&format!("shallow {}", "1".repeat(40))),
        line(&format!("shallow {tip}")),
        line(&format!("shallow {}", id("main~1"))),
        line(&format!("shallow {}", id("main^{tree}"))),
        line(&format!("shallow {below}")),
        line(&format!("unshallow {below}")),
        line("shallow ../../../../etc/passwd"),
        line("shallow 1\n2"),
    ] {
        *server.narrow.lies.lock().expect("nobody panicked") = lies.clone().into_bytes();
        let setting = Setting::new();
        for _ in 0..2 {
            let Ok(at) = setting.mirrors.resolve(&repository).await else {
                continue;
            };
            let inside = setting.checkout(&repository, &at).await;
            assert_sound(&inside);
            // No more than was asked for, and all of what is said to be there.
            assert!(count(&inside, "HEAD") <= 3, "{lies}");
            assert!(!inside.attempt(&["cat-file", "-e", &below]).0, "{lies}");
        }
        // What it did is over when it tells the truth.
        server.narrow.lies.lock().expect("nobody panicked").clear();
        upstream.write("file", &lies);
        upstream.commit("more");
        upstream.run(&["push", "-q", bare, "main"]);
        let inside = setting.fresh(&repository).await;
        assert_sound(&inside);
        assert_eq!(count(&inside, "HEAD"), 3, "{lies}");
    }
}

#[tokio::test]
async fn a_server_that_gives_more_than_it_is_asked_for_gives_it_to_no_workspace() {
    let upstreams = TempDir::new().expect("a directory");
    let server = Server::start(upstreams.path(), "");
    let upstream = upstream_with_a_merge();
    let bare = upstreams.path().join("r.git");
    let bare = bare.to_str().expect("UTF-8");
    upstream.run(&["clone", "-q", "--bare", ".", bare]);
    let repository = Repository {
        depth: std::num::NonZeroU32::new(3),
        ..server.repository("generous/r.git", None)
    };
    let setting = Setting::new();
    let inside = setting.fresh(&repository).await;
    let all = count(&upstream, "main");
    assert_eq!(
        count_in(&upstream, &setting.mirror_of(&repository), "main"),
        all,
        "it did not give more"
    );
    assert_sound(&inside);
    assert_eq!(
        (commits(&inside).len(), log(&inside)),
        (3, log(&upstream)[..3].to_vec())
    );
    commits_on(&upstream, 60..=70);
    upstream.run(&["push", "-q", bare, "main"]);
    setting.fetch(&repository, &inside).await;
    assert_eq!(count(&inside, "origin/main"), 14);
    inside.run(&["fsck", "--strict"]);
}
