//! What a caller may do: everything, or what concerns workspaces that are within its token's scope.
//!
//! A workspace beyond the scope is answered for as one that does not exist. So what is looked at is the
//! same for both, and happens before anything else of a request is.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::leases::Visit;
use super::problem::{Kind, Problem};
use super::{App, guard};
use crate::provider::snapshots::Snapshot;
use crate::provider::{InUse, Latitude, WorkspaceId};

/// What a token lets its holder do, until it is revoked.
#[derive(Debug)]
pub(super) struct Grant {
    /// Whose the token is, and so what it makes; for the log and for the workspace's record.
    pub(super) name: Option<String>,
    pub(super) scope: Scope,
    revoked: CancellationToken,
}

/// For which workspaces a token is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// All, and the provider itself.
    Everything,
    /// Some of them.
    Workspaces {
        /// Those that a token of the same name made; it may make further ones.
        own: bool,
        /// Those with these ids.
        listed: BTreeSet<WorkspaceId>,
    },
}

impl Grant {
    pub(super) fn new(name: Option<String>, scope: Scope) -> Arc<Self> {
        Arc::new(Self {
            name,
            scope,
            revoked: CancellationToken::new(),
        })
    }

    /// Ends what is being done with it.
    pub(super) fn revoke(&self) {
        self.revoked.cancel();
    }

    #[cfg(test)]
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }

    /// Whether it is good for a workspace that there is, made by the holder of a token called `owner`.
    fn covers(&self, id: &WorkspaceId, owner: Option<&str>) -> bool {
        match &self.scope {
            Scope::Everything => true,
            Scope::Workspaces { listed, .. } => listed.contains(id) || self.covers_own(owner),
        }
    }

    /// Whether it is good for what the holder of a token called `owner` made.
    fn covers_own(&self, owner: Option<&str>) -> bool {
        match self.scope {
            Scope::Everything => true,
            Scope::Workspaces { own, .. } => {
                own && owner.is_some() && owner == self.name.as_deref()
            }
        }
    }
}

/// Who asks. Every request that `guard` let through carries it.
#[derive(Debug, Clone)]
pub(super) struct Caller(Arc<Grant>);

impl Caller {
    /// The provider's own user, or root.
    pub(super) fn trusted() -> Self {
        Self(Grant::new(None, Scope::Everything))
    }

    /// Who holds a token with this grant.
    pub(super) fn holder(grant: Arc<Grant>) -> Self {
        Self(grant)
    }

    /// Whose token it is, if that says so.
    pub(super) fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// Whether it may ask for this workspace. One that does not exist is within no scope but that of
    /// everything.
    pub(super) fn may_ask_for(&self, app: &App, id: &WorkspaceId) -> bool {
        self.0.scope == Scope::Everything
            || app
                .provider
                .owner(id)
                .is_ok_and(|owner| self.0.covers(id, owner.as_deref()))
    }

    /// Whether it may use this snapshot: one of a workspace that it may ask for, or might have.
    pub(super) fn may_use(&self, snapshot: &Snapshot) -> bool {
        let owner = snapshot.owner.as_deref();
        match &snapshot.workspace {
            Some(workspace) => self.0.covers(workspace, owner),
            None => self.0.covers_own(owner),
        }
    }

    /// Refuses to make a workspace that the caller could not ask for.
    pub(super) fn check_creates(&self) -> Result<(), Problem> {
        match self.0.scope {
            Scope::Everything | Scope::Workspaces { own: true, .. } => Ok(()),
            Scope::Workspaces { own: false, .. } => Err(beyond("making workspaces")),
        }
    }

    /// How far it may set limits: those of the config are for others to go beyond.
    pub(super) fn latitude(&self) -> Latitude {
        match self.0.scope {
            Scope::Everything => Latitude::Any,
            Scope::Workspaces { .. } => Latitude::Config,
        }
    }

    /// Refuses what tells of all workspaces together.
    pub(super) fn check_everything(&self, what: &str) -> Result<(), Problem> {
        match self.0.scope {
            Scope::Everything => Ok(()),
            Scope::Workspaces { .. } => Err(beyond(what)),
        }
    }

    /// Completes when the token is revoked.
    pub(super) async fn revoked(&self) {
        self.0.revoked.cancelled().await;
    }

    /// The answer, which breaks off when the token is revoked. Until it is out, what `visit` uses is in
    /// use.
    pub(super) async fn until_revoked(
        &self,
        answer: impl Future<Output = Response>,
        visit: &Visit,
    ) -> Result<Response, Problem> {
        let response = tokio::select! {
            response = answer => response,
            () = self.revoked() => return Err(guard::unauthorized(REVOKED, guard::INVALID_TOKEN)),
        };
        let revoked = Box::pin(self.0.revoked.clone().cancelled_owned());
        let in_use = visit.take();
        Ok(response.map(|body| {
            Body::new(UntilRevoked {
                body,
                revoked,
                _in_use: in_use,
            })
        }))
    }
}

const REVOKED: &str = "the token was revoked meanwhile";

fn beyond(what: &str) -> Problem {
    let detail = format!("{what} is beyond the scope of this token");
    Problem::new(Kind::BeyondScope, detail)
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        // Only what went past the guard has one.
        parts.extensions.get().cloned().ok_or_else(|| {
            let detail = "nobody looked at who asks";
            Problem::new(Kind::Internal, detail)
        })
    }
}

/// The body of an answer, which fails once the token that it was asked for with is revoked.
struct UntilRevoked {
    body: Body,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    _in_use: Option<InUse>,
}

impl HttpBody for UntilRevoked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.revoked.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new(REVOKED))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_covers_what_its_holder_made_and_what_it_lists() {
        let id = |text: &str| text.parse::<WorkspaceId>().unwrap();
        let scope = |own, listed: &[&str]| Scope::Workspaces {
            own,
            listed: listed.iter().map(|text| id(text)).collect(),
        };
        for (name, scope, owner, covered) in [
            (None, Scope::Everything, None, true),
            (None, Scope::Everything, Some("a"), true),
            (Some("a"), scope(true, &[]), Some("a"), true),
            (Some("a"), scope(true, &[]), Some("b"), false),
            (Some("a"), scope(true, &[]), None, false),
            (Some("a"), scope(false, &[]), Some("a"), false),
            (Some("a"), scope(false, &["w"]), Some("b"), true),
            (None, scope(false, &["w"]), None, true),
            (None, scope(false, &["v", "x"]), None, false),
            // Refused where it is read; still nobody's workspace is not everybody's.
            (None, scope(true, &[]), None, false),
        ] {
            let grant = Grant::new(name.map(str::to_owned), scope);
            assert_eq!(
                grant.covers(&id("w"), owner),
                covered,
                "{grant:?} {owner:?}"
            );
        }
    }
}
