//! `derrick logs`: what an exec has printed, and what it goes on to print.

use std::process::ExitCode;

use super::foreground::{Printer, Waiting, note_gap};
use super::remote::{self, NoReader, telling_no};
use crate::cli::client::{LogsArgs, Until};
use crate::client::{Client, Error, Event, Stream};

/// Prints the output, each stream to its own, or one of them to stdout.
///
/// # Errors
/// Why it cannot be printed.
pub fn logs(arguments: &LogsArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let exec = client.exec_id(&workspace, &arguments.exec).await?;
        let mut printing = Printing {
            client: &client,
            arguments,
            workspace: &workspace,
            exec: &exec,
            position: 0,
            printer: Printer::own(),
        };
        let printed = printing.go_on().await;
        printing.printer.finish().await;
        match printed {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(Stop::NoReader) => Err(NoReader.into()),
            Err(Stop::Failed(error)) => Err(error.into()),
        }
    }))
}

struct Printing<'a> {
    client: &'a Client,
    arguments: &'a LogsArgs,
    workspace: &'a str,
    exec: &'a str,
    /// Offset of the next byte.
    position: u64,
    printer: Printer,
}

/// Why printing ended too early.
enum Stop {
    Failed(Error),
    /// Nobody reads it any more.
    NoReader,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Printing<'_> {
    /// Over as many connections as it takes.
    async fn go_on(&mut self) -> Result<(), Stop> {
        let mut waiting = Waiting::default();
        loop {
            let position = self.position;
            match self.over_one_connection().await {
                Err(Stop::Failed(error @ Error::Unreachable { .. })) if !waiting.has_begun() => {
                    return Err(error.into());
                }
                Err(Stop::Failed(error)) if error.is_passing() => {
                    if self.position > position {
                        waiting = Waiting::default();
                    }
                    waiting.wait(error).await?;
                }
                done => return done,
            }
        }
    }

    async fn over_one_connection(&mut self) -> Result<(), Stop> {
        let (stream, until) = (self.arguments.stream, self.arguments.until());
        let mut events = self
            .client
            .output(self.workspace, self.exec, stream, self.position, until)
            .await?;
        loop {
            match events.next().await? {
                Some(Event::Output {
                    stream: from,
                    bytes,
                    next,
                }) => {
                    let to = match stream {
                        None => from,
                        Some(_) => Stream::Stdout,
                    };
                    let printed = self.printer.print(to, bytes).await;
                    printed.map_err(|NoReader| Stop::NoReader)?;
                    self.position = next;
                }
                Some(Event::Gap { from, to }) => {
                    note_gap(from, to);
                    self.position = to;
                }
                Some(Event::End(_)) => return Ok(()),
                None if until == Until::Now => return Ok(()),
                None => return Err(Error::Broken("it ended before the command".into()).into()),
            }
        }
    }
}
