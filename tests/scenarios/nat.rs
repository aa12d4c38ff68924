//! A network whose guests reach the outside through the host's own sockets, with rings, memory and workers as they are. The far end is on this
//! host's loopback, which guests reach under the gateway's address. `etherparse` builds what they send and reads what they get; every
//! rule of the NAT has its own test beside the engine.

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::{Port, RINGS, SOON, TestSwitch, eventually, mac};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
use weft_dataplane::{Forward, NatSettings, NetworkSettings, PortSettings, WorkerSettings};
use weft_guest::{Guest, Header, Shape, feature};
use weft_switch::gateway::GatewaySettings;
use weft_switch::vlan::{PortRole, Trunk, VlanId};
use weft_switch::{FdbSettings, MacAddr, Station};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_MAC: [u8; 6] = [2, 0x77, 0, 0, 0, 1];
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);
const ISS: u32 = 1000;

fn start(workers: usize) -> TestSwitch {
    let switch = TestSwitch::start_with(&WorkerSettings { count: workers, ..WorkerSettings::default() });
    let gateway = GatewaySettings {
        subnet: "10.77.0.0/24".parse().unwrap(),
        address: GATEWAY,
        mac: MacAddr(GATEWAY_MAC),
        mtu: 1500,
        dhcp: false,
        dns: false,
        host_access: true,
    };
    let fdb = FdbSettings::new(1024, Duration::from_secs(300));
    let settings = NetworkSettings { gateway: Some(gateway), nat: Some(NatSettings::default()), ..NetworkSettings::from(fdb) };
    let id = switch.network();
    switch.with(move |dataplane| dataplane.set_network(id, settings)).unwrap();
    switch
}

fn udp(port: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(1), GATEWAY_MAC).ipv4(GUEST.octets(), GATEWAY.octets(), 64);
    builder.udp(port, to).write(&mut bytes, data).unwrap();
    bytes
}

fn tcp(port: u16, to: u16, change: impl FnOnce(&mut TcpHeader), data: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(port, to, ISS, 50_000);
    change(&mut header);
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(1), GATEWAY_MAC).ipv4(GUEST.octets(), GATEWAY.octets(), 64);
    builder.tcp_header(header).write(&mut bytes, data).unwrap();
    bytes
}

/// The next frame that is no ARP; it must come.
#[track_caller]
fn next(guest: &mut Guest) -> Vec<u8> {
    loop {
        let frame = guest.receive(SOON).unwrap().expect("a frame");
        if frame[12..14] == [8, 0] {
            return frame;
        }
    }
}

/// Reads a segment, whose checksums must be right.
#[track_caller]
fn segment(frame: &[u8]) -> (TcpHeader, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (packet.net, packet.transport) else {
        panic!("{frame:02x?} is no TCP");
    };
    let (from, to) = (ip.header().source(), ip.header().destination());
    assert_eq!((from, to), (GATEWAY.octets(), GUEST.octets()));
    assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(from, to).unwrap());
    (tcp.to_header(), tcp.payload().to_vec())
}

fn far_udp() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// A connection of the guest's, open: its far end, and the number that the guest expects next.
fn connect(guest: &mut Guest, port: u16) -> (TcpStream, u32, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap().port();
    guest.send(&tcp(port, to, |header| header.syn = true, b"")).unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(SOON)).unwrap();
    let (answer, _) = segment(&next(guest));
    assert!(answer.syn && answer.ack && answer.acknowledgment_number == ISS + 1);
    let expected = answer.sequence_number.wrapping_add(1);
    guest.send(&tcp(port, to, |header| acknowledge(header, 1, expected), b"")).unwrap();
    (far, expected, to)
}

fn acknowledge(header: &mut TcpHeader, sent: u32, expected: u32) {
    (header.ack, header.sequence_number, header.acknowledgment_number) = (true, ISS + sent, expected);
}

#[test]
fn a_datagram_goes_out_and_its_answer_comes_back_on_every_kind_of_ring() {
    for workers in [1, 3] {
        let switch = start(workers);
        let port = switch.add_port();
        let (far, to) = far_udp();
        for features in RINGS.into_iter().chain([feature::DEFAULT & !feature::MRG_RXBUF]) {
            let mut guest = switch.connect(&port, |builder| builder.features(features));
            for len in [0, 1, 1000, 1472] {
                let data = vec![len as u8; len];
                guest.send(&udp(5000, to, &data)).unwrap();
                let mut buffer = [0; 2000];
                let (got, from) = far.recv_from(&mut buffer).unwrap();
                assert_eq!(buffer[..got], data);
                far.send_to(&data, from).unwrap();
                let frame = next(&mut guest);
                assert_eq!(frame[42..42 + len], data);
            }
        }
        assert_eq!(switch.all_drops(&port), vec![]);
    }
}

#[test]
fn datagrams_that_one_frame_stands_for_go_out_one_by_one_behind_a_priority_tag_too() {
    const FEATURES: u64 = feature::DEFAULT | feature::CSUM | feature::HOST_USO;
    let switch = start(1);
    let port = switch.add_port();
    let mut guest = switch.connect(&port, |builder| builder.features(FEATURES));
    let (far, to) = far_udp();
    let plain = udp(5000, to, &[7; 250]);
    let tagged = [&plain[..12], &[0x81, 0, 0xa0, 0], &plain[12..]].concat();
    for (frame, csum_start) in [(plain, 34), (tagged, 38)] {
        let header = Header {
            flags: Header::NEEDS_CSUM,
            gso_type: Header::GSO_UDP_L4,
            gso_size: 100,
            csum_start,
            csum_offset: 6,
            ..Header::default()
        };
        guest.send_with_header(&header, &frame, &Shape::one()).unwrap();
        for len in [100, 100, 50] {
            assert_eq!(far.recv(&mut [0; 2000]).unwrap(), len);
        }
    }
    assert_eq!(switch.all_drops(&port), vec![]);
}

#[test]
fn a_connection_carries_data_both_ways_and_ends_on_every_kind_of_ring() {
    for workers in [1, 3] {
        let switch = start(workers);
        let port = switch.add_port();
        for (nth, features) in RINGS.into_iter().chain([feature::DEFAULT & !feature::MRG_RXBUF]).enumerate() {
            let from = 40_000 + nth as u16;
            let mut guest = switch.connect(&port, |builder| builder.features(features));
            let (mut far, mut expected, to) = connect(&mut guest, from);
            guest.send(&tcp(from, to, |header| acknowledge(header, 1, expected), b"question")).unwrap();
            let mut buffer = [0; 8];
            far.read_exact(&mut buffer).unwrap();
            assert_eq!(&buffer, b"question");
            assert_eq!(segment(&next(&mut guest)).0.acknowledgment_number, ISS + 9);

            let answer: Vec<u8> = (0..20_000).map(|at| at as u8).collect();
            far.write_all(&answer).unwrap();
            drop(far);
            let (mut got, mut ended) = (Vec::new(), false);
            while !ended {
                let (header, data) = segment(&next(&mut guest));
                if header.sequence_number == expected {
                    got.extend_from_slice(&data);
                    ended = header.fin;
                    expected = expected.wrapping_add(data.len() as u32 + u32::from(ended));
                }
                guest.send(&tcp(from, to, |header| acknowledge(header, 9, expected), b"")).unwrap();
            }
            assert!(got == answer);
            let fin = |header: &mut TcpHeader| {
                acknowledge(header, 9, expected);
                header.fin = true;
            };
            guest.send(&tcp(from, to, fin, b"")).unwrap();
            while segment(&next(&mut guest)).0.acknowledgment_number != ISS + 10 {}
        }
        assert_eq!(switch.all_drops(&port), vec![]);
    }
}

#[test]
fn the_outside_reaches_a_guest_by_a_forward() {
    let switch = start(1);
    let (port, mut guest) = switch.guest(|builder| builder);
    let id = switch.network();
    let station = Station { port: port.id, mac: MacAddr(mac(1)) };
    switch.with(move |dataplane| dataplane.with_gateway(id, |_, gateway, _| gateway.lease(GUEST, station)));
    let bind = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let forward = Forward { udp: false, bind, target: SocketAddrV4::new(GUEST, 80) };
    let address = switch.with(move |dataplane| dataplane.add_forward(id, forward)).unwrap();
    let client = TcpStream::connect(address).unwrap();
    let SocketAddr::V4(from) = client.local_addr().unwrap() else { panic!() };
    let (syn, _) = segment(&next(&mut guest));
    assert!(syn.syn && !syn.ack);
    assert_eq!((syn.source_port, syn.destination_port), (from.port(), 80));
    assert!(switch.with(move |dataplane| dataplane.remove_forward(id, &forward)));
    assert!(TcpStream::connect(address).is_err());
    assert_eq!(switch.with(move |dataplane| dataplane.mappings(id)).len(), 1);
}

/// The far end of a connection finds it reset.
fn expect_reset(mut far: TcpStream) {
    let error = far.read(&mut [0; 1]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_port_or_network_that_goes_takes_its_connections_along() {
    for workers in [1, 3] {
        let switch = start(workers);
        let (port, mut guest): (Port, Guest) = switch.guest(|builder| builder);
        let (far, ..) = connect(&mut guest, 40_000);
        let id = switch.network();
        switch.remove(&port);
        expect_reset(far);
        assert!(eventually(|| switch.with(move |dataplane| dataplane.mappings(id)).is_empty()));
        let (events, lost) = switch.with(move |dataplane| dataplane.take_audit(id));
        assert_eq!((events.len(), lost), (2, 0));
        assert_eq!((events[0].port, events[0].inside.port(), events[1].closed.is_some()), (port.id, 40_000, true));
    }
}

#[test]
fn a_guest_that_has_no_room_keeps_nobody_awake_and_says_when_it_has_some() {
    const BUFFERS: usize = 8;
    for features in RINGS {
        let switch = start(1);
        // Checksums are left to this guest, so that what comes for it is cut by whoever knows how much room there is.
        let features = features | feature::CSUM | feature::GUEST_CSUM;
        let (_, mut guest) = switch.guest(|builder| builder.features(features).receive_buffers(BUFFERS));
        let (mut far, mut expected, to) = connect(&mut guest, 40_000);
        guest.set_repost(false);
        // More than the guest has buffers for, and less than it takes without an acknowledgment.
        far.write_all(&[7; 30_000]).unwrap();
        let mut got = 0;
        while got < 30_000 {
            while let Some(frame) = guest.receive(Duration::from_millis(50)).unwrap() {
                let Some(TransportSlice::Tcp(tcp)) = SlicedPacket::from_ethernet(&frame).unwrap().transport else { continue };
                let (header, data) = (tcp.to_header(), tcp.payload());
                if header.sequence_number == expected {
                    got += data.len();
                    expected = expected.wrapping_add(data.len() as u32);
                }
            }
            if got < 30_000 {
                switch.wait_asleep();
                let kicks = guest.to_guest().kicks();
                guest.post(BUFFERS, 2048, &Shape::one()).unwrap();
                assert_eq!(guest.to_guest().kicks(), kicks + 1, "it was asked to say so");
            }
            guest.send(&tcp(40_000, to, |header| acknowledge(header, 1, expected), b"")).unwrap();
        }
    }
}

#[test]
fn a_worker_sleeps_while_connections_are_idle() {
    let switch = start(1);
    let (_, mut guest) = switch.guest(|builder| builder);
    let (mut far, expected, to) = connect(&mut guest, 40_000);
    switch.wait_asleep();
    far.write_all(b"wake up").unwrap();
    let (header, data) = segment(&next(&mut guest));
    assert_eq!(data, b"wake up");
    let next = header.sequence_number.wrapping_add(7);
    assert_eq!(header.sequence_number, expected);
    guest.send(&tcp(40_000, to, |header| acknowledge(header, 1, next), b"")).unwrap();
    switch.wait_asleep();
}

/// The gateway's VLAN has a tag on a trunk, and the way out is the same: the engine's frames, which it writes into the guest's buffers itself, get it too.
#[test]
fn a_guest_on_a_trunk_goes_out_with_the_tag_of_the_default_vlan() {
    const TAG: [u8; 4] = [0x81, 0, 0, 1];
    let tagged = |frame: Vec<u8>| [&frame[..12], &TAG, &frame[12..]].concat();
    let next = |guest: &mut Guest| loop {
        let frame = guest.receive(SOON).unwrap().expect("a frame");
        assert_eq!(frame[12..16], TAG);
        if frame[16..18] == [8, 0] {
            return [&frame[..12], &frame[16..]].concat();
        }
    };
    let switch = start(1);
    let allowed = [VlanId::DEFAULT].into_iter().collect();
    let vlan = Some(PortRole::Trunk(Trunk { allowed, native: None }));
    let port = switch.add(PortSettings { vlan, ..switch.settings() });
    for (nth, features) in RINGS.into_iter().chain([feature::DEFAULT & !feature::MRG_RXBUF]).enumerate() {
        let mut guest = switch.connect(&port, |builder| builder.features(features));
        let (far, to) = far_udp();
        for len in [0, 1, 1000, 1472] {
            let data = vec![len as u8; len];
            guest.send(&tagged(udp(5000, to, &data))).unwrap();
            let mut buffer = [0; 2000];
            let (got, from) = far.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..got], data);
            far.send_to(&data, from).unwrap();
            assert_eq!(next(&mut guest)[42..42 + len], data);
        }
        let (listener, from) = (TcpListener::bind("127.0.0.1:0").unwrap(), 40_000 + nth as u16);
        let to = listener.local_addr().unwrap().port();
        guest.send(&tagged(tcp(from, to, |header| header.syn = true, b""))).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let (answer, _) = segment(&next(&mut guest));
        let mut expected = answer.sequence_number.wrapping_add(1);
        guest.send(&tagged(tcp(from, to, |header| acknowledge(header, 1, expected), b"question"))).unwrap();
        far.set_read_timeout(Some(SOON)).unwrap();
        let mut buffer = [0; 8];
        far.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"question");
        let sent: Vec<u8> = (0..20_000).map(|at| (at * 7) as u8).collect();
        far.write_all(&sent).unwrap();
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let (header, data) = segment(&next(&mut guest));
            if header.sequence_number == expected {
                got.extend_from_slice(&data);
                expected = expected.wrapping_add(data.len() as u32);
            }
            guest.send(&tagged(tcp(from, to, |header| acknowledge(header, 9, expected), b""))).unwrap();
        }
        assert!(got == sent, "it came garbled");
    }
    assert_eq!(switch.all_drops(&port), vec![]);
}
