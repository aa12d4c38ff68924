//! Networks with VLANs, as their guests meet them: access ports, trunks and customers of a service.

mod common;

use std::net::Ipv4Addr;
use std::time::Duration;

use common::{BROADCAST, Port, RINGS, SOON, TestSwitch, assert_same, exchange, expect_frame, frame, mac};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use weft_dataplane::{NetworkSettings, PortSettings, WorkerSettings};
use weft_guest::{Builder, Guest, Header, Shape, feature};
use weft_switch::gateway::GatewaySettings;
use weft_switch::vlan::{PortRole, Trunk, Vlan, VlanCounters, VlanId};
use weft_switch::{DropReason, FdbSettings, MacAddr};

const C_TAG: u16 = 0x8100;
const S_TAG: u16 = 0x88a8;
/// Priority 5, and the frame may be dropped first.
const PRIORITY: u16 = 0xb000;

fn id(number: u16) -> VlanId {
    VlanId::new(number).unwrap()
}

fn access(number: u16) -> Option<PortRole> {
    Some(PortRole::Access(id(number)))
}

fn trunk(allowed: &str, native: Option<u16>) -> Option<PortRole> {
    Some(PortRole::Trunk(Trunk { allowed: allowed.parse().unwrap(), native: native.map(id) }))
}

fn qinq(number: u16) -> Option<PortRole> {
    Some(PortRole::Qinq(id(number)))
}

/// A frame with a tag in front of whatever it has.
fn tagged(ether_type: u16, control: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &ether_type.to_be_bytes(), &control.to_be_bytes(), &frame[12..]].concat()
}

fn plug(switch: &TestSwitch, vlan: Option<PortRole>, shape: impl FnOnce(Builder) -> Builder) -> (Port, Guest) {
    let port = switch.add(PortSettings { vlan, ..switch.settings() });
    let guest = switch.connect(&port, shape);
    (port, guest)
}

/// Guests on ports of these roles, with everything else as it is by default.
fn guests<const N: usize>(switch: &TestSwitch, roles: [Option<PortRole>; N]) -> [(Port, Guest); N] {
    roles.map(|role| plug(switch, role, |builder| builder))
}

/// Asserts that nothing more has come, now that everything that was sent has been forwarded.
#[track_caller]
fn expect_nothing(switch: &TestSwitch, guest: &mut Guest) {
    switch.wait_asleep();
    assert_eq!(guest.receive(Duration::ZERO).unwrap(), None);
}

#[test]
fn between_access_port_and_trunk_a_tag_is_pushed_and_popped() {
    for features in RINGS {
        let switch = TestSwitch::start();
        let (_, mut a) = plug(&switch, access(100), |builder| builder.features(features));
        let (_, mut b) = plug(&switch, trunk("100", None), |builder| builder.features(features));
        // Broadcast, then known; the largest payload of an MTU of 1,500 among them.
        for (to, len) in [(BROADCAST, 60), (mac(2), 60), (mac(2), 14), (mac(2), 1514), (mac(2), 9014)] {
            let sent = frame(to, mac(1), len);
            a.send(&sent).unwrap();
            expect_frame(&mut b, &tagged(C_TAG, 100, &sent));
            let answer = frame(mac(1), mac(2), len);
            b.send(&tagged(C_TAG, PRIORITY | 100, &answer)).unwrap();
            expect_frame(&mut a, &answer);
        }
    }
}

#[test]
fn a_batch_of_frames_for_several_vlans_is_taken_apart() {
    let switch = TestSwitch::start();
    let [(_, mut a), (_, mut b), (_, mut c), (_, mut all)] =
        guests(&switch, [access(10), access(20), access(10), trunk("10,20", None)]);
    for round in 0..4_u16 {
        for number in 0..30_u16 {
            let vlan = if number % 3 == 0 { 20 } else { 10 };
            all.queue(&tagged(C_TAG, vlan, &frame(BROADCAST, mac(9), 60 + usize::from(round * 30 + number)))).unwrap();
        }
        all.from_guest().publish_and_kick().unwrap();
        for number in 0..30_u16 {
            let sent = frame(BROADCAST, mac(9), 60 + usize::from(round * 30 + number));
            if number % 3 == 0 {
                expect_frame(&mut b, &sent);
            } else {
                expect_frame(&mut a, &sent);
                expect_frame(&mut c, &sent);
            }
        }
    }
    for guest in [&mut a, &mut b, &mut c] {
        expect_nothing(&switch, guest);
    }
}

#[test]
fn what_comes_into_each_vlan_is_counted_by_kind() {
    const MULTICAST: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    let switch = TestSwitch::start();
    let [(_, mut a), (port_b, mut b), (_, mut all)] = guests(&switch, [access(10), access(20), trunk("10,20", None)]);
    let network = switch.network();
    let counted = || switch.with(move |dataplane| dataplane.vlan_counters(network));
    assert_eq!(counted(), []);
    for (to, len) in [(BROADCAST, 60), (MULTICAST, 70), (MULTICAST, 80), (mac(9), 100)] {
        a.send(&frame(to, mac(1), len)).unwrap();
        expect_frame(&mut all, &tagged(C_TAG, 10, &frame(to, mac(1), len)));
    }
    for number in [10, 20] {
        all.queue(&tagged(C_TAG, number, &frame(BROADCAST, mac(9), 60))).unwrap();
    }
    all.from_guest().publish_and_kick().unwrap();
    [&mut a, &mut b].into_iter().for_each(|guest| expect_frame(guest, &frame(BROADCAST, mac(9), 60)));
    let ten = VlanCounters { frames: 5, bytes: 370, multicast: 2, broadcast: 2 };
    let twenty = VlanCounters { frames: 1, bytes: 60, multicast: 0, broadcast: 1 };
    let expected = [(Vlan::customer(id(10)), ten), (Vlan::customer(id(20)), twenty)];
    assert_eq!(counted(), expected);
    // They stay as long as the VLAN does, whatever becomes of the others.
    let [_another] = guests(&switch, [access(30)]);
    switch.remove(&port_b);
    assert_eq!(counted(), expected);
}

#[test]
fn guests_of_different_vlans_do_not_hear_each_other() {
    let switch = TestSwitch::start();
    let [(_, mut a), (_, mut b), (port_c, mut c), (_, mut d), (_, mut all)] =
        guests(&switch, [access(100), access(100), access(200), access(200), trunk("100,200", None)]);
    for (destination, len) in [(BROADCAST, 60), ([0x33, 0x33, 0, 0, 0, 1], 100), (mac(77), 1514)] {
        let sent = frame(destination, mac(1), len);
        a.send(&sent).unwrap();
        expect_frame(&mut b, &sent);
        expect_frame(&mut all, &tagged(C_TAG, 100, &sent));
        expect_nothing(&switch, &mut c);
        expect_nothing(&switch, &mut d);
    }
    exchange(&mut c, mac(3), &mut d, mac(4));
    expect_nothing(&switch, &mut a);
    expect_frame(&mut all, &tagged(C_TAG, 200, &frame(mac(4), mac(3), 100)));
    expect_nothing(&switch, &mut all);
    // A station that is known in the other VLAN is unknown in this one: the address alone leads nowhere.
    let sent = frame(mac(3), mac(1), 60);
    a.send(&sent).unwrap();
    expect_frame(&mut b, &sent);
    expect_nothing(&switch, &mut c);
    assert_eq!(switch.all_drops(&port_c), []);
}

#[test]
fn a_station_may_be_behind_another_port_in_each_vlan() {
    let switch = TestSwitch::start();
    let [(port_a, mut a), (port_b, mut b), (_, mut all)] = guests(&switch, [access(10), access(20), trunk("10,20", None)]);
    for (guest, vlan) in [(&mut a, 10), (&mut b, 20)] {
        let sent = frame(mac(9), mac(1), 60);
        guest.send(&sent).unwrap();
        expect_frame(&mut all, &tagged(C_TAG, vlan, &sent));
    }
    for (guest, vlan) in [(&mut a, 10), (&mut b, 20)] {
        let sent = frame(mac(1), mac(9), 60);
        all.send(&tagged(C_TAG, vlan, &sent)).unwrap();
        expect_frame(guest, &sent);
    }
    let network = switch.network();
    let mut entries = switch.with(move |dataplane| dataplane.fdb(network));
    entries.retain(|(_, entry)| entry.mac == MacAddr(mac(1)));
    let mut places: Vec<_> = entries.iter().map(|(vlan, entry)| (vlan.unwrap(), entry.port)).collect();
    places.sort_unstable();
    assert_eq!(places, [(Vlan::customer(id(10)), port_a.id), (Vlan::customer(id(20)), port_b.id)]);
}

#[test]
fn frames_of_the_native_vlan_have_no_tag_and_priority_is_kept() {
    let switch = TestSwitch::start();
    let [(_, mut plain), (_, mut native), (_, mut all)] = guests(&switch, [access(1), trunk("10", Some(1)), trunk("1,10", None)]);
    let sent = frame(BROADCAST, mac(2), 80);
    // From the native VLAN, without a tag, with one that carries only a priority, and with one that names the VLAN.
    for (on_wire, control) in
        [(sent.clone(), 1), (tagged(C_TAG, PRIORITY, &sent), PRIORITY | 1), (tagged(C_TAG, PRIORITY | 1, &sent), PRIORITY | 1)]
    {
        native.send(&on_wire).unwrap();
        expect_frame(&mut plain, &sent);
        expect_frame(&mut all, &tagged(C_TAG, control, &sent));
    }
    all.send(&tagged(C_TAG, PRIORITY | 1, &sent)).unwrap();
    expect_frame(&mut native, &sent);
    expect_frame(&mut plain, &sent);
    all.send(&tagged(C_TAG, PRIORITY | 10, &sent)).unwrap();
    expect_frame(&mut native, &tagged(C_TAG, PRIORITY | 10, &sent));
    // A priority tag of a guest that knows nothing of VLANs.
    plain.send(&tagged(C_TAG, PRIORITY, &sent)).unwrap();
    expect_frame(&mut native, &sent);
    expect_frame(&mut all, &tagged(C_TAG, PRIORITY | 1, &sent));
}

#[test]
fn what_is_not_admitted_is_dropped_with_the_reason() {
    let switch = TestSwitch::start();
    let [(port_a, mut a), (port_all, mut all), (port_q, mut q), (_, mut b), (_, mut native)] =
        guests(&switch, [access(10), trunk("10,20", None), qinq(10), access(10), trunk("20", Some(10))]);
    let plain = frame(BROADCAST, mac(1), 60);
    let hop = tagged(C_TAG, 20, &plain);
    for (sent, reason) in [
        (tagged(C_TAG, 10, &plain), DropReason::TagNotAdmitted),
        (tagged(S_TAG, 10, &plain), DropReason::TagNotAdmitted),
        (tagged(C_TAG, 4095, &plain), DropReason::ReservedVlan),
        // Double tags to get from one VLAN into another.
        (tagged(C_TAG, 10, &hop), DropReason::TagNotAdmitted),
        (tagged(C_TAG, 0, &hop), DropReason::TagNotAdmitted),
    ] {
        let before = switch.drops(&port_a, reason);
        a.send(&sent).unwrap();
        switch.expect_drops(&port_a, reason, before + 1);
    }
    for (sent, reason) in [
        (plain.clone(), DropReason::UntaggedNotAdmitted),
        (tagged(C_TAG, 0, &plain), DropReason::UntaggedNotAdmitted),
        (tagged(C_TAG, 30, &plain), DropReason::VlanNotAllowed),
        (tagged(C_TAG, 4095, &plain), DropReason::ReservedVlan),
        // The tag is cut short, or all that there is.
        (tagged(C_TAG, 10, &plain)[..17].to_vec(), DropReason::TooShort),
        (tagged(C_TAG, 10, &plain)[..14].to_vec(), DropReason::TooShort),
    ] {
        let before = switch.drops(&port_all, reason);
        all.send(&sent).unwrap();
        switch.expect_drops(&port_all, reason, before + 1);
    }
    q.send(&tagged(S_TAG, 10, &plain)).unwrap();
    switch.expect_drops(&port_q, DropReason::TagNotAdmitted, 1);
    for guest in [&mut a, &mut b, &mut q, &mut native, &mut all] {
        expect_nothing(&switch, guest);
    }
    // And it goes on.
    exchange(&mut a, mac(1), &mut b, mac(2));
}

#[test]
fn a_hidden_tag_never_comes_to_light() {
    let switch = TestSwitch::start();
    let [(_, mut sender), (port_a, mut a), (port_n, mut native), (_, mut other)] =
        guests(&switch, [trunk("10", None), access(10), trunk("20", Some(10)), trunk("10", None)]);
    let plain = frame(BROADCAST, mac(1), 60);
    for inner in [tagged(C_TAG, 20, &plain), tagged(S_TAG, 20, &plain)] {
        let before = switch.drops(&port_n, DropReason::HiddenTag);
        sender.send(&tagged(C_TAG, 10, &inner)).unwrap();
        expect_frame(&mut other, &tagged(C_TAG, 10, &inner));
        switch.expect_drops(&port_a, DropReason::HiddenTag, before + 1);
        switch.expect_drops(&port_n, DropReason::HiddenTag, before + 1);
    }
    expect_nothing(&switch, &mut a);
    expect_nothing(&switch, &mut native);
}

#[test]
fn a_services_customers_keep_their_own_tags_among_themselves() {
    let switch = TestSwitch::start();
    let [(_, mut a), (_, mut b), (_, mut provider), (_, mut stranger), (_, mut same_number)] =
        guests(&switch, [qinq(300), qinq(300), trunk("7,300", None), access(7), access(300)]);
    let plain = frame(BROADCAST, mac(1), 1514);
    for (sent, control) in [
        (plain.clone(), 300),
        (tagged(C_TAG, 7, &plain), 300),
        (tagged(C_TAG, PRIORITY | 300, &plain), PRIORITY | 300),
        (tagged(C_TAG, PRIORITY | 7, &tagged(C_TAG, 8, &plain)), PRIORITY | 300),
    ] {
        a.send(&sent).unwrap();
        expect_frame(&mut b, &sent);
        expect_frame(&mut provider, &tagged(S_TAG, control, &sent));
        provider.send(&tagged(S_TAG, control, &sent)).unwrap();
        expect_frame(&mut a, &sent);
        expect_frame(&mut b, &sent);
    }
    expect_nothing(&switch, &mut stranger);
    expect_nothing(&switch, &mut same_number);
    // The VLAN of the same number is another.
    provider.send(&tagged(C_TAG, 300, &plain)).unwrap();
    expect_frame(&mut same_number, &plain);
    expect_nothing(&switch, &mut a);
}

#[test]
fn double_tags_pass_through_trunks_as_they_are() {
    let switch = TestSwitch::start();
    let [(_, mut a), (_, mut b)] = guests(&switch, [trunk("10,300", None), trunk("10,300", None)]);
    let plain = frame(mac(2), mac(1), 1514);
    for outer in [S_TAG, C_TAG] {
        let sent = tagged(outer, PRIORITY | 300, &tagged(C_TAG, 10, &plain));
        a.send(&sent).unwrap();
        expect_frame(&mut b, &sent);
    }
}

#[test]
fn the_tag_may_lie_in_any_buffer() {
    let switch = TestSwitch::start();
    let (_, mut a) = plug(&switch, access(10), |builder| builder);
    // Buffers to receive that are as small.
    let (_, mut b) = plug(&switch, trunk("10", None), |builder| builder.receive_shape(Shape::pieces(&[12, 13, 2, 1, 3, 1600])));
    let (_, mut c) = plug(&switch, trunk("10", None), |builder| builder.features(feature::VERSION_1));
    for len in [14, 60, 1000] {
        let plain = frame(BROADCAST, mac(2), len);
        let sent = tagged(C_TAG, 10, &plain);
        for cut in 1..=sent.len().min(20) {
            b.send_shaped(&sent, &Shape::pieces(&[12, cut])).unwrap();
            expect_frame(&mut a, &plain);
            expect_frame(&mut c, &sent);
            a.send_shaped(&plain, &Shape::pieces(&[12 + cut.min(13), 1])).unwrap();
            expect_frame(&mut b, &sent);
            expect_frame(&mut c, &sent);
        }
    }
}

const TCP_CHECKSUM: u16 = 16;
const MSS: u16 = 1460;
const SENDER: u64 = feature::DEFAULT | feature::CSUM | feature::HOST_TSO | feature::GUEST_CSUM | feature::GUEST_TSO;

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 13 + at / 251) as u8).collect()
}

/// TCP over IPv4 or IPv6 from one station to all, as a kernel would send it.
fn finished(ipv6: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let link = PacketBuilder::ethernet2(mac(1), BROADCAST);
    let network = if ipv6 { link.ipv6([7; 16], [9; 16], 64) } else { link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64) };
    network.tcp(1000, 2000, 5, 4000).ack(7).psh().write(&mut bytes, payload).unwrap();
    bytes
}

fn transport(ipv6: bool) -> usize {
    if ipv6 { 54 } else { 34 }
}

/// The same with the sum of the pseudo-header where the checksum belongs.
fn unfinished(ipv6: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = finished(ipv6, payload);
    let start = transport(ipv6);
    let addresses = if ipv6 { 22..54 } else { 26..34 };
    let words = bytes[addresses].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum = words.sum::<u32>() + 6 + (bytes.len() - start) as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[start + 16..start + 18].copy_from_slice(&(sum as u16).to_be_bytes());
    bytes
}

fn partial(start: usize) -> Header {
    Header { flags: Header::NEEDS_CSUM, csum_start: start as u16, csum_offset: TCP_CHECKSUM, ..Header::default() }
}

fn large(ipv6: bool, start: usize) -> Header {
    let gso_type = if ipv6 { Header::GSO_TCPV6 } else { Header::GSO_TCPV4 };
    Header { gso_type, gso_size: MSS, hdr_len: start as u16 + 20, ..partial(start) }
}

/// TCP payload that comes in finished segments behind `tags` tags of this VLAN, every checksum looked at.
fn receive_stream(guest: &mut Guest, vlan: Option<u16>, ipv6: bool, len: usize) -> Vec<u8> {
    let mut stream = Vec::new();
    while stream.len() < len {
        let received = guest.receive_whole(SOON).unwrap().expect("more of the stream");
        assert_eq!((received.header.flags, received.header.gso_type), (0, 0), "it is handed over finished");
        let segment = match vlan {
            None => received.frame,
            Some(vlan) => {
                assert_eq!(received.frame[12..16], [0x81, 0, (vlan >> 8) as u8, vlan as u8]);
                [&received.frame[..12], &received.frame[16..]].concat()
            }
        };
        let packet = etherparse::SlicedPacket::from_ethernet(&segment).unwrap();
        let (Some(net), Some(etherparse::TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else {
            panic!("not TCP: {packet:?}");
        };
        let expected = match net {
            etherparse::NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                tcp.calc_checksum_ipv4(header.source, header.destination).unwrap()
            }
            etherparse::NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                tcp.to_header().calc_checksum_ipv6(&header, tcp.payload()).unwrap()
            }
            etherparse::NetSlice::Arp(_) => panic!("no ARP was sent"),
        };
        assert_eq!((tcp.checksum(), matches!(net, etherparse::NetSlice::Ipv6(_))), (expected, ipv6));
        assert_eq!(tcp.sequence_number() as usize, 5 + stream.len());
        stream.extend_from_slice(tcp.payload());
    }
    stream
}

/// From an access port and from a trunk, to receivers of both roles which agreed to unfinished frames or not, through every kind of ring.
#[test]
fn unfinished_frames_keep_their_offsets_right_when_a_tag_moves_them() {
    for rings in RINGS {
        let switch = TestSwitch::start();
        let features = rings & (feature::RING_PACKED | feature::IN_ORDER);
        let able = |builder: Builder| builder.features(SENDER | features);
        let unable = |builder: Builder| builder.features(feature::DEFAULT | features);
        let simple = |builder: Builder| builder.features(feature::VERSION_1 | features);
        let (_, mut a) = plug(&switch, access(10), able);
        let (_, mut b) = plug(&switch, trunk("10", None), able);
        let (_, mut access_able) = plug(&switch, access(10), able);
        let (_, mut trunk_able) = plug(&switch, trunk("10,20", Some(1)), able);
        let (_, mut access_unable) = plug(&switch, access(10), unable);
        let (_, mut trunk_unable) = plug(&switch, trunk("10", None), simple);
        for (ipv6, from_trunk) in [(false, false), (false, true), (true, false), (true, true)] {
            let start = transport(ipv6);
            for (len, is_large) in [(1000, false), (10_000, true), (60_000, true)] {
                let header = |start: usize| if is_large { large(ipv6, start) } else { partial(start) };
                let sent = unfinished(ipv6, &payload(len));
                let with_tag = tagged(C_TAG, 10, &sent);
                let other = if from_trunk {
                    b.send_with_header(&header(start + 4), &with_tag, &Shape::one()).unwrap();
                    (&mut a, &sent, start)
                } else {
                    a.send_with_header(&header(start), &sent, &Shape::one()).unwrap();
                    (&mut b, &with_tag, start + 4)
                };
                for (guest, frame, start) in [other, (&mut access_able, &sent, start), (&mut trunk_able, &with_tag, start + 4)] {
                    let received = guest.receive_whole(SOON).unwrap().expect("it is for all");
                    assert_eq!(Header { num_buffers: 0, ..received.header }, header(start));
                    assert_same(&received.frame, frame);
                }
                assert!(receive_stream(&mut access_unable, None, ipv6, len) == payload(len));
                assert!(receive_stream(&mut trunk_unable, Some(10), ipv6, len) == payload(len));
            }
        }
    }
}

#[test]
fn what_is_unfinished_within_its_own_tag_is_dropped() {
    let switch = TestSwitch::start();
    let (port, mut a) = plug(&switch, trunk("10", None), |builder| builder.features(SENDER));
    let (_, mut b) = plug(&switch, access(10), |builder| builder.features(SENDER));
    let sent = tagged(C_TAG, 10, &unfinished(false, &payload(100)));
    a.send_with_header(&partial(17), &sent, &Shape::one()).unwrap();
    switch.expect_drops(&port, DropReason::BadOffload, 1);
    expect_nothing(&switch, &mut b);
}

#[test]
fn the_largest_frame_passes_with_a_tag_more() {
    let switch = TestSwitch::start();
    let (_, mut a) = plug(&switch, access(10), |builder| builder.features(SENDER));
    let (_, mut b) = plug(&switch, trunk("10", None), |builder| builder.features(SENDER));
    // An IP packet of 65,535 bytes.
    let sent = unfinished(false, &payload(65_535 - 40));
    a.send_with_header(&large(false, 34), &sent, &Shape::one()).unwrap();
    expect_frame(&mut b, &tagged(C_TAG, 10, &sent));
}

#[test]
fn a_network_without_vlans_carries_every_tag_as_it_is() {
    let switch = TestSwitch::start();
    let [(port_a, mut a), (_, mut b)] = guests(&switch, [None, None]);
    let plain = frame(mac(2), mac(1), 60);
    for sent in [
        tagged(C_TAG, PRIORITY | 10, &plain),
        tagged(C_TAG, 0, &plain),
        tagged(C_TAG, 4095, &plain),
        tagged(S_TAG, 300, &tagged(C_TAG, 10, &plain)),
        tagged(C_TAG, 10, &plain)[..14].to_vec(),
    ] {
        a.send(&sent).unwrap();
        expect_frame(&mut b, &sent);
    }
    assert_eq!(switch.all_drops(&port_a), []);
}

#[test]
fn a_network_gets_vlans_with_its_first_role_and_loses_them_with_its_last() {
    let switch = TestSwitch::start();
    let [(port_a, mut a), (_, mut b)] = guests(&switch, [None, None]);
    exchange(&mut a, mac(1), &mut b, mac(2));
    let (port_c, mut c) = plug(&switch, trunk("1,10", None), |builder| builder);
    // They are still known, and nobody else hears them; a tag is no longer theirs to choose.
    exchange(&mut a, mac(1), &mut b, mac(2));
    expect_nothing(&switch, &mut c);
    a.send(&tagged(C_TAG, 10, &frame(BROADCAST, mac(1), 60))).unwrap();
    switch.expect_drops(&port_a, DropReason::TagNotAdmitted, 1);
    let sent = frame(BROADCAST, mac(1), 60);
    a.send(&sent).unwrap();
    expect_frame(&mut c, &tagged(C_TAG, 1, &sent));
    expect_frame(&mut b, &sent);
    switch.remove(&port_c);
    a.send(&tagged(C_TAG, 10, &sent)).unwrap();
    expect_frame(&mut b, &tagged(C_TAG, 10, &sent));
    exchange(&mut a, mac(1), &mut b, mac(2));
}

#[test]
fn who_takes_over_a_port_number_in_another_vlan_gets_nothing_of_the_old_one() {
    let switch = TestSwitch::start();
    let [(_, mut a), (port_b, mut b), (_, mut c)] = guests(&switch, [access(10), access(10), access(10)]);
    exchange(&mut a, mac(1), &mut b, mac(2));
    expect_frame(&mut c, &frame(mac(2), mac(1), 100));
    switch.remove(&port_b);
    let (port_d, mut d) = plug(&switch, access(20), |builder| builder);
    assert_eq!(port_d.id, port_b.id, "numbers are used again");
    let sent = frame(mac(2), mac(1), 60);
    a.send(&sent).unwrap();
    expect_frame(&mut c, &sent);
    expect_nothing(&switch, &mut d);
}

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_MAC: [u8; 6] = [2, 0x77, 0, 0, 0, 1];

fn with_gateway(switch: &TestSwitch, default_vlan: u16) {
    let gateway = GatewaySettings {
        subnet: "10.77.0.0/24".parse().unwrap(),
        address: GATEWAY,
        mac: MacAddr(GATEWAY_MAC),
        mtu: 1500,
        dhcp: true,
        dns: true,
        host_access: false,
    };
    let network = switch.network();
    let fdb = FdbSettings::new(1024, Duration::from_secs(300));
    let settings = NetworkSettings { gateway: Some(gateway), default_vlan: id(default_vlan), ..NetworkSettings::from(fdb) };
    switch.with(move |dataplane| dataplane.set_network(network, settings)).unwrap();
}

fn arp(from: u16, target: Ipv4Addr) -> Vec<u8> {
    let (sender, target) = ([10, 77, 0, 100 + from as u8], target.octets());
    let packet =
        ArpPacket::new(ArpHardwareId::ETHERNET, EtherType::IPV4, ArpOperation::REQUEST, &mac(from), &sender, &[0; 6], &target);
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac(from), BROADCAST).arp(packet.unwrap()).write(&mut bytes).unwrap();
    bytes.resize(60, 0);
    bytes
}

/// An ARP answer from the gateway to a station, behind a tag if there is to be one.
#[track_caller]
fn expect_answer(guest: &mut Guest, to: u16, vlan: Option<u16>) {
    // What others have asked, it has heard too.
    let answer = loop {
        let frame = guest.receive(SOON).unwrap().expect("the gateway answers");
        if frame[..6] != BROADCAST {
            break frame;
        }
    };
    let plain = match vlan {
        None => answer,
        Some(vlan) => {
            assert_eq!(answer[12..16], [0x81, 0, (vlan >> 8) as u8, vlan as u8]);
            [&answer[..12], &answer[16..]].concat()
        }
    };
    assert_eq!((&plain[..6], &plain[6..12], &plain[12..14], plain[21]), (&mac(to)[..], &GATEWAY_MAC[..], &[8, 6][..], 2));
}

#[test]
fn the_gateway_is_in_the_default_vlan_and_in_no_other() {
    for workers in [1, 2] {
        let switch = TestSwitch::start_with(&WorkerSettings { count: workers, ..WorkerSettings::default() });
        with_gateway(&switch, 5);
        let [(_, mut plain), (_, mut member), (_, mut tagging), (_, mut other), (_, mut both)] =
            guests(&switch, [None, access(5), trunk("5,6", None), access(6), trunk("6", Some(5))]);
        plain.send(&arp(1, GATEWAY)).unwrap();
        expect_answer(&mut plain, 1, None);
        member.send(&arp(2, GATEWAY)).unwrap();
        expect_answer(&mut member, 2, None);
        tagging.send(&tagged(C_TAG, PRIORITY | 5, &arp(3, GATEWAY))).unwrap();
        expect_answer(&mut tagging, 3, Some(5));
        both.send(&arp(5, GATEWAY)).unwrap();
        expect_answer(&mut both, 5, None);
        switch.wait_asleep();
        for guest in [&mut plain, &mut member, &mut tagging, &mut both] {
            while guest.receive(Duration::ZERO).unwrap().is_some() {}
        }
        expect_nothing(&switch, &mut other);
        // What the gateway has seen goes on to the whole VLAN, and its priority with it.
        let question = arp(3, Ipv4Addr::new(10, 77, 0, 200));
        both.send(&tagged(C_TAG, PRIORITY, &question)).unwrap();
        expect_frame(&mut tagging, &tagged(C_TAG, PRIORITY | 5, &question));
        for guest in [&mut plain, &mut member] {
            expect_frame(guest, &question);
        }
        // In another VLAN its addresses are anybody's.
        other.send(&arp(4, GATEWAY)).unwrap();
        expect_frame(&mut tagging, &tagged(C_TAG, 6, &arp(4, GATEWAY)));
        expect_frame(&mut both, &tagged(C_TAG, 6, &arp(4, GATEWAY)));
        let own_router = frame(BROADCAST, GATEWAY_MAC, 60);
        both.send(&tagged(C_TAG, 6, &own_router)).unwrap();
        expect_frame(&mut other, &own_router);
        expect_frame(&mut tagging, &tagged(C_TAG, 6, &own_router));
        expect_nothing(&switch, &mut other);
        expect_nothing(&switch, &mut plain);
    }
}

#[test]
fn the_gateway_moves_with_the_default_vlan() {
    let switch = TestSwitch::start();
    with_gateway(&switch, 1);
    let [(_, mut a), (port_a, mut b)] = guests(&switch, [None, access(6)]);
    a.send(&arp(1, GATEWAY)).unwrap();
    expect_answer(&mut a, 1, None);
    let claim = frame(BROADCAST, GATEWAY_MAC, 60);
    b.send(&claim).unwrap();
    b.flush().unwrap();
    with_gateway(&switch, 6);
    // Whoever had its address there before has it no longer.
    b.send(&arp(2, GATEWAY)).unwrap();
    expect_answer(&mut b, 2, None);
    b.send(&claim).unwrap();
    switch.expect_drops(&port_a, DropReason::GatewayClaimed, 1);
    a.send(&frame(mac(9), mac(1), 60)).unwrap();
    expect_frame(&mut b, &frame(mac(9), mac(1), 60));
}
