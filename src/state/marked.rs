//! Processes that are known by a variable in their environment, proc_pid_environ(5).

use std::io;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Kills all processes that were started with this variable, as far as the caller may look at them; how many
/// these are.
///
/// # Errors
/// Those of reading `/proc`.
pub(super) fn kill(name: &str, value: &str) -> io::Result<usize> {
    let mark = format!("{name}={value}");
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        // What ended meanwhile, or is another user's, is none of them.
        if !has(&entry.path(), &mark) {
            continue;
        }
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // Of the process behind the descriptor, and of no later one with its number.
        if has(&entry.path(), &mark) && pidfd_send_signal(process, Signal::KILL).is_ok() {
            killed += 1;
        }
    }
    Ok(killed)
}

fn has(process: &Path, mark: &str) -> bool {
    let environment = std::fs::read(process.join("environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == mark.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_has_the_mark_is_killed_and_nothing_else() {
        let sleeper = |value: &str| {
            let mut command = Command::new("sleep");
            command.arg("1000").env("MARK_OF_A_TEST", value);
            command.spawn().expect("sleep is there")
        };
        let own = format!("own-{}", std::process::id());
        let (mut marked, mut other) = (sleeper(&own), sleeper("another"));
        assert_eq!(kill("MARK_OF_A_TEST", &own).expect("it can look"), 1);
        assert!(!marked.wait().expect("it is a child").success());
        assert!(other.try_wait().expect("it is a child").is_none());
        other.kill().expect("it is a child");
        other.wait().expect("it is a child");
    }
}
