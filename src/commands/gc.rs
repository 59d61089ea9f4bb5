//! `derrick gc`: removes layers that nothing uses.

use std::process::ExitCode;

use anyhow::Context;

use super::remote::print;
use super::table::shortened;
use crate::base::collect::{Bounds, Mode, collect};
use crate::cli::client::GcArgs;
use crate::cli::{LogFormat, ReportFormat};
use crate::client::printable;
use crate::state::{Floor, State, Use};

/// Collects and prints what went.
///
/// # Errors
/// Why it is not known what may go, or why it did not.
pub fn gc(arguments: &GcArgs) -> anyhow::Result<ExitCode> {
    super::log_to_stderr(LogFormat::Text, "warn");
    let root = arguments.state.directory()?;
    super::layers::check_there(&root)?;
    let bounds = Bounds {
        size: arguments.max_size.map(|size| size.as_u64()),
        age: arguments.max_age,
    };
    let mode = match arguments.removes() {
        true => Mode::Remove,
        false => Mode::Tell,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let collected = runtime.block_on(async {
        let state = State::open(&root, Use::Throwaway, Floor::default()).await?;
        let collecting = state.clone();
        let collected =
            tokio::task::spawn_blocking(move || collect(&collecting, bounds, mode)).await;
        // Waits until what went is gone.
        state.close().await;
        anyhow::Ok(collected?.context("collecting layers")?)
    })?;
    let size = |bytes| bytesize::ByteSize::b(bytes).display().iec().to_string();
    print(&match arguments.format.format() {
        ReportFormat::Json => printable::json(&collected),
        ReportFormat::Text => {
            let lines = collected
                .removed
                .iter()
                .map(|digest| shortened(digest.as_str(), 12));
            let word = match mode {
                Mode::Remove => "freed",
                Mode::Tell => "to be freed",
            };
            let (freed, left) = (size(collected.freed), size(collected.left));
            lines
                .chain([format!("{freed} {word}, {left} left")])
                .collect::<Vec<_>>()
                .join("\n")
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
