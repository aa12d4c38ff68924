//! What is bounded.

use std::io::Write;
use std::net::TcpListener;

use smoltcp::socket::tcp::State;
use smoltcp::wire::IpEndpoint;
use weft_switch::DropReason;
use weft_switch::gateway::Refusal;

use super::super::{Disposition, EngineSettings};
use super::world::{GATEWAY, GuestKind, World, far_udp, pattern, settings};

/// Descriptors of this process that are sockets of the engine's poll: all those that are registered.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_full_table_says_so_and_is_free_again_afterwards_rfc_5508_req_8() {
    const FULL: Disposition = Disposition::Refuse(DropReason::ShareExceeded, Refusal::Prohibited);
    let mut world = World::with(GuestKind::default(), EngineSettings { connections: 20, mappings: 6, ..settings(1500) });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let handles: Vec<_> = (0..11).map(|_| world.connect(port)).collect();
    world.until("a refusal", |world| !world.refused.is_empty());
    assert_eq!(world.refused[0], FULL);
    world.until("the others", |world| {
        handles.iter().filter(|handle| world.tcp(**handle).state() == State::Established).count() == 10
    });
    handles.iter().for_each(|handle| world.tcp(*handle).abort());
    world.until("room", |world| world.engine.mappings().count() == 0);
    let handle = world.connect(port);
    world.until("a connection", |world| world.tcp(handle).state() == State::Established);

    world.refused.clear();
    let (far, port) = far_udp("127.0.0.1");
    for nth in 0..4 {
        let socket = world.udp_socket(5000 + nth);
        let to = IpEndpoint::new(GATEWAY.into(), port);
        world.udp(socket).send_slice(&[nth as u8], to).unwrap();
    }
    world.until("a refusal", |world| !world.refused.is_empty());
    assert_eq!(world.refused, [FULL]);
    let mut buffer = [0; 1];
    let mut arrived = 0;
    world.until("the others", |_| {
        arrived += usize::from(far.recv(&mut buffer).is_ok());
        arrived == 3
    });
}

#[test]
fn a_thousand_connections_come_and_go_and_leave_nothing_behind() {
    let mut world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut most = 0;
    for round in 0..20 {
        let handles: Vec<_> = (0..50).map(|_| world.connect(port)).collect();
        let mut far = Vec::new();
        world.until("connections", |world| {
            far.extend(listener.accept().ok());
            far.len() == 50 && handles.iter().all(|handle| world.tcp(*handle).state() == State::Established)
        });
        most = most.max(descriptors());
        if round % 2 == 0 {
            drop(far);
            world.until("their ends", |world| handles.iter().all(|handle| world.tcp(*handle).state() == State::CloseWait));
            handles.iter().for_each(|handle| world.tcp(*handle).close());
        } else {
            handles.iter().for_each(|handle| world.tcp(*handle).close());
            world.until("half of it", |world| handles.iter().all(|handle| world.tcp(*handle).state() == State::FinWait2));
            drop(far);
        }
        world.until("nothing is left", |world| world.engine.mappings().count() == 0);
        handles.into_iter().for_each(|handle| drop(world.sockets.remove(handle)));
    }
    let (events, lost) = world.engine.audit();
    assert_eq!(events.len() as u64 + lost, 2000);
    assert!(world.engine.streams.is_idle(), "{:?}", world.engine.streams);
}

#[test]
fn what_comes_for_guests_all_at_once_takes_several_rounds() {
    const ROUND: usize = 100_000;
    // A frame is at most 64 KiB, and one is begun while the round is not full.
    const MOST: usize = ROUND + (64 << 10);
    const LEN: usize = 80_000;
    let kind = GuestKind { ring: 4096, ..GuestKind::default() };
    let mut world = World::with(kind, EngineSettings { round_bytes: ROUND, ..settings(1500) });
    let mut connections: Vec<_> = (0..8).map(|_| world.connected()).collect();
    world.most_at_once = 0;
    let data = pattern(LEN);
    for (_, far) in &mut connections {
        far.write_all(&data).unwrap();
    }
    for (handle, _) in &connections {
        world.until("the data", |world| world.tcp(*handle).recv_queue() == LEN);
    }
    assert!((ROUND..=MOST).contains(&world.most_at_once), "{} bytes in one round", world.most_at_once);

    let (far, port) = far_udp("127.0.0.1");
    let sockets: Vec<_> = (0..4).map(|nth| world.udp_socket(5000 + 2 * nth)).collect();
    let mut outside = Vec::new();
    for socket in &sockets {
        world.udp(*socket).send_slice(b"here I am", IpEndpoint::new(GATEWAY.into(), port)).unwrap();
        world.until("the first word", |_| {
            far.recv_from(&mut [0; 16]).is_ok_and(|(_, from)| {
                outside.push(from);
                true
            })
        });
    }
    world.most_at_once = 0;
    for to in outside {
        (0..50).for_each(|_| assert_eq!(far.send_to(&data[..1000], to).unwrap(), 1000));
    }
    for socket in sockets {
        (0..50).for_each(|_| assert_eq!(world.receive(socket).1, data[..1000]));
    }
    assert!((ROUND..=MOST).contains(&world.most_at_once), "{} bytes in one round", world.most_at_once);
}

#[test]
fn connections_of_a_guest_without_room_wait_for_the_first_of_them() {
    const COUNT: usize = 200;
    let mut world = World::with(GuestKind { ring: 64, ..GuestKind::default() }, settings(1500));
    let mut connections: Vec<_> = (0..COUNT).map(|_| world.connected()).collect();
    world.paused = true;
    let data = pattern(2_000);
    for (_, far) in &mut connections {
        far.write_all(&data).unwrap();
    }
    world.until("a full ring", |world| world.ring.full > 0);
    // Each finds out once.
    (0..10).for_each(|_| world.round());
    let before = world.ring.full;
    const ROUNDS: usize = 100;
    (0..ROUNDS).for_each(|_| world.round());
    let asked = world.ring.full - before;
    assert!((1..=2 * ROUNDS).contains(&asked), "asked {asked} times in {ROUNDS} rounds");
    world.paused = false;
    for (handle, _) in &connections {
        world.until("the data", |world| world.tcp(*handle).recv_queue() == data.len());
    }
}
