//! What is in the layer store, who uses it, and what of it goes: least recently used first, never what is
//! in use.
//!
//! A layer is in use by what is written in the state directory: workspaces, served or not, snapshots, the
//! config that was served last; by whoever claims it (`base::claim`); and by the layers on top of it. What
//! is written is looked at as text: whatever names the digest uses the layer, also a record of another
//! version. So a snapshot, which a client made, goes only when a client removes it.
//!
//! Mirrors of repositories go with the last layer that names them, but for those of the config.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Digest;
use super::claim::{self, Alone, USED};
use super::measure::bytes_of;
use super::store::LayerMeta;
use crate::config::WorkspaceConfig;
use crate::git;
use crate::state::{State, Written, replace_file};

/// In the state directory: the layers of the config that was served last.
const PRESENT: &str = "present.json";

/// In a layer's directory: its size, where that was counted after it was made.
const SIZE: &str = "size";

/// Characters of a digest.
const DIGITS: usize = 64;

/// How much is kept of what is not in use. Nothing of it where neither is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all layers together, those in use included.
    pub size: Option<u64>,
    /// Since the last use.
    pub age: Option<Duration>,
}

impl Bounds {
    /// Those of a config; none where it has none, so that nothing goes.
    #[must_use]
    pub fn of(config: &WorkspaceConfig) -> Option<Self> {
        let layers = config.layers.as_ref()?;
        let bounds = Self {
            size: layers.max_size.map(|size| size.as_u64()),
            age: layers.max_age.map(Duration::from_secs_f64),
        };
        (bounds != Self::default()).then_some(bounds)
    }
}

/// Whether what is not to be kept goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It does.
    Remove,
    /// It is only told.
    Tell,
}

/// A layer and who uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Layer)]
pub struct Kept {
    /// Its name.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// What it is, for people.
    pub description: String,
    /// The layer that it was made on top of, if that is one of the same setup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub parent: Option<Digest>,
    /// Bytes on disk, as far as derrick may look.
    pub bytes: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was used last, likewise.
    pub used: u64,
    /// Who uses it: `config`, `process`, or `workspace`, `snapshot` and `layer` with a name after it.
    pub used_by: Vec<String>,
    /// The mirrors of its repositories; none where that is not known.
    #[serde(skip)]
    mirrors: Option<Vec<String>>,
}

/// What was collected, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Collected {
    /// The layers, in the order in which they went.
    #[schema(value_type = Vec<String>)]
    pub removed: Vec<Digest>,
    /// How many mirrors of repositories went that neither the config nor a layer has any more.
    pub mirrors: usize,
    /// The bytes of both.
    pub freed: u64,
    /// The bytes of the layers that are left.
    pub left: u64,
}

/// All layers, those that were used last first.
///
/// # Errors
/// Those of reading the state directory.
pub fn survey(state: &Path) -> io::Result<Vec<Kept>> {
    let layers = state.join("layers");
    let mut users = users(state)?;
    let mut all = Vec::new();
    for entry in fs::read_dir(&layers)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(digest) = name.to_str().and_then(|name| name.parse::<Digest>().ok()) else {
            continue;
        };
        let path = entry.path();
        // What is no layer, or not yet one, is not looked at.
        let Ok(meta) = LayerMeta::read(&path) else {
            continue;
        };
        let mut used_by: Vec<_> = users.remove(&digest).into_iter().flatten().collect();
        if Alone::take(&path)?.is_none() && path.exists() {
            used_by.push("process".to_owned());
        }
        all.push(Kept {
            bytes: meta.bytes.map_or_else(|| size(&path), Ok)?,
            used: last_use(&path, meta.created),
            digest,
            description: meta.description,
            parent: meta.parent,
            created: meta.created,
            used_by,
            mirrors: (meta.commits.is_empty() || !meta.mirrors.is_empty()).then_some(meta.mirrors),
        });
    }
    let children: Vec<_> = all
        .iter()
        .filter_map(|layer| Some((layer.parent.clone()?, layer.digest.clone())))
        .collect();
    for (parent, child) in children {
        if let Some(layer) = all.iter_mut().find(|layer| layer.digest == parent) {
            layer.used_by.push(format!("layer {child}"));
        }
    }
    all.sort_by(|a, b| (b.used, &b.digest).cmp(&(a.used, &a.digest)));
    Ok(all)
}

/// Removes layers, or tells which would go.
///
/// # Errors
/// Those of reading the state directory, after which nothing was removed; and those of removing, after
/// which some may be.
pub fn collect(state: &State, bounds: Bounds, mode: Mode) -> io::Result<Collected> {
    let root = state.path("");
    let all = survey(&root)?;
    let now = crate::clock::seconds();
    let first = choose(&all, bounds, now);
    if mode == Mode::Tell {
        let users = users(&root)?;
        let mirrors = mirrors(&root, &users, left(&all, &first), |_| Ok(()))?;
        return Ok(told(&all, first, &mirrors));
    }
    for used in all.iter().filter(|layer| !layer.used_by.is_empty()) {
        claim::note(&layer(&root, &used.digest));
    }
    // Nobody begins to use one of these from here on; then what is written is looked at once more.
    let mut alone = HashMap::new();
    for digest in first {
        if let Some(lock) = Alone::take(&layer(&root, &digest))? {
            alone.insert(digest, lock);
        }
    }
    let users = users(&root)?;
    let taken =
        |layer: &Kept| !alone.contains_key(&layer.digest) || users.contains_key(&layer.digest);
    let mut still = all.clone();
    for layer in &mut still {
        layer.used_by.retain(|user| user.starts_with("layer "));
        if taken(layer) {
            layer.used_by.push("process".to_owned());
        }
    }
    let chosen = choose(&still, bounds, now);
    for digest in &chosen {
        tracing::info!(layer = %digest, "removing a layer that nothing uses");
        state.discard(&layer(&root, digest))?;
    }
    let mirrors = mirrors(&root, &users, left(&all, &chosen), |mirror| {
        tracing::info!(mirror = %mirror.display(), "removing a mirror that nothing uses");
        state.discard(mirror)
    })?;
    let collected = told(&all, chosen, &mirrors);
    let tally = state.tally();
    let add = |to: &AtomicU64, count| to.fetch_add(count, Ordering::Relaxed);
    add(&tally.layers_removed, collected.removed.len() as u64);
    add(&tally.mirrors_removed, collected.mirrors as u64);
    add(&tally.bytes_freed, collected.freed);
    Ok(collected)
}

/// Removes the layers that nobody finds again, as no record names them any more; how many of them somebody
/// holds yet.
///
/// # Errors
/// Those of reading the state directory and of removing.
pub(super) fn remove_forgotten(state: &State) -> io::Result<usize> {
    let root = state.path("");
    let named = users(&root)?;
    let mut held = 0;
    for path in entries(&root.join("layers"))? {
        let Some(digest) = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
        else {
            continue;
        };
        let by_record = || LayerMeta::read(&path).is_ok_and(|meta| meta.by_record);
        if named.contains_key(&digest) || !by_record() {
            continue;
        }
        match Alone::take(&path)? {
            // Somebody named it, and then let go of it.
            Some(_alone) if users(&root)?.contains_key(&digest) => {}
            Some(_alone) => {
                tracing::info!(layer = %digest, "removing a layer that no record names any more");
                state.discard(&path)?;
            }
            None => held += 1,
        }
    }
    Ok(held)
}

/// Those that were not removed.
fn left<'k>(all: &'k [Kept], removed: &'k [Digest]) -> impl Iterator<Item = &'k Kept> + Clone {
    all.iter().filter(|layer| !removed.contains(&layer.digest))
}

/// What went of all, and mirrors of these sizes.
fn told(all: &[Kept], removed: Vec<Digest>, mirrors: &[u64]) -> Collected {
    let total: u64 = all.iter().map(|layer| layer.bytes).sum();
    let left = left(all, &removed).map(|layer| layer.bytes).sum();
    Collected {
        mirrors: mirrors.len(),
        freed: total - left + mirrors.iter().sum::<u64>(),
        left,
        removed,
    }
}

/// Gives the mirrors to `take` that neither what is written nor one of these layers names; their sizes.
fn mirrors<'k>(
    root: &Path,
    users: &BTreeMap<Digest, BTreeSet<String>>,
    layers: impl Iterator<Item = &'k Kept> + Clone,
    take: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<Vec<u64>> {
    let mut sizes = Vec::new();
    // What an older version made does not say which ones it is of.
    if layers.clone().any(|layer| layer.mirrors.is_none()) {
        return Ok(sizes);
    }
    let named: BTreeSet<&str> = users
        .keys()
        .map(Digest::as_str)
        .chain(layers.flat_map(|layer| layer.mirrors.iter().flatten().map(String::as_str)))
        .collect();
    git::take_unwanted(
        &root.join("mirrors"),
        |name| named.contains(name),
        |mirror| {
            let bytes = bytes_of(mirror);
            take(mirror)?;
            sizes.push(bytes);
            Ok(())
        },
    )?;
    Ok(sizes)
}

/// The bytes of all layers whose size was counted.
///
/// # Errors
/// When the store cannot be listed.
pub fn bytes_counted(state: &State) -> io::Result<u64> {
    let layers = entries(&state.path("layers"))?;
    let counted = |layer: &PathBuf| LayerMeta::read(layer).ok()?.bytes.or_else(|| noted(layer));
    Ok(layers.iter().filter_map(counted).sum())
}

/// Which layers go, in that order: the least recently used first, but none before those on top of it.
fn choose(all: &[Kept], bounds: Bounds, now: u64) -> Vec<Digest> {
    let mut left: Vec<&Kept> = all.iter().collect();
    // Those of one use, as all of a stack are, from the top.
    left.sort_by_key(|layer| (layer.used, std::cmp::Reverse(layer.created)));
    let mut total: u64 = left.iter().map(|layer| layer.bytes).sum();
    let mut chosen = Vec::new();
    loop {
        let has_child = |layer: &Kept| {
            let on_it = |other: &&Kept| other.parent.as_ref() == Some(&layer.digest);
            left.iter().any(on_it)
        };
        let is_used = |layer: &Kept| {
            let mut users = layer.used_by.iter();
            users.any(|user| !user.starts_with("layer "))
        };
        let goes = |layer: &Kept| {
            let old = bounds
                .age
                .is_some_and(|age| now.saturating_sub(layer.used) > age.as_secs());
            let large = bounds.size.is_some_and(|size| total > size);
            old || large || (bounds.age.is_none() && bounds.size.is_none())
        };
        let next = left
            .iter()
            .position(|layer| !is_used(layer) && !has_child(layer) && goes(layer));
        let Some(next) = next else {
            return chosen;
        };
        let layer = left.remove(next);
        total -= layer.bytes;
        chosen.push(layer.digest.clone());
    }
}

/// Notes the layers that the present config starts from.
pub(super) fn note_present(state: &State, layers: &BTreeSet<Digest>) -> io::Result<()> {
    replace_file(
        &state.path(PRESENT),
        &serde_json::to_vec(layers)?,
        Written::Soon,
    )
}

/// Who uses which layer, by what is written in the state directory.
fn users(root: &Path) -> io::Result<BTreeMap<Digest, BTreeSet<String>>> {
    let mut found = Users::default();
    found.read(&root.join(PRESENT), "config")?;
    found.workspaces(&root.join("workspaces"))?;
    for process in entries(&root.join("run"))? {
        found.workspaces(&process.join("workspaces"))?;
    }
    for snapshot in entries(&root.join("snapshots"))? {
        let name = format!("snapshot {}", stem(&snapshot));
        found.read(&snapshot, &name)?;
    }
    Ok(found.0)
}

#[derive(Default)]
struct Users(BTreeMap<Digest, BTreeSet<String>>);

impl Users {
    /// Those of workspaces, each in a directory of its own.
    fn workspaces(&mut self, directory: &Path) -> io::Result<()> {
        for workspace in entries(directory)? {
            let name = format!("workspace {}", stem(&workspace));
            for entry in entries(&workspace)? {
                if is_json(&entry) {
                    self.read(&entry, &name)?;
                } else if stem(&entry).starts_with("generation-") {
                    for beginning in entries(&entry)?.into_iter().filter(|path| is_json(path)) {
                        self.read(&beginning, &name)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, file: &Path, user: &str) -> io::Result<()> {
        let text = match fs::read(file) {
            Ok(text) => text,
            // Removed just now, or none of ours.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::IsADirectory
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for digest in digests(&text) {
            self.0.entry(digest).or_default().insert(user.to_owned());
        }
        Ok(())
    }
}

/// Whatever reads as a digest.
fn digests(text: &[u8]) -> impl Iterator<Item = Digest> {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.split(move |byte| !is_digit(byte))
        .filter(|run| run.len() == DIGITS)
        .filter_map(|run| std::str::from_utf8(run).ok()?.parse().ok())
}

fn is_json(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "json")
}

fn stem(path: &Path) -> String {
    let name = path.file_stem().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// What is in a directory; nothing where there is none, or it is gone.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let all = match fs::read_dir(directory) {
        Ok(all) => all,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    all.map(|entry| Ok(entry?.path())).collect()
}

fn layer(root: &Path, digest: &Digest) -> PathBuf {
    root.join("layers").join(digest.as_str())
}

fn last_use(layer: &Path, created: u64) -> u64 {
    let noted = || {
        let modified = fs::metadata(layer.join(USED)).ok()?.modified().ok()?;
        Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs())
    };
    noted().unwrap_or(0).max(created)
}

/// The size of a layer that was not counted when it was made; counted once.
fn size(layer: &Path) -> io::Result<u64> {
    if let Some(bytes) = noted(layer) {
        return Ok(bytes);
    }
    let bytes = bytes_of(&layer.join("tree"));
    match fs::write(layer.join(SIZE), bytes.to_string()) {
        // It is being collected.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(bytes),
    }
}

fn noted(layer: &Path) -> Option<u64> {
    fs::read_to_string(layer.join(SIZE)).ok()?.parse().ok()
}

/// Every layer that one of these paths names.
pub(super) fn layers_in<'p>(paths: impl Iterator<Item = &'p Path>) -> BTreeSet<Digest> {
    paths
        .flat_map(|path| digests(path.as_os_str().as_encoded_bytes()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer called by a letter, on another one, of so many bytes, used so many seconds ago.
    fn layer(name: &str, parent: Option<&str>, bytes: u64, ago: u64, user: Option<&str>) -> Kept {
        Kept {
            digest: Digest::of([name]),
            description: name.to_owned(),
            parent: parent.map(|parent| Digest::of([parent])),
            bytes,
            created: 1,
            used: 1000 - ago,
            used_by: user.map(str::to_owned).into_iter().collect(),
            mirrors: Some(Vec::new()),
        }
    }

    fn chosen(all: &[Kept], size: Option<u64>, age: Option<u64>) -> String {
        let bounds = Bounds {
            size,
            age: age.map(Duration::from_secs),
        };
        let names = choose(all, bounds, 1000);
        let name = |digest: &Digest| {
            let layer = all.iter().find(|layer| layer.digest == *digest);
            layer.expect("one of them").description.clone()
        };
        names.iter().map(name).collect()
    }

    #[test]
    fn the_least_recently_used_goes_first_and_never_what_is_in_use() {
        let all = [
            layer("a", None, 10, 500, None),
            layer("b", None, 10, 400, Some("workspace w")),
            layer("c", None, 10, 300, None),
            layer("d", None, 10, 200, Some("process")),
            layer("e", None, 10, 100, None),
        ];
        for (size, age, expected) in [
            (None, None, "ace"),
            (Some(50), None, ""),
            (Some(49), None, "a"),
            (Some(31), None, "ac"),
            (Some(0), None, "ace"),
            (None, Some(500), ""),
            (None, Some(299), "ac"),
            (None, Some(0), "ace"),
            (Some(45), Some(450), "a"),
            (Some(30), Some(450), "ac"),
        ] {
            assert_eq!(chosen(&all, size, age), expected, "{size:?} {age:?}");
        }
    }

    #[test]
    fn a_layer_stays_under_those_that_stay_and_goes_after_those_that_go() {
        // d on c on b on a; x on b.
        let with = |user: Option<&str>| {
            [
                layer("a", None, 10, 400, None),
                layer("b", Some("a"), 10, 400, None),
                layer("c", Some("b"), 10, 100, None),
                layer("d", Some("c"), 10, 100, user),
                layer("x", Some("b"), 10, 300, None),
            ]
        };
        assert_eq!(chosen(&with(None), None, None), "xdcba");
        assert_eq!(chosen(&with(Some("snapshot s")), None, None), "x");
        assert_eq!(chosen(&with(None), None, Some(200)), "x");
        assert_eq!(chosen(&with(None), Some(25), None), "xdc");
    }

    #[test]
    fn whatever_reads_as_a_digest_is_one() {
        let one = Digest::of(["one"]);
        let text = format!(
            "{{\"path\": \"/s/layers/{one}/tree/0\", \"x\": \"{one}0\", \"y\": \"{}\", \"z\": \"abc\"}}",
            one.as_str().to_uppercase()
        );
        assert_eq!(digests(text.as_bytes()).collect::<Vec<_>>(), [one]);
    }

    #[test]
    fn records_of_every_kind_are_found_and_one_that_cannot_be_read_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let digest = |name: &str| Digest::of([name]);
        for (file, name) in [
            ("present.json", "present"),
            ("workspaces/w/record.json", "record"),
            ("workspaces/w/generation-3/beginning.json", "beginning"),
            ("workspaces/w/generation-3/upper/0/x.json", "inside"),
            ("workspaces/w/execs/journal", "journal"),
            ("run/p/workspaces/v/record.json", "throwaway"),
            ("snapshots/s.json", "snapshot"),
            ("trash/t/record.json", "trash"),
        ] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("\"{}\"", digest(name))).unwrap();
        }
        let found = users(root).unwrap();
        let by = |name: &str| {
            let users = found.get(&digest(name)).cloned().unwrap_or_default();
            users.into_iter().collect::<Vec<_>>().join(" ")
        };
        let all = ["present", "record", "beginning", "throwaway", "snapshot"].map(by);
        assert_eq!(
            all,
            [
                "config",
                "workspace w",
                "workspace w",
                "workspace v",
                "snapshot s"
            ]
        );
        assert_eq!(found.len(), 5);
        // A link to itself can be opened by nobody.
        let broken = root.join("workspaces/w/other.json");
        std::os::unix::fs::symlink(&broken, &broken).unwrap();
        users(root).unwrap_err();
    }
}
