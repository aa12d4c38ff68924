//! `weft lease`.

use std::net::Ipv4Addr;

use clap::Subcommand;
use weft_switch::HostName;
use weft_switch::dhcp::ClientIdentifier;

use super::{CliError, Output};
use crate::addressing::{LeaseOwner, StaticLease};
use crate::api::{self, LeaseAdd, LeaseOf, MaybeNetwork};
use crate::client::Client;
use crate::render;
use crate::values::{Name, PortMac};

#[derive(Debug, Subcommand)]
pub(super) enum LeaseCommand {
    /// List the addresses that clients have, and those that are kept for one.
    List {
        /// Only those of this network.
        #[arg(long)]
        network: Option<Name>,
    },
    /// Keep an address for one client.
    ///
    /// The client is told at its next request: when it starts, or when half of the lease that it has is over.
    Add {
        /// The network.
        network: Name,
        /// The address.
        address: Ipv4Addr,
        /// The client's MAC address.
        #[arg(long, required_unless_present = "client_id", conflicts_with = "client_id")]
        mac: Option<PortMac>,
        /// What the client calls itself in DHCP option 61, in hexadecimal, as in 01:02:00:00:00:00:0a.
        #[arg(long, value_name = "HEX")]
        client_id: Option<ClientIdentifier>,
        /// What the host is called in DNS.
        #[arg(long, value_name = "NAME")]
        hostname: Option<HostName>,
    },
    /// End a lease, and keep the address for nobody any more.
    ///
    /// A client that has the address goes on using it until it asks again, and what it sends through the gateway meanwhile counts as that of a
    /// guest which was set up by hand.
    Remove {
        /// The network.
        network: Name,
        /// The address.
        address: Ipv4Addr,
    },
}

pub(super) fn lease(command: LeaseCommand, client: &mut Client, output: &Output) -> Result<(), CliError> {
    match command {
        LeaseCommand::List { network } => {
            output.show(&client.call::<api::ListLeases>(&MaybeNetwork { network })?, |style, lines| render::leases(style, lines))
        }
        LeaseCommand::Add { network, address, mac, client_id, hostname } => {
            let owner = LeaseOwner::new(mac, client_id)?;
            let lease = StaticLease { address, owner, hostname };
            let line = client.call::<api::AddLease>(&LeaseAdd { network, lease })?;
            output.show(&line, |_, line| {
                let holder = line.client.as_deref().unwrap_or("its port");
                match &line.kept_for {
                    None => format!("{} is kept for {holder}.\n", line.address),
                    Some(kept_for) if line.state == "leased" => {
                        let left = render::duration(line.seconds_left.unwrap_or_default());
                        format!("{} is kept for {kept_for}, as soon as the lease of {holder} ends (in {left}).\n", line.address)
                    }
                    Some(kept_for) => {
                        format!("{} is kept for {kept_for}, as soon as it is not {} any more.\n", line.address, line.state)
                    }
                }
            })
        }
        LeaseCommand::Remove { network, address } => {
            let removed = client.call::<api::RemoveLease>(&LeaseOf { network, address })?;
            output.show(&removed, |_, removed| format!("The lease of {} is gone, and it is kept for nobody.\n", removed.address))
        }
    }
}
