//! A 48-bit MAC address.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A 48-bit MAC address, in the order in which it stands on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// True for group addresses, broadcast among them: the lowest bit of the first byte (IEEE 802-2014, 8.2.2).
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// True for the all-zero address, which no station may have.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.as_u64() == 0
    }

    /// The address as the low 48 bits of a number.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The address in the low 48 bits of `value`; the rest is ignored.
    #[must_use]
    pub const fn from_u64(value: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = value.to_be_bytes();
        Self([a, b, c, d, e, f])
    }
}

/// A MAC address as the low 48 bits of a number, the first byte lowest: what a frame's first bytes are when they are read as a
/// number, and what tables are searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacKey(u64);

impl MacKey {
    const MASK: u64 = (1 << 48) - 1;

    /// The address in the first six of eight bytes.
    #[inline(always)]
    #[must_use]
    pub const fn read(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes) & Self::MASK)
    }

    /// The number.
    #[inline(always)]
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The address in the low 48 bits of `value`; the rest is ignored.
    #[must_use]
    pub const fn from_u64(value: u64) -> Self {
        Self(value & Self::MASK)
    }

    /// As [`MacAddr::is_multicast`].
    #[inline(always)]
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0 & 1 == 1
    }

    /// As [`MacAddr::is_zero`].
    #[inline(always)]
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// True for the sixteen addresses that a bridge never forwards (IEEE 802.1Q-2018, table 8-1):
    /// `01:80:c2:00:00:00` to `01:80:c2:00:00:0f`.
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        self.0 & !(0xf << 40) == 0x0000_00c2_8001
    }
}

impl From<MacAddr> for MacKey {
    #[inline(always)]
    fn from(mac: MacAddr) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        Self::read([a, b, c, d, e, f, 0, 0])
    }
}

impl From<MacKey> for MacAddr {
    fn from(key: MacKey) -> Self {
        let [a, b, c, d, e, f, ..] = key.0.to_le_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The text is not a MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address; one looks like 02:00:00:00:00:01")]
pub struct ParseMacError(String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    /// Six pairs of hexadecimal digits, separated by `:` throughout or by `-` throughout.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseMacError(text.to_owned());
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0; 6];
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(error)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_the_same_address() {
        let mac: MacAddr = "52:54:00:aB:cd:0f".parse().unwrap();
        assert_eq!(mac, MacAddr([0x52, 0x54, 0, 0xab, 0xcd, 0x0f]));
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        assert_eq!("52-54-00-ab-cd-0f".parse(), Ok(mac));
        assert_eq!(MacAddr::from_u64(mac.as_u64()), mac);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:0f:00", "5:54:00:ab:cd:0f", "+2:54:00:ab:cd:0f", "52:54-00:ab:cd:0f"] {
            assert!(text.parse::<MacAddr>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn addresses_that_a_bridge_keeps_to_itself_are_known() {
        assert!(MacKey::from("01:80:c2:00:00:0e".parse::<MacAddr>().unwrap()).is_link_local());
        assert!(!MacKey::from("01:80:c2:00:00:10".parse::<MacAddr>().unwrap()).is_link_local());
        assert!(!MacKey::from(MacAddr::BROADCAST).is_link_local());
    }
}
