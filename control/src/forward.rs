//! What a configuration says about ways in: ports of the host by which the outside reaches a guest.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use weft_dataplane::Forward;
use weft_switch::HostName;

use crate::values::{ValueError, excerpt, text_value};

/// The most ports of the host that lead into one network. Each takes a file descriptor.
pub const PORTS_MAX: usize = 1024;

/// A way in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardRule {
    /// The ports of the host.
    pub from: ForwardFrom,
    /// The guest's end.
    pub to: ForwardTo,
}

/// Ports of the host, as in `tcp:8080`, `udp:127.0.0.1:53` or `tcp:8000-8010`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ForwardFrom {
    udp: bool,
    /// Unspecified: all addresses of the host.
    address: Ipv4Addr,
    first: u16,
    last: u16,
}

/// Where a way in leads, as in `10.77.0.10:80`, `web:80`, or `web` for the ports that it has outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ForwardTo {
    /// The guest.
    pub host: ForwardHost,
    /// The guest's port; that of the first of several.
    pub port: Option<u16>,
}

/// A guest, as a forward names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardHost {
    /// By its address.
    Address(Ipv4Addr),
    /// By its name in the network's DNS.
    Name(HostName),
}

/// What is wrong with one end of a forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardFault {
    /// Neither `tcp:` nor `udp:` at its beginning.
    #[error("it does not say which protocol: tcp or udp")]
    NoProtocol,
    /// Another protocol.
    #[error("{0:?} is neither tcp nor udp")]
    Protocol(String),
    /// Not an address.
    #[error("{0:?} is no IPv4 address")]
    Address(String),
    /// An address of nobody in particular.
    #[error("{0} is an address for many, and no address of this host")]
    Many(Ipv4Addr),
    /// An IPv6 address.
    #[error("{0:?} is an IPv6 address, and only IPv4 is forwarded")]
    Ipv6(String),
    /// Neither an address nor a name.
    #[error("{0:?} is neither an IPv4 address nor a guest's name (letters, digits and hyphens, without a domain)")]
    Guest(String),
    /// Not a port.
    #[error("{0:?} is no port: ports are numbers from 1 to 65535")]
    Port(String),
    /// A range that ends before it begins.
    #[error("the range {first}-{last} is the wrong way round: it should be {last}-{first}")]
    Reversed {
        /// The port before the hyphen.
        first: u16,
        /// The port after it.
        last: u16,
    },
    /// More ports than may lead into one network.
    #[error("these are {0} ports, and at most {PORTS_MAX} can be forwarded")]
    TooMany(usize),
}

impl ForwardRule {
    /// True if it leads there, whether or not the port is said.
    #[must_use]
    pub fn leads_to(&self, to: &ForwardTo) -> bool {
        let port = |to: &ForwardTo| to.port.unwrap_or(self.from.first);
        self.to.host == to.host && port(&self.to) == port(to)
    }

    /// Its single ways in, when the guest has this address.
    pub fn forwards(&self, guest: Ipv4Addr) -> impl Iterator<Item = Forward> {
        let &Self { from: ForwardFrom { udp, address, first, last }, to: ForwardTo { port, .. } } = self;
        let inside = port.unwrap_or(first);
        (first..=last).map(move |outside| Forward {
            udp,
            bind: SocketAddrV4::new(address, outside),
            // No overflow: `check` has seen to it.
            target: SocketAddrV4::new(guest, inside + (outside - first)),
        })
    }

    /// Checks that the guest has as many ports.
    ///
    /// # Errors
    /// When they would go beyond the last that there is.
    pub fn check(&self) -> Result<(), ValueError> {
        let inside = self.to.port.unwrap_or(self.from.first);
        let fits = inside.checked_add(self.from.last - self.from.first).is_some();
        fits.then_some(()).ok_or_else(|| ValueError::ForwardBeyond { from: self.from.to_string(), to: self.to.to_string() })
    }
}

impl ForwardFrom {
    fn read(text: &str) -> Result<Self, ForwardFault> {
        let (protocol, rest) = text.split_once(':').unwrap_or((text, ""));
        let udp = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => false,
            "udp" => true,
            // Only ports, or an address with them.
            other if other.bytes().all(|byte| byte.is_ascii_digit() || b".-[".contains(&byte)) => {
                return Err(ForwardFault::NoProtocol);
            }
            _ => return Err(ForwardFault::Protocol(excerpt(protocol))),
        };
        let (address, ports) = match rest.rsplit_once(':') {
            Some((address, ports)) => (host_address(address)?, ports),
            None => (Ipv4Addr::UNSPECIFIED, rest),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (port(first)?, port(last)?);
        if last < first {
            return Err(ForwardFault::Reversed { first, last });
        }
        let from = Self { udp, address, first, last };
        if from.count() > PORTS_MAX { Err(ForwardFault::TooMany(from.count())) } else { Ok(from) }
    }

    /// How many ports there are.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    /// True if one port of the host would be in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let same_address = self.address == other.address || self.address.is_unspecified() || other.address.is_unspecified();
        self.udp == other.udp && same_address && self.first <= other.last && other.first <= self.last
    }
}

impl FromStr for ForwardFrom {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::read(text).map_err(|fault| ValueError::ForwardFrom { text: excerpt(text), fault })
    }
}

impl FromStr for ForwardTo {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::read(text).map_err(|fault| ValueError::ForwardTo { text: excerpt(text), fault })
    }
}

impl ForwardTo {
    fn read(text: &str) -> Result<Self, ForwardFault> {
        if is_ipv6(text) {
            return Err(ForwardFault::Ipv6(excerpt(text)));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, digits)) => (host, Some(port(digits)?)),
            None => (text, None),
        };
        // What could only be an address is not taken for a name.
        let looks_like_address = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let host = match host.parse::<Ipv4Addr>() {
            Ok(address) => ForwardHost::Address(address),
            Err(_) if looks_like_address => return Err(ForwardFault::Address(excerpt(host))),
            Err(_) if is_ipv6(host) => return Err(ForwardFault::Ipv6(excerpt(host))),
            Err(_) => ForwardHost::Name(host.parse().map_err(|_| ForwardFault::Guest(excerpt(host)))?),
        };
        Ok(Self { host, port })
    }
}

/// An address of this host.
fn host_address(text: &str) -> Result<Ipv4Addr, ForwardFault> {
    let fault = || if is_ipv6(text) { ForwardFault::Ipv6(excerpt(text)) } else { ForwardFault::Address(excerpt(text)) };
    let address: Ipv4Addr = text.parse().map_err(|_| fault())?;
    if address.is_multicast() || address.is_broadcast() { Err(ForwardFault::Many(address)) } else { Ok(address) }
}

/// As it is written alone, or in front of a port.
fn is_ipv6(text: &str) -> bool {
    text.trim_start_matches('[').trim_end_matches(']').parse::<Ipv6Addr>().is_ok()
}

/// A port by its number; there is no port 0.
fn port(digits: &str) -> Result<u16, ForwardFault> {
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    number.filter(|&number| number != 0).ok_or_else(|| ForwardFault::Port(excerpt(digits)))
}

impl fmt::Display for ForwardFrom {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.udp { "udp" } else { "tcp" };
        let address = if self.address.is_unspecified() { String::new() } else { format!("{}:", self.address) };
        let last = if self.last == self.first { String::new() } else { format!("-{}", self.last) };
        formatter.pad(&format!("{protocol}:{address}{}{last}", self.first))
    }
}

impl fmt::Display for ForwardTo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        formatter.pad(&format!("{}{port}", self.host))
    }
}

impl fmt::Display for ForwardHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => fmt::Display::fmt(address, formatter),
            Self::Name(name) => formatter.pad(name.as_str()),
        }
    }
}

impl From<ForwardFrom> for String {
    fn from(from: ForwardFrom) -> Self {
        from.to_string()
    }
}

impl From<ForwardTo> for String {
    fn from(to: ForwardTo) -> Self {
        to.to_string()
    }
}

text_value!(ForwardFrom, "ForwardFrom", {
    "type": "string",
    "description": "Ports of the host, as in tcp:8080, udp:127.0.0.1:53 or tcp:8000-8010.",
    "pattern": "^([Tt][Cc][Pp]|[Uu][Dd][Pp]):([0-9.]+:)?[0-9]+(-[0-9]+)?$",
});
text_value!(ForwardTo, "ForwardTo", {
    "type": "string",
    "description": "The guest's address or name, and its port unless it is the one outside, as in 10.77.0.10:80 or web.",
});

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(from: &str, to: &str) -> ForwardRule {
        ForwardRule { from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    #[test]
    fn ways_in_are_read_as_they_are_written() {
        for text in ["tcp:8080", "udp:53", "tcp:8000-8010", "tcp:127.0.0.1:8080", "udp:192.0.2.1:5000-5001", "tcp:65535"] {
            assert_eq!(text.parse::<ForwardFrom>().unwrap().to_string(), text);
        }
        for text in ["10.77.0.10:80", "10.77.0.10", "web:80", "web"] {
            assert_eq!(text.parse::<ForwardTo>().unwrap().to_string(), text);
        }
        assert_eq!("TCP:80".parse::<ForwardFrom>().unwrap().to_string(), "tcp:80");
        assert_eq!("tcp:0.0.0.0:80".parse::<ForwardFrom>().unwrap().to_string(), "tcp:80");
        assert_eq!("tcp:80-80".parse::<ForwardFrom>().unwrap().to_string(), "tcp:80");
    }

    #[test]
    fn what_is_no_way_in_is_refused_with_what_to_write() {
        for (text, why) in [
            ("", "which protocol"),
            ("80", "which protocol"),
            ("192.0.2.1:80", "which protocol"),
            ("tcp", "\"\" is no port"),
            ("tcp:", "\"\" is no port"),
            ("tcp:0", "\"0\" is no port"),
            ("tcp:65536", "\"65536\" is no port"),
            ("tcp:10-9", "wrong way round: it should be 9-10"),
            ("sctp:80", "\"sctp\" is neither"),
            ("tcp:1-1025", "1025 ports"),
            ("tcp:host:80", "\"host\" is no IPv4 address"),
            ("udp:224.0.0.1:80", "224.0.0.1 is an address for many"),
            ("udp:255.255.255.255:80", "255.255.255.255 is an address for many"),
            ("tcp:10.0.0.256:80", "\"10.0.0.256\" is no IPv4 address"),
            ("tcp:::1:80", "only IPv4"),
            ("tcp:[::1]:80", "only IPv4"),
            ("tcp:+80", "\"+80\" is no port"),
        ] {
            let message = text.parse::<ForwardFrom>().unwrap_err().to_string();
            assert!(message.contains(why) && message.contains("tcp:8080"), "{text:?} gave {message}");
        }
        for (text, why) in [
            ("", "neither an IPv4 address nor a guest's name"),
            (":80", "neither an IPv4 address nor a guest's name"),
            ("web:", "\"\" is no port"),
            ("web:0", "\"0\" is no port"),
            ("web:x", "\"x\" is no port"),
            ("10.77.0:80", "\"10.77.0\" is no IPv4 address"),
            ("10.77.0.300", "\"10.77.0.300\" is no IPv4 address"),
            ("a.b:80", "\"a.b\" is neither"),
            ("-a:1", "\"-a\" is neither"),
            ("web:80:81", "\"web:80\" is neither"),
            ("fe80::1", "only IPv4"),
            ("[fe80::1]:80", "only IPv4"),
        ] {
            let message = text.parse::<ForwardTo>().unwrap_err().to_string();
            assert!(message.contains(why) && message.contains("10.77.0.10:80"), "{text:?} gave {message}");
        }
    }

    #[test]
    fn a_range_leads_to_as_many_ports() {
        let guest = Ipv4Addr::new(10, 77, 0, 10);
        let ends = |rule: &ForwardRule| rule.forwards(guest).map(|way| (way.bind.port(), way.target.port())).collect::<Vec<_>>();
        assert_eq!(ends(&rule("tcp:8000-8002", "web:80")), [(8000, 80), (8001, 81), (8002, 82)]);
        assert_eq!(ends(&rule("udp:8000-8001", "web")), [(8000, 8000), (8001, 8001)]);
        assert_eq!(ends(&rule("tcp:65535", "web:65535")), [(65535, 65535)]);
        assert!(rule("tcp:8000-8002", "web:65533").check().is_ok());
        let message = rule("tcp:8000-8002", "web:65534").check().unwrap_err().to_string();
        assert!(message.contains("65535"), "{message}");
    }

    #[test]
    fn ports_of_the_host_are_taken_once() {
        let overlaps = |one: &str, other: &str| {
            let (one, other) = (one.parse::<ForwardFrom>().unwrap(), other.parse::<ForwardFrom>().unwrap());
            assert_eq!(one.overlaps(&other), other.overlaps(&one));
            one.overlaps(&other)
        };
        assert!(overlaps("tcp:80", "tcp:80"));
        assert!(overlaps("tcp:80", "tcp:127.0.0.1:80"));
        assert!(overlaps("tcp:80-90", "tcp:90-95"));
        assert!(!overlaps("tcp:80", "udp:80"));
        assert!(!overlaps("tcp:80-90", "tcp:91"));
        assert!(!overlaps("tcp:127.0.0.1:80", "tcp:127.0.0.2:80"));
    }
}
