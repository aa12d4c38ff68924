//! Tags, as they stand in frames.

use std::fmt;

use super::VlanId;
use crate::EthernetHeader;
use crate::ethernet::{MAX_TAGS, TAG_LEN};

/// What the type of a tag says (IEEE 802.1Q-2018, table 9-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum TagKind {
    /// A customer's tag, 0x8100: what is meant by "a VLAN" if nothing else is said.
    Customer = 0,
    /// A service provider's tag, 0x88a8, outside of those of its customers.
    Service = 1,
}

/// One broadcast domain of a network with VLANs. The VLANs that customers' tags name are others than those of service tags, even where the
/// numbers are the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vlan(u16);

/// How urgent a frame is, and whether it is dropped first: PCP and DEI of a tag (IEEE 802.1Q-2018, 9.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Priority(u16);

/// A tag that names a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The VLAN.
    pub vlan: Vlan,
    /// The priority.
    pub priority: Priority,
}

/// The outermost tag of a frame, as its sender wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterTag {
    /// Its type.
    pub kind: TagKind,
    /// Priority and number, which may be none of a VLAN.
    pub control: u16,
    /// The type of what is behind it.
    pub next: u16,
}

/// An Ethernet header with one tag.
pub const TAGGED_HEADER_LEN: usize = EthernetHeader::LEN + TAG_LEN;

impl TagKind {
    /// The kind that a type stands for, if it is that of a tag.
    #[inline(always)]
    #[must_use]
    pub const fn of(ether_type: u16) -> Option<Self> {
        match ether_type {
            0x8100 => Some(Self::Customer),
            0x88a8 => Some(Self::Service),
            _ => None,
        }
    }

    /// The type.
    #[inline(always)]
    #[must_use]
    pub const fn ether_type(self) -> u16 {
        match self {
            Self::Customer => 0x8100,
            Self::Service => 0x88a8,
        }
    }
}

impl Vlan {
    /// All that there can be, as places in a table.
    pub const COUNT: usize = 1 << (ID_BITS + 1);

    /// The VLAN that a customer's tags name.
    #[inline(always)]
    #[must_use]
    pub const fn customer(id: VlanId) -> Self {
        Self::new(TagKind::Customer, id)
    }

    /// The VLAN that service tags name.
    #[inline(always)]
    #[must_use]
    pub const fn service(id: VlanId) -> Self {
        Self::new(TagKind::Service, id)
    }

    /// The VLAN that tags of a kind name.
    #[inline(always)]
    #[must_use]
    pub const fn new(kind: TagKind, id: VlanId) -> Self {
        Self((kind as u16) << ID_BITS | id.number())
    }

    /// The kind of its tags.
    #[inline(always)]
    #[must_use]
    pub const fn kind(self) -> TagKind {
        if self.0 >> ID_BITS == 0 { TagKind::Customer } else { TagKind::Service }
    }

    /// Its number.
    ///
    /// # Panics
    /// Never: nothing makes one without.
    #[inline(always)]
    #[must_use]
    pub const fn id(self) -> VlanId {
        VlanId::new(self.0 & ID_MASK).expect("a VLAN has a number")
    }

    /// Its place in a table of [`Self::COUNT`].
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl Priority {
    const SHIFT: u32 = 12;

    /// Code point, 0 to 7, and drop eligibility.
    #[must_use]
    pub const fn new(code_point: u8, drop_eligible: bool) -> Self {
        Self(((code_point & 7) as u16) << 1 | drop_eligible as u16)
    }

    /// That of a tag.
    #[inline(always)]
    #[must_use]
    pub const fn of(control: u16) -> Self {
        Self(control >> Self::SHIFT)
    }
}

impl OuterTag {
    /// The number 0: only a priority, no VLAN (IEEE 802.1Q-2018, table 9-2).
    pub(super) const NO_VLAN: u16 = 0;
    /// The number that must not be on the wire.
    pub(super) const RESERVED: u16 = ID_MASK;

    /// The tag of a frame whose first type is `ether_type`, if that is one of a tag; `rest` follows it.
    #[inline(always)]
    #[must_use]
    pub fn of(ether_type: u16, rest: [u8; TAG_LEN]) -> Option<Self> {
        let [a, b, c, d] = rest;
        TagKind::of(ether_type).map(|kind| Self { kind, control: u16::from_be_bytes([a, b]), next: u16::from_be_bytes([c, d]) })
    }

    /// The number, 0 to 4095.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u16 {
        self.control & ID_MASK
    }

    /// True if another tag is behind it.
    #[inline(always)]
    #[must_use]
    pub const fn hides_another(self) -> bool {
        TagKind::of(self.next).is_some()
    }
}

impl Tag {
    /// The tag on the wire: its type, then priority and number.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; TAG_LEN] {
        let control = self.priority.0 << Priority::SHIFT | self.vlan.id().number();
        let ([a, b], [c, d]) = (self.vlan.kind().ether_type().to_be_bytes(), control.to_be_bytes());
        [a, b, c, d]
    }
}

/// The header with a tag in it.
#[inline(always)]
#[must_use]
pub fn push(header: &[u8; EthernetHeader::LEN], tag: [u8; TAG_LEN]) -> [u8; TAGGED_HEADER_LEN] {
    let mut tagged = [0; TAGGED_HEADER_LEN];
    tagged[..12].copy_from_slice(&header[..12]);
    tagged[12..16].copy_from_slice(&tag);
    tagged[16..].copy_from_slice(&header[12..]);
    tagged
}

/// The header with the type of what is behind its tag in the place of the tag.
#[inline(always)]
#[must_use]
pub fn pop(header: &[u8; EthernetHeader::LEN], tag: OuterTag) -> [u8; EthernetHeader::LEN] {
    let mut untagged = *header;
    untagged[12..].copy_from_slice(&tag.next.to_be_bytes());
    untagged
}

/// True if this is the type of a tag that names no VLAN (IEEE 802.1Q-2018, table 9-2): hosts take it off. `rest` follows the type.
#[must_use]
pub fn is_priority_tag(ether_type: u16, rest: &[u8]) -> bool {
    TagKind::of(ether_type).is_some() && matches!(rest, [high, low, ..] if (high & 0xf, *low) == (0, 0))
}

/// The type and the bytes behind as many tags that name no VLAN as may be in a row, which are two. Whoever sends more of them has something to hide: then the type is that of the third.
#[must_use]
pub fn behind_priority_tags(mut ether_type: u16, mut rest: &[u8]) -> (u16, &[u8]) {
    for _ in 0..MAX_TAGS {
        let ([_, _, high, low, behind @ ..], true) = (rest, is_priority_tag(ether_type, rest)) else { break };
        (ether_type, rest) = (u16::from_be_bytes([*high, *low]), behind);
    }
    (ether_type, rest)
}

const ID_BITS: u32 = 12;
const ID_MASK: u16 = (1 << ID_BITS) - 1;

impl fmt::Display for Vlan {
    /// The number; with an `s` in front of it for one of service tags.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            TagKind::Customer => formatter.pad(&self.id().to_string()),
            TagKind::Service => formatter.pad(&format!("s{}", self.id())),
        }
    }
}

impl fmt::Debug for Vlan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Vlan({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vlan() -> impl Strategy<Value = Vlan> {
        (1..=VlanId::MAX, any::<bool>()).prop_map(|(number, service)| {
            Vlan::new(if service { TagKind::Service } else { TagKind::Customer }, VlanId::new(number).unwrap())
        })
    }

    #[test]
    fn a_tag_on_the_wire_is_what_the_standard_says() {
        let tag = Tag { vlan: Vlan::customer(VlanId::new(0x123).unwrap()), priority: Priority::new(5, true) };
        assert_eq!(tag.bytes(), [0x81, 0x00, 0xb1, 0x23]);
        let tag = Tag { vlan: Vlan::service(VlanId::new(300).unwrap()), priority: Priority::default() };
        assert_eq!(tag.bytes(), [0x88, 0xa8, 0x01, 0x2c]);
    }

    #[test]
    fn vlans_of_both_kinds_have_places_of_their_own() {
        let both = VlanId::all().flat_map(|id| [Vlan::customer(id), Vlan::service(id)]);
        let places: std::collections::BTreeSet<_> = both.map(Vlan::index).collect();
        assert_eq!(places.len(), 2 * 4094);
        assert!(places.iter().all(|&place| place < Vlan::COUNT));
    }

    proptest! {
        #[test]
        fn popping_what_was_pushed_gives_the_header_back(header: [u8; 14], vlan in vlan(), control: u16) {
            let tag = Tag { vlan, priority: Priority::of(control) };
            let tagged = push(&header, tag.bytes());
            let (first, rest) = tagged.split_first_chunk().unwrap();
            let seen = OuterTag::of(u16::from_be_bytes([first[12], first[13]]), rest.try_into().unwrap()).unwrap();
            prop_assert_eq!((seen.kind, seen.number(), Priority::of(seen.control)), (vlan.kind(), vlan.id().number(), tag.priority));
            prop_assert_eq!(pop(first, seen), header);
        }
    }
}
