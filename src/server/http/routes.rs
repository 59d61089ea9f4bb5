//! The table of routes, and what handlers share: parameters, bodies and the checks of fields.
//!
//! # Adding routes
//!
//! A module of routes has `pub(super) fn routes() -> OpenApiRouter<Arc<App>>` and a line in
//! [`MODULES`]. Its handlers carry `#[utoipa::path]`, from which both the route and its place in
//! `/openapi.json` come:
//!
//! ```ignore
//! pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
//!     OpenApiRouter::default().routes(routes!(list, start)) // one call for each path
//! }
//!
//! /// Starts an exec.
//! ///
//! /// The first line is the summary, the rest the description.
//! #[utoipa::path(
//!     post,
//!     path = "/workspaces/{id}/execs",
//!     operation_id = "start_exec", // unique in the document
//!     tag = tag::EXECS, // tags = [tag::EXECS, "stream"] for Server-Sent Events and WebSockets
//!     params(Id),
//!     request_body = StartRequest,
//!     responses(
//!         (status = 201, description = "It was started.", body = Exec),
//!         Problems<{ BODY | of(&[Kind::NoSuchWorkspace, Kind::Conflict]) }>,
//!     )
//! )]
//! async fn start(..) -> Result<.., Problem>
//! ```
//!
//! [`Problems`] names what a route itself may answer; what the layers around every route may answer
//! is in it already, and `tests/openapi.rs` checks it against what comes. Types in bodies derive
//! `ToSchema`; a type's name is its name in the document, so the second type of a name needs
//! `#[schema(as = ..)]`. The tests in `documents` fail where table and document differ.
//!
//! [`Problems`]: super::problem::Problems

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Query, Request};
use axum::http::Uri;
use axum::http::request::Parts;
use axum::{Router, middleware};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use super::body::{self, Bounds};
use super::grant::Caller;
use super::guard::guard;
use super::leases::Visit;
use super::observe::observe;
use super::problem::{Kind, Problem};
use super::unread::close_if_unread;
use super::{
    App, attach, capacity, changes, commands, documents, events, execs, files, layers, leases,
    metrics, output, push, sessions, snapshots, workspaces,
};
use crate::provider::{Error, WorkspaceId};

/// The modules of routes, in the order of the document.
#[rustfmt::skip] // a line each, so that branches that add one merge
pub(super) const MODULES: &[fn() -> OpenApiRouter<Arc<App>>] = &[
    workspaces::routes,
    leases::routes,
    snapshots::routes,
    execs::routes,
    output::routes,
    attach::routes,
    events::routes,
    sessions::routes,
    files::routes,
    changes::routes,
    push::routes,
    commands::routes,
    documents::routes,
    capacity::routes,
    layers::routes,
    metrics::routes,
];

/// What groups the routes in the document.
pub(super) mod tag {
    /// Making, looking at, resetting and ending workspaces.
    pub(in crate::server::http) const WORKSPACES: &str = "workspaces";
    /// What workspaces were at some moment, and workspaces that start from it.
    pub(in crate::server::http) const SNAPSHOTS: &str = "snapshots";
    /// Commands that are started once, watched and kept.
    pub(in crate::server::http) const EXECS: &str = "execs";
    /// Shells that live from one command to the next.
    pub(in crate::server::http) const SESSIONS: &str = "sessions";
    /// Files, directories and archives.
    pub(in crate::server::http) const FILES: &str = "files";
    /// bosun-ai/derrick's commands and files.
    pub(in crate::server::http) const COMMANDS: &str = "commands";
    /// The provider itself.
    pub(in crate::server::http) const PROVIDER: &str = "provider";
}

/// All routes, with the layers that each request passes.
pub(super) fn table(app: Arc<App>) -> Router {
    Router::from(all())
        .fallback(no_such_route)
        .method_not_allowed_fallback(method_not_allowed)
        // The last one is the outermost.
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe))
        .layer(middleware::from_fn(close_if_unread))
        .with_state(app)
}

/// All routes and their document, without the layers.
pub(super) fn all() -> OpenApiRouter<Arc<App>> {
    let empty = OpenApiRouter::with_openapi(documents::about());
    MODULES
        .iter()
        .fold(empty, |router, routes| router.merge(routes()))
}

async fn no_such_route(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(200).collect();
    Problem::new(Kind::NoSuchRoute, format!("there is no route {path:?}"))
}

async fn method_not_allowed(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(200).collect();
    let detail = format!("the route {path:?} does not have {}", request.method());
    Problem::new(Kind::MethodNotAllowed, detail)
}

/// An object without fields: the body of a route that takes none, or only says that it wants one.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(super) struct Nothing {}

/// In a document: `null`.
pub(super) struct Null;

impl PartialSchema for Null {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Null).into()
    }
}

impl ToSchema for Null {}

/// In a document: bytes as they are.
pub(super) struct Octets;

impl PartialSchema for Octets {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
            .into()
    }
}

impl ToSchema for Octets {}

impl App {
    pub(super) async fn collect(
        &self,
        request: Request,
        size: usize,
    ) -> Result<body::Whole, Problem> {
        body::collect(request, &self.uploads, self.bounds(size)).await
    }

    /// A body that may be left out.
    pub(super) async fn collect_optional(&self, request: Request) -> Result<body::Whole, Problem> {
        let bounds = self.bounds(body::MAX_BODY);
        body::collect_any(request, &self.uploads, bounds).await
    }

    pub(super) async fn collect_nothing(&self, request: Request) -> Result<(), Problem> {
        let Nothing {} = self.collect_or_default(request).await?;
        Ok(())
    }

    /// What a body says that may be missing, or null.
    pub(super) async fn collect_or_default<T: Default + DeserializeOwned>(
        &self,
        request: Request,
    ) -> Result<T, Problem> {
        let body = self.collect_optional(request).await?;
        if body.bytes.is_empty() {
            return Ok(T::default());
        }
        let parsed: Option<T> = body::parse(&body.bytes)?;
        Ok(parsed.unwrap_or_default())
    }

    fn bounds(&self, size: usize) -> Bounds {
        Bounds {
            size,
            patience: self.options.read_timeout,
        }
    }
}

/// The `{id}` of the route. What cannot be an id names no workspace, and what is beyond the scope of the
/// caller's token is answered for as if there were none: 404. The only way to an id of a caller's.
#[derive(IntoParams)]
#[into_params(names("id"), parameter_in = Path)]
pub(super) struct Id(
    /// The workspace.
    pub(super) WorkspaceId,
);

impl FromRequestParts<Arc<App>> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let text = part_of(&parts.uri, Part::Workspace);
        let id: WorkspaceId = text.parse().map_err(|_| {
            let shown: String = text.chars().take(63).collect();
            Problem::from(Error::NoSuchWorkspace(format!("{shown:?}")))
        })?;
        if caller.may_ask_for(app, &id) {
            Visit::begin(parts, app, &id);
            Ok(Self(id))
        } else {
            Err(Error::NoSuchWorkspace(id.to_string()).into())
        }
    }
}

/// A part of a route below `/workspaces/`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// The `{id}`.
    Workspace = 2,
    /// The `{exec}` or the `{name}` of what it has.
    Of = 4,
}

/// The part as text, percent-decoded. What is no UTF-8 becomes U+FFFD, which is in no id and no name:
/// axum's own parameters would fail all together.
pub(super) fn part_of(uri: &Uri, part: Part) -> Cow<'_, str> {
    let part = uri.path().split('/').nth(part as usize);
    percent_decode_str(part.unwrap_or_default()).decode_utf8_lossy()
}

/// The parameters after the `?` of a route.
pub(super) struct Parameters<T>(pub(super) T);

impl<T: serde::de::DeserializeOwned> FromRequestParts<Arc<App>> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(error) => Err(Problem::new(
                Kind::InvalidRequest,
                format!("the parameters: {}", error.body_text()),
            )),
        }
    }
}

/// What execve(2) could not pass on is refused by name. Values are never repeated.
pub(super) fn checked_env(
    env: Option<BTreeMap<String, String>>,
) -> Result<BTreeMap<String, String>, Problem> {
    let env = env.unwrap_or_default();
    for (name, value) in &env {
        let flaw = if name.is_empty() {
            "has an empty name"
        } else if name.contains(['=', '\0']) {
            "has a '=' or NUL in its name"
        } else if value.contains('\0') {
            "has a NUL in its value"
        } else {
            continue;
        };
        let detail = format!("the field env: the variable {name:?} {flaw}");
        return Err(Problem::new(Kind::InvalidRequest, detail));
    }
    Ok(env)
}

pub(super) fn without_nul(field: &str, text: String) -> Result<String, Problem> {
    if text.contains('\0') {
        let detail = format!("the field {field} has a NUL");
        Err(Problem::new(Kind::InvalidRequest, detail))
    } else {
        Ok(text)
    }
}

pub(super) fn optional_without_nul(
    field: &str,
    text: Option<String>,
) -> Result<Option<String>, Problem> {
    text.map(|text| without_nul(field, text)).transpose()
}
