//! Where the large files of a repository are, and where they may come from.
//!
//! `.lfsconfig` is whoever's who commits, and servers say where each file is: both lead only to the repository's
//! own host and to what the config allows beside that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::super::error::GitError;
use super::super::http::{Credentials, without_query};
use super::super::mirror::Mirror;
use super::super::reference::CommitId;
use super::super::upstream::{Access, Transport, Upstream};
use super::LfsError;
use crate::config::Repository;

/// The most that `.lfsconfig` may have, in bytes.
const LARGEST: u64 = 1 << 20;

/// Headers that a server may want with a request, at the most.
const HEADERS: usize = 32;

/// Where large files of a repository may come from.
#[derive(Debug)]
pub(super) struct Allowed {
    own: Own,
    prefixes: Vec<Url>,
}

/// What is allowed in any case.
#[derive(Debug)]
enum Own {
    /// Scheme, host and port.
    Origin(Url),
    /// Of an ssh host its https.
    Host(String),
    /// Files of this host are no place of the web.
    Nothing,
}

impl Allowed {
    pub(super) fn by(repository: &Repository) -> Result<Self, GitError> {
        let upstream = Upstream::parse(&repository.url)?;
        let own = match upstream.transport() {
            Transport::Https | Transport::Http => {
                let origin = upstream.origin();
                let origin = origin.and_then(|origin| Url::parse(&origin).ok());
                origin.map_or(Own::Nothing, Own::Origin)
            }
            Transport::Ssh => host_of(&upstream).map_or(Own::Nothing, Own::Host),
            Transport::File => Own::Nothing,
        };
        let prefixes = repository.lfs_urls.iter().flatten();
        Ok(Self {
            own,
            prefixes: prefixes
                .filter_map(|prefix| Url::parse(prefix).ok())
                .collect(),
        })
    }

    pub(super) fn allows(&self, url: &Url) -> bool {
        if !matches!(url.scheme(), "http" | "https")
            || !url.username().is_empty()
            || url.password().is_some()
        {
            return false;
        }
        let own = match &self.own {
            Own::Origin(origin) => origin.origin() == url.origin(),
            Own::Host(host) => url.scheme() == "https" && url.host_str() == Some(host),
            Own::Nothing => false,
        };
        own || self.prefixes.iter().any(|prefix| is_below(prefix, url))
    }
}

/// Whether a URL begins with another one, up to a slash. Its path has no step up left that a server could take.
fn is_below(prefix: &Url, url: &Url) -> bool {
    if prefix.origin() != url.origin() {
        return false;
    }
    let (prefix, path) = (prefix.path(), url.path());
    if prefix == "/" {
        return true;
    }
    let hidden = path.to_ascii_lowercase();
    let is_odd = ["%2e", "%2f", "%5c"]
        .iter()
        .any(|code| hidden.contains(code));
    let rest = path.strip_prefix(prefix);
    !is_odd
        && rest
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
}

/// The name of an ssh host, in lower case.
fn host_of(upstream: &Upstream) -> Option<String> {
    let place = upstream.place()?;
    let host = place.strip_prefix("ssh://")?.rsplit_once('@')?.1;
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    };
    Some(host.to_owned())
}

/// A server of large files.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) credentials: Credentials,
    pub(super) lasting: Lasting,
}

/// For how long a server is what it was said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasting {
    Always,
    /// An ssh host said so: until the server refuses what opens it, and no longer than this, if it is known.
    ForATime(Option<Instant>),
}

/// So long before its end something is not begun with: the clocks differ, and a request takes its time.
const MARGIN: Duration = Duration::from_secs(5);

impl Lasting {
    /// Whether it is over.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::ForATime(Some(end)) if Instant::now() + MARGIN >= end)
    }
}

impl Endpoint {
    /// The one that the commit named, else the one that the upstream's host has, for `operation`: `download` or
    /// `upload`; none for files of this host.
    pub(super) async fn find(
        mirror: &Mirror,
        access: &Access,
        (allowed, named): (&Allowed, Option<String>),
        operation: &str,
    ) -> Result<Option<Self>, GitError> {
        let upstream = access.upstream();
        if let Some(named) = named {
            let not_allowed = |target: String| LfsError::NotAllowed {
                url: upstream.url().to_owned(),
                what: "the .lfsconfig",
                target,
            };
            let shown = mirror.client.scrub(access).clean(named.as_bytes());
            let shown = shown.replace('\n', " ");
            let url = Url::parse(named.trim_end_matches('/')).ok();
            let url = url.filter(|url| allowed.allows(url));
            return Ok(Some(Self {
                url: url.ok_or_else(|| not_allowed(shown))?,
                headers: HeaderMap::new(),
                credentials: Credentials::Repository,
                lasting: Lasting::Always,
            }));
        }
        match upstream.transport() {
            Transport::File => Ok(None),
            Transport::Https | Transport::Http => Ok(Some(Self {
                url: derived(upstream.url()).ok_or_else(|| odd(upstream, "its URL is none"))?,
                headers: HeaderMap::new(),
                credentials: Credentials::Repository,
                lasting: Lasting::Always,
            })),
            Transport::Ssh => by_ssh(mirror, access, allowed, operation).await.map(Some),
        }
    }
}

/// As git-lfs derives it from a URL.
fn derived(url: &str) -> Option<Url> {
    let url = url.trim_end_matches('/');
    let suffix = match url.ends_with(".git") {
        true => "/info/lfs",
        false => ".git/info/lfs",
    };
    Url::parse(&format!("{url}{suffix}")).ok()
}

fn odd(upstream: &Upstream, detail: &str) -> GitError {
    let odd = LfsError::Odd {
        url: upstream.url().to_owned(),
        endpoint: "its own".to_owned(),
        detail: detail.to_owned(),
    };
    odd.into()
}

/// The URL of a server in the commit's `.lfsconfig`. Nothing else in there is looked at.
pub(super) async fn named(mirror: &Mirror, commit: &CommitId) -> Result<Option<String>, GitError> {
    let failed = |failure| GitError::local("read .lfsconfig", failure);
    let blob = mirror
        .git()
        .args(["rev-parse", "--verify", "--quiet"])
        .arg(format!("{commit}:.lfsconfig"));
    let blob = match blob.output().await {
        Ok(blob) => String::from_utf8_lossy(&blob).trim().to_owned(),
        Err(failure) if failure.is_an_answer() => return Ok(None),
        Err(failure) => return Err(failed(failure)),
    };
    let upstream = &mirror.upstream;
    let size = mirror.git().args(["cat-file", "-s", &blob]);
    let size = size.output().await.map_err(failed)?;
    let size = String::from_utf8_lossy(&size).trim().parse::<u64>();
    if size.is_ok_and(|size| size > LARGEST) {
        return Err(odd(upstream, "its .lfsconfig is larger than 1 MiB"));
    }
    // Without includes: they could name files of the host.
    let settings = mirror
        .git()
        .args(["config", "--no-includes", &format!("--blob={blob}")])
        .args(["-z", "--list"]);
    let settings = match settings.output().await {
        Ok(settings) => settings,
        Err(failure) if failure.is_an_answer() => {
            return Err(odd(upstream, "git cannot read its .lfsconfig"));
        }
        Err(failure) => return Err(failed(failure)),
    };
    Ok(url_of(&settings))
}

/// Reads what `git config -z --list` printed: a key, a line's end and the value.
fn url_of(settings: &[u8]) -> Option<String> {
    let settings = String::from_utf8_lossy(settings);
    let value = |key: &str| {
        let mut lines = settings
            .split('\0')
            .filter_map(|line| line.split_once('\n'));
        lines
            .rfind(|(name, _)| *name == key)
            .map(|(_, value)| value.to_owned())
    };
    value("lfs.url").or_else(|| value("remote.origin.lfsurl"))
}

/// What `git-lfs-authenticate` answers; see docs/api/server-discovery.md of git-lfs.
#[derive(Debug, Default, Deserialize)]
struct Authenticated {
    #[serde(default)]
    href: Option<String>,
    #[serde(default)]
    header: BTreeMap<String, String>,
    /// Seconds.
    #[serde(default)]
    expires_in: Option<f64>,
    /// RFC 3339.
    #[serde(default)]
    expires_at: Option<String>,
}

impl Authenticated {
    /// For how long it is true from `now` on, if that is said; the seconds count where both are. An end that is
    /// past is none: hosts that know of none say so, and another clock may be wrong.
    fn lasts(&self, now: SystemTime) -> Option<Duration> {
        let told = self
            .expires_in
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .filter(|lasts| !lasts.is_zero());
        told.or_else(|| {
            let end = humantime::parse_rfc3339(self.expires_at.as_deref()?).ok()?;
            end.duration_since(now)
                .ok()
                .filter(|lasts| !lasts.is_zero())
        })
    }
}

/// Asks the ssh host for a server and what opens it.
pub(super) async fn by_ssh(
    mirror: &Mirror,
    access: &Access,
    allowed: &Allowed,
    operation: &str,
) -> Result<Endpoint, GitError> {
    let upstream = access.upstream();
    let (port, target, path) =
        ssh_words(upstream.url()).ok_or_else(|| odd(upstream, "its URL names no host or path"))?;
    let mut call = mirror.client.ssh(access);
    if let Some(port) = port {
        call = call.args(["-p", &port]);
    }
    let command = format!("git-lfs-authenticate {} {operation}", quoted(&path));
    let asked = Instant::now();
    let answer = call.args(["--", &target, &command]).output().await;
    let answer = answer
        .map_err(|failure| GitError::remote("ask for the large files of", access, failure))?;
    let answer: Authenticated = serde_json::from_slice(&answer)
        .map_err(|_| odd(upstream, "git-lfs-authenticate says no JSON"))?;
    let lasts = answer.lasts(SystemTime::now());
    let url = match answer.href.as_deref().filter(|href| !href.is_empty()) {
        Some(href) => Url::parse(href.trim_end_matches('/')).ok(),
        None => host_of(upstream)
            .and_then(|host| derived(&format!("https://{host}/{}", path.trim_start_matches('/')))),
    };
    let url = url.ok_or_else(|| odd(upstream, "git-lfs-authenticate names no URL"))?;
    if !allowed.allows(&url) {
        let shown = without_query(&url);
        let not_allowed = LfsError::NotAllowed {
            url: upstream.url().to_owned(),
            what: "what the ssh host says",
            target: mirror.client.scrub(access).clean(shown.as_str().as_bytes()),
        };
        return Err(not_allowed.into());
    }
    Ok(Endpoint {
        url,
        headers: headers(&answer.header),
        credentials: Credentials::Own,
        // What no clock reaches has no end.
        lasting: Lasting::ForATime(lasts.and_then(|lasts| asked.checked_add(lasts))),
    })
}

/// The port, `user@host` and the path of an ssh URL, as git takes it apart.
fn ssh_words(url: &str) -> Option<(Option<String>, String, String)> {
    let Some(rest) = url.strip_prefix("ssh://") else {
        let (target, path) = url.split_once(':')?;
        return Some((None, target.to_owned(), path.to_owned()));
    };
    let (target, path) = rest.split_at(rest.find('/')?);
    let path = match path.strip_prefix("/~") {
        Some(home) => format!("~{home}"),
        None => path.to_owned(),
    };
    let after_user = target.rfind('@').map_or(0, |at| at + 1);
    let (target, port) = match target[after_user..].rsplit_once(':') {
        Some((_, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            let end = target.len() - port.len() - 1;
            (&target[..end], Some(port.to_owned()))
        }
        _ => (target, None),
    };
    // `[::1]` is so only beside a port.
    let target = target.replace(['[', ']'], "");
    Some((port, target, path))
}

/// A word for the shell of the ssh host.
fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@~".contains(c);
    if path.chars().all(is_plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', "'\\''"))
    }
}

/// What goes with a request because a server said so; nothing that says where it goes or how long it is.
pub(super) fn headers(wanted: &BTreeMap<String, String>) -> HeaderMap {
    const OURS: [&str; 14] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "upgrade",
        "expect",
        "te",
        "trailer",
        "range",
        "accept-encoding",
        "proxy-authorization",
        "proxy-connection",
        "user-agent",
    ];
    let header = |(name, value): (&String, &String)| {
        let name: HeaderName = name.to_ascii_lowercase().parse().ok()?;
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        (!OURS.contains(&name.as_str())).then_some((name, value))
    };
    wanted.iter().filter_map(header).take(HEADERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(url: &str, prefixes: &[&str]) -> Allowed {
        let fields =
            serde_json::json!({ "url": url, "path": "/r", "lfs": true, "lfs_urls": prefixes });
        let repository: Repository = serde_json::from_value(fields).expect("a repository");
        Allowed::by(&repository).expect("a URL")
    }

    #[test]
    fn large_files_come_from_the_own_host_and_from_what_is_allowed() {
        for (repository, prefixes, url) in [
            ("https://h/a.git", &[][..], "https://H:443/x?y"),
            ("http://h:8080/a.git", &[], "http://h:8080/x"),
            ("ssh://git@h:2222/a", &[], "https://h/a.git/info/lfs"),
            ("git@h:a", &[], "https://h:8443/a"),
            ("/srv/a", &["https://h"], "https://h/x%2Fy"),
            ("https://h/a", &["https://s/b"], "https://s/b"),
            ("https://h/a", &["https://s/b"], "https://s/b/c?x=%2F"),
            ("https://h/a", &["https://s/b/"], "https://s/b/c"),
            ("https://h/a", &["https://s:443/b/"], "https://S/b/x/../c"),
        ] {
            let url = Url::parse(url).expect(url);
            assert!(
                allowed(repository, prefixes).allows(&url),
                "{repository} {url}"
            );
        }
        for (repository, prefixes, url) in [
            ("https://h/a.git", &[][..], "http://h/x"),
            ("https://h/a.git", &[], "https://h:8443/x"),
            ("https://h/a.git", &[], "https://h.evil/x"),
            ("https://h/a.git", &[], "https://u@h/x"),
            ("https://h/a.git", &[], "https://u:p@h/x"),
            ("https://h/a.git", &[], "file:///etc/passwd"),
            ("https://h/a.git", &[], "ftp://h/x"),
            ("git@h:a", &[], "http://h/a"),
            ("git@h:a", &[], "https://evil/a"),
            ("/srv/a", &[], "https://localhost/x"),
            ("/srv/a", &[], "file:///srv/a"),
            ("https://h/a", &["https://s/b"], "https://s/bc"),
            ("https://h/a", &["https://s/b"], "https://s/b/../c"),
            ("https://h/a", &["https://s/b"], "https://s/b/%2e%2e/c"),
            ("https://h/a", &["https://s/b"], "https://s/b/..%2fc"),
            ("https://h/a", &["https://s"], "https://s.evil/"),
            ("https://h/a", &["https://s"], "https://s@evil/"),
        ] {
            let url = Url::parse(url).expect(url);
            assert!(
                !allowed(repository, prefixes).allows(&url),
                "{repository} {url}"
            );
        }
    }

    #[test]
    fn servers_are_found_as_git_lfs_finds_them() {
        for (url, endpoint) in [
            ("https://h/a", "https://h/a.git/info/lfs"),
            ("https://h/a/", "https://h/a.git/info/lfs"),
            ("https://h/a.git", "https://h/a.git/info/lfs"),
        ] {
            assert_eq!(derived(url).map(String::from).as_deref(), Some(endpoint));
        }
        let settings =
            b"lfs.url\nhttps://a/\0remote.origin.lfsurl\nhttps://b\0lfs.url\nhttps://c\0";
        assert_eq!(url_of(settings).as_deref(), Some("https://c"));
        let settings = b"core.hooksPath\n/x\0remote.origin.lfsurl\nhttps://b\0alone\0";
        assert_eq!(url_of(settings).as_deref(), Some("https://b"));
        assert_eq!(url_of(b"lfs.fetchinclude\n*\0"), None);
    }

    #[test]
    fn what_an_ssh_host_says_is_true_for_as_long_as_it_says() {
        let now = humantime::parse_rfc3339("2026-02-03T04:05:06Z").expect("a time");
        for (said, lasts) in [
            ("{}", None),
            (r#"{"expires_in":60}"#, Some(60)),
            (
                r#"{"expires_in":60.0,"expires_at":"2026-02-03T04:05:07Z"}"#,
                Some(60),
            ),
            (r#"{"expires_at":"2026-02-03T04:07:06Z"}"#, Some(120)),
            (
                r#"{"expires_in":0,"expires_at":"2026-02-03T04:07:06Z"}"#,
                Some(120),
            ),
            (r#"{"expires_in":null,"expires_at":null}"#, None),
            // Hosts that know of no end, and those that are wrong.
            (
                r#"{"expires_in":0,"expires_at":"0001-01-01T00:00:00Z"}"#,
                None,
            ),
            (
                r#"{"expires_in":-1,"expires_at":"2026-02-03T04:05:06Z"}"#,
                None,
            ),
            (r#"{"expires_in":1e300,"expires_at":"tomorrow"}"#, None),
        ] {
            let answer: Authenticated = serde_json::from_str(said).expect(said);
            assert_eq!(answer.lasts(now), lasts.map(Duration::from_secs), "{said}");
        }
        for (lasting, is_over) in [
            (Lasting::Always, false),
            (Lasting::ForATime(None), false),
            (Lasting::ForATime(Some(Instant::now() + MARGIN)), true),
            (
                Lasting::ForATime(Some(Instant::now() + MARGIN * 100)),
                false,
            ),
        ] {
            assert_eq!(lasting.is_over(), is_over, "{lasting:?}");
        }
    }

    #[test]
    fn what_an_ssh_host_is_asked_runs_nothing_else_there() {
        for (url, port, target, path) in [
            ("ssh://git@h/a b.git", None, "git@h", "/a b.git"),
            ("ssh://git@h:2222/a", Some("2222"), "git@h", "/a"),
            ("ssh://h/~ada/a", None, "h", "~ada/a"),
            ("ssh://git@[::1]:22/a", Some("22"), "git@::1", "/a"),
            ("git@h:a/b.git", None, "git@h", "a/b.git"),
        ] {
            let words = ssh_words(url).expect(url);
            let expected = (port.map(str::to_owned), target.to_owned(), path.to_owned());
            assert_eq!(words, expected, "{url}");
        }
        for (path, word) in [
            ("/a/b-c.git", "/a/b-c.git"),
            ("~ada/x", "~ada/x"),
            ("/a;id", "'/a;id'"),
            ("/a'$(id)", "'/a'\\''$(id)'"),
        ] {
            assert_eq!(quoted(path), word);
        }
    }

    #[test]
    fn no_header_of_a_server_changes_where_a_request_goes() {
        let wanted = [
            ("Authorization", "Basic x"),
            ("Host", "evil"),
            ("Content-Length", "1"),
            ("Range", "bytes=0-"),
            ("X-Odd", "a\r\nHost: evil"),
            ("b a d", "x"),
        ];
        let wanted = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let headers = headers(&wanted.into());
        assert_eq!(
            headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["authorization"]
        );
    }
}
