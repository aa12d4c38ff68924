//! What a filter can ask about a frame, read from its beginning once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::protocol;
use crate::ethernet::MAX_TAGS;
use crate::vlan::TagKind;
use crate::wire::{
    ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHER_TYPE_RARP, FRAGMENT, MAX_EXTENSIONS, extension_len, field,
    is_extension,
};
use crate::{EthernetHeader, MacAddr, TAG_LEN};

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
}

impl Facts {
    /// Reads them from the first bytes of a frame of `len`.
    #[must_use]
    pub fn of(beginning: &[u8], len: usize) -> Self {
        let mut facts = Self { len, ..Self::default() };
        let Some(header) = beginning.first_chunk::<{ EthernetHeader::LEN }>() else { return facts };
        (facts.destination, facts.source) = (MacAddr(field(header, 0)), MacAddr(field(header, 6)));
        let mut ether_type = u16::from_be_bytes([header[12], header[13]]);
        let mut rest = &beginning[EthernetHeader::LEN..];
        for vlan in &mut facts.vlans {
            if TagKind::of(ether_type).is_none() {
                break;
            }
            let Some((tag, behind)) = rest.split_first_chunk::<TAG_LEN>() else { return facts };
            *vlan = Some(u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff);
            ether_type = u16::from_be_bytes([tag[2], tag[3]]);
            rest = behind;
        }
        facts.ether_type = Some(ether_type);
        match ether_type {
            ETHER_TYPE_IPV4 => facts.read_ipv4(rest),
            ETHER_TYPE_IPV6 => facts.read_ipv6(rest),
            ETHER_TYPE_ARP | ETHER_TYPE_RARP => facts.read_arp(rest),
            _ => None,
        };
        facts
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
    fn read_ipv4(&mut self, packet: &[u8]) -> Option<()> {
        let header = packet.first_chunk::<20>()?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || header_len < 20 {
            return None;
        }
        let address = |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
        self.protocol = Some(header[9]);
        self.addresses = Some((address(12), address(16)));
        let is_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
        if is_first {
            self.read_ports(packet.get(header_len..)?);
        }
        Some(())
    }

    /// RFC 8200, sections 3 and 4.
    fn read_ipv6(&mut self, packet: &[u8]) -> Option<()> {
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
                self.read_ports(rest);
                return Some(());
            }
            let &[following, len, high, low, ..] = rest else { return None };
            if next == FRAGMENT && u16::from_be_bytes([high, low]) >= 8 {
                self.protocol = Some(following);
                return Some(());
            }
            rest = rest.get(extension_len(next, len)?..)?;
            next = following;
        }
        None
    }

    /// RFC 826, for Ethernet and IPv4.
    fn read_arp(&mut self, packet: &[u8]) -> Option<()> {
        let packet = packet.first_chunk::<28>()?;
        if packet[2..6] != [8, 0, 6, 4] {
            return None;
        }
        let address = |at: usize| IpAddr::V4(Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]));
        self.addresses = Some((address(14), address(24)));
        Some(())
    }

    fn read_ports(&mut self, segment: &[u8]) {
        let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
        if self.protocol.is_some_and(protocol::has_ports) {
            self.ports = port(0).zip(port(2));
        }
    }
}
