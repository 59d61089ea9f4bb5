//! What a command printed, bounded: the first and the last part, and a count of what is missing.

use std::collections::VecDeque;

/// Bytes that are kept of a command's output, half from its start and half from its end.
const LIMIT: usize = 10 << 20;

/// Collects output in constant memory.
#[derive(Debug)]
pub struct Output {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    omitted: u64,
    half: usize,
}

impl Default for Output {
    fn default() -> Self {
        Self::limited(LIMIT)
    }
}

impl Output {
    /// Keeps `limit` bytes.
    #[must_use]
    pub fn limited(limit: usize) -> Self {
        Self {
            head: Vec::new(),
            tail: VecDeque::new(),
            omitted: 0,
            half: limit / 2,
        }
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, mut bytes: &[u8]) {
        let room = self.half - self.head.len().min(self.half);
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(first);
        bytes = rest;
        if bytes.len() > self.half {
            let (lost, last) = bytes.split_at(bytes.len() - self.half);
            self.omitted += lost.len() as u64;
            bytes = last;
        }
        let overflow = (self.tail.len() + bytes.len()).saturating_sub(self.half);
        self.tail.drain(..overflow);
        self.omitted += overflow as u64;
        self.tail.extend(bytes);
    }

    /// Bytes that were left out of the middle.
    #[must_use]
    pub fn omitted(&self) -> u64 {
        self.omitted
    }

    /// All that was kept; a line of derrick's own stands where something is missing.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.head;
        if self.omitted > 0 {
            bytes.extend_from_slice(
                format!("\n[derrick: {} bytes omitted]\n", self.omitted).as_bytes(),
            );
        }
        bytes.extend(self.tail);
        bytes
    }

    /// The last `most` bytes, as text.
    #[must_use]
    pub fn end(self, most: usize) -> String {
        let bytes = self.into_bytes();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(most)..]).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_first_and_the_last_part_and_counts_the_rest() {
        for (pieces, expected, omitted) in [
            (vec!["abc"], "abc", 0),
            (vec!["abcd", "efgh"], "abcdefgh", 0),
            (
                vec!["abcdefghij"],
                "abcd\n[derrick: 2 bytes omitted]\nghij",
                2,
            ),
            (
                vec!["ab", "cdef", "g", "hij"],
                "abcd\n[derrick: 2 bytes omitted]\nghij",
                2,
            ),
        ] {
            let mut output = Output::limited(8);
            for piece in pieces {
                output.push(piece.as_bytes());
            }
            assert_eq!(output.omitted(), omitted);
            assert_eq!(
                String::from_utf8(output.into_bytes()).expect("text"),
                expected
            );
        }
    }

    #[test]
    fn memory_stays_bounded_however_much_comes() {
        let mut output = Output::limited(1000);
        for _ in 0..10_000 {
            output.push(&[b'y'; 777]);
        }
        assert_eq!(output.omitted(), 777 * 10_000 - 1000);
        assert!(output.tail.capacity() < 4000);
    }
}
