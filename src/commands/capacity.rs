//! `derrick capacity`: how many more workspaces a running provider has room for.

use std::process::ExitCode;

use super::remote::{self, print, telling_no};
use crate::cli::ReportFormat;
use crate::cli::client::CapacityArgs;
use crate::client::printable;

/// Prints the number, or all that it depends on.
///
/// # Errors
/// Why it is not known.
pub fn capacity(arguments: &CapacityArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let capacity = client.capacity().await?;
        print(&match arguments.format.format() {
            ReportFormat::Text => capacity.more.to_string(),
            ReportFormat::Json => printable::json(&capacity),
        })?;
        Ok(ExitCode::SUCCESS)
    }))
}
