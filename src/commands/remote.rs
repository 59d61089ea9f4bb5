//! What the commands share that talk to a running provider: the runtime, exit codes, printing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use tokio::signal::unix::SignalKind;

use crate::cli::client::{ProviderArgs, Variable};
use crate::client::{Client, Error};

/// Exit code for a no of the provider's.
const REFUSED: u8 = 1;
/// As a shell reports a program that SIGPIPE ended: the reader of its output is gone.
const NO_READER: u8 = 128 + 13;

/// Does `work` with a client of the provider.
pub(super) fn talk<W: Future<Output = anyhow::Result<ExitCode>>>(
    provider: &ProviderArgs,
    work: impl FnOnce(Client) -> W,
) -> anyhow::Result<ExitCode> {
    let client = Client::new(provider.server.clone(), provider.token_file.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(work(client));
    // A thread may still wait for input that nobody will read.
    runtime.shutdown_background();
    match code {
        Err(error) if error.is::<NoReader>() => Ok(ExitCode::from(NO_READER)),
        code => code,
    }
}

/// Nobody reads what is printed any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output")]
pub(super) struct NoReader;

/// Tells that apart from other failures to print.
pub(super) fn printed<T>(result: io::Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => NoReader.into(),
        _ => anyhow::Error::from(error).context("printing"),
    })
}

/// Gives a no of the provider's its own exit code.
pub(super) fn telling_no(result: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    match result {
        Err(error) if is_no(&error) => {
            complain(&format!("{error:#}"));
            Ok(refused())
        }
        result => result,
    }
}

/// Whether the provider said no.
pub(super) fn is_no(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(Error::is_no)
}

/// The exit code for a no of the provider's.
pub(super) fn refused() -> ExitCode {
    ExitCode::from(REFUSED)
}

/// The exit code of a process that a signal told to end, as a shell reports it.
pub(super) fn ended_by(signal: SignalKind) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal.as_raw_value()).unwrap_or(u8::MAX))
}

/// A line on stdout, at once.
pub(super) fn print(line: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    printed(writeln!(stdout, "{line}").and_then(|()| stdout.flush()))
}

/// A line on stderr; where that is gone, nobody is there to be told.
pub(super) fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "derrick: {line}");
}

/// The environment that was typed; of two variables of one name the later one counts.
pub(super) fn environment(typed: &[Variable]) -> BTreeMap<String, String> {
    let pair = |variable: &Variable| (variable.name.clone(), variable.value.clone());
    typed.iter().map(pair).collect()
}
