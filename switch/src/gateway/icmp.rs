//! Telling a sender why its packet goes no further: ICMP errors (RFC 792; RFC 1812, section 4.3), and RST for TCP.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use etherparse::TcpHeader as EtherparseTcp;

use crate::Ipv4Packet;
use crate::wire::{ICMP, Ipv4Draft, TCP, TcpHeader, is_icmp_error};

/// The most bytes of the packet that caused an error that go back with it: the error must not exceed 576 bytes (RFC 1812, section
/// 4.3.2.3).
const QUOTED: usize = 576 - 20 - 8;
/// IP precedence 6, for errors that a router sends (RFC 1812, section 4.3.2.5).
const TOS: u8 = 6 << 5;
/// A port gets one error in this time, over a while (RFC 1812, section 4.3.2.8) …
pub(super) const INTERVAL: Duration = Duration::from_millis(20);
/// … and this many in a row.
pub(super) const BURST: u32 = 50;

/// Why a packet is refused, and so what its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing leads to that network (type 3, code 0).
    NetUnreachable,
    /// Nobody has that address (type 3, code 1).
    HostUnreachable,
    /// Nothing speaks that protocol (type 3, code 2).
    ProtocolUnreachable,
    /// Nobody listens on that port: RST for TCP, else type 3, code 3.
    PortUnreachable,
    /// It would have to be fragmented and must not be; this many bytes would pass (type 3, code 4; RFC 1191).
    FragmentationNeeded {
        /// The largest packet that would pass, in bytes.
        mtu: u16,
    },
    /// It is not allowed, or there is no room for one more (type 3, code 13; RFC 5508, section 8).
    Prohibited,
    /// It has passed as many routers as it may (type 11, code 0).
    TtlExceeded,
    /// Parts of the datagram are missing (type 11, code 1).
    ReassemblyTimeout,
}

impl Refusal {
    /// Type and code.
    pub(crate) fn icmp(self) -> (u8, u8) {
        match self {
            Self::NetUnreachable => (3, 0),
            Self::HostUnreachable => (3, 1),
            Self::ProtocolUnreachable => (3, 2),
            Self::PortUnreachable => (3, 3),
            Self::FragmentationNeeded { .. } => (3, 4),
            Self::Prohibited => (3, 13),
            Self::TtlExceeded => (11, 0),
            Self::ReassemblyTimeout => (11, 1),
        }
    }

    /// What tells the sender of `packet`, if it may be told. `gateway` is who tells it, except that a RST comes from where the
    /// connection would have been.
    pub(super) fn draft(self, gateway: Ipv4Addr, packet: &Ipv4Packet<'_>) -> Option<Ipv4Draft> {
        match (self, packet.header().protocol) {
            (Self::PortUnreachable, TCP) => reset(packet),
            _ => self.error(gateway, packet),
        }
    }

    /// RFC 1812, section 4.3.2.7: no errors about errors, nor about fragments but the first, nor to or about many.
    fn error(self, gateway: Ipv4Addr, packet: &Ipv4Packet<'_>) -> Option<Ipv4Draft> {
        let header = packet.header();
        let about_error = header.protocol == ICMP && packet.payload().first().is_none_or(|kind| is_icmp_error(*kind));
        let to_many = header.destination.is_multicast() || header.destination.is_broadcast();
        if about_error || to_many || header.fragment_offset != 0 {
            return None;
        }
        let mtu = match self {
            Self::FragmentationNeeded { mtu } => mtu.to_be_bytes(),
            _ => [0, 0],
        };
        let quoted = &packet.bytes()[..packet.bytes().len().min(QUOTED)];
        let rest = [&[0, 0], &mtu[..], quoted].concat();
        let (kind, code) = self.icmp();
        Some(Ipv4Draft { tos: TOS, ..Ipv4Draft::icmp(gateway, header.source, kind, code, &rest) })
    }
}

/// The answer to a segment for a connection that isn't there (RFC 9293, section 3.10.7.1).
fn reset(packet: &Ipv4Packet<'_>) -> Option<Ipv4Draft> {
    // Who left the checksum to the device, left it to be checked by nobody.
    let segment = TcpHeader::parse(packet, true).ok().filter(|segment| !segment.rst)?;
    let mut header = EtherparseTcp { rst: true, ..EtherparseTcp::default() };
    if segment.ack {
        header.sequence_number = segment.acknowledgment;
    } else {
        let len = segment.payload_len + u32::from(segment.syn) + u32::from(segment.fin);
        header.ack = true;
        header.acknowledgment_number = segment.sequence.wrapping_add(len);
    }
    let source = SocketAddrV4::new(packet.header().destination, segment.destination_port);
    let destination = SocketAddrV4::new(packet.header().source, segment.source_port);
    Some(Ipv4Draft::tcp(source, destination, header))
}
