//! Workspaces and execs: made, listed, described, ended.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::connection::streamed;
use super::events::lines;
use super::files::Download;
use super::wire::{
    Capacity, Commit, Committed, Create, Exec, Fetch, FetchedRepository, Lease, Push, Pushed,
    Receipt, Snapshot, Start, WireSize, Workspace,
};
use super::{Client, Error};
use crate::cli::client::IdPart;
use crate::sys::terminal::Size;

/// Descriptions that are asked for at once.
const AT_ONCE: usize = 8;
/// Characters of a whole id: those of a UUID (RFC 9562).
const WHOLE: usize = 36;

#[derive(Deserialize)]
struct Id {
    id: String,
}

/// A workspace that ends when this is dropped.
pub struct Held {
    id: String,
    lines: BoxStream<'static, Result<String, Error>>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Held {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits until it is removed.
    ///
    /// # Errors
    /// Why that is not known.
    pub async fn until_removed(mut self) -> Result<(), Error> {
        while let Some(line) = self.lines.next().await {
            line?;
        }
        Ok(())
    }
}

impl Client {
    /// Makes a workspace and gives its id.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn create(&self, asked: &Create, wait: Option<Duration>) -> Result<String, Error> {
        let made: Id = self.post(&to_create(wait), asked).await?;
        checked(made.id)
    }

    /// Makes a workspace that ends with this connection.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn create_tied(&self, asked: &Create, wait: Option<Duration>) -> Result<Held, Error> {
        #[derive(Serialize)]
        struct Tied<'a> {
            #[serde(flatten)]
            asked: &'a Create,
            tied: bool,
        }
        let tied = Tied { asked, tied: true };
        let target = to_create(wait);
        let answer = self.post_with(Request::builder(), &target, &tied);
        let mut lines = lines(answer.await?);
        while let Some(line) = lines.next().await {
            if let Some(data) = line?.strip_prefix("data:") {
                let made: Id = serde_json::from_str(data).map_err(Error::Unintelligible)?;
                let id = checked(made.id)?;
                return Ok(Held { id, lines });
            }
        }
        Err(Error::Broken(
            "it ended before the workspace was there".into(),
        ))
    }

    /// How many more workspaces can be made now.
    ///
    /// # Errors
    /// Why it is not known.
    pub async fn capacity(&self) -> Result<Capacity, Error> {
        self.json(Method::GET, "/capacity").await
    }

    /// What changed in a workspace since setup, at a path if one is given.
    ///
    /// # Errors
    /// Why it is not known.
    pub async fn changes(&self, workspace: &str, path: Option<&str>) -> Result<Value, Error> {
        let query = path.map(|path| ("path", path.to_owned()));
        let target = to_changes(workspace, query.as_slice());
        self.json(Method::GET, &target).await
    }

    /// The same as a patch: how many changes are not in it, and what it is, as it comes.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn patch(
        &self,
        workspace: &str,
        query: &[(&str, String)],
    ) -> Result<(u64, BoxStream<'static, Result<Bytes, Error>>), Error> {
        let target = to_changes(workspace, query);
        let answer = self.ask(Method::GET, &target).await?;
        let left_out = answer.headers.get("derrick-left-out");
        let left_out = left_out.and_then(|count| count.to_str().ok()?.parse().ok());
        Ok((left_out.unwrap_or(0), answer.stream().boxed()))
    }

    /// Has the time to live of a workspace begin anew.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn renew(&self, workspace: &str, ttl: Option<f64>) -> Result<Lease, Error> {
        let body = match ttl {
            Some(ttl) => json!({ "ttl": ttl }),
            None => json!({}),
        };
        self.post(&format!("/workspaces/{workspace}/renew"), &body)
            .await
    }

    /// Brings new commits of the upstreams into a workspace's repositories.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn fetch(
        &self,
        workspace: &str,
        wanted: &Fetch,
    ) -> Result<Vec<FetchedRepository>, Error> {
        #[derive(Deserialize)]
        struct Fetched {
            repositories: Vec<FetchedRepository>,
        }
        let target = format!("/workspaces/{workspace}/fetch");
        let fetched: Fetched = self.post(&target, wanted).await?;
        Ok(fetched.repositories)
    }

    /// Makes a commit of all that is changed in a repository of a workspace.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn commit(&self, workspace: &str, wanted: &Commit) -> Result<Committed, Error> {
        self.post(&format!("/workspaces/{workspace}/commit"), wanted)
            .await
    }

    /// A repository of a workspace as a bundle, as it comes.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn bundle(
        &self,
        workspace: &str,
        query: &[(&str, String)],
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let target = with_query(workspace, "bundle", query);
        let answer = self.ask(Method::GET, &target).await?;
        Ok(answer.stream().boxed())
    }

    /// Pushes commits of a workspace to its upstream.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn push(&self, workspace: &str, wanted: &Push) -> Result<Pushed, Error> {
        self.post(&format!("/workspaces/{workspace}/push"), wanted)
            .await
    }

    /// The ids of all workspaces, oldest first.
    ///
    /// # Errors
    /// Why they are not known.
    pub async fn workspace_ids(&self) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Workspaces {
            workspaces: Vec<Id>,
        }
        let list: Workspaces = self.json(Method::GET, "/workspaces").await?;
        let ids = list.workspaces.into_iter();
        ids.map(|workspace| checked(workspace.id)).collect()
    }

    /// All workspaces, oldest first; one that is removed meanwhile is left out.
    ///
    /// # Errors
    /// Why they are not known.
    pub async fn workspaces(&self) -> Result<Vec<Workspace>, Error> {
        let ids = self.workspace_ids().await?;
        futures_util::stream::iter(ids)
            .map(|id| async move {
                let described = self.json(Method::GET, &format!("/workspaces/{id}")).await;
                match described {
                    Err(error) if error.is("no-such-workspace") => Ok(None),
                    described => described.map(Some),
                }
            })
            .buffered(AT_ONCE)
            .try_filter_map(async |workspace| Ok(workspace))
            .try_collect()
            .await
    }

    /// The id that a part of it stands for.
    ///
    /// # Errors
    /// [`Error::NoneSuch`] and [`Error::Ambiguous`], and why the ids are not known. A whole id is
    /// taken for one without asking.
    pub async fn workspace_id(&self, part: &IdPart) -> Result<String, Error> {
        if part.as_str().len() == WHOLE {
            return Ok(part.to_string());
        }
        only("workspace", part, &self.workspace_ids().await?)
    }

    /// All that is told of a workspace, its limits and what it uses among it.
    ///
    /// # Errors
    /// Why it is not known.
    pub async fn describe(&self, workspace: &str) -> Result<Value, Error> {
        self.json(Method::GET, &format!("/workspaces/{workspace}"))
            .await
    }

    /// Changes its limits and requests by a merge patch; all that is told of it then.
    ///
    /// # Errors
    /// Why they are not changed.
    pub async fn change(&self, workspace: &str, patch: &Value) -> Result<Value, Error> {
        let request = Request::builder().method(Method::PATCH);
        let target = format!("/workspaces/{workspace}");
        self.send_json(request, &target, patch).await?.json().await
    }

    /// Returns a workspace to the state that it started from, or to a snapshot, and waits until what was
    /// discarded is gone.
    ///
    /// # Errors
    /// Why it is not reset.
    pub async fn reset(&self, workspace: &str, to: Option<&str>) -> Result<Receipt, Error> {
        let target = format!("/workspaces/{workspace}/reset?wait=disposal");
        match to {
            None => self.json(Method::POST, &target).await,
            Some(snapshot) => self.post(&target, &json!({ "to": snapshot })).await,
        }
    }

    /// All snapshots, or those of a workspace, oldest first.
    ///
    /// # Errors
    /// Why they are not known.
    pub async fn snapshots(&self, of: Option<&str>) -> Result<Vec<Snapshot>, Error> {
        #[derive(Deserialize)]
        struct Snapshots {
            snapshots: Vec<Snapshot>,
        }
        let target = match of {
            None => "/snapshots".to_owned(),
            Some(workspace) => format!("/workspaces/{workspace}/snapshots"),
        };
        let list: Snapshots = self.json(Method::GET, &target).await?;
        Ok(list.snapshots)
    }

    /// The id that a part of it stands for, of a snapshot.
    ///
    /// # Errors
    /// As [`workspace_id`](Self::workspace_id).
    pub async fn snapshot_id(&self, part: &IdPart) -> Result<String, Error> {
        if part.as_str().len() == WHOLE {
            return Ok(part.to_string());
        }
        let snapshots = self.snapshots(None).await?.into_iter();
        let ids: Result<Vec<_>, _> = snapshots.map(|snapshot| checked(snapshot.id)).collect();
        only("snapshot", part, &ids?)
    }

    /// All that is told of a snapshot.
    ///
    /// # Errors
    /// Why it is not known.
    pub async fn show_snapshot(&self, snapshot: &str) -> Result<Snapshot, Error> {
        self.json(Method::GET, &format!("/snapshots/{snapshot}"))
            .await
    }

    /// Calls a snapshot something, or nothing; all that is told of it then.
    ///
    /// # Errors
    /// Why it is not called that.
    pub async fn label_snapshot(
        &self,
        snapshot: &str,
        label: Option<&str>,
    ) -> Result<Snapshot, Error> {
        let request = Request::builder().method(Method::PATCH);
        let target = format!("/snapshots/{snapshot}");
        let patch = json!({ "label": label });
        self.send_json(request, &target, &patch).await?.json().await
    }

    /// A snapshot as an archive, compressed as the API names it.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub async fn export(
        &self,
        snapshot: &str,
        compression: Option<&str>,
    ) -> Result<Download, Error> {
        let mut target = format!("/snapshots/{snapshot}/export");
        if let Some(compression) = compression {
            target.push_str("?archive=");
            target.push_str(compression);
        }
        let answer = self.ask(Method::GET, &target).await?;
        Ok(Download {
            size: None,
            bytes: Box::pin(answer.stream()),
        })
    }

    /// Makes a snapshot of an archive; all that is told of it. An error of `bytes` breaks the request off.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn import(
        &self,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<Value, Error> {
        let request = Request::builder()
            .method(Method::POST)
            .header(CONTENT_TYPE, "application/octet-stream");
        let answer = self
            .send(request, "/snapshots/import", streamed(bytes))
            .await?;
        answer.json().await
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// Why it is still there, or was not.
    pub async fn remove_snapshot(&self, snapshot: &str) -> Result<bool, Error> {
        self.json(Method::DELETE, &format!("/snapshots/{snapshot}"))
            .await
    }

    /// Stops all processes of a workspace until it is resumed; all that is told of it then.
    ///
    /// # Errors
    /// Why it is not paused.
    pub async fn pause(&self, workspace: &str) -> Result<Value, Error> {
        self.json(Method::POST, &format!("/workspaces/{workspace}/pause"))
            .await
    }

    /// Has the processes of a paused workspace go on; all that is told of it then.
    ///
    /// # Errors
    /// Why they do not.
    pub async fn resume(&self, workspace: &str) -> Result<Value, Error> {
        self.json(Method::POST, &format!("/workspaces/{workspace}/resume"))
            .await
    }

    /// Takes a snapshot; all that is told of it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn snapshot(&self, workspace: &str, asked: &Value) -> Result<Value, Error> {
        let target = format!("/workspaces/{workspace}/snapshots");
        self.post(&target, asked).await
    }

    /// Makes workspaces on a snapshot of another one; all that is told of that.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn fork(&self, workspace: &str, asked: &Value) -> Result<Value, Error> {
        let target = format!("/workspaces/{workspace}/fork");
        self.post(&target, asked).await
    }

    /// Fences a workspace; all that is told of that.
    ///
    /// # Errors
    /// Why it is not fenced.
    pub async fn fence(&self, workspace: &str, asked: &Value) -> Result<Value, Error> {
        let target = format!("/workspaces/{workspace}/fence");
        self.post(&target, asked).await
    }

    /// Ends a workspace; `false` if there was none.
    ///
    /// # Errors
    /// Why it is still there.
    pub async fn remove(&self, workspace: &str) -> Result<bool, Error> {
        self.json(Method::DELETE, &format!("/workspaces/{workspace}"))
            .await
    }

    /// Starts a command. Asked again with the same `key`, it gives the exec that is there already.
    ///
    /// # Errors
    /// Why it did not start.
    pub async fn start(&self, workspace: &str, key: Uuid, start: &Start) -> Result<Exec, Error> {
        let request = Request::builder().header("idempotency-key", key.to_string());
        let target = format!("/workspaces/{workspace}/execs");
        let exec: Exec = self
            .post_with(request, &target, start)
            .await?
            .json()
            .await?;
        checked(exec.id.clone()).map(|_| exec)
    }

    /// The execs of a workspace, oldest first.
    ///
    /// # Errors
    /// Why they are not known.
    pub async fn execs(&self, workspace: &str) -> Result<Vec<Exec>, Error> {
        #[derive(Deserialize)]
        struct Execs {
            execs: Vec<Exec>,
        }
        let list: Execs = self
            .json(Method::GET, &format!("/workspaces/{workspace}/execs"))
            .await?;
        Ok(list.execs)
    }

    /// The id of the exec that a part of it stands for.
    ///
    /// # Errors
    /// As [`workspace_id`](Self::workspace_id).
    pub async fn exec_id(&self, workspace: &str, part: &IdPart) -> Result<String, Error> {
        if part.as_str().len() == WHOLE {
            return Ok(part.to_string());
        }
        let execs = self.execs(workspace).await?.into_iter();
        let ids: Result<Vec<_>, _> = execs.map(|exec| checked(exec.id)).collect();
        only("exec", part, &ids?)
    }

    /// One exec.
    ///
    /// # Errors
    /// Why it is not known.
    pub async fn exec(&self, workspace: &str, exec: &str) -> Result<Exec, Error> {
        self.json(Method::GET, &under(workspace, exec)).await
    }

    /// Kills an exec with all its processes and gives it as it ended.
    ///
    /// # Errors
    /// Why it is not killed.
    pub async fn kill(&self, workspace: &str, exec: &str) -> Result<Exec, Error> {
        self.json(Method::DELETE, &under(workspace, exec)).await
    }

    /// Sends SIGINT to the process group of an exec's command, as ctrl-c does.
    ///
    /// # Errors
    /// Why it is not sent.
    pub async fn interrupt(&self, workspace: &str, exec: &str) -> Result<(), Error> {
        let target = format!("{}/signal", under(workspace, exec));
        let signal = json!({ "signal": "INT", "to": "group" });
        self.post::<Value>(&target, &signal).await.map(drop)
    }

    /// Tells an exec's terminal its size.
    ///
    /// # Errors
    /// Why it is not told.
    pub async fn resize(&self, workspace: &str, exec: &str, size: Size) -> Result<(), Error> {
        let target = format!("{}/resize", under(workspace, exec));
        let size = WireSize::from(size);
        self.post::<Value>(&target, &size).await.map(drop)
    }
}

/// The target of a create that waits so long for a place.
fn to_create(wait: Option<Duration>) -> String {
    match wait {
        Some(wait) => format!("/workspaces?wait={}", wait.as_secs_f64()),
        None => "/workspaces".to_owned(),
    }
}

/// The target of a question about changes.
fn to_changes(workspace: &str, query: &[(&str, String)]) -> String {
    with_query(workspace, "changes", query)
}

fn with_query(workspace: &str, action: &str, query: &[(&str, String)]) -> String {
    let parameters = query
        .iter()
        .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    let parameters: Vec<_> = parameters.collect();
    format!("/workspaces/{workspace}/{action}?{}", parameters.join("&"))
}

/// The target of an exec.
pub(super) fn under(workspace: &str, exec: &str) -> String {
    format!("/workspaces/{workspace}/execs/{exec}")
}

/// An id from the provider, which becomes a part of targets.
fn checked(id: String) -> Result<String, Error> {
    id.parse::<IdPart>()
        .map(|_| id)
        .map_err(|_| Error::Unexpected("an id in it is none"))
}

/// The id that `part` is, or else the only one that it begins or ends.
fn only(what: &'static str, part: &IdPart, ids: &[String]) -> Result<String, Error> {
    let text = part.as_str();
    if ids.iter().any(|id| id == text) {
        return Ok(text.to_owned());
    }
    let fits = |id: &&String| id.starts_with(text) || id.ends_with(text);
    let candidates: Vec<_> = ids.iter().filter(fits).cloned().collect();
    match candidates.as_slice() {
        [] => Err(Error::NoneSuch {
            what,
            part: text.to_owned(),
        }),
        [id] => Ok(id.clone()),
        _ => Err(Error::Ambiguous {
            what,
            part: text.to_owned(),
            candidates,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_an_id_stands_for_the_only_one_that_it_fits() {
        let ids = ["aaa-111", "aaa-222", "bbb-333", "333"].map(str::to_owned);
        let found = |part: &str| only("workspace", &part.parse().unwrap(), &ids);
        for (part, expected) in [
            ("bbb", "bbb-333"),
            ("222", "aaa-222"),
            ("aaa-111", "aaa-111"),
            ("333", "333"),
        ] {
            assert_eq!(found(part).unwrap(), expected);
        }
        let said = found("aaa").unwrap_err().to_string();
        assert_eq!(
            said,
            "'aaa' could be any of these workspaces: aaa-111, aaa-222"
        );
        let said = found("aa-1").unwrap_err().to_string();
        assert_eq!(
            said,
            "there is no workspace whose id begins or ends with 'aa-1'"
        );
    }
}
