//! ICMP errors from the outside, as a guest has to see them (RFC 5508, section 4.2; RFC 4787, REQ-12; RFC 5382, REQ-9).
//!
//! The kernel says which datagram of a socket an error is about and what a router said about it. The guest knows that datagram under
//! other addresses; so the packet that goes back inside the error is put together anew, as the guest had sent it.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::gateway::Refusal;
use crate::wire::{ICMP, Ipv4Draft, TCP, UDP};

/// The most bytes of the guest's packet that go back (RFC 1812, section 4.3.2.3: the whole has at most 576).
const QUOTED: usize = 576 - 20 - 8;
const TOS: u8 = 6 << 5;
const IPV4_LEN: usize = 20;

/// What somebody on the way said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Who said it.
    pub from: Ipv4Addr,
    /// Type and code (RFC 792), which stay as they are (RFC 5508, REQ-4).
    pub kind: u8,
    /// As above.
    pub code: u8,
    /// The MTU, in bytes, where the code is about that (RFC 1191); else zero.
    pub mtu: u16,
}

/// What it is about: the beginning of a packet, as the guest had sent it.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A UDP datagram with this payload.
    Udp(&'a [u8]),
    /// A TCP segment with this sequence number.
    Tcp(u32),
    /// An ICMP message: its first bytes, with the guest's identifier.
    Icmp(&'a [u8]),
}

impl IcmpError {
    /// What a gateway at `from` would say by itself.
    #[must_use]
    pub fn of_refusal(from: Ipv4Addr, refusal: Refusal) -> Self {
        let (kind, code) = refusal.icmp();
        let mtu = if let Refusal::FragmentationNeeded { mtu } = refusal { mtu } else { 0 };
        Self { from, kind, code, mtu }
    }

    /// True for the errors that a NAT has to pass on (RFC 5508, REQ-10): unreachable, time exceeded, parameter problem.
    #[must_use]
    pub fn is_passed_on(&self) -> bool {
        matches!(self.kind, 3 | 11 | 12)
    }

    /// The error for the guest that had sent `subject` from `source` to `destination`.
    pub(crate) fn draft(&self, source: SocketAddrV4, destination: SocketAddrV4, subject: Subject<'_>) -> Ipv4Draft {
        let (protocol, transport) = subject.transport(source, destination);
        let mut packet = vec![0; IPV4_LEN];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&((IPV4_LEN + transport.len()) as u16).to_be_bytes());
        packet[8] = 1;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&source.ip().octets());
        packet[16..20].copy_from_slice(&destination.ip().octets());
        let checksum = crate::wire::internet_checksum(&[&packet]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend_from_slice(&transport);
        packet.truncate(QUOTED);
        let rest = [&[0, 0], &self.mtu.to_be_bytes()[..], &packet].concat();
        Ipv4Draft { tos: TOS, ..Ipv4Draft::icmp(self.from, *source.ip(), self.kind, self.code, &rest) }
    }
}

impl Subject<'_> {
    /// The protocol, and the packet behind its IP header.
    fn transport(self, source: SocketAddrV4, destination: SocketAddrV4) -> (u8, Vec<u8>) {
        let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        match self {
            Self::Udp(payload) => (UDP, Ipv4Draft::udp(source, destination, payload).payload),
            // RFC 792 promises eight bytes.
            Self::Tcp(seq) => (TCP, [&ports[..], &seq.to_be_bytes()].concat()),
            Self::Icmp(message) => (ICMP, message.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, NetSlice, SlicedPacket, TransportSlice, icmpv4::DestUnreachableHeader};

    use super::*;
    use crate::MacAddr;

    const GUEST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 10), 4000);
    const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 53);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

    fn frame(error: IcmpError, subject: Subject<'_>) -> Vec<u8> {
        let frames = error.draft(GUEST, PEER, subject).frames(MacAddr([2; 6]), MacAddr([4; 6]), 1500, 1);
        assert_eq!(frames.len(), 1);
        frames.into_iter().next().unwrap()
    }

    #[test]
    fn an_error_keeps_its_type_and_sender_and_quotes_what_the_guest_had_sent_rfc_5508_req_4_and_5() {
        let error = IcmpError { from: ROUTER, kind: 3, code: 4, mtu: 1400 };
        let frame = frame(error, Subject::Udp(b"query"));
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!() };
        assert_eq!((ip.header().source_addr(), ip.header().destination_addr()), (ROUTER, *GUEST.ip()));
        let Some(TransportSlice::Icmpv4(icmp)) = &packet.transport else { panic!() };
        let expected = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(expected));
        assert_eq!(crate::wire::internet_checksum(&[icmp.slice()]), 0);
        let quoted = SlicedPacket::from_ip(icmp.payload()).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &quoted.net else { panic!() };
        assert_eq!((ip.header().source_addr(), ip.header().destination_addr()), (*GUEST.ip(), *PEER.ip()));
        assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
        let Some(TransportSlice::Udp(udp)) = &quoted.transport else { panic!() };
        assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (4000, 53, b"query".as_slice()));
    }

    #[test]
    fn an_error_about_a_connection_names_its_ports_and_number() {
        let error = IcmpError::of_refusal(ROUTER, Refusal::HostUnreachable);
        let frame = frame(error, Subject::Tcp(0x0102_0304));
        assert_eq!((frame[34], frame[35]), (3, 1));
        assert_eq!(frame[62..70], [0x0f, 0xa0, 0, 53, 1, 2, 3, 4]);
        assert_eq!(frame[51], TCP);
    }

    #[test]
    fn an_error_is_never_longer_than_576_bytes_rfc_1812_4_3_2_3() {
        let frame = frame(IcmpError { from: ROUTER, kind: 11, code: 0, mtu: 0 }, Subject::Udp(&[7; 9000]));
        assert_eq!(frame.len(), 14 + 576);
    }

    #[test]
    fn only_errors_that_every_host_understands_are_passed_on_rfc_5508_req_10() {
        let passed: Vec<u8> =
            (0..=255).filter(|kind| IcmpError { from: ROUTER, kind: *kind, code: 0, mtu: 0 }.is_passed_on()).collect();
        assert_eq!(passed, [3, 11, 12]);
    }
}
