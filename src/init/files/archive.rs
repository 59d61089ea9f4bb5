//! A directory or a file as a tar, written to stdout as it is read.
//!
//! GNU tar's format ("Basic Tar Format" in its manual), which every tar program reads: names of any
//! length and any bytes, sparse files as their data alone. Headers are filled in here and not by the
//! tar crate's builder: that normalises the targets of links and breaks where a file shrinks meanwhile.
//!
//! Links are stored as links. Sockets and devices are left out, as are extended attributes, which mean
//! something to this system alone.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags, SeekFrom, seek};
use rustix::io::Errno;
use tar::{EntryType, GnuExtSparseHeader, Header};

use super::Provider;
use super::place::{At, Place, flaw, last_part, modified};
use super::protocol::{FileFailure, FileReply, Flaw, Links};
use super::walk::{Visitor, walk};
use crate::init::unpack::Compression;

/// Size of a tar record; headers and padding come in these.
const BLOCK: u64 = 512;
/// Bytes that a header has for a name.
const NAME: usize = 100;
/// Bytes that are collected before they are written.
const BUFFER: usize = 256 * 1024;
/// Files with several names whose first names are remembered, and bytes of those names.
const REMEMBERED: (usize, usize) = (100_000, 16 << 20);
/// Pieces of data of a sparse file that are told apart; what comes after them counts as one.
const MOST_PIECES: usize = 8192;
/// Pieces that a header has room for, and a block after it.
const PIECES: (usize, usize) = (4, 21);
/// How hard to compress: harder is slower than the network it saves.
const GZIP_LEVEL: u32 = 3;
const ZSTD_LEVEL: i32 = 1;

/// Writes what is at `path` to stdout; a directory as what is in it, anything else under its name.
pub(super) fn write(
    path: &[u8],
    compression: Compression,
    provider: &Provider,
) -> Result<(), FileFailure> {
    let place = Place::find(path, Links::Follow)?;
    if !matches!(
        place.file_type(),
        FileType::RegularFile | FileType::Directory
    ) {
        return Err(flaw(Flaw::NotRegular, path));
    }
    let mut archive = Archive::on_standard_output(compression).at(path)?;
    provider.tell(&FileReply::Begun, &[]).at(path)?;
    if place.is_directory() {
        walk(&place, &mut archive, provider)?;
    } else {
        archive.visit(&place, last_part(path))?;
    }
    archive.finish().at(path)
}

struct Archive {
    sink: Sink,
    /// First names of files with several, by device and inode.
    seen: HashMap<(u64, u64), Vec<u8>>,
    seen_bytes: usize,
}

/// Where an archive goes.
pub(crate) enum Sink {
    /// As it is.
    Plain(io::BufWriter<File>),
    /// Compressed.
    Gzip(flate2::write::GzEncoder<io::BufWriter<File>>),
    /// Likewise.
    Zstd(zstd::Encoder<'static, io::BufWriter<File>>),
}

/// Where a sparse file has data: offset and length.
pub(crate) type Piece = (u64, u64);

impl Archive {
    fn on_standard_output(compression: Compression) -> Result<Self, Errno> {
        let open = || {
            let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            Sink::new(stdout, compression)
        };
        Ok(Self {
            sink: open().map_err(|error| errno(&error))?,
            seen: HashMap::new(),
            seen_bytes: 0,
        })
    }

    fn finish(self) -> Result<(), Errno> {
        self.sink.finish().map_err(|error| errno(&error))
    }

    /// Writes the entry for `place` under `name`.
    fn append(&mut self, place: &Place, name: &[u8]) -> Result<(), FileFailure> {
        let mut header = header_of(place);
        match place.file_type() {
            FileType::RegularFile => {
                if let Some(first) = self.first_name(place, name) {
                    header.set_entry_type(EntryType::Link);
                    return self
                        .append_header(&mut header, name, Some(&first))
                        .at(place.path());
                }
                let file = File::from(place.open_file(OFlags::RDONLY)?);
                self.append_file(&mut header, place, name, &file)
                    .map_err(|error| errno(&error))
                    .at(place.path())
            }
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                let name = [name, b"/"].concat();
                self.append_header(&mut header, &name, None)
                    .at(place.path())
            }
            FileType::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                let target = place.target()?;
                self.append_header(&mut header, name, target.as_deref())
                    .at(place.path())
            }
            FileType::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                self.append_header(&mut header, name, None).at(place.path())
            }
            _ => Ok(()),
        }
    }

    /// The name under which this file was stored before; if it was not, it is now.
    fn first_name(&mut self, place: &Place, name: &[u8]) -> Option<Vec<u8>> {
        let status = place.status();
        let identity = (status.st_dev, status.st_ino);
        if status.st_nlink < 2 {
            return None;
        }
        if let Some(first) = self.seen.get(&identity) {
            return Some(first.clone());
        }
        let (most, most_bytes) = REMEMBERED;
        if self.seen.len() < most && self.seen_bytes + name.len() <= most_bytes {
            self.seen_bytes += name.len();
            self.seen.insert(identity, name.to_vec());
        }
        None
    }

    fn append_file(
        &mut self,
        header: &mut Header,
        place: &Place,
        name: &[u8],
        file: &File,
    ) -> io::Result<()> {
        let size = u64::try_from(place.status().st_size).unwrap_or_default();
        let stored = u64::try_from(place.status().st_blocks).unwrap_or_default() * BLOCK;
        if stored >= size {
            header.set_size(size);
            self.append_header(header, name, None)?;
            return self.sink.append_data(file, &[(0, size)], size);
        }
        let pieces = pieces(file, size)?;
        let data = pieces.iter().map(|(_, length)| length).sum();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(data);
        let after = describe_pieces(header, &pieces, size);
        self.append_header(header, name, None)?;
        self.sink.write_all(&after)?;
        self.sink.append_data(file, &pieces, data)
    }

    /// Writes a header, after those for what it has no room for.
    fn append_header(
        &mut self,
        header: &mut Header,
        name: &[u8],
        target: Option<&[u8]>,
    ) -> Result<(), Errno> {
        let mut written = || -> io::Result<()> {
            if let Some(target) = target {
                let room = &mut header.as_old_mut().linkname;
                let short = target.len().min(NAME);
                room[..short].copy_from_slice(&target[..short]);
                if target.len() > NAME {
                    self.append_long(EntryType::GNULongLink, target)?;
                }
            }
            let room = &mut header.as_old_mut().name;
            let short = name.len().min(NAME);
            room[..short].copy_from_slice(&name[..short]);
            if name.len() > NAME {
                self.append_long(EntryType::GNULongName, name)?;
            }
            header.set_cksum();
            self.sink.write_all(header.as_bytes())
        };
        written().map_err(|error| errno(&error))
    }

    fn append_long(&mut self, kind: EntryType, text: &[u8]) -> io::Result<()> {
        const OF_NO_FILE: &[u8] = b"././@LongLink";
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..OF_NO_FILE.len()].copy_from_slice(OF_NO_FILE);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        // With the NUL that GNU tar counts.
        let size = text.len() as u64 + 1;
        header.set_size(size);
        header.set_cksum();
        self.sink.write_all(header.as_bytes())?;
        self.sink.write_all(text)?;
        self.sink.write_all(&[0])?;
        self.sink.pad(size)
    }
}

impl Visitor for Archive {
    fn visit(&mut self, place: &Place, below: &[u8]) -> Result<(), FileFailure> {
        self.append(place, below)
    }

    fn leave(&mut self, _place: &Place) -> Result<(), FileFailure> {
        Ok(())
    }
}

impl Sink {
    /// One that writes to `file`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a compression that is only read.
    pub(crate) fn new(file: File, compression: Compression) -> io::Result<Self> {
        let file = io::BufWriter::with_capacity(BUFFER, file);
        Ok(match compression {
            Compression::Gzip => Self::Gzip(flate2::write::GzEncoder::new(
                file,
                flate2::Compression::new(GZIP_LEVEL),
            )),
            Compression::Zstd => Self::Zstd(zstd::Encoder::new(file, ZSTD_LEVEL)?),
            Compression::Plain => Self::Plain(file),
            Compression::Xz => return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        })
    }

    /// Writes the end mark, and all that is not out yet.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.write_all(&[0; 2 * BLOCK as usize])?;
        let mut file = match self {
            Self::Plain(file) => file,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::Zstd(encoder) => encoder.finish()?,
        };
        file.flush()
    }

    /// Writes these pieces of a file, `size` bytes, to the end of a block; zeros for what it lost meanwhile, as
    /// its size is told already.
    pub(crate) fn append_data(
        &mut self,
        file: &File,
        pieces: &[Piece],
        size: u64,
    ) -> io::Result<()> {
        for (offset, length) in pieces {
            let mut file = file;
            file.seek(io::SeekFrom::Start(*offset))?;
            let copied = self.take_from(&mut file.take(*length))?;
            io::copy(&mut io::repeat(0).take(length - copied), self)?;
        }
        self.pad(size)
    }

    /// Fills the block up in which `size` bytes end.
    pub(crate) fn pad(&mut self, size: u64) -> io::Result<()> {
        let missing = size.next_multiple_of(BLOCK) - size;
        let zeros = [0; BLOCK as usize];
        self.write_all(&zeros[..usize::try_from(missing).unwrap_or_default()])
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Plain(stdout) => stdout,
            Self::Gzip(encoder) => encoder,
            Self::Zstd(encoder) => encoder,
        }
    }

    /// Writes all that can be read; uncompressed, by the kernel's own copy from file to pipe.
    fn take_from(&mut self, file: &mut io::Take<&File>) -> io::Result<u64> {
        match self {
            Self::Plain(stdout) => io::copy(file, stdout),
            other => io::copy(&mut io::BufReader::with_capacity(BUFFER, file), other),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer().flush()
    }
}

fn header_of(place: &Place) -> Header {
    let status = place.status();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(status.st_mode & 0o7777);
    header.set_uid(status.st_uid.into());
    header.set_gid(status.st_gid.into());
    header.set_size(0);
    // The format has no time before 1970.
    header.set_mtime(u64::try_from(modified(status).0).unwrap_or_default());
    header
}

/// Where a file of `size` bytes has data.
pub(crate) fn pieces(file: &File, size: u64) -> io::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.min(size),
            // The rest is a hole.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = if pieces.len() + 1 == MOST_PIECES {
            size
        } else {
            seek(file, SeekFrom::Hole(start))?.min(size)
        };
        if start < end {
            pieces.push((start, end - start));
        }
        at = end.max(start + 1);
    }
    Ok(pieces)
}

/// Says in `header`, and in the blocks after it, which are given back, where the data belongs.
pub(crate) fn describe_pieces(header: &mut Header, pieces: &[Piece], size: u64) -> Vec<u8> {
    // With an empty one at the end, as GNU tar does, for a hole there.
    let mut pieces = pieces.iter().copied().chain([(size, 0)]);
    let mut after = Vec::new();
    if let Some(gnu) = header.as_gnu_mut() {
        gnu.set_real_size(size);
        for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(pieces.by_ref().take(PIECES.0)) {
            slot.set_offset(offset);
            slot.set_length(length);
        }
        let mut rest = pieces.peekable();
        gnu.set_is_extended(rest.peek().is_some());
        while rest.peek().is_some() {
            let mut block = GnuExtSparseHeader::new();
            let here = rest.by_ref().take(PIECES.1);
            for (slot, (offset, length)) in block.sparse.iter_mut().zip(here) {
                slot.set_offset(offset);
                slot.set_length(length);
            }
            block.set_is_extended(rest.peek().is_some());
            after.extend_from_slice(block.as_bytes());
        }
    }
    after
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
