//! `derrick bundle`: a repository of a workspace as a bundle, on standard output.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::bail;
use futures_util::StreamExt;

use super::remote::{self, printed, telling_no};
use crate::cli::client::BundleArgs;

/// Prints the bundle as it comes.
///
/// # Errors
/// Why there is none, or not all of it.
pub fn bundle(arguments: &BundleArgs) -> anyhow::Result<ExitCode> {
    if std::io::stdout().is_terminal() {
        bail!("stdout is a terminal; send the bundle to a file");
    }
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let path = arguments.path.clone().map(|path| ("path", path));
        let reference = arguments.reference.clone();
        let reference = reference.map(|reference| ("reference", reference));
        let query: Vec<_> = path.into_iter().chain(reference).collect();
        let mut pieces = client.bundle(&workspace, &query).await?;
        let mut stdout = std::io::stdout().lock();
        while let Some(piece) = pieces.next().await {
            printed(stdout.write_all(&piece?))?;
        }
        printed(stdout.flush())?;
        Ok(ExitCode::SUCCESS)
    }))
}
