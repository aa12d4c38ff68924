//! What holds in every forwarding database, for its tests.

use super::*;
use crate::fdb::book::NIL;

impl Fdb {
    /// Fails unless every entry stands once, where it may, and is in its port's list and no other. Only while nobody changes the table.
    pub(super) fn audit(&self) {
        let book = self.lock();
        let mut listed = Vec::new();
        for (port, list) in book.lists.iter().enumerate() {
            let (mut previous, mut next, before) = (NIL, list.first, listed.len());
            while next != NIL {
                let link = &book.links[next as usize];
                assert_eq!(link.previous, previous, "the link back from slot {next}");
                assert_eq!(self.slot(next as usize).station().port().index(), port, "slot {next} is in another port's list");
                listed.push(next as usize);
                (previous, next) = (next, link.next);
            }
            assert_eq!((list.last, list.count), (previous, listed.len() - before), "the list of port {port}");
        }
        listed.sort_unstable();
        let occupied = |fixed: bool| {
            (0..self.slots()).filter(move |&index| !self.slot(index).is_free() && self.slot(index).is_fixed() == fixed)
        };
        let (occupied, fixed): (Vec<usize>, Vec<usize>) = (occupied(false).collect(), occupied(true).collect());
        assert_eq!((&listed, self.len()), (&occupied, occupied.len()), "what is listed and what stands there");
        assert!(self.len() <= self.capacity());
        let keys = occupied.iter().chain(&fixed).map(|&index| (self.slot(index).station().key(), index));
        let mut places = std::collections::BTreeMap::new();
        for (key, index) in keys {
            assert!(self.buckets_of(key).contains(&(index / WAYS)), "slot {index} is in none of its key's buckets");
            assert_eq!(places.insert(key.0, index), None, "an address stands twice");
        }
    }
}
