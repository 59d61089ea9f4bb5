//! The execs of a workspace on disk: a line of JSON for each that starts, and one when it ends.
//!
//! The last line of an exec counts. One that is forgotten leaves a line for its key, so that this never
//! starts anything again. Written anew without what was forgotten, as soon as that is the larger part.
//! Not synced: what the kernel has survives the end of any process.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::record::{ExecId, ExecRecord};

const NAME: &str = "journal";

/// Lines that may be there beyond two for each exec, before it is written anew.
const SLACK: usize = 1000;

/// Bytes of a line, at most, and more than any line of ours has; what is longer is passed over.
const LONGEST_LINE: u64 = 1 << 20;

/// What is kept of one exec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    /// What is told of it.
    pub(super) exec: ExecRecord,
    /// What keeps it from being started a second time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<Key>,
    /// It was noted, and then could not be started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) never_ran: bool,
}

/// A line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Line {
    /// An exec.
    Exec(Box<Entry>),
    /// The key of one that was forgotten.
    Forgotten {
        /// Its name.
        forgotten: String,
    },
}

/// What a journal has.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The execs.
    pub(super) entries: BTreeMap<ExecId, Entry>,
    /// Keys of others, the oldest first.
    pub(super) forgotten: Vec<String>,
}

/// The client's name for a request, and what the request was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The client's name for it.
    pub name: String,
    /// A digest of the request.
    pub request: String,
}

/// The journal of one workspace. Blocking work is done by `append` alone, on a thread for it.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    file: Option<File>,
    lines: usize,
}

impl Journal {
    /// Reads what there is in `directory`, which need not be there.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Found)> {
        let mut found = Found::default();
        let mut lines = 0;
        match File::open(directory.join(NAME)) {
            Ok(file) => {
                let mut file = BufReader::new(file);
                while let Some(line) = next_line(&mut file)? {
                    lines += 1;
                    // The last line may have been cut off by the end of the provider, and any other
                    // may be broken as disks break them.
                    match serde_json::from_slice(&line) {
                        Ok(Line::Exec(entry)) if entry.never_ran => {
                            found.entries.remove(&entry.exec.id);
                        }
                        Ok(Line::Exec(entry)) if entry.exec.is_possible() => {
                            found.entries.insert(entry.exec.id, *entry);
                        }
                        Ok(Line::Forgotten { forgotten }) => found.forgotten.push(forgotten),
                        _ => {}
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let shared = Shared {
            directory: directory.to_owned(),
            file: None,
            lines,
        };
        let journal = Self {
            shared: Arc::new(Mutex::new(shared)),
        };
        Ok((journal, found))
    }

    /// Adds lines. Blocking.
    pub(super) fn append_all(&self, lines: &[Line]) -> io::Result<()> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().try_for_each(|line| shared.append(line))
    }

    /// Adds a line, for what the exec is when it is written. `kept` is all that is known, `count` lines
    /// of it; it is asked for if it is time to write it anew.
    pub(super) async fn append(
        &self,
        entry: impl FnOnce() -> Entry + Send + 'static,
        kept: impl FnOnce() -> Vec<Line> + Send + 'static,
        count: usize,
    ) {
        let shared = Arc::clone(&self.shared);
        let written = tokio::task::spawn_blocking(move || {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.append(&Line::Exec(Box::new(entry())))?;
            if shared.lines > 2 * count + SLACK {
                shared.rewrite(&kept())?;
            }
            io::Result::Ok(())
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot note an exec; it is forgotten with the provider")
            }
            Err(error) => tracing::error!(%error, "noting an exec failed"),
        }
    }
}

/// The next line, or its start if it is too long for one of ours.
fn next_line(file: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let length = file.take(LONGEST_LINE).read_until(b'\n', &mut line)?;
    if length as u64 == LONGEST_LINE && !line.ends_with(b"\n") {
        file.skip_until(b'\n')?;
    }
    Ok((length > 0).then_some(line))
}

/// Makes a directory, unless it is there, in one that must be.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

impl Shared {
    fn append(&mut self, line: &Line) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                // Not what it is in: a workspace that was removed meanwhile must not come back.
                make_directory(&self.directory)?;
                let path = self.directory.join(NAME);
                let mut file = OpenOptions::new().create(true).append(true).open(path)?;
                // Ends a line that was cut off.
                if self.lines > 0 {
                    file.write_all(b"\n")?;
                }
                self.file.insert(file)
            }
        };
        let mut line = serde_json::to_vec(line)?;
        line.push(b'\n');
        file.write_all(&line)?;
        self.lines += 1;
        Ok(())
    }

    fn rewrite(&mut self, kept: &[Line]) -> io::Result<()> {
        let path = self.directory.join(NAME);
        let fresh = self.directory.join(format!("{NAME}.new"));
        let mut lines = Vec::new();
        for line in kept {
            serde_json::to_writer(&mut lines, line)?;
            lines.push(b'\n');
        }
        std::fs::write(&fresh, lines)?;
        std::fs::rename(fresh, &path)?;
        self.file = Some(OpenOptions::new().append(true).open(path)?);
        self.lines = kept.len();
        Ok(())
    }
}
