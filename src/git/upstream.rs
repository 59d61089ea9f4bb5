//! Where a repository comes from: its URL, taken apart once, and the credentials for it.
//!
//! A secret leaves this file in two ways only: as a header, or a proxy's URL, in the environment of one git
//! process, and as text that is cut out of everything git says. Of a key the file's name leaves it, for ssh.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};

use super::credentials::{self, Answer};
use super::error::GitError;
use crate::config::{Credentials, Repository, Secret};
use crate::shown::is_shown;

/// What stands in for a secret in messages.
const REDACTED: &str = "[redacted]";

/// How git reaches a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Https,
    Http,
    Ssh,
    File,
}

impl Transport {
    /// The name in git's `protocol.<name>.allow`.
    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::File => "file",
        }
    }
}

/// A repository's URL, known to hold no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Upstream {
    url: String,
    transport: Transport,
}

impl Upstream {
    /// Takes `https`, `http`, `ssh` and `file` URLs, absolute paths, and ssh's `user@host:path`.
    pub(super) fn parse(url: &str) -> Result<Self, GitError> {
        let refuse = |reason| {
            Err(GitError::Url {
                url: Scrub::default().clean(url.as_bytes()),
                reason,
            })
        };
        if url.chars().any(char::is_control) {
            return refuse("it contains control characters");
        }
        let transport = match url.split_once("://") {
            Some(("https", _)) => Transport::Https,
            Some(("http", _)) => Transport::Http,
            Some(("ssh", _)) => Transport::Ssh,
            Some(("file", path)) if path.starts_with('/') => Transport::File,
            Some(_) => return refuse("only https, http, ssh, file and absolute paths are known"),
            None if url.starts_with('/') => Transport::File,
            None if is_scp_like(url) => Transport::Ssh,
            None => return refuse("it is neither a URL nor an absolute path"),
        };
        let upstream = Self {
            url: url.to_owned(),
            transport,
        };
        let Some(authority) = upstream.authority() else {
            return Ok(upstream);
        };
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        match transport {
            _ if host.is_empty() || host.starts_with('-') => refuse("it names no host"),
            Transport::Https | Transport::Http if !user.is_empty() => {
                refuse("credentials do not belong in it; use token_env, token_file or others")
            }
            _ if user.contains(':') => refuse("a password does not belong in it"),
            _ => Ok(upstream),
        }
    }

    /// As configured.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// Names the mirror.
    pub(super) fn digest(&self) -> String {
        hexadecimal(&Sha256::digest(self.url.as_bytes()))
    }

    /// Names a mirror that is not of all that the upstream has. No URL has a NUL.
    pub(super) fn digest_for(&self, part: &str) -> String {
        hexadecimal(&Sha256::digest(format!("{}\0{part}", self.url)))
    }

    /// The directory on this host, if it is one.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        match (self.transport, self.url.strip_prefix("file://")) {
            // git decodes URLs and takes paths as they are.
            (Transport::File, Some(path)) => Some(percent_decoded(path)),
            (Transport::File, None) => Some(PathBuf::from(&self.url)),
            _ => None,
        }
    }

    /// `https://host:port` in lower case and without the scheme's own port: what a token is for.
    pub(super) fn origin(&self) -> Option<String> {
        let default_port = match self.transport {
            Transport::Https => ":443",
            Transport::Http => ":80",
            Transport::Ssh | Transport::File => return None,
        };
        let host = self.authority()?.to_ascii_lowercase();
        let host = host.strip_suffix(default_port).unwrap_or(&host);
        Some(format!("{}://{host}", self.transport.protocol()))
    }

    /// Scheme, host, and for ssh the user, in one form: what credentials are for. None for files of this host.
    pub(super) fn place(&self) -> Option<String> {
        if self.transport != Transport::Ssh {
            return self.origin();
        }
        let authority = match self.authority() {
            Some(authority) => authority,
            None => self.url.split(':').next()?,
        };
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let host = host.to_ascii_lowercase();
        let host = host.strip_suffix(":22").unwrap_or(&host);
        Some(format!("ssh://{user}@{host}"))
    }

    /// What stands between `://` and the path.
    fn authority(&self) -> Option<&str> {
        let (_, rest) = self.url.split_once("://")?;
        match self.transport {
            Transport::File => None,
            _ => rest.split(['/', '?', '#']).next(),
        }
    }
}

/// An upstream with what opens it.
#[derive(Debug, Clone)]
pub(super) struct Access {
    upstream: Upstream,
    header: Option<Header>,
    ssh: Ssh,
    /// Who may vouch for an https host.
    authorities: Option<PathBuf>,
    /// Through which proxy an http or https host is reached: its URL, with its credentials.
    proxy: Option<Secret>,
}

/// What is sent to an http or https host.
#[derive(Clone)]
struct Header {
    /// `Basic …` or another scheme.
    value: String,
    /// What must be cut out of messages.
    secrets: Vec<String>,
}

/// Files that ssh is to use instead of those of the user who runs derrick.
#[derive(Debug, Clone, Default)]
struct Ssh {
    key: Option<PathBuf>,
    known_hosts: Option<PathBuf>,
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Access {
    /// Reads the repository's credentials, or asks for them, as far as its transport can use them.
    pub(super) async fn of(repository: &Repository) -> Result<Self, GitError> {
        let upstream = Upstream::parse(&repository.url)?;
        let mut access = Self {
            header: None,
            ssh: Ssh::default(),
            authorities: None,
            proxy: None,
            upstream,
        };
        if access.upstream.transport == Transport::File {
            return Ok(access);
        }
        let repository = repository.clone();
        let known_hosts = repository.known_hosts_file.clone();
        access.authorities.clone_from(&repository.ca_file);
        let read = tokio::task::spawn_blocking(move || {
            Ok::<_, GitError>((repository.credentials()?, repository.proxy()?))
        });
        let (credentials, proxy) = read
            .await
            .map_err(|error| GitError::io("read credentials", std::io::Error::other(error)))??;
        access.proxy = proxy;
        match (access.upstream.origin(), credentials) {
            (None, credentials) => {
                access.ssh.known_hosts = known_hosts;
                if let Some(Credentials::SshKey(key)) = credentials {
                    access.ssh.key = Some(key);
                }
            }
            (Some(origin), Some(credentials)) => {
                access.header = access.header_of(&origin, credentials).await?;
            }
            (Some(_), None) => {}
        }
        Ok(access)
    }

    async fn header_of(
        &self,
        origin: &str,
        credentials: Credentials,
    ) -> Result<Option<Header>, GitError> {
        let (command, username) = match credentials {
            // Hosts ignore the user's name beside a token; this one is what GitHub documents.
            Credentials::Token(token) => return Ok(Some(Header::basic("x-access-token", &token))),
            Credentials::Password { username, password } => {
                return Ok(Some(Header::basic(&username, &password)));
            }
            Credentials::SshKey(_) => return Ok(None),
            Credentials::Command { command, username } => (command, username),
        };
        let place = origin.split_once("://").unwrap_or(("https", origin));
        let username = username.as_deref();
        match credentials::ask(&command, place, username, credentials::PATIENCE).await {
            Ok(Answer::Password { username, password }) => {
                Ok(Some(Header::basic(&username, &password)))
            }
            Ok(Answer::Header { scheme, credential }) => {
                Ok(Some(Header::of_scheme(&scheme, &credential)))
            }
            Err(reason) => Err(GitError::CredentialCommand {
                url: self.upstream.url.clone(),
                reason,
            }),
        }
    }

    pub(super) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Whether an http or https host is sent credentials.
    pub(super) fn has_header(&self) -> bool {
        self.header.is_some()
    }

    /// A file of those who may vouch for the host, if there are others than this host's own.
    pub(super) fn authorities(&self) -> Option<&Path> {
        self.authorities.as_deref()
    }

    /// The URL of the proxy. Secret: for an environment, never for arguments.
    pub(super) fn proxy(&self) -> Option<&str> {
        self.proxy.as_ref().map(Secret::expose)
    }

    /// Whether ssh has a key of the repository's own.
    pub(super) fn has_key(&self) -> bool {
        self.ssh.key.is_some()
    }

    /// The same credentials for the place that the host redirected to, if they are for that place.
    pub(super) fn redirected(&self, to: &str) -> Option<Self> {
        let upstream = Upstream::parse(to).ok()?;
        let same = upstream.origin().is_some() && upstream.origin() == self.upstream.origin();
        same.then(|| Self {
            upstream,
            ..self.clone()
        })
    }

    /// The setting that gives the credentials to their own host. Secret: for an environment, never for
    /// arguments.
    pub(super) fn header(&self) -> Option<(String, String)> {
        let origin = self.upstream.origin()?;
        let value = &self.header.as_ref()?.value;
        Some((
            format!("http.{origin}/.extraHeader"),
            format!("Authorization: {value}"),
        ))
    }

    /// What an `Authorization` header to the upstream's own origin says. Secret.
    pub(super) fn authorization(&self) -> Option<&str> {
        self.header.as_ref().map(|header| header.value.as_str())
    }

    /// Further words of ssh's command line, with a blank before each. The config has seen to it that a shell
    /// and ssh take the paths as they are.
    pub(super) fn ssh_options(&self) -> String {
        let Ssh { key, known_hosts } = &self.ssh;
        let mut words = String::new();
        if let Some(key) = key {
            // What the user or the host configured could add keys.
            let only = "-F none -oIdentitiesOnly=yes -oIdentityAgent=none -oIdentityFile=";
            words.push_str(&format!(" {only}{}", key.display()));
        }
        if let Some(known_hosts) = known_hosts {
            let only = "-oGlobalKnownHostsFile=none -oUserKnownHostsFile=";
            words.push_str(&format!(" {only}{}", known_hosts.display()));
        }
        words
    }

    /// What must be cut out of messages.
    pub(super) fn secrets(&self) -> impl Iterator<Item = String> {
        let Ssh { key, known_hosts } = &self.ssh;
        // Names of files are the host's own business.
        let files = [key, known_hosts, &self.authorities].into_iter().flatten();
        let files = files.map(|path| path.display().to_string());
        let sent = self.header.iter().flat_map(|header| header.secrets.clone());
        sent.chain(files)
            .chain(self.proxy().into_iter().flat_map(secrets_of_proxy))
    }
}

impl Header {
    /// RFC 7617.
    fn basic(username: &str, password: &Secret) -> Self {
        let encoded = BASE64.encode(format!("{username}:{}", password.expose()));
        Self {
            value: format!("Basic {encoded}"),
            secrets: vec![encoded, password.expose().to_owned()],
        }
    }

    /// Of any scheme; the password in what is of the basic one is a secret by itself.
    fn of_scheme(scheme: &str, credential: &Secret) -> Self {
        let credential = credential.expose();
        let mut secrets = vec![credential.to_owned()];
        if scheme.eq_ignore_ascii_case("basic")
            && let Ok(decoded) = BASE64.decode(credential)
            && let Ok(decoded) = String::from_utf8(decoded)
            && let Some((_, password)) = decoded.split_once(':')
            && !password.is_empty()
        {
            secrets.push(password.to_owned());
        }
        Self {
            value: format!("{scheme} {credential}"),
            secrets,
        }
    }
}

/// The password in a proxy's URL, as it stands there and as it is meant.
fn secrets_of_proxy(url: &str) -> Vec<String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let Some((user, _)) = rest.rsplit_once('@') else {
        return Vec::new();
    };
    // What is cut out first must not be a part of what is cut out later.
    let password = user.split_once(':').map_or(user, |(_, password)| password);
    let decoded = percent_decoded(password).to_string_lossy().into_owned();
    [password.to_owned(), decoded]
        .into_iter()
        .filter(|secret| !secret.is_empty())
        .collect()
}

/// Hides the value.
impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Makes what git and the hosts said fit to be shown and logged.
#[derive(Debug, Clone, Default)]
pub(super) struct Scrub {
    pub(super) secrets: Vec<String>,
}

impl Scrub {
    /// `said` without secrets, without user names and passwords in URLs, and without characters that do not
    /// show, line ends apart. These go first: what is left could else put a secret together again.
    pub(super) fn clean(&self, said: &[u8]) -> String {
        let text = String::from_utf8_lossy(said);
        let is_kept = |char: &char| *char == '\n' || is_shown(*char);
        let mut text: String = text.chars().filter(is_kept).collect();
        for secret in &self.secrets {
            text = text.replace(secret, REDACTED);
        }
        without_userinfo(&text)
    }
}

/// `scheme://user:password@host` as `scheme://[redacted]@host`.
///
/// For http a lone user name may be a token, so it goes too; `ssh://git@host` stays.
fn without_userinfo(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        let end = after
            .find(|char: char| matches!(char, '/' | '?' | '#' | '\'' | '"') || char.is_whitespace())
            .unwrap_or(after.len());
        rest = after;
        if let Some((user, _)) = after[..end].rsplit_once('@')
            && (user.contains(':') || before.ends_with("http") || before.ends_with("https"))
        {
            clean.push_str(REDACTED);
            rest = &after[user.len()..];
        }
    }
    clean.push_str(rest);
    clean
}

/// `[user@]host:path` with a colon before the first slash, as git-fetch(1) has it; not `helper::url`.
fn is_scp_like(url: &str) -> bool {
    url.split_once(':').is_some_and(|(host, path)| {
        let name = host.rsplit('@').next().unwrap_or_default();
        let options = [host, name]
            .iter()
            .any(|part| part.starts_with('-') || part.is_empty());
        !options && !host.contains('/') && !path.is_empty() && !path.starts_with(':')
    })
}

fn percent_decoded(text: &str) -> PathBuf {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        let digit = |at: usize| rest.get(at).and_then(|&byte| char::from(byte).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).expect("two digits fit a byte"));
                bytes = &rest[2..];
            }
            _ => {
                decoded.push(first);
                bytes = rest;
            }
        }
    }
    PathBuf::from(OsString::from_vec(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_show_puts_no_secret_together() {
        let scrub = Scrub {
            secrets: vec!["canary-token".to_owned()],
        };
        for parts in ["\u{1}", "\u{7f}", "\u{9b}", "\u{ad}", "\u{200b}\u{202e}"] {
            let said = format!("no: can{parts}ary-to{parts}ken\n{parts}why");
            assert_eq!(scrub.clean(said.as_bytes()), "no: [redacted]\nwhy");
        }
    }

    #[test]
    fn urls_are_taken_apart() {
        for (url, transport, origin) in [
            (
                "https://Example.org/a.git",
                Transport::Https,
                Some("https://example.org"),
            ),
            (
                "https://example.org:443/a",
                Transport::Https,
                Some("https://example.org"),
            ),
            (
                "http://[::1]:8080/a b",
                Transport::Http,
                Some("http://[::1]:8080"),
            ),
            ("ssh://git@example.org:22/a", Transport::Ssh, None),
            ("git@example.org:a/b.git", Transport::Ssh, None),
            ("file:///a%20b", Transport::File, None),
            ("/a b", Transport::File, None),
        ] {
            let upstream = Upstream::parse(url).expect(url);
            assert_eq!(upstream.transport(), transport, "{url}");
            assert_eq!(upstream.origin().as_deref(), origin, "{url}");
            assert_eq!(upstream.url(), url);
        }
        let directory = |url| Upstream::parse(url).expect(url).directory();
        assert_eq!(
            directory("file:///a%20b%zz"),
            Some(PathBuf::from("/a b%zz"))
        );
        assert_eq!(directory("/a%20b"), Some(PathBuf::from("/a%20b")));
    }

    #[test]
    fn what_could_run_something_or_holds_credentials_is_refused() {
        for url in [
            "ext::sh -c true",
            "ext::ssh://a/b",
            "fd::3",
            "git://example.org/a",
            "ftp://example.org/a",
            "-oProxyCommand=x:a",
            "git@-oProxyCommand=x:a",
            "ssh://-oProxyCommand=x/a",
            "ssh://git:canary@example.org/a",
            "https://canary@example.org/a",
            "https://user:canary@example.org/a",
            "https:///a",
            "file://host/a",
            "relative/path",
            "./a:b",
            "",
            "https://example.org/a\nb",
        ] {
            let error = Upstream::parse(url).expect_err(url);
            assert!(matches!(error, GitError::Url { .. }), "{url}");
            assert!(!error.to_string().contains("canary"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_token_is_only_for_its_own_origin() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "canary\n").expect("writes");
        let repository = |url| {
            let fields = serde_json::json!({"url": url, "path": "/r", "token_file": file.path()});
            serde_json::from_value::<Repository>(fields).expect("a repository")
        };
        let ssh = Access::of(&repository("ssh://git@example.org/old")).await;
        assert!(matches!(ssh, Err(GitError::Credentials(_))), "{ssh:?}");
        let file = Access::of(&repository("/old")).await.expect("needs none");
        assert!(!file.has_header() && file.header().is_none());
        let access = Access::of(&repository("https://example.org/old"))
            .await
            .expect("the token is read");
        assert!(access.redirected("https://example.org/new/").is_some());
        for elsewhere in [
            "http://example.org/old",
            "https://example.com/old",
            "https://example.org:8443/",
            "/old",
        ] {
            assert!(access.redirected(elsewhere).is_none(), "{elsewhere}");
        }
        let (key, value) = access.header().expect("a header");
        assert_eq!(key, "http.https://example.org/.extraHeader");
        assert_eq!(value, "Authorization: Basic eC1hY2Nlc3MtdG9rZW46Y2FuYXJ5");
        let shown = format!("{access:?}");
        assert!(
            !shown.contains("canary") && !shown.contains("eC1h"),
            "{shown}"
        );
    }

    #[test]
    fn the_password_in_basic_credentials_is_a_secret_by_itself() {
        let header = |scheme: &str, credential: &str| {
            let credential = Secret::from_bytes(credential.into()).expect("a line");
            Header::of_scheme(scheme, &credential)
        };
        // "ada:canary"
        let basic = header("basic", "YWRhOmNhbmFyeQ==");
        assert_eq!(basic.value, "basic YWRhOmNhbmFyeQ==");
        assert_eq!(basic.secrets, ["YWRhOmNhbmFyeQ==", "canary"]);
        for (scheme, credential) in [
            ("Bearer", "YWRhOmNhbmFyeQ=="),
            ("Basic", "?"),
            ("Basic", "YWRhOg=="),
        ] {
            assert_eq!(header(scheme, credential).secrets, [credential]);
        }
    }

    #[tokio::test]
    async fn ssh_is_told_of_the_repository_s_own_files_and_no_others() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::TempDir::with_prefix("keys").expect("a directory");
        let (key, hosts) = (dir.path().join("key"), dir.path().join("hosts"));
        std::fs::write(&key, "x").expect("writes");
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("sets");
        let options = async |key: Option<&PathBuf>, hosts: Option<&PathBuf>| {
            let fields = serde_json::json!({
                "url": "git@h:r", "path": "/r", "ssh_key_file": key, "known_hosts_file": hosts,
            });
            let repository: Repository = serde_json::from_value(fields).expect("a repository");
            let access = Access::of(&repository).await.expect("is read");
            assert_eq!(access.has_key(), key.is_some());
            assert!(access.header().is_none());
            access.ssh_options()
        };
        let of_key = format!(
            " -F none -oIdentitiesOnly=yes -oIdentityAgent=none -oIdentityFile={}",
            key.display()
        );
        let of_hosts = format!(
            " -oGlobalKnownHostsFile=none -oUserKnownHostsFile={}",
            hosts.display()
        );
        assert_eq!(options(None, None).await, "");
        assert_eq!(options(Some(&key), None).await, of_key);
        assert_eq!(options(None, Some(&hosts)).await, of_hosts);
        let both = options(Some(&key), Some(&hosts)).await;
        assert_eq!(both, format!("{of_key}{of_hosts}"));
    }

    #[test]
    fn the_password_of_a_proxy_is_cut_out_as_it_stands_and_as_it_is_meant() {
        for (url, secrets) in [
            ("http://proxy:3128", &[][..]),
            ("http://ada:a%40b@proxy:3128", &["a%40b", "a@b"]),
            ("http://ada:@proxy", &[]),
            ("https://lonely@proxy/", &["lonely", "lonely"]),
        ] {
            assert_eq!(secrets_of_proxy(url), secrets, "{url}");
        }
    }

    #[test]
    fn messages_are_scrubbed() {
        let scrub = Scrub {
            secrets: vec!["Y2FuYXJ5".into(), "canary".into()],
        };
        for (said, shown) in [
            ("fatal: canary Y2FuYXJ5", "fatal: [redacted] [redacted]"),
            ("at 'https://user:p@ss@h/x'", "at 'https://[redacted]@h/x'"),
            (
                "http://tok@h http://a:b@c",
                "http://[redacted]@h http://[redacted]@c",
            ),
            (
                "ssh://git@h/x ssh://a:b@h/x",
                "ssh://git@h/x ssh://[redacted]@h/x",
            ),
            ("https://h/a@b", "https://h/a@b"),
            ("a\x1b[31mb\u{9b}c\nd", "a[31mbc\nd"),
        ] {
            assert_eq!(scrub.clean(said.as_bytes()), shown);
        }
    }
}
