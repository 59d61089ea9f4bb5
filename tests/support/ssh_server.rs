//! An ssh server on loopback: the real `sshd`, one for each connection, and repositories to serve.
//!
//! It lets in the user whom the tests run as, with one key, and asks nothing of that user's own settings. The
//! listener is the test's, so no port has to be guessed.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::acceptor::Acceptor;
use super::git_server::{Upstream, repository_below};
use super::secrets::{command_lines_with, environments_with};
use super::{Mode, Scratch, mode, succeed};

/// Where Debian's sshd wants an empty directory when it is root's.
const SEPARATION: &str = "/run/sshd";

/// How many servers of this process use that directory, and whether it was there before.
static USERS: Mutex<(usize, bool)> = Mutex::new((0, false));

/// A running server; ended with all its repositories at the end.
#[derive(Debug)]
pub(crate) struct SshServer {
    shared: Arc<Shared>,
    /// Ended before the directory for sshd is given back.
    acceptor: Option<Acceptor>,
    address: SocketAddr,
}

/// What was seen of the key while somebody was connected.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown {
    pub(crate) connections: usize,
    /// Command lines that showed it, and names of processes whose environment did.
    pub(crate) processes: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    root: Scratch,
    canary: String,
    shown: Mutex<Shown>,
}

impl SshServer {
    pub(crate) fn start() -> Self {
        let root = Scratch::new();
        for name in ["host", "key", "other"] {
            make_key(&root, name);
        }
        let (listener, address) = Acceptor::listen();
        let public = |name: &str| read(&root, &format!("{name}.pub"));
        root.file("authorized", public("key"));
        let host = format!("[127.0.0.1]:{} ", address.port());
        root.file("known_hosts", host.clone() + &public("host"));
        root.file("wrong_hosts", host + &public("other"));
        root.file("no_hosts", "");
        let settings = format!(
            "HostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PidFile none\nUseDNS no\nSetEnv PATH={0}/bin:/usr/local/bin:/usr/bin:/bin\n",
            root.path().display()
        );
        root.file("settings", settings);
        // Of what is between the first and the last line nothing is in another key's file.
        let canary = read(&root, "key").lines().rev().nth(2).map(str::to_owned);
        let shared = Arc::new(Shared {
            root,
            canary: canary.expect("a key has lines"),
            shown: Mutex::default(),
        });
        separate();
        let serving = Arc::clone(&shared);
        let acceptor = Acceptor::start(listener, move |stream| serve(stream, &serving));
        Self {
            shared,
            address,
            acceptor: Some(acceptor),
        }
    }

    /// Makes a repository with one commit of these files on `main`.
    pub(crate) fn repository(&self, name: &str, files: &[(&str, &str)]) -> Upstream {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
            .expect("accounts can be read")
            .expect("the tests' user has an account");
        let address = format!("ssh://{}@{}", user.name, self.address);
        let path = self.shared.root.path();
        let url = |bare: &std::path::Path| format!("{address}{}", bare.display());
        repository_below(path, name, files, url)
    }

    /// Lets those who are let in run a program of this name, a script of the shell's.
    pub(crate) fn add_program(&self, name: &str, script: &str) {
        let directory = self.shared.root.join("bin");
        std::fs::create_dir_all(&directory).expect("its own");
        let file = directory.join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("its own");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(file, mode).expect("its own");
    }

    /// The file of the key that is let in.
    pub(crate) fn key(&self) -> PathBuf {
        self.shared.root.join("key")
    }

    /// The file of a key that is not.
    pub(crate) fn other_key(&self) -> PathBuf {
        self.shared.root.join("other")
    }

    /// The file of known hosts with this server's own key.
    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.shared.root.join("known_hosts")
    }

    /// One that has another key for it.
    pub(crate) fn wrong_hosts(&self) -> PathBuf {
        self.shared.root.join("wrong_hosts")
    }

    /// One without it.
    pub(crate) fn no_hosts(&self) -> PathBuf {
        self.shared.root.join("no_hosts")
    }

    /// A line of the private key that is let in.
    pub(crate) fn canary(&self) -> String {
        self.shared.canary.clone()
    }

    /// What was seen so far.
    pub(crate) fn shown(&self) -> Shown {
        self.shared
            .shown
            .lock()
            .expect("no connection panicked")
            .clone()
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        drop(self.acceptor.take());
        unite();
    }
}

/// Makes a pair of keys without a passphrase.
fn make_key(root: &Scratch, name: &str) {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]);
    succeed(keygen.arg(root.join(name)));
}

fn read(root: &Scratch, name: &str) -> String {
    std::fs::read_to_string(root.join(name)).expect("the key was made")
}

fn separate() {
    let mut users = USERS.lock().expect("no server panicked");
    if mode() == Mode::Root && users.0 == 0 {
        users.1 = std::fs::create_dir(SEPARATION).is_err();
    }
    users.0 += 1;
}

fn unite() {
    let mut users = USERS.lock().expect("no server panicked");
    users.0 -= 1;
    if mode() == Mode::Root && *users == (0, false) {
        let _ = std::fs::remove_dir(SEPARATION);
    }
}

/// Gives the connection to a server of its own, as inetd does.
fn serve(stream: TcpStream, shared: &Shared) {
    let mut processes = command_lines_with(&shared.canary);
    processes.extend(environments_with(&shared.canary));
    {
        let mut shown = shared.shown.lock().expect("no connection panicked");
        shown.connections += 1;
        shown.processes.extend(processes);
    }
    let answers = stream.try_clone().expect("a descriptor");
    let mut sshd = Command::new("/usr/sbin/sshd");
    sshd.args(["-i", "-f"])
        .arg(shared.root.join("settings"))
        .arg("-E")
        .arg(shared.root.join("log"))
        .stdin(OwnedFd::from(stream))
        .stdout(OwnedFd::from(answers))
        .stderr(Stdio::null());
    // What it refuses is the client's to say.
    let _ = sshd
        .status()
        .expect("cannot start sshd; tests/run installs it");
}
