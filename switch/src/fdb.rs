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
//! Beside what is learned stand static entries, which are declared, and the address of the network's gateway, which is reserved: none of them gets old, makes
//! way or moves, and both are no one's news. A frame that has a static entry's source and comes from another port goes on as any other, and is
//! not learned from (IEEE 802.1Q-2018, 8.7: a dynamic entry does not come to stand beside a static one).
//!
//! A port may be given a [limit](StationLimit), and a table may refuse what is new when it is full instead of making way. A station that moves too often
//! stays where it is for a while (`mobility.rs`). All of this is about news: a frame from a station that is known costs nothing for it.
//!
//! Lock order: [`Fdb::book`], then that of the [`Census`]. Workers only ever try the former: whoever finds it taken learns with the next
//! frame.

mod book;
mod census;
mod fixed;
mod learn;
mod mobility;
mod slot;
mod values;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use self::book::Book;
pub use self::census::{AtLimit, Census, Flap, PortStations, StationLimit};
pub use self::mobility::FLAP_HOLD;
use self::mobility::Mobility;
use self::slot::{Bucket, Key, Slot, Station, WAYS};
pub use self::values::{FdbCounters, FdbEntry, FdbKind, FdbSettings, Learned};
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard};
use crate::{MacKey, PortId, Timestamp};

/// How often an entry is looked for while others move.
const LOOKS: usize = 16;
/// Entries that get a second chance before one of them is evicted all the same.
const SECOND_CHANCES: usize = 8;

/// The forwarding database of one network. Shared by all workers.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[Bucket]>,
    /// One less than the number of buckets, which is a power of two.
    bucket_mask: usize,
    hash: ahash::RandomState,
    capacity: AtomicUsize,
    ageing_secs: AtomicU32,
    /// As [`FdbSettings::when_full`] says, in a word.
    when_full: AtomicU32,
    len: AtomicUsize,
    learned: AtomicU64,
    moved: AtomicU64,
    evicted: AtomicU64,
    expired: AtomicU64,
    refused: AtomicU64,
    claimed: AtomicU64,
    flapped: AtomicU64,
    /// How often an entry moved from one bucket to the other.
    relocations: AtomicU64,
    book: Mutex<Book>,
    census: Arc<Census>,
}

/// The slot of an address.
struct Found<'a> {
    index: usize,
    slot: &'a Slot,
    port: PortId,
}

impl Fdb {
    /// An empty table of the network whose stations `census` counts.
    ///
    /// # Panics
    /// When the capacity is not within 1 to 2^20.
    #[must_use]
    pub fn new(settings: FdbSettings, census: &Arc<Census>) -> Self {
        Self::with_hash(settings, census, ahash::RandomState::new())
    }

    fn with_hash(settings: FdbSettings, census: &Arc<Census>, hash: ahash::RandomState) -> Self {
        assert!((1..=1 << 20).contains(&settings.capacity), "capacity of a forwarding database: {}", settings.capacity);
        let slots = slots_for(settings.capacity);
        Self {
            buckets: (0..slots / WAYS).map(|_| Bucket::default()).collect(),
            bucket_mask: slots / WAYS - 1,
            hash,
            capacity: AtomicUsize::new(settings.capacity),
            ageing_secs: AtomicU32::new(ageing_secs(settings.ageing)),
            when_full: AtomicU32::new(when_full_word(settings.when_full)),
            len: AtomicUsize::new(0),
            learned: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            claimed: AtomicU64::new(0),
            flapped: AtomicU64::new(0),
            relocations: AtomicU64::new(0),
            book: Mutex::new(Book::new(slots)),
            census: Arc::clone(census),
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

    /// Takes away the stations of `port` that are more than it may have, about those not heard of for longest first.
    pub fn trim(&self, port: PortId) {
        let mut book = self.lock();
        while self.census.is_over(port) {
            let Some(index) = self.stalest(&mut book, port) else { return };
            self.evict(&mut book, index);
        }
    }

    /// Forgets everything that was learned; returns how many addresses there were.
    pub fn flush(&self) -> usize {
        let mut book = self.lock();
        let before = self.len();
        for index in 0..self.slots() {
            if !self.slot(index).is_free() && !self.slot(index).is_fixed() {
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
            self.when_full.store(when_full_word(settings.when_full), Ordering::Relaxed);
            self.set_capacity(settings.capacity);
            return Arc::clone(self);
        }
        let copy = Self::new(settings, &self.census);
        {
            let (mut book, mut copied) = (self.lock(), copy.lock());
            // From now on the copy has what is counted.
            book.is_retired = true;
            for index in 0..self.slots() {
                let slot = self.slot(index);
                if slot.is_fixed() {
                    copy.fix(&mut copied, slot.station(), slot.seen_secs());
                } else if !slot.is_free() {
                    copy.adopt(&mut copied, slot, &book.links[index]);
                }
            }
        }
        let counted = self.counters();
        copy.learned.store(counted.learned, Ordering::Relaxed);
        copy.moved.store(counted.moved, Ordering::Relaxed);
        copy.evicted.fetch_add(counted.evicted, Ordering::Relaxed);
        copy.expired.store(counted.expired, Ordering::Relaxed);
        copy.refused.store(counted.refused, Ordering::Relaxed);
        copy.claimed.store(counted.claimed, Ordering::Relaxed);
        copy.flapped.store(counted.flapped, Ordering::Relaxed);
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

    /// Who counts the stations of this table.
    #[must_use]
    pub fn census(&self) -> &Arc<Census> {
        &self.census
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
            refused: self.refused.load(Ordering::Relaxed),
            claimed: self.claimed.load(Ordering::Relaxed),
            flapped: self.flapped.load(Ordering::Relaxed),
        }
    }

    /// Every static entry, and every address that was learned and is not too old, in no particular order.
    #[must_use]
    pub fn entries(&self, now: Timestamp) -> Vec<FdbEntry> {
        let book = self.lock();
        let slots = (0..self.slots()).map(|index| (self.slot(index), &book.links[index].mobility));
        let shown = slots.filter(|(slot, _)| !slot.is_free() && !slot.is_reserved() && !self.is_stale(now, slot.seen_secs()));
        let entry = |(slot, mobility): (&Slot, &Mobility)| {
            let (station, age_secs) = (slot.station(), now.as_secs().saturating_sub(slot.seen_secs()));
            let (age, held) = (Duration::from_secs(age_secs.into()), mobility.held_for(now.as_secs()));
            let kind = if slot.is_fixed() { FdbKind::Static } else { FdbKind::Dynamic { age, moves: mobility.moves, held } };
            FdbEntry { mac: station.key().mac(), port: station.port(), kind }
        };
        shown.map(entry).collect()
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

    /// The slot that makes way in a full table: about the oldest of the port with the most entries.
    fn least_deserving(&self, book: &mut Book, learner: PortId) -> usize {
        let port = book.largest(learner);
        self.stalest(book, port).expect("a full table has a largest port, and that has an oldest entry")
    }

    /// About the oldest of a port's entries.
    fn stalest(&self, book: &mut Book, port: PortId) -> Option<usize> {
        for _ in 0..SECOND_CHANCES {
            let index = book.oldest(port)?;
            let seen_secs = self.slot(index).seen_secs();
            if seen_secs == book.links[index].appended_secs {
                return Some(index);
            }
            // Heard of since it was put in line: back to the end.
            book.unlink(index, port);
            book.append(index, port, seen_secs);
        }
        book.oldest(port)
    }

    /// A free slot for `key`. When both its buckets are full, an entry in them moves to its other bucket; when none can, the learned one
    /// that belongs to the largest port goes. Nothing if there is none.
    fn free_slot(&self, book: &mut Book, key: Key) -> Option<usize> {
        let [first, second] = self.buckets_of(key);
        // A reserved address stays, so that whoever has found its slot knows what it is.
        let candidates = || slots_of(first).chain(slots_of(second)).filter(|&index| !self.slot(index).is_reserved());
        let is_free = |&index: &usize| self.slot(index).is_free();
        let free_in = |bucket: usize| slots_of(bucket).filter(is_free).count();
        let roomier = if free_in(second) > free_in(first) { second } else { first };
        if let Some(index) = slots_of(roomier).find(is_free) {
            return Some(index);
        }
        for index in candidates() {
            if let Some(free) = self.other_bucket(index).find(is_free) {
                self.relocate(book, index, free);
                return Some(index);
            }
        }
        let crowding = |&index: &usize| book.count(self.slot(index).station().port());
        let victim = candidates().filter(|&index| !self.slot(index).is_fixed()).max_by_key(crowding)?;
        self.evict(book, victim);
        Some(victim)
    }

    /// The slots of the bucket in which the entry at `index` may stand as well.
    fn other_bucket(&self, index: usize) -> std::ops::Range<usize> {
        let [first, second] = self.buckets_of(self.slot(index).station().key());
        slots_of(if index / WAYS == first { second } else { first })
    }

    /// Moves an entry to a free slot. It stands in both for a moment, and is counted meanwhile: see [`Self::find_for_sure`].
    fn relocate(&self, book: &mut Book, from: usize, to: usize) {
        let slot = self.slot(from);
        let (station, seen_secs) = (slot.station(), slot.seen_secs());
        self.slot(to).set(station, seen_secs);
        if !slot.is_fixed() {
            book.unlink(from, station.port());
            book.links[to].mobility = book.links[from].mobility;
            book.append(to, station.port(), seen_secs);
        }
        self.relocations.fetch_add(1, Ordering::Release);
        slot.clear();
    }

    fn evict(&self, book: &mut Book, index: usize) {
        self.remove(book, index);
        self.evicted.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes out what was learned.
    fn remove(&self, book: &mut Book, index: usize) {
        let slot = self.slot(index);
        let port = slot.station().port();
        book.unlink(index, port);
        slot.clear();
        self.len.fetch_sub(1, Ordering::Relaxed);
        if !book.is_retired {
            self.census.leave(port);
        }
    }

    /// Writes a new entry into a free slot.
    fn enter(&self, book: &mut Book, index: usize, station: Station, seen_secs: u32) {
        book.links[index].mobility = Mobility::default();
        self.put(book, index, station, seen_secs);
        self.len.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes an entry into a slot that is in no list, and appends it to its port's.
    fn put(&self, book: &mut Book, index: usize, station: Station, seen_secs: u32) {
        self.slot(index).set(station, seen_secs);
        book.append(index, station.port(), seen_secs);
    }

    fn when_full(&self) -> Option<AtLimit> {
        match self.when_full.load(Ordering::Relaxed) {
            EVICT => None,
            DROP => Some(AtLimit::Drop),
            _ => Some(AtLimit::Forward),
        }
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

impl Drop for Fdb {
    /// What stands here is counted no longer, unless a copy has it.
    fn drop(&mut self) {
        let book = self.lock();
        if !book.is_retired {
            let learned = (0..self.slots()).map(|index| self.slot(index)).filter(|slot| !slot.is_free() && !slot.is_fixed());
            learned.for_each(|slot| self.census.leave(slot.station().port()));
        }
    }
}

const EVICT: u32 = 0;
const FORWARD: u32 = 1;
const DROP: u32 = 2;

fn when_full_word(when_full: Option<AtLimit>) -> u32 {
    match when_full {
        None => EVICT,
        Some(AtLimit::Forward) => FORWARD,
        Some(AtLimit::Drop) => DROP,
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
mod limit_tests;

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models;
