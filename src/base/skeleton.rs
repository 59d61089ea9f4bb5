//! The files put under every base: accounts, name service, a shell's defaults, and the directories
//! that programs expect.
//!
//! It is the lowest layer, so a base that has a file of its own hides ours. There is no `/usr` and
//! no `/bin` in it: bases bring those. Contents are in `rootfs/skeleton/`, modes and owners here.

use std::ffi::OsStr;

use super::archive::{Attributes, TarWriter};

/// 2020-01-01: any fixed time would do, but some programs take 0 for "not set".
const MODIFIED: u64 = 1_577_836_800;

const ROOT: u32 = 0;
const MAIL: u32 = 8;
const SHADOW: u32 = 42;
const STAFF: u32 = 50;

use Content::{Directory, File, Link};

struct Entry {
    path: &'static str,
    mode: u32,
    group: u32,
    content: Content,
}

enum Content {
    Directory,
    File(&'static str),
    Link(&'static str),
}

macro_rules! file {
    ($path:literal, $mode:literal, $group:ident) => {
        entry(
            $path,
            $mode,
            $group,
            File(include_str!(concat!("../../rootfs/skeleton/", $path))),
        )
    };
}

/// Sorted, parents first. Modes are Debian's (base-files, base-passwd).
const ENTRIES: &[Entry] = &[
    directory("dev", 0o755),
    directory("etc", 0o755),
    file!("etc/bash.bashrc", 0o644, ROOT),
    file!("etc/group", 0o644, ROOT),
    file!("etc/hosts", 0o644, ROOT),
    // Programs that list mounts read this; init's mount of /proc answers.
    link("etc/mtab", "../proc/self/mounts"),
    file!("etc/nsswitch.conf", 0o644, ROOT),
    directory("etc/pam.d", 0o755),
    file!("etc/pam.d/other", 0o644, ROOT),
    file!("etc/passwd", 0o644, ROOT),
    file!("etc/profile", 0o644, ROOT),
    file!("etc/resolv.conf", 0o644, ROOT),
    file!("etc/shadow", 0o640, SHADOW),
    file!("etc/shells", 0o644, ROOT),
    // For the tools that make accounts: they give up without it.
    directory("etc/skel", 0o755),
    directory("home", 0o755),
    directory("media", 0o755),
    directory("mnt", 0o755),
    directory("opt", 0o755),
    directory("proc", 0o555),
    directory("root", 0o700),
    directory("run", 0o755),
    directory("run/lock", 0o1777),
    directory("srv", 0o755),
    directory("sys", 0o555),
    directory("tmp", 0o1777),
    directory("var", 0o755),
    directory("var/backups", 0o755),
    directory("var/cache", 0o755),
    directory("var/lib", 0o755),
    entry("var/local", 0o2775, STAFF, Directory),
    link("var/lock", "/run/lock"),
    directory("var/log", 0o755),
    entry("var/mail", 0o2775, MAIL, Directory),
    directory("var/opt", 0o755),
    link("var/run", "/run"),
    directory("var/spool", 0o755),
    link("var/spool/mail", "../mail"),
    directory("var/tmp", 0o1777),
];

/// The skeleton as a tar archive; always the same bytes.
#[must_use]
pub fn skeleton_tar() -> Vec<u8> {
    let mut tar = TarWriter::new();
    for Entry {
        path,
        mode,
        group,
        content,
    } in ENTRIES
    {
        let attributes = Attributes {
            mode: *mode,
            group: *group,
            modified: MODIFIED,
        };
        let path = OsStr::new(path);
        match content {
            Directory => tar.directory(path, attributes),
            File(content) => tar.file(path, attributes, content.as_bytes()),
            Link(target) => tar.symlink(path, MODIFIED, OsStr::new(target)),
        }
    }
    tar.finish()
}

/// Whether the skeleton has a directory at `path`, which is relative to the root.
pub(super) fn has_directory(path: &OsStr) -> bool {
    ENTRIES
        .iter()
        .any(|entry| OsStr::new(entry.path) == path && matches!(entry.content, Directory))
}

const fn entry(path: &'static str, mode: u32, group: u32, content: Content) -> Entry {
    Entry {
        path,
        mode,
        group,
        content,
    }
}

const fn directory(path: &'static str, mode: u32) -> Entry {
    entry(path, mode, ROOT, Directory)
}

const fn link(path: &'static str, target: &'static str) -> Entry {
    entry(path, 0o777, ROOT, Link(target))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::init::unpack::{Compression, UnpackLimits, unpack};

    fn text(path: &str) -> &'static str {
        match ENTRIES
            .iter()
            .find(|entry| entry.path == path)
            .map(|entry| &entry.content)
        {
            Some(File(text)) => text,
            _ => panic!("{path} is not a file of the skeleton"),
        }
    }

    fn files_below(dir: &Path, root: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files_below(&path, root, found);
            } else {
                found.insert(
                    path.strip_prefix(root)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                );
            }
        }
    }

    #[test]
    fn every_file_of_the_folder_is_embedded_and_no_other() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs/skeleton");
        let mut on_disk = BTreeSet::new();
        files_below(&root, &root, &mut on_disk);
        let embedded: BTreeSet<String> = ENTRIES
            .iter()
            .filter(|entry| matches!(entry.content, File(_)))
            .map(|entry| entry.path.to_owned())
            .collect();
        assert_eq!(embedded, on_disk);
    }

    #[test]
    fn the_archive_is_sorted_and_complete_and_always_the_same() {
        for pair in ENTRIES.windows(2) {
            assert!(
                pair[0].path < pair[1].path,
                "{} comes after {}",
                pair[0].path,
                pair[1].path
            );
        }
        for entry in ENTRIES {
            let parent = Path::new(entry.path).parent().unwrap().as_os_str();
            assert!(
                parent.is_empty() || has_directory(parent),
                "{} has no parent",
                entry.path
            );
        }
        assert_eq!(skeleton_tar(), skeleton_tar());
    }

    #[test]
    fn it_unpacks_to_what_the_table_says() {
        let dir = tempfile::tempdir().unwrap();
        unpack(
            skeleton_tar().as_slice(),
            Compression::Plain,
            dir.path(),
            &UnpackLimits::default(),
        )
        .unwrap();
        let mode = |path: &str| {
            fs::metadata(dir.path().join(path))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777
        };
        for (path, expected) in [
            ("root", 0o700),
            ("tmp", 0o1777),
            ("var/tmp", 0o1777),
            ("etc/shadow", 0o640),
            ("proc", 0o555),
        ] {
            assert_eq!(mode(path), expected, "{path}");
        }
        assert_eq!(
            fs::read_link(dir.path().join("var/run")).unwrap(),
            Path::new("/run")
        );
        assert_eq!(
            fs::read_to_string(dir.path().join("etc/passwd")).unwrap(),
            text("etc/passwd")
        );
    }

    #[test]
    fn no_account_can_be_logged_in_to() {
        for line in text("etc/shadow").lines() {
            assert_eq!(line.split(':').nth(1), Some("*"), "{line}");
        }
    }

    #[test]
    fn accounts_agree_with_each_other() {
        let names = |path: &str, field: usize| -> Vec<String> {
            text(path)
                .lines()
                .map(|line| line.split(':').nth(field).unwrap().to_owned())
                .collect()
        };
        assert_eq!(names("etc/passwd", 0), names("etc/shadow", 0));
        let groups = names("etc/group", 2);
        for group in names("etc/passwd", 3) {
            assert!(groups.contains(&group), "no group {group}");
        }
        let group = |name: &str| {
            let line = text("etc/group")
                .lines()
                .find(|line| line.starts_with(&format!("{name}:")))
                .unwrap();
            line.split(':').nth(2).unwrap().parse::<u32>().unwrap()
        };
        assert_eq!(
            (group("mail"), group("shadow"), group("staff")),
            (MAIL, SHADOW, STAFF)
        );
    }
}
