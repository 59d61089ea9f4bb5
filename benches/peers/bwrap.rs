//! bubblewrap, with the flags that come nearest to what derrick makes.
//!
//! Not comparable: it has no overlay (`/usr` is read-only, the rest a tmpfs), no seccomp filter, no
//! landlock and no masks in `/proc`; root inside is one id. It starts no command in a sandbox that
//! runs: `exec` is left out, and a reset is a teardown and a create. Its program is its first command. It ends with its command, before
//! the kernel has taken its namespaces and mounts down; derrick's teardown waits for that.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::contender::{Contender, Job, SHELL, Samples, run, succeed, version};
use super::support::{ENVIRONMENT, time};

const NAME: &str = "bwrap";
const BATCH: usize = 3;

/// Which version it is.
pub(crate) fn describe() -> String {
    version(NAME, "bubblewrap")
}

/// How it is called.
pub(crate) struct Bwrap {
    arguments: Vec<String>,
}

/// A sandbox in which `cat` runs: what is written to it comes back once it is there.
struct Running(Child);

impl Bwrap {
    pub(crate) fn new() -> Self {
        let mut arguments: Vec<String> = [
            "--unshare-all",
            "--die-with-parent",
            "--new-session",
            "--uid 0 --gid 0",
            "--hostname bench",
            "--clearenv",
            "--ro-bind /usr /usr",
            "--proc /proc",
            "--dev /dev",
            "--tmpfs /tmp",
            "--chdir /",
        ]
        .iter()
        .flat_map(|flag| flag.split(' '))
        .map(str::to_owned)
        .collect();
        for (name, value) in ENVIRONMENT {
            arguments.extend(["--setenv", name, value].map(str::to_owned));
        }
        for directory in ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt"] {
            let on_host = Path::new("/").join(directory);
            let place = on_host.display().to_string();
            if let Ok(target) = std::fs::read_link(&on_host) {
                let target = target.display().to_string();
                arguments.extend(["--symlink".to_owned(), target, place]);
            } else if on_host.is_dir() {
                arguments.extend(["--ro-bind".to_owned(), place.clone(), place]);
            }
        }
        arguments.push("--".to_owned());
        Self { arguments }
    }

    fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new(NAME);
        command.args(&self.arguments).args(program);
        command
    }

    fn start(&self) -> Running {
        let mut child = self
            .command(&["/bin/cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bwrap can be started");
        let stdin = child.stdin.as_mut().expect("stdin is a pipe");
        stdin.write_all(b"\n").expect("cat takes a byte");
        let stdout = child.stdout.as_mut().expect("stdout is a pipe");
        stdout.read_exact(&mut [0]).expect("cat gives it back");
        Running(child)
    }
}

impl Running {
    fn end(mut self) {
        drop(self.0.stdin.take());
        let status = self.0.wait().expect("bwrap can be waited for");
        assert!(status.success(), "bwrap ended with {status}");
    }
}

impl Contender for Bwrap {
    fn name(&self) -> &'static str {
        NAME
    }

    fn try_once(&mut self) -> Result<(), String> {
        run(&mut self.command(&SHELL))
    }

    fn round(&mut self, samples: &mut Samples) {
        for _ in 0..BATCH {
            let (created, running) = time(|| self.start());
            let (reset, running) = time(|| {
                running.end();
                self.start()
            });
            let (ended, ()) = time(|| running.end());
            samples.add(Job::First, NAME, created);
            samples.add(Job::Reset, NAME, reset);
            samples.add(Job::Teardown, NAME, ended);
            let (whole, ()) = time(|| succeed(&mut self.command(&SHELL)));
            samples.add(Job::Whole, NAME, whole);
        }
    }
}
