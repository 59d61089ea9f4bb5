//! What a repository is looked at: a commit, and the name that led to it.
//!
//! A commit id that reaches git as an argument has been parsed here, so it can never be an option,
//! a path or an expression.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The full name of a git object, a commit as a rule: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId(String);

impl CommitId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CommitId {
    type Err = InvalidCommitId;

    fn from_str(text: &str) -> Result<Self, InvalidCommitId> {
        if matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(InvalidCommitId)
        }
    }
}

impl TryFrom<String> for CommitId {
    type Error = InvalidCommitId;

    fn try_from(text: String) -> Result<Self, InvalidCommitId> {
        text.parse()
    }
}

impl From<CommitId> for String {
    fn from(id: CommitId) -> Self {
        id.0
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is no commit id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a commit id has 40 or 64 hexadecimal digits")]
pub struct InvalidCommitId;

/// What kind of name a commit was found by; decides what a checkout has as its `HEAD`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "name", rename_all = "snake_case")]
pub enum Reference {
    /// A branch, without `refs/heads/`; the remote's default branch too. `HEAD` is this branch.
    Branch(String),
    /// A tag, without `refs/tags/`. `HEAD` is detached.
    Tag(String),
    /// Neither: the commit itself. `HEAD` is detached.
    Commit,
}

impl Reference {
    /// The branch and the tag that a name may mean, in this order, each with its full name; full names are taken
    /// too.
    pub(super) fn meant_by(name: &str) -> [(String, Self); 2] {
        let branch = name.strip_prefix("refs/heads/").unwrap_or(name);
        let tag = name.strip_prefix("refs/tags/").unwrap_or(name);
        [
            (
                format!("refs/heads/{branch}"),
                Self::Branch(branch.to_owned()),
            ),
            (format!("refs/tags/{tag}"), Self::Tag(tag.to_owned())),
        ]
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Branch(name) | Self::Tag(name) => f.write_str(name),
            Self::Commit => f.write_str("HEAD"),
        }
    }
}

/// A repository's reference, resolved: the answer of [`super::Mirrors::resolve`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resolved {
    /// The commit that was found.
    pub commit: CommitId,
    /// What it was found by.
    pub reference: Reference,
}

/// Whether git would take `name` as a branch's or tag's name (git-check-ref-format(1)).
///
/// Names that come from git itself have passed its own check; this one is for names that were
/// stored in between and are about to be written into a file of references.
pub(super) fn is_ref_name(name: &str) -> bool {
    let forbidden = |byte: u8| byte <= b' ' || byte == 0x7f || b"~^:?*[\\".contains(&byte);
    let component =
        |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    !name.bytes().any(forbidden)
        && name.split('/').all(component)
        && !name.contains("..")
        && !name.contains("@{")
        && !name.ends_with('.')
}

/// Whether a mirror can have a reference of this full name: git has a file for it, and a lock beside that.
pub(super) fn fits_a_file(name: &[u8]) -> bool {
    const LONGEST_PART: usize = 255 - ".lock".len();
    const LONGEST: usize = 1024;
    let mut parts = name.split(|&byte| byte == b'/');
    name.len() <= LONGEST && parts.all(|part| part.len() <= LONGEST_PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_a_file() {
        let long = |length: usize| format!("refs/heads/{}/x", "a".repeat(length)).into_bytes();
        assert!(fits_a_file(&long(250)));
        assert!(!fits_a_file(&long(251)));
        assert!(!fits_a_file("a/".repeat(600).as_bytes()));
    }

    #[test]
    fn a_commit_id_is_whole_and_hexadecimal() {
        let sha1 = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(
            sha1.parse::<CommitId>().map(String::from).as_deref(),
            Ok(sha1)
        );
        assert_eq!(sha1.to_uppercase().parse::<CommitId>(), sha1.parse());
        assert!("ab".repeat(32).parse::<CommitId>().is_ok());
        for bad in [
            "",
            "0123456",
            "--upload-pack=touch /x",
            &sha1[1..],
            &"g".repeat(40),
            &format!("{sha1}\n"),
        ] {
            assert_eq!(bad.parse::<CommitId>(), Err(InvalidCommitId), "{bad:?}");
        }
    }

    #[test]
    fn a_resolved_reference_survives_json() {
        let at = Resolved {
            commit: "a".repeat(40).parse().expect("a commit id"),
            reference: Reference::Branch("feature/x".into()),
        };
        let text = serde_json::to_string(&at).expect("serializes");
        assert_eq!(serde_json::from_str::<Resolved>(&text).expect("parses"), at);
        let bare = r#"{"commit":"--x","reference":{"kind":"commit"}}"#;
        assert!(serde_json::from_str::<Resolved>(bare).is_err());
    }

    #[test]
    fn reference_names_are_what_git_takes() {
        for good in ["main", "-x", "feature/a\"b", "v1.0", "ü", "a@b"] {
            assert!(is_ref_name(good), "{good:?}");
        }
        for bad in [
            "", "a b", "a\nb", "a..b", "/a", "a/", "a//b", ".a", "a/.b", "a.lock", "a.", "a@{b",
            "a:b", "a~1",
        ] {
            assert!(!is_ref_name(bad), "{bad:?}");
        }
    }
}
