//! A bounded table of flows, in which each port has a fair share and each flow a timer.
//!
//! **Shares.** A port may hold as many flows as stay free. So one port alone can have half of the table, two can have a third each,
//! and however many there are, the next one always finds room (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory
//! packet switches", 1998). Nobody has to say beforehand how many ports there will be.
//!
//! **Timers.** A deadline that moves later costs nothing: the flow is looked at when the earlier one comes, and finds that it is not due yet.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use slab::Slab;

use crate::{PortId, Timestamp};

/// The place of a flow in its table. Used again when the flow is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u32);

impl FlowId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// There is no room for another flow of this port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

#[derive(Debug)]
struct Entry<K, V> {
    key: K,
    port: PortId,
    scheduled: Option<Timestamp>,
    generation: u16,
    value: V,
}

/// Flows by what identifies them.
#[derive(Debug)]
pub struct FlowTable<K, V> {
    capacity: usize,
    entries: Slab<Entry<K, V>>,
    by_key: HashMap<K, FlowId, ahash::RandomState>,
    /// How many each port holds.
    held: HashMap<PortId, usize, ahash::RandomState>,
    timers: BTreeSet<(Timestamp, FlowId)>,
    inserted: u16,
}

impl<K: Copy + Eq + Hash, V> FlowTable<K, V> {
    /// There are so many generations; then they come again.
    pub const GENERATIONS: u16 = 1 << 12;

    /// A table of at most `capacity` flows.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity: capacity as usize,
            entries: Slab::new(),
            by_key: HashMap::default(),
            held: HashMap::default(),
            timers: BTreeSet::new(),
            inserted: 0,
        }
    }

    /// Changes how many there may be. Those that are too many stay until they end.
    pub fn set_capacity(&mut self, capacity: u32) {
        self.capacity = capacity as usize;
    }

    /// True if `port` may have one more.
    #[must_use]
    pub fn has_room(&self, port: PortId) -> bool {
        self.held_by(port) < self.capacity.saturating_sub(self.entries.len())
    }

    /// Adds a flow of `port`; there is none with that key.
    ///
    /// # Errors
    /// When the port has its share already.
    pub fn insert(&mut self, port: PortId, key: K, value: V) -> Result<FlowId, TableFull> {
        if !self.has_room(port) {
            return Err(TableFull);
        }
        // No truncation: the capacity has 32 bits.
        self.inserted = self.inserted.wrapping_add(1) % Self::GENERATIONS;
        let entry = Entry { key, port, scheduled: None, generation: self.inserted, value };
        let id = FlowId(self.entries.insert(entry) as u32);
        let before = self.by_key.insert(key, id);
        debug_assert!(before.is_none(), "two flows with one key");
        *self.held.entry(port).or_default() += 1;
        Ok(id)
    }

    /// Takes a flow out.
    pub fn remove(&mut self, id: FlowId) -> Option<(K, V)> {
        let Entry { key, port, scheduled, value, .. } = self.entries.try_remove(id.index())?;
        self.by_key.remove(&key);
        if let Some(held) = self.held.get_mut(&port) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&port);
            }
        }
        if let Some(at) = scheduled {
            self.timers.remove(&(at, id));
        }
        Some((key, value))
    }

    /// Tells a flow from those that had its place before: what is late for them is not for it.
    #[must_use]
    pub fn generation(&self, id: FlowId) -> Option<u16> {
        self.entries.get(id.index()).map(|entry| entry.generation)
    }

    /// The flow with this key.
    #[must_use]
    pub fn find(&self, key: &K) -> Option<FlowId> {
        self.by_key.get(key).copied()
    }

    /// A flow.
    #[must_use]
    pub fn value(&self, id: FlowId) -> Option<&V> {
        self.entries.get(id.index()).map(|entry| &entry.value)
    }

    /// A flow, to be changed.
    pub fn value_mut(&mut self, id: FlowId) -> Option<&mut V> {
        self.entries.get_mut(id.index()).map(|entry| &mut entry.value)
    }

    /// What identifies a flow.
    #[must_use]
    pub fn key(&self, id: FlowId) -> Option<K> {
        self.entries.get(id.index()).map(|entry| entry.key)
    }

    /// All flows of a port, or of all of them.
    pub fn ids(&self, of: Option<PortId>) -> impl Iterator<Item = FlowId> {
        let wanted = move |entry: &Entry<K, V>| of.is_none_or(|port| entry.port == port);
        self.entries.iter().filter(move |(_, entry)| wanted(entry)).map(|(index, _)| FlowId(index as u32))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many a port holds.
    #[must_use]
    pub fn held_by(&self, port: PortId) -> usize {
        self.held.get(&port).copied().unwrap_or(0)
    }

    /// Sees to it that [`Self::due`] names the flow at `at`, or earlier.
    pub fn schedule(&mut self, id: FlowId, at: Timestamp) {
        let Some(entry) = self.entries.get_mut(id.index()) else { return };
        if entry.scheduled.is_some_and(|scheduled| scheduled <= at) {
            return;
        }
        if let Some(later) = entry.scheduled.replace(at) {
            self.timers.remove(&(later, id));
        }
        self.timers.insert((at, id));
    }

    /// A flow whose time has come. Whoever asks looks at it and [`schedule`](Self::schedule)s it again.
    pub fn due(&mut self, now: Timestamp) -> Option<FlowId> {
        let &(at, id) = self.timers.first()?;
        if at > now {
            return None;
        }
        self.timers.pop_first();
        if let Some(entry) = self.entries.get_mut(id.index()) {
            entry.scheduled = None;
        }
        Some(id)
    }

    /// When [`Self::due`] will name one, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const A: PortId = PortId(1);
    const B: PortId = PortId(2);

    fn fill(table: &mut FlowTable<u32, ()>, port: PortId) -> usize {
        let start = u32::from(port.0) << 16;
        (start..start + 10_000).take_while(|key| table.insert(port, *key, ()).is_ok()).count()
    }

    #[test]
    fn a_greedy_port_leaves_room_for_others() {
        let mut table = FlowTable::new(120);
        assert_eq!(fill(&mut table, A), 60);
        assert_eq!(fill(&mut table, B), 30);
        assert_eq!(fill(&mut table, PortId(3)), 15);
        // What others give back, each may have a part of.
        for id in table.ids(Some(A)).collect::<Vec<_>>() {
            table.remove(id);
        }
        assert_eq!((table.held_by(A), table.len()), (0, 45));
        assert!(table.has_room(B) && table.has_room(A));
    }

    #[test]
    fn a_table_that_was_full_is_empty_when_all_are_gone() {
        let mut table = FlowTable::new(64);
        for round in 0..10 {
            assert_eq!(fill(&mut table, A), 32, "round {round}");
            let ids: Vec<_> = table.ids(None).collect();
            ids.iter().for_each(|id| table.schedule(*id, Timestamp::from_millis(5)));
            ids.into_iter().for_each(|id| assert!(table.remove(id).is_some()));
            assert!(table.is_empty() && table.deadline().is_none() && table.held.is_empty() && table.by_key.is_empty());
        }
    }

    #[test]
    fn a_table_without_places_refuses_everybody() {
        assert_eq!(FlowTable::new(0).insert(A, 1, ()), Err(TableFull));
    }

    proptest! {
        #[test]
        fn a_flow_is_named_not_later_than_it_asked_for(steps in prop::collection::vec((0..8_u32, 0..100_u64, 0..20_u64), 1..200)) {
            let mut table = FlowTable::new(1000);
            let ids: Vec<_> = (0..8).map(|key| table.insert(A, key, ()).unwrap()).collect();
            let (mut wanted, mut now) = (BTreeMap::new(), 0);
            for (flow, delay, step) in steps {
                let at = now + delay;
                table.schedule(ids[flow as usize], Timestamp::from_millis(at));
                let earliest = wanted.get(&flow).map_or(at, |before: &u64| at.min(*before));
                wanted.insert(flow, earliest);
                now += step;
                while let Some(id) = table.due(Timestamp::from_millis(now)) {
                    let asked = wanted.remove(&table.key(id).unwrap()).unwrap();
                    prop_assert!(asked <= now);
                }
                prop_assert!(wanted.values().all(|at| *at > now), "{:?} at {}", wanted, now);
                prop_assert_eq!(table.deadline(), wanted.values().min().map(|at| Timestamp::from_millis(*at)));
            }
        }
    }
}
