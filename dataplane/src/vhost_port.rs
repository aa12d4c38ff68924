//! The two directions of a vhost-user port: frames taken from a guest, frames handed to it.
//!
//! What a guest sends stays in its memory; only the Ethernet header is copied, and from then on the private copy is the
//! truth: it is what the decision is made on and what the receiver gets, whatever the guest writes in the meantime.
//! The payload is copied once, straight into the receiver's buffers.

use std::ops::Range;

use virtio_bindings::virtio_net::{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE};
use weft_switch::{DropReason, EthernetHeader, MAX_FRAME_LEN};

use crate::memory::Segment;
use crate::ring::{Cursor, MAX_BUFFERS, RingFault, SplitRing};

/// The most frames in a batch.
pub(crate) const BATCH: usize = 32;
/// Length of a virtio-net header with `num_buffers` (virtio 1.2, section 5.1.6.1).
const LONG_HEADER: usize = 12;
/// The same without, for drivers that negotiated neither VERSION_1 nor MRG_RXBUF.
const SHORT_HEADER: usize = 10;

/// What the driver agreed to, as far as frames care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrameFeatures {
    /// Frames carry the long virtio-net header.
    pub(crate) long_header: bool,
    /// A frame for the guest may be spread over several chains.
    pub(crate) mergeable: bool,
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
        batch.frames.push(Frame { head: 0, pieces: 0..1, skip: EthernetHeader::LEN, len, header });
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
            let header = chain.len.and_then(|len| read_headers(&batch.pieces[start..], len, header_len));
            batch.frames.push(Frame {
                head: chain.head,
                pieces,
                skip: header_len + EthernetHeader::LEN,
                len: if header.is_ok() { chain_len - header_len } else { 0 },
                header,
            });
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

/// Copies the Ethernet header out of a chain, after a look at the virtio-net header before it.
#[inline]
fn read_headers(pieces: &[Segment], chain_len: usize, header_len: usize) -> Result<[u8; EthernetHeader::LEN], DropReason> {
    if chain_len < header_len + EthernetHeader::LEN {
        return Err(DropReason::TooShort);
    }
    let mut both = [0; LONG_HEADER + EthernetHeader::LEN];
    let both = &mut both[..header_len + EthernetHeader::LEN];
    if !Cursor::new(pieces).read(both) {
        return Err(DropReason::TooShort);
    }
    let (flags, gso_type) = (u32::from(both[0]), u32::from(both[1]));
    if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 || gso_type != VIRTIO_NET_HDR_GSO_NONE {
        return Err(DropReason::UnagreedOffload);
    }
    let (_, header) = both.split_last_chunk().ok_or(DropReason::TooShort)?;
    Ok(*header)
}

/// The ring in which a guest offers buffers for what it is to receive.
#[derive(Debug)]
pub(crate) struct ToGuest {
    pub(crate) ring: SplitRing,
    features: FrameFeatures,
    /// Of the frame at hand: its chains with the bytes that each holds, and all their pieces.
    chains: Vec<(u16, usize)>,
    pieces: Vec<Segment>,
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
        Self { ring, features, chains: Vec::with_capacity(64), pieces: Vec::with_capacity(256) }
    }

    /// Copies a frame of `batch` into the guest's next buffers. Seen by the guest after [`Self::flush`].
    pub(crate) fn transmit(&mut self, batch: &Batch, frame: &Frame) -> Result<(), TransmitError> {
        let header = frame.header.as_ref().map_err(|&reason| TransmitError::Dropped(reason))?;
        let header_len = self.features.header_len();
        let needed = header_len + frame.len;
        self.gather(needed)?;

        let mut virtio_header = [0; LONG_HEADER];
        // Section 5.1.6.4: 1 even where frames are never spread. The count is bounded by the ring's size.
        virtio_header[SHORT_HEADER..].copy_from_slice(&(self.chains.len() as u16).to_le_bytes());
        let mut target = Cursor::new(&self.pieces);
        let mut payload = Cursor::new(&batch.pieces[frame.pieces.clone()]).skip(frame.skip);
        let copied = target.write(&virtio_header[..header_len])
            && target.write(header)
            && target.copy_from(&mut payload, frame.len - EthernetHeader::LEN);
        debug_assert!(copied, "a frame and its buffers have the lengths that were counted");

        let mut left = needed;
        for &(head, room) in &self.chains {
            let written = left.min(room);
            // No truncation: at most a frame and its header.
            self.ring.complete(head, written as u32);
            left -= written;
        }
        Ok(())
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
