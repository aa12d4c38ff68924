//! What a configuration says about addresses and names: DHCP, DNS, addresses that are kept for somebody.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use weft_switch::dhcp::{ClientIdentifier, Reservation, ReservationOwner};
use weft_switch::dns::UPSTREAMS_MAX;
use weft_switch::{AddressRange, HostName};

use crate::values::{PortMac, ValueError};

/// The port of DNS servers that are written without one.
const DNS_PORT: u16 = 53;

/// Which addresses a network's DHCP server gives out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DhcpChoice {
    /// Those of the subnet that weft chooses where there is a way out, none elsewhere.
    #[default]
    Auto,
    /// There is no DHCP server.
    Off,
    /// These.
    Range(AddressRange),
}

/// Whom a network's DNS forwarder asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DnsChoice {
    /// The host's own resolvers where there is a way out; elsewhere there is no forwarder.
    #[default]
    Auto,
    /// There is no forwarder.
    Off,
    /// These.
    Servers(Vec<SocketAddr>),
}

/// An address that is kept for one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "WrittenLease", into = "WrittenLease")]
#[schemars(with = "WrittenLease")]
pub struct StaticLease {
    /// The address.
    pub address: Ipv4Addr,
    /// For whom.
    pub owner: LeaseOwner,
    /// What the host is called.
    pub hostname: Option<HostName>,
}

/// For whom an address is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseOwner {
    /// Whoever has this MAC address.
    Mac(PortMac),
    /// Whoever calls itself this (DHCP option 61).
    ClientId(ClientIdentifier),
}

/// An address that is kept for one client, as it is written: with either `mac` or `client_id`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WrittenLease {
    /// The address.
    address: Ipv4Addr,
    /// The client's MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<PortMac>,
    /// What the client calls itself in DHCP option 61: its bytes in hexadecimal, separated by `:`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    client_id: Option<ClientIdentifier>,
    /// What the host is called in DNS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    hostname: Option<HostName>,
}

impl StaticLease {
    /// The lease as the DHCP server takes it.
    #[must_use]
    pub fn reservation(&self) -> Reservation {
        let owner = match &self.owner {
            LeaseOwner::Mac(mac) => ReservationOwner::Mac(mac.address()),
            LeaseOwner::ClientId(client_id) => ReservationOwner::ClientId(client_id.clone()),
        };
        Reservation { owner, address: self.address, hostname: self.hostname.clone() }
    }
}

impl LeaseOwner {
    /// The owner, if exactly one of both is given.
    ///
    /// # Errors
    /// When both are, or neither.
    pub fn new(mac: Option<PortMac>, client_id: Option<ClientIdentifier>) -> Result<Self, ValueError> {
        match (mac, client_id) {
            (Some(mac), None) => Ok(Self::Mac(mac)),
            (None, Some(client_id)) => Ok(Self::ClientId(client_id)),
            _ => Err(ValueError::LeaseOwner),
        }
    }
}

impl TryFrom<WrittenLease> for StaticLease {
    type Error = ValueError;

    fn try_from(written: WrittenLease) -> Result<Self, Self::Error> {
        let WrittenLease { address, mac, client_id, hostname } = written;
        Ok(Self { address, owner: LeaseOwner::new(mac, client_id)?, hostname })
    }
}

impl From<StaticLease> for WrittenLease {
    fn from(lease: StaticLease) -> Self {
        let (mac, client_id) = match lease.owner {
            LeaseOwner::Mac(mac) => (Some(mac), None),
            LeaseOwner::ClientId(client_id) => (None, Some(client_id)),
        };
        Self { address: lease.address, mac, client_id, hostname: lease.hostname }
    }
}

impl FromStr for DhcpChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            range => Ok(Self::Range(range.parse()?)),
        }
    }
}

impl FromStr for DnsChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => return Ok(Self::Auto),
            "off" => return Ok(Self::Off),
            _ => {}
        }
        let error = || ValueError::DnsServers(text.chars().take(100).collect());
        let server = |word: &str| {
            let with_port = || word.parse::<SocketAddr>();
            let server = word.parse::<IpAddr>().map(|address| SocketAddr::new(address, DNS_PORT)).or_else(|_| with_port());
            server.ok().filter(|server| server.port() != 0 && !server.ip().is_unspecified() && !server.ip().is_multicast())
        };
        let servers = text.split(',').map(|word| server(word.trim()).ok_or_else(error)).collect::<Result<Vec<_>, _>>()?;
        if servers.len() > UPSTREAMS_MAX { Err(error()) } else { Ok(Self::Servers(servers)) }
    }
}

impl fmt::Display for DhcpChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.pad("auto"),
            Self::Off => formatter.pad("off"),
            Self::Range(range) => range.fmt(formatter),
        }
    }
}

impl fmt::Display for DnsChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.pad("auto"),
            Self::Off => formatter.pad("off"),
            Self::Servers(servers) => formatter.pad(&server_list(servers)),
        }
    }
}

/// DNS servers as they are written: without the usual port.
pub(crate) fn server_list(servers: &[SocketAddr]) -> String {
    let word = |server: &SocketAddr| match server.port() {
        DNS_PORT => server.ip().to_string(),
        _ => server.to_string(),
    };
    servers.iter().map(word).collect::<Vec<_>>().join(",")
}

/// The conversions that serde needs for a value that is written as text, and its form in the JSON Schema.
macro_rules! text_value {
    ($type:ident, $schema_name:literal, $description:literal) => {
        impl TryFrom<String> for $type {
            type Error = ValueError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $schema_name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $description })
            }
        }
    };
}

text_value!(DhcpChoice, "DhcpChoice", "\"auto\", \"off\", or the addresses that are given out, as in 10.77.0.10-10.77.0.200.");
text_value!(DnsChoice, "DnsChoice", "\"auto\", \"off\", or the servers that are asked, as in 192.0.2.1,192.0.2.2:5353.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["auto", "off", "10.77.0.10-10.77.0.200"] {
            assert_eq!(text.parse::<DhcpChoice>().unwrap().to_string(), text);
        }
        for text in ["auto", "off", "192.0.2.1", "192.0.2.1,2001:db8::1,[2001:db8::1]:5353,127.0.0.1:5353"] {
            assert_eq!(text.parse::<DnsChoice>().unwrap().to_string(), text);
        }
        assert_eq!("192.0.2.1:53, 192.0.2.2".parse::<DnsChoice>().unwrap().to_string(), "192.0.2.1,192.0.2.2");
    }

    #[test]
    fn what_is_no_choice_is_refused_with_what_to_write() {
        for text in ["", "on", "10.77.0.10", "10.77.0.9-10.77.0.8"] {
            assert!(text.parse::<DhcpChoice>().is_err(), "{text} was taken");
        }
        let nine = ["192.0.2.1"; 9].join(",");
        for text in ["", "on", "192.0.2.1,", "example.com", "0.0.0.0", "224.0.0.1", "192.0.2.1:0", nine.as_str()] {
            let message = text.parse::<DnsChoice>().unwrap_err().to_string();
            assert!(message.contains("at most 8 addresses"), "{text} gave {message}");
        }
    }

    #[test]
    fn a_static_lease_has_one_owner() {
        let read = |text: &str| serde_json::from_str::<StaticLease>(text);
        let text = r#"{"address":"10.77.0.9","mac":"02:00:00:00:00:09","hostname":"web"}"#;
        let lease = read(text).unwrap();
        assert_eq!(serde_json::to_string(&lease).unwrap(), text);
        assert!(matches!(read(r#"{"address":"10.77.0.9","client_id":"01:02"}"#).unwrap().owner, LeaseOwner::ClientId(_)));
        for text in [r#"{"address":"10.77.0.9"}"#, r#"{"address":"10.77.0.9","mac":"02:00:00:00:00:09","client_id":"01:02"}"#] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains("either a MAC address or a client identifier"), "{message}");
        }
    }
}
