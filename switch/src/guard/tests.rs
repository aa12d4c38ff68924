//! What passes and what does not, and that nothing false ever does.

mod frames;
mod spoofing;

use std::net::Ipv4Addr;

use self::frames::*;
use super::*;
use crate::{DropReason, EthernetHeader, Offload, PartialChecksum, SegmentKind, Segmentation, Timestamp, WireSize};

fn locked() -> Protections {
    Protections {
        macs: Some(vec![MAC]),
        ips: Some(IpLock { listed: vec![OWN_V4.into(), OWN_V6.into()], leased: true }),
        dhcp_server: false,
        router: false,
        ..Protections::NONE
    }
}

/// What becomes of a frame, with first a glance and then more.
fn look(protections: &Protections, frame: &[u8]) -> Result<(), DropReason> {
    let sources = Sources::new(protections);
    let header = frame.first_chunk().unwrap();
    sources.check_mac(&EthernetHeader::parse(header))?;
    let whole = sources.inspect(&frame[..frame.len().min(INSPECTED_LEN)], frame.len(), &Offload::NONE, &[LEASED]);
    if !sources.wants(header) {
        assert_eq!(whole, Finding::Pass, "it is passed without a look: {frame:02x?}");
    }
    for len in EthernetHeader::LEN..frame.len().min(INSPECTED_LEN) {
        let glance = sources.inspect(&frame[..len], frame.len(), &Offload::NONE, &[LEASED]);
        assert!(glance == Finding::NeedsMore || glance == whole, "after {len} bytes {glance:?}, in the end {whole:?}");
    }
    if frame.first_chunk().is_some_and(|first| sources.passes_at_a_glance(&Glance::at(first), &[LEASED])) {
        assert_eq!(whole, Finding::Pass, "a glance has missed something: {frame:02x?}");
    }
    match whole {
        Finding::Pass => Ok(()),
        Finding::Drop(reason) => Err(reason),
        Finding::NeedsMore => panic!("there is no more"),
    }
}

#[test]
fn what_an_honest_guest_sends_passes() {
    let honest = [
        ("IPv4 from a listed address", ipv4(OWN_V4, TCP, &[0; 20])),
        ("IPv4 from a leased address", ipv4(LEASED, UDP, &udp(4000, 53))),
        ("a DHCP client without an address", ipv4(Ipv4Addr::UNSPECIFIED, UDP, &udp(68, 67))),
        ("a DHCP client that renews", ipv4(LEASED, UDP, &udp(68, 67))),
        ("an ARP request", arp(1, MAC, OWN_V4, OTHER_V4)),
        ("an ARP answer", arp(2, MAC, LEASED, OTHER_V4)),
        ("an ARP probe for its lease", arp(1, MAC, Ipv4Addr::UNSPECIFIED, LEASED)),
        ("an ARP announcement", arp(1, MAC, LEASED, LEASED)),
        ("IPv6 from a listed address", ipv6(OWN_V6, TCP, &[0; 20])),
        ("IPv6 from its link-local address", ipv6(LINK_LOCAL, UDP, &udp(546, 547))),
        ("duplicate address detection", ipv6(NOBODY, ICMPV6, &nd(135, LINK_LOCAL, &[]))),
        ("a router solicitation without an address", ipv6(NOBODY, ICMPV6, &[133, 0, 0, 0, 0, 0, 0, 0])),
        ("a router solicitation", ipv6(LINK_LOCAL, ICMPV6, &[&[133, 0, 0, 0, 0, 0, 0, 0][..], &link_layer(1, MAC)].concat())),
        (
            "an MLD report without an address",
            ipv6(NOBODY, 0, &[&[ICMPV6, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0, 0, 0, 0, 0]].concat()),
        ),
        ("a neighbour solicitation", ipv6(LINK_LOCAL, ICMPV6, &nd(135, OTHER_V6, &link_layer(1, MAC)))),
        ("a neighbour advertisement", ipv6(OWN_V6, ICMPV6, &nd(136, OWN_V6, &link_layer(2, MAC)))),
        ("the rest of a datagram", fragment_v4(OWN_V4, UDP, 0x0010, &udp(67, 68))),
        ("the rest of an IPv6 datagram", ipv6(OWN_V6, FRAGMENT, &fragment_v6(UDP, 8, false, &udp(547, 546)))),
        ("encrypted", ipv6(OWN_V6, 50, &[0; 32])),
        ("something that is not IP", ethernet(MAC, 0x88b5, &[0; 46])),
        ("with a tag", tagged(&[0x8100], &ipv4(OWN_V4, TCP, &[0; 20]))),
        ("with two tags", tagged(&[0x88a8, 0x8100], &arp(1, MAC, OWN_V4, OTHER_V4))),
        ("TCP segmentation that leaves the length to the device", with_total_len(ipv4(OWN_V4, TCP, &[0; 200]), 0)),
    ];
    for (what, frame) in honest {
        assert_eq!(look(&locked(), &frame), Ok(()), "{what}");
    }
}

#[test]
fn what_a_hostile_guest_sends_does_not() {
    use DropReason::*;
    let nobody_v4 = Ipv4Addr::UNSPECIFIED;
    let hop_by_hop = |next: u8, rest: &[u8]| [&[next, 0, 1, 4, 0, 0, 0, 0][..], rest].concat();
    let hostile = [
        ("another's MAC address", MacNotAllowed, ethernet(OTHER_MAC, 0x88b5, &[0; 46])),
        ("another's IPv4 address", IpNotAllowed, ipv4(OTHER_V4, TCP, &[0; 20])),
        ("another's IPv4 address behind two tags", IpNotAllowed, tagged(&[0x8100, 0x8100], &ipv4(OTHER_V4, TCP, &[0; 20]))),
        ("another's IPv4 address in a fragment", IpNotAllowed, fragment_v4(OTHER_V4, UDP, 0x0010, &[0; 16])),
        ("no address, and not DHCP", IpNotAllowed, ipv4(nobody_v4, UDP, &udp(68, 53))),
        ("no address, and DHCP in fragments", IpNotAllowed, fragment_v4(nobody_v4, UDP, 0x2000, &udp(68, 67))),
        ("another's IPv6 address", IpNotAllowed, ipv6(OTHER_V6, TCP, &[0; 20])),
        ("another's link-local address", IpNotAllowed, ipv6("fe80::1".parse().unwrap(), TCP, &[0; 20])),
        ("no IPv6 address, and TCP", IpNotAllowed, ipv6(NOBODY, TCP, &[0; 20])),
        ("no IPv6 address, and an echo request", IpNotAllowed, ipv6(NOBODY, ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0])),
        ("no IPv6 address, in a fragment", IpNotAllowed, ipv6(NOBODY, FRAGMENT, &fragment_v6(ICMPV6, 8, false, &[0; 8]))),
        ("ARP with another MAC address", SpoofedArp, arp(2, OTHER_MAC, OWN_V4, OTHER_V4)),
        ("ARP with another IP address", SpoofedArp, arp(2, MAC, OTHER_V4, OWN_V4)),
        ("an ARP request with another IP address", SpoofedArp, arp(1, MAC, OTHER_V4, OWN_V4)),
        ("ARP behind a tag", SpoofedArp, tagged(&[0x8100], &arp(2, MAC, OTHER_V4, OWN_V4))),
        ("a probe for another's address", SpoofedArp, arp(1, MAC, nobody_v4, OTHER_V4)),
        ("an ARP answer of nobody", SpoofedArp, arp(2, MAC, nobody_v4, OWN_V4)),
        ("ARP of an unknown kind", BadArp, arp(9, MAC, OWN_V4, OTHER_V4)),
        ("ARP cut short", Unverifiable, arp(1, MAC, OWN_V4, OTHER_V4)[..41].to_vec()),
        ("an advertisement of another's address", SpoofedNd, ipv6(OWN_V6, ICMPV6, &nd(136, OTHER_V6, &link_layer(2, MAC)))),
        ("one with another's MAC address", SpoofedNd, ipv6(OWN_V6, ICMPV6, &nd(136, OWN_V6, &link_layer(2, OTHER_MAC)))),
        ("a solicitation with another's", SpoofedNd, ipv6(OWN_V6, ICMPV6, &nd(135, OTHER_V6, &link_layer(1, OTHER_MAC)))),
        ("one behind an extension header", SpoofedNd, ipv6(OWN_V6, 0, &hop_by_hop(ICMPV6, &nd(136, OTHER_V6, &[])))),
        ("detection of another's address", SpoofedNd, ipv6(NOBODY, ICMPV6, &nd(135, OTHER_V6, &[]))),
        ("discovery in a fragment", Unverifiable, ipv6(OWN_V6, FRAGMENT, &fragment_v6(ICMPV6, 0, true, &nd(136, OTHER_V6, &[])))),
        (
            "discovery in the only fragment",
            Unverifiable,
            ipv6(OWN_V6, FRAGMENT, &fragment_v6(ICMPV6, 0, false, &nd(136, OWN_V6, &[]))),
        ),
        ("an option without a length", Unverifiable, ipv6(OWN_V6, ICMPV6, &nd(136, OWN_V6, &[2, 0, 0, 0, 0, 0, 0, 0]))),
        ("a DHCP server", DhcpServerNotAllowed, ipv4(OWN_V4, UDP, &udp(67, 68))),
        ("a DHCP server with another port", DhcpServerNotAllowed, ipv4(OWN_V4, UDP, &udp(4000, 68))),
        ("the beginning of what a DHCP server says", DhcpServerNotAllowed, fragment_v4(OWN_V4, UDP, 0x2000, &udp(67, 68))),
        ("a DHCPv6 server", DhcpServerNotAllowed, ipv6(LINK_LOCAL, UDP, &udp(547, 546))),
        (
            "a DHCPv6 server's first fragment",
            DhcpServerNotAllowed,
            ipv6(OWN_V6, FRAGMENT, &fragment_v6(UDP, 0, true, &udp(547, 546))),
        ),
        (
            "a router advertisement",
            RouterNotAllowed,
            ipv6(LINK_LOCAL, ICMPV6, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]),
        ),
        ("one behind options", RouterNotAllowed, ipv6(LINK_LOCAL, 0, &hop_by_hop(60, &hop_by_hop(ICMPV6, &[134; 16])))),
        ("one behind a tag", RouterNotAllowed, tagged(&[0x8100], &ipv6(LINK_LOCAL, ICMPV6, &[134; 16]))),
        ("an IPv6 redirect", RouterNotAllowed, ipv6(LINK_LOCAL, ICMPV6, &[137; 40])),
        ("an IPv4 redirect", RouterNotAllowed, ipv4(OWN_V4, ICMP, &[5, 1, 0, 0, 0, 0, 0, 0])),
        ("an IGMP query", RouterNotAllowed, ipv4(OWN_V4, 2, &[0x11, 100, 0, 0, 0, 0, 0, 0])),
        ("an MLD query", RouterNotAllowed, ipv6(LINK_LOCAL, 0, &hop_by_hop(ICMPV6, &[130; 24]))),
        ("an IPv4 router", RouterNotAllowed, ipv4(OWN_V4, ICMP, &[9, 0, 0, 0, 0, 0, 0, 0])),
        ("three tags", Unverifiable, tagged(&[0x8100, 0x8100, 0x8100], &ipv4(OWN_V4, TCP, &[0; 20]))),
        ("a tag of another sort", Unverifiable, tagged(&[0x9100], &ipv4(OWN_V4, TCP, &[0; 20]))),
        ("IEEE 802.2", Unverifiable, ethernet(MAC, 60, &[0xaa; 60])),
        ("an IPv4 header cut short", Unverifiable, ipv4(OWN_V4, TCP, &[])[..33].to_vec()),
        ("an IPv4 header of another version", Unverifiable, [&ipv4(OWN_V4, TCP, &[])[..14], &[0x65; 40]].concat()),
        ("UDP cut short", Unverifiable, ipv4(OWN_V4, UDP, &[0, 67])),
        ("UDP that is only in the padding", Unverifiable, with_total_len(ipv4(OWN_V4, UDP, &udp(1, 2)), 20)),
        ("an IPv6 header cut short", Unverifiable, ipv6(OWN_V6, TCP, &[])[..53].to_vec()),
        ("nine extension headers", Unverifiable, ipv6(OWN_V6, 60, &[[60, 0, 1, 4, 0, 0, 0, 0]; 9].concat())),
        (
            "an extension header longer than what is looked at",
            Unverifiable,
            ipv6(OWN_V6, 60, &[&[UDP, 31][..], &[0; 254], &udp(1, 2)].concat()),
        ),
        ("a first fragment whose headers go on in the next", Unverifiable, {
            // In the padding is what it should look like.
            let first = fragment_v6(60, 0, true, &[ICMPV6, 1, 1, 4, 0, 0, 0, 0]);
            let mut frame = ipv6(OWN_V6, FRAGMENT, &first);
            frame.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0]);
            frame
        }),
    ];
    for (what, reason, frame) in hostile {
        assert_eq!(look(&locked(), &frame), Err(reason), "{what}");
        assert_eq!(look(&Protections::NONE, &frame), Ok(()), "{what}, unprotected");
    }
}

#[test]
fn fragments_stand_for_themselves_alone() {
    let sources = Sources::new(&locked());
    let datagram = udp(4000, 4001);
    let fragments_v4 = [0x2000, 0x2001, 1].map(|word| fragment_v4(OWN_V4, UDP, word, &datagram));
    let fragments_v6 = [(0, true), (8, true), (8, false)]
        .map(|(offset, more)| ipv6(OWN_V6, FRAGMENT, &fragment_v6(UDP, offset, more, &datagram)));
    let whole =
        [0, 0x4000].map(|word| fragment_v4(OWN_V4, UDP, word, &datagram)).into_iter().chain([ipv6(OWN_V6, UDP, &datagram)]);
    let found = |frame: &[u8], stands_for| {
        let segmentation = Some(Segmentation { kind: stands_for, size: 8, ecn: false });
        sources.inspect(frame, frame.len(), &Offload { segmentation, ..Offload::NONE }, &[LEASED])
    };
    for kind in [SegmentKind::Udp, SegmentKind::UdpFragments, SegmentKind::Tcp4, SegmentKind::Tcp6] {
        for frame in fragments_v4.iter().chain(&fragments_v6) {
            assert_eq!(look(&locked(), frame), Ok(()), "{frame:02x?}");
            assert_eq!(found(frame, kind), Finding::Drop(DropReason::Unverifiable), "{kind:?} {frame:02x?}");
        }
        for frame in whole.clone() {
            assert_eq!(found(&frame, kind), Finding::Pass, "{kind:?} {frame:02x?}");
        }
    }
}

#[test]
fn each_protection_goes_without_the_others() {
    let rogue_dhcp = ipv4(OTHER_V4, UDP, &udp(67, 68));
    let rogue_router = ipv6(OTHER_V6, ICMPV6, &[134; 16]);
    let only_dhcp = Protections { dhcp_server: false, ..Protections::NONE };
    let only_router = Protections { router: false, ..Protections::NONE };
    assert_eq!(look(&only_dhcp, &rogue_dhcp), Err(DropReason::DhcpServerNotAllowed));
    assert_eq!(look(&only_router, &rogue_dhcp), Ok(()));
    assert_eq!(look(&only_dhcp, &rogue_router), Ok(()));
    assert_eq!(look(&only_router, &rogue_router), Err(DropReason::RouterNotAllowed));
    let only_mac = Protections { macs: Some(vec![MAC, OTHER_MAC]), ..Protections::NONE };
    assert_eq!(look(&only_mac, &rogue_dhcp), Ok(()));
    assert_eq!(look(&only_mac, &arp(2, MAC, OTHER_V4, OWN_V4)), Ok(()));
    assert_eq!(look(&only_mac, &arp(2, OTHER_MAC, OTHER_V4, OWN_V4)), Err(DropReason::SpoofedArp), "allowed, but not its sender");
    let only_ip = Protections { ips: Some(IpLock { listed: vec![OWN_V6.into()], leased: false }), ..Protections::NONE };
    assert_eq!(look(&only_ip, &ipv6(OWN_V6, ICMPV6, &nd(136, OWN_V6, &link_layer(2, OTHER_MAC)))), Err(DropReason::SpoofedNd));
}

#[test]
fn isolated_ports_reach_those_that_are_not_and_groups_themselves() {
    use Isolation::*;
    let kinds = [None, Isolated, Group(1), Group(2)];
    let table = [[true, true, true, true], [true, false, false, false], [true, false, true, false], [true, false, false, true]];
    for (from, row) in kinds.iter().zip(table) {
        assert_eq!(kinds.map(|to| from.reaches(to)), row, "from {from:?}");
    }
}

#[test]
fn storms_are_limited_each_by_itself_and_everything_together() {
    let storm = StormLimits {
        broadcast: Some(Volume::Frames(100)),
        multicast: Some(Volume::Bytes(1000)),
        unknown: Some(Volume::Frames(50)),
    };
    let mut meters = Meters::new(&storm, Some(Limit { bits: 8_000_000, burst: 100_000 }));
    let to = |mac: [u8; 6]| EthernetHeader { destination: MacAddr(mac).into(), source: MAC.into() };
    let (all, many, one) = (to([0xff; 6]), to([0x33, 0x33, 0, 0, 0, 1]), to([2, 0, 0, 0, 0, 9]));
    let now = Timestamp::from_millis(1000);
    let of = |bytes| WireSize { frames: 1, bytes };
    let mut admitted = |now, header: &EthernetHeader, len| {
        let results: Vec<_> = (0..1000).map(|_| meters.admit(now, header, of(len))).collect();
        let count = results.iter().filter(|result| result.is_ok()).count();
        (count, results.into_iter().find_map(Result::err))
    };
    assert_eq!(admitted(now, &all, 60), (16, Some(DropReason::BroadcastStorm)));
    assert_eq!(admitted(now, &many, 1500), (43, Some(DropReason::MulticastStorm)));
    assert_eq!(admitted(now, &one, 1000), ((100_000 - 16 * 60 - 43 * 1500) / 1000, Some(DropReason::OverLimit)));
    let later = Timestamp::from_millis(1100);
    assert_eq!(admitted(later, &all, 60).0, 10);
    let mut allowance = meters.draw_unknown(later, WireSize { frames: 32, bytes: 32 * 60 }).unwrap();
    assert!((0..16).all(|_| allowance.take(of(60)).is_ok()));
    assert_eq!(allowance.take(of(60)), Err(DropReason::UnknownStorm));
    let mut allowance = meters.draw_unknown(Timestamp::from_millis(1200), WireSize { frames: 3, bytes: 180 }).unwrap();
    assert_eq!(allowance.take(of(60)), Ok(()));
    meters.return_unknown(allowance);
    assert_eq!(
        meters
            .draw_unknown(Timestamp::from_millis(1200), WireSize { frames: 9, bytes: 540 })
            .map(|mut left| (0..9).filter(|_| left.take(of(60)).is_ok()).count()),
        Some(4)
    );
    assert_eq!(Meters::new(&StormLimits::default(), None).draw_unknown(now, of(60)), Option::None);
}

#[test]
fn a_frame_that_stands_for_many_counts_for_all_of_them() {
    let storm = StormLimits { multicast: Some(Volume::Frames(100)), unknown: Some(Volume::Frames(1000)), broadcast: None };
    let mut meters = Meters::new(&storm, Some(Limit { bits: 8_000_000, burst: 65_557 }));
    let to = |mac: [u8; 6]| EthernetHeader { destination: MacAddr(mac).into(), source: MAC.into() };
    let (many, one) = (to([0x33, 0x33, 0, 0, 0, 1]), to([2, 0, 0, 0, 0, 9]));
    let burst = WireSize { frames: 256, bytes: 256 * 60 };
    let now = |millis| Timestamp::from_millis(millis);
    let mut times = (0..10_000).filter(|millis| meters.admit(now(*millis), &many, burst).is_ok());
    // All but the 16 that were there have to be paid for, and then all of them: 2.56 s.
    assert_eq!([times.next(), times.next(), times.next()], [Some(0), Some(2401), Some(4961)]);
    drop(times);
    let mut drawn = meters.draw_unknown(now(10_000), burst).unwrap();
    assert_eq!([drawn.take(burst), drawn.take(burst)], [Ok(()), Err(DropReason::UnknownStorm)]);
    meters.return_unknown(drawn);
    let later = |meters: &mut Meters, millis| meters.draw_unknown(now(millis), burst).unwrap().take(burst);
    assert_eq!(later(&mut meters.clone(), 10_156), Err(DropReason::UnknownStorm));
    assert_eq!(later(&mut meters, 10_157), Ok(()));
    let batch = WireSize { frames: 32, bytes: 65_558 };
    assert!(!meters.admit_all(now(15_000), batch) && meters.admit_all(now(15_000), WireSize { frames: 32, bytes: 65_557 }));
    let wide = WireSize { frames: 256, bytes: 120_000 };
    assert_eq!([20_000, 20_054, 20_055].map(|millis| meters.admit(now(millis), &one, wide).is_ok()), [true, false, true]);
}

#[test]
fn what_is_still_to_be_written_cannot_be_vouched_for() {
    let sources = Sources::new(&locked());
    let found = |frame: &[u8], field| {
        let checksum = Some(PartialChecksum { start: field, offset: 0 });
        sources.inspect(&frame[..frame.len().min(INSPECTED_LEN)], frame.len(), &Offload { checksum, ..Offload::NONE }, &[LEASED])
    };
    let datagram = ipv4(OWN_V4, UDP, &udp(4000, 4001));
    // From the source address on to the ports; the checksum itself is another matter.
    for field in [26, 28, 34, 36, 37] {
        assert_eq!(found(&datagram, field), Finding::Drop(DropReason::Unverifiable), "{field}");
    }
    assert_eq!(found(&datagram, 40), Finding::Pass);
    let claim = ipv6(OWN_V6, ICMPV6, &nd(136, OWN_V6, &link_layer(2, MAC)));
    assert_eq!([56, 62, 76].map(|field| found(&claim, field) == Finding::Pass), [true, false, false]);
}
