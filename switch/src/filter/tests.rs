use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::{EthernetHeader, PartialChecksum};

const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
const HERE: [u8; 4] = [10, 77, 0, 2];
const THERE: [u8; 4] = [192, 0, 2, 1];

fn built(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame);
    frame
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    built(|frame| PacketBuilder::ethernet2(A, B).ipv4(HERE, THERE, 64).udp(source, destination).write(frame, &[7; 20]).unwrap())
}

fn tcp6(source: u16, destination: u16) -> Vec<u8> {
    let packet = PacketBuilder::ethernet2(A, B).ipv6([0xfd; 16], [0xfc; 16], 64);
    built(|frame| packet.tcp(source, destination, 1, 1).write(frame, &[]).unwrap())
}

fn tagged(mut frame: Vec<u8>, kind: [u8; 2], vlan: u16) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    frame.splice(12..12, [kind[0], kind[1], 0x60 | high, low]);
    frame
}

fn arp() -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &A, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &A, &HERE, &[0; 6], &THERE].concat();
    frame.resize(60, 0);
    frame
}

/// An IPv6 packet with destination options before its datagram.
fn with_options() -> Vec<u8> {
    let mut frame = [&B[..], &A, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 60, 64], &[0xfd; 16], &[0xfc; 16]].concat();
    frame.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    frame.extend([0, 53, 0x14, 0xe9, 0, 8, 0, 0]);
    frame
}

/// The second fragment of a datagram.
fn fragment() -> Vec<u8> {
    let mut frame = udp(53, 53);
    frame[20..22].copy_from_slice(&[0, 100]);
    frame
}

fn accepts(filter: &str, frame: &[u8]) -> bool {
    let filter: Filter = filter.parse().unwrap_or_else(|error| panic!("{filter}: {error}"));
    filter.matches(&Facts::of(&frame[..frame.len().min(Filter::LOOKS_AT)], frame.len(), None))
}

#[test]
fn words_mean_what_they_mean_to_others() {
    let (dns, web) = (udp(40_000, 53), tcp6(443, 50_000));
    for (filter, about_dns, about_web, about_arp) in [
        ("", true, true, true),
        ("ip", true, false, false),
        ("ip6", false, true, false),
        ("arp", false, false, true),
        ("udp", true, false, false),
        ("tcp", false, true, false),
        ("ip proto 17", true, false, false),
        ("ip6 proto 17", false, false, false),
        ("proto 6", false, true, false),
        ("ether proto 0x0806", false, false, true),
        ("host 10.77.0.2", true, false, true),
        ("ip host 10.77.0.2", true, false, false),
        ("arp host 10.77.0.2", false, false, true),
        ("src host 10.77.0.2", true, false, true),
        ("dst 10.77.0.2", false, false, false),
        ("src and dst net 10.77.0.0/16", false, false, false),
        ("src or dst net 10.77.0.0/16", true, false, true),
        ("host fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd", false, true, false),
        ("net fc00::/7", false, true, false),
        ("port 53", true, false, false),
        ("udp port 53", true, false, false),
        ("tcp port 53", false, false, false),
        ("src port 53", false, false, false),
        ("ip6 port 443", false, true, false),
        ("ip port 443", false, false, false),
        ("portrange 440-450", false, true, false),
        ("ether host 02:00:00:00:00:0a", true, true, true),
        ("ether dst 02:00:00:00:00:0b", true, true, false),
        ("ether src 02:00:00:00:00:0b", false, false, false),
        ("broadcast", false, false, true),
        ("multicast", false, false, true),
        ("less 60", false, false, true),
        ("greater 62", true, true, false),
        ("not arp", true, true, false),
        ("! ( arp || tcp )", true, false, false),
        ("arp or udp and port 53", true, false, false),
        ("arp or (udp and port 54)", false, false, true),
        ("not not arp", false, false, true),
        ("port 1 or 443", false, true, false),
        ("dst port 1 or 53 or arp", true, false, true),
        ("vlan", false, false, false),
    ] {
        let seen = [&dns, &web, &arp()].map(|frame| accepts(filter, frame));
        // `less` is about ARP, which has 60 bytes, and the others have more.
        assert_eq!(seen, [about_dns, about_web, about_arp], "{filter}");
    }
}

#[test]
fn tags_are_looked_behind() {
    let customer = tagged(udp(1, 53), [0x81, 0], 100);
    let both = tagged(customer.clone(), [0x88, 0xa8], 300);
    for filter in ["vlan", "vlan 100", "port 53", "vlan 100 and udp port 53", "host 192.0.2.1"] {
        assert!(accepts(filter, &customer) && accepts(filter, &both), "{filter}");
    }
    assert!(accepts("vlan 300 and vlan 100", &both));
    assert!(!accepts("vlan 300", &customer));
    // Three are one too many.
    let three = tagged(both, [0x81, 0], 5);
    assert!(accepts("vlan 5", &three) && !accepts("port 53", &three));
}

#[test]
fn ports_are_where_there_are_ports() {
    assert!(accepts("port 53", &with_options()), "behind an extension header");
    assert!(!accepts("port 53", &fragment()) && accepts("udp and host 192.0.2.1", &fragment()));
    let icmp = built(|frame| {
        PacketBuilder::ethernet2(A, B).ipv4(HERE, THERE, 64).icmpv4_echo_request(53, 53).write(frame, &[0, 53]).unwrap();
    });
    assert!(accepts("icmp", &icmp) && !accepts("port 53", &icmp) && !accepts("icmp6", &icmp));
}

#[test]
fn what_a_checksum_may_still_change_is_shown_to_all_who_watch() {
    let filter: Filter = "port 99 or host 192.0.2.99".parse().unwrap();
    let shown = |frame: &[u8]| -> Vec<u16> {
        let is_meant = |field: &u16| {
            let pending = PartialChecksum { start: field - 14, offset: 14 };
            filter.matches(&Facts::of(&frame[..frame.len().min(Filter::LOOKS_AT)], frame.len(), Some(pending)))
        };
        (14..90).filter(is_meant).collect()
    };
    let up_to = |end| (14..end).collect::<Vec<_>>();
    // As far as it was looked at: the ports, behind options too; none in a later fragment, and none of other protocols.
    let plain = udp(1, 2);
    let mut long = plain.clone();
    long[14] = 0x47;
    long.splice(34..34, [1; 8]);
    let mut later = plain.clone();
    later[21] = 3;
    let tagged = tagged(tcp6(1, 2), [0x81, 0], 5);
    assert_eq!([&plain, &long, &later, &tagged].map(|frame| shown(frame)), [38, 46, 34, 62].map(up_to));
    assert_eq!(shown(&with_options()), up_to(66));
    assert_eq!(shown(&arp()), up_to(42));
    assert!(!accepts("port 99 or host 192.0.2.99", &plain));
}

#[test]
fn what_is_no_filter_is_refused_with_what_is_wrong() {
    let nested = |levels: usize| format!("{}arp{}", "(".repeat(levels), ")".repeat(levels));
    for (text, expected) in [
        ("tcp[13] & 2 != 0".to_owned(), "\"tcp[13]\" is not among the words"),
        ("www.example".to_owned(), "\"www.example\" is not among the words"),
        ("port https".to_owned(), "\"https\" is no port: write its number"),
        ("tcp dst port https".to_owned(), "\"https\" is no port: write its number"),
        ("host www.example".to_owned(), "\"www.example\" is no IP address; names are not looked up"),
        ("src vm2".to_owned(), "\"vm2\" is no IP address; names are not looked up"),
        ("ether host vm2".to_owned(), "\"vm2\" is no MAC address; names are not looked up"),
        ("ip proto tcpp".to_owned(), "\"tcpp\" is no protocol number"),
        ("port 65536".to_owned(), "\"65536\" is no port"),
        ("portrange 9-5".to_owned(), "\"9-5\" is no range of ports"),
        ("net 192.0.2.0/33".to_owned(), "is no net"),
        ("vlan 4096".to_owned(), "\"4096\" is no VLAN"),
        ("host".to_owned(), "ends where a value should come"),
        ("tcp and".to_owned(), "ends where a value should come"),
        ("tcp udp port 1 2".to_owned(), "\"2\" stands where \"and\" or \"or\" should come"),
        ("(tcp".to_owned(), "ends where \")\" should come"),
        ("ether port 80".to_owned(), "\"port\" can't be said of this protocol"),
        ("ip host fd00::1".to_owned(), "can't be said of this protocol"),
        ("src vlan".to_owned(), "stands where a value should come"),
        (nested(Filter::MAX_DEPTH + 1), "at most 16 levels"),
        (vec!["arp"; Filter::MAX_TESTS + 1].join(" or "), "at most 64 tests"),
        (" ".repeat(Filter::MAX_LEN + 1), "at most 2048 characters"),
    ] {
        let message = text.parse::<Filter>().unwrap_err().to_string();
        assert!(message.contains(expected), "{text:?} gave {message}");
    }
    assert!(nested(Filter::MAX_DEPTH).parse::<Filter>().is_ok());
    assert!(vec!["arp"; Filter::MAX_TESTS].join(" or ").parse::<Filter>().is_ok());
}

/// Primitives, of which some are about frames that are made here.
fn primitive() -> impl Strategy<Value = String> {
    let words = [
        "ip",
        "ip6",
        "arp",
        "tcp",
        "udp",
        "icmp",
        "vlan",
        "vlan 100",
        "broadcast",
        "less 70",
        "host 10.77.0.2",
        "src 192.0.2.1",
        "net 10.0.0.0/8",
        "arp host 10.77.0.2",
        "ip host 192.0.2.1",
        "host fd00::1",
        "net fc00::/7",
        "port 53",
        "tcp dst port 443",
        "ip port 53",
        "portrange 50-60",
        "ether src 02:00:00:00:00:0a",
        "ether proto 0x86dd",
        "proto 17",
        "ip6 proto 60",
    ];
    proptest::sample::select(words.to_vec()).prop_map(str::to_owned)
}

fn expression() -> impl Strategy<Value = String> {
    primitive().prop_recursive(4, 16, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(one, other)| format!("({one}) and ({other})")),
            (inner.clone(), inner.clone()).prop_map(|(one, other)| format!("({one}) or ({other})")),
            inner.prop_map(|node| format!("not ({node})")),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_ruled_out_at_a_glance_is_not_meant(
        text in expression(),
        which in 0..8_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let frames = [
            udp(40_000, 53), udp(53, 443), tcp6(443, 53), arp(), with_options(), fragment(), tagged(udp(1, 53), [0x81, 0], 100),
            built(|frame| PacketBuilder::ethernet2(A, B).ipv4(HERE, THERE, 64).tcp(1, 443, 1, 1).write(frame, &[]).unwrap()),
        ];
        let mut frame = frames[which].clone();
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        let filter: Filter = text.parse().unwrap();
        let header: &[u8; EthernetHeader::LEN] = frame.first_chunk().unwrap();
        let read = |at: usize| frame.get(at..).and_then(|rest| rest.first_chunk().copied());
        let beginning = &frame[..frame.len().min(Filter::LOOKS_AT)];
        prop_assert!(!(filter.quick().rules_out(header, read) && filter.matches(&Facts::of(beginning, frame.len(), None))), "{text}");
    }

    #[test]
    fn no_text_and_no_bytes_do_harm(text in ".{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(filter) = text.parse::<Filter>() {
            let _ = filter.matches(&Facts::of(&bytes, bytes.len(), None));
        }
        let _ = Facts::of(&bytes, bytes.len(), None);
    }
}
