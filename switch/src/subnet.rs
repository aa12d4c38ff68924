//! The IPv4 subnet of a network, and ranges of addresses in it.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// An IPv4 subnet that a network with a gateway can have: at least two hosts, at most 2^24 addresses, all of them addresses that a
/// host may have (RFC 1122, section 3.2.1.3; RFC 6890).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet(Ipv4Net);

/// Addresses from one to another, both included; at most 2^16 of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

/// A text is not a subnet or a range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not an address and a prefix length.
    #[error("{0:?} is not a subnet; one looks like 10.77.0.0/24")]
    NotASubnet(String),
    /// The address has bits below the prefix.
    #[error("{given} is not the first address of its subnet: write {meant}")]
    HostBits {
        /// What was given.
        given: Ipv4Net,
        /// The subnet that it lies in.
        meant: Ipv4Net,
    },
    /// Too few hosts or too many.
    #[error("a /{0} has too few or too many addresses: use a prefix length from 8 to 30")]
    PrefixLen(u8),
    /// Hosts can't have such addresses.
    #[error("{0} overlaps with addresses that no host on a network can have (0/8, 127/8, 169.254/16, 224/3): choose another")]
    NotForHosts(Ipv4Net),
    /// Not two addresses.
    #[error("{0:?} is not a range of addresses; one looks like 10.77.0.10-10.77.0.200")]
    NotARange(String),
    /// The range ends before it starts.
    #[error("the range {first}-{last} ends before it starts")]
    Backwards {
        /// Its first address.
        first: Ipv4Addr,
        /// Its last address.
        last: Ipv4Addr,
    },
    /// The range has too many addresses.
    #[error("the range {first}-{last} has {len} addresses; the most is {}", AddressRange::LEN_MAX)]
    TooManyAddresses {
        /// Its first address.
        first: Ipv4Addr,
        /// Its last address.
        last: Ipv4Addr,
        /// How many addresses it has.
        len: u64,
    },
}

impl Subnet {
    /// The subnet of `prefix_len` bits that starts with `network`.
    ///
    /// # Errors
    /// When no network can have it.
    pub fn new(network: Ipv4Addr, prefix_len: u8) -> Result<Self, SubnetError> {
        let given = Ipv4Net::new(network, prefix_len).map_err(|_| SubnetError::PrefixLen(prefix_len))?;
        if !(8..=30).contains(&prefix_len) {
            return Err(SubnetError::PrefixLen(prefix_len));
        }
        if given != given.trunc() {
            return Err(SubnetError::HostBits { given, meant: given.trunc() });
        }
        // Each of these is either larger than any subnet or a /16, so looking at both ends finds every overlap.
        let link_local = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
        if !is_host_address(network) || !is_host_address(given.broadcast()) || given.contains(&link_local) {
            return Err(SubnetError::NotForHosts(given));
        }
        Ok(Self(given))
    }

    /// The first address, which names the subnet.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        self.0.network()
    }

    /// The last address, which stands for all hosts.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        self.0.broadcast()
    }

    /// The mask that guests are told.
    #[must_use]
    pub fn netmask(self) -> Ipv4Addr {
        self.0.netmask()
    }

    /// How many leading bits all addresses share.
    #[must_use]
    pub fn prefix_len(self) -> u8 {
        self.0.prefix_len()
    }

    /// True for every address of the subnet, its first and its last among them.
    #[inline]
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
    }

    /// True for the addresses that a host can have: all but the first and the last.
    #[inline]
    #[must_use]
    pub fn is_host(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.network() && address != self.broadcast()
    }
}

impl AddressRange {
    /// The most addresses of a range.
    pub const LEN_MAX: u32 = 1 << 16;

    /// The range from `first` to `last`.
    ///
    /// # Errors
    /// When it ends before it starts, or has too many addresses.
    pub fn new(first: Ipv4Addr, last: Ipv4Addr) -> Result<Self, SubnetError> {
        let Some(distance) = last.to_bits().checked_sub(first.to_bits()) else {
            return Err(SubnetError::Backwards { first, last });
        };
        if distance >= Self::LEN_MAX {
            return Err(SubnetError::TooManyAddresses { first, last, len: u64::from(distance) + 1 });
        }
        Ok(Self { first, last })
    }

    /// The first address.
    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        self.first
    }

    /// The last address, which belongs to the range.
    #[must_use]
    pub fn last(self) -> Ipv4Addr {
        self.last
    }

    /// How many addresses there are, 1 to [`Self::LEN_MAX`].
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(self) -> u32 {
        self.last.to_bits() - self.first.to_bits() + 1
    }

    /// True if `address` lies in the range.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }
}

/// True for addresses that one host on an ordinary network can have: not "this network", loopback, link-local, multicast, reserved
/// or broadcast (RFC 1812, section 5.3.7; RFC 3927, section 2.7).
#[inline]
#[must_use]
pub(crate) fn is_host_address(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    !matches!((first, second), (0 | 127 | 224.., _) | (169, 254))
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let net: Ipv4Net = text.parse().map_err(|_| SubnetError::NotASubnet(text.to_owned()))?;
        Self::new(net.addr(), net.prefix_len())
    }
}

impl FromStr for AddressRange {
    type Err = SubnetError;

    /// Two addresses with `-` between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || SubnetError::NotARange(text.to_owned());
        let (first, last) = text.split_once('-').ok_or_else(error)?;
        let [first, last] = [first, last].map(|part| part.trim().parse().map_err(|_| error()));
        Self::new(first?, last?)
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for AddressRange {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_knows_its_hosts() {
        let subnet: Subnet = "10.77.0.0/24".parse().unwrap();
        assert_eq!(subnet.to_string(), "10.77.0.0/24");
        assert_eq!(subnet.netmask(), Ipv4Addr::new(255, 255, 255, 0));
        assert!(subnet.is_host(Ipv4Addr::new(10, 77, 0, 1)) && subnet.is_host(Ipv4Addr::new(10, 77, 0, 254)));
        for no_host in [[10, 77, 0, 0], [10, 77, 0, 255], [10, 77, 1, 1]] {
            assert!(!subnet.is_host(no_host.into()), "{no_host:?}");
        }
    }

    #[test]
    fn what_no_network_can_have_is_refused_with_what_to_write() {
        for text in
            ["10.77.0.0", "10.77.0.0/33", "ten/8", "10.0.0.0/7", "10.77.0.0/31", "127.0.0.0/8", "169.254.1.0/24", "168.0.0.0/7"]
        {
            assert!(text.parse::<Subnet>().is_err(), "{text} was taken");
        }
        for text in ["0.0.0.0/8", "224.0.0.0/8", "240.0.0.0/24", "169.0.0.0/8", "255.255.255.0/24"] {
            assert!(matches!(text.parse::<Subnet>(), Err(SubnetError::NotForHosts(_))), "{text} was taken");
        }
        let message = "10.77.0.1/24".parse::<Subnet>().unwrap_err().to_string();
        assert!(message.contains("write 10.77.0.0/24"), "{message}");
    }

    #[test]
    fn a_range_is_bounded_and_goes_forward() {
        let range: AddressRange = "10.77.0.10-10.77.0.19".parse().unwrap();
        assert_eq!((range.len(), range.to_string().as_str()), (10, "10.77.0.10-10.77.0.19"));
        assert!(range.contains(range.first()) && range.contains(range.last()) && !range.contains(Ipv4Addr::new(10, 77, 0, 20)));
        assert_eq!("10.0.0.0-10.0.255.255".parse::<AddressRange>().unwrap().len(), AddressRange::LEN_MAX);
        for text in ["10.0.0.2-10.0.0.1", "10.0.0.0-10.1.0.0", "0.0.0.0-255.255.255.255", "10.0.0.1", "10.0.0.1-", "a-b"] {
            assert!(text.parse::<AddressRange>().is_err(), "{text} was taken");
        }
    }
}
