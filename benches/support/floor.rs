//! The least that the kernel can do a job for: nothing of it confines anything.
//!
//! A process of its own, the bench executed once more: it forks, which only a process with one thread
//! may, and it times itself, so that no pipe is part of the floor.
//!
//! | job | what is timed |
//! |---|---|
//! | `spawn` | fork(2), execve(2) of `/bin/true` and wait4(2), of a process of a few MiB; no vfork(2) |
//! | `sandbox` | fork, seven namespaces, ids mapped, an overlay with the host's `/usr`, pivot_root(2), exec, exit, wait |

use std::ffi::CString;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use derrick::sys::process::{OneThread, execute, fork_child, unshare};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount,
};
use rustix::thread::UnshareFlags;

use super::ENVIRONMENT;

/// The argument that makes a bench this process.
pub(crate) const ARGUMENT: &str = "--serve-the-floor";

/// The process.
#[derive(Debug)]
pub(crate) struct Floor {
    child: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// How many sandboxes one process made, one after another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) count: u64,
    /// What they took, their directories apart.
    pub(crate) inside: Duration,
    /// What all took, making and removing their directories included.
    pub(crate) whole: Duration,
}

impl Floor {
    /// Starts it with a directory of its own; sandboxes are made for `program`.
    pub(crate) fn start(home: &Path, program: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .arg(ARGUMENT)
            .arg(home)
            .args(program)
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

    /// One fork, exec and wait of `/bin/true`.
    pub(crate) fn spawn(&mut self) -> Duration {
        self.once("spawn").expect("/bin/true can be run")
    }

    /// One sandbox; why the host lets it make none.
    pub(crate) fn sandbox(&mut self) -> Result<Duration, String> {
        self.once("sandbox")
    }

    /// As many sandboxes as it makes in this time.
    pub(crate) fn sandboxes(&mut self, time: Duration) -> Result<Made, String> {
        let numbers = self.ask(&format!("sandboxes {}", time.as_millis()))?;
        let [count, inside, whole] = numbers[..] else {
            return Err(format!("{numbers:?}"));
        };
        Ok(Made {
            count,
            inside: Duration::from_nanos(inside),
            whole: Duration::from_nanos(whole),
        })
    }

    fn once(&mut self, job: &str) -> Result<Duration, String> {
        let numbers = self.ask(job)?;
        numbers
            .first()
            .copied()
            .map(Duration::from_nanos)
            .ok_or_else(|| "it said nothing".to_owned())
    }

    fn ask(&mut self, job: &str) -> Result<Vec<u64>, String> {
        let mut line = String::new();
        writeln!(self.asked, "{job}")
            .and_then(|()| self.answers.read_line(&mut line))
            .map_err(|error| error.to_string())?;
        let numbers = line.split_whitespace().map(str::parse);
        numbers
            .collect::<Result<_, _>>()
            .map_err(|_| line.trim().to_owned())
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // It ends at the end of its stdin, or now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers each line of stdin with nanoseconds, or with why there are none.
pub(crate) fn serve(mut arguments: impl Iterator<Item = String>) {
    let home = PathBuf::from(arguments.next().expect("the floor has a directory"));
    spread(&home);
    let program: Vec<String> = arguments.collect();
    let mut maker = Maker {
        one: OneThread::check().expect("this process has one thread"),
        lower: make_lower(&home).expect("the lower directory can be made"),
        home,
        program: strings(&program),
        environment: strings(&ENVIRONMENT.map(|(name, value)| format!("{name}={value}"))),
        number: 0,
    };
    for line in io::stdin().lines() {
        let line = line.unwrap_or_default();
        match maker.answer(&line) {
            Ok(answer) => println!("{answer}"),
            Err(error) => println!("no {line}: {error}"),
        }
    }
}

/// As derrick has it: where ext4 has no journal, a sandbox made where others were just removed costs more to
/// look for an inode than for all else.
fn spread(home: &Path) {
    let _ = std::fs::create_dir_all(home)
        .and_then(|()| std::fs::File::open(home))
        .and_then(|open| {
            let flags = rustix::fs::ioctl_getflags(&open)? | rustix::fs::IFlags::TOPDIR;
            Ok(rustix::fs::ioctl_setflags(&open, flags)?)
        });
}

fn strings(texts: &[String]) -> Vec<CString> {
    let texts = texts.iter().map(|text| CString::new(text.as_str()));
    texts
        .collect::<Result<_, _>>()
        .expect("no argument has a NUL")
}

/// Makes sandboxes without any restriction, each with an upper of its own.
struct Maker {
    one: OneThread,
    home: PathBuf,
    lower: PathBuf,
    program: Vec<CString>,
    environment: Vec<CString>,
    number: u32,
}

impl Maker {
    fn answer(&mut self, line: &str) -> io::Result<String> {
        match line.split_once(' ') {
            None if line == "spawn" => self.spawn().map(|time| time.as_nanos().to_string()),
            None => self.sandbox().map(|time| time.as_nanos().to_string()),
            Some((_, milliseconds)) => {
                let time = milliseconds.parse().map_err(io::Error::other)?;
                let time = Duration::from_millis(time);
                let started = Instant::now();
                let (mut count, mut inside) = (0, Duration::ZERO);
                while started.elapsed() < time {
                    inside += self.sandbox()?;
                    count += 1;
                }
                let whole = started.elapsed();
                Ok(format!(
                    "{count} {} {}",
                    inside.as_nanos(),
                    whole.as_nanos()
                ))
            }
        }
    }

    fn spawn(&self) -> io::Result<Duration> {
        let program = c"/bin/true";
        let arguments = [program.to_owned()];
        let body = || {
            execute(program, &arguments, &self.environment);
            126
        };
        let started = Instant::now();
        let status = fork_child(self.one, body)?.wait()?;
        succeeded(status, started.elapsed())
    }

    fn sandbox(&mut self) -> io::Result<Duration> {
        self.number += 1;
        let writable = self.home.join(self.number.to_string());
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        std::fs::create_dir_all(&upper)?;
        std::fs::create_dir_all(&work)?;
        let options = CString::new(format!(
            "lowerdir={},upperdir={},workdir={},userxattr",
            self.lower.display(),
            upper.display(),
            work.display()
        ))?;
        let bare = Bare {
            maker: self,
            options,
            root: self.home.join("root"),
            user: rustix::process::geteuid().as_raw(),
            group: rustix::process::getegid().as_raw(),
        };
        let started = Instant::now();
        let status = fork_child(self.one, || bare.live(self.one))?.wait()?;
        let elapsed = started.elapsed();
        // Of mode 000, so that only removing it as empty works.
        std::fs::remove_dir(work.join("work"))?;
        std::fs::remove_dir_all(&writable)?;
        succeeded(status, elapsed)
    }
}

fn succeeded(status: i32, elapsed: Duration) -> io::Result<Duration> {
    if status == 0 {
        Ok(elapsed)
    } else {
        Err(io::Error::other(format!("it ended with {status}")))
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

/// One of them.
struct Bare<'a> {
    maker: &'a Maker,
    options: CString,
    root: PathBuf,
    user: u32,
    group: u32,
}

impl Bare<'_> {
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
            rustix::process::chdir(&self.root)?;
            // The old root ends up on top of the new one, from where it is detached.
            rustix::process::pivot_root(".", ".")?;
            unmount(".", UnmountFlags::DETACH)?;
            rustix::process::chdir("/")?;
            let Maker {
                program,
                environment,
                ..
            } = self.maker;
            Err::<(), _>(execute(&program[0], program, environment))
        })();
        match entered {
            Ok(()) => 0,
            Err(_) => 125,
        }
    }
}
