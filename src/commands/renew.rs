//! `derrick renew`: a workspace whose time to live begins anew.

use std::process::ExitCode;
use std::time::Duration;

use super::remote::{self, print, telling_no};
use super::table::moment;
use crate::cli::ReportFormat;
use crate::cli::client::RenewArgs;
use crate::client::printable;

/// Renews the lease and prints when it ends.
///
/// # Errors
/// Why it is not renewed.
pub fn renew(arguments: &RenewArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let ttl = arguments.ttl.as_ref().map(Duration::as_secs_f64);
        let lease = client.renew(&workspace, ttl).await?;
        print(&match arguments.format.format() {
            ReportFormat::Text => format!("{workspace} ends at {}", moment(lease.expires)),
            ReportFormat::Json => printable::json(&lease),
        })?;
        Ok(ExitCode::SUCCESS)
    }))
}
