//! `weft multicast`.

use clap::Subcommand;

use super::{CliError, Output};
use crate::api::{self, MaybeNetwork};
use crate::client::Client;
use crate::render;
use crate::values::Name;

#[derive(Debug, Subcommand)]
pub(super) enum MulticastCommand {
    /// List who wants which groups, and who asks for that.
    List {
        /// Only those of this network.
        network: Option<Name>,
    },
}

pub(super) fn multicast(command: MulticastCommand, client: &mut Client, output: &Output) -> Result<(), CliError> {
    let MulticastCommand::List { network } = command;
    output.show(&client.call::<api::ListMulticast>(&MaybeNetwork { network })?, |style, infos| render::multicast(style, infos))
}
