//! What is declared about a network's multicast, and what is told of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_switch::MacAddr;
use weft_switch::multicast::SnoopingSettings;
use weft_switch::vlan::{Vlan, VlanId};

use crate::config::NetworkConfig;
use crate::values::{Bounded, Name};

/// How often weft asks who wants which groups, in seconds.
pub type QueryInterval = Bounded<4, 3_600>;

/// To whom frames for groups go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum MulticastMode {
    /// To who asked for them.
    #[default]
    Snoop,
    /// To everybody.
    Flood,
}

/// Multicast of one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MulticastInfo {
    /// The network.
    pub network: Name,
    /// To whom frames for groups go.
    pub multicast: MulticastMode,
    /// The groups that somebody wants, one line for each port that does.
    pub members: Vec<MemberLine>,
    /// Who asks, for IPv4 and IPv6 of each VLAN.
    pub queriers: Vec<QuerierLine>,
    /// What happened since snooping began.
    pub counters: BTreeMap<String, u64>,
}

/// A group that is wanted behind a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemberLine {
    /// The VLAN, on a network with VLANs.
    pub vlan: Option<String>,
    /// The group.
    pub group: IpAddr,
    /// The port.
    pub port: Name,
    /// In which protocol that was said last: `IGMPv1` to `IGMPv3`, `MLDv1` or `MLDv2`.
    pub protocol: String,
    /// For how much longer it holds, unless it is said again.
    pub left_seconds: u64,
}

/// Who asks in a VLAN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QuerierLine {
    /// The VLAN, on a network with VLANs.
    pub vlan: Option<String>,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// From which address it asks; none if nobody does, and then everything is flooded.
    pub address: Option<IpAddr>,
    /// Behind which port it is; none if it is weft itself.
    pub port: Option<Name>,
    /// The ports behind which routers are: they get everything.
    pub routers: Vec<Name>,
    /// Ports that get everything until they had the time to say what they want.
    pub unsettled: Vec<Name>,
}

impl MulticastMode {
    /// The name that it has everywhere.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Snoop => "snoop",
            Self::Flood => "flood",
        }
    }
}

impl NetworkConfig {
    /// How multicast is snooped, if it is. `mac` is where questions come from, `gateway` the gateway's address.
    #[must_use]
    pub fn snooping(&self, mac: MacAddr, gateway: Option<Ipv4Addr>, default_vlan: VlanId) -> Option<SnoopingSettings> {
        let interval = Duration::from_secs(self.query_interval_seconds.value().into());
        let settings = SnoopingSettings::new(mac, Vlan::customer(default_vlan));
        // Answers are to come before it is asked again (RFC 3376, section 8.3).
        let response_interval = settings.response_interval.min(interval / 2);
        let settings = SnoopingSettings {
            address: gateway,
            querier: self.querier,
            query_interval: interval,
            response_interval,
            fast_leave: self.fast_leave,
            ..settings
        };
        (self.multicast == MulticastMode::Snoop).then_some(settings)
    }
}
