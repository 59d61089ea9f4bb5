//! `derrick snapshot`, `derrick fork` and `derrick fence`: what a workspace is now, kept.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::remote::{self, print, telling_no};
use crate::cli::ReportFormat;
use crate::cli::client::{FenceArgs, ForkArgs, FormatArgs, SnapshotArgs};
use crate::client::printable::{self, printable};

/// Takes a snapshot and prints its id.
///
/// # Errors
/// Why there is none.
pub fn snapshot(arguments: &SnapshotArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let asked = json!({ "label": arguments.label });
        let taken = client.snapshot(&workspace, &asked).await?;
        told(&arguments.format, &taken, &[&taken["id"]])
    }))
}

/// Makes workspaces on a snapshot of another one and prints their ids.
///
/// # Errors
/// Why there are none.
pub fn fork(arguments: &ForkArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let asked = json!({ "count": arguments.count, "label": arguments.label });
        let forked = client.fork(&workspace, &asked).await?;
        let made = forked["workspaces"].as_array().into_iter().flatten();
        let ids: Vec<_> = made.map(|one| &one["id"]).collect();
        told(&arguments.format, &forked, &ids)
    }))
}

/// Fences a workspace and prints the snapshot's id.
///
/// # Errors
/// Why it is not fenced.
pub fn fence(arguments: &FenceArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let asked = json!({ "at": arguments.at });
        let fenced = client.fence(&workspace, &asked).await?;
        told(&arguments.format, &fenced, &[&fenced["snapshot"]])
    }))
}

fn told(format: &FormatArgs, answer: &Value, ids: &[&Value]) -> anyhow::Result<ExitCode> {
    let lines = ids
        .iter()
        .map(|id| printable(id.as_str().unwrap_or_default()));
    print(&match format.format() {
        ReportFormat::Text => lines.collect::<Vec<_>>().join("\n"),
        ReportFormat::Json => printable::json(answer),
    })?;
    Ok(ExitCode::SUCCESS)
}
