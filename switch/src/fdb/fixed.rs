//! Entries that were not learned: static ones, and the gateway's address.

use std::collections::HashMap;

use super::book::Book;
use super::slot::{Key, RESERVED_SECS, STATIC_SECS, Station, WAYS};
use super::{Fdb, Found};
use crate::{MacKey, PortId};

impl Fdb {
    /// Keeps `mac` for `port`, whoever else claims it, until it is [`release`](Self::release)d. Reserved addresses are few: they don't
    /// count as entries, and don't make way.
    pub fn reserve(&self, mac: impl Into<MacKey>, port: PortId) {
        let mut book = self.lock();
        let station = Station::new(Key::new(mac.into()), port);
        if !self.fix(&mut book, station, RESERVED_SECS) {
            // Static entries stand in its way: one of them is worth less.
            let [bucket, _] = self.buckets_of(station.key());
            self.slot(bucket * WAYS).set(station, RESERVED_SECS);
        }
    }

    /// The opposite of [`Self::reserve`].
    pub fn release(&self, mac: impl Into<MacKey>) {
        let _book = self.lock();
        if let Some(Found { slot, .. }) = self.find(Key::new(mac.into())).filter(|found| found.slot.is_reserved()) {
            slot.clear();
        }
    }

    /// Makes `stations` the static entries, and no others. They don't count as entries, never make way and never move; there should be at most
    /// half as many of them as the table's capacity. Returns those for which there is no room: only where eight of them, or a reserved
    /// address, stand in the way.
    pub fn set_static<M: Into<MacKey>>(&self, stations: impl IntoIterator<Item = (M, PortId)>) -> Vec<MacKey> {
        let wanted: HashMap<MacKey, PortId> = stations.into_iter().map(|(mac, port)| (mac.into(), port)).collect();
        let mut book = self.lock();
        if wanted.is_empty() && !book.has_static {
            return Vec::new();
        }
        book.has_static = !wanted.is_empty();
        for slot in (0..self.slots()).map(|index| self.slot(index)).filter(|slot| slot.is_fixed() && !slot.is_reserved()) {
            if !wanted.contains_key(&slot.station().key().mac().into()) {
                slot.clear();
            }
        }
        let mut left_out = Vec::new();
        for (mac, port) in wanted {
            let station = Station::new(Key::new(mac), port);
            let is_reserved = self.find(station.key()).is_some_and(|found| found.slot.is_reserved());
            if is_reserved || !self.fix(&mut book, station, STATIC_SECS) {
                left_out.push(mac);
            }
        }
        left_out
    }

    /// Writes an entry that was not learned, in place of what there is of its address. False if there is no room.
    pub(super) fn fix(&self, book: &mut Book, station: Station, seen_secs: u32) -> bool {
        let index = match self.find(station.key()) {
            Some(Found { index, slot, .. }) => {
                if !slot.is_fixed() {
                    self.remove(book, index);
                }
                Some(index)
            }
            None => self.free_slot(book, station.key()),
        };
        book.has_static |= seen_secs == STATIC_SECS;
        index.map(|index| self.slot(index).set(station, seen_secs)).is_some()
    }
}
