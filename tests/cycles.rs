//! Some hundred cycles of workspaces, sixteen at once, leave nothing: processes, mounts, namespaces, groups,
//! descriptors, loop devices, ids, memory and disk are at the end as at the start.
//!
//! `cargo bench --bench cycles` does the same ten thousand times.

mod support;

use std::collections::BTreeMap;

use support::{Census, Mode, cycles, mode};

/// Cycles that come before the first look: what the first ones bring into being for good is no leak.
const WARM_UP: u64 = 64;
/// Cycles between one look and the next.
const CYCLES: u64 = 256;

/// Bytes that a process may have more of after [`CYCLES`]: so much changes by how threads and malloc(3) go about it.
const MOST_GROWTH: u64 = 2 << 20;

#[test]
fn cycles_leave_nothing_behind() {
    let derrick = cycles::launch()
        // One arena, so that what is free is not spread over as many as there are threads.
        .environment("MALLOC_ARENA_MAX", "1")
        .start();
    cycles::run(&derrick, 0..WARM_UP);
    let first = Census::settled(&derrick);
    println!("{first}");
    // The spawner, and the init of the one that is ready.
    assert_eq!(first.counts["processes below the provider"], 2, "{first}");
    assert_eq!(first.counts["entries of workspaces"], 0, "{first}");
    cycles::run(&derrick, WARM_UP..WARM_UP + CYCLES);
    let last = first.again(&derrick);
    println!("{last}");
    for (name, before, after) in [
        ("provider", first.provider_memory, last.provider_memory),
        ("spawner", first.spawner_memory, last.spawner_memory),
    ] {
        let grown = after.saturating_sub(before);
        assert!(grown < MOST_GROWTH, "the {name} has {grown} bytes more");
    }
    // The whole host's: others may make and end some as well, but not one for each cycle.
    let grown: BTreeMap<_, _> = last
        .kernel
        .iter()
        .map(|(name, count)| (name, count.saturating_sub(first.kernel[name])))
        .filter(|(_, more)| *more >= CYCLES / 2)
        .collect();
    assert!(grown.is_empty(), "{grown:#?}");
}

#[test]
fn a_census_sees_what_is_there() {
    let derrick = cycles::launch().start();
    assert!(derrick.create().delete());
    let before = Census::settled(&derrick);
    // More than the pool had ready, and may have by then.
    let others = [derrick.create(), derrick.create()];
    let workspace = derrick.create();
    workspace.exec_sh("sleep 1000");
    let during = Census::of(&derrick);
    let more = |what: &str| during.counts[what] > before.counts[what];
    let mut seen = vec![
        "processes below the provider",
        "files in the state directory",
        "entries of workspaces",
    ];
    // An ordinary user may not look at those of processes with other ids.
    if mode() == Mode::Root {
        seen.extend([
            "mnt namespaces",
            "net namespaces",
            "pid namespaces",
            "user namespaces",
        ]);
    }
    for what in seen {
        assert!(more(what), "{what}\n{}", before.difference(&during));
    }
    assert!(workspace.delete());
    for other in others {
        assert!(other.delete());
    }
    before.again(&derrick);
}
