//! `derrick`: serves workspaces until it is told to stop.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

use crate::chain;
use crate::cli::{Listen, ServeArgs};
use crate::config::{Network, WorkspaceConfig};
use crate::provider::Provider;
use crate::provider::ns::NsProvider;
use crate::server::http::{self, HttpOptions, Listener, Tokens};
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
    // Requests that nobody waits for any more end here, and with them the programs that they run on the host. A
    // thread may still read an archive, and is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve_until_told(arguments: &ServeArgs, config: WorkspaceConfig) -> anyhow::Result<()> {
    // Before anything else, so that a signal during a long start ends it cleanly too.
    let mut told_to_stop = Box::pin(told_to_stop()?);
    let tokens = arguments.token_file.as_deref().map(Tokens::from_file);
    let tokens = tokens.transpose()?.map(Arc::new);
    if tokens.is_none() && !arguments.allowed_origins.is_empty() {
        bail!(
            "--allow-origin needs a --token-file: without a token a browser is let in as the user who runs it, \
             whichever of that origin's pages it shows"
        );
    }
    let _rereading = tokens.clone().map(reread_when_told).transpose()?;
    let options = HttpOptions {
        tokens: tokens.clone(),
        allowed_hosts: arguments
            .allowed_hosts
            .iter()
            .map(|name| name.as_str().to_owned())
            .collect(),
        allowed_origins: arguments
            .allowed_origins
            .iter()
            .map(ToString::to_string)
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
        && options.tokens.is_none()
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

/// Reads the tokens again at each SIGHUP, until what this gives is dropped. A file that cannot be used
/// changes nothing.
fn reread_when_told(tokens: Arc<Tokens>) -> std::io::Result<AbortOnDropHandle<()>> {
    let mut hangups = signal(SignalKind::hangup())?;
    let rereading = async move {
        while hangups.recv().await.is_some() {
            let tokens = Arc::clone(&tokens);
            match tokio::task::spawn_blocking(move || tokens.reread()).await {
                Ok(Ok(read)) => tracing::info!(
                    tokens = read.tokens,
                    added = read.added,
                    revoked = read.revoked,
                    "read the token file again"
                ),
                Ok(Err(error)) => {
                    tracing::error!(error = chain::text(&error), "the tokens stay as they were")
                }
                Err(error) => tracing::error!(%error, "reading the token file failed"),
            }
        }
    };
    Ok(AbortOnDropHandle::new(tokio::spawn(rereading)))
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
