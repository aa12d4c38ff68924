//! Datagrams that come in parts.

use super::*;
use crate::gateway::fragments::{BYTES, DATAGRAMS_PER_PORT, PARTS};

#[test]
fn a_ping_larger_than_the_mtu_comes_and_goes_in_fragments_in_any_order() {
    let mut bench = Bench::new();
    let data: Vec<u8> = (0..6000).map(|at| (at / 7) as u8).collect();
    let mut frames = fragments(1, &echo(&data), 1480);
    frames.reverse();
    for frame in &frames {
        assert_eq!(bench.take(frame), Outcome::Done);
    }
    let replies: Vec<_> = bench.out.drain(..).map(|outgoing| outgoing.frame).collect();
    assert_eq!(replies.len(), 5);
    let mut whole = Vec::new();
    for frame in &replies {
        assert!(frame.len() <= ETHERNET_LEN + 1500);
        let Some(NetSlice::Ipv4(ip)) = check(frame).net else { panic!("{frame:?}") };
        assert_eq!(usize::from(ip.header().fragments_offset().value()) * 8, whole.len());
        assert_eq!(ip.header().more_fragments(), whole.len() + ip.payload().payload.len() < 6008);
        whole.extend_from_slice(ip.payload().payload);
    }
    assert_eq!((whole[0], &whole[8..]), (ECHO_REPLY, &data[..]));
    assert_eq!(internet_checksum(&whole), 0);
}

#[test]
fn fragments_for_a_neighbour_pass_as_they_are() {
    let mut bench = Bench::new();
    bench.at(NOW, OTHER_PORT, &arp(EtherArp::REPLY, OTHER_MAC, OTHER, GATEWAY));
    bench.out.clear();
    for offset in [0, 185] {
        let mut part = header(GUEST, OTHER, UDP);
        part.more_fragments = offset == 0;
        part.fragment_offset = IpFragOffset::try_new(offset).unwrap();
        let frame = ipv4_to(GATEWAY_MAC, &part, &[7; 1480]);
        let Outcome::Neighbour { to, headers, packet } = bench.take(&frame) else { panic!("{offset}") };
        assert_eq!((to.port, packet.ip.header().fragment_offset), (OTHER_PORT, offset * 8));
        assert_eq!((headers[22], &headers[20..22]), (63, &frame[20..22]), "its offset is still there");
    }
    bench.expect_silence();
}

#[test]
fn fragments_that_overlap_take_their_datagram_with_them() {
    let mut bench = Bench::new();
    let frames = fragments(1, &echo(&[7; 4000]), 1480);
    assert_eq!(bench.take(&frames[0]), Outcome::Done);
    assert_eq!(bench.take(&frames[0]), Outcome::Done, "the same part again");
    let mut shifted = header(GUEST, GATEWAY, ICMP);
    shifted.identification = 1;
    shifted.more_fragments = true;
    shifted.fragment_offset = IpFragOffset::try_new(184).unwrap();
    assert_eq!(bench.take(&ipv4_to(GATEWAY_MAC, &shifted, &[7; 1480])), Outcome::Drop(DropReason::BadFragment));
    let late: Vec<_> = bench.gateway.late_drops().collect();
    assert_eq!(late, [LateDrop { port: PORT, reason: DropReason::BadFragment, frames: 1 }]);
    for frame in &frames[1..] {
        assert_eq!(bench.take(frame), Outcome::Done);
    }
    bench.expect_silence();
}

#[test]
fn fragments_that_can_not_be_part_of_a_packet_are_dropped() {
    let bad = |offset: u16, more_fragments, payload: &[u8]| {
        let mut header = header(GUEST, GATEWAY, ICMP);
        header.more_fragments = more_fragments;
        header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
        Bench::new().take(&ipv4_to(GATEWAY_MAC, &header, payload)) == Outcome::Drop(DropReason::BadFragment)
    };
    assert!(bad(8191, false, &[0; 100]), "longer than a packet");
    assert!(bad(0, true, &[0; 15]), "not a multiple of eight");
    assert!(bad(0, true, &[]) && bad(1, false, &[]), "empty");
}

#[test]
fn a_port_that_sends_fragments_without_end_only_uses_up_its_own_room() {
    let mut bench = Bench::new();
    let payload = echo(&[1; 4000]);
    let theirs = fragments(7, &payload, 1480);
    bench.at(NOW, OTHER_PORT, &theirs[0]);
    for identification in 0..1000 {
        let frames = fragments(identification, &payload, 1480);
        bench.take(&frames[0]);
        bench.take(&frames[1]);
    }
    let dropped: u64 = bench.gateway.late_drops().map(|late| late.frames).sum();
    assert_eq!(dropped, 2 * (1000 - DATAGRAMS_PER_PORT as u64));
    let tiny = fragments(7777, &[0; 8 * 200], 8);
    let kept = tiny.iter().filter(|frame| bench.take(frame) == Outcome::Done).count();
    assert_eq!(kept, PARTS);
}

#[test]
fn all_ports_together_are_bounded_in_what_waits_to_be_put_together() {
    let mut bench = Bench::new();
    let large = fragments(1, &[0; 60_000], 32_000);
    let most = BYTES / 32_000;
    for port in 0..most as u16 + 50 {
        let mut frame = large[0].clone();
        frame[6..12].copy_from_slice(&[2, 0, 0, 1, (port >> 8) as u8, port as u8]);
        assert_eq!(bench.at(NOW, PortId(port), &frame), Outcome::Done);
    }
    assert_eq!(bench.gateway.late_drops().map(|late| late.frames).sum::<u64>(), 50);
    for port in 0..most as u16 + 50 {
        bench.gateway.forget_port(PortId(port));
    }
    assert_eq!(bench.gateway.next_tick(), None);
}

#[test]
fn a_datagram_that_stays_incomplete_is_given_up_and_its_sender_told_rfc_1122_3_3_2() {
    let mut bench = Bench::new();
    let frames = fragments(1, &echo(&[7; 4000]), 1480);
    bench.take(&frames[0]);
    bench.take(&frames[2]);
    let without_first = fragments(2, &echo(&[7; 4000]), 1480);
    bench.take(&without_first[1]);
    bench.gateway.tick(NOW.after(Duration::from_secs(29)), &mut bench.out);
    bench.expect_silence();
    bench.gateway.tick(NOW.after(Duration::from_secs(30)), &mut bench.out);
    let reply = bench.reply();
    assert_eq!((icmp(&check(&reply)).type_u8(), icmp(&check(&reply)).code_u8()), (11, 1));
    let late: Vec<_> = bench.gateway.late_drops().collect();
    assert_eq!(late, [LateDrop { port: PORT, reason: DropReason::FragmentTimeout, frames: 3 }]);
    assert_eq!(bench.gateway.next_tick(), None);
}

#[test]
fn a_datagram_in_fragments_for_the_outside_comes_out_whole_rfc_4787_r14() {
    let mut bench = Bench::new();
    let frame = udp(SocketAddrV4::new(REMOTE, 123), &[9; 3000]);
    let payload = &frame[34..];
    let part = |offset: usize, end: usize| {
        let mut header = header(GUEST, REMOTE, UDP);
        header.more_fragments = end < payload.len();
        header.fragment_offset = IpFragOffset::try_new((offset / 8) as u16).unwrap();
        ipv4_to(GATEWAY_MAC, &header, &payload[offset..end])
    };
    assert_eq!(bench.take(&part(1480, 2960)), Outcome::Done);
    assert_eq!(bench.take(&part(2960, payload.len())), Outcome::Done);
    let first = part(0, 1480);
    let Outcome::Outside(packet) = bench.take(&first) else { panic!() };
    assert_eq!(packet.ip.payload(), payload);
    assert_eq!(usize::from(u16::from_be_bytes([packet.ip.bytes()[2], packet.ip.bytes()[3]])), packet.ip.bytes().len());
    assert!(!packet.ip.is_fragment() && UdpHeader::parse(&packet.ip, false).is_ok());
}

proptest! {
    #[test]
    fn fragments_in_any_order_and_any_number_of_times_make_the_same_datagram(
        len in 100..9000usize,
        step in 1..180usize,
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let data: Vec<u8> = (0..len).map(|at| (at * 31 % 251) as u8).collect();
        let step = (step * 8).max((len + 8).div_ceil(PARTS).next_multiple_of(8));
        let frames = fragments(5, &echo(&data), step);
        prop_assume!(frames.len() > 1);
        let mut bench = Bench::with(GatewaySettings { mtu: 65_535, ..settings() });
        let mut missing: Vec<usize> = (0..frames.len()).collect();
        for index in &order {
            let index = index.index(frames.len());
            if missing.len() > 1 || missing[0] != index {
                bench.take(&frames[index]);
                missing.retain(|other| *other != index);
                if missing.is_empty() {
                    break;
                }
            }
        }
        prop_assert!(bench.out.is_empty());
        for index in missing {
            prop_assert_eq!(bench.take(&frames[index]), Outcome::Done);
        }
        prop_assert_eq!(&bench.reply()[42..], &data[..]);
    }
}
