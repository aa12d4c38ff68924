//! Ports and guests that come and go: nothing leaks, nothing hangs, and nobody else notices.

mod common;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{
    BROADCAST, Background, LIMIT, ORDERS, PACKED, Port, RINGS, SOON, TestSwitch, alone, at_most, eventually, exchange,
    expect_frame, frame, guest_mappings, mac, number, numbered, open_descriptors, settles,
};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use weft_dataplane::{PortSettings, PortState, SocketRole};
use weft_guest::{Buffer, Builder, Guest, GuestAddr, GuestError, MemoryBy, Order, RegionLayout, Request, Socket, feature};
use weft_switch::DropReason;

const A: [u8; 6] = [2, 0, 0, 0, 0xff, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0xff, 0xb];

#[test]
fn connecting_and_leaving_any_number_of_times_leaks_nothing() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    let mut b = switch.connect(&port_b, |builder| builder);
    let mut round = |nth: u32| {
        let order = ORDERS[nth as usize % 2];
        let mut a = switch.connect(&port_a, |builder| builder.order(order));
        exchange(&mut a, A, &mut b, B);
        if nth.is_multiple_of(3) {
            a.disconnect().unwrap();
        }
        drop(a);
        switch.wait_listening(&port_a);
    };
    round(0);
    let (descriptors, mappings) = (open_descriptors(), guest_mappings());
    (1..100).for_each(&mut round);
    at_most("open descriptors", descriptors, open_descriptors);
    at_most("mappings of guest memory", mappings, guest_mappings);
    assert_eq!(switch.status(&port_a).connections, 100);
}

#[test]
fn a_guest_that_reconnects_goes_on_where_it_was() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (_, mut b) = switch.guest(|builder| builder);
    for (nth, features) in RINGS.into_iter().enumerate() {
        let (port_a, mut a) = switch.guest(|builder| builder.order(ORDERS[nth % 2]).features(features).ring_size(64));
        let (descriptors, mappings) = (open_descriptors(), guest_mappings());
        for round in 0..100 {
            exchange(&mut a, A, &mut b, B);
            if round % 2 == 0 {
                a.disconnect().unwrap();
            } else {
                a.hang_up();
            }
            switch.wait_listening(&port_a);
            a.reconnect().unwrap();
            switch.wait_up(&port_a);
        }
        exchange(&mut a, A, &mut b, B);
        at_most("open descriptors", descriptors, open_descriptors);
        at_most("mappings of guest memory", mappings, guest_mappings);
    }
}

#[test]
fn a_guest_may_reconnect_without_waiting_for_anything() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (_, mut b) = switch.guest(|builder| builder);
    for features in RINGS {
        let (port_a, mut a) = switch.guest(|builder| builder.features(features));
        for _ in 0..50 {
            // The switch may not have seen the old connection's end when the new one comes: then it turns the new one
            // away, and the guest tries again, as QEMU does.
            assert!(eventually(|| match a.reconnect() {
                Ok(()) => true,
                Err(GuestError::Closed) => false,
                Err(error) => panic!("{error}"),
            }));
            switch.wait_up(&port_a);
            exchange(&mut a, A, &mut b, B);
        }
    }
}

#[test]
fn frames_offered_while_the_guest_was_cut_off_are_taken_without_a_kick() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (_, mut b) = switch.guest(|builder| builder);
    for features in RINGS.into_iter().flat_map(|features| [features, features & !feature::EVENT_IDX]) {
        let (port_a, mut a) = switch.guest(|builder| builder.features(features));
        exchange(&mut a, A, &mut b, B);
        a.flush().unwrap();
        a.hang_up();
        switch.wait_listening(&port_a);
        for nth in 0..5 {
            a.queue(&numbered(B, A, nth)).unwrap();
        }
        // Published, not kicked.
        a.from_guest().publish();
        a.reconnect().unwrap();
        for nth in 0..5 {
            assert_eq!(b.receive(SOON).unwrap().as_deref().map(number), Some(nth));
        }
        exchange(&mut a, A, &mut b, B);
    }
}

#[test]
fn a_receiver_that_vanishes_in_the_middle_of_traffic_loses_no_buffer() {
    let _alone = alone();
    let switch = TestSwitch::start();
    for features in RINGS {
        let (port_a, a) = switch.guest(|builder| builder);
        let (port_b, mut b) = switch.guest(|builder| builder.features(features));
        b.send(&numbered(BROADCAST, B, 0)).unwrap();
        b.flush().unwrap();
        let flood = Background::start(a, |a, nth| {
            a.send(&numbered(B, A, nth)).unwrap();
        });
        for _ in 0..30 {
            for _ in 0..20 {
                b.receive(SOON).unwrap().expect("frames come");
            }
            drop_out(&switch, &port_b, &mut b);
        }
        let mut a = flood.stop();
        a.flush().unwrap();
        b.flush().unwrap();
        while b.receive(Duration::ZERO).unwrap().is_some() {}
        // Every buffer is in the switch's hands: as many frames as there are buffers arrive in one go.
        assert_eq!(b.to_guest().in_flight(), 256);
        for nth in 0..256 {
            a.send(&numbered(B, A, nth)).unwrap();
        }
        for nth in 0..256 {
            assert_eq!(b.receive(SOON).unwrap().as_deref().map(number), Some(nth));
        }
        drop((a, b));
        switch.remove(&port_a);
        switch.remove(&port_b);
    }
}

/// Leaves without a word and comes back once the switch has let go: only then it is certain where the rings stand.
fn drop_out(switch: &TestSwitch, port: &Port, guest: &mut Guest) {
    guest.hang_up();
    switch.wait_listening(port);
    guest.hang_up();
    guest.reconnect().unwrap();
    switch.wait_up(port);
}

/// Frames that were taken have arrived, and the others come over the next connection: none twice, none lost.
#[test]
fn a_sender_that_vanishes_in_the_middle_of_traffic_loses_no_frame() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (_, mut b) = switch.guest(|builder| builder.ring_size(1024));
    b.send(&numbered(BROADCAST, B, 0)).unwrap();
    for features in RINGS {
        let (port_a, mut a) = switch.guest(|builder| builder.features(features).ring_size(128));
        let (mut sent, mut due) = (0, 0);
        for round in 0..100 {
            for _ in 0..100 {
                a.queue(&numbered(B, A, sent)).unwrap();
                sent += 1;
            }
            a.from_guest().publish_and_kick().unwrap();
            // Now and then it waits for some to be taken.
            for _ in 0..round % 50 {
                assert_eq!(b.receive(SOON).unwrap().as_deref().map(number), Some(due));
                due += 1;
            }
            drop_out(&switch, &port_a, &mut a);
            while due < sent {
                assert_eq!(b.receive(SOON).unwrap().as_deref().map(number), Some(due));
                due += 1;
            }
        }
        drop(a);
        switch.remove(&port_a);
    }
}

#[test]
fn a_second_connection_is_refused_while_the_first_goes_on() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (port_a, mut a) = switch.guest(|builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    let descriptors = open_descriptors();
    for _ in 0..20 {
        let mut intruder = Guest::builder(&port_a.path).build().unwrap();
        if intruder.open().is_ok() {
            assert!(intruder.session().is_closed_within(LIMIT).unwrap(), "the second connection is closed");
        }
        exchange(&mut a, A, &mut b, B);
    }
    at_most("open descriptors", descriptors, open_descriptors);
    let status = switch.status(&port_a);
    assert_eq!((status.state, status.connections), (PortState::Up, 1));
}

#[test]
fn a_guest_for_whom_there_is_no_descriptor_is_served_when_there_is_one() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let port_a = switch.add_port();
    let (_, mut b) = switch.guest(|builder| builder);
    let (_, mut c) = switch.guest(|builder| builder);
    let mut a = Guest::builder(&port_a.path).build().unwrap();
    let mut shortage = Shortage::begin();
    shortage.give_back_one();
    // It takes the last descriptor for its end of the connection, so none is left for the switch's end.
    a.open().unwrap();
    assert!(!a.session().is_closed_within(Duration::from_millis(100)).unwrap(), "a guest that waits is not turned away");
    exchange(&mut b, B, &mut c, mac(3));
    let error = File::open("/dev/null").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::MFILE.raw_os_error()), "the shortage goes on");
    let status = switch.status(&port_a);
    assert_eq!((status.state, status.connections), (PortState::Listening, 0));
    drop(shortage);
    // Nothing new arrives at the socket: the switch has to try again by itself.
    switch.wait_status(&port_a, "the waiting guest being served", |status| status.state == PortState::Connected);
    a.negotiate().unwrap();
    a.post_at_start().unwrap();
    a.start().unwrap();
    switch.wait_up(&port_a);
    exchange(&mut a, A, &mut b, B);
}

#[test]
fn a_ring_stops_at_get_vring_base_and_goes_on_from_there() {
    let _alone = alone();
    let switch = TestSwitch::start();
    for (order, features) in ORDERS.into_iter().flat_map(|order| RINGS.map(|features| (order, features))) {
        let (_, mut a) = switch.guest(|builder| builder.order(order).features(features));
        let (_, mut b) = switch.guest(|builder| builder.order(order).features(features));
        for nth in 0..300 {
            a.send(&numbered(B, A, nth)).unwrap();
            expect_frame(&mut b, &numbered(B, A, nth));
        }
        a.flush().unwrap();
        // A packed ring of 256 is 44 descriptors into its second lap, in what was taken as in what was used.
        let base = if a.from_guest().is_packed() { 44 * 0x1_0001 } else { 300 };
        assert_eq!(a.session().vring_base(1).unwrap(), base);
        assert_eq!(a.session().vring_base(1).unwrap(), base, "a ring that is stopped already says the same");
        a.stop().unwrap();
        a.send(&numbered(B, A, 300)).unwrap();
        a.from_guest().kick().unwrap();
        for _ in 0..3 {
            b.send(&frame(BROADCAST, B, 60)).unwrap();
            b.flush().unwrap();
        }
        assert!(!a.from_guest().has_used(), "a stopped ring is left alone");
        assert!(!a.to_guest().has_used(), "a stopped ring is left alone");
        a.start_ring(0).unwrap();
        a.start_ring(1).unwrap();
        expect_frame(&mut b, &numbered(B, A, 300));
        exchange(&mut a, A, &mut b, B);
    }
}

#[test]
fn a_ring_may_be_restarted_any_number_of_times() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (_, mut b) = switch.guest(|builder| builder);
    for features in RINGS {
        let (port_a, mut a) = switch.guest(|builder| builder.features(features).ring_size(32));
        let (descriptors, mappings) = (open_descriptors(), guest_mappings());
        for round in 0..100 {
            exchange(&mut a, A, &mut b, B);
            a.stop().unwrap();
            if round % 40 == 39 {
                // As if the guest had rebooted, while otherwise the ring goes round several times.
                a.reset().unwrap();
            }
            a.start_ring(0).unwrap();
            a.start_ring(1).unwrap();
        }
        exchange(&mut a, A, &mut b, B);
        at_most("open descriptors", descriptors, open_descriptors);
        at_most("mappings of guest memory", mappings, guest_mappings);
        drop(a);
        switch.remove(&port_a);
    }
}

#[test]
fn a_guest_reboots_on_the_same_connection() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    let mut b = switch.connect(&port_b, |builder| builder);
    for (order, features) in ORDERS.into_iter().flat_map(|order| RINGS.map(|features| (order, features))) {
        let mut a = switch.connect(&port_a, |builder| builder.order(order).features(features));
        for _ in 0..20 {
            exchange(&mut a, A, &mut b, B);
            a.stop().unwrap();
            a.session().set_status(0).unwrap();
            a.reset().unwrap();
            for index in 0..a.memory().len() {
                if order == Order::Qemu {
                    a.session().rem_mem_reg(a.memory().message(index)).unwrap();
                }
            }
            a.start().unwrap();
            switch.wait_up(&port_a);
        }
        exchange(&mut a, A, &mut b, B);
        drop(a);
        switch.wait_listening(&port_a);
    }
}

#[test]
fn a_reset_device_starts_anew() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (_, mut b) = switch.guest(|builder| builder);
    for features in RINGS {
        let (port_a, mut a) = switch.guest(|builder| builder.order(Order::VirtioUser).features(features));
        for _ in 0..20 {
            exchange(&mut a, A, &mut b, B);
            a.flush().unwrap();
            a.session().reset_device().unwrap();
            assert_ne!(switch.status(&port_a).state, PortState::Up);
            b.send(&frame(A, B, 60)).unwrap();
            b.flush().unwrap();
            assert!(!a.to_guest().has_used(), "the rings of a reset device are left alone");
            a.reset().unwrap();
            a.start().unwrap();
            switch.wait_up(&port_a);
        }
        exchange(&mut a, A, &mut b, B);
    }
}

#[test]
fn status_zero_resets_the_device() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (_, mut b) = switch.guest(|builder| builder);
    for features in RINGS {
        let (port_a, mut a) = switch.guest(|builder| builder.order(Order::VirtioUser).features(features));
        exchange(&mut a, A, &mut b, B);
        a.flush().unwrap();
        assert_ne!(a.session().status().unwrap() & 4, 0, "DRIVER_OK is kept");
        a.session().set_status(0).unwrap();
        assert_eq!(a.session().status().unwrap(), 0);
        assert_ne!(switch.status(&port_a).state, PortState::Up);
        a.reset().unwrap();
        a.start().unwrap();
        switch.wait_up(&port_a);
        exchange(&mut a, A, &mut b, B);
    }
}

#[test]
fn memory_may_be_announced_anew_while_traffic_runs() {
    let _alone = alone();
    let switch = TestSwitch::start();
    for (nth, features) in RINGS.into_iter().enumerate() {
        let shape = |builder: Builder| builder.order(ORDERS[nth % 2]).features(features).memory_by(MemoryBy::Table);
        let (port_a, mut a) = switch.guest(shape);
        let (port_b, mut b) = switch.guest(|builder| builder);
        exchange(&mut a, A, &mut b, B);
        let (descriptors, mappings) = (open_descriptors(), guest_mappings());
        let window = Window::default();
        let sender = Background::start((b, 0), {
            let window = window.clone();
            move |(b, back), nth| {
                window.wait_for_room(nth);
                b.send(&numbered(A, B, nth)).unwrap();
                while let Some(frame) = b.receive(Duration::ZERO).unwrap() {
                    assert_eq!(number(&frame), *back);
                    *back += 1;
                }
            }
        });
        // Rings move to the new memory between two batches, so every frame arrives, in order.
        let mut due = 0;
        for round in 0..2000 {
            if round % 10 == 0 {
                a.share_memory().unwrap();
            }
            assert_eq!(number(&a.receive(SOON).unwrap().expect("frames keep coming")), due);
            a.send(&numbered(B, A, due)).unwrap();
            window.received(due);
            due += 1;
        }
        let (mut b, mut back) = sender.stop();
        while back < 2000 {
            assert_eq!(number(&b.receive(SOON).unwrap().expect("what was sent back comes")), back);
            back += 1;
        }
        b.flush().unwrap();
        while let Some(frame) = a.receive(Duration::ZERO).unwrap() {
            assert_eq!(number(&frame), due);
            due += 1;
        }
        switch.expect_drops(&port_a, DropReason::ReceiverDown, 0);
        exchange(&mut a, A, &mut b, B);
        assert_eq!((switch.all_drops(&port_a), switch.all_drops(&port_b)), (vec![], vec![]));
        at_most("open descriptors", descriptors, open_descriptors);
        at_most("mappings of guest memory", mappings, guest_mappings);
        drop((a, b));
        switch.remove(&port_a);
        switch.remove(&port_b);
    }
}

#[test]
fn a_region_can_be_taken_away_and_given_back() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let layout = RegionLayout::at(0x9000_0000, 0x1_0000);
    let (_, mut b) = switch.guest(|builder| builder);
    let sent = frame(B, A, 500);
    let chain = [Buffer::readable(GuestAddr(0x9000_0100), 512)];
    for features in RINGS {
        let (port_a, mut a) = switch.guest(|builder| builder.features(features).memory_by(MemoryBy::Slots).region(layout));
        a.memory().write(GuestAddr(0x9000_0100), &[&[0; 12][..], &sent].concat());
        // Two regions of one guest and one of the other, each mapped by the guest and by the switch.
        let mappings = 6;
        settles("mappings of guest memory", mappings, guest_mappings);
        for round in 1..=10 {
            a.send_buffers(&chain, false).unwrap();
            expect_frame(&mut b, &sent);
            a.flush().unwrap();
            a.session().rem_mem_reg(a.memory().message(1)).unwrap();
            settles("mappings of guest memory", mappings - 1, guest_mappings);
            a.send_buffers(&chain, false).unwrap();
            a.flush().unwrap();
            switch.expect_drops(&port_a, DropReason::BadAddress, round);
            a.session().add_mem_reg(a.memory().message(1), a.memory().file(1)).unwrap();
        }
        exchange(&mut a, A, &mut b, B);
        drop(a);
        switch.remove(&port_a);
    }
}

/// What a guest had in flight when the switch went away is taken up by the next switch. Here the front-end knows where its rings
/// stand; the next test has one that does not.
#[test]
fn guests_go_on_with_another_switch() {
    let _alone = alone();
    let sockets = tempfile::tempdir().unwrap();
    for features in RINGS {
        let start = || {
            let switch = TestSwitch::start();
            let [a, b] = ["a", "b"].map(|name| {
                let socket = sockets.path().join(name);
                switch.add(PortSettings { socket, ..switch.settings() })
            });
            (switch, a, b)
        };
        let (mut switch, port_a, port_b) = start();
        let [mut a, mut b] =
            [port_a, port_b].map(|port| switch.connect(&port, |builder| builder.features(features).ring_size(64)));
        let (mut sent, mut due) = (0, 0);
        for round in 0..20 {
            exchange(&mut a, A, &mut b, B);
            for _ in 0..30 {
                a.send(&numbered(B, A, sent)).unwrap();
                sent += 1;
            }
            for _ in 0..round {
                assert_eq!(b.receive(SOON).unwrap().as_deref().map(number), Some(due));
                due += 1;
            }
            drop(switch);
            a.hang_up();
            b.hang_up();
            // Published, not kicked.
            a.queue(&numbered(B, A, sent)).unwrap();
            a.from_guest().publish();
            sent += 1;
            let (port_a, port_b);
            (switch, port_a, port_b) = start();
            // The receiver first, or frames find it missing.
            b.reconnect().unwrap();
            switch.wait_up(&port_b);
            a.reconnect().unwrap();
            switch.wait_up(&port_a);
            while due < sent {
                assert_eq!(b.receive(SOON).unwrap().as_deref().map(number), Some(due));
                due += 1;
            }
        }
    }
}

/// As QEMU does after a crash of the back-end: of a packed ring it knows where that was started, and says so.
fn reconnect_forgetting(guest: &mut Guest) {
    guest.open().unwrap();
    guest.negotiate().unwrap();
    guest.session().set_features(guest.features()).unwrap();
    guest.share_memory().unwrap();
    for index in 0..2_u16 {
        let ring = guest.ring(index.into());
        let (size, place) = (ring.size(), ring.place());
        let [kick, call] = [ring.kick_fd(), ring.call_fd()].map(|fd| fd.try_clone().unwrap());
        let session = guest.session();
        session.set_vring_num(index, size).unwrap();
        session.set_vring_base(index, 0x8000_8000).unwrap();
        session.set_vring_addr(index, place).unwrap();
        session.set_vring_descriptor(Request::SET_VRING_KICK, index, Some(&kick)).unwrap();
        session.set_vring_descriptor(Request::SET_VRING_CALL, index, Some(&call)).unwrap();
    }
}

#[test]
fn guests_with_packed_rings_go_on_where_these_stand_whatever_the_front_end_says() {
    let _alone = alone();
    let switch = TestSwitch::start();
    for features in [PACKED[0], PACKED[0] & !feature::MRG_RXBUF & !feature::EVENT_IDX] {
        let shape = |builder: Builder| builder.features(features).ring_size(32);
        let ((port_a, mut a), (port_b, mut b)) = (switch.guest(shape), switch.guest(shape));
        let (mut exchanges, mut sent, mut due) = (0_u32, 0, 0);
        // One before what the front-end says, with everything available: `ring_resume` believes the front-end there.
        let in_doubt = |came: u32| came % 64 == 63;
        for round in 0..100 {
            // Every few rounds another number of laps.
            let more = exchanges + round * 5 % 37;
            while exchanges < more || in_doubt(exchanges) || in_doubt(exchanges + sent) {
                exchange(&mut a, A, &mut b, B);
                exchanges += 1;
            }
            for (port, guest) in [(&port_a, &mut a), (&port_b, &mut b)] {
                guest.hang_up();
                switch.wait_listening(port);
            }
            for _ in 0..round % 4 {
                // Published, not kicked.
                a.queue(&numbered(B, A, sent)).unwrap();
                a.from_guest().publish();
                sent += 1;
            }
            // The receiver first, or frames find it missing.
            for (port, guest) in [(&port_b, &mut b), (&port_a, &mut a)] {
                reconnect_forgetting(guest);
                switch.wait_up(port);
            }
            while due < sent {
                assert_eq!(b.receive(SOON).unwrap().as_deref().map(number), Some(due), "round {round}");
                due += 1;
            }
            exchange(&mut a, A, &mut b, B);
            exchanges += 1;
        }
        drop((a, b));
        switch.remove(&port_a);
        switch.remove(&port_b);
    }
}

#[test]
fn a_client_port_connects_again_and_again() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let port_a = switch.add(PortSettings { role: SocketRole::Client, ..switch.settings() });
    let (_, mut b) = switch.guest(|builder| builder);
    assert_eq!(switch.status(&port_a).state, PortState::Connecting);
    for order in ORDERS {
        let mut a = switch.connect(&port_a, |builder| builder.order(order).socket(Socket::Listen));
        let descriptors = open_descriptors();
        for _ in 0..5 {
            exchange(&mut a, A, &mut b, B);
            a.reconnect().unwrap();
            switch.wait_up(&port_a);
        }
        exchange(&mut a, A, &mut b, B);
        at_most("open descriptors", descriptors, open_descriptors);
        drop(a);
        switch.wait_status(&port_a, "the port trying again", |status| status.state == PortState::Connecting);
    }
}

#[test]
fn a_removed_port_lets_its_guest_go_and_leaves_the_others_alone() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (_, mut a) = switch.guest(|builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    exchange(&mut a, A, &mut b, B);
    let (descriptors, mappings) = (open_descriptors(), guest_mappings());
    let settings = switch.settings();
    for _ in 0..20 {
        let port = switch.add(settings.clone());
        let mut guest = switch.connect(&port, |builder| builder);
        let hello = frame(BROADCAST, mac(99), 60);
        guest.send(&hello).unwrap();
        expect_frame(&mut a, &hello);
        expect_frame(&mut b, &hello);
        assert_eq!(switch.station(mac(99)), Some(port.id));
        switch.remove(&port);
        assert!(guest.session().is_closed_within(LIMIT).unwrap());
        assert!(!port.path.exists(), "the socket is gone");
        assert_eq!(switch.station(mac(99)), None, "what was learned behind it is forgotten");
        exchange(&mut a, A, &mut b, B);
    }
    at_most("open descriptors", descriptors, open_descriptors);
    at_most("mappings of guest memory", mappings, guest_mappings);
}

#[test]
fn a_switch_that_ends_leaves_nothing_behind() {
    let _alone = alone();
    let cycle = || {
        let switch = TestSwitch::start();
        let (port, mut a) = switch.guest(|builder| builder);
        let (_, mut b) = switch.guest(|builder| builder);
        exchange(&mut a, A, &mut b, B);
        drop(switch);
        assert!(a.session().is_closed_within(LIMIT).unwrap());
        assert!(!port.path.exists());
    };
    cycle();
    let (descriptors, mappings) = (open_descriptors(), guest_mappings());
    (0..5).for_each(|_| cycle());
    at_most("open descriptors", descriptors, open_descriptors);
    at_most("mappings of guest memory", mappings, guest_mappings);
}

#[test]
fn sixty_four_ports_come_and_go_and_the_others_lose_nothing() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let small = |builder: weft_guest::Builder| builder.ring_size(64);
    let mut pairs = Vec::new();
    for nth in 0..2 {
        let (_, mut a) = switch.guest(small);
        let (_, mut b) = switch.guest(small);
        let (mac_a, mac_b) = (mac(1000 + nth), mac(2000 + nth));
        exchange(&mut a, mac_a, &mut b, mac_b);
        let stations = [mac_a, mac_b];
        pairs.push(Background::start((a, b), move |(a, b), nth| {
            // Frames that the newcomers send to everybody come in between.
            a.send(&numbered(stations[1], stations[0], nth)).unwrap();
            expect_numbered(b, stations[0], nth);
            b.send(&numbered(stations[0], stations[1], nth)).unwrap();
            expect_numbered(a, stations[1], nth);
        }));
    }
    let churn = |rounds: u16| {
        for round in 0..rounds {
            let ports: Vec<Port> = (0..60).map(|_| switch.add_port()).collect();
            let mut guests: Vec<Guest> = ports.iter().step_by(10).map(|port| switch.connect(port, small)).collect();
            for (nth, guest) in guests.iter_mut().enumerate() {
                guest.send(&frame(BROADCAST, mac(3000 + round * 64 + u16::try_from(nth).unwrap()), 60)).unwrap();
            }
            ports.iter().for_each(|port| switch.remove(port));
            drop(guests);
        }
    };
    churn(1);
    let (descriptors, mappings) = (open_descriptors(), guest_mappings());
    churn(6);
    at_most("open descriptors", descriptors, open_descriptors);
    at_most("mappings of guest memory", mappings, guest_mappings);
    for pair in pairs {
        assert!(pair.rounds() > 10, "traffic went on: {} rounds", pair.rounds());
        pair.stop();
    }
}

#[test]
fn sixty_four_guests_talk_at_once() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let mut guests: Vec<Guest> = (0..64).map(|_| switch.guest(|builder| builder.ring_size(64)).1).collect();
    let station = |nth: usize| mac(5000 + u16::try_from(nth).unwrap());
    for nth in 0..64 {
        let hello = frame(BROADCAST, station(nth), 60);
        guests[nth].send(&hello).unwrap();
        for (other, guest) in guests.iter_mut().enumerate() {
            if other != nth {
                expect_frame(guest, &hello);
            }
        }
    }
    for nth in 0..64 {
        let to = (nth + 17) % 64;
        let sent = frame(station(to), station(nth), 1000 + nth);
        guests[nth].send(&sent).unwrap();
        expect_frame(&mut guests[to], &sent);
    }
}

#[test]
fn ten_thousand_stations_are_known_at_once() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (ports, mut guests): (Vec<_>, Vec<_>) = (0..4).map(|_| switch.guest(|builder| builder)).unzip();
    for nth in 0..10_000 {
        let home = usize::from(nth % 4);
        guests[home].send(&frame(mac(1), mac(10_000 + nth), 60)).unwrap();
        for (other, guest) in guests.iter_mut().enumerate() {
            if other != home {
                guest.receive(SOON).unwrap().expect("the station mac(1) is unknown, so everybody gets it");
            }
        }
    }
    let network = switch.network();
    let entries = switch.with(move |dataplane| dataplane.fdb(network));
    assert_eq!(entries.len(), 10_000);
    for nth in (0..10_000).step_by(7) {
        let home = usize::from(nth % 4);
        let sender = (home + 1) % 4;
        let sent = numbered(mac(10_000 + nth), mac(10_000 + u16::try_from(sender).unwrap()), u32::from(nth));
        guests[sender].send(&sent).unwrap();
        expect_frame(&mut guests[home], &sent);
    }
    for guest in &mut guests {
        assert!(!guest.to_guest().has_used(), "frames for known stations go to nobody else");
    }
    drop(ports);
}

#[test]
fn a_guest_that_invents_stations_pushes_out_only_its_own() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (_, mut liar) = switch.guest(|builder| builder);
    let (port_b, mut b) = switch.guest(|builder| builder);
    exchange(&mut liar, A, &mut b, B);
    for nth in 0..40_000_u32 {
        let [_, _, high, low] = nth.to_be_bytes();
        // Nobody else learns of these: the station B is known, and B takes the frames.
        liar.send(&frame(B, [6, 0, 0, 0, high, low], 60)).unwrap();
        b.receive(SOON).unwrap().expect("the frame comes");
    }
    assert_eq!(switch.station(B), Some(port_b.id));
    let network = switch.network();
    let status = switch.with(move |dataplane| dataplane.network_status(network)).unwrap();
    assert!(status.fdb_entries <= 16_384, "{} entries", status.fdb_entries);
    assert!(status.fdb.evicted > 20_000, "{:?}", status.fdb);
}

/// The next frame from this station has this number; frames of others are passed over.
#[track_caller]
fn expect_numbered(guest: &mut Guest, from: [u8; 6], expected: u32) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let received = guest.receive(left).unwrap().unwrap_or_else(|| panic!("frame {expected} of {from:02x?} was lost"));
        if received[6..12] == from {
            assert_eq!(number(&received), expected);
            return;
        }
    }
}

/// This process gets no descriptor more, until this is dropped. Only while [`alone`] is held.
struct Shortage {
    limit: Rlimit,
    fillers: Vec<File>,
}

impl Shortage {
    fn begin() -> Self {
        let limit = getrlimit(Resource::Nofile);
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let highest = open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u64>().unwrap()).max().unwrap();
        // First, so that dropping it undoes whatever comes of the rest.
        let mut shortage = Self { limit, fillers: Vec::new() };
        setrlimit(Resource::Nofile, Rlimit { current: Some(highest + 1), ..limit }).unwrap();
        // There may be free numbers below the highest.
        while let Ok(file) = File::open("/dev/null") {
            shortage.fillers.push(file);
        }
        shortage
    }

    fn give_back_one(&mut self) {
        self.fillers.pop().expect("the number under which the numbers were listed was free at least");
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        self.fillers.clear();
        setrlimit(Resource::Nofile, self.limit).expect("a soft limit may be raised to what it was");
    }
}

/// Keeps a sender from being further ahead of the receiver than the receiver has buffers.
#[derive(Clone, Default)]
struct Window(Arc<std::sync::atomic::AtomicU32>);

impl Window {
    fn received(&self, number: u32) {
        self.0.store(number + 1, Ordering::Relaxed);
    }

    /// Returns without room after a while, so that a sender can be stopped.
    fn wait_for_room(&self, number: u32) {
        let deadline = Instant::now() + Duration::from_millis(500);
        while number >= self.0.load(Ordering::Relaxed) + 200 && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}
