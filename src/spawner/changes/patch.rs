//! The changes as git-apply(1) takes them: text as unified diffs, other files as git's binary patches.
//!
//! Paths are relative to what was asked about. What git has no form for, and what was not wanted, is named in
//! lines between the diffs that git passes over.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::ZlibEncoder;
use imara_diff::{Algorithm, Diff, InternedInput};
use rustix::fs::FileType;
use sha1::{Digest, Sha1};

use super::Stop;
use super::content::Object;
use super::names::{below, is_refused, name_of, quoted};
use super::protocol::{Binaries, Ignored};
use super::renames::{HashWriter, Renames};
use super::report::Kind;
use super::walk::{Seen, Visit, Walk};

/// Larger files are told as binary ones, whatever is in them.
const LARGEST_TEXT: u64 = 16 << 20;

/// Larger files are left out.
const LARGEST_FILE: u64 = 256 << 20;

/// Lines around what changed.
const CONTEXT: u32 = 3;

const LINK: u32 = 0o120_000;

/// Writes it; how many changes were left out.
pub(super) fn write(
    walk: &Walk<'_>,
    renames: &Renames,
    binaries: Binaries,
    ignored: Ignored,
    out: &mut impl Write,
) -> Result<u64, Stop> {
    let mut patch = Patch {
        within: &walk.within,
        renames,
        binaries,
        ignored,
        left_out: 0,
        out,
    };
    walk.show(&mut patch)?;
    Ok(patch.left_out)
}

struct Patch<'a, W> {
    within: &'a [u8],
    renames: &'a Renames,
    binaries: Binaries,
    ignored: Ignored,
    left_out: u64,
    out: &'a mut W,
}

/// One side of a diff.
#[derive(Clone, Copy)]
struct File<'a> {
    /// Relative to the root of the patch.
    path: &'a [u8],
    /// As git has it.
    mode: u32,
    object: Object<'a>,
}

impl<W: Write> Visit for Patch<'_, W> {
    fn see(&mut self, seen: &Seen<'_>) -> Result<(), Stop> {
        let path = below(seen.path, self.within).unwrap_or_default();
        let path = match path {
            // What was asked about is itself a file.
            [] if is_file(seen) => name_of(seen.path),
            path => path,
        };
        let is_left_out = seen.ignored && self.ignored == Ignored::LeftOut;
        if seen.git.is_some() || is_left_out || path.is_empty() {
            return Ok(());
        }
        let Some(kind) = Kind::of(seen)? else {
            return Ok(());
        };
        if kind == Kind::Owner || (kind == Kind::Deleted && self.renames.is_elsewhere(seen.path)) {
            return Ok(());
        }
        let is_link = [seen.old, seen.new]
            .iter()
            .flatten()
            .any(|side| side.is(FileType::Symlink));
        if is_refused(path, is_link) {
            self.leave_out(path, "git takes nothing of this name")?;
            return self.leave_out_origin(seen.path);
        }
        if let Some(flaw) = seen.new.and_then(|new| flaw(&new)) {
            self.leave_out(path, flaw)?;
            self.leave_out_origin(seen.path)?;
            // What was there is gone all the same.
            if kind == Kind::Type {
                self.write_pair(seen.old.and_then(|old| File::at(path, old)), None)?;
            }
            return Ok(());
        }
        let old = seen.old.and_then(|old| File::at(path, old));
        let new = seen.new.and_then(|new| File::at(path, new));
        match (old, new) {
            (None, Some(new)) if kind == Kind::Added => match self.renames.old(seen.path) {
                None => self.write_pair(None, Some(new)),
                Some(old) => {
                    let from = below(&old.path, self.within).unwrap_or_default();
                    let origin = seen.origin.as_ref();
                    let origin = origin.filter(|(path, _)| *path == old.path);
                    self.write_rename((from, git_mode(old.mode)), origin.map(|(_, old)| *old), new)
                }
            },
            // git has one as deleted and another one as new.
            (Some(_), Some(_)) if kind == Kind::Type => {
                // One without the other would not fit.
                if !self.takes_content(path, old, new)? {
                    return Ok(());
                }
                self.write_pair(old, None)?;
                self.write_pair(None, new)
            }
            (old, new) => self.write_pair(old, new),
        }
    }

    fn too_deep(&mut self, path: &[u8]) -> Result<(), Stop> {
        let path = below(path, self.within).unwrap_or_default();
        self.leave_out(path, "what is in it is too deep for a path")
    }
}

fn is_file(seen: &Seen<'_>) -> bool {
    let mut sides = [seen.old, seen.new].into_iter().flatten();
    sides.all(|side| !side.is(FileType::Directory))
}

/// Why something cannot be in a patch.
fn flaw(new: &Object<'_>) -> Option<&'static str> {
    match new.kind() {
        FileType::Directory => None,
        FileType::RegularFile if new.size() > LARGEST_FILE => Some("it is too large"),
        FileType::RegularFile | FileType::Symlink => None,
        _ => Some("it is a pipe, a socket or a device"),
    }
}

/// `st_mode` as git has it.
fn git_mode(mode: u32) -> u32 {
    if FileType::from_raw_mode(mode) == FileType::Symlink {
        LINK
    } else if mode & 0o100 == 0 {
        0o100_644
    } else {
        0o100_755
    }
}

impl<'a> File<'a> {
    /// Nothing for what git does not keep.
    fn at(path: &'a [u8], object: Object<'a>) -> Option<Self> {
        let kept = object.is(FileType::RegularFile) || object.is(FileType::Symlink);
        kept.then(|| File {
            path,
            mode: git_mode(object.status.st_mode),
            object,
        })
    }

    fn is_text(&self) -> io::Result<bool> {
        if self.mode == LINK {
            return Ok(true);
        }
        Ok(self.object.size() <= LARGEST_TEXT && !self.object.is_binary()?)
    }

    /// All of a text.
    fn text(&self) -> io::Result<Vec<u8>> {
        if self.mode == LINK {
            self.object.target()
        } else {
            self.object.read()
        }
    }

    /// The name of what is in it, as git's objects have it.
    fn id(&self) -> io::Result<String> {
        if self.mode == LINK {
            return Ok(id_of(&self.object.target()?));
        }
        let mut hash = Sha1::new();
        hash.update(format!("blob {}\0", self.object.size()));
        self.object.copy_to(&mut HashWriter(&mut hash))?;
        Ok(hex(&hash.finalize()))
    }
}

fn id_of(content: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    hash.update(content);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of what is nowhere.
const NOTHING: &str = "0000000000000000000000000000000000000000";

fn with_prefix(prefix: &str, path: &[u8]) -> Vec<u8> {
    quoted(&[prefix.as_bytes(), path].concat())
}

impl<W: Write> Patch<'_, W> {
    fn leave_out(&mut self, path: &[u8], why: &str) -> Result<(), Stop> {
        self.left_out += 1;
        self.out.write_all(b"# left out: ")?;
        self.out.write_all(&quoted(path))?;
        Ok(writeln!(self.out, ": {why}")?)
    }

    /// Where a file was before that is left out: that it is gone from there is not told either.
    fn leave_out_origin(&mut self, path: &[u8]) -> Result<(), Stop> {
        let renames = self.renames;
        match renames.old(path) {
            Some(old) => {
                let from = below(&old.path, self.within).unwrap_or_default();
                self.leave_out(from, "it became what is left out")
            }
            None => Ok(()),
        }
    }

    fn line(&mut self, word: &str, rest: &[u8]) -> io::Result<()> {
        self.out.write_all(word.as_bytes())?;
        self.out.write_all(rest)?;
        self.out.write_all(b"\n")
    }

    fn begin(&mut self, old: &[u8], new: &[u8]) -> io::Result<()> {
        let both = [with_prefix("a/", old), with_prefix("b/", new)];
        self.line("diff --git ", &both.join(&b' '))
    }

    /// What was, and what is at the same path.
    fn write_pair(&mut self, old: Option<File<'_>>, new: Option<File<'_>>) -> Result<(), Stop> {
        let Some(one) = old.or(new) else {
            return Ok(());
        };
        let is_same = match (&old, &new) {
            (Some(old), Some(new)) => old.object.is_same(&new.object)?,
            _ => false,
        };
        if is_same && old.map(|old| old.mode) == new.map(|new| new.mode) {
            return Ok(());
        }
        if !is_same && !self.takes_content(one.path, old, new)? {
            return Ok(());
        }
        self.begin(one.path, one.path)?;
        match (&old, &new) {
            (None, Some(new)) => writeln!(self.out, "new file mode {:06o}", new.mode)?,
            (Some(old), None) => writeln!(self.out, "deleted file mode {:06o}", old.mode)?,
            (Some(old), Some(new)) if old.mode != new.mode => {
                write!(
                    self.out,
                    "old mode {:06o}\nnew mode {:06o}\n",
                    old.mode, new.mode
                )?;
            }
            _ => {}
        }
        if is_same {
            return Ok(());
        }
        self.write_content(old, new)
    }

    /// A file that was elsewhere: `origin` is it, where it may have changed.
    fn write_rename(
        &mut self,
        (from, old_mode): (&[u8], u32),
        origin: Option<Object<'_>>,
        new: File<'_>,
    ) -> Result<(), Stop> {
        let old = origin.and_then(|origin| File::at(from, origin));
        let is_same = match &old {
            Some(old) => old.object.is_same(&new.object)?,
            None => true,
        };
        if !is_same && !self.takes_content(new.path, old, Some(new))? {
            return self.leave_out(from, "it became what is left out");
        }
        self.begin(from, new.path)?;
        if old_mode != new.mode {
            write!(
                self.out,
                "old mode {old_mode:06o}\nnew mode {:06o}\n",
                new.mode
            )?;
        }
        if is_same {
            self.out.write_all(b"similarity index 100%\n")?;
        }
        self.line("rename from ", &quoted(from))?;
        self.line("rename to ", &quoted(new.path))?;
        if is_same {
            return Ok(());
        }
        self.write_content(old, Some(new))
    }

    /// Whether what is in these is told; else it is left out.
    fn takes_content(
        &mut self,
        path: &[u8],
        old: Option<File<'_>>,
        new: Option<File<'_>>,
    ) -> Result<bool, Stop> {
        let mut sides = [old, new].into_iter().flatten();
        if sides.clone().any(|side| side.object.size() > LARGEST_FILE) {
            self.leave_out(path, "it is too large")?;
            return Ok(false);
        }
        let mut files = sides.clone().filter(|side| side.mode != LINK);
        let readable = |all, side: File<'_>| Ok::<_, Stop>(all && side.object.is_readable()?);
        if !files.try_fold(true, readable)? {
            self.leave_out(path, "it may not be read")?;
            return Ok(false);
        }
        if self.binaries == Binaries::Included {
            return Ok(true);
        }
        let is_text = sides.try_fold(true, |all, side| Ok::<_, Stop>(all && side.is_text()?))?;
        if !is_text {
            self.leave_out(path, "it is binary")?;
        }
        Ok(is_text)
    }

    fn write_content(&mut self, old: Option<File<'_>>, new: Option<File<'_>>) -> Result<(), Stop> {
        let mut sides = [&old, &new].into_iter().flatten();
        let is_text = sides.try_fold(true, |all, side| Ok::<_, Stop>(all && side.is_text()?))?;
        let mode = match (&old, &new) {
            (Some(old), Some(new)) if old.mode == new.mode => format!(" {:06o}", new.mode),
            _ => String::new(),
        };
        if !is_text {
            let id = |side: &Option<File<'_>>| match side {
                Some(side) => side.id(),
                None => Ok(NOTHING.to_owned()),
            };
            writeln!(self.out, "index {}..{}{mode}", id(&old)?, id(&new)?)?;
            self.out.write_all(b"GIT binary patch\n")?;
            for side in [new, old] {
                self.write_literal(side)?;
            }
            return Ok(());
        }
        let text = |side: &Option<File<'_>>| match side {
            Some(side) => side.text().map(Some),
            None => Ok(None),
        };
        let (before, after) = (text(&old)?, text(&new)?);
        let id = |text: &Option<Vec<u8>>| match text {
            Some(text) => id_of(text),
            None => NOTHING.to_owned(),
        };
        writeln!(self.out, "index {}..{}{mode}", id(&before), id(&after))?;
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        if before.is_empty() && after.is_empty() {
            return Ok(());
        }
        let name = |prefix, side: &Option<File<'_>>| match side {
            Some(side) => with_prefix(prefix, side.path),
            None => b"/dev/null".to_vec(),
        };
        self.line("--- ", &name("a/", &old))?;
        self.line("+++ ", &name("b/", &new))?;
        Ok(write_hunks(&before, &after, self.out)?)
    }

    /// A whole file, compressed, in git's base 85.
    fn write_literal(&mut self, side: Option<File<'_>>) -> Result<(), Stop> {
        let content: Box<dyn Read> = match &side {
            Some(side) if side.mode == LINK => Box::new(io::Cursor::new(side.object.target()?)),
            Some(side) => {
                let whole = side.object.open()?.chain(io::repeat(0));
                Box::new(whole.take(side.object.size()))
            }
            None => Box::new(io::empty()),
        };
        let size = match &side {
            Some(side) if side.mode == LINK => side.object.target()?.len() as u64,
            Some(side) => side.object.size(),
            None => 0,
        };
        writeln!(self.out, "literal {size}")?;
        let mut compressed = ZlibEncoder::new(content, Compression::default());
        let mut piece = [0; PER_LINE];
        loop {
            let mut length = 0;
            while length < PER_LINE {
                match compressed.read(&mut piece[length..])? {
                    0 => break,
                    read => length += read,
                }
            }
            if length == 0 {
                break;
            }
            self.out.write_all(&base85_line(&piece[..length]))?;
        }
        Ok(self.out.write_all(b"\n")?)
    }
}

/// Bytes of a line of a binary patch.
const PER_LINE: usize = 52;

const BASE_85: &[u8; 85] =
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";

/// As `base85.c` of git has it: a letter for the number of bytes, then five digits for each four of them.
fn base85_line(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap_or(0);
    let letter = match length {
        0..=26 => b'A' + length.saturating_sub(1),
        _ => b'a' + length - 27,
    };
    let mut line = vec![letter];
    for group in bytes.chunks(4) {
        let mut padded = [0; 4];
        padded[..group.len()].copy_from_slice(group);
        let mut number = u32::from_be_bytes(padded);
        let mut digits = [0; 5];
        for digit in digits.iter_mut().rev() {
            *digit = BASE_85[(number % 85) as usize];
            number /= 85;
        }
        line.extend(digits);
    }
    line.push(b'\n');
    line
}

/// Writes the hunks of a unified diff.
fn write_hunks(before: &[u8], after: &[u8], out: &mut impl Write) -> io::Result<()> {
    let input = InternedInput::new(before, after);
    let mut diff = Diff::compute(Algorithm::Histogram, &input);
    diff.postprocess_no_heuristic(&input);
    let length = |tokens: &Vec<_>| u32::try_from(tokens.len()).map_err(io::Error::other);
    let old_length = length(&input.before)?;
    let hunks: Vec<_> = diff.hunks().collect();
    // Those that are near each other are one.
    let near = |one: &imara_diff::Hunk, next: &imara_diff::Hunk| {
        next.before.start - one.before.end <= 2 * CONTEXT
    };
    for group in hunks.chunk_by(near) {
        let [first, ..] = group else { continue };
        let last = &group[group.len() - 1];
        let lead = first.before.start.min(CONTEXT);
        let trail = (old_length - last.before.end).min(CONTEXT);
        let old = first.before.start - lead..last.before.end + trail;
        let new = first.after.start - lead..last.after.end + trail;
        let side = |range: &std::ops::Range<u32>| {
            // Of nothing, the line before it is named.
            let start = range.start + u32::from(!range.is_empty());
            format!("{start},{}", range.end - range.start)
        };
        writeln!(out, "@@ -{} +{} @@", side(&old), side(&new))?;
        let mut line = |sign: u8, token: imara_diff::Token| {
            let text = input.interner[token];
            out.write_all(&[sign])?;
            out.write_all(text)?;
            if text.ends_with(b"\n") {
                Ok(())
            } else {
                out.write_all(b"\n\\ No newline at end of file\n")
            }
        };
        let mut at = old.start;
        for hunk in group {
            for token in &input.before[at as usize..hunk.before.start as usize] {
                line(b' ', *token)?;
            }
            for token in &input.before[hunk.before.start as usize..hunk.before.end as usize] {
                line(b'-', *token)?;
            }
            for token in &input.after[hunk.after.start as usize..hunk.after.end as usize] {
                line(b'+', *token)?;
            }
            at = hunk.before.end;
        }
        for token in &input.before[at as usize..old.end as usize] {
            line(b' ', *token)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hunks(before: &str, after: &str) -> String {
        let mut out = Vec::new();
        write_hunks(before.as_bytes(), after.as_bytes(), &mut out).expect("it is written");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn hunks_are_as_diff_has_them() {
        assert_eq!(
            hunks("", "a\nb"),
            "@@ -0,0 +1,2 @@\n+a\n+b\n\\ No newline at end of file\n"
        );
        assert_eq!(hunks("a\n", ""), "@@ -1,1 +0,0 @@\n-a\n");
        let lines: Vec<String> = (1..=30).map(|line| format!("{line}\n")).collect();
        let before = lines.concat();
        let after = before
            .replace("\n3\n", "\nthree\n")
            .replace("\n30\n", "\n30");
        let expected = "@@ -1,6 +1,6 @@\n 1\n 2\n-3\n+three\n 4\n 5\n 6\n\
            @@ -27,4 +27,4 @@\n 27\n 28\n 29\n-30\n+30\n\\ No newline at end of file\n";
        assert_eq!(hunks(&before, &after), expected);
    }

    #[test]
    fn base_85_is_gits() {
        // Of an empty file, compressed, as git writes it.
        let empty = [0x78, 0x01, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01];
        assert_eq!(base85_line(&empty), b"HcmV?d00001\n");
        assert_eq!(base85_line(&[0xff; 52])[0], b'z');
        assert_eq!(base85_line(&[0; 27])[0], b'a');
    }
}
