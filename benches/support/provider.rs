//! A provider of the bench's own: the binary that is measured, on a port and a state directory of its own.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Client, Scratch};

/// Its config, in its directory.
const CONFIG: &str = "config.json";

/// A running provider; ended, and its state removed, with the last use.
#[derive(Debug)]
pub(crate) struct Provider {
    child: Child,
    address: String,
    // Removed after the provider has ended.
    scratch: Option<Scratch>,
}

impl Provider {
    /// Starts one whose workspaces are as `config` says, and waits until it listens.
    pub(crate) fn start(config: &Value) -> Self {
        let scratch = Scratch::new();
        std::fs::write(scratch.join(CONFIG), config.to_string())
            .expect("the config can be written");
        Self::serve(scratch)
    }

    /// Ends it, and starts another one on the same state.
    pub(crate) fn start_again(mut self) -> Self {
        self.end();
        let scratch = self.scratch.take().expect("it has its directory until now");
        Self::serve(scratch)
    }

    fn serve(scratch: Scratch) -> Self {
        let config_file = scratch.join(CONFIG);
        let log = File::create(scratch.join("log")).expect("the log can be made");
        let mut child = Command::new(binary())
            .args(["-p", "ns", "-s", "http", "--listen", "127.0.0.1:0", "-w"])
            .arg(&config_file)
            .arg("--state-dir")
            .arg(scratch.join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("derrick can be started");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout is a pipe"))
            .read_line(&mut line)
            .expect("derrick's stdout can be read");
        let Some(address) = line.trim_end().strip_prefix("listening on http://") else {
            let log = std::fs::read_to_string(scratch.join("log")).unwrap_or_default();
            panic!("derrick does not serve; it said {line:?}\n{log}");
        };
        Self {
            child,
            address: address.to_owned(),
            scratch: Some(scratch),
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn end(&mut self) {
        if kill(Pid::from_raw(self.id()), Signal::SIGTERM).is_ok() {
            let _ = self.child.wait();
        }
    }

    /// A client on a connection of its own.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.address)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if self.scratch.is_some() {
            self.end();
        }
    }
}

/// The binary of this build, or the one that `DERRICK_BIN` names.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("DERRICK_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_derrick")),
        PathBuf::from,
    )
}
