//! What a sandbox is to be: the one message that the spawner needs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Without;
use super::cgroups::Group;

/// Everything that determines one sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Which ids the ids inside are.
    pub ids: IdMap,
    /// The root filesystem, then what is mounted in it, parents first. Overlay `n` keeps what is
    /// written to it in `upper/n` of `writable`.
    pub overlays: Vec<Overlay>,
    /// Where it writes to.
    pub writable: Writable,
    /// What network the sandbox has.
    pub network: Network,
    /// What it is let do about namespaces of its own.
    pub profile: Profile,
    /// Whether a kernel without landlock is refused.
    pub landlock: Requirement,
    /// The control groups that limit it, if it is limited.
    pub group: Option<Group>,
    /// Filesystems in memory that it has.
    pub memory_files: MemoryFiles,
    /// What a test has turned off.
    pub without: Without,
}

/// Where a sandbox's uppers are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Writable {
    /// A directory of the provider's own.
    pub directory: PathBuf,
    /// What there is in it.
    pub storage: Storage,
}

/// What a sandbox's uppers are kept on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    /// The filesystem of the directory, which has `upper` and `work`.
    #[default]
    Directory,
    /// A filesystem of this capacity in a file of the directory, made by the provider.
    Image(Capacity),
    /// Memory, as a filesystem of this capacity that ends with the sandbox.
    Memory(Capacity),
}

impl Storage {
    /// Whether it is the sandbox's alone, so that its being full says something of the sandbox.
    #[must_use]
    pub fn is_bounded(self) -> bool {
        self != Self::Directory
    }
}

/// How much a filesystem can take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Capacity {
    /// In bytes; half of the host's memory if absent.
    pub bytes: Option<u64>,
    /// Files and directories; the kernel's or derrick's own measure if absent.
    pub inodes: Option<u64>,
}

/// The filesystems in memory of a sandbox, with their sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFiles {
    /// Of `/dev/shm`; where absent, half of the host's memory, as the kernel has it.
    pub shm: Option<u64>,
    /// Of `/tmp`, empty at each start; where absent, `/tmp` is a part of the root.
    pub tmp: Option<u64>,
}

impl From<&Limits> for MemoryFiles {
    fn from(limits: &Limits) -> Self {
        Self {
            shm: limits.shm,
            tmp: limits.tmp,
        }
    }
}

/// What a sandbox may use; what is absent is not limited. Memory, processors and processes are what all
/// its processes use together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, the page cache and `/dev/shm` included; there is no swap beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processors' worth of time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Processes and threads at once, init not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Open files of each process of a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    /// Bytes of files in `/dev/shm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm: Option<u64>,
    /// Bytes of files in `/tmp`, which is in memory then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tmp: Option<u64>,
    /// Bytes that are kept of each stream of a command, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<u64>,
    /// Commands at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execs: Option<u32>,
    /// Bytes that it may write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Files and directories that it may make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
}

impl Limits {
    /// These, and those of `others` where these say nothing.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            memory: self.memory.or(others.memory),
            cpus: self.cpus.or(others.cpus),
            pids: self.pids.or(others.pids),
            open_files: self.open_files.or(others.open_files),
            shm: self.shm.or(others.shm),
            tmp: self.tmp.or(others.tmp),
            output: self.output.or(others.output),
            execs: self.execs.or(others.execs),
            disk: self.disk.or(others.disk),
            inodes: self.inodes.or(others.inodes),
        }
    }

    /// Checks that none is there without the one that it belongs to.
    ///
    /// # Errors
    /// The field, and a phrase that says what would be right.
    pub fn check_whole(&self) -> Result<(), (&'static str, String)> {
        if self.inodes.is_some() && self.disk.is_none() {
            let reason =
                "bounds the files on a disk whose size is not bounded; set \"disk\" as well";
            return Err(("inodes", reason.to_owned()));
        }
        Ok(())
    }
}

/// What a sandbox is to get where others want it as well; it may use more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// Bytes of memory that are taken from it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processors' worth of time, as a share of what there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
}

impl Requests {
    /// These, and those of `others` where these say nothing.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            memory: self.memory.or(others.memory),
            cpus: self.cpus.or(others.cpus),
        }
    }

    /// Checks that none is above its ceiling.
    ///
    /// # Errors
    /// The field, and a phrase that says what would be right.
    pub fn check_within(&self, limits: &Limits) -> Result<(), (&'static str, String)> {
        if let (Some(asked), Some(limit)) = (self.memory, limits.memory)
            && asked > limit
        {
            let reason = format!("{asked} is above limits.memory, {limit}; write that or less");
            return Err(("memory", reason));
        }
        if let (Some(asked), Some(limit)) = (self.cpus, limits.cpus)
            && asked > limit
        {
            let reason = format!("{asked} is above limits.cpus, {limit}; write that or less");
            return Err(("cpus", reason));
        }
        Ok(())
    }
}

/// A run of ids: `0..count` inside are `first..first + count` of the spawner's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMap {
    /// What root inside is.
    pub first: u32,
    /// How many ids there are.
    pub count: u32,
}

/// One overlay filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Where it is mounted inside; absolute, `/` for the first.
    pub at: PathBuf,
    /// Its lower directories, the topmost first.
    pub lowers: Vec<Lower>,
    /// Whether it can be written to.
    pub access: Access,
}

/// A lower directory and whose files it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lower {
    /// On the host; absolute, the provider's or the operator's, never made of a workspace's text.
    pub path: PathBuf,
    /// The id, in the spawner's user namespace, that owns on disk what root owns inside. Where it is
    /// not the sandbox's own first id, the lower is shown through an idmapped mount.
    pub first_id: u32,
}

/// Layers that are to become one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Merge {
    /// Whose they are to be.
    pub ids: IdMap,
    /// Those of each overlay.
    pub overlays: Vec<Merged>,
    /// The directory in which the new layer is made, as `tree`.
    pub into: PathBuf,
}

/// What is to be merged of one overlay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Merged {
    /// The number of the overlay.
    pub number: usize,
    /// What is merged, the uppermost first.
    pub layers: Vec<Lower>,
    /// What is below that, and stays.
    pub below: Vec<Lower>,
}

/// Whether an overlay has an upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Writes go to the upper.
    Writable,
    /// There is no upper; writes give `EROFS`.
    ReadOnly,
}

/// What network a sandbox has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A namespace of its own with loopback alone.
    None,
    /// The host's.
    Host,
}

impl Network {
    /// What it lacks beside a network of its own, for people.
    #[must_use]
    pub fn weaker(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Host => Some(
                "the host's network is shared, as the config asks, and /sys is empty: sysfs can only be mounted by the \
                 owner of the network",
            ),
        }
    }
}

/// What a sandbox is let do about namespaces of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// No namespace can be made or entered, and nothing mounted.
    Standard,
    /// They can, and whoever makes a user namespace is root in it; landlock confines no files.
    Nested,
}

impl Profile {
    /// What it lacks beside `Standard`, for people.
    #[must_use]
    pub fn weaker(self) -> Option<&'static str> {
        match self {
            Self::Standard => None,
            Self::Nested => Some(
                "namespaces can be nested, as the config asks: root of a user namespace that is made inside has \
                 every capability there, mounts filesystems and sets up \
                 networks of its own, traffic control included; landlock confines no files; so more of the kernel \
                 can be attacked",
            ),
        }
    }
}

/// What to do where a restriction cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Requirement {
    /// Refuse to start.
    Required,
    /// Start without it and say so.
    BestEffort,
}

/// What the kernel enforces on a sandbox, as its init found it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Enforcement {
    /// Kinds of namespaces that it has to itself, by the kernel's names.
    pub namespaces: Vec<String>,
    /// Ids inside.
    pub ids: u32,
    /// Whether it has a session keyring of its own.
    pub keyring: Keyring,
    /// Whether programs that are executed inside gain nothing by setuid or file capabilities.
    pub no_new_privs: bool,
    /// Resource limits that every process inside inherits, by their names in prlimit(1); bytes, or
    /// how many.
    pub rlimits: BTreeMap<String, u64>,
    /// What it is let do about namespaces of its own.
    pub profile: Profile,
    /// How much of the landlock domain is in force.
    pub landlock: Landlock,
    /// Seccomp filters in force.
    pub seccomp_filters: u32,
    /// Capabilities that root inside has, over the sandbox alone.
    pub capabilities: Vec<String>,
    /// The network it has.
    pub network: Network,
}

/// Which kernel keys a sandbox can reach, keyrings(7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keyring {
    /// Those of a session keyring of its own, which was empty.
    Own,
    /// None: this kernel has no keyrings.
    Absent,
    /// Those of whoever started derrick, as only a test has it.
    #[default]
    Inherited,
}

/// How much of the landlock domain a kernel enforces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Landlock {
    /// All of it.
    Full {
        /// The kernel's ABI version.
        abi: i32,
    },
    /// A part: this kernel is older than some of it.
    Partial {
        /// The kernel's ABI version.
        abi: i32,
        /// What is missing, for people.
        missing: Vec<String>,
    },
    /// The scoping of signals and abstract sockets alone: a domain over files would forbid mounting.
    Scopes {
        /// The kernel's ABI version.
        abi: i32,
    },
    /// Nothing.
    Off {
        /// The kernel's ABI version; 0 if it has none.
        abi: i32,
    },
}

impl Landlock {
    /// What is missing, for people; nothing where all is in force.
    #[must_use]
    pub fn weaker(&self) -> Option<String> {
        match self {
            // Of the latter the profile tells.
            Self::Full { .. } | Self::Scopes { .. } => None,
            Self::Partial { abi, missing } => Some(format!(
                "landlock ABI {abi} of this kernel is without {}",
                missing.join(", ")
            )),
            Self::Off { abi: 0 } => Some("landlock is off: this kernel has none".to_owned()),
            Self::Off { abi } => Some(format!("landlock is off: this kernel has ABI {abi}")),
        }
    }
}
