//! Programs on a terminal of their own, and what a person presses there.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

/// Runs a command line of the host on a terminal of its own, with these keys pressed when it is ready.
pub(crate) fn on_terminal(line: &OsStr, keys: &[u8]) -> String {
    typing(line, &[("ready", keys)])
}

/// Runs a command line of the host on a terminal of its own; when a line with a text is printed, the
/// keys that go with it are pressed.
///
/// What a program prints last before it ends may never be seen: the kernel throws away what is on its way
/// when the leader of a terminal's session exits (tty_ldisc_hangup in its source). So a program whose last
/// words count waits for a key after them.
pub(crate) fn typing(line: &OsStr, steps: &[(&str, &[u8])]) -> String {
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--echo", "never", "--command"])
        .arg(line)
        .arg("/dev/null")
        .env("TERM", "xterm-256color")
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cannot start script");
    let mut stdin = script.stdin.take().expect("stdin is a pipe");
    let mut stdout = BufReader::new(script.stdout.take().expect("stdout is a pipe"));
    let mut printed = String::new();
    for (expected, keys) in steps {
        while !printed.contains(expected) {
            let read = stdout.read_line(&mut printed).expect("script prints");
            assert!(read > 0, "it ended after {printed:?}");
        }
        stdin.write_all(keys).expect("script reads");
    }
    stdout.read_to_string(&mut printed).expect("script prints");
    drop(stdin);
    let status = script.wait().expect("script ends");
    assert!(status.success(), "{status}\n{printed}");
    printed
}

/// The words as one line for a shell.
pub(crate) fn quoted(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")))
        .collect::<Vec<_>>()
        .join(" ")
}
