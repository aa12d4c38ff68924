//! TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};

use smoltcp::socket::tcp::State;
use weft_switch::OffloadFeatures;
use weft_switch::nat::tcp::CloseReason;

use super::world::{GATEWAY, GUEST, GuestKind, PORT, World, pattern, settings};

/// Reads what there is.
fn read(far: &mut impl Read, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 65_536];
    loop {
        match far.read(&mut buffer) {
            Ok(0) => return true,
            Ok(len) => into.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Writes what fits.
fn write(far: &mut impl Write, data: &mut &[u8]) {
    while !data.is_empty() {
        match far.write(data) {
            Ok(len) => *data = &data[len..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Moves `len` bytes in each direction at once, then ends both.
fn exchange(world: &mut World, len: usize) {
    let (handle, mut far) = world.connected();
    let data = pattern(len);
    let (mut to_far, mut to_guest) = (data.as_slice(), data.as_slice());
    let (mut at_far, mut at_guest) = (Vec::new(), Vec::new());
    world.until("all bytes", |world| {
        let socket = world.tcp(handle);
        if socket.can_send() && !to_far.is_empty() {
            let sent = socket.send_slice(to_far).unwrap();
            to_far = &to_far[sent..];
        }
        while socket.can_recv() {
            socket.recv(|bytes| (at_guest.extend_from_slice(bytes), bytes.len()).into_len()).unwrap();
        }
        write(&mut far, &mut to_guest);
        read(&mut far, &mut at_far);
        at_far.len() == len && at_guest.len() == len
    });
    assert!(at_far == data && at_guest == data);
    world.tcp(handle).close();
    world.until("the guest's end", |_| read(&mut far, &mut at_far));
    drop(far);
    world.until("the far end's", |world| world.engine.mappings().count() == 0);
    assert_eq!(at_far.len(), len);
}

trait IntoLen {
    fn into_len(self) -> (usize, ());
}

impl IntoLen for ((), usize) {
    fn into_len(self) -> (usize, ()) {
        (self.1, ())
    }
}

#[test]
fn bytes_go_both_ways_at_once_and_arrive_as_they_were() {
    let mut world = World::new();
    exchange(&mut world, 3_000_000);
    assert!(world.ring.large > 10, "{} large frames of {}", world.ring.large, world.ring.count);
}

#[test]
fn a_guest_that_agreed_to_nothing_gets_finished_frames() {
    let none = GuestKind { offloads: OffloadFeatures::default(), ..GuestKind::default() };
    let mut world = World::with(none, settings(1500));
    exchange(&mut world, 1_000_000);
    assert_eq!(world.ring.large, 0);
}

#[test]
fn a_guest_that_completes_checksums_but_does_not_cut_gets_frames_of_its_mtu() {
    let offloads = OffloadFeatures { checksum: true, ..OffloadFeatures::default() };
    let mut world = World::with(GuestKind { offloads, ..GuestKind::default() }, settings(1500));
    exchange(&mut world, 1_000_000);
    assert_eq!(world.ring.large, 0);
}

#[test]
fn small_buffers_and_a_small_ring_only_make_it_slower() {
    let mut world = World::with(GuestKind { ring: 4, buffer: 101, ..GuestKind::default() }, settings(1500));
    exchange(&mut world, 500_000);
}

#[test]
fn a_large_mtu_is_used() {
    let mut world = World::with(GuestKind { mtu: 9000, ..GuestKind::default() }, settings(9000));
    exchange(&mut world, 2_000_000);
}

#[test]
fn a_kernel_that_can_not_peek_from_anywhere_is_asked_for_a_little_more() {
    let mut world = World::new();
    world.engine.streams.can_peek_at = false;
    exchange(&mut world, 1_000_000);
}

#[test]
fn a_refused_connection_is_refused() {
    let mut world = World::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let handle = world.connect(port);
    world.until("a RST", |world| world.tcp(handle).state() == State::Closed);
    let (events, _) = world.engine.audit();
    assert_eq!(events.len(), 2);
    assert_eq!((events[0].port, events[0].remote.port(), *events[0].inside.ip()), (PORT, port, GUEST));
    assert_eq!(events[1].closed.unwrap().reason, CloseReason::Refused);
    assert_eq!(world.engine.mappings().count(), 0);
}

#[test]
fn a_reset_passes_both_ways() {
    let mut world = World::new();
    let (handle, mut far) = world.connected();
    world.tcp(handle).abort();
    let mut buffer = [0; 10];
    world.until("a reset at the far end", |_| {
        far.read(&mut buffer).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    });
    let (handle, far) = world.connected();
    rustix::net::sockopt::set_socket_linger(&far, Some(std::time::Duration::ZERO)).unwrap();
    drop(far);
    world.until("a reset at the guest", |world| world.tcp(handle).state() == State::Closed);
    let reasons: Vec<_> = world.engine.audit().0.iter().filter_map(|event| event.closed).map(|closed| closed.reason).collect();
    assert_eq!(reasons, [CloseReason::GuestReset, CloseReason::PeerReset]);
}

#[test]
fn each_side_may_end_before_the_other() {
    let mut world = World::new();
    let (handle, mut far) = world.connected();
    far.shutdown(Shutdown::Write).unwrap();
    world.until("the far end's end", |world| world.tcp(handle).state() == State::CloseWait);
    let data = pattern(100_000);
    let mut at_far = Vec::new();
    assert_eq!(world.tcp(handle).send_slice(&data).unwrap(), data.len());
    world.until("data after that", |_| {
        read(&mut far, &mut at_far);
        at_far.len() == data.len()
    });
    world.tcp(handle).close();
    world.until("nothing is left", |world| world.engine.mappings().count() == 0);
    assert!(at_far == data);

    let (handle, mut far) = world.connected();
    world.tcp(handle).close();
    world.until("the guest's end", |_| read(&mut far, &mut Vec::new()));
    let mut left = data.as_slice();
    let mut at_guest = Vec::new();
    world.until("data after that", |world| {
        write(&mut far, &mut left);
        let socket = world.tcp(handle);
        if socket.can_recv() {
            socket.recv(|bytes| (at_guest.extend_from_slice(bytes), bytes.len()).into_len()).unwrap();
        }
        at_guest.len() == data.len()
    });
    drop(far);
    world.until("nothing is left", |world| world.engine.mappings().count() == 0);
}

#[test]
fn a_far_end_that_does_not_read_stops_the_guest_and_goes_on_when_it_does() {
    let mut world = World::new();
    let (handle, mut far) = world.connected();
    let data = pattern(20_000_000);
    let mut left = data.as_slice();
    let mut quiet = 0;
    world.until("the guest is stopped", |world| {
        let sent = if world.tcp(handle).can_send() { world.tcp(handle).send_slice(left).unwrap() } else { 0 };
        left = &left[sent..];
        quiet = if sent == 0 { quiet + 1 } else { 0 };
        quiet > 1000
    });
    assert!(left.len() > 5_000_000, "the kernel's buffers are bounded: {} bytes left", left.len());
    let mut at_far = Vec::new();
    world.until("the rest", |world| {
        read(&mut far, &mut at_far);
        let sent = if world.tcp(handle).can_send() { world.tcp(handle).send_slice(left).unwrap() } else { 0 };
        left = &left[sent..];
        at_far.len() == data.len()
    });
    assert!(at_far == data);
}

#[test]
fn a_guest_that_does_not_read_stops_the_far_end_and_nobody_else() {
    let mut world = World::new();
    let (lazy, mut far) = world.connected();
    let data = pattern(50_000_000);
    let mut left = data.as_slice();
    let mut before = usize::MAX;
    let mut quiet = 0;
    world.until("the far end is stopped", |_| {
        write(&mut far, &mut left);
        quiet = if left.len() == before { quiet + 1 } else { 0 };
        before = left.len();
        quiet > 1000
    });
    assert!(left.len() > 1_000_000, "the kernel's buffers are bounded: {} bytes left", left.len());
    exchange_beside(&mut world);
    // It reads at last.
    let mut at_guest = 0;
    world.until("the rest", |world| {
        write(&mut far, &mut left);
        let socket = world.tcp(lazy);
        while socket.can_recv() {
            socket.recv(|bytes| (at_guest += bytes.len(), bytes.len()).into_len()).unwrap();
        }
        at_guest == data.len()
    });
}

/// As `exchange`, while other connections are open.
fn exchange_beside(world: &mut World) {
    let (handle, mut far) = world.connected();
    let data = pattern(300_000);
    let mut left = data.as_slice();
    let mut at_guest = Vec::new();
    world.until("others get on", |world| {
        write(&mut far, &mut left);
        let socket = world.tcp(handle);
        while socket.can_recv() {
            socket.recv(|bytes| (at_guest.extend_from_slice(bytes), bytes.len()).into_len()).unwrap();
        }
        at_guest.len() == data.len()
    });
    assert!(at_guest == data);
}

#[test]
fn connections_of_one_inside_endpoint_have_one_outside_port_rfc_5382_req_1() {
    let mut world = World::new();
    let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let mut seen = Vec::new();
    for listener in &listeners {
        listener.set_nonblocking(true).unwrap();
        world.connect_from(45_671, listener.local_addr().unwrap().port());
        world.until("a connection", |_| listener.accept().map(|(_, from)| seen.push(from.port())).is_ok());
    }
    assert_eq!(seen, [seen[0]; 3]);
    assert_eq!(seen[0] % 2, 1, "its parity is kept");
    assert!(world.engine.mappings().all(|mapping| mapping.outside == Some(seen[0])));
}

#[test]
fn no_two_inside_endpoints_have_one_outside_port_rfc_5382_req_7() {
    let mut world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Somebody on this host has the port that would be kept.
    let taken = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let held = TcpListener::bind(("0.0.0.0", taken)).unwrap();
    world.connect_from(taken, listener.local_addr().unwrap().port());
    listener.set_nonblocking(true).unwrap();
    let mut seen = None;
    world.until("a connection", |_| {
        seen = listener.accept().ok().map(|(_, from)| from.port());
        seen.is_some()
    });
    assert_ne!(seen, Some(taken));
    assert_eq!(seen.unwrap() % 2, taken % 2);
    drop(held);
}

#[test]
fn a_connection_to_the_port_that_it_comes_from_does_not_meet_itself() {
    let mut world = World::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let handle = world.connect_from(free, free);
    world.until("a refusal", |world| world.tcp(handle).state() == State::Closed);
    let (events, _) = world.engine.audit();
    assert_eq!(events[1].closed.unwrap().reason, CloseReason::Refused);
}

#[test]
fn a_port_that_is_gone_takes_its_connections_along() {
    let mut world = World::new();
    let (handle, mut far) = world.connected();
    let now = world.now();
    world.engine.forget(now, Some(PORT));
    world.until("a reset at the guest", |world| world.tcp(handle).state() == State::Closed);
    let mut buffer = [0; 10];
    world.until("a reset at the far end", |_| {
        far.read(&mut buffer).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    });
    assert_eq!(world.engine.mappings().count(), 0);
}

#[test]
fn a_connection_that_nobody_knows_is_reset_towards_the_guest() {
    let mut world = World::new();
    let (handle, _far) = world.connected();
    let settings = settings(1500);
    let registry = mio::Poll::new().unwrap();
    // As after a restart.
    world.engine = super::super::Engine::new(settings, registry.registry().try_clone().unwrap());
    world.tcp(handle).send_slice(b"still there?").unwrap();
    world.until("a reset", |world| world.tcp(handle).state() == State::Closed);
}

#[test]
fn urgent_data_stay_in_the_stream() {
    let mut world = World::new();
    let (handle, mut far) = world.connected();
    far.write_all(b"before").unwrap();
    rustix::net::send(&far, b"!", rustix::net::SendFlags::OOB).unwrap();
    far.write_all(b"after").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    let mut at_guest = Vec::new();
    world.until("all of it", |world| {
        let socket = world.tcp(handle);
        if socket.can_recv() {
            socket.recv(|bytes| (at_guest.extend_from_slice(bytes), bytes.len()).into_len()).unwrap();
        }
        socket.state() == State::CloseWait && !socket.can_recv()
    });
    assert_eq!(at_guest, b"before!after");
}

#[test]
fn a_guest_can_use_a_port_again_at_once() {
    let mut world = World::new();
    for _ in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let handle = world.connect_from(46_000, listener.local_addr().unwrap().port());
        let (far, from) = {
            listener.set_nonblocking(true).unwrap();
            let mut far = None;
            world.until("a connection", |_| {
                far = listener.accept().ok();
                far.is_some()
            });
            far.unwrap()
        };
        assert_eq!(from.ip(), std::net::Ipv4Addr::LOCALHOST);
        // The far end closes first, so the guest is in no TIME-WAIT.
        drop(far);
        world.until("its end", |world| world.tcp(handle).state() == State::CloseWait);
        world.tcp(handle).close();
        world.until("the other end", |world| world.tcp(handle).state() == State::Closed);
        world.sockets.remove(handle);
        assert!(world.engine.mappings().all(|mapping| *mapping.remote.ip() == GATEWAY));
    }
}
