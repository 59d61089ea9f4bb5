//! What changed in a workspace since setup, out of what it wrote and what was there before.
//!
//! A child of the spawner walks the layers that the workspace wrote, by entries of open directories and never by
//! a path, so its cost follows what was written and not what is there. It compares with what setup left, which
//! the kernel shows as an overlay of its own. Nothing of a workspace steers it: git's config, index, hooks,
//! attributes and ignore rules in the workspace are files like others; those rules that decide what is ignored
//! are setup's. Its root is an empty filesystem, and all that it has are the layers and the file for the answer,
//! which is written there whole before anybody reads it: so no slow reader keeps a workspace held.

mod archive;
mod content;
mod listing;
mod names;
mod patch;
pub mod protocol;
mod renames;
mod report;
mod rules;
mod sensitive;
mod walk;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use rustix::fs::FileType;
use rustix::process::{Resource, Rlimit, setrlimit};

use self::content::Object;
use self::protocol::{Answer, Form, Inquiry, Outcome};
use self::renames::Renames;
pub use self::report::{Changes, Entry, GitDirectory};
use self::walk::Walk;
use super::merging::{Layers, allow_open_files};
use crate::sandbox::identity::Identity;
use crate::sandbox::overlay::Chain;

/// The most that is written as an answer.
const LARGEST_ANSWER: u64 = 4 << 30;

/// Processor time that one answer may take, in seconds.
const LONGEST: u64 = 300;

/// Memory that one answer may take.
const MOST_MEMORY: u64 = 4 << 30;

/// Why there is no answer.
#[derive(Debug)]
enum Stop {
    /// For the caller to know.
    Outcome(Outcome),
    /// The host's fault.
    Host(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(TooLarge) => Self::Outcome(Outcome::TooLarge(LARGEST_ANSWER)),
            None => Self::Host(error),
        }
    }
}

impl From<rustix::io::Errno> for Stop {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Host(error.into())
    }
}

/// What is below an overlay's place.
struct Overlaid<'a> {
    place: &'a Path,
    layers: Layers,
}

/// Writes the answer to `spool`: the content, then an [`Answer`] as JSON, then its length in four bytes.
pub(super) fn answer(
    chains: &[(usize, Chain)],
    inquiry: &Inquiry,
    identity: Identity,
    spool: File,
) -> io::Result<()> {
    allow_open_files()?;
    bound(Resource::Cpu, LONGEST)?;
    bound(Resource::As, MOST_MEMORY)?;
    write(chains, inquiry, identity, spool)
}

fn write(
    chains: &[(usize, Chain)],
    inquiry: &Inquiry,
    identity: Identity,
    spool: File,
) -> io::Result<()> {
    let mut overlays = Vec::new();
    for (place, (_, chain)) in inquiry.places.iter().zip(chains) {
        overlays.push(Overlaid {
            place,
            layers: Layers::of(chain, identity)?,
        });
    }
    let mut out = BufWriter::with_capacity(
        1 << 16,
        Spool {
            file: spool,
            written: 0,
        },
    );
    let told = tell(&overlays, inquiry, &mut out);
    let mut answer = Answer {
        outcome: Outcome::Done,
        length: 0,
        left_out: 0,
    };
    match told {
        Ok(left_out) => answer.left_out = left_out,
        Err(Stop::Outcome(outcome)) => answer.outcome = outcome,
        Err(Stop::Host(error)) => return Err(error),
    }
    if answer.outcome == Outcome::Done {
        out.flush()?;
    }
    let (spool, _) = out.into_parts();
    answer.length = spool.written;
    let mut file = spool.file;
    file.seek(SeekFrom::Start(answer.length))?;
    let text = serde_json::to_vec(&answer)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    file.write_all(&text)?;
    file.write_all(&length.to_le_bytes())
}

fn bound(resource: Resource, most: u64) -> io::Result<()> {
    let hard = rustix::process::getrlimit(resource).maximum;
    let most = Some(hard.map_or(most, |hard| hard.min(most)));
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    Ok(setrlimit(resource, limit)?)
}

/// Writes the content; how many changes were left out.
fn tell(overlays: &[Overlaid<'_>], inquiry: &Inquiry, out: &mut impl Write) -> Result<u64, Stop> {
    let walk = Walk::new(overlays, inquiry);
    match inquiry.form {
        Form::List => listing::write(&walk, inquiry, out),
        Form::Patch(binaries, ignored) => {
            let renames = Renames::find(&walk)?;
            patch::write(&walk, &renames, binaries, ignored, out)
        }
        Form::Tar(ignored) => archive::write(&walk, ignored, out),
        Form::Old | Form::New => {
            let found = match inquiry.form {
                Form::Old => walk.find_old()?,
                _ => walk.find_new()?,
            };
            let Some((directory, name, status)) = found else {
                return Err(Stop::Outcome(Outcome::NoSuchFile));
            };
            let object = Object::new(&directory, &name, status);
            match object.kind() {
                FileType::RegularFile => object.copy_to(out)?,
                FileType::Symlink => out.write_all(&object.target()?)?,
                FileType::Directory => return Err(Stop::Outcome(Outcome::Directory)),
                _ => return Err(Stop::Outcome(Outcome::NotRegular)),
            }
            Ok(0)
        }
    }
}

/// The file for the answer.
struct Spool {
    file: File,
    written: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the answer is too large")]
struct TooLarge;

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written + bytes.len() as u64 > LARGEST_ANSWER {
            return Err(io::Error::other(TooLarge));
        }
        let length = self.file.write(bytes)?;
        self.written += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
