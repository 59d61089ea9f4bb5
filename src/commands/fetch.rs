//! `derrick fetch`: new commits of the upstreams for the repositories of a workspace.

use std::process::ExitCode;

use super::remote::{self, print, telling_no};
use super::table::shortened;
use crate::cli::ReportFormat;
use crate::cli::client::FetchArgs;
use crate::client::printable::{self, printable};
use crate::client::{Fetch, FetchedRepository, FetchedSubmodule};

/// Fetches and prints what came of it; fails where something was to be updated and was not, or did not come into
/// a submodule.
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
                    for submodule in &repository.submodules {
                        print(&told_of_submodule(submodule))?;
                    }
                }
            }
            ReportFormat::Json => print(&printable::json(&repositories))?,
        }
        let is_whole =
            |one: &FetchedSubmodule| one.not_fetched.is_none() && one.not_updated.is_none();
        let all = repositories
            .iter()
            .all(|one| one.not_updated.is_none() && one.submodules.iter().all(is_whole));
        Ok(ExitCode::from(u8::from(!all)))
    }))
}

/// One repository in words.
fn told(one: &FetchedRepository) -> String {
    format!(
        "{} {}: {}{}",
        printable(&one.path),
        printable(&one.reference),
        moved(one.old_commit.as_deref(), &one.new_commit),
        updated(one.head.as_deref(), one.not_updated.as_deref())
    )
}

/// One submodule in words, below its repository.
fn told_of_submodule(one: &FetchedSubmodule) -> String {
    let path = printable(&one.path);
    let moved = moved(one.old_commit.as_deref(), &one.new_commit);
    match &one.not_fetched {
        Some(why) => format!("  {path}: {moved}; not fetched: {}", printable(why)),
        None => {
            let updated = updated(one.head.as_deref(), one.not_updated.as_deref());
            format!("  {path}: {moved}{updated}")
        }
    }
}

fn moved(old: Option<&str>, new: &str) -> String {
    let before = old.map_or_else(|| "nothing".to_owned(), commit);
    format!("{before} -> {}", commit(new))
}

fn updated(head: Option<&str>, not_updated: Option<&str>) -> String {
    match (not_updated, head) {
        (Some(why), _) => format!("; not updated: {}", printable(why)),
        (None, Some(head)) => format!("; checked out {}", commit(head)),
        (None, None) => String::new(),
    }
}

fn commit(id: &str) -> String {
    shortened(&printable(id), 12).to_string()
}
