//! The packed virtqueue, device side (virtio 1.2, section 2.8). The theory stands in [`crate::ring`].
//!
//! One table of descriptors serves both sides. The driver makes a descriptor available, and the device makes it used, by giving
//! two bits of its flags the value of a counter that flips whenever the table wraps. A used descriptor
//! stands where its chain began, so the device must know how many entries that chain took.
//!
//! A batch becomes visible with one store: the driver looks at the first used descriptor first, so that one is written last.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::{
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
};
use weft_switch::DropReason;

use crate::memory::Segment;
use crate::ring::{
    Base, Chain, DESCRIPTOR_LEN, Descriptor, Direction, INDIRECT, MAX_BUFFERS, MAX_RING_SIZE, NEXT, RingFault, RingLayout,
    SetupError, Step, Virtqueue, WRITE, Walk,
};
use crate::ring_copy::{LINE_LEN, prefetch};
use crate::ring_resume::{Finding, Slot, Standing, find_place};
use crate::sync::{AtomicU16, AtomicU64, fence};
use crate::vhost_port::BATCH;

pub(crate) const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
pub(crate) const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;
/// In a position: the wrap counter.
const WRAP: u16 = 1 << 15;
/// How often a ring is looked at to find out where it stands: its driver may be adding to it.
const LOOKS: usize = 3;

/// A place in the table, and how the wrap counter stood there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: u16,
    /// Which of the two bits an available descriptor has in this lap: `AVAIL` if the wrap counter is one, `USED` if it is zero.
    pub(crate) lap: u16,
}

impl Place {
    pub(crate) fn new(index: u16, wrap: bool) -> Self {
        Self { index, lap: if wrap { AVAIL } else { USED } }
    }

    /// How the wrap counter stands there.
    pub(crate) fn wrap(self) -> bool {
        self.lap == AVAIL
    }

    /// `slots` is at most the size of the table.
    #[inline(always)]
    pub(crate) fn advance(self, slots: u16, size: u16) -> Self {
        // No overflow: less than twice a size of at most 32,768.
        let index = self.index + slots;
        if index < size { Self { index, ..self } } else { Self { index: index - size, lap: self.lap ^ (AVAIL | USED) } }
    }

    fn go_back(self, slots: u16, size: u16) -> Self {
        if slots <= self.index {
            Self { index: self.index - slots, ..self }
        } else {
            Self { index: self.index + (size - slots), lap: self.lap ^ (AVAIL | USED) }
        }
    }

    /// The bits of a descriptor that is used in this lap.
    #[inline(always)]
    fn used(self) -> u16 {
        let avail = self.lap & AVAIL;
        avail | avail << (VRING_PACKED_DESC_F_USED - VRING_PACKED_DESC_F_AVAIL)
    }

    /// As a number that counts two laps.
    pub(crate) fn linear(self, size: u16) -> u32 {
        u32::from(self.index) + if self.wrap() { 0 } else { size.into() }
    }

    /// As section 2.8.10 and `GET_VRING_BASE` have it.
    fn pack(self) -> u16 {
        self.index | if self.wrap() { WRAP } else { 0 }
    }

    fn unpack(word: u16) -> Self {
        Self::new(word & !WRAP, word & WRAP != 0)
    }
}

/// A packed ring that was set up on a guest's memory.
#[derive(Debug)]
pub(crate) struct PackedRing {
    size: u16,
    /// address, then length, id and flags
    descriptors: *mut [u64; 2],
    /// The driver's wishes: offset and wrap, flags.
    driver_event: *mut u16,
    /// Ours.
    device_event: *mut u16,
    /// The next descriptor to take.
    next_available: Place,
    /// Where the next used descriptor goes.
    next_used: Place,
    /// Up to where the driver has been told.
    published: Place,
    /// Entries that were taken and not returned. Never more than there are, whatever the flags say.
    outstanding: u16,
    /// The first used descriptor that was not published, to be written last.
    held: Option<u64>,
    base: Base,
}

// SAFETY: the pointers lead into the memory that `base` keeps mapped and which any thread may access.
unsafe impl Send for PackedRing {}

impl PackedRing {
    /// Sets a ring up. It goes on at `position`: index and wrap counter in the low 16 bits. The high ones, which say what was
    /// used, are not believed: front-ends differ in them, and whoever completes in order and at once has used what it took.
    pub(crate) fn new(layout: RingLayout, position: u32, base: Base) -> Result<Self, SetupError> {
        let size = layout.size;
        if size == 0 || size > MAX_RING_SIZE {
            return Err(SetupError::PackedSize(size));
        }
        let start = Place::unpack(position as u16);
        if start.index >= size {
            return Err(SetupError::Position { position: start.index, size });
        }
        let len = u64::from(size) * u64::from(DESCRIPTOR_LEN);
        let descriptors = base.find("descriptor ring", layout.descriptors, len, 16)?;
        let driver_event = base.find("driver event suppression", layout.available, 4, 4)?;
        let device_event = base.find("device event suppression", layout.used, 4, 4)?;
        let mut ring = Self {
            size,
            descriptors: descriptors.cast(),
            driver_event: driver_event.cast(),
            device_event: device_event.cast(),
            next_available: start,
            next_used: start,
            published: start,
            outstanding: 0,
            held: None,
            base,
        };
        ring.disable_kicks();
        Ok(ring)
    }

    /// Goes on where the descriptors say, if the position that it was set up with can't be right. Reads all of them.
    pub(crate) fn go_on_where_it_stands(&mut self) {
        let skips = self.base.features.in_order && self.base.direction == Direction::FromGuest;
        for _ in 0..LOOKS {
            let descriptors = (0..self.size).map(|index| self.load(index));
            let slots: Vec<Slot> = descriptors.map(|Descriptor { flags, link, .. }| Slot { flags, id: link }).collect();
            match find_place(&slots, self.next_available, skips) {
                Finding::AsTold => return,
                Finding::At(standing) => return self.go_on_at(standing),
                Finding::Unclear => {}
            }
        }
    }

    fn go_on_at(&mut self, Standing { place, gap }: Standing) {
        if let Some(index) = gap {
            // Nothing was written there, as far as anybody knows.
            let Descriptor { link, flags, .. } = self.load(index);
            let used = if flags & AVAIL != 0 { AVAIL | USED } else { 0 };
            self.state(index).store((u64::from(link) << 32 | u64::from(used) << 48).to_le(), Ordering::Release);
        }
        (self.next_available, self.next_used, self.published) = (place, place, place);
    }

    fn load(&self, index: u16) -> Descriptor {
        self.descriptor(index, u64::from_le(self.state(index).load(Ordering::Acquire)))
    }

    /// The second half of a descriptor: length, id and flags.
    #[inline(always)]
    fn state(&self, index: u16) -> &AtomicU64 {
        debug_assert!(index < self.size);
        // SAFETY: a place's index is below `size`, and the table is mapped for as long as `base` lives and aligned to 16 bytes.
        // The guest writes it as well, which is what atomics are for.
        unsafe { AtomicU64::from_ptr(self.descriptors.add(index.into()).cast::<u64>().add(1)) }
    }

    /// A descriptor whose second half was read.
    #[inline(always)]
    fn descriptor(&self, index: u16, state: u64) -> Descriptor {
        // SAFETY: as for `state`.
        let address = unsafe { self.descriptors.add(index.into()).cast_const().cast::<u64>().read_volatile() };
        parse([u64::from_le(address), state])
    }

    /// The descriptor at the next place, if it is available (section 2.8.1).
    #[inline(always)]
    fn available(&self) -> Option<Descriptor> {
        let Place { index, lap } = self.next_available;
        let state = u64::from_le(self.state(index).load(Ordering::Acquire));
        let flags = (state >> 48) as u16;
        (flags & (AVAIL | USED) == lap).then(|| self.descriptor(index, state))
    }

    /// Takes the chain that begins with `head`, whatever it is like.
    #[cold]
    #[inline(never)]
    fn take_any(
        &mut self,
        head: Descriptor,
        limit: u32,
        pieces: &mut Vec<Segment>,
        chain: &mut Chain,
    ) -> Result<bool, RingFault> {
        let mut walk = self.base.walk(limit, pieces);
        let mut walked = Ok(Step::More);
        let (mut descriptor, mut place, mut slots) = (head, self.next_available, 1);
        loop {
            // To the end in any case: the last descriptor has the id, and the next chain begins behind it.
            if descriptor.flags & INDIRECT != 0 {
                if slots > 1 || descriptor.flags & NEXT != 0 {
                    return Err(RingFault::IndirectNested);
                }
                walked = self.follow_indirect(&descriptor, &mut walk)?;
            } else if walked == Ok(Step::More) {
                walked = walk.append(&self.base.memory, &descriptor);
            }
            if descriptor.flags & NEXT == 0 {
                break;
            }
            if slots + self.outstanding >= self.size {
                return Err(RingFault::Loop);
            }
            if usize::from(slots) >= MAX_BUFFERS {
                return Err(RingFault::LongChain);
            }
            slots += 1;
            place = place.advance(1, self.size);
            let state = u64::from_le(self.state(place.index).load(Ordering::Relaxed));
            descriptor = self.descriptor(place.index, state);
        }
        *chain = self.base.walked(descriptor.link, slots, walk, walked.map(|_| ()));
        self.took(slots);
        Ok(true)
    }

    #[inline(always)]
    fn took(&mut self, slots: u16) {
        self.next_available = self.next_available.advance(slots, self.size);
        self.outstanding += slots;
    }

    /// Follows an indirect table, whose entries all count, in their order (section 2.8.7).
    fn follow_indirect(&self, table: &Descriptor, walk: &mut Walk<'_>) -> Result<Result<Step, DropReason>, RingFault> {
        for index in 0..self.base.indirect_len(table)? {
            let entry = parse(self.base.indirect_entry(table, index)?);
            match walk.append(&self.base.memory, &entry) {
                Ok(Step::More) => {}
                other => return Ok(other),
            }
        }
        Ok(Ok(Step::Enough))
    }

    /// Makes the descriptor at the next place used, and goes on `slots` further.
    fn write_used(&mut self, id: u16, slots: u16, len: u32) {
        let state = used(self.next_used, id, len);
        if self.held.is_none() {
            self.held = Some(state);
        } else {
            self.state(self.next_used.index).store(state.to_le(), Ordering::Relaxed);
        }
        self.next_used = self.next_used.advance(slots, self.size);
        self.outstanding -= slots;
    }

    /// The same for one chain after the other, each with the bytes that were written to it.
    #[inline(always)]
    fn write_all_used<'a>(&mut self, mut chains: impl Iterator<Item = (&'a Chain, u32)>) {
        if self.held.is_none() {
            let Some((first, len)) = chains.next() else { return };
            self.write_used(first.id, first.slots, len);
        }
        let (mut place, mut returned) = (self.next_used, 0);
        for (chain, len) in chains {
            self.state(place.index).store(used(place, chain.id, len).to_le(), Ordering::Relaxed);
            place = place.advance(chain.slots, self.size);
            returned += chain.slots;
        }
        self.next_used = place;
        self.outstanding -= returned;
    }

    /// Whether the driver wants to hear of what lies between two places (section 2.8.10).
    fn wants_interrupt(&self, old: Place, new: Place) -> bool {
        // SAFETY: the structure has two 16-bit fields, is mapped for as long as `base` lives and aligned to four bytes. The
        // guest writes it as well, which is what atomics are for.
        let (offset, flags) = unsafe { (AtomicU16::from_ptr(self.driver_event), AtomicU16::from_ptr(self.driver_event.add(1))) };
        let flags = u16::from_le(flags.load(Ordering::Relaxed));
        if !self.base.features.event_idx || u32::from(flags) != VRING_PACKED_EVENT_FLAG_DESC {
            return u32::from(flags) != VRING_PACKED_EVENT_FLAG_DISABLE;
        }
        let event = Place::unpack(u16::from_le(offset.load(Ordering::Relaxed))).linear(self.size);
        let laps = 2 * u32::from(self.size);
        let from_event = (new.linear(self.size) + 2 * laps - 1 - event % laps) % laps;
        let from_old = (new.linear(self.size) + laps - old.linear(self.size)) % laps;
        from_event < from_old
    }

    fn set_device_event(&self, flags: u32) {
        // SAFETY: as for the driver's.
        let place = unsafe { AtomicU16::from_ptr(self.device_event.add(1)) };
        // No truncation: one of three small numbers.
        place.store((flags as u16).to_le(), Ordering::Relaxed);
    }
}

impl Virtqueue for PackedRing {
    fn base(&self) -> &Base {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base {
        &mut self.base
    }

    #[inline(always)]
    fn prefetch(&self) {
        if self.available().is_none() {
            // Lines that the guest is about to write are better left with it.
            return;
        }
        for ahead in (0..BATCH as u16).step_by(LINE_LEN / DESCRIPTOR_LEN as usize) {
            // Past the end there is nothing, and no harm in asking for it.
            prefetch(self.descriptors.wrapping_add(usize::from(self.next_available.index + ahead)).cast_const().cast());
        }
    }

    #[inline(always)]
    fn take(&mut self, limit: u32, pieces: &mut Vec<Segment>, chain: &mut Chain) -> Result<bool, RingFault> {
        if self.outstanding >= self.size {
            return Ok(false);
        }
        let Some(head) = self.available() else { return Ok(false) };
        let Some(ptr) = self.base.single(&head, limit) else {
            return self.take_any(head, limit, pieces, chain);
        };
        *chain = Chain::of_one(head.link, ptr, head.len);
        self.took(1);
        Ok(true)
    }

    fn untake(&mut self, slots: u16) {
        self.next_available = self.next_available.go_back(slots, self.size);
        self.outstanding -= slots;
    }

    #[inline(always)]
    fn complete(&mut self, chain: &Chain, len: u32) {
        self.write_used(chain.id, chain.slots, len);
    }

    #[inline(always)]
    fn complete_written(&mut self, chains: &[Chain]) {
        self.write_all_used(chains.iter().map(|chain| (chain, chain.len)));
    }

    #[inline]
    fn complete_unwritten<'a>(&mut self, mut chains: impl DoubleEndedIterator<Item = &'a Chain> + ExactSizeIterator) {
        if !self.base.features.in_order {
            return self.write_all_used(chains.map(|chain| (chain, 0)));
        }
        // Section 2.8.9: one descriptor, where the batch begins, names its last chain.
        if let Some(last) = chains.next_back() {
            let slots: u16 = chains.map(|chain| chain.slots).sum();
            self.write_used(last.id, slots + last.slots, 0);
        }
    }

    fn publish(&mut self) -> Result<bool, RingFault> {
        let Some(first) = self.held.take() else { return Ok(false) };
        let (old, new) = (self.published, self.next_used);
        self.state(old.index).store(first.to_le(), Ordering::Release);
        self.published = new;
        // The descriptors must be visible before we look whether the guest wants to know (section 2.8.21.3).
        fence(Ordering::SeqCst);
        if !self.wants_interrupt(old, new) {
            return Ok(false);
        }
        self.base.notify()
    }

    fn enable_kicks(&mut self) -> Result<bool, RingFault> {
        self.set_device_event(VRING_PACKED_EVENT_FLAG_ENABLE);
        // The wish must be visible before the last look.
        fence(Ordering::SeqCst);
        Ok(self.available().is_some())
    }

    fn disable_kicks(&mut self) {
        self.set_device_event(VRING_PACKED_EVENT_FLAG_DISABLE);
    }

    /// The same in both halves: what was taken was used.
    fn position(&self) -> u32 {
        u32::from(self.next_available.pack()) * 0x1_0001
    }
}

/// The second half of a used descriptor.
#[inline(always)]
fn used(place: Place, id: u16, len: u32) -> u64 {
    let write = if len > 0 { WRITE } else { 0 };
    u64::from(len) | u64::from(id) << 32 | u64::from(place.used() | write) << 48
}

/// Section 2.8.12: address, length, id, flags.
#[inline(always)]
fn parse([address, state]: [u64; 2]) -> Descriptor {
    Descriptor { address, len: state as u32, link: (state >> 32) as u16, flags: (state >> 48) as u16 }
}

#[cfg(all(test, not(loom)))]
#[path = "ring_packed_tests.rs"]
mod tests;
