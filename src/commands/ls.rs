//! `derrick ls`: workspaces, the execs of one, or its files.

use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;

use super::remote::{self, print, telling_no};
use super::table::{moment, shortened, table};
use crate::cli::ReportFormat;
use crate::cli::client::{Columns, IdPart, Listed, LsArgs, PathInside};
use crate::client::printable::{self, printable};
use crate::client::{Client, Entry, Exec, InsidePath, Kind, Page, Workspace};

/// Characters of a command that are shown.
const COMMAND: usize = 60;
/// Characters of a digest that are shown.
const DIGEST: usize = 12;

/// Lists what was asked for.
///
/// # Errors
/// Why it cannot be listed.
pub fn ls(arguments: &LsArgs) -> anyhow::Result<ExitCode> {
    telling_no(remote::talk(&arguments.provider, async |client| {
        let look = Look {
            client,
            format: arguments.format.format(),
            columns: arguments.columns(),
        };
        match arguments.listed() {
            Listed::Workspaces => look.workspaces().await?,
            Listed::Execs(workspace) => look.execs(&workspace).await?,
            Listed::Files(path) => look.files(&path).await?,
        }
        Ok(ExitCode::SUCCESS)
    }))
}

struct Look {
    client: Client,
    format: ReportFormat,
    columns: Columns,
}

impl Look {
    async fn workspaces(&self) -> anyhow::Result<()> {
        if self.columns == Columns::NameOnly {
            return print_lines(&self.client.workspace_ids().await?);
        }
        let workspaces = self.client.workspaces().await?;
        if self.format == ReportFormat::Json {
            return print(&printable::json(&json!({ "workspaces": workspaces })));
        }
        let head = ["ID", "STATE", "CREATED", "EXECS", "LAYER"].map(str::to_owned);
        let row = |workspace: &Workspace| {
            [
                printable(&workspace.id),
                printable(&workspace.state),
                moment(workspace.created.as_f64().unwrap_or_default()),
                workspace.execs.to_string(),
                shortened(&printable(&workspace.layer), DIGEST),
            ]
        };
        let rows: Vec<_> = [head]
            .into_iter()
            .chain(workspaces.iter().map(row))
            .collect();
        print(&table(&rows))
    }

    async fn execs(&self, workspace: &IdPart) -> anyhow::Result<()> {
        let workspace = self.client.workspace_id(workspace).await?;
        let execs = self.client.execs(&workspace).await?;
        if self.columns == Columns::NameOnly {
            let ids: Vec<_> = execs.iter().map(|exec| printable(&exec.id)).collect();
            return print_lines(&ids);
        }
        if self.format == ReportFormat::Json {
            return print(&printable::json(&json!({ "execs": execs })));
        }
        let head = ["ID", "STATE", "STARTED", "COMMAND"].map(str::to_owned);
        let row = |exec: &Exec| {
            [
                printable(&exec.id),
                state(exec),
                moment(exec.started),
                shortened(&printable(&command(exec)), COMMAND),
            ]
        };
        let rows: Vec<_> = [head].into_iter().chain(execs.iter().map(row)).collect();
        print(&table(&rows))
    }

    async fn files(&self, path: &PathInside) -> anyhow::Result<()> {
        let at = InsidePath {
            workspace: self.client.workspace_id(&path.workspace).await?,
            path: path.path().to_owned(),
        };
        let entry = self.client.stat(&at).await?;
        let mut page = match entry.kind {
            Kind::Directory => self.client.list(&at, None).await?,
            _ => Page {
                entries: vec![entry],
                next: None,
            },
        };
        // A directory may have any number of entries: only one page is kept at a time.
        let mut listing = Listing::begin(self.format, self.columns);
        loop {
            listing.add(&page.entries)?;
            let Some(next) = page.next else {
                return listing.end();
            };
            page = self.client.list(&at, Some(&next)).await?;
            if page.next.as_ref() == Some(&next) {
                bail!("derrick's list of {path} does not come to an end");
            }
        }
    }
}

fn print_lines(lines: &[String]) -> anyhow::Result<()> {
    for line in lines {
        print(line)?;
    }
    Ok(())
}

/// The files of a directory, printed page by page.
struct Listing {
    format: ReportFormat,
    columns: Columns,
    printed: usize,
}

impl Listing {
    fn begin(format: ReportFormat, columns: Columns) -> Self {
        Self {
            format,
            columns,
            printed: 0,
        }
    }

    fn add(&mut self, entries: &[Entry]) -> anyhow::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        match (self.format, self.columns) {
            (ReportFormat::Json, _) => {
                for entry in entries {
                    let before = if self.printed == 0 {
                        "{\"entries\":["
                    } else {
                        ","
                    };
                    print(&format!("{before}{}", printable::json(entry)))?;
                    self.printed += 1;
                }
            }
            (ReportFormat::Text, Columns::NameOnly) => {
                for entry in entries {
                    print(&printable(&entry.name))?;
                }
            }
            (ReportFormat::Text, Columns::All) => {
                let rows: Vec<_> = entries.iter().map(row).collect();
                print(&table(&rows))?;
            }
        }
        Ok(())
    }

    fn end(self) -> anyhow::Result<()> {
        match (self.format, self.printed) {
            (ReportFormat::Text, _) => Ok(()),
            (ReportFormat::Json, 0) => print("{\"entries\":[]}"),
            (ReportFormat::Json, _) => print("]}"),
        }
    }
}

fn row(entry: &Entry) -> [String; 6] {
    let mut name = printable(&entry.name);
    if let Some(target) = &entry.target {
        name.push_str(" -> ");
        name.push_str(&printable(target));
    }
    [
        permissions(entry),
        entry.uid.to_string(),
        entry.gid.to_string(),
        entry.size.to_string(),
        moment(entry.mtime),
        name,
    ]
}

/// Type and permissions as ls(1) writes them.
fn permissions(entry: &Entry) -> String {
    let mode = entry.permissions();
    let mut text = String::from(entry.kind.letter());
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}

/// What an exec is doing, or how it ended.
fn state(exec: &Exec) -> String {
    let kind = exec.outcome.as_ref().map(|outcome| outcome.kind.as_str());
    match (kind, exec.exit_code) {
        (Some(kind @ ("exited" | "signaled")), Some(code)) => format!("{kind} {code}"),
        (Some(kind), _) => printable(kind),
        (None, _) => printable(&exec.state),
    }
}

fn command(exec: &Exec) -> String {
    match &exec.cmd {
        Some(line) => line.clone(),
        None => exec.argv.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_written_as_ls_writes_them() {
        for (kind, mode, expected) in [
            ("file", "0644", "-rw-r--r--"),
            ("directory", "1777", "drwxrwxrwt"),
            ("file", "4755", "-rwsr-xr-x"),
            ("file", "6644", "-rwSr-Sr--"),
            ("symlink", "0777", "lrwxrwxrwx"),
            ("fifo", "nonsense", "p---------"),
        ] {
            let entry = json!({
                "name": "x", "type": kind, "size": 0, "mode": mode, "uid": 0, "gid": 0, "mtime": 0,
            });
            let entry: Entry = serde_json::from_value(entry).unwrap();
            assert_eq!(permissions(&entry), expected);
        }
    }
}
