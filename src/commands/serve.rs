//! `derrick`: serves workspaces until it is told to stop.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Listen, ServeArgs};
use crate::config::{Network, WorkspaceConfig};
use crate::provider::Provider;
use crate::provider::ns::NsProvider;
use crate::server::http::{self, HttpOptions, Listener, Token};
use crate::state::{Floor, State, Use};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Why it cannot serve; nothing was changed then but the state directory.
pub fn serve(arguments: &ServeArgs) -> anyhow::Result<ExitCode> {
    super::log_to_stderr(arguments.log_format, "info");
    let config = super::config(arguments.workspace_config_path.as_deref())?;
    allow_many_descriptors()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve_until_told(arguments, config));
    // A thread may still read an archive that nobody wants any more.
    runtime.shutdown_background();
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve_until_told(arguments: &ServeArgs, config: WorkspaceConfig) -> anyhow::Result<()> {
    // Before anything else, so that a signal during a long start ends it cleanly too.
    let mut told_to_stop = Box::pin(told_to_stop()?);
    let options = HttpOptions {
        token: arguments
            .token_file
            .as_deref()
            .map(Token::from_file)
            .transpose()?,
        allowed_hosts: arguments
            .allowed_hosts
            .iter()
            .map(|name| name.as_str().to_owned())
            .collect(),
        ..HttpOptions::default()
    };
    let listener = match &arguments.listen {
        Listen::Tcp(address) => Listener::tcp(*address, &options)?,
        Listen::Unix(path) => Listener::unix(path)?,
    };
    let state = State::open(
        &arguments.state.directory()?,
        Use::Serve,
        Floor(arguments.min_free),
    )
    .await?;
    let shares_network = [config.network, config.setup_network()].contains(&Network::Host);
    let opened = tokio::select! {
        opened = NsProvider::open(config, state.clone()) => Some(opened),
        () = &mut told_to_stop => None,
    };
    let provider = match opened {
        Some(Ok(provider)) => provider,
        Some(Err(error)) => {
            state.close().await;
            return Err(error).context("cannot serve this config");
        }
        None => {
            tracing::info!("told to stop before it served");
            state.close().await;
            return Ok(());
        }
    };
    if shares_network
        && options.token.is_none()
        && matches!(arguments.listen, Listen::Tcp(_))
        && provider.shares_uid_with_workspaces()
    {
        state.close().await;
        bail!(
            "network 'host' would let a workspace use derrick's own API, since root inside is the user who runs \
             derrick here; give a --token-file, or listen on a Unix socket with --listen unix:PATH"
        );
    }
    let provider: Arc<dyn Provider> = Arc::new(provider);
    announce(&listener)?;
    http::serve(listener, provider, options, told_to_stop)
        .await
        .context("serving")
}

/// One line on stdout when requests are accepted, for people and for programs that wait for it.
fn announce(listener: &Listener) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening on {listener}")?;
    stdout.flush()?;
    Ok(())
}

/// Each workspace takes a few descriptors, each connection one: the soft limit is for programs that
/// use select(2), which this is not.
fn allow_many_descriptors() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")
}

fn told_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
