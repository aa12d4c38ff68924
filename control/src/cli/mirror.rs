//! `weft mirror`.

use std::error::Error;

use clap::{Subcommand, ValueHint};

use super::{CliError, Output};
use crate::api::{self, Named, Nothing};
use crate::capture::{Direction, FilterText};
use crate::client::Client;
use crate::mirror::{MaxSizeMib, MirrorConfig, MirrorTarget};
use crate::mirror_handler::MirrorAdd;
use crate::render;
use crate::values::Name;
use crate::vlans::VlanRef;

#[derive(Debug, Subcommand)]
pub(super) enum MirrorCommand {
    /// Copy the frames of ports to another port, or into a file.
    ///
    /// A port that copies go to is a monitor port: it gets nothing else, and what its guest sends goes nowhere. A file is opened by the daemon, with its rights.
    Add {
        /// The mirror's name.
        name: Name,
        /// The ports whose frames are copied.
        #[arg(long, value_name = "PORT,…", value_delimiter = ',', required = true)]
        from: Vec<Name>,
        /// A port, or a pcapng file by its path, as in ./x.pcapng.
        #[arg(long, value_name = "PORT|FILE", value_parser = target, value_hint = ValueHint::AnyPath)]
        to: MirrorTarget,
        /// Which way they go: from the guest into the switch, out to the guest, or both.
        #[arg(long, value_enum, default_value_t)]
        direction: Direction,
        /// Only those in this VLAN, with a tag or without.
        #[arg(long)]
        vlan: Option<VlanRef>,
        /// Which frames, as tcpdump takes it.
        #[arg(short, long, value_name = "EXPRESSION", default_value = "")]
        filter: FilterText,
        /// How large the file may become, in mebibytes [default: 1024].
        #[arg(long, value_name = "MIB")]
        max_size: Option<MaxSizeMib>,
    },
    /// List the mirrors, and what they have done.
    List,
    /// Copy no longer.
    Remove {
        /// The mirror.
        name: Name,
    },
}

/// A path is meant from here, not from where the switch runs.
fn target(text: &str) -> Result<MirrorTarget, Box<dyn Error + Send + Sync>> {
    if !text.contains('/') {
        return Ok(text.parse()?);
    }
    let absolute = std::path::absolute(text)?;
    Ok(absolute.to_str().ok_or("the directory that it is relative to is not UTF-8")?.parse()?)
}

pub(super) fn mirror(command: MirrorCommand, client: &mut Client, output: &Output) -> Result<(), CliError> {
    match command {
        MirrorCommand::Add { name, from, to, direction, vlan, filter, max_size } => {
            let settings = MirrorConfig { from, to, direction, vlan, filter, max_size_mib: max_size };
            let line = client.call::<api::AddMirror>(&MirrorAdd { name, settings })?;
            output.show(&line, |_, line| format!("Mirror {} copies to {}.\n", line.name, line.settings.to))
        }
        MirrorCommand::List => {
            output.show(&client.call::<api::ListMirrors>(&Nothing {})?, |style, lines| render::mirrors(style, lines))
        }
        MirrorCommand::Remove { name } => {
            let removed = client.call::<api::RemoveMirror>(&Named { name })?;
            output.show(&removed, |_, removed| format!("Mirror {} is gone.\n", removed.name))
        }
    }
}
