//! Changes of plain directories, told as those of a workspace; patches are given to git.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, XattrFlags, mkdirat, mknodat, openat, setxattr};
use serde_json::Value;
use tempfile::TempDir;

use super::protocol::{Binaries, Checkout, Ignored};
use super::*;
use crate::sandbox::{IdMap, Merge};
use crate::spawner::copying::DIRECTORY;

/// What setup left, and what was written on top of it: a repository at `/project`.
struct Case {
    scratch: TempDir,
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let done = Command::new("git")
        .args([
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "-c",
            "core.autocrlf=false",
        ])
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", directory)
        .output()
        .expect("git runs");
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{arguments:?}: {error}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

impl Case {
    /// A repository with these files, committed.
    fn with(files: &[(&str, &[u8])]) -> Self {
        let case = Self {
            scratch: tempfile::tempdir().expect("tempdir"),
        };
        for name in ["base/project", "upper/project"] {
            fs::create_dir_all(case.scratch.path().join(name)).expect("mkdir");
        }
        git(&case.base(""), &["init", "-q"]);
        for (name, content) in files {
            let path = case.base(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            fs::write(path, content).expect("a file");
        }
        git(&case.base(""), &["add", "-A", "-f"]);
        git(&case.base(""), &["commit", "-qm", "one", "--allow-empty"]);
        case
    }

    fn base(&self, name: &str) -> std::path::PathBuf {
        self.scratch.path().join("base/project").join(name)
    }

    /// The place of something in the project's upper, whose directories are made.
    fn upper(&self, name: &str) -> std::path::PathBuf {
        let path = self.scratch.path().join("upper/project").join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        path
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.upper(name), content).expect("a file");
        // As copied up.
        if let Ok(old) = fs::symlink_metadata(self.base(name)) {
            let mode = PermissionsExt::from_mode(old.mode());
            fs::set_permissions(self.upper(name), mode).expect("chmod");
        }
    }

    fn delete(&self, name: &str) {
        let kind = rustix::fs::FileType::CharacterDevice;
        mknodat(CWD, self.upper(name), kind, Mode::empty(), 0).expect("a whiteout");
    }

    fn mark(&self, name: &str, mark: &str, value: &[u8]) {
        let mark = format!("user.overlay.{mark}");
        setxattr(self.upper(name), mark, value, XattrFlags::empty()).expect("a mark");
    }

    fn ask(&self, within: &str, form: Form) -> (Answer, Vec<u8>) {
        let open = |name: &str| -> OwnedFd {
            openat(
                CWD,
                self.scratch.path().join(name),
                DIRECTORY,
                Mode::empty(),
            )
            .expect("open")
        };
        let chain = Chain {
            layers: vec![open("upper")],
            below: open("base"),
        };
        let inquiry = Inquiry {
            layers: Merge {
                ids: IdMap { first: 0, count: 1 },
                overlays: Vec::new(),
                into: "".into(),
            },
            places: vec!["/".into()],
            apart: false,
            repositories: vec![Checkout {
                path: b"/project"[..].into(),
                commit: "0".repeat(40),
            }],
            consistent: true,
            within: within.as_bytes().into(),
            form,
        };
        let spool = tempfile::tempfile().expect("a file");
        let written = spool.try_clone().expect("a descriptor");
        answer(&[(0, chain)], &inquiry, Identity::Single, spool).expect("it is told");
        let mut all =
            vec![0; usize::try_from(written.metadata().expect("stat").len()).expect("small")];
        written.read_exact_at(&mut all, 0).expect("read");
        let length = all.split_off(all.len() - 4);
        let length = u32::from_le_bytes(length.try_into().expect("four"));
        let answer = all.split_off(all.len() - length as usize);
        (serde_json::from_slice(&answer).expect("an answer"), all)
    }

    fn list(&self) -> Value {
        let (answer, list) = self.ask("/", Form::List);
        assert_eq!(answer.outcome, Outcome::Done);
        serde_json::from_slice(&list).expect("a list")
    }

    /// The tree that a fresh clone is with the patch, and the patch.
    fn patched(&self, binaries: Binaries) -> (BTreeMap<Vec<u8>, Kept>, String) {
        let (answer, patch) = self.ask("/project", Form::Patch(binaries, Ignored::LeftOut));
        assert_eq!(answer.outcome, Outcome::Done);
        let clone = tempfile::tempdir().expect("tempdir");
        let from = self.base("").display().to_string();
        git(clone.path(), &["clone", "-q", &from, "clone"]);
        let clone = clone.path().join("clone");
        fs::write(clone.join("../patch"), &patch).expect("the patch");
        git(&clone, &["apply", "--allow-empty", "../patch"]);
        (tree(&clone), String::from_utf8_lossy(&patch).into_owned())
    }
}

/// A file as git keeps it.
#[derive(Debug, PartialEq, Eq)]
enum Kept {
    File(Vec<u8>, bool),
    Link(Vec<u8>),
}

fn tree(root: &Path) -> BTreeMap<Vec<u8>, Kept> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("list") {
            let path = entry.expect("an entry").path();
            let status = fs::symlink_metadata(&path).expect("stat");
            let name = path
                .strip_prefix(root)
                .expect("below")
                .as_os_str()
                .as_bytes()
                .to_vec();
            if name == b".git" {
                continue;
            }
            if status.is_dir() {
                waiting.push(path);
            } else if status.is_symlink() {
                let target = fs::read_link(&path).expect("a link");
                found.insert(name, Kept::Link(target.as_os_str().as_bytes().to_vec()));
            } else {
                let content = fs::read(&path).expect("a file");
                found.insert(name, Kept::File(content, status.mode() & 0o100 != 0));
            }
        }
    }
    found
}

fn expected(files: &[(&[u8], &[u8])]) -> BTreeMap<Vec<u8>, Kept> {
    let files = files.iter();
    files
        .map(|(name, content)| (name.to_vec(), Kept::File(content.to_vec(), false)))
        .collect()
}

/// What happened to each, with where it was.
fn kinds(list: &Value, which: &str) -> Vec<String> {
    let entries = list[which].as_array().expect("a list").iter();
    entries
        .map(|entry| {
            let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let from = word(&entry["from"]["path"]);
            format!("{} {} {from}", word(&entry["change"]), word(&entry["path"]))
                .trim()
                .to_owned()
        })
        .collect()
}

#[test]
fn every_kind_of_change_is_told_and_git_makes_the_same_of_a_fresh_clone() {
    let lines: String = (0..100).map(|line| format!("line {line}\n")).collect();
    let case = Case::with(&[
        ("same", b"same\n"),
        ("text", lines.as_bytes()),
        ("gone", b"gone\n"),
        ("old name", b"to be renamed\n"),
        ("mode", b"#!/bin/sh\n"),
        ("binary", b"\0\x01\x02"),
        ("bytes gone", &[0; 5000]),
        ("to link", b"a file\n"),
        ("to directory", b"a file\n"),
        ("directory/one", b"1\n"),
        ("directory/two/deep", b"2\n"),
        ("end", b"no newline"),
        ("empty", b""),
    ]);
    case.write("same", b"same\n");
    case.write(
        "text",
        lines
            .replace("line 3\n", "three\n")
            .replace("line 90\n", "")
            .as_bytes(),
    );
    case.delete("gone");
    case.delete("old name");
    case.write("new/name", b"to be renamed\n");
    case.write("mode", b"#!/bin/sh\n");
    fs::set_permissions(case.upper("mode"), PermissionsExt::from_mode(0o755)).expect("chmod");
    let noise: Vec<u8> = (0..100_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    case.write("binary", &noise);
    case.delete("bytes gone");
    symlink("/etc/passwd", case.upper("to link")).expect("link");
    case.write("to directory/inner", b"inner\n");
    case.delete("directory");
    case.write("end", b"no newline still");
    case.write("empty", b"not any more");
    case.write("fresh empty", b"");
    let mut names: Vec<&[u8]> = vec![
        b"new\nline",
        b"\xff\xfe",
        b"-rf",
        b"quo\"te\\",
        b" lead",
        b"tab\t",
    ];
    names.push("h\u{e4}".as_bytes());
    for name in &names {
        fs::write(
            case.upper("").join(std::ffi::OsStr::from_bytes(name)),
            "odd\n",
        )
        .expect("a file");
    }
    let list = case.list();
    let told = kinds(&list, "changes");
    for line in [
        "modified /project/text",
        "deleted /project/gone",
        "renamed /project/new/name /project/old name",
        "mode /project/mode",
        "modified /project/binary",
        "type /project/to link",
        "deleted /project/to directory",
        "added /project/to directory",
        "added /project/to directory/inner",
        "deleted /project/directory",
        "deleted /project/directory/two/deep",
        "added /project/-rf",
    ] {
        assert!(told.iter().any(|one| one == line), "{line} in {told:#?}");
    }
    assert!(
        !told
            .iter()
            .any(|one| one.contains("same") || one == "deleted /project/old name")
    );
    let odd = list["changes"].as_array().expect("a list").iter();
    let odd: Vec<_> = odd
        .filter_map(|entry| entry["path_base64"].as_str())
        .collect();
    assert_eq!(odd.len(), 1, "{odd:?}");

    let (mut tree, patch) = case.patched(Binaries::Included);
    assert!(patch.contains("similarity index 100%"), "{patch}");
    assert_eq!(
        tree.remove(&b"to link"[..]),
        Some(Kept::Link(b"/etc/passwd".to_vec()))
    );
    assert_eq!(
        tree.remove(&b"mode"[..]),
        Some(Kept::File(b"#!/bin/sh\n".to_vec(), true))
    );
    let text = fs::read(case.upper("text")).expect("text");
    let mut all: Vec<(&[u8], &[u8])> = vec![
        (b"same", b"same\n"),
        (b"text", &text),
        (b"new/name", b"to be renamed\n"),
        (b"binary", &noise),
        (b"to directory/inner", b"inner\n"),
        (b"end", b"no newline still"),
        (b"empty", b"not any more"),
        (b"fresh empty", b""),
    ];
    all.extend(names.iter().map(|name| (*name, &b"odd\n"[..])));
    assert_eq!(tree, expected(&all));

    let (tree, patch) = case.patched(Binaries::LeftOut);
    assert!(
        patch.contains("# left out: binary: it is binary\n"),
        "{patch}"
    );
    assert_eq!(
        tree.get(&b"binary"[..]),
        Some(&Kept::File(b"\0\x01\x02".to_vec(), false))
    );

    let (_, tar) = case.ask("/project", Form::Tar(Ignored::LeftOut));
    let mut archive = tar::Archive::new(&tar[..]);
    let mut found = BTreeMap::new();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let mut content = Vec::new();
        io::Read::read_to_end(&mut entry, &mut content).expect("read");
        found.insert(entry.path_bytes().to_vec(), content);
    }
    assert_eq!(found.get(&b"binary"[..]), Some(&noise));
    assert_eq!(found.get(&b"new\nline"[..]).map(Vec::len), Some(4));
    assert!(!found.contains_key(&b"same"[..]) && !found.contains_key(&b"gone"[..]));

    for (path, form, content) in [
        ("/project/gone", Form::Old, &b"gone\n"[..]),
        ("/project/to link", Form::New, b"/etc/passwd"),
        ("/project/to link", Form::Old, b"a file\n"),
        ("/project/directory/one", Form::Old, b"1\n"),
        ("/project/same", Form::New, b"same\n"),
    ] {
        let (answer, told) = case.ask(path, form);
        assert_eq!(
            (answer.outcome, &told[..]),
            (Outcome::Done, content),
            "{path}"
        );
    }
    for (path, form, outcome) in [
        ("/project/gone", Form::New, Outcome::NoSuchFile),
        ("/project/directory/one", Form::New, Outcome::NoSuchFile),
        ("/project/new/name", Form::Old, Outcome::NoSuchFile),
        ("/project/to link/x", Form::New, Outcome::NoSuchFile),
        ("/project/new", Form::New, Outcome::Directory),
        ("/", Form::New, Outcome::Directory),
        ("/project", Form::Old, Outcome::Directory),
    ] {
        assert_eq!(case.ask(path, form).0.outcome, outcome, "{path}");
    }
}

#[test]
fn a_directory_that_an_overlay_moved_is_renamed_files() {
    let case = Case::with(&[
        ("old/a", b"a\n1\n2\n3\n4\n5\n6\n7\n"),
        ("old/b", b"b\n"),
        ("old/c", b"c\n"),
        ("old/below/d", b"d\n"),
        ("other/e", b"e\n"),
    ]);
    fs::create_dir(case.upper("new")).expect("mkdir");
    case.mark("new", "redirect", b"/project/old");
    case.delete("old");
    case.write("new/a", b"a\n1\n2\n3\nfour\n5\n6\n7\n");
    case.delete("new/c");
    // Emptied before it was filled.
    fs::create_dir(case.upper("other")).expect("mkdir");
    case.mark("other", "opaque", b"y");
    case.write("other/f", b"f\n");
    let told = kinds(&case.list(), "changes");
    for line in [
        "renamed /project/new/a /project/old/a",
        "renamed /project/new/b /project/old/b",
        "renamed /project/new/below/d /project/old/below/d",
        "deleted /project/old/c",
        "deleted /project/other/e",
        "added /project/other/f",
    ] {
        assert!(told.iter().any(|one| one == line), "{line} in {told:#?}");
    }
    assert!(
        !told
            .iter()
            .any(|one| one.starts_with("deleted /project/old/a")),
        "{told:#?}"
    );
    let (tree, patch) = case.patched(Binaries::Included);
    assert_eq!(
        tree,
        expected(&[
            (b"new/a", b"a\n1\n2\n3\nfour\n5\n6\n7\n"),
            (b"new/b", b"b\n"),
            (b"new/below/d", b"d\n"),
            (b"other/f", b"f\n"),
        ]),
        "{patch}"
    );
    assert_eq!(case.ask("/project/new/b", Form::New).1, b"b\n");
    assert_eq!(
        case.ask("/project/new/c", Form::New).0.outcome,
        Outcome::NoSuchFile
    );
}

#[test]
fn what_is_ignored_is_told_apart_by_the_rules_of_setup_alone() {
    let case = Case::with(&[
        (".gitignore", b"*.log\n!keep.log\nbuild/\n/only-here\n"),
        ("sub/.gitignore", b"local\n"),
        ("build/tracked", b"in the commit\n"),
        ("a", b"a\n"),
    ]);
    fs::write(case.base("build/by-setup"), "made by setup\n").expect("a file");
    // The agent's own rules.
    case.write(".gitignore", b"*\n");
    case.write("sub/.gitignore", b"*\n");
    case.write(".git/info/exclude", b"*\n");
    case.write(".git/hooks/post-checkout", b"#!/bin/sh\n");
    case.write(".git/config", b"[core]\n\tfsmonitor = evil\n");
    case.write("x.log", b"log\n");
    case.write("keep.log", b"log\n");
    case.write("build/tracked", b"changed\n");
    case.write("build/by-setup", b"changed\n");
    case.write("build/new", b"new\n");
    case.write("only-here", b"1\n");
    case.write("sub/only-here", b"1\n");
    case.write("sub/local", b"1\n");
    case.write("local", b"1\n");
    case.write("a", b"b\n");
    case.write("nested/.git/config", b"[core]\n");
    case.write("nested/.git/HEAD", b"ref: refs/heads/main\n");
    case.write("nested/file", b"in a repository of its own\n");
    case.write(".GIT/config", b"[core]\n");
    let list = case.list();
    assert_eq!(
        kinds(&list, "ignored"),
        [
            "modified /project/build/by-setup",
            "added /project/build/new",
            "added /project/only-here",
            "added /project/sub/local",
            "added /project/x.log",
        ]
    );
    let told = kinds(&list, "changes");
    assert_eq!(
        told,
        [
            "modified /project/.gitignore",
            "modified /project/a",
            "modified /project/build/tracked",
            "added /project/keep.log",
            "added /project/local",
            "added /project/nested",
            "added /project/nested/file",
            "modified /project/sub/.gitignore",
            "added /project/sub/only-here",
        ]
    );
    let git: Vec<_> = list["git"].as_array().expect("a list").iter().collect();
    let places: Vec<_> = git
        .iter()
        .map(|one| {
            (
                one["path"].as_str().unwrap_or_default(),
                one["known"].as_bool(),
            )
        })
        .collect();
    assert_eq!(
        places,
        [
            ("/project/.GIT", Some(false)),
            ("/project/.git", Some(true)),
            ("/project/nested/.git", Some(false)),
        ]
    );
    let sensitive = git[1]["sensitive"].to_string();
    assert!(
        sensitive.contains("/project/.git/hooks/post-checkout"),
        "{sensitive}"
    );
    assert!(sensitive.contains("/project/.git/config"), "{sensitive}");
    let (tree, _) = case.patched(Binaries::Included);
    let content = |name: &[u8]| match tree.get(name) {
        Some(Kept::File(content, _)) => Some(content.as_slice()),
        _ => None,
    };
    assert_eq!(content(b"build/tracked"), Some(&b"changed\n"[..]));
    assert_eq!(
        content(b"nested/file"),
        Some(&b"in a repository of its own\n"[..])
    );
    assert_eq!(content(b"x.log"), None);
}

#[test]
fn no_depth_no_size_and_no_kind_of_file_is_in_the_way() {
    let case = Case::with(&[("a", b"a\n")]);
    let outside = tempfile::tempdir().expect("tempdir");
    fs::write(outside.path().join("canary"), "canary of the host").expect("a file");
    symlink(outside.path().join("canary"), case.upper("link")).expect("link");
    symlink(outside.path(), case.upper("directory")).expect("link");
    let kind = rustix::fs::FileType::Fifo;
    mknodat(CWD, case.upper("pipe"), kind, Mode::RUSR, 0).expect("a pipe");
    fs::File::create(case.upper("sparse"))
        .and_then(|file| file.set_len(1 << 40))
        .expect("a hole");
    case.write("one", b"1\n");
    fs::hard_link(case.upper("one"), case.upper("two")).expect("a link");
    let mut deep = openat(
        CWD,
        case.upper("").parent().expect("it"),
        DIRECTORY,
        Mode::empty(),
    )
    .expect("open");
    for _ in 0..10_000 {
        mkdirat(&deep, "d", Mode::RWXU).expect("mkdir");
        deep = openat(&deep, "d", DIRECTORY, Mode::empty()).expect("open");
    }
    let list = case.list();
    let too_deep = list["too_deep"].as_array().expect("a list");
    assert_eq!(too_deep.len(), 1);
    assert!(
        too_deep[0]["path"]
            .as_str()
            .is_some_and(|path| path.len() > 4000)
    );
    assert!(!list.to_string().contains("canary of the host"));
    let (answer, patch) = case.ask(
        "/project",
        Form::Patch(Binaries::Included, Ignored::LeftOut),
    );
    let patch = String::from_utf8(patch).expect("text");
    assert_eq!(answer.left_out, 2, "{patch}");
    assert!(patch.contains("# left out: pipe: it is a pipe"), "{patch}");
    assert!(
        patch.contains("# left out: sparse: it is too large"),
        "{patch}"
    );
    assert!(!patch.contains("canary of the host"), "{patch}");
    let (tree, _) = case.patched(Binaries::Included);
    assert_eq!(
        tree.get(&b"two"[..]),
        Some(&Kept::File(b"1\n".to_vec(), false))
    );
    let (_, told) = case.ask("/project/link", Form::New);
    assert_eq!(told, outside.path().join("canary").as_os_str().as_bytes());
    assert_eq!(
        case.ask("/project/pipe", Form::New).0.outcome,
        Outcome::NotRegular
    );
    assert_eq!(
        case.ask("/project/directory/canary", Form::New).0.outcome,
        Outcome::NoSuchFile
    );
    crate::spawner::removal::remove(&case.scratch.path().join("upper")).expect("removed");
}
