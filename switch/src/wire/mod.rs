//! Headers as checked views: what the gateway and its services read of a frame, and how they write theirs.
//!
//! Parsing happens once, into types whose fields can't contradict each other; whatever fails says so with a [`DropReason`]. The
//! bytes come from a guest, so no length, offset or address in them is believed before it was compared with the rest.
//!
//! The path of ordinary frames between guests ([`crate::forward()`]) doesn't come through here.

mod arp;
mod build;
mod ipv4;
mod ipv6;
mod transport;

use etherparse::checksum::Sum16BitWords;

pub(crate) use arp::{ArpOperation, ArpPacket};
pub(crate) use build::Ipv4Draft;
pub use build::{Egress, Outgoing, Station};
pub use ipv4::{Ipv4Header, Ipv4Packet, is_fragment};
pub(crate) use ipv6::{ETHER_TYPE_IPV6, FRAGMENT, HOP_BY_HOP, ICMPV6, MAX_EXTENSIONS, extension_len, is_extension, link_local};
pub use transport::UdpDatagram;
pub(crate) use transport::{ICMP, IcmpMessage, TCP, TcpHeader, UDP, UdpHeader, is_icmp_error};

use crate::{DropReason, MacAddr};

pub(crate) const ETHERNET_LEN: usize = 14;
pub(crate) const ETHER_TYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHER_TYPE_ARP: u16 = 0x0806;
pub(crate) const ETHER_TYPE_RARP: u16 = 0x8035;

/// An Ethernet header with its type (IEEE 802.3-2018, 3.2.6). A tag counts as a type of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkHeader {
    pub(crate) destination: MacAddr,
    pub(crate) source: MacAddr,
    pub(crate) ether_type: u16,
}

impl LinkHeader {
    /// Splits a frame into its header and what follows.
    ///
    /// # Errors
    /// [`DropReason::TooShort`], and [`DropReason::BadSource`] for a source that no station can have.
    pub(crate) fn parse(frame: &[u8]) -> Result<(Self, &[u8]), DropReason> {
        let (header, rest) = frame.split_first_chunk::<ETHERNET_LEN>().ok_or(DropReason::TooShort)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, high, low] = *header;
        let source = MacAddr([g, h, i, j, k, l]);
        if source.is_multicast() || source.is_zero() {
            return Err(DropReason::BadSource);
        }
        let ether_type = u16::from_be_bytes([high, low]);
        Ok((Self { destination: MacAddr([a, b, c, d, e, f]), source, ether_type }, rest))
    }

    /// The header's bytes.
    pub(crate) fn to_bytes(self) -> [u8; ETHERNET_LEN] {
        let mut bytes = [0; ETHERNET_LEN];
        bytes[..6].copy_from_slice(&self.destination.0);
        bytes[6..12].copy_from_slice(&self.source.0);
        bytes[12..].copy_from_slice(&self.ether_type.to_be_bytes());
        bytes
    }
}

/// The checksum of RFC 1071 over several pieces, of which only the last may have an odd length. Zero for data that contain their own
/// right checksum.
pub(crate) fn internet_checksum(pieces: &[&[u8]]) -> u16 {
    let sum = pieces.iter().fold(Sum16BitWords::new(), |sum, piece| sum.add_slice(piece));
    sum.ones_complement().to_be()
}

/// The fixed-size piece of `bytes` at `at`, which the caller knows to be there.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}
