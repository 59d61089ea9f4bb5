//! What a well-typed config may still not say, and what the host must have for it.
//!
//! Each rule answers with a phrase that says what is wrong and what would be right; `check` adds
//! the path. Phrases never contain the value of a field that may hold a secret.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::ops::RangeInclusive;
use std::path::{Component, Path as HostPath, PathBuf};

use super::tree::Path;
use super::{
    Base, History, Limits, MOST_OUTPUT, Repository, Requests, WorkspaceConfig, credentials, push,
    reader, way,
};
use crate::init::user;
use crate::sandbox;
use crate::sandbox::cgroups::LEAST_CPUS;

/// A rule that the config breaks, and where.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) path: Path,
    pub(super) reason: String,
}

/// Environment variables of the provider; a parameter because tests cannot set real ones.
pub(super) type Environment<'e> = &'e dyn Fn(&str) -> Option<OsString>;

/// Checks all rules, in the order of the documentation, and brings paths into their plain form.
pub(super) fn check(
    config: &mut WorkspaceConfig,
    environment: Environment<'_>,
) -> Result<(), Broken> {
    let top = Path::default;
    name(&config.name).at(|| top().field("name"))?;
    repositories(&mut config.repositories, environment)?;
    base(&mut config.base, &config.repositories)?;
    for name in config.env.keys() {
        variable(name).at(|| top().field("env").field(name))?;
    }
    let workdir = absolute(&config.workdir).at(|| top().field("workdir"))?;
    config.workdir = workdir;
    user::check(&config.user).at(|| top().field("user"))?;
    if let Some(limits) = &config.limits {
        self::limits(limits)
            .and_then(|()| sandbox::Limits::from(limits).check_whole())
            .map_err(|(field, reason)| Broken {
                path: top().field("limits").field(field),
                reason,
            })?;
    }
    if let Some(requests) = &config.requests {
        let limits = config.limits.as_ref().map(sandbox::Limits::from);
        self::requests(requests)
            .and_then(|()| {
                sandbox::Requests::from(requests).check_within(&limits.unwrap_or_default())
            })
            .map_err(|(field, reason)| Broken {
                path: top().field("requests").field(field),
                reason,
            })?;
    }
    if config.max_workspaces == Some(0) {
        return Err(above_zero(100)).at(|| top().field("max_workspaces"));
    }
    for (field, seconds) in [("ttl", config.ttl), ("idle_timeout", config.idle_timeout)] {
        self::seconds(seconds).at(|| top().field(field))?;
    }
    if let Some(layers) = &config.layers {
        self::seconds(layers.max_age).at(|| top().field("layers").field("max_age"))?;
    }
    Ok(())
}

/// The most commits of a repository that are counted.
const DEEPEST: u32 = 100_000;

/// Where a base of the host's own system shows files that are there for everyone. Of `/etc` it
/// takes single files and directories; these are the ones where somebody might put a key.
const HOST_PARTS: [&str; 8] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/opt",
    "/etc/ssl",
    "/etc/alternatives",
];

/// Adds the path to a rule's phrase.
trait At<T> {
    fn at(self, path: impl FnOnce() -> Path) -> Result<T, Broken>;
}

impl<T, R: Into<String>> At<T> for Result<T, R> {
    fn at(self, path: impl FnOnce() -> Path) -> Result<T, Broken> {
        self.map_err(|reason| Broken {
            path: path(),
            reason: reason.into(),
        })
    }
}

/// 1 to 63 characters, so that it fits a hostname's label.
fn name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_. ".contains(c);
    if let Some(odd) = name.chars().find(|c| !allowed(*c)) {
        return Err(format!(
            "{odd:?} is not allowed; a name has letters a-z and A-Z, digits, '-', '_', '.' and spaces"
        ));
    }
    if name.len() > 63 {
        return Err(format!(
            "has {} characters; at most 63 are allowed",
            name.len()
        ));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || name.ends_with(' ') {
        return Err("must start with a letter or a digit and not end with a space".to_owned());
    }
    Ok(())
}

fn repositories(all: &mut [Repository], environment: Environment<'_>) -> Result<(), Broken> {
    for index in 0..all.len() {
        let (before, rest) = all.split_at_mut(index);
        let Some(repository) = rest.first_mut() else {
            break;
        };
        let here = |field: &str| {
            Path::default()
                .field("repositories")
                .index(index)
                .field(field)
        };
        if let Some(name) = &repository.name {
            label(name).at(|| here("name"))?;
        }
        url(&repository.url).at(|| here("url"))?;
        repository.path = repository_path(&repository.path).at(|| here("path"))?;
        apart(&repository.path, before).at(|| here("path"))?;
        if let Some(reference) = &repository.reference {
            self::reference(reference).at(|| here("reference"))?;
        }
        for (index, pattern) in repository.push.iter().enumerate() {
            push::check(pattern).at(|| here("push").index(index))?;
        }
        depth(repository).at(|| here("depth"))?;
        submodules(repository)
            .and_then(|()| large_files(repository))
            .map_err(|(field, reason)| Broken {
                path: here(field),
                reason: reason.to_owned(),
            })?;
        credentials::check(repository, environment)
            .and_then(|()| way::check(repository, environment))
            .map_err(|(field, reason)| Broken {
                path: here(field),
                reason,
            })?;
    }
    Ok(())
}

fn depth(repository: &Repository) -> Result<(), &'static str> {
    match (repository.depth, repository.history) {
        (Some(_), History::Branch | History::Full) => {
            Err("cannot be had with the history \"branch\" or \"full\": these are of all commits")
        }
        (Some(depth), _) if depth.get() > DEEPEST => {
            Err("is more than 100000; leave it out to have all commits")
        }
        _ => Ok(()),
    }
}

fn submodules(repository: &Repository) -> Result<(), (&'static str, &'static str)> {
    if repository.submodules && repository.history == History::None {
        let reason = "cannot be had with the history \"none\": the commits that are named would not be there";
        return Err(("submodules", reason));
    }
    let Some(prefixes) = &repository.submodule_urls else {
        return Ok(());
    };
    let field = "submodule_urls";
    if !repository.submodules {
        return Err((field, "has no use without \"submodules\": true"));
    }
    for prefix in prefixes {
        let odd = |c: char| c.is_control() || c.is_whitespace() || c == '\\';
        let http = prefix.starts_with("http://") || prefix.starts_with("https://");
        let known = http
            || ["ssh://", "file:///", "/"]
                .iter()
                .any(|start| prefix.starts_with(start))
            || !prefix.contains("://") && prefix.contains(':');
        if !known || prefix.contains(odd) || prefix.split('/').any(|part| part == "..") {
            return Err((
                field,
                "has what no URL begins with; write \"https://host/group/\", \"git@host:group/\" or a directory",
            ));
        }
        if http && prefix.contains('@') {
            return Err((field, "has credentials in a URL; remove them"));
        }
    }
    Ok(())
}

fn large_files(repository: &Repository) -> Result<(), (&'static str, &'static str)> {
    let Some(prefixes) = &repository.lfs_urls else {
        return Ok(());
    };
    let field = "lfs_urls";
    if !repository.lfs {
        return Err((field, "has no use without \"lfs\": true"));
    }
    for prefix in prefixes {
        let odd = |c: char| c.is_control() || c.is_whitespace() || "\\?#%".contains(c);
        let rest = prefix
            .strip_prefix("https://")
            .or_else(|| prefix.strip_prefix("http://"));
        let Some(rest) = rest.filter(|rest| !rest.is_empty() && !rest.starts_with('/')) else {
            return Err((
                field,
                "has what no URL of a server of large files begins with; write \"https://host/group/\"",
            ));
        };
        if rest.contains('@') {
            return Err((field, "has credentials in a URL; remove them"));
        }
        if rest.contains(odd) || rest.split('/').any(|part| part == ".." || part == ".") {
            return Err((
                field,
                "has an odd character, a query, \"..\" or \".\" in a URL; write \"https://host/group/\"",
            ));
        }
    }
    Ok(())
}

fn label(name: &str) -> Result<(), &'static str> {
    if name.trim().is_empty() {
        return Err("is empty; leave it out or give a name");
    }
    if name.chars().any(char::is_control) {
        return Err("contains a control character; it must be one line of text");
    }
    Ok(())
}

/// The phrase for a URL that may hold a secret says nothing of its content.
fn url(url: &str) -> Result<(), String> {
    const FORMS: &str =
        "use https://, http://, ssh://, file://, user@host:path, or an absolute path";
    const CREDENTIALS: &str = "contains credentials, which would end up in logs and in the workspace; \
                               remove them and name the token's place in token_env or token_file";
    if url.is_empty() {
        return Err(format!("is empty; {FORMS}"));
    }
    if url
        .chars()
        .any(|c| c.is_control() || c.is_whitespace() || c == '\\')
    {
        return Err(
            "contains a space, a backslash or a control character; percent-encode it".to_owned(),
        );
    }
    if url.starts_with('/') {
        return existing_repository(HostPath::new(url));
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return scp_form(url, FORMS, CREDENTIALS);
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    match scheme {
        // A user name alone is refused as well: forges accept a token there.
        "https" | "http" if authority.contains('@') => return Err(CREDENTIALS.to_owned()),
        "https" | "http" if rest.contains(['?', '#']) => {
            return Err(
                "has a query or a fragment, which may hold a secret; git needs neither, remove it"
                    .to_owned(),
            );
        }
        "ssh" if user.contains(':') => return Err(CREDENTIALS.to_owned()),
        "https" | "http" | "ssh" => {}
        "file" if host.is_empty() || host == "localhost" => {
            let path = rest.strip_prefix(authority).unwrap_or(rest);
            // git decodes percent signs here; such a path is left to git.
            if path.contains('%') {
                return Ok(());
            }
            if !path.starts_with('/') {
                return Err(
                    "must be file:// and an absolute path, as in \"file:///srv/git/x.git\""
                        .to_owned(),
                );
            }
            return existing_repository(HostPath::new(path));
        }
        "file" => {
            return Err(
                "names a host; a file URL has three slashes, as in \"file:///srv/git/x.git\""
                    .to_owned(),
            );
        }
        _ if authority.contains('@') => return Err(CREDENTIALS.to_owned()),
        _ => {
            return Err(format!(
                "{} is no URL scheme for a repository; {FORMS}",
                reader::quoted(scheme)
            ));
        }
    }
    if host.is_empty() || host.starts_with([':', '-']) || user.starts_with('-') {
        return Err(format!("has no host name where one must be; {FORMS}"));
    }
    if rest.len() == authority.len() || rest == format!("{authority}/") {
        return Err("has no path; a repository's path follows the host".to_owned());
    }
    Ok(())
}

/// `[user@]host:path`, which git understands as ssh.
fn scp_form(url: &str, forms: &str, credentials: &str) -> Result<(), String> {
    let Some((left, path)) = url.split_once(':') else {
        return Err(format!("is neither a URL nor an absolute path; {forms}"));
    };
    if path.split('/').next().unwrap_or_default().contains('@') {
        return Err(credentials.to_owned());
    }
    let (user, host) = left.rsplit_once('@').unwrap_or(("git", left));
    let odd = |c: char| !(c.is_ascii_alphanumeric() || ".-_".contains(c));
    // `ext::command` and the like run a program of the config's choice.
    if user.is_empty()
        || user.starts_with('-')
        || host.is_empty()
        || host.starts_with('-')
        || host.contains(odd)
        || path.is_empty()
        || path.starts_with(':')
    {
        return Err(format!("is no URL that derrick knows; {forms}"));
    }
    Ok(())
}

fn existing_repository(path: &HostPath) -> Result<(), String> {
    // A directory, or a bundle, which is a file.
    existing(path, "repository", |_| true)
}

/// A place in the workspace that setup can create.
fn repository_path(path: &HostPath) -> Result<PathBuf, String> {
    let path = absolute(path)?;
    if path == HostPath::new("/") {
        return Err("is the root of the workspace; a repository needs a directory below it, such as \"/code/project\"".to_owned());
    }
    for kernel in ["/proc", "/sys", "/dev"] {
        if path.starts_with(kernel) {
            return Err(format!(
                "lies in {kernel}, which the kernel fills; choose a directory such as \"/code/project\""
            ));
        }
    }
    Ok(path)
}

fn apart(path: &HostPath, before: &[Repository]) -> Result<(), String> {
    for (index, other) in before.iter().enumerate() {
        let other = &other.path;
        let how = if path == other {
            "is the path of"
        } else if path.starts_with(other) {
            "lies inside"
        } else if other.starts_with(path) {
            "contains"
        } else {
            continue;
        };
        return Err(format!(
            "{how} repositories[{index}]; each repository needs a directory of its own"
        ));
    }
    Ok(())
}

/// git-check-ref-format(1), roughly; commits pass as well.
pub(super) fn reference(reference: &str) -> Result<(), String> {
    let right =
        "write a branch, a tag or a commit, such as \"main\", \"v1.2\" or \"refs/pull/7/head\"";
    let odd = |c: &char| c.is_control() || " ~^:?*[\\".contains(*c);
    if reference.is_empty() {
        return Err(format!("is empty; leave it out or {right}"));
    }
    if reference.starts_with('-') {
        return Err(format!(
            "starts with '-', which git would take for an option; {right}"
        ));
    }
    if let Some(odd) = reference.chars().find(odd) {
        return Err(format!("{odd:?} is not allowed in a reference; {right}"));
    }
    let bad_part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
    if reference == "@"
        || reference.contains("..")
        || reference.contains("@{")
        || reference.ends_with('.')
        || reference.split('/').any(bad_part)
    {
        return Err(format!("is no valid reference name; {right}"));
    }
    Ok(())
}

fn base(base: &mut Base, repositories: &[Repository]) -> Result<(), Broken> {
    let here = |field: &str| Path::default().field("base").field(field);
    // Directories of the host whose content the workspace can read.
    let mut shown: Vec<PathBuf> = Vec::new();
    match base {
        Base::Host { include } => {
            shown.extend(HOST_PARTS.map(PathBuf::from));
            for index in 0..include.len() {
                let (before, rest) = include.split_at_mut(index);
                let Some(path) = rest.first_mut() else { break };
                let place = || here("include").index(index);
                *path = included(path).at(place)?;
                if before.contains(path) {
                    return Err("is there twice; remove one").at(place);
                }
                shown.push(path.clone());
            }
        }
        Base::Directory { path } => {
            *path = host_directory(path).at(|| here("path"))?;
            if canonical(path) == HostPath::new("/") {
                let reason = "is the host's own root, with its secrets; for the host's programs, write \"base\": \"host\"";
                return Err(reason).at(|| here("path"));
            }
            shown.push(path.clone());
        }
        Base::Tarball { path } => {
            *path = absolute(path).at(|| here("path"))?;
            existing(path, "file", Metadata::is_file).at(|| here("path"))?;
        }
    }
    for (index, repository) in repositories.iter().enumerate() {
        for (field, file) in credentials::secret_files(repository) {
            let file = canonical(file);
            if let Some(directory) = shown
                .iter()
                .find(|shown| file.starts_with(canonical(shown)))
            {
                let place = || {
                    Path::default()
                        .field("repositories")
                        .index(index)
                        .field(field)
                };
                return Err(format!(
                    "lies in {}, which the base shows to the workspace; move the file elsewhere",
                    directory.display()
                ))
                .at(place);
            }
        }
    }
    Ok(())
}

/// A host directory that `base.include` may show.
fn included(path: &HostPath) -> Result<PathBuf, String> {
    let path = host_directory(path)?;
    let real = canonical(&path);
    // Never the root or /etc, which have the host's secrets and accounts, nor what is the
    // kernel's or has the sockets of services.
    if real == HostPath::new("/") || real == HostPath::new("/etc") {
        return Err(format!(
            "{} holds the host's secrets and accounts; name the directory below it that is needed",
            real.display()
        ));
    }
    for closed in ["/proc", "/sys", "/dev", "/run"] {
        if real.starts_with(closed) {
            return Err(format!(
                "lies in {closed}, which a workspace never gets from the host; remove it"
            ));
        }
    }
    Ok(path)
}

fn host_directory(path: &HostPath) -> Result<PathBuf, String> {
    let path = absolute(path)?;
    existing(&path, "directory", Metadata::is_dir)?;
    Ok(path)
}

/// The absolute path in its plain form: no `.`, no doubled and no trailing slash.
fn absolute(path: &HostPath) -> Result<PathBuf, String> {
    let shown = reader::quoted(&path.to_string_lossy());
    if !path.is_absolute() {
        return Err(format!("{shown} is not absolute; write it from '/' on"));
    }
    let mut plain = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            return Err(format!(
                "{shown} contains \"..\"; write the path without it"
            ));
        }
        if part.as_os_str().len() > 255 {
            return Err("has a part of more than 255 bytes, which Linux does not take".to_owned());
        }
        plain.push(part);
    }
    if plain.as_os_str().len() > 4000 {
        return Err("has more than 4000 bytes, which Linux does not take".to_owned());
    }
    Ok(plain)
}

fn existing(path: &HostPath, what: &str, right: fn(&Metadata) -> bool) -> Result<(), String> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(metadata) if right(&metadata) => Ok(()),
        Ok(_) => Err(format!("{shown} is no {what}; name a {what} of this host")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(format!(
            "{shown} does not exist; name a {what} of this host"
        )),
        Err(error) => Err(format!("{shown} cannot be used as a {what}: {error}")),
    }
}

/// With symlinks resolved, as far as it exists.
fn canonical(path: &HostPath) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The name of an environment variable. The phrase does not contain it.
pub(super) fn variable(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("an environment variable's name cannot be empty");
    }
    if name.contains(['=', '\0']) {
        return Err("an environment variable's name cannot contain '=' or NUL");
    }
    Ok(())
}

/// The least that a sandbox starts with: init alone takes some.
const LEAST_MEMORY: u64 = 4 << 20;

/// The least number of open files that a shell gets along with.
const LEAST_OPEN_FILES: u32 = 16;

/// The least size of a filesystem, a page; the kernel takes 0 for no limit.
const LEAST_FILES: u64 = 4096;

/// The largest size of a filesystem that the kernel does not misread.
const MOST_FILES: u64 = 1 << 60;

/// Bytes that a disk image can have.
const DISKS: RangeInclusive<u64> = (1 << 20)..=(8 << 40);
const INODES: RangeInclusive<u64> = 64..=1_000_000_000;

/// The field that cannot be, and why.
pub(super) fn limits(limits: &Limits) -> Result<(), (&'static str, String)> {
    let Limits {
        memory,
        cpus,
        pids,
        open_files,
        shm,
        tmp,
        output,
        execs,
        disk,
        inodes,
    } = limits;
    self::cpus(*cpus)?;
    if memory.is_some_and(|size| size.as_u64() < LEAST_MEMORY) {
        let reason =
            "is less than the 4 MiB that a sandbox needs at least; write more, such as \"512MiB\"";
        return Err(("memory", reason.to_owned()));
    }
    if *pids == Some(0) {
        return Err(("pids", above_zero(256)));
    }
    if open_files.is_some_and(|count| count < LEAST_OPEN_FILES) {
        let reason = format!(
            "is less than the {LEAST_OPEN_FILES} that a shell needs; write more, such as 1024"
        );
        return Err(("open_files", reason));
    }
    for (field, size) in [("shm", shm), ("tmp", tmp)] {
        let right = LEAST_FILES..=MOST_FILES;
        if size.is_some_and(|size| !right.contains(&size.as_u64())) {
            let reason =
                "is no size that a filesystem can have; write 4 KiB or more, such as \"64MiB\"";
            return Err((field, reason.to_owned()));
        }
    }
    let kept = 1..=MOST_OUTPUT;
    if output.is_some_and(|size| !kept.contains(&size.as_u64())) {
        let reason = "must be from 1 B to 1 GiB; write a size such as \"10MiB\"";
        return Err(("output", reason.to_owned()));
    }
    if *execs == Some(0) {
        return Err(("execs", above_zero(16)));
    }
    if disk.is_some_and(|size| !DISKS.contains(&size.as_u64())) {
        let reason = "is no size that a disk can have; write at least 1 MiB and at most 8 TiB, such as \"10GiB\"";
        return Err(("disk", reason.to_owned()));
    }
    if inodes.is_some_and(|count| !INODES.contains(&count)) {
        let reason =
            "is no number of files that a disk can have; write at least 64 and at most 1000000000";
        return Err(("inodes", reason.to_owned()));
    }
    Ok(())
}

/// The field that cannot be, and why.
pub(super) fn requests(requests: &Requests) -> Result<(), (&'static str, String)> {
    let Requests { memory, cpus } = requests;
    if memory.is_some_and(|size| size.as_u64() == 0) {
        let reason = "is 0; leave it out or write a size such as \"256MiB\"";
        return Err(("memory", reason.to_owned()));
    }
    self::cpus(*cpus)
}

fn cpus(cpus: Option<f64>) -> Result<(), (&'static str, String)> {
    match cpus {
        Some(cpus) if !(cpus >= LEAST_CPUS && cpus.is_finite()) => {
            let reason = format!(
                "{cpus} is no number of cpus that can be shared out; write {LEAST_CPUS} or more, such as 1.5"
            );
            Err(("cpus", reason))
        }
        _ => Ok(()),
    }
}

fn seconds(seconds: Option<f64>) -> Result<(), String> {
    match seconds {
        Some(seconds) if !(seconds > 0.0 && seconds <= f64::from(u32::MAX)) => Err(format!(
            "{seconds} is no number of seconds that can be waited; write a number above 0, such as 3600"
        )),
        _ => Ok(()),
    }
}

fn above_zero(example: u32) -> String {
    format!("is 0; write a number above 0, such as {example}")
}
