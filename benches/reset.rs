//! `POST /workspaces/{id}/reset` on a kept connection: from the request to the receipt.
//!
//! What dirtied the workspace is not measured. What is discarded is removed in the background: its
//! share shows where it competes with the next reset.
//!
//! | case | a change means |
//! |---|---|
//! | `reset/clean` | the time to make a sandbox and end one changed |
//! | `reset/setup_layer` | the same with a setup layer of 2,000 files: what a lower of another id range costs |
//! | `reset/dirty_files` | the same after 2,000 files were written: how far removal is off the path |
//! | `reset/image`, `reset/image_dirty` | `reset/clean` with a disk image, and with 2,000 files written to it |
//! | `reset/memory`, `reset/memory_dirty` | the same with files in memory |
//! | `reset/dirty_processes` | the same with 100 processes running: counting and ending them |

mod support;

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use serde_json::json;
use support::{Provider, sum, time};

/// A directory of 2,000 files.
const FILES: &str = "mkdir /dirt && cd /dirt && for n in {1..2000}; do echo $n > $n; done";

/// Each case, and what is run in the workspace before each reset.
const CASES: [(&str, Option<&str>); 3] = [
    ("clean", None),
    ("dirty_files", Some(FILES)),
    (
        "dirty_processes",
        Some("for n in {1..100}; do sleep 1000 > /dev/null 2>&1 & done"),
    ),
];

fn reset(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reset");
    group.sampling_mode(SamplingMode::Flat).sample_size(50);
    let mut measure = |name: &str, dirt: Option<&str>, provider: &Provider| {
        let mut client = provider.client();
        let workspace = client.create();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                sum(iterations, || {
                    if let Some(cmd) = dirt {
                        client.exec(&workspace, cmd);
                    }
                    time(|| client.reset(&workspace)).0
                })
            });
        });
        client.delete(workspace);
    };
    let provider = Provider::start(&json!({ "name": "bench" }));
    for (name, dirt) in CASES {
        measure(name, dirt, &provider);
    }
    drop(provider);
    let provider = Provider::start(&json!({
        "name": "bench",
        "setup_script": "mkdir /project && cd /project && seq 2000 | xargs touch",
    }));
    measure("setup_layer", None, &provider);
    drop(provider);
    for (storage, clean, dirty) in [
        ("disk", "image", "image_dirty"),
        ("memory", "memory", "memory_dirty"),
    ] {
        let limits = json!({ "disk": "1GiB" });
        let config = json!({ "name": "bench", "storage": storage, "limits": limits });
        let provider = Provider::start(&config);
        measure(clean, None, &provider);
        measure(dirty, Some(FILES), &provider);
    }
    group.finish();
}

criterion_group!(benches, reset);
criterion_main!(benches);
