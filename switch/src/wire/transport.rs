//! UDP (RFC 768), TCP (RFC 9293) and ICMP (RFC 792) as far as the gateway itself reads them.

use std::borrow::Cow;
use std::net::SocketAddrV4;

use etherparse::{TcpHeaderSlice, UdpHeaderSlice};

use super::build::Station;
use super::internet_checksum;
use super::ipv4::{Ipv4Header, Ipv4Packet};
use crate::DropReason;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// A UDP datagram from a guest, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpDatagram<'a> {
    /// Who sent it.
    pub station: Station,
    /// Address and UDP port of the sender.
    pub source: SocketAddrV4,
    /// Address and UDP port it is for.
    pub destination: SocketAddrV4,
    /// What it carries.
    pub payload: Cow<'a, [u8]>,
}

/// A UDP header whose length fits its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UdpHeader {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// Bytes of header and payload.
    len: usize,
}

/// A TCP header, as far as refusing a connection needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpHeader {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) ack: bool,
    /// Bytes of payload.
    pub(crate) payload_len: u32,
}

/// An ICMP message with a right checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IcmpMessage<'a> {
    /// Somebody asks for the same bytes back: all that follows the checksum.
    EchoRequest(&'a [u8]),
    /// The answer to such a request.
    EchoReply,
    /// An error about a packet that was sent earlier.
    Error,
    /// Anything else.
    Other,
}

impl UdpDatagram<'_> {
    /// The same, with a copy of what it carries.
    #[must_use]
    pub fn into_owned(self) -> UdpDatagram<'static> {
        let Self { station, source, destination, payload } = self;
        UdpDatagram { station, source, destination, payload: Cow::Owned(payload.into_owned()) }
    }
}

impl UdpHeader {
    /// Reads the header of `packet`, which is a whole datagram.
    ///
    /// # Errors
    /// [`DropReason::BadTransport`] for a length that isn't the packet's, or a wrong checksum. A checksum that the sender left to
    /// the device (`checksum_pending`) is not looked at.
    pub(crate) fn parse(packet: &Ipv4Packet<'_>, checksum_pending: bool) -> Result<Self, DropReason> {
        let payload = packet.payload();
        let header = UdpHeaderSlice::from_slice(payload).map_err(|_| DropReason::BadTransport)?;
        let len = usize::from(header.length());
        if len < Self::LEN || len > payload.len() {
            return Err(DropReason::BadTransport);
        }
        // Zero says that there is none.
        let checked = !checksum_pending && header.checksum() != 0;
        if checked && transport_checksum(packet.header(), &payload[..len]) != 0 {
            return Err(DropReason::BadTransport);
        }
        Ok(Self { source_port: header.source_port(), destination_port: header.destination_port(), len })
    }

    const LEN: usize = 8;

    /// The datagram that this header begins.
    pub(crate) fn datagram<'a>(&self, station: Station, packet: Ipv4Packet<'a>) -> UdpDatagram<'a> {
        let &Ipv4Header { source, destination, .. } = packet.header();
        let payload = match packet.into_payload() {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[Self::LEN..self.len]),
            Cow::Owned(bytes) => Cow::Owned(bytes[Self::LEN..self.len].to_vec()),
        };
        UdpDatagram {
            station,
            source: SocketAddrV4::new(source, self.source_port),
            destination: SocketAddrV4::new(destination, self.destination_port),
            payload,
        }
    }
}

impl TcpHeader {
    /// Reads the header of `packet`, which is a whole datagram.
    ///
    /// # Errors
    /// As [`UdpHeader::parse`].
    pub(crate) fn parse(packet: &Ipv4Packet<'_>, checksum_pending: bool) -> Result<Self, DropReason> {
        let payload = packet.payload();
        let header = TcpHeaderSlice::from_slice(payload).map_err(|_| DropReason::BadTransport)?;
        if !checksum_pending && transport_checksum(packet.header(), payload) != 0 {
            return Err(DropReason::BadTransport);
        }
        Ok(Self {
            source_port: header.source_port(),
            destination_port: header.destination_port(),
            sequence: header.sequence_number(),
            acknowledgment: header.acknowledgment_number(),
            syn: header.syn(),
            fin: header.fin(),
            rst: header.rst(),
            ack: header.ack(),
            payload_len: (payload.len() - header.slice().len()) as u32,
        })
    }
}

impl<'a> IcmpMessage<'a> {
    /// Reads the payload of an IPv4 packet.
    ///
    /// # Errors
    /// [`DropReason::BadTransport`] for a message without a whole header or with a wrong checksum.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let [kind, code, _, _, rest @ ..] = bytes else { return Err(DropReason::BadTransport) };
        if rest.len() < 4 || internet_checksum(&[bytes]) != 0 {
            return Err(DropReason::BadTransport);
        }
        Ok(match (*kind, *code) {
            (0, 0) => Self::EchoReply,
            (8, 0) => Self::EchoRequest(rest),
            (kind, _) if is_icmp_error(kind) => Self::Error,
            _ => Self::Other,
        })
    }
}

/// True for the types that report an error about another packet (RFC 1122, section 3.2.2).
pub(crate) fn is_icmp_error(kind: u8) -> bool {
    matches!(kind, 3..=5 | 11 | 12)
}

/// The checksum of a transport header and its payload, with the pseudo-header of RFC 768 and RFC 9293, section 3.1.
pub(super) fn transport_checksum(header: &Ipv4Header, segment: &[u8]) -> u16 {
    let len = (segment.len() as u16).to_be_bytes();
    let pseudo = [0, header.protocol, len[0], len[1]];
    internet_checksum(&[&header.source.octets(), &header.destination.octets(), &pseudo, segment])
}
