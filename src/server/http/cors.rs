//! What a browser lets the pages of listed origins do (CORS, in the Fetch standard).
//!
//! Nothing of it is sent unless the operator lists an origin, and only to exactly that one, never `*`.
//! A listed page still needs the token, which its script sends: so a preflight, which carries none, is
//! answered without it and says nothing but what the operator listed. `Access-Control-Allow-Credentials`
//! is never sent, as derrick knows neither cookies nor passwords.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    HeaderMap, HeaderValue, ORIGIN, VARY,
};
use axum::http::{Method, StatusCode};
use axum::response::Response;

use super::HttpOptions;

const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";

/// Headers that routes take and that a page may not send without asking.
const SENT: &str = "authorization, content-type, idempotency-key, if-range, last-event-id, range";

/// Headers of answers that a script may read beside those that any may.
const SHOWN: &str = "accept-ranges, content-range, derrick-file-gid, derrick-file-mode, derrick-file-uid, \
                     derrick-omitted, derrick-omitted-bytes, derrick-outcome, derrick-output-offset, location, \
                     retry-after, www-authenticate, x-request-id";

/// Whether `origin` is one that the operator listed.
pub(super) fn is_listed(options: &HttpOptions, origin: &HeaderValue) -> bool {
    let mut listed = options.allowed_origins.iter();
    listed.any(|listed| listed.as_bytes() == origin.as_bytes())
}

/// Whether a browser asks here whether a page may ask.
pub(super) fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(ORIGIN)
        && request
            .headers()
            .contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight of a listed origin: the same for every route, whether there is one or not.
pub(super) fn preflight() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (ACCESS_CONTROL_ALLOW_HEADERS, SENT),
        // Seconds.
        (ACCESS_CONTROL_MAX_AGE, "600"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The one listed origin that a request with these headers is from.
pub(super) fn listed_origin(options: &HttpOptions, headers: &HeaderMap) -> Option<HeaderValue> {
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (Some(origin), None) if is_listed(options, origin) => Some(origin.clone()),
        _ => None,
    }
}

/// Lets the page that asked, if it is of a listed origin, read the answer, also where that is a problem.
pub(super) fn show(options: &HttpOptions, origin: Option<HeaderValue>, answer: &mut HeaderMap) {
    if options.allowed_origins.is_empty() {
        return;
    }
    // No cache may give one origin what another was answered.
    answer.append(VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let shown = HeaderValue::from_static(SHOWN);
        answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, shown);
    }
}
