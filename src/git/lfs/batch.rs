//! The batch API of servers of large files: what a request says, and what is believed of an answer.
//!
//! See docs/api/batch.md of git-lfs. Transfers are `basic`: one GET, or one PUT, of each object.

use std::collections::BTreeMap;

use reqwest::Url;
use reqwest::header::HeaderMap;
use serde::{Deserialize, Serialize};

use super::endpoint;
use super::pointer::{Object, Oid};

/// Objects of one request.
pub(super) const AT_ONCE: usize = 100;

/// The most that an answer may be, in bytes.
pub(super) const LARGEST_ANSWER: usize = 8 << 20;

/// The media type of requests and answers.
pub(super) const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

#[derive(Debug, Serialize)]
struct Asked<'a> {
    operation: &'a str,
    transfers: [&'static str; 1],
    objects: Vec<AskedObject<'a>>,
    hash_algo: &'static str,
}

#[derive(Debug, Serialize)]
struct AskedObject<'a> {
    oid: &'a str,
    size: u64,
}

/// A request for these objects.
pub(super) fn request<'a>(
    operation: &'a str,
    objects: impl Iterator<Item = &'a Object>,
) -> Vec<u8> {
    let objects = objects.map(|object| AskedObject {
        oid: object.oid.as_str(),
        size: object.size,
    });
    let asked = Asked {
        operation,
        transfers: ["basic"],
        objects: objects.collect(),
        hash_algo: "sha256",
    };
    serde_json::to_vec(&asked).unwrap_or_default()
}

#[derive(Debug, Deserialize)]
struct Answered {
    #[serde(default)]
    transfer: Option<String>,
    #[serde(default)]
    objects: Vec<AnsweredObject>,
}

#[derive(Debug, Deserialize)]
struct AnsweredObject {
    oid: String,
    #[serde(default)]
    authenticated: Option<bool>,
    #[serde(default)]
    actions: Option<BTreeMap<String, AnsweredAction>>,
    #[serde(default)]
    error: Option<AnsweredError>,
}

#[derive(Debug, Deserialize)]
struct AnsweredAction {
    href: String,
    #[serde(default)]
    header: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct AnsweredError {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

/// What a server says of one object.
#[derive(Debug)]
pub(super) enum Said {
    /// What to do, by name: `download`, `upload`, `verify`.
    Actions(BTreeMap<String, Action>),
    /// It has none, or does not give it: a code as of HTTP, and its words.
    Error(i64, String),
}

/// Where to go with a request.
#[derive(Debug, Clone)]
pub(super) struct Action {
    pub(super) href: Url,
    pub(super) headers: HeaderMap,
    /// Whether nothing else is needed that opens it.
    pub(super) authenticated: bool,
}

/// Reads an answer. Errors with what is wrong with it.
pub(super) fn parse(answer: &[u8]) -> Result<BTreeMap<Oid, Said>, String> {
    let answered: Answered =
        serde_json::from_slice(answer).map_err(|error| format!("no answer of a batch: {error}"))?;
    if answered
        .transfer
        .as_deref()
        .is_some_and(|name| name != "basic")
    {
        return Err("another transfer than was asked for".to_owned());
    }
    let mut all = BTreeMap::new();
    for object in answered.objects {
        let Some(oid) = Oid::parse(&object.oid) else {
            continue;
        };
        if let Some(error) = object.error {
            all.insert(oid, Said::Error(error.code, error.message));
            continue;
        }
        let authenticated = object.authenticated == Some(true);
        let mut actions = BTreeMap::new();
        for (name, action) in object.actions.into_iter().flatten() {
            let href = Url::parse(&action.href).map_err(|_| "a link that is no URL".to_owned())?;
            let headers = endpoint::headers(&action.header.unwrap_or_default());
            let action = Action {
                href,
                headers,
                authenticated,
            };
            actions.insert(name, action);
        }
        all.insert(oid, Said::Actions(actions));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_as_git_lfs_has_them() {
        let oid = "a".repeat(64);
        let object = Object {
            oid: Oid::parse(&oid).expect("one"),
            size: 3,
        };
        let request = String::from_utf8(request("download", [&object].into_iter())).expect("text");
        assert_eq!(
            request,
            format!(
                r#"{{"operation":"download","transfers":["basic"],"objects":[{{"oid":"{oid}","size":3}}],"hash_algo":"sha256"}}"#
            )
        );
        let answer = format!(
            r#"{{"transfer":"basic","objects":[{{"oid":"{oid}","size":3,"authenticated":true,"actions":
               {{"download":{{"href":"https://s/o","header":{{"X-A":"b"}},"expires_in":3600}}}}}},
               {{"oid":"../x","actions":{{}}}},{{"oid":"{}","error":{{"code":404,"message":"gone"}}}}]}}"#,
            "b".repeat(64)
        );
        let parsed = parse(answer.as_bytes()).expect("an answer");
        assert_eq!(parsed.len(), 2);
        let Some(Said::Actions(actions)) = parsed.get(&object.oid) else {
            panic!("{parsed:?}");
        };
        let action = &actions["download"];
        assert_eq!(action.href.as_str(), "https://s/o");
        assert!(action.authenticated && action.headers["x-a"] == "b");
        for odd in [
            "",
            r#"{"transfer":"tus","objects":[]}"#,
            &answer.replace("https://s/o", "::"),
        ] {
            assert!(parse(odd.as_bytes()).is_err(), "{odd}");
        }
    }
}
