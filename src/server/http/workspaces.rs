//! Workspaces: made, listed, described, brought back to the state after setup, and ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::body;
use super::execs::{duration, waiting};
use super::grant::Caller;
use super::leases;
use super::problem::{ALWAYS, BODY, Kind, Problem, Problems, of};
use super::routes::{Id, Nothing, Parameters, checked_env, tag};
use super::snapshots::within;
use crate::provider::snapshots::SnapshotId;
use crate::provider::{
    Description, FetchWish, Fetched, LeaseAsked, LimitsAsked, LimitsChange, NewWorkspace, Patch,
    Receipt, RequestsAsked, ResetWish, Update, Verify, WorkspaceId,
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list, create))
        .routes(routes!(describe, change, remove))
        .routes(routes!(reset))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(fetch))
}

/// What setup may be refused for, and the start of the first sandbox.
pub(super) const SETUP: u64 = of(&[
    Kind::SetupFailed,
    Kind::RepositoryUnavailable,
    Kind::PermissionDenied,
    Kind::NotPossible,
    Kind::Conflict,
    Kind::NoSpace,
    Kind::LimitUnenforceable,
    Kind::TooMany,
]);

/// What a sandbox may be refused for when it is started anew, as a stopped workspace's is.
pub(super) const START: u64 = of(&[
    Kind::NoSuchWorkspace,
    Kind::Conflict,
    Kind::NoSpace,
    Kind::LimitUnenforceable,
]);

#[derive(Serialize, ToSchema)]
pub(super) struct Workspace {
    pub(super) id: WorkspaceId,
}

#[derive(Serialize, ToSchema)]
struct Workspaces {
    workspaces: Vec<Workspace>,
}

/// Lists all workspaces, oldest first; those that the token is good for.
#[utoipa::path(
    get,
    path = "/workspaces",
    operation_id = "list_workspaces",
    tag = tag::WORKSPACES,
    responses(
        (status = 200, description = "All workspaces.", body = Workspaces),
        Problems<ALWAYS>,
    )
)]
async fn list(State(app): State<Arc<App>>, caller: Caller) -> Json<Workspaces> {
    let ids = app.provider.list().into_iter();
    let within = ids.filter(|id| caller.may_ask_for(&app, id));
    let workspaces = within.map(|id| Workspace { id }).collect();
    Json(Workspaces { workspaces })
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CreateQuery {
    /// Waits for a place at most so many seconds, in order, instead of a 429; 0 to 3600.
    #[param(minimum = 0.0, maximum = 3600.0)]
    wait: Option<f64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct CreateRequest {
    /// Environment of all its commands, on top of the config's.
    env: Option<BTreeMap<String, String>>,
    /// What it may use; the config's limits where it says nothing.
    limits: Option<LimitsAsked>,
    /// What it is to get where others want it as well; the config's requests where it says nothing.
    requests: Option<RequestsAsked>,
    /// Seconds until it is removed, unless it is renewed; the config's `ttl` if absent.
    #[schema(exclusive_minimum = 0.0)]
    ttl: Option<f64>,
    /// Seconds without a request for it and without an exec until it is removed; the config's if absent.
    #[schema(exclusive_minimum = 0.0)]
    idle_timeout: Option<f64>,
    /// Whether it is removed when this connection ends. The answer is events then: `created` with the
    /// `id`, then what happens to it, until the client goes away.
    #[serde(default)]
    #[schema(required = false)]
    tied: bool,
    /// The snapshot that it starts from, with the environment of that one's workspace.
    snapshot: Option<SnapshotId>,
}

/// Makes a workspace in the state right after setup, or in that of a snapshot.
///
/// The first one sets up, which takes as long as the setup script does; further ones take
/// milliseconds. Where there are as many as the config allows, or too little memory, the answer is 429, or
/// with `wait` comes when there is room. It belongs to the name of the token that it is made with, if that has one. A token with a
/// scope gets no `ttl` and no `idle_timeout` beyond the config's.
#[utoipa::path(
    post,
    path = "/workspaces",
    operation_id = "create_workspace",
    tag = tag::WORKSPACES,
    params(CreateQuery),
    request_body = CreateRequest,
    responses(
        (status = 200, description = "It was made.", content(
            (Workspace = "application/json"),
            (String = "text/event-stream"),
        )),
        Problems<{ BODY | SETUP | of(&[Kind::BeyondScope, Kind::NoSuchSnapshot]) }>,
    )
)]
async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Parameters(query): Parameters<CreateQuery>,
    request: Request,
) -> Result<Response, Problem> {
    caller.check_creates()?;
    let wait = query.wait.map(waiting).transpose()?.unwrap_or_default();
    let body = app.collect(request, body::MAX_BODY).await?;
    let request: CreateRequest = body::parse(&body.bytes)?;
    let limits = request.limits.unwrap_or_default();
    limits.check().map_err(invalid("limits"))?;
    let requests = request.requests.unwrap_or_default();
    requests.check().map_err(invalid("requests"))?;
    let span = |field: &str, seconds: Option<f64>| {
        seconds.map(|seconds| duration(field, seconds)).transpose()
    };
    // Until the answer is out, or the client is gone.
    let tie = request.tied.then(CancellationToken::new);
    let guard = tie.clone().map(CancellationToken::drop_guard);
    let lease = LeaseAsked {
        ttl: span("ttl", request.ttl)?,
        idle_timeout: span("idle_timeout", request.idle_timeout)?,
        tie,
    };
    let asked = NewWorkspace {
        env: checked_env(request.env)?,
        limits: (&limits).into(),
        requests: (&requests).into(),
        latitude: caller.latitude(),
        owner: caller.name().map(str::to_owned),
        lease,
        wait,
        snapshot: request
            .snapshot
            .map(|id| within(&app, &caller, id))
            .transpose()?,
    };
    let id = app.provider.create(asked).await?;
    match guard {
        None => Ok(Json(Workspace { id }).into_response()),
        Some(tie) => {
            let events = app.provider.events(&id)?;
            Ok(leases::tied(&id, events, tie))
        }
    }
}

pub(super) fn invalid(object: &'static str) -> impl Fn((&'static str, String)) -> Problem {
    move |(field, reason)| {
        let detail = format!("field {object}.{field}: {reason}");
        Problem::new(Kind::InvalidRequest, detail)
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct ChangeRequest {
    /// What is to be different; null for what is not to be limited any more.
    #[serde(default, deserialize_with = "there")]
    #[schema(value_type = Option<LimitsAsked>)]
    limits: Option<Value>,
    /// Likewise.
    #[serde(default, deserialize_with = "there")]
    #[schema(value_type = Option<RequestsAsked>)]
    requests: Option<Value>,
}

/// A value that is there, and may be null.
fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// What `part` of a merge patch sets, and the fields that it removes: all where it is null.
fn patched<T>(object: &'static str, part: Option<Value>) -> Result<(T, BTreeSet<String>), Problem>
where
    T: Default + Serialize + DeserializeOwned,
{
    let wrong = |error: serde_json::Error| {
        Problem::new(Kind::InvalidRequest, format!("field {object}: {error}"))
    };
    let part = match part {
        None => return Ok((T::default(), BTreeSet::new())),
        // A field of which nothing is said is null when it is written.
        Some(Value::Null) => serde_json::to_value(T::default()).map_err(wrong)?,
        Some(part) => part,
    };
    let fields = part.as_object().into_iter().flatten();
    let unset = fields.filter(|(_, value)| value.is_null());
    let unset = unset.map(|(name, _)| name.clone()).collect();
    Ok((serde_json::from_value(part).map_err(wrong)?, unset))
}

/// Changes what a workspace may use and is to get.
///
/// A JSON Merge Patch (RFC 7396): what is left out stays, what is null is not limited any more, whatever
/// the config says. Ceilings and requests for memory, processors and processes change at once for what
/// runs; `open_files`, `output` and `execs` for what starts from then on; and those that the answer has in
/// `pending` when the workspace is reset. A ceiling for memory below what is in use: version 2 of control
/// groups ends what runs as `oom`, version 1 refuses with 409.
#[utoipa::path(
    patch,
    path = "/workspaces/{id}",
    operation_id = "change_workspace",
    tag = tag::WORKSPACES,
    params(Id),
    request_body = ChangeRequest,
    responses(
        (status = 200, description = "What it is now.", body = Description),
        Problems<{ BODY | START | of(&[Kind::NotPossible]) }>,
    )
)]
async fn change(
    State(app): State<Arc<App>>,
    Id(id): Id,
    caller: Caller,
    request: Request,
) -> Result<Json<Description>, Problem> {
    let body = app.collect(request, body::MAX_BODY).await?;
    let request: ChangeRequest = body::parse(&body.bytes)?;
    let (limits, unset_limits): (LimitsAsked, _) = patched("limits", request.limits)?;
    limits.check().map_err(invalid("limits"))?;
    let (requests, unset_requests): (RequestsAsked, _) = patched("requests", request.requests)?;
    requests.check().map_err(invalid("requests"))?;
    let change = LimitsChange {
        limits: Patch {
            set: (&limits).into(),
            unset: unset_limits,
        },
        requests: Patch {
            set: (&requests).into(),
            unset: unset_requests,
        },
        latitude: caller.latitude(),
    };
    let changed = app.provider.change_limits(&id, change).await?;
    Ok(Json(changed))
}

/// Describes a workspace.
#[utoipa::path(
    get,
    path = "/workspaces/{id}",
    operation_id = "describe_workspace",
    tag = tag::WORKSPACES,
    params(Id),
    responses(
        (status = 200, description = "What it is now.", body = Description),
        Problems<{ of(&[Kind::NoSuchWorkspace]) }>,
    )
)]
async fn describe(State(app): State<Arc<App>>, Id(id): Id) -> Result<Json<Description>, Problem> {
    Ok(Json(app.provider.describe(&id).await?))
}

/// Ends a workspace: its processes, then its files.
///
/// `false` if there was none.
#[utoipa::path(
    delete,
    path = "/workspaces/{id}",
    operation_id = "remove_workspace",
    tag = tag::WORKSPACES,
    params(Id),
    responses(
        (status = 200, description = "Whether there was one.", body = bool, content_type = "application/json"),
        Problems<ALWAYS>,
    )
)]
// Text that names no workspace is `false` too, as it is for bosun-ai/derrick.
async fn remove(
    State(app): State<Arc<App>>,
    id: Result<Id, Problem>,
) -> Result<Json<bool>, Problem> {
    match id {
        Ok(Id(id)) => Ok(Json(app.provider.remove(&id).await?)),
        Err(_) => Ok(Json(false)),
    }
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct ResetRequest {
    /// The snapshot whose state is wanted, of whatever workspace; the one that it was made in if absent.
    to: Option<SnapshotId>,
}

/// Brings a workspace back to exactly the state that it was made in, or to that of a snapshot.
///
/// That is the state after setup, or the snapshot that it was made from. With `to` it is what it goes to this
/// time alone. A fence, and one that is to come, is over then.
///
/// It gets a pristine sandbox. What ran in it reaches neither it nor anybody else when this answers; that is
/// killed, and what it wrote removed, in the background.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/reset",
    operation_id = "reset_workspace",
    tag = tag::WORKSPACES,
    params(Id, ResetQuery),
    request_body = Option<ResetRequest>,
    responses(
        (status = 200, description = "A receipt.", body = Receipt),
        Problems<{ BODY | START | of(&[Kind::NoSuchSnapshot, Kind::NotPossible]) }>,
    )
)]
async fn reset(
    State(app): State<Arc<App>>,
    Id(id): Id,
    caller: Caller,
    Parameters(query): Parameters<ResetQuery>,
    request: Request,
) -> Result<Json<Receipt>, Problem> {
    let asked: ResetRequest = app.collect_or_default(request).await?;
    let to = asked.to.map(|to| within(&app, &caller, to));
    let wish = ResetWish {
        wait_for_disposal: query.wait.is_some(),
        verify: match query.verify {
            Some(ResetVerify::Full) => Verify::Full,
            None => Verify::Usual,
        },
        to: to.transpose()?,
    };
    Ok(Json(app.provider.reset(&id, wish).await?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ResetQuery {
    /// What to wait for before the answer.
    #[param(inline)]
    wait: Option<ResetWait>,
    /// How closely to look at what the workspace gets.
    #[param(inline)]
    verify: Option<ResetVerify>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ResetVerify {
    /// Everything that is to be seen in it, contents included, is compared with what another sandbox of the
    /// same layer shows.
    Full,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ResetWait {
    /// Until what was discarded is gone: the receipt then tells what that was.
    Disposal,
}

/// Pauses a workspace: all its processes stop at a stroke.
///
/// Until it is resumed, commands, files and sessions are refused as `paused`; it can be reset and removed.
/// Deadlines of its commands go on, and kill them. One that is stopped is started for it.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/pause",
    operation_id = "pause_workspace",
    tag = tag::WORKSPACES,
    params(Id),
    request_body = Option<Nothing>,
    responses(
        (status = 200, description = "It is paused.", body = Description),
        Problems<{ BODY | START | of(&[Kind::Fenced]) }>,
    )
)]
async fn pause(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Json<Description>, Problem> {
    app.collect_nothing(request).await?;
    Ok(Json(app.provider.pause(&id).await?))
}

/// Has the processes of a paused workspace go on.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/resume",
    operation_id = "resume_workspace",
    tag = tag::WORKSPACES,
    params(Id),
    request_body = Option<Nothing>,
    responses(
        (status = 200, description = "It is not paused.", body = Description),
        Problems<{ BODY | of(&[Kind::NoSuchWorkspace, Kind::Conflict]) }>,
    )
)]
async fn resume(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Json<Description>, Problem> {
    app.collect_nothing(request).await?;
    Ok(Json(app.provider.resume(&id).await?))
}

#[derive(Serialize, ToSchema)]
struct Fetch {
    /// In the order of the config.
    repositories: Vec<Fetched>,
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct FetchRequest {
    /// The path of the one repository that is meant; all of the config's if absent.
    #[schema(value_type = Option<String>)]
    path: Option<PathBuf>,
    /// A branch, a tag or a commit of it; what the config says if absent.
    reference: Option<String>,
    /// What becomes of what is checked out.
    #[serde(default)]
    update: Update,
}

/// Brings new upstream commits into the workspace's repositories.
///
/// They come in as remote-tracking references, a commit that is asked for by its id as `refs/derrick/commits/`.
/// Branches, changes and the index stay as they are, unless `update` says otherwise.
///
/// Where the config wants submodules, those of the new commit get their commits as well, and an update checks them
/// out, detached, at the commit that is named, as `git submodule update` does: `reset` whatever was there,
/// `fast-forward` where no commit and no changed file is lost. One that is new is made by an update; one that is
/// named no more stays as it is.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/fetch",
    operation_id = "fetch_workspace",
    tag = tag::WORKSPACES,
    params(Id),
    request_body = Option<FetchRequest>,
    responses(
        (status = 200, description = "Old and new commit of each repository.", body = Fetch),
        Problems<{ BODY | START | of(&[Kind::Paused, Kind::Fenced, Kind::RepositoryUnavailable, Kind::NotPossible]) }>,
    )
)]
async fn fetch(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Json<Fetch>, Problem> {
    let asked: FetchRequest = app.collect_or_default(request).await?;
    let wish = FetchWish {
        path: asked.path,
        reference: asked.reference,
        update: asked.update,
    };
    let repositories = app.provider.fetch(&id, wish).await?;
    Ok(Json(Fetch { repositories }))
}
