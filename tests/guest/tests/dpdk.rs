//! The guest against DPDK's vhost library: a back-end that others wrote, for what the echo of the other tests lacks.
//! These are packed rings, `IN_ORDER` and several queue pairs.
//!
//! testpmd joins two vhost ports and passes every frame from one to the other as it is. To run these:
//! `tests/e2e/setup && cargo test --release -p weft-guest --test dpdk -- --ignored --test-threads=1`.

mod wire;

use std::time::{Duration, Instant};

use weft_guest::{Arrived, Guest, GuestAddr, GuestMemory, Header, Order, PreparedReceive, PreparedSend, Shape, feature};
use wire::Wire;

const SOON: Duration = Duration::from_secs(5);
/// Frames of a burst: more than DPDK looks at in one go, and no more than there are receive chains of three descriptors.
const BURST: usize = 40;
/// A ring that every script goes round several times.
const RING_SIZE: u16 = 128;

fn connect(wire: &Wire, order: Order, features: u64, receive_shape: &Shape, queue_pairs: u16) -> [Guest; 2] {
    [0, 1].map(|port| {
        let builder = Guest::builder(wire.socket(port)).order(order).features(features).ring_size(RING_SIZE);
        let builder = builder.receive_shape(receive_shape.clone()).queue_pairs(queue_pairs);
        builder.accepts_no_num_buffers().connect().unwrap()
    })
}

fn frame(len: usize, number: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at + number) % 251).unwrap()).collect()
}

/// Asserts that the next frames to come are those of `lengths`, numbered from 0.
#[track_caller]
fn expect_frames(to: &mut Guest, lengths: &[usize], what: &str) {
    for (number, &len) in lengths.iter().enumerate() {
        let received = to.receive(SOON).unwrap().unwrap_or_else(|| panic!("{what}: frame {number} of {len} bytes did not come"));
        let difference = received.iter().zip(&frame(len, number)).position(|(a, b)| a != b);
        assert!(received.len() == len && difference.is_none(), "{what}: {} bytes for {len}, {difference:?}", received.len());
    }
}

/// Sends single frames and bursts in every shape, both ways.
fn exchange([a, b]: &mut [Guest; 2], shapes: &[Shape], what: &str) {
    for shape in shapes {
        pass(a, b, shape, &format!("{what}, {shape:?}, there"));
        pass(b, a, shape, &format!("{what}, {shape:?}, back"));
    }
}

fn pass(from: &mut Guest, to: &mut Guest, shape: &Shape, what: &str) {
    for len in [60, 1514, 9000] {
        from.send_shaped(&frame(len, 0), shape).unwrap();
        expect_frames(to, &[len], what);
    }
    let lengths: Vec<usize> = (0..BURST).map(|number| 60 + number * 29 % 1455).collect();
    for (number, &len) in lengths.iter().enumerate() {
        from.queue_whole_on(0, &Header::default(), &frame(len, number), shape).unwrap();
    }
    from.from_guest().publish_and_kick().unwrap();
    expect_frames(to, &lengths, what);
    for used in from.flush().unwrap() {
        assert_eq!(used.len, 0, "{what}: nothing may be written into what was sent");
    }
}

/// The features to combine, and what each combination is called.
fn combinations(always: u64, optional: &[u64]) -> Vec<u64> {
    (0..1_u64 << optional.len())
        .map(|bits| (0..optional.len()).filter(|at| bits >> at & 1 == 1).fold(always, |all, at| all | optional[at]))
        .collect()
}

#[test]
#[ignore = "needs DPDK: the head of this file says how to run it"]
fn packed_rings_carry_every_shape_with_every_combination_of_features() {
    let optional = [feature::IN_ORDER, feature::MRG_RXBUF, feature::INDIRECT_DESC, feature::EVENT_IDX];
    for (nth, features) in combinations(feature::VERSION_1 | feature::RING_PACKED, &optional).into_iter().enumerate() {
        let wire = Wire::start(1);
        let order = if nth % 2 == 0 { Order::VirtioUser } else { Order::Qemu };
        let mut shapes = vec![Shape::one(), Shape::header_apart(12), Shape::pieces(&[5, 4, 3, 100])];
        if features & feature::INDIRECT_DESC != 0 {
            shapes.extend(shapes.clone().into_iter().map(Shape::indirect));
        }
        let mut guests = connect(&wire, order, features, &Shape::one(), 1);
        assert!(guests.iter_mut().all(|guest| guest.to_guest().is_packed()));
        exchange(&mut guests, &shapes, &format!("features {features:#x}"));
    }
}

#[test]
#[ignore = "needs DPDK: the head of this file says how to run it"]
fn packed_receive_buffers_may_be_chains() {
    for in_order in [0, feature::IN_ORDER] {
        let features = feature::VERSION_1 | feature::RING_PACKED | feature::INDIRECT_DESC | in_order;
        for shape in [Shape::pieces(&[12, 1000]), Shape::pieces(&[700, 700, 700]).indirect()] {
            let wire = Wire::start(1);
            let mut guests = connect(&wire, Order::VirtioUser, features, &shape, 1);
            exchange(&mut guests, &[Shape::one()], &format!("features {features:#x}, received in {shape:?}"));
        }
    }
}

#[test]
#[ignore = "needs DPDK: the head of this file says how to run it"]
fn split_rings_may_be_used_in_order() {
    for features in combinations(feature::VERSION_1 | feature::IN_ORDER, &[feature::MRG_RXBUF, feature::EVENT_IDX]) {
        let wire = Wire::start(1);
        let mut guests = connect(&wire, Order::VirtioUser, features, &Shape::one(), 1);
        exchange(&mut guests, &[Shape::one(), Shape::header_apart(12)], &format!("features {features:#x}"));
    }
}

#[test]
#[ignore = "needs DPDK: the head of this file says how to run it"]
fn every_pair_carries_frames_of_its_own() {
    for packed in [0, feature::RING_PACKED | feature::IN_ORDER] {
        let wire = Wire::start(3);
        let [mut a, mut b] = connect(&wire, Order::VirtioUser, feature::DEFAULT | packed, &Shape::one(), 3);
        for round in 0..200 {
            for pair in 0..3 {
                let sent = frame(60 + pair, round);
                a.send_on(pair, &sent).unwrap();
                // testpmd passes what came over a pair to the same pair of the other port.
                let received = b.receive_whole(SOON).unwrap().expect("the frame comes");
                assert_eq!((received.pair, received.frame), (pair, sent));
            }
        }
        assert!(a.flush().unwrap().iter().all(|used| used.len == 0));
    }
}

/// A ring that is stopped goes on where it was, with its wrap counter.
#[test]
#[ignore = "needs DPDK: the head of this file says how to run it"]
fn a_packed_ring_goes_on_where_it_was_stopped() {
    let wire = Wire::start(1);
    let features = feature::VERSION_1 | feature::RING_PACKED;
    let mut guests = connect(&wire, Order::VirtioUser, features, &Shape::one(), 1);
    for round in 0..5 {
        exchange(&mut guests, &[Shape::one()], &format!("round {round}"));
        // Three single frames and a burst went each way in every round.
        let sent = u16::try_from((BURST + 3) * (round + 1)).unwrap();
        let wrap = u32::from((sent / RING_SIZE).is_multiple_of(2));
        for guest in &mut guests {
            guest.stop().unwrap();
            // DPDK names the place of the next available descriptor, and takes that of the next used one to be the same.
            assert_eq!(guest.from_guest().base(), u32::from(sent % RING_SIZE) | (wrap << 15), "round {round}");
            guest.start_ring(0).unwrap();
            guest.start_ring(1).unwrap();
            guest.set_enabled(true).unwrap();
            guest.session().features().unwrap();
        }
    }
}

/// Nothing but the ring itself tells where it goes on when the connection ends without a word.
#[test]
#[ignore = "needs DPDK: the head of this file says how to run it"]
fn a_packed_ring_goes_on_after_the_last_used_descriptor() {
    let wire = Wire::start(1);
    for in_order in [0, feature::IN_ORDER] {
        let features = feature::VERSION_1 | feature::RING_PACKED | feature::MRG_RXBUF | in_order;
        let mut guests = connect(&wire, Order::VirtioUser, features, &Shape::one(), 1);
        for round in 0..5 {
            exchange(&mut guests, &[Shape::one()], &format!("features {features:#x}, round {round}"));
            guests.iter_mut().for_each(|guest| guest.reconnect().unwrap());
        }
    }
}

#[test]
#[ignore = "needs DPDK: the head of this file says how to run it"]
fn prepared_rings_carry_frames_round_and_round() {
    let always = feature::VERSION_1 | feature::INDIRECT_DESC | feature::MRG_RXBUF;
    for features in combinations(always, &[feature::RING_PACKED, feature::IN_ORDER, feature::EVENT_IDX]) {
        for shape in [Shape::one(), Shape::header_apart(12), Shape::pieces(&[5, 7, 30]), Shape::pieces(&[40]).indirect()] {
            let wire = Wire::start(1);
            let connect = |port| {
                let builder = Guest::builder(wire.socket(port)).order(Order::VirtioUser).features(features);
                builder.ring_size(RING_SIZE).receive_buffers(0).connect().unwrap()
            };
            let (mut a, mut b) = (connect(0), connect(1));
            send_round_and_round(&mut a, &mut b, &shape, &format!("features {features:#x}, {shape:?}"));
        }
    }
}

fn send_round_and_round(from: &mut Guest, to: &mut Guest, shape: &Shape, what: &str) {
    const FRAMES: usize = 20_000;
    let places = to.slots(0, RING_SIZE);
    let mut receiver = PreparedReceive::new(to, 0, 2048, &places).unwrap();
    let pieces = if shape.is_indirect() { 1 } else { shape.cut(12 + 100).len() };
    let places = from.slots(1, PreparedSend::chains(RING_SIZE, pieces.try_into().unwrap()));
    let mut sender = PreparedSend::new(from, 0, 100, shape, &places);
    for chain in 0..u16::try_from(places.len()).unwrap() {
        sender.write(from, chain, &Header::default(), &frame(100, 0));
    }
    let (mut sent, mut received) = (0, 0);
    let deadline = Instant::now() + SOON * 4;
    while received < FRAMES {
        assert!(Instant::now() < deadline, "{what}: {sent} sent, {received} came");
        let room = (usize::from(RING_SIZE) - (sent - received)).min(FRAMES - sent).min(1 + sent % 37);
        let write = |memory: &GuestMemory, address: GuestAddr| {
            memory.write(address, &frame(100, sent));
            sent += 1;
        };
        sender.send_each(from, room.try_into().unwrap(), write).unwrap();
        let read = |memory: &GuestMemory, arrived: Arrived| {
            assert_eq!(memory.bytes(arrived.place, arrived.len as usize)[12..], frame(100, received), "{what}, frame {received}");
            received += 1;
        };
        receiver.receive_each(to, read).unwrap();
    }
}
