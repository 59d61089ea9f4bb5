//! `derrick pause` and `derrick resume`: the processes of a workspace stand still, and go on.

use std::process::ExitCode;

use serde_json::Value;

use super::remote::{self, print, telling_no};
use crate::cli::ReportFormat;
use crate::cli::client::{FormatArgs, PauseArgs, ResumeArgs};
use crate::client::printable;

/// Pauses the workspace.
///
/// # Errors
/// Why it is not paused.
pub fn pause(arguments: &PauseArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        told(&arguments.format, &client.pause(&workspace).await?)
    }))
}

/// Resumes the workspace.
///
/// # Errors
/// Why it is not resumed.
pub fn resume(arguments: &ResumeArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        told(&arguments.format, &client.resume(&workspace).await?)
    }))
}

fn told(format: &FormatArgs, workspace: &Value) -> anyhow::Result<ExitCode> {
    if format.format() == ReportFormat::Json {
        print(&printable::json(workspace))?;
    }
    Ok(ExitCode::SUCCESS)
}
