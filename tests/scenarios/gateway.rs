//! A network with a gateway, as its guests meet it. `etherparse` builds what they send and reads what they get.

mod common;

use std::net::Ipv4Addr;
use std::time::Duration;

use common::{BROADCAST, RINGS, SOON, TestSwitch, eventually, exchange, expect_frame, frame, mac};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv4Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
};
use weft_dataplane::{NetworkSettings, PortSettings, ServiceMessage, WorkerSettings};
use weft_guest::{Guest, Header, Shape, feature};
use weft_switch::gateway::GatewaySettings;
use weft_switch::multicast::SnoopingSettings;
use weft_switch::vlan::{PortRole, Trunk, Vlan, VlanId};
use weft_switch::{DropReason, Egress, FdbSettings, MacAddr, NetworkId, Outgoing, PortId, Station};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_MAC: [u8; 6] = [2, 0x77, 0, 0, 0, 1];
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const ZERO: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
/// How long to look for what must not come.
const A_WHILE: Duration = Duration::from_millis(50);

fn gateway() -> GatewaySettings {
    GatewaySettings {
        subnet: "10.77.0.0/24".parse().unwrap(),
        address: GATEWAY,
        mac: MacAddr(GATEWAY_MAC),
        mtu: 1500,
        dhcp: true,
        dns: true,
        host_access: false,
    }
}

fn network(gateway: Option<GatewaySettings>) -> NetworkSettings {
    let fdb = FdbSettings::new(1024, Duration::from_secs(300));
    NetworkSettings { gateway, ..NetworkSettings::from(fdb) }
}

/// A switch whose first network has a gateway.
fn start(workers: usize) -> TestSwitch {
    let switch = TestSwitch::start_with(&WorkerSettings { count: workers, ..WorkerSettings::default() });
    set(&switch, switch.network(), Some(gateway()));
    switch
}

fn set(switch: &TestSwitch, id: NetworkId, settings: Option<GatewaySettings>) {
    switch.with(move |dataplane| dataplane.set_network(id, network(settings))).unwrap();
}

fn address(nth: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 100 + nth as u8)
}

fn arp(to: [u8; 6], operation: ArpOperation, from: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let (sender, target) = (sender.octets(), target.octets());
    let packet = ArpPacket::new(ArpHardwareId::ETHERNET, EtherType::IPV4, operation, &from, &sender, &[0; 6], &target).unwrap();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(from, to).arp(packet).write(&mut bytes).unwrap();
    bytes.resize(60, 0);
    bytes
}

fn tagged(frame: &[u8], vlan: u8) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0xa0, vlan], &frame[12..]].concat()
}

fn who_has(from: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(BROADCAST, ArpOperation::REQUEST, from, sender, target)
}

fn ping(from: [u8; 6], source: Ipv4Addr, destination: Ipv4Addr, ttl: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(from, GATEWAY_MAC).ipv4(source.octets(), destination.octets(), ttl);
    builder.icmpv4_echo_request(7, 1).write(&mut bytes, data).unwrap();
    bytes
}

fn udp(to: [u8; 6], from: [u8; 6], source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(from, to).ipv4(source.0.octets(), destination.0.octets(), 64);
    builder.udp(source.1, destination.1).write(&mut bytes, data).unwrap();
    bytes
}

fn discover(from: [u8; 6]) -> Vec<u8> {
    udp(BROADCAST, from, (ZERO, 68), (Ipv4Addr::BROADCAST, 67), b"a client without an address")
}

/// The next frame, which must come.
#[track_caller]
fn next(guest: &mut Guest) -> Vec<u8> {
    guest.receive(SOON).unwrap().expect("a frame")
}

#[track_caller]
fn expect_silence(guest: &mut Guest) {
    let frame = guest.receive(A_WHILE).unwrap();
    assert!(frame.is_none(), "{frame:02x?} came");
}

/// Type and code of an ICMP message, with its source and what follows the header.
#[track_caller]
fn icmp(frame: &[u8]) -> (Icmpv4Type, Ipv4Addr, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) = (packet.net, packet.transport) else {
        panic!("{frame:02x?} is no ICMP");
    };
    (icmp.icmp_type(), ip.header().source_addr(), icmp.payload().to_vec())
}

fn messages(switch: &TestSwitch) -> Vec<(NetworkId, ServiceMessage)> {
    switch.with(weft_dataplane::Dataplane::take_messages)
}

#[test]
fn the_gateway_answers_arp_and_ping_on_every_kind_of_ring() {
    let switch = start(1);
    let port = switch.add_port();
    let me = mac(1);
    for features in RINGS {
        let mut guest = switch.connect(&port, |builder| builder.features(features));
        guest.send(&who_has(me, address(1), GATEWAY)).unwrap();
        let reply = next(&mut guest);
        assert_eq!((&reply[..6], &reply[6..12], &reply[28..32]), (&me[..], &GATEWAY_MAC[..], &GATEWAY.octets()[..]));
        for len in [0, 1, 56, 1472] {
            let data = vec![len as u8; len];
            guest.send(&ping(me, address(1), GATEWAY, 64, &data)).unwrap();
            let (kind, source, payload) = icmp(&next(&mut guest));
            assert!(matches!(kind, Icmpv4Type::EchoReply(_)), "{kind:?}");
            assert_eq!((source, payload), (GATEWAY, data));
        }
        drop(guest);
        switch.wait_listening(&port);
    }
    assert_eq!(switch.all_drops(&port), vec![]);
}

#[test]
fn guests_of_a_network_with_a_gateway_talk_to_each_other_as_on_any() {
    let switch = start(2);
    let ((_, mut a), (_, mut b), (_, mut c)) =
        (switch.guest(|builder| builder), switch.guest(|builder| builder), switch.guest(|builder| builder));
    let question = who_has(mac(1), address(1), address(2));
    a.send(&question).unwrap();
    expect_frame(&mut b, &question);
    expect_frame(&mut c, &question);
    let answer = arp(mac(1), ArpOperation::REPLY, mac(2), address(2), address(1));
    b.send(&answer).unwrap();
    expect_frame(&mut a, &answer);
    exchange(&mut a, mac(1), &mut b, mac(2));
    expect_silence(&mut c);
}

#[test]
fn nobody_can_be_the_gateway() {
    let switch = start(1);
    let ((port_a, mut a), (_, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    b.send(&who_has(mac(2), address(2), GATEWAY)).unwrap();
    next(&mut b);
    expect_frame(&mut a, &who_has(mac(2), address(2), GATEWAY));

    // With its MAC address.
    a.send(&frame(mac(2), GATEWAY_MAC, 100)).unwrap();
    switch.expect_drops(&port_a, DropReason::GatewayClaimed, 1);
    // With its IP address, to everybody: they hear from the gateway what is right.
    a.send(&arp(BROADCAST, ArpOperation::REPLY, mac(1), GATEWAY, GATEWAY)).unwrap();
    switch.expect_drops(&port_a, DropReason::GatewayClaimed, 2);
    let defence = next(&mut b);
    assert_eq!(
        (&defence[6..12], &defence[22..28], &defence[28..32]),
        (&GATEWAY_MAC[..], &GATEWAY_MAC[..], &GATEWAY.octets()[..])
    );
    // With its IP address, to one.
    a.send(&arp(mac(2), ArpOperation::REPLY, mac(1), GATEWAY, address(2))).unwrap();
    switch.expect_drops(&port_a, DropReason::GatewayClaimed, 3);
    // Behind tags that name no VLAN, which hosts take off: to one and to everybody. Behind more than two nobody looks.
    let mut hidden = arp(mac(2), ArpOperation::REPLY, mac(1), GATEWAY, address(2));
    let mut claim = arp(BROADCAST, ArpOperation::REPLY, mac(1), GATEWAY, GATEWAY);
    for nth in 0..4 {
        hidden = tagged(&hidden, 0);
        claim = tagged(&claim, 0);
        a.send(&hidden).unwrap();
        a.send(&claim).unwrap();
        let (reason, count) =
            if nth < 2 { (DropReason::GatewayClaimed, 5 + 2 * nth) } else { (DropReason::HiddenTag, 2 * (nth - 1)) };
        switch.expect_drops(&port_a, reason, count);
    }
    expect_silence(&mut b);
    // One of a VLAN of the guests' own is theirs.
    let of_another = tagged(&arp(mac(2), ArpOperation::REPLY, mac(1), GATEWAY, address(2)), 7);
    a.send(&of_another).unwrap();
    expect_frame(&mut b, &of_another);

    b.send(&ping(mac(2), address(2), GATEWAY, 64, b"still there?")).unwrap();
    assert_eq!(icmp(&next(&mut b)).1, GATEWAY);
}

#[test]
fn who_sends_priority_tags_is_served_as_others_are() {
    let switch = start(1);
    let ((_, mut a), (_, mut b)) =
        (switch.guest(|builder| builder.features(feature::DEFAULT | feature::CSUM)), switch.guest(|builder| builder));
    a.send(&tagged(&who_has(mac(1), address(1), GATEWAY), 0)).unwrap();
    assert_eq!(next(&mut a)[6..12], GATEWAY_MAC);
    expect_frame(&mut b, &who_has(mac(1), address(1), GATEWAY));
    a.send(&tagged(&ping(mac(1), address(1), GATEWAY, 64, b"are you there?"), 0)).unwrap();
    assert!(matches!(icmp(&next(&mut a)), (Icmpv4Type::EchoReply(_), GATEWAY, _)));
    a.send(&tagged(&tagged(&discover(mac(1)), 0), 0)).unwrap();
    // A checksum that is left to be completed is behind the tag, too; into ARP none is written.
    let header = |csum_start| Header { flags: Header::NEEDS_CSUM, csum_start, csum_offset: 6, ..Header::default() };
    let query = tagged(&udp(GATEWAY_MAC, mac(1), (address(1), 4000), (GATEWAY, 53), b"what is its address?"), 0);
    a.send_with_header(&header(38), &query, &Shape::one()).unwrap();
    let mut came = Vec::new();
    assert!(eventually(|| {
        came.extend(messages(&switch));
        came.len() == 2
    }));
    assert!(matches!(&came[0].1, ServiceMessage::Dhcp(_)) && matches!(&came[1].1, ServiceMessage::Dns(_)));
    a.send_with_header(&header(38), &tagged(&who_has(mac(1), address(1), GATEWAY), 0), &Shape::one()).unwrap();
    expect_silence(&mut a);
    expect_silence(&mut b);
}

#[test]
fn what_is_for_outside_is_refused_as_long_as_there_is_no_way_out() {
    let switch = start(1);
    let (port, mut guest) = switch.guest(|builder| builder);
    guest.send(&ping(mac(1), address(1), REMOTE, 64, b"anybody?")).unwrap();
    let (kind, source, quoted) = icmp(&next(&mut guest));
    assert!(matches!(kind, Icmpv4Type::DestinationUnreachable(ref header) if header.code_u8() == 13), "{kind:?}");
    assert_eq!(source, GATEWAY);
    assert_eq!(quoted[16..20], REMOTE.octets());
    switch.expect_drops(&port, DropReason::Unreachable, 1);
    guest.send(&ping(mac(1), address(1), REMOTE, 1, b"who is first?")).unwrap();
    assert!(matches!(icmp(&next(&mut guest)).0, Icmpv4Type::TimeExceeded(_)));
    switch.expect_drops(&port, DropReason::TtlExceeded, 1);
}

#[test]
fn a_guest_reaches_another_through_the_gateway() {
    let switch = start(1);
    let ((_, mut a), (_, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    // Again and again: a station is learned later when somebody is looking at the table.
    assert!(eventually(|| {
        b.send(&arp(GATEWAY_MAC, ArpOperation::REPLY, mac(2), address(2), GATEWAY)).unwrap();
        switch.station(mac(2)).is_some()
    }));
    let sent = ping(mac(1), address(1), address(2), 64, b"by way of the gateway");
    a.send(&sent).unwrap();
    let came = next(&mut b);
    assert_eq!((&came[..6], &came[6..12], came[22]), (&mac(2)[..], &GATEWAY_MAC[..], 63));
    assert_eq!(came[26..], sent[26..]);
    assert!(matches!(icmp(&came).0, Icmpv4Type::EchoRequest(_)), "its checksums are right");
}

#[test]
fn what_follows_a_packet_reaches_the_neighbour_with_the_checksum_that_lies_there() {
    let switch = start(1);
    let (_, mut a) = switch.guest(|builder| builder.features(feature::DEFAULT | feature::CSUM));
    let me = mac(1);
    // It is its own neighbour, at two addresses.
    for nth in [1, 2] {
        a.send(&who_has(me, address(nth), GATEWAY)).unwrap();
        next(&mut a);
    }
    let mut sent = udp(GATEWAY_MAC, me, (address(1), 1), (address(2), 2), b"");
    sent.resize(200, 0);
    let header = Header { flags: Header::NEEDS_CSUM, csum_start: 150, csum_offset: 6, ..Header::default() };
    a.send_with_header(&header, &sent, &Shape::one()).unwrap();
    let came = next(&mut a);
    assert_eq!((came.len(), &came[..6]), (200, &me[..]));
    assert_eq!(came[156..158], [0xff, 0xff], "the sum of nothing, as UDP has it");
    a.send(&ping(me, address(1), GATEWAY, 64, b"still there?")).unwrap();
    assert!(next(&mut a).ends_with(b"still there?"));
}

#[test]
fn dhcp_and_dns_come_to_the_owner_and_to_nobody_else_and_answers_go_back() {
    let switch = start(2);
    let ((port_a, mut a), (_, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    a.send(&discover(mac(1))).unwrap();
    a.send(&udp(GATEWAY_MAC, mac(1), (address(1), 4000), (GATEWAY, 53), b"what is its address?")).unwrap();
    let mut came = Vec::new();
    assert!(eventually(|| {
        came.extend(messages(&switch));
        came.len() == 2
    }));
    let station = Station { port: port_a.id, mac: MacAddr(mac(1)) };
    assert!(came.iter().all(|(id, message)| *id == switch.network() && message.port() == port_a.id));
    assert!(
        matches!(&came[0].1, ServiceMessage::Dhcp(datagram) if datagram.station == station && *datagram.payload == *b"a client without an address")
    );
    assert!(matches!(&came[1].1, ServiceMessage::Dns(datagram) if *datagram.payload == *b"what is its address?"));
    expect_silence(&mut b);

    let id = switch.network();
    let to = std::net::SocketAddrV4::new(address(1), 4000);
    switch.with(move |dataplane| dataplane.with_gateway(id, |_, gateway, out| gateway.send_udp(station, 53, to, b"this", out)));
    let answer = next(&mut a);
    assert_eq!((&answer[6..12], &answer[answer.len() - 4..]), (&GATEWAY_MAC[..], &b"this"[..]));
    expect_silence(&mut b);
}

#[test]
fn who_has_a_probed_address_is_reported_and_who_has_another_is_not() {
    let switch = start(1);
    let (port, mut guest) = switch.guest(|builder| builder);
    let id = switch.network();
    switch.with(move |dataplane| dataplane.probe(id, address(9)));
    let probe = next(&mut guest);
    assert_eq!((&probe[28..32], &probe[38..42]), (&ZERO.octets()[..], &address(9).octets()[..]));
    for last in [8, 9] {
        guest.send(&arp(GATEWAY_MAC, ArpOperation::REPLY, mac(1), address(last), ZERO)).unwrap();
    }
    let mut came = Vec::new();
    assert!(eventually(|| {
        came.extend(messages(&switch));
        !came.is_empty()
    }));
    assert!(
        matches!(&came[..], [(_, ServiceMessage::Heard(heard))] if heard.address == address(9) && heard.station.port == port.id)
    );
}

#[test]
fn a_guest_that_floods_the_services_leaves_room_for_others() {
    let switch = start(1);
    let ((port_a, mut a), (port_b, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    let query = udp(GATEWAY_MAC, mac(1), (address(1), 4000), (GATEWAY, 53), &[7; 1400]);
    // Nobody takes them, so they pile up: there is room for far fewer than these.
    for _ in 0..1_000 {
        a.send(&query).unwrap();
    }
    let dropped = eventually(|| switch.status(&port_a).counters.from_guest_frames == 1_000);
    assert!(dropped && switch.drops(&port_a, DropReason::ServicesBusy) > 500, "{:?}", switch.all_drops(&port_a));
    b.send(&discover(mac(2))).unwrap();
    assert!(eventually(|| switch.status(&port_b).counters.from_guest_frames == 1));
    assert_eq!(switch.all_drops(&port_b), vec![]);
    let came = messages(&switch);
    assert!(came.iter().any(|(_, message)| message.port() == port_b.id));
    a.send(&query).unwrap();
    assert!(eventually(|| messages(&switch).len() == 1), "there is room again");
}

#[test]
fn guests_on_several_workers_talk_to_the_gateway_at_the_same_time() {
    let switch = start(3);
    let guests: Vec<_> = (1..=4).map(|nth| (nth, switch.guest(|builder| builder))).collect();
    let id = switch.network();
    std::thread::scope(|scope| {
        let talk = |nth: u16, mut guest: Guest| {
            for round in 0..500_u16 {
                let data = [&nth.to_be_bytes()[..], &round.to_be_bytes()].concat();
                guest.send(&ping(mac(nth), address(nth), GATEWAY, 64, &data)).unwrap();
                guest.send(&ping(mac(nth), address(nth), REMOTE, 1, &data)).unwrap();
                // Errors are limited in rate; of those that come, any may come first.
                let answer = std::iter::repeat_with(|| icmp(&next(&mut guest)))
                    .find(|(kind, ..)| matches!(kind, Icmpv4Type::EchoReply(_)));
                assert_eq!(answer.unwrap().2, data);
            }
        };
        let talking: Vec<_> = guests.into_iter().map(|(nth, (_, guest))| scope.spawn(move || talk(nth, guest))).collect();
        // The owner has something to do with it meanwhile.
        while talking.iter().any(|thread| !thread.is_finished()) {
            let known = switch.with(move |dataplane| dataplane.with_gateway(id, |_, gateway, _| *gateway.settings()));
            assert_eq!(known, Some(gateway()));
        }
    });
}

#[test]
fn whatever_a_guest_sends_to_the_gateway_the_others_go_on() {
    let trunk = PortRole::Trunk(Trunk { allowed: [VlanId::DEFAULT].into_iter().collect(), native: Some(VlanId::DEFAULT) });
    for (workers, role) in [(1, None), (2, None), (1, Some(trunk))] {
        let switch = start(workers);
        let settings = NetworkSettings {
            multicast: Some(SnoopingSettings::new(MacAddr(GATEWAY_MAC), Vlan::customer(VlanId::DEFAULT))),
            ..network(Some(gateway()))
        };
        let id = switch.network();
        switch.with(move |dataplane| dataplane.set_network(id, settings)).unwrap();
        let offloads = feature::DEFAULT | feature::CSUM | feature::HOST_TSO | feature::HOST_UFO | feature::HOST_USO;
        let port_a = switch.add(PortSettings { vlan: role, ..switch.settings() });
        let (mut a, (port_b, mut b)) =
            (switch.connect(&port_a, |builder| builder.features(offloads)), switch.guest(|builder| builder));
        let good = [
            who_has(mac(1), address(1), GATEWAY),
            arp(GATEWAY_MAC, ArpOperation::REPLY, mac(1), address(1), GATEWAY),
            ping(mac(1), address(1), GATEWAY, 64, &[7; 40]),
            ping(mac(1), address(1), REMOTE, 64, &[7; 40]),
            ping(mac(1), address(1), address(2), 64, &[7; 40]),
            discover(mac(1)),
            udp(GATEWAY_MAC, mac(1), (address(1), 4000), (GATEWAY, 53), &[7; 40]),
            udp(GATEWAY_MAC, mac(1), (address(1), 4000), (GATEWAY, 4), &[7; 40]),
            // IGMP, nearly.
            {
                let mut report =
                    udp([1, 0, 0x5e, 0, 0, 22], mac(1), (address(1), 0x1600), (Ipv4Addr::new(224, 0, 0, 22), 0), &[7; 40]);
                report[23] = 2;
                report
            },
        ];
        let mut state = 0x9e37_79b9_u32;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as usize
        };
        for round in 0..4_000 {
            let mut bad = good[random() % good.len()].clone();
            for _ in 0..random() % 4 {
                let at = random() % bad.len();
                bad[at] = random() as u8;
            }
            bad.truncate(14.max(if random() % 4 == 0 { random() % bad.len() } else { bad.len() }));
            if random() % 4 == 0 {
                bad.resize(bad.len() + random() % 100, 0);
            }
            for _ in 0..[0, 0, 0, 1, 2, 4][random() % 6] {
                bad = tagged(&bad, [0, 0, 1, 7][random() % 4]);
            }
            let header = match random() % 4 {
                0 => Header {
                    flags: Header::NEEDS_CSUM,
                    csum_start: (random() % (bad.len() + 1)) as u16,
                    csum_offset: [6, 16][random() % 2],
                    gso_type: [0, 1, 3, 4, 5][random() % 5],
                    gso_size: (random() % 60) as u16,
                    ..Header::default()
                },
                _ => Header::default(),
            };
            a.send_with_header(&header, &bad, &Shape::one()).unwrap();
            // What it gets does not matter, but its buffers are to be free.
            while a.receive(Duration::ZERO).unwrap().is_some() {}
            if round % 500 == 0 {
                while b.receive(Duration::ZERO).unwrap().is_some() {}
                b.send(&ping(mac(2), address(2), GATEWAY, 64, b"still there?")).unwrap();
                let answered = (0..100).any(|_| {
                    let frame = next(&mut b);
                    frame[12..14] == [8, 0] && frame.ends_with(b"still there?")
                });
                assert!(answered, "in round {round}");
            }
            messages(&switch);
        }
        assert!(switch.all_drops(&port_a).len() > 5, "{:?}", switch.all_drops(&port_a));
        assert_eq!(switch.status(&port_b).connections, 1);
    }
}

#[test]
fn networks_with_the_same_addresses_do_not_see_each_other() {
    let switch = start(2);
    let other = switch.add_network();
    set(&switch, other, Some(GatewaySettings { mac: MacAddr([2, 0x77, 0, 0, 0, 2]), ..gateway() }));
    let (_, mut a) = switch.guest(|builder| builder);
    let elsewhere = switch.add_port_on(other);
    let mut b = switch.connect(&elsewhere, |builder| builder);
    for (guest, nth, last) in [(&mut a, 1, 1), (&mut b, 2, 2)] {
        guest.send(&who_has(mac(nth), address(1), GATEWAY)).unwrap();
        assert_eq!(next(guest)[11], last);
    }
    // Not even by a number of a port that is on the other network.
    let id = switch.network();
    let to = Egress::Port(elsewhere.id);
    switch.with(move |dataplane| dataplane.send_from_gateway(id, vec![Outgoing { to, frame: frame(mac(2), GATEWAY_MAC, 60) }]));
    let everybody = Outgoing { to: Egress::All, frame: frame(BROADCAST, GATEWAY_MAC, 60) };
    let expected = everybody.frame.clone();
    switch.with(move |dataplane| dataplane.send_from_gateway(id, vec![everybody]));
    expect_frame(&mut a, &expected);
    expect_silence(&mut b);
}

#[test]
fn a_gateway_comes_changes_and_goes_without_a_guest_being_disturbed() {
    let switch = TestSwitch::start();
    let ((port_a, mut a), (_, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    let question = who_has(mac(1), address(1), GATEWAY);
    a.send(&question).unwrap();
    expect_frame(&mut b, &question);
    expect_silence(&mut a);

    let network = switch.network();
    set(&switch, network, Some(gateway()));
    a.send(&question).unwrap();
    assert_eq!(next(&mut a)[6..12], GATEWAY_MAC);
    expect_frame(&mut b, &question);

    let moved = Ipv4Addr::new(10, 77, 0, 254);
    let new_mac = [2, 0x77, 0, 0, 0, 9];
    set(&switch, network, Some(GatewaySettings { address: moved, mac: MacAddr(new_mac), ..gateway() }));
    for guest in [&mut a, &mut b] {
        let announcement = next(guest);
        assert_eq!((&announcement[6..12], &announcement[28..32]), (&new_mac[..], &moved.octets()[..]));
    }
    a.send(&who_has(mac(1), address(1), moved)).unwrap();
    assert_eq!(next(&mut a)[6..12], new_mac);
    next(&mut b);

    set(&switch, network, None);
    a.send(&who_has(mac(1), address(1), moved)).unwrap();
    next(&mut b);
    expect_silence(&mut a);
    // Its MAC address is anybody's now.
    b.send(&frame(mac(1), new_mac, 60)).unwrap();
    next(&mut a);
    exchange(&mut a, mac(1), &mut b, new_mac);
    assert_eq!((switch.status(&port_a).connections, switch.all_drops(&port_a)), (1, vec![]));
}

#[test]
fn settings_that_contradict_each_other_change_nothing() {
    let switch = start(1);
    let (_, mut guest) = switch.guest(|builder| builder);
    let bad = GatewaySettings { address: REMOTE, ..gateway() };
    let id = switch.network();
    let refused =
        switch.with(move |dataplane| (dataplane.set_network(id, network(Some(bad))), dataplane.add_network(network(Some(bad)))));
    assert!(refused.0.is_err() && refused.1.is_err());
    guest.send(&who_has(mac(1), address(1), GATEWAY)).unwrap();
    assert_eq!(next(&mut guest)[6..12], GATEWAY_MAC);
}

#[test]
fn what_a_port_had_is_forgotten_when_it_goes() {
    let switch = start(1);
    let ((port_a, mut a), (_, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    let id = switch.network();
    let station = Station { port: port_a.id, mac: MacAddr(mac(1)) };
    switch.with(move |dataplane| dataplane.with_gateway(id, |_, gateway, _| gateway.lease(address(1), station)));
    let claim = ping(mac(2), address(1), GATEWAY, 64, b"");
    b.send(&claim).unwrap();
    expect_silence(&mut b);
    a.send(&discover(mac(1))).unwrap();
    assert!(eventually(|| switch.status(&port_a).counters.from_guest_frames == 1));
    switch.remove(&port_a);
    assert_eq!(messages(&switch), vec![], "nobody waits for an answer");
    b.send(&claim).unwrap();
    assert!(matches!(icmp(&next(&mut b)).0, Icmpv4Type::EchoReply(_)), "the address is free");
    assert_ne!(port_a.id, PortId::GATEWAY);
}
