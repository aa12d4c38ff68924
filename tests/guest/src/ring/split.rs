//! A split ring (virtio 1.2, 2.7): a descriptor table and an available ring, written here, and a used ring, written by the
//! back-end.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use super::chain::{Chain, InFlight};
use super::{DESCRIPTOR_LEN, Driver, RingAreas, needs_event};
use crate::{Buffer, Descriptor, GuestAddr, Used};

/// The book-keeping of a split ring's driver.
#[derive(Clone, Debug)]
pub(super) struct SplitDriver {
    in_order: bool,
    /// Free descriptors, the next to take first. With `IN_ORDER` they are taken round the table (2.7.5.2).
    free: VecDeque<u16>,
    in_flight: InFlight,
    added: u16,
    published: u16,
    taken: u16,
}

impl SplitDriver {
    pub(super) fn new(size: u16, in_order: bool) -> Self {
        let (free, in_flight) = ((0..size).collect(), InFlight::new(in_order));
        Self { in_order, free, in_flight, added: 0, published: 0, taken: 0 }
    }
}

impl Driver for SplitDriver {
    fn add(&mut self, areas: &RingAreas, buffers: &[Buffer], indirect: bool) -> u16 {
        let needed = if indirect { 1 } else { buffers.len() };
        let entries: Vec<u16> = self.free.drain(..needed).collect();
        let head = entries[0];
        if indirect {
            areas.write_indirect(head, buffers);
        } else {
            for (at, descriptor) in chained(buffers, &entries) {
                areas.write_descriptor(at, descriptor);
            }
        }
        self.in_flight.insert(Chain::new(head, entries, buffers));
        areas.write_avail_entry(self.added, head);
        self.added = self.added.wrapping_add(1);
        head
    }

    fn next_head(&self) -> Option<u16> {
        self.free.front().copied()
    }

    fn free(&self) -> usize {
        self.free.len()
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn publish(&mut self, areas: &RingAreas, event_idx: bool) -> bool {
        let old = std::mem::replace(&mut self.published, self.added);
        areas.publish_avail_index(self.added, old, event_idx)
    }

    fn has_used(&self, areas: &RingAreas) -> bool {
        self.in_flight.has_retired() || areas.used_index() != self.taken
    }

    fn take_used(&mut self, areas: &RingAreas) -> Result<Option<Used>, String> {
        if !self.in_flight.has_retired() {
            let ready = usize::from(areas.used_index().wrapping_sub(self.taken));
            if ready == 0 {
                return Ok(None);
            }
            if ready > self.in_flight.len() {
                return Err(format!("{ready} chains came back and {} were out", self.in_flight.len()));
            }
            let (id, len) = areas.used_entry(self.taken);
            let retired = self.in_flight.retire(id, len)?.len();
            if retired > ready {
                return Err(format!("the used index went on by {ready} and the entry retires {retired} chains"));
            }
            self.taken = self.taken.wrapping_add(u16::try_from(retired).expect("no more than the ring has"));
        }
        let (chain, used) = self.in_flight.take().expect("a chain was retired");
        if self.in_order {
            self.free.extend(chain.entries);
        } else {
            chain.entries.into_iter().rev().for_each(|entry| self.free.push_front(entry));
        }
        Ok(Some(used))
    }

    fn arm_interrupt(&self, areas: &RingAreas, event_idx: bool) {
        if event_idx {
            areas.write_used_event(self.taken);
        } else {
            areas.write_avail_flags(0);
        }
    }

    fn disarm_interrupt(&self, areas: &RingAreas, event_idx: bool) {
        if event_idx {
            areas.write_used_event(self.taken.wrapping_sub(1));
        } else {
            areas.write_avail_flags(VRING_AVAIL_F_NO_INTERRUPT as u16);
        }
    }

    /// The used index: a back-end that completes in order has taken nothing beyond it.
    fn resume_base(&self, areas: &RingAreas) -> u32 {
        areas.used_index().into()
    }
}

/// The areas read and written as those of a split ring.
impl RingAreas {
    /// Where descriptor `at` of the table lies.
    #[must_use]
    pub fn descriptor_address(&self, at: u16) -> GuestAddr {
        self.descriptors + u64::from(at) * DESCRIPTOR_LEN
    }

    /// Where the available ring lies.
    #[must_use]
    pub fn avail_address(&self) -> GuestAddr {
        self.avail
    }

    /// Where the used ring lies.
    #[must_use]
    pub fn used_address(&self) -> GuestAddr {
        self.used
    }

    /// Writes descriptor `at` of the table.
    pub fn write_descriptor(&self, at: u16, descriptor: Descriptor) {
        self.memory.write(self.descriptor_address(at), &descriptor.bytes());
    }

    /// Writes the head into the available ring, at an index that counts on past the ring's size.
    pub fn write_avail_entry(&self, index: u16, head: u16) {
        let at = u64::from(index % self.size());
        self.memory.store_u16(self.avail + 4 + at * 2, head, Ordering::Relaxed);
    }

    /// Writes the available index.
    pub fn write_avail_index(&self, index: u16) {
        self.memory.store_u16(self.avail + 2, index, Ordering::Release);
    }

    /// Writes the flags of the available ring.
    pub fn write_avail_flags(&self, flags: u16) {
        self.memory.store_u16(self.avail, flags, Ordering::Relaxed);
    }

    /// Writes `used_event`: the used index whose passing asks for an interrupt.
    pub fn write_used_event(&self, event: u16) {
        self.memory.store_u16(self.avail + 4 + u64::from(self.size()) * 2, event, Ordering::Relaxed);
    }

    /// The available index as the back-end sees it.
    #[must_use]
    pub fn avail_index(&self) -> u16 {
        self.memory.load_u16(self.avail + 2, Ordering::Relaxed)
    }

    /// The used index as the back-end wrote it.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.memory.load_u16(self.used + 2, Ordering::Acquire)
    }

    /// The flags of the used ring as the back-end wrote them.
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        self.memory.load_u16(self.used, Ordering::Relaxed)
    }

    /// `avail_event` as the back-end wrote it: the available index whose passing asks for a kick.
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        self.memory.load_u16(self.used + 4 + u64::from(self.size()) * 8, Ordering::Relaxed)
    }

    /// An entry of the used ring as the back-end wrote it: chain and length.
    #[must_use]
    pub fn used_entry(&self, index: u16) -> (u32, u32) {
        let mut entry = [0; 8];
        self.memory.read(self.used + 4 + u64::from(index % self.size()) * 8, &mut entry);
        let field = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        (field(0), field(4))
    }

    /// Writes the indirect table of a chain, and the descriptor that leads to it.
    pub(crate) fn write_indirect(&self, head: u16, buffers: &[Buffer]) {
        let table = self.indirect_table(head);
        let places: Vec<u16> = (0..self.size()).collect();
        for (at, descriptor) in chained(buffers, &places) {
            self.memory.write(table + u64::from(at) * DESCRIPTOR_LEN, &descriptor.bytes());
        }
        let len = u32::try_from(buffers.len() * 16).expect("a table is small");
        self.write_descriptor(head, Descriptor { address: table.0, len, flags: Descriptor::INDIRECT, next: 0 });
    }

    /// Moves the available index from `old` to `new`. True if the back-end wants to be kicked for it.
    pub(crate) fn publish_avail_index(&self, new: u16, old: u16, event_idx: bool) -> bool {
        self.write_avail_index(new);
        // The back-end's wish must be read after the index is visible, else both sides can miss each other (2.7.13.4.1).
        fence(Ordering::SeqCst);
        if event_idx {
            needs_event(self.avail_event(), new, old)
        } else {
            new != old && u32::from(self.used_flags()) & VRING_USED_F_NO_NOTIFY == 0
        }
    }
}

/// The buffers as table entries at these places, each pointing to the next.
fn chained<'a>(buffers: &'a [Buffer], places: &'a [u16]) -> impl Iterator<Item = (u16, Descriptor)> + 'a {
    buffers.iter().zip(places).enumerate().map(move |(nth, (buffer, &place))| {
        let last = nth + 1 == buffers.len();
        let (next_flag, next) = if last { (0, 0) } else { (Descriptor::NEXT, places[nth + 1]) };
        (place, Descriptor { address: buffer.address.0, len: buffer.len, flags: buffer.flags() | next_flag, next })
    })
}
