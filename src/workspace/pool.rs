//! The pool: pristine sandboxes of the stacks that workspaces start from, and the disposal of those that
//! workspaces are done with.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::OnceCell;
use utoipa::ToSchema;
use uuid::Uuid;

use super::WorkspaceError;
use super::record::Beginning;
use crate::base::{Confinement, Stack};
use crate::config::WorkspaceConfig;
use crate::init::files::protocol::Fingerprint;
use crate::pool::ranges::Range;
use crate::pool::stock::{Bounds, Level, Maker, Service, Stock};
use crate::pool::{Ending, Gone, Pristine};
use crate::sandbox::{Limits, Requests, SandboxSpec, Storage};
use crate::state::{Removed, State};
use crate::turns::{Gate, Pass};

/// Sandboxes of one kind that are kept ready where the config does not say.
const SIZE: u32 = 16;
/// Memory of all that are kept ready where the config does not say.
const MEMORY: u64 = 64 << 20;
/// What one that is ready takes of that: its processes, and what the kernel keeps for it.
const MEMORY_OF_ONE: u64 = 2 << 20;
/// Sandboxes that are disposed of at once, a third of them kept for other owners than one. Whoever wants to give
/// up one more waits for a turn among owners.
const DISPOSALS: usize = 96;

/// Fingerprints that are kept, those asked for last.
const FINGERPRINTS: usize = 64;

/// The pool of one config. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    stock: Stock<Nursery>,
    disposals: Gate,
    /// What sandboxes show, as the first of its kind that was looked at did; the last asked for last.
    fingerprints: Arc<Mutex<VecDeque<(Shown, Looked)>>>,
    state: State,
}

/// What pristine sandboxes are told apart by.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kind {
    pub(super) stack: Stack,
    pub(super) limits: Limits,
    pub(super) requests: Requests,
    pub(super) storage: Storage,
}

/// Of a kind, what decides what is to be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    /// Where the layers are: a file that has other names in a layer of its own shows how many.
    lowers: Vec<PathBuf>,
    /// Whether `/tmp` is a filesystem of its own, which hides that of the layer.
    has_own_tmp: bool,
}

/// A fingerprint, or the place for it while one is looked at: who comes meanwhile waits for that.
type Looked = Arc<OnceCell<Fingerprint>>;

/// Makes pristine sandboxes.
#[derive(Debug)]
pub(super) struct Nursery {
    confinement: Confinement,
    state: State,
}

/// A pristine sandbox, with what is its own on this host.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) sandbox: Pristine,
    pub(super) range: Range,
    /// What it writes to; whoever takes it moves that to a place of its own.
    pub(super) directory: PathBuf,
}

/// One from the pool.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) ready: Ready,
    /// How long it had to be waited for.
    pub(super) waited: Duration,
    pub(super) service: Serving,
}

/// As long as this is there, nothing is made for the pool alone.
#[derive(Debug)]
pub struct Serving(
    #[expect(dead_code, reason = "it is held until it is dropped")] Service<Nursery>,
);

/// Leave to dispose of one sandbox.
#[derive(Debug)]
pub(super) struct Leave {
    _pass: Pass,
    owner: Option<String>,
    pub(super) waited: Duration,
}

/// What a workspace is done with.
#[derive(Debug)]
pub(super) struct Disposal {
    pub(super) ending: Option<Ending>,
    /// Its files are this range's.
    pub(super) range: Option<Range>,
    pub(super) storage: Storage,
    /// What it wrote to.
    pub(super) directory: PathBuf,
    pub(super) leave: Leave,
}

/// What was discarded; what nobody knows is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Discarded {
    /// Processes that were ended, init not counted.
    pub processes: Option<u64>,
    /// Files, directories, links and whatever else has a name that had been made, changed or deleted.
    pub files: Option<u64>,
    /// What these took up on disk.
    pub bytes: Option<u64>,
}

impl Pool {
    pub(super) fn new(config: &WorkspaceConfig, state: &State) -> Self {
        let asked = config.pool.as_ref();
        let size = asked.and_then(|pool| pool.size).unwrap_or(SIZE);
        let memory = asked
            .and_then(|pool| pool.memory)
            .map_or(MEMORY, |memory| memory.as_u64());
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let total = usize::try_from(memory / MEMORY_OF_ONE).unwrap_or(usize::MAX);
        let makers = std::thread::available_parallelism().map_or(1, usize::from) + 2;
        let bounds = Bounds {
            min: size.min(1),
            max: size.min(total),
            total,
            makers,
        };
        let nursery = Nursery {
            confinement: Confinement::of(config),
            state: state.clone(),
        };
        Self {
            stock: Stock::new(nursery, bounds),
            disposals: Gate::new(DISPOSALS),
            fingerprints: Arc::default(),
            state: state.clone(),
        }
    }

    /// Keeps one of this kind ready from now on.
    pub(super) fn prefer(&self, kind: &Kind) {
        self.stock.prefer(kind);
    }

    /// A pristine sandbox of this kind.
    pub(super) async fn take(&self, kind: &Kind) -> Result<Fresh, WorkspaceError> {
        let taken = self.stock.take(kind).await?;
        Ok(Fresh {
            ready: taken.item,
            waited: taken.waited,
            service: Serving(taken.service),
        })
    }

    /// What a sandbox of this kind shows that nobody has used.
    pub(super) async fn fingerprint(&self, kind: &Kind) -> Result<Fingerprint, WorkspaceError> {
        let looked = self.looked(Shown {
            lowers: kind.stack.paths().map(Path::to_owned).collect(),
            has_own_tmp: kind.limits.tmp.is_some(),
        });
        let fingerprint = looked.get_or_try_init(|| self.look(kind)).await?;
        Ok(fingerprint.clone())
    }

    fn looked(&self, shown: Shown) -> Looked {
        let known = self.fingerprints.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().position(|(other, _)| *other == shown);
        let found = found.and_then(|place| known.remove(place));
        let (shown, looked) = found.unwrap_or_else(|| (shown, Looked::default()));
        known.push_back((shown, Arc::clone(&looked)));
        if known.len() > FINGERPRINTS {
            known.pop_front();
        }
        looked
    }

    async fn look(&self, kind: &Kind) -> Result<Fingerprint, WorkspaceError> {
        let Ready {
            sandbox,
            range,
            directory,
        } = self.take(kind).await?.ready;
        let sandbox = match sandbox.adopt("reference".to_owned()).await {
            Ok(sandbox) => sandbox,
            Err(error) => {
                self.state.discard_or_say(&directory);
                return Err(error.into());
            }
        };
        let fingerprint = sandbox.fingerprint().await;
        self.dispose(Disposal {
            ending: Some(sandbox.leave(Gone::Removed)),
            range: Some(range),
            storage: kind.storage,
            directory,
            leave: self.leave(None).await,
        })
        .await;
        Ok(fingerprint?)
    }

    /// What is in it.
    pub(super) fn level(&self) -> Level {
        self.stock.level()
    }

    /// Waits for this owner's turn, until one more sandbox may be disposed of: what is on its way out takes
    /// memory, ids and disk as well.
    pub(super) async fn leave(&self, owner: Option<&str>) -> Leave {
        let pass = self.disposals.enter(owner).await;
        Leave {
            waited: pass.waited(),
            owner: owner.map(str::to_owned),
            _pass: pass,
        }
    }

    /// Disposes of what a workspace is done with; what that was.
    pub(super) async fn dispose(&self, disposal: Disposal) -> Discarded {
        let Disposal {
            ending,
            range,
            storage,
            directory,
            leave,
        } = disposal;
        let left = match ending {
            Some(ending) => match ending.finish().await {
                Ok(left) => left,
                Err(error) => {
                    tracing::error!(%error, "cannot end a sandbox; its files and ids are kept until the next start");
                    // Its lock ends with this process: nobody else gets the ids while something may live.
                    std::mem::forget(range);
                    return Discarded::default();
                }
            },
            None => crate::pool::Left {
                processes: Some(0),
                room: None,
            },
        };
        let removed = self.remove(leave.owner.as_deref(), &directory).await;
        drop(leave);
        let (files, bytes) = match (storage, left.room) {
            (Storage::Directory, _) => {
                let removed = removed.map(|removed| (removed.files, removed.bytes));
                removed.unzip()
            }
            // As its own filesystem tells, which is gone.
            (Storage::Image(_) | Storage::Memory(_), Some(room)) => {
                (Some(room.inodes), Some(room.bytes))
            }
            (Storage::Image(_) | Storage::Memory(_), None) => (None, None),
        };
        Discarded {
            processes: left.processes,
            files,
            bytes,
        }
    }

    async fn remove(&self, owner: Option<&str>, directory: &Path) -> Option<Removed> {
        match self.state.remove(owner, directory).await {
            Ok(removed) => removed,
            Err(error) => {
                tracing::warn!(%error, "cannot discard files; the next start tries again");
                None
            }
        }
    }

    /// Puts away what is in it.
    pub(super) async fn close(&self) {
        self.stock.close().await;
    }
}

impl Kind {
    /// What a generation on a sandbox of this kind begins with.
    pub(super) fn begin(&self, range: &Range) -> Beginning {
        Beginning {
            stack: self.stack.clone(),
            range: range.number(),
            ids: range.ids(),
            storage: self.storage,
        }
    }
}

impl Maker for Nursery {
    type Kind = Kind;
    type Item = Ready;
    type Error = WorkspaceError;

    async fn make(&self, kind: Kind) -> Result<Ready, WorkspaceError> {
        let range = kind
            .stack
            .take_range(self.state.spawner().identity())
            .map_err(WorkspaceError::host("taking ids for a sandbox"))?;
        let directory = self.state.staging().join(Uuid::now_v7().to_string());
        let ids = range.ids();
        let started = async {
            let spec = spec(&self.state, self.confinement, &kind, directory.clone(), ids).await?;
            kind.begin(&range)
                .write(&directory)
                .map_err(WorkspaceError::host("noting what a sandbox begins with"))?;
            Ok(self.state.spawner().create(spec, &range).await?)
        };
        match started.await {
            Ok(sandbox) => Ok(Ready {
                sandbox,
                range,
                directory,
            }),
            Err(error) => {
                self.state.discard_or_say(&directory);
                Err(error)
            }
        }
    }

    fn is_sound(&self, item: &Ready) -> bool {
        let sound = item.sandbox.is_alive();
        if !sound {
            tracing::error!("a pristine sandbox died while it waited");
            let quarantined = &self.state.tally().quarantined;
            quarantined.fetch_add(1, Ordering::Relaxed);
        }
        sound
    }

    async fn put_away(&self, item: Ready) {
        let Ready {
            sandbox,
            range,
            directory,
        } = item;
        if let Err(error) = sandbox.end().await {
            tracing::error!(%error, "cannot end a pristine sandbox; its files and ids are kept until the next start");
            // As in `dispose`: nobody else gets the ids while something may live.
            std::mem::forget(range);
            return;
        }
        drop(range);
        self.state.discard_or_say(&directory);
    }
}

/// What a sandbox of this kind is to be, with `ids`, writing to `directory`, which is made.
pub(super) async fn spec(
    state: &State,
    confinement: Confinement,
    kind: &Kind,
    directory: PathBuf,
    ids: crate::sandbox::IdMap,
) -> Result<SandboxSpec, WorkspaceError> {
    let writable = state
        .make_writable(directory, kind.storage)
        .await
        .map_err(WorkspaceError::host("making a directory for a sandbox"))?;
    Ok(SandboxSpec {
        ids,
        overlays: kind.stack.overlays.clone(),
        writable,
        network: confinement.network,
        profile: confinement.profile,
        landlock: confinement.landlock,
        group: state.group(None, &kind.limits, &kind.requests)?,
        memory_files: (&kind.limits).into(),
        without: state.spawner().without().clone(),
    })
}
