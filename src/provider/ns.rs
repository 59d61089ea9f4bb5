//! The `ns` mode: workspaces made of namespaces, overlayfs, seccomp and landlock on this host.

mod changes;
mod fetch;
mod files;
mod push;
mod repositories;
mod snapshots;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::log::{View, read_ends};
use super::{
    AfterEnd, Asked, Bounds, Capacity, Collected, Command, Description, Error, Events, Exec,
    ExecError, ExecId, ExecRecord, FetchWish, Fetched, Figures, FileContent, FilePath, Finished,
    Kept, Mode, NewWorkspace, Novelty, OpenFile, Outcome, Pressures, Provider, Ran, Receipt,
    ResetWish, Session, SessionRecord, Stream, Streams, Usage, Verified,
};
use crate::base::collect::{bytes_counted, collect, survey};
use crate::base::{AskError, SetupError};
use crate::chain;
use crate::config::WorkspaceConfig;
use crate::git::{NoBundle, PushError};
use crate::init::protocol::{Attempt, Program, Refusal};
use crate::init::user;
use crate::pool::{self, Gone, SandboxError};
use crate::sandbox::identity::Identity;
use crate::state::{NoRoom, State, Use};
use crate::workspace::execs::Order;
use crate::workspace::sessions::SessionError;
use crate::workspace::{
    InForce, InUse, Latitude, Launch, Lease, LimitsChange, Why, Workspace, WorkspaceError,
    WorkspaceId, Workspaces,
};

/// `PATH_MAX` of the kernel.
const MAX_PATH: usize = 4096;

/// A provider of this mode. Clones share it.
#[derive(Debug, Clone)]
pub struct NsProvider {
    config: Arc<WorkspaceConfig>,
    state: State,
    workspaces: Workspaces,
}

impl NsProvider {
    /// Resolves the config's base and finds the workspaces on disk.
    ///
    /// # Errors
    /// Where the base cannot be used.
    pub async fn open(config: WorkspaceConfig, state: State) -> Result<Self, WorkspaceError> {
        let config = Arc::new(config);
        let workspaces = Workspaces::open(Arc::clone(&config), state.clone(), Use::Serve).await?;
        Ok(Self {
            config,
            state,
            workspaces,
        })
    }

    /// Whether a process in a workspace has, on the host, the uid that derrick runs as.
    #[must_use]
    pub fn shares_uid_with_workspaces(&self) -> bool {
        self.state.spawner().identity() == Identity::Single
            || self.workspaces.setups().owned_by_caller()
    }

    fn get(&self, id: &WorkspaceId) -> Result<Arc<Workspace>, Error> {
        self.workspaces.get(id).map_err(|error| error_of(error, ""))
    }

    /// Whether the host's disk has room for something new.
    fn check_room(&self) -> Result<(), Error> {
        self.state.check_room().map_err(|error| match error {
            NoRoom::Low { .. } => Error::NoSpace(error.to_string()),
            NoRoom::Unknown(_) => Error::Host(chain::text(&error)),
        })
    }

    /// What errors name: the whole working directory, and the user.
    fn named_by(&self, workspace: &Workspace, command: &Command) -> (String, String) {
        let directory = workspace.directory_inside(command.working_dir.as_deref());
        let user = command.user.as_ref().unwrap_or(&self.config.user);
        (directory, user.clone())
    }
}

#[async_trait]
impl Provider for NsProvider {
    async fn create(&self, asked: NewWorkspace) -> Result<WorkspaceId, Error> {
        check_environment(&asked.env)?;
        self.check_room()?;
        // Not to its end: who goes away waits no more.
        let admitted = self.workspaces.admit(asked).await;
        let admitted = admitted.map_err(|error| error_of(error, ""))?;
        let this = self.clone();
        let made = to_its_end(async move {
            let made = this.workspaces.make(admitted).await;
            let workdir = this.config.workdir.to_string_lossy();
            made.map_err(|error| error_of(error, &workdir))
        });
        // The rest of it goes when this returns: what is made then is not in the way of the answer.
        Ok(made.await?.workspace.id().clone())
    }

    fn list(&self) -> Vec<WorkspaceId> {
        self.workspaces.list()
    }

    fn owner(&self, id: &WorkspaceId) -> Result<Option<String>, Error> {
        Ok(self.get(id)?.owner())
    }

    async fn describe(&self, id: &WorkspaceId) -> Result<Description, Error> {
        let workspace = self.get(id)?;
        let sandbox = workspace.current();
        let (state, state_detail) = match &sandbox {
            _ if workspace.fenced().is_some() => (super::State::Fenced, None),
            Some(sandbox) if sandbox.is_paused() => (super::State::Paused, None),
            Some(_) => (super::State::Running, None),
            None => (
                super::State::Stopped,
                Some(workspace.what_is_left().to_owned()),
            ),
        };
        let brake = sandbox.as_ref().and_then(pool::Sandbox::brake);
        let paused_by = brake.map(|brake| match brake {
            pool::Brake::Freezer => super::Brake::Freezer,
            pool::Brake::Signals => super::Brake::Signals,
        });
        let mut enforcement = self.enforcement();
        let InForce {
            limits,
            requests,
            missing,
        } = workspace.limits();
        if let Some(weaker) = enforcement["weaker"].as_array_mut() {
            weaker.extend(missing.into_iter().map(Into::into));
        }
        let usage = match &sandbox {
            Some(sandbox) => Usage::new(sandbox.counters(), sandbox.own_room().await),
            None => None,
        };
        if let Some(sandbox) = sandbox
            && let Ok(mut own) = serde_json::to_value(sandbox.enforcement())
        {
            if let Some(files) = limits.open_files {
                own["rlimits"]["nofile"] = files.into();
            }
            enforcement["sandbox"] = own;
        }
        let (setup_output, setup) = self.workspaces.setups().receipt(&workspace.layer());
        Ok(Description {
            id: id.clone(),
            state,
            state_detail,
            paused_by: paused_by.filter(|_| state == super::State::Paused),
            owner: workspace.owner(),
            setup_output,
            setup,
            layer: workspace.layer().to_string(),
            snapshot: self.workspaces.snapshot_under(&workspace),
            fence_at: workspace.fence().map(|fence| fence.at),
            created: workspace.created(),
            execs: workspace.execs().running(),
            limits: limits.into(),
            requests: requests.into(),
            pending: workspace.pending(&limits),
            lease: workspace.lease(),
            usage,
            enforcement,
        })
    }

    async fn remove(&self, id: &WorkspaceId) -> Result<bool, Error> {
        let (this, id) = (self.clone(), id.clone());
        to_its_end(async move {
            this.workspaces
                .remove(&id)
                .await
                .map_err(|error| error_of(error, ""))
        })
        .await
    }

    async fn renew(
        &self,
        id: &WorkspaceId,
        ttl: Option<Duration>,
        latitude: Latitude,
    ) -> Result<Lease, Error> {
        let renewed = self.get(id)?.renew(ttl, latitude);
        renewed.map_err(|error| error_of(error, ""))
    }

    fn begin_use(&self, id: &WorkspaceId) -> Option<InUse> {
        Some(self.get(id).ok()?.begin_use())
    }

    async fn start(
        &self,
        id: &WorkspaceId,
        command: Command,
    ) -> Result<(Arc<Exec>, Novelty), Error> {
        check_command(&command)?;
        let workspace = self.get(id)?;
        self.check_room()?;
        let (directory, user) = self.named_by(&workspace, &command);
        let launch = Launch {
            program: match command.asked {
                Asked::Cmd(line) => Program::Shell(line),
                Asked::Argv(arguments) => Program::Arguments(arguments),
            },
            directory: command.working_dir,
            env: command.env,
            user: command.user,
            terminal: command.terminal,
        };
        let after = match command.after {
            AfterEnd::Nothing => None,
            AfterEnd::Snapshot => Some(self.workspaces.keep_after(&workspace)),
        };
        let order = Order {
            input: command.input,
            streams: command.streams,
            timeout: command.timeout,
            output_limit: command.output_limit,
            key: command.key,
            further: Vec::new(),
            in_use: Some(workspace.begin_use()),
            after,
        };
        to_its_end(async move {
            let started = workspace.start(launch, order).await;
            started.map_err(|error| command_error_of(error, &directory, &user))
        })
        .await
    }

    fn execs(&self, id: &WorkspaceId) -> Result<Vec<ExecRecord>, Error> {
        Ok(self.get(id)?.execs().list())
    }

    fn exec(&self, id: &WorkspaceId, exec: ExecId) -> Result<Arc<Exec>, Error> {
        Ok(self.get(id)?.execs().get(exec)?)
    }

    async fn start_session(
        &self,
        id: &WorkspaceId,
        name: String,
        command: Command,
    ) -> Result<SessionRecord, Error> {
        check_command(&command)?;
        let workspace = self.get(id)?;
        self.check_room()?;
        let (directory, user) = self.named_by(&workspace, &command);
        let launch = Launch {
            program: Program::Arguments(Vec::new()),
            directory: command.working_dir,
            env: command.env,
            user: command.user,
            terminal: None,
        };
        to_its_end(async move {
            let started = workspace.start_session(&name, launch).await;
            started.map_err(|error| command_error_of(error, &directory, &user))
        })
        .await
    }

    fn sessions(&self, id: &WorkspaceId) -> Result<Vec<SessionRecord>, Error> {
        Ok(self.get(id)?.sessions().list())
    }

    fn session(&self, id: &WorkspaceId, name: &str) -> Result<Arc<Session>, Error> {
        Ok(self.get(id)?.sessions().get(name)?)
    }

    async fn run_in_session(
        &self,
        id: &WorkspaceId,
        name: &str,
        line: String,
        timeout: Option<Duration>,
    ) -> Result<Ran, Error> {
        check_text("cmd", &line)?;
        let workspace = self.get(id)?;
        let session = workspace.sessions().get(name)?;
        workspace
            .check_running()
            .map_err(|error| error_of(error, ""))?;
        self.check_room()?;
        to_its_end(async move { Ok(session.run(&line, timeout).await?) }).await
    }

    async fn remove_session(&self, id: &WorkspaceId, name: &str) -> Result<bool, Error> {
        let (workspace, name) = (self.get(id)?, name.to_owned());
        to_its_end(async move { Ok(workspace.sessions().remove(&name).await) }).await
    }

    fn events(&self, id: &WorkspaceId) -> Result<Arc<Events>, Error> {
        Ok(Arc::clone(self.get(id)?.events()))
    }

    async fn run(&self, id: &WorkspaceId, command: Command) -> Result<Finished, Error> {
        let command = Command {
            streams: Streams::Merged,
            ..command
        };
        let (exec, _) = self.start(id, command).await?;
        let record = exec.until_end().await;
        let outcome = record.outcome.unwrap_or(Outcome::Removed);
        match &outcome {
            Outcome::Reset => return Err(sandbox_error_of(&SandboxError::Gone(Gone::Reset), "")),
            Outcome::Removed => {
                return Err(sandbox_error_of(&SandboxError::Gone(Gone::Removed), ""));
            }
            Outcome::Lost { detail } => return Err(Error::Host(detail.clone())),
            _ => {}
        }
        let output = tokio::task::spawn_blocking(move || {
            read_ends(&exec.log()?, View::One(Stream::Stdout), 0, u64::MAX)
        })
        .await;
        let output = output.map_err(io::Error::other).and_then(|output| output);
        Ok(Finished {
            output: output.map_err(|error| Error::Host(format!("reading the output: {error}")))?,
            omitted: record.stdout.omitted,
            outcome,
        })
    }

    async fn write_file(
        &self,
        id: &WorkspaceId,
        target: FilePath,
        content: FileContent,
    ) -> Result<(), Error> {
        let (this, id) = (self.clone(), id.clone());
        to_its_end(async move { this.replace_by(&id, target, content).await }).await
    }

    async fn read_file(&self, id: &WorkspaceId, source: FilePath) -> Result<OpenFile, Error> {
        self.open_regular(id, source).await
    }

    async fn reset(&self, id: &WorkspaceId, wish: ResetWish) -> Result<Receipt, Error> {
        let workspace = self.get(id)?;
        // Held until the workspace is on it.
        let to = wish.to.map(|to| self.workspaces.snapshot_for(to));
        let to = to.transpose().map_err(|error| error_of(error, ""))?;
        let reset = to_its_end(async move {
            let reset = workspace.reset(to.as_deref(), wish.verify).await;
            reset.map_err(|error| error_of(error, ""))
        })
        .await?;
        let microseconds =
            |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        // Else it goes when this returns: what it wakes is not run before the answer is written.
        let discarded = if wish.wait_for_disposal {
            drop(reset.reprieve);
            Some(reset.discarded.await.unwrap_or_default())
        } else {
            None
        };
        Ok(Receipt {
            id: id.clone(),
            layer: reset.layer.to_string(),
            generation: reset.generation,
            upper_entries: reset.upper_entries,
            // Init has no child when it is adopted, or it is not.
            processes_surviving: 0,
            discarded,
            verified: reset.verified.map(|fingerprint| Verified {
                entries: fingerprint.entries,
                digest: fingerprint.digest,
            }),
            waited_us: microseconds(reset.waited),
            duration_us: microseconds(reset.duration),
        })
    }

    async fn pause(&self, id: &WorkspaceId) -> Result<Description, Error> {
        let workspace = self.get(id)?;
        to_its_end(async move { workspace.pause().await.map_err(|error| error_of(error, "")) })
            .await?;
        self.describe(id).await
    }

    async fn resume(&self, id: &WorkspaceId) -> Result<Description, Error> {
        let workspace = self.get(id)?;
        to_its_end(async move {
            workspace
                .resume()
                .await
                .map_err(|error| error_of(error, ""))
        })
        .await?;
        self.describe(id).await
    }

    async fn change_limits(
        &self,
        id: &WorkspaceId,
        change: LimitsChange,
    ) -> Result<Description, Error> {
        let workspace = self.get(id)?;
        to_its_end(async move {
            let changed = workspace.change_limits(change).await;
            changed.map_err(|error| error_of(error, ""))
        })
        .await?;
        self.describe(id).await
    }

    async fn fetch(&self, id: &WorkspaceId, wish: FetchWish) -> Result<Vec<Fetched>, Error> {
        let (this, workspace) = (self.clone(), self.get(id)?);
        self.check_room()?;
        let wanted = fetch::wanted(&self.config.repositories, &wish)?;
        let fetched = to_its_end(async move {
            workspace
                .fetch(this.workspaces.setups(), &wanted, wish.update)
                .await
                .map_err(|error| error_of(error, ""))
        })
        .await?;
        Ok(fetched.into_iter().map(Fetched::from).collect())
    }

    fn enforcement(&self) -> serde_json::Value {
        let setups = self.workspaces.setups();
        serde_json::json!({
            "provisioning_mode": "ns",
            "identity": self.state.spawner().identity(),
            "sandbox": setups.enforcement(),
            "weaker": setups.weaker(),
        })
    }

    async fn capacity(&self) -> Result<Capacity, Error> {
        let workspaces = self.workspaces.clone();
        let room = tokio::task::spawn_blocking(move || workspaces.room()).await;
        let room = room.map_err(|error| Error::Host(format!("derrick failed: {error}")))?;
        Ok(Capacity {
            room: room.map_err(|error| error_of(error, ""))?,
            pressure: Pressures::of_host(),
        })
    }

    async fn layers(&self) -> Result<Vec<Kept>, Error> {
        let state = self.state.clone();
        let surveyed = tokio::task::spawn_blocking(move || survey(&state.path(""))).await;
        let surveyed = surveyed.map_err(io::Error::other).flatten();
        surveyed.map_err(|error| Error::Host(format!("listing the layers: {error}")))
    }

    async fn collect(&self, bounds: Bounds, mode: Mode) -> Result<Collected, Error> {
        let state = self.state.clone();
        let collected = tokio::task::spawn_blocking(move || collect(&state, bounds, mode)).await;
        let collected = collected.map_err(io::Error::other).flatten();
        collected.map_err(|error| Error::Host(format!("collecting layers: {error}")))
    }

    fn figures(&self) -> Figures {
        let tally = self.state.tally();
        let setups = self.workspaces.setups();
        let workspaces: Vec<_> = self.workspaces.list();
        let workspaces: Vec<_> = workspaces
            .iter()
            .filter_map(|id| self.get(id).ok())
            .collect();
        let running = workspaces.iter().filter(|one| one.current().is_some());
        let running = running.count();
        let waiting = self.workspaces.waiting();
        let outcomes = Outcome::WORDS.map(|word| (word, tally.outcomes.of(word)));
        Figures {
            running,
            stopped: workspaces.len() - running,
            waiting,
            execs: workspaces.iter().map(|one| one.execs().running()).sum(),
            outcomes: outcomes.to_vec(),
            removals: Why::WORDS
                .map(|word| (word, tally.removals.of(word)))
                .to_vec(),
            exec_durations: tally.execs.read(),
            exec_bytes: (
                tally.printed.load(Ordering::Relaxed),
                tally.given.load(Ordering::Relaxed),
            ),
            create_durations: tally.creates.read(),
            reset_durations: tally.resets.read(),
            sandboxes: self.state.spawner().created(),
            quarantined: tally.quarantined.load(Ordering::Relaxed),
            pool: self.workspaces.pool(),
            layers: setups.layers().ok(),
            layer_bytes: bytes_counted(&self.state).ok(),
            collected: (
                tally.layers_removed.load(Ordering::Relaxed),
                tally.mirrors_removed.load(Ordering::Relaxed),
                tally.bytes_freed.load(Ordering::Relaxed),
            ),
            enforcement: in_short(&self.enforcement()),
            weaker: setups.weaker().len(),
        }
    }

    async fn shutdown(&self) {
        self.workspaces.shutdown().await;
        self.state.close().await;
    }
}

/// What is enforced on every sandbox, in short: some of what `/health` tells.
fn in_short(enforcement: &serde_json::Value) -> Vec<(&'static str, String)> {
    [
        ("provisioning_mode", "/provisioning_mode"),
        ("identity", "/identity"),
        ("ids", "/sandbox/ids"),
        ("landlock", "/sandbox/landlock/state"),
        ("landlock_abi", "/sandbox/landlock/abi"),
        ("seccomp_filters", "/sandbox/seccomp_filters"),
        ("network", "/sandbox/network"),
    ]
    .into_iter()
    .filter_map(|(name, place)| {
        let value = enforcement.pointer(place)?;
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        Some((name, text))
    })
    .collect()
}

/// Does `work` in a task of its own: a caller that goes away leaves nothing half done.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Host(format!("derrick failed: {error}"))),
    }
}

fn check_command(command: &Command) -> Result<(), Error> {
    check_environment(&command.env)?;
    match &command.asked {
        Asked::Cmd(line) => check_text("cmd", line)?,
        Asked::Argv(arguments) => {
            if arguments.is_empty() {
                return Err(Error::Invalid("argv is empty".into()));
            }
            for argument in arguments {
                check_text("argv", argument)?;
            }
        }
    }
    if let Some(user) = &command.user {
        check_user(user)?;
    }
    check_path(command.working_dir.as_deref().unwrap_or_default())
}

/// Before it is looked up, noted and repeated.
fn check_user(name: &str) -> Result<(), Error> {
    user::check(name).map_err(|wrong| {
        let shown: String = name.chars().take(63).collect();
        Error::Invalid(format!("there is no user {shown:?}: it {wrong}"))
    })
}

fn check_environment(env: &BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Error::Invalid(format!(
                "{name:?} is no name of an environment variable: it must not be empty and have no '=' or NUL in it"
            )));
        }
        check_text(name, value)?;
    }
    Ok(())
}

fn check_text(name: &str, text: &str) -> Result<(), Error> {
    if text.contains('\0') {
        Err(Error::Invalid(format!("{name} has a NUL in it")))
    } else {
        Ok(())
    }
}

fn check_path(path: &str) -> Result<(), Error> {
    check_text("the path", path)?;
    if path.len() >= MAX_PATH {
        return Err(Error::Invalid(format!(
            "the path has {} bytes; at most {MAX_PATH} fit",
            path.len()
        )));
    }
    Ok(())
}

/// What the API calls an error; `path` is what the caller named.
fn error_of(error: WorkspaceError, path: &str) -> Error {
    if error.is_no_space() {
        return Error::NoSpace(chain::text(&error));
    }
    match error {
        WorkspaceError::NotFound(id) => Error::NoSuchWorkspace(id.to_string()),
        WorkspaceError::Setup(error) => setup_error_of(error, path),
        WorkspaceError::Ask(AskError::Setup(error)) => setup_error_of(error, path),
        WorkspaceError::Ask(AskError::NoGit) | WorkspaceError::NoSuchReference { .. } => {
            Error::Invalid(error.to_string())
        }
        WorkspaceError::PushNotAllowed { .. } => Error::PushNotAllowed(error.to_string()),
        WorkspaceError::Push(PushError::Unfit(_)) => Error::CommitsRefused(error.to_string()),
        WorkspaceError::Push(PushError::Refused { .. }) => Error::PushRefused(error.to_string()),
        WorkspaceError::Push(PushError::Git(error)) => Error::Repository(chain::text(&error)),
        WorkspaceError::Ask(_) | WorkspaceError::NoBundle(NoBundle::Odd(_)) => {
            Error::GitFailed(error.to_string())
        }
        WorkspaceError::Sandbox(error) => sandbox_error_of(&error, path),
        WorkspaceError::Exec(ExecError::Sandbox(error)) => sandbox_error_of(&error, path),
        WorkspaceError::Exec(error) => error.into(),
        WorkspaceError::Session(error) => error.into(),
        WorkspaceError::File(error) => files::file_error_of(error),
        WorkspaceError::Unenforceable(error) => Error::LimitUnenforceable(error.to_string()),
        WorkspaceError::Unfit { .. } | WorkspaceError::TooLong { .. } | WorkspaceError::Endless => {
            Error::Invalid(error.to_string())
        }
        WorkspaceError::Full { .. } => Error::TooMany(error.to_string()),
        WorkspaceError::Paused => Error::Paused(error.to_string()),
        WorkspaceError::Fenced(_) => Error::Fenced(error.to_string()),
        WorkspaceError::NoSnapshot(_) => Error::NoSuchSnapshot(error.to_string()),
        WorkspaceError::SnapshotInUse { .. } => Error::SnapshotInUse(error.to_string()),
        WorkspaceError::TooDeep(_) => Error::TooDeep(error.to_string()),
        WorkspaceError::SeveralRepositories
        | WorkspaceError::OtherShape(_)
        | WorkspaceError::Unexportable { .. } => Error::Invalid(error.to_string()),
        WorkspaceError::OtherBase { .. } => Error::Conflict(error.to_string()),
        WorkspaceError::Restless => Error::Conflict(error.to_string()),
        WorkspaceError::Moved | WorkspaceError::MemoryInUse | WorkspaceError::ForksTooFast => {
            Error::Conflict(error.to_string())
        }
        other => Error::Host(chain::text(&other)),
    }
}

/// `error_of` for a command of `user` in `directory`.
fn command_error_of(error: WorkspaceError, directory: &str, user: &str) -> Error {
    if let WorkspaceError::Exec(ExecError::Sandbox(error)) = &error
        && let SandboxError::Refused(refusal) = &**error
        && let Attempt::User(uid) = refusal.attempt
    {
        return user_error_of(refusal, uid, user);
    }
    error_of(error, directory)
}

/// Why nothing can be done as `user`, whose uid is `uid` if there is one.
fn user_error_of(refusal: &Refusal, uid: Option<u32>, user: &str) -> Error {
    let table = "/etc/passwd or /etc/group";
    Error::Invalid(match (uid, refusal.errno) {
        (None, libc::ENOENT) => format!("there is no user '{user}' in the workspace"),
        (None, libc::ERANGE) => format!(
            "the uid or gid of user '{user}' in the workspace's /etc/passwd is no number below 65536"
        ),
        (None, libc::EINVAL | libc::EISDIR) => {
            format!("user '{user}' cannot be looked up: the workspace's {table} is no regular file")
        }
        (None, libc::EFBIG) => {
            format!("user '{user}' cannot be looked up: the workspace's {table} is over 1 MiB")
        }
        (Some(uid), libc::EINVAL) => format!(
            "user '{user}' (uid {uid}) cannot be used: only uid 0 is mapped in this identity mode"
        ),
        (_, errno) => {
            let reason = io::Error::from_raw_os_error(errno);
            format!("user '{user}' cannot be used: {reason}")
        }
    })
}

fn setup_error_of(error: SetupError, path: &str) -> Error {
    match error {
        SetupError::Script { exit_code, output } => Error::SetupFailed { exit_code, output },
        SetupError::Git(_) | SetupError::GitInside { .. } | SetupError::NoHistory { .. } => {
            Error::Repository(chain::text(&error))
        }
        SetupError::Checkout { .. } | SetupError::Workdir { .. } | SetupError::Snapshot(_) => {
            Error::Invalid(chain::text(&error))
        }
        SetupError::Sandbox(error) => sandbox_error_of(&error, path),
        SetupError::File(error) => files::file_error_of(error),
        other => Error::Host(chain::text(&other)),
    }
}

fn sandbox_error_of(error: &SandboxError, path: &str) -> Error {
    match error {
        SandboxError::Gone(Gone::Reset) => {
            Error::Conflict("the workspace was reset meanwhile".into())
        }
        SandboxError::Gone(Gone::Removed) => {
            Error::Conflict("the workspace was removed meanwhile".into())
        }
        SandboxError::Gone(Gone::Frozen) => Error::Fenced("the workspace was fenced meanwhile".into()),
        SandboxError::Gone(Gone::OutOfMemory) => {
            Error::Conflict("the workspace reached its limit on memory and was ended; the next request starts it on its files".into())
        }
        SandboxError::Gone(Gone::Shutdown) => Error::Conflict("the provider is ending".into()),
        SandboxError::Refused(refusal) => refusal_of(refusal, path),
        SandboxError::Gone(Gone::Lost) | SandboxError::Unreachable(_) => Error::Host(format!(
            "the workspace's sandbox is lost: {}",
            chain::text(error)
        )),
    }
}

fn refusal_of(refusal: &Refusal, path: &str) -> Error {
    let reason = io::Error::from_raw_os_error(refusal.errno);
    let what = match refusal.attempt {
        Attempt::Directory => format!("the working directory '{path}' cannot be entered"),
        Attempt::User(_) => "the user cannot be used".to_owned(),
        Attempt::Start => "the command cannot be started".to_owned(),
    };
    let text = format!("{what}: {reason}");
    match (refusal.attempt, refusal.errno) {
        (_, libc::EACCES | libc::EPERM | libc::EROFS) => Error::Forbidden(text),
        (_, libc::ENOSPC | libc::EDQUOT) => Error::NoSpace(text),
        // What takes all processes up is in a workspace, whosever the limit is.
        (Attempt::Start, libc::EAGAIN) => Error::Conflict(format!(
            "{text}: the workspace, or the host, is at its limit on processes"
        )),
        (Attempt::Start, libc::ENOMEM | libc::EMFILE | libc::ENFILE) => Error::Host(text),
        _ => Error::Invalid(text),
    }
}

impl From<ExecError> for Error {
    fn from(error: ExecError) -> Self {
        let text = error.to_string();
        match error {
            ExecError::NotFound(_) => Self::NoSuchExec(text),
            ExecError::TooMany(_) => Self::TooMany(text),
            ExecError::TooMuchOutput { most, .. } => Self::TooMuchOutput { most, text },
            ExecError::Forgotten(_) => Self::ExecForgotten(text),
            ExecError::OtherRequest(_) => Self::KeyReused(text),
            ExecError::Ended(_) => Self::ExecEnded(text),
            ExecError::NoTerminal(_) => Self::NoTerminal(text),
            ExecError::StdinClosed(..) => Self::StdinClosed(text),
            ExecError::Sandbox(error) => sandbox_error_of(&error, ""),
            ExecError::NotStarted | ExecError::Closed => Self::Conflict(text),
            ExecError::Host(..) => Self::Host(text),
        }
    }
}

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        let text = error.to_string();
        match error {
            SessionError::NotFound(_) => Self::NoSuchSession(text),
            SessionError::Exists(_) => Self::SessionExists(text),
            SessionError::Busy(_) => Self::SessionBusy(text),
            SessionError::Ended(_) => Self::SessionEnded(text),
            SessionError::TooMany => Self::TooMany(text),
            SessionError::InvalidName | SessionError::NotStarted(_) => Self::Invalid(text),
            SessionError::Host(..) => Self::Host(chain::text(&error)),
        }
    }
}
