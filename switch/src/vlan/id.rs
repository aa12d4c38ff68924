//! The numbers of VLANs, and sets of them.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

/// The number of a VLAN, 1 to 4094 (IEEE 802.1Q-2018, 9.6: 0 and 4095 are none).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(NonZeroU16);

/// Numbers of VLANs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VlanSet(Box<[u64; WORDS]>);

const WORDS: usize = 4096 / u64::BITS as usize;

/// Why a text names no VLANs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseVlanError {
    /// Neither a number nor a range.
    #[error("{0:?} is no VLAN: write numbers from 1 to 4094, as in 10,20,100-199")]
    NoNumber(String),
    /// No VLAN has this number.
    #[error("there is no VLAN {0}: they have numbers from 1 to 4094")]
    OutOfRange(String),
    /// A range that ends before it begins.
    #[error("the range {0}-{1} is the wrong way round: write {1}-{0}")]
    WrongWayRound(VlanId, VlanId),
    /// Named again.
    #[error("VLAN {0} is there twice")]
    Twice(VlanId),
}

impl VlanId {
    /// The highest.
    pub const MAX: u16 = 4094;
    /// The VLAN of ports about which nothing else is said (IEEE 802.1Q-2018, table 9-2).
    pub const DEFAULT: Self = Self(NonZeroU16::MIN);

    /// The VLAN of this number, if there is one.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(nonzero) if number <= Self::MAX => Some(Self(nonzero)),
            _ => None,
        }
    }

    /// The number.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0.get()
    }

    /// Every VLAN, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=Self::MAX).filter_map(Self::new)
    }
}

impl VlanSet {
    /// True if the VLAN is one of them.
    #[inline(always)]
    #[must_use]
    pub fn contains(&self, id: VlanId) -> bool {
        let number = usize::from(id.number());
        // No VLAN has a number beyond; the remainder only tells the compiler.
        self.0[number / 64 % WORDS] >> (number % 64) & 1 == 1
    }

    /// Adds a VLAN; false if it was there.
    pub fn insert(&mut self, id: VlanId) -> bool {
        let number = usize::from(id.number());
        let (word, bit) = (&mut self.0[number / 64], 1 << (number % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// They, in order.
    pub fn iter(&self) -> impl Iterator<Item = VlanId> {
        VlanId::all().filter(|&id| self.contains(id))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for VlanSet {
    fn default() -> Self {
        Self(Box::new([0; WORDS]))
    }
}

impl FromIterator<VlanId> for VlanSet {
    fn from_iter<I: IntoIterator<Item = VlanId>>(ids: I) -> Self {
        let mut set = Self::default();
        for id in ids {
            set.insert(id);
        }
        set
    }
}

impl FromStr for VlanId {
    type Err = ParseVlanError;

    fn from_str(text: &str) -> Result<Self, ParseVlanError> {
        let excerpt = || text.chars().take(100).collect();
        if text.is_empty() || !text.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(ParseVlanError::NoNumber(excerpt()));
        }
        text.parse().ok().and_then(Self::new).ok_or_else(|| ParseVlanError::OutOfRange(excerpt()))
    }
}

impl FromStr for VlanSet {
    type Err = ParseVlanError;

    /// Numbers and ranges, as in `10,20,100-199`, each VLAN once.
    fn from_str(text: &str) -> Result<Self, ParseVlanError> {
        let mut set = Self::default();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (VlanId, VlanId) = (first.parse()?, last.parse()?);
            if last < first {
                return Err(ParseVlanError::WrongWayRound(first, last));
            }
            for id in (first.number()..=last.number()).filter_map(VlanId::new) {
                if !set.insert(id) {
                    return Err(ParseVlanError::Twice(id));
                }
            }
        }
        Ok(set)
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for VlanSet {
    /// As it can be read back.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for id in self.iter().map(VlanId::number) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == id => *last = id,
                _ => ranges.push((id, id)),
            }
        }
        let range = |(first, last): &(u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
        formatter.pad(&ranges.iter().map(range).collect::<Vec<_>>().join(","))
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VlanSet({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_vlan_has_the_number_0_or_4095() {
        assert_eq!(VlanId::all().count(), 4094);
        assert_eq!([0, 1, 4094, 4095, u16::MAX].map(|number| VlanId::new(number).is_some()), [false, true, true, false, false]);
    }

    #[test]
    fn lists_are_read_and_shown_in_order() {
        for (text, shown) in [("10", "10"), ("20,10", "10,20"), ("100-102,10,11", "10-11,100-102"), ("1-4094", "1-4094")] {
            let set: VlanSet = text.parse().unwrap();
            assert_eq!(set.to_string(), shown);
            assert_eq!(set.to_string().parse(), Ok(set), "what is shown can be read back");
        }
        let set: VlanSet = "10,63-65".parse().unwrap();
        assert_eq!(set.iter().map(VlanId::number).collect::<Vec<_>>(), [10, 63, 64, 65]);
        assert_eq!((set.len(), VlanSet::default().is_empty()), (4, true));
    }

    #[test]
    fn what_names_no_vlans_is_refused_with_what_to_do() {
        for (text, expected) in [
            ("", "write numbers from 1 to 4094"),
            ("10,", "write numbers from 1 to 4094"),
            ("10, 20", "write numbers from 1 to 4094"),
            ("+1", "write numbers from 1 to 4094"),
            ("1-2-3", "write numbers from 1 to 4094"),
            ("0", "there is no VLAN 0"),
            ("1-4095", "there is no VLAN 4095"),
            ("99999999999999999999", "there is no VLAN 99999999999999999999"),
            ("20-10", "the range 20-10 is the wrong way round: write 10-20"),
            ("10,5-15", "VLAN 10 is there twice"),
        ] {
            let message = text.parse::<VlanSet>().unwrap_err().to_string();
            assert!(message.contains(expected), "{text:?} gave {message}");
        }
    }
}
