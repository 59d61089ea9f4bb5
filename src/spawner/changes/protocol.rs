//! What is asked about the changes of a workspace, and what is answered beside the content.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::init::files::protocol::RawPath;
use crate::sandbox::Merge;

/// What has changed in a workspace, as its answer is to be written to a file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Inquiry {
    /// What was written since setup, over what was there after it, of each overlay. Nothing is made of it.
    pub layers: Merge,
    /// Where each of these overlays is.
    pub places: Vec<PathBuf>,
    /// Whether what a sandbox has written on a filesystem of its own lies on these layers: the sandbox whose init
    /// this comes with a pidfd of, after the file.
    pub apart: bool,
    /// What is told of the workspace's repositories.
    pub repositories: Vec<Checkout>,
    /// Whether nothing can change meanwhile.
    pub consistent: bool,
    /// An absolute path: nothing else is told of.
    pub within: RawPath,
    /// What is told, and how.
    pub form: Form,
}

/// A repository that setup checked out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkout {
    /// Absolute.
    pub path: RawPath,
    /// What was checked out.
    pub commit: String,
}

/// What is told, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// A list, as JSON.
    List,
    /// What git-apply(1) takes.
    Patch(Binaries, Ignored),
    /// The files that are new or other than they were, as a tar.
    Tar(Ignored),
    /// What a file was after setup.
    Old,
    /// What a file is.
    New,
}

/// What becomes of binary files in a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Binaries {
    /// They are in it.
    Included,
    /// They are named as left out.
    LeftOut,
}

/// What becomes of ignored files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ignored {
    /// They are as good as others.
    Included,
    /// They are not there.
    LeftOut,
}

/// What stands at the end of the file, after the content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What came of it.
    pub outcome: Outcome,
    /// Bytes of content.
    pub length: u64,
    /// Changes that could not be told in this form, or not at all.
    pub left_out: u64,
}

/// What came of an inquiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is answered.
    Done,
    /// There is no such file.
    NoSuchFile,
    /// The file is a directory.
    Directory,
    /// The file is a pipe, a socket or a device.
    NotRegular,
    /// The answer would be larger than this many bytes.
    TooLarge(u64),
    /// It would take longer than this many seconds.
    TookTooLong(u64),
    /// It would take more memory than this many bytes.
    TookTooMuch(u64),
}
