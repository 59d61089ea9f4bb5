//! `POST /workspaces/{id}/cmd` on a kept connection: one command in a running workspace.
//!
//! | case | a change means |
//! |---|---|
//! | `exec/floor_true` | the machine changed, not derrick: fork, exec and wait of `/bin/true` |
//! | `exec/floor_shell` | the machine changed, not derrick: the same of `bash -c true`, which is what derrick runs |
//! | `exec/health` | the time of a request that does nothing changed: HTTP and the two hops |
//! | `exec/true` | the way of a command changed: provider, init, fork, confinement, exec, reaping |
//! | `exec/true_with_output` | the same with its output asked for |
//! | `exec/output_1MiB` | how fast output is read and sent changed |
//! | `exec/eight_at_once` | eight clients in one workspace, the time until the last is answered: init's loop |

mod support;

use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use serde_json::json;
use support::{COMMAND, Client, ENVIRONMENT, Provider, Workspace, sum, time};

fn exec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("exec");
    group.sample_size(50);
    floor(&mut group);

    let provider = Provider::start(&json!({ "name": "bench" }));
    let mut client = provider.client();
    let workspace = client.create();
    group.bench_function("health", |bencher| {
        bencher.iter(|| black_box(client.health()));
    });
    group.bench_function("true", |bencher| {
        bencher.iter(|| client.exec(&workspace, COMMAND));
    });
    group.bench_function("true_with_output", |bencher| {
        bencher.iter(|| black_box(client.exec_with_output(&workspace, COMMAND)));
    });
    group.bench_function("output_1MiB", |bencher| {
        let cmd = "head -c 1048576 /dev/zero | tr '\\0' x";
        bencher.iter(|| black_box(client.exec_with_output(&workspace, cmd)));
    });
    let mut clients: Vec<Client> = (0..8).map(|_| provider.client()).collect();
    group.bench_function("eight_at_once", |bencher| {
        bencher
            .iter_custom(|iterations| sum(iterations, || exec_together(&mut clients, &workspace)));
    });
    group.finish();
}

/// What the same command takes without derrick.
fn floor(group: &mut BenchmarkGroup<'_, WallTime>) {
    let run = |command: &mut Command| {
        let status = command
            .env_clear()
            .envs(ENVIRONMENT)
            .status()
            .expect("the program can be started");
        assert!(status.success(), "{command:?} ended with {status}");
    };
    group.bench_function("floor_true", |bencher| {
        bencher.iter(|| run(&mut Command::new("/bin/true")));
    });
    group.bench_function("floor_shell", |bencher| {
        bencher.iter(|| run(Command::new("/bin/bash").args(["-c", COMMAND])));
    });
}

fn exec_together(clients: &mut [Client], workspace: &Workspace) -> Duration {
    let (duration, ()) = time(|| {
        std::thread::scope(|scope| {
            for client in clients {
                scope.spawn(|| client.exec(workspace, COMMAND));
            }
        });
    });
    duration
}

criterion_group!(benches, exec);
criterion_main!(benches);
