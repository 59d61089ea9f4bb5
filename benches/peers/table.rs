//! The one table at the end.

use std::time::Duration;

use super::contender::{Job, Samples};
use super::floor::{BARE, SAME, TRUE};

/// Prints every row with its ratios, and what has to be known to read them.
pub(crate) fn print(
    samples: &Samples,
    absent: &[(&'static str, String)],
    notes: &[String],
    rounds: usize,
) {
    let units = [(Job::Exec, TRUE), (Job::Exec, SAME), (Job::Whole, BARE)];
    println!();
    println!(
        "{:<9} {:<9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "job", "by", "median", "p10", "p90", "x true", "x shell", "x bare"
    );
    for (job, name) in samples.rows() {
        print!("{:<9} {name:<9}", word(job));
        for percent in [50, 10, 90] {
            let duration = samples.percentile(job, name, percent);
            print!(" {:>8}", milliseconds(duration));
        }
        for (unit, whose) in units {
            let unit = samples.percentile(unit, whose, 50);
            print!(" {:>8}", ratio(samples.percentile(job, name, 50), unit));
        }
        println!();
    }
    for (name, reason) in absent {
        println!("{name}: not on this host: {reason}");
    }
    println!();
    println!(
        "{rounds} rounds; milliseconds; ratios of medians to fork+exec+wait of /bin/true, to that of"
    );
    println!(
        "bash -c true, which all others run, and to that in namespaces on an overlay, unrestricted."
    );
    println!(
        "bwrap: read-only /usr, no overlay, no seccomp, no exec in a running sandbox; does not wait"
    );
    println!(
        "for the end of its namespaces. runc: no landlock, no seccomp; as root makes cgroups."
    );
    println!(
        "docker: by its command line; an engine's usual seccomp and AppArmor, no user namespace."
    );
    for note in notes {
        println!("{note}");
    }
    println!("{}", machine());
}

pub(crate) fn word(job: Job) -> &'static str {
    match job {
        Job::First => "first",
        Job::Exec => "exec",
        Job::Reset => "reset",
        Job::Teardown => "teardown",
        Job::Whole => "whole",
    }
}

fn milliseconds(duration: Option<Duration>) -> String {
    duration.map_or_else(String::new, |duration| {
        format!("{:.2}", duration.as_secs_f64() * 1e3)
    })
}

fn ratio(duration: Option<Duration>, unit: Option<Duration>) -> String {
    match (duration, unit) {
        (Some(duration), Some(unit)) => {
            format!("{:.1}", duration.as_secs_f64() / unit.as_secs_f64())
        }
        _ => String::new(),
    }
}

pub(crate) fn machine() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!(
        "Linux {}, {cores} cores, as {}",
        kernel.trim(),
        if rustix::process::geteuid().is_root() {
            "root"
        } else {
            "an ordinary user"
        }
    )
}
