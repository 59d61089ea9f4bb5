//! What changed in a workspace since setup, out of what it wrote and what was there before.
//!
//! A child of the spawner walks the layers that the workspace wrote, by entries of open directories and never by
//! a path, so its cost follows what was written and not what is there. It compares with what setup left, which
//! the kernel shows as an overlay of its own. Nothing of a workspace steers it: git's config, index, hooks,
//! attributes and ignore rules in the workspace are files like others; those rules that decide what is ignored
//! are setup's. Its root is an empty filesystem, and all that it has are the layers and the file for the answer,
//! which is written there whole before anybody reads it: so no slow reader keeps a workspace held. What it may
//! take is bounded: the workspace is held for so long, and code in it decides how much there is to tell.

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
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::process::Resource;

use self::content::Object;
use self::protocol::{Answer, Form, Inquiry, Outcome};
use self::renames::Renames;
pub use self::report::{Changes, Entry, GitDirectory};
use self::walk::Walk;
use super::bounds::{self, MOST_MEMORY};
use super::merging::Layers;
use crate::sandbox::identity::Identity;
use crate::sandbox::overlay::Chain;

/// The most that is written as an answer.
const LARGEST_ANSWER: u64 = 4 << 30;

/// Time that one answer may take: looked at between one thing and the next.
const LONGEST: Duration = Duration::from_secs(120);

/// Processor time, in seconds: for what takes long by itself.
const LONGEST_AT_WORK: u64 = 150;

/// Bytes that there may be after it: what came of it.
const MOST_AFTER_IT: u64 = 4096;

/// Zeros of this length and place in an answer take no room in its file.
const BLOCK: usize = 4096;

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
            Some(Beyond(outcome)) => Self::Outcome(*outcome),
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

/// What an answer may take.
pub(super) fn bound() -> io::Result<()> {
    bounds::of_a_reader(LARGEST_ANSWER + MOST_AFTER_IT)?;
    // At the first a signal says why it ends, and the second is for all others.
    bounds::limit(Resource::Cpu, LONGEST_AT_WORK, LONGEST_AT_WORK + 5)
}

/// Writes the answer to `spool`: the content, then an [`Answer`] as JSON, then its length in four bytes.
pub(super) fn answer(
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
    let until = Instant::now() + LONGEST;
    let spool = Spool {
        file: spool,
        written: 0,
        until,
    };
    let mut out = BufWriter::with_capacity(1 << 16, spool);
    let told = tell(&overlays, inquiry, until, &mut out);
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
        match out.flush().map_err(Stop::from) {
            Ok(()) => {}
            Err(Stop::Outcome(outcome)) => answer.outcome = outcome,
            Err(Stop::Host(error)) => return Err(error),
        }
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

/// What came of an inquiry that failed with this errno, if that is one of a limit.
#[must_use]
pub fn outcome_of(errno: i32) -> Option<Outcome> {
    match errno {
        libc::ETIME => Some(Outcome::TookTooLong(LONGEST_AT_WORK)),
        libc::ENOMEM => Some(Outcome::TookTooMuch(MOST_MEMORY)),
        _ => None,
    }
}

/// What a child reached that was killed by this signal, as an errno; 0 if it is none of its limits.
pub(super) fn errno_of_death(signal: Option<i32>) -> i32 {
    match signal {
        Some(libc::SIGXCPU) => libc::ETIME,
        // What could not allocate aborts.
        Some(libc::SIGABRT) => libc::ENOMEM,
        _ => 0,
    }
}

/// Writes the content; how many changes were left out.
fn tell(
    overlays: &[Overlaid<'_>],
    inquiry: &Inquiry,
    until: Instant,
    out: &mut impl Write,
) -> Result<u64, Stop> {
    let walk = Walk::new(overlays, inquiry, until);
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

/// The file for the answer. What is zeros is a hole in it: a sparse file would take more room here than it does
/// where it is.
struct Spool {
    file: File,
    written: u64,
    until: Instant,
}

/// A limit is reached.
#[derive(Debug, thiserror::Error)]
#[error("a limit is reached: {0:?}")]
struct Beyond(Outcome);

/// Whether it may go on for longer.
fn check_time(until: Instant) -> io::Result<()> {
    if Instant::now() > until {
        let outcome = Outcome::TookTooLong(LONGEST.as_secs());
        return Err(io::Error::other(Beyond(outcome)));
    }
    Ok(())
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written + bytes.len() as u64 > LARGEST_ANSWER {
            return Err(io::Error::other(Beyond(Outcome::TooLarge(LARGEST_ANSWER))));
        }
        check_time(self.until)?;
        let (length, is_hole) = begin_of(bytes);
        let length = if is_hole {
            // The file ends with more than that.
            self.file
                .seek(SeekFrom::Start(self.written + length as u64))?;
            length
        } else {
            self.file.write(&bytes[..length])?
        };
        self.written += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long the first part of something is that is all of whole blocks of zeros, or has none; and which it is.
fn begin_of(bytes: &[u8]) -> (usize, bool) {
    let is_hole = |block: &[u8]| block.len() == BLOCK && block.iter().all(|byte| *byte == 0);
    let mut blocks = bytes.chunks(BLOCK).map(is_hole);
    let first = blocks.next().unwrap_or(false);
    let alike = 1 + blocks.take_while(|next| *next == first).count();
    (bytes.len().min(alike * BLOCK), first)
}
