//! `derrick exec`: one command in a workspace of a running provider.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::bail;
use serde_json::{Value, json};
use uuid::Uuid;

use super::foreground::{
    Foreground, Hangup, Kept, Keyboard, Left, Printer, Signals, Waiting, note,
};
use super::remote::{self, environment, print};
use super::terminal::{self, usable_size};
use crate::cli::ReportFormat;
use crate::cli::client::{ExecArgs, Input, Stay, TypedProgram, TypedStreams};
use crate::client::printable::{self, printable};
use crate::client::{Client, Error, Exec, Start, Stdin};
use crate::sys::terminal::Size;

/// Bytes of each stream that `--json` prints, as the API's `wait` does.
const KEPT: usize = 1 << 20;
/// Bytes of each stream that derrick is asked to keep while this process prints them, which may be slow:
/// the most that it keeps.
const KEPT_MEANWHILE: u64 = 1 << 30;
/// The size of a terminal that cannot be asked for its own.
const USUAL: Size = Size {
    rows: 24,
    columns: 80,
};

/// Runs the command; its own exit code, or 128 + the signal that ended it.
///
/// # Errors
/// Where derrick, and not the command, failed.
pub fn exec(arguments: &ExecArgs) -> anyhow::Result<ExitCode> {
    let on_terminal = arguments.streams() == TypedStreams::Terminal;
    if on_terminal && arguments.input() == Input::Own && !io::stdin().is_terminal() {
        bail!("stdin is no terminal, which -i with -t needs; leave -t out");
    }
    remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let mut signals = Signals::listen()?;
        let asked = asked(arguments);
        let exec = tokio::select! {
            exec = start(&client, &workspace, asked, arguments.output_limit) => exec?,
            code = signals.told_to_end() => {
                note("it may have started: 'derrick ls WORKSPACE' lists what runs");
                return Ok(code);
            }
        };
        match arguments.stay() {
            Stay::UntilStarted => {
                print(&match arguments.format() {
                    ReportFormat::Text => exec.id,
                    ReportFormat::Json => printable::json(&exec),
                })?;
                Ok(ExitCode::SUCCESS)
            }
            Stay::UntilEnded => stay(arguments, &client, &workspace, &exec, signals).await,
        }
    })
}

/// Starts it once, however often that is asked for. Where no `typed_limit` says how much is to be kept, it
/// is no more than the workspace allows.
async fn start(
    client: &Client,
    workspace: &str,
    mut asked: Start,
    typed_limit: Option<u64>,
) -> Result<Exec, Error> {
    let key = Uuid::now_v7();
    let mut waiting = Waiting::default();
    loop {
        match client.start(workspace, key, &asked).await {
            Err(error)
                if error.most().is_some()
                    && typed_limit.is_none()
                    && asked.output_limit > error.most() =>
            {
                asked.output_limit = error.most();
            }
            // It may have started: only the answer is missing.
            Err(error @ Error::Broken(_)) => waiting.wait(error).await?,
            Err(error @ Error::Unreachable { .. }) if waiting.has_begun() => {
                waiting.wait(error).await?;
            }
            started => return started,
        }
    }
}

fn asked(arguments: &ExecArgs) -> Start {
    let (argv, cmd) = match arguments.program() {
        TypedProgram::Arguments(words) => (Some(words), None),
        TypedProgram::Line(line) => (None, Some(line)),
    };
    let mut env = environment(&arguments.env);
    let tty = match arguments.streams() {
        TypedStreams::Apart => None,
        TypedStreams::Terminal => {
            for (name, value) in terminal::environment() {
                env.entry(name).or_insert(value);
            }
            Some(usable_size().unwrap_or(USUAL).into())
        }
    };
    Start {
        argv,
        cmd,
        cwd: arguments.cwd.clone(),
        env,
        user: arguments.user.as_deref().map(user),
        stdin: match (arguments.input(), arguments.streams()) {
            (Input::Own, _) => Some(Stdin::Open),
            (Input::None, TypedStreams::Apart) => Some(Stdin::None),
            (Input::None, TypedStreams::Terminal) => None,
        },
        tty,
        timeout: arguments.timeout.map(|timeout| timeout.as_secs_f64()),
        output_limit: match arguments.stay() {
            _ if arguments.output_limit.is_some() => arguments.output_limit,
            Stay::UntilEnded => Some(KEPT_MEANWHILE),
            Stay::UntilStarted => None,
        },
    }
}

/// A user is a name or a number, which are different things to the API.
fn user(typed: &str) -> Value {
    match typed.parse::<u32>() {
        Ok(number) => json!(number),
        Err(_) => json!(typed),
    }
}

async fn stay(
    arguments: &ExecArgs,
    client: &Client,
    workspace: &str,
    exec: &Exec,
    signals: Signals,
) -> anyhow::Result<ExitCode> {
    let input = match (arguments.input(), arguments.streams()) {
        (Input::None, _) => None,
        (Input::Own, TypedStreams::Apart) => Some(Keyboard::piped()),
        (Input::Own, TypedStreams::Terminal) => Some(Keyboard::raw()?),
    };
    let mut printer = match arguments.format() {
        ReportFormat::Text => Printer::own(),
        ReportFormat::Json => Printer::kept(KEPT),
    };
    let left = Foreground {
        client,
        workspace,
        exec,
        begin: 0,
        input,
        printer: &mut printer,
        signals,
        hangup: Hangup::Kill,
    }
    .stay()
    .await;
    let kept = printer.finish().await;
    let left = left?;
    if let (ReportFormat::Json, Left::Ended(exec) | Left::Torn(exec)) = (arguments.format(), &left)
    {
        print(&printable::json(&with_output(exec, &kept)?))?;
    }
    Ok(finish(left, &exec.id))
}

fn with_output(exec: &Exec, kept: &Kept) -> anyhow::Result<Value> {
    let mut object = serde_json::to_value(exec)?;
    object["output"] = serde_json::to_value(kept)?;
    Ok(object)
}

/// Says how the foreground was left where the exit code does not, and gives that.
pub(super) fn finish(left: Left, id: &str) -> ExitCode {
    let torn = matches!(left, Left::Torn(_));
    let exec = match left {
        Left::Ended(exec) | Left::Torn(exec) => exec,
        Left::Detached => {
            note(&format!("exec {id} goes on"));
            return ExitCode::SUCCESS;
        }
    };
    let (kind, detail) = match &exec.outcome {
        Some(outcome) => (outcome.kind.as_str(), outcome.detail.as_deref()),
        None => ("lost", None),
    };
    let said = match kind {
        "exited" | "signaled" => None,
        "deadline" => Some("its deadline passed, and it was killed"),
        "killed" => Some("it was killed"),
        "reset" => Some("its workspace was reset"),
        "removed" => Some("its workspace was removed"),
        "oom" => Some("its workspace reached its limit on memory, and all in it was killed"),
        "pids_limit" => Some("its workspace was at its limit on processes"),
        "disk_quota" => Some("its workspace's disk was full to its limit"),
        _ => Some("derrick lost it"),
    };
    if let Some(said) = said {
        note(&match detail {
            Some(detail) => format!("{said}: {}", printable(detail)),
            None => said.to_owned(),
        });
    }
    match exec.exit_code {
        // What was read is not what the command printed: its success would be taken for both.
        Some(code) if !torn => ExitCode::from(code),
        _ => super::failed(),
    }
}
