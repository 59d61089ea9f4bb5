//! What the provider tells about itself: its health, and the document of its routes.

use std::sync::{Arc, LazyLock};

use axum::Json;
use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{
    AllOfBuilder, ObjectBuilder, OneOfBuilder, Schema, SchemaFormat, Type,
};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, Header, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, PathItem,
    RefOr,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::observe::REQUEST_ID;
use super::problem::{ALWAYS, Problem, Problems};
use super::routes::{self, tag};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(health))
        .routes(routes!(openapi))
        .routes(routes!(docs))
}

#[derive(Serialize, ToSchema)]
struct Health {
    /// True.
    healthy: bool,
    #[serde(flatten)]
    enforcement: Map<String, Value>,
}

/// Says that the provider works, and what it enforces on this host.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    tag = tag::PROVIDER,
    responses(
        (status = 200, description = "It works.", body = Health),
        Problems<ALWAYS>,
    )
)]
async fn health(State(app): State<Arc<App>>) -> Json<Health> {
    let mut enforcement = match app.provider.enforcement() {
        Value::Object(fields) => fields,
        other => Map::from_iter([("enforcement".to_owned(), other)]),
    };
    enforcement.remove("healthy");
    Json(Health {
        healthy: true,
        enforcement,
    })
}

/// This document.
///
/// Asked for like any other route: with the token where there is one.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = tag::PROVIDER,
    responses(
        (status = 200, description = "An OpenAPI 3.1 document.", body = Object),
        Problems<ALWAYS>,
    )
)]
async fn openapi() -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, json)], DOCUMENT.as_str()).into_response()
}

/// This document as a page for people.
///
/// With a token a browser cannot ask for it; a copy saved by a client that can works by itself.
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "docs",
    tag = tag::PROVIDER,
    responses(
        (
            status = 200,
            description = "A page that fetches nothing.",
            body = String,
            content_type = "text/html",
            headers(("content-security-policy" = String, description = "Nothing but the page's own script and style.")),
        ),
        Problems<ALWAYS>,
    )
)]
async fn docs() -> Response {
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    let headers = [
        (CONTENT_TYPE, html),
        (CONTENT_SECURITY_POLICY, PAGE.policy.clone()),
    ];
    (headers, PAGE.html.as_str()).into_response()
}

/// A page and what a browser is to let it do.
struct Page {
    html: String,
    policy: HeaderValue,
}

/// The document is in the page, and not fetched by it: so no page has to be let in that could then
/// ask for more, and a saved copy works.
static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let html = include_str!("docs.html");
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(html, "<script>", "</script>"),
        hash(html, "<style>", "</style>")
    );
    Page {
        // Nothing in it may end the element that it is in.
        html: html.replacen("DOCUMENT", &DOCUMENT.replace('<', "\\u003c"), 1),
        policy: HeaderValue::try_from(policy)
            .unwrap_or_else(|error| panic!("the policy is a header: {error}")),
    }
});

/// What stands between `start` and `end`, as a source of a Content-Security-Policy.
fn hash(html: &str, start: &str, end: &str) -> String {
    let after = html.split_once(start).map_or("", |(_, after)| after);
    let text = after.split_once(end).map_or("", |(text, _)| text);
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

/// The document as JSON. It depends on the code alone, so it is made once.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| serde_json::json!(document()).to_string());

/// The document without routes.
pub(super) fn about() -> OpenApi {
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("derrick")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(ABOUT))
                .license(Some(
                    LicenseBuilder::new()
                        .name(env!("CARGO_PKG_LICENSE"))
                        .identifier(Some(env!("CARGO_PKG_LICENSE")))
                        .build(),
                )),
        )
        .components(Some(
            ComponentsBuilder::new()
                .schema_from::<Problem>()
                .security_scheme(
                    TOKEN,
                    SecurityScheme::Http(
                        HttpBuilder::new()
                            .scheme(HttpAuthScheme::Bearer)
                            .description(Some("Where derrick was given a `--token-file`. What is beyond the scope of a token is not there: 404; what is for all workspaces together is 403 `beyond-scope`."))
                            .build(),
                    ),
                )
                .build(),
        ))
        .security(Some([
            SecurityRequirement::default(),
            SecurityRequirement::new::<_, _, &str>(TOKEN, []),
        ]))
        .build()
}

const TOKEN: &str = "token";

const ABOUT: &str = "\
Workspaces for autonomous coding agents on a bare Linux host.

Every error is a problem (RFC 9457) with a `type` that programs can rely on. Beside those that a \
route names, a path that is no route is answered with 404 `no-such-route`, and a method that a \
route does not have with 405 `method-not-allowed`.";

/// What the routes themselves cannot say is said here for all of them.
fn document() -> OpenApi {
    let mut document = routes::all().into_openapi();
    let paths = std::mem::take(&mut document.paths.paths);
    for (path, mut item) in paths {
        for operation in operations(&mut item) {
            for response in operation.responses.responses.values_mut() {
                if let RefOr::T(response) = response {
                    response
                        .headers
                        .insert(REQUEST_ID.to_string(), request_id().into());
                }
            }
        }
        // axum's mark of a parameter that takes the rest of the path.
        document.paths.paths.insert(path.replace("{*", "{"), item);
    }
    add_choices(&mut document);
    document
}

/// Bodies with fields of which there is exactly one, and those fields.
const ONE_OF: [(&str, [&str; 2]); 2] = [
    ("StartRequest", ["argv", "cmd"]),
    ("FileChangeTo", ["to", "to_base64"]),
];

/// Says of these bodies what a derived schema has no word for.
fn add_choices(document: &mut OpenApi) {
    let Some(components) = &mut document.components else {
        return;
    };
    for (name, fields) in ONE_OF {
        let Some(schema) = components.schemas.remove(name) else {
            continue;
        };
        let one = fields.into_iter().fold(OneOfBuilder::new(), |one, field| {
            one.item(ObjectBuilder::new().required(field))
        });
        let both = AllOfBuilder::new().item(schema).item(one).build();
        components
            .schemas
            .insert(name.to_owned(), Schema::AllOf(both).into());
    }
}

fn request_id() -> Header {
    let id = ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::Custom("uuid".to_owned())));
    HeaderBuilder::new()
        .schema(Some(id))
        .description(Some("The request's id in derrick's log."))
        .build()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.head,
        &mut item.patch,
    ]
    .into_iter()
    .flatten()
}

/// Method and path of each route for one workspace, without braces but those of the `{id}`.
#[cfg(test)]
pub(super) fn routes_with_a_workspace() -> Vec<(String, String)> {
    let document = serde_json::json!(document());
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for method in item
            .as_object()
            .into_iter()
            .flatten()
            .map(|(method, _)| method)
        {
            if let Some((before, after)) = path.split_once("{id}") {
                let after = after.replace(['{', '}'], "");
                found.push((method.to_uppercase(), format!("{before}{{id}}{after}")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use axum::Router;
    use axum::body::Body;
    use axum::http::header::ALLOW;
    use tower::ServiceExt;
    use utoipa::IntoResponses;

    use super::super::problem::Kind;
    use super::super::tests::app;
    use super::*;

    /// Path and method of every operation of the document, with the operation.
    fn operations() -> BTreeMap<(String, String), Value> {
        let document: Value = serde_json::from_str(&DOCUMENT).unwrap();
        let mut found = BTreeMap::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let key = (path.clone(), method.to_uppercase());
                found.insert(key, operation.clone());
            }
        }
        found
    }

    /// axum tells the paths of a router only where it is shown for debugging: as `RouteId(1): "/path"`.
    fn paths(router: &Router) -> BTreeSet<String> {
        let shown = format!("{router:?}");
        let (_, shown) = shown.split_once("paths: {").unwrap();
        let (shown, _) = shown.split_once("\"}").unwrap();
        shown
            .split("RouteId(")
            .skip(1)
            .map(|one| one.split('"').nth(1).unwrap().to_owned())
            .collect()
    }

    #[test]
    fn of_two_fields_that_exclude_each_other_the_document_asks_for_one() {
        let document: Value = serde_json::from_str(&DOCUMENT).unwrap();
        for (name, [first, second]) in ONE_OF {
            let schema = &document["components"]["schemas"][name]["allOf"];
            assert!(schema[0]["properties"][second].is_object(), "{schema}");
            let required: Vec<_> = schema[1]["oneOf"]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one["required"][0].clone())
                .collect();
            assert_eq!(required, [first, second]);
        }
    }

    #[tokio::test]
    async fn the_document_and_the_table_have_the_same_routes() {
        let router = Router::from(routes::all()).with_state(app());
        let mut table = BTreeSet::new();
        for path in paths(&router) {
            let request = axum::extract::Request::builder()
                .method("NONE")
                .uri(path.replace(['{', '*', '}'], ""))
                .body(Body::empty())
                .unwrap();
            let refused = router.clone().oneshot(request).await.unwrap();
            assert_eq!(refused.status(), 405, "{path}");
            let methods = refused.headers()[ALLOW].to_str().unwrap();
            for method in methods.split(',') {
                // axum answers it wherever there is a GET.
                if method != "HEAD" {
                    table.insert((path.replace("{*", "{"), method.to_owned()));
                }
            }
        }
        assert!(!table.is_empty());
        let documented: BTreeSet<_> = operations().into_keys().collect();
        assert_eq!(documented, table);
    }

    #[test]
    fn every_kind_of_problem_is_named_by_a_route_or_belongs_to_none() {
        let document = &*DOCUMENT;
        let named_by_a_route: String = operations().values().map(Value::to_string).collect();
        for kind in Kind::ALL {
            let word = format!("\"{}\"", kind.urn());
            let of_no_route = [Kind::NoSuchRoute, Kind::MethodNotAllowed, Kind::Other];
            assert_eq!(
                named_by_a_route.contains(&word),
                !of_no_route.contains(&kind),
                "{kind:?}"
            );
            assert!(document.contains(&word), "{kind:?}");
        }
    }

    #[test]
    fn every_route_says_what_it_is_and_what_any_route_may_answer() {
        let mut ids = BTreeSet::new();
        for ((path, method), operation) in operations() {
            let route = format!("{method} {path}");
            let summary = operation["summary"].as_str().unwrap_or_default();
            assert!(summary.ends_with('.'), "{route}: {summary:?}");
            assert!(operation["tags"][0].is_string(), "{route} has no tag");
            assert!(
                ids.insert(operation["operationId"].to_string()),
                "{route}: its id is another's"
            );
            let always = Problems::<ALWAYS>::responses();
            for status in always.keys() {
                assert!(
                    operation["responses"][status].is_object(),
                    "{route}: {status}"
                );
            }
            for parameter in path.split('{').skip(1) {
                let name = parameter.split('}').next().unwrap();
                let mut parameters = operation["parameters"].as_array().into_iter().flatten();
                assert!(
                    parameters.any(|one| one["name"] == name && one["in"] == "path"),
                    "{route}: {name}"
                );
            }
        }
    }

    #[test]
    fn what_the_document_refers_to_is_in_it() {
        let document: Value = serde_json::from_str(&DOCUMENT).unwrap();
        for reference in DOCUMENT.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn an_answer_that_is_one_value_is_json() {
        // utoipa's word for it, unless `content_type` says otherwise.
        assert!(!DOCUMENT.contains("text/plain"));
    }

    #[test]
    fn types_of_one_name_are_one_type() {
        let mut all = BTreeMap::new();
        for routes in routes::MODULES {
            let schemas = routes()
                .into_openapi()
                .components
                .unwrap_or_default()
                .schemas;
            for (name, schema) in schemas {
                let schema = serde_json::to_value(schema).unwrap();
                let known = all.entry(name.clone()).or_insert_with(|| schema.clone());
                assert_eq!(
                    *known, schema,
                    "{name} in two modules; give one 'schema(as = ..)'"
                );
            }
        }
    }
}
