//! What both kinds of rings are made of: buffers, chains of them, and the book of chains that the back-end holds.

use std::collections::VecDeque;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::GuestAddr;

/// One entry of a split ring's descriptor table, or of the indirect table of one (virtio 1.2, 2.7.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Address of the buffer for the guest.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// [`Descriptor::NEXT`], [`Descriptor::WRITE`], [`Descriptor::INDIRECT`].
    pub flags: u16,
    /// The next entry, if `NEXT` is set.
    pub next: u16,
}

impl Descriptor {
    /// The chain goes on.
    pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    /// The back-end writes this buffer.
    pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

    /// The entry as it lies in memory.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A piece of guest memory that a chain hands to the back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where it starts.
    pub address: GuestAddr,
    /// Its length in bytes.
    pub len: u32,
    /// The back-end may write it; otherwise it may read it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer for the back-end to read.
    #[must_use]
    pub fn readable(address: GuestAddr, len: u32) -> Self {
        Self { address, len, writable: false }
    }

    /// A buffer for the back-end to write.
    #[must_use]
    pub fn writable(address: GuestAddr, len: u32) -> Self {
        Self { address, len, writable: true }
    }

    pub(crate) fn flags(&self) -> u16 {
        if self.writable { Descriptor::WRITE } else { 0 }
    }
}

/// A chain that the back-end has finished with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor in a split ring, its buffer ID in a packed one.
    pub head: u16,
    /// Bytes that the back-end says it has written. For a chain that it skipped, as `IN_ORDER` allows, all that the chain
    /// has room for.
    pub len: u32,
}

/// A chain that the back-end holds.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// Its first descriptor in a split ring, its buffer ID in a packed one.
    pub(super) head: u16,
    /// The ring's own descriptors that it takes.
    pub(super) entries: Vec<u16>,
    /// Bytes that may be written into it.
    pub(super) room: u32,
}

impl Chain {
    pub(super) fn new(head: u16, entries: Vec<u16>, buffers: &[Buffer]) -> Self {
        let room = buffers.iter().filter(|buffer| buffer.writable).fold(0_u32, |sum, buffer| sum.saturating_add(buffer.len));
        Self { head, entries, room }
    }
}

/// The chains that the back-end holds, in the order in which it was given them.
///
/// With `IN_ORDER`, one used entry retires its own chain and every one before it (2.7.9, 2.8.7).
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight {
    in_order: bool,
    chains: VecDeque<Chain>,
    /// How many, from the front, were retired and not taken back yet.
    retired: usize,
    /// What the entry said was written into the last of these.
    retired_len: u32,
}

impl InFlight {
    pub(super) fn new(in_order: bool) -> Self {
        Self { in_order, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.chains.len()
    }

    pub(super) fn insert(&mut self, chain: Chain) {
        self.chains.push_back(chain);
    }

    pub(super) fn has_retired(&self) -> bool {
        self.retired > 0
    }

    /// Retires what a used entry names, when everything retired before was taken. Returns these chains, in order.
    pub(super) fn retire(&mut self, id: u32, len: u32) -> Result<impl ExactSizeIterator<Item = &Chain>, String> {
        let head = u16::try_from(id).map_err(|_| format!("chain {id:#x} came back"))?;
        let found = self.chains.iter().position(|chain| chain.head == head);
        let mut at = found.ok_or_else(|| format!("chain {head} came back and was not out"))?;
        if !self.in_order {
            let chain = self.chains.remove(at).expect("it was found there");
            self.chains.push_front(chain);
            at = 0;
        }
        self.retired = at + 1;
        self.retired_len = len;
        Ok(self.chains.range(..=at))
    }

    /// Takes back the next chain that was retired.
    pub(super) fn take(&mut self) -> Option<(Chain, Used)> {
        self.retired = self.retired.checked_sub(1)?;
        let chain = self.chains.pop_front().expect("a chain that was retired");
        let len = if self.retired == 0 { self.retired_len } else { chain.room };
        let used = Used { head: chain.head, len };
        Some((chain, used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(in_order: bool) -> InFlight {
        let mut in_flight = InFlight::new(in_order);
        for head in 0..3 {
            in_flight.insert(Chain::new(head, vec![head], &[Buffer::writable(GuestAddr(0), 100)]));
        }
        in_flight
    }

    fn take_all(in_flight: &mut InFlight) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| in_flight.take()).map(|(_, used)| (used.head, used.len)).collect()
    }

    #[test]
    fn one_entry_retires_the_chains_before_it_in_order() {
        let mut in_flight = three(true);
        assert_eq!(in_flight.retire(1, 7).unwrap().len(), 2);
        assert_eq!(take_all(&mut in_flight), [(0, 100), (1, 7)]);
        assert_eq!(in_flight.len(), 1);
        assert!(in_flight.retire(1, 7).is_err());
    }

    #[test]
    fn without_an_order_each_chain_comes_back_alone() {
        let mut in_flight = three(false);
        for head in [1, 0, 2] {
            assert_eq!(in_flight.retire(head, 7).unwrap().len(), 1);
            assert_eq!(take_all(&mut in_flight), [(head as u16, 7)]);
        }
    }
}
