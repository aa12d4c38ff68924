//! `weft network`.

use std::net::Ipv4Addr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use weft_switch::{DomainName, Subnet};

use super::{CliError, Output};
use crate::addressing::{DhcpChoice, DnsChoice};
use crate::api::{self, Named, NetworkAdd, NetworkSet, Nothing};
use crate::client::Client;
use crate::config::NetworkConfig;
use crate::fdb::FdbFull;
use crate::multicast::{MulticastMode, QueryInterval};
use crate::render;
use crate::values::{AgeingSeconds, FdbCapacity, LeaseSeconds, Mtu, Name, NetworkMode};
use crate::vlans::{DEFAULT_VLAN, VlanNames, VlanRef};

#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// Add a network.
    Add {
        /// The new network's name.
        name: Name,
        #[command(flatten)]
        settings: NetworkArgs,
    },
    /// Change a network; its ports stay plugged in, and what is not said stays as it is.
    Set {
        /// The network.
        name: Name,
        #[command(flatten)]
        changes: NetworkChanges,
    },
    /// List all networks.
    List,
    /// Show one network.
    Show {
        /// The network.
        name: Name,
    },
    /// Remove a network that has no ports.
    Remove {
        /// The network.
        name: Name,
    },
}

#[derive(Debug, Args)]
pub(super) struct NetworkArgs {
    /// What kind of network it is: `nat` has a subnet with a gateway, DHCP and DNS; on a `private` one guests see nobody but each other.
    #[arg(long, default_value = NetworkMode::Nat.name(), value_parser = mode())]
    mode: NetworkMode,
    /// The addresses of its hosts, as in 10.77.0.0/24 [default: one that is free, with --mode nat].
    #[arg(long, value_name = "SUBNET")]
    subnet: Option<Subnet>,
    /// The gateway's address [default: the first of the subnet's hosts].
    #[arg(long, value_name = "IP")]
    gateway: Option<Ipv4Addr>,
    /// The addresses that are given out by DHCP, as in 10.77.0.10-10.77.0.200, or `off`.
    #[arg(long, value_name = "FROM-TO", default_value_t = DhcpChoice::default())]
    dhcp: DhcpChoice,
    /// How long an address is leased, 60 to 31536000.
    #[arg(long, value_name = "SECONDS", default_value_t = NetworkConfig::default().lease_seconds)]
    lease_time: LeaseSeconds,
    /// The DNS servers that are asked, as in 192.0.2.1,192.0.2.2; `auto` for those of this host, or `off`.
    #[arg(long, value_name = "IP,…", default_value_t = DnsChoice::default())]
    dns: DnsChoice,
    /// The domain of its hosts.
    #[arg(long, default_value_t = NetworkConfig::default().domain)]
    domain: DomainName,
    /// After how many seconds of silence a MAC address is forgotten, 10 to 86400.
    #[arg(long, value_name = "SECONDS", default_value_t = NetworkConfig::default().ageing_seconds)]
    ageing: AgeingSeconds,
    /// How many MAC addresses are kept, 16 to 262144.
    #[arg(long, value_name = "N", default_value_t = NetworkConfig::default().fdb_capacity)]
    fdb_capacity: FdbCapacity,
    /// What becomes of a station that there is no room for: `evict` an older one, `forward` its frames without learning it, or `drop` them.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = FdbFull::Evict)]
    fdb_full: FdbFull,
    /// To whom frames for groups go: to who asked for them (`snoop`), or to everybody (`flood`).
    #[arg(long, value_name = "HOW", value_enum, default_value_t = MulticastMode::Snoop)]
    multicast: MulticastMode,
    /// Don't ask who wants which groups, where nobody else does; with nobody who asks, multicast goes to everybody.
    #[arg(long)]
    no_querier: bool,
    /// How often weft asks that, 4 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = NetworkConfig::default().query_interval_seconds)]
    query_interval: QueryInterval,
    /// Believe who leaves a group at once: there is one host behind each port.
    #[arg(long)]
    fast_leave: bool,
    /// The MTU that guests are told, 68 to 65535 bytes.
    #[arg(long, value_name = "BYTES", default_value_t = NetworkConfig::default().mtu)]
    mtu: Mtu,
    /// Let guests reach what listens on this host's loopback, under the gateway's address.
    #[arg(long)]
    host_access: bool,
    /// The VLAN of the gateway and of ports without a role, as soon as a port has a role.
    #[arg(long, value_name = "VLAN", default_value_t = DEFAULT_VLAN)]
    default_vlan: VlanRef,
    /// Names of VLANs, as in tenant-a=100,tenant-b=200.
    #[arg(long, value_name = "NAME=VLAN,…")]
    vlans: Option<VlanNames>,
}

/// What is said about a network that is there.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct NetworkChanges {
    /// What kind of network it is.
    #[arg(long, value_parser = mode())]
    mode: Option<NetworkMode>,
    /// The addresses of its hosts, as in 10.77.0.0/24. Its leases end.
    #[arg(long, value_name = "SUBNET")]
    subnet: Option<Subnet>,
    /// The gateway's address.
    #[arg(long, value_name = "IP")]
    gateway: Option<Ipv4Addr>,
    /// The addresses that are given out by DHCP, as in 10.77.0.10-10.77.0.200, `auto` or `off`.
    #[arg(long, value_name = "FROM-TO")]
    dhcp: Option<DhcpChoice>,
    /// How long an address is leased, 60 to 31536000.
    #[arg(long, value_name = "SECONDS")]
    lease_time: Option<LeaseSeconds>,
    /// The DNS servers that are asked, as in 192.0.2.1,192.0.2.2; `auto` for those of this host, or `off`.
    #[arg(long, value_name = "IP,…")]
    dns: Option<DnsChoice>,
    /// The domain of its hosts.
    #[arg(long)]
    domain: Option<DomainName>,
    /// After how many seconds of silence a MAC address is forgotten, 10 to 86400.
    #[arg(long, value_name = "SECONDS")]
    ageing: Option<AgeingSeconds>,
    /// How many MAC addresses are kept, 16 to 262144.
    #[arg(long, value_name = "N")]
    fdb_capacity: Option<FdbCapacity>,
    /// What becomes of a station that there is no room for: `evict` an older one, `forward` its frames without learning it, or `drop` them.
    #[arg(long, value_name = "WHAT", value_enum)]
    fdb_full: Option<FdbFull>,
    /// To whom frames for groups go: to who asked for them (`snoop`), or to everybody (`flood`).
    #[arg(long, value_name = "HOW", value_enum)]
    multicast: Option<MulticastMode>,
    /// Ask who wants which groups, where nobody else does; with =false, don't.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    querier: Option<bool>,
    /// The same as --querier=false.
    #[arg(long, conflicts_with = "querier")]
    no_querier: bool,
    /// How often weft asks that, 4 to 3600.
    #[arg(long, value_name = "SECONDS")]
    query_interval: Option<QueryInterval>,
    /// Believe who leaves a group at once: there is one host behind each port; with =false, ask first.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    fast_leave: Option<bool>,
    /// The MTU that guests are told, 68 to 65535 bytes; holds for ports that are added afterwards.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<Mtu>,
    /// Let guests reach what listens on this host's loopback, under the gateway's address; with =false, don't.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    host_access: Option<bool>,
    /// The VLAN of the gateway and of ports without a role, as soon as a port has a role.
    #[arg(long, value_name = "VLAN")]
    default_vlan: Option<VlanRef>,
    /// Names of VLANs, as in tenant-a=100,tenant-b=200, in place of those that there are.
    #[arg(long, value_name = "NAME=VLAN,…")]
    vlans: Option<VlanNames>,
}

impl NetworkChanges {
    /// The keys of the configuration file that change.
    fn settings(self) -> serde_json::Map<String, Value> {
        let Self {
            mode,
            subnet,
            gateway,
            dhcp,
            lease_time,
            dns,
            domain,
            ageing,
            fdb_capacity,
            fdb_full,
            multicast,
            querier,
            no_querier,
            query_interval,
            fast_leave,
            mtu,
            host_access,
            default_vlan,
            vlans,
        } = self;
        let querier = if no_querier { Some(false) } else { querier };
        let values = json!({
            "mode": mode,
            "subnet": subnet,
            "gateway": gateway,
            "dhcp": dhcp,
            "lease_seconds": lease_time,
            "dns": dns,
            "domain": domain,
            "ageing_seconds": ageing,
            "fdb_capacity": fdb_capacity,
            "fdb_full": fdb_full,
            "multicast": multicast,
            "querier": querier,
            "query_interval_seconds": query_interval,
            "fast_leave": fast_leave,
            "mtu": mtu,
            "host_access": host_access,
            "default_vlan": default_vlan,
            "vlans": vlans,
        });
        let said = |(key, value): (String, Value)| (!value.is_null()).then_some((key, value));
        values.as_object().cloned().unwrap_or_default().into_iter().filter_map(said).collect()
    }
}

impl NetworkArgs {
    fn config(self) -> NetworkConfig {
        let Self {
            mode,
            subnet,
            gateway,
            dhcp,
            lease_time,
            dns,
            domain,
            ageing,
            fdb_capacity,
            fdb_full,
            multicast,
            no_querier,
            query_interval,
            fast_leave,
            mtu,
            host_access,
            default_vlan,
            vlans,
        } = self;
        NetworkConfig {
            mode,
            subnet,
            gateway,
            dhcp,
            lease_seconds: lease_time,
            dns,
            domain,
            ageing_seconds: ageing,
            fdb_capacity,
            fdb_full,
            multicast,
            querier: !no_querier,
            query_interval_seconds: query_interval,
            fast_leave,
            mtu,
            host_access,
            default_vlan,
            vlans: vlans.unwrap_or_default(),
            ..NetworkConfig::default()
        }
    }
}

/// The possible values are for the help and the shell's completion.
fn mode() -> impl TypedValueParser<Value = NetworkMode> {
    PossibleValuesParser::new(NetworkMode::NAMES).try_map(|name| name.parse::<NetworkMode>())
}

pub(super) fn network(command: NetworkCommand, client: &mut Client, output: &Output) -> Result<(), CliError> {
    match command {
        NetworkCommand::Add { name, settings } => {
            let info = client.call::<api::AddNetwork>(&NetworkAdd { name, settings: settings.config() })?;
            output.show(&info, |_, info| {
                let addresses = info.subnet.as_ref().map(|subnet| format!(", with the subnet {subnet}")).unwrap_or_default();
                let name = &info.name;
                format!("Network {name} is there{addresses}. Put a port on it with: weft port add NAME --network {name}\n")
            })
        }
        NetworkCommand::Set { name, changes } => {
            let info = client.call::<api::SetNetwork>(&NetworkSet { name, settings: changes.settings() })?;
            output.show(&info, |_, info| format!("Network {} is changed.\n", info.name))
        }
        NetworkCommand::List => {
            output.show(&client.call::<api::ListNetworks>(&Nothing {})?, |style, networks| render::networks(style, networks))
        }
        NetworkCommand::Show { name } => output.show(&client.call::<api::ShowNetwork>(&Named { name })?, render::network),
        NetworkCommand::Remove { name } => {
            let removed = client.call::<api::RemoveNetwork>(&Named { name })?;
            output.show(&removed, |_, removed| format!("Network {} is gone.\n", removed.name))
        }
    }
}
