//! What an idle workspace takes of memory, with a thousand of them at once.
//!
//! `cargo bench --bench density -- --workspaces 1000`; without `--bench`, as under `cargo test`, a few.
//!
//! | row | what it is |
//! |---|---|
//! | `MemAvailable` | what the machine has less of: everything, and whatever else went on meanwhile |
//! | `processes` | PSS of the provider, the spawner and every init: pages shared are divided |
//! | `Slab`, `Percpu`, `KernelStack`, `PageTables` | what the kernel keeps for them, of the whole machine |

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use support::{Client, Provider, Workspace};

/// Workspaces unless `--workspaces` says otherwise.
const WORKSPACES: usize = 1000;
/// Clients that make them.
const CLIENTS: usize = 4;
/// What one may take, in KiB.
const MOST: f64 = 2048.0;

/// Rows of /proc/meminfo that are told.
const ROWS: [&str; 5] = [
    "MemAvailable",
    "Slab",
    "Percpu",
    "KernelStack",
    "PageTables",
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut count = 8;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => count = WORKSPACES,
            "--workspaces" => {
                count = arguments
                    .next()
                    .and_then(|number| number.parse().ok())
                    .expect("--workspaces takes a number");
            }
            other => panic!("{other} is no argument of this bench; it has --workspaces N"),
        }
    }
    let before = usage(None);
    let provider = Provider::start(&json!({
        "name": "bench",
        "setup_script": "mkdir /project && cd /project && seq 2000 | xargs touch",
    }));
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| provider.client()).collect();
    // The layer, and all that there is of it once.
    let first = clients[0].create();
    clients[0].exec(&first, "true");
    clients[0].settle();
    let none = usage(Some(provider.id()));
    let started = Instant::now();
    let made: Vec<(&mut Client, Vec<Workspace>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                scope.spawn(move || {
                    let made = (0..count / CLIENTS).map(|_| client.create()).collect();
                    (client, made)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no client panicked"))
            .collect()
    });
    let took = started.elapsed();
    let made_count = made.iter().map(|(_, made)| made.len()).sum::<usize>();
    let all = usage(Some(provider.id()));
    let each = |row: &str| {
        let (all, none) = (all.get(row), none.get(row));
        let (all, none) = (all.copied().unwrap_or(0), none.copied().unwrap_or(0));
        let more = (all - none) as f64 / made_count as f64;
        if row == "MemAvailable" { -more } else { more }
    };
    let alone = |row: &str| none.get(row).copied().unwrap_or_default();
    println!("{made_count} idle workspaces, made in {took:.1?} by {CLIENTS} clients; KiB");
    println!("{:<14} {:>12} {:>14}", "", "each", "provider alone");
    for row in ROWS.iter().chain(&["processes"]) {
        println!("{row:<14} {:>12.1} {:>14}", each(row), alone(row));
    }
    // The provider by itself is shared by all.
    let own = before["MemAvailable"] - alone("MemAvailable");
    let whole = each("MemAvailable") + own as f64 / made_count as f64;
    println!(
        "each with its share of the provider ({own} KiB): {whole:.0} KiB; at most {MOST:.0}: {}",
        if whole <= MOST { "yes" } else { "NO" }
    );
    // A command in the last one: they work.
    for (client, workspaces) in made {
        if let Some(last) = workspaces.last() {
            client.exec(last, "true");
        }
        for workspace in workspaces {
            client.delete(workspace);
        }
    }
}

/// KiB, by what.
fn usage(provider: Option<i32>) -> BTreeMap<String, i64> {
    let text = std::fs::read_to_string("/proc/meminfo").expect("there is a /proc");
    let mut all: BTreeMap<String, i64> = text
        .lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            let value = value.trim().trim_end_matches(" kB").parse().ok()?;
            ROWS.contains(&name).then(|| (name.to_owned(), value))
        })
        .collect();
    if let Some(provider) = provider {
        let pss = tree(provider).into_iter().filter_map(pss).sum();
        all.insert("processes".to_owned(), pss);
    }
    all
}

fn pss(process: i32) -> Option<i64> {
    // One that has just ended has none.
    let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
    let mut lines = text.lines();
    lines.find_map(|line| {
        line.strip_prefix("Pss:")?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()
    })
}

/// A process and all below it.
fn tree(root: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    let mut pending = vec![root];
    while let Some(process) = pending.pop() {
        found.insert(process);
        let path = format!("/proc/{process}/task");
        let tasks = std::fs::read_dir(Path::new(&path));
        for task in tasks.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            pending.extend(
                children
                    .split_whitespace()
                    .filter_map(|id| id.parse::<i32>().ok()),
            );
        }
    }
    found
}
