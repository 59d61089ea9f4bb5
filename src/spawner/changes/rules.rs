//! Which files are ignored: by the rules that setup's checkout has, gitignore(5), never by the workspace's.

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::fs::{AtFlags, FileType, statat};

use super::super::merging::open_directory;
use super::content::Object;
use super::names::below;

/// A longer file of rules has none.
const LONGEST: u64 = 1 << 20;

/// The rules that count in a directory: its own, then those above it in the repository.
pub(super) struct Rules {
    above: Option<Rc<Self>>,
    /// The absolute path of the directory that they are relative to.
    directory: Vec<u8>,
    rules: Gitignore,
}

impl Rules {
    /// Those in a directory of `base`, which is at `path`, with those above it.
    pub(super) fn within(
        above: Option<Rc<Self>>,
        base: &OwnedFd,
        path: &[u8],
    ) -> io::Result<Option<Rc<Self>>> {
        Self::read(above, base, c".gitignore", path)
    }

    /// Those of a repository in `base`, at `path`, that are in its own directory.
    pub(super) fn of_repository(base: &OwnedFd, path: &[u8]) -> io::Result<Option<Rc<Self>>> {
        match open_directory(base, b".git/info")? {
            Some(info) => Self::read(None, &info, c"exclude", path),
            None => Ok(None),
        }
    }

    fn read(
        above: Option<Rc<Self>>,
        directory: &OwnedFd,
        name: &std::ffi::CStr,
        path: &[u8],
    ) -> io::Result<Option<Rc<Self>>> {
        let Ok(status) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(above);
        };
        let object = Object::new(directory, name, status);
        if !object.is(FileType::RegularFile) || object.size() > LONGEST {
            return Ok(above);
        }
        let mut builder = GitignoreBuilder::new("");
        for line in object.read()?.split(|byte| *byte == b'\n') {
            // What is no text and no rule git passes over as well.
            if let Ok(line) = std::str::from_utf8(line) {
                let _ = builder.add_line(None, line.trim_end_matches('\r'));
            }
        }
        let Ok(rules) = builder.build() else {
            return Ok(above);
        };
        Ok(Some(Rc::new(Self {
            above,
            directory: path.to_vec(),
            rules,
        })))
    }

    /// Whether they name a path, where they name none of the directories that lead to it.
    pub(super) fn ignore(&self, path: &[u8], is_directory: bool) -> bool {
        let mut rules = Some(self);
        while let Some(here) = rules {
            let relative = below(path, &here.directory).unwrap_or_default();
            let relative = Path::new(std::ffi::OsStr::from_bytes(relative));
            match here.rules.matched(relative, is_directory) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => rules = here.above.as_deref(),
            }
        }
        false
    }
}

/// A longer index is not looked at.
const LONGEST_INDEX: u64 = 256 << 20;

/// The files that a repository's index names, gitformat-index(5); nothing where it cannot be told.
pub(super) fn tracked(git: &OwnedFd) -> Option<HashSet<Vec<u8>>> {
    let status = statat(git, c"index", AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let object = Object::new(git, c"index", status);
    if !object.is(FileType::RegularFile) || object.size() > LONGEST_INDEX {
        return None;
    }
    let mut bytes = Vec::new();
    object.open().ok()?.read_to_end(&mut bytes).ok()?;
    parse_index(&bytes)
}

/// Versions 2 to 4, with names of SHA-1.
fn parse_index(bytes: &[u8]) -> Option<HashSet<Vec<u8>>> {
    let number = |at: usize| {
        let bytes: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    };
    let version = number(4)?;
    if bytes.get(..4)? != b"DIRC" || !(2..=4).contains(&version) {
        return None;
    }
    let mut names = HashSet::new();
    let mut last: Vec<u8> = Vec::new();
    let mut at = 12;
    for _ in 0..number(8)? {
        // Ten numbers and the name of the object come before the flags.
        let flags = number(at + 60)? >> 16;
        let start = at + if flags & 0x4000 == 0 { 62 } else { 64 };
        let mut name_at = start;
        if version == 4 {
            // As in packs: how much of the last name goes.
            let mut gone = 0_usize;
            loop {
                let byte = *bytes.get(name_at)?;
                name_at += 1;
                gone = gone
                    .checked_mul(128)?
                    .checked_add(usize::from(byte & 0x7f))?;
                if byte & 0x80 == 0 {
                    break;
                }
                gone += 1;
            }
            last.truncate(last.len().checked_sub(gone)?);
        } else {
            last.clear();
        }
        let length = bytes.get(name_at..)?.iter().position(|byte| *byte == 0)?;
        last.extend(&bytes[name_at..name_at + length]);
        names.insert(last.clone());
        let end = name_at + length;
        at = if version == 4 {
            end + 1
        } else {
            // Filled with one to eight zeros to a multiple of eight.
            at + ((end - at) / 8 + 1) * 8
        };
    }
    // What else there is, and the checksum. An index of names of another length, or one that leaves names to
    // another file, is told by this.
    let end = bytes.len().checked_sub(20)?;
    while at < end {
        if bytes.get(at)?.is_ascii_lowercase() {
            return None;
        }
        let length = usize::try_from(number(at + 4)?).ok()?;
        at = at.checked_add(8)?.checked_add(length)?;
    }
    (at == end).then_some(names)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_index_names_what_git_tracks() {
        for version in ["2", "3", "4"] {
            let scratch = tempfile::tempdir().unwrap();
            let git = |arguments: &[&str]| {
                let done = Command::new("git")
                    .args(["-c", "user.name=a", "-c", "user.email=a@b"])
                    .args(arguments)
                    .current_dir(scratch.path())
                    .output()
                    .expect("git runs");
                assert!(done.status.success(), "{done:?}");
            };
            git(&["init", "-q"]);
            let mut expected = HashSet::new();
            let long = "l".repeat(200);
            for name in ["a", "ab", "abcdefg", "b/c", "b/cd", &long, "with space"] {
                let path = scratch.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, name).unwrap();
                expected.insert(name.as_bytes().to_vec());
            }
            git(&["add", "."]);
            if version == "3" {
                // What has a second word of flags.
                std::fs::write(scratch.path().join("later"), "").unwrap();
                git(&["add", "-N", "later"]);
                expected.insert(b"later".to_vec());
            }
            git(&["update-index", "--index-version", version]);
            let bytes = std::fs::read(scratch.path().join(".git/index")).unwrap();
            assert_eq!(bytes[7].to_string(), version);
            assert_eq!(parse_index(&bytes), Some(expected), "{version}");
            for length in 0..bytes.len().min(200) {
                // Cut short it tells nothing, and does no harm.
                let _ = parse_index(&bytes[..length]);
            }
        }
        assert_eq!(parse_index(b"DIRC"), None);

        // What names other objects, or leaves names to another file, tells nothing either.
        let scratch = tempfile::tempdir().unwrap();
        let script = "git init -q --object-format=sha256 && touch a b c && git add .";
        let done = Command::new("sh")
            .args(["-c", script])
            .current_dir(scratch.path())
            .output()
            .expect("git runs");
        assert!(done.status.success(), "{done:?}");
        let index = |name: &[u8; 4]| {
            let head = [&b"DIRC"[..], &2_u32.to_be_bytes(), &0_u32.to_be_bytes()];
            let extension = [&name[..], &3_u32.to_be_bytes(), b"abc", &[0; 20]];
            [head.concat(), extension.concat()].concat()
        };
        let sha256 = std::fs::read(scratch.path().join(".git/index")).unwrap();
        assert_eq!(parse_index(&sha256), None);
        assert_eq!(parse_index(&index(b"link")), None);
        assert_eq!(parse_index(&index(b"TREE")), Some(HashSet::new()));
    }
}
