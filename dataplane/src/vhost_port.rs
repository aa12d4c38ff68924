//! The two directions of a vhost-user port: frames taken from a guest, frames handed to it.
//!
//! What a guest sends stays in its memory; only the Ethernet header is copied, and from then on the private copy is the
//! truth: it is what the decision is made on and what the receiver gets, whatever the guest writes in the meantime.
//! The payload is copied once, straight into the receiver's buffers.

use std::ops::Range;

use weft_switch::{DropReason, EthernetHeader, MAX_FRAME_LEN, Offload, OffloadFeatures, SegmentKind, complete_checksum, segment};

use crate::counters::LiveCounters;
use crate::memory::Segment;
use crate::ring::{Cursor, MAX_BUFFERS, RingFault, SplitRing};

/// The most frames in a batch.
pub(crate) const BATCH: usize = 32;
/// Length of a virtio-net header with `num_buffers` (virtio 1.2, section 5.1.6.1).
const LONG_HEADER: usize = 12;
/// The same without, for drivers that negotiated neither VERSION_1 nor MRG_RXBUF.
const SHORT_HEADER: usize = 10;
/// A virtio-net header and the Ethernet header behind it.
const LONG_HEADERS: usize = LONG_HEADER + EthernetHeader::LEN;
const SHORT_HEADERS: usize = SHORT_HEADER + EthernetHeader::LEN;
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
#[derive(Debug)]
pub(crate) struct Frame {
    /// The chain to give back.
    head: u16,
    /// The frame's buffers, as a range of [`Batch::pieces`].
    pieces: Range<usize>,
    /// Bytes in the buffers before what follows the Ethernet header.
    skip: usize,
    /// Bytes of the frame, Ethernet header included.
    len: usize,
    /// The private copy of the Ethernet header, or why the frame goes no further.
    header: Result<[u8; EthernetHeader::LEN], DropReason>,
    /// What its sender left undone, checked.
    offload: Offload,
}

impl Frame {
    /// The private copy of the Ethernet header, or why the frame goes no further.
    pub(crate) fn header(&self) -> Result<&[u8; EthernetHeader::LEN], DropReason> {
        self.header.as_ref().map_err(|&reason| reason)
    }

    /// Bytes of the frame; zero if it can't be used.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies the Ethernet header out of a chain, and reads the virtio-net header before it. `self.len` has to be known.
    #[inline]
    fn read_headers(
        &mut self,
        pieces: &[Segment],
        header_len: usize,
        agreed: OffloadFeatures,
    ) -> Result<[u8; EthernetHeader::LEN], DropReason> {
        if self.len < EthernetHeader::LEN {
            return Err(DropReason::TooShort);
        }
        // One move for both headers, of a size that the compiler knows.
        let mut cursor = Cursor::new(pieces);
        let headers = if header_len == LONG_HEADER {
            cursor.read_array::<LONG_HEADERS>().map(|both| (*head(&both), *tail(&both)))
        } else {
            cursor.read_array::<SHORT_HEADERS>().map(|both| (*head(&both), *tail(&both)))
        };
        let (virtio_header, header) = headers.ok_or(DropReason::TooShort)?;
        if Offload::is_asked_for(&virtio_header) {
            self.offload = Offload::parse(virtio_header, self.len, agreed)?;
        }
        Ok(header)
    }
}

/// The frames that one ring gave in one round, with the places of their bytes. Reused from round to round.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    frames: Vec<Frame>,
    pieces: Vec<Segment>,
    /// The bytes of a frame that comes from weft itself.
    private: Vec<u8>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { frames: Vec::with_capacity(BATCH), pieces: Vec::with_capacity(1024), private: Vec::new() }
    }

    /// A batch of one frame that no guest sent.
    pub(crate) fn of_private(frame: Vec<u8>) -> Self {
        let mut batch = Self { frames: Vec::new(), pieces: Vec::new(), private: frame };
        let len = batch.private.len();
        batch.pieces.push(Segment { ptr: batch.private.as_mut_ptr(), len });
        let header = batch.private.first_chunk().copied().ok_or(DropReason::TooShort);
        let offload = Offload::NONE;
        batch.frames.push(Frame { head: 0, pieces: 0..1, skip: EthernetHeader::LEN, len, header, offload });
        batch
    }

    pub(crate) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    pub(crate) fn clear(&mut self) {
        self.frames.clear();
        self.pieces.clear();
    }
}

/// The ring in which a guest offers frames to send.
#[derive(Debug)]
pub(crate) struct FromGuest {
    pub(crate) ring: SplitRing,
    features: FrameFeatures,
}

impl FromGuest {
    pub(crate) fn new(ring: SplitRing, features: FrameFeatures) -> Self {
        Self { ring, features }
    }

    /// Takes up to [`BATCH`] frames; fewer, if they are spread over very many buffers. What was taken before a fault is
    /// in the batch all the same.
    pub(crate) fn receive(&mut self, batch: &mut Batch) -> Result<(), RingFault> {
        batch.clear();
        let header_len = self.features.header_len();
        let mut cost = 0;
        while batch.frames.len() < BATCH && cost < MAX_BUFFERS {
            let start = batch.pieces.len();
            let taken = self.ring.take(header_len + MAX_FRAME_LEN, &mut batch.pieces);
            let Some(chain) = taken.map_err(|fault| self.ring.explain(fault))? else {
                break;
            };
            cost += chain.cost;
            let pieces = start..batch.pieces.len();
            let chain_len = chain.len.unwrap_or(0);
            let mut frame = Frame {
                head: chain.head,
                pieces,
                skip: header_len + EthernetHeader::LEN,
                len: chain_len.saturating_sub(header_len),
                header: Err(DropReason::TooShort),
                offload: Offload::NONE,
            };
            frame.header = match chain.len {
                Ok(_) => frame.read_headers(&batch.pieces[start..], header_len, self.features.offloads_from_guest),
                Err(reason) => Err(reason),
            };
            if frame.header.is_err() {
                frame.len = 0;
            }
            batch.frames.push(frame);
        }
        Ok(())
    }

    /// Gives the chains of a batch back. True if the guest was notified.
    pub(crate) fn flush(&mut self, batch: &Batch) -> Result<bool, RingFault> {
        for frame in &batch.frames {
            // Nothing was written into them (virtio 1.2, section 2.7.8.2).
            self.ring.complete(frame.head, 0);
        }
        self.ring.publish()
    }
}

/// The ring in which a guest offers buffers for what it is to receive.
#[derive(Debug)]
pub(crate) struct ToGuest {
    pub(crate) ring: SplitRing,
    features: FrameFeatures,
    /// Of the frame at hand: its chains with the bytes that each holds, and all their pieces.
    chains: Vec<(u16, usize)>,
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
    pub(crate) fn new(ring: SplitRing, features: FrameFeatures) -> Self {
        let (chains, pieces) = (Vec::with_capacity(64), Vec::with_capacity(256));
        Self { ring, features, chains, pieces, whole: Vec::new(), part: Vec::new() }
    }

    /// Copies a frame of `batch` into the guest's next buffers; what does not fit is counted in `counters`. Seen by the guest
    /// after [`Self::flush`].
    pub(crate) fn transmit(
        &mut self,
        batch: &Batch,
        frame: &Frame,
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), RingFault> {
        let Ok(header) = &frame.header else { return Ok(()) };
        let payload = Cursor::new(&batch.pieces[frame.pieces.clone()]).skip(frame.skip);
        let offload = &frame.offload;
        let delivered = if offload.is_none() || self.features.offloads_to_guest.cover(offload) {
            self.deliver(header, payload, frame.len, offload, tally)
        } else {
            self.finish_and_deliver(header, payload, frame, counters, tally)
        };
        delivered.or_else(|error| count_drop(error, counters))
    }

    /// One frame into as many chains as it takes. `payload` is what follows the Ethernet header of a frame of `len` bytes.
    #[inline(always)]
    fn deliver(
        &mut self,
        header: &[u8; EthernetHeader::LEN],
        mut payload: Cursor<'_>,
        len: usize,
        offload: &Offload,
        tally: &mut Tally,
    ) -> Result<(), TransmitError> {
        let header_len = self.features.header_len();
        let needed = header_len + len;
        self.gather(needed)?;

        let mut headers = [0; LONG_HEADERS];
        if !offload.is_none() {
            headers[..SHORT_HEADER].copy_from_slice(&offload.header(headers_len(offload)));
        }
        let mut target = Cursor::new(&self.pieces);
        let written = if header_len == LONG_HEADER {
            // Section 5.1.6.4: 1 even where frames are never spread. The count is bounded by the ring's size.
            headers[SHORT_HEADER..LONG_HEADER].copy_from_slice(&(self.chains.len() as u16).to_le_bytes());
            headers[LONG_HEADER..].copy_from_slice(header);
            target.write_array(&headers)
        } else {
            headers[SHORT_HEADER..SHORT_HEADERS].copy_from_slice(header);
            target.write_array::<SHORT_HEADERS>(head(&headers))
        };
        let copied = written && target.copy_from(&mut payload, len - EthernetHeader::LEN);
        debug_assert!(copied, "a frame and its buffers have the lengths that were counted");

        let mut left = needed;
        for &(head, room) in &self.chains {
            let written = left.min(room);
            // No truncation: at most a frame and its header.
            self.ring.complete(head, written as u32);
            left -= written;
        }
        tally.frames += 1;
        tally.bytes += len as u64;
        Ok(())
    }

    /// Does what the sender left undone and this guest did not agree to do, on a private copy.
    #[cold]
    #[inline(never)]
    fn finish_and_deliver(
        &mut self,
        header: &[u8; EthernetHeader::LEN],
        mut payload: Cursor<'_>,
        frame: &Frame,
        counters: &LiveCounters,
        tally: &mut Tally,
    ) -> Result<(), TransmitError> {
        let (mut whole, mut part) = (std::mem::take(&mut self.whole), std::mem::take(&mut self.part));
        whole.clear();
        whole.extend_from_slice(header);
        whole.resize(frame.len, 0);
        let copied = payload.read(&mut whole[EthernetHeader::LEN..]);
        debug_assert!(copied, "a frame has the length that was counted");
        let outcome = match (frame.offload.checksum, frame.offload.segmentation) {
            (Some(checksum), Some(segmentation)) => {
                let mut outcome = Ok(());
                let cut = segment(&whole, checksum, segmentation, &mut part, |part| {
                    if outcome.is_ok() {
                        outcome = self.deliver_private(part, tally).or_else(|error| count_drop(error, counters));
                    }
                });
                cut.map_err(TransmitError::Dropped).and(outcome.map_err(TransmitError::Fault))
            }
            (Some(checksum), None) => {
                complete_checksum(&mut whole, checksum);
                self.deliver_private(&whole, tally)
            }
            (None, _) => self.deliver_private(&whole, tally),
        };
        (self.whole, self.part) = (whole, part);
        outcome
    }

    fn deliver_private(&mut self, frame: &[u8], tally: &mut Tally) -> Result<(), TransmitError> {
        let (header, rest) = frame.split_first_chunk().ok_or(TransmitError::Dropped(DropReason::TooShort))?;
        let pieces = [Segment { ptr: rest.as_ptr().cast_mut(), len: rest.len() }];
        self.deliver(header, Cursor::new(&pieces), frame.len(), &Offload::NONE, tally)
    }

    /// Lets the guest see its frames. True if it was notified.
    pub(crate) fn flush(&mut self) -> Result<bool, RingFault> {
        self.ring.publish()
    }

    /// Takes chains until they have room for `needed` bytes. Takes none when they don't.
    fn gather(&mut self, needed: usize) -> Result<(), TransmitError> {
        self.chains.clear();
        self.pieces.clear();
        let (mut room, mut cost) = (0, 0);
        while room < needed {
            if (room > 0 && !self.features.mergeable) || cost >= MAX_BUFFERS {
                self.ring.untake(self.chains.len() as u16);
                return Err(TransmitError::Dropped(DropReason::ReceiverBufferTooSmall));
            }
            let taken = self.ring.take(needed - room, &mut self.pieces);
            let Some(chain) = taken.map_err(|fault| self.ring.explain(fault))? else {
                // No truncation: at most as many as the ring has entries.
                self.ring.untake(self.chains.len() as u16);
                return Err(TransmitError::Dropped(DropReason::ReceiverFull));
            };
            cost += chain.cost;
            self.chains.push((chain.head, chain.len.unwrap_or(0)));
            match chain.len {
                Ok(len) => room += len,
                Err(reason) => {
                    // In order with the others of this frame, so that the ring can be resumed from its used index.
                    for &(head, _) in &self.chains {
                        self.ring.complete(head, 0);
                    }
                    return Err(TransmitError::Dropped(reason));
                }
            }
        }
        Ok(())
    }
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

/// The last `N` of `M` bytes.
fn tail<const N: usize, const M: usize>(bytes: &[u8; M]) -> &[u8; N] {
    bytes.last_chunk().expect("N is at most M")
}
