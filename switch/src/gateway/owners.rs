//! Who owns which address: leases, and what guests say in ARP and in the packets they send.
//!
//! A leased address belongs to the port that leased it, and nobody else is heard when they claim it. An address without a lease (a
//! guest configured by hand) belongs to whoever was heard last, as on any Ethernet.
//!
//! Bounded and fair without a common bound: each port has room for [`LEARNED_PER_PORT`] learned addresses of its own, and the one not
//! heard of for the longest makes way. Leases are bounded by the DHCP server's pool.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::{DropReason, PortId, Station, Timestamp};

/// The most learned addresses behind one port: a guest that bridges others has some, one that invents them fills only this.
pub(super) const LEARNED_PER_PORT: usize = 64;
/// A learned address that was not heard of for this long is forgotten.
const LEARNED_FOR: Duration = Duration::from_secs(20 * 60);

#[derive(Debug, Default)]
pub(super) struct Owners {
    by_address: HashMap<Ipv4Addr, Owner, ahash::RandomState>,
    learned: HashMap<PortId, Vec<Ipv4Addr>, ahash::RandomState>,
    leased: HashMap<PortId, BTreeSet<Ipv4Addr>, ahash::RandomState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    station: Station,
    /// When it was last heard; `None` for a lease.
    heard: Option<Timestamp>,
}

impl Owners {
    /// Where `address` can be reached, if that is known.
    pub(super) fn find(&self, now: Timestamp, address: Ipv4Addr) -> Option<Station> {
        let owner = self.by_address.get(&address)?;
        let stale = owner.heard.is_some_and(|heard| now.since(heard) > LEARNED_FOR);
        (!stale).then_some(owner.station)
    }

    /// `station` uses `address`.
    ///
    /// # Errors
    /// [`DropReason::SpoofedSource`] when the address was leased to another port.
    pub(super) fn hear(&mut self, now: Timestamp, address: Ipv4Addr, station: Station) -> Result<(), DropReason> {
        match self.by_address.get_mut(&address) {
            Some(owner) if owner.station.port == station.port => {
                // Which of its own MAC addresses a leased address is at is the guest's own affair.
                owner.station = station;
                if let Some(heard) = &mut owner.heard {
                    *heard = now;
                }
            }
            Some(Owner { heard: None, .. }) => return Err(DropReason::SpoofedSource),
            Some(_) => {
                self.forget(address);
                self.learn(now, address, station);
            }
            None => self.learn(now, address, station),
        }
        Ok(())
    }

    /// `address` is leased to `station`.
    pub(super) fn lease(&mut self, address: Ipv4Addr, station: Station) {
        self.forget(address);
        self.by_address.insert(address, Owner { station, heard: None });
        self.leased.entry(station.port).or_default().insert(address);
    }

    /// The port to which `address` is leased.
    pub(super) fn lessee(&self, address: Ipv4Addr) -> Option<PortId> {
        self.by_address.get(&address).filter(|owner| owner.heard.is_none()).map(|owner| owner.station.port)
    }

    /// What is leased to `port`, in order.
    pub(super) fn leases_of(&self, port: PortId) -> impl Iterator<Item = Ipv4Addr> {
        self.leased.get(&port).into_iter().flatten().copied()
    }

    /// Forgets an address, leased or learned.
    pub(super) fn forget(&mut self, address: Ipv4Addr) {
        let Some(owner) = self.by_address.remove(&address) else { return };
        let port = owner.station.port;
        if owner.heard.is_some() {
            if let Some(learned) = self.learned.get_mut(&port) {
                learned.retain(|other| *other != address);
            }
        } else if let Some(leased) = self.leased.get_mut(&port) {
            leased.remove(&address);
            if leased.is_empty() {
                self.leased.remove(&port);
            }
        }
    }

    /// Forgets every address behind `port`.
    pub(super) fn forget_port(&mut self, port: PortId) {
        self.learned.remove(&port);
        self.leased.remove(&port);
        self.by_address.retain(|_, owner| owner.station.port != port);
    }

    /// Forgets what was not heard of for too long.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let Self { by_address, learned, .. } = self;
        learned.retain(|_, addresses| {
            addresses.retain(|address| {
                let heard = by_address.get(address).and_then(|owner| owner.heard);
                let stale = heard.is_some_and(|heard| now.since(heard) > LEARNED_FOR);
                if stale {
                    by_address.remove(address);
                }
                !stale
            });
            !addresses.is_empty()
        });
    }

    fn learn(&mut self, now: Timestamp, address: Ipv4Addr, station: Station) {
        let learned = self.learned.entry(station.port).or_default();
        if learned.len() >= LEARNED_PER_PORT {
            let heard = |address: &Ipv4Addr| self.by_address.get(address).and_then(|owner| owner.heard);
            let oldest = (0..learned.len()).min_by_key(|index| heard(&learned[*index]));
            if let Some(oldest) = oldest {
                let evicted = learned.swap_remove(oldest);
                self.by_address.remove(&evicted);
            }
        }
        learned.push(address);
        self.by_address.insert(address, Owner { station, heard: Some(now) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MacAddr;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    fn address(index: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 77, 0, 0).to_bits() + index as u32)
    }

    fn station(port: u16) -> Station {
        Station { port: PortId(port), mac: MacAddr([2, 0, 0, 0, 0, port as u8]) }
    }

    #[test]
    fn a_learned_address_moves_and_a_leased_one_does_not() {
        let mut owners = Owners::default();
        owners.hear(NOW, address(1), station(1)).unwrap();
        owners.hear(NOW, address(1), station(2)).unwrap();
        assert_eq!(owners.find(NOW, address(1)), Some(station(2)));
        owners.lease(address(1), station(1));
        assert_eq!(owners.hear(NOW, address(1), station(2)), Err(DropReason::SpoofedSource));
        assert_eq!(owners.find(NOW, address(1)), Some(station(1)));
        owners.forget(address(1));
        assert_eq!(owners.find(NOW, address(1)), None);
        assert!(owners.learned.values().all(Vec::is_empty));
    }

    #[test]
    fn what_is_leased_to_a_port_is_known_in_order_until_the_lease_ends_or_another_port_has_it() {
        let mut owners = Owners::default();
        let leases = |owners: &Owners, port| owners.leases_of(PortId(port)).collect::<Vec<_>>();
        owners.lease(address(2), station(1));
        owners.lease(address(1), station(1));
        owners.hear(NOW, address(3), station(1)).unwrap();
        assert_eq!(leases(&owners, 1), [address(1), address(2)]);
        assert_eq!((owners.lessee(address(1)), owners.lessee(address(3))), (Some(PortId(1)), None));
        owners.lease(address(1), station(2));
        assert_eq!((leases(&owners, 1), leases(&owners, 2)), (vec![address(2)], vec![address(1)]));
        owners.forget(address(2));
        owners.forget_port(PortId(2));
        assert!(owners.leased.is_empty());
    }

    #[test]
    fn a_guest_that_invents_addresses_evicts_its_own() {
        let mut owners = Owners::default();
        owners.hear(NOW, address(100_000), station(1)).unwrap();
        owners.lease(address(100_001), station(2));
        for index in 0..10_000 {
            owners.hear(Timestamp::from_millis(2_000 + index as u64), address(index), station(2)).unwrap();
        }
        let now = Timestamp::from_millis(20_000);
        assert_eq!(owners.find(now, address(100_000)), Some(station(1)));
        assert_eq!(owners.find(now, address(100_001)), Some(station(2)));
        assert_eq!(owners.by_address.len(), LEARNED_PER_PORT + 2);
        assert_eq!(owners.find(now, address(9_999)), Some(station(2)));
    }

    #[test]
    fn what_was_learned_is_forgotten_after_a_while_and_leases_are_not() {
        let mut owners = Owners::default();
        owners.hear(NOW, address(1), station(1)).unwrap();
        owners.lease(address(2), station(1));
        let later = NOW.after(LEARNED_FOR + Duration::from_secs(1));
        assert_eq!(owners.find(later, address(1)), None);
        owners.expire(later);
        assert_eq!((owners.by_address.len(), owners.learned.len()), (1, 0));
        owners.forget_port(PortId(1));
        assert_eq!(owners.find(later, address(2)), None);
    }
}
