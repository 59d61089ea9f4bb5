//! A server that answers as a test tells it to, in the place of a provider: one that breaks off, lies or is hostile.

use std::net::Ipv4Addr;

use axum::Router;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// A running server; ended with this.
#[derive(Debug)]
pub(crate) struct Scripted {
    address: String,
    _runtime: Runtime,
}

impl Scripted {
    /// Serves these routes on a port of its own.
    pub(crate) fn serve(routes: Router) -> Self {
        let runtime = Runtime::new().expect("cannot start a runtime");
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .expect("cannot listen on loopback");
        let address = listener.local_addr().expect("it has an address");
        runtime.spawn(async move {
            axum::serve(listener, routes)
                .await
                .expect("it serves until it is dropped");
        });
        Self {
            address: format!("http://{address}"),
            _runtime: runtime,
        }
    }

    /// Its URL.
    pub(crate) fn url(&self) -> &str {
        &self.address
    }
}
