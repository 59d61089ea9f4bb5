//! Reads a tar stream member by member: decompression, headers, extensions, limits.
//!
//! Not the tar crate's reader: that holds extension headers of any size in memory and splits PAX
//! records at newlines, which breaks binary attributes and names. One meaning per header: where
//! tar programs disagree on how long a member is, the archive is refused.
//!
//! Formats: POSIX ustar and pax (IEEE Std 1003.1, pax), GNU tar ("Basic Tar Format" in its
//! manual) with long names and sparse files (old GNU and PAX 1.0).

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::rc::Rc;

use super::{BLOCK, Compression, SNAPSHOT_HEAD, UnpackError, UnpackLimits, escape};

/// Largest PAX header; the kernel's largest attribute is 64 KiB.
const PAX_MAX: u64 = 1 << 20;
/// Largest GNU long name, its NUL included; longer ones than the kernel takes are refused later, by name.
const LONG_NAME_MAX: u64 = 64 << 10;
/// Most data segments of a sparse file.
const SEGMENTS_MAX: usize = 1 << 16;
/// Enough for `xz -9` four times over.
const XZ_MEMORY: u64 = 256 << 20;

/// One entry of the archive; its data is read with [`Archive::read_data`] before the next one.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Permission, setuid, setgid and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    File(Content),
    Directory,
    Symlink { target: Vec<u8> },
    HardLink { target: Vec<u8> },
    Fifo,
    Device,
}

/// Where a file's data goes.
#[derive(Debug, Clone)]
pub(super) struct Content {
    /// Length of the file.
    pub(super) size: u64,
    /// Ascending and apart from each other; their data follows in this order.
    pub(super) segments: Vec<Segment>,
}

/// A stretch of a file that is not a hole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Seconds since 1970, maybe negative, and nanoseconds after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// A tar stream.
pub(super) struct Archive<'a> {
    stream: Box<dyn Read + 'a>,
    limits: &'a UnpackLimits,
    /// Decompressed bytes so far.
    offset: u64,
    /// Compressed bytes so far, read-ahead included.
    compressed: Rc<Cell<u64>>,
    /// What is left of the current member's data.
    data_left: u64,
    /// Zeros after that data, up to a whole block.
    padding: u64,
    /// What the first header says, if it is a global one that says what a snapshot is.
    snapshot_head: Option<Vec<u8>>,
}

impl std::fmt::Debug for Archive<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive")
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl<'a> Archive<'a> {
    pub(super) fn new(
        source: impl Read + 'a,
        compression: Compression,
        limits: &'a UnpackLimits,
    ) -> Result<Self, UnpackError> {
        let compressed = Rc::new(Cell::new(0));
        let source = BufReader::with_capacity(
            64 << 10,
            Counted {
                source,
                count: Rc::clone(&compressed),
            },
        );
        let stream: Box<dyn Read + 'a> = match compression {
            Compression::Plain => Box::new(source),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
            Compression::Zstd => Box::new(
                zstd::stream::read::Decoder::with_buffer(source).map_err(UnpackError::Read)?,
            ),
            Compression::Xz => {
                let decoder = liblzma::stream::Stream::new_stream_decoder(
                    XZ_MEMORY,
                    liblzma::stream::CONCATENATED,
                )
                .map_err(|e| UnpackError::Read(e.into()))?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(source, decoder))
            }
        };
        Ok(Self {
            stream,
            limits,
            offset: 0,
            compressed,
            data_left: 0,
            padding: 0,
            snapshot_head: None,
        })
    }

    /// What it says of a snapshot; known once a member was asked for.
    pub(super) fn snapshot_head(&self) -> Option<&[u8]> {
        self.snapshot_head.as_deref()
    }

    /// The next member; `None` after the end mark, once everything up to the end was read and is sound.
    pub(super) fn next_member(&mut self) -> Result<Option<Member>, UnpackError> {
        let mut extension = Extension::default();
        loop {
            self.skip_data()?;
            let mut block = [0; BLOCK];
            if !self.fill_or_end(&mut block)? {
                return Err(match self.offset {
                    0 => UnpackError::NotAnArchive,
                    offset => UnpackError::Truncated { offset },
                });
            }
            if block.iter().all(|&b| b == 0) {
                if extension.seen {
                    return Err(self.corrupt("an extension header with no entry after it"));
                }
                self.finish()?;
                return Ok(None);
            }
            if !checksum_matches(&block) {
                return Err(if self.offset == BLOCK as u64 {
                    UnpackError::NotAnArchive
                } else {
                    self.corrupt("a header's checksum is wrong")
                });
            }
            let header = Header(block);
            let size = header
                .number(SIZE)
                .ok_or_else(|| self.corrupt("a header's size is not a number"))?;
            match header.kind() {
                b'x' => {
                    let records = self.small(size, PAX_MAX, "bytes of a PAX header")?;
                    extension
                        .pax(&records)
                        .map_err(|reason| self.corrupt(reason))?;
                }
                b'g' => {
                    let is_first = self.offset == BLOCK as u64;
                    let records = self.small(size, PAX_MAX, "bytes of a PAX header")?;
                    let mut global = Extension::default();
                    global
                        .pax(&records)
                        .map_err(|reason| self.corrupt(reason))?;
                    if global.changes_entries() {
                        return Err(refused(
                            &header.name(),
                            "a global PAX header that changes every entry is not supported",
                        ));
                    }
                    if is_first {
                        self.snapshot_head = global.snapshot_head;
                    }
                }
                b'L' => {
                    extension.gnu_path = Some(self.long_name(size)?);
                    extension.seen = true;
                }
                b'K' => {
                    extension.gnu_link = Some(self.long_name(size)?);
                    extension.seen = true;
                }
                // The label of a volume says nothing about files.
                b'V' => self.expect_data(size),
                _ => return self.member(&header, extension, size).map(Some),
            }
        }
    }

    /// Reads from the current member's data; 0 at its end.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        let wanted = usize::try_from(self.data_left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let got = self.read_some(&mut buffer[..wanted])?;
        if got == 0 {
            return Err(UnpackError::Truncated {
                offset: self.offset,
            });
        }
        self.data_left -= got as u64;
        Ok(got)
    }

    /// Puts header and extensions together and checks that they mean one thing.
    fn member(
        &mut self,
        header: &Header,
        extension: Extension,
        size: u64,
    ) -> Result<Member, UnpackError> {
        let Extension {
            pax_path,
            pax_link,
            gnu_path,
            gnu_link,
            ..
        } = extension;
        let sparse = extension.sparse;
        let path = sparse
            .name
            .or(pax_path)
            .or(gnu_path)
            .unwrap_or_else(|| header.name());
        let link = pax_link
            .or(gnu_link)
            .unwrap_or_else(|| until_nul(header.field(LINK)).to_vec());
        let size = extension.size.unwrap_or(size);

        let bad = |what: &'static str| refused(&path, what);
        let id = |value: Option<u64>| {
            // The largest id is the kernel's word for "unchanged".
            value
                .and_then(|id| u32::try_from(id).ok())
                .filter(|&id| id != u32::MAX)
        };
        let uid = id(extension.uid.or_else(|| header.number(UID)))
            .ok_or_else(|| bad("its owner is not a user id"))?;
        let gid = id(extension.gid.or_else(|| header.number(GID)))
            .ok_or_else(|| bad("its group is not a group id"))?;
        let mode = header
            .number(MODE)
            .ok_or_else(|| bad("its mode is not a number"))?
            & 0o7777;
        let mtime = match extension.mtime {
            Some(mtime) => mtime,
            None => header
                .time()
                .ok_or_else(|| bad("its time is not a number"))?,
        };

        let sparse_format = (sparse.major, sparse.minor);
        let kind = match header.kind() {
            // Before there were directories in tar, a slash at the end made one.
            b'0' | 0 if path.ends_with(b"/") && size == 0 => Kind::Directory,
            b'0' | 0 | b'7' if !sparse.seen => {
                self.expect_data(size);
                Kind::File(Content::whole(size))
            }
            b'0' | 0 | b'7' if sparse_format == (Some(1), Some(0)) => {
                let real = sparse
                    .real_size
                    .ok_or_else(|| bad("a sparse file without a size"))?;
                self.expect_data(size);
                let segments = self.pax_sparse_map().map_err(|fault| fault.of(&path))?;
                Kind::File(Content {
                    size: real,
                    segments,
                })
            }
            b'S' if header.is_gnu() && !sparse.seen => {
                let segments = self
                    .gnu_sparse_map(header)
                    .map_err(|fault| fault.of(&path))?;
                self.expect_data(size);
                let real = header
                    .number(REAL_SIZE)
                    .ok_or_else(|| bad("a sparse file without a size"))?;
                Kind::File(Content {
                    size: real,
                    segments,
                })
            }
            b'0' | 0 | b'7' => return Err(bad("this format of sparse files is not supported")),
            b'1' => Kind::HardLink { target: link },
            b'2' => Kind::Symlink { target: link },
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(bad("entries of its type are not supported")),
        };
        match &kind {
            Kind::File(content) => {
                content.check(self.data_left).map_err(bad)?;
                if content.size > self.limits.bytes {
                    return Err(UnpackError::TooMuch {
                        what: "bytes",
                        limit: self.limits.bytes,
                    });
                }
            }
            // Tar programs disagree on whether data follows; whoever sees none would take it for headers.
            _ if size != 0 => return Err(bad("only files can have a size")),
            _ => {}
        }
        Ok(Member {
            path,
            kind,
            mode: u32::try_from(mode).unwrap_or_default(),
            uid,
            gid,
            mtime,
            xattrs: extension.xattrs,
        })
    }

    /// The map of an old GNU sparse file: four segments in the header, more in blocks after it.
    fn gnu_sparse_map(&mut self, header: &Header) -> Result<Vec<Segment>, Fault> {
        let mut segments = Vec::new();
        let mut map = header.field(SPARSE).to_vec();
        let mut extended = header.0[SPARSE_EXTENDED] != 0;
        loop {
            for pair in map.chunks_exact(24) {
                let (offset, length) = (&pair[..12], &pair[12..]);
                if length[0] == 0 {
                    break;
                }
                let (Some(offset), Some(length)) = (number(offset), number(length)) else {
                    return Err(Fault::Refused("its map of holes is not sound"));
                };
                segments.push(Segment { offset, length });
            }
            if segments.len() > SEGMENTS_MAX {
                return Err(Fault::Refused("it has too many holes"));
            }
            if !extended {
                return Ok(segments);
            }
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            map = block[..21 * 24].to_vec();
            extended = block[21 * 24] != 0;
        }
    }

    /// The map of a PAX 1.0 sparse file: decimal numbers, one a line, in whole blocks before the data.
    fn pax_sparse_map(&mut self) -> Result<Vec<Segment>, Fault> {
        const UNSOUND: Fault = Fault::Refused("its map of holes is not sound");
        let mut numbers = Vec::new();
        let mut wanted = None;
        let mut digits = Vec::new();
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let mut block = [0; BLOCK];
            if self.data_left < BLOCK as u64 {
                return Err(UNSOUND);
            }
            self.fill(&mut block)?;
            self.data_left -= BLOCK as u64;
            for &byte in &block {
                match byte {
                    b'\n' => {
                        let value = decimal(&digits).ok_or(UNSOUND)?;
                        digits.clear();
                        if wanted.is_none() {
                            let count = usize::try_from(value).unwrap_or(usize::MAX);
                            if count > SEGMENTS_MAX {
                                return Err(Fault::Refused("it has too many holes"));
                            }
                            wanted = Some(count * 2);
                        } else {
                            numbers.push(value);
                        }
                    }
                    b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                    _ => return Err(UNSOUND),
                }
                if wanted.is_some_and(|wanted| numbers.len() == wanted) {
                    break;
                }
            }
        }
        Ok(numbers
            .chunks_exact(2)
            .map(|pair| Segment {
                offset: pair[0],
                length: pair[1],
            })
            .collect())
    }

    /// After the first of the two zero blocks: nothing but zeros may follow.
    fn finish(&mut self) -> Result<(), UnpackError> {
        let mut rest = vec![0; 64 << 10];
        loop {
            // To the very end, so that the checksums of the compression are checked.
            match self.read_some(&mut rest)? {
                0 => return Ok(()),
                // What one reader ignores another one unpacks.
                got if rest[..got].iter().any(|&b| b != 0) => {
                    return Err(self.corrupt("there is more after the end mark"));
                }
                _ => {}
            }
        }
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let name = self.small(size, LONG_NAME_MAX, "bytes of a name")?;
        // GNU tar counts the NUL at the end; not everybody does.
        Ok(name.strip_suffix(b"\0").unwrap_or(&name).to_vec())
    }

    /// The whole data of an extension header.
    fn small(&mut self, size: u64, limit: u64, what: &'static str) -> Result<Vec<u8>, UnpackError> {
        if size > limit {
            return Err(UnpackError::TooMuch { what, limit });
        }
        self.expect_data(size);
        let mut data = vec![0; usize::try_from(size).unwrap_or_default()];
        self.fill(&mut data)?;
        self.data_left = 0;
        Ok(data)
    }

    fn expect_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip_data(&mut self) -> Result<(), UnpackError> {
        let mut buffer = [0; 8 << 10];
        self.data_left += std::mem::take(&mut self.padding);
        while self.read_data(&mut buffer)? != 0 {}
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), UnpackError> {
        if buffer.is_empty() || self.fill_or_end(buffer)? {
            return Ok(());
        }
        Err(UnpackError::Truncated {
            offset: self.offset,
        })
    }

    /// Fills `buffer`; `false` if the stream ends right here, an error if it ends within.
    fn fill_or_end(&mut self, buffer: &mut [u8]) -> Result<bool, UnpackError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_some(&mut buffer[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => {
                    return Err(UnpackError::Truncated {
                        offset: self.offset,
                    });
                }
                got => filled += got,
            }
        }
        Ok(true)
    }

    /// The only place where the stream is read: counts, and holds the limits.
    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        let got = loop {
            match self.stream.read(buffer) {
                Ok(got) => break got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(UnpackError::Truncated {
                        offset: self.offset,
                    });
                }
                // The kernel's errors have a number, those of a decompressor have none.
                Err(e) if e.raw_os_error().is_some() => return Err(UnpackError::Read(e)),
                Err(e) => return Err(self.corrupt(e.to_string())),
            }
        };
        self.offset += got as u64;
        let UnpackLimits {
            bytes,
            ratio,
            ratio_from,
            ..
        } = *self.limits;
        if self.offset > bytes {
            return Err(UnpackError::TooMuch {
                what: "bytes",
                limit: bytes,
            });
        }
        if self.offset > ratio_from && self.offset / self.compressed.get().max(1) > ratio {
            return Err(UnpackError::TooMuch {
                what: "decompressed bytes for each compressed one",
                limit: ratio,
            });
        }
        Ok(got)
    }

    fn corrupt(&self, reason: impl Into<String>) -> UnpackError {
        UnpackError::Corrupt {
            offset: self.offset,
            reason: reason.into(),
        }
    }
}

impl Content {
    fn whole(size: u64) -> Self {
        Self {
            size,
            segments: vec![Segment {
                offset: 0,
                length: size,
            }],
        }
    }

    /// Whether the segments ascend, end within the file and add up to the data there is.
    fn check(&self, data: u64) -> Result<(), &'static str> {
        let mut end = 0u64;
        let mut sum = 0u64;
        for segment in &self.segments {
            if segment.offset < end {
                return Err("its map of holes is not sound");
            }
            end = segment
                .offset
                .checked_add(segment.length)
                .ok_or("its map of holes is not sound")?;
            // Cannot overflow: segments do not overlap.
            sum += segment.length;
        }
        if end > self.size || sum != data {
            Err("its map of holes is not sound")
        } else {
            Ok(())
        }
    }
}

/// What a sparse map can suffer from.
enum Fault {
    Refused(&'static str),
    Archive(UnpackError),
}

impl Fault {
    fn of(self, path: &[u8]) -> UnpackError {
        match self {
            Self::Refused(reason) => refused(path, reason),
            Self::Archive(e) => e,
        }
    }
}

impl From<UnpackError> for Fault {
    fn from(e: UnpackError) -> Self {
        Self::Archive(e)
    }
}

/// What extension headers say about the entry after them.
#[derive(Default)]
struct Extension {
    seen: bool,
    pax_path: Option<Vec<u8>>,
    pax_link: Option<Vec<u8>>,
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
    snapshot_head: Option<Vec<u8>>,
}

/// `GNU.sparse.*` of a PAX header.
#[derive(Default)]
struct Sparse {
    seen: bool,
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
}

impl Extension {
    /// Adds the records of a PAX header: `LENGTH KEY=VALUE\n`, the length being that of all of it.
    fn pax(&mut self, mut records: &[u8]) -> Result<(), &'static str> {
        const BAD: &str = "a PAX header is not well-formed";
        self.seen = true;
        while !records.is_empty() {
            let space = records
                .iter()
                .take(20)
                .position(|&b| b == b' ')
                .ok_or(BAD)?;
            let length = decimal(&records[..space])
                .and_then(|n| usize::try_from(n).ok())
                .ok_or(BAD)?;
            if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(BAD);
            }
            let record = &records[space + 1..length - 1];
            let equals = record.iter().position(|&b| b == b'=').ok_or(BAD)?;
            self.record(&record[..equals], &record[equals + 1..])
                .ok_or("a PAX header has a value that is no number")?;
            records = &records[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.pax_path = Some(value.to_vec()),
            b"linkpath" => self.pax_link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(decimal_time(value)?),
            SNAPSHOT_HEAD => self.snapshot_head = Some(value.to_vec()),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.seen = true;
                    match key {
                        b"major" => self.sparse.major = Some(decimal(value)?),
                        b"minor" => self.sparse.minor = Some(decimal(value)?),
                        b"realsize" => self.sparse.real_size = Some(decimal(value)?),
                        b"name" => self.sparse.name = Some(value.to_vec()),
                        // The maps of formats 0.0 and 0.1, which are refused for want of a version.
                        _ => {}
                    }
                }
            }
        }
        Some(())
    }

    fn changes_entries(&self) -> bool {
        self.pax_path.is_some()
            || self.pax_link.is_some()
            || self.size.is_some()
            || self.uid.is_some()
            || self.gid.is_some()
            || self.mtime.is_some()
            || !self.xattrs.is_empty()
            || self.sparse.seen
    }
}

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const PREFIX: Range<usize> = 345..500;
const SPARSE: Range<usize> = 386..482;
const SPARSE_EXTENDED: usize = 482;
const REAL_SIZE: Range<usize> = 483..495;

/// A header block whose checksum is right.
struct Header([u8; BLOCK]);

impl Header {
    fn field(&self, field: Range<usize>) -> &[u8] {
        &self.0[field]
    }

    fn kind(&self) -> u8 {
        self.0[TYPE]
    }

    fn is_gnu(&self) -> bool {
        self.field(MAGIC) == b"ustar "
    }

    /// The name; only POSIX headers have its front part apart.
    fn name(&self) -> Vec<u8> {
        let name = until_nul(self.field(NAME));
        let prefix = until_nul(self.field(PREFIX));
        if self.field(MAGIC) == b"ustar\0" && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    fn number(&self, field: Range<usize>) -> Option<u64> {
        number(self.field(field))
    }

    fn time(&self) -> Option<Time> {
        let field = self.field(MTIME);
        let seconds = if field[0] == 0xff {
            // Before 1970: two's complement in base 256.
            i64::from_be_bytes(field[4..].try_into().ok()?)
        } else {
            i64::try_from(number(field)?).ok()?
        };
        Some(Time {
            seconds,
            nanoseconds: 0,
        })
    }
}

/// Whether `block` could begin an archive: a header, or the end mark of an empty one.
pub(super) fn starts_like_tar(block: &[u8]) -> bool {
    block.iter().all(|&b| b == 0) || checksum_matches(block)
}

/// The sum of the bytes of a header, its own field taken as spaces.
fn checksum_matches(block: &[u8]) -> bool {
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, &b)| u64::from(if CHECKSUM.contains(&at) { b' ' } else { b }))
        .sum();
    number(&block[CHECKSUM]) == Some(sum)
}

/// A number of a header: octal between spaces and NULs, or base 256 with the top bit set; blank is 0.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        if field[0] & 0x40 != 0 {
            return None;
        }
        return field.iter().enumerate().try_fold(0u64, |sum, (at, &b)| {
            sum.checked_mul(256)?
                .checked_add(u64::from(if at == 0 { b & 0x3f } else { b }))
        });
    }
    let digits = until_nul(field).trim_ascii();
    digits.iter().try_fold(0u64, |sum, &b| match b {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// Digits and nothing else.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, &b| match b {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// A PAX time: `[-]SECONDS[.FRACTION]`.
fn decimal_time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&b| b == b'.');
    let mut seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for at in 0..9 {
            nanoseconds = nanoseconds * 10 + u32::from(fraction.get(at).map_or(0, |b| b - b'0'));
        }
    }
    if negative {
        seconds = -seconds;
        // Nanoseconds count forwards, also before 1970.
        if nanoseconds != 0 {
            seconds -= 1;
            nanoseconds = 1_000_000_000 - nanoseconds;
        }
    }
    Some(Time {
        seconds,
        nanoseconds,
    })
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

fn refused(path: &[u8], reason: &'static str) -> UnpackError {
    UnpackError::Refused {
        entry: escape(path),
        reason,
    }
}

/// Counts what is read from `source`.
struct Counted<R> {
    source: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.source.read(buffer)?;
        self.count.set(self.count.get() + got as u64);
        Ok(got)
    }
}
