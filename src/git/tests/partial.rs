//! Partial clones: which files a workspace gets and which stay with the upstream, and what comes to it later.

use super::*;

fn filtered(filter: &str, url: &str, fields: &serde_json::Value) -> Repository {
    let mut all = serde_json::json!({ "url": url, "path": "/r", "filter": filter });
    let more = fields.as_object().expect("an object").clone();
    all.as_object_mut().expect("an object").extend(more);
    serde_json::from_value(all).expect("a repository")
}

/// Bytes that differ for each number, and are of no use to each other.
fn large(number: u32) -> String {
    let mut state = u64::from(number) + 1;
    let words = (0..500).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        format!("{:08x}\n", state >> 32)
    });
    words.collect()
}

/// A repository whose files change with every commit, with a branch and a tag, that gives out parts of itself.
fn upstream_of(format: &str) -> Git {
    let upstream = Git::with_format(format);
    upstream.run(&["config", "uploadpack.allowFilter", "true"]);
    commits_on(&upstream, 1..=5);
    upstream.run(&["switch", "-q", "-c", "side", "main~2"]);
    commits_on(&upstream, 11..=12);
    upstream.run(&["tag", "-m", "words", "v1"]);
    upstream.run(&["switch", "-q", "main"]);
    upstream.run(&["merge", "-q", "-s", "ours", "--no-edit", "v1"]);
    commits_on(&upstream, 6..=8);
    upstream
}

fn commits_on(upstream: &Git, numbers: std::ops::RangeInclusive<u32>) -> String {
    let mut last = String::new();
    for number in numbers {
        upstream.write("small", &format!("{number}\n"));
        upstream.write("below/large", &large(number));
        upstream.write("same", "same\n");
        last = upstream.commit(&number.to_string());
    }
    last
}

/// The objects of a repository, and those that are promised and not there.
fn objects(of: &Git) -> (Vec<String>, Vec<String>) {
    let present = of.run(&[
        "cat-file",
        "--batch-all-objects",
        "--batch-check",
        "--unordered",
    ]);
    let mut present: Vec<_> = present.lines().map(str::to_owned).collect();
    present.sort();
    let walked = of.run(&["rev-list", "--objects", "--all", "HEAD", "--missing=print"]);
    let missing = walked.lines().filter_map(|line| line.strip_prefix('?'));
    let mut missing: Vec<_> = missing.map(str::to_owned).collect();
    missing.sort();
    (present, missing)
}

fn assert_sound_in_part(inside: &Git) {
    assert_eq!(inside.run(&["status", "--porcelain"]), "");
    inside.run(&["fsck", "--full", "--strict"]);
    inside.run(&["log", "--all", "--name-only"]);
}

impl Setting {
    /// Brings into `inside` what the upstream has beside `old`, as a workspace's fetch would.
    async fn bring_all(&self, repository: &Repository, inside: &Git, old: &CommitId) -> CommitId {
        let at = self.resolve(repository).await;
        let files = self.mirrors.new_files(repository, &at, Some(old)).await;
        if let Some(files) = files.expect("packs") {
            let mut stream = tempfile::tempfile().expect("a file");
            let sink = stream.try_clone().expect("a descriptor");
            files.write(sink).await.expect("writes");
            stream.rewind().expect("seeks");
            let packs = inside.path().join(".git/objects/pack");
            tar::Archive::new(stream).unpack(packs).expect("unpacks");
        }
        self.bring(repository, &at, inside).await.expect("bundles");
        at.commit
    }
}

#[tokio::test]
async fn a_filter_makes_what_a_partial_clone_is() {
    let setting = Setting::new();
    for format in ["sha1", "sha256"] {
        let upstream = upstream_of(format);
        let url = format!("file://{}", upstream.url());
        for filter in [
            "blob:none",
            "blob:limit=1k",
            "blob:limit=1",
            "blob:limit=1g",
        ] {
            for reference in ["main", "side", "v1"] {
                let fields = serde_json::json!({ "reference": reference, "history": "full" });
                let repository = filtered(filter, &url, &fields);
                let inside = setting.fresh(&repository).await;
                assert_sound_in_part(&inside);
                let clone = Git::somewhere();
                let (filter, branch) = (
                    format!("--filter={filter}"),
                    format!("--branch={reference}"),
                );
                clone.run(&["clone", "-q", "--no-local", &filter, &branch, &url, "."]);
                assert_eq!(objects(&inside), objects(&clone), "{filter} {reference}");
                let asked = filter.replace("1k", "1024").replace("1g", "1073741824");
                let as_derrick_writes = |look: String| look.replace(&filter[9..], &asked[9..]);
                assert_eq!(
                    looks(&inside),
                    looks(&clone).map(as_derrick_writes),
                    "{filter} {reference}"
                );
                assert_eq!(inside.files(), clone.files(), "{filter} {reference}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_there_is_up_to_the_commit_and_not_to_what_others_wanted() {
    let setting = Setting::new();
    let upstream = upstream_of("sha1");
    let of = |reference: &str| {
        let fields = serde_json::json!({ "reference": reference });
        filtered("blob:none", &upstream.url(), &fields)
    };
    let alone = setting
        .fresh(&of("main~0").at("main".to_owned()).expect("a name"))
        .await;
    let all = objects(&alone);
    assert_eq!(all.1.len(), 2 * 9, "{all:?}");
    let older = upstream.run(&["rev-parse", "main~3"]);
    for reference in ["side", "v1", older.trim(), "main"] {
        setting.fresh(&of(reference)).await;
    }
    assert_eq!(objects(&setting.fresh(&of("main")).await), all);
    // Sealed as any other.
    let sealed = setting.fresh(&of("side")).await;
    assert_sound_in_part(&sealed);
    assert!(
        !sealed
            .attempt(&["cat-file", "-e", &format!("{}^{{commit}}", older.trim())])
            .0
    );

    // Configs of other filters, and none, have mirrors of their own, and what is asked alike, one.
    let mirror = setting.mirror_of(&of("main"));
    for other in ["blob:limit=1024", "blob:limit=1025"] {
        let other = filtered(other, &upstream.url(), &serde_json::json!({}));
        assert_ne!(setting.mirror_of(&other), mirror);
    }
    let same = filtered("blob:limit=0", &upstream.url(), &serde_json::json!({}));
    assert_eq!(setting.mirror_of(&same), mirror);
}

#[tokio::test]
async fn the_files_alone_are_whole_without_history() {
    let setting = Setting::new();
    let upstream = upstream_of("sha1");
    let none = serde_json::json!({ "history": "none" });
    let repository = filtered("blob:none", &upstream.url(), &none);
    let inside = setting.fresh(&repository).await;
    assert_sound(&inside);
    let (_, missing) = objects(&inside);
    assert!(missing.is_empty(), "{missing:?}");
    assert!(!inside.attempt(&["config", "remote.origin.promisor"]).0);
}

#[tokio::test]
async fn a_commit_that_is_mirrored_with_its_files_needs_no_upstream() {
    let setting = Setting::new();
    let upstream = upstream_of("sha1");
    let repository = filtered("blob:none", &upstream.url(), &serde_json::json!({}));
    let at = setting.resolve(&repository).await;
    let pinned = |commit: &str| repository.at(commit.to_owned()).expect("an id");
    let old = upstream.run(&["rev-parse", "main~4"]);
    std::fs::rename(upstream.path().join(".git"), upstream.path().join("away")).expect("renames");
    let inside = setting.fresh(&pinned(at.commit.as_str())).await;
    assert_sound_in_part(&inside);
    // What is there without its files is not there.
    let refused = setting.mirrors.resolve(&pinned(old.trim())).await;
    assert!(
        matches!(refused, Err(GitError::NoSuchRepository { .. })),
        "{refused:?}"
    );
    std::fs::rename(upstream.path().join("away"), upstream.path().join(".git")).expect("renames");
    assert_sound_in_part(&setting.fresh(&pinned(old.trim())).await);
}

#[tokio::test]
async fn what_comes_later_comes_with_its_files() {
    let setting = Setting::new();
    for (filter, history) in [
        ("blob:none", "sealed"),
        ("blob:none", "full"),
        ("blob:limit=1k", "branch"),
    ] {
        let upstream = upstream_of("sha1");
        let fields = serde_json::json!({ "history": history });
        let repository = filtered(filter, &upstream.url(), &fields);
        let inside = setting.fresh(&repository).await;
        let first = setting.resolve(&repository).await.commit;
        let (_, before) = objects(&inside);
        commits_on(&upstream, 20..=22);
        // A file that is again what it was when it stayed with the upstream, and one that another branch has.
        let old = upstream.run(&["show", "main~8:below/large"]);
        upstream.write("below/large", &old);
        upstream.write("other", &large(12));
        upstream.commit("again");
        // Others wanted other files of the mirror meanwhile.
        let side = repository.at("side".to_owned()).expect("a name");
        setting.fresh(&side).await;
        let second = setting.bring_all(&repository, &inside, &first).await;
        assert_eq!(
            inside.run(&["rev-parse", "origin/main"]).trim(),
            second.as_str()
        );
        inside.run(&["merge", "-q", "--ff-only", "origin/main"]);
        assert_sound_in_part(&inside);
        inside.run(&["log", "-p", &format!("{first}..")]);
        let (_, missing) = objects(&inside);
        assert!(
            missing.iter().all(|id| before.contains(id)),
            "{filter} {history}"
        );

        // One without new commits, whose files are not there: of the same history, or of another branch.
        let older = upstream.run(&["rev-parse", "main~10"]);
        for name in [older.trim(), "side"] {
            let wanted = repository.at(name.to_owned()).expect("a name");
            let commit = setting.bring_all(&wanted, &inside, &second).await;
            inside.run(&["checkout", "-q", "--detach", commit.as_str()]);
            assert_sound_in_part(&inside);
        }
        inside.run(&["checkout", "-q", "main"]);
        inside.write("mine", "x");
        inside.commit("mine");
        inside.run(&["gc", "-q", "--prune=now"]);
        assert_sound_in_part(&inside);
        inside.run(&["checkout", "-q", second.as_str()]);
    }
}

#[tokio::test]
async fn a_filter_goes_with_a_depth() {
    let setting = Setting::new();
    let upstream = upstream_of("sha1");
    let url = format!("file://{}", upstream.url());
    let repository = filtered("blob:none", &url, &serde_json::json!({ "depth": 3 }));
    let inside = setting.fresh(&repository).await;
    assert_sound_in_part(&inside);
    let clone = Git::somewhere();
    let options = ["--depth=3", "--filter=blob:none", "--no-local"];
    clone.run(&[&["clone", "-q"], &options[..], &[&url, "."]].concat());
    assert_eq!(objects(&inside), objects(&clone));
    let first = setting.resolve(&repository).await.commit;
    commits_on(&upstream, 20..=29);
    let second = setting.bring_all(&repository, &inside, &first).await;
    inside.run(&["merge", "-q", "--ff-only", second.as_str()]);
    assert_sound_in_part(&inside);
    assert_eq!(inside.run(&["rev-list", "--count", "HEAD"]), "13\n");
}

#[tokio::test]
async fn a_mirror_without_files_is_made_anew_with_those_that_are_wanted() {
    let setting = Setting::new();
    let upstream = upstream_of("sha1");
    for fields in [serde_json::json!({}), serde_json::json!({ "depth": 4 })] {
        let repository = filtered("blob:none", &upstream.url(), &fields);
        let mirror = setting.mirror_of(&repository);
        let without = |kept: &dyn Fn(&str) -> bool| {
            for file in std::fs::read_dir(mirror.join("objects/pack")).expect("lists") {
                let file = file.expect("an entry").path();
                if !kept(file.to_str().expect("UTF-8")) {
                    std::fs::remove_file(file).expect("removes");
                }
            }
        };
        let promises = |name: &str| !name.ends_with(".promisor");
        let damages: [&dyn Fn(); 4] = [
            &|| drop(std::fs::remove_dir_all(&mirror)),
            &|| without(&|_| false),
            &|| without(&promises),
            &|| drop(File::create(mirror.join("config")).expect("empties")),
        ];
        for damage in damages {
            let at = setting.resolve(&repository).await;
            damage();
            let inside = setting.checkout(&repository, &at).await;
            assert_sound_in_part(&inside);
            damage();
            let last = commits_on(&upstream, 30..=31);
            let inside = setting.fresh(&repository).await;
            assert_sound_in_part(&inside);
            assert_eq!(inside.run(&["rev-parse", "HEAD"]).trim(), last);
            damage();
            assert_sound_in_part(&setting.fresh(&repository).await);
        }
    }
}

#[tokio::test]
async fn an_upstream_that_knows_no_filter_gives_out_all() {
    let setting = Setting::new();
    let upstream = upstream_of("sha1");
    upstream.run(&["config", "uploadpack.allowFilter", "false"]);
    let repository = filtered("blob:none", &upstream.url(), &serde_json::json!({}));
    let inside = setting.fresh(&repository).await;
    assert_sound_in_part(&inside);
    let first = setting.resolve(&repository).await.commit;
    commits_on(&upstream, 20..=22);
    setting.bring_all(&repository, &inside, &first).await;
    inside.run(&["merge", "-q", "--ff-only", "origin/main"]);
    assert_sound_in_part(&inside);
}

#[tokio::test]
async fn files_come_in_portions_where_they_do_not_come_at_once() {
    let upstreams = TempDir::new().expect("a directory");
    let server = http::Server::start(upstreams.path(), "");
    let upstream = upstream_of("sha1");
    for number in 100..120 {
        upstream.write(&number.to_string(), &large(number));
    }
    upstream.commit("many");
    let bare = upstreams.path().join("r.git");
    let bare = bare.to_str().expect("UTF-8");
    upstream.run(&["clone", "-q", "--bare", ".", bare]);
    upstream.run(&[
        "--git-dir",
        bare,
        "config",
        "uploadpack.allowFilter",
        "true",
    ]);
    let narrow = filtered(
        "blob:none",
        &server.repository("narrow/r.git", None).url,
        &serde_json::json!({}),
    );
    // Enough for all commits, or for some of the files.
    let most = &server.narrow.most;
    most.store(20_000, std::sync::atomic::Ordering::SeqCst);
    let setting = Setting::new();
    assert_sound_in_part(&setting.fresh(&narrow).await);
    // Where not even one comes it is said so, and what came is there when more comes.
    most.store(2_000, std::sync::atomic::Ordering::SeqCst);
    let setting = Setting::new();
    let refused = setting.mirrors.resolve(&narrow).await;
    assert!(
        matches!(refused, Err(GitError::Transfer { .. })),
        "{refused:?}"
    );
    most.store(usize::MAX, std::sync::atomic::Ordering::SeqCst);
    assert_sound_in_part(&setting.fresh(&narrow).await);

    // A server of git's old protocol gives out no file by its id.
    let old = filtered(
        "blob:none",
        &server.repository("old/r.git", None).url,
        &serde_json::json!({}),
    );
    let refused = setting.mirrors.resolve(&old).await;
    assert!(
        matches!(refused, Err(GitError::NotByTheirIds { .. })),
        "{refused:?}"
    );
    upstream.run(&[
        "--git-dir",
        bare,
        "config",
        "uploadpack.allowAnySHA1InWant",
        "true",
    ]);
    assert_sound_in_part(&setting.fresh(&old).await);
}

#[tokio::test]
async fn submodules_are_found_in_a_mirror_without_files_and_come_whole() {
    let setting = Setting::new();
    let (top, sub) = (upstream_of("sha1"), upstream_of("sha1"));
    let wanted = sub.run(&["rev-parse", "main~1"]).trim().to_owned();
    submodules::name(&top, "sub", &sub.url(), &wanted);
    submodules::commit_index(&top, "with a submodule");
    let fields = serde_json::json!({ "submodules": true, "submodule_urls": [sub.url()] });
    let repository = filtered("blob:none", &top.url(), &fields);
    let inside = setting
        .with_all(&repository, &[])
        .await
        .expect("is allowed");
    assert_sound_in_part(&inside);
    inside.run(&["-C", "sub", "log", "-p"]);
    assert_eq!(
        inside.run(&["-C", "sub", "rev-parse", "HEAD"]).trim(),
        wanted
    );
}
