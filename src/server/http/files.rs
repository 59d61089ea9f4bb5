//! Routes of files: `/workspaces/{id}/files/{path}`, where the path is absolute but for its first slash.
//!
//! Paths are bytes: they are taken from the request's target as it was sent, percent-decoded here, and
//! need not be UTF-8. They are resolved in the workspace; nothing here opens one.
//!
//! Bodies are carried a piece at a time, so a file of any size takes as little memory as a small one.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    IF_RANGE, LAST_MODIFIED, RANGE,
};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::body;
use super::commands::SANDBOX;
use super::metrics::Direction;
use super::problem::{BODY, Kind, Problem, Problems, of};
use super::routes::{Id, Nothing, Octets, Parameters, tag};
use crate::provider::files::{
    Before, Change, Compression, Content, Creation, Depth, Entry, FileTarget, Found, Links, Page,
    Parents, RawPath, Unpacked,
};
use crate::provider::{Error, OpenFile, WorkspaceId};

const MODE: HeaderName = HeaderName::from_static("derrick-file-mode");
const UID: HeaderName = HeaderName::from_static("derrick-file-uid");
const GID: HeaderName = HeaderName::from_static("derrick-file-gid");

/// Bytes of a file that are read at once.
const PIECE: usize = 1 << 20;
/// Entries of a directory that one answer has, unless it is asked for more or fewer.
const PAGE: usize = 1000;
/// The most that it can be asked for.
const LARGEST_PAGE: usize = 10_000;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(read_root, write_root))
        .routes(routes!(read, write, change, remove))
}

impl App {
    pub(super) fn count(&self, direction: Direction, piece: &Bytes) {
        self.metrics.moved(direction, piece.len() as u64);
    }
}

/// What any request for files may be refused for.
pub(super) const FILES: u64 = SANDBOX
    | of(&[
        Kind::InvalidRequest,
        Kind::NoSuchFile,
        Kind::NotADirectory,
        Kind::NotRegular,
    ]);

/// The `{id}` and the `{path}` of the route.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct Place {
    /// The workspace.
    id: WorkspaceId,
    /// The path in the workspace without its first slash. Any bytes, percent-encoded.
    #[param(value_type = String, min_length = 1, max_length = 4094)]
    path: RawPath,
}

impl Place {
    pub(super) fn target(self, user: Option<String>) -> (WorkspaceId, FileTarget) {
        let target = FileTarget {
            path: self.path,
            user,
        };
        (self.id, target)
    }
}

impl FromRequestParts<Arc<App>> for Place {
    type Rejection = Problem;

    /// From the target as it was sent: axum's own parameters are UTF-8.
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Id(id) = Id::from_request_parts(parts, app).await?;
        let path = parts.uri.path().splitn(5, '/').nth(4).unwrap_or_default();
        let path: Vec<u8> = std::iter::once(b'/')
            .chain(percent_decode_str(path))
            .collect();
        if path.contains(&0) {
            let detail = "the path has a NUL in it";
            return Err(Problem::new(Kind::InvalidRequest, detail));
        }
        Ok(Self {
            id,
            path: path.into(),
        })
    }
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
pub(super) enum Format {
    #[serde(rename = "tar")]
    Tar,
    #[serde(rename = "tar.gz")]
    Gzip,
    #[serde(rename = "tar.zst")]
    Zstd,
}

impl Format {
    pub(super) fn compression(self) -> Compression {
        match self {
            Self::Tar => Compression::Plain,
            Self::Gzip => Compression::Gzip,
            Self::Zstd => Compression::Zstd,
        }
    }

    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Tar => "application/x-tar",
            Self::Gzip => "application/gzip",
            Self::Zstd => "application/zstd",
        })
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ReadQuery {
    /// Whether to tell what is there instead of sending it. Not with `archive`.
    stat: Option<bool>,
    /// With `stat`: whether a link at the end of the path stands for what it leads to. It does if absent.
    follow: Option<bool>,
    /// Sends a file, or all that is in a directory, as an archive.
    #[param(inline)]
    archive: Option<Format>,
    /// Entries of a directory in one answer; 1000 if absent.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<usize>,
    /// The `next` of the listing before.
    after: Option<String>,
    /// As whom: a name or number that is looked up inside; the config's `user` if absent.
    user: Option<String>,
}

/// Entries of a directory, by name.
#[derive(Serialize, ToSchema)]
#[schema(as = FileListing)]
struct Listing {
    /// Those of this page, links as links.
    entries: Vec<Entry>,
    /// What `after` takes for the entries that follow, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// In a document: what is answered as JSON.
#[derive(ToSchema)]
#[schema(as = FileAnswer)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Answer {
    Listing(Listing),
    Entry(Entry),
}

/// Sends a file, lists a directory, or tells what is there.
///
/// Of a file, a `Range` of bytes can be asked for. It is sent as long as it was when it was opened; if
/// it gets shorter meanwhile, or an archive does not come to its end, the connection is broken off. An
/// archive holds what is in a directory under names relative to it, links as links, sparse files as
/// their data; sockets, devices and extended attributes are left out.
///
/// Links in the path are followed, inside the workspace. Pipes, sockets, devices and the files of
/// `/proc` and `/sys` are never opened.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/files/{*path}",
    operation_id = "read_path",
    tag = tag::FILES,
    params(Place, ReadQuery, ("Range" = Option<String>, Header, description = "Of a file: one range of bytes.")),
    responses(
        (status = 200, description = "The file, the listing, the entry or the archive.", content(
            (Octets = "application/octet-stream"),
            (Answer = "application/json"),
            (Octets = "application/x-tar"),
            (Octets = "application/gzip"),
            (Octets = "application/zstd"),
        ), headers(
            ("last-modified" = Option<String>, description = "Of a file: when it was changed last."),
            ("derrick-file-mode" = Option<String>, description = "Of a file: its permissions, in octal digits."),
            ("derrick-file-uid" = Option<u32>, description = "Of a file: its owner, as inside."),
            ("derrick-file-gid" = Option<u32>, description = "Of a file: its group, as inside."),
        )),
        (status = 206, description = "The part of the file that was asked for.", content(
            (Octets = "application/octet-stream"),
        ), headers(
            ("content-range" = String, description = "Which part."),
        )),
        Problems<{ FILES | of(&[Kind::NotAFile, Kind::RangeNotSatisfiable]) }>,
    )
)]
async fn read(
    State(app): State<Arc<App>>,
    place: Place,
    Parameters(asked): Parameters<ReadQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let page = page(asked.limit, asked.after.as_deref())?;
    let links = match asked.follow {
        Some(false) => Links::Keep,
        _ => Links::Follow,
    };
    if asked.stat == Some(true) && asked.archive.is_some() {
        let detail = "the parameters: of stat and archive only one can be asked for";
        return Err(Problem::new(Kind::InvalidRequest, detail));
    }
    let (id, target) = place.target(asked.user);
    if asked.stat == Some(true) {
        let entry = app.provider.stat(&id, target, links).await?;
        return Ok(Json(entry).into_response());
    }
    if let Some(format) = asked.archive {
        let kind = [(CONTENT_TYPE, format.content_type())];
        // Nothing is packed for a client who only wants to know.
        if method == Method::HEAD {
            app.provider.stat(&id, target, Links::Follow).await?;
            return Ok((kind, Body::empty()).into_response());
        }
        let pieces = app.provider.pack(&id, target, format.compression()).await?;
        let counted = pieces.inspect_ok(move |piece| app.count(Direction::Out, piece));
        return Ok((kind, Body::from_stream(counted)).into_response());
    }
    match app.provider.get(&id, target, page).await? {
        Found::File(file, entry) => send(app, file, &entry, &headers),
        Found::Directory(entries, last) => {
            let next = last.map(|last| URL_SAFE_NO_PAD.encode(last.as_bytes()));
            Ok(Json(Listing { entries, next }).into_response())
        }
    }
}

/// Lists the root directory, or tells of it, as for any other path.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/files/",
    operation_id = "read_root",
    tag = tag::FILES,
    params(Id, ReadQuery),
    responses(
        (status = 200, description = "The listing, the entry or the archive.", content(
            (Answer = "application/json"),
            (Octets = "application/x-tar"),
            (Octets = "application/gzip"),
            (Octets = "application/zstd"),
        )),
        Problems<FILES>,
    )
)]
async fn read_root(
    app: State<Arc<App>>,
    place: Place,
    asked: Parameters<ReadQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    read(app, place, asked, method, headers).await
}

fn page(limit: Option<usize>, after: Option<&str>) -> Result<Page, Problem> {
    let limit = limit.unwrap_or(PAGE);
    if limit == 0 || limit > LARGEST_PAGE {
        let detail = format!("the limit must be from 1 to {LARGEST_PAGE}");
        return Err(Problem::new(Kind::InvalidRequest, detail));
    }
    let after = after.map(|after| {
        URL_SAFE_NO_PAD.decode(after).map_err(|_| {
            let detail = "after is no 'next' of a listing";
            Problem::new(Kind::InvalidRequest, detail)
        })
    });
    Ok(Page {
        after: after.transpose()?.map(RawPath::from),
        limit,
    })
}

/// The file, or the part of it that the headers ask for.
fn send(
    app: Arc<App>,
    opened: OpenFile,
    entry: &Entry,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let size = opened.size;
    let mut described = HeaderMap::new();
    let modified = last_modified(entry.mtime);
    let octets = HeaderValue::from_static("application/octet-stream");
    described.insert(CONTENT_TYPE, octets);
    described.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    described.insert(UID, entry.uid.into());
    described.insert(GID, entry.gid.into());
    if let Ok(mode) = HeaderValue::try_from(&entry.mode) {
        described.insert(MODE, mode);
    }
    if let Some(modified) = &modified {
        described.insert(LAST_MODIFIED, modified.clone());
    }
    // A part is only of use to whoever has the rest of the same file.
    let is_same = headers
        .get(IF_RANGE)
        .is_none_or(|known| Some(known) == modified.as_ref());
    let asked = headers.get(RANGE).filter(|_| is_same);
    let (status, range) = match asked.map_or(Part::Whole, |asked| part(asked, size)) {
        Part::Whole => (StatusCode::OK, 0..size),
        Part::Of(range) => {
            let said = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            if let Ok(said) = HeaderValue::try_from(said) {
                described.insert(CONTENT_RANGE, said);
            }
            (StatusCode::PARTIAL_CONTENT, range)
        }
        Part::None => {
            let detail = format!("'{}' has {size} bytes and none of those", entry.path);
            let problem = Problem::new(Kind::RangeNotSatisfiable, detail);
            return Err(match HeaderValue::try_from(format!("bytes */{size}")) {
                Ok(said) => problem.with_header(CONTENT_RANGE, said),
                Err(_) => problem,
            });
        }
    };
    described.insert(CONTENT_LENGTH, (range.end - range.start).into());
    let pieces = content(opened.file, range);
    let counted = pieces.inspect_ok(move |piece| app.count(Direction::Out, piece));
    let content = Body::from_stream(counted);
    Ok((status, described, content).into_response())
}

/// `None` before 1970, which the header has no form for.
fn last_modified(mtime: f64) -> Option<HeaderValue> {
    let since = Duration::try_from_secs_f64(mtime.floor()).ok()?;
    // Four digits of a year is all there are, RFC 9110, section 5.6.7.
    let time = SystemTime::UNIX_EPOCH
        .checked_add(since)
        .filter(|_| mtime < 253_402_300_800.0)?;
    HeaderValue::try_from(httpdate::fmt_http_date(time)).ok()
}

/// What a `Range` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// All: it says nothing that is understood, or asks for several parts.
    Whole,
    Of(Range<u64>),
    /// There is nothing of what it asks for.
    None,
}

/// RFC 9110, section 14: one range of bytes; anything else may be taken for no range at all.
fn part(asked: &HeaderValue, size: u64) -> Part {
    let parsed = || {
        let (unit, range) = asked.to_str().ok()?.split_once('=')?;
        let (first, last) = range.trim().split_once('-')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            // More than there can be is as good as all there is.
            digits.then(|| text.parse().unwrap_or(u64::MAX))
        };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first > last => None,
            (Some(first), Some(last)) => Some(first..last.saturating_add(1).min(size)),
            (Some(first), None) if last.is_empty() => Some(first..size),
            (None, Some(length)) if first.is_empty() => Some(size.saturating_sub(length)..size),
            _ => None,
        }
    };
    match parsed() {
        None => Part::Whole,
        Some(range) if range.start >= range.end => Part::None,
        Some(range) => Part::Of(range),
    }
}

/// The bytes of a file: one piece is read while the one before it is sent. A file that got shorter
/// meanwhile breaks the connection off: no client takes it for whole.
pub(super) fn content(file: std::fs::File, range: Range<u64>) -> Content {
    let file = Arc::new(file);
    let read = move |range: Range<u64>| {
        let file = Arc::clone(&file);
        (!range.is_empty()).then(|| {
            let end = range.end.min(range.start.saturating_add(PIECE as u64));
            let reading = tokio::task::spawn_blocking(move || read_piece(&file, range.start..end));
            (reading, end..range.end)
        })
    };
    let first = read(range);
    stream::unfold(first, move |next| {
        let read = read.clone();
        async move {
            let (reading, rest) = next?;
            match reading.await.map_err(std::io::Error::from).flatten() {
                Ok(piece) => Some((Ok(piece), read(rest))),
                Err(error) => Some((Err(error), None)),
            }
        }
    })
    .boxed()
}

fn read_piece(file: &std::fs::File, range: Range<u64>) -> std::io::Result<Bytes> {
    use std::os::unix::fs::FileExt;
    let length = usize::try_from(range.end - range.start).unwrap_or(PIECE);
    let mut piece = BytesMut::zeroed(length);
    file.read_exact_at(&mut piece, range.start)?;
    Ok(piece.freeze())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WriteQuery {
    /// Of a file: permissions, in octal digits; those of what is replaced, or 0644, if absent.
    #[param(pattern = "^[0-7]{1,4}$")]
    mode: Option<String>,
    /// Of a file: whether missing directories are made; they are if absent.
    parents: Option<bool>,
    /// Takes the body for an archive, and unpacks it into the directory, which is made if it is not there.
    #[param(inline)]
    archive: Option<Format>,
    /// As whom: a name or number that is looked up inside; the config's `user` if absent.
    user: Option<String>,
}

/// In a document: what is answered to a body.
#[derive(ToSchema)]
#[schema(as = FileWritten)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Written {
    Entry(Entry),
    Unpacked(Unpacked),
}

/// Replaces a file, whole or not at all, or unpacks an archive.
///
/// A file keeps the owner and the permissions of what it replaces. If the body breaks off, the old
/// file stays and nothing else is there; of an archive, what came before stays.
///
/// What an archive brings stays in the directory: names with `..`, and links out of it, lead nowhere.
/// Devices and pipes are left out, and owners that the workspace has no id for are changed; the answer
/// says so.
#[utoipa::path(
    put,
    path = "/workspaces/{id}/files/{*path}",
    operation_id = "write_path",
    tag = tag::FILES,
    params(Place, WriteQuery),
    request_body(content(
        (Octets = "application/octet-stream"),
        (Octets = "application/x-tar"),
        (Octets = "application/gzip"),
        (Octets = "application/zstd"),
    )),
    responses(
        (status = 200, description = "It has replaced what was there, or the archive is unpacked.", body = Written),
        (status = 201, description = "It is there, where nothing was.", body = Entry),
        Problems<{ FILES | of(&[Kind::NotAFile, Kind::RequestTimeout]) }>,
    )
)]
async fn write(
    State(app): State<Arc<App>>,
    place: Place,
    Parameters(asked): Parameters<WriteQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let creation = creation(asked.mode.as_deref(), asked.parents)?;
    if asked.archive.is_some() && (asked.mode.is_some() || asked.parents.is_some()) {
        let detail = "the parameters: mode and parents are for a file; an archive has its own modes, and its directory is made";
        return Err(Problem::new(Kind::InvalidRequest, detail));
    }
    let (id, target) = place.target(asked.user);
    let (content, flaw) = received(request, Arc::clone(&app));
    let written = match asked.archive {
        Some(format) => {
            let compression = format.compression();
            let unpacked = app.provider.unpack(&id, target, compression, content).await;
            unpacked.map(|unpacked| Json(unpacked).into_response())
        }
        None => {
            let put = app.provider.put(&id, target, creation, content).await;
            put.map(|(entry, before)| {
                let status = match before {
                    Before::File => StatusCode::OK,
                    Before::Nothing => StatusCode::CREATED,
                };
                (status, Json(entry)).into_response()
            })
        }
    };
    // The provider only knows that reading failed; the fault is the caller's.
    match flaw.get() {
        Some(flaw) if written.is_err() => Err(flaw.clone()),
        _ => Ok(written?),
    }
}

/// Unpacks an archive into the root directory, as into any other.
#[utoipa::path(
    put,
    path = "/workspaces/{id}/files/",
    operation_id = "write_root",
    tag = tag::FILES,
    params(Id, WriteQuery),
    request_body(content(
        (Octets = "application/octet-stream"),
        (Octets = "application/x-tar"),
        (Octets = "application/gzip"),
        (Octets = "application/zstd"),
    )),
    responses(
        (status = 200, description = "The archive is unpacked.", body = Unpacked),
        Problems<{ FILES | of(&[Kind::NotAFile, Kind::RequestTimeout]) }>,
    )
)]
async fn write_root(
    app: State<Arc<App>>,
    place: Place,
    asked: Parameters<WriteQuery>,
    request: Request,
) -> Result<Response, Problem> {
    write(app, place, asked, request).await
}

/// The body as it comes, and where it will say why it did not come whole.
pub(super) fn received(request: Request, app: Arc<App>) -> (Content, Arc<OnceLock<Problem>>) {
    let patience = app.options.read_timeout;
    let flaw: Arc<OnceLock<Problem>> = Arc::default();
    let own = Arc::clone(&flaw);
    let pieces = stream::unfold(request.into_body().into_data_stream(), move |mut pieces| {
        let own = Arc::clone(&own);
        async move {
            let (kind, detail) = match tokio::time::timeout(patience, pieces.next()).await {
                Ok(None) => return None,
                Ok(Some(Ok(piece))) => return Some((Ok(piece), pieces)),
                Ok(Some(Err(_))) => (
                    Kind::InvalidRequest,
                    "the body ended before it was complete".to_owned(),
                ),
                Err(_) => (
                    Kind::RequestTimeout,
                    format!("nothing of the body arrived for {patience:?}"),
                ),
            };
            let error = std::io::Error::other(detail.clone());
            // Only the first flaw is set.
            let _ = own.set(Problem::new(kind, detail));
            Some((Err(error), pieces))
        }
    });
    let counted = pieces.inspect_ok(move |piece| app.count(Direction::In, piece));
    (counted.boxed(), flaw)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RemoveQuery {
    /// Whether a directory goes with all that is in it; only an empty one does if absent.
    recursive: Option<bool>,
    /// As whom: a name or number that is looked up inside; the config's `user` if absent.
    user: Option<String>,
}

/// Removes a file or a directory; a link itself, and not what it leads to.
#[utoipa::path(
    delete,
    path = "/workspaces/{id}/files/{*path}",
    operation_id = "remove_path",
    tag = tag::FILES,
    params(Place, RemoveQuery),
    responses(
        (status = 200, description = "It is gone.", body = Nothing),
        Problems<{ FILES | of(&[Kind::DirectoryNotEmpty]) }>,
    )
)]
async fn remove(
    State(app): State<Arc<App>>,
    place: Place,
    Parameters(asked): Parameters<RemoveQuery>,
) -> Result<Json<Nothing>, Problem> {
    let (id, target) = place.target(asked.user);
    let change = Change::Remove(depth(asked.recursive));
    app.provider.change(&id, target, change).await?;
    Ok(Json(Nothing {}))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ChangeQuery {
    /// As whom: a name or number that is looked up inside; the config's `user` if absent.
    user: Option<String>,
}

/// A change of what is at a path.
#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "an object with one of mkdir, move, copy and chmod"
)]
struct ChangeRequest {
    mkdir: Option<Mkdir>,
    r#move: Option<To>,
    copy: Option<To>,
    chmod: Option<Chmod>,
}

/// In a document: a change of what is at a path, one of these.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = FileChange)]
#[expect(dead_code, reason = "only its schema is used")]
enum ChangeField {
    /// Makes a directory there.
    Mkdir(Mkdir),
    /// Gives it another path, where nothing must be.
    Move(To),
    /// Copies it to another path, where nothing must be, with what is below it: content, permissions,
    /// times, links as links, owners where the user may give them.
    Copy(To),
    /// Sets its permissions.
    Chmod(Chmod),
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = FileChangeMkdir)]
struct Mkdir {
    /// Permissions, in octal digits; 0755 if absent.
    #[schema(pattern = "^[0-7]{1,4}$")]
    mode: Option<String>,
    /// Whether those that lead to it are made, and it is no error if it is there; so if absent.
    parents: Option<bool>,
}

/// An absolute path: one of these.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = FileChangeTo)]
struct To {
    /// The path.
    #[schema(pattern = "^/")]
    to: Option<String>,
    /// Standard base64 of a path that is not UTF-8.
    #[schema(format = Byte)]
    to_base64: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = FileChangeChmod)]
struct Chmod {
    /// Permissions, in octal digits.
    #[schema(pattern = "^[0-7]{1,4}$")]
    mode: String,
    /// Whether all that is below it gets them too; links are left as they are.
    recursive: Option<bool>,
}

impl ChangeRequest {
    fn checked(self) -> Result<Change, Problem> {
        match (self.mkdir, self.r#move, self.copy, self.chmod) {
            (Some(Mkdir { mode, parents }), None, None, None) => {
                Ok(Change::MakeDirectory(creation(mode.as_deref(), parents)?))
            }
            (None, Some(to), None, None) => Ok(Change::Move(to.checked()?)),
            (None, None, Some(to), None) => Ok(Change::Copy(to.checked()?)),
            (None, None, None, Some(Chmod { mode, recursive })) => {
                Ok(Change::SetMode(parse_mode(&mode)?, depth(recursive)))
            }
            _ => {
                let detail = "there must be one of the fields mkdir, move, copy and chmod";
                Err(Problem::new(Kind::InvalidRequest, detail))
            }
        }
    }
}

impl To {
    fn checked(self) -> Result<RawPath, Problem> {
        let invalid = |detail| Err(Problem::new(Kind::InvalidRequest, detail));
        let path = match (self.to, self.to_base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(encoded)) => match STANDARD.decode(encoded) {
                Ok(path) => path,
                Err(_) => return invalid("the field to_base64 is not base64"),
            },
            _ => return invalid("either to or to_base64 must be given"),
        };
        if path.first() != Some(&b'/') {
            return invalid("the field to must be an absolute path");
        }
        if path.contains(&0) {
            return invalid("the field to has a NUL");
        }
        Ok(path.into())
    }
}

/// Makes a directory, moves, copies, or sets permissions.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/files/{*path}",
    operation_id = "change_path",
    tag = tag::FILES,
    params(Place, ChangeQuery),
    request_body = ChangeField,
    responses(
        (status = 200, description = "What is there now; after a move or a copy, at the other path.", body = Entry),
        Problems<{ BODY | FILES | of(&[Kind::NotAFile, Kind::DirectoryNotEmpty, Kind::Exists]) }>,
    )
)]
async fn change(
    State(app): State<Arc<App>>,
    place: Place,
    Parameters(asked): Parameters<ChangeQuery>,
    request: Request,
) -> Result<Json<Entry>, Problem> {
    let body = app.collect(request, body::MAX_BODY).await?;
    let request: ChangeRequest = body::parse(&body.bytes)?;
    let (id, target) = place.target(asked.user);
    let changed = app.provider.change(&id, target, request.checked()?).await?;
    let nothing = || Problem::from(Error::Host("nothing is said of what was changed".into()));
    changed.map(Json).ok_or_else(nothing)
}

fn creation(mode: Option<&str>, parents: Option<bool>) -> Result<Creation, Problem> {
    Ok(Creation {
        mode: mode.map(parse_mode).transpose()?,
        parents: match parents {
            Some(false) => Parents::Expect,
            _ => Parents::Make,
        },
    })
}

fn depth(recursive: Option<bool>) -> Depth {
    match recursive {
        Some(true) => Depth::Tree,
        _ => Depth::One,
    }
}

/// Octal digits, as chmod(1) takes them.
fn parse_mode(text: &str) -> Result<u32, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mode = digits.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    mode.filter(|mode| *mode <= 0o7777).ok_or_else(|| {
        let detail = "a mode is octal digits from \"0\" to \"7777\", such as \"0644\"";
        Problem::new(Kind::InvalidRequest, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_a_part_of_the_file_or_nothing_that_counts() {
        let max = u64::MAX;
        for (asked, size, expected) in [
            ("bytes=0-0", 10, Part::Of(0..1)),
            ("bytes=2-4", 10, Part::Of(2..5)),
            ("Bytes=2-", 10, Part::Of(2..10)),
            ("bytes=-3", 10, Part::Of(7..10)),
            ("bytes=-30", 10, Part::Of(0..10)),
            ("bytes=5-99999999999999999999999", 10, Part::Of(5..10)),
            ("bytes=0-18446744073709551615", max, Part::Of(0..max)),
            ("bytes=10-", 10, Part::None),
            ("bytes=99999999999999999999999-", 10, Part::None),
            ("bytes=-0", 10, Part::None),
            ("bytes=0-", 0, Part::None),
            ("bytes=4-2", 10, Part::Whole),
            ("bytes=0-1,3-4", 10, Part::Whole),
            ("bytes=+1-2", 10, Part::Whole),
            ("bytes=-", 10, Part::Whole),
            ("bytes=", 10, Part::Whole),
            ("lines=0-1", 10, Part::Whole),
            ("0-1", 10, Part::Whole),
        ] {
            let value = HeaderValue::from_static(asked);
            assert_eq!(part(&value, size), expected, "{asked} of {size}");
        }
    }

    #[test]
    fn a_mode_is_octal_and_no_more() {
        for (text, mode) in [
            ("0644", 0o644),
            ("7777", 0o7777),
            ("0", 0),
            ("00000755", 0o755),
        ] {
            assert_eq!(parse_mode(text).ok(), Some(mode), "{text}");
        }
        for text in [
            "",
            "8",
            "10000",
            "-1",
            "+644",
            "0o644",
            "rwx",
            "77777777777777777777",
        ] {
            assert!(parse_mode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_that_http_has_no_form_for_are_left_out() {
        let of = |mtime| last_modified(mtime).map(|time| time.to_str().unwrap().to_owned());
        assert_eq!(of(1.9).as_deref(), Some("Thu, 01 Jan 1970 00:00:01 GMT"));
        for mtime in [-1.0, 1e12, 1e300, f64::NAN] {
            assert_eq!(of(mtime), None, "{mtime}");
        }
    }
}
