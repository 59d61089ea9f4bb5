//! A socket of whole messages: JSON, with descriptors beside it.
//!
//! Provider, spawner and init talk over these. `SOCK_SEQPACKET` keeps message boundaries and tells
//! the end of the other side as end-of-file, on which lives hang. A message that does not fit the
//! socket's buffer travels in a memfd that only a trusted sender may use.

use std::io::{self, IoSlice, IoSliceMut, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Descriptors that one message may carry.
const MAX_DESCRIPTORS: usize = 32;
/// Bytes of a message that travel in the socket itself.
const INLINE: usize = 64 * 1024;
/// Bytes of a message that travel in a memfd, at most.
const BULK: usize = 16 * 1024 * 1024;

const TAG_INLINE: u8 = 0;
const TAG_BULK: u8 = 1;

/// Whether the other side may send messages in a memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// It is derrick's own code, out of reach of a workspace.
    Trusted,
    /// It runs where a workspace could have taken it over: small messages only.
    Untrusted,
}

/// One end of the socket.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    peer: Peer,
}

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub struct Received<M> {
    /// The message.
    pub message: M,
    /// Its descriptors, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// A connected pair: the first end trusts its peer as said, the second trusts the first.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair(peer_of_first: Peer) -> io::Result<(Self, Self)> {
        let (first, second) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((
            Self {
                socket: first,
                peer: peer_of_first,
            },
            Self {
                socket: second,
                peer: Peer::Trusted,
            },
        ))
    }

    /// Takes a socket that was inherited or received.
    #[must_use]
    pub fn from_socket(socket: OwnedFd, peer: Peer) -> Self {
        Self { socket, peer }
    }

    /// The socket alone.
    #[must_use]
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Sends one message.
    ///
    /// # Errors
    /// Those of sendmsg(2); `EPIPE` when the other side is gone, without a signal; `E2BIG` for a
    /// message that the other side would not take.
    pub fn send<M: Serialize>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let json = serde_json::to_vec(message)?;
        if json.len() <= INLINE {
            return self.send_raw(TAG_INLINE, &json, descriptors);
        }
        if json.len() > BULK {
            return Err(rustix::io::Errno::TOOBIG.into());
        }
        let mut memfd = std::fs::File::from(memfd_create(c"message", MemfdFlags::CLOEXEC)?);
        memfd.write_all(&json)?;
        memfd.rewind()?;
        let mut all = descriptors.to_vec();
        all.push(memfd.as_fd());
        self.send_raw(TAG_BULK, &[], &all)
    }

    fn send_raw(&self, tag: u8, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::from(rustix::io::Errno::TOOBIG));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(
                &self.socket,
                &[IoSlice::new(&[tag]), IoSlice::new(body)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
        })?;
        Ok(())
    }

    /// Receives one message; `None` when the other side is gone.
    ///
    /// # Errors
    /// Those of recvmsg(2), `WouldBlock` included on a non-blocking socket; `InvalidData` for a
    /// message that is not of type `M`, cut off, or in a memfd from an untrusted peer.
    pub fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<Received<M>>> {
        // As large as the message and no larger: in a process that was just forked each page of it is copied
        // or cleared when it is touched.
        let look = || {
            let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
            rustix::net::recv(&self.socket, &mut [0; 1], flags).map(|(_, length)| length)
        };
        let length = match unless_gone(look)? {
            None | Some(0) => return Ok(None),
            Some(length) => length.min(INLINE + 1),
        };
        let mut buffer = vec![0; length];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = unless_gone(|| {
            rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut buffer)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        let Some(received) = received else {
            return Ok(None);
        };
        let mut descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Ok(None);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(invalid("a message was cut off"));
        }
        let message = match (buffer[0], self.peer) {
            (TAG_INLINE, _) => serde_json::from_slice(&buffer[1..received.bytes])?,
            (TAG_BULK, Peer::Trusted) => {
                let memfd = descriptors
                    .pop()
                    .ok_or_else(|| invalid("a bulk message has no memfd"))?;
                serde_json::from_slice(&read_bulk(memfd)?)?
            }
            _ => return Err(invalid("a message has an unknown form")),
        };
        Ok(Some(Received {
            message,
            descriptors,
        }))
    }
}

/// Does `call`; `None` where the other side died with messages of ours unread and has said nothing else. The
/// kernel says so once, and first; what that side had said before is still there.
fn unless_gone<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<Option<T>> {
    let mut call = || rustix::io::retry_on_intr(&mut call);
    match call() {
        Err(rustix::io::Errno::CONNRESET) => match call() {
            Err(rustix::io::Errno::CONNRESET) => Ok(None),
            second => Ok(Some(second?)),
        },
        first => Ok(Some(first?)),
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::os::fd::AsRawFd for Channel {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

fn read_bulk(memfd: OwnedFd) -> io::Result<Vec<u8>> {
    let file = std::fs::File::from(memfd);
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if size > BULK {
        return Err(invalid("a bulk message is over its limit"));
    }
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_bulk_messages_arrive_whole_with_their_descriptors() {
        let (ours, theirs) = Channel::pair(Peer::Trusted).expect("socketpair");
        for size in [1, INLINE * 4] {
            let text = "x".repeat(size);
            ours.send(&text, &[ours.as_fd()]).expect("send");
            let got = theirs
                .receive::<String>()
                .expect("receive")
                .expect("not the end");
            assert_eq!(got.message.len(), size);
            assert_eq!(got.descriptors.len(), 1);
        }
        let error = ours.send(&"x".repeat(BULK), &[]).expect_err("too large");
        assert_eq!(error.raw_os_error(), Some(libc::E2BIG));
        drop(ours);
        assert!(theirs.receive::<String>().expect("end").is_none());
    }

    #[test]
    fn last_words_are_heard_though_their_sender_left_messages_unread() {
        let (ours, theirs) = Channel::pair(Peer::Trusted).expect("socketpair");
        ours.send(&"never read", &[]).expect("send");
        theirs.send(&"last words", &[]).expect("send");
        drop(theirs);
        let heard = ours.receive::<String>().expect("receive");
        assert_eq!(heard.expect("not the end").message, "last words");
        assert!(ours.receive::<String>().expect("end").is_none());
    }

    #[test]
    fn an_untrusted_peer_cannot_make_us_read_a_memfd() {
        let (provider, init) = Channel::pair(Peer::Untrusted).expect("socketpair");
        init.send(&"x".repeat(INLINE * 2), &[]).expect("send");
        let error = provider.receive::<String>().expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
