//! The DHCP server of a network (RFC 2131, RFC 2132), as a pure state machine.
//!
//! # Theory
//!
//! [`DhcpServer::handle`] takes one message and adds to a list of [`Action`]s what is to be done, in that order. The server itself sends
//! nothing, writes nothing and waits for nothing:
//!
//! - **A lease is written down before its client hears of it.** A lease that is given or renewed comes out as [`Action::Persist`]
//!   with a [`Ticket`]; the acknowledgement stays inside until the caller has written the change down so that it
//!   survives a crash (fsync) and says so with [`DhcpServer::confirm`]. One confirmation may stand for many tickets.
//! - **An address is looked for before it is offered** (RFC 2131, section 3.1, point 2). [`Action::Probe`] asks the caller to send an
//!   ARP probe; the offer waits until the time for an answer has passed ([`DhcpServer::next_tick`]). The gateway tells
//!   [`DhcpServer::heard`] about everybody who says in ARP that it has an address.
//! - **Whoever has an address is told to the gateway** ([`Action::Leased`], [`Action::Ended`]), so that nobody else can use it.
//!
//! What can go wrong is meant to go wrong for one guest only. A client is known by what it calls itself *and* the port it is behind, so
//! nobody can take or release another's lease. Answers go to the port from which the question came, and to no other. A port can hold
//! a share of the pool, and what it declines, or claims by ARP to be in use, counts as held by it. Nothing that is kept here is without
//! a bound: entries are bounded by the pool and the reservations, probes by [`PROBES_MAX`], acknowledgements that wait by
//! [`PENDING_MAX`].
//!
//! The server is the only one on its network. So it trusts a client that renews an address of which nothing is known but which is free
//! (the state may have been lost), while it stays silent to one that merely remembers an address from some earlier time (RFC 2131,
//! section 4.3.2).

mod decide;
mod lease;
mod names;
mod reply;
mod request;
mod settings;
mod table;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

pub use lease::{
    ClientId, ClientIdentifier, LeaseBook, LeaseBookError, LeaseChange, LeaseRecord, LeaseState, ParseClientIdError, UnixSeconds,
};
pub use settings::{DhcpSettings, DhcpSettingsError, Reservation, ReservationOwner};

use self::decide::Asker;
use self::names::Names;
use self::table::{Client, Entry, State, Table};
use crate::{HostName, Outgoing, PortId, Station, Timestamp};

/// The most addresses that are probed at a time; beyond, addresses are offered without a probe.
pub const PROBES_MAX: usize = 256;
/// The most acknowledgements that wait to be confirmed.
pub const PENDING_MAX: usize = 4096;
/// The most of them for clients behind one port.
pub const PENDING_PER_PORT: usize = 512;

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this frame.
    Send(Outgoing),
    /// Send an ARP probe for this address ([`Gateway::probe`](crate::gateway::Gateway::probe)).
    Probe(Ipv4Addr),
    /// Write this change down, durably, then [`DhcpServer::confirm`] it. Changes are written in the order in which they come.
    Persist {
        /// To be given back.
        ticket: Ticket,
        /// What to write.
        change: LeaseChange,
    },
    /// An address belongs to this station from now on ([`Gateway::lease`](crate::gateway::Gateway::lease)).
    Leased {
        /// The address.
        address: Ipv4Addr,
        /// Who has it.
        station: Station,
    },
    /// An address belongs to nobody any more ([`Gateway::end_lease`](crate::gateway::Gateway::end_lease)).
    Ended {
        /// The address.
        address: Ipv4Addr,
    },
    /// Something that an operator wants to read.
    Log(DhcpEvent),
}

/// Names a change that is to be written down. Later changes have larger tickets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Something that an operator wants to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DhcpEvent {
    /// No address is free. Said once, and again only after there was one in between, and some time has passed.
    PoolFull,
    /// A client says that the address it got is in use; nobody gets it for a while.
    Declined {
        /// The address.
        address: Ipv4Addr,
        /// Who says so.
        station: Station,
    },
    /// Somebody uses a free address of the pool; nobody gets it for a while.
    InUse {
        /// The address.
        address: Ipv4Addr,
        /// Who uses it.
        station: Station,
    },
}

/// What a server did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DhcpCounters {
    /// Addresses that were offered.
    pub offers: u64,
    /// Leases that were given or renewed, confirmed or not.
    pub leases: u64,
    /// Requests that were refused.
    pub naks: u64,
    /// Clients that were told parameters without a lease.
    pub informs: u64,
    /// Addresses that clients gave back.
    pub releases: u64,
    /// Addresses that clients declined.
    pub declines: u64,
    /// Addresses that somebody was heard to use.
    pub in_use: u64,
    /// Leases that ended because nobody renewed them.
    pub expired: u64,
    /// Times that no address was free.
    pub pool_full: u64,
    /// Times that a port had its share already.
    pub share_exceeded: u64,
}

/// The DHCP server of one network.
#[derive(Debug)]
pub struct DhcpServer {
    settings: DhcpSettings,
    reserved: BTreeMap<ReservationOwner, Ipv4Addr>,
    table: Table,
    ports: BTreeMap<PortId, Arc<str>>,
    names: Names,
    probes: BTreeMap<Ipv4Addr, Probe>,
    pending: VecDeque<Pending>,
    next_ticket: u64,
    identification: u16,
    /// The same moment on both clocks.
    start: (Timestamp, UnixSeconds),
    /// When it was said that the pool is full.
    said_full: Option<Timestamp>,
    counters: DhcpCounters,
}

/// An offer that waits for an answer to an ARP probe.
#[derive(Debug)]
struct Probe {
    asker: Asker,
    until: Timestamp,
    /// How many addresses were tried for this client, this one included.
    attempt: u32,
}

/// An acknowledgement that waits to be confirmed.
#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    address: Ipv4Addr,
    /// What the client had before: it has one lease (RFC 2131, section 2.1), and uses that one until it hears of this.
    left: Vec<Ipv4Addr>,
    client: Client,
    station: Station,
    frames: Vec<Outgoing>,
}

impl DhcpServer {
    /// A server that knows the leases in `book`. `now` and `wall` are the same moment.
    ///
    /// Records of addresses that the settings don't cover are left alone.
    ///
    /// # Errors
    /// When the settings contradict each other.
    pub fn new(settings: DhcpSettings, now: Timestamp, wall: UnixSeconds, book: &LeaseBook) -> Result<Self, DhcpSettingsError> {
        settings.check()?;
        let mut server = Self {
            reserved: reserved(&settings),
            table: empty_table(&settings),
            settings,
            ports: BTreeMap::new(),
            names: Names::default(),
            probes: BTreeMap::new(),
            pending: VecDeque::new(),
            next_ticket: 0,
            identification: 0,
            start: (now, wall),
            said_full: None,
            counters: DhcpCounters::default(),
        };
        server.names.reserve(&server.settings.reservations);
        for record in book.records() {
            server.restore(now, wall, record);
        }
        Ok(server)
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &DhcpSettings {
        &self.settings
    }

    /// Changes the settings. Leases of addresses that they still cover stay as they are; the others end.
    ///
    /// # Errors
    /// When the settings contradict each other; nothing is changed then.
    pub fn reconfigure(
        &mut self,
        now: Timestamp,
        settings: DhcpSettings,
        actions: &mut Vec<Action>,
    ) -> Result<(), DhcpSettingsError> {
        settings.check()?;
        self.reserved = reserved(&settings);
        self.names.reserve(&settings.reservations);
        let old = std::mem::replace(&mut self.table, empty_table(&settings));
        self.settings = settings;
        for (address, entry) in old.entries() {
            if self.serves(address) {
                self.table.set(address, entry.clone());
                continue;
            }
            self.probes.remove(&address);
            self.persist(LeaseChange::Remove(address), actions);
            self.end(address, entry, actions);
        }
        self.said_full = None;
        self.tick(now, actions);
        Ok(())
    }

    /// A port is there. Its name must be the same after a restart: leases belong to it. The gateway is told which it has.
    pub fn attach(&mut self, port: PortId, name: &str, actions: &mut Vec<Action>) {
        let name: Arc<str> = name.into();
        self.names.add_port(&name);
        let leased = |(address, entry): (Ipv4Addr, &Entry)| {
            let leased = entry.client.port == name && matches!(entry.state, State::Leased { .. });
            leased.then_some(Action::Leased { address, station: Station { port, mac: entry.mac } })
        };
        actions.extend(self.table.entries().filter_map(leased));
        self.ports.insert(port, name);
    }

    /// A port is gone. Its leases stay until they end.
    pub fn detach(&mut self, port: PortId) {
        if let Some(name) = self.ports.remove(&port) {
            self.names.remove_port(&name);
        }
        self.probes.retain(|_, probe| probe.asker.station.port != port);
        self.pending.retain(|pending| pending.station.port != port);
    }

    /// Every change up to `ticket` is written down: what waited for that is sent.
    pub fn confirm(&mut self, now: Timestamp, ticket: Ticket, actions: &mut Vec<Action>) {
        let confirmed = self.pending.partition_point(|pending| pending.ticket <= ticket);
        let confirmed: Vec<_> = self.pending.drain(..confirmed).collect();
        for Pending { address, left, client, station, frames, .. } in confirmed {
            // A release may have overtaken it.
            if !self.is_leased_to(&client, address) {
                continue;
            }
            for left in left {
                if self.is_leased_to(&client, left) {
                    self.end_lease(now, left, actions);
                }
            }
            actions.push(Action::Leased { address, station });
            actions.extend(frames.into_iter().map(Action::Send));
        }
    }

    fn is_leased_to(&self, client: &Client, address: Ipv4Addr) -> bool {
        let entry = self.table.entry(address);
        entry.is_some_and(|entry| entry.client == *client && matches!(entry.state, State::Leased { .. }))
    }

    /// The changes up to `ticket` could not be written down: what waited for that is not sent, and the clients will ask again. The
    /// addresses stay theirs.
    pub fn fail(&mut self, ticket: Ticket) {
        self.pending.retain(|pending| pending.ticket > ticket);
    }

    /// Ends the lease or the quarantine of an address because an operator says so.
    pub fn end_lease(&mut self, now: Timestamp, address: Ipv4Addr, actions: &mut Vec<Action>) {
        if let Some(entry) = self.table.entry(address).cloned() {
            self.probes.remove(&address);
            self.table.set(address, Entry { state: State::Free { since: now }, hostname: None, ..entry.clone() });
            self.persist(LeaseChange::Remove(address), actions);
            self.end(address, &entry, actions);
        }
    }

    /// When [`Self::tick`] wants to be called, if anything is there to wait for.
    #[must_use]
    pub fn next_tick(&self) -> Option<Timestamp> {
        let probe = self.probes.values().map(|probe| probe.until).min();
        probe.into_iter().chain(self.table.next_deadline()).min()
    }

    /// What would be written down about every address now, those with leases that have ended included.
    pub fn records(&self) -> impl Iterator<Item = LeaseRecord> {
        self.table.entries().filter_map(|(address, entry)| self.record(address, entry))
    }

    /// The address of the host of this name. A port's name is also that of the guest behind it, whatever that calls itself, unless there are several.
    #[must_use]
    pub fn address_of(&self, name: &HostName) -> Option<Ipv4Addr> {
        self.names.address(name).or_else(|| self.table.only_lease_of(self.names.port(name)?))
    }

    /// The name of the host that has this address.
    #[must_use]
    pub fn name_of(&self, address: Ipv4Addr) -> Option<&HostName> {
        let leased = self.table.entry(address).filter(|entry| matches!(entry.state, State::Leased { .. }));
        leased.and_then(|entry| entry.hostname.as_ref()).or_else(|| self.names.reserved_for(address))
    }

    /// How many addresses of the pool nobody has.
    #[must_use]
    pub fn free_addresses(&self) -> u32 {
        self.table.free_count()
    }

    /// What the server did since it was made.
    #[must_use]
    pub fn counters(&self) -> DhcpCounters {
        self.counters
    }

    /// True if the settings cover the address.
    fn serves(&self, address: Ipv4Addr) -> bool {
        self.table.is_dynamic(address) || self.reserved.values().any(|reserved| *reserved == address)
    }

    fn restore(&mut self, now: Timestamp, wall: UnixSeconds, record: &LeaseRecord) {
        if !self.serves(record.address) {
            return;
        }
        let left = Duration::from_secs(record.until.0.saturating_sub(wall.0));
        let until = |longest: Duration| now.after(left.min(longest));
        let state = match record.state {
            _ if left.is_zero() => State::Free { since: now },
            // The clock may have been set back since.
            LeaseState::Leased => State::Leased { until: until(self.settings.lease_time) },
            LeaseState::Quarantined => State::Quarantined { until: until(self.settings.quarantine) },
        };
        let client = Client { port: record.port.as_str().into(), id: record.client.clone() };
        let is_leased = matches!(state, State::Leased { .. });
        // Names are taken as they were, unless somebody has written the same one twice.
        let hostname = record.hostname.clone().filter(|name| is_leased && self.names.address(name).is_none());
        if let Some(name) = &hostname {
            self.names.add(name.clone(), record.address);
        }
        self.table.set(record.address, Entry { client, mac: record.mac, hostname, state });
    }

    /// What is written down about an entry; nothing about an offer.
    fn record(&self, address: Ipv4Addr, entry: &Entry) -> Option<LeaseRecord> {
        let (state, until) = match entry.state {
            State::Offered { .. } => return None,
            // It was only offered.
            State::Free { since } if since == Timestamp::default() => return None,
            State::Leased { until } => (LeaseState::Leased, until),
            State::Quarantined { until } => (LeaseState::Quarantined, until),
            State::Free { since } => (LeaseState::Leased, since),
        };
        let (start, wall) = self.start;
        Some(LeaseRecord {
            address,
            state,
            client: entry.client.id.clone(),
            mac: entry.mac,
            port: entry.client.port.as_ref().to_owned(),
            hostname: entry.hostname.clone(),
            until: UnixSeconds(wall.0 + until.since(start).as_secs()),
        })
    }

    /// Writes down what is known about an address now.
    fn persist_entry(&mut self, address: Ipv4Addr, actions: &mut Vec<Action>) -> Ticket {
        let record = self.table.entry(address).and_then(|entry| self.record(address, entry));
        self.persist(record.map_or(LeaseChange::Remove(address), LeaseChange::Put), actions)
    }

    fn persist(&mut self, change: LeaseChange, actions: &mut Vec<Action>) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        actions.push(Action::Persist { ticket, change });
        ticket
    }

    /// What follows when `entry` was a lease and no longer is.
    fn end(&mut self, address: Ipv4Addr, entry: &Entry, actions: &mut Vec<Action>) {
        if let Some(name) = &entry.hostname {
            self.names.remove(name, address);
        }
        if matches!(entry.state, State::Leased { .. }) {
            actions.push(Action::Ended { address });
        }
    }
}

fn reserved(settings: &DhcpSettings) -> BTreeMap<ReservationOwner, Ipv4Addr> {
    settings.reservations.iter().map(|reservation| (reservation.owner.clone(), reservation.address)).collect()
}

fn empty_table(settings: &DhcpSettings) -> Table {
    let reserved = settings.reservations.iter().map(|reservation| reservation.address);
    let kept: BTreeSet<_> = reserved.chain([settings.server]).collect();
    Table::new(settings.pool, kept, settings.leases_per_port)
}

#[cfg(test)]
mod tests;
