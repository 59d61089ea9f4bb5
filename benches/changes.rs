//! What changed in a workspace: 10 files of a tree of 100,000, and of a tree of 100, beside `git status` of the former.
//!
//! | case | a change means |
//! |---|---|
//! | `changes/git_status_of_100000` | the machine changed, not derrick: what the workspace's own git takes |
//! | `changes/list_10_of_100` | the fixed part changed: holding, a child of the spawner, mounts, an answer |
//! | `changes/list_10_of_100000` | the cost depends on the tree, which it must not |
//! | `changes/patch_10_of_100000` | comparing and writing diffs changed |

mod support;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use support::Provider;

fn changes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("changes");
    group.sample_size(20);
    group.measurement_time(Duration::from_secs(5));
    for directories in [1, 1000] {
        let provider = Provider::start(&json!({
            "name": "bench",
            "setup_script": format!(
                "mkdir /project; cd /project; for d in $(seq {directories}); do mkdir $d; done
                for d in *; do (cd $d; for f in $(seq 100); do echo $d $f > $f; done); done
                git init -q; git add .; git -c user.name=a -c user.email=a@b commit -qm all"
            ),
        }));
        let mut client = provider.client();
        let workspace = client.create();
        client.exec(
            &workspace,
            "cd /project/1; for f in $(seq 10); do echo more >> $f; done",
        );
        let files = directories * 100;
        if directories > 1 {
            group.bench_function(format!("git_status_of_{files}"), |bencher| {
                bencher.iter(|| {
                    client.exec(&workspace, "git -C /project status --porcelain > /dev/null")
                });
            });
            group.bench_function(format!("patch_10_of_{files}"), |bencher| {
                let query = "?format=patch&path=/project";
                bencher.iter(|| black_box(client.changes(&workspace, query)));
            });
        }
        group.bench_function(format!("list_10_of_{files}"), |bencher| {
            bencher.iter(|| black_box(client.changes(&workspace, "")));
        });
    }
    group.finish();
}

criterion_group!(benches, changes);
criterion_main!(benches);
