//! `derrick reset`: a workspace as it was right after setup.

use std::process::ExitCode;
use std::time::Duration;

use super::remote::{self, print, telling_no};
use super::table::shortened;
use crate::cli::ReportFormat;
use crate::cli::client::ResetArgs;
use crate::client::printable::{self, printable};

/// Resets the workspace and prints the receipt.
///
/// # Errors
/// Why it is not reset.
pub fn reset(arguments: &ResetArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let receipt = client.reset(&workspace).await?;
        print(&match arguments.format.format() {
            ReportFormat::Text => format!(
                "{workspace} is on layer {} again; {} processes killed, {:?}",
                shortened(&printable(&receipt.layer), 12),
                receipt.processes_killed,
                Duration::from_micros(receipt.duration_us)
            ),
            ReportFormat::Json => printable::json(&receipt),
        })?;
        Ok(ExitCode::SUCCESS)
    }))
}
