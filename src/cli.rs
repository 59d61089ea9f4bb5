//! What a person may type.
//!
//! Everything is parsed here, once: past this module there are modes, addresses and absolute
//! paths, no text. An option that a subcommand would ignore is refused.

pub mod client;
pub mod store;

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};

use client::{
    AttachArgs, BundleArgs, CapacityArgs, CommitArgs, CpArgs, CreateArgs, DiffArgs, ExecArgs,
    ExportArgs, FenceArgs, FetchArgs, ForgetArgs, ForkArgs, ImportArgs, LabelArgs, LimitsArgs,
    LogsArgs, LsArgs, PauseArgs, PushArgs, RenewArgs, ResetArgs, ResumeArgs, RmArgs, ShowArgs,
    SnapshotArgs, SnapshotsArgs,
};
use store::{GcArgs, LayersArgs};

/// Workspaces for autonomous coding agents on a bare Linux host.
///
/// Without a subcommand, derrick serves workspaces until it is told to stop.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "derrick",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// How to serve.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What derrick does besides serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Run one command in a throw-away workspace and exit with its exit code.
    Run(RunArgs),
    /// Say what this host allows, what is missing, and the fix for it. Exits with 0 if `ns` works, else with 1.
    Check(CheckArgs),
    /// Print the JSON Schema of a workspace config.
    Schema,
    /// Make a workspace at a running provider and print its id.
    Create(CreateArgs),
    /// List the workspaces of a running provider, the execs of one, or its files.
    Ls(LsArgs),
    /// Print how many more workspaces a running provider has room for.
    Capacity(CapacityArgs),
    /// Run one command in a workspace and exit with its exit code.
    Exec(ExecArgs),
    /// Join a running exec: its output from now on, and its stdin.
    Attach(AttachArgs),
    /// Print what an exec has printed.
    Logs(LogsArgs),
    /// Copy files and whole directories into a workspace or out of one.
    Cp(CpArgs),
    /// Show what changed in a workspace since setup, or print it as a patch.
    Diff(DiffArgs),
    /// Show or change what a workspace may use.
    Limits(LimitsArgs),
    /// Have the time to live of a workspace begin anew.
    Renew(RenewArgs),
    /// Remove layers that nothing uses.
    Gc(GcArgs),
    /// List the layers, and who uses them.
    Layers(LayersArgs),
    /// Bring new commits of the upstreams into the repositories of a workspace.
    Fetch(FetchArgs),
    /// Make a commit of all that is changed in a repository of a workspace.
    Commit(CommitArgs),
    /// Print a repository of a workspace as a bundle.
    Bundle(BundleArgs),
    /// Push commits of a workspace to its upstream, where the config allows it.
    Push(PushArgs),
    /// Return a workspace to the state that it started from, or to a snapshot.
    Reset(ResetArgs),
    /// Keep what a workspace is now as a snapshot.
    Snapshot(SnapshotArgs),
    /// List snapshots.
    Snapshots(SnapshotsArgs),
    /// Show what is known of a snapshot.
    Show(ShowArgs),
    /// Call a snapshot something else, or nothing.
    Label(LabelArgs),
    /// Remove snapshots that nothing builds on.
    Forget(ForgetArgs),
    /// Write a snapshot as an archive, for another derrick.
    Export(ExportArgs),
    /// Take in a snapshot that another derrick exported.
    Import(ImportArgs),
    /// Make workspaces that start from what another one is now.
    Fork(ForkArgs),
    /// End all that runs in a workspace at an instant, and keep what it wrote until then as a snapshot.
    Fence(FenceArgs),
    /// Stop all processes of a workspace, and start none, until it is resumed.
    Pause(PauseArgs),
    /// Have the processes of a paused workspace go on.
    Resume(ResumeArgs),
    /// End workspaces and dispose of their files.
    Rm(RmArgs),
}

/// How to serve workspaces.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// How workspaces are made: ns (namespaces, overlayfs, seccomp and landlock on this host).
    #[arg(short, long, value_name = "MODE", default_value = "ns")]
    pub provisioning_mode: ProvisioningMode,
    /// How workspaces are served: http.
    #[arg(short, long, value_name = "MODE", default_value = "http")]
    pub server_mode: ServerMode,
    /// The config of the workspaces, as JSON; without it: the host's own system, no repository.
    #[arg(short, long, value_name = "FILE")]
    pub workspace_config_path: Option<PathBuf>,
    /// Where to listen: an address and a port, or unix: and the path of a socket.
    #[arg(
        long,
        value_name = "ADDR:PORT|unix:PATH",
        default_value = "127.0.0.1:50080"
    )]
    pub listen: Listen,
    /// Where layers, mirrors and workspaces are kept.
    #[command(flatten)]
    pub state: StateArgs,
    /// Bytes of the state directory's filesystem that stay free: with less, nothing new is started or put
    /// there. A fiftieth of it, at most 1 GiB, if absent.
    #[arg(long, value_name = "SIZE")]
    pub min_free: Option<ByteSize>,
    /// Require a bearer token of this file from every client. SIGHUP has the file read again.
    ///
    /// A line is a token, then, if it is not good for everything, name=NAME and scope=own (what tokens of that name
    /// made) or scope=ID,ID (these workspaces). The file must be mode 0600.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Accept requests for this host name besides localhost and the address that is listened on. Repeatable.
    #[arg(long = "allow-host", value_name = "NAME")]
    pub allowed_hosts: Vec<HostName>,
    /// Let pages of this origin use the API from a browser, with a token. Repeatable.
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    pub allowed_origins: Vec<Origin>,
    /// How log lines are written to stderr.
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// One command in a throw-away workspace.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The config of the workspace, as JSON; without it: the host's own system, no repository.
    #[arg(short, long, value_name = "FILE")]
    pub workspace_config_path: Option<PathBuf>,
    /// Where layers, mirrors and workspaces are kept.
    #[command(flatten)]
    pub state: StateArgs,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// What to check and how to print it.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// The directory whose filesystem is tried.
    #[command(flatten)]
    pub state: StateArgs,
}

impl CheckArgs {
    /// How to print the report.
    #[must_use]
    pub fn format(&self) -> ReportFormat {
        if self.json {
            ReportFormat::Json
        } else {
            ReportFormat::Text
        }
    }
}

/// How `check` prints its report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportFormat {
    /// A table for people.
    Text,
    /// One JSON object.
    Json,
}

/// Where derrick keeps its state.
#[derive(Debug, Clone, Args)]
pub struct StateArgs {
    /// Where layers, mirrors and workspaces are kept [default: /var/lib/derrick as root, else $XDG_STATE_HOME/derrick or ~/.local/state/derrick].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl StateArgs {
    /// The state directory, absolute; it need not exist yet.
    ///
    /// # Errors
    /// When none was given and the environment says no home, or when a relative one was
    /// given and there is no working directory to take it from.
    pub fn directory(&self) -> Result<PathBuf, StateDirError> {
        match &self.state_dir {
            Some(directory) => std::path::absolute(directory)
                .map_err(|source| StateDirError::Unresolved(directory.clone(), source)),
            None => default_state_dir(),
        }
    }
}

/// Why there is no state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// An ordinary user without a home.
    #[error(
        "there is no default state directory: neither XDG_STATE_HOME nor HOME is an absolute path; give --state-dir"
    )]
    NoHome,
    /// A relative path could not be made absolute.
    #[error("finding the state directory {}", .0.display())]
    Unresolved(PathBuf, #[source] std::io::Error),
}

/// `/var/lib/derrick` for root, else `$XDG_STATE_HOME/derrick`, else `$HOME/.local/state/derrick`.
///
/// # Errors
/// For an ordinary user whose environment says no home.
pub fn default_state_dir() -> Result<PathBuf, StateDirError> {
    let root = nix::unistd::geteuid().is_root();
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    state_dir_of(root, variable("XDG_STATE_HOME"), variable("HOME"))
}

fn state_dir_of(
    root: bool,
    xdg_state_home: Option<PathBuf>,
    home: Option<PathBuf>,
) -> Result<PathBuf, StateDirError> {
    if root {
        return Ok(PathBuf::from("/var/lib/derrick"));
    }
    // The XDG base directory specification says to ignore relative paths.
    let absolute = |path: Option<PathBuf>| path.filter(|path| path.is_absolute());
    absolute(xdg_state_home)
        .or_else(|| absolute(home).map(|home| home.join(".local/state")))
        .map(|state| state.join("derrick"))
        .ok_or(StateDirError::NoHome)
}

/// How workspaces are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProvisioningMode {
    /// On this host, from namespaces, overlayfs, seccomp and landlock.
    Ns,
}

impl FromStr for ProvisioningMode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text {
            "ns" => Ok(Self::Ns),
            "local" | "docker" | "remote_nats" => {
                Err(UnknownMode::Planned("provisioning mode", "ns"))
            }
            _ => Err(UnknownMode::Unheard("provisioning mode", "ns")),
        }
    }
}

/// How workspaces are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerMode {
    /// Over HTTP.
    Http,
}

impl FromStr for ServerMode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text {
            "http" => Ok(Self::Http),
            "nats" => Err(UnknownMode::Planned("server mode", "http")),
            _ => Err(UnknownMode::Unheard("server mode", "http")),
        }
    }
}

/// A mode that derrick does not have; with what kind of mode it is, and those that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnknownMode {
    /// It is planned.
    #[error("this {0} does not exist yet; those that do: {1}")]
    Planned(&'static str, &'static str),
    /// It is not.
    #[error("there is no such {0}; those that exist: {1}")]
    Unheard(&'static str, &'static str),
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An address and a port; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// The absolute path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = InvalidListen;

    fn from_str(text: &str) -> Result<Self, InvalidListen> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::unix(Path::new(path));
        }
        // The name is taken as the IPv4 loopback address and not looked up: what a resolver
        // answers could be any address, and the answer decides who can connect.
        if let Some(port) = text.strip_prefix("localhost:") {
            let port = port.parse().map_err(|_| InvalidListen::NotAnAddress)?;
            return Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse()
            .map(Self::Tcp)
            .map_err(|_| InvalidListen::NotAnAddress)
    }
}

impl Listen {
    fn unix(path: &Path) -> Result<Self, InvalidListen> {
        let path = std::path::absolute(path).map_err(|_| InvalidListen::NotAPath)?;
        // unix(7): 108 bytes, of which the last is NUL.
        if path.as_os_str().len() > 107 {
            return Err(InvalidListen::TooLong);
        }
        Ok(Self::Unix(path))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A text that is no place to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidListen {
    /// Neither an address and a port nor a socket.
    #[error(
        "write an address and a port such as 127.0.0.1:50080, [::1]:50080 or localhost:50080, or unix: and a path"
    )]
    NotAnAddress,
    /// There is no path after `unix:`.
    #[error("write the path of the socket after unix:, such as unix:/run/derrick.sock")]
    NotAPath,
    /// The kernel takes no such path for a socket.
    #[error("the absolute path of a socket has at most 107 bytes")]
    TooLong,
}

/// A host name or address as clients write it in the `Host` header, in lower case, without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = InvalidHostName;

    fn from_str(text: &str) -> Result<Self, InvalidHostName> {
        let label = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            (1..=63).contains(&part.len()) && part.chars().all(allowed)
        };
        let inner = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let address = inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok());
        if address || (text.len() <= 253 && text.split('.').all(label)) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(InvalidHostName)
        }
    }
}

/// The text is no host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a host name or address alone, without scheme, port or wildcard, such as build-7.example.org"
)]
pub struct InvalidHostName;

/// Where a page is from, as browsers write it in the `Origin` header: scheme, host and, unless it is
/// the scheme's own, port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let text = text.to_ascii_lowercase();
        let (scheme, rest) = text.split_once("://").ok_or(InvalidOrigin)?;
        let own_port = match scheme {
            "http" => "80",
            "https" => "443",
            _ => return Err(InvalidOrigin),
        };
        // The colons of an IPv6 address are inside its brackets.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (rest, None),
        };
        let host: HostName = host.parse().map_err(|_| InvalidOrigin)?;
        let is_number = |port: &str| {
            port.parse::<u16>()
                .is_ok_and(|number| number.to_string() == port && number != 0)
        };
        match port {
            // No browser ever writes it, so it would let nobody in.
            Some(port) if port == own_port || !is_number(port) => Err(InvalidOrigin),
            Some(port) => Ok(Self(format!("{scheme}://{}:{port}", host.as_str()))),
            None => Ok(Self(format!("{scheme}://{}", host.as_str()))),
        }
    }
}

/// The text is no origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "write an origin as a browser does, such as https://ui.example.org or http://localhost:3000: http or https and a \
     host, with the port unless it is the usual one, without a path or wildcard"
)]
pub struct InvalidOrigin;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("derrick").chain(line.split_whitespace()))
    }

    /// The first line of what is printed for a wrong command line.
    fn complaint(line: &str) -> String {
        let text = parse(line).unwrap_err().to_string();
        text.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn everything_has_a_default() {
        let cli = parse("").unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.provisioning_mode, ProvisioningMode::Ns);
        assert_eq!(cli.serve.server_mode, ServerMode::Http);
        assert_eq!(cli.serve.workspace_config_path, None);
        assert_eq!(cli.serve.listen.to_string(), "127.0.0.1:50080");
        assert_eq!(cli.serve.token_file, None);
        assert_eq!(cli.serve.allowed_hosts, []);
        assert_eq!(cli.serve.allowed_origins, []);
        assert_eq!(cli.serve.log_format, LogFormat::Text);
    }

    #[test]
    fn short_and_long_options_mean_the_same() {
        for line in [
            "-p ns -s http -w c.json",
            "--provisioning-mode ns --server-mode http --workspace-config-path c.json",
        ] {
            let cli = parse(line).unwrap();
            assert_eq!(
                cli.serve.workspace_config_path.as_deref(),
                Some(Path::new("c.json"))
            );
        }
        let cli = parse("--listen unix:/run/d.sock --token-file t --allow-host A.example --allow-host [::1] --log-format json").unwrap();
        assert_eq!(cli.serve.listen, Listen::Unix("/run/d.sock".into()));
        let hosts: Vec<_> = cli
            .serve
            .allowed_hosts
            .iter()
            .map(HostName::as_str)
            .collect();
        assert_eq!(hosts, ["a.example", "[::1]"]);
        assert_eq!(cli.serve.log_format, LogFormat::Json);
    }

    #[test]
    fn modes_that_do_not_exist_are_refused_with_those_that_do() {
        let cases = [
            (
                "-p local",
                "error: invalid value 'local' for '--provisioning-mode <MODE>': this provisioning mode does not exist yet; those that do: ns",
            ),
            (
                "-p docker",
                "error: invalid value 'docker' for '--provisioning-mode <MODE>': this provisioning mode does not exist yet; those that do: ns",
            ),
            (
                "-p remote_nats",
                "error: invalid value 'remote_nats' for '--provisioning-mode <MODE>': this provisioning mode does not exist yet; those that do: ns",
            ),
            (
                "-p x",
                "error: invalid value 'x' for '--provisioning-mode <MODE>': there is no such provisioning mode; those that exist: ns",
            ),
            (
                "-s nats",
                "error: invalid value 'nats' for '--server-mode <MODE>': this server mode does not exist yet; those that do: http",
            ),
            (
                "-s grpc",
                "error: invalid value 'grpc' for '--server-mode <MODE>': there is no such server mode; those that exist: http",
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(complaint(line), expected);
        }
    }

    #[test]
    fn what_a_subcommand_would_ignore_is_refused() {
        let cases = [
            (
                "-w c.json run -- true",
                "error: the subcommand 'run' cannot be used with '--workspace-config-path <FILE>'",
            ),
            (
                "--listen localhost:1 check",
                "error: the subcommand 'check' cannot be used with '--listen <ADDR:PORT|unix:PATH>'",
            ),
            ("schema --json", "error: unexpected argument '--json' found"),
            ("check -w c.json", "error: unexpected argument '-w' found"),
            ("run true", "error: unexpected argument 'true' found"),
            (
                "run",
                "error: the following required arguments were not provided:",
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(complaint(line), expected, "{line}");
        }
    }

    #[test]
    fn a_command_to_run_keeps_its_own_options() {
        let Some(Command::Run(run)) = parse("run -w c.json --state-dir /s -- ls -w --help")
            .unwrap()
            .command
        else {
            panic!("not run");
        };
        assert_eq!(run.command, ["ls", "-w", "--help"]);
        assert_eq!(
            run.workspace_config_path.as_deref(),
            Some(Path::new("c.json"))
        );
        assert_eq!(run.state.directory().unwrap(), Path::new("/s"));
    }

    #[test]
    fn a_report_is_text_or_json() {
        for (line, format) in [
            ("check", ReportFormat::Text),
            ("check --json", ReportFormat::Json),
        ] {
            let Some(Command::Check(check)) = parse(line).unwrap().command else {
                panic!("not check");
            };
            assert_eq!(check.format(), format);
        }
    }

    #[test]
    fn places_to_listen_are_addresses_or_sockets() {
        let long = format!("unix:/{}", "a".repeat(107));
        let cases = [
            ("127.0.0.1:0", Ok("127.0.0.1:0")),
            ("localhost:8080", Ok("127.0.0.1:8080")),
            ("[::1]:50080", Ok("[::1]:50080")),
            ("unix:/run//d.sock", Ok("unix:/run/d.sock")),
            ("", Err(InvalidListen::NotAnAddress)),
            ("50080", Err(InvalidListen::NotAnAddress)),
            (":50080", Err(InvalidListen::NotAnAddress)),
            ("localhost", Err(InvalidListen::NotAnAddress)),
            ("localhost:99999", Err(InvalidListen::NotAnAddress)),
            ("example.org:80", Err(InvalidListen::NotAnAddress)),
            ("/run/d.sock", Err(InvalidListen::NotAnAddress)),
            ("unix:", Err(InvalidListen::NotAPath)),
            (&long, Err(InvalidListen::TooLong)),
        ];
        for (text, expected) in cases {
            let found = text.parse::<Listen>().map(|listen| listen.to_string());
            assert_eq!(found.as_deref().map_err(|e| *e), expected, "{text}");
        }
    }

    #[test]
    fn host_names_have_no_scheme_port_or_wildcard() {
        for good in ["a", "Build-7.example.org", "10.0.0.1", "[fe80::1]"] {
            assert_eq!(
                good.parse::<HostName>().unwrap().as_str(),
                good.to_ascii_lowercase()
            );
        }
        for bad in [
            "", "*", "a:80", "http://a", "a/b", "a..b", "a.", "ü", "[x]", "::1", "a b",
        ] {
            assert_eq!(bad.parse::<HostName>(), Err(InvalidHostName), "{bad}");
        }
    }

    #[test]
    fn origins_are_as_a_browser_writes_them() {
        for (text, origin) in [
            ("https://ui.example.org", "https://ui.example.org"),
            ("HTTPS://UI.example.org", "https://ui.example.org"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("https://[::1]:8443", "https://[::1]:8443"),
            ("http://[::1]", "http://[::1]"),
        ] {
            let parsed: Origin = text.parse().unwrap();
            assert_eq!(parsed.to_string(), origin);
        }
        for bad in [
            "*",
            "null",
            "",
            "ui.example.org",
            "https://",
            "https://*",
            "https://*.example.org",
            "https://ui.example.org/",
            "https://ui.example.org:443",
            "http://ui.example.org:80",
            "https://ui.example.org:",
            "https://ui.example.org:0",
            "https://ui.example.org:080",
            "https://ui.example.org:65536",
            "https://user@ui.example.org",
            "https://ui.example.org,https://b.example",
            "file://x",
            "chrome-extension://abc",
        ] {
            assert_eq!(bad.parse::<Origin>(), Err(InvalidOrigin), "{bad:?}");
        }
    }

    #[test]
    fn the_state_directory_follows_the_user() {
        let path = |text: &str| Some(PathBuf::from(text));
        let cases = [
            (true, path("/x"), path("/root"), Some("/var/lib/derrick")),
            (false, path("/x"), path("/home/a"), Some("/x/derrick")),
            (
                false,
                None,
                path("/home/a"),
                Some("/home/a/.local/state/derrick"),
            ),
            (
                false,
                path("x"),
                path("/home/a"),
                Some("/home/a/.local/state/derrick"),
            ),
            (false, path(""), path(""), None),
            (false, None, None, None),
        ];
        for (root, xdg_state_home, home, expected) in cases {
            let found = state_dir_of(root, xdg_state_home, home);
            assert_eq!(found.ok().as_deref(), expected.map(Path::new));
        }
    }

    #[test]
    fn a_relative_state_directory_becomes_absolute() {
        let Some(Command::Check(check)) = parse("check --state-dir state").unwrap().command else {
            panic!("not check");
        };
        let expected = std::env::current_dir().unwrap().join("state");
        assert_eq!(check.state.directory().unwrap(), expected);
    }
}
