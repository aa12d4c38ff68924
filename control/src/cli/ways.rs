//! `weft forward` and `weft nat`.

use clap::Subcommand;

use super::{CliError, Output};
use crate::api::{self, ForwardAdd, ForwardLine, ForwardOf, MappingLine, MappingPage, MappingsAsked, MaybeNetwork, Named};
use crate::client::Client;
use crate::config::Config;
use crate::forward::{ForwardFrom, ForwardRule, ForwardTo};
use crate::render;
use crate::values::Name;

#[derive(Debug, Subcommand)]
pub(super) enum ForwardCommand {
    /// Let the outside reach a guest by ports of this host.
    ///
    /// The guest sees who is there: the client's own address. Programs of this host that use its loopback appear as the gateway, and other guests of
    /// the network as this host.
    Add {
        /// The network.
        network: Name,
        /// The ports of this host, as in tcp:8080, udp:53, tcp:8000-8010 or tcp:127.0.0.1:8080 for one of its addresses.
        from: ForwardFrom,
        /// The guest and its port, as in 10.77.0.10:80, or web:80 with its port's name or what it calls itself; the first port of several. Without a port: the
        /// same as outside.
        to: ForwardTo,
    },
    /// List the ports of this host by which guests can be reached.
    List {
        /// Only those of this network.
        #[arg(long)]
        network: Option<Name>,
    },
    /// Take a forward back. Connections that were made stay.
    Remove {
        /// The network.
        network: Name,
        /// The ports of this host, as they were given.
        from: ForwardFrom,
        /// Where they lead; it need not be said.
        to: Option<ForwardTo>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum NatCommand {
    /// List the connections of guests with the outside, the oldest first.
    List {
        /// Only those of this network.
        #[arg(long)]
        network: Option<Name>,
        /// Only those of the guest on this port.
        #[arg(long)]
        port: Option<Name>,
    },
    /// Show how much of a network's way out is in use, and its limits and times.
    Show {
        /// The network.
        #[arg(default_value = Config::DEFAULT_NETWORK)]
        network: Name,
    },
}

pub(super) fn forward(command: ForwardCommand, client: &mut Client, output: &Output) -> Result<(), CliError> {
    match command {
        ForwardCommand::Add { network, from, to } => {
            let forward = ForwardRule { from, to };
            let line = client.call::<api::AddForward>(&ForwardAdd { network, forward })?;
            output.show(&line, |_, line| added(line))
        }
        ForwardCommand::List { network } => {
            let lines = client.call::<api::ListForwards>(&MaybeNetwork { network })?;
            output.show(&lines, |style, lines| render::forwards(style, lines))
        }
        ForwardCommand::Remove { network, from, to } => {
            let removed = client.call::<api::RemoveForward>(&ForwardOf { network, from, to })?;
            output.show(&removed, |_, removed| format!("{} is not forwarded any more.\n", removed.from))
        }
    }
}

fn added(line: &ForwardLine) -> String {
    match line.guest {
        Some(_) => {
            let but = line.reason.as_ref().map(|reason| format!(", but {reason}")).unwrap_or_default();
            format!("{} is forwarded to {}{but}.\n", line.from, line.to)
        }
        None => format!("{} will be forwarded to {} as soon as a guest has that name.\n", line.from, line.to),
    }
}

pub(super) fn nat(command: NatCommand, client: &mut Client, output: &Output) -> Result<(), CliError> {
    match command {
        NatCommand::List { network, port } => {
            let mappings = all_mappings(client, &MappingsAsked { network, port, ..MappingsAsked::default() })?;
            output.show(&mappings, |style, lines| render::mappings(style, lines))
        }
        NatCommand::Show { network } => output.show(&client.call::<api::ShowNat>(&Named { name: network })?, render::nat),
    }
}

/// An answer has a part of them only. Those that come meanwhile are at the end; where some have gone, as many of the others may be missing.
fn all_mappings(client: &mut Client, asked: &MappingsAsked) -> Result<Vec<MappingLine>, CliError> {
    let mut all = Vec::new();
    loop {
        let asked = MappingsAsked { skip: all.len(), ..asked.clone() };
        let MappingPage { mappings, .. } = client.call::<api::ListMappings>(&asked)?;
        if mappings.is_empty() {
            return Ok(all);
        }
        all.extend(mappings);
    }
}
