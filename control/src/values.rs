//! The values that a configuration is made of, each parsed once into a type that can't be wrong.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Unexpected, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};
use weft_dataplane::WorkerSettings;
use weft_switch::dns::UPSTREAMS_MAX;
use weft_switch::vlan::ParseVlanError;
use weft_switch::{MacAddr, ParseMacError, SubnetError};

use crate::forward::ForwardFault;

/// The name of a port or a network. It is part of a file name, a QEMU option and a log line, so it is plain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, DeriveDeserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// How many queue pairs a port can have.
pub type Queues = Bounded<1, 16>;

/// Largest payload of a frame, in bytes. The lower bound is what IPv4 needs (RFC 791, section 3.2).
pub type Mtu = Bounded<68, 65_535>;

/// After how many seconds of silence a MAC address is forgotten.
pub type AgeingSeconds = Bounded<10, 86_400>;

/// How many MAC addresses a network keeps.
pub type FdbCapacity = Bounded<16, 262_144>;

/// How long an address is leased, in seconds: a minute to a year.
pub type LeaseSeconds = Bounded<60, 31_536_000>;

/// How many workers there are.
pub type WorkerCount = Bounded<1, 64>;
const _: () = assert!(WorkerCount::MAX as usize == WorkerSettings::MAX_COUNT, "the dataplane takes another number of workers");

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Bounded<const MIN: u32, const MAX: u32>(u32);

/// The MAC address of a guest: an individual address, not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, DeriveDeserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortMac(MacAddr);

/// The path of a port's socket; a relative one is below the run directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, DeriveDeserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SocketPath(String);

/// What kind of network it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, DeriveDeserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum NetworkMode {
    /// Guests have a subnet with a gateway, DHCP and DNS.
    #[default]
    Nat,
    /// Guests see the other guests of this network and nothing else.
    Private,
}

/// The processors that workers are pinned to, in turn, as taskset(1) writes them; `any`: not pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct CpuList(Vec<u16>);

/// What a worker does that finds no frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, DeriveDeserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum PollingMode {
    /// It goes on looking for a moment, then sleeps until a guest kicks.
    #[default]
    Adaptive,
    /// It goes on looking for ever.
    Always,
    /// It sleeps at once.
    Never,
}

/// A text or a number is not what it is meant to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a name.
    #[error(
        "{0:?} can't be a name: use 1 to 64 ASCII letters, digits, \"-\", \"_\" or \".\", starting with a letter, a digit or \"_\""
    )]
    Name(String),
    /// Not a number, or outside its bounds.
    #[error("{text} is out of range: give a whole number from {min} to {max}")]
    Number {
        /// What was given.
        text: String,
        /// The smallest possible.
        min: u32,
        /// The largest possible.
        max: u32,
    },
    /// Not a MAC address.
    #[error(transparent)]
    Mac(#[from] ParseMacError),
    /// A group address, or all zeros.
    #[error(
        "{0} can't be a guest's address (it is a group address or zero): the first byte must be even, as in 02:00:00:00:00:01"
    )]
    MacNotIndividual(MacAddr),
    /// Not a path that a socket can have.
    #[error("{0:?} can't be a socket path: it is empty, ends with \"/\" or contains control characters")]
    SocketPath(String),
    /// A path that no Unix socket address holds.
    #[error(
        "socket path {0:?} has {len} bytes; a Unix socket takes at most {max}: use a shorter one",
        len = .0.len(),
        max = SocketPath::LEN_MAX
    )]
    SocketPathTooLong(String),
    /// A mode of the design that this version lacks.
    #[error("mode {0:?} is not there yet; there are: nat, private")]
    ModeNotYet(String),
    /// Not a mode.
    #[error("{0:?} is no network mode; there are: nat, private")]
    Mode(String),
    /// Not the number of a VLAN, or not several.
    #[error(transparent)]
    Vlan(ParseVlanError),
    /// A name that could be a number.
    #[error("{0:?} can't be the name of a VLAN: let it start with a letter or \"_\"")]
    VlanName(String),
    /// A VLAN that is named twice.
    #[error("VLAN {0:?} is there twice: name each VLAN once")]
    VlanNameTwice(String),
    /// Not names with numbers.
    #[error("{0:?} gives no VLAN a name: write names and numbers, as in tenant-a=100,tenant-b=200")]
    VlanNames(String),
    /// Not what a guest may be.
    #[error(
        "{0:?} is nothing that a guest may be beside a host: write dhcp-server, router, both with a comma between them, or none"
    )]
    AllowedParts(String),
    /// Not how much may be sent to many.
    #[error("{0:?} is no rate: write frames a second, as in 1000 or 5k, bytes a second, as in 2MB, or off; at most 1000G")]
    StormRate(String),
    /// Not how much may be sent in all.
    #[error(
        "{0:?} is no rate: write a whole number of bits a second, as in 200M, 1500M or 1G, from 1k to 1000G; none for no limit"
    )]
    BitRate(String),
    /// Not a time.
    #[error("{0:?} is no time: write it as in 500us, 50ms or 1.5s, at most 60s")]
    Wait(String),
    /// Not what a bad network does.
    #[error(
        "{text:?} is no impairment: {why}; write as much as there is to be of loss=1%,delay=20ms±5ms,reorder=5%,duplicate=0.1%,corrupt=0.01%,rate=10M,seed=7"
    )]
    Impair {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not a subnet or a range of addresses.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// Not a list of DNS servers.
    #[error("{0:?} names no DNS servers: write at most {UPSTREAMS_MAX} addresses, as in 192.0.2.1,192.0.2.2, or auto, or off")]
    DnsServers(String),
    /// A static lease for nobody, or for two.
    #[error("an address is kept for one client: give either a MAC address or a client identifier")]
    LeaseOwner,
    /// Not ports of the host.
    #[error("{text:?} can't be forwarded: {fault}; write ports of this host as in tcp:8080, udp:127.0.0.1:53 or tcp:8000-8010")]
    ForwardFrom {
        /// What was given.
        text: String,
        /// What is wrong with it.
        fault: ForwardFault,
    },
    /// Not a guest's port.
    #[error("nothing can be forwarded to {text:?}: {fault}; write a guest and its port as in web:80 or 10.77.0.10:80")]
    ForwardTo {
        /// What was given.
        text: String,
        /// What is wrong with it.
        fault: ForwardFault,
    },
    /// A range that is longer than what is left of the guest's ports.
    #[error("{from} can't be forwarded to {to}: the last of these would be beyond port 65535")]
    ForwardBeyond {
        /// The ports of the host.
        from: String,
        /// The guest's.
        to: String,
    },
    /// Not a list of processors.
    #[error("{0:?} is no list of processors: write numbers and ranges, as in 2,3 or 2-5,8, or any")]
    CpuList(String),
    /// A number that no processor has.
    #[error("there is no processor {0}: they have numbers from 0 to {max}", max = CpuList::CPU_MAX)]
    Cpu(String),
    /// A range of processors that ends before it begins.
    #[error("the range {first}-{last} is the wrong way round: write {last}-{first}")]
    CpuRange {
        /// The number before the hyphen.
        first: u16,
        /// The number after it.
        last: u16,
    },
    /// A processor that is named twice.
    #[error("processor {0} is there twice: name each processor once")]
    CpuTwice(u16),
    /// More processors than there can be workers.
    #[error("more than {max} processors are named: name one for each worker, and there are at most {max}", max = CpuList::LEN_MAX)]
    CpuListTooLong,
    /// Not a polling mode.
    #[error("{0:?} is no polling mode; there are: {modes}", modes = PollingMode::NAMES.join(", "))]
    Polling(String),
}

impl Name {
    /// The most bytes that a name has.
    pub const LEN_MAX: usize = 64;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !plain || text.is_empty() || text.len() > Self::LEN_MAX || text.starts_with(['.', '-']) {
            return Err(ValueError::Name(excerpt(text)));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<const MIN: u32, const MAX: u32> Bounded<MIN, MAX> {
    /// The largest possible.
    pub const MAX: u32 = MAX;

    /// The number `VALUE`, checked when weft is compiled.
    #[must_use]
    pub const fn of<const VALUE: u32>() -> Self {
        const { assert!(MIN <= VALUE && VALUE <= MAX, "the constant is out of range") };
        Self(VALUE)
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The number as 16 bits, where `MAX` allows it.
    #[must_use]
    pub const fn value_u16(self) -> u16 {
        const { assert!(MAX <= u16::MAX as u32, "the bound does not fit into 16 bits") };
        self.0 as u16
    }

    fn error(text: impl fmt::Display) -> ValueError {
        ValueError::Number { text: text.to_string(), min: MIN, max: MAX }
    }
}

impl<const MIN: u32, const MAX: u32> TryFrom<i128> for Bounded<MIN, MAX> {
    type Error = ValueError;

    fn try_from(number: i128) -> Result<Self, Self::Error> {
        let value = u32::try_from(number).map_err(|_| Self::error(number))?;
        if (MIN..=MAX).contains(&value) { Ok(Self(value)) } else { Err(Self::error(number)) }
    }
}

impl<const MIN: u32, const MAX: u32> FromStr for Bounded<MIN, MAX> {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number: i128 = text.parse().map_err(|_| Self::error(format_args!("{text:?}")))?;
        Self::try_from(number)
    }
}

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number<const MIN: u32, const MAX: u32>;

        impl<const MIN: u32, const MAX: u32> Visitor<'_> for Number<MIN, MAX> {
            type Value = Bounded<MIN, MAX>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "a whole number from {MIN} to {MAX}")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
                Bounded::try_from(i128::from(number)).map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
                Bounded::try_from(i128::from(number)).map_err(E::custom)
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Self::Value, E> {
                Err(E::invalid_type(Unexpected::Float(number), &self))
            }
        }

        deserializer.deserialize_i64(Number)
    }
}

impl PortMac {
    /// The address.
    #[must_use]
    pub const fn address(self) -> MacAddr {
        self.0
    }
}

impl TryFrom<MacAddr> for PortMac {
    type Error = ValueError;

    fn try_from(mac: MacAddr) -> Result<Self, Self::Error> {
        if mac.is_multicast() || mac.is_zero() {
            return Err(ValueError::MacNotIndividual(mac));
        }
        Ok(Self(mac))
    }
}

impl FromStr for PortMac {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.parse::<MacAddr>()?)
    }
}

impl SocketPath {
    /// The most bytes of a path in a Unix socket address: 108 with the final zero (unix(7)).
    pub const LEN_MAX: usize = 107;

    /// Where the socket is, when the run directory is `run_dir`.
    #[must_use]
    pub fn below(&self, run_dir: &Path) -> PathBuf {
        run_dir.join(&self.0)
    }
}

impl FromStr for SocketPath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.ends_with('/') || text.chars().any(char::is_control) {
            return Err(ValueError::SocketPath(text.to_owned()));
        }
        if text.len() > Self::LEN_MAX {
            return Err(ValueError::SocketPathTooLong(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl NetworkMode {
    /// Every mode's name.
    pub const NAMES: [&'static str; 2] = [Self::Nat.name(), Self::Private.name()];

    /// The mode's name, as in the configuration file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Private => "private",
        }
    }
}

impl FromStr for NetworkMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "nat" => Ok(Self::Nat),
            "private" => Ok(Self::Private),
            "bridge" | "direct" | "custom" => Err(ValueError::ModeNotYet(text.to_owned())),
            _ => Err(ValueError::Mode(text.to_owned())),
        }
    }
}

impl From<NetworkMode> for &'static str {
    fn from(mode: NetworkMode) -> Self {
        mode.name()
    }
}

impl CpuList {
    /// The most processors in a list: one for each worker.
    pub const LEN_MAX: usize = WorkerSettings::MAX_COUNT;
    /// The greatest number of a processor that a worker can be pinned to (`CPU_SETSIZE`, sched_setaffinity(2)).
    pub const CPU_MAX: u16 = 1023;
    /// How a list without processors is written.
    const ANY: &'static str = "any";

    /// The processors, that of the first worker first; none: wherever the operating system puts the workers.
    #[must_use]
    pub fn cpus(&self) -> &[u16] {
        &self.0
    }
}

impl FromStr for CpuList {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == Self::ANY {
            return Ok(Self::default());
        }
        let number = |digits: &str| {
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(ValueError::CpuList(excerpt(text)));
            }
            digits.parse().ok().filter(|&cpu| cpu <= Self::CPU_MAX).ok_or_else(|| ValueError::Cpu(excerpt(digits)))
        };
        let mut cpus = Vec::new();
        for item in text.split(',') {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(ValueError::CpuRange { first, last });
            }
            for cpu in first..=last {
                if cpus.contains(&cpu) {
                    return Err(ValueError::CpuTwice(cpu));
                }
                if cpus.len() == Self::LEN_MAX {
                    return Err(ValueError::CpuListTooLong);
                }
                cpus.push(cpu);
            }
        }
        Ok(Self(cpus))
    }
}

impl<'de> Deserialize<'de> for CpuList {
    /// Not by way of `String`: who writes a number or an array is told how to write it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = CpuList;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("processors in quotes, as in \"2,3\" or \"2-5,8\", or \"any\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// Processors as a list, those that follow one another as a range.
pub(crate) fn cpu_ranges(cpus: &[u16]) -> String {
    let run = |run: &[u16]| match run {
        [first, .., last] => format!("{first}-{last}"),
        one => one.iter().map(ToString::to_string).collect(),
    };
    cpus.chunk_by(|cpu, next| cpu.checked_add(1) == Some(*next)).map(run).collect::<Vec<_>>().join(",")
}

impl PollingMode {
    /// Every mode's name.
    pub const NAMES: [&'static str; 3] = [Self::Adaptive.name(), Self::Always.name(), Self::Never.name()];

    /// The mode's name, as in the configuration file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

impl FromStr for PollingMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = [Self::Adaptive, Self::Always, Self::Never].into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| ValueError::Polling(excerpt(text)))
    }
}

impl From<PollingMode> for &'static str {
    fn from(mode: PollingMode) -> Self {
        mode.name()
    }
}

/// What of a wrong text goes into a message.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(100).collect()
}

/// The conversions that serde needs for a value that is written as text, and its form in the JSON Schema.
macro_rules! text_value {
    ($type:ident, $schema_name:literal, $schema:tt) => {
        impl TryFrom<String> for $type {
            type Error = ValueError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $schema_name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

pub(crate) use text_value;

text_value!(Name, "Name", {
    "type": "string",
    "description": "A name: ASCII letters, digits, \"-\", \"_\" and \".\".",
    "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$",
});
text_value!(PortMac, "PortMac", {
    "type": "string",
    "description": "An individual MAC address, such as 02:00:00:00:00:01.",
    "pattern": "^[0-9A-Fa-f][02468ACEace]([:-][0-9A-Fa-f]{2}){5}$",
});
text_value!(SocketPath, "SocketPath", {
    "type": "string",
    "description": "The path of a Unix socket; a relative one is below the run directory.",
    "minLength": 1,
    "maxLength": 107,
});
text_value!(NetworkMode, "NetworkMode", {
    "type": "string",
    "description": "What kind of network it is.",
    "enum": NetworkMode::NAMES,
});

text_value!(CpuList, "CpuList", {
    "type": "string",
    "description": "Processors, as in 2,3 or 2-5,8; \"any\" for none in particular.",
    "pattern": "^(any|[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)$",
});
text_value!(PollingMode, "PollingMode", {
    "type": "string",
    "description": "What a worker does that finds no frames.",
    "enum": PollingMode::NAMES,
});

impl<const MIN: u32, const MAX: u32> JsonSchema for Bounded<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("From{MIN}To{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl From<PortMac> for String {
    fn from(mac: PortMac) -> Self {
        mac.to_string()
    }
}

impl From<SocketPath> for String {
    fn from(path: SocketPath) -> Self {
        path.0
    }
}

impl From<CpuList> for String {
    fn from(list: CpuList) -> Self {
        list.to_string()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    /// In quotes, for messages.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

impl fmt::Display for PortMac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { formatter.pad(Self::ANY) } else { formatter.pad(&cpu_ranges(&self.0)) }
    }
}

impl fmt::Display for PollingMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl<const MIN: u32, const MAX: u32> fmt::Display for Bounded<MIN, MAX> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_always_a_safe_file_name() {
        let longest = "a".repeat(64);
        for text in ["vm1", "_x", "9", "web.example-1", longest.as_str()] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
        let too_long = "a".repeat(65);
        for text in ["", ".", "..", ".hidden", "-v", "a/b", "a b", "a\0", "é", "a,b", "a\n", too_long.as_str()] {
            assert!(text.parse::<Name>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused_with_the_range() {
        assert_eq!("16".parse::<Queues>().unwrap().value(), 16);
        for text in ["0", "17", "-1", "x", "4294967297", "99999999999999999999999999999999999999999"] {
            let message = text.parse::<Queues>().unwrap_err().to_string();
            assert!(message.contains("from 1 to 16"), "{message}");
        }
        let message = serde_json::from_str::<Queues>("1.5").unwrap_err().to_string();
        assert!(message.contains("a whole number from 1 to 16"), "{message}");
        assert!(serde_json::from_str::<Queues>("-1").is_err());
        assert!(serde_json::from_str::<Queues>("18446744073709551615").is_err());
    }

    #[test]
    fn a_guest_can_not_have_a_group_address_or_zero() {
        assert!("02:00:00:00:00:01".parse::<PortMac>().is_ok());
        for text in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00", "nonsense"] {
            assert!(text.parse::<PortMac>().is_err(), "{text} was taken");
        }
    }

    #[test]
    fn a_socket_path_fits_into_an_address() {
        for start in ["/run/", "sockets/", "é/"] {
            let longest = format!("{start}{}", "x".repeat(107 - start.len()));
            assert_eq!(longest.parse::<SocketPath>().unwrap().to_string(), longest);
            let message = format!("{longest}x").parse::<SocketPath>().unwrap_err().to_string();
            assert!(message.contains("has 108 bytes") && message.contains("at most 107"), "{message}");
        }
    }

    #[test]
    fn modes_to_come_say_that_they_are_to_come() {
        assert_eq!("private".parse(), Ok(NetworkMode::Private));
        assert_eq!("nat".parse(), Ok(NetworkMode::Nat));
        assert!("bridge".parse::<NetworkMode>().unwrap_err().to_string().contains("not there yet"));
        assert!("vlan".parse::<NetworkMode>().unwrap_err().to_string().contains("is no network mode"));
    }

    #[test]
    fn processors_are_written_as_for_taskset() {
        for (text, cpus) in [
            ("2", [2].as_slice()),
            ("2,3", &[2, 3]),
            ("2-5,8", &[2, 3, 4, 5, 8]),
            ("8,2-3", &[8, 2, 3]),
            ("7-7", &[7]),
            ("1023", &[1023]),
            ("any", &[]),
        ] {
            let list: CpuList = text.parse().unwrap();
            assert_eq!(list.cpus(), cpus);
            assert_eq!(list.to_string().parse(), Ok(list), "what is shown can be read back");
        }
        let shown = |text: &str| text.parse::<CpuList>().unwrap().to_string();
        assert_eq!(["2,3,4,8", "3,2", "5-5"].map(shown), ["2-4,8", "3,2", "5"]);
    }

    #[test]
    fn processors_that_are_no_list_are_refused_with_what_to_do() {
        for (text, expected) in [
            ("", "write numbers and ranges"),
            ("2,", "write numbers and ranges"),
            ("2, 3", "write numbers and ranges"),
            ("2-", "write numbers and ranges"),
            ("-2", "write numbers and ranges"),
            ("+2", "write numbers and ranges"),
            ("1-2-3", "write numbers and ranges"),
            ("0-6:2", "write numbers and ranges"),
            ("all", "write numbers and ranges"),
            ("any,2", "write numbers and ranges"),
            ("5-2", "the range 5-2 is the wrong way round: write 2-5"),
            ("2,3,2", "processor 2 is there twice"),
            ("2-5,4-6", "processor 4 is there twice"),
            ("1024", "there is no processor 1024: they have numbers from 0 to 1023"),
            ("0-99999999999999999999", "there is no processor 99999999999999999999"),
        ] {
            let message = text.parse::<CpuList>().unwrap_err().to_string();
            assert!(message.contains(expected), "{text:?} gave {message}");
        }
    }

    #[test]
    fn there_are_no_more_processors_than_workers() {
        assert_eq!("100-163".parse::<CpuList>().unwrap().cpus().len(), 64);
        for text in ["100-164", "0-1023", "100-163,7"] {
            assert_eq!(text.parse::<CpuList>(), Err(ValueError::CpuListTooLong), "{text}");
        }
        let endless = "1,".repeat(1_000_000);
        assert_eq!(endless.parse::<CpuList>(), Err(ValueError::CpuTwice(1)));
    }

    #[test]
    fn polling_modes_have_names() {
        for name in PollingMode::NAMES {
            assert_eq!(name.parse::<PollingMode>().unwrap().name(), name);
        }
        let message = "sometimes".parse::<PollingMode>().unwrap_err().to_string();
        assert_eq!(message, "\"sometimes\" is no polling mode; there are: adaptive, always, never");
    }
}
