//! Bases of a test's own: directories and archives, honest and hostile, and what a write would change of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{Derrick, Launch, Scratch, Workspace, fixture, succeed};

/// The config of a base that is an archive.
pub(crate) fn tarball(path: &Path) -> Value {
    json!({ "name": "test", "base": { "type": "tarball", "path": path } })
}

/// The config of a base that is a directory.
pub(crate) fn directory(path: &Path) -> Value {
    json!({ "name": "test", "base": { "type": "directory", "path": path } })
}

/// Unpacks the small fixture into a directory of the caller's.
pub(crate) fn busybox_directory(scratch: &Scratch) -> PathBuf {
    let root = scratch.join("root");
    fs::create_dir(&root).expect("cannot make the base");
    succeed(
        Command::new("tar")
            .arg("-xf")
            .arg(fixture("busybox.tar"))
            .arg("-C")
            .arg(&root),
    );
    root
}

/// What a write would change of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) links: u64,
    pub(crate) modified: i64,
    pub(crate) content: Vec<u8>,
}

/// Every entry below a directory.
pub(crate) fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut to_visit = vec![directory.to_owned()];
    while let Some(path) = to_visit.pop() {
        let status = fs::symlink_metadata(&path).expect("the entry is there");
        let content = if status.is_file() {
            fs::read(&path).expect("the file can be read")
        } else {
            Vec::new()
        };
        if status.is_dir() {
            let children = fs::read_dir(&path).expect("the directory can be read");
            to_visit.extend(children.map(|child| child.expect("it can be listed").path()));
        }
        let entry = Entry {
            mode: status.mode(),
            owner: (status.uid(), status.gid()),
            links: status.nlink(),
            modified: status.mtime(),
            content,
        };
        entries.insert(path, entry);
    }
    entries
}

/// Starts a provider with this config and makes a workspace; what it says where either is refused.
pub(crate) fn try_create(config: Value) -> Result<(Derrick, Workspace), String> {
    let derrick = Launch::new(config).try_start()?;
    let answer = derrick.api.post("/workspaces", &json!({}));
    if answer.status != 200 {
        return Err(answer.text());
    }
    let id = answer.json()["id"]
        .as_str()
        .expect("it has an id")
        .to_owned();
    let workspace = derrick.api.workspace(&id);
    Ok((derrick, workspace))
}

/// An entry of an archive that a careful writer would refuse to make.
pub(crate) fn entry(kind: tar::EntryType, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    // Longer names than a header takes come before it, in entries of GNU's own kinds.
    let mut bytes = Vec::new();
    if name.len() > 100 {
        bytes.extend(entry(
            tar::EntryType::GNULongName,
            "long",
            "",
            name.as_bytes(),
        ));
    }
    if link.len() > 100 {
        bytes.extend(entry(
            tar::EntryType::GNULongLink,
            "long",
            "",
            link.as_bytes(),
        ));
    }
    let mut header = tar::Header::new_gnu();
    // Straight into the fields: the setters check what is being tested here.
    let fields = header.as_old_mut();
    let (name, link) = (name.as_bytes(), link.as_bytes());
    fields.name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    fields.linkname[..link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    bytes.extend(header.as_bytes());
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// The small fixture with these entries behind its own.
pub(crate) fn busybox_and(entries: &[Vec<u8>]) -> Vec<u8> {
    let base = fs::read(fixture("busybox.tar")).expect("the fixture can be read");
    // Without the two zero blocks that end an archive, more can follow.
    let end = base
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("it is not empty");
    let mut archive = base[..(end + 1).next_multiple_of(512)].to_vec();
    archive.extend(entries.concat());
    archive.extend([0; 1024]);
    archive
}
