//! One sandbox, restriction by restriction: first the descriptions, then one file for each.
//!
//! `spec` says what is wanted and `failure` what went wrong. `identity`, `namespaces`, `disk`, `overlay` and
//! `mounts` build what the sandbox sees; `network`, `cgroups`, `limits`, `capabilities`, `landlock` and
//! `seccomp` take away what it may do. All of it is called from `spawner` and `init` alone, in
//! processes of one thread, but for what the kernel counts in `cgroups`, which the provider reads. `confined` is
//! a program of its own, a git of the host's with some of these restrictions, and `reader` has what a child of
//! the spawner's keeps that reads what a workspace wrote.
//! Nothing here knows tokio, HTTP or the config file.

pub mod capabilities;
pub mod cgroups;
pub mod confined;
pub mod disk;
pub mod failure;
pub mod identity;
pub mod landlock;
pub mod limits;
pub mod mounts;
pub mod namespaces;
pub mod network;
pub mod overlay;
pub mod probe;
pub mod reader;
pub mod seccomp;
pub mod spec;
pub mod without;

pub use failure::{At, Failure, Step};
pub use spec::{
    Access, Capacity, Enforcement, IdMap, Keyring, Landlock, Limits, Lower, MemoryFiles, Merge,
    Merged, Network, Overlay, Profile, Requests, Requirement, SandboxSpec, Storage, Writable,
};
pub use without::{Restriction, Without};
