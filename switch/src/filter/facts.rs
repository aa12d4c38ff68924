//! What a filter can ask about a frame, read from its beginning once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::protocol;
use crate::ethernet::MAX_TAGS;
use crate::vlan::TagKind;
use crate::wire::{
    ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHER_TYPE_RARP, FRAGMENT, MAX_EXTENSIONS, extension_len, field,
    is_extension,
};
use crate::{EthernetHeader, MacAddr, PartialChecksum, TAG_LEN};

/// Bytes of an IPv6 fragment header (RFC 8200, section 4.5).
const FRAGMENT_LEN: usize = 8;

/// What the beginning of a frame says. What is cut off, or contradicts itself, is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Bytes of the frame, as it is on the wire.
    pub len: usize,
    /// Whom it is for.
    pub destination: MacAddr,
    /// Who sent it.
    pub source: MacAddr,
    /// The numbers of its tags, the outermost first.
    vlans: [Option<u16>; MAX_TAGS],
    /// The type behind the tags.
    pub ether_type: Option<u16>,
    /// Of IP, behind extension headers.
    pub protocol: Option<u8>,
    /// Source and destination, of IP or as ARP has them.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// Source and destination, where the protocol has them and they are in this fragment.
    pub ports: Option<(u16, u16)>,
    /// A checksum is still to be written over something of this, so that nobody knows what the frame will be.
    pub is_unsettled: bool,
}

impl Facts {
    /// Reads them from the first bytes of a frame of `len`, in which a `pending` checksum is still to be written.
    #[must_use]
    pub fn of(beginning: &[u8], len: usize, pending: Option<PartialChecksum>) -> Self {
        let mut facts = Self { len, ..Self::default() };
        let behind = facts.read(beginning);
        facts.is_unsettled = pending.is_some_and(|checksum| checksum.field() < beginning.len() - behind.len());
        facts
    }

    /// Returns what was not looked at.
    fn read<'a>(&mut self, beginning: &'a [u8]) -> &'a [u8] {
        let Some(header) = beginning.first_chunk::<{ EthernetHeader::LEN }>() else { return &[] };
        (self.destination, self.source) = (MacAddr(field(header, 0)), MacAddr(field(header, 6)));
        let mut ether_type = u16::from_be_bytes([header[12], header[13]]);
        let mut rest = &beginning[EthernetHeader::LEN..];
        for vlan in &mut self.vlans {
            if TagKind::of(ether_type).is_none() {
                break;
            }
            let Some((tag, behind)) = rest.split_first_chunk::<TAG_LEN>() else { return &[] };
            *vlan = Some(u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff);
            ether_type = u16::from_be_bytes([tag[2], tag[3]]);
            rest = behind;
        }
        self.ether_type = Some(ether_type);
        let behind = match ether_type {
            ETHER_TYPE_IPV4 => self.read_ipv4(rest),
            ETHER_TYPE_IPV6 => self.read_ipv6(rest),
            ETHER_TYPE_ARP | ETHER_TYPE_RARP => self.read_arp(rest),
            _ => Some(rest),
        };
        behind.unwrap_or_default()
    }

    /// The numbers of its tags.
    pub(super) fn vlans(&self) -> impl Iterator<Item = u16> {
        self.vlans.iter().copied().flatten()
    }

    /// The number of its outermost tag.
    #[must_use]
    pub fn outer_vlan(&self) -> Option<u16> {
        self.vlans[0]
    }

    /// RFC 791, section 3.1.
    fn read_ipv4<'a>(&mut self, packet: &'a [u8]) -> Option<&'a [u8]> {
        let header = packet.first_chunk::<20>()?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || header_len < 20 {
            return None;
        }
        let address = |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
        self.protocol = Some(header[9]);
        self.addresses = Some((address(12), address(16)));
        let is_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
        let payload = packet.get(header_len..)?;
        Some(if is_first { self.read_ports(payload) } else { payload })
    }

    /// RFC 8200, sections 3 and 4.
    fn read_ipv6<'a>(&mut self, packet: &'a [u8]) -> Option<&'a [u8]> {
        let header = packet.first_chunk::<40>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(*header[at..].first_chunk::<16>()?)));
        self.addresses = address(8).zip(address(24));
        let (mut next, mut rest) = (header[6], &packet[40..]);
        for _ in 0..MAX_EXTENSIONS {
            if !is_extension(next) {
                self.protocol = Some(next);
                return Some(self.read_ports(rest));
            }
            let &[following, len, high, low, ..] = rest else { return None };
            if next == FRAGMENT && u16::from_be_bytes([high, low]) >= 8 {
                self.protocol = Some(following);
                return rest.get(FRAGMENT_LEN..);
            }
            rest = rest.get(extension_len(next, len)?..)?;
            next = following;
        }
        None
    }

    /// RFC 826, for Ethernet and IPv4.
    fn read_arp<'a>(&mut self, packet: &'a [u8]) -> Option<&'a [u8]> {
        let (packet, behind) = packet.split_first_chunk::<28>()?;
        if packet[2..6] != [8, 0, 6, 4] {
            return None;
        }
        let address = |at: usize| IpAddr::V4(Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]));
        self.addresses = Some((address(14), address(24)));
        Some(behind)
    }

    fn read_ports<'a>(&mut self, segment: &'a [u8]) -> &'a [u8] {
        if !self.protocol.is_some_and(protocol::has_ports) {
            return segment;
        }
        let Some(([a, b, c, d], behind)) = segment.split_first_chunk() else { return &[] };
        self.ports = Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])));
        behind
    }
}
