//! Frames in and frames out, over any queue pair of a guest.
//!
//! A chain's buffers lie in the slot that belongs to its head, so whoever adds one knows where to write before it is there.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::guest::{Guest, LIMIT, SLOT_LEN, slot};
use crate::session::any_readable;
use crate::{Buffer, GuestError, Header, Shape, Used, feature};

/// Stands behind every piece of a receive buffer and must still be there when the frame has come.
const MARK: [u8; 8] = *b"untouchd";
/// What a receive buffer has to take at least where frames can't span several: header and 65,535 bytes.
const WHOLE_FRAME: usize = 12 + 65_535;
/// Receive buffers where frames may span several.
const MERGEABLE_BUFFER: usize = 2048;

/// A frame that came, and how it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The queue pair it came over.
    pub pair: usize,
    /// The virtio-net header before it.
    pub header: Header,
    /// The frame.
    pub frame: Vec<u8>,
    /// The chains it came in, in order.
    pub chains: Vec<Used>,
}

/// A receive buffer that is out.
#[derive(Clone, Debug)]
pub(crate) struct Posted {
    buffers: Vec<Buffer>,
    indirect: bool,
    marked: bool,
}

/// The index of the ring that frames of a pair go to.
fn to_guest(pair: usize) -> usize {
    pair * 2
}

/// The index of the ring that frames of a pair come from.
fn from_guest(pair: usize) -> usize {
    pair * 2 + 1
}

impl Guest {
    /// Sends a frame over the first pair in one descriptor, header included.
    ///
    /// # Errors
    /// When the back-end doesn't take frames in time, or breaks the ring.
    pub fn send(&mut self, frame: &[u8]) -> Result<(), GuestError> {
        self.send_shaped(frame, &Shape::one())
    }

    /// Sends a frame over a pair in one descriptor, header included.
    ///
    /// # Errors
    /// When the back-end doesn't take frames in time, or breaks the ring.
    pub fn send_on(&mut self, pair: usize, frame: &[u8]) -> Result<(), GuestError> {
        self.send_whole_on(pair, &Header::default(), frame, &Shape::one())
    }

    /// Sends a frame over the first pair, cut into descriptors.
    ///
    /// # Errors
    /// When the back-end doesn't take frames in time, or breaks the ring.
    pub fn send_shaped(&mut self, frame: &[u8], shape: &Shape) -> Result<(), GuestError> {
        self.send_with_header(&Header::default(), frame, shape)
    }

    /// Sends a frame over the first pair behind a header of the caller's making.
    ///
    /// # Errors
    /// When the back-end doesn't take frames in time, or breaks the ring.
    pub fn send_with_header(&mut self, header: &Header, frame: &[u8], shape: &Shape) -> Result<(), GuestError> {
        self.send_whole_on(0, header, frame, shape)
    }

    /// Sends a frame over a pair behind a header of the caller's making, cut into descriptors.
    ///
    /// # Errors
    /// When the back-end doesn't take frames in time, or breaks the ring.
    pub fn send_whole_on(&mut self, pair: usize, header: &Header, frame: &[u8], shape: &Shape) -> Result<(), GuestError> {
        self.queue_whole_on(pair, header, frame, shape)?;
        self.rings[from_guest(pair)].publish_and_kick()
    }

    /// Puts a frame into the ring of the first pair without showing it to the back-end yet.
    ///
    /// # Errors
    /// When the back-end doesn't make room in time, or breaks the ring.
    pub fn queue(&mut self, frame: &[u8]) -> Result<(), GuestError> {
        self.queue_whole_on(0, &Header::default(), frame, &Shape::one())
    }

    /// Puts a frame into the ring of a pair without showing it to the back-end yet.
    ///
    /// # Errors
    /// When the back-end doesn't make room in time, or breaks the ring.
    pub fn queue_whole_on(&mut self, pair: usize, header: &Header, frame: &[u8], shape: &Shape) -> Result<(), GuestError> {
        let mut bytes = header.bytes(self.header_len());
        bytes.extend_from_slice(frame);
        let lengths = shape.cut(bytes.len());
        let needed = if shape.is_indirect() { 1 } else { lengths.len() };
        self.wait_for_room(from_guest(pair), needed)?;
        let ring = &mut self.rings[from_guest(pair)];
        // The head that `add` will take decides which slot is free.
        let slot = slot(self.slots, ring, ring.next_head());
        self.memory.write(slot, &bytes);
        let mut at = 0;
        let mut buffers = Vec::with_capacity(lengths.len());
        for len in lengths {
            buffers.push(Buffer::readable(slot + at, u32::try_from(len).expect("a frame is small")));
            at += len as u64;
        }
        ring.add(&buffers, shape.is_indirect())?;
        Ok(())
    }

    /// Sends a chain of the caller's making over the first pair.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn send_buffers(&mut self, buffers: &[Buffer], indirect: bool) -> Result<u16, GuestError> {
        let head = self.from_guest().add(buffers, indirect)?;
        self.from_guest().publish_and_kick()?;
        Ok(head)
    }

    /// Waits until the back-end has finished with everything sent over any pair, and gives what it said about each chain.
    ///
    /// # Errors
    /// When that takes too long, or the back-end breaks a ring.
    pub fn flush(&mut self) -> Result<Vec<Used>, GuestError> {
        let mut done = self.reclaim()?;
        let deadline = Instant::now() + LIMIT;
        for ring in (0..self.pairs()).map(from_guest) {
            while self.rings[ring].in_flight() > 0 {
                let left = deadline.saturating_duration_since(Instant::now());
                if self.wait_any(&[ring], left)?.is_none() {
                    return Err(GuestError::TimedOut { what: "the end of sending", limit: LIMIT });
                }
                done.extend(self.reclaim()?);
            }
        }
        Ok(done)
    }

    /// Takes back the chains of the sending rings that the back-end has finished with.
    ///
    /// # Errors
    /// When the back-end breaks a ring.
    pub fn reclaim(&mut self) -> Result<Vec<Used>, GuestError> {
        let mut done = Vec::new();
        for ring in (0..self.pairs()).map(from_guest) {
            while let Some(used) = self.rings[ring].take_used()? {
                done.push(used);
            }
        }
        Ok(done)
    }

    fn wait_for_room(&mut self, ring: usize, needed: usize) -> Result<(), GuestError> {
        let deadline = Instant::now() + LIMIT;
        self.reclaim()?;
        while self.rings[ring].free() < needed {
            self.rings[ring].publish_and_kick()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if self.wait_any(&[ring], left)?.is_none() {
                return Err(GuestError::TimedOut { what: "room in the sending ring", limit: LIMIT });
            }
            self.reclaim()?;
        }
        Ok(())
    }

    /// Waits for a frame on any pair, at most `limit`.
    ///
    /// # Errors
    /// When the frame, its header or the ring is not as it must be.
    pub fn receive(&mut self, limit: Duration) -> Result<Option<Vec<u8>>, GuestError> {
        Ok(self.receive_whole(limit)?.map(|received| received.frame))
    }

    /// Waits for a frame on any pair, at most `limit`, and tells how it came. Its buffers are posted again. Frames of
    /// one pair come in order; when several pairs have one, the pairs take turns.
    ///
    /// # Errors
    /// When the frame, its header or the ring is not as it must be.
    pub fn receive_whole(&mut self, limit: Duration) -> Result<Option<Received>, GuestError> {
        let pairs = self.pairs();
        let in_turn: Vec<usize> = (0..pairs).map(|nth| to_guest((self.next_pair + nth) % pairs)).collect();
        self.receive_over(&in_turn, limit)
    }

    /// Waits for a frame on one pair, at most `limit`, and tells how it came. Its buffers are posted again.
    ///
    /// # Errors
    /// When the frame, its header or the ring is not as it must be.
    pub fn receive_on(&mut self, pair: usize, limit: Duration) -> Result<Option<Received>, GuestError> {
        self.receive_over(&[to_guest(pair)], limit)
    }

    fn receive_over(&mut self, rings: &[usize], limit: Duration) -> Result<Option<Received>, GuestError> {
        let waiting = rings.iter().copied().find(|&ring| self.rings[ring].has_used());
        let found = if waiting.is_some() { waiting } else { self.wait_any(rings, limit)? };
        let Some(ring) = found else { return Ok(None) };
        let (first, mut bytes) = self.take_received(ring)?;
        let header_len = self.header_len();
        if bytes.len() < header_len {
            return Err(GuestError::BadFrame(format!("{} bytes came, the header alone has {header_len}", bytes.len())));
        }
        let header = Header::parse(&bytes[..header_len]);
        self.check_header(&header)?;
        let mut chains = vec![first];
        for missing in (1..header.num_buffers).rev() {
            if !self.rings[ring].has_used() {
                return Err(GuestError::BadFrame(format!("{missing} of its {} buffers are missing", header.num_buffers)));
            }
            let (used, more) = self.take_received(ring)?;
            bytes.extend(more);
            chains.push(used);
        }
        self.rings[ring].publish_and_kick()?;
        let pair = ring / 2;
        self.next_pair = pair + 1;
        Ok(Some(Received { pair, header, frame: bytes.split_off(header_len), chains }))
    }

    fn take_received(&mut self, ring: usize) -> Result<(Used, Vec<u8>), GuestError> {
        let used = self.rings[ring].take_used()?.expect("the caller has seen that a chain is there");
        let posted = self.posted.remove(&(ring, used.head)).expect("every receive chain is in the table");
        let mut left = used.len as usize;
        let mut bytes = Vec::with_capacity(left);
        for buffer in &posted.buffers {
            let part = left.min(buffer.len as usize);
            bytes.extend(self.memory.bytes(buffer.address, part));
            left -= part;
            if posted.marked && self.memory.bytes(buffer.address + u64::from(buffer.len), MARK.len()) != MARK {
                return Err(GuestError::BadFrame("something was written behind a receive buffer".to_owned()));
            }
        }
        if left > 0 {
            return Err(GuestError::BadFrame(format!("the used length {} is {left} more than the chain holds", used.len)));
        }
        if self.repost {
            self.add_receive(ring, posted)?;
        }
        Ok((used, bytes))
    }

    fn check_header(&self, header: &Header) -> Result<(), GuestError> {
        let count = header.num_buffers;
        let count_expected = match (self.has(feature::MRG_RXBUF), self.has(feature::VERSION_1)) {
            (true, _) => count >= 1,
            (false, true) => count == 1 || count == 0 && self.setup.accepts_no_num_buffers,
            (false, false) => count == 0,
        };
        if !count_expected {
            return Err(GuestError::BadFrame(format!("num_buffers is {count}")));
        }
        let offload = Header { num_buffers: 0, ..*header };
        if !self.has(feature::GUEST_CSUM) && offload != Header::default() {
            return Err(GuestError::BadFrame(format!("no offload was negotiated and the header is {header:?}")));
        }
        Ok(())
    }

    /// Posts receive buffers on the first pair: the whole slot of each is cut by `shape`, `len` bytes in all.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn post(&mut self, count: usize, len: usize, shape: &Shape) -> Result<(), GuestError> {
        self.post_on(0, count, len, shape)
    }

    /// Posts receive buffers on a pair: the whole slot of each is cut by `shape`, `len` bytes in all.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn post_on(&mut self, pair: usize, count: usize, len: usize, shape: &Shape) -> Result<(), GuestError> {
        let ring = to_guest(pair);
        for _ in 0..count {
            let base = slot(self.slots, &self.rings[ring], self.rings[ring].next_head());
            let lengths = shape.cut(len);
            let marked = len + lengths.len() * MARK.len() <= SLOT_LEN as usize;
            let mut at = 0;
            let mut buffers = Vec::with_capacity(lengths.len());
            for len in lengths {
                buffers.push(Buffer::writable(base + at, u32::try_from(len).expect("a buffer is small")));
                at += len as u64;
                if marked {
                    self.memory.write(base + at, &MARK);
                    at += MARK.len() as u64;
                }
            }
            self.add_receive(ring, Posted { buffers, indirect: shape.is_indirect(), marked })?;
        }
        self.rings[ring].publish_and_kick()
    }

    /// Posts one receive chain of the caller's making on the first pair.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn post_buffers(&mut self, buffers: &[Buffer], indirect: bool) -> Result<(), GuestError> {
        self.add_receive(to_guest(0), Posted { buffers: buffers.to_vec(), indirect, marked: false })?;
        self.to_guest().publish_and_kick()
    }

    /// Whether receive buffers are posted again once their frame was read.
    pub fn set_repost(&mut self, repost: bool) {
        self.repost = repost;
    }

    fn add_receive(&mut self, ring: usize, posted: Posted) -> Result<(), GuestError> {
        let head = self.rings[ring].add(&posted.buffers, posted.indirect)?;
        self.posted.insert((ring, head), posted);
        Ok(())
    }

    /// Posts the receive buffers that the builder asked for, on every pair.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn post_at_start(&mut self) -> Result<(), GuestError> {
        let mergeable = self.has(feature::MRG_RXBUF);
        let len = if mergeable && self.setup.receive_shape.is_none() { MERGEABLE_BUFFER } else { WHOLE_FRAME };
        let shape = self.setup.receive_shape.clone().unwrap_or_else(Shape::one);
        let descriptors = if shape.is_indirect() { 1 } else { shape.cut(len).len() };
        let count = self.setup.receive_buffers.unwrap_or(usize::from(self.setup.ring_size) / descriptors);
        (0..self.pairs()).try_for_each(|pair| self.post_on(pair, count, len, &shape))
    }

    /// Waits until the back-end has finished with a chain of one of these rings, at most `limit`; returns that ring.
    fn wait_any(&mut self, rings: &[usize], limit: Duration) -> Result<Option<usize>, GuestError> {
        let deadline = Instant::now() + limit;
        loop {
            for &ring in rings {
                if self.setup.call {
                    self.rings[ring].arm_interrupt();
                }
                if self.rings[ring].has_used() {
                    return Ok(Some(ring));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let more = if self.setup.call {
                let calls: Vec<_> = rings.iter().map(|&ring| self.rings[ring].call_fd().as_fd()).collect();
                any_readable(&calls, left).map_err(GuestError::io("wait for an interrupt", limit))?
            } else {
                std::thread::yield_now();
                !left.is_zero()
            };
            if !more {
                return Ok(rings.iter().copied().find(|&ring| self.rings[ring].has_used()));
            }
            for &ring in rings {
                self.rings[ring].calls();
            }
        }
    }
}
