//! Ten thousand cycles of workspaces, sixteen at once: what there is at the start, after every thousand, at the end.
//!
//! A cycle creates a workspace, runs in it, leaves files, daemons, sockets and memory behind, resets it, runs again
//! and deletes it (`tests/support/cycles.rs`; `tests/cycles.rs` does some hundred). Fails where anything but memory is
//! more than at the start, or where memory grows by more than [`MOST_PER_CYCLE`] for each cycle. `DERRICK_CYCLES` says
//! how many instead; `DERRICK_BENCH_DIR` where the state directory is, on a disk.
//!
//! | column | more than at the start means |
//! |---|---|
//! | processes, mounts, namespaces, groups, loops | sandboxes, or parts of them, outlive their workspaces |
//! | descriptors | provider or spawner keeps a file, a socket, a lock of ids or a namespace of each |
//! | files, KiB on disk | something of each workspace stays in the state directory |
//! | provider, spawner (KiB) | it remembers something of each: how much, growth by cycles tells |
//! | net in kernel | network namespaces of the whole host (root): some hold on them that no process shows |

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::time::Instant;

use support::{Census, Scratch, cycles};

/// Cycles that come before the first look: until malloc(3) holds what sixteen clients at once make it hold.
const WARM_UP: u64 = 1000;
/// Cycles from one look to the next.
const STEP: u64 = 1000;
/// Bytes that each cycle may leave in the memory of either process.
const MOST_PER_CYCLE: u64 = 256;
/// Bytes by which it changes whatever is done, by how threads and malloc(3) go about it.
const PLAY: u64 = 2 << 20;

fn main() {
    let wanted = std::env::var("DERRICK_CYCLES").map_or(10_000, |text| {
        text.parse().expect("DERRICK_CYCLES is a number")
    });
    let parent = std::env::var_os("DERRICK_BENCH_DIR")
        .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let scratch = Scratch::below(&parent);
    let derrick = cycles::launch().state(&scratch.join("state")).start();
    cycles::run(&derrick, 0..WARM_UP);
    let first = Census::settled(&derrick);
    println!(
        "{:>7} {:>9} {:>6} {:>10} {:>6} {:>5} {:>11} {:>5} {:>11} {:>8} {:>7} {:>13} {:>8}",
        "cycles",
        "processes",
        "mounts",
        "namespaces",
        "groups",
        "loops",
        "descriptors",
        "files",
        "KiB on disk",
        "provider",
        "spawner",
        "net in kernel",
        "a second"
    );
    row(0, &first, 0.0);
    let mut done = 0;
    let mut last = first.clone();
    while done < wanted {
        let next = wanted.min(done + STEP);
        let started = Instant::now();
        cycles::run(&derrick, WARM_UP + done..WARM_UP + next);
        let took = started.elapsed().as_secs_f64();
        last = first.again(&derrick);
        #[expect(clippy::cast_precision_loss, reason = "it is shown with one digit")]
        row(next, &last, (next - done) as f64 / took);
        done = next;
    }
    for (name, before, after) in [
        ("provider", first.provider_memory, last.provider_memory),
        ("spawner", first.spawner_memory, last.spawner_memory),
    ] {
        let grown = after.saturating_sub(before);
        let most = PLAY + MOST_PER_CYCLE * done;
        assert!(grown < most, "the {name} has {grown} bytes more");
    }
}

fn row(cycles: u64, census: &Census, rate: f64) {
    let sum = |part: &str| -> u64 {
        let counts = census.counts.iter();
        let counts = counts.filter(|(name, _)| name.contains(part));
        counts.map(|(_, count)| count).sum()
    };
    let net = census.kernel.get("net_namespace in the kernel");
    println!(
        "{cycles:>7} {:>9} {:>6} {:>10} {:>6} {:>5} {:>11} {:>5} {:>11} {:>8} {:>7} {:>13} {rate:>8.1}",
        sum("processes below"),
        sum("mounts of"),
        sum("namespaces"),
        sum("control groups"),
        sum("loop devices"),
        sum("descriptors of"),
        sum("files in"),
        sum("bytes of them") / 1024,
        census.provider_memory / 1024,
        census.spawner_memory / 1024,
        net.map_or_else(|| "-".to_owned(), u64::to_string),
    );
}
