//! The layer store of a provider.

use std::time::Duration;

use hyper::Method;
use serde::Deserialize;
use serde_json::json;

use super::{Client, Error};
use crate::base::collect::{Bounds, Collected, Kept, Mode};

impl Client {
    /// All layers, those that were used last first.
    ///
    /// # Errors
    /// Why they are not known.
    pub async fn layers(&self) -> Result<Vec<Kept>, Error> {
        #[derive(Deserialize)]
        struct Layers {
            layers: Vec<Kept>,
        }
        let all: Layers = self.json(Method::GET, "/layers").await?;
        Ok(all.layers)
    }

    /// Has layers removed that nothing uses, or told which would be.
    ///
    /// # Errors
    /// Why they are not.
    pub async fn collect(&self, bounds: Bounds, mode: Mode) -> Result<Collected, Error> {
        let body = json!({
            "max_size": bounds.size,
            "max_age": bounds.age.as_ref().map(Duration::as_secs_f64),
            "dry_run": mode == Mode::Tell,
        });
        self.post("/gc", &body).await
    }
}
