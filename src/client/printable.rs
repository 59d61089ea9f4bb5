//! Text that a workspace may have chosen, made fit for a person's terminal.
//!
//! A control character in the name of a file or in an error would be obeyed by the terminal, and
//! one that turns the direction of writing would show a name as another one. Both are escaped. What
//! a command prints is not text in this sense: `exec`, `attach` and `logs` pass it through.

use std::fmt::Write as _;

use serde::Serialize;

use crate::shown::is_shown;

/// The text on one line, with control and direction characters as `\u{…}`.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if !is_shown(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// A value as JSON on one line, with the same characters escaped as JSON does it; they can stand in
/// its texts only.
///
/// # Panics
/// Never for what was read as JSON.
#[must_use]
pub fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("it has texts for keys");
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if !is_shown(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                // Writing to a text cannot fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped_and_the_rest_is_not() {
        for (text, expected) in [
            ("plain é 日本", "plain é 日本"),
            ("a\nb\tc\r", r"a\nb\tc\r"),
            ("\x1b[2J\x07\x7f", r"\u{1b}[2J\u{7}\u{7f}"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("exe\u{202e}txt", r"exe\u{202e}txt"),
            ("a\u{200b}\u{feff}", r"a\u{200b}\u{feff}"),
        ] {
            assert_eq!(printable(text), expected);
        }
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({ "a\u{9b}": ["\u{1b}[m", "\u{202e}", "\u{e0041}", "é"] });
        let text = json(&value);
        assert!(text.chars().all(is_shown), "{text}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }
}
