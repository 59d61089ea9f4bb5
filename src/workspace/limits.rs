//! What a workspace may use and is to get: as it is in force, and changed while it runs.
//!
//! The record has what was asked for. Control groups change at once; what is decided when a sandbox starts
//! is told to be pending.

use std::collections::BTreeSet;
use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::one::Workspace;
use super::{Record, WorkspaceError};
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
            field,
            reason,
        }
    };
    requests.check_within(limits).map_err(unfit("requests"))?;
    if limits.inodes.is_some() && limits.disk.is_none() {
        let reason = "bounds the files on a disk whose size is not bounded; set \"disk\" as well";
        return Err(unfit("limits")(("inodes", reason.to_owned())));
    }
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
    pub async fn change_limits(
        &self,
        limits: Patch<Limits>,
        requests: Patch<Requests>,
    ) -> Result<(), WorkspaceError> {
        let lifecycle = self.lifecycle.lock().await;
        lifecycle.check_open()?;
        let before = self.record();
        let failed = |error: serde_json::Error| {
            WorkspaceError::host("changing limits")(io::Error::from(error))
        };
        let limits = limits.of(&before.limits).map_err(failed)?;
        let requests = requests.of(&before.requests).map_err(failed)?;
        check(&self.config, &self.state, &limits, &requests)?;
        let sandbox = self.current();
        if let Some(sandbox) = &sandbox {
            self.regroup(sandbox, limits, requests).await?;
        }
        let noted = {
            let mut record = self.lock_record();
            let changed = Record {
                limits,
                requests,
                ..record.clone()
            };
            let written = changed.write(&self.directory);
            if written.is_ok() {
                *record = changed;
            }
            written
        };
        if noted.is_err()
            && let Some(sandbox) = &sandbox
        {
            self.regroup(sandbox, before.limits, before.requests)
                .await?;
        }
        noted.map_err(WorkspaceError::host("writing a workspace's record"))
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
