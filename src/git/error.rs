//! Why a repository could not be brought in, told apart by what the user has to do about it.
//!
//! git has one exit status for all of this, so its messages are read, under `LC_ALL=C`. No variant
//! holds a credential: URLs and texts have been scrubbed before they come here.

use std::io;

use super::lfs::LfsError;
use super::process::{Ended, Failure, NO_SPACE, NotStarted};
use super::upstream::Access;
use crate::config::ConfigError;

/// The most of git's own words that an error repeats, in bytes.
const DETAIL: usize = 1024;

/// A repository could not be mirrored, resolved, checked out or bundled.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The URL is of a kind that derrick does not use, or holds credentials.
    #[error("cannot use repository URL {url:?}: {reason}")]
    Url {
        /// Without credentials.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The configured credentials cannot be read.
    #[error(transparent)]
    Credentials(#[from] ConfigError),
    /// The program that is to say the credentials did not.
    #[error("the credential_command of {url} {reason}")]
    CredentialCommand {
        /// The repository.
        url: String,
        /// What it did, without anything that it said.
        reason: String,
    },
    /// ssh cannot use the configured key.
    #[error(
        "ssh cannot use the key of {url}: {detail}; it must be a private key without a passphrase"
    )]
    Key {
        /// The repository.
        url: String,
        /// What ssh said.
        detail: String,
    },
    /// The host answers and has no such repository, or hides it from these credentials.
    #[error("there is no repository {url}, or these credentials may not see it")]
    NoSuchRepository {
        /// The repository.
        url: String,
    },
    /// The host refused the token, the password or the key.
    #[error("{url} refused the credentials")]
    CredentialsRefused {
        /// The repository.
        url: String,
    },
    /// The host asks for credentials and none are configured.
    #[error(
        "{url} asks for credentials and none are configured; set token_env, token_file, or username with \
         password_env or password_file, or credential_command"
    )]
    CredentialsMissing {
        /// The repository.
        url: String,
    },
    /// The proxy refused its credentials, or asks for some.
    #[error(
        "the proxy for {url} refused the credentials, or asks for some; see proxy_env and proxy_file"
    )]
    ProxyRefused {
        /// The repository.
        url: String,
    },
    /// The repository has no branch, tag or commit of this name.
    #[error("{url} has no {looked_for} {reference:?}")]
    NoSuchReference {
        /// The repository.
        url: String,
        /// As configured.
        reference: String,
        /// The kinds of names that it was looked for as.
        looked_for: &'static str,
    },
    /// The abbreviated commit id fits more than one commit.
    #[error("more than one commit of {url} starts with {reference}")]
    AmbiguousReference {
        /// The repository.
        url: String,
        /// As configured.
        reference: String,
    },
    /// The repository has no commits.
    #[error("{url} is empty: it has no branch and no tag")]
    Empty {
        /// The repository.
        url: String,
    },
    /// The repository lacks a part of its own history.
    #[error(
        "{url} is a shallow clone; run 'git fetch --unshallow' in it, or configure where it came from"
    )]
    Shallow {
        /// The repository.
        url: String,
    },
    /// The host does not give out what a filter left out.
    #[error(
        "{url} does not give out files by their ids, which a filter needs; a server that speaks git's protocol 2 \
         does, or one with uploadpack.allowAnySHA1InWant; or leave filter out"
    )]
    NotByTheirIds {
        /// The repository.
        url: String,
    },
    /// What is new does not follow on what a workspace has, as far as it is known.
    #[error(
        "the new commit of {url} does not follow on what the workspace has, as far as their history is known: a \
         branch was rewritten, or a depth keeps too little of it; make a new workspace"
    )]
    Unconnected {
        /// The repository.
        url: String,
    },
    /// No reference is configured and the remote's `HEAD` names no branch that exists.
    #[error("{url} has no default branch; set reference")]
    NoDefaultBranch {
        /// The repository.
        url: String,
    },
    /// The host has no address, does not answer, or refuses the connection.
    #[error("cannot reach the host of {url}: {detail}")]
    Unreachable {
        /// The repository, or the origin that was asked for its large files.
        url: String,
        /// What was said.
        detail: String,
    },
    /// The host could not prove who it is: its TLS certificate or ssh key is not trusted here.
    #[error(
        "cannot verify the host of {url}: {detail}; the user that derrick runs as, or the repository's \
         known_hosts_file, must have its ssh host key; this host, or ca_file, its certificate's authority"
    )]
    Unverified {
        /// The repository, or the origin that was asked for its large files.
        url: String,
        /// What was said.
        detail: String,
    },
    /// The host redirects to another one, to which the credentials must not go.
    #[error(
        "{url} redirects to {to}, and its credentials are not for that host; configure the new URL"
    )]
    Redirected {
        /// The repository.
        url: String,
        /// Where it redirects to.
        to: String,
    },
    /// A submodule is not taken, or what names it cannot be read.
    #[error("cannot take submodule {submodule:?} of {url}: {reason}")]
    Submodule {
        /// The repository that names it.
        url: String,
        /// Its path or its name there, without control characters.
        submodule: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Large files cannot be had.
    #[error(transparent)]
    LargeFiles(#[from] LfsError),
    /// The connection broke or stalled during the transfer.
    #[error("the transfer from {url} broke off: {detail}")]
    Transfer {
        /// The repository.
        url: String,
        /// What git said.
        detail: String,
    },
    /// The repository holds objects that git takes for malformed or hostile.
    #[error("{url} holds objects that git refuses: {detail}")]
    Malformed {
        /// The repository.
        url: String,
        /// What git said.
        detail: String,
    },
    /// The disk, its inodes or the quota of the state directory are full.
    #[error("cannot {attempt}: no space is left on the disk")]
    NoSpace {
        /// What was being done.
        attempt: String,
    },
    /// A program that is needed is not there.
    #[error("cannot run {program}: it is not installed, or not in derrick's PATH")]
    NotInstalled {
        /// `git` or `ssh`.
        program: &'static str,
    },
    /// git lacks what derrick relies on to keep secrets off the disk.
    #[error("git is too old ({found}): derrick needs 2.31 or newer")]
    TooOld {
        /// What `git version` prints.
        found: String,
    },
    /// The host's files failed.
    #[error("cannot {attempt}")]
    Io {
        /// What was being done.
        attempt: String,
        /// What it failed with.
        source: io::Error,
    },
    /// git failed in a way that is none of the above.
    #[error("cannot {attempt}: {detail}")]
    Other {
        /// What was being done.
        attempt: String,
        /// The end of what git said.
        detail: String,
    },
}

impl GitError {
    /// An error of the host's files, `NoSpace` if that is what it is.
    pub(super) fn io(attempt: impl Into<String>, source: io::Error) -> Self {
        let attempt = attempt.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { attempt },
            _ => Self::Io { attempt, source },
        }
    }

    /// Whether the disk is full, or would be.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(
            self,
            Self::NoSpace { .. } | Self::LargeFiles(LfsError::TooLarge { .. })
        )
    }

    /// Whether nobody read what was being written.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Whether the host stopped answering in the middle of something, so that asking for less may help.
    pub(super) fn is_broken_off(&self) -> bool {
        matches!(self, Self::Transfer { .. } | Self::Unreachable { .. })
    }

    /// Adds that the next attempt goes on from where this one ended.
    pub(super) fn with_the_rest_kept(mut self) -> Self {
        if let Self::Transfer { detail, .. } | Self::Unreachable { detail, .. } = &mut self {
            detail.push_str("; what has come is kept, and the next attempt goes on from there");
        }
        self
    }

    /// Of a git process that works on the provider's own files only.
    pub(super) fn local(attempt: &str, failure: Failure) -> Self {
        let attempt = attempt.to_owned();
        match failure.ended {
            Ended::NotStarted(why) => Self::not_started(attempt, why),
            _ if failure.says(NO_SPACE) => Self::NoSpace { attempt },
            _ => Self::Other {
                attempt,
                detail: failure.detail(DETAIL),
            },
        }
    }

    /// Of a git process that talks to the upstream.
    pub(super) fn remote(attempt: &str, access: &Access, failure: Failure) -> Self {
        let url = access.upstream().url().to_owned();
        let attempt = format!("{attempt} {url}");
        if let Ended::NotStarted(why) = failure.ended {
            return Self::not_started(attempt, why);
        }
        let detail = failure.detail(DETAIL);
        // The order matters: git's last line is often "could not read from remote repository",
        // whatever the reason, and a broken transfer follows from nearly all of the others.
        if failure.says(NO_SPACE) {
            Self::NoSpace { attempt }
        } else if failure.says(&["cannot run ssh"]) {
            Self::NotInstalled { program: "ssh" }
        } else if failure.says(PROXY_REFUSED) {
            Self::ProxyRefused { url }
        } else if failure.says(UNVERIFIED) {
            Self::Unverified { url, detail }
        } else if access.has_key() && failure.says(BAD_KEY) {
            Self::Key { url, detail }
        } else if failure.says(UNREACHABLE) {
            Self::Unreachable { url, detail }
        } else if failure.says(REFUSED) {
            if access.has_header() || failure.says(&["permission denied"]) {
                Self::CredentialsRefused { url }
            } else {
                Self::CredentialsMissing { url }
            }
        } else if failure.says(NO_REPOSITORY) || failure.says_repository_not_found() {
            Self::NoSuchRepository { url }
        } else if failure.says(MALFORMED) {
            Self::Malformed { url, detail }
        } else if failure.says(CUT) && failure.says(BROKEN) {
            Self::Transfer { url, detail }
        } else if failure.says(DAMAGED) {
            Self::Other { attempt, detail }
        } else if matches!(failure.ended, Ended::Stalled) || failure.says(BROKEN) {
            Self::Transfer { url, detail }
        } else {
            Self::Other { attempt, detail }
        }
    }

    fn not_started(attempt: String, why: NotStarted) -> Self {
        match why {
            NotStarted::Lacking(program) => Self::NotInstalled { program },
            NotStarted::Refused(source) => Self::io(attempt, source),
        }
    }
}

const PROXY_REFUSED: &[&str] = &[
    "returned error: 407",
    "http code 407 from proxy",
    "response 407",
];

const UNVERIFIED: &[&str] = &[
    "host key verification failed",
    "ssl certificate problem",
    "server certificate verification failed",
    "certificate subject name",
    "no alternative certificate subject name",
];

/// What ssh says before it goes on without the key.
const BAD_KEY: &[&str] = &["load key \""];

const UNREACHABLE: &[&str] = &[
    "could not resolve host",
    "could not resolve proxy",
    "couldn't connect to server",
    "failed to connect to",
    "could not connect to server",
    "connection refused",
    "connection timed out",
    "network is unreachable",
    "no route to host",
    "kex_exchange_identification",
];

const REFUSED: &[&str] = &[
    "authentication failed for",
    "could not read username",
    "could not read password",
    "returned error: 401",
    "returned error: 403",
    "permission denied (",
    "invalid username or token",
];

const NO_REPOSITORY: &[&str] = &[
    "does not appear to be a git repository",
    "repository not found",
    "returned error: 404",
    "returned error: 410",
    "not valid: is this a git repository",
];

const MALFORMED: &[&str] = &["fsck error"];

/// What git says of a pack whose last bytes did not come.
const CUT: &[&str] = &["pack is corrupted"];

/// What may be the mirror's own fault; looked at before the broken transfer that it leads to.
const DAMAGED: &[&str] = &[
    "not a git repository",
    "is corrupt",
    "is empty",
    "bad object",
    "unable to read",
    "missing object",
    "necessary objects",
    "does not match index",
    "cannot be accessed",
    "inflate",
    "unresolved delta",
];

const BROKEN: &[&str] = &[
    "operation too slow",
    "early eof",
    "rpc failed",
    "hung up unexpectedly",
    "unexpected disconnect",
    "transfer closed",
    "connection reset",
    "recv failure",
    "empty reply from server",
    "invalid index-pack output",
    "index-pack failed",
    "could not read from remote repository",
    "returned error: 5",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Repository;

    fn repository(url: &str) -> Repository {
        serde_json::from_value(serde_json::json!({"url": url, "path": "/r"})).expect("a repository")
    }

    #[tokio::test]
    async fn what_git_says_is_told_apart() {
        let access = Access::of(&repository("https://h/r"))
            .await
            .expect("no token");
        for (said, kind) in [
            (
                "remote: Not Found\nfatal: repository 'https://h/r/' not found",
                "NoSuchRepository",
            ),
            (
                "fatal: '/r' does not appear to be a git repository\nfatal: Could not read from remote repository.",
                "NoSuchRepository",
            ),
            (
                "ERROR: Repository not found.\nfatal: Could not read from remote repository.",
                "NoSuchRepository",
            ),
            (
                "fatal: could not read Username for 'https://h': terminal prompts disabled",
                "CredentialsMissing",
            ),
            (
                "fatal: unable to access 'https://h/r/': The requested URL returned error: 403",
                "CredentialsMissing",
            ),
            (
                "git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.",
                "CredentialsRefused",
            ),
            (
                "fatal: unable to access 'https://h/r/': Could not resolve host: h",
                "Unreachable",
            ),
            (
                "ssh: connect to host h port 22: Connection refused\nfatal: Could not read from remote repository.",
                "Unreachable",
            ),
            (
                "Host key verification failed.\nfatal: Could not read from remote repository.",
                "Unverified",
            ),
            (
                "fatal: unable to access 'https://h/r/': SSL certificate problem: self-signed certificate",
                "Unverified",
            ),
            (
                "error: RPC failed; curl 18 transfer closed\nfatal: early EOF",
                "Transfer",
            ),
            (
                "error: RPC failed; curl 18 transfer closed\nfatal: pack is corrupted (SHA1 mismatch)",
                "Transfer",
            ),
            (
                "fatal: unable to access 'https://h/r/': The requested URL returned error: 502",
                "Transfer",
            ),
            (
                "fatal: write error: No space left on device\nfatal: fetch-pack: invalid index-pack output",
                "NoSpace",
            ),
            (
                "error: object 00: hasDotgit: contains '.git'\nfatal: fsck error in packed object",
                "Malformed",
            ),
            (
                "error: cannot run ssh: No such file or directory\nfatal: unable to fork",
                "NotInstalled",
            ),
            // The server's own words decide nothing.
            (
                "remote: No space left on device\nremote: Repository not found\nfatal: odd",
                "Other",
            ),
        ] {
            let error = GitError::remote("fetch", &access, Failure::saying(said));
            let shown = format!("{error:?}");
            assert!(shown.starts_with(kind), "{said:?} became {shown}");
        }
    }
}
