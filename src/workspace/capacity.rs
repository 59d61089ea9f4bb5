//! How many more workspaces can be made now, and what that depends on.

use serde::Serialize;
use utoipa::ToSchema;

use super::admission::{Coming, LEAST};
use super::memory::Memory;
use super::{WorkspaceError, Workspaces};
use crate::base;
use crate::pool::ranges;

/// What there is room for.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Headroom {
    /// How many more workspaces can be made now: the least of each `more` below and of the free id ranges; 0
    /// while requests wait.
    pub more: u64,
    /// Places for them.
    pub workspaces: Places,
    /// Memory for them.
    pub memory: MemoryRoom,
    /// The disk that the state directory is on.
    pub disk: DiskRoom,
    /// Id ranges of the host; absent where workspaces share the user's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranges: Option<RangeRoom>,
    /// Creates that wait.
    pub waiting: usize,
}

/// Places for workspaces.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Places {
    /// Workspaces that have processes.
    pub running: usize,
    /// Workspaces that have none; they take a place as well.
    pub stopped: usize,
    /// Workspaces that are being made.
    pub coming: usize,
    /// How many there may be at once, if that is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// How many more there may be; absent where that is not limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more: Option<u64>,
}

/// Memory for workspaces, in bytes.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MemoryRoom {
    /// What the host has.
    pub total: u64,
    /// What can be had now.
    pub available: u64,
    /// What is to be left of it.
    pub floor: u64,
    /// What the requests of all workspaces come to.
    pub promised: u64,
    /// What one more is taken to need.
    pub per_workspace: u64,
    /// Where that number is from.
    pub basis: Basis,
    /// How many more there is memory for.
    pub more: u64,
}

/// Where it is known from what a workspace needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The config's request.
    Request,
    /// The average of what those use that run and are counted.
    Measured,
    /// The config's limit.
    Limit,
    /// Nothing: it is what a shell takes.
    Assumed,
}

/// Headroom on the disk, in bytes.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DiskRoom {
    /// What is free.
    pub free: u64,
    /// What is to be left: with less, nothing new is started.
    pub floor: u64,
    /// 0 with less than that; else absent, as nobody knows what a workspace will write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more: Option<u64>,
}

/// Id ranges, one for each sandbox.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RangeRoom {
    /// How many there are.
    pub total: u64,
    /// How many no derrick of this host has.
    pub free: u64,
}

impl Workspaces {
    /// What there is room for now. Reads files of the kernel's for each workspace, so not for where that
    /// must not block.
    ///
    /// # Errors
    /// Where the host does not say how full it is.
    pub fn room(&self) -> Result<Headroom, WorkspaceError> {
        let shared = &self.shared;
        let (all, coming): (Vec<_>, _) = {
            // One that has just been made is among the one or the other.
            let all = self.lock();
            (all.values().cloned().collect(), shared.admission.coming())
        };
        let waiting = shared.admission.waiting();
        let sandboxes: Vec<_> = all.iter().filter_map(|one| one.current()).collect();
        let limit = shared.config.max_workspaces;
        let count = (all.len() + coming.count) as u64;
        let workspaces = Places {
            running: sandboxes.len(),
            stopped: all.len() - sandboxes.len(),
            coming: coming.count,
            limit,
            more: limit.map(|limit| u64::from(limit).saturating_sub(count)),
        };
        let used = sandboxes.iter().filter_map(|one| one.counters()?.memory);
        let requested = base::requests(&shared.config).memory;
        let (per_workspace, basis) = per_workspace(
            requested,
            average(used),
            base::limits(&shared.config).memory,
        );
        let memory = Memory::of_host();
        let floor = shared.memory_floor(&memory);
        let promised = super::promised(all.iter());
        let there = MemoryRoom {
            total: memory.total,
            available: memory.available,
            floor,
            promised,
            per_workspace,
            basis,
            more: 0,
        };
        let more = match memory.is_pressed(floor) {
            true => 0,
            false => there.count(requested, coming),
        };
        let disk = shared.state.disk().map_err(WorkspaceError::host(
            "asking how full the state directory is",
        ))?;
        let identity = shared.state.spawner().identity();
        let ranges = ranges::free(identity)
            .map_err(WorkspaceError::host("counting id ranges"))?
            .map(|(free, total)| RangeRoom { total, free });
        let room = Headroom {
            more: 0,
            workspaces,
            memory: MemoryRoom { more, ..there },
            disk: DiskRoom {
                free: disk.free,
                floor: disk.floor,
                more: (disk.free < disk.floor).then_some(0),
            },
            ranges,
            waiting,
        };
        Ok(Headroom {
            more: room.least(),
            ..room
        })
    }
}

impl Headroom {
    fn least(&self) -> u64 {
        if self.waiting > 0 {
            return 0;
        }
        [self.workspaces.more, self.disk.more]
            .into_iter()
            .flatten()
            .chain(self.ranges.as_ref().map(|ranges| ranges.free))
            .fold(self.memory.more, u64::min)
    }
}

impl MemoryRoom {
    /// How many more there is memory for beside those that are being made.
    fn count(&self, requested: Option<u64>, coming: Coming) -> u64 {
        let free = self.available.saturating_sub(coming.memory);
        let fit = free.saturating_sub(self.floor) / self.per_workspace.max(1);
        let promised = requested.filter(|requested| *requested > 0);
        let promised = promised.map(|requested| {
            let most = self.total.saturating_sub(self.floor);
            most.saturating_sub(self.promised + coming.promised) / requested
        });
        promised.map_or(fit, |promised| promised.min(fit))
    }
}

/// What one more takes, and how that is known.
fn per_workspace(requested: Option<u64>, used: Option<u64>, limit: Option<u64>) -> (u64, Basis) {
    let found = match (used, limit) {
        (Some(used), _) => (used.max(LEAST), Basis::Measured),
        (None, Some(limit)) => (limit, Basis::Limit),
        (None, None) => (LEAST, Basis::Assumed),
    };
    match requested {
        // What is promised is not given to others, whether it is used or not.
        Some(requested) if requested > found.0 => (requested, Basis::Request),
        Some(requested) if found.1 == Basis::Limit => (requested.max(LEAST), Basis::Request),
        _ => found,
    }
}

fn average(numbers: impl Iterator<Item = u64>) -> Option<u64> {
    let (sum, count) = numbers.fold((0u64, 0u64), |(sum, count), number| {
        (sum.saturating_add(number), count + 1)
    });
    sum.checked_div(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_one_takes_is_what_is_known_best() {
        for (requested, used, limit, expected) in [
            (None, None, None, (LEAST, Basis::Assumed)),
            (None, None, Some(512), (512 * MIB, Basis::Limit)),
            (None, Some(40), Some(512), (40 * MIB, Basis::Measured)),
            (None, Some(1), None, (LEAST, Basis::Measured)),
            (Some(100), Some(40), None, (100 * MIB, Basis::Request)),
            (Some(100), Some(140), None, (140 * MIB, Basis::Measured)),
            (Some(100), None, Some(512), (100 * MIB, Basis::Request)),
        ] {
            let bytes = |mebibytes: Option<u64>| mebibytes.map(|count| count * MIB);
            let found = per_workspace(bytes(requested), bytes(used), bytes(limit));
            assert_eq!(found, expected, "{requested:?} {used:?} {limit:?}");
        }
        assert_eq!(average([1, 2, 6].into_iter()), Some(3));
        assert_eq!(average(std::iter::empty()), None);
    }

    #[test]
    fn more_is_the_least_of_its_parts() {
        let memory = MemoryRoom {
            total: 1000 * MIB,
            available: 700 * MIB,
            floor: 100 * MIB,
            promised: 500 * MIB,
            per_workspace: 50 * MIB,
            basis: Basis::Assumed,
            more: 0,
        };
        for (requested, memory_of_coming, promised_to_coming, more) in [
            (None, 0, 0, 12),
            (None, 99, 0, 10),
            (Some(50), 0, 0, 8),
            (Some(50), 100, 100, 6),
            (None, 700, 0, 0),
        ] {
            let coming = Coming {
                count: 1,
                memory: memory_of_coming * MIB,
                promised: promised_to_coming * MIB,
            };
            let requested = requested.map(|requested: u64| requested * MIB);
            assert_eq!(memory.count(requested, coming), more, "{coming:?}");
        }
        let room = |places, free, disk, waiting| Headroom {
            more: 0,
            workspaces: Places {
                running: 0,
                stopped: 0,
                coming: 0,
                limit: None,
                more: places,
            },
            memory: MemoryRoom {
                more: 12,
                ..memory.clone()
            },
            disk: DiskRoom {
                free: 0,
                floor: 0,
                more: disk,
            },
            ranges: Some(RangeRoom { total: 9, free }),
            waiting,
        };
        for (places, free, disk, waiting, more) in [
            (None, 99, None, 0, 12),
            (Some(2), 99, None, 0, 2),
            (Some(2), 1, None, 0, 1),
            (None, 99, Some(0), 0, 0),
            (None, 99, None, 1, 0),
        ] {
            assert_eq!(room(places, free, disk, waiting).least(), more);
        }
    }
}
