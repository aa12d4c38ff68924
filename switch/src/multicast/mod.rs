//! Multicast snooping with a querier: a stream goes to who asked for it.
//!
//! # Theory
//!
//! Hosts say with IGMP and MLD which groups they want, and say it again whenever a querier asks. A [`Snooper`] listens (RFC 4541): it knows for each
//! group of a VLAN which ports want it, for as long as they keep saying so, and behind which ports routers are, which want everything. It is a state machine
//! behind somebody's lock: [`Snooper::receive`] takes what was said, [`Snooper::tick`] what time brings. What both change of where frames go comes out as
//! [`News`], so that whoever forwards frames can keep a table that takes no lock.
//!
//! **What is snooped.** Frames are told apart by their MAC address ([`scope`]), which is all that is looked at when a frame is forwarded: 32 groups of IPv4
//! share one, and what is for one of them goes to who asked for any. Sources are not told apart either: a host that wants a group from one source
//! gets it from all, and drops the others itself, as on every network whose switches do not snoop. Exact lists of sources would need a table for every
//! pair of group and source that a guest can make up. Always flooded are `224.0.0.0/24` and what shares its MAC addresses (RFC 4541, section 2.1.2), `ff02::xx` and
//! `ff02::1:xx` in the same way (there routers, DHCPv6, mDNS and MLD itself are), and solicited-node groups (`ff02::1:ff00:0/104`): neighbour discovery must not
//! hang on a table with a bound, and every guest would take several places of it. Frames with another tag are flooded, since nobody sees the reports behind it.
//!
//! **Nothing is lost.** A group goes only where it was asked for, and where nobody can ask again that would be nowhere after a while. So a VLAN is flooded as long as
//! nobody queries there. A port that has just come up may have guests that joined long ago (weft was restarted, a guest came over): it is asked, and gets everything
//! until it had the time to answer; so does everybody after the first query of another querier. A port whose groups there is no room for because
//! *others* have filled the table gets everything, too. One that has filled its own share hurts nobody else: its report is refused.
//!
//! **The querier.** weft asks with IGMPv3 and MLDv2, from the gateway's address where there is one, else from 0.0.0.0, which takes no part in elections
//! (RFC 4541, section 2.1.1), and for MLD from the link-local address of the network's MAC address. It goes silent when somebody with a lower address asks (with any, if its own
//! is 0.0.0.0), until that has not asked for all groups for the other-querier-present interval (RFC 3376, section 8.5). A port that may be no router can't be one here either,
//! and an isolated one does not make weft silent: not everybody hears it.
//!
//! **Leaving.** A port that leaves is asked twice whether somebody behind it still wants the group; so is one that blocks sources, which may be all that it wanted. With
//! fast leave it is not asked. Where somebody else queries, that one asks, and its question is what shortens the time.

mod message;
mod query;
mod status;
mod table;
mod timers;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

pub use status::{GroupStatus, PortTime, QuerierStatus, SnoopingCounters, SnoopingStatus};

use message::{Change, Message, Query, Record};
use table::Groups;
use timers::{Timer, Timers};

use crate::vlan::{PortRole, TagKind, Vlan};
use crate::{DropReason, MacAddr, MacKey, PortId, Timestamp};

/// The most groups that one port can be a member of, in all VLANs.
pub const GROUPS_PER_PORT: usize = 256;
/// The most memberships of a network: ports, counted once for each of their groups.
pub const MEMBERSHIPS: usize = 16_384;
/// How many times each message counts (RFC 3376, section 8.1).
pub(crate) const ROBUSTNESS: u8 = 2;
/// Steps of time in one [`Snooper::tick`].
const STEPS: usize = 256;
/// How much longer than the time for answers a port gets everything.
const GRACE: Duration = Duration::from_secs(1);

/// How a network's multicast is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnoopingSettings {
    /// From which MAC address queries come.
    pub mac: MacAddr,
    /// From which address IGMP's come in the default VLAN: the gateway's. Without one from 0.0.0.0.
    pub address: Option<Ipv4Addr>,
    /// The VLAN of the gateway and of ports without a role.
    pub default_vlan: Vlan,
    /// weft asks when nobody else does.
    pub querier: bool,
    /// How often.
    pub query_interval: Duration,
    /// In which time hosts answer: at most 12.7 s.
    pub response_interval: Duration,
    /// The same when somebody has left a group: at most 12.7 s.
    pub last_member_interval: Duration,
    /// Whoever leaves is believed at once.
    pub fast_leave: bool,
    /// Groups that nobody has asked for go to everybody, and not only to routers.
    pub flood_unknown: bool,
}

/// A kind of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, with IGMP.
    V4,
    /// IPv6, with MLD.
    V6,
}

/// What is to be done about a frame with a group address, as its MAC address and type say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// It goes to everybody.
    Everybody,
    /// It goes to who asked for it.
    Members(Family),
}

/// A frame that may be about groups.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Where it came from.
    pub port: PortId,
    /// Its VLAN.
    pub vlan: Vlan,
    /// There may be a router behind the port.
    pub may_route: bool,
    /// What the port sends does not reach everybody: questions of it would not be answered, so weft goes on asking beside it.
    pub is_isolated: bool,
    /// The whole frame, without the VLAN's tag, its checksums complete.
    pub frame: &'a [u8],
}

/// What becomes of such a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It is like any other: it goes where its address says.
    Ordinary,
    /// It goes to everybody in its VLAN.
    Everybody,
    /// It goes to these, of which the sender may be one.
    To(Vec<PortId>),
    /// It goes nowhere.
    Drop(DropReason),
}

/// A query that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// In which VLAN.
    pub vlan: Vlan,
    /// To one port, or to all of the VLAN.
    pub to: Option<PortId>,
    /// The frame, without a tag.
    pub frame: Vec<u8>,
}

/// What has changed about where frames go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// These ports want what is for an address in a VLAN; none any more if there are none.
    Group(Vlan, MacKey, Vec<PortId>),
    /// What holds for all groups of a kind in a VLAN; they are flooded if there is nothing.
    Domain(Vlan, Family, Option<DomainNews>),
}

/// What holds for all groups of a kind in a VLAN in which somebody queries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainNews {
    /// They get everything.
    pub always: Vec<PortId>,
    /// Groups that nobody has asked for go to everybody.
    pub flood_unknown: bool,
}

/// What a snooper wants done.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Frames to be sent.
    pub frames: Vec<Outbound>,
    /// Changes to be made, in this order.
    pub news: Vec<News>,
}

/// Who wants what on a network. See the [module](self).
#[derive(Debug)]
pub struct Snooper {
    settings: SnoopingSettings,
    /// The ports that can receive, with what they are to VLANs; without a role they are access ports of the default VLAN.
    ports: BTreeMap<PortId, Option<Arc<PortRole>>>,
    domains: BTreeMap<(Vlan, Family), Domain>,
    groups: Groups,
    timers: Timers,
    counters: SnoopingCounters,
}

/// One kind of address in one VLAN.
#[derive(Debug, Default)]
struct Domain {
    /// Who asks in weft's place.
    other: Option<Other>,
    /// When weft asks.
    next_query: Option<Timestamp>,
    /// How many more times it asks often.
    startup: u8,
    /// The ports behind which routers are, and until when that is believed.
    routers: BTreeMap<PortId, Timestamp>,
    /// Ports that get everything, and until when; those that are still to be asked have no time.
    unsettled: BTreeMap<PortId, Option<Timestamp>>,
}

/// A querier that is not weft.
#[derive(Clone, Copy, Debug)]
struct Other {
    address: IpAddr,
    port: PortId,
    until: Timestamp,
}

impl SnoopingSettings {
    /// What RFC 3376, section 8, proposes.
    #[must_use]
    pub const fn new(mac: MacAddr, default_vlan: Vlan) -> Self {
        Self {
            mac,
            address: None,
            default_vlan,
            querier: true,
            query_interval: Duration::from_secs(125),
            response_interval: Duration::from_secs(10),
            last_member_interval: Duration::from_secs(1),
            fast_leave: false,
            flood_unknown: false,
        }
    }

    /// How long a membership lasts (RFC 3376, section 8.4).
    #[must_use]
    pub fn membership(&self) -> Duration {
        self.query_interval * u32::from(ROBUSTNESS) + self.response_interval
    }

    /// How long somebody else is the querier (RFC 3376, section 8.5).
    fn other_querier(&self) -> Duration {
        self.query_interval * u32::from(ROBUSTNESS) + self.response_interval / 2
    }

    /// From where weft asks in a VLAN.
    fn address(&self, vlan: Vlan, family: Family) -> IpAddr {
        match (family, self.address) {
            (Family::V4, Some(address)) if vlan == self.default_vlan => address.into(),
            (Family::V4, _) => Ipv4Addr::UNSPECIFIED.into(),
            (Family::V6, _) => query::link_local(self.mac).into(),
        }
    }
}

/// Whether a frame with this MAC address, which is a group's, and this type is for members only.
#[inline]
#[must_use]
pub fn scope(header: &[u8; 14]) -> Scope {
    match *header {
        [1, 0, 0x5e, 0, 0, _, .., 8, 0] => Scope::Everybody,
        [1, 0, 0x5e, high, .., 8, 0] if high < 0x80 => Scope::Members(Family::V4),
        [0x33, 0x33, 0, 0 | 1, 0, _, .., 0x86, 0xdd] => {
            // ff02::1:xx is 33:33:00:01:00:xx.
            Scope::Everybody
        }
        [0x33, 0x33, 0xff, .., 0x86, 0xdd] => Scope::Everybody,
        [0x33, 0x33, .., 0x86, 0xdd] => Scope::Members(Family::V6),
        _ => Scope::Everybody,
    }
}

/// True if [`Snooper::receive`] has to see a frame with this header and these bytes after it.
#[inline]
#[must_use]
pub fn concerns(header: &[u8; 14], rest: [u8; 10]) -> bool {
    match *header {
        // IGMP, or PIM to its routers.
        [1, 0, 0x5e, a, b, c, .., 8, 0] => rest[9] == message::IGMP || (rest[9] == 103 && [a, b, c] == [0, 0, 13]),
        [0x33, 0x33, a, b, c, d, .., 0x86, 0xdd] => {
            rest[6] == message::HOP_BY_HOP || (rest[6] == 103 && [a, b, c, d] == [0, 0, 0, 13])
        }
        _ => false,
    }
}

/// The MAC address of a group (RFC 1112, section 6.4; RFC 2464, section 7).
#[must_use]
pub fn group_mac(group: IpAddr) -> MacAddr {
    match group {
        IpAddr::V4(group) => {
            let [_, b, c, d] = group.octets();
            MacAddr([1, 0, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(group) => {
            let [.., a, b, c, d] = group.octets();
            MacAddr([0x33, 0x33, a, b, c, d])
        }
    }
}

impl Family {
    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    const ALL: [Self; 2] = [Self::V4, Self::V6];

    const fn ether_type(self) -> [u8; 2] {
        match self {
            Self::V4 => [8, 0],
            Self::V6 => [0x86, 0xdd],
        }
    }
}

/// True if the frames of a group go to everybody anyway.
fn is_for_everybody(group: IpAddr) -> bool {
    let mut header = [0; 14];
    header[..6].copy_from_slice(&group_mac(group).0);
    header[12..].copy_from_slice(&Family::of(group).ether_type());
    scope(&header) == Scope::Everybody
}

impl Snooper {
    /// Without ports: everything is flooded.
    #[must_use]
    pub fn new(settings: SnoopingSettings) -> Self {
        let (ports, domains) = (BTreeMap::new(), BTreeMap::new());
        let (groups, timers, counters) = (Groups::default(), Timers::default(), SnoopingCounters::default());
        Self { settings, ports, domains, groups, timers, counters }
    }

    /// What it goes by.
    #[must_use]
    pub fn settings(&self) -> &SnoopingSettings {
        &self.settings
    }

    /// Goes by other settings from now on. What is known stays, and everybody is asked anew.
    pub fn reconfigure(&mut self, settings: SnoopingSettings, effects: &mut Effects) {
        self.settings = settings;
        for (vlan, family) in self.domains.keys().copied().collect::<Vec<_>>() {
            if let Some(domain) = self.domains.get_mut(&(vlan, family)) {
                self.timers.set(Timer::Query(vlan, family), domain.next_query, settings.querier.then(Timestamp::default));
                domain.next_query = settings.querier.then(Timestamp::default);
                domain.startup = ROBUSTNESS;
            }
            self.tell(vlan, family, effects);
        }
    }

    /// These are the ports that can receive now. New ones are asked with the next [tick](Self::tick), and get everything until they had the time to answer.
    pub fn set_ports(&mut self, ports: BTreeMap<PortId, Option<Arc<PortRole>>>, effects: &mut Effects) {
        let before = std::mem::replace(&mut self.ports, ports);
        let is_same = |port: &PortId, other: &BTreeMap<PortId, Option<Arc<PortRole>>>, role: &Option<Arc<PortRole>>| {
            other.get(port).is_some_and(|before| before == role)
        };
        let gone: Vec<_> =
            before.iter().filter(|(port, role)| !is_same(port, &self.ports, role)).map(|(port, _)| *port).collect();
        for port in gone {
            self.forget_port(port, effects);
        }
        let new: Vec<_> = self.ports.iter().filter(|(port, role)| !is_same(port, &before, role)).map(|(port, _)| *port).collect();
        if new.is_empty() {
            return;
        }
        for vlan in self.ports.values().map(|role| self.home(role.as_deref())).collect::<Vec<_>>().into_iter().flatten() {
            Family::ALL.into_iter().for_each(|family| self.open(vlan, family, effects));
        }
        for (vlan, family) in self.domains.keys().copied().collect::<Vec<_>>() {
            let here: Vec<_> = new.iter().copied().filter(|port| self.is_member(*port, vlan)).collect();
            for port in &here {
                self.unsettle(vlan, family, *port, None);
            }
            if !here.is_empty() {
                self.tell(vlan, family, effects);
            }
        }
    }

    /// A frame for which [`concerns`] is true.
    pub fn receive(&mut self, now: Timestamp, arrival: &Arrival<'_>, effects: &mut Effects) -> Passage {
        if arrival.vlan.kind() == TagKind::Service {
            return Passage::Everybody;
        }
        let message = match Message::parse(arrival.frame) {
            Ok(message) => message,
            Err(reason) => {
                self.counters.malformed += 1;
                return Passage::Drop(reason);
            }
        };
        match message {
            Message::Other => Passage::Ordinary,
            Message::RouterHello | Message::Query(_) if !arrival.may_route => Passage::Drop(DropReason::RouterNotAllowed),
            Message::RouterHello => {
                let family = if arrival.frame.get(12) == Some(&8) { Family::V4 } else { Family::V6 };
                self.hear_router(now, arrival, family, effects);
                Passage::Everybody
            }
            Message::Query(query) => {
                self.counters.queries_heard += 1;
                self.hear_query(now, arrival, &query, effects);
                Passage::Everybody
            }
            Message::Report(records) => {
                self.counters.reports += 1;
                self.hear_report(now, arrival, &records, effects)
            }
        }
    }

    fn hear_report(&mut self, now: Timestamp, arrival: &Arrival<'_>, records: &[Record], effects: &mut Effects) -> Passage {
        let Arrival { port, vlan, .. } = *arrival;
        let family = if arrival.frame.get(12) == Some(&8) { Family::V4 } else { Family::V6 };
        self.open(vlan, family, effects);
        let mut refused = None;
        for record in records.iter().filter(|record| !is_for_everybody(record.group)) {
            let place = (vlan, record.group);
            match record.change {
                Change::Join => refused = refused.or(self.join(now, place, port, record.version, effects).err()),
                Change::Leave => self.leave(now, place, port, self.settings.fast_leave, effects),
                Change::Narrow => self.leave(now, place, port, false, effects),
            }
        }
        match (refused, self.domains.get(&(vlan, family))) {
            (Some(reason), _) => Passage::Drop(reason),
            // A member that hears another's report keeps quiet, and would not be known (RFC 4541, section 2.1.1).
            (None, Some(domain)) if self.is_asked(domain) => Passage::To(domain.routers.keys().copied().collect()),
            _ => Passage::Everybody,
        }
    }

    fn join(
        &mut self,
        now: Timestamp,
        (vlan, group): (Vlan, IpAddr),
        port: PortId,
        version: u8,
        effects: &mut Effects,
    ) -> Result<(), DropReason> {
        let until = now.after(self.settings.membership());
        if self.groups.renew(&mut self.timers, (vlan, group), port, version, until) {
            return Ok(());
        }
        if self.groups.of_port(port) >= GROUPS_PER_PORT {
            self.counters.refused += 1;
            return Err(DropReason::GroupLimit);
        }
        if self.groups.len() >= MEMBERSHIPS {
            self.counters.overflows += 1;
            let family = Family::of(group);
            self.unsettle(vlan, family, port, Some(until));
            self.tell(vlan, family, effects);
            return Ok(());
        }
        self.groups.insert(&mut self.timers, (vlan, group), port, version, until);
        effects.news.push(self.groups.news(vlan, group));
        Ok(())
    }

    fn leave(&mut self, now: Timestamp, place: (Vlan, IpAddr), port: PortId, at_once: bool, effects: &mut Effects) {
        let (vlan, group) = place;
        let Some(member) = self.groups.member(place, port) else { return };
        // A host of IGMPv1 would not answer in time (RFC 2236, section 5).
        if member.version == 1 {
            return;
        }
        self.counters.leaves += 1;
        let domain = self.domains.get(&(vlan, Family::of(group)));
        if at_once {
            self.groups.remove(&mut self.timers, place, port);
            effects.news.push(self.groups.news(vlan, group));
        } else if self.settings.querier && domain.is_some_and(|domain| domain.other.is_none()) && member.ask_at.is_none() {
            let interval = self.settings.last_member_interval;
            self.groups.shorten(&mut self.timers, place, port, now.after(interval * u32::from(ROBUSTNESS)));
            self.groups.ask_again(&mut self.timers, place, port, Some(now.after(interval)));
            self.ask(vlan, Family::of(group), Some(group), Some(port), effects);
        }
    }

    fn hear_query(&mut self, now: Timestamp, arrival: &Arrival<'_>, query: &Query, effects: &mut Effects) {
        let (vlan, family) = (arrival.vlan, Family::of(query.source));
        // Another switch that asks on nobody's behalf: it is no querier and no router (RFC 4541, section 2.1.1).
        if query.source.is_unspecified() {
            return;
        }
        self.open(vlan, family, effects);
        let own = self.settings.address(vlan, family);
        let Some(domain) = self.domains.get_mut(&(vlan, family)) else { return };
        let yields = !self.settings.querier || own.is_unspecified() || query.source < own;
        let is_lowest = domain.other.is_none_or(|other| query.source <= other.address);
        // One group's question keeps nobody a querier: who only asks for that would let all other memberships run out.
        let (was_elected, asked) = (domain.other.map(|other| other.address) == Some(query.source), query.group.is_none());
        if yields && is_lowest && !arrival.is_isolated && (asked || !was_elected) {
            let is_first = domain.other.is_none();
            let until = now.after(self.settings.other_querier());
            let before = domain.other.replace(Other { address: query.source, port: arrival.port, until });
            self.timers.set(Timer::Other(vlan, family), before.map(|other| other.until), Some(until));
            self.timers.set(Timer::Query(vlan, family), domain.next_query.take(), None);
            let settled = now.after(query.response.max(self.settings.response_interval) + GRACE);
            let all: Vec<_> = self.ports.keys().copied().filter(|port| self.is_member(*port, vlan)).collect();
            for port in all {
                let domain = &self.domains[&(vlan, family)];
                let waits = matches!(domain.unsettled.get(&port), Some(None));
                // Until now everything was flooded, and nobody knows who wants what. Only a question about everything tells.
                if is_first && !self.settings.querier || waits && asked {
                    self.unsettle(vlan, family, port, asked.then_some(settled));
                }
            }
        }
        let elected = self.domains.get(&(vlan, family)).and_then(|domain| domain.other);
        if let (Some(group), false) = (query.group, query.of_sources)
            && elected.is_some_and(|other| other.address == query.source)
        {
            let until = now.after(query.response.max(self.settings.last_member_interval) * u32::from(ROBUSTNESS));
            for port in self.groups.members((vlan, group)) {
                self.groups.shorten(&mut self.timers, (vlan, group), port, until);
            }
        }
        self.hear_router(now, arrival, family, effects);
        self.tell(vlan, family, effects);
    }

    /// There is a router behind the port, or a querier, which wants the same.
    fn hear_router(&mut self, now: Timestamp, arrival: &Arrival<'_>, family: Family, effects: &mut Effects) {
        self.open(arrival.vlan, family, effects);
        let Some(domain) = self.domains.get_mut(&(arrival.vlan, family)) else { return };
        let until = now.after(self.settings.other_querier());
        let before = domain.routers.insert(arrival.port, until);
        self.timers.set(Timer::Router(arrival.vlan, family, arrival.port), before, Some(until));
        if before.is_none() {
            self.tell(arrival.vlan, family, effects);
        }
    }

    /// When [`Self::tick`] is to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        self.timers.first()
    }

    /// Does what is due, at most 256 steps of it.
    pub fn tick(&mut self, now: Timestamp, effects: &mut Effects) {
        for _ in 0..STEPS {
            let Some(timer) = self.timers.pop(now) else { return };
            self.run_out(now, timer, effects);
        }
    }

    fn run_out(&mut self, now: Timestamp, timer: Timer, effects: &mut Effects) {
        match timer {
            Timer::Member(vlan, group, port) => {
                self.counters.expired += 1;
                self.groups.remove(&mut self.timers, (vlan, group), port);
                effects.news.push(self.groups.news(vlan, group));
            }
            Timer::Ask(vlan, group, port) => {
                self.groups.asked((vlan, group), port);
                self.ask(vlan, Family::of(group), Some(group), Some(port), effects);
            }
            Timer::Query(vlan, family) => {
                if let Some(domain) = self.domains.get_mut(&(vlan, family)) {
                    let interval = self.settings.query_interval;
                    let pause = if domain.startup > 1 { interval / 4 } else { interval };
                    domain.startup = domain.startup.saturating_sub(1);
                    domain.next_query = Some(now.after(pause));
                    self.timers.set(timer, None, domain.next_query);
                    self.asked_all(now, vlan, family);
                    self.ask(vlan, family, None, None, effects);
                    self.tell(vlan, family, effects);
                }
            }
            Timer::Newcomer(vlan, family, port) => {
                // Unless a query to all was first.
                let waits = self.domains.get(&(vlan, family)).is_some_and(|domain| domain.unsettled.get(&port) == Some(&None));
                if waits && self.settings.querier {
                    self.unsettle(vlan, family, port, Some(now.after(self.settings.response_interval + GRACE)));
                    self.ask(vlan, family, None, Some(port), effects);
                }
            }
            Timer::Settled(vlan, family, port) => {
                if let Some(domain) = self.domains.get_mut(&(vlan, family)) {
                    domain.unsettled.remove(&port);
                }
                self.tell(vlan, family, effects);
            }
            Timer::Other(vlan, family) => {
                if let Some(domain) = self.domains.get_mut(&(vlan, family)) {
                    domain.other = None;
                    if self.settings.querier {
                        domain.next_query = Some(now);
                        self.timers.set(Timer::Query(vlan, family), None, Some(now));
                    }
                }
                self.tell(vlan, family, effects);
            }
            Timer::Router(vlan, family, port) => {
                if let Some(domain) = self.domains.get_mut(&(vlan, family)) {
                    domain.routers.remove(&port);
                }
                self.tell(vlan, family, effects);
            }
        }
    }

    /// All ports of a VLAN are asked now.
    fn asked_all(&mut self, now: Timestamp, vlan: Vlan, family: Family) {
        let Some(domain) = self.domains.get(&(vlan, family)) else { return };
        let waiting: Vec<_> = domain.unsettled.iter().filter(|(_, until)| until.is_none()).map(|(port, _)| *port).collect();
        for port in waiting {
            self.unsettle(vlan, family, port, Some(now.after(self.settings.response_interval + GRACE)));
        }
    }

    /// Sends a query.
    fn ask(&mut self, vlan: Vlan, family: Family, group: Option<IpAddr>, to: Option<PortId>, effects: &mut Effects) {
        // Beside another querier weft is none, and asks on nobody's behalf.
        let is_querier = self.domains.get(&(vlan, family)).is_some_and(|domain| domain.other.is_none());
        let source = match self.settings.address(vlan, family) {
            IpAddr::V4(address) if is_querier => address,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        self.counters.queries_sent += 1;
        effects.frames.push(Outbound { vlan, to, frame: query::query(&self.settings, family, group, source) });
    }

    /// A port gets everything until then; for now without an end if it is still to be asked.
    fn unsettle(&mut self, vlan: Vlan, family: Family, port: PortId, until: Option<Timestamp>) {
        let Some(domain) = self.domains.get_mut(&(vlan, family)) else { return };
        let before = domain.unsettled.insert(port, until);
        self.timers.set(Timer::Settled(vlan, family, port), before.flatten(), until);
        let (waited, waits) = (before == Some(None), until.is_none());
        let due = |is| if is { Some(Timestamp::default()) } else { None };
        self.timers.set(Timer::Newcomer(vlan, family, port), due(waited), due(waits));
    }

    /// There is something to know about a VLAN from now on.
    fn open(&mut self, vlan: Vlan, family: Family, effects: &mut Effects) {
        if self.domains.contains_key(&(vlan, family)) {
            return;
        }
        let next_query = self.settings.querier.then(Timestamp::default);
        self.domains.insert((vlan, family), Domain { next_query, startup: ROBUSTNESS, ..Domain::default() });
        self.timers.set(Timer::Query(vlan, family), None, next_query);
        let here: Vec<_> = self.ports.keys().copied().filter(|port| self.is_member(*port, vlan)).collect();
        for port in here {
            self.unsettle(vlan, family, port, None);
        }
        self.tell(vlan, family, effects);
    }

    /// A port is gone, or is another one now.
    fn forget_port(&mut self, port: PortId, effects: &mut Effects) {
        for (vlan, group) in self.groups.forget_port(&mut self.timers, port) {
            effects.news.push(self.groups.news(vlan, group));
        }
        for (vlan, family) in self.domains.keys().copied().collect::<Vec<_>>() {
            let Some(domain) = self.domains.get_mut(&(vlan, family)) else { continue };
            let (router, unsettled) = (domain.routers.remove(&port), domain.unsettled.remove(&port));
            self.timers.set(Timer::Router(vlan, family, port), router, None);
            self.timers.set(Timer::Settled(vlan, family, port), unsettled.flatten(), None);
            if unsettled == Some(None) {
                self.timers.set(Timer::Newcomer(vlan, family, port), Some(Timestamp::default()), None);
            }
            let lost = domain.other.filter(|other| other.port == port);
            if let Some(other) = lost {
                // Its place is free at once.
                let at = Timestamp::default();
                domain.other = Some(Other { until: at, ..other });
                self.timers.set(Timer::Other(vlan, family), Some(other.until), Some(at));
            }
            if !self.ports.keys().any(|port| self.is_member(*port, vlan)) {
                if let Some(domain) = self.domains.remove(&(vlan, family)) {
                    self.timers.set(Timer::Query(vlan, family), domain.next_query, None);
                    self.timers.set(Timer::Other(vlan, family), domain.other.map(|other| other.until), None);
                }
                effects.news.push(News::Domain(vlan, family, None));
            } else if router.is_some() || unsettled.is_some() {
                self.tell(vlan, family, effects);
            }
        }
    }

    /// True if somebody asks in a domain.
    fn is_asked(&self, domain: &Domain) -> bool {
        self.settings.querier || domain.other.is_some()
    }

    /// Says what holds in a domain.
    fn tell(&self, vlan: Vlan, family: Family, effects: &mut Effects) {
        let domain = self.domains.get(&(vlan, family)).filter(|domain| self.is_asked(domain));
        let news = domain.map(|domain| {
            let mut always: Vec<_> = domain.routers.keys().chain(domain.unsettled.keys()).copied().collect();
            always.sort_unstable();
            always.dedup();
            DomainNews { always, flood_unknown: self.settings.flood_unknown }
        });
        effects.news.push(News::Domain(vlan, family, news));
    }

    /// The VLAN of a port's frames without a tag, unless nothing is snooped there.
    fn home(&self, role: Option<&PortRole>) -> Option<Vlan> {
        let home = role.map_or(Some(self.settings.default_vlan), PortRole::untagged);
        home.filter(|vlan| vlan.kind() == TagKind::Customer)
    }

    fn is_member(&self, port: PortId, vlan: Vlan) -> bool {
        match self.ports.get(&port) {
            Some(Some(role)) => role.membership(vlan).is_some(),
            Some(None) => vlan == self.settings.default_vlan,
            None => false,
        }
    }
}
