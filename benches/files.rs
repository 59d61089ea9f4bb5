//! Files over the API on a kept connection, beside what `cp` and `tar` take for the same on this disk.
//!
//! | case | a change means |
//! |---|---|
//! | `files/floor_cp_100MiB` | the machine changed, not derrick: `cp` of the file, all of it in memory |
//! | `files/floor_loopback_100MiB` | the machine changed, not derrick: the bytes over a TCP socket of this host and nothing else |
//! | `files/get_100MiB` | how fast a file is read and sent changed |
//! | `files/put_100MiB` | how fast a file is received and written changed |
//! | `files/archive_100MiB` | the same by way of a tar: the pipe out of the sandbox |
//! | `files/get_4KiB` | the time of any request for a file changed: fork, user, two messages |
//! | `files/put_4KiB` | the same and the replacement itself: a file without a name, link, rename |
//! | `files/list_1000` | how fast a directory is listed changed |

mod support;

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use support::{Provider, Scratch};

const LARGE: usize = 100 << 20;
const SMALL: usize = 4 << 10;

fn files(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("files");
    group.sample_size(20);
    group.measurement_time(Duration::from_secs(8));
    let large: Vec<u8> = (0..LARGE).map(|n| (n % 251) as u8).collect();

    group.throughput(Throughput::Bytes(LARGE as u64));
    floor(&mut group, &large);

    let provider = Provider::start(&json!({ "name": "bench" }));
    let mut client = provider.client();
    let workspace = client.create();
    for (path, size) in [("/d/large", LARGE), ("/d/new", LARGE), ("/s/small", SMALL)] {
        client.put(&workspace, path, &large[..size]);
    }
    client.exec(
        &workspace,
        "mkdir /many && cd /many && seq 1000 | xargs touch",
    );

    group.bench_function("get_100MiB", |bencher| {
        bencher.iter(|| black_box(client.get(&workspace, "/d/large")));
    });
    group.bench_function("put_100MiB", |bencher| {
        bencher.iter(|| client.put(&workspace, "/d/new", &large));
    });
    group.bench_function("archive_100MiB", |bencher| {
        bencher.iter(|| black_box(client.get(&workspace, "/d/large?archive=tar")));
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("get_4KiB", |bencher| {
        bencher.iter(|| black_box(client.get(&workspace, "/s/small")));
    });
    group.bench_function("put_4KiB", |bencher| {
        bencher.iter(|| client.put(&workspace, "/s/small", &large[..SMALL]));
    });
    group.bench_function("list_1000", |bencher| {
        bencher.iter(|| black_box(client.get(&workspace, "/many")));
    });
    group.finish();
}

/// What the same bytes take without derrick.
fn floor(group: &mut BenchmarkGroup<'_, WallTime>, large: &[u8]) {
    let scratch = Scratch::new();
    let (from, to) = (scratch.join("from"), scratch.join("to"));
    std::fs::write(&from, large).expect("the disk has room");
    group.bench_function("floor_cp_100MiB", |bencher| {
        bencher.iter(|| {
            let status = Command::new("cp").arg(&from).arg(&to).status();
            assert!(status.expect("cp can be started").success());
        });
    });
    group.bench_function("floor_loopback_100MiB", |bencher| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it has one");
        let mut received = vec![0; LARGE];
        bencher.iter(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut sender, _) = listener.accept().expect("it is connected to");
                    sender.write_all(large).expect("it is read");
                });
                let mut receiver = TcpStream::connect(address).expect("it listens");
                receiver.read_exact(&mut received).expect("it is written");
            });
        });
    });
}

criterion_group!(benches, files);
criterion_main!(benches);
