//! What every suite needs: a running derrick, a client for its API, a git server, a look at the host.
//!
//! Nothing here sleeps. What has to be waited for is a line on a pipe, the end of a process or the
//! answer to a request, and every wait has a [`GUARD`], so that a defect fails a test and does not
//! hang it. A missing prerequisite panics with what to install.

#![expect(
    dead_code,
    reason = "each suite is a crate of its own and uses a part of this"
)]

mod acceptor;
pub(crate) mod accounts;
mod api;
mod attempts;
pub(crate) mod bare;
mod base;
mod census;
pub(crate) mod cycles;
mod derrick;
mod git_server;
mod host;
pub(crate) mod lfs_server;
mod limits;
mod mode;
pub(crate) mod moments;
mod narrow;
mod proxy;
mod scratch;
mod scripted;
pub(crate) mod secrets;
mod ssh_server;
pub(crate) mod submodules;
mod terminal;
mod tls;
pub(crate) mod trees;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

#[expect(unused_imports, reason = "each suite uses a part of this")]
pub(crate) use self::{
    api::{Answer, Api, Event, Events, Exec, Opened, Pending, Ran, Workspace, problem},
    attempts::{
        Attempt, Host, assert_refused, assert_refused_in, on_the_host, program, results, sockets,
    },
    base::{busybox_and, busybox_directory, directory, entry, snapshot, tarball, try_create},
    census::{Census, groups_named, groups_of, loop_devices},
    derrick::{Derrick, Launch, binary},
    git_server::{GitRequest, GitServer, Upstream, git},
    host::{
        Lives, cgroup_directories, children, descendants, digest_of_tree, entries, holders,
        is_remover, is_zombie, mounts_below, namespaces, open_files, process_with_argument,
        seen_from_the_host, uid_map, wait_for, wait_until_empty, wait_until_gone,
    },
    limits::{BRANCHING, GREEDY, MEMORY, PIDS, STOPS_WITH_ITS_CHILD, enforced, python},
    mode::{Mode, mode},
    narrow::Narrow,
    proxy::Proxy,
    scratch::{Scratch, as_owner},
    scripted::Scripted,
    ssh_server::SshServer,
    terminal::{on_terminal, quoted, typing},
    tls::TlsServer,
};

/// No single wait of a test takes longer; what does is a defect.
pub(crate) const GUARD: Duration = Duration::from_secs(120);

/// A root filesystem that `tests/run` made: `busybox.tar` or `debian.tar.zst`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let directory = std::env::var_os("DERRICK_FIXTURES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/fixtures"),
        PathBuf::from,
    );
    let path = directory.join(name);
    assert!(
        path.is_file(),
        "{} is missing; start the tests with tests/run, which makes it",
        path.display()
    );
    path
}

/// The checkout, or the copy of it that `tests/run` made for users who may not read it.
pub(crate) fn source() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// Runs a program of the host to its end; fails the test unless it succeeds.
pub(crate) fn succeed(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}; tests/run installs it"));
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    assert!(
        status.success(),
        "{command:?} ended with {status}\n{stdout}{}",
        String::from_utf8_lossy(&stderr)
    );
    stdout
}
