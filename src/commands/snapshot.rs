//! `derrick snapshot`, `derrick fork` and `derrick fence`: what a workspace is now, kept; and what becomes of
//! it: `snapshots`, `show`, `label`, `export`, `import` and `forget`.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use super::remote::{self, complain, is_no, print, refused, telling_no};
use super::table::{moment, shortened, table};
use crate::cli::ReportFormat;
use crate::cli::client::{
    Columns, ExportArgs, FenceArgs, ForgetArgs, ForkArgs, FormatArgs, Here, ImportArgs, LabelArgs,
    ShowArgs, SnapshotArgs, SnapshotsArgs,
};
use crate::client::Snapshot;
use crate::client::printable::{self, printable};

/// Characters of a label that are shown in a list.
const LABEL: usize = 40;

/// Takes a snapshot and prints its id.
///
/// # Errors
/// Why there is none.
pub fn snapshot(arguments: &SnapshotArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let asked = json!({ "label": arguments.label });
        let taken = client.snapshot(&workspace, &asked).await?;
        told(&arguments.format, &taken, &[&taken["id"]])
    }))
}

/// Lists snapshots.
///
/// # Errors
/// Why they cannot be listed.
pub fn snapshots(arguments: &SnapshotsArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let of = match &arguments.workspace {
            Some(workspace) => Some(client.workspace_id(workspace).await?),
            None => None,
        };
        let snapshots = client.snapshots(of.as_deref()).await?;
        let text = match (arguments.format.format(), arguments.columns()) {
            (ReportFormat::Json, _) => printable::json(&json!({ "snapshots": snapshots })),
            (ReportFormat::Text, Columns::NameOnly) => {
                let ids = snapshots.iter().map(|snapshot| printable(&snapshot.id));
                ids.collect::<Vec<_>>().join("\n")
            }
            (ReportFormat::Text, Columns::All) => list(&snapshots),
        };
        if !text.is_empty() {
            print(&text)?;
        }
        Ok(ExitCode::SUCCESS)
    }))
}

fn list(snapshots: &[Snapshot]) -> String {
    let head = ["ID", "CREATED", "WORKSPACE", "LABEL"].map(str::to_owned);
    let row = |snapshot: &Snapshot| {
        let label = snapshot.label.as_deref().unwrap_or_default();
        [
            printable(&snapshot.id),
            moment(snapshot.created),
            printable(snapshot.workspace.as_deref().unwrap_or_default()),
            shortened(&printable(label), LABEL),
        ]
    };
    let rows = snapshots.iter().map(row);
    table(&[head].into_iter().chain(rows).collect::<Vec<_>>())
}

/// Prints what is known of a snapshot.
///
/// # Errors
/// Why it is not known.
pub fn show(arguments: &ShowArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let id = client.snapshot_id(&arguments.snapshot).await?;
        let snapshot = client.show_snapshot(&id).await?;
        print(&match arguments.format.format() {
            ReportFormat::Json => printable::json(&snapshot),
            ReportFormat::Text => all_of(&snapshot),
        })?;
        Ok(ExitCode::SUCCESS)
    }))
}

/// A line for each thing that is known.
fn all_of(snapshot: &Snapshot) -> String {
    let plain = |value: &Value| match value {
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    };
    let mut rows = vec![
        ["id".to_owned(), printable(&snapshot.id)],
        ["created".to_owned(), moment(snapshot.created)],
    ];
    if let Some(workspace) = &snapshot.workspace {
        rows.push(["workspace".to_owned(), printable(workspace)]);
    }
    if let Some(label) = &snapshot.label {
        rows.push(["label".to_owned(), printable(label)]);
    }
    let rest = snapshot.rest.iter();
    rows.extend(rest.map(|(name, value)| [printable(name), plain(value)]));
    table(&rows)
}

/// Calls a snapshot something, or nothing.
///
/// # Errors
/// Why it is not called that.
pub fn label(arguments: &LabelArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let id = client.snapshot_id(&arguments.snapshot).await?;
        let label = arguments.label.as_deref();
        let snapshot = client.label_snapshot(&id, label).await?;
        if arguments.format.format() == ReportFormat::Json {
            print(&printable::json(&snapshot))?;
        }
        Ok(ExitCode::SUCCESS)
    }))
}

/// Writes a snapshot as an archive to a file, or to stdout.
///
/// # Errors
/// Why it is not written; nothing of it has the file's name then.
pub fn export(arguments: &ExportArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let standard = Here::Standard;
        let to = arguments.to.as_ref().unwrap_or(&standard);
        if *to == Here::Standard && io::stdout().is_terminal() {
            bail!("stdout is a terminal; name a file");
        }
        let id = client.snapshot_id(&arguments.snapshot).await?;
        let mut bytes = client.export(&id, arguments.compression()).await?.bytes;
        match to {
            Here::Standard => {
                let mut stdout = tokio::io::stdout();
                while let Some(piece) = bytes.next().await {
                    stdout.write_all(&piece?).await?;
                }
                stdout.flush().await?;
            }
            Here::Path(path) => {
                let writing = || format!("writing {}", path.display());
                let parent = path
                    .parent()
                    .filter(|parent| !parent.as_os_str().is_empty());
                let parent = parent.unwrap_or(Path::new("."));
                // Under its name only when it is whole.
                let file = tempfile::NamedTempFile::new_in(parent).with_context(writing)?;
                let mut writer = tokio::fs::File::from_std(file.reopen()?);
                while let Some(piece) = bytes.next().await {
                    writer.write_all(&piece?).await.with_context(writing)?;
                }
                writer.flush().await.with_context(writing)?;
                file.persist(path).with_context(writing)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }))
}

/// Makes a snapshot of an archive and prints its id.
///
/// # Errors
/// Why there is none.
pub fn import(arguments: &ImportArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let imported = match &arguments.from {
            Here::Standard => client.import(ReaderStream::new(tokio::io::stdin())).await?,
            Here::Path(path) => {
                let file = tokio::fs::File::open(path).await;
                let file = file.with_context(|| format!("opening {}", path.display()))?;
                client.import(ReaderStream::new(file)).await?
            }
        };
        told(&arguments.format, &imported, &[&imported["id"]])
    }))
}

/// Removes each of the snapshots, whatever becomes of the others, and prints the ids of those that are gone.
///
/// # Errors
/// Why derrick cannot be reached.
pub fn forget(arguments: &ForgetArgs) -> anyhow::Result<ExitCode> {
    remote::talk(&arguments.provider, async |client| {
        let mut removed = Vec::new();
        let mut code = ExitCode::SUCCESS;
        for part in &arguments.snapshots {
            let result = async {
                let id = client.snapshot_id(part).await?;
                client.remove_snapshot(&id).await.map(|_| id)
            };
            match result.await.map_err(anyhow::Error::from) {
                Ok(id) => {
                    if arguments.format.format() == ReportFormat::Text {
                        print(&id)?;
                    }
                    removed.push(id);
                }
                Err(error) if is_no(&error) => {
                    complain(&format!("{error:#}"));
                    code = refused();
                }
                // The others would fare no better.
                Err(error) => return Err(error),
            }
        }
        if arguments.format.format() == ReportFormat::Json {
            print(&printable::json(&json!({ "removed": removed })))?;
        }
        Ok(code)
    })
}

/// Makes workspaces on a snapshot of another one and prints their ids.
///
/// # Errors
/// Why there are none.
pub fn fork(arguments: &ForkArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let asked = json!({ "count": arguments.count, "label": arguments.label });
        let forked = client.fork(&workspace, &asked).await?;
        let made = forked["workspaces"].as_array().into_iter().flatten();
        let ids: Vec<_> = made.map(|one| &one["id"]).collect();
        told(&arguments.format, &forked, &ids)
    }))
}

/// Fences a workspace and prints the snapshot's id.
///
/// # Errors
/// Why it is not fenced.
pub fn fence(arguments: &FenceArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let workspace = client.workspace_id(&arguments.workspace).await?;
        let asked = json!({ "at": arguments.at });
        let fenced = client.fence(&workspace, &asked).await?;
        told(&arguments.format, &fenced, &[&fenced["snapshot"]])
    }))
}

fn told(format: &FormatArgs, answer: &Value, ids: &[&Value]) -> anyhow::Result<ExitCode> {
    let lines = ids
        .iter()
        .map(|id| printable(id.as_str().unwrap_or_default()));
    print(&match format.format() {
        ReportFormat::Text => lines.collect::<Vec<_>>().join("\n"),
        ReportFormat::Json => printable::json(answer),
    })?;
    Ok(ExitCode::SUCCESS)
}
