//! Whose socket is at the other end of a loopback TCP connection.
//!
//! The kernel is asked through `NETLINK_SOCK_DIAG` (sock_diag(7)) for the one socket with exactly
//! this pair of addresses; where that is not to be had, `/proc/net/tcp` and `/proc/net/tcp6` are
//! searched. What neither can answer is unknown, and the caller must refuse it.
//!
//! A socket that no process holds any more (closed with data still on its way, or gone) is listed
//! with uid 0 by kernels before 6.17, so taking its uid for an answer would make anybody root. Only
//! an established socket that has an inode counts: an inode means that a process holds it.

use std::io::{self, BufRead};
use std::net::{IpAddr, SocketAddr};

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `TCP_ESTABLISHED` of the kernel's `net/tcp_states.h`.
const ESTABLISHED: u8 = 1;

/// Nothing says whose the socket is.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel does not say whose connection {client} is: sock_diag: {netlink}; /proc/net: {proc}"
)]
pub(super) struct Unknown {
    client: SocketAddr,
    netlink: io::Error,
    proc: io::Error,
}

/// The uid that owns the socket at `client`, as this process's user namespace names it, where
/// `server` is our end of the connection.
///
/// The answer holds for the connection only if our end is still connected *after* this call; the
/// caller must look. Otherwise the client may have reset it, and somebody else may have been given
/// its port since.
///
/// # Errors
///
/// [`Unknown`] if the socket is not an established one that a process holds.
pub(super) fn owner(client: SocketAddr, server: SocketAddr) -> Result<u32, Unknown> {
    let pair = Pair::new(client, server);
    by_netlink(pair)
        .or_else(|netlink| {
            by_proc(pair).map_err(|proc| Unknown {
                client,
                netlink,
                proc,
            })
        })
        .map(|held| held.uid)
}

/// The two ends of a connection as the client's socket has them; IPv4 wherever it is IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    client: SocketAddr,
    server: SocketAddr,
}

impl Pair {
    fn new(client: SocketAddr, server: SocketAddr) -> Self {
        let canonical =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self {
            client: canonical(client),
            server: canonical(server),
        }
    }

    /// With IPv4 addresses written as IPv6 ones.
    fn mapped(self) -> Self {
        let mapped = |address: SocketAddr| match address.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            IpAddr::V6(_) => address,
        };
        Self {
            client: mapped(self.client),
            server: mapped(self.server),
        }
    }
}

/// An established socket that a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    uid: u32,
    inode: u32,
}

impl Held {
    fn new(state: u8, uid: u32, inode: u32) -> io::Result<Self> {
        if state == ESTABLISHED && inode != 0 {
            Ok(Self { uid, inode })
        } else {
            Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no process holds the socket any more",
            ))
        }
    }
}

/// Looks twice. The kernel reads uid and inode one after the other; a socket let go in between is
/// let go for good, so an inode in the second answer proves the uid of the first.
fn confirmed(look: impl Fn() -> io::Result<Held>) -> io::Result<Held> {
    let first = look()?;
    let second = look()?;
    if first == second {
        Ok(first)
    } else {
        Err(io::Error::other("the socket changed meanwhile"))
    }
}

fn by_netlink(pair: Pair) -> io::Result<Held> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(SOCK_DIAG),
    )?;
    // Connected to port 0, the kernel: answers of anybody else do not come through.
    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    confirmed(|| {
        rustix::net::send(&socket, &diag::request(pair), SendFlags::empty())?;
        // The kernel answers within `send`, so there is nothing to wait for.
        let mut answer = [0; 4096];
        let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
        diag::parse(&answer[..length], pair)
    })
}

fn by_proc(pair: Pair) -> io::Result<Held> {
    confirmed(|| {
        // An IPv6 socket that talks IPv4 is listed in the second file, with mapped addresses.
        ["/proc/net/tcp", "/proc/net/tcp6"]
            .into_iter()
            .find_map(|path| table::search(path, pair).transpose())
            .unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
    })
}

/// The messages of `linux/inet_diag.h`; numbers in the machine's byte order, addresses and ports in
/// the network's.
mod diag {
    use super::{ESTABLISHED, Held, IpAddr, Pair, io};

    const HEADER: usize = 16;
    const REQUEST: usize = HEADER + 56;
    const ANSWER: usize = HEADER + 72;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLMSG_ERROR: u16 = 2;
    const NLM_F_REQUEST: u16 = 1;
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    const IPPROTO_TCP: u8 = 6;
    /// Where `struct inet_diag_sockid` lies in `struct inet_diag_msg`, and its length without the
    /// interface and the cookie.
    const ANSWER_ID: std::ops::Range<usize> = HEADER + 4..HEADER + 40;

    /// `struct nlmsghdr`, then `struct inet_diag_req_v2`.
    pub(super) fn request(pair: Pair) -> Vec<u8> {
        let mut message = Vec::with_capacity(REQUEST);
        message.extend(u32::to_ne_bytes(72));
        message.extend(u16::to_ne_bytes(SOCK_DIAG_BY_FAMILY));
        message.extend(u16::to_ne_bytes(NLM_F_REQUEST));
        message.extend([0; 8]); // sequence, port
        message.extend([family(pair), IPPROTO_TCP, 0, 0]);
        message.extend(u32::to_ne_bytes(1 << ESTABLISHED));
        message.extend(id(pair));
        message.extend([0; 4]); // any interface
        message.extend([0xff; 8]); // INET_DIAG_NOCOOKIE
        debug_assert_eq!(message.len(), REQUEST);
        message
    }

    /// `struct nlmsghdr`, then `struct inet_diag_msg` or an errno.
    pub(super) fn parse(answer: &[u8], pair: Pair) -> io::Result<Held> {
        let unexpected = || io::Error::other("unexpected answer");
        let u16_at = |at| Some(u16::from_ne_bytes(array(answer, at)?));
        let u32_at = |at| Some(u32::from_ne_bytes(array(answer, at)?));
        let errno_at = |at| Some(i32::from_ne_bytes(array(answer, at)?));
        match u16_at(4) {
            Some(NLMSG_ERROR) => {
                let errno = errno_at(HEADER).ok_or_else(unexpected)?;
                Err(io::Error::from_raw_os_error(errno.saturating_neg()))
            }
            Some(SOCK_DIAG_BY_FAMILY) if answer.len() >= ANSWER => {
                // A listener answers too where no connection matches: the id tells. An IPv6 socket
                // that talks IPv4 is found by its IPv4 addresses, and answers with mapped ones.
                let is = |pair| answer[HEADER] == family(pair) && answer[ANSWER_ID] == id(pair)[..];
                if !is(pair) && !is(pair.mapped()) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let state = answer[HEADER + 1];
                let uid = u32_at(HEADER + 64).ok_or_else(unexpected)?;
                let inode = u32_at(HEADER + 68).ok_or_else(unexpected)?;
                Held::new(state, uid, inode)
            }
            _ => Err(unexpected()),
        }
    }

    fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
        bytes.get(at..at + N)?.try_into().ok()
    }

    fn family(pair: Pair) -> u8 {
        match pair.client.ip() {
            IpAddr::V4(_) => AF_INET,
            IpAddr::V6(_) => AF_INET6,
        }
    }

    /// Ports and addresses of `struct inet_diag_sockid`; the source is the client.
    fn id(pair: Pair) -> Vec<u8> {
        let address = |ip| {
            let mut field = [0; 16];
            match ip {
                IpAddr::V4(ip) => field[..4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => field.copy_from_slice(&ip.octets()),
            }
            field
        };
        let mut id = Vec::with_capacity(ANSWER_ID.len());
        id.extend(pair.client.port().to_be_bytes());
        id.extend(pair.server.port().to_be_bytes());
        id.extend(address(pair.client.ip()));
        id.extend(address(pair.server.ip()));
        id
    }
}

/// The tables of proc_net(5).
mod table {
    use super::{BufRead, Held, IpAddr, Pair, SocketAddr, io};

    /// The socket in the table at `path`, if it is listed there.
    pub(super) fn search(path: &str, pair: Pair) -> io::Result<Option<Held>> {
        // The first file lists what has IPv4 addresses only.
        let pair = match pair.client.ip() {
            _ if path.ends_with('6') => pair.mapped(),
            IpAddr::V4(_) => pair,
            IpAddr::V6(_) => return Ok(None),
        };
        let (local, remote) = (column(pair.client), column(pair.server));
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        find(io::BufReader::new(file), &local, &remote)
    }

    /// The row with these two addresses.
    pub(super) fn find(table: impl BufRead, local: &str, remote: &str) -> io::Result<Option<Held>> {
        for row in table.lines() {
            let row = row?;
            let columns: Vec<&str> = row.split_ascii_whitespace().collect();
            let [_, here, there, state, _, _, _, uid, _, inode, ..] = columns[..] else {
                continue;
            };
            if here != local || there != remote {
                continue;
            }
            let unexpected = |_| io::Error::other("unexpected row");
            let state = u8::from_str_radix(state, 16).map_err(unexpected)?;
            let uid = uid.parse().map_err(unexpected)?;
            let inode = inode.parse().map_err(unexpected)?;
            return Held::new(state, uid, inode).map(Some);
        }
        Ok(None)
    }

    /// `address` as a table shows it.
    fn column(address: SocketAddr) -> String {
        let octets = match address.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        // The kernel prints each word as a number of the machine's byte order.
        let word = |word: &[u8]| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        let words = octets.chunks_exact(4).map(word);
        let address_column: String = words.map(|word| format!("{word:08X}")).collect();
        format!("{address_column}:{:04X}", address.port())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn own_uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    /// A connected pair: the client's end and ours.
    fn connected(listen: &str, connect: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(listen).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(format!("{connect}:{port}")).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    fn pair(server: &TcpStream) -> Pair {
        Pair::new(server.peer_addr().unwrap(), server.local_addr().unwrap())
    }

    #[test]
    fn both_ways_tell_the_owner_of_every_kind_of_connection() {
        for (listen, connect) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "[::1]"),
            // A client with an IPv6 socket on an IPv4 connection, and a listener of that kind.
            ("127.0.0.1:0", "[::ffff:127.0.0.1]"),
            ("[::]:0", "127.0.0.1"),
        ] {
            let (_client, server) = connected(listen, connect);
            let pair = pair(&server);
            let netlink = by_netlink(pair).unwrap();
            let proc = by_proc(pair).unwrap();
            assert_eq!(netlink.uid, own_uid(), "{listen} {connect}");
            assert_eq!(netlink, proc, "{listen} {connect}");
        }
    }

    #[test]
    fn a_socket_that_its_process_closed_has_no_owner() {
        let (client, server) = connected("127.0.0.1:0", "127.0.0.1");
        let pair = pair(&server);
        drop(client);
        assert!(by_netlink(pair).is_err());
        assert!(by_proc(pair).is_err());
        assert!(owner(pair.client, pair.server).is_err());
    }

    #[test]
    fn a_socket_that_was_reset_has_no_owner_and_our_end_shows_it() {
        let (client, server) = connected("127.0.0.1:0", "127.0.0.1");
        let pair = pair(&server);
        let at_once = Some(std::time::Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&client, at_once).unwrap();
        drop(client);
        assert!(owner(pair.client, pair.server).is_err());
        assert!(server.peer_addr().is_err());
    }

    #[test]
    fn a_listener_is_not_taken_for_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let nobody = SocketAddr::new(address.ip(), 1);
        assert!(owner(address, nobody).is_err());
    }

    #[test]
    fn a_row_counts_only_if_established_and_held() {
        let row = |state: &str, uid: u32, inode: u32| {
            format!(
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                 3: 0100007F:C3A8 0100007F:1F90 {state} 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1 0 20 4 30 10 -1\n"
            )
        };
        let look = |table: String| {
            table::find(table.as_bytes(), "0100007F:C3A8", "0100007F:1F90").map_err(drop)
        };
        assert_eq!(
            look(row("01", 1000, 77)),
            Ok(Some(Held {
                uid: 1000,
                inode: 77
            }))
        );
        assert_eq!(look(row("01", 0, 0)), Err(()), "orphaned");
        assert_eq!(look(row("05", 0, 0)), Err(()), "closing");
        assert_eq!(look(row("06", 0, 0)), Err(()), "time wait");
        assert_eq!(look(String::new()), Ok(None));
    }

    #[test]
    fn a_socket_that_changes_between_two_looks_is_unknown() {
        let uids = std::cell::Cell::new(0);
        let changing = || {
            uids.set(uids.get() + 1);
            Held::new(ESTABLISHED, uids.get(), 7)
        };
        assert!(confirmed(changing).is_err());
    }
}
