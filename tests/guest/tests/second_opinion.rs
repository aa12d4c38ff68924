//! The guest against a back-end that others wrote.
//!
//! If the guest and weft agreed on the same mistake, tests between the two would not see it.

mod echo;

use std::time::Duration;

use echo::EchoServer;
use weft_guest::{Arrived, Guest, GuestAddr, GuestMemory, Header, Order, PreparedReceive, PreparedSend, Shape, feature};

const SECOND: Duration = Duration::from_secs(1);

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

fn connect(server: &EchoServer, features: u64) -> Guest {
    Guest::builder(server.path()).order(Order::VirtioUser).features(features).connect().unwrap()
}

#[test]
fn every_feature_combination_echoes_every_size() {
    for combination in 0..16_u64 {
        let mut features = 0;
        for (bit, feature) in
            [feature::VERSION_1, feature::MRG_RXBUF, feature::INDIRECT_DESC, feature::EVENT_IDX].into_iter().enumerate()
        {
            features |= if combination >> bit & 1 == 1 { feature } else { 0 };
        }
        let server = EchoServer::start();
        let mut guest = connect(&server, features);
        for len in [14, 60, 1514, 9000, 65_535] {
            guest.send(&frame(len)).unwrap();
            let received = guest.receive(SECOND).unwrap();
            assert_eq!(received.as_deref(), Some(&*frame(len)), "{len} bytes with features {features:#x}");
        }
        guest.flush().unwrap();
        server.stop(guest);
    }
}

#[test]
fn frames_may_be_cut_in_any_way() {
    let server = EchoServer::start();
    let mut guest = connect(&server, feature::DEFAULT);
    let every_byte = vec![1; 72];
    for shape in [Shape::header_apart(12), Shape::pieces(&[5, 4, 3]), Shape::pieces(&every_byte), Shape::pieces(&[13, 700])] {
        for shape in [shape.clone(), shape.indirect()] {
            guest.send_shaped(&frame(1000), &shape).unwrap();
            assert_eq!(guest.receive(SECOND).unwrap().as_deref(), Some(&*frame(1000)), "{shape:?}");
        }
    }
    for used in guest.flush().unwrap() {
        assert_eq!(used.len, 0);
    }
    server.stop(guest);
}

#[test]
fn a_large_frame_comes_in_as_many_buffers_as_it_fills() {
    let server = EchoServer::start();
    let mut guest = connect(&server, feature::DEFAULT);
    guest.send(&frame(5000)).unwrap();
    let received = guest.receive_whole(SECOND).unwrap().unwrap();
    assert_eq!(received.header.num_buffers, 3);
    assert_eq!(received.chains.iter().map(|used| used.len).collect::<Vec<_>>(), [2048, 2048, 12 + 5000 - 4096]);
    server.stop(guest);
}

#[test]
fn many_more_frames_than_descriptors_go_round() {
    let server = EchoServer::start();
    let mut guest = connect(&server, feature::DEFAULT);
    for round in 0..2000_u32 {
        let mut sent = frame(64);
        sent[..4].copy_from_slice(&round.to_le_bytes());
        guest.send(&sent).unwrap();
        assert_eq!(guest.receive(SECOND).unwrap(), Some(sent));
    }
    server.stop(guest);
}

#[test]
fn a_stopped_ring_gives_the_index_where_it_goes_on() {
    let server = EchoServer::start();
    let mut guest = connect(&server, feature::DEFAULT);
    for _ in 0..300 {
        guest.send(&frame(60)).unwrap();
        guest.receive(SECOND).unwrap().unwrap();
    }
    guest.flush().unwrap();
    assert_eq!(guest.session().vring_base(1).unwrap(), 300);
    assert_eq!(guest.session().vring_base(0).unwrap(), 300);
    server.stop(guest);
}

#[test]
fn prepared_rings_carry_frames_round_and_round() {
    for shape in [Shape::one(), Shape::pieces(&[12, 20, 20]), Shape::header_apart(12).indirect()] {
        let server = EchoServer::start();
        let mut guest = Guest::builder(server.path()).order(Order::VirtioUser).receive_buffers(0).connect().unwrap();
        let size = guest.to_guest().size();
        let places = guest.slots(0, size);
        let mut receiver = PreparedReceive::new(&mut guest, 0, 2048, &places).unwrap();
        let pieces = if shape.is_indirect() { 1 } else { shape.cut(72).len() };
        let places = guest.slots(1, PreparedSend::chains(size, pieces.try_into().unwrap()));
        let mut sender = PreparedSend::new(&mut guest, 0, 60, &shape, &places);
        for chain in 0..u16::try_from(places.len()).unwrap() {
            sender.write(&guest, chain, &Header::default(), &frame(60));
        }
        let (mut sent, mut received) = (0_u32, 0_u32);
        let deadline = std::time::Instant::now() + 10 * SECOND;
        while received < 3000 {
            assert!(std::time::Instant::now() < deadline, "{shape:?}: {sent} sent, {received} came back");
            if sent - received < 32 {
                let number = |memory: &GuestMemory, frame: GuestAddr| {
                    memory.write(frame, &sent.to_le_bytes());
                    sent += 1;
                };
                sender.send_each(&mut guest, 32, number).unwrap();
            }
            let check = |memory: &GuestMemory, arrived: Arrived| {
                let mut expected = frame(60);
                expected[..4].copy_from_slice(&received.to_le_bytes());
                assert_eq!(memory.bytes(arrived.place, arrived.len as usize)[12..], expected, "{shape:?}");
                received += 1;
            };
            receiver.receive_each(&mut guest, check).unwrap();
        }
        server.stop(guest);
    }
}

#[test]
fn prepared_rings_move_frames_without_a_look_at_them() {
    let server = EchoServer::start();
    let mut guest = Guest::builder(server.path()).order(Order::VirtioUser).receive_buffers(0).connect().unwrap();
    let places = guest.slots(0, 256);
    let mut receiver = PreparedReceive::new(&mut guest, 0, 2048, &places).unwrap();
    let places = guest.slots(1, 256);
    let mut sender = PreparedSend::new(&mut guest, 0, 60, &Shape::one(), &places);
    let (mut sent, mut received) = (0_u32, 0_u32);
    let deadline = std::time::Instant::now() + 10 * SECOND;
    while received < 3000 {
        assert!(std::time::Instant::now() < deadline, "{sent} sent, {received} came back");
        if sent - received < 64 {
            sent += u32::from(sender.send(&mut guest, 32).unwrap());
        }
        received += u32::from(receiver.receive(&mut guest).unwrap());
    }
    server.stop(guest);
}

#[test]
fn a_session_that_breaks_the_protocol_is_closed() {
    let server = EchoServer::start();
    let mut guest = Guest::builder(server.path()).build().unwrap();
    guest.open().unwrap();
    guest.session().send_bytes(&[0xff; 12], &[]).unwrap();
    assert!(guest.session().is_closed_within(5 * SECOND).unwrap());
    server.stop(guest);
}

#[test]
fn a_feature_that_is_not_offered_is_named() {
    let server = EchoServer::start();
    let mut guest = Guest::builder(server.path()).features(feature::RING_PACKED | feature::IN_ORDER).build().unwrap();
    guest.open().unwrap();
    let error = guest.negotiate().unwrap_err().to_string();
    assert_eq!(error, "the back-end does not offer RING_PACKED, IN_ORDER (features 0xc00000000)");
    server.stop(guest);
}
