//! What a frame says that is news: a station that is new or has moved, and may not or can't be learned.

use std::sync::TryLockError;
use std::sync::atomic::Ordering;

use super::book::{Book, Link};
use super::mobility::Motion;
use super::slot::{Key, Slot, Station};
use super::{AtLimit, Fdb, Flap, Found, Learned};
use crate::{MacKey, PortId, Timestamp};

impl Fdb {
    #[cold]
    pub(super) fn learn_news(&self, now: Timestamp, key: Key, port: PortId) -> Learned {
        // Whether or not the lock can be had: nobody gets through with it by chance.
        let known = self.find_for_sure(key);
        if let Some(learned) = known.and_then(|found| self.learn_known(now, &found, port)) {
            return learned;
        }
        let mut book = match self.book.try_lock() {
            Ok(book) => book,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.learn_later(port),
        };
        if book.is_retired {
            return self.learn_later(port);
        }
        match self.find(key) {
            Some(found) => self.learn_known(now, &found, port).unwrap_or_else(|| self.move_station(&mut book, now, &found, port)),
            None => self.learn_new(&mut book, now, Station::new(key, port)),
        }
    }

    /// What [`Self::learn`] would say now. Nothing is learned or counted.
    #[must_use]
    pub fn foresee(&self, now: Timestamp, mac: impl Into<MacKey>, port: PortId) -> Learned {
        let key = Key::new(mac.into());
        let book = self.lock();
        let of_port = self.census.port(port);
        let beyond = of_port.limit.filter(|limit| of_port.count >= limit.stations).map(|limit| limit.beyond);
        let refused = beyond.map(Learned::PortFull);
        match self.find(key) {
            Some(found) if found.slot.is_reserved() => Learned::Reserved,
            Some(found) if found.port == port => Learned::Known,
            Some(found) if found.slot.is_fixed() => Learned::Static,
            Some(found) => {
                let mut mobility = book.links[found.index].mobility;
                match mobility.note(now.as_secs()) {
                    Motion::Moves => refused.unwrap_or(Learned::Moved(found.port)),
                    Motion::Flaps | Motion::Held => Learned::Held,
                }
            }
            None => {
                let full = self.when_full().filter(|_| self.len() >= self.capacity());
                full.map(Learned::TableFull).or(refused).unwrap_or(Learned::New)
            }
        }
    }

    /// Learns a station that is in the table, unless that moves it.
    fn learn_known(&self, now: Timestamp, found: &Found<'_>, port: PortId) -> Option<Learned> {
        if found.slot.is_reserved() {
            return Some(Learned::Reserved);
        }
        if found.port == port {
            found.slot.seen_secs.fetch_max(now.as_secs(), Ordering::Relaxed);
            return Some(Learned::Known);
        }
        found.slot.is_fixed().then(|| {
            self.claimed.fetch_add(1, Ordering::Relaxed);
            Learned::Static
        })
    }

    /// Learns nothing, because somebody else is at it. But nobody gets through a limit by chance.
    fn learn_later(&self, port: PortId) -> Learned {
        if self.len() >= self.capacity() && self.when_full() == Some(AtLimit::Drop) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Learned::TableFull(AtLimit::Drop);
        }
        match self.census.refuse(port) {
            Some(beyond) => self.refuse_at_port(beyond),
            None => Learned::Later,
        }
    }

    fn move_station(&self, book: &mut Book, now: Timestamp, found: &Found<'_>, port: PortId) -> Learned {
        let (index, from, now_secs) = (found.index, found.port, now.as_secs());
        let key = found.slot.station().key();
        let mut mobility = book.links[index].mobility;
        let motion = mobility.note(now_secs);
        if motion == Motion::Moves {
            if let Err(beyond) = self.census.transfer(from, port) {
                return self.refuse_at_port(beyond);
            }
            book.unlink(index, from);
            self.put(book, index, Station::new(key, port), now_secs);
        }
        book.links[index].mobility = mobility;
        match motion {
            Motion::Moves => {
                self.moved.fetch_add(1, Ordering::Relaxed);
                Learned::Moved(from)
            }
            Motion::Flaps => {
                self.flapped.fetch_add(1, Ordering::Relaxed);
                self.census.report(Flap { mac: key.mac(), stays: from, heard: port });
                Learned::Held
            }
            Motion::Held => Learned::Held,
        }
    }

    fn learn_new(&self, book: &mut Book, now: Timestamp, station: Station) -> Learned {
        let (key, port) = (station.key(), station.port());
        let is_full = self.len() >= self.capacity();
        if let Some(beyond) = self.when_full().filter(|_| is_full) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Learned::TableFull(beyond);
        }
        if let Err(beyond) = self.census.enter(port) {
            return self.refuse_at_port(beyond);
        }
        if is_full {
            let victim = self.least_deserving(book, port);
            self.evict(book, victim);
        }
        let Some(index) = self.free_slot(book, key) else {
            self.census.leave(port);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Learned::TableFull(self.when_full().unwrap_or_default());
        };
        self.enter(book, index, station, now.as_secs());
        self.learned.fetch_add(1, Ordering::Relaxed);
        Learned::New
    }

    fn refuse_at_port(&self, beyond: AtLimit) -> Learned {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Learned::PortFull(beyond)
    }

    /// Takes over an entry of another table of the network, which is counted already.
    pub(super) fn adopt(&self, book: &mut Book, slot: &Slot, link: &Link) {
        let station = slot.station();
        if self.len() >= self.capacity() {
            let victim = self.least_deserving(book, station.port());
            self.evict(book, victim);
        }
        match self.free_slot(book, station.key()) {
            Some(index) => {
                self.enter(book, index, station, slot.seen_secs());
                book.links[index].mobility = link.mobility;
            }
            None => {
                self.census.leave(station.port());
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
