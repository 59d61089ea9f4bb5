//! The layer store: immutable trees, named by a digest of everything that determined them.
//!
//! ```text
//! layers/<digest>/tree/<part>/   one directory for each overlay of a workspace; 0 is the root
//! layers/<digest>/meta.json      what it is; written before the rename that makes it a layer
//! layers/.staging-<id>/          a layer being committed; swept if its maker is gone
//! layers/.lock-<digest>          locked while somebody makes that layer
//! ```
//!
//! A layer appears by one rename, whole and on disk, or not at all. Parts may belong to ids that
//! the provider cannot act for: it owns `tree` and renames that, and never looks into a part.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with, syncfs};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::Stack;
use super::claim::{Alone, Claim};
use super::receipt::Noted;

/// The `format` of the layers that this version writes and reads.
pub const LAYER_FORMAT: u32 = 1;

const STAGING: &str = ".staging-";
const LOCK: &str = ".lock-";
const META: &str = "meta.json";
const TREE: &str = "tree";
/// How often another process's lock is tried again. flock(2) cannot be waited for without holding up a thread.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// A SHA-256 digest, 64 lowercase hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Digest of a list of fields; where one ends and the next begins is part of it.
    ///
    /// ```
    /// # use derrick::base::store::Digest;
    /// assert_ne!(Digest::of(["ab", "c"]), Digest::of(["a", "bc"]));
    /// ```
    pub fn of<T: AsRef<[u8]>>(fields: impl IntoIterator<Item = T>) -> Self {
        fields
            .into_iter()
            .fold(DigestBuilder::default(), DigestBuilder::field)
            .finish()
    }

    /// Digest of plain bytes, as `sha256sum` prints it.
    pub(super) fn of_stream(hasher: Sha256) -> Self {
        Self(
            hasher
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        )
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is not a [`Digest`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: 64 lowercase hexadecimal digits were expected")]
pub struct InvalidDigest;

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let sound =
            text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if sound {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidDigest)
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// Hashes fields one after the other, each with its length before it.
#[derive(Debug, Clone, Default)]
pub struct DigestBuilder(Sha256);

impl DigestBuilder {
    /// Adds a field.
    #[must_use]
    pub fn field(mut self, field: impl AsRef<[u8]>) -> Self {
        let field = field.as_ref();
        self.0.update((field.len() as u64).to_le_bytes());
        self.0.update(field);
        self
    }

    /// The digest of all fields.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest::of_stream(self.0)
    }
}

/// What is known about a layer beside its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMeta {
    /// [`LAYER_FORMAT`] when it was written.
    pub format: u32,
    /// Host id that uid 0 of the sandbox was when it was written; `None` if files belong to whom they seem to.
    pub first_id: Option<u32>,
    /// The identity mode it was written under; a layer serves only sandboxes of the same shape.
    pub shape: String,
    /// The layer below it.
    pub parent: Option<Digest>,
    /// What stays the same when repositories move on; see [`LayerStore::find_lineage`].
    pub lineage: Option<Digest>,
    /// Path and commit of each repository in it.
    pub commits: Vec<(PathBuf, String)>,
    /// The mirrors of these repositories; unknown of a layer with commits and without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// For people.
    pub description: String,
    /// The end of what the setup script printed, if one made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// What is noted of the setup that made it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<Noted>,
    /// Its size, if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Whether records alone lead to it, as to that of a snapshot: once none names it, nobody finds it again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_record: bool,
}

/// A layer on disk. Its files never change.
#[derive(Debug, Clone)]
pub struct Layer {
    digest: Digest,
    path: PathBuf,
    meta: LayerMeta,
    /// None for one that is not used, or was not yet when this was made.
    claim: Option<Arc<Claim>>,
}

impl LayerMeta {
    /// That of the layer in this directory.
    pub(super) fn read(layer: &Path) -> io::Result<Self> {
        let digest = Digest::of(["any"]);
        read_layer(&digest, layer).map(|layer| layer.meta)
    }
}

impl Layer {
    fn claimed(self, claim: Arc<Claim>) -> Self {
        Self {
            claim: Some(claim),
            ..self
        }
    }

    /// Its name.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The directory that holds its parts.
    #[must_use]
    pub fn tree(&self) -> PathBuf {
        self.path.join(TREE)
    }

    /// The directory for one overlay of the workspace; 0 is the root.
    #[must_use]
    pub fn part(&self, number: usize) -> PathBuf {
        self.tree().join(number.to_string())
    }

    /// What keeps it from being collected.
    pub(super) fn claim(&self) -> Option<&Arc<Claim>> {
        self.claim.as_ref()
    }

    /// What is known about it.
    #[must_use]
    pub fn meta(&self) -> &LayerMeta {
        &self.meta
    }
}

/// What takes something away at once, by its path; no error if it is not there.
#[derive(Clone)]
struct Discard(Arc<TakeAway>);

type TakeAway = dyn Fn(&Path) -> io::Result<()> + Send + Sync;

impl fmt::Debug for Discard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Discard")
    }
}

/// All layers of a state directory; cheap to clone.
#[derive(Debug, Clone)]
pub struct LayerStore {
    layers: PathBuf,
    /// Takes away what is to go.
    discard: Discard,
    /// One for each layer that somebody in this process is making or waits for.
    making: Arc<Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>>,
    /// One for each layer that somebody in this process uses.
    claims: Arc<Mutex<HashMap<Digest, Weak<Claim>>>>,
}

impl LayerStore {
    /// Opens the store in the directory `layers`, making it if need be; `discard` takes away what is to go.
    ///
    /// What a crashed process was committing is swept.
    ///
    /// # Errors
    ///
    /// When a directory cannot be made or read.
    pub fn open(
        layers: impl Into<PathBuf>,
        discard: impl Fn(&Path) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let store = Self {
            layers: layers.into(),
            discard: Discard(Arc::new(discard)),
            making: Arc::default(),
            claims: Arc::default(),
        };
        let layers = &store.layers;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(layers)?;
        store.sweep()?;
        Ok(store)
    }

    /// The layer of that digest, if there is one. It is used from now on, and stays until this, and every
    /// stack that it is put into, is dropped.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Layer> {
        let path = self.layers.join(digest.as_str());
        let claimed = read_layer(digest, &path)
            .and_then(|layer| Ok(self.claim(digest, &path)?.map(|claim| layer.claimed(claim))));
        match claimed {
            Ok(layer) => layer,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !path.exists() => None,
            Err(e) => {
                tracing::warn!(layer = %digest, error = %e, "ignoring a layer that cannot be read");
                None
            }
        }
    }

    /// What keeps a layer from being collected; none if it is gone.
    fn claim(&self, digest: &Digest, path: &Path) -> io::Result<Option<Arc<Claim>>> {
        let known = {
            let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.get(digest).and_then(Weak::upgrade)
        };
        // Somebody may have removed it by hand, and it may have been made anew.
        let claim = match known.filter(|claim| claim.is_of(path)) {
            Some(claim) => claim,
            None => {
                let Some(claim) = Claim::take(path)? else {
                    return Ok(None);
                };
                self.remember(digest, claim)
            }
        };
        claim.note();
        Ok(Some(claim))
    }

    /// The stack with a claim on each layer of this store that it has: they stay as long as it or a clone of it
    /// does, whatever records say.
    ///
    /// # Errors
    /// `NotFound` where one is gone.
    pub fn claimed(&self, mut stack: Stack) -> io::Result<Stack> {
        let digests: BTreeSet<_> = stack
            .paths()
            .filter_map(|path| self.digest_of(path))
            .collect();
        let claims = digests.iter().map(|digest| {
            let gone =
                || io::Error::new(io::ErrorKind::NotFound, format!("layer {digest} is gone"));
            self.claim(digest, &self.path_of(digest))?.ok_or_else(gone)
        });
        stack.claims = claims.collect::<io::Result<_>>()?;
        Ok(stack)
    }

    fn remember(&self, digest: &Digest, claim: Claim) -> Arc<Claim> {
        let claim = Arc::new(claim);
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|_, claim| claim.strong_count() > 0);
        claims.insert(digest.clone(), Arc::downgrade(&claim));
        claim
    }

    /// All layers, in no order; none is used by that.
    ///
    /// # Errors
    ///
    /// When the store cannot be listed.
    pub fn list(&self) -> io::Result<Vec<Layer>> {
        let read = |name: &String| {
            let path = self.layers.join(name);
            read_layer(&name.parse().ok()?, &path).ok()
        };
        Ok(self.names()?.iter().filter_map(read).collect())
    }

    /// How many layers there are.
    ///
    /// # Errors
    ///
    /// When the store cannot be listed.
    pub fn count(&self) -> io::Result<usize> {
        let names = self.names()?;
        let layers = names.iter().filter(|name| name.parse::<Digest>().is_ok());
        Ok(layers.count())
    }

    /// The newest layer of a lineage: what a new setup can start from instead of from nothing.
    ///
    /// # Errors
    ///
    /// When the store cannot be listed.
    pub fn find_lineage(&self, lineage: &Digest) -> io::Result<Option<Layer>> {
        let of_lineage = self
            .list()?
            .into_iter()
            .filter(|layer| layer.meta.lineage.as_ref() == Some(lineage));
        // Two may be of the same second; their records were written one after the other.
        let age = |layer: &Layer| {
            let record = fs::metadata(layer.path.join(META));
            let written = record.and_then(|record| record.modified()).ok();
            (layer.meta.created, written)
        };
        let newest = of_lineage.max_by_key(age);
        Ok(newest.and_then(|newest| self.get(&newest.digest)))
    }

    /// Makes a layer of `staged_tree`, a directory with one numbered directory for each part.
    ///
    /// The tree is moved. When this returns, the layer is on disk, also after a power failure. If
    /// there is a layer of that digest already, that one is returned and `staged_tree` goes to
    /// the trash. Blocks for as long as the filesystem takes to write out.
    ///
    /// # Errors
    ///
    /// When a step fails; `staged_tree` may be in the trash then.
    pub fn commit(
        &self,
        digest: &Digest,
        staged_tree: &Path,
        meta: LayerMeta,
    ) -> io::Result<Layer> {
        let staging = Staging::new(self)?;
        // Before it is a layer, so that it is never one that nobody uses.
        let claim = Claim::take(&staging.path)?;
        let revealed = staging
            .fill(staged_tree, &meta)
            .and_then(|()| self.reveal(digest, &staging));
        if revealed.is_err() {
            // The next sweep takes it if this fails too.
            let _ = self.discard(&staging.path);
        }
        Ok(match revealed? {
            Revealed::Ours(path) => Layer {
                digest: digest.clone(),
                claim: claim.map(|claim| {
                    claim.note();
                    self.remember(digest, claim)
                }),
                path,
                meta,
            },
            Revealed::Theirs(layer) => *layer,
        })
    }

    /// The layer `digest` as it is once [`take_in`](Self::take_in) has made it.
    #[must_use]
    pub fn place(&self, digest: &Digest, meta: LayerMeta) -> Layer {
        Layer {
            digest: digest.clone(),
            path: self.path_of(digest),
            meta,
            claim: None,
        }
    }

    /// Moves `tree` to be that of `layer`; where that was done before, `tree` is not looked at. The layer
    /// is used from then on, as long as what this returns is there.
    ///
    /// Until it is there nobody takes the layer for one. That rename is all that happens to `tree`, and the
    /// last thing. It is not synced: whoever must find it after a power failure waits for that elsewhere.
    ///
    /// # Errors
    /// When a step fails; `tree` is where it was then.
    pub fn take_in(&self, layer: Layer, tree: &Path) -> io::Result<Layer> {
        let claim = loop {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700).create(&layer.path)?;
            // Before it is a layer, so that it is never one that nobody uses.
            match self.claim(&layer.digest, &layer.path) {
                Ok(Some(claim)) => break claim,
                // Somebody swept the directory, which was no layer.
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        };
        if fs::symlink_metadata(layer.tree()).is_err() {
            let moved = (|| {
                let meta = serde_json::to_vec_pretty(&layer.meta)?;
                fs::write(layer.path.join(META), meta)?;
                fs::rename(tree, layer.tree())
            })();
            if let Err(error) = moved {
                // The next sweep takes it if this fails too.
                let _ = self.discard(&layer.path);
                return Err(error);
            }
        }
        Ok(layer.claimed(claim))
    }

    /// The layer that a path below it belongs to, if it is one of this store's.
    #[must_use]
    pub fn digest_of(&self, path: &Path) -> Option<Digest> {
        let below = path.strip_prefix(&self.layers).ok()?;
        below.iter().next()?.to_str()?.parse().ok()
    }

    /// Where the layer of that digest is, if there is one.
    #[must_use]
    pub fn path_of(&self, digest: &Digest) -> PathBuf {
        self.layers.join(digest.as_str())
    }

    /// Waits until nobody else makes the layer of that digest, in this process or another one.
    ///
    /// The lock ends with the guard, or with the process.
    ///
    /// # Errors
    ///
    /// When the lock file cannot be made or locked.
    pub async fn lock(&self, digest: &Digest) -> io::Result<LayerLock> {
        let in_process = self.turn(digest).lock_owned().await;
        let path = self.layers.join(format!("{LOCK}{digest}"));
        loop {
            let attempt = path.clone();
            let locked = tokio::task::spawn_blocking(move || try_lock(&attempt))
                .await
                .map_err(io::Error::other)??;
            match locked {
                Some(file) => {
                    return Ok(LayerLock {
                        path,
                        _file: file,
                        _in_process: in_process,
                    });
                }
                None => tokio::time::sleep(LOCK_RETRY).await,
            }
        }
    }

    /// The mutex that those in this process queue at.
    fn turn(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = making.get(digest).and_then(Weak::upgrade) {
            return turn;
        }
        making.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        making.insert(digest.clone(), Arc::downgrade(&turn));
        turn
    }

    /// Renames a complete staging directory to its digest, or yields to the layer that is there.
    fn reveal(&self, digest: &Digest, staging: &Staging) -> io::Result<Revealed> {
        let target = self.layers.join(digest.as_str());
        loop {
            match renameat_with(CWD, &staging.path, CWD, &target, RenameFlags::NOREPLACE) {
                Ok(()) => break,
                Err(rustix::io::Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            if let Some(theirs) = self.get(digest) {
                self.discard(&staging.path)?;
                return Ok(Revealed::Theirs(Box::new(theirs)));
            }
            // Something that is no layer is in the way.
            self.discard(&target)?;
        }
        File::open(&self.layers)?.sync_all()?;
        Ok(Revealed::Ours(target))
    }

    /// Has something taken away; somebody else having done so is fine.
    fn discard(&self, path: &Path) -> io::Result<()> {
        self.discard.0(path)
    }

    /// Discards what crashed processes left; what a living one works on is locked.
    fn sweep(&self) -> io::Result<()> {
        for name in self.names()? {
            let path = self.layers.join(&name);
            if name.starts_with(STAGING) {
                let Ok(dir) = File::open(&path) else { continue };
                if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
                    tracing::info!(staging = name, "discarding a layer that was never finished");
                    self.discard(&path)?;
                }
            } else if name.starts_with(LOCK)
                && let Ok(Some(_held)) = try_lock(&path)
            {
                fs::remove_file(&path)?;
            } else if name.parse::<Digest>().is_ok()
                && is_without_tree(&path)
                && let Ok(Some(_alone)) = Alone::take(&path)
                && is_without_tree(&path)
            {
                tracing::info!(layer = name, "discarding a layer that was never taken in");
                self.discard(&path)?;
            }
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.layers)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }
}

/// The right to make one layer. Dropping it gives that up.
#[derive(Debug)]
pub struct LayerLock {
    path: PathBuf,
    // Closed, hence unlocked, after the name is gone: whoever locks it next sees that.
    _file: File,
    _in_process: tokio::sync::OwnedMutexGuard<()>,
}

impl Drop for LayerLock {
    fn drop(&mut self) {
        // Left behind, it would do no harm.
        let _ = fs::remove_file(&self.path);
    }
}

/// Which layer there is now.
enum Revealed {
    Ours(PathBuf),
    Theirs(Box<Layer>),
}

/// A directory for a layer to be, locked so that no sweep takes it.
struct Staging {
    path: PathBuf,
    dir: File,
}

impl Staging {
    fn new(store: &LayerStore) -> io::Result<Self> {
        loop {
            let path = store.layers.join(format!("{STAGING}{}", Uuid::now_v7()));
            DirBuilder::new().mode(0o700).create(&path)?;
            let dir = match File::open(&path) {
                Ok(dir) => dir,
                // A sweep came between.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() && is_at(&dir, &path)?
            {
                return Ok(Self { path, dir });
            }
        }
    }

    fn fill(&self, staged_tree: &Path, meta: &LayerMeta) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(self.path.join(META))?;
        file.write_all(&serde_json::to_vec_pretty(meta)?)?;
        fs::rename(staged_tree, self.path.join(TREE))?;
        // Before the rename: a layer that can be seen is whole, whatever happens next.
        Ok(syncfs(&self.dir)?)
    }
}

/// Whether nothing was moved to what is to be a layer.
fn is_without_tree(layer: &Path) -> bool {
    let tree = fs::symlink_metadata(layer.join(TREE));
    tree.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Locks a file, making it if need be; `None` if somebody else holds it.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        // Its last holder may have removed it meanwhile; then another file counts.
        if is_at(&file, path)? {
            return Ok(Some(file));
        }
    }
}

/// Whether `path` still names the open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (open.dev(), open.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn read_layer(digest: &Digest, path: &Path) -> io::Result<Layer> {
    let meta: LayerMeta = serde_json::from_slice(&fs::read(path.join(META))?)?;
    if meta.format != LAYER_FORMAT {
        let reason = format!("format {} where {LAYER_FORMAT} was expected", meta.format);
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    if !fs::symlink_metadata(path.join(TREE))?.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its tree is not a directory",
        ));
    }
    Ok(Layer {
        digest: digest.clone(),
        path: path.to_path_buf(),
        meta,
        claim: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        dir: tempfile::TempDir,
        store: LayerStore,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path());
            Self { dir, store }
        }

        fn staged(&self, content: &str) -> PathBuf {
            let tree = self.dir.path().join(format!("upper-{content}"));
            fs::create_dir_all(tree.join("0")).unwrap();
            fs::write(tree.join("0/file"), content).unwrap();
            tree
        }

        fn trash(&self) -> usize {
            fs::read_dir(self.dir.path().join("trash")).unwrap().count()
        }
    }

    fn open(dir: &Path) -> LayerStore {
        let trash = dir.join("trash");
        fs::create_dir_all(&trash).unwrap();
        let discard =
            move |path: &Path| match fs::rename(path, trash.join(Uuid::now_v7().to_string())) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        LayerStore::open(dir.join("layers"), discard).unwrap()
    }

    fn meta(created: u64) -> LayerMeta {
        LayerMeta {
            format: LAYER_FORMAT,
            first_id: Some(100_000),
            shape: "range".to_owned(),
            parent: Some(Digest::of(["parent"])),
            lineage: Some(Digest::of(["lineage"])),
            commits: vec![(PathBuf::from("/code"), "0123abcd".to_owned())],
            mirrors: Vec::new(),
            created,
            description: "a test".to_owned(),
            output: None,
            setup: None,
            bytes: None,
            by_record: false,
        }
    }

    #[test]
    fn digests_are_hexadecimal_and_nothing_else() {
        let digest = Digest::of(["a", "b"]);
        assert_eq!(digest.as_str().parse::<Digest>().unwrap(), digest);
        assert_eq!(
            digest,
            DigestBuilder::default().field("a").field("b").finish()
        );
        for fields in [vec!["ab"], vec!["a", "b", ""], vec!["b", "a"], vec![]] {
            assert_ne!(Digest::of(&fields), digest, "{fields:?}");
        }
        let upper = digest.as_str().to_uppercase();
        for text in [
            "",
            "abc",
            &upper,
            &format!("{digest}0"),
            &digest.as_str().replace(|_| true, "é"),
            "../../etc",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Digest>("\"../x\"").is_err());
    }

    #[test]
    fn a_committed_layer_is_found_with_its_files() {
        let scene = Scene::new();
        let digest = Digest::of(["x"]);
        assert!(scene.store.get(&digest).is_none());
        let staged = scene.staged("content");
        scene.store.commit(&digest, &staged, meta(1)).unwrap();
        assert!(!staged.exists());
        // Also by the next process.
        let layer = open(scene.dir.path()).get(&digest).unwrap();
        assert_eq!(layer.meta(), &meta(1));
        assert_eq!(
            fs::read_to_string(layer.part(0).join("file")).unwrap(),
            "content"
        );
        assert_eq!(
            fs::read_dir(scene.dir.path().join("layers"))
                .unwrap()
                .count(),
            1
        );
    }

    #[test]
    fn the_first_of_two_commits_wins() {
        let scene = Scene::new();
        let digest = Digest::of(["x"]);
        scene
            .store
            .commit(&digest, &scene.staged("first"), meta(1))
            .unwrap();
        let layer = scene
            .store
            .commit(&digest, &scene.staged("second"), meta(2))
            .unwrap();
        assert_eq!(layer.meta().created, 1);
        assert_eq!(
            fs::read_to_string(layer.part(0).join("file")).unwrap(),
            "first"
        );
        assert_eq!(scene.trash(), 1);
        assert_eq!(scene.store.list().unwrap().len(), 1);
    }

    #[test]
    fn what_a_crash_left_is_no_layer_and_is_swept() {
        let scene = Scene::new();
        let layers = scene.dir.path().join("layers");
        fs::create_dir_all(layers.join(".staging-dead/tree/0")).unwrap();
        fs::write(
            layers.join(".staging-dead/meta.json"),
            serde_json::to_vec(&meta(1)).unwrap(),
        )
        .unwrap();
        fs::write(layers.join(format!(".lock-{}", Digest::of(["x"]))), "").unwrap();
        let alive = Staging::new(&scene.store).unwrap();
        assert!(scene.store.list().unwrap().is_empty());
        let store = open(scene.dir.path());
        assert!(store.list().unwrap().is_empty());
        assert!(!layers.join(".staging-dead").exists());
        assert!(
            alive.path.exists(),
            "a sweep took what another provider works on"
        );
        assert_eq!(
            (scene.trash(), fs::read_dir(&layers).unwrap().count()),
            (1, 1)
        );
    }

    #[test]
    fn a_layer_that_is_taken_in_is_used_at_once_and_half_of_one_is_swept() {
        let scene = Scene::new();
        let (whole, half) = (Digest::of(["whole"]), Digest::of(["half"]));
        let taken = scene.store.place(&whole, meta(1));
        let tree = scene.staged("content");
        let taken = scene.store.take_in(taken, &tree).unwrap();
        assert!(
            Alone::take(&taken.path).unwrap().is_none(),
            "nobody uses it"
        );
        // What is there already is not looked for again.
        let again = scene.store.place(&whole, meta(1));
        drop(scene.store.take_in(again, &tree).unwrap());
        assert!(Alone::take(&taken.path).unwrap().is_none());
        let missing = scene.store.place(&half, meta(1));
        assert!(scene.store.take_in(missing, &tree).is_err());
        assert!(!scene.store.path_of(&half).exists());
        // As where its maker was killed.
        fs::create_dir(scene.store.path_of(&half)).unwrap();
        let path = taken.path.clone();
        drop(taken);
        let store = open(scene.dir.path());
        assert!(!store.path_of(&half).exists());
        assert!(store.get(&whole).is_some());
        assert!(Alone::take(&path).unwrap().is_some(), "it is used for ever");
    }

    #[test]
    fn a_directory_without_a_sound_meta_is_no_layer_and_in_nobodys_way() {
        let old = LayerMeta {
            format: 0,
            ..meta(1)
        };
        let cases = [
            None,
            Some("".to_owned()),
            Some("{}".to_owned()),
            Some(serde_json::to_string(&old).unwrap()),
        ];
        for case in cases {
            let scene = Scene::new();
            let digest = Digest::of(["x"]);
            let path = scene.dir.path().join("layers").join(digest.as_str());
            fs::create_dir_all(path.join("tree/0")).unwrap();
            if let Some(text) = &case {
                fs::write(path.join("meta.json"), text).unwrap();
            }
            assert!(scene.store.get(&digest).is_none(), "{case:?}");
            scene
                .store
                .commit(&digest, &scene.staged("new"), meta(1))
                .unwrap();
            assert!(scene.store.get(&digest).is_some(), "{case:?}");
            assert_eq!(scene.trash(), 1);
        }
    }

    #[test]
    fn a_commit_of_nothing_leaves_nothing() {
        let scene = Scene::new();
        let digest = Digest::of(["x"]);
        let missing = scene.dir.path().join("missing");
        assert!(scene.store.commit(&digest, &missing, meta(1)).is_err());
        assert!(scene.store.get(&digest).is_none());
        open(scene.dir.path());
        assert_eq!(
            fs::read_dir(scene.dir.path().join("layers"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn the_newest_of_a_lineage_is_found() {
        let scene = Scene::new();
        let lineage = Digest::of(["lineage"]);
        assert!(scene.store.find_lineage(&lineage).unwrap().is_none());
        for (name, created) in [("old", 1), ("new", 3), ("middle", 2)] {
            scene
                .store
                .commit(&Digest::of([name]), &scene.staged(name), meta(created))
                .unwrap();
        }
        let other = LayerMeta {
            lineage: None,
            ..meta(9)
        };
        scene
            .store
            .commit(&Digest::of(["other"]), &scene.staged("other"), other)
            .unwrap();
        assert_eq!(
            scene
                .store
                .find_lineage(&lineage)
                .unwrap()
                .unwrap()
                .digest(),
            &Digest::of(["new"])
        );
    }

    #[tokio::test]
    async fn a_lock_keeps_everybody_else_out_until_it_is_dropped() {
        let scene = Scene::new();
        let digest = Digest::of(["x"]);
        let held = scene.store.lock(&digest).await.unwrap();
        scene.store.lock(&Digest::of(["y"])).await.unwrap();
        // In this process.
        tokio::select! {
            biased;
            _ = scene.store.lock(&digest) => panic!("two hold the same lock"),
            () = std::future::ready(()) => {}
        }
        // In another one: flock tells open files apart, not processes.
        let path = held.path.clone();
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(!path.exists());
        // A store of its own shares nothing with the first but the disk.
        let again = open(scene.dir.path()).lock(&digest).await.unwrap();
        assert!(again.path.exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn locked_sections_never_overlap() {
        let scene = Scene::new();
        let digest = Digest::of(["x"]);
        let inside = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..4 {
            // Half of them stand for other processes.
            let store = if n % 2 == 0 {
                scene.store.clone()
            } else {
                open(scene.dir.path())
            };
            let (digest, inside) = (digest.clone(), Arc::clone(&inside));
            tasks.spawn(async move {
                for _ in 0..3 {
                    let _guard = store.lock(&digest).await.unwrap();
                    assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
}
