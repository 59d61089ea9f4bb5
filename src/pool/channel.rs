//! `sys::channel::Channel` for tokio.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::channel::{Channel, Peer, Received};

/// One end of a message socket, waited on by tokio.
#[derive(Debug)]
pub(super) struct AsyncChannel(AsyncFd<Channel>);

impl AsyncChannel {
    pub(super) fn new(socket: OwnedFd, peer: Peer) -> io::Result<Self> {
        fcntl_setfl(&socket, fcntl_getfl(&socket)? | OFlags::NONBLOCK)?;
        Ok(Self(watch(
            Channel::from_socket(socket, peer),
            Interest::READABLE | Interest::WRITABLE,
        )?))
    }

    /// Ends the conversation for both sides.
    pub(super) fn shut_down(&self) {
        // Fails only where the other side has ended it.
        let _ = rustix::net::shutdown(self.0.get_ref(), rustix::net::Shutdown::Both);
    }

    pub(super) async fn send<M: Serialize>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.0
            .async_io(Interest::WRITABLE, |channel| {
                channel.send(message, descriptors)
            })
            .await
    }

    pub(super) async fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<Received<M>>> {
        self.0.async_io(Interest::READABLE, Channel::receive).await
    }
}

/// Watches a descriptor that `owner` owns, and keeps open until it is dropped.
///
/// # Errors
/// Those of epoll_ctl(2).
#[expect(
    deprecated,
    reason = "its unsafe successor asks for what owning types give anyway"
)]
pub fn watch<T: AsRawFd + OwnsDescriptor>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, interest)
}

/// A type that owns one open descriptor, always the same.
pub trait OwnsDescriptor {}
impl OwnsDescriptor for OwnedFd {}
impl OwnsDescriptor for Channel {}
