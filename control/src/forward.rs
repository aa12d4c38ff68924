//! What a configuration says about ways in: ports of the host by which the outside reaches a guest.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
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

impl ForwardRule {
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
        let error = || ValueError::ForwardFrom(excerpt(text));
        let (protocol, rest) = text.split_once(':').ok_or_else(error)?;
        let udp = match protocol {
            "tcp" => false,
            "udp" => true,
            _ => return Err(error()),
        };
        let (address, ports) = match rest.rsplit_once(':') {
            Some((address, ports)) => (address.parse().map_err(|_| error())?, ports),
            None => (Ipv4Addr::UNSPECIFIED, rest),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (port(first).ok_or_else(error)?, port(last).ok_or_else(error)?);
        if last < first || usize::from(last - first) >= PORTS_MAX {
            return Err(error());
        }
        Ok(Self { udp, address, first, last })
    }
}

impl FromStr for ForwardTo {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ValueError::ForwardTo(excerpt(text));
        let (host, port) = match text.rsplit_once(':') {
            Some((host, digits)) => (host, Some(port(digits).ok_or_else(error)?)),
            None => (text, None),
        };
        // What could only be an address is not taken for a name.
        let looks_like_address = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let host = match host.parse::<Ipv4Addr>() {
            Ok(address) => ForwardHost::Address(address),
            Err(_) if looks_like_address => return Err(error()),
            Err(_) => ForwardHost::Name(host.parse().map_err(|_| error())?),
        };
        Ok(Self { host, port })
    }
}

/// A port by its number; there is no port 0.
fn port(digits: &str) -> Option<u16> {
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    number.filter(|&number| number != 0)
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
    "pattern": "^(tcp|udp):([0-9.]+:)?[0-9]+(-[0-9]+)?$",
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
        assert_eq!("tcp:0.0.0.0:80".parse::<ForwardFrom>().unwrap().to_string(), "tcp:80");
        assert_eq!("tcp:80-80".parse::<ForwardFrom>().unwrap().to_string(), "tcp:80");
    }

    #[test]
    fn what_is_no_way_in_is_refused_with_what_to_write() {
        for text in [
            "",
            "80",
            "tcp",
            "tcp:",
            "tcp:0",
            "tcp:65536",
            "tcp:10-9",
            "sctp:80",
            "tcp:1-1025",
            "tcp:host:80",
            "tcp:::1:80",
            "tcp:+80",
        ] {
            let message = text.parse::<ForwardFrom>().unwrap_err().to_string();
            assert!(message.contains("tcp:8080"), "{text:?} gave {message}");
        }
        for text in ["", ":80", "web:", "web:0", "web:x", "10.77.0:80", "10.77.0.300", "a.b:80", "-a:1", "web:80:81"] {
            let message = text.parse::<ForwardTo>().unwrap_err().to_string();
            assert!(message.contains("10.77.0.10:80"), "{text:?} gave {message}");
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
