//! The order in which stations were learned, port by port.

use super::mobility::Mobility;
use crate::PortId;

/// The end of a list of slots.
pub(super) const NIL: u32 = u32::MAX;

/// Which slots each port holds, in the order in which they were learned or last found fresh: a doubly linked list a
/// port through [`Book::links`], so that every operation takes constant time but [`Book::largest`], which looks
/// at each port once.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) links: Box<[Link]>,
    pub(super) lists: Vec<List>,
    /// A copy has taken the table's place: nothing is learned here any more, and what stands here is not counted.
    pub(super) is_retired: bool,
    /// There may be static entries.
    pub(super) has_static: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    pub(super) previous: u32,
    pub(super) next: u32,
    /// The second that the entry had when it was put at the end of its list.
    pub(super) appended_secs: u32,
    /// That of the station that stands in the slot.
    pub(super) mobility: Mobility,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) count: usize,
}

impl Book {
    pub(super) fn new(slots: usize) -> Self {
        Self { links: vec![Link::default(); slots].into(), lists: Vec::new(), is_retired: false, has_static: false }
    }

    pub(super) fn count(&self, port: PortId) -> usize {
        self.lists.get(port.index()).map_or(0, |list| list.count)
    }

    pub(super) fn oldest(&self, port: PortId) -> Option<usize> {
        self.lists.get(port.index()).map(|list| list.first).filter(|&first| first != NIL).map(|first| first as usize)
    }

    /// The port with the most entries; `preferred` if it is one of them.
    pub(super) fn largest(&self, preferred: PortId) -> PortId {
        let (index, list) = self.lists.iter().enumerate().max_by_key(|(_, list)| list.count).expect("a full table has ports");
        if self.count(preferred) == list.count { preferred } else { PortId(index as u16) }
    }

    pub(super) fn append(&mut self, index: usize, port: PortId, seen_secs: u32) {
        let place = port.index();
        if place >= self.lists.len() {
            self.lists.resize(place + 1, List { first: NIL, last: NIL, count: 0 });
        }
        let list = &mut self.lists[place];
        let last = list.last;
        let mobility = self.links[index].mobility;
        self.links[index] = Link { previous: last, next: NIL, appended_secs: seen_secs, mobility };
        match last {
            NIL => list.first = index as u32,
            last => self.links[last as usize].next = index as u32,
        }
        list.last = index as u32;
        list.count += 1;
    }

    pub(super) fn unlink(&mut self, index: usize, port: PortId) {
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
