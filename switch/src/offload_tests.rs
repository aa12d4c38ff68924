//! Offloads against `etherparse` as a second opinion: whatever is cut must be what a correct sender would have sent.

use etherparse::{
    IpNumber, Ipv6FlowLabel, Ipv6FragmentHeader, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, UdpHeader, VlanId,
};
use proptest::prelude::*;

use super::*;

const ALL: OffloadFeatures =
    OffloadFeatures { checksum: true, tcp4: true, tcp6: true, ecn: true, udp_fragments: true, udp: true };
const SEQUENCE: u32 = u32::MAX - 5000;

#[derive(Clone, Copy, Debug)]
struct Shape {
    ipv6: bool,
    tagged: bool,
    tcp: bool,
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

/// A frame with everything right in it, but that it may be larger than any wire.
fn frame(shape: Shape, payload: &[u8]) -> (Vec<u8>, PartialChecksum) {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut bytes = Vec::new();
    macro_rules! finish {
        ($link:expr) => {{
            let link = $link;
            let network = if shape.ipv6 { link.ipv6([7; 16], [9; 16], 64) } else { link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64) };
            if shape.tcp {
                // CWR, PSH and FIN, which may stand in some of the segments only.
                let tcp = network.tcp(1000, 2000, SEQUENCE, 4000).ack(77).psh().fin().cwr();
                tcp.write(&mut bytes, payload).unwrap();
            } else {
                network.udp(1000, 2000).write(&mut bytes, payload).unwrap();
            }
        }};
    }
    if shape.tagged {
        finish!(ethernet.single_vlan(VlanId::try_new(5).unwrap()));
    } else {
        finish!(ethernet);
    }
    let network = ETHERNET_LEN + if shape.tagged { TAG_LEN } else { 0 };
    let start = network + if shape.ipv6 { IPV6_LEN } else { 20 };
    (bytes, PartialChecksum { start: start as u16, offset: if shape.tcp { 16 } else { 6 } })
}

/// The frame as a driver hands it over: only the sum of the pseudo-header stands in the checksum field.
fn unfinished(shape: Shape, payload: &[u8]) -> (Vec<u8>, PartialChecksum) {
    let (mut bytes, checksum) = frame(shape, payload);
    let (start, field) = (usize::from(checksum.start), usize::from(checksum.start + checksum.offset));
    let network = ETHERNET_LEN + if shape.tagged { TAG_LEN } else { 0 };
    let addresses = if shape.ipv6 { network + 8..network + 40 } else { network + 12..network + 20 };
    let protocol = if shape.tcp { 6 } else { 17 };
    let pseudo = fold(sum_of(&bytes[addresses]) + protocol + (bytes.len() - start) as u64);
    write_u16(&mut bytes, field, pseudo);
    (bytes, checksum)
}

fn cut(bytes: &[u8], checksum: PartialChecksum, kind: SegmentKind, size: u16) -> Result<Vec<Vec<u8>>, DropReason> {
    let mut segments = Vec::new();
    let segmentation = Segmentation { kind, size, ecn: false };
    let push = |segment: &[u8]| {
        segments.push(segment.to_vec());
        true
    };
    segment(bytes, checksum, segmentation, &mut Vec::new(), push)?;
    Ok(segments)
}

/// Every checksum and length in a segment is right; returns its transport header's view and payload.
fn check<'a>(segment: &'a [u8]) -> (Option<TransportSlice<'a>>, SlicedPacket<'a>) {
    let packet = SlicedPacket::from_ethernet(segment).unwrap();
    match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            match packet.transport.as_ref() {
                Some(TransportSlice::Tcp(tcp)) => {
                    assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).unwrap());
                }
                Some(TransportSlice::Udp(udp)) => {
                    let expected =
                        udp.to_header().calc_checksum_ipv4_raw(ip.header().source(), ip.header().destination(), udp.payload());
                    assert_eq!(udp.checksum(), expected.unwrap());
                }
                _ => {}
            }
        }
        NetSlice::Ipv6(ip) => {
            let (source, destination) = (ip.header().source(), ip.header().destination());
            match packet.transport.as_ref() {
                Some(TransportSlice::Tcp(tcp)) => {
                    assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(source, destination).unwrap());
                }
                Some(TransportSlice::Udp(udp)) => {
                    let expected = udp.to_header().calc_checksum_ipv6_raw(source, destination, udp.payload());
                    assert_eq!(udp.checksum(), expected.unwrap());
                }
                _ => {}
            }
            assert_eq!(ip.header().flow_label(), Ipv6FlowLabel::ZERO);
        }
        NetSlice::Arp(_) => panic!("no ARP was sent"),
    }
    let transport = packet.transport.clone();
    (transport, packet)
}

/// Every segment has a copy of the headers: many tags would make many times as much of a frame.
#[test]
fn frames_behind_more_than_two_tags_are_not_cut() {
    let (bytes, PartialChecksum { start, offset }) = unfinished(Shape { ipv6: false, tagged: false, tcp: true }, &payload(5000));
    for (tags, fits) in [(1, true), (2, true), (3, false), (1000, false)] {
        let tagged = [&bytes[..12], &[0x81, 0, 0, 5].repeat(tags), &bytes[12..]].concat();
        let checksum = PartialChecksum { start: start + 4 * tags as u16, offset };
        assert_eq!(
            cut(&tagged, checksum, SegmentKind::Tcp4, 1000).map(|segments| segments.len()).ok(),
            fits.then_some(5),
            "{tags}"
        );
    }
}

/// A size of fifteen makes fragments of eight bytes.
#[test]
fn fragments_are_counted_as_they_are_cut() {
    let header = |size: u16| {
        let mut header = [NEEDS_CSUM, GSO_UDP, 0, 0, 0, 0, 34, 0, 6, 0];
        header[4..6].copy_from_slice(&size.to_le_bytes());
        header
    };
    let len = 8 * MAX_SEGMENTS;
    assert!(Offload::parse(header(15), len, ALL).is_ok());
    assert_eq!(Offload::parse(header(15), len + 1, ALL), Err(DropReason::BadOffload));
    assert_eq!(Offload::parse(header(7), 100, ALL), Err(DropReason::BadOffload));
}

proptest! {
    #[test]
    fn a_completed_checksum_is_the_one_that_a_sender_computes(
        len in 0..3000_usize, ipv6 in any::<bool>(), tagged in any::<bool>(), tcp in any::<bool>(),
    ) {
        let shape = Shape { ipv6, tagged, tcp };
        let payload = payload(len);
        let (mut bytes, checksum) = unfinished(shape, &payload);
        complete_checksum(&mut bytes, checksum);
        prop_assert_eq!(bytes, frame(shape, &payload).0);
    }

    #[test]
    fn tcp_segments_carry_the_same_stream(
        len in 0..65_000_usize, size in 1..9000_u16, ipv6 in any::<bool>(), tagged in any::<bool>(),
    ) {
        let size = size.max((len / 100) as u16);
        let shape = Shape { ipv6, tagged, tcp: true };
        let payload = payload(len);
        let (bytes, checksum) = unfinished(shape, &payload);
        let kind = if ipv6 { SegmentKind::Tcp6 } else { SegmentKind::Tcp4 };
        let segments = cut(&bytes, checksum, kind, size).unwrap();
        prop_assert_eq!(segments.len(), len.div_ceil(size.into()).max(1));
        let mut stream = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let (transport, packet) = check(segment);
            let Some(TransportSlice::Tcp(tcp)) = transport else { panic!("no TCP in {packet:?}") };
            let is_last = index + 1 == segments.len();
            prop_assert_eq!(tcp.sequence_number(), SEQUENCE.wrapping_add(stream.len() as u32));
            prop_assert_eq!((tcp.fin(), tcp.psh(), tcp.cwr(), tcp.ack()), (is_last, is_last, index == 0, true));
            prop_assert!(is_last || tcp.payload().len() == usize::from(size));
            if let Some(NetSlice::Ipv4(ip)) = &packet.net {
                prop_assert_eq!(ip.header().identification(), index as u16);
            }
            stream.extend_from_slice(tcp.payload());
        }
        prop_assert_eq!(stream, payload);
    }

    #[test]
    fn segments_are_no_more_than_what_their_frame_counts_for(
        len in 200..20_000_usize, size in 8..3000_u16, shape in any::<[bool; 3]>(), kind in 0..3, options in 5..16_u8,
    ) {
        let [ipv6, tagged, tcp] = [shape[0], shape[1], kind == 0];
        let (mut bytes, checksum) = unfinished(Shape { ipv6, tagged, tcp }, &payload(len));
        let kind = match kind {
            0 if ipv6 => SegmentKind::Tcp6,
            0 => SegmentKind::Tcp4,
            1 => SegmentKind::Udp,
            _ => SegmentKind::UdpFragments,
        };
        if tcp {
            bytes[usize::from(checksum.start) + 12] = options << 4;
        }
        let segments = cut(&bytes, checksum, kind, size).unwrap();
        let segmentation = Some(Segmentation { kind, size, ecn: false });
        let counted = Offload { checksum: Some(checksum), segmentation }.wire_size(bytes.len());
        let real = segments.iter().map(Vec::len).sum::<usize>();
        // One more where options take the place of payload. Who has more options than timestamps need has them in 28 bytes of at least 590.
        prop_assert!((segments.len()..=segments.len() + 1 + 40 / usize::from(size)).contains(&counted.frames), "{counted:?}");
        prop_assert!(counted.bytes * 105 / 100 >= real, "{counted:?} of {real}");
        prop_assert!(size < 536 || counted.bytes <= real * 103 / 100 + 200, "{counted:?} of {real}");
    }

    #[test]
    fn udp_segments_are_datagrams_of_their_own(len in 1..60_000_usize, size in 1..2000_u16, ipv6 in any::<bool>()) {
        let size = size.max((len / 100) as u16);
        let payload = payload(len);
        let (bytes, checksum) = unfinished(Shape { ipv6, tagged: false, tcp: false }, &payload);
        let mut together = Vec::new();
        for segment in cut(&bytes, checksum, SegmentKind::Udp, size).unwrap() {
            let Some(TransportSlice::Udp(udp)) = check(&segment).0 else { panic!("no UDP in {segment:02x?}") };
            prop_assert_eq!(usize::from(udp.length()), UDP_LEN + udp.payload().len());
            together.extend_from_slice(udp.payload());
        }
        prop_assert_eq!(together, payload);
    }

    #[test]
    fn udp_fragments_make_up_the_datagram_again(len in 1..60_000_usize, size in 8..2000_u16, ipv6 in any::<bool>()) {
        let size = size.max((len / 100) as u16).max(8);
        let payload = payload(len);
        let (bytes, checksum) = unfinished(Shape { ipv6, tagged: false, tcp: false }, &payload);
        let fragments = cut(&bytes, checksum, SegmentKind::UdpFragments, size).unwrap();
        let mut datagram = Vec::new();
        for (index, fragment) in fragments.iter().enumerate() {
            let packet = SlicedPacket::from_ethernet(fragment).unwrap();
            let (offset, more, part) = match packet.net.as_ref().unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                    (header.fragment_offset.byte_offset(), header.more_fragments, ip.payload().payload)
                }
                NetSlice::Ipv6(ip) => {
                    let (extension, _) = Ipv6FragmentHeader::from_slice(&fragment[ETHERNET_LEN + IPV6_LEN..]).unwrap();
                    prop_assert_eq!(extension.next_header, IpNumber::UDP);
                    prop_assert_eq!(usize::from(ip.header().payload_length()), fragment.len() - ETHERNET_LEN - IPV6_LEN);
                    let part = &fragment[ETHERNET_LEN + IPV6_LEN + FRAGMENT_HEADER_LEN..];
                    (extension.fragment_offset.byte_offset(), extension.more_fragments, part)
                }
                NetSlice::Arp(_) => panic!("no ARP was sent"),
            };
            prop_assert_eq!(usize::from(offset), datagram.len());
            prop_assert_eq!(more, index + 1 < fragments.len());
            datagram.extend_from_slice(part);
        }
        let (header, rest) = UdpHeader::from_slice(&datagram).unwrap();
        prop_assert_eq!(rest, &payload[..]);
        let finished = frame(Shape { ipv6, tagged: false, tcp: false }, &payload).0;
        prop_assert_eq!(header.checksum, UdpHeader::from_slice(&finished[usize::from(checksum.start)..]).unwrap().0.checksum);
    }

    /// Whatever a guest writes: no panic, and what is taken says the same again.
    #[test]
    fn headers_of_every_kind_are_read_without_harm(
        header in any::<[u8; 10]>(), frame in prop::collection::vec(any::<u8>(), 14..200), plausible in any::<bool>(),
    ) {
        let mut header = header;
        if plausible {
            header[0] = NEEDS_CSUM;
            header[1] %= 6;
            (header[7], header[9]) = (0, 0);
        }
        if let Ok(offload) = Offload::parse(header, frame.len(), ALL) {
            let again = Offload::parse(offload.header(0), frame.len(), ALL);
            prop_assert_eq!(again, Ok(offload));
            if let Some(checksum) = offload.checksum {
                complete_checksum(&mut frame.clone(), checksum);
                if let Some(segmentation) = offload.segmentation {
                    let _ = segment(&frame, checksum, segmentation, &mut Vec::new(), |_| true);
                }
            }
        }
    }
}

fn header(flags: u8, gso_type: u8, size: u16, start: u16, offset: u16) -> [u8; 10] {
    let mut header = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
    header[4..6].copy_from_slice(&size.to_le_bytes());
    header[6..8].copy_from_slice(&start.to_le_bytes());
    header[8..10].copy_from_slice(&offset.to_le_bytes());
    header
}

#[test]
fn what_was_not_agreed_on_is_refused() {
    let only_checksum = OffloadFeatures { checksum: true, ..OffloadFeatures::default() };
    let no_ecn = OffloadFeatures { ecn: false, ..ALL };
    for (header, agreed) in [
        (header(NEEDS_CSUM, 0, 0, 34, 16), OffloadFeatures::default()),
        (header(NEEDS_CSUM, GSO_TCPV4, 1460, 34, 16), only_checksum),
        (header(NEEDS_CSUM, GSO_TCPV6, 1440, 54, 16), only_checksum),
        (header(NEEDS_CSUM, GSO_UDP, 1480, 34, 6), only_checksum),
        (header(NEEDS_CSUM, GSO_UDP_L4, 1472, 34, 6), only_checksum),
        (header(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 1460, 34, 16), no_ecn),
    ] {
        assert_eq!(Offload::parse(header, 3000, agreed), Err(DropReason::UnagreedOffload), "{header:?}");
        assert!(Offload::parse(header, 3000, ALL).is_ok(), "{header:?}");
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    for header in [
        header(0, GSO_TCPV4, 1460, 34, 16),
        header(NEEDS_CSUM, GSO_TCPV4, 0, 34, 16),
        header(NEEDS_CSUM, 2, 1460, 34, 16),
        header(NEEDS_CSUM, GSO_ECN, 1460, 34, 16),
        header(NEEDS_CSUM, 0, 0, 13, 16),
        header(NEEDS_CSUM, 0, 0, 83, 16),
        header(NEEDS_CSUM, 0, 0, u16::MAX, u16::MAX),
    ] {
        assert_eq!(Offload::parse(header, 100, ALL), Err(DropReason::BadOffload), "{header:?}");
    }
    assert!(Offload::parse(header(NEEDS_CSUM, 0, 0, 82, 16), 100, ALL).is_ok());
}

#[test]
fn a_frame_may_stand_for_so_many_segments_and_no_more() {
    let size = 256;
    let header = header(NEEDS_CSUM, GSO_TCPV4, size, 34, 16);
    let most = MAX_SEGMENTS * usize::from(size);
    assert!(Offload::parse(header, most, ALL).is_ok());
    assert_eq!(Offload::parse(header, most + 1, ALL), Err(DropReason::BadOffload));
}

#[test]
fn a_frame_whose_headers_are_not_what_its_offload_says_is_not_cut() {
    let v4 = Shape { ipv6: false, tagged: false, tcp: true };
    let (bytes, checksum) = unfinished(v4, &payload(3000));
    for kind in [SegmentKind::Tcp6, SegmentKind::Udp, SegmentKind::UdpFragments] {
        assert_eq!(cut(&bytes, checksum, kind, 1000), Err(DropReason::BadOffload), "{kind:?}");
    }
    let elsewhere = PartialChecksum { start: checksum.start + 4, ..checksum };
    assert_eq!(cut(&bytes, elsewhere, SegmentKind::Tcp4, 1000), Err(DropReason::BadOffload));
    // A TCP header that is longer than the frame, one that is too short, and a frame of another protocol.
    for (at, value) in [(46, 0xf0), (46, 0x40), (12, 0x99)] {
        let mut bytes = bytes[..60].to_vec();
        bytes[at] = value;
        assert_eq!(cut(&bytes, checksum, SegmentKind::Tcp4, 1000), Err(DropReason::BadOffload), "byte {at}");
    }
    let (mut bytes, checksum) = unfinished(Shape { tcp: false, ..v4 }, &payload(3000));
    assert_eq!(cut(&bytes, checksum, SegmentKind::UdpFragments, 7), Err(DropReason::BadOffload));
    // Fragments: the first one, a later one, the last one.
    for word in [0x2000_u16, 0x2001, 1] {
        bytes[20..22].copy_from_slice(&word.to_be_bytes());
        for kind in [SegmentKind::UdpFragments, SegmentKind::Udp] {
            assert_eq!(cut(&bytes, checksum, kind, 1000), Err(DropReason::BadOffload), "{word:04x}");
        }
    }
}

#[test]
fn who_wants_no_more_segments_hears_how_many_are_left() {
    let (bytes, checksum) = unfinished(Shape { ipv6: false, tagged: false, tcp: false }, &payload(4000));
    for (kind, left) in [(SegmentKind::UdpFragments, 3), (SegmentKind::Udp, 2)] {
        let (mut wanted, segmentation) = (2, Segmentation { kind, size: 1000, ecn: false });
        let deliver = |_: &[u8]| {
            wanted -= 1;
            wanted > 0
        };
        assert_eq!(segment(&bytes, checksum, segmentation, &mut Vec::new(), deliver), Ok(left));
    }
}

#[test]
fn a_tag_moves_the_checksum_and_taking_it_off_moves_it_back() {
    let offload = Offload { checksum: Some(PartialChecksum { start: 34, offset: 16 }), segmentation: None };
    assert_eq!(offload.with_tag().checksum, Some(PartialChecksum { start: 38, offset: 16 }));
    assert_eq!(offload.with_tag().without_tag(), Ok(offload));
    assert_eq!((Offload::NONE.with_tag(), Offload::NONE.without_tag()), (Offload::NONE, Ok(Offload::NONE)));
    let within_the_tag = Offload { checksum: Some(PartialChecksum { start: 17, offset: 16 }), segmentation: None };
    assert_eq!(within_the_tag.without_tag(), Err(DropReason::BadOffload));
}

#[test]
fn there_is_always_room_for_a_tag_before_the_checksum() {
    let parsed = |start: u16| {
        let [low, high] = start.to_le_bytes();
        Offload::parse([NEEDS_CSUM, 0, 0, 0, 0, 0, low, high, 6, 0], 65_557, ALL)
    };
    assert_eq!(parsed(65_532), Err(DropReason::BadOffload));
    assert_eq!(parsed(65_531).unwrap().with_tag().checksum, Some(PartialChecksum { start: u16::MAX, offset: 6 }));
}

#[test]
fn a_frame_counts_for_the_headers_of_all_its_segments() {
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let of = |kind, size| Offload { checksum, segmentation: Some(Segmentation { kind, size, ecn: false }) };
    assert_eq!(of(SegmentKind::Tcp4, 1460).wire_size(54 + 3 * 1460), WireSize { frames: 3, bytes: 3 * 1514 + 2 * 12 });
    assert_eq!(of(SegmentKind::Tcp4, 1460).wire_size(54 + 3 * 1460 + 1), WireSize { frames: 4, bytes: 3 * 1514 + 55 + 3 * 12 });
    assert_eq!(of(SegmentKind::Udp, 1000).wire_size(42 + 1500).bytes, 1042 + 542);
    assert_eq!(of(SegmentKind::UdpFragments, 1487).wire_size(34 + 2 * 1480), WireSize { frames: 2, bytes: 2 * 1514 + 8 });
    assert_eq!(of(SegmentKind::Tcp4, 1460).wire_size(60), WireSize { frames: 1, bytes: 60 });
    // What no frame has in front counts for nobody.
    let far = Offload { checksum: Some(PartialChecksum { start: 30_000, offset: 16 }), ..of(SegmentKind::Tcp4, 256) };
    assert!(far.wire_size(crate::MAX_FRAME_LEN).bytes < 65_557 + 256 * MAX_HEADERS);
    assert_eq!(Offload { checksum, segmentation: None }.wire_size(1514).bytes, 1514);
}

#[test]
fn a_checksum_is_written_into_transport_headers_behind_their_ports() {
    let pending = |start, offset| Offload { checksum: Some(PartialChecksum { start, offset }), segmentation: None };
    let behind = |kind: [u8; 2]| {
        let mut header = [2; ETHERNET_LEN];
        header[12..].copy_from_slice(&kind);
        assert!(!(0..200).any(|start| (0..4).any(|offset| pending(start, offset).fits(&header))), "the ports");
        (0..200).find(|start| pending(*start, 4).fits(&header))
    };
    let tag = [0x81, 0];
    assert_eq!([[8, 0], [0x86, 0xdd], tag, [0x88, 0xb5]].map(behind), [Some(34), Some(54), Some(38), Some(34)]);
    assert_eq!([[8, 6], [0x80, 0x35]].map(behind), [None, None], "ARP has none");
    assert!(Offload::NONE.fits(&[0; ETHERNET_LEN]));
}
