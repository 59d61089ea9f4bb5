//! What an exec printed, on disk: written as it comes, bounded, readable at any offset meanwhile.
//!
//! Each stream has segment files of its own, named `stdout-<offset>-<position>`: where their first
//! byte is in the stream, and where it is among the bytes of both. A segment is a row of records:
//! how many bytes of the other stream came before it (varint), how many bytes it has (varint), and
//! these bytes. The first segment holds the first half of what is kept; of those after it the oldest
//! are removed as soon as the others hold the last half. What a full disk does not take is held in
//! memory, as far as that is little.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::journal::make_directory;
use crate::pool::exec::Stream;

/// Bytes of each stream that are held in memory where the disk does not take them.
const MEMORY: u64 = 256 * 1024;

/// Bytes of a record, at most, and more than are ever written at once: what says that it has more is
/// broken.
const MAX_RECORD: u64 = 16 << 20;

/// More bytes than any command prints; beyond it, numbers of a log that is on disk are broken ones.
const MOST: u64 = 1 << 60;

/// The log of one exec; shared by its one writer and any number of readers.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    /// Bytes that are kept of each stream.
    limit: u64,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    streams: [StreamState; 2],
    closed: bool,
}

#[derive(Debug, Default)]
struct StreamState {
    segments: VecDeque<Segment>,
    counts: Counts,
}

/// How much there was of a stream.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    utoipa::ToSchema,
)]
pub struct Counts {
    /// Bytes that were printed.
    pub bytes: u64,
    /// Bytes of these that are not kept.
    pub omitted: u64,
}

impl Counts {
    /// Bytes that are kept.
    #[must_use]
    pub fn kept(self) -> u64 {
        self.bytes.saturating_sub(self.omitted)
    }

    /// Whether they can be true.
    pub(super) fn are_possible(self) -> bool {
        self.omitted <= self.bytes && self.bytes <= MOST
    }
}

#[derive(Debug, Clone)]
struct Segment {
    offset: u64,
    position: u64,
    /// Bytes of the stream in it.
    bytes: u64,
    /// Bytes of the file that are whole records.
    length: u64,
    /// Where its last record ends among the bytes of both streams.
    end_position: u64,
    /// The bytes themselves, where they are in no file.
    memory: Option<Arc<[u8]>>,
}

/// What a reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// One stream; offsets count its bytes.
    One(Stream),
    /// Both, in the order in which they came; offsets count the bytes of both.
    Both,
}

/// What a reader comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Some bytes.
    Bytes {
        /// Whose.
        stream: Stream,
        /// Where in the view they begin.
        offset: u64,
        /// At least one.
        bytes: Vec<u8>,
    },
    /// Bytes that are not kept.
    Gap {
        /// Where in the view they began.
        from: u64,
        /// Where the next one is.
        to: u64,
    },
    /// All that there is so far.
    Pending,
    /// All that there will be.
    End,
}

impl Log {
    /// The log of an exec that is about to start. There is no file before there is output.
    #[must_use]
    pub fn new(directory: PathBuf, limit: u64) -> Self {
        Self {
            directory,
            limit,
            state: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// The log of an exec that ended, under an earlier provider perhaps. `counts` say how much it
    /// printed at least to stdout and to stderr: of what was not kept, there may be no trace.
    ///
    /// # Errors
    /// Those of reading its directory and its segments.
    pub fn open(directory: PathBuf, counts: [Counts; 2]) -> io::Result<Self> {
        let mut state = State {
            closed: true,
            ..State::default()
        };
        for (stream, offset, position) in names(&directory)? {
            let path = directory.join(name_of(stream, offset, position));
            let segment = Segment::measure(&path, offset, position)?;
            state.streams[stream as usize].segments.push_back(segment);
        }
        for (stream, counts) in state.streams.iter_mut().zip(counts) {
            stream.segments.make_contiguous().sort_by_key(|s| s.offset);
            let kept: u64 = stream.segments.iter().map(|segment| segment.bytes).sum();
            let end = stream
                .segments
                .back()
                .map_or(0, |last| last.offset + last.bytes)
                .max(counts.bytes);
            stream.counts = Counts {
                bytes: end,
                // Segments overlap only where they are broken.
                omitted: end.saturating_sub(kept),
            };
        }
        Ok(Self {
            directory,
            limit: 0,
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
        })
    }

    /// How much there is of a stream by now.
    #[must_use]
    pub fn counts(&self, stream: Stream) -> Counts {
        self.state().streams[stream as usize].counts
    }

    /// Bytes of the view by now.
    #[must_use]
    pub fn size(&self, view: View) -> u64 {
        match view {
            View::One(stream) => self.counts(stream).bytes,
            View::Both => self.state().position(),
        }
    }

    /// Tells when there is more, or it has ended.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// No more will come.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.send_replace(());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamState {
    fn in_memory(&self) -> u64 {
        let held = |segment: &&Segment| segment.memory.is_some();
        self.segments
            .iter()
            .filter(held)
            .map(|segment| segment.bytes)
            .sum()
    }
}

impl State {
    fn position(&self) -> u64 {
        self.streams.iter().map(|stream| stream.counts.bytes).sum()
    }
}

/// Segments that there are in `directory`, which need not be there.
fn names(directory: &Path) -> io::Result<Vec<(Stream, u64, u64)>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(parse_name));
    }
    Ok(found)
}

fn name_of(stream: Stream, offset: u64, position: u64) -> String {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    format!("{stream}-{offset}-{position}")
}

fn parse_name(name: &str) -> Option<(Stream, u64, u64)> {
    let mut parts = name.split('-');
    let stream = match parts.next()? {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    let mut number = || {
        let number = parts.next()?.parse().ok()?;
        (number <= MOST).then_some(number)
    };
    Some((stream, number()?, number()?))
}

impl Segment {
    fn new(offset: u64, position: u64) -> Self {
        Self {
            offset,
            position,
            bytes: 0,
            length: 0,
            end_position: position,
            memory: None,
        }
    }

    /// One that is in no file.
    fn in_memory(bytes: &[u8], offset: u64, position: u64) -> Self {
        let mut segment = Self::new(offset, position);
        segment.add(Header {
            before: 0,
            bytes: bytes.len() as u64,
            length: 0,
        });
        segment.memory = Some(bytes.into());
        segment
    }

    /// Finds its whole records; the last one may have been cut off, and the disk may have lost some.
    fn measure(path: &Path, offset: u64, position: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut file = BufReader::new(file);
        let mut segment = Self::new(offset, position);
        while segment.length < size {
            let Ok(header) = Header::read(&mut file) else {
                break;
            };
            let is_record = (1..=MAX_RECORD).contains(&header.bytes) && header.before <= MOST;
            if !is_record || segment.length + header.length + header.bytes > size {
                break;
            }
            file.seek_relative(i64::try_from(header.bytes).unwrap_or(i64::MAX))?;
            segment.add(header);
            if segment.end_position > MOST {
                break;
            }
        }
        Ok(segment)
    }

    fn add(&mut self, header: Header) {
        self.bytes += header.bytes;
        self.length += header.length + header.bytes;
        self.end_position += header.before + header.bytes;
    }
}

/// What stands before the bytes of a record.
#[derive(Debug, Clone, Copy)]
struct Header {
    /// Bytes of the other stream that came between it and the record before it.
    before: u64,
    /// Bytes of the record.
    bytes: u64,
    /// Bytes of the header itself.
    length: u64,
}

impl Header {
    fn read(from: &mut impl Read) -> io::Result<Self> {
        let (before, first) = read_varint(from)?;
        let (bytes, second) = read_varint(from)?;
        Ok(Self {
            before,
            bytes,
            length: first + second,
        })
    }
}

/// Seven bits a byte, the lowest first; all but the last byte have the eighth bit.
fn push_varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// The number, and how many bytes it took.
fn read_varint(from: &mut impl Read) -> io::Result<(u64, u64)> {
    let mut number = 0;
    for length in 0..10 {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        number |= u64::from(byte[0] & 0x7f) << (7 * length);
        if byte[0] & 0x80 == 0 {
            return Ok((number, length + 1));
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Writes a log. Blocking.
#[derive(Debug)]
pub struct Writer {
    log: Arc<Log>,
    /// The last segment of each stream.
    files: [Option<File>; 2],
}

impl Writer {
    /// The one writer of `log`.
    #[must_use]
    pub fn new(log: Arc<Log>) -> Self {
        Self {
            log,
            files: [None, None],
        }
    }

    /// Adds bytes at the end of a stream. What cannot be kept is counted as omitted.
    pub fn append(&mut self, stream: Stream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = self.append_some(stream, bytes);
            bytes = &bytes[taken..];
        }
        self.log.changed.send_replace(());
    }

    /// Adds as many bytes as the present segment has room for.
    fn append_some(&mut self, stream: Stream, bytes: &[u8]) -> usize {
        let log = Arc::clone(&self.log);
        let passed = self.pass_over(stream, bytes.len());
        if passed > 0 {
            return passed;
        }
        let position = log.state().position();
        let offset = log.counts(stream).bytes;
        let written = match log.limit {
            0 => None,
            _ => match self.write_record(stream, bytes, offset, position) {
                Ok(taken) => Some(taken),
                Err(error) => {
                    tracing::warn!(%error, directory = %log.directory.display(), "cannot write output");
                    // What is in the file after its last whole record is read by nobody.
                    self.files[stream as usize] = None;
                    None
                }
            },
        };
        let taken = written.unwrap_or(bytes.len());
        let evicted = {
            let mut state = log.state();
            let state = &mut state.streams[stream as usize];
            state.counts.bytes += taken as u64;
            if written.is_none() {
                let segment = Segment::in_memory(bytes, offset, position);
                if state.in_memory() + segment.bytes <= MEMORY.min(log.limit) {
                    state.segments.push_back(segment);
                } else {
                    state.counts.omitted += taken as u64;
                }
            }
            log.evict(state)
        };
        for segment in evicted.iter().filter(|segment| segment.memory.is_none()) {
            let name = name_of(stream, segment.offset, segment.position);
            if let Err(error) = std::fs::remove_file(log.directory.join(&name)) {
                tracing::warn!(%error, name, "cannot remove old output");
            }
        }
        taken
    }

    /// Counts what the rest of as many bytes would push out at once: it need not be written.
    fn pass_over(&mut self, stream: Stream, bytes: usize) -> usize {
        let mut state = self.log.state();
        let counts = &mut state.streams[stream as usize].counts;
        let head = self.log.limit / 2;
        let tail = usize::try_from(self.log.limit - head).unwrap_or(usize::MAX);
        if counts.bytes < head || bytes <= tail {
            return 0;
        }
        let passed = bytes - tail;
        counts.bytes += passed as u64;
        counts.omitted += passed as u64;
        // The bytes of a segment follow each other.
        self.files[stream as usize] = None;
        passed
    }

    fn write_record(
        &mut self,
        stream: Stream,
        bytes: &[u8],
        offset: u64,
        position: u64,
    ) -> io::Result<usize> {
        let file = &mut self.files[stream as usize];
        let last = self.log.state().streams[stream as usize]
            .segments
            .back()
            .cloned();
        let (mut segment, room) = match last {
            Some(last) if file.is_some() && self.log.room(&last) > 0 => {
                let room = self.log.room(&last);
                (last, room)
            }
            _ => {
                let fresh = Segment::new(offset, position);
                self.log.make_directory()?;
                let path = self.log.directory.join(name_of(stream, offset, position));
                *file = Some(File::create_new(path)?);
                let mut state = self.log.state();
                state.streams[stream as usize]
                    .segments
                    .push_back(fresh.clone());
                let room = self.log.room(&fresh);
                (fresh, room)
            }
        };
        let taken = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let before = position - segment.end_position;
        let mut record = Vec::with_capacity(taken + 20);
        push_varint(&mut record, before);
        push_varint(&mut record, taken as u64);
        let length = record.len() as u64;
        record.extend_from_slice(&bytes[..taken]);
        if let Some(file) = file {
            file.write_all(&record)?;
        }
        segment.add(Header {
            before,
            bytes: taken as u64,
            length,
        });
        if let Some(last) = self.log.state().streams[stream as usize]
            .segments
            .back_mut()
        {
            *last = segment;
        }
        Ok(taken)
    }
}

impl Log {
    /// Bytes of its stream that a segment still takes.
    fn room(&self, segment: &Segment) -> u64 {
        let head = self.limit / 2;
        if segment.offset < head {
            head.saturating_sub(segment.offset + segment.bytes)
        } else {
            (self.limit / 8).max(1).saturating_sub(segment.bytes)
        }
    }

    /// Makes its directory, and the one that this is in, but not what that is in: a workspace that
    /// was removed meanwhile must not come back.
    fn make_directory(&self) -> io::Result<()> {
        match make_directory(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.directory.parent().map_or(Ok(()), make_directory)?;
                make_directory(&self.directory)
            }
            made => made,
        }
    }

    /// Takes out the oldest segments of the last half, as long as the others hold that much.
    fn evict(&self, state: &mut StreamState) -> Vec<Segment> {
        let mut evicted = Vec::new();
        let head = self.limit / 2;
        let first = state
            .segments
            .partition_point(|segment| segment.offset < head);
        let mut kept: u64 = state
            .segments
            .range(first..)
            .map(|segment| segment.bytes)
            .sum();
        while state
            .segments
            .get(first)
            .is_some_and(|oldest| kept - oldest.bytes >= self.limit - head)
            && let Some(oldest) = state.segments.remove(first)
        {
            state.counts.omitted += oldest.bytes;
            kept -= oldest.bytes;
            evicted.push(oldest);
        }
        evicted
    }
}

/// Reads a log from an offset on. Blocking.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Log>,
    view: View,
    /// Where in the view it is.
    offset: u64,
    cursors: Vec<Cursor>,
}

impl Reader {
    /// A reader that begins at `offset` of the view.
    #[must_use]
    pub fn new(log: Arc<Log>, view: View, offset: u64) -> Self {
        let streams = match view {
            View::One(stream) => vec![stream],
            View::Both => vec![Stream::Stdout, Stream::Stderr],
        };
        Self {
            log,
            view,
            offset,
            cursors: streams.into_iter().map(Cursor::new).collect(),
        }
    }

    /// Where in the view it is.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Another reader at the same place.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::new(Arc::clone(&self.log), self.view, self.offset)
    }

    /// Goes on to the first bytes that are not kept; where they begin and end.
    ///
    /// # Errors
    /// Those of reading a segment.
    pub fn first_gap(&mut self) -> io::Result<Option<(u64, u64)>> {
        let omits = |stream| self.log.counts(stream).omitted > 0;
        if !omits(Stream::Stdout) && !omits(Stream::Stderr) {
            return Ok(None);
        }
        loop {
            match self.next_piece()? {
                Piece::Gap { from, to } => return Ok(Some((from, to))),
                Piece::Bytes { .. } => {}
                Piece::Pending | Piece::End => return Ok(None),
            }
        }
    }

    /// The next piece; at most the bytes of one record.
    ///
    /// # Errors
    /// Those of reading a segment.
    pub fn next_piece(&mut self) -> io::Result<Piece> {
        // A record of one stream is not to be overtaken by a later one of the other: everything
        // before this end is there by now, and what comes later waits.
        let (end, closed) = {
            let state = self.log.state();
            let end = match self.view {
                View::One(stream) => state.streams[stream as usize].counts.bytes,
                View::Both => state.position(),
            };
            (end, state.closed)
        };
        if self.offset < end {
            let (log, view, offset) = (&self.log, self.view, self.offset);
            let mut next: Option<&mut Cursor> = None;
            for cursor in &mut self.cursors {
                cursor.load(log, view, offset)?;
                let place =
                    |cursor: &Cursor| cursor.record.as_ref().map_or(u64::MAX, |r| r.place(view));
                if place(cursor) < next.as_deref().map_or(u64::MAX, place) {
                    next = Some(cursor);
                }
            }
            let record = next.and_then(|cursor| {
                cursor
                    .record
                    .take_if(|record| record.place(view) < end)
                    .map(|record| (cursor.stream, record))
            });
            let from = self.offset;
            let Some((stream, mut record)) = record else {
                self.offset = end;
                return Ok(Piece::Gap { from, to: end });
            };
            let place = record.place(view);
            if place > from {
                self.offset = place;
                let cursor = self
                    .cursors
                    .iter_mut()
                    .find(|cursor| cursor.stream == stream);
                if let Some(cursor) = cursor {
                    cursor.record = Some(record);
                }
                return Ok(Piece::Gap { from, to: place });
            }
            let seen = usize::try_from(from - place).unwrap_or(usize::MAX);
            record.bytes.drain(..seen.min(record.bytes.len()));
            self.offset = from + record.bytes.len() as u64;
            return Ok(Piece::Bytes {
                stream,
                offset: from,
                bytes: record.bytes,
            });
        }
        Ok(if closed { Piece::End } else { Piece::Pending })
    }
}

/// All of a view from an offset on, or, if it is more than `most` bytes, about that much of its start
/// and its end. A line of derrick's own stands where something is missing. Blocking.
///
/// # Errors
/// Those of reading a segment.
pub fn read_ends(log: &Arc<Log>, view: View, from: u64, most: u64) -> io::Result<Vec<u8>> {
    let size = log.size(view);
    let all = size.saturating_sub(from);
    let head = if all > most { most / 2 } else { all };
    let tail = size - all.min(most - head.min(most));
    let mut ends = Vec::new();
    let omit = |ends: &mut Vec<u8>, count: u64| {
        ends.extend(format!("\n[derrick: {count} bytes omitted]\n").into_bytes());
    };
    let mut reader = Reader::new(Arc::clone(log), view, from);
    let mut stop = from + head;
    loop {
        if reader.offset() >= stop && stop < size {
            stop = size;
            if tail > reader.offset() {
                omit(&mut ends, tail - reader.offset());
                reader = Reader::new(Arc::clone(log), view, tail);
            }
        }
        match reader.next_piece()? {
            Piece::Bytes { bytes, .. } => ends.extend(bytes),
            Piece::Gap { from, to } => omit(&mut ends, to - from),
            Piece::Pending | Piece::End => return Ok(ends),
        }
    }
}

/// The next record of one stream.
#[derive(Debug)]
struct Cursor {
    stream: Stream,
    open: Option<Open>,
    record: Option<Record>,
    /// The first offset of the stream that has not been looked at.
    next: u64,
}

#[derive(Debug)]
struct Open {
    file: BufReader<File>,
    /// As far as it has been read.
    read: Segment,
}

#[derive(Debug)]
struct Record {
    offset: u64,
    position: u64,
    bytes: Vec<u8>,
}

impl Record {
    fn place(&self, view: View) -> u64 {
        match view {
            View::One(_) => self.offset,
            View::Both => self.position,
        }
    }
}

impl Cursor {
    fn new(stream: Stream) -> Self {
        Self {
            stream,
            open: None,
            record: None,
            next: 0,
        }
    }

    /// Loads the next record that reaches past `from`, if it is there by now.
    fn load(&mut self, log: &Log, view: View, from: u64) -> io::Result<()> {
        while self.record.is_none() {
            let Some(segment) = self.segment(log, view, from) else {
                return Ok(());
            };
            if let Some(bytes) = &segment.memory {
                self.next = segment.offset + segment.bytes;
                self.record = Some(Record {
                    offset: segment.offset,
                    position: segment.position,
                    bytes: bytes.to_vec(),
                });
                return Ok(());
            }
            let open = match &mut self.open {
                Some(open) if open.read.offset == segment.offset => open,
                _ => {
                    let name = name_of(self.stream, segment.offset, segment.position);
                    let file = match File::open(log.directory.join(name)) {
                        Ok(file) => file,
                        // Removed to make room, or with the whole log: what was in it is a gap.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {
                            self.next = segment.offset + segment.bytes;
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    self.open.insert(Open {
                        file: BufReader::new(file),
                        read: Segment::new(segment.offset, segment.position),
                    })
                }
            };
            let header = Header::read(&mut open.file)?;
            let record = Record {
                offset: open.read.offset + open.read.bytes,
                position: open.read.end_position + header.before,
                bytes: Vec::new(),
            };
            open.read.add(header);
            self.next = record.offset + header.bytes;
            if record.place(view) + header.bytes <= from {
                let skipped = i64::try_from(header.bytes).unwrap_or(i64::MAX);
                open.file.seek_relative(skipped)?;
                continue;
            }
            let size = usize::try_from(header.bytes).unwrap_or(usize::MAX);
            let mut bytes = vec![0; size];
            open.file.read_exact(&mut bytes)?;
            self.record = Some(Record { bytes, ..record });
        }
        Ok(())
    }

    /// The segment of the next record.
    fn segment(&self, log: &Log, view: View, from: u64) -> Option<Segment> {
        let state = log.state();
        let segments = &state.streams[self.stream as usize].segments;
        let reaches = |segment: &&Segment| match view {
            View::One(_) => segment.offset + segment.bytes > from,
            View::Both => segment.end_position > from,
        };
        segments
            .iter()
            .filter(reaches)
            .find(|segment| segment.offset + segment.bytes > self.next)
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(log: &Arc<Log>, view: View, offset: u64) -> (Vec<Piece>, Vec<u8>) {
        let mut reader = Reader::new(Arc::clone(log), view, offset);
        let mut pieces = Vec::new();
        let mut all = Vec::new();
        loop {
            match reader.next_piece().expect("the segments are there") {
                Piece::Bytes { bytes, offset, .. } => {
                    assert_eq!(offset + bytes.len() as u64, reader.offset());
                    all.extend(bytes);
                }
                piece @ Piece::Gap { .. } => pieces.push(piece),
                piece @ (Piece::Pending | Piece::End) => {
                    pieces.push(piece);
                    return (pieces, all);
                }
            }
        }
    }

    #[test]
    fn both_streams_are_read_in_the_order_in_which_they_came_from_any_offset() {
        let dir = tempfile::tempdir().expect("a directory");
        let directory = dir.path().join("log");
        let log = Arc::new(Log::new(directory.clone(), 1 << 20));
        let mut writer = Writer::new(Arc::clone(&log));
        let mut both: Vec<u8> = Vec::new();
        let mut each: [Vec<u8>; 2] = Default::default();
        for number in 0..2000_u32 {
            let stream = [Stream::Stdout, Stream::Stderr][(number % 7 / 3 % 2) as usize];
            let bytes = vec![b'a' + (number % 26) as u8; (number % 300) as usize];
            writer.append(stream, &bytes);
            both.extend(&bytes);
            each[stream as usize].extend(&bytes);
        }
        log.close();
        let reopened = Arc::new(Log::open(directory, Default::default()).expect("it is on disk"));
        for log in [&log, &reopened] {
            for from in [0, 1, 150, 99_999, both.len()] {
                let (pieces, read) = read_all(log, View::Both, from as u64);
                assert_eq!(pieces, [Piece::End]);
                assert!(read == both[from..], "from {from}");
            }
            for stream in [Stream::Stdout, Stream::Stderr] {
                let expected = &each[stream as usize];
                for from in [0, 77, 12_345] {
                    let (_, read) = read_all(log, View::One(stream), from as u64);
                    assert!(read == expected[from..], "{stream:?} from {from}");
                }
                assert_eq!(log.counts(stream).bytes, expected.len() as u64);
            }
        }
    }

    #[test]
    fn a_flood_keeps_its_first_and_last_part_and_leaves_the_other_stream_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = Arc::new(Log::new(dir.path().join("log"), 1000));
        let mut writer = Writer::new(Arc::clone(&log));
        writer.append(Stream::Stderr, b"one line\n");
        let flood: Vec<u8> = (0..100_000_u32)
            .map(|number| (number % 251) as u8)
            .collect();
        for part in flood.chunks(777) {
            writer.append(Stream::Stdout, part);
        }
        log.close();
        let counts = log.counts(Stream::Stdout);
        assert_eq!(counts.bytes, 100_000);
        let kept = counts.bytes - counts.omitted;
        assert!((1000..=1125).contains(&kept), "{kept}");
        let (pieces, read) = read_all(&log, View::One(Stream::Stdout), 0);
        let to = 500 + counts.omitted;
        assert_eq!(pieces, [Piece::Gap { from: 500, to }, Piece::End]);
        assert!(read[..500] == flood[..500] && read[500..] == flood[to as usize..]);
        assert_eq!(read_all(&log, View::One(Stream::Stderr), 4).1, b"line\n");
        let (pieces, _) = read_all(&log, View::Both, 700);
        assert_eq!(pieces.len(), 2, "{pieces:?}");
        let on_disk: u64 = std::fs::read_dir(dir.path().join("log"))
            .expect("it is there")
            .map(|entry| entry.expect("an entry").metadata().expect("a file").len())
            .sum();
        assert!(on_disk < 1300, "{on_disk}");
    }

    #[test]
    fn a_reader_goes_on_where_the_writer_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = Arc::new(Log::new(dir.path().join("log"), 64));
        let mut writer = Writer::new(Arc::clone(&log));
        let mut reader = Reader::new(Arc::clone(&log), View::Both, 0);
        let changed = log.watch();
        assert_eq!(reader.next_piece().expect("nothing"), Piece::Pending);
        for (number, text) in ["a", "bc", "def"].into_iter().enumerate() {
            let stream = [Stream::Stdout, Stream::Stderr][number % 2];
            writer.append(stream, text.as_bytes());
            assert!(changed.has_changed().expect("the log lives"));
            let Piece::Bytes {
                stream: of, bytes, ..
            } = reader.next_piece().expect("a piece")
            else {
                panic!("no bytes");
            };
            assert_eq!((of, bytes.as_slice()), (stream, text.as_bytes()));
            assert_eq!(reader.next_piece().expect("nothing"), Piece::Pending);
        }
        log.close();
        assert_eq!(reader.next_piece().expect("the end"), Piece::End);
    }

    #[test]
    fn a_log_that_was_removed_is_a_gap_for_whoever_reads_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let directory = dir.path().join("log");
        let log = Arc::new(Log::new(directory.clone(), 1000));
        let mut writer = Writer::new(Arc::clone(&log));
        writer.append(Stream::Stdout, &[b'x'; 900]);
        let mut reader = Reader::new(Arc::clone(&log), View::Both, 0);
        let Piece::Bytes { bytes, .. } = reader.next_piece().expect("a piece") else {
            panic!("no bytes");
        };
        std::fs::remove_dir_all(&directory).expect("removed");
        log.close();
        let from = bytes.len() as u64;
        let gap = reader.next_piece().expect("no error");
        assert_eq!(gap, Piece::Gap { from, to: 900 });
        assert_eq!(reader.next_piece().expect("no error"), Piece::End);
    }

    #[test]
    fn what_the_disk_does_not_take_is_held_in_memory_as_far_as_that_is_little() {
        let dir = tempfile::tempdir().expect("a directory");
        let directory = dir.path().join("log");
        let log = Arc::new(Log::new(directory.clone(), 10 << 20));
        let mut writer = Writer::new(Arc::clone(&log));
        writer.append(Stream::Stdout, b"before");
        // A directory that cannot be written to, also by root: a file is in its place.
        std::fs::rename(&directory, dir.path().join("aside")).expect("renamed");
        std::fs::write(&directory, "").expect("written");
        writer.files = [None, None];
        writer.append(Stream::Stdout, b"held");
        let much = MEMORY + 1;
        writer.append(Stream::Stdout, &vec![b'x'; much as usize]);
        std::fs::remove_file(&directory).expect("removed");
        std::fs::rename(dir.path().join("aside"), &directory).expect("renamed");
        writer.append(Stream::Stdout, b"after");
        log.close();
        let counts = log.counts(Stream::Stdout);
        assert_eq!((counts.bytes, counts.omitted), (15 + much, much));
        for view in [View::Both, View::One(Stream::Stdout)] {
            let (pieces, read) = read_all(&log, view, 0);
            assert_eq!(
                pieces,
                [
                    Piece::Gap {
                        from: 10,
                        to: 10 + much
                    },
                    Piece::End
                ]
            );
            assert_eq!(read, b"beforeheldafter");
        }
    }
}
