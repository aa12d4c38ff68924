//! Taps in the path of a batch.

use std::sync::Arc;

use weft_switch::loops::is_probe;
use weft_switch::{DropReason, EthernetHeader, Offload, PortId};

use super::{Contents, PortTaps, Sink, Tap, WireFrame};
use crate::from_guest::Batch;
use crate::gateway::{Dispatch, Receivers};
use crate::lane::{Lane, bits, mask_of};
use crate::memory::Segment;
use crate::ring_copy::Cursor;
use crate::snapshot::{PortLink, Snapshot};
use crate::to_guest::{VlanTag, tag_at, tags};
use crate::vhost_port::FrameMask;

/// Copies for monitor ports that wait until no ring is locked.
const MAX_COPIES: usize = 256;

/// Frames for monitor ports that could not be handed over at once: those that a NAT has written straight to a guest.
#[derive(Debug, Default)]
pub(crate) struct Copies(Vec<(PortId, Vec<u8>, Offload)>);

impl Lane {
    /// Shows what has come from a port's guest to whoever watches. False if it goes no further.
    #[inline(never)]
    pub(crate) fn watch_inward(&mut self, snapshot: &Snapshot, port: &PortLink, taps: &PortTaps, batch: &mut Batch) -> bool {
        self.fit(snapshot);
        for tap in &taps.inward {
            tap.glance_at(batch);
            self.watch::<{ tags::NONE }>(snapshot, tap, batch, batch.all(), 0);
        }
        if taps.is_monitor() {
            port.counters.drop_frames(DropReason::MonitorPort, batch.frames().len() as u64);
        }
        !taps.is_monitor()
    }

    /// Shows what is to be handed to a port's guest to whoever watches. Returns which of these frames it gets.
    #[inline(never)]
    pub(crate) fn watch_outward<const TAGS: u8>(
        &mut self,
        snapshot: &Snapshot,
        (port, taps): (&PortLink, &PortTaps),
        batch: &Batch,
        mut frames: FrameMask,
        tagged: FrameMask,
    ) -> FrameMask {
        if let Some(reason) = taps.shut {
            let is_probe = |at: &usize| reason == DropReason::LoopPaused && is_probe(&batch.frames()[*at].header);
            let probes = mask_of(bits(frames).filter(is_probe));
            port.counters.drop_frames(reason, (frames & !probes).count_ones().into());
            frames = probes;
        }
        for tap in &taps.outward {
            self.watch::<TAGS>(snapshot, tap, batch, frames, tagged);
        }
        frames
    }

    #[inline(always)]
    fn watch<const TAGS: u8>(&mut self, snapshot: &Snapshot, tap: &Tap, batch: &Batch, frames: FrameMask, tagged: FrameMask) {
        let Sink::Port(id, counters) = &tap.sink else {
            tap.capture::<TAGS>(batch, frames, tagged, &mut self.captured);
            return;
        };
        let picked = tap.pick::<TAGS>(batch, frames, tagged);
        if picked != 0
            && let Some(monitor) = monitor(snapshot, *id)
        {
            counters.frames.add(picked.count_ones().into());
            self.capture_copies::<TAGS>(monitor, batch, picked, tagged);
            self.deliver::<TAGS>(monitor, batch, picked, tagged);
        }
    }

    /// Shows a frame that was written straight to a port's guest, without a batch, to whoever watches.
    #[cold]
    #[inline(never)]
    pub(crate) fn watch_written(&mut self, taps: &PortTaps, written: &Written<'_>) {
        for tap in &taps.outward {
            if let Sink::Capture(queue, interface) = &tap.sink {
                queue.count_seen(*interface, 1);
            }
            let Some(frame) = written.frame() else { continue };
            if !tap.is_all() && !written.frame().is_some_and(|frame| tap.wants(frame)) {
                continue;
            }
            match &tap.sink {
                Sink::Capture(queue, interface) => {
                    queue.push((*interface, tap.is_inward), std::iter::once(frame), &mut self.captured);
                }
                Sink::Port(id, counters) if self.copies.0.len() < MAX_COPIES => {
                    let mut frame = frame;
                    let mut copy = vec![0; frame.len];
                    frame.read(&mut copy);
                    counters.frames.add(1);
                    self.copies.0.push((*id, copy, frame.offload));
                }
                Sink::Port(_, counters) => counters.lost.add(1),
            }
        }
    }

    /// Hands monitor ports the copies that wait. No ring to a guest is locked.
    pub(crate) fn send_copies(&mut self, snapshot: &Snapshot) {
        if self.copies.0.is_empty() {
            return;
        }
        self.fit(snapshot);
        let mut batch = self.own_batch.take().unwrap_or_else(|| Box::new(Batch::new()));
        let mut copies = std::mem::take(&mut self.copies.0);
        for (id, frame, offload) in copies.drain(..) {
            let Some(monitor) = monitor(snapshot, id) else { continue };
            let dispatch = Dispatch { to: Receivers::One(id), from: None, frame, offload, stamp: None };
            batch.fill_private(std::iter::once(dispatch), crate::vlan::Stamp::NONE);
            self.capture_copies::<{ tags::NONE }>(monitor, &batch, 1, 0);
            self.deliver::<{ tags::NONE }>(monitor, &batch, 1, 0);
        }
        self.copies.0 = copies;
        self.own_batch = Some(batch);
    }

    /// What a monitor port gets is seen by captures of it.
    #[inline(always)]
    fn capture_copies<const TAGS: u8>(&mut self, monitor: &PortLink, batch: &Batch, frames: FrameMask, tagged: FrameMask) {
        for tap in monitor.taps.iter().flat_map(|taps| &taps.outward) {
            tap.capture::<TAGS>(batch, frames, tagged, &mut self.captured);
        }
    }
}

/// A port, if it is the end of a mirror: its number may be another one's by now.
fn monitor(snapshot: &Snapshot, id: PortId) -> Option<&PortLink> {
    snapshot.port(id).map(Arc::as_ref).filter(|port| port.taps.as_ref().is_some_and(|taps| taps.is_monitor()))
}

impl Tap {
    /// Takes what it is about of these frames into a capture, if it is one's.
    #[inline(always)]
    fn capture<const TAGS: u8>(&self, batch: &Batch, frames: FrameMask, tagged: FrameMask, copies: &mut Contents) {
        let Sink::Capture(queue, interface) = &self.sink else { return };
        queue.count_seen(*interface, frames.count_ones().into());
        let picked = self.pick::<TAGS>(batch, frames, tagged);
        if picked != 0 {
            let on_wire = |at: usize| WireFrame::of(batch, &batch.frames()[at], tag_at::<TAGS>(batch, at, tagged));
            queue.push((*interface, self.is_inward), bits(picked).map(on_wire), copies);
        }
    }
}

/// A frame in a guest's buffers.
#[derive(Debug)]
pub(crate) struct Written<'a> {
    /// Where it is, without its tag.
    pub(crate) pieces: &'a [Segment],
    pub(crate) len: usize,
    /// Its private beginning.
    pub(crate) headers: &'a [u8],
    pub(crate) tag: Option<VlanTag>,
    pub(crate) offload: &'a Offload,
}

impl<'a> Written<'a> {
    fn frame(&self) -> Option<WireFrame<'a>> {
        let payload = Cursor::new(self.pieces).skip(EthernetHeader::LEN);
        Some(WireFrame::new(self.headers.first_chunk()?, self.tag, payload, self.len, self.offload))
    }
}
