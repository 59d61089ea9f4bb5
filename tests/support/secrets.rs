//! Where a secret could be seen: the forms that it has, and which processes of the host show it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{Derrick, Workspace, as_owner};

/// The secret as it is, and as base64 has it, whatever stands before it.
pub(crate) fn forms(secret: &str) -> Vec<String> {
    // How many characters the bytes before it have a part in.
    let encoded = [("", 0), ("x", 2), ("xx", 3)].map(|(before, shared)| {
        let encoded = BASE64.encode(format!("{before}{secret}"));
        // The last characters depend on what comes after it.
        encoded[shared..encoded.len() - 4].to_owned()
    });
    std::iter::once(secret.to_owned()).chain(encoded).collect()
}

/// The command lines of this host that show it; anybody can read those.
pub(crate) fn command_lines_with(secret: &str) -> Vec<String> {
    processes_with(secret, "cmdline")
        .into_iter()
        .map(|(_, line)| line)
        .collect()
}

/// The names of the processes whose environment shows it, as far as these tests may read those.
pub(crate) fn environments_with(secret: &str) -> Vec<String> {
    processes_with(secret, "environ")
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

/// Fails the test where the secret is in the workspace, in the state directory, or in what derrick printed.
pub(crate) fn assert_nowhere(secret: &str, derrick: &Derrick, workspace: &Workspace) {
    let printed = derrick.printed();
    for form in forms(secret) {
        // Other tests look for it in command lines, where this must not match.
        let pattern = format!("[{}]{}", &form[..1], &form[1..]);
        let inside = workspace.sh(&format!(
            "grep -rle '{pattern}' /project /copy /environment /etc /home /root /srv /tmp /var /run /dev/shm 2> /dev/null
             set | grep -e '{pattern}'
             cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' '\\n' | grep -e '{pattern}'"
        ));
        assert_eq!(inside.output, "", "{form} is inside");
        let on_disk = as_owner("grep")
            .args(["-rla", "-e", &pattern])
            .arg(derrick.state())
            .output()
            .expect("cannot start grep");
        assert_eq!(String::from_utf8_lossy(&on_disk.stdout), "", "{form}");
        assert_eq!(on_disk.status.code(), Some(1), "{on_disk:?}");
        assert!(!printed.contains(&form), "{form} is in {printed}");
    }
}

/// Processes with their names, and the file of theirs that shows it.
fn processes_with(secret: &str, file: &str) -> Vec<(String, String)> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let forms = forms(secret);
    processes
        .filter_map(|process| {
            let process = process.ok()?.path();
            let shown = std::fs::read(process.join(file)).ok()?;
            let shown = String::from_utf8_lossy(&shown).replace('\0', " ");
            let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
            let shows = forms.iter().any(|form| shown.contains(form));
            shows.then(|| (name.trim_end().to_owned(), shown))
        })
        .collect()
}
