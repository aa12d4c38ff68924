//! The ring against a driver that writes its memory through a file, and against `virtio-queue` as a second opinion: the same
//! memory must give the same chains, the same used ring and the same notifications.

use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::memory::RegionSpec;
use crate::ring_split::SplitRing;

const SIZE: u16 = 16;
const MEMORY_LEN: u64 = 0x1_0000;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLES: u64 = 0x3000;
const BUFFERS: u64 = 0x8000;
/// Where the front-end has its memory: different from where the guest has it.
const USER: u64 = 0x7000_0000;

const LAYOUT: RingLayout =
    RingLayout { size: SIZE, descriptors: USER + DESCRIPTORS, available: USER + AVAILABLE, used: USER + USED };

/// The guest's side: everything is written through the file behind its memory.
struct Driver {
    file: File,
}

impl Driver {
    fn new() -> Self {
        let fd = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, MEMORY_LEN).unwrap();
        Self { file: fd.into() }
    }

    fn memory(&self) -> Arc<GuestMemory> {
        let spec = RegionSpec { guest: 0, len: MEMORY_LEN, user: USER, file_offset: 0 };
        Arc::new(GuestMemory::default().with_region(spec, self.file.try_clone().unwrap().into()).unwrap())
    }

    fn ring(&self, features: RingFeatures, direction: Direction) -> SplitRing {
        SplitRing::new(LAYOUT, Base::new(&self.memory(), features, direction, None)).unwrap()
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, address).unwrap();
    }

    fn read_u16(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, address).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn descriptor_at(&self, place: u64, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(place, &bytes);
    }

    fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(DESCRIPTORS + 16 * u64::from(index), address, len, flags, next);
    }

    fn offer(&self, heads: &[u16]) {
        let start = self.read_u16(AVAILABLE + 2);
        for (offset, head) in heads.iter().enumerate() {
            let slot = start.wrapping_add(offset as u16) % SIZE;
            self.write(AVAILABLE + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        }
        self.set_available_index(start.wrapping_add(heads.len() as u16));
    }

    fn set_available_index(&self, index: u16) {
        self.write(AVAILABLE + 2, &index.to_le_bytes());
    }

    fn set_used_event(&self, event: u16) {
        self.write(AVAILABLE + 4 + 2 * u64::from(SIZE), &event.to_le_bytes());
    }

    fn used_ring(&self) -> Vec<u8> {
        let mut bytes = vec![0; 6 + 8 * usize::from(SIZE)];
        self.file.read_exact_at(&mut bytes, USED).unwrap();
        bytes
    }

    /// The same memory for `virtio-queue`, on a copy of the file.
    fn second_opinion(&self, features: RingFeatures) -> (Driver, GuestMemoryMmap, Queue) {
        let copy = Self::new();
        let mut bytes = vec![0; MEMORY_LEN as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        copy.write(0, &bytes);
        let file = FileOffset::new(copy.file.try_clone().unwrap(), 0);
        let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY_LEN as usize, Some(file))]).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), None);
        queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_event_idx(features.event_idx);
        queue.set_ready(true);
        let used = self.read_u16(USED + 2);
        queue.set_next_avail(used);
        queue.set_next_used(used);
        (copy, memory, queue)
    }
}

/// Every chain that the ring gives: its head and its buffers, as guest addresses and lengths.
type Chains = Vec<(u16, Vec<(u64, usize)>)>;

fn pieces_of(chain: &Chain, pieces: &[Segment]) -> Vec<Segment> {
    chain.single().map_or_else(|| chain.pieces(pieces).to_vec(), |piece| vec![piece])
}

/// A chain of one descriptor, as far as completing it matters.
fn chain(id: u16) -> Chain {
    Chain { id, slots: 1, ..Chain::NONE }
}

fn take_all(ring: &mut SplitRing, base: *mut u8) -> Result<Chains, RingFault> {
    let mut chains = Vec::new();
    let mut pieces = Vec::new();
    let mut chain = Chain::NONE;
    while ring.take(u32::MAX, &mut pieces, &mut chain)? {
        assert_eq!(chain.bad, None);
        let buffers = pieces_of(&chain, &pieces).iter().map(|piece| (piece.ptr as u64 - base as u64, piece.len)).collect();
        chains.push((chain.id, buffers));
    }
    Ok(chains)
}

fn take_all_there(queue: &mut Queue, memory: &GuestMemoryMmap) -> Chains {
    let chains = queue.iter(memory).unwrap();
    chains
        .map(|chain| {
            let head = chain.head_index();
            (head, chain.map(|descriptor| (descriptor.addr().0, descriptor.len() as usize)).collect())
        })
        .collect()
}

/// A chain as a driver may make it: lengths of its buffers, the last few of them in an indirect table.
fn legal_chain() -> impl Strategy<Value = (Vec<u32>, usize)> {
    prop::collection::vec(1..3000_u32, 1..6).prop_flat_map(|buffers| {
        let count = buffers.len();
        (Just(buffers), 0..=count)
    })
}

/// Lays chains out until the table is full; returns their heads.
fn lay_out(driver: &Driver, chains: &[(Vec<u32>, usize)]) -> Vec<u16> {
    let (mut next, mut heads) = (0_u16, Vec::new());
    for (number, (buffers, indirect)) in chains.iter().enumerate() {
        let direct = buffers.len() - indirect;
        let needed = direct as u16 + u16::from(*indirect > 0);
        if next + needed > SIZE {
            break;
        }
        heads.push(next);
        let place = |index: usize| BUFFERS + 0x1000 * (index as u64 % 6) + number as u64;
        for (index, len) in buffers[..direct].iter().enumerate() {
            let last = index + 1 == buffers.len();
            driver.descriptor(next, place(index), *len, if last { 0 } else { NEXT }, if last { 0 } else { next + 1 });
            next += 1;
        }
        if *indirect > 0 {
            let table = TABLES + 0x100 * number as u64;
            driver.descriptor(next, table, 16 * *indirect as u32, INDIRECT, 0);
            next += 1;
            for (index, len) in buffers[direct..].iter().enumerate() {
                let last = index + 1 == *indirect;
                let flags = if last { 0 } else { NEXT };
                driver.descriptor_at(table + 16 * index as u64, place(direct + index), *len, flags, index as u16 + 1);
            }
        }
    }
    heads
}

/// One buffer may lie in as many regions as there are.
#[test]
fn a_chain_that_is_in_too_many_pieces_can_not_be_used() {
    let driver = Driver::new();
    let mut memory = GuestMemory::default();
    let main = RegionSpec { guest: 0, len: MEMORY_LEN, user: USER, file_offset: 0 };
    memory = memory.with_region(main, Arc::new(driver.file.try_clone().unwrap())).unwrap();
    for nth in 0..250 {
        let spec = RegionSpec { guest: 0x100_0000 + nth, len: 1, user: 0x9000_0000 + 0x1000 * nth, file_offset: nth };
        memory = memory.with_region(spec, Arc::new(driver.file.try_clone().unwrap())).unwrap();
    }
    let base = Base::new(&Arc::new(memory), RingFeatures::default(), Direction::ToGuest, None);
    let mut ring = SplitRing::new(LAYOUT, base).unwrap();
    for buffers in [4, 5] {
        for index in 0..buffers {
            let next = if index + 1 < buffers { NEXT } else { 0 };
            driver.descriptor(index, 0x100_0000, 250, WRITE | next, index + 1);
        }
        driver.offer(&[0]);
        let (mut pieces, mut chain) = (Vec::new(), Chain::NONE);
        assert!(ring.take(u32::MAX, &mut pieces, &mut chain).unwrap());
        assert_eq!((chain.bad, pieces.len()), if buffers == 4 { (None, 1000) } else { (Some(DropReason::TooLong), 0) });
    }
}

proptest! {
    #[test]
    fn chains_and_used_entries_are_those_of_virtio_queue(
        chains in prop::collection::vec(legal_chain(), 1..8),
        start in any::<u16>(),
        written in any::<u32>(),
    ) {
        let driver = Driver::new();
        driver.set_available_index(start);
        driver.write(USED + 2, &start.to_le_bytes());
        let heads = lay_out(&driver, &chains);
        driver.offer(&heads);
        let features = RingFeatures { indirect: true, ..RingFeatures::default() };
        let (copy, memory, mut queue) = driver.second_opinion(features);
        let mut ring = driver.ring(features, Direction::FromGuest);
        queue.disable_notification(&memory).unwrap();

        let base = ring.base().memory.at_guest(0, 1).unwrap();
        let ours = take_all(&mut ring, base).unwrap();
        prop_assert_eq!(&ours, &take_all_there(&mut queue, &memory));
        prop_assert_eq!(ours.iter().map(|(head, _)| *head).collect::<Vec<_>>(), heads.clone());
        for head in heads {
            ring.complete(&chain(head), written);
            queue.add_used(&memory, head, written).unwrap();
        }
        ring.publish().unwrap();
        prop_assert_eq!(driver.used_ring(), copy.used_ring());
    }

    #[test]
    fn with_event_indexes_a_guest_is_notified_when_virtio_queue_would(
        start in any::<u16>(),
        ahead in -4..20_i32,
        batches in prop::collection::vec(1..6_u16, 1..4),
    ) {
        let driver = Driver::new();
        driver.set_available_index(start);
        driver.write(USED + 2, &start.to_le_bytes());
        let features = RingFeatures { event_idx: true, ..RingFeatures::default() };
        let (copy, memory, mut queue) = driver.second_opinion(features);
        let mut ring = driver.ring(features, Direction::FromGuest);
        let call = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        ring.base_mut().set_call(Some(Arc::clone(&call)));
        for side in [&driver, &copy] {
            side.set_used_event(start.wrapping_add(ahead as u16));
        }
        for count in batches {
            for _ in 0..count {
                ring.complete(&chain(0), 0);
                queue.add_used(&memory, 0, 0).unwrap();
            }
            let notified = ring.publish().unwrap();
            prop_assert_eq!(notified, queue.needs_notification(&memory).unwrap());
            prop_assert_eq!(notified, rustix::io::read(&call, &mut [0; 8]).is_ok());
        }
    }

    /// Whatever stands in memory: no panic, and no piece outside of what the guest shared.
    #[test]
    fn garbage_in_memory_never_leads_out_of_it(
        garbage in prop::collection::vec(any::<u8>(), 0x400),
        plausible in prop::collection::vec((0..MEMORY_LEN + 0x100, 0..0x4000_u32, 0..8_u16, 0..20_u16), 0..16),
        heads in prop::collection::vec(0..20_u16, 1..16),
        to_guest in any::<bool>(),
        indirect in any::<bool>(),
    ) {
        let driver = Driver::new();
        driver.write(TABLES, &garbage);
        driver.write(DESCRIPTORS, &garbage[..0x100]);
        for (index, (address, len, flags, next)) in plausible.into_iter().enumerate() {
            driver.descriptor(index as u16, address, len, flags, next);
        }
        driver.offer(&heads);
        let direction = if to_guest { Direction::ToGuest } else { Direction::FromGuest };
        let mut ring = driver.ring(RingFeatures { indirect, ..RingFeatures::default() }, direction);
        let base = ring.base().memory.at_guest(0, 1).unwrap() as u64;
        let mut pieces = Vec::new();
        let mut chain = Chain::NONE;
        while let Ok(true) = ring.take(70_000, &mut pieces, &mut chain) {
            let taken = if chain.bad.is_none() { pieces_of(&chain, &pieces) } else { Vec::new() };
            let sum: usize = taken.iter().map(|piece| piece.len).sum();
            prop_assert_eq!(chain.len as usize, sum);
            pieces.clear();
            for piece in taken {
                let start = piece.ptr as u64;
                prop_assert!(start >= base && start + piece.len as u64 <= base + MEMORY_LEN);
            }
        }
    }
}

#[test]
fn a_ring_goes_on_where_its_used_index_stands() {
    let driver = Driver::new();
    driver.descriptor(3, BUFFERS, 100, 0, 0);
    driver.set_available_index(0xffff);
    driver.write(USED + 2, &0xffff_u16.to_le_bytes());
    driver.offer(&[3]);
    let mut ring = driver.ring(RingFeatures::default(), Direction::FromGuest);
    assert_eq!(ring.position(), 0xffff);
    let mut taken = Chain::NONE;
    assert_eq!(ring.take(1000, &mut Vec::new(), &mut taken), Ok(true));
    assert_eq!(taken.id, 3);
    assert_eq!(ring.take(1000, &mut Vec::new(), &mut taken), Ok(false));
    ring.complete(&chain(3), 0);
    ring.publish().unwrap();
    assert_eq!((ring.position(), driver.read_u16(USED + 2)), (0, 0));
}

#[test]
fn in_order_a_batch_is_retired_with_one_entry() {
    let driver = Driver::new();
    let mut ring = driver.ring(RingFeatures { in_order: true, ..RingFeatures::default() }, Direction::FromGuest);
    ring.complete_unwritten([chain(4), chain(5), chain(6)].iter());
    ring.complete_unwritten([chain(9)].iter());
    ring.publish().unwrap();
    let used = driver.used_ring();
    let id_at = |place: usize| u32::from_le_bytes(used[4 + 8 * place..][..4].try_into().unwrap());
    assert_eq!(driver.read_u16(USED + 2), 4);
    assert_eq!([0, 1, 2, 3].map(id_at), [6, 0, 0, 9], "one entry at the place of each batch's first, naming its last");
}

#[test]
fn what_is_not_published_is_not_seen() {
    let driver = Driver::new();
    let mut ring = driver.ring(RingFeatures::default(), Direction::ToGuest);
    ring.complete(&chain(5), 60);
    assert_eq!(driver.read_u16(USED + 2), 0);
    ring.publish().unwrap();
    assert_eq!(driver.read_u16(USED + 2), 1);
}

#[test]
fn kicks_are_asked_for_before_sleep_and_refused_after() {
    let driver = Driver::new();
    let mut ring = driver.ring(RingFeatures::default(), Direction::FromGuest);
    assert_eq!(driver.read_u16(USED), 1, "a ring starts without kicks");
    assert_eq!(ring.enable_kicks(), Ok(false));
    assert_eq!(driver.read_u16(USED), 0);
    driver.offer(&[0]);
    assert_eq!(ring.enable_kicks(), Ok(true), "whoever offered before the last look must be seen");
    ring.disable_kicks();
    assert_eq!(driver.read_u16(USED), 1);
}

#[test]
fn with_event_indexes_the_next_frame_is_what_is_asked_for() {
    let driver = Driver::new();
    driver.set_available_index(7);
    driver.write(USED + 2, &7_u16.to_le_bytes());
    let mut ring = driver.ring(RingFeatures { event_idx: true, ..RingFeatures::default() }, Direction::FromGuest);
    assert_eq!(ring.enable_kicks(), Ok(false));
    assert_eq!(driver.read_u16(USED + 4 + 8 * u64::from(SIZE)), 7);
}

#[test]
fn rings_that_cannot_be_are_not_set_up() {
    let driver = Driver::new();
    let set_up = |layout| {
        let base = Base::new(&driver.memory(), RingFeatures::default(), Direction::FromGuest, None);
        SplitRing::new(layout, base).map(|_| ()).unwrap_err()
    };
    for size in [0, 3, 0x8001] {
        assert_eq!(set_up(RingLayout { size, ..LAYOUT }), SetupError::Size(size));
    }
    for layout in [
        RingLayout { descriptors: LAYOUT.descriptors + 8, ..LAYOUT },
        RingLayout { available: LAYOUT.available + 1, ..LAYOUT },
        RingLayout { used: LAYOUT.used + 2, ..LAYOUT },
    ] {
        assert!(matches!(set_up(layout), SetupError::Alignment { .. }), "{layout:x?}");
    }
    for layout in [
        RingLayout { descriptors: USER + MEMORY_LEN - 16, ..LAYOUT },
        RingLayout { available: USER + MEMORY_LEN - 16, ..LAYOUT },
        RingLayout { used: USER + MEMORY_LEN - 16, ..LAYOUT },
        RingLayout { used: 0, ..LAYOUT },
        RingLayout { used: u64::MAX - 3, ..LAYOUT },
    ] {
        assert!(matches!(set_up(layout), SetupError::NotMapped { .. }), "{layout:x?}");
    }
}
