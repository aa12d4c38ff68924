//! The addresses: who has which, who had it, which are free.
//!
//! # Theory
//!
//! Every address that was ever given away has an [`Entry`], at most one each, and that is why no two clients can hold the same
//! one: whoever wants an address looks at its entry first. All changes go through [`Table::set`] and [`Table::remove`], which keep the
//! indexes in step.
//!
//! New addresses are taken in ascending order from those that never had an entry, then from the free ones, the longest free first, so
//! that a client that comes back late still finds its old one free. Both are found without looking at the others: a client that asks
//! for ever costs the same when the pool is full.
//!
//! What a port may hold is limited by [`Table::has_room`]. Offered and quarantined addresses count like leased ones, else a guest
//! could take the whole pool by asking and declining.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::lease::ClientId;
use crate::{AddressRange, HostName, MacAddr, Timestamp};

/// A client, behind its port. What a guest calls itself counts behind its own port only, so nobody can take another's lease by
/// using its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Client {
    pub(super) port: Arc<str>,
    pub(super) id: ClientId,
}

/// What is known about an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) client: Client,
    pub(super) mac: MacAddr,
    pub(super) hostname: Option<HostName>,
    pub(super) state: State,
}

/// What an address is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It was, or is about to be, offered to the client.
    Offered { until: Timestamp },
    /// The client has it.
    Leased { until: Timestamp },
    /// Somebody uses it without a lease; the client is the one that found out, or that it was meant for.
    Quarantined { until: Timestamp },
    /// The client had it, and gets it again if it comes back in time.
    Free { since: Timestamp },
}

impl State {
    fn deadline(self) -> Option<Timestamp> {
        match self {
            Self::Offered { until } | Self::Leased { until } | Self::Quarantined { until } => Some(until),
            Self::Free { .. } => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Table {
    pool: AddressRange,
    /// Addresses in the pool or outside that are given to nobody but whom they are kept for.
    kept: BTreeSet<Ipv4Addr>,
    leases_per_port: Option<u32>,
    entries: BTreeMap<Ipv4Addr, Entry>,
    /// Where a client's newest entry is.
    by_client: BTreeMap<Client, Ipv4Addr>,
    /// What is leased to whom behind a port.
    leased: BTreeMap<Arc<str>, BTreeMap<ClientId, Ipv4Addr>>,
    deadlines: BTreeSet<(Timestamp, Ipv4Addr)>,
    /// Free addresses of the pool, by how long they have been free.
    free: BTreeSet<(Timestamp, Ipv4Addr)>,
    /// From here on (as a number) there may be addresses of the pool without an entry.
    unused_from: u32,
    /// By port, how many addresses of the pool are not free because of it.
    held: BTreeMap<Arc<str>, u32>,
    held_in_all: u32,
    kept_in_pool: u32,
}

/// Why no address was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAddress {
    /// All are in use.
    PoolFull,
    /// The port has its share.
    ShareExceeded,
}

impl Table {
    pub(super) fn new(pool: AddressRange, kept: BTreeSet<Ipv4Addr>, leases_per_port: Option<u32>) -> Self {
        let kept_in_pool = kept.iter().filter(|address| pool.contains(**address)).count() as u32;
        Self {
            pool,
            kept,
            leases_per_port,
            entries: BTreeMap::new(),
            by_client: BTreeMap::new(),
            leased: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            free: BTreeSet::new(),
            unused_from: pool.first().to_bits(),
            held: BTreeMap::new(),
            held_in_all: 0,
            kept_in_pool,
        }
    }

    pub(super) fn entry(&self, address: Ipv4Addr) -> Option<&Entry> {
        self.entries.get(&address)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (Ipv4Addr, &Entry)> {
        self.entries.iter().map(|(address, entry)| (*address, entry))
    }

    /// Where the client's newest entry is.
    pub(super) fn address_of(&self, client: &Client) -> Option<Ipv4Addr> {
        self.by_client.get(client).copied()
    }

    /// What is leased to the client.
    pub(super) fn lease_of(&self, client: &Client) -> Option<Ipv4Addr> {
        self.leased.get(&client.port)?.get(&client.id).copied()
    }

    /// What is leased to the client behind a port, if that is one only.
    pub(super) fn only_lease_of(&self, port: &str) -> Option<Ipv4Addr> {
        let leased = self.leased.get(port)?;
        leased.values().next().filter(|_| leased.len() == 1).copied()
    }

    /// True for addresses that whoever asks may get.
    pub(super) fn is_dynamic(&self, address: Ipv4Addr) -> bool {
        self.pool.contains(address) && !self.kept.contains(&address)
    }

    /// True if nobody has the address or is about to.
    pub(super) fn is_free(&self, address: Ipv4Addr) -> bool {
        self.entries.get(&address).is_none_or(|entry| matches!(entry.state, State::Free { .. }))
    }

    /// Changes what is known about an address.
    pub(super) fn set(&mut self, address: Ipv4Addr, entry: Entry) {
        self.remove(address);
        if let Some(until) = entry.state.deadline() {
            self.deadlines.insert((until, address));
        }
        match entry.state {
            State::Free { since } => {
                if self.is_dynamic(address) {
                    self.free.insert((since, address));
                }
                self.by_client.entry(entry.client.clone()).or_insert(address);
            }
            State::Quarantined { .. } => self.count(address, &entry.client.port),
            State::Offered { .. } | State::Leased { .. } => {
                self.count(address, &entry.client.port);
                self.by_client.insert(entry.client.clone(), address);
            }
        }
        if let State::Leased { .. } = entry.state {
            let Client { port, id } = entry.client.clone();
            self.leased.entry(port).or_default().insert(id, address);
        }
        self.entries.insert(address, entry);
    }

    /// Forgets what is known about an address. One of the pool must not be forgotten but only replaced, unless the table is not
    /// used any more: it would be found again only after all others.
    fn remove(&mut self, address: Ipv4Addr) {
        let Some(entry) = self.entries.remove(&address) else { return };
        if let Some(until) = entry.state.deadline() {
            self.deadlines.remove(&(until, address));
        }
        if self.by_client.get(&entry.client) == Some(&address) {
            self.by_client.remove(&entry.client);
        }
        if let Some(leased) = self.leased.get_mut(&entry.client.port)
            && leased.get(&entry.client.id) == Some(&address)
        {
            leased.remove(&entry.client.id);
            if leased.is_empty() {
                self.leased.remove(&entry.client.port);
            }
        }
        match entry.state {
            State::Free { since } => drop(self.free.remove(&(since, address))),
            _ if self.is_dynamic(address) => {
                self.held_in_all -= 1;
                if let Some(held) = self.held.get_mut(&entry.client.port) {
                    *held -= 1;
                    if *held == 0 {
                        self.held.remove(&entry.client.port);
                    }
                }
            }
            _ => {}
        }
    }

    fn count(&mut self, address: Ipv4Addr, port: &Arc<str>) {
        if self.is_dynamic(address) {
            self.held_in_all += 1;
            *self.held.entry(Arc::clone(port)).or_default() += 1;
        }
    }

    /// How many addresses of the pool nobody has.
    pub(super) fn free_count(&self) -> u32 {
        self.pool.len() - self.kept_in_pool - self.held_in_all
    }

    /// Whether a client behind `port` may get one more address of the pool. Without a fixed limit a port may hold as many as stay
    /// free: one port gets half of the pool at most, two get a third each, and there is always one for the next.
    pub(super) fn has_room(&self, port: &str) -> Result<(), NoAddress> {
        let (free, held) = (self.free_count(), self.held.get(port).copied().unwrap_or(0));
        let limit = self.leases_per_port.unwrap_or(free.max(1));
        match (free, held < limit) {
            (0, _) => Err(NoAddress::PoolFull),
            (_, false) => Err(NoAddress::ShareExceeded),
            (_, true) => Ok(()),
        }
    }

    /// An address of the pool that nobody has, for a client behind `port`.
    pub(super) fn find_free(&mut self, port: &str) -> Result<Ipv4Addr, NoAddress> {
        self.has_room(port)?;
        while self.unused_from <= self.pool.last().to_bits() {
            let address = Ipv4Addr::from_bits(self.unused_from);
            if self.is_dynamic(address) && !self.entries.contains_key(&address) {
                // It is passed only when it has an entry, so an address that is looked at and not taken isn't lost.
                return Ok(address);
            }
            self.unused_from += 1;
        }
        self.free.first().map(|(_, address)| *address).ok_or(NoAddress::PoolFull)
    }

    /// When the next offer, lease or quarantine ends.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(until, _)| *until)
    }

    /// Frees one address whose time has come; says which, and what it was.
    pub(super) fn expire(&mut self, now: Timestamp) -> Option<(Ipv4Addr, Entry)> {
        let (_, address) = self.deadlines.first().copied().filter(|(until, _)| *until <= now)?;
        let entry = self.entries.get(&address)?.clone();
        let since = match entry.state {
            // Nobody ever had it, so it is the first to be given to somebody else.
            State::Offered { .. } => Timestamp::default(),
            State::Leased { .. } | State::Quarantined { .. } | State::Free { .. } => now,
        };
        self.set(address, Entry { state: State::Free { since }, hostname: None, ..entry.clone() });
        Some((address, entry))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: u8 = 10;
    const LAST: u8 = 25;

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, last)
    }

    fn client(number: u8) -> Client {
        Client { port: format!("vm{}", number % 3).into(), id: ClientId::Mac(MacAddr([2, 0, 0, 0, 0, number])) }
    }

    fn table() -> Table {
        let kept = [address(12), address(200)].into();
        Table::new(AddressRange::new(address(FIRST), address(LAST)).unwrap(), kept, None)
    }

    /// Every index says what the entries say.
    fn check(table: &Table) {
        let entries = || table.entries.iter().map(|(address, entry)| (*address, entry));
        let deadlines: BTreeSet<_> =
            entries().filter_map(|(at, entry)| entry.state.deadline().map(|until| (until, at))).collect();
        assert_eq!(table.deadlines, deadlines);
        let free = entries().filter_map(|(at, entry)| match entry.state {
            State::Free { since } if table.is_dynamic(at) => Some((since, at)),
            _ => None,
        });
        assert_eq!(table.free, free.collect());
        let mut held: BTreeMap<Arc<str>, u32> = BTreeMap::new();
        for (_, entry) in entries().filter(|(at, _)| table.is_dynamic(*at) && !table.is_free(*at)) {
            *held.entry(Arc::clone(&entry.client.port)).or_default() += 1;
        }
        assert_eq!((table.held_in_all, &table.held), (held.values().sum(), &held));
        for (client, address) in &table.by_client {
            let entry = &table.entries[address];
            assert!(entry.client == *client && !matches!(entry.state, State::Quarantined { .. }));
        }
        for (port, leased) in &table.leased {
            assert!(!leased.is_empty());
            for (id, address) in leased {
                let entry = &table.entries[address];
                assert!(entry.client.port == *port && entry.client.id == *id && matches!(entry.state, State::Leased { .. }));
            }
        }
    }

    proptest! {
        #[test]
        fn indexes_and_entries_agree_and_every_free_address_is_found(
            steps in prop::collection::vec((0..5u8, 8..28u8, 0..9u8, 1..100u64), 0..80),
        ) {
            let mut table = table();
            let mut now = Timestamp::default();
            for (kind, last, number, time) in steps {
                now = now.after(std::time::Duration::from_secs(time));
                let until = now.after(std::time::Duration::from_secs(time * 7));
                let state = match kind {
                    0 => State::Offered { until },
                    1 => State::Leased { until },
                    2 => State::Quarantined { until },
                    3 => State::Free { since: now },
                    _ => {
                        while table.expire(now).is_some() {}
                        prop_assert!(table.next_deadline().is_none_or(|next| next > now));
                        continue;
                    }
                };
                let last = if last == 8 { 200 } else { last.clamp(FIRST, LAST) };
                table.set(address(last), Entry { client: client(number), mac: MacAddr([2; 6]), hostname: None, state });
                check(&table);
            }
            let free = table.free_count();
            for _ in 0..free {
                let found = table.find_free("newcomer").or_else(|_| table.find_free("another")).unwrap();
                prop_assert!(table.is_free(found) && table.is_dynamic(found));
                let port = if table.has_room("newcomer").is_ok() { "newcomer" } else { "another" };
                let client = Client { port: port.into(), ..client(0) };
                let state = State::Leased { until: now };
                table.set(found, Entry { client, mac: MacAddr([2; 6]), hostname: None, state });
                table.held.clear();
            }
            prop_assert_eq!(table.find_free("newcomer"), Err(NoAddress::PoolFull));
        }
    }

    #[test]
    fn what_was_free_for_the_longest_is_given_first_and_what_was_never_used_before_that() {
        let mut table = table();
        let entry = |number, since| Entry {
            client: client(number),
            mac: MacAddr([2; 6]),
            hostname: None,
            state: State::Free { since: Timestamp::from_millis(since) },
        };
        table.set(address(11), entry(1, 5));
        table.set(address(10), entry(2, 9));
        for expected in 13..=LAST {
            assert_eq!(
                table.find_free("vm0"),
                Ok(address(expected)),
                "neither 10 and 11, which were used, nor 12, which is kept"
            );
            assert_eq!(table.find_free("vm0"), Ok(address(expected)), "to look at it is not to take it");
            table.set(address(expected), entry(3, 20));
        }
        assert_eq!(table.find_free("vm0"), Ok(address(11)));
        assert_eq!(table.address_of(&client(2)), Some(address(10)));
    }
}
