//! Transfers that break: they go on in steps, and later attempts from where the ones before them ended.

use std::sync::atomic::Ordering;

use super::http::Server;
use super::*;

/// An upstream of many commits that do not compress, and a server of it.
struct Narrow {
    setting: Setting,
    upstreams: TempDir,
    upstream: Git,
    server: Server,
    noise: std::cell::Cell<u64>,
}

impl Narrow {
    fn new() -> Self {
        let upstreams = TempDir::new().expect("a directory");
        let narrow = Self {
            setting: Setting::new(),
            server: Server::start(upstreams.path(), ""),
            upstreams,
            upstream: Git::new(),
            noise: std::cell::Cell::new(1),
        };
        let bare = narrow.bare();
        narrow
            .upstream
            .run(&["init", "-q", "--bare", "-b", "main", &bare]);
        narrow
    }

    fn bare(&self) -> String {
        let bare = self.upstreams.path().join("r.git");
        bare.to_str().expect("UTF-8").to_owned()
    }

    /// Some thousand bytes of which no two are alike.
    fn noise(&self) -> String {
        let mut state = self.noise.get();
        let words = (0..500).map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            format!("{:08x}", state >> 32)
        });
        let text = words.collect();
        self.noise.set(state);
        text
    }

    fn commits(&self, count: usize) -> String {
        let mut last = String::new();
        for number in 0..count {
            self.upstream.write("file", &self.noise());
            last = self.upstream.commit(&format!("commit {number}"));
        }
        self.publish();
        last
    }

    fn publish(&self) {
        self.upstream.run(&["push", "-q", "--all", &self.bare()]);
        self.upstream.run(&["push", "-q", "--tags", &self.bare()]);
    }

    fn repository(&self) -> Repository {
        Repository {
            history: crate::config::History::Full,
            ..self.server.repository("narrow/r.git", None)
        }
    }

    /// What has come so far of a mirror in the making.
    fn new_one(&self) -> PathBuf {
        self.setting
            .mirror_of(&self.repository())
            .with_extension("new")
    }

    fn lets_through(&self, most: usize, answers: usize) {
        let narrow = &self.server.narrow;
        narrow.most.store(most, Ordering::SeqCst);
        narrow.answers.store(answers, Ordering::SeqCst);
        narrow.sent.store(0, Ordering::SeqCst);
    }

    fn sent(&self) -> usize {
        self.server.narrow.sent.load(Ordering::SeqCst)
    }

    /// The bytes that a clone of all takes.
    async fn whole(&self) -> usize {
        self.lets_through(usize::MAX, usize::MAX);
        let elsewhere = Setting::new();
        elsewhere.resolve(&self.repository()).await;
        self.sent()
    }

    async fn fails(&self) -> GitError {
        let failed = self.setting.mirrors.resolve(&self.repository()).await;
        failed.expect_err("too little comes")
    }
}

#[tokio::test]
async fn what_never_comes_whole_comes_in_steps() {
    let narrow = Narrow::new();
    narrow.commits(40);
    narrow
        .upstream
        .run(&["switch", "-q", "-c", "side", "main~20"]);
    narrow.upstream.run(&["tag", "-m", "words", "v1"]);
    narrow.commits(20);
    narrow.upstream.run(&["switch", "-q", "main"]);
    let whole = narrow.whole().await;
    narrow.lets_through(whole / 6, usize::MAX);
    let repository = narrow.repository();
    let inside = narrow.setting.fresh(&repository).await;
    assert_sound(&inside);
    assert_eq!(inside.run(&["rev-list", "--count", "origin/main"]), "40\n");
    assert_eq!(inside.run(&["rev-list", "--count", "origin/side"]), "40\n");
    assert_eq!(names(&inside).len(), 5);
    let mirror = narrow.setting.mirror_of(&repository);
    assert!(!mirror.join("shallow").exists() && !narrow.new_one().exists());
    assert!(narrow.sent() < 4 * whole, "{} for {whole}", narrow.sent());

    // Many branches at once, more than fit: one after the other into the mirror that is there.
    for number in 0..8 {
        let branch = format!("more{number}");
        narrow
            .upstream
            .run(&["switch", "-q", "-c", &branch, "main"]);
        narrow.commits(4);
    }
    let at = narrow.setting.resolve(&repository).await;
    assert_sound(&narrow.setting.checkout(&repository, &at).await);
    assert!(!mirror.join("shallow").exists());
}

#[tokio::test]
async fn a_later_attempt_goes_on_from_where_the_one_before_ended() {
    let narrow = Narrow::new();
    narrow.commits(60);
    let whole = narrow.whole().await;
    // The whole, the last commit and some steps; then nothing.
    narrow.lets_through(whole / 3, 4);
    let error = narrow.fails().await;
    assert!(matches!(error, GitError::Transfer { .. }), "{error}");
    assert!(error.to_string().contains("is kept"), "{error}");
    let first = narrow.sent();
    let count = || {
        let kept = narrow.new_one();
        let kept = kept.to_str().expect("UTF-8");
        let count = narrow
            .upstream
            .run(&["--git-dir", kept, "rev-list", "--count", "main"]);
        count.trim().parse::<usize>().expect("a number")
    };
    let had = count();
    assert!(had > 1 && had < 60, "{had}");

    // Once more, and more commits meanwhile; what a git that was killed left is in nobody's way.
    std::fs::write(narrow.new_one().join("shallow.lock"), "").expect("writes");
    narrow.commits(2);
    narrow.lets_through(whole, usize::MAX);
    let inside = narrow.setting.fresh(&narrow.repository()).await;
    assert_sound(&inside);
    assert_eq!(inside.run(&["rev-list", "--count", "HEAD"]), "62\n");
    let second = narrow.sent();
    assert!(
        second < whole - whole * had / 60 + whole / 6,
        "{second} of {whole} after {first}"
    );
    assert!(!narrow.new_one().exists());
}

#[tokio::test]
async fn a_server_that_always_breaks_is_given_up_and_what_was_there_stays() {
    let narrow = Narrow::new();
    narrow.commits(3);
    narrow.lets_through(300, usize::MAX);
    let error = narrow.fails().await;
    assert!(matches!(error, GitError::Transfer { .. }), "{error}");
    assert!(!error.to_string().contains("is kept"), "{error}");
    assert!(!narrow.new_one().exists());

    narrow.lets_through(usize::MAX, usize::MAX);
    let repository = narrow.repository();
    let at = narrow.setting.resolve(&repository).await;
    narrow.commits(3);
    narrow.lets_through(300, usize::MAX);
    let error = narrow.fails().await;
    assert!(matches!(error, GitError::Transfer { .. }), "{error}");
    assert_sound(&narrow.setting.checkout(&repository, &at).await);
    assert!(
        !narrow
            .setting
            .mirror_of(&repository)
            .join("shallow")
            .exists()
    );
}

#[tokio::test]
async fn what_was_kept_and_is_no_good_is_not_gone_on_with() {
    let narrow = Narrow::new();
    narrow.commits(60);
    let whole = narrow.whole().await;
    let packs = || narrow.new_one().join("objects/pack");
    let empty_packs = || {
        for pack in std::fs::read_dir(packs()).expect("lists") {
            let pack = pack.expect("an entry").path();
            std::fs::set_permissions(&pack, PermissionsExt::from_mode(0o644)).expect("sets");
            File::create(&pack).expect("empties");
        }
    };
    let damages: [&dyn Fn(); 3] = [
        &empty_packs,
        &|| std::fs::remove_dir_all(narrow.new_one().join("refs")).expect("removes"),
        &|| drop(File::create(narrow.new_one().join("shallow")).expect("empties")),
    ];
    for (number, damage) in damages.iter().enumerate() {
        narrow.lets_through(whole / 3, 4);
        narrow.fails().await;
        assert!(narrow.new_one().exists());
        damage();
        narrow.lets_through(usize::MAX, usize::MAX);
        let inside = narrow.setting.fresh(&narrow.repository()).await;
        assert_sound(&inside);
        assert_eq!(
            inside.run(&["rev-list", "--count", "HEAD"]),
            "60\n",
            "damage {number}"
        );
        std::fs::remove_dir_all(narrow.setting.mirror_of(&narrow.repository())).expect("removes");
    }
}

#[test]
fn what_is_left_of_a_mirror_goes_when_nobody_wants_it() {
    let dir = TempDir::new().expect("a directory");
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    let touch = |name: &str, then| {
        let path = dir.path().join(name);
        if !name.ends_with("lock") {
            std::fs::create_dir(&path).expect("a directory");
        }
        let locks = name.ends_with("lock");
        let mut options = File::options();
        let file = options.read(true).write(locks).create(locks).open(&path);
        file.expect("opens").set_modified(then).expect("sets");
    };
    let now = std::time::SystemTime::now();
    for (name, then) in [
        // Of nobody, of somebody, of somebody who has the mirror again, and the same just now.
        ("a.new", old),
        ("a.lock", old),
        ("b.new", old),
        ("b.lock", old),
        ("c.new", old),
        ("c.git", old),
        ("c.lock", now),
        ("d.new", now),
        ("d.git", old),
        ("d.lock", old),
        ("e.new", old),
        ("e.lock", now),
    ] {
        touch(name, then);
    }
    let mut taken = Vec::new();
    take_unwanted(
        dir.path(),
        |name| ["b", "c", "d"].contains(&name),
        |path| {
            taken.push(path.file_name().expect("a name").to_owned());
            Ok(())
        },
    )
    .expect("takes");
    taken.sort();
    assert_eq!(taken, ["a.new", "c.new"]);
}
