//! What has come into a VLAN.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one VLAN, for as long as some port is a member. Written once a batch.
#[derive(Debug, Default)]
pub struct VlanTraffic {
    frames: AtomicU64,
    bytes: AtomicU64,
    multicast: AtomicU64,
    broadcast: AtomicU64,
}

/// What has come into a VLAN from its ports, whatever became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VlanCounters {
    /// Frames.
    pub frames: u64,
    /// Their bytes, without a tag that was taken off, and without FCS.
    pub bytes: u64,
    /// Those of the frames that were for a group, but not for everybody.
    pub multicast: u64,
    /// Those for everybody.
    pub broadcast: u64,
}

impl VlanTraffic {
    /// Adds what was counted.
    #[inline]
    pub fn add(&self, VlanCounters { frames, bytes, multicast, broadcast }: VlanCounters) {
        self.frames.fetch_add(frames, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if multicast + broadcast > 0 {
            self.multicast.fetch_add(multicast, Ordering::Relaxed);
            self.broadcast.fetch_add(broadcast, Ordering::Relaxed);
        }
    }

    /// All that was added.
    #[must_use]
    pub fn counters(&self) -> VlanCounters {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        VlanCounters {
            frames: value(&self.frames),
            bytes: value(&self.bytes),
            multicast: value(&self.multicast),
            broadcast: value(&self.broadcast),
        }
    }
}
