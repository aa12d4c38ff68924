//! The Ethernet header, as far as forwarding needs it.

use crate::MacKey;

/// The longest frame that the switch carries, in bytes without FCS: the largest IP packet (a sender that leaves segmentation to
/// the device makes them that large), an Ethernet header and two tags.
pub const MAX_FRAME_LEN: usize = 65_535 + EthernetHeader::LEN + MAX_TAGS * TAG_LEN;

/// Bytes of a tag (IEEE 802.1Q-2018, 9.3).
pub const TAG_LEN: usize = 4;
/// Tags of a frame that are looked behind.
pub(crate) const MAX_TAGS: usize = 2;

/// An Ethernet header (IEEE 802.3-2018, 3.2), parsed from a private copy of the frame's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EthernetHeader {
    /// Whom the frame is for.
    pub destination: MacKey,
    /// Who sent it.
    pub source: MacKey,
}

impl EthernetHeader {
    /// Bytes of an untagged header: two addresses and a type.
    pub const LEN: usize = 14;

    /// Reads the header from its bytes; the type that follows the addresses does not matter yet.
    #[inline(always)]
    #[must_use]
    pub fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, rest @ ..] = *bytes;
        let [g, h, ..] = rest;
        Self { destination: MacKey::read([a, b, c, d, e, f, g, h]), source: MacKey::read(rest) }
    }
}
