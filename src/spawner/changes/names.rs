//! Names and paths: which are git's own, and how they are told.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Code points that HFS+ leaves out of names.
const LEFT_OUT_BY_HFS: [char; 17] = [
    '\u{200c}', '\u{200d}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}',
    '\u{202e}', '\u{206a}', '\u{206b}', '\u{206c}', '\u{206d}', '\u{206e}', '\u{206f}', '\u{feff}',
    '\u{200b}',
];

/// Whether git takes a name for that of its own directory on some filesystem, and so refuses it everywhere.
pub(super) fn is_git(name: &[u8]) -> bool {
    means(name, ".git", "git~1")
}

/// The same of the file of submodules, which git refuses as a link.
pub(super) fn is_git_modules(name: &[u8]) -> bool {
    means(name, ".gitmodules", "gitmod~1")
}

/// Whether git-apply(1) refuses a path, and the whole patch with it: because some filesystem would take a part of it
/// for git's own directory or, of a link, for the file of submodules. On NTFS a backslash begins a part as well.
pub(super) fn is_refused(path: &[u8], is_link: bool) -> bool {
    path.split(|byte| *byte == b'/').any(|part| {
        let starts = (0..part.len()).filter(|at| *at == 0 || part[at - 1] == b'\\');
        let mut names = starts.map(|at| &part[at..]);
        is_git(part)
            || (is_link && is_git_modules(part))
            || names.any(|name| is_ntfs_git(name) || (is_link && is_ntfs_git_modules(name)))
    })
}

/// As `is_ntfs_dotgit` of git.
fn is_ntfs_git(name: &[u8]) -> bool {
    let rest = without(name, b".git").or_else(|| without(name, b"git~1"));
    rest.is_some_and(|rest| matches!(after_dots(rest), None | Some(b':' | b'\\')))
}

/// As `is_ntfs_dotgitmodules` of git, and a little more of the short names.
fn is_ntfs_git_modules(name: &[u8]) -> bool {
    let long = without(name, b".gitmodules");
    // A short name: the first letters, or those of a hash, and a number.
    let short = ["gitmod", "gi7eba", "gi7eb", "gi7e", "gi7", "gi"].into_iter();
    let mut short = short.filter_map(|begin| {
        let rest = without(name, begin.as_bytes())?.strip_prefix(b"~")?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (digits > 0).then(|| &rest[digits..])
    });
    long.or_else(|| short.next())
        .is_some_and(|rest| matches!(after_dots(rest), None | Some(b':')))
}

/// The first byte after dots and spaces.
fn after_dots(name: &[u8]) -> Option<&u8> {
    name.iter().find(|byte| !b" .".contains(byte))
}

/// What follows a beginning in whatever case.
fn without<'a>(name: &'a [u8], begin: &[u8]) -> Option<&'a [u8]> {
    let (first, rest) = name.split_at_checked(begin.len())?;
    first.eq_ignore_ascii_case(begin).then_some(rest)
}

fn means(name: &[u8], meant: &str, short: &str) -> bool {
    let Ok(name) = std::str::from_utf8(name) else {
        return false;
    };
    // NTFS: streams and spaces and dots at the end do not count.
    let ntfs = name.split([':', '\\']).next().unwrap_or_default();
    let ntfs = ntfs.trim_end_matches([' ', '.']);
    let hfs: String = name
        .chars()
        .filter(|letter| !LEFT_OUT_BY_HFS.contains(letter))
        .collect();
    [ntfs, &hfs]
        .into_iter()
        .any(|name| name.eq_ignore_ascii_case(meant) || name.eq_ignore_ascii_case(short))
}

/// A path as a patch has it: as it is, or between quotation marks where anything in it is unusual.
pub(super) fn quoted(path: &[u8]) -> Vec<u8> {
    let usual = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+@%,=~^".contains(byte);
    if path.iter().all(usual) {
        return path.to_vec();
    }
    let mut quoted = vec![b'"'];
    for byte in path {
        match byte {
            b'"' | b'\\' => quoted.extend([b'\\', *byte]),
            b' '..=b'~' => quoted.push(*byte),
            other => quoted.extend(format!("\\{other:03o}").into_bytes()),
        }
    }
    quoted.push(b'"');
    quoted
}

/// As text for people, and in base64 where that is not the same.
pub(super) fn told(bytes: &[u8]) -> (String, Option<String>) {
    let text = String::from_utf8_lossy(bytes);
    let exact = text.as_bytes() == bytes;
    (text.into_owned(), (!exact).then(|| STANDARD.encode(bytes)))
}

/// A path in a directory.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, b"/", name].concat()
}

/// The last name of a path.
pub(super) fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// What is left of a path below a directory of which it may be a part: nothing for the directory itself.
pub(super) fn below<'a>(path: &'a [u8], directory: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(directory)?;
    match rest {
        [] => Some(rest),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_any_filesystem_takes_for_gits_directory_is() {
        for name in [
            ".git",
            ".GIT",
            ".Git ",
            ".git. .",
            "git~1",
            "GIT~1",
            ".g\u{200c}it",
            ".git:x",
            ".git::$INDEX_ALLOCATION",
            ".git\\config",
        ] {
            assert!(is_git(name.as_bytes()), "{name}");
        }
        for name in [".gitignore", "git", "git~2", ".git-x", " .git", ""] {
            assert!(!is_git(name.as_bytes()), "{name}");
        }
        assert!(!is_git(b".git\xff"));
    }

    #[test]
    fn what_git_refuses_in_a_patch_is_known() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let takes = |path: &[u8], mode: &str| {
            let mut patch = b"diff --git ".to_vec();
            for prefix in [&b"a/"[..], b"b/"] {
                patch.extend(quoted(&[prefix, path].concat()));
                patch.push(if prefix == b"a/" { b' ' } else { b'\n' });
            }
            patch.extend(format!("new file mode {mode}\n").into_bytes());
            patch.extend(b"index 0000000..e69de29\n");
            std::fs::write(scratch.path().join("patch"), patch).expect("a file");
            let checked = std::process::Command::new("git")
                .args(["apply", "--check", "patch"])
                .current_dir(scratch.path())
                .output()
                .expect("git runs");
            checked.status.success()
        };
        for path in [
            &b"x\\.git"[..],
            b"x\\git~1",
            b".git:\xff",
            b"a/.Git. /b",
            b"a\\b\\.GIT:x/y",
        ] {
            assert!(is_refused(path, false), "{path:?}");
            assert!(!takes(path, "100644"), "{path:?}");
        }
        for path in [
            &b"gitmod~2"[..],
            b"GITMOD~4 .",
            b"gi7eba~1",
            b"a/.gitmodules:x",
            b"gi7e~12",
        ] {
            assert!(
                is_refused(path, true) && !is_refused(path, false),
                "{path:?}"
            );
        }
        for path in [
            &b"a/b"[..],
            b".gitignore",
            b"x.git",
            b"x\\.gitx",
            b"git~2",
            b"\xff",
        ] {
            assert!(!is_refused(path, true), "{path:?}");
            assert!(takes(path, "100644"), "{path:?}");
        }
    }

    #[test]
    fn an_unusual_path_is_one_line_of_ascii() {
        for (path, expected) in [
            (&b"a/b.c"[..], "a/b.c"),
            (b"a b", "\"a b\""),
            (b"new\nline", "\"new\\012line\""),
            (b"\"\\", "\"\\\"\\\\\""),
            (b"\xff\xc3\xa4", "\"\\377\\303\\244\""),
        ] {
            assert_eq!(quoted(path), expected.as_bytes());
        }
    }

    #[test]
    fn a_path_is_below_a_directory_by_whole_names() {
        assert_eq!(below(b"/a/b", b"/a"), Some(&b"b"[..]));
        assert_eq!(below(b"/a", b"/a"), Some(&b""[..]));
        assert_eq!(below(b"/ab", b"/a"), None);
        assert_eq!(below(b"/ab", b""), Some(&b"ab"[..]));
    }
}
