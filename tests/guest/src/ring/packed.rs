//! A packed ring (virtio 1.2, 2.8): one ring of descriptors that the driver makes available and the back-end makes used.
//!
//! Whose turn a descriptor is follows from two of its flags and a wrap counter that each side keeps for itself: the driver sets
//! `AVAIL` to its counter and `USED` to the opposite, the back-end makes both equal to its own. The counters begin with one
//! and turn over whenever a side passes the end of the ring. There is no index in memory, so a chain is shown by writing the
//! flags of its first descriptor, after everything else. [`PackedDriver::add`] holds these flags back for the first chain
//! that is not published yet; since the back-end walks the ring in order, that hides every chain behind it too.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_F_WRAP_CTR, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};

use vm_memory::{Bytes, VolatileSlice};

use super::chain::{Chain, InFlight};
use super::{DESCRIPTOR_LEN, Driver, RingAreas, needs_event};
use crate::{Buffer, Descriptor, GuestAddr, Used};

/// Where the flags stand in a descriptor; everything before them must be there first.
const FLAGS_AT: u64 = 14;

/// One entry of a packed ring, or of the indirect table of one (2.8.13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedDescriptor {
    /// Address of the buffer for the guest.
    pub address: u64,
    /// The buffer's length in bytes; in a used descriptor, how many of them were written.
    pub len: u32,
    /// The buffer ID: what the back-end names the whole chain by. It counts in the chain's last descriptor.
    pub id: u16,
    /// [`Descriptor::NEXT`], [`Descriptor::WRITE`], [`Descriptor::INDIRECT`] and the two below.
    pub flags: u16,
}

impl PackedDescriptor {
    /// Equals the driver's wrap counter when the descriptor is available.
    pub const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
    /// Equals the back-end's wrap counter, as [`PackedDescriptor::AVAIL`] does, when the descriptor is used.
    pub const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;

    /// The flags that make a descriptor available on a lap with this wrap counter.
    #[must_use]
    pub fn available_flags(wrap: bool) -> u16 {
        if wrap { Self::AVAIL } else { Self::USED }
    }

    /// The flags that make a descriptor used on a lap with this wrap counter.
    #[must_use]
    pub fn used_flags(wrap: bool) -> u16 {
        if wrap { Self::AVAIL | Self::USED } else { 0 }
    }

    /// The entry as it lies in memory.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.id.to_le_bytes());
        bytes[14..].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }
}

/// What one side of a packed ring wants to be notified of (2.8.14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventSuppression {
    /// With [`EventSuppression::DESC`]: the descriptor whose turn asks for a notification, in bits 0 to 14, and the wrap counter
    /// of its lap in bit 15.
    pub desc: u16,
    /// One of the constants below.
    pub flags: u16,
}

impl EventSuppression {
    /// Every notification.
    pub const ENABLE: u16 = VRING_PACKED_EVENT_FLAG_ENABLE as u16;
    /// No notification.
    pub const DISABLE: u16 = VRING_PACKED_EVENT_FLAG_DISABLE as u16;
    /// A notification for one descriptor; only with `EVENT_IDX`.
    pub const DESC: u16 = VRING_PACKED_EVENT_FLAG_DESC as u16;

    fn to_u32(self) -> u32 {
        u32::from(self.desc) | u32::from(self.flags) << 16
    }

    fn from_u32(value: u32) -> Self {
        Self { desc: value as u16, flags: (value >> 16) as u16 }
    }
}

/// A place in the ring and the wrap counter of the lap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) at: u16,
    pub(crate) wrap: bool,
}

impl Position {
    pub(crate) const START: Self = Self { at: 0, wrap: true };

    pub(crate) fn advanced(self, by: u16, size: u16) -> Self {
        let at = u32::from(self.at) + u32::from(by);
        let size = u32::from(size);
        let wraps = at >= size;
        Self { at: (if wraps { at - size } else { at }) as u16, wrap: self.wrap != wraps }
    }

    /// Place and counter in 16 bits, as event suppression and `SET_VRING_BASE` have them.
    pub(crate) fn bits(self) -> u16 {
        self.at | u16::from(self.wrap) << VRING_PACKED_EVENT_F_WRAP_CTR
    }
}

/// The second half of a descriptor: its length, buffer ID and flags, in one aligned word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail(u64);

impl Tail {
    const FLAGS_SHIFT: u32 = 48;
    const BOTH: u64 = ((PackedDescriptor::AVAIL | PackedDescriptor::USED) as u64) << Self::FLAGS_SHIFT;

    pub(crate) fn of(descriptor: PackedDescriptor) -> Self {
        Self(u64::from(descriptor.len) | u64::from(descriptor.id) << 32 | u64::from(descriptor.flags) << Self::FLAGS_SHIFT)
    }

    /// What is available on a lap with the wrap counter one, on a lap with this wrap counter.
    pub(crate) fn on_lap(self, wrap: bool) -> Self {
        Self(if wrap { self.0 } else { self.0 ^ Self::BOTH })
    }

    pub(crate) fn id(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Bytes that the back-end has written: the length means nothing unless it has set `WRITE` (2.8.10).
    pub(crate) fn written(self) -> u32 {
        if self.flags() & Descriptor::WRITE != 0 { self.0 as u32 } else { 0 }
    }

    pub(crate) fn is_used(self, wrap: bool) -> bool {
        self.0 & Self::BOTH == if wrap { Self::BOTH } else { 0 }
    }

    fn flags(self) -> u16 {
        (self.0 >> Self::FLAGS_SHIFT) as u16
    }
}

/// The second halves of all descriptors of a ring, found in memory once for many accesses.
#[derive(Debug)]
pub(crate) struct Tails<'a>(VolatileSlice<'a>);

impl Tails<'_> {
    #[inline]
    pub(crate) fn load(&self, at: u16, order: Ordering) -> Tail {
        let word: u64 = self.0.load(Self::offset(at), order).expect("the descriptor is inside the ring");
        Tail(u64::from_le(word))
    }

    #[inline]
    pub(crate) fn store(&self, at: u16, tail: Tail, order: Ordering) {
        self.0.store(tail.0.to_le(), Self::offset(at), order).expect("the descriptor is inside the ring");
    }

    fn offset(at: u16) -> usize {
        usize::from(at) * DESCRIPTOR_LEN as usize + 8
    }
}

/// The book-keeping of a packed ring's driver.
#[derive(Clone, Debug)]
pub(super) struct PackedDriver {
    size: u16,
    /// Free buffer IDs, the next to take first.
    free_ids: VecDeque<u16>,
    /// Free descriptors.
    free: u16,
    in_flight: InFlight,
    next_avail: Position,
    /// Descriptors added and not published yet.
    added: u16,
    /// The flags that will show them, and where they belong.
    held: Option<(u16, u16)>,
    next_used: Position,
}

impl PackedDriver {
    /// Where a ring starts, as `SET_VRING_BASE` says it: both places are 0, both wrap counters 1.
    pub(super) const START: u32 = 0x8000_8000;

    pub(super) fn new(size: u16, in_order: bool) -> Self {
        Self {
            size,
            free_ids: (0..size).collect(),
            free: size,
            in_flight: InFlight::new(in_order),
            next_avail: Position::START,
            added: 0,
            held: None,
            next_used: Position::START,
        }
    }

    /// Writes the next descriptor of the ring, but holds back the flags of the first that is not published.
    fn write_next(&mut self, areas: &RingAreas, descriptor: PackedDescriptor) -> u16 {
        let Position { at, wrap } = self.next_avail;
        let flags = descriptor.flags | PackedDescriptor::available_flags(wrap);
        areas.write_packed_body(at, descriptor);
        if self.held.is_none() {
            self.held = Some((at, flags));
        } else {
            areas.write_packed_flags(at, flags);
        }
        self.next_avail = self.next_avail.advanced(1, self.size);
        self.added += 1;
        at
    }
}

impl Driver for PackedDriver {
    fn add(&mut self, areas: &RingAreas, buffers: &[Buffer], indirect: bool) -> u16 {
        let id = self.free_ids.pop_front().expect("no more IDs are out than descriptors");
        let entries = if indirect {
            let table = areas.write_packed_indirect(id, buffers);
            let flags = Descriptor::INDIRECT;
            vec![self.write_next(areas, PackedDescriptor { address: table.address.0, len: table.len, id, flags })]
        } else {
            let last = buffers.len() - 1;
            let write = |(nth, buffer): (usize, &Buffer)| {
                // The ID counts in the last descriptor only (2.8.6), so it stands nowhere else.
                let (id, next) = if nth == last { (id, 0) } else { (0, Descriptor::NEXT) };
                let flags = buffer.flags() | next;
                self.write_next(areas, PackedDescriptor { address: buffer.address.0, len: buffer.len, id, flags })
            };
            buffers.iter().enumerate().map(write).collect()
        };
        self.free -= u16::try_from(entries.len()).expect("there was room");
        self.in_flight.insert(Chain::new(id, entries, buffers));
        id
    }

    fn next_head(&self) -> Option<u16> {
        if self.free > 0 { self.free_ids.front().copied() } else { None }
    }

    fn free(&self) -> usize {
        self.free.into()
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn publish(&mut self, areas: &RingAreas, _: bool) -> bool {
        let Some((at, flags)) = self.held.take() else { return false };
        areas.write_packed_flags(at, flags);
        let added = std::mem::take(&mut self.added);
        areas.wants_kick(self.next_avail, added)
    }

    fn has_used(&self, areas: &RingAreas) -> bool {
        self.in_flight.has_retired() || areas.is_used(self.next_used)
    }

    fn take_used(&mut self, areas: &RingAreas) -> Result<Option<Used>, String> {
        if !self.in_flight.has_retired() {
            if !areas.is_used(self.next_used) {
                return Ok(None);
            }
            let descriptor = areas.packed_descriptor(self.next_used.at);
            // The length means nothing unless the back-end has set WRITE (2.8.10).
            let len = if descriptor.flags & Descriptor::WRITE != 0 { descriptor.len } else { 0 };
            let retired = self.in_flight.retire(descriptor.id.into(), len)?;
            let passed: usize = retired.map(|chain| chain.entries.len()).sum();
            self.next_used = self.next_used.advanced(u16::try_from(passed).expect("no more than the ring has"), self.size);
        }
        let (chain, used) = self.in_flight.take().expect("a chain was retired");
        self.free_ids.push_back(chain.head);
        self.free += u16::try_from(chain.entries.len()).expect("no more than were taken");
        Ok(Some(used))
    }

    fn arm_interrupt(&self, areas: &RingAreas, event_idx: bool) {
        let flags = if event_idx { EventSuppression::DESC } else { EventSuppression::ENABLE };
        areas.write_driver_event(EventSuppression { desc: self.next_used.bits(), flags });
    }

    fn disarm_interrupt(&self, areas: &RingAreas, _: bool) {
        areas.write_driver_event(EventSuppression { desc: 0, flags: EventSuppression::DISABLE });
    }

    /// The end of the used descriptors: no index tells where that is, so it is where taking everything back would lead.
    fn resume_base(&self, areas: &RingAreas) -> u32 {
        let mut probe = self.clone();
        while let Ok(Some(_)) = probe.take_used(areas) {}
        let at = u32::from(probe.next_used.bits());
        at << 16 | at
    }
}

/// The areas read and written as those of a packed ring.
impl RingAreas {
    /// Writes descriptor `at` of the ring, the flags last.
    pub fn write_packed_descriptor(&self, at: u16, descriptor: PackedDescriptor) {
        self.write_packed_body(at, descriptor);
        self.write_packed_flags(at, descriptor.flags);
    }

    /// Writes the flags of descriptor `at`, which shows it and everything written before it.
    pub fn write_packed_flags(&self, at: u16, flags: u16) {
        self.memory.store_u16(self.packed_address(at) + FLAGS_AT, flags, Ordering::Release);
    }

    /// The flags of descriptor `at` as whoever had it last wrote them.
    #[must_use]
    pub fn packed_flags(&self, at: u16) -> u16 {
        self.memory.load_u16(self.packed_address(at) + FLAGS_AT, Ordering::Acquire)
    }

    /// Descriptor `at` as whoever had it last wrote it, the flags read first.
    #[must_use]
    pub fn packed_descriptor(&self, at: u16) -> PackedDescriptor {
        let flags = self.packed_flags(at);
        let bytes = self.memory.bytes(self.packed_address(at), 16);
        let (address, rest) = bytes.split_first_chunk().expect("a descriptor has 16 bytes");
        let (len, rest) = rest.split_first_chunk().expect("a descriptor has 16 bytes");
        let (id, _) = rest.split_first_chunk().expect("a descriptor has 16 bytes");
        let (address, len, id) = (u64::from_le_bytes(*address), u32::from_le_bytes(*len), u16::from_le_bytes(*id));
        PackedDescriptor { address, len, id, flags }
    }

    /// Writes which interrupts the driver wants.
    pub fn write_driver_event(&self, event: EventSuppression) {
        self.memory.store_u32(self.avail, event.to_u32(), Ordering::Release);
    }

    /// Which interrupts the driver wants, as the back-end sees it.
    #[must_use]
    pub fn driver_event(&self) -> EventSuppression {
        EventSuppression::from_u32(self.memory.load_u32(self.avail, Ordering::Relaxed))
    }

    /// Which kicks the back-end wants, as it wrote that.
    #[must_use]
    pub fn device_event(&self) -> EventSuppression {
        EventSuppression::from_u32(self.memory.load_u32(self.used, Ordering::Relaxed))
    }

    pub(crate) fn tails(&self) -> Tails<'_> {
        Tails(self.memory.slice(self.descriptors, usize::from(self.size()) * DESCRIPTOR_LEN as usize))
    }

    /// Writes the indirect table of a chain, and gives the buffer that it is.
    pub(crate) fn write_packed_indirect(&self, id: u16, buffers: &[Buffer]) -> Buffer {
        let table = self.indirect_table(id);
        for (at, buffer) in buffers.iter().enumerate() {
            let entry = PackedDescriptor { address: buffer.address.0, len: buffer.len, id: 0, flags: buffer.flags() };
            self.memory.write(table + at as u64 * DESCRIPTOR_LEN, &entry.bytes());
        }
        Buffer::readable(table, u32::try_from(buffers.len() * 16).expect("a table is small"))
    }

    fn packed_address(&self, at: u16) -> GuestAddr {
        self.descriptors + u64::from(at) * DESCRIPTOR_LEN
    }

    fn write_packed_body(&self, at: u16, descriptor: PackedDescriptor) {
        self.memory.write(self.packed_address(at), &descriptor.bytes()[..FLAGS_AT as usize]);
    }

    /// True if the back-end has put a used descriptor there on this lap.
    pub(crate) fn is_used(&self, position: Position) -> bool {
        let both = PackedDescriptor::AVAIL | PackedDescriptor::USED;
        self.packed_flags(position.at) & both == PackedDescriptor::used_flags(position.wrap)
    }

    /// True if the back-end wants to be kicked for the last `added` descriptors before `next`, which were just shown.
    pub(crate) fn wants_kick(&self, next: Position, added: u16) -> bool {
        // The back-end's wish must be read after the descriptors are visible, else both sides can miss each other (2.8.21.3.1).
        fence(Ordering::SeqCst);
        let EventSuppression { desc, flags } = self.device_event();
        match flags & 3 {
            EventSuppression::ENABLE => true,
            EventSuppression::DESC => {
                let (at, wrap) = (desc & 0x7fff, desc >> VRING_PACKED_EVENT_F_WRAP_CTR == 1);
                let event = if wrap == next.wrap { at } else { at.wrapping_sub(self.size()) };
                needs_event(event, next.at, next.at.wrapping_sub(added))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Ring, RingFeatures};
    use crate::{GuestMemory, RegionLayout};
    use std::sync::Arc;

    const SIZE: u16 = 4;

    fn ring(in_order: bool, event_idx: bool) -> Ring {
        let layout = RegionLayout::at(0x1000, Ring::memory_len(SIZE));
        let memory = Arc::new(GuestMemory::new(&[layout], false).unwrap());
        let mut ring = Ring::new(memory, 0, SIZE, layout.guest).unwrap();
        ring.set_features(RingFeatures { packed: true, event_idx, in_order });
        ring
    }

    fn buffers(count: u32) -> Vec<Buffer> {
        (0..count).map(|nth| Buffer::writable(GuestAddr(0x10_0000), 100 + nth)).collect()
    }

    /// What a back-end does: puts a used descriptor in place of the first of a chain, or of a batch of them.
    fn put_used(ring: &Ring, at: u16, wrap: bool, id: u16, len: u32) {
        let flags = PackedDescriptor::used_flags(wrap) | Descriptor::WRITE;
        ring.write_packed_descriptor(at, PackedDescriptor { address: 0, len, id, flags });
    }

    fn is_available(ring: &Ring, at: u16, wrap: bool) -> bool {
        let both = PackedDescriptor::AVAIL | PackedDescriptor::USED;
        ring.packed_flags(at) & both == PackedDescriptor::available_flags(wrap)
    }

    #[test]
    fn a_chain_is_shown_by_its_first_descriptor_and_named_in_its_last() {
        let mut ring = ring(false, false);
        let ids = [ring.add(&buffers(3), false).unwrap(), ring.add(&buffers(1), false).unwrap()];
        assert!(!is_available(&ring, 0, true), "the back-end must not see what was not published");
        assert!(ring.publish());
        assert!((0..4).all(|at| is_available(&ring, at, true)));
        let descriptors = [0, 1, 2, 3].map(|at| ring.packed_descriptor(at));
        assert_eq!(descriptors.map(|one| one.len), [100, 101, 102, 100]);
        assert_eq!(descriptors.map(|one| one.flags & Descriptor::NEXT != 0), [true, true, false, false]);
        assert_eq!([descriptors[2].id, descriptors[3].id], ids);
        assert!(ring.add(&buffers(1), false).is_err(), "the ring is full");
        assert!(!ring.publish(), "nothing new is there to be kicked for");
    }

    #[test]
    fn the_wrap_counters_turn_over_at_the_end_of_the_ring() {
        let mut ring = ring(false, false);
        let (mut at, mut wrap) = (0, true);
        for lap in 0..20 {
            let len = 1 + lap % 3;
            let id = ring.add(&buffers(len.into()), false).unwrap();
            ring.publish();
            assert!(is_available(&ring, at, wrap), "lap {lap}");
            assert!(!ring.has_used());
            put_used(&ring, at, wrap, id, 7);
            assert_eq!(ring.take_used().unwrap(), Some(Used { head: id, len: 7 }));
            wrap ^= at + len >= SIZE;
            at = (at + len) % SIZE;
            assert_eq!(ring.take_used().unwrap(), None);
        }
    }

    #[test]
    fn chains_come_back_in_any_order_without_in_order() {
        let mut ring = ring(false, false);
        let ids: Vec<u16> = [1, 2, 1].into_iter().map(|count| ring.add(&buffers(count), false).unwrap()).collect();
        ring.publish();
        put_used(&ring, 0, true, ids[1], 1);
        put_used(&ring, 2, true, ids[2], 2);
        put_used(&ring, 3, true, ids[0], 3);
        let back: Vec<Used> = std::iter::from_fn(|| ring.take_used().unwrap()).collect();
        assert_eq!(back.iter().map(|used| (used.head, used.len)).collect::<Vec<_>>(), [(ids[1], 1), (ids[2], 2), (ids[0], 3)]);
        assert_eq!(ring.free(), usize::from(SIZE));
    }

    #[test]
    fn one_used_descriptor_retires_a_batch_with_in_order() {
        let mut ring = ring(true, false);
        let ids: Vec<u16> = [1, 2, 1].into_iter().map(|count| ring.add(&buffers(count), false).unwrap()).collect();
        ring.publish();
        put_used(&ring, 0, true, ids[1], 7);
        ring.set_base_from_memory();
        assert_eq!(ring.base(), 0x8003_8003, "the back-end has got as far as the third descriptor");
        let back: Vec<Used> = std::iter::from_fn(|| ring.take_used().unwrap()).collect();
        assert_eq!(back, [Used { head: ids[0], len: 100 }, Used { head: ids[1], len: 7 }]);
        put_used(&ring, 3, true, ids[2], 8);
        assert_eq!(ring.take_used().unwrap(), Some(Used { head: ids[2], len: 8 }));
    }

    #[test]
    fn what_was_not_out_does_not_come_back() {
        let mut ring = ring(false, false);
        ring.add(&buffers(1), false).unwrap();
        ring.publish();
        put_used(&ring, 0, true, 3, 0);
        assert!(ring.take_used().is_err());
    }

    #[test]
    fn a_kick_is_sent_when_the_descriptor_that_was_asked_for_is_passed() {
        let mut ring = ring(false, true);
        // Chains of 3, 1, 3, 3, 3 descriptors go round a ring of 4: the first laps end at chains 1 and 3.
        let wish = |at: u16, wrap: u16| EventSuppression { desc: at | (wrap << 15), flags: EventSuppression::DESC };
        let wishes = [(wish(2, 1), true), (wish(1, 1), false), (wish(0, 0), true), (wish(3, 0), true), (wish(1, 1), false)];
        let (mut at, mut wrap) = (0, true);
        for (nth, (wish, kicked)) in wishes.into_iter().enumerate() {
            ring.memory.store_u32(ring.used_address(), wish.to_u32(), Ordering::Relaxed);
            let count = if nth == 1 { 1 } else { 3 };
            let id = ring.add(&buffers(count), false).unwrap();
            assert_eq!(ring.publish(), kicked, "chain {nth}");
            put_used(&ring, at, wrap, id, 0);
            ring.take_used().unwrap().unwrap();
            Position { at, wrap } = Position { at, wrap }.advanced(count as u16, SIZE);
        }
        ring.memory.store_u32(
            ring.used_address(),
            EventSuppression { desc: 0, flags: EventSuppression::DISABLE }.to_u32(),
            Ordering::Relaxed,
        );
        ring.add(&buffers(1), false).unwrap();
        assert!(!ring.publish());
    }

    #[test]
    fn an_interrupt_is_asked_for_at_the_next_used_descriptor() {
        let mut ring = ring(false, true);
        let id = ring.add(&buffers(3), false).unwrap();
        ring.publish();
        put_used(&ring, 0, true, id, 0);
        ring.take_used().unwrap().unwrap();
        ring.arm_interrupt();
        assert_eq!(ring.driver_event(), EventSuppression { desc: 3 | 1 << 15, flags: EventSuppression::DESC });
        ring.disarm_interrupt();
        assert_eq!(ring.driver_event().flags, EventSuppression::DISABLE);
    }
}
