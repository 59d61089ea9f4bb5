//! A setup that goes on from the last one, since only commits moved, beside one from nothing.
//!
//! The repository has 2,000 files, 60 of them C that the setup script has make(1) compile; its upstream is a
//! directory on the disk. A round does each row once, in turn.
//!
//! `cargo bench --bench setup -- --rounds 7`; without `--bench`, as under `cargo test`, one round.
//!
//! | row | what is timed, and what a change means |
//! |---|---|
//! | `bare` | `git clone` and `make` on the host: the machine |
//! | `from nothing` | a create on an empty state: mirror, checkout, script, layer |
//! | `moved` | a create after one commit of one file: fetch, checkout, script on what the last one built, layer |
//! | `present` | a create after that: asking the upstream, and a sandbox |

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use support::{Provider, Scratch, time};

/// Rounds unless `--rounds` says otherwise.
const ROUNDS: usize = 7;

const REPOSITORY: &str = r#"git init -q -b main . && mkdir src data
for n in $(seq 60); do
  { echo '#include <stdio.h>'
    for f in $(seq 40); do echo "int f${n}_$f(int a) { printf(\"%d\\n\", a * $f); return a % ($n + 7); }"; done
  } > src/part$n.c
done
for n in $(seq 1939); do echo $n > data/$n; done
printf 'OBJECTS=$(patsubst %%.c,%%.o,$(wildcard src/*.c))\nlibrary.a: $(OBJECTS)\n\tar rcs $@ $^\n' > Makefile
git add . && git -c user.name=a -c user.email=a@b commit -qm first"#;

const COMMIT: &str = r#"echo "int more$(wc -l < src/part1.c)(void) { return 1; }" >> src/part1.c
git -c user.name=a -c user.email=a@b commit -qam more"#;

const ROWS: [&str; 4] = ["bare", "from nothing", "moved", "present"];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut rounds = 1;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => rounds = ROUNDS,
            "--rounds" => rounds = support::rounds(&mut arguments),
            other => panic!("{other} is no argument of this bench; it has --rounds N"),
        }
    }
    let scratch = Scratch::new();
    let upstream = scratch.join("upstream");
    std::fs::create_dir(&upstream).expect("the directory is the bench's own");
    shell(&upstream, REPOSITORY);
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..rounds {
        let clone = format!("git clone -q upstream {round} && make -s -C {round}");
        times[0].push(time(|| shell(&scratch.join("."), &clone)).0);
        let provider = Provider::start(&json!({
            "name": "bench",
            "repositories": [{ "url": upstream, "path": "/project" }],
            "setup_script": "make -s -C /project",
        }));
        let mut client = provider.client();
        times[1].push(time(|| client.create()).0);
        shell(&upstream, COMMIT);
        times[2].push(time(|| client.create()).0);
        client.settle();
        times[3].push(time(|| client.create()).0);
    }
    println!(
        "{:<14} {:>9} {:>9} {:>9}  x from nothing",
        "", "median", "least", "most"
    );
    let [median, least, most] = [50, 0, 100].map(|percent| {
        move |times: &[Duration]| {
            let mut times = times.to_vec();
            times.sort_unstable();
            times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3
        }
    });
    for (name, row) in ROWS.iter().zip(&times) {
        println!(
            "{name:<14} {:>9.1} {:>9.1} {:>9.1}  {:.3}",
            median(row),
            least(row),
            most(row),
            median(row) / median(&times[1]),
        );
    }
    println!("milliseconds; the ratio is of medians");
}

/// Has a shell do this in a directory; it has to succeed.
fn shell(directory: &Path, script: &str) {
    let status = Command::new("bash")
        .args(["-ec", script])
        .current_dir(directory)
        .status();
    assert!(status.expect("bash is there").success(), "{script}");
}
