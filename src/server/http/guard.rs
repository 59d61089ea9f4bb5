//! What is checked on every request before anything else looks at it.
//!
//! A web page in a browser of the provider's user reaches loopback too, so being there proves
//! nothing: the page's requests are told by `Host` (DNS rebinding), `Origin` (cross-site requests,
//! WebSocket handshakes), `Sec-Fetch-Site` (pictures, scripts, frames and links, which have no
//! `Origin`) and the content type (requests that need no preflight). Pages of the origins that the
//! operator lists are let in, see `cors`; they need the token as everybody else does.
//!
//! No origin is let in for derrick's own page, `/docs`: it asks for nothing. What a browser asks for
//! without an `Origin` is let in where a person typed the address, or followed a link of that page.
//!
//! Whoever is refused here is not listened to any longer: the connection is closed behind the answer,
//! so that nobody holds a place in it by asking again and again and not reading.

use std::sync::Arc;

use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderName, HeaderValue,
    ORIGIN, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::Response;

use super::connection::{Connection, Peer};
use super::grant::Caller;
use super::leases::Visit;
use super::problem::{Kind, Problem};
use super::{App, HttpOptions, cors};

/// The layer that lets a request through to its route.
pub(super) async fn guard(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let refused =
        |problem: Problem| problem.with_header(CONNECTION, HeaderValue::from_static("close"));
    let caller = match admit(&app.options, &request).map_err(refused)? {
        Admitted::Caller(caller) => caller,
        Admitted::Preflight => return Ok(cors::preflight()),
    };
    if !request.body().is_end_stream() {
        check_preflighted(request.method(), request.uri().path(), request.headers())?;
    }
    if let Some(name) = caller.name() {
        tracing::Span::current().record("token", name);
    }
    let visit = Visit::default();
    request.extensions_mut().insert(caller.clone());
    request.extensions_mut().insert(visit.clone());
    caller.until_revoked(next.run(request), &visit).await
}

/// Whose request is let in.
enum Admitted {
    Caller(Caller),
    /// A browser's, which asks for a page whether that may ask.
    Preflight,
}

fn admit(options: &HttpOptions, request: &Request) -> Result<Admitted, Problem> {
    // The order is from the cheapest lie to the most telling answer: a page learns nothing about
    // tokens, and nobody without one learns which routes there are.
    let connection = request.extensions().get::<Connection>();
    let connection = connection.ok_or_else(|| {
        let detail = "the connection was not accepted by derrick's own listener";
        Problem::new(Kind::PeerRefused, detail)
    })?;
    check_host(connection, options, request)?;
    check_origin(options, request.headers())?;
    if cors::is_preflight(request) {
        return Ok(Admitted::Preflight);
    }
    identify(connection, options, request.headers()).map(Admitted::Caller)
}

/// `Host` must be a name of this server's that no other site's DNS can have given it.
fn check_host(
    connection: &Connection,
    options: &HttpOptions,
    request: &Request,
) -> Result<(), Problem> {
    let Some(local) = connection.local else {
        // No page can make a browser connect to a Unix socket.
        return Ok(());
    };
    let refused = |host: &str| {
        let detail = format!(
            "the host {} is none of this server's names; ask for localhost:{} or have the name allowed",
            shortened(host),
            local.port()
        );
        Problem::new(Kind::HostRefused, detail)
    };
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(refused(""));
    };
    let host = host.to_str().map_err(|_| refused(""))?;
    // A target in absolute form carries a host as well (RFC 9112, section 3.2.2).
    let target = request.uri().authority().map(|host| host.as_str());
    for host in std::iter::once(host).chain(target) {
        if !is_own_name(host, local, &options.allowed_hosts) {
            return Err(refused(host));
        }
    }
    Ok(())
}

fn is_own_name(host: &str, local: std::net::SocketAddr, allowed: &[String]) -> bool {
    let port = local.port();
    // 80 is the port of a host without one.
    let is = |name: &str| {
        host.eq_ignore_ascii_case(&format!("{name}:{port}"))
            || (port == 80 && host.eq_ignore_ascii_case(name))
    };
    let address = match local.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => ip.to_string(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
    };
    // An address as such is safe: rebinding needs a name.
    ["127.0.0.1", "[::1]", "localhost", &address]
        .into_iter()
        .any(is)
        || allowed
            .iter()
            .any(|name| host.eq_ignore_ascii_case(name) || is(name))
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Only pages send `Origin`, so only a page that the operator lists may. A browser's requests
/// without it say whose page they are for (Fetch Metadata): none's, where a person typed the
/// address, or one's own.
fn check_origin(options: &HttpOptions, headers: &HeaderMap) -> Result<(), Problem> {
    let mut origins = headers.get_all(ORIGIN).iter();
    match origins.find(|origin| !cors::is_listed(options, origin)) {
        None => check_site(headers),
        Some(origin) => {
            let origin = String::from_utf8_lossy(origin.as_bytes());
            let detail = format!("the origin {} is not allowed", shortened(&origin));
            Err(Problem::new(Kind::OriginRefused, detail))
        }
    }
}

fn check_site(headers: &HeaderMap) -> Result<(), Problem> {
    let of_another = |site: &HeaderValue| !matches!(site.as_bytes(), b"none" | b"same-origin");
    let listed = headers.contains_key(ORIGIN);
    if !listed && headers.get_all(SEC_FETCH_SITE).iter().any(of_another) {
        let detail = "the request was made by another site's page";
        return Err(Problem::new(Kind::OriginRefused, detail));
    }
    Ok(())
}

/// By the peer's uid where there are no tokens; by its token where there are some.
fn identify(
    connection: &Connection,
    options: &HttpOptions,
    headers: &HeaderMap,
) -> Result<Caller, Problem> {
    match (&connection.peer, &options.tokens) {
        (Peer::Refused(reason), _) => Err(Problem::new(Kind::PeerRefused, reason.clone())),
        (Peer::Anybody, None) => {
            let detail = "the connection's user was not looked up";
            Err(Problem::new(Kind::PeerRefused, detail))
        }
        (Peer::Trusted, None) => Ok(Caller::trusted()),
        (Peer::Trusted | Peer::Anybody, Some(tokens)) => {
            let mut given = headers.get_all(AUTHORIZATION).iter();
            let grant = match (given.next(), given.next()) {
                (None, _) => {
                    return Err(unauthorized(
                        "the request has no 'Authorization: Bearer' header",
                        r#"Bearer realm="derrick""#,
                    ));
                }
                (Some(header), None) => bearer(header).and_then(|shown| tokens.grant(shown)),
                (Some(_), Some(_)) => None,
            };
            grant.map(Caller::holder).ok_or_else(|| {
                unauthorized(
                    "the Authorization header does not carry a token of this server's",
                    INVALID_TOKEN,
                )
            })
        }
    }
}

/// The challenge to a token that is not good (RFC 6750, section 3.1).
pub(super) const INVALID_TOKEN: &str = r#"Bearer realm="derrick", error="invalid_token""#;

/// The refusal of a request that needs a token, or another one.
pub(super) fn unauthorized(detail: &str, challenge: &'static str) -> Problem {
    Problem::new(Kind::Unauthorized, detail)
        .with_header(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
}

/// The token in an `Authorization` header (RFC 6750, section 2.1).
fn bearer(header: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = header.as_bytes().split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

/// What a body may be. A page cannot send any of these without asking first.
const BODIES: [&str; 5] = [
    "application/json",
    "application/octet-stream",
    "application/x-tar",
    "application/gzip",
    "application/zstd",
];

/// What a page's form is sent as, without asking.
const FORM: &str = "application/x-www-form-urlencoded";

/// A body must say what it is, but for that of a `PUT`, which no page can send without asking first:
/// bytes for a file, a stdin or a snapshot may be anything of `BODIES`, all else is JSON.
fn check_preflighted(method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Problem> {
    if method == Method::PUT && !headers.contains_key(CONTENT_TYPE) {
        return check_encoding(headers);
    }
    // Below /workspaces/{id}.
    let mut below = path.split('/').skip(3);
    let takes_bytes = match below.next() {
        Some("files") => true,
        Some("execs") => below.nth(1) == Some("stdin"),
        _ => path == "/snapshots/import",
    };
    if takes_bytes {
        check_content(headers, &BODIES)
    } else {
        check_content_type(headers)
    }
}

/// A body of JSON must say so.
pub(super) fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    check_content(headers, &BODIES[..1])
}

fn check_content(headers: &HeaderMap, wanted: &[&str]) -> Result<(), Problem> {
    let is = |wanted: &str| is(headers, CONTENT_TYPE, wanted) == Some(true);
    if !wanted.iter().any(|wanted| is(wanted)) {
        let all = wanted.join("' or 'Content-Type: ");
        let mut detail = format!("the body must come with 'Content-Type: {all}'");
        if is(FORM) {
            detail.push_str("; curl calls what it sends with -d or --data-binary a form, so give it -H 'Content-Type: application/json'");
            if wanted.len() > 1 {
                detail.push_str(" for JSON, and for bytes -H 'Content-Type: application/octet-stream' or, with PUT, -T instead");
            }
        }
        return Err(Problem::new(Kind::UnsupportedMediaType, detail));
    }
    check_encoding(headers)
}

/// It must be sent as it is: nothing here unpacks.
fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    if is(headers, CONTENT_ENCODING, "identity") == Some(false) {
        let detail = "the body must come without a Content-Encoding";
        return Err(Problem::new(Kind::UnsupportedMediaType, detail));
    }
    Ok(())
}

/// Whether a header that is there has this value, parameters aside.
fn is(headers: &HeaderMap, name: HeaderName, wanted: &str) -> Option<bool> {
    headers.get(name).map(|value| {
        let value = value.to_str().unwrap_or_default();
        let essence = value.split(';').next().unwrap_or_default();
        essence.trim().eq_ignore_ascii_case(wanted)
    })
}

/// Text of a caller's for a message: quoted, escaped, and not long.
fn shortened(text: &str) -> String {
    let mut characters = text.chars();
    let start: String = characters.by_ref().take(100).collect();
    let more = if characters.next().is_some() {
        "…"
    } else {
        ""
    };
    format!("{start:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_ours_only_by_a_name_that_rebinding_cannot_give_it() {
        let allowed = ["box.example".to_owned(), "proxy.example:443".to_owned()];
        for (host, local, ours) in [
            ("127.0.0.1:50080", "127.0.0.1:50080", true),
            ("localhost:50080", "127.0.0.1:50080", true),
            ("LOCALHOST:50080", "127.0.0.1:50080", true),
            ("[::1]:50080", "[::1]:50080", true),
            ("192.0.2.7:50080", "192.0.2.7:50080", true),
            ("192.0.2.7:50080", "[::ffff:192.0.2.7]:50080", true),
            ("box.example:50080", "127.0.0.1:50080", true),
            ("Box.Example", "127.0.0.1:50080", true),
            ("proxy.example:443", "127.0.0.1:50080", true),
            ("localhost", "127.0.0.1:80", true),
            ("localhost", "127.0.0.1:50080", false),
            ("localhost:50081", "127.0.0.1:50080", false),
            ("localhost.:50080", "127.0.0.1:50080", false),
            ("localhost.evil.example:50080", "127.0.0.1:50080", false),
            ("evil.example:50080", "127.0.0.1:50080", false),
            ("127.0.0.1:50080@evil.example", "127.0.0.1:50080", false),
            ("user@127.0.0.1:50080", "127.0.0.1:50080", false),
            ("127.1:50080", "127.0.0.1:50080", false),
            ("box.example:1", "127.0.0.1:50080", false),
            ("proxy.example", "127.0.0.1:50080", false),
            ("", "127.0.0.1:80", false),
        ] {
            let local = local.parse().unwrap();
            assert_eq!(is_own_name(host, local, &allowed), ours, "{host:?} {local}");
        }
    }

    #[test]
    fn a_token_is_read_from_a_bearer_header_alone() {
        for (header, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Bearer", None),
            ("Basic abc", None),
            ("Bearerabc", None),
        ] {
            let value = HeaderValue::from_static(header);
            assert_eq!(bearer(&value), token.map(str::as_bytes), "{header:?}");
        }
    }

    #[test]
    fn only_plain_json_is_a_body() {
        for (kind, encoding, accepted) in [
            (Some("application/json"), None, true),
            (Some("Application/JSON; charset=utf-8"), None, true),
            (Some("application/json"), Some("identity"), true),
            (Some("application/json"), Some("gzip"), false),
            (Some("application/x-www-form-urlencoded"), None, false),
            (Some("text/plain; application/json"), None, false),
            (Some("application/jsonp"), None, false),
            (None, None, false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(CONTENT_TYPE, kind), (CONTENT_ENCODING, encoding)] {
                if let Some(value) = value {
                    headers.insert(name, HeaderValue::from_static(value));
                }
            }
            let found = check_content_type(&headers).is_ok();
            assert_eq!(found, accepted, "{kind:?} {encoding:?}");
        }
    }

    #[test]
    fn a_put_may_leave_its_type_out_and_a_form_is_refused_whatever_the_method() {
        const FILE: &str = "/workspaces/w/files/x";
        for (method, kind, accepted) in [
            (Method::PUT, None, true),
            (Method::PUT, Some("application/octet-stream"), true),
            (Method::PUT, Some(FORM), false),
            (Method::POST, None, false),
            (Method::POST, Some(FORM), false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            }
            let found = check_preflighted(&method, FILE, &headers);
            assert_eq!(found.is_ok(), accepted, "{method} {kind:?}");
            if let (Err(problem), Some(FORM)) = (found, kind) {
                assert!(
                    problem
                        .detail()
                        .contains("-H 'Content-Type: application/octet-stream' or")
                );
            }
        }
        let mut packed = HeaderMap::new();
        packed.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(check_preflighted(&Method::PUT, FILE, &packed).is_err());
    }

    #[test]
    fn what_a_caller_sent_is_quoted_and_cut() {
        assert_eq!(shortened("a\n\"b"), r#""a\n\"b""#);
        assert_eq!(shortened(&"x".repeat(200)).chars().count(), 103);
    }
}
