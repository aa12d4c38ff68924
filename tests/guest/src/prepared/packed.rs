//! Chains that go round a packed ring.
//!
//! A descriptor's second half (length, buffer ID and flags) is 8 aligned bytes. The back-end overwrites it when it hands a
//! chain back, and the flags differ from lap to lap, so it is stored anew on every lap, from what it was at first and the
//! lap's wrap counter. The address stays: no back-end has a reason to write it (2.8.10 reserves it in used descriptors).

use std::sync::atomic::Ordering;

use crate::ring::{Position, Tail};
use crate::{Buffer, Descriptor, PackedDescriptor, Ring};

#[derive(Debug)]
pub(super) struct PackedLaps {
    chains: u16,
    /// Descriptors of a chain.
    stride: u16,
    /// The second half of each descriptor as it is on the first lap.
    tails: Vec<Tail>,
    next_avail: Position,
    next_used: Position,
    /// Chains that the back-end holds.
    out: u16,
}

impl PackedLaps {
    /// # Panics
    /// Unless the chains are of one length and fill the ring.
    pub(super) fn new(ring: &Ring, chains: &[Vec<Buffer>], indirect: bool) -> Self {
        let stride = if indirect { 1 } else { chains[0].len() };
        assert_eq!(chains.len() * stride, usize::from(ring.size()), "the chains fill the ring");
        let mut tails = Vec::with_capacity(ring.size().into());
        for (id, chain) in (0..).zip(chains) {
            assert!(indirect || chain.len() == stride, "chains are of one length");
            let table = if indirect { vec![ring.write_packed_indirect(id, chain)] } else { Vec::new() };
            let buffers = if indirect { &table } else { chain };
            for (at, buffer) in buffers.iter().enumerate() {
                let next = if at + 1 < stride { Descriptor::NEXT } else { 0 };
                let kind = if indirect { Descriptor::INDIRECT } else { buffer.flags() };
                let descriptor = PackedDescriptor { address: buffer.address.0, len: buffer.len, id, flags: next | kind };
                // It is not available yet: both flags are zero and the counter of the first lap is one.
                ring.write_packed_descriptor(tails.len() as u16, descriptor);
                let flags = descriptor.flags | PackedDescriptor::available_flags(true);
                tails.push(Tail::of(PackedDescriptor { flags, ..descriptor }));
            }
        }
        let (next_avail, next_used) = (Position::START, Position::START);
        Self { chains: chains.len() as u16, stride: stride as u16, tails, next_avail, next_used, out: 0 }
    }

    pub(super) fn idle(&self) -> u16 {
        self.chains - self.out
    }

    pub(super) fn next(&self) -> u16 {
        self.next_avail.at / self.stride
    }

    /// Writes every descriptor but the first, then the first, which shows them all.
    pub(super) fn offer(&mut self, ring: &Ring, count: u16) -> bool {
        let first = self.next_avail;
        let descriptors = count * self.stride;
        let end = first.advanced(descriptors, ring.size());
        let tails = ring.tails();
        let store = |at: u16, wrap: bool, order| tails.store(at, self.tails[usize::from(at)].on_lap(wrap), order);
        let until = if end.wrap == first.wrap { end.at } else { ring.size() };
        for at in first.at + 1..until {
            store(at, first.wrap, Ordering::Relaxed);
        }
        if end.wrap != first.wrap {
            for at in 0..end.at {
                store(at, end.wrap, Ordering::Relaxed);
            }
        }
        store(first.at, first.wrap, Ordering::Release);
        self.next_avail = end;
        self.out += count;
        ring.wants_kick(end, descriptors)
    }

    /// Walks the used descriptors. With `IN_ORDER`, one stands for all chains up to that which it names (2.8.7).
    pub(super) fn finish(&mut self, ring: &Ring, mut visit: impl FnMut(u16, Option<u32>)) -> Result<u16, String> {
        let tails = ring.tails();
        let in_order = ring.features().in_order;
        let mut finished = 0;
        while self.out > 0 {
            let tail = tails.load(self.next_used.at, Ordering::Acquire);
            if !tail.is_used(self.next_used.wrap) {
                break;
            }
            let chain = self.next_used.at / self.stride;
            let skipped = if tail.id() >= chain { tail.id() - chain } else { (tail.id() + self.chains).wrapping_sub(chain) };
            if tail.id() >= self.chains || skipped >= self.out || skipped > 0 && !in_order {
                return Err(format!("chain {} came back out of order, with {chain} due and {} out", tail.id(), self.out));
            }
            for _ in 0..skipped {
                visit(self.next_used.at / self.stride, None);
                self.next_used = self.next_used.advanced(self.stride, ring.size());
            }
            visit(tail.id(), Some(tail.written()));
            self.next_used = self.next_used.advanced(self.stride, ring.size());
            self.out -= skipped + 1;
            finished += skipped + 1;
        }
        Ok(finished)
    }
}
