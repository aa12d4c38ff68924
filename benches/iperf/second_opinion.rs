//! What guests see of the outside through weft's NAT, and through Linux's own: the same steps by the same stack, once behind each, with
//! the same far end. Where both were given a choice, the difference is named here.
//!
//! Needs root and `benches/iperf/setup`. By hand: `cargo build --release -p weft -p weft-benches && cargo test --release -p weft-benches --test
//! second_opinion -- --ignored`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{ip_mtu, set_socket_linger};
use weft_tests::Weft;
use weft_tests::native::{inside, native_guest};
use weft_tests::process::Process;
use weft_tests::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(20);
/// Where the far end is, another address of its own, and one in its network that nobody has.
const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const FAR_TOO: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
const NOBODY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 99);
/// Both NATs' address outside.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// What the far link takes; guests' own links take 1,500 bytes.
const FAR_MTU: &str = "1400";
/// More than a packet, and than what all buffers on the way hold.
const LONG: usize = 8 << 20;

/// A step, and what a guest sees of it.
type Step = (&'static str, fn(&Process) -> String);

const STEPS: &[Step] = &[
    ("what is sent comes back whole, and an end is an end for one direction", half_close),
    ("nobody listens", refused),
    ("the far end resets", reset_by_far),
    ("the guest resets", reset_by_guest),
    ("nobody has the address", unreachable),
    ("a datagram, its answer, and who is seen outside", datagram),
    ("one endpoint, two partners: one port outside", two_partners),
    ("nobody listens for a datagram", datagram_refused),
    ("a datagram of several packets, both ways", large_datagram),
    ("a datagram that may not be cut does not fit", does_not_fit),
    ("who was not spoken to is not heard", stranger),
    ("ping", |_| ping(&["-c", "1"])),
    ("ping that dies at the first hop", |_| ping(&["-c", "1", "-t", "1"])),
    ("ping that just arrives", |_| ping(&["-c", "1", "-t", "2"])),
];

#[test]
#[ignore = "needs root"]
fn a_guest_sees_the_outside_as_through_linuxs_own_nat() {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let [far, router, behind] = ["far", "router", "behind"].map(|name| holder(name, dir.path()));
    inside(&router, || {
        run(&format!("ip link add far mtu {FAR_MTU} type veth peer name near mtu {FAR_MTU} netns {}", far.pid()));
        run(&format!("ip link add inside type veth peer name eth0 netns {}", behind.pid()));
        run(&format!("ip addr add {OUTSIDE}/24 dev far"));
        run("ip addr add 192.168.77.1/24 dev inside");
        ["lo", "far", "inside"].iter().for_each(|link| run(&format!("ip link set {link} up")));
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a namespace may forward");
        // Root of this namespace may ping, as weft is allowed to on most systems.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").expect("a namespace has its own");
        run("nft add table ip nat");
        run("nft add chain ip nat out { type nat hook postrouting priority 100 ; }");
        run("nft add rule ip nat out oifname far ip saddr 192.168.77.0/24 masquerade");
    });
    inside(&far, || {
        run(&format!("ip addr add {FAR}/24 dev near"));
        run(&format!("ip addr add {FAR_TOO}/24 dev near"));
        run("ip link set near up");
    });
    inside(&behind, || {
        run("ip addr add 192.168.77.10/24 dev eth0");
        run("ip link set eth0 up");
        run("ip route add default via 192.168.77.1");
    });
    // A child process ends with the thread that has started it.
    inside(&router, || compare(&far, &behind));
}

/// From where weft is to run.
fn compare(far: &Process, behind: &Process) {
    let weft = Weft::start_with(&[]);
    let guest = guest(&weft);

    let mut differences = Vec::new();
    for (what, step) in STEPS {
        let [ours, linuxs] = [&guest, behind].map(|guest| inside(guest, || step(far)));
        println!("{what}: {ours}");
        if ours != linuxs {
            differences.push(format!("{what}: weft: {ours}; Linux: {linuxs}"));
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");

    // RFC 4787, REQ-8: weft filters by address, so that a partner's other ports are heard; Linux filters by address and port.
    let other_port = [&guest, behind].map(|guest| inside(guest, || partners_other_port(far)));
    assert_eq!(other_port, ["heard", "not heard"]);
}

fn half_close(far: &Process) -> String {
    let (at, sent) = serve_tcp(far, |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(&all)
    });
    let mut stream = TcpStream::connect(at).expect("the far end is reached");
    let data: Vec<u8> = (0..LONG).map(|at| (at % 251) as u8).collect();
    stream.write_all(&data).expect("the far end reads");
    stream.shutdown(Shutdown::Write).expect("it is open");
    let mut back = Vec::new();
    let end = stream.read_to_end(&mut back);
    drop(sent);
    format!("{:?}, the same: {}", end.map_err(|error| error.kind()), back == data)
}

fn refused(far: &Process) -> String {
    // A port that was free a moment ago.
    let at = inside(far, || TcpListener::bind((FAR, 0)).and_then(|listener| listener.local_addr()).expect("a port is free"));
    result(TcpStream::connect(at))
}

fn reset_by_far(far: &Process) -> String {
    let (at, _sent) = serve_tcp(far, |mut stream| {
        stream.read_exact(&mut [0])?;
        Ok(set_socket_linger(&stream, Some(Duration::ZERO))?)
    });
    let mut stream = TcpStream::connect(at).expect("the far end is reached");
    stream.write_all(b"?").expect("it is open");
    result(stream.read(&mut [0]))
}

fn reset_by_guest(far: &Process) -> String {
    let (at, seen) = serve_tcp(far, |mut stream| {
        stream.write_all(b"!")?;
        stream.read(&mut [0]).map(drop)
    });
    let mut stream = TcpStream::connect(at).expect("the far end is reached");
    stream.read_exact(&mut [0]).expect("the far end says something");
    set_socket_linger(&stream, Some(Duration::ZERO)).expect("a socket has a linger time");
    drop(stream);
    result(seen.join().expect("the far end goes on"))
}

fn unreachable(_: &Process) -> String {
    result(TcpStream::connect((NOBODY, 80)))
}

fn datagram(far: &Process) -> String {
    let (there, here) = (far_udp(far, FAR), own_udp());
    here.send_to(b"hello", address(&there)).expect("a datagram can be sent");
    let (text, from) = receive(&there);
    there.send_to(b"and hello", from).expect("a datagram can be sent");
    let (answer, back_from) = receive(&here);
    let kept = from.port() == address(&here).port();
    format!("{text} from {}, port kept: {kept}; {answer} from there: {}", from.ip(), back_from == address(&there))
}

fn two_partners(far: &Process) -> String {
    let (one, two, here) = (far_udp(far, FAR), far_udp(far, FAR_TOO), own_udp());
    let seen = [&one, &two].map(|there| {
        here.send_to(b"hello", address(there)).expect("a datagram can be sent");
        receive(there).1
    });
    format!("{}", seen[0] == seen[1])
}

fn datagram_refused(far: &Process) -> String {
    let at = inside(far, || UdpSocket::bind((FAR, 0)).and_then(|socket| socket.local_addr()).expect("a port is free"));
    let here = own_udp();
    here.connect(at).expect("a route is there");
    here.send(b"anybody?").expect("a datagram can be sent");
    result(here.recv(&mut [0]))
}

fn large_datagram(far: &Process) -> String {
    let (there, here) = (far_udp(far, FAR), own_udp());
    let data = vec![b'x'; 5000];
    here.send_to(&data, address(&there)).expect("a datagram can be sent");
    let (text, from) = receive(&there);
    there.send_to(&data, from).expect("a datagram can be sent");
    format!("{} there, {} back", text.len(), receive(&here).0.len())
}

fn does_not_fit(far: &Process) -> String {
    let (there, here) = (far_udp(far, FAR), own_udp());
    here.connect(address(&there)).expect("a route is there");
    rustix::net::sockopt::set_ip_mtu_discover(&here, rustix::net::sockopt::Ipv4PathMtuDiscovery::DO).expect("Linux can do that");
    here.send(&[b'x'; 1472]).expect("it fits the guest's own link");
    // The error comes when the packet is sent that the news is about, or the next one.
    wait_until("news of the path", LIMIT, || ip_mtu(&here).is_ok_and(|mtu| mtu < 1500));
    let again = loop {
        match here.send(&[b'x'; 1472]) {
            Ok(_) => {}
            Err(error) => break error.raw_os_error(),
        }
    };
    format!("{:?}, and then {again:?}", ip_mtu(&here))
}

fn stranger(far: &Process) -> String {
    let (there, other, here) = (far_udp(far, FAR), far_udp(far, FAR_TOO), own_udp());
    here.send_to(b"hello", address(&there)).expect("a datagram can be sent");
    let from = receive(&there).1;
    other.send_to(b"you don't know me", from).expect("a datagram can be sent");
    there.send_to(b"but me", from).expect("a datagram can be sent");
    receive(&here).0
}

fn partners_other_port(far: &Process) -> &'static str {
    let (there, other, here) = (far_udp(far, FAR), far_udp(far, FAR), own_udp());
    here.send_to(b"hello", address(&there)).expect("a datagram can be sent");
    let from = receive(&there).1;
    other.send_to(b"from another port", from).expect("a datagram can be sent");
    there.send_to(b"from the same port", from).expect("a datagram can be sent");
    if receive(&here).0 == "from another port" { "heard" } else { "not heard" }
}

/// What ping says, without what differs from one run to the next.
fn ping(options: &[&str]) -> String {
    let output = Command::new("ping").args(["-n", "-W", "5"]).args(options).arg(FAR.to_string()).output();
    let text = String::from_utf8_lossy(&output.expect("ping is there: run benches/iperf/setup").stdout).into_owned();
    let exceeded = if text.contains("Time to live exceeded") { "Time to live exceeded; " } else { "" };
    let received = text.split(", ").find(|part| part.contains("received")).unwrap_or(&text).to_owned();
    format!("{exceeded}{received}")
}

/// What came of something that may fail.
fn result<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// A server at the far end for one connection.
fn serve_tcp(
    far: &Process,
    serve: impl FnOnce(TcpStream) -> io::Result<()> + Send + 'static,
) -> (SocketAddr, thread::JoinHandle<io::Result<()>>) {
    let listener = inside(far, || TcpListener::bind((FAR, 0)).expect("a port is free"));
    let at = listener.local_addr().expect("it is bound");
    (at, thread::spawn(move || serve(listener.accept()?.0)))
}

fn far_udp(far: &Process, at: Ipv4Addr) -> UdpSocket {
    inside(far, || patient(UdpSocket::bind((at, 0))))
}

fn own_udp() -> UdpSocket {
    patient(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
}

fn patient(socket: io::Result<UdpSocket>) -> UdpSocket {
    let socket = socket.expect("a port is free");
    socket.set_read_timeout(Some(LIMIT)).expect("a socket has a time limit");
    socket
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("it is bound")
}

fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = vec![0; 0x1_0000];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => return (String::from_utf8_lossy(&buffer[..len]).into_owned(), from),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("no datagram came: {error}"),
        }
    }
}

/// A process with a network namespace of its own.
fn holder(name: &str, dir: &Path) -> Process {
    let log = dir.join(name);
    let words = ["--net", "--", "sh", "-c", "echo ready; exec sleep 1000"].map(str::to_owned);
    let process = Process::spawn("unshare", Path::new("unshare"), &words, &log);
    wait_until("a namespace", LIMIT, || process.log().contains("ready"));
    process
}

/// A guest of weft's that has the namespace for a stack.
fn guest(weft: &Weft) -> Process {
    let socket = weft.socket("vm1");
    let network = weft.json(&["network", "show", "default"]);
    let gateway: IpAddr = network["gateway"].as_str().expect("a gateway").parse().expect("an address");
    let IpAddr::V4(v4) = gateway else { panic!("{gateway}") };
    let [a, b, c, _] = v4.octets();
    let guest = native_guest(env!("CARGO_BIN_EXE_weft-guest-tap"), &socket, &["--address", &format!("{a}.{b}.{c}.10/24")]);
    inside(&guest, || run(&format!("ip route add default via {gateway}")));
    guest
}

fn run(words: &str) {
    let mut parts = words.split(' ');
    let output = Command::new(parts.next().expect("a program")).args(parts).output();
    let output = output.unwrap_or_else(|error| panic!("{words}: {error}; run benches/iperf/setup"));
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
}
