//! The driver's side of a split ring (virtio 1.2, 2.7).
//!
//! Three areas in guest memory: the descriptor table and the available ring are written here, the used ring is
//! written by the back-end. [`Ring::add`] puts a chain into the table and the available ring, [`Ring::publish`] shows
//! everything added to the back-end, [`Ring::take_used`] takes back what it has finished with and checks that it was
//! ours to take back.
//!
//! Below these are the raw setters for a driver that lies. They bypass the book-keeping on purpose: a ring that has
//! been lied with is brought back to sense by [`Ring::reset`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};

use crate::{GuestAddr, GuestError, GuestMemory, UserAddr};

const DESCRIPTOR_LEN: u64 = 16;
const PAGE: u64 = 4096;

/// One entry of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Address of the buffer for the guest.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// [`Descriptor::NEXT`], [`Descriptor::WRITE`], [`Descriptor::INDIRECT`].
    pub flags: u16,
    /// The next entry, if `NEXT` is set.
    pub next: u16,
}

impl Descriptor {
    /// The chain goes on.
    pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    /// The back-end writes this buffer.
    pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

    /// The entry as it lies in memory.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A piece of guest memory that a chain hands to the back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where it starts.
    pub address: GuestAddr,
    /// Its length in bytes.
    pub len: u32,
    /// The back-end may write it; otherwise it may read it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer for the back-end to read.
    #[must_use]
    pub fn readable(address: GuestAddr, len: u32) -> Self {
        Self { address, len, writable: false }
    }

    /// A buffer for the back-end to write.
    #[must_use]
    pub fn writable(address: GuestAddr, len: u32) -> Self {
        Self { address, len, writable: true }
    }
}

/// Where the three areas of a ring are, as `SET_VRING_ADDR` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlace {
    /// The descriptor table.
    pub descriptors: UserAddr,
    /// The available ring.
    pub avail: UserAddr,
    /// The used ring.
    pub used: UserAddr,
}

/// A chain that the back-end has finished with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor.
    pub head: u16,
    /// Bytes that the back-end says it has written.
    pub len: u32,
}

/// One split ring.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<GuestMemory>,
    index: u16,
    size: u16,
    descriptors: GuestAddr,
    avail: GuestAddr,
    used: GuestAddr,
    indirect_tables: GuestAddr,
    event_idx: bool,
    /// Free descriptors; the one to take next is the last.
    free: Vec<u16>,
    /// The direct descriptors of each chain in flight, by its head.
    in_flight: HashMap<u16, Vec<u16>>,
    added: u16,
    published: u16,
    taken: u16,
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
        Self::area_len(size) * 3 + size * size * DESCRIPTOR_LEN
    }

    /// Every area gets as much room as the largest of them needs, in whole pages.
    fn area_len(size: u64) -> u64 {
        (size * DESCRIPTOR_LEN + 6).next_multiple_of(PAGE)
    }

    /// Lays a ring out at `base`.
    ///
    /// # Errors
    /// When the operating system gives no eventfd.
    pub fn new(memory: Arc<GuestMemory>, index: u16, size: u16, base: GuestAddr) -> Result<Self, GuestError> {
        let area = Self::area_len(u64::from(size));
        let eventfd = || match eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC) {
            Ok(descriptor) => Ok(File::from(descriptor)),
            Err(error) => Err(GuestError::io("make an eventfd", Duration::ZERO)(error.into())),
        };
        let mut ring = Self {
            memory,
            index,
            size,
            descriptors: base,
            avail: base + area,
            used: base + area * 2,
            indirect_tables: base + area * 3,
            event_idx: false,
            free: Vec::new(),
            in_flight: HashMap::new(),
            added: 0,
            published: 0,
            taken: 0,
            kick: eventfd()?,
            call: eventfd()?,
            kicks: 0,
            calls: 0,
        };
        ring.reset();
        Ok(ring)
    }

    /// Begins again as a freshly loaded driver does: empty areas, indexes at zero, nothing in flight.
    pub fn reset(&mut self) {
        let area = usize::try_from(Self::area_len(u64::from(self.size))).expect("a ring is small");
        for address in [self.descriptors, self.avail, self.used] {
            self.memory.clear(address, area);
        }
        self.free = (0..self.size).rev().collect();
        self.in_flight.clear();
        (self.added, self.published, self.taken) = (0, 0, 0);
        drain(&self.call);
        drain(&self.kick);
    }

    pub(crate) fn set_event_idx(&mut self, event_idx: bool) {
        self.event_idx = event_idx;
    }

    /// The ring's index in the vhost-user protocol: odd ones come from the guest, even ones go to it.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
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
        self.in_flight.len()
    }

    /// Free descriptors.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
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

    /// Adds a chain of these buffers, not yet visible to the back-end. Returns its head.
    ///
    /// # Errors
    /// When there are not enough free descriptors.
    ///
    /// # Panics
    /// When there are no buffers, or more in an indirect table than the ring has descriptors.
    pub fn add(&mut self, buffers: &[Buffer], indirect: bool) -> Result<u16, GuestError> {
        assert!(!buffers.is_empty(), "a chain has at least one buffer");
        let needed = if indirect { 1 } else { buffers.len() };
        if self.free.len() < needed {
            return Err(GuestError::RingFull { ring: self.index, free: self.free.len(), needed });
        }
        let mut entries = self.free.split_off(self.free.len() - needed);
        entries.reverse();
        let head = entries[0];
        if indirect {
            assert!(buffers.len() <= usize::from(self.size), "an indirect table is no longer than the ring (2.7.5.3.1)");
            let table = self.indirect_table(head);
            let places: Vec<u16> = (0..self.size).collect();
            for (at, descriptor) in chained(buffers, &places) {
                self.memory.write(table + u64::from(at) * DESCRIPTOR_LEN, &descriptor.bytes());
            }
            let len = u32::try_from(buffers.len() * 16).expect("a table is small");
            self.write_descriptor(head, Descriptor { address: table.0, len, flags: Descriptor::INDIRECT, next: 0 });
        } else {
            for (at, descriptor) in chained(buffers, &entries) {
                self.write_descriptor(at, descriptor);
            }
        }
        self.in_flight.insert(head, entries);
        self.write_avail_entry(self.added, head);
        self.added = self.added.wrapping_add(1);
        Ok(head)
    }

    /// The head that the next chain will have.
    ///
    /// # Panics
    /// When no descriptor is free.
    #[must_use]
    pub fn next_head(&self) -> u16 {
        *self.free.last().expect("a descriptor is free")
    }

    /// Shows the back-end every chain added so far. True if it wants to be kicked for it.
    pub fn publish(&mut self) -> bool {
        self.publish_index(self.added)
    }

    /// Shows the back-end the available ring up to `index`. True if it wants to be kicked for it.
    pub(crate) fn publish_index(&mut self, index: u16) -> bool {
        let old = self.published;
        self.published = index;
        self.write_avail_index(index);
        // The back-end's wish must be read after the index is visible, else both sides can miss each other (2.7.13.4.1).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.memory.load_u16(self.used + 4 + u64::from(self.size) * 8, Ordering::Relaxed);
            needs_event(event, self.published, old)
        } else {
            self.published != old && u32::from(self.used_flags()) & VRING_USED_F_NO_NOTIFY == 0
        }
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
        self.used_index() != self.taken
    }

    /// Takes back the next chain that the back-end has finished with.
    ///
    /// # Errors
    /// When the back-end returns what it was not given, or more than it was given.
    pub fn take_used(&mut self) -> Result<Option<Used>, GuestError> {
        let ready = self.used_index().wrapping_sub(self.taken);
        if ready == 0 {
            return Ok(None);
        }
        if usize::from(ready) > self.in_flight.len() {
            return Err(self.broken(format!("{ready} chains came back and {} were out", self.in_flight.len())));
        }
        let (id, len) = self.used_entry(self.taken);
        let head = u16::try_from(id).map_err(|_| self.broken(format!("chain {id:#x} came back")))?;
        let Some(entries) = self.in_flight.remove(&head) else {
            return Err(self.broken(format!("chain {head} came back and was not out")));
        };
        self.free.extend(entries.into_iter().rev());
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(Used { head, len }))
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
        if self.event_idx {
            self.write_used_event(self.taken);
        } else {
            self.write_avail_flags(0);
        }
        fence(Ordering::SeqCst);
    }

    /// Asks for no interrupts.
    pub fn disarm_interrupt(&mut self) {
        if self.event_idx {
            self.write_used_event(self.taken.wrapping_sub(1));
        } else {
            self.write_avail_flags(VRING_AVAIL_F_NO_INTERRUPT as u16);
        }
        fence(Ordering::SeqCst);
    }

    /// Where descriptor `at` of the table lies.
    #[must_use]
    pub fn descriptor_address(&self, at: u16) -> GuestAddr {
        self.descriptors + u64::from(at) * DESCRIPTOR_LEN
    }

    /// Where the available ring lies.
    #[must_use]
    pub fn avail_address(&self) -> GuestAddr {
        self.avail
    }

    /// Where the used ring lies.
    #[must_use]
    pub fn used_address(&self) -> GuestAddr {
        self.used
    }

    /// Where the indirect table that belongs to descriptor `head` lies; it has room for as many entries as the ring.
    #[must_use]
    pub fn indirect_table(&self, head: u16) -> GuestAddr {
        self.indirect_tables + u64::from(head) * u64::from(self.size) * DESCRIPTOR_LEN
    }

    /// Writes descriptor `at` of the table.
    pub fn write_descriptor(&self, at: u16, descriptor: Descriptor) {
        self.memory.write(self.descriptor_address(at), &descriptor.bytes());
    }

    /// Writes the head into the available ring, at an index that counts on past the ring's size.
    pub fn write_avail_entry(&self, index: u16, head: u16) {
        let at = u64::from(index % self.size);
        self.memory.store_u16(self.avail + 4 + at * 2, head, Ordering::Relaxed);
    }

    /// Writes the available index.
    pub fn write_avail_index(&self, index: u16) {
        self.memory.store_u16(self.avail + 2, index, Ordering::Release);
    }

    /// Writes the flags of the available ring.
    pub fn write_avail_flags(&self, flags: u16) {
        self.memory.store_u16(self.avail, flags, Ordering::Relaxed);
    }

    /// Writes `used_event`: the used index whose passing asks for an interrupt.
    pub fn write_used_event(&self, event: u16) {
        self.memory.store_u16(self.avail + 4 + u64::from(self.size) * 2, event, Ordering::Relaxed);
    }

    /// The available index as the back-end sees it.
    #[must_use]
    pub fn avail_index(&self) -> u16 {
        self.memory.load_u16(self.avail + 2, Ordering::Relaxed)
    }

    /// The used index as the back-end wrote it.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.memory.load_u16(self.used + 2, Ordering::Acquire)
    }

    /// The flags of the used ring as the back-end wrote them.
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        self.memory.load_u16(self.used, Ordering::Relaxed)
    }

    /// An entry of the used ring as the back-end wrote it: chain and length.
    #[must_use]
    pub fn used_entry(&self, index: u16) -> (u32, u32) {
        let entry = self.memory.bytes(self.used + 4 + u64::from(index % self.size) * 8, 8);
        let field = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        (field(0), field(4))
    }

    fn broken(&self, what: String) -> GuestError {
        GuestError::BadRing { ring: self.index, what }
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

/// The buffers as table entries at these places, each pointing to the next.
fn chained<'a>(buffers: &'a [Buffer], places: &'a [u16]) -> impl Iterator<Item = (u16, Descriptor)> + 'a {
    buffers.iter().zip(places).enumerate().map(move |(nth, (buffer, &place))| {
        let last = nth + 1 == buffers.len();
        let write = if buffer.writable { Descriptor::WRITE } else { 0 };
        let (next_flag, next) = if last { (0, 0) } else { (Descriptor::NEXT, places[nth + 1]) };
        (place, Descriptor { address: buffer.address.0, len: buffer.len, flags: write | next_flag, next })
    })
}

/// True if an index that went from `old` to `new` has passed `event` (2.7.10).
fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
