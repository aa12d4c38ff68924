//! The packed ring against a driver that writes its memory through a file. The whole path is tested with a complete driver in
//! `tests/scenarios`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::memory::{GuestMemory, RegionSpec};
use crate::ring::{Direction, RingFeatures};

const MEMORY_LEN: u64 = 0x1_0000;
const DRIVER_EVENT: u64 = 0x2000;
const DEVICE_EVENT: u64 = 0x2004;
const TABLE: u64 = 0x3000;
const BUFFERS: u64 = 0x8000;
/// Where the front-end has its memory: different from where the guest has it.
const USER: u64 = 0x7000_0000;
/// The start: index zero, wrap counter one.
const START: u32 = 0x8000;

/// The guest's side: everything is written through the file behind its memory.
struct Driver {
    file: File,
    size: u16,
}

impl Driver {
    fn new(size: u16) -> Self {
        let fd = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, MEMORY_LEN).unwrap();
        Self { file: fd.into(), size }
    }

    fn set_up(&self, features: RingFeatures, direction: Direction, position: u32) -> Result<PackedRing, SetupError> {
        let spec = RegionSpec { guest: 0, len: MEMORY_LEN, user: USER, file_offset: 0 };
        let memory = Arc::new(GuestMemory::default().with_region(spec, self.file.try_clone().unwrap().into()).unwrap());
        let layout = RingLayout { size: self.size, descriptors: USER, available: USER + DRIVER_EVENT, used: USER + DEVICE_EVENT };
        let base = Base::new(&memory, RingFeatures { packed: true, ..features }, direction, None);
        let mut ring = PackedRing::new(layout, position, base)?;
        ring.go_on_where_it_stands();
        Ok(ring)
    }

    fn ring(&self, features: RingFeatures) -> PackedRing {
        self.set_up(features, Direction::FromGuest, START).unwrap()
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, address).unwrap();
    }

    fn write_u16(&self, address: u64, value: u16) {
        self.write(address, &value.to_le_bytes());
    }

    fn read_u16(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, address).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn descriptor_at(&self, place: u64, address: u64, len: u32, id: u16, flags: u16) {
        let words = [address, u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48];
        self.write(place, &words.map(u64::to_le_bytes).concat());
    }

    /// Everything before this place was used in this lap, and the rest in the one before.
    fn used_up_to(&self, place: Place) {
        for index in 0..self.size {
            let wrap = if index < place.index { place.wrap() } else { !place.wrap() };
            self.write_u16(16 * u64::from(index) + 14, if wrap { AVAIL | USED } else { 0 });
        }
    }

    /// Makes a descriptor available in the lap of this wrap counter.
    fn offer(&self, index: u16, wrap: bool, id: u16, flags: u16) {
        let available = if wrap { AVAIL } else { USED };
        self.descriptor_at(16 * u64::from(index), BUFFERS + u64::from(index) * 0x100, 0x100, id, flags | available);
    }

    /// What the device wrote: id, length, and whether it is used in the lap of this wrap counter.
    fn used(&self, index: u16, wrap: bool) -> Option<(u16, u16)> {
        let place = 16 * u64::from(index);
        let expected = if wrap { AVAIL | USED } else { 0 };
        let is_used = self.read_u16(place + 14) & (AVAIL | USED) == expected;
        is_used.then(|| (self.read_u16(place + 12), self.read_u16(place + 8)))
    }
}

/// Takes all there is: the ids, the entries each took, and the lengths.
fn take_all(ring: &mut PackedRing) -> Result<Vec<Chain>, RingFault> {
    let (mut chains, mut chain, mut pieces) = (Vec::new(), Chain::NONE, Vec::new());
    while ring.take(u32::MAX, &mut pieces, &mut chain)? {
        chains.push(chain);
    }
    Ok(chains)
}

fn outline(chains: &[Chain]) -> Vec<(u16, u16, u32)> {
    chains.iter().map(|chain| (chain.id, chain.slots, chain.len)).collect()
}

#[test]
fn chains_are_taken_and_returned_lap_after_lap_in_a_ring_of_any_size() {
    let driver = Driver::new(5);
    let mut ring = driver.ring(RingFeatures::default());
    let (mut index, mut wrap) = (0_u16, true);
    let step = |index: &mut u16, wrap: &mut bool| {
        let here = (*index, *wrap);
        *index += 1;
        if *index == 5 {
            (*index, *wrap) = (0, !*wrap);
        }
        here
    };
    for round in 0..40 {
        // A chain of two, whose id stands in its last descriptor, and one of one.
        let places = [(); 3].map(|()| step(&mut index, &mut wrap));
        for ((place, wrap), (id, flags)) in places.into_iter().zip([(77, NEXT), (round, 0), (round + 1, 0)]) {
            driver.offer(place, wrap, id, flags);
        }
        let chains = take_all(&mut ring).unwrap();
        assert_eq!(outline(&chains), [(round, 2, 0x200), (round + 1, 1, 0x100)]);
        chains.iter().for_each(|chain| ring.complete(chain, 0));
        let [first, inner, second] = places;
        assert_eq!(driver.used(first.0, first.1), None, "nothing is seen before it is published");
        ring.publish().unwrap();
        assert_eq!(driver.used(first.0, first.1), Some((round, 0)));
        assert_eq!(driver.used(inner.0, inner.1), None, "a chain's other entries are left alone");
        assert_eq!(driver.used(second.0, second.1), Some((round + 1, 0)));
    }
}

#[test]
fn in_order_a_batch_is_retired_with_one_descriptor() {
    let driver = Driver::new(8);
    let mut ring = driver.ring(RingFeatures { in_order: true, ..RingFeatures::default() });
    for (index, flags) in [(0, 0), (1, NEXT), (2, 0), (3, 0)] {
        driver.offer(index, true, 10 + index, flags);
    }
    let chains = take_all(&mut ring).unwrap();
    ring.complete_unwritten(chains.iter());
    ring.publish().unwrap();
    assert_eq!([0, 1, 2, 3].map(|index| driver.used(index, true).map(|(id, _)| id)), [Some(13), None, None, None]);
    assert_eq!(ring.position(), 0x8004_8004);
}

#[test]
fn a_ring_goes_on_at_the_position_that_it_is_told() {
    let driver = Driver::new(8);
    driver.used_up_to(Place::new(6, false));
    driver.offer(6, false, 3, 0);
    let mut ring = driver.set_up(RingFeatures::default(), Direction::FromGuest, 6).unwrap();
    assert_eq!(outline(&take_all(&mut ring).unwrap()), [(3, 1, 0x100)]);
    ring.untake(1);
    assert_eq!((ring.position(), take_all(&mut ring).unwrap().len()), (6 * 0x1_0001, 1));
    let beyond = driver.set_up(RingFeatures::default(), Direction::FromGuest, 8).unwrap_err();
    assert_eq!(beyond, SetupError::Position { position: 8, size: 8 });
}

/// QEMU's words after a crash of the back-end: it says again where the ring was started.
#[test]
fn a_ring_goes_on_where_it_stands_when_the_front_end_has_forgotten() {
    let driver = Driver::new(8);
    for place in [Place::new(3, true), Place::new(3, false), Place::new(0, false)] {
        driver.used_up_to(place);
        assert_eq!(driver.ring(RingFeatures::default()).position(), u32::from(place.pack()) * 0x1_0001);
        driver.offer(place.index, place.wrap(), 5, 0);
        let mut ring = driver.ring(RingFeatures::default());
        let chains = take_all(&mut ring).unwrap();
        assert_eq!(outline(&chains), [(5, 1, 0x100)]);
        ring.complete(&chains[0], 0);
        ring.publish().unwrap();
        assert_eq!(driver.used(place.index, place.wrap()), Some((5, 0)));
    }
}

#[test]
fn what_a_killed_device_began_to_return_is_returned_and_passed() {
    let driver = Driver::new(8);
    driver.used_up_to(Place::new(6, true));
    driver.offer(6, true, 40, 0);
    // Two used ones behind it, over the wrap.
    driver.descriptor_at(7 * 16, 0, 7, 41, AVAIL | USED | WRITE);
    driver.descriptor_at(0, 0, 7, 42, WRITE);
    let ring = driver.set_up(RingFeatures::default(), Direction::ToGuest, START).unwrap();
    assert_eq!(driver.used(6, true), Some((40, 0)), "it is not known what was written there");
    assert_eq!(ring.position(), 0x0001_0001);
}

#[test]
fn giving_back_goes_over_the_wrap() {
    let driver = Driver::new(3);
    driver.used_up_to(Place::new(2, true));
    let mut ring = driver.set_up(RingFeatures::default(), Direction::FromGuest, START | 2).unwrap();
    driver.offer(2, true, 0, 0);
    driver.offer(0, false, 1, 0);
    let before = ring.position();
    assert_eq!(take_all(&mut ring).unwrap().len(), 2);
    ring.untake(2);
    assert_eq!(ring.position(), before);
    assert_eq!(outline(&take_all(&mut ring).unwrap()), [(0, 1, 0x100), (1, 1, 0x100)]);
}

#[test]
fn kicks_are_asked_for_before_sleep_and_refused_after() {
    let driver = Driver::new(4);
    let mut ring = driver.ring(RingFeatures::default());
    let flags = || u32::from(driver.read_u16(DEVICE_EVENT + 2));
    assert_eq!(flags(), VRING_PACKED_EVENT_FLAG_DISABLE, "a ring starts without kicks");
    assert_eq!(ring.enable_kicks(), Ok(false));
    assert_eq!(flags(), VRING_PACKED_EVENT_FLAG_ENABLE);
    driver.offer(0, true, 0, 0);
    assert_eq!(ring.enable_kicks(), Ok(true), "whoever offered before the last look must be seen");
    ring.disable_kicks();
    assert_eq!(flags(), VRING_PACKED_EVENT_FLAG_DISABLE);
}

#[test]
fn rings_that_cannot_be_are_not_set_up() {
    for size in [0, 0x8001] {
        let refused = Driver::new(size).set_up(RingFeatures::default(), Direction::FromGuest, START).unwrap_err();
        assert_eq!(refused, SetupError::PackedSize(size));
    }
    let too_large = Driver::new(0x2000).set_up(RingFeatures::default(), Direction::FromGuest, START).unwrap_err();
    assert!(matches!(too_large, SetupError::NotMapped { .. }), "{too_large}");
}

#[test]
fn an_endless_chain_is_a_fault() {
    let driver = Driver::new(4);
    let mut ring = driver.ring(RingFeatures::default());
    (0..4).for_each(|index| driver.offer(index, true, 0, NEXT));
    assert_eq!(take_all(&mut ring).unwrap_err(), RingFault::Loop);
}

/// Whatever was looked at counts against what may be looked at for a batch.
#[test]
fn a_chain_costs_as_much_as_it_has_descriptors_even_where_most_do_not_matter() {
    let driver = Driver::new(8);
    (0..4).for_each(|index| driver.offer(index, true, 0, if index < 3 { NEXT | WRITE } else { WRITE }));
    for (direction, bad) in [(Direction::FromGuest, Some(DropReason::BadDescriptor)), (Direction::ToGuest, None)] {
        let mut ring = driver.set_up(RingFeatures::default(), direction, START).unwrap();
        let mut chain = Chain::NONE;
        assert!(ring.take(0x100, &mut Vec::new(), &mut chain).unwrap());
        assert_eq!((chain.cost, chain.slots, chain.bad), (4, 4, bad));
    }
}

#[test]
fn no_more_is_taken_than_the_ring_holds_whatever_the_flags_say() {
    let driver = Driver::new(2);
    let mut ring = driver.ring(RingFeatures::default());
    let (mut chain, mut taken) = (Chain::NONE, 0);
    for (index, wrap) in [(0, true), (1, true), (0, false), (1, false)] {
        driver.offer(index, wrap, 0, 0);
        taken += u16::from(ring.take(u32::MAX, &mut Vec::new(), &mut chain).unwrap());
    }
    assert_eq!(taken, 2);
    ring.untake(2);
    assert_eq!(ring.position(), START * 0x1_0001);
}

#[test]
fn indirect_tables_are_taken_whole_and_only_if_agreed() {
    let driver = Driver::new(4);
    let table = |flags| driver.descriptor_at(0, TABLE, 32, 9, AVAIL | flags);
    driver.descriptor_at(TABLE, BUFFERS, 100, 0, 0);
    driver.descriptor_at(TABLE + 16, BUFFERS + 0x1000, 50, 0, 0);
    let features = RingFeatures { indirect: true, ..RingFeatures::default() };
    table(INDIRECT);
    assert_eq!(outline(&take_all(&mut driver.ring(features)).unwrap()), [(9, 1, 150)]);
    assert_eq!(take_all(&mut driver.ring(RingFeatures::default())).unwrap_err(), RingFault::IndirectNotAgreed);
    table(INDIRECT | NEXT);
    assert_eq!(take_all(&mut driver.ring(features)).unwrap_err(), RingFault::IndirectNested);
}

proptest! {
    /// Against counting: every completion has a number, and a driver that waits for one is told when that one is published.
    #[test]
    fn a_driver_is_notified_when_the_entry_that_it_waits_for_is_used(
        size in 1..9_u16,
        start in 0..40_u64,
        event in 0..40_u64,
        batches in prop::collection::vec(1..9_u64, 1..8),
    ) {
        let place = |count: u64| {
            let lap = count / u64::from(size);
            Place::new((count % u64::from(size)) as u16, lap.is_multiple_of(2))
        };
        let driver = Driver::new(size);
        driver.used_up_to(place(start));
        let features = RingFeatures { event_idx: true, ..RingFeatures::default() };
        let mut ring = driver.set_up(features, Direction::FromGuest, place(start).pack().into()).unwrap();
        let call = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        ring.base_mut().set_call(Some(Arc::clone(&call)));
        let mut count = start;
        for batch in batches.into_iter().map(|batch| batch.min(size.into())) {
            // A driver waits for something that is still to come, at most a lap away.
            let event = count + event % u64::from(size);
            driver.write_u16(DRIVER_EVENT, place(event).pack());
            driver.write_u16(DRIVER_EVENT + 2, VRING_PACKED_EVENT_FLAG_DESC as u16);
            for _ in 0..batch {
                let now = place(count);
                driver.offer(now.index, now.lap == AVAIL, 0, 0);
                let chains = take_all(&mut ring).unwrap();
                prop_assert_eq!(chains.len(), 1);
                ring.complete(&chains[0], 0);
                count += 1;
            }
            let notified = ring.publish().unwrap();
            prop_assert_eq!(notified, event < count, "waiting for {} with {} done", event, count);
            prop_assert_eq!(notified, rustix::io::read(&call, &mut [0; 8]).is_ok());
        }
    }

    /// Whatever stands in memory: no panic, no piece outside of what the guest shared, never more than the ring holds.
    #[test]
    fn garbage_in_memory_never_leads_out_of_it(
        garbage in prop::collection::vec(any::<u8>(), 0x400),
        plausible in prop::collection::vec((0..MEMORY_LEN + 0x100, 0..0x4000_u32, 0..8_u16), 0..16),
        to_guest in any::<bool>(),
        indirect in any::<bool>(),
        start in 0..16_u32,
    ) {
        let driver = Driver::new(16);
        driver.write(TABLE, &garbage);
        driver.write(0, &garbage[..0x100]);
        for (index, (address, len, flags)) in plausible.into_iter().enumerate() {
            driver.descriptor_at(16 * index as u64, address, len, 0, flags | AVAIL);
        }
        let direction = if to_guest { Direction::ToGuest } else { Direction::FromGuest };
        let features = RingFeatures { indirect, ..RingFeatures::default() };
        let mut ring = driver.set_up(features, direction, START | start).unwrap();
        let position = ring.position();
        let base = ring.base().memory.at_guest(0, 1).unwrap() as u64;
        let (mut pieces, mut chain, mut slots) = (Vec::new(), Chain::NONE, 0);
        while let Ok(true) = ring.take(70_000, &mut pieces, &mut chain) {
            slots += chain.slots;
            prop_assert!(slots <= 16);
            let single: Vec<Segment> = chain.single().filter(|_| chain.bad.is_none()).into_iter().collect();
            for piece in single.iter().chain(chain.pieces(&pieces)) {
                let start = piece.ptr as u64;
                prop_assert!(start >= base && start + piece.len as u64 <= base + MEMORY_LEN);
            }
        }
        ring.untake(slots);
        prop_assert_eq!(ring.position(), position);
    }
}
