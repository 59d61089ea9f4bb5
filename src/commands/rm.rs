//! `derrick rm`: ends workspaces.

use std::collections::BTreeSet;
use std::process::ExitCode;

use serde_json::json;

use super::remote::{self, complain, is_no, print, refused};
use crate::cli::ReportFormat;
use crate::cli::client::{IdPart, RmArgs};
use crate::client::{Client, Error, printable};

/// Removes each of the workspaces, whatever becomes of the others.
///
/// # Errors
/// Why derrick cannot be reached.
pub fn rm(arguments: &RmArgs) -> anyhow::Result<ExitCode> {
    remote::talk(&arguments.provider, async |client| {
        let mut removed = BTreeSet::new();
        let mut code = ExitCode::SUCCESS;
        for part in &arguments.workspaces {
            let result = remove(&client, part, &removed).await;
            match result.map_err(anyhow::Error::from) {
                Ok(id) => {
                    if arguments.format.format() == ReportFormat::Text && !removed.contains(&id) {
                        print(&id)?;
                    }
                    removed.insert(id);
                }
                Err(error) if is_no(&error) => {
                    complain(&format!("{error:#}"));
                    code = refused();
                }
                // The others would fare no better.
                Err(error) => return Err(error),
            }
        }
        if arguments.format.format() == ReportFormat::Json {
            print(&printable::json(&json!({ "removed": removed })))?;
        }
        Ok(code)
    })
}

async fn remove(
    client: &Client,
    part: &IdPart,
    removed: &BTreeSet<String>,
) -> Result<String, Error> {
    // The same one may be named twice.
    if let Some(id) = removed.get(part.as_str()) {
        return Ok(id.clone());
    }
    let id = client.workspace_id(part).await?;
    match client.remove(&id).await? {
        true => Ok(id),
        false => Err(Error::NoneSuch {
            what: "workspace",
            part: id,
        }),
    }
}
