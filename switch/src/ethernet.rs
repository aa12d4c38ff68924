//! The Ethernet header, as far as forwarding needs it.

use crate::MacAddr;

/// The longest frame that the switch carries, in bytes without FCS: the largest IP packet (a sender that leaves segmentation to
/// the device makes them that large), an Ethernet header and two tags.
pub const MAX_FRAME_LEN: usize = 65_535 + EthernetHeader::LEN + 2 * 4;

/// An Ethernet header (IEEE 802.3-2018, 3.2), parsed from a private copy of the frame's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EthernetHeader {
    /// Whom the frame is for.
    pub destination: MacAddr,
    /// Who sent it.
    pub source: MacAddr,
}

impl EthernetHeader {
    /// Bytes of an untagged header: two addresses and a type.
    pub const LEN: usize = 14;

    /// Reads the header from its bytes; the type that follows the addresses does not matter yet.
    #[inline]
    #[must_use]
    pub fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *bytes;
        Self { destination: MacAddr([d0, d1, d2, d3, d4, d5]), source: MacAddr([s0, s1, s2, s3, s4, s5]) }
    }
}
