//! Why something that was asked of a provider was not done.

use std::error::Error as StdError;
use std::io;

use hyper::StatusCode;
use serde::Deserialize;
use tokio_tungstenite::tungstenite;

use super::printable::printable;
use crate::server::http::TokenError;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers there.
    #[error(
        "cannot reach derrick at {server}; is it running? --server or DERRICK_SERVER says where it is"
    )]
    Unreachable {
        /// Where it should be.
        server: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection ended in the middle.
    #[error("the connection to derrick broke")]
    Broken(#[source] Box<dyn StdError + Send + Sync>),
    /// What was to be sent came to an end too early; so did the request.
    #[error("cannot send all of it")]
    Unsent(#[source] Box<dyn StdError + Send + Sync>),
    /// The provider answered that it will not or cannot.
    #[error("{detail}")]
    Refused {
        /// The status of the answer.
        status: StatusCode,
        /// The last part of the problem's `type`, such as `no-such-file`; empty if there is none.
        kind: String,
        /// What it said, fit for a terminal.
        detail: String,
        /// The most of what was asked for that it would give, where it says so.
        most: Option<u64>,
    },
    /// The provider answered something else than it was asked.
    #[error("derrick's answer is not what this version of the client understands")]
    Unintelligible(#[source] serde_json::Error),
    /// It did so in another way.
    #[error("derrick's answer is not what this version of the client understands: {0}")]
    Unexpected(&'static str),
    /// It cannot be sent.
    #[error("cannot send {0}: it has bytes that have no place there")]
    Unfit(&'static str),
    /// Nothing has an id with this part.
    #[error("there is no {what} whose id begins or ends with '{part}'")]
    NoneSuch {
        /// What was looked for.
        what: &'static str,
        /// What was typed.
        part: String,
    },
    /// More than one has.
    #[error("'{part}' could be any of these {what}s: {}", list(.candidates))]
    Ambiguous {
        /// What was looked for.
        what: &'static str,
        /// What was typed.
        part: String,
        /// The ids that it fits.
        candidates: Vec<String>,
    },
    /// The token file is not fit for one.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl Error {
    /// From a status that is no success, and the problem details in its body, if they are any.
    pub(super) fn refused(status: StatusCode, body: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Problem {
            r#type: String,
            detail: String,
            most: Option<u64>,
        }
        let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
        let kind = problem.r#type.strip_prefix("urn:derrick:problem:");
        let detail = if problem.detail.is_empty() {
            format!("derrick answered {status}")
        } else {
            printable(&problem.detail)
        };
        Self::Refused {
            status,
            kind: kind.unwrap_or_default().to_owned(),
            detail,
            most: problem.most,
        }
    }

    /// From reading a body whose length is bounded.
    pub(super) fn body(source: Box<dyn StdError + Send + Sync>) -> Self {
        if source.is::<http_body_util::LengthLimitError>() {
            Self::Unexpected("it is too long")
        } else {
            Self::Broken(source)
        }
    }

    /// Whether the answer was a no: what was asked for is not there, or may not be.
    #[must_use]
    pub fn is_no(&self) -> bool {
        match self {
            Self::Refused { status, .. } => status.is_client_error(),
            Self::NoneSuch { .. } | Self::Ambiguous { .. } => true,
            _ => false,
        }
    }

    /// Whether the same may well be answered if it is asked again.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Broken(_))
    }

    /// The most that it would give of what was asked for, where the answer was a no that says so.
    #[must_use]
    pub fn most(&self) -> Option<u64> {
        match self {
            Self::Refused { most, .. } => *most,
            _ => None,
        }
    }

    /// Whether the answer was a no for this reason, as the last part of the problem's `type`.
    #[must_use]
    pub fn is(&self, reason: &str) -> bool {
        matches!(self, Self::Refused { kind, .. } if kind == reason)
    }
}

impl From<hyper::Error> for Error {
    fn from(error: hyper::Error) -> Self {
        // Whoever speaks something else will do so the next time, too.
        if error.is_parse() {
            Self::Unexpected("it is not HTTP")
        } else if error.is_user() {
            Self::Unsent(error.into())
        } else {
            Self::Broken(error.into())
        }
    }
}

impl From<tungstenite::Error> for Error {
    fn from(error: tungstenite::Error) -> Self {
        use tungstenite::Error as E;
        match error {
            E::Capacity(_) => Self::Unexpected("a message is too long"),
            E::Utf8(_) => Self::Unexpected("a message is no text"),
            error => Self::Broken(error.into()),
        }
    }
}

fn list(candidates: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = candidates[..candidates.len().min(SHOWN)].join(", ");
    if candidates.len() > SHOWN {
        text.push_str(&format!(" and {} more", candidates.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_by_its_detail_and_nothing_in_it_reaches_a_terminal() {
        let body = r#"{"type":"urn:derrick:problem:no-such-file","detail":"there is no \u001b]0;x\u0007 file"}"#;
        let error = Error::refused(StatusCode::NOT_FOUND, body.as_bytes());
        assert!(error.is_no() && error.is("no-such-file"));
        assert_eq!(error.to_string(), r"there is no \u{1b}]0;x\u{7} file");
        let error = Error::refused(StatusCode::BAD_GATEWAY, b"<html>");
        assert!(!error.is_no());
        assert_eq!(error.to_string(), "derrick answered 502 Bad Gateway");
    }
}
