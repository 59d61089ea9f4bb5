//! Commands in a running workspace on a kept connection: `POST /workspaces/{id}/cmd` and `…/execs`.
//!
//! | case | a change means |
//! |---|---|
//! | `exec/floor_true` | the machine changed, not derrick: fork, exec and wait of `/bin/true` |
//! | `exec/floor_shell` | the machine changed, not derrick: the same of `bash -c true`, which is what derrick runs |
//! | `exec/health` | the time of a request that does nothing changed: HTTP and the two hops |
//! | `exec/true` | the way of a command changed: provider, init, fork, confinement, exec, reaping |
//! | `exec/true_with_output` | the same with its output asked for |
//! | `exec/program` | `floor_true` by `POST execs` with `wait`: as `true`, without the shell and with the exec's log |
//! | `exec/output_1MiB` | how fast output is read and sent changed |
//! | `exec/floor_pipe_64MiB` | the machine changed: what a program prints, read from a pipe and thrown away |
//! | `exec/output_64MiB` | the same bytes through the log and a client that follows it: how fast output can be |
//! | `exec/eight_at_once` | eight clients in one workspace, the time until the last is answered: init's loop |
//! | `exec/two_hundred_at_once` | the same of `program` for two hundred clients |

mod support;

use std::hint::black_box;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use support::{COMMAND, Client, ENVIRONMENT, Provider, sum, time};

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
    group.bench_function("program", |bencher| {
        bencher.iter(|| client.run(&workspace, &["/bin/true"]));
    });
    let mut clients: Vec<Client> = (0..8).map(|_| provider.client()).collect();
    group.bench_function("eight_at_once", |bencher| {
        let exec = |client: &mut Client| client.exec(&workspace, COMMAND);
        bencher.iter_custom(|iterations| sum(iterations, || together(&mut clients, exec)));
    });
    group.sample_size(10);
    let mut clients: Vec<Client> = (0..200).map(|_| provider.client()).collect();
    group.bench_function("two_hundred_at_once", |bencher| {
        let run = |client: &mut Client| client.run(&workspace, &["/bin/true"]);
        bencher.iter_custom(|iterations| sum(iterations, || together(&mut clients, run)));
    });
    group.throughput(Throughput::Bytes(PRINTED as u64));
    let body = json!({ "argv": printer(), "output_limit": PRINTED });
    group.bench_function("output_64MiB", |bencher| {
        bencher.iter(|| {
            let exec = client.start(&workspace, &body);
            assert_eq!(client.follow(&exec), PRINTED);
        });
    });
    group.bench_function("floor_pipe_64MiB", |bencher| {
        bencher.iter(print_into_a_pipe)
    });
    group.finish();
}

/// Bytes that are printed where it is about how many.
const PRINTED: usize = 64 << 20;

fn printer() -> [String; 4] {
    ["/usr/bin/head", "-c", &PRINTED.to_string(), "/dev/zero"].map(str::to_owned)
}

fn print_into_a_pipe() {
    let [program, arguments @ ..] = printer();
    let mut child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    let mut stdout = child.stdout.take().expect("stdout is a pipe");
    let mut piece = vec![0; 64 * 1024];
    let mut read = 0;
    loop {
        match stdout.read(&mut piece).expect("a pipe can be read") {
            0 => break,
            some => read += some,
        }
    }
    assert_eq!(read, PRINTED);
    child.wait().expect("it ends");
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

/// How long it takes until every client has its answer.
fn together(clients: &mut [Client], ask: impl Fn(&mut Client) + Sync) -> Duration {
    let (duration, ()) = time(|| {
        std::thread::scope(|scope| {
            for client in clients {
                scope.spawn(|| ask(client));
            }
        });
    });
    duration
}

criterion_group!(benches, exec);
criterion_main!(benches);
