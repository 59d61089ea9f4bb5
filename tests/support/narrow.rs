//! A way to a server through which only so much of each answer comes, and which can hold one back.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use super::GUARD;

/// An answer that is longer holds objects of a git repository.
const LARGE: usize = 5000;

/// A relay on loopback; one request to a connection. It ends with the test's process.
#[derive(Debug)]
pub(crate) struct Narrow {
    address: SocketAddr,
    shared: Arc<Shared>,
    held: Mutex<mpsc::Receiver<TcpStream>>,
}

#[derive(Debug)]
struct Shared {
    to: u16,
    most: AtomicUsize,
    sent: AtomicUsize,
    large: AtomicUsize,
    hold: mpsc::Sender<TcpStream>,
}

impl Narrow {
    /// Before what listens on this port of loopback.
    pub(crate) fn before(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("cannot listen on loopback");
        let address = listener.local_addr().expect("a listener has an address");
        let (hold, held) = mpsc::channel();
        let shared = Arc::new(Shared {
            to,
            most: AtomicUsize::new(usize::MAX),
            sent: AtomicUsize::new(0),
            large: AtomicUsize::new(usize::MAX),
            hold,
        });
        let relay = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), relay) = (stream, Arc::clone(&relay)) else {
                    break;
                };
                // A side that goes away in the middle is what this is for.
                std::thread::spawn(move || relay.pass(&stream));
            }
        });
        Self {
            address,
            shared,
            held: Mutex::new(held),
        }
    }

    /// The same URL by this way.
    pub(crate) fn url(&self, url: &str) -> String {
        let port = format!(":{}/", self.shared.to);
        url.replace(&port, &format!(":{}/", self.address.port()))
    }

    /// Lets this much of each answer through from now on, and of large ones only so many.
    pub(crate) fn lets_through(&self, most: usize, large: usize) {
        self.shared.most.store(most, Ordering::SeqCst);
        self.shared.large.store(large, Ordering::SeqCst);
        self.shared.sent.store(0, Ordering::SeqCst);
    }

    /// What has come through since.
    pub(crate) fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Waits for a large answer that is one too many, of which nothing has come; it breaks when that is dropped.
    pub(crate) fn held(&self) -> TcpStream {
        let held = self.held.lock().expect("no waiter panicked");
        held.recv_timeout(GUARD).expect("nothing was held back")
    }
}

impl Shared {
    fn pass(&self, client: &TcpStream) -> std::io::Result<()> {
        let server = TcpStream::connect(("127.0.0.1", self.to))?;
        let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
        });
        let mut answer = Vec::new();
        (&server).read_to_end(&mut answer)?;
        if answer.len() > LARGE {
            let left = self
                .large
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                });
            if left.is_err() {
                let _ = self.hold.send(client.try_clone()?);
                return Ok(());
            }
        }
        let most = self.most.load(Ordering::SeqCst);
        let sent = answer.len().min(most);
        self.sent.fetch_add(sent, Ordering::SeqCst);
        let mut client = client;
        client.write_all(&answer[..sent])?;
        client.shutdown(Shutdown::Both)
    }
}
