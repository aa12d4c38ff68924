//! What a [`Snooper`] makes of what it hears, and of time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use super::message::{Change, GroupMessage, Message, Query, Record};
use super::table::{Groups, Member};
use super::timers::{Timer, Timers};
use super::{
    Arrival, Changed, Domain, Effects, Family, GROUPS_PER_PORT, MEMBERSHIPS, News, Other, Outbound, Passage, ROBUSTNESS, Snooper,
    SnoopingCounters, SnoopingSettings, group_mac, is_for_everybody, query,
};
use crate::rate::PortRate;
use crate::vlan::{PortRole, TagKind, Vlan};
use crate::{DropReason, PortId, Timestamp};

/// Steps of time in one [`Snooper::tick`].
const STEPS: usize = 256;
/// How often a port may say something about groups, and how many times in a row. What says more counts for more.
const MESSAGE_INTERVAL: Duration = Duration::from_millis(2);
const MESSAGES: u32 = 300;
const RECORDS_OF_A_MESSAGE: usize = 16;
/// How much longer than the time for answers a port gets everything.
const GRACE: Duration = Duration::from_secs(1);

impl Snooper {
    /// Without ports: everything is flooded.
    #[must_use]
    pub fn new(settings: SnoopingSettings) -> Self {
        let (ports, domains) = (BTreeMap::new(), BTreeMap::new());
        let (groups, timers, counters) = (Groups::default(), Timers::default(), SnoopingCounters::default());
        let rate = PortRate::new(MESSAGE_INTERVAL, MESSAGES);
        Self { settings, ports, domains, groups, timers, rate, counters, changed: Changed::default() }
    }

    /// What it goes by.
    #[must_use]
    pub fn settings(&self) -> &SnoopingSettings {
        &self.settings
    }

    /// Goes by other settings from now on. What is known stays, and everybody is asked anew. With another default VLAN, ports are where they had not been before.
    pub fn reconfigure(&mut self, settings: SnoopingSettings, effects: &mut Effects) {
        let moves = settings.default_vlan != self.settings.default_vlan;
        let ports = if moves { self.ports.clone() } else { BTreeMap::new() };
        if moves {
            self.set_ports(BTreeMap::new(), effects);
        }
        self.settings = settings;
        if moves {
            self.set_ports(ports, effects);
        }
        for (vlan, family) in self.domains.keys().copied().collect::<Vec<_>>() {
            if let Some(domain) = self.domains.get_mut(&(vlan, family)) {
                self.timers.set(Timer::Query(vlan, family), domain.next_query, settings.querier.then(Timestamp::default));
                domain.next_query = settings.querier.then(Timestamp::default);
                domain.startup = ROBUSTNESS;
            }
            self.touch(vlan, family);
        }
        self.tell(effects);
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
            self.forget_port(port);
        }
        let new: Vec<_> = self.ports.iter().filter(|(port, role)| !is_same(port, &before, role)).map(|(port, _)| *port).collect();
        self.welcome(&new);
        self.tell(effects);
    }

    /// Ports that were not there before.
    fn welcome(&mut self, new: &[PortId]) {
        if new.is_empty() {
            return;
        }
        for vlan in self.ports.values().map(|role| self.home(role.as_deref())).collect::<Vec<_>>().into_iter().flatten() {
            Family::ALL.into_iter().for_each(|family| self.open(vlan, family));
        }
        for (vlan, family) in self.domains.keys().copied().collect::<Vec<_>>() {
            let here: Vec<_> = new.iter().copied().filter(|port| self.is_member(*port, vlan)).collect();
            for port in &here {
                self.unsettle(vlan, family, *port, None);
            }
            if !here.is_empty() {
                self.touch(vlan, family);
            }
        }
    }

    /// A frame for which [`concerns`](super::concerns) is true.
    pub fn receive(&mut self, now: Timestamp, arrival: &Arrival<'_>, effects: &mut Effects) -> Passage {
        let passage = self.listen(now, arrival, effects);
        self.tell(effects);
        passage
    }

    fn listen(&mut self, now: Timestamp, arrival: &Arrival<'_>, effects: &mut Effects) -> Passage {
        // Nobody snoops there.
        if arrival.vlan.kind() == TagKind::Service {
            return Passage::Everybody;
        }
        let GroupMessage { source, family, message } = arrival.message;
        // Its own question came back: a guest connects two ports, and would have it go round for ever.
        if *source == self.settings.mac {
            return Passage::Drop(DropReason::LoopProbe);
        }
        let weight = match message {
            Ok(Message::Report(records)) => 1 + records.len() / RECORDS_OF_A_MESSAGE,
            _ => 1,
        };
        if !(0..weight).all(|_| self.rate.allow(now, arrival.port)) {
            self.counters.refused += 1;
            return Passage::Drop(DropReason::GroupLimit);
        }
        // What a port wants that can't receive would never be forgotten, since it never goes.
        let is_here = self.is_member(arrival.port, arrival.vlan);
        match message {
            Err(reason) => {
                self.counters.malformed += 1;
                Passage::Drop(*reason)
            }
            Ok(Message::Other) => Passage::Ordinary,
            Ok(Message::RouterHello | Message::Query(_)) if !arrival.may_route => Passage::Drop(DropReason::RouterNotAllowed),
            Ok(Message::RouterHello) => {
                if is_here {
                    self.hear_router(now, arrival, *family);
                }
                Passage::Everybody
            }
            Ok(Message::Query(query)) => {
                self.counters.queries_heard += 1;
                if is_here {
                    self.hear_query(now, arrival, query);
                }
                Passage::Everybody
            }
            Ok(Message::Report(records)) => {
                self.counters.reports += 1;
                let refused = if is_here { self.hear_report(now, arrival, records, effects) } else { None };
                match (refused, self.domains.get(&(arrival.vlan, *family))) {
                    (Some(reason), _) => Passage::Drop(reason),
                    // A member that hears another's report keeps quiet, and would not be known (RFC 4541, section 2.1.1).
                    (None, Some(domain)) if self.is_asked(domain) => Passage::To(domain.routers.keys().copied().collect()),
                    _ => Passage::Everybody,
                }
            }
        }
    }

    /// Says why something of it was refused, if it was.
    fn hear_report(
        &mut self,
        now: Timestamp,
        arrival: &Arrival<'_>,
        records: &[Record],
        effects: &mut Effects,
    ) -> Option<DropReason> {
        let Arrival { port, vlan, message, .. } = *arrival;
        self.open(vlan, message.family);
        let (mut refused, mut asked) = (None, BTreeSet::new());
        for record in records.iter().filter(|record| !is_for_everybody(record.group)) {
            let place = (vlan, record.group);
            match record.change {
                Change::Join => refused = refused.or(self.join(now, place, port, record.version).err()),
                Change::Leave if self.settings.fast_leave => self.leave_at_once(place, port),
                Change::Leave | Change::Narrow => {
                    let is_first = !asked.contains(&record.group);
                    if self.leave(now, place, port) && is_first {
                        asked.insert(record.group);
                        self.ask(vlan, message.family, Some(record.group), Some(port), effects);
                    }
                }
            }
        }
        refused
    }

    fn join(&mut self, now: Timestamp, (vlan, group): (Vlan, IpAddr), port: PortId, version: u8) -> Result<(), DropReason> {
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
            self.touch(vlan, family);
            return Ok(());
        }
        self.groups.insert(&mut self.timers, (vlan, group), port, version, until);
        self.changed.groups.insert((vlan, group_mac(group)));
        Ok(())
    }

    fn leave_at_once(&mut self, place: (Vlan, IpAddr), port: PortId) {
        if self.leaver(place, port).is_some() {
            self.groups.remove(&mut self.timers, place, port);
            self.changed.groups.insert((place.0, group_mac(place.1)));
        }
    }

    /// True if it is to be asked now whether somebody behind it still wants the group.
    fn leave(&mut self, now: Timestamp, place: (Vlan, IpAddr), port: PortId) -> bool {
        let Some(member) = self.leaver(place, port).filter(|_| self.settings.querier) else { return false };
        let interval = self.settings.last_member_interval;
        self.groups.shorten(&mut self.timers, place, port, now.after(interval * u32::from(ROBUSTNESS)));
        // Whoever leaves and comes back all the time is asked once in an interval.
        if member.ask_at.is_none() {
            self.groups.ask_again(&mut self.timers, place, port, Some(now.after(interval)));
        }
        member.ask_at.is_none()
    }

    /// A member that may leave.
    fn leaver(&mut self, place: (Vlan, IpAddr), port: PortId) -> Option<Member> {
        // A host of IGMPv1 would not answer in time (RFC 2236, section 5).
        let member = self.groups.member(place, port).filter(|member| member.version != 1)?;
        self.counters.leaves += 1;
        Some(member)
    }

    fn hear_query(&mut self, now: Timestamp, arrival: &Arrival<'_>, query: &Query) {
        let (vlan, family) = (arrival.vlan, Family::of(query.source));
        // Another switch that asks on nobody's behalf: it is no querier and no router (RFC 4541, section 2.1.1).
        if query.source.is_unspecified() {
            return;
        }
        self.open(vlan, family);
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
            if !self.settings.querier {
                // Until now everything was flooded, and nobody knows who wants what. Only a question about everything tells.
                let all = self.ports.keys().copied().filter(|port| is_first && self.is_member(*port, vlan));
                let unasked = self.domains[&(vlan, family)].unsettled.iter().filter(|(_, until)| until.is_none() && asked);
                let those: Vec<_> = all.chain(unasked.map(|(port, _)| *port)).collect();
                let settled = now.after(query.response.max(self.settings.response_interval) + GRACE);
                those.into_iter().for_each(|port| self.unsettle(vlan, family, port, asked.then_some(settled)));
            }
        }
        // Where weft asks it needs nobody's question: a guest may put one that no host answers.
        let elected = self.domains.get(&(vlan, family)).and_then(|domain| domain.other);
        if let (Some(group), false) = (query.group, query.of_sources)
            && !self.settings.querier
            && elected.is_some_and(|other| other.address == query.source)
        {
            let until = now.after(query.response.max(self.settings.last_member_interval) * u32::from(ROBUSTNESS));
            for port in self.groups.members((vlan, group)) {
                self.groups.shorten(&mut self.timers, (vlan, group), port, until);
            }
        }
        self.hear_router(now, arrival, family);
        self.touch(vlan, family);
    }

    /// There is a router behind the port, or a querier, which wants the same.
    fn hear_router(&mut self, now: Timestamp, arrival: &Arrival<'_>, family: Family) {
        self.open(arrival.vlan, family);
        let Some(domain) = self.domains.get_mut(&(arrival.vlan, family)) else { return };
        let until = now.after(self.settings.other_querier());
        let before = domain.routers.insert(arrival.port, until);
        self.timers.set(Timer::Router(arrival.vlan, family, arrival.port), before, Some(until));
        if before.is_none() {
            self.touch(arrival.vlan, family);
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
            let Some(timer) = self.timers.pop(now) else { break };
            self.run_out(now, timer, effects);
        }
        self.tell(effects);
    }

    fn run_out(&mut self, now: Timestamp, timer: Timer, effects: &mut Effects) {
        match timer {
            Timer::Member(vlan, group, port) => {
                self.counters.expired += 1;
                self.groups.remove(&mut self.timers, (vlan, group), port);
                self.changed.groups.insert((vlan, group_mac(group)));
            }
            Timer::Ask(vlan, group, port) => {
                self.groups.ask_again(&mut self.timers, (vlan, group), port, None);
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
                    self.touch(vlan, family);
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
                self.touch(vlan, family);
            }
            Timer::Other(vlan, family) => {
                if let Some(domain) = self.domains.get_mut(&(vlan, family)) {
                    domain.other = None;
                }
                self.touch(vlan, family);
            }
            Timer::Router(vlan, family, port) => {
                if let Some(domain) = self.domains.get_mut(&(vlan, family)) {
                    domain.routers.remove(&port);
                }
                self.touch(vlan, family);
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
        // Beside another querier weft is none, and asks on nobody's behalf (RFC 4541, section 2.1.1).
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
    fn open(&mut self, vlan: Vlan, family: Family) {
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
        self.touch(vlan, family);
    }

    /// A port is gone, or is another one now.
    fn forget_port(&mut self, port: PortId) {
        self.rate.forget_port(port);
        for (vlan, group) in self.groups.forget_port(&mut self.timers, port) {
            self.changed.groups.insert((vlan, group_mac(group)));
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
                self.touch(vlan, family);
            } else if router.is_some() || unsettled.is_some() {
                self.touch(vlan, family);
            }
        }
    }

    /// True if somebody asks in a domain.
    fn is_asked(&self, domain: &Domain) -> bool {
        self.settings.querier || domain.other.is_some()
    }

    /// Where frames of a domain go may have changed.
    fn touch(&mut self, vlan: Vlan, family: Family) {
        self.changed.domains.insert((vlan, family));
    }

    /// Says what holds now wherever something has changed, once.
    fn tell(&mut self, effects: &mut Effects) {
        let Changed { groups, domains } = std::mem::take(&mut self.changed);
        effects.news.extend(groups.into_iter().map(|(vlan, mac)| self.groups.news(vlan, mac)));
        effects.news.extend(domains.into_iter().map(|(vlan, family)| self.domain_news(vlan, family)));
    }

    fn domain_news(&self, vlan: Vlan, family: Family) -> News {
        let domain = self.domains.get(&(vlan, family)).filter(|domain| self.is_asked(domain));
        let news = domain.map(|domain| {
            let mut always: Vec<_> = domain.routers.keys().chain(domain.unsettled.keys()).copied().collect();
            always.sort_unstable();
            always.dedup();
            always
        });
        News::Domain(vlan, family, news)
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
