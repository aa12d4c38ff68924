//! Frames for guests: the headers in front of what came from a socket, and small frames as a whole.

use std::net::SocketAddrV4;

use super::error::{IcmpError, Subject};
use super::tcp::Segment;
use super::tcp::segment::CHECKSUM_AT as TCP_CHECKSUM_AT;
use crate::wire::{ETHER_TYPE_IPV4, ETHERNET_LEN, Ipv4Draft, LinkHeader, TCP, UDP, internet_checksum};
use crate::{MacAddr, Offload, PartialChecksum, SegmentKind, Segmentation};

const IPV4_LEN: usize = 20;
const UDP_LEN: usize = 8;
const UDP_CHECKSUM_AT: u16 = 6;
/// Where the transport header of every frame from here begins.
const TRANSPORT_AT: usize = ETHERNET_LEN + IPV4_LEN;
const TTL: u8 = 64;
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];

/// Bytes of the headers in front of TCP data (no options).
pub const TCP_HEADERS_LEN: usize = TRANSPORT_AT + 20;
/// Bytes of the headers in front of a UDP payload.
pub const UDP_HEADERS_LEN: usize = TRANSPORT_AT + UDP_LEN;

/// Whom a frame is for, and who it comes from on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The gateway's MAC address.
    pub gateway: MacAddr,
    /// The guest's.
    pub guest: MacAddr,
}

impl Link {
    fn write(self, into: &mut Vec<u8>) {
        let header = LinkHeader { destination: self.guest, source: self.gateway, ether_type: ETHER_TYPE_IPV4 };
        into.extend_from_slice(&header.to_bytes());
    }
}

/// Writes Ethernet, IPv4 and TCP header of a segment from `source` to the guest at `destination` into `into`, which is emptied before. A segment
/// without data is complete; for one with data, the checksum is only begun, and what is returned says what is left to do: to complete it, and
/// to cut what is larger than `mss`.
pub fn tcp(
    link: Link,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    segment: &Segment,
    mss: u32,
    into: &mut Vec<u8>,
) -> Offload {
    into.clear();
    link.write(into);
    let len = IPV4_LEN + segment.header_len() + segment.payload_len as usize;
    ipv4(source, destination, TCP, len, into);
    segment.write(source, destination, segment.payload_len == 0, into);
    if segment.payload_len == 0 {
        return Offload::NONE;
    }
    let checksum = Some(PartialChecksum { start: TRANSPORT_AT as u16, offset: TCP_CHECKSUM_AT as u16 });
    // No truncation: a segment size comes from an MTU.
    let size = mss.min(u32::from(u16::MAX)) as u16;
    let segmentation = (segment.payload_len > mss).then_some(Segmentation { kind: SegmentKind::Tcp4, size, ecn: false });
    Offload { checksum, segmentation }
}

/// The same for a UDP datagram of `len` bytes of payload; if it has more than `size`, it stands for several, of `size` bytes each but the
/// last.
pub fn udp(link: Link, source: SocketAddrV4, destination: SocketAddrV4, len: usize, size: usize, into: &mut Vec<u8>) -> Offload {
    into.clear();
    link.write(into);
    ipv4(source, destination, UDP, IPV4_LEN + UDP_LEN + len, into);
    let [high, low] = ((UDP_LEN + len) as u16).to_be_bytes();
    let pseudo = [0, UDP, high, low];
    let sum = !internet_checksum(&[&source.ip().octets(), &destination.ip().octets(), &pseudo]);
    for word in [source.port(), destination.port(), (UDP_LEN + len) as u16, sum] {
        into.extend_from_slice(&word.to_be_bytes());
    }
    // No truncation: a datagram is no larger.
    let segmentation = (len > size).then_some(Segmentation { kind: SegmentKind::Udp, size: size as u16, ecn: false });
    Offload { checksum: Some(PartialChecksum { start: TRANSPORT_AT as u16, offset: UDP_CHECKSUM_AT }), segmentation }
}

/// A datagram that is larger than the network's MTU, in fragments, its checksum complete.
#[must_use]
pub fn udp_fragments(
    link: Link,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    payload: &[u8],
    mtu: u16,
    identification: u16,
) -> Vec<Vec<u8>> {
    Ipv4Draft::udp(source, destination, payload).frames(link.gateway, link.guest, mtu, identification)
}

/// An ICMP message as a whole, in fragments if need be.
#[must_use]
pub fn icmp(
    link: Link,
    source: std::net::Ipv4Addr,
    destination: std::net::Ipv4Addr,
    message: &[u8],
    mtu: u16,
    identification: u16,
) -> Vec<Vec<u8>> {
    let Some(([kind, code, _, _], rest)) = message.split_first_chunk() else { return Vec::new() };
    Ipv4Draft::icmp(source, destination, *kind, *code, rest).frames(link.gateway, link.guest, mtu, identification)
}

/// An ICMP error for a guest about what it had sent from `source` to `destination`.
#[must_use]
pub fn error(link: Link, error: &IcmpError, source: SocketAddrV4, destination: SocketAddrV4, subject: Subject<'_>) -> Vec<u8> {
    let draft = error.draft(source, destination, subject);
    // An error has at most 576 bytes, which every network can carry.
    draft.frames(link.gateway, link.guest, 576, 0).swap_remove(0)
}

/// A header without options for a packet of `len` bytes that must not be fragmented, so that its identification doesn't matter (RFC 6864,
/// section 4.1).
fn ipv4(source: SocketAddrV4, destination: SocketAddrV4, protocol: u8, len: usize, into: &mut Vec<u8>) {
    let mut header = [0; IPV4_LEN];
    header[0] = 0x45;
    // No truncation: whoever asks keeps to the largest packet.
    header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    header[6..8].copy_from_slice(&DONT_FRAGMENT);
    header[8] = TTL;
    header[9] = protocol;
    header[12..16].copy_from_slice(&source.ip().octets());
    header[16..20].copy_from_slice(&destination.ip().octets());
    let checksum = internet_checksum(&[&header]);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    into.extend_from_slice(&header);
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;
    use crate::nat::tcp::{Flags, Seq};

    const LINK: Link = Link { gateway: MacAddr([2; 6]), guest: MacAddr([4; 6]) };
    const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 80);
    const GUEST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 10), 40_000);

    fn check(frame: &[u8]) -> SlicedPacket<'_> {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!() };
        let header = ip.header().to_header();
        assert_eq!(header.calc_header_checksum(), header.header_checksum);
        assert_eq!((header.source, header.destination), (PEER.ip().octets(), GUEST.ip().octets()));
        assert!(header.dont_fragment);
        assert_eq!(usize::from(header.total_len), frame.len() - ETHERNET_LEN);
        packet
    }

    #[test]
    fn a_segment_without_data_is_complete() {
        let segment = Segment { seq: Seq(7), ack: Seq(8), flags: Flags::ACK, window: 9, ..Segment::default() };
        let mut frame = vec![1, 2, 3];
        assert_eq!(tcp(LINK, PEER, GUEST, &segment, 1460, &mut frame), Offload::NONE);
        let Some(TransportSlice::Tcp(header)) = &check(&frame).transport else { panic!() };
        assert_eq!(header.calc_checksum_ipv4(PEER.ip().octets(), GUEST.ip().octets()).unwrap(), header.checksum());
        assert_eq!((header.sequence_number(), header.window_size()), (7, 9));
    }

    #[test]
    fn a_large_segment_is_left_to_the_guest_to_cut() {
        let segment = Segment { flags: Flags::ACK, payload_len: 3000, ..Segment::default() };
        let mut frame = Vec::new();
        let offload = tcp(LINK, PEER, GUEST, &segment, 1460, &mut frame);
        assert_eq!(frame.len(), TCP_HEADERS_LEN);
        assert_eq!(offload.segmentation, Some(Segmentation { kind: SegmentKind::Tcp4, size: 1460, ecn: false }));
        frame.resize(TCP_HEADERS_LEN + 3000, 5);
        crate::complete_checksum(&mut frame, offload.checksum.unwrap());
        let Some(TransportSlice::Tcp(header)) = &check(&frame).transport else { panic!() };
        assert_eq!(header.calc_checksum_ipv4(PEER.ip().octets(), GUEST.ip().octets()).unwrap(), header.checksum());
    }

    #[test]
    fn a_datagram_is_complete_once_its_checksum_is() {
        let mut frame = Vec::new();
        let offload = udp(LINK, PEER, GUEST, 5, 5, &mut frame);
        assert_eq!((frame.len(), offload.segmentation), (UDP_HEADERS_LEN, None));
        frame.extend_from_slice(b"hello");
        crate::complete_checksum(&mut frame, offload.checksum.unwrap());
        let Some(TransportSlice::Udp(udp)) = &check(&frame).transport else { panic!() };
        let right = udp.to_header().calc_checksum_ipv4_raw(PEER.ip().octets(), GUEST.ip().octets(), b"hello").unwrap();
        assert_eq!((udp.checksum(), udp.payload(), udp.source_port()), (right, b"hello".as_slice(), 80));
    }

    #[test]
    fn a_datagram_larger_than_the_mtu_comes_in_fragments_rfc_4787_req_13() {
        let frames = udp_fragments(LINK, PEER, GUEST, &[7; 4000], 1500, 3);
        assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [1514, 1514, 14 + 20 + 4008 - 2 * 1480]);
    }
}
