//! derrick, through its HTTP API on one kept connection.

use serde_json::json;

use super::contender::{Contender, Job, Samples};
use super::support::{COMMAND, Client, Provider, time};

const NAME: &str = "derrick";

/// Jobs of each kind in one round.
const BATCH: usize = 4;

/// A running provider with the host as base, and a client of it.
pub(crate) struct Derrick {
    client: Client,
    _provider: Provider,
}

impl Derrick {
    pub(crate) fn start() -> Self {
        let provider = Provider::start(&json!({ "name": "bench" }));
        Self {
            client: provider.client(),
            _provider: provider,
        }
    }

    /// Who its workspaces are on this host.
    pub(crate) fn describe(&mut self) -> String {
        let health = self.client.health();
        let ids = health["identity"].as_str();
        format!(
            "derrick {}: {}",
            env!("CARGO_PKG_VERSION"),
            ids.unwrap_or("ids unknown")
        )
    }
}

impl Contender for Derrick {
    fn name(&self) -> &'static str {
        NAME
    }

    fn try_once(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn round(&mut self, samples: &mut Samples) {
        let client = &mut self.client;
        for _ in 0..BATCH {
            let (created, workspace) = time(|| client.create());
            let (first, ()) = time(|| client.exec(&workspace, COMMAND));
            let (ended, ()) = time(|| client.delete(workspace));
            samples.add(Job::First, NAME, created + first);
            samples.add(Job::Teardown, NAME, ended);
            samples.add(Job::Whole, NAME, created + first + ended);
        }
        let workspace = client.create();
        for _ in 0..BATCH {
            let (duration, ()) = time(|| client.exec(&workspace, COMMAND));
            samples.add(Job::Exec, NAME, duration);
        }
        for _ in 0..BATCH {
            let (duration, ()) = time(|| client.reset(&workspace));
            samples.add(Job::Reset, NAME, duration);
        }
        client.delete(workspace);
    }
}
