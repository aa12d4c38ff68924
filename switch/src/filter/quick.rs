//! What rules most frames out at a glance.

use super::{AddressKind, IpVersion, Node, Test, single_v4};
use crate::EthernetHeader;
use crate::vlan::TagKind;
use crate::wire::{ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHER_TYPE_RARP, is_extension};

/// What a frame needs at least to be meant, as far as it can be seen in its Ethernet header and a few words behind that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quick {
    /// It has to be looked into.
    Unknown,
    /// One of these types.
    EtherTypes([u16; 3]),
    /// This address on either side, its first byte lowest.
    Mac(u64),
    /// IPv4 or ARP with this address on either side.
    Address(u32),
    /// IP with this protocol.
    Protocol(u8),
    /// A protocol that has ports, with one of these on either side.
    Ports(u16, u16),
}

/// Bytes before an IP packet, the addresses and the ports of one of IPv4 without options, and the ports of one of IPv6 without extension headers.
const IP_START: usize = EthernetHeader::LEN;
const IPV4_ADDRESSES: usize = EthernetHeader::LEN + 12;
const IPV4_PORTS: usize = EthernetHeader::LEN + 20;
const IPV6_PORTS: usize = EthernetHeader::LEN + 40;
/// Version and header length of such a packet.
const IPV4_PLAIN: u8 = 0x45;

impl Quick {
    /// True if a frame with this header is certainly not meant. `read` gives the eight bytes from a place on, if they can be had at once. A frame that has a tag is not ruled
    /// out but by its addresses.
    #[inline(always)]
    #[must_use]
    pub fn rules_out(self, header: &[u8; EthernetHeader::LEN], read: impl Fn(usize) -> Option<[u8; 8]>) -> bool {
        let ether_type = u16::from_be_bytes([header[12], header[13]]);
        match self {
            Self::Unknown => false,
            Self::Mac(address) => {
                // With the two bytes behind each address, so that it is one load; both comparisons, so that there is no branch.
                let (Some(destination), Some(source)) = (header.first_chunk(), header.last_chunk()) else { return false };
                let differs = |bytes| (u64::from_le_bytes(bytes) ^ address) << 16 != 0;
                differs(*destination) & differs(*source)
            }
            // The most frequent first. Both addresses at once, as they are on the wire, and no branch.
            Self::Address(address) if ether_type == ETHER_TYPE_IPV4 => read(IPV4_ADDRESSES).is_some_and(|bytes| {
                let differs = u64::from_ne_bytes(bytes) ^ (u64::from(address.to_be()) * 0x1_0000_0001);
                (differs as u32 != 0) & (differs >> 32 != 0)
            }),
            _ if TagKind::of(ether_type).is_some() => false,
            Self::EtherTypes(types) => !types.contains(&ether_type),
            Self::Address(_) => !matches!(ether_type, ETHER_TYPE_ARP | ETHER_TYPE_RARP),
            Self::Protocol(protocol) => match ether_type {
                ETHER_TYPE_IPV4 => read(IP_START + 2).is_some_and(|bytes| bytes[7] != protocol),
                ETHER_TYPE_IPV6 => read(IP_START).is_some_and(|bytes| bytes[6] != protocol && !is_extension(bytes[6])),
                _ => true,
            },
            Self::Ports(first, last) => match ether_type {
                ETHER_TYPE_IPV4 => {
                    read(IP_START).is_some_and(|bytes| bytes[0] == IPV4_PLAIN) && lacks_ports(read(IPV4_PORTS), first, last)
                }
                ETHER_TYPE_IPV6 => {
                    read(IP_START).is_some_and(|bytes| !is_extension(bytes[6])) && lacks_ports(read(IPV6_PORTS), first, last)
                }
                _ => true,
            },
        }
    }

    /// What a frame needs at least for which two things hold.
    fn and(self, other: Self) -> Self {
        if self.weight() >= other.weight() { self } else { other }
    }

    /// The same for either.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (one, same) if one == same => one,
            (Self::EtherTypes(one), Self::EtherTypes(other)) => {
                let mut both = one;
                for wanted in other {
                    // Unused places repeat the first.
                    if !both.contains(&wanted) {
                        let Some(free) = (1..both.len()).find(|&at| both[at] == both[0]) else { return Self::Unknown };
                        both[free] = wanted;
                    }
                }
                Self::EtherTypes(both)
            }
            _ => Self::Unknown,
        }
    }

    /// How much it is likely to rule out.
    fn weight(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::EtherTypes(_) => 1,
            Self::Protocol(_) => 2,
            Self::Ports(..) => 3,
            Self::Address(_) => 4,
            Self::Mac(_) => 5,
        }
    }
}

/// Whether four bytes are two ports of which neither is wanted.
#[inline(always)]
fn lacks_ports(bytes: Option<[u8; 8]>, first: u16, last: u16) -> bool {
    bytes.is_some_and(|[a, b, c, d, ..]| {
        let (source, destination) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        !(first..=last).contains(&source) && !(first..=last).contains(&destination)
    })
}

impl Node {
    pub(super) fn quick(&self) -> Quick {
        match self {
            Self::Test(test) => test.quick(),
            Self::Not(_) => Quick::Unknown,
            Self::And(first, second) => first.quick().and(second.quick()),
            Self::Or(first, second) => first.quick().or(second.quick()),
        }
    }
}

impl Test {
    fn quick(&self) -> Quick {
        let types = |one, two| Quick::EtherTypes([one, two, one]);
        match self {
            Self::EtherType(wanted) => types(*wanted, *wanted),
            Self::Mac(_, mac) => Quick::Mac(mac.as_u64().swap_bytes() >> 16),
            Self::Protocol(None | Some(IpVersion::V4), number) => Quick::Protocol(*number),
            Self::Protocol(Some(IpVersion::V6), _) => types(ETHER_TYPE_IPV6, ETHER_TYPE_IPV6),
            Self::Address(kind, _, net) => match (single_v4(net), kind) {
                (Some(address), _) => Quick::Address(address.into()),
                (None, _) if net.addr().is_ipv6() => types(ETHER_TYPE_IPV6, ETHER_TYPE_IPV6),
                (None, Some(AddressKind::Ip)) => types(ETHER_TYPE_IPV4, ETHER_TYPE_IPV4),
                (None, _) => Quick::EtherTypes([ETHER_TYPE_IPV4, ETHER_TYPE_ARP, ETHER_TYPE_RARP]),
            },
            Self::Port(_, _, range) => Quick::Ports(*range.start(), *range.end()),
            Self::Vlan(_) => {
                Quick::EtherTypes([TagKind::Customer.ether_type(), TagKind::Service.ether_type(), TagKind::Customer.ether_type()])
            }
            Self::Multicast | Self::AtMost(_) | Self::AtLeast(_) => Quick::Unknown,
        }
    }
}
