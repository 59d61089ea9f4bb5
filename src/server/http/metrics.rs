//! `GET /metrics`: what the front end counts, and the provider's figures, as OpenMetrics text.
//!
//! A label is never what a caller chose: a path is the template of its route, a method one of those
//! that HTTP knows. So the number of series has a bound, whoever asks for what.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::grant::Caller;
use super::problem::{Kind, Problem, Problems, of};
use super::routes::tag;
use crate::provider::{Durations, Figures};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default().routes(routes!(metrics))
}

/// Numbers for Prometheus, in the OpenMetrics text format.
///
/// A server that scrapes them needs a token where there are some, one that is good for everything, as these
/// are numbers of all workspaces together; it is else the provider's own user or root.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = tag::PROVIDER,
    responses(
        (status = 200, description = "All metrics.", body = String, content_type = "application/openmetrics-text"),
        Problems<{ of(&[Kind::BeyondScope]) }>,
    )
)]
async fn metrics(State(app): State<Arc<App>>, caller: Caller) -> Result<Response, Problem> {
    caller.check_everything("what all workspaces together do")?;
    let text = tokio::task::spawn_blocking(move || {
        let mut own = Registry::with_prefix(PREFIX);
        own.register_collector(Box::new(Shown(app.provider.figures())));
        let mut text = String::new();
        text::encode_registry(&mut text, &app.metrics.registry)?;
        text::encode(&mut text, &own)?;
        Ok::<_, fmt::Error>(text)
    });
    let failed = |error: &dyn fmt::Display| {
        Problem::new(Kind::Internal, format!("cannot write the metrics: {error}"))
    };
    let text = text.await.map_err(|error| failed(&error))?;
    let text = text.map_err(|error| failed(&error))?;
    let kind =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

const PREFIX: &str = "derrick";

/// What the front end counts.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    durations: Family<Asked, Histogram, fn() -> Histogram>,
    dropped: Family<Asked, Counter>,
    file_bytes: Family<Moved, Counter>,
}

/// Which route was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Asked {
    /// The route's template, or `-` for a path that is no route.
    route: String,
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    method: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Moved {
    direction: &'static str,
}

/// Where bytes of files go, seen from the workspace.
#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    /// Written to a workspace.
    In,
    /// Read from a workspace.
    Out,
}

impl Asked {
    pub(super) fn new(route: Option<&str>, method: &Method) -> Self {
        Self {
            route: route.unwrap_or("-").to_owned(),
            method: known(method),
        }
    }
}

/// The method if it is one that HTTP knows; any text can be one.
fn known(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT",
    ];
    let known = KNOWN.into_iter().find(|known| *known == method.as_str());
    known.unwrap_or("other")
}

impl Metrics {
    pub(super) fn new() -> Self {
        let histogram: fn() -> Histogram = || {
            // Seconds; a request that runs a command lasts as long as that does.
            Histogram::new([
                0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
                30.0, 60.0, 300.0, 1800.0,
            ])
        };
        let mut new = Self {
            registry: Registry::with_prefix(PREFIX),
            requests: Family::default(),
            durations: Family::new_with_constructor(histogram),
            dropped: Family::default(),
            file_bytes: Family::default(),
        };
        let registry = &mut new.registry;
        registry.register(
            "http_requests",
            "Requests that were answered",
            new.requests.clone(),
        );
        registry.register_with_unit(
            "http_request_duration",
            "From a request's header to its answer's",
            Unit::Seconds,
            new.durations.clone(),
        );
        registry.register(
            "http_requests_dropped",
            "Requests whose client went away before the answer",
            new.dropped.clone(),
        );
        registry.register_with_unit(
            "file",
            "Contents of files that went in and out",
            Unit::Bytes,
            new.file_bytes.clone(),
        );
        for direction in [Direction::In, Direction::Out] {
            new.moved(direction, 0);
        }
        new
    }

    /// Counts a request that was answered.
    pub(super) fn answered(&self, asked: &Asked, status: StatusCode, duration: Duration) {
        let answered = Answered {
            route: asked.route.clone(),
            method: asked.method,
            status: status.as_u16(),
        };
        self.requests.get_or_create(&answered).inc();
        self.durations
            .get_or_create(asked)
            .observe(duration.as_secs_f64());
    }

    /// Counts a request that was not.
    pub(super) fn dropped(&self, asked: &Asked) {
        self.dropped.get_or_create(asked).inc();
    }

    /// Counts bytes of a file's content.
    pub(super) fn moved(&self, direction: Direction, bytes: u64) {
        let direction = match direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        self.file_bytes
            .get_or_create(&Moved { direction })
            .inc_by(bytes);
    }
}

/// A file's content on its way in, counted as it is read.
pub(super) struct Counted<R> {
    pub(super) content: R,
    pub(super) app: Arc<App>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.content.read(buffer)?;
        self.app.metrics.moved(Direction::In, length as u64);
        Ok(length)
    }
}

/// The provider's figures, and what is known of this program.
#[derive(Debug)]
struct Shown(Figures);

impl Collector for Shown {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let figures = &self.0;
        let mut page = Page(encoder);
        page.gauges(
            "build_info",
            "The version, always 1",
            &[(&[("version", env!("CARGO_PKG_VERSION"))], 1)],
        )?;
        let enforcement = figures.enforcement.iter();
        let enforcement: Vec<_> = enforcement
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        page.gauges(
            "enforcement_info",
            "What is enforced on sandboxes as /health tells it, always 1",
            &[(&enforcement, 1)],
        )?;
        page.gauge(
            "enforcement_weaker",
            "Things that are weaker on this host than asked",
            figures.weaker,
        )?;
        page.gauges(
            "workspaces",
            "Workspaces, by whether they have a sandbox",
            &[
                (&[("state", "running")], figures.running),
                (&[("state", "stopped")], figures.stopped),
            ],
        )?;
        page.gauge(
            "creates_waiting",
            "Requests for a workspace that wait for a place",
            figures.waiting,
        )?;
        page.counters(
            "workspaces_removed",
            "Workspaces that were removed, by why",
            "why",
            &figures.removals,
        )?;
        page.gauge("execs_running", "Execs under way", figures.execs)?;
        page.counters(
            "execs",
            "Execs that ended, by how",
            "outcome",
            &figures.outcomes,
        )?;
        page.durations(
            "exec_duration",
            "How long execs took",
            &figures.exec_durations,
        )?;
        let (printed, given) = figures.exec_bytes;
        page.counters(
            "exec_bytes",
            "Bytes of execs that ended: printed, and written to their stdin",
            "direction",
            &[("out", printed), ("in", given)],
        )?;
        page.durations(
            "create_duration",
            "How long workspaces took to be made, setup included",
            &figures.create_durations,
        )?;
        page.durations(
            "reset_duration",
            "How long resets took",
            &figures.reset_durations,
        )?;
        page.counter(
            "sandboxes_started",
            "Sandboxes, those that made layers and those in the pool included",
            figures.sandboxes,
        )?;
        page.counter(
            "sandboxes_quarantined",
            "Pristine sandboxes that were not what they should have been",
            figures.quarantined,
        )?;
        page.gauges(
            "pool",
            "Pristine sandboxes, by whether they are there, and requests that wait for one",
            &[
                (&[("state", "ready")], figures.pool.ready),
                (&[("state", "making")], figures.pool.making),
                (&[("state", "waiting")], figures.pool.waiting),
            ],
        )?;
        if let Some(layers) = figures.layers {
            page.gauge("layers", "Layers on disk", layers)?;
        }
        if let Some(bytes) = figures.layer_bytes {
            page.bytes("layers", "What layers take up, as far as counted", bytes)?;
        }
        let (layers, mirrors, bytes) = figures.collected;
        page.counters(
            "collected",
            "Layers and mirrors that were removed because nothing used them",
            "what",
            &[("layer", layers), ("mirror", mirrors)],
        )?;
        page.counter("collected_bytes", "Bytes of these", bytes)
    }
}

/// What is shown so far.
struct Page<'a>(DescriptorEncoder<'a>);

/// Labels of a series, and its value.
type Series<'a> = (&'a [(&'a str, &'a str)], usize);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: usize) -> fmt::Result {
        let encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(encoder)
    }

    fn bytes(&mut self, name: &str, help: &str, bytes: u64) -> fmt::Result {
        let unit = Some(&Unit::Bytes);
        let encoder = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        // A gauge of the crate's is signed.
        ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX)).encode(encoder)
    }

    fn gauges(&mut self, name: &str, help: &str, all: &[Series<'_>]) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in all {
            ConstGauge::new(*value).encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(encoder)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        all: &[(&str, u64)],
    ) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (kind, count) in all {
            ConstCounter::new(*count).encode(encoder.encode_family(&[(label, *kind)])?)?;
        }
        Ok(())
    }

    fn durations(&mut self, name: &str, help: &str, durations: &Durations) -> fmt::Result {
        let in_seconds =
            |bound: Option<Duration>| bound.map_or(f64::INFINITY, |bound| bound.as_secs_f64());
        let buckets: Vec<_> = durations
            .buckets
            .iter()
            .map(|(bound, count)| (in_seconds(*bound), *count))
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        self.0
            .encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(durations.sum.as_secs_f64(), count, &buckets, None)
    }
}
