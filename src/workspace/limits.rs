//! What a workspace may use and is to get: as it is in force, and changed while it runs.
//!
//! The record has what was asked for. Control groups change at once; what is decided when a sandbox starts
//! is told to be pending.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::WorkspaceError;
use super::one::Workspace;
use crate::base;
use crate::config::{Restriction, WorkspaceConfig};
use crate::pool::{Sandbox, SpawnerError};
use crate::sandbox::{Capacity, Limits, MemoryFiles, Requests, Storage};
use crate::state::State;

/// What a workspace may use and is to get, as far as this host enforces that.
#[derive(Debug)]
pub struct InForce {
    /// What it may use.
    pub limits: Limits,
    /// What it is to get.
    pub requests: Requests,
    /// What was asked for and is not enforced, and why, for people.
    pub missing: Vec<String>,
}

/// A JSON Merge Patch (RFC 7396) of limits or requests.
#[derive(Debug, Default)]
pub struct Patch<T> {
    /// What is set.
    pub set: T,
    /// The names of the fields that are removed.
    pub unset: BTreeSet<String>,
}

impl<T: Serialize + DeserializeOwned> Patch<T> {
    /// What becomes of `before`.
    fn of(&self, before: &T) -> serde_json::Result<T> {
        let mut fields = serde_json::to_value(before)?;
        let set = serde_json::to_value(&self.set)?;
        if let (Some(fields), Some(set)) = (fields.as_object_mut(), set.as_object()) {
            fields.retain(|name, _| !self.unset.contains(name));
            fields.extend(set.clone());
        }
        serde_json::from_value(fields)
    }
}

/// A change of limits and requests, and how far it may go.
#[derive(Debug, Default)]
pub struct LimitsChange {
    /// What it may use.
    pub limits: Patch<Limits>,
    /// What it is to get.
    pub requests: Patch<Requests>,
    /// How far.
    pub latitude: Latitude,
}

/// How far whoever asks may set limits and requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Latitude {
    /// As they like.
    #[default]
    Any,
    /// No limit above the config's, and no request for more than the config has.
    Config,
}

impl Latitude {
    /// Refuses what goes further than `before` and than the config.
    pub(super) fn check(
        self,
        config: &WorkspaceConfig,
        before: (&Limits, &Requests),
        after: (&Limits, &Requests),
    ) -> Result<(), WorkspaceError> {
        if self == Self::Any {
            return Ok(());
        }
        let (limits, requests) = (base::limits(config), base::requests(config));
        let raised = raised(before.0, after.0, &limits, f64::INFINITY)
            .map(|field| ("limits", field))
            .or_else(|| raised(before.1, after.1, &requests, 0.0).map(|field| ("requests", field)));
        match raised {
            None => Ok(()),
            Some((object, field)) => Err(WorkspaceError::Unfit {
                object,
                field: field.into(),
                reason: "goes beyond the config, which takes a token for everything".to_owned(),
            }),
        }
    }
}

/// A field that `after` has a larger number in than `before` and `most`; `absent` is that of one that is
/// not there.
fn raised<T: Serialize>(before: &T, after: &T, most: &T, absent: f64) -> Option<String> {
    let [before, after, most] = [before, after, most].map(|it| serde_json::to_value(it).ok());
    let number = |of: &Option<serde_json::Value>, name: &str| {
        let number = of.as_ref().and_then(|of| of.get(name)?.as_f64());
        number.unwrap_or(absent)
    };
    let all = [&before, &after, &most].into_iter().flatten();
    let mut names = all.filter_map(|it| it.as_object()).flat_map(|it| it.keys());
    let raised = names.find(|name| {
        let after = number(&after, name);
        after > number(&before, name) && after > number(&most, name)
    });
    raised.cloned()
}

/// Whether a workspace can have these limits and requests.
pub(super) fn check(
    config: &WorkspaceConfig,
    state: &State,
    limits: &Limits,
    requests: &Requests,
) -> Result<(), WorkspaceError> {
    let unfit = |object| {
        move |(field, reason)| WorkspaceError::Unfit {
            object,
            field: Cow::Borrowed(field),
            reason,
        }
    };
    requests.check_within(limits).map_err(unfit("requests"))?;
    limits.check_whole().map_err(unfit("limits"))?;
    if !config.best_effort.contains(&Restriction::Limits) {
        state.check(limits, requests, config.storage)?;
    }
    Ok(())
}

impl Workspace {
    /// What it may use and is to get.
    #[must_use]
    pub fn limits(&self) -> InForce {
        let (limits, requests) = {
            let record = self.lock_record();
            (record.limits, record.requests)
        };
        self.in_force(limits, requests)
    }

    fn in_force(&self, limits: Limits, requests: Requests) -> InForce {
        if !self.config.best_effort.contains(&Restriction::Limits) {
            return InForce {
                limits,
                requests,
                missing: Vec::new(),
            };
        }
        let (limits, requests, missing) =
            self.state
                .enforceable(&limits, &requests, self.config.storage);
        InForce {
            limits,
            requests,
            missing: missing.iter().map(ToString::to_string).collect(),
        }
    }

    /// The limits that hold as they are told from the next start of its processes on only, or, those on
    /// disk, from the next reset.
    #[must_use]
    pub fn pending(&self, limits: &Limits) -> Vec<&'static str> {
        let asked = MemoryFiles::from(limits);
        let sandbox = self.current();
        let there = sandbox.as_ref().map_or(asked, Sandbox::memory_files);
        let uncounted = sandbox.is_some_and(|sandbox| sandbox.has_uncounted_memory());
        let disk = match self.lock_record().storage {
            Storage::Directory => Capacity::default(),
            Storage::Image(capacity) | Storage::Memory(capacity) => capacity,
        };
        [
            ("memory", uncounted),
            ("shm", asked.shm != there.shm),
            ("tmp", asked.tmp != there.tmp),
            ("disk", limits.disk != disk.bytes),
            ("inodes", limits.inodes != disk.inodes),
        ]
        .into_iter()
        .filter_map(|(name, pending)| pending.then_some(name))
        .collect()
    }

    /// Changes its limits and requests, also of what runs.
    ///
    /// # Errors
    /// Where they cannot be; all is as it was then.
    pub async fn change_limits(&self, change: LimitsChange) -> Result<(), WorkspaceError> {
        let lifecycle = self.lifecycle.lock().await;
        lifecycle.check_open()?;
        let before = self.record();
        let failed = |error: serde_json::Error| {
            WorkspaceError::host("changing limits")(io::Error::from(error))
        };
        let limits = change.limits.of(&before.limits).map_err(failed)?;
        let requests = change.requests.of(&before.requests).map_err(failed)?;
        change.latitude.check(
            &self.config,
            (&before.limits, &before.requests),
            (&limits, &requests),
        )?;
        check(&self.config, &self.state, &limits, &requests)?;
        let sandbox = self.current();
        if let Some(sandbox) = &sandbox {
            self.regroup(sandbox, limits, requests).await?;
        }
        let noted = self.change_record(|record| {
            record.limits = limits;
            record.requests = requests;
        });
        if noted.is_err()
            && let Some(sandbox) = &sandbox
        {
            self.regroup(sandbox, before.limits, before.requests)
                .await?;
        }
        noted
    }

    async fn regroup(
        &self,
        sandbox: &Sandbox,
        limits: Limits,
        requests: Requests,
    ) -> Result<(), WorkspaceError> {
        let in_force = self.in_force(limits, requests);
        let name = sandbox.group_name();
        let group = self
            .state
            .group(name, &in_force.limits, &in_force.requests)?;
        match sandbox.regroup(group).await {
            Err(_) if sandbox.gone().is_some() => Ok(()),
            Err(SpawnerError::Failed(failure)) if failure.errno == libc::EBUSY => {
                Err(WorkspaceError::MemoryInUse)
            }
            Err(SpawnerError::Failed(failure)) if failure.errno == libc::ETIMEDOUT => {
                Err(WorkspaceError::ForksTooFast)
            }
            changed => Ok(changed?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_beyond_the_config_is_found() {
        let limits = |memory, pids| Limits {
            memory,
            pids,
            ..Limits::default()
        };
        let config = limits(Some(10), None);
        let before = limits(Some(20), Some(5));
        for (after, beyond) in [
            (limits(Some(10), None), None),
            (limits(Some(15), Some(9)), None),
            (limits(Some(20), Some(5)), None),
            (limits(Some(21), Some(5)), Some("memory")),
            (limits(None, Some(5)), Some("memory")),
        ] {
            let found = raised(&before, &after, &config, f64::INFINITY);
            assert_eq!(found.as_deref(), beyond, "{after:?}");
        }
        let request = |cpus| Requests { memory: None, cpus };
        let raised = |after| raised(&request(None), &request(after), &request(Some(0.5)), 0.0);
        assert_eq!(raised(Some(0.5)), None);
        assert_eq!(raised(Some(0.6)).as_deref(), Some("cpus"));
        assert_eq!(raised(None), None);
    }

    #[test]
    fn a_patch_sets_removes_and_leaves() {
        let before = Limits {
            memory: Some(1),
            cpus: Some(0.3),
            pids: Some(3),
            ..Limits::default()
        };
        let patch = Patch {
            set: Limits {
                memory: Some(2),
                execs: Some(4),
                ..Limits::default()
            },
            unset: ["pids".to_owned(), "shm".to_owned()].into(),
        };
        let after = Limits {
            memory: Some(2),
            cpus: Some(0.3),
            execs: Some(4),
            ..Limits::default()
        };
        assert_eq!(patch.of(&before).unwrap(), after);
        assert_eq!(Patch::default().of(&before).unwrap(), before);
    }
}
