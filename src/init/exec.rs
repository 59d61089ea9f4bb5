//! One command: forked from init, given its descriptors, executed.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::files::protocol::RawPath;
use super::protocol::{Attempt, Exec, Program, Refusal, Unpacked};
use super::user::User;
use super::{files, unpack};
use crate::sandbox::limits;
use crate::sys::process::{
    Child, OneThread, Standard, become_standard, close_all_except, close_on_exec_from, execute,
    exit_now, fork_child, out_of_the_way, place_from_three, reset_signals,
};
use crate::sys::terminal;

/// Shells for command lines, the preferred first, and what each is called.
const SHELLS: &[(&str, &str)] = &[
    ("/bin/bash", "bash"),
    ("/usr/bin/bash", "bash"),
    ("/bin/sh", "sh"),
    ("/usr/bin/sh", "sh"),
];

/// Bytes of a command line that fit into one argument: `MAX_ARG_STRLEN` of execve(2) where pages are
/// smallest, without the NUL.
const LONGEST_LINE: usize = 128 * 1024 - 1;

/// Reads a longer line from descriptor 3, as `sh -c` reads its argument: `$0`, stdin and the exit code
/// are the same. The line itself begins with closing that, so that nothing it starts has it.
const READ_LONG_LINE: &str = ". /proc/self/fd/3";
const CLOSE_LONG_LINE: &str = "exec 3<&-; ";

/// Where programs are looked up if the environment has no `PATH`, as execvp(3) does.
const DEFAULT_PATH: &str = "/usr/local/bin:/bin:/usr/bin";

/// A command on its way: forked, and not executed yet as far as init knows.
#[derive(Debug)]
pub struct Starting {
    /// The leader of its process tree.
    pub leader: Child,
    /// The master of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
    /// Ends when the program is executed, which is the good news; or says why it cannot be.
    news: io::PipeReader,
}

/// Forks a command. It may be a while until it is executed, or for ever: what is inside can stop it.
///
/// # Errors
/// Why it cannot be forked.
pub fn start(one: OneThread, exec: &Exec, descriptors: Vec<OwnedFd>) -> Result<Starting, Refusal> {
    let refuse = |error: io::Error| Refusal {
        attempt: Attempt::Start,
        errno: error.raw_os_error().unwrap_or(libc::EIO),
    };
    let (terminal, stdio) = match exec.terminal {
        Some(size) => {
            let (master, slave) = terminal::open(size).map_err(refuse)?;
            (Some(master), Stdio::Terminal(slave))
        }
        None => (None, Stdio::from_descriptors(descriptors).map_err(refuse)?),
    };
    let (news, teller) = io::pipe().map_err(refuse)?;
    let teller = File::from(out_of_the_way(teller.as_fd()).map_err(refuse)?);
    let leader = fork_child(one, || {
        let refusal = become_command(exec, &stdio);
        // With the provider gone nobody reads it.
        let _ = (&teller).write_all(&serde_json::to_vec(&refusal).unwrap_or_default());
        1
    })
    .map_err(refuse)?;
    Ok(Starting {
        leader,
        terminal,
        news,
    })
}

impl Starting {
    /// What becomes readable when there is news.
    pub fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// The news, which must be there.
    ///
    /// # Errors
    /// Why the command cannot be executed. A program that is not there is no such reason: that is
    /// the exec's outcome, 127.
    pub fn hear(&mut self) -> Result<(), Refusal> {
        let mut bad_news = Vec::new();
        // Small enough to have been written at once.
        let heard = self.news.read_to_end(&mut bad_news);
        if heard.is_ok() && bad_news.is_empty() {
            return Ok(());
        }
        let unknown = Refusal {
            attempt: Attempt::Start,
            errno: libc::EIO,
        };
        Err(serde_json::from_slice(&bad_news).unwrap_or(unknown))
    }
}

enum Stdio {
    Terminal(OwnedFd),
    Descriptors {
        input: OwnedFd,
        output: OwnedFd,
        error: OwnedFd,
        /// For descriptor 3 and those after it.
        further: Vec<OwnedFd>,
    },
}

impl Stdio {
    fn from_descriptors(mut descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        if descriptors.len() == 2 {
            descriptors.insert(0, std::fs::File::open("/dev/null")?.into());
        }
        let mut descriptors = descriptors.into_iter();
        match (descriptors.next(), descriptors.next(), descriptors.next()) {
            (Some(input), Some(output), Some(error)) => Ok(Self::Descriptors {
                input,
                output,
                error,
                further: descriptors.collect(),
            }),
            _ => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    fn install(&self) -> io::Result<()> {
        let (input, output, error) = match self {
            Self::Terminal(slave) => {
                terminal::take_control(slave.as_fd())?;
                (slave, slave, slave)
            }
            Self::Descriptors {
                input,
                output,
                error,
                ..
            } => (input, output, error),
        };
        become_standard(input.as_fd(), Standard::Input)?;
        become_standard(output.as_fd(), Standard::Output)?;
        become_standard(error.as_fd(), Standard::Error)
    }

    /// Lets the user open its terminal by name, as login(1) does.
    fn give_to(&self, user: &User) -> io::Result<()> {
        match self {
            Self::Terminal(slave) if user.uid() != 0 => {
                let owner = rustix::fs::Uid::from_raw(user.uid());
                Ok(rustix::fs::fchown(slave, Some(owner), None)?)
            }
            _ => Ok(()),
        }
    }

    fn further(&self) -> &[OwnedFd] {
        match self {
            Self::Terminal(_) => &[],
            Self::Descriptors { further, .. } => further,
        }
    }
}

/// Turns the calling process into the command; returns only if that cannot be.
fn become_command(exec: &Exec, stdio: &Stdio) -> Refusal {
    let refusal = |attempt, error: &io::Error| Refusal {
        attempt,
        errno: error.raw_os_error().unwrap_or(libc::EIO),
    };
    let mut given: Vec<BorrowedFd<'_>> = stdio.further().iter().map(AsFd::as_fd).collect();
    let long_line = match &exec.program {
        Program::Shell(line) if line.len() > LONGEST_LINE && given.is_empty() => {
            hold(line).map(Some)
        }
        _ => Ok(None),
    };
    let long_line = match long_line {
        Ok(held) => held,
        Err(error) => return refusal(Attempt::Start, &error),
    };
    given.extend(long_line.as_ref().map(AsFd::as_fd));
    let prepared = (|| {
        rustix::process::setsid()?;
        stdio.install()?;
        place_from_three(&given)?;
        // Orphans of this tree come to its leader and not to init: a deadline finds them below it.
        // Survives execve(2); the seccomp profile keeps the command from giving it up.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        io::Result::Ok(())
    })();
    if let Err(error) = prepared {
        return refusal(Attempt::Start, &error);
    }
    let user = match User::find(exec.user.as_deref()) {
        Ok(user) => user,
        Err(refused) => return refused,
    };
    // The last that takes root: what is the user's own is done by the user.
    if let Err(error) = stdio.give_to(&user) {
        // An id that the sandbox does not have can own no terminal.
        return refusal(Attempt::User(Some(user.uid())), &error);
    }
    if let Err(refused) = user.become_it() {
        return refused;
    }
    if let Err(error) = rustix::process::chdir(&exec.directory) {
        return refusal(Attempt::Directory, &error.into());
    }
    reset_signals();
    if matches!(exec.program, Program::Shell(_) | Program::Arguments(_))
        && let Err(error) = limits::limit_open_files(exec.open_files)
    {
        return refusal(Attempt::Start, &error);
    }
    let image = Image {
        environment: &environment_of(exec, &user),
        given: given.len(),
    };
    match &exec.program {
        Program::Unpack(directory, compression) => {
            // Nothing is executed that would close the teller, and with it tell the good news.
            if let Err(error) = close_all_except(&[]) {
                return refusal(Attempt::Start, &error);
            }
            exit_now(run_unpacker(directory, *compression))
        }
        Program::Apply(roots, base) => {
            if let Err(error) = close_all_except(&[]) {
                return refusal(Attempt::Start, &error);
            }
            exit_now(run_snapshot_unpacker(roots, base))
        }
        Program::Files(request) => {
            if let Err(error) = close_all_except(&[]) {
                return refusal(Attempt::Start, &error);
            }
            exit_now(files::serve(request))
        }
        Program::Shell(_) if long_line.is_some() => run_shell(READ_LONG_LINE, &image),
        Program::Shell(line) => run_shell(line, &image),
        Program::Arguments(arguments) => run_program(arguments, &image),
    }
}

/// The exec's environment, and of the user's what it leaves open.
fn environment_of(exec: &Exec, user: &User) -> Vec<(String, String)> {
    let given = &exec.environment;
    let open = user
        .environment()
        .into_iter()
        .filter(|(name, _)| given.iter().all(|(given, _)| given != name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    open.chain(given.iter().cloned()).collect()
}

fn run_unpacker(directory: &RawPath, compression: unpack::Compression) -> i32 {
    let limits = unpack::UnpackLimits::default();
    let result = files::make_destination(directory)
        .map_err(|errno| unpack::UnpackError::Destination {
            path: directory.to_string(),
            source: errno.into(),
        })
        .and_then(|()| {
            let path = Path::new(OsStr::from_bytes(directory.as_bytes()));
            unpack::unpack(io::stdin().lock(), compression, path, &limits)
        });
    report(&match result {
        Ok(summary) => Unpacked::Done(summary),
        Err(error) => describe(&error),
    })
}

fn run_snapshot_unpacker(roots: &[RawPath], base: &str) -> i32 {
    let roots = roots.iter();
    let roots: Vec<_> = roots
        .map(|root| Path::new(OsStr::from_bytes(root.as_bytes())))
        .collect();
    let limits = unpack::UnpackLimits::default();
    report(
        &match unpack::unpack_snapshot(io::stdin().lock(), &roots, base, &limits) {
            Ok(applied) => Unpacked::Done(applied),
            Err(error) => describe(&error),
        },
    )
}

/// Prints a report; the exit code.
fn report<T: serde::Serialize>(report: &Unpacked<T>) -> i32 {
    let tell = |json: Vec<u8>| {
        let mut stdout = io::stdout().lock();
        // The process ends without running what would flush it.
        stdout.write_all(&json).and_then(|()| stdout.flush())
    };
    let told = serde_json::to_vec(report).is_ok_and(|json| tell(json).is_ok());
    match report {
        Unpacked::Done(_) if told => 0,
        _ => 1,
    }
}

fn describe<T>(error: &unpack::UnpackError) -> Unpacked<T> {
    let cause =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    let message = match cause {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    Unpacked::Failed {
        message,
        errno: cause.and_then(io::Error::raw_os_error),
    }
}

/// What every program that is tried for a command is executed with.
struct Image<'a> {
    environment: &'a [(String, String)],
    /// How many descriptors it has besides the standard ones.
    given: usize,
}

/// A file in memory with a command line that is too long for an argument. Its mode lets any user read
/// it, memfd_create(2).
fn hold(line: &str) -> io::Result<OwnedFd> {
    let held = rustix::fs::memfd_create(c"cmd", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut held = File::from(held);
    held.write_all(CLOSE_LONG_LINE.as_bytes())?;
    held.write_all(line.as_bytes())?;
    Ok(held.into())
}

fn run_shell(line: &str, image: &Image<'_>) -> Refusal {
    let mut error = io::Error::from_raw_os_error(libc::ENOENT);
    for (path, name) in SHELLS {
        let arguments = [*name, "-c", line].map(str::to_owned);
        error = run(path, &arguments, image);
        if error.raw_os_error() != Some(libc::ENOENT) {
            break;
        }
    }
    let what = match error.raw_os_error() {
        Some(libc::ENOENT) => "no shell (bash or sh) in this workspace",
        _ => "the command line",
    };
    fail_as_a_shell(what, &error)
}

fn run_program(arguments: &[String], image: &Image<'_>) -> Refusal {
    let Some(name) = arguments.first() else {
        return Refusal {
            attempt: Attempt::Start,
            errno: libc::EINVAL,
        };
    };
    if name.is_empty() {
        return fail_as_a_shell(name, &io::Error::from_raw_os_error(libc::ENOENT));
    }
    if name.contains('/') {
        let error = run(name, arguments, image);
        return fail_as_a_shell(name, &error);
    }
    let path = image
        .environment
        .iter()
        .rev()
        .find(|(key, _)| key == "PATH")
        .map_or(DEFAULT_PATH, |(_, value)| value);
    let mut error = io::Error::from_raw_os_error(libc::ENOENT);
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let tried = run(&format!("{directory}/{name}"), arguments, image);
        // As execvp(3): go on past what is not there, remember what may not be executed.
        match tried.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => error = tried,
            _ => return fail_as_a_shell(name, &tried),
        }
    }
    fail_as_a_shell(name, &error)
}

/// Executes the file at `path`; returns only an error.
fn run(path: &str, arguments: &[String], image: &Image<'_>) -> io::Error {
    let prepared = (|| {
        let program = CString::new(path)?;
        let arguments = arguments
            .iter()
            .map(|text| CString::new(text.as_str()))
            .collect::<Result<Vec<_>, _>>()?;
        let environment = image
            .environment
            .iter()
            .map(|(name, value)| CString::new(format!("{name}={value}")))
            .collect::<Result<Vec<_>, _>>()?;
        close_on_exec_from(3 + u32::try_from(image.given).unwrap_or(0))?;
        io::Result::Ok((program, arguments, environment))
    })();
    match prepared {
        Ok((program, arguments, environment)) => execute(&program, &arguments, &environment),
        Err(error) => error,
    }
}

/// Ends as a shell would that was given this command: 127 if it is not there, 126 if it cannot be
/// executed, with a message on stderr. What the host lacks is derrick's to report.
fn fail_as_a_shell(name: &str, error: &io::Error) -> Refusal {
    let code = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => 127,
        None
        | Some(
            libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EIO | libc::ENOSYS,
        ) => {
            return Refusal {
                attempt: Attempt::Start,
                errno: error.raw_os_error().unwrap_or(libc::EIO),
            };
        }
        Some(_) => 126,
    };
    let _ = writeln!(io::stderr(), "derrick: {name}: {error}");
    exit_now(code)
}
