//! What a workspace's neighbour notices of bombs in it: `true` and `/health` beside them. As root, or where a
//! part of the control groups was given to derrick, since the bombs are limited.
//!
//! | case | a change means |
//! |---|---|
//! | `neighbours/quiet_true` | the machine or the way of a command changed: nothing runs beside it |
//! | `neighbours/quiet_health` | the machine or the way of a request changed |
//! | `neighbours/busy_true` | what 64 busy loops, a fork bomb and an output flood in one workspace take from another changed |
//! | `neighbours/busy_health` | likewise, from a request that needs no workspace |
//!
//! A limited workspace gets half a processor; `busy_true` within twice `quiet_true` is what is promised.

mod support;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use support::{COMMAND, Provider};

/// Bombs that go off until their workspace is gone.
const BOMBS: [&str; 3] = [
    "for n in $(seq 64); do while :; do :; done & done; wait",
    "b() { b | b & }; while :; do b; done",
    "yes",
];

fn neighbours(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("neighbours");
    group.sample_size(50);
    let provider = Provider::start(&json!({ "name": "bench" }));
    let mut client = provider.client();
    let workspace = client.create();
    group.bench_function("quiet_true", |bencher| {
        bencher.iter(|| client.exec(&workspace, COMMAND));
    });
    group.bench_function("quiet_health", |bencher| {
        bencher.iter(|| black_box(client.health()));
    });
    let limits = json!({ "cpus": 0.5, "pids": 200, "memory": "256MiB" });
    let hostile = client.create_with(&json!({ "limits": limits }));
    for bomb in BOMBS {
        client.start(&hostile, &json!({ "cmd": bomb }));
    }
    group.bench_function("busy_true", |bencher| {
        bencher.iter(|| client.exec(&workspace, COMMAND));
    });
    group.bench_function("busy_health", |bencher| {
        bencher.iter(|| black_box(client.health()));
    });
    client.delete(hostile);
    group.finish();
}

criterion_group!(benches, neighbours);
criterion_main!(benches);
