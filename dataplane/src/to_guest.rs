//! Frames handed to a guest.
//!
//! The private headers are written and the payload copied once, straight from the sender's buffers into the receiver's. Frames that
//! take a chain each go in runs: chains first, then copies, so that their memory is on its way when it is needed.

use weft_switch::vlan::push;
use weft_switch::{DropReason, EthernetHeader, Offload, SegmentKind, TAG_LEN, complete_checksum, segment};

use crate::counters::LiveCounters;
use crate::from_guest::{Batch, Frame};
use crate::memory::Segment;
use crate::ring::{Chain, MAX_BUFFERS, Ring, RingFault, Virtqueue};
use crate::ring_copy::{Cursor, prefetch, write_frame};
use crate::vhost_port::{BATCH, FrameFeatures, FrameMask, LONG_HEADER, SHORT_HEADER};

/// A long header when nothing is left to do about a frame that is in one chain (section 5.1.6.4: its count is 1 even where
/// frames are never spread).
const PLAIN_HEADER: [u8; LONG_HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// The shortest TCP header; longer ones are not looked at, because the length is only a hint (section 5.1.6.2).
const TCP_LEN: u16 = 20;
const UDP_LEN: u16 = 8;

/// Pieces and descriptors that the chains of a batch may take in all: buffers of 128 bytes, for as many bytes as a batch has. Whoever
/// has smaller ones gets no more of that batch, since everybody else waits for it.
const MAX_SPENT: usize = 4096;

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
    /// What the chains of the batch at hand took so far: see [`MAX_SPENT`].
    spent: usize,
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
    /// Bytes of frames that had to be finished first, delivered or not.
    pub(crate) finished: u64,
}

/// A frame with the tag that it leaves with, if any.
#[derive(Clone, Copy, Debug)]
struct Leaving<'a> {
    frame: &'a Frame,
    tag: Option<[u8; TAG_LEN]>,
}

impl<'a> Leaving<'a> {
    /// The frame of the lowest bit, which is then no longer set. Without `VLANS` nothing looks at tags, which costs nothing then.
    #[inline(always)]
    fn next<const VLANS: bool>(batch: &'a Batch, frames: &mut FrameMask, tagged: FrameMask) -> Self {
        let at = frames.trailing_zeros() as usize % BATCH;
        let is_tagged = VLANS && tagged & 1 << at != 0;
        Self { frame: batch.next_of(frames), tag: is_tagged.then(|| batch.stamp(at).tag) }
    }

    /// Bytes of the frame with its tag.
    #[inline(always)]
    fn len(self) -> usize {
        self.frame.len + if self.tag.is_some() { TAG_LEN } else { 0 }
    }

    #[inline(always)]
    fn head(self) -> Head<'a> {
        Head { header: &self.frame.header, tag: self.tag, offload: &self.frame.offload }
    }
}

/// What stands before the payload of a frame.
#[derive(Clone, Copy, Debug)]
struct Head<'a> {
    header: &'a [u8; EthernetHeader::LEN],
    tag: Option<[u8; TAG_LEN]>,
    /// What is left to do about the frame without the tag.
    offload: &'a Offload,
}

impl Head<'_> {
    /// The virtio-net header of a frame in `chains` chains.
    #[inline(always)]
    fn virtio_header(self, chains: u16) -> [u8; LONG_HEADER] {
        match self.tag {
            None => long_header(self.offload, chains),
            Some(_) => long_header(&self.offload.with_tag(), chains),
        }
    }
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
        let writer =
            Writer { features, run: [Chain::NONE; BATCH], chains, pieces, spent: 0, whole: Vec::new(), part: Vec::new() };
        Self { ring, writer, unshown: 0 }
    }

    /// Copies these frames of `batch` into the guest's next buffers; what does not fit is counted in `counters`. Seen by the
    /// guest after [`Self::flush`]. On a network with VLANs `tagged` says which of them leave with a tag.
    pub(crate) fn transmit(
        &mut self,
        batch: &Batch,
        frames: FrameMask,
        tagged: Option<FrameMask>,
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), RingFault> {
        let writer = &mut self.writer;
        let transmitted = match (&mut self.ring, tagged) {
            (Ring::Split(queue), None) => writer.transmit::<false>(queue, batch, frames, 0, counters, tally),
            (Ring::Packed(queue), None) => writer.transmit::<false>(queue, batch, frames, 0, counters, tally),
            (Ring::Split(queue), Some(tagged)) => writer.transmit::<true>(queue, batch, frames, tagged, counters, tally),
            (Ring::Packed(queue), Some(tagged)) => writer.transmit::<true>(queue, batch, frames, tagged, counters, tally),
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
    fn transmit<const VLANS: bool>(
        &mut self,
        queue: &mut impl Virtqueue,
        batch: &Batch,
        mut frames: FrameMask,
        tagged: FrameMask,
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), RingFault> {
        queue.prefetch();
        self.spent = 0;
        while frames != 0 {
            let (count, taken) = self.take_run::<VLANS>(queue, batch, frames, tagged);
            for at in 0..count {
                let leaving = Leaving::next::<VLANS>(batch, &mut frames, tagged);
                self.write::<VLANS>(batch, leaving, at);
                // No truncation: at most a frame and its header.
                self.run[at].len = (self.features.header_len() + leaving.len()) as u32;
                tally.bytes += leaving.len() as u64;
            }
            queue.complete_written(&self.run[..count]);
            tally.frames += count as u64;
            tally.handled += count as u32;
            taken?;
            if frames != 0 {
                let leaving = Leaving::next::<VLANS>(batch, &mut frames, tagged);
                self.transmit_one(queue, batch, leaving, counters, tally)?;
                tally.handled += 1;
            }
        }
        Ok(())
    }

    /// Takes a chain for each of the next frames, as long as one is enough, and asks for its memory. How many it took stands
    /// beside the fault that ended it.
    #[inline(always)]
    fn take_run<const VLANS: bool>(
        &mut self,
        queue: &mut impl Virtqueue,
        batch: &Batch,
        mut frames: FrameMask,
        tagged: FrameMask,
    ) -> (usize, Result<(), RingFault>) {
        self.pieces.clear();
        let mut count = 0;
        if self.spent >= MAX_SPENT {
            return (count, Ok(()));
        }
        for chain in &mut self.run {
            // Chains of one piece are as many as frames at most.
            if frames == 0 || self.pieces.len() >= MAX_SPENT {
                break;
            }
            let leaving = Leaving::next::<VLANS>(batch, &mut frames, tagged);
            let frame = leaving.frame;
            if !frame.offload.is_none() && !self.features.offloads_to_guest.cover(&frame.offload) {
                break;
            }
            // No truncation: at most a frame and its header.
            let needed = (self.features.header_len() + leaving.len()) as u32;
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
        self.spent += self.pieces.len();
        (count, Ok(()))
    }

    /// Writes a frame into a chain of the run, which has room for it.
    #[inline(always)]
    fn write<const VLANS: bool>(&self, batch: &Batch, leaving: Leaving<'_>, at: usize) {
        let (frame, chain) = (leaving.frame, &self.run[at]);
        let (Some(from), Some(to), true) = (frame.chain.single(), chain.single(), self.features.long_header) else {
            self.write_pieces(self.cursor(chain), 1, leaving.head(), batch.payload(frame), frame.len - EthernetHeader::LEN);
            return;
        };
        let unfinished;
        let virtio_header = if frame.offload.is_none() {
            &PLAIN_HEADER
        } else {
            unfinished = leaving.head().virtio_header(1);
            &unfinished
        };
        let headers_len = if VLANS { frame.headers_len() } else { EthernetHeader::LEN };
        let (payload_at, payload_len) = (batch.header_len + headers_len, frame.len - EthernetHeader::LEN);
        let written = match leaving.tag {
            None => write_frame(&to, (virtio_header, &frame.header), &from, payload_at, payload_len),
            Some(tag) => write_frame(&to, (virtio_header, &push(&frame.header, tag)), &from, payload_at, payload_len),
        };
        debug_assert!(written, "a chain has the room that was counted");
    }

    fn cursor(&self, chain: &Chain) -> Cursor<'_> {
        match chain.single() {
            Some(piece) => Cursor::of_one(piece),
            None => Cursor::new(chain.pieces(&self.pieces)),
        }
    }

    /// Writes a frame with a payload of `len` bytes to wherever `target` leads, in `chains` chains that have room for it.
    fn write_pieces(&self, mut target: Cursor<'_>, chains: u16, head: Head<'_>, mut payload: Cursor<'_>, len: usize) {
        let virtio_header = head.virtio_header(chains);
        let written =
            if self.features.long_header { target.write(&virtio_header) } else { target.write(&virtio_header[..SHORT_HEADER]) };
        let written = written
            && match head.tag {
                None => target.write(head.header),
                Some(tag) => target.write(&push(head.header, tag)),
            };
        let written = written && target.copy_from(&mut payload, len);
        debug_assert!(written, "a frame and its buffers have the lengths that were counted");
    }

    /// A frame that takes several chains, or is to be finished first, or for which there is no room.
    #[cold]
    #[inline(never)]
    fn transmit_one(
        &mut self,
        queue: &mut impl Virtqueue,
        batch: &Batch,
        leaving: Leaving<'_>,
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), RingFault> {
        let frame = leaving.frame;
        let payload = batch.payload(frame);
        let delivered = if frame.offload.is_none() || self.features.offloads_to_guest.cover(&frame.offload) {
            self.deliver(queue, leaving.head(), payload, frame.len - EthernetHeader::LEN, tally)
        } else {
            self.finish_and_deliver(queue, payload, leaving, counters, tally)
        };
        delivered.or_else(|error| count_drop(error, counters))
    }

    /// One frame with a payload of `len` bytes into as many chains as it takes.
    fn deliver(
        &mut self,
        queue: &mut impl Virtqueue,
        head: Head<'_>,
        payload: Cursor<'_>,
        len: usize,
        tally: &mut Tally,
    ) -> Result<(), TransmitError> {
        let frame_len = EthernetHeader::LEN + head.tag.map_or(0, |tag| tag.len()) + len;
        // No truncation: at most a frame and its header.
        let needed = (self.features.header_len() + frame_len) as u32;
        self.gather(queue, needed)?;
        // No truncation: bounded by what `gather` takes.
        self.write_pieces(Cursor::new(&self.pieces), self.chains.len() as u16, head, payload, len);
        let mut left = needed;
        for chain in &self.chains {
            let written = left.min(chain.len);
            queue.complete(chain, written);
            left -= written;
        }
        tally.frames += 1;
        tally.bytes += frame_len as u64;
        Ok(())
    }

    /// Does what the sender left undone and this guest did not agree to do, on a private copy without the tag.
    fn finish_and_deliver(
        &mut self,
        queue: &mut impl Virtqueue,
        mut payload: Cursor<'_>,
        Leaving { frame, tag }: Leaving<'_>,
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), TransmitError> {
        let (mut whole, mut part) = (std::mem::take(&mut self.whole), std::mem::take(&mut self.part));
        whole.clear();
        whole.extend_from_slice(&frame.header);
        whole.resize(frame.len, 0);
        let copied = payload.read(&mut whole[EthernetHeader::LEN..]);
        debug_assert!(copied, "a frame has the length that was counted");
        tally.finished += frame.len as u64;
        let outcome = match (frame.offload.checksum, frame.offload.segmentation) {
            (Some(checksum), Some(segmentation)) => {
                let mut outcome = Ok(());
                let cut = segment(&whole, checksum, segmentation, &mut part, |part| {
                    if outcome.is_ok() {
                        outcome = self.deliver_private(queue, part, tag, tally).or_else(|error| count_drop(error, counters));
                    }
                });
                cut.map_err(TransmitError::Dropped).and(outcome.map_err(TransmitError::Fault))
            }
            (Some(checksum), None) => {
                complete_checksum(&mut whole, checksum);
                self.deliver_private(queue, &whole, tag, tally)
            }
            (None, _) => self.deliver_private(queue, &whole, tag, tally),
        };
        (self.whole, self.part) = (whole, part);
        outcome
    }

    fn deliver_private(
        &mut self,
        queue: &mut impl Virtqueue,
        frame: &[u8],
        tag: Option<[u8; TAG_LEN]>,
        tally: &mut Tally,
    ) -> Result<(), TransmitError> {
        let (header, rest) = frame.split_first_chunk().ok_or(TransmitError::Dropped(DropReason::TooShort))?;
        let piece = Segment { ptr: rest.as_ptr().cast_mut(), len: rest.len() };
        self.deliver(queue, Head { header, tag, offload: &Offload::NONE }, Cursor::of_one(piece), rest.len(), tally)
    }

    /// Takes chains until they have room for `needed` bytes; all their pieces are in `self.pieces` then. Takes none when they
    /// don't.
    fn gather(&mut self, queue: &mut impl Virtqueue, needed: u32) -> Result<(), TransmitError> {
        self.chains.clear();
        self.pieces.clear();
        let (mut room, mut cost, mut slots) = (0_u32, 0, 0);
        while room < needed {
            if (room > 0 && !self.features.mergeable) || cost >= MAX_BUFFERS as u32 || self.spent >= MAX_SPENT {
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
            self.spent += chain.cost as usize;
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
