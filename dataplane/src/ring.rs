//! Virtqueues, device side: what the split and the packed layout have in common (virtio 1.2, sections 2.6 to 2.8).
//!
//! # Theory
//!
//! A [`Ring`] is set up once: its areas are found, checked for size and alignment, and their addresses kept beside the
//! [`GuestMemory`] that keeps them mapped. From then on a batch costs one look at what is available, one publication and at
//! most one notification.
//!
//! Everything in the ring belongs to the guest, which may change it at any time. So each field is read exactly once per use,
//! with a volatile or atomic load, and checked after the read; whatever was checked is kept in private memory. Two kinds of
//! trouble are kept apart:
//!
//! * a **fault** ([`RingFault`]): the ring's structure is broken, and there is no way to tell which descriptors belong
//!   to whom. The port stops.
//! * a **bad chain** ([`DropReason`]): the structure holds but a buffer is unusable. The frame is dropped and counted, the
//!   chain given back unused, and the ring goes on.
//!
//! Chains are completed in the order in which they were offered, and whoever takes a ring over finds all that was taken
//! completed. So one position is all the state that there is: a split ring keeps it in the used index of guest memory, a packed
//! one is told it by the front-end, if that knows (`ring_resume`).
//!
//! Nearly every chain is a single buffer in the region that held the one before. [`Base::single`] is for those, and costs a
//! few comparisons; everything else takes the long way with [`Walk`].

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use weft_switch::DropReason;

use crate::memory::{GuestMemory, Segment, Window};
use crate::ring_packed::PackedRing;
use crate::ring_split::SplitRing;

/// The largest ring that virtio allows (virtio 1.2, sections 2.7 and 2.8).
pub(crate) const MAX_RING_SIZE: u16 = 32_768;

/// The most buffers that one frame may be spread over: what QEMU allows for a chain. Without it a guest could make a batch
/// take as long as it likes, with buffers of one byte.
pub(crate) const MAX_BUFFERS: usize = 1024;

pub(crate) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(crate) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(crate) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
pub(crate) const DESCRIPTOR_LEN: u32 = 16;

/// Where a ring's three areas are, in the front-end's address space, and how many descriptors it has. In a packed ring the
/// second area is the driver's event suppression, the third the device's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RingLayout {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// What the driver agreed to, as far as a ring cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a feature bit of its own")]
pub(crate) struct RingFeatures {
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
    pub(crate) packed: bool,
    pub(crate) in_order: bool,
}

/// Why a ring can't be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("ring size {0} is no power of two from 1 to {MAX_RING_SIZE}")]
    Size(u16),
    #[error("packed ring size {0} is not from 1 to {MAX_RING_SIZE}")]
    PackedSize(u16),
    #[error("the position {position} is beyond the ring's {size} entries")]
    Position { position: u16, size: u16 },
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
    #[error("a descriptor chain has more than {MAX_BUFFERS} descriptors")]
    LongChain,
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
    /// A worker panicked over what came from the ring.
    #[error("a fault in weft over a frame of this guest: please report it, with the panic that the log shows before this")]
    Panicked,
}

impl RingFault {
    /// True where whoever does it again would hold up others each time, so that the port is to take no new front-end.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::CallBlocked | Self::Panicked)
    }
}

/// Which way a ring's buffers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The guest fills buffers for us to read.
    FromGuest,
    /// The guest offers buffers for us to write.
    ToGuest,
}

/// A chain of descriptors that was taken from a ring. Half a cache line, because every frame writes and reads two of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    /// Where its only piece is, if there is one.
    ptr: *mut u8,
    /// Bytes over all buffers; zero if they can't be used.
    pub(crate) len: u32,
    /// What the driver knows it by: its first descriptor in a split ring, its buffer id in a packed one.
    pub(crate) id: u16,
    /// Entries of the ring that it takes.
    pub(crate) slots: u16,
    /// Where its pieces begin in the vector that the walk filled, if there are several.
    start: u32,
    /// How many there are then; otherwise zero.
    count: u32,
    /// What it took: descriptors that were looked at, or pieces of memory, whichever are more.
    pub(crate) cost: u32,
    /// Why the buffers can't be used.
    pub(crate) bad: Option<DropReason>,
}

const _: () = assert!(size_of::<Chain>() == 32);

// SAFETY: as for `Segment`: an address that owns nothing.
unsafe impl Send for Chain {}

impl Chain {
    pub(crate) const NONE: Self =
        Self { ptr: std::ptr::null_mut(), len: 0, id: 0, slots: 0, start: 0, count: 0, cost: 0, bad: None };

    #[inline(always)]
    pub(crate) fn of_one(id: u16, ptr: *mut u8, len: u32) -> Self {
        Self { ptr, len, id, slots: 1, start: 0, count: 0, cost: 1, bad: None }
    }

    /// The piece in which all its bytes are, unless there are several.
    #[inline(always)]
    pub(crate) fn single(&self) -> Option<Segment> {
        (self.count == 0).then_some(Segment { ptr: self.ptr, len: self.len as usize })
    }

    /// The same chain, whose bytes are in one other piece from now on.
    pub(crate) fn move_to(&mut self, piece: Segment) {
        // No truncation: at most as many bytes as before.
        (self.ptr, self.len, self.start, self.count) = (piece.ptr, piece.len as u32, 0, 0);
    }

    /// The same chain, whose bytes are in the last `count` of `all` from now on.
    pub(crate) fn spread_over(&mut self, all: &[Segment], count: usize) {
        // No truncation: bounded as the pieces of a batch are.
        (self.ptr, self.start, self.count) = (std::ptr::null_mut(), (all.len() - count) as u32, count as u32);
    }

    /// Where its only piece is; a null pointer if there are several.
    #[inline(always)]
    pub(crate) fn ptr(&self) -> *const u8 {
        self.ptr
    }

    /// Its pieces if there are several; `all` is the vector that was given to [`Virtqueue::take`].
    pub(crate) fn pieces<'a>(&self, all: &'a [Segment]) -> &'a [Segment] {
        &all[self.start as usize..][..self.count as usize]
    }
}

/// A descriptor's fields, read once. The flags are those of both layouts, the link is the next index or the buffer id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    /// Split: the next descriptor. Packed: the buffer id is in the place before the flags, and kept here.
    pub(crate) link: u16,
}

/// What a ring of either layout can do. Chains are completed in the order in which they were taken.
pub(crate) trait Virtqueue {
    fn base(&self) -> &Base;
    fn base_mut(&mut self) -> &mut Base;

    /// Asks for the descriptors of the chains that a batch is about to take, where that has been seen to help: in a packed ring the
    /// guest has just written them, and one line after the other would have to be waited for.
    fn prefetch(&self) {}

    /// Takes the next chain into `chain`; false when there is none. Pieces of a chain that has several are appended to `pieces`.
    ///
    /// `limit` is in bytes. A chain from the guest may not hold more; of a chain to the guest, buffers are taken until there is
    /// room for that many. A chain that can't be used is taken as well: [`Chain::bad`] then says why.
    fn take(&mut self, limit: u32, pieces: &mut Vec<Segment>, chain: &mut Chain) -> Result<bool, RingFault>;

    /// Gives back the chains that were taken last, `slots` entries in all, as if they had not been taken.
    fn untake(&mut self, slots: u16);

    /// Returns a chain of which `len` bytes were written. Seen by the guest after [`Self::publish`].
    fn complete(&mut self, chain: &Chain, len: u32);

    /// Returns chains of each of which [`Chain::len`] bytes were written.
    fn complete_written(&mut self, chains: &[Chain]);

    /// Returns chains to which nothing was written: with one entry for all, if the driver agreed to `IN_ORDER`.
    fn complete_unwritten<'a>(&mut self, chains: impl DoubleEndedIterator<Item = &'a Chain> + ExactSizeIterator)
    where
        Self: Sized;

    /// Lets the guest see what was completed, and notifies it if it asked for that. True if a notification was sent.
    fn publish(&mut self) -> Result<bool, RingFault>;

    /// Asks the guest to kick when it offers more. True if it has offered more already, so that nobody may sleep.
    fn enable_kicks(&mut self) -> Result<bool, RingFault>;

    /// Tells the guest that kicks are not needed: somebody is looking.
    fn disable_kicks(&mut self);

    /// Where the ring goes on, as `GET_VRING_BASE` reports it.
    fn position(&self) -> u32;
}

/// A ring that was set up on a guest's memory, of either layout.
#[derive(Debug)]
pub(crate) enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

impl Ring {
    /// Sets a ring up. `position` is where a packed one goes on; a split one goes on at the used index in guest memory.
    pub(crate) fn new(layout: RingLayout, position: u32, base: Base) -> Result<Self, SetupError> {
        Ok(if base.features.packed {
            Self::Packed(PackedRing::new(layout, position, base)?)
        } else {
            Self::Split(SplitRing::new(layout, base)?)
        })
    }

    /// Looks whether the position that it was set up with can be right: whoever gave it may have forgotten.
    pub(crate) fn go_on_where_it_stands(&mut self) {
        match self {
            // The index in guest memory tells.
            Self::Split(_) => {}
            Self::Packed(ring) => ring.go_on_where_it_stands(),
        }
    }

    /// For everything that is not done for each frame.
    pub(crate) fn queue(&mut self) -> &mut dyn Virtqueue {
        match self {
            Self::Split(ring) => ring,
            Self::Packed(ring) => ring,
        }
    }
}

/// What both layouts have in common: whose ring it is, and how its buffers are found.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) features: RingFeatures,
    pub(crate) direction: Direction,
    /// The flags of a descriptor that is a whole chain.
    plain_flags: u16,
    /// All ones where a buffer may be larger than what is asked for.
    no_limit: u32,
    /// The region in which the last buffer was found.
    near: Window,
    /// The guest may wait for an interrupt that an earlier back-end owed it.
    owes_notification: bool,
    call: Option<Arc<OwnedFd>>,
    pub(crate) memory: Arc<GuestMemory>,
}

impl Base {
    pub(crate) fn new(
        memory: &Arc<GuestMemory>,
        features: RingFeatures,
        direction: Direction,
        call: Option<Arc<OwnedFd>>,
    ) -> Self {
        let (plain_flags, no_limit) = if direction == Direction::ToGuest { (WRITE, u32::MAX) } else { (0, 0) };
        let (near, memory) = (Window::default(), Arc::clone(memory));
        Self { features, direction, plain_flags, no_limit, near, owes_notification: true, call, memory }
    }

    /// The place of an area of the ring.
    pub(crate) fn find(&self, area: &'static str, address: u64, len: u64, align: u64) -> Result<*mut u8, SetupError> {
        if !address.is_multiple_of(align) {
            return Err(SetupError::Alignment { area, address, align });
        }
        let ptr = self.memory.at_user(address, len).ok_or(SetupError::NotMapped { area, address, len })?;
        // The two address spaces may be shifted against each other by less than the alignment.
        if (ptr as u64).is_multiple_of(align) { Ok(ptr) } else { Err(SetupError::Alignment { area, address, align }) }
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

    /// Notifies a guest that may have missed something before this ring was set up. Once; true if it was.
    pub(crate) fn notify_if_owed(&mut self) -> Result<bool, RingFault> {
        if std::mem::take(&mut self.owes_notification) { self.notify() } else { Ok(false) }
    }

    pub(crate) fn notify(&self) -> Result<bool, RingFault> {
        let Some(call) = &self.call else { return Ok(false) };
        match rustix::io::write(call, &1_u64.to_ne_bytes()) {
            // A full counter: the guest has more interrupts pending than it can count.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(true),
            Err(_) => Err(RingFault::CallBlocked),
        }
    }

    /// The buffer of a descriptor that is a chain of its own, lies where the last one did, and, if it comes
    /// from the guest, holds at most `limit` bytes.
    #[inline(always)]
    pub(crate) fn single(&self, descriptor: &Descriptor, limit: u32) -> Option<*mut u8> {
        let is_plain = descriptor.flags & (NEXT | WRITE | INDIRECT) == self.plain_flags;
        // Zero wraps around, and is as wrong as too much.
        if !is_plain || descriptor.len.wrapping_sub(1) >= limit | self.no_limit {
            return None;
        }
        self.near.piece(descriptor.address, descriptor.len)
    }

    /// Starts to follow a chain.
    pub(crate) fn walk<'a>(&self, limit: u32, pieces: &'a mut Vec<Segment>) -> Walk<'a> {
        let start = pieces.len();
        Walk { limit: limit as usize, direction: self.direction, len: 0, descriptors: 0, start, pieces }
    }

    /// The chain that was followed; what stands in `walked` is why it can't be used.
    pub(crate) fn walked(&mut self, id: u16, slots: u16, walk: Walk<'_>, walked: Result<(), DropReason>) -> Chain {
        let Walk { len, descriptors, start, pieces, .. } = walk;
        let count = pieces.len() - start;
        // No truncation: a little more than `MAX_BUFFERS`, by as many as there are regions.
        let chain = Chain { id, slots, cost: descriptors.max(count).max(slots.into()) as u32, ..Chain::NONE };
        if let Err(reason) = walked {
            pieces.truncate(start);
            return Chain { bad: Some(reason), ..chain };
        }
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        if let [piece] = pieces[start..] {
            pieces.truncate(start);
            self.near = self.memory.window_around(piece.ptr);
            return Chain { len, ptr: piece.ptr, ..chain };
        }
        Chain { len, start: start as u32, count: count as u32, ..chain }
    }

    /// Whether a table of descriptors is one, and how many it has (sections 2.7.5.3 and 2.8.7).
    pub(crate) fn indirect_len(&self, table: &Descriptor) -> Result<u32, RingFault> {
        if !self.features.indirect {
            return Err(RingFault::IndirectNotAgreed);
        }
        if table.flags & NEXT != 0 {
            return Err(RingFault::IndirectNested);
        }
        let count = table.len / DESCRIPTOR_LEN;
        if count == 0 || count > MAX_RING_SIZE.into() || !table.len.is_multiple_of(DESCRIPTOR_LEN) {
            return Err(RingFault::IndirectTable { address: table.address, len: table.len });
        }
        Ok(count)
    }

    /// Reads an entry of an indirect table, by itself because the table may span adjoining regions.
    pub(crate) fn indirect_entry(&self, table: &Descriptor, index: u32) -> Result<[u64; 2], RingFault> {
        let address = table.address.checked_add(u64::from(index) * u64::from(DESCRIPTOR_LEN));
        let entry = address.and_then(|address| self.memory.at_guest(address, DESCRIPTOR_LEN.into()));
        let entry: *const [[u8; 8]; 2] =
            entry.ok_or(RingFault::IndirectTable { address: table.address, len: table.len })?.cast_const().cast();
        // A table need not be aligned.
        // SAFETY: sixteen mapped bytes; bytes are always aligned.
        Ok(unsafe { entry.read_volatile() }.map(u64::from_le_bytes))
    }
}

/// A chain that is being followed.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    /// See [`Virtqueue::take`].
    limit: usize,
    direction: Direction,
    /// Bytes so far.
    len: usize,
    descriptors: usize,
    /// Where its pieces begin.
    start: usize,
    pieces: &'a mut Vec<Segment>,
}

/// Whether more of a chain is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    More,
    /// The rest of the chain does not matter.
    Enough,
}

impl Walk<'_> {
    /// Appends one buffer.
    pub(crate) fn append(&mut self, memory: &GuestMemory, descriptor: &Descriptor) -> Result<Step, DropReason> {
        self.descriptors += 1;
        let writable = descriptor.flags & WRITE != 0;
        if descriptor.len == 0 || writable != (self.direction == Direction::ToGuest) {
            return Err(DropReason::BadDescriptor);
        }
        self.len += descriptor.len as usize;
        let too_long = self.len > self.limit && self.direction == Direction::FromGuest;
        if too_long || self.descriptors > MAX_BUFFERS {
            return Err(DropReason::TooLong);
        }
        if !memory.pieces_at_guest(descriptor.address, descriptor.len, self.pieces) {
            return Err(DropReason::BadAddress);
        }
        // One buffer may lie in very many regions.
        if self.pieces.len() - self.start > MAX_BUFFERS {
            return Err(DropReason::TooLong);
        }
        let enough = self.len >= self.limit && self.direction == Direction::ToGuest;
        Ok(if enough { Step::Enough } else { Step::More })
    }
}

#[cfg(all(test, not(loom)))]
#[path = "ring_tests.rs"]
mod tests;

#[cfg(all(test, loom))]
#[path = "ring_models.rs"]
mod models;
