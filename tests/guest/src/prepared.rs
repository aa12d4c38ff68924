//! Rings that cost a load generator next to nothing: everything is written once, then only indexes move.
//!
//! Descriptor and available ring keep their contents for ever, so these need a back-end that completes in order.
//! That is checked on every batch by the last entry of it. The book-keeping of [`Ring`] is bypassed: a ring that was
//! prepared belongs to its owner here until the guest is reset.

use crate::{Buffer, Descriptor, Guest, GuestAddr, GuestError};

/// A ring full of frames, to be sent round and round.
#[derive(Debug)]
pub struct PreparedSend {
    published: u16,
    completed: u16,
}

impl PreparedSend {
    /// Writes `frame` into every slot of the sending ring. Nothing is sent yet; the ring must not have been used.
    pub fn new(guest: &mut Guest, frame: &[u8]) -> Self {
        let mut bytes = vec![0; guest.header_len()];
        bytes.extend_from_slice(frame);
        for at in 0..guest.from_guest().size() {
            let slot = guest.slot(1, at);
            guest.memory().write(slot, &bytes);
            prepare(guest, 1, at, Buffer::readable(slot, u32::try_from(bytes.len()).expect("a frame is small")));
        }
        Self { published: 0, completed: 0 }
    }

    /// Where the frame of a slot lies, behind its header: for senders that change a byte of it.
    #[must_use]
    pub fn frame_address(guest: &Guest, at: u16) -> GuestAddr {
        guest.slot(1, at) + guest.header_len() as u64
    }

    /// Sends as many frames as are back, at most `count`; the number of them is returned.
    ///
    /// # Errors
    /// When the back-end breaks the ring, or can't be kicked.
    pub fn send(&mut self, guest: &mut Guest, count: u16) -> Result<u16, GuestError> {
        self.completed = advance(guest, 1, self.completed, self.published)?;
        let out = self.published.wrapping_sub(self.completed);
        let count = count.min(guest.from_guest().size() - out);
        if count > 0 {
            let old = self.published;
            self.published = old.wrapping_add(count);
            publish(guest, 1, old, self.published)?;
        }
        Ok(count)
    }
}

/// A ring full of receive buffers that go straight back when a frame has come.
#[derive(Debug)]
pub struct PreparedReceive {
    completed: u16,
}

impl PreparedReceive {
    /// Posts a buffer of `len` bytes for every descriptor. The ring must not have been used.
    ///
    /// # Errors
    /// When the back-end can't be kicked.
    pub fn new(guest: &mut Guest, len: u32) -> Result<Self, GuestError> {
        let size = guest.to_guest().size();
        for at in 0..size {
            let slot = guest.slot(0, at);
            prepare(guest, 0, at, Buffer::writable(slot, len));
        }
        publish(guest, 0, 0, size)?;
        Ok(Self { completed: 0 })
    }

    /// Buffers that came back since the last call; they are posted again. Without mergeable buffers that is one a
    /// frame.
    ///
    /// # Errors
    /// When the back-end breaks the ring, or can't be kicked.
    pub fn receive(&mut self, guest: &mut Guest) -> Result<u16, GuestError> {
        let size = guest.to_guest().size();
        let before = self.completed;
        self.completed = advance(guest, 0, before, before.wrapping_add(size))?;
        let count = self.completed.wrapping_sub(before);
        if count > 0 {
            publish(guest, 0, before.wrapping_add(size), self.completed.wrapping_add(size))?;
        }
        Ok(count)
    }
}

fn prepare(guest: &mut Guest, ring: usize, at: u16, buffer: Buffer) {
    let ring = guest.ring(ring);
    let flags = if buffer.writable { Descriptor::WRITE } else { 0 };
    ring.write_descriptor(at, Descriptor { address: buffer.address.0, len: buffer.len, flags, next: 0 });
    ring.write_avail_entry(at, at);
}

fn publish(guest: &mut Guest, ring: usize, old: u16, new: u16) -> Result<(), GuestError> {
    let ring = guest.ring(ring);
    if ring.publish_avail_index(new, old, ring.features().event_idx) { ring.kick() } else { Ok(()) }
}

/// The used index, if the back-end has completed no more than was out, and in order.
fn advance(guest: &mut Guest, ring: usize, completed: u16, published: u16) -> Result<u16, GuestError> {
    let ring = guest.ring(ring);
    let used = ring.used_index();
    if used == completed {
        return Ok(used);
    }
    let bad = |what: String| GuestError::BadRing { ring: ring.index(), what };
    if used.wrapping_sub(completed) > published.wrapping_sub(completed) {
        return Err(bad(format!("the used index went from {completed} to {used} with {published} published")));
    }
    let last = used.wrapping_sub(1);
    let (id, _) = ring.used_entry(last);
    if id != u32::from(last % ring.size()) {
        return Err(bad(format!("chain {id} came back out of order")));
    }
    Ok(used)
}
