//! `derrick gc`: removes layers that nothing uses.

use std::process::ExitCode;

use anyhow::Context;

use super::remote::{self, print, telling_no};
use super::table::shortened;
use crate::base::collect::{Bounds, Collected, Mode, collect};
use crate::cli::store::GcArgs;
use crate::cli::{LogFormat, ReportFormat};
use crate::client::printable;
use crate::state::{Floor, State, Use};

/// Collects and prints what went.
///
/// # Errors
/// Why it is not known what may go, or why it did not.
pub fn gc(arguments: &GcArgs) -> anyhow::Result<ExitCode> {
    let bounds = Bounds {
        size: arguments.max_size.map(|size| size.as_u64()),
        age: arguments.max_age,
    };
    let mode = match arguments.removes() {
        true => Mode::Remove,
        false => Mode::Tell,
    };
    match arguments.store.provider() {
        Some(provider) => telling_no(remote::talk(&provider, async |client| {
            tell(arguments, mode, &client.collect(bounds, mode).await?)
        })),
        None => tell(arguments, mode, &collect_here(arguments, bounds, mode)?),
    }
}

/// Collects in a state directory, beside a provider that works on it if one does.
fn collect_here(arguments: &GcArgs, bounds: Bounds, mode: Mode) -> anyhow::Result<Collected> {
    super::log_to_stderr(LogFormat::Text, "warn");
    let root = arguments.store.state.directory()?;
    super::layers::check_there(&root)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let state = State::open(&root, Use::Throwaway, Floor::default()).await?;
        let collecting = state.clone();
        let collected =
            tokio::task::spawn_blocking(move || collect(&collecting, bounds, mode)).await;
        // Waits until what went is gone.
        state.close().await;
        collected?.context("collecting layers")
    })
}

fn tell(arguments: &GcArgs, mode: Mode, collected: &Collected) -> anyhow::Result<ExitCode> {
    let size = |bytes| bytesize::ByteSize::b(bytes).display().iec().to_string();
    print(&match arguments.format.format() {
        ReportFormat::Json => printable::json(collected),
        ReportFormat::Text => {
            let lines = collected
                .removed
                .iter()
                .map(|digest| shortened(digest.as_str(), 12));
            let word = match mode {
                Mode::Remove => "freed",
                Mode::Tell => "to be freed",
            };
            let mirrors = match (collected.mirrors, mode) {
                (0, _) => None,
                (count, Mode::Remove) => Some(format!("mirrors removed: {count}")),
                (count, Mode::Tell) => Some(format!("mirrors to be removed: {count}")),
            };
            let (freed, left) = (size(collected.freed), size(collected.left));
            lines
                .chain(mirrors)
                .chain([format!("{freed} {word}, {left} left")])
                .collect::<Vec<_>>()
                .join("\n")
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
