//! Moments within a request that cannot be told in advance, and can be repeated: by time or by what happens on disk.
//!
//! What a request of a kind takes is measured while it is let be; a moment is then somewhere within that, and a
//! little beyond.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::GUARD;

/// Numbers that a seed determines: SplitMix64.
#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    /// From the seed in the variable of this name, or a new one; prints which.
    pub(crate) fn seeded(variable: &str) -> Self {
        let seed = std::env::var(variable).map_or_else(
            |_| {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.expect("it is after 1970").as_nanos() as u64
            },
            |seed| seed.parse().expect("a seed is a number"),
        );
        println!("{variable}={seed}");
        Self(seed)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }

    /// One of them.
    pub(crate) fn one_of<'t, T>(&mut self, things: &'t [T]) -> &'t T {
        let count = things.len() as u64;
        &things[usize::try_from(self.below(count)).expect("it is an index")]
    }
}

/// What a kind of request takes.
#[derive(Debug, Clone, Copy)]
struct Measure {
    time: Duration,
    changes: u64,
}

/// What each kind of request was last seen to take.
#[derive(Debug, Default)]
pub(crate) struct Measures(BTreeMap<&'static str, Measure>);

/// When to strike.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Moment {
    /// So long after it was sent.
    After(Duration),
    /// When so much has changed in the state directory.
    Change(u64),
    /// When it is answered.
    Never,
}

impl Measures {
    /// A moment in a request of this kind; `Never` the first time, for it to be measured.
    pub(crate) fn moment(&self, kind: &'static str, chance: &mut Chance) -> Moment {
        let Some(measure) = self.0.get(kind) else {
            return Moment::Never;
        };
        if measure.changes > 0 && chance.below(2) == 0 {
            return Moment::Change(1 + chance.below(measure.changes));
        }
        let most = measure.time.as_micros() * 5 / 4;
        let most = u64::try_from(most).expect("it is short");
        Moment::After(Duration::from_micros(chance.below(most)))
    }
}

/// Something that goes on in a thread of its own.
#[derive(Debug)]
pub(crate) struct UnderWay<T> {
    kind: &'static str,
    thread: JoinHandle<T>,
    /// Closed when it is over.
    over: UnixStream,
    changes: Changes,
    begun: Instant,
}

impl<T: Send + 'static> UnderWay<T> {
    /// Begins with `work`, which is of this kind, on this state directory.
    pub(crate) fn begin(
        kind: &'static str,
        state: &Path,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Self {
        let changes = Changes::below(state);
        let (over, theirs) = UnixStream::pair().expect("cannot make a socket pair");
        let begun = Instant::now();
        let thread = std::thread::spawn(move || {
            let _closed_at_the_end = theirs;
            work()
        });
        Self {
            kind,
            thread,
            over,
            changes,
            begun,
        }
    }

    /// Waits until the moment has come, or it is over. What it took is noted if it was let be.
    pub(crate) fn until(&mut self, moment: Moment, measures: &mut Measures) {
        let (deadline, most) = match moment {
            Moment::After(time) => (self.begun + time, u64::MAX),
            Moment::Change(number) => (self.begun + GUARD, number),
            Moment::Never => (self.begun + GUARD, u64::MAX),
        };
        let mut seen = 0;
        while seen < most {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let left = Timespec::try_from(left).expect("it is short");
            let mut ready = [
                PollFd::new(&self.over, PollFlags::IN),
                PollFd::new(&self.changes.watch, PollFlags::IN),
            ];
            let waited = poll(&mut ready, Some(&left));
            waited.expect("descriptors can be waited for");
            let is_over = !ready[0].revents().is_empty();
            if !ready[1].revents().is_empty() {
                seen += self.changes.read(most - seen);
            } else if is_over {
                let time = self.begun.elapsed();
                let measure = Measure {
                    time,
                    changes: seen,
                };
                measures.0.insert(self.kind, measure);
                return;
            }
        }
    }

    /// What came of it.
    pub(crate) fn join(mut self) -> T {
        self.over
            .set_read_timeout(Some(GUARD))
            .expect("a socket takes a timeout");
        let ended = self.over.read(&mut [0]);
        assert_eq!(ended.ok(), Some(0), "{} goes on for ever", self.kind);
        self.thread.join().expect("it does not panic")
    }
}

/// Changes of the directories in which a provider keeps its accounts.
#[derive(Debug)]
struct Changes {
    watch: OwnedFd,
    places: BTreeMap<i32, PathBuf>,
}

impl Changes {
    fn below(state: &Path) -> Self {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        let mut changes = Self {
            watch: watch.expect("cannot make an inotify instance"),
            places: BTreeMap::new(),
        };
        for place in ["layers", "snapshots", "workspaces", "trash", "run"] {
            changes.add(&state.join(place), 2);
        }
        changes
    }

    /// A directory with those below it, not deeper than that: what workspaces write is not the provider's.
    fn add(&mut self, directory: &Path, depth: usize) {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ONLYDIR;
        // It may be gone by now, or be no directory.
        let Ok(number) = inotify::add_watch(self.watch.as_fd(), directory, flags) else {
            return;
        };
        self.places.insert(number, directory.to_owned());
        if depth > 0 {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                self.add(&entry.path(), depth - 1);
            }
        }
    }

    /// Takes what has happened; how much, `most` at most.
    fn read(&mut self, most: u64) -> u64 {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut new = Vec::new();
        let mut count = 0;
        let mut reader = inotify::Reader::new(&self.watch, &mut buffer);
        // Nothing more to read is an error.
        while count < most
            && let Ok(event) = reader.next()
        {
            count += 1;
            if let (Some(place), Some(name)) = (self.places.get(&event.wd()), event.file_name()) {
                let name = name.to_string_lossy().into_owned();
                new.push(place.join(name));
            }
        }
        for path in new {
            self.add(&path, 0);
        }
        count
    }
}
