//! Whatever is sent: what passes is from whom it says it is from. What that means is found out by [`etherparse`], which knows nothing of the code at hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, SlicedPacket};
use proptest::prelude::*;

use super::frames::*;
use super::*;

fn any_mac() -> impl Strategy<Value = MacAddr> {
    prop_oneof![Just(MAC), Just(OTHER_MAC), any::<[u8; 6]>().prop_map(MacAddr)]
}

fn any_v4() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![Just(OWN_V4), Just(LEASED), Just(OTHER_V4), Just(Ipv4Addr::UNSPECIFIED), any::<u32>().prop_map(Ipv4Addr::from)]
}

fn any_v6() -> impl Strategy<Value = Ipv6Addr> {
    prop_oneof![Just(OWN_V6), Just(OTHER_V6), Just(LINK_LOCAL), Just(NOBODY), any::<u128>().prop_map(Ipv6Addr::from)]
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let rest = || prop::collection::vec(any::<u8>(), 0..300);
    let next = || prop_oneof![Just(0), Just(TCP), Just(UDP), Just(FRAGMENT), Just(ICMPV6), Just(60), any::<u8>()];
    prop_oneof![
        (any_v4(), next(), any::<u16>(), rest()).prop_map(|(source, next, bits, rest)| fragment_v4(source, next, bits, &rest)),
        (any_v4(), next(), rest()).prop_map(|(source, next, rest)| ipv4(source, next, &rest)),
        (any_v6(), next(), rest()).prop_map(|(source, next, rest)| ipv6(source, next, &rest)),
        (any_v6(), any_v6(), 130..140_u8, any_mac())
            .prop_map(|(source, target, kind, mac)| { ipv6(source, ICMPV6, &nd(kind, target, &link_layer(2, mac))) }),
        (0..5_u8, any_mac(), any_v4(), any_v4()).prop_map(|(kind, mac, source, target)| arp(kind, mac, source, target)),
        (any::<u16>(), rest()).prop_map(|(kind, rest)| ethernet(MAC, kind, &rest)),
    ]
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let tags = prop::collection::vec(prop_oneof![Just(0x8100), Just(0x88a8)], 0..4);
    (any_packet(), any_mac(), tags, any::<u16>()).prop_map(|(frame, mac, tags, cut)| {
        let mut frame = tagged(&tags, &frame);
        frame[6..12].copy_from_slice(&mac.0);
        if cut & 7 == 0 {
            frame.truncate((cut >> 3) as usize % frame.len() + 14);
        }
        frame
    })
}

/// Two bytes that would make something else of a frame: ports of servers, types of ICMP, parts of addresses.
fn any_sum() -> impl Strategy<Value = [u8; 2]> {
    const PARTS: &[[u8; 2]] =
        &[[0, 67], [0, 68], [2, 34], [2, 35], [134, 0], [137, 0], [5, 0], [0, 6], [10, 0], [0x08, 0], [0x86, 0xdd]];
    prop_oneof![prop::sample::select(PARTS), any::<[u8; 2]>()]
}

fn may_use(address: IpAddr) -> bool {
    [IpAddr::from(OWN_V4), LEASED.into(), OWN_V6.into(), LINK_LOCAL.into()].contains(&address) || address.is_unspecified()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_spoofed_source_passes(frame in any_frame()) {
        if look(&locked(), &frame).is_err() {
            return Ok(());
        }
        prop_assert_eq!(&frame[6..12], &MAC.0);
        let Ok(packet) = SlicedPacket::from_ethernet(&frame) else { return Ok(()) };
        match packet.net {
            Some(NetSlice::Ipv4(ip)) => prop_assert!(may_use(ip.header().source_addr().into())),
            Some(NetSlice::Ipv6(ip)) => prop_assert!(may_use(ip.header().source_addr().into())),
            Some(NetSlice::Arp(arp)) => {
                prop_assert_eq!(arp.sender_hw_addr(), &MAC.0);
                let sender: [u8; 4] = arp.sender_protocol_addr().try_into().unwrap();
                prop_assert!(may_use(Ipv4Addr::from(sender).into()));
            }
            None => {}
        }
    }

    #[test]
    fn no_server_or_router_passes(frame in any_frame()) {
        if look(&locked(), &frame).is_err() {
            return Ok(());
        }
        let Ok(packet) = SlicedPacket::from_ethernet(&frame) else { return Ok(()) };
        let is_ipv4 = matches!(packet.net, Some(NetSlice::Ipv4(_)));
        match packet.transport {
            Some(etherparse::TransportSlice::Udp(udp)) => {
                let client = if is_ipv4 { 68 } else { 546 };
                prop_assert!(udp.destination_port() != client && udp.source_port() != client - 1 + 2 * u16::from(client == 546));
            }
            // Over the other version of IP nobody takes either for what it says.
            Some(etherparse::TransportSlice::Icmpv6(icmp)) if !is_ipv4 => prop_assert!(!matches!(icmp.type_u8(), 134 | 137)),
            Some(etherparse::TransportSlice::Icmpv4(icmp)) if is_ipv4 => prop_assert!(!matches!(icmp.type_u8(), 5 | 9)),
            _ => {}
        }
    }

    #[test]
    fn what_passes_does_so_too_when_its_checksum_is_written(
        frame in any_frame(),
        start in 14..120_u16,
        offset in prop_oneof![0..18_u16, 0..100_u16],
        sums in prop::collection::vec(any_sum(), 8),
    ) {
        let checksum = PartialChecksum { start, offset };
        let (offload, field) = (Offload { checksum: Some(checksum), segmentation: None }, checksum.field());
        if field + 2 > frame.len() || !offload.fits(frame.first_chunk().unwrap()) {
            return Ok(());
        }
        let sources = Sources::new(&locked());
        let is_passed_at_a_glance =
            frame.first_chunk().is_some_and(|first| sources.passes_at_a_glance(&Glance::at(first), &[LEASED]));
        let inspect = |frame: &[u8], offload: &Offload| {
            sources.inspect(&frame[..frame.len().min(INSPECTED_LEN)], frame.len(), offload, &[LEASED])
        };
        let is_passed = is_passed_at_a_glance || inspect(&frame, &offload) == Finding::Pass;
        for sum in sums.iter().filter(|_| is_passed) {
            let mut written = frame.clone();
            written[field..field + 2].copy_from_slice(sum);
            prop_assert_eq!(inspect(&written, &Offload::NONE), Finding::Pass, "{:02x?} at {}: {:02x?}", sum, field, written);
        }
    }

    #[test]
    fn nonsense_is_looked_at_without_harm(frame in prop::collection::vec(any::<u8>(), 14..300)) {
        let _ = look(&locked(), &frame);
        let _ = look(&Protections { macs: None, ..locked() }, &frame);
    }
}
