//! Setup: from a config to the stack that its workspaces start from.
//!
//! Each layer is made once for its key, however many ask at once; the others wait. A layer is made
//! aside, by a sandbox, and renamed into the store when it is whole; whatever fails before leaves none.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::bases::Bases;
use super::build::{About, Build, Confinement, OUTPUT_END, network, run_in};
use super::receipt::{Anew, Noted, SetupReceipt, receipt};
use super::repositories::{Checkout, owner_for};
use super::stack::Owner;
use super::store::LAYER_FORMAT;
use super::{Digest, Layer, LayerStore, SetupError, Stack, collect, repositories};
use crate::config::{self, History, Repository, WorkspaceConfig};
use crate::git::{CommitId, Mirrors, Resolved, Room, Submodule};
use crate::init::files;
use crate::init::protocol::Program;
use crate::sandbox::{Access, Enforcement, Limits, Requests};
use crate::state::State;

/// Setup layers on top of each other, after which a setup starts from the base again.
const MAX_DEPTH: usize = 12;
/// Makes and finds the stacks of one config. Clones share it.
#[derive(Debug, Clone)]
pub struct Setups {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Arc<WorkspaceConfig>,
    state: State,
    store: LayerStore,
    mirrors: Mirrors,
    base: Stack,
    enforcement: Enforcement,
    /// The layers and mirrors that are noted as those of this config.
    present: Mutex<BTreeSet<Digest>>,
}

/// What filling a sandbox came to.
struct Filled {
    /// The end of what the setup script printed.
    output: Option<String>,
    /// Where a checkout was made anew that was there before.
    replaced: Vec<PathBuf>,
    /// The names of the mirrors of submodules.
    mirrors: Vec<String>,
}

impl Setups {
    /// Resolves the config's base, unpacking it if it is not in the store yet.
    ///
    /// # Errors
    /// Where the base cannot be used.
    pub async fn open(config: Arc<WorkspaceConfig>, state: &State) -> Result<Self, SetupError> {
        let discarding = state.clone();
        let discard = move |path: &Path| discarding.discard(path);
        let store = LayerStore::open(state.path("layers"), discard)
            .map_err(SetupError::host("opening the layer store"))?;
        let disk = state.clone();
        let room = Room::told_by(move || Ok(disk.disk()?.room()));
        let mirrors = Mirrors::open((state.path("mirrors"), state.staging()), state.mark(), room);
        let base = Bases {
            config: &config,
            state,
            store: &store,
        }
        .resolve()
        .await?;
        // Started once and thrown away: what a workspace could not start with is said now.
        let trial = Build::start(state, &base, Confinement::of(&config)).await?;
        let enforcement = trial.sandbox().enforcement().clone();
        trial.abandon().await;
        let shared = Shared {
            config,
            state: state.clone(),
            store,
            mirrors,
            base,
            enforcement,
            present: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// What is enforced on a sandbox of this config.
    #[must_use]
    pub fn enforcement(&self) -> &Enforcement {
        &self.shared.enforcement
    }

    /// What is weaker on this host than asked, for people.
    #[must_use]
    pub fn weaker(&self) -> Vec<String> {
        let shared = &self.shared;
        let read_only: Vec<String> = shared
            .base
            .overlays
            .iter()
            .filter(|overlay| overlay.access == Access::ReadOnly)
            .map(|overlay| overlay.at.display().to_string())
            .collect();
        let read_only = (!read_only.is_empty()).then(|| {
            let paths = read_only.join(", ");
            format!("read-only inside, since derrick does not run as root: {paths}")
        });
        let identity = shared
            .state
            .spawner()
            .identity()
            .weaker()
            .map(str::to_owned);
        read_only
            .into_iter()
            .chain(identity)
            .chain(shared.enforcement.profile.weaker().map(str::to_owned))
            .chain(shared.enforcement.landlock.weaker())
            .chain(shared.enforcement.network.weaker().map(str::to_owned))
            .chain(shared.state.spawner().without().weaker())
            .collect()
    }

    /// Whether root inside is the user who runs derrick, because the base is that user's directory.
    #[must_use]
    pub fn owned_by_caller(&self) -> bool {
        self.shared.base.owner == Owner::Caller
    }

    /// Of the setup that made the layer `digest`, if one did: the end of what its script printed, and what it
    /// built on.
    #[must_use]
    pub fn receipt(&self, digest: &Digest) -> (Option<String>, Option<SetupReceipt>) {
        let store = &self.shared.store;
        let Some(layer) = store.get(digest) else {
            return (None, None);
        };
        (layer.meta().output.clone(), receipt(store, &layer))
    }

    /// How many layers the store has.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn layers(&self) -> std::io::Result<usize> {
        self.shared.store.count()
    }

    /// Where layers are kept.
    #[must_use]
    pub fn store(&self) -> &LayerStore {
        &self.shared.store
    }

    /// The submodules of a repository, brought to the mirrors, as the config opens them.
    ///
    /// # Errors
    /// Where one cannot be had.
    pub async fn submodules(
        &self,
        repository: &Repository,
        at: &Resolved,
    ) -> Result<Vec<Submodule>, SetupError> {
        let config = &self.shared.config.repositories;
        let mirrors = &self.shared.mirrors;
        Ok(mirrors.submodules(repository, at, config).await?)
    }

    /// Those that another commit of it named, as far as the mirrors know that.
    ///
    /// # Errors
    /// Where the mirrors cannot be read.
    pub async fn known_submodules(
        &self,
        repository: &Repository,
        commit: &CommitId,
    ) -> Result<Vec<Submodule>, SetupError> {
        let config = &self.shared.config.repositories;
        let mirrors = &self.shared.mirrors;
        let known = mirrors.known_submodules(repository, commit, config).await?;
        Ok(known.unwrap_or_default())
    }

    /// The repositories' mirrors.
    #[must_use]
    pub fn mirrors(&self) -> &Mirrors {
        &self.shared.mirrors
    }

    /// The stack that a workspace starts from now: sets up first if there is no layer for it yet.
    ///
    /// # Errors
    /// Where a repository cannot be had, the script fails, or the host does.
    pub async fn stack(&self) -> Result<Stack, SetupError> {
        let config = &self.shared.config;
        let root = Path::new("/");
        if config.repositories.is_empty() && config.setup_script.is_none() && config.workdir == root
        {
            return Ok(self.shared.base.clone());
        }
        let checkouts = self.resolve_repositories().await?;
        let digest = self.key(&checkouts);
        let layer = match self.shared.store.get(&digest) {
            Some(layer) => layer,
            None => {
                let lock = self.shared.store.lock(&digest).await;
                let _lock = lock.map_err(SetupError::host("locking a layer"))?;
                match self.shared.store.get(&digest) {
                    Some(layer) => layer,
                    None => self.make(&digest, &checkouts).await?,
                }
            }
        };
        self.stack_on(&layer)
    }

    pub(super) fn config(&self) -> &WorkspaceConfig {
        &self.shared.config
    }

    pub(super) fn state(&self) -> &State {
        &self.shared.state
    }

    /// The stack of that digest which an earlier setup of this config made, if the store has it still.
    #[must_use]
    pub fn earlier_stack(&self, digest: &Digest) -> Option<Stack> {
        if *digest == self.shared.base.digest {
            return Some(self.shared.base.clone());
        }
        let layer = self.shared.store.get(digest)?;
        let is_own = layer.meta().lineage.as_ref() == Some(&self.lineage());
        is_own.then(|| self.stack_on(&layer).ok())?
    }

    /// Notes that workspaces start from this stack now, or from the one that was made last, so that nobody
    /// collects its layers, or the mirrors of its repositories, when nothing runs; whether others did before.
    ///
    /// # Errors
    /// Where that cannot be written.
    pub fn note_present(&self, stack: Option<&Stack>) -> io::Result<bool> {
        let latest = match stack {
            Some(_) => None,
            None => self.shared.store.find_lineage(&self.lineage())?,
        };
        let latest = latest.and_then(|layer| self.stack_on(&layer).ok());
        let base = self.shared.base.overlays.iter();
        let above = stack
            .or(latest.as_ref())
            .map_or(&[][..], |stack| &stack.overlays);
        let lowers = base.chain(above).flat_map(|overlay| &overlay.lowers);
        let mut named = collect::layers_in(lowers.map(|lower| lower.path.as_path()));
        let mirrors = repositories::mirrors(&self.shared.config);
        named.extend(mirrors.iter().filter_map(|name| name.parse().ok()));
        let mut present = self
            .shared
            .present
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *present == named {
            return Ok(false);
        }
        collect::note_present(&self.shared.state, &named)?;
        *present = named;
        Ok(true)
    }

    async fn resolve_repositories(&self) -> Result<Vec<Checkout>, SetupError> {
        let mut checkouts = Vec::new();
        for repository in &self.shared.config.repositories {
            let at = self.shared.mirrors.resolve(repository).await?;
            checkouts.push(Checkout {
                repository: repository.clone(),
                at,
            });
        }
        Ok(checkouts)
    }

    /// Everything that determines a setup layer.
    fn key(&self, checkouts: &[Checkout]) -> Digest {
        let commits = checkouts
            .iter()
            .map(|checkout| checkout.at.commit.as_str().to_owned());
        Digest::of(std::iter::once(self.lineage().to_string()).chain(commits))
    }

    /// The same without the commits: what stays when repositories move on.
    fn lineage(&self) -> Digest {
        let config = &self.shared.config;
        let submodules = config.repositories.iter().filter(|one| one.submodules);
        let submodules: Vec<_> = submodules
            .map(|repository| (&repository.path, &repository.submodule_urls))
            .collect();
        let mut determinants = serde_json::json!({
            "format": LAYER_FORMAT,
            "base": self.shared.base.digest,
            "repositories": config.repositories.iter()
                .map(|repository| (&repository.url, &repository.path, &repository.reference, repository.history))
                .collect::<Vec<_>>(),
            "setup_script": config.setup_script,
            "env": config.env,
            "workdir": config.workdir,
            "network": config.setup_network(),
            // What the script may do.
            "profile": (config.profile != config::Profile::Standard).then_some(config.profile),
            // Whom the repositories belong to.
            "user": (!config.repositories.is_empty()).then_some(&config.user),
        });
        let mut note = |name: &str, of_each: fn(&Repository) -> Option<serde_json::Value>| {
            let each = config.repositories.iter();
            let each: Vec<_> = each
                .filter_map(|repository| Some((&repository.path, of_each(repository)?)))
                .collect();
            if !each.is_empty() {
                determinants[name] = serde_json::json!(each);
            }
        };
        note("depths", |one| {
            one.depth.map(|depth| serde_json::json!(depth))
        });
        note("filters", |one| {
            one.filter.map(|filter| serde_json::json!(filter))
        });
        note("lfs", |one| {
            one.lfs.then(|| serde_json::json!(one.lfs_urls))
        });
        if !submodules.is_empty() {
            determinants["submodules"] = serde_json::json!(submodules);
        }
        Digest::of([determinants.to_string()])
    }

    /// The base with `layer` and those below it on top.
    fn stack_on(&self, layer: &Layer) -> Result<Stack, SetupError> {
        let mut chain = vec![layer.clone()];
        while let Some(parent) = chain.last().and_then(|layer| layer.meta().parent.clone()) {
            let below = self.shared.store.get(&parent).ok_or_else(|| {
                let missing = format!(
                    "layer {parent} is missing; remove layer {} to set up anew",
                    layer.digest()
                );
                SetupError::host("finding the layers")(io::Error::other(missing))
            })?;
            chain.push(below);
        }
        let mut stack = self.shared.base.clone();
        for layer in chain.iter().rev() {
            stack = stack.with_layer(layer, layer.meta().first_id.unwrap_or(0));
        }
        stack.commits = layer
            .meta()
            .commits
            .iter()
            .filter_map(|(path, commit)| Some((path.clone(), commit.parse::<CommitId>().ok()?)))
            .collect();
        Ok(stack)
    }

    async fn make(&self, digest: &Digest, checkouts: &[Checkout]) -> Result<Layer, SetupError> {
        let shared = &self.shared;
        let lineage = self.lineage();
        let previous = self.previous(&lineage, checkouts).await?;
        let (start, parent, anew) = match previous {
            Previous::Layer(stack, parent) => (stack, Some(parent), None),
            Previous::None(why) => (shared.base.clone(), None, Some(why)),
        };
        tracing::info!(layer = %digest, from = parent.as_ref().map(Digest::as_str), "setting up");
        let confinement = Confinement {
            network: network(shared.config.setup_network()),
            ..Confinement::of(&shared.config)
        };
        let build = Build::start(&shared.state, &start, confinement).await?;
        let filled = match self.fill(&build, &start, checkouts).await {
            Ok(filled) => filled,
            Err(error) => {
                build.abandon().await;
                return Err(error);
            }
        };
        let about = About {
            lineage: Some(lineage),
            parent,
            commits: checkouts
                .iter()
                .map(|checkout| {
                    (
                        checkout.repository.path.clone(),
                        checkout.at.commit.as_str().to_owned(),
                    )
                })
                .collect(),
            mirrors: [repositories::mirrors(&shared.config), filled.mirrors].concat(),
            description: format!("setup of {}", shared.config.name),
            output: filled.output,
            setup: Some(Noted {
                anew,
                replaced: filled.replaced,
            }),
            by_record: false,
        };
        build.freeze(&shared.store, digest, about).await
    }

    /// The newest layer for older commits, to start from, if there is one that is not too deep and has nothing
    /// in it that must not be there now.
    async fn previous(
        &self,
        lineage: &Digest,
        checkouts: &[Checkout],
    ) -> Result<Previous, SetupError> {
        let shared = &self.shared;
        if shared.config.repositories.is_empty() {
            return Ok(Previous::None(Anew::NoRepositories));
        }
        let found = shared
            .store
            .find_lineage(lineage)
            .map_err(SetupError::host("searching the layer store"))?;
        let Some(layer) = found else {
            return Ok(Previous::None(Anew::First));
        };
        let Ok(stack) = self.stack_on(&layer) else {
            return Ok(Previous::None(Anew::LayersMissing));
        };
        if stack.depth >= MAX_DEPTH {
            return Ok(Previous::None(Anew::TooDeep));
        }
        for checkout in checkouts {
            let Some(old) = stack.commits.get(&checkout.repository.path) else {
                continue;
            };
            let (mirrors, repository) = (&shared.mirrors, &checkout.repository);
            if !checkout.may_follow(mirrors, old).await? {
                return Ok(Previous::None(Anew::NotItsHistory));
            }
            let is_compared = repository.submodules && repository.history != History::Full;
            if is_compared && *old != checkout.at.commit {
                let config = &shared.config.repositories;
                let moved = checkout.submodules(mirrors, Some(old), config).await?;
                if !moved.may_follow(mirrors).await? {
                    return Ok(Previous::None(Anew::Submodules));
                }
            }
        }
        Ok(Previous::Layer(stack, layer.digest().clone()))
    }

    async fn fill(
        &self,
        build: &Build,
        start: &Stack,
        checkouts: &[Checkout],
    ) -> Result<Filled, SetupError> {
        let mirrors = &self.shared.mirrors;
        let (mut replaced, mut used) = (Vec::new(), Vec::new());
        let user = &self.shared.config.user;
        // The script may be what makes the user.
        let owner = match checkouts {
            [] => Some(files::protocol::Owner::default()),
            _ => owner_for(build, user).await?,
        };
        for checkout in checkouts {
            let before = start.commits.get(&checkout.repository.path);
            if before == Some(&checkout.at.commit) {
                continue;
            }
            // Before the sandbox waits for them.
            let config = &self.shared.config.repositories;
            let submodules = checkout.submodules(mirrors, before, config).await?;
            used.extend(Submodule::mirrors(&submodules.now));
            mirrors
                .bring_large_files(&checkout.repository, &checkout.at, &submodules.now)
                .await?;
            if let Some(commit) = before {
                if checkout.update(mirrors, build, commit, &submodules).await? {
                    continue;
                }
                checkout.clear(build).await?;
                replaced.push(checkout.repository.path.clone());
            }
            let owner = owner.unwrap_or_default();
            checkout
                .unpack(mirrors, build, (owner, &submodules.now))
                .await?;
        }
        let output = self.run_script(build).await?;
        if owner.is_none() {
            match owner_for(build, user).await? {
                Some(owner) => {
                    for checkout in checkouts {
                        checkout.give_to(build, owner).await?;
                    }
                }
                // What runs as that user says so as well.
                None => {
                    tracing::warn!(
                        user,
                        "no such user after setup: the repositories are root's"
                    );
                }
            }
        }
        Ok(Filled {
            output,
            replaced,
            mirrors: used,
        })
    }

    /// Has git of the script, which is root's, work on repositories that are another user's, git-config(1).
    fn trust(&self) -> BTreeMap<String, String> {
        let repositories = self.shared.config.repositories.iter();
        let trusted: Vec<String> = repositories
            .flat_map(|repository| {
                let path = repository.path.to_string_lossy().into_owned();
                // What is below it, for git from 2.46 on.
                let submodules = repository.submodules.then(|| format!("{path}/*"));
                std::iter::once(path).chain(submodules)
            })
            .collect();
        if trusted.is_empty() {
            return BTreeMap::new();
        }
        let count = ("GIT_CONFIG_COUNT".to_owned(), trusted.len().to_string());
        let entries = trusted.into_iter().enumerate().flat_map(|(n, path)| {
            [
                (format!("GIT_CONFIG_KEY_{n}"), "safe.directory".to_owned()),
                (format!("GIT_CONFIG_VALUE_{n}"), path),
            ]
        });
        entries.chain([count]).collect()
    }

    /// Runs the setup script, if there is one; the end of what it printed.
    async fn run_script(&self, build: &Build) -> Result<Option<String>, SetupError> {
        let config = &self.shared.config;
        let workdir = config.workdir.to_string_lossy().into_owned();
        let run = |words: &[&str]| {
            let words = words.iter().map(|word| (*word).to_owned()).collect();
            run_in(
                build.sandbox(),
                Program::Arguments(words),
                Path::new("/"),
                &[],
            )
        };
        if run(&["test", "-d", &workdir]).await?.exit_code() != 0 {
            let made = run(&["mkdir", "-p", "--", &workdir]).await?;
            if made.exit_code() != 0 {
                return Err(SetupError::Workdir {
                    path: config.workdir.clone(),
                    output: made.output.end(OUTPUT_END).trim().to_owned(),
                });
            }
            // A user that the script is still to make gets nothing here.
            run(&["chown", "-h", "--", &config.user, &workdir]).await?;
        }
        let Some(script) = &config.setup_script else {
            return Ok(None);
        };
        let ended = run_in(
            build.sandbox(),
            Program::Shell(script.clone()),
            &config.workdir,
            &[&self.trust(), &config.env],
        )
        .await?;
        let exit_code = ended.exit_code();
        let output = ended.output.end(OUTPUT_END);
        if exit_code == 0 {
            Ok(Some(output))
        } else {
            Err(SetupError::Script { exit_code, output })
        }
    }
}

/// What a setup starts from.
enum Previous {
    /// That of an earlier one.
    Layer(Stack, Digest),
    /// The base.
    None(Anew),
}

/// What the config allows a workspace.
pub(crate) fn limits(config: &WorkspaceConfig) -> Limits {
    config
        .limits
        .as_ref()
        .map_or_else(Limits::default, Limits::from)
}

/// What the config asks for for a workspace.
pub(crate) fn requests(config: &WorkspaceConfig) -> Requests {
    config
        .requests
        .as_ref()
        .map_or_else(Requests::default, Requests::from)
}
