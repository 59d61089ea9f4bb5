//! What is told of an exec, and what is kept of it: one shape for both.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::log::Counts;
use crate::init::protocol::{Exit, Program, Status};
use crate::pool::exec::{Cause, Streams};
use crate::pool::{Gone, SandboxError};
use crate::sandbox::cgroups::Hits;
use crate::workspace::snapshots::SnapshotId;

/// Bytes of a command that its record repeats.
const SHOWN: usize = 4096;

/// Names one exec of a workspace.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
pub struct ExecId(uuid::Uuid);

impl ExecId {
    /// A new id; later ones sort after earlier ones.
    #[must_use]
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7())
    }
}

impl FromStr for ExecId {
    type Err = InvalidExecId;

    /// The canonical form only: lower case, with hyphens.
    fn from_str(text: &str) -> Result<Self, InvalidExecId> {
        match uuid::Uuid::try_parse(text) {
            Ok(id) if id.to_string() == text => Ok(Self(id)),
            _ => Err(InvalidExecId),
        }
    }
}

impl TryFrom<String> for ExecId {
    type Error = InvalidExecId;

    fn try_from(text: String) -> Result<Self, InvalidExecId> {
        text.parse()
    }
}

impl From<ExecId> for String {
    fn from(id: ExecId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for ExecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is no exec id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an exec id is a UUID in lower case, with hyphens")]
pub struct InvalidExecId;

/// How an exec ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// It exited by itself.
    Exited {
        /// 0 to 255.
        code: i32,
    },
    /// A signal ended it that derrick did not send.
    Signaled {
        /// The signal's number.
        signal: i32,
        /// The signal's name, such as `SIGKILL`.
        name: String,
    },
    /// Its deadline passed and derrick killed its process tree.
    Deadline,
    /// The workspace's limit on memory was reached, and all its processes were killed.
    Oom,
    /// It exited with a failure, and meanwhile the kernel had refused the workspace a process at its limit.
    PidsLimit {
        /// 1 to 255.
        code: i32,
    },
    /// It exited with a failure, and the workspace was at its limit on disk space or files then.
    DiskQuota {
        /// 1 to 255.
        code: i32,
    },
    /// Somebody asked derrick to kill it.
    Killed,
    /// Its workspace was reset.
    Reset,
    /// Its workspace was removed.
    Removed,
    /// derrick or the host failed, or derrick was ended; what it did until then is not known.
    Lost {
        /// What happened, for people.
        detail: String,
    },
}

impl Outcome {
    /// Every [`word`](Self::word).
    pub const WORDS: [&str; 10] = [
        "exited",
        "signaled",
        "deadline",
        "oom",
        "pids_limit",
        "disk_quota",
        "killed",
        "reset",
        "removed",
        "lost",
    ];

    /// Of a command that this signal ended.
    #[must_use]
    pub fn signaled(signal: i32) -> Self {
        Self::Signaled {
            signal,
            name: name_of(signal),
        }
    }

    /// Of a command that ended.
    #[must_use]
    pub fn of_exit(exit: &Exit, cause: Cause) -> Self {
        match (cause, exit.status) {
            (Cause::Deadline, _) => Self::Deadline,
            (Cause::Killed, _) => Self::Killed,
            (Cause::Own, Status::Code(code)) => Self::Exited { code },
            (Cause::Own, Status::Signal(signal)) => Self::signaled(signal),
        }
    }

    /// This one, where the kernel counted `before` the command and `after` it. A command that did
    /// not fail has met no limit, whatever others did.
    #[must_use]
    pub fn at_limits(self, before: &Hits, after: &Hits) -> Self {
        // What could not be read has not grown; what was not counted before begins with nothing.
        let grew =
            |count: fn(&Hits) -> Option<u64>| count(after) > Some(count(before).unwrap_or(0));
        match self {
            Self::Exited { code: 0 } => self,
            Self::Exited { .. } | Self::Signaled { .. } if grew(|it| it.oom_kills) => Self::Oom,
            Self::Exited { code } if grew(|it| it.pids_refused) => Self::PidsLimit { code },
            other => other,
        }
    }

    /// This one, where the disk of the workspace's own was full at the command's end.
    #[must_use]
    pub fn on_full_disk(self) -> Self {
        match self {
            Self::Exited { code } if code != 0 => Self::DiskQuota { code },
            other => other,
        }
    }

    /// Of a command whose sandbox failed it.
    #[must_use]
    pub fn of_error(error: &SandboxError) -> Self {
        match error {
            SandboxError::Gone(Gone::Reset) => Self::Reset,
            SandboxError::Gone(Gone::Removed) => Self::Removed,
            SandboxError::Gone(Gone::Frozen) => Self::Killed,
            SandboxError::Gone(Gone::OutOfMemory) => Self::Oom,
            other => Self::Lost {
                detail: crate::chain::text(other),
            },
        }
    }

    /// As a shell would report it: the exit code, or 128 + the signal; 124 for a deadline, as
    /// timeout(1), 137 where derrick killed it for another reason, 125 where derrick failed.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Exited { code } | Self::PidsLimit { code } | Self::DiskQuota { code } => *code,
            Self::Signaled { signal, .. } => 128 + signal,
            Self::Deadline => 124,
            Self::Oom | Self::Killed | Self::Reset | Self::Removed => 128 + libc::SIGKILL,
            Self::Lost { .. } => 125,
        }
    }

    /// One word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Exited { .. } => "exited",
            Self::Signaled { .. } => "signaled",
            Self::Deadline => "deadline",
            Self::Oom => "oom",
            Self::PidsLimit { .. } => "pids_limit",
            Self::DiskQuota { .. } => "disk_quota",
            Self::Killed => "killed",
            Self::Reset => "reset",
            Self::Removed => "removed",
            Self::Lost { .. } => "lost",
        }
    }
}

/// The name of a signal, signal(7).
fn name_of(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) if signal == libc::SIGRTMIN() => "SIGRTMIN".to_owned(),
        Err(_) if (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal) => {
            format!("SIGRTMIN+{}", signal - libc::SIGRTMIN())
        }
        Err(_) => format!("SIG{signal}"),
    }
}

/// Whether an exec has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecState {
    /// It has not.
    Running,
    /// It has.
    Ended,
}

/// Where an exec's stdin stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = StdinState)]
pub enum Stdin {
    /// It has none, or what it has came with the request.
    None,
    /// It can be written to.
    Open,
    /// It was closed, or the exec has ended.
    Closed,
}

/// CPU time of an exec, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Cpu {
    /// In user mode.
    pub user: f64,
    /// In the kernel.
    pub system: f64,
}

/// What was asked for, as far as it is repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// A command line for the shell.
    Cmd(String),
    /// A program and its arguments.
    Argv(Vec<String>),
}

impl Asked {
    /// What `program` was asked for as.
    pub(super) fn of(program: &Program) -> Self {
        match program {
            Program::Shell(line) => Self::Cmd(line.clone()),
            Program::Arguments(arguments) => Self::Argv(arguments.clone()),
            Program::Unpack(directory, _) => {
                Self::Argv(vec!["unpack".into(), directory.to_string()])
            }
            Program::Apply(..) => Self::Argv(vec!["apply".into()]),
            Program::Files(_) => Self::Argv(vec!["files".into()]),
        }
    }

    /// Keeps the start of it; whether something was left out.
    #[must_use]
    pub fn shortened(mut self) -> (Self, bool) {
        let mut room = SHOWN;
        let mut cut = false;
        let mut shorten = |text: &mut String| {
            let mut end = text.len().min(room);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            cut |= end < text.len();
            text.truncate(end);
            text.shrink_to_fit();
            room -= end;
        };
        match &mut self {
            Self::Cmd(line) => shorten(line),
            Self::Argv(arguments) => {
                let most = arguments.len().min(SHOWN / 8);
                arguments.iter_mut().take(most).for_each(&mut shorten);
                cut |= most < arguments.len();
                arguments.truncate(most);
                arguments.shrink_to_fit();
            }
        }
        (self, cut)
    }
}

/// An exec, as it is told and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Exec)]
pub struct ExecRecord {
    /// Its id.
    pub id: ExecId,
    /// Whether it has ended.
    pub state: ExecState,
    /// The command.
    #[serde(flatten)]
    pub asked: Asked,
    /// Whether only the start of the command is repeated here, since it is long.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub command_cut: bool,
    /// Its working directory; absolute.
    pub cwd: String,
    /// The user that it runs as, if it is not the workspace's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether stdout and stderr are told apart.
    pub streams: Streams,
    /// Where its stdin stands.
    pub stdin: Stdin,
    /// When it was started, seconds since 1970.
    pub started: f64,
    /// When it ended, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<f64>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// As a shell would report it, see `outcome`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// How long it took, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall: Option<f64>,
    /// What its leader, and what that waited for, used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Resident memory of the largest of these processes at its peak, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// What it printed to stdout; to both, where they are merged or a terminal.
    pub stdout: Counts,
    /// What it printed to stderr.
    pub stderr: Counts,
    /// Whether a part of its output is not kept.
    pub truncated: bool,
    /// Processes that it left running.
    #[serde(default)]
    pub detached: u64,
    /// The snapshot of what the workspace was after it, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotId>,
    /// Why there is none, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_failed: Option<String>,
}

impl ExecRecord {
    /// Notes how it ended.
    pub(super) fn end(&mut self, outcome: Outcome, wall: Duration, exit: Option<&Exit>) {
        self.state = ExecState::Ended;
        self.ended = Some(crate::clock::precise());
        self.exit_code = Some(outcome.exit_code());
        self.outcome = Some(outcome);
        self.wall = Some(wall.as_secs_f64());
        if self.stdin == Stdin::Open {
            self.stdin = Stdin::Closed;
        }
        if let Some(exit) = exit {
            self.cpu = Some(Cpu {
                user: exit.usage.user.as_secs_f64(),
                system: exit.usage.system.as_secs_f64(),
            });
            self.peak_memory = Some(exit.usage.peak_memory);
            self.detached = exit.detached;
        }
    }

    /// As it was before its end.
    pub(super) fn forget_end(&mut self) {
        self.state = ExecState::Running;
        (self.ended, self.wall) = (None, None);
        (self.exit_code, self.outcome) = (None, None);
        (self.cpu, self.peak_memory, self.detached) = (None, None, 0);
        self.snapshot_failed = None;
    }

    /// Whether it can be true, as far as others reckon with it.
    pub(super) fn is_possible(&self) -> bool {
        self.stdout.are_possible() && self.stderr.are_possible()
    }

    /// Notes what it has printed.
    pub(super) fn count(&mut self, stdout: Counts, stderr: Counts) {
        self.stdout = stdout;
        self.stderr = stderr;
        self.truncated = stdout.omitted + stderr.omitted > 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcomes_word_is_the_one_that_is_written() {
        let detail = String::new();
        let all = [
            Outcome::Exited { code: 0 },
            Outcome::signaled(9),
            Outcome::Deadline,
            Outcome::Oom,
            Outcome::PidsLimit { code: 1 },
            Outcome::DiskQuota { code: 1 },
            Outcome::Killed,
            Outcome::Reset,
            Outcome::Removed,
            Outcome::Lost { detail },
        ];
        assert_eq!(all.each_ref().map(Outcome::word), Outcome::WORDS);
        for outcome in all {
            let written = serde_json::to_value(&outcome).unwrap();
            assert_eq!(written["kind"], outcome.word());
        }
    }

    #[test]
    fn every_signal_has_a_name() {
        for (signal, name) in [
            (1, "SIGHUP"),
            (31, "SIGSYS"),
            (32, "SIG32"),
            (34, "SIGRTMIN"),
            (64, "SIGRTMIN+30"),
        ] {
            assert_eq!(name_of(signal), name);
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = ExecId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "..",
            &id.to_string().to_uppercase(),
            &id.0.simple().to_string(),
            &format!("{{{id}}}"),
        ] {
            assert_eq!(bad.parse::<ExecId>(), Err(InvalidExecId), "{bad:?}");
        }
    }

    #[test]
    fn a_long_command_is_cut_between_characters() {
        let short = Asked::Argv(vec!["ls".into(), String::new()]);
        assert_eq!(short.clone().shortened(), (short, false));
        let (Asked::Cmd(line), true) = Asked::Cmd("ü".repeat(SHOWN)).shortened() else {
            panic!("not cut");
        };
        assert_eq!(line.len(), SHOWN);
        let (Asked::Argv(arguments), true) = Asked::Argv(vec!["x".repeat(10); 100_000]).shortened()
        else {
            panic!("not cut");
        };
        assert!(arguments.concat().len() <= SHOWN && arguments.len() <= SHOWN / 8);
    }
}
