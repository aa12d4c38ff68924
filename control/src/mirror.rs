//! What is declared about mirrors: whose frames are copied, and where to.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_dataplane::MAX_MIRRORS;

use crate::capture::{Direction, FilterText};
use crate::config::Config;
use crate::conflict::Conflict;
use crate::values::{Bounded, Name, ValueError};
use crate::vlans::VlanRef;

/// How large the file of a mirror may become, in mebibytes.
pub type MaxSizeMib = Bounded<1, 1_048_576>;

/// What is declared about a mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MirrorConfig {
    /// The ports whose frames are copied.
    pub from: Vec<Name>,
    /// Where to: a port, which is a monitor port then and nothing else, or the path of a pcapng file, beginning with `/`.
    pub to: MirrorTarget,
    /// `in` for what guests send, `out` for what they get, `both` if nothing is said.
    #[serde(default, skip_serializing_if = "Direction::is_both")]
    pub direction: Direction,
    /// Only what is in this VLAN, whether or not it has a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanRef>,
    /// Which frames, in the words of pcap-filter(7); all if nothing is said.
    #[serde(default, skip_serializing_if = "FilterText::is_all")]
    pub filter: FilterText,
    /// A file: how large it may become, in mebibytes; 1,024 if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size_mib: Option<MaxSizeMib>,
}

/// Where copies go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum MirrorTarget {
    /// To the guest on a port.
    Port(Name),
    /// Into a file, which weft opens with its own rights.
    File(PathBuf),
}

impl FromStr for MirrorTarget {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with('/') { Ok(Self::File(text.into())) } else { text.parse().map(Self::Port) }
    }
}

impl TryFrom<String> for MirrorTarget {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MirrorTarget> for String {
    fn from(target: MirrorTarget) -> Self {
        target.to_string()
    }
}

impl fmt::Display for MirrorTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(name) => name.fmt(formatter),
            Self::File(path) => path.display().fmt(formatter),
        }
    }
}

/// A mirror that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// Nobody has that port.
    #[error("there is no port {0:?}")]
    NoSuchPort(Name),
    /// Nobody has that port, and it may be a file's name.
    #[error("there is no port {0:?}; a file is written with its directory, as in ./{0}")]
    NoPortNoFile(Name),
    /// Nothing is copied.
    #[error("it names no port to copy from")]
    FromNobody,
    /// A port can't hear itself.
    #[error("port {0:?} can't be both ends of it")]
    ToItself(Name),
    /// Another writes there.
    #[error("mirror {0:?} writes to that file: choose another")]
    SameFile(Name),
    /// The VLAN has no such name.
    #[error("VLAN {0} is not among the network's vlans")]
    NoSuchVlan(VlanRef),
    /// There are more than can be.
    #[error("there are more than {MAX_MIRRORS} mirrors")]
    TooMany,
}

impl Config {
    /// Checks the mirrors.
    ///
    /// # Errors
    /// The first conflict, in the order of their names.
    pub(crate) fn check_mirrors(&self) -> Result<(), Conflict> {
        for (place, (name, mirror)) in self.mirrors.iter().enumerate() {
            let checked = if place < MAX_MIRRORS { self.check_mirror(name, mirror) } else { Err(MirrorError::TooMany) };
            checked.map_err(|source| Conflict::Mirror { mirror: name.clone(), source })?;
        }
        Ok(())
    }

    fn check_mirror(&self, name: &Name, mirror: &MirrorConfig) -> Result<(), MirrorError> {
        let is_unknown = |name: &&Name| !self.ports.contains_key(*name);
        if let Some(unknown) = mirror.from.iter().find(is_unknown) {
            return Err(MirrorError::NoSuchPort(unknown.clone()));
        }
        if let Some(unknown) = mirror.port().filter(is_unknown) {
            return Err(MirrorError::NoPortNoFile(unknown.clone()));
        }
        if let Some(same) = mirror.port().filter(|port| mirror.from.contains(port)) {
            return Err(MirrorError::ToItself(same.clone()));
        }
        let Some(first) = mirror.from.first() else { return Err(MirrorError::FromNobody) };
        if let Some(file) = mirror.file() {
            let other = self.mirrors.iter().find(|(other, mirror)| *other < name && mirror.file() == Some(file));
            if let Some((other, _)) = other {
                return Err(MirrorError::SameFile(other.clone()));
            }
        }
        let network = self.ports.get(first).and_then(|port| self.networks.get(&port.network));
        match (&mirror.vlan, network) {
            (Some(vlan), Some(network)) if network.vlans.resolve(vlan).is_err() => Err(MirrorError::NoSuchVlan(vlan.clone())),
            _ => Ok(()),
        }
    }

    /// The mirrors that lead to a port.
    pub(crate) fn monitored<'a>(&'a self, port: &'a Name) -> impl Iterator<Item = &'a Name> {
        self.mirrors.iter().filter(move |(_, mirror)| mirror.port() == Some(port)).map(|(name, _)| name)
    }

    /// A port is gone, and with it the mirrors that lead to it or come only from it, which are returned.
    pub(crate) fn forget_mirrored(&mut self, port: &Name) -> Vec<Name> {
        self.mirrors.values_mut().for_each(|mirror| mirror.from.retain(|from| from != port));
        let ends = |(_, mirror): &(&Name, &MirrorConfig)| mirror.from.is_empty() || mirror.port() == Some(port);
        let gone: Vec<Name> = self.mirrors.iter().filter(ends).map(|(name, _)| name.clone()).collect();
        self.mirrors.retain(|name, _| !gone.contains(name));
        gone
    }
}

impl MirrorConfig {
    /// The port that copies go to.
    #[must_use]
    pub fn port(&self) -> Option<&Name> {
        match &self.to {
            MirrorTarget::Port(name) => Some(name),
            MirrorTarget::File(_) => None,
        }
    }

    /// The file that copies go to.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match &self.to {
            MirrorTarget::Port(_) => None,
            MirrorTarget::File(path) => Some(path),
        }
    }
}
