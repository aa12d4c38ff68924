//! What the hosts of a network are called: each name belongs to one address.
//!
//! A guest chooses its name, but not one that somebody else has or that leads others astray: reserved names and those of other ports
//! are not for it, and neither are those that software looks up by itself.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::settings::Reservation;
use crate::HostName;

/// Names that stand for the gateway and for whoever asks.
pub(super) const TAKEN: [&str; 2] = ["gateway", "localhost"];
/// Names that no guest gets: the gateway's own, and those that are looked up unasked for (proxies, tunnels), so that who has them
/// could redirect others' traffic.
const FORBIDDEN: [&str; 4] = ["gateway", "localhost", "wpad", "isatap"];

#[derive(Debug, Default)]
pub(super) struct Names {
    leased: BTreeMap<HostName, Ipv4Addr>,
    reserved: BTreeMap<HostName, Ipv4Addr>,
    ports: BTreeMap<HostName, Arc<str>>,
}

impl Names {
    /// Replaces the reserved names.
    pub(super) fn reserve(&mut self, reservations: &[Reservation]) {
        let named = |reservation: &Reservation| reservation.hostname.clone().map(|name| (name, reservation.address));
        self.reserved = reservations.iter().filter_map(named).collect();
    }

    /// A port is there, and so its name isn't for guests behind others.
    pub(super) fn add_port(&mut self, port: &Arc<str>) {
        if let Some(name) = HostName::from_port(port) {
            self.ports.entry(name).or_insert_with(|| Arc::clone(port));
        }
    }

    pub(super) fn remove_port(&mut self, port: &Arc<str>) {
        self.ports.retain(|_, other| other != port);
    }

    /// The name for a host: the one reserved for its address, the one that it wants, or that of its port, whichever can be had first. It leaves the
    /// addresses in `left`, and may take their names along.
    pub(super) fn choose(
        &self,
        address: Ipv4Addr,
        left: &[Ipv4Addr],
        port: &Arc<str>,
        wanted: Option<&HostName>,
    ) -> Option<HostName> {
        if let Some((name, _)) = self.reserved.iter().find(|(_, other)| **other == address) {
            return Some(name.clone());
        }
        let of_port = HostName::from_port(port);
        let can_have = |name: &&HostName| {
            let foreign_port = self.ports.get(*name).is_some_and(|other| other != port);
            let foreign = |other: &Ipv4Addr| *other != address && !left.contains(other);
            let taken = self.leased.get(*name).is_some_and(foreign) || self.reserved.contains_key(*name);
            !foreign_port && !taken && !FORBIDDEN.contains(&name.as_str())
        };
        wanted.into_iter().chain(&of_port).find(can_have).cloned()
    }

    /// `address` is leased to a host of this name.
    pub(super) fn add(&mut self, name: HostName, address: Ipv4Addr) {
        self.leased.insert(name, address);
    }

    /// The lease of `address`, whose host had this name, has ended.
    pub(super) fn remove(&mut self, name: &HostName, address: Ipv4Addr) {
        if self.leased.get(name) == Some(&address) {
            self.leased.remove(name);
        }
    }

    /// The address of the host of this name.
    pub(super) fn address(&self, name: &HostName) -> Option<Ipv4Addr> {
        self.reserved.get(name).or_else(|| self.leased.get(name)).copied()
    }

    /// The port of this name.
    pub(super) fn port(&self, name: &HostName) -> Option<&str> {
        self.ports.get(name).map(AsRef::as_ref)
    }

    /// The name reserved for an address.
    pub(super) fn reserved_for(&self, address: Ipv4Addr) -> Option<&HostName> {
        self.reserved.iter().find(|(_, other)| **other == address).map(|(name, _)| name)
    }
}
