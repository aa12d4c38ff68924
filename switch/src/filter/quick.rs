//! What rules most frames out at a glance.

use super::{AddressKind, IpVersion, Node, Side, Test, ether_type, protocol, single_v4};
use crate::EthernetHeader;
use crate::vlan::TagKind;

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

/// Bytes before the protocol, the addresses and the ports of an IPv4 packet without options; of an IPv6 packet without extension headers.
const IPV4_START: usize = EthernetHeader::LEN;
const IPV4_ADDRESSES: usize = EthernetHeader::LEN + 12;
const IPV4_PORTS: usize = EthernetHeader::LEN + 20;
const IPV6_START: usize = EthernetHeader::LEN;
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
            _ if TagKind::of(ether_type).is_some() => false,
            Self::EtherTypes(types) => !types.contains(&ether_type),
            Self::Address(address) => match ether_type {
                ether_type::IPV4 => read(IPV4_ADDRESSES).is_some_and(|[a, b, c, d, e, f, g, h]| {
                    u32::from_be_bytes([a, b, c, d]) != address && u32::from_be_bytes([e, f, g, h]) != address
                }),
                ether_type::ARP | ether_type::RARP => false,
                _ => true,
            },
            Self::Protocol(protocol) => match ether_type {
                ether_type::IPV4 => read(IPV4_START + 2).is_some_and(|bytes| bytes[7] != protocol),
                ether_type::IPV6 => read(IPV6_START).is_some_and(|bytes| bytes[6] != protocol && is_last(bytes[6])),
                _ => true,
            },
            Self::Ports(first, last) => match ether_type {
                ether_type::IPV4 => {
                    read(IPV4_START).is_some_and(|bytes| bytes[0] == IPV4_PLAIN) && lacks_ports(read(IPV4_PORTS), first, last)
                }
                ether_type::IPV6 => {
                    read(IPV6_START).is_some_and(|bytes| is_last(bytes[6])) && lacks_ports(read(IPV6_PORTS), first, last)
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

/// No extension header of IPv6 that is looked behind.
#[inline(always)]
const fn is_last(next: u8) -> bool {
    !matches!(next, 0 | 43 | 44 | 51 | 60)
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
            Self::Protocol(Some(IpVersion::V6), _) => types(ether_type::IPV6, ether_type::IPV6),
            Self::Address(kind, _, net) => match (single_v4(net), kind) {
                (Some(address), _) => Quick::Address(address.into()),
                (None, _) if net.addr().is_ipv6() => types(ether_type::IPV6, ether_type::IPV6),
                (None, Some(AddressKind::Ip)) => types(ether_type::IPV4, ether_type::IPV4),
                (None, _) => Quick::EtherTypes([ether_type::IPV4, ether_type::ARP, ether_type::RARP]),
            },
            Self::Port(_, Side::Source | Side::Destination | Side::Either | Side::Both, range) => {
                Quick::Ports(*range.start(), *range.end())
            }
            Self::Vlan(_) => {
                Quick::EtherTypes([TagKind::Customer.ether_type(), TagKind::Service.ether_type(), TagKind::Customer.ether_type()])
            }
            Self::Multicast | Self::AtMost(_) | Self::AtLeast(_) => Quick::Unknown,
        }
    }
}

/// Protocols with ports are those that [`Quick::Ports`] may take for granted: any other has none of these ports where a filter looks for them.
const _: () = assert!(protocol::has_ports(protocol::TCP) && protocol::has_ports(protocol::UDP));
