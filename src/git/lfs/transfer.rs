//! Large files on their way from a server: asked for by the batch, some at a time, each gone on with where it
//! was cut off.
//!
//! Whatever a server says, an object gets no more bytes than its pointer has, and no other ones.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use super::super::error::GitError;
use super::super::http::{Credentials, Failed, Request, Web};
use super::super::mirror::Mirror;
use super::super::upstream::Access;
use super::LfsError;
use super::batch::{self, Action, Said};
use super::endpoint::{self, Allowed, Endpoint, Lasting};
use super::pointer::{Oid, Pointer};
use super::store::{Held, Part, Store, Unfit};

/// Objects at once.
const PARALLEL: usize = 4;

/// Tries in a row that bring nothing worth it, after which no more is tried.
const FRUITLESS: u32 = 3;

/// What makes a try worth it, in bytes, where it does not bring the rest.
const PROGRESS: u64 = 64 << 10;

/// How long to wait after a try, longer with each that brings nothing.
const PAUSE: Duration = Duration::from_millis(200);

/// What all transfers of one repository have in common.
pub(super) struct Transfers<'a> {
    pub(super) mirror: &'a Mirror,
    pub(super) access: &'a Access,
    pub(super) web: &'a Web,
    pub(super) endpoint: Endpoint,
    pub(super) allowed: &'a Allowed,
}

/// What became of one try.
enum Tried {
    Whole,
    /// The link leads nowhere any more: a new one may.
    Expired(String),
}

impl Transfers<'_> {
    /// Brings the objects of these pointers into the store, where they are not.
    pub(super) async fn download(
        &mut self,
        wanted: Vec<Pointer>,
        (store, held): (&Store, &Held),
    ) -> Result<(), GitError> {
        for chunk in wanted.chunks(batch::AT_ONCE) {
            // Links may have come to their end before their turn came: once more with new ones.
            let expired = self.download_batch(chunk, (store, held)).await?;
            let expired: Vec<Pointer> = expired.into_iter().map(|(pointer, _)| pointer).collect();
            if expired.is_empty() {
                continue;
            }
            let again = self.download_batch(&expired, (store, held)).await?;
            if let Some((pointer, detail)) = again.into_iter().next() {
                return Err(self.missing(&pointer, detail));
            }
        }
        Ok(())
    }

    async fn download_batch(
        &mut self,
        wanted: &[Pointer],
        (store, held): (&Store, &Held),
    ) -> Result<Vec<(Pointer, String)>, GitError> {
        let said = self.ask("download", wanted).await?;
        let mut links = Vec::new();
        for pointer in wanted {
            let action = match said.get(&pointer.object.oid) {
                Some(Said::Actions(actions)) => actions.get("download"),
                Some(Said::Error(code, message)) => {
                    let detail = format!("the server says {code} {}", self.web.said(message));
                    return Err(self.missing(pointer, detail));
                }
                None => None,
            };
            let Some(action) = action else {
                let detail = "the server says nothing of where it is".to_owned();
                return Err(self.missing(pointer, detail));
            };
            links.push((pointer.clone(), action.clone()));
        }
        let this = &*self;
        let transfers = links.into_iter().map(|(pointer, action)| async move {
            match this.bring(&pointer, &action, (store, held)).await? {
                Tried::Whole => Ok(None),
                Tried::Expired(detail) => Ok::<_, GitError>(Some((pointer, detail))),
            }
        });
        let expired: Vec<_> = stream::iter(transfers)
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        Ok(expired.into_iter().flatten().collect())
    }

    /// Asks what to do with these objects. Where what an ssh host said of its server is over, or the server takes
    /// it for that, the host is asked once more.
    pub(super) async fn ask(
        &mut self,
        operation: &str,
        wanted: &[Pointer],
    ) -> Result<BTreeMap<Oid, Said>, GitError> {
        let is_over = self.endpoint.lasting.is_over();
        if is_over {
            self.ask_ssh(operation).await?;
        }
        let (mut status, mut body) = self.ask_once(operation, wanted).await?;
        let is_for_a_time = matches!(self.endpoint.lasting, Lasting::ForATime(_));
        if status == StatusCode::UNAUTHORIZED && is_for_a_time && !is_over {
            self.ask_ssh(operation).await?;
            (status, body) = self.ask_once(operation, wanted).await?;
        }
        let (url, endpoint) = (self.url(), self.shown());
        match status.as_u16() {
            200 => batch::parse(&body).map_err(|detail| self.odd(&detail)),
            401 | 403 => Err(LfsError::Refused { url, endpoint }.into()),
            404 | 410 => Err(LfsError::NoServer { url, endpoint }.into()),
            _ => Err(self.odd(&format!("{status} {}", String::from_utf8_lossy(&body)))),
        }
    }

    /// Has the ssh host say again where the server is and what opens it.
    async fn ask_ssh(&mut self, operation: &str) -> Result<(), GitError> {
        let (mirror, access, allowed) = (self.mirror, self.access, self.allowed);
        self.endpoint = endpoint::by_ssh(mirror, access, allowed, operation).await?;
        Ok(())
    }

    /// What the server answers, which may be that it has a fault.
    async fn ask_once(
        &self,
        operation: &str,
        wanted: &[Pointer],
    ) -> Result<(StatusCode, Vec<u8>), GitError> {
        let mut url = self.endpoint.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["objects", "batch"]);
        }
        let mut headers = self.endpoint.headers.clone();
        for name in [ACCEPT, CONTENT_TYPE] {
            headers.insert(name, HeaderValue::from_static(batch::MEDIA_TYPE));
        }
        let objects = wanted.iter().map(|pointer| &pointer.object);
        let request = Request {
            method: Method::POST,
            url,
            headers,
            body: Some(Bytes::from(batch::request(operation, objects))),
            credentials: self.endpoint.credentials,
        };
        let mut tries = 0;
        loop {
            let asked = async {
                let answer = self.send(&request).await?;
                let status = answer.status();
                let body = self.web.body(answer, batch::LARGEST_ANSWER).await?;
                if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
                    return Err(Failed::Broken(format!("it answered {status}")));
                }
                Ok((status, body))
            };
            match asked.await {
                Ok(answered) => return Ok(answered),
                Err(Failed::NotAllowed(target)) => {
                    return Err(self.not_allowed("the server of large files", target));
                }
                Err(failed) => {
                    tries += 1;
                    let what = || format!("asking {} for large files", self.shown());
                    self.give_up_at(tries, failed, what)?;
                    tokio::time::sleep(PAUSE * tries).await;
                }
            }
        }
    }

    /// Brings one object, and goes on with it as long as there is more of it each time.
    async fn bring(
        &self,
        pointer: &Pointer,
        action: &Action,
        (store, held): (&Store, &Held),
    ) -> Result<Tried, GitError> {
        let io = |error| GitError::io("keep a large file", error);
        let (oid, path) = (&pointer.object.oid, pointer.shown());
        let what = || format!("the large file {oid} of {path:?}");
        let mut part = store.part(&pointer.object, held).await?;
        let mut is_continued = part.length > 0;
        let mut fruitless = 0;
        // What was there once and was thrown away is no progress when it comes again.
        let mut furthest = part.length;
        loop {
            match self.try_once(pointer, action, &mut part).await {
                Ok(None) if part.is_whole() => match part.finish().await {
                    Ok(()) => return Ok(Tried::Whole),
                    // What was there of it was no beginning of it.
                    Err(Unfit::Wrong(_)) if is_continued => {
                        is_continued = false;
                        part = store.part(&pointer.object, held).await?;
                        continue;
                    }
                    Err(Unfit::Wrong(detail)) => return Err(self.wrong(pointer, detail)),
                    Err(Unfit::Io(error)) => return Err(io(error)),
                },
                Ok(Some(expired)) => return Ok(Tried::Expired(expired)),
                Ok(None) | Err(Trouble::Failed(Failed::Broken(_)))
                    if part.length >= furthest + PROGRESS =>
                {
                    part.keep().await.map_err(io)?;
                    is_continued = true;
                    furthest = part.length;
                    fruitless = 0;
                }
                Ok(None) => {
                    fruitless += 1;
                    let ended = Failed::Broken("the answer ended before it was whole".to_owned());
                    self.give_up_at(fruitless, ended, what)?;
                }
                Err(Trouble::Failed(Failed::NotAllowed(target))) => {
                    let what = "the link to a large file";
                    return Err(self.not_allowed(what, target));
                }
                Err(Trouble::Failed(failed)) => {
                    part.keep().await.map_err(io)?;
                    is_continued |= part.length > 0;
                    fruitless += 1;
                    self.give_up_at(fruitless, failed, what)?;
                }
                Err(Trouble::Unfit(Unfit::Wrong(detail))) => {
                    return Err(self.wrong(pointer, detail));
                }
                Err(Trouble::Unfit(Unfit::Io(error))) => return Err(io(error)),
            }
            tokio::time::sleep(PAUSE * fruitless).await;
        }
    }

    /// Why there is no other try, after so many that failed so.
    fn give_up_at(
        &self,
        tries: u32,
        failed: Failed,
        what: impl Fn() -> String,
    ) -> Result<(), GitError> {
        match failed {
            Failed::Broken(_) | Failed::Unreached(..) if tries < FRUITLESS => Ok(()),
            Failed::Broken(detail) => Err(GitError::Transfer {
                url: self.url(),
                detail: format!("{}: {detail}", what()),
            }),
            Failed::Unreached(url, detail) => Err(GitError::Unreachable { url, detail }),
            Failed::NotAllowed(target) => Err(self.not_allowed("a link", target)),
            Failed::Git(error) => Err(error),
        }
    }

    /// One request for what is not there yet; says so where its link has come to its end.
    async fn try_once(
        &self,
        pointer: &Pointer,
        action: &Action,
        part: &mut Part,
    ) -> Result<Option<String>, Trouble> {
        if part.is_whole() {
            return Ok(None);
        }
        let mut headers = action.headers.clone();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if part.length > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", part.length))
        {
            headers.insert(RANGE, range);
        }
        let request = Request {
            method: Method::GET,
            url: action.href.clone(),
            headers,
            body: None,
            credentials: match action.authenticated {
                true => Credentials::Own,
                false => self.endpoint.credentials,
            },
        };
        let mut answer = self.send(&request).await?;
        let status = answer.status();
        match status.as_u16() {
            200 => part.restart().await?,
            206 if is_the_rest(&answer, part.length, pointer.object.size) => {}
            // What is there is not what it has, or it cannot say so.
            206 | 416 => {
                part.restart().await?;
                return Err(Failed::Broken("it has no such part".to_owned()).into());
            }
            401 | 403 | 404 | 410 => {
                return Ok(Some(format!("its link is answered with {status}")));
            }
            _ => return Err(Failed::Broken(format!("it answered {status}")).into()),
        }
        // Slower than this it is as good as broken: others wait for this mirror's large files.
        let (mut since, mut then) = (Instant::now(), part.length);
        while let Some(piece) = self.web.piece(&mut answer).await? {
            part.write(&piece).await?;
            if since.elapsed() >= self.web.stall() {
                if part.length < then + PROGRESS {
                    return Err(Failed::Broken("it comes too slowly".to_owned()).into());
                }
                (since, then) = (Instant::now(), part.length);
            }
        }
        Ok(None)
    }

    async fn send(&self, request: &Request) -> Result<Response, Failed> {
        self.web
            .send(request, |url: &Url| self.allowed.allows(url))
            .await
    }

    /// The repository's.
    pub(super) fn url(&self) -> String {
        self.mirror.upstream.url().to_owned()
    }

    fn shown(&self) -> String {
        self.web.shown(&self.endpoint.url)
    }

    fn missing(&self, pointer: &Pointer, detail: String) -> GitError {
        let missing = LfsError::Missing {
            url: self.url(),
            path: pointer.shown(),
            oid: pointer.object.oid.to_string(),
            detail,
        };
        missing.into()
    }

    fn wrong(&self, pointer: &Pointer, detail: String) -> GitError {
        let wrong = LfsError::Wrong {
            url: self.url(),
            path: pointer.shown(),
            oid: pointer.object.oid.to_string(),
            detail,
        };
        wrong.into()
    }

    pub(super) fn odd(&self, detail: &str) -> GitError {
        let odd = LfsError::Odd {
            url: self.url(),
            endpoint: self.shown(),
            detail: self.web.said(detail),
        };
        odd.into()
    }

    fn not_allowed(&self, what: &'static str, target: String) -> GitError {
        let not_allowed = LfsError::NotAllowed {
            url: self.url(),
            what,
            target,
        };
        not_allowed.into()
    }
}

/// Why a try came to nothing.
enum Trouble {
    Failed(Failed),
    Unfit(Unfit),
}

impl From<Failed> for Trouble {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<Unfit> for Trouble {
    fn from(unfit: Unfit) -> Self {
        Self::Unfit(unfit)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Unfit(Unfit::Io(error))
    }
}

/// Whether the answer is of what begins at `from`, up to the end of `size`.
fn is_the_rest(answer: &Response, from: u64, size: u64) -> bool {
    let range = answer.headers().get(CONTENT_RANGE);
    let range = range.and_then(|range| range.to_str().ok());
    range.is_some_and(|range| is_rest(range, from, size))
}

/// See RFC 9110, 14.4.
fn is_rest(range: &str, from: u64, size: u64) -> bool {
    let parse = || {
        let (range, whole) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let whole = match whole {
            "*" => size,
            whole => whole.parse().ok()?,
        };
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some(first == from && last < size && first <= last && whole == size)
    };
    parse().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_the_rest_or_it_is_none() {
        for (range, right) in [
            ("bytes 3-9/10", true),
            ("bytes 3-8/10", true),
            ("bytes 3-9/*", true),
            ("bytes 2-9/10", false),
            ("bytes 3-10/10", false),
            ("bytes 3-9/11", false),
            ("bytes 9-3/10", false),
            ("bytes */10", false),
            ("items 3-9/10", false),
            ("", false),
        ] {
            assert_eq!(is_rest(range, 3, 10), right, "{range}");
        }
    }
}
