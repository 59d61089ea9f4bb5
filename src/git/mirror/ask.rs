//! What an upstream says that it has, and where it is, which may be elsewhere after a redirect.

use super::super::error::GitError;
use super::super::upstream::Access;
use super::{Mirror, Refs, WriteLock, lines, text};

/// What the upstream says it has.
pub(super) struct Advertised {
    pub(super) refs: Refs,
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
                let moved = self.follow(lock, &access).await?;
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

    /// Finds out where the host redirects to, and whether the credentials may go there.
    ///
    /// Version 0 of git's protocol lists references in one GET; curl takes the header off that
    /// when it follows a redirect to another host, and there is no second request.
    async fn follow(&self, lock: &WriteLock, access: &Access) -> Result<Access, GitError> {
        let url = access.upstream().url();
        let probe = self
            .remote(lock, access)?
            .setting("protocol.version", "0")
            .setting("http.followRedirects", "initial")
            .args(["ls-remote", "--", url, "HEAD"]);
        let said = match probe.messages().await {
            Ok(said) => said,
            Err(failure) => failure.said().to_owned(),
        };
        let to = said
            .lines()
            .find_map(|line| line.strip_prefix("warning: redirecting to "));
        let Some(to) = to else {
            let detail = "it redirects to a place that cannot be found out".to_owned();
            return Err(GitError::Unreachable {
                url: url.to_owned(),
                detail,
            });
        };
        access.redirected(to).ok_or_else(|| GitError::Redirected {
            url: url.to_owned(),
            to: to.to_owned(),
        })
    }
}

impl Advertised {
    /// Reads the answer of `git ls-remote --symref`.
    fn parse(answer: &[u8]) -> Self {
        let (mut refs, mut target, mut id_of_head) = (Refs::new(), None, None);
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
                    refs.insert(name.to_vec(), text(id));
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
        Self { refs, head }
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
