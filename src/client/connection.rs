//! Connections to the provider: one for each request, over TCP or a Unix socket, HTTP/1.1.
//!
//! None is kept for a next request: on this host a new one costs less than knowing whether an
//! old one still works.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::http::{request, response};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::task::AbortOnDropHandle;

use super::Error;
use crate::cli::client::Server;
use crate::server::http::read_token;

/// Longest answer that is kept in memory, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// How long a connection to another host may be silent before the kernel asks whether it is there.
const IDLE: Duration = Duration::from_secs(30);
/// How long it waits between two questions, and how many it asks.
const QUESTIONS: (Duration, u32) = (Duration::from_secs(10), 3);

/// What a request carries.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A way to the provider.
#[derive(Debug, Clone)]
pub struct Client {
    server: Server,
    authorization: Option<HeaderValue>,
}

/// A connection that is no longer HTTP.
pub(super) type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// Both kinds of connections.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    body: Incoming,
    connection: AbortOnDropHandle<()>,
}

impl Client {
    /// A client of the provider at `server`, that shows the token in `token_file`.
    ///
    /// # Errors
    /// [`Error::Token`] for a file that is not fit for a token. Nothing is connected yet.
    pub fn new(server: Server, token_file: Option<&Path>) -> Result<Self, Error> {
        let authorization = token_file
            .map(|path| {
                let token = read_token(path)?;
                let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| Error::Unfit("the token"))?;
                header.set_sensitive(true);
                Ok::<_, Error>(header)
            })
            .transpose()?;
        Ok(Self {
            server,
            authorization,
        })
    }

    /// Asks without a body.
    pub(super) async fn ask(&self, method: Method, target: &str) -> Result<Answer, Error> {
        let request = Request::builder().method(method);
        self.send(request, target, empty()).await
    }

    /// Asks with a JSON body and gives the JSON answer.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.post_with(Request::builder(), target, body)
            .await?
            .json()
            .await
    }

    /// Asks with a JSON body and further headers.
    pub(super) async fn post_with(
        &self,
        request: request::Builder,
        target: &str,
        body: &impl Serialize,
    ) -> Result<Answer, Error> {
        self.send_json(request.method(Method::POST), target, body)
            .await
    }

    /// Sends a request, of any method, with this as its JSON body.
    pub(super) async fn send_json(
        &self,
        request: request::Builder,
        target: &str,
        body: &impl Serialize,
    ) -> Result<Answer, Error> {
        let body = serde_json::to_vec(body).map_err(|_| Error::Unfit("the request"))?;
        let request = request.header(CONTENT_TYPE, "application/json");
        let body = Full::from(body)
            .map_err(|never| match never {})
            .boxed_unsync();
        self.send(request, target, body).await
    }

    /// Asks without a body and gives the JSON answer.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
    ) -> Result<T, Error> {
        self.ask(method, target).await?.json().await
    }

    /// Sends a request and waits for the beginning of its answer.
    pub(super) async fn send(
        &self,
        request: request::Builder,
        target: &str,
        body: Body,
    ) -> Result<Answer, Error> {
        let (head, answer) = self.exchange(request, target, body).await?;
        if head.status.is_success() {
            Ok(answer)
        } else {
            Err(answer.refusal(head.status).await)
        }
    }

    /// Asks for the connection to go on as a WebSocket (RFC 6455, section 4.1).
    pub(super) async fn upgrade(&self, target: &str) -> Result<Upgraded, Error> {
        let key = generate_key();
        let request = Request::builder()
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key);
        let (head, answer) = self.exchange(request, target, empty()).await?;
        if head.status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(match head.status.is_success() {
                true => Error::Unexpected("it is no WebSocket"),
                false => answer.refusal(head.status).await,
            });
        }
        let accepted = head.headers.get(SEC_WEBSOCKET_ACCEPT);
        if accepted.is_none_or(|accepted| accepted != &derive_accept_key(key.as_bytes())) {
            return Err(Error::Unexpected("it is no WebSocket"));
        }
        let upgraded = hyper::upgrade::on(Response::from_parts(head, answer.body)).await;
        Ok(TokioIo::new(upgraded?))
    }

    async fn exchange(
        &self,
        request: request::Builder,
        target: &str,
        body: Body,
    ) -> Result<(response::Parts, Answer), Error> {
        let mut request = request.uri(target).header(HOST, self.authority());
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request
            .body(body)
            .map_err(|_| Error::Unfit("the request"))?;
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = connection.with_upgrades();
        let connection = AbortOnDropHandle::new(tokio::spawn(async {
            // What is wrong with it is told to the request as well.
            let _ = connection.await;
        }));
        let (head, body) = sender.send_request(request).await?.into_parts();
        let answer = Answer {
            headers: head.headers.clone(),
            body,
            connection,
        };
        Ok((head, answer))
    }

    /// Host and port, as requests name them.
    fn authority(&self) -> &str {
        match &self.server {
            Server::Tcp(authority) => authority.as_str(),
            // Nobody looks at it there.
            Server::Unix(_) => "localhost",
        }
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, Error> {
        let unreachable = |source| Error::Unreachable {
            server: self.server.to_string(),
            source,
        };
        match &self.server {
            Server::Tcp(authority) => {
                // In a URL an IPv6 address stands in brackets, for the resolver without.
                let host = authority.host().trim_matches(['[', ']']);
                let port = authority.port_u16().unwrap_or_default();
                let stream = TcpStream::connect((host, port))
                    .await
                    .map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                ask_when_silent(&stream).map_err(unreachable)?;
                Ok(Box::new(stream))
            }
            Server::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// Has the kernel find out that the other host is gone, which nothing else would tell a reader.
fn ask_when_silent(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    let (between, count) = QUESTIONS;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, IDLE)?;
    sockopt::set_tcp_keepintvl(stream, between)?;
    sockopt::set_tcp_keepcnt(stream, count)?;
    Ok(())
}

impl Answer {
    /// The problem that it tells.
    async fn refusal(self, status: StatusCode) -> Error {
        let problem = self.bytes().await.unwrap_or_default();
        Error::refused(status, &problem)
    }

    /// The whole body.
    async fn bytes(self) -> Result<Bytes, Error> {
        let body = Limited::new(self.body, MAX_ANSWER).collect().await;
        drop(self.connection);
        Ok(body.map_err(Error::body)?.to_bytes())
    }

    /// The whole body, as JSON.
    pub(super) async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        serde_json::from_slice(&self.bytes().await?).map_err(Error::Unintelligible)
    }

    /// The body as it comes.
    pub(super) fn stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send + Unpin {
        let Self {
            body, connection, ..
        } = self;
        let frames = futures_util::stream::unfold((body, connection), |(mut body, connection)| {
            Box::pin(async move {
                loop {
                    return match body.frame().await? {
                        Ok(frame) => match frame.into_data() {
                            Ok(bytes) => Some((Ok(bytes), (body, connection))),
                            // Trailers; there are none.
                            Err(_) => continue,
                        },
                        Err(error) => Some((Err(Error::from(error)), (body, connection))),
                    };
                }
            })
        });
        Box::pin(frames)
    }
}

/// No body.
pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is sent as it comes. An error in it breaks the request off, so that what was sent
/// until then is not taken for the whole.
pub(super) fn streamed(bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    use futures_util::TryStreamExt;
    StreamBody::new(bytes.map_ok(Frame::data)).boxed_unsync()
}
