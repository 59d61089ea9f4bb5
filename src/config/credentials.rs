//! What opens a repository: which kind of credentials a config names, and what is read from there.
//!
//! They are read at each use, so that a renewed file takes effect, and once when the config is read, so that
//! what is missing is said at the start. A phrase names the field and neither a variable nor a file: either may
//! be the secret itself, written into the wrong field.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use super::rules::{self, Environment};
use super::{Repository, Secret};

/// A secret is one line; what is larger than this, in bytes, is another file.
const LARGEST_SECRET: u64 = 64 << 10;

/// What opens a repository.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// An access token, for http and https.
    Token(Secret),
    /// For http and https.
    Password {
        /// Whose password it is.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A program of the host that says what opens it, for http and https.
    Command {
        /// The program and its arguments.
        command: Vec<String>,
        /// Whose password is asked for, if that is known.
        username: Option<String>,
    },
    /// The file of a private key, for ssh.
    SshKey(PathBuf),
}

/// What a config names, before it is read.
enum Named<'c> {
    Token(Place<'c>),
    Password(&'c str, Place<'c>),
    Command(&'c [String]),
    SshKey(&'c Path),
}

/// Where one line of text is.
pub(super) enum Place<'c> {
    Variable(&'static str, &'c str),
    File(&'static str, &'c Path),
}

/// A field, and what is wrong with it.
pub(super) type Wrong = (&'static str, String);

/// The files of the host that hold something secret, by their fields.
pub(super) fn secret_files(repository: &Repository) -> impl Iterator<Item = (&'static str, &Path)> {
    [
        ("token_file", &repository.token_file),
        ("password_file", &repository.password_file),
        ("ssh_key_file", &repository.ssh_key_file),
        ("proxy_file", &repository.proxy_file),
    ]
    .into_iter()
    .filter_map(|(field, file)| Some((field, file.as_deref()?)))
}

/// Checks what the config says of credentials, and that they can be had.
pub(super) fn check(repository: &Repository, environment: Environment<'_>) -> Result<(), Wrong> {
    let named = named(repository)?;
    if let Some(known_hosts) = &repository.known_hosts_file {
        let field = "known_hosts_file";
        if !is_ssh(&repository.url) {
            return Err((field, "has no use: only ssh has known hosts".to_owned()));
        }
        for_ssh(field, known_hosts)?;
        let opened = open(known_hosts);
        opened.map_err(|error| (field, format!("cannot be read: {error}")))?;
    }
    named.map_or(Ok(()), |named| {
        read(&named, repository, environment).map(drop)
    })
}

/// Reads what the config names.
pub(super) fn get(
    repository: &Repository,
    environment: Environment<'_>,
) -> Result<Option<Credentials>, String> {
    let named = named(repository);
    let read = named.and_then(|named| {
        named
            .map(|named| read(&named, repository, environment))
            .transpose()
    });
    read.map_err(|(field, reason)| format!("{field} {reason}"))
}

/// The one kind that the config names, and that the repository's URL takes.
fn named(repository: &Repository) -> Result<Option<Named<'_>>, Wrong> {
    let variable = |field, name: &'_ Option<String>| name.is_some().then_some(field);
    let present = [
        variable("token_env", &repository.token_env),
        repository.token_file.as_ref().map(|_| "token_file"),
        variable("password_env", &repository.password_env),
        repository.password_file.as_ref().map(|_| "password_file"),
        repository
            .credential_command
            .as_ref()
            .map(|_| "credential_command"),
        repository.ssh_key_file.as_ref().map(|_| "ssh_key_file"),
    ];
    let mut present = present.into_iter().flatten();
    let first = present.next();
    if let (Some(first), Some(second)) = (first, present.next()) {
        let reason = format!("is there beside {first}; a repository is opened by one of them");
        return Err((second, reason));
    }
    let username = repository.username.as_deref();
    if let Some(name) = username {
        whose(name).map_err(|reason| ("username", reason.to_owned()))?;
    }
    let Some(field) = first else {
        return match username {
            None => Ok(None),
            Some(_) => Err(("username", GOES_WITH.to_owned())),
        };
    };
    let takes = match field {
        "ssh_key_file" => is_ssh(&repository.url),
        _ => is_http(&repository.url),
    };
    if !takes {
        let only = match field {
            "ssh_key_file" => "only ssh repositories take a key",
            "token_env" | "token_file" => "only https and http repositories take a token",
            _ => "only https and http repositories take a password",
        };
        return Err((field, format!("has no use: {only}")));
    }
    let place = || match field {
        "token_env" => Some(Place::Variable(field, repository.token_env.as_deref()?)),
        "token_file" => Some(Place::File(field, repository.token_file.as_deref()?)),
        "password_env" => Some(Place::Variable(field, repository.password_env.as_deref()?)),
        "password_file" => Some(Place::File(field, repository.password_file.as_deref()?)),
        _ => None,
    };
    let named = match (field, username) {
        ("token_env" | "token_file" | "ssh_key_file", Some(_)) => {
            return Err(("username", GOES_WITH.to_owned()));
        }
        ("token_env" | "token_file", None) => place().map(Named::Token),
        ("credential_command", _) => repository.credential_command.as_deref().map(Named::Command),
        ("ssh_key_file", None) => repository.ssh_key_file.as_deref().map(Named::SshKey),
        (_, Some(username)) => place().map(|place| Named::Password(username, place)),
        (_, None) => return Err((field, "needs \"username\" beside it".to_owned())),
    };
    Ok(named)
}

const GOES_WITH: &str =
    "has no use: it goes with password_env, password_file or credential_command";

fn read(
    named: &Named<'_>,
    repository: &Repository,
    environment: Environment<'_>,
) -> Result<Credentials, Wrong> {
    Ok(match named {
        Named::Token(place) => Credentials::Token(place.read(environment)?),
        Named::Password(username, place) => Credentials::Password {
            username: (*username).to_owned(),
            password: place.read(environment)?,
        },
        Named::Command(command) => {
            program(command).map_err(|reason| ("credential_command", reason))?;
            Credentials::Command {
                command: command.to_vec(),
                username: repository.username.clone(),
            }
        }
        Named::SshKey(path) => {
            for_ssh("ssh_key_file", path)?;
            key(path).map_err(|reason| ("ssh_key_file", reason))?;
            Credentials::SshKey((*path).to_owned())
        }
    })
}

impl Place<'_> {
    pub(super) fn read(&self, environment: Environment<'_>) -> Result<Secret, Wrong> {
        let (field, what, content) = match *self {
            Self::Variable(field, name) => {
                rules::variable(name).map_err(|reason| (field, reason.to_owned()))?;
                let missing = "names a variable that is not set in derrick's environment; set it before the start";
                let content = environment(name).ok_or_else(|| (field, missing.to_owned()))?;
                (field, "variable", content.into_encoded_bytes())
            }
            Self::File(field, path) => {
                absolute(path).map_err(|reason| (field, reason))?;
                let content = read_file(path).map_err(|error| {
                    (field, format!("names a file that cannot be read: {error}"))
                })?;
                (field, "file", content)
            }
        };
        Secret::from_bytes(content)
            .map_err(|reason| (field, format!("names a {what} whose content {reason}")))
    }
}

/// RFC 7617: the name ends at the first colon.
fn whose(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty; write the user's name, or leave it out");
    }
    if name.contains(|c: char| c.is_control() || c == ':') {
        return Err("contains a colon or a control character, which no user's name can have");
    }
    Ok(())
}

pub(super) fn is_http(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

fn is_ssh(url: &str) -> bool {
    url.starts_with("ssh://") || !url.contains("://") && !url.starts_with('/')
}

pub(super) fn absolute(path: &Path) -> Result<(), String> {
    if path.is_absolute() && path.components().all(|part| part != Component::ParentDir) {
        return Ok(());
    }
    Err("must be the absolute path of a file, without \"..\"".to_owned())
}

/// ssh expands `%`, `$` and `~` in what it is given, and reads blanks and quotes as its own.
fn for_ssh(field: &'static str, path: &Path) -> Result<(), Wrong> {
    absolute(path).map_err(|reason| (field, reason))?;
    let plain = |c: char| c.is_alphanumeric() || "/._+-@,=".contains(c);
    match path.to_str() {
        Some(text) if text.chars().all(plain) => Ok(()),
        _ => Err((
            field,
            "has a character that ssh takes for its own; a path for it has letters, digits and /._+-@,= alone"
                .to_owned(),
        )),
    }
}

/// A program that can be run, and that not everybody can replace.
fn program(command: &[String]) -> Result<(), String> {
    let Some(program) = command.first().map(Path::new) else {
        return Err("is empty; write a program and its arguments".to_owned());
    };
    if !program.is_absolute()
        || program
            .components()
            .any(|part| part == Component::ParentDir)
    {
        return Err("must begin with the absolute path of a program, without \"..\"".to_owned());
    }
    let metadata = std::fs::metadata(program)
        .map_err(|error| format!("names a program that cannot be used: {error}"))?;
    if !metadata.is_file() || metadata.mode() & 0o111 == 0 {
        return Err("names no program: it is no file that can be executed".to_owned());
    }
    if metadata.mode() & 0o002 != 0 {
        return Err(
            "names a program that every user of this host can write; run chmod o-w on it"
                .to_owned(),
        );
    }
    Ok(())
}

/// As ssh has it: nobody but its owner may do anything with a private key.
fn key(path: &Path) -> Result<(), String> {
    let file = open(path).map_err(|error| format!("names a file that cannot be read: {error}"))?;
    let mode = file.metadata().map_err(|error| error.to_string())?.mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(format!(
        "names a file that others than its owner may use (its mode is {mode:03o}); run chmod 600 on it"
    ))
}

/// A regular file. Does not wait for a writer of a FIFO that took its place.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    Ok(file)
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?
        .take(LARGEST_SECRET + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST_SECRET {
        return Err(io::Error::other("it is larger than 64 KiB"));
    }
    Ok(content)
}
