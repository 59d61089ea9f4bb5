//! The way to a repository's host: through which proxy, and who may vouch for its certificate.
//!
//! A proxy's URL may hold a password where it does not stand in the config itself, and is a secret as a whole.

use super::credentials::{Place, Wrong, absolute, is_http, open};
use super::rules::Environment;
use super::{Repository, Secret};

/// Checks what the config says of the way, and that it can be had.
pub(super) fn check(repository: &Repository, environment: Environment<'_>) -> Result<(), Wrong> {
    if let Some(file) = &repository.ca_file {
        let field = "ca_file";
        if !repository.url.starts_with("https://") {
            return Err((field, "has no use: only https has certificates".to_owned()));
        }
        absolute(file).map_err(|reason| (field, reason))?;
        let content = std::io::read_to_string(
            open(file).map_err(|error| (field, format!("cannot be read: {error}")))?,
        );
        if !content.is_ok_and(|content| content.contains("-----BEGIN CERTIFICATE-----")) {
            let reason = "has no certificate; it must have some as PEM, from \"-----BEGIN CERTIFICATE-----\" on";
            return Err((field, reason.to_owned()));
        }
    }
    proxy(repository, environment).map(drop)
}

/// The URL of the proxy, with its credentials.
pub(super) fn get(
    repository: &Repository,
    environment: Environment<'_>,
) -> Result<Option<Secret>, String> {
    proxy(repository, environment).map_err(|(field, reason)| format!("{field} {reason}"))
}

fn proxy(repository: &Repository, environment: Environment<'_>) -> Result<Option<Secret>, Wrong> {
    let Repository {
        proxy,
        proxy_env,
        proxy_file,
        ..
    } = repository;
    let present = [
        proxy.as_ref().map(|_| "proxy"),
        proxy_env.as_ref().map(|_| "proxy_env"),
        proxy_file.as_ref().map(|_| "proxy_file"),
    ];
    let mut present = present.into_iter().flatten();
    let Some(field) = present.next() else {
        return Ok(None);
    };
    if let Some(second) = present.next() {
        let reason = format!("is there beside {field}; there is one proxy at most");
        return Err((second, reason));
    }
    if !is_http(&repository.url) {
        let reason = "has no use: only https and http repositories are reached through a proxy";
        return Err((field, reason.to_owned()));
    }
    let url = match (proxy, proxy_env, proxy_file) {
        (Some(url), ..) => {
            if url.contains('@') {
                let reason = "contains credentials; name the place of the whole URL in proxy_env or proxy_file";
                return Err((field, reason.to_owned()));
            }
            Secret::from_bytes(url.clone().into_bytes())
                .map_err(|reason| (field, reason.to_owned()))?
        }
        (None, Some(name), _) => Place::Variable(field, name).read(environment)?,
        (None, None, Some(path)) => Place::File(field, path).read(environment)?,
        (None, None, None) => return Ok(None),
    };
    if is_proxy(url.expose()) {
        return Ok(Some(url));
    }
    let what = if proxy.is_some() {
        "is"
    } else {
        "leads to what is"
    };
    let reason =
        format!("{what} no URL of a proxy; it must be as \"http://host:port\" or with https");
    Err((field, reason))
}

fn is_proxy(url: &str) -> bool {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    let Some(rest) = rest.map(|rest| rest.strip_suffix('/').unwrap_or(rest)) else {
        return false;
    };
    let (user, host) = rest.rsplit_once('@').unwrap_or(("", rest));
    let odd = |c: char| c.is_whitespace() || "/?#\\@".contains(c);
    !host.is_empty() && !host.starts_with([':', '-']) && !host.contains(odd) && !user.contains(odd)
}
