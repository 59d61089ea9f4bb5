//! How long workspaces are kept: which requests use them, what renews them, and the answer that holds one.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::DropGuard;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::events::tell;
use super::execs::duration;
use super::grant::Caller;
use super::output::KEEP_ALIVE;
use super::problem::{BODY, Kind, Problem, Problems, of};
use super::routes::{Id, tag};
use crate::provider::{Events, InUse, Lease, WorkspaceId};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default().routes(routes!(renew))
}

/// Requests that only look at a workspace, and keep none from being idle.
const LOOKS: [&str; 2] = ["/workspaces/{id}", "/workspaces/{id}/events"];

/// What a request uses, until its answer is out. Every request that `guard` let through carries one.
#[derive(Debug, Clone, Default)]
pub(super) struct Visit(Arc<Mutex<Option<InUse>>>);

impl Visit {
    /// Notes that the request of these parts is for that workspace.
    pub(super) fn begin(parts: &Parts, app: &App, id: &WorkspaceId) {
        let route = parts.extensions.get::<MatchedPath>();
        let looks = route.is_some_and(|route| LOOKS.contains(&route.as_str()));
        if looks && parts.method == Method::GET {
            return;
        }
        if let Some(visit) = parts.extensions.get::<Self>() {
            *visit.0.lock().unwrap_or_else(PoisonError::into_inner) = app.provider.begin_use(id);
        }
    }

    /// What it uses; that ends when this is dropped.
    pub(super) fn take(&self) -> Option<InUse> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct RenewRequest {
    /// Seconds from now on; as many as before if absent.
    #[schema(exclusive_minimum = 0.0)]
    ttl: Option<f64>,
}

/// Has the time to live of a workspace begin anew.
///
/// With a `ttl` it has that one from then on. A token with a scope gets no longer one than the config's.
#[utoipa::path(
    post,
    path = "/workspaces/{id}/renew",
    operation_id = "renew_workspace",
    tag = tag::WORKSPACES,
    params(Id),
    request_body = Option<RenewRequest>,
    responses(
        (status = 200, description = "How long it is kept now.", body = Lease),
        Problems<{ BODY | of(&[Kind::NoSuchWorkspace, Kind::Conflict, Kind::NotPossible, Kind::NoSpace]) }>,
    )
)]
async fn renew(
    State(app): State<Arc<App>>,
    Id(id): Id,
    caller: Caller,
    request: Request,
) -> Result<Json<Lease>, Problem> {
    let request: RenewRequest = app.collect_or_default(request).await?;
    let ttl = request.ttl.map(|ttl| duration("ttl", ttl)).transpose()?;
    Ok(Json(app.provider.renew(&id, ttl, caller.latitude()).await?))
}

/// The answer that a workspace ends with: it is told as an event, then what happens to it, for as long
/// as the client listens.
pub(super) fn tied(id: &WorkspaceId, events: Arc<Events>, tie: DropGuard) -> Response {
    let created = Event::default().event("created");
    let created = created.data(json!({ "id": id }).to_string());
    let beginning = events.beginning();
    let told = stream::iter([Ok::<_, Infallible>(created)]).chain(tell(events, beginning));
    let told = told.map(move |event| {
        let _held = &tie;
        event
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(told).keep_alive(keep_alive).into_response()
}
