//! A client of a running provider, for the command line: one method for each thing that is asked.
//!
//! It knows the API as any other client does. What comes from the provider may repeat what a
//! workspace wrote: nothing of it is a path, a name or a length to rely on here, and text of it
//! goes to a terminal through [`printable`] only.

mod attach;
mod connection;
mod error;
mod events;
mod files;
mod layers;
pub mod printable;
mod wire;
mod workspaces;

pub use attach::{Heard, Listener, Speaker};
pub use connection::{Body, Client};
pub use error::Error;
pub use events::{Event, Events};
pub use files::{Download, InsidePath, Packing};
pub use wire::{
    Capacity, Commit, Committed, Create, Discarded, Entry, Exec, Fetch, FetchedRepository,
    FetchedSubmodule, Kind, Lease, Page, Push, Pushed, Receipt, Snapshot, Start, Stdin, Stream,
    Workspace,
};
pub use workspaces::Held;
