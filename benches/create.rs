//! `POST /workspaces` on a kept connection: from the request to a sandbox that takes commands.
//!
//! | case | a change means |
//! |---|---|
//! | `create/host` | the time to make a sandbox on the host's system changed: namespaces, overlays, restrictions |
//! | `create/setup_layer` | the same with a setup layer of 2,000 files: what a lower of another id range costs |
//! | `create/eight_at_once` | eight clients, the time until the last has its workspace: how far sandboxes that are not ready yet are the bound |

mod support;

use std::time::Duration;

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use serde_json::json;
use support::{Client, Provider, sum, time};

fn create(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("create");
    group.sampling_mode(SamplingMode::Flat).sample_size(50);

    let provider = Provider::start(&json!({ "name": "bench" }));
    let mut client = provider.client();
    group.bench_function("host", |bencher| {
        bencher.iter_custom(|iterations| sum(iterations, || create_one(&mut client)));
    });
    let mut clients: Vec<Client> = (0..8).map(|_| provider.client()).collect();
    group.bench_function("eight_at_once", |bencher| {
        bencher.iter_custom(|iterations| sum(iterations, || create_together(&mut clients)));
    });
    drop(provider);

    let provider = Provider::start(&json!({
        "name": "bench",
        "setup_script": "mkdir /project && cd /project && seq 2000 | xargs touch",
    }));
    let mut client = provider.client();
    // The first create runs the setup.
    create_one(&mut client);
    group.bench_function("setup_layer", |bencher| {
        bencher.iter_custom(|iterations| sum(iterations, || create_one(&mut client)));
    });
    group.finish();
}

fn create_one(client: &mut Client) -> Duration {
    let (duration, workspace) = time(|| client.create());
    client.delete(workspace);
    duration
}

fn create_together(clients: &mut [Client]) -> Duration {
    let (duration, workspaces) = time(|| {
        std::thread::scope(|scope| {
            let started: Vec<_> = clients
                .iter_mut()
                .map(|client| scope.spawn(|| client.create()))
                .collect();
            started
                .into_iter()
                .map(|thread| thread.join().expect("no client panicked"))
                .collect::<Vec<_>>()
        })
    });
    for (client, workspace) in clients.iter_mut().zip(workspaces) {
        client.delete(workspace);
    }
    duration
}

criterion_group!(benches, create);
criterion_main!(benches);
