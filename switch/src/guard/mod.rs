//! Protections of a port: what its guest may send, how much of it, and to whom.
//!
//! # Theory
//!
//! [`Protections`] is what was configured. Workers use three things made from it, each a stage that a batch passes before anything is decided about it.
//!
//! [`Sources`] says whether a frame is from whom it says it is from, and whether its sender may be a DHCP server or a router. It is given the beginning of
//! a frame, in private memory, and what it has seen there has to be what the receiver gets. Sources are checked as RFC 7039 (SAVI) asks for, with the addresses
//! known beforehand: those of a list, and those that the gateway has leased to the port. ARP and neighbour discovery are checked against the same, because a
//! cache that believes a false answer makes a true source worthless.
//!
//! Whatever hides its headers can't be checked, and doesn't pass: more tags than two, a long chain of extension headers, a first
//! fragment without them (RFC 7112), neighbour discovery in fragments (RFC 6980), headers that are cut short, and IEEE 802.2 where Ethernet's own types would do. The
//! rest of a fragmented datagram has no ports, and needs none: without its beginning, which was checked, it is nothing.
//!
//! [`Meters`] are token buckets: for what goes to many (storm control), and for everything (policing). A frame that is still to be cut into segments
//! counts for all of them ([`crate::Offload::wire_size`]).
//!
//! [`Isolation`] says which ports of a network hear from each other (as the private VLANs of RFC 5517 do).

mod bucket;
mod inspect;
mod meters;

pub use bucket::{Draw, TokenBucket, Volume};
pub use inspect::{Finding, GLANCED_LEN, Glance, INSPECTED_LEN, Sources};
pub use meters::{Allowance, Limit, Meters, StormLimits};

use std::net::IpAddr;

use crate::{MacAddr, StationLimit};

/// The most addresses in a list of [`Protections`].
pub const MAX_ALLOWED: usize = 16;

/// What a port's guest may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protections {
    /// The source MAC addresses that it may use, its own and at most [`MAX_ALLOWED`] more; nothing if it may use any.
    pub macs: Option<Vec<MacAddr>>,
    /// The IP addresses that it may use; nothing if it may use any.
    pub ips: Option<IpLock>,
    /// It may answer DHCP and DHCPv6 clients.
    pub dhcp_server: bool,
    /// It may say that it is a router, or that another is a better one (RFC 4861, RFC 1256, ICMP redirects).
    pub router: bool,
    /// Which ports hear from it.
    pub isolation: Isolation,
    /// How much it may send to many.
    pub storm: StormLimits,
    /// How much it may send in all.
    pub limit_in: Option<Limit>,
    /// How many stations may be behind it.
    pub stations: Option<StationLimit>,
}

/// The IP addresses of a port whose addresses are locked. Besides, it may use the link-local IPv6 address that follows from a frame's source MAC address
/// (RFC 4291, appendix A), and no address at all where a host has none yet: DHCP, duplicate address detection, router solicitation, MLD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpLock {
    /// Those of a list, at most [`MAX_ALLOWED`].
    pub listed: Vec<IpAddr>,
    /// Those that the network's gateway has leased to the port as well.
    pub leased: bool,
}

/// Which ports of a network a port reaches (RFC 5517, section 3, where they are called promiscuous, isolated and community ports).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// All.
    #[default]
    None,
    /// Those that are not isolated themselves.
    Isolated,
    /// Those, and the others of its group.
    Group(u16),
}

impl Isolation {
    /// Whether frames from a port of this kind go to one of that kind.
    #[inline]
    #[must_use]
    pub fn reaches(self, other: Self) -> bool {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => true,
            (Self::Group(here), Self::Group(there)) => here == there,
            _ => false,
        }
    }
}

impl Protections {
    /// A port that may send whatever it likes.
    pub const NONE: Self = Self {
        macs: None,
        ips: None,
        dhcp_server: true,
        router: true,
        isolation: Isolation::None,
        storm: StormLimits { broadcast: None, multicast: None, unknown: None },
        limit_in: None,
        stations: None,
    };

    /// True if nothing is to be checked.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl Default for Protections {
    fn default() -> Self {
        Self::NONE
    }
}

#[cfg(test)]
mod tests;
