//! Work inside a workspace beside the same work bare, in a directory on the same disk.
//!
//! Each round does every job bare and inside, in turn, by the same script and shell; what a job needs is
//! made before, outside of the time. Told are medians, and the median of the rounds' ratios.
//!
//! `cargo bench --bench inside -- --rounds 7 [--only WORD]`; without `--bench`, as under `cargo test`, one
//! small round. What costs the difference is found with a debug build: `DERRICK_BIN` names it, and
//! `DERRICK_TEST_WITHOUT=seccomp` (`landlock`, …) turns a restriction off.
//!
//! | job | what it is, and what a difference means |
//! |---|---|
//! | `compile` | 200 C files, each compiled by `cc`, then linked: many processes, many small files read |
//! | `python` | 300 tests in 30 files by `python3 -m unittest`: imports, temporary files, a few processes |
//! | `unpack` | 50,000 files from a tar archive: making files, which the overlay does twice over |
//! | `status` | `git status` in a tree of 50,000 files, cached: one lstat(2) for each |

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use support::{ENVIRONMENT, Provider, Scratch, Workspace, time};

/// Rounds unless `--rounds` says otherwise.
const ROUNDS: usize = 7;

struct Job {
    name: &'static str,
    /// Done once, in an empty directory.
    prepare: &'static str,
    /// Done before each time that it is timed.
    before: &'static str,
    timed: &'static str,
}

/// `$N` is how many files there are.
const JOBS: [Job; 4] = [
    Job {
        name: "compile",
        prepare: r#"N=$((N / 250))
for n in $(seq $N); do
  { echo '#include <stdio.h>'; echo '#include <stdlib.h>'; echo '#include <string.h>'
    for f in $(seq 20); do
      echo "int f${n}_$f(int a, const char *s) { char b[64]; snprintf(b, sizeof b, \"%d%s\", a, s);"
      echo "  int t = 0; for (size_t i = 0; i < strlen(b); i++) t += b[i] * (int)(i + $f); return t % ($n + 7); }"
    done; } > part$n.c
done
echo 'int main(void) { return 0; }' > main.c"#,
        before: "rm -f *.o program",
        timed: "for f in *.c; do cc -O1 -c $f || exit; done; cc -o program *.o && ./program",
    },
    Job {
        name: "python",
        prepare: r#"for n in $(seq 30); do
  { echo 'import json, os, subprocess, tempfile, unittest'
    echo 'class Tests(unittest.TestCase):'
    for t in $(seq 9); do
      echo "    def test_$t(self):"
      echo '        with tempfile.TemporaryDirectory() as d:'
      echo '            for k in range(20):'
      echo '                with open(os.path.join(d, str(k)), "w") as f: json.dump({str(i): [i] * 20 for i in range(100)}, f)'
      echo '            total = sum(len(json.load(open(os.path.join(d, n)))) for n in os.listdir(d))'
      echo '        self.assertEqual(total, 2000)'
    done
    echo '    def test_process(self):'
    echo '        self.assertEqual(subprocess.run(["/bin/echo", "x"], capture_output=True).stdout, b"x\n")'
  } > test_$n.py
done"#,
        before: "rm -rf __pycache__",
        timed: "TMPDIR=$PWD python3 -W ignore -m unittest discover -q 2> log",
    },
    Job {
        name: "unpack",
        prepare: r#"mkdir made && cd made && for d in $(seq $((N / 500))); do
  mkdir d$d && (cd d$d && seq 500 | while read n; do echo "file $n of $d" > f$n; done)
done; cd .. && tar cf made.tar made && rm -rf made"#,
        before: "rm -rf made",
        timed: "tar xf made.tar",
    },
    Job {
        name: "status",
        prepare: r#"for d in $(seq $((N / 500))); do
  mkdir d$d && (cd d$d && seq 500 | while read n; do echo "file $n of $d" > f$n; done)
done
git init -q . && git add . && git -c user.name=b -c user.email=b@localhost commit -q -m all && git status"#,
        before: "git status",
        timed: "git status && git status && git status",
    },
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut rounds, mut files) = (1, 500);
    let mut only = String::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => (rounds, files) = (ROUNDS, 50_000),
            "--rounds" => rounds = support::rounds(&mut arguments),
            "--only" => only = arguments.next().expect("--only takes a word"),
            other => panic!("{other} is no argument of this bench; it has --rounds N, --only WORD"),
        }
    }
    let jobs = || JOBS.iter().filter(|job| job.name.contains(&only));
    let bare = Bare(Scratch::new());
    let provider = Provider::start(&json!({ "name": "bench" }));
    let workspace = provider.client().create();
    for job in jobs() {
        bare.run(job.name, files, job.prepare);
        inside(&provider, &workspace, job.name, files, job.prepare);
    }
    println!(
        "{:<8} {:>10} {:>10} {:>10} {:>8} {:>8} {:>8}  5 %",
        "", "bare", "inside", "ratio", "least", "most", "p10s"
    );
    for job in jobs() {
        let (mut outside, mut within, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            let once = |in_workspace: bool| {
                if in_workspace {
                    inside(&provider, &workspace, job.name, files, job.before);
                    inside(&provider, &workspace, job.name, files, job.timed)
                } else {
                    bare.run(job.name, files, job.before);
                    bare.run(job.name, files, job.timed)
                }
            };
            let first = round % 2 == 1;
            let (one, other) = (once(first), once(!first));
            let (out, within_it) = if first { (other, one) } else { (one, other) };
            outside.push(out.as_secs_f64());
            within.push(within_it.as_secs_f64());
            ratios.push(within_it.as_secs_f64() / out.as_secs_f64());
        }
        for all in [&mut outside, &mut within, &mut ratios] {
            all.sort_unstable_by(f64::total_cmp);
        }
        let middle = |all: &[f64]| all[all.len() / 2];
        let ratio = middle(&ratios);
        println!(
            "{:<8} {:>8.3} s {:>8.3} s {ratio:>10.3} {:>8.3} {:>8.3} {:>8.3}  {}",
            job.name,
            middle(&outside),
            middle(&within),
            ratios[0],
            ratios[ratios.len() - 1],
            within[within.len() / 10] / outside[outside.len() / 10],
            if ratio <= 1.05 { "yes" } else { "NO" },
        );
    }
    provider.client().delete(workspace);
}

fn script(files: usize, script: &str) -> String {
    format!("set -e; export N={files}; {{ {script}\n}} > /dev/null")
}

/// The host, in a directory of its own for each job.
struct Bare(Scratch);

impl Bare {
    fn run(&self, name: &str, files: usize, what: &str) -> Duration {
        let directory: PathBuf = self.0.join(name);
        make(&directory);
        let (duration, status) = time(|| {
            Command::new("/bin/bash")
                .args(["-c", &script(files, what)])
                .current_dir(&directory)
                .env_clear()
                .envs(ENVIRONMENT)
                .stdin(Stdio::null())
                .status()
        });
        let is_done = status.is_ok_and(|status| status.success());
        assert!(is_done, "{name} failed: {what}");
        duration
    }
}

fn make(directory: &Path) {
    std::fs::create_dir_all(directory).expect("the directory is the bench's own");
}

fn inside(
    provider: &Provider,
    workspace: &Workspace,
    name: &str,
    files: usize,
    what: &str,
) -> Duration {
    let entered = format!("mkdir -p /job/{name} && cd /job/{name} && {what}");
    // A connection of its own: one that idles during the work outside is closed.
    let mut client = provider.client();
    let (duration, ()) = time(|| client.exec(workspace, &script(files, &entered)));
    duration
}
