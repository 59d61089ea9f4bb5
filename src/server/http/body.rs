//! Bodies of requests: bounded in size, time and total memory; then JSON, then base64.
//!
//! A body is held once. The file in a `write_file` is decoded piece by piece from the body's own
//! bytes while it is written, so the decoded file is never in memory.

use std::borrow::Cow;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::extract::Request;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::guard;
use super::problem::{Kind, Problem};

/// Largest body of a `write_file`, in bytes.
pub(super) const MAX_UPLOAD: usize = 100 * 1024 * 1024;

/// Largest body of any other request, in bytes.
pub(super) const MAX_BODY: usize = 8 * 1024 * 1024;

/// Bodies up to this size, in bytes, never wait for memory.
const SMALL: usize = 1024 * 1024;

/// Memory that all larger bodies together may take, in KiB.
const UPLOADS: usize = 512 * 1024;

/// The memory for large bodies: who has none waits before the body is read.
pub(super) struct Uploads(Arc<Semaphore>);

impl Uploads {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(UPLOADS)))
    }

    async fn reserve(&self, size: usize) -> Option<OwnedSemaphorePermit> {
        if size <= SMALL {
            return None;
        }
        let share = u32::try_from(size.div_ceil(1024)).ok()?;
        Arc::clone(&self.0).acquire_many_owned(share).await.ok()
    }
}

/// A whole body and its share of the memory.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) bytes: Bytes,
    reserved: Option<OwnedSemaphorePermit>,
}

impl Whole {
    /// What of the body is needed for longer, in memory of its own: the share is kept until that is gone.
    pub(super) fn keep(self, part: Vec<u8>) -> Bytes {
        Bytes::from_owner(Part {
            bytes: part,
            _reserved: self.reserved,
        })
    }
}

struct Part {
    bytes: Vec<u8>,
    _reserved: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// How much of a body is read, and how long for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) size: usize,
    /// Between two pieces.
    pub(super) patience: Duration,
}

/// The body of a request that must have one.
pub(super) async fn collect(
    request: Request,
    uploads: &Uploads,
    bounds: Bounds,
) -> Result<Whole, Problem> {
    // `guard` asked for it where there is a body; without a body it is missing.
    guard::check_content_type(request.headers())?;
    collect_any(request, uploads, bounds).await
}

/// The body of a request that need not have one.
pub(super) async fn collect_any(
    request: Request,
    uploads: &Uploads,
    bounds: Bounds,
) -> Result<Whole, Problem> {
    let too_large = || {
        let detail = format!("the body is larger than {} bytes", bounds.size);
        Problem::new(Kind::BodyTooLarge, detail)
    };
    let hint = request.body().size_hint();
    if hint.lower() > bounds.size as u64 {
        return Err(too_large());
    }
    let expected = hint
        .upper()
        .and_then(|size| usize::try_from(size).ok())
        .map_or(bounds.size, |size| size.min(bounds.size));
    let reserved = uploads.reserve(expected).await;

    // Not `expected` at once: memory is for bytes that came, not for those that were announced.
    let mut bytes = Vec::with_capacity(expected.min(64 * 1024));
    let mut pieces = request.into_body().into_data_stream();
    loop {
        let next = tokio::time::timeout(bounds.patience, pieces.next()).await;
        let next = next.map_err(|_| {
            let detail = format!("nothing of the body arrived for {:?}", bounds.patience);
            Problem::new(Kind::RequestTimeout, detail)
        })?;
        let Some(piece) = next else { break };
        let piece = piece.map_err(|_| {
            Problem::new(
                Kind::InvalidRequest,
                "the body ended before it was complete",
            )
        })?;
        if bytes.len() + piece.len() > bounds.size {
            return Err(too_large());
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Whole {
        bytes: bytes.into(),
        reserved,
    })
}

/// The value in a JSON text.
///
/// # Errors
///
/// `invalid-request` with the field, line and column.
pub(super) fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Problem> {
    let invalid = |error: &serde_json::Error, field: Option<String>| {
        // serde_json puts " at line L column C" at the end.
        let place = field.map_or(String::new(), |field| format!("field {field}: "));
        Problem::new(
            Kind::InvalidRequest,
            format!("the body is not the JSON that this route takes: {place}{error}"),
        )
    };
    // serde would take an array for the fields in their order.
    if json.trim_ascii_start().starts_with(b"[") {
        let detail = "the body is not the JSON that this route takes: expected an object";
        return Err(Problem::new(Kind::InvalidRequest, detail));
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        // "." is the body as a whole, and "?" a name that was cut off.
        let is_known = field != "." && !field.contains('?');
        invalid(error.inner(), is_known.then_some(field))
    })?;
    reader.end().map_err(|error| invalid(&error, None))?;
    Ok(value)
}

/// A file in base64, to be decoded while it is read.
///
/// Standard alphabet with padding (RFC 4648, section 4); white space after the end does not count.
pub(super) struct Base64File {
    source: Bytes,
    /// What of `source` is still to be decoded.
    rest: Range<usize>,
    /// Decoded and not yet read.
    ready: Vec<u8>,
    taken: usize,
    flaw: Flaw,
    _reserved: Option<OwnedSemaphorePermit>,
}

/// Why a [`Base64File`] is none; empty as long as it is one.
pub(super) type Flaw = Arc<OnceLock<String>>;

/// Base64 characters that are decoded at once; a multiple of 4.
const CHUNK: usize = 64 * 1024;

impl Base64File {
    /// The file in `text`, which lies in `whole` unless JSON escapes had to be undone.
    pub(super) fn new(whole: &Bytes, text: Cow<'_, str>) -> Self {
        let end = text.trim_end().len();
        let source = match text {
            Cow::Borrowed(text) => whole.slice_ref(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        };
        Self {
            source,
            rest: 0..end,
            ready: Vec::new(),
            taken: 0,
            flaw: Flaw::default(),
            _reserved: None,
        }
    }

    /// Keeps the memory of `whole` reserved until this has been read.
    pub(super) fn keeping(mut self, whole: Whole) -> Self {
        self._reserved = whole.reserved;
        self
    }

    /// Where it will say what is wrong with the base64.
    pub(super) fn flaw(&self) -> Flaw {
        Arc::clone(&self.flaw)
    }

    fn decode_next(&mut self) -> io::Result<()> {
        let start = self.rest.start;
        let end = self.rest.end.min(start + CHUNK);
        let last = end == self.rest.end;
        let chunk = &self.source[start..end];
        self.ready.clear();
        self.taken = 0;
        let flawed = |what: String| {
            let error = io::Error::new(io::ErrorKind::InvalidData, what.clone());
            // Only the first flaw is set.
            let _ = self.flaw.set(what);
            error
        };
        // Each chunk is decoded for itself, so padding before the last one has to be found here.
        let inner_padding = (!last && chunk.ends_with(b"=")).then(|| end - 1);
        if let Some(offset) = inner_padding {
            return Err(flawed(format!("unexpected '=' at offset {offset}")));
        }
        STANDARD
            .decode_vec(chunk, &mut self.ready)
            .map_err(|error| flawed(describe(&error, start, end)))?;
        self.rest.start = end;
        Ok(())
    }
}

fn describe(error: &base64::DecodeError, start: usize, end: usize) -> String {
    use base64::DecodeError as E;
    match *error {
        E::InvalidByte(offset, byte) => {
            let byte = char::from(byte);
            format!("unexpected {byte:?} at offset {}", start + offset)
        }
        E::InvalidLastSymbol { offset, symbol, .. } => {
            let symbol = char::from(symbol);
            format!("unexpected {symbol:?} at offset {}", start + offset)
        }
        E::InvalidLength(_) | E::InvalidPadding => {
            format!("incomplete or wrongly padded at its end, offset {end}")
        }
    }
}

impl Read for Base64File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.ready.len() && !self.rest.is_empty() {
            self.decode_next()?;
        }
        let ready = &self.ready[self.taken..];
        let length = ready.len().min(buffer.len());
        buffer[..length].copy_from_slice(&ready[..length]);
        self.taken += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn decode(text: &str) -> Result<Vec<u8>, String> {
        let mut file = Base64File::new(&Bytes::new(), Cow::Owned(text.to_owned()));
        let flaw = file.flaw();
        let mut decoded = Vec::new();
        match file.read_to_end(&mut decoded) {
            Ok(_) => {
                assert_eq!(flaw.get(), None);
                Ok(decoded)
            }
            Err(error) => {
                assert_eq!(flaw.get(), Some(&error.to_string()));
                Err(error.to_string())
            }
        }
    }

    #[test]
    fn decodes_any_length_and_white_space_at_the_end() {
        for length in [
            0,
            1,
            2,
            3,
            CHUNK / 4 * 3 - 1,
            CHUNK / 4 * 3,
            CHUNK / 4 * 3 + 1,
            CHUNK * 2,
        ] {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let text = STANDARD.encode(&bytes) + " \r\n\n";
            assert_eq!(decode(&text), Ok(bytes), "{length}");
        }
    }

    #[test]
    fn says_where_it_is_not_base64() {
        let long = "A".repeat(CHUNK);
        let padded = format!("{}=", "A".repeat(CHUNK - 1));
        for (text, what) in [
            (
                "QUJD!UJD".to_owned(),
                "unexpected '!' at offset 4".to_owned(),
            ),
            (
                "QUJ".to_owned(),
                "incomplete or wrongly padded at its end, offset 3".to_owned(),
            ),
            ("QU=D".to_owned(), "unexpected '=' at offset 2".to_owned()),
            (
                "QUJD\nQUJD".to_owned(),
                "unexpected '\\n' at offset 4".to_owned(),
            ),
            (
                "QQ==QQ==".to_owned(),
                "unexpected '=' at offset 2".to_owned(),
            ),
            ("QR==".to_owned(), "unexpected 'R' at offset 1".to_owned()),
            (
                format!("{long}QUJ_"),
                format!("unexpected '_' at offset {}", CHUNK + 3),
            ),
            (
                format!("{padded}QUJD"),
                format!("unexpected '=' at offset {}", CHUNK - 1),
            ),
        ] {
            assert_eq!(decode(&text), Err(what));
        }
    }

    #[test]
    fn the_file_is_read_from_the_bodys_own_bytes() {
        let body = Bytes::from_static(b"{\"content\":\"QUJD\"}");
        let text = std::str::from_utf8(&body[12..16]).unwrap();
        let file = Base64File::new(&body, Cow::Borrowed(text));
        assert_eq!(file.source.as_ptr(), body[12..].as_ptr());
    }

    #[tokio::test]
    async fn large_bodies_share_the_memory_and_small_ones_do_not_wait() {
        let uploads = Uploads::new();
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(uploads.reserve(MAX_UPLOAD).await);
        }
        let sixth = uploads.reserve(MAX_UPLOAD).now_or_never();
        assert!(sixth.is_none());
        assert!(uploads.reserve(SMALL).now_or_never().is_some());
        held.pop();
        assert!(uploads.reserve(MAX_UPLOAD).now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_is_kept_of_a_body_keeps_its_share_of_the_memory() {
        let uploads = Uploads::new();
        let whole = Whole {
            bytes: Bytes::from_static(b"{\"stdin\":{\"text\":\"a\"}}"),
            reserved: uploads.reserve(MAX_BODY).await,
        };
        let kept = whole.keep(b"a".to_vec());
        assert_eq!(uploads.0.available_permits(), UPLOADS - MAX_BODY / 1024);
        assert_eq!(kept, &b"a"[..]);
        drop(kept);
        assert_eq!(uploads.0.available_permits(), UPLOADS);
    }
}
