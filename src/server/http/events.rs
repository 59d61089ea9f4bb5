//! What happens to a workspace, as Server-Sent Events that can be resumed.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{HeaderMap, HeaderName};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::output::KEEP_ALIVE;
use super::problem::{Kind, Problem, Problems, of};
use super::routes::{Id, tag};
use crate::provider::{EventId, Events, Next, Told};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default().routes(routes!(events))
}

/// Tells what happens to a workspace from now on, or after the event in `Last-Event-ID`.
///
/// `exec_started` and `exec_ended` with the exec, `limit_hit` with the `limit` and the `exec` that met it,
/// before that one's end, `reset`, `disposed` with the `processes`, `files` and `bytes` that are gone since
/// then, `fetched`, `committed` and `pushed` with the repository's `path` and the commit, `renewed` with when it `expires`, `paused`, `resumed`, `snapshotted` and `fenced` with the
/// `snapshot`, and `removed`, after which nothing comes, with `why`: `asked`, `expired`, `idle` or
/// `disconnected`. Each has its `time`. `missed` says that events are not kept any more between the one in
/// `Last-Event-ID` and those that follow: the last 1000 are, until derrick ends.
#[utoipa::path(
    get,
    path = "/workspaces/{id}/events",
    operation_id = "workspace_events",
    tags = [tag::WORKSPACES, "stream"],
    params(Id, ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that is known.")),
    responses(
        (status = 200, description = "Events as they happen.", body = String, content_type = "text/event-stream"),
        Problems<{ of(&[Kind::InvalidRequest, Kind::NoSuchWorkspace]) }>,
    )
)]
async fn events(
    State(app): State<Arc<App>>,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let events = app.provider.events(&id)?;
    let at = match headers.get(LAST_EVENT_ID) {
        None => events.latest(),
        Some(id) => id.to_str().unwrap_or_default().parse().map_err(|error| {
            let detail = format!("the header Last-Event-ID: {error}");
            Problem::new(Kind::InvalidRequest, detail)
        })?,
    };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let told = Sse::new(tell(events, at)).keep_alive(keep_alive);
    Ok(told.into_response())
}

/// What comes after `at`, until there will be no more.
pub(super) fn tell(
    events: Arc<Events>,
    at: EventId,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold((events, at), |(events, at)| async move {
        let (event, at) = next(&events, at).await?;
        Some((Ok(event), (events, at)))
    })
}

/// The event after `at`, waited for, and its id; none where there will be no more.
async fn next(events: &Events, at: EventId) -> Option<(Event, EventId)> {
    let mut changed = events.watch();
    loop {
        changed.mark_unchanged();
        match events.after(at) {
            Next::Event(told) => return Some((render(&told)?, told.id)),
            Next::Missed(before) => {
                let missed = Event::default().event("missed").id(before.to_string());
                return Some((missed.data("{}"), before));
            }
            // The sender is in `events`.
            Next::Pending => changed.changed().await.ok()?,
            Next::End => return None,
        }
    }
}

fn render(told: &Told) -> Option<Event> {
    // {"event": …, "data": …}, the latter only where there is any.
    let mut value = serde_json::to_value(&told.event).ok()?;
    let name = value["event"].as_str()?.to_owned();
    let mut data = match value["data"].take() {
        Value::Null => json!({}),
        data => data,
    };
    data["time"] = json!(told.time);
    let event = Event::default().event(name).id(told.id.to_string());
    event.json_data(data).ok()
}
