//! Files of a workspace: looked at, listed, taken out and put in.

use std::io;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::BoxStream;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::connection::streamed;
use super::wire::{Entry, Page};
use super::{Client, Error};

/// What stands for itself in a path: RFC 3986's unreserved characters, and the slash.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// A path in a workspace whose id is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InsidePath {
    /// The workspace.
    pub workspace: String,
    /// The path, which begins with a slash.
    pub path: Vec<u8>,
}

impl InsidePath {
    fn target(&self) -> String {
        let path = self.path.strip_prefix(b"/").unwrap_or(&self.path);
        let path = percent_encode(path, ENCODED);
        format!("/workspaces/{}/files/{path}", self.workspace)
    }
}

/// How a thing is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// A file's bytes as they are.
    Bytes,
    /// A tar archive.
    Archive,
}

/// Bytes on their way out of a workspace.
pub struct Download {
    /// The bytes.
    pub bytes: BoxStream<'static, Result<Bytes, Error>>,
    /// How many there are, if that is known.
    pub size: Option<u64>,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// What an archive became.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Unpacked {
    entries: u64,
}

impl Client {
    /// What there is at a path, links followed.
    ///
    /// # Errors
    /// Why it cannot be told, such as that there is nothing.
    pub async fn stat(&self, at: &InsidePath) -> Result<Entry, Error> {
        self.json(Method::GET, &format!("{}?stat=true", at.target()))
            .await
    }

    /// A part of a directory: the first one, or the one after the cursor `after`.
    ///
    /// # Errors
    /// Why it cannot be listed.
    pub async fn list(&self, at: &InsidePath, after: Option<&str>) -> Result<Page, Error> {
        let mut target = at.target();
        if let Some(after) = after {
            target.push_str("?after=");
            target.extend(percent_encode(after.as_bytes(), NON_ALPHANUMERIC));
        }
        self.json(Method::GET, &target).await
    }

    /// A file's bytes, or a file or directory as an archive.
    ///
    /// # Errors
    /// Why they cannot be had.
    pub async fn download(&self, at: &InsidePath, packing: Packing) -> Result<Download, Error> {
        let mut target = at.target();
        if packing == Packing::Archive {
            target.push_str("?archive=tar");
        }
        let answer = self.ask(Method::GET, &target).await?;
        let number = |value: &HeaderValue| value.to_str().ok()?.parse().ok();
        let size = answer.headers.get(CONTENT_LENGTH).and_then(number);
        Ok(Download {
            size,
            bytes: Box::pin(answer.stream()),
        })
    }

    /// Makes a file, or replaces it, whole or not at all; parent directories are made.
    ///
    /// # Errors
    /// Why it is not there. An error of `bytes` breaks the request off.
    pub async fn put_file(
        &self,
        at: &InsidePath,
        mode: u32,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), Error> {
        let target = format!("{}?mode={mode:04o}", at.target());
        let request = Request::builder()
            .method(Method::PUT)
            .header(CONTENT_TYPE, "application/octet-stream");
        let answer = self.send(request, &target, streamed(bytes)).await?;
        answer.json::<Value>().await.map(drop)
    }

    /// Unpacks an archive in a directory, and tells how many entries it had.
    ///
    /// # Errors
    /// Why it is not unpacked, or not wholly. An error of `bytes` breaks the request off.
    pub async fn put_archive(
        &self,
        at: &InsidePath,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<u64, Error> {
        let target = format!("{}?archive=tar", at.target());
        let request = Request::builder()
            .method(Method::PUT)
            .header(CONTENT_TYPE, "application/x-tar");
        let answer = self.send(request, &target, streamed(bytes)).await?;
        Ok(answer.json::<Unpacked>().await?.entries)
    }

    /// Makes a directory, and those that it lies in.
    ///
    /// # Errors
    /// Why it is not there; that it was there before is one.
    pub async fn make_directory(&self, at: &InsidePath, mode: u32) -> Result<(), Error> {
        let mode = format!("{mode:04o}");
        let body = json!({ "mkdir": { "mode": mode, "parents": true } });
        self.post::<Value>(&at.target(), &body).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_can_be_asked_for() {
        for (path, expected) in [
            (&b"/"[..], "/workspaces/w/files/"),
            (b"/a/b-c.d_e~", "/workspaces/w/files/a/b-c.d_e~"),
            (b"/a b?c#d%e\n", "/workspaces/w/files/a%20b%3Fc%23d%25e%0A"),
            (b"/\xff\xc3\xa9", "/workspaces/w/files/%FF%C3%A9"),
            (b"//x", "/workspaces/w/files//x"),
        ] {
            let at = InsidePath {
                workspace: "w".to_owned(),
                path: path.to_owned(),
            };
            assert_eq!(at.target(), expected);
        }
    }
}
