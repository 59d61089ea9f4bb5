//! `derrick create`: a new workspace at a running provider.

use std::process::ExitCode;

use serde_json::json;

use super::remote::{self, environment, print, telling_no};
use crate::cli::ReportFormat;
use crate::cli::client::CreateArgs;
use crate::client::printable;

/// Makes a workspace and prints its id.
///
/// # Errors
/// Why there is none.
pub fn create(arguments: &CreateArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let id = client.create(&environment(&arguments.env)).await?;
        print(&match arguments.format.format() {
            ReportFormat::Text => id,
            ReportFormat::Json => printable::json(&json!({ "id": id })),
        })?;
        Ok(ExitCode::SUCCESS)
    }))
}
