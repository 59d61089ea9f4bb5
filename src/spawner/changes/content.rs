//! One thing in a directory, and what is in it.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, Stat, fstat, readlinkat};
use rustix::io::Errno;

use super::super::copying::open_below;

/// Of files larger than this it is not looked whether they are the same: they were written to.
const LARGEST_COMPARED: u64 = 1 << 30;

/// Bytes that tell whether a file is binary, as git has it.
const LOOKED_AT: u64 = 8000;

/// Bytes at once.
const PIECE: usize = 1 << 16;

/// Something in a directory that stands still.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    directory: &'a OwnedFd,
    name: &'a CStr,
    pub(super) status: Stat,
}

impl<'a> Object<'a> {
    pub(super) fn new(directory: &'a OwnedFd, name: &'a CStr, status: Stat) -> Self {
        Self {
            directory,
            name,
            status,
        }
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.status.st_mode)
    }

    pub(super) fn is(&self, kind: FileType) -> bool {
        self.kind() == kind
    }

    pub(super) fn size(&self) -> u64 {
        u64::try_from(self.status.st_size).unwrap_or(0)
    }

    /// Permissions, with setuid, setgid and sticky.
    pub(super) fn mode(&self) -> u32 {
        self.status.st_mode & 0o7777
    }

    /// A regular file, read as far as it was long when it was looked at.
    pub(super) fn open(&self) -> io::Result<io::Take<File>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = open_below(self.directory, self.name, flags)?;
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        Ok(File::from(file).take(self.size()))
    }

    /// Whether a file may be read: one of an owner who is nobody inside may not, where derrick is an ordinary user.
    pub(super) fn is_readable(&self) -> io::Result<bool> {
        match self.open() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All of a file.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open()?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Copies a file, with zeros where it has become shorter.
    pub(super) fn copy_to(&self, out: &mut impl Write) -> io::Result<()> {
        let copied = io::copy(&mut self.open()?, out)?;
        io::copy(&mut io::repeat(0).take(self.size() - copied), out)?;
        Ok(())
    }

    /// Where a link leads.
    pub(super) fn target(&self) -> io::Result<Vec<u8>> {
        Ok(readlinkat(self.directory, self.name, Vec::new())?.into_bytes())
    }

    /// Whether git would take it for binary. What may not be read is no text.
    pub(super) fn is_binary(&self) -> io::Result<bool> {
        if !self.is_readable()? {
            return Ok(true);
        }
        let mut start = Vec::new();
        self.open()?.take(LOOKED_AT).read_to_end(&mut start)?;
        Ok(start.contains(&0))
    }

    /// Whether there is the same in another one: a file, a link, or a pipe or the like, which has nothing.
    pub(super) fn is_same(&self, other: &Self) -> io::Result<bool> {
        match self.kind() {
            kind if kind != other.kind() => Ok(false),
            FileType::RegularFile => self.has_content_of(other),
            FileType::Symlink => Ok(self.target()? == other.target()?),
            FileType::CharacterDevice | FileType::BlockDevice => {
                Ok(self.status.st_rdev == other.status.st_rdev)
            }
            _ => Ok(true),
        }
    }

    fn has_content_of(&self, other: &Self) -> io::Result<bool> {
        if self.size() != other.size() || self.size() > LARGEST_COMPARED {
            return Ok(false);
        }
        if !self.is_readable()? || !other.is_readable()? {
            return Ok(false);
        }
        let (mut one, mut two) = (self.open()?, other.open()?);
        let (mut here, mut there) = (vec![0; PIECE], vec![0; PIECE]);
        loop {
            let length = fill(&mut one, &mut here)?;
            if length != fill(&mut two, &mut there)? || here[..length] != there[..length] {
                return Ok(false);
            }
            if length < PIECE {
                return Ok(true);
            }
        }
    }
}

/// As much as there is room for, unless it ends before.
fn fill(from: &mut impl Read, room: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < room.len() {
        match from.read(&mut room[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
