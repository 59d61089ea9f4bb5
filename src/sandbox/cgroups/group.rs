//! The control groups of one sandbox: made and filled by the spawner, read and removed by the provider.
//!
//! A group is a directory in each hierarchy that a limit needs, in one alone where there is version 2
//! only. The limits are in it before the first process is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

use super::{Controller, Place, Version};
use crate::sandbox::{At, Failure, Limits, Requests, Step};
use crate::sys::process::Child;

/// The period over which time on processors is shared out, in microseconds; the kernel's own default.
const PERIOD: u64 = 100_000;

/// The least of processors' worth of time that the kernel shares out.
pub const LEAST_CPUS: f64 = 0.01;

/// More processes than this there cannot be, and the kernel takes no larger number (`PID_MAX_LIMIT`).
const MOST_PIDS: u32 = 4 << 20;

/// The control groups of one sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Group {
    parts: Vec<Part>,
}

/// Whether a limit on processors holds just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Throttle {
    /// It does.
    InForce,
    /// It does not.
    Lifted,
}

/// A directory of one hierarchy.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Part {
    version: Version,
    directory: PathBuf,
    controllers: Vec<Controller>,
    settings: Vec<Setting>,
}

/// What is written to one file of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Setting {
    file: String,
    value: String,
    /// Not there where the kernel does without: swap, for one.
    optional: bool,
}

/// What the kernel counted, as far as it counts that for this group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of memory now.
    pub memory: Option<u64>,
    /// Bytes of memory at its peak.
    pub peak_memory: Option<u64>,
    /// Processes that the kernel killed because the limit on memory was reached.
    pub oom_kills: Option<u64>,
    /// Processes and threads now, init included.
    pub pids: Option<u64>,
    /// Times that the kernel refused one because of the limit.
    pub pids_refused: Option<u64>,
    /// Time on processors.
    pub cpu: Option<Duration>,
    /// Time that was waited for because of the limit.
    pub throttled: Option<Duration>,
}

impl Group {
    /// `None` where nothing is asked for that needs a group.
    pub(super) fn new(
        places: &BTreeMap<Controller, Place>,
        name: &str,
        limits: &Limits,
        requests: &Requests,
    ) -> Option<Self> {
        let mut parts: Vec<Part> = Vec::new();
        for (controller, place) in places {
            let settings = settings(*controller, place.version, limits, requests);
            if settings.is_empty() {
                continue;
            }
            let directory = place.directory.join(name);
            // Version 2 has one directory for all controllers, and so has version 1 for some.
            match parts.iter_mut().find(|part| part.directory == directory) {
                Some(part) => {
                    part.controllers.push(*controller);
                    part.settings.extend(settings);
                }
                None => parts.push(Part {
                    version: place.version,
                    directory,
                    controllers: vec![*controller],
                    settings,
                }),
            }
        }
        (!parts.is_empty()).then_some(Self { parts })
    }

    /// Makes its directories and sets the limits; part of it may be there when it fails.
    ///
    /// # Errors
    /// The failed step.
    pub fn make(&self) -> Result<(), Failure> {
        self.parts.iter().try_for_each(Part::make)
    }

    /// Moves a process into it, and with it what that starts from then on.
    ///
    /// # Errors
    /// The failed step.
    pub fn add(&self, child: Child) -> Result<(), Failure> {
        for part in &self.parts {
            let procs = part.directory.join("cgroup.procs");
            fs::write(&procs, child.id().to_string())
                .at(Step::Limits, format_args!("writing {}", procs.display()))?;
        }
        Ok(())
    }

    /// Removes it; no error if it is not there.
    ///
    /// # Errors
    /// Those of rmdir(2): `EBUSY` while it has a process.
    pub fn remove(&self) -> io::Result<()> {
        self.parts
            .iter()
            .try_for_each(|part| remove(&part.directory))
    }

    /// The provider's own groups, which those of all its sandboxes are below.
    pub fn parents(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().filter_map(|part| part.directory.parent())
    }

    /// What the kernel counts.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for part in &self.parts {
            for controller in &part.controllers {
                part.count(*controller, &mut counters);
            }
        }
        counters
    }

    /// Lifts the limit on processors, or sets it again; nothing happens where there is none.
    ///
    /// # Errors
    /// Those of writing to the group's files.
    pub fn throttle(&self, throttle: Throttle) -> io::Result<()> {
        for part in &self.parts {
            let (file, lifted) = match part.version {
                Version::V1 => ("cpu.cfs_quota_us", "-1"),
                Version::V2 => ("cpu.max", "max"),
            };
            if let Some(setting) = part.settings.iter().find(|setting| setting.file == file) {
                let value = match throttle {
                    Throttle::Lifted => lifted,
                    Throttle::InForce => &setting.value,
                };
                fs::write(part.directory.join(file), value)?;
            }
        }
        Ok(())
    }

    /// What becomes readable when memory runs out, on version 1: it kills one process alone, where
    /// version 2 kills all together. Also becomes readable when the group is removed.
    ///
    /// # Errors
    /// Those of eventfd(2) and of opening the group's files.
    pub fn memory_alarm(&self) -> io::Result<Option<OwnedFd>> {
        let memory = self.parts.iter().find(|part| {
            part.version == Version::V1 && part.controllers.contains(&Controller::Memory)
        });
        let Some(memory) = memory else {
            return Ok(None);
        };
        let alarm = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let watched = File::open(memory.directory.join("memory.oom_control"))?;
        let order = format!("{} {}", alarm.as_raw_fd(), watched.as_raw_fd());
        match fs::write(memory.directory.join("cgroup.event_control"), order) {
            // A kernel without it leaves what it did not kill to run on.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            written => written.map(|()| Some(alarm)),
        }
    }
}

impl Part {
    fn make(&self) -> Result<(), Failure> {
        let shown = self.directory.display();
        // The provider's own group is made with the first of its sandboxes that needs one.
        if let Some(parent) = self.directory.parent() {
            make_directory(parent).at(Step::Limits, format_args!("making {}", parent.display()))?;
            if self.version == Version::V2 {
                let names: Vec<_> = self.controllers.iter().map(|it| it.name()).collect();
                for above in parent.parent().into_iter().chain([parent]) {
                    pass_on(above, &names).at(
                        Step::Limits,
                        format_args!("passing on the controllers of {}", above.display()),
                    )?;
                }
            }
        }
        make_directory(&self.directory).at(Step::Limits, format_args!("making {shown}"))?;
        for setting in &self.settings {
            let file = self.directory.join(&setting.file);
            match fs::write(&file, &setting.value) {
                Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => {}
                written => {
                    let (file, value) = (file.display(), &setting.value);
                    written.at(Step::Limits, format_args!("writing {value} to {file}"))?;
                }
            }
        }
        Ok(())
    }

    fn count(&self, controller: Controller, counters: &mut Counters) {
        let number = |file: &str| self.read(file).trim().parse().ok();
        match (controller, self.version) {
            (Controller::Memory, Version::V1) => {
                counters.memory = number("memory.usage_in_bytes");
                counters.peak_memory = number("memory.max_usage_in_bytes");
                counters.oom_kills = entry(&self.read("memory.oom_control"), "oom_kill");
            }
            (Controller::Memory, Version::V2) => {
                counters.memory = number("memory.current");
                counters.peak_memory = number("memory.peak");
                counters.oom_kills = entry(&self.read("memory.events"), "oom_kill");
            }
            (Controller::Pids, _) => {
                counters.pids = number("pids.current");
                counters.pids_refused = entry(&self.read("pids.events"), "max");
            }
            (Controller::Cpu, Version::V1) => {
                let stat = self.read("cpu.stat");
                counters.throttled = entry(&stat, "throttled_time").map(Duration::from_nanos);
                // There where cpuacct is mounted with cpu, which is usual.
                counters.cpu = number("cpuacct.usage").map(Duration::from_nanos);
            }
            (Controller::Cpu, Version::V2) => {
                let stat = self.read("cpu.stat");
                counters.throttled = entry(&stat, "throttled_usec").map(Duration::from_micros);
                counters.cpu = entry(&stat, "usage_usec").map(Duration::from_micros);
            }
        }
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap_or_default()
    }
}

/// The number behind `name` in a file of lines such as `oom_kill 0`.
fn entry(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// What is in the files of one controller; nothing where nothing is asked of it.
fn settings(
    controller: Controller,
    version: Version,
    limits: &Limits,
    requests: &Requests,
) -> Vec<Setting> {
    let set = |file: &str, value: String| Setting {
        file: file.to_owned(),
        value,
        optional: false,
    };
    let set_if_there = |file: &str, value: String| Setting {
        optional: true,
        ..set(file, value)
    };
    let mut settings = Vec::new();
    match (controller, version) {
        (Controller::Memory, Version::V1) => {
            if let Some(bytes) = limits.memory {
                settings.push(set("memory.limit_in_bytes", bytes.to_string()));
                // Memory and swap together.
                settings.push(set_if_there(
                    "memory.memsw.limit_in_bytes",
                    bytes.to_string(),
                ));
            }
            if let Some(bytes) = requests.memory {
                settings.push(set("memory.soft_limit_in_bytes", bytes.to_string()));
            }
        }
        (Controller::Memory, Version::V2) => {
            if let Some(bytes) = limits.memory {
                settings.push(set("memory.max", bytes.to_string()));
                settings.push(set_if_there("memory.swap.max", "0".to_owned()));
                settings.push(set("memory.oom.group", "1".to_owned()));
            }
            if let Some(bytes) = requests.memory {
                settings.push(set("memory.low", bytes.to_string()));
            }
        }
        (Controller::Pids, _) => {
            // Init is not the workspace's.
            let count = |count: u32| count.saturating_add(1).min(MOST_PIDS).to_string();
            settings.extend(limits.pids.map(|pids| set("pids.max", count(pids))));
        }
        (Controller::Cpu, version) => {
            if let Some(quota) = limits.cpus.map(quota) {
                match version {
                    Version::V1 => {
                        settings.push(set("cpu.cfs_period_us", PERIOD.to_string()));
                        settings.push(set("cpu.cfs_quota_us", quota.to_string()));
                    }
                    Version::V2 => settings.push(set("cpu.max", format!("{quota} {PERIOD}"))),
                }
            }
            if let Some(shares) = requests.cpus.map(shares) {
                settings.push(match version {
                    Version::V1 => set("cpu.shares", shares.to_string()),
                    Version::V2 => set("cpu.weight", weight(shares).to_string()),
                });
            }
        }
    }
    settings
}

/// Microseconds of each period. The kernel takes no less than 1000, which `LEAST_CPUS` are.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be a positive number; what is too large becomes the largest"
)]
fn quota(cpus: f64) -> u64 {
    ((cpus * PERIOD as f64).round() as u64).clamp(1000, 1 << 40)
}

/// A share of the processors as version 1 counts it and kubernetes converts it: 1024 for a whole one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be a positive number; what is too large becomes the largest"
)]
fn shares(cpus: f64) -> u64 {
    ((cpus * 1024.0) as u64).clamp(2, 262_144)
}

/// The same as version 2 counts it, as kubernetes converts it: 2 to 262144 become 1 to 10000.
fn weight(shares: u64) -> u64 {
    1 + (shares - 2) * 9999 / 262_142
}

/// Has a group of version 2 pass `controllers` on to those below it.
pub(super) fn pass_on(directory: &Path, controllers: &[&str]) -> io::Result<()> {
    let file = directory.join("cgroup.subtree_control");
    let passed = fs::read_to_string(&file)?;
    let offered = super::offers(directory);
    let has = |text: &str, name: &str| text.split_whitespace().any(|it| it == name);
    for name in controllers {
        if has(&offered, name) && !has(&passed, name) {
            fs::write(&file, format!("+{name}"))?;
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Removes one group; no error if it is not there.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(entries: &[(Controller, Version, &str)]) -> BTreeMap<Controller, Place> {
        let place = |&(controller, version, directory): &(Controller, Version, &str)| {
            let directory = PathBuf::from(directory);
            (controller, Place { version, directory })
        };
        entries.iter().map(place).collect()
    }

    fn shown(group: &Group) -> Vec<(String, Vec<String>)> {
        let parts = group.parts.iter().map(|part| {
            let settings = part.settings.iter();
            let settings = settings.map(|setting| format!("{}={}", setting.file, setting.value));
            (part.directory.display().to_string(), settings.collect())
        });
        parts.collect()
    }

    #[test]
    fn each_limit_is_in_the_files_of_its_controller() {
        let limits = Limits {
            memory: Some(64 << 20),
            cpus: Some(1.5),
            pids: Some(20),
            ..Limits::default()
        };
        let requests = Requests {
            memory: Some(32 << 20),
            cpus: Some(0.5),
        };
        let made = |places, limits, requests| {
            Group::new(places, "1", limits, requests).map(|group| shown(&group))
        };
        let v2 = places(&Controller::ALL.map(|it| (it, Version::V2, "/v2/d")));
        let all = [
            "memory.max=67108864",
            "memory.swap.max=0",
            "memory.oom.group=1",
            "memory.low=33554432",
            "pids.max=21",
            "cpu.max=150000 100000",
            "cpu.weight=20",
        ];
        assert_eq!(
            made(&v2, &limits, &requests),
            Some(vec![(
                "/v2/d/1".to_owned(),
                all.map(str::to_owned).to_vec()
            )])
        );

        let v1 = places(&[
            (Controller::Memory, Version::V1, "/m/d"),
            (Controller::Pids, Version::V1, "/p/d"),
            (Controller::Cpu, Version::V1, "/c/d"),
        ]);
        let parts: [(&str, &[&str]); 3] = [
            (
                "/m/d/1",
                &[
                    "memory.limit_in_bytes=67108864",
                    "memory.memsw.limit_in_bytes=67108864",
                    "memory.soft_limit_in_bytes=33554432",
                ],
            ),
            ("/p/d/1", &["pids.max=21"]),
            (
                "/c/d/1",
                &[
                    "cpu.cfs_period_us=100000",
                    "cpu.cfs_quota_us=150000",
                    "cpu.shares=512",
                ],
            ),
        ];
        let parts = parts.map(|(directory, settings)| {
            (
                directory.to_owned(),
                settings.iter().map(|it| (*it).to_owned()).collect(),
            )
        });
        assert_eq!(made(&v1, &limits, &requests), Some(parts.to_vec()));

        let few = Limits {
            cpus: Some(LEAST_CPUS),
            ..Limits::default()
        };
        let settings = vec![
            "cpu.cfs_period_us=100000".to_owned(),
            "cpu.cfs_quota_us=1000".to_owned(),
        ];
        let none = Requests::default();
        assert_eq!(
            made(&v1, &few, &none),
            Some(vec![("/c/d/1".to_owned(), settings)])
        );
        let elsewhere = Limits {
            open_files: Some(64),
            shm: Some(1 << 20),
            ..Limits::default()
        };
        assert_eq!(made(&v1, &elsewhere, &none), None);
    }

    #[test]
    fn a_share_of_the_processors_is_what_kubernetes_makes_of_it() {
        for (cpus, expected) in [
            (0.001, (2, 1)),
            (0.1, (102, 4)),
            (1.0, (1024, 39)),
            (8.0, (8192, 313)),
            (1e9, (262_144, 10_000)),
        ] {
            let shares = shares(cpus);
            assert_eq!((shares, weight(shares)), expected, "{cpus}");
        }
    }

    #[test]
    fn counters_are_read_by_their_whole_name() {
        let events = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(entry(events, "oom"), Some(3));
        assert_eq!(entry(events, "oom_kill"), Some(2));
        assert_eq!(entry(events, "oom_group"), None);
        assert_eq!(entry("", "max"), None);
    }
}
