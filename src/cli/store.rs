//! What a person may type about the layer store: of a state directory, whether derrick runs on it or not, or
//! of a provider that runs.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::StateArgs;
use super::client::{FormatArgs, ProviderArgs, Server};

/// Where layers are kept.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Where layers are kept.
    #[command(flatten)]
    pub state: StateArgs,
    /// Ask this provider, whose layers they are: http://HOST:PORT, or unix: and the path of its socket.
    #[arg(
        long,
        value_name = "http://HOST:PORT|unix:PATH",
        conflicts_with = "state_dir"
    )]
    server: Option<Server>,
    /// Show the bearer token in this file to that provider.
    #[arg(long, value_name = "FILE", env = "DERRICK_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

impl StoreArgs {
    /// The provider that is to be asked, if one is.
    #[must_use]
    pub fn provider(&self) -> Option<ProviderArgs> {
        Some(ProviderArgs {
            server: self.server.clone()?,
            token_file: self.token_file.clone(),
        })
    }
}

/// What is to be removed of the layer store.
#[derive(Debug, Clone, Args)]
#[command(after_help = GC_HELP)]
pub struct GcArgs {
    /// Where layers are kept.
    #[command(flatten)]
    pub store: StoreArgs,
    /// How to print what was removed.
    #[command(flatten)]
    pub format: FormatArgs,
    /// Only tell what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// Keep unused layers as long as all layers together have no more than this: bytes, or such as 20GiB.
    #[arg(long, value_name = "SIZE")]
    pub max_size: Option<ByteSize>,
    /// Keep unused layers that were used at most so long ago: seconds, or such as 30d or 12h.
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub max_age: Option<Duration>,
}

const GC_HELP: &str = "Works beside a running derrick, and without one. Never removed is what workspaces, snapshots, the config that was served last or a running derrick use, and what lies below it. Without --max-size and --max-age all else is; with them the least recently used first. Mirrors of repositories go with the last layer that is made of them.";

impl GcArgs {
    /// Whether anything is removed.
    #[must_use]
    pub fn removes(&self) -> bool {
        !self.dry_run
    }
}

/// Layers to be listed.
#[derive(Debug, Clone, Args)]
pub struct LayersArgs {
    /// Where layers are kept.
    #[command(flatten)]
    pub store: StoreArgs,
    /// How to print the list.
    #[command(flatten)]
    pub format: FormatArgs,
}

fn age(text: &str) -> Result<Duration, &'static str> {
    let seconds = || text.parse().ok().map(Duration::from_secs);
    let spelt = || humantime::parse_duration(text).ok();
    seconds()
        .or_else(spelt)
        .ok_or("write a number of seconds, or one with a unit such as 30d or 12h")
}
