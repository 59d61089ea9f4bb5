//! What every bench needs: a running derrick, a client with one kept connection, a directory on disk.
//!
//! The client is written for measuring: a request is one `write`, an answer is read as it comes, and
//! nothing is parsed but the status and the length. What a bench measures is then derrick's time and
//! the two loopback hops, not a client library's.

#![allow(
    dead_code,
    unused_imports,
    reason = "each bench is a crate of its own and uses a part of this"
)]

mod client;
pub(crate) mod floor;
mod provider;
mod scratch;

use std::time::{Duration, Instant};

pub(crate) use client::{Client, Workspace};
pub(crate) use floor::Floor;
pub(crate) use provider::Provider;
pub(crate) use scratch::Scratch;

/// The command of every bench, run by the workspace's shell.
pub(crate) const COMMAND: &str = "true";

/// What derrick gives every command: a shell reads more or fewer files at its start by its environment.
pub(crate) const ENVIRONMENT: [(&str, &str); 5] = [
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("LOGNAME", "root"),
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("USER", "root"),
];

/// The number behind `--rounds`.
pub(crate) fn rounds(arguments: &mut impl Iterator<Item = String>) -> usize {
    arguments
        .next()
        .and_then(|number| number.parse().ok())
        .expect("--rounds takes a number")
}

/// How long `step` takes.
pub(crate) fn time<T>(step: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let result = step();
    (started.elapsed(), result)
}

/// The sum of what each of `iterations` calls of `step` measured, for criterion's `iter_custom`:
/// what a step does besides is left out.
pub(crate) fn sum(iterations: u64, mut step: impl FnMut() -> Duration) -> Duration {
    (0..iterations).map(|_| step()).sum()
}
