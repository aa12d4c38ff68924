//! Forwards.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use etherparse::{PacketBuilder, TcpHeader};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use smoltcp::socket::tcp::State;
use weft_switch::gateway::Packet;
use weft_switch::{Ipv4Packet, MacAddr, PortId, Station};

use super::super::{EngineSettings, Forward, ForwardError};
use super::world::{GATEWAY, GUEST, PORT, World, endpoint, far_udp, settings};

fn forward(udp: bool, bind: SocketAddrV4, port: u16) -> Forward {
    Forward { udp, bind, target: SocketAddrV4::new(GUEST, port) }
}

fn anywhere() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)
}

fn client(address: SocketAddrV4) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_nonblocking(true).unwrap();
    client
}

#[test]
fn a_client_reaches_the_guest_by_a_port_of_the_host() {
    let mut world = World::new();
    let guest = world.listen(80);
    let now = world.now();
    let address = world.engine.add_forward(now, forward(false, anywhere(), 80)).unwrap();
    let mut client = client(address);
    world.until("a connection", |world| world.tcp(guest).state() == State::Established);
    let port = client.local_addr().unwrap().port();
    // A client on the host itself can only be seen under the gateway's address.
    assert_eq!(world.tcp(guest).remote_endpoint().map(endpoint), Some(SocketAddrV4::new(GATEWAY, port)));
    client.write_all(b"question").unwrap();
    world.until("the question", |world| world.tcp(guest).can_recv());
    world.tcp(guest).recv(|bytes| (bytes.len(), assert_eq!(bytes, b"question"))).unwrap();
    world.tcp(guest).send_slice(b"answer").unwrap();
    let mut buffer = [0; 6];
    world.until("the answer", |_| client.read(&mut buffer).is_ok());
    assert_eq!(&buffer, b"answer");
    let mapping = world.engine.mappings().next().unwrap();
    assert!(mapping.forwarded);
    assert_eq!((mapping.from_guest, mapping.to_guest, mapping.outside), (6, 8, Some(address.port())));
}

#[test]
fn a_guest_may_answer_whoever_asks_from_the_hosts_loopback_and_nobody_else_there() {
    let mut world = World::new();
    let target = SocketAddrV4::new(GUEST, 7);
    let now = world.now();
    let address = world.engine.add_forward(now, forward(true, anywhere(), 7)).unwrap();
    let caller = UdpSocket::bind(anywhere()).unwrap();
    let port = caller.local_addr().unwrap().port();
    let is_answer_at = |world: &World, now, from: SocketAddrV4, to: u16| {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4(from.ip().octets(), GATEWAY.octets(), 64);
        builder.udp(from.port(), to).write(&mut bytes, b"").unwrap();
        let ip = Ipv4Packet::parse(&bytes).unwrap();
        let station = Station { port: PORT, mac: MacAddr([2, 0, 0, 0, 0, 10]) };
        world.engine.is_answer(now, &Packet { station, ip, checksum_pending: false })
    };
    let is_answer = |world: &World, from, to| is_answer_at(world, world.now(), from, to);
    assert!(!is_answer(&world, target, port));
    caller.send_to(b"question", address).unwrap();
    world.until("the question", |world| is_answer(world, target, port));
    assert!(!is_answer(&world, target, port ^ 1));
    assert!(!is_answer(&world, SocketAddrV4::new(GUEST, 8), port));
    let later = world.now().after(Duration::from_secs(301));
    assert!(!is_answer_at(&world, later, target, port));
}

#[test]
fn the_answer_goes_to_the_address_of_the_loopback_from_which_the_question_came() {
    let mut world = World::new();
    let guest = world.udp_socket(7);
    let now = world.now();
    let address = world.engine.add_forward(now, forward(true, anywhere(), 7)).unwrap();
    let (caller, port) = far_udp("127.0.0.2");
    caller.send_to(b"question", address).unwrap();
    let (from, _) = world.receive(guest);
    assert_eq!(from, SocketAddrV4::new(GATEWAY, port));
    world.udp(guest).send_slice(b"answer", from).unwrap();
    let mut buffer = [0; 10];
    world.until("the answer", |_| caller.recv(&mut buffer).is_ok_and(|len| &buffer[..len] == b"answer"));
}

#[test]
fn a_port_on_which_the_guest_does_not_listen_resets_the_client() {
    let mut world = World::new();
    let now = world.now();
    let address = world.engine.add_forward(now, forward(false, anywhere(), 81)).unwrap();
    let mut client = client(address);
    let mut buffer = [0; 1];
    world.until("a reset", |_| client.read(&mut buffer).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    assert_eq!(world.engine.mappings().count(), 0);
}

#[test]
fn a_guest_reaches_a_guest_by_the_forwarded_address_rfc_5382_req_8() {
    let mut world = World::new();
    let listening = world.listen(80);
    let now = world.now();
    let address = world.engine.add_forward(now, forward(false, anywhere(), 80)).unwrap();
    let caller = world.connect(address.port());
    world.until("a connection", |world| {
        [caller, listening].into_iter().all(|handle| world.tcp(handle).state() == State::Established)
    });
    // It comes from outside, and not from the caller's own address (RFC 4787, REQ-9).
    assert_eq!(world.tcp(listening).remote_endpoint().map(|end| *endpoint(end).ip()), Some(GATEWAY));
    world.tcp(caller).send_slice(b"hello").unwrap();
    world.until("data", |world| world.tcp(listening).can_recv());
}

#[test]
fn a_forward_that_is_taken_back_leaves_connections_alone() {
    let mut world = World::new();
    let guest = world.listen(80);
    let now = world.now();
    let rule = forward(false, anywhere(), 80);
    let address = world.engine.add_forward(now, rule).unwrap();
    let mut client = client(address);
    world.until("a connection", |world| world.tcp(guest).state() == State::Established);
    assert!(world.engine.remove_forward(now, &rule));
    assert!(!world.engine.remove_forward(now, &rule));
    assert!(TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
    world.tcp(guest).send_slice(b"still here").unwrap();
    let mut buffer = [0; 10];
    world.until("data", |_| client.read(&mut buffer).is_ok());
}

#[test]
fn datagrams_reach_the_guest_by_a_port_of_the_host_and_are_answered_from_there() {
    let mut world = World::new();
    let guest = world.udp_socket(53);
    let now = world.now();
    let rule = forward(true, anywhere(), 53);
    let address = world.engine.add_forward(now, rule).unwrap();
    let (client, port) = far_udp("127.0.0.1");
    client.send_to(b"question", address).unwrap();
    let (from, data) = world.receive(guest);
    assert_eq!((from, data.as_slice()), (SocketAddrV4::new(GATEWAY, port), b"question".as_slice()));
    let to = smoltcp::wire::IpEndpoint::new(GATEWAY.into(), port);
    world.udp(guest).send_slice(b"answer", to).unwrap();
    let mut buffer = [0; 6];
    let mut seen = None;
    world.until("an answer", |_| {
        seen = client.recv_from(&mut buffer).ok().map(|(_, from)| from);
        seen.is_some()
    });
    assert_eq!(seen, Some(address.into()));
    assert!(world.engine.remove_forward(now, &rule));
    assert_eq!(world.engine.mappings().count(), 0);
    UdpSocket::bind(address).unwrap();
}

#[test]
fn a_way_in_that_can_not_be_had_says_why() {
    let mut world = World::new();
    let now = world.now();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let std::net::SocketAddr::V4(address) = taken.local_addr().unwrap() else { panic!() };
    assert_eq!(world.engine.add_forward(now, forward(false, address, 80)), Err(ForwardError::Taken(address)));
    let foreign = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 77), 0);
    assert_eq!(world.engine.add_forward(now, forward(false, foreign, 80)), Err(ForwardError::NotLocal(foreign)));
    assert_eq!(world.engine.add_forward(now, forward(true, foreign, 80)), Err(ForwardError::NotLocal(foreign)));
    world.engine.add_forward(now, forward(true, anywhere(), 80)).unwrap();
    let again = world.engine.add_forward(now, forward(true, anywhere(), 80));
    assert_eq!(again, Err(ForwardError::TargetTaken(SocketAddrV4::new(GUEST, 80))));
}

#[test]
fn whose_way_to_the_host_is_closed_keeps_none_of_it() {
    let mut world = World::new();
    let (handle, mut far) = world.connected();
    let (from, to) = (world.tcp(handle).local_endpoint().unwrap().port, far.local_addr().unwrap().port());
    world.engine.reconfigure(EngineSettings { host_access: false, ..settings(1500) });
    // The engine goes to work with the next round that somebody asks for.
    world.until("the end of the connection", |world| world.tcp(handle).state() == State::Closed);
    let mut buffer = [0; 1];
    world.until("the far end to hear of it", |_| {
        far.read(&mut buffer).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    });
    // The same ends once more, as if they were remembered.
    let listener = TcpListener::bind(("127.0.0.1", to)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let again = world.connect_from(from, to);
    world.until("a refusal", |world| world.tcp(again).state() == State::Closed);
    assert!(listener.accept().is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    let socket = world.udp_socket(5000);
    let (far, port) = far_udp("127.0.0.1");
    world.udp(socket).send_slice(b"hello", (GATEWAY, port)).unwrap();
    let refused = world.refused.len();
    world.until("a refusal", |world| world.refused.len() > refused);
    far.set_nonblocking(true).unwrap();
    assert!(far.recv(&mut buffer).is_err());
}

#[test]
fn what_would_begin_a_connection_is_no_answer() {
    let mut world = World::new();
    let guest = world.listen(80);
    let now = world.now();
    let address = world.engine.add_forward(now, forward(false, anywhere(), 80)).unwrap();
    let client = client(address);
    world.until("a connection", |world| world.tcp(guest).state() == State::Established);
    let is_answer = |world: &World, change: fn(&mut TcpHeader)| {
        let mut header = TcpHeader::new(80, client.local_addr().unwrap().port(), 1, 1000);
        change(&mut header);
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(GUEST.octets(), GATEWAY.octets(), 64).tcp_header(header).write(&mut bytes, b"").unwrap();
        let ip = Ipv4Packet::parse(&bytes).unwrap();
        let station = Station { port: PORT, mac: MacAddr([2, 0, 0, 0, 0, 10]) };
        world.engine.is_answer(world.now(), &Packet { station, ip, checksum_pending: false })
    };
    assert!(is_answer(&world, |header| header.ack = true));
    assert!(is_answer(&world, |header| (header.syn, header.ack) = (true, true)));
    assert!(!is_answer(&world, |header| header.syn = true));
}

#[test]
fn what_is_forwarded_goes_to_whose_address_it_is_and_not_to_who_used_it() {
    let mut world = World::new();
    let now = world.now();
    let address = world.engine.add_forward(now, forward(true, anywhere(), 7)).unwrap();
    let caller = UdpSocket::bind(anywhere()).unwrap();
    // Somebody who has used the address before, behind another port.
    let other = Station { port: PortId(PORT.0 + 1), mac: MacAddr([2, 0, 0, 0, 0, 0x66]) };
    world.give_from(other, GUEST, 17, Ipv4Addr::new(192, 0, 2, 1), &[0, 7, 0, 9, 0, 8, 0, 0]);
    let frames = world.ring.count;
    caller.send_to(b"question", address).unwrap();
    world.until("the question at its owner", |world| world.ring.count > frames);
}

#[test]
fn clients_of_a_guest_that_is_not_there_keep_nobody_from_another() {
    let mut world = World::new();
    let guest = world.listen(80);
    let now = world.now();
    let nobody = Forward { target: SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 99), 80), ..forward(false, anywhere(), 80) };
    let dead = world.engine.add_forward(now, nobody).unwrap();
    let alive = world.engine.add_forward(now, forward(false, anywhere(), 80)).unwrap();
    // More than may wait for all guests, and as many as the kernel keeps besides.
    let mut callers = Vec::new();
    for _ in 0..40 {
        for _ in 0..10 {
            let caller = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
            assert_eq!(connect(&caller, &dead), Err(Errno::INPROGRESS));
            callers.push(caller);
        }
        world.round();
    }
    let _client = client(alive);
    // None of them has been given up meanwhile.
    let patience = world.now().after(Duration::from_secs(2));
    world.until("a connection", |world| world.tcp(guest).state() == State::Established || world.now() > patience);
    assert_eq!(world.tcp(guest).state(), State::Established);
    drop(callers);
}
