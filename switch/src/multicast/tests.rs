use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{Message, checksum_v6};
use super::*;
use crate::vlan::VlanId;
use crate::wire::internet_checksum;

mod properties;

const VLAN: Vlan = Vlan::customer(VlanId::DEFAULT);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 1, 0x203);
const QUERIER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

fn read(frame: &[u8]) -> Result<Message, DropReason> {
    GroupMessage::read(frame, false).message
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn link(group: IpAddr, kind: [u8; 2]) -> Vec<u8> {
    [&group_mac(group).0[..], &GUEST.0, &kind].concat()
}

fn igmp(source: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let sum = internet_checksum(&[&message]).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let [high, low] = (24 + message.len() as u16).to_be_bytes();
    let mut ip = [0x46, 0xc0, high, low, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x94, 4, 0, 0];
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&to.octets());
    let sum = internet_checksum(&[&ip]).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    [link(to.into(), [8, 0]), ip.to_vec(), message].concat()
}

fn mld(source: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let mut ip = [0; 40];
    ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 8 + message.len() as u8, 0, 1]);
    ip[8..24].copy_from_slice(&source.octets());
    ip[24..].copy_from_slice(&to.octets());
    let sum = checksum_v6(&ip, 58, &message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    [link(to.into(), [0x86, 0xdd]), ip.to_vec(), vec![58, 0, 5, 2, 0, 0, 1, 0], message].concat()
}

/// True if workers show it to the snooper.
fn is_shown(frame: &[u8]) -> bool {
    concerns(frame.first_chunk().unwrap(), *frame[14..].first_chunk().unwrap(), None, || frame[14..].first_chunk().copied())
}

fn report_v2(group: Ipv4Addr, kind: u8) -> Vec<u8> {
    let [a, b, c, d] = group.octets();
    let to = if kind == 0x17 { Ipv4Addr::new(224, 0, 0, 2) } else { group };
    igmp(Ipv4Addr::new(10, 0, 0, 1), to, &[kind, 0, 0, 0, a, b, c, d])
}

fn report_v3(records: &[(u8, Ipv4Addr, &[Ipv4Addr])]) -> Vec<u8> {
    let [high, low] = (records.len() as u16).to_be_bytes();
    let mut message = vec![0x22, 0, 0, 0, 0, 0, high, low];
    for (kind, group, sources) in records {
        message.extend([*kind, 0, 0, sources.len() as u8]);
        message.extend(group.octets());
        sources.iter().for_each(|source| message.extend(source.octets()));
    }
    igmp(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(224, 0, 0, 22), &message)
}

fn report_mld(kind: u8, group: Ipv6Addr) -> Vec<u8> {
    let message = [&[143, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0][..], &group.octets()].concat();
    mld(crate::wire::link_local(GUEST), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16), &message)
}

fn query_of(source: Ipv4Addr, group: Option<Ipv4Addr>) -> Vec<u8> {
    let [a, b, c, d] = group.map_or([0; 4], |group| group.octets());
    igmp(source, group.unwrap_or(Ipv4Addr::new(224, 0, 0, 1)), &[0x11, 10, 0, 0, a, b, c, d, 2, 125, 0, 0])
}

/// A snooper and what workers would know of it.
struct Rig {
    snooper: Snooper,
    domains: BTreeMap<(Vlan, Family), Vec<PortId>>,
    groups: BTreeMap<(Vlan, u64), Vec<PortId>>,
    ports: u16,
}

impl Rig {
    fn new(ports: u16, change: impl FnOnce(&mut SnoopingSettings)) -> Self {
        let mut settings = SnoopingSettings::new(MAC, VLAN);
        change(&mut settings);
        let mut rig = Self { snooper: Snooper::new(settings), domains: BTreeMap::new(), groups: BTreeMap::new(), ports };
        rig.plug(ports);
        rig
    }

    /// Ports whose first question lies so far back that they are known.
    fn settled(ports: u16, change: impl FnOnce(&mut SnoopingSettings)) -> Self {
        let mut rig = Self::new(ports, change);
        rig.tick(at(0));
        rig.tick(at(12));
        rig
    }

    fn plug(&mut self, ports: u16) {
        self.ports = ports;
        let mut effects = Effects::default();
        self.snooper.set_ports((0..ports).map(|port| (PortId(port), None)).collect(), &mut effects);
        assert!(effects.frames.is_empty());
        self.learn(effects.news);
    }

    fn learn(&mut self, news: Vec<News>) {
        for news in news {
            match news {
                News::Group(vlan, mac, ports) if ports.is_empty() => drop(self.groups.remove(&(vlan, mac.as_u64()))),
                News::Group(vlan, mac, ports) => drop(self.groups.insert((vlan, mac.as_u64()), ports)),
                News::Domain(vlan, family, None) => drop(self.domains.remove(&(vlan, family))),
                News::Domain(vlan, family, Some(domain)) => drop(self.domains.insert((vlan, family), domain)),
            }
        }
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Outbound> {
        let mut frames = Vec::new();
        while self.snooper.deadline().is_some_and(|at| at <= now) {
            let mut effects = Effects::default();
            self.snooper.tick(now, &mut effects);
            frames.extend(effects.frames);
            self.learn(effects.news);
        }
        frames
    }

    fn hear(&mut self, now: Timestamp, port: u16, frame: &[u8]) -> (Passage, Vec<Outbound>) {
        let mut effects = Effects::default();
        let arrival = Arrival {
            port: PortId(port),
            vlan: VLAN,
            may_route: true,
            is_isolated: false,
            message: &GroupMessage::read(frame, false),
        };
        let passage = self.snooper.receive(now, &arrival, &mut effects);
        self.learn(effects.news);
        (passage, effects.frames)
    }

    /// Who gets a frame for a group, as workers find out.
    fn audience(&self, group: impl Into<IpAddr>) -> BTreeSet<u16> {
        let group = group.into();
        let everybody = || (0..self.ports).collect();
        let mut header = [0; 14];
        header[..6].copy_from_slice(&group_mac(group).0);
        header[12..].copy_from_slice(&Family::of(group).ether_type());
        let Scope::Members(family) = scope(&header) else { return everybody() };
        let Some(always) = self.domains.get(&(VLAN, family)) else { return everybody() };
        let members = self.groups.get(&(VLAN, MacKey::from(group_mac(group)).as_u64()));
        members.into_iter().flatten().chain(always).map(|port| port.0).collect()
    }
}

fn these(ports: &[u16]) -> BTreeSet<u16> {
    ports.iter().copied().collect()
}

#[test]
fn a_group_goes_to_who_asked_and_to_nobody_else() {
    let mut rig = Rig::settled(4, |_| ());
    assert_eq!(rig.audience(GROUP), these(&[]));
    assert_eq!(rig.hear(at(20), 1, &report_v2(GROUP, 0x16)), (Passage::To(vec![]), vec![]));
    assert_eq!(rig.hear(at(20), 2, &report_v3(&[(4, GROUP, &[])])).0, Passage::To(vec![]));
    assert_eq!(rig.hear(at(20), 3, &report_mld(4, GROUP6)).0, Passage::To(vec![]));
    assert_eq!((rig.audience(GROUP), rig.audience(GROUP6)), (these(&[1, 2]), these(&[3])));
    assert_eq!(rig.audience(Ipv4Addr::new(239, 1, 2, 4)), these(&[]));
}

#[test]
fn what_everybody_needs_goes_to_everybody() {
    let rig = Rig::settled(3, |_| ());
    for group in
        ["224.0.0.1", "224.0.0.22", "224.0.0.251", "ff02::1", "ff02::2", "ff02::16", "ff02::fb", "ff02::1:2", "ff02::1:ff12:3456"]
    {
        assert_eq!(rig.audience(group.parse::<IpAddr>().unwrap()), these(&[0, 1, 2]), "{group}");
    }
    for header in [[0x01, 0x80, 0xc2, 0, 0, 0x21], [0x01, 0x1b, 0x19, 0, 0, 0]] {
        let header = [&header[..], &GUEST.0, &[8, 0]].concat();
        assert_eq!(scope(header.first_chunk().unwrap()), Scope::Everybody);
    }
    let tagged = [&group_mac(GROUP.into()).0[..], &GUEST.0, &[0x81, 0]].concat();
    assert_eq!(scope(tagged.first_chunk().unwrap()), Scope::Everybody);
}

#[test]
fn a_membership_that_is_not_renewed_ends_after_its_time() {
    let mut rig = Rig::settled(2, |_| ());
    rig.hear(at(100), 1, &report_v2(GROUP, 0x16));
    rig.tick(at(359));
    assert_eq!(rig.audience(GROUP), these(&[1]));
    rig.hear(at(359), 1, &report_v3(&[(2, GROUP, &[])]));
    rig.tick(at(618));
    assert_eq!(rig.audience(GROUP), these(&[1]));
    rig.tick(at(619));
    assert_eq!(rig.audience(GROUP), these(&[]));
    assert_eq!(rig.snooper.status(at(619)).counters.expired, 1);
}

#[test]
fn whoever_leaves_is_asked_twice_and_stays_if_somebody_there_answers() {
    let mut rig = Rig::settled(2, |_| ());
    rig.hear(at(20), 1, &report_v3(&[(4, GROUP, &[])]));
    let (passage, asked) = rig.hear(at(30), 1, &report_v3(&[(3, GROUP, &[])]));
    assert_eq!((passage, asked.len(), asked[0].to), (Passage::To(vec![]), 1, Some(PortId(1))));
    let question = read(&asked[0].frame).unwrap();
    let Message::Query(question) = question else { panic!("{question:?}") };
    assert_eq!((question.group, question.response), (Some(GROUP.into()), Duration::from_secs(1)));
    assert_eq!(rig.tick(at(31)), asked, "the second time");
    assert_eq!(rig.audience(GROUP), these(&[1]));
    rig.hear(Timestamp::from_millis(31_500), 1, &report_v3(&[(2, GROUP, &[])]));
    rig.tick(at(33));
    assert_eq!(rig.audience(GROUP), these(&[1]));
    rig.hear(at(40), 1, &report_v2(GROUP, 0x17));
    rig.tick(at(42));
    assert_eq!(rig.audience(GROUP), these(&[]));
}

#[test]
fn with_fast_leave_nobody_is_asked_but_blocked_sources_are_no_leave() {
    let mut rig = Rig::settled(2, |settings| settings.fast_leave = true);
    rig.hear(at(20), 1, &report_v3(&[(4, GROUP, &[])]));
    assert_eq!(rig.hear(at(21), 1, &report_v3(&[(6, GROUP, &[QUERIER])])).1.len(), 1);
    assert_eq!(rig.audience(GROUP), these(&[1]));
    assert_eq!(rig.hear(at(21), 1, &report_v3(&[(3, GROUP, &[])])).1, []);
    assert_eq!(rig.audience(GROUP), these(&[]));
}

#[test]
fn a_list_of_sources_is_a_wish_for_the_group_and_an_empty_one_is_none() {
    let mut rig = Rig::settled(2, |_| ());
    for kind in [1, 3, 5] {
        rig.hear(at(20), 1, &report_v3(&[(kind, GROUP, &[QUERIER])]));
        assert_eq!(rig.audience(GROUP), these(&[1]), "{kind}");
        rig.hear(at(20), 1, &report_v3(&[(6, GROUP, &[QUERIER])]));
        rig.tick(at(22));
        assert_eq!(rig.audience(GROUP), these(&[]), "{kind}");
    }
    rig.hear(at(30), 1, &report_v3(&[(1, GROUP, &[]), (5, GROUP, &[]), (77, GROUP, &[])]));
    assert_eq!(rig.audience(GROUP), these(&[]));
}

#[test]
fn a_host_of_the_first_version_cannot_leave() {
    let mut rig = Rig::settled(2, |_| ());
    rig.hear(at(20), 1, &report_v2(GROUP, 0x12));
    assert_eq!(rig.hear(at(21), 1, &report_v2(GROUP, 0x17)).1, []);
    rig.tick(at(200));
    assert_eq!(rig.audience(GROUP), these(&[1]));
}

#[test]
fn groups_that_share_an_address_share_their_members() {
    let mut rig = Rig::settled(3, |settings| settings.fast_leave = true);
    let other = Ipv4Addr::new(225, 129, 2, 3);
    rig.hear(at(20), 1, &report_v2(GROUP, 0x16));
    rig.hear(at(20), 2, &report_v2(other, 0x16));
    assert_eq!((rig.audience(GROUP), rig.audience(other)), (these(&[1, 2]), these(&[1, 2])));
    rig.hear(at(21), 1, &report_v2(GROUP, 0x17));
    assert_eq!(rig.audience(GROUP), these(&[2]));
}

#[test]
fn weft_asks_often_at_first_and_then_with_its_interval() {
    let mut rig = Rig::new(2, |settings| settings.address = Some(Ipv4Addr::new(10, 0, 0, 1)));
    let mut asked = Vec::new();
    for second in 0..=300 {
        for Outbound { to, frame, .. } in rig.tick(at(second)) {
            let Ok(Message::Query(query)) = read(&frame) else { panic!("{frame:02x?} is no query") };
            asked.push((second, query.source.is_ipv4(), to));
            let source: IpAddr =
                if query.source.is_ipv4() { Ipv4Addr::new(10, 0, 0, 1).into() } else { "fe80::ff:fe00:fe".parse().unwrap() };
            assert_eq!((query.source, query.group, query.response), (source, None, Duration::from_secs(10)));
        }
    }
    let seconds: Vec<_> = asked.iter().filter(|(_, is_v4, _)| *is_v4).map(|(second, ..)| *second).collect();
    assert_eq!(seconds, [0, 32, 157, 282]);
    assert!(asked.iter().all(|(.., to)| to.is_none()));
    assert_eq!(asked.len(), 8);
}

#[test]
fn a_port_that_comes_up_gets_everything_until_it_had_the_time_to_answer() {
    let mut rig = Rig::settled(2, |_| ());
    rig.plug(3);
    assert_eq!(rig.audience(GROUP), these(&[2]));
    let asked = rig.tick(at(50));
    assert_eq!(asked.iter().filter(|query| query.to == Some(PortId(2))).count(), 2, "IGMP and MLD");
    rig.tick(at(60));
    assert_eq!((rig.audience(GROUP), rig.audience(GROUP6)), (these(&[2]), these(&[2])));
    rig.hear(at(60), 2, &report_v2(GROUP, 0x16));
    rig.tick(at(61));
    assert_eq!((rig.audience(GROUP), rig.audience(GROUP6)), (these(&[2]), these(&[])));
}

#[test]
fn somebody_with_a_lower_address_is_the_querier_and_weft_asks_beside_it() {
    let own = Ipv4Addr::new(10, 0, 0, 5);
    let mut rig = Rig::settled(3, |settings| settings.address = Some(own));
    // A higher one does not win, and still is a router.
    rig.hear(at(20), 1, &query_of(QUERIER, None));
    assert!(rig.tick(at(200)).iter().any(|query| query.frame[12] == 8));
    assert_eq!(rig.audience(GROUP), these(&[1]));
    let lower = Ipv4Addr::new(10, 0, 0, 2);
    assert_eq!(rig.hear(at(210), 2, &query_of(lower, None)).0, Passage::Everybody);
    let sources = |asked: Vec<Outbound>| -> Vec<_> {
        asked.iter().filter(|query| query.frame[12] == 8).map(|query| query.frame[26..30].to_vec()).collect()
    };
    // From an address that takes no part.
    assert_eq!(sources(rig.tick(at(464))), [[0; 4]]);
    assert_eq!(rig.snooper.status(at(464)).queriers[0].querier.unwrap().0, IpAddr::from(lower));
    rig.tick(at(465));
    assert_eq!(rig.snooper.status(at(465)).queriers[0].querier.unwrap().0, IpAddr::from(own));
    assert_eq!(sources(rig.tick(at(590))), [own.octets()]);
    assert_eq!(rig.audience(GROUP), these(&[]), "the routers are forgotten");
}

#[test]
fn without_an_address_weft_yields_to_anybody_but_another_such_switch() {
    let mut rig = Rig::settled(3, |_| ());
    rig.hear(at(20), 1, &query_of(Ipv4Addr::UNSPECIFIED, None));
    assert_eq!((rig.audience(GROUP), rig.snooper.status(at(20)).queriers[0].routers.len()), (these(&[]), 0));
    rig.hear(at(20), 1, &query_of(QUERIER, None));
    assert_eq!(rig.snooper.status(at(20)).queriers[0].querier.unwrap().0, IpAddr::from(QUERIER));
    // Reports go to it.
    assert_eq!(rig.hear(at(21), 2, &report_v2(GROUP, 0x16)).0, Passage::To(vec![PortId(1)]));
}

#[test]
fn a_question_of_a_guest_ends_no_membership_unless_weft_is_told_not_to_ask() {
    for asks in [true, false] {
        let mut rig = Rig::settled(3, |settings| settings.querier = asks);
        rig.hear(at(20), 1, &query_of(QUERIER, None));
        rig.tick(at(31));
        rig.hear(at(40), 2, &report_v2(GROUP, 0x16));
        // It may be one that only weft hears.
        rig.hear(at(50), 1, &query_of(QUERIER, Some(GROUP)));
        rig.tick(at(60));
        assert_eq!(rig.audience(GROUP), these(if asks { &[1, 2] } else { &[1] }));
    }
}

#[test]
fn sources_that_no_host_answers_are_no_queriers() {
    for source in ["127.0.0.1", "0.0.0.1", "255.255.255.255", "240.0.0.1", "239.0.0.1"] {
        let frame = query_of(source.parse().unwrap(), None);
        assert!(read(&frame).is_err(), "{source}");
    }
    assert!(matches!(read(&query_of(QUERIER, None)), Ok(Message::Query(_))));
}

#[test]
fn whoever_leaves_and_comes_back_all_the_time_is_asked_once_in_an_interval() {
    let mut rig = Rig::settled(2, |_| ());
    rig.hear(at(20), 1, &report_v3(&[(4, GROUP, &[])]));
    let change = [(3, GROUP, &[][..]), (4, GROUP, &[]), (3, GROUP, &[]), (4, GROUP, &[]), (3, GROUP, &[])];
    let mut asked = (0..100).map(|_| rig.hear(at(30), 1, &report_v3(&change)).1.len()).sum::<usize>();
    asked += rig.tick(at(31)).len();
    assert_eq!(asked, 2);
    // What it said last counts.
    rig.tick(at(32));
    assert_eq!(rig.audience(GROUP), these(&[]));
}

#[test]
fn what_has_changed_is_told_once_for_each_message() {
    let mut rig = Rig::settled(2, |settings| settings.fast_leave = true);
    let records: Vec<_> = (0..120).map(|nth| (if nth % 2 == 0 { 4 } else { 3 }, GROUP, &[][..])).collect();
    let mut effects = Effects::default();
    let frame = report_v3(&records);
    let arrival =
        Arrival { port: PortId(1), vlan: VLAN, may_route: true, is_isolated: false, message: &GroupMessage::read(&frame, false) };
    rig.snooper.receive(at(20), &arrival, &mut effects);
    assert_eq!(effects.news, [News::Group(VLAN, group_mac(GROUP.into()).into(), vec![])]);
}

#[test]
fn a_port_has_a_rate_and_a_report_has_a_bound() {
    let mut rig = Rig::settled(3, |_| ());
    let heard = |rig: &mut Rig, now, port, frame: &[u8]| {
        (0..1000).filter(|_| !matches!(rig.hear(now, port, frame).0, Passage::Drop(_))).count()
    };
    let [one, many] = [1, 160].map(|count| report_v3(&vec![(4, GROUP, &[][..]); count]));
    assert_eq!(heard(&mut rig, at(20), 1, &one), 300);
    assert_eq!(heard(&mut rig, at(20), 2, &many), 27);
    assert_eq!(heard(&mut rig, Timestamp::from_millis(20_100), 1, &one), 50);
    assert_eq!(rig.snooper.status(at(21)).counters.refused, 700 + 973 + 950);
    for (count, fits) in [(512, true), (513, false)] {
        assert_eq!(read(&report_v3(&vec![(4, GROUP, &[][..]); count])).is_ok(), fits, "{count}");
    }
}

#[test]
fn a_port_that_can_not_receive_is_no_member_and_no_router() {
    let mut rig = Rig::settled(2, |_| ());
    for (frame, passage) in [(report_v2(GROUP, 0x16), Passage::To(vec![])), (query_of(QUERIER, None), Passage::Everybody)] {
        assert_eq!(rig.hear(at(20), 7, &frame).0, passage);
    }
    assert_eq!((rig.audience(GROUP), rig.snooper.groups.len(), rig.snooper.timers.len()), (these(&[]), 0, 2));
}

#[test]
fn a_querier_that_is_unplugged_is_replaced_at_once() {
    let mut rig = Rig::settled(3, |_| ());
    rig.hear(at(20), 2, &query_of(QUERIER, None));
    rig.plug(2);
    rig.tick(at(21));
    assert_eq!(rig.snooper.status(at(21)).queriers[0].routers, []);
    assert_eq!(rig.snooper.status(at(21)).queriers[0].querier.unwrap().1, None);
}

#[test]
fn without_a_querier_everything_goes_to_everybody() {
    let mut rig = Rig::new(3, |settings| settings.querier = false);
    assert_eq!(rig.tick(at(10)), []);
    assert_eq!(rig.hear(at(10), 1, &report_v2(GROUP, 0x16)).0, Passage::Everybody);
    assert_eq!(rig.audience(GROUP), these(&[0, 1, 2]));
    // The first question: nobody has answered yet.
    rig.hear(at(20), 0, &query_of(QUERIER, None));
    assert_eq!(rig.audience(GROUP), these(&[0, 1, 2]));
    rig.tick(at(31));
    assert_eq!(rig.audience(GROUP), these(&[0, 1]));
    rig.tick(at(20 + 255));
    assert_eq!(rig.audience(GROUP), these(&[0, 1, 2]), "nobody asks any more");
}

#[test]
fn a_port_that_may_not_route_is_no_querier() {
    let mut rig = Rig::settled(2, |_| ());
    let frame = query_of(QUERIER, None);
    let arrival = Arrival {
        port: PortId(1),
        vlan: VLAN,
        may_route: false,
        is_isolated: false,
        message: &GroupMessage::read(&frame, false),
    };
    let passage = rig.snooper.receive(at(20), &arrival, &mut Effects::default());
    assert_eq!(passage, Passage::Drop(DropReason::RouterNotAllowed));
    assert_eq!(rig.snooper.status(at(20)).queriers[0].routers, []);
}

#[test]
fn a_question_that_comes_back_goes_nowhere() {
    let mut rig = Rig::new(2, |_| ());
    let questions = rig.tick(at(0));
    assert_eq!(questions.len(), 2);
    for question in questions {
        let (passage, frames) = rig.hear(at(1), 1, &question.frame);
        assert_eq!((passage, frames), (Passage::Drop(DropReason::LoopProbe), vec![]));
    }
}

#[test]
fn an_isolated_port_is_not_elected() {
    let mut rig = Rig::settled(3, |_| ());
    let frame = query_of(QUERIER, None);
    let arrival =
        Arrival { port: PortId(1), vlan: VLAN, may_route: true, is_isolated: true, message: &GroupMessage::read(&frame, false) };
    assert_eq!(rig.snooper.receive(at(20), &arrival, &mut Effects::default()), Passage::Everybody);
    assert_eq!(rig.snooper.status(at(20)).queriers[0].querier.unwrap().1, None);
}

#[test]
fn who_asks_for_one_group_only_does_not_stay_the_querier() {
    let mut rig = Rig::settled(3, |_| ());
    rig.hear(at(20), 1, &query_of(QUERIER, None));
    for second in (40..=260).step_by(20) {
        rig.hear(at(second), 1, &query_of(QUERIER, Some(GROUP)));
    }
    rig.tick(at(275));
    assert_eq!(rig.snooper.status(at(275)).queriers[0].querier.unwrap().1, None);
}

#[test]
fn a_router_of_pim_gets_everything() {
    let mut rig = Rig::settled(2, |_| ());
    let mut hello = igmp(QUERIER, Ipv4Addr::new(224, 0, 0, 13), &[0x20, 0, 0, 0, 0, 1, 0, 2, 0, 105]);
    hello[14 + 9] = 103;
    hello[14 + 10..14 + 12].fill(0);
    let sum = internet_checksum(&[&hello[14..38]]).to_be_bytes();
    hello[14 + 10..14 + 12].copy_from_slice(&sum);
    assert!(is_shown(&hello));
    assert_eq!(rig.hear(at(20), 1, &hello).0, Passage::Everybody);
    assert_eq!((rig.audience(GROUP), rig.audience(GROUP6)), (these(&[1]), these(&[])));
}

#[test]
fn a_guest_that_joins_without_end_only_hurts_itself() {
    let mut rig = Rig::settled(3, |_| ());
    let group = |number: u32| Ipv4Addr::from_bits(0xef10_0000 + number);
    rig.hear(at(20), 2, &report_v2(GROUP, 0x16));
    for number in 0..10_000 {
        let (passage, _) = rig.hear(at(20), 1, &report_v2(group(number), 0x16));
        let fits = (number as usize) < GROUPS_PER_PORT;
        assert_eq!(passage, if fits { Passage::To(vec![]) } else { Passage::Drop(DropReason::GroupLimit) });
    }
    assert_eq!((rig.snooper.groups.len(), rig.snooper.timers.len()), (GROUPS_PER_PORT + 1, GROUPS_PER_PORT + 1 + 2));
    rig.hear(at(20), 0, &report_v2(group(20_000), 0x16));
    assert_eq!((rig.audience(group(20_000)), rig.audience(GROUP)), (these(&[0]), these(&[2])));
    for _ in 0..1000 {
        rig.hear(at(21), 1, &report_v3(&[(3, group(0), &[]), (4, group(0), &[]), (3, group(1), &[])]));
    }
    assert_eq!(rig.snooper.timers.len(), GROUPS_PER_PORT + 2 + 2 + 2, "two more questions are to be asked");
}

#[test]
fn whoever_finds_the_table_full_gets_everything() {
    let ports = (MEMBERSHIPS / GROUPS_PER_PORT) as u16;
    let mut rig = Rig::settled(ports + 1, |_| ());
    for port in 0..ports {
        for number in 0..GROUPS_PER_PORT as u32 {
            rig.hear(at(20), port, &report_v2(Ipv4Addr::from_bits(0xef10_0000 + number), 0x16));
        }
    }
    assert_eq!(rig.snooper.groups.len(), MEMBERSHIPS);
    assert_eq!(rig.hear(at(20), ports, &report_v2(GROUP, 0x16)).0, Passage::To(vec![]));
    assert_eq!(rig.audience(GROUP), these(&[ports]));
    assert_eq!(rig.snooper.status(at(20)).counters.overflows, 1);
}

#[test]
fn everything_of_a_port_goes_with_it() {
    let mut rig = Rig::settled(3, |_| ());
    rig.hear(at(20), 2, &report_v2(GROUP, 0x16));
    rig.hear(at(20), 2, &query_of(QUERIER, None));
    rig.plug(2);
    rig.tick(at(21));
    assert_eq!((rig.audience(GROUP), rig.snooper.groups.len(), rig.snooper.timers.len()), (these(&[]), 0, 2));
    rig.plug(0);
    assert_eq!((rig.domains.len(), rig.snooper.timers.len()), (0, 0));
}

#[test]
fn messages_that_contradict_themselves_are_dropped_and_change_nothing() {
    let good = [report_v2(GROUP, 0x16), report_v3(&[(4, GROUP, &[QUERIER])]), report_mld(4, GROUP6), query_of(QUERIER, None)];
    for frame in good {
        let mut rig = Rig::settled(2, |_| ());
        // Of IPv6 no checksum covers traffic class, flow label and padding, which mean nothing here.
        let is_free = |at: usize| frame[12] == 0x86 && matches!(at, 15..18 | 60..62);
        for at_byte in (14..frame.len()).filter(|at| !is_free(*at)) {
            let mut bad = frame.clone();
            bad[at_byte] ^= 0x11;
            let before = rig.snooper.status(at(20));
            let (passage, frames) = rig.hear(at(20), 1, &bad);
            // What is no message about groups any more goes its way.
            assert!(matches!(passage, Passage::Drop(_) | Passage::Ordinary), "byte {at_byte}: {passage:?}");
            let after = rig.snooper.status(at(20));
            assert_eq!((after.groups, after.queriers, frames), (before.groups, before.queriers, vec![]), "byte {at_byte}");
        }
    }
    // Without router alert, from afar, with another hop limit: RFC 3810, section 5.1.
    let source = crate::wire::link_local(GUEST);
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let message = [&[130, 0, 0, 0, 0x27, 0x10, 0, 0][..], &[0; 16], &[2, 125, 0, 0]].concat();
    assert!(matches!(read(&mld(source, all, &message)), Ok(Message::Query(_))));
    assert!(read(&mld("2001:db8::1".parse().unwrap(), all, &message)).is_err());
    assert!(read(&mld(Ipv6Addr::UNSPECIFIED, all, &message)).is_err());
    let mut far = mld(source, all, &message);
    far[14 + 7] = 64;
    assert!(read(&far).is_err());
    // An option that hosts don't know, and drop the packet for; one that they pass over.
    for (kind, fits) in [(0x80, false), (0x40, false), (0xc2, false), (0x1e, true)] {
        let mut unknown = mld(source, all, &message);
        unknown[14 + 4..14 + 6].copy_from_slice(&(16 + message.len() as u16).to_be_bytes());
        unknown[14 + 41] = 1;
        unknown.splice(14 + 48..14 + 48, [kind, 6, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read(&unknown).is_ok(), fits, "{kind:#x}");
    }
    let mut silent = mld(source, all, &message);
    silent[14 + 40 + 2..14 + 48].copy_from_slice(&[1, 4, 0, 0, 0, 0]);
    assert!(read(&silent).is_err());
}

#[test]
fn trunks_are_members_of_the_vlans_they_speak_of() {
    use crate::vlan::{Trunk, VlanSet};
    let [ten, twenty] = [10, 20].map(|number| VlanId::new(number).unwrap());
    let mut vlans = VlanSet::default();
    vlans.insert(ten);
    vlans.insert(twenty);
    let roles = [PortRole::Access(ten), PortRole::Trunk(Trunk { allowed: vlans, native: None })];
    let mut rig = Rig::new(0, |_| ());
    let mut effects = Effects::default();
    rig.ports = 2;
    let ports = roles.into_iter().enumerate().map(|(port, role)| (PortId(port as u16), Some(Arc::new(role))));
    rig.snooper.set_ports(ports.collect(), &mut effects);
    rig.learn(effects.news);
    let asked: BTreeSet<_> = rig.tick(at(0)).into_iter().map(|query| query.vlan).collect();
    assert_eq!(asked, [Vlan::customer(ten)].into());
    // The trunk's other VLAN is asked as soon as somebody there says something.
    let frame = report_v2(GROUP, 0x16);
    let mut effects = Effects::default();
    rig.snooper.receive(
        at(1),
        &Arrival {
            port: PortId(1),
            vlan: Vlan::customer(twenty),
            may_route: true,
            is_isolated: false,
            message: &GroupMessage::read(&frame, false),
        },
        &mut effects,
    );
    assert_eq!(rig.tick(at(1)).iter().map(|query| query.vlan).collect::<BTreeSet<_>>(), [Vlan::customer(twenty)].into());
    let status = rig.snooper.status(at(1));
    assert_eq!(status.groups.iter().map(|group| group.vlan).collect::<Vec<_>>(), [Vlan::customer(twenty)]);
    // Nobody hears what is said in service VLANs.
    let arrival = Arrival {
        port: PortId(1),
        vlan: Vlan::service(ten),
        may_route: true,
        is_isolated: false,
        message: &GroupMessage::read(&frame, false),
    };
    assert_eq!(rig.snooper.receive(at(1), &arrival, &mut Effects::default()), Passage::Everybody);
}

/// A membership report of MLDv1, without the router alert that it has to have.
fn bare_report(next: u8, behind: &[u8]) -> Vec<u8> {
    let mut message = [&[131, 0, 0, 0, 0, 0, 0, 0][..], &GROUP6.octets()].concat();
    let mut ip = [0; 40];
    ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, (behind.len() + message.len()) as u8, next, 1]);
    ip[8..24].copy_from_slice(&crate::wire::link_local(GUEST).octets());
    ip[24..].copy_from_slice(&GROUP6.octets());
    let sum = checksum_v6(&ip, 58, &message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    [link(GROUP6.into(), [0x86, 0xdd]), ip.to_vec(), behind.to_vec(), message].concat()
}

#[test]
fn nobody_says_anything_to_hosts_that_only_hosts_take_for_a_report() {
    let readdressed = |mut frame: Vec<u8>, to: [u8; 6]| {
        frame[..6].copy_from_slice(&to);
        frame
    };
    let frames = [
        readdressed(report_v2(GROUP, 0x16), [0xff; 6]),
        readdressed(report_v2(GROUP, 0x16), [1, 0, 0x5e, 9, 9, 9]),
        readdressed(report_v2(GROUP, 0x16), [3, 0, 0, 0, 0, 1]),
        readdressed(query_of(QUERIER, None), [0xff; 6]),
        readdressed(report_mld(4, GROUP6), [0xff; 6]),
        bare_report(58, &[]),
        // Destination options, a routing header, an authentication header, a fragment that is all there is, options behind one.
        bare_report(60, &[58, 0, 1, 4, 0, 0, 0, 0]),
        bare_report(43, &[58, 0, 0, 0, 0, 0, 0, 0]),
        bare_report(51, &[58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        bare_report(44, &[58, 0, 0, 0, 0, 0, 0, 1]),
        bare_report(44, &[60, 0, 0, 0, 0, 0, 0, 1, 58, 0, 1, 4, 0, 0, 0, 0]),
        // A first fragment that ends before what it is about.
        {
            let mut first = bare_report(44, &[60, 0, 0, 1, 0, 0, 0, 1, 58, 0, 1, 4, 0, 0, 0, 0]);
            first.truncate(14 + 40 + 16);
            first[14 + 5] = 16;
            first
        },
        // IEEE 802.2.
        [&report_v2(GROUP, 0x16)[..12], &[0, 40, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &report_v2(GROUP, 0x16)[14..]].concat(),
        {
            let report = report_v2(GROUP, 0x16);
            [&report[..12], &[0x81, 0, 0, 0, 0, 40, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &report[14..]].concat()
        },
        // Options without an end, and more headers than anybody has.
        bare_report(60, &[58, 9, 1, 4, 0, 0, 0, 0]),
        bare_report(60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(10)),
    ];
    for (place, frame) in frames.iter().enumerate() {
        assert!(is_shown(frame), "{place}");
        assert_eq!(read(frame), Err(DropReason::BadGroupMessage), "{place}");
    }
    // It becomes one when its checksum is written.
    let other = bare_report(58, &[]);
    let pending = |field| Some(PartialChecksum { start: field, offset: 0 });
    let becomes = |field| {
        concerns(other.first_chunk().unwrap(), *other[14..].first_chunk().unwrap(), pending(field), || Some([0; BEHIND_IPV6]))
    };
    assert_eq!([53, 54, 55, 60].map(becomes), [true, true, false, false]);
    // What waits to be cut into segments is none that a host would send.
    let report = report_v2(GROUP, 0x16);
    assert!(read(&report).is_ok() && GroupMessage::read(&report, true).message == Err(DropReason::BadGroupMessage));
}

#[test]
fn a_tag_that_names_no_vlan_hides_nothing() {
    let tagged = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0xe0, 0], &frame[12..]].concat();
    for frame in [report_v2(GROUP, 0x16), report_mld(4, GROUP6), query_of(QUERIER, None)] {
        let (once, twice) = (tagged(&frame), tagged(&tagged(&frame)));
        assert!(is_shown(&once) && is_shown(&twice));
        assert_eq!([read(&once), read(&twice)], [read(&frame), read(&frame)]);
        assert!(matches!(read(&frame), Ok(Message::Report(_) | Message::Query(_))));
        assert_eq!(read(&tagged(&twice)), Err(DropReason::BadGroupMessage));
    }
    assert!(is_shown(&tagged(&bare_report(58, &[]))));
    // Another VLAN is another matter.
    let mut other = tagged(&report_v2(GROUP, 0x16));
    other[15] = 7;
    assert!(!is_shown(&other));
}

#[test]
fn streams_are_not_looked_into() {
    let stream = |next: u8, behind: &[u8]| {
        let mut frame = bare_report(next, behind);
        frame[14 + 40 + behind.len()] = 0;
        frame
    };
    // UDP; behind options; a part of it.
    for frame in [stream(17, &[]), stream(60, &[17, 0, 1, 4, 0, 0, 0, 0]), stream(44, &[17, 0, 5, 1, 0, 0, 0, 1])] {
        assert!(!is_shown(&frame), "{frame:02x?}");
    }
    // A later part of something else is looked into, and like any other.
    assert_eq!(read(&stream(44, &[58, 0, 5, 1, 0, 0, 0, 1])), Ok(Message::Other));
    assert_eq!(read(&stream(58, &[])), Ok(Message::Other));
}

#[test]
fn what_a_port_says_that_can_not_receive_is_looked_at_and_counted() {
    let mut rig = Rig::settled(2, |_| ());
    assert_eq!(rig.hear(at(20), 7, &bare_report(58, &[])).0, Passage::Drop(DropReason::BadGroupMessage));
    let allowed = (0..1000).filter(|_| rig.hear(at(20), 7, &report_v2(GROUP, 0x16)).0 == Passage::To(vec![])).count();
    assert_eq!(allowed, 299);
    let said = GroupMessage::read(&query_of(QUERIER, None), false);
    let arrival = Arrival { port: PortId(8), vlan: VLAN, may_route: false, is_isolated: false, message: &said };
    assert_eq!(rig.snooper.receive(at(20), &arrival, &mut Effects::default()), Passage::Drop(DropReason::RouterNotAllowed));
    assert_eq!(rig.snooper.status(at(20)).queriers[0].querier.unwrap().1, None);
}

#[test]
fn what_makes_no_sense_counts_like_what_does() {
    let mut rig = Rig::settled(2, |_| ());
    let broken = bare_report(58, &[]);
    let outcomes: Vec<_> = (0..400).map(|_| rig.hear(at(20), 1, &broken).0).collect();
    let malformed = outcomes.iter().filter(|passage| **passage == Passage::Drop(DropReason::BadGroupMessage)).count();
    assert_eq!((malformed, outcomes.last()), (300, Some(&Passage::Drop(DropReason::GroupLimit))));
}

#[test]
fn one_message_asks_once_about_a_group() {
    let mut rig = Rig::settled(2, |settings| settings.fast_leave = true);
    rig.hear(at(20), 1, &report_v2(GROUP, 0x16));
    // BLOCK_OLD_SOURCES, TO_IN {} and TO_EX {}, over and over.
    let records = [(6, GROUP, &[QUERIER][..]), (3, GROUP, &[]), (4, GROUP, &[])].repeat(50);
    let (_, asked) = rig.hear(at(30), 1, &report_v3(&records));
    assert_eq!(asked.len(), 1);
}

#[test]
fn questions_follow_the_default_vlan() {
    let address = Ipv4Addr::new(10, 0, 0, 1);
    let mut rig = Rig::settled(2, |settings| settings.address = Some(address));
    rig.hear(at(20), 1, &report_v2(GROUP, 0x16));
    let ten = Vlan::customer(VlanId::new(10).unwrap());
    let mut effects = Effects::default();
    rig.snooper.reconfigure(SnoopingSettings { default_vlan: ten, ..*rig.snooper.settings() }, &mut effects);
    rig.learn(effects.news);
    assert_eq!(rig.groups, BTreeMap::new());
    let asked = rig.tick(at(21));
    assert!(asked.iter().all(|query| query.vlan == ten) && asked.len() >= 2, "{asked:?}");
    let queriers = rig.snooper.status(at(21)).queriers;
    assert_eq!(queriers.iter().map(|querier| querier.vlan).collect::<Vec<_>>(), [ten, ten]);
    assert_eq!(queriers[0].querier.unwrap().0, IpAddr::V4(address));
    rig.tick(at(40));
    assert_eq!(rig.domains.keys().map(|(vlan, _)| *vlan).collect::<Vec<_>>(), [ten, ten]);
}
