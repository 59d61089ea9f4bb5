//! In which of the three identity modes the tests run: derived from who runs them, as derrick does.

use std::fs;

use nix::unistd::{User, geteuid};

/// An identity mode of DESIGN.md, "Root or not".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Host root: 65,536 ids from a range of the sandbox's own.
    Root,
    /// An ordinary user with subordinate ids: 65,536 ids through `newuidmap`.
    Subordinate,
    /// An ordinary user without: root inside is the caller, and nobody else exists.
    Single,
}

/// The mode of this test process.
pub(crate) fn mode() -> Mode {
    if geteuid().is_root() {
        return Mode::Root;
    }
    if has_range("/etc/subuid") && has_range("/etc/subgid") {
        Mode::Subordinate
    } else {
        Mode::Single
    }
}

/// Whether the caller owns a range of the file, by name or by number; see subuid(5).
fn has_range(file: &str) -> bool {
    let uid = geteuid();
    let name = User::from_uid(uid)
        .ok()
        .flatten()
        .map(|user| user.name)
        .unwrap_or_default();
    fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .any(|line| {
            let mut fields = line.split(':');
            let owner = fields.next().unwrap_or_default();
            let count = fields
                .nth(1)
                .and_then(|count| count.parse::<u32>().ok())
                .unwrap_or(0);
            (owner == name || owner == uid.to_string()) && count >= 65_535
        })
}
