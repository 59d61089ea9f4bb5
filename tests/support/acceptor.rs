//! What the servers of the tests have in common: connections on loopback, each with a thread of its own, until the
//! server is dropped.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Accepts connections; ends, when it is dropped, once all of them have been served.
#[derive(Debug)]
pub(crate) struct Acceptor {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// Listens on a port of loopback that is free.
    pub(crate) fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("cannot listen on loopback");
        let address = listener.local_addr().expect("a listener has an address");
        (listener, address)
    }

    /// Has `serve` serve each connection of `listener`.
    pub(crate) fn start(
        listener: TcpListener,
        serve: impl Fn(TcpStream) + Clone + Send + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("a listener has an address");
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let accept = move || {
            let mut connections = Vec::new();
            for stream in listener.incoming() {
                if seen.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { break };
                let serve = serve.clone();
                connections.push(std::thread::spawn(move || serve(stream)));
            }
            for connection in connections {
                let _ = connection.join();
            }
        };
        Self {
            address,
            ended,
            thread: Some(std::thread::spawn(accept)),
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread, which then sees that it is to end.
        let woken = TcpStream::connect(self.address);
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}
