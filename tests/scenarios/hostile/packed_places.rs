//! Attacks through what a front-end says about packed rings: sizes, positions, areas.

use vhost::vhost_user::message::VhostUserVringState;
use vm_memory::ByteValued;
use weft_guest::{Buffer, Request, RingPlace, Shape, UserAddr, feature};

use crate::common::{BROADCAST, Numbers, ORDERS, PACKED, exchange, expect_frame, frame};
use crate::packed::{Place, restart, start};
use crate::siege::{FROM_GUEST, GOOD, Siege, TO_GUEST, WITNESS};

#[test]
fn a_position_beyond_the_ring_ends_the_connection() {
    let mut siege = Siege::begin();
    for ring in [FROM_GUEST, TO_GUEST] {
        for at in [256_u16, 257, 0x7fff] {
            for wrap in [0, 0x8000] {
                for used in [0, u32::from(at | wrap) << 16] {
                    let mut guest = siege.attacker(|builder| builder.features(PACKED[0]));
                    restart(&mut guest, ring, used | u32::from(at | wrap));
                    let reason = format!("the position {at} is beyond the ring's 256 entries");
                    siege.expect_repelled_because(guest, &format!("position {at:#x}"), &reason);
                }
            }
        }
    }
    // The ring shrinks under its position.
    let mut guest = siege.attacker(|builder| builder.features(PACKED[0]));
    guest.session().vring_base(1).unwrap();
    guest.session().set_vring_base(1, Place { at: 200, wrap: true }.base()).unwrap();
    guest.session().set_vring_num(1, 200).unwrap();
    start(&mut guest, FROM_GUEST);
    siege.expect_repelled_because(guest, "a smaller ring", "the position 200 is beyond the ring's 200 entries");
    siege.end();
}

/// Front-ends differ in what they say there.
#[test]
fn the_upper_half_of_a_position_is_not_believed() {
    let mut siege = Siege::begin();
    for features in PACKED {
        let mut guest = siege.attacker(|builder| builder.features(features));
        for upper in [0, 0x8000, 0xffff, 5, 0x8005] {
            guest.flush().unwrap();
            let base = guest.session().vring_base(1).unwrap();
            restart(&mut guest, FROM_GUEST, upper << 16 | base & 0xffff);
            siege.expect_unharmed(&mut guest, &format!("upper half {upper:#x}"));
        }
        siege.leave(guest);
    }
    siege.end();
}

#[test]
fn a_lie_about_the_position_harms_only_the_liar() {
    let mut siege = Siege::begin();
    for features in PACKED {
        for ring in [FROM_GUEST, TO_GUEST] {
            for (step, wrap) in [(0, 0x8000), (1, 0), (250, 0), (255, 0x8000), (31, 0x8000)] {
                let mut guest = siege.attacker(|builder| builder.features(features));
                guest.post(100, 2048, &Shape::one()).unwrap();
                for _ in 0..40 {
                    siege.expect_unharmed(&mut guest, "before the lie");
                }
                guest.flush().unwrap();
                let base = guest.session().vring_base(u16::try_from(ring).unwrap()).unwrap() & 0xffff;
                let lie = (base & 0x7fff) + step;
                restart(&mut guest, ring, (lie % 256) | (base & 0x8000) ^ wrap);
                let slot = guest.slot(FROM_GUEST, 0);
                for _ in 0..100 {
                    siege.witness.send(&frame(BROADCAST, WITNESS, 60)).unwrap();
                    guest.from_guest().add(&[Buffer::readable(slot, 72)], false).ok();
                    guest.from_guest().publish_and_kick().unwrap();
                }
                siege.while_others_exchange(5);
                // Nothing is left of it once the rings begin anew.
                guest.stop().unwrap();
                guest.reset().unwrap();
                guest.post(100, 2048, &Shape::one()).unwrap();
                guest.start_ring(TO_GUEST).unwrap();
                guest.start_ring(FROM_GUEST).unwrap();
                siege.forget_frames();
                exchange(&mut guest, GOOD, &mut siege.witness, WITNESS);
                siege.leave(guest);
            }
        }
    }
    siege.end();
}

/// Where chains have two descriptors, flags don't tell where a ring stands.
#[test]
fn a_packed_ring_that_is_started_while_it_runs_goes_on_where_it_is() {
    let mut siege = Siege::begin();
    for features in PACKED {
        let mut guest = siege.attacker(|builder| builder.features(features));
        let two = Shape::header_apart(guest.header_len());
        for _ in 0..5 {
            for _ in 0..6 {
                let sent = frame(WITNESS, GOOD, 200);
                guest.send_shaped(&sent, &two).unwrap();
                expect_frame(&mut siege.witness, &sent);
            }
            guest.flush().unwrap();
            start(&mut guest, FROM_GUEST);
            siege.expect_unharmed(&mut guest, "a kick descriptor for a ring that runs");
        }
        siege.leave(guest);
    }
    siege.end();
}

#[test]
fn sizes_that_no_packed_ring_has_end_the_connection() {
    let mut siege = Siege::begin();
    for size in [0_u32, 0x8001, 0xffff, 0x1_0000, 0x1_0003, u32::MAX] {
        let guest = siege.attacker(|builder| builder.features(PACKED[0]).ring_size(3));
        guest.session().vring_base(1).unwrap();
        let payload = VhostUserVringState::new(1, size);
        guest.session().request(Request::SET_VRING_NUM, false, payload.as_slice(), &[]).unwrap();
        siege.expect_repelled_because(guest, &format!("size {size}"), &format!("the size {size} is no"));
    }
    siege.end();
}

/// Sizes and positions that were fine for packed rings, and split ones that are to start with them.
#[test]
fn what_a_packed_ring_left_behind_is_checked_anew_for_a_split_one() {
    let mut siege = Siege::begin();
    for order in ORDERS {
        let mut guest = siege.attacker(|builder| builder.features(PACKED[0]).ring_size(3).order(order));
        guest.stop().unwrap();
        guest.session().set_features(guest.features() & !feature::RING_PACKED).unwrap();
        start(&mut guest, FROM_GUEST);
        siege.expect_repelled_because(guest, "a split ring of 3", "ring size 3 is no power of two");
    }
    siege.end();
}

#[test]
fn areas_that_can_not_be_end_the_connection_of_packed_rings_too() {
    type Change = fn(RingPlace, UserAddr) -> RingPlace;
    let table = "descriptor ring at";
    let changes: [(&str, &str, &str, Change); 9] = [
        ("unaligned descriptors", table, "must be aligned to 16 bytes", |place, _| RingPlace {
            descriptors: place.descriptors + 8,
            ..place
        }),
        ("an unaligned driver area", "driver event suppression at", "must be aligned to 4 bytes", |place, _| RingPlace {
            avail: place.avail + 2,
            ..place
        }),
        ("an unaligned device area", "device event suppression at", "must be aligned to 4 bytes", |place, _| RingPlace {
            used: place.used + 2,
            ..place
        }),
        ("descriptors outside memory", table, "(4096 bytes) does not lie", |place, _| RingPlace {
            descriptors: UserAddr(0x10),
            ..place
        }),
        ("descriptors that end outside memory", table, "(4096 bytes) does not lie", |place, end| RingPlace {
            descriptors: UserAddr(end.0 - 4080),
            ..place
        }),
        ("a driver area outside memory", "driver event suppression at", "(4 bytes) does not lie", |place, end| RingPlace {
            avail: end,
            ..place
        }),
        ("a driver area at the end of the address space", "driver event suppression at", "(4 bytes)", |place, _| RingPlace {
            avail: UserAddr(!3),
            ..place
        }),
        ("a device area outside memory", "device event suppression at", "(4 bytes) does not lie", |place, end| RingPlace {
            used: end,
            ..place
        }),
        ("a device area at the end of the address space", "device event suppression at", "(4 bytes)", |place, _| RingPlace {
            used: UserAddr(!3),
            ..place
        }),
    ];
    let mut siege = Siege::begin();
    for (what, area, reason, change) in changes {
        for (ring, running) in [(TO_GUEST, false), (FROM_GUEST, false), (TO_GUEST, true), (FROM_GUEST, true)] {
            let mut guest = siege.attacker(|builder| builder.features(PACKED[0]));
            if !running {
                guest.stop().unwrap();
            }
            let layout = guest.memory().layout(0);
            let place = change(guest.ring(ring).place(), layout.user + layout.size);
            let index = u16::try_from(ring).unwrap();
            guest.session().set_vring_addr(index, place).ok();
            start(&mut guest, ring);
            let given = siege.expect_repelled_because(guest, what, reason);
            assert!(given.contains(area), "{what}: {given}");
        }
    }
    siege.end();
}

/// A guest that lays its rings over each other, or over itself, hurts only itself; neither does noise in them.
#[test]
fn packed_rings_inside_other_rings_and_noise_harm_nobody() {
    let mut siege = Siege::begin();
    let mut numbers = Numbers::from(7);
    for round in 0..80 {
        let mut guest = siege.attacker(|builder| builder.features(PACKED[round % 2]));
        guest.stop().unwrap();
        let places = [guest.ring(TO_GUEST).place(), guest.ring(FROM_GUEST).place()];
        let bases =
            [places[0].descriptors, places[0].avail, places[0].used, places[1].descriptors, places[1].avail, places[1].used];
        for ring in [TO_GUEST, FROM_GUEST] {
            let noise: Vec<u8> = (0..4096).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
            let base = guest.ring(ring).descriptor_address(0);
            guest.memory().write(base, &noise);
        }
        for index in 0..2 {
            let mut pick = || bases[numbers.below(6)] + 16 * (numbers.below(64) as u64);
            let place = RingPlace { descriptors: pick(), avail: pick(), used: pick() };
            guest.session().set_vring_addr(index, place).ok();
            guest.session().set_vring_base(index, Place { at: index * 100, wrap: round % 3 == 0 }.base()).ok();
            start(&mut guest, index.into());
        }
        guest.from_guest().kick().unwrap();
        for _ in 0..20 {
            siege.witness.send(&frame(BROADCAST, WITNESS, 200)).unwrap();
        }
        siege.while_others_exchange(2);
        siege.leave(guest);
    }
    siege.end();
}
