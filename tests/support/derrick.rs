//! A provider of the test's own: the real binary, on a port of its own, in a state directory of its own.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::host::wait_for;
use super::{Api, GUARD, Scratch, Workspace};

/// How to start a provider.
#[derive(Debug)]
pub(crate) struct Launch {
    config: Value,
    through: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    token: Option<String>,
    state: Option<PathBuf>,
}

/// A running provider; ended, and everything of it removed, at the end.
#[derive(Debug)]
pub(crate) struct Derrick {
    /// Its API.
    pub(crate) api: Api,
    launch: Launch,
    // None while it is stopped.
    provider: Option<Provider>,
    home: Scratch,
    stdout: Arc<Mutex<String>>,
}

#[derive(Debug)]
struct Provider {
    child: Child,
    reader: JoinHandle<()>,
}

/// The derrick binary under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("DERRICK_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_derrick")),
        PathBuf::from,
    )
}

impl Launch {
    /// With this workspace config.
    pub(crate) fn new(config: Value) -> Self {
        Self {
            config,
            through: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            token: None,
            state: None,
        }
    }

    /// Through this command, which executes what comes after its own words.
    pub(crate) fn through(mut self, command: Vec<String>) -> Self {
        self.through = command;
        self
    }

    /// With further arguments.
    pub(crate) fn arguments<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.arguments.extend(arguments.map(str::to_owned));
        self
    }

    /// With a variable in the provider's own environment.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With these restrictions turned off, by their names in `src/sandbox/without.rs`.
    pub(crate) fn without<const N: usize>(self, restrictions: [&str; N]) -> Self {
        self.environment("DERRICK_TEST_WITHOUT", &restrictions.join(","))
    }

    /// With a token file of this text, the first token of which the API is then asked with.
    pub(crate) fn token(mut self, text: &str) -> Self {
        self.token = Some(text.to_owned());
        self
    }

    fn first_token(&self) -> Option<&str> {
        let mut lines = self.token.as_deref()?.lines();
        let line = lines.find(|line| !line.starts_with('#'))?;
        line.split_ascii_whitespace().next()
    }

    /// With this state directory, which the caller removes.
    pub(crate) fn state(mut self, directory: &Path) -> Self {
        self.state = Some(directory.to_owned());
        self
    }

    /// Starts it and waits until it listens.
    pub(crate) fn start(self) -> Derrick {
        self.try_start()
            .unwrap_or_else(|said| panic!("derrick did not say where it listens\n{said}"))
    }

    /// Starts it and waits until it listens; what it printed if it ends instead.
    pub(crate) fn try_start(self) -> Result<Derrick, String> {
        let home = Scratch::new();
        home.file("config.json", self.config.to_string());
        if let Some(token) = &self.token {
            write_tokens(&home, token);
        }
        let mut derrick = Derrick {
            api: Api::new("", None),
            launch: self,
            provider: None,
            home,
            stdout: Arc::default(),
        };
        derrick.try_start_again()?;
        Ok(derrick)
    }
}

impl Derrick {
    /// Starts a provider with this workspace config.
    pub(crate) fn start(config: Value) -> Self {
        Launch::new(config).start()
    }

    /// Starts a provider whose workspaces are the host's own system and nothing more.
    pub(crate) fn on_host() -> Self {
        Self::start(json!({ "name": "test" }))
    }

    /// Likewise, with these restrictions turned off: what an attack does where they are missing.
    pub(crate) fn without<const N: usize>(restrictions: [&str; N]) -> Self {
        Launch::new(json!({ "name": "test" }))
            .without(restrictions)
            .start()
    }

    /// Makes a workspace.
    pub(crate) fn create(&self) -> Workspace {
        self.api.create()
    }

    /// Process id of the provider.
    pub(crate) fn pid(&self) -> i32 {
        self.running().child.id().cast_signed()
    }

    /// The state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.launch
            .state
            .clone()
            .unwrap_or_else(|| self.home.join("state"))
    }

    /// Everything that it printed so far, on stdout and to its log.
    pub(crate) fn printed(&self) -> String {
        let stdout = self.stdout.lock().expect("the reader did not panic");
        format!("{stdout}{}", self.log())
    }

    /// Replaces the workspace config; it takes effect at the next start.
    pub(crate) fn configure(&self, config: &Value) {
        self.home.file("config.json", config.to_string());
    }

    /// Replaces the token file and has it read again, which happens some time after.
    pub(crate) fn replace_tokens(&self, text: &str) {
        write_tokens(&self.home, text);
        kill(Pid::from_raw(self.pid()), Signal::SIGHUP).expect("cannot signal derrick");
    }

    /// Ends it with SIGTERM, as a service manager does, and waits for it.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.end(Signal::SIGTERM)
    }

    /// Ends it as ctrl-c at its terminal does, and waits for it.
    pub(crate) fn interrupt(&mut self) -> ExitStatus {
        self.end(Signal::SIGINT)
    }

    /// Ends it as a crash would, leaving it no chance to tidy up.
    pub(crate) fn kill9(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// Ends it and its spawner as a crash of both would: nobody is left to tidy up.
    pub(crate) fn kill_with_spawner(&mut self) {
        // Its only child.
        let spawner = super::descendants(self.pid())[0];
        let signal = |signal| {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(spawner), signal)
                .expect("the spawner can be signalled");
        };
        signal(Signal::SIGSTOP);
        self.kill9();
        signal(Signal::SIGKILL);
    }

    /// Ends it with SIGTERM and starts it on the same state.
    pub(crate) fn restart(&mut self) {
        let status = self.stop();
        assert!(
            status.success(),
            "derrick ended with {status}\n{}",
            self.log()
        );
        self.start_again();
    }

    /// Starts it on the same state after [`stop`](Self::stop) or [`kill9`](Self::kill9).
    pub(crate) fn start_again(&mut self) {
        self.try_start_again()
            .unwrap_or_else(|said| panic!("derrick did not say where it listens\n{said}"));
    }

    /// Begins to start it on the same state, as [`start_again`](Self::start_again) does; the caller ends it.
    pub(crate) fn begin(&self) -> Child {
        assert!(self.provider.is_none(), "it is running");
        let mut command = self.command();
        command.stdout(Stdio::null());
        command.spawn().expect("cannot start derrick")
    }

    fn command(&self) -> Command {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.home.join("log"))
            .expect("cannot open the log");
        let mut words = self
            .launch
            .through
            .iter()
            .map(PathBuf::from)
            .collect::<Vec<_>>();
        words.push(binary());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(["-p", "ns", "-s", "http", "--listen", "127.0.0.1:0"])
            .arg("-w")
            .arg(self.home.join("config.json"))
            .arg("--state-dir")
            .arg(self.state())
            .args(&self.launch.arguments)
            .envs(self.launch.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        if self.launch.token.is_some() {
            command.arg("--token-file").arg(self.home.join("token"));
        }
        command
    }

    fn try_start_again(&mut self) -> Result<(), String> {
        assert!(self.provider.is_none(), "it is running");
        let mut command = self.command();
        let mut child = command.spawn().expect("cannot start derrick");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let (sender, first_line) = mpsc::channel();
        let printed = Arc::clone(&self.stdout);
        let reader = std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let mut printed = printed.lock().expect("no reader panicked");
                printed.push_str(&line);
                printed.push('\n');
                // After the first line nobody listens.
                let _ = sender.send(line);
            }
        });
        self.provider = Some(Provider { child, reader });
        let line = match first_line.recv_timeout(GUARD) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) => return Err(self.log()),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                // It closed its stdout: it is ending.
                let Provider { mut child, reader } = self.provider.take().expect("it was started");
                child.wait().expect("cannot wait for derrick");
                reader.join().expect("the reader did not panic");
                return Err(self.log());
            }
        };
        let address = line
            .strip_prefix("listening on http://")
            .unwrap_or_else(|| panic!("derrick's first line is {line:?}"));
        self.api = Api::new(address, self.launch.first_token());
        Ok(())
    }

    fn running(&self) -> &Provider {
        self.provider.as_ref().expect("it is running")
    }

    /// What it wrote to its log so far.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read(self.home.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        let Provider { mut child, reader } = self.provider.take().expect("it is running");
        let pid = Pid::from_raw(child.id().cast_signed());
        let process = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(&child),
            rustix::process::PidfdFlags::empty(),
        )
        .expect("cannot watch derrick");
        kill(pid, signal).expect("cannot signal derrick");
        let in_time = wait_for(process.as_fd(), GUARD);
        if !in_time {
            child.kill().expect("cannot kill derrick");
        }
        let status = child.wait().expect("cannot wait for derrick");
        // Ends with the last process that holds derrick's stdout; nobody but derrick may.
        reader.join().expect("the reader did not panic");
        assert!(
            in_time,
            "derrick was still there {GUARD:?} after {signal}\n{}",
            self.log()
        );
        status
    }
}

fn write_tokens(home: &Scratch, text: &str) {
    let path = home.file("token", text);
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("cannot restrict the token file");
}

impl Drop for Derrick {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- derrick printed\n{}---", self.printed());
            if let Some(Provider { mut child, .. }) = self.provider.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        } else if self.provider.is_some() {
            let status = self.stop();
            assert!(
                status.success(),
                "derrick ended with {status}\n{}",
                self.log()
            );
        }
    }
}
