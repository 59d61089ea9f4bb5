//! What is compared: jobs, who does them, and how long each took.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Job {
    /// Until a first command ran in something new.
    First,
    /// One command in what is running.
    Exec,
    /// Back to the state of the beginning.
    Reset,
    /// Until nothing of it runs.
    Teardown,
    /// Create, one command, teardown.
    Whole,
}

/// Who does them.
pub(crate) trait Contender {
    /// Its name in the table.
    fn name(&self) -> &'static str;
    /// Does each of its jobs a few times.
    fn round(&mut self, samples: &mut Samples);
    /// Does what every round needs, once; why this host does not let it.
    fn try_once(&mut self) -> Result<(), String>;
}

/// How long everything took.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    all: BTreeMap<(Job, &'static str), Vec<Duration>>,
}

impl Samples {
    /// Adds one duration.
    pub(crate) fn add(&mut self, job: Job, name: &'static str, duration: Duration) {
        self.all.entry((job, name)).or_default().push(duration);
    }

    /// The duration below which the share `percent` of this job's lie; `None` where it was not done.
    pub(crate) fn percentile(
        &self,
        job: Job,
        name: &'static str,
        percent: usize,
    ) -> Option<Duration> {
        let mut durations = self.all.get(&(job, name))?.clone();
        durations.sort_unstable();
        durations
            .get((durations.len() - 1) * percent / 100)
            .copied()
    }

    /// Who did what, jobs together.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (Job, &'static str)> {
        self.all.keys().copied()
    }
}

/// The command that everybody runs: what derrick makes of the command line `true`.
pub(crate) const SHELL: [&str; 3] = ["/bin/bash", "-c", crate::support::COMMAND];

/// Runs a command to its end; what it printed if it failed.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?}: {}: {}", output.status, said.trim()))
    }
}

/// Runs a command that has to succeed, with nothing of it read, so that it is not timed.
pub(crate) fn succeed(command: &mut Command) {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "{command:?} ended with {status:?}"
    );
}

/// What `program` says of its version.
///
/// # Panics
/// Where it is missing, with what to install.
pub(crate) fn version(program: &str, package: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let Ok(output) = output else {
        panic!("{program} is missing; as root: apt-get install {package}");
    };
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().next().unwrap_or(program).to_owned()
}
