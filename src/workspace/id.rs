//! The workspace's id: made by the provider, never text of a caller joined to a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Names one workspace: 1 to 63 characters of `a-z`, `0-9` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[a-z0-9-]{1,63}$")]
pub struct WorkspaceId(String);

impl WorkspaceId {
    /// A new id; later ones sort after earlier ones.
    #[must_use]
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkspaceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId)
        }
    }
}

impl TryFrom<String> for WorkspaceId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<WorkspaceId> for String {
    fn from(id: WorkspaceId) -> Self {
        id.0
    }
}

impl fmt::Display for WorkspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is no workspace id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a workspace id has 1 to 63 characters of a-z, 0-9 and '-'")]
pub struct InvalidId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_it_generates_and_nothing_that_could_be_a_path() {
        let id = WorkspaceId::generate();
        assert_eq!(id.as_str().parse::<WorkspaceId>(), Ok(id));
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "A",
            "a b",
            "a\0",
            "ü",
            &"a".repeat(64),
        ] {
            assert_eq!(bad.parse::<WorkspaceId>(), Err(InvalidId), "{bad:?}");
        }
    }
}
