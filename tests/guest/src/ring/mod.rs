//! The driver's side of a ring (virtio 1.2, 2.7 and 2.8).
//!
//! Three areas in guest memory hold the ring ([`RingAreas`]); how they are used depends on its kind. A *split* ring has a
//! descriptor table, an available ring and a used ring. A *packed* ring has one ring of descriptors that both sides write, and
//! an area each for what they want to be notified of. [`Ring::add`] puts a chain there, [`Ring::publish`] shows everything
//! added to the back-end, [`Ring::take_used`] takes back what it has finished with and checks that it was ours to take back.
//! A [`Ring`] does that the same way for both kinds; which one it is follows from the negotiated features.
//!
//! Below these are the raw setters for a driver that lies, on [`RingAreas`]. They bypass the book-keeping on purpose: a ring
//! that has been lied with is brought back to sense by [`Ring::reset`].

mod chain;
mod packed;
mod split;

use std::fmt::Debug;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

pub use chain::{Buffer, Descriptor, Used};
use packed::PackedDriver;
pub use packed::{EventSuppression, PackedDescriptor};
pub(crate) use packed::{Position, Tail};
use split::SplitDriver;

use crate::{GuestAddr, GuestError, GuestMemory, UserAddr, feature};

const DESCRIPTOR_LEN: u64 = 16;
const PAGE: u64 = 4096;

/// Where the three areas of a ring are, as `SET_VRING_ADDR` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlace {
    /// The descriptor table, or the packed ring.
    pub descriptors: UserAddr,
    /// The available ring, or a packed ring's driver event suppression structure.
    pub avail: UserAddr,
    /// The used ring, or a packed ring's device event suppression structure.
    pub used: UserAddr,
}

/// What was negotiated about rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RingFeatures {
    pub(crate) packed: bool,
    pub(crate) event_idx: bool,
    pub(crate) in_order: bool,
}

impl RingFeatures {
    pub(crate) fn of(features: u64) -> Self {
        let has = |feature| features & feature != 0;
        Self { packed: has(feature::RING_PACKED), event_idx: has(feature::EVENT_IDX), in_order: has(feature::IN_ORDER) }
    }
}

/// The areas of a ring in guest memory, to be read and written whatever the book-keeping says.
///
/// A [`Ring`] derefs to its areas.
#[derive(Clone, Debug)]
pub struct RingAreas {
    memory: Arc<GuestMemory>,
    size: u16,
    descriptors: GuestAddr,
    avail: GuestAddr,
    used: GuestAddr,
    indirect_tables: GuestAddr,
}

/// The book-keeping of one kind of ring.
trait Driver: Debug + Send + Sync {
    /// Adds a chain for which there is room, not yet visible. Returns its head, or its buffer ID.
    fn add(&mut self, areas: &RingAreas, buffers: &[Buffer], indirect: bool) -> u16;
    /// What [`Driver::add`] will return next, if a descriptor is free.
    fn next_head(&self) -> Option<u16>;
    /// Free descriptors.
    fn free(&self) -> usize;
    /// Chains that the back-end holds.
    fn in_flight(&self) -> usize;
    /// Makes everything added visible. True if the back-end wants to be kicked for it.
    fn publish(&mut self, areas: &RingAreas, event_idx: bool) -> bool;
    /// True if a chain came back that was not taken yet.
    fn has_used(&self, areas: &RingAreas) -> bool;
    /// The next chain that came back, or the rule that the back-end broke.
    fn take_used(&mut self, areas: &RingAreas) -> Result<Option<Used>, String>;
    /// Asks for an interrupt for the next used chain.
    fn arm_interrupt(&self, areas: &RingAreas, event_idx: bool);
    /// Asks for no interrupts.
    fn disarm_interrupt(&self, areas: &RingAreas, event_idx: bool);
    /// Where a back-end that completes in order goes on if it has forgotten everything, as `SET_VRING_BASE` says it.
    fn resume_base(&self, areas: &RingAreas) -> u32;
}

/// One ring.
#[derive(Debug)]
pub struct Ring {
    areas: RingAreas,
    index: u16,
    features: RingFeatures,
    driver: Box<dyn Driver>,
    /// Where it is to go on at its next start, as `SET_VRING_BASE` says it.
    base: u32,
    kick: File,
    call: File,
    kicks: u64,
    calls: u64,
}

impl Ring {
    /// Bytes of guest memory for a ring of `size` descriptors, indirect tables included; whole pages.
    #[must_use]
    pub fn memory_len(size: u16) -> u64 {
        let size = u64::from(size);
        (RingAreas::area_len(size) * 3 + size * size * DESCRIPTOR_LEN).next_multiple_of(PAGE)
    }

    /// Lays a split ring out at `base`.
    ///
    /// # Errors
    /// When the operating system gives no eventfd.
    pub fn new(memory: Arc<GuestMemory>, index: u16, size: u16, base: GuestAddr) -> Result<Self, GuestError> {
        let area = RingAreas::area_len(u64::from(size));
        let (avail, used, indirect_tables) = (base + area, base + area * 2, base + area * 3);
        let eventfd = || match eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC) {
            Ok(descriptor) => Ok(File::from(descriptor)),
            Err(error) => Err(GuestError::io("make an eventfd", Duration::ZERO)(error.into())),
        };
        Ok(Self {
            areas: RingAreas { memory, size, descriptors: base, avail, used, indirect_tables },
            index,
            features: RingFeatures::default(),
            driver: Box::new(SplitDriver::new(size, false)),
            base: 0,
            kick: eventfd()?,
            call: eventfd()?,
            kicks: 0,
            calls: 0,
        })
    }

    /// Begins again as a freshly loaded driver does: empty areas, indexes at their start, nothing in flight.
    pub fn reset(&mut self) {
        self.areas.clear();
        let size = self.areas.size;
        if self.features.packed {
            self.driver = Box::new(PackedDriver::new(size, self.features.in_order));
            self.base = PackedDriver::START;
        } else {
            self.driver = Box::new(SplitDriver::new(size, self.features.in_order));
            self.base = 0;
        }
        drain(&self.call);
        drain(&self.kick);
    }

    /// Takes what was negotiated. A ring that is to be kept in another way than before begins again.
    pub(crate) fn set_features(&mut self, features: RingFeatures) {
        let old = std::mem::replace(&mut self.features, features);
        if (old.packed, old.in_order) != (features.packed, features.in_order) {
            self.reset();
        }
    }

    pub(crate) fn features(&self) -> RingFeatures {
        self.features
    }

    /// True for a packed ring, false for a split one.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.features.packed
    }

    /// The ring's index in the vhost-user protocol: odd ones come from the guest, even ones go to it.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Where the ring goes on at its next start, as `SET_VRING_BASE` says it: the available index of a split ring; of a packed
    /// one the next available descriptor in bits 0 to 14 and the next used one in 16 to 30, each with its wrap counter above it.
    #[must_use]
    pub fn base(&self) -> u32 {
        self.base
    }

    pub(crate) fn set_base(&mut self, base: u32) {
        self.base = base;
    }

    /// Goes on at the end of what the back-end has finished with, as after a crash of it.
    pub(crate) fn set_base_from_memory(&mut self) {
        self.base = self.driver.resume_base(&self.areas);
    }

    /// Written by us to wake the back-end.
    #[must_use]
    pub fn kick_fd(&self) -> &File {
        &self.kick
    }

    /// Written by the back-end to interrupt us.
    #[must_use]
    pub fn call_fd(&self) -> &File {
        &self.call
    }

    /// Chains that the back-end holds.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.driver.in_flight()
    }

    /// Free descriptors.
    #[must_use]
    pub fn free(&self) -> usize {
        self.driver.free()
    }

    /// Kicks sent so far.
    #[must_use]
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// Interrupts that came so far.
    pub fn calls(&mut self) -> u64 {
        self.calls += drain(&self.call);
        self.calls
    }

    /// Adds a chain of these buffers, not yet visible to the back-end. Returns its head: the first descriptor in a split ring,
    /// the buffer ID in a packed one.
    ///
    /// # Errors
    /// When there are not enough free descriptors.
    ///
    /// # Panics
    /// When there are no buffers, or more in an indirect table than the ring has descriptors.
    pub fn add(&mut self, buffers: &[Buffer], indirect: bool) -> Result<u16, GuestError> {
        assert!(!buffers.is_empty(), "a chain has at least one buffer");
        let fits = !indirect || buffers.len() <= usize::from(self.areas.size);
        assert!(fits, "an indirect table is no longer than the ring (2.7.5.3.1)");
        let needed = if indirect { 1 } else { buffers.len() };
        if self.free() < needed {
            return Err(GuestError::RingFull { ring: self.index, free: self.free(), needed });
        }
        Ok(self.driver.add(&self.areas, buffers, indirect))
    }

    /// The head that the next chain will have.
    ///
    /// # Panics
    /// When no descriptor is free.
    #[must_use]
    pub fn next_head(&self) -> u16 {
        self.driver.next_head().expect("a descriptor is free")
    }

    /// Shows the back-end every chain added so far. True if it wants to be kicked for it.
    pub fn publish(&mut self) -> bool {
        self.driver.publish(&self.areas, self.features.event_idx)
    }

    /// Publishes, and kicks if the back-end wants it.
    ///
    /// # Errors
    /// When the kick can't be sent.
    pub fn publish_and_kick(&mut self) -> Result<(), GuestError> {
        if self.publish() { self.kick() } else { Ok(()) }
    }

    /// Kicks, wanted or not.
    ///
    /// # Errors
    /// When the kick can't be sent.
    pub fn kick(&mut self) -> Result<(), GuestError> {
        self.kicks += 1;
        (&self.kick).write_all(&1_u64.to_ne_bytes()).map_err(GuestError::io("kick", Duration::ZERO))
    }

    /// True if the back-end has finished with a chain that was not yet taken back.
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.driver.has_used(&self.areas)
    }

    /// Takes back the next chain that the back-end has finished with.
    ///
    /// # Errors
    /// When the back-end returns what it was not given, or more than it was given.
    pub fn take_used(&mut self) -> Result<Option<Used>, GuestError> {
        self.driver.take_used(&self.areas).map_err(|what| self.broken(what))
    }

    /// Waits for an interrupt, or for a chain that needs none any more, at most `limit`. True if a chain is there.
    ///
    /// # Errors
    /// When the operating system refuses to wait.
    pub fn wait_used(&mut self, limit: Duration) -> Result<bool, GuestError> {
        let deadline = Instant::now() + limit;
        loop {
            self.arm_interrupt();
            if self.has_used() {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !crate::session::readable(&self.call, left).map_err(GuestError::io("wait for an interrupt", limit))? {
                return Ok(self.has_used());
            }
            self.calls();
        }
    }

    /// Looks for a used chain without interrupts, at most `limit`. True if one is there.
    #[must_use]
    pub fn poll_used(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.has_used() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// Asks for an interrupt for the next used chain.
    pub fn arm_interrupt(&mut self) {
        self.driver.arm_interrupt(&self.areas, self.features.event_idx);
        fence(Ordering::SeqCst);
    }

    /// Asks for no interrupts.
    pub fn disarm_interrupt(&mut self) {
        self.driver.disarm_interrupt(&self.areas, self.features.event_idx);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn broken(&self, what: String) -> GuestError {
        GuestError::BadRing { ring: self.index, what }
    }
}

impl Deref for Ring {
    type Target = RingAreas;

    fn deref(&self) -> &RingAreas {
        &self.areas
    }
}

impl RingAreas {
    /// Every area gets as much room as the largest of them needs, in whole pages.
    fn area_len(size: u64) -> u64 {
        (size * DESCRIPTOR_LEN + 6).next_multiple_of(PAGE)
    }

    /// Descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the ring is, as messages say it.
    #[must_use]
    pub fn place(&self) -> RingPlace {
        let user = |address| self.memory.user_address(address);
        RingPlace { descriptors: user(self.descriptors), avail: user(self.avail), used: user(self.used) }
    }

    /// Where the indirect table that belongs to the chain `head` lies; it has room for as many entries as the ring.
    #[must_use]
    pub fn indirect_table(&self, head: u16) -> GuestAddr {
        self.indirect_tables + u64::from(head) * u64::from(self.size) * DESCRIPTOR_LEN
    }

    fn clear(&self) {
        let area = usize::try_from(Self::area_len(u64::from(self.size))).expect("a ring is small");
        for address in [self.descriptors, self.avail, self.used] {
            self.memory.clear(address, area);
        }
    }
}

/// Takes the counter of a non-blocking eventfd.
fn drain(mut eventfd: &File) -> u64 {
    let mut counter = [0; 8];
    match eventfd.read_exact(&mut counter) {
        Ok(()) => u64::from_ne_bytes(counter),
        Err(_) => 0,
    }
}

/// True if an index that went from `old` to `new` has passed `event` (2.7.10).
fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
