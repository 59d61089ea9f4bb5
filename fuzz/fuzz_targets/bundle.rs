//! What a workspace's git hands out and says: a bundle's header is refused, or is no more than what is there.

#![no_main]

use std::io::Write;

use derrick::git::{self, Handed, Have};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("it is written");
    if let Ok(handed) = Handed::read(&file) {
        assert!(!handed.references.is_empty());
        for (name, _) in &handed.references {
            assert!(!name.is_empty() && !name.iter().any(u8::is_ascii_control));
        }
        let length = bytes.len() as u64;
        assert!(handed.pack <= length && handed.objects <= length - handed.pack);
    }
    // What it may print to a question; a refusal is an answer too.
    let _ = Have::parse(bytes);
    let _ = git::count_of_files(bytes);
    if let Some(branch) = git::branch_of(bytes) {
        assert!(!branch.contains(|char: char| char.is_ascii_control() || char == ' '));
    }
    // What it is asked for is no option and no expression of git's.
    if let Some(names) = str::from_utf8(bytes).ok().and_then(git::full_names) {
        for full in names {
            assert!(full.starts_with("refs/heads/") || full.starts_with("refs/tags/"));
            assert!(!full.contains(|char: char| char.is_ascii_control() || " ~^:".contains(char)));
        }
    }
});
