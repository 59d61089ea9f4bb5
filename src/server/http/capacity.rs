//! `GET /capacity`: how many more workspaces can be made now.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::grant::Caller;
use super::problem::{Kind, Problem, Problems, of};
use super::routes::tag;
use crate::provider::Capacity;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default().routes(routes!(capacity))
}

/// Tells how many more workspaces can be made now, and what that depends on.
///
/// It is for whoever may make some. `more` is the least of its parts, and a promise to nobody: others may be
/// quicker. `memory.more` is what is available less `floor`, divided by `per_workspace`; with a request for
/// memory in the config, also what of the host's memory is not promised, divided by that.
#[utoipa::path(
    get,
    path = "/capacity",
    operation_id = "capacity",
    tag = tag::PROVIDER,
    responses(
        (status = 200, description = "What there is room for.", body = Capacity),
        Problems<{ of(&[Kind::BeyondScope]) }>,
    )
)]
async fn capacity(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Capacity>, Problem> {
    caller.check_creates()?;
    Ok(Json(app.provider.capacity().await?))
}
