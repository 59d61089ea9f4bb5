//! Where the front end listens: a TCP address or a Unix socket.
//!
//! An address that others than the provider's user could reach is refused here, before anything
//! listens, unless there is a token. A Unix socket is never reachable by others, not even between
//! its creation and its `chmod`.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::HttpOptions;

/// Connections that may wait in the kernel's queue; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// How long accepting pauses after an error that is not the connection's, e.g. too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// A bound, listening socket. Dropping it stops listening and removes a Unix socket.
#[derive(Debug)]
pub struct Listener(Bound);

#[derive(Debug)]
enum Bound {
    Tcp {
        listener: TcpListener,
        address: SocketAddr,
    },
    Unix {
        listener: UnixListener,
        socket: SocketFile,
    },
}

/// A connection that was accepted.
pub(super) enum Stream {
    Tcp {
        stream: TcpStream,
        client: SocketAddr,
    },
    Unix(UnixStream),
}

/// Why the front end cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Others than the provider's user could reach the address.
    #[error("cannot listen on {0} without a token: it is not loopback; give --token-file")]
    NeedsToken(SocketAddr),
    /// The address cannot be had.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody listens on the Unix socket already.
    #[error("cannot listen on {0}: another process listens on it")]
    InUse(PathBuf),
    /// There is something else than a socket.
    #[error("cannot listen on {0}: there is a file that is no socket")]
    NotASocket(PathBuf),
    /// Others could put a socket of theirs in the place of this one.
    #[error(
        "cannot listen on {path}: other users can replace files in {parent}; make it mode 0700"
    )]
    OpenParent {
        /// The socket that was asked for.
        path: PathBuf,
        /// Its directory.
        parent: PathBuf,
    },
    /// The Unix socket cannot be made.
    #[error("cannot listen on {path}: {step}")]
    Unix {
        /// The socket that was asked for.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Listener {
    /// Listens on `address`; port 0 takes a free one. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`BindError::NeedsToken`] for an address beyond loopback where `options` have no token,
    /// [`BindError::Tcp`] if the kernel refuses.
    pub fn tcp(address: SocketAddr, options: &HttpOptions) -> Result<Self, BindError> {
        if options.tokens.is_none() && !is_loopback(address) {
            return Err(BindError::NeedsToken(address));
        }
        let bind = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            let listener = TcpListener::from_std(listener)?;
            Ok(Self(Bound::Tcp { listener, address }))
        };
        bind().map_err(|source| BindError::Tcp { address, source })
    }

    /// Listens on a Unix socket at `path`, mode 0600; its directory must exist. Needs a tokio
    /// runtime.
    ///
    /// A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    ///
    /// Every variant of [`BindError`] that names a path.
    pub fn unix(path: &Path) -> Result<Self, BindError> {
        let failed = |step| {
            move |source: io::Error| BindError::Unix {
                path: path.to_owned(),
                step,
                source,
            }
        };
        refuse_open_parent(path)?;
        refuse_socket_in_use(path)?;

        // Under a name of its own first: `path` never names a socket that is open to others or
        // that does not answer yet.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        if let Err(error) = std::fs::remove_file(&fresh)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(failed("removing a leftover socket")(error));
        }
        let address = SocketAddrUnix::new(&fresh)
            .map_err(io::Error::from)
            .map_err(failed("the path is longer than a socket's may be"))?;
        let socket = unix_socket().map_err(failed("creating a socket"))?;
        rustix::net::bind(&socket, &address)
            .map_err(io::Error::from)
            .map_err(failed("binding the socket"))?;
        let placed = SocketFile::new(fresh.clone()).map_err(failed("looking at the socket"))?;
        // Nobody can connect before `listen`, so the umask's mode is never in force.
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
            .map_err(failed("setting the socket's mode"))?;
        rustix::net::listen(&socket, BACKLOG)
            .map_err(io::Error::from)
            .map_err(failed("listening"))?;
        let placed = placed
            .rename(path)
            .map_err(failed("moving the socket into place"))?;
        let listener = UnixListener::from_std(socket.into())
            .map_err(failed("handing the socket to the runtime"))?;
        Ok(Self(Bound::Unix {
            listener,
            socket: placed,
        }))
    }

    /// The TCP address that it listens on, with the port that was taken.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Bound::Tcp { address, .. } => Some(*address),
            Bound::Unix { .. } => None,
        }
    }

    /// The path of its Unix socket.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Bound::Tcp { .. } => None,
            Bound::Unix { socket, .. } => Some(&socket.path),
        }
    }

    /// Whether `options` allow to serve here; they need not be those that it was bound with.
    pub(super) fn check(&self, options: &HttpOptions) -> io::Result<()> {
        if options.tokens.is_none() && !options.allowed_origins.is_empty() {
            let reason = "pages of other origins are let in with a token only";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        match self.address() {
            Some(address) if options.tokens.is_none() && !is_loopback(address) => Err(
                io::Error::new(io::ErrorKind::InvalidInput, BindError::NeedsToken(address)),
            ),
            _ => Ok(()),
        }
    }

    /// The next connection. Errors are logged and waited out, as they pass.
    pub(super) async fn accept(&mut self) -> Stream {
        loop {
            let accepted = match &self.0 {
                Bound::Tcp { listener, .. } => listener
                    .accept()
                    .await
                    .map(|(stream, client)| Stream::Tcp { stream, client }),
                Bound::Unix { listener, .. } => listener
                    .accept()
                    .await
                    .map(|(stream, _)| Stream::Unix(stream)),
            };
            match accepted {
                Ok(stream) => return stream,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::error!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Bound::Tcp { address, .. } => write!(f, "http://{address}"),
            Bound::Unix { socket, .. } => write!(f, "unix:{}", socket.path.display()),
        }
    }
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn unix_socket() -> io::Result<std::os::fd::OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(io::Error::from)
}

/// Refuses a directory in which another user could put a socket of their own in the place of ours.
fn refuse_open_parent(path: &Path) -> Result<(), BindError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let found = std::fs::metadata(parent).map_err(|source| BindError::Unix {
        path: path.to_owned(),
        step: "looking at its directory",
        source,
    })?;
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&found.uid());
    let others_write = found.mode() & 0o022 != 0;
    let sticky = found.mode() & 0o1000 != 0;
    if ours && (!others_write || sticky) {
        Ok(())
    } else {
        Err(BindError::OpenParent {
            path: path.to_owned(),
            parent: parent.to_owned(),
        })
    }
}

/// Refuses a path that is taken: by a listening process or by something that is no socket.
fn refuse_socket_in_use(path: &Path) -> Result<(), BindError> {
    let failed = |step| {
        move |source: io::Error| BindError::Unix {
            path: path.to_owned(),
            step,
            source,
        }
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking for an earlier socket")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let address = SocketAddrUnix::new(path)
        .map_err(io::Error::from)
        .map_err(failed("the path is longer than a socket's may be"))?;
    let probe = unix_socket().map_err(failed("creating a socket"))?;
    match rustix::net::connect(&probe, &address) {
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => Ok(()),
        // EAGAIN: somebody listens, and the queue is full.
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Err(BindError::InUse(path.to_owned())),
        Err(errno) => Err(failed("asking an earlier socket")(errno.into())),
    }
}

/// The name of our socket in the file system; removed on drop if it still is ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: PathBuf) -> io::Result<Self> {
        let found = std::fs::symlink_metadata(&path)?;
        Ok(Self {
            path,
            device: found.dev(),
            inode: found.ino(),
        })
    }

    fn rename(mut self, target: &Path) -> io::Result<Self> {
        std::fs::rename(&self.path, target)?;
        target.clone_into(&mut self.path);
        Ok(self)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_beyond_loopback_needs_a_token() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:0.0.0.0]:0"] {
            let error =
                Listener::tcp(address.parse().unwrap(), &HttpOptions::default()).unwrap_err();
            assert!(matches!(error, BindError::NeedsToken(_)), "{error}");
            assert!(error.to_string().contains("--token-file"), "{error}");
        }
        for address in ["127.0.0.1:0", "127.9.9.9:0", "[::1]:0"] {
            Listener::tcp(address.parse().unwrap(), &HttpOptions::default()).unwrap();
        }
    }

    #[tokio::test]
    async fn a_unix_socket_is_its_users_own_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let listener = Listener::unix(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        drop(listener);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn only_a_socket_that_nobody_listens_on_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");

        // Bound and never listened on, like the socket of a provider that was killed. One that
        // was listened on might still be: a child that another test forks has it until it execs.
        let stale = unix_socket().unwrap();
        rustix::net::bind(&stale, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let listener = Listener::unix(&path).unwrap();
        assert!(matches!(Listener::unix(&path), Err(BindError::InUse(_))));
        drop(listener);

        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Listener::unix(&path),
            Err(BindError::NotASocket(_))
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_directory_where_others_can_replace_the_socket_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let mode = |mode| std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode));
        mode(0o777).unwrap();
        assert!(matches!(
            Listener::unix(&path),
            Err(BindError::OpenParent { .. })
        ));
        mode(0o1777).unwrap();
        Listener::unix(&path).unwrap();
        let missing = dir.path().join("missing/api");
        let error = Listener::unix(&missing).unwrap_err().to_string();
        assert!(error.contains("looking at its directory"), "{error}");
    }
}
