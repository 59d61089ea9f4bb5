//! `derrick fetch`: new commits of the upstreams for the repositories of a workspace.

use std::process::ExitCode;

use super::remote::{self, print, telling_no};
use super::table::shortened;
use crate::cli::ReportFormat;
use crate::cli::client::FetchArgs;
use crate::client::printable::{self, printable};
use crate::client::{Fetch, FetchedRepository};

/// Fetches and prints what came of it; fails where something was to be updated and was not.
///
/// # Errors
/// Why nothing is fetched.
pub fn fetch(arguments: &FetchArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let wanted = Fetch {
            path: arguments.path.clone(),
            reference: arguments.reference.clone(),
            update: arguments.update,
        };
        let repositories = client.fetch(&workspace, &wanted).await?;
        match arguments.format.format() {
            ReportFormat::Text => {
                for repository in &repositories {
                    print(&told(repository))?;
                }
            }
            ReportFormat::Json => print(&printable::json(&repositories))?,
        }
        let all = repositories.iter().all(|one| one.not_updated.is_none());
        Ok(ExitCode::from(u8::from(!all)))
    }))
}

/// One repository in words.
fn told(one: &FetchedRepository) -> String {
    let commit = |id: &str| shortened(&printable(id), 12).to_string();
    let before = match &one.old_commit {
        Some(old) => commit(old),
        None => "nothing".to_owned(),
    };
    let mut line = format!(
        "{} {}: {before} -> {}",
        printable(&one.path),
        printable(&one.reference),
        commit(&one.new_commit)
    );
    match (&one.not_updated, &one.head) {
        (Some(why), _) => line.push_str(&format!("; not updated: {}", printable(why))),
        (None, Some(head)) => line.push_str(&format!("; checked out {}", commit(head))),
        (None, None) => {}
    }
    line
}
