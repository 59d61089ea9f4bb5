//! The system calls that neither `nix` nor `rustix` offers safely: thin, typed, one function a call.
//!
//! This is the only module of the crate in which unsafe code may stand.
#![allow(
    unsafe_code,
    reason = "the one place for it; each block names its invariant"
)]

pub mod channel;
pub mod events;
pub mod keyring;
pub mod landlock;
pub mod loop_device;
pub mod mount;
pub mod net;
pub mod process;
pub mod terminal;
