//! `derrick limits`: what a workspace may use, what it uses, and how to change that while it runs.

use std::process::ExitCode;

use bytesize::ByteSize;
use serde_json::{Map, Value, json};

use super::foreground::note;
use super::remote::{self, print, telling_no};
use super::table::table;
use crate::cli::ReportFormat;
use crate::cli::client::LimitsArgs;
use crate::client::printable::{self, printable};

/// Changes what is to be changed, and prints what is in force.
///
/// # Errors
/// Why it is not changed, or not known.
pub fn limits(arguments: &LimitsArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let told = if arguments.changes.is_empty() {
            client.describe(&workspace).await?
        } else {
            let mut patch = json!({});
            for change in &arguments.changes {
                patch[change.object][&change.name] = change.value.clone();
            }
            client.change(&workspace, &patch).await?
        };
        print(&match arguments.format.format() {
            ReportFormat::Text => shown(&told),
            ReportFormat::Json => printable::json(&told),
        })?;
        for name in told["pending"].as_array().into_iter().flatten() {
            let name = printable(name.as_str().unwrap_or_default());
            note(&format!("{name} holds as shown from the next reset on"));
        }
        Ok(ExitCode::SUCCESS)
    }))
}

/// A row for each of what is limited, requested or used.
fn shown(told: &Value) -> String {
    let head = ["NAME", "LIMIT", "REQUEST", "USED"].map(str::to_owned);
    let none = Map::new();
    let object = |name: &str| told[name].as_object().unwrap_or(&none);
    let (limits, requests, usage) = (object("limits"), object("requests"), object("usage"));
    // What is used has the name of its limit, but for time.
    let used = |name: &str| match name {
        "cpus" => usage.get("cpu").map(|it| format!("{it} s")),
        name => usage.get(name).map(|value| amount(name, value)),
    };
    let mut names: Vec<&str> = ["memory", "cpus", "pids"].into();
    for name in limits.keys().chain(requests.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let row = |name: &str| {
        let of = |object: &Map<String, Value>| {
            object
                .get(name)
                .map_or_else(|| "-".to_owned(), |value| amount(name, value))
        };
        let used = used(name).unwrap_or_else(|| "-".to_owned());
        [printable(name), of(limits), of(requests), used]
    };
    let rows: Vec<_> = [head]
        .into_iter()
        .chain(names.into_iter().map(row))
        .collect();
    table(&rows)
}

/// A value as people read it; those of some names are bytes.
fn amount(name: &str, value: &Value) -> String {
    match (name, value.as_u64()) {
        ("memory" | "shm" | "tmp" | "output" | "disk", Some(bytes)) => {
            ByteSize::b(bytes).to_string()
        }
        _ => printable(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_limited_stands_beside_what_is_used() {
        let told = json!({
            "limits": { "memory": 64 << 20, "execs": 3 },
            "requests": { "cpus": 0.5 },
            "usage": { "memory": 1 << 20, "cpu": 1.25 },
        });
        let expected = "\
NAME    LIMIT     REQUEST  USED
memory  64.0 MiB  -        1.0 MiB
cpus    -         0.5      1.25 s
pids    -         -        -
execs   3         -        -";
        assert_eq!(shown(&told), expected);
    }
}
