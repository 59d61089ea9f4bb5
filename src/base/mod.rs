//! Where root filesystems come from: bases, the layer store, setup.
//!
//! A `Stack` is what a sandbox starts from: its overlays, with the base's directories and the layers
//! on top of them. Reading order: `setup` makes it, `bases` what it stands on, `repositories` what goes into it,
//! `submodules` what belongs to those, `asking` what git in it is asked for and `patience` for how long, `build`
//! each layer, `apply` one of a snapshot that comes as an archive; then where the parts come from: `host`,
//! `skeleton`, `tarball`, `whiteouts` for what is hidden of the host, and `store`, where layers are kept; `claim`
//! keeps them there, and `collect` does not, by their size, which `measure` counts; `collector` does that in the
//! background.

mod apply;
mod archive;
mod asking;
mod bases;
mod build;
mod claim;
pub mod collect;
pub mod collector;
mod error;
pub mod host;
mod measure;
mod patience;
mod receipt;
mod repositories;
mod setup;
pub mod skeleton;
mod stack;
pub mod store;
mod submodules;
pub mod tarball;
mod whiteouts;

pub use apply::Imported;
pub use asking::AskError;
pub(crate) use asking::Question;
pub(crate) use build::Confinement;
pub use build::environment;
pub use error::SetupError;
pub(crate) use patience::Patience;
pub use receipt::SetupReceipt;
pub(crate) use repositories::{Inside, take_in};
pub use setup::Setups;
pub(crate) use setup::{limits, requests};
pub use stack::Stack;
pub use store::{Digest, Layer, LayerStore};
pub(crate) use submodules::{Above, Bringing, commits_of};
pub use submodules::{FetchedSubmodule, Update};
