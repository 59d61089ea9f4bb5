//! How near to nothing a reset, a create and an exec are, beside the least that the kernel takes.
//!
//! All on kept connections, in workspaces on a setup layer of 2,000 files. A round does the floor, a
//! job, the floor, the next job: a noisy moment meets all of them, and ratios are of one run. Before each
//! job the pool is full and nothing else is under way; `sustained` is about what happens otherwise.
//!
//! `cargo bench --bench instant -- --rounds 300 [--only WORD] [--base DIRECTORY]`; without `--bench`, as
//! under `cargo test`, few rounds. The `host` base has an overlay for each of its directories (`/`, `/usr`,
//! `/opt`), a base that is a directory has one, as the floor does.
//!
//! | row | what is timed, and what a change means |
//! |---|---|
//! | `spawn` | the machine: fork + exec + wait of `/bin/true`, of a process made for it |
//! | `health` | HTTP and two hops over loopback |
//! | `reset` | a request for a reset to its receipt: adopting a sandbox, killing the old one |
//! | `reset, …` | the same after 100,000 files were made, 1,000 processes started, 1 GiB written |
//! | `create` | a request for a workspace to its answer: adopting a sandbox, writing a record |
//! | `exec` | `/bin/true` by `POST execs` with `wait` |
//! | `first create` | the first request of a provider that has just started on a state with the layer |
//! | `sustained` | resets a second of some clients that do nothing else: making and disposing of sandboxes |
//! | `sandboxes` | the machine: sandboxes a second that the floor makes, one process on each core |

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{Client, Floor, Provider, Scratch, Workspace, time};

/// Rounds unless `--rounds` says otherwise.
const ROUNDS: usize = 300;

/// What is written before a reset, and how it is called.
const DIRT: [(&str, &str); 3] = [
    (
        "reset, 100,000 files",
        "mkdir /dirt && cd /dirt && seq 100000 | xargs touch",
    ),
    (
        "reset, 1,000 processes",
        "for n in {1..1000}; do sleep 1000 > /dev/null 2>&1 & done",
    ),
    (
        "reset, 1 GiB written",
        "head -c 1073741824 /dev/zero > /dirt",
    ),
];

/// How long each kind of `sustained` takes in one round.
const SUSTAINED: Duration = Duration::from_secs(4);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut rounds = 3;
    let mut only = String::new();
    let mut base = json!("host");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            support::floor::ARGUMENT => return support::floor::serve(arguments),
            "--bench" => rounds = ROUNDS,
            "--rounds" => rounds = support::rounds(&mut arguments),
            "--only" => only = arguments.next().expect("--only takes a word"),
            "--base" => {
                let path = arguments.next().expect("--base takes a directory");
                base = json!({"type": "directory", "path": path});
            }
            other => panic!(
                "{other} is no argument of this bench; it has --rounds N, --only WORD, --base DIRECTORY"
            ),
        }
    }
    let wanted = |name: &str| only.is_empty() || name.contains(&only);
    let scratch = Scratch::new();
    let mut bench = Bench {
        floor: Floor::start(&scratch.join("floor"), &["/bin/true"]),
        times: BTreeMap::new(),
    };
    let mut provider = Provider::start(&json!({
        "name": "bench",
        "base": base,
        "setup_script": "mkdir /project && cd /project && seq 2000 | xargs touch",
    }));
    if wanted("single") {
        bench.single(&provider, rounds);
    }
    for (name, dirt) in DIRT {
        if wanted(name) {
            bench.dirty(&provider, name, dirt, rounds.div_ceil(20));
        }
    }
    if wanted("first create") {
        // The layer is made.
        let mut client = provider.client();
        let workspace = client.create();
        client.delete(workspace);
        for _ in 0..rounds.div_ceil(20) {
            provider = provider.start_again();
            let mut client = provider.client();
            let workspace = bench.take("first create", || client.create());
            client.delete(workspace);
        }
    }
    bench.print();
    if wanted("sustained") {
        for clients in [1, 4, 16] {
            sustained(&provider, &scratch, clients, rounds.div_ceil(100));
        }
    }
}

/// What was timed so far.
struct Bench {
    floor: Floor,
    times: BTreeMap<&'static str, Vec<Duration>>,
}

impl Bench {
    fn take<T>(&mut self, name: &'static str, job: impl FnOnce() -> T) -> T {
        let floor = self.floor.spawn();
        self.times.entry("spawn").or_default().push(floor);
        let (duration, result) = time(job);
        self.times.entry(name).or_default().push(duration);
        result
    }

    /// Jobs of one client, with nothing else under way.
    fn single(&mut self, provider: &Provider, rounds: usize) {
        let mut client = provider.client();
        let workspace = client.create();
        for _ in 0..rounds {
            self.take("health", || client.health());
            client.settle();
            self.take("reset", || client.reset(&workspace));
            client.settle();
            self.take("exec", || client.run(&workspace, &["/bin/true"]));
            client.settle();
            let created = self.take("create", || client.create());
            client.delete(created);
            client.settle();
        }
        client.delete(workspace);
    }

    fn dirty(&mut self, provider: &Provider, name: &'static str, dirt: &str, rounds: usize) {
        let mut client = provider.client();
        let workspace = client.create();
        for _ in 0..rounds {
            client.exec(&workspace, dirt);
            client.settle();
            self.take(name, || client.reset(&workspace));
            // Directories are removed in turn: the one before this is gone as well then.
            client.reset_with(&workspace, "?wait=disposal");
            client.settle();
            self.take("reset", || client.reset(&workspace));
        }
        client.delete(workspace);
    }

    fn percentile(&self, name: &str, percent: usize) -> Option<f64> {
        percentile(self.times.get(name)?, percent)
    }

    fn print(&self) {
        let median = |name: &str| self.percentile(name, 50);
        println!(
            "{:<24} {:>6} {:>8} {:>8} {:>8} {:>8}  target",
            "", "n", "median", "p10", "p90", "x spawn"
        );
        for (name, times) in &self.times {
            let ratio = |other: &str| Some(median(name)? / median(other)?);
            let [fifty, ten, ninety] =
                [50, 10, 90].map(|percent| percentile(times, percent).unwrap_or_default());
            println!(
                "{name:<24} {:>6} {fifty:>8.2} {ten:>8.2} {ninety:>8.2} {:>8.1}  {}",
                times.len(),
                ratio("spawn").unwrap_or_default(),
                target(name, fifty, ratio("spawn"), ratio("reset")),
            );
        }
        println!("milliseconds; x spawn is the ratio of medians");
    }
}

/// What is asked of a row, and whether it is so.
fn target(name: &str, median: f64, spawn: Option<f64>, reset: Option<f64>) -> String {
    let met = |text: &str, is_so: Option<bool>| match is_so {
        Some(true) => format!("{text}: yes"),
        Some(false) => format!("{text}: NO"),
        None => String::new(),
    };
    let both = |first: String, second: String| format!("{first}; {second}");
    match name {
        "reset" => both(
            met("1.2 ms", Some(median <= 1.2)),
            met("5 x spawn", spawn.map(|ratio| ratio <= 5.0)),
        ),
        "create" => met("1.1 x reset", reset.map(|ratio| ratio <= 1.1)),
        "exec" => met("2.5 x spawn", spawn.map(|ratio| ratio <= 2.5)),
        "first create" => met("50 ms", Some(median < 50.0)),
        "spawn" | "health" => String::new(),
        _ => {
            let text = format!("1.5 x reset ({:.2})", reset.unwrap_or_default());
            met(&text, reset.map(|ratio| ratio <= 1.5))
        }
    }
}

/// In milliseconds; the duration below which the share `percent` lie.
fn percentile(times: &[Duration], percent: usize) -> Option<f64> {
    let mut times = times.to_vec();
    times.sort_unstable();
    let time = times.get(times.len().checked_sub(1)? * percent / 100)?;
    Some(time.as_secs_f64() * 1e3)
}

/// Resets of some clients that do nothing else, and the floor's sandboxes, in turn.
fn sustained(provider: &Provider, scratch: &Scratch, clients: usize, rounds: usize) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut floors: Vec<Floor> = (0..cores)
        .map(|core| {
            Floor::start(
                &scratch.join(format!("floor-{clients}-{core}")),
                &["/bin/true"],
            )
        })
        .collect();
    let mut ours: Vec<(Client, Workspace)> = (0..clients)
        .map(|_| {
            let mut client = provider.client();
            let workspace = client.create();
            (client, workspace)
        })
        .collect();
    let (mut shares, mut rates, mut floor_rates) = (Vec::new(), Vec::new(), Vec::new());
    let mut waits = Vec::new();
    for _ in 0..rounds {
        let made: Vec<_> = together(&mut floors, |floor| floor.sandboxes(SUSTAINED));
        let made: Result<Vec<_>, String> = made.into_iter().collect();
        let floor_rate: f64 = made
            .expect("the floor makes sandboxes")
            .iter()
            .map(|made| made.count as f64 / made.whole.as_secs_f64())
            .sum();
        let started = Instant::now();
        let waited: Vec<Vec<Duration>> = together(&mut ours, |(client, workspace)| {
            let mut waited = Vec::new();
            while started.elapsed() < SUSTAINED {
                let receipt = client.reset_with(workspace, "");
                let micros = receipt["waited_us"].as_u64().expect("a receipt says it");
                waited.push(Duration::from_micros(micros));
            }
            waited
        });
        let elapsed = started.elapsed().as_secs_f64();
        let waited: Vec<Duration> = waited.into_iter().flatten().collect();
        let rate = waited.len() as f64 / elapsed;
        shares.push(rate / floor_rate);
        rates.push(rate);
        floor_rates.push(floor_rate);
        waits.extend(waited);
        // What is left of this round is not the next one's.
        for (client, workspace) in &mut ours {
            client.reset_with(workspace, "?wait=disposal");
        }
    }
    let share = median(&mut shares);
    println!(
        "sustained, {clients:>2} clients: {:>5.0} resets/s, floor {:>5.0} sandboxes/s on {cores} cores: {:>4.0} %  60 %: {}; waited {:.2} ms, p90 {:.2}",
        median(&mut rates),
        median(&mut floor_rates),
        share * 100.0,
        if share >= 0.6 { "yes" } else { "NO" },
        percentile(&waits, 50).unwrap_or_default(),
        percentile(&waits, 90).unwrap_or_default(),
    );
    for (mut client, workspace) in ours {
        client.delete(workspace);
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Does this with all at once; what each gave.
fn together<T: Send, R: Send>(all: &mut [T], job: impl Fn(&mut T) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let job = &job;
        let started: Vec<_> = all
            .iter_mut()
            .map(|one| scope.spawn(move || job(one)))
            .collect();
        started
            .into_iter()
            .map(|thread| thread.join().expect("no thread panicked"))
            .collect()
    })
}
