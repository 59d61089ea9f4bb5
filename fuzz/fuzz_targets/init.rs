//! What the provider hears from an init, or from a process for files, that a workspace has taken over.
//!
//! The bytes go through a socket as theirs do, and are taken for each thing that could be said.

#![no_main]

use std::fs::File;
use std::io::Write;

use derrick::init::files::protocol::FileReply;
use derrick::init::protocol::{Birth, Reply, Unpacked};
use derrick::sys::channel::{Channel, Peer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    hear::<Reply>(bytes);
    hear::<Birth>(bytes);
    hear::<Unpacked>(bytes);
    hear::<FileReply>(bytes);
});

fn hear<M: serde::de::DeserializeOwned + std::fmt::Debug>(bytes: &[u8]) {
    let (ours, theirs) = Channel::pair(Peer::Untrusted).expect("a socket pair");
    // One that is too long for a message is refused here already.
    if File::from(theirs.into_socket()).write_all(bytes).is_err() {
        return;
    }
    if let Ok(Some(heard)) = ours.receive::<M>() {
        // Into the log, at worst.
        drop(format!("{:?}", heard.message));
        assert!(heard.descriptors.is_empty(), "none was sent");
    }
}
