//! What is declared about forwarding databases: static entries, and what becomes of stations that there is no room for.

use std::collections::BTreeSet;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_switch::vlan::{PortRole, Vlan};
use weft_switch::{AtLimit, MacAddr};

use crate::config::{Config, NetworkConfig};
use crate::conflict::Conflict;
use crate::host::Host;
use crate::values::{Bounded, Name, PortMac};
use crate::vlans::{VlanName, VlanRef};

/// How many stations a port may have.
pub type MaxMacs = Bounded<0, 262_144>;

/// The most static entries of a network, and no more than half of what its forwarding database holds.
pub const STATIC_MAX: usize = 4_096;

/// A station that is behind a port, whatever frames say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticEntry {
    /// The station.
    pub mac: PortMac,
    /// The port that it is behind.
    pub port: Name,
    /// The VLAN; the one in which the port's frames without a tag are, if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanRef>,
}

/// What becomes of frames from stations that a port has no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AtMaxMacs {
    /// They go on, and their station is not learned.
    #[default]
    Forward,
    /// They are dropped.
    Drop,
}

/// What becomes of a station that a network has no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FdbFull {
    /// It is learned, and an older one of the port that has the most makes way.
    #[default]
    Evict,
    /// It is not learned, and its frames go on.
    Forward,
    /// Its frames are dropped.
    Drop,
}

/// A static entry that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StaticEntryError {
    /// Nobody has that port.
    #[error("port {0:?} is not on that network")]
    NoSuchPort(Name),
    /// Nobody has that VLAN.
    #[error("VLAN {0} is not among the network's vlans")]
    NoSuchVlan(VlanName),
    /// The port does not hear of that VLAN.
    #[error("port {0:?} is not a member of VLAN {1}")]
    NoMember(Name, VlanRef),
    /// It has to be said which.
    #[error("port {0:?} is a trunk without a native VLAN: give the entry a vlan")]
    NeedsVlan(Name),
    /// It is there already.
    #[error("it has another entry in that VLAN: remove one of them")]
    Twice,
    /// It belongs to somebody.
    #[error("that is the gateway's address")]
    Gateway,
}

impl From<AtMaxMacs> for AtLimit {
    fn from(choice: AtMaxMacs) -> Self {
        match choice {
            AtMaxMacs::Forward => Self::Forward,
            AtMaxMacs::Drop => Self::Drop,
        }
    }
}

impl From<AtLimit> for AtMaxMacs {
    fn from(choice: AtLimit) -> Self {
        match choice {
            AtLimit::Forward => Self::Forward,
            AtLimit::Drop => Self::Drop,
        }
    }
}

impl FdbFull {
    /// As the forwarding database takes it.
    #[must_use]
    pub fn at_limit(self) -> Option<AtLimit> {
        match self {
            Self::Evict => None,
            Self::Forward => Some(AtLimit::Forward),
            Self::Drop => Some(AtLimit::Drop),
        }
    }

    /// The name that it has everywhere.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Evict => "evict",
            Self::Forward => "forward",
            Self::Drop => "drop",
        }
    }
}

impl Config {
    /// The VLAN of a static entry of a network; on a network without VLANs its default one.
    ///
    /// # Errors
    /// When its port is not there, or not in that VLAN.
    pub fn vlan_of(&self, name: &Name, network: &NetworkConfig, entry: &StaticEntry) -> Result<Vlan, StaticEntryError> {
        if self.ports.get(&entry.port).is_none_or(|port| port.network != *name) {
            return Err(StaticEntryError::NoSuchPort(entry.port.clone()));
        }
        // Roles that contradict themselves are refused as such.
        let role = self.role(&entry.port).ok().flatten().unwrap_or_else(|| PortRole::Access(self.default_vlan(name)));
        let Some(vlan) = &entry.vlan else {
            return role.untagged().ok_or_else(|| StaticEntryError::NeedsVlan(entry.port.clone()));
        };
        let id = network.vlans.resolve(vlan).map_err(StaticEntryError::NoSuchVlan)?;
        let member = [Vlan::customer(id), Vlan::service(id)].into_iter().find(|vlan| role.membership(*vlan).is_some());
        member.ok_or_else(|| StaticEntryError::NoMember(entry.port.clone(), vlan.clone()))
    }

    /// Checks the static entries, and that there is room for them.
    ///
    /// # Errors
    /// The first conflict, in the order of the networks' names.
    pub(crate) fn check_fdb(&self, host: &Host) -> Result<(), Conflict> {
        for (name, network) in &self.networks {
            let max = STATIC_MAX.min(network.fdb_capacity.value() as usize / 2);
            if network.fdb.len() > max {
                return Err(Conflict::TooManyStaticEntries { network: name.clone(), len: network.fdb.len(), max });
            }
            let mut seen = BTreeSet::new();
            for entry in &network.fdb {
                let mac = entry.mac.address();
                let checked = self.vlan_of(name, network, entry).and_then(|vlan| {
                    if mac == host.gateway_mac(name) {
                        return Err(StaticEntryError::Gateway);
                    }
                    if seen.insert((vlan, mac)) { Ok(()) } else { Err(StaticEntryError::Twice) }
                });
                checked.map_err(|source| Conflict::StaticEntry { network: name.clone(), mac, source })?;
            }
        }
        for (port, declared) in &self.ports {
            if declared.at_max_macs.is_some() && declared.max_macs.is_none() {
                return Err(Conflict::AtMaxWithoutMax { port: port.clone() });
            }
        }
        Ok(())
    }

    /// The static entries of a network, each with its VLAN.
    pub fn static_entries<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = (Vlan, MacAddr, &'a Name)> {
        let network = self.networks.get(name);
        let entries = network.into_iter().flat_map(move |network| network.fdb.iter().map(move |entry| (network, entry)));
        entries.filter_map(move |(network, entry)| {
            Some((self.vlan_of(name, network, entry).ok()?, entry.mac.address(), &entry.port))
        })
    }
}

#[cfg(test)]
#[path = "fdb_tests.rs"]
mod tests;
