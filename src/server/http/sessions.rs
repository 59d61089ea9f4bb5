//! Sessions: shells that live from one command to the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::body;
use super::commands::SANDBOX;
use super::execs::{UserField, duration};
use super::problem::{BODY, Kind, Problem, Problems, of};
use super::routes::{
    Id, Nothing, Part, checked_env, optional_without_nul, part_of, tag, without_nul,
};
use crate::provider::{Asked, Command, Ran, SessionRecord, WorkspaceId, check_session_name};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list, start))
        .routes(routes!(show, remove))
        .routes(routes!(run))
        .routes(routes!(interrupt))
}

/// The `{id}` and the `{name}` of the route.
#[derive(IntoParams)]
#[into_params(names("id", "name"), parameter_in = Path)]
struct SessionPath(
    /// The workspace.
    #[param(value_type = WorkspaceId)]
    WorkspaceId,
    /// The session.
    #[param(value_type = String)]
    String,
);

impl FromRequestParts<Arc<App>> for SessionPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Id(id) = Id::from_request_parts(parts, app).await?;
        let name = part_of(&parts.uri, Part::Of).into_owned();
        Ok(Self(id, name))
    }
}

#[derive(Serialize, ToSchema)]
struct Sessions {
    sessions: Vec<SessionRecord>,
}

/// Lists the sessions of a workspace.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/sessions",
    operation_id = "list_sessions",
    tag = tag::SESSIONS,
    params(Id),
    responses(
        (status = 200, description = "All of them, by name.", body = Sessions),
        Problems<{ of(&[Kind::NoSuchWorkspace]) }>,
    )
)]
async fn list(State(app): State<Arc<App>>, Id(id): Id) -> Result<Json<Sessions>, Problem> {
    let sessions = app.provider.sessions(&id)?;
    Ok(Json(Sessions { sessions }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = StartSessionRequest)]
struct StartRequest {
    /// 1 to 64 characters of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`, but not `.` and `..`.
    #[schema(
        pattern = "^([a-zA-Z0-9_-]|[.]{1,2}[a-zA-Z0-9_-]|[.]{3})[a-zA-Z0-9._-]{0,61}$",
        max_length = 64
    )]
    name: String,
    /// Relative to the config's `workdir` if not absolute; `workdir` itself if absent.
    cwd: Option<String>,
    /// On top of the config's and the workspace's environment.
    env: Option<BTreeMap<String, String>>,
    /// Looked up inside; the config's if absent.
    user: Option<UserField>,
}

/// Starts a session: bash, or sh where the base has no bash.
///
/// Working directory, environment, functions and background jobs stay from one command to the next.
/// One that has ended makes room for another of its name.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/sessions",
    operation_id = "start_session",
    tag = tag::SESSIONS,
    params(Id),
    request_body = StartRequest,
    responses(
        (status = 201, description = "It waits for a command.", body = SessionRecord),
        Problems<{ BODY | SANDBOX | of(&[Kind::SessionExists, Kind::TooMany]) }>,
    )
)]
async fn start(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<(StatusCode, Json<SessionRecord>), Problem> {
    let body = app.collect(request, body::MAX_BODY).await?;
    let request: StartRequest = body::parse(&body.bytes)?;
    check_session_name(&request.name)
        .map_err(|error| Problem::new(Kind::InvalidRequest, format!("the field name: {error}")))?;
    let user = request.user.map(UserField::checked).transpose()?;
    let command = Command {
        working_dir: optional_without_nul("cwd", request.cwd)?,
        env: checked_env(request.env)?,
        user,
        ..Command::new(Asked::Cmd(String::new()))
    };
    let started = app
        .provider
        .start_session(&id, request.name, command)
        .await?;
    Ok((StatusCode::CREATED, Json(started)))
}

/// Shows a session.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/sessions/{name}",
    operation_id = "show_session",
    tag = tag::SESSIONS,
    params(SessionPath),
    responses(
        (status = 200, description = "What is known of it.", body = SessionRecord),
        Problems<{ of(&[Kind::NoSuchWorkspace, Kind::NoSuchSession]) }>,
    )
)]
async fn show(
    State(app): State<Arc<App>>,
    SessionPath(id, name): SessionPath,
) -> Result<Json<SessionRecord>, Problem> {
    Ok(Json(app.provider.session(&id, &name)?.record()))
}

/// Ends a session: kills its shell and all that runs below it.
///
/// `false` if there was none.
#[utoipa::path(
    delete,
    path = "/workspaces/{id}/sessions/{name}",
    operation_id = "end_session",
    tag = tag::SESSIONS,
    params(SessionPath),
    responses(
        (status = 200, description = "Whether there was one.", body = bool, content_type = "application/json"),
        Problems<{ of(&[Kind::NoSuchWorkspace, Kind::NoSuchSession]) }>,
    )
)]
async fn remove(
    State(app): State<Arc<App>>,
    SessionPath(id, name): SessionPath,
) -> Result<Json<bool>, Problem> {
    Ok(Json(app.provider.remove_session(&id, &name).await?))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct SessionCommand {
    /// One or several lines for the session's shell. It reads nothing.
    cmd: String,
    /// Seconds until it is interrupted, as ctrl-c does it; more than 0. What goes on all the same is
    /// killed, and at last the shell.
    #[schema(exclusive_minimum = 0.0)]
    timeout: Option<f64>,
}

/// Runs a command in a session, to its end.
///
/// It runs on if the client goes away. The session's exec has the output as it comes, and more of it.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/sessions/{name}/run",
    operation_id = "run_in_session",
    tag = tag::SESSIONS,
    params(SessionPath),
    request_body = SessionCommand,
    responses(
        (status = 200, description = "How it ended, and what it printed.", body = Ran),
        Problems<{ BODY | SANDBOX | of(&[Kind::NoSuchSession, Kind::SessionBusy, Kind::SessionEnded]) }>,
    )
)]
async fn run(
    State(app): State<Arc<App>>,
    SessionPath(id, name): SessionPath,
    request: Request,
) -> Result<Json<Ran>, Problem> {
    let body = app.collect(request, body::MAX_BODY).await?;
    let request: SessionCommand = body::parse(&body.bytes)?;
    drop(body);
    let line = without_nul("cmd", request.cmd)?;
    let timeout = request
        .timeout
        .map(|timeout| duration("timeout", timeout))
        .transpose()?;
    let ran = app
        .provider
        .run_in_session(&id, &name, line, timeout)
        .await?;
    Ok(Json(ran))
}

/// Interrupts the command that runs in a session, as ctrl-c does.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/sessions/{name}/interrupt",
    operation_id = "interrupt_session",
    tag = tag::SESSIONS,
    params(SessionPath),
    request_body = Option<Nothing>,
    responses(
        (status = 200, description = "It is interrupted, if one runs.", body = Nothing),
        Problems<{ BODY | SANDBOX | of(&[Kind::NoSuchSession, Kind::SessionEnded, Kind::ExecEnded]) }>,
    )
)]
async fn interrupt(
    State(app): State<Arc<App>>,
    SessionPath(id, name): SessionPath,
    request: Request,
) -> Result<Json<Nothing>, Problem> {
    app.collect_nothing(request).await?;
    app.provider.session(&id, &name)?.interrupt().await?;
    Ok(Json(Nothing {}))
}
