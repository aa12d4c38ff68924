//! Hostile guests on ports with protections, and whether anybody notices. Tags that are to lead into another VLAN have their tests in `vlans.rs`.

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use common::{BROADCAST, Port, RINGS, SOON, TestSwitch, assert_same, eventually, exchange, expect_frame, frame, mac};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use weft_dataplane::{NetworkSettings, PortSettings};
use weft_guest::{Builder, Guest, Header, Shape, feature};
use weft_switch::gateway::GatewaySettings;
use weft_switch::guard::{IpLock, Isolation, Limit, Protections, StormLimits, Volume};
use weft_switch::{DropReason, FdbSettings, MacAddr, Station};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_MAC: [u8; 6] = [2, 0x77, 0, 0, 0, 1];
const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);
const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 102);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 103);

/// The attacker is the first station, and may be that at [`OWN`] and nobody else.
fn locked() -> Protections {
    Protections {
        macs: Some(vec![MacAddr(mac(1))]),
        ips: Some(IpLock { listed: vec![IpAddr::V4(OWN)], leased: true }),
        dhcp_server: false,
        router: false,
        ..Protections::NONE
    }
}

fn plug(switch: &TestSwitch, protections: Protections, shape: impl FnOnce(Builder) -> Builder) -> (Port, Guest) {
    let port = switch.add(PortSettings { protections, ..switch.settings() });
    let guest = switch.connect(&port, shape);
    (port, guest)
}

/// An attacker with these protections, and two guests that know each other.
fn scene(switch: &TestSwitch, protections: Protections) -> ((Port, Guest), Guest, Guest) {
    let mut attacker = plug(switch, protections, |builder| builder);
    let ((_, mut victim), (_, mut friend)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    exchange(&mut victim, mac(2), &mut friend, mac(3));
    // The first one went to everybody.
    expect_frame(&mut attacker.1, &frame(mac(3), mac(2), 100));
    (attacker, victim, friend)
}

/// Asserts that nothing more has come, now that everything that was sent has been forwarded.
#[track_caller]
fn expect_nothing(switch: &TestSwitch, guest: &mut Guest) {
    switch.wait_asleep();
    assert_eq!(guest.receive(Duration::ZERO).unwrap(), None);
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

fn tcp(to: [u8; 6], from: [u8; 6], source: Ipv4Addr, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(from, to).ipv4(source.octets(), VICTIM.octets(), 64);
    builder.tcp(1000, 2000, 5, 4000).write(&mut bytes, &payload(len)).unwrap();
    bytes
}

fn tcp6(to: [u8; 6], from: [u8; 6], source: [u8; 16], len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(from, to)
        .ipv6(source, [9; 16], 64)
        .tcp(1000, 2000, 5, 4000)
        .write(&mut bytes, &payload(len))
        .unwrap();
    bytes
}

fn udp(to: [u8; 6], source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(1), to).ipv4(source.0.octets(), destination.0.octets(), 64);
    builder.udp(source.1, destination.1).write(&mut bytes, &payload(300)).unwrap();
    bytes
}

fn arp(sender_mac: [u8; 6], sender: Ipv4Addr, operation: ArpOperation) -> Vec<u8> {
    let (hardware, protocol) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
    let packet = ArpPacket::new(hardware, protocol, operation, &sender_mac, &sender.octets(), &mac(2), &VICTIM.octets()).unwrap();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac(1), mac(2)).arp(packet).write(&mut bytes).unwrap();
    bytes
}

/// The link-local address that follows from a MAC address.
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> [u8; 16] {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

fn router_advertisement() -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(1), [0x33, 0x33, 0, 0, 0, 1]).ipv6(link_local(mac(1)), [0xff; 16], 255);
    builder.icmpv6_raw(134, 0, [64, 0, 7, 8]).write(&mut bytes, &[0; 8]).unwrap();
    bytes
}

/// Whatever its length and however the guest has cut it: what was looked into comes from private memory, and the rest from where it was.
#[test]
fn what_an_honest_guest_sends_arrives_as_it_was_sent() {
    for rings in RINGS {
        let switch = TestSwitch::start();
        let (port, mut a) = plug(&switch, locked(), |builder| builder.features(rings));
        let (_, mut b) = switch.guest(|builder| builder.features(rings));
        let own6 = link_local(mac(1));
        for to in [BROADCAST, mac(2)] {
            for len in [0, 1, 6, 9, 10, 11, 100, 189, 190, 191, 192, 1446, 1460, 8960] {
                for shape in
                    [Shape::one(), Shape::header_apart(12), Shape::pieces(&[12, 14, 20, 3]), Shape::pieces(&[20, 30, 100])]
                {
                    for sent in [tcp(to, mac(1), OWN, len), tcp6(to, mac(1), own6, len)] {
                        a.send_with_header(&Header::default(), &sent, &shape).unwrap();
                        expect_frame(&mut b, &sent);
                    }
                }
            }
            b.send(&frame(mac(1), mac(2), 60)).unwrap();
            expect_frame(&mut a, &frame(mac(1), mac(2), 60));
        }
        assert_eq!(switch.all_drops(&port), []);
    }
}

#[test]
fn addresses_that_are_not_the_guests_own_are_heard_by_nobody() {
    let switch = TestSwitch::start();
    let ((port, mut attacker), mut victim, mut friend) = scene(&switch, locked());
    let attacks = [
        (tcp(mac(2), mac(3), OWN, 100), DropReason::MacNotAllowed),
        (tcp(mac(2), mac(1), OTHER, 0), DropReason::IpNotAllowed),
        (tcp(mac(2), mac(1), OTHER, 1460), DropReason::IpNotAllowed),
        (tcp6(mac(2), mac(1), link_local(mac(3)), 1400), DropReason::IpNotAllowed),
        (arp(mac(1), OTHER, ArpOperation::REPLY), DropReason::SpoofedArp),
        (arp(mac(3), OWN, ArpOperation::REPLY), DropReason::SpoofedArp),
        (arp(mac(1), GATEWAY, ArpOperation::REQUEST), DropReason::SpoofedArp),
        (udp(mac(2), (OWN, 67), (VICTIM, 68)), DropReason::DhcpServerNotAllowed),
        (udp(BROADCAST, (OWN, 1067), (Ipv4Addr::BROADCAST, 68)), DropReason::DhcpServerNotAllowed),
        (router_advertisement(), DropReason::RouterNotAllowed),
    ];
    for (attack, reason) in attacks {
        let before = switch.drops(&port, reason);
        attacker.send(&attack).unwrap();
        switch.expect_drops(&port, reason, before + 1);
    }
    expect_nothing(&switch, &mut victim);
    expect_nothing(&switch, &mut friend);
    // What they know of each other is as it was.
    exchange(&mut victim, mac(2), &mut friend, mac(3));
    expect_nothing(&switch, &mut attacker);
    attacker.send(&arp(mac(1), OWN, ArpOperation::REQUEST)).unwrap();
    expect_frame(&mut victim, &arp(mac(1), OWN, ArpOperation::REQUEST));
}

#[test]
fn a_guest_that_may_be_server_and_router_is_heard() {
    let switch = TestSwitch::start();
    let allowed = Protections { dhcp_server: true, router: true, ..locked() };
    let ((port, mut router), mut client, _) = scene(&switch, allowed);
    for sent in [udp(mac(2), (OWN, 67), (VICTIM, 68)), router_advertisement()] {
        router.send(&sent).unwrap();
        expect_frame(&mut client, &sent);
    }
    assert_eq!(switch.all_drops(&port), []);
}

#[test]
fn invented_mac_addresses_do_not_get_into_the_table() {
    let switch = TestSwitch::start();
    let ((port, mut attacker), mut victim, mut friend) = scene(&switch, locked());
    for number in 0..1000_u16 {
        attacker.send(&frame(mac(2), mac(10_000 + number), 60)).unwrap();
    }
    switch.expect_drops(&port, DropReason::MacNotAllowed, 1000);
    let network = switch.network();
    assert_eq!(switch.with(move |dataplane| dataplane.fdb(network)).len(), 2);
    exchange(&mut victim, mac(2), &mut friend, mac(3));
}

#[test]
fn a_storm_is_cut_down_and_what_is_for_one_guest_goes_on() {
    let switch = TestSwitch::start();
    let few = Some(Volume::Frames(1));
    let storm = StormLimits { broadcast: few, multicast: few, unknown: few };
    let ((port, mut attacker), mut victim, mut friend) = scene(&switch, Protections { storm, ..Protections::NONE });
    for (to, reason) in [
        (BROADCAST, DropReason::BroadcastStorm),
        ([0x33, 0x33, 0, 0, 0, 1], DropReason::MulticastStorm),
        (mac(9), DropReason::UnknownStorm),
    ] {
        for _ in 0..500 {
            attacker.send(&frame(to, mac(1), 60)).unwrap();
        }
        // Sixteen at once, and as many as the seconds that this takes.
        let mut received = 0;
        assert!(eventually(|| {
            received += std::iter::from_fn(|| victim.receive(Duration::ZERO).unwrap()).count() as u64;
            received + switch.drops(&port, reason) == 500
        }));
        assert!((16..100).contains(&received), "{received} for {to:02x?} came through");
        while friend.receive(Duration::ZERO).unwrap().is_some() {}
    }
    for _ in 0..100 {
        attacker.send(&frame(mac(2), mac(1), 60)).unwrap();
        expect_frame(&mut victim, &frame(mac(2), mac(1), 60));
    }
    exchange(&mut victim, mac(2), &mut friend, mac(3));
}

#[test]
fn no_more_comes_in_than_the_limit_allows() {
    let switch = TestSwitch::start();
    let limit_in = Some(Limit { bits: 8_000, burst: 100_000 });
    let ((port, mut attacker), mut victim, _) = scene(&switch, Protections { limit_in, ..Protections::NONE });
    for _ in 0..200 {
        attacker.send(&frame(mac(2), mac(1), 1000)).unwrap();
    }
    let mut received = 0;
    assert!(eventually(|| {
        received += std::iter::from_fn(|| victim.receive(Duration::ZERO).unwrap()).count() as u64;
        received + switch.drops(&port, DropReason::OverLimit) == 200
    }));
    assert!((100..150).contains(&received), "{received} came through");
    // Whoever is no longer limited is heard.
    switch.with(move |dataplane| dataplane.protect_port(port.id, Protections::NONE)).unwrap();
    attacker.send(&frame(mac(2), mac(1), 9000)).unwrap();
    expect_frame(&mut victim, &frame(mac(2), mac(1), 9000));
}

#[test]
fn a_frame_that_is_to_be_cut_counts_for_all_its_segments() {
    const FEATURES: u64 = feature::DEFAULT | feature::CSUM | feature::HOST_TSO4 | feature::GUEST_CSUM | feature::GUEST_TSO4;
    let switch = TestSwitch::start();
    let limit_in = Some(Limit { bits: 8_000, burst: 100_000 });
    let protections = Protections { limit_in, ..Protections::NONE };
    let (port, mut attacker) = plug(&switch, protections, |builder| builder.features(FEATURES));
    let (_, _victim) = switch.guest(|builder| builder.features(FEATURES));
    let header = Header {
        flags: Header::NEEDS_CSUM,
        gso_type: Header::GSO_TCPV4,
        gso_size: 1,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        ..Header::default()
    };
    // 18,960 bytes each: 200 segments of one, behind as many bytes of headers as TCP can have.
    let frame = tcp(mac(2), mac(1), OWN, 200);
    for _ in 0..20 {
        attacker.send_with_header(&header, &frame, &Shape::one()).unwrap();
    }
    switch.expect_drops(&port, DropReason::OverLimit, 15);
}

#[test]
fn no_checksum_is_written_over_what_was_checked() {
    const FEATURES: u64 = feature::DEFAULT | feature::CSUM;
    let switch = TestSwitch::start();
    let (port, mut attacker) = plug(&switch, locked(), |builder| builder.features(FEATURES));
    let (_, mut victim) = switch.guest(|builder| builder);
    let frame = udp(mac(2), (OWN, 4000), (VICTIM, 4001));
    let pending = |csum_start| Header { flags: Header::NEEDS_CSUM, csum_start, ..Header::default() };
    // The source address, which nobody's transport header is; the ports; those behind options, which were looked at.
    attacker.send_with_header(&pending(28), &frame, &Shape::one()).unwrap();
    attacker.send_with_header(&pending(36), &frame, &Shape::one()).unwrap();
    switch.expect_drops(&port, DropReason::BadOffload, 2);
    let mut long = frame.clone();
    long[14] = 0x46;
    long.splice(34..34, [1; 4]);
    attacker.send_with_header(&Header { csum_offset: 6, ..pending(34) }, &long, &Shape::one()).unwrap();
    switch.expect_drops(&port, DropReason::Unverifiable, 1);
    attacker.send_with_header(&Header { csum_offset: 6, ..pending(34) }, &frame, &Shape::one()).unwrap();
    assert_eq!(victim.receive(SOON).unwrap().map(|frame| frame[26..38].to_vec()), Some(frame[26..38].to_vec()));
}

#[test]
fn a_fragment_that_is_to_be_cut_again_is_no_way_to_be_a_dhcp_server() {
    const FEATURES: u64 = feature::DEFAULT | feature::CSUM | feature::HOST_UFO;
    let switch = TestSwitch::start();
    let (port, mut attacker) = plug(&switch, locked(), |builder| builder.features(FEATURES));
    let (_, mut victim) = switch.guest(|builder| builder);
    let header = Header {
        flags: Header::NEEDS_CSUM,
        gso_type: Header::GSO_UDP,
        gso_size: 1480,
        csum_start: 34,
        csum_offset: 6,
        ..Header::default()
    };
    let mut offer = udp(BROADCAST, (OWN, 67), (Ipv4Addr::BROADCAST, 68));
    offer[6..12].copy_from_slice(&mac(1));
    // As a later fragment it has no ports.
    offer[20..22].copy_from_slice(&[0, 1]);
    attacker.send_with_header(&header, &offer, &Shape::one()).unwrap();
    switch.expect_drops(&port, DropReason::Unverifiable, 1);
    assert_eq!(victim.receive(Duration::ZERO).unwrap(), None);
}

#[test]
fn frames_of_segmentation_are_checked_by_their_one_header() {
    const SENDER: u64 = feature::DEFAULT | feature::CSUM | feature::HOST_TSO4 | feature::GUEST_CSUM | feature::GUEST_TSO4;
    for rings in RINGS {
        let features = SENDER | rings & (feature::RING_PACKED | feature::IN_ORDER);
        let switch = TestSwitch::start();
        let (port, mut attacker) = plug(&switch, locked(), |builder| builder.features(features));
        let (_, mut victim) = switch.guest(|builder| builder.features(features));
        let header = Header {
            flags: Header::NEEDS_CSUM,
            gso_type: Header::GSO_TCPV4,
            gso_size: 1448,
            hdr_len: 54,
            csum_start: 34,
            csum_offset: 16,
            ..Header::default()
        };
        for shape in [Shape::one(), Shape::pieces(&[12, 54, 4096, 4096])] {
            let before = switch.drops(&port, DropReason::IpNotAllowed);
            attacker.send_with_header(&header, &tcp(BROADCAST, mac(1), OTHER, 60_000), &shape).unwrap();
            switch.expect_drops(&port, DropReason::IpNotAllowed, before + 1);
            let honest = tcp(BROADCAST, mac(1), OWN, 60_000);
            attacker.send_with_header(&header, &honest, &shape).unwrap();
            let received = victim.receive_whole(SOON).unwrap().expect("it is for all");
            assert_eq!(Header { num_buffers: 0, ..received.header }, header);
            assert_same(&received.frame, &honest);
        }
    }
}

fn isolated(isolation: Isolation) -> Protections {
    Protections { isolation, ..Protections::NONE }
}

#[test]
fn isolated_guests_reach_those_that_are_not_and_their_group() {
    let switch = TestSwitch::start();
    let guest = |isolation| plug(&switch, isolated(isolation), |builder| builder);
    let ((port_a, mut a), (port_b, mut b)) = (guest(Isolation::Isolated), guest(Isolation::Isolated));
    let ((_, mut c), (_, mut d)) = (guest(Isolation::Group(7)), guest(Isolation::Group(7)));
    let (_, mut server) = guest(Isolation::None);
    // To all.
    a.send(&frame(BROADCAST, mac(1), 60)).unwrap();
    expect_frame(&mut server, &frame(BROADCAST, mac(1), 60));
    b.send(&frame(BROADCAST, mac(2), 60)).unwrap();
    expect_frame(&mut server, &frame(BROADCAST, mac(2), 60));
    c.send(&frame(BROADCAST, mac(3), 60)).unwrap();
    expect_frame(&mut server, &frame(BROADCAST, mac(3), 60));
    expect_frame(&mut d, &frame(BROADCAST, mac(3), 60));
    for guest in [&mut a, &mut b, &mut c, &mut d] {
        expect_nothing(&switch, guest);
    }
    assert_eq!(switch.all_drops(&port_a), [], "somebody got it");
    // To one.
    a.send(&frame(mac(2), mac(1), 60)).unwrap();
    switch.expect_drops(&port_a, DropReason::Isolated, 1);
    a.send(&frame(mac(3), mac(1), 60)).unwrap();
    switch.expect_drops(&port_a, DropReason::Isolated, 2);
    exchange(&mut a, mac(1), &mut server, mac(5));
    exchange(&mut c, mac(3), &mut d, mac(4));
    // It ends while both stay connected.
    let id = port_b.id;
    switch.with(move |dataplane| dataplane.protect_port(id, Protections::NONE)).unwrap();
    exchange(&mut a, mac(1), &mut b, mac(2));
    assert_eq!(switch.status(&port_b).connections, 1);
}

fn start_with_gateway() -> TestSwitch {
    let switch = TestSwitch::start();
    let gateway = GatewaySettings {
        subnet: "10.77.0.0/24".parse().unwrap(),
        address: GATEWAY,
        mac: MacAddr(GATEWAY_MAC),
        mtu: 1500,
        dhcp: true,
        dns: true,
        host_access: false,
    };
    let fdb = FdbSettings::new(1024, Duration::from_secs(300));
    let id = switch.network();
    let settings = NetworkSettings { gateway: Some(gateway), ..NetworkSettings::from(fdb) };
    switch.with(move |dataplane| dataplane.set_network(id, settings)).unwrap();
    switch
}

/// The router between them is on the same network (RFC 5517, section 5.1).
#[test]
fn isolated_guests_do_not_reach_each_other_by_way_of_the_gateway() {
    let switch = start_with_gateway();
    let guest = |isolation| plug(&switch, isolated(isolation), |builder| builder);
    let ((port_a, mut a), (port_b, mut b), (_, mut c)) =
        (guest(Isolation::Isolated), guest(Isolation::Isolated), guest(Isolation::None));
    let id = switch.network();
    let station = Station { port: port_b.id, mac: MacAddr(mac(2)) };
    switch.with(move |dataplane| dataplane.lease(id, VICTIM, station));
    let sent = tcp(GATEWAY_MAC, mac(1), OWN, 100);
    a.send(&sent).unwrap();
    switch.expect_drops(&port_a, DropReason::Isolated, 1);
    // What goes past the gateway to all others.
    a.send(&arp_request(mac(1), OWN)).unwrap();
    expect_frame(&mut c, &arp_request(mac(1), OWN));
    expect_nothing(&switch, &mut b);
    // Without isolation it would have come.
    c.send(&tcp(GATEWAY_MAC, mac(3), OTHER, 100)).unwrap();
    assert_eq!(b.receive(SOON).unwrap().expect("it is passed on")[..12], [&mac(2)[..], &GATEWAY_MAC].concat());
}

fn arp_request(from: [u8; 6], sender: Ipv4Addr) -> Vec<u8> {
    let (hardware, protocol) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
    let packet =
        ArpPacket::new(hardware, protocol, ArpOperation::REQUEST, &from, &sender.octets(), &[0; 6], &VICTIM.octets()).unwrap();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(from, BROADCAST).arp(packet).write(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_guest_may_use_what_is_leased_to_it_for_as_long_as_it_is() {
    let switch = start_with_gateway();
    let lock = Protections { ips: Some(IpLock { listed: Vec::new(), leased: true }), ..locked() };
    let ((port, mut a), mut b, _) = scene(&switch, lock.clone());
    let (id, port_id) = (switch.network(), port.id);
    let station = move |port| Station { port, mac: MacAddr(mac(1)) };
    let sent = tcp(mac(2), mac(1), OWN, 100);
    let mut refused = 0;
    let mut expect = |a: &mut Guest, b: &mut Guest, allowed: bool| {
        a.send(&sent).unwrap();
        if allowed {
            expect_frame(b, &sent);
        } else {
            refused += 1;
            switch.expect_drops(&port, DropReason::IpNotAllowed, refused);
        }
    };
    expect(&mut a, &mut b, false);
    switch.with(move |dataplane| dataplane.lease(id, OWN, station(port_id)));
    expect(&mut a, &mut b, true);
    // Other protections, the same lease.
    switch.with(move |dataplane| dataplane.protect_port(port_id, Protections { router: true, ..lock })).unwrap();
    expect(&mut a, &mut b, true);
    switch.with(move |dataplane| dataplane.end_lease(id, OWN));
    expect(&mut a, &mut b, false);
    switch.with(move |dataplane| dataplane.lease(id, OWN, station(port_id)));
    expect(&mut a, &mut b, true);
    // Somebody else has it now.
    let other = switch.add_port().id;
    switch.with(move |dataplane| dataplane.lease(id, OWN, station(other)));
    expect(&mut a, &mut b, false);
}
