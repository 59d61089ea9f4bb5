//! `derrick run`: one command in a throw-away workspace.
//!
//! The command never gets derrick's own descriptors, which would lead it to files and the terminal
//! of the host: bytes are carried over pipes, or over a terminal of the workspace's own.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{SignalKind, signal};

use super::terminal::{self, RawTerminal, window_size};
use crate::chain;
use crate::cli::{LogFormat, RunArgs};
use crate::config::WorkspaceConfig;
use crate::init::protocol::{Exit, Program, Status};
use crate::pool::exec::pipe;
use crate::pool::{Gone, Running, Sandbox, SandboxError};
use crate::state::{Floor, State, Use};
use crate::sys::terminal::resize;
use crate::workspace::{Asked, Launch, Workspaces};

/// Runs the command; its own exit code, or 128 + the signal that ended it.
///
/// # Errors
/// Where derrick, and not the command, failed.
pub fn run(arguments: &RunArgs) -> anyhow::Result<ExitCode> {
    super::log_to_stderr(LogFormat::Text, "warn");
    let config = super::config(arguments.workspace_config_path.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let code = runtime.block_on(run_in_throwaway(arguments, config));
    // A thread may still wait for input that nobody will read.
    runtime.shutdown_background();
    code
}

async fn run_in_throwaway(
    arguments: &RunArgs,
    config: WorkspaceConfig,
) -> anyhow::Result<ExitCode> {
    let program = arguments
        .command
        .iter()
        .map(|word| word.to_str().map(str::to_owned))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| anyhow!("the command is not UTF-8"))?;
    let state = State::open(
        &arguments.state.directory()?,
        Use::Throwaway,
        Floor::default(),
    )
    .await?;
    let result = async {
        let workspaces = Workspaces::open(Arc::new(config), state.clone(), Use::Throwaway).await?;
        let workspace = workspaces.create(Asked::default()).await?;
        let launch = Launch {
            program: Program::Arguments(program),
            directory: None,
            env: terminal::environment(),
            user: None,
            terminal: None,
        };
        let sandbox = workspace.sandbox().await?;
        let exec = workspace.exec(launch);
        let exit = if io::stdin().is_terminal() && io::stdout().is_terminal() {
            on_terminal(&sandbox, exec).await
        } else {
            over_pipes(&sandbox, exec).await
        };
        if let Err(error) = workspaces.remove(workspace.id()).await {
            let error = chain::text(&error);
            tracing::warn!(
                error,
                "cannot remove the throw-away workspace; the next start does"
            );
        }
        exit
    }
    .await;
    state.close().await;
    let code = match result {
        Ok(exit) => match exit.status {
            Status::Code(code) => code,
            Status::Signal(signal) => 128 + signal,
        },
        Err(error) => match error.downcast_ref() {
            Some(SandboxError::Gone(Gone::OutOfMemory)) => {
                eprintln!("derrick: the command was killed: it reached its limit on memory");
                128 + libc::SIGKILL
            }
            _ => return Err(error),
        },
    };
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

async fn over_pipes(sandbox: &Sandbox, exec: crate::init::protocol::Exec) -> anyhow::Result<Exit> {
    let (input, to_input) = pipe()?;
    let (from_output, output) = pipe()?;
    let (from_error, error) = pipe()?;
    let descriptors = [input.as_fd(), output.as_fd(), error.as_fd()];
    let running = sandbox.exec(exec, &descriptors).await?;
    drop((input, output, error));
    // Never joined: it ends with its input, which may be never.
    carry(io::stdin(), File::from(OwnedFd::from(to_input)));
    let carriers = [
        carry(File::from(OwnedFd::from(from_output)), io::stdout()),
        carry(File::from(OwnedFd::from(from_error)), io::stderr()),
    ];
    let exit = wait(running, None).await?;
    // The end of the sandbox closes what background children hold open.
    sandbox.end(Gone::Removed).await?;
    tokio::task::spawn_blocking(move || {
        carriers
            .into_iter()
            .for_each(|carrier| drop(carrier.join()))
    })
    .await?;
    Ok(exit)
}

async fn on_terminal(
    sandbox: &Sandbox,
    mut exec: crate::init::protocol::Exec,
) -> anyhow::Result<Exit> {
    exec.terminal = Some(window_size()?);
    let mut running = sandbox.exec(exec, &[]).await?;
    let terminal = running.started().await?;
    let master = File::from(terminal.context("the sandbox gave no terminal")?);
    let raw = RawTerminal::enter()?;
    carry(io::stdin(), master.try_clone()?);
    let output = carry(master.try_clone()?, io::stdout());
    let exit = wait(running, Some(&master)).await?;
    sandbox.end(Gone::Removed).await?;
    tokio::task::spawn_blocking(move || drop(output.join())).await?;
    drop(raw);
    Ok(exit)
}

/// Waits for the command's end; ctrl-c and SIGTERM end its whole tree, a new window size is passed on.
async fn wait(mut running: Running, terminal: Option<&File>) -> anyhow::Result<Exit> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut resized = signal(SignalKind::window_change())?;
    loop {
        tokio::select! {
            exit = running.exit() => return Ok(exit?),
            _ = terminate.recv() => running.kill().await?,
            _ = interrupt.recv() => running.kill().await?,
            _ = resized.recv() => {
                if let Some(master) = terminal {
                    resize(master.as_fd(), window_size()?)?;
                }
            }
        }
    }
}

/// Copies until the end of either side, unbuffered, on a thread of its own.
fn carry(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut chunk = vec![0; 64 * 1024];
        // A terminal's master gives EIO when its last slave is closed: that is its end.
        while let Ok(read @ 1..) = from.read(&mut chunk) {
            if to
                .write_all(&chunk[..read])
                .and_then(|()| to.flush())
                .is_err()
            {
                return;
            }
        }
    })
}
