//! Attacks through the memory of packed rings: flags, wrap counters, buffer ids, chains, wishes for notifications.
//!
//! What does not depend on the kind of ring is in `rings`, which tries it on all of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use weft_guest::{
    Buffer, Descriptor, EventSuppression, Guest, GuestAddr, GuestError, PackedDescriptor, RegionLayout, Request, Shape, feature,
};
use weft_switch::DropReason;

use crate::common::{BROADCAST, Background, Numbers, PACKED, SOON, eventually, expect_frame, frame};
use crate::siege::{FROM_GUEST, GOOD, Siege, TO_GUEST, WITNESS};

const NEXT: u16 = Descriptor::NEXT;
const INDIRECT: u16 = Descriptor::INDIRECT;
/// Descriptors of a ring unless said otherwise.
const SIZE: u16 = 256;
/// The longest chain that is taken.
const CHAIN_MAX: usize = 1024;

/// A place in a packed ring, and the wrap counter of the lap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) at: u16,
    pub(crate) wrap: bool,
}

const START: Place = Place { at: 0, wrap: true };
/// Where attacks begin: at the start, and shortly before the end of either lap.
const PLACES: [Place; 3] = [START, Place { at: SIZE - 1, wrap: true }, Place { at: SIZE - 2, wrap: false }];

impl Place {
    fn after(self, count: usize, size: u16) -> Self {
        let (at, size) = (usize::from(self.at) + count, usize::from(size));
        Self { at: u16::try_from(at % size).unwrap(), wrap: self.wrap != (at / size % 2 == 1) }
    }

    /// As `SET_VRING_BASE` says it, in both halves.
    pub(crate) fn base(self) -> u32 {
        (u32::from(self.at) | u32::from(self.wrap) << 15) * 0x1_0001
    }
}

/// A driver that writes one of its packed rings by hand.
struct Liar {
    guest: Guest,
    ring: usize,
    /// Where the next descriptor goes.
    place: Place,
}

impl Liar {
    fn new(siege: &Siege, features: u64, ring: usize) -> Self {
        Self { guest: siege.attacker(|builder| builder.features(features).ring_size(SIZE)), ring, place: START }
    }

    /// One whose ring has got somewhere else.
    fn at(siege: &Siege, features: u64, ring: usize, place: Place) -> Self {
        let mut liar = Self { place, ..Self::new(siege, features, ring) };
        for at in 0..SIZE {
            let wrap = if at < place.at { place.wrap } else { !place.wrap };
            liar.guest.ring(ring).write_packed_flags(at, PackedDescriptor::used_flags(wrap));
        }
        restart(&mut liar.guest, ring, place.base());
        liar
    }

    /// A descriptor of the ring's direction whose buffer lies in the first slot.
    fn good(&self, len: u32, id: u16, flags: u16) -> PackedDescriptor {
        let direction = if self.ring == TO_GUEST { Descriptor::WRITE } else { 0 };
        PackedDescriptor { address: self.guest.slot(self.ring, 0).0, len, id, flags: flags | direction }
    }

    /// Makes descriptors available, the first of them last, and kicks.
    fn show(&mut self, descriptors: &[PackedDescriptor]) {
        self.show_with(descriptors, PackedDescriptor::available_flags);
    }

    /// The same, but what says whose turn it is in all descriptors after the first is for the caller to choose.
    fn show_with(&mut self, descriptors: &[PackedDescriptor], others: fn(bool) -> u16) {
        let (first, ring) = (self.place, self.guest.ring(self.ring));
        for (nth, descriptor) in descriptors.iter().enumerate().rev() {
            let Place { at, wrap } = first.after(nth, ring.size());
            let turn = if nth == 0 { PackedDescriptor::available_flags(wrap) } else { others(wrap) };
            ring.write_packed_descriptor(at, PackedDescriptor { flags: descriptor.flags | turn, ..*descriptor });
        }
        self.place = first.after(descriptors.len(), ring.size());
        ring.kick().unwrap();
    }

    /// Shows a descriptor that leads to an indirect table of these entries, with the length and flags given.
    fn show_indirect(&mut self, table: &[PackedDescriptor], len: u32, flags: u16) {
        let address = self.guest.ring(self.ring).indirect_table(0);
        for (at, entry) in table.iter().enumerate() {
            self.guest.memory().write(address + 16 * at as u64, &entry.bytes());
        }
        self.show(&[PackedDescriptor { address: address.0, len, id: 0, flags: INDIRECT | flags }]);
    }

    /// The id in the used descriptor at a place, once it is there.
    #[track_caller]
    fn used_id(&mut self, place: Place) -> u16 {
        const BOTH: u16 = PackedDescriptor::AVAIL | PackedDescriptor::USED;
        let ring = self.guest.ring(self.ring);
        let used = || ring.packed_flags(place.at) & BOTH == PackedDescriptor::used_flags(place.wrap);
        assert!(eventually(used), "nothing was used at {place:?}: {:?}", ring.packed_descriptor(place.at));
        ring.packed_descriptor(place.at).id
    }
}

/// Stops a ring and has it go on at this base.
pub(crate) fn restart(guest: &mut Guest, ring: usize, base: u32) {
    let index = u16::try_from(ring).unwrap();
    guest.session().vring_base(index).unwrap();
    guest.session().set_vring_base(index, base).unwrap();
    start(guest, ring);
    // Not every request has an answer: after the answer to this one, all of them were handled.
    guest.session().features().ok();
}

/// Starts a ring, which may be answered with the end of the connection.
pub(crate) fn start(guest: &mut Guest, ring: usize) {
    let kick = guest.ring(ring).kick_fd().try_clone().unwrap();
    match guest.session().set_vring_descriptor(Request::SET_VRING_KICK, u16::try_from(ring).unwrap(), Some(&kick)) {
        Ok(()) | Err(GuestError::Closed) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Puts a frame behind its header into the first slot of the sending ring; returns the length of both.
fn prepare(guest: &Guest, frame: &[u8]) -> u32 {
    let bytes = [&[0; 12][..], frame].concat();
    guest.memory().write(guest.slot(FROM_GUEST, 0), &bytes);
    u32::try_from(bytes.len()).unwrap()
}

/// Frames that the attacked port has sent or got, or that were dropped on it.
fn handled(siege: &Siege) -> u64 {
    let counters = siege.switch.status(&siege.port).counters;
    let dropped: u64 = counters.drops.iter().map(|(_, count)| count).sum();
    counters.from_guest_frames + counters.to_guest_frames + dropped
}

/// What is tried, part of the reason that must be given beside the ring, and how.
type PackedAttack = (&'static str, &'static str, fn(&mut Liar));

const STRUCTURAL: &[PackedAttack] = &[
    ("a chain without an end", "so it has a loop", |liar| liar.show(&vec![liar.good(1, 0, NEXT); 256])),
    ("a chain without an end whose first buffer is enough", "so it has a loop", |liar| {
        let mut chain = vec![liar.good(1, 0, NEXT); 256];
        chain[0].len = 2000;
        liar.show(&chain);
    }),
    ("a chain without an end that begins with nothing", "so it has a loop", |liar| {
        let mut chain = vec![liar.good(1, 0, NEXT); 256];
        chain[0].len = 0;
        liar.show(&chain);
    }),
    ("an indirect table behind another descriptor", "with NEXT, or inside", |liar| {
        liar.show(&[liar.good(20, 0, NEXT), liar.good(16, 0, INDIRECT)]);
    }),
    ("an indirect table at the end of a chain that is long enough without it", "with NEXT, or inside", |liar| {
        liar.show(&[liar.good(2000, 0, NEXT), liar.good(16, 0, INDIRECT)]);
    }),
    ("an indirect table that goes on", "with NEXT, or inside", |liar| {
        liar.show_indirect(&[liar.good(100, 0, 0)], 16, NEXT);
    }),
    ("an indirect table of 0 bytes", "an indirect table of 0 bytes", |liar| liar.show_indirect(&[], 0, 0)),
    ("an indirect table of 15 bytes", "an indirect table of 15 bytes", |liar| {
        liar.show_indirect(&[liar.good(100, 0, 0)], 15, 0);
    }),
    ("an indirect table of 17 bytes", "an indirect table of 17 bytes", |liar| {
        liar.show_indirect(&[liar.good(100, 0, 0)], 17, 0);
    }),
    ("an indirect table of 4 GiB", "an indirect table of 4294967280 bytes", |liar| {
        liar.show_indirect(&[liar.good(100, 0, 0)], !15, 0);
    }),
    ("an indirect table outside memory", "an indirect table of 16 bytes at 0x4000000000000", |liar| {
        liar.show(&[PackedDescriptor { address: 1 << 50, len: 16, id: 0, flags: INDIRECT }]);
    }),
    ("an indirect table at the end of the address space", "an indirect table of 32 bytes at 0xfffffffffffffff0", |liar| {
        liar.show(&[PackedDescriptor { address: u64::MAX - 15, len: 32, id: 0, flags: INDIRECT }]);
    }),
    ("an indirect table that ends outside memory", "an indirect table of 32 bytes", |liar| {
        let layout = liar.guest.memory().layout(0);
        let address = layout.guest.0 + layout.size - 16;
        liar.guest.memory().write(GuestAddr(address), &liar.good(20, 0, 0).bytes());
        liar.show(&[PackedDescriptor { address, len: 32, id: 0, flags: INDIRECT }]);
    }),
];

#[test]
fn a_broken_packed_ring_ends_the_connection() {
    let mut siege = Siege::begin();
    for features in PACKED {
        for (what, reason, attack) in STRUCTURAL {
            for (ring, place) in [FROM_GUEST, TO_GUEST].into_iter().flat_map(|ring| PLACES.map(|place| (ring, place))) {
                let mut liar = Liar::at(&siege, features, ring, place);
                attack(&mut liar);
                let given = siege.expect_repelled_because(liar.guest, &format!("{what} at {place:?}"), reason);
                assert!(given.starts_with(&format!("ring {ring}: ")), "{what}, ring {ring}: {given}");
                siege.forget_frames();
            }
        }
    }
    siege.end();
}

#[test]
fn an_indirect_table_that_was_not_agreed_on_ends_the_connection_of_packed_rings_too() {
    let mut siege = Siege::begin();
    for ring in [FROM_GUEST, TO_GUEST] {
        for features in PACKED {
            let mut liar = Liar::new(&siege, features & !feature::INDIRECT_DESC, ring);
            liar.show_indirect(&[liar.good(100, 0, 0)], 16, 0);
            siege.expect_repelled_because(liar.guest, "an indirect table", "INDIRECT_DESC was not negotiated");
            siege.forget_frames();
        }
    }
    siege.end();
}

/// What was taken before in the same batch is still out: a chain may take all that is left of the ring, and no more.
#[test]
fn a_chain_does_not_reach_into_what_is_still_out() {
    let mut siege = Siege::begin();
    for features in PACKED {
        for place in PLACES {
            for (len, fits) in [(SIZE - 31, true), (SIZE - 30, false)] {
                let mut liar = Liar::at(&siege, features, FROM_GUEST, place);
                let sent = frame(WITNESS, GOOD, 300);
                let whole = prepare(&liar.guest, &sent);
                let mut chains = vec![liar.good(whole, 1, 0); 31];
                let mut left = whole;
                for nth in (0..len).rev() {
                    let piece = if nth == 0 { left } else { 1 };
                    let address = liar.good(0, 0, 0).address + u64::from(whole - left);
                    let flags = if nth == 0 { 0 } else { NEXT };
                    chains.push(PackedDescriptor { address, ..liar.good(piece, 2, flags) });
                    left -= piece;
                }
                liar.show(&chains);
                if fits {
                    (0..32).for_each(|_| expect_frame(&mut siege.witness, &sent));
                    siege.leave(liar.guest);
                } else {
                    siege.expect_repelled_because(liar.guest, "a chain that reaches round to its own batch", "so it has a loop");
                    siege.forget_frames();
                }
            }
        }
    }
    siege.end();
}

#[test]
fn a_long_chain_is_taken_up_to_a_limit() {
    let mut siege = Siege::begin();
    for features in PACKED {
        for indirect in [false, true] {
            for len in [CHAIN_MAX, CHAIN_MAX + 1] {
                let mut guest = siege.attacker(|builder| builder.features(features).ring_size(2048));
                // Two descriptors before the end, so that the chain goes over the wrap.
                for _ in 0..2046 {
                    guest.send(&frame(GOOD, GOOD, 60)).unwrap();
                }
                guest.flush().unwrap();
                let before = siege.switch.drops(&siege.port, DropReason::TooLong);
                let sent = frame(WITNESS, GOOD, len - 12);
                let shape = Shape::pieces(&vec![1; len]);
                guest.send_shaped(&sent, &if indirect { shape.indirect() } else { shape }).unwrap();
                match (len, indirect) {
                    (CHAIN_MAX, _) => expect_frame(&mut siege.witness, &sent),
                    // The table takes one descriptor of the ring, so it is known where the next chain begins.
                    (_, true) => siege.switch.expect_drops(&siege.port, DropReason::TooLong, before + 1),
                    (_, false) => {
                        siege.expect_repelled_because(guest, "a chain of 1,025 descriptors", "more than 1024 descriptors");
                        siege.forget_frames();
                        continue;
                    }
                }
                siege.expect_unharmed(&mut guest, "a long chain");
                siege.leave(guest);
            }
        }
    }
    siege.end();
}

/// Reserved fields and whatever the driver alone makes use of.
#[test]
fn what_the_device_has_no_use_for_may_be_anything() {
    type Chain = fn(&mut Liar, u32) -> (usize, u16);
    let chains: [(&str, Chain); 6] = [
        ("an id beyond the ring", |liar, len| {
            liar.show(&[liar.good(len, u16::MAX, 0)]);
            (1, u16::MAX)
        }),
        ("ids in every descriptor of a chain", |liar, len| {
            let [first, second, rest] = pieces(liar, len);
            liar.show(&[PackedDescriptor { id: 1, ..first }, PackedDescriptor { id: SIZE, ..second }, rest]);
            (3, 7)
        }),
        ("a chain whose other descriptors are not available", |liar, len| {
            let chain = pieces(liar, len);
            liar.show_with(&chain, |wrap| PackedDescriptor::available_flags(!wrap));
            (3, 7)
        }),
        ("a chain whose other descriptors are used", |liar, len| {
            let chain = pieces(liar, len);
            liar.show_with(&chain, PackedDescriptor::used_flags);
            (3, 7)
        }),
        ("every reserved flag", |liar, len| {
            liar.show(&[liar.good(len, 9, 0x7f78)]);
            (1, 9)
        }),
        ("flags and ids in an indirect table", |liar, len| {
            let table =
                pieces(liar, len).map(|piece| PackedDescriptor { id: 0xabcd, flags: piece.flags ^ (0xfffd & !NEXT), ..piece });
            liar.show_indirect(&table, 48, 0);
            (1, 0)
        }),
    ];
    fn pieces(liar: &Liar, len: u32) -> [PackedDescriptor; 3] {
        let piece = |at: u32, len, flags| {
            let good = liar.good(len, 7, flags);
            PackedDescriptor { address: good.address + u64::from(at), ..good }
        };
        [piece(0, 10, NEXT), piece(10, 20, NEXT), piece(30, len - 30, 0)]
    }
    let mut siege = Siege::begin();
    for features in PACKED {
        for place in PLACES {
            let mut liar = Liar::at(&siege, features, FROM_GUEST, place);
            for (what, chain) in &chains {
                let sent = frame(WITNESS, GOOD, 500);
                let len = prepare(&liar.guest, &sent);
                let begin = liar.place;
                let (slots, id) = chain(&mut liar, len);
                assert_eq!(siege.witness.receive(SOON).unwrap(), Some(sent), "{what}");
                assert_eq!(liar.used_id(begin), id, "{what}");
                assert_eq!(liar.place.at, begin.after(slots, SIZE).at, "{what}");
            }
            siege.leave(liar.guest);
        }
    }
    siege.end();
}

#[test]
fn the_same_id_twice_comes_back_twice() {
    let mut siege = Siege::begin();
    let mut liar = Liar::new(&siege, PACKED[0], FROM_GUEST);
    let sent = frame(WITNESS, GOOD, 100);
    let len = prepare(&liar.guest, &sent);
    liar.show(&[liar.good(len, 5, 0); 40]);
    (0..40).for_each(|_| expect_frame(&mut siege.witness, &sent));
    for nth in 0..40 {
        assert_eq!(liar.used_id(START.after(nth, SIZE)), 5);
    }
    siege.leave(liar.guest);
    siege.end();
}

#[test]
fn descriptors_of_the_wrong_lap_are_left_alone() {
    let mut siege = Siege::begin();
    for features in PACKED {
        for place in PLACES {
            for ring in [FROM_GUEST, TO_GUEST] {
                let mut liar = Liar::at(&siege, features, ring, place);
                prepare(&liar.guest, &frame(WITNESS, GOOD, 100));
                let good = liar.good(if ring == TO_GUEST { 2000 } else { 112 }, 3, 0);
                let wrongs = [
                    PackedDescriptor::available_flags(!place.wrap),
                    PackedDescriptor::used_flags(true),
                    PackedDescriptor::used_flags(false),
                ];
                for (nth, turn) in wrongs.into_iter().enumerate() {
                    let wrong = PackedDescriptor { flags: good.flags | turn, ..good };
                    let full = siege.switch.drops(&siege.port, DropReason::ReceiverFull);
                    let taken = siege.switch.status(&siege.port).counters.from_guest_frames;
                    liar.guest.ring(ring).write_packed_descriptor(place.at, wrong);
                    liar.guest.ring(ring).kick().unwrap();
                    siege.while_others_exchange(2);
                    if ring == TO_GUEST {
                        siege.witness.send(&frame(BROADCAST, WITNESS, 60)).unwrap();
                        siege.switch.expect_drops(&siege.port, DropReason::ReceiverFull, full + 1);
                    }
                    assert_eq!(siege.switch.status(&siege.port).counters.from_guest_frames, taken, "wrong {nth} at {place:?}");
                    assert_eq!(liar.guest.ring(ring).packed_descriptor(place.at), wrong, "wrong {nth} at {place:?}");
                }
                liar.show(&[good]);
                siege.witness.send(&frame(BROADCAST, WITNESS, 60)).unwrap();
                assert_eq!(liar.used_id(place), 3);
                siege.leave(liar.guest);
            }
        }
    }
    siege.end();
}

/// A wish that makes no sense costs the guest its interrupts at most, or gets it some that it did not want.
#[test]
fn nonsense_about_notifications_harms_nobody() {
    const RING: u16 = 5;
    let mut siege = Siege::begin();
    for features in PACKED.into_iter().flat_map(|features| [features, features & !feature::EVENT_IDX]) {
        let mut guest = siege.attacker(|builder| builder.features(features).ring_size(RING));
        guest.post(usize::from(RING), 2048, &Shape::one()).unwrap();
        for desc in [0, RING - 1, RING, 0x7fff].into_iter().flat_map(|at| [at, at | 0x8000]) {
            for flags in [EventSuppression::ENABLE, EventSuppression::DISABLE, EventSuppression::DESC, 3, 0xfffc, 0xfffe, 0xffff]
            {
                for ring in [FROM_GUEST, TO_GUEST] {
                    guest.ring(ring).write_driver_event(EventSuppression { desc, flags });
                }
                // More than a lap of either ring.
                for nth in 0..6 {
                    let (there, back) = (frame(WITNESS, GOOD, 60 + nth), frame(GOOD, WITNESS, 80 + nth));
                    let slot = guest.slot(FROM_GUEST, 0);
                    let len = prepare(&guest, &there);
                    guest.from_guest().add(&[Buffer::readable(slot, len)], false).unwrap();
                    guest.from_guest().publish_and_kick().unwrap();
                    expect_frame(&mut siege.witness, &there);
                    assert!(guest.from_guest().poll_used(SOON), "{desc:#x}, {flags:#x}");
                    guest.reclaim().unwrap();
                    siege.witness.send(&back).unwrap();
                    assert!(guest.to_guest().poll_used(SOON), "{desc:#x}, {flags:#x}");
                    expect_frame(&mut guest, &back);
                }
            }
        }
        siege.leave(guest);
    }
    siege.end();
}

/// As many descriptors as a ring has, in chains of every length, made available again and again in both laps without a look at
/// what was used.
#[test]
fn a_ring_that_is_always_available_holds_nobody_up() {
    for (ring_size, chain_len, first_len) in
        [(1, 1, 72), (31, 1, 72), (256, 1, 72), (1024, 1024, 1), (1024, 1024, 0), (2046, 341, 0)]
    {
        for (ring, features) in [FROM_GUEST, TO_GUEST].into_iter().flat_map(|ring| PACKED.map(|features| (ring, features))) {
            let mut siege = Siege::begin();
            let mut guest = siege.attacker(|builder| builder.features(features).ring_size(ring_size));
            prepare(&guest, &frame(GOOD, GOOD, 60));
            let direction = if ring == TO_GUEST { Descriptor::WRITE } else { 0 };
            let address = guest.slot(ring, 0).0;
            let heads: Vec<u16> = (0..ring_size).step_by(chain_len).collect();
            for at in 0..ring_size {
                let is_last = usize::from(at) % chain_len == chain_len - 1;
                let flags = direction | if is_last { 0 } else { NEXT };
                guest.ring(ring).write_packed_descriptor(at, PackedDescriptor { address, len: 72, id: at, flags });
            }
            let flags = direction | if chain_len > 1 { NEXT } else { 0 };
            let attack = Background::start(guest, move |guest, nth| {
                let flags = flags | PackedDescriptor::available_flags(nth % 2 == 0);
                for &at in &heads {
                    guest.ring(ring).write_packed_descriptor(at, PackedDescriptor { address, len: first_len, id: at, flags });
                }
                guest.ring(ring).kick().ok();
            });
            let (before, start) = (handled(&siege), Instant::now());
            for _ in 0..20 {
                siege.witness.send(&frame(BROADCAST, WITNESS, 1000)).unwrap();
                siege.while_others_exchange(1);
            }
            let elapsed = start.elapsed();
            let guest = attack.stop();
            let what = format!("ring {ring} of {ring_size}, chains of {chain_len}, the first buffer of {first_len}");
            assert!(elapsed < Duration::from_secs(1), "{what}: 20 exchanges of others took {elapsed:?}");
            assert!(handled(&siege) > before, "{what}: the attack was never looked at");
            siege.leave(guest);
            siege.end();
        }
    }
}

/// Every descriptor of a ring that is always available leads to a table of 32,768 buffers of one byte.
#[test]
fn long_indirect_tables_one_after_the_other_hold_nobody_up() {
    const ENTRIES: u32 = 0x8000;
    let mut siege = Siege::begin();
    let table = RegionLayout::at(0x100_0000_0000, 1 << 20);
    for (ring, features) in [FROM_GUEST, TO_GUEST].into_iter().flat_map(|ring| PACKED.map(|features| (ring, features))) {
        let guest = siege.attacker(|builder| builder.features(features).region(table));
        let flags = if ring == TO_GUEST { Descriptor::WRITE } else { 0 };
        let entry = PackedDescriptor { address: guest.slot(ring, 0).0, len: 1, id: 0, flags };
        guest.memory().write(table.guest, &entry.bytes().repeat(ENTRIES as usize));
        let attack = Background::start(guest, move |guest, nth| {
            let flags = INDIRECT | PackedDescriptor::available_flags(nth % 2 == 0);
            for at in 0..SIZE {
                let chain = PackedDescriptor { address: table.guest.0, len: 16 * ENTRIES, id: at, flags };
                guest.ring(ring).write_packed_descriptor(at, chain);
            }
            guest.ring(ring).kick().ok();
        });
        let (before, start) = (handled(&siege), Instant::now());
        for _ in 0..20 {
            siege.witness.send(&frame(BROADCAST, WITNESS, 1500)).unwrap();
            siege.while_others_exchange(1);
        }
        let elapsed = start.elapsed();
        let guest = attack.stop();
        assert!(elapsed < Duration::from_secs(1), "ring {ring}: 20 exchanges of others took {elapsed:?}");
        assert!(handled(&siege) > before, "ring {ring}: the attack was never looked at");
        siege.leave(guest);
    }
    siege.end();
}

/// Everything in the descriptors changes while the switch reads them.
#[test]
fn packed_descriptors_that_change_while_they_are_read_harm_nobody() {
    const RING: u16 = 61;
    let mut siege = Siege::begin();
    for (features, ring) in PACKED.into_iter().flat_map(|features| [(features, FROM_GUEST), (features, TO_GUEST)]) {
        // Nested tables end the connection, so they are left out once.
        for flags_bound in [4, 8] {
            for seed in 0..3 {
                let mut guest = siege.attacker(|builder| builder.features(features).ring_size(RING));
                let table = guest.ring(ring).descriptor_address(0);
                let memory = Arc::clone(guest.memory());
                let slot = guest.slot(ring, 0).0;
                let before = handled(&siege);
                let flipper = Background::start(Numbers::from(seed), move |numbers, _| {
                    let at = table + 16 * numbers.below(RING.into()) as u64;
                    match numbers.below(6) {
                        0 => memory.store_u32(at + 8, [0, 1, 60, 2000, 0x1_0000, u32::MAX][numbers.below(6)], Ordering::Relaxed),
                        1 => memory.write(at, &[slot, 0, u64::MAX, slot + 0x1000][numbers.below(4)].to_le_bytes()),
                        2 => memory.store_u16(at + 12, u16::try_from(numbers.below(0x1_0000)).unwrap(), Ordering::Relaxed),
                        _ => {
                            let turn = PackedDescriptor::available_flags(numbers.below(2) == 0);
                            let flags = u16::try_from(numbers.below(flags_bound)).unwrap();
                            memory.store_u16(at + 14, flags | turn, Ordering::Relaxed);
                        }
                    }
                });
                for nth in 0..2000 {
                    guest.ring(ring).kick().unwrap();
                    if nth % 50 == 0 {
                        siege.witness.send(&frame(BROADCAST, WITNESS, 1000)).unwrap();
                    }
                }
                siege.while_others_exchange(5);
                flipper.stop();
                let gone = guest.session().is_closed_within(Duration::ZERO).unwrap();
                assert!(handled(&siege) > before || gone, "the attack was never looked at");
                siege.leave(guest);
            }
        }
    }
    siege.end();
}
