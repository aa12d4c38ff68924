//! Frames that the gateway and its services send.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header as EtherparseIpv4, TcpHeader as EtherparseTcp, UdpHeader as EtherparseUdp};

use super::ipv4::HEADER_LEN_MIN;
use super::transport::{ICMP, TCP, UDP};
use super::{ETHER_TYPE_IPV4, ETHERNET_LEN, LinkHeader, internet_checksum};
use crate::{MacAddr, PortId};

/// Who gets a frame that weft sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// One port, whatever the forwarding database says.
    Port(PortId),
    /// Every port of the network.
    All,
}

/// A frame that weft sends, without FCS, its checksums complete, not larger than the network's MTU allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Who gets it.
    pub to: Egress,
    /// The frame.
    pub frame: Vec<u8>,
}

/// Where a guest's address can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    /// The port behind which it is.
    pub port: PortId,
    /// Its MAC address.
    pub mac: MacAddr,
}

/// An IPv4 datagram that is to be sent, its transport header finished.
#[derive(Clone, Debug)]
pub(crate) struct Ipv4Draft {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) tos: u8,
    /// At most 65,515 bytes.
    pub(crate) payload: Vec<u8>,
}

impl Ipv4Draft {
    /// The TTL that RFC 1700 recommends and everybody uses.
    const TTL: u8 = 64;

    /// A UDP datagram with its checksum, which is never left away: some clients drop what has none.
    pub(crate) fn udp(source: SocketAddrV4, destination: SocketAddrV4, data: &[u8]) -> Self {
        let [from, to] = [source.ip().octets(), destination.ip().octets()];
        let mut header = EtherparseUdp {
            source_port: source.port(),
            destination_port: destination.port(),
            length: (EtherparseUdp::LEN + data.len()) as u16,
            checksum: 0,
        };
        // It fails for payloads only that no IPv4 packet can carry.
        header.checksum = header.calc_checksum_ipv4_raw(from, to, data).unwrap_or_default();
        Self::new(source, destination, UDP, [&header.to_bytes(), data].concat())
    }

    /// A TCP segment without payload.
    pub(crate) fn tcp(source: SocketAddrV4, destination: SocketAddrV4, mut header: EtherparseTcp) -> Self {
        header.source_port = source.port();
        header.destination_port = destination.port();
        let [from, to] = [source.ip().octets(), destination.ip().octets()];
        // It fails for payloads only that no IPv4 packet can carry.
        header.checksum = header.calc_checksum_ipv4_raw(from, to, &[]).unwrap_or_default();
        Self::new(source, destination, TCP, header.to_bytes().to_vec())
    }

    /// An ICMP message: `rest` is what follows the checksum.
    pub(crate) fn icmp(source: Ipv4Addr, destination: Ipv4Addr, kind: u8, code: u8, rest: &[u8]) -> Self {
        let checksum = internet_checksum(&[&[kind, code, 0, 0], rest]).to_be_bytes();
        let payload = [&[kind, code], &checksum[..], rest].concat();
        Self { source, destination, protocol: ICMP, tos: 0, payload }
    }

    fn new(source: SocketAddrV4, destination: SocketAddrV4, protocol: u8, payload: Vec<u8>) -> Self {
        Self { source: *source.ip(), destination: *destination.ip(), protocol, tos: 0, payload }
    }

    /// The frames that carry this datagram: one, or as many fragments as `mtu` (in bytes, at least 68) asks for (RFC 791, section 3.2).
    pub(crate) fn frames(&self, source: MacAddr, destination: MacAddr, mtu: u16, identification: u16) -> Vec<Vec<u8>> {
        let link = LinkHeader { destination, source, ether_type: ETHER_TYPE_IPV4 }.to_bytes();
        let room = usize::from(mtu) - HEADER_LEN_MIN;
        // All fragments but the last carry a multiple of eight bytes.
        let step = if self.payload.len() <= room { room.max(1) } else { room & !7 };
        let count = self.payload.len().div_ceil(step).max(1);
        (0..count)
            .map(|index| {
                let part = &self.payload[index * step..self.payload.len().min((index + 1) * step)];
                let header = self.header(identification, index * step, part.len(), index + 1 < count);
                let mut frame = Vec::with_capacity(ETHERNET_LEN + HEADER_LEN_MIN + part.len());
                frame.extend_from_slice(&link);
                frame.extend_from_slice(&header);
                frame.extend_from_slice(part);
                frame
            })
            .collect()
    }

    fn header(&self, identification: u16, offset: usize, len: usize, more_fragments: bool) -> [u8; HEADER_LEN_MIN] {
        let mut header = EtherparseIpv4 {
            identification,
            more_fragments,
            // A datagram has at most 65,515 bytes, so an offset in units of eight fits into its 13 bits.
            fragment_offset: IpFragOffset::try_new((offset / 8) as u16).unwrap_or_default(),
            total_len: (HEADER_LEN_MIN + len) as u16,
            time_to_live: Self::TTL,
            protocol: IpNumber(self.protocol),
            source: self.source.octets(),
            destination: self.destination.octets(),
            ..EtherparseIpv4::default()
        };
        header.dont_fragment = false;
        let mut bytes = [0; HEADER_LEN_MIN];
        bytes.copy_from_slice(&header.to_bytes());
        bytes[1] = self.tos;
        bytes[10..12].fill(0);
        let checksum = internet_checksum(&[&bytes]);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}
