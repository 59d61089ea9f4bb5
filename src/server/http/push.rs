//! Commits that leave a workspace: made by its own git, taken out as a bundle, and pushed.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::body::{self, MAX_BODY};
use super::changes::unless_slow;
use super::files::content;
use super::metrics::Direction;
use super::problem::{BODY, Kind, Problem, Problems, of};
use super::routes::{Id, Octets, Parameters, tag, without_nul};
use super::snapshots::Time;
use super::workspaces::START;
use crate::provider::push::{Committed, Message, PushWish, Pushed};

/// The longest message of a commit, in bytes: it is an argument of a program.
const LONGEST_MESSAGE: usize = 64 * 1024;

/// The longest name and address of an author, in bytes.
const LONGEST_NAME: usize = 1024;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(commit))
        .routes(routes!(bundle))
        .routes(routes!(push))
}

/// What any of these may be refused for.
const OUT: u64 = START
    | of(&[
        Kind::InvalidRequest,
        Kind::Paused,
        Kind::Fenced,
        Kind::NotPossible,
        Kind::PermissionDenied,
        Kind::NoSuchFile,
        Kind::NotADirectory,
        Kind::GitFailed,
    ]);

/// Who makes a commit.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Author {
    /// One line.
    #[schema(min_length = 1, max_length = 1024, example = "Ada")]
    name: String,
    /// One line.
    #[schema(min_length = 1, max_length = 1024, example = "ada@example.org")]
    email: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct CommitRequest {
    /// The repository in the workspace; the config's only one if absent.
    #[schema(value_type = Option<String>)]
    path: Option<PathBuf>,
    /// Of the commit; empty lines around it are left out.
    #[schema(min_length = 1, max_length = 65536, example = "Mend it")]
    message: String,
    /// Author and committer.
    author: Author,
    /// When it was made: RFC 3339, or seconds since 1970; now if absent.
    date: Option<Time>,
}

impl CommitRequest {
    fn checked(self) -> Result<(Option<PathBuf>, Message), Problem> {
        let date = self.date.map(|date| date.seconds("date")).transpose()?;
        let text = without_nul("message", self.message)?;
        if text.len() > LONGEST_MESSAGE || text.trim().is_empty() {
            return Err(invalid(
                "message: from 1 to 65536 bytes, not all of them space",
            ));
        }
        let message = Message {
            text,
            name: one_line("author.name", self.author.name)?,
            email: one_line("author.email", self.author.email)?,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is between 1970 and the year 9999"
            )]
            date: date.map(|date| date as u64),
        };
        Ok((self.path, message))
    }
}

/// A name as git keeps it: it leaves out what stands around a name, and all of `<>`.
fn one_line(field: &str, text: String) -> Result<String, Problem> {
    let odd = |char: char| char.is_control() || "<>".contains(char);
    let is_crud = |char: char| char.is_ascii_whitespace() || ".,:;\"'\\".contains(char);
    if text.len() > LONGEST_NAME || text.contains(odd) || text.trim_matches(is_crud).is_empty() {
        return Err(invalid(&format!(
            "{field}: one line of at most {LONGEST_NAME} bytes, without '<' and '>', that says something"
        )));
    }
    Ok(text)
}

fn invalid(what: &str) -> Problem {
    Problem::new(Kind::InvalidRequest, format!("the field {what}"))
}

/// Makes a commit of all that is changed in a repository of the workspace: staged, unstaged and untracked, but not
/// what is ignored.
///
/// The workspace's own git makes it, confined, as the owner of the repository: no hook runs, nothing is signed,
/// and a merge under way is ended. The answer is what it said. Where nothing is changed, `commit` is null.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/commit",
    operation_id = "commit_workspace",
    tag = tag::WORKSPACES,
    params(Id),
    request_body = CommitRequest,
    responses(
        (status = 200, description = "The commit, and the one before it.", body = Committed),
        Problems<{ BODY | OUT }>,
    )
)]
async fn commit(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Json<Committed>, Problem> {
    let body = app.collect(request, MAX_BODY).await?;
    let asked: CommitRequest = body::parse(&body.bytes)?;
    let (path, message) = asked.checked()?;
    Ok(Json(app.provider.commit(&id, path, message).await?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct BundleQuery {
    /// The repository in the workspace; the config's only one if absent.
    #[param(value_type = Option<String>, pattern = "^/", max_length = 4095)]
    path: Option<PathBuf>,
    /// A branch or a tag of it, or `HEAD`; all of these if absent.
    #[param(example = "HEAD")]
    reference: Option<String>,
}

/// Sends a repository of the workspace as a bundle, which `git clone` and `git fetch` take.
///
/// The workspace's own git makes it, confined, so it is as hostile as what runs in there: whoever takes it should
/// have git check it (`fetch.fsckObjects`). It is at most 4 GiB, and has to be taken at 4 MiB a minute at least, or
/// the connection is broken off.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/bundle",
    operation_id = "bundle_workspace",
    tag = tag::WORKSPACES,
    params(Id, BundleQuery),
    responses(
        (status = 200, description = "The bundle.", content((Octets = "application/x-git-bundle"))),
        Problems<OUT>,
    )
)]
async fn bundle(
    State(app): State<Arc<App>>,
    Id(id): Id,
    Parameters(asked): Parameters<BundleQuery>,
) -> Result<Response, Problem> {
    let bundled = app
        .provider
        .bundle(&id, asked.path, asked.reference)
        .await?;
    let mut headers = HeaderMap::new();
    let kind = HeaderValue::from_static("application/x-git-bundle");
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CONTENT_LENGTH, bundled.content.size.into());
    let pieces = content(bundled.content.file, 0..bundled.content.size);
    let counted = unless_slow(pieces, bundled.place)
        .inspect_ok(move |piece| app.count(Direction::Out, piece));
    Ok((headers, Body::from_stream(counted)).into_response())
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct PushRequest {
    /// The repository in the workspace; the config's only one if absent.
    #[schema(value_type = Option<String>)]
    path: Option<PathBuf>,
    /// A branch of it; what is checked out if absent, or `HEAD`.
    branch: Option<String>,
    /// The branch of the upstream; that of the same name if absent.
    to: Option<String>,
}

/// Pushes commits of the workspace to a branch of its upstream that the config's `push` allows.
///
/// The workspace's own git makes a bundle of them; the provider has its own git check every object in a repository
/// of its own, and pushes from there with its credentials, which never come inside. They have to follow on the
/// commit that the workspace started from, or on the one that the last fetch of the config's own reference brought;
/// they are at most 512 MiB and 500,000 objects. No branch is moved but forwards. Where the upstream refuses them,
/// the problem has its words.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/push",
    operation_id = "push_workspace",
    tag = tag::WORKSPACES,
    params(Id),
    request_body = Option<PushRequest>,
    responses(
        (status = 200, description = "Old and new commit of the upstream's branch.", body = Pushed),
        Problems<{ BODY | OUT | of(&[
            Kind::PushNotAllowed,
            Kind::CommitsRefused,
            Kind::PushRefused,
            Kind::RepositoryUnavailable,
        ]) }>,
    )
)]
async fn push(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Json<Pushed>, Problem> {
    let asked: PushRequest = app.collect_or_default(request).await?;
    let wish = PushWish {
        path: asked.path,
        branch: asked.branch,
        to: asked.to,
    };
    Ok(Json(app.provider.push(&id, wish).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_says_something_and_so_does_its_author() {
        let parse = |change: &str| {
            let mut body = serde_json::json!({
                "message": "m", "author": { "name": "Ada", "email": "a@b" },
            });
            if let Some((field, text)) = change.split_once('=') {
                *body.pointer_mut(field).expect("it is there") = text.into();
            }
            let asked: CommitRequest = serde_json::from_value(body).expect("a request");
            asked.checked().map(|(_, message)| message.text)
        };
        assert_eq!(parse("").expect("it is right"), "m");
        assert_eq!(parse("/message=-m\n").expect("it is right"), "-m\n");
        for wrong in [
            "/message=",
            "/message= \n",
            "/message=a\0b",
            "/author/name=",
            "/author/name= .",
            "/author/name=a\nb",
            "/author/name=a <b>",
            "/author/email=\x1b",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
