//! Which ports want which groups, and until when.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::timers::{Timer, Timers};
use super::{News, group_mac};
use crate::vlan::Vlan;
use crate::{MacAddr, PortId, Timestamp};

/// The members of all groups. Those that share a MAC address stand side by side.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: BTreeMap<(Vlan, MacAddr, IpAddr), BTreeMap<PortId, Member>>,
    by_port: BTreeMap<PortId, usize>,
    len: usize,
}

/// A port that wants a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) until: Timestamp,
    /// The version that was used last; 1 once that was used.
    pub(super) version: u8,
    /// When it is asked once more, if it was asked already.
    pub(super) ask_at: Option<Timestamp>,
}

type Place = (Vlan, IpAddr);

fn key((vlan, group): Place) -> (Vlan, MacAddr, IpAddr) {
    (vlan, group_mac(group), group)
}

fn timer((vlan, group): Place, port: PortId) -> Timer {
    Timer::Member(vlan, group, port)
}

impl Groups {
    /// Memberships in all.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Those of one port.
    pub(super) fn of_port(&self, port: PortId) -> usize {
        self.by_port.get(&port).copied().unwrap_or(0)
    }

    pub(super) fn member(&self, place: Place, port: PortId) -> Option<Member> {
        self.groups.get(&key(place))?.get(&port).copied()
    }

    fn member_mut(&mut self, place: Place, port: PortId) -> Option<&mut Member> {
        self.groups.get_mut(&key(place))?.get_mut(&port)
    }

    /// The ports that want a group.
    pub(super) fn members(&self, place: Place) -> Vec<PortId> {
        self.groups.get(&key(place)).map(|members| members.keys().copied().collect()).unwrap_or_default()
    }

    /// All groups with their members.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Vlan, IpAddr, &BTreeMap<PortId, Member>)> {
        self.groups.iter().map(|((vlan, _, group), members)| (*vlan, *group, members))
    }

    /// Who wants what is sent to a MAC address.
    pub(super) fn news(&self, vlan: Vlan, mac: MacAddr) -> News {
        let all = self.groups.range((vlan, mac, IpAddr::from([0; 4]))..);
        let with_mac = all.take_while(|((of, other, _), _)| (*of, *other) == (vlan, mac));
        let mut ports: Vec<_> = with_mac.flat_map(|(_, members)| members.keys().copied()).collect();
        ports.sort_unstable();
        ports.dedup();
        News::Group(vlan, mac.into(), ports)
    }

    /// A member says again that it is one. False if it is none.
    pub(super) fn renew(&mut self, timers: &mut Timers, place: Place, port: PortId, version: u8, until: Timestamp) -> bool {
        let Some(member) = self.member_mut(place, port) else { return false };
        timers.set(timer(place, port), Some(member.until), Some(until));
        member.until = until;
        // There may be several hosts, and one of them would not answer when it is asked (RFC 2236, section 5).
        member.version = if member.version == 1 { 1 } else { version };
        true
    }

    pub(super) fn insert(&mut self, timers: &mut Timers, place: Place, port: PortId, version: u8, until: Timestamp) {
        self.groups.entry(key(place)).or_default().insert(port, Member { until, version, ask_at: None });
        *self.by_port.entry(port).or_default() += 1;
        self.len += 1;
        timers.set(timer(place, port), None, Some(until));
    }

    pub(super) fn remove(&mut self, timers: &mut Timers, place: Place, port: PortId) {
        let Some(members) = self.groups.get_mut(&key(place)) else { return };
        let Some(member) = members.remove(&port) else { return };
        if members.is_empty() {
            self.groups.remove(&key(place));
        }
        timers.set(timer(place, port), Some(member.until), None);
        timers.set(Timer::Ask(place.0, place.1, port), member.ask_at, None);
        self.len -= 1;
        if let Some(count) = self.by_port.get_mut(&port) {
            *count -= 1;
            if *count == 0 {
                self.by_port.remove(&port);
            }
        }
    }

    /// A membership ends then, unless it does before.
    pub(super) fn shorten(&mut self, timers: &mut Timers, place: Place, port: PortId, until: Timestamp) {
        if let Some(member) = self.member_mut(place, port).filter(|member| until < member.until) {
            timers.set(timer(place, port), Some(member.until), Some(until));
            member.until = until;
        }
    }

    /// When a member is to be asked once more.
    pub(super) fn ask_again(&mut self, timers: &mut Timers, place: Place, port: PortId, at: Option<Timestamp>) {
        if let Some(member) = self.member_mut(place, port) {
            timers.set(Timer::Ask(place.0, place.1, port), member.ask_at, at);
            member.ask_at = at;
        }
    }

    /// A port is gone. Returns what it was a member of.
    pub(super) fn forget_port(&mut self, timers: &mut Timers, port: PortId) -> Vec<Place> {
        if self.of_port(port) == 0 {
            return Vec::new();
        }
        let of_port = self.groups.iter().filter(|(_, members)| members.contains_key(&port));
        let places: Vec<_> = of_port.map(|((vlan, _, group), _)| (*vlan, *group)).collect();
        places.iter().for_each(|place| self.remove(timers, *place, port));
        places
    }
}
