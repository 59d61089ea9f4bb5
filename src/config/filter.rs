//! Which files of its history a repository does without: filters of git's partial clones, by files alone.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Which files are left out that the commit which is checked out has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Filter {
    /// `blob:none`: all.
    All,
    /// `blob:limit=…`: those of so many bytes or more.
    From(u64),
}

const PATTERN: &str = "^blob:(none|limit=[0-9]+[kKmMgG]?)$";

/// As git writes it, the same text for the same files.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("blob:none"),
            Self::From(size) => write!(f, "blob:limit={size}"),
        }
    }
}

impl From<Filter> for String {
    fn from(filter: Filter) -> Self {
        filter.to_string()
    }
}

impl TryFrom<String> for Filter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let odd = || {
            "is no filter of files; write \"blob:none\", or \"blob:limit=\" and a number of bytes, which may end in \
             k, m or g"
                .to_owned()
        };
        if text == "blob:none" {
            return Ok(Self::All);
        }
        let size = text.strip_prefix("blob:limit=").ok_or_else(odd)?;
        let (digits, unit) = match size.char_indices().last() {
            Some((at, 'k' | 'K')) => (&size[..at], 1 << 10),
            Some((at, 'm' | 'M')) => (&size[..at], 1 << 20),
            Some((at, 'g' | 'G')) => (&size[..at], 1 << 30),
            _ => (size, 1_u64),
        };
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse::<u64>().ok().filter(|_| is_number);
        match number.and_then(|number| number.checked_mul(unit)) {
            Some(0) => Ok(Self::All),
            Some(size) => Ok(Self::From(size)),
            None => Err(odd()),
        }
    }
}

impl JsonSchema for Filter {
    fn schema_name() -> Cow<'static, str> {
        "Filter".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Which files are left out that the commit which is checked out has not: `blob:none`, all; \
                            `blob:limit=…`, those of so many bytes or more, which may end in k, m or g.",
            "type": "string",
            "pattern": PATTERN,
        })
    }
}
