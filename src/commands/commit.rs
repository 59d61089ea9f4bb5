//! `derrick commit`: a commit of all that is changed in a repository of a workspace.

use std::process::ExitCode;

use super::remote::{self, print, telling_no};
use super::table::shortened;
use crate::cli::ReportFormat;
use crate::cli::client::CommitArgs;
use crate::client::printable::{self, printable};
use crate::client::{Commit, Committed};

/// Has the commit made and prints what it is.
///
/// # Errors
/// Why none is made.
pub fn commit(arguments: &CommitArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let wanted = Commit {
            path: arguments.path.clone(),
            message: arguments.message.clone(),
            author: arguments.author.clone(),
            date: arguments.date.clone(),
        };
        let committed = client.commit(&workspace, &wanted).await?;
        match arguments.format.format() {
            ReportFormat::Text => print(&told(&committed))?,
            ReportFormat::Json => print(&printable::json(&committed))?,
        }
        Ok(ExitCode::SUCCESS)
    }))
}

/// The commit in words.
fn told(one: &Committed) -> String {
    let path = printable(&one.path);
    let Some(commit) = &one.commit else {
        return format!("{path}: nothing to commit");
    };
    let commit = shortened(&printable(commit), 12).to_string();
    let files = match one.files {
        1 => "1 file".to_owned(),
        files => format!("{files} files"),
    };
    match &one.branch {
        Some(branch) => format!("{path} {}: {commit} ({files})", printable(branch)),
        None => format!("{path}: {commit} ({files})"),
    }
}
