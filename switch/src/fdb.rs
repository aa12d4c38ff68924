//! The forwarding database: which station was last heard behind which port.
//!
//! # Theory
//!
//! Workers look addresses up and refresh them for every frame; new addresses are rare. So reading and refreshing take
//! no lock, and everything that changes *which* addresses are in the table takes one.
//!
//! An entry is two atomic words in a [`Slot`]: the key (the address and a bit that says "occupied") and the value (port
//! and second of the last frame). A reader loads key, value, key; if the key stayed the same, the value is or very
//! recently was the key's own. The worst that a race can do is to send one frame to the place that the address had
//! a moment ago, which a moving station causes as well.
//!
//! A key may stand in either of two buckets of [`WAYS`] slots, picked by a hash that is keyed at random, since guests choose the
//! addresses. The table has at least twice as many slots as it may hold entries, so both buckets are rarely full; then an entry in
//! them moves to its own other bucket, as in cuckoo hashing. Only if none of eight can, one of them makes way.
//!
//! Bounded and fair: a full table makes way for a new address by evicting from the port that has the most entries (the
//! learning port itself, when it is one of them), about the one not heard of for the longest. So a guest that invents
//! addresses evicts its own, once it has more than the others.
//!
//! Lock order: [`Fdb::book`] is the only lock. Workers only ever try it: whoever finds it taken learns with the next
//! frame.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{MacAddr, MacKey, PortId, Timestamp};

/// Slots in a bucket: one cache line of 64 bytes.
const WAYS: usize = 4;
/// Entries that get a second chance before one of them is evicted all the same.
const SECOND_CHANCES: usize = 8;
/// Set in every key, so that zero means "empty".
const OCCUPIED: u64 = 1 << 63;
/// The end of a list of slots.
const NIL: u32 = u32::MAX;

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
}

/// The forwarding database of one network. Shared by all workers.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[Bucket]>,
    /// One less than the number of buckets, which is a power of two.
    bucket_mask: usize,
    hash: ahash::RandomState,
    capacity: usize,
    ageing_secs: AtomicU32,
    len: AtomicUsize,
    learned: AtomicU64,
    moved: AtomicU64,
    evicted: AtomicU64,
    expired: AtomicU64,
    book: Mutex<Book>,
}

/// A cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket([Slot; WAYS]);

#[derive(Debug, Default)]
struct Slot {
    key: AtomicU64,
    value: AtomicU64,
}

/// Port and second of the last frame, as one word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value {
    port: PortId,
    seen_secs: u32,
}

impl Value {
    const fn pack(self) -> u64 {
        (self.port.0 as u64) << 32 | self.seen_secs as u64
    }

    const fn unpack(word: u64) -> Self {
        Self { port: PortId((word >> 32) as u16), seen_secs: word as u32 }
    }
}

impl Fdb {
    /// An empty table.
    ///
    /// # Panics
    /// When the capacity is not within 1 to 2^20.
    #[must_use]
    pub fn new(settings: FdbSettings) -> Self {
        assert!((1..=1 << 20).contains(&settings.capacity), "capacity of a forwarding database: {}", settings.capacity);
        let slots = (2 * settings.capacity).next_power_of_two().max(2 * WAYS);
        Self {
            buckets: (0..slots / WAYS).map(|_| Bucket::default()).collect(),
            bucket_mask: slots / WAYS - 1,
            hash: ahash::RandomState::new(),
            capacity: settings.capacity,
            ageing_secs: AtomicU32::new(ageing_secs(settings.ageing)),
            len: AtomicUsize::new(0),
            learned: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            book: Mutex::new(Book::new(slots)),
        }
    }

    /// The port behind which `mac` was last heard, unless that was too long ago.
    #[inline]
    pub fn lookup(&self, now: Timestamp, mac: impl Into<MacKey>) -> Option<PortId> {
        let (_, value) = self.find(mac.into().as_u64() | OCCUPIED)?;
        (!self.is_stale(now, value)).then_some(value.port)
    }

    /// Remembers that `mac` was heard behind `port`. Writes only when that says something new.
    #[inline]
    pub fn learn(&self, now: Timestamp, mac: impl Into<MacKey>, port: PortId) -> Learned {
        let key = mac.into().as_u64() | OCCUPIED;
        match self.find(key) {
            Some((index, value)) if value.port == port => {
                if value.seen_secs != now.as_secs() {
                    // If this loses a race, somebody else has just refreshed, moved or replaced the entry.
                    let refreshed = Value { port, seen_secs: now.as_secs() };
                    let slot = &self.slot(index).value;
                    let _ = slot.compare_exchange(value.pack(), refreshed.pack(), Ordering::Relaxed, Ordering::Relaxed);
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
            let key = slot.key.load(Ordering::Relaxed);
            if key != 0 && self.is_stale(now, slot.load_value()) {
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
            if self.slot(index).key.load(Ordering::Relaxed) != 0 {
                self.remove(&mut book, index);
            }
        }
        before
    }

    /// Changes the ageing time, for old entries as well.
    pub fn set_ageing(&self, ageing: Duration) {
        self.ageing_secs.store(ageing_secs(ageing), Ordering::Relaxed);
    }

    /// The most addresses that this table keeps.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
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

    /// Every address that is not too old, in no particular order.
    #[must_use]
    pub fn entries(&self, now: Timestamp) -> Vec<FdbEntry> {
        let _book = self.lock();
        let occupied = self.buckets.iter().flat_map(|Bucket(ways)| ways).filter_map(|slot| {
            let key = slot.key.load(Ordering::Relaxed);
            (key != 0).then(|| (MacKey::from_u64(key).into(), slot.load_value()))
        });
        let fresh = occupied.filter(|(_, value)| !self.is_stale(now, *value));
        fresh.map(|(mac, value)| FdbEntry { mac, port: value.port, age: age(now, value) }).collect()
    }

    #[inline(always)]
    fn find(&self, key: u64) -> Option<(usize, Value)> {
        for bucket in self.buckets_of(key) {
            let Bucket(ways) = &self.buckets[bucket];
            for (way, slot) in ways.iter().enumerate() {
                if slot.key.load(Ordering::Acquire) == key {
                    let value = slot.load_value();
                    if slot.key.load(Ordering::Acquire) == key {
                        return Some((bucket * WAYS + way, value));
                    }
                }
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
    fn buckets_of(&self, key: u64) -> [usize; 2] {
        let hash = self.hash.hash_one(key) as usize;
        [hash & self.bucket_mask, hash >> 32 & self.bucket_mask]
    }

    #[cold]
    fn learn_news(&self, now: Timestamp, key: u64, port: PortId) -> Learned {
        let mut book = match self.book.try_lock() {
            Ok(book) => book,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return Learned::Later,
        };
        let value = Value { port, seen_secs: now.as_secs() };
        if let Some((index, old)) = self.find(key) {
            book.unlink(index, old.port);
            book.append(index, value);
            self.slot(index).value.store(value.pack(), Ordering::Release);
            if old.port == port {
                return Learned::Known;
            }
            self.moved.fetch_add(1, Ordering::Relaxed);
            return Learned::Moved(old.port);
        }
        if self.len() >= self.capacity {
            let victim = self.least_deserving(&mut book, port);
            self.evict(&mut book, victim);
        }
        let index = self.free_slot(&mut book, key);
        let slot = self.slot(index);
        // Value before key: whoever sees the key sees a value that belongs to it.
        slot.value.store(value.pack(), Ordering::Relaxed);
        slot.key.store(key, Ordering::Release);
        book.append(index, value);
        self.len.fetch_add(1, Ordering::Relaxed);
        self.learned.fetch_add(1, Ordering::Relaxed);
        Learned::New
    }

    /// The slot that makes way in a full table: about the oldest of the port with the most entries.
    fn least_deserving(&self, book: &mut Book, learner: PortId) -> usize {
        let port = book.largest(learner);
        for _ in 0..SECOND_CHANCES {
            let Some(index) = book.oldest(port) else { break };
            let value = self.slot(index).load_value();
            if value.seen_secs == book.links[index].appended_secs {
                return index;
            }
            // Heard of since it was put in line: back to the end.
            book.unlink(index, port);
            book.append(index, value);
        }
        book.oldest(port).expect("a full table has a largest port, and that has an oldest entry")
    }

    /// A free slot for `key`. When both its buckets are full, an entry in them moves to its other bucket; when none can, the one
    /// that belongs to the largest port goes.
    fn free_slot(&self, book: &mut Book, key: u64) -> usize {
        let [first, second] = self.buckets_of(key);
        let candidates = || slots_of(first).chain(slots_of(second));
        let free_in = |bucket: usize| slots_of(bucket).filter(|&index| self.is_free(index)).count();
        let roomier = if free_in(second) > free_in(first) { second } else { first };
        if let Some(index) = slots_of(roomier).find(|&index| self.is_free(index)) {
            return index;
        }
        for index in candidates() {
            if let Some(free) = self.other_bucket(index).find(|&index| self.is_free(index)) {
                self.relocate(book, index, free);
                return index;
            }
        }
        let crowding = |&index: &usize| book.count(self.slot(index).load_value().port);
        let victim = candidates().max_by_key(crowding).expect("a bucket has slots");
        self.evict(book, victim);
        victim
    }

    /// The slots of the bucket in which the entry at `index` may stand as well.
    fn other_bucket(&self, index: usize) -> std::ops::Range<usize> {
        let [first, second] = self.buckets_of(self.slot(index).key.load(Ordering::Relaxed));
        slots_of(if index / WAYS == first { second } else { first })
    }

    /// Moves an entry to a free slot. It stands in both for a moment, so that no reader misses it.
    fn relocate(&self, book: &mut Book, from: usize, to: usize) {
        let value = self.slot(from).load_value();
        self.slot(to).value.store(value.pack(), Ordering::Relaxed);
        self.slot(to).key.store(self.slot(from).key.load(Ordering::Relaxed), Ordering::Release);
        self.slot(from).key.store(0, Ordering::Release);
        book.unlink(from, value.port);
        book.append(to, value);
    }

    fn is_free(&self, index: usize) -> bool {
        self.slot(index).key.load(Ordering::Relaxed) == 0
    }

    fn evict(&self, book: &mut Book, index: usize) {
        self.remove(book, index);
        self.evicted.fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, book: &mut Book, index: usize) {
        let slot = self.slot(index);
        book.unlink(index, slot.load_value().port);
        slot.key.store(0, Ordering::Release);
        self.len.fetch_sub(1, Ordering::Relaxed);
    }

    #[inline]
    fn is_stale(&self, now: Timestamp, value: Value) -> bool {
        let age = now.as_secs().saturating_sub(value.seen_secs);
        age >= self.ageing_secs.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    #[inline]
    fn load_value(&self) -> Value {
        Value::unpack(self.value.load(Ordering::Acquire))
    }
}

fn slots_of(bucket: usize) -> std::ops::Range<usize> {
    bucket * WAYS..(bucket + 1) * WAYS
}

fn ageing_secs(ageing: Duration) -> u32 {
    u32::try_from(ageing.as_secs()).unwrap_or(u32::MAX).max(1)
}

fn age(now: Timestamp, value: Value) -> Duration {
    Duration::from_secs(now.as_secs().saturating_sub(value.seen_secs).into())
}

/// Which slots each port holds, in the order in which they were learned or last found fresh: a doubly linked list a
/// port through [`Book::links`], so that every operation takes constant time but [`Book::largest`], which looks
/// at each port once.
#[derive(Debug)]
struct Book {
    links: Box<[Link]>,
    lists: Vec<List>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    /// The second that the entry had when it was put at the end of its list.
    appended_secs: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    count: usize,
}

impl Book {
    fn new(slots: usize) -> Self {
        Self { links: vec![Link { previous: NIL, next: NIL, appended_secs: 0 }; slots].into(), lists: Vec::new() }
    }

    fn count(&self, port: PortId) -> usize {
        self.lists.get(port.index()).map_or(0, |list| list.count)
    }

    fn oldest(&self, port: PortId) -> Option<usize> {
        self.lists.get(port.index()).map(|list| list.first).filter(|&first| first != NIL).map(|first| first as usize)
    }

    /// The port with the most entries; `preferred` if it is one of them.
    fn largest(&self, preferred: PortId) -> PortId {
        let (index, list) = self.lists.iter().enumerate().max_by_key(|(_, list)| list.count).expect("a full table has ports");
        if self.count(preferred) == list.count { preferred } else { PortId(index as u16) }
    }

    fn append(&mut self, index: usize, value: Value) {
        let place = value.port.index();
        if place >= self.lists.len() {
            self.lists.resize(place + 1, List { first: NIL, last: NIL, count: 0 });
        }
        let list = &mut self.lists[place];
        let last = list.last;
        self.links[index] = Link { previous: last, next: NIL, appended_secs: value.seen_secs };
        match last {
            NIL => list.first = index as u32,
            last => self.links[last as usize].next = index as u32,
        }
        list.last = index as u32;
        list.count += 1;
    }

    fn unlink(&mut self, index: usize, port: PortId) {
        let Link { previous, next, .. } = self.links[index];
        let list = &mut self.lists[port.index()];
        match previous {
            NIL => list.first = next,
            previous => self.links[previous as usize].next = next,
        }
        match next {
            NIL => list.last = previous,
            next => self.links[next as usize].previous = previous,
        }
        list.count -= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::{BTreeSet, HashMap};

    use super::*;

    const A: PortId = PortId(0);
    const B: PortId = PortId(1);

    fn fdb(capacity: usize) -> Fdb {
        Fdb::new(FdbSettings { capacity, ageing: Duration::from_secs(300) })
    }

    fn mac(number: u64) -> MacAddr {
        MacAddr::from_u64(0x0200_0000_0000 | number)
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn count(fdb: &Fdb, port: PortId) -> usize {
        fdb.entries(at(0)).iter().filter(|entry| entry.port == port).count()
    }

    #[test]
    fn a_station_is_found_where_it_was_last_heard() {
        let fdb = fdb(16);
        assert_eq!(fdb.lookup(at(0), mac(1)), None);
        assert_eq!(fdb.learn(at(0), mac(1), A), Learned::New);
        assert_eq!(fdb.learn(at(1), mac(1), A), Learned::Known);
        assert_eq!(fdb.lookup(at(1), mac(1)), Some(A));
        assert_eq!(fdb.learn(at(2), mac(1), B), Learned::Moved(A));
        assert_eq!(fdb.lookup(at(2), mac(1)), Some(B));
        assert_eq!(fdb.counters(), FdbCounters { learned: 1, moved: 1, evicted: 0, expired: 0 });
    }

    #[test]
    fn a_silent_station_is_forgotten_after_the_ageing_time_and_a_speaking_one_is_not() {
        let fdb = fdb(16);
        fdb.learn(at(0), mac(1), A);
        fdb.learn(at(0), mac(2), A);
        fdb.learn(at(200), mac(2), A);
        assert_eq!(fdb.lookup(at(299), mac(1)), Some(A));
        assert_eq!(fdb.lookup(at(300), mac(1)), None, "found although it is too old");
        fdb.expire(at(300));
        assert_eq!(fdb.len(), 1);
        assert_eq!(fdb.lookup(at(300), mac(2)), Some(A));
        assert_eq!(fdb.counters().expired, 1);
    }

    #[test]
    fn a_shorter_ageing_time_holds_for_what_was_learned_before() {
        let fdb = fdb(16);
        fdb.learn(at(0), mac(1), A);
        fdb.set_ageing(Duration::from_secs(10));
        assert_eq!(fdb.lookup(at(9), mac(1)), Some(A));
        assert_eq!(fdb.lookup(at(10), mac(1)), None);
    }

    #[test]
    fn the_table_holds_its_capacity_and_no_more() {
        let fdb = fdb(10_000);
        for number in 0..10_000 {
            assert_eq!(fdb.learn(at(0), mac(number), A), Learned::New);
        }
        assert_eq!((fdb.len(), fdb.counters().evicted), (10_000, 0));
        assert!((0..10_000).all(|number| fdb.lookup(at(0), mac(number)) == Some(A)));
        fdb.learn(at(0), mac(10_000), A);
        assert_eq!((fdb.len(), fdb.counters().evicted), (10_000, 1));
    }

    #[test]
    fn a_guest_that_floods_the_table_evicts_only_its_own() {
        let fdb = fdb(1000);
        for number in 0..400 {
            fdb.learn(at(0), mac(number), A);
        }
        for number in 1_000_000..1_100_000 {
            fdb.learn(at(0), mac(number), B);
        }
        assert_eq!((count(&fdb, A), count(&fdb, B)), (400, 600));
    }

    #[test]
    fn a_newcomer_finds_room_in_a_table_that_another_guest_has_filled() {
        let fdb = fdb(1000);
        for number in 0..1000 {
            fdb.learn(at(0), mac(number), A);
        }
        for number in 1_000_000..1_000_300 {
            fdb.learn(at(0), mac(number), B);
        }
        assert_eq!((count(&fdb, A), count(&fdb, B)), (700, 300));
    }

    #[test]
    fn the_station_not_heard_of_for_longest_makes_way() {
        let fdb = fdb(4);
        for number in 0..4 {
            fdb.learn(at(0), mac(number), A);
        }
        for number in [0, 1, 3] {
            fdb.learn(at(5), mac(number), A);
        }
        fdb.learn(at(6), mac(9), A);
        assert_eq!(fdb.lookup(at(6), mac(2)), None);
        assert!([0, 1, 3, 9].iter().all(|&number| fdb.lookup(at(6), mac(number)) == Some(A)));
    }

    #[test]
    fn forgetting_a_port_leaves_the_others() {
        let fdb = fdb(100);
        for number in 0..50 {
            fdb.learn(at(0), mac(number), if number % 2 == 0 { A } else { B });
        }
        fdb.forget_port(A);
        assert_eq!((fdb.len(), count(&fdb, B)), (25, 25));
        assert_eq!(fdb.flush(), 25);
        assert!(fdb.is_empty() && fdb.entries(at(0)).is_empty());
    }

    #[test]
    fn a_table_of_one_works() {
        let fdb = fdb(1);
        fdb.learn(at(0), mac(1), A);
        fdb.learn(at(0), mac(2), B);
        assert_eq!((fdb.lookup(at(0), mac(1)), fdb.lookup(at(0), mac(2))), (None, Some(B)));
    }

    #[test]
    fn workers_that_learn_at_once_never_see_a_port_that_nobody_named() {
        let fdb = fdb(256);
        std::thread::scope(|scope| {
            for worker in 0..2_u16 {
                let fdb = &fdb;
                scope.spawn(move || {
                    for round in 0..20_000_u64 {
                        fdb.learn(at(round / 1000), mac(round % 600), PortId(worker));
                        let found = fdb.lookup(at(round / 1000), mac((round * 7) % 600));
                        assert!(found.is_none_or(|port| port.0 < 2), "{found:?}");
                    }
                });
            }
        });
        let listed = fdb.entries(at(20)).len();
        assert!(listed == fdb.len() && listed <= 256, "{listed} listed, {} counted", fdb.len());
    }

    proptest! {
        /// With room for all, the table agrees with a map.
        #[test]
        fn the_table_agrees_with_a_map(events in prop::collection::vec((0..40_u64, 0..5_u16), 1..300)) {
            let (fdb, mut model) = (fdb(64), HashMap::new());
            for (number, port) in events {
                fdb.learn(at(0), mac(number), PortId(port));
                model.insert(number, PortId(port));
            }
            prop_assert_eq!(fdb.len(), model.len());
            for (number, port) in model {
                prop_assert_eq!(fdb.lookup(at(0), mac(number)), Some(port));
            }
        }

        /// Crowded buckets cost no entry.
        #[test]
        fn a_small_full_table_holds_its_capacity(numbers in prop::collection::btree_set(0..100_000_u64, 120..300)) {
            let fdb = fdb(100);
            for &number in &numbers {
                fdb.learn(at(0), mac(number), A);
            }
            prop_assert_eq!((fdb.len(), fdb.counters().evicted), (100, numbers.len() as u64 - 100));
            prop_assert_eq!(fdb.entries(at(0)).len(), 100);
        }

        /// No port falls below its fair share because of another.
        #[test]
        fn a_full_table_is_shared_fairly(events in prop::collection::vec((0..500_u64, 0..4_u16), 400..1500)) {
            let fdb = fdb(100);
            let mut heard = [const { BTreeSet::new() }; 4];
            for (number, port) in events {
                fdb.learn(at(0), mac(1000 * u64::from(port) + number), PortId(port));
                heard[usize::from(port)].insert(number);
            }
            prop_assert!(fdb.len() <= 100);
            for (port, heard) in heard.iter().enumerate() {
                let kept = count(&fdb, PortId(port as u16));
                prop_assert!(kept >= heard.len().min(25), "port {} keeps {} of {}", port, kept, heard.len());
            }
        }
    }
}
