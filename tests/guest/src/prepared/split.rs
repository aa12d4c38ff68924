//! Chains that go round a split ring: the descriptor table and the available ring are written once, and the available index is
//! all that moves.

use crate::{Buffer, Descriptor, Ring};

#[derive(Debug)]
pub(super) struct SplitLaps {
    /// Chains in the ring, and descriptors from the head of one to the head of the next. Both are powers of two.
    chains: u16,
    stride: u16,
    /// Indexes as the ring has them, which count on past its end.
    published: u16,
    completed: u16,
}

impl SplitLaps {
    /// # Panics
    /// Unless the chains are of one length and fill the ring.
    pub(super) fn new(ring: &Ring, chains: &[Vec<Buffer>], indirect: bool) -> Self {
        let stride = if indirect { 1 } else { chains[0].len() };
        assert_eq!(chains.len() * stride, usize::from(ring.size()), "the chains fill the ring");
        let laps = Self { chains: chains.len() as u16, stride: stride as u16, published: 0, completed: 0 };
        for (number, chain) in (0..).zip(chains) {
            assert!(indirect || chain.len() == stride, "chains are of one length");
            let head = number * laps.stride;
            if indirect {
                ring.write_indirect(head, chain);
            } else {
                for (at, buffer) in (head..).zip(chain) {
                    let next = if usize::from(at - head) + 1 < stride { Descriptor::NEXT } else { 0 };
                    let (address, flags) = (buffer.address.0, buffer.flags() | next);
                    ring.write_descriptor(
                        at,
                        Descriptor { address, len: buffer.len, flags, next: if next == 0 { 0 } else { at + 1 } },
                    );
                }
            }
        }
        for index in 0..ring.size() {
            ring.write_avail_entry(index, laps.head(index));
        }
        laps
    }

    fn head(&self, index: u16) -> u16 {
        index % self.chains * self.stride
    }

    #[inline]
    pub(super) fn idle(&self) -> u16 {
        self.chains - self.published.wrapping_sub(self.completed)
    }

    pub(super) fn next(&self) -> u16 {
        self.published % self.chains
    }

    pub(super) fn offer(&mut self, ring: &Ring, count: u16) -> bool {
        let old = self.published;
        self.published = old.wrapping_add(count);
        ring.publish_avail_index(self.published, old, ring.features().event_idx)
    }

    /// Looks at every entry of the used ring. With `IN_ORDER`, one stands for all chains up to that which it names (2.7.9).
    pub(super) fn finish(&mut self, ring: &Ring, mut visit: impl FnMut(u16, Option<u32>)) -> Result<u16, String> {
        let ready = self.ready(ring)?;
        let end = self.completed.wrapping_add(ready);
        while self.completed != end {
            let (id, len) = ring.used_entry(self.completed);
            let skipped = self.skipped(id, end, ring.features().in_order)?;
            for _ in 0..skipped {
                visit(self.completed % self.chains, None);
                self.completed = self.completed.wrapping_add(1);
            }
            visit(self.completed % self.chains, Some(len));
            self.completed = self.completed.wrapping_add(1);
        }
        Ok(ready)
    }

    /// Looks at the last entry alone, which an entry for a whole batch would leave as it was: so not with `IN_ORDER`.
    #[inline]
    pub(super) fn finish_unseen(&mut self, ring: &Ring) -> Result<u16, String> {
        if ring.features().in_order {
            return self.finish(ring, |_, _| ());
        }
        let ready = self.ready(ring)?;
        if ready > 0 {
            let last = self.completed.wrapping_add(ready).wrapping_sub(1);
            let (id, _) = ring.used_entry(last);
            if id != u32::from(self.head(last)) {
                return Err(format!("chain {id} came back out of order"));
            }
            self.completed = self.completed.wrapping_add(ready);
        }
        Ok(ready)
    }

    /// Chains that came back since the last look.
    #[inline]
    fn ready(&self, ring: &Ring) -> Result<u16, String> {
        let used = ring.used_index();
        let ready = used.wrapping_sub(self.completed);
        if ready > self.published.wrapping_sub(self.completed) {
            return Err(format!("the used index went from {} to {used} with {} published", self.completed, self.published));
        }
        Ok(ready)
    }

    /// How many chains an entry at the next place passes over.
    fn skipped(&self, id: u32, end: u16, in_order: bool) -> Result<u16, String> {
        let left = end.wrapping_sub(self.completed);
        let most = if in_order { left } else { 1 };
        let found = (0..most).find(|&skipped| u32::from(self.head(self.completed.wrapping_add(skipped))) == id);
        found.ok_or_else(|| format!("chain {id} came back out of order"))
    }
}
