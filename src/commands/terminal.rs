//! The user's own terminal, for commands that have one of a workspace's.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::sys::terminal::Size;

/// What programs ask a terminal's environment for.
pub(super) fn environment() -> BTreeMap<String, String> {
    std::env::var("TERM")
        .map(|term| ("TERM".to_owned(), term))
        .into_iter()
        .collect()
}

/// The size of the terminal that stdout is.
pub(super) fn window_size() -> io::Result<Size> {
    let size = tcgetwinsize(io::stdout())?;
    Ok(Size {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// The same, if there is a terminal and it has a size, which some have not.
pub(super) fn usable_size() -> Option<Size> {
    let size = window_size().ok()?;
    (size.rows > 0 && size.columns > 0).then_some(size)
}

/// Whether the terminal is raw now.
static RAW: AtomicBool = AtomicBool::new(false);

/// What ends a line of derrick's own: on a raw terminal a new line does not begin at the left by itself.
pub(super) fn line_end() -> &'static str {
    if RAW.load(Ordering::Relaxed) {
        "\r\n"
    } else {
        "\n"
    }
}

/// The user's terminal in raw mode, until this is dropped.
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        RAW.store(true, Ordering::Relaxed);
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing better can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
        RAW.store(false, Ordering::Relaxed);
    }
}

/// Finds ctrl-p ctrl-q in what is typed, as docker has it; those two do not reach the command.
#[derive(Debug, Default)]
pub(super) struct LeavingKeys {
    /// A ctrl-p came and waits for what follows it.
    held: bool,
}

/// What was typed, looked through.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// This is for the command.
    Keys(Vec<u8>),
    /// Up to here for the command; then the user left.
    Leave(Vec<u8>),
}

impl LeavingKeys {
    const CTRL_P: u8 = 0x10;
    const CTRL_Q: u8 = 0x11;

    /// Looks through the next piece.
    pub(super) fn look(&mut self, typed: &[u8]) -> Typed {
        let mut keys = Vec::with_capacity(typed.len() + 1);
        for &key in typed {
            match (self.held, key) {
                (true, Self::CTRL_Q) => return Typed::Leave(keys),
                (false, Self::CTRL_P) => self.held = true,
                (true, Self::CTRL_P) => keys.push(Self::CTRL_P),
                (held, key) => {
                    if held {
                        keys.push(Self::CTRL_P);
                    }
                    self.held = false;
                    keys.push(key);
                }
            }
        }
        Typed::Keys(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_p_ctrl_q_leaves_and_everything_else_reaches_the_command() {
        let keys = |bytes: &[u8]| Typed::Keys(bytes.to_vec());
        for (pieces, expected) in [
            (&[&b"abc"[..]][..], vec![keys(b"abc")]),
            (&[b"a\x10\x11b"], vec![Typed::Leave(b"a".to_vec())]),
            (
                &[b"\x10", b"\x11"],
                vec![keys(b""), Typed::Leave(b"".to_vec())],
            ),
            (&[b"\x10", b"x"], vec![keys(b""), keys(b"\x10x")]),
            (&[b"\x11\x10x\x11"], vec![keys(b"\x11\x10x\x11")]),
            (&[b"\x10\x10\x11"], vec![Typed::Leave(b"\x10".to_vec())]),
        ] {
            let mut leaving = LeavingKeys::default();
            let found: Vec<_> = pieces.iter().map(|piece| leaving.look(piece)).collect();
            assert_eq!(found, expected, "{pieces:?}");
        }
    }
}
