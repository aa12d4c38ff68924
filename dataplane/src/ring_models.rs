//! Rings under a model checker: device and driver, each of which wants to be told by the other, and neither of which may sleep on what the
//! other has done. The device is the code that ships; what the driver does is what the specification asks of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE, VRING_USED_F_NO_NOTIFY,
};
use weft_model::{AtomicU16, AtomicU64, fence, outcomes, thread};

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use super::*;
use crate::memory::RegionSpec;

const PREEMPTIONS: usize = 4;
const SIZE: u16 = 4;
const MEMORY_LEN: u64 = 0x1000;
const LAYOUT: RingLayout = RingLayout { size: SIZE, descriptors: 0, available: 0x100, used: 0x200 };
/// Where a packed ring begins: index zero, wrap counter one.
const START: u32 = 0x8000;

const SPLIT: RingFeatures = RingFeatures { event_idx: false, indirect: false, packed: false, in_order: false };
const SPLIT_EVENT_IDX: RingFeatures = RingFeatures { event_idx: true, ..SPLIT };
const PACKED: RingFeatures = RingFeatures { packed: true, ..SPLIT };
const PACKED_EVENT_IDX: RingFeatures = RingFeatures { packed: true, ..SPLIT_EVENT_IDX };

/// A ring in which one buffer was offered and taken, and its driver.
fn ring(features: RingFeatures) -> (Ring, Chain, Driver) {
    let file: File = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap().into();
    ftruncate(&file, MEMORY_LEN).unwrap();
    // Of every descriptor the part that does not say whether it is available. In a split ring, all heads are the first one.
    (0..SIZE).for_each(|index| file.write_all_at(&0x800_u64.to_le_bytes(), 16 * u64::from(index)).unwrap());
    file.write_all_at(&0x100_u32.to_le_bytes(), 8).unwrap();
    let spec = RegionSpec { guest: 0, len: MEMORY_LEN, user: 0, file_offset: 0 };
    let memory = Arc::new(GuestMemory::default().with_region(spec, Arc::new(file)).unwrap());
    let call = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    let base = Base::new(&memory, features, Direction::FromGuest, Some(call));
    let mut ring = Ring::new(LAYOUT, START, base).unwrap();
    let driver = Driver { features, memory };
    // What a model shares begins before its threads do.
    let areas = [LAYOUT.available, LAYOUT.used].map(|area| (area..area + 0x40).step_by(2));
    for place in areas.into_iter().flatten() {
        let _ = driver.u16_at(place);
    }
    for index in 0..SIZE {
        let _ = driver.state(index);
    }
    driver.suppress_interrupts();
    driver.offer(0);
    let (mut chain, mut pieces) = (Chain::NONE, Vec::new());
    assert_eq!(ring.queue().take(0x1000, &mut pieces, &mut chain), Ok(true));
    assert_eq!((chain.len, chain.bad), (0x100, None));
    (ring, chain, driver)
}

/// The driver's side, in the order of sections 2.7.13, 2.7.14, 2.8.21 and 2.8.22.
struct Driver {
    features: RingFeatures,
    memory: Arc<GuestMemory>,
}

impl Driver {
    /// Offers the buffer of this number.
    fn offer(&self, number: u16) {
        if self.features.packed {
            let state = 0x100 | u64::from(number) << 32 | 1 << (48 + VRING_PACKED_DESC_F_AVAIL);
            self.state(number).store(state, Release);
        } else {
            self.u16_at(LAYOUT.available + 2).store(number + 1, Release);
        }
    }

    /// Whether the device, which was offered this buffer, is to be told.
    fn has_to_kick(&self, number: u16) -> bool {
        fence(SeqCst);
        match (self.features.packed, self.features.event_idx) {
            (true, _) => self.u16_at(LAYOUT.used + 2).load(Relaxed) != VRING_PACKED_EVENT_FLAG_DISABLE as u16,
            (false, true) => self.u16_at(LAYOUT.used + 4 + 8 * u64::from(SIZE)).load(Relaxed) == number,
            (false, false) => self.u16_at(LAYOUT.used).load(Relaxed) & VRING_USED_F_NO_NOTIFY as u16 == 0,
        }
    }

    fn suppress_interrupts(&self) {
        match (self.features.packed, self.features.event_idx) {
            (true, _) => self.u16_at(LAYOUT.available + 2).store(VRING_PACKED_EVENT_FLAG_DISABLE as u16, Relaxed),
            (false, true) => self.u16_at(LAYOUT.available + 4 + 2 * u64::from(SIZE)).store(u16::MAX, Relaxed),
            (false, false) => self.u16_at(LAYOUT.available).store(VRING_AVAIL_F_NO_INTERRUPT as u16, Relaxed),
        }
    }

    /// Asks for an interrupt when the first buffer comes back. True if it is back already.
    fn enable_interrupts(&self) -> bool {
        match (self.features.packed, self.features.event_idx) {
            (true, true) => {
                // The first place, in the first lap.
                self.u16_at(LAYOUT.available).store(START as u16, Relaxed);
                self.u16_at(LAYOUT.available + 2).store(VRING_PACKED_EVENT_FLAG_DESC as u16, Release);
            }
            (true, false) => self.u16_at(LAYOUT.available + 2).store(VRING_PACKED_EVENT_FLAG_ENABLE as u16, Relaxed),
            (false, true) => self.u16_at(LAYOUT.available + 4 + 2 * u64::from(SIZE)).store(0, Relaxed),
            (false, false) => self.u16_at(LAYOUT.available).store(0, Relaxed),
        }
        fence(SeqCst);
        if self.features.packed {
            self.state(0).load(Acquire) & 1 << (48 + VRING_PACKED_DESC_F_USED) != 0
        } else {
            self.u16_at(LAYOUT.used + 2).load(Acquire) == 1
        }
    }

    fn u16_at(&self, address: u64) -> &AtomicU16 {
        let place = self.memory.at_user(address, 2).unwrap();
        // SAFETY: a model's atomic asks for nothing.
        unsafe { AtomicU16::from_ptr(place.cast()) }
    }

    fn state(&self, index: u16) -> &AtomicU64 {
        let place = self.memory.at_user(16 * u64::from(index) + 8, 8).unwrap();
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(place.cast()) }
    }
}

/// Whether a device that goes to sleep sees the offer, and whether the driver that makes it kicks.
fn offer_meets_sleep(features: RingFeatures) -> BTreeSet<(bool, bool)> {
    outcomes(PREEMPTIONS, move || {
        let (mut ring, _, driver) = ring(features);
        let driver = thread::spawn(move || {
            driver.offer(1);
            driver.has_to_kick(1)
        });
        let seen = ring.queue().enable_kicks().unwrap();
        (seen, driver.join().unwrap())
    })
}

/// Whether a driver that goes to sleep sees its buffer come back, and whether the device that returns it notifies.
fn return_meets_sleep(features: RingFeatures) -> BTreeSet<(bool, bool)> {
    outcomes(PREEMPTIONS, move || {
        let (mut ring, chain, driver) = ring(features);
        let driver = thread::spawn(move || driver.enable_interrupts());
        ring.queue().complete(&chain, 0);
        let notified = ring.queue().publish().unwrap();
        (driver.join().unwrap(), notified)
    })
}

/// Everything but that nobody sees it and nobody is told.
fn never_missed() -> BTreeSet<(bool, bool)> {
    BTreeSet::from([(false, true), (true, false), (true, true)])
}

#[test]
fn a_device_never_sleeps_on_an_offer() {
    for features in [SPLIT, SPLIT_EVENT_IDX, PACKED, PACKED_EVENT_IDX] {
        assert_eq!(offer_meets_sleep(features), never_missed(), "{features:?}");
    }
}

#[test]
fn a_driver_never_sleeps_on_what_came_back() {
    for features in [SPLIT, SPLIT_EVENT_IDX, PACKED, PACKED_EVENT_IDX] {
        assert_eq!(return_meets_sleep(features), never_missed(), "{features:?}");
    }
}
