//! `GET /layers` and `POST /gc`: what is in the layer store, and how what nothing uses is removed.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::grant::Caller;
use super::problem::{BODY, Kind, Problem, Problems, of};
use super::routes::tag;
use crate::config::{SizeForm, size};
use crate::provider::{Bounds, Collected, Kept, Mode};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(gc))
}

/// All layers.
#[derive(Serialize, ToSchema)]
struct Layers {
    /// Those that were used last come first.
    layers: Vec<Kept>,
}

/// What is to be collected.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct GcRequest {
    /// What all layers together may take, as a size: with more, the least recently used go, of those that
    /// nothing uses.
    #[serde(default, deserialize_with = "size")]
    #[schema(value_type = Option<SizeForm>)]
    max_size: Option<ByteSize>,
    /// Seconds since its last use after which a layer goes that nothing uses.
    #[schema(minimum = 0.0)]
    max_age: Option<f64>,
    /// Whether it is only told what would go.
    #[serde(default)]
    dry_run: bool,
}

/// Lists the layers, and who uses each.
///
/// It is for the provider's own user, root, and tokens that are good for everything.
#[utoipa::path(
    get,
    path = "/layers",
    operation_id = "list_layers",
    tag = tag::PROVIDER,
    responses(
        (status = 200, description = "All layers.", body = Layers),
        Problems<{ of(&[Kind::BeyondScope]) }>,
    )
)]
async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Layers>, Problem> {
    caller.check_everything("what layers there are")?;
    let layers = app.provider.layers().await?;
    Ok(Json(Layers { layers }))
}

/// Removes layers that nothing uses, and mirrors of repositories that no layer is left of.
///
/// Without bounds all of them, else the least recently used first. What a workspace, a snapshot, the config
/// that was served last or a process uses is never removed, nor what lies below it. The files go in the
/// background. It is for the provider's own user, root, and tokens that are good for everything.
#[utoipa::path(
    post,
    path = "/gc",
    operation_id = "collect_layers",
    tag = tag::PROVIDER,
    request_body = Option<GcRequest>,
    responses(
        (status = 200, description = "What went, or would.", body = Collected),
        Problems<{ BODY | of(&[Kind::BeyondScope]) }>,
    )
)]
async fn gc(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Request,
) -> Result<Json<Collected>, Problem> {
    caller.check_everything("collecting layers")?;
    let request: GcRequest = app.collect_or_default(request).await?;
    let age = request.max_age.map(age).transpose()?;
    let bounds = Bounds {
        size: request.max_size.map(|size| size.as_u64()),
        age,
    };
    let mode = match request.dry_run {
        true => Mode::Tell,
        false => Mode::Remove,
    };
    Ok(Json(app.provider.collect(bounds, mode).await?))
}

fn age(seconds: f64) -> Result<Duration, Problem> {
    if seconds >= 0.0 {
        // Of what is longer than that nothing is left over.
        Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    } else {
        let detail = "the field max_age must be 0 seconds or more";
        Err(Problem::new(Kind::InvalidRequest, detail))
    }
}
