//! `weft fdb`.

use clap::Subcommand;

use super::{CliError, Output};
use crate::api::{self, FdbAdd, FdbOf, MaybeNetwork};
use crate::client::Client;
use crate::fdb::StaticEntry;
use crate::render;
use crate::values::{Name, PortMac};
use crate::vlans::VlanRef;

#[derive(Debug, Subcommand)]
pub(super) enum FdbCommand {
    /// List the MAC addresses that were learned or declared.
    List {
        /// Only those of this network.
        #[arg(long)]
        network: Option<Name>,
    },
    /// Keep a MAC address behind one port: it does not age, and nobody else gets what is for it.
    Add {
        /// The address.
        mac: PortMac,
        /// The port.
        #[arg(long)]
        port: Name,
        /// The network [default: that of the port].
        #[arg(long)]
        network: Option<Name>,
        /// The VLAN, a number or a name [default: that of the port's frames without a tag].
        #[arg(long)]
        vlan: Option<VlanRef>,
    },
    /// Keep a MAC address behind that port no longer.
    Remove {
        /// The address.
        mac: PortMac,
        /// The network [default: the only one that has such an entry].
        #[arg(long)]
        network: Option<Name>,
        /// The VLAN [default: the only one in which it has one].
        #[arg(long)]
        vlan: Option<VlanRef>,
    },
    /// Forget the MAC addresses that were learned.
    Flush {
        /// Only those of this network.
        #[arg(long)]
        network: Option<Name>,
    },
}

pub(super) fn fdb(command: FdbCommand, client: &mut Client, output: &Output) -> Result<(), CliError> {
    match command {
        FdbCommand::List { network } => {
            output.show(&client.call::<api::ListFdb>(&MaybeNetwork { network })?, |style, lines| render::fdb(style, lines))
        }
        FdbCommand::Add { mac, port, network, vlan } => {
            let entry = StaticEntry { mac, port, vlan };
            let line = client.call::<api::AddFdb>(&FdbAdd { network, entry })?;
            output.show(&line, |_, line| {
                let vlan = line.vlan.as_ref().map(|vlan| format!(", VLAN {vlan}")).unwrap_or_default();
                format!("{} is behind port {} (network {}{vlan}).\n", line.mac, line.port, line.network)
            })
        }
        FdbCommand::Remove { mac, network, vlan } => {
            let removed = client.call::<api::RemoveFdb>(&FdbOf { network, mac, vlan })?;
            output.show(&removed, |_, removed| format!("The static entry of {} is gone.\n", removed.mac.address()))
        }
        FdbCommand::Flush { network } => {
            let flushed = client.call::<api::FlushFdb>(&MaybeNetwork { network })?;
            output.show(&flushed, |_, flushed| match flushed.entries {
                1 => "1 MAC address is forgotten.\n".to_owned(),
                entries => format!("{entries} MAC addresses are forgotten.\n"),
            })
        }
    }
}
