//! What derrick does: one file for each word of the command line.

pub mod attach;
pub mod bundle;
pub mod capacity;
pub mod check;
pub mod commit;
pub mod cp;
pub mod create;
pub mod diff;
pub mod exec;
pub mod fetch;
mod foreground;
pub mod gc;
pub mod layers;
pub mod limits;
pub mod logs;
pub mod ls;
pub mod pause;
pub mod push;
mod remote;
pub mod renew;
pub mod reset;
pub mod rm;
pub mod run;
pub mod serve;
pub mod snapshot;
mod table;
mod terminal;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use crate::cli::{Cli, Command, LogFormat};
use crate::config::WorkspaceConfig;

/// Exit code for a failure of derrick itself, as far from a command's own as shells allow.
const FAILED: u8 = 125;

/// Does what the command line says.
///
/// # Errors
/// Why it could not be done, to be printed once.
pub fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        None => serve::serve(&cli.serve),
        Some(Command::Run(arguments)) => run::run(&arguments),
        Some(Command::Check(arguments)) => Ok(check::check(
            &arguments.state.directory()?,
            arguments.format(),
        )),
        Some(Command::Schema) => {
            println!("{:#}", WorkspaceConfig::json_schema());
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Create(arguments)) => create::create(&arguments),
        Some(Command::Ls(arguments)) => ls::ls(&arguments),
        Some(Command::Capacity(arguments)) => capacity::capacity(&arguments),
        Some(Command::Exec(arguments)) => exec::exec(&arguments),
        Some(Command::Attach(arguments)) => attach::attach(&arguments),
        Some(Command::Logs(arguments)) => logs::logs(&arguments),
        Some(Command::Cp(arguments)) => cp::cp(&arguments),
        Some(Command::Diff(arguments)) => diff::diff(&arguments),
        Some(Command::Limits(arguments)) => limits::limits(&arguments),
        Some(Command::Renew(arguments)) => renew::renew(&arguments),
        Some(Command::Gc(arguments)) => gc::gc(&arguments),
        Some(Command::Layers(arguments)) => layers::layers(&arguments),
        Some(Command::Fetch(arguments)) => fetch::fetch(&arguments),
        Some(Command::Commit(arguments)) => commit::commit(&arguments),
        Some(Command::Bundle(arguments)) => bundle::bundle(&arguments),
        Some(Command::Push(arguments)) => push::push(&arguments),
        Some(Command::Reset(arguments)) => reset::reset(&arguments),
        Some(Command::Snapshot(arguments)) => snapshot::snapshot(&arguments),
        Some(Command::Snapshots(arguments)) => snapshot::snapshots(&arguments),
        Some(Command::Show(arguments)) => snapshot::show(&arguments),
        Some(Command::Label(arguments)) => snapshot::label(&arguments),
        Some(Command::Forget(arguments)) => snapshot::forget(&arguments),
        Some(Command::Export(arguments)) => snapshot::export(&arguments),
        Some(Command::Import(arguments)) => snapshot::import(&arguments),
        Some(Command::Fork(arguments)) => snapshot::fork(&arguments),
        Some(Command::Fence(arguments)) => snapshot::fence(&arguments),
        Some(Command::Pause(arguments)) => pause::pause(&arguments),
        Some(Command::Resume(arguments)) => pause::resume(&arguments),
        Some(Command::Rm(arguments)) => rm::rm(&arguments),
    }
}

/// The exit code for a failure of derrick itself.
#[must_use]
pub fn failed() -> ExitCode {
    ExitCode::from(FAILED)
}

fn config(file: Option<&Path>) -> anyhow::Result<WorkspaceConfig> {
    match file {
        Some(file) => Ok(WorkspaceConfig::from_file(file)?),
        None => Ok(WorkspaceConfig::built_in()),
    }
}

fn log_to_stderr(format: LogFormat, default_level: &str) {
    use tracing_subscriber::EnvFilter;
    let asked = std::env::var_os("DERRICK_LOG").filter(|asked| !asked.is_empty());
    let parsed = asked.map(|asked| {
        let text = asked.to_str().ok_or_else(|| "not UTF-8".to_owned())?;
        EnvFilter::try_new(text).map_err(|error| error.to_string())
    });
    let (filter, flaw) = match parsed {
        Some(Ok(filter)) => (filter, None),
        Some(Err(flaw)) => (EnvFilter::new(default_level), Some(flaw)),
        None => (EnvFilter::new(default_level), None),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // It would tell of a line that cannot be written with another one, and panic over that.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    if let Some(flaw) = flaw {
        tracing::warn!("DERRICK_LOG is no filter and does not count: {flaw}");
    }
}
