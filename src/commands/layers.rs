//! `derrick layers`: what is in the layer store, and who uses it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::json;

use super::remote::{self, print, telling_no};
use super::table::{moment, shortened, table};
use crate::base::collect::{Kept, survey};
use crate::cli::ReportFormat;
use crate::cli::store::LayersArgs;
use crate::client::printable::{self, printable};

/// Lists the layers, those that were used last first.
///
/// # Errors
/// Why they cannot be listed.
pub fn layers(arguments: &LayersArgs) -> anyhow::Result<ExitCode> {
    match arguments.store.provider() {
        Some(provider) => telling_no(remote::talk(&provider, async |client| {
            list(arguments, &client.layers().await?)
        })),
        None => {
            let root = arguments.store.state.directory()?;
            check_there(&root)?;
            list(arguments, &survey(&root).context("listing the layers")?)
        }
    }
}

fn list(arguments: &LayersArgs, all: &[Kept]) -> anyhow::Result<ExitCode> {
    print(&match arguments.format.format() {
        ReportFormat::Json => printable::json(&json!({ "layers": all })),
        ReportFormat::Text => {
            let head = ["DIGEST", "SIZE", "CREATED", "USED", "USED BY", "WHAT"].map(str::to_owned);
            let rows: Vec<_> = [head].into_iter().chain(all.iter().map(row)).collect();
            table(&rows)
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What has no layers is no state directory: nothing is made of it here.
pub(super) fn check_there(root: &Path) -> anyhow::Result<()> {
    if root.join("layers").is_dir() {
        return Ok(());
    }
    bail!("{} is no state directory of derrick's", root.display());
}

fn row(layer: &Kept) -> [String; 6] {
    let users = match layer.used_by.as_slice() {
        [] => "-".to_owned(),
        [one] => shortened(one, 40),
        [one, others @ ..] => format!("{}, {} more", shortened(one, 40), others.len()),
    };
    [
        shortened(layer.digest.as_str(), 12),
        bytesize::ByteSize::b(layer.bytes)
            .display()
            .iec()
            .to_string(),
        moment(layer.created as f64),
        moment(layer.used as f64),
        users.replace('…', "..."),
        printable(&layer.description),
    ]
}
