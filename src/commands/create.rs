//! `derrick create`: a new workspace at a running provider.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::remote::{self, environment, print, telling_no};
use crate::cli::ReportFormat;
use crate::cli::client::{CreateArgs, Tie};
use crate::client::{Create, printable};

/// Makes a workspace and prints its id; with a tie, stays until it is removed.
///
/// # Errors
/// Why there is none.
pub fn create(arguments: &CreateArgs) -> anyhow::Result<ExitCode> {
    let seconds = |span: &Option<Duration>| span.as_ref().map(Duration::as_secs_f64);
    let mut asked = Create {
        env: environment(&arguments.env),
        snapshot: None,
        ttl: seconds(&arguments.ttl),
        idle_timeout: seconds(&arguments.idle_timeout),
    };
    let tell = |id: &str| {
        print(&match arguments.format.format() {
            ReportFormat::Text => id.to_owned(),
            ReportFormat::Json => printable::json(&json!({ "id": id })),
        })
    };
    telling_no(remote::talk(&arguments.provider, async |client| {
        let wait = arguments.wait;
        if let Some(snapshot) = &arguments.snapshot {
            asked.snapshot = Some(client.snapshot_id(snapshot).await?);
        }
        match arguments.tie() {
            Tie::None => tell(&client.create(&asked, wait).await?)?,
            Tie::ToThisCommand => {
                let held = client.create_tied(&asked, wait).await?;
                tell(held.id())?;
                held.until_removed().await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }))
}
