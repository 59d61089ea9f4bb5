//! The list of changes, as JSON that is written as it comes.

use std::io::Write;

use rustix::fs::FileType;
use serde_json::json;

use super::Stop;
use super::names::told;
use super::protocol::{Checkout, Inquiry};
use super::renames::Renames;
use super::report::{Entry, GitDirectory, Kind, Place, Repository, SensitiveFile};
use super::sensitive;
use super::walk::{Seen, Visit, Walk, trimmed};

/// Of each git directory, the most files that are named.
const MOST_NAMED: usize = 100;

/// Git directories, and directories that are too deep, at most; the rest is counted as left out.
const MOST_PLACES: usize = 10_000;

/// Writes it; how much was left out.
pub(super) fn write(walk: &Walk<'_>, inquiry: &Inquiry, out: &mut impl Write) -> Result<u64, Stop> {
    let renames = Renames::find(walk)?;
    let repositories: Vec<Repository> = inquiry
        .repositories
        .iter()
        .map(|one| Repository {
            path: told(one.path.as_bytes()).0,
            commit: one.commit.clone(),
        })
        .collect();
    write!(
        out,
        "{{\"consistent\":{},\"repositories\":{},\"changes\":[",
        json!(inquiry.consistent),
        json!(repositories)
    )?;
    let mut others = Others::default();
    let mut listing = Listing {
        walk,
        renames: &renames,
        repositories: &inquiry.repositories,
        ignored: false,
        first: true,
        others: Some(&mut others),
        out,
    };
    walk.show(&mut listing)?;
    listing.out.write_all(b"],\"ignored\":[")?;
    listing.ignored = true;
    listing.first = true;
    listing.others = None;
    walk.show(&mut listing)?;
    write!(
        out,
        "],\"git\":{},\"too_deep\":{}}}",
        json!(others.git),
        json!(others.too_deep)
    )?;
    Ok(others.left_out)
}

/// What is told in a few words.
#[derive(Default)]
struct Others {
    git: Vec<GitDirectory>,
    /// The path of the last of these.
    last: Option<Vec<u8>>,
    /// Which of its sensitive files make room for others.
    replaceable: Vec<usize>,
    too_deep: Vec<Place>,
    left_out: u64,
}

struct Listing<'a, W> {
    walk: &'a Walk<'a>,
    renames: &'a Renames,
    repositories: &'a [Checkout],
    /// Whether what is ignored is listed, or what is not.
    ignored: bool,
    first: bool,
    others: Option<&'a mut Others>,
    out: &'a mut W,
}

impl<W: Write> Visit for Listing<'_, W> {
    fn see(&mut self, seen: &Seen<'_>) -> Result<(), Stop> {
        if let Some(length) = seen.git {
            return match &mut self.others {
                Some(others) => others.see(seen, &seen.path[..length], self.repositories),
                None => Ok(()),
            };
        }
        if seen.ignored != self.ignored {
            return Ok(());
        }
        let repository = seen.repository.and_then(|one| self.repositories.get(one));
        let repository = repository.map(|one| told(one.path.as_bytes()).0);
        let Some(entry) = Entry::of(self.walk, self.renames, seen, repository)? else {
            return Ok(());
        };
        if !std::mem::take(&mut self.first) {
            self.out.write_all(b",\n")?;
        }
        serde_json::to_writer(&mut *self.out, &entry).map_err(std::io::Error::from)?;
        Ok(())
    }

    fn too_deep(&mut self, path: &[u8]) -> Result<(), Stop> {
        if let Some(others) = &mut self.others {
            others.left_out += 1;
            if others.too_deep.len() < MOST_PLACES {
                others.too_deep.push(Place::new(path));
            }
        }
        Ok(())
    }
}

impl Others {
    fn see(&mut self, seen: &Seen<'_>, git: &[u8], repositories: &[Checkout]) -> Result<(), Stop> {
        let Some(kind) = Kind::of(seen)? else {
            return Ok(());
        };
        if self.last.as_deref() != Some(git) {
            let mut roots = repositories.iter().map(|one| trimmed(one.path.as_bytes()));
            let known = roots.any(|root| git.strip_prefix(&*root) == Some(b"/.git"));
            if self.git.len() >= MOST_PLACES && !known {
                self.left_out += 1;
                return Ok(());
            }
            self.replaceable.clear();
            self.git.push(GitDirectory {
                place: Place::new(git),
                known,
                added: 0,
                modified: 0,
                deleted: 0,
                sensitive: Vec::new(),
                sensitive_left_out: 0,
            });
            self.last = Some(git.to_vec());
        }
        let Some(directory) = self.git.last_mut() else {
            return Ok(());
        };
        let either = seen.new.or(seen.old);
        if either.is_some_and(|one| one.is(FileType::Directory)) {
            return Ok(());
        }
        match kind {
            Kind::Added => directory.added += 1,
            Kind::Deleted => directory.deleted += 1,
            _ => directory.modified += 1,
        }
        if let Some(new) = &seen.new
            && let Some(reason) = sensitive::reason_in_git(&seen.path[git.len()..], new)
        {
            let file = SensitiveFile {
                place: Place::new(seen.path),
                reason: reason.to_owned(),
            };
            let first = sensitive::is_read_by_git(&seen.path[git.len()..]);
            if directory.sensitive.len() < MOST_NAMED {
                if !first {
                    self.replaceable.push(directory.sensitive.len());
                }
                directory.sensitive.push(file);
            } else {
                directory.sensitive_left_out += 1;
                if first && let Some(place) = self.replaceable.pop() {
                    directory.sensitive[place] = file;
                }
            }
        }
        Ok(())
    }
}
