//! Which frames somebody wants to see: an expression in the words of pcap-filter(7), as `tcpdump` and Wireshark's capture filters take it.
//!
//! # Theory
//!
//! [`Filter`] is parsed once, from text. A worker asks it about frames, of which it is shown a private copy of the first [`Filter::LOOKS_AT`] bytes as they
//! are on the wire, and their length. [`Facts`] are read from these bytes once, whatever the expression is, with a bound for each step: two tags, eight extension
//! headers. An expression has at most [`Filter::MAX_TESTS`] tests, so what a frame can cost is known beforehand, whoever made it.
//!
//! Most filters are about few frames among many. [`Quick`] is what an expression needs at least and what can be said from the Ethernet header and one or two
//! words behind it; a frame without that is ruled out for the price of a comparison, and only the others are looked into.
//!
//! The words mean what they mean there, with four differences. Tags are looked behind: `host 192.0.2.1` is about tagged frames, too, and `vlan 10` says
//! nothing about the words after it. Protocols are found behind IPv6 extension headers. Ports and hosts are numbers, and `ip port` and `ip6 port` mean something. What is not among the words is refused, never ignored.

mod facts;
mod parse;
mod quick;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;

use crate::MacAddr;
use crate::wire::{ETHER_TYPE_IPV4, ETHER_TYPE_IPV6};

pub use facts::Facts;
pub use parse::ParseFilterError;
pub use quick::Quick;

/// Which frames are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// As it was written.
    text: String,
    /// Nothing: all of them.
    root: Option<Node>,
}

/// A part of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Test(Test),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
}

/// Whose address or port is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
    #[default]
    Either,
    Both,
}

/// What one primitive asks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    EtherType(u16),
    Mac(Side, MacAddr),
    Multicast,
    /// Any, or one of this number.
    Vlan(Option<u16>),
    /// Of IPv4, IPv6 or either.
    Protocol(Option<IpVersion>, u8),
    Address(Option<AddressKind>, Side, IpNet),
    /// Of these protocols; any that has ports, if there are none.
    Port(Option<u8>, Side, RangeInclusive<u16>),
    AtMost(usize),
    AtLeast(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IpVersion {
    V4,
    V6,
}

/// Where an address is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressKind {
    Ip,
    Arp,
}

/// Numbers of protocols (IANA's registry).
mod protocol {
    pub(super) const ICMP: u8 = 1;
    pub(super) const IGMP: u8 = 2;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const ICMP6: u8 = 58;
    pub(super) const SCTP: u8 = 132;

    /// Whether its header begins with two ports.
    pub(super) const fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | SCTP)
    }
}

impl Filter {
    /// Bytes of a frame that it may be about: two tags, the largest IPv4 header or an IPv6 header with extensions, and ports.
    pub const LOOKS_AT: usize = 128;
    /// The most tests of an expression.
    pub const MAX_TESTS: usize = 64;
    /// How deep its parentheses may be nested.
    pub const MAX_DEPTH: usize = 16;
    /// The most characters of its text.
    pub const MAX_LEN: usize = 2048;

    /// As it was written; nothing, if all frames are meant.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// True if all frames are meant.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.root.is_none()
    }

    /// Whether a frame is meant of which this is known. Whatever may still become something else is.
    #[must_use]
    pub fn matches(&self, facts: &Facts) -> bool {
        facts.is_unsettled || self.root.as_ref().is_none_or(|root| root.holds(facts))
    }

    /// What a frame needs at least.
    #[must_use]
    pub fn quick(&self) -> Quick {
        self.root.as_ref().map_or(Quick::Unknown, Node::quick)
    }
}

impl FromStr for Filter {
    type Err = ParseFilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let root = parse::parse(text)?;
        Ok(Self { text: text.trim().to_owned(), root })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.text)
    }
}

impl Node {
    /// As deep as the parser lets it be.
    fn holds(&self, facts: &Facts) -> bool {
        match self {
            Self::Test(test) => test.holds(facts),
            Self::Not(node) => !node.holds(facts),
            Self::And(first, second) => first.holds(facts) && second.holds(facts),
            Self::Or(first, second) => first.holds(facts) || second.holds(facts),
        }
    }
}

impl Side {
    fn holds(self, source: bool, destination: bool) -> bool {
        match self {
            Self::Source => source,
            Self::Destination => destination,
            Self::Either => source || destination,
            Self::Both => source && destination,
        }
    }
}

impl Test {
    fn holds(&self, facts: &Facts) -> bool {
        match self {
            Self::EtherType(wanted) => facts.ether_type == Some(*wanted),
            Self::Mac(side, mac) => side.holds(facts.source == *mac, facts.destination == *mac),
            Self::Multicast => facts.destination.is_multicast(),
            Self::Vlan(None) => facts.vlans().next().is_some(),
            Self::Vlan(Some(number)) => facts.vlans().any(|vlan| vlan == *number),
            Self::Protocol(version, wanted) => {
                let version_fits = match version {
                    None => true,
                    Some(IpVersion::V4) => facts.ether_type == Some(ETHER_TYPE_IPV4),
                    Some(IpVersion::V6) => facts.ether_type == Some(ETHER_TYPE_IPV6),
                };
                version_fits && facts.protocol == Some(*wanted)
            }
            Self::Address(kind, side, net) => {
                let is_ip = matches!(facts.ether_type, Some(ETHER_TYPE_IPV4 | ETHER_TYPE_IPV6));
                let kind_fits = match kind {
                    None => true,
                    Some(AddressKind::Ip) => is_ip,
                    Some(AddressKind::Arp) => !is_ip,
                };
                let is_in = |address: IpAddr| net.contains(&address);
                kind_fits && facts.addresses.is_some_and(|(source, destination)| side.holds(is_in(source), is_in(destination)))
            }
            Self::Port(of, side, range) => {
                let protocol_fits = of.is_none() || facts.protocol == *of;
                let fits = |(source, destination): (u16, u16)| side.holds(range.contains(&source), range.contains(&destination));
                protocol_fits && facts.ports.is_some_and(fits)
            }
            Self::AtMost(len) => facts.len <= *len,
            Self::AtLeast(len) => facts.len >= *len,
        }
    }
}

/// The IPv4 address that a net is, if it is a single one.
fn single_v4(net: &IpNet) -> Option<Ipv4Addr> {
    match net {
        IpNet::V4(net) if net.prefix_len() == 32 => Some(net.addr()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
