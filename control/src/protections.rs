//! Protections of ports as they are declared, and what becomes of that when it is resolved.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use weft_switch::guard::{IpLock, Isolation, Limit, MAX_ALLOWED, Protections, StormLimits, Volume};
use weft_switch::vlan::Vlan;
use weft_switch::{MacAddr, StationLimit};

use crate::api::ProtectionInfo;
use crate::config::{Config, PortConfig};
use crate::conflict::Conflict;
use crate::values::{Bounded, Name, ValueError, excerpt};
use crate::vlans::{number_or_text, schema};

/// What a guest may be beside a host, as in `dhcp-server,router`; `none` for neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllowedParts {
    dhcp_server: bool,
    router: bool,
}

/// How much may be sent to many, as in `1000` frames or `2MB` a second; `off` for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StormRate {
    /// No limit.
    Off,
    /// Frames a second.
    Frames(u64),
    /// Bytes a second.
    Bytes(u64),
}

/// Bits a second, as in `200M` or `1G`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitRate(u64);

/// Bytes that may come at once: from those of the largest frame to a gibibyte.
pub type Burst = Bounded<65_557, 1_073_741_824>;
const _: () = assert!(Burst::MAX as u64 == Limit::MAX_BURST && Limit::MIN_BURST == 65_557);

/// The number of a group of ports that hear one another.
pub type IsolationGroup = Bounded<1, 65_535>;

/// Each sort of storm of an untrusted guest, unless something else is said: more than a guest sends that looks for all its neighbours, in frames a second.
const UNTRUSTED_STORM: StormRate = StormRate::Frames(1000);

const THOUSANDS: [(char, u64); 3] = [('k', 1_000), ('M', 1_000_000), ('G', 1_000_000_000)];

/// A whole number with `k`, `M` or `G` for thousands behind it, from 1 on.
fn scaled(text: &str) -> Option<u64> {
    let unit = THOUSANDS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(*unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1));
    let is_plain = number.bytes().all(|digit| digit.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| is_plain)?.checked_mul(factor).filter(|number| *number > 0)
}

/// The shortest text that [`scaled`] reads as this number.
fn scaled_text(number: u64) -> String {
    let unit = THOUSANDS.iter().rev().find(|(_, factor)| number.is_multiple_of(*factor));
    unit.map_or_else(|| number.to_string(), |(unit, factor)| format!("{}{unit}", number / factor))
}

impl AllowedParts {
    /// True if nothing is forbidden.
    pub(crate) fn is_all(self) -> bool {
        self == Self::ALL
    }

    const ALL: Self = Self { dhcp_server: true, router: true };
    const DHCP_SERVER: &'static str = "dhcp-server";
    const ROUTER: &'static str = "router";
}

impl FromStr for AllowedParts {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "none" {
            return Ok(Self::default());
        }
        text.split(',').try_fold(Self::default(), |parts, part| match part {
            Self::DHCP_SERVER => Ok(Self { dhcp_server: true, ..parts }),
            Self::ROUTER => Ok(Self { router: true, ..parts }),
            _ => Err(ValueError::AllowedParts(excerpt(text))),
        })
    }
}

impl fmt::Display for AllowedParts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match (self.dhcp_server, self.router) {
            (true, true) => "dhcp-server,router",
            (true, false) => Self::DHCP_SERVER,
            (false, true) => Self::ROUTER,
            (false, false) => "none",
        })
    }
}

impl StormRate {
    /// The highest, in frames or bytes.
    const MAX: u64 = 1_000_000_000_000;

    fn volume(self) -> Option<Volume> {
        match self {
            Self::Off => None,
            Self::Frames(rate) => Some(Volume::Frames(rate)),
            Self::Bytes(rate) => Some(Volume::Bytes(rate)),
        }
    }
}

impl FromStr for StormRate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let rate = |number| scaled(number).filter(|rate| *rate <= Self::MAX).ok_or_else(|| ValueError::StormRate(excerpt(text)));
        match text.strip_suffix('B') {
            _ if text == "off" => Ok(Self::Off),
            Some(bytes) => rate(bytes).map(Self::Bytes),
            None => rate(text).map(Self::Frames),
        }
    }
}

impl fmt::Display for StormRate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => formatter.write_str("off"),
            Self::Frames(rate) => formatter.write_str(&scaled_text(*rate)),
            Self::Bytes(rate) => write!(formatter, "{}B", scaled_text(*rate)),
        }
    }
}

impl BitRate {
    const MIN: u64 = 1_000;
    const MAX: u64 = 1_000_000_000_000;
}

impl FromStr for BitRate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        // As iperf3 and tc write it.
        let rate = scaled(text.strip_suffix("bit").unwrap_or(text)).filter(|rate| (Self::MIN..=Self::MAX).contains(rate));
        rate.map(Self).ok_or_else(|| ValueError::BitRate(excerpt(text)))
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&scaled_text(self.0))
    }
}

impl PortConfig {
    /// The same port without anything about protections.
    #[must_use]
    pub(crate) fn unprotected(&self) -> Self {
        let Self { network, socket, client, queues, mac, address, vlan, trunk, native, qinq, .. } = self.clone();
        Self { network, socket, client, queues, mac, address, vlan, trunk, native, qinq, ..Self::default() }
    }

    fn locks_mac(&self) -> bool {
        self.lock_mac.unwrap_or(self.untrusted)
    }

    fn locks_ip(&self) -> bool {
        self.lock_ip.unwrap_or(self.untrusted)
    }

    /// What the guest may send whose port has this MAC address.
    #[must_use]
    pub fn protections(&self, mac: MacAddr) -> Protections {
        let allowed_macs = self.allow_mac.iter().map(|mac| mac.address());
        let is_checked = self.untrusted || self.locks_ip();
        let allowed = self.allow.unwrap_or(if is_checked { AllowedParts::default() } else { AllowedParts::ALL });
        let storm = |declared: Option<StormRate>| {
            declared.unwrap_or(if self.untrusted { UNTRUSTED_STORM } else { StormRate::Off }).volume()
        };
        Protections {
            macs: self.locks_mac().then(|| std::iter::once(mac).chain(allowed_macs).collect()),
            ips: self.locks_ip().then(|| IpLock { listed: self.allow_ip.clone(), leased: true }),
            dhcp_server: allowed.dhcp_server,
            router: allowed.router,
            isolation: match self.isolation_group {
                Some(group) => Isolation::Group(group.value_u16()),
                None if self.isolated => Isolation::Isolated,
                None => Isolation::None,
            },
            storm: StormLimits {
                broadcast: storm(self.storm_broadcast),
                multicast: storm(self.storm_multicast),
                unknown: storm(self.storm_unknown),
            },
            limit_in: self.limit_in.map(|BitRate(bits)| Limit {
                bits,
                burst: self.burst_in.map_or_else(|| Limit::usual_burst(bits), |burst| burst.value().into()),
            }),
            stations: self
                .max_macs
                .map(|max| StationLimit { stations: max.value(), beyond: self.at_max_macs.unwrap_or_default().into() }),
        }
    }

    /// Checks what goes together, apart from other declarations.
    fn check_protections(&self, port: &Name) -> Result<(), Conflict> {
        let port = || port.clone();
        for (key, lock, len, locked) in [
            ("allow_mac", "lock_mac", self.allow_mac.len(), self.locks_mac()),
            ("allow_ip", "lock_ip", self.allow_ip.len(), self.locks_ip()),
        ] {
            if len > MAX_ALLOWED {
                return Err(Conflict::TooManyAllowed { port: port(), key, len });
            }
            if len > 0 && !locked {
                return Err(Conflict::AllowedWithoutLock { port: port(), key, lock });
            }
        }
        if self.isolated && self.isolation_group.is_some() {
            return Err(Conflict::IsolatedTwice { port: port() });
        }
        match (self.limit_in, self.burst_in) {
            (None, Some(_)) => Err(Conflict::BurstWithoutLimit { port: port() }),
            (Some(BitRate(bits)), Some(burst)) if u64::from(burst.value()) < Limit::least_burst(bits) => {
                Err(Conflict::BurstTooSmall { port: port(), least: Limit::least_burst(bits) })
            }
            _ => Ok(()),
        }
    }
}

impl Config {
    /// Checks what is said about protections. `has_dhcp` are networks that have DHCP.
    ///
    /// # Errors
    /// The first conflict, in the order of the ports' names.
    pub(crate) fn check_protections(&self, has_dhcp: &[&Name]) -> Result<(), Conflict> {
        for (name, port) in &self.ports {
            port.check_protections(name)?;
            let is_in_default = |vlan: Vlan| self.role(name).ok().flatten().is_none_or(|role| role.membership(vlan).is_some());
            let can_lease = has_dhcp.contains(&&port.network) && is_in_default(Vlan::customer(self.default_vlan(&port.network)));
            if port.locks_ip() && port.allow_ip.is_empty() && !can_lease {
                return Err(Conflict::LockedOut { port: name.clone(), network: port.network.clone() });
            }
        }
        Ok(())
    }
}

impl ProtectionInfo {
    /// What is said of a port's protections.
    pub(crate) fn new(port: &PortConfig, mac: MacAddr) -> Self {
        let Protections { macs, ips, dhcp_server, router, isolation, storm, limit_in, stations: _ } = port.protections(mac);
        Self {
            untrusted: port.untrusted,
            macs,
            ips: ips.map(|lock| lock.listed),
            allow: AllowedParts { dhcp_server, router },
            isolated: isolation == Isolation::Isolated,
            isolation_group: if let Isolation::Group(group) = isolation { Some(group) } else { None },
            storm_broadcast: storm.broadcast.map(StormRate::from),
            storm_multicast: storm.multicast.map(StormRate::from),
            storm_unknown: storm.unknown.map(StormRate::from),
            limit_in: limit_in.map(|limit| BitRate(limit.bits)),
            burst_in: limit_in.map(|limit| limit.burst),
        }
    }
}

impl From<Volume> for StormRate {
    fn from(volume: Volume) -> Self {
        match volume {
            Volume::Frames(rate) => Self::Frames(rate),
            Volume::Bytes(rate) => Self::Bytes(rate),
        }
    }
}

/// Each is written as text; a rate may be a bare number, too.
macro_rules! as_text {
    ($($type:ident: $expected:literal, $schema:tt;)*) => {
        $(
            impl Serialize for $type {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.collect_str(self)
                }
            }

            impl<'de> Deserialize<'de> for $type {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    number_or_text(deserializer, $expected)
                }
            }

            schema!($type, $schema);
        )*
    };
}

as_text! {
    AllowedParts: "dhcp-server, router, both with a comma between them, or none", {
        "description": "What a guest may be beside a host.",
        "type": "string",
        "pattern": "^(none|(dhcp-server|router)(,(dhcp-server|router))*)$",
    };
    StormRate: "frames a second, as in 1000, bytes a second, as in \"2MB\", or \"off\"", {
        "description": "Frames a second, as in 1000 or \"1k\", bytes a second, as in \"2MB\", or \"off\".",
        "anyOf": [{ "type": "string", "pattern": "^(off|[0-9]+[kMG]?B?)$" }, { "type": "integer", "minimum": 1 }],
    };
    BitRate: "bits a second, as in \"200M\" or \"1G\"", {
        "description": "Bits a second, as in \"200M\" or \"1G\".",
        "anyOf": [{ "type": "string", "pattern": "^[0-9]+[kMG]?$" }, { "type": "integer", "minimum": 1000 }],
    };
}

#[cfg(test)]
#[path = "protections_tests.rs"]
mod tests;
