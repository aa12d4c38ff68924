//! Counters of a port, written by workers once per batch and read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

use strum::{EnumCount, IntoEnumIterator};
use weft_switch::DropReason;

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

/// What passed through a port, from its first guest to its last.
#[derive(Debug, Default)]
pub(crate) struct LiveCounters {
    pub(crate) from_guest_frames: Counter,
    pub(crate) from_guest_bytes: Counter,
    pub(crate) to_guest_frames: Counter,
    pub(crate) to_guest_bytes: Counter,
    pub(crate) notifications: Counter,
    drops: Drops,
}

/// By [`DropReason::index`].
#[derive(Debug)]
struct Drops([Counter; DropReason::COUNT]);

impl Default for Drops {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl LiveCounters {
    #[inline]
    pub(crate) fn drop_frames(&self, reason: DropReason, frames: u64) {
        self.drops.0[reason.index()].add(frames);
    }

    /// Every reason with its count.
    pub(crate) fn drops(&self) -> Vec<(DropReason, u64)> {
        DropReason::iter().map(|reason| (reason, self.drops.0[reason.index()].value())).collect()
    }
}
