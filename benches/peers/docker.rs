//! A Docker engine, by its command line, where one can be reached.
//!
//! Not comparable: each job starts a Go program that asks a daemon, which asks another one. Its image has
//! a shell and that one's libraries; there is no network, as in derrick's workspaces. A reset is a removal
//! and a new container.

use std::path::Path;
use std::process::{Command, Stdio};

use super::contender::{Contender, Job, SHELL, Samples, run, succeed};
use super::support::{Scratch, time};

const NAME: &str = "docker";
/// Of the image, and a part of the container's name.
const IMAGE: &str = "derrick-bench";

/// Which engine it is.
pub(crate) fn describe() -> String {
    engine().map_or_else(
        || "docker: no engine can be reached".to_owned(),
        |version| format!("Docker engine {version}"),
    )
}

fn engine() -> Option<String> {
    let output = Command::new(NAME)
        .args(["version", "--format", "{{.Server.Version}}"])
        .output()
        .ok()?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !version.is_empty()).then_some(version)
}

/// Its one container.
pub(crate) struct Docker {
    container: String,
    archive: std::path::PathBuf,
}

impl Docker {
    pub(crate) fn new(scratch: &Scratch) -> Self {
        Self {
            container: format!("{IMAGE}-{}", std::process::id()),
            archive: scratch.join("image.tar"),
        }
    }

    /// The shell and what it is linked with, as an image.
    fn import(&self) -> Result<(), String> {
        let linked = Command::new("ldd")
            .arg(SHELL[0])
            .output()
            .map_err(|error| format!("ldd: {error}"))?;
        let said = String::from_utf8_lossy(&linked.stdout);
        let libraries = said
            .split_whitespace()
            .filter(|word| Path::new(word).is_absolute());
        run(Command::new("tar")
            .args(["--dereference", "--absolute-names", "--create", "--file"])
            .arg(&self.archive)
            .arg(SHELL[0])
            .args(libraries))?;
        run(Command::new(NAME)
            .arg("import")
            .arg(&self.archive)
            .arg(IMAGE))
    }

    fn start(&self) -> Command {
        let waiting = [SHELL[0], "-c", "read"];
        let mut command = command(&["run", "--detach", "--interactive", "--network", "none"]);
        command
            .args(["--name", &self.container, IMAGE])
            .args(waiting);
        command
    }

    fn end(&self) -> Command {
        command(&["rm", "--force", &self.container])
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(NAME);
    command.args(arguments).stdin(Stdio::null());
    command
}

impl Contender for Docker {
    fn name(&self) -> &'static str {
        NAME
    }

    fn try_once(&mut self) -> Result<(), String> {
        if engine().is_none() {
            return Err("no engine can be reached".to_owned());
        }
        self.import()?;
        run(&mut self.start())?;
        run(&mut self.end())
    }

    fn round(&mut self, samples: &mut Samples) {
        let (created, ()) = time(|| succeed(&mut self.start()));
        let mut exec = command(&["exec", &self.container]);
        let (exec, ()) = time(|| succeed(exec.args(SHELL)));
        let (reset, ()) = time(|| {
            succeed(&mut self.end());
            succeed(&mut self.start());
        });
        let (ended, ()) = time(|| succeed(&mut self.end()));
        samples.add(Job::First, NAME, created + exec);
        samples.add(Job::Exec, NAME, exec);
        samples.add(Job::Reset, NAME, reset);
        samples.add(Job::Teardown, NAME, ended);
        samples.add(Job::Whole, NAME, created + exec + ended);
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if self.archive.exists() {
            // Ended already unless the bench panicked.
            let _ = run(&mut self.end());
            let _ = run(&mut command(&["rmi", IMAGE]));
        }
    }
}
