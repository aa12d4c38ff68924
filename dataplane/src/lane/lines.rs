//! Frames that enter the lines of ports, and those that leave them.

use weft_switch::line::Moment;
use weft_switch::{Offload, Timestamp};

use super::{Lane, bits};
use crate::from_guest::Batch;
use crate::gateway::private_copy;
use crate::line::{PortLine, Way};
use crate::snapshot::{PortLink, Snapshot};
use crate::to_guest::{VlanTag, put_tag, tags};
use crate::vhost_port::{BATCH, FrameMask};
use crate::vlan::Stamp;

/// The most batches that leave one line in a round, and the bytes after which none begins.
const BATCHES: usize = 4;
const BYTES: u64 = 1 << 20;

impl Lane {
    /// The frames of a batch that came from a guest enter its line.
    #[cold]
    #[inline(never)]
    pub(super) fn hold_batch(&mut self, port: &PortLink, line: &PortLine, batch: &Batch) {
        let mut copies = Vec::with_capacity(BATCH);
        for frame in batch.frames() {
            match frame.header() {
                Ok(_) => copies.push(with_tag(copy_of(batch, frame), frame.offload, None)),
                Err(reason) => port.counters.drop_frames(reason, 1),
            }
        }
        self.hold_copies(port, line, copies);
    }

    /// The frames of a mask enter the line to their receiver.
    #[cold]
    #[inline(never)]
    pub(super) fn hold(&mut self, port: &PortLink, line: &PortLine, batch: &Batch, frames: FrameMask, tagged: FrameMask) {
        let copy = |bit: usize| {
            let frame = &batch.frames()[bit];
            let tag = (tagged & 1 << bit != 0).then(|| batch.stamp(bit).tag);
            with_tag(copy_of(batch, frame), frame.offload, tag)
        };
        self.hold_copies(port, line, bits(frames).map(copy).collect());
    }

    /// Frames enter a line. They are copies already: nobody waits for its lock while a guest's memory is read.
    fn hold_copies(&mut self, port: &PortLink, line: &PortLine, copies: Vec<(Vec<u8>, Offload)>) {
        self.moved += copies.iter().map(|(frame, _)| frame.len() as u64).sum::<u64>();
        let mut entrance = line.enter(self.clock.moment(), &port.counters);
        copies.into_iter().for_each(|(frame, offload)| entrance.put(frame, offload));
        entrance.leave(self.worker);
    }

    /// A frame in weft's own memory enters the line to its receiver, with the tag with which it leaves.
    pub(crate) fn hold_private(&self, port: &PortLink, line: &PortLine, frame: Vec<u8>, tag: Option<VlanTag>, offload: &Offload) {
        let (frame, offload) = with_tag(frame, *offload, tag);
        let mut entrance = line.enter(self.clock.moment(), &port.counters);
        entrance.put(frame, offload);
        entrance.leave(self.worker);
    }

    /// False when so much waits on a line that whoever can wait with sending had better do so.
    pub(crate) fn has_room(&self, line: &PortLine) -> bool {
        line.has_room(self.clock.moment())
    }

    /// When the next frame leaves a line whose home this worker is, and how long that is from now.
    pub(crate) fn next_departure(&self, snapshot: &Snapshot) -> Option<std::time::Duration> {
        let due = snapshot.lines_at(self.worker).iter().map(|(_, line)| line.due()).min()?;
        (due != Moment::NEVER).then(|| due.since(self.clock.moment()))
    }

    /// Carries on with the frames that are due on the lines whose home this worker is. True if there were any.
    pub(crate) fn release_lines(&mut self, snapshot: &Snapshot, now: Timestamp) -> bool {
        let lines = snapshot.lines_at(self.worker);
        if lines.is_empty() {
            return false;
        }
        self.fit(snapshot);
        let (moment, mut busy) = (self.clock.moment(), false);
        for (port, line) in lines {
            let before = self.moved;
            for _ in 0..BATCHES {
                if line.due() > moment || self.moved - before >= BYTES {
                    break;
                }
                busy |= self.release_batch(snapshot, port, line, (moment, now));
            }
        }
        busy
    }

    fn release_batch(
        &mut self,
        snapshot: &Snapshot,
        port: &PortLink,
        line: &PortLine,
        (moment, now): (Moment, Timestamp),
    ) -> bool {
        let mut due = std::mem::take(&mut self.departing);
        line.take_due(moment, BATCH, &mut due);
        let count = due.len();
        let mut batch = self.line_batch.take().unwrap_or_else(|| Box::new(Batch::new()));
        batch.fill_private(due.drain(..), Stamp::NONE);
        self.departing = due;
        if count > 0 {
            match line.way {
                Way::FromGuest => {
                    self.contain(port, |lane| lane.take_in(snapshot, port, &mut batch, now));
                }
                Way::ToGuest => {
                    self.hand_over::<{ tags::NONE }>(snapshot, port, &batch, batch.all(), 0);
                }
            }
        }
        // What has left takes no memory.
        batch.fill_private(std::iter::empty(), Stamp::NONE);
        self.line_batch = Some(batch);
        count > 0
    }
}

/// A frame as it leaves, with this tag.
fn with_tag(mut frame: Vec<u8>, offload: Offload, tag: Option<VlanTag>) -> (Vec<u8>, Offload) {
    let Some(tag) = tag else { return (frame, offload) };
    put_tag(&mut frame, tag);
    (frame, offload.with_tag())
}

/// A frame in memory of its own, with room for a tag.
fn copy_of(batch: &Batch, frame: &crate::from_guest::Frame) -> Vec<u8> {
    let mut copy = Vec::with_capacity(frame.len + weft_switch::TAG_LEN);
    private_copy(batch, frame, &mut copy);
    copy
}
