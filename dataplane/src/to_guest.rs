//! Frames handed to a guest.
//!
//! The private headers are written and the payload copied once, straight from the sender's buffers into the receiver's. Frames that
//! take a chain each go in runs: chains first, then copies, so that their memory is on its way when it is needed.

use weft_switch::vlan::push;
use weft_switch::{DropReason, EthernetHeader, Offload, OffloadFeatures, SegmentKind, TAG_LEN, complete_checksum, segment};

use crate::counters::LiveCounters;
use crate::from_guest::{Batch, Frame};
use crate::memory::Segment;
use crate::nat::part_of;
use crate::ring::{Chain, MAX_BUFFERS, Ring, RingFault, Virtqueue};
use crate::ring_copy::{Cursor, prefetch, write_frame, write_two_pieces};
use crate::vhost_port::{BATCH, FrameFeatures, FrameMask, LONG_HEADER, SHORT_HEADER};

/// A long header when nothing is left to do about a frame that is in one chain (section 5.1.6.4: its count is 1 even where
/// frames are never spread).
const PLAIN_HEADER: [u8; LONG_HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// The shortest TCP header; longer ones are not looked at, because the length is only a hint (section 5.1.6.2).
const TCP_LEN: u16 = 20;
const UDP_LEN: u16 = 8;
/// Both of a frame's addresses.
const ADDRESSES_LEN: usize = 12;

/// Pieces and descriptors that the chains of a batch may take in all: buffers of 128 bytes, for as many bytes as a batch has. Whoever
/// has smaller ones gets no more of that batch, since everybody else waits for it.
const MAX_SPENT: usize = 4096;

/// Which frames leave with a tag: chosen outside the loops.
pub(crate) mod tags {
    /// None, and none of them has lost one. Nobody looks at stamps.
    pub(crate) const NONE: u8 = 0;
    /// Some, or some have lost the one that they came with.
    pub(crate) const SOME: u8 = 1;
    /// All.
    pub(crate) const ALL: u8 = 2;
}

/// A tag as it stands in a frame.
pub(crate) type VlanTag = [u8; TAG_LEN];

/// The ring in which a guest offers buffers for what it is to receive.
#[derive(Debug)]
pub(crate) struct ToGuest {
    pub(crate) ring: Ring,
    writer: Writer,
    /// Frames since the last [`Self::flush`].
    unshown: u64,
    /// The guest was asked to kick when it offers more.
    waiting: bool,
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
    /// Those that were dropped.
    pub(crate) dropped: FrameMask,
    /// Bytes of frames that had to be finished first, delivered or not.
    pub(crate) finished: u64,
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
        Self { ring, writer, unshown: 0, waiting: false }
    }

    /// Copies these frames of `batch` into the guest's next buffers; what does not fit is counted in `counters`. Seen by the
    /// guest after [`Self::flush`]. `TAGS`, one of [`tags`], says which of them leave with the tag of their stamp.
    pub(crate) fn transmit<const TAGS: u8>(
        &mut self,
        batch: &Batch,
        frames: FrameMask,
        tagged: FrameMask,
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), RingFault> {
        let transmitted = match &mut self.ring {
            Ring::Split(queue) => self.writer.transmit::<TAGS>(queue, batch, frames, tagged, counters, tally),
            Ring::Packed(queue) => self.writer.transmit::<TAGS>(queue, batch, frames, tagged, counters, tally),
        };
        self.unshown += tally.frames;
        transmitted
    }

    /// What may be left undone in frames for this guest.
    pub(crate) fn offloads(&self) -> OffloadFeatures {
        self.writer.features.offloads_to_guest
    }

    /// Takes chains for a frame of at most `len` bytes, and for the tag with which it leaves, if any; `pieces` gets where these are, as if there were no tag. Says
    /// how many there is room for, which may be fewer. Followed by [`Self::commit`] or [`Self::cancel`].
    pub(crate) fn reserve(
        &mut self,
        len: usize,
        tag: Option<VlanTag>,
        pieces: &mut Vec<Segment>,
    ) -> Result<usize, TransmitError> {
        match &mut self.ring {
            Ring::Split(queue) => self.writer.reserve(queue, len, tag, pieces),
            Ring::Packed(queue) => self.writer.reserve(queue, len, tag, pieces),
        }
    }

    /// The chains that were taken last hold a frame of `len` bytes, but for its beginning, which is `headers`. Those that are not needed
    /// are given back. The tag is the one for which there is room, and counts neither in `len` nor in `offload`.
    pub(crate) fn commit(&mut self, headers: &[u8], tag: Option<VlanTag>, len: usize, offload: &Offload, tally: &mut Tally) {
        match &mut self.ring {
            Ring::Split(queue) => self.writer.commit(queue, (headers, tag), len, offload, tally),
            Ring::Packed(queue) => self.writer.commit(queue, (headers, tag), len, offload, tally),
        }
        self.unshown += tally.frames;
    }

    /// Gives back the chains that were taken last.
    pub(crate) fn cancel(&mut self) {
        match &mut self.ring {
            Ring::Split(queue) => self.writer.cancel(queue),
            Ring::Packed(queue) => self.writer.cancel(queue),
        }
    }

    /// Copies a private frame, which this guest takes as it is but for the tag.
    pub(crate) fn send(
        &mut self,
        frame: &[u8],
        tag: Option<VlanTag>,
        offload: &Offload,
        tally: &mut Tally,
    ) -> Result<(), TransmitError> {
        self.writer.spent = 0;
        match &mut self.ring {
            Ring::Split(queue) => self.writer.deliver_private(queue, frame, offload, tag, tally)?,
            Ring::Packed(queue) => self.writer.deliver_private(queue, frame, offload, tag, tally)?,
        }
        self.unshown += tally.frames;
        Ok(())
    }

    /// Asks the guest to kick when it offers more. True if it has done so already.
    pub(crate) fn wait_for_room(&mut self) -> Result<bool, RingFault> {
        self.waiting = true;
        self.ring.queue().enable_kicks()
    }

    /// Kicks are not needed any more.
    pub(crate) fn stop_waiting(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.ring.queue().disable_kicks();
        }
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
    fn transmit<const TAGS: u8>(
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
            let (count, taken) = self.take_run::<TAGS>(queue, batch, frames, tagged);
            for at in 0..count {
                let len = self.write_next::<TAGS>(batch, &mut frames, tagged, at);
                // No truncation: at most a frame and its header.
                self.run[at].len = (self.features.header_len() + len) as u32;
                tally.bytes += len as u64;
            }
            queue.complete_written(&self.run[..count]);
            tally.frames += count as u64;
            tally.handled += count as u32;
            taken?;
            if frames != 0 {
                let tag = tag_of_next::<TAGS>(batch, frames, tagged);
                let (bit, before) = (frames & frames.wrapping_neg(), tally.frames);
                let frame = batch.next_of(&mut frames);
                self.transmit_one(queue, batch, (frame, tag), counters, tally)?;
                tally.handled += 1;
                tally.dropped |= if tally.frames == before { bit } else { 0 };
            }
        }
        Ok(())
    }

    /// Takes a chain for each of the next frames, as long as one is enough, and asks for its memory. How many it took stands
    /// beside the fault that ended it.
    #[inline(always)]
    fn take_run<const TAGS: u8>(
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
            let tag_len = if TAGS == tags::NONE { 0 } else { tag_len(tag_of_next::<TAGS>(batch, frames, tagged)) };
            let frame = batch.next_of(&mut frames);
            if !frame.offload.is_none() && !self.features.offloads_to_guest.cover(&frame.offload) {
                break;
            }
            // No truncation: at most a frame and its header.
            let needed = (self.features.header_len() + frame.len + tag_len) as u32;
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

    /// Writes the next frame into a chain of the run, which has room for it, with the tag that it gets. Returns its length.
    #[inline(always)]
    fn write_next<const TAGS: u8>(&self, batch: &Batch, frames: &mut FrameMask, tagged: FrameMask, at: usize) -> usize {
        if TAGS == tags::NONE {
            let frame = batch.next_of(frames);
            self.write::<TAGS, _>(batch, frame, &frame.header, at);
            return frame.len;
        }
        let tag = tag_of_next::<TAGS>(batch, *frames, tagged);
        let frame = batch.next_of(frames);
        match tag {
            None => self.write::<TAGS, _>(batch, frame, &frame.header, at),
            Some(tag) => self.write::<TAGS, _>(batch, frame, &push(&frame.header, tag), at),
        }
        frame.len + tag_len(tag)
    }

    /// Writes a frame into a chain of the run, which has room for it, with this header.
    #[inline(always)]
    fn write<const TAGS: u8, const HEADER: usize>(&self, batch: &Batch, frame: &Frame, header: &[u8; HEADER], at: usize) {
        let (chain, payload_len) = (&self.run[at], frame.len - EthernetHeader::LEN);
        let (Some(from), Some(to), true) = (frame.chain.single(), chain.single(), self.features.long_header) else {
            self.write_apart(batch, frame, header, chain, payload_len);
            return;
        };
        let unfinished;
        let virtio_header = if frame.offload.is_none() {
            &PLAIN_HEADER
        } else {
            unfinished = if HEADER == EthernetHeader::LEN {
                long_header(&frame.offload, 1)
            } else {
                long_header(&frame.offload.with_tag(), 1)
            };
            &unfinished
        };
        let skipped = if TAGS == tags::NONE { EthernetHeader::LEN } else { frame.headers_len() };
        let written = write_frame(&to, (virtio_header, header), &from, batch.header_len + skipped, payload_len);
        debug_assert!(written, "a chain has the room that was counted");
    }

    /// The same where the frame or the chain is in several pieces.
    #[cold]
    #[inline(never)]
    fn write_apart<const HEADER: usize>(
        &self,
        batch: &Batch,
        frame: &Frame,
        header: &[u8; HEADER],
        chain: &Chain,
        payload_len: usize,
    ) {
        let plain = frame.offload.is_none() && self.features.long_header;
        if let (Some((first, second)), Some(to), true) = (batch.two_pieces(frame), chain.single(), plain) {
            let offset = batch.header_len + frame.headers_len();
            let written = write_two_pieces(&to, (&PLAIN_HEADER, header), (&first, offset), &second);
            debug_assert!(written, "a chain has the room that was counted");
            return;
        }
        let payload = batch.payload(frame);
        if HEADER == EthernetHeader::LEN {
            self.write_pieces(self.cursor(chain), 1, header, payload, payload_len, &frame.offload);
        } else {
            self.write_pieces(self.cursor(chain), 1, header, payload, payload_len, &frame.offload.with_tag());
        }
    }

    fn cursor(&self, chain: &Chain) -> Cursor<'_> {
        match chain.single() {
            Some(piece) => Cursor::of_one(piece),
            None => Cursor::new(chain.pieces(&self.pieces)),
        }
    }

    /// Writes a frame with a payload of `len` bytes to wherever `target` leads, in `chains` chains that have room for it.
    #[inline(always)]
    fn write_pieces<const HEADER: usize>(
        &self,
        mut target: Cursor<'_>,
        chains: u16,
        header: &[u8; HEADER],
        mut payload: Cursor<'_>,
        len: usize,
        offload: &Offload,
    ) {
        let virtio_header = long_header(offload, chains);
        let written =
            if self.features.long_header { target.write(&virtio_header) } else { target.write(&virtio_header[..SHORT_HEADER]) };
        let written = written && target.write(header) && target.copy_from(&mut payload, len);
        debug_assert!(written, "a frame and its buffers have the lengths that were counted");
    }

    /// A frame that takes several chains, or is to be finished first, or for which there is no room.
    #[cold]
    #[inline(never)]
    fn transmit_one(
        &mut self,
        queue: &mut impl Virtqueue,
        batch: &Batch,
        (frame, tag): (&Frame, Option<VlanTag>),
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), RingFault> {
        let (payload, len) = (batch.payload(frame), frame.len - EthernetHeader::LEN);
        let offload = &frame.offload;
        let delivered = if offload.is_none() || self.features.offloads_to_guest.cover(offload) {
            match tag {
                None => self.deliver(queue, &frame.header, payload, len, offload, tally),
                Some(tag) => self.deliver(queue, &push(&frame.header, tag), payload, len, &offload.with_tag(), tally),
            }
        } else {
            self.finish_and_deliver(queue, payload, (frame, tag), counters, tally)
        };
        delivered.or_else(|error| count_drop(error, counters))
    }

    /// One frame into as many chains as it takes. `len` bytes of `payload` follow the Ethernet header.
    fn deliver<const HEADER: usize>(
        &mut self,
        queue: &mut impl Virtqueue,
        header: &[u8; HEADER],
        payload: Cursor<'_>,
        len: usize,
        offload: &Offload,
        tally: &mut Tally,
    ) -> Result<(), TransmitError> {
        // No truncation: at most a frame and its header.
        let needed = (self.features.header_len() + HEADER + len) as u32;
        self.gather(queue, needed, false)?;
        // No truncation: bounded by what `gather` takes.
        self.write_pieces(Cursor::new(&self.pieces), self.chains.len() as u16, header, payload, len, offload);
        let mut left = needed;
        for chain in &self.chains {
            let written = left.min(chain.len);
            queue.complete(chain, written);
            left -= written;
        }
        tally.frames += 1;
        tally.bytes += (HEADER + len) as u64;
        Ok(())
    }

    /// Does what the sender left undone and this guest did not agree to do, on a private copy without the tag.
    #[inline(never)]
    fn finish_and_deliver(
        &mut self,
        queue: &mut impl Virtqueue,
        mut payload: Cursor<'_>,
        (frame, tag): (&Frame, Option<VlanTag>),
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
                let each = |part: &[u8]| match self.deliver_private(queue, part, &Offload::NONE, tag, tally) {
                    Err(TransmitError::Dropped(reason)) if reason != DropReason::ReceiverFull => {
                        counters.drop_frames(reason, 1);
                        true
                    }
                    delivered => {
                        outcome = delivered;
                        outcome.is_ok()
                    }
                };
                match (segment(&whole, checksum, segmentation, &mut part, each), outcome) {
                    (Err(reason), _) => Err(TransmitError::Dropped(reason)),
                    (Ok(left), Err(TransmitError::Dropped(reason))) => {
                        // There is no room for those that are left either. The one at hand is counted as every frame is.
                        counters.drop_frames(reason, left as u64);
                        Err(TransmitError::Dropped(reason))
                    }
                    (Ok(_), outcome) => outcome,
                }
            }
            (Some(checksum), None) => {
                complete_checksum(&mut whole, checksum);
                self.deliver_private(queue, &whole, &Offload::NONE, tag, tally)
            }
            (None, _) => self.deliver_private(queue, &whole, &Offload::NONE, tag, tally),
        };
        (self.whole, self.part) = (whole, part);
        outcome
    }

    fn deliver_private(
        &mut self,
        queue: &mut impl Virtqueue,
        frame: &[u8],
        offload: &Offload,
        tag: Option<VlanTag>,
        tally: &mut Tally,
    ) -> Result<(), TransmitError> {
        let (header, rest) = frame.split_first_chunk().ok_or(TransmitError::Dropped(DropReason::TooShort))?;
        let piece = Segment { ptr: rest.as_ptr().cast_mut(), len: rest.len() };
        let payload = Cursor::of_one(piece);
        match tag {
            None => self.deliver(queue, header, payload, rest.len(), offload, tally),
            Some(tag) => self.deliver(queue, &push(header, tag), payload, rest.len(), &offload.with_tag(), tally),
        }
    }

    fn reserve(
        &mut self,
        queue: &mut impl Virtqueue,
        len: usize,
        tag: Option<VlanTag>,
        pieces: &mut Vec<Segment>,
    ) -> Result<usize, TransmitError> {
        let before = self.features.header_len() + tag_len(tag);
        self.spent = 0;
        // No truncation: at most a frame and its header.
        self.gather(queue, (before + len) as u32, true)?;
        let room: usize = self.pieces.iter().map(|piece| piece.len).sum();
        part_of(&self.pieces, before, len, pieces);
        Ok(room.saturating_sub(before).min(len))
    }

    fn commit(
        &mut self,
        queue: &mut impl Virtqueue,
        (headers, tag): (&[u8], Option<VlanTag>),
        len: usize,
        offload: &Offload,
        tally: &mut Tally,
    ) {
        let len = len + tag_len(tag);
        // No truncation: at most a frame and its header.
        let mut left = (self.features.header_len() + len) as u32;
        let (mut room, mut needed) = (0, 0);
        while room < left && needed < self.chains.len() {
            room += self.chains[needed].len;
            needed += 1;
        }
        // No truncation: bounded by what `gather` takes.
        let virtio_header = match tag {
            None => long_header(offload, needed as u16),
            Some(_) => long_header(&offload.with_tag(), needed as u16),
        };
        let mut target = Cursor::new(&self.pieces);
        let written =
            if self.features.long_header { target.write(&virtio_header) } else { target.write(&virtio_header[..SHORT_HEADER]) };
        let written = written
            && match (tag, headers.split_first_chunk()) {
                (Some(tag), Some((header, rest))) => target.write(&push(header, tag)) && target.write(rest),
                _ => target.write(headers),
            };
        debug_assert!(written, "there is the room that was counted");
        queue.untake(self.chains[needed..].iter().map(|chain| chain.slots).sum());
        for chain in &self.chains[..needed] {
            let written = left.min(chain.len);
            queue.complete(chain, written);
            left -= written;
        }
        tally.frames += 1;
        tally.bytes += len as u64;
    }

    fn cancel(&mut self, queue: &mut impl Virtqueue) {
        queue.untake(self.chains.iter().map(|chain| chain.slots).sum());
    }

    /// Takes chains until they have room for `needed` bytes; all their pieces are in `self.pieces` then. Takes none when they
    /// don't, unless `fewer` will do.
    fn gather(&mut self, queue: &mut impl Virtqueue, needed: u32, fewer: bool) -> Result<(), TransmitError> {
        self.chains.clear();
        self.pieces.clear();
        let (mut room, mut cost, mut slots) = (0_u32, 0, 0);
        while room < needed {
            let no_more = (room > 0 && !self.features.mergeable) || cost >= MAX_BUFFERS as u32 || self.spent >= MAX_SPENT;
            if no_more && fewer && room > 0 {
                return Ok(());
            }
            if no_more {
                queue.untake(slots);
                return Err(TransmitError::Dropped(DropReason::ReceiverBufferTooSmall));
            }
            let mut chain = Chain::NONE;
            let taken = queue.take(needed - room, &mut self.pieces, &mut chain);
            let taken = taken.map_err(|fault| queue.base().explain(fault))?;
            if !taken && fewer && room > 0 {
                return Ok(());
            }
            if !taken {
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

/// The tag with which the frame of the lowest bit leaves. Where none do, or all, nobody looks which.
#[inline(always)]
fn tag_of_next<const TAGS: u8>(batch: &Batch, frames: FrameMask, tagged: FrameMask) -> Option<VlanTag> {
    tag_at::<TAGS>(batch, frames.trailing_zeros() as usize % BATCH, tagged)
}

/// The tag with which a frame leaves.
#[inline(always)]
pub(crate) fn tag_at<const TAGS: u8>(batch: &Batch, at: usize, tagged: FrameMask) -> Option<VlanTag> {
    let is_tagged = match TAGS {
        tags::NONE => false,
        tags::ALL => true,
        _ => tagged & 1 << at != 0,
    };
    is_tagged.then(|| batch.stamp(at).tag)
}

/// Puts a tag into a frame, behind its addresses.
pub(crate) fn put_tag(frame: &mut Vec<u8>, tag: VlanTag) {
    frame.splice(ADDRESSES_LEN..ADDRESSES_LEN, tag);
}

#[inline(always)]
fn tag_len(tag: Option<VlanTag>) -> usize {
    if tag.is_some() { TAG_LEN } else { 0 }
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
