//! VLANs as they are declared: by number or by a name of the network, and what becomes of that when it is resolved.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use weft_switch::vlan::{ParseVlanError, PortRole, Trunk, Vlan, VlanCounters, VlanId, VlanSet};

use crate::api::{VlanCounterLine, VlanLine, VlanRole};
use crate::config::{Config, NetworkConfig, PortConfig};
use crate::conflict::Conflict;
use crate::switch::Switch;
use crate::values::{Name, ValueError};

/// A VLAN's name: one that can't be mistaken for a number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VlanName(Name);

/// The number of a VLAN, as a configuration has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VlanNumber(pub VlanId);

/// A VLAN, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanRef {
    /// By number.
    Number(VlanId),
    /// By a name that the network gives it.
    Named(VlanName),
}

/// Several, with ranges of numbers, as in `10,100-199,tenant-a`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VlanRefs {
    numbers: VlanSet,
    names: Vec<VlanName>,
}

/// What VLANs mean on a network: their names, and the default one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VlanNames(BTreeMap<VlanName, VlanNumber>);

/// The VLANs that ports of a network without a role are in, as soon as one has a role.
pub const DEFAULT_VLAN: VlanRef = VlanRef::Number(VlanId::DEFAULT);

impl FromStr for VlanName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let name: Name = text.parse()?;
        if text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
            return Ok(Self(name));
        }
        Err(ValueError::VlanName(text.to_owned()))
    }
}

impl FromStr for VlanRef {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if is_number(text) {
            return Ok(Self::Number(text.parse()?));
        }
        Ok(Self::Named(text.parse()?))
    }
}

impl FromStr for VlanRefs {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (numbers, names): (Vec<&str>, Vec<&str>) = text.split(',').partition(|part| is_number(part));
        let numbers = if numbers.is_empty() { VlanSet::default() } else { numbers.join(",").parse()? };
        let names = names.into_iter().map(str::parse).collect::<Result<Vec<VlanName>, _>>()?;
        if let Some(name) = names.iter().enumerate().find_map(|(at, name)| names[..at].contains(name).then_some(name)) {
            return Err(ValueError::VlanNameTwice(name.to_string()));
        }
        Ok(Self { numbers, names })
    }
}

impl FromStr for VlanNames {
    type Err = ValueError;

    /// As in `tenant-a=100,tenant-b=200`.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut names = BTreeMap::new();
        for part in text.split(',') {
            let (name, number) = part.split_once('=').ok_or_else(|| ValueError::VlanNames(part.to_owned()))?;
            let (name, number): (VlanName, VlanId) = (name.parse()?, number.parse()?);
            if names.insert(name.clone(), VlanNumber(number)).is_some() {
                return Err(ValueError::VlanNameTwice(name.to_string()));
            }
        }
        Ok(Self(names))
    }
}

/// Names begin with a letter, and what begins with nothing is no number either, which is said better there.
fn is_number(part: &str) -> bool {
    !part.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
}

impl VlanNames {
    /// The names, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (&VlanName, VlanId)> {
        self.0.iter().map(|(name, number)| (name, number.0))
    }

    /// True if no VLAN has a name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of a VLAN, if it has one.
    #[must_use]
    pub fn name_of(&self, id: VlanId) -> Option<&VlanName> {
        self.iter().find(|(_, number)| *number == id).map(|(name, _)| name)
    }

    pub(crate) fn resolve(&self, vlan: &VlanRef) -> Result<VlanId, VlanName> {
        match vlan {
            VlanRef::Number(id) => Ok(*id),
            VlanRef::Named(name) => self.0.get(name).map(|number| number.0).ok_or_else(|| name.clone()),
        }
    }

    /// Two names of one VLAN, if there are any.
    fn synonyms(&self) -> Option<(&VlanName, &VlanName, VlanId)> {
        self.iter().find_map(|(name, id)| {
            let first = self.name_of(id)?;
            (first != name).then_some((first, name, id))
        })
    }
}

impl FromIterator<(VlanName, VlanNumber)> for VlanNames {
    fn from_iter<I: IntoIterator<Item = (VlanName, VlanNumber)>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}

impl Config {
    /// What a port is to the VLANs of its network; nothing if nothing is said about it.
    ///
    /// # Errors
    /// When what is said contradicts itself, or names VLANs that have no such name.
    pub fn role(&self, name: &Name) -> Result<Option<PortRole>, Conflict> {
        let Some((port, network)) = self.ports.get(name).and_then(|port| Some((port, self.networks.get(&port.network)?))) else {
            return Ok(None);
        };
        let unknown = |vlan| Conflict::NoSuchVlan {
            port: name.clone(),
            network: port.network.clone(),
            vlan,
            known: network.vlans.iter().map(|(name, _)| name.clone()).collect(),
        };
        let resolve = |vlan: &VlanRef| network.vlans.resolve(vlan).map_err(unknown);
        if port.native.is_some() && port.trunk.is_none() {
            return Err(Conflict::NativeWithoutTrunk { port: name.clone() });
        }
        let PortConfig { vlan, trunk, native, qinq, .. } = port;
        match (vlan, trunk, qinq) {
            (None, None, None) => Ok(None),
            (Some(vlan), None, None) => Ok(Some(PortRole::Access(resolve(vlan)?))),
            (None, None, Some(vlan)) => Ok(Some(PortRole::Qinq(resolve(vlan)?))),
            (None, Some(refs), None) => {
                let mut allowed = refs.numbers.clone();
                for vlan in &refs.names {
                    let id = resolve(&VlanRef::Named(vlan.clone()))?;
                    if !allowed.insert(id) {
                        return Err(Conflict::VlanTwice { port: name.clone(), vlan: vlan.clone(), id });
                    }
                }
                Ok(Some(PortRole::Trunk(Trunk { allowed, native: native.as_ref().map(resolve).transpose()? })))
            }
            _ => Err(Conflict::SeveralRoles { port: name.clone() }),
        }
    }

    /// The default VLAN of a network.
    #[must_use]
    pub fn default_vlan(&self, network: &Name) -> VlanId {
        let config = self.networks.get(network);
        // What has no such number was refused before.
        config.and_then(|config| config.vlans.resolve(&config.default_vlan).ok()).unwrap_or(VlanId::DEFAULT)
    }

    /// The roles of a network's ports, those that have none by default included; nothing where no port has one, since there are no VLANs then.
    #[must_use]
    pub fn roles_of(&self, network: &Name) -> Option<Vec<(Name, PortRole)>> {
        let declared = |port: &Name| self.role(port).ok().flatten();
        if !self.ports_of(network).any(|port| declared(port).is_some()) {
            return None;
        }
        let default = PortRole::Access(self.default_vlan(network));
        Some(self.ports_of(network).map(|port| (port.clone(), declared(port).unwrap_or_else(|| default.clone()))).collect())
    }

    /// Checks what is said about VLANs.
    ///
    /// # Errors
    /// The first conflict, networks before ports, each in the order of their names.
    pub(crate) fn check_vlans(&self) -> Result<(), Conflict> {
        for (network, config) in &self.networks {
            if let Some((one, other, id)) = config.vlans.synonyms() {
                let (network, one, other) = (network.clone(), one.clone(), other.clone());
                return Err(Conflict::VlanSynonyms { network, one, other, id });
            }
            if let Err(vlan) = config.vlans.resolve(&config.default_vlan) {
                let known = config.vlans.iter().map(|(name, _)| name.clone()).collect();
                return Err(Conflict::NoSuchDefaultVlan { network: network.clone(), vlan, known });
            }
        }
        for (name, port) in &self.ports {
            let default = Vlan::customer(self.default_vlan(&port.network));
            let is_outside = self.role(name)?.is_some_and(|role| role.membership(default).is_none());
            if port.address.is_some() && is_outside {
                return Err(Conflict::AddressOutsideVlan { port: name.clone(), network: port.network.clone(), id: default.id() });
            }
        }
        Ok(())
    }

    /// Who is a member of which VLAN, one line for VLANs of which the same is to be said. Nothing on a network without VLANs.
    #[must_use]
    pub fn vlan_lines(&self, network: &Name) -> Vec<VlanLine> {
        let (Some(roles), Some(config)) = (self.roles_of(network), self.networks.get(network)) else { return Vec::new() };
        let customer = VlanId::all().map(Vlan::customer);
        // Of service VLANs only those that have customers: trunks are members of all whose numbers they have.
        let served = |id: &VlanId| roles.iter().any(|(_, role)| *role == PortRole::Qinq(*id));
        let service = VlanId::all().filter(served).map(Vlan::service);
        let mut lines: Vec<VlanLine> = Vec::new();
        for vlan in customer.chain(service) {
            let line = VlanLine::new(vlan, config, &roles, vlan == Vlan::customer(self.default_vlan(network)));
            if line.untagged.is_empty() && line.tagged.is_empty() {
                continue;
            }
            match lines.last_mut() {
                Some(before) if before.goes_on_with(&line) => before.last = line.last,
                _ => lines.push(line),
            }
        }
        lines
    }
}

impl Switch {
    /// What has come into each VLAN of a network.
    pub(crate) fn vlan_counters(&self, network: &Name) -> Vec<VlanCounterLine> {
        use weft_switch::vlan::TagKind;
        let (Some(id), Some(config)) = (self.networks.get(network), self.config.networks.get(network)) else { return Vec::new() };
        let counted = self.dataplane.vlan_counters(*id).into_iter();
        let line = |(vlan, VlanCounters { frames, bytes, multicast, broadcast }): (Vlan, _)| VlanCounterLine {
            vlan: vlan.id().number(),
            service: vlan.kind() == TagKind::Service,
            name: config.vlans.name_of(vlan.id()).map(ToString::to_string),
            frames,
            bytes,
            multicast,
            broadcast,
        };
        counted.map(line).collect()
    }
}

impl VlanLine {
    fn new(vlan: Vlan, config: &NetworkConfig, roles: &[(Name, PortRole)], is_default: bool) -> Self {
        use weft_switch::vlan::{Release, TagKind};
        let members = |wanted: Release| {
            let is_member = move |(_, role): &&(Name, PortRole)| role.membership(vlan) == Some(wanted);
            roles.iter().filter(is_member).map(|(name, _)| name.clone()).collect()
        };
        let number = vlan.id().number();
        Self {
            first: number,
            last: number,
            service: vlan.kind() == TagKind::Service,
            name: config.vlans.name_of(vlan.id()).map(ToString::to_string),
            default: is_default,
            untagged: members(Release::Untagged),
            tagged: members(Release::Tagged),
        }
    }

    /// True if the next line says the same of the next VLAN.
    fn goes_on_with(&self, next: &Self) -> bool {
        let same = (&self.untagged, &self.tagged, self.service) == (&next.untagged, &next.tagged, next.service);
        let plain = |line: &Self| line.name.is_none() && !line.default;
        same && plain(self) && plain(next) && self.last + 1 == next.first
    }
}

impl VlanRole {
    /// What is said of a port's role.
    #[must_use]
    pub fn new(role: &PortRole, names: &VlanNames, by_default: bool) -> Self {
        let named = |id: VlanId| names.name_of(id).map(ToString::to_string);
        let none = Self { role: String::new(), vlan: None, name: None, trunk: None, native: None, by_default };
        match role {
            PortRole::Access(id) => Self { role: "access".to_owned(), vlan: Some(id.number()), name: named(*id), ..none },
            PortRole::Qinq(id) => Self { role: "qinq".to_owned(), vlan: Some(id.number()), name: named(*id), ..none },
            PortRole::Trunk(Trunk { allowed, native }) => {
                Self { role: "trunk".to_owned(), trunk: Some(allowed.to_string()), native: native.map(VlanId::number), ..none }
            }
        }
    }
}

impl fmt::Display for VlanName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for VlanRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(id) => id.fmt(formatter),
            Self::Named(name) => name.fmt(formatter),
        }
    }
}

/// As it is read: `tenant-a=100,tenant-b=200`.
impl fmt::Display for VlanNames {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(|(name, number)| format!("{name}={}", number.0)).collect();
        formatter.pad(&parts.join(","))
    }
}

impl fmt::Display for VlanRefs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = Some(self.numbers.to_string()).filter(|_| !self.numbers.is_empty());
        let parts: Vec<_> = numbers.into_iter().chain(self.names.iter().map(ToString::to_string)).collect();
        formatter.pad(&parts.join(","))
    }
}

impl TryFrom<String> for VlanName {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<VlanName> for String {
    fn from(name: VlanName) -> Self {
        name.to_string()
    }
}

impl From<ParseVlanError> for ValueError {
    fn from(error: ParseVlanError) -> Self {
        Self::Vlan(error)
    }
}

/// Reads a whole number or a text, as both are written for a VLAN.
pub(crate) fn number_or_text<'de, D: Deserializer<'de>, T: FromStr<Err = ValueError>>(
    deserializer: D,
    expected: &'static str,
) -> Result<T, D::Error> {
    struct Either<T>(&'static str, std::marker::PhantomData<T>);

    impl<T: FromStr<Err = ValueError>> Visitor<'_> for Either<T> {
        type Value = T;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(self.0)
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
            number.to_string().parse().map_err(E::custom)
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
            number.to_string().parse().map_err(E::custom)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Either(expected, std::marker::PhantomData))
}

impl<'de> Deserialize<'de> for VlanRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, "a VLAN: a number from 1 to 4094, or a name")
    }
}

impl<'de> Deserialize<'de> for VlanRefs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, "VLANs, as in \"10,20,100-199\"")
    }
}

impl<'de> Deserialize<'de> for VlanNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match VlanRef::deserialize(deserializer)? {
            VlanRef::Number(id) => Ok(Self(id)),
            VlanRef::Named(name) => Err(de::Error::custom(ParseVlanError::NoNumber(name.to_string()))),
        }
    }
}

impl<'de> Deserialize<'de> for VlanNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self)
    }
}

impl Serialize for VlanRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(id) => serializer.serialize_u16(id.number()),
            Self::Named(name) => name.serialize(serializer),
        }
    }
}

impl Serialize for VlanRefs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for VlanNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.0.number())
    }
}

impl Serialize for VlanNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

macro_rules! schema {
    ($type:ident, $schema:tt) => {
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

pub(crate) use schema;

schema!(VlanRef, {
    "description": "A VLAN, by number or by a name of its network.",
    "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 4094 }, { "type": "string" }],
});
schema!(VlanRefs, {
    "description": "VLANs, as in \"10,100-199,tenant-a\".",
    "anyOf": [{ "type": "string", "minLength": 1 }, { "type": "integer", "minimum": 1, "maximum": 4094 }],
});
schema!(VlanNames, {
    "description": "The numbers of VLANs, by name.",
    "type": "object",
    "additionalProperties": { "type": "integer", "minimum": 1, "maximum": 4094 },
});

#[cfg(test)]
#[path = "vlans_tests.rs"]
mod tests;
