//! `derrick attach`: joins an exec that runs already.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use super::exec::finish;
use super::foreground::{Foreground, Hangup, Keyboard, Left, Printer, Signals};
use super::remote;
use super::terminal::usable_size;
use crate::cli::client::{AttachArgs, Begin, Input};
use crate::client::{Client, Exec, Stdin};
use crate::sys::terminal::Size;

/// Stays with the exec until its end; its own exit code, or 128 + the signal that ended it.
///
/// # Errors
/// Where derrick, and not the command, failed.
pub fn attach(arguments: &AttachArgs) -> anyhow::Result<ExitCode> {
    remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let id = client.exec_id(&workspace, &arguments.exec).await?;
        let signals = Signals::listen()?;
        let exec = client.exec(&workspace, &id).await?;
        let on_terminal = io::stdin().is_terminal();
        let input = match (arguments.input(), exec.stdin, exec.tty) {
            (Input::Own, Stdin::Open, true) if on_terminal => Some(Keyboard::raw()?),
            // The end of a pipe would be ctrl-d to it.
            (Input::Own, Stdin::Open, true) => None,
            (Input::Own, Stdin::Open, false) => Some(Keyboard::piped()),
            (Input::None, ..) | (_, Stdin::None | Stdin::Closed, _) => None,
        };
        if exec.tty {
            redraw(&client, &workspace, &exec).await;
        }
        let mut printer = Printer::own();
        let left = Foreground {
            client: &client,
            workspace: &workspace,
            exec: &exec,
            begin: match arguments.begin() {
                Begin::AtStart => 0,
                Begin::Now => exec.printed(),
            },
            input,
            printer: &mut printer,
            signals,
            hangup: Hangup::Leave,
        }
        .stay()
        .await;
        printer.finish().await;
        let left = match left? {
            // Who joins late has been told, and asked for no more than there is.
            Left::Torn(exec) => Left::Ended(exec),
            left => left,
        };
        Ok(finish(left, &exec.id))
    })
}

/// Tells the exec's terminal this one's size, by way of another, so that a program that fills the
/// screen draws it again. One that has ended meanwhile needs none.
async fn redraw(client: &Client, workspace: &str, exec: &Exec) {
    let Some(size) = usable_size() else { return };
    let other = Size {
        rows: size.rows.saturating_add(1),
        ..size
    };
    for size in [other, size] {
        let _ = client.resize(workspace, &exec.id, size).await;
    }
}
