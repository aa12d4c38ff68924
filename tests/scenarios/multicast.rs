//! Multicast on a switch that snoops, as its guests meet it.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use common::{BROADCAST, Background, LIMIT, Port, SOON, TestSwitch, eventually, frame, mac};
use etherparse::checksum::u32_16bit_word::{add_slice, ones_complement};
use weft_dataplane::{NetworkSettings, PortSettings};
use weft_guest::Guest;
use weft_switch::guard::{Isolation, Protections};
use weft_switch::multicast::{GROUPS_PER_PORT, SnoopingSettings, SnoopingStatus, group_mac};
use weft_switch::vlan::{PortRole, Trunk, Vlan, VlanId};
use weft_switch::{DropReason, FdbSettings, MacAddr};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const OTHER: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 4);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 1, 0x203);
const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// RFC 1071.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let sum = ones_complement(parts.iter().fold(0, |sum, part| add_slice(sum, part)));
    sum.to_ne_bytes()
}

fn link(to: IpAddr, from: u16, kind: [u8; 2]) -> Vec<u8> {
    [&group_mac(to).0[..], &mac(from), &kind].concat()
}

/// IPv4 with a router alert.
fn ipv4(from: u16, source: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u8::try_from(24 + payload.len()).unwrap();
    let mut ip =
        [&[0x46, 0xc0, 0, len, 0, 0, 0, 0, 1, protocol, 0, 0][..], &source.octets(), &to.octets(), &[0x94, 4, 0, 0]].concat();
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum);
    [link(to.into(), from, [8, 0]), ip, payload.to_vec()].concat()
}

fn igmp(from: u16, source: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum);
    ipv4(from, source, to, 2, &message)
}

/// IGMPv3: any source (RFC 3376, section 4.2.12: to `EXCLUDE`), or none any more (to `INCLUDE`).
fn report(from: u16, group: Ipv4Addr, wants: bool) -> Vec<u8> {
    let kind = if wants { 4 } else { 3 };
    let message = [&[0x22, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0][..], &group.octets()].concat();
    igmp(from, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(224, 0, 0, 22), &message)
}

fn query(from: u16, source: Ipv4Addr) -> Vec<u8> {
    igmp(from, source, Ipv4Addr::new(224, 0, 0, 1), &[0x11, 10, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0])
}

/// MLDv2, from the link-local address fe80::1.
fn report6(from: u16, group: Ipv6Addr, wants: bool) -> Vec<u8> {
    let kind = if wants { 4 } else { 3 };
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
    let mut message = [&[143, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0][..], &group.octets()].concat();
    let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let sum = checksum(&[&source.octets(), &to.octets(), &[0, 0, 0, 28, 0, 0, 0, 58], &message]);
    message[2..4].copy_from_slice(&sum);
    let ip = [&[0x60, 0, 0, 0, 0, 36, 0, 1][..], &source.octets(), &to.octets()].concat();
    [link(to.into(), from, [0x86, 0xdd]), ip, vec![58, 0, 5, 2, 0, 0, 1, 0], message].concat()
}

/// A datagram of a stream.
fn stream(from: u16, group: Ipv4Addr) -> Vec<u8> {
    ipv4(from, Ipv4Addr::new(10, 0, 0, 9), group, 17, &[0x13, 0x88, 0x13, 0x88, 0, 12, 0, 0, 1, 2, 3, 4])
}

fn stream6(from: u16, group: Ipv6Addr) -> Vec<u8> {
    let ip = [&[0x60, 0, 0, 0, 0, 8, 59, 1][..], &[0; 16], &group.octets(), &[7; 8]].concat();
    [link(group.into(), from, [0x86, 0xdd]), ip].concat()
}

/// Quick enough to be waited for.
fn settings() -> SnoopingSettings {
    let mut settings = SnoopingSettings::new(OWN, Vlan::customer(VlanId::DEFAULT));
    settings.query_interval = Duration::from_secs(60);
    settings.response_interval = Duration::from_millis(100);
    settings.last_member_interval = Duration::from_millis(100);
    settings
}

fn snoop(switch: &TestSwitch, snooping: SnoopingSettings) {
    let network = switch.network();
    let fdb = FdbSettings::new(16_384, Duration::from_secs(300));
    let settings = NetworkSettings { multicast: Some(snooping), ..NetworkSettings::from(fdb) };
    switch.with(move |dataplane| dataplane.set_network(network, settings)).unwrap();
}

fn status(switch: &TestSwitch) -> SnoopingStatus {
    let network = switch.network();
    switch.with(move |dataplane| dataplane.snooping_status(network)).expect("somebody snoops")
}

fn counted(switch: &TestSwitch) -> usize {
    status(switch).groups.iter().map(|group| group.members.len()).sum()
}

/// Waits until every port had the time to say what it wants.
#[track_caller]
fn wait_settled(switch: &TestSwitch) {
    let settled = || {
        let queriers = status(switch).queriers;
        !queriers.is_empty() && queriers.iter().all(|querier| querier.unsettled.is_empty())
    };
    assert!(eventually(settled), "{:?}", status(switch));
}

fn is_query(frame: &[u8]) -> bool {
    let payload = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    frame[6..12] == OWN.0 && (frame[payload + 9] == 2 || frame[payload + 6] == 0)
}

/// The next frame but for weft's questions.
fn next(guest: &mut Guest, limit: Duration) -> Option<Vec<u8>> {
    let until = Instant::now() + limit;
    loop {
        let frame = guest.receive(until.saturating_duration_since(Instant::now())).unwrap()?;
        if !is_query(&frame) {
            return Some(frame);
        }
    }
}

#[track_caller]
fn expect(guest: &mut Guest, frame: &[u8]) {
    assert_eq!(next(guest, SOON).as_deref(), Some(frame));
}

/// Asserts that nothing has come, now that everything that was sent has been forwarded.
#[track_caller]
fn expect_nothing(switch: &TestSwitch, guest: &mut Guest) {
    switch.wait_asleep();
    assert_eq!(next(guest, Duration::ZERO), None);
}

fn world<const N: usize>(
    snooping: SnoopingSettings,
    shape: impl Fn(usize, PortSettings) -> PortSettings,
) -> (TestSwitch, [(Port, Guest); N]) {
    let switch = TestSwitch::start();
    snoop(&switch, snooping);
    let guests = std::array::from_fn(|nth| {
        let port = switch.add(shape(nth, switch.settings()));
        let guest = switch.connect(&port, |builder| builder);
        (port, guest)
    });
    wait_settled(&switch);
    (switch, guests)
}

fn plain<const N: usize>() -> (TestSwitch, [(Port, Guest); N]) {
    world(settings(), |_, settings| settings)
}

/// Sends a report, and waits until there are so many memberships.
#[track_caller]
fn say(switch: &TestSwitch, guest: &mut Guest, report: &[u8], members: usize) {
    guest.send(report).unwrap();
    assert!(eventually(|| counted(switch) == members), "{:?}", status(switch));
}

#[test]
fn a_stream_goes_to_who_asked_for_it_until_it_leaves() {
    let (switch, [(sender, mut a), (_, mut b), (_, mut c)]) = plain();
    a.send(&stream(1, GROUP)).unwrap();
    switch.expect_drops(&sender, DropReason::NoMember, 1);
    say(&switch, &mut b, &report(2, GROUP, true), 1);
    for _ in 0..100 {
        a.send(&stream(1, GROUP)).unwrap();
        expect(&mut b, &stream(1, GROUP));
    }
    // The last member sends, too: to nobody.
    b.send(&stream(2, GROUP)).unwrap();
    say(&switch, &mut c, &report(3, GROUP, true), 2);
    a.send(&stream(1, GROUP)).unwrap();
    expect(&mut b, &stream(1, GROUP));
    expect(&mut c, &stream(1, GROUP));
    // Nobody behind b answers when it is asked, so it gets no more.
    say(&switch, &mut b, &report(2, GROUP, false), 1);
    a.send(&stream(1, GROUP)).unwrap();
    expect(&mut c, &stream(1, GROUP));
    expect_nothing(&switch, &mut a);
    expect_nothing(&switch, &mut b);
    // Members hear nothing of each other's reports.
    assert_eq!(status(&switch).counters.reports, 3);
}

#[test]
fn ipv6_is_snooped_as_well_and_what_everybody_needs_goes_to_everybody() {
    let (switch, [(_, mut a), (_, mut b), (_, mut c)]) = plain();
    say(&switch, &mut b, &report6(2, GROUP6, true), 1);
    a.send(&stream6(1, GROUP6)).unwrap();
    expect(&mut b, &stream6(1, GROUP6));
    expect_nothing(&switch, &mut c);
    // Neighbour discovery, all nodes, DHCPv6, mDNS.
    for group in ["ff02::1:ff00:1", "ff02::1", "ff02::1:2", "ff02::fb"] {
        let frame = stream6(1, group.parse().unwrap());
        a.send(&frame).unwrap();
        expect(&mut b, &frame);
        expect(&mut c, &frame);
    }
    let mdns = stream(1, Ipv4Addr::new(224, 0, 0, 251));
    a.send(&mdns).unwrap();
    expect(&mut b, &mdns);
    expect(&mut c, &mdns);
}

#[test]
fn nobody_is_kept_from_reporting_by_what_looks_like_a_report_to_hosts_alone() {
    let (switch, [(attacker, mut a), (_, mut b)]) = plain();
    let mut to_all = report(1, GROUP, true);
    to_all[..6].copy_from_slice(&[0xff; 6]);
    // MLD, and nothing that tells routers to look.
    let whole = report6(1, GROUP6, true);
    let mut bare = [&whole[..54], &whole[62..]].concat();
    (bare[14 + 5], bare[14 + 6]) = (28, 58);
    let tagged = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0, 0], &frame[12..]].concat();
    let misleading = [to_all.clone(), bare.clone(), tagged(&to_all), tagged(&bare)];
    for frame in &misleading {
        a.send(frame).unwrap();
    }
    switch.expect_drops(&attacker, DropReason::BadGroupMessage, misleading.len() as u64);
    // With a tag that names no VLAN it is a report all the same.
    say(&switch, &mut a, &tagged(&report(1, GROUP, true)), 1);
    expect_nothing(&switch, &mut b);
}

#[test]
fn guests_are_asked_when_they_come_up() {
    let (switch, [(_, mut a)]) = plain();
    let mut asked = [false; 2];
    let until = Instant::now() + LIMIT;
    while asked != [true; 2] && Instant::now() < until {
        if let Some(frame) = a.receive(SOON).unwrap().filter(|frame| is_query(frame)) {
            asked[usize::from(frame[12] == 0x86)] = true;
        }
    }
    assert_eq!(asked, [true; 2], "in IGMP and in MLD");
    // A newcomer is asked, too, and gets everything until it had the time to answer.
    let (_, mut b) = switch.guest(|builder| builder);
    a.send(&stream(1, GROUP)).unwrap();
    expect(&mut b, &stream(1, GROUP));
    wait_settled(&switch);
    a.send(&stream(1, GROUP)).unwrap();
    expect_nothing(&switch, &mut b);
}

#[test]
fn a_trace_says_who_has_asked() {
    let (switch, [(a, _a), _b, (c_port, mut c), _d]) = plain();
    say(&switch, &mut c, &report(3, GROUP, true), 1);
    wait_settled(&switch);
    let trace = |frame: Vec<u8>| switch.trace(a.id, &frame);
    let places = |frame| trace(frame).receivers.iter().map(|receiver| receiver.port).collect::<Vec<_>>();
    assert_eq!(places(stream(1, GROUP)), [c_port.id]);
    assert_eq!(trace(stream(1, OTHER)).drops, [(a.id, DropReason::NoMember)]);
    assert_eq!(places(frame(BROADCAST, mac(1), 60)).len(), 3);
    let about_groups = trace(report(1, OTHER, true));
    assert!(about_groups.receivers.is_empty() && about_groups.steps.iter().any(|step| step.stage == "multicast"));
    assert_eq!(counted(&switch), 1, "nothing was learned of that");
}

#[test]
fn another_querier_gets_everything_and_hears_the_reports() {
    let (switch, [(_, mut a), (_, mut b), (_, mut c)]) = plain();
    let question = query(3, Ipv4Addr::new(10, 0, 0, 3));
    c.send(&question).unwrap();
    expect(&mut a, &question);
    expect(&mut b, &question);
    b.send(&report(2, GROUP, true)).unwrap();
    expect(&mut c, &report(2, GROUP, true));
    a.send(&stream(1, OTHER)).unwrap();
    expect(&mut c, &stream(1, OTHER));
    expect_nothing(&switch, &mut b);
    let querier = &status(&switch).queriers[0];
    assert_eq!(querier.querier.unwrap().0, IpAddr::from([10, 0, 0, 3]));
}

#[test]
fn a_guest_that_joins_without_end_only_hurts_itself() {
    let (switch, [(_, mut a), (greedy, mut b), (_, mut c)]) = plain();
    say(&switch, &mut c, &report(3, GROUP, true), 1);
    let group = |number: u16| Ipv4Addr::from_bits(0xef20_0000 + u32::from(number));
    for number in 0..1000 {
        b.send(&report(2, group(number), true)).unwrap();
    }
    switch.expect_drops(&greedy, DropReason::GroupLimit, 1000 - GROUPS_PER_PORT as u64);
    assert_eq!(counted(&switch), GROUPS_PER_PORT + 1);
    say(&switch, &mut c, &report(3, group(999), true), GROUPS_PER_PORT + 2);
    a.send(&stream(1, group(999))).unwrap();
    expect(&mut c, &stream(1, group(999)));
    expect_nothing(&switch, &mut b);
    // With its port goes all that it asked for.
    switch.remove(&greedy);
    assert_eq!(counted(&switch), 2);
}

#[test]
fn broken_messages_and_forged_queries_are_dropped() {
    let no_router = Protections { router: false, ..Protections::NONE };
    let (switch, [(port, mut a), (_, mut b)]) =
        world(settings(), move |_, settings| PortSettings { protections: no_router.clone(), ..settings });
    let mut broken = report(1, GROUP, true);
    *broken.last_mut().unwrap() ^= 1;
    a.send(&broken).unwrap();
    switch.expect_drops(&port, DropReason::BadGroupMessage, 1);
    a.send(&query(1, Ipv4Addr::new(1, 1, 1, 1))).unwrap();
    switch.expect_drops(&port, DropReason::RouterNotAllowed, 1);
    assert_eq!(status(&switch).queriers[0].querier, Some((NOBODY.into(), None)));
    expect_nothing(&switch, &mut b);
}

#[test]
fn isolated_members_get_no_stream_of_each_other() {
    let (switch, [(_, mut a), (isolated, mut b), (_, mut c)]) = world(settings(), |nth, settings| {
        let isolation = if nth == 0 { Isolation::None } else { Isolation::Isolated };
        PortSettings { protections: Protections { isolation, ..Protections::NONE }, ..settings }
    });
    say(&switch, &mut c, &report(3, GROUP, true), 1);
    b.send(&stream(2, GROUP)).unwrap();
    switch.expect_drops(&isolated, DropReason::Isolated, 1);
    a.send(&stream(1, GROUP)).unwrap();
    expect(&mut c, &stream(1, GROUP));
}

/// A bridge between two ports, as a guest makes one, and nothing that would tell it to stop.
#[test]
fn a_port_that_is_paused_for_a_loop_is_no_member() {
    let (switch, [(one, a), (two, b), (_, mut c), (_, mut d)]) = plain();
    say(&switch, &mut c, &report(3, GROUP, true), 1);
    let bridge = Background::start([a, b], |[a, b]: &mut [Guest; 2], _| {
        while let Some(frame) = a.receive(Duration::ZERO).unwrap() {
            b.send(&frame).unwrap();
        }
        while let Some(frame) = b.receive(Duration::ZERO).unwrap() {
            a.send(&frame).unwrap();
        }
    });
    d.send(&frame(BROADCAST, mac(4), 60)).unwrap();
    let paused = || [&one, &two].into_iter().find(|port| switch.status(port).loop_with.is_some());
    assert!(eventually(|| {
        drop(switch.with(weft_dataplane::Dataplane::take_flaps));
        paused().is_some()
    }));
    let lame = paused().unwrap().id;
    let is_known = |status: &SnoopingStatus| {
        let members = status.groups.iter().flat_map(|group| &group.members).map(|(time, _)| time.port);
        let unsettled =
            status.queriers.iter().flat_map(|querier| querier.unsettled.iter().chain(&querier.routers)).map(|time| time.port);
        members.chain(unsettled).any(|port| port == lame)
    };
    assert!(!is_known(&status(&switch)), "{:?}", status(&switch));
    drop(bridge.stop());
}

#[test]
fn each_vlan_has_members_of_its_own_and_trunks_get_a_tag() {
    let [ten, twenty] = [10, 20].map(|number| VlanId::new(number).unwrap());
    let roles = [
        PortRole::Access(ten),
        PortRole::Access(ten),
        PortRole::Access(twenty),
        PortRole::Trunk(Trunk { allowed: "10,20".parse().unwrap(), native: None }),
    ];
    let (switch, [(_, mut a), (_, mut b), (_, mut c), (_, mut all)]) =
        world(settings(), move |nth, settings| PortSettings { vlan: Some(roles[nth].clone()), ..settings });
    let tagged = |vlan: u8, frame: &[u8]| [&frame[..12], &[0x81, 0, 0, vlan], &frame[12..]].concat();
    // Asked with the tag that each port knows.
    let mut vlans = [false; 2];
    let until = Instant::now() + LIMIT;
    while vlans != [true; 2] && Instant::now() < until {
        if let Some(frame) = all.receive(SOON).unwrap().filter(|frame| is_query(frame)) {
            assert_eq!(frame[12..15], [0x81, 0, 0]);
            vlans[usize::from(frame[15] == 20)] = true;
        }
    }
    assert_eq!(vlans, [true; 2]);
    say(&switch, &mut c, &report(3, GROUP, true), 1);
    say(&switch, &mut all, &tagged(10, &report(4, GROUP, true)), 2);
    a.send(&stream(1, GROUP)).unwrap();
    expect(&mut all, &tagged(10, &stream(1, GROUP)));
    expect_nothing(&switch, &mut b);
    expect_nothing(&switch, &mut c);
    all.send(&tagged(20, &stream(4, GROUP))).unwrap();
    expect(&mut c, &stream(4, GROUP));
    expect_nothing(&switch, &mut a);
}

#[test]
fn snooping_ends_when_the_network_is_told_to_flood() {
    let (switch, [(_, mut a), (_, mut b)]) = plain();
    a.send(&stream(1, GROUP)).unwrap();
    expect_nothing(&switch, &mut b);
    let network = switch.network();
    let fdb = FdbSettings::new(16_384, Duration::from_secs(300));
    switch.with(move |dataplane| dataplane.set_network(network, fdb)).unwrap();
    a.send(&stream(1, GROUP)).unwrap();
    expect(&mut b, &stream(1, GROUP));
}
