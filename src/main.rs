//! Decides what this process is: the spawner, or the command line.

use std::process::ExitCode;

use clap::Parser;

use derrick::cli::Cli;
use derrick::{commands, spawner};

fn main() -> ExitCode {
    // Before anything that could start a thread.
    if std::env::args_os()
        .next()
        .is_some_and(|name| name == spawner::NAME)
    {
        return ExitCode::from(u8::try_from(spawner::main()).unwrap_or(1));
    }
    match commands::execute(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("derrick: {error:#}");
            commands::failed()
        }
    }
}
