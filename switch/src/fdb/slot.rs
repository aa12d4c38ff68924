//! Where a station stands in the table, as one atomic word.

use std::sync::atomic::Ordering;

use crate::sync::{AtomicU32, AtomicU64};
use crate::{MacAddr, MacKey, PortId};

/// Slots in a bucket: one cache line of 64 bytes.
pub(super) const WAYS: usize = 4;
/// The second in which a reserved address was last heard: it never gets old.
pub(super) const RESERVED_SECS: u32 = u32::MAX;
/// The same of a static entry.
pub(super) const STATIC_SECS: u32 = u32::MAX - 1;

/// A cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Bucket(pub(super) [Slot; WAYS]);

#[derive(Debug, Default)]
pub(super) struct Slot {
    /// A [`Station`].
    pub(super) station: AtomicU64,
    /// When it was last heard. Written before it, and later only forwards.
    pub(super) seen_secs: AtomicU32,
}

/// A key and a port, as one word. Zero, which is no key, in a free slot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Station(pub(super) u64);

/// What an address is searched for by: a [`Station`] without its port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(pub(super) u64);

impl Slot {
    /// What stands here, for whoever holds the lock and so sees the latest.
    pub(super) fn station(&self) -> Station {
        Station(self.station.load(Ordering::Relaxed))
    }

    pub(super) fn is_free(&self) -> bool {
        self.station() == Station::NONE
    }

    /// For whoever holds the lock, or may be wrong for a moment.
    pub(super) fn is_reserved(&self) -> bool {
        !self.is_free() && self.seen_secs() == RESERVED_SECS
    }

    /// The same for entries that were not learned: these are in no list and not counted.
    pub(super) fn is_fixed(&self) -> bool {
        !self.is_free() && self.seen_secs() >= STATIC_SECS
    }

    /// Writes an entry. Readers see it when they see its address.
    pub(super) fn set(&self, station: Station, seen_secs: u32) {
        self.seen_secs.store(seen_secs, Ordering::Relaxed);
        self.station.store(station.0, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.station.store(Station::NONE.0, Ordering::Release);
    }

    #[inline]
    pub(super) fn seen_secs(&self) -> u32 {
        self.seen_secs.load(Ordering::Relaxed)
    }
}

impl Station {
    pub(super) const NONE: Self = Self(0);
    const PORT: u64 = u16::MAX as u64;

    pub(super) fn new(key: Key, port: PortId) -> Self {
        Self(key.0 | u64::from(port.0))
    }

    /// The port, if the address is this one.
    #[inline(always)]
    pub(super) fn port_of(self, key: Key) -> Option<PortId> {
        let difference = self.0 ^ key.0;
        (difference <= Self::PORT).then_some(PortId(difference as u16))
    }

    pub(super) fn port(self) -> PortId {
        PortId(self.0 as u16)
    }

    pub(super) fn key(self) -> Key {
        Key(self.0 & !Self::PORT)
    }
}

impl Key {
    /// The bit that tells groups from stations: never set in a station's address, and set in every key, so that none is zero.
    const GROUP: u64 = 1;

    #[inline(always)]
    pub(super) fn new(mac: MacKey) -> Self {
        debug_assert!(!mac.is_multicast(), "a group is behind no port");
        Self((mac.as_u64() | Self::GROUP) << 16)
    }

    pub(super) fn mac(self) -> MacAddr {
        MacKey::from_u64(self.0 >> 16 & !Self::GROUP).into()
    }
}
