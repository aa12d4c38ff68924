//! Counters of a port, written by workers once per batch and read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

use strum::{EnumCount, IntoEnumIterator};
use weft_switch::DropReason;

use crate::from_guest::Batch;
use crate::vhost_port::FrameMask;

/// A counter that wraps after centuries.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Frames for groups.
#[derive(Debug, Default)]
pub(crate) struct GroupCounters {
    pub(crate) multicast: Counter,
    pub(crate) broadcast: Counter,
}

impl GroupCounters {
    /// Counts the frames of a mask, which are for groups: those for everybody and the others.
    #[cold]
    pub(crate) fn add(&self, batch: &Batch, groups: FrameMask) {
        let broadcast = batch.broadcasts(groups).count_ones();
        self.broadcast.add(broadcast.into());
        self.multicast.add((groups.count_ones() - broadcast).into());
    }
}

/// What passed through a port, from its first guest to its last.
#[derive(Debug)]
pub(crate) struct LiveCounters {
    pub(crate) from_guest_frames: Counter,
    pub(crate) from_guest_bytes: Counter,
    pub(crate) from_guest_groups: GroupCounters,
    pub(crate) to_guest_frames: Counter,
    pub(crate) to_guest_bytes: Counter,
    pub(crate) to_guest_groups: GroupCounters,
    pub(crate) notifications: Counter,
    drops: [Counter; DropReason::COUNT],
}

impl Default for LiveCounters {
    fn default() -> Self {
        Self {
            from_guest_frames: Counter::default(),
            from_guest_bytes: Counter::default(),
            from_guest_groups: GroupCounters::default(),
            to_guest_frames: Counter::default(),
            to_guest_bytes: Counter::default(),
            to_guest_groups: GroupCounters::default(),
            notifications: Counter::default(),
            drops: [const { Counter(AtomicU64::new(0)) }; DropReason::COUNT],
        }
    }
}

impl LiveCounters {
    #[inline]
    pub(crate) fn drop_frames(&self, reason: DropReason, frames: u64) {
        self.drops[reason.index()].add(frames);
    }

    /// Every reason with its count.
    pub(crate) fn drops(&self) -> Vec<(DropReason, u64)> {
        DropReason::iter().map(|reason| (reason, self.drops[reason.index()].value())).collect()
    }
}
