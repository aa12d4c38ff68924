//! The two directions of a vhost-user port: frames taken from a guest, frames handed to it.
//!
//! What a guest sends stays in its memory; only the Ethernet header is copied, and from then on the private copy is the
//! truth: it is what the decision is made on and what the receiver gets, whatever the guest writes in the meantime.
//! The payload is copied once, straight into the receiver's buffers.

use weft_switch::{
    DropReason, EthernetHeader, FlowHash, MAX_FRAME_LEN, Offload, OffloadFeatures, SegmentKind, complete_checksum, segment,
};

use crate::counters::LiveCounters;
use crate::memory::Segment;
use crate::ring::{Chain, MAX_BUFFERS, Ring, RingFault, Virtqueue};
use crate::ring_copy::{Cursor, prefetch, write_frame};

/// The most frames in a batch.
pub(crate) const BATCH: usize = 32;
/// Some frames of a batch: one bit each.
pub(crate) type FrameMask = u32;
const _: () = assert!(BATCH == FrameMask::BITS as usize);
/// Length of a virtio-net header with `num_buffers` (virtio 1.2, section 5.1.6.1).
const LONG_HEADER: usize = 12;
/// The same without, for drivers that negotiated neither VERSION_1 nor MRG_RXBUF.
const SHORT_HEADER: usize = 10;
/// A long header when nothing is left to do about a frame that is in one chain (section 5.1.6.4: its count is 1 even where
/// frames are never spread).
const PLAIN_HEADER: [u8; LONG_HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// The longest frame with its virtio-net header.
const MAX_CHAIN_LEN: u32 = (LONG_HEADER + MAX_FRAME_LEN) as u32;
/// The shortest TCP header; longer ones are not looked at, because the length is only a hint (section 5.1.6.2).
const TCP_LEN: u16 = 20;
const UDP_LEN: u16 = 8;

/// What the driver agreed to, as far as frames care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrameFeatures {
    /// Frames carry the long virtio-net header.
    pub(crate) long_header: bool,
    /// A frame for the guest may be spread over several chains.
    pub(crate) mergeable: bool,
    /// What the driver may leave undone in frames that it sends.
    pub(crate) offloads_from_guest: OffloadFeatures,
    /// What may be left undone in frames for it.
    pub(crate) offloads_to_guest: OffloadFeatures,
}

impl FrameFeatures {
    fn header_len(self) -> usize {
        if self.long_header { LONG_HEADER } else { SHORT_HEADER }
    }
}

/// A frame that was taken from a guest.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Its buffers.
    chain: Chain,
    /// Bytes of the frame, Ethernet header included; zero if it can't be used.
    len: usize,
    /// The private copy of the Ethernet header.
    header: [u8; EthernetHeader::LEN],
    /// Why the frame goes no further.
    bad: Option<DropReason>,
    /// What its sender left undone, checked.
    offload: Offload,
}

impl Frame {
    const NONE: Self = Self { chain: Chain::NONE, len: 0, header: [0; EthernetHeader::LEN], bad: None, offload: Offload::NONE };

    /// The private copy of the Ethernet header, or why the frame goes no further.
    #[inline(always)]
    pub(crate) fn header(&self) -> Result<&[u8; EthernetHeader::LEN], DropReason> {
        match self.bad {
            None => Ok(&self.header),
            Some(reason) => Err(reason),
        }
    }

    /// Bytes of the frame; zero if it can't be used.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Reads both headers: to private memory, where they are in one piece with one move each.
    #[inline(always)]
    fn read_headers<const HEADER: usize>(&mut self, pieces: &[Segment], agreed: OffloadFeatures) {
        let both = if let Some(piece) = self.chain.single() {
            piece.read_at::<HEADER>(0).zip(piece.read_at(HEADER))
        } else {
            let mut cursor = Cursor::new(self.chain.pieces(pieces));
            cursor.read_array().zip(cursor.read_array())
        };
        self.bad = match both {
            _ if self.chain.bad.is_some() => self.chain.bad,
            None => Some(DropReason::TooShort),
            Some((virtio_header, header)) => {
                self.header = header;
                self.len = self.chain.len as usize - HEADER;
                self.offload = Offload::NONE;
                self.read_offload(head(&virtio_header), agreed)
            }
        };
        if self.bad.is_some() {
            self.len = 0;
        }
    }

    #[inline(always)]
    fn read_offload(&mut self, virtio_header: &[u8; SHORT_HEADER], agreed: OffloadFeatures) -> Option<DropReason> {
        if !Offload::is_asked_for(virtio_header) {
            return None;
        }
        match Offload::parse(*virtio_header, self.len, agreed) {
            Ok(offload) => {
                self.offload = offload;
                None
            }
            Err(reason) => Some(reason),
        }
    }
}

/// The frames that one ring gave in one round, with the places of their bytes. Reused from round to round.
#[derive(Debug)]
pub(crate) struct Batch {
    frames: [Frame; BATCH],
    count: usize,
    /// Of the frames that are spread over several.
    pieces: Vec<Segment>,
    /// Bytes in the buffers before the Ethernet header.
    header_len: usize,
    /// The bytes of a frame that comes from weft itself.
    private: Vec<u8>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { frames: [const { Frame::NONE }; BATCH], count: 0, pieces: Vec::new(), header_len: 0, private: Vec::new() }
    }

    /// A batch of one frame that no guest sent.
    pub(crate) fn of_private(frame: Vec<u8>) -> Self {
        let mut batch = Self { private: frame, count: 1, ..Self::new() };
        let len = batch.private.len();
        let header = batch.private.first_chunk().copied();
        let bad = header.is_none().then_some(DropReason::TooShort);
        // No truncation: weft makes no longer frames than guests.
        let chain = Chain::of_one(0, batch.private.as_mut_ptr(), len as u32);
        batch.frames[0] = Frame { chain, len, header: header.unwrap_or_default(), bad, offload: Offload::NONE };
        batch
    }

    #[inline(always)]
    pub(crate) fn frames(&self) -> &[Frame] {
        &self.frames[..self.count]
    }

    /// Takes chains until the batch is full, or holds as many buffers as may be looked at. The frames' own first bytes are
    /// asked for meanwhile.
    #[inline(never)]
    fn fill(&mut self, queue: &mut impl Virtqueue) -> Result<(), RingFault> {
        let mut cost = 0;
        self.count = 0;
        self.pieces.clear();
        queue.prefetch();
        for frame in &mut self.frames {
            if cost >= MAX_BUFFERS as u32 {
                break;
            }
            match queue.take(MAX_CHAIN_LEN, &mut self.pieces, &mut frame.chain) {
                Ok(true) => {}
                Ok(false) => break,
                Err(fault) => return Err(queue.base().explain(fault)),
            }
            prefetch(frame.chain.ptr());
            cost += frame.chain.cost;
            self.count += 1;
        }
        Ok(())
    }

    /// Reads the headers of all frames.
    #[inline(never)]
    fn read_headers(&mut self, features: FrameFeatures) {
        self.header_len = features.header_len();
        let (frames, pieces) = (&mut self.frames[..self.count], self.pieces.as_slice());
        if features.long_header {
            frames.iter_mut().for_each(|frame| frame.read_headers::<LONG_HEADER>(pieces, features.offloads_from_guest));
        } else {
            frames.iter_mut().for_each(|frame| frame.read_headers::<SHORT_HEADER>(pieces, features.offloads_from_guest));
        }
    }

    /// Shows the Ethernet header of a frame and a private copy of what follows it, as far as it says which flow this is.
    pub(crate) fn with_flow_bytes<T>(&self, frame: &Frame, look: impl FnOnce(&[u8; EthernetHeader::LEN], &[u8]) -> T) -> T {
        let mut rest = [0; FlowHash::LOOKS_AT];
        let len = rest.len().min(frame.len.saturating_sub(EthernetHeader::LEN));
        let copied = self.payload(frame).read(&mut rest[..len]);
        debug_assert!(copied, "a frame has the length that was counted");
        look(&frame.header, &rest[..len])
    }

    /// What follows the Ethernet header of a frame.
    fn payload(&self, frame: &Frame) -> Cursor<'_> {
        let cursor = match frame.chain.single() {
            Some(piece) => Cursor::of_one(piece),
            None => Cursor::new(frame.chain.pieces(&self.pieces)),
        };
        cursor.skip(self.header_len + EthernetHeader::LEN)
    }
}

/// The ring in which a guest offers frames to send.
#[derive(Debug)]
pub(crate) struct FromGuest {
    pub(crate) ring: Ring,
    features: FrameFeatures,
}

impl FromGuest {
    pub(crate) fn new(ring: Ring, features: FrameFeatures) -> Self {
        Self { ring, features }
    }

    /// Takes up to [`BATCH`] frames; fewer, if they are spread over very many buffers. What was taken before a fault is
    /// in the batch all the same.
    pub(crate) fn receive(&mut self, batch: &mut Batch) -> Result<(), RingFault> {
        let filled = match &mut self.ring {
            Ring::Split(queue) => batch.fill(queue),
            Ring::Packed(queue) => batch.fill(queue),
        };
        batch.read_headers(self.features);
        filled
    }

    /// Gives the chains of a batch back. Seen by the guest after [`Self::flush`].
    pub(crate) fn complete(&mut self, batch: &Batch) {
        // Nothing was written into them (virtio 1.2, section 2.7.8.2).
        let chains = batch.frames().iter().map(|frame| &frame.chain);
        match &mut self.ring {
            Ring::Split(queue) => queue.complete_unwritten(chains),
            Ring::Packed(queue) => queue.complete_unwritten(chains),
        }
    }

    /// Lets the guest see what it got back. True if it was notified.
    pub(crate) fn flush(&mut self) -> Result<bool, RingFault> {
        self.ring.queue().publish()
    }
}

/// The ring in which a guest offers buffers for what it is to receive.
#[derive(Debug)]
pub(crate) struct ToGuest {
    pub(crate) ring: Ring,
    writer: Writer,
    /// Frames since the last [`Self::flush`].
    unshown: u64,
}

/// How frames get into a guest's buffers.
#[derive(Debug)]
struct Writer {
    features: FrameFeatures,
    /// Of the frames at hand, which take one chain each.
    run: [Chain; BATCH],
    /// Of the frame at hand, which takes several: its chains.
    chains: Vec<Chain>,
    /// The pieces of all these.
    pieces: Vec<Segment>,
    /// Of a frame that has to be finished first: a private copy of it, and the segment at hand.
    whole: Vec<u8>,
    part: Vec<u8>,
}

/// What was handed to a guest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    /// Those that were dropped included.
    pub(crate) handled: u32,
}

/// Why a frame was not handed to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransmitError {
    /// This frame is lost; the next one may fit.
    Dropped(DropReason),
    /// The ring is broken.
    Fault(RingFault),
}

impl From<RingFault> for TransmitError {
    fn from(fault: RingFault) -> Self {
        Self::Fault(fault)
    }
}

impl ToGuest {
    pub(crate) fn new(ring: Ring, features: FrameFeatures) -> Self {
        let (chains, pieces) = (Vec::with_capacity(64), Vec::with_capacity(256));
        let writer = Writer { features, run: [Chain::NONE; BATCH], chains, pieces, whole: Vec::new(), part: Vec::new() };
        Self { ring, writer, unshown: 0 }
    }

    /// Copies these frames of `batch` into the guest's next buffers; what does not fit is counted in `counters`. Seen by the
    /// guest after [`Self::flush`].
    pub(crate) fn transmit(
        &mut self,
        batch: &Batch,
        frames: FrameMask,
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), RingFault> {
        let transmitted = match &mut self.ring {
            Ring::Split(queue) => self.writer.transmit(queue, batch, frames, counters, tally),
            Ring::Packed(queue) => self.writer.transmit(queue, batch, frames, counters, tally),
        };
        self.unshown += tally.frames;
        transmitted
    }

    /// How many frames the guest was not shown yet.
    pub(crate) fn unshown(&self) -> usize {
        self.unshown as usize
    }

    /// Lets the guest see its frames. True if it was notified.
    pub(crate) fn flush(&mut self) -> Result<bool, RingFault> {
        self.unshown = 0;
        self.ring.queue().publish()
    }
}

impl Writer {
    /// Runs of frames that take a chain each, and between them whatever takes longer.
    #[inline(never)]
    fn transmit(
        &mut self,
        queue: &mut impl Virtqueue,
        batch: &Batch,
        mut frames: FrameMask,
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), RingFault> {
        queue.prefetch();
        while frames != 0 {
            let (count, taken) = self.take_run(queue, batch, frames);
            for at in 0..count {
                let frame = next_frame(&mut frames, batch);
                self.write(batch, frame, at);
                let written = self.features.header_len() + frame.len;
                // No truncation: at most a frame and its header.
                queue.complete(&self.run[at], written as u32);
                tally.bytes += frame.len as u64;
            }
            tally.frames += count as u64;
            tally.handled += count as u32;
            taken?;
            if frames != 0 {
                let frame = next_frame(&mut frames, batch);
                self.transmit_one(queue, batch, frame, counters, tally)?;
                tally.handled += 1;
            }
        }
        Ok(())
    }

    /// Takes a chain for each of the next frames, as long as one is enough, and asks for its memory. How many it took stands
    /// beside the fault that ended it.
    #[inline(always)]
    fn take_run(&mut self, queue: &mut impl Virtqueue, batch: &Batch, mut frames: FrameMask) -> (usize, Result<(), RingFault>) {
        self.pieces.clear();
        let mut count = 0;
        for chain in &mut self.run {
            if frames == 0 {
                break;
            }
            let frame = next_frame(&mut frames, batch);
            if !frame.offload.is_none() && !self.features.offloads_to_guest.cover(&frame.offload) {
                break;
            }
            // No truncation: at most a frame and its header.
            let needed = (self.features.header_len() + frame.len) as u32;
            match queue.take(needed, &mut self.pieces, chain) {
                Ok(true) if chain.len >= needed => {}
                Ok(true) => {
                    queue.untake(chain.slots);
                    break;
                }
                Ok(false) => break,
                Err(fault) => return (count, Err(queue.base().explain(fault))),
            }
            prefetch(chain.ptr());
            count += 1;
        }
        (count, Ok(()))
    }

    /// Writes a frame into a chain of the run, which has room for it.
    #[inline(always)]
    fn write(&self, batch: &Batch, frame: &Frame, at: usize) {
        let chain = &self.run[at];
        let (Some(from), Some(to), true) = (frame.chain.single(), chain.single(), self.features.long_header) else {
            self.write_pieces(self.cursor(chain), 1, &frame.header, batch.payload(frame), frame.len, &frame.offload);
            return;
        };
        let unfinished;
        let virtio_header = if frame.offload.is_none() {
            &PLAIN_HEADER
        } else {
            unfinished = long_header(&frame.offload, 1);
            &unfinished
        };
        let (payload_at, payload_len) = (batch.header_len + EthernetHeader::LEN, frame.len - EthernetHeader::LEN);
        let written = write_frame(&to, (virtio_header, &frame.header), &from, payload_at, payload_len);
        debug_assert!(written, "a chain has the room that was counted");
    }

    fn cursor(&self, chain: &Chain) -> Cursor<'_> {
        match chain.single() {
            Some(piece) => Cursor::of_one(piece),
            None => Cursor::new(chain.pieces(&self.pieces)),
        }
    }

    /// Writes a frame of `len` bytes to wherever `target` leads, in `chains` chains that have room for it.
    fn write_pieces(
        &self,
        mut target: Cursor<'_>,
        chains: u16,
        header: &[u8; EthernetHeader::LEN],
        mut payload: Cursor<'_>,
        len: usize,
        offload: &Offload,
    ) {
        let virtio_header = long_header(offload, chains);
        let written =
            if self.features.long_header { target.write(&virtio_header) } else { target.write(&virtio_header[..SHORT_HEADER]) };
        let written = written && target.write(header) && target.copy_from(&mut payload, len - EthernetHeader::LEN);
        debug_assert!(written, "a frame and its buffers have the lengths that were counted");
    }

    /// A frame that takes several chains, or is to be finished first, or for which there is no room.
    #[cold]
    #[inline(never)]
    fn transmit_one(
        &mut self,
        queue: &mut impl Virtqueue,
        batch: &Batch,
        frame: &Frame,
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), RingFault> {
        let payload = batch.payload(frame);
        let offload = &frame.offload;
        let delivered = if offload.is_none() || self.features.offloads_to_guest.cover(offload) {
            self.deliver(queue, &frame.header, payload, frame.len, offload, tally)
        } else {
            self.finish_and_deliver(queue, payload, frame, counters, tally)
        };
        delivered.or_else(|error| count_drop(error, counters))
    }

    /// One frame into as many chains as it takes. `payload` is what follows the Ethernet header of a frame of `len` bytes.
    fn deliver(
        &mut self,
        queue: &mut impl Virtqueue,
        header: &[u8; EthernetHeader::LEN],
        payload: Cursor<'_>,
        len: usize,
        offload: &Offload,
        tally: &mut Tally,
    ) -> Result<(), TransmitError> {
        // No truncation: at most a frame and its header.
        let needed = (self.features.header_len() + len) as u32;
        self.gather(queue, needed)?;
        // No truncation: bounded by what `gather` takes.
        self.write_pieces(Cursor::new(&self.pieces), self.chains.len() as u16, header, payload, len, offload);
        let mut left = needed;
        for chain in &self.chains {
            let written = left.min(chain.len);
            queue.complete(chain, written);
            left -= written;
        }
        tally.frames += 1;
        tally.bytes += len as u64;
        Ok(())
    }

    /// Does what the sender left undone and this guest did not agree to do, on a private copy.
    fn finish_and_deliver(
        &mut self,
        queue: &mut impl Virtqueue,
        mut payload: Cursor<'_>,
        frame: &Frame,
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), TransmitError> {
        let (mut whole, mut part) = (std::mem::take(&mut self.whole), std::mem::take(&mut self.part));
        whole.clear();
        whole.extend_from_slice(&frame.header);
        whole.resize(frame.len, 0);
        let copied = payload.read(&mut whole[EthernetHeader::LEN..]);
        debug_assert!(copied, "a frame has the length that was counted");
        let outcome = match (frame.offload.checksum, frame.offload.segmentation) {
            (Some(checksum), Some(segmentation)) => {
                let mut outcome = Ok(());
                let cut = segment(&whole, checksum, segmentation, &mut part, |part| {
                    if outcome.is_ok() {
                        outcome = self.deliver_private(queue, part, tally).or_else(|error| count_drop(error, counters));
                    }
                });
                cut.map_err(TransmitError::Dropped).and(outcome.map_err(TransmitError::Fault))
            }
            (Some(checksum), None) => {
                complete_checksum(&mut whole, checksum);
                self.deliver_private(queue, &whole, tally)
            }
            (None, _) => self.deliver_private(queue, &whole, tally),
        };
        (self.whole, self.part) = (whole, part);
        outcome
    }

    fn deliver_private(&mut self, queue: &mut impl Virtqueue, frame: &[u8], tally: &mut Tally) -> Result<(), TransmitError> {
        let (header, rest) = frame.split_first_chunk().ok_or(TransmitError::Dropped(DropReason::TooShort))?;
        let piece = Segment { ptr: rest.as_ptr().cast_mut(), len: rest.len() };
        self.deliver(queue, header, Cursor::of_one(piece), frame.len(), &Offload::NONE, tally)
    }

    /// Takes chains until they have room for `needed` bytes; all their pieces are in `self.pieces` then. Takes none when they
    /// don't.
    fn gather(&mut self, queue: &mut impl Virtqueue, needed: u32) -> Result<(), TransmitError> {
        self.chains.clear();
        self.pieces.clear();
        let (mut room, mut cost, mut slots) = (0_u32, 0, 0);
        while room < needed {
            if (room > 0 && !self.features.mergeable) || cost >= MAX_BUFFERS as u32 {
                queue.untake(slots);
                return Err(TransmitError::Dropped(DropReason::ReceiverBufferTooSmall));
            }
            let mut chain = Chain::NONE;
            let taken = queue.take(needed - room, &mut self.pieces, &mut chain);
            if !taken.map_err(|fault| queue.base().explain(fault))? {
                queue.untake(slots);
                return Err(TransmitError::Dropped(DropReason::ReceiverFull));
            }
            cost += chain.cost;
            slots += chain.slots;
            self.pieces.extend(chain.single().filter(|_| chain.bad.is_none()));
            self.chains.push(chain);
            if let Some(reason) = chain.bad {
                // In order with the others of this frame, so that nothing but a position says where the ring stands.
                self.chains.iter().for_each(|chain| queue.complete(chain, 0));
                return Err(TransmitError::Dropped(reason));
            }
            room = room.saturating_add(chain.len);
        }
        Ok(())
    }
}

/// The frame of the lowest bit, which is then no longer set.
#[inline(always)]
fn next_frame<'a>(frames: &mut FrameMask, batch: &'a Batch) -> &'a Frame {
    let at = frames.trailing_zeros() as usize % BATCH;
    *frames &= frames.wrapping_sub(1);
    &batch.frames[at]
}

/// The virtio-net header of a frame in `chains` chains.
fn long_header(offload: &Offload, chains: u16) -> [u8; LONG_HEADER] {
    let mut header = PLAIN_HEADER;
    if !offload.is_none() {
        header[..SHORT_HEADER].copy_from_slice(&offload.header(headers_len(offload)));
    }
    header[SHORT_HEADER..].copy_from_slice(&chains.to_le_bytes());
    header
}

/// A frame or segment that does not fit is lost; the next one may fit.
fn count_drop(error: TransmitError, counters: &LiveCounters) -> Result<(), RingFault> {
    match error {
        TransmitError::Dropped(reason) => {
            counters.drop_frames(reason, 1);
            Ok(())
        }
        TransmitError::Fault(fault) => Err(fault),
    }
}

/// A receiver's hint: up to where a frame holds headers. The sender's own is not believed.
fn headers_len(offload: &Offload) -> u16 {
    let transport_len = |kind| match kind {
        SegmentKind::Tcp4 | SegmentKind::Tcp6 => TCP_LEN,
        SegmentKind::Udp | SegmentKind::UdpFragments => UDP_LEN,
    };
    match (offload.checksum, offload.segmentation) {
        (Some(checksum), Some(segmentation)) => checksum.start.saturating_add(transport_len(segmentation.kind)),
        _ => 0,
    }
}

/// The first `N` of `M` bytes.
fn head<const N: usize, const M: usize>(bytes: &[u8; M]) -> &[u8; N] {
    bytes.first_chunk().expect("N is at most M")
}
