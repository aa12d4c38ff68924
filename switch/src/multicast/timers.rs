//! What is due when: one entry for each thing that ends.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Family;
use crate::vlan::Vlan;
use crate::{PortId, Timestamp};

/// What time brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// weft asks everybody.
    Query(Vlan, Family),
    /// A port is to be asked that has just come.
    Newcomer(Vlan, Family, PortId),
    /// A port does not get everything any more.
    Settled(Vlan, Family, PortId),
    /// The other querier has not been heard of.
    Other(Vlan, Family),
    /// A router has not been heard of.
    Router(Vlan, Family, PortId),
    /// A port is asked once more whether it still wants a group.
    Ask(Vlan, IpAddr, PortId),
    /// A port does not want a group any more.
    Member(Vlan, IpAddr, PortId),
}

/// All timers, in order. Whoever has one says when it was to go off, so that there is never a second entry.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Timestamp, Timer)>);

impl Timers {
    /// Moves a timer, starts or stops it.
    pub(super) fn set(&mut self, timer: Timer, before: Option<Timestamp>, at: Option<Timestamp>) {
        if let Some(before) = before {
            self.0.remove(&(before, timer));
        }
        if let Some(at) = at {
            self.0.insert((at, timer));
        }
    }

    /// When the first goes off.
    pub(super) fn first(&self) -> Option<Timestamp> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Takes the first that has gone off.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<Timer> {
        if self.first()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, timer)| timer)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
