//! Ports that somebody watches: captures and mirrors.
//!
//! # Theory
//!
//! A port that nobody watches has no [`PortTaps`], and a batch asks for nothing more than whether there are any: once when it was received, and once for each
//! receiver. On one that is watched, a [`Tap`] picks the frames of the batch that it is about, as they are on that port's wire: on the way in as the
//! guest has sent them, before anything is decided about them; on the way out as the guest gets them, with their tag. Whether there is room for them in its ring
//! is found out later.
//!
//! What was picked goes to one of two places. A [capture](queue) copies it, as much as its snap length says, into a buffer in weft's own memory, from where a thread
//! that is neither a worker nor the owner fetches it: where that is slow the buffer is full, and what does not fit is counted as lost. A mirror hands the
//! frames to the ring of its monitor port as if they had one receiver more, so they are copied once and nothing else.
//!
//! What a mirror sends is seen by captures of the monitor port and by no mirror, so there are no loops, whatever is mirrored to where. A monitor port is no member
//! of its network: it gets nothing but copies, and what its guest sends is dropped.
//!
//! Lock order: the lock of a capture's buffer comes last, after that of a ring. A worker holds it while it hands over its copies of what it has picked of a batch, the reader while
//! it puts an empty buffer in place of a full one.

mod lane;
mod owner;
mod queue;

use std::sync::Arc;

use weft_switch::filter::{Filter, Quick};
use weft_switch::vlan::push;
use weft_switch::{DropReason, EthernetHeader, Offload, PortId, TAG_LEN};

use crate::counters::Counter;
use crate::from_guest::{Batch, Frame};
use crate::lane::bits;
use crate::ring_copy::Cursor;
use crate::to_guest::{VlanTag, tag_at, tags};
use crate::vhost_port::FrameMask;

pub(crate) use lane::{Copies, Written};
pub(crate) use owner::Watches;
pub use owner::{MAX_MIRRORS, MirrorSettings, MirrorStatus, WatchSettings};
pub use queue::{Capture, CaptureCounters, CaptureStopper, CapturedFrame};
pub(crate) use queue::{CaptureQueue, Contents};

/// Who watches a port, and whether anything goes to its guest at all.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortTaps {
    /// What its guest sends.
    pub(crate) inward: Vec<Tap>,
    /// What its guest gets.
    pub(crate) outward: Vec<Tap>,
    /// Why it is a member of no network: nothing that others send goes to its guest.
    pub(crate) shut: Option<DropReason>,
}

impl PortTaps {
    pub(crate) fn is_empty(&self) -> bool {
        self.inward.is_empty() && self.outward.is_empty() && self.shut.is_none()
    }

    /// It is the end of a mirror.
    pub(crate) fn is_monitor(&self) -> bool {
        self.shut == Some(DropReason::MonitorPort)
    }

    /// The same for a port that is paused.
    pub(crate) fn paused(taps: Option<&Self>) -> Self {
        Self { shut: Some(DropReason::LoopPaused), ..taps.cloned().unwrap_or_default() }
    }
}

/// Somebody who watches a port in one direction.
#[derive(Clone, Debug)]
pub(crate) struct Tap {
    wants: Arc<Wants>,
    /// Only what is in this VLAN.
    vlan: Option<VlanPick>,
    is_inward: bool,
    sink: Sink,
}

/// Which frames somebody wants.
#[derive(Debug)]
struct Wants {
    filter: Filter,
    quick: Quick,
}

/// A VLAN as a port's wire shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct VlanPick {
    number: u16,
    /// Frames without a tag are in it.
    untagged: bool,
}

/// Where frames go that were picked.
#[derive(Clone, Debug)]
enum Sink {
    /// To a capture, as those of one of its interfaces.
    Capture(Arc<CaptureQueue>, usize),
    /// To a monitor port.
    Port(PortId, Arc<MirrorCounters>),
}

/// What a mirror has done.
#[derive(Debug, Default)]
struct MirrorCounters {
    frames: Counter,
    lost: Counter,
}

/// A frame as it is on the wire of a port.
#[derive(Debug)]
pub(crate) struct WireFrame<'a> {
    header: [u8; EthernetHeader::LEN + TAG_LEN],
    header_len: usize,
    payload: Cursor<'a>,
    /// Bytes in all.
    len: usize,
    /// Left undone by its sender.
    offload: Offload,
}

impl<'a> WireFrame<'a> {
    /// With a tag in front, if there is one. `len` counts it not.
    fn new(header: &[u8; EthernetHeader::LEN], tag: Option<VlanTag>, payload: Cursor<'a>, len: usize, offload: &Offload) -> Self {
        let mut bytes = [0; EthernetHeader::LEN + TAG_LEN];
        match tag {
            None => {
                bytes[..EthernetHeader::LEN].copy_from_slice(header);
                Self { header: bytes, header_len: EthernetHeader::LEN, payload, len, offload: *offload }
            }
            Some(tag) => {
                let header = push(header, tag);
                Self { header, header_len: header.len(), payload, len: len + TAG_LEN, offload: offload.with_tag() }
            }
        }
    }

    fn of(batch: &'a Batch, frame: &Frame, tag: Option<VlanTag>) -> Self {
        Self::new(&frame.header, tag, batch.payload(frame), frame.len, &frame.offload)
    }

    /// Copies as much of its beginning as there is room for.
    fn read(&mut self, into: &mut [u8]) {
        let (header, rest) = into.split_at_mut(self.header_len.min(into.len()));
        header.copy_from_slice(&self.header[..header.len()]);
        let copied = self.payload.read(rest);
        debug_assert!(copied, "a frame has the length that was counted");
    }
}

impl Tap {
    /// True if it is about all frames.
    fn is_all(&self) -> bool {
        self.wants.filter.is_all() && self.vlan.is_none()
    }

    /// Which of some frames it is about. `TAGS`, one of [`tags`], says which of them leave with a tag.
    #[inline(always)]
    fn pick<const TAGS: u8>(&self, batch: &Batch, frames: FrameMask, tagged: FrameMask) -> FrameMask {
        let is_all = self.is_all();
        // Who gets a tag looks different on the wire.
        let unseen = if TAGS == tags::NONE { 0 } else { frames & tagged };
        let mut picked = 0;
        for at in bits((self.sift(batch) & frames) | unseen) {
            let frame = &batch.frames()[at];
            let is_meant = || is_all || self.wants(WireFrame::of(batch, frame, tag_at::<TAGS>(batch, at, tagged)));
            if frame.header().is_ok() && is_meant() {
                picked |= 1 << at;
            }
        }
        picked
    }

    /// Keeps what [`Self::sift`] says, for the other ports on which somebody looks for the same. A frame that loses its tag until then was
    /// not ruled out by anything behind it.
    fn glance_at(&self, batch: &mut Batch) {
        if self.vlan.is_none() {
            batch.glanced = Some((self.wants.quick, self.sift(batch)));
        }
    }

    /// The frames of a batch that a glance does not rule out, if they leave without a tag.
    #[inline(always)]
    fn sift(&self, batch: &Batch) -> FrameMask {
        match (self.wants.quick, batch.glanced) {
            _ if self.vlan.is_some() => FrameMask::MAX,
            (quick, Some((same, left))) if quick == same => left,
            (quick, _) => glance_for(quick, batch),
        }
    }

    /// A look into a frame.
    #[cold]
    #[inline(never)]
    fn wants(&self, mut frame: WireFrame<'_>) -> bool {
        let mut beginning = [0; Filter::LOOKS_AT];
        let len = frame.len.min(beginning.len());
        frame.read(&mut beginning[..len]);
        let facts = weft_switch::filter::Facts::of(&beginning[..len], frame.len, frame.offload.checksum);
        let is_in_vlan = self.vlan.is_none_or(|vlan| match facts.outer_vlan().filter(|&number| number != 0) {
            None => vlan.untagged,
            Some(number) => number == vlan.number,
        });
        is_in_vlan && self.wants.filter.matches(&facts)
    }
}

/// The frames of a batch that a glance does not rule out. What is looked at is chosen outside the loop.
#[inline(never)]
fn glance_for(quick: Quick, batch: &Batch) -> FrameMask {
    match quick {
        Quick::Unknown => FrameMask::MAX,
        Quick::EtherTypes(types) => glance(Quick::EtherTypes(types), batch),
        Quick::Mac(address) => glance(Quick::Mac(address), batch),
        Quick::Address(address) => glance(Quick::Address(address), batch),
        Quick::Protocol(protocol) => glance(Quick::Protocol(protocol), batch),
        Quick::Ports(first, last) => glance(Quick::Ports(first, last), batch),
    }
}

#[inline(always)]
fn glance(quick: Quick, batch: &Batch) -> FrameMask {
    let mut left = 0;
    for (at, frame) in batch.frames().iter().enumerate() {
        left |= FrameMask::from(!quick.rules_out(&frame.header, |place| batch.word(frame, place))) << at;
    }
    left
}

impl Wants {
    fn new(filter: Filter) -> Arc<Self> {
        let quick = filter.quick();
        Arc::new(Self { filter, quick })
    }
}
