//! The control groups of one sandbox: made and filled by the spawner, read, changed and removed by the
//! provider.
//!
//! A group is a directory in each hierarchy that a limit needs, in one alone where there is version 2
//! only. The limits are in it before the first process is, also where a running sandbox gets one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    version: Version,
    directory: PathBuf,
    controllers: Vec<Controller>,
    settings: Vec<Setting>,
}

/// How a sandbox's groups are to become others.
#[derive(Debug)]
pub struct Change {
    /// All of them.
    pub whole: Group,
    /// Those that are there.
    pub kept: Option<Group>,
    /// Those that are not yet.
    pub fresh: Option<Group>,
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
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counters {
    /// Bytes of memory now.
    pub memory: Option<u64>,
    /// Bytes of memory at its peak.
    pub peak_memory: Option<u64>,
    /// Processes and threads now, init included.
    pub pids: Option<u64>,
    /// Times that the kernel refused one because of the limit.
    pub pids_refused: Option<u64>,
    /// Time on processors.
    pub cpu: Option<Duration>,
    /// Time that was waited for because of the limit.
    pub throttled: Option<Duration>,
    /// Periods, of 100 ms each, in which something waited because of the limit.
    pub throttled_periods: Option<u64>,
    /// How short each of these was.
    pub pressure: Pressures,
}

/// How short memory, processors and input and output were for a group, where the kernel measures it
/// (version 2, `CONFIG_PSI`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressures {
    /// Memory.
    pub memory: Option<Pressure>,
    /// Processors.
    pub cpu: Option<Pressure>,
    /// Input and output.
    pub io: Option<Pressure>,
}

/// Pressure stall information, Documentation/accounting/psi.rst.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// While some waited.
    pub some: Stall,
    /// While all that could have worked waited.
    pub full: Option<Stall>,
}

/// Time that was waited.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stall {
    /// Percent of the last ten seconds.
    pub avg10: f64,
    /// Since the group was made.
    pub total: Duration,
}

impl Pressure {
    /// What a file of the kernel's says.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let stall = |kind: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
            let field = |name: &str| {
                let mut fields = line.split_whitespace();
                fields.find_map(|field| field.strip_prefix(name))
            };
            Some(Stall {
                avg10: field("avg10=")?.parse().ok()?,
                total: Duration::from_micros(field("total=")?.parse().ok()?),
            })
        };
        Some(Self {
            some: stall("some ")?,
            full: stall("full "),
        })
    }
}

/// How often a limit was met, as far as the kernel counts that for a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    /// Processes that the kernel killed because the limit on memory was reached.
    pub oom_kills: Option<u64>,
    /// Processes that it refused because of the limit.
    pub pids_refused: Option<u64>,
}

impl Group {
    /// `None` where nothing is asked for that needs a group. Where something does, it has one below `unified` as
    /// well, if there is that.
    pub(super) fn new(
        places: &BTreeMap<Controller, Place>,
        unified: Option<&Path>,
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
        let unified = unified.map(|parent| parent.join(name));
        if let Some(directory) = unified
            && !parts.is_empty()
            && parts.iter().all(|part| part.directory != directory)
        {
            parts.push(Part {
                version: Version::V2,
                directory,
                controllers: Vec::new(),
                settings: Vec::new(),
            });
        }
        Self::of(parts)
    }

    fn of(parts: Vec<Part>) -> Option<Self> {
        (!parts.is_empty()).then_some(Self { parts })
    }

    /// Makes its directories and sets the limits; part of it may be there when it fails. What is there
    /// already is changed, memory before the rest.
    ///
    /// # Errors
    /// The failed step; `EBUSY` for less memory than is in use, on version 1.
    pub fn make(&self) -> Result<(), Failure> {
        self.parts.iter().try_for_each(Part::make)
    }

    /// Moves a process into it, and with it what that starts from then on.
    ///
    /// # Errors
    /// The failed step.
    pub fn add(&self, child: Child) -> Result<(), Failure> {
        self.parts.iter().try_for_each(|part| part.add(child.id()))
    }

    /// Moves all processes of a sandbox into it, of which `init` is the first. They are held meanwhile.
    ///
    /// # Errors
    /// The failed step; `ETIMEDOUT` where some are still outside after a while.
    pub fn enclose(&self, init: i32) -> Result<(), Failure> {
        let step = Step::Limits;
        for part in &self.parts {
            // What it starts from then on is inside.
            part.add(init)?;
            let mut moved = BTreeSet::from([init]);
            let until = Instant::now() + ENCLOSING;
            loop {
                let (tree, whole) = descendants(init).at(step, "listing processes")?;
                let outside = |it: &i32| !moved.contains(it) && !part.has(*it);
                let outside: Vec<_> = tree.into_iter().filter(outside).collect();
                if outside.is_empty() && whole {
                    break;
                }
                if Instant::now() > until {
                    return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))
                        .at(step, "moving all processes of a sandbox");
                }
                if !whole {
                    moved.clear();
                }
                for process in outside {
                    match part.add(process) {
                        // It has ended; what it started is listed after it.
                        Err(failure) if failure.errno == libc::ESRCH => {}
                        added => added?,
                    }
                    moved.insert(process);
                }
            }
        }
        Ok(())
    }

    /// What becomes of `before` where `after` is asked for: the same directories, as its processes are
    /// in them, each limit that is not asked for any more lifted; and those that come anew, with the
    /// processes not in them yet.
    #[must_use]
    pub fn change(before: Option<&Self>, after: Option<Self>) -> Option<Change> {
        let before = before.map_or(&[][..], |group| &group.parts);
        let mut parts = after.map_or_else(Vec::new, |group| group.parts);
        for old in before {
            let Some(new) = parts.iter_mut().find(|it| it.directory == old.directory) else {
                parts.push(Part {
                    settings: lifted(&old.settings, &[]),
                    ..old.clone()
                });
                continue;
            };
            new.settings.extend(lifted(&old.settings, &new.settings));
            let more = old
                .controllers
                .iter()
                .filter(|it| !new.controllers.contains(it));
            let more: Vec<_> = more.copied().collect();
            new.controllers.extend(more);
        }
        let is_new = |part: &Part| before.iter().all(|it| it.directory != part.directory);
        let (fresh, kept) = parts.iter().cloned().partition(is_new);
        Some(Change {
            whole: Self::of(parts)?,
            kept: Self::of(kept),
            fresh: Self::of(fresh),
        })
    }

    /// What its directories are called.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let name = self.parts.first()?.directory.file_name()?;
        Some(name.to_str()?.to_owned())
    }

    /// Whether there is a ceiling for memory.
    #[must_use]
    pub fn limits_memory(&self) -> bool {
        let files = ["memory.limit_in_bytes", "memory.max"];
        let mut settings = self.parts.iter().flat_map(|part| &part.settings);
        settings.any(|it| files.contains(&it.file.as_str()) && it.value != default_of(&it.file))
    }

    /// Whether its processes' memory is counted here.
    #[must_use]
    pub fn counts_memory(&self) -> bool {
        let mut parts = self.parts.iter();
        parts.any(|part| part.controllers.contains(&Controller::Memory))
    }

    /// Removes it; no error if it is not there.
    ///
    /// # Errors
    /// Those of rmdir(2): `EBUSY` while it has a process.
    pub fn remove(&self) -> io::Result<()> {
        if let Some(Ok(aside)) = self.unified().map(aside) {
            // The init of one that was frozen to its end has been there. Others may be.
            let _ = fs::remove_dir(aside);
        }
        self.parts
            .iter()
            .try_for_each(|part| remove(&part.directory))
    }

    /// The provider's own groups, which those of all its sandboxes are below.
    pub fn parents(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().filter_map(|part| part.directory.parent())
    }

    /// How often a limit was met so far: what of the counters an outcome needs, and no more.
    #[must_use]
    pub fn hits(&self) -> Hits {
        let of = |controller| {
            let mut parts = self.parts.iter();
            parts.find(|part| part.controllers.contains(&controller))
        };
        Hits {
            oom_kills: of(Controller::Memory).and_then(Part::oom_kills),
            pids_refused: of(Controller::Pids).and_then(Part::pids_refused),
        }
    }

    /// What the kernel counts.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for part in &self.parts {
            for controller in &part.controllers {
                part.count(*controller, &mut counters);
            }
            // One without controllers is there for the freezer alone.
            if part.version == Version::V2 && !part.controllers.is_empty() {
                let pressure = |file: &str| Pressure::parse(&part.read(file));
                counters.pressure = Pressures {
                    memory: pressure("memory.pressure"),
                    cpu: pressure("cpu.pressure"),
                    io: pressure("io.pressure"),
                };
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

    /// Whether the kernel can freeze its processes. Version 1 could as well, but a process that it has frozen
    /// cannot be killed.
    #[must_use]
    pub fn has_freezer(&self) -> bool {
        self.unified().is_some()
    }

    fn unified(&self) -> Option<&Path> {
        let mut parts = self.parts.iter();
        let part = parts.find(|part| part.version == Version::V2)?;
        Some(&part.directory)
    }

    /// Has all its processes but `init` freeze, which they do as soon as they are in no system call any more.
    /// `init` must start none from before this until it is thawed.
    ///
    /// # Errors
    /// Those of the group's files; [`thaw`](Self::thaw) undoes what was done by then.
    pub fn freeze(&self, init: i32) -> io::Result<()> {
        let directory = self.unified().ok_or(io::ErrorKind::Unsupported)?;
        let aside = aside(directory)?;
        let mut tries = 0..TRIES;
        loop {
            make_directory(&aside)?;
            match move_to(&aside, init) {
                // Another one that is thawed has just removed it.
                Err(error) if is_not_there(&error) && tries.next().is_some() => {}
                moved => break moved?,
            }
        }
        fs::write(directory.join("cgroup.freeze"), "1")
    }

    /// Whether all that was to freeze has.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let events = self
            .unified()
            .map(|directory| directory.join("cgroup.events"));
        let events = events.and_then(|file| fs::read_to_string(file).ok());
        events.is_some_and(|events| entry(&events, "frozen") == Some(1))
    }

    /// Has its processes go on, and `init` be one of them again.
    ///
    /// # Errors
    /// Those of the group's files.
    pub fn thaw(&self, init: i32) -> io::Result<()> {
        let directory = self.unified().ok_or(io::ErrorKind::Unsupported)?;
        fs::write(directory.join("cgroup.freeze"), "0")?;
        move_to(directory, init)?;
        // Others may be there; the last one removes it.
        let _ = fs::remove_dir(aside(directory)?);
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
        // Of memory with swap and without, version 1 takes none that would be less or more than the other
        // is just now: which goes first depends on where they come from.
        let put_off: Vec<_> = self
            .settings
            .iter()
            .filter(|it| self.set(it).is_err())
            .collect();
        put_off.into_iter().try_for_each(|setting| {
            let (file, value) = (self.directory.join(&setting.file), &setting.value);
            let attempt = format!("writing {value} to {}", file.display());
            self.set(setting).at(Step::Limits, attempt)
        })?;
        let protects = |it: &Setting| it.file == PROTECTION;
        match self.directory.parent() {
            Some(parent) if self.settings.iter().any(protects) => protect(parent).at(
                Step::Limits,
                format_args!("protecting {}", parent.display()),
            ),
            _ => Ok(()),
        }
    }

    fn set(&self, setting: &Setting) -> io::Result<()> {
        match fs::write(self.directory.join(&setting.file), &setting.value) {
            Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written,
        }
    }

    fn add(&self, process: i32) -> Result<(), Failure> {
        let shown = self.directory.display();
        move_to(&self.directory, process)
            .at(Step::Limits, format_args!("writing {shown}/cgroup.procs"))
    }

    /// Whether a process is in this group, proc_pid_cgroup(5).
    fn has(&self, process: i32) -> bool {
        let Some(own) = self.directory.file_name().and_then(|name| name.to_str()) else {
            return false;
        };
        let parent = self.directory.parent().and_then(Path::file_name);
        let parent = parent.and_then(|name| name.to_str()).unwrap_or_default();
        let end = format!("/{parent}/{own}");
        let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
        groups.lines().any(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                return false;
            };
            let here = match self.version {
                Version::V2 => controllers.is_empty(),
                Version::V1 => {
                    let named = |name: &str| controllers.split(',').any(|it| it == name);
                    self.controllers.iter().any(|it| named(it.name()))
                }
            };
            here && path.ends_with(&end)
        })
    }

    fn count(&self, controller: Controller, counters: &mut Counters) {
        let number = |file: &str| self.read(file).trim().parse().ok();
        match (controller, self.version) {
            (Controller::Memory, Version::V1) => {
                counters.memory = number("memory.usage_in_bytes");
                counters.peak_memory = number("memory.max_usage_in_bytes");
            }
            (Controller::Memory, Version::V2) => {
                counters.memory = number("memory.current");
                counters.peak_memory = number("memory.peak");
            }
            (Controller::Pids, _) => {
                counters.pids = number("pids.current");
                counters.pids_refused = self.pids_refused();
            }
            (Controller::Cpu, Version::V1) => {
                let stat = self.read("cpu.stat");
                counters.throttled = entry(&stat, "throttled_time").map(Duration::from_nanos);
                counters.throttled_periods = entry(&stat, "nr_throttled");
                // There where cpuacct is mounted with cpu, which is usual.
                counters.cpu = number("cpuacct.usage").map(Duration::from_nanos);
            }
            (Controller::Cpu, Version::V2) => {
                let stat = self.read("cpu.stat");
                counters.throttled = entry(&stat, "throttled_usec").map(Duration::from_micros);
                counters.throttled_periods = entry(&stat, "nr_throttled");
                counters.cpu = entry(&stat, "usage_usec").map(Duration::from_micros);
            }
        }
    }

    fn oom_kills(&self) -> Option<u64> {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        entry(&self.read(file), "oom_kill")
    }

    fn pids_refused(&self) -> Option<u64> {
        entry(&self.read("pids.events"), "max")
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap_or_default()
    }
}

/// Moves a process to a group.
fn move_to(directory: &Path, process: i32) -> io::Result<()> {
    fs::write(directory.join("cgroup.procs"), process.to_string())
}

/// The group, beside those of sandboxes, in which inits are while all else of theirs is frozen.
fn aside(directory: &Path) -> io::Result<PathBuf> {
    Ok(directory
        .parent()
        .ok_or(io::ErrorKind::NotFound)?
        .join("inits"))
}

/// How often it is tried to be in a group that others remove.
const TRIES: u32 = 10;

/// Whether a group is not there, or was removed just then.
fn is_not_there(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// What version 2 has for memory that is taken from a group last.
const PROTECTION: &str = "memory.low";

/// Gives the group above those of sandboxes what they ask for together, as none gets more than is its.
fn protect(parent: &Path) -> io::Result<()> {
    let mut sum: u64 = 0;
    for entry in fs::read_dir(parent)? {
        // Those that are no groups, or have none of it, have none.
        let own = fs::read_to_string(entry?.path().join(PROTECTION)).unwrap_or_default();
        sum = sum.saturating_add(own.trim().parse().unwrap_or(0));
    }
    fs::write(parent.join(PROTECTION), sum.to_string())
}

/// How long it is tried to move all processes of a sandbox.
const ENCLOSING: Duration = Duration::from_secs(1);

/// The processes below `ancestor`, and whether none was overlooked.
///
/// None of them forks just then: they are held. Nobody is overlooked then, unless ids begin anew meanwhile,
/// which shows.
fn descendants(ancestor: i32) -> io::Result<(Vec<i32>, bool)> {
    let latest = latest_process()?;
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let process = name.to_str().and_then(|name| name.parse::<i32>().ok());
        // One that has ended and left nothing is nobody.
        if let Some((process, parent)) = process.and_then(|it| Some((it, parent_of(it)?))) {
            parents.insert(process, parent);
        }
    }
    let mut whole = latest_process()? >= latest;
    let mut found = Vec::new();
    for process in parents.keys() {
        let mut above = *process;
        // What is read one after the other might lead in a circle.
        for _ in 0..parents.len() {
            match parents.get(&above) {
                Some(parent) if *parent == ancestor => {
                    found.push(*process);
                    break;
                }
                // Above what can be seen at all.
                Some(0) => break,
                Some(parent) => above = *parent,
                None => {
                    whole = false;
                    break;
                }
            }
        }
    }
    Ok((found, whole))
}

/// The parent of a process that can still fork, proc_pid_stat(5).
fn parent_of(process: i32) -> Option<i32> {
    let stat = fs::read(format!("/proc/{process}/stat")).ok()?;
    // The name before it is the process's own choice.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(&stat[end + 1..])
        .ok()?
        .split_whitespace();
    fields.next()?;
    fields.next()?.parse().ok()
}

/// The last process id that was given away, proc_loadavg(5).
fn latest_process() -> io::Result<i32> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let last = text
        .split_whitespace()
        .next_back()
        .and_then(|it| it.parse().ok());
    last.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// What undoes those of `before` that `after` does not set.
fn lifted(before: &[Setting], after: &[Setting]) -> Vec<Setting> {
    let gone = |it: &&Setting| after.iter().all(|other| other.file != it.file);
    let undo = |it: &Setting| Setting {
        value: default_of(&it.file).to_owned(),
        ..it.clone()
    };
    before.iter().filter(gone).map(undo).collect()
}

/// What is in a file where nothing is asked for.
fn default_of(file: &str) -> &'static str {
    match file {
        "cpu.cfs_period_us" => "100000",
        "cpu.shares" => "1024",
        "cpu.weight" => "100",
        "memory.low" | "memory.oom.group" => "0",
        // Version 1 has a number where version 2 has a word.
        "cpu.cfs_quota_us"
        | "memory.limit_in_bytes"
        | "memory.memsw.limit_in_bytes"
        | "memory.soft_limit_in_bytes" => "-1",
        _ => "max",
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
            Group::new(places, None, "1", limits, requests).map(|group| shown(&group))
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
    fn a_change_keeps_directories_lifts_what_is_gone_and_names_what_is_new() {
        let v1 = places(&[
            (Controller::Memory, Version::V1, "/m/d"),
            (Controller::Pids, Version::V1, "/p/d"),
        ]);
        let made = |limits| Group::new(&v1, None, "1", &limits, &Requests::default());
        let memory = Limits {
            memory: Some(4096),
            ..Limits::default()
        };
        let pids = Limits {
            pids: Some(7),
            ..Limits::default()
        };
        let first = Group::change(None, made(memory)).unwrap();
        assert_eq!(first.fresh.as_ref(), Some(&first.whole));
        assert_eq!(first.kept, None);
        assert!(first.whole.limits_memory());
        let second = Group::change(Some(&first.whole), made(pids)).unwrap();
        let text = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let lifted = ["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"];
        let memory_part = ("/m/d/1".to_owned(), text(&lifted));
        let pids_part = ("/p/d/1".to_owned(), text(&["pids.max=8"]));
        assert_eq!(shown(&second.whole), [pids_part.clone(), memory_part]);
        assert_eq!(shown(&second.fresh.unwrap()), [pids_part]);
        assert!(!second.whole.limits_memory() && second.whole.counts_memory());
        let third = Group::change(Some(&second.whole), None).unwrap();
        assert_eq!((third.whole.parts.len(), third.fresh), (2, None));
        assert!(Group::change(None, None).is_none());
    }

    #[test]
    fn whoever_has_a_group_has_one_that_can_be_frozen_where_there_is_version_2() {
        let pids = Limits {
            pids: Some(7),
            ..Limits::default()
        };
        let v1 = places(&[(Controller::Pids, Version::V1, "/p/d")]);
        let v2 = places(&[(Controller::Pids, Version::V2, "/u/d")]);
        for (places, unified, limits, expected) in [
            (&v1, None, &pids, Some((vec!["/p/d/1"], false))),
            (
                &v1,
                Some("/u/d"),
                &pids,
                Some((vec!["/p/d/1", "/u/d/1"], true)),
            ),
            (&v2, Some("/u/d"), &pids, Some((vec!["/u/d/1"], true))),
            (&v2, Some("/u/d"), &Limits::default(), None),
        ] {
            let unified = unified.map(Path::new);
            let group = Group::new(places, unified, "1", limits, &Requests::default());
            let found = group.as_ref().map(|group| {
                let parts = group.parts.iter();
                let directories = parts.map(|part| part.directory.to_str().unwrap());
                (directories.collect::<Vec<_>>(), group.has_freezer())
            });
            assert_eq!(found, expected);
        }
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
    fn pressure_is_read_where_the_kernel_has_it() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=2500\n\
                    full avg10=0.25 avg60=0.00 avg300=0.00 total=7\n";
        let stall = |avg10, total| Stall {
            avg10,
            total: Duration::from_micros(total),
        };
        let both = Pressure {
            some: stall(1.5, 2500),
            full: Some(stall(0.25, 7)),
        };
        assert_eq!(Pressure::parse(text), Some(both));
        // That of processors had one line before 5.13.
        let one = text.lines().next().and_then(Pressure::parse).unwrap();
        assert_eq!((one.some, one.full), (both.some, None));
        assert_eq!(Pressure::parse(""), None);
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
