//! A stranger's archive: nothing is written outside the directory that it is unpacked in.
//!
//! The first byte says on which terms.

#![no_main]

use std::fs;
use std::path::Path;

use derrick::init::unpack::{Compression, UnpackLimits, unpack, unpack_on_host};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((terms, archive)) = bytes.split_first() else {
        return;
    };
    let around = tempfile::tempdir().expect("a temporary directory");
    let dest = around.path().join("dest");
    fs::create_dir(&dest).expect("it is new");
    // What an archive could reach for by a link.
    fs::write(around.path().join("canary"), "canary").expect("it is new");
    let limits = UnpackLimits {
        bytes: 1 << 20,
        entries: 100,
        directories: 50,
        depth: 20,
        ratio: 200,
        ratio_from: 1 << 16,
    };
    let said = match terms % 4 {
        0 => unpack_on_host(archive, &dest, 0o022, &limits),
        1 => unpack(archive, Compression::Plain, &dest, &limits),
        2 => unpack(archive, Compression::Gzip, &dest, &limits),
        _ => match Compression::sniff(archive) {
            Ok((compression, archive)) => unpack(archive, compression, &dest, &limits),
            Err(error) => Err(error),
        },
    };
    match said {
        Ok(summary) => assert!(summary.entries <= limits.entries && summary.bytes <= limits.bytes),
        Err(error) => {
            let shown = error.to_string();
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
    }
    assert_eq!(names(around.path()), ["canary", "dest"]);
    let canary = fs::read(around.path().join("canary")).expect("it is there");
    assert_eq!(canary, b"canary");
});

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it is there");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("it is listed")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}
