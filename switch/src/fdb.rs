//! The forwarding database: which station was last heard behind which port.
//!
//! # Theory
//!
//! Workers look addresses up and refresh them for every frame; new addresses are rare. So reading and refreshing take
//! no lock, and everything that changes *which* addresses are in the table takes one.
//!
//! A [`Slot`] holds an address and its port in one atomic word: nobody reads one with another's, however often the slot changes
//! hands meanwhile. The second of the last frame stands beside it. Whoever reads that a moment later may get a later
//! owner's, and find an address that was too old. So the worst that a race can do is to send a frame to a place
//! that the address had a moment ago, which a moving station causes as well. (That word has no room for a VLAN: each needs a table of its
//! own.)
//!
//! An address may stand in either of two buckets of [`WAYS`] slots, picked by a hash that is keyed at random, since guests choose the
//! addresses. The table has at least twice as many slots as it may hold entries, so both buckets are rarely full; then an entry in
//! them moves to its own other bucket, as in cuckoo hashing. Only if none of eight can, one of them makes way. A reader may
//! look for an entry just before it comes to one bucket and just after it has gone from the other. So whoever finds nothing
//! looks again, and makes sure that nothing moved meanwhile.
//!
//! Bounded and fair: a full table makes way for a new address by evicting from the port that has the most entries (the
//! learning port itself, when it is one of them), about the one not heard of for the longest. So a guest that invents
//! addresses evicts its own, once it has more than the others.
//!
//! Lock order: [`Fdb::book`] is the only lock. Workers only ever try it: whoever finds it taken learns with the next
//! frame.

mod book;
mod slot;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, TryLockError};
use std::time::Duration;

use self::book::Book;
use self::slot::{Bucket, Key, RESERVED_SECS, Slot, Station, WAYS};
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard};
use crate::{MacAddr, MacKey, PortId, Timestamp};

/// How often an entry is looked for while others move.
const LOOKS: usize = 16;
/// Entries that get a second chance before one of them is evicted all the same.
const SECOND_CHANCES: usize = 8;

/// Size and ageing of a forwarding database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbSettings {
    /// The most MAC addresses that are kept, 1 to 2^20.
    pub capacity: usize,
    /// An address that was not heard of for this long is forgotten. Counted in whole seconds.
    pub ageing: Duration,
}

/// What a forwarding database did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FdbCounters {
    /// New addresses.
    pub learned: u64,
    /// Addresses that appeared on another port.
    pub moved: u64,
    /// Addresses that made way for others because the table was full.
    pub evicted: u64,
    /// Addresses that were not heard of for too long.
    pub expired: u64,
}

/// One line of a forwarding database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The station.
    pub mac: MacAddr,
    /// The port behind which it was last heard.
    pub port: PortId,
    /// How long ago, in whole seconds.
    pub age: Duration,
}

/// What learning did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The address was there, behind this port.
    Known,
    /// The address is new.
    New,
    /// The address was behind this other port until now.
    Moved(PortId),
    /// Somebody else is changing the table; the next frame will teach it.
    Later,
    /// The address is reserved for somebody who is not a station of this port.
    Reserved,
}

/// The forwarding database of one network. Shared by all workers.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[Bucket]>,
    /// One less than the number of buckets, which is a power of two.
    bucket_mask: usize,
    hash: ahash::RandomState,
    capacity: AtomicUsize,
    ageing_secs: AtomicU32,
    len: AtomicUsize,
    learned: AtomicU64,
    moved: AtomicU64,
    evicted: AtomicU64,
    expired: AtomicU64,
    /// How often an entry moved from one bucket to the other.
    relocations: AtomicU64,
    book: Mutex<Book>,
}

/// The slot of an address.
struct Found<'a> {
    index: usize,
    slot: &'a Slot,
    port: PortId,
}

impl Fdb {
    /// An empty table.
    ///
    /// # Panics
    /// When the capacity is not within 1 to 2^20.
    #[must_use]
    pub fn new(settings: FdbSettings) -> Self {
        Self::with_hash(settings, ahash::RandomState::new())
    }

    fn with_hash(settings: FdbSettings, hash: ahash::RandomState) -> Self {
        assert!((1..=1 << 20).contains(&settings.capacity), "capacity of a forwarding database: {}", settings.capacity);
        let slots = slots_for(settings.capacity);
        Self {
            buckets: (0..slots / WAYS).map(|_| Bucket::default()).collect(),
            bucket_mask: slots / WAYS - 1,
            hash,
            capacity: AtomicUsize::new(settings.capacity),
            ageing_secs: AtomicU32::new(ageing_secs(settings.ageing)),
            len: AtomicUsize::new(0),
            learned: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            relocations: AtomicU64::new(0),
            book: Mutex::new(Book::new(slots)),
        }
    }

    /// The port behind which `mac`, the address of a station, was last heard, unless that was too long ago.
    #[inline(always)]
    pub fn lookup(&self, now: Timestamp, mac: impl Into<MacKey>) -> Option<PortId> {
        let key = Key::new(mac.into());
        let found = self.find(key).or_else(|| self.find_for_sure(key))?;
        (!self.is_stale(now, found.slot.seen_secs())).then_some(found.port)
    }

    /// Remembers that `mac`, the address of a station, was heard behind `port`. Writes only when that says something new.
    #[inline(always)]
    pub fn learn(&self, now: Timestamp, mac: impl Into<MacKey>, port: PortId) -> Learned {
        let key = Key::new(mac.into());
        match self.find(key) {
            Some(Found { slot, port: known, .. }) if known == port => {
                if slot.seen_secs() < now.as_secs() {
                    // A new owner of the slot was not heard earlier, or it hardly matters.
                    slot.seen_secs.fetch_max(now.as_secs(), Ordering::Relaxed);
                }
                Learned::Known
            }
            _ => self.learn_news(now, key, port),
        }
    }

    /// Keeps `mac` for `port`, whoever else claims it, until it is [`release`](Self::release)d. Reserved addresses are few: they don't
    /// count as entries, and don't make way.
    pub fn reserve(&self, mac: impl Into<MacKey>, port: PortId) {
        let mut book = self.lock();
        let key = Key::new(mac.into());
        let index = match self.find(key) {
            Some(Found { index, slot, .. }) => {
                if !slot.is_reserved() {
                    self.remove(&mut book, index);
                }
                index
            }
            None => self.free_slot(&mut book, key),
        };
        let slot = self.slot(index);
        slot.seen_secs.store(RESERVED_SECS, Ordering::Relaxed);
        slot.station.store(Station::new(key, port).0, Ordering::Release);
    }

    /// The opposite of [`Self::reserve`].
    pub fn release(&self, mac: impl Into<MacKey>) {
        let _book = self.lock();
        if let Some(Found { slot, .. }) = self.find(Key::new(mac.into())).filter(|found| found.slot.is_reserved()) {
            slot.station.store(Station::NONE.0, Ordering::Release);
        }
    }

    /// Forgets addresses that were not heard of for the ageing time. To be called every few seconds.
    pub fn expire(&self, now: Timestamp) {
        let mut book = self.lock();
        for index in 0..self.slots() {
            let slot = self.slot(index);
            if !slot.is_free() && self.is_stale(now, slot.seen_secs()) {
                self.remove(&mut book, index);
                self.expired.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Forgets every address behind `port`.
    pub fn forget_port(&self, port: PortId) {
        let mut book = self.lock();
        while let Some(index) = book.oldest(port) {
            self.remove(&mut book, index);
        }
    }

    /// Forgets everything; returns how many addresses there were.
    pub fn flush(&self) -> usize {
        let mut book = self.lock();
        let before = self.len();
        for index in 0..self.slots() {
            if !self.slot(index).is_free() && !self.slot(index).is_reserved() {
                self.remove(&mut book, index);
            }
        }
        before
    }

    /// Changes the ageing time, for old entries as well.
    pub fn set_ageing(&self, ageing: Duration) {
        self.ageing_secs.store(ageing_secs(ageing), Ordering::Relaxed);
    }

    /// This table with other settings: itself, if its memory is right for them, else a copy. If there is less room, every port keeps its fair share. What a worker
    /// learns meanwhile may be missing in a copy, and is learned again.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with_settings(self: &Arc<Self>, settings: FdbSettings) -> Arc<Self> {
        if self.slots() == slots_for(settings.capacity) {
            self.set_ageing(settings.ageing);
            self.set_capacity(settings.capacity);
            return Arc::clone(self);
        }
        let copy = Self::new(settings);
        {
            let _book = self.lock();
            for slot in self.buckets.iter().flat_map(|Bucket(ways)| ways).filter(|slot| !slot.is_free()) {
                let station = slot.station();
                if slot.is_reserved() {
                    copy.reserve(station.key().mac(), station.port());
                } else {
                    copy.learn(Timestamp::from_millis(u64::from(slot.seen_secs()) * 1000), station.key().mac(), station.port());
                }
            }
        }
        let counted = self.counters();
        copy.learned.store(counted.learned, Ordering::Relaxed);
        copy.moved.store(counted.moved, Ordering::Relaxed);
        copy.evicted.fetch_add(counted.evicted, Ordering::Relaxed);
        copy.expired.store(counted.expired, Ordering::Relaxed);
        Arc::new(copy)
    }

    /// Changes how many addresses are kept, within the memory that there is.
    fn set_capacity(&self, capacity: usize) {
        let mut book = self.lock();
        self.capacity.store(capacity, Ordering::Relaxed);
        while self.len() > capacity {
            let victim = self.least_deserving(&mut book, PortId::GATEWAY);
            self.evict(&mut book, victim);
        }
    }

    /// The most addresses that this table keeps.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity.load(Ordering::Relaxed)
    }

    /// How many addresses are in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// True when nothing was learned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the table did since it was made.
    #[must_use]
    pub fn counters(&self) -> FdbCounters {
        FdbCounters {
            learned: self.learned.load(Ordering::Relaxed),
            moved: self.moved.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
        }
    }

    /// Every address that was learned and is not too old, in no particular order.
    #[must_use]
    pub fn entries(&self, now: Timestamp) -> Vec<FdbEntry> {
        let _book = self.lock();
        let occupied = self.buckets.iter().flat_map(|Bucket(ways)| ways).filter(|slot| !slot.is_free() && !slot.is_reserved());
        let fresh = occupied.filter(|slot| !self.is_stale(now, slot.seen_secs()));
        let entry = |slot: &Slot| {
            let (station, age_secs) = (slot.station(), now.as_secs().saturating_sub(slot.seen_secs()));
            FdbEntry { mac: station.key().mac(), port: station.port(), age: Duration::from_secs(age_secs.into()) }
        };
        fresh.map(entry).collect()
    }

    /// The slot of `key`. An entry that moves between its buckets at this moment may be missed.
    #[inline(always)]
    fn find(&self, key: Key) -> Option<Found<'_>> {
        for bucket in self.buckets_of(key) {
            let Bucket(ways) = &self.buckets[bucket];
            for (way, slot) in ways.iter().enumerate() {
                if let Some(port) = Station(slot.station.load(Ordering::Acquire)).port_of(key) {
                    return Some(Found { index: bucket * WAYS + way, slot, port });
                }
            }
        }
        None
    }

    /// As [`Self::find`], but an entry that moves is not missed. Whoever looks for it too early where it comes to, and too late where
    /// it came from, sees that it was counted in between: the counter is read before the one and after the other.
    #[cold]
    fn find_for_sure(&self, key: Key) -> Option<Found<'_>> {
        // Again only while others learn, and are crowded, each time. One that moves in every one of them is flooded.
        for _ in 0..LOOKS {
            let before = self.relocations.load(Ordering::Acquire);
            let found = self.find(key);
            if found.is_some() || self.relocations.load(Ordering::Relaxed) == before {
                return found;
            }
        }
        None
    }

    fn slot(&self, index: usize) -> &Slot {
        &self.buckets[index / WAYS].0[index % WAYS]
    }

    fn slots(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// The two buckets in which `key` may stand.
    #[inline(always)]
    fn buckets_of(&self, key: Key) -> [usize; 2] {
        let hash = self.hash.hash_one(key.0) as usize;
        [hash & self.bucket_mask, hash >> 32 & self.bucket_mask]
    }

    #[cold]
    fn learn_news(&self, now: Timestamp, key: Key, port: PortId) -> Learned {
        // Whether or not the lock can be had: nobody gets through with it by chance.
        if self.find(key).is_some_and(|found| found.slot.is_reserved()) {
            return Learned::Reserved;
        }
        let mut book = match self.book.try_lock() {
            Ok(book) => book,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Learned::Later,
        };
        let station = Station::new(key, port);
        if let Some(Found { index, port: old, .. }) = self.find(key) {
            book.unlink(index, old);
            self.put(&mut book, index, station, now.as_secs());
            if old == port {
                return Learned::Known;
            }
            self.moved.fetch_add(1, Ordering::Relaxed);
            return Learned::Moved(old);
        }
        if self.len() >= self.capacity() {
            let victim = self.least_deserving(&mut book, port);
            self.evict(&mut book, victim);
        }
        let index = self.free_slot(&mut book, key);
        self.put(&mut book, index, station, now.as_secs());
        self.len.fetch_add(1, Ordering::Relaxed);
        self.learned.fetch_add(1, Ordering::Relaxed);
        Learned::New
    }

    /// The slot that makes way in a full table: about the oldest of the port with the most entries.
    fn least_deserving(&self, book: &mut Book, learner: PortId) -> usize {
        let port = book.largest(learner);
        for _ in 0..SECOND_CHANCES {
            let Some(index) = book.oldest(port) else { break };
            let seen_secs = self.slot(index).seen_secs();
            if seen_secs == book.links[index].appended_secs {
                return index;
            }
            // Heard of since it was put in line: back to the end.
            book.unlink(index, port);
            book.append(index, port, seen_secs);
        }
        book.oldest(port).expect("a full table has a largest port, and that has an oldest entry")
    }

    /// A free slot for `key`. When both its buckets are full, an entry in them moves to its other bucket; when none can, the one
    /// that belongs to the largest port goes.
    fn free_slot(&self, book: &mut Book, key: Key) -> usize {
        let [first, second] = self.buckets_of(key);
        let candidates = || slots_of(first).chain(slots_of(second)).filter(|&index| !self.slot(index).is_reserved());
        let is_free = |&index: &usize| self.slot(index).is_free();
        let free_in = |bucket: usize| slots_of(bucket).filter(is_free).count();
        let roomier = if free_in(second) > free_in(first) { second } else { first };
        if let Some(index) = slots_of(roomier).find(is_free) {
            return index;
        }
        for index in candidates() {
            if let Some(free) = self.other_bucket(index).find(is_free) {
                self.relocate(book, index, free);
                return index;
            }
        }
        let crowding = |&index: &usize| book.count(self.slot(index).station().port());
        let victim = candidates().max_by_key(crowding).expect("a bucket has slots");
        self.evict(book, victim);
        victim
    }

    /// The slots of the bucket in which the entry at `index` may stand as well.
    fn other_bucket(&self, index: usize) -> std::ops::Range<usize> {
        let [first, second] = self.buckets_of(self.slot(index).station().key());
        slots_of(if index / WAYS == first { second } else { first })
    }

    /// Moves an entry to a free slot. It stands in both for a moment, and is counted meanwhile: see [`Self::find_for_sure`].
    fn relocate(&self, book: &mut Book, from: usize, to: usize) {
        let slot = self.slot(from);
        self.put(book, to, slot.station(), slot.seen_secs());
        self.relocations.fetch_add(1, Ordering::Release);
        self.clear(book, from);
    }

    fn evict(&self, book: &mut Book, index: usize) {
        self.remove(book, index);
        self.evicted.fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, book: &mut Book, index: usize) {
        self.clear(book, index);
        self.len.fetch_sub(1, Ordering::Relaxed);
    }

    /// Writes an entry into a slot that is in no list, and appends it to its port's.
    fn put(&self, book: &mut Book, index: usize, station: Station, seen_secs: u32) {
        let slot = self.slot(index);
        slot.seen_secs.store(seen_secs, Ordering::Relaxed);
        slot.station.store(station.0, Ordering::Release);
        book.append(index, station.port(), seen_secs);
    }

    fn clear(&self, book: &mut Book, index: usize) {
        let slot = self.slot(index);
        book.unlink(index, slot.station().port());
        slot.station.store(Station::NONE.0, Ordering::Release);
    }

    #[inline]
    fn is_stale(&self, now: Timestamp, seen_secs: u32) -> bool {
        let age = now.as_secs().saturating_sub(seen_secs);
        age >= self.ageing_secs.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slots_of(bucket: usize) -> std::ops::Range<usize> {
    bucket * WAYS..(bucket + 1) * WAYS
}

/// At least twice as many as there may be entries, and two buckets.
fn slots_for(capacity: usize) -> usize {
    (2 * capacity).next_power_of_two().max(2 * WAYS)
}

fn ageing_secs(ageing: Duration) -> u32 {
    u32::try_from(ageing.as_secs()).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod audit;

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models;
