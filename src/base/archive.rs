//! Writes tar archives of parts of a root filesystem: the same input gives the same bytes.

use std::ffi::OsStr;

use tar::{Builder, EntryType, Header};

/// A tar archive in memory. Everything in it belongs to root, unless it says otherwise.
pub(super) struct TarWriter(Builder<Vec<u8>>);

/// What an entry is like, apart from its content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) group: u32,
    /// Seconds since 1970.
    pub(super) modified: u64,
}

impl TarWriter {
    pub(super) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(super) fn directory(&mut self, path: &OsStr, attributes: Attributes) {
        self.append(header(EntryType::Directory, attributes), path, b"");
    }

    pub(super) fn file(&mut self, path: &OsStr, attributes: Attributes, content: &[u8]) {
        self.append(header(EntryType::Regular, attributes), path, content);
    }

    pub(super) fn symlink(&mut self, path: &OsStr, modified: u64, target: &OsStr) {
        let mut header = header(
            EntryType::Symlink,
            Attributes {
                mode: 0o777,
                group: 0,
                modified,
            },
        );
        self.0
            .append_link(&mut header, path, target)
            .expect(IN_MEMORY);
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.0.get_ref().len()
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect(IN_MEMORY)
    }

    fn append(&mut self, mut header: Header, path: &OsStr, content: &[u8]) {
        header.set_size(content.len() as u64);
        self.0
            .append_data(&mut header, path, content)
            .expect(IN_MEMORY);
    }
}

/// Names come from the kernel or from a table: without NUL and without `..`.
const IN_MEMORY: &str = "writing a sound name to memory cannot fail";

fn header(kind: EntryType, attributes: Attributes) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(attributes.mode);
    header.set_uid(0);
    header.set_gid(attributes.group.into());
    header.set_mtime(attributes.modified);
    header.set_size(0);
    header
}
