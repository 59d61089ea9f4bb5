//! What an upstream says that it has, and where it is, which may be elsewhere after a redirect.

use reqwest::header::HeaderMap;
use reqwest::{Method, Url};

use super::super::error::GitError;
use super::super::http::{Credentials, Failed, Request, Web};
use super::super::reference::fits_a_file;
use super::super::upstream::Access;
use super::{Mirror, Refs, WriteLock, lines, text};

/// What the upstream says it has.
pub(super) struct Advertised {
    pub(super) refs: Refs,
    /// Names of those that no mirror can have.
    pub(super) unfit: Vec<Vec<u8>>,
    pub(super) head: Head,
}

/// What the upstream's `HEAD` is.
pub(super) enum Head {
    /// A branch that exists, by its full name.
    Branch(Vec<u8>),
    /// A commit that is no branch's.
    Detached(String),
    Nowhere,
}

impl Mirror {
    /// Asks the upstream what it has; gives the access that works, which is another one after a redirect.
    pub(super) async fn ask(
        &self,
        lock: &WriteLock,
        access: Access,
    ) -> Result<(Access, Advertised), GitError> {
        let list = |access: &Access| {
            Ok::<_, GitError>(self.remote(lock, access)?.args(["ls-remote", "--symref"]))
        };
        let wanted = ["HEAD", "refs/heads/*", "refs/tags/*"];
        let failed =
            |access: &Access, failure| GitError::remote("list the references of", access, failure);

        let first = list(&access)?
            .arg("--")
            .arg(access.upstream().url())
            .args(wanted)
            .output()
            .await;
        match first {
            Err(failure) if access.has_header() && failure.says(REDIRECTS) => {
                let moved = self.follow(&access).await?;
                let answer = list(&moved)?
                    .arg("--")
                    .arg(moved.upstream().url())
                    .args(wanted)
                    .output()
                    .await;
                let answer = answer.map_err(|failure| failed(&moved, failure))?;
                Ok((moved, Advertised::parse(&answer)))
            }
            Err(failure) => Err(failed(&access, failure)),
            Ok(answer) => Ok((access, Advertised::parse(&answer))),
        }
    }

    /// Finds out where the host redirects to, as far as the credentials may go: another origin is not asked.
    async fn follow(&self, access: &Access) -> Result<Access, GitError> {
        let url = access.upstream().url();
        let unknown = |detail: &str| GitError::Unreachable {
            url: url.to_owned(),
            detail: detail.to_owned(),
        };
        let elsewhere = |to: &str| GitError::Redirected {
            url: url.to_owned(),
            to: to.to_owned(),
        };
        let asked = Url::parse(&format!("{}{LIST}", url.trim_end_matches('/')))
            .map_err(|_| unknown("its URL is none"))?;
        let web = Web::new(access, &self.client).await?;
        let request = Request {
            method: Method::GET,
            url: asked.clone(),
            headers: HeaderMap::new(),
            body: None,
            credentials: Credentials::Repository,
        };
        let answer = web.send(&request, |to| to.origin() == asked.origin());
        match answer.await {
            Ok(answer) => {
                let to = answer.url().as_str().strip_suffix(LIST);
                let to =
                    to.ok_or_else(|| unknown("it redirects to something that is no repository"))?;
                access.redirected(to).ok_or_else(|| elsewhere(to))
            }
            Err(Failed::NotAllowed(to)) => {
                let (path, _) = LIST.split_once('?').unwrap_or((LIST, ""));
                Err(elsewhere(to.strip_suffix(path).unwrap_or(&to)))
            }
            Err(Failed::Broken(detail) | Failed::Unreached(_, detail)) => Err(unknown(&detail)),
            Err(Failed::Git(error)) => Err(error),
        }
    }
}

/// What git asks for first, after a repository's URL: see gitprotocol-http(5).
const LIST: &str = "/info/refs?service=git-upload-pack";

impl Advertised {
    /// Reads the answer of `git ls-remote --symref`.
    fn parse(answer: &[u8]) -> Self {
        let (mut refs, mut target, mut id_of_head) = (Refs::new(), None, None);
        let mut unfit = Vec::new();
        for (id, name) in lines(answer, b'\t') {
            match (id.strip_prefix(b"ref: "), name) {
                (Some(branch), b"HEAD") => target = Some(branch.to_vec()),
                (Some(_), _) => {}
                (None, b"HEAD") => id_of_head = Some(text(id)),
                (None, name) if name.ends_with(b"^{}") => {}
                // `*` in a pattern of ls-remote also fits deeper names, such as refs/x/refs/heads/y.
                (None, name)
                    if name.starts_with(b"refs/heads/") || name.starts_with(b"refs/tags/") =>
                {
                    match fits_a_file(name) {
                        true => drop(refs.insert(name.to_vec(), text(id))),
                        false => unfit.push(name.to_vec()),
                    }
                }
                (None, _) => {}
            }
        }
        let target =
            target.filter(|name| name.starts_with(b"refs/heads/") && refs.contains_key(name));
        let head = match (target, id_of_head) {
            (Some(branch), _) => Head::Branch(branch),
            // Like git clone: a server that does not say which branch it is may mean one of these.
            (None, Some(id)) => {
                let same = |name: &&[u8]| refs.get(*name).is_some_and(|branch| *branch == id);
                let usual: [&[u8]; 2] = [b"refs/heads/main", b"refs/heads/master"];
                let any = refs
                    .keys()
                    .map(Vec::as_slice)
                    .filter(|name| name.starts_with(b"refs/heads/"));
                match usual.into_iter().chain(any).find(same) {
                    Some(branch) => Head::Branch(branch.to_vec()),
                    None => Head::Detached(id),
                }
            }
            (None, None) => Head::Nowhere,
        };
        Self { refs, unfit, head }
    }

    /// The name of the objects' format.
    pub(super) fn format(&self) -> &'static str {
        match self.id_length() {
            64 => "sha256",
            _ => "sha1",
        }
    }

    /// Digits of an object id: 40 or 64.
    fn id_length(&self) -> usize {
        match (&self.head, self.refs.values().next()) {
            (_, Some(id)) | (Head::Detached(id), None) => id.len(),
            _ => 40,
        }
    }

    pub(super) fn has_length_of(&self, refs: &Refs) -> bool {
        refs.values()
            .next()
            .is_some_and(|id| id.len() == self.id_length())
    }
}

/// What git says to a redirect that it does not follow.
const REDIRECTS: &[&str] = &[
    "returned error: 301",
    "returned error: 302",
    "returned error: 303",
    "returned error: 307",
    "returned error: 308",
];
