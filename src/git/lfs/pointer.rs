//! Pointers: what git keeps of a large file, and which files of a commit are some.
//!
//! Whoever commits to a repository writes them, and `.gitattributes` as well. git looks for them in the mirror,
//! by a temporary index and next to no file, so that attributes come out of the commit.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::super::error::GitError;
use super::super::mirror::{Mirror, blocking};
use super::super::process::{Call, Failure, Input};
use super::super::reference::CommitId;

/// The most that a pointer has, in bytes; git-lfs takes what is larger for content.
pub(super) const LARGEST: u64 = 1024;

/// Pointers that are read at once.
const AT_ONCE: usize = 10_000;

/// The SHA-256 of a large file's content, which is its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::git) struct Oid(String);

impl Oid {
    /// 64 digits in lower case.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == 64 && text.bytes().all(digit)).then(|| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// `aa/bb/oid`, as git-lfs has it below a directory of objects.
    pub(super) fn place(&self) -> PathBuf {
        Path::new(&self.0[..2]).join(&self.0[2..4]).join(&self.0)
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A large file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::git) struct Object {
    pub(super) oid: Oid,
    pub(super) size: u64,
}

/// A file of a commit that is kept elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::git) struct Pointer {
    /// Below the repository's root, as git has it.
    pub(super) path: PathBuf,
    pub(super) object: Object,
    /// The pointer itself.
    pub(in crate::git) blob: String,
    pub(super) executable: bool,
}

impl Pointer {
    /// The path, fit to be shown.
    pub(super) fn shown(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

/// Reads a pointer as git-lfs writes them: three lines and no more.
pub(super) fn parse(text: &[u8]) -> Option<Object> {
    if text.len() as u64 > LARGEST {
        return None;
    }
    let text = str::from_utf8(text).ok()?;
    let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
    if lines.next()? != "version https://git-lfs.github.com/spec/v1" {
        return None;
    }
    let oid = Oid::parse(lines.next()?.strip_prefix("oid sha256:")?)?;
    let size = lines.next()?.strip_prefix("size ")?;
    let is_number = size.bytes().all(|byte| byte.is_ascii_digit()) && !size.starts_with('0');
    let size = size.parse().ok().filter(|_| is_number)?;
    lines.next().is_none().then_some(Object { oid, size })
}

/// The pointers among the files of a commit that the mirror has, in git's order.
pub(super) async fn list(mirror: &Mirror, commit: &CommitId) -> Result<Vec<Pointer>, GitError> {
    let failed = |failure: Failure| GitError::local("look for large files", failure);
    let place = super::directory(mirror);
    let scratch = blocking("look for large files", move || {
        std::fs::create_dir_all(&place)?;
        let scratch = tempfile::Builder::new().prefix("list-").tempdir_in(place)?;
        std::fs::create_dir(scratch.path().join("empty"))?;
        Ok(scratch)
    })
    .await?;
    let (index, empty) = (scratch.path().join("index"), scratch.path().join("empty"));
    let git = || {
        let call = mirror.git().hiding(scratch.path()).with_index(&index);
        call.in_work_tree(&empty).within(&empty)
    };
    let read = git().args(["read-tree", commit.as_str()]);
    read.output().await.map_err(failed)?;
    let listed = git().args(["ls-files", "-s", "-z", "--", ":(top,attr:filter=lfs)"]);
    let entries = entries(&listed.output().await.map_err(failed)?);
    let blobs: Vec<&str> = entries.iter().map(|entry| entry.blob.as_str()).collect();
    let known = read_blobs(|| mirror.git(), &blobs).await?;
    let pointers = entries.into_iter().filter_map(|entry| {
        Some(Pointer {
            object: known.get(&entry.blob)?.clone(),
            path: entry.path,
            blob: entry.blob,
            executable: entry.executable,
        })
    });
    Ok(pointers.collect())
}

/// What these objects point to, those of them that are pointers; `git` has them.
pub(super) async fn read_blobs(
    git: impl Fn() -> Call,
    blobs: &[&str],
) -> Result<HashMap<String, Object>, GitError> {
    let failed = |failure: Failure| GitError::local("read pointers to large files", failure);
    let ask = |mode: &str, blobs: &[&str]| {
        let asked = blobs.iter().map(|blob| format!("{blob}\n"));
        let call = git().args(["cat-file", "--buffer", mode]);
        call.input(Input::Bytes(asked.collect::<String>().into_bytes()))
    };
    let mut known = HashMap::new();
    for blobs in blobs.chunks(AT_ONCE) {
        let sizes = ask(
            "--batch-check=%(objectname) %(objecttype) %(objectsize)",
            blobs,
        );
        let sizes = sizes.output().await.map_err(failed)?;
        let small = sizes.split(|&byte| byte == b'\n').filter_map(|line| {
            let (blob, size) = str::from_utf8(line).ok()?.split_once(" blob ")?;
            let size: u64 = size.parse().ok()?;
            (size <= LARGEST).then_some(blob)
        });
        let small: Vec<&str> = small.collect();
        let contents = ask("--batch", &small).output().await.map_err(failed)?;
        known.extend(contents_of(&contents).filter_map(|(blob, text)| {
            let object = parse(text)?;
            Some((blob.to_owned(), object))
        }));
    }
    Ok(known)
}

/// Reads what `git cat-file --batch` printed: `<id> <kind> <size>`, a line's end, the content, a line's end.
fn contents_of(printed: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    let mut rest = printed;
    std::iter::from_fn(move || {
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        let mut words = str::from_utf8(&rest[..end]).ok()?.split(' ');
        let (blob, _, size) = (words.next()?, words.next()?, words.next()?);
        let (content, after) = rest[end + 1..].split_at_checked(size.parse().ok()?)?;
        rest = after.get(1..)?;
        Some((blob, content))
    })
}

/// A file of an index.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    path: PathBuf,
    blob: String,
    executable: bool,
}

/// Reads what `git ls-files -s -z` printed: mode, id, stage, a tab and the path. Files alone.
fn entries(printed: &[u8]) -> Vec<Entry> {
    let entry = |line: &[u8]| {
        let tab = line.iter().position(|&byte| byte == b'\t')?;
        let mut words = str::from_utf8(&line[..tab]).ok()?.split(' ');
        let (mode, blob) = (words.next()?, words.next()?);
        let executable = match mode {
            "100644" => false,
            "100755" => true,
            _ => return None,
        };
        Some(Entry {
            path: Path::new(std::ffi::OsStr::from_bytes(&line[tab + 1..])).to_owned(),
            blob: blob.to_owned(),
            executable,
        })
    };
    printed.split(|&byte| byte == 0).filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_three_lines_and_nothing_else() {
        let oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
        let version = "version https://git-lfs.github.com/spec/v1";
        let right = format!("{version}\noid sha256:{oid}\nsize 12345\n");
        let object = Object {
            oid: Oid(oid.to_owned()),
            size: 12345,
        };
        assert_eq!(parse(right.as_bytes()), Some(object.clone()));
        assert_eq!(parse(right.trim_end().as_bytes()), Some(object.clone()));
        assert_eq!(
            object.oid.place(),
            Path::new("4d/7a").join(oid),
            "as git-lfs has it"
        );
        for wrong in [
            String::new(),
            format!("{right}\n"),
            format!("{right}x 1\n"),
            format!("\n{right}"),
            right.replace("/v1", "/v2"),
            right.replace("sha256", "sha512"),
            right.replace(oid, &oid.to_uppercase()),
            right.replace(oid, &oid[1..]),
            right.replace(oid, &format!("{oid}0")),
            right.replace(oid, &format!("../{}", &oid[3..])),
            right.replace("4d7", "4d/"),
            right.replace("12345", "-1"),
            right.replace("12345", "+1"),
            right.replace("12345", "012"),
            right.replace("12345", "0"),
            right.replace("12345", ""),
            right.replace("12345", "1 2"),
            right.replace("12345", "99999999999999999999999"),
            right.replace('\n', "\r\n"),
            format!("{version}\next-0-x sha256:{oid}\noid sha256:{oid}\nsize 1\n"),
            format!("{version}\noid sha256:{oid}\n{}size 1\n", "a".repeat(1024)),
        ] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_git_prints_of_an_index_and_of_blobs_is_read_as_it_is() {
        let id = "a".repeat(40);
        let printed = format!(
            "100644 {id} 0\ta b\tc\n\0120000 {id} 0\tlink\0100755 {id} 0\tx\0160000 {id} 0\tsub\0"
        );
        let read = entries(printed.as_bytes());
        let read: Vec<_> = read
            .iter()
            .map(|entry| (entry.path.to_str(), entry.executable))
            .collect();
        assert_eq!(read, [(Some("a b\tc\n"), false), (Some("x"), true)]);
        let printed = b"11 blob 3\na\nb\n22 missing\n33 blob 0\n\n";
        let read: Vec<_> = contents_of(printed).collect();
        assert_eq!(read, [("11", &b"a\nb"[..])]);
        let printed = b"11 blob 3\na\nb\n33 blob 0\n\n44 blob 5\nabc";
        let read: Vec<_> = contents_of(printed).collect();
        assert_eq!(read, [("11", &b"a\nb"[..]), ("33", &b""[..])]);
    }
}
