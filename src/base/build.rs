//! A layer on its way: a sandbox whose upper becomes the layer when it has ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::measure::bytes_of;
use super::receipt::Noted;
use super::store::{LAYER_FORMAT, LayerMeta};
use super::{Digest, Layer, LayerStore, SetupError, Stack};
use crate::config::{self, WorkspaceConfig};
use crate::init::files::protocol::RawPath;
use crate::init::protocol::{Exec, Program, Unpacked};
use crate::init::unpack::{Applied, Compression, Summary};
use crate::pool::exec::{self, Ended};
use crate::pool::ranges::Range;
use crate::pool::{Gone, Sandbox};
use crate::sandbox::{Access, MemoryFiles, Network, Profile, Requirement, SandboxSpec, Storage};
use crate::state::State;

/// Bytes of a program's output, its end, that an error or a layer's record carries.
pub(super) const OUTPUT_END: usize = 64 * 1024;

/// A sandbox that makes a layer. What it wrote is discarded unless it is frozen.
#[derive(Debug)]
pub(super) struct Build {
    state: State,
    sandbox: Sandbox,
    directory: PathBuf,
    range: Range,
}

/// What is written down of a layer besides its files.
#[derive(Debug, Default)]
pub(super) struct About {
    pub(super) lineage: Option<Digest>,
    pub(super) parent: Option<Digest>,
    pub(super) commits: Vec<(PathBuf, String)>,
    pub(super) mirrors: Vec<String>,
    pub(super) description: String,
    pub(super) output: Option<String>,
    pub(super) setup: Option<Noted>,
    /// Whether a record keeps it.
    pub(super) by_record: bool,
}

/// What a sandbox of a config is let do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confinement {
    pub(crate) network: Network,
    pub(crate) profile: Profile,
    pub(crate) landlock: Requirement,
}

impl Confinement {
    /// That of the config's workspaces.
    pub(crate) fn of(config: &WorkspaceConfig) -> Self {
        Self {
            network: network(config.network),
            profile: match config.profile {
                config::Profile::Standard => Profile::Standard,
                config::Profile::Nested => Profile::Nested,
            },
            landlock: if config.best_effort.contains(&config::Restriction::Landlock) {
                Requirement::BestEffort
            } else {
                Requirement::Required
            },
        }
    }
}

/// What a sandbox's spec calls the network that the config asks for.
pub(super) fn network(asked: config::Network) -> Network {
    match asked {
        config::Network::None => Network::None,
        config::Network::Host => Network::Host,
    }
}

impl Build {
    /// Starts a sandbox on `stack`.
    pub(super) async fn start(
        state: &State,
        stack: &Stack,
        confinement: Confinement,
    ) -> Result<Self, SetupError> {
        let range = stack
            .take_range(state.spawner().identity())
            .map_err(SetupError::host("taking ids for a layer"))?;
        let directory = state.staging().join(Uuid::now_v7().to_string());
        let writable = state
            .make_writable(directory.clone(), Storage::Directory)
            .await;
        let writable = writable.map_err(SetupError::host("making a directory for a layer"))?;
        let spec = SandboxSpec {
            ids: range.ids(),
            overlays: stack.overlays.clone(),
            writable,
            network: confinement.network,
            profile: confinement.profile,
            landlock: confinement.landlock,
            // What setup may use is up to whoever wrote the config.
            group: None,
            memory_files: MemoryFiles::default(),
            without: state.spawner().without().clone(),
        };
        let adopted = match state.spawner().create(spec, &range).await {
            Ok(pristine) => pristine.adopt("setup".to_owned()).await,
            Err(error) => Err(error),
        };
        match adopted {
            Ok(sandbox) => Ok(Self {
                state: state.clone(),
                sandbox,
                directory,
                range,
            }),
            Err(error) => {
                state.discard_or_say(&directory);
                Err(error.into())
            }
        }
    }

    pub(super) fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Unpacks `archive` below `directory` of the sandbox, which is made if it is not there.
    pub(super) async fn unpack(
        &self,
        archive: OwnedFd,
        compression: Compression,
        directory: &Path,
    ) -> Result<Summary, SetupError> {
        let directory = RawPath::from(directory.as_os_str().as_encoded_bytes());
        self.report_of(Program::Unpack(directory, compression), archive)
            .await
    }

    /// Takes in the archive of a snapshot that stands on the setup layer `base`, with what it is started on.
    pub(super) async fn apply(
        &self,
        archive: OwnedFd,
        stack: &Stack,
        base: &Digest,
    ) -> Result<Applied, SetupError> {
        let writable = stack.overlays.iter();
        let writable = writable.filter(|overlay| overlay.access == Access::Writable);
        let roots =
            writable.map(|overlay| RawPath::from(overlay.at.as_os_str().as_encoded_bytes()));
        let program = Program::Apply(roots.collect(), base.to_string());
        let applied = self.report_of(program, archive).await;
        applied.map_err(|error| match error {
            SetupError::Archive(message) => SetupError::Snapshot(message),
            other => other,
        })
    }

    /// Runs a built-in unpacker; what it reports.
    async fn report_of<T: DeserializeOwned>(
        &self,
        program: Program,
        archive: OwnedFd,
    ) -> Result<T, SetupError> {
        let exec = Exec {
            program,
            directory: "/".into(),
            environment: Vec::new(),
            terminal: None,
            user: None,
            open_files: None,
        };
        let ended = exec::run(&self.sandbox, exec, Some(archive)).await?;
        let report = ended.output.into_bytes();
        match serde_json::from_slice(&report) {
            Ok(Unpacked::Done(done)) => Ok(done),
            Ok(Unpacked::Failed {
                errno: Some(libc::ENOSPC | libc::EDQUOT),
                message,
            }) => Err(SetupError::NoSpace(message)),
            Ok(Unpacked::Failed { message, .. }) => Err(SetupError::Archive(message)),
            Err(_) => {
                let said = String::from_utf8_lossy(&report);
                Err(SetupError::Archive(format!(
                    "the unpacker died: {}",
                    said.trim()
                )))
            }
        }
    }

    /// Ends the sandbox and makes what it wrote the layer `digest`; the layer, and the first id of
    /// whoever wrote it.
    pub(super) async fn freeze(
        self,
        store: &LayerStore,
        digest: &Digest,
        about: About,
    ) -> Result<Layer, SetupError> {
        self.sandbox.end(Gone::Removed).await?;
        let meta = LayerMeta {
            format: LAYER_FORMAT,
            first_id: Some(self.range.ids().first),
            shape: self.state.spawner().identity().shape(),
            parent: about.parent,
            lineage: about.lineage,
            commits: about.commits,
            mirrors: about.mirrors,
            created: crate::clock::seconds(),
            description: about.description,
            output: about.output,
            setup: about.setup,
            bytes: None,
            by_record: about.by_record,
        };
        let (store, digest, upper) = (store.clone(), digest.clone(), self.directory.join("upper"));
        let commit = move || {
            let bytes = Some(bytes_of(&upper));
            store.commit(&digest, &upper, LayerMeta { bytes, ..meta })
        };
        let committed = tokio::task::spawn_blocking(commit).await;
        self.state.discard_or_say(&self.directory);
        committed
            .map_err(|error| SetupError::host("keeping a layer")(error.into()))?
            .map_err(SetupError::host("keeping a layer"))
    }

    /// Ends the sandbox and throws away what it wrote.
    pub(super) async fn abandon(self) {
        if let Err(error) = self.sandbox.end(Gone::Removed).await {
            tracing::warn!(%error, "cannot end an abandoned setup");
        }
        self.state.discard_or_say(&self.directory);
    }
}

/// Whoever waited for it went away, as when derrick is told to stop.
impl Drop for Build {
    fn drop(&mut self) {
        if self.sandbox.gone().is_none() {
            self.state.end_in_background(self.sandbox.clone());
        }
    }
}

/// Runs `program` in `directory` of `sandbox`, as root, to its end, however long it takes.
pub(super) async fn run_in(
    sandbox: &Sandbox,
    program: Program,
    directory: &Path,
    env: &[&BTreeMap<String, String>],
) -> Result<Ended, SetupError> {
    run_as(None, sandbox, program, directory, env).await
}

/// The same as `user`, root if absent.
pub(super) async fn run_as(
    user: Option<&str>,
    sandbox: &Sandbox,
    program: Program,
    directory: &Path,
    env: &[&BTreeMap<String, String>],
) -> Result<Ended, SetupError> {
    let exec = exec_as(user, program, directory, env);
    Ok(exec::run(sandbox, exec, None).await?)
}

/// A command as `user`, root if absent.
pub(super) fn exec_as(
    user: Option<&str>,
    program: Program,
    directory: &Path,
    env: &[&BTreeMap<String, String>],
) -> Exec {
    Exec {
        program,
        directory: directory.to_string_lossy().into_owned(),
        environment: environment(env),
        terminal: None,
        user: user.map(str::to_owned),
        open_files: None,
    }
}

/// The environment of a command: what every command has, then each of `over` on top. What goes with
/// its user, `HOME` for one, is added inside.
#[must_use]
pub fn environment(over: &[&BTreeMap<String, String>]) -> Vec<(String, String)> {
    const EVERY: &[(&str, &str)] = &[
        ("LANG", "C.UTF-8"),
        (
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
    ];
    let mut all: BTreeMap<&str, &str> = EVERY.iter().copied().collect();
    for layer in over {
        all.extend(
            layer
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
    }
    all.into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A pipe whose reading end goes to a sandbox, and whose writing end the caller fills.
pub(super) fn pipe_for_archive() -> std::io::Result<(OwnedFd, File)> {
    let (reader, writer) = std::io::pipe()?;
    Ok((reader.into(), File::from(OwnedFd::from(writer))))
}
