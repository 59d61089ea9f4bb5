//! What changed in a workspace since setup: as a list, a patch, a tar, and each file as it was and as it is.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use tokio_util::task::AbortOnDropHandle;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::files::{Place, content};
use super::metrics::Direction;
use super::problem::{Kind, Problem, Problems, of};
use super::routes::{Id, Octets, Parameters, tag};
use crate::provider::changes::{Binaries, Changes, Form, Ignored, ToldChanges};
use crate::provider::files::{Content, RawPath};
use crate::turns::Pass;

/// So many bytes have to be taken of an answer in [`PATIENCE`], or it is let go of: it takes a place among others, and
/// room on the disk.
const LEAST_TAKEN: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// How many changes an answer has no place for.
const LEFT_OUT: HeaderName = HeaderName::from_static("derrick-left-out");

/// The longest path, path_resolution(7), without its NUL.
const LONGEST_PATH: usize = 4095;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(changes))
        .routes(routes!(side))
}

/// What any of these may be refused for.
const CHANGES: u64 = of(&[
    Kind::InvalidRequest,
    Kind::NoSuchWorkspace,
    Kind::Conflict,
    Kind::NotPossible,
    Kind::NoSpace,
]);

#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// A list.
    #[default]
    Json,
    /// What git-apply(1) takes.
    Patch,
    /// The files that are new or other than they were.
    Tar,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ChangesQuery {
    /// `json` if absent.
    #[param(inline)]
    format: Option<Format>,
    /// An absolute path in the workspace: what changed there alone is told, and paths of a patch or a tar are
    /// relative to it. If absent, for a list everything; else the workspace's repository, or `/` if it has none.
    #[param(pattern = "^/", max_length = 4095)]
    path: Option<String>,
    /// Of a patch: whether binary files are in it; they are if absent.
    binary: Option<bool>,
    /// Of a patch or a tar: whether ignored files are in it; they are not if absent.
    ignored: Option<bool>,
}

/// Tells what changed since setup, whatever state the workspace's git is in.
///
/// It is read off what the workspace wrote, from the outside: staged, committed on any branch or untracked makes
/// no difference, and git's config, index, hooks, attributes and ignore rules in the workspace hide nothing. What
/// is ignored is told by the rules of setup's checkout. All that runs in the workspace is held until the answer
/// is written, for two minutes at most; an answer that would take longer, or more memory or room than it may, is
/// refused, and can be asked for in parts. What is in git directories is counted and not listed; hooks and configs
/// among it are named.
///
/// A patch has regular files and links, as git keeps them; a tar keeps no setuid and setgid. The header
/// `derrick-left-out` counts what is not in an answer; a patch names it in lines that begin with `# left out:`.
///
/// An answer has to be taken at 4 MiB a minute at least, or the connection is broken off.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/changes",
    operation_id = "show_changes",
    tag = tag::FILES,
    params(Id, ChangesQuery),
    responses(
        (status = 200, description = "What changed.", content(
            (Changes = "application/json"),
            (Octets = "text/x-diff"),
            (Octets = "application/x-tar"),
        ), headers(
            ("derrick-left-out" = u64, description = "How many changes are not in it."),
        )),
        Problems<CHANGES>,
    )
)]
async fn changes(
    State(app): State<Arc<App>>,
    Id(id): Id,
    Parameters(asked): Parameters<ChangesQuery>,
) -> Result<Response, Problem> {
    let within = asked
        .path
        .map(|path| checked(path.as_bytes()))
        .transpose()?;
    let ignored = match asked.ignored {
        Some(true) => Ignored::Included,
        _ => Ignored::LeftOut,
    };
    let binaries = match asked.binary {
        Some(false) => Binaries::LeftOut,
        _ => Binaries::Included,
    };
    let (form, kind) = match asked.format.unwrap_or_default() {
        Format::Json => (Form::List, "application/json"),
        Format::Patch => (Form::Patch(binaries, ignored), "text/x-diff"),
        Format::Tar => (Form::Tar(ignored), "application/x-tar"),
    };
    let told = app.provider.changes(&id, within, form).await?;
    Ok(send(app, told, kind))
}

#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Side {
    /// As setup left it.
    Old,
    /// As it is.
    #[default]
    New,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SideQuery {
    /// `new` if absent.
    #[param(inline)]
    side: Option<Side>,
}

/// Sends a file as it was after setup, or as it is; of a link, where it leads. No link is followed.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/changes/{*path}",
    operation_id = "show_side",
    tag = tag::FILES,
    params(Place, SideQuery),
    responses(
        (status = 200, description = "What is in it.", content((Octets = "application/octet-stream"))),
        Problems<{ CHANGES | of(&[Kind::NoSuchFile, Kind::NotAFile, Kind::NotRegular]) }>,
    )
)]
async fn side(
    State(app): State<Arc<App>>,
    place: Place,
    Parameters(asked): Parameters<SideQuery>,
) -> Result<Response, Problem> {
    let (id, target) = place.target(None);
    let path = checked(target.path.as_bytes())?;
    let form = match asked.side.unwrap_or_default() {
        Side::Old => Form::Old,
        Side::New => Form::New,
    };
    let told = app.provider.changes(&id, Some(path), form).await?;
    Ok(send(app, told, "application/octet-stream"))
}

/// A path that is one name after the other.
fn checked(path: &[u8]) -> Result<RawPath, Problem> {
    let invalid = |what| {
        Err(Problem::new(
            Kind::InvalidRequest,
            format!("the path {what}"),
        ))
    };
    if path.first() != Some(&b'/') {
        return invalid("is not absolute");
    }
    if path.len() > LONGEST_PATH || path.contains(&0) {
        return invalid("is none: it is too long, or has a NUL");
    }
    let names = path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty());
    let mut checked = Vec::new();
    for name in names {
        if matches!(name, b"." | b"..") {
            return invalid("has a part . or ..");
        }
        checked.push(b'/');
        checked.extend(name);
    }
    if checked.is_empty() {
        checked.push(b'/');
    }
    Ok(checked.into())
}

fn send(app: Arc<App>, told: ToldChanges, kind: &'static str) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_LENGTH, told.content.size.into());
    headers.insert(LEFT_OUT, told.left_out.into());
    let pieces = content(told.content.file, 0..told.content.size);
    let pieces = unless_slow(pieces, told.place);
    let counted = pieces.inspect_ok(move |piece| app.count(Direction::Out, piece));
    (headers, Body::from_stream(counted)).into_response()
}

/// What is kept as long as somebody takes it.
struct Kept {
    pieces: Content,
    _place: Pass,
    /// Bytes that were taken since the last look.
    taken: u64,
}

/// Lets go of the pieces, and of what stands for their place, once too little of them is taken; the next piece is
/// an error then, which breaks the connection off.
pub(super) fn unless_slow(
    pieces: Content,
    place: Pass,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let kept = Arc::new(Mutex::new(Some(Kept {
        pieces,
        _place: place,
        taken: 0,
    })));
    let watched = Arc::clone(&kept);
    let watch = AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            tokio::time::sleep(PATIENCE).await;
            let mut kept = lock(&watched);
            let some = kept.as_mut();
            if some.is_none_or(|some| std::mem::take(&mut some.taken) < LEAST_TAKEN) {
                *kept = None;
                break;
            }
        }
    }));
    stream::poll_fn(move |context| {
        // It ends with the pieces.
        let _watch = &watch;
        let mut kept = lock(&kept);
        let Some(some) = &mut *kept else {
            return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
        };
        let piece = some.pieces.poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(piece))) = &piece {
            some.taken += piece.len() as u64;
        }
        piece
    })
}

fn lock(kept: &Mutex<Option<Kept>>) -> MutexGuard<'_, Option<Kept>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turns::Gate;

    fn pieces(count: usize) -> Content {
        let pieces = (0..count).map(|_| Ok(Bytes::from(vec![0; 1 << 20])));
        stream::iter(pieces).boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_let_go_of_with_its_place() {
        let gate = Gate::new(1);
        let mut answer = Box::pin(unless_slow(pieces(9), gate.enter(None).await));
        for _ in 0..4 {
            answer.next().await.expect("a piece").expect("a whole one");
        }
        // Enough was taken in the first while, and too little in the next.
        let free = tokio::time::timeout(PATIENCE + PATIENCE / 2, gate.enter(None)).await;
        assert!(free.is_err(), "it is there for who takes enough");
        answer.next().await.expect("a piece").expect("a whole one");
        let free = tokio::time::timeout(PATIENCE, gate.enter(None)).await;
        drop(free.expect("its place is free"));
        let broken = answer.next().await.expect("it has not ended");
        assert_eq!(
            broken.expect_err("broken off").kind(),
            io::ErrorKind::TimedOut
        );
    }

    #[test]
    fn a_path_is_absolute_and_leads_down() {
        for (path, expected) in [("/", "/"), ("//a//b/", "/a/b"), ("/a b", "/a b")] {
            let checked = checked(path.as_bytes()).expect("a path");
            assert_eq!(checked.as_bytes(), expected.as_bytes());
        }
        for path in ["", "a", "/a/../b", "/.", "/a\0"] {
            assert!(checked(path.as_bytes()).is_err(), "{path:?}");
        }
        assert!(checked(&[b'/'; 5000]).is_err());
    }
}
