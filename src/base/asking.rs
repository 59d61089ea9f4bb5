//! Git inside a workspace, asked for something that is taken out: bounded in time and in size.
//!
//! The workspace's git may be anything, also a program that prints for ever, or nothing for ever. What it prints
//! is bytes, and for whoever asked to check. It is killed when it takes too long or prints too much, and when
//! whoever asked goes away.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::build::environment;
use super::patience::Patience;
use super::repositories::Inside;
use super::{SetupError, build::OUTPUT_END};
use crate::init::protocol::{Exec, Program, Status};
use crate::pool::Sandbox;
use crate::pool::exec::{self, Bounds, Cause, Sink, Stream, Streams};
use crate::pool::output::Output;
use crate::shown::is_shown;

/// How long git inside may take to answer a question.
pub(super) const ANSWERING: Duration = Duration::from_secs(30);

/// How long it may take to read or to write a whole repository.
pub(super) const WORKING: Duration = Duration::from_secs(600);

/// The exit code of a command whose program is not there, as shells have it.
const NOT_FOUND: i32 = 127;

/// What is said with it where that is git. A git that ends with it itself says something else.
const NO_GIT: &str = "derrick: git: ";

/// The most that an answer may be, in bytes.
const LONGEST_ANSWER: u64 = 64 * 1024;

/// The most that it may say beside what it prints, in bytes, progress included; the end of it is kept.
const MOST_SAID: u64 = 16 << 20;

/// Why git inside did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The workspace has no git.
    #[error("the workspace has no git, which is needed for that")]
    NoGit,
    /// There is nothing at the path.
    #[error("there is no repository at {path}: {said}", path = .path.display())]
    NoRepository {
        /// In the workspace.
        path: PathBuf,
        /// What is wrong with it.
        said: String,
    },
    /// It failed.
    #[error("git in the workspace could not {attempt} at {path}: {said}", path = .path.display())]
    Failed {
        /// What it was asked for.
        attempt: &'static str,
        /// In the workspace.
        path: PathBuf,
        /// The end of what it said.
        said: String,
    },
    /// It answered with something else.
    #[error("git in the workspace did not {attempt} at {path}, though it said so", path = .path.display())]
    Odd {
        /// What it was asked for.
        attempt: &'static str,
        /// In the workspace.
        path: PathBuf,
    },
    /// It took too long.
    #[error("git in the workspace did not {attempt} at {path} within {} s and was killed", limit.as_secs(), path = .path.display())]
    TooLong {
        /// What it was asked for.
        attempt: &'static str,
        /// In the workspace.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// It printed too much.
    #[error("git in the workspace printed more than {most} bytes at {path} and was killed", path = .path.display())]
    TooMuch {
        /// In the workspace.
        path: PathBuf,
        /// How much it may be.
        most: u64,
    },
    /// Something else failed.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

impl AskError {
    /// Whether the disk, its inodes or a quota are full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Setup(error) if error.is_no_space())
    }
}

/// What git inside is asked for.
#[derive(Debug)]
pub(crate) struct Question {
    /// What it does, as in "could not make a commit".
    attempt: &'static str,
    /// The command line.
    command: Vec<String>,
    /// On top of the environment that every command has.
    environment: Vec<(String, String)>,
    /// Whether it is a question, or work.
    length: Length,
}

/// How long something may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    /// A question about the repository.
    Answer,
    /// Something that reads or writes all of it.
    Work,
}

impl Length {
    fn limit(self) -> Duration {
        match self {
            Self::Answer => ANSWERING,
            Self::Work => WORKING,
        }
    }
}

/// What git inside printed when it ended.
#[derive(Debug)]
pub(crate) struct Answered {
    /// As a shell reports it.
    pub(crate) exit_code: i32,
    /// What it printed.
    pub(crate) printed: Vec<u8>,
    /// The end of what it said on stderr.
    pub(crate) said: String,
}

impl Question {
    /// Something to be answered at once.
    pub(crate) fn new(attempt: &'static str, command: Vec<String>) -> Self {
        Self {
            attempt,
            command,
            environment: Vec::new(),
            length: Length::Answer,
        }
    }

    /// Something that may take its time.
    pub(crate) fn work(attempt: &'static str, command: Vec<String>) -> Self {
        Self {
            length: Length::Work,
            ..Self::new(attempt, command)
        }
    }

    /// With these on top of the environment that every command has.
    pub(crate) fn in_environment(self, environment: Vec<(String, String)>) -> Self {
        Self {
            environment,
            ..self
        }
    }
}

impl Inside<'_> {
    /// The repository at `path`, for what is asked of it.
    ///
    /// # Errors
    /// `NoRepository` where there is nothing.
    pub(crate) async fn to_ask<'a>(
        sandbox: &'a Sandbox,
        path: &'a Path,
    ) -> Result<Inside<'a>, AskError> {
        Inside::of(sandbox, path, &Patience::new())
            .await
            .map_err(|error| match error {
                SetupError::GitInside { path, output } => {
                    AskError::NoRepository { path, said: output }
                }
                error => error.into(),
            })
    }

    /// Asks git inside, however it ends.
    ///
    /// # Errors
    /// `NoGit`, `TooLong`, `TooMuch`, and those of the sandbox.
    pub(crate) async fn ask(&self, question: Question) -> Result<Answered, AskError> {
        let kept = Kept::Memory(Vec::new());
        let (exit_code, said, kept) = self.run_bounded(question, kept, LONGEST_ANSWER).await?;
        let printed = match kept {
            Kept::Memory(printed) => printed,
            Kept::File(..) => Vec::new(),
        };
        Ok(Answered {
            exit_code,
            printed,
            said,
        })
    }

    /// Asks git inside for what it has to be able to do.
    ///
    /// # Errors
    /// Those of `ask`, and `Failed`.
    pub(crate) async fn demand(&self, question: Question) -> Result<Vec<u8>, AskError> {
        let attempt = question.attempt;
        let answered = self.ask(question).await?;
        match answered.exit_code {
            0 => Ok(answered.printed),
            _ => Err(self.failed(attempt, &answered)),
        }
    }

    /// Has git inside print into `sink`, `most` bytes of it, for as long as `room` finds room; how many it was.
    ///
    /// # Errors
    /// Those of `demand`, and those of writing.
    pub(crate) async fn take(
        &self,
        question: Question,
        sink: File,
        most: u64,
        room: Room,
    ) -> Result<u64, AskError> {
        let attempt = question.attempt;
        let kept = Kept::File(tokio::fs::File::from_std(sink), room);
        let (exit_code, said, kept) = self.run_bounded(question, kept, most).await?;
        if exit_code != 0 {
            let answered = Answered {
                exit_code,
                printed: Vec::new(),
                said,
            };
            return Err(self.failed(attempt, &answered));
        }
        let written = match kept {
            Kept::Memory(_) => Ok(0),
            Kept::File(mut file, _) => match file.flush().await {
                Ok(()) => file.metadata().await.map(|metadata| metadata.len()),
                Err(error) => Err(error),
            },
        };
        Ok(written.map_err(SetupError::host(WRITING))?)
    }

    /// What is said of something that git inside could not do.
    pub(crate) fn failed(&self, attempt: &'static str, answered: &Answered) -> AskError {
        // It is shown to people, some of them at a terminal.
        let said = visible(&answered.said);
        let said = match said.is_empty() {
            true => format!("it ended with exit code {}", answered.exit_code),
            false => said,
        };
        AskError::Failed {
            attempt,
            path: self.path().to_owned(),
            said,
        }
    }

    /// What is said where git inside did something else than it said.
    pub(crate) fn odd(&self, attempt: &'static str) -> AskError {
        AskError::Odd {
            attempt,
            path: self.path().to_owned(),
        }
    }

    async fn run_bounded(
        &self,
        question: Question,
        kept: Kept,
        most: u64,
    ) -> Result<(i32, String, Kept), AskError> {
        let Question {
            attempt,
            command,
            environment: own,
            length,
        } = question;
        let mut all = environment(&[self.environment()]);
        all.extend(own);
        let exec = Exec {
            program: Program::Arguments(command),
            directory: self.path().to_string_lossy().into_owned(),
            environment: all,
            terminal: None,
            user: Some(self.owner().to_owned()),
            open_files: None,
        };
        let path = || self.path().to_owned();
        let limit = length.limit();
        let bounds = Bounds {
            deadline: Some(Instant::now() + limit),
            kill: CancellationToken::new(),
        };
        let _killed_with_this = bounds.kill.clone().drop_guard();
        let mut keeper = Keeper {
            kept,
            most,
            left: most,
            said: Output::limited(OUTPUT_END),
            left_to_say: MOST_SAID,
            stopped: None,
            kill: bounds.kill.clone(),
        };
        let sandbox = self.sandbox().clone();
        let started = exec::start(&sandbox, exec, Vec::new(), Streams::Apart)
            .await
            .map_err(SetupError::from)?;
        // It sees the command to its end, whoever goes away.
        let run = tokio::spawn(async move {
            let end = started.to_end(&sandbox, &mut keeper, &bounds).await;
            (end, keeper)
        });
        let (end, keeper) = run
            .await
            .map_err(|error| SetupError::host("running git inside")(error.into()))?;
        match keeper.stopped {
            Some(Stopped::TooMuch(most)) => {
                return Err(AskError::TooMuch { path: path(), most });
            }
            Some(Stopped::Host(error)) => return Err(SetupError::host(WRITING)(error).into()),
            None => {}
        }
        let end = end.map_err(SetupError::from)?;
        if end.cause == Cause::Deadline {
            return Err(AskError::TooLong {
                attempt,
                path: path(),
                limit,
            });
        }
        let exit_code = match end.exit.status {
            Status::Code(code) => code,
            Status::Signal(signal) => 128 + signal,
        };
        let said = keeper.said.end(OUTPUT_END);
        if exit_code == NOT_FOUND && said.starts_with(NO_GIT) {
            return Err(AskError::NoGit);
        }
        Ok((exit_code, said, keeper.kept))
    }
}

/// What was said inside, fit to be shown.
pub(super) fn visible(said: &str) -> String {
    let shown = |char| match char {
        '\n' => char,
        char if is_shown(char) => char,
        _ => '\u{fffd}',
    };
    said.trim().chars().map(shown).collect()
}

const WRITING: &str = "keeping what git inside printed";

/// Looks whether there is room on the disk for more.
pub(crate) type Room = Box<dyn Fn() -> std::io::Result<()> + Send>;

/// After so many bytes it is looked for room again.
const LOOK: u64 = 4 << 20;

/// Where what git prints goes.
enum Kept {
    Memory(Vec<u8>),
    File(tokio::fs::File, Room),
}

/// Why no more is taken.
#[derive(Debug)]
enum Stopped {
    /// It printed more than this.
    TooMuch(u64),
    Host(std::io::Error),
}

/// Keeps what git prints, up to a limit.
struct Keeper {
    kept: Kept,
    most: u64,
    left: u64,
    said: Output,
    left_to_say: u64,
    stopped: Option<Stopped>,
    kill: CancellationToken,
}

impl Sink for Keeper {
    async fn take(&mut self, stream: Stream, bytes: Vec<u8>) {
        if self.stopped.is_some() {
            return;
        }
        if stream == Stream::Stderr {
            self.said.push(&bytes);
            match self.left_to_say.checked_sub(bytes.len() as u64) {
                Some(left) => self.left_to_say = left,
                None => self.stop(Stopped::TooMuch(MOST_SAID)),
            }
            return;
        }
        let left = self.left.checked_sub(bytes.len() as u64);
        let taken = match (left, &mut self.kept) {
            (None, _) => Err(Stopped::TooMuch(self.most)),
            (Some(_), Kept::Memory(kept)) => {
                kept.extend(bytes);
                Ok(())
            }
            (Some(left), Kept::File(file, room)) => {
                let looked = match left / LOOK == self.left / LOOK {
                    true => Ok(()),
                    false => room(),
                };
                match looked {
                    Ok(()) => file.write_all(&bytes).await.map_err(Stopped::Host),
                    Err(full) => Err(Stopped::Host(full)),
                }
            }
        };
        self.left = left.unwrap_or(0);
        if let Err(stopped) = taken {
            self.stop(stopped);
        }
    }
}

impl Keeper {
    fn stop(&mut self, why: Stopped) {
        self.stopped = Some(why);
        self.kill.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[tokio::test]
    async fn what_git_says_is_kept_to_its_end_and_has_one() {
        let kill = CancellationToken::new();
        let mut keeper = Keeper {
            kept: Kept::Memory(Vec::new()),
            most: 1,
            left: 1,
            said: Output::limited(8),
            left_to_say: MOST_SAID,
            stopped: None,
            kill: kill.clone(),
        };
        for _ in 0..16 {
            keeper.take(Stream::Stderr, vec![b'.'; 1 << 20]).await;
        }
        assert!(keeper.stopped.is_none() && !kill.is_cancelled());
        keeper.take(Stream::Stderr, b"last".to_vec()).await;
        assert_eq!(keeper.said.end(4), "last");
        assert!(matches!(keeper.stopped, Some(Stopped::TooMuch(MOST_SAID))) && kill.is_cancelled());
    }

    #[tokio::test]
    async fn what_git_prints_is_kept_for_as_long_as_there_is_room() {
        let file = tempfile::tempfile().expect("a temporary file");
        let length = file.try_clone().expect("one more of it");
        let written = move || length.metadata().expect("it is there").len();
        let room = move || match written() {
            some if some < 3 * LOOK => Ok(()),
            _ => Err(io::ErrorKind::StorageFull.into()),
        };
        let kill = CancellationToken::new();
        let mut keeper = Keeper {
            kept: Kept::File(tokio::fs::File::from_std(file), Box::new(room)),
            most: 1 << 40,
            left: 1 << 40,
            said: Output::limited(OUTPUT_END),
            left_to_say: MOST_SAID,
            stopped: None,
            kill: kill.clone(),
        };
        let mut taken = 0;
        while !kill.is_cancelled() {
            keeper.take(Stream::Stdout, vec![0; 1 << 20]).await;
            taken += 1;
            assert!(taken < 100, "it goes on and on");
        }
        assert!(
            matches!(&keeper.stopped, Some(Stopped::Host(error)) if error.kind() == io::ErrorKind::StorageFull)
        );
        // Looked at after each of the pieces, and what was on its way.
        assert!(taken <= 4 * 4 + 4, "{taken} MiB were taken");
    }
}
