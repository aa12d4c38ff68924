//! What can be asked of a snooper.

use std::net::IpAddr;
use std::time::Duration;

use super::{Family, Snooper};
use crate::vlan::Vlan;
use crate::{PortId, Timestamp};

/// How things are on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnoopingStatus {
    /// The groups that somebody wants, VLAN by VLAN.
    pub groups: Vec<GroupStatus>,
    /// One for each kind of address of each VLAN.
    pub queriers: Vec<QuerierStatus>,
    /// What happened since snooping began.
    pub counters: SnoopingCounters,
}

/// A group that somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The VLAN.
    pub vlan: Vlan,
    /// The group.
    pub group: IpAddr,
    /// Who wants it, the version of IGMP or MLD in which it said so last, and for how much longer.
    pub members: Vec<(PortTime, u8)>,
}

/// Something about a port that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortTime {
    /// The port.
    pub port: PortId,
    /// The time that is left; none for what has no end yet.
    pub left: Option<Duration>,
}

/// Who asks in a VLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuerierStatus {
    /// The VLAN.
    pub vlan: Vlan,
    /// The kind of addresses.
    pub family: Family,
    /// Who asks, and behind which port if it is not weft; nobody if there is none, and everything is flooded.
    pub querier: Option<(IpAddr, Option<PortTime>)>,
    /// The ports behind which routers are.
    pub routers: Vec<PortTime>,
    /// Ports that get everything because they have not had the time to say what they want.
    pub unsettled: Vec<PortTime>,
}

/// What happened since snooping began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnoopingCounters {
    /// Queries that weft sent.
    pub queries_sent: u64,
    /// Queries of others.
    pub queries_heard: u64,
    /// Reports of hosts.
    pub reports: u64,
    /// Members that left, or may have.
    pub leaves: u64,
    /// Memberships that nobody renewed.
    pub expired: u64,
    /// Messages that contradict themselves.
    pub malformed: u64,
    /// Groups that a port wanted on top of too many, and messages beyond a port's rate.
    pub refused: u64,
    /// Times that a port had to get everything because the table was full.
    pub overflows: u64,
}

impl Snooper {
    /// How things are.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> SnoopingStatus {
        let time = |port: PortId, until: Option<Timestamp>| PortTime { port, left: until.map(|until| until.since(now)) };
        let groups = self.groups.iter().map(|(vlan, group, members)| {
            let members = members.iter().map(|(port, member)| {
                // MLD has versions 1 and 2.
                let version = if group.is_ipv4() { member.version } else { member.version.saturating_sub(1) };
                (time(*port, Some(member.until)), version)
            });
            GroupStatus { vlan, group, members: members.collect() }
        });
        let queriers = self.domains.iter().map(|(&(vlan, family), domain)| {
            let own = self.settings.querier.then(|| (self.settings.address(vlan, family), None));
            QuerierStatus {
                vlan,
                family,
                querier: domain.other.map(|other| (other.address, Some(time(other.port, Some(other.until))))).or(own),
                routers: domain.routers.iter().map(|(port, until)| time(*port, Some(*until))).collect(),
                unsettled: domain.unsettled.iter().map(|(port, until)| time(*port, *until)).collect(),
            }
        });
        SnoopingStatus { groups: groups.collect(), queriers: queriers.collect(), counters: self.counters }
    }
}
