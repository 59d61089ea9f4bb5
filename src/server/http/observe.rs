//! What every request gets, whatever becomes of it: an id, a span, and errors of one shape.
//!
//! Never logged: bodies, headers, queries, environments. A path is logged as the route that matched
//! it, a token as its name.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::FutureExt;
use tracing::Instrument;

use super::metrics::{Asked, Metrics};
use super::problem::{Kind, Problem};
use super::{App, cors};

/// The answer's header with the request's id.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The outermost layer.
pub(super) async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    // Ours, always: an id that the client chose could be made to look like another request's.
    let id = uuid::Uuid::now_v7().to_string();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(MatchedPath::as_str);
    let asked = Asked::new(route, request.method());
    let origin = cors::listed_origin(&app.options, request.headers());
    let span = tracing::info_span!(
        "request",
        id,
        method = %request.method(),
        route = route.unwrap_or("-"),
        // The name of the token that it came with; the guard fills it in.
        token = tracing::field::Empty,
    );
    let mut response = answer(&app.metrics, asked, id, request, next)
        .instrument(span)
        .await;
    cors::show(&app.options, origin, response.headers_mut());
    response
}

async fn answer(
    metrics: &Metrics,
    asked: Asked,
    id: String,
    request: Request,
    next: Next,
) -> Response {
    let mut unanswered = Unanswered {
        metrics,
        asked,
        since: Instant::now(),
        answered: false,
    };
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|_| {
        use axum::response::IntoResponse;
        // What the panic said went to stderr, and is not for the caller.
        let detail = "derrick failed while it worked on the request; its log has the request_id";
        Problem::new(Kind::Internal, detail).into_response()
    });
    let status = response.status();
    let problem = response.extensions_mut().remove::<Problem>().or_else(|| {
        let error = status.is_client_error() || status.is_server_error();
        error.then(|| Problem::from_status(status))
    });
    let duration = unanswered.since.elapsed();
    unanswered.answered = true;
    metrics.answered(&unanswered.asked, status, duration);
    match problem {
        Some(problem) if status.is_server_error() => {
            tracing::error!(
                status = status.as_u16(),
                ?duration,
                detail = problem.detail(),
                "failed"
            );
            response = problem.render(&id, &response);
        }
        problem => {
            tracing::info!(status = status.as_u16(), ?duration, "answered");
            if let Some(problem) = problem {
                response = problem.render(&id, &response);
            }
        }
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(REQUEST_ID, id);
    }
    // A browser must not make a page out of what a workspace wrote, least of all one of this origin.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !headers.contains_key(CONTENT_SECURITY_POLICY) {
        let policy =
            HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// Logs and counts a request whose client went away: its future is dropped, so nothing else would.
struct Unanswered<'a> {
    metrics: &'a Metrics,
    asked: Asked,
    since: Instant,
    answered: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.metrics.dropped(&self.asked);
            tracing::info!(duration = ?self.since.elapsed(), "dropped before its answer: the client went away, or derrick stops");
        }
    }
}
