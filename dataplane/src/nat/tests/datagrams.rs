//! UDP and ICMP.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{Icmpv4Type, NetSlice, SlicedPacket, TransportSlice, icmpv4::DestUnreachableHeader};
use smoltcp::socket::udp::UdpMetadata;
use smoltcp::wire::IpEndpoint;
use weft_switch::OffloadFeatures;

use super::world::{GATEWAY, GUEST, GuestKind, ME, World, far_udp, pattern, settings};

fn to(port: u16) -> UdpMetadata {
    IpEndpoint::new(GATEWAY.into(), port).into()
}

/// A datagram with its header, without a checksum.
fn datagram(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let len = (8 + data.len()) as u16;
    [&from.to_be_bytes(), &to.to_be_bytes(), &len.to_be_bytes(), &[0, 0], data].concat()
}

/// Waits for a datagram at the far end.
fn arrived(world: &mut World, far: &std::net::UdpSocket) -> (std::net::SocketAddr, Vec<u8>) {
    let mut buffer = vec![0; 70_000];
    let mut got = None;
    world.until("a datagram at the far end", |_| {
        got = far.recv_from(&mut buffer).ok();
        got.is_some()
    });
    let (len, from) = got.unwrap();
    (from, buffer[..len].to_vec())
}

#[test]
fn a_datagram_and_its_answer() {
    for offloads in [GuestKind::default().offloads, OffloadFeatures::default()] {
        let mut world = World::with(GuestKind { offloads, ..GuestKind::default() }, settings(1500));
        let (far, port) = far_udp("127.0.0.1");
        let guest = world.udp_socket(5000);
        for len in [0, 1, 1472] {
            world.udp(guest).send_slice(&pattern(len), to(port)).unwrap();
            let (from, data) = arrived(&mut world, &far);
            assert_eq!(data, pattern(len));
            far.send_to(&data, from).unwrap();
            assert_eq!(world.receive(guest), (SocketAddrV4::new(GATEWAY, port), data));
        }
    }
}

#[test]
fn one_inside_endpoint_is_one_outside_port_whomever_it_talks_to_rfc_4787_req_1() {
    let mut world = World::new();
    let ports: Vec<_> = (0..3).map(|_| far_udp("127.0.0.1")).collect();
    let (one, other) = (world.udp_socket(5000), world.udp_socket(5002));
    let mut seen = Vec::new();
    for (far, port) in &ports {
        world.udp(one).send_slice(b"x", to(*port)).unwrap();
        seen.push(arrived(&mut world, far).0);
    }
    assert_eq!(seen, [seen[0]; 3]);
    assert_eq!(seen[0].port() % 2, 0, "its parity is kept (REQ-4)");
    world.udp(other).send_slice(b"x", to(ports[0].1)).unwrap();
    // REQ-3: no two have one port.
    assert_ne!(arrived(&mut world, &ports[0].0).0, seen[0]);
    assert_eq!(world.engine.mappings().count(), 2);
}

#[test]
fn no_two_inside_endpoints_have_one_outside_port_even_if_they_want_the_same_rfc_4787_req_3() {
    let mut world = World::new();
    let (far, port) = far_udp("127.0.0.1");
    let mut seen = Vec::new();
    // The same port of many addresses: each would like to keep it.
    for last in 10..30 {
        world.give_from(ME, Ipv4Addr::new(10, 77, 0, last), 17, GATEWAY, &datagram(5000, port, b"mine"));
        seen.push(arrived(&mut world, &far).0);
    }
    let distinct: std::collections::HashSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "{seen:?}");
    assert!(seen.iter().all(|from| from.port() % 2 == 0), "parity is kept all the same (REQ-4): {seen:?}");
}

#[test]
fn a_guest_reaches_a_guest_by_its_outside_port_and_is_seen_from_outside_rfc_4787_req_9() {
    let mut world = World::new();
    let (far, port) = far_udp("127.0.0.1");
    let (one, other) = (world.udp_socket(5000), world.udp_socket(5002));
    world.udp(one).send_slice(b"where am I?", to(port)).unwrap();
    let outside_of_one = arrived(&mut world, &far).0.port();
    world.udp(other).send_slice(b"where am I?", to(port)).unwrap();
    let outside_of_other = arrived(&mut world, &far).0.port();
    world.udp(other).send_slice(b"hello", to(outside_of_one)).unwrap();
    let (from, data) = world.receive(one);
    assert_eq!((from, data.as_slice()), (SocketAddrV4::new(GATEWAY, outside_of_other), b"hello".as_slice()));
    world.udp(one).send_slice(b"hello yourself", to(from.port())).unwrap();
    assert_eq!(world.receive(other), (SocketAddrV4::new(GATEWAY, outside_of_one), b"hello yourself".to_vec()));
}

#[test]
fn what_a_payload_says_about_addresses_is_left_alone_rfc_4787_req_10_and_5382_req_6() {
    let mut world = World::new();
    let (far, port) = far_udp("127.0.0.1");
    let guest = world.udp_socket(5060);
    let sip = b"INVITE sip:x SIP/2.0\r\nVia: SIP/2.0/UDP 10.77.0.10:5060\r\nContact: <sip:a@10.77.0.10:5060>\r\n\r\n";
    world.udp(guest).send_slice(sip, to(port)).unwrap();
    assert_eq!(arrived(&mut world, &far).1, sip);
    let (handle, mut connection) = world.connected();
    let ftp = b"PORT 10,77,0,10,200,10\r\n";
    world.tcp(handle).send_slice(ftp).unwrap();
    let mut got = Vec::new();
    world.until("the command", |_| {
        let mut buffer = [0; 100];
        let read = std::io::Read::read(&mut connection, &mut buffer).unwrap_or(0);
        got.extend_from_slice(&buffer[..read]);
        got.len() >= ftp.len()
    });
    assert_eq!(got, ftp);
    assert_eq!(world.engine.mappings().count(), 2, "and nobody is let in by it");
}

#[test]
fn who_was_not_spoken_to_can_not_speak_rfc_4787_req_8() {
    let mut world = World::new();
    let (far, port) = far_udp("127.0.0.1");
    let guest = world.udp_socket(5000);
    world.udp(guest).send_slice(b"x", to(port)).unwrap();
    let (from, _) = arrived(&mut world, &far);
    // Another address, and then another port of the address that was spoken to.
    far_udp("127.0.0.2").0.send_to(b"unasked", from).unwrap();
    let (third, third_port) = far_udp("127.0.0.1");
    third.send_to(b"same address", from).unwrap();
    assert_eq!(world.receive(guest), (SocketAddrV4::new(GATEWAY, third_port), b"same address".to_vec()));
}

#[test]
fn a_closed_port_is_told_to_the_guest_and_ends_nothing_rfc_4787_req_12() {
    let mut world = World::new();
    let guest = world.udp_socket(5000);
    let (far, port) = far_udp("127.0.0.1");
    let closed = far_udp("127.0.0.1").1;
    world.udp(guest).send_slice(b"anybody?", to(closed)).unwrap();
    world.round();
    let mut frame = world.next_frame("an ICMP error");
    while frame[12..14] != [8, 0] {
        world.give_back(frame);
        frame = world.next_frame("an ICMP error");
    }
    let packet = SlicedPacket::from_ethernet(&frame).unwrap();
    let Some(TransportSlice::Icmpv4(icmp)) = &packet.transport else { panic!("{packet:?}") };
    assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port));
    // REQ-4 and REQ-5 of RFC 5508: what is inside is what the guest had sent.
    let quoted = SlicedPacket::from_ip(icmp.payload()).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &quoted.net else { panic!() };
    assert_eq!((ip.header().source_addr(), ip.header().destination_addr()), (GUEST, GATEWAY));
    let Some(TransportSlice::Udp(udp)) = &quoted.transport else { panic!() };
    assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (5000, closed, b"anybody?".as_slice()));
    // The mapping is as good as before.
    world.udp(guest).send_slice(b"next", to(port)).unwrap();
    let (from, data) = arrived(&mut world, &far);
    assert_eq!(data, b"next");
    far.send_to(b"answer", from).unwrap();
    assert_eq!(world.receive(guest).1, b"answer");
    assert_eq!(world.engine.mappings().count(), 1);
}

#[test]
fn errors_about_earlier_datagrams_do_not_hold_up_later_ones() {
    let mut world = World::new();
    let guest = world.udp_socket(5000);
    let (far, port) = far_udp("127.0.0.1");
    let closed = far_udp("127.0.0.1").1;
    for _ in 0..20 {
        world.udp(guest).send_slice(b"nobody", to(closed)).unwrap();
        world.udp(guest).send_slice(b"somebody", to(port)).unwrap();
    }
    for _ in 0..20 {
        assert_eq!(arrived(&mut world, &far).1, b"somebody");
    }
    assert_eq!(world.refused, []);
}

#[test]
fn a_datagram_larger_than_the_mtu_reaches_the_guest_in_fragments_rfc_4787_req_13() {
    let mut world = World::new();
    let guest = world.udp_socket(5000);
    let (far, port) = far_udp("127.0.0.1");
    world.udp(guest).send_slice(b"x", to(port)).unwrap();
    let (from, _) = arrived(&mut world, &far);
    world.paused = true;
    far.send_to(&pattern(4000), from).unwrap();
    world.until("fragments", |world| world.ring.frames.len() >= 3);
    let lengths: Vec<_> = world.ring.frames.iter().map(Vec::len).collect();
    assert_eq!(lengths, [1514, 1514, 14 + 20 + 4008 - 2 * 1480]);
}

#[test]
fn datagrams_in_a_row_leave_together_and_arrive_apart() {
    let mut world = World::new();
    let guest = world.udp_socket(5000);
    let (far, port) = far_udp("127.0.0.1");
    let (other, other_port) = far_udp("127.0.0.1");
    let lengths = [100, 100, 100, 40, 100, 1472, 1472, 1, 0, 0, 7, 1472];
    for len in lengths {
        world.udp(guest).send_slice(&pattern(len), to(port)).unwrap();
    }
    world.udp(guest).send_slice(b"other", to(other_port)).unwrap();
    world.udp(guest).send_slice(b"again", to(port)).unwrap();
    for len in lengths {
        assert_eq!(arrived(&mut world, &far).1, pattern(len));
    }
    assert_eq!(arrived(&mut world, &far).1, b"again");
    assert_eq!(arrived(&mut world, &other).1, b"other");
    assert_eq!((world.refused.len(), world.ring.late.len()), (0, 0));
}

#[test]
fn datagrams_that_the_guest_has_put_together_arrive_apart() {
    let mut world = World::new();
    let (far, port) = far_udp("127.0.0.1");
    for (size, count) in [(1000_u16, 3_usize), (100, 150), (1, 1), (1472, 44)] {
        let data = pattern(usize::from(size) * count - usize::from(size) / 3);
        let header = [5000, port, 8 + data.len() as u16, 0].map(u16::to_be_bytes).concat();
        world.segment = Some(size);
        world.give_ip(17, GATEWAY, &[&header, &data[..]].concat());
        for chunk in data.chunks(size.into()) {
            assert_eq!(arrived(&mut world, &far).1, chunk);
        }
    }
    assert_eq!((world.refused.len(), world.ring.late.len()), (0, 0));
}

#[test]
fn datagrams_that_the_kernel_has_put_together_reach_the_guest_one_by_one_or_as_it_agreed_to() {
    let uso = OffloadFeatures { udp: true, ..GuestKind::default().offloads };
    for offloads in [OffloadFeatures::default(), GuestKind::default().offloads, uso] {
        let mut world = World::with(GuestKind { offloads, ..GuestKind::default() }, settings(1500));
        let guest = world.udp_socket(5000);
        let (far, port) = far_udp("127.0.0.1");
        world.udp(guest).send_slice(b"x", to(port)).unwrap();
        let (from, _) = arrived(&mut world, &far);
        // A sender that cuts late: the kernel keeps such datagrams together as long as it can.
        let socket = rustix::fd::AsFd::as_fd(&far);
        let data = pattern(10 * 1000 + 300);
        let piece = crate::memory::Segment { ptr: data.as_ptr().cast_mut(), len: data.len() };
        let std::net::SocketAddr::V4(from) = from else { panic!() };
        let marks = super::super::calls::Marks { segment: Some(1000), ..Default::default() };
        super::super::calls::Calls::new().send(socket, Some(from), &[piece], marks).unwrap();
        for chunk in data.chunks(1000) {
            assert_eq!(world.receive(guest).1, chunk);
        }
        assert_eq!(world.ring.large > 0, offloads.udp, "{offloads:?}");
    }
}

#[test]
fn a_mapping_ends_when_the_guest_is_silent_rfc_4787_req_5() {
    let udp = weft_switch::nat::udp::UdpSettings { timeout: std::time::Duration::from_millis(300), ..Default::default() };
    let mut world = World::with(GuestKind::default(), super::super::EngineSettings { udp, ..settings(1500) });
    let guest = world.udp_socket(5000);
    let (far, port) = far_udp("127.0.0.1");
    world.udp(guest).send_slice(b"x", to(port)).unwrap();
    let (from, _) = arrived(&mut world, &far);
    let opened = world.now();
    // What comes from outside keeps nothing alive (REQ-6).
    world.until("its end", |world| {
        let _ = far.send_to(b"y", from);
        world.engine.mappings().count() == 0
    });
    assert!(world.now().since(opened).as_millis() >= 250);
    let (events, lost) = world.engine.audit();
    assert_eq!((events.len(), lost), (2, 0));
    assert_eq!(events[1].closed.unwrap().from_guest, 1);
    assert!(events[1].closed.unwrap().to_guest >= 1);
}

#[test]
fn pings_pass_where_the_host_lets_them_rfc_5508_req_1() {
    // The group that may ping is a setting of the network namespace, and the one that tests run in may forbid it.
    let mut world = World::new();
    let message = |kind: u8, id: u16| {
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(id.to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(pattern(56));
        let sum = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    world.give_ip(1, Ipv4Addr::LOCALHOST, &message(8, 0x1234));
    if rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, Some(rustix::net::ipproto::ICMP))
        .is_err()
    {
        use super::super::Disposition;
        use weft_switch::DropReason;
        use weft_switch::gateway::Refusal;
        assert_eq!(world.refused, [Disposition::Refuse(DropReason::Unreachable, Refusal::Prohibited)]);
        return;
    }
    let frame = world.next_frame("an answer");
    assert_eq!(frame[34..38], message(0, 0x1234)[..4]);
    assert_eq!(frame[38..], message(0, 0x1234)[4..]);
}

#[test]
fn datagrams_in_more_pieces_than_one_call_takes_all_arrive() {
    let mut world = World::new();
    let (far, port) = far_udp("127.0.0.1");
    // Two thousand pieces in one batch, and all in a row to the same place.
    world.piece = Some(1);
    let all: Vec<_> = (0..32).map(|nth| datagram(5000, port, &[nth; 64])).collect();
    world.give_batch(ME, GUEST, 17, GATEWAY, &all.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for nth in 0..32 {
        assert_eq!(arrived(&mut world, &far).1, [nth; 64]);
    }
}

#[test]
fn a_datagram_that_was_left_to_be_cut_and_fits_into_no_run_leaves_alone() {
    let mut world = World::new();
    let (far, port) = far_udp("127.0.0.1");
    for len in [65_400, 0] {
        let data = pattern(len);
        world.segment = Some(65_500);
        world.give_ip(17, GATEWAY, &datagram(5000, port, &data));
        assert_eq!(arrived(&mut world, &far).1, data);
    }
}
