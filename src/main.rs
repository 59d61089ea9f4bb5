//! Decides what this process is: the spawner, a program that derrick confines, or the command line.

use std::process::ExitCode;

use clap::Parser;

use derrick::cli::Cli;
use derrick::sandbox::confined;
use derrick::{commands, spawner};

fn main() -> ExitCode {
    // Before anything that could start a thread.
    let name = std::env::args_os().next().unwrap_or_default();
    let code = |code: i32| ExitCode::from(u8::try_from(code).unwrap_or(1));
    if name == spawner::NAME {
        return code(spawner::main());
    }
    if name == confined::NAME {
        return code(confined::main());
    }
    match commands::execute(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("derrick: {error:#}");
            commands::failed()
        }
    }
}
