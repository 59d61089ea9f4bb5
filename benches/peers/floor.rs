//! The least that the kernel can do the job for: nothing of it confines anything.

use std::process::Command;

use super::contender::{Contender, Job, SHELL, Samples};
use super::support::{ENVIRONMENT, Floor, Scratch, time};

const BATCH: usize = 4;

/// Fork, exec and wait of one program; posix_spawn(3) where the standard library uses it.
pub(crate) struct Spawn {
    name: &'static str,
    program: &'static [&'static str],
}

impl Spawn {
    /// The smallest program there is.
    pub(crate) const TRUE: Self = Self {
        name: TRUE,
        program: &["/bin/true"],
    };
    /// The command that all others run.
    pub(crate) const SHELL: Self = Self {
        name: SAME,
        program: &SHELL,
    };

    fn command(&self) -> Command {
        let mut command = Command::new(self.program[0]);
        command.args(&self.program[1..]);
        command.env_clear().envs(ENVIRONMENT);
        command
    }
}

/// Whose `exec` is the unit of the first ratio.
pub(crate) const TRUE: &str = "true";
/// Whose `exec` is the unit of the second ratio.
pub(crate) const SAME: &str = "shell";
/// Whose `whole` is the unit of the third ratio.
pub(crate) const BARE: &str = "bare";

impl Contender for Spawn {
    fn name(&self) -> &'static str {
        self.name
    }

    fn try_once(&mut self) -> Result<(), String> {
        super::contender::run(&mut self.command())
    }

    fn round(&mut self, samples: &mut Samples) {
        for _ in 0..BATCH {
            let (duration, status) = time(|| self.command().status());
            assert!(
                status.is_ok_and(|status| status.success()),
                "{} failed",
                self.program[0]
            );
            samples.add(Job::Exec, self.name, duration);
        }
    }
}

/// The process that makes namespaces, an overlay and a command, and ends them.
pub(crate) struct Bare(Floor);

impl Bare {
    pub(crate) fn start(scratch: &Scratch) -> Self {
        Self(Floor::start(&scratch.join(BARE), &SHELL))
    }
}

impl Contender for Bare {
    fn name(&self) -> &'static str {
        BARE
    }

    fn try_once(&mut self) -> Result<(), String> {
        self.0.sandbox().map(drop)
    }

    fn round(&mut self, samples: &mut Samples) {
        for _ in 0..BATCH {
            let duration = self.0.sandbox().expect("what worked once works again");
            samples.add(Job::Whole, BARE, duration);
        }
    }
}
