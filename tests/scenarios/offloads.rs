//! Frames that their sender left unfinished, and receivers of every kind.

mod common;

use std::time::Duration;

use common::{SOON, TestSwitch, exchange, mac};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use weft_guest::{Guest, Header, Shape, feature};
use weft_switch::DropReason;

const A: [u8; 6] = [2, 0, 0, 0, 0xaa, 1];
const B: [u8; 6] = [2, 0, 0, 0, 0xaa, 2];
const TCP_START: u16 = 34;
const TCP_CHECKSUM: u16 = 16;
const TCP_HEADERS: usize = 54;
const MSS: u16 = 1460;

const SENDER: u64 = feature::DEFAULT | feature::CSUM | feature::HOST_TSO;
const RECEIVER: u64 = feature::DEFAULT | feature::GUEST_CSUM | feature::GUEST_TSO;

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 13 + at / 251) as u8).collect()
}

/// TCP over IPv4 from A to B, as a kernel would send it.
fn finished(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let packet = PacketBuilder::ethernet2(A, B).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1000, 2000, 5, 4000).ack(7).psh();
    packet.write(&mut bytes, payload).unwrap();
    bytes
}

/// The same with nothing but noise where the checksum belongs: whoever finishes it may not rely on what stands there, if it cuts.
fn unfinished(payload: &[u8]) -> Vec<u8> {
    let mut bytes = finished(payload);
    let pseudo = pseudo_sum(&bytes);
    bytes[50..52].copy_from_slice(&pseudo.to_be_bytes());
    bytes
}

/// The folded sum of the pseudo-header, which a driver leaves in the checksum field.
fn pseudo_sum(frame: &[u8]) -> u16 {
    let words = frame[26..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum = words.sum::<u32>() + 6 + (frame.len() - usize::from(TCP_START)) as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn partial() -> Header {
    Header { flags: Header::NEEDS_CSUM, csum_start: TCP_START, csum_offset: TCP_CHECKSUM, ..Header::default() }
}

fn large() -> Header {
    // The header length is a lie, and must not be believed.
    Header { gso_type: Header::GSO_TCPV4, gso_size: MSS, hdr_len: u16::MAX, ..partial() }
}

fn send(guest: &mut Guest, header: &Header, frame: &[u8]) {
    guest.send_with_header(header, frame, &Shape::one()).unwrap();
}

/// All TCP payload that comes, in order, with every checksum looked at; and the number of frames.
fn receive_stream(guest: &mut Guest, len: usize) -> (Vec<u8>, usize) {
    let (mut stream, mut frames) = (Vec::new(), 0);
    while stream.len() < len {
        let received = guest.receive_whole(SOON).unwrap().expect("more of the stream");
        assert_eq!((received.header.flags, received.header.gso_type), (0, 0), "it is handed over finished");
        let packet = SlicedPacket::from_ethernet(&received.frame).unwrap();
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else {
            panic!("not TCP over IPv4: {packet:?}");
        };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(header.source, header.destination).unwrap());
        assert_eq!(tcp.sequence_number() as usize, 5 + stream.len());
        assert!(tcp.payload().len() <= usize::from(MSS));
        stream.extend_from_slice(tcp.payload());
        frames += 1;
    }
    (stream, frames)
}

#[test]
fn a_receiver_that_agreed_gets_a_partial_checksum_as_it_is() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder.features(SENDER));
    let (_, mut b) = switch.guest(|builder| builder.features(RECEIVER));
    let sent = unfinished(&payload(1000));
    send(&mut a, &partial(), &sent);
    let received = b.receive_whole(SOON).unwrap().unwrap();
    assert_eq!(received.header, Header { num_buffers: 1, ..partial() });
    assert_eq!(received.frame, sent);
}

#[test]
fn a_receiver_that_agreed_gets_64_kib_at_once() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder.features(SENDER));
    let (_, mut b) = switch.guest(|builder| builder.features(RECEIVER));
    // An IP packet of 65,535 bytes.
    let sent = unfinished(&payload(65_535 - 40));
    send(&mut a, &large(), &sent);
    let received = b.receive_whole(SOON).unwrap().unwrap();
    let header = Header { num_buffers: 0, ..received.header };
    assert_eq!(header, Header { hdr_len: TCP_HEADERS as u16, ..large() });
    assert!(received.frame == sent, "{} bytes came, not the {} that were sent", received.frame.len(), sent.len());
}

#[test]
fn a_receiver_that_did_not_agree_gets_a_complete_checksum() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder.features(SENDER));
    let (_, mut b) = switch.guest(|builder| builder);
    for len in [0, 1, 2, 999, 1460] {
        send(&mut a, &partial(), &unfinished(&payload(len)));
        let received = b.receive_whole(SOON).unwrap().unwrap();
        assert_eq!(received.header, Header { num_buffers: 1, ..Header::default() });
        assert_eq!(received.frame, finished(&payload(len)));
    }
}

#[test]
fn a_receiver_that_did_not_agree_gets_segments() {
    let switch = TestSwitch::start();
    for receiver in [feature::DEFAULT, feature::DEFAULT | feature::GUEST_CSUM, feature::VERSION_1, 0] {
        let (_, mut a) = switch.guest(|builder| builder.features(SENDER));
        let (port_b, mut b) = switch.guest(|builder| builder.features(receiver));
        for len in [1, 1460, 1461, 20_000, 65_495] {
            send(&mut a, &large(), &unfinished(&payload(len)));
            let (stream, frames) = receive_stream(&mut b, len);
            assert!(stream == payload(len), "{len} bytes came garbled");
            assert_eq!(frames, len.div_ceil(MSS.into()));
        }
        assert_eq!(switch.drops(&port_b, DropReason::ReceiverFull), 0);
        drop((a, b));
    }
}

#[test]
fn a_flood_reaches_receivers_of_every_kind() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder.features(SENDER));
    let (_, mut agreed) = switch.guest(|builder| builder.features(RECEIVER));
    let (_, mut not_agreed) = switch.guest(|builder| builder);
    let sent = unfinished(&payload(10_000));
    send(&mut a, &large(), &sent);
    assert_eq!(agreed.receive(SOON).unwrap().unwrap(), sent);
    let (stream, _) = receive_stream(&mut not_agreed, 10_000);
    assert_eq!(stream, payload(10_000));
}

#[test]
fn what_contradicts_its_own_headers_is_dropped_and_counted() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(|builder| builder.features(SENDER));
    let (port_b, mut b) = switch.guest(|builder| builder);
    let frame = unfinished(&payload(3000));
    let contradictions = [
        Header { csum_start: 3054, ..partial() },
        Header { csum_offset: u16::MAX, ..partial() },
        Header { csum_start: 0, csum_offset: 0, ..partial() },
        Header { csum_start: 30, ..large() },
        Header { csum_offset: 2, ..partial() },
        Header { gso_size: 0, ..large() },
        Header { flags: 0, ..large() },
        Header { gso_type: 9, ..large() },
        // Thousands of segments of one byte: work without end for whoever cuts them.
        Header { gso_size: 1, ..large() },
    ];
    for header in &contradictions {
        send(&mut a, header, &frame);
    }
    switch.expect_drops(&port_a, DropReason::BadOffload, contradictions.len() as u64);
    // What only shows when it is cut is counted where it would have been cut.
    send(&mut a, &Header { csum_start: 38, ..large() }, &frame);
    switch.expect_drops(&port_b, DropReason::BadOffload, 1);
    assert_eq!(b.receive(Duration::ZERO).unwrap(), None);
    a.flush().unwrap();
    exchange(&mut a, mac(1), &mut b, mac(2));
}

#[test]
fn a_full_receiver_loses_segments_and_nothing_else() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder.features(SENDER));
    let (port_b, mut b) = switch.guest(|builder| builder.receive_buffers(4));
    b.set_repost(false);
    send(&mut a, &large(), &unfinished(&payload(10 * usize::from(MSS))));
    let (stream, _) = receive_stream(&mut b, 4 * usize::from(MSS));
    assert_eq!(stream, payload(10 * usize::from(MSS))[..stream.len()]);
    switch.expect_drops(&port_b, DropReason::ReceiverFull, 6);
}
