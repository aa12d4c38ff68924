//! Names of hosts and domains, as they may stand in DNS.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a host, without a domain: letters, digits and inner hyphens, 1 to 63 of them, in lower case (RFC 952 and RFC 1123,
/// section 2.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// The name of a domain: one or more labels that could be host names, separated by dots, at most 180 bytes in lower case. (DNS allows
/// 253; the rest is left for the hosts in it.)
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

/// A text can't be a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not the name of a host.
    #[error("{0:?} can't be a host's name: use 1 to 63 letters, digits and \"-\", neither first nor last a \"-\"")]
    Host(String),
    /// Not the name of a domain.
    #[error("{0:?} can't be a domain: use names of letters, digits and \"-\" with dots between them, 180 characters at most")]
    Domain(String),
}

impl HostName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a client calls itself in DHCP option 12: its first label, if that is a name (RFC 2132, section 3.14). Some clients send a
    /// whole domain name, some end it with zeros (section 2).
    #[must_use]
    pub fn from_client(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
        text.split('.').next()?.parse().ok()
    }

    /// A host's name made from the name of its port: what can't be in it becomes a hyphen.
    #[must_use]
    pub fn from_port(port: &str) -> Option<Self> {
        let plain: String = port.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
        plain.trim_matches('-').parse().ok()
    }
}

impl DomainName {
    /// The most bytes of a domain's name.
    pub const LEN_MAX: usize = 180;

    /// The name as text, without a dot at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_label(text: &str) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    plain && (1..=63).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-')
}

impl FromStr for HostName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_label(text) { Ok(Self(text.to_ascii_lowercase())) } else { Err(NameError::Host(text.chars().take(100).collect())) }
    }
}

impl FromStr for DomainName {
    type Err = NameError;

    /// A dot at the end is left away.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() > Self::LEN_MAX || !name.split('.').all(is_label) {
            return Err(NameError::Domain(text.chars().take(100).collect()));
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for HostName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for DomainName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_those_of_rfc_1123() {
        let longest = "a".repeat(63);
        for text in ["a", "vm1", "3com", "Web-Server", longest.as_str()] {
            assert_eq!(text.parse::<HostName>().unwrap().as_str(), text.to_ascii_lowercase());
        }
        let too_long = "a".repeat(64);
        for text in ["", "-a", "a-", "a_b", "a.b", "a b", "é", "a\0", "*", too_long.as_str()] {
            assert!(text.parse::<HostName>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn domains_are_host_names_with_dots() {
        assert_eq!("Weft.internal.".parse::<DomainName>().unwrap().as_str(), "weft.internal");
        let too_long = "a.".repeat(100) + "a";
        for text in ["", ".", "a..b", ".a", "a_b.c", too_long.as_str()] {
            assert!(text.parse::<DomainName>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn what_clients_and_ports_are_called_becomes_a_name_where_possible() {
        let from_client = |bytes: &[u8]| HostName::from_client(bytes).map(String::from);
        assert_eq!(from_client(b"VM1.example.com").as_deref(), Some("vm1"));
        assert_eq!(from_client(b"vm1\0\0").as_deref(), Some("vm1"));
        for bytes in [&b""[..], b"\0", b".a", b"a\0b", b"\xff\xfe", b"my laptop"] {
            assert_eq!(from_client(bytes), None, "{bytes:?}");
        }
        assert_eq!(HostName::from_port("web_1.test").unwrap().as_str(), "web-1-test");
        assert_eq!(HostName::from_port("_"), None);
    }
}
