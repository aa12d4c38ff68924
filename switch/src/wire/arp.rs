//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::{ETHER_TYPE_ARP, ETHER_TYPE_IPV4, LinkHeader, field};
use crate::{DropReason, MacAddr};

const LEN: usize = 28;
/// Hardware type 1, protocol IPv4, and the lengths of their addresses.
const ETHERNET_AND_IPV4: [u8; 6] = {
    let [high, low] = ETHER_TYPE_IPV4.to_be_bytes();
    [0, 1, high, low, 6, 4]
};

/// Whether somebody asks or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ArpOperation {
    Request,
    Reply,
}

/// An ARP packet whose sender can be a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ArpPacket {
    pub(crate) operation: ArpOperation,
    pub(crate) sender_mac: MacAddr,
    /// Unspecified in a probe (RFC 5227, section 1.1).
    pub(crate) sender: Ipv4Addr,
    pub(crate) target_mac: MacAddr,
    pub(crate) target: Ipv4Addr,
}

impl ArpPacket {
    /// Reads what follows the Ethernet header `link`.
    ///
    /// # Errors
    /// [`DropReason::BadArp`] for what is cut short, is about other kinds of addresses, is neither request nor reply, or names another
    /// sender than the frame does. (RFC 826 allows the last, but only those who poison caches have a use for it.)
    pub(crate) fn parse(link: &LinkHeader, bytes: &[u8]) -> Result<Self, DropReason> {
        let bytes: &[u8; LEN] = bytes.first_chunk().ok_or(DropReason::BadArp)?;
        let operation = match bytes[6..8] {
            [0, 1] => ArpOperation::Request,
            [0, 2] => ArpOperation::Reply,
            _ => return Err(DropReason::BadArp),
        };
        let sender_mac = MacAddr(field(bytes, 8));
        if bytes[..6] != ETHERNET_AND_IPV4 || sender_mac != link.source {
            return Err(DropReason::BadArp);
        }
        Ok(Self {
            operation,
            sender_mac,
            sender: field::<4>(bytes, 14).into(),
            target_mac: MacAddr(field(bytes, 18)),
            target: field::<4>(bytes, 24).into(),
        })
    }

    /// A frame with this packet for `destination`.
    pub(crate) fn frame(&self, destination: MacAddr) -> Vec<u8> {
        let link = LinkHeader { destination, source: self.sender_mac, ether_type: ETHER_TYPE_ARP };
        let operation = match self.operation {
            ArpOperation::Request => [0, 1],
            ArpOperation::Reply => [0, 2],
        };
        let pieces: [&[u8]; 7] = [
            &link.to_bytes(),
            &ETHERNET_AND_IPV4,
            &operation,
            &self.sender_mac.0,
            &self.sender.octets(),
            &self.target_mac.0,
            &self.target.octets(),
        ];
        pieces.concat()
    }
}
