//! `DELETE /workspaces/{id}` on a kept connection: from the request until nothing of it runs; and the
//! same of one exec.
//!
//! Its files are removed in the background, which is not measured but where it competes.
//!
//! | case | a change means |
//! |---|---|
//! | `teardown/idle` | the time to end a sandbox changed: its processes, then its namespaces and mounts |
//! | `teardown/dirty_files` | the same after 2,000 files were written: how far removal is off the path |
//! | `teardown/busy` | the same with 100 processes running |
//! | `teardown/tree_of_1000` | `DELETE` of an exec with a thousand processes below it: the looks at `/proc` that it takes |

mod support;

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use serde_json::json;
use support::{Provider, sum, time};

/// Each case, and what is run in the workspace before it is ended.
const CASES: [(&str, Option<&str>); 3] = [
    ("idle", None),
    (
        "dirty_files",
        Some("mkdir /dirt && cd /dirt && for n in {1..2000}; do echo $n > $n; done"),
    ),
    (
        "busy",
        Some("for n in {1..100}; do sleep 1000 > /dev/null 2>&1 & done"),
    ),
];

fn teardown(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("teardown");
    group.sampling_mode(SamplingMode::Flat).sample_size(50);
    let provider = Provider::start(&json!({ "name": "bench" }));
    let mut client = provider.client();
    for (name, dirt) in CASES {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                sum(iterations, || {
                    let workspace = client.create();
                    if let Some(cmd) = dirt {
                        client.exec(&workspace, cmd);
                    }
                    time(|| client.delete(workspace)).0
                })
            });
        });
    }
    group.sample_size(10);
    let workspace = client.create();
    let body = json!({ "cmd": TREE });
    group.bench_function("tree_of_1000", |bencher| {
        bencher.iter_custom(|iterations| {
            sum(iterations, || {
                client.exec(&workspace, "rm -f /tmp/there; mkfifo /tmp/there");
                let exec = client.start(&workspace, &body);
                client.exec(&workspace, "read line < /tmp/there");
                time(|| client.kill(&exec)).0
            })
        });
    });
    group.finish();
}

/// A thousand processes, ten of them with 99 each; it says when they are there.
const TREE: &str = "rm -f /tmp/up; mkfifo /tmp/up; exec 3<> /tmp/up
for n in {1..10}; do
    (for m in {1..99}; do sleep 1000 & done; echo >&3; wait) &
done
for n in {1..10}; do read line <&3; done
echo > /tmp/there; wait";

criterion_group!(benches, teardown);
criterion_main!(benches);
