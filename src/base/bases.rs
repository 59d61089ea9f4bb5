//! From a config's base to the stack that its setup starts from.
//!
//! Every base stands on the skeleton. What is not a directory of the host's already becomes a layer,
//! unpacked by a sandbox.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::build::{About, Build, Confinement};
use super::claim::Claims;
use super::host::{BaseError, host_base, withheld, without_nested};
use super::skeleton::skeleton_tar;
use super::stack::Owner;
use super::store::{LAYER_FORMAT, LayerMeta};
use super::tarball::Tarball;
use super::{Digest, Layer, LayerStore, SetupError, Stack, whiteouts};
use crate::config::{Base, WorkspaceConfig};
use crate::init::unpack::Compression;
use crate::sandbox::identity::Identity;
use crate::sandbox::{Access, Lower, Network, Overlay, Profile};
use crate::state::State;

/// Resolves a config's base.
pub(super) struct Bases<'a> {
    pub(super) config: &'a WorkspaceConfig,
    pub(super) state: &'a State,
    pub(super) store: &'a LayerStore,
}

impl Bases<'_> {
    /// The base's stack; what is not in the store yet is unpacked.
    pub(super) async fn resolve(&self) -> Result<Stack, SetupError> {
        let empty = self.empty();
        let skeleton = self
            .unpacked(&empty, "the skeleton", in_memory(&skeleton_tar())?)
            .await?;
        let on_skeleton = empty.with_layer(&skeleton, skeleton.meta().first_id.unwrap_or(0));
        match &self.config.base {
            Base::Host { include } => self.host(&on_skeleton, include).await,
            Base::Directory { path } => self.directory(&on_skeleton, path).await,
            Base::Tarball { path } => self.tarball(&on_skeleton, path).await,
        }
    }

    /// A root without anything.
    fn empty(&self) -> Stack {
        let lower = Lower {
            path: self.state.path("empty"),
            first_id: 0,
        };
        let root = Overlay {
            at: "/".into(),
            lowers: vec![lower],
            access: Access::Writable,
        };
        Stack {
            digest: Digest::of(["empty"]),
            overlays: vec![root],
            owner: Owner::Sandbox,
            commits: BTreeMap::new(),
            depth: 0,
            snapshots: Vec::new(),
            foundation: None,
            claims: Claims::default(),
        }
    }

    async fn host(&self, skeleton: &Stack, include: &[PathBuf]) -> Result<Stack, SetupError> {
        let host = host_base(include, &self.state.path(""))?;
        let layer = self
            .unpacked(skeleton, "the host's /etc", in_memory(&host.tar)?)
            .await?;
        let mut stack = base_on(skeleton, &layer);
        let covered = host.covered;
        // As an ordinary user the files' owners are no ids of the sandbox: nothing can be copied up.
        let access = match self.state.spawner().identity() {
            Identity::Ranges => Access::Writable,
            Identity::Subordinate | Identity::Single => Access::ReadOnly,
        };
        for directory in host.directories {
            let lower = Lower {
                path: directory.clone(),
                first_id: 0,
            };
            stack.overlays.push(Overlay {
                at: directory,
                lowers: vec![lower],
                access,
            });
        }
        stack.digest = digest_of_stack(&stack)?;
        if access == Access::Writable {
            self.withhold(stack, covered).await
        } else {
            Ok(stack)
        }
    }

    /// Hides what other users of the host cannot read: root inside acts for the files' owners, so
    /// modes alone keep nothing from it. And what lies under the host's mounts, which nobody has
    /// looked at: `covered` are those that are not shown.
    async fn withhold(&self, stack: Stack, covered: Vec<PathBuf>) -> Result<Stack, SetupError> {
        let directories: Vec<PathBuf> = stack
            .overlays
            .iter()
            .map(|overlay| overlay.at.clone())
            .collect();
        let shown = directories[1..].to_vec();
        let hidden = tokio::task::spawn_blocking(move || {
            let mounts = covered.iter().chain(&shown).cloned().collect();
            let mut hidden = withheld(&shown, &mounts)?;
            hidden.extend(covered);
            Ok::<_, BaseError>(without_nested(hidden).into_iter().collect::<Vec<_>>())
        });
        let hidden = hidden
            .await
            .map_err(|error| SetupError::host("reading the host's directories")(error.into()))??;
        let nested = whiteouts::nested(&directories);
        if hidden.is_empty() && nested.is_empty() {
            return Ok(stack);
        }
        let digest = Digest::of(
            [&b"withheld"[..], stack.digest.as_str().as_bytes()]
                .into_iter()
                .chain(hidden.iter().map(|path| path.as_os_str().as_bytes()))
                .chain([&b"under"[..]])
                .chain(nested.iter().map(|path| path.as_os_str().as_bytes())),
        );
        let lock = self.store.lock(&digest).await;
        let _lock = lock.map_err(SetupError::host("locking a layer"))?;
        let layer = match self.store.get(&digest) {
            Some(layer) => layer,
            None => {
                tracing::info!(layer = %digest, paths = hidden.len(), "hiding what only the host's root may read");
                self.hide(&digest, directories, hidden).await?
            }
        };
        Ok(base_on(&stack, &layer))
    }

    /// The layer of whiteouts for `hidden`.
    async fn hide(
        &self,
        digest: &Digest,
        directories: Vec<PathBuf>,
        hidden: Vec<PathBuf>,
    ) -> Result<Layer, SetupError> {
        let attempt = SetupError::host("hiding files of the host");
        let meta = LayerMeta {
            format: LAYER_FORMAT,
            first_id: None,
            shape: format!("{:?}", self.state.spawner().identity()).to_lowercase(),
            parent: None,
            lineage: None,
            commits: Vec::new(),
            mirrors: Vec::new(),
            created: crate::clock::seconds(),
            description: "what the host keeps to its root".into(),
            output: None,
            setup: None,
            bytes: None,
            by_record: false,
        };
        let tree = self.state.staging().join(Uuid::now_v7().to_string());
        let (store, digest, staged) = (self.store.clone(), digest.clone(), tree.clone());
        let made = tokio::task::spawn_blocking(move || {
            std::fs::create_dir(&staged)?;
            whiteouts::write(&staged, &directories, &hidden)?;
            store.commit(&digest, &staged, meta)
        });
        let made = made.await.map_err(io::Error::from).flatten();
        if made.is_err() {
            // What it cannot discard, the next start does.
            let _ = self.state.discard(&tree);
        }
        made.map_err(attempt)
    }

    async fn directory(&self, skeleton: &Stack, path: &Path) -> Result<Stack, SetupError> {
        let attempt = SetupError::host("examining the base directory");
        let path = path.canonicalize().map_err(&attempt)?;
        let status = path.metadata().map_err(&attempt)?;
        let caller = rustix::process::geteuid().as_raw();
        let owned_by_caller =
            self.state.spawner().identity() == Identity::Subordinate && status.uid() == caller;
        let owner = if owned_by_caller {
            Owner::Caller
        } else {
            Owner::Sandbox
        };
        check_owner(&path, self.state.spawner().identity(), owner)?;
        // The skeleton must be written with the same ids as everything above it.
        let skeleton = match owner {
            Owner::Sandbox => skeleton.clone(),
            Owner::Caller => {
                let empty = Stack {
                    owner,
                    ..self.empty()
                };
                let layer = self
                    .unpacked(&empty, "the skeleton", in_memory(&skeleton_tar())?)
                    .await?;
                Stack {
                    owner,
                    ..empty.with_layer(&layer, layer.meta().first_id.unwrap_or(0))
                }
            }
        };
        let mut stack = skeleton;
        stack.overlays[0]
            .lowers
            .insert(0, Lower { path, first_id: 0 });
        stack.depth = 0;
        let identity = format!("{}:{}", status.dev(), status.ino());
        stack.digest = Digest::of([digest_of_stack(&stack)?.to_string(), identity]);
        Ok(stack)
    }

    async fn tarball(&self, skeleton: &Stack, path: &Path) -> Result<Stack, SetupError> {
        let opened = path.to_owned();
        let tarball = tokio::task::spawn_blocking(move || Tarball::open(&opened))
            .await
            .map_err(|error| SetupError::host("reading the tarball")(error.into()))??;
        let archive = Archive {
            file: tarball
                .file()
                .try_clone()
                .map_err(SetupError::host("reading the tarball"))?,
            digest: tarball.digest().clone(),
            compression: tarball.compression(),
            tarball: Some(tarball),
        };
        let unpacked = self.unpacked(skeleton, "a tarball", archive).await;
        let layer = unpacked.map_err(|error| match error {
            SetupError::Archive(reason) => {
                SetupError::Archive(format!("{}: {reason}", path.display()))
            }
            other => other,
        })?;
        Ok(base_on(skeleton, &layer))
    }

    /// The layer that `archive` unpacks to on `stack`.
    ///
    /// It serves on that stack alone: a directory that the kernel makes where the lowers have none
    /// can be marked opaque, and would hide what another stack has there.
    async fn unpacked(
        &self,
        stack: &Stack,
        what: &str,
        archive: Archive,
    ) -> Result<Layer, SetupError> {
        let identity = format!("{:?} {:?}", self.state.spawner().identity(), stack.owner);
        let digest = Digest::of([
            LAYER_FORMAT.to_string(),
            "unpacked".to_owned(),
            stack.digest.to_string(),
            archive.digest.to_string(),
            identity,
        ]);
        let lock = self.store.lock(&digest).await;
        let _lock = lock.map_err(SetupError::host("locking a layer"))?;
        if let Some(layer) = self.store.get(&digest) {
            return Ok(layer);
        }
        tracing::info!(layer = %digest, "unpacking {what}");
        let confinement = Confinement {
            network: Network::None,
            profile: Profile::Standard,
            ..Confinement::of(self.config)
        };
        let build = Build::start(self.state, stack, confinement).await?;
        match build
            .unpack(archive.file.into(), archive.compression, Path::new("/"))
            .await
        {
            Ok(summary) => {
                tracing::info!(layer = %digest, ?summary, "unpacked {what}");
                if let Some(Err(error)) = archive.tarball.as_ref().map(Tarball::check_unchanged) {
                    build.abandon().await;
                    return Err(error.into());
                }
            }
            Err(error) => {
                build.abandon().await;
                return Err(error);
            }
        }
        let about = About {
            description: what.to_owned(),
            ..About::default()
        };
        build.freeze(self.store, &digest, about).await
    }
}

/// The skeleton with a base's layer on it, of which both count as the base.
fn base_on(skeleton: &Stack, layer: &Layer) -> Stack {
    let mut stack = skeleton.with_layer(layer, layer.meta().first_id.unwrap_or(0));
    stack.depth = 0;
    stack
}

fn digest_of_stack(stack: &Stack) -> Result<Digest, SetupError> {
    let overlays = serde_json::to_string(&stack.overlays)
        .map_err(|error| SetupError::host("naming a base")(error.into()))?;
    Ok(Digest::of([overlays]))
}

/// Refuses a base directory whose owner no sandbox knows: the kernel copies nothing up in it, so that
/// it could not be written to. Looks at the directory and at those in it that are always written to.
fn check_owner(base: &Path, identity: Identity, owner: Owner) -> Result<(), BaseError> {
    let owned_by_caller = owner == Owner::Caller;
    for name in ["", "etc", "home", "root", "tmp", "usr", "var"] {
        let directory = if name.is_empty() {
            base.to_owned()
        } else {
            base.join(name)
        };
        // What is not there is made; a link leads elsewhere inside.
        let Ok(status) = directory.symlink_metadata() else {
            continue;
        };
        if status.is_dir() && !identity.has_owner(status.uid(), status.gid(), owned_by_caller) {
            return Err(BaseError::Owner {
                directory,
                uid: status.uid(),
                gid: status.gid(),
            });
        }
    }
    Ok(())
}

/// An archive to unpack.
struct Archive {
    file: File,
    digest: Digest,
    compression: Compression,
    /// Where the bytes are in a file that somebody could write to meanwhile.
    tarball: Option<Tarball>,
}

fn in_memory(tar: &[u8]) -> Result<Archive, SetupError> {
    let attempt = SetupError::host("holding an archive in memory");
    let memfd = rustix::fs::memfd_create(c"archive", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| attempt(error.into()))?;
    let mut file = File::from(memfd);
    file.write_all(tar)
        .and_then(|()| file.rewind())
        .map_err(&attempt)?;
    Ok(Archive {
        file,
        digest: Digest::of([tar]),
        compression: Compression::Plain,
        tarball: None,
    })
}
