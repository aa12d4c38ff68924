//! Every combination against a table that was written by hand from the standard, and invariants over all of them.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{EthernetHeader, Fdb, FdbSettings, MacAddr, PortId, Timestamp, Verdict, forward};

const NOW: Timestamp = Timestamp::from_millis(5_000);
const SETTINGS: FdbSettings = FdbSettings::new(1024, Duration::from_secs(300));
const NONE: Option<OuterTag> = None;

/// The VLAN of a frame, or why it was not admitted.
type Expected = Result<Vlan, DropReason>;

fn id(number: u16) -> VlanId {
    VlanId::new(number).unwrap()
}

fn trunk(allowed: &str, native: Option<u16>) -> PortRole {
    PortRole::Trunk(Trunk { allowed: allowed.parse().unwrap(), native: native.map(id) })
}

/// A tag in front of an IPv4 packet, with priority 5.
fn tag(kind: TagKind, number: u16) -> Option<OuterTag> {
    Some(OuterTag { kind, control: 0xa000 | number, next: 0x0800 })
}

/// The same in front of another tag.
fn double(kind: TagKind, number: u16) -> Option<OuterTag> {
    tag(kind, number).map(|tag| OuterTag { next: 0x8100, ..tag })
}

fn c(number: u16) -> Option<OuterTag> {
    tag(TagKind::Customer, number)
}

fn s(number: u16) -> Option<OuterTag> {
    tag(TagKind::Service, number)
}

/// Which VLAN a frame belongs to by the port that it comes from. By hand from IEEE 802.1Q-2018, 6.9.1 (a VID is that of the tag, or the PVID where there is none
/// or it is null), 6.9 (acceptable frame types), 8.6.2 (ingress filtering), 9.6 (reserved), 15.3 (port-based service interface).
#[test]
fn ports_admit_what_the_standard_says() {
    use DropReason::{ReservedVlan, TagNotAdmitted, UntaggedNotAdmitted, VlanNotAllowed};
    let (v, sv) = (|n| Ok(Vlan::customer(id(n))), |n| Ok(Vlan::service(id(n))));
    let access = PortRole::Access(id(100));
    let plain = trunk("10,20", None);
    let native = trunk("10,20", Some(1));
    let qinq = PortRole::Qinq(id(300));
    #[rustfmt::skip]
    let table: [(&str, Option<OuterTag>, [Expected; 4]); 15] = [
        //                                       access 100               trunk 10,20                native 1                 qinq 300
        ("untagged",          NONE,             [v(100),                  Err(UntaggedNotAdmitted),  v(1),                    sv(300)]),
        ("priority",          c(0),             [v(100),                  Err(UntaggedNotAdmitted),  v(1),                    sv(300)]),
        ("access VLAN",       c(100),           [Err(TagNotAdmitted),     Err(VlanNotAllowed),       Err(VlanNotAllowed),     sv(300)]),
        ("allowed VLAN",      c(10),            [Err(TagNotAdmitted),     v(10),                     v(10),                   sv(300)]),
        ("native VLAN",       c(1),             [Err(TagNotAdmitted),     Err(VlanNotAllowed),       v(1),                    sv(300)]),
        ("another VLAN",      c(4094),          [Err(TagNotAdmitted),     Err(VlanNotAllowed),       Err(VlanNotAllowed),     sv(300)]),
        ("reserved",          c(4095),          [Err(ReservedVlan),       Err(ReservedVlan),         Err(ReservedVlan),       sv(300)]),
        ("service priority",  s(0),             [Err(TagNotAdmitted),     Err(TagNotAdmitted),       Err(TagNotAdmitted),     sv(300)]),
        ("service allowed",   s(10),            [Err(TagNotAdmitted),     sv(10),                    sv(10),                  Err(TagNotAdmitted)]),
        ("service native",    s(1),             [Err(TagNotAdmitted),     Err(VlanNotAllowed),       Err(VlanNotAllowed),     Err(TagNotAdmitted)]),
        ("service of qinq",   s(300),           [Err(TagNotAdmitted),     Err(VlanNotAllowed),       Err(VlanNotAllowed),     Err(TagNotAdmitted)]),
        ("service reserved",  s(4095),          [Err(ReservedVlan),       Err(ReservedVlan),         Err(ReservedVlan),       Err(ReservedVlan)]),
        ("priority, tag",     double(TagKind::Customer, 0),
                                                [Err(TagNotAdmitted),     Err(UntaggedNotAdmitted),  v(1),                    sv(300)]),
        ("allowed, tag",      double(TagKind::Customer, 10),
                                                [Err(TagNotAdmitted),     v(10),                     v(10),                   sv(300)]),
        ("service, tag",      double(TagKind::Service, 10),
                                                [Err(TagNotAdmitted),     sv(10),                    sv(10),                  Err(TagNotAdmitted)]),
    ];
    for (name, tag, expected) in table {
        for (role, expected) in [&access, &plain, &native, &qinq].into_iter().zip(expected) {
            assert_eq!(role.admit(tag).map(|admitted| admitted.vlan), expected, "{name} from {role:?}");
        }
    }
}

/// How a frame of a VLAN leaves. By hand from IEEE 802.1Q-2018, 8.6.4 (egress filtering by member set), 8.8.10 (untagged set).
#[test]
fn frames_leave_by_member_ports_as_the_standard_says() {
    use Release::{Tagged, Untagged};
    let roles = [PortRole::Access(id(10)), trunk("10,20", None), trunk("10,20", Some(10)), PortRole::Qinq(id(10))];
    #[rustfmt::skip]
    let table = [
        //                          access 10        trunk 10,20     native 10       qinq 10
        (Vlan::customer(id(10)),  [Some(Untagged),  Some(Tagged),   Some(Untagged), None]),
        (Vlan::customer(id(20)),  [None,            Some(Tagged),   Some(Tagged),   None]),
        (Vlan::customer(id(30)),  [None,            None,           None,           None]),
        (Vlan::service(id(10)),   [None,            Some(Tagged),   Some(Tagged),   Some(Untagged)]),
        (Vlan::service(id(20)),   [None,            Some(Tagged),   Some(Tagged),   None]),
    ];
    for (vlan, expected) in table {
        for (role, expected) in roles.iter().zip(expected) {
            assert_eq!(role.membership(vlan), expected, "{vlan:?} by {role:?}");
        }
    }
}

#[test]
fn tags_are_kept_pushed_popped_and_replaced() {
    use Release::{Tagged, Untagged};
    let (access, native, qinq) = (PortRole::Access(id(10)), trunk("10,20", Some(10)), PortRole::Qinq(id(20)));
    #[rustfmt::skip]
    let table = [
        (&access, NONE,   Untagged, TagOperation::Keep),
        (&access, NONE,   Tagged,   TagOperation::Push),
        (&access, c(0),   Untagged, TagOperation::Pop),
        (&access, c(0),   Tagged,   TagOperation::Replace),
        (&native, c(20),  Tagged,   TagOperation::Keep),
        (&native, c(20),  Untagged, TagOperation::Pop),
        (&native, c(0),   Tagged,   TagOperation::Replace),
        (&qinq,   NONE,   Tagged,   TagOperation::Push),
        (&qinq,   c(10),  Tagged,   TagOperation::Push),
        (&qinq,   c(10),  Untagged, TagOperation::Keep),
        (&qinq,   s(0),   Tagged,   TagOperation::Replace),
        (&native, s(20),  Untagged, TagOperation::Pop),
    ];
    for (role, tag, release, expected) in table {
        assert_eq!(role.admit(tag).unwrap().operation(tag, release), expected, "{tag:?} from {role:?}, {release:?}");
    }
}

#[test]
fn priority_is_kept_and_that_of_a_customer_is_the_services() {
    for (role, tag) in [(PortRole::Access(id(10)), c(0)), (trunk("10", None), c(10)), (PortRole::Qinq(id(300)), c(7))] {
        assert_eq!(role.admit(tag).unwrap().priority, Priority::new(5, false));
    }
    assert_eq!(PortRole::Access(id(10)).admit(None).unwrap().priority, Priority::default());
}

#[test]
fn a_tag_behind_a_customers_tag_does_not_come_to_light() {
    let sender = trunk("10,20", None);
    let frame = sender.admit(double(TagKind::Customer, 10)).unwrap();
    assert_eq!(PortRole::Access(id(10)).release(frame.vlan, frame.hides_tag), Err(DropReason::HiddenTag));
    assert_eq!(trunk("20", Some(10)).release(frame.vlan, frame.hides_tag), Err(DropReason::HiddenTag));
    assert_eq!(trunk("10", None).release(frame.vlan, frame.hides_tag), Ok(Release::Tagged));
    // A service's customer gets its own tag back.
    let frame = sender.admit(double(TagKind::Service, 10)).unwrap();
    assert_eq!(PortRole::Qinq(id(10)).release(frame.vlan, frame.hides_tag), Ok(Release::Untagged));
}

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
const GROUP: MacAddr = MacAddr([1, 0, 0x5e, 0, 0, 9]);

/// A whole switch in a few lines: what the dataplane does with these parts.
struct Network {
    roles: Vec<PortRole>,
    tables: VlanTables,
}

impl Network {
    fn new(roles: Vec<PortRole>) -> Self {
        let weights = Weights::of(VlanId::DEFAULT, &roles);
        let undivided = Arc::new(Fdb::new(SETTINGS, &Arc::default()));
        Self { tables: VlanTables::new(SETTINGS, VlanId::DEFAULT, (&weights, &StaticStations::new()), None, &undivided), roles }
    }

    /// Where a frame goes, and how.
    fn send(&self, from: usize, tag: Option<OuterTag>, header: &EthernetHeader) -> Vec<(usize, Vlan, Release)> {
        let Ok(frame) = self.roles[from].admit(tag) else { return Vec::new() };
        let fdb = self.tables.fdb(frame.vlan).expect("a VLAN that a port admits has a table");
        let receivers = match forward(NOW, PortId(from as u16), header, fdb) {
            Verdict::To(port) => vec![port.index()],
            Verdict::Flood => (0..self.roles.len()).filter(|&port| port != from).collect(),
            Verdict::Drop(_) => Vec::new(),
        };
        let released =
            |port: usize| self.roles[port].release(frame.vlan, frame.hides_tag).ok().map(|release| (port, frame.vlan, release));
        receivers.into_iter().filter_map(released).collect()
    }
}

fn header(source: MacAddr, destination: MacAddr) -> EthernetHeader {
    EthernetHeader { destination: destination.into(), source: source.into() }
}

/// Every role as a sender, every tag, and destinations that are known, unknown and a group: who gets the frame, and how. `u`: without a tag in front, `t`: with
/// one. By hand from the tables above; a known destination is at the first receiver.
#[test]
fn every_role_with_every_tag_reaches_the_right_ports() {
    //  port      0                        1                        2                    3
    let roles = [
        PortRole::Access(id(10)),
        PortRole::Access(id(10)),
        PortRole::Access(id(20)),
        trunk("10,20", None),
        trunk("10,20,300", Some(1)),
        trunk("20", Some(10)),
        PortRole::Access(id(1)),
        PortRole::Qinq(id(300)),
        PortRole::Qinq(id(300)),
    ];
    let in_10 = "0u 1u 3t 4t 5u";
    let in_20 = "2u 3t 4t 5t";
    let in_1 = "4u 6u";
    let in_s300 = "4t 7u 8u";
    let in_s20 = "3t 4t 5t";
    #[rustfmt::skip]
    let table: [(usize, Option<OuterTag>, &str); 34] = [
        (0, NONE, in_10), (0, c(0), in_10), (0, c(10), ""), (0, c(20), ""), (0, c(4095), ""), (0, s(20), ""),
        (2, NONE, in_20), (2, c(0), in_20), (2, c(10), ""),
        (3, NONE, ""), (3, c(0), ""), (3, c(10), in_10), (3, c(20), in_20), (3, c(30), ""), (3, c(1), ""), (3, s(20), in_s20),
        (4, NONE, in_1), (4, c(0), in_1), (4, c(1), in_1), (4, c(10), in_10), (4, s(300), in_s300), (4, c(300), ""),
        (5, NONE, in_10), (5, c(10), in_10), (5, c(20), in_20), (5, c(1), ""),
        (6, NONE, in_1), (6, c(1), ""),
        (7, NONE, in_s300), (7, c(0), in_s300), (7, c(10), in_s300), (7, c(4095), in_s300), (7, s(300), ""), (7, s(0), in_s300),
    ];
    for (from, tag, members) in table {
        let expected: Vec<(usize, Release)> = members
            .split_whitespace()
            .map(|member| (member[..1].parse().unwrap(), if member.ends_with('t') { Release::Tagged } else { Release::Untagged }))
            .filter(|&(port, _)| port != from)
            .collect();
        let reached = |network: &Network, destination| -> Vec<_> {
            let frames = network.send(from, tag, &header(A, destination));
            frames.into_iter().map(|(port, _, release)| (port, release)).collect()
        };
        for destination in [B, GROUP, MacAddr::BROADCAST] {
            assert_eq!(reached(&Network::new(roles.to_vec()), destination), expected, "port {from}, {tag:?}, to {destination}");
        }
        let network = Network::new(roles.to_vec());
        if let (Some(&first), Ok(frame)) = (expected.first(), roles[from].admit(tag)) {
            network.tables.fdb(frame.vlan).unwrap().learn(NOW, B, PortId(first.0 as u16));
            assert_eq!(reached(&network, B), [first], "port {from}, {tag:?}, to a known station");
        }
    }
}

#[test]
fn a_station_can_be_behind_another_port_in_each_vlan() {
    let network = Network::new(vec![PortRole::Access(id(10)), PortRole::Access(id(20)), trunk("10,20", None)]);
    network.send(0, None, &header(A, B));
    network.send(1, None, &header(A, B));
    assert_eq!(network.send(2, c(10), &header(B, A)), [(0, Vlan::customer(id(10)), Release::Untagged)]);
    assert_eq!(network.send(2, c(20), &header(B, A)), [(1, Vlan::customer(id(20)), Release::Untagged)]);
}

#[test]
fn a_flood_of_addresses_in_one_vlan_takes_nothing_from_another() {
    let network = Network::new(vec![PortRole::Access(id(10)), PortRole::Access(id(20)), trunk("10,20,30", None)]);
    network.send(1, None, &header(A, B));
    let flood = |number: u64| header(MacAddr::from_u64(0x0200_0000_0000 | number), B);
    for number in 100..100_000 {
        network.send(0, None, &flood(number));
        network.send(2, c(30), &flood(number));
    }
    assert_eq!(network.send(2, c(20), &header(B, A)), [(1, Vlan::customer(id(20)), Release::Untagged)]);
    let smallest = 6 * 32;
    assert!(network.tables.len() <= SETTINGS.capacity + smallest, "{} addresses", network.tables.len());
}

#[test]
fn what_was_learned_stays_when_vlans_come_and_go() {
    let undivided = Arc::new(Fdb::new(SETTINGS, &Arc::default()));
    undivided.learn(NOW, A, PortId(0));
    undivided.reserve(GATEWAY, PortId::GATEWAY);
    let tables = |roles: &[PortRole], old: Option<&VlanTables>| {
        VlanTables::new(
            SETTINGS,
            VlanId::DEFAULT,
            (&Weights::of(VlanId::DEFAULT, roles), &StaticStations::new()),
            old,
            &undivided,
        )
    };
    let one = tables(&[PortRole::Access(id(10))], None);
    let default = one.fdb(one.default_vlan()).unwrap();
    assert_eq!((default.lookup(NOW, A), default.lookup(NOW, GATEWAY)), (Some(PortId(0)), Some(PortId::GATEWAY)));
    one.fdb(Vlan::customer(id(10))).unwrap().learn(NOW, B, PortId(1));
    let two = tables(&[PortRole::Access(id(10)), trunk("1-4094", None)], Some(&one));
    assert_eq!(two.fdb(Vlan::customer(id(10))).unwrap().lookup(NOW, B), Some(PortId(1)));
    assert_eq!(two.fdb(two.default_vlan()).unwrap().lookup(NOW, GATEWAY), Some(PortId::GATEWAY));
    assert_eq!((two.len(), two.entries(NOW).len()), (2, 2));
    two.forget_port(PortId(1));
    assert_eq!(two.entries(NOW).iter().map(|(vlan, entry)| (*vlan, entry.mac)).collect::<Vec<_>>(), [(two.default_vlan(), A)]);
    assert!(tables(&[PortRole::Access(id(20))], Some(&two)).fdb(Vlan::customer(id(10))).is_none());
}

const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn any_id() -> impl Strategy<Value = VlanId> {
    prop_oneof![4 => 1..6_u16, 1 => 1..=VlanId::MAX].prop_map(id)
}

fn any_role() -> impl Strategy<Value = PortRole> {
    let trunk = (prop::collection::vec(any_id(), 0..4), prop::option::of(any_id()))
        .prop_map(|(allowed, native)| PortRole::Trunk(Trunk { allowed: allowed.into_iter().collect(), native }));
    prop_oneof![any_id().prop_map(PortRole::Access), trunk, any_id().prop_map(PortRole::Qinq)]
}

fn any_tag() -> impl Strategy<Value = Option<OuterTag>> {
    let number = prop_oneof![4 => 0..6_u16, 1 => 0..4096_u16];
    let next = prop_oneof![Just(0x0800), Just(0x8100), Just(0x88a8)];
    let tag = (any::<bool>(), number, 0..16_u16, next).prop_map(|(service, number, priority, next)| OuterTag {
        kind: if service { TagKind::Service } else { TagKind::Customer },
        control: priority << 12 | number,
        next,
    });
    prop::option::of(tag)
}

proptest! {
    #[test]
    fn no_frame_leaves_a_port_that_is_no_member_and_none_comes_back(
        roles in prop::collection::vec(any_role(), 2..8),
        frames in prop::collection::vec((any::<prop::sample::Index>(), any_tag(), 0..6_u8, 0..6_u8), 1..60),
    ) {
        let network = Network::new(roles.clone());
        for (from, tag, source, destination) in frames {
            let from = from.index(roles.len());
            let mac = |number| MacAddr([2, 0, 0, 0, 0, number]);
            for (port, vlan, release) in network.send(from, tag, &header(mac(source), mac(destination))) {
                prop_assert_ne!(port, from);
                prop_assert_eq!(roles[port].membership(vlan), Some(release));
                prop_assert_eq!(roles[from].admit(tag).unwrap().vlan, vlan);
                // Whoever receives it with a tag would send the answer with the same one, and reach the same VLAN; without one as well.
                let answer = match release {
                    Release::Tagged => Some(OuterTag { kind: vlan.kind(), control: vlan.id().number(), next: 0x0800 }),
                    Release::Untagged => None,
                };
                prop_assert_eq!(roles[port].admit(answer).map(|answer| answer.vlan), Ok(vlan));
            }
        }
    }

    #[test]
    fn a_frame_that_leaves_with_its_own_tag_is_unchanged(role in any_role(), tag in any_tag(), addresses: [u8; 12]) {
        let Some((tag, frame)) = tag.and_then(|tag| role.admit(Some(tag)).ok().map(|frame| (tag, frame))) else { return Ok(()) };
        let mut outer = [0; 14];
        outer[..12].copy_from_slice(&addresses);
        outer[12..].copy_from_slice(&tag.kind.ether_type().to_be_bytes());
        if frame.operation(Some(tag), Release::Tagged) == TagOperation::Keep {
            let kept = push(&pop(&outer, tag), frame.tag().bytes());
            let original = [&outer[..], &tag.control.to_be_bytes(), &tag.next.to_be_bytes()].concat();
            prop_assert_eq!(&kept[..], &original[..]);
        }
    }

    #[test]
    fn shares_are_bounded_by_the_capacity(roles in prop::collection::vec(any_role(), 0..20), capacity in 1..5000_usize) {
        let weights = Weights::of(VlanId::DEFAULT, &roles);
        let (total, count) = weights.shares(capacity).fold((0, 0), |(total, count), (_, share)| (total + share, count + 1));
        prop_assert!(total <= capacity + count * tables::SMALLEST);
        prop_assert!(weights.shares(capacity).all(|(_, share)| (1..=capacity).contains(&share)));
    }
}

#[test]
fn static_entries_are_of_their_vlan_and_have_room_in_the_smallest() {
    let roles = [100, 200].map(|number| PortRole::Access(id(number)));
    let undivided = Arc::new(Fdb::new(SETTINGS, &Arc::default()));
    let station = |number: u16| (MacAddr::from_u64(0x0200_0000_0000 | u64::from(number)), PortId(number % 2));
    let [first, second, nobody] = [100, 200, 300].map(|number| Vlan::customer(id(number)));
    let settings = FdbSettings::new(16, Duration::from_secs(300));
    let many = StaticStations::from([(first, (0..500).map(station).collect()), (nobody, vec![station(1)])]);
    let weights = Weights::of(VlanId::DEFAULT, &roles);
    let tables = VlanTables::new(settings, VlanId::DEFAULT, (&weights, &many), None, &undivided);
    assert_eq!(tables.set_static(&many), [(nobody, station(1).0)]);
    let now = Timestamp::default();
    for number in 0..500 {
        let (mac, port) = station(number);
        assert_eq!(tables.fdb(first).unwrap().lookup(now, mac), Some(port));
        assert_eq!(tables.fdb(second).unwrap().lookup(now, mac), None);
    }
    // What is declared for nobody any more goes from every table.
    let fewer = StaticStations::from([(second, vec![station(7)])]);
    let tables = VlanTables::new(settings, VlanId::DEFAULT, (&weights, &fewer), Some(&tables), &undivided);
    assert_eq!(tables.set_static(&fewer), []);
    let entries: Vec<_> = tables.entries(now).into_iter().map(|(vlan, entry)| (vlan, entry.mac, entry.port)).collect();
    assert_eq!(entries, [(second, station(7).0, PortId(1))]);
}
