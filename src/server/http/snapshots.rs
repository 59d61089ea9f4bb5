//! Snapshots: taken, listed, labelled, removed, started from; and fences, which end in one.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::body;
use super::files::{Format, received};
use super::grant::Caller;
use super::metrics::Direction;
use super::problem::{ALWAYS, BODY, Kind, Problem, Problems, of};
use super::routes::{Id, Octets, Parameters, Part, checked_env, part_of, tag};
use super::workspaces::{SETUP, Workspace, invalid};
use crate::provider::snapshots::{Fence, Imported, Snapshot, SnapshotId, Taken};
use crate::provider::{Error, LimitsAsked, NewWorkspace, RequestsAsked};

/// Workspaces of one fork.
const MOST: usize = 1000;

/// Characters of a label.
const LONGEST_LABEL: usize = crate::provider::snapshots::LABEL_MAX;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list_of, take))
        .routes(routes!(fork))
        .routes(routes!(fence))
        .routes(routes!(list))
        .routes(routes!(import))
        .routes(routes!(export))
        .routes(routes!(show, change, remove))
}

/// What freezing a workspace may be refused for.
const FREEZE: u64 = of(&[
    Kind::NoSuchWorkspace,
    Kind::Conflict,
    Kind::Fenced,
    Kind::TooDeep,
    Kind::NotPossible,
    Kind::NoSpace,
]);

/// The `{snapshot}` of the route. What cannot be an id names none, and what is beyond the scope of the
/// caller's token is answered for as if there were none: 404. The only way to a snapshot of a caller's,
/// but for [`within`].
#[derive(IntoParams)]
#[into_params(names("snapshot"), parameter_in = Path)]
struct SnapshotPath(
    /// The snapshot.
    SnapshotId,
);

impl FromRequestParts<Arc<App>> for SnapshotPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let text = part_of(&parts.uri, Part::Workspace);
        let id: SnapshotId = text.parse().map_err(|_| {
            let shown: String = text.chars().take(63).collect();
            Problem::from(Error::NoSuchSnapshot(format!(
                "there is no snapshot {shown:?}"
            )))
        })?;
        within(app, &caller, id).map(Self)
    }
}

/// The snapshot, unless it is beyond the scope of the caller's token: then there is none.
pub(super) fn within(app: &App, caller: &Caller, id: SnapshotId) -> Result<SnapshotId, Problem> {
    let found = app.provider.show_snapshot(id);
    match found {
        Ok(found) if caller.may_use(&found) => Ok(id),
        _ => Err(Error::NoSuchSnapshot(format!("there is no snapshot {id}")).into()),
    }
}

#[derive(Serialize, ToSchema)]
struct Snapshots {
    snapshots: Vec<Snapshot>,
}

/// Lists all snapshots, oldest first; those that the token is good for.
#[utoipa::path(
    get,
    path = "/snapshots",
    operation_id = "list_snapshots",
    tag = tag::SNAPSHOTS,
    responses(
        (status = 200, description = "All snapshots.", body = Snapshots),
        Problems<ALWAYS>,
    )
)]
async fn list(State(app): State<Arc<App>>, caller: Caller) -> Json<Snapshots> {
    let mut snapshots = app.provider.snapshots();
    snapshots.retain(|snapshot| caller.may_use(snapshot));
    Json(Snapshots { snapshots })
}

/// Lists the snapshots of a workspace, oldest first.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/snapshots",
    operation_id = "list_workspace_snapshots",
    tag = tag::SNAPSHOTS,
    params(Id),
    responses(
        (status = 200, description = "Those that were taken of it.", body = Snapshots),
        Problems<{ of(&[Kind::NoSuchWorkspace]) }>,
    )
)]
async fn list_of(State(app): State<Arc<App>>, Id(id): Id) -> Result<Json<Snapshots>, Problem> {
    // There must be one of that id.
    app.provider.owner(&id)?;
    let mut snapshots = app.provider.snapshots();
    snapshots.retain(|snapshot| snapshot.workspace.as_ref() == Some(&id));
    Ok(Json(Snapshots { snapshots }))
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct SnapshotRequest {
    /// What to call it; at most 200 characters.
    #[schema(max_length = 200)]
    label: Option<String>,
}

/// Takes a snapshot: freezes all that the workspace's files are now.
///
/// Where nothing runs in the workspace this takes the same time whatever it wrote; where something runs, it
/// is held while its files are copied. The workspace goes on either way. A snapshot outlives any end of
/// derrick, and once it is `durable` a power failure as well.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/snapshots",
    operation_id = "take_snapshot",
    tag = tag::SNAPSHOTS,
    params(Id),
    request_body = Option<SnapshotRequest>,
    responses(
        (status = 201, description = "It was taken.", body = Taken),
        Problems<{ BODY | FREEZE }>,
    )
)]
async fn take(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<(StatusCode, Json<Taken>), Problem> {
    let request: SnapshotRequest = app.collect_or_default(request).await?;
    let label = checked_label(request.label)?;
    let taken = app.provider.snapshot(&id, label).await?;
    Ok((StatusCode::CREATED, Json(taken)))
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct ForkRequest {
    /// How many workspaces; 1 if absent.
    #[schema(minimum = 1, maximum = 1000)]
    count: Option<usize>,
    /// What to call the snapshot; at most 200 characters.
    #[schema(max_length = 200)]
    label: Option<String>,
    /// Environment of all commands of the new ones, on top of the workspace's.
    env: Option<BTreeMap<String, String>>,
    /// What each may use; the config's limits where it says nothing.
    limits: Option<LimitsAsked>,
    /// What each is to get; the config's requests where it says nothing.
    requests: Option<RequestsAsked>,
}

#[derive(Serialize, ToSchema)]
struct Fork {
    snapshot: Taken,
    workspaces: Vec<Workspace>,
}

/// Takes a snapshot of a workspace and makes workspaces that start from it: all of them or none.
///
/// They have its files and its environment, and none of its processes.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/fork",
    operation_id = "fork_workspace",
    tag = tag::SNAPSHOTS,
    params(Id),
    request_body = Option<ForkRequest>,
    responses(
        (status = 201, description = "They were made.", body = Fork),
        Problems<{ BODY | FREEZE | SETUP | of(&[Kind::BeyondScope, Kind::NoSuchSnapshot]) }>,
    )
)]
async fn fork(
    State(app): State<Arc<App>>,
    Id(id): Id,
    caller: Caller,
    request: Request,
) -> Result<(StatusCode, Json<Fork>), Problem> {
    caller.check_creates()?;
    let request: ForkRequest = app.collect_or_default(request).await?;
    let count = request.count.unwrap_or(1);
    if !(1..=MOST).contains(&count) {
        let detail = format!("the field count: from 1 to {MOST}");
        return Err(Problem::new(Kind::InvalidRequest, detail));
    }
    let label = checked_label(request.label)?;
    let limits = request.limits.unwrap_or_default();
    limits.check().map_err(invalid("limits"))?;
    let requests = request.requests.unwrap_or_default();
    requests.check().map_err(invalid("requests"))?;
    let asked = NewWorkspace {
        env: checked_env(request.env)?,
        limits: (&limits).into(),
        requests: (&requests).into(),
        latitude: caller.latitude(),
        owner: caller.name().map(str::to_owned),
        ..NewWorkspace::default()
    };
    let forked = app.provider.fork(&id, count, label, asked).await?;
    let workspaces = forked.workspaces.into_iter().map(|id| Workspace { id });
    let fork = Fork {
        snapshot: forked.snapshot,
        workspaces: workspaces.collect(),
    };
    Ok((StatusCode::CREATED, Json(fork)))
}

/// A time.
#[derive(Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected seconds since 1970 or a text such as \"2026-01-31T12:00:00Z\""
)]
pub(super) enum Time {
    /// Seconds since 1970.
    Unix(f64),
    /// As RFC 3339 has it.
    Text(String),
}

impl Time {
    /// Of the field of that name.
    pub(super) fn seconds(self, field: &str) -> Result<f64, Problem> {
        let invalid =
            |what: &str| Problem::new(Kind::InvalidRequest, format!("the field {field}: {what}"));
        match self {
            Self::Unix(at) if at.is_finite() && (0.0..=LATEST).contains(&at) => Ok(at),
            Self::Unix(_) => Err(invalid("not a time in seconds since 1970")),
            Self::Text(text) => parse_time(&text).ok_or_else(|| {
                invalid("not a time as RFC 3339 has it, such as 2026-01-31T12:00:00+01:00")
            }),
        }
    }
}

/// Seconds from 1970 to a time as RFC 3339 has it, whatever its offset.
fn parse_time(text: &str) -> Option<f64> {
    let (local, offset) = split_offset(text)?;
    if !local.ends_with(|last: char| last.is_ascii_digit()) {
        return None;
    }
    let at = humantime::parse_rfc3339(&format!("{}Z", local.to_ascii_uppercase())).ok()?;
    let at = at.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs_f64() - offset;
    (0.0..=LATEST).contains(&at).then_some(at)
}

/// The time without its offset, and how many seconds that is ahead of UTC.
fn split_offset(text: &str) -> Option<(&str, f64)> {
    if let Some(local) = text.strip_suffix(['Z', 'z']) {
        return Some((local, 0.0));
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub("+00:00".len())?)?;
    let digits = |from: usize, most: u8| -> Option<u8> {
        let digits = offset.get(from..from + 2)?;
        let all_digits = digits.bytes().all(|digit| digit.is_ascii_digit());
        let number: u8 = all_digits.then(|| digits.parse().ok())??;
        (number <= most).then_some(number)
    };
    let minutes = f64::from(digits(1, 23)?) * 60.0 + f64::from(digits(4, 59)?);
    let sign = match (offset.as_bytes()[0], offset.as_bytes()[3]) {
        (b'+', b':') => 1.0,
        (b'-', b':') => -1.0,
        _ => return None,
    };
    Some((local, sign * minutes * 60.0))
}

/// The end of the year 9999.
const LATEST: f64 = 253_402_300_799.0;

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct FenceRequest {
    /// When: RFC 3339, or seconds since 1970; now if absent or past.
    at: Option<Time>,
}

/// A fence for a time to come.
#[derive(Serialize, ToSchema)]
struct Fenced {
    /// When, seconds since 1970; absent where it was now.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<f64>,
    /// The snapshot that it is, or will be.
    snapshot: SnapshotId,
    /// `fenced`, or `scheduled`.
    state: FenceState,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum FenceState {
    /// It has happened.
    Fenced,
    /// It is to come.
    Scheduled,
}

/// Fences a workspace, now or at a time: all that runs in it ends at that instant, and what it wrote until
/// then is a snapshot.
///
/// What is written later exists nowhere. Commands and files are refused as `fenced` from then on, until the
/// workspace is reset; start another workspace on the snapshot to look at it. A fence for a time to come
/// outlives a restart of derrick, another one takes its place, and a reset cancels it; its snapshot is there
/// when the workspace's state is `fenced`.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/fence",
    operation_id = "fence_workspace",
    tag = tag::SNAPSHOTS,
    params(Id),
    request_body = Option<FenceRequest>,
    responses(
        (status = 200, description = "It is fenced.", body = Fenced),
        (status = 202, description = "It will be.", body = Fenced),
        Problems<{ BODY | FREEZE }>,
    )
)]
async fn fence(
    State(app): State<Arc<App>>,
    Id(id): Id,
    request: Request,
) -> Result<Response, Problem> {
    let request: FenceRequest = app.collect_or_default(request).await?;
    let at = request.at.map(|at| at.seconds("at")).transpose()?;
    match at.filter(|at| *at > crate::clock::precise()) {
        None => {
            let snapshot = app.provider.fence(&id).await?;
            let fenced = Fenced {
                at: None,
                snapshot: snapshot.id,
                state: FenceState::Fenced,
            };
            Ok(Json(fenced).into_response())
        }
        Some(at) => {
            let Fence { at, snapshot } = app.provider.fence_at(&id, at).await?;
            let fenced = Fenced {
                at: Some(at),
                snapshot,
                state: FenceState::Scheduled,
            };
            Ok((StatusCode::ACCEPTED, Json(fenced)).into_response())
        }
    }
}

/// Shows a snapshot.
#[utoipa::path(
    get,
    path = "/snapshots/{snapshot}",
    operation_id = "show_snapshot",
    tag = tag::SNAPSHOTS,
    params(SnapshotPath),
    responses(
        (status = 200, description = "What is known of it.", body = Snapshot),
        Problems<{ of(&[Kind::NoSuchSnapshot]) }>,
    )
)]
async fn show(
    State(app): State<Arc<App>>,
    SnapshotPath(id): SnapshotPath,
) -> Result<Json<Snapshot>, Problem> {
    Ok(Json(app.provider.show_snapshot(id)?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ExportQuery {
    /// How it is compressed; not at all if absent.
    #[param(inline)]
    archive: Option<Format>,
}

/// Sends all that is other in a snapshot than in the setup layer, as an archive that another derrick takes in.
///
/// It is a layer as OCI images have them: what was deleted is an entry of the name `.wh.<name>`, and `.wh..wh..opq`
/// right after a directory says that nothing of what was there is in it. Owners are those inside. A global pax
/// header before everything else says what the snapshot is, with the environment of its workspace. What the format
/// has no form for, such as a file whose own name begins with `.wh.`, is refused and named.
#[utoipa::path(
    get,
    path = "/snapshots/{snapshot}/export",
    operation_id = "export_snapshot",
    tag = tag::SNAPSHOTS,
    params(SnapshotPath, ExportQuery),
    responses(
        (status = 200, description = "The archive.", content(
            (Octets = "application/x-tar"),
            (Octets = "application/gzip"),
            (Octets = "application/zstd"),
        )),
        Problems<{ of(&[
            Kind::InvalidRequest,
            Kind::NoSuchSnapshot,
            Kind::NotPossible,
            Kind::NoSpace,
        ]) }>,
    )
)]
async fn export(
    State(app): State<Arc<App>>,
    SnapshotPath(id): SnapshotPath,
    Parameters(asked): Parameters<ExportQuery>,
    method: Method,
) -> Result<Response, Problem> {
    let format = asked.archive.unwrap_or(Format::Tar);
    let kind = [(CONTENT_TYPE, format.content_type())];
    // Nothing is packed for a client who only wants to know.
    if method == Method::HEAD {
        return Ok((kind, Body::empty()).into_response());
    }
    let compression = format.compression();
    let pieces = app.provider.export_snapshot(id, compression).await?;
    let counted = pieces.inspect_ok(move |piece| app.count(Direction::Out, piece));
    Ok((kind, Body::from_stream(counted)).into_response())
}

/// Makes a snapshot of an archive that a derrick has exported, compressed or not.
///
/// The setup layer that it stands on must be here: that of the config, or an earlier one of the same config. The
/// archive is unpacked in a sandbox, and all of it or nothing becomes the snapshot, which has a new id and no
/// workspace.
#[utoipa::path(
    post,
    path = "/snapshots/import",
    operation_id = "import_snapshot",
    tag = tag::SNAPSHOTS,
    request_body(content(
        (Octets = "application/octet-stream"),
        (Octets = "application/x-tar"),
        (Octets = "application/gzip"),
        (Octets = "application/zstd"),
    )),
    responses(
        (status = 201, description = "It is there.", body = Imported),
        Problems<{ SETUP | of(&[
            Kind::BeyondScope,
            Kind::Conflict,
            Kind::InvalidRequest,
            Kind::NoSpace,
            Kind::NotPossible,
            Kind::RequestTimeout,
        ]) }>,
    )
)]
async fn import(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Request,
) -> Result<(StatusCode, Json<Imported>), Problem> {
    caller.check_creates()?;
    let (content, flaw) = received(request, Arc::clone(&app));
    let owner = caller.name().map(str::to_owned);
    let imported = app.provider.import_snapshot(content, owner).await;
    // The provider only knows that reading failed; the fault is the caller's.
    match flaw.get() {
        Some(flaw) if imported.is_err() => Err(flaw.clone()),
        _ => Ok((StatusCode::CREATED, Json(imported?))),
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct LabelRequest {
    /// What to call it, at most 200 characters; null for nothing.
    #[serde(default, deserialize_with = "there")]
    #[schema(max_length = 200)]
    label: Option<Option<String>>,
}

/// A value that is there, and may be null.
fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Gives a snapshot another label, or none: a JSON Merge Patch (RFC 7396).
#[utoipa::path(
    patch,
    path = "/snapshots/{snapshot}",
    operation_id = "change_snapshot",
    tag = tag::SNAPSHOTS,
    params(SnapshotPath),
    request_body = LabelRequest,
    responses(
        (status = 200, description = "What it is now.", body = Snapshot),
        Problems<{ BODY | of(&[Kind::NoSuchSnapshot, Kind::NoSpace]) }>,
    )
)]
async fn change(
    State(app): State<Arc<App>>,
    SnapshotPath(id): SnapshotPath,
    request: Request,
) -> Result<Json<Snapshot>, Problem> {
    let body = app.collect(request, body::MAX_BODY).await?;
    let request: LabelRequest = body::parse(&body.bytes)?;
    match request.label {
        None => Ok(Json(app.provider.show_snapshot(id)?)),
        Some(label) => {
            let label = checked_label(label)?;
            // Its record is written to disk.
            let changed = tokio::task::spawn_blocking(move || {
                let changed = app.provider.label_snapshot(id, label);
                changed.map_err(Problem::from)
            });
            match changed.await {
                Ok(changed) => Ok(Json(changed?)),
                Err(error) => Err(Problem::new(Kind::Internal, error.to_string())),
            }
        }
    }
}

/// Removes a snapshot. While a workspace or another snapshot builds on it, that is refused, and the answer
/// names which.
#[utoipa::path(
    delete,
    path = "/snapshots/{snapshot}",
    operation_id = "remove_snapshot",
    tag = tag::SNAPSHOTS,
    params(SnapshotPath),
    responses(
        (status = 200, description = "It is gone.", body = bool, content_type = "application/json"),
        Problems<{ of(&[Kind::NoSuchSnapshot, Kind::SnapshotInUse]) }>,
    )
)]
async fn remove(
    State(app): State<Arc<App>>,
    SnapshotPath(id): SnapshotPath,
) -> Result<Json<bool>, Problem> {
    app.provider.remove_snapshot(id)?;
    Ok(Json(true))
}

fn checked_label(label: Option<String>) -> Result<Option<String>, Problem> {
    match label {
        Some(label) if label.chars().count() > LONGEST_LABEL => {
            let detail = format!("the field label: at most {LONGEST_LABEL} characters");
            Err(Problem::new(Kind::InvalidRequest, detail))
        }
        label => Ok(label),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_time;

    #[test]
    fn a_time_has_any_offset_and_always_one() {
        let noon = 1_769_860_800.0;
        for (text, expected) in [
            ("2026-01-31T12:00:00Z", Some(noon)),
            ("2026-01-31t12:00:00z", Some(noon)),
            ("2026-01-31T13:00:00+01:00", Some(noon)),
            ("2026-01-31T06:30:00.5-05:30", Some(noon + 0.5)),
            ("2026-02-01T02:00:00+14:00", Some(noon)),
            ("2026-01-31T12:00:00", None),
            ("2026-01-31T12:00:00+0100", None),
            ("2026-01-31T12:00:00+24:00", None),
            ("2026-01-31T12:00:00+01:60", None),
            ("2026-01-31T12:00:00Z+01:00", None),
            ("2026-01-31T12:00:00+-1:00", None),
            ("1970-01-01T00:00:00+01:00", None),
            ("+01:00", None),
            ("é01:00", None),
            ("", None),
        ] {
            assert_eq!(parse_time(text), expected, "{text}");
        }
    }
}
