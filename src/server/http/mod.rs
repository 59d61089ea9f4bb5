//! The HTTP front end: bosun-ai/derrick's wire format, problem details for errors, and the checks
//! that keep web pages and other users of the host away from the provider.
//!
//! Reading order: [`serve`] accepts connections and learns who is at the other end; `routes` has the
//! table of routes. A request passes `observe` (id, span, shape of errors), then `guard` (host,
//! origin, identity, content type), then `routes::Id` (the token's scope) where it names a workspace,
//! and only then a handler.

mod attach;
mod body;
mod capacity;
mod changes;
mod commands;
mod connection;
mod cors;
mod documents;
mod entrance;
mod events;
mod execs;
mod files;
mod grant;
mod guard;
mod layers;
mod leases;
mod listener;
mod metrics;
mod observe;
mod output;
mod peer;
mod problem;
mod push;
mod routes;
mod sessions;
mod snapshots;
mod token;
mod unread;
mod workspaces;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::provider::Provider;

pub use listener::{BindError, Listener};
pub use token::{Reread, TokenError, Tokens, read_token};

use connection::{Acceptor, Owner};

/// What the operator decides about the HTTP front end.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// The bearer tokens of which every request must carry one. Without them a TCP listener must be on
    /// loopback, and only the provider's own user and root are served.
    pub tokens: Option<Arc<Tokens>>,
    /// Names that `Host` may carry besides the loopback names and the address that the connection
    /// came in on: `name` (with the listener's port or none) or `name:port`.
    pub allowed_hosts: Vec<String>,
    /// Values of `Origin` that are let in, e.g. `https://ui.example`; needs `tokens`, as a browser is
    /// its user's whatever page it shows. A request with any other is refused; one without the header
    /// is not sent by a page.
    pub allowed_origins: Vec<String>,
    /// Connections whose requests are served at once; further ones wait for their turn. By default
    /// a quarter of the descriptors that this process may have: the rest is for workspaces and execs.
    pub max_connections: usize,
    /// Connections that may wait for a turn, or have sent no whole header of a request yet; beyond
    /// that the one that has waited longest is dropped. By default a sixteenth of the descriptors.
    pub max_waiting: usize,
    /// How long a client may take for a request's header, and between two pieces of its body.
    pub read_timeout: Duration,
    /// How long requests under way may take to end once the shutdown began; then they are dropped.
    pub drain: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        let descriptors = descriptors();
        Self {
            tokens: None,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            max_connections: (descriptors / 4).clamp(16, 16_384),
            max_waiting: (descriptors / 16).clamp(16, 1024),
            read_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

/// How many descriptors this process may have, getrlimit(2): as many as it may ask for.
fn descriptors() -> usize {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    hard.map_or(usize::MAX, |hard| {
        usize::try_from(hard).unwrap_or(usize::MAX)
    })
}

/// Serves `provider` on `listener` until `shutdown` completes; then ends the provider, and waits for
/// the connections.
///
/// A Unix socket is removed at the end.
///
/// # Errors
///
/// `InvalidInput` if `options` do not allow to serve on this listener, see [`Listener::tcp`] and
/// [`HttpOptions::allowed_origins`]. A connection that fails is logged and ends nothing else.
pub async fn serve(
    listener: Listener,
    provider: Arc<dyn Provider>,
    options: HttpOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    serve_as(
        Owner::of_this_process(),
        listener,
        provider,
        options,
        shutdown,
    )
    .await
}

/// [`serve`] for a given owner, so that a test can be somebody else.
async fn serve_as(
    owner: Owner,
    mut listener: Listener,
    provider: Arc<dyn Provider>,
    options: HttpOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    listener.check(&options)?;
    tracing::info!("listening on {listener}");

    let drain = options.drain;
    let options = Arc::new(options);
    let stopping = CancellationToken::new();
    let upgraded = TaskTracker::new();
    let app = App {
        provider: Arc::clone(&provider),
        options: Arc::clone(&options),
        uploads: body::Uploads::new(),
        upgraded: upgraded.clone(),
        metrics: metrics::Metrics::new(),
    };
    let router = routes::table(Arc::new(app));
    let acceptor = Acceptor::new(owner, router, options, stopping.clone());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let stream = tokio::select! {
            stream = listener.accept() => stream,
            () = &mut shutdown => break,
        };
        connections.spawn(acceptor.converse(stream));
        while connections.try_join_next().is_some() {}
    }

    // No new connections from here on, and the Unix socket is gone.
    drop(listener);
    stopping.cancel();
    // Commands under way get their answer from this.
    provider.shutdown().await;
    upgraded.close();
    let drained = async {
        while connections.join_next().await.is_some() {}
        upgraded.wait().await;
    };
    if tokio::time::timeout(drain, drained).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "requests still under way are dropped"
        );
        connections.shutdown().await;
    }
    Ok(())
}

/// What every handler shares.
struct App {
    provider: Arc<dyn Provider>,
    options: Arc<HttpOptions>,
    uploads: body::Uploads,
    /// Connections that went on as WebSockets.
    upgraded: TaskTracker,
    metrics: metrics::Metrics,
}
