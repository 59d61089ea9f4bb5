//! What spawner, init and provider say to each other about one sandbox.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::files::protocol::{FileRequest, RawPath};
use super::unpack::Compression;
use crate::sandbox::{Enforcement, Failure};
use crate::sys::terminal::Size;

/// Said by init to the spawner, once.
#[derive(Debug, Serialize, Deserialize)]
pub enum Birth {
    /// The sandbox is assembled, and waits to be adopted.
    Ready,
    /// A step failed, which ends it.
    Failed(Failure),
}

/// Said by the spawner to a sandbox's init, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub enum Go {
    /// The maps are written.
    Mapped,
    /// The overlays are mounted; comes with them, in the order of the spec.
    Mounted,
}

/// The provider's name for one request; replies carry it.
pub type RequestId = u64;

/// Asked by the provider.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Take this hostname, give up what a sandbox may not do, and serve: the first request, once.
    Adopt(RequestId, String),
    /// Start a command. Comes with its stdout and stderr, or with stdin, stdout, stderr and what it
    /// is to have from descriptor 3 on; without any for a terminal. Without a stdin, it reads the
    /// sandbox's `/dev/null`.
    Exec(RequestId, Exec),
    /// Kill the whole process tree of the exec that was started by this request.
    Kill(RequestId),
    /// Send a signal, by its number, to the exec that was started by this request; nothing happens
    /// if it has ended.
    Signal(RequestId, i32, Target),
    /// Count the processes of the sandbox, init apart.
    Count(RequestId),
    /// Stop all processes and start none, until they are to go on.
    Hold(RequestId),
    /// Start none until they are to go on; somebody else stops them.
    Suspend(RequestId),
    /// Have them go on.
    Release,
    /// Count those that go on all the same, while all are to be stopped: in a system call, until that ends.
    Unsettled(RequestId),
    /// Tell how full the filesystem is that the sandbox writes to.
    Room(RequestId),
    /// Kill all processes at a stroke and end; the last request.
    End(RequestId),
}

/// A command to start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Exec {
    /// What to run.
    pub program: Program,
    /// Where; absolute.
    pub directory: String,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
    /// A terminal of the sandbox's own of this size, instead of descriptors.
    pub terminal: Option<Size>,
    /// The name or number of a user of the workspace; root if absent.
    pub user: Option<String>,
    /// Open files of each of its processes; absent for as many as every command may have. What is built in
    /// is not limited.
    pub open_files: Option<u32>,
}

/// What an exec runs.
#[derive(Debug, Serialize, Deserialize)]
pub enum Program {
    /// A command line for bash, or sh where there is no bash.
    Shell(String),
    /// A program, looked up in `PATH` of the exec's environment, and its arguments.
    Arguments(Vec<String>),
    /// The built-in unpacker: reads an archive from stdin, writes below a directory, reports an
    /// `Unpacked` in JSON on stdout.
    Unpack(RawPath, Compression),
    /// The built-in unpacker, of a snapshot that stands on the setup layer of this digest: reads its archive
    /// from stdin, changes these filesystems, reports an `Unpacked` of an `Applied` in JSON on stdout.
    Apply(Vec<RawPath>, String),
    /// The built-in program for files: does one request, and talks over the socket that is its stdin.
    Files(FileRequest),
}

/// What the built-in unpacker reports.
#[derive(Debug, Serialize, Deserialize)]
pub enum Unpacked<T = super::unpack::Summary> {
    /// What came of it.
    Done(T),
    /// Why not.
    Failed {
        /// What was wrong with which entry.
        message: String,
        /// The kernel's errno, if it refused.
        errno: Option<i32>,
    },
}

/// Answered by init.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is confined like this, and no other process is there.
    Adopted(RequestId, Box<Enforcement>),
    /// A step of that failed; it ends.
    NotAdopted(RequestId, Failure),
    /// The exec's program runs; comes with the master of its terminal if it has one.
    Started(RequestId),
    /// The exec that was started by this request ended.
    Exited(RequestId, Exit),
    /// This many processes.
    Counted(RequestId, u64),
    /// They are stopped.
    Held(RequestId),
    /// This full.
    Room(RequestId, Room),
    /// None runs any more. This full is what the sandbox wrote to.
    Killed(RequestId, Room),
    /// So many there were; init is the last one.
    Ended(RequestId, u64),
    /// It cannot be done.
    Refused(RequestId, Refusal),
}

impl Reply {
    /// The request that this answers.
    #[must_use]
    pub fn request(&self) -> RequestId {
        match self {
            Self::Adopted(id, _)
            | Self::NotAdopted(id, _)
            | Self::Started(id)
            | Self::Exited(id, _)
            | Self::Counted(id, _)
            | Self::Held(id)
            | Self::Room(id, _)
            | Self::Killed(id, _)
            | Self::Ended(id, _)
            | Self::Refused(id, _) => *id,
        }
    }
}

/// Which processes of an exec get a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The process that the exec started as.
    Leader,
    /// The process group that it leads.
    Group,
    /// It and everything below it.
    Tree,
    /// Everything below it.
    Descendants,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As wait(2) tells.
    pub status: Status,
    /// Whether it was alive when init killed its tree.
    pub killed: bool,
    /// Processes of its tree that were alive when its leader ended, and live on.
    pub detached: u64,
    /// What it used.
    pub usage: Usage,
    /// Whether nothing more could be written to the sandbox's root just then.
    pub full: bool,
}

/// How full a filesystem is, as statvfs(3) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Bytes that are used.
    pub bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Files and directories.
    pub inodes: u64,
    /// How many more there can be.
    pub free_inodes: u64,
}

impl Room {
    /// That of the calling process's root.
    ///
    /// # Errors
    /// Those of statvfs(3).
    pub fn here() -> std::io::Result<Self> {
        let status = rustix::fs::statvfs("/")?;
        Ok(Self {
            bytes: status.f_blocks.saturating_sub(status.f_bfree) * status.f_frsize,
            free_bytes: status.f_bavail * status.f_frsize,
            inodes: status.f_files.saturating_sub(status.f_ffree),
            free_inodes: status.f_favail,
        })
    }

    /// Whether hardly anything more can be written. Filesystems refuse larger writes before the last
    /// block is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let all = self.bytes + self.free_bytes;
        self.free_bytes < (all / 64).min(1 << 20) || self.free_inodes == 0
    }
}

/// What a command and those of its descendants that were waited for, or killed with it, used, as
/// getrusage(2) tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// Resident memory of the largest one at its peak, in bytes; no less than init has, whose copy
    /// each begins as.
    pub peak_memory: u64,
}

impl Usage {
    /// Adds what another process used.
    pub fn add(&mut self, other: &Self) {
        self.user += other.user;
        self.system += other.system;
        self.peak_memory = self.peak_memory.max(other.peak_memory);
    }
}

/// As wait(2) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Its exit code.
    Code(i32),
    /// The signal that ended it.
    Signal(i32),
}

/// Why a request cannot be done, from the sandbox's point of view.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refusal {
    /// What was attempted.
    pub attempt: Attempt,
    /// The kernel's errno.
    pub errno: i32,
}

/// What init attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attempt {
    /// Going to the exec's directory.
    Directory,
    /// Becoming the user, whose uid is told once it is known: `ENOENT` if there is none of that
    /// name, `EINVAL` with a uid that the sandbox does not have.
    User(Option<u32>),
    /// Starting a process.
    Start,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "entering the working directory",
            Self::User(_) => "becoming the user",
            Self::Start => "starting the command",
        })
    }
}
