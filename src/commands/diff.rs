//! `derrick diff`: what changed in a workspace since setup.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use futures_util::StreamExt;
use serde_json::Value;

use super::remote::{self, complain, printed, telling_no};
use crate::cli::client::{DiffArgs, Shape};
use crate::client::printable::{self, printable};

/// Prints the changes as a list, as a patch, or as the answer is.
///
/// # Errors
/// Why they are not known.
pub fn diff(arguments: &DiffArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        match arguments.shape() {
            Shape::List => list(
                &client
                    .changes(&workspace, arguments.path.as_deref())
                    .await?,
            )?,
            Shape::Json => {
                let told = client
                    .changes(&workspace, arguments.path.as_deref())
                    .await?;
                remote::print(&printable::json(&told))?;
            }
            Shape::Patch => {
                let query = arguments.query();
                let (left_out, mut pieces) = client.patch(&workspace, &query).await?;
                let mut stdout = std::io::stdout().lock();
                let is_terminal = stdout.is_terminal();
                let mut lines = Lines::default();
                while let Some(piece) = pieces.next().await {
                    let piece = piece?;
                    // Anything but a terminal gets it as it is.
                    let shown = if is_terminal {
                        lines.take(&piece)
                    } else {
                        piece.to_vec()
                    };
                    printed(stdout.write_all(&shown))?;
                }
                printed(
                    stdout
                        .write_all(&lines.rest())
                        .and_then(|()| stdout.flush()),
                )?;
                if left_out > 0 {
                    complain(&format!(
                        "{left_out} changes are not in the patch; it names them"
                    ));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }))
}

/// A line for each: a letter, as git-status(1) has it, and the path.
fn list(told: &Value) -> anyhow::Result<()> {
    let entries = |name: &str| told[name].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| printable(value.as_str().unwrap_or_default());
    let mut lines = Vec::new();
    let mut ignored = entries("ignored");
    for (mark, entry) in entries("changes")
        .iter()
        .map(|entry| ("", entry))
        .chain(ignored.iter_mut().map(|entry| ("ignored", &*entry)))
    {
        let letter = match entry["change"].as_str() {
            Some("added") => 'A',
            Some("deleted") => 'D',
            Some("renamed") => 'R',
            Some("type") => 'T',
            Some("mode" | "owner") => 'P',
            _ => 'M',
        };
        let mut line = format!("{letter} {}", text(&entry["path"]));
        if entry["from"].is_object() {
            line = format!("{line} from {}", text(&entry["from"]["path"]));
        }
        let sensitive = text(&entry["sensitive"]);
        let notes: Vec<_> = [mark, &sensitive]
            .into_iter()
            .filter(|note| !note.is_empty())
            .collect();
        if !notes.is_empty() {
            line = format!("{line} ({})", notes.join(", "));
        }
        lines.push(line);
    }
    for git in entries("git") {
        let number = |name: &str| git[name].as_u64().unwrap_or(0);
        let files = number("added") + number("modified") + number("deleted");
        lines.push(format!(
            "G {} ({files} files of git's own)",
            text(&git["path"])
        ));
        for file in git["sensitive"].as_array().into_iter().flatten() {
            lines.push(format!(
                "! {} ({})",
                text(&file["path"]),
                text(&file["reason"])
            ));
        }
    }
    for place in entries("too_deep") {
        lines.push(format!(
            "? {} (more is in it, too deep for a path or too many names)",
            text(&place["path"])
        ));
    }
    if lines.is_empty() {
        return Ok(());
    }
    remote::print(&lines.join("\n"))
}

/// Lines of a text that came in pieces, made fit for a terminal.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(&mut self, piece: &[u8]) -> Vec<u8> {
        self.0.extend(piece);
        let end = self.0.iter().rposition(|byte| *byte == b'\n');
        let rest = self.0.split_off(end.map_or(0, |end| end + 1));
        let whole = std::mem::replace(&mut self.0, rest);
        let mut shown = Vec::new();
        for line in whole.split_inclusive(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
            shown.extend(printable(&line).into_bytes());
            shown.push(b'\n');
        }
        shown
    }

    fn rest(&mut self) -> Vec<u8> {
        let rest = std::mem::take(&mut self.0);
        printable(&String::from_utf8_lossy(&rest)).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_patch_steer_no_terminal_however_they_come() {
        let mut lines = Lines::default();
        let mut shown = Vec::new();
        for piece in [&b"+a\x1b["[..], b"2J\n", b"-b\n+c", b"\xff"] {
            shown.extend(lines.take(piece));
        }
        shown.extend(lines.rest());
        let shown = String::from_utf8(shown).expect("text");
        assert_eq!(shown, "+a\\u{1b}[2J\n-b\n+c\u{fffd}");
    }
}
