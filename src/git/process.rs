//! One git process: a cleared environment, fixed settings, and its end, whatever happens.
//!
//! git's behaviour is never left to the host's or the repository's configuration: no hook, helper,
//! template, prompt or transport runs that this file did not allow. All settings go through
//! `GIT_CONFIG_*` variables (git 2.31, git-config(1)): unlike `-c` they stay out of argument lists,
//! and unlike `git clone -c` out of the repository.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;

use super::inside::made_by;
use super::upstream::{Access, Scrub, Transport};
use crate::sandbox::confined::{self, Confinement};

/// What is kept of a process's standard error: its end, far more than is ever shown, so that no
/// secret is cut in two before it is scrubbed.
const STDERR: usize = 64 * 1024;

/// The most that a process may answer on standard output when it is collected.
const STDOUT: usize = 64 * 1024 * 1024;

/// How long a process's pipes may stay open after its end; ssh's helpers are known to hold them.
const DRAIN: Duration = Duration::from_secs(1);

/// Variables of the provider that git may see: how to find programs, and, unless the repository says it itself,
/// how the host reaches the network. No more, so that nobody's own git settings take part.
const PASSED_ON: &[&str] = &["PATH"];
pub(super) const PROXIES: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
];
const AUTHORITIES: &[&str] = &[
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    AUTHORITIES_FILE,
    AUTHORITIES_DIR,
];
pub(super) const AUTHORITIES_FILE: &str = "GIT_SSL_CAINFO";
pub(super) const AUTHORITIES_DIR: &str = "GIT_SSL_CAPATH";

const SSH: &str = "ssh -oBatchMode=yes -oConnectTimeout=30 -oServerAliveInterval=15 -oServerAliveCountMax=4 \
                   -oForwardAgent=no -oClearAllForwardings=yes -oControlMaster=no -oControlPath=none \
                   -oStrictHostKeyChecking=yes -oUpdateHostKeys=no";

/// What git says where the disk is full.
pub(super) const NO_SPACE: &[&str] = &["no space left on device", "disk quota exceeded"];

/// What git says where it could not go on for want of something else, of whatever the question was. What a limit
/// refuses that derrick has it keep to (`attempting to allocate … over limit`) is none of it.
const WANT: &[&str] = &[
    "out of memory",
    "cannot allocate memory",
    "resource temporarily unavailable",
    "too many open files",
    "died of signal",
];

/// What git adds to every failure of a connection, whatever the reason.
const ADVICE: &[&str] = &[
    "Please make sure you have the correct access rights",
    "and the repository exists.",
];

/// What all git processes of the provider have in common.
#[derive(Debug)]
pub(super) struct Client {
    /// Where all mirrors are. Its name is the host's own business and in no message.
    dir: PathBuf,
    /// A variable that all of them have.
    mark: (&'static str, String),
    /// How long a transfer may stand still.
    stall: Duration,
}

impl Client {
    pub(super) fn new(dir: PathBuf, mark: (&'static str, String), stall: Duration) -> Self {
        Self { dir, mark, stall }
    }

    /// An empty directory: no user's configuration, credentials or attributes are in it.
    pub(super) fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// A git process that reaches no repository but the one it is given.
    pub(super) fn local(&self, git_dir: &Path) -> Call {
        let mut call = self.call();
        call.arguments.push(joined("--git-dir=", git_dir));
        call
    }

    /// ssh to the upstream's host, with what git would give it; the arguments are the caller's to add.
    pub(super) fn ssh(&self, access: &Access) -> Call {
        let mut call = self.remote(access, None);
        let command = format!("{SSH}{}", access.ssh_options());
        call.program = "ssh";
        let words = command.split_ascii_whitespace().skip(1);
        call.arguments = words.map(OsString::from).collect();
        call
    }

    /// How long a transfer may stand still.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// What is to be cut out of what anybody says about the upstream.
    pub(super) fn scrub(&self, access: &Access) -> Scrub {
        let own = std::iter::once(self.dir.display().to_string());
        Scrub {
            secrets: access.secrets().chain(own).collect(),
        }
    }

    /// A git process without a repository.
    pub(super) fn plain(&self) -> Call {
        self.call()
    }

    /// A git process that makes a bare repository, of objects of this format.
    pub(super) fn init_bare(&self, at: &Path, format: &str) -> Call {
        self.plain()
            .args(["init", "--quiet", "--bare", "--template="])
            .arg(format!("--object-format={format}"))
            .arg("--")
            .arg(at)
    }

    /// A git process that may talk to the upstream, by the upstream's own transport alone.
    ///
    /// `trusted` is a configuration file that trusts a `file` upstream's owner.
    pub(super) fn remote(&self, access: &Access, trusted: Option<&Path>) -> Call {
        let mut call = self.call();
        let transport = access.upstream().transport();
        call.set(format!("protocol.{}.allow", transport.protocol()), "always");
        call.set("http.lowSpeedLimit", "1");
        call.set("http.lowSpeedTime", self.stall.as_secs().to_string());
        // After a redirect git would send the header to the new host as well (its second request,
        // not curl's first, carries it), so with credentials there are no redirects.
        let redirects = if access.has_header() {
            "false"
        } else {
            "initial"
        };
        call.set("http.followRedirects", redirects);
        if let Some((key, value)) = access.header() {
            call.set(key, value);
        }
        match access.proxy() {
            Some(proxy) => call.set("http.proxy", proxy),
            None => call.pass_on(PROXIES),
        }
        match access.authorities() {
            Some(file) => {
                for name in [AUTHORITIES_FILE, "GIT_PROXY_SSL_CAINFO"] {
                    call.variables.push((name.into(), file.into()));
                }
                // What libcurl looks into beside the file unless it is told of another directory.
                call.variables
                    .push((AUTHORITIES_DIR.into(), self.home().into()));
            }
            None => call.pass_on(AUTHORITIES),
        }
        if transport == Transport::Ssh {
            let ssh = access.ssh_options();
            let command = format!("{SSH}{ssh}");
            call.variables
                .push(("GIT_SSH_COMMAND".into(), command.into()));
            call.variables
                .push(("GIT_SSH_VARIANT".into(), "ssh".into()));
            let agent = std::env::var_os("SSH_AUTH_SOCK").filter(|_| !access.has_key());
            call.variables
                .extend(agent.map(|socket| ("SSH_AUTH_SOCK".into(), socket)));
        }
        if let Some(trusted) = trusted {
            // git hides GIT_CONFIG_* from the other side of a local transport, but not this.
            call.variables
                .push(("GIT_CONFIG_GLOBAL".into(), trusted.into()));
        }
        call.scrub.secrets.extend(access.secrets());
        call
    }

    fn call(&self) -> Call {
        let mut call = Call {
            program: "git",
            arguments: Vec::new(),
            settings: Vec::new(),
            variables: Vec::new(),
            input: Input::Nothing,
            scrub: Scrub {
                secrets: vec![self.dir.display().to_string()],
            },
            silence: self.stall * 10,
            confinement: None,
        };
        call.pass_on(PASSED_ON);
        for (name, value) in [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_NO_LAZY_FETCH", "1"),
            // Any git that a base may have can read these formats.
            ("GIT_DEFAULT_REF_FORMAT", "files"),
            ("LC_ALL", "C"),
        ] {
            call.variables.push((name.into(), value.into()));
        }
        call.variables.push(("HOME".into(), self.home().into()));
        let (name, value) = &self.mark;
        call.variables.push(((*name).into(), value.into()));
        for (key, value) in [
            ("protocol.allow", "never"),
            ("core.hooksPath", "/dev/null"),
            ("core.fsmonitor", "false"),
            // A reflog names the provider's user and host.
            ("core.logAllRefUpdates", "false"),
            ("core.askPass", ""),
            ("credential.helper", ""),
            ("safe.bareRepository", "explicit"),
            ("submodule.recurse", "false"),
            ("fetch.recurseSubmodules", "false"),
            // One pack for each fetch, none of them replaced while somebody reads.
            ("fetch.unpackLimit", "1"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            ("fetch.fsckObjects", "true"),
            ("transfer.fsckObjects", "true"),
            // Slips of old tools that are in the history of well-known projects and harm nobody.
            ("fetch.fsck.badTimezone", "ignore"),
            ("fsck.badTimezone", "ignore"),
            ("fetch.fsck.missingSpaceBeforeDate", "ignore"),
            ("fsck.missingSpaceBeforeDate", "ignore"),
            ("fetch.fsck.zeroPaddedFilemode", "ignore"),
            ("fsck.zeroPaddedFilemode", "ignore"),
        ] {
            call.set(key, value);
        }
        call
    }
}

/// What a git process reads.
#[derive(Debug)]
pub(super) enum Input {
    /// End-of-file.
    Nothing,
    /// These bytes.
    Bytes(Vec<u8>),
    /// This file, kept open for as long as git runs, even if the provider is killed.
    Held(File),
}

/// A git process to be started.
#[derive(Debug)]
pub(super) struct Call {
    program: &'static str,
    arguments: Vec<OsString>,
    settings: Vec<(String, String)>,
    variables: Vec<(OsString, OsString)>,
    input: Input,
    scrub: Scrub,
    silence: Duration,
    confinement: Option<Confinement>,
}

impl Call {
    pub(super) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub(super) fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Self {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    /// Sets the repository, for a call that got none.
    pub(super) fn in_git_dir(mut self, git_dir: &Path) -> Self {
        self.arguments.push(joined("--git-dir=", git_dir));
        self
    }

    /// Sets another file than the repository's own for the index.
    pub(super) fn with_index(mut self, file: &Path) -> Self {
        self.variables.push(("GIT_INDEX_FILE".into(), file.into()));
        self
    }

    /// Has git's file `shallow` be this one, there or not, and not the repository's own.
    pub(super) fn with_shallow(mut self, file: &Path) -> Self {
        self.variables
            .push(("GIT_SHALLOW_FILE".into(), file.into()));
        self
    }

    /// Has git look at files in this directory.
    pub(super) fn within(mut self, directory: &Path) -> Self {
        self.arguments.extend(["-C".into(), directory.into()]);
        self
    }

    pub(super) fn in_work_tree(mut self, work_tree: &Path) -> Self {
        self.arguments.push(joined("--work-tree=", work_tree));
        self
    }

    /// Names who makes a commit, and when, in git's raw format.
    pub(super) fn by_author(mut self, (name, email): (&str, &str), date: &str) -> Self {
        for (name, value) in made_by(name, email, Some(date)) {
            self.variables.push((name.into(), value.into()));
        }
        self
    }

    pub(super) fn input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Has nobody told of this path of the host's.
    pub(super) fn hiding(mut self, path: &Path) -> Self {
        self.scrub.secrets.push(path.display().to_string());
        self
    }

    /// Ends git where it wants more memory at once, as a number and a unit.
    pub(super) fn allocating(mut self, most: &str) -> Self {
        self.variables.push(("GIT_ALLOC_LIMIT".into(), most.into()));
        self
    }

    /// Whether git has to do with less than the host has.
    pub(super) fn is_confined(&self) -> bool {
        self.confinement.is_some()
    }

    /// Has git do without everything but this.
    pub(super) fn confined(mut self, confinement: Confinement) -> Self {
        self.confinement = Some(confinement);
        self
    }

    pub(super) fn setting(mut self, key: &str, value: &str) -> Self {
        self.set(key, value);
        self
    }

    /// Runs git to its end and gives what it printed.
    pub(super) async fn output(self) -> Result<Vec<u8>, Failure> {
        Ok(self.start(Stdio::piped()).await?.stdout)
    }

    /// Runs git to its end and gives its messages, scrubbed.
    pub(super) async fn messages(self) -> Result<String, Failure> {
        let scrub = self.scrub.clone();
        Ok(scrub.clean(&self.start(Stdio::piped()).await?.stderr))
    }

    /// Runs git to its end; what it prints goes into `sink`.
    pub(super) async fn output_into(self, sink: File) -> Result<(), Failure> {
        self.start(sink.into()).await.map(drop)
    }

    fn pass_on(&mut self, names: &[&str]) {
        for name in names {
            self.variables
                .extend(std::env::var_os(name).map(|value| ((*name).into(), value)));
        }
    }

    fn set(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.settings.push((key.into(), value.into()));
    }

    async fn start(self, stdout: Stdio) -> Result<Seen, Failure> {
        let mut command = match &self.confinement {
            None => Command::new(self.program),
            Some(confinement) => {
                let mut command = Command::new("/proc/self/exe");
                command
                    .arg0(confined::NAME)
                    .args(confinement.arguments())
                    .arg(self.program);
                command
            }
        };
        command.env_clear().envs(self.variables);
        command.env("GIT_CONFIG_COUNT", self.settings.len().to_string());
        for (number, (key, value)) in self.settings.into_iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{number}"), key);
            command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        command.args(self.arguments).current_dir("/");
        let (stdin, bytes) = match self.input {
            Input::Nothing => (Stdio::null(), None),
            Input::Bytes(bytes) => (Stdio::piped(), Some(bytes)),
            Input::Held(file) => (file.into(), None),
        };
        command.stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        let program = self.program;
        let not_started = |error| Failure {
            ended: Ended::NotStarted(NotStarted::of(program, error)),
            said: String::new(),
            plain: Plain(String::new()),
        };
        let mut running = Running::start(&mut command).map_err(not_started)?;
        // The command still holds the descriptors that it gave to git.
        drop(command);
        let (stdin, stdout) = running.pipes();
        let feed = async {
            if let (Some(mut stdin), Some(bytes)) = (stdin, bytes) {
                // A git that ends early says why itself.
                let _ = stdin.write_all(&bytes).await;
            }
        };
        let ((ended, seen), ()) = tokio::join!(running.watch(stdout, self.silence), feed);
        match ended {
            Ended::With(status) if status.success() => Ok(seen),
            ended => {
                let said = without_progress(&seen.stderr);
                Err(Failure {
                    ended,
                    said: self.scrub.clean(&said),
                    plain: Plain(String::from_utf8_lossy(&said).into_owned()),
                })
            }
        }
    }
}

/// How a git process ended that did not succeed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) ended: Ended,
    /// Scrubbed.
    said: String,
    plain: Plain,
}

/// What was said as it was, secrets included: to be compared with what git is known to say, for a secret may be a
/// word of that.
struct Plain(String);

/// Hides it.
impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Failure {
    /// Whether git or ssh, but not the server's own `remote:` lines, said any of these, given in lower case.
    pub(super) fn says(&self, any: &[&str]) -> bool {
        self.own_lines()
            .any(|line| any.iter().any(|text| line.contains(text)))
    }

    /// Whether git's own `repository '<url>' not found` (http's 404) is there.
    pub(super) fn says_repository_not_found(&self) -> bool {
        self.own_lines().any(|line| {
            line.starts_with("fatal: repository '")
                && (line.ends_with("' not found") || line.ends_with("' does not exist"))
        })
    }

    /// All that was said.
    pub(super) fn said(&self) -> &str {
        &self.said
    }

    /// Whether git ended by itself, and not for want of anything: its status answers a question then.
    pub(super) fn is_an_answer(&self) -> bool {
        let code = match &self.ended {
            Ended::With(status) => status.code(),
            _ => None,
        };
        // Those from 125 on are of what was to become git, and of what was killed; git itself dies with 128.
        let exited = code.is_some_and(|code| code < confined::FAILED || code == 128);
        exited && !self.says(NO_SPACE) && !self.is_in_want()
    }

    /// Whether there was not enough memory, or of processes or open files: for git itself, or for what it started.
    pub(super) fn is_in_want(&self) -> bool {
        self.says(WANT)
    }

    /// Whether it was ended because it had had its time of a processor.
    pub(super) fn is_out_of_time(&self) -> bool {
        matches!(&self.ended, Ended::With(status) if status.signal() == Some(libc::SIGXCPU))
    }

    /// The last of what was said, in one line, `limit` bytes at most.
    pub(super) fn detail(&self, limit: usize) -> String {
        let lines: Vec<&str> = self
            .said
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !ADVICE.contains(line))
            .collect();
        let text = lines.join("; ");
        let start = (text.len().saturating_sub(limit)..=text.len())
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or_default();
        match (&self.ended, &text[start..]) {
            (Ended::Stalled, "") => "nothing more came".into(),
            (Ended::Stalled, tail) => format!("nothing more came after: {tail}"),
            (Ended::With(status), "") => format!("git ended with {status}"),
            (Ended::Lost(error), _) => format!("git was lost: {error}"),
            (_, tail) => tail.to_owned(),
        }
    }

    fn own_lines(&self) -> impl Iterator<Item = String> {
        let Plain(said) = &self.plain;
        said.lines()
            .filter(|line| !line.starts_with("remote:"))
            .map(|line| line.trim_end().to_lowercase())
    }

    #[cfg(test)]
    pub(super) fn saying(said: &str) -> Self {
        Self::ending(128 << 8, said)
    }

    /// With a status as of wait(2).
    #[cfg(test)]
    fn ending(status: i32, said: &str) -> Self {
        Self {
            ended: Ended::With(ExitStatus::from_raw(status)),
            said: said.to_owned(),
            plain: Plain(said.to_owned()),
        }
    }
}

/// The end of a git process.
#[derive(Debug)]
pub(super) enum Ended {
    With(ExitStatus),
    /// It said nothing for too long and was killed.
    Stalled,
    NotStarted(NotStarted),
    /// It cannot be waited for, or printed more than it may.
    Lost(io::Error),
}

/// Why there was no process.
#[derive(Debug)]
pub(super) enum NotStarted {
    /// No directory of `PATH` has the program.
    Lacking(&'static str),
    Refused(io::Error),
}

impl NotStarted {
    /// The kernel says the same of a program whose interpreter is not there, or that is being replaced just now.
    fn of(program: &'static str, error: io::Error) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there = || {
            let mut places = std::env::split_paths(&path);
            places.any(|place| place.join(program).symlink_metadata().is_ok())
        };
        match error.kind() {
            io::ErrorKind::NotFound if !is_there() => Self::Lacking(program),
            _ => Self::Refused(error),
        }
    }
}

/// A process with its children; dropping it kills them all.
#[derive(Debug)]
pub(super) struct Running(Child);

/// What a process printed.
#[derive(Default)]
struct Seen {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Running {
    /// In a group of its own, so that its own children can be killed with it.
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        command
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map(Self)
    }

    /// Its standard input and output, where they are pipes and not taken yet.
    pub(super) fn pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>) {
        (self.0.stdin.take(), self.0.stdout.take())
    }

    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.0.wait().await
    }

    /// Waits for the end while reading both pipes; the silence that is too long counts from the last byte.
    async fn watch(&mut self, mut stdout: Option<ChildStdout>, silence: Duration) -> (Ended, Seen) {
        let mut stderr = self.0.stderr.take();
        let (mut out, mut err) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
        let mut seen = Seen::default();
        let mut ended = None;
        let mut deadline = pin!(tokio::time::sleep(silence));
        while ended.is_none() || stdout.is_some() || stderr.is_some() {
            tokio::select! {
                read = read(&mut stdout, &mut out) => {
                    match read {
                        Ok(0) | Err(_) => stdout = None,
                        Ok(count) => seen.stdout.extend_from_slice(&out[..count]),
                    }
                    if seen.stdout.len() > STDOUT {
                        self.kill();
                        return (Ended::Lost(io::Error::other("it printed too much")), seen);
                    }
                }
                read = read(&mut stderr, &mut err) => {
                    match read {
                        Ok(0) | Err(_) => stderr = None,
                        Ok(count) => seen.stderr.extend_from_slice(&err[..count]),
                    }
                    if seen.stderr.len() > 2 * STDERR {
                        seen.stderr.drain(..seen.stderr.len() - STDERR);
                    }
                }
                status = self.0.wait(), if ended.is_none() => {
                    ended = Some(status.map_or_else(Ended::Lost, Ended::With));
                    deadline.as_mut().reset(Instant::now() + DRAIN);
                    continue;
                }
                () = &mut deadline => match ended {
                    Some(ended) => return (ended, seen),
                    None => {
                        self.kill();
                        return (Ended::Stalled, seen);
                    }
                },
            }
            if ended.is_none() {
                deadline.as_mut().reset(Instant::now() + silence);
            }
        }
        (ended.expect("the loop ends after the process"), seen)
    }

    pub(super) fn kill(&self) {
        // `id` is the process's as long as it has not been waited for, so the number cannot be
        // another group's.
        if let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads some bytes; never ready when the pipe is gone.
async fn read<R: AsyncRead + Unpin>(pipe: &mut Option<R>, buffer: &mut [u8]) -> io::Result<usize> {
    match pipe {
        Some(pipe) => pipe.read(buffer).await,
        None => std::future::pending().await,
    }
}

/// git overwrites a line of progress by ending it with a carriage return; ssh ends all lines so.
fn without_progress(stderr: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    for line in stderr.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let shown = line
            .rsplit(|&byte| byte == b'\r')
            .next()
            .unwrap_or_default();
        kept.extend([shown, b"\n"].concat());
    }
    kept
}

fn joined(option: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(option);
    argument.push(path);
    argument
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_the_end_of_what_was_said_without_progress() {
        let said = b"Receiving objects:  1% (1/100)\rReceiving objects: 2% (2/100)\rerror: a\r\nfatal: \xc3\xbc\n";
        let failure = Failure::saying(&String::from_utf8_lossy(&without_progress(said)));
        assert_eq!(failure.detail(100), "error: a; fatal: ü");
        assert_eq!(failure.detail(2), "ü");
        assert_eq!(
            Failure::saying("").detail(10),
            "git ended with exit status: 128"
        );
    }
    #[test]
    fn a_git_that_was_kept_from_answering_has_not_said_no() {
        for (status, said, is_an_answer) in [
            (1 << 8, "", true),
            (128 << 8, "fatal: Not a valid object name x", true),
            (128 << 8, "remote: Out of memory\nfatal: odd", true),
            // A limit that derrick sets is one on what is looked at.
            (
                128 << 8,
                "fatal: attempting to allocate 300000000 over limit 268435456",
                true,
            ),
            (
                128 << 8,
                "fatal: Out of memory, malloc failed (tried to allocate 9 bytes)",
                false,
            ),
            (
                128 << 8,
                "error: cannot fork() for rev-list: Resource temporarily unavailable",
                false,
            ),
            (
                128 << 8,
                "fatal: mmap failed: Cannot allocate memory",
                false,
            ),
            (1 << 8, "error: index-pack died of signal 9", false),
            (
                128 << 8,
                "fatal: write error: No space left on device",
                false,
            ),
            // It was not there, could not be executed, or was not to be had as it is confined.
            (125 << 8, "", false),
            (126 << 8, "", false),
            (127 << 8, "", false),
            // What a shell that stands for git says of one that was killed, and what the kernel says of it.
            (137 << 8, "", false),
            (libc::SIGKILL, "", false),
        ] {
            let failure = Failure::ending(status, said);
            assert_eq!(failure.is_an_answer(), is_an_answer, "{status} {said}");
        }
    }

    #[test]
    fn what_cannot_be_started_is_not_installed_only_where_it_is_nowhere() {
        let not_found = || io::Error::from(io::ErrorKind::NotFound);
        for (program, error, is_lacking) in [
            ("no-such-program-anywhere", not_found(), true),
            // As one that is being replaced, or whose interpreter is not there.
            ("git", not_found(), false),
            (
                "no-such-program-anywhere",
                io::ErrorKind::PermissionDenied.into(),
                false,
            ),
        ] {
            let why = NotStarted::of(program, error);
            let lacking = matches!(why, NotStarted::Lacking(lacking) if lacking == program);
            assert_eq!(lacking, is_lacking, "{program}: {why:?}");
        }
    }
}
