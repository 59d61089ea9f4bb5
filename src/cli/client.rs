//! What a person may type to a provider that runs already.
//!
//! Workspaces, execs and files are named here as they are typed; what a part of an id stands for is
//! the provider's to say, later.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, ValueEnum};
use hyper::http::uri::Authority;
use serde::Serialize;

use super::ReportFormat;

/// What exit codes of most of these commands mean.
const EXIT_CODES: &str = "Exits with 0 if it is done, 1 if derrick says that it cannot be (there is no such workspace, exec or file, or it is not allowed), 125 if derrick cannot be reached or fails.";
/// The same for the commands that end with an exec's own.
const EXEC_EXIT_CODES: &str = "Exits with the command's exit code, 128 + the signal that ended it, 124 if its deadline passed, 137 if it was killed or its workspace was reset or removed, 125 if derrick failed or the command is lost. ctrl-c interrupts the command; a second one kills it with all its processes.";

/// Where the provider is.
#[derive(Debug, Clone, Args)]
pub struct ProviderArgs {
    /// The provider: http://HOST:PORT, or unix: and the path of its socket.
    #[arg(
        long,
        value_name = "http://HOST:PORT|unix:PATH",
        env = "DERRICK_SERVER",
        default_value = "http://127.0.0.1:50080"
    )]
    pub server: Server,
    /// Show the bearer token in this file to the provider.
    #[arg(long, value_name = "FILE", env = "DERRICK_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

/// How an answer is printed.
#[derive(Debug, Clone, Args)]
pub struct FormatArgs {
    /// Print one JSON object on stdout.
    #[arg(long)]
    json: bool,
}

impl FormatArgs {
    /// How to print the answer.
    #[must_use]
    pub fn format(&self) -> ReportFormat {
        if self.json {
            ReportFormat::Json
        } else {
            ReportFormat::Text
        }
    }
}

/// A new workspace.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct CreateArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is the id.
    #[command(flatten)]
    pub format: FormatArgs,
    /// Set a variable for every command in it. Repeatable.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<Variable>,
    /// Have it start from this snapshot: its id, or the beginning or end of it.
    #[arg(long, value_name = "SNAPSHOT")]
    pub snapshot: Option<IdPart>,
    /// Have it removed after so long, unless it is renewed.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub ttl: Option<Duration>,
    /// Have it removed when nobody has asked for it and nothing has run in it for so long.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub idle_timeout: Option<Duration>,
    /// Wait at most so long for a place where there is none now.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub wait: Option<Duration>,
    /// Stay after the id is printed, and have it removed with this command's end, however it ends.
    #[arg(long)]
    tied: bool,
}

impl CreateArgs {
    /// What ends it besides what the provider is asked for.
    #[must_use]
    pub fn tie(&self) -> Tie {
        if self.tied {
            Tie::ToThisCommand
        } else {
            Tie::None
        }
    }
}

/// How many more workspaces there is room for.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct CapacityArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is the number.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// What a workspace ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    /// Nothing.
    None,
    /// The command that made it.
    ToThisCommand,
}

/// A time to live that is to begin anew.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct RenewArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is when the workspace ends.
    #[command(flatten)]
    pub format: FormatArgs,
    /// How long it is from now on; as long as before if absent.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub ttl: Option<Duration>,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
}

/// New commits that are wanted.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct FetchArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is a line for each repository.
    #[command(flatten)]
    pub format: FormatArgs,
    /// The path of the one repository that is meant.
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// A branch, a tag or a commit of it, instead of what the config says.
    #[arg(long, value_name = "REFERENCE")]
    pub reference: Option<String>,
    /// What becomes of what is checked out.
    #[arg(long, value_enum, default_value_t)]
    pub update: UpdateArg,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
}

/// A commit to be made.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct CommitArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is a line.
    #[command(flatten)]
    pub format: FormatArgs,
    /// The path of the repository in the workspace; the config's only one if absent.
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// What the commit says.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub message: String,
    /// Whose it is: a name, and an address between < and >.
    #[arg(long, value_name = "NAME <EMAIL>")]
    pub author: AuthorArg,
    /// When it was made, as in 2026-01-31T12:00:00Z; now if absent.
    #[arg(long, value_name = "TIME")]
    pub date: Option<String>,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
}

/// Who makes a commit, as git writes it.
#[derive(Debug, Clone, Serialize)]
pub struct AuthorArg {
    /// The name.
    pub name: String,
    /// The address.
    pub email: String,
}

impl FromStr for AuthorArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('<');
        let parts = parts.and_then(|(name, email)| Some((name, email.strip_suffix('>')?)));
        let (name, email) =
            parts.ok_or("expected a name and an address, as in \"Ada <ada@example.org>\"")?;
        Ok(Self {
            name: name.trim().to_owned(),
            email: email.to_owned(),
        })
    }
}

/// A repository to be taken out.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct BundleArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// The path of the repository in the workspace; the config's only one if absent.
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// A branch or a tag of it, or HEAD; all of these if absent.
    #[arg(long, value_name = "REFERENCE")]
    pub reference: Option<String>,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
}

/// Commits to be pushed.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct PushArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is a line.
    #[command(flatten)]
    pub format: FormatArgs,
    /// The path of the repository in the workspace; the config's only one if absent.
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// A branch of it; what is checked out if absent.
    #[arg(long, value_name = "BRANCH")]
    pub branch: Option<String>,
    /// The branch of the upstream; that of the same name if absent.
    #[arg(long, value_name = "BRANCH")]
    pub to: Option<String>,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
}

/// What becomes of what is checked out.
#[derive(Debug, Clone, Copy, Default, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateArg {
    /// Nothing.
    #[default]
    None,
    /// The branch moves on, if it has nothing of its own.
    FastForward,
    /// The new commit is checked out; changes of tracked files are lost.
    Reset,
}

/// What to list.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct LsArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the list.
    #[command(flatten)]
    pub format: FormatArgs,
    /// Print ids, or names, and nothing else.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Nothing: all workspaces. A workspace: its execs. A path in one: the file, or what the directory holds.
    #[arg(value_name = "WORKSPACE[:/PATH]", value_parser = os_parser(Listed::parse))]
    listed: Option<Listed>,
}

impl LsArgs {
    /// What to list.
    #[must_use]
    pub fn listed(&self) -> Listed {
        self.listed.clone().unwrap_or(Listed::Workspaces)
    }

    /// How much to say of each thing.
    #[must_use]
    pub fn columns(&self) -> Columns {
        if self.quiet {
            Columns::NameOnly
        } else {
            Columns::All
        }
    }
}

/// What `ls` lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// All workspaces.
    Workspaces,
    /// The execs of one.
    Execs(IdPart),
    /// A directory of one, or a file.
    Files(PathInside),
}

/// How much is said of each thing in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// Its id or its name.
    NameOnly,
    /// All that fits on a line.
    All,
}

/// A command in a workspace.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXEC_EXIT_CODES)]
pub struct ExecArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// Give it stdin.
    #[arg(short, long, conflicts_with = "detach")]
    interactive: bool,
    /// Give it a terminal; ctrl-p ctrl-q leaves it running.
    #[arg(short, long, conflicts_with = "json")]
    tty: bool,
    /// Print its id and leave it running.
    #[arg(short, long)]
    detach: bool,
    /// Print one JSON object on stdout instead of what the command prints: the exec when it has ended (with -d: as it began), and as `output` its stdout and stderr, at most 1 MiB of each end to end.
    #[arg(long)]
    json: bool,
    /// Where it starts; relative to the config's workdir.
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Set a variable for it. Repeatable.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<Variable>,
    /// The user that it runs as: a name of the workspace's, or a number.
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Kill it with all its processes after so long.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// How much of each stream the provider keeps, half from its start and half from its end: bytes, or such as 10MiB; at most 1GiB, which is the default without -d. Output that was not kept until it could be read makes the exit code 125.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub output_limit: Option<u64>,
    /// Run this line with the workspace's shell.
    #[arg(long, value_name = "LINE", conflicts_with = "command")]
    cmd: Option<String>,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
    /// The program and its arguments.
    #[arg(last = true, required_unless_present = "cmd", value_name = "CMD")]
    command: Vec<String>,
}

impl ExecArgs {
    /// What to run.
    #[must_use]
    pub fn program(&self) -> TypedProgram {
        match &self.cmd {
            Some(line) => TypedProgram::Line(line.clone()),
            None => TypedProgram::Arguments(self.command.clone()),
        }
    }

    /// Where its stdin comes from.
    #[must_use]
    pub fn input(&self) -> Input {
        if self.interactive {
            Input::Own
        } else {
            Input::None
        }
    }

    /// Whether it has a terminal.
    #[must_use]
    pub fn streams(&self) -> TypedStreams {
        if self.tty {
            TypedStreams::Terminal
        } else {
            TypedStreams::Apart
        }
    }

    /// Whether to stay until its end.
    #[must_use]
    pub fn stay(&self) -> Stay {
        if self.detach {
            Stay::UntilStarted
        } else {
            Stay::UntilEnded
        }
    }

    /// What to print on stdout.
    #[must_use]
    pub fn format(&self) -> ReportFormat {
        if self.json {
            ReportFormat::Json
        } else {
            ReportFormat::Text
        }
    }
}

/// What `exec` runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TypedProgram {
    /// A program and its arguments.
    Arguments(Vec<String>),
    /// A line for the workspace's shell.
    Line(String),
}

/// Where a command's stdin comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// It has none.
    None,
    /// This process's own.
    Own,
}

/// What a command's output comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypedStreams {
    /// stdout and stderr, each for itself.
    Apart,
    /// One terminal.
    Terminal,
}

/// How long `exec` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// As long as the command.
    UntilEnded,
    /// Until the command has begun.
    UntilStarted,
}

/// A running exec to be joined.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXEC_EXIT_CODES)]
pub struct AttachArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// Begin with all that it has printed so far.
    #[arg(long)]
    from_start: bool,
    /// Only watch: give it none of stdin, and not its end either.
    #[arg(long)]
    no_stdin: bool,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
    /// The exec: its id, or the beginning or end of it.
    pub exec: IdPart,
}

impl AttachArgs {
    /// What becomes of stdin.
    #[must_use]
    pub fn input(&self) -> Input {
        if self.no_stdin {
            Input::None
        } else {
            Input::Own
        }
    }

    /// Where in the output to begin.
    #[must_use]
    pub fn begin(&self) -> Begin {
        if self.from_start {
            Begin::AtStart
        } else {
            Begin::Now
        }
    }
}

/// Where in the output of an exec to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With its first byte.
    AtStart,
    /// With what it prints from now on.
    Now,
}

/// The output of an exec.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct LogsArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// Go on until the exec has ended.
    #[arg(short, long)]
    follow: bool,
    /// Print one stream only, to stdout; without it stdout goes to stdout and stderr to stderr.
    #[arg(long, value_enum, value_name = "STREAM")]
    pub stream: Option<OneStream>,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
    /// The exec: its id, or the beginning or end of it.
    pub exec: IdPart,
}

impl LogsArgs {
    /// How much of the output to print.
    #[must_use]
    pub fn until(&self) -> Until {
        if self.follow {
            Until::Ended
        } else {
            Until::Now
        }
    }
}

/// How much of an exec's output is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// What there is.
    Now,
    /// Everything, as it is printed.
    Ended,
}

/// One of an exec's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OneStream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// Something to be copied.
#[derive(Debug, Clone, Args)]
#[command(after_help = CP_HELP)]
pub struct CpArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print what was copied; as text nothing is.
    #[command(flatten)]
    pub format: FormatArgs,
    /// What to copy: WORKSPACE:/PATH, a path of this host, or - for stdin.
    #[arg(value_name = "SRC", value_parser = os_parser(CopyEnd::parse))]
    source: CopyEnd,
    /// Where to: WORKSPACE:/PATH, a path of this host, or - for stdout. Into a directory that exists, or to that very name.
    #[arg(value_name = "DST", value_parser = os_parser(CopyEnd::parse))]
    destination: CopyEnd,
}

const CP_HELP: &str = "A directory is copied with all that is in it; with /. at the end of SRC, what is in it goes into DST. To stdout a directory goes as a tar archive. A host file with a colon in its name is written ./a:b.

Modes are kept; owners are not, and files that come from a workspace get neither setuid or setgid nor what this process's umask forbids. Links that would lead out of the copied directory do not leave a workspace; devices, FIFOs and sockets are not copied at all. What was left out is said on stderr.

Exits with 0 if everything was copied, 1 if something was left out or derrick says that it cannot be done (there is no such workspace or file, or it is not allowed), 125 if derrick cannot be reached or something fails.";

impl CpArgs {
    /// What is copied where.
    ///
    /// # Errors
    /// Unless one of the two is in a workspace and the other is not, and there is one thing at most for stdout.
    pub fn copy(&self) -> Result<Copy, NoCopy> {
        let printed = self.format.format() == ReportFormat::Json;
        match (self.source.clone(), self.destination.clone()) {
            (CopyEnd::Inside(_), CopyEnd::Here(Here::Standard)) if printed => Err(NoCopy::Twice),
            (CopyEnd::Inside(from), CopyEnd::Here(to)) => Ok(Copy::Out { from, to }),
            (CopyEnd::Here(from), CopyEnd::Inside(to)) => Ok(Copy::In { from, to }),
            (CopyEnd::Inside(_), CopyEnd::Inside(_)) => Err(NoCopy::BothInside),
            (CopyEnd::Here(_), CopyEnd::Here(_)) => Err(NoCopy::BothHere),
        }
    }
}

/// What `cp` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copy {
    /// Out of a workspace.
    Out {
        /// What.
        from: PathInside,
        /// Where to.
        to: Here,
    },
    /// Into a workspace.
    In {
        /// What.
        from: Here,
        /// Where to.
        to: PathInside,
    },
}

/// Two ends that no copy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoCopy {
    /// Neither is in a workspace.
    #[error("one of the two must be in a workspace: write it WORKSPACE:/PATH")]
    BothHere,
    /// Both are.
    #[error(
        "one of the two must be on this host; inside a workspace, 'derrick exec … -- cp' copies"
    )]
    BothInside,
    /// The copy and its description would both be printed.
    #[error("--json prints on stdout, where the copy goes")]
    Twice,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CopyEnd {
    Inside(PathInside),
    Here(Here),
}

impl CopyEnd {
    fn parse(text: &OsStr) -> Result<Self, InvalidPath> {
        if text == "-" {
            return Ok(Self::Here(Here::Standard));
        }
        match PathInside::split(text) {
            Some((workspace, path)) => PathInside::new(workspace, path).map(Self::Inside),
            None if text.is_empty() => Err(InvalidPath::Empty),
            None => Ok(Self::Here(Here::Path(text.into()))),
        }
    }
}

/// The end of a copy that is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Here {
    /// A file or a directory.
    Path(PathBuf),
    /// stdin or stdout.
    Standard,
}

fn here(text: &str) -> Result<Here, std::convert::Infallible> {
    Ok(match text {
        "-" => Here::Standard,
        path => Here::Path(path.into()),
    })
}

/// Limits to be shown or changed.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct LimitsArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print them.
    #[command(flatten)]
    pub format: FormatArgs,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
    /// What is to be different, such as memory=1GiB, pids=none or request.cpus=0.5: the limits of the config, and its requests after 'request.'.
    #[arg(value_name = "NAME=VALUE", value_parser = limit)]
    pub changes: Vec<LimitChange>,
}

/// One limit or request that is to be different.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitChange {
    /// `limits` or `requests`.
    pub object: &'static str,
    /// The field of it.
    pub name: String,
    /// A number, a text or null.
    pub value: serde_json::Value,
}

fn limit(text: &str) -> Result<LimitChange, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("write NAME=VALUE, such as memory=1GiB, or NAME=none")?;
    let (object, name) = match name.strip_prefix("request.") {
        Some(name) => ("requests", name),
        None => ("limits", name),
    };
    let number = || value.parse::<serde_json::Number>().ok();
    Ok(LimitChange {
        object,
        name: name.to_owned(),
        value: match value {
            "none" => serde_json::Value::Null,
            _ => number().map_or_else(|| value.into(), Into::into),
        },
    })
}

/// Workspaces to be reset.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ResetArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the receipt.
    #[command(flatten)]
    pub format: FormatArgs,
    /// To this snapshot, this time: its id, or the beginning or end of it.
    #[arg(long, value_name = "SNAPSHOT")]
    pub to: Option<IdPart>,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
}

/// A workspace to be paused.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct PauseArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text nothing is.
    #[command(flatten)]
    pub format: FormatArgs,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
}

/// A workspace to be resumed.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ResumeArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text nothing is.
    #[command(flatten)]
    pub format: FormatArgs,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
}

/// Changes to be shown.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct DiffArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// Print a patch that git apply takes.
    #[arg(short, long, conflicts_with = "json")]
    patch: bool,
    /// Leave binary files out of the patch.
    #[arg(long, requires = "patch")]
    no_binary: bool,
    /// Have ignored files in the patch.
    #[arg(long, requires = "patch")]
    ignored: bool,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
    /// What changed at this path alone. A patch is relative to it; without it, to the workspace's repository.
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
}

/// As what changes are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A line for each.
    List,
    /// The answer.
    Json,
    /// A patch.
    Patch,
}

impl DiffArgs {
    /// As what they are printed.
    #[must_use]
    pub fn shape(&self) -> Shape {
        match (self.patch, self.json) {
            (true, _) => Shape::Patch,
            (_, true) => Shape::Json,
            _ => Shape::List,
        }
    }

    /// What is asked of the provider for a patch: each parameter with its value.
    #[must_use]
    pub fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = vec![
            ("format", "patch".to_owned()),
            ("binary", (!self.no_binary).to_string()),
            ("ignored", self.ignored.to_string()),
        ];
        query.extend(self.path.clone().map(|path| ("path", path)));
        query
    }
}

/// A snapshot to be taken.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct SnapshotArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is the snapshot's id.
    #[command(flatten)]
    pub format: FormatArgs,
    /// What to call it.
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
}

/// Snapshots to be listed.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct SnapshotsArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the list.
    #[command(flatten)]
    pub format: FormatArgs,
    /// Print ids and nothing else.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Those of this workspace alone: its id, or the beginning or end of it.
    pub workspace: Option<IdPart>,
}

impl SnapshotsArgs {
    /// How much to say of each.
    #[must_use]
    pub fn columns(&self) -> Columns {
        if self.quiet {
            Columns::NameOnly
        } else {
            Columns::All
        }
    }
}

/// A snapshot to be shown.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ShowArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print it.
    #[command(flatten)]
    pub format: FormatArgs,
    /// The snapshot: its id, or the beginning or end of it.
    pub snapshot: IdPart,
}

/// A snapshot to be called something else.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct LabelArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text nothing is.
    #[command(flatten)]
    pub format: FormatArgs,
    /// The snapshot: its id, or the beginning or end of it.
    pub snapshot: IdPart,
    /// What to call it; nothing if absent.
    #[arg(value_name = "TEXT")]
    pub label: Option<String>,
}

/// A snapshot to be written as an archive.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ExportArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// Compress it, by zstd.
    #[arg(short, long)]
    zstd: bool,
    /// The snapshot: its id, or the beginning or end of it.
    pub snapshot: IdPart,
    /// The file; stdout if absent or '-'.
    #[arg(value_name = "FILE", value_parser = here)]
    pub to: Option<Here>,
}

impl ExportArgs {
    /// How it is compressed, if it is.
    #[must_use]
    pub fn compression(&self) -> Option<&'static str> {
        self.zstd.then_some("tar.zst")
    }
}

/// An archive of a snapshot to be taken in.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ImportArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is the snapshot's id.
    #[command(flatten)]
    pub format: FormatArgs,
    /// The file; '-' for stdin.
    #[arg(value_name = "FILE", value_parser = here)]
    pub from: Here,
}

/// Snapshots to be removed.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ForgetArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is the ids of those that were removed.
    #[command(flatten)]
    pub format: FormatArgs,
    /// The snapshots: their ids, or the beginning or end of them.
    #[arg(required = true, value_name = "SNAPSHOT")]
    pub snapshots: Vec<IdPart>,
}

/// Workspaces to be made of another one.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ForkArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is the ids of the new ones, a line each.
    #[command(flatten)]
    pub format: FormatArgs,
    /// What to call the snapshot.
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
    /// How many.
    #[arg(default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: u32,
}

/// A workspace to be fenced.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct FenceArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is the snapshot's id.
    #[command(flatten)]
    pub format: FormatArgs,
    /// When, such as 2026-01-31T12:00:00Z; now if absent.
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// The workspace: its id, or the beginning or end of it.
    pub workspace: IdPart,
}

/// Workspaces to be removed.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub struct RmArgs {
    /// Where the provider is.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How to print the answer; as text it is the ids of those that were removed.
    #[command(flatten)]
    pub format: FormatArgs,
    /// The workspaces: their ids, or the beginning or end of them.
    #[arg(required = true, value_name = "WORKSPACE")]
    pub workspaces: Vec<IdPart>,
}

/// Where a provider listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// A host and a port, as they stand in a URL.
    Tcp(Authority),
    /// The absolute path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Server {
    type Err = InvalidServer;

    fn from_str(text: &str) -> Result<Self, InvalidServer> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = std::path::absolute(path).map_err(|_| InvalidServer::NoPath)?;
            return Ok(Self::Unix(path));
        }
        if text.starts_with("https:") {
            return Err(InvalidServer::NoTls);
        }
        let authority = text.strip_prefix("http://").unwrap_or(text);
        let authority: Authority = authority
            .strip_suffix('/')
            .unwrap_or(authority)
            .parse()
            .map_err(|_| InvalidServer::NoAddress)?;
        let fits = authority.port_u16().is_some_and(|port| port != 0)
            && !authority.host().is_empty()
            && !authority.as_str().contains('@');
        if fits {
            Ok(Self::Tcp(authority))
        } else {
            Err(InvalidServer::NoAddress)
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(authority) => write!(f, "http://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A text that says no place where a provider could listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidServer {
    /// Neither an address and a port nor a socket.
    #[error("write http://HOST:PORT such as http://127.0.0.1:50080, or unix: and a path")]
    NoAddress,
    /// There is no path after `unix:`.
    #[error("write the path of the socket after unix:, such as unix:/run/derrick.sock")]
    NoPath,
    /// derrick has no TLS.
    #[error(
        "derrick speaks no TLS; write http://, and reach another host through a tunnel such as ssh -L"
    )]
    NoTls,
}

/// A part of an id that stands for the whole: its beginning or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdPart(String);

impl IdPart {
    /// The part.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdPart {
    type Err = InvalidIdPart;

    fn from_str(text: &str) -> Result<Self, InvalidIdPart> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidIdPart)
        }
    }
}

impl fmt::Display for IdPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is no part of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id, or a part of one, has a-z, 0-9 and '-' only")]
pub struct InvalidIdPart;

/// A path in a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInside {
    /// The workspace.
    pub workspace: IdPart,
    path: Vec<u8>,
}

impl PathInside {
    /// The path, which begins with a slash.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Takes `WORKSPACE:PATH` apart. What has no such beginning is a path of the host.
    fn split(text: &OsStr) -> Option<(IdPart, &[u8])> {
        let text = text.as_bytes();
        let colon = text.iter().position(|&byte| byte == b':')?;
        let workspace = std::str::from_utf8(&text[..colon]).ok()?.parse().ok()?;
        Some((workspace, &text[colon + 1..]))
    }

    fn new(workspace: IdPart, path: &[u8]) -> Result<Self, InvalidPath> {
        if !path.starts_with(b"/") {
            return Err(InvalidPath::Relative);
        }
        Ok(Self {
            workspace,
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for PathInside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = OsString::from_vec(self.path.clone());
        write!(f, "{}:{}", self.workspace, Path::new(&path).display())
    }
}

impl Listed {
    fn parse(text: &OsStr) -> Result<Self, InvalidPath> {
        if let Some((workspace, path)) = PathInside::split(text) {
            return PathInside::new(workspace, path).map(Self::Files);
        }
        let workspace = text.to_str().and_then(|text| text.parse().ok());
        workspace.map(Self::Execs).ok_or(InvalidPath::NoWorkspace)
    }
}

/// A text that names nothing in a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// What is before the colon is no workspace, or nothing is.
    #[error("write a workspace, or WORKSPACE:/PATH")]
    NoWorkspace,
    /// The path does not begin with a slash.
    #[error(
        "a path in a workspace is absolute: write WORKSPACE:/PATH; a host file with a colon in its name is ./a:b"
    )]
    Relative,
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
}

/// A variable of an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl FromStr for Variable {
    type Err = InvalidVariable;

    fn from_str(text: &str) -> Result<Self, InvalidVariable> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(Self {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(InvalidVariable),
        }
    }
}

/// The text sets no variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write NAME=VALUE")]
pub struct InvalidVariable;

/// For arguments that need not be UTF-8.
fn os_parser<T>(parse: fn(&OsStr) -> Result<T, InvalidPath>) -> impl TypedValueParser<Value = T>
where
    T: Clone + Send + Sync + 'static,
{
    OsStringValueParser::new().try_map(move |text| parse(&text))
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|seconds| !seconds.is_zero())
        .ok_or("write a number of seconds above 0, such as 30 or 0.5")
}

fn size(text: &str) -> Result<u64, &'static str> {
    text.parse()
        .map(|size: bytesize::ByteSize| size.as_u64())
        .ok()
        .filter(|bytes| *bytes <= 1 << 30)
        .ok_or("write a size of at most 1GiB, such as 10MiB")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn parse(words: &[&str]) -> Result<Command, clap::Error> {
        let cli = Cli::try_parse_from(std::iter::once(&"derrick").chain(words))?;
        Ok(cli.command.expect("a subcommand was typed"))
    }

    /// The first line of what is printed for a wrong command line.
    fn complaint(words: &[&str]) -> String {
        let text = parse(words).unwrap_err().to_string();
        text.lines().next().unwrap_or_default().to_owned()
    }

    fn exec(words: &[&str]) -> ExecArgs {
        match parse(words) {
            Ok(Command::Exec(exec)) => exec,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_provider_is_an_address_or_a_socket() {
        for (text, expected) in [
            ("http://127.0.0.1:50080", Ok("http://127.0.0.1:50080")),
            ("http://build-7:80/", Ok("http://build-7:80")),
            ("[::1]:50080", Ok("http://[::1]:50080")),
            ("localhost:1", Ok("http://localhost:1")),
            ("unix:/run//d.sock", Ok("unix:/run/d.sock")),
            ("unix:", Err(InvalidServer::NoPath)),
            ("https://host:1", Err(InvalidServer::NoTls)),
            ("http://host", Err(InvalidServer::NoAddress)),
            ("http://host:0", Err(InvalidServer::NoAddress)),
            ("http://host:1/path", Err(InvalidServer::NoAddress)),
            ("http://me@host:1", Err(InvalidServer::NoAddress)),
            ("ftp://host:1", Err(InvalidServer::NoAddress)),
            (":50080", Err(InvalidServer::NoAddress)),
            ("", Err(InvalidServer::NoAddress)),
        ] {
            let found = text.parse::<Server>().map(|server| server.to_string());
            assert_eq!(found.as_deref().map_err(|e| *e), expected, "{text}");
        }
    }

    #[test]
    fn a_command_is_words_or_a_line_and_keeps_its_own_options() {
        let words = exec(&["exec", "-it", "-u", "7", "01a", "--", "ls", "-d", "--help"]);
        let expected = ["ls", "-d", "--help"].map(str::to_owned).to_vec();
        assert_eq!(words.program(), TypedProgram::Arguments(expected));
        assert_eq!(words.input(), Input::Own);
        assert_eq!(words.streams(), TypedStreams::Terminal);
        assert_eq!(words.stay(), Stay::UntilEnded);
        assert_eq!(words.user.as_deref(), Some("7"));

        let line = exec(&["exec", "-d", "--timeout", "0.5", "01a", "--cmd", "ls | wc"]);
        assert_eq!(line.program(), TypedProgram::Line("ls | wc".to_owned()));
        assert_eq!(line.stay(), Stay::UntilStarted);
        assert_eq!(line.timeout, Some(Duration::from_millis(500)));
        assert_eq!(line.input(), Input::None);

        for (words, expected) in [
            (
                &["exec", "01a"][..],
                "error: the following required arguments were not provided:",
            ),
            (
                &["exec", "01a", "ls"],
                "error: unexpected argument 'ls' found",
            ),
            (
                &["exec", "01a", "--cmd", "ls", "--", "ls"],
                "error: the argument '--cmd <LINE>' cannot be used with '[CMD]...'",
            ),
            (
                &["exec", "-i", "-d", "01a", "--", "ls"],
                "error: the argument '--interactive' cannot be used with '--detach'",
            ),
            (
                &["exec", "--timeout", "0", "01a", "--", "ls"],
                "error: invalid value '0' for '--timeout <SECONDS>': write a number of seconds above 0, such as 30 or 0.5",
            ),
            (
                &["exec", "-e", "=x", "01a", "--", "ls"],
                "error: invalid value '=x' for '--env <NAME=VALUE>': write NAME=VALUE",
            ),
        ] {
            assert_eq!(complaint(words), expected, "{words:?}");
        }
    }

    #[test]
    fn a_value_may_hold_equals_signs_or_nothing() {
        let variable = |text: &str| text.parse::<Variable>().map(|v| (v.name, v.value));
        for (text, name, value) in [("A=b=c", "A", "b=c"), ("A=", "A", "")] {
            assert_eq!(variable(text), Ok((name.to_owned(), value.to_owned())));
        }
        for text in ["A", "", "=b"] {
            assert_eq!(variable(text), Err(InvalidVariable), "{text}");
        }
    }

    #[test]
    fn ls_lists_workspaces_execs_or_files() {
        let inside = |workspace: &str, path: &str| PathInside {
            workspace: workspace.parse().unwrap(),
            path: path.into(),
        };
        for (words, expected) in [
            (&["ls"][..], Listed::Workspaces),
            (&["ls", "01a"], Listed::Execs("01a".parse().unwrap())),
            (&["ls", "01a:/"], Listed::Files(inside("01a", "/"))),
            (&["ls", "01a:/a:b"], Listed::Files(inside("01a", "/a:b"))),
        ] {
            let Ok(Command::Ls(ls)) = parse(words) else {
                panic!("{words:?}");
            };
            assert_eq!(ls.listed(), expected);
        }
        for (word, expected) in [
            ("./x", "write a workspace, or WORKSPACE:/PATH"),
            ("01a:x", "a path in a workspace is absolute"),
        ] {
            let said = complaint(&["ls", word]);
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn exactly_one_end_of_a_copy_is_in_a_workspace() {
        let copy = |source, destination| match parse(&["cp", source, destination]) {
            Ok(Command::Cp(cp)) => cp.copy(),
            other => panic!("{other:?}"),
        };
        let inside = || PathInside {
            workspace: "01a".parse().unwrap(),
            path: b"/x".to_vec(),
        };
        for (source, destination, expected) in [
            (
                "01a:/x",
                ".",
                Ok(Copy::Out {
                    from: inside(),
                    to: Here::Path(".".into()),
                }),
            ),
            (
                "-",
                "01a:/x",
                Ok(Copy::In {
                    from: Here::Standard,
                    to: inside(),
                }),
            ),
            (
                "./01a:/x",
                "01a:/x",
                Ok(Copy::In {
                    from: Here::Path("./01a:/x".into()),
                    to: inside(),
                }),
            ),
            ("a", "b", Err(NoCopy::BothHere)),
            ("-", "-", Err(NoCopy::BothHere)),
            ("01a:/x", "01b:/x", Err(NoCopy::BothInside)),
        ] {
            assert_eq!(copy(source, destination), expected);
        }
        let Ok(Command::Cp(cp)) = parse(&["cp", "--json", "01a:/x", "-"]) else {
            panic!("not cp");
        };
        assert_eq!(cp.copy(), Err(NoCopy::Twice));
        let said = complaint(&["cp", "01a:x", "."]);
        assert!(said.contains("a path in a workspace is absolute"), "{said}");
    }

    #[test]
    fn names_of_files_need_not_be_text() {
        let words = [&b"derrick"[..], b"cp", b"a\xff", b"01a:/\xfe"].map(OsStr::from_bytes);
        let cli = Cli::try_parse_from(words).unwrap();
        let Some(Command::Cp(cp)) = cli.command else {
            panic!("not cp");
        };
        let Ok(Copy::In { from, to }) = cp.copy() else {
            panic!("not in");
        };
        let name = OsStr::from_bytes(b"a\xff");
        assert_eq!(from, Here::Path(name.into()));
        assert_eq!(to.path(), b"/\xfe");
    }

    #[test]
    fn what_is_removed_is_named() {
        let said = complaint(&["rm"]);
        assert!(
            said.contains("required arguments were not provided"),
            "{said}"
        );
        let said = complaint(&["rm", "01A"]);
        assert!(said.contains("has a-z, 0-9 and '-' only"), "{said}");
    }
}
