//! Sessions: a shell that keeps its working directory, environment, functions and background jobs
//! from one command to the next.
//!
//! The shell is interactive, since such a shell outlives interrupts and syntax errors, but has no
//! terminal: it reads its commands from a pipe. Its own stdout and stderr, and with them every
//! prompt, lead nowhere; commands get the session's as theirs. After each command it is told to
//! report on a descriptor of its own how that ended. What is inside can forge such a report, which
//! misleads nobody but whoever uses that session.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use utoipa::ToSchema;

use super::execs::log::{View, read_ends};
use super::execs::{Exec, ExecError, ExecId, ExecState, Input, Order, Outcome};
use super::{Launch, Workspace, WorkspaceError};
use crate::init::protocol::{self, Program, Target};
use crate::pool::Sandbox;
use crate::pool::exec::{self, Stream, Streams};

/// Turns the shell that runs it into the session's: bash where the base has it. Commands find their
/// stdout at 5 and their stderr at 4; the report of how they ended goes to 3.
const SHELL: &str = "if command -v bash > /dev/null 2>&1; then \
    exec bash --norc --noprofile --noediting +H +o history -i 5>&1 4>&2 > /dev/null 2>&1; \
    else exec sh -i 5>&1 4>&2 > /dev/null 2>&1; fi";

/// The first report, before any command: which shell it is. Busybox's takes an interrupt at the wrong
/// moment for the end of its input.
const HELLO: &str = "[ \"$BASH_VERSION\" ] || set -o ignoreeof\n\
    \\command printf '0 0 %s\\0' \"${BASH_VERSION:+ba}sh\" >&3\n";

/// How long a shell may take to say hello.
const STARTING: Duration = Duration::from_secs(10);

/// How long an interrupted command may take to end, and then a killed one.
const GRACE: Duration = Duration::from_secs(1);

/// How long it is waited before the next look whether the shell has read its line: at first, and at most.
const READING: Duration = Duration::from_millis(1);
const MOST_READING: Duration = Duration::from_millis(100);

/// Sessions of one workspace.
const MOST: usize = 100;

/// Bytes of a report, at most: a path is the longest part.
const MAX_REPORT: usize = 16 * 1024;

/// Most of each stream that an answer repeats, in bytes.
const MAX_ANSWERED: u64 = 1 << 20;

/// Why something could not be done with a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// There is none of that name.
    #[error("there is no session '{0}'")]
    NotFound(String),
    /// The name is no name.
    #[error(
        "a session's name has 1 to 64 characters of a-z, A-Z, 0-9, '.', '_' and '-', and is neither '.' nor '..'"
    )]
    InvalidName,
    /// One of that name lives.
    #[error("there is a session '{0}' already")]
    Exists(String),
    /// There are too many that live.
    #[error("a workspace has at most {MOST} sessions")]
    TooMany,
    /// A command runs in it.
    #[error("a command runs in the session '{0}'")]
    Busy(String),
    /// Its shell has ended.
    #[error("the session '{0}' has ended")]
    Ended(String),
    /// Its shell did not say hello.
    #[error("the shell of the session '{0}' does not start")]
    NotStarted(String),
    /// The host failed.
    #[error("{0}")]
    Host(&'static str, #[source] io::Error),
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// It waits for a command.
    Idle,
    /// A command runs.
    Busy,
    /// Its shell is no more.
    Ended,
}

/// What is told of a session.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Session)]
pub struct SessionRecord {
    /// Its name.
    pub name: String,
    /// The exec that its shell is.
    pub exec: ExecId,
    /// `bash`, or `sh` where the base has no bash.
    pub shell: String,
    /// Where it stands.
    pub state: SessionState,
}

/// How a command in a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[schema(as = SessionOutcome)]
pub enum Ending {
    /// With this exit code; the shell lives on.
    Exited {
        /// As `$?` has it: 128 + n for a signal.
        code: i32,
    },
    /// The shell could not make sense of it; what stood before the flaw has run.
    SyntaxError,
    /// Its deadline passed.
    Deadline,
    /// It was interrupted by a request.
    Interrupted,
    /// It ended the shell, as `exit` does.
    SessionEnded {
        /// The shell's exit code.
        code: i32,
    },
    /// It took the shell's place, as `exec` does: the session has ended, the program goes on.
    Replaced,
    /// The session was removed, or its exec killed by a request.
    Killed,
    /// The workspace's limit on memory was reached, and all its processes were killed.
    Oom,
    /// The workspace was reset.
    Reset,
    /// The workspace was removed.
    Removed,
    /// derrick or the host failed.
    Lost,
}

impl Ending {
    /// Of a command whose shell ended so.
    fn of_shell(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Killed | Outcome::Deadline => Self::Killed,
            Outcome::Oom => Self::Oom,
            Outcome::Reset => Self::Reset,
            Outcome::Removed => Self::Removed,
            Outcome::Lost { .. } => Self::Lost,
            Outcome::Exited { .. }
            | Outcome::Signaled { .. }
            | Outcome::PidsLimit { .. }
            | Outcome::DiskQuota { .. } => Self::SessionEnded {
                code: outcome.exit_code(),
            },
        }
    }

    /// As a shell would report it; as [`Outcome::exit_code`] where derrick ended it.
    fn exit_code(self) -> i32 {
        match self {
            Self::Exited { code } | Self::SessionEnded { code } => code,
            Self::SyntaxError => 2,
            Self::Deadline => Outcome::Deadline.exit_code(),
            Self::Interrupted => 128 + libc::SIGINT,
            Self::Replaced => 0,
            Self::Killed | Self::Oom | Self::Reset | Self::Removed => Outcome::Killed.exit_code(),
            Self::Lost => 125,
        }
    }
}

/// What a command in a session did.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = SessionRun)]
pub struct Ran {
    /// How it ended.
    pub outcome: Ending,
    /// As a shell would report it; 124 for a deadline, 130 for an interrupt.
    pub exit_code: i32,
    /// What was printed to stdout meanwhile, as text; at most 1 MiB, from its start and its end.
    pub stdout: String,
    /// What was printed to stderr meanwhile, likewise.
    pub stderr: String,
    /// The working directory after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Whether the session lives on.
    pub session: SessionState,
}

/// The sessions of one workspace.
#[derive(Debug, Default)]
pub struct Sessions {
    all: Mutex<BTreeMap<String, Arc<Session>>>,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    name: String,
    shell: String,
    exec: Arc<Exec>,
    /// For the command that looks for syntax errors.
    sandbox: Sandbox,
    user: String,
    /// Held by the command that runs.
    turn: tokio::sync::Mutex<Turn>,
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Busy,
    /// Somebody asked for an interrupt.
    Interrupted,
    /// A program took the shell's place.
    Replaced,
}

#[derive(Debug)]
struct Turn {
    reports: Receiver,
    /// What has come of the next report.
    partial: Vec<u8>,
    number: u64,
    /// The exit code of the command before.
    last: i32,
}

/// How a command ended, as the shell says.
#[derive(Debug)]
struct Report {
    number: u64,
    code: i32,
    text: String,
}

impl Workspace {
    /// Starts a session. `launch` says where, as whom and with what environment; its program is not
    /// looked at.
    ///
    /// # Errors
    /// `Session`, and those of starting a command.
    pub async fn start_session(
        &self,
        name: &str,
        launch: Launch,
    ) -> Result<SessionRecord, WorkspaceError> {
        check_name(name)?;
        self.sessions().check_free(name)?;
        let (reports, reporter) = pipe().map_err(WorkspaceError::host("making a pipe"))?;
        let user = self.user_inside(launch.user.clone());
        let launch = Launch {
            program: Program::Shell(SHELL.to_owned()),
            terminal: None,
            ..launch
        };
        let order = Order {
            input: Input::Open,
            streams: Streams::Apart,
            timeout: None,
            output_limit: None,
            key: None,
            further: vec![reporter],
            // A shell that waits for commands uses nothing; the requests that bring them do.
            in_use: None,
            after: None,
        };
        let sandbox = self.sandbox().await?;
        let (exec, _) = self.start(launch, order).await?;
        let mut turn = Turn {
            reports,
            partial: Vec::new(),
            number: 0,
            last: 0,
        };
        let hello = async {
            exec.write(HELLO.as_bytes()).await.ok()?;
            turn.report(0).await
        };
        let Ok(Some(hello)) = timeout(STARTING, hello).await else {
            exec.kill().await;
            return Err(SessionError::NotStarted(name.to_owned()).into());
        };
        let session = Arc::new(Session {
            name: name.to_owned(),
            shell: hello.text,
            exec,
            sandbox,
            user,
            turn: tokio::sync::Mutex::new(turn),
            state: Mutex::default(),
        });
        let record = session.record();
        if let Err(error) = self.sessions().insert(Arc::clone(&session)) {
            // Another one of that name was quicker.
            session.exec.kill().await;
            return Err(error.into());
        }
        Ok(record)
    }
}

/// Whether a session can have that name. Clients take `.` and `..` out of a path before they send it.
///
/// # Errors
/// `InvalidName`.
pub fn check_name(name: &str) -> Result<(), SessionError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_dots = matches!(name, "." | "..");
    if (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !is_dots {
        Ok(())
    } else {
        Err(SessionError::InvalidName)
    }
}

/// Derrick's end of a pipe, and a command's.
fn pipe() -> io::Result<(Receiver, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    Ok((Receiver::from_owned_fd(reader.into())?, writer.into()))
}

impl Sessions {
    /// All of them, by name.
    #[must_use]
    pub fn list(&self) -> Vec<SessionRecord> {
        self.lock()
            .values()
            .map(|session| session.record())
            .collect()
    }

    /// The session of that name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, name: &str) -> Result<Arc<Session>, SessionError> {
        let found = self.lock().get(name).cloned();
        found.ok_or_else(|| SessionError::NotFound(name.chars().take(64).collect()))
    }

    /// Ends a session, with every process of its shell's tree; `false` if there is none.
    pub async fn remove(&self, name: &str) -> bool {
        let found = self.lock().remove(name);
        match found {
            Some(session) => {
                session.exec.kill().await;
                true
            }
            None => false,
        }
    }

    /// How many have ended that ran in this sandbox, and are kept.
    pub(super) fn ended_in(&self, sandbox: &Sandbox) -> usize {
        let all = self.lock();
        let ended = |session: &&Arc<Session>| {
            session.current_state() == SessionState::Ended && session.sandbox.is(sandbox)
        };
        all.values().filter(ended).count()
    }

    fn check_free(&self, name: &str) -> Result<(), SessionError> {
        Self::check_place(&self.lock(), name)
    }

    fn insert(&self, session: Arc<Session>) -> Result<(), SessionError> {
        let mut all = self.lock();
        Self::check_place(&all, &session.name)?;
        if all.len() >= MOST {
            all.retain(|_, other| other.current_state() != SessionState::Ended);
        }
        all.insert(session.name.clone(), session);
        Ok(())
    }

    /// One that has ended makes room for another, of its name or, where there are too many, of any.
    fn check_place(all: &BTreeMap<String, Arc<Session>>, name: &str) -> Result<(), SessionError> {
        let lives = |session: &Arc<Session>| session.current_state() != SessionState::Ended;
        match all.get(name) {
            Some(session) if lives(session) => Err(SessionError::Exists(name.to_owned())),
            _ if all.len() < MOST => Ok(()),
            _ if all.values().any(|session| !lives(session)) => Ok(()),
            _ => Err(SessionError::TooMany),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Session>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// What is told of it now.
    #[must_use]
    pub fn record(&self) -> SessionRecord {
        SessionRecord {
            name: self.name.clone(),
            exec: self.exec.id(),
            shell: self.shell.clone(),
            state: self.current_state(),
        }
    }

    fn current_state(&self) -> SessionState {
        if self.exec.record().state == ExecState::Ended {
            return SessionState::Ended;
        }
        match *self.lock_state() {
            State::Idle => SessionState::Idle,
            State::Busy | State::Interrupted => SessionState::Busy,
            State::Replaced => SessionState::Ended,
        }
    }

    /// Interrupts the command that runs, as ctrl-c does, once; nothing happens if none does.
    ///
    /// # Errors
    /// Those of signalling the shell.
    pub async fn interrupt(&self) -> Result<(), ExecError> {
        {
            let mut state = self.lock_state();
            match *state {
                State::Busy => *state = State::Interrupted,
                State::Interrupted => {}
                State::Idle | State::Replaced => return Ok(()),
            }
        }
        self.exec.signal(libc::SIGINT, Target::Group).await
    }

    /// Runs a command line in it, to its end, which a deadline brings about.
    ///
    /// # Errors
    /// `Busy`, `Ended`; `Host` if the output cannot be read.
    pub async fn run(&self, line: &str, deadline: Option<Duration>) -> Result<Ran, SessionError> {
        let Ok(mut turn) = self.turn.try_lock() else {
            return Err(SessionError::Busy(self.name.clone()));
        };
        if self.current_state() == SessionState::Ended {
            return Err(SessionError::Ended(self.name.clone()));
        }
        // What came of background jobs before is not this command's.
        self.exec.flush().await;
        let log = self
            .exec
            .log()
            .map_err(|error| SessionError::Host("opening the output", error))?;
        let begin = [Stream::Stdout, Stream::Stderr].map(|stream| log.counts(stream).bytes);
        *self.lock_state() = State::Busy;
        let deadline = deadline.map(|deadline| Instant::now() + deadline);
        let (outcome, report) = self.conduct(&mut turn, line, deadline).await;
        turn.last = report.as_ref().map_or(0, |report| report.code);
        {
            let mut state = self.lock_state();
            *state = match outcome {
                Ending::Replaced => State::Replaced,
                _ => State::Idle,
            };
        }
        self.exec.flush().await;
        let read = tokio::task::spawn_blocking(move || {
            let text = |stream, from| {
                let bytes = read_ends(&log, View::One(stream), from, MAX_ANSWERED)?;
                io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
            };
            io::Result::Ok((
                text(Stream::Stdout, begin[0])?,
                text(Stream::Stderr, begin[1])?,
            ))
        });
        let read = read.await.map_err(io::Error::other).and_then(|read| read);
        let (stdout, stderr) =
            read.map_err(|error| SessionError::Host("reading the output", error))?;
        Ok(Ran {
            outcome,
            exit_code: outcome.exit_code(),
            stdout,
            stderr,
            cwd: report.map(|report| report.text),
            session: self.current_state(),
        })
    }

    /// Gives the shell a line and waits for its report, or for what comes instead.
    async fn conduct(
        &self,
        turn: &mut Turn,
        line: &str,
        deadline: Option<Instant>,
    ) -> (Ending, Option<Report>) {
        turn.number += 1;
        let (number, last) = (turn.number, turn.last);
        let begun = AtomicBool::new(false);
        let mut reported = pin!(self.unless_ended(async {
            tokio::select! {
                report = turn.report(number) => report,
                never = self.tell(line, number, last, &begun) => match never {},
            }
        }));
        let in_time = match deadline {
            None => Ok(reported.as_mut().await),
            Some(deadline) => timeout_at(deadline, reported.as_mut()).await,
        };
        let (ending, report) = match in_time {
            Ok(Some(report)) => {
                let interrupted = *self.lock_state() == State::Interrupted;
                let ending = match report.code {
                    130 if interrupted => Ending::Interrupted,
                    // What every shell gives for it, and commands as well.
                    1 | 2 if self.is_syntax_error(line).await => Ending::SyntaxError,
                    code => Ending::Exited { code },
                };
                (ending, Some(report))
            }
            Ok(None) => (self.end_without_report().await, None),
            Err(_passed) => (Ending::Deadline, self.stop_command(reported, &begun).await),
        };
        (ending, report)
    }

    /// Writes the command, and, when the shell has read that, the order to report. A shell that
    /// reads ahead throws away what it has read when the command is interrupted or has a flaw, so
    /// that the order is given anew after a signal; a second report is known by its number.
    async fn tell(&self, line: &str, number: u64, last: i32, begun: &AtomicBool) -> Infallible {
        let quoted = line.replace('\'', "'\\''");
        // What the last one left in `$?` is there again. A quoted name is no alias.
        let command =
            format!("(\\exit {last}); \\eval '{quoted}' < /dev/null >&5 2>&4 3>&- 4>&- 5>&-\n");
        let report = format!("\\command printf '{number} %s %s\\0' \"$?\" \"$PWD\" >&3\n");
        // A shell that has ended is noticed by whoever waits for its report.
        let mut told = self.exec.write(command.as_bytes()).await;
        self.until_read().await;
        begun.store(true, Ordering::Relaxed);
        while told.is_ok() {
            told = self.exec.write(report.as_bytes()).await;
            self.exec.until_signalled().await;
            self.until_read().await;
        }
        pending().await
    }

    /// Waits until the shell has read all that was written to it.
    async fn until_read(&self) {
        let mut pause = READING;
        while self.exec.unread().await > 0 {
            sleep(pause).await;
            // A command may take its time to end.
            pause = (pause * 2).min(MOST_READING);
        }
    }

    /// `None` where the shell ends first.
    async fn unless_ended<T>(&self, work: impl Future<Output = Option<T>>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => done,
            _ = self.exec.until_end() => None,
        }
    }

    /// Interrupts the command, once its shell has begun with it, then kills what it started, then its
    /// shell; the shell's report if it lives on.
    async fn stop_command(
        &self,
        mut reported: Pin<&mut impl Future<Output = Option<Report>>>,
        begun: &AtomicBool,
    ) -> Option<Report> {
        let give_up = Instant::now() + GRACE;
        while !begun.load(Ordering::Relaxed) && Instant::now() < give_up {
            if let Ok(report) = timeout(READING, reported.as_mut()).await {
                return report;
            }
        }
        for (signal, target) in [
            (libc::SIGINT, Target::Group),
            // A shell that was just about to start something did not hear the first.
            (libc::SIGINT, Target::Group),
            (libc::SIGKILL, Target::Descendants),
        ] {
            if self.exec.signal(signal, target).await.is_err() {
                return None;
            }
            if let Ok(report) = timeout(GRACE, reported.as_mut()).await {
                return report;
            }
        }
        self.exec.kill().await;
        None
    }

    /// The shell closed its descriptor for reports: it has ended, or something took its place.
    async fn end_without_report(&self) -> Ending {
        let ended = timeout(GRACE, self.exec.until_end()).await;
        match ended.map(|record| record.outcome) {
            Ok(Some(outcome)) => Ending::of_shell(&outcome),
            _ => Ending::Replaced,
        }
    }

    /// Asks another shell, which only reads the line.
    async fn is_syntax_error(&self, line: &str) -> bool {
        let arguments: &[&str] = match self.shell.as_str() {
            // More than the session's shell may have on: what it understands then is no flaw.
            "bash" => &["bash", "-O", "extglob", "-n"],
            _ => &["sh", "-n"],
        };
        let command = protocol::Exec {
            program: Program::Arguments(arguments.iter().map(|text| (*text).to_owned()).collect()),
            directory: "/".to_owned(),
            environment: Vec::new(),
            terminal: None,
            user: Some(self.user.clone()),
            open_files: None,
        };
        let Ok(input) = in_memory(line) else {
            return false;
        };
        let read = exec::run(&self.sandbox, command, Some(input));
        matches!(timeout(GRACE, read).await, Ok(Ok(ended)) if ended.exit_code() == 2)
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file without a name that holds `text`.
fn in_memory(text: &str) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let memory = rustix::fs::memfd_create(c"line", MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.rewind()?;
    Ok(file.into())
}

impl Turn {
    /// Waits for the report of that number; `None` if none will come. Cancel safe.
    async fn report(&mut self, number: u64) -> Option<Report> {
        loop {
            while let Some(end) = self.partial.iter().position(|byte| *byte == 0) {
                let text: Vec<u8> = self.partial.drain(..=end).collect();
                let report = Report::parse(&text[..end]);
                if report
                    .as_ref()
                    .is_some_and(|report| report.number == number)
                {
                    return report;
                }
            }
            if self.partial.len() > MAX_REPORT {
                // No report of ours.
                self.partial.clear();
            }
            if self.reports.read_buf(&mut self.partial).await.ok()? == 0 {
                return None;
            }
        }
    }
}

impl Report {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        let mut parts = text.splitn(3, ' ');
        Some(Self {
            number: parts.next()?.parse().ok()?,
            code: parts.next()?.parse().ok()?,
            text: parts.next()?.to_owned(),
        })
    }
}
