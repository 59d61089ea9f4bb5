//! A digest of everything that is to be seen in the sandbox: names, kinds, owners, permissions, times,
//! links, hard ones as well, extended attributes and contents. Two sandboxes that show the same have the same
//! one.
//!
//! What is each sandbox's own is left out: filesystems in memory, those that the kernel makes up, and the
//! times of the roots of overlays, which are those of their uppers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::Provider;
use super::place::{At, Place, modified};
use super::protocol::{FileFailure, Fingerprint, Links};
use super::walk::{Visitor, walk};

/// What is mounted for each sandbox, or may be.
const OWN: &[&[u8]] = &[b"dev", b"proc", b"sys", b"tmp", b"etc/resolv.conf"];
/// Bytes of a file that are read at once.
const PIECE: usize = 256 * 1024;

/// Takes the fingerprint of the calling process's root.
pub(super) fn take(provider: &Provider) -> Result<Fingerprint, FileFailure> {
    let root = Place::find(b"/", Links::Keep)?;
    let mut taking = Taking {
        provider,
        // `/tmp` is a part of the root, or else a filesystem of its own.
        has_own_tmp: Place::find(b"/tmp", Links::Keep)
            .is_ok_and(|tmp| tmp.status().st_dev != root.status().st_dev),
        overlays: BTreeSet::from([root.status().st_dev]),
        names: BTreeMap::new(),
        sum: [0; 32],
        entries: 0,
        piece: vec![0; PIECE],
    };
    walk(&root, &mut taking, provider)?;
    taking.add_names();
    let digest = taking.sum.iter().map(|byte| format!("{byte:02x}"));
    Ok(Fingerprint {
        digest: digest.collect(),
        entries: taking.entries,
    })
}

struct Taking<'p> {
    provider: &'p Provider,
    has_own_tmp: bool,
    /// Filesystems whose roots were met.
    overlays: BTreeSet<u64>,
    /// Of each file that has several names, those that were met.
    names: BTreeMap<(u64, u64), BTreeSet<Vec<u8>>>,
    /// Of the digests of all entries, which come in any order.
    sum: [u8; 32],
    entries: u64,
    piece: Vec<u8>,
}

impl Visitor for Taking<'_> {
    /// An id that is not the sandbox's may own one of the host's; nothing inside sees what is in it.
    fn passes_over_closed(&self) -> bool {
        true
    }

    fn enters(&self, below: &[u8]) -> bool {
        !OWN.contains(&below) || (below == b"tmp" && !self.has_own_tmp)
    }

    fn visit(&mut self, place: &Place, below: &[u8]) -> Result<(), FileFailure> {
        if !self.enters(below) {
            return Ok(());
        }
        let status = place.status();
        let is_root = place.is_directory() && self.overlays.insert(status.st_dev);
        let mut hasher = Sha256::new();
        field(&mut hasher, below);
        let size = if place.is_directory() {
            0
        } else {
            status.st_size
        };
        for number in [
            i64::from(status.st_mode),
            i64::from(status.st_uid),
            i64::from(status.st_gid),
            i64::try_from(status.st_rdev).unwrap_or(-1),
            size,
        ] {
            hasher.update(number.to_le_bytes());
        }
        if !is_root {
            let (seconds, nanoseconds) = modified(status);
            hasher.update(seconds.to_le_bytes());
            hasher.update(nanoseconds.to_le_bytes());
            for (name, value) in place.attributes(&mut self.piece)? {
                field(&mut hasher, &name);
                field(&mut hasher, value.as_deref().unwrap_or(b"unreadable"));
            }
        }
        if !place.is_directory() && status.st_nlink > 1 {
            hasher.update(status.st_nlink.to_le_bytes());
            let names = self.names.entry((status.st_dev, status.st_ino));
            names.or_default().insert(below.to_vec());
        }
        if let Some(target) = place.target()? {
            field(&mut hasher, &target);
        }
        if place.file_type() == FileType::RegularFile {
            self.hash_content(place, &mut hasher)?;
        }
        self.add(hasher);
        self.entries += 1;
        Ok(())
    }

    fn leave(&mut self, _place: &Place) -> Result<(), FileFailure> {
        Ok(())
    }
}

impl Taking<'_> {
    fn add(&mut self, hasher: Sha256) {
        let digest: [u8; 32] = hasher.finalize().into();
        for (sum, byte) in self.sum.iter_mut().zip(digest) {
            *sum ^= byte;
        }
    }

    /// Which names are one file's.
    fn add_names(&mut self) {
        for names in std::mem::take(&mut self.names).into_values() {
            let mut hasher = Sha256::new();
            for name in &names {
                field(&mut hasher, name);
            }
            self.add(hasher);
        }
    }

    fn hash_content(&mut self, place: &Place, hasher: &mut Sha256) -> Result<(), FileFailure> {
        let mut file = match place.open_file(OFlags::RDONLY) {
            Ok(file) => File::from(file),
            // Likewise.
            Err(failure) if failure.is_denied() => {
                hasher.update(b"unreadable");
                return Ok(());
            }
            Err(failure) => return Err(failure),
        };
        loop {
            self.provider.check().at(place.path())?;
            match file.read(&mut self.piece) {
                Ok(0) => return Ok(()),
                Ok(length) => hasher.update(&self.piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                    return Err(errno).at(place.path());
                }
            }
        }
    }
}

/// Adds bytes with how many they are.
fn field(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
