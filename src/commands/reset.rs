//! `derrick reset`: a workspace as it was at its start, or at a snapshot.

use std::process::ExitCode;
use std::time::Duration;

use bytesize::ByteSize;

use super::remote::{self, print, telling_no};
use super::table::shortened;
use crate::cli::ReportFormat;
use crate::cli::client::ResetArgs;
use crate::client::Discarded;
use crate::client::printable::{self, printable};

/// Resets the workspace and prints the receipt.
///
/// # Errors
/// Why it is not reset.
pub fn reset(arguments: &ResetArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let to = match &arguments.to {
            Some(snapshot) => Some(client.snapshot_id(snapshot).await?),
            None => None,
        };
        let receipt = client.reset(&workspace, to.as_deref()).await?;
        print(&match arguments.format.format() {
            ReportFormat::Text => format!(
                "{workspace} is on layer {} again, after {:?}; discarded {}",
                shortened(&printable(&receipt.layer), 12),
                Duration::from_micros(receipt.duration_us),
                told(receipt.discarded)
            ),
            ReportFormat::Json => printable::json(&receipt),
        })?;
        Ok(ExitCode::SUCCESS)
    }))
}

/// What was discarded, in words.
fn told(discarded: Option<Discarded>) -> String {
    let number = |number: Option<u64>| number.map_or("?".to_owned(), |number| number.to_string());
    match discarded {
        Some(all) => format!(
            "{} processes and {} files of {}",
            number(all.processes),
            number(all.files),
            all.bytes.map_or("?".to_owned(), |bytes| ByteSize::b(bytes)
                .display()
                .iec()
                .to_string())
        ),
        None => "what it had".to_owned(),
    }
}
