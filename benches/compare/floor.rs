//! The least that the kernel can do the job for: nothing of it confines anything.
//!
//! `bare` runs in a process of its own, this program executed once more: it forks, which only a
//! process with one thread may, and it times itself, so that no pipe is part of the floor.

use std::ffi::CString;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use derrick::sys::process::{OneThread, execute, fork_child, unshare};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};
use rustix::thread::UnshareFlags;

use super::contender::{Contender, Job, SHELL, Samples};
use super::support::{ENVIRONMENT, Scratch, time};

/// The argument that makes this program the process of `bare`.
pub(crate) const ARGUMENT: &str = "--serve-the-floor";

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
pub(crate) struct Bare {
    child: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Bare {
    pub(crate) fn start(scratch: &Scratch) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .arg(ARGUMENT)
            .arg(scratch.join(BARE))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        Self {
            asked: child.stdin.take().expect("stdin is a pipe"),
            answers: BufReader::new(child.stdout.take().expect("stdout is a pipe")),
            child,
        }
    }

    fn once(&mut self) -> Result<Duration, String> {
        let mut line = String::new();
        self.asked
            .write_all(b"\n")
            .and_then(|()| self.answers.read_line(&mut line))
            .map_err(|error| error.to_string())?;
        line.trim()
            .parse()
            .map(Duration::from_nanos)
            .map_err(|_| line.trim().to_owned())
    }
}

impl Contender for Bare {
    fn name(&self) -> &'static str {
        BARE
    }

    fn try_once(&mut self) -> Result<(), String> {
        self.once().map(drop)
    }

    fn round(&mut self, samples: &mut Samples) {
        for _ in 0..BATCH {
            let duration = self.once().expect("what worked once works again");
            samples.add(Job::Whole, BARE, duration);
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It ends at the end of its stdin, or now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers each line of stdin with the nanoseconds that one sandbox took, or with why there was none.
pub(crate) fn serve(mut arguments: impl Iterator<Item = String>) {
    let home = PathBuf::from(arguments.next().expect("the floor has a directory"));
    let one = OneThread::check().expect("this process has one thread");
    let lower = make_lower(&home).expect("the lower directory can be made");
    let mut number = 0;
    for _ in io::stdin().lines() {
        number += 1;
        let answer = Bareness::prepare(&home, &lower, number).and_then(|bareness| {
            let started = Instant::now();
            let status = fork_child(one, || bareness.live(one))?.wait()?;
            let elapsed = started.elapsed();
            bareness.remove()?;
            if status == 0 {
                Ok(elapsed.as_nanos())
            } else {
                Err(io::Error::other(format!("it ended with {status}")))
            }
        });
        match answer {
            Ok(nanoseconds) => println!("{nanoseconds}"),
            Err(error) => println!("no bare sandbox: {error}"),
        }
    }
}

/// A root without files: the host's links into `/usr`, and `/usr` as a place.
fn make_lower(home: &Path) -> io::Result<PathBuf> {
    let lower = home.join("lower");
    std::fs::create_dir_all(lower.join("usr"))?;
    std::fs::create_dir_all(home.join("root"))?;
    for directory in ["bin", "lib", "lib64"] {
        let on_host = Path::new("/").join(directory);
        let target = std::fs::read_link(&on_host).map_err(|error| {
            io::Error::other(format!(
                "{}: {error}; the floor needs a merged /usr",
                on_host.display()
            ))
        })?;
        std::os::unix::fs::symlink(target, lower.join(directory))?;
    }
    Ok(lower)
}

/// One sandbox without any restriction.
struct Bareness {
    writable: PathBuf,
    options: CString,
    root: PathBuf,
    user: u32,
    group: u32,
}

impl Bareness {
    fn prepare(home: &Path, lower: &Path, number: u32) -> io::Result<Self> {
        let writable = home.join(number.to_string());
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        std::fs::create_dir_all(&upper)?;
        std::fs::create_dir_all(&work)?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={},userxattr",
            lower.display(),
            upper.display(),
            work.display()
        );
        Ok(Self {
            writable,
            options: CString::new(options)?,
            root: home.join("root"),
            user: rustix::process::geteuid().as_raw(),
            group: rustix::process::getegid().as_raw(),
        })
    }

    /// The life of the first process: namespaces, then the one whose child has process id 1.
    fn live(&self, one: OneThread) -> i32 {
        let status = self
            .enter_namespaces(one)
            .and_then(|()| fork_child(one, || self.become_command()))
            .and_then(derrick::sys::process::Child::wait);
        status.unwrap_or(126)
    }

    fn enter_namespaces(&self, one: OneThread) -> io::Result<()> {
        let every_kind = UnshareFlags::NEWUSER
            | UnshareFlags::NEWNS
            | UnshareFlags::NEWPID
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWCGROUP;
        unshare(one, every_kind)?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {} 1", self.user))?;
        std::fs::write("/proc/self/gid_map", format!("0 {} 1", self.group))
    }

    fn become_command(&self) -> i32 {
        let entered = (|| {
            mount(
                "overlay",
                &self.root,
                "overlay",
                MountFlags::empty(),
                self.options.as_c_str(),
            )?;
            let usr = open_tree(
                CWD,
                "/usr",
                OpenTreeFlags::OPEN_TREE_CLONE
                    | OpenTreeFlags::OPEN_TREE_CLOEXEC
                    | OpenTreeFlags::AT_RECURSIVE,
            )?;
            let place = self.root.join("usr");
            move_mount(
                usr,
                "",
                CWD,
                &place,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )?;
            rustix::process::chroot(&self.root)?;
            rustix::process::chdir("/")?;
            let strings = |texts: &[String]| -> io::Result<Vec<CString>> {
                let texts = texts.iter().map(|text| CString::new(text.as_str()));
                Ok(texts.collect::<Result<_, _>>()?)
            };
            let program = strings(&SHELL.map(str::to_owned))?;
            let environment = strings(&ENVIRONMENT.map(|(name, value)| format!("{name}={value}")))?;
            Err::<(), _>(execute(&program[0], &program, &environment))
        })();
        match entered {
            Ok(()) => 0,
            Err(_) => 125,
        }
    }

    fn remove(&self) -> io::Result<()> {
        // Of mode 000, so that only removing it as empty works.
        std::fs::remove_dir(self.writable.join("work/work"))?;
        std::fs::remove_dir_all(&self.writable)
    }
}
