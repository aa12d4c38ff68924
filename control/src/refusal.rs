//! Why the switch refused a request. Every message names the thing and the way out.

use std::net::Ipv4Addr;

use weft_dataplane::{DataplaneError, ForwardError};
use weft_switch::{HostName, MacAddr};

use crate::config::Conflict;
use crate::forward::{ForwardFrom, ForwardTo};
use crate::plan::Step;
use crate::services::LeaseStoreError;
use crate::values::{Name, NetworkMode};

/// A request that was not carried out; what runs is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Nothing has that name.
    #[error("{what} {name:?} is not there; there are: {}", list(known))]
    NotThere {
        /// `port` or `network`.
        what: &'static str,
        /// The name.
        name: Name,
        /// The names that there are.
        known: Vec<Name>,
    },
    /// Something has that name already.
    #[error("{what} {name:?} is there already: choose another name, or remove it first")]
    Exists {
        /// `port` or `network`.
        what: &'static str,
        /// The name.
        name: Name,
    },
    /// A network has ports.
    #[error("network {network:?} still has ports: {}; remove them first", list(ports))]
    NetworkInUse {
        /// The network.
        network: Name,
        /// Its ports.
        ports: Vec<Name>,
    },
    /// The declarations don't go together.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// What was kept of networks can't be read.
    #[error(transparent)]
    Leases(#[from] LeaseStoreError),
    /// Nothing is known about an address.
    #[error("network {network:?} has no lease of {address}: weft lease list shows those that there are")]
    NoLease {
        /// The network.
        network: Name,
        /// The address.
        address: Ipv4Addr,
    },
    /// An address is kept for somebody already.
    #[error("network {network:?} keeps {address} for somebody already: remove that lease first")]
    LeaseExists {
        /// The network.
        network: Name,
        /// The address.
        address: Ipv4Addr,
    },
    /// Somebody is called that.
    #[error("{hostname} of network {network:?} is {address} already: choose another name")]
    HostNameTaken {
        /// The network.
        network: Name,
        /// The name.
        hostname: HostName,
        /// Whose it is.
        address: Ipv4Addr,
    },
    /// An address that a port has by its own declaration.
    #[error("network {network:?} keeps {address} for port {port:?}: remove that port, and add it without --address")]
    PortLease {
        /// The network.
        network: Name,
        /// The address.
        address: Ipv4Addr,
        /// The port.
        port: Name,
    },
    /// No such forward.
    #[error("network {network:?} does not forward {from}: weft forward list shows what it does")]
    NoForward {
        /// The network.
        network: Name,
        /// The ports of the host.
        from: ForwardFrom,
    },
    /// An address that has no static entry there.
    #[error("{mac} has no such static entry: weft fdb list shows those that there are")]
    NoStaticEntry {
        /// The address.
        mac: MacAddr,
    },
    /// An address that has a static entry in several places.
    #[error("{mac} has several static entries: say which by --network and --vlan")]
    SeveralStaticEntries {
        /// The address.
        mac: MacAddr,
    },
    /// A forward that leads somewhere else.
    #[error("network {network:?} forwards {from} to {to}, and not there")]
    ForwardElsewhere {
        /// The network.
        network: Name,
        /// The ports of the host.
        from: ForwardFrom,
        /// Where they lead.
        to: ForwardTo,
    },
    /// Host access that the command line has given.
    #[error("network {network:?} has host access because weft was started with --host-access: start it without")]
    HostAccessGiven {
        /// The network.
        network: Name,
    },
    /// A network without a way out.
    #[error("network {network:?} has no NAT: its mode is {mode}")]
    NoNat {
        /// The network.
        network: Name,
        /// Its mode.
        mode: NetworkMode,
    },
    /// A static lease where nobody would give it out.
    #[error("network {network:?} has no DHCP, which would give out the address")]
    NoDhcp {
        /// The network.
        network: Name,
    },
    /// The workers differ from those that run.
    #[error("it takes a restart to change {0}: restart weft, or take this change back to have the rest applied")]
    Workers(String),
    /// The dataplane refused a step; those before it were taken back.
    #[error("cannot {}: {}", .0.step, .0.source)]
    Step(Box<FailedStep>),
    /// The dataplane refused a step, and then one on the way back.
    #[error("cannot {}: {}; and to take back what was done before, weft cannot {}: {}", failed.step, failed.source, undo.step, undo.source)]
    HalfUndone {
        /// The step that was refused first.
        failed: Box<FailedStep>,
        /// The step on the way back.
        undo: Box<FailedStep>,
    },
}

/// A step that the dataplane refused.
#[derive(Debug)]
pub struct FailedStep {
    /// The step.
    pub step: Step,
    /// Why.
    pub source: StepError,
}

/// Why a step was refused.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The dataplane refused.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The leases can't be kept.
    #[error(transparent)]
    Leases(#[from] LeaseStoreError),
    /// A way in can't be opened.
    #[error("{from} can't be forwarded: {source}")]
    Forward {
        /// The ports of the host.
        from: ForwardFrom,
        /// Why not.
        source: ForwardError,
    },
    /// What is declared about VLANs contradicts itself.
    #[error(transparent)]
    Vlans(#[from] Conflict),
}

impl Refusal {
    /// A word for programs.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NotThere { .. }
            | Self::NoStaticEntry { .. }
            | Self::NoLease { .. }
            | Self::NoForward { .. }
            | Self::ForwardElsewhere { .. } => "not_there",
            Self::Exists { .. } | Self::LeaseExists { .. } | Self::HostNameTaken { .. } => "exists",
            Self::NetworkInUse { .. } => "in_use",
            // No request can ask for other workers.
            Self::Conflict(_)
            | Self::Workers(_)
            | Self::SeveralStaticEntries { .. }
            | Self::NoDhcp { .. }
            | Self::NoNat { .. }
            | Self::HostAccessGiven { .. }
            | Self::PortLease { .. } => "conflict",
            Self::Step(_) | Self::Leases(_) => "failed",
            Self::HalfUndone { .. } => "half_undone",
        }
    }
}

/// Names in a sentence.
pub(crate) fn list(names: &[Name]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}
