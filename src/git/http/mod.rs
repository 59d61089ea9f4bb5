//! HTTP requests of the provider's own: to servers of large files, and where a redirect is to be followed.
//!
//! They go where git's own requests go, by the same proxy and with the same trust, and tell as little: a
//! repository's credentials are for its own origin alone. Redirects are followed here, one by one, and not by
//! the library: each leads to a place that is allowed, and none takes anything secret to another one.

mod trust;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Client, Method, NoProxy, Proxy, Response, StatusCode, Url};

use super::error::GitError;
use super::mirror::blocking;
use super::process;
use super::upstream::{Access, Scrub};

/// Redirects in a row, at the most.
const REDIRECTS: usize = 5;

/// How long a host may take to answer to a connection, as for ssh.
const CONNECTING: Duration = Duration::from_secs(30);

/// The most of what a host says that an error repeats, in bytes.
const DETAIL: usize = 300;

const PREPARE: &str = "prepare requests over http";

/// What requests for one repository have in common.
#[derive(Debug)]
pub(super) struct Web {
    client: Client,
    access: Access,
    scrub: Scrub,
    stall: Duration,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    /// For this URL's origin alone.
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
    pub(super) credentials: Credentials,
}

/// Whether the repository's credentials go with a request to its own origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credentials {
    Repository,
    /// What opens it is among its headers, or nothing is needed.
    Own,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// It leads where nothing may be had from: the URL, without a query.
    NotAllowed(String),
    /// The connection broke or stalled; another try may do.
    Broken(String),
    /// There came to be no connection: to which origin, and why; another try may do.
    Unreached(String, String),
    /// Another try does not help.
    Git(GitError),
}

impl Web {
    pub(super) async fn new(access: &Access, client: &process::Client) -> Result<Self, GitError> {
        let authorities = access.authorities().map(Path::to_owned);
        let tls = blocking(PREPARE, move || trust::settings(authorities)).await?;
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECTING)
            .user_agent(concat!("derrick/", env!("CARGO_PKG_VERSION")))
            .no_proxy();
        for proxy in proxies(access, |name| std::env::var(name).ok()) {
            builder = builder.proxy(proxy.map_err(|_| GitError::Other {
                attempt: "use the proxy".to_owned(),
                detail: "its URL is none; see proxy, proxy_env and proxy_file".to_owned(),
            })?);
        }
        let built = builder.build().map_err(|error| GitError::Other {
            attempt: PREPARE.to_owned(),
            detail: error.without_url().to_string(),
        })?;
        Ok(Self {
            client: built,
            access: access.clone(),
            scrub: client.scrub(access),
            stall: client.stall(),
        })
    }

    /// The answer to a request, whatever its status, but for redirects, which are followed.
    pub(super) async fn send(
        &self,
        request: &Request,
        allows: impl Fn(&Url) -> bool,
    ) -> Result<Response, Failed> {
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS {
            let plain = matches!(url.scheme(), "http" | "https")
                && url.username().is_empty()
                && url.password().is_none();
            if !plain || !allows(&url) {
                return Err(Failed::NotAllowed(self.shown(&url)));
            }
            let sent = self
                .client
                .request(request.method.clone(), url.clone())
                .headers(self.headers(request, &url));
            let sent = match &request.body {
                Some(body) => sent.body(body.clone()),
                None => sent,
            };
            let answer = match tokio::time::timeout(self.stall, sent.send()).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => return Err(self.failed(&error, &url)),
                Err(_) => return Err(Failed::Broken("nothing came".to_owned())),
            };
            let status = answer.status();
            if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
                return Err(Failed::Git(self.proxy_refused()));
            }
            let followed = matches!(status.as_u16(), 301 | 302 | 307 | 308)
                || status == StatusCode::SEE_OTHER && request.method == Method::GET;
            if !followed {
                return Ok(answer);
            }
            let to = answer
                .headers()
                .get(LOCATION)
                .and_then(|to| to.to_str().ok())
                .and_then(|to| url.join(to).ok());
            // What is encrypted is not asked for in the clear.
            url = match to {
                Some(to) if url.scheme() == "http" || to.scheme() == "https" => to,
                Some(to) => return Err(Failed::NotAllowed(self.shown(&to))),
                None => return Err(Failed::Broken("it redirects to nowhere".to_owned())),
            };
        }
        Err(Failed::Broken("it redirects for ever".to_owned()))
    }

    /// The next piece of an answer's body; none at its end.
    pub(super) async fn piece(&self, answer: &mut Response) -> Result<Option<Bytes>, Failed> {
        match tokio::time::timeout(self.stall, answer.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => {
                let url = answer.url().clone();
                Err(self.failed(&error, &url))
            }
            Err(_) => Err(Failed::Broken("nothing more came".to_owned())),
        }
    }

    /// How long a transfer may stand still.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// The whole of an answer's body, of which there is `most` bytes, and which is there soon.
    pub(super) async fn body(&self, mut answer: Response, most: usize) -> Result<Vec<u8>, Failed> {
        let whole = async {
            let mut body = Vec::new();
            while let Some(piece) = self.piece(&mut answer).await? {
                body.extend_from_slice(&piece);
                if body.len() > most {
                    return Err(Failed::Broken(format!("it answers more than {most} bytes")));
                }
            }
            Ok(body)
        };
        let slow = |_| Failed::Broken("its answer comes too slowly".to_owned());
        tokio::time::timeout(self.stall, whole)
            .await
            .map_err(slow)?
    }

    /// What a host said, fit to be shown: one line of it.
    pub(super) fn said(&self, text: &str) -> String {
        let text = self.scrub.clean(text.as_bytes()).replace('\n', " ");
        let text = text.trim();
        let end = (0..=DETAIL.min(text.len()))
            .rev()
            .find(|&at| text.is_char_boundary(at));
        text[..end.unwrap_or_default()].to_owned()
    }

    /// A URL, fit to be shown: a query may open what it is of.
    pub(super) fn shown(&self, url: &Url) -> String {
        self.said(without_query(url).as_str())
    }

    fn headers(&self, request: &Request, url: &Url) -> HeaderMap {
        let same = url.origin() == request.url.origin();
        let mut headers = if same {
            request.headers.clone()
        } else {
            // What kind of thing is sent and wanted is no secret.
            let harmless = ["accept", "content-type", "range"];
            let kept = harmless.into_iter().filter_map(|name| {
                Some((
                    HeaderName::from_static(name),
                    request.headers.get(name)?.clone(),
                ))
            });
            kept.collect()
        };
        let own = self.access.upstream().origin();
        let own = own.and_then(|own| Url::parse(&own).ok());
        let is_own = own.is_some_and(|own| own.origin() == url.origin());
        if request.credentials == Credentials::Repository
            && is_own
            && !headers.contains_key(AUTHORIZATION)
            && let Some(value) = self.access.authorization()
            && let Ok(mut value) = HeaderValue::from_str(value)
        {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        headers
    }

    /// What became of a request to `asked`.
    fn failed(&self, error: &reqwest::Error, asked: &Url) -> Failed {
        let mut said = Vec::new();
        let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
        while let Some(error) = next {
            said.push(error.to_string());
            next = error.source();
        }
        said.dedup();
        let detail = self.said(&said.join(": "));
        let url = asked.origin().ascii_serialization();
        let says = |text: &str| detail.to_ascii_lowercase().contains(text);
        if says("invalid peer certificate") {
            Failed::Git(GitError::Unverified { url, detail })
        } else if says("proxy auth") {
            Failed::Git(self.proxy_refused())
        } else if error.is_connect() {
            Failed::Unreached(url, detail)
        } else {
            Failed::Broken(detail)
        }
    }

    fn proxy_refused(&self) -> GitError {
        let url = self.access.upstream().url().to_owned();
        GitError::ProxyRefused { url }
    }
}

/// A URL without what may open it.
pub(super) fn without_query(url: &Url) -> Url {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url
}

/// The repository's proxy, else those of the provider's environment, which git has as well.
fn proxies(
    access: &Access,
    environment: impl Fn(&str) -> Option<String>,
) -> Vec<reqwest::Result<Proxy>> {
    if let Some(proxy) = access.proxy() {
        return vec![Proxy::all(proxy)];
    }
    let first = |names: &[&str]| {
        let values = names.iter().filter_map(|name| environment(name));
        values.into_iter().find(|value| !value.is_empty())
    };
    let exempt = first(&["no_proxy", "NO_PROXY"]);
    let exempt = || NoProxy::from_string(exempt.as_deref()?);
    let http = first(&["http_proxy", "all_proxy", "ALL_PROXY"]);
    let https = first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]);
    let http = http.map(|url| Ok(Proxy::http(url)?.no_proxy(exempt())));
    let https = https.map(|url| Ok(Proxy::https(url)?.no_proxy(exempt())));
    http.into_iter().chain(https).collect()
}
