//! The split virtqueue, device side (virtio 1.2, section 2.7). The theory stands in [`crate::ring`].

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use weft_switch::DropReason;

use crate::memory::Segment;
use crate::ring::{
    Base, Chain, DESCRIPTOR_LEN, Descriptor, INDIRECT, MAX_RING_SIZE, NEXT, RingFault, RingLayout, SetupError, Step, Virtqueue,
    Walk,
};
use crate::sync::{AtomicU16, fence};

/// A split ring that was set up on a guest's memory.
#[derive(Debug)]
pub(crate) struct SplitRing {
    size: u16,
    /// One less than the size, which is a power of two.
    mask: u16,
    descriptors: *const [u64; 2],
    /// flags, index, `size` heads, used event
    available: *const u16,
    /// flags, index, then `size` entries of 8 bytes, then the available event
    used: *mut u16,
    /// The next available entry to take.
    next_available: u16,
    /// The available index as last read: what lies between it and `next_available` may be taken without another look.
    known_available: u16,
    /// The used index, including what was not published yet.
    next_used: u16,
    published_used: u16,
    base: Base,
}

// SAFETY: the pointers lead into the memory that `base` keeps mapped and which any thread may access.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Sets a ring up. It goes on at the used index that stands in guest memory.
    pub(crate) fn new(layout: RingLayout, base: Base) -> Result<Self, SetupError> {
        let size = layout.size;
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(SetupError::Size(size));
        }
        let entries = u64::from(size);
        let descriptors = base.find("descriptor table", layout.descriptors, entries * u64::from(DESCRIPTOR_LEN), 16)?;
        // The event index that follows the entries is counted in even where it is not negotiated (section 2.7.2).
        let available = base.find("available ring", layout.available, 6 + 2 * entries, 2)?;
        let used = base.find("used ring", layout.used, 6 + 8 * entries, 4)?;
        let mut ring = Self {
            size,
            mask: size - 1,
            descriptors: descriptors.cast(),
            available: available.cast(),
            used: used.cast(),
            next_available: 0,
            known_available: 0,
            next_used: 0,
            published_used: 0,
            base,
        };
        let used_index = ring.used_index().load(Ordering::Acquire);
        (ring.next_available, ring.known_available) = (used_index, used_index);
        (ring.next_used, ring.published_used) = (used_index, used_index);
        ring.disable_kicks();
        Ok(ring)
    }

    /// How many chains can be taken.
    fn available(&mut self) -> Result<u16, RingFault> {
        let index = self.available_index().load(Ordering::Acquire);
        let jump = index.wrapping_sub(self.next_available);
        if jump > self.size {
            return Err(RingFault::IndexJump { jump, size: self.size });
        }
        self.known_available = index;
        Ok(jump)
    }

    #[inline(always)]
    fn descriptor(&self, index: u16) -> Result<Descriptor, RingFault> {
        if index >= self.size {
            return Err(RingFault::OutsideTable { index, size: self.size.into() });
        }
        // SAFETY: `index` is within the table, which has `size` entries, is mapped, and aligned to 16 bytes.
        let words: *const u64 = unsafe { self.descriptors.add(index.into()) }.cast();
        // SAFETY: as above.
        Ok(parse(unsafe { [words.read_volatile(), words.add(1).read_volatile()] }.map(u64::from_le)))
    }

    /// Takes the chain that begins with `head`, whatever it is like.
    #[cold]
    #[inline(never)]
    fn take_any(
        &mut self,
        (id, head): (u16, Descriptor),
        limit: u32,
        pieces: &mut Vec<Segment>,
        chain: &mut Chain,
    ) -> Result<bool, RingFault> {
        let mut walk = self.base.walk(limit, pieces);
        let walked = self.follow(head, &mut walk)?;
        *chain = self.base.walked(id, 1, walk, walked);
        self.next_available = self.next_available.wrapping_add(1);
        Ok(true)
    }

    /// Follows a chain from its head (section 2.7.5). The outer error stops the port, the inner one drops the frame.
    fn follow(&self, head: Descriptor, walk: &mut Walk<'_>) -> Result<Result<(), DropReason>, RingFault> {
        let mut descriptor = head;
        for _ in 0..self.size {
            if descriptor.flags & INDIRECT != 0 {
                return self.follow_indirect(descriptor, walk);
            }
            match walk.append(&self.base.memory, &descriptor) {
                Ok(Step::More) if descriptor.flags & NEXT != 0 => descriptor = self.descriptor(descriptor.link)?,
                Ok(_) => return Ok(Ok(())),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Err(RingFault::Loop)
    }

    /// Follows a chain through its indirect table (section 2.7.5.3), which may end a chain of ordinary descriptors.
    fn follow_indirect(&self, table: Descriptor, walk: &mut Walk<'_>) -> Result<Result<(), DropReason>, RingFault> {
        let size = self.base.indirect_len(&table)?;
        let mut index = 0;
        for _ in 0..size {
            if u32::from(index) >= size {
                return Err(RingFault::OutsideTable { index, size });
            }
            let descriptor = parse(self.base.indirect_entry(&table, index.into())?);
            if descriptor.flags & INDIRECT != 0 {
                return Err(RingFault::IndirectNested);
            }
            match walk.append(&self.base.memory, &descriptor) {
                Ok(Step::More) if descriptor.flags & NEXT != 0 => index = descriptor.link,
                Ok(_) => return Ok(Ok(())),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Err(RingFault::Loop)
    }

    #[inline(always)]
    fn write_used(&mut self, index: u16, id: u16, len: u32) {
        let entry = u64::from(id) | u64::from(len) << 32;
        let place = 2 + 4 * self.slot(index);
        // SAFETY: the entries follow two 16-bit fields and are 8 bytes each; the masked index is below `size`. The
        // area is aligned to 4 bytes, so the entry may not be to 8: hence the unaligned store.
        unsafe { self.used.add(place).cast::<u64>().write_unaligned(entry.to_le()) };
    }

    fn wants_interrupt(&self, old: u16, new: u16) -> bool {
        if self.base.features.event_idx {
            let event = self.used_event().load(Ordering::Relaxed);
            // Section 2.7.7.2: has the index passed the event?
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.available_flags().load(Ordering::Relaxed) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0
        }
    }

    #[inline(always)]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & self.mask)
    }

    fn available_index(&self) -> &AtomicU16 {
        // SAFETY: the index is the second 16-bit field of the available ring, mapped for as long as `base` lives and
        // aligned to two bytes. The guest writes it as well, which is what atomics are for.
        unsafe { AtomicU16::from_ptr(self.available.add(1).cast_mut()) }
    }

    fn available_flags(&self) -> &AtomicU16 {
        // SAFETY: as for `available_index`; the flags are the first field of the available ring.
        unsafe { AtomicU16::from_ptr(self.available.cast_mut()) }
    }

    fn used_event(&self) -> &AtomicU16 {
        // SAFETY: as for `available_index`; the event follows the heads, and was counted in when the ring was set up.
        unsafe { AtomicU16::from_ptr(self.available.add(2 + usize::from(self.size)).cast_mut()) }
    }

    fn used_flags(&self) -> &AtomicU16 {
        // SAFETY: as for `available_index`; the flags are the first field of the used ring.
        unsafe { AtomicU16::from_ptr(self.used) }
    }

    fn used_index(&self) -> &AtomicU16 {
        // SAFETY: as for `available_index`; the index is the second field of the used ring.
        unsafe { AtomicU16::from_ptr(self.used.add(1)) }
    }

    fn available_event(&self) -> &AtomicU16 {
        // SAFETY: as for `available_index`; the event follows the entries, and was counted in when the ring was set up.
        unsafe { AtomicU16::from_ptr(self.used.add(2 + 4 * usize::from(self.size))) }
    }
}

impl Virtqueue for SplitRing {
    fn base(&self) -> &Base {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base {
        &mut self.base
    }

    #[inline(always)]
    fn take(&mut self, limit: u32, pieces: &mut Vec<Segment>, chain: &mut Chain) -> Result<bool, RingFault> {
        if self.next_available == self.known_available && self.available()? == 0 {
            return Ok(false);
        }
        // SAFETY: the masked index is below `size`, and the heads follow two 16-bit fields.
        let id = unsafe { self.available.add(2 + self.slot(self.next_available)).read_volatile() };
        let head = self.descriptor(id)?;
        let Some(ptr) = self.base.single(&head, limit) else {
            return self.take_any((id, head), limit, pieces, chain);
        };
        *chain = Chain::of_one(id, ptr, head.len);
        self.next_available = self.next_available.wrapping_add(1);
        Ok(true)
    }

    fn untake(&mut self, slots: u16) {
        self.next_available = self.next_available.wrapping_sub(slots);
    }

    #[inline(always)]
    fn complete(&mut self, chain: &Chain, len: u32) {
        self.write_used(self.next_used, chain.id, len);
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline(always)]
    fn complete_written(&mut self, chains: &[Chain]) {
        chains.iter().for_each(|chain| self.complete(chain, chain.len));
    }

    #[inline]
    fn complete_unwritten<'a>(&mut self, mut chains: impl DoubleEndedIterator<Item = &'a Chain> + ExactSizeIterator) {
        if !self.base.features.in_order {
            chains.for_each(|chain| self.complete(chain, 0));
            return;
        }
        // Section 2.7.9: one entry, where the batch begins, names its last chain.
        let count = chains.len();
        if let Some(last) = chains.next_back() {
            self.write_used(self.next_used, last.id, 0);
            // No truncation: at most a batch.
            self.next_used = self.next_used.wrapping_add(count as u16);
        }
    }

    fn publish(&mut self) -> Result<bool, RingFault> {
        let (old, new) = (self.published_used, self.next_used);
        if old == new {
            return Ok(false);
        }
        self.used_index().store(new, Ordering::Release);
        self.published_used = new;
        // The index must be visible before we look whether the guest wants to know (section 2.7.7.2).
        fence(Ordering::SeqCst);
        if !self.wants_interrupt(old, new) {
            return Ok(false);
        }
        self.base.notify()
    }

    fn enable_kicks(&mut self) -> Result<bool, RingFault> {
        if self.base.features.event_idx {
            self.available_event().store(self.next_available, Ordering::Relaxed);
        } else {
            self.used_flags().store(0, Ordering::Relaxed);
        }
        // The wish must be visible before the last look at the index (section 2.7.10.1).
        fence(Ordering::SeqCst);
        Ok(self.available()? != 0)
    }

    /// With event indexes it is enough not to move ours.
    fn disable_kicks(&mut self) {
        if !self.base.features.event_idx {
            self.used_flags().store(VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
        }
    }

    fn position(&self) -> u32 {
        self.next_available.into()
    }
}

/// Section 2.7.5: address, length, flags, next.
#[inline(always)]
fn parse([address, rest]: [u64; 2]) -> Descriptor {
    Descriptor { address, len: rest as u32, flags: (rest >> 32) as u16, link: (rest >> 48) as u16 }
}
