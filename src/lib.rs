//! derrick: workspaces for autonomous coding agents on a bare Linux host.
//!
//! Reading order, from the outside in; each module imports only from those below it:
//!
//! 1. [`cli`] and [`commands`]: what a person may type, and what each word does.
//! 2. [`client`]: what `commands` asks a provider that runs already, over HTTP.
//! 3. [`server`]: the HTTP front end; parses, calls the provider, replies, nothing else.
//! 4. [`provider`]: what a provisioning mode must do; `ns` is the mode made here.
//! 5. [`workspace`]: what the user holds: an id, its sandbox, its execs, its files.
//! 6. [`base`], then [`state`], [`git`], [`pool`]: root filesystems and layers, the state directory,
//!    repositories, sandboxes to be had.
//! 7. [`spawner`], [`init`], [`sandbox`]: the kernel side, single-threaded, no tokio.
//! 8. [`sys`]: the only unsafe code.
//!
//! `ARCHITECTURE.md` has the map, the invariants and the decisions with their reasons.

pub mod base;
pub mod chain;
pub mod cli;
pub mod client;
pub mod clock;
pub mod commands;
pub mod config;
pub mod git;
pub mod init;
pub mod pool;
pub mod provider;
pub mod sandbox;
pub mod server;
pub mod shown;
pub mod spawner;
pub mod state;
pub mod sys;
pub mod tally;
pub mod turns;
pub mod workspace;
