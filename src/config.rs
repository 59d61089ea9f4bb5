//! `WorkspaceConfig`: what a config file says, checked once, here.
//!
//! Nothing past this module sees raw text: paths are absolute, sizes are numbers, unknown fields
//! and settings that derrick cannot honour have been refused with the place in the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use crate::sandbox;
pub use credentials::Credentials;
pub use filter::Filter;
pub use secret::Secret;
pub use tree::Position;

mod credentials;
mod filter;
mod push;
mod reader;
mod rules;
mod secret;
#[cfg(test)]
mod tests;
mod tree;
mod way;

/// A config file is written by hand; what is larger than this, in bytes, is another file.
const LARGEST_FILE: u64 = 1 << 20;

/// The most that may be kept of one stream of a command, in bytes.
pub const MOST_OUTPUT: u64 = 1 << 30;

/// A workspace configuration, as `-w FILE` names it.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceConfig {
    /// A name for people; part of each workspace's hostname.
    ///
    /// 1 to 63 letters, digits, `-`, `_`, `.` and spaces.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")
    )]
    pub name: String,
    /// Repositories to check out during setup.
    #[serde(default)]
    pub repositories: Vec<Repository>,
    /// Run by a shell inside the workspace during setup, after the repositories are there.
    #[serde(default)]
    pub setup_script: Option<String>,
    /// The root filesystem that the workspace starts from: an object, or just `"host"`.
    #[serde(default)]
    #[schemars(with = "BaseForm")]
    pub base: Base,
    /// Environment of the setup script and of every command.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where commands start, unless they say otherwise. Absolute.
    #[serde(default = "root_dir")]
    #[schemars(extend("pattern" = "^/"))]
    pub workdir: PathBuf,
    /// The user whom commands run as and to whom the repositories belong, by name or number as the
    /// workspace's `/etc/passwd` has it.
    #[serde(default = "root")]
    #[schemars(length(min = 1, max = 255))]
    pub user: String,
    /// What network commands see.
    #[serde(default)]
    pub network: Network,
    /// Where what workspaces write is kept.
    #[serde(default)]
    pub storage: Storage,
    /// Settings of the setup phase alone.
    #[serde(default)]
    pub setup: Setup,
    /// What the workspace is let do about namespaces of its own, during setup too.
    #[serde(default)]
    pub profile: Profile,
    /// What may be missing on this host instead of failing the start of a sandbox.
    #[serde(default)]
    pub best_effort: Vec<Restriction>,
    /// What a workspace may use; setup is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What a workspace is to get where others want it as well; it may use more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
    /// Workspaces at once; not limited if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_workspaces: Option<u32>,
    /// Memory of the host that stays free, as a size: with less available, no workspace is made. A fiftieth
    /// of it, at most 1 GiB, if absent.
    #[serde(
        default,
        deserialize_with = "size",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<SizeForm>")]
    pub min_free_memory: Option<ByteSize>,
    /// Seconds that a workspace is kept from its making, or its last renewal, on, and the most that a
    /// token with a scope may ask for; not limited if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub ttl: Option<f64>,
    /// Seconds without a request for it and without an exec after which a workspace is removed, and the
    /// most that a token with a scope may ask for; not limited if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub idle_timeout: Option<f64>,
    /// Pristine sandboxes kept ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// What is kept of layers that nothing uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
}

/// A git repository and where it goes.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// Accepted for bosun-ai/derrick's configs; used in messages.
    #[serde(default)]
    pub name: Option<String>,
    /// Where it is cloned from: `https`, `http`, `ssh`, `file` or an absolute path. Without credentials.
    pub url: String,
    /// Where it goes in the workspace. Absolute.
    #[schemars(extend("pattern" = "^/."))]
    pub path: PathBuf,
    /// Branch, tag or commit; the remote's default branch if absent.
    #[serde(default)]
    pub reference: Option<String>,
    /// How much of its history enters the workspace.
    #[serde(default)]
    pub history: History,
    /// How many commits of its history are had of its upstream and enter a workspace, from the one that is checked
    /// out back, 100000 at most; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = 100_000))]
    pub depth: Option<NonZeroU32>,
    /// Which files are not had of its upstream and stay outside, as in git's partial clones, but for those of the
    /// commit that is checked out; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// Whether its submodules come with it, and theirs, each at the commit that is named.
    #[serde(default)]
    pub submodules: bool,
    /// Where submodules may come from: beginnings of URLs, up to a slash; the repository's own host if absent.
    #[serde(default)]
    pub submodule_urls: Option<Vec<String>>,
    /// Whether the files come with it that git-lfs keeps elsewhere, and those of its submodules.
    #[serde(default)]
    pub lfs: bool,
    /// Where these may come from beside the repository's own host: beginnings of https and http URLs, up to a
    /// slash.
    #[serde(default)]
    pub lfs_urls: Option<Vec<String>>,
    /// The branches of its upstream that commits of workspaces may be pushed to: names, in which `*` stands for
    /// any text without a slash, `**` for any text, and `{id}` for the workspace's id. None if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub push: Vec<String>,
    /// The environment variable of the provider that holds the access token.
    #[serde(default)]
    pub token_env: Option<String>,
    /// The file on the host that holds the access token. Absolute.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// Whose password it is, or whose the command is asked for.
    #[serde(default)]
    pub username: Option<String>,
    /// The environment variable of the provider that holds the password.
    #[serde(default)]
    pub password_env: Option<String>,
    /// The file on the host that holds the password. Absolute.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// A program of the host, its path absolute, and its arguments, which is run for each use with `get` as
    /// its last argument and says user and password as git's credential helpers do.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub credential_command: Option<Vec<String>>,
    /// The file on the host that holds the private key for ssh, which has no passphrase. Absolute.
    #[serde(default)]
    pub ssh_key_file: Option<PathBuf>,
    /// The file on the host that holds the keys of ssh hosts that are trusted, instead of those that the user
    /// who runs the provider and the host trust. Absolute.
    #[serde(default)]
    pub known_hosts_file: Option<PathBuf>,
    /// The file on the host that holds the certificates of authorities, as PEM, that may vouch for the https
    /// host, and for an https proxy, instead of those that the host trusts. Absolute.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The URL of the proxy through which the http or https host is reached: `http` or `https`, without
    /// credentials.
    #[serde(default)]
    pub proxy: Option<String>,
    /// The environment variable of the provider that holds such a URL, which may have credentials.
    #[serde(default)]
    pub proxy_env: Option<String>,
    /// The file on the host that holds such a URL, which may have credentials. Absolute.
    #[serde(default)]
    pub proxy_file: Option<PathBuf>,
}

impl Repository {
    /// Whether commits of the workspace `id` may be pushed to the upstream's branch `name`.
    #[must_use]
    pub fn allows_push(&self, id: &str, name: &str) -> bool {
        self.push
            .iter()
            .any(|pattern| push::allows(pattern, id, name))
    }
}

/// How much of a repository's history enters a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// What the commit that is checked out leads to: nothing later, no other branch, no other tag.
    #[default]
    Sealed,
    /// The branch that `reference` names, else the default branch, and the tags of its commits.
    Branch,
    /// All branches and tags, as a clone has them.
    Full,
    /// The files alone, as one commit without parents. Nothing can be fetched into it.
    None,
}

/// The root filesystem that a workspace starts from, before setup.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Base {
    /// The host's own programs and libraries.
    Host {
        /// Further host directories to show at the same path. Absolute.
        #[serde(default)]
        include: Vec<PathBuf>,
    },
    /// A root filesystem on disk; never written. Of the user who runs derrick, or of ids that sandboxes
    /// have.
    Directory {
        /// The directory on the host. Absolute.
        path: PathBuf,
    },
    /// An archive of a root filesystem: `.tar`, plain or compressed with gzip, zstd or xz.
    Tarball {
        /// The archive on the host. Absolute.
        path: PathBuf,
    },
}

/// What network a phase sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A network namespace of its own with nothing but loopback.
    #[default]
    None,
    /// The host's network, host loopback included.
    Host,
}

/// Where what workspaces write is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// In the state directory: it is there until the workspace is reset or removed.
    #[default]
    Disk,
    /// In memory, `limits.disk` of it or half of the host's at most: it is gone with the workspace's
    /// processes, also when derrick ends.
    Memory,
}

/// What a workspace is let do about namespaces of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// It can neither make nor enter any, and mount nothing.
    #[default]
    Standard,
    /// It can, as bubblewrap, Chromium's sandbox and rootless containers want it; more of the kernel can
    /// be attacked then.
    Nested,
}

/// Settings of the setup phase.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The network of the setup script; `network` of the config if absent.
    #[serde(default)]
    pub network: Option<Network>,
}

/// A restriction that `best_effort` may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Restriction {
    /// Landlock: the second filesystem boundary and the scoping of signals and abstract sockets.
    Landlock,
    /// Those limits and requests that this host cannot enforce.
    Limits,
}

/// What a workspace may use; what is absent is not limited.
///
/// A size is a number of bytes or a text such as `"512MiB"` or `"2GB"`. What the host cannot enforce
/// is refused, unless `best_effort` has `limits`.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct Limits {
    /// Memory, as a size: the page cache and `/dev/shm` included, and no swap beside it. At the limit
    /// all processes are killed together.
    #[serde(default, deserialize_with = "size")]
    #[schemars(with = "Option<SizeForm>")]
    #[schema(value_type = Option<SizeForm>)]
    pub memory: Option<ByteSize>,
    /// Processors' worth of time, fractions allowed.
    #[serde(default)]
    pub cpus: Option<f64>,
    /// Processes and threads at once.
    #[serde(default)]
    pub pids: Option<u32>,
    /// Open files of each process.
    #[serde(default)]
    pub open_files: Option<u32>,
    /// What fits into `/dev/shm`, as a size; half of the host's memory if absent.
    #[serde(default, deserialize_with = "size")]
    #[schemars(with = "Option<SizeForm>")]
    #[schema(value_type = Option<SizeForm>)]
    pub shm: Option<ByteSize>,
    /// What fits into `/tmp`, as a size: it is in memory then, empty at each start of the workspace's
    /// processes and gone with them. A part of the workspace's files if absent.
    #[serde(default, deserialize_with = "size")]
    #[schemars(with = "Option<SizeForm>")]
    #[schema(value_type = Option<SizeForm>)]
    pub tmp: Option<ByteSize>,
    /// The most that is asked to be kept of each stream of a command, as a size; up to an eighth more of
    /// it may be there.
    #[serde(default, deserialize_with = "size")]
    #[schemars(with = "Option<SizeForm>")]
    #[schema(value_type = Option<SizeForm>)]
    pub output: Option<ByteSize>,
    /// Commands and sessions at once.
    #[serde(default)]
    pub execs: Option<u32>,
    /// What the workspace may write and keep, as a size. With `"storage": "disk"` for root alone.
    #[serde(default, deserialize_with = "size")]
    #[schemars(with = "Option<SizeForm>")]
    #[schema(value_type = Option<SizeForm>)]
    pub disk: Option<ByteSize>,
    /// Files and directories that the workspace may make and keep; together with `disk`. One for each
    /// 8 KiB of it if absent.
    #[serde(default)]
    pub inodes: Option<u64>,
}

/// What a workspace is to get where others want it as well; it may use more, up to its limits.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct Requests {
    /// Memory that is taken from it last when the host is short of it, as a size.
    #[serde(default, deserialize_with = "size")]
    #[schemars(with = "Option<SizeForm>")]
    #[schema(value_type = Option<SizeForm>)]
    pub memory: Option<ByteSize>,
    /// Processors' worth of time, fractions allowed: its share where all want more than there is.
    #[serde(default)]
    pub cpus: Option<f64>,
}

/// Pristine sandboxes kept ready for `create` and `reset`: as many as were lately wanted at once, one at
/// the least.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// How many to keep at most of one setup and the same limits; 0 for none. 16 if absent.
    #[serde(default)]
    pub size: Option<u32>,
    /// How much memory all of them may take, as a size; each counts as 2 MiB. 64 MiB if absent.
    #[serde(default, deserialize_with = "size")]
    #[schemars(with = "Option<SizeForm>")]
    pub memory: Option<ByteSize>,
}

/// What is kept of layers that nothing uses: with neither, all of them.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Layers {
    /// What all layers together may take, as a size, those in use included: above that the least recently used
    /// go, of those that nothing uses.
    #[serde(default, deserialize_with = "size")]
    #[schemars(with = "Option<SizeForm>")]
    pub max_size: Option<ByteSize>,
    /// Seconds since its last use after which a layer goes that nothing uses.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub max_age: Option<f64>,
}

/// Why a config cannot be used. The message names the file, the place in it, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading the workspace config {}", file.display())]
    Read {
        /// The file as it was named.
        file: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The text is no JSON, or a value in it is wrong.
    #[error("{file}:{position}: {path}{}{reason}", if path.is_empty() { "" } else { ": " })]
    Invalid {
        /// The file as it was named.
        file: String,
        /// Where in the file.
        position: Position,
        /// The value, as `repositories[0].path`; empty for the document as a whole.
        path: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A repository's credentials, or its proxy's, cannot be had any more; they could when the config was read.
    #[error("getting the credentials of {url}: {reason}")]
    Credentials {
        /// The repository.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

impl WorkspaceConfig {
    /// Reads and checks a config file.
    ///
    /// # Errors
    /// Those of [`from_json`](Self::from_json), and when the file cannot be read, is larger than
    /// 1 MiB, or can be written by every user of the host.
    pub fn from_file(file: &Path) -> Result<Self, ConfigError> {
        let text = read_config(file).map_err(|source| ConfigError::Read {
            file: file.to_owned(),
            source,
        })?;
        Self::from_json(&text, &file.to_string_lossy())
    }

    /// Checks a config's text; `file` is its name for messages.
    ///
    /// # Errors
    /// When it is no JSON, has a field that is not known or not supported yet, a value that
    /// cannot be, or names a file or a variable that this host does not have.
    pub fn from_json(text: &str, file: &str) -> Result<Self, ConfigError> {
        Self::from_json_in(text, file, &|name| std::env::var_os(name))
    }

    fn from_json_in(
        text: &str,
        file: &str,
        environment: rules::Environment<'_>,
    ) -> Result<Self, ConfigError> {
        let invalid = |position, path: &tree::Path, reason| ConfigError::Invalid {
            file: file.to_owned(),
            position,
            path: path.to_string(),
            reason,
        };
        let tree = tree::Node::parse(text)
            .map_err(|error| invalid(error.position, &tree::Path::default(), error.reason))?;
        let place = |offset| Position::of(text, offset);
        if let Some(path) = tree.find_nul(tree::Path::default()) {
            let reason = "contains a NUL character, which Linux takes in no text; remove it";
            return Err(invalid(place(tree.locate(&path)), &path, reason.to_owned()));
        }
        let mut config: Self = serde_path_to_error::deserialize(&tree).map_err(|error| {
            let (path, offset) = tree.blame(error.path().into(), error.inner());
            invalid(place(offset), &path, error.inner().to_string())
        })?;
        rules::check(&mut config, environment).map_err(|broken| {
            invalid(
                place(tree.locate(&broken.path)),
                &broken.path,
                broken.reason,
            )
        })?;
        Ok(config)
    }

    /// The config that is used when none is named: the host's own system, no repository, no setup.
    #[must_use]
    pub fn built_in() -> Self {
        Self {
            name: "default".to_owned(),
            repositories: Vec::new(),
            setup_script: None,
            base: Base::default(),
            env: BTreeMap::new(),
            workdir: root_dir(),
            user: root(),
            network: Network::default(),
            storage: Storage::default(),
            setup: Setup::default(),
            profile: Profile::default(),
            best_effort: Vec::new(),
            limits: None,
            requests: None,
            max_workspaces: None,
            min_free_memory: None,
            ttl: None,
            idle_timeout: None,
            pool: None,
            layers: None,
        }
    }

    /// What network the setup script sees.
    #[must_use]
    pub fn setup_network(&self) -> Network {
        self.setup.network.unwrap_or(self.network)
    }

    /// The JSON Schema of a config file, as `derrick schema` prints it and `config.schema.json` has it.
    #[must_use]
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

impl Repository {
    /// The same repository at another reference.
    ///
    /// # Errors
    /// What is wrong with the reference, and what would be right.
    pub fn at(&self, reference: String) -> Result<Self, String> {
        rules::reference(&reference)?;
        Ok(Self {
            reference: Some(reference),
            ..self.clone()
        })
    }

    /// Whether files of its history stay with its upstream.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.filter.is_some() && self.history != History::None
    }

    /// A submodule of this one, as if the config had it: with what opens `opened_by`, and the way there.
    #[must_use]
    pub(crate) fn submodule(
        &self,
        url: &str,
        path: &Path,
        commit: &str,
        opened_by: Option<&Self>,
    ) -> Self {
        let place =
            |of: fn(&Self) -> &Option<PathBuf>| opened_by.and_then(|other| of(other).clone());
        let text = |of: fn(&Self) -> &Option<String>| opened_by.and_then(|other| of(other).clone());
        Self {
            name: None,
            url: url.to_owned(),
            path: self.path.join(path),
            reference: Some(commit.to_owned()),
            history: self.history,
            // Their commits are rarely the last ones of a branch.
            depth: None,
            // As `git clone` has it.
            filter: None,
            push: Vec::new(),
            submodules: true,
            submodule_urls: None,
            lfs: self.lfs,
            lfs_urls: self.lfs_urls.clone(),
            token_env: text(|other| &other.token_env),
            token_file: place(|other| &other.token_file),
            username: text(|other| &other.username),
            password_env: text(|other| &other.password_env),
            password_file: place(|other| &other.password_file),
            credential_command: opened_by.and_then(|other| other.credential_command.clone()),
            ssh_key_file: place(|other| &other.ssh_key_file),
            known_hosts_file: place(|other| &other.known_hosts_file),
            ca_file: place(|other| &other.ca_file),
            proxy: text(|other| &other.proxy),
            proxy_env: text(|other| &other.proxy_env),
            proxy_file: place(|other| &other.proxy_file),
        }
    }

    /// Reads the credentials from where the config says they are; `None` if it names none.
    ///
    /// Read at each use, so that a renewed file takes effect.
    ///
    /// # Errors
    /// When the variable or the file is gone, or its content is no token or password: empty, not UTF-8, or
    /// with control characters; when a program or a key cannot be used.
    pub fn credentials(&self) -> Result<Option<Credentials>, ConfigError> {
        let credentials = credentials::get(self, &|name| std::env::var_os(name));
        credentials.map_err(|reason| self.unreadable(reason))
    }

    /// Reads the URL of the proxy, with its credentials, from where the config says it is; `None` if it names
    /// none.
    ///
    /// # Errors
    /// As those of [`credentials`](Self::credentials), and when it is no such URL.
    pub fn proxy(&self) -> Result<Option<Secret>, ConfigError> {
        let proxy = way::get(self, &|name| std::env::var_os(name));
        proxy.map_err(|reason| self.unreadable(reason))
    }

    fn unreadable(&self, reason: String) -> ConfigError {
        ConfigError::Credentials {
            url: self.url.clone(),
            reason,
        }
    }
}

impl Default for Base {
    fn default() -> Self {
        Self::Host {
            include: Vec::new(),
        }
    }
}

/// Written by hand because serde's own reading of a tagged enum loses the path of an error.
impl<'de> Deserialize<'de> for Base {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BaseVisitor)
    }
}

struct BaseVisitor;

impl<'de> de::Visitor<'de> for BaseVisitor {
    type Value = Base;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("\"host\" or an object with a \"type\"")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Base, E> {
        match word {
            "host" => Ok(Base::default()),
            "directory" | "tarball" => Err(E::custom(format!(
                "a {word} needs a path; write {{\"type\": \"{word}\", \"path\": \"/…\"}}"
            ))),
            other => Err(E::custom(reader::unknown_word(other, BASE_TYPES))),
        }
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Base, A::Error> {
        let fields = BaseFields::deserialize(de::value::MapAccessDeserializer::new(map))?;
        match fields {
            BaseFields {
                kind: BaseType::Host,
                include,
                path: None,
            } => Ok(Base::Host {
                include: include.unwrap_or_default(),
            }),
            BaseFields {
                kind: BaseType::Directory,
                include: None,
                path: Some(path),
            } => Ok(Base::Directory { path }),
            BaseFields {
                kind: BaseType::Tarball,
                include: None,
                path: Some(path),
            } => Ok(Base::Tarball { path }),
            BaseFields {
                kind: BaseType::Host,
                path: Some(_),
                ..
            } => Err(de::Error::unknown_field("path", &["type", "include"])),
            BaseFields {
                include: Some(_), ..
            } => Err(de::Error::unknown_field("include", &["type", "path"])),
            BaseFields { path: None, .. } => Err(de::Error::missing_field("path")),
        }
    }
}

const BASE_TYPES: &[&str] = &["host", "directory", "tarball"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BaseFields {
    #[serde(rename = "type")]
    kind: BaseType,
    #[serde(default)]
    include: Option<Vec<PathBuf>>,
    #[serde(default)]
    path: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum BaseType {
    Host,
    Directory,
    Tarball,
}

/// How a base may be written: in short or in full.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum BaseForm {
    /// Short for an object with this type.
    Short(ShortBase),
    /// In full.
    Full(Base),
}

/// A base that needs no further fields.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used")]
enum ShortBase {
    Host,
}

/// How a size may be written: in bytes, or with a unit.
#[derive(JsonSchema, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) enum SizeForm {
    /// In bytes.
    Bytes(u64),
    /// With a unit: B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024).
    Text(#[schemars(extend("pattern" = r"^[0-9]+(\.[0-9]+)? ?([kKMGT]i?)?B?$"))] String),
}

impl Limits {
    /// Checks what a well-typed limit may still not be.
    ///
    /// # Errors
    /// The field, and a phrase that says what would be right.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        rules::limits(self)
    }
}

impl Requests {
    /// Checks what a well-typed request may still not be.
    ///
    /// # Errors
    /// The field, and a phrase that says what would be right.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        rules::requests(self)
    }
}

/// What is asked for, in the kernel's units.
impl From<&Limits> for sandbox::Limits {
    fn from(limits: &Limits) -> Self {
        let bytes = |size: Option<ByteSize>| size.map(|size| size.as_u64());
        Self {
            memory: bytes(limits.memory),
            cpus: limits.cpus,
            pids: limits.pids,
            open_files: limits.open_files,
            shm: bytes(limits.shm),
            tmp: bytes(limits.tmp),
            output: bytes(limits.output),
            execs: limits.execs,
            disk: bytes(limits.disk),
            inodes: limits.inodes,
        }
    }
}

/// What is asked for, in the kernel's units.
impl From<&Requests> for sandbox::Requests {
    fn from(requests: &Requests) -> Self {
        Self {
            memory: requests.memory.map(|size| size.as_u64()),
            cpus: requests.cpus,
        }
    }
}

/// Reads a size that may be absent.
///
/// # Errors
/// Where it is none.
pub(crate) fn size<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ByteSize>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Sized(#[serde(deserialize_with = "some_size")] ByteSize);

    fn some_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }

    Ok(Option::<Sized>::deserialize(deserializer)?.map(|size| size.0))
}

struct SizeVisitor;

impl de::Visitor<'_> for SizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a size: a number of bytes, or a text such as \"512MiB\"")
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
        Ok(ByteSize::b(bytes))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
        let number = text.starts_with(|c: char| c.is_ascii_digit());
        match text.parse::<ByteSize>() {
            // Multiplication saturates in there, so the largest number means an overflow.
            Ok(size) if number && size.as_u64() < u64::MAX => Ok(size),
            _ => Err(E::custom(format!(
                "{} is no size; write a number of bytes, or a number and B, kB, MB, GB, KiB, MiB or GiB, such as \"512MiB\"",
                reader::quoted(text)
            ))),
        }
    }
}

fn root_dir() -> PathBuf {
    PathBuf::from("/")
}

fn root() -> String {
    "root".to_owned()
}

fn read_config(file: &Path) -> io::Result<String> {
    let opened = File::open(file)?;
    let metadata = opened.metadata()?;
    // Whoever writes a config chooses which host directories a workspace sees.
    if metadata.is_file() && metadata.mode() & 0o002 != 0 {
        return Err(io::Error::other(
            "every user of this host can write it; run chmod o-w on it",
        ));
    }
    let mut text = Vec::new();
    opened.take(LARGEST_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    String::from_utf8(text).map_err(|_| io::Error::other("it is not UTF-8"))
}
