//! `derrick push`: commits of a workspace for a branch of its upstream.

use std::process::ExitCode;

use super::remote::{self, print, telling_no};
use super::table::shortened;
use crate::cli::ReportFormat;
use crate::cli::client::PushArgs;
use crate::client::printable::{self, printable};
use crate::client::{Push, Pushed};

/// Has the commits pushed and prints what came of it.
///
/// # Errors
/// Why they are not.
pub fn push(arguments: &PushArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let wanted = Push {
            path: arguments.path.clone(),
            branch: arguments.branch.clone(),
            to: arguments.to.clone(),
        };
        let pushed = client.push(&workspace, &wanted).await?;
        match arguments.format.format() {
            ReportFormat::Text => print(&told(&pushed))?,
            ReportFormat::Json => print(&printable::json(&pushed))?,
        }
        Ok(ExitCode::SUCCESS)
    }))
}

/// The push in words.
fn told(one: &Pushed) -> String {
    let commit = |id: &str| shortened(&printable(id), 12).to_string();
    let before = match &one.old_commit {
        Some(old) => commit(old),
        None => "nothing".to_owned(),
    };
    format!(
        "{} {}: {before} -> {}",
        printable(&one.path),
        printable(&one.branch),
        commit(&one.new_commit)
    )
}
