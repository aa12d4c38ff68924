//! Guests that speak TCP: smoltcp on both sides, a wire that may lose packets, and segments that nobody should send.

use proptest::prelude::*;
use smoltcp::wire::IpEndpoint;
use weft_switch::MacAddr;

use super::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const START: Timestamp = Timestamp::from_millis(60_000);
const QUERY: &[u8] = b"a query of some bytes";

fn gateway() -> GatewaySettings {
    GatewaySettings {
        subnet: "10.77.0.0/24".parse().unwrap(),
        address: GATEWAY,
        mac: MacAddr([2, 0x77, 0, 0, 0, 1]),
        mtu: 1500,
        dhcp: true,
        dns: true,
        host_access: false,
    }
}

fn station(port: u16) -> Station {
    Station { port: PortId(port), mac: MacAddr([2, 0, 0, 0, 0, port as u8]) }
}

/// A guest with any number of connections to the gateway.
struct Guest {
    station: Station,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
}

impl Guest {
    fn new(port: u16) -> Self {
        let mut wire = Wire { mtu: 1500, ..Wire::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = port.into();
        let mut interface = Interface::new(config, &mut wire, instant(START));
        let address = Ipv4Addr::new(10, 77, 0, 100 + port as u8);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(IpAddress::Ipv4(address), 24)).unwrap());
        Self { station: station(port), interface, sockets: SocketSet::new(Vec::new()), wire }
    }

    fn connect(&mut self, from: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 65_536]);
        let handle = self.sockets.add(Socket::new(buffer(), buffer()));
        let to = IpEndpoint::new(IpAddress::Ipv4(GATEWAY), PORT);
        self.sockets.get_mut::<Socket<'_>>(handle).connect(self.interface.context(), to, from).unwrap();
        handle
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

/// A gateway's DNS with its guests, and a clock.
struct Bench {
    now: Timestamp,
    dns: DnsTcp,
    queries: Vec<(DnsClient, Vec<u8>)>,
    closed: Vec<u64>,
    dropped: Vec<DropReason>,
    /// Each packet of this number is lost; zero for none.
    loses: usize,
    packets: usize,
}

impl Bench {
    fn new() -> Self {
        let dns = DnsTcp::new(gateway(), START, 7);
        Self { now: START, dns, queries: Vec::new(), closed: Vec::new(), dropped: Vec::new(), loses: 0, packets: 0 }
    }

    fn is_lost(&mut self) -> bool {
        self.packets += 1;
        self.loses > 0 && self.packets.is_multiple_of(self.loses)
    }

    /// Carries packets to and fro until there are none.
    fn exchange(&mut self, guest: &mut Guest) {
        loop {
            guest.interface.poll(instant(self.now), &mut guest.wire, &mut guest.sockets);
            let packets = std::mem::take(&mut guest.wire.outgoing);
            let mut progress = Progress::default();
            for packet in packets.iter().filter(|_| !self.is_lost()).cloned().collect::<Vec<_>>() {
                if let Err(reason) = self.dns.receive(self.now, guest.station, packet, &mut progress) {
                    self.dropped.push(reason);
                }
            }
            if self.dns.next_tick().is_some_and(|due| due <= self.now) {
                self.dns.tick(self.now, &mut progress);
            }
            if !self.take(progress, guest) && packets.is_empty() {
                return;
            }
        }
    }

    /// True if a frame went to the guest.
    fn take(&mut self, progress: Progress, guest: &mut Guest) -> bool {
        self.queries.extend(progress.queries);
        self.closed.extend(progress.closed);
        let any = !progress.frames.is_empty();
        for Outgoing { to, frame } in progress.frames {
            assert_eq!(
                (to, &frame[..6], &frame[12..14]),
                (Egress::Port(guest.station.port), &guest.station.mac.0[..], &[8, 0][..])
            );
            if !self.is_lost() {
                guest.wire.incoming = Some(frame[ETHERNET_LEN..].to_vec());
                guest.interface.poll(instant(self.now), &mut guest.wire, &mut guest.sockets);
            }
        }
        any
    }

    fn answer(&mut self, guest: &mut Guest, message: &[u8]) {
        let (client, _) = self.queries.remove(0);
        let ClientTransport::Tcp(connection) = client.transport else { panic!("{client:?}") };
        let mut progress = Progress::default();
        self.dns.answer(self.now, connection, message, &mut progress);
        self.take(progress, guest);
        self.exchange(guest);
    }

    fn wait(&mut self, guest: &mut Guest, time: Duration) {
        self.now = self.now.after(time);
        self.exchange(guest);
    }
}

fn read(guest: &mut Guest, handle: SocketHandle) -> Vec<u8> {
    let mut bytes = vec![0; 200_000];
    let len = guest.socket(handle).recv_slice(&mut bytes).unwrap_or(0);
    bytes.truncate(len);
    bytes
}

#[test]
fn queries_come_out_and_answers_go_back_on_the_same_connection() {
    let (mut bench, mut guest) = (Bench::new(), Guest::new(3));
    let handle = guest.connect(4000);
    bench.exchange(&mut guest);
    let both = [tcp_frame(QUERY), tcp_frame(b"another one, right behind")].concat();
    guest.socket(handle).send_slice(&both).unwrap();
    bench.exchange(&mut guest);
    assert_eq!(bench.queries.len(), 2);
    assert_eq!(bench.queries[0].1, QUERY);
    let client = bench.queries[0].0;
    assert_eq!((client.station, client.address.to_string().as_str()), (station(3), "10.77.0.103:4000"));
    // The longest that there can be: more than any buffer on the way.
    let long = vec![9; 65_535];
    bench.answer(&mut guest, &long);
    let mut got = read(&mut guest, handle);
    while got.len() < 2 + long.len() {
        bench.exchange(&mut guest);
        let more = read(&mut guest, handle);
        assert!(!more.is_empty(), "it stopped at {} bytes", got.len());
        got.extend(more);
    }
    assert!(got == tcp_frame(&long));
    bench.answer(&mut guest, b"and a short one");
    assert_eq!(read(&mut guest, handle), tcp_frame(b"and a short one"));
    guest.socket(handle).close();
    bench.exchange(&mut guest);
    assert_eq!((bench.closed.len(), bench.dns.connections.len(), bench.dropped), (1, 0, vec![]));
}

#[test]
fn a_guest_that_has_said_all_it_wants_still_gets_its_answer() {
    let (mut bench, mut guest) = (Bench::new(), Guest::new(3));
    let handle = guest.connect(4000);
    bench.exchange(&mut guest);
    guest.socket(handle).send_slice(&tcp_frame(QUERY)).unwrap();
    guest.socket(handle).close();
    bench.exchange(&mut guest);
    bench.answer(&mut guest, b"here it is, all the same");
    assert_eq!(read(&mut guest, handle), tcp_frame(b"here it is, all the same"));
    bench.wait(&mut guest, Duration::from_millis(100));
    assert_eq!(bench.dns.connections.len(), 0);
}

#[test]
fn lost_packets_are_made_up_for() {
    for loses in 3..8 {
        let (mut bench, mut guest) = (Bench { loses, ..Bench::new() }, Guest::new(3));
        let handle = guest.connect(4000);
        guest.socket(handle).set_timeout(None);
        let answer = vec![5; 10_000];
        let (mut got, mut asked) = (Vec::new(), false);
        for _ in 0..200 {
            if !asked && guest.socket(handle).may_send() {
                guest.socket(handle).send_slice(&tcp_frame(QUERY)).unwrap();
                asked = true;
            }
            bench.wait(&mut guest, Duration::from_millis(500));
            if !bench.queries.is_empty() {
                bench.answer(&mut guest, &answer);
            }
            got.extend(read(&mut guest, handle));
        }
        assert!(got == tcp_frame(&answer), "of each {loses} packets one was lost, and {} bytes came", got.len());
    }
}

#[test]
fn a_connection_on_which_nothing_happens_is_closed() {
    let (mut bench, mut guest) = (Bench::new(), Guest::new(3));
    let handle = guest.connect(4000);
    bench.exchange(&mut guest);
    assert_eq!(bench.dns.connections.len(), 1);
    bench.wait(&mut guest, IDLE / 2);
    assert!(guest.socket(handle).is_open());
    bench.wait(&mut guest, IDLE);
    bench.wait(&mut guest, Duration::from_secs(1));
    assert_eq!((bench.dns.connections.len(), bench.closed.len()), (0, 1));
    assert!(!guest.socket(handle).may_send(), "the guest knows");
}

#[test]
fn what_is_no_dns_ends_the_connection() {
    let (mut bench, mut guest) = (Bench::new(), Guest::new(3));
    let handle = guest.connect(4000);
    bench.exchange(&mut guest);
    guest.socket(handle).send_slice(b"\0\x03GET").unwrap();
    bench.exchange(&mut guest);
    assert!(!guest.socket(handle).is_open());
    assert_eq!((bench.dns.connections.len(), bench.queries), (0, vec![]));
}

#[test]
fn a_guest_has_half_of_the_connections_and_others_find_some() {
    let (mut bench, mut guest) = (Bench::new(), Guest::new(3));
    for from in 0..200 {
        guest.connect(4000 + from);
        bench.exchange(&mut guest);
    }
    assert_eq!(bench.dns.connections.len(), CONNECTIONS_MAX / 2);
    assert!(bench.dropped.iter().all(|reason| *reason == DropReason::ShareExceeded) && !bench.dropped.is_empty());
    let mut other = Guest::new(4);
    let handle = other.connect(4000);
    bench.exchange(&mut other);
    assert!(other.socket(handle).may_send());
    bench.dns.forget_port(PortId(3));
    let mut progress = Progress::default();
    bench.dns.tick(bench.now, &mut progress);
    assert_eq!((progress.closed.len(), bench.dns.connections.len()), (CONNECTIONS_MAX / 2, 1));
}

#[test]
fn a_guest_that_reads_nothing_is_read_no_more() {
    let (mut bench, mut guest) = (Bench::new(), Guest::new(3));
    let buffer = |len| SocketBuffer::new(vec![0; len]);
    let handle = guest.sockets.add(Socket::new(buffer(512), buffer(65_536)));
    let to = IpEndpoint::new(IpAddress::Ipv4(GATEWAY), PORT);
    guest.sockets.get_mut::<Socket<'_>>(handle).connect(guest.interface.context(), to, 4000).unwrap();
    bench.exchange(&mut guest);
    let mut answered = 0;
    for _ in 0..400 {
        let _ = guest.socket(handle).send_slice(&tcp_frame(QUERY));
        bench.exchange(&mut guest);
        assert!(bench.queries.len() <= QUERIES_MAX + 1);
        while !bench.queries.is_empty() {
            bench.answer(&mut guest, &[5; 30_000]);
            answered += 1;
        }
    }
    let unsent: usize = bench.dns.connections.values().map(|connection| connection.unsent.len()).sum();
    assert!(unsent <= UNSENT_MAX + (QUERIES_MAX + 1) * 30_002 && answered < 10, "{answered} answers, {unsent} bytes");
}

proptest! {
    /// Whatever comes, whether it belongs to a connection or not, nothing of it stops the module or makes it keep more than it may.
    #[test]
    fn segments_that_nobody_should_send_do_no_harm(
        segments in prop::collection::vec((0..40_usize, any::<u8>(), 0..12_u8, any::<u32>(), 0..60_usize), 1..120),
    ) {
        let (mut bench, mut guest) = (Bench::new(), Guest::new(3));
        let handle = guest.connect(4000);
        bench.exchange(&mut guest);
        guest.socket(handle).send_slice(&tcp_frame(QUERY)).unwrap();
        guest.interface.poll(instant(bench.now), &mut guest.wire, &mut guest.sockets);
        let model = guest.wire.outgoing.pop().unwrap();
        for (at, value, flags, number, len) in segments {
            let mut packet = model.clone();
            // Behind the address fields, which the gateway has checked: ports, numbers, offset, flags, window, options.
            let place = 20 + at % (packet.len() - 20);
            packet[place] = value;
            if flags < 8 {
                packet[33] = flags;
                packet[24 + usize::from(flags % 2) * 4..][..4].copy_from_slice(&number.to_be_bytes());
            }
            packet.truncate(packet.len() - len.min(packet.len() - 40));
            let total = packet.len() as u16;
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            let mut progress = Progress::default();
            let _ = bench.dns.receive(bench.now, guest.station, packet, &mut progress);
            prop_assert!(progress.frames.len() < 50);
            bench.now = bench.now.after(Duration::from_millis(u64::from(value)));
            bench.dns.tick(bench.now, &mut progress);
        }
        prop_assert!(bench.dns.connections.len() <= CONNECTIONS_MAX);
    }
}
