//! The host's own system as a base: which of its directories are shown, and a root to hang them in.
//!
//! Programs and libraries are shown as they are, by overlays over the host's directories. Of
//! `/etc` only what the table `ALLOWED` lists is copied, and of that only what every user of the host can
//! read anyway. Of `/home`, `/root`, `/var` and `/run` there is nothing, unless the operator
//! includes it. Where it is not plain that a file holds no secret, it stays out.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use super::archive::{Attributes, TarWriter};
use super::skeleton;

/// What of `/etc` is copied, and why it holds no secret. `*` stands for any part of a name.
///
/// Left out on purpose, although programs read them: `apt`, `dnf`, `pip.conf`, `npmrc`,
/// `gitconfig`, `wgetrc`, `gemrc`, `maven/settings.xml`, `perl/CPAN`, `R`, `php`, `odbc.ini`,
/// `ldap`, `krb5*`, `cups`, `docker` (passwords and tokens for registries, proxies and servers);
/// `passwd`, `group`, `sub?id`, `sudoers`, `pam.d`, `machine-id`, `hostname`, `hosts` (accounts
/// and identity of the host); `profile*`, `environment`, `bash*`, `skel` (operators export tokens
/// there); `ssl/private`, `pki/*/private`, `ssh` (keys).
const ALLOWED: &[(&str, &str)] = &[
    // What programs are called, and where their libraries are.
    ("alternatives", "links to programs"),
    ("ld.so.cache", "paths of libraries"),
    ("ld.so.conf", "paths of libraries"),
    ("ld.so.conf.d", "paths of libraries"),
    ("dpkg/origins", "names of distributions"),
    // Certificates: public by nature. Private keys live elsewhere, and are looked for besides.
    ("ca-certificates", "hooks and names of certificates"),
    ("ca-certificates.conf", "names of certificates"),
    ("crypto-policies", "lists of ciphers"),
    ("pki/ca-trust/extracted", "certificates"),
    ("pki/java", "certificates"),
    ("pki/tls/cert.pem", "certificates"),
    ("pki/tls/certs", "certificates"),
    ("pki/tls/openssl.cnf", "defaults of the openssl command"),
    ("ssl/cert.pem", "certificates"),
    ("ssl/certs", "certificates"),
    ("ssl/openssl.cnf", "defaults of the openssl command"),
    // Time, language, terminals.
    ("default/locale", "names of locales"),
    ("inputrc", "key bindings"),
    ("locale.alias", "names of locales"),
    ("locale.conf", "names of locales"),
    ("locale.gen", "names of locales"),
    ("localtime", "time zone"),
    ("terminfo", "descriptions of terminals"),
    ("timezone", "time zone"),
    // Tables of names and numbers, the same on every machine.
    ("ethertypes", "protocol numbers"),
    ("iproute2", "names of tables and protocols"),
    ("magic", "file formats"),
    ("magic.mime", "file formats"),
    ("mime.types", "file formats"),
    ("netconfig", "transports of RPC"),
    ("protocols", "protocol numbers"),
    ("rpc", "program numbers"),
    ("services", "port numbers"),
    ("sgml", "catalogues of document types"),
    ("xml", "catalogues of document types"),
    // Which system this is.
    ("*-release", "name and version of the distribution"),
    ("debian_version", "version of the distribution"),
    // Defaults of programs, from their packages.
    ("adduser.conf", "ranges of ids"),
    ("deluser.conf", "what userdel removes"),
    ("fonts", "paths and substitutes of fonts"),
    ("groff", "macros"),
    (
        "java-*-openjdk",
        "defaults of the runtime; its password files are told by name and mode",
    ),
    ("login.defs", "ranges of ids, hash methods"),
    ("manpath.config", "paths of manuals"),
    ("maven/logging", "log format"),
    ("maven/m2.conf", "class path of the launcher"),
    ("mke2fs.conf", "defaults of mkfs"),
    ("python3*", "package options of the interpreter"),
    ("texmf", "paths of TeX"),
    ("xattr.conf", "attributes that cp copies"),
];

/// Directories of programs and libraries, where they are not links into `/usr`.
const SYSTEM: [&str; 9] = [
    "usr", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32",
];

/// Filesystems that hold files. A tmpfs may hold a service's secrets, the rest is the kernel's, or
/// belongs to the user who mounted it.
const FILESYSTEMS: [&str; 15] = [
    "9p", "bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "nfs", "nfs4", "overlay",
    "squashfs", "virtiofs", "xfs", "zfs",
];

/// Where derrick has something of its own: the whole of it cannot be the host's.
const OWN: [&str; 4] = ["/etc", "/run", "/tmp", "/"];
/// Where the kernel speaks.
const KERNEL: [&str; 3] = ["/dev", "/proc", "/sys"];

const FILE_MAX: u64 = 16 << 20;
const TAR_MAX: usize = 128 << 20;
/// 2020-01-01, as in the skeleton.
const MODIFIED: u64 = 1_577_836_800;

const READ_BY_OTHERS: u32 = 0o004;
const ENTERED_BY_OTHERS: u32 = 0o005;

/// The host's system, ready to be put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostBase {
    /// The root: links such as `/bin`, copies of the harmless part of `/etc`, mount points. Same host, same bytes.
    pub tar: Vec<u8>,
    /// Host directories to show at the same paths, each by an overlay of its own; parents before what is mounted in them.
    pub directories: Vec<PathBuf>,
    /// What is mounted below them and is not shown.
    pub covered: Vec<PathBuf>,
}

/// Why the host cannot serve as a base.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// `include` names something that cannot be shown.
    #[error("cannot include {}: {reason}", path.display())]
    Include {
        /// As the config has it.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The workspaces' own files would be inside the workspaces.
    #[error(
        "cannot show the host's {}: it holds, or is part of, derrick's own state in {}; choose another state directory",
        directory.display(), state.display()
    )]
    StateInside {
        /// The directory to be shown.
        directory: PathBuf,
        /// The state directory.
        state: PathBuf,
    },
    /// The base directory, or one in it, is of an owner that no sandbox has.
    #[error(
        "cannot use the base directory: {} belongs to uid {uid}, gid {gid}, which sandboxes here do not have, so \
         nothing in it could be written; unpack it as the user who runs derrick, or use a tarball",
        directory.display()
    )]
    Owner {
        /// The directory.
        directory: PathBuf,
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// The host's files cannot be read.
    #[error("cannot read the host's {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `/etc` holds far more than it should.
    #[error("the parts of the host's /etc that a workspace needs exceed {limit} bytes")]
    TooBig {
        /// The limit.
        limit: usize,
    },
}

/// Describes the host's system, with the directories `include` besides; blocks while reading `/etc`.
///
/// `state` is derrick's state directory, which must not come into view.
///
/// # Errors
///
/// See [`BaseError`].
pub fn host_base(include: &[PathBuf], state: &Path) -> Result<HostBase, BaseError> {
    let mounts = PathBuf::from("/proc/self/mountinfo");
    let mounts = fs::read(&mounts).map_err(|source| BaseError::Read {
        path: mounts,
        source,
    })?;
    Host {
        root: PathBuf::from("/"),
        owner: 0,
    }
    .describe(include, state, &mounts)
}

/// What lies below `directories` that other users of the host cannot read, and sockets and FIFOs: topmost paths only.
///
/// Root of a workspace may act for the owners of the host's files, so what these keep to
/// themselves must be hidden by other means. What is mounted below them, `mounts`, is not looked into.
/// Reads every directory: about 3 µs a file when the kernel has it in memory.
///
/// # Errors
///
/// When a directory cannot be read for another reason than permission.
pub fn withheld(
    directories: &[PathBuf],
    mounts: &BTreeSet<PathBuf>,
) -> Result<BTreeSet<PathBuf>, BaseError> {
    let mut found = BTreeSet::new();
    for top in directories {
        let read = |path: &Path, source| BaseError::Read {
            path: path.to_path_buf(),
            source,
        };
        let mut pending = vec![top.clone()];
        while let Some(directory) = pending.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(e) if is_gone(&e) => continue,
                Err(e) => return Err(read(&directory, e)),
            };
            for entry in entries {
                let entry = entry.map_err(|e| read(&directory, e))?;
                let meta = match entry.metadata() {
                    Ok(meta) => meta,
                    Err(e) if is_gone(&e) => continue,
                    Err(e) => return Err(read(&entry.path(), e)),
                };
                let kind = meta.file_type();
                if kind.is_dir() && meta.mode() & ENTERED_BY_OTHERS == ENTERED_BY_OTHERS {
                    if !mounts.contains(&entry.path()) {
                        pending.push(entry.path());
                    }
                } else if kind.is_dir()
                    || kind.is_socket()
                    || kind.is_fifo()
                    || (kind.is_file() && meta.mode() & READ_BY_OTHERS == 0)
                {
                    found.insert(entry.path());
                }
            }
        }
    }
    Ok(found)
}

/// The host as the tests can have one too.
struct Host {
    /// Where its root is.
    root: PathBuf,
    /// Who owns what may be copied.
    owner: u32,
}

/// What goes into the root, by path relative to it: sorted, parents first.
type Tree = BTreeMap<PathBuf, Item>;

enum Item {
    Directory {
        mode: u32,
        modified: u64,
    },
    File {
        mode: u32,
        modified: u64,
        content: Vec<u8>,
    },
    Link {
        target: PathBuf,
        modified: u64,
    },
}

impl Host {
    fn describe(
        &self,
        include: &[PathBuf],
        state: &Path,
        mounts: &[u8],
    ) -> Result<HostBase, BaseError> {
        let mut directories = self.system_directories();
        for path in include {
            self.check_include(path)?;
            // Without a slash at the end.
            directories.insert(path.components().collect());
        }
        let directories = without_nested(directories);
        check_state(&directories, state)?;

        let mut tree = Tree::new();
        self.add_links(&mut tree);
        self.add_etc(&mut tree)?;
        self.add_package_tools(&mut tree);
        for directory in &directories {
            add_mount_point(&mut tree, directory);
        }
        add_parents(&mut tree);
        let tar = write(&tree)?;
        // Only now: these are below directories of the host, which have the mount points.
        let (directories, covered) = self.with_mounts(&directories, mounts);
        Ok(HostBase {
            tar,
            directories,
            covered,
        })
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn system_directories(&self) -> BTreeSet<PathBuf> {
        let all = SYSTEM.iter().map(|name| Path::new("/").join(name));
        all.filter(|path| fs::symlink_metadata(self.at(path)).is_ok_and(|meta| meta.is_dir()))
            .collect()
    }

    fn check_include(&self, path: &Path) -> Result<(), BaseError> {
        let refuse = |reason: &str| {
            Err(BaseError::Include {
                path: path.to_path_buf(),
                reason: reason.to_owned(),
            })
        };
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return refuse("an absolute path without '..' is needed");
        }
        if OWN.iter().any(|own| path == Path::new(own)) {
            return refuse("a workspace has its own; include directories below it");
        }
        if KERNEL.iter().any(|kernel| path.starts_with(kernel)) {
            return refuse("the kernel's interfaces are never shown");
        }
        let real = match self.at(path).canonicalize() {
            Ok(real) => real,
            Err(e) => return refuse(&e.to_string()),
        };
        let real = Path::new("/").join(real.strip_prefix(&self.root).unwrap_or(&real));
        if real != path {
            return refuse(&format!(
                "there is a symbolic link in it; it leads to {}",
                real.display()
            ));
        }
        if !self.at(path).is_dir() {
            return refuse("it is not a directory");
        }
        Ok(())
    }

    /// `/bin` and its like, where they are links.
    fn add_links(&self, tree: &mut Tree) {
        for name in SYSTEM {
            let path = self.root.join(name);
            if let (Ok(target), Ok(meta)) = (fs::read_link(&path), fs::symlink_metadata(&path)) {
                tree.insert(
                    PathBuf::from(name),
                    Item::Link {
                        target,
                        modified: modified(&meta),
                    },
                );
            }
        }
    }

    fn add_etc(&self, tree: &mut Tree) -> Result<(), BaseError> {
        for (pattern, _) in ALLOWED {
            let names: Vec<&str> = pattern.split('/').collect();
            self.add_matching(tree, Path::new("etc"), &names)?;
        }
        Ok(())
    }

    /// Adds what matches `names` below `directory`; links on the way are kept and not followed.
    fn add_matching(
        &self,
        tree: &mut Tree,
        directory: &Path,
        names: &[&str],
    ) -> Result<(), BaseError> {
        let [name, below @ ..] = names else {
            return Ok(());
        };
        for found in self.children(directory)? {
            if !matches(name, found.as_bytes()) {
                continue;
            }
            let path = directory.join(&found);
            let Ok(meta) = fs::symlink_metadata(self.root.join(&path)) else {
                continue;
            };
            if meta.is_dir() && !below.is_empty() {
                self.add_matching(tree, &path, below)?;
            } else {
                self.add(tree, path, &meta)?;
            }
        }
        Ok(())
    }

    /// Adds a link, a file that all may read, or a directory with all of its such.
    fn add(&self, tree: &mut Tree, path: PathBuf, meta: &Metadata) -> Result<(), BaseError> {
        let modified = modified(meta);
        if meta.is_symlink() {
            if let Ok(target) = fs::read_link(self.root.join(&path)) {
                tree.insert(path, Item::Link { target, modified });
            }
        } else if meta.is_dir() && self.is_public(meta, ENTERED_BY_OTHERS) {
            for name in self.children(&path)? {
                let path = path.join(name);
                if let Ok(meta) = fs::symlink_metadata(self.root.join(&path)) {
                    self.add(tree, path, &meta)?;
                }
            }
            tree.insert(
                path,
                Item::Directory {
                    mode: meta.mode() & 0o755,
                    modified,
                },
            );
        } else if meta.is_file()
            && !sounds_secret(&path)
            && let Some(content) = self.read_public(&path)
        {
            tree.insert(
                path,
                Item::File {
                    mode: meta.mode() & 0o755,
                    modified,
                    content,
                },
            );
        }
        Ok(())
    }

    /// The content of a file that every user may read anyway; `None` if it is not such a one.
    fn read_public(&self, path: &Path) -> Option<Vec<u8>> {
        let flags = rustix::fs::OFlags::NOFOLLOW
            | rustix::fs::OFlags::NONBLOCK
            | rustix::fs::OFlags::NOCTTY;
        let flags = i32::try_from(flags.bits()).ok()?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(self.root.join(path))
            .ok()?;
        let meta = file.metadata().ok()?;
        if !meta.is_file() || !self.is_public(&meta, READ_BY_OTHERS) {
            return None;
        }
        let mut content = Vec::new();
        file.take(FILE_MAX + 1).read_to_end(&mut content).ok()?;
        let fits = content.len() as u64 <= FILE_MAX;
        (fits && !holds_private_key(&content)).then_some(content)
    }

    fn is_public(&self, meta: &Metadata, needed: u32) -> bool {
        meta.uid() == self.owner && meta.mode() & needed == needed
    }

    fn children(&self, directory: &Path) -> Result<Vec<std::ffi::OsString>, BaseError> {
        let path = self.root.join(directory);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if is_gone(&e) => return Ok(Vec::new()),
            Err(source) => return Err(BaseError::Read { path, source }),
        };
        Ok(entries
            .filter_map(|entry| Some(entry.ok()?.file_name()))
            .collect())
    }

    /// Empty databases for dpkg and apt, so that they work: the host's own are in `/var`, and its sources may hold passwords.
    fn add_package_tools(&self, tree: &mut Tree) {
        let mut directories = Vec::new();
        let mut files = Vec::new();
        if self.root.join("usr/bin/dpkg").exists() {
            let database = Path::new("var/lib/dpkg");
            let below = ["alternatives", "info", "parts", "triggers", "updates"];
            directories.extend(below.map(|name| database.join(name)));
            files.extend(
                [("available", ""), ("info/format", "1\n"), ("status", "")]
                    .map(|(name, content)| (database.join(name), content)),
            );
        }
        if self.root.join("usr/bin/apt-get").exists() {
            let below = [
                "apt.conf.d",
                "preferences.d",
                "sources.list.d",
                "trusted.gpg.d",
            ];
            directories.extend(below.map(|name| Path::new("etc/apt").join(name)));
        }
        for path in directories {
            tree.insert(
                path,
                Item::Directory {
                    mode: 0o755,
                    modified: MODIFIED,
                },
            );
        }
        for (path, content) in files {
            let content = content.into();
            tree.insert(
                path,
                Item::File {
                    mode: 0o644,
                    modified: MODIFIED,
                    content,
                },
            );
        }
    }

    /// The directories with what is mounted below them and can be shown; and what cannot.
    fn with_mounts(
        &self,
        directories: &BTreeSet<PathBuf>,
        mounts: &[u8],
    ) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let mut all = directories.clone();
        let mut covered = BTreeSet::new();
        for (point, filesystem) in mounts.split(|&b| b == b'\n').filter_map(parse_mount) {
            let Some(top) = directories
                .iter()
                .find(|top| point.starts_with(top) && point != **top)
            else {
                continue;
            };
            if FILESYSTEMS.contains(&filesystem.as_str()) && self.is_open_to_others(top, &point) {
                all.insert(point);
            } else {
                covered.insert(point);
            }
        }
        // Of several mounts at one place the last one is on top, whichever that is.
        all.retain(|path| directories.contains(path) || !covered.contains(path));
        (all.into_iter().collect(), covered.into_iter().collect())
    }

    /// Whether every user can get from `top` to `point`, and into it.
    fn is_open_to_others(&self, top: &Path, point: &Path) -> bool {
        point
            .ancestors()
            .take_while(|path| *path != top)
            .all(|path| {
                fs::symlink_metadata(self.at(path)).is_ok_and(|meta| {
                    meta.is_dir() && meta.mode() & ENTERED_BY_OTHERS == ENTERED_BY_OTHERS
                })
            })
    }
}

/// Those that are below no other one.
pub(super) fn without_nested(directories: BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let all = directories.clone();
    directories
        .into_iter()
        .filter(|path| !path.ancestors().skip(1).any(|above| all.contains(above)))
        .collect()
}

fn check_state(directories: &BTreeSet<PathBuf>, state: &Path) -> Result<(), BaseError> {
    let state = state.canonicalize().unwrap_or_else(|_| state.to_path_buf());
    match directories
        .iter()
        .find(|path| path.starts_with(&state) || state.starts_with(path))
    {
        Some(directory) => Err(BaseError::StateInside {
            directory: directory.clone(),
            state,
        }),
        None => Ok(()),
    }
}

fn add_mount_point(tree: &mut Tree, directory: &Path) {
    let path = directory.strip_prefix("/").unwrap_or(directory);
    if !skeleton::has_directory(path.as_os_str()) {
        tree.insert(
            path.to_path_buf(),
            Item::Directory {
                mode: 0o755,
                modified: MODIFIED,
            },
        );
    }
}

/// Adds the directories above each item, but for those of the skeleton, which have modes of their own.
fn add_parents(tree: &mut Tree) {
    let missing: BTreeSet<PathBuf> = tree
        .keys()
        .flat_map(|path| path.ancestors().skip(1))
        .filter(|path| !path.as_os_str().is_empty() && !skeleton::has_directory(path.as_os_str()))
        .map(Path::to_path_buf)
        .collect();
    for path in missing {
        tree.entry(path).or_insert(Item::Directory {
            mode: 0o755,
            modified: MODIFIED,
        });
    }
}

fn write(tree: &Tree) -> Result<Vec<u8>, BaseError> {
    let mut tar = TarWriter::new();
    for (path, item) in tree {
        let path = path.as_os_str();
        match item {
            Item::Directory { mode, modified } => {
                tar.directory(
                    path,
                    Attributes {
                        mode: *mode,
                        group: 0,
                        modified: *modified,
                    },
                );
            }
            Item::File {
                mode,
                modified,
                content,
            } => {
                tar.file(
                    path,
                    Attributes {
                        mode: *mode,
                        group: 0,
                        modified: *modified,
                    },
                    content,
                );
            }
            Item::Link { target, modified } => tar.symlink(path, *modified, target.as_os_str()),
        }
        if tar.len() > TAR_MAX {
            return Err(BaseError::TooBig { limit: TAR_MAX });
        }
    }
    Ok(tar.finish())
}

/// Mount point and filesystem type of a line of mountinfo, proc_pid_mountinfo(5).
fn parse_mount(line: &[u8]) -> Option<(PathBuf, String)> {
    let mut fields = line.split(|&b| b == b' ');
    let point = fields.nth(4)?;
    let filesystem = fields.skip_while(|field| *field != b"-").nth(1)?;
    let point = PathBuf::from(std::ffi::OsString::from_vec(unescape(point)?));
    Some((point, String::from_utf8(filesystem.to_vec()).ok()?))
}

/// Blanks and backslashes are three octal digits after a backslash.
fn unescape(field: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        if first == b'\\' {
            let digits = std::str::from_utf8(after.get(..3)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 8).ok()?);
            rest = &after[3..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    Some(bytes)
}

/// A name against a pattern with at most one `*`.
fn matches(pattern: &str, name: &[u8]) -> bool {
    match pattern.split_once('*') {
        None => pattern.as_bytes() == name,
        Some((front, back)) => {
            name.len() >= front.len() + back.len()
                && name.starts_with(front.as_bytes())
                && name.ends_with(back.as_bytes())
        }
    }
}

/// Whether a name says that there is a secret in the file: a second line of defence.
fn sounds_secret(path: &Path) -> bool {
    let words = [
        "private",
        "secret",
        "passw",
        "token",
        "credential",
        "netrc",
        "shadow",
    ];
    let endings = [".key", ".p12", ".pfx", ".jks", ".keytab", ".kdb"];
    path.iter().map(OsStr::to_ascii_lowercase).any(|name| {
        let name = name.to_string_lossy();
        words.iter().any(|word| name.contains(word))
            || endings.iter().any(|ending| name.ends_with(ending))
    })
}

fn holds_private_key(content: &[u8]) -> bool {
    let mark = b"PRIVATE KEY-----";
    content.windows(mark.len()).any(|window| window == mark)
}

fn modified(meta: &Metadata) -> u64 {
    u64::try_from(meta.mtime()).unwrap_or_default()
}

/// It went while we looked, or is not for us: either way there is nothing to show.
fn is_gone(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A host of our own making.
    struct Scene {
        dir: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let scene = Self {
                dir: tempfile::tempdir().unwrap(),
            };
            for dir in [
                "usr/bin",
                "usr/lib",
                "opt",
                "etc",
                "home/alice/tools",
                "var/lib/derrick",
            ] {
                scene.directory(dir);
            }
            for name in ["bin", "lib"] {
                symlink(format!("usr/{name}"), scene.root().join(name)).unwrap();
            }
            scene
        }

        fn root(&self) -> PathBuf {
            self.dir.path().canonicalize().unwrap()
        }

        /// Made with its parents, open to all whatever the umask is.
        fn directory(&self, path: &str) {
            let mut here = self.root();
            for name in Path::new(path) {
                here.push(name);
                if !here.exists() {
                    fs::create_dir(&here).unwrap();
                    fs::set_permissions(&here, fs::Permissions::from_mode(0o755)).unwrap();
                }
            }
        }

        fn file(&self, path: &str, mode: u32, content: &str) {
            let (parent, _) = path.rsplit_once('/').unwrap();
            self.directory(parent);
            let path = self.root().join(path);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }

        fn describe(&self, include: &[&str], mounts: &str) -> Result<HostBase, BaseError> {
            let include: Vec<PathBuf> = include.iter().map(PathBuf::from).collect();
            let owner = rustix::process::geteuid().as_raw();
            Host {
                root: self.root(),
                owner,
            }
            .describe(&include, Path::new("/var/lib/derrick"), mounts.as_bytes())
        }

        /// Path to content, link target or "dir" of what is in the tar.
        fn tar(&self) -> BTreeMap<String, String> {
            entries(&self.describe(&[], "").unwrap().tar)
        }
    }

    fn entries(tar: &[u8]) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(tar).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            match entry.header().entry_type() {
                tar::EntryType::Directory => content.push_str("dir"),
                tar::EntryType::Symlink => {
                    let target = entry.link_name().unwrap().unwrap();
                    content = format!("-> {}", target.display());
                }
                _ => {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).unwrap();
                    content = String::from_utf8_lossy(&bytes).into_owned();
                }
            }
            let path = entry
                .path()
                .unwrap()
                .to_str()
                .unwrap()
                .trim_end_matches('/')
                .to_owned();
            assert!(
                found.insert(path.clone(), content).is_none(),
                "{path} is there twice"
            );
        }
        found
    }

    #[test]
    fn what_programs_need_is_there() {
        let scene = Scene::new();
        scene.file(
            "etc/ssl/certs/ca-certificates.crt",
            0o644,
            "-----BEGIN CERTIFICATE-----",
        );
        symlink(
            "/usr/share/zoneinfo/UTC",
            scene.root().join("etc/localtime"),
        )
        .unwrap();
        scene.directory("etc/alternatives");
        symlink("/usr/bin/gcc", scene.root().join("etc/alternatives/cc")).unwrap();
        symlink(
            "/var/lib/ca-certificates/x.pem",
            scene.root().join("etc/ssl/cert.pem"),
        )
        .unwrap();
        scene.file("etc/python3.11/sitecustomize.py", 0o644, "pass");
        scene.file("etc/os-release", 0o644, "NAME=Test");
        scene.file("usr/bin/dpkg", 0o755, "");
        let tar = scene.tar();
        for (path, content) in [
            ("bin", "-> usr/bin"),
            ("lib", "-> usr/lib"),
            ("usr", "dir"),
            ("etc/alternatives", "dir"),
            ("etc/alternatives/cc", "-> /usr/bin/gcc"),
            ("etc/localtime", "-> /usr/share/zoneinfo/UTC"),
            ("etc/os-release", "NAME=Test"),
            ("etc/python3.11/sitecustomize.py", "pass"),
            ("etc/ssl", "dir"),
            ("etc/ssl/cert.pem", "-> /var/lib/ca-certificates/x.pem"),
            (
                "etc/ssl/certs/ca-certificates.crt",
                "-----BEGIN CERTIFICATE-----",
            ),
            ("var/lib/dpkg/status", ""),
        ] {
            assert_eq!(tar.get(path).map(String::as_str), Some(content), "{path}");
        }
        // The skeleton has these, with modes of their own.
        for path in ["etc", "opt", "var", "var/lib"] {
            assert!(!tar.contains_key(path), "{path}");
        }
    }

    #[test]
    fn no_secret_and_no_identity_of_the_host_is_there() {
        const SECRET: &str = "hunter2";
        let scene = Scene::new();
        for path in [
            "etc/shadow",
            "etc/passwd",
            "etc/group",
            "etc/gshadow",
            "etc/subuid",
            "etc/sudoers",
            "etc/machine-id",
            "etc/hostname",
            "etc/hosts",
            "etc/resolv.conf",
            "etc/ssh/ssh_host_ed25519_key",
            "etc/ssl/private/server.pem",
            "etc/pki/tls/private/server.pem",
            "etc/npmrc",
            "etc/pip.conf",
            "etc/gitconfig",
            "etc/wgetrc",
            "etc/apt/auth.conf",
            "etc/apt/sources.list",
            "etc/maven/settings.xml",
            "etc/environment",
            "etc/profile",
            "etc/profile.d/token.sh",
            "etc/skel/.netrc",
            "etc/docker/daemon.json",
            "etc/krb5.keytab",
            "etc/ldap/ldap.conf",
            "etc/perl/CPAN/Config.pm",
            "etc/default/grub",
            "etc/bash.bashrc",
            "home/alice/.ssh/id_ed25519",
            "root/.bash_history",
            "var/lib/dpkg/status",
            "run/docker.sock",
            // Inside what is allowed, told by name.
            "etc/java-17-openjdk/management/jmxremote.password",
            "etc/ssl/certs/server.key",
            "etc/python3/credentials.ini",
        ] {
            scene.file(path, 0o644, SECRET);
        }
        // By mode.
        scene.file(
            "etc/java-17-openjdk/management/jmxremote.access",
            0o600,
            SECRET,
        );
        scene.file("etc/ssl/certs/site.pem", 0o640, SECRET);
        scene.file("etc/fonts/closed/local.conf", 0o644, SECRET);
        fs::set_permissions(
            scene.root().join("etc/fonts/closed"),
            fs::Permissions::from_mode(0o750),
        )
        .unwrap();
        // By content.
        let bundle = format!("-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n");
        scene.file("etc/ssl/certs/bundle.pem", 0o644, &bundle);
        let tar = scene.describe(&[], "").unwrap().tar;
        let leaked: Vec<String> = entries(&tar)
            .into_iter()
            .filter(|(_, content)| content.contains(SECRET))
            .map(|(path, _)| path)
            .collect();
        assert!(leaked.is_empty(), "{leaked:?}");
        // Nor anywhere between the entries.
        assert!(!String::from_utf8_lossy(&tar).contains(SECRET));
    }

    #[test]
    fn this_host_gives_nothing_away() {
        let base = host_base(&[], Path::new("/nonexistent/derrick")).unwrap();
        let tar = entries(&base.tar);
        for (path, content) in &tar {
            let system = SYSTEM.iter().any(|name| path == name);
            assert!(
                system || path.starts_with("etc/") || path.starts_with("var/lib/dpkg"),
                "{path}"
            );
            assert!(!content.contains("PRIVATE KEY-----"), "{path}");
        }
        for path in [
            "etc/passwd",
            "etc/shadow",
            "etc/ssh",
            "etc/npmrc",
            "etc/pip.conf",
            "etc/machine-id",
            "etc/ssl/private",
        ] {
            assert!(!tar.contains_key(path), "{path}");
        }
        assert!(base.directories.contains(&PathBuf::from("/usr")));
        assert_eq!(
            base,
            host_base(&[], Path::new("/nonexistent/derrick")).unwrap()
        );
    }

    #[test]
    fn only_what_belongs_to_root_is_copied() {
        let scene = Scene::new();
        scene.file("etc/os-release", 0o644, "x");
        let other = rustix::process::geteuid().as_raw() + 1;
        let base = Host {
            root: scene.root(),
            owner: other,
        }
        .describe(&[], Path::new("/state"), b"")
        .unwrap();
        assert!(!entries(&base.tar).contains_key("etc/os-release"));
    }

    #[test]
    fn included_directories_get_mount_points_and_nested_ones_none() {
        let scene = Scene::new();
        let base = scene
            .describe(&["/home/alice/tools", "/usr/lib", "/home/alice/tools"], "")
            .unwrap();
        assert_eq!(
            base.directories,
            ["/home/alice/tools", "/opt", "/usr"].map(PathBuf::from)
        );
        let tar = entries(&base.tar);
        assert!(tar.contains_key("home/alice/tools") && tar.contains_key("home/alice"));
        assert!(!tar.contains_key("home") && !tar.contains_key("usr/lib"));
    }

    #[test]
    fn directories_of_a_host_without_merged_usr_are_shown_too() {
        let scene = Scene::new();
        fs::remove_file(scene.root().join("bin")).unwrap();
        scene.directory("bin");
        let base = scene.describe(&[], "").unwrap();
        assert_eq!(
            base.directories,
            ["/bin", "/opt", "/usr"].map(PathBuf::from)
        );
        assert_eq!(entries(&base.tar)["bin"], "dir");
    }

    #[test]
    fn what_cannot_be_included_is_refused_with_its_name() {
        let scene = Scene::new();
        symlink("alice", scene.root().join("home/link")).unwrap();
        scene.file("home/file", 0o644, "");
        for (path, part) in [
            ("/", "has its own"),
            ("/etc", "has its own"),
            ("/run/", "has its own"),
            ("/proc/1", "kernel"),
            ("/sys", "kernel"),
            ("/dev/shm", "kernel"),
            ("home", "absolute"),
            ("/home/../etc", "absolute"),
            ("/home/link", "leads to /home/alice"),
            ("/home/bob", "No such file"),
            ("/home/file", "not a directory"),
        ] {
            let error = scene.describe(&[path], "").unwrap_err().to_string();
            assert!(
                error.contains(part) && error.contains(path),
                "{path}: {error}"
            );
        }
    }

    #[test]
    fn the_state_directory_never_comes_into_view() {
        let scene = Scene::new();
        for path in ["/var/lib/derrick", "/var/lib", "/var"] {
            let error = scene.describe(&[path], "").unwrap_err();
            assert!(
                matches!(error, BaseError::StateInside { .. }),
                "{path}: {error}"
            );
        }
        scene.directory("var/lib/derrick/layers");
        assert!(matches!(
            scene.describe(&["/var/lib/derrick/layers"], ""),
            Err(BaseError::StateInside { .. })
        ));
        let host = Host {
            root: scene.root(),
            owner: 0,
        };
        assert!(matches!(
            host.describe(&[], Path::new("/opt/derrick"), b""),
            Err(BaseError::StateInside { .. })
        ));
    }

    #[test]
    fn mounts_below_are_listed_after_what_they_are_in() {
        let scene = Scene::new();
        for dir in [
            "usr/local",
            "usr/local/my data",
            "usr/closed",
            "opt/secrets",
            "opt/jail/proc",
            "opt/sshfs",
        ] {
            scene.directory(dir);
        }
        scene.file("usr/file", 0o644, "");
        fs::set_permissions(
            scene.root().join("usr/closed"),
            fs::Permissions::from_mode(0o700),
        )
        .unwrap();
        let mounts = "\
            30 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            34 31 8:3 / /usr/local/my\\040data rw,relatime shared:1 master:2 - xfs /dev/sdc1 rw\n\
            31 30 8:2 / /usr/local rw - ext4 /dev/sdb1 rw\n\
            31 30 8:2 / /usr/local rw - ext4 /dev/sdb1 rw\n\
            32 30 8:4 / /usr/closed rw - ext4 /dev/sdd1 rw\n\
            33 30 8:4 / /usr/file rw - ext4 /dev/sdd1 rw\n\
            35 30 0:9 / /opt/secrets rw - tmpfs tmpfs rw\n\
            36 30 0:9 / /opt/jail/proc rw - proc proc rw\n\
            37 30 0:9 / /opt/sshfs rw - fuse.sshfs host: rw\n\
            38 30 0:9 / /home rw - ext4 /dev/sde1 rw\n\
            39 30 0:9 / /usr/gone rw - ext4 /dev/sde1 rw\n\
            nonsense\n";
        let base = scene.describe(&[], mounts).unwrap();
        assert_eq!(
            base.directories,
            ["/opt", "/usr", "/usr/local", "/usr/local/my data"].map(PathBuf::from)
        );
        assert_eq!(
            base.covered,
            [
                "/opt/jail/proc",
                "/opt/secrets",
                "/opt/sshfs",
                "/usr/closed",
                "/usr/file",
                "/usr/gone",
            ]
            .map(PathBuf::from)
        );
        // They are mounted over directories that are there.
        assert!(!entries(&base.tar).contains_key("usr/local"));
    }

    #[test]
    fn what_others_cannot_read_is_named() {
        let scene = Scene::new();
        scene.file("opt/app/conf", 0o644, "");
        scene.file("opt/app/password", 0o640, "");
        scene.file("opt/app/run", 0o711, "");
        scene.file("opt/app/data/deep", 0o644, "");
        fs::set_permissions(
            scene.root().join("opt/app/data"),
            fs::Permissions::from_mode(0o750),
        )
        .unwrap();
        symlink("password", scene.root().join("opt/app/link")).unwrap();
        let _socket =
            std::os::unix::net::UnixListener::bind(scene.root().join("opt/app/socket")).unwrap();
        scene.file("opt/mounted/password", 0o640, "");
        let directories = ["opt", "usr"].map(|name| scene.root().join(name));
        let mounts = BTreeSet::from([scene.root().join("opt/mounted")]);
        let found = withheld(&directories, &mounts).unwrap();
        let expected = ["data", "password", "run", "socket"]
            .map(|name| scene.root().join("opt/app").join(name));
        assert_eq!(found, BTreeSet::from(expected));
    }
}
