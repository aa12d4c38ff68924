//! Declarations that don't go together.

use std::path::PathBuf;

use ipnet::Ipv4Net;
use weft_switch::dhcp::DhcpSettingsError;
use weft_switch::gateway::GatewaySettingsError;
use weft_switch::vlan::VlanId;
use weft_switch::{MacAddr, Subnet};

use crate::fdb::StaticEntryError;
use crate::forward::{ForwardFrom, ForwardHost, PORTS_MAX};
use crate::refusal::list;
use crate::values::{Name, ValueError};
use crate::vlans::VlanName;

/// Two declarations, or one and the host, don't go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A port's network is not declared.
    #[error("port {port:?} names network {network:?}, which is not there; there are: {}", list(known))]
    NoSuchNetwork {
        /// The port.
        port: Name,
        /// Its network.
        network: Name,
        /// The networks that are there.
        known: Vec<Name>,
    },
    /// Two guests of one network have the same address.
    #[error("ports {other:?} and {port:?} on network {network:?} have the same MAC address, {mac}: give one of them another")]
    SameMac {
        /// The later port.
        port: Name,
        /// The earlier one.
        other: Name,
        /// Their network.
        network: Name,
        /// Their address.
        mac: MacAddr,
    },
    /// Two ports have the same socket.
    #[error("ports {other:?} and {port:?} have the same socket, {path:?}: give one of them another")]
    SameSocket {
        /// The later port.
        port: Name,
        /// The earlier one.
        other: Name,
        /// Their socket.
        path: PathBuf,
    },
    /// A port's socket would be the control socket.
    #[error("the socket of port {port:?} would be {path:?}, which is weft's control socket: choose another name or socket")]
    ControlSocket {
        /// The port.
        port: Name,
        /// The control socket.
        path: PathBuf,
    },
    /// Something names addresses of a network that has none of its own.
    #[error("network {network:?} has {what}, but no subnet: give it one, as in 10.77.0.0/24")]
    NeedsSubnet {
        /// The network.
        network: Name,
        /// What names addresses.
        what: &'static str,
    },
    /// The gateway's settings contradict each other.
    #[error("network {network:?}: {source}")]
    Gateway {
        /// The network.
        network: Name,
        /// Which ones.
        source: GatewaySettingsError,
    },
    /// What is said about DHCP contradicts itself.
    #[error("network {network:?}: {source}")]
    Dhcp {
        /// The network.
        network: Name,
        /// How.
        source: DhcpSettingsError,
    },
    /// DNS servers for guests that can't reach anything outside.
    #[error("network {network:?} is private, and its guests ask nobody outside: leave dns away, or make the network's mode nat")]
    PrivateDns {
        /// The network.
        network: Name,
    },
    /// A guest has the address of its network's gateway.
    #[error("port {port:?} has the MAC address of the gateway of network {network:?}, {mac}: give it another")]
    GatewayMac {
        /// The port.
        port: Name,
        /// Its network.
        network: Name,
        /// The address.
        mac: MacAddr,
    },
    /// An address for a port whose network gives out none.
    #[error(
        "port {port:?} has an address, but network {network:?} has no DHCP to tell it to the guest: switch that on, or leave the address away"
    )]
    AddressWithoutDhcp {
        /// The port.
        port: Name,
        /// Its network.
        network: Name,
    },
    /// The host reaches something else by these addresses.
    #[error(
        "the subnet {subnet} of network {network:?} overlaps with {route}, which this host reaches by {device}: {}",
        suggestion.map_or_else(|| "choose another one".to_owned(), |free| format!("{free} is free"))
    )]
    SubnetTaken {
        /// The network.
        network: Name,
        /// Its subnet.
        subnet: Subnet,
        /// The host's route.
        route: Ipv4Net,
        /// The interface of that route.
        device: String,
        /// A subnet that nobody uses.
        suggestion: Option<Subnet>,
    },
    /// Something that only a network with a way out can have.
    #[error("network {network:?} has {what}, which only a network of mode nat can have")]
    NeedsNat {
        /// The network.
        network: Name,
        /// What it has.
        what: &'static str,
    },
    /// More ports than may lead into one network.
    #[error("more than {PORTS_MAX} ports of the host would lead into network {network:?}")]
    TooManyForwards {
        /// The network.
        network: Name,
    },
    /// A forward that can't be.
    #[error("network {network:?}: {source}")]
    Forward {
        /// The network.
        network: Name,
        /// Why not.
        source: ValueError,
    },
    /// Two forwards of one port of the host.
    #[error(
        "{from} of network {network:?} has a port that {earlier} of network {other:?} has, too: choose another, or remove that forward"
    )]
    SameForward {
        /// The later forward's network.
        network: Name,
        /// Its ports.
        from: ForwardFrom,
        /// The earlier one's network.
        other: Name,
        /// Its ports.
        earlier: ForwardFrom,
    },
    /// A forward to somebody who is no guest.
    #[error("{from} leads to {to}, where no guest of network {network:?} can be: {why}")]
    ForwardOutside {
        /// The network.
        network: Name,
        /// The ports of the host.
        from: ForwardFrom,
        /// Where they lead.
        to: ForwardHost,
        /// What that address is.
        why: String,
    },
    /// A port is more than one thing to VLANs.
    #[error("port {port:?} can be one of vlan (an access port), trunk and qinq, and has several: leave all but one away")]
    SeveralRoles {
        /// The port.
        port: Name,
    },
    /// A native VLAN for a port that has no others.
    #[error("port {port:?} has a native VLAN, but is no trunk: give it trunk, or use vlan for an access port")]
    NativeWithoutTrunk {
        /// The port.
        port: Name,
    },
    /// More addresses than a port's list holds.
    #[error("port {port:?} has {len} addresses in {key}, and at most {max} fit", max = weft_switch::guard::MAX_ALLOWED)]
    TooManyAllowed {
        /// The port.
        port: Name,
        /// The list.
        key: &'static str,
        /// How many are in it.
        len: usize,
    },
    /// Addresses of which the guest may use any.
    #[error("port {port:?} has {key}, but may use any address: give it {lock} as well, or leave {key} away")]
    AllowedWithoutLock {
        /// The port.
        port: Name,
        /// The list.
        key: &'static str,
        /// What makes it one.
        lock: &'static str,
    },
    /// A guest that could use no address.
    #[error(
        "the guest on port {port:?} could use no IP address: its port is locked to those that are leased to it, and gets none by DHCP on network \
        {network:?}; give it allow_ip, or lock_ip = false"
    )]
    LockedOut {
        /// The port.
        port: Name,
        /// Its network.
        network: Name,
    },
    /// A port is isolated in two ways.
    #[error("port {port:?} can be one of isolated and in an isolation_group, and is both: leave one away")]
    IsolatedTwice {
        /// The port.
        port: Name,
    },
    /// A burst of nothing.
    #[error("port {port:?} has burst_in, but no limit: give it limit_in as well, or leave burst_in away")]
    BurstWithoutLimit {
        /// The port.
        port: Name,
    },
    /// A burst with which a limit can't be reached.
    #[error(
        "the burst_in of port {port:?} is less than comes in two milliseconds at that rate: give {least} bytes at least, or leave it away"
    )]
    BurstTooSmall {
        /// The port.
        port: Name,
        /// Bytes.
        least: u64,
    },
    /// A VLAN has no such name on the port's network.
    #[error(
        "port {port:?} names VLAN \"{vlan}\", which network {network:?} does not have among its vlans; there are: {}",
        names(known)
    )]
    NoSuchVlan {
        /// The port.
        port: Name,
        /// Its network.
        network: Name,
        /// What it names.
        vlan: VlanName,
        /// The names that are there.
        known: Vec<VlanName>,
    },
    /// A trunk has a VLAN by number and by name.
    #[error("port {port:?} has VLAN {id} twice in its trunk, once as \"{vlan}\": leave one away")]
    VlanTwice {
        /// The port.
        port: Name,
        /// The name.
        vlan: VlanName,
        /// The number.
        id: VlanId,
    },
    /// A VLAN has two names.
    #[error("network {network:?} calls VLAN {id} \"{one}\" and \"{other}\": leave one away")]
    VlanSynonyms {
        /// The network.
        network: Name,
        /// The first name.
        one: VlanName,
        /// The other one.
        other: VlanName,
        /// The number.
        id: VlanId,
    },
    /// The default VLAN has no such name.
    #[error("the default VLAN of network {network:?} is \"{vlan}\", which is not among its vlans; there are: {}", names(known))]
    NoSuchDefaultVlan {
        /// The network.
        network: Name,
        /// What it names.
        vlan: VlanName,
        /// The names that are there.
        known: Vec<VlanName>,
    },
    /// An address for a port that DHCP does not reach.
    #[error(
        "port {port:?} has an address, but is not in VLAN {id}, where the gateway and DHCP of network {network:?} are: leave the address away"
    )]
    AddressOutsideVlan {
        /// The port.
        port: Name,
        /// Its network.
        network: Name,
        /// The network's default VLAN.
        id: VlanId,
    },
    /// A static entry that can't be.
    #[error("network {network:?} can't have a static entry of {mac}: {source}")]
    StaticEntry {
        /// The network.
        network: Name,
        /// The station.
        mac: MacAddr,
        /// Why.
        source: StaticEntryError,
    },
    /// More static entries than there is room for.
    #[error("network {network:?} has {len} static entries, and at most {max} fit: half of its fdb_capacity, and 4096")]
    TooManyStaticEntries {
        /// The network.
        network: Name,
        /// How many there are.
        len: usize,
        /// How many there can be.
        max: usize,
    },
    /// Nothing is limited.
    #[error("port {port:?} has at_max_macs without a limit: give it max_macs as well")]
    AtMaxWithoutMax {
        /// The port.
        port: Name,
    },
    /// Every subnet that weft would choose is in use.
    #[error(
        "no subnet is free for network {network:?}: all that weft would choose overlap with routes of this host; give it one"
    )]
    NoFreeSubnet {
        /// The network.
        network: Name,
    },
}

impl Conflict {
    /// The key that can be changed to solve it.
    #[must_use]
    pub fn key(&self) -> [&str; 3] {
        match self {
            Self::NoSuchNetwork { port, .. } => ["ports", port.as_str(), "network"],
            Self::SameMac { port, .. } | Self::GatewayMac { port, .. } => ["ports", port.as_str(), "mac"],
            Self::SameSocket { port, .. } | Self::ControlSocket { port, .. } => ["ports", port.as_str(), "socket"],
            Self::TooManyAllowed { port, key, .. } | Self::AllowedWithoutLock { port, key, .. } => ["ports", port.as_str(), key],
            Self::LockedOut { port, .. } => ["ports", port.as_str(), "allow_ip"],
            Self::IsolatedTwice { port } => ["ports", port.as_str(), "isolated"],
            Self::BurstWithoutLimit { port } | Self::BurstTooSmall { port, .. } => ["ports", port.as_str(), "burst_in"],
            Self::AtMaxWithoutMax { port } => ["ports", port.as_str(), "at_max_macs"],
            Self::StaticEntry { network, .. } | Self::TooManyStaticEntries { network, .. } => {
                ["networks", network.as_str(), "fdb"]
            }
            Self::SeveralRoles { port } | Self::NoSuchVlan { port, .. } => ["ports", port.as_str(), "vlan"],
            Self::NativeWithoutTrunk { port } => ["ports", port.as_str(), "native"],
            Self::VlanTwice { port, .. } => ["ports", port.as_str(), "trunk"],
            Self::VlanSynonyms { network, .. } => ["networks", network.as_str(), "vlans"],
            Self::NoSuchDefaultVlan { network, .. } => ["networks", network.as_str(), "default_vlan"],
            Self::AddressOutsideVlan { port, .. } | Self::AddressWithoutDhcp { port, .. } => ["ports", port.as_str(), "address"],
            Self::NeedsSubnet { network, .. } | Self::SubnetTaken { network, .. } | Self::NoFreeSubnet { network } => {
                ["networks", network.as_str(), "subnet"]
            }
            Self::NeedsNat { network, .. } => ["networks", network.as_str(), "mode"],
            Self::TooManyForwards { network }
            | Self::Forward { network, .. }
            | Self::SameForward { network, .. }
            | Self::ForwardOutside { network, .. } => ["networks", network.as_str(), "forwards"],
            Self::Gateway { network, .. } => ["networks", network.as_str(), "gateway"],
            Self::Dhcp { network, .. } => ["networks", network.as_str(), "dhcp"],
            Self::PrivateDns { network } => ["networks", network.as_str(), "dns"],
        }
    }
}

/// Names for a message.
fn names(names: &[VlanName]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
