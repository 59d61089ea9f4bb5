//! `derrick cp`: files and whole directories into a workspace, or out of one.
//!
//! Nothing is kept in memory but a few pieces on their way, and the side that is slower sets the
//! pace. What comes out of a workspace was made by a stranger: see `out`.

mod into;
mod out;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::Mode;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::remote::{self, complain, ended_by, print, refused, telling_no};
use crate::cli::ReportFormat;
use crate::cli::client::{Copy, CpArgs, PathInside};
use crate::client::{Client, InsidePath, printable};

/// How long tidying up may take after ctrl-c.
const TIDYING: Duration = Duration::from_secs(10);

/// What was copied.
#[derive(Debug, Default)]
struct Copied {
    entries: u64,
    bytes: u64,
    left_out: u64,
    /// The first of those, fit for a terminal.
    names_left_out: Vec<String>,
}

/// What both directions need.
#[derive(Debug, Clone)]
struct Carrier {
    client: Client,
    bar: ProgressBar,
    /// Cancelled when the user wants no more.
    stop: CancellationToken,
    /// Permission bits that nothing gets here.
    umask: u32,
}

/// Copies, and says what was left out.
///
/// # Errors
/// Why it is not copied, or not wholly.
pub fn cp(arguments: &CpArgs) -> anyhow::Result<ExitCode> {
    let copy = arguments.copy()?;
    let umask = own_umask();
    telling_no(remote::talk(&arguments.provider, async |client| {
        let carrier = Carrier {
            client,
            bar: bar()?,
            stop: CancellationToken::new(),
            umask,
        };
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut copying = std::pin::pin!(async {
            match &copy {
                Copy::Out { from, to } => out::copy(&carrier, from, to).await,
                Copy::In { from, to } => into::copy(&carrier, from, to).await,
            }
        });
        let told = tokio::select! {
            copied = &mut copying => {
                carrier.bar.finish_and_clear();
                return report(arguments, &copied?);
            }
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
        };
        carrier.stop.cancel();
        // It fails now, and takes away what it had begun.
        let _ = tokio::time::timeout(TIDYING, copying).await;
        carrier.bar.finish_and_clear();
        Ok(ended_by(told))
    }))
}

fn report(arguments: &CpArgs, copied: &Copied) -> anyhow::Result<ExitCode> {
    if arguments.format.format() == ReportFormat::Json {
        print(&printable::json(&json!({
            "entries": copied.entries,
            "bytes": copied.bytes,
            "left_out": copied.left_out,
        })))?;
    }
    if copied.left_out == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let mut names = copied.names_left_out.join(", ");
    if copied.left_out > copied.names_left_out.len() as u64 {
        names.push_str(", …");
    }
    complain(&format!("{} entries left out: {names}", copied.left_out));
    Ok(refused())
}

/// The umask can be read only by setting it; no other thread makes files at this time.
fn own_umask() -> u32 {
    let umask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    rustix::process::umask(umask);
    umask.as_raw_mode()
}

/// Shows itself where stderr is a terminal only.
fn bar() -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::no_length();
    bar.set_style(style("{bytes}, {binary_bytes_per_sec}, {elapsed}")?);
    Ok(bar)
}

fn style(template: &str) -> anyhow::Result<ProgressStyle> {
    Ok(ProgressStyle::with_template(template)?)
}

impl Carrier {
    /// Says how much there is to be carried.
    fn expect(&self, bytes: u64) -> anyhow::Result<()> {
        self.bar.set_length(bytes);
        let template = "{bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left";
        self.bar.set_style(style(template)?);
        Ok(())
    }

    async fn resolve(&self, path: &PathInside) -> anyhow::Result<InsidePath> {
        Ok(InsidePath {
            workspace: self.client.workspace_id(&path.workspace).await?,
            path: path.path().to_owned(),
        })
    }

    /// The same bytes, counted; an error where the user wants no more.
    fn counted<E: Into<io::Error>>(
        &self,
        bytes: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
        let Self { bar, stop, .. } = self.clone();
        let pieces = futures_util::stream::unfold(Some(bytes), move |bytes| {
            let (bar, stop) = (bar.clone(), stop.clone());
            async move {
                let mut bytes = bytes?;
                tokio::select! {
                    piece = bytes.next() => {
                        let piece = piece?.map_err(Into::into);
                        if let Ok(piece) = &piece {
                            bar.inc(piece.len() as u64);
                        }
                        Some((piece, Some(bytes)))
                    }
                    () = stop.cancelled() => Some((Err(io::Error::other("stopped")), None)),
                }
            }
        });
        Box::pin(pieces)
    }
}

/// A path of either side, taken apart at its last component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named<'a> {
    /// The thing of that name.
    As(&'a OsStr),
    /// What is in it: it ends with `/.`, or has no name of its own.
    Contents,
}

impl<'a> Named<'a> {
    fn of(path: &'a [u8]) -> Self {
        let end = path.iter().rposition(|&byte| byte != b'/');
        let path = end.map_or(&b""[..], |end| &path[..=end]);
        let last = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        match last {
            b"" | b"." | b".." => Self::Contents,
            name => Self::As(OsStr::from_bytes(name)),
        }
    }
}

/// The name that a copy gets in a directory.
fn name_in<'a>(named: Named<'a>, what: &dyn std::fmt::Display) -> anyhow::Result<&'a OsStr> {
    match named {
        Named::As(name) => Ok(name),
        Named::Contents => bail!("{what} is no directory, and has no name"),
    }
}

/// Work on files that takes as long as it takes, and gives way to other tasks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// Names the path of this host that something is about, escaped: a part of it may be a name out of a
/// workspace.
trait About<T> {
    fn about(self, action: &'static str, path: &Path) -> anyhow::Result<T>;
}

impl<T> About<T> for io::Result<T> {
    fn about(self, action: &'static str, path: &Path) -> anyhow::Result<T> {
        self.with_context(|| format!("{action} {path:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_thing_or_what_is_in_it() {
        for (path, expected) in [
            (&b"/a/b"[..], Named::As(OsStr::new("b"))),
            (b"/a/b//", Named::As(OsStr::new("b"))),
            (b"b", Named::As(OsStr::new("b"))),
            (b"...", Named::As(OsStr::new("..."))),
            (b"/a/b/.", Named::Contents),
            (b"/a/..", Named::Contents),
            (b".", Named::Contents),
            (b"/", Named::Contents),
        ] {
            assert_eq!(Named::of(path), expected);
        }
    }
}
