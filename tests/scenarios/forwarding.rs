//! Frames between guests: what arrives, where, in what shape, and what is counted when it does not.

mod common;

use common::{
    BROADCAST, Background, Numbers, ORDERS, PACKED, RINGS, SOON, TestSwitch, assert_same, eventually, exchange, expect_frame,
    frame, mac, number, numbered, settles,
};
use weft_dataplane::PortSettings;
use weft_guest::{
    Buffer, Builder, EventSuppression, Guest, GuestAddr, Header, MemoryBy, Order, PreparedReceive, PreparedSend, RegionLayout,
    Shape, feature,
};
use weft_switch::{DropReason, MAX_FRAME_LEN};

const A: [u8; 6] = mac_of(0xa);
const B: [u8; 6] = mac_of(0xb);
const C: [u8; 6] = mac_of(0xc);
const SIZES: [usize; 7] = [14, 15, 60, 1514, 1518, 9000, 65_535];

const fn mac_of(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0xff, last]
}

/// A sending ring full of this frame.
fn prepare_send(guest: &mut Guest, frame: &[u8]) -> PreparedSend {
    let size = guest.from_guest().size();
    let places = guest.slots(1, size);
    let send = PreparedSend::new(guest, 0, frame.len(), &Shape::one(), &places);
    (0..places.len()).for_each(|chain| send.write(guest, chain as u16, &Header::default(), frame));
    send
}

fn feature_combinations() -> impl Iterator<Item = u64> {
    let all = [
        feature::VERSION_1,
        feature::MRG_RXBUF,
        feature::INDIRECT_DESC,
        feature::EVENT_IDX,
        feature::IN_ORDER,
        feature::VERSION_1 | feature::RING_PACKED,
    ];
    (0..64_u64).map(move |chosen| {
        let bits = all.iter().enumerate().filter(|(bit, _)| chosen >> bit & 1 == 1);
        bits.fold(0, |features, (_, feature)| features | feature)
    })
}

#[test]
fn every_order_and_feature_combination_passes_every_size() {
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    for order in ORDERS {
        for features in feature_combinations() {
            let mut a = switch.connect(&port_a, |builder| builder.order(order).features(features));
            let mut b = switch.connect(&port_b, |builder| builder.order(order).features(features));
            for size in SIZES {
                let (there, back) = (frame(B, A, size), frame(A, B, size));
                a.send(&there).unwrap();
                expect_frame(&mut b, &there);
                let shape = Shape::header_apart(b.header_len());
                b.send_shaped(&back, &if features & feature::INDIRECT_DESC == 0 { shape } else { shape.indirect() }).unwrap();
                expect_frame(&mut a, &back);
            }
            drop((a, b));
            switch.wait_listening(&port_a);
            switch.wait_listening(&port_b);
        }
    }
    assert_eq!((switch.all_drops(&port_a), switch.all_drops(&port_b)), (vec![], vec![]));
}

#[test]
fn guests_with_different_features_understand_each_other() {
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    let mut a = switch.connect(&port_a, |builder| builder.features(0));
    for features in feature_combinations() {
        let mut b = switch.connect(&port_b, |builder| builder.features(features));
        for size in SIZES {
            let (there, back) = (frame(B, A, size), frame(A, B, size));
            a.send(&there).unwrap();
            expect_frame(&mut b, &there);
            b.send(&back).unwrap();
            expect_frame(&mut a, &back);
        }
        drop(b);
        switch.wait_listening(&port_b);
    }
}

#[test]
fn every_size_up_to_a_page_passes() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    for size in (14..600).chain(1480..1560).chain(2020..2060).chain(4070..4110) {
        let sent = frame(B, A, size);
        a.send(&sent).unwrap();
        expect_frame(&mut b, &sent);
    }
}

#[test]
fn frames_outside_the_limits_of_length_are_dropped_and_counted() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(|builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    for size in [1, 6, 13] {
        a.send(&frame(B, A, size)).unwrap();
    }
    switch.expect_drops(&port_a, DropReason::TooShort, 3);
    for size in [MAX_FRAME_LEN + 1, 70_000] {
        a.send(&frame(B, A, size)).unwrap();
    }
    switch.expect_drops(&port_a, DropReason::TooLong, 2);
    for used in a.flush().unwrap() {
        assert_eq!(used.len, 0);
    }
    exchange(&mut a, A, &mut b, B);
}

#[test]
fn frames_flood_until_their_station_is_known_and_go_to_it_alone_then() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder);
    let (port_b, mut b) = switch.guest(|builder| builder);
    let (_, mut c) = switch.guest(|builder| builder);
    let unknown = numbered(B, A, 1);
    a.send(&unknown).unwrap();
    expect_frame(&mut b, &unknown);
    expect_frame(&mut c, &unknown);

    let answer = numbered(A, B, 2);
    b.send(&answer).unwrap();
    expect_frame(&mut a, &answer);
    assert_eq!(switch.station(B), Some(port_b.id));

    let known = numbered(B, A, 3);
    a.send(&known).unwrap();
    expect_frame(&mut b, &known);
    // Frames of one sender stay in order, so if C had got one of these two, it would come before the next.
    let everybody = numbered(BROADCAST, A, 4);
    a.send(&everybody).unwrap();
    expect_frame(&mut c, &everybody);
}

#[test]
fn broadcast_and_multicast_reach_everybody_but_the_sender() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    let (_, mut c) = switch.guest(|builder| builder);
    for group in [BROADCAST, [1, 0, 0x5e, 0, 0, 0xfb], [0x33, 0x33, 0, 0, 0, 1], [1, 0x80, 0xc2, 0, 0, 0x10]] {
        let sent = frame(group, A, 300);
        a.send(&sent).unwrap();
        expect_frame(&mut b, &sent);
        expect_frame(&mut c, &sent);
    }
    let first = frame(A, B, 60);
    b.send(&first).unwrap();
    expect_frame(&mut a, &first);
}

#[test]
fn a_frame_for_a_station_behind_its_own_port_is_dropped() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(|builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    let hello = frame(BROADCAST, C, 60);
    a.send(&hello).unwrap();
    expect_frame(&mut b, &hello);
    a.send(&frame(C, A, 60)).unwrap();
    switch.expect_drops(&port_a, DropReason::SamePort, 1);
    let next = frame(B, A, 60);
    a.send(&next).unwrap();
    expect_frame(&mut b, &next);
    b.send(&frame(A, B, 61)).unwrap();
    expect_frame(&mut a, &frame(A, B, 61));
}

#[test]
fn what_a_bridge_never_forwards_is_dropped() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(|builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    for last in 0..16 {
        a.send(&frame([1, 0x80, 0xc2, 0, 0, last], A, 60)).unwrap();
    }
    switch.expect_drops(&port_a, DropReason::LinkLocal, 16);
    exchange(&mut a, A, &mut b, B);
}

#[test]
fn a_source_that_no_station_can_have_is_dropped_and_not_learned() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(|builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    for source in [[0; 6], BROADCAST, [1, 0, 0x5e, 0, 0, 1]] {
        a.send(&frame(B, source, 60)).unwrap();
    }
    switch.expect_drops(&port_a, DropReason::BadSource, 3);
    assert_eq!((switch.station([0; 6]), switch.station(BROADCAST)), (None, None));
    exchange(&mut a, A, &mut b, B);
}

#[test]
fn a_guest_that_is_alone_has_nobody_to_talk_to() {
    let switch = TestSwitch::start();
    let (port, mut guest) = switch.guest(|builder| builder);
    guest.send(&frame(BROADCAST, A, 60)).unwrap();
    guest.flush().unwrap();
    switch.expect_drops(&port, DropReason::NoOtherPort, 1);
}

#[test]
fn networks_do_not_see_each_other() {
    let switch = TestSwitch::start();
    let other = switch.add_network();
    let (_, mut a) = switch.guest(|builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    let (port_c, port_d) = (switch.add_port_on(other), switch.add_port_on(other));
    let mut c = switch.connect(&port_c, |builder| builder);
    let mut d = switch.connect(&port_d, |builder| builder);
    // The same addresses live on both networks.
    exchange(&mut a, A, &mut b, B);
    exchange(&mut c, A, &mut d, B);
    let everybody = frame(BROADCAST, A, 77);
    a.send(&everybody).unwrap();
    expect_frame(&mut b, &everybody);
    let marker = frame(BROADCAST, A, 78);
    c.send(&marker).unwrap();
    expect_frame(&mut d, &marker);
}

#[test]
fn a_station_that_moves_is_found_at_its_new_port() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(|builder| builder);
    let (port_b, mut b) = switch.guest(|builder| builder);
    let (_, mut c) = switch.guest(|builder| builder);
    for (guest, port) in [(&mut a, &port_a), (&mut b, &port_b)] {
        guest.send(&frame(C, A, 60)).unwrap();
        expect_frame(&mut c, &frame(C, A, 60));
        settles("the station's port", Some(port.id), || switch.station(A));
    }
    let marker = frame(A, C, 70);
    // It went to B alone: the first frame that A sees is the broadcast after it.
    while b.receive(std::time::Duration::ZERO).unwrap().is_some() {}
    while a.receive(std::time::Duration::ZERO).unwrap().is_some() {}
    c.send(&marker).unwrap();
    expect_frame(&mut b, &marker);
    c.send(&frame(BROADCAST, C, 71)).unwrap();
    expect_frame(&mut a, &frame(BROADCAST, C, 71));
}

#[test]
fn sent_frames_may_be_cut_in_any_way() {
    let switch = TestSwitch::start();
    let (_, mut b) = switch.guest(|builder| builder);
    let mut shapes = vec![
        Shape::header_apart(12),
        Shape::pieces(&[6, 6]),
        Shape::pieces(&[1; 12]),
        Shape::pieces(&[11, 2]),
        Shape::pieces(&[12, 6, 6, 2]),
        Shape::pieces(&[12, 13]),
        Shape::pieces(&[12 + 14]),
        Shape::pieces(&[1; 200]),
    ];
    let mut numbers = Numbers::from(1);
    for _ in 0..200 {
        let pieces: Vec<usize> = (0..=numbers.below(30)).map(|_| 1 + numbers.below(90)).collect();
        shapes.push(Shape::pieces(&pieces));
    }
    for features in RINGS {
        let (port_a, mut a) = switch.guest(|builder| builder.features(features));
        for (nth, shape) in shapes.iter().enumerate() {
            for shape in [shape.clone(), shape.clone().indirect()] {
                let sent = frame(B, A, 14 + nth * 31 % 1500);
                a.send_shaped(&sent, &shape).unwrap();
                expect_frame(&mut b, &sent);
            }
        }
        for used in a.flush().unwrap() {
            assert_eq!(used.len, 0, "nothing was written into a chain from the guest");
        }
        assert_eq!(switch.all_drops(&port_a), []);
    }
}

#[test]
fn a_chain_as_long_as_the_ring_passes() {
    let switch = TestSwitch::start();
    let (_, mut b) = switch.guest(|builder| builder);
    for features in RINGS {
        let (_, mut a) = switch.guest(|builder| builder.features(features));
        // The second one begins behind a frame, so in a packed ring it goes over the wrap.
        for before in [0, 1] {
            for shape in [Shape::pieces(&[1; 255]), Shape::pieces(&[1; 255]).indirect()] {
                for sent in [vec![frame(B, A, 60); before], vec![frame(B, A, 1000)]].concat() {
                    a.flush().unwrap();
                    let shape = if sent.len() == 1000 { shape.clone() } else { Shape::one() };
                    a.send_shaped(&sent, &shape).unwrap();
                    expect_frame(&mut b, &sent);
                }
            }
        }
    }
}

#[test]
fn receive_buffers_may_have_any_shape() {
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    let mut a = switch.connect(&port_a, |builder| builder);
    let shapes = [
        Shape::header_apart(12),
        Shape::header_apart(10),
        Shape::pieces(&[1; 30]),
        Shape::pieces(&[5, 7, 14, 100]),
        Shape::pieces(&[11, 2, 1000, 1, 60_000]),
    ];
    for features in RINGS.into_iter().flat_map(|features| [features, features & !feature::MRG_RXBUF]) {
        for shape in shapes.clone() {
            for shape in [shape.clone(), shape.indirect()] {
                let mut b = switch.connect(&port_b, |builder| builder.features(features).receive_shape(shape.clone()));
                for size in SIZES {
                    let sent = frame(B, A, size);
                    a.send(&sent).unwrap();
                    let received = b.receive_whole(SOON).unwrap().expect("the frame comes");
                    assert_same(&received.frame, &sent);
                    assert_eq!(received.header.num_buffers, 1, "{shape:?} takes {size} bytes");
                    assert_eq!(received.chains[0].len as usize, 12 + size);
                }
                drop(b);
                switch.wait_listening(&port_b);
            }
        }
    }
}

/// Two regions that adjoin for the guest and nowhere else, and one with a hole before it and an offset in its file.
fn scattered(builder: Builder) -> Builder {
    let far = |guest, user, mmap_offset| RegionLayout {
        user: weft_guest::UserAddr(user),
        mmap_offset,
        ..RegionLayout::at(guest, 0x2_0000)
    };
    builder.region(far(0x8000_0000, 0x1000_0000_0000, 0)).region(far(0x8002_0000, 0x3000_0000_0000, 0x1000)).region(far(
        0x9000_0000,
        0x2000_0000_0000,
        0x4000,
    ))
}

#[test]
fn buffers_may_cross_adjoining_regions() {
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    let ways = [(Order::Qemu, MemoryBy::Slots), (Order::VirtioUser, MemoryBy::Table)];
    for ((order, memory_by), features) in ways.into_iter().flat_map(|way| RINGS.map(|features| (way, features))) {
        let shape = |builder: Builder| scattered(builder.order(order).memory_by(memory_by).features(features));
        let mut a = switch.connect(&port_a, shape);
        let mut b = switch.connect(&port_b, |builder| shape(builder).receive_buffers(0));
        let border = 0x8002_0000;
        let sent = frame(B, A, 5000);
        let bytes = [&[0; 12][..], &sent].concat();
        // The border lies in the header, in the addresses, in the payload, and right after the chain.
        for before in [1, 11, 12, 13, 25, 26, 1000, 5011, 5012] {
            let start = GuestAddr(border - before);
            a.memory().write(start, &bytes);
            b.memory().clear(GuestAddr(border - 0x2000), 0x4000);
            b.post_buffers(&[Buffer::writable(GuestAddr(border - before), 6000)], false).unwrap();
            b.set_repost(false);
            a.send_buffers(&[Buffer::readable(start, 5012)], false).unwrap();
            expect_frame(&mut b, &sent);
            assert_eq!(b.memory().bytes(GuestAddr(border - before + 5012), 64), [0; 64], "nothing is written behind the frame");
        }
        drop((a, b));
        switch.wait_listening(&port_a);
        switch.wait_listening(&port_b);
    }
    assert_eq!((switch.all_drops(&port_a), switch.all_drops(&port_b)), (vec![], vec![]));
}

#[test]
fn a_chain_may_lie_in_several_regions() {
    let switch = TestSwitch::start();
    let sent = frame(B, A, 3000);
    let bytes = [&[0; 12][..], &sent].concat();
    let places = [GuestAddr(0x9000_0000), GuestAddr(0x8000_0800), GuestAddr(0x8003_f000)];
    let writable: Vec<Buffer> = places.iter().map(|&place| Buffer::writable(place, 1004)).collect();
    let readable: Vec<Buffer> = places.iter().map(|&place| Buffer::readable(place, 1004)).collect();
    for features in RINGS {
        let (_, mut a) = switch.guest(|builder| scattered(builder.features(features)));
        let (_, mut b) = switch.guest(|builder| scattered(builder.features(features).receive_buffers(0)));
        for (place, part) in places.iter().zip(bytes.chunks(1004)) {
            a.memory().write(*place, part);
        }
        for indirect in [false, true] {
            b.post_buffers(&writable, indirect).unwrap();
            b.set_repost(false);
            a.send_buffers(&readable, indirect).unwrap();
            expect_frame(&mut b, &sent);
        }
    }
}

#[test]
fn a_frame_spans_as_many_receive_buffers_as_it_fills() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder);
    let port_b = switch.add_port();
    for (features, shape) in
        RINGS.into_iter().flat_map(|features| [(features, Shape::one()), (features, Shape::pieces(&[100, 200]))])
    {
        let mut b = switch.connect(&port_b, |builder| builder.features(features).ring_size(1024).receive_buffers(0));
        b.post(200, 512, &shape).unwrap();
        // Often enough for several laps.
        for _ in 0..20 {
            for (size, buffers) in [(60, 1), (500, 1), (501, 2), (1012, 2), (1013, 3), (9000, 18), (65_535, 129)] {
                let sent = frame(B, A, size);
                a.send(&sent).unwrap();
                let received = b.receive_whole(SOON).unwrap().expect("the frame comes");
                assert_same(&received.frame, &sent);
                assert_eq!(usize::from(received.header.num_buffers), buffers);
                let lengths: Vec<usize> = received.chains.iter().map(|used| used.len as usize).collect();
                let last = 12 + size - (buffers - 1) * 512;
                assert_eq!(lengths, [vec![512; buffers - 1], vec![last]].concat());
            }
        }
        drop(b);
        switch.wait_listening(&port_b);
    }
}

#[test]
fn a_full_receiver_loses_frames_alone() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(|builder| builder);
    let (port_c, mut c) = switch.guest(|builder| builder);
    // A ring that is full as well, and one that is not.
    for (features, ring_size) in RINGS.into_iter().flat_map(|features| [(features, 256), (features, 4)]) {
        let (port_b, mut b) = switch.guest(|builder| builder.features(features).ring_size(ring_size).receive_buffers(4));
        b.set_repost(false);
        for lap in 1..=3 {
            for nth in 0..10 {
                a.send(&numbered(BROADCAST, A, nth)).unwrap();
            }
            for nth in 0..10 {
                assert_eq!(number(&c.receive(SOON).unwrap().expect("C takes all")), nth);
            }
            for nth in 0..4 {
                assert_eq!(number(&b.receive(SOON).unwrap().expect("B takes four")), nth);
            }
            switch.expect_drops(&port_b, DropReason::ReceiverFull, 6 * lap);
            b.post(4, 2048, &Shape::one()).unwrap();
        }
        let again = numbered(BROADCAST, A, 10);
        a.send(&again).unwrap();
        expect_frame(&mut b, &again);
        expect_frame(&mut c, &again);
        drop(b);
        switch.remove(&port_b);
    }
    assert_eq!((switch.all_drops(&port_a), switch.all_drops(&port_c)), (vec![], vec![]));
}

#[test]
fn a_frame_for_which_the_buffers_do_not_suffice_takes_none() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder);
    for (features, ring_size) in RINGS.into_iter().flat_map(|features| [(features, 256), (features, 4)]) {
        let (port_b, mut b) = switch.guest(|builder| builder.features(features).ring_size(ring_size).receive_buffers(3));
        // What it takes goes over the wrap of the small ring, and what it gives back too.
        for round in 1..=5 {
            a.send(&frame(BROADCAST, A, 9000)).unwrap();
            switch.expect_drops(&port_b, DropReason::ReceiverFull, round);
            let sent = frame(BROADCAST, A, 6000);
            a.send(&sent).unwrap();
            expect_frame(&mut b, &sent);
        }
        drop(b);
        switch.remove(&port_b);
    }
}

#[test]
fn a_frame_larger_than_the_one_buffer_it_may_use_is_dropped() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder);
    for features in RINGS.map(|features| features & !feature::MRG_RXBUF) {
        let (port_b, mut b) = switch.guest(|builder| builder.features(features).receive_buffers(0));
        b.post(2, 1526, &Shape::header_apart(12)).unwrap();
        a.send(&frame(BROADCAST, A, 1515)).unwrap();
        switch.expect_drops(&port_b, DropReason::ReceiverBufferTooSmall, 1);
        for _ in 0..5 {
            let sent = frame(BROADCAST, A, 1514);
            a.send(&sent).unwrap();
            expect_frame(&mut b, &sent);
        }
        assert_eq!(switch.all_drops(&port_b), [(DropReason::ReceiverBufferTooSmall, 1)]);
        drop(b);
        switch.remove(&port_b);
    }
}

#[test]
fn a_guest_that_left_is_forgotten() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(|builder| builder);
    let (port_b, mut b) = switch.guest(|builder| builder);
    exchange(&mut a, A, &mut b, B);
    drop(b);
    switch.wait_listening(&port_b);
    assert_eq!(switch.station(B), None);
    for _ in 0..5 {
        a.send(&frame(B, A, 60)).unwrap();
    }
    switch.expect_drops(&port_a, DropReason::NoOtherPort, 5);
    let mut b = switch.connect(&port_b, |builder| builder);
    exchange(&mut a, A, &mut b, B);
}

#[test]
fn frames_of_a_disabled_ring_are_consumed_and_discarded() {
    let switch = TestSwitch::start();
    for (nth, features) in RINGS.into_iter().enumerate() {
        let shape = |builder: Builder| builder.order(ORDERS[nth % 2]).features(features).acknowledge_everything();
        let (port_a, mut a) = switch.guest(shape);
        let (_, mut b) = switch.guest(|builder| builder);
        exchange(&mut a, A, &mut b, B);
        a.session().set_vring_enable(1, false).unwrap();
        for _ in 0..20 {
            a.send(&frame(B, A, 60)).unwrap();
        }
        a.flush().unwrap();
        switch.expect_drops(&port_a, DropReason::RingDisabled, 20);
        a.session().set_vring_enable(1, true).unwrap();
        exchange(&mut a, A, &mut b, B);
    }
}

#[test]
fn a_disabled_ring_to_the_guest_gets_nothing() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(weft_guest::Builder::acknowledge_everything);
    let (_, mut b) = switch.guest(|builder| builder);
    exchange(&mut a, A, &mut b, B);
    a.session().set_vring_enable(0, false).unwrap();
    for _ in 0..20 {
        b.send(&frame(A, B, 60)).unwrap();
    }
    b.flush().unwrap();
    switch.expect_drops(&port_a, DropReason::ReceiverDown, 20);
    assert!(!a.to_guest().has_used());
    a.session().set_vring_enable(0, true).unwrap();
    exchange(&mut a, A, &mut b, B);
}

#[test]
fn interrupts_that_the_guest_does_not_want_are_not_sent() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder);
    for features in RINGS.into_iter().flat_map(|features| [features, features & !feature::EVENT_IDX]) {
        let (port_b, mut b) = switch.guest(|builder| builder.features(features));
        exchange(&mut a, A, &mut b, B);
        b.flush().unwrap();
        b.to_guest().disarm_interrupt();
        b.from_guest().disarm_interrupt();
        // Whatever was on its way has been sent and counted when the switch sleeps.
        switch.wait_asleep();
        let before = (b.to_guest().calls(), b.from_guest().calls(), switch.status(&port_b).counters.notifications);
        for _ in 0..50 {
            a.send(&frame(B, A, 60)).unwrap();
            assert!(b.to_guest().poll_used(SOON));
            assert_eq!(b.receive(SOON).unwrap(), Some(frame(B, A, 60)));
            b.send(&frame(A, B, 60)).unwrap();
            assert!(b.from_guest().poll_used(SOON));
            b.reclaim().unwrap();
            expect_frame(&mut a, &frame(A, B, 60));
        }
        switch.wait_asleep();
        let after = (b.to_guest().calls(), b.from_guest().calls(), switch.status(&port_b).counters.notifications);
        assert_eq!(after, before, "features {features:#x}");
        b.to_guest().arm_interrupt();
        a.send(&frame(B, A, 60)).unwrap();
        let calls = before.0 + 1;
        assert!(eventually(|| b.to_guest().calls() == calls), "the interrupt comes once it is wanted");
        drop(b);
        switch.remove(&port_b);
    }
}

#[test]
fn with_event_idx_an_interrupt_comes_when_the_asked_index_is_passed() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    exchange(&mut a, A, &mut b, B);
    b.flush().unwrap();
    let start = b.to_guest().used_index();
    b.to_guest().write_used_event(start.wrapping_add(9));
    let before = b.to_guest().calls();
    for nth in 0..9 {
        a.send(&numbered(B, A, nth)).unwrap();
        assert!(eventually(|| b.to_guest().used_index() == start.wrapping_add(u16::try_from(nth).unwrap() + 1)));
    }
    // The switch notifies after it has published: once the sender has its chains back, that is over.
    a.flush().unwrap();
    assert_eq!(b.to_guest().calls(), before);
    a.send(&numbered(B, A, 9)).unwrap();
    assert!(eventually(|| b.to_guest().calls() == before + 1), "the tenth frame passes the asked index");
}

/// The descriptor `count` further on than one in event suppression's form.
fn further(desc: u16, count: u16, size: u16) -> u16 {
    let at = (desc & 0x7fff) + count;
    if at < size { desc + count } else { (desc & 0x8000 ^ 0x8000) | (at - size) }
}

#[test]
fn with_event_idx_an_interrupt_comes_when_the_asked_descriptor_is_used() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder);
    // Eleven frames end everywhere in the second ring, and at two places in the first.
    for (features, size) in PACKED.into_iter().flat_map(|features| [(features, 22), (features, 23)]) {
        let (port_b, mut b) = switch.guest(|builder| builder.features(features).ring_size(size));
        exchange(&mut a, A, &mut b, B);
        a.flush().unwrap();
        for _ in 0..30 {
            let ring = b.to_guest();
            ring.arm_interrupt();
            let next = ring.driver_event().desc;
            ring.write_driver_event(EventSuppression { desc: further(next, 9, size), flags: EventSuppression::DESC });
            let before = ring.calls();
            for nth in 0..9 {
                a.send(&numbered(B, A, nth)).unwrap();
                // The switch notifies before it gives the sender its chains back.
                a.flush().unwrap();
            }
            assert_eq!(b.to_guest().calls(), before, "nine of ten");
            a.send(&numbered(B, A, 9)).unwrap();
            assert!(eventually(|| b.to_guest().calls() == before + 1), "the tenth frame uses the asked descriptor");
            a.send(&numbered(B, A, 10)).unwrap();
            a.flush().unwrap();
            assert_eq!(b.to_guest().calls(), before + 1, "the asked descriptor was used before");
            for nth in 0..11 {
                assert_eq!(number(&b.receive(SOON).unwrap().expect("all are there")), nth);
            }
        }
        drop(b);
        switch.remove(&port_b);
    }
}

/// Nothing is written to the inner descriptors of a chain, nor, with `IN_ORDER`, to what a batch skips; they are used all the same.
#[test]
fn with_event_idx_an_interrupt_comes_when_the_asked_descriptor_is_passed_over() {
    const SIZE: u16 = 23;
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder);
    for features in PACKED {
        let (port_b, mut b) = switch.guest(|builder| builder.features(features).ring_size(SIZE));
        exchange(&mut a, A, &mut b, B);
        for round in 0..60 {
            b.flush().unwrap();
            b.from_guest().arm_interrupt();
            let next = b.from_guest().driver_event().desc;
            let asked = EventSuppression { desc: further(next, 2 + round % 8, SIZE), flags: EventSuppression::DESC };
            b.from_guest().write_driver_event(asked);
            // Whatever was owed from the rounds before has come.
            switch.wait_asleep();
            let before = b.from_guest().calls();
            for nth in 0..5 {
                b.queue_whole_on(0, &Header::default(), &numbered(A, B, nth), &Shape::header_apart(12)).unwrap();
            }
            b.from_guest().publish_and_kick().unwrap();
            for nth in 0..5 {
                assert_eq!(a.receive(SOON).unwrap().as_deref().map(number), Some(nth));
            }
            assert!(
                eventually(|| b.from_guest().calls() == before + 1),
                "asked for {asked:?}, the five chains begin at {next:#x}"
            );
        }
        drop(b);
        switch.remove(&port_b);
    }
}

#[test]
fn after_an_idle_time_a_kick_wakes_the_switch() {
    let switch = TestSwitch::start();
    for features in RINGS.into_iter().flat_map(|features| [features, features & !feature::EVENT_IDX]) {
        let (port_a, mut a) = switch.guest(|builder| builder.features(features));
        let (port_b, mut b) = switch.guest(|builder| builder.features(features));
        for _ in 0..20 {
            exchange(&mut a, A, &mut b, B);
            switch.wait_asleep();
            let kicks = a.from_guest().kicks();
            a.send(&frame(B, A, 60)).unwrap();
            assert_eq!(a.from_guest().kicks(), kicks + 1, "a switch that sleeps asks to be kicked");
            expect_frame(&mut b, &frame(B, A, 60));
        }
        drop((a, b));
        switch.remove(&port_a);
        switch.remove(&port_b);
    }
}

#[test]
fn a_busy_switch_asks_for_few_kicks() {
    let switch = TestSwitch::start();
    for features in [feature::DEFAULT, feature::DEFAULT & !feature::EVENT_IDX] {
        let (_, mut a) = switch.guest(|builder| builder.features(features).receive_buffers(0));
        let (_, mut b) = switch.guest(|builder| builder.features(features));
        b.send(&frame(BROADCAST, B, 60)).unwrap();
        b.flush().unwrap();
        let mut sender = prepare_send(&mut a, &frame(B, A, 60));
        let mut kicks_of_a_burst = || {
            let before = a.from_guest().kicks();
            let mut sent = 0;
            while sent < 2000 {
                sent += sender.send(&mut a, 1).unwrap();
            }
            a.from_guest().kicks() - before
        };
        // On a machine with more work than cores the switch may find time to fall asleep within a burst, but not
        // within every one.
        assert!(eventually(|| kicks_of_a_burst() < 1000), "{} kicks for 2000 frames", kicks_of_a_burst());
    }
}

#[test]
fn a_switch_that_is_awake_asks_for_no_kicks_of_packed_rings() {
    let switch = TestSwitch::start();
    let (_, mut b) = switch.guest(|builder| builder);
    let (_, mut other) = switch.guest(|builder| builder);
    exchange(&mut other, C, &mut b, B);
    for features in PACKED {
        let (port_a, mut a) = switch.guest(|builder| builder.features(features));
        let mut wish = || a.from_guest().device_event().flags;
        switch.wait_asleep();
        assert_eq!(wish(), EventSuppression::ENABLE);
        let flood = Background::start(other, |other, _| other.send(&frame(B, C, 60)).unwrap());
        assert!(eventually(|| wish() == EventSuppression::DISABLE), "it is kept awake by somebody else");
        other = flood.stop();
        switch.wait_asleep();
        assert_eq!(wish(), EventSuppression::ENABLE);
        drop(a);
        switch.remove(&port_a);
    }
}

#[test]
fn rings_without_kick_and_call_descriptors_are_polled() {
    let switch = TestSwitch::start();
    for features in RINGS {
        let shape = |builder: Builder| builder.features(features).without_kick().without_call();
        let ((port_a, mut a), (port_b, mut b)) = (switch.guest(shape), switch.guest(shape));
        for _ in 0..20 {
            exchange(&mut a, A, &mut b, B);
        }
        drop((a, b));
        switch.remove(&port_a);
        switch.remove(&port_b);
    }
}

#[test]
fn a_rarp_announcement_teaches_the_switch_and_is_flooded() {
    let switch = TestSwitch::start();
    let (port_a, a) = switch.guest(|builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    let station = mac(77);
    a.session().send_rarp(station).unwrap();
    let announced = b.receive(SOON).unwrap().expect("the announcement comes");
    assert_eq!((&announced[..6], &announced[6..12], &announced[12..14]), (&BROADCAST[..], &station[..], &[0x80, 0x35][..]));
    // Request reverse, for Ethernet and IPv4, sender and target are the station (RFC 903).
    assert_eq!(announced[14..22], [0, 1, 8, 0, 6, 4, 0, 3]);
    assert_eq!((&announced[22..28], &announced[32..38]), (&station[..], &station[..]));
    assert!(announced.len() >= 60, "a frame is at least 60 bytes, this is {}", announced.len());
    settles("the announced station's port", Some(port_a.id), || switch.station(station));
}

#[test]
fn the_mtu_that_the_front_end_announces_is_shown() {
    let switch = TestSwitch::start();
    let (port, _guest) = switch.guest(|builder| builder.mtu(9000));
    assert_eq!(switch.status(&port).guest_mtu, Some(9000));
}

#[test]
fn the_configuration_space_tells_mac_link_and_mtu() {
    let switch = TestSwitch::start();
    let (port, guest) = switch.guest(|builder| builder);
    let config = guest.session().config(0, 12).unwrap();
    assert_eq!(config[..6], port.mac.0);
    assert_eq!(config[6..8], 1_u16.to_le_bytes(), "the link is up");
    assert_eq!(config[8..10], 1_u16.to_le_bytes(), "queue pairs");
    assert_eq!(config[10..12], 1500_u16.to_le_bytes());
    assert_eq!(guest.session().config(0, 6).unwrap(), port.mac.0);
}

#[test]
fn frames_and_bytes_are_counted_from_the_guests_side() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(|builder| builder);
    let (port_b, mut b) = switch.guest(|builder| builder);
    for size in SIZES {
        a.send(&frame(B, A, size)).unwrap();
        expect_frame(&mut b, &frame(B, A, size));
    }
    let bytes: usize = SIZES.iter().sum();
    let counters = |port| {
        let counters = switch.status(port).counters;
        (counters.from_guest_frames, counters.from_guest_bytes, counters.to_guest_frames, counters.to_guest_bytes)
    };
    settles("sent", (SIZES.len() as u64, bytes as u64, 0, 0), || counters(&port_a));
    settles("received", (0, 0, SIZES.len() as u64, bytes as u64), || counters(&port_b));
}

#[test]
fn the_status_names_features_and_rings() {
    let switch = TestSwitch::start();
    let (port, guest) = switch.guest(|builder| builder.ring_size(128));
    let status = switch.status(&port);
    let rings: Vec<_> = status.rings.iter().map(|ring| (ring.index, ring.size, ring.enabled)).collect();
    assert_eq!(rings, [(0, 128, true), (1, 128, true)]);
    assert!(!status.features.is_empty());
    assert_eq!((status.connections, status.last_stop), (1, None));
    drop(guest);
}

#[test]
fn a_closed_loop_loses_nothing() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(|builder| builder.receive_buffers(0));
    let (port_b, mut b) = switch.guest(|builder| builder.receive_buffers(0));
    let size = b.to_guest().size();
    let places = b.slots(0, size);
    let mut receiver = PreparedReceive::new(&mut b, 0, 2048, &places).unwrap();
    let mut sender = prepare_send(&mut a, &frame(B, A, 300));
    let (mut sent, mut received) = (0_u32, 0_u32);
    let deadline = std::time::Instant::now() + 20 * SOON;
    while received < 100_000 {
        assert!(std::time::Instant::now() < deadline, "{sent} sent, {received} received");
        // Never more on the way than the receiver has buffers.
        let room = 256 - (sent - received);
        sent += u32::from(sender.send(&mut a, u16::try_from(room.min(32)).unwrap()).unwrap());
        received += u32::from(receiver.receive(&mut b).unwrap());
    }
    assert_eq!((switch.all_drops(&port_a), switch.all_drops(&port_b)), (vec![], vec![]));
}

/// Chains of every kind, so that they begin everywhere in rings whose sizes share no factor with them.
#[test]
fn a_closed_loop_of_packed_rings_loses_nothing() {
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    let sent_as = [Shape::one(), Shape::header_apart(12), Shape::pieces(&[7, 30, 1]), Shape::pieces(&[20, 20]).indirect()];
    let received_as = [Shape::one(), Shape::pieces(&[100, 5]), Shape::pieces(&[30]).indirect()];
    for (features, size) in PACKED.into_iter().flat_map(|features| [(features, 31), (features, 256)]) {
        for received_as in &received_as {
            let mut a = switch.connect(&port_a, |builder| builder.features(features).ring_size(size));
            let mut b = switch.connect(&port_b, |builder| builder.features(features).ring_size(size).receive_buffers(0));
            let buffers = usize::from(size) / received_as.cut(200).len();
            b.post(buffers, 200, received_as).unwrap();
            let (mut sent, mut received) = (0_u32, 0_u32);
            while received < 3000 {
                // Never more on the way than the receiver has buffers for.
                while sent < 3000 && (sent - received) as usize * 2 < buffers {
                    let shape = &sent_as[sent as usize % sent_as.len()];
                    let long = if sent.is_multiple_of(7) { 300 } else { 60 };
                    let mut frame = frame(B, A, long);
                    frame[14..18].copy_from_slice(&sent.to_be_bytes());
                    a.queue_whole_on(0, &Header::default(), &frame, shape).unwrap();
                    sent += 1;
                }
                a.from_guest().publish_and_kick().unwrap();
                let came = b.receive_whole(SOON).unwrap().unwrap_or_else(|| panic!("frame {received} of {sent} was lost"));
                let long = if received.is_multiple_of(7) { 300 } else { 60 };
                assert_eq!((number(&came.frame), came.frame.len()), (received, long));
                assert_eq!(usize::from(came.header.num_buffers), (12 + long).div_ceil(200));
                received += 1;
            }
            drop((a, b));
            switch.wait_listening(&port_a);
            switch.wait_listening(&port_b);
        }
    }
    assert_eq!((switch.all_drops(&port_a), switch.all_drops(&port_b)), (vec![], vec![]));
}

#[test]
fn packed_rings_of_any_size_work() {
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    for (features, size) in PACKED.into_iter().flat_map(|features| [1, 2, 3, 5, 7, 64, 100, 4095].map(|size| (features, size))) {
        let shape = |builder: Builder| builder.features(features).ring_size(size).receive_buffers(usize::from(size).min(100));
        let (mut a, mut b) = (switch.connect(&port_a, shape), switch.connect(&port_b, shape));
        for nth in 0..300 {
            let sent = numbered(B, A, nth);
            a.send(&sent).unwrap();
            expect_frame(&mut b, &sent);
        }
        drop((a, b));
        switch.wait_listening(&port_a);
        switch.wait_listening(&port_b);
    }
}

/// The largest ring there is, several laps of it: in chains of 1,000 descriptors.
#[test]
fn the_largest_packed_ring_works() {
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    for features in PACKED {
        let shape = |builder: Builder| builder.features(features).ring_size(0x8000).receive_buffers(0);
        let (mut a, mut b) = (switch.connect(&port_a, shape), switch.connect(&port_b, shape));
        b.post(32, 3000, &Shape::pieces(&[2; 999])).unwrap();
        for nth in 0..100 {
            let mut sent = frame(B, A, 1500);
            sent[14..18].copy_from_slice(&u32::to_be_bytes(nth));
            a.send_shaped(&sent, &Shape::pieces(&[1; 999])).unwrap();
            expect_frame(&mut b, &sent);
        }
        drop((a, b));
        switch.wait_listening(&port_a);
        switch.wait_listening(&port_b);
    }
}

#[test]
fn small_and_large_rings_work() {
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    for size in [2, 4, 64, 1024, 4096] {
        let mut a = switch.connect(&port_a, |builder| builder.ring_size(size));
        let mut b = switch.connect(&port_b, |builder| builder.ring_size(size));
        for nth in 0..100 {
            let sent = numbered(B, A, nth);
            a.send(&sent).unwrap();
            expect_frame(&mut b, &sent);
        }
        drop((a, b));
        switch.wait_listening(&port_a);
        switch.wait_listening(&port_b);
    }
}

#[test]
fn ring_indexes_wrap_without_harm() {
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder.ring_size(8));
    let (_, mut b) = switch.guest(|builder| builder.ring_size(8));
    for nth in 0..66_000 {
        let sent = numbered(B, A, nth);
        a.send(&sent).unwrap();
        let received = b.receive(SOON).unwrap();
        assert_eq!(received.as_deref().map(number), Some(nth));
    }
}

#[test]
fn a_front_end_without_protocol_features_is_served() {
    let switch = TestSwitch::start();
    for (order, features) in ORDERS.into_iter().flat_map(|order| RINGS.map(|features| (order, features))) {
        let (port_a, mut a) = switch.guest(|builder| builder.order(order).features(features).without_protocol_features());
        let (_, mut b) = switch.guest(|builder| builder);
        assert_eq!(a.protocol_features(), 0);
        exchange(&mut a, A, &mut b, B);
        let rings: Vec<_> = switch.status(&port_a).rings.iter().map(|ring| ring.enabled).collect();
        assert_eq!(rings, [true, true]);
    }
}

#[test]
fn every_queue_pair_of_a_guest_is_read() {
    let switch = TestSwitch::start();
    let (_, mut b) = switch.guest(|builder| builder);
    for (nth, features) in RINGS.into_iter().enumerate() {
        let port_a = switch.add(PortSettings { queue_pairs: 4, ..switch.settings() });
        let mut a = switch.connect(&port_a, |builder| builder.order(ORDERS[nth % 2]).features(features).queue_pairs(4));
        assert_eq!(a.session().queue_pairs().unwrap(), 4);
        assert_eq!(switch.status(&port_a).rings.len(), 8);
        exchange(&mut a, A, &mut b, B);
        for pair in 0..4 {
            let sent = numbered(B, A, pair);
            let ring = pair as usize * 2 + 1;
            let slot = a.slot(ring, 17);
            a.memory().write(slot, &[&[0; 12][..], &sent].concat());
            let ring = a.ring(ring);
            ring.add(&[Buffer::readable(slot, 72)], false).unwrap();
            ring.publish_and_kick().unwrap();
            expect_frame(&mut b, &sent);
            assert!(ring.poll_used(SOON));
        }
        drop(a);
        switch.remove(&port_a);
    }
}

#[test]
fn a_guest_may_use_fewer_queue_pairs_than_it_has() {
    let switch = TestSwitch::start();
    let port_a = switch.add(PortSettings { queue_pairs: 4, ..switch.settings() });
    let mut a = switch.connect(&port_a, |builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    exchange(&mut a, A, &mut b, B);
}

#[test]
fn frames_for_groups_are_counted_by_kind_in_both_directions() {
    const MULTICAST: [u8; 6] = [1, 0, 0x5e, 1, 2, 3];
    let switch = TestSwitch::start();
    let ((a_port, mut a), (b_port, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    exchange(&mut a, mac(1), &mut b, mac(2));
    let kinds = |port| {
        let counters = switch.status(port).counters;
        let from = (counters.from_guest_frames, counters.from_guest_multicast, counters.from_guest_broadcast);
        (from, (counters.to_guest_frames, counters.to_guest_multicast, counters.to_guest_broadcast))
    };
    let ((_, before), (after, _)) = (kinds(&a_port), kinds(&b_port));
    assert_eq!((before, after), ((1, 0, 0), (1, 0, 0)));
    // In one batch, so that they are told apart within it.
    for to in [mac(2), MULTICAST, BROADCAST, mac(2), MULTICAST, MULTICAST] {
        a.queue(&frame(to, mac(1), 80)).unwrap();
    }
    a.from_guest().publish_and_kick().unwrap();
    (0..6).for_each(|_| drop(b.receive(SOON).unwrap().unwrap()));
    assert_eq!((kinds(&a_port).0, kinds(&b_port).1), ((7, 3, 1), (7, 3, 1)));
}
