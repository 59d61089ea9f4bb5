//! Errors as RFC 9457 problem details: one shape for every refusal and failure.
//!
//! `type` is `urn:derrick:problem:` and a word from the table in [`Kind::row`], which never changes
//! its meaning. 4xx is what the caller did or asked for; 5xx is only what derrick or the host did.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response as Documented, ResponseBuilder};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use crate::provider;

const PROBLEM_JSON: &str = "application/problem+json";

/// When what was too much may be asked for again, in seconds. Whatever takes the room ends when it ends,
/// so this keeps a client from asking all the time, and promises nothing.
const SOON: u16 = 1;

/// What went wrong, as the caller can tell it from other things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    InvalidRequest,
    Unauthorized,
    PeerRefused,
    OriginRefused,
    BeyondScope,
    PermissionDenied,
    NoSuchRoute,
    NoSuchWorkspace,
    NoSuchExec,
    NoSuchSession,
    NoSuchFile,
    NotAFile,
    NotADirectory,
    NotRegular,
    DirectoryNotEmpty,
    Exists,
    RangeNotSatisfiable,
    MethodNotAllowed,
    RequestTimeout,
    Conflict,
    Paused,
    Fenced,
    NoSuchSnapshot,
    SnapshotInUse,
    TooDeep,
    ExecEnded,
    ExecForgotten,
    NoTerminal,
    StdinClosed,
    SessionExists,
    SessionBusy,
    SessionEnded,
    TooMany,
    BodyTooLarge,
    UnsupportedMediaType,
    HostRefused,
    CommandFailed,
    KeyReused,
    SetupFailed,
    RepositoryUnavailable,
    GitFailed,
    PushNotAllowed,
    CommitsRefused,
    PushRefused,
    LimitUnenforceable,
    NotPossible,
    Internal,
    NoSpace,
    /// A status that axum gave by itself and that has no kind here.
    Other,
}

impl Kind {
    /// Every kind, in the order of the enum.
    pub(super) const ALL: [Self; Self::Other as usize + 1] = [
        Self::InvalidRequest,
        Self::Unauthorized,
        Self::PeerRefused,
        Self::OriginRefused,
        Self::BeyondScope,
        Self::PermissionDenied,
        Self::NoSuchRoute,
        Self::NoSuchWorkspace,
        Self::NoSuchExec,
        Self::NoSuchSession,
        Self::NoSuchFile,
        Self::NotAFile,
        Self::NotADirectory,
        Self::NotRegular,
        Self::DirectoryNotEmpty,
        Self::Exists,
        Self::RangeNotSatisfiable,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Conflict,
        Self::Paused,
        Self::Fenced,
        Self::NoSuchSnapshot,
        Self::SnapshotInUse,
        Self::TooDeep,
        Self::ExecEnded,
        Self::ExecForgotten,
        Self::NoTerminal,
        Self::StdinClosed,
        Self::SessionExists,
        Self::SessionBusy,
        Self::SessionEnded,
        Self::TooMany,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::HostRefused,
        Self::CommandFailed,
        Self::KeyReused,
        Self::SetupFailed,
        Self::RepositoryUnavailable,
        Self::GitFailed,
        Self::PushNotAllowed,
        Self::CommitsRefused,
        Self::PushRefused,
        Self::LimitUnenforceable,
        Self::NotPossible,
        Self::Internal,
        Self::NoSpace,
        Self::Other,
    ];

    /// `type` in full.
    pub(super) fn urn(self) -> String {
        format!("urn:derrick:problem:{}", self.row().1)
    }

    /// Status, last part of `type`, and `title`. The status of `Other` is each problem's own.
    fn row(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::InvalidRequest => (
                S::BAD_REQUEST,
                "invalid-request",
                "The request is not valid",
            ),
            Self::Unauthorized => (
                S::UNAUTHORIZED,
                "unauthorized",
                "The token is missing or wrong",
            ),
            Self::PeerRefused => (S::FORBIDDEN, "peer-refused", "This user is not served"),
            Self::OriginRefused => (S::FORBIDDEN, "origin-refused", "This page is not served"),
            Self::BeyondScope => (
                S::FORBIDDEN,
                "beyond-scope",
                "The token is not good for that",
            ),
            Self::PermissionDenied => (
                S::FORBIDDEN,
                "permission-denied",
                "The workspace forbids it",
            ),
            Self::NoSuchRoute => (S::NOT_FOUND, "no-such-route", "There is no such route"),
            Self::NoSuchWorkspace => (
                S::NOT_FOUND,
                "no-such-workspace",
                "There is no such workspace",
            ),
            Self::NoSuchExec => (S::NOT_FOUND, "no-such-exec", "There is no such exec"),
            Self::NoSuchSession => (S::NOT_FOUND, "no-such-session", "There is no such session"),
            Self::NoSuchFile => (S::NOT_FOUND, "no-such-file", "There is no such file"),
            Self::NotAFile => (S::UNPROCESSABLE_ENTITY, "not-a-file", "That is a directory"),
            Self::NotADirectory => (
                S::UNPROCESSABLE_ENTITY,
                "not-a-directory",
                "That is no directory",
            ),
            Self::NotRegular => (
                S::UNPROCESSABLE_ENTITY,
                "not-regular",
                "That is no regular file",
            ),
            Self::DirectoryNotEmpty => (
                S::CONFLICT,
                "directory-not-empty",
                "The directory is not empty",
            ),
            Self::Exists => (S::CONFLICT, "exists", "Something is there already"),
            Self::RangeNotSatisfiable => (
                S::RANGE_NOT_SATISFIABLE,
                "range-not-satisfiable",
                "The file has no such bytes",
            ),
            Self::MethodNotAllowed => (
                S::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "The route does not have this method",
            ),
            Self::RequestTimeout => (
                S::REQUEST_TIMEOUT,
                "request-timeout",
                "The request did not arrive in time",
            ),
            Self::Conflict => (
                S::CONFLICT,
                "conflict",
                "Something else happened to the workspace meanwhile",
            ),
            Self::Paused => (S::CONFLICT, "paused", "The workspace is paused"),
            Self::Fenced => (S::CONFLICT, "fenced", "The workspace is fenced"),
            Self::NoSuchSnapshot => (
                S::NOT_FOUND,
                "no-such-snapshot",
                "There is no such snapshot",
            ),
            Self::SnapshotInUse => (
                S::CONFLICT,
                "snapshot-in-use",
                "Something builds on the snapshot",
            ),
            Self::TooDeep => (
                S::CONFLICT,
                "too-deep",
                "There are as many snapshots below it as there may be",
            ),
            Self::ExecEnded => (S::CONFLICT, "exec-ended", "The exec has ended"),
            Self::ExecForgotten => (S::GONE, "exec-forgotten", "The exec was forgotten"),
            Self::NoTerminal => (S::CONFLICT, "no-terminal", "The exec has no terminal"),
            Self::StdinClosed => (S::CONFLICT, "stdin-closed", "The exec reads no more"),
            Self::SessionExists => (
                S::CONFLICT,
                "session-exists",
                "There is a session of that name",
            ),
            Self::SessionBusy => (S::CONFLICT, "session-busy", "A command runs in the session"),
            Self::SessionEnded => (S::CONFLICT, "session-ended", "The session has ended"),
            Self::TooMany => (
                S::TOO_MANY_REQUESTS,
                "too-many",
                "There are as many of them as there may be",
            ),
            Self::BodyTooLarge => (
                S::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "The request's body is too large",
            ),
            Self::UnsupportedMediaType => (
                S::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "The request's body is of a type that is not taken",
            ),
            Self::HostRefused => (
                S::MISDIRECTED_REQUEST,
                "host-refused",
                "The request is for another host",
            ),
            Self::CommandFailed => (
                S::UNPROCESSABLE_ENTITY,
                "command-failed",
                "The command failed",
            ),
            Self::KeyReused => (
                S::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "The idempotency key was used for another request",
            ),
            Self::SetupFailed => (
                S::UNPROCESSABLE_ENTITY,
                "setup-failed",
                "The setup script failed",
            ),
            Self::RepositoryUnavailable => (
                S::UNPROCESSABLE_ENTITY,
                "repository-unavailable",
                "A repository cannot be brought in",
            ),
            Self::GitFailed => (
                S::UNPROCESSABLE_ENTITY,
                "git-failed",
                "Git in the workspace failed",
            ),
            Self::PushNotAllowed => (
                S::FORBIDDEN,
                "push-not-allowed",
                "The config does not allow that push",
            ),
            Self::CommitsRefused => (
                S::UNPROCESSABLE_ENTITY,
                "commits-refused",
                "The commits are not passed on",
            ),
            Self::PushRefused => (
                S::CONFLICT,
                "push-refused",
                "The upstream refused the commits",
            ),
            Self::LimitUnenforceable => (
                S::UNPROCESSABLE_ENTITY,
                "limit-unenforceable",
                "This host cannot enforce a limit",
            ),
            Self::NotPossible => (
                S::UNPROCESSABLE_ENTITY,
                "not-possible",
                "The workspace cannot do that",
            ),
            Self::Internal => (
                S::INTERNAL_SERVER_ERROR,
                "internal",
                "derrick or the host failed",
            ),
            Self::NoSpace => (
                S::INSUFFICIENT_STORAGE,
                "no-space",
                "There is no space left",
            ),
            Self::Other => (S::INTERNAL_SERVER_ERROR, "other", "The request failed"),
        }
    }
}

/// One problem. As a response it is a status and itself as an extension, which `observe` turns
/// into the body, as only there the request's id is known.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    kind: Kind,
    status: StatusCode,
    title: &'static str,
    detail: String,
    members: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// `detail` names the object, for people: lowercase, no full stop.
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let (status, _, title) = kind.row();
        let retry = status == StatusCode::TOO_MANY_REQUESTS;
        let headers = retry.then(|| (RETRY_AFTER, HeaderValue::from(SOON)));
        Self {
            kind,
            status,
            title,
            detail: detail.into(),
            members: Map::new(),
            headers: headers.into_iter().collect(),
        }
    }

    /// For a status that came without a problem.
    pub(super) fn from_status(status: StatusCode) -> Self {
        let title = status.canonical_reason().unwrap_or("The request failed");
        Self {
            status,
            title,
            ..Self::new(Kind::Other, title.to_ascii_lowercase())
        }
    }

    /// Adds an extension member.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a header to the response.
    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// The response for the request `request_id`, on top of the headers of `response`.
    pub(super) fn render(self, request_id: &str, response: &Response) -> Response {
        let status = self.status;
        let mut members = self.members;
        for (name, value) in [
            ("type", Value::from(self.kind.urn())),
            ("title", Value::from(self.title)),
            ("status", Value::from(status.as_u16())),
            ("detail", Value::from(self.detail)),
            ("request_id", Value::from(request_id)),
        ] {
            members.insert(name.to_owned(), value);
        }
        let mut rendered = Response::new(Body::from(Value::Object(members).to_string()));
        *rendered.status_mut() = status;
        rendered.headers_mut().extend(self.headers);
        // axum names the methods of a route there, after the problem was made.
        if let Some(methods) = response.headers().get(ALLOW) {
            rendered.headers_mut().insert(ALLOW, methods.clone());
        }
        let json = HeaderValue::from_static(PROBLEM_JSON);
        rendered.headers_mut().insert(CONTENT_TYPE, json);
        rendered
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<provider::Error> for Problem {
    fn from(error: provider::Error) -> Self {
        use provider::Error as E;
        let kind = match &error {
            E::NoSuchWorkspace(_) => Kind::NoSuchWorkspace,
            E::NoSuchExec(_) => Kind::NoSuchExec,
            E::NoSuchSession(_) => Kind::NoSuchSession,
            E::SessionExists(_) => Kind::SessionExists,
            E::SessionBusy(_) => Kind::SessionBusy,
            E::SessionEnded(_) => Kind::SessionEnded,
            E::TooMany(_) => Kind::TooMany,
            E::TooMuchOutput { .. } => Kind::NotPossible,
            E::ExecEnded(_) => Kind::ExecEnded,
            E::NoTerminal(_) => Kind::NoTerminal,
            E::StdinClosed(_) => Kind::StdinClosed,
            E::KeyReused(_) => Kind::KeyReused,
            E::NoSuchFile(_) => Kind::NoSuchFile,
            E::NotAFile(_) => Kind::NotAFile,
            E::NotADirectory(_) => Kind::NotADirectory,
            E::NotRegular(_) => Kind::NotRegular,
            E::NotEmpty(_) => Kind::DirectoryNotEmpty,
            E::Exists(_) => Kind::Exists,
            // Well-formed, or it would have been refused before the call: 422, not 400.
            E::Invalid(_) => Kind::NotPossible,
            E::Forbidden(_) => Kind::PermissionDenied,
            E::Conflict(_) => Kind::Conflict,
            E::Paused(_) => Kind::Paused,
            E::Fenced(_) => Kind::Fenced,
            E::NoSuchSnapshot(_) => Kind::NoSuchSnapshot,
            E::SnapshotInUse(_) => Kind::SnapshotInUse,
            E::TooDeep(_) => Kind::TooDeep,
            E::SetupFailed { .. } => Kind::SetupFailed,
            // The other side's fault or the config's, neither derrick's nor the host's.
            E::Repository(_) => Kind::RepositoryUnavailable,
            E::GitFailed(_) => Kind::GitFailed,
            E::PushNotAllowed(_) => Kind::PushNotAllowed,
            E::CommitsRefused(_) => Kind::CommitsRefused,
            E::PushRefused(_) => Kind::PushRefused,
            E::ExecForgotten(_) => Kind::ExecForgotten,
            E::LimitUnenforceable(_) => Kind::LimitUnenforceable,
            E::NoSpace(_) => Kind::NoSpace,
            E::Host(_) => Kind::Internal,
        };
        let problem = Self::new(kind, error.to_string());
        match error {
            E::SetupFailed { exit_code, output } => {
                problem.with("exit_code", exit_code).with("output", output)
            }
            E::TooMuchOutput { most, .. } => problem.with("most", most),
            _ => problem,
        }
    }
}

/// The problems that a route may answer, for its `#[utoipa::path]`: `Problems<{ of(&[..]) }>`,
/// with [`BODY`] for a route that reads a body, or `Problems<ALWAYS>` where it has none of its own.
///
/// What each route may answer is in all of them.
pub(super) struct Problems<const KINDS: u64>;

/// A set of kinds, one bit each: a type can be made over a number, not over a slice.
pub(super) const fn of(kinds: &[Kind]) -> u64 {
    let mut set = 0;
    let mut rest = kinds;
    while let [kind, others @ ..] = rest {
        set |= 1 << *kind as u64;
        rest = others;
    }
    set
}

/// What any route may answer: the guard refuses before it, and derrick may fail in it.
pub(super) const ALWAYS: u64 = of(&[
    Kind::Unauthorized,
    Kind::PeerRefused,
    Kind::OriginRefused,
    Kind::UnsupportedMediaType,
    Kind::HostRefused,
    Kind::Internal,
]);

/// What a route may answer that reads the body of its request.
pub(super) const BODY: u64 = of(&[
    Kind::InvalidRequest,
    Kind::RequestTimeout,
    Kind::BodyTooLarge,
]);

impl<const KINDS: u64> IntoResponses for Problems<KINDS> {
    fn responses() -> BTreeMap<String, RefOr<Documented>> {
        let mut by_status: BTreeMap<StatusCode, Vec<Kind>> = BTreeMap::new();
        for kind in Kind::ALL {
            if (KINDS | ALWAYS) & of(&[kind]) != 0 {
                by_status.entry(kind.row().0).or_default().push(kind);
            }
        }
        by_status
            .into_iter()
            .map(|(status, kinds)| (status.as_str().to_owned(), documented(&kinds).into()))
            .collect()
    }
}

/// One answer that is a problem of one of `kinds`, which share a status.
fn documented(kinds: &[Kind]) -> Documented {
    let lines = kinds.iter().map(|kind| {
        let (_, word, title) = kind.row();
        format!("`{word}`: {title}.")
    });
    let words = ObjectBuilder::new().enum_values(Some(kinds.iter().map(|kind| kind.urn())));
    let narrowed = ObjectBuilder::new().property("type", words.schema_type(Type::String));
    let schema = AllOfBuilder::new()
        .item(Ref::from_schema_name(Problem::name()))
        .item(narrowed);
    let retry = kinds
        .iter()
        .any(|kind| kind.row().0 == StatusCode::TOO_MANY_REQUESTS);
    let response = if retry {
        ResponseBuilder::new().header(RETRY_AFTER.as_str(), retry_after())
    } else {
        ResponseBuilder::new()
    };
    response
        .description(lines.collect::<Vec<_>>().join(" "))
        .content(
            PROBLEM_JSON,
            ContentBuilder::new().schema(Some(schema)).build(),
        )
        .build()
}

fn retry_after() -> Header {
    let seconds = ObjectBuilder::new().schema_type(Type::Integer);
    HeaderBuilder::new()
        .schema(Some(seconds))
        .description(Some("Seconds to wait before asking again."))
        .build()
}

/// The body of every problem.
impl PartialSchema for Problem {
    fn schema() -> RefOr<Schema> {
        let text = |what: &str| {
            ObjectBuilder::new()
                .schema_type(Type::String)
                .description(Some(what))
        };
        let number = |what: &str| {
            ObjectBuilder::new()
                .schema_type(Type::Integer)
                .description(Some(what))
        };
        ObjectBuilder::new()
            .description(Some("Problem details as in RFC 9457: what the caller did is 4xx, what derrick or the host did is 5xx."))
            .property("type", text("What it is, for programs; a word never changes its meaning.").enum_values(Some(Kind::ALL.map(Kind::urn))))
            .property("title", text("What it is, for people."))
            .property("status", number("The status of the answer."))
            .property("detail", text("What happened to what, for people."))
            .property("request_id", text("The request's id in derrick's log; `x-request-id` says it too.").format(Some(SchemaFormat::Custom("uuid".to_owned()))))
            .property("exit_code", number("`command-failed` and `setup-failed`: as a shell reports it."))
            .property("outcome", text("`command-failed`: how the command ended.").enum_values(Some(["exited", "signaled", "deadline", "oom", "pids_limit", "disk_quota", "killed"])))
            .property("most", number("`not-possible`, for an `output_limit` above the workspace's: how much may be kept."))
            .property("output", text("`command-failed` and `setup-failed`: the end of what was printed."))
            .required("type")
            .required("title")
            .required("status")
            .required("detail")
            .required("request_id")
            .into()
    }
}

impl ToSchema for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_the_provider_has_its_status_and_type() {
        use provider::Error as E;
        let text = || "x".to_owned();
        let failed = E::SetupFailed {
            exit_code: 3,
            output: text(),
        };
        for (error, status, word) in [
            (E::NoSuchWorkspace(text()), 404, "no-such-workspace"),
            (E::NoSuchFile(text()), 404, "no-such-file"),
            (E::NotAFile(text()), 422, "not-a-file"),
            (E::NotADirectory(text()), 422, "not-a-directory"),
            (E::NotRegular(text()), 422, "not-regular"),
            (E::NotEmpty(text()), 409, "directory-not-empty"),
            (E::Exists(text()), 409, "exists"),
            (E::Invalid(text()), 422, "not-possible"),
            (E::Forbidden(text()), 403, "permission-denied"),
            (E::Conflict(text()), 409, "conflict"),
            (E::Paused(text()), 409, "paused"),
            (E::Fenced(text()), 409, "fenced"),
            (E::NoSuchSnapshot(text()), 404, "no-such-snapshot"),
            (E::SnapshotInUse(text()), 409, "snapshot-in-use"),
            (E::TooDeep(text()), 409, "too-deep"),
            (E::TooMany(text()), 429, "too-many"),
            (failed, 422, "setup-failed"),
            (E::Repository(text()), 422, "repository-unavailable"),
            (E::GitFailed(text()), 422, "git-failed"),
            (E::PushNotAllowed(text()), 403, "push-not-allowed"),
            (E::CommitsRefused(text()), 422, "commits-refused"),
            (E::PushRefused(text()), 409, "push-refused"),
            (E::ExecForgotten(text()), 410, "exec-forgotten"),
            (E::LimitUnenforceable(text()), 422, "limit-unenforceable"),
            (E::NoSpace(text()), 507, "no-space"),
            (E::Host(text()), 500, "internal"),
        ] {
            let problem = Problem::from(error);
            let (found, name, _) = problem.kind.row();
            assert_eq!((found.as_u16(), name), (status, word));
            let retry = problem.headers.iter().any(|(name, _)| name == RETRY_AFTER);
            assert_eq!(retry, status == 429);
        }
    }
}
