//! The split virtqueue, device side (virtio 1.2, section 2.7).
//!
//! # Theory
//!
//! A [`SplitRing`] is set up once: its three areas are found, checked for size and alignment, and their addresses kept
//! beside the [`GuestMemory`] that keeps them mapped. From then on a batch costs one look at the available index, one
//! store of the used index and at most one notification.
//!
//! Everything in the ring belongs to the guest, which may change it at any time. So each field is read exactly once per use,
//! with a volatile load, and checked after the read; whatever was checked is kept in private memory. Two kinds of
//! trouble are kept apart:
//!
//! * a **fault** ([`RingFault`]): the ring's structure is broken, and there is no way to tell which descriptors belong
//!   to whom. The port stops.
//! * a **bad chain** ([`DropReason`]): the structure holds but a buffer is unusable. The frame is dropped and counted, the
//!   chain given back unused, and the ring goes on.
//!
//! Chains are completed in the order in which they were offered, and at each batch boundary all that was taken is
//! completed. So whoever sets the ring up again (after a crash of either side) finds in the used index of guest memory
//! exactly where to go on; nothing else has to be remembered.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use weft_switch::DropReason;

use crate::memory::{GuestMemory, Segment};

/// The largest ring that virtio allows (virtio 1.2, section 2.7).
pub(crate) const MAX_RING_SIZE: u16 = 32_768;

/// The most buffers that one frame may be spread over: what QEMU allows for a chain. Without it a guest could make a batch
/// take as long as it likes, with buffers of one byte.
pub(crate) const MAX_BUFFERS: usize = 1024;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const DESCRIPTOR_LEN: u64 = 16;

/// Where a ring's three areas are, in the front-end's address space, and how many descriptors it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RingLayout {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// What the driver agreed to, as far as a ring cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RingFeatures {
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
}

/// Why a ring can't be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("ring size {0} is no power of two from 1 to {MAX_RING_SIZE}")]
    Size(u16),
    #[error("the ring's {area} at {address:#x} must be aligned to {align} bytes")]
    Alignment { area: &'static str, address: u64, align: u64 },
    #[error("the ring's {area} at {address:#x} ({len} bytes) does not lie within one memory region")]
    NotMapped { area: &'static str, address: u64, len: u64 },
}

/// The ring's structure is broken; the port must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RingFault {
    #[error("the available index jumped by {jump}, more than the ring's {size} entries")]
    IndexJump { jump: u16, size: u16 },
    #[error("descriptor {index} is beyond the table's {size} entries")]
    OutsideTable { index: u16, size: u32 },
    #[error("a descriptor chain is longer than its table, so it has a loop")]
    Loop,
    #[error("an indirect descriptor although INDIRECT_DESC was not negotiated")]
    IndirectNotAgreed,
    #[error("an indirect descriptor with NEXT, or inside an indirect table")]
    IndirectNested,
    #[error("an indirect table of {len} bytes at {address:#x}: it must be a multiple of 16 bytes, within shared memory")]
    IndirectTable { address: u64, len: u32 },
    #[error("the front-end shortened the file behind its memory while it was in use")]
    MemoryLost,
    #[error("the call descriptor blocks or refuses the write: the front-end changed it")]
    CallBlocked,
}

/// Which way a ring's buffers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The guest fills buffers for us to read.
    FromGuest,
    /// The guest offers buffers for us to write.
    ToGuest,
}

/// A chain of descriptors that was taken from the ring. Its pieces stand in the vector that the walk filled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    /// Bytes over all buffers, or why they can't be used.
    pub(crate) len: Result<usize, DropReason>,
    /// What it took: descriptors that were looked at, or pieces of memory, whichever are more.
    pub(crate) cost: usize,
}

#[derive(Clone, Copy, Debug)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A chain that is being followed.
#[derive(Debug)]
struct Walk<'a> {
    /// See [`SplitRing::take`].
    limit: usize,
    /// Bytes so far.
    len: usize,
    descriptors: usize,
    pieces: &'a mut Vec<Segment>,
}

/// Whether a chain goes on.
enum Step {
    More,
    Last,
}

/// A split ring that was set up on a guest's memory.
#[derive(Debug)]
pub(crate) struct SplitRing {
    size: u16,
    descriptors: *const [u64; 2],
    /// flags, index, `size` heads, used event
    available: *const u16,
    /// flags, index, then `size` entries of 8 bytes, then the available event
    used: *mut u16,
    features: RingFeatures,
    direction: Direction,
    /// The next available entry to take.
    next_available: u16,
    /// The available index as last read: what lies between it and `next_available` may be taken without another look.
    known_available: u16,
    /// The used index, including what was not published yet.
    next_used: u16,
    published_used: u16,
    /// The guest may wait for an interrupt that an earlier back-end owed it.
    owes_notification: bool,
    call: Option<Arc<OwnedFd>>,
    memory: Arc<GuestMemory>,
}

// SAFETY: the pointers lead into `memory`, which the ring keeps mapped and which any thread may access.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Sets a ring up. It goes on at the used index that stands in guest memory (see the theory above).
    pub(crate) fn new(
        memory: &Arc<GuestMemory>,
        layout: RingLayout,
        features: RingFeatures,
        direction: Direction,
        call: Option<Arc<OwnedFd>>,
    ) -> Result<Self, SetupError> {
        let size = layout.size;
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(SetupError::Size(size));
        }
        let entries = u64::from(size);
        let find = |area, address: u64, len: u64, align: u64| {
            if !address.is_multiple_of(align) {
                return Err(SetupError::Alignment { area, address, align });
            }
            let ptr = memory.at_user(address, len).ok_or(SetupError::NotMapped { area, address, len })?;
            // The two address spaces may be shifted against each other by less than the alignment.
            if (ptr as u64).is_multiple_of(align) { Ok(ptr) } else { Err(SetupError::Alignment { area, address, align }) }
        };
        let descriptors = find("descriptor table", layout.descriptors, entries * DESCRIPTOR_LEN, 16)?;
        // The event index that follows the entries is counted in even where it is not negotiated (section 2.7.2).
        let available = find("available ring", layout.available, 6 + 2 * entries, 2)?;
        let used = find("used ring", layout.used, 6 + 8 * entries, 4)?;
        let mut ring = Self {
            size,
            descriptors: descriptors.cast(),
            available: available.cast(),
            used: used.cast(),
            features,
            direction,
            next_available: 0,
            known_available: 0,
            next_used: 0,
            published_used: 0,
            owes_notification: true,
            call,
            memory: Arc::clone(memory),
        };
        let used_index = ring.used_index().load(Ordering::Acquire);
        (ring.next_available, ring.known_available) = (used_index, used_index);
        (ring.next_used, ring.published_used) = (used_index, used_index);
        ring.disable_kicks();
        Ok(ring)
    }

    /// The ring index to go on from: what `GET_VRING_BASE` reports.
    pub(crate) fn next_available(&self) -> u16 {
        self.next_available
    }

    pub(crate) fn set_call(&mut self, call: Option<Arc<OwnedFd>>) {
        self.call = call;
    }

    /// The fault to report if a part of the memory was taken away.
    pub(crate) fn check_memory(&self) -> Result<(), RingFault> {
        if self.memory.is_lost() { Err(RingFault::MemoryLost) } else { Ok(()) }
    }

    /// The reason behind a fault: where memory was taken away, its being empty now is what looks broken.
    #[cold]
    pub(crate) fn explain(&self, fault: RingFault) -> RingFault {
        self.check_memory().err().unwrap_or(fault)
    }

    /// How many chains can be taken.
    pub(crate) fn available(&mut self) -> Result<u16, RingFault> {
        let index = self.available_index().load(Ordering::Acquire);
        let jump = index.wrapping_sub(self.next_available);
        if jump > self.size {
            return Err(RingFault::IndexJump { jump, size: self.size });
        }
        self.known_available = index;
        Ok(jump)
    }

    /// Takes the next chain and appends its buffers to `pieces`; `None` when there is none. Looks at the available index
    /// only when all that is known was taken.
    ///
    /// `limit` is in bytes. A chain from the guest may not hold more; of a chain to the guest, buffers are taken until there is
    /// room for that many. A chain that can't be used is taken as well: [`Chain::len`] then says why, and `pieces`
    /// is unchanged.
    #[inline]
    pub(crate) fn take(&mut self, limit: usize, pieces: &mut Vec<Segment>) -> Result<Option<Chain>, RingFault> {
        if self.next_available == self.known_available && self.available()? == 0 {
            return Ok(None);
        }
        // SAFETY: the masked index is below `size`, and the heads follow two 16-bit fields.
        let head = unsafe { self.available.add(2 + self.slot(self.next_available)).read_volatile() };
        let before = pieces.len();
        let mut walk = Walk { limit, len: 0, descriptors: 0, pieces };
        let walked = self.walk(head, &mut walk)?;
        let len = walked.map(|()| walk.len);
        let cost = walk.descriptors.max(walk.pieces.len() - before);
        if len.is_err() {
            pieces.truncate(before);
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(Chain { head, len, cost }))
    }

    /// Gives the `count` chains that were taken last back to the guest's side, as if they had not been taken.
    pub(crate) fn untake(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// Returns a chain of which `len` bytes were written. Seen by the guest after [`Self::publish`].
    #[inline]
    pub(crate) fn complete(&mut self, head: u16, len: u32) {
        let entry = u64::from(head) | u64::from(len) << 32;
        let place = 2 + 4 * self.slot(self.next_used);
        // SAFETY: the entries follow two 16-bit fields and are 8 bytes each; the masked index is below `size`. The
        // area is aligned to 4 bytes, so the entry may not be to 8: hence the unaligned store.
        unsafe { self.used.add(place).cast::<u64>().write_unaligned(entry.to_le()) };
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Lets the guest see what was completed, and notifies it if it asked for that. True if a notification was sent.
    pub(crate) fn publish(&mut self) -> Result<bool, RingFault> {
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
        self.notify()
    }

    /// Asks the guest to kick when it offers more. True if it has offered more already, so that nobody may sleep.
    pub(crate) fn enable_kicks(&mut self) -> Result<bool, RingFault> {
        if self.features.event_idx {
            self.available_event().store(self.next_available, Ordering::Relaxed);
        } else {
            self.used_flags().store(0, Ordering::Relaxed);
        }
        // The wish must be visible before the last look at the index (section 2.7.10.1).
        fence(Ordering::SeqCst);
        Ok(self.available()? != 0)
    }

    /// Tells the guest that kicks are not needed: somebody is looking. With event indexes it is enough not to move ours.
    pub(crate) fn disable_kicks(&mut self) {
        if !self.features.event_idx {
            self.used_flags().store(VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
        }
    }

    /// Notifies a guest that may have missed something before this ring was set up. Once; true if it was.
    pub(crate) fn notify_if_owed(&mut self) -> Result<bool, RingFault> {
        if std::mem::take(&mut self.owes_notification) { self.notify() } else { Ok(false) }
    }

    fn notify(&self) -> Result<bool, RingFault> {
        let Some(call) = &self.call else { return Ok(false) };
        match rustix::io::write(call, &1_u64.to_ne_bytes()) {
            // A full counter: the guest has more interrupts pending than it can count.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(true),
            Err(_) => Err(RingFault::CallBlocked),
        }
    }

    fn wants_interrupt(&self, old: u16, new: u16) -> bool {
        if self.features.event_idx {
            // SAFETY: the used event follows the heads; its two bytes were counted in when the ring was set up.
            let event = unsafe { self.available.add(2 + usize::from(self.size)).read_volatile() };
            // Section 2.7.7.2: has the index passed the event?
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            // SAFETY: the flags are the first field of the available ring.
            let flags = unsafe { self.available.read_volatile() };
            flags & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0
        }
    }

    /// Follows a chain from its head (section 2.7.5). The outer error stops the port, the inner one drops the frame.
    fn walk(&self, head: u16, walk: &mut Walk<'_>) -> Result<Result<(), DropReason>, RingFault> {
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(RingFault::OutsideTable { index, size: self.size.into() });
            }
            // SAFETY: `index` is within the table, which has `size` entries.
            let descriptor = Descriptor::read(unsafe { self.descriptors.add(index.into()) });
            if descriptor.flags & INDIRECT != 0 {
                return self.walk_indirect(descriptor, walk);
            }
            match self.append(&descriptor, walk) {
                Ok(Step::More) => index = descriptor.next,
                Ok(Step::Last) => return Ok(Ok(())),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Err(RingFault::Loop)
    }

    /// Follows a chain through its indirect table (section 2.7.5.3), which may end a chain of ordinary descriptors.
    fn walk_indirect(&self, table: Descriptor, walk: &mut Walk<'_>) -> Result<Result<(), DropReason>, RingFault> {
        if !self.features.indirect {
            return Err(RingFault::IndirectNotAgreed);
        }
        if table.flags & NEXT != 0 {
            return Err(RingFault::IndirectNested);
        }
        let bad_table = RingFault::IndirectTable { address: table.address, len: table.len };
        let size = table.len / DESCRIPTOR_LEN as u32;
        if size == 0 || size > MAX_RING_SIZE.into() || !table.len.is_multiple_of(DESCRIPTOR_LEN as u32) {
            return Err(bad_table);
        }
        let mut index = 0;
        for _ in 0..size {
            if u32::from(index) >= size {
                return Err(RingFault::OutsideTable { index, size });
            }
            // Entry by entry, because the table may span adjoining regions.
            let entry = table.address.checked_add(u64::from(index) * DESCRIPTOR_LEN);
            let entry = entry.and_then(|address| self.memory.at_guest(address, DESCRIPTOR_LEN)).ok_or(bad_table)?;
            let descriptor = Descriptor::read(entry.cast_const().cast());
            if descriptor.flags & INDIRECT != 0 {
                return Err(RingFault::IndirectNested);
            }
            match self.append(&descriptor, walk) {
                Ok(Step::More) => index = descriptor.next,
                Ok(Step::Last) => return Ok(Ok(())),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Err(RingFault::Loop)
    }

    /// Appends one buffer, and says whether the chain goes on.
    #[inline]
    fn append(&self, descriptor: &Descriptor, walk: &mut Walk<'_>) -> Result<Step, DropReason> {
        walk.descriptors += 1;
        let writable = descriptor.flags & WRITE != 0;
        if descriptor.len == 0 || writable != (self.direction == Direction::ToGuest) {
            return Err(DropReason::BadDescriptor);
        }
        walk.len += descriptor.len as usize;
        let too_long = walk.len > walk.limit && self.direction == Direction::FromGuest;
        if too_long || walk.descriptors > MAX_BUFFERS {
            return Err(DropReason::TooLong);
        }
        if !self.memory.pieces_at_guest(descriptor.address, descriptor.len, walk.pieces) {
            return Err(DropReason::BadAddress);
        }
        // The rest of a chain does not matter when the room offered so far is enough.
        let enough = walk.len >= walk.limit && self.direction == Direction::ToGuest;
        Ok(if descriptor.flags & NEXT == 0 || enough { Step::Last } else { Step::More })
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    fn available_index(&self) -> &AtomicU16 {
        // SAFETY: the index is the second 16-bit field of the available ring, mapped for as long as `memory` lives and
        // aligned to two bytes. The guest writes it as well, which is what atomics are for.
        unsafe { AtomicU16::from_ptr(self.available.add(1).cast_mut()) }
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

impl Descriptor {
    /// Reads a descriptor's sixteen bytes, each exactly once.
    #[inline]
    fn read(ptr: *const [u64; 2]) -> Self {
        let words: *const u64 = ptr.cast();
        let [address, rest] = if words.is_aligned() {
            // SAFETY: callers pass a pointer to sixteen mapped bytes, and they are aligned.
            unsafe { [words.read_volatile(), words.add(1).read_volatile()] }
        } else {
            // An indirect table need not be aligned.
            // SAFETY: callers pass a pointer to sixteen mapped bytes, and bytes are always aligned.
            unsafe { words.cast::<[[u8; 8]; 2]>().read_volatile() }.map(u64::from_ne_bytes)
        }
        .map(u64::from_le);
        Self { address, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }
}

/// A place in a list of pieces of guest memory, from which bytes are taken or to which they are given, in order.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    pieces: &'a [Segment],
    /// Bytes of the first piece that are done.
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(pieces: &'a [Segment]) -> Self {
        Self { pieces, offset: 0 }
    }

    /// This cursor, `len` bytes further on.
    pub(crate) fn skip(mut self, mut len: usize) -> Self {
        while let Some(run) = (len > 0).then(|| self.next_run(len)).flatten() {
            len -= run.len;
        }
        self
    }

    /// Copies the next `N` bytes to private memory: one fixed-size move where they lie in one piece.
    #[inline]
    pub(crate) fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        match self.pieces.first() {
            Some(piece) if piece.len - self.offset >= N => {
                // SAFETY: the piece is mapped guest memory with at least `N` bytes from `offset` on; private memory can't
                // overlap it.
                unsafe { piece.ptr.add(self.offset).copy_to_nonoverlapping(bytes.as_mut_ptr(), N) };
                self.offset += N;
                Some(bytes)
            }
            _ => self.read(&mut bytes).then_some(bytes),
        }
    }

    /// The opposite; false when there is not enough room.
    #[inline]
    pub(crate) fn write_array<const N: usize>(&mut self, bytes: &[u8; N]) -> bool {
        match self.pieces.first() {
            Some(piece) if piece.len - self.offset >= N => {
                // SAFETY: as in `read_array`, and the guest offered the piece for writing.
                unsafe { piece.ptr.add(self.offset).copy_from_nonoverlapping(bytes.as_ptr(), N) };
                self.offset += N;
                true
            }
            _ => self.write(bytes),
        }
    }

    /// Copies the next `into.len()` bytes to private memory; false when there are not that many.
    #[inline]
    pub(crate) fn read(&mut self, mut into: &mut [u8]) -> bool {
        while !into.is_empty() {
            let Some(here) = self.next_run(into.len()) else { return false };
            let (now, later) = into.split_at_mut(here.len);
            // SAFETY: `here` is mapped guest memory, and private memory can't overlap it.
            unsafe { here.ptr.copy_to_nonoverlapping(now.as_mut_ptr(), here.len) };
            into = later;
        }
        true
    }

    /// Copies private bytes to the next place; false when there is not enough room.
    #[inline]
    pub(crate) fn write(&mut self, mut from: &[u8]) -> bool {
        while !from.is_empty() {
            let Some(here) = self.next_run(from.len()) else { return false };
            let (now, later) = from.split_at(here.len);
            // SAFETY: `here` is mapped guest memory that the guest offered for writing; private memory can't overlap it.
            unsafe { here.ptr.copy_from_nonoverlapping(now.as_ptr(), here.len) };
            from = later;
        }
        true
    }

    /// Copies the next `len` bytes of another guest's memory to the next place; false when either ends before.
    #[inline]
    pub(crate) fn copy_from(&mut self, other: &mut Cursor<'_>, mut len: usize) -> bool {
        while len > 0 {
            let Some(source) = other.next_run(len) else { return false };
            let mut done = 0;
            while done < source.len {
                let Some(target) = self.next_run(source.len - done) else {
                    return false;
                };
                // SAFETY: both are mapped guest memory, `target` offered for writing. They belong to different ports and
                // so to different mappings, which can't overlap in our address space; a guest that shares one
                // page twice only garbles its own data, as `copy` and the guest's own writes do anyway.
                unsafe { target.ptr.copy_from_nonoverlapping(source.ptr.add(done), target.len) };
                done += target.len;
            }
            len -= source.len;
        }
        true
    }

    /// The next contiguous piece, at most `len` bytes long and never empty; it counts as done afterwards.
    #[inline]
    fn next_run(&mut self, len: usize) -> Option<Segment> {
        let piece = loop {
            let piece = self.pieces.first()?;
            if self.offset < piece.len {
                break piece;
            }
            self.pieces = &self.pieces[1..];
            self.offset = 0;
        };
        let run = Segment {
            // SAFETY: `offset` is below the piece's length.
            ptr: unsafe { piece.ptr.add(self.offset) },
            len: len.min(piece.len - self.offset),
        };
        self.offset += run.len;
        Some(run)
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
