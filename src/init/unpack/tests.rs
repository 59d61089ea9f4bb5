//! Archives made by hand, byte by byte, because no tool writes the hostile ones.
//!
//! Every one is unpacked into a directory that has a neighbour, which must not change.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::*;

/// A destination with something beside it.
struct Scene {
    root: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("dest")).unwrap();
        fs::create_dir(root.path().join("outside")).unwrap();
        fs::write(root.path().join("outside/secret"), "secret").unwrap();
        Self { root }
    }

    fn dest(&self) -> PathBuf {
        self.root.path().join("dest")
    }

    fn outside(&self) -> PathBuf {
        self.root.path().join("outside")
    }

    /// Unpacks, and checks that the neighbour is as it was.
    fn unpack(&self, archive: &[u8]) -> Result<Summary, UnpackError> {
        self.unpack_within(archive, &UnpackLimits::default())
    }

    fn unpack_within(&self, archive: &[u8], limits: &UnpackLimits) -> Result<Summary, UnpackError> {
        let before = self.surroundings();
        let (compression, archive) = Compression::sniff(archive)?;
        let result = unpack(archive, compression, &self.dest(), limits);
        assert_eq!(
            self.surroundings(),
            before,
            "something outside the destination changed"
        );
        result
    }

    /// All that lies beside the destination: names, modes, link counts, contents.
    fn surroundings(&self) -> BTreeMap<PathBuf, (u32, u64, Vec<u8>)> {
        let mut found = BTreeMap::new();
        for dir in [self.root.path().to_path_buf(), self.outside()] {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                let links = if meta.is_dir() { 0 } else { meta.nlink() };
                let content = if meta.is_file() {
                    fs::read(&path).unwrap()
                } else {
                    Vec::new()
                };
                let mode = if path == self.dest() { 0 } else { meta.mode() };
                found.insert(path, (mode, links, content));
            }
        }
        found
    }
}

/// Writes tar blocks as told, sound or not.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn file(self, name: &str, content: &str) -> Self {
        self.entry(b'0', name.as_bytes(), b"", 0o644, content.as_bytes())
    }

    fn directory(self, name: &str, mode: u32) -> Self {
        self.entry(b'5', name.as_bytes(), b"", mode, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name.as_bytes(), target.as_bytes(), 0o777, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name.as_bytes(), target.as_bytes(), 0o644, b"")
    }

    fn entry(self, kind: u8, name: &[u8], link: &[u8], mode: u32, content: &[u8]) -> Self {
        self.header(kind, name, link, mode, content.len() as u64)
            .data(content)
    }

    fn header(mut self, kind: u8, name: &[u8], link: &[u8], mode: u32, size: u64) -> Self {
        let mut block = [0u8; BLOCK];
        block[..name.len()].copy_from_slice(name);
        block[157..157 + link.len()].copy_from_slice(link);
        for (at, value, width) in [
            (100, u64::from(mode), 7),
            (108, u64::from(rustix::process::geteuid().as_raw()), 7),
            (116, u64::from(rustix::process::getegid().as_raw()), 7),
            (124, size, 11),
            (136, 1_000_000_000, 11),
        ] {
            let digits = format!("{value:0width$o}");
            block[at..at + width].copy_from_slice(digits.as_bytes());
        }
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        self.0.extend_from_slice(&block);
        self.seal()
    }

    /// Changes the latest header.
    fn patch(mut self, at: usize, bytes: &[u8]) -> Self {
        let start = self.0.len() - BLOCK;
        self.0[start + at..start + at + bytes.len()].copy_from_slice(bytes);
        self.seal()
    }

    /// Puts the checksum into the latest header.
    fn seal(mut self) -> Self {
        let start = self.0.len() - BLOCK;
        let header = &mut self.0[start..];
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self
    }

    fn data(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        let end = self.0.len().next_multiple_of(BLOCK);
        self.0.resize(end, 0);
        self
    }

    fn pax(self, records: &[(&[u8], &[u8])]) -> Self {
        let content = pax_records(records);
        self.entry(b'x', b"pax", b"", 0o644, &content)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 2 * BLOCK]);
        self.0
    }
}

fn pax_records(records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        content.extend_from_slice(format!("{length} ").as_bytes());
        content.extend_from_slice(key);
        content.push(b'=');
        content.extend_from_slice(value);
        content.push(b'\n');
    }
    content
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstandard(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn xattr_names(path: &Path) -> Vec<String> {
    let mut names = vec![0u8; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names[..length]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

#[track_caller]
fn assert_refused(result: Result<Summary, UnpackError>, part: &str) {
    match result {
        Err(UnpackError::Refused { reason, .. }) if reason.contains(part) => {}
        other => panic!("expected a refusal for '{part}', got {other:?}"),
    }
}

fn ordinary() -> Vec<u8> {
    Tar::default()
        .directory("./", 0o755)
        .directory("./bin/", 0o755)
        .entry(b'0', b"./bin/tool", b"", 0o4755, b"#!/bin/sh\n")
        .symlink("./bin/alias", "tool")
        .hard_link("./bin/same", "./bin/tool")
        .entry(b'6', b"./pipe", b"", 0o600, b"")
        .file("./etc/deep/er/file", "content")
        .end()
}

#[test]
fn an_ordinary_archive_is_unpacked_whole() {
    let scene = Scene::new();
    let summary = scene.unpack(&ordinary()).unwrap();
    let dest = scene.dest();
    assert_eq!(
        fs::read_to_string(dest.join("bin/alias")).unwrap(),
        "#!/bin/sh\n"
    );
    assert_eq!(
        fs::read_link(dest.join("bin/alias")).unwrap(),
        Path::new("tool")
    );
    let tool = fs::metadata(dest.join("bin/tool")).unwrap();
    assert_eq!(tool.permissions().mode() & 0o7777, 0o4755);
    assert_eq!(
        tool.ino(),
        fs::metadata(dest.join("bin/same")).unwrap().ino()
    );
    assert!(!dest.join("pipe").exists());
    assert_eq!(
        fs::read_to_string(dest.join("etc/deep/er/file")).unwrap(),
        "content"
    );
    for path in [".", "bin", "bin/tool", "bin/alias"] {
        assert_eq!(
            fs::symlink_metadata(dest.join(path)).unwrap().mtime(),
            1_000_000_000,
            "time of {path}"
        );
    }
    // bin, tool, alias, same, etc, deep, er, file.
    assert_eq!(
        summary,
        Summary {
            entries: 8,
            bytes: 17,
            left_out: 1,
            names_left_out: vec!["./pipe".to_owned()],
            ..Summary::default()
        }
    );
}

#[test]
fn every_compression_gives_the_same_tree() {
    let halves = ordinary();
    let (front, back) = halves.split_at(700);
    let cases = [
        ("gzip", gzip(&ordinary())),
        ("gzip, two members", [gzip(front), gzip(back)].concat()),
        ("zstd", zstandard(&ordinary())),
        (
            "zstd, two frames",
            [zstandard(front), zstandard(back)].concat(),
        ),
        ("xz", xz(&ordinary())),
        ("xz, two streams", [xz(front), xz(back)].concat()),
    ];
    for (name, archive) in cases {
        let scene = Scene::new();
        let summary = scene
            .unpack(&archive)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(summary.entries, 8, "{name}");
        assert_eq!(
            fs::read(scene.dest().join("bin/tool")).unwrap(),
            b"#!/bin/sh\n",
            "{name}"
        );
    }
}

#[test]
fn parent_references_are_refused() {
    for name in [
        "../outside/planted",
        "a/../../outside/planted",
        "..",
        "a/..",
        "./../outside/planted",
    ] {
        assert_refused(
            Scene::new().unpack(&Tar::default().file(name, "x").end()),
            "'..'",
        );
    }
    let link = Tar::default()
        .hard_link("stolen", "../outside/secret")
        .end();
    assert_refused(Scene::new().unpack(&link), "'..'");
}

#[test]
fn absolute_names_land_below_the_destination() {
    let scene = Scene::new();
    let target = scene.outside().join("secret");
    let name = target.to_str().unwrap();
    scene
        .unpack(&Tar::default().file(name, "planted").file("//x", "y").end())
        .unwrap();
    assert_eq!(
        fs::read_to_string(scene.dest().join(&name[1..])).unwrap(),
        "planted"
    );
    assert_eq!(fs::read_to_string(scene.dest().join("x")).unwrap(), "y");
}

#[test]
fn links_are_followed_inside_the_destination_and_never_out_of_it() {
    // Relative, upwards: `..` at the root of the destination is the root.
    let scene = Scene::new();
    scene
        .unpack(
            &Tar::default()
                .directory("outside", 0o755)
                .symlink("up", "../outside")
                .file("up/secret", "planted")
                .end(),
        )
        .unwrap();
    assert_eq!(
        fs::read_to_string(scene.dest().join("outside/secret")).unwrap(),
        "planted"
    );

    // Upwards to where nothing is, within: an error, not a file elsewhere.
    let scene = Scene::new();
    let result = scene.unpack(
        &Tar::default()
            .symlink("up", "../outside")
            .file("up/secret", "planted")
            .end(),
    );
    assert!(
        matches!(result, Err(UnpackError::Failed { .. })),
        "{result:?}"
    );

    // Absolute.
    let scene = Scene::new();
    let outside = scene.outside();
    let result = scene.unpack(
        &Tar::default()
            .symlink("abs", outside.to_str().unwrap())
            .file("abs/secret", "planted")
            .end(),
    );
    assert!(
        matches!(result, Err(UnpackError::Failed { .. })),
        "{result:?}"
    );

    // As merged /usr has it.
    let scene = Scene::new();
    let merged = Tar::default()
        .directory("usr/lib", 0o755)
        .symlink("lib", "/usr/lib")
        .directory("lib", 0o700)
        .file("lib/x", "in usr")
        .end();
    scene.unpack(&merged).unwrap();
    assert_eq!(
        fs::read_to_string(scene.dest().join("usr/lib/x")).unwrap(),
        "in usr"
    );
    assert!(
        fs::symlink_metadata(scene.dest().join("lib"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(
        fs::metadata(scene.dest().join("usr/lib")).unwrap().mode() & 0o777,
        0o755
    );
}

#[test]
fn a_link_already_there_is_replaced_and_not_written_through() {
    let scene = Scene::new();
    let secret = scene.outside().join("secret");
    symlink(&secret, scene.dest().join("there")).unwrap();
    let archive = Tar::default()
        .file("there", "replaced")
        .symlink("planted", secret.to_str().unwrap())
        .file("planted", "replaced too")
        .symlink("third", "../outside/secret")
        .symlink("third", "elsewhere")
        .end();
    scene.unpack(&archive).unwrap();
    assert_eq!(
        fs::read_to_string(scene.dest().join("there")).unwrap(),
        "replaced"
    );
    assert_eq!(
        fs::read_to_string(scene.dest().join("planted")).unwrap(),
        "replaced too"
    );
    assert_eq!(
        fs::read_link(scene.dest().join("third")).unwrap(),
        Path::new("elsewhere")
    );
}

#[test]
fn a_directory_entry_over_a_link_out_of_the_destination_changes_nothing_there() {
    let scene = Scene::new();
    let outside = scene.outside();
    scene
        .unpack(
            &Tar::default()
                .symlink("d", outside.to_str().unwrap())
                .directory("d", 0o777)
                .file("d/x", "x")
                .end(),
        )
        .unwrap();
    // Within the destination the link leads nowhere, so a directory takes its place.
    assert!(
        fs::symlink_metadata(scene.dest().join("d"))
            .unwrap()
            .is_dir()
    );
}

#[test]
fn hard_links_reach_nothing_outside() {
    let scene = Scene::new();
    let secret = scene.outside().join("secret");
    let absolute = Tar::default()
        .hard_link("stolen", secret.to_str().unwrap())
        .end();
    assert!(matches!(
        scene.unpack(&absolute),
        Err(UnpackError::Failed { .. })
    ));

    let through_link = Tar::default()
        .symlink("s", secret.to_str().unwrap())
        .hard_link("stolen", "s")
        .file("stolen", "x")
        .end();
    scene.unpack(&through_link).unwrap();
    assert_eq!(
        fs::read_to_string(scene.dest().join("stolen")).unwrap(),
        "x"
    );

    let through_directory = Tar::default()
        .symlink("o", scene.outside().to_str().unwrap())
        .hard_link("taken", "o/secret")
        .end();
    assert!(matches!(
        scene.unpack(&through_directory),
        Err(UnpackError::Failed { .. })
    ));
}

#[test]
fn a_hard_link_onto_itself_keeps_the_file() {
    let scene = Scene::new();
    scene
        .unpack(
            &Tar::default()
                .file("a", "kept")
                .hard_link("a", "a")
                .hard_link("b", "a")
                .hard_link("b", "./a")
                .end(),
        )
        .unwrap();
    assert_eq!(fs::read_to_string(scene.dest().join("a")).unwrap(), "kept");
    assert_eq!(fs::metadata(scene.dest().join("b")).unwrap().nlink(), 2);
}

#[test]
fn devices_and_pipes_are_left_out_and_named() {
    let scene = Scene::new();
    let archive = Tar::default()
        .entry(b'3', b"dev/mem", b"", 0o666, b"")
        .entry(b'4', b"dev/sda", b"", 0o666, b"")
        .entry(b'6', b"dev/initctl", b"", 0o666, b"")
        .hard_link("initctl", "dev/initctl")
        .file("after", "x")
        .end();
    let summary = scene.unpack(&archive).unwrap();
    assert_eq!(summary.left_out, 4);
    assert_eq!(
        summary.names_left_out,
        ["dev/mem", "dev/sda", "dev/initctl", "initctl"]
    );
    assert!(!scene.dest().join("dev/initctl").exists());
    assert!(scene.dest().join("after").exists());
}

#[test]
fn setuid_is_lost_with_the_owner() {
    let scene = Scene::new();
    // A foreign owner; as root in a user namespace with all ids it is kept, and so is the bit.
    let archive = Tar::default()
        .header(b'0', b"tool", b"", 0o6755, 0)
        .patch(108, b"0001751\0")
        .end();
    let summary = scene.unpack(&archive).unwrap();
    let meta = fs::metadata(scene.dest().join("tool")).unwrap();
    if meta.uid() == 0o1751 {
        assert_eq!((meta.mode() & 0o7777, summary.owners_squashed), (0o6755, 0));
    } else {
        assert_eq!((meta.mode() & 0o7777, summary.owners_squashed), (0o755, 1));
    }
}

#[test]
fn owners_that_are_no_ids_are_refused() {
    let no_id = b"\x80\0\0\0\xff\xff\xff\xff";
    let archive = Tar::default()
        .header(b'0', b"x", b"", 0o644, 0)
        .patch(108, no_id)
        .end();
    assert_refused(Scene::new().unpack(&archive), "user id");
    let archive = Tar::default()
        .pax(&[(b"gid", b"4294967296")])
        .file("x", "")
        .end();
    assert_refused(Scene::new().unpack(&archive), "group id");
}

#[test]
fn a_pax_size_is_what_counts() {
    // The header says 0 or far too much; who believed that would read the data as headers, or headers as data.
    for claimed in [0, 1 << 20] {
        let scene = Scene::new();
        let hidden = Tar::default().file("hidden", "planted");
        let archive = Tar::default()
            .pax(&[(b"size", hidden.0.len().to_string().as_bytes())])
            .header(b'0', b"carrier", b"", 0o644, claimed)
            .data(&hidden.0)
            .file("after", "x")
            .end();
        scene.unpack(&archive).unwrap();
        assert_eq!(fs::read(scene.dest().join("carrier")).unwrap(), hidden.0);
        assert!(!scene.dest().join("hidden").exists());
        assert!(scene.dest().join("after").exists());
    }
}

#[test]
fn only_files_have_data() {
    for kind in [b'1', b'2', b'3', b'5', b'6'] {
        let hidden = Tar::default().file("hidden", "planted");
        let archive = Tar::default()
            .header(kind, b"x", b"y", 0o644, hidden.0.len() as u64)
            .data(&hidden.0)
            .end();
        let scene = Scene::new();
        assert_refused(scene.unpack(&archive), "only files");
        assert!(!scene.dest().join("hidden").exists());
    }
}

#[test]
fn control_attributes_do_not_get_through() {
    let scene = Scene::new();
    let capability: &[u8] = &[
        1, 0, 0, 2, 0, b'\n', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let records: &[(&[u8], &[u8])] = &[
        (b"SCHILY.xattr.user.kept", b"with\na newline"),
        (b"SCHILY.xattr.user.overlayish", b"kept"),
        (b"SCHILY.xattr.user.overlay.redirect", b"/etc"),
        (b"SCHILY.xattr.user.overlay.overlay.opaque", b"y"),
        (b"SCHILY.xattr.user.", b"no name"),
        (b"SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        (b"SCHILY.xattr.trusted.overlay.metacopy", b""),
        (b"SCHILY.xattr.security.selinux", b"unconfined_u"),
        (b"SCHILY.xattr.security.ima", b"x"),
        (b"SCHILY.xattr.system.posix_acl_access", b"x"),
        (b"SCHILY.xattr.security.capability", capability),
    ];
    let archive = Tar::default()
        .pax(records)
        .file("f", "x")
        .pax(records)
        .directory("d", 0o755)
        .pax(records)
        .symlink("l", "f")
        .end();
    let summary = scene.unpack(&archive).unwrap();
    for name in ["f", "d"] {
        let mut names = xattr_names(&scene.dest().join(name));
        names.retain(|name| name != "security.capability" && name != "security.selinux");
        names.sort();
        assert_eq!(names, ["user.kept", "user.overlayish"], "{name}");
    }
    assert!(
        xattr_names(&scene.dest().join("l"))
            .iter()
            .all(|name| name == "security.selinux")
    );
    if is_root() {
        assert!(xattr_names(&scene.dest().join("f")).contains(&"security.capability".to_owned()));
    }
    assert!(summary.xattrs_dropped >= 8 * 2 + 11, "{summary:?}");
    let mut value = [0; 32];
    let length = rustix::fs::getxattr(scene.dest().join("f"), "user.kept", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"with\na newline");
}

#[test]
fn depth_and_names_have_ends() {
    let gnu_name = |name: &[u8]| {
        Tar::default()
            .entry(b'L', b"././@LongLink", b"", 0, &[name, b"\0"].concat())
            .file("x", "y")
            .end()
    };
    let deep = "d/".repeat(10_000);
    assert_refused(Scene::new().unpack(&gnu_name(deep.as_bytes())), "too long");
    let deep = "d/".repeat(1500);
    let result = Scene::new().unpack(&gnu_name(deep.as_bytes()));
    assert!(
        matches!(result, Err(UnpackError::TooMuch { limit: 1024, .. })),
        "{result:?}"
    );
    // As deep as it may be; the limit is on the name, so links do not multiply it within one name.
    let scene = Scene::new();
    scene
        .unpack(&gnu_name("d/".repeat(1023).as_bytes()))
        .unwrap();
    // Removal by path would not reach the bottom; tempfile's does.
    let long = "n".repeat(256);
    let result = Scene::new().unpack(&gnu_name(long.as_bytes()));
    assert!(
        matches!(&result, Err(UnpackError::Failed { source, .. }) if source.raw_os_error() == Some(libc::ENAMETOOLONG)),
        "{result:?}"
    );
    // A name that claims to be endless is not read into memory.
    let endless = Tar::default()
        .header(b'L', b"././@LongLink", b"", 0, 1 << 32)
        .end();
    let result = Scene::new().unpack(&endless);
    assert!(
        matches!(result, Err(UnpackError::TooMuch { .. })),
        "{result:?}"
    );
}

#[test]
fn names_are_bytes() {
    let scene = Scene::new();
    let names: [&[u8]; 4] = [b"new\nline", b"\xff\xfe", b"-rf", b" "];
    let mut tar = Tar::default();
    for name in names {
        tar = tar.entry(b'0', name, b"", 0o644, b"x");
    }
    let long = [b"long\n".as_slice(), &[0xff; 150]].concat();
    tar = tar.pax(&[(b"path", &long)]).file("short", "x");
    scene.unpack(&tar.end()).unwrap();
    for name in names.into_iter().chain([long.as_slice()]) {
        assert!(
            scene.dest().join(OsStr::from_bytes(name)).is_file(),
            "{}",
            name.escape_ascii()
        );
    }
    let nul = Tar::default()
        .pax(&[(b"path", b"a\0b")])
        .file("x", "y")
        .end();
    assert_refused(Scene::new().unpack(&nul), "NUL");
    let nul = Tar::default()
        .pax(&[(b"linkpath", b"a\0b")])
        .symlink("x", "y")
        .end();
    assert_refused(Scene::new().unpack(&nul), "NUL");
}

#[test]
fn messages_name_the_entry_on_one_line() {
    let message = Scene::new()
        .unpack(
            &Tar::default()
                .entry(b'0', b"../\n\x1b[2J", b"", 0o644, b"")
                .end(),
        )
        .unwrap_err();
    assert_eq!(
        message.to_string(),
        r"refused entry '../\n\x1b[2J': there is a '..' in its name"
    );
}

#[test]
fn a_file_never_replaces_a_directory_with_something_in_it() {
    for kind in [b'0', b'2'] {
        let archive = Tar::default()
            .file("d/x", "kept")
            .entry(kind, b"d", b"t", 0o644, b"")
            .end();
        let scene = Scene::new();
        assert_refused(scene.unpack(&archive), "not empty");
        assert_eq!(
            fs::read_to_string(scene.dest().join("d/x")).unwrap(),
            "kept"
        );
    }
    let scene = Scene::new();
    scene
        .unpack(&Tar::default().directory("d", 0o500).file("d", "file").end())
        .unwrap();
    assert!(scene.dest().join("d").is_file());
}

#[test]
fn closed_directories_can_be_filled_and_are_closed_at_the_end() {
    let scene = Scene::new();
    let archive = Tar::default()
        .directory("ro", 0o555)
        .directory("ro/none", 0)
        .file("ro/none/file", "x")
        .file("ro/file", "x")
        .directory("open", 0)
        .directory("open", 0o750)
        .end();
    scene.unpack(&archive).unwrap();
    let mode = |name: &str| fs::metadata(scene.dest().join(name)).unwrap().mode() & 0o7777;
    assert_eq!(
        (mode("ro"), mode("ro/none"), mode("open")),
        (0o555, 0, 0o750)
    );
    assert_eq!(
        fs::metadata(scene.dest().join("ro")).unwrap().mtime(),
        1_000_000_000
    );
    // For the clean-up, which has no privilege when the test has none.
    fs::set_permissions(scene.dest().join("ro"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(
        scene.dest().join("ro/none"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
}

#[test]
fn times_of_directories_survive_what_comes_later() {
    let scene = Scene::new();
    fs::create_dir(scene.dest().join("old")).unwrap();
    let archive = Tar::default()
        .directory("a", 0o755)
        .file("a/1", "x")
        .file("b/1", "x")
        .file("a/2", "x")
        .directory("b", 0o755)
        .file("old/new", "x")
        .end();
    scene.unpack(&archive).unwrap();
    let mtime = |name: &str| fs::metadata(scene.dest().join(name)).unwrap().mtime();
    assert_eq!((mtime("a"), mtime("b")), (1_000_000_000, 1_000_000_000));
    // Not given by the archive: it changed just now, and says so.
    assert!(mtime("old") > 1_000_000_000);
}

#[test]
fn times_have_fractions_and_may_lie_before_1970() {
    let scene = Scene::new();
    let archive = Tar::default()
        .pax(&[(b"mtime", b"12.345")])
        .file("a", "")
        .pax(&[(b"mtime", b"-1.25")])
        .file("b", "")
        .header(b'0', b"c", b"", 0o644, 0)
        .patch(136, &[0xff; 12])
        .end();
    scene.unpack(&archive).unwrap();
    let time = |name: &str| {
        let meta = fs::metadata(scene.dest().join(name)).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    assert_eq!(time("a"), (12, 345_000_000));
    assert_eq!(time("b"), (-2, 750_000_000));
    assert_eq!(time("c"), (-1, 0));
}

#[test]
fn bombs_stop_at_the_limit() {
    let zeros = vec![0u8; 4 << 20];
    let archive = Tar::default()
        .entry(b'0', b"zeros", b"", 0o644, &zeros)
        .end();
    let small = UnpackLimits {
        bytes: 1 << 20,
        ..UnpackLimits::default()
    };
    let steep = UnpackLimits {
        ratio_from: 1 << 20,
        ratio: 100,
        ..UnpackLimits::default()
    };
    for (name, archive) in [
        ("gzip", gzip(&archive)),
        ("zstd", zstandard(&archive)),
        ("xz", xz(&archive)),
    ] {
        for limits in [&small, &steep] {
            let scene = Scene::new();
            let result = scene.unpack_within(&archive, limits);
            assert!(
                matches!(result, Err(UnpackError::TooMuch { .. })),
                "{name}: {result:?}"
            );
            let written = fs::metadata(scene.dest().join("zeros")).map_or(0, |meta| meta.len());
            assert!(written <= 2 << 20, "{name}: {written}");
        }
        Scene::new().unpack(&archive).unwrap();
    }
    // What is skipped costs too.
    let hidden = Tar::default()
        .entry(b'V', b"label", b"", 0, &zeros)
        .file("x", "y")
        .end();
    let result = Scene::new().unpack_within(&gzip(&hidden), &small);
    assert!(
        matches!(result, Err(UnpackError::TooMuch { .. })),
        "{result:?}"
    );
    let many = (0..100)
        .fold(Tar::default(), |tar, n| tar.file(&n.to_string(), ""))
        .end();
    let few = UnpackLimits {
        entries: 99,
        ..UnpackLimits::default()
    };
    let result = Scene::new().unpack_within(&many, &few);
    assert!(
        matches!(
            result,
            Err(UnpackError::TooMuch {
                what: "entries",
                ..
            })
        ),
        "{result:?}"
    );
    let deep = Tar::default().file("a/b/c/d", "").end();
    let few = UnpackLimits {
        directories: 2,
        ..UnpackLimits::default()
    };
    let result = Scene::new().unpack_within(&deep, &few);
    assert!(
        matches!(
            result,
            Err(UnpackError::TooMuch {
                what: "directories",
                ..
            })
        ),
        "{result:?}"
    );
}

#[test]
fn truncated_damaged_and_foreign_are_told_apart() {
    let whole = ordinary();
    for length in [0, 1, 511] {
        let result = Scene::new().unpack(&whole[..length]);
        assert!(
            matches!(result, Err(UnpackError::NotAnArchive)),
            "{length}: {result:?}"
        );
    }
    // At every block and within, the end mark's first block included.
    for length in (512..whole.len() - 1024).step_by(256) {
        let result = Scene::new().unpack(&whole[..length]);
        assert!(
            matches!(result, Err(UnpackError::Truncated { .. })),
            "{length}: {result:?}"
        );
    }
    for (name, archive) in [
        ("gzip", gzip(&whole)),
        ("zstd", zstandard(&whole)),
        ("xz", xz(&whole)),
    ] {
        for length in [archive.len() / 2, archive.len() - 1] {
            let result = Scene::new().unpack(&archive[..length]);
            assert!(
                matches!(result, Err(UnpackError::Truncated { .. })),
                "{name} {length}: {result:?}"
            );
        }
        let mut damaged = archive.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0xff;
        let result = Scene::new().unpack(&damaged);
        let told = matches!(
            result,
            Err(UnpackError::Corrupt { .. }
                | UnpackError::NotAnArchive
                | UnpackError::Truncated { .. })
        );
        assert!(told, "{name}: {result:?}");
    }
    let mut damaged = whole.clone();
    damaged[512] ^= 1;
    let result = Scene::new().unpack(&damaged);
    assert!(
        matches!(result, Err(UnpackError::Corrupt { offset: 1024, .. })),
        "{result:?}"
    );
    let result = Scene::new().unpack(b"BZh91AY&SY");
    assert!(
        matches!(result, Err(UnpackError::UnsupportedCompression("bzip2"))),
        "{result:?}"
    );
    let result = Scene::new().unpack(&gzip(b"just text"));
    assert!(
        matches!(result, Err(UnpackError::Truncated { .. })),
        "{result:?}"
    );
    let result = Scene::new().unpack(&gzip(&[b'x'; 4096]));
    assert!(
        matches!(result, Err(UnpackError::NotAnArchive)),
        "{result:?}"
    );
    let result = Scene::new().unpack(&[b'x'; 4096]);
    assert!(
        matches!(result, Err(UnpackError::NotAnArchive)),
        "{result:?}"
    );
}

#[test]
fn nothing_may_follow_the_end() {
    let scene = Scene::new();
    let archive = [ordinary(), Tar::default().file("second", "x").end()].concat();
    assert!(matches!(
        scene.unpack(&archive),
        Err(UnpackError::Corrupt { .. })
    ));
    assert!(!scene.dest().join("second").exists());
    for (name, archive) in [
        ("gzip", gzip(&ordinary())),
        ("zstd", zstandard(&ordinary())),
        ("xz", xz(&ordinary())),
    ] {
        let result = Scene::new().unpack(&[archive, b"garbage".repeat(10)].concat());
        assert!(
            matches!(
                result,
                Err(UnpackError::Corrupt { .. } | UnpackError::Truncated { .. })
            ),
            "{name}: {result:?}"
        );
    }
    // Zeros may: tar fills up to its record size.
    Scene::new()
        .unpack(&[ordinary(), vec![0; 10_240]].concat())
        .unwrap();
    Scene::new().unpack(&Tar::default().end()).unwrap();
}

#[test]
fn extension_headers_are_taken_strictly() {
    let broken: [&[u8]; 7] = [
        b"x",
        b"5 ab\n",
        b"99 path=x\n",
        b"7 path\n",
        b"0 \n",
        b"11 path=abc\n",
        b"9 size=-1\n",
    ];
    for records in broken {
        let archive = Tar::default()
            .entry(b'x', b"pax", b"", 0, records)
            .file("x", "y")
            .end();
        let result = Scene::new().unpack(&archive);
        assert!(
            matches!(result, Err(UnpackError::Corrupt { .. })),
            "{}: {result:?}",
            records.escape_ascii()
        );
    }
    let global = |records: &[(&[u8], &[u8])]| {
        Tar::default()
            .entry(b'g', b"pax", b"", 0, &pax_records(records))
            .file("x", "y")
            .end()
    };
    Scene::new()
        .unpack(&global(&[(b"comment", b"a commit")]))
        .unwrap();
    assert_refused(
        Scene::new().unpack(&global(&[(b"path", b"elsewhere")])),
        "global",
    );
    let dangling = Tar::default().pax(&[(b"path", b"x")]).end();
    assert!(matches!(
        Scene::new().unpack(&dangling),
        Err(UnpackError::Corrupt { .. })
    ));
    assert_refused(
        Scene::new().unpack(&Tar::default().entry(b'D', b"x", b"", 0, b"").end()),
        "type",
    );
}

#[test]
fn sparse_files_keep_their_holes_and_lie_about_nothing() {
    let gnu = |map: &[(u64, u64)], real: u64, data: &[u8]| {
        let mut tar = Tar::default()
            .header(b'S', b"sparse", b"", 0o644, data.len() as u64)
            .patch(257, b"ustar  \0");
        for (at, (offset, length)) in map.iter().enumerate() {
            tar = tar.patch(
                386 + at * 24,
                format!("{offset:011o}\0{length:011o}\0").as_bytes(),
            );
        }
        tar.patch(483, format!("{real:011o}\0").as_bytes())
            .data(data)
            .file("after", "x")
            .end()
    };
    let pax = |map: &str, real: &str, data: &[u8]| {
        let mut content = map.as_bytes().to_vec();
        content.resize(content.len().next_multiple_of(BLOCK), 0);
        content.extend_from_slice(data);
        Tar::default()
            .pax(&[
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", b"sparse"),
                (b"GNU.sparse.realsize", real.as_bytes()),
            ])
            .entry(b'0', b"GNUSparseFile.0/sparse", b"", 0o644, &content)
            .file("after", "x")
            .end()
    };
    for (name, archive) in [
        (
            "gnu",
            gnu(
                &[(1 << 20, 3), (2 << 20, 3), (3 << 20, 0)],
                3 << 20,
                b"onetwo",
            ),
        ),
        (
            "pax",
            pax(
                "3\n1048576\n3\n2097152\n3\n3145728\n0\n",
                "3145728",
                b"onetwo",
            ),
        ),
    ] {
        let scene = Scene::new();
        let summary = scene
            .unpack(&archive)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let content = fs::read(scene.dest().join("sparse")).unwrap();
        assert_eq!((content.len(), summary.bytes), (3 << 20, 7), "{name}");
        assert_eq!(&content[1 << 20..][..3], b"one", "{name}");
        assert_eq!(&content[2 << 20..][..3], b"two", "{name}");
        assert!(scene.dest().join("after").exists(), "{name}");
    }
    // All hole.
    let scene = Scene::new();
    scene.unpack(&pax("0\n", "4096", b"")).unwrap();
    assert_eq!(fs::read(scene.dest().join("sparse")).unwrap(), [0; 4096]);

    for archive in [
        gnu(&[(10, 3), (0, 3)], 20, b"onetwo"),
        gnu(&[(0, 3), (2, 3)], 20, b"onetwo"),
        gnu(&[(0, 6)], 5, b"onetwo"),
        gnu(&[(0, 5)], 20, b"onetwo"),
        pax("1\n0\n7\n", "20", b"onetwo"),
        pax("1\n18446744073709551615\n6\n", "20", b"onetwo"),
        pax("2\n0\n", "20", b""),
    ] {
        assert_refused(Scene::new().unpack(&archive), "holes");
    }
    assert_refused(
        Scene::new().unpack(&pax("99999999\n", "20", b"")),
        "too many holes",
    );
    let huge = pax("0\n", "9223372036854775807", b"");
    assert!(matches!(
        Scene::new().unpack(&huge),
        Err(UnpackError::TooMuch { .. })
    ));
    let old = Tar::default()
        .pax(&[(b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"9")])
        .file("x", "y")
        .end();
    assert_refused(Scene::new().unpack(&old), "sparse");
}

#[test]
fn whiteouts_are_ordinary_names() {
    let scene = Scene::new();
    scene
        .unpack(
            &Tar::default()
                .file("kept", "x")
                .file(".wh.kept", "")
                .file(".wh..wh..opq", "")
                .end(),
        )
        .unwrap();
    assert!(scene.dest().join("kept").exists());
    assert!(scene.dest().join(".wh.kept").exists());
}

#[test]
fn a_destination_that_is_none_is_named() {
    let scene = Scene::new();
    let missing = scene.dest().join("missing");
    let error = unpack(
        ordinary().as_slice(),
        Compression::Plain,
        &missing,
        &UnpackLimits::default(),
    )
    .unwrap_err();
    assert!(
        matches!(&error, UnpackError::Destination { path, .. } if path.ends_with("missing")),
        "{error:?}"
    );
}

/// On the terms of the host, with a umask of 027.
fn take_home(scene: &Scene, archive: &[u8]) -> Result<Summary, UnpackError> {
    let before = scene.surroundings();
    let limits = UnpackLimits::default();
    let result = unpack_on_host(archive, &scene.dest(), 0o027, &limits);
    assert_eq!(scene.surroundings(), before, "something outside changed");
    result
}

fn mode_below(scene: &Scene, name: &str) -> u32 {
    let found = fs::symlink_metadata(scene.dest().join(name)).unwrap();
    found.permissions().mode() & 0o7777
}

#[test]
fn on_the_host_everything_is_the_users_own_and_nothing_more() {
    let scene = Scene::new();
    let archive = Tar::default()
        .directory("./", 0o755)
        .entry(b'5', b"./shared", b"", 0o7777, b"")
        .directory("./locked", 0)
        .file("./locked/inside", "x")
        .pax(&[
            (b"SCHILY.xattr.user.note", b"hello"),
            (b"uid", b"0"),
            (b"gid", b"12345"),
        ])
        .entry(b'0', b"./tool", b"", 0o6755, b"#!/bin/sh")
        .entry(b'0', b"./open", b"", 0o666, b"")
        .entry(b'0', b"./read-only", b"", 0o444, b"")
        .hard_link("./same", "./tool")
        .end();
    let summary = take_home(&scene, &archive).unwrap();
    assert_eq!(summary.left_out, 0);
    for (name, mode) in [
        ("shared", 0o750),
        ("locked", 0o700),
        ("tool", 0o750),
        ("open", 0o640),
        ("read-only", 0o440),
    ] {
        assert_eq!(mode_below(&scene, name), mode, "{name}");
    }
    let tool = fs::metadata(scene.dest().join("tool")).unwrap();
    let me = rustix::process::geteuid().as_raw();
    assert_eq!((tool.uid(), tool.nlink()), (me, 2));
    assert_eq!(tool.mtime(), 1_000_000_000);
    assert_eq!(
        xattr_names(&scene.dest().join("tool")),
        Vec::<String>::new()
    );
}

#[test]
fn on_the_host_no_link_leads_out_not_even_by_way_of_others() {
    let scene = Scene::new();
    let archive = Tar::default()
        .directory("./", 0o755)
        .directory("./a", 0o755)
        .directory("./a/b", 0o755)
        .symlink("./a/b/up", "../..")
        .symlink("./a/b/far", "../../a/./b//up")
        .symlink("./here", ".")
        .symlink("./dangling", "a/none")
        // From here on every one of them leads out.
        .symlink("./absolute", "/etc/passwd")
        .symlink("./above", "..")
        .symlink("./a/above", "../../outside")
        .symlink("./by-others", "here/here/here/../../..")
        .symlink("./after-a-name", "a/../../outside")
        .hard_link("./moved", "./a/b/up")
        .entry(b'3', b"./device", b"", 0o666, b"")
        .entry(b'6', b"./fifo", b"", 0o666, b"")
        .hard_link("./of-the-fifo", "./fifo")
        .file("./last", "x")
        .end();
    let summary = take_home(&scene, &archive).unwrap();
    assert_eq!(summary.left_out, 9);
    assert_eq!(summary.names_left_out[0], "./absolute");
    assert_eq!(summary.names_left_out.len(), 8);
    let mut names: Vec<_> = fs::read_dir(scene.dest())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "dangling", "here", "last"]);
    let up = fs::read_link(scene.dest().join("a/b/up")).unwrap();
    assert_eq!(up, Path::new("../.."));
}

#[test]
fn on_the_host_nothing_is_placed_or_found_through_a_link() {
    for archive in [
        Tar::default().symlink("here", ".").file("here/x", "x"),
        Tar::default()
            .directory("a", 0o755)
            .symlink("link", "a")
            .file("link/x", "x"),
        Tar::default()
            .directory("a", 0o755)
            .file("a/x", "x")
            .symlink("link", "a")
            .hard_link("y", "link/x"),
    ] {
        let scene = Scene::new();
        let error = take_home(&scene, &archive.end()).unwrap_err();
        assert!(matches!(error, UnpackError::Failed { .. }), "{error:?}");
    }
    let scene = Scene::new();
    let archive = Tar::default().file("../outside/secret", "x").end();
    assert_refused(take_home(&scene, &archive), "'..'");
    let archive = Tar::default().file("/outside/secret", "x").end();
    take_home(&scene, &archive).unwrap();
    assert!(scene.dest().join("outside/secret").is_file());
}
