//! One accepted connection: who is at its other end, then HTTP/1.1 until it ends.
//!
//! The peer is looked up once, before the first byte is read. A refused peer still gets its
//! refusal as an answer, but not in a slot of the owner's. A slot is taken for a request whose header
//! is whole, and is free when its answer is out.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::entrance::{Entrance, Guest, Turn};
use super::listener::Stream;
use super::{HttpOptions, peer};

/// Longest header of a request, in bytes; hyper answers 431 to a longer one.
const MAX_HEADER: usize = 64 * 1024;

/// Refused connections that are answered at once; further ones are closed without an answer.
const MAX_REFUSALS: usize = 32;

/// How long a client may still send once it was answered.
const LINGER: Duration = Duration::from_secs(5);

/// The same once derrick stops: an idle connection must not hold up the end.
const LINGER_AT_THE_END: Duration = Duration::from_millis(100);

/// Whose requests are served without a token: the provider's own and root's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    uid: u32,
    /// The uid that the kernel shows for every user whom this user namespace does not know.
    overflow: u32,
}

impl Owner {
    pub(super) fn of_this_process() -> Self {
        let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
        Self {
            uid: rustix::process::geteuid().as_raw(),
            overflow: overflow
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(65534),
        }
    }

    fn admits(self, uid: u32) -> bool {
        // The overflow uid is anybody's, so it proves nothing even to a provider that runs as it.
        uid == 0 || (uid == self.uid && uid != self.overflow)
    }

    #[cfg(test)]
    pub(super) fn somebody_else() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw() + 1,
            ..Self::of_this_process()
        }
    }
}

/// What is known of a connection; every request carries it.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    /// Our address on it; none on a Unix socket.
    pub(super) local: Option<SocketAddr>,
    pub(super) peer: Peer,
    /// Its turn, while a request is served; whoever goes on with the connection keeps it.
    pub(super) turn: Option<Arc<Turn>>,
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// The provider's own user, or root.
    Trusted,
    /// Not looked up, as the listener asks everybody for a token.
    Anybody,
    /// Somebody else, or nobody knows who; for people, why.
    Refused(String),
}

/// Turns accepted streams into connections that are served.
pub(super) struct Acceptor {
    owner: Owner,
    router: Router,
    options: Arc<HttpOptions>,
    entrance: Arc<Entrance>,
    slots: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Acceptor {
    pub(super) fn new(
        owner: Owner,
        router: Router,
        options: Arc<HttpOptions>,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            owner,
            router,
            entrance: Entrance::new(options.max_waiting),
            slots: Arc::new(Semaphore::new(options.max_connections)),
            options,
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            stopping,
        }
    }

    /// Serves `stream` to its end.
    pub(super) fn converse(&self, stream: Stream) -> impl Future<Output = ()> + Send + use<> {
        let owner = self.owner;
        let with_token = self.options.tokens.is_some();
        let refusals = Arc::clone(&self.refusals);
        let guest = self.entrance.admit();
        let conversation = Conversation {
            router: self.router.clone(),
            slots: Arc::clone(&self.slots),
            read_timeout: self.options.read_timeout,
            stopping: self.stopping.clone(),
        };
        async move {
            let (connection, stream) = match stream {
                Stream::Unix(stream) => (
                    unix_connection(owner, with_token, &stream),
                    Either::Unix(stream),
                ),
                Stream::Tcp { stream, client } => {
                    match tcp_connection(owner, with_token, &stream, client).await {
                        Ok(connection) => (connection, Either::Tcp(stream)),
                        // The client is gone already.
                        Err(error) => return tracing::debug!(%error, "a connection ended at once"),
                    }
                }
            };
            let _refusal = match connection.peer {
                Peer::Trusted | Peer::Anybody => None,
                Peer::Refused(ref reason) => {
                    tracing::warn!(reason, "refused a connection");
                    match refusals.try_acquire_owned() {
                        Ok(refusal) => Some(refusal),
                        Err(_) => return,
                    }
                }
            };
            let served = match stream {
                Either::Tcp(stream) => conversation.hold(stream, connection, guest).await,
                Either::Unix(stream) => conversation.hold(stream, connection, guest).await,
            };
            if let Err(error) = served {
                tracing::debug!(%error, "a connection failed");
            }
        }
    }
}

enum Either {
    Tcp(TcpStream),
    Unix(UnixStream),
}

fn unix_connection(owner: Owner, with_token: bool, stream: &UnixStream) -> Connection {
    // SO_PEERCRED: the uid at the time of `connect`.
    let peer = match stream.peer_cred() {
        _ if with_token => Peer::Anybody,
        Ok(credentials) => judge(owner, credentials.uid()),
        Err(error) => Peer::Refused(format!(
            "the kernel does not say whose connection this is: {error}"
        )),
    };
    Connection {
        local: None,
        peer,
        turn: None,
    }
}

async fn tcp_connection(
    owner: Owner,
    with_token: bool,
    stream: &TcpStream,
    client: SocketAddr,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    // A remote client that vanished is noticed, and what it had started is ended.
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    let local = stream.local_addr()?;
    let peer = if with_token {
        Peer::Anybody
    } else {
        let found = tokio::task::spawn_blocking(move || peer::owner(client, local)).await?;
        // Only now the answer is about this connection: see `peer::owner`.
        stream.peer_addr()?;
        match found {
            Ok(uid) => judge(owner, uid),
            Err(unknown) => Peer::Refused(unknown.to_string()),
        }
    };
    Ok(Connection {
        local: Some(local),
        peer,
        turn: None,
    })
}

fn judge(owner: Owner, uid: u32) -> Peer {
    if owner.admits(uid) {
        Peer::Trusted
    } else {
        let served = match owner.uid {
            0 => "root alone".to_owned(),
            own => format!("uid {own} and root alone"),
        };
        Peer::Refused(format!(
            "the connection is of uid {uid}; without a token derrick serves {served}"
        ))
    }
}

/// What a connection needs to be served.
struct Conversation {
    router: Router,
    slots: Arc<Semaphore>,
    read_timeout: Duration,
    stopping: CancellationToken,
}

impl Conversation {
    async fn hold<S>(
        self,
        stream: S,
        connection: Connection,
        guest: Arc<Guest>,
    ) -> hyper::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let trusted = !matches!(connection.peer, Peer::Refused(_));
        let answered = Answered::default();
        let service = service_fn(|request: hyper::Request<Incoming>| {
            self.answer(request, connection.clone(), &guest, &answered)
        });
        let stream = Linger::new(stream, self.stopping.clone(), Arc::clone(&answered));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.read_timeout)
            .max_header_size(MAX_HEADER)
            .keep_alive(trusted);
        let mut served = pin!(
            http.serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
        );
        tokio::select! {
            ended = served.as_mut() => ended,
            () = guest.shown_out() => Ok(()),
            () = self.stopping.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        }
    }

    /// The answer to a request whose header is whole; it has its slot until the answer is out.
    async fn answer(
        &self,
        mut request: hyper::Request<Incoming>,
        mut connection: Connection,
        guest: &Arc<Guest>,
        answered: &Answered,
    ) -> Result<hyper::Response<Body>, Infallible> {
        let turn = match connection.peer {
            Peer::Trusted | Peer::Anybody => self.turn(guest).await,
            // It has its share of the refusals.
            Peer::Refused(_) => None,
        };
        connection.turn.clone_from(&turn);
        request.extensions_mut().insert(connection);
        let response = self.router.clone().oneshot(request).await?;
        let held = Held {
            turn,
            answered: Arc::clone(answered),
        };
        // The length of a whole body is in its header by now: axum has seen to that.
        Ok(response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held = &held;
                frame
            }))
        }))
    }

    async fn turn(&self, guest: &Arc<Guest>) -> Option<Arc<Turn>> {
        // It has said what it wants: others have waited longer for nothing.
        guest.wait_anew();
        // It is never closed, so there is a slot in the end.
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        match guest.begin(slot) {
            Some(turn) => Some(Arc::new(turn)),
            // It was shown out just now, which ends what waits here: nothing of it is begun.
            None => std::future::pending().await,
        }
    }
}

/// The turn whose answer is all buffered, until it is out as well.
type Answered = Arc<Mutex<Option<Arc<Turn>>>>;

/// Goes with the body of an answer, which is dropped when its last byte is buffered.
struct Held {
    turn: Option<Arc<Turn>>,
    answered: Answered,
}

impl Drop for Held {
    fn drop(&mut self) {
        *lock(&self.answered) = self.turn.take();
    }
}

fn lock(answered: &Answered) -> MutexGuard<'_, Option<Arc<Turn>>> {
    answered.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream that ends the turn of an answer that is out, and that, once shut down, goes on reading for a while and throws away what it reads.
///
/// A request may be answered before its body was read, e.g. because it is too large. Closing a
/// socket with unread bytes sends a reset, which can overtake the answer; so the client is let
/// finish, as other servers do ("lingering close").
struct Linger<S> {
    stream: S,
    stopping: CancellationToken,
    answered: Answered,
    /// Ends the lingering; there is one once it has begun.
    until: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S> Linger<S> {
    fn new(stream: S, stopping: CancellationToken, answered: Answered) -> Self {
        Self {
            stream,
            stopping,
            answered,
            until: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Linger<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Asked for when nothing is buffered any more.
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        let turn = lock(&self.answered).take();
        drop(turn);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let turn = lock(&this.answered).take();
        drop(turn);
        let until = match &mut this.until {
            Some(until) => until,
            none => {
                ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
                let stopping = this.stopping.clone();
                let sooner = async move {
                    stopping.cancelled().await;
                    tokio::time::sleep(LINGER_AT_THE_END).await;
                };
                none.insert(Box::pin(async {
                    // The error says that `LINGER` came first.
                    let _ = tokio::time::timeout(LINGER, sooner).await;
                }))
            }
        };
        let mut scratch = [0; 8192];
        while until.as_mut().poll(context).is_pending() {
            let mut discarded = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut this.stream).poll_read(context, &mut discarded));
            if read.is_err() || discarded.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_providers_user_and_root_are_admitted() {
        let owner = |uid| Owner {
            uid,
            overflow: 65534,
        };
        for (own, uid, admitted) in [
            (0, 0, true),
            (0, 1000, false),
            (0, 65534, false),
            (1000, 1000, true),
            (1000, 0, true),
            (1000, 1001, false),
            (1000, 100_000, false),
            (65534, 65534, false),
            (65534, 0, true),
        ] {
            assert_eq!(owner(own).admits(uid), admitted, "{own} {uid}");
        }
    }
}
