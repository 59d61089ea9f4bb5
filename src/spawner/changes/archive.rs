//! The files that are new or other than they were, as a tar: what is gone is not in it, nor setuid and setgid.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::FileType;
use tar::{Builder, EntryType, Header};

use super::Stop;
use super::names::{below, name_of};
use super::protocol::Ignored;
use super::report::Kind;
use super::walk::{Seen, Visit, Walk};

/// Larger files are left out.
const LARGEST_FILE: u64 = 1 << 30;

/// Writes it; how many changes were left out.
pub(super) fn write(walk: &Walk<'_>, ignored: Ignored, out: &mut impl Write) -> Result<u64, Stop> {
    let mut archive = Archive {
        walk,
        ignored,
        left_out: 0,
        builder: Builder::new(out),
    };
    walk.show(&mut archive)?;
    archive.builder.finish()?;
    Ok(archive.left_out)
}

struct Archive<'a, W: Write> {
    walk: &'a Walk<'a>,
    ignored: Ignored,
    left_out: u64,
    builder: Builder<W>,
}

impl<W: Write> Visit for Archive<'_, W> {
    fn see(&mut self, seen: &Seen<'_>) -> Result<(), Stop> {
        let path = below(seen.path, &self.walk.within).unwrap_or_default();
        let is_left_out = seen.ignored && self.ignored == Ignored::LeftOut;
        let Some(new) = seen.new else {
            return Ok(());
        };
        if seen.git.is_some() || is_left_out || Kind::of(seen)?.is_none() {
            return Ok(());
        }
        let path = match path {
            // What was asked about is itself a file.
            [] if !new.is(FileType::Directory) => name_of(seen.path),
            [] => return Ok(()),
            path => path,
        };
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        let own = |id: u32| u64::from(id.saturating_sub(self.walk.ids.first));
        let mut header = Header::new_gnu();
        // Whoever unpacks it as root would have a program that runs as root, if it kept setuid and setgid.
        header.set_mode(new.mode() & 0o1777);
        header.set_uid(own(new.status.st_uid));
        header.set_gid(own(new.status.st_gid));
        header.set_mtime(u64::try_from(new.status.st_mtime).unwrap_or(0));
        header.set_size(0);
        match new.kind() {
            FileType::RegularFile if new.size() <= LARGEST_FILE => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(new.size());
                let content = new.open()?.chain(std::io::repeat(0)).take(new.size());
                self.builder.append_data(&mut header, path, content)?;
            }
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                self.builder
                    .append_data(&mut header, path, std::io::empty())?;
            }
            FileType::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                let target = new.target()?;
                let target = Path::new(std::ffi::OsStr::from_bytes(&target));
                self.builder.append_link(&mut header, path, target)?;
            }
            _ => self.left_out += 1,
        }
        Ok(())
    }

    fn too_deep(&mut self, _path: &[u8]) -> Result<(), Stop> {
        self.left_out += 1;
        Ok(())
    }
}
